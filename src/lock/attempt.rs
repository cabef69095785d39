//! One attempt to get a lock, from the first request to the grant or to the end of patience: a state
//! machine without I/O. Steps come out, events and the time go in; the driver in `drive.rs` does what
//! the steps say, and so does the simulation in `tests/simulation/`.
//!
//! | state | event | next | step |
//! |---|---|---|---|
//! | Asking, Claiming | granted | – | done: ours |
//! | | granted, but the answer took as long as the lease | the same | extend it, once |
//! | | held, no time left | – (Leaving after a wait that counts) | done: held (leave) |
//! | | held | Queued (Pausing with back-off) | join the line (pause) |
//! | Pausing | time | Asking | ask again |
//! | Queued | in line | Queued | listen for the baton until the next look |
//! | | baton | Claiming | claim |
//! | | time for a look | Queued | look |
//! | | the line broke, or passed us over | Queued | join anew, at its end |
//! | | blocking is refused | Asking | leave, and back-off from now on |
//! | | time up, or cancelled | Leaving | hang up |
//! | Claiming | held (the claim came too late) | Queued or Leaving | join anew, or leave |
//! | Leaving | no baton came | Leaving | leave |
//! | | a baton came at the last moment | Claiming | claim |
//! | | the same, but cancelled | Leaving | leave, and hand it on |
//! | | left, handed on | – | done: held |

use crate::clock::Moment;
use crate::error::Result;
use crate::lock::lease::{Holder, Lease, names, safe_until, transit, whoami};
use crate::lock::protocol::{Answer, Count, Request};
use crate::lock::wait::{WaitMode, line_life, next_look, pause};
use std::time::Duration;

/// What the driver is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the request, then tell [`Event::Answered`].
    Ask(Request),
    /// Send the request on a connection of its own, with a BLPOP on the baton behind it; then tell
    /// [`Event::Answered`].
    Join(Request),
    /// Wait for the baton until then; tell [`Event::Baton`], [`Event::Time`] or [`Event::Broken`].
    Listen(Moment),
    /// Wait until then; tell [`Event::Time`].
    Pause(Moment),
    /// Stop blocking; tell [`Event::HungUp`].
    HangUp,
    /// The lease, or who has it.
    Done(std::result::Result<Lease, Holder>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server answered a request that was first sent at that moment.
    Answered(Answer, Moment),
    /// The baton was handed to us.
    Baton(Vec<u8>),
    /// It is time.
    Time,
    /// The connection on which we blocked is gone.
    Broken,
    /// The server (or a proxy before it) knows no blocking commands.
    CannotBlock,
    /// We block no more; what came at the last moment.
    HungUp(Option<Vec<u8>>),
    /// The caller has had enough.
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asking,
    Pausing,
    Queued,
    Claiming,
    Leaving,
}

/// How an attempt is made.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Life of the lease.
    pub ttl: Duration,
    /// How long to wait.
    pub budget: Duration,
    /// In which way.
    pub mode: WaitMode,
    /// Whether the server counts.
    pub record: bool,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    manner: Manner,
    state: State,
    token: String,
    /// Names waiters and transits; not the owner token, for it shows to others.
    name: String,
    serial: u32,
    /// Who waits. A new place in the line takes the old one's away.
    waiter: String,
    ticket: String,
    holder: Holder,
    /// When patience ends.
    end: Moment,
    next_look: Moment,
    pauses: u32,
    cancelled: bool,
    /// A baton that came when we wanted it no more.
    unwanted: Option<Vec<u8>>,
    /// A grant whose answer came when it was over.
    late: Option<Vec<u8>>,
}

