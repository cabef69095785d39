//! One attempt to get a lock, from the first request to the grant or to the end of patience: a state
//! machine without I/O. Steps come out, events and the time go in; the driver in `drive.rs` does what
//! the steps say, and so does the simulation in `tests/simulation/`. Each state has a function of its name.
//!
//! | state | event | next | step |
//! |---|---|---|---|
//! | Asking, Claiming | granted | – | done: ours |
//! | | granted, but the answer took as long as the lease | Extending | give it its time again |
//! | | granted, but cancelled | HandingOn | hand it on |
//! | | held, or broken | *on* | |
//! | Extending | extended | – | done: ours |
//! | | extended, and late again | HandingOn | hand it on |
//! | | not ours any more | *on* | |
//! | Pausing | time | Asking | ask again |
//! | Queued | in line | Queued | listen for the baton until the next look, or hang up if time is up |
//! | | baton | Claiming | claim |
//! | | time for a look | Queued | look, the youngest so that the server tells of the next change |
//! | | the lock changed | Queued | look again, though not before its time after the last look |
//! | | only the line did | Queued | the same, later |
//! | | nobody tells any more | Queued | the same as when the lock changed, and listen for ourselves for a while |
//! | | the line broke | *on* | |
//! | | there was no joining it, or it broke at once | Asking | ask without waiting |
//! | | the same for the third time, though asking works | Leaving | leave, for back-off for a while |
//! | | our place is another's | Straying | hang up |
//! | | blocking is refused | Leaving | leave, for back-off from now on |
//! | | time up, or cancelled | HangingUp | hang up |
//! | Straying | a baton came at the last moment | Claiming | claim |
//! | | no baton came | *on* | |
//! | HangingUp | no baton came | Leaving | leave |
//! | | a baton came at the last moment | Claiming | claim |
//! | | the same, but cancelled | Leaving | leave, and hand it on |
//! | Leaving | left | *on*, or HandingOn | hand the baton on, if there is one |
//! | HandingOn | handed on | *on* | |
//!
//! *On* means: ask again if an answer to an acquisition was lost (Asking). Then, while there is time: join
//! the line (Queued), or with back-off pause (Pausing). When patience is over: leave if that is to be counted, or
//! if we may have a place (Leaving); then it is done: held.

use crate::clock::Moment;
use crate::error::Result;
use crate::lock::lease::{Holder, Lease, safe_until, tokens, transit, whoami};
use crate::lock::protocol::{Answer, Count, Request};
use crate::lock::wait::{Told, WaitMode, Watch, line_life, pause};
use std::time::Duration;

/// A place in the line that broke within this time was none.
const AT_ONCE: Duration = Duration::from_millis(400);

/// So many of them in a row, and for a while there is no waiting in line: a second, twice that the next time, and so on.
const PLACES: u32 = 3;
const WHILE: Duration = Duration::from_secs(1);
const LONGEST_WHILE: Duration = Duration::from_secs(60);

/// What the driver is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the request, then tell [`Event::Answered`].
    Ask(Request),
    /// Send the request on a connection of its own, with a BLPOP on the baton behind it; then tell
    /// [`Event::Answered`].
    Join(Request),
    /// Send the request on a connection on which the server tells of the next change of lock and line; then tell
    /// [`Event::Tracked`]. If there is none to be had, as with [`Step::Ask`].
    Track(Request),
    /// Wait for the baton until then; tell [`Event::Baton`], [`Event::Time`], [`Event::Changed`],
    /// [`Event::LineChanged`], [`Event::Untold`] or [`Event::Broken`].
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
    /// The same, and the server will tell of the next change of the lock.
    Tracked(Answer, Moment),
    /// It has changed, as far as we know.
    Changed,
    /// Somebody has joined the line, or left it; or its life was renewed.
    LineChanged,
    /// The connection on which we were told is gone, or may lead elsewhere.
    Untold,
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

