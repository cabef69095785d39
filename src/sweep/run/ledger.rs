//! What a run keeps account of: the figures, as they are now and in the end.

use crate::clock::Moment;
use crate::lock::whoami;
use crate::sweep::batch::{Tag, Visit};
use crate::sweep::history;
use crate::sweep::options::Options;
use crate::sweep::records;
use crate::sweep::report::{Progress, Report};
use crate::sweep::run::Running;
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
    weighed: (u64, u64),
    /// The largest share that was told of, and when the pass under way began.
    furthest: f64,
    pub pass_begun: Moment,
    /// When the last look for something removed is due that comes a grace after its removal.
    last_look: Option<Moment>,
    /// How long nothing was read, for what waits took all the memory it may.
    pub stood_still: Duration,
    /// Of our grant, for those who look back.
    pub fence: Option<u64>,
    /// Tags of what is to be walked to again that counted as pruned the first time.
    pruned_before: HashSet<u64>,
}

impl Figures {
    pub fn new(fence: Option<u64>, pass_begun: Moment) -> Self {
        Self {
            visits: 0,
            weighed: (0, 0),
            furthest: 0.0,
            pass_begun,
            last_look: None,
            stood_still: Duration::ZERO,
            fence,
            pruned_before: HashSet::new(),
        }
    }

    /// Another tag of which we know how much it takes, and how many members that are.
    pub fn weigh(&mut self, bytes: u64, members: u64) {
        self.weighed.0 += bytes;
        self.weighed.1 += members;
    }

    /// What waited is dropped; what is left to verify is known by itself.
    pub fn looks_no_longer(&mut self) {
        self.last_look = None;
    }

    /// Something will be looked for until then.
    pub fn looks_until(&mut self, due: Moment) {
        self.last_look = self.last_look.max(Some(due));
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
            fence: self.figures.fence,
            host: who.next().unwrap_or_default(),
            pid: std::process::id(),
            program: who.nth(1).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            error,
            report: self.report.clone(),
        };
        let (lfu, rounds, errors) = (!self.idle.runs(), &self.wire.rounds, &self.wire.errors);
        let seen = self.report.complete || self.resume.round;
        let fenced = self.ending.fenced;
        let entry = history::Entry { run: &run, seen, lfu, fenced, rounds, errors };
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
        if self.is_done() {
            return Some(Duration::ZERO);
        }
        let Options { grace, verify, .. } = *self.options;
        // Where idle times cannot be asked for again what was removed is looked for a grace later, too.
        let looks = if self.untouching { verify } else { verify.max(grace) };
        let waiting = self.queue.waiting.last_due().map(|due| due + looks);
        let last_due = waiting.max(self.queue.unverified.last_due()).max(self.figures.last_look);
        let waits = last_due.map_or(Duration::ZERO, Moment::left);
        if self.walk.is_done() {
            // What is due, and not done with, will take nobody knows how long.
            let is_told = self.queue.backlog() == 0 && !waits.is_zero();
            return is_told.then_some(waits);
        }
        let passed = Some(self.walk.passed()).filter(|passed| *passed > 0.005)?;
        let again = f64::from(u8::from(!self.second_pass && self.proof.misses()));
        let rest = (1.0 - self.walk.share() + again) / passed;
        let took = Moment::now().since(self.figures.pass_begun).as_secs_f64();
        Duration::try_from_secs_f64(rest * took).ok().map(|rest| rest.max(waits))
    }

    /// Lets go of a tag; the last one who does settles its figures.
    pub(super) fn let_go(&mut self, visit: Rc<Visit>) {
        let Some(visit) = Rc::into_inner(visit) else { return };
        if !self.options.dry_run && !visit.reread.get() {
            self.keep_record(&visit);
        }
        if visit.removed.get() > 0 {
            grow(&visit.tag.tally.removed, visit.removed.get());
            let would_go = visit.removed.get() == visit.checked.get() && !visit.partial.get();
            visit.tag.tally.gone.set(if self.options.dry_run {
                would_go
            } else {
                visit.gone.get()
            });
        }
        self.settle(visit.tag);
    }

    /// Counts a tag of which something was removed, once for all its visits.
    pub(super) fn settle(&mut self, tag: Tag) {
        let Tag { key, page, tally, .. } = tag;
        let Some(tally) = Rc::into_inner(tally).filter(|tally| tally.removed.get() > 0) else {
            return;
        };
        let name = records::name(&key);
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
