//! Where an earlier sweep was cut short, and where a later one could go on.

use crate::clock::Moment;
use crate::sweep::batch::{Batch, Visit};
use crate::sweep::checkpoint::{Checkpoint, Looked};
use crate::sweep::page::Page;
use crate::sweep::report::{Reason, Report};
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use crate::sweep::walk::Place;
use std::rc::Rc;
use std::time::Duration;

/// What checkpoints are made of.
pub(super) struct Resume {
    /// What those of this run are good for; `None` when there can be none.
    purpose: Option<String>,
    pub checkpointed: Moment,
    /// Figures of the sweep that this one goes on from.
    before: Report,
    /// At what it and those before it looked, and how many references this one met where they had looked.
    looked: Looked,
    again: u64,
    /// Pages of which something was given up or postponed: whoever goes on begins with them.
    unfinished: Vec<Rc<Page>>,
    pub farewell: bool,
    /// Share of the table that was seen before this run, see [`Checkpoint::seen`].
    seen: f64,
    /// With those before it, this run has gone round the whole table.
    pub round: bool,
}

/// A run that ends before this has not tried.
const MERELY_BEGUN: Duration = Duration::from_millis(250);

/// What sums of shares are off by.
const ROUNDING: f64 = 1e-9;

impl Resume {
    pub fn new(purpose: Option<String>, now: Moment) -> Self {
        let (before, looked, unfinished) = (Report::default(), Looked::default(), Vec::new());
        let (farewell, round) = (false, false);
        let (again, seen) = (0, 0.0);
        Self {
            purpose,
            checkpointed: now,
            before,
            looked,
            again,
            unfinished,
            farewell,
            seen,
            round,
        }
    }
}

impl Running<'_> {
    /// Goes on where an earlier run was cut short, if this is the beginning.
    pub(super) fn go_on_from(&mut self, kept: &[u8]) {
        let begun = self.report.pages > 0 || self.second_pass || !self.options.resume;
        let Some(purpose) = self.resume.purpose.as_ref().filter(|_| !begun) else { return };
        let Some(checkpoint) = Checkpoint::read(kept, purpose) else { return };
        self.walk = checkpoint.walk(self.server_time(), self.options.grace);
        self.report.resumed_at = checkpoint.place.share();
        let Checkpoint { report, looked, seen, .. } = checkpoint;
        (self.resume.before, self.resume.looked, self.resume.seen) = (report, looked, seen);
        self.report.removed_before = self.resume.before.references_removed;
    }

    /// Where another sweep could go on, with what was done before that; `None` while nothing was done.
    pub(super) fn checkpoint(&mut self) -> Option<Checkpoint> {
        // Also where it is not asked for: pages that are settled take no memory then.
        let place = self.walk.settled();
        if !self.proof.is_settled() || self.contender.lease().is_none() {
            return None;
        }
        let timed = matches!(self.ending.reason, Some(Reason::MaxDuration | Reason::Stopped));
        let timed_out = timed && Moment::now().since(self.begun) >= MERELY_BEGUN;
        let beyond = self.walk.beyond_what_takes_long(timed_out);
        let seen = self.resume.seen + self.walk.passed_to(place);
        self.resume.round = !self.second_pass && seen > 1.0 - ROUNDING;
        let (place, seen, looked, report) = if self.resume.round {
            // What comes from here on belongs to another round.
            (place, (seen - 1.0).max(0.0), Looked::default(), Report::default())
        } else if self.second_pass || beyond.is_some() {
            // Not all before it was seen to the end: who goes on goes round, and counts that anew.
            let place = Place { since: 0, ..beyond.unwrap_or(place) };
            (place, 0.0, Looked::default(), self.done_up_to_there())
        } else {
            (place, seen, self.looked_up_to(place), self.done_up_to_there())
        };
        let done = self.resume.round || place.cursor != 0 || report.references_removed > 0;
        let purpose = self.resume.purpose.as_ref().filter(|_| done)?;
        Some(Checkpoint::new(purpose, place, seen, looked, report))
    }

    /// References looked at on a page, or fewer after all.
    pub(super) fn count_looks(&mut self, page: &Page, more: i64) {
        let add = |sum: u64| sum.saturating_add_signed(more);
        self.report.references_checked = add(self.report.references_checked);
        page.checked.set(add(page.checked.get()));
        if page.known {
            self.resume.again = add(self.resume.again);
        }
    }

    /// Of all references that the sweeps of this round looked at: how many are gone when so many of this one go, and
    /// how many there are.
    pub(super) fn looked_at(&self, removed: u64) -> (u64, u64) {
        let Resume { looked, again, .. } = &self.resume;
        looked.and(removed, *again, self.report.references_checked.saturating_sub(*again))
    }

    /// For whoever goes on from there.
    fn looked_up_to(&self, place: Place) -> Looked {
        let Looked { ahead, reach, .. } = self.resume.looked;
        let (removed, all) = self.looked_at(self.report.references_removed);
        let (walked, passed) = (self.walk.passed(), self.walk.passed_to(place));
        // Of pages that were seen before some may be left to whoever comes next.
        let is_left = walked < reach || self.walk.seen_again().any(|page| page.known);
        let unmet = if is_left { ahead.saturating_sub(self.resume.again) } else { 0 };
        let ahead = unmet.saturating_add(self.walk.seen_again().map(Page::left).sum());
        let reach = (walked.max(reach) - passed).max(0.0);
        Looked { removed, checked: all.saturating_sub(ahead), ahead, reach }
    }

    /// Figures of what this run and those before it have done with.
    fn done_up_to_there(&self) -> Report {
        let mut report = self.resume.before.clone();
        report.add(&self.report);
        for page in self.walk.seen_again() {
            // What was kept may be nonsense.
            let take = |sum: &mut u64, n: u64| *sum = sum.saturating_sub(n);
            take(&mut report.tags_seen, page.seen.get());
            take(&mut report.tags_aged, page.aged.get());
            take(&mut report.tags_skipped, page.skipped.get());
            take(&mut report.tags_unchanged, page.unchanged.get());
            take(&mut report.references_checked, page.left());
        }
        report
    }

    /// Nothing more is done about something of this page.
    pub(super) fn give_up(&mut self, page: &Rc<Page>) {
        if !page.given_up.replace(true) {
            self.resume.unfinished.push(Rc::clone(page));
        }
    }

    /// The same, and all because it has to wait.
    pub(super) fn postpone(&mut self, page: &Rc<Page>) {
        if !page.postponed.replace(true) {
            self.resume.unfinished.push(Rc::clone(page));
        }
    }

    /// Nothing more is done about these references.
    pub(super) fn leave(&mut self, batch: Batch) {
        self.give_up(&batch.visit.tag.page);
        self.let_go(batch.visit);
    }

    /// What is left to do about a tag is for a sweep that has the time to look twice.
    pub(super) fn put_off(&mut self, visit: Rc<Visit>) {
        self.postpone(&visit.tag.page);
        self.let_go(visit);
    }

    /// The last words to the server: how far we came, or that there is nothing left to do. False when
    /// they are said.
    pub(super) fn say_farewell(&mut self) -> bool {
        if self.tidy() {
            return true;
        }
        let silent = self.options.dry_run || self.contender.lease().is_none();
        if silent || std::mem::replace(&mut self.resume.farewell, true) {
            return false;
        }
        let kept = match self.ending.reason {
            None => Some(None),
            Some(_) => self.checkpoint().map(|kept| Some(kept.to_bytes())),
        };
        if let Some(kept) = kept {
            self.queue.ask(Ask::Checkpoint(kept));
        }
        true
    }
}
