//! A run: the loop of rounds. What follows from their answers is in `answers.rs`.

use crate::clock::Moment;
use crate::connect::{Link, passes};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::lock::{Contender, companion};
use crate::script::{EXTEND, INVALIDATE, PRUNE, RESTORE};
use crate::socket::checked;
use crate::sweep::memory::Memory;
use crate::sweep::options::Options;
use crate::sweep::pace::Pace;
use crate::sweep::page::Walk;
use crate::sweep::proof::Proof;
use crate::sweep::quarantine::Quarantine;
use crate::sweep::report::{Flow, Progress, Reason, Report};
use crate::sweep::round::{Ask, BATCH, BATCH_BYTES, Batch, Terms};
use crate::topology::{Facts, IdleClock};
use redis::Value;
use std::collections::VecDeque;
use std::time::Duration;

/// Rounds under way at once: the server works on one while we read the other.
const DEPTH: usize = 3;

/// Longest time from a request to stop to the last verification.
pub(super) const STOPPING: Duration = Duration::from_millis(500);

/// How often the server is asked whether it saves and how busy it is.
const LOAD_EVERY: Duration = Duration::from_millis(500);

/// What waits for its grace.
#[derive(Debug)]
pub(super) enum Later {
    /// A tag to be read again, because it was young; and whether its entries were looked for.
    Tag { key: Vec<u8>, looked: bool },
    /// References seen absent once.
    Absent(Batch),
}

/// A round under way.
pub(super) struct Flight {
    /// Each with the number of replies that are due.
    asks: VecDeque<(Ask, usize)>,
    units: usize,
    /// Tags read in it.
    reads: usize,
    sent: Moment,
}

/// A sweep under way.
pub(super) struct Run<'a> {
    pub(super) link: &'a mut Link,
    pub(super) contender: &'a mut Contender,
    pub(super) options: &'a Options,
    pub(super) pattern: Vec<u8>,
    pub(super) proof: Proof,
    pub(super) idle: IdleClock,
    /// Our own reads leave idle times alone.
    pub(super) untouching: bool,
    pub(super) walk: Walk,
    pub(super) second_pass: bool,
    pub(super) ready: VecDeque<Ask>,
    pub(super) condemned: VecDeque<Batch>,
    pub(super) waiting: Quarantine<Later>,
    pub(super) unverified: Quarantine<(Batch, bool)>,
    pub(super) flights: VecDeque<Flight>,
    pub(super) landed: Moment,
    pub(super) pace: Pace,
    pub(super) memory: Memory,
    pub(super) begun: Moment,
    pub(super) extended: Moment,
    pub(super) observed: Moment,
    pub(super) faults: u32,
    pub(super) stop: Option<Reason>,
    pub(super) visits: u64,
    pub(super) condemned_total: u64,
    pub(super) weighed: (u64, u64),
    pub(super) report: Report,
}

impl<'a> Run<'a> {
    pub fn new(
        link: &'a mut Link,
        contender: &'a mut Contender,
        options: &'a Options,
        layout: &dyn Layout,
        facts: Facts,
    ) -> Self {
        let now = Moment::now();
        let memory = Memory::new(options.memory);
        Self {
            link,
            contender,
            options,
            pattern: layout.pattern(),
            proof: Proof::new(layout.mappings(), options.trust_mapping, memory.held()),
            untouching: facts.no_touch,
            idle: IdleClock::new(facts, now),
            walk: Walk::new(),
            second_pass: false,
            ready: VecDeque::new(),
            condemned: VecDeque::new(),
            waiting: Quarantine::new(memory.waiting()),
            unverified: Quarantine::new(memory.unverified()),
            flights: VecDeque::new(),
            landed: now,
            pace: Pace::new(options.max_latency, options.effort),
            memory,
            begun: now,
            extended: now,
            observed: now,
            faults: 0,
            stop: None,
            visits: 0,
            condemned_total: 0,
            weighed: (0, 0),
            report: Report { dry_run: options.dry_run, ..Report::default() },
        }
    }

