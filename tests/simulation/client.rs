//! One simulated process: it gets the lock, has effects under it, extends and releases it. Everything it
//! decides about the lock is decided by the shipped state machines.

use crate::server::Connection;
use std::time::Duration;
use tagsweep::clock::Moment;
use tagsweep::lock::attempt::{Attempt, Event, Step};
use tagsweep::lock::contender::Contender;
use tagsweep::lock::protocol::{Answer, Keys, Request};
use tagsweep::lock::ward::{Asked, Due, Next, Ward};
use tagsweep::lock::{Options, WaitMode};

/// Life of a lease.
pub const TTL: Duration = Duration::from_millis(1000);

/// Patience with one attempt at a request, and how many there are: as `Link::persist` has them.
pub const PATIENCE: u64 = 150_000;
pub const ATTEMPTS: u32 = 3;

/// What a client waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Doing {
    Resting,
    /// An answer to a request of an attempt.
    Asking(Request),
    /// The same, on a connection on which the server tells of the next change.
    Tracking(Request),
    /// The answer to joining, on a connection of its own.
    Joining(Request),
    Listening(Moment),
    Pausing(Moment),
    HangingUp,
    /// Working under the lease.
    Working,
    /// Whether an effect was accepted.
    Affecting,
    Extending(Request),
    Releasing(Request),
}

/// What the world is to do for a client.
#[derive(Clone, Debug)]
pub enum Act {
    Send(Request),
    Track(Request),
    /// Of the watchdog, on a connection of its own.
    Renew(Request, u64),
    Join(Request, Connection),
    Unblock(Connection),
    Effect(Vec<u8>),
    /// Look in again then.
    Wake(u64),
    /// Look after the lease of this grant then.
    Watch(u64, u64),
    Close(Connection),
}

pub struct Client {
    pub name: usize,
    /// Grows with each crash: what was meant for the one before reaches nobody.
    pub life: u64,
    pub contender: Contender,
    attempt: Option<Attempt>,
    pub doing: Doing,
    /// The exchange under way: replies to older ones are not listened to.
    pub exchange: u64,
    tries: u32,
    sent: u64,
    pub line: Option<Connection>,
    /// What came on the line before the answer to joining, which one connection cannot do.
    early: Option<(Connection, Event)>,
    /// What the server has told since the last look.
    news: Option<Event>,
    pub told: u64,
    pub paused_until: u64,
    /// Until when it wants nothing.
    pub rested: u64,
    effects_left: u64,
    /// Its lease, if a watchdog renews it, and the renewal under way.
    ward: Option<Ward>,
    renewal: Option<(u64, Asked)>,
    pub renewed: u64,
    pub grants: u64,
    pub repeated: u64,
    /// Acquisitions of which nobody knew what they came to.
    pub doubts: u64,
    begun: u64,
}

pub fn moment(now: u64) -> Moment {
    Moment::at(Duration::from_micros(now))
}

pub fn micros(moment: Moment) -> u64 {
    u64::try_from(moment.since(Moment::at(Duration::ZERO)).as_micros()).unwrap()
}

impl Client {
    pub fn new(name: usize) -> Self {
        let keys = Keys::new(b"", b"sim").unwrap();
        Self {
            name,
            life: 0,
            contender: Contender::with_keys(keys, Options::new(TTL)).unwrap(),
            attempt: None,
            doing: Doing::Resting,
            exchange: 0,
            tries: 0,
            sent: 0,
            line: None,
            early: None,
            news: None,
            told: 0,
            paused_until: 0,
            rested: 0,
            effects_left: 0,
            ward: None,
            renewal: None,
            renewed: 0,
            grants: 0,
            repeated: 0,
            doubts: 0,
            begun: 0,
        }
    }

    /// The process dies and starts again.
    pub fn crash(&mut self) {
        let (life, grants, repeated) = (self.life + 1, self.grants, self.repeated);
        let (doubts, renewed, told) = (self.doubts, self.renewed, self.told);
        // A lease that the process had is nobody's now; its destructor never ran.
        self.contender.forget();
        *self = Self {
            life,
            grants,
            repeated,
            doubts,
            renewed,
            told,
            exchange: self.exchange,
            ..Self::new(self.name)
        };
    }