#[derive(Debug)]
enum State {
    /// A request for the lock is under way.
    Asking,
    /// The same, with the baton that we popped.
    Claiming,
    /// The lease of that value was granted late.
    Extending(Vec<u8>),
    Pausing,
    /// In line, or about to join: our ticket, once told, and when to look at the lock again.
    Queued {
        ticket: String,
        next_look: Moment,
    },
    /// Our place is gone, or the connection on which we block is dead and does not know it: what comes last on
    /// it is awaited.
    Straying {
        ticket: String,
    },
    /// What comes last on the connection that blocked is awaited.
    HangingUp {
        ticket: String,
    },
    /// On the way out, with a baton that came when we wanted it no more.
    Leaving {
        unwanted: Option<Vec<u8>>,
    },
    HandingOn,
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
    /// Who waits, once we have a place in the line. A new place takes the old one's away.
    waiter: String,
    holder: Holder,
    /// When patience ends.
    end: Moment,
    pauses: u32,
    /// How long it takes to hear that somebody has the lock, at least.
    trip: Option<Duration>,
    /// How we watch the lock from the line, and when we looked last.
    watch: Watch,
    looked: Moment,
    /// When we had our place in the line, and places in a row that came to nothing.
    placed: Option<Moment>,
    misplaced: u32,
    /// Until when there is no waiting in line.
    out_until: Option<Moment>,
    cancelled: bool,
    /// Nobody knows what came of an acquisition.
    doubtful: bool,
    /// The same, and no answer has settled it since.
    unsettled: bool,
    /// A grant was over before its answer came.
    late: bool,
    /// The grant before ours was never given back.
    took_over: bool,
    /// The server knows that we wait no more.
    left: bool,
}

