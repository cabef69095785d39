//! What a run keeps account of: figures, what it leaves for the next, what it knows of tags.

use crate::clock::Moment;
use crate::lock::whoami;
use crate::sweep::batch::{Batch, Tally, Visit};
use crate::sweep::checkpoint::Checkpoint;
use crate::sweep::history;
use crate::sweep::page::Page;
use crate::sweep::records::{self, Record, Warrant};
use crate::sweep::report::{Progress, Report};
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use crate::sweep::slip::{Done, Slip};
use redis::Value;
use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

/// The share that is told of while anything is left to do.
const ALMOST: f64 = 0.99;

/// What the report is made of besides what it holds already.
#[derive(Debug)]
pub(super) struct Figures {
    /// Tags read.
    pub visits: u64,
    /// Memory of the tags that were weighed (bytes), and their members.
    pub weighed: (u64, u64),
    /// The largest share that was told of, and when the pass under way began.
    furthest: f64,
    pub pass_begun: Moment,
    /// Tags of what is to be walked to again that counted as pruned the first time.
    pruned_before: HashSet<[u8; 8]>,
}

impl Figures {
    pub fn new(pass_begun: Moment) -> Self {
        let (weighed, pruned_before) = ((0, 0), HashSet::new());
        Self { visits: 0, weighed, furthest: 0.0, pass_begun, pruned_before }
    }
}

/// What is left for the next run, and what an earlier one left.
pub(super) struct Legacy {
    /// Of our grant, for those who look back.
    fence: Option<u64>,
    /// What checkpoints of this run are good for; `None` when there can be none.
    pub purpose: Option<String>,
    pub checkpointed: Moment,
    /// Figures of the sweep that this one goes on from.
    pub before: Report,
    /// Pages of which something was given up: whoever goes on begins with them.
    given_up: Vec<Rc<Page>>,
    farewell: bool,
    /// Slips to be crossed out, and how many were written.
    pub crossed: Done,
    pub slips: u64,
    /// Notes of what could not be put back.
    pub unrestored: Vec<Rc<Slip>>,
    /// Ages are kept on record, because our reads reset them.
    pub aging: bool,
    /// Records to be written, and buckets of records that are tidied up.
    pub records: Vec<(Vec<u8>, Option<Record>)>,
    tidied: u32,
}

impl Legacy {
    pub fn new(fence: Option<u64>, purpose: Option<String>, now: Moment) -> Self {
        Self {
            fence,
            purpose,
            checkpointed: now,
            before: Report::default(),
            given_up: Vec::new(),
            farewell: false,
            crossed: Done::default(),
            slips: 0,
            unrestored: Vec::new(),
            aging: false,
            records: Vec::new(),
            tidied: 0,
        }
    }
}

