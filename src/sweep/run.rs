//! A run: the loop of rounds. What follows from their answers is in `answers.rs`.

use crate::clock::Moment;
use crate::connect::{Link, Pack, passes};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::lock::{Contender, Histogram, companion, whoami};
use crate::script::{Args, CHECKPOINT, EXTEND, INVALIDATE, PRUNE, RESTORE, RIGHTS};
use crate::socket::checked;
use crate::sweep::checkpoint::{self, Checkpoint};
use crate::sweep::history;
use crate::sweep::memory::Memory;
use crate::sweep::options::Options;
use crate::sweep::pace::Pace;
use crate::sweep::page::{Page, Walk};
use crate::sweep::proof::Proof;
use crate::sweep::quarantine::Quarantine;
use crate::sweep::records::{self, Record};
use crate::sweep::report::{Flow, Progress, Reason, Report};
use crate::sweep::round::{Ask, BATCH, BATCH_BYTES, Batch, Terms, Visit};
use crate::sweep::slip::{Done, Slip};
use crate::topology::{Facts, IdleClock};
use redis::Value;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Longest time from a request to stop to the last verification.
pub(super) const STOPPING: Duration = Duration::from_millis(500);

/// Slips that are crossed out at once.
const CROSSED: usize = 64;

/// Longest time in which a server may be out of reach while we are to stop.
const LAST_TRY: Duration = Duration::from_secs(1);

/// Longest rest between two attempts to reach it.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long what is condemned waits for company: what proved that a tag was left alone gets old.
const COMPANY: Duration = Duration::from_millis(50);

/// How often the server is asked whether it saves and how busy it is.
const LOAD_EVERY: Duration = Duration::from_millis(500);

/// What waits for its grace.
#[derive(Debug)]
pub(super) enum Later {
    /// A tag to be read again: it was young, or something of it was found to be.
    Tag { key: Vec<u8>, page: Rc<Page>, record: Option<Record>, earlier: Option<Rc<Visit>> },
    /// References seen absent once.
    Absent(Batch),
    /// The next slips that an earlier sweep left.
    Recover(u64),
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
pub(super) struct Running<'a> {
    pub(super) link: &'a mut Link,
    pub(super) contender: &'a mut Contender,
    pub(super) options: &'a Options,
    pub(super) pattern: Vec<u8>,
    /// A key under it.
    sample: Vec<u8>,
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
    /// Bytes that we had sent then.
    pub(super) sent: u64,
    /// Since when there was no answer, and how many attempts were made.
    outage: Option<(Moment, u32)>,
    /// The connection is to be made anew.
    cut_off: bool,
    /// What ended the sweep, while what was removed is verified.
    failure: Option<Error>,
    /// Which server process it is, if it says so.
    server_id: Option<String>,
    pub(super) stop: Option<Reason>,
    pub(super) visits: u64,
    pub(super) condemned_total: u64,
    /// When the last script was put together.
    pruned_at: Moment,
    pub(super) weighed: (u64, u64),
    pub(super) report: Report,
    /// Keys on the server, when the sweep began.
    pub keys: u64,
    /// Slips to be crossed out, and how many were written.
    pub(super) crossed: Done,
    slips: u64,
    /// What checkpoints of this run are good for; `None` when there can be none.
    purpose: Option<String>,
    /// Figures of the sweep that this one goes on from.
    before: Report,
    checkpointed: Moment,
    /// Pages of which something was given up: whoever goes on begins with them.
    given_up: Vec<Rc<Page>>,
    farewell: bool,
    rounds: Histogram,
    /// Errors of the server, by their first word.
    pub(super) errors: BTreeMap<String, u64>,
    /// Ages are kept on record, because our reads reset them.
    pub(super) aging: bool,
    /// The server's clock when we began (s).
    time: u64,
    fence: Option<u64>,
    /// Records to be written.
    pub(super) records: Vec<(Vec<u8>, Option<Record>)>,
    /// Buckets of records that are tidied up.
    tidied: u32,
}

