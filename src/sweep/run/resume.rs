//! Where an earlier sweep was cut short, and where a later one could go on.

use crate::clock::Moment;
use crate::sweep::batch::Batch;
use crate::sweep::checkpoint::Checkpoint;
use crate::sweep::page::Page;
use crate::sweep::report::Report;
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use std::cell::Cell;
use std::rc::Rc;

/// What checkpoints are made of.
pub(super) struct Resume {
    /// What those of this run are good for; `None` when there can be none.
    purpose: Option<String>,
    pub checkpointed: Moment,
    /// Figures of the sweep that this one goes on from.
    before: Report,
    /// Pages of which something was given up: whoever goes on begins with them.
    given_up: Vec<Rc<Page>>,
    farewell: bool,
    /// Share of the table that was seen before this run, see [`Checkpoint::seen`].
    seen: f64,
    /// With those before it, this run has gone round the whole table.
    pub round: bool,
}

impl Resume {
    pub fn new(purpose: Option<String>, now: Moment) -> Self {
        let (before, given_up) = (Report::default(), Vec::new());
        let (farewell, round) = (false, false);
        Self { purpose, checkpointed: now, before, given_up, farewell, seen: 0.0, round }
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
        (self.resume.before, self.resume.seen) = (checkpoint.report, checkpoint.seen);
        self.report.removed_before = self.resume.before.references_removed;
    }

    /// Where another sweep could go on, with what was done before that; `None` while nothing was done.
    pub(super) fn checkpoint(&mut self) -> Option<Checkpoint> {
        if self.second_pass || !self.proof.is_settled() || self.contender.lease().is_none() {
            return None;
        }
        let purpose = self.resume.purpose.as_ref()?;
        let place = self.walk.settled();
        let seen = self.resume.seen + self.walk.passed_to(place);
        self.resume.round = seen >= 1.0;
        if self.resume.round {
            // What comes from here on belongs to another round.
            return Some(Checkpoint::new(purpose, place, seen - 1.0, Report::default()));
        }
        let mut report = self.resume.before.clone();
        report.add(&self.report);
        for page in self.walk.unsettled() {
            // What was kept may be nonsense.
            let take = |sum: &mut u64, n: &Cell<u64>| *sum = sum.saturating_sub(n.get());
            take(&mut report.tags_seen, &page.seen);
            take(&mut report.tags_aged, &page.aged);
            take(&mut report.tags_skipped, &page.skipped);
            take(&mut report.tags_unchanged, &page.unchanged);
            take(&mut report.references_checked, &page.checked);
        }
        let done = place.cursor != 0 || report.references_removed > 0;
        done.then(|| Checkpoint::new(purpose, place, seen, report))
    }

    /// Nothing more is done about something of this page.
    pub(super) fn give_up(&mut self, page: &Rc<Page>) {
        if !page.given_up.replace(true) {
            self.resume.given_up.push(Rc::clone(page));
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