impl Running<'_> {
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
        let (bytes, members) = self.figures.weighed;
        let lost = report.references_removed.saturating_sub(report.references_restored);
        report.bytes_reclaimed = bytes.saturating_mul(lost).checked_div(members).unwrap_or(0);
        report.rounds = self.wire.rounds.count();
        report.round_p50 = self.wire.rounds.quantile(0.5).unwrap_or_default();
        report.round_p99 = self.wire.rounds.quantile(0.99).unwrap_or_default();
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
            fence: self.legacy.fence,
            host: who.next().unwrap_or_default(),
            pid: std::process::id(),
            program: who.nth(1).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            error,
            report: self.report.clone(),
        };
        let (lfu, rounds, errors) = (!self.idle.runs(), &self.wire.rounds, &self.wire.errors);
        let entry = history::Entry { run: &run, lfu, rounds, errors };
        entry.commands(&self.contender.keys().lock)
    }

    pub(super) fn progress(&mut self) -> Progress<'_> {
        self.take_stock();
        self.figures.furthest = self.figures.furthest.max(self.share());
        Progress {
            share: self.figures.furthest,
            keys: self.keys,
            left: self.time_left(),
            effort: self.pace.effort(),
            waiting: self.is_idle(),
            report: &self.report,
        }
    }

    /// How much is behind us, as far as can be told: keys may have to be walked over twice, and after the
    /// walk there is what waits.
    fn share(&self) -> f64 {
        let share = match (self.second_pass, self.proof.misses()) {
            (true, _) => (1.0 + self.walk.share()) / 2.0,
            (false, true) => self.walk.share() / 2.0,
            (false, false) => self.walk.share(),
        };
        if self.is_done() { share } else { share.min(ALMOST) }
    }

    /// What the rest of the walk takes, by the time that it took so far, and what waits then; `None` while
    /// that cannot be told.
    fn time_left(&self) -> Option<Duration> {
        let waiting = self.queue.waiting.last_due().map(|due| due + self.options.verify);
        let last_due = waiting.max(self.queue.unverified.last_due());
        let waits = last_due.map_or(Duration::ZERO, Moment::left);
        if self.walk.is_done() {
            // What is due, and not done with, will take nobody knows how long.
            let is_told = self.is_done() || (self.queue.backlog() == 0 && !waits.is_zero());
            return is_told.then_some(waits);
        }
        let passed = Some(self.walk.passed()).filter(|passed| *passed > 0.005)?;
        let again = f64::from(u8::from(!self.second_pass && self.proof.misses()));
        let rest = (1.0 - self.walk.share() + again) / passed;
        let took = Moment::now().since(self.figures.pass_begun).as_secs_f64();
        Duration::try_from_secs_f64(rest * took).ok().map(|rest| rest.max(waits))
    }

    /// Where another sweep could go on, with what was done before that; `None` while that would be
    /// the beginning.
    pub(super) fn checkpoint(&mut self) -> Option<Checkpoint> {
        if self.second_pass || !self.proof.is_settled() || self.contender.lease().is_none() {
            return None;
        }
        let purpose = self.legacy.purpose.as_ref()?;
        let place = self.walk.settled();
        let mut report = self.legacy.before.clone();
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
        if !self.legacy.given_up.iter().any(|known| Rc::ptr_eq(known, page)) {
            self.legacy.given_up.push(Rc::clone(page));
        }
    }

    /// Nothing more is done about these references.
    pub(super) fn leave(&mut self, batch: Batch) {
        self.give_up(&batch.visit.page);
        self.let_go(batch.visit);
    }

    /// The last words to the server: how far we came, or that there is nothing left to do. False when
    /// they are said.
    pub(super) fn say_farewell(&mut self) -> bool {
        if self.tidy() {
            return true;
        }
        let silent = self.options.dry_run || self.contender.lease().is_none();
        if silent || std::mem::replace(&mut self.legacy.farewell, true) {
            return false;
        }
        let kept = match self.stop {
            None => Some(None),
            Some(_) => self.checkpoint().map(|kept| Some(kept.to_bytes())),
        };
        self.queue.ready.extend(kept.map(Ask::Checkpoint));
        true
    }

    /// At the end of a sweep that saw every tag: records of those that it did not see go, bucket by
    /// bucket. False when there is nothing to tidy up.
    fn tidy(&mut self) -> bool {
        let whole = self.stop.is_none() && self.walk.is_whole();
        let keeps = self.legacy.aging || self.options.remember.is_some();
        let writes = keeps && !self.options.dry_run;
        if !whole || !writes || self.legacy.tidied >= records::BUCKETS {
            return false;
        }
        self.queue.ready.push_back(Ask::Tidy { first: self.legacy.tidied });
        self.legacy.tidied += records::TIDIED;
        true
    }

    /// Lets go of a tag; the last one who does settles its figures.
    pub(super) fn let_go(&mut self, visit: Rc<Visit>) {
        let Some(visit) = Rc::into_inner(visit) else { return };
        // Whoever reads a tag again weighs it again, and keeps what is known of it.
        if visit.weight.get() > 0 && !visit.reread.get() {
            self.figures.weighed.0 += visit.weight.get();
            self.figures.weighed.1 += visit.checked.get();
        }
        if !self.options.dry_run && !visit.reread.get() {
            self.keep_record(&visit);
        }
        if visit.removed.get() > 0 {
            grow(&visit.tally.removed, visit.removed.get());
            visit.tally.gone.set(visit.gone.get());
        }
        self.settle(&visit.key, &visit.page, visit.tally);
    }

    /// Counts a tag of which something was removed, once for all its visits.
    pub(super) fn settle(&mut self, key: &[u8], page: &Page, tally: Rc<Tally>) {
        let Some(tally) = Rc::into_inner(tally).filter(|tally| tally.removed.get() > 0) else {
            return;
        };
        let name = records::place(key).1;
        let counted = self.figures.pruned_before.contains(&name);
        match tally.gone.get() {
            true => {
                self.report.tags_removed += 1;
                self.report.tags_pruned -= u64::from(counted);
                self.figures.pruned_before.remove(&name);
            }
            false => {
                self.report.tags_pruned += u64::from(!counted);
                if page.missed.get() {
                    self.figures.pruned_before.insert(name);
                }
            }
        }
    }

    /// Keeps what is known of a tag. One that is gone takes its record along.
    fn keep_record(&mut self, visit: &Visit) {
        let now = self.server_time();
        // Ours was the last touch, as far as we saw.
        let touched = u32::try_from(now).unwrap_or(u32::MAX);
        let warrant = self.warrant(visit);
        let read_at = visit.idled_at.get().map_or(now, |at| self.server_time_at(at));
        let fresh = || Record::observe(None, visit.idled.get().unwrap_or(0), read_at);
        let record = visit.record.get().or_else(|| warrant.map(|_| fresh()));
        let record =
            record.map(|record| Record { touched, warrant: warrant.or(record.warrant), ..record });
        match record.filter(|_| !visit.gone.get()) {
            None if visit.known.get().is_none() || !visit.gone.get() => {}
            record => self.legacy.records.push((visit.key.clone(), record)),
        }
    }

    /// Asks for how long live entries live, if that is to be remembered.
    pub(super) fn vouch(&mut self, batch: Batch) {
        let vouches = self.options.remember.is_some() && !self.options.dry_run;
        if batch.members.is_empty() || !vouches || self.stop.is_some() {
            return self.let_go(batch.visit);
        }
        self.queue.ready.push_back(Ask::Lifetimes(batch));
    }

    pub(super) fn vouched(&mut self, batch: Batch, replies: &[Value]) {
        let (now, visit) = (self.server_time(), &batch.visit);
        for reply in replies {
            let Value::Int(life @ (-1 | 0..)) = reply else { continue };
            grow(&visit.vouched, 1);
            if let Ok(life) = u64::try_from(*life) {
                let end = now + life / 1000;
                visit.until.set(Some(visit.until.get().map_or(end, |until| until.min(end))));
            }
        }
        self.let_go(batch.visit);
    }

    /// What is to be remembered of a tag, if each of its references was vouched for.
    fn warrant(&self, visit: &Visit) -> Option<Warrant> {
        let left = visit.checked.get().checked_sub(visit.removed.get())?;
        let most = self.server_time() + self.options.remember?.as_secs();
        let until = visit.until.get().map_or(most, |until| until.min(most));
        let sound = left > 0 && visit.vouched.get() == left && self.was_left_alone(visit);
        sound.then(|| Warrant::new(until, left, &self.proof.in_force().entry_prefix))
    }

    /// Whether the application had left a tag alone when it was read: of one in use nobody could tell later
    /// that it was used again.
    fn was_left_alone(&self, visit: &Visit) -> bool {
        let (Some(idle), Some(at)) = (visit.idled.get(), visit.idled_at.get()) else {
            return false;
        };
        let at = self.server_time_at(at);
        let known = visit.known.get().filter(|_| !self.untouching);
        Record::observe(known, idle, at).age(at) > records::SLOP
    }

    /// Of a dry run whose sweep would remove nothing after all.
    pub(super) fn foresee_nothing(&mut self) {
        let report = &mut self.report;
        (report.tags_removed, report.tags_pruned, report.references_removed) = (0, 0, 0);
        report.entries_invalidated = 0;
    }

    /// Warns of something, with the first case of it.
    pub(super) fn warn_of(&mut self, what: &str, such_as: &str) {
        if !self.report.warnings.iter().any(|known| known.starts_with(what)) {
            self.report.warnings.push(format!("{what}, such as {such_as}"));
        }
    }

    pub(super) fn warn(&mut self, what: &str) {
        if !self.report.warnings.iter().any(|known| known == what) {
            self.report.warnings.push(what.to_owned());
        }
    }
}

pub(super) fn grow(count: &Cell<u64>, by: u64) {
    count.set(count.get() + by);
}