impl<'a> Running<'a> {
    pub fn new(
        link: &'a mut Link,
        contender: &'a mut Contender,
        options: &'a Options,
        layout: &dyn Layout,
        facts: Facts,
    ) -> Self {
        let now = Moment::now();
        let memory = Memory::new(options.memory);
        let fence = contender.lease().map(|lease| lease.fence);
        let run_id = facts.run_id.clone().filter(|_| !options.dry_run);
        let purpose = run_id.map(|id| checkpoint::purpose(&id, &layout.pattern(), options));
        Self {
            link,
            contender,
            options,
            pattern: layout.pattern(),
            sample: layout.sample(),
            proof: Proof::new(layout.mappings(), options.trust_mapping, memory.held()),
            untouching: facts.no_touch,
            idle: IdleClock::new(facts.clone(), now),
            walk: Walk::new(facts.time),
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
            sent: 0,
            outage: None,
            cut_off: false,
            failure: None,
            server_id: facts.run_id.clone(),
            stop: None,
            visits: 0,
            condemned_total: 0,
            pruned_at: now,
            weighed: (0, 0),
            report: Report { dry_run: options.dry_run, ..Report::default() },
            keys: 0,
            crossed: Done::default(),
            slips: 0,
            purpose,
            before: Report::default(),
            checkpointed: now,
            given_up: Vec::new(),
            farewell: false,
            rounds: Histogram::default(),
            errors: BTreeMap::new(),
            aging: false,
            time: facts.time,
            fence,
            records: Vec::new(),
            tidied: 0,
        }
    }

    /// The figures, as they are now.
    pub fn report(&mut self) -> Report {
        self.take_stock();
        self.report.clone()
    }

    /// Brings the figures up to date that are not counted as they come.
    fn take_stock(&mut self) {
        let report = &mut self.report;
        report.duration = Moment::now().since(self.begun);
        report.server = self.pace.server_time();
        let (bytes, members) = self.weighed;
        let lost = report.references_removed.saturating_sub(report.references_restored);
        report.bytes_reclaimed = bytes.saturating_mul(lost).checked_div(members).unwrap_or(0);
        report.rounds = self.rounds.count();
        report.round_p50 = self.rounds.quantile(0.5).unwrap_or_default();
        report.round_p99 = self.rounds.quantile(0.99).unwrap_or_default();
    }

    /// What is left for those who look back: nothing of a dry run.
    pub fn entry(&self, error: Option<String>) -> Vec<redis::Cmd> {
        if self.options.dry_run {
            return Vec::new();
        }
        let who = whoami();
        let mut who = who.splitn(3, '|').map(str::to_owned);
        let run = history::Run {
            at: self.server_time(),
            fence: self.fence,
            host: who.next().unwrap_or_default(),
            pid: std::process::id(),
            program: who.nth(1).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            error,
            report: self.report.clone(),
        };
        let entry = history::Entry { run: &run, rounds: &self.rounds, errors: &self.errors };
        entry.commands(&self.contender.keys().lock)
    }