    /// Whether it believes to hold the lock.
    pub fn believes(&self, now: u64) -> bool {
        self.contender.is_held(moment(now))
    }

    /// Begins an attempt.
    pub fn begin(&mut self, now: u64, serial: u64, budget: Duration, mode: WaitMode) -> Vec<Act> {
        let mut manner = self.contender.manner(budget);
        manner.mode = mode;
        let (token, name) = (format!("t{serial}"), format!("n{serial}"));
        let mut attempt = Attempt::with_tokens(manner, token, name, moment(now));
        let step = attempt.begin();
        self.attempt = Some(attempt);
        self.begun = now;
        self.take(step, now)
    }

    /// Tells the attempt what happened, and does what it says.
    pub fn tell(&mut self, event: Event, now: u64) -> Vec<Act> {
        let Some(attempt) = &mut self.attempt else { return Vec::new() };
        let step = attempt.on(event, moment(now));
        self.take(step, now)
    }

    fn take(&mut self, step: Step, now: u64) -> Vec<Act> {
        match step {
            Step::Ask(request) => {
                self.doing = Doing::Asking(request);
                self.send(now)
            }
            Step::Join(request) => {
                self.doing = Doing::Joining(request);
                self.send(now)
            }
            Step::Track(request) => {
                self.doing = Doing::Tracking(request);
                self.send(now)
            }
            Step::Listen(until) => {
                self.doing = Doing::Listening(until);
                vec![Act::Wake(if self.news.is_some() { now } else { micros(until) })]
            }
            Step::Pause(until) => {
                self.doing = Doing::Pausing(until);
                vec![Act::Wake(micros(until))]
            }
            Step::HangUp => {
                self.doing = Doing::HangingUp;
                self.send(now)
            }
            Step::Done(Ok(lease)) => {
                self.grants += 1;
                self.contender.granted(lease, TTL, Duration::from_micros(now - self.begun));
                self.effects_left = 3 + self.grants % 5;
                self.doing = Doing::Working;
                self.attempt = None;
                vec![Act::Wake(now)].into_iter().chain(self.begin_watch()).collect()
            }
            Step::Done(Err(_)) => self.rest(now),
        }
    }

    /// Some have their leases renewed, and take so long that it is needed.
    pub fn is_watched(&self) -> bool {
        self.name.is_multiple_of(3)
    }

    fn begin_watch(&mut self) -> Option<Act> {
        self.renewal = None;
        let (lease, pulse) = (self.contender.lease()?, self.contender.pulse()?);
        let (value, pulse) = (lease.value().to_vec(), pulse.clone());
        self.ward = self.is_watched().then_some(Ward { value, ttl: TTL, end: None, pulse });
        Some(self.watch_at(self.ward.as_ref()?.first_due()))
    }

    /// Not a fraction of a microsecond too early.
    fn watch_at(&self, due: Moment) -> Act {
        Act::Watch(micros(due) + 1, self.grants)
    }

    /// The lease of this grant is due, or the answer to its renewal.
    pub fn watch(&mut self, grant: u64, now: u64) -> Vec<Act> {
        let Some(ward) = self.ward.as_ref().filter(|_| grant == self.grants) else {
            return Vec::new();
        };
        if let Some((_, asked)) = self.renewal.take() {
            let next = ward.failed(&asked, moment(now));
            return self.renewed_until(next);
        }
        if moment(now) < ward.first_due() {
            return Vec::new(); // it was answered in time
        }
        match ward.due(moment(now)) {
            Due::Renewal(asked) => {
                let ask = Act::Renew(asked.request.clone(), now);
                self.renewal = Some((now, asked));
                vec![ask, Act::Watch(now + PATIENCE, grant)]
            }
            Due::Lost(reason) => self.renewed_until(Next::Lost(reason)),
            Due::Nothing => Vec::new(),
        }
    }

