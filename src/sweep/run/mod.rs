//! A run: the loop of rounds. Each answer leads to further questions, in the room of what it is about.

mod answers;
mod ending;
mod ledger;
mod limits;
mod looks;
mod queue;
mod records;
mod removals;
mod resume;
mod slips;
mod tags;
mod wire;

use crate::clock::{Moment, ServerClock};
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::lock::Contender;
use crate::sweep::Survey;
use crate::sweep::batch::{Batch, OnRecord, Tag, Twice, Visit};
use crate::sweep::checkpoint;
use crate::sweep::memory::Memory;
use crate::sweep::options::Options;
use crate::sweep::pace::Pace;
use crate::sweep::proof::Proof;
use crate::sweep::records::Record;
use crate::sweep::report::{Flow, Progress, Reason, Report};
use crate::sweep::round::Ask;
use crate::sweep::walk::Walk;
use crate::topology::IdleClock;
use ending::Ending;
use ledger::Figures;
use limits::Limits;
use queue::Queue;
use records::Records;
use resume::Resume;
use slips::Slips;
use std::time::Duration;
use wire::Wire;

/// What is taken up at once of what has come due.
const TAKEN_UP: usize = 64;

/// How soon there may be room for more of what an earlier sweep left.
const RECOVER_AGAIN: Duration = Duration::from_millis(50);

/// Slips that are crossed out at once.
const CROSSED: usize = 64;

/// How often the server is asked whether it saves and how busy it is.
const LOAD_EVERY: Duration = Duration::from_millis(500);

/// What waits for its grace.
#[derive(Debug)]
enum Later {
    /// A tag to be read again: it was young, or something of it was found to be.
    Tag(Tag, Option<Record>),
    /// References seen absent once.
    Absent(Batch),
    /// The next slips that an earlier sweep left.
    Recover(u64),
}

/// A sweep under way.
pub(super) struct Running<'a> {
    link: &'a mut Link,
    contender: &'a mut Contender,
    options: &'a Options,
    pattern: Vec<u8>,
    /// A key under it.
    sample: Vec<u8>,
    proof: Proof,
    idle: IdleClock,
    /// Our own reads leave idle times alone.
    untouching: bool,
    walk: Walk,
    /// Cursors are positions.
    positions: bool,
    second_pass: bool,
    queue: Queue,
    wire: Wire,
    pace: Pace,
    limits: Limits,
    resume: Resume,
    slips: Slips,
    records: Records,
    figures: Figures,
    report: Report,
    begun: Moment,
    clock: ServerClock,
    extended: Moment,
    ending: Ending,
    /// Keys on the server, when the sweep began.
    keys: u64,
    /// The process that sweeps. Whoever watches may fork: replies on their way are the parent's.
    process: u32,
}

/// In a child of the process that sweeps.
pub(super) fn forked() -> Error {
    Error::new(
        ErrorKind::Lost,
        "this process was forked in the middle of a sweep, which is its parent's",
    )
}

impl<'a> Running<'a> {
    pub fn new(
        link: &'a mut Link,
        contender: &'a mut Contender,
        options: &'a Options,
        layout: &dyn Layout,
        survey: Survey,
    ) -> Self {
        let (now, Survey { facts, keys, sent, heard }) = (Moment::now(), survey);
        let clock = ServerClock::new(facts.time.as_secs(), sent);
        let fence = contender.lease().map(|lease| lease.fence);
        let memory = Memory::new(options.memory);
        let purpose = facts.run_id.as_ref().filter(|_| facts.positions && !options.dry_run);
        let purpose = purpose.map(|id| checkpoint::purpose(id, &layout.pattern(), options));
        Self {
            link,
            contender,
            options,
            pattern: layout.pattern(),
            sample: layout.sample(),
            proof: Proof::new(layout.mappings(), options.trust_mapping, memory.held()),
            untouching: facts.no_touch,
            walk: Walk::new(clock.at(now)),
            positions: facts.positions,
            second_pass: false,
            queue: Queue::new(memory, now),
            wire: Wire::new(facts.run_id.clone(), now),
            pace: Pace::new(options.max_latency, options.effort),
            limits: Limits::new(options.max_share),
            resume: Resume::new(purpose, now),
            slips: Slips::default(),
            records: Records::default(),
            figures: Figures::new(fence, now),
            report: Report { dry_run: options.dry_run, ..Report::default() },
            begun: now,
            process: std::process::id(),
            clock,
            extended: now,
            ending: Ending::default(),
            keys,
            idle: IdleClock::new(facts, sent, heard),
        }
    }