impl Attempt {
    /// An attempt that begins now.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(manner: Manner, now: Moment) -> Result<Self> {
        let (token, name) = names()?;
        Ok(Self::with_tokens(manner, token, name, now))
    }

    /// An attempt with random names from elsewhere (a simulation repeats itself).
    pub fn with_tokens(manner: Manner, token: String, name: String, now: Moment) -> Self {
        let end = now + manner.budget;
        Self {
            manner,
            state: State::Asking,
            token,
            name,
            serial: 0,
            waiter: String::new(),
            ticket: String::new(),
            holder: Holder::default(),
            end,
            next_look: end,
            pauses: 0,
            cancelled: false,
            unwanted: None,
            late: None,
        }
    }

    /// The first step.
    pub fn begin(&mut self) -> Step {
        self.ask(None)
    }

    /// Who has the lock, as last heard.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Whether we have a place in the line.
    pub fn is_queued(&self) -> bool {
        self.state == State::Queued
    }

    /// What an event leads to.
    pub fn on(&mut self, event: Event, now: Moment) -> Step {
        match (self.state, event) {
            (_, Event::Cancel) => self.cancel(now),
            (_, Event::Answered(Answer::Granted(value), sent)) => self.granted(value, sent, now),
            (_, Event::Answered(Answer::Held(value, ttl), _)) => {
                self.holder = Holder::read(&value, ttl);
                self.held(now)
            }
            (_, Event::Answered(Answer::Waiting { holder, ttl, younger, ticket }, _)) => {
                self.holder = Holder::read(&holder, ttl);
                let strange = self.holder.fence.is_none();
                self.next_look = now + next_look(ttl, younger, strange);
                self.in_line(ticket, now)
            }
            (_, Event::Answered(Answer::Extended(_), sent)) => self.extended(sent, now),
            (_, Event::Answered(Answer::NotOurs(_), _)) => self.held(now),
            (State::Queued | State::Claiming, Event::Baton(baton)) => self.claim(baton),
            (State::Pausing, Event::Time) => self.ask(None),
            (State::Queued, Event::Time) if now >= self.end => self.leave(),
            (State::Queued, Event::Time) => self.look(),
            (_, Event::Broken) => self.held(now),
            (_, Event::CannotBlock) => {
                self.manner.mode = WaitMode::Backoff;
                let leave = self.ask_to_leave(false);
                self.state = State::Asking;
                leave
            }
            (State::Asking, Event::Answered(Answer::Left, _)) => self.held(now),
            (_, Event::HungUp(baton @ Some(_))) if self.cancelled => {
                self.unwanted = baton;
                self.ask_to_leave(false)
            }
            (_, Event::HungUp(Some(baton))) => self.claim(baton),
            (_, Event::HungUp(None)) => self.ask_to_leave(!self.cancelled),
            // Left, or handed on; and whatever else is said when all is said.
            _ => match self.unwanted.take() {
                Some(baton) => self.hand_on(baton),
                None => Step::Done(Err(self.holder.clone())),
            },
        }
    }

    fn ask(&mut self, claim: Option<(Vec<u8>, String)>) -> Step {
        self.state = if claim.is_some() { State::Claiming } else { State::Asking };
        let count = match (self.manner.record, self.manner.budget.is_zero()) {
            (false, _) => Count::Nothing,
            (true, true) => Count::All,
            (true, false) => Count::Takeovers,
        };
        let (token, ttl) = (self.token.clone(), self.manner.ttl);
        Step::Ask(Request::Acquire { token, ttl, claim, count })
    }

    fn claim(&mut self, baton: Vec<u8>) -> Step {
        let ticket = self.ticket.clone();
        self.ask(Some((baton, ticket)))
    }

    /// Ours; unless the answer took so long that the lease must not be acted upon any more.
    fn granted(&mut self, value: Vec<u8>, sent: Moment, now: Moment) -> Step {
        let ttl = self.manner.ttl;
        match Lease::new(value.clone(), sent) {
            Some(lease) if now < safe_until(sent, ttl) => Step::Done(Ok(lease)),
            Some(_) if self.late.is_none() => {
                self.late = Some(value.clone());
                Step::Ask(Request::Extend { value, ttl, exact: true })
            }
            _ => self.held(now),
        }
    }

    /// A lease that was granted late has its time again, unless that took too long, too.
    fn extended(&mut self, sent: Moment, now: Moment) -> Step {
        match self.late.clone() {
            Some(value) => self.granted(value, sent, now),
            None => self.held(now),
        }
    }

    /// Somebody else has it.
    fn held(&mut self, now: Moment) -> Step {
        let over = now >= self.end || self.cancelled;
        let untold = self.manner.record && !self.manner.budget.is_zero() && !self.cancelled;
        match (self.state, self.manner.mode) {
            (State::Asking, _) if over && !untold => Step::Done(Err(self.holder.clone())),
            (_, _) if over => self.ask_to_leave(!self.cancelled),
            (_, WaitMode::Line) => self.join(),
            (_, WaitMode::Backoff) => {
                self.state = State::Pausing;
                self.pauses += 1;
                let pause = pause(self.pauses - 1, draw(&self.new_name()));
                Step::Pause((now + pause).min(self.end))
            }
        }
    }

    /// We have a place. Whoever is served takes all older places away, for nobody is at them: if ours
    /// is another than it was, the connection on which we block is dead and does not know it.
    fn in_line(&mut self, ticket: String, now: Moment) -> Step {
        let passed_over = !self.ticket.is_empty() && self.ticket != ticket;
        self.ticket = ticket;
        if passed_over { self.held(now) } else { self.listen(now) }
    }

    fn join(&mut self) -> Step {
        self.state = State::Queued;
        self.ticket.clear();
        if self.waiter.is_empty() {
            self.waiter = format!("{}|{}", self.new_name(), whoami());
        }
        Step::Join(self.wait_request(true))
    }

    fn look(&mut self) -> Step {
        Step::Ask(self.wait_request(false))
    }

    fn new_name(&mut self) -> String {
        self.serial += 1;
        format!("{}.{}", self.name, self.serial)
    }

    fn wait_request(&mut self, join: bool) -> Request {
        let transit = transit(&self.new_name());
        Request::Wait { waiter: self.waiter.clone(), transit, life: line_life(), join }
    }

    fn listen(&mut self, now: Moment) -> Step {
        if now >= self.end { self.leave() } else { Step::Listen(self.next_look.min(self.end)) }
    }

    fn leave(&mut self) -> Step {
        self.state = State::Leaving;
        Step::HangUp
    }

    fn ask_to_leave(&mut self, timed_out: bool) -> Step {
        self.state = State::Leaving;
        let timed_out = timed_out && self.manner.record;
        Step::Ask(Request::Leave { waiter: self.waiter.clone(), timed_out })
    }

    fn cancel(&mut self, now: Moment) -> Step {
        self.cancelled = true;
        self.end = now;
        match self.state {
            State::Queued => self.leave(),
            _ => Step::Done(Err(self.holder.clone())),
        }
    }

    /// The lock is in transit to us, and we want it no more.
    fn hand_on(&mut self, baton: Vec<u8>) -> Step {
        let transit = transit(&self.new_name());
        Step::Ask(Request::hand_on(baton, 0, self.manner.ttl, transit))
    }
}

