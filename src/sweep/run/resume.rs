//! Where an earlier sweep was cut short, and where a later one could go on.

use crate::clock::Moment;
use crate::sweep::batch::{Batch, Visit};
use crate::sweep::checkpoint::{Checkpoint, Looked};
use crate::sweep::page::Page;
use crate::sweep::report::{Reason, Report};
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use crate::sweep::walk::Place;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// What checkpoints are made of.
pub(super) struct Resume {
    /// What those of this run are good for; `None` when there can be none.
    purpose: Option<String>,
    pub checkpointed: Moment,
    /// Figures of the sweep that this one goes on from.
    before: Report,
    /// At what it and those before it looked.
    pub looked: Looked,
    /// Pages of which something was given up or postponed: whoever goes on begins with them.
    unfinished: Vec<Rc<Page>>,
    farewell: bool,
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
        Self { purpose, checkpointed: now, before, looked, unfinished, farewell, seen: 0.0, round }
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
        if !self.proof.is_settled() || self.contender.lease().is_none() {
            return None;
        }
        let place = self.walk.settled();
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
            (place, 0.0, self.looked_at(Looked::default(), 0), self.done_up_to_there())
        } else {
            let ahead = self.walk.unsettled().map(|page| seen_again(&page)).sum();
            let looked = self.looked_at(self.resume.looked, ahead);
            (place, seen, looked, self.done_up_to_there())
        };
        let done = self.resume.round || place.cursor != 0 || report.references_removed > 0;
        let purpose = self.resume.purpose.as_ref().filter(|_| done)?;
        Some(Checkpoint::new(purpose, place, seen, looked, report))
    }

    /// At what this run looked, and those before it; so much of that is seen again.
    fn looked_at(&self, before: Looked, ahead: u64) -> Looked {
        let Report { references_removed, references_checked, .. } = self.report;
        before.and(references_removed, references_checked.saturating_sub(ahead), ahead)
    }

    /// Figures of what this run and those before it have done with.
    fn done_up_to_there(&self) -> Report {
        let mut report = self.resume.before.clone();
        report.add(&self.report);
        for page in self.walk.unsettled() {
            // What was kept may be nonsense.
            let take = |sum: &mut u64, n: &Cell<u64>| *sum = sum.saturating_sub(n.get());
            take(&mut report.tags_seen, &page.seen);
            take(&mut report.tags_aged, &page.aged);
            take(&mut report.tags_skipped, &page.skipped);
            take(&mut report.tags_unchanged, &page.unchanged);
            take(&mut report.references_checked, &Cell::new(seen_again(&page)));
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
        self.give_up(&batch.visit.page);
        self.let_go(batch.visit);
    }

    /// What is left to do about a tag is for a sweep that has the time to look twice.
    pub(super) fn put_off(&mut self, visit: Rc<Visit>) {
        self.postpone(&visit.page);
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

/// References of a page that whoever begins with it looks at once more.
fn seen_again(page: &Page) -> u64 {
    page.checked.get().saturating_sub(page.removed.get())
}