    /// Goes on until every tag is judged and everything removed is verified, or until it must stop.
    pub fn finish(&mut self, watch: &mut dyn FnMut(&Progress) -> Flow) -> Result<()> {
        let ended = self.go(watch);
        if ended.is_err() {
            self.warn_of_unverified();
        }
        self.warn_of_full_memory();
        self.report.reason = match (&ended, self.ending.reason) {
            (Err(_), _) => Reason::Error,
            (Ok(()), Some(reason)) => reason,
            (Ok(()), None) => Reason::Complete,
        };
        self.report.complete = self.report.reason == Reason::Complete;
        ended
    }

    fn go(&mut self, watch: &mut dyn FnMut(&Progress) -> Flow) -> Result<()> {
        self.prepare()?;
        if !self.options.dry_run {
            self.queue.ask(Ask::Recover { cursor: 0 });
        }
        loop {
            let asked = Moment::now();
            if watch(&self.progress()) == Flow::Stop {
                self.call_off();
            }
            if std::process::id() != self.process {
                return Err(forked());
            }
            self.wire.aside += Moment::now().since(asked);
            self.look_at_the_clock();
            match self.step() {
                Ok(true) => {}
                Ok(false) => match self.ending.failure.take() {
                    Some(failure) => return Err(failure),
                    None => return self.verdict(),
                },
                Err(e) => {
                    if let Err(failure) = self.endure(e) {
                        self.fail(failure)?;
                    }
                }
            }
        }
    }

    /// Sends what can be sent and takes in one round. False when there is nothing left to do.
    fn step(&mut self) -> Result<bool> {
        if self.wire.cut_off {
            self.reconnect()?;
            self.wire.cut_off = false;
        }
        self.fill()?;
        if !self.wire.flights.is_empty() {
            if self.land()? {
                let filled = self.fill_ahead();
                self.follow_landed()?;
                self.wire.outage = None;
                filled?;
            }
        } else if self.is_done() {
            if !self.next_pass() && !self.say_farewell() {
                return Ok(false);
            }
            // At once, for whoever watches may take his time before the next step.
            self.keep_lock(Moment::now());
            self.fill()?;
        } else {
            self.pause();
        }
        Ok(true)
    }

    /// Sends as many rounds as may be under way.
    fn fill(&mut self) -> Result<()> {
        while self.wire.under_way() < self.pace.depth() && self.rest().is_none() {
            let asks = self.compose();
            if asks.is_empty() {
                break;
            }
            self.launch(asks)?;
        }
        Ok(())
    }

    /// A full round before the answers to the last one are looked at, so that the server does not wait for us: it
    /// has hardly begun the other one that is under way.
    fn fill_ahead(&mut self) -> Result<()> {
        let is_full = self.queue.backlog() >= self.pace.size();
        if is_full && self.wire.under_way() > 0 { self.fill() } else { Ok(()) }
    }

    /// What has come due. What was removed is verified before anything else is asked.
    fn look_at_the_clock(&mut self) {
        let now = Moment::now();
        if self.is_over(now) && !self.has_only_to_verify() {
            self.stop(Reason::MaxDuration);
        }
        while let Some(removed) = self.queue.next_verify(now) {
            self.look_at_saves_after(&removed);
            self.queue.ask(Ask::Verify(removed));
        }
        self.take_up_due(now);
        self.release_held();
        self.keep(now);
        if now.since(self.wire.observed) >= LOAD_EVERY && !self.is_done() {
            self.ask_for_load();
        }
    }