    /// The figures, as they are now.
    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.duration = Moment::now().since(self.begun);
        report.server = self.pace.server_time();
        let (bytes, members) = self.weighed;
        let lost = report.references_removed.saturating_sub(report.references_restored);
        report.bytes_reclaimed = bytes.saturating_mul(lost).checked_div(members).unwrap_or(0);
        report
    }

    /// Goes on until every tag is judged and everything removed is verified, or until it must stop.
    pub fn finish(&mut self, watch: &mut dyn FnMut(&Progress) -> Flow) -> Result<()> {
        let ended = self.rounds(watch);
        self.report.reason = match (&ended, self.stop) {
            (Err(_), _) => Reason::Error,
            (Ok(()), Some(reason)) => reason,
            (Ok(()), None) => Reason::Complete,
        };
        self.report.complete = self.report.reason == Reason::Complete;
        ended
    }

    fn rounds(&mut self, watch: &mut dyn FnMut(&Progress) -> Flow) -> Result<()> {
        self.prepare()?;
        loop {
            let waiting = self.flights.is_empty() && self.ready.is_empty();
            let progress = Progress { report: &self.report, share: self.walk.share(), waiting };
            if watch(&progress) == Flow::Stop {
                self.stop(Reason::Stopped);
            }
            self.look_at_the_clock();
            match self.step() {
                Ok(true) => {}
                Ok(false) => return self.verdict(),
                Err(e) => self.recover(e)?,
            }
        }
    }

    /// Sends what can be sent and takes in one round. False when there is nothing left to do.
    fn step(&mut self) -> Result<bool> {
        while self.flights.len() < DEPTH && self.pace.rest(Moment::now()).is_none() {
            let asks = self.compose();
            if asks.is_empty() {
                break;
            }
            self.launch(asks)?;
        }
        if !self.flights.is_empty() {
            self.land()?;
            self.faults = 0;
        } else if self.is_done() {
            return self.next_pass();
        } else {
            self.pause();
        }
        Ok(true)
    }

    /// What has come due.
    fn look_at_the_clock(&mut self) {
        let now = Moment::now();
        if self.options.max_duration.is_some_and(|most| now.since(self.begun) >= most) {
            self.stop(Reason::MaxDuration);
        }
        while let Some(ask) = self.next_verify(now) {
            self.ready.push_back(ask);
        }
        while self.backlog() < 4 * self.pace.size() {
            match self.waiting.take(now) {
                Some(Later::Tag { key, looked }) => self.visit(key, true, looked),
                Some(Later::Absent(batch)) => self.condemn(batch),
                None => break,
            }
        }
        if self.contender.lease().is_some() && now.since(self.extended) >= self.options.lock_ttl / 3
        {
            self.extended = now;
            self.ready.push_front(Ask::Extend);
        }
        if now.since(self.observed) >= LOAD_EVERY {
            self.observed = now;
            self.ready.push_front(Ask::Load);
        }
    }

    /// Batches whose verification is due, as many as one command may look for.
    fn next_verify(&mut self, now: Moment) -> Option<Ask> {
        let (first, again) = self.unverified.take(now)?;
        let (mut members, mut batches) = (first.members.len(), vec![first]);
        let fits = |(batch, other): &(Batch, bool), members: usize| {
            *other == again && members + batch.members.len() <= BATCH
        };
        while self.unverified.peek(now).is_some_and(|next| fits(next, members))
            && let Some((batch, _)) = self.unverified.take(now)
        {
            members += batch.members.len();
            batches.push(batch);
        }
        Some(Ask::Verify { batches, again })
    }

    /// Units of work that wait to be sent.
    fn backlog(&self) -> usize {
        // A tag of ten members is about what a question is on average.
        8 * self.ready.len() + 14 * self.condemned.len()
    }

    /// Nothing is removed any more; what was removed is still verified.
    pub(super) fn stop(&mut self, reason: Reason) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(reason);
        let held = self.proof.take_held().into_iter().map(|(_, batch)| batch);
        let waiting = self.waiting.drain().filter_map(|later| match later {
            Later::Absent(batch) => Some(batch),
            Later::Tag { .. } => None,
        });
        let given_up: Vec<Batch> = self.condemned.drain(..).chain(held).chain(waiting).collect();
        given_up.into_iter().for_each(|batch| self.let_go(batch.visit));
        self.ready.retain(|ask| matches!(ask, Ask::Verify { .. } | Ask::Restore(_)));
        self.unverified.hurry(Moment::now() + STOPPING);
    }

    fn is_done(&self) -> bool {
        let judged = self.walk.is_done() && self.waiting.is_empty() && self.condemned.is_empty();
        self.ready.is_empty() && self.unverified.is_empty() && (judged || self.stop.is_some())
    }

    /// Walks again if something was passed over before the mapping was proven.
    fn next_pass(&mut self) -> Result<bool> {
        if self.stop.is_some() || !self.proof.must_walk_again() {
            return Ok(false);
        }
        self.second_pass = true;
        self.walk = Walk::new();
        Ok(true)
    }

    /// At the end: whether what was held back means that the mapping is wrong.
    fn verdict(&mut self) -> Result<()> {
        match self.proof.refutation() {
            Some(what) if self.stop.is_none() && self.options.dry_run => {
                let removed = &mut self.report;
                (removed.tags_removed, removed.tags_pruned, removed.references_removed) = (0, 0, 0);
                removed.warnings.push(what);
                Ok(())
            }
            Some(what) if self.stop.is_none() => Err(Error::new(ErrorKind::Unproven, what)
                .advice("give --entry-prefix, or --trust-mapping if every entry may be gone")),
            _ => Ok(()),
        }
    }

    /// Waits for what is due next.
    fn pause(&self) {
        const NAP: Duration = Duration::from_millis(20);
        let due = [self.waiting.next_due(), self.unverified.next_due()];
        let rest = self.pace.rest(Moment::now());
        if let Some(rest) = rest {
            return std::thread::sleep(rest.left().min(NAP));
        }
        let left = due.into_iter().flatten().map(Moment::left).min().unwrap_or(NAP);
        std::thread::sleep(left.clamp(Duration::from_micros(100), NAP));
    }

    // ---- the connection ----

    /// Sets a connection up: scripts, idle times left alone, the bare round trip.
    fn prepare(&mut self) -> Result<()> {
        let mut setup = vec![self.recall()];
        if self.untouching {
            let mut cmd = redis::cmd("CLIENT");
            cmd.arg("NO-TOUCH").arg("ON");
            setup.push(cmd);
        }
        let told = setup.len();
        if !self.options.dry_run {
            setup.extend([&PRUNE, &INVALIDATE, &RESTORE, &EXTEND].map(|script| script.load()));
        }
        let replies = self.link.persist(|link, deadline| {
            let replies = link.calls(&setup, deadline)?;
            // What may fail for want of a permission comes first; scripts must be known.
            replies.iter().skip(told).try_for_each(|r| checked(r.clone()).map(|_| ()))?;
            Ok(replies)
        })?;
        if let Some(Value::BulkString(fingerprint)) = replies.first() {
            self.proof.recognise(fingerprint);
        }
        self.untouching &= matches!(replies.get(1), Some(Value::Okay));
        self.pace.connected(self.link.round_trip()?);
        Ok(())
    }

    /// Asks for the proof that an earlier run left.
    fn recall(&self) -> redis::Cmd {
        let mut cmd = redis::cmd("GET");
        cmd.arg(companion(&self.contender.keys().lock, "mapping"));
        cmd
    }

    fn launch(&mut self, asks: Vec<Ask>) -> Result<()> {
        let terms = Terms { pattern: &self.pattern, proof: &self.proof, contender: self.contender };
        let units = asks.iter().map(Ask::units).sum();
        let reads = asks.iter().filter(|ask| matches!(ask, Ask::Read { .. })).count();
        let mut commands = Vec::new();
        let mut due = VecDeque::with_capacity(asks.len());
        for ask in asks {
            let before = commands.len();
            commands.extend(ask.commands(&terms));
            due.push_back((ask, commands.len() - before));
        }
        self.flights.push_back(Flight { asks: due, units, reads, sent: Moment::now() });
        let deadline = self.link.deadline();
        self.link.send(&commands, deadline)
    }

    /// Reads the oldest round and follows its answers.
    fn land(&mut self) -> Result<()> {
        let deadline = self.link.deadline();
        let Some(flight) = self.flights.front() else { return Ok(()) };
        let (units, sent) = (flight.units, flight.sent);
        while let Some(flight) = self.flights.front_mut() {
            let Some((_, due)) = flight.asks.front() else { break };
            let replies = (0..*due).map(|_| self.link.receive(deadline));
            let replies = replies.collect::<Result<Vec<_>>>()?;
            if let Some((ask, _)) = flight.asks.pop_front() {
                self.follow(ask, replies, sent)?;
            }
        }
        self.flights.pop_front();
        let now = Moment::now();
        let overlapped = self.landed >= sent;
        let from = if overlapped { self.landed } else { sent };
        self.pace.observe(units, now.since(from), overlapped, now);
        self.landed = now;
        Ok(())
    }

    /// After a fault of the connection: asks again what was not answered. What may have been removed
    /// meanwhile is verified like everything removed.
    fn recover(&mut self, fault: Error) -> Result<()> {
        self.faults += 1;
        if !passes(&fault) || self.faults > 3 {
            return Err(fault);
        }
        self.link.drop_connection();
        let lost: Vec<Ask> =
            self.flights.drain(..).flat_map(|flight| flight.asks).map(|(ask, _)| ask).collect();
        for ask in lost.into_iter().rev() {
            self.ask_again(ask);
        }
        self.prepare()
    }

    pub(super) fn ask_again(&mut self, ask: Ask) {
        let soon = Moment::now() + self.options.verify;
        match ask {
            Ask::Page { .. } => self.walk.again(),
            Ask::Extend | Ask::Load | Ask::Remember { .. } => {}
            Ask::Prune(batches) => {
                for batch in batches {
                    self.unverified.put((batch.clone(), true), batch.size(), soon);
                    if self.stop.is_none() {
                        self.condemned.push_front(batch);
                    }
                }
            }
            Ask::Invalidate(batch) => {
                self.unverified.put((batch.clone(), true), batch.size(), soon);
                if self.stop.is_none() {
                    self.ready.push_front(Ask::Invalidate(batch));
                }
            }
            ask @ (Ask::Verify { .. } | Ask::Restore(_)) => self.ready.push_front(ask),
            ask if self.stop.is_none() => self.ready.push_front(ask),
            _ => {}
        }
    }

    // ---- rounds ----

    /// The next round: the most advanced work first, then as much of a new page as there is room.
    fn compose(&mut self) -> Vec<Ask> {
        let size = self.pace.size();
        let (mut asks, mut units) = (Vec::new(), 0);
        let under_way: usize = self.flights.iter().map(|flight| flight.reads).sum();
        let mut reads = self.memory.reads().saturating_sub(under_way);
        while units < size {
            let next = match self.next_prune() {
                Some(batches) => Some(Ask::Prune(batches)),
                None => self.next_ready(&mut reads),
            };
            let Some(ask) = next else { break };
            units += ask.units();
            asks.push(ask);
        }
        if units < size
            && self.may_walk()
            && let Some(cursor) = self.walk.ask()
        {
            let count = ((size - units) * 4).clamp(50, 1000).min(self.memory.count());
            asks.push(Ask::Page { cursor, count });
        }
        asks
    }

    /// The next question, unless it is a read and enough of them are under way.
    fn next_ready(&mut self, reads: &mut usize) -> Option<Ask> {
        if let Ask::Read { .. } = self.ready.front()? {
            *reads = reads.checked_sub(1)?;
        }
        self.ready.pop_front()
    }

    fn may_walk(&self) -> bool {
        self.stop.is_none()
            && self.backlog() < 2 * self.pace.size()
            && !self.waiting.is_full()
            && !self.unverified.is_full()
    }

    /// Batches for one script: of like terms, and not too much.
    fn next_prune(&mut self) -> Option<Vec<Batch>> {
        let terms = self.condemned.front()?.visit.idle.get();
        let (mut batches, mut members, mut bytes) = (Vec::new(), 0, 0);
        while let Some(batch) = self.condemned.front() {
            let more = members + batch.members.len();
            let full = more > BATCH || bytes > BATCH_BYTES;
            if batch.visit.idle.get() != terms || (!batches.is_empty() && full) {
                break;
            }
            (members, bytes) = (more, bytes + batch.members.bytes());
            batches.extend(self.condemned.pop_front());
        }
        Some(batches)
    }
}