    /// What the server says to the renewal that was sent then, if it is still waited for.
    pub fn renewal_answered(&mut self, sent: u64, answer: &Answer) -> Vec<Act> {
        let asked = self.renewal.take_if(|(at, _)| *at == sent);
        let (Some(ward), Some((_, asked))) = (&self.ward, asked) else { return Vec::new() };
        self.renewed += u64::from(matches!(answer, Answer::Extended(_)));
        let next = ward.answered(&asked, answer);
        self.renewed_until(next)
    }

    fn renewed_until(&mut self, next: Next) -> Vec<Act> {
        match (next, &self.ward) {
            (Next::At(due), _) => vec![self.watch_at(due)],
            (Next::Lost(reason), Some(ward)) => {
                ward.pulse.lose(reason);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    pub fn rest(&mut self, now: u64) -> Vec<Act> {
        self.attempt = None;
        self.doing = Doing::Resting;
        let close = self.line.take().map(Act::Close);
        // Now and then nobody wants the lock.
        let idle = if self.exchange.is_multiple_of(3) { 1_500_000 } else { 2_000 };
        self.rested = now + idle;
        close.into_iter().chain([Act::Wake(self.rested)]).collect()
    }

    /// Sends what it does, for the first time.
    pub fn send(&mut self, now: u64) -> Vec<Act> {
        self.tries = 0;
        self.resend(now)
    }

    fn resend(&mut self, now: u64) -> Vec<Act> {
        self.tries += 1;
        self.exchange += 1;
        self.sent = now;
        let wake = Act::Wake(now + PATIENCE);
        let act = match &self.doing {
            Doing::Asking(request) | Doing::Extending(request) | Doing::Releasing(request) => {
                Act::Send(request.clone())
            }
            Doing::Tracking(request) => Act::Track(request.clone()),
            Doing::Joining(request) => {
                let old = self.line.replace(self.exchange);
                let join = Act::Join(request.clone(), self.exchange);
                return old.map(Act::Close).into_iter().chain([join, wake]).collect();
            }
            Doing::HangingUp => match self.line {
                Some(line) => Act::Unblock(line),
                None => return vec![wake],
            },
            Doing::Affecting => {
                let value = self.contender.lease().map(|lease| lease.value().to_vec());
                match value {
                    Some(value) => Act::Effect(value),
                    None => return self.rest(now),
                }
            }
            _ => return Vec::new(),
        };
        vec![act, wake]
    }

    /// An answer to the exchange under way.
    pub fn answered(&mut self, answer: Answer, now: u64) -> Vec<Act> {
        self.repeated += u64::from(self.tries > 1);
        let sent = moment(self.sent);
        match self.doing.clone() {
            Doing::Asking(_) => self.tell(Event::Answered(answer, sent), now),
            Doing::Tracking(_) => {
                self.news = None; // it was older
                self.tell(Event::Tracked(answer, sent), now)
            }
            Doing::Joining(_) => {
                let mut acts = self.tell(Event::Answered(answer, sent), now);
                if let Some((line, event)) = self.early.take() {
                    acts.extend(self.line_ended(line, event, now));
                }
                acts
            }
            Doing::Extending(Request::Extend { exact, .. }) => {
                if self.contender.extended(&answer, sent, exact) {
                    self.doing = Doing::Working;
                    vec![Act::Wake(now)]
                } else {
                    self.rest(now)
                }
            }
            Doing::Releasing(_) => self.rest(now),
            _ => Vec::new(),
        }
    }

    /// The effect was accepted or refused.
    pub fn affected(&mut self, accepted: bool, now: u64) -> Vec<Act> {
        if self.doing != Doing::Affecting {
            return Vec::new(); // the reply to a doubled request
        }
        if !accepted {
            self.contender.forget();
            return self.rest(now);
        }
        self.effects_left -= 1;
        self.doing = Doing::Working;
        vec![Act::Wake(now + if self.is_watched() { 200_000 } else { 1_000 })]
    }

    /// What was blocked on this line has ended.
    pub fn line_ended(&mut self, line: Connection, event: Event, now: u64) -> Vec<Act> {
        if self.line != Some(line) {
            return Vec::new();
        }
        match (&self.doing, event) {
            (Doing::Listening(_), event) => {
                self.line = None;
                self.tell(event, now)
            }
            (Doing::Joining(_), event) => {
                self.early = Some((line, event));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The server tells that the lock has changed.
    pub fn told_of(&mut self, news: Event, now: u64) -> Vec<Act> {
        self.told += 1;
        let weight = |news: &Event| {
            [Event::LineChanged, Event::Changed, Event::Untold].iter().position(|n| n == news)
        };
        self.news = self.news.take().into_iter().chain([news]).max_by_key(weight);
        self.wake(now, 0)
    }

    /// Hanging up came to this.
    pub fn hung_up(&mut self, baton: Option<Vec<u8>>, now: u64) -> Vec<Act> {
        self.line = None;
        self.tell(Event::HungUp(baton), now)
    }

    /// Time passes. `draw` is random.
    pub fn wake(&mut self, now: u64, draw: u64) -> Vec<Act> {
        match self.doing.clone() {
            Doing::Listening(_) if self.news.is_some() => {
                let news = self.news.take().unwrap();
                self.tell(news, now)
            }
            Doing::Listening(until) | Doing::Pausing(until) if now >= micros(until) => {
                self.tell(Event::Time, now)
            }
            Doing::Working => self.work(now, draw),
            Doing::HangingUp if now >= self.sent + PATIENCE => self.hung_up(None, now),
            Doing::Asking(_)
            | Doing::Tracking(_)
            | Doing::Joining(_)
            | Doing::Affecting
            | Doing::Extending(_)
            | Doing::Releasing(_)
                if now >= self.sent + PATIENCE =>
            {
                self.overdue(now)
            }
            _ => Vec::new(),
        }
    }

    /// No answer in time: again, or an error. An effect is not repeated.
    fn overdue(&mut self, now: u64) -> Vec<Act> {
        if let Doing::Tracking(request) = &self.doing {
            // Then without being told.
            self.doing = Doing::Asking(request.clone());
            return self.send(now);
        }
        if self.tries < ATTEMPTS && self.doing != Doing::Affecting {
            return self.resend(now);
        }
        match self.doing {
            Doing::Extending(_) if self.believes(now) => {
                self.doing = Doing::Working;
                vec![Act::Wake(now)]
            }
            Doing::Asking(Request::Acquire { claim: None, .. }) if self.bears(now) => {
                self.attempt.iter_mut().for_each(Attempt::doubt);
                self.doubts += 1;
                self.tell(Event::Broken, now)
            }
            Doing::Asking(Request::Wait { .. }) | Doing::Joining(_) if self.bears(now) => {
                self.tell(Event::Broken, now)
            }
            _ => {
                self.contender.forget();
                self.rest(now)
            }
        }
    }

    /// A server out of reach is waited for, while there is time.
    fn bears(&self, now: u64) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.has_time(moment(now)))
    }

    /// An effect, an extend or the release. Half of them trust the server alone; one whose lease is over
    /// often tries to extend it.
    fn work(&mut self, now: u64, draw: u64) -> Vec<Act> {
        if draw.is_multiple_of(2) && !self.believes(now) {
            self.contender.forget();
            return self.rest(now);
        }
        if self.effects_left == 0 {
            let Some(request) = self.contender.release(moment(now)) else { return self.rest(now) };
            self.doing = Doing::Releasing(request);
        } else if draw.is_multiple_of(5) || (draw % 4 == 1 && !self.believes(now)) {
            let ttl = draw.is_multiple_of(10).then_some(TTL);
            let Ok(Some(request)) = self.contender.extend(ttl, moment(now)) else {
                return self.rest(now);
            };
            self.doing = Doing::Extending(request);
        } else {
            self.doing = Doing::Affecting;
        }
        self.send(now)
    }
}