impl Attempt {
    /// An attempt that begins now; with the owner token of one whose outcome nobody knows, if there was one: what the
    /// server granted to that is recognised.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(manner: Manner, unsettled: Option<String>, now: Moment) -> Result<Self> {
        let (token, name) = tokens()?;
        let doubtful = unsettled.is_some();
        let attempt = Self::with_tokens(manner, unsettled.unwrap_or(token), name, now);
        Ok(Self { doubtful, unsettled: doubtful, ..attempt })
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
            holder: Holder::default(),
            end,
            pauses: 0,
            trip: None,
            watch: Watch::default(),
            looked: now,
            placed: None,
            misplaced: 0,
            out_until: None,
            cancelled: false,
            doubtful: false,
            unsettled: false,
            late: false,
            took_over: false,
            left: false,
        }
    }

    /// The first step.
    pub fn begin(&mut self) -> Step {
        self.ask()
    }

    /// The owner token that it asks with.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Who has the lock, as last heard.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Whether patience is not over.
    pub fn has_time(&self, now: Moment) -> bool {
        !self.cancelled && now < self.end
    }

    /// Whether the server is to tell us when lock or line change.
    pub fn is_told(&self) -> bool {
        self.watch.told == Told::Yes
    }

    /// Whether the caller has had enough.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Whether the lock was granted to us, and the lease was over before we heard of it.
    pub fn came_late(&self) -> bool {
        self.late
    }

    /// Whether the grant before ours was never given back.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// What is to be said when nothing more is asked: who may stand in line, also one that was granted the lock
    /// besides, stands there no more.
    pub fn farewell(&self) -> Option<Request> {
        let waits = !self.waiter.is_empty() && !self.left;
        waits.then(|| Request::Leave { waiter: self.waiter.clone(), timed_out: false })
    }

    /// An acquisition may have taken effect: its answer was lost. An event follows.
    pub fn doubt(&mut self) {
        (self.doubtful, self.unsettled) = (true, true);
    }

    /// The owner token, if nobody knows what was granted to it.
    pub fn unsettled(&self) -> Option<&str> {
        self.unsettled.then_some(&self.token)
    }

    /// What an event leads to.
    pub fn on(&mut self, event: Event, now: Moment) -> Step {
        if event == Event::Cancel {
            return self.cancel(now);
        }
        match std::mem::replace(&mut self.state, State::Asking) {
            State::Asking => self.asking(event, now),
            State::Claiming => self.claiming(event, now),
            State::Extending(value) => self.extending(value, event, now),
            State::Pausing => self.ask(),
            State::Queued { ticket, next_look } => self.queued(ticket, next_look, event, now),
            State::Straying { ticket } => self.straying(ticket, event, now),
            State::HangingUp { ticket } => self.hanging_up(ticket, event),
            State::Leaving { unwanted } => self.leaving(unwanted, now),
            State::HandingOn => self.go_on(now),
        }
    }

    /// Our place went with the grant.
    fn claiming(&mut self, event: Event, now: Moment) -> Step {
        if matches!(event, Event::Answered(Answer::Granted { .. }, _)) {
            self.waiter.clear();
        }
        self.asking(event, now)
    }

    fn asking(&mut self, event: Event, now: Moment) -> Step {
        self.unsettled &= !matches!(event, Event::Answered(..));
        match event {
            Event::Answered(Answer::Granted { value, takeover }, sent) => {
                self.took_over |= takeover;
                self.granted(value, sent, now)
            }
            Event::Answered(Answer::Held(value, ttl), sent) => {
                (self.holder, self.doubtful) = (Holder::read(&value, ttl), false);
                let took = now.since(sent);
                self.trip = Some(self.trip.map_or(took, |least| least.min(took)));
                self.go_on(now)
            }
            _ => {
                // Nothing works: that says nothing of places in the line.
                self.misplaced = 0;
                self.go_on(now)
            }
        }
    }

    /// Ours; unless the answer took so long that the lease must not be acted upon any more.
    fn granted(&mut self, value: Vec<u8>, sent: Moment, now: Moment) -> Step {
        self.doubtful = false;
        let ttl = self.manner.ttl;
        match Lease::new(value.clone(), sent) {
            None => self.go_on(now),
            Some(_) if self.cancelled => self.hand_on(value),
            Some(lease) if now < safe_until(sent, ttl) => Step::Done(Ok(lease)),
            Some(_) => {
                self.state = State::Extending(value.clone());
                Step::Ask(Request::Extend { value, ttl, exact: true, note: true })
            }
        }
    }

    fn extending(&mut self, value: Vec<u8>, event: Event, now: Moment) -> Step {
        let Event::Answered(Answer::Extended(_), sent) = event else {
            self.late = true;
            return self.go_on(now);
        };
        match Lease::new(value.clone(), sent) {
            Some(lease) if now < safe_until(sent, self.manner.ttl) => Step::Done(Ok(lease)),
            _ => {
                self.late = true;
                self.hand_on(value)
            }
        }
    }

    fn queued(&mut self, ticket: String, look: Moment, event: Event, now: Moment) -> Step {
        let lasted = self.placed.is_some_and(|placed| now.since(placed) > AT_ONCE);
        if lasted {
            self.misplaced = 0;
        }
        if matches!(event, Event::Tracked(..)) {
            self.watch.told = Told::Yes;
        }
        match event {
            Event::Answered(Answer::Waiting { holder, ttl, older, younger, ticket: told }, _)
            | Event::Tracked(Answer::Waiting { holder, ttl, older, younger, ticket: told }, _) => {
                self.holder = Holder::read(&holder, ttl);
                // Whoever is served takes all older places away, for nobody is at them. But where the whole
                // line was deleted, the baton may be on its way to us.
                if !ticket.is_empty() && ticket != told {
                    self.state = State::Straying { ticket };
                    return Step::HangUp;
                }
                (self.placed, self.looked) = (self.placed.or(Some(now)), now);
                match ticket.is_empty() {
                    true => self.watch = Watch::joined(older, self.holder.fence),
                    false => self.watch.looked(older, younger, self.holder.fence),
                }
                self.in_line(told, now + self.watch.next_look(ttl), now)
            }
            Event::Baton(baton) => self.claim(baton, ticket),
            Event::Changed => self.look_after(self.watch.gap(), ticket, look, now),
            Event::LineChanged => self.look_after(self.watch.rest(), ticket, look, now),
            Event::Untold => {
                self.watch.failed();
                self.look_after(self.watch.gap(), ticket, look, now)
            }
            Event::Time if now >= self.end => self.hang_up(ticket),
            Event::Time => {
                self.state = State::Queued { ticket, next_look: look };
                self.look(now)
            }
            Event::CannotBlock => {
                self.manner.mode = WaitMode::Backoff;
                self.leave(None, false)
            }
            _ if lasted || !self.has_time(now) => self.go_on(now),
            _ => self.displaced(now),
        }
    }

    /// A look comes so long after the last one, if none is due before.
    fn look_after(&mut self, span: Duration, ticket: String, look: Moment, now: Moment) -> Step {
        self.in_line(ticket, look.min((self.looked + span).max(now)), now)
    }

    /// A look from our place; one after which the server is to tell of changes may come to another.
    fn look(&mut self, now: Moment) -> Step {
        let request = self.wait_request(false);
        match self.watch.asks_to_be_told(self.end.since(now)) {
            true => Step::Track(request),
            false => Step::Ask(request),
        }
    }

    /// Our place in the line came to nothing. Where that happens again and again the lock is asked for, and waited
    /// for a while, without one.
    fn displaced(&mut self, now: Moment) -> Step {
        self.misplaced += 1;
        let Some(more) = self.misplaced.checked_sub(PLACES) else { return self.ask() };
        self.out_until = Some(now + (WHILE * (1 << more.min(6))).min(LONGEST_WHILE));
        self.leave(None, false)
    }

    /// Whether waiting is waiting in line, now.
    fn lines_up(&self, now: Moment) -> bool {
        self.manner.mode == WaitMode::Line && self.out_until.is_none_or(|until| now >= until)
    }

    fn in_line(&mut self, ticket: String, next_look: Moment, now: Moment) -> Step {
        if now >= self.end {
            return self.hang_up(ticket);
        }
        self.state = State::Queued { ticket, next_look };
        Step::Listen(next_look.min(self.end))
    }

    fn straying(&mut self, ticket: String, event: Event, now: Moment) -> Step {
        match event {
            Event::HungUp(Some(baton)) if self.cancelled => self.leave(Some(baton), false),
            Event::HungUp(Some(baton)) => self.claim(baton, ticket),
            _ => self.go_on(now),
        }
    }

    fn hanging_up(&mut self, ticket: String, event: Event) -> Step {
        match event {
            Event::HungUp(Some(baton)) if self.cancelled => self.leave(Some(baton), false),
            Event::HungUp(Some(baton)) => self.claim(baton, ticket),
            _ => self.leave(None, !self.cancelled),
        }
    }

    fn leaving(&mut self, unwanted: Option<Vec<u8>>, now: Moment) -> Step {
        match unwanted {
            Some(baton) => self.hand_on(baton),
            None => self.go_on(now),
        }
    }

    /// Somebody else has it, or has had it: what now?
    fn go_on(&mut self, now: Moment) -> Step {
        if !self.has_time(now) {
            return self.give_up();
        }
        // Or it waits for itself.
        if self.doubtful {
            return self.ask();
        }
        if self.lines_up(now) {
            return self.join();
        }
        // What is asked later is not answered in time, and then nobody knows what it came to.
        let last = self.end - self.trip.unwrap_or_default();
        if now >= last {
            return self.give_up();
        }
        self.state = State::Pausing;
        self.pauses += 1;
        let pause = pause(self.pauses - 1, draw(&self.new_name()));
        Step::Pause((now + pause).min(last))
    }

    /// Patience is over. What may be ours after all is asked for once more.
    fn give_up(&mut self) -> Step {
        if std::mem::take(&mut self.doubtful) {
            return self.ask();
        }
        let counts = self.manner.record && !self.manner.budget.is_zero() && !self.cancelled;
        if !self.left && (counts || !self.waiter.is_empty()) {
            return self.leave(None, counts);
        }
        Step::Done(Err(self.holder.clone()))
    }

    fn cancel(&mut self, now: Moment) -> Step {
        (self.cancelled, self.end) = (true, now);
        match std::mem::replace(&mut self.state, State::Asking) {
            State::Queued { ticket, .. } => self.hang_up(ticket),
            _ => self.give_up(),
        }
    }

    fn ask(&mut self) -> Step {
        self.state = State::Asking;
        self.acquire(None)
    }

    fn claim(&mut self, baton: Vec<u8>, ticket: String) -> Step {
        self.state = State::Claiming;
        self.acquire(Some((baton, ticket)))
    }

    fn acquire(&self, claim: Option<(Vec<u8>, String)>) -> Step {
        let count = match (self.manner.record, self.manner.budget.is_zero()) {
            (false, _) => Count::Nothing,
            (true, true) => Count::All,
            (true, false) => Count::Takeovers,
        };
        let (token, ttl) = (self.token.clone(), self.manner.ttl);
        Step::Ask(Request::Acquire { token, ttl, claim, count })
    }

    fn join(&mut self) -> Step {
        self.placed = None;
        self.state = State::Queued { ticket: String::new(), next_look: self.end };
        if self.waiter.is_empty() {
            self.waiter = format!("{}|{}", self.new_name(), whoami());
        }
        Step::Join(self.wait_request(true))
    }

    fn new_name(&mut self) -> String {
        self.serial += 1;
        format!("{}.{}", self.name, self.serial)
    }

    fn wait_request(&mut self, join: bool) -> Request {
        let transit = transit(&self.new_name());
        Request::Wait { waiter: self.waiter.clone(), transit, life: line_life(), join }
    }

    fn hang_up(&mut self, ticket: String) -> Step {
        self.state = State::HangingUp { ticket };
        Step::HangUp
    }

    fn leave(&mut self, unwanted: Option<Vec<u8>>, timed_out: bool) -> Step {
        self.state = State::Leaving { unwanted };
        self.left = self.cancelled || timed_out;
        let timed_out = timed_out && self.manner.record;
        Step::Ask(Request::Leave { waiter: std::mem::take(&mut self.waiter), timed_out })
    }

    fn hand_on(&mut self, value: Vec<u8>) -> Step {
        self.state = State::HandingOn;
        Step::Ask(self.unwanted(value))
    }

    /// The lock is ours or in transit to us, and we have no use for it: it is handed on.
    pub fn unwanted(&mut self, value: Vec<u8>) -> Request {
        let transit = transit(&self.new_name());
        let fence = Lease::new(value.clone(), self.end).map_or(0, |lease| lease.fence);
        Request::hand_on(value, fence, self.manner.ttl, transit)
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

    fn granted_at(at: Moment) -> Event {
        Event::Answered(Answer::Granted { value: b"t:7|h|1|p".to_vec(), takeover: false }, at)
    }

    #[test]
    fn draws_spread() {
        let draws: Vec<f64> = (0..1000).map(|n| draw(&format!("5eed.{n}"))).collect();
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert!(draws.iter().any(|d| *d < 0.05) && draws.iter().any(|d| *d > 0.95));
    }

    #[test]
    fn an_attempt_in_doubt_is_made_once_more_and_what_comes_too_late_is_handed_on() {
        let ms = |n: u64| Moment::at(Duration::from_millis(1_000_000 + n));
        let (ttl, budget) = (Duration::from_millis(300), Duration::from_millis(100));
        let held = || Event::Answered(Answer::Held(b"u:6|h|1|p".to_vec(), None), ms(0));
        let granted = |at| granted_at(ms(at));
        let doubtful = || {
            let manner = Manner { ttl, budget, mode: WaitMode::Backoff, record: false };
            let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), ms(0));
            attempt.begin();
            assert!(matches!(attempt.on(held(), ms(0)), Step::Pause(_)));
            assert!(matches!(attempt.on(Event::Time, ms(10)), Step::Ask(Request::Acquire { .. })));
            attempt.doubt();
            attempt
        };
        let again = |step| matches!(step, Step::Ask(Request::Acquire { .. }));
        let mut late = doubtful();
        assert!(again(late.on(Event::Broken, ms(100))));
        assert!(matches!(late.on(granted(100), ms(110)), Step::Done(Ok(_))));
        let mut taken = doubtful();
        assert!(again(taken.on(Event::Broken, ms(100))));
        assert!(matches!(taken.on(held(), ms(110)), Step::Done(Err(_))));
        let mut cancelled = doubtful();
        assert!(again(cancelled.on(Event::Cancel, ms(20))));
        let back = cancelled.on(granted(20), ms(30));
        assert!(matches!(back, Step::Ask(Request::Release { fence: 7, .. })));
        let end = cancelled.on(Event::Answered(Answer::Released, ms(30)), ms(30));
        assert!(matches!(end, Step::Done(Err(_))));
    }

    #[test]
    fn nothing_is_asked_by_who_asks_again_and_again_that_cannot_be_answered_in_time() {
        let (ttl, budget) = (Duration::from_secs(3), Duration::from_millis(1000));
        let manner = Manner { ttl, budget, mode: WaitMode::Backoff, record: false };
        let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), ms(0));
        let (mut at, mut step) = (0, attempt.begin());
        let mut asked = Vec::new();
        while let Step::Ask(_) = step {
            asked.push(at);
            let held = Event::Answered(Answer::Held(b"u:6|h|1|p".to_vec(), None), ms(at));
            step = attempt.on(held, ms(at + 300));
            let Step::Pause(until) = step else { break };
            at = u64::try_from(until.since(ms(0)).as_millis()).unwrap();
            step = attempt.on(Event::Time, ms(at));
        }
        assert!(matches!(step, Step::Done(Err(_))), "{step:?}");
        assert!(asked.len() >= 3 && asked.iter().all(|at| *at <= 700), "{asked:?}");
    }

    #[test]
    fn who_asks_with_the_token_of_an_attempt_in_doubt_is_in_doubt_until_it_is_answered() {
        let (ttl, budget) = (Duration::from_secs(3), Duration::from_secs(100));
        let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
        let mut attempt = Attempt::new(manner, Some("t".into()), ms(0)).unwrap();
        let asks = |step| matches!(step, Step::Ask(Request::Acquire { token, .. }) if token == "t");
        assert!(asks(attempt.begin()) && asks(attempt.on(Event::Broken, ms(1))));
        assert_eq!(attempt.unsettled(), Some("t"));
        let held = Event::Answered(Answer::Held(b"u:6|h|1|p".to_vec(), None), ms(2));
        assert!(matches!(attempt.on(held, ms(3)), Step::Join(_)));
        assert_eq!(attempt.unsettled(), None);
    }

    #[test]
    fn who_is_in_doubt_stands_in_no_line_until_it_is_answered() {
        let now = Moment::at(Duration::from_secs(1000));
        let (ttl, budget) = (Duration::from_secs(3), Duration::from_secs(100));
        let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
        let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), now);
        attempt.begin();
        attempt.doubt();
        for _ in 0..3 {
            let step = attempt.on(Event::Broken, now);
            assert!(matches!(step, Step::Ask(Request::Acquire { .. })), "{step:?}");
        }
        let held = Answer::Held(b"u:6|h|1|p".to_vec(), None);
        assert!(matches!(attempt.on(Event::Answered(held, now), now), Step::Join(_)));
    }

    #[test]
    fn who_finds_its_place_gone_takes_what_comes_last_on_its_connection() {
        let now = Moment::at(Duration::from_secs(1000));
        let (ttl, budget) = (Duration::from_secs(3), Duration::from_secs(100));
        let waiting = |ticket: &str| {
            let (holder, ttl, ticket) = (b"u:6|h|1|p".to_vec(), None, ticket.to_owned());
            Event::Answered(Answer::Waiting { holder, ttl, older: 0, younger: 0, ticket }, now)
        };
        for (baton, claims) in [(Some(b"v:0||".to_vec()), true), (None, false)] {
            let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
            let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), now);
            attempt.begin();
            let held = Answer::Held(b"u:6|h|1|p".to_vec(), None);
            assert!(matches!(attempt.on(Event::Answered(held, now), now), Step::Join(_)));
            assert!(matches!(attempt.on(waiting("1"), now), Step::Listen(_)));
            assert!(matches!(attempt.on(Event::Time, now), Step::Track(Request::Wait { .. })));
            assert_eq!(attempt.on(waiting(""), now), Step::HangUp);
            match attempt.on(Event::HungUp(baton), now) {
                Step::Ask(Request::Acquire { claim: Some(_), .. }) => assert!(claims),
                Step::Join(_) => assert!(!claims),
                step => panic!("{step:?}"),
            }
        }
    }

    fn ms(n: u64) -> Moment {
        Moment::at(Duration::from_millis(1_000_000 + n))
    }

    fn in_line_between(older: u32, younger: u32) -> Answer {
        let (holder, ttl) = (b"u:6|h|1|p".to_vec(), Some(Duration::from_secs(600)));
        Answer::Waiting { holder, ttl, older, younger, ticket: "1".into() }
    }

    /// One that has joined a line of so many at 0; its first look is due at 900.
    fn joined(older: u32, budget: Duration) -> Attempt {
        let ttl = Duration::from_secs(3);
        let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
        let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), ms(0));
        attempt.begin();
        let held = Answer::Held(b"u:6|h|1|p".to_vec(), None);
        assert!(matches!(attempt.on(Event::Answered(held, ms(0)), ms(0)), Step::Join(_)));
        let joined = Event::Answered(in_line_between(older, 0), ms(0));
        assert_eq!(attempt.on(joined, ms(0)), Step::Listen(ms(900)));
        attempt
    }

    fn tracked(older: u32, younger: u32, at: u64) -> Event {
        Event::Tracked(in_line_between(older, younger), ms(at))
    }

    fn looked(older: u32, younger: u32, at: u64) -> Event {
        Event::Answered(in_line_between(older, younger), ms(at))
    }

    const LONG: Duration = Duration::from_secs(100);

    #[test]
    fn who_is_told_of_a_change_looks_again_though_not_at_once() {
        let mut attempt = joined(3, LONG);
        assert!(matches!(attempt.on(Event::Time, ms(900)), Step::Track(_)));
        assert_eq!(attempt.on(tracked(3, 1, 900), ms(1000)), Step::Listen(ms(61_000)));
        assert_eq!(attempt.on(Event::LineChanged, ms(1100)), Step::Listen(ms(4600)));
        assert_eq!(attempt.on(Event::Changed, ms(1200)), Step::Listen(ms(1900)));
        assert_eq!(attempt.on(Event::LineChanged, ms(1300)), Step::Listen(ms(1900)));
        assert!(matches!(attempt.on(Event::Time, ms(1900)), Step::Track(_)));
        // Nobody tells any more: it looks again and again.
        assert_eq!(attempt.on(looked(3, 1, 1900), ms(2000)), Step::Listen(ms(3800)));
        assert!(matches!(attempt.on(Event::Time, ms(3800)), Step::Ask(_)));
    }

    #[test]
    fn who_loses_the_connection_on_which_it_is_told_looks_for_itself_and_tries_that_again() {
        let mut attempt = joined(0, LONG);
        assert!(matches!(attempt.on(Event::Time, ms(900)), Step::Track(_)));
        attempt.on(tracked(0, 0, 900), ms(900));
        assert_eq!(attempt.on(Event::Untold, ms(5000)), Step::Listen(ms(5000)));
        assert!(!attempt.is_told());
        let mut at = 5000;
        while let Step::Ask(_) = attempt.on(Event::Time, ms(at)) {
            let Step::Listen(next) = attempt.on(looked(0, 0, at), ms(at)) else { panic!() };
            at += u64::try_from(next.since(ms(at)).as_millis()).unwrap();
        }
        assert_eq!(at, 5000 + 4 * 900);
    }

    #[test]
    fn who_cannot_know_whether_it_is_young_asks_that_first_and_leaves_it_to_others_or_asks_to_be_told()
     {
        for (younger, next) in [(4, 60_900), (3, 900)] {
            let mut attempt = joined(4, LONG);
            assert!(matches!(attempt.on(Event::Time, ms(900)), Step::Ask(_)));
            assert_eq!(attempt.on(looked(4, younger, 900), ms(900)), Step::Listen(ms(next)));
            let tracks = matches!(attempt.on(Event::Time, ms(next)), Step::Track(_));
            assert_eq!(tracks, younger < 4);
        }
    }

    #[test]
    fn who_left_it_to_others_and_is_among_the_youngest_again_asks_again_to_be_told() {
        let mut attempt = joined(3, LONG);
        assert!(matches!(attempt.on(Event::Time, ms(900)), Step::Track(_)));
        attempt.on(tracked(3, 8, 900), ms(900));
        assert!(!attempt.is_told());
        assert!(matches!(attempt.on(Event::Time, ms(60_000)), Step::Ask(_)));
        let alone = attempt.on(looked(3, 0, 60_000), ms(60_000));
        assert_eq!(alone, Step::Listen(ms(60_000)));
        assert!(matches!(attempt.on(Event::Time, ms(60_000)), Step::Track(_)));
    }

    #[test]
    fn who_has_little_time_left_does_not_ask_to_be_told() {
        let mut attempt = joined(0, Duration::from_millis(2500));
        assert!(matches!(attempt.on(Event::Time, ms(900)), Step::Ask(_)));
        assert_eq!(attempt.on(looked(0, 0, 900), ms(900)), Step::Listen(ms(1800)));
    }

    #[test]
    fn places_that_break_at_once_are_not_asked_for_again_and_again() {
        let ms = |n: u64| Moment::at(Duration::from_millis(1_000_000 + n));
        let (ttl, budget) = (Duration::from_secs(3), Duration::from_secs(100));
        let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
        let mut attempt = Attempt::with_tokens(manner, "t".into(), "n".into(), ms(0));
        let held = |at| Event::Answered(Answer::Held(b"u:6|h|1|p".to_vec(), None), ms(at));
        let (mut at, mut step, mut places) = (0, attempt.begin(), Vec::new());
        while at < 10_000 {
            let event = match step {
                Step::Ask(Request::Acquire { .. }) => held(at),
                Step::Ask(_) => Event::Answered(Answer::Left, ms(at)),
                Step::Join(_) => {
                    places.push(at);
                    let (holder, ticket) = (b"u:6|h|1|p".to_vec(), at.to_string());
                    let place = Answer::Waiting { holder, ttl: None, older: 0, younger: 0, ticket };
                    Event::Answered(place, ms(at))
                }
                Step::Listen(_) => Event::Broken,
                Step::Pause(until) => {
                    at = at.max(until.since(ms(0)).as_millis() as u64);
                    Event::Time
                }
                step => panic!("{step:?}"),
            };
            at += 1;
            step = attempt.on(event, ms(at));
        }
        let (quick, slow): (Vec<u64>, Vec<u64>) = places.iter().partition(|at| **at < 1000);
        assert!(quick.len() == 3 && (2..=3).contains(&slow.len()), "{places:?}");
        assert!(slow[0] >= 1000 && slow[1] >= slow[0] + 2000, "{places:?}");
    }

    #[test]
    fn a_grant_that_comes_when_it_is_over_is_extended_once_and_else_it_is_none() {
        let ms = |n: u64| Moment::at(Duration::from_millis(1_000_000 + n));
        let (ttl, budget) = (Duration::from_millis(300), Duration::ZERO);
        let manner = Manner { ttl, budget, mode: WaitMode::Line, record: true };
        let granted = || granted_at(ms(0));
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
        let given_back = later.on(extended(400), ms(800));
        assert!(matches!(given_back, Step::Ask(Request::Release { fence: 7, .. })));
        let end = later.on(Event::Answered(Answer::Released, ms(800)), ms(850));
        assert!(later.came_late() && matches!(end, Step::Done(Err(_))));
        let mut gone = attempt();
        gone.on(granted(), ms(400));
        let answer = Event::Answered(Answer::NotOurs(false), ms(400));
        assert!(matches!(gone.on(answer, ms(450)), Step::Done(Err(_))));
    }
}