/// Between 0 and 1, from a name that is random: FNV-1a (G. Fowler, L. C. Noll, K.-P. Vo), and a last
/// stir (of A. Appleby's MurmurHash3), for names that differ at their end only.
fn draw(name: &str) -> f64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
    let stirred = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    f64::from((stirred >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_spread() {
        let draws: Vec<f64> = (0..1000).map(|n| draw(&format!("5eed.{n}"))).collect();
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert!(draws.iter().any(|d| *d < 0.05) && draws.iter().any(|d| *d > 0.95));
    }

    #[test]
    fn a_grant_that_comes_when_it_is_over_is_extended_once_and_else_it_is_none() {
        let ms = |n: u64| Moment::at(Duration::from_millis(1_000_000 + n));
        let (ttl, budget) = (Duration::from_millis(300), Duration::ZERO);
        let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
        let granted = || Event::Answered(Answer::Granted(b"t:7|h|1|p".to_vec()), ms(0));
        let extended = |at| Event::Answered(Answer::Extended(ttl), ms(at));
        let attempt = || {
            let manner = manner.clone();
            let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), ms(0));
            attempt.begin();
            attempt
        };
        let taken = |step: Step| matches!(step, Step::Done(Ok(_)));
        assert!(taken(attempt().on(granted(), ms(200))));
        let mut late = attempt();
        assert!(matches!(late.on(granted(), ms(400)), Step::Ask(Request::Extend { .. })));
        assert!(taken(late.on(extended(400), ms(500))));
        let mut later = attempt();
        later.on(granted(), ms(400));
        assert!(matches!(later.on(extended(400), ms(800)), Step::Done(Err(_))));
        let mut gone = attempt();
        gone.on(granted(), ms(400));
        let answer = Event::Answered(Answer::NotOurs(false), ms(400));
        assert!(matches!(gone.on(answer, ms(450)), Step::Done(Err(_))));
    }
}