    fn progress(&mut self) -> Progress<'_> {
        self.take_stock();
        let (share, passed) = (self.walk.share(), self.walk.passed());
        let left =
            (passed > 0.005).then(|| (1.0 - share) / passed * self.report.duration.as_secs_f64());
        Progress {
            report: &self.report,
            share,
            keys: self.keys,
            left: left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            effort: self.pace.effort(),
            waiting: self.flights.is_empty() && self.ready.is_empty(),
        }
    }

    /// Goes on until every tag is judged and everything removed is verified, or until it must stop.
    pub fn finish(&mut self, watch: &mut dyn FnMut(&Progress) -> Flow) -> Result<()> {
        let ended = self.go(watch);
        self.report.reason = match (&ended, self.stop) {
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
            self.ready.push_back(Ask::Recover { cursor: 0 });
        }
        loop {
            if watch(&self.progress()) == Flow::Stop {
                self.stop(Reason::Stopped);
            }
            self.look_at_the_clock();
            match self.step() {
                Ok(true) => {}
                Ok(false) => match self.failure.take() {
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

    /// An error that does not pass ends the sweep; but what it removed is still verified, if that can be.
    fn fail(&mut self, failure: Error) -> Result<()> {
        let reachable = !matches!(failure.kind(), ErrorKind::Unreachable | ErrorKind::Unknown);
        self.lose_flights();
        if let Some(first) = self.failure.take() {
            return Err(first);
        }
        if !reachable || self.contender.lease().is_none() {
            return Err(failure);
        }
        self.outage = None;
        self.failure = Some(failure);
        self.stop(Reason::Error);
        Ok(())
    }

    /// Sends what can be sent and takes in one round. False when there is nothing left to do.
    fn step(&mut self) -> Result<bool> {
        if self.cut_off {
            self.reconnect()?;
            self.cut_off = false;
        }
        while self.flights.len() < self.pace.depth() && self.pace.rest(Moment::now()).is_none() {
            let asks = self.compose();
            if asks.is_empty() {
                break;
            }
            self.launch(asks)?;
        }
        if !self.flights.is_empty() {
            self.land()?;
            self.outage = None;
        } else if self.is_done() {
            return Ok(self.next_pass() || self.say_farewell());
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
                Some(Later::Tag { key, page, record, earlier }) => {
                    self.visit(Visit {
                        key,
                        page,
                        earlier,
                        again: true,
                        known: record.into(),
                        ..Visit::default()
                    });
                }
                Some(Later::Recover(cursor)) => self.ready.push_back(Ask::Recover { cursor }),
                Some(Later::Absent(batch)) => self.condemn(batch),
                None => break,
            }
        }
        if self.contender.lease().is_some() && now.since(self.extended) >= self.options.lock_ttl / 3
        {
            self.extended = now;
            self.ready.push_front(Ask::Extend);
        }
        if self.stop.is_none() && now.since(self.checkpointed) >= checkpoint::EVERY {
            self.checkpointed = now;
            let kept = self.checkpoint();
            self.ready.extend(kept.map(|kept| Ask::Checkpoint(Some(kept.to_bytes()))));
        }
        if self.crossed.borrow().len() >= CROSSED || self.is_idle() {
            self.cross_out();
        }
        if self.records.len() >= CROSSED || (self.is_idle() && !self.records.is_empty()) {
            self.ready.push_back(Ask::Records(std::mem::take(&mut self.records)));
        }
        if now.since(self.observed) >= LOAD_EVERY {
            self.observed = now;
            self.sent = self.link.sent();
            self.ready.push_front(Ask::Load);
        }
    }

    fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.ready.is_empty()
    }

    fn cross_out(&mut self) {
        let ids = self.crossed.take();
        // What was verified in a hurry is left to the next sweep as well.
        if !ids.is_empty() && !self.is_hurried() {
            self.ready.push_back(Ask::CrossOut(ids));
        }
    }

    /// Where another sweep could go on, with what was done before that; `None` while that would be
    /// the beginning.
    fn checkpoint(&mut self) -> Option<Checkpoint> {
        if self.second_pass || !self.proof.is_settled() || self.contender.lease().is_none() {
            return None;
        }
        let purpose = self.purpose.as_ref()?;
        let place = self.walk.settled();
        let mut report = self.before.clone();
        report.add(&self.report);
        for page in self.walk.unsettled() {
            report.tags_seen -= page.seen.get();
            report.tags_aged -= page.aged.get();
            report.tags_skipped -= page.skipped.get();
            report.tags_unchanged -= page.unchanged.get();
            report.references_checked -= page.checked.get();
        }
        (place.cursor != 0).then(|| Checkpoint::new(purpose, place, report))
    }

    /// Nothing more is done about something of this page.
    pub(super) fn give_up(&mut self, page: &Rc<Page>) {
        if !self.given_up.iter().any(|known| Rc::ptr_eq(known, page)) {
            self.given_up.push(Rc::clone(page));
        }
    }

    /// The last words to the server: how far we came, or that there is nothing left to do. False when
    /// they are said.
    fn say_farewell(&mut self) -> bool {
        if self.tidy() {
            return true;
        }
        let silent = self.options.dry_run || self.contender.lease().is_none();
        if silent || std::mem::replace(&mut self.farewell, true) {
            return false;
        }
        let kept = match self.stop {
            None => Some(None),
            Some(_) => self.checkpoint().map(|kept| Some(kept.to_bytes())),
        };
        self.ready.extend(kept.map(Ask::Checkpoint));
        true
    }

    /// At the end of a sweep that saw every tag: records of those that it did not see go, bucket by
    /// bucket. False when there is nothing to tidy up.
    fn tidy(&mut self) -> bool {
        let whole = self.stop.is_none() && self.walk.is_whole();
        let keeps = self.aging || self.options.remember.is_some();
        let writes = keeps && !self.options.dry_run;
        if !whole || !writes || self.tidied >= records::BUCKETS {
            return false;
        }
        self.ready.push_back(Ask::Tidy { first: self.tidied });
        self.tidied += records::TIDIED;
        true
    }

    /// The server's clock when we began (s).
    pub(super) fn began(&self) -> u64 {
        self.time
    }

    /// The server's clock, by ours (s).
    pub(super) fn server_time(&self) -> u64 {
        self.time + Moment::now().since(self.begun).as_secs()
    }

    /// Gives batches that go to a script together a slip, if removals are noted.
    pub(super) fn noted(&mut self, mut batches: Vec<Batch>) -> Vec<Batch> {
        if self.options.durable {
            let fence = self.contender.lease().map_or(0, |lease| lease.fence);
            let slip = Slip::new(format!("{fence}.{}", self.slips).into(), &self.crossed);
            self.slips += 1;
            batches.iter_mut().for_each(|batch| batch.slip = Some(Rc::clone(&slip)));
        }
        batches
    }

    /// Batches whose verification is due, as many as one command may look for.
    fn next_verify(&mut self, now: Moment) -> Option<Ask> {
        let (first, again) = self.unverified.take(now)?;
        let (mut members, mut bytes) = (first.members.len(), first.members.bytes());
        let mut batches = vec![first];
        let fits = |(batch, other): &(Batch, bool), members: usize, bytes: usize| {
            *other == again && members + batch.members.len() <= BATCH && bytes <= BATCH_BYTES
        };
        while self.unverified.peek(now).is_some_and(|next| fits(next, members, bytes))
            && let Some((batch, _)) = self.unverified.take(now)
        {
            members += batch.members.len();
            bytes += batch.members.bytes();
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
        let mut batches: Vec<Batch> = self.condemned.drain(..).chain(held).collect();
        for later in self.waiting.drain() {
            match later {
                Later::Absent(batch) => batches.push(batch),
                Later::Tag { page, earlier, .. } => {
                    self.give_up(&page);
                    earlier.into_iter().for_each(|visit| self.let_go(visit));
                }
                Later::Recover(_) => {}
            }
        }
        let (kept, dropped) = std::mem::take(&mut self.ready).into_iter().partition(Ask::is_owed);
        self.ready = kept;
        for batch in dropped.into_iter().flat_map(Ask::into_batches).chain(batches) {
            self.give_up(&batch.visit.page);
            self.let_go(batch.visit);
        }
        if self.is_hurried() {
            self.unverified.hurry(Moment::now() + STOPPING);
        }
    }

    /// Whether somebody waits for our end; a limit that was reached leaves time for verification.
    pub(super) fn is_hurried(&self) -> bool {
        matches!(self.stop, Some(Reason::Stopped | Reason::Lost | Reason::Error))
    }

    fn is_done(&self) -> bool {
        let judged = self.walk.is_done() && self.waiting.is_empty() && self.condemned.is_empty();
        let crossed = self.crossed.borrow().is_empty();
        let kept = crossed && self.records.is_empty();
        let verified = self.ready.is_empty() && self.unverified.is_empty() && kept;
        verified && (judged || self.stop.is_some())
    }

    /// Walks again if something was passed over before the mapping was proven.
    fn next_pass(&mut self) -> bool {
        if self.stop.is_some() || !self.proof.must_walk_again() {
            return false;
        }
        self.second_pass = true;
        self.walk = Walk::new(self.server_time());
        true
    }

    /// At the end: whether what was held back means that the mapping is wrong.
    fn verdict(&mut self) -> Result<()> {
        match self.proof.refutation() {
            Some(what) if self.options.dry_run => {
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
        let mut setup = vec![self.kept("mapping"), self.kept("checkpoint")];
        if self.untouching {
            // On for the answer, and off at once: see `in_its_mode`.
            for mode in ["ON", "OFF"] {
                let mut cmd = redis::cmd("CLIENT");
                cmd.arg("NO-TOUCH").arg(mode);
                setup.push(cmd);
            }
        }
        let told = setup.len();
        if !self.options.dry_run {
            let scripts = [&PRUNE, &INVALIDATE, &RESTORE, &EXTEND, &CHECKPOINT];
            setup.extend(scripts.map(|script| script.load()));
            setup.push(RIGHTS.by_body(&Args::default().key(&self.sample)));
        }
        let replies = self.link.persist(|link, deadline| {
            let replies = link.calls(&setup, deadline)?;
            // What may fail for want of a permission comes first; scripts must be known.
            replies.iter().skip(told).try_for_each(|r| checked(r.clone()).map(|_| ()))?;
            Ok(replies)
        })?;
        if let Some(Value::Array(refused)) = replies.get(told..).and_then(<[Value]>::last) {
            self.may_all_but(refused)?;
        }
        if let Some(Value::BulkString(fingerprint)) = replies.first() {
            self.proof.recognise(fingerprint);
        }
        if let Some(Value::BulkString(kept)) = replies.get(1) {
            self.go_on_from(kept);
        }
        self.untouching &= matches!(replies.get(2), Some(Value::Okay));
        self.aging = self.options.max_tag_age.is_some() && !self.untouching && self.idle.runs();
        self.pace.connected(self.link.round_trip()?);
        Ok(())
    }

    /// Nothing is begun that could not be undone.
    fn may_all_but(&self, refused: &[Value]) -> Result<()> {
        let names: Vec<String> =
            refused.iter().filter_map(|name| redis::from_redis_value_ref(name).ok()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = names.join(", ");
        Err(Error::new(ErrorKind::Denied, format!("the user may not run {names} on tags"))
            .key(&self.sample)
            .advice("grant it: what a sweep removes it must be able to put back"))
    }

    /// Asks for what an earlier run left.
    fn kept(&self, what: &str) -> redis::Cmd {
        let mut cmd = redis::cmd("GET");
        cmd.arg(companion(&self.contender.keys().lock, what));
        cmd
    }

    /// Goes on where an earlier run was cut short, if this is the beginning.
    fn go_on_from(&mut self, kept: &[u8]) {
        let begun = self.report.pages > 0 || self.second_pass || !self.options.resume;
        let Some(purpose) = self.purpose.as_ref().filter(|_| !begun) else { return };
        let Some(checkpoint) = Checkpoint::read(kept, purpose) else { return };
        self.walk = checkpoint.walk(self.server_time(), self.options.grace);
        self.report.resumed_at = checkpoint.place.share();
        self.before = checkpoint.report;
        self.report.removed_before = self.before.references_removed;
    }

    fn launch(&mut self, asks: Vec<Ask>) -> Result<()> {
        let (pattern, strict) = (self.pattern.as_slice(), self.options.strict);
        let terms = Terms { pattern, proof: &self.proof, contender: self.contender, strict };
        let units = asks.iter().map(Ask::units).sum();
        let reads = asks.iter().filter(|ask| matches!(ask, Ask::Read { .. })).count();
        let mut pack = Pack::default();
        let mut due = VecDeque::with_capacity(asks.len());
        for ask in in_its_mode(asks, self.untouching) {
            let before = pack.commands();
            ask.write(&terms, &mut pack);
            due.push_back((ask, pack.commands() - before));
        }
        self.flights.push_back(Flight { asks: due, units, reads, sent: Moment::now() });
        let deadline = self.link.deadline();
        self.link.send(&pack, deadline)
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
        self.rounds.record(now.since(from));
        self.pace.observe(units, now.since(from), overlapped, now);
        self.landed = now;
        Ok(())
    }

    /// After a fault that may pass: what was not answered is asked again. What may have been removed
    /// meanwhile is verified like everything removed. A server out of reach is waited for as long as
    /// the lock lives.
    fn endure(&mut self, fault: Error) -> Result<()> {
        let code = fault.code().unwrap_or("connection").to_owned();
        *self.errors.entry(code).or_default() += 1;
        let now = Moment::now();
        let (since, tries) = self.outage.unwrap_or((now, 0));
        let patience = match self.stop {
            None => self.options.lock_ttl,
            Some(_) => LAST_TRY,
        };
        if !passes(&fault) || (tries > 0 && now.since(since) >= patience) {
            return Err(if tries > 0 { fault.tried(tries + 1, now.since(since)) } else { fault });
        }
        self.outage = Some((since, tries + 1));
        self.lose_flights();
        // The first attempt at once: most often it was the connection alone.
        let pause = Duration::from_millis(10) * tries.min(100);
        std::thread::sleep(pause.min(PAUSE_MAX));
        Ok(())
    }

    /// The connection goes, and what was not answered is to be asked again.
    fn lose_flights(&mut self) {
        self.cut_off = true;
        self.link.drop_connection();
        let lost: Vec<Ask> =
            self.flights.drain(..).flat_map(|flight| flight.asks).map(|(ask, _)| ask).collect();
        for ask in lost.into_iter().rev() {
            self.ask_again(ask);
        }
    }

    /// A server that was restarted, or another one in its place, is not held to what the old one
    /// promised: neither our lock nor our cursor means anything there.
    fn reconnect(&mut self) -> Result<()> {
        self.prepare()?;
        let (known, found) = (self.server_id.as_ref(), self.link.server_id()?);
        if known.is_some() && found.is_some() && known != found.as_ref() {
            self.warn("the server was restarted or replaced during the sweep");
            // If it kept its data, our lock is there, too, and is given back in the end.
            self.stop(Reason::Lost);
        }
        Ok(())
    }

    pub(super) fn ask_again(&mut self, ask: Ask) {
        let soon = Moment::now() + self.options.verify;
        match ask {
            Ask::Page { .. } => self.walk.again(),
            Ask::Extend | Ask::Load | Ask::Remember { .. } | Ask::Untouch(_) => {}
            ask @ (Ask::Records(_) | Ask::Tidy { .. } | Ask::Forget { .. }) => {
                self.ready.push_back(ask)
            }
            ask @ (Ask::Recover { .. } | Ask::CrossOut(_) | Ask::Checkpoint(_)) => {
                self.ready.push_front(ask);
            }
            Ask::Prune(batches) => {
                for batch in batches {
                    self.unverified.put((batch.clone(), true), batch.size(), soon);
                    batch.visit.asked.set(true);
                    match self.stop {
                        None => self.condemned.push_front(batch),
                        Some(_) => self.give_up(&batch.visit.page),
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
            ask => ask.into_batches().iter().for_each(|batch| self.give_up(&batch.visit.page)),
        }
    }

    // ---- rounds ----

    /// The next round: a full script, or questions, and a page if there is room for a good one. Many
    /// small scripts and pages would cost the server more than a few large ones.
    fn compose(&mut self) -> Vec<Ask> {
        let size = self.pace.size();
        let script = BATCH.min(size * 2 / 3);
        let (mut asks, mut units) = (Vec::new(), 0);
        let under_way: usize = self.flights.iter().map(|flight| flight.reads).sum();
        let mut reads = self.memory.reads().saturating_sub(under_way);
        while units < size {
            let full = self.condemns(script) || self.is_overdue();
            if full && units > size / 3 {
                return asks;
            }
            let next = match full.then(|| self.next_prune(script)).flatten() {
                Some(batches) => Some(Ask::Prune(self.noted(batches))),
                None => self.next_ready(&mut reads),
            };
            let Some(ask) = next else { break };
            units += ask.units();
            asks.push(ask);
        }
        asks.extend(self.next_page(size.saturating_sub(units)));
        let idle = asks.is_empty() && self.flights.is_empty();
        if let Some(batches) = idle.then(|| self.next_prune(script)).flatten() {
            asks.push(Ask::Prune(self.noted(batches)));
        }
        asks
    }

    /// Whether what is condemned has waited for company for long enough.
    fn is_overdue(&self) -> bool {
        !self.condemned.is_empty() && Moment::now().since(self.pruned_at) >= COMPANY
    }

    /// Whether so many members are condemned.
    fn condemns(&self, members: usize) -> bool {
        let lengths = self.condemned.iter().map(|batch| batch.members.len());
        let mut sums = lengths.scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        });
        sums.any(|sum| sum >= members)
    }

    /// The next page, if so many units are room enough.
    fn next_page(&mut self, units: usize) -> Option<Ask> {
        if units < self.pace.size() / 2 || !self.may_walk() {
            return None;
        }
        let cursor = self.walk.ask()?;
        let count = (units * 2 / 3).clamp(50, 1000).min(self.memory.count());
        Some(Ask::Page { cursor, count })
    }

    /// The next question, unless it is a read and enough of them are under way.
    fn next_ready(&mut self, reads: &mut usize) -> Option<Ask> {
        let full = self.waiting.is_full() || self.unverified.is_full();
        // More of a large tag would only wait, too.
        let may_wait = |ask: &Ask| matches!(ask, Ask::Read { cursor: 1.., .. });
        let at = self.ready.iter().position(|ask| !full || !may_wait(ask))?;
        if let Ask::Read { .. } = self.ready.get(at)? {
            *reads = reads.checked_sub(1)?;
        }
        self.ready.remove(at)
    }

    fn may_walk(&self) -> bool {
        self.stop.is_none()
            && self.backlog() < 2 * self.pace.size()
            && !self.waiting.is_full()
            && !self.unverified.is_full()
    }

    /// Batches for one script: of like terms, and not too much; a single one whatever it costs.
    fn next_prune(&mut self, most: usize) -> Option<Vec<Batch>> {
        let terms = self.condemned.front()?.visit.idle.get();
        self.pruned_at = Moment::now();
        let (mut batches, mut members, mut bytes) = (Vec::new(), 0, 0);
        while let Some(batch) = self.condemned.front() {
            let more = members + batch.members.len();
            let full = more > most || bytes > BATCH_BYTES;
            if batch.visit.idle.get() != terms || (!batches.is_empty() && full) {
                break;
            }
            (members, bytes) = (more, bytes + batch.members.bytes());
            batches.extend(self.condemned.pop_front());
        }
        Some(batches)
    }
}

/// The questions of a round, in NO-TOUCH mode those that would make tags look used, and nothing else: a
/// server whose client in that mode wakes another one that blocks crashes (Redis 8.0.2, Valkey 8.1.1),
/// which a release, a deleted entry or an expired key on the way of SCAN may do. So no connection is ever
/// left in that mode.
fn in_its_mode(asks: Vec<Ask>, untouching: bool) -> Vec<Ask> {
    let mut round = Vec::with_capacity(asks.len() + 2);
    let mut mode = false;
    for ask in asks {
        let wanted = untouching && ask.makes_young();
        if wanted != mode {
            round.push(Ask::Untouch(wanted));
            mode = wanted;
        }
        round.push(ask);
    }
    round.extend(mode.then_some(Ask::Untouch(false)));
    round
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(asks: Vec<Ask>, untouching: bool) -> String {
        let letter = |ask: &Ask| match ask {
            Ask::Untouch(true) => '(',
            Ask::Untouch(false) => ')',
            ask if ask.makes_young() => 'y',
            _ => 'n',
        };
        in_its_mode(asks, untouching).iter().map(letter).collect()
    }

    #[test]
    fn nothing_else_is_sent_in_no_touch_mode_and_no_round_ends_in_it() {
        let asks = || {
            let visit = Rc::new(Visit::default());
            let batch = || Batch { visit: Rc::clone(&visit), ..Batch::default() };
            let read = || Ask::Read { visit: Rc::clone(&visit), cursor: 0, count: 1 };
            let page = Ask::Page { cursor: 0, count: 1 };
            vec![read(), Ask::Look(batch()), read(), Ask::Prune(vec![batch()]), page, read()]
        };
        assert_eq!(modes(asks(), true), "(y)n(yy)n(y)");
        assert_eq!(modes(asks(), false), "ynyyny");
        let others = vec![Ask::Load, Ask::Extend, Ask::Invalidate(Batch::default())];
        assert_eq!(modes(others, true), "nnn");
    }
}