    /// Whether it has taken all the time it may.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        self.options.max_duration.is_some_and(|most| now.since(self.begun) >= most)
    }

    /// Goes on with what has come due. What fills the memory must go on, or nothing is read any more; but what
    /// is taken up takes memory, too.
    fn take_up_due(&mut self, now: Moment) {
        loop {
            let room = self.queue.backlog() < 4 * self.pace.size();
            let must = || self.queue.is_full() && self.queue.has_room_for_keys();
            if !room && !must() {
                return;
            }
            // So many at a time, for to ask how much there is takes time.
            for _ in 0..TAKEN_UP {
                let Some(later) = self.queue.waiting.take(now) else { return };
                self.take_up(later);
            }
        }
    }

    /// Goes on with what has waited for its time.
    fn take_up(&mut self, later: Later) {
        match later {
            Later::Tag(tag, known) => {
                let record = OnRecord { known: known.into(), ..OnRecord::default() };
                self.visit(Visit { record, ..tag.into() });
            }
            Later::Recover(cursor) if self.queue.is_full() => {
                self.queue.waiting.put(Later::Recover(cursor), 0, Moment::now() + RECOVER_AGAIN);
            }
            Later::Recover(cursor) => self.queue.ask(Ask::Recover { cursor }),
            Later::Absent(batch) => self.condemn(batch),
        }
    }

    /// Keeps the lock, and on the server what is to outlive us.
    fn keep(&mut self, now: Moment) {
        // Not when all is done: whoever watches may take as long for every look.
        let decides = |ask: &Ask| ask.judges() || ask.is_owed();
        let is_done = self.is_done() && !self.wire.asks().any(decides);
        if !is_done {
            self.keep_lock(now);
        }
        let over = self.is_ending() || is_done || self.resume.farewell;
        if !over && now.since(self.resume.checkpointed) >= checkpoint::EVERY {
            self.resume.checkpointed = now;
            if let Some(kept) = self.checkpoint() {
                self.queue.ask(Ask::Checkpoint(Some(kept.to_bytes())));
            }
        }
        if self.slips.crossed.borrow().len() >= CROSSED || self.is_idle() {
            self.cross_out();
        }
        let records = self.records.due.len();
        if records >= CROSSED || (self.is_idle() && records > 0) {
            self.queue.ask(Ask::Records(std::mem::take(&mut self.records.due)));
        }
    }

    fn keep_lock(&mut self, now: Moment) {
        let due = now.since(self.extended) >= self.options.lock_ttl / 3;
        if due && self.contender.lease().is_some() {
            self.extended = now;
            self.queue.ask_first(Ask::Extend);
        }
    }

    /// Asks whether the server saved until something was removed, unless it was asked after that.
    fn look_at_saves_after(&mut self, removed: &[(Batch, Twice)]) {
        let unseen = |(_, twice): &(Batch, Twice)| match twice {
            Twice::UnlessStill(at) => *at >= self.wire.observed,
            _ => false,
        };
        if removed.iter().any(unseen) {
            self.ask_for_load();
        }
    }

    fn ask_for_load(&mut self) {
        self.wire.observed = Moment::now();
        self.wire.sent = self.link.sent();
        self.queue.ask_first(Ask::Load);
    }

    fn is_idle(&self) -> bool {
        self.wire.flights.is_empty() && self.queue.asks_nothing()
    }

    /// Whether all that the walk found is judged, but for what is under way.
    fn is_judged(&self) -> bool {
        self.walk.is_done()
            && self.queue.waiting.is_empty()
            && self.queue.holds_nothing()
            && self.queue.condemned.is_empty()
    }

    /// Whether every tag is judged: what is left to do is done in any case.
    fn has_only_to_verify(&self) -> bool {
        let judges = self.queue.asks().chain(self.wire.asks()).any(Ask::judges);
        self.is_judged() && self.proof.is_settled() && !judges
    }

    fn is_done(&self) -> bool {
        let judged = self.is_judged();
        let crossed = self.slips.crossed.borrow().is_empty();
        let kept = crossed && self.records.due.is_empty();
        let verified = self.queue.asks_nothing() && self.queue.unverified.is_empty() && kept;
        verified && (judged || self.is_ending())
    }

    /// Walks again if something was passed over before the mapping was proven.
    fn next_pass(&mut self) -> bool {
        // What was passed over stays on record: no checkpoint may lie behind it.
        let missed = if self.is_ending() { None } else { self.proof.take_missed() };
        let Some(pages) = missed else { return false };
        (self.second_pass, self.figures.pass_begun) = (true, Moment::now());
        let now = self.server_time();
        self.walk = if self.positions { self.walk.again_over(pages, now) } else { Walk::new(now) };
        true
    }

    /// Until when the server is left alone; whoever waits for our end does not wait for that.
    fn rest(&self) -> Option<Moment> {
        self.pace.rest(Moment::now()).filter(|_| !self.ending.called_off)
    }

    /// Waits for what is due next.
    fn pause(&mut self) {
        const NAP: Duration = Duration::from_millis(20);
        let due = [self.queue.waiting.next_due(), self.queue.unverified.next_due()];
        if let Some(rest) = self.rest() {
            return std::thread::sleep(rest.left().min(NAP));
        }
        let left = due.into_iter().flatten().map(Moment::left).min().unwrap_or(NAP);
        let nap = left.clamp(Duration::from_micros(100), NAP);
        if self.queue.is_full() && !self.is_ending() && !self.has_only_to_verify() {
            self.figures.stood_still += nap;
        }
        std::thread::sleep(nap);
    }

    /// The server's clock (s).
    pub(super) fn server_time(&self) -> u64 {
        self.clock.at(Moment::now())
    }
}
