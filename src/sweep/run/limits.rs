//! What the operator's limits allow to go: not too many, and not too large a share of all.

use crate::clock::Moment;
use crate::sweep::batch::Batch;
use crate::sweep::judge;
use crate::sweep::report::Reason;
use crate::sweep::round::Ask;
use crate::sweep::run::looks::HELD_FRESH;
use crate::sweep::run::{Later, Running};
use std::time::Duration;

/// References that are to go.
#[derive(Debug)]
pub(super) enum Doomed {
    /// Their entries were seen absent.
    Stale(Batch),
    /// Their tag is aged; of their entries, so many are there.
    Aged(Batch, u64),
}

impl Doomed {
    pub fn batch(&self) -> &Batch {
        match self {
            Self::Stale(batch) | Self::Aged(batch, _) => batch,
        }
    }

    pub fn into_batch(self) -> Batch {
        match self {
            Self::Stale(batch) | Self::Aged(batch, _) => batch,
        }
    }
}

/// What the limits were asked for.
#[derive(Debug)]
pub(super) struct Limits {
    /// References that are to go, and how many of them may.
    wanted: u64,
    allowed: u64,
    /// Enough was looked at to tell what share would go, or it does not matter.
    told: bool,
    /// Of a dry run: what a sweep would hold back made too large a share.
    pub refrains: bool,
}

impl Limits {
    pub fn new(max_share: f64) -> Self {
        Self { wanted: 0, allowed: 0, told: max_share >= 1.0, refrains: false }
    }

    /// Whether more is to go than may.
    pub fn is_exhausted(&self) -> bool {
        self.wanted > self.allowed
    }

    /// So many were to go, and did not.
    pub fn take_back(&mut self, references: u64) {
        self.wanted = self.wanted.saturating_sub(references);
        self.allowed = self.allowed.saturating_sub(references);
    }
}

impl Running<'_> {
    /// Lets references go as far as the limits allow; while it cannot be told what share that would be, they
    /// are held back.
    pub(super) fn admit(&mut self, doomed: Doomed) {
        self.limits.wanted += doomed.batch().members.len() as u64;
        if self.limits.told { self.let_pass(doomed) } else { self.queue.hold(doomed) }
    }

    /// What was held back, once it can be told whether it is too large a share, or fills the memory: then it is
    /// judged by what was seen. A dry run, which counts it, goes by the same moment.
    pub(super) fn release_held(&mut self) {
        let foresees = self.options.dry_run && self.proof.lets_pass() && self.limits.wanted > 0;
        let waits = !self.queue.holds_nothing() || foresees;
        if self.limits.told || !waits || !(self.tells() || self.queue.is_full()) {
            return;
        }
        self.limits.told = true;
        let held = self.queue.take_held();
        if self.is_too_large_a_share() {
            self.limits.refrains = true;
            self.stop(Reason::MaxShare);
        }
        let now = Moment::now();
        for (since, doomed) in held {
            match doomed {
                Doomed::Aged(batch, _) if self.is_outdated(since, now) => self.age_again(batch),
                doomed => self.let_pass(doomed),
            }
        }
    }

    /// Whether nobody can tell by now that an aged tag was not used since.
    fn is_outdated(&self, since: Moment, now: Moment) -> bool {
        now.since(since) > HELD_FRESH && !self.options.dry_run && !self.is_ending()
    }

    /// An aged tag that was held back for long is read anew: it may have been used.
    fn age_again(&mut self, batch: Batch) {
        let references = batch.members.len() as u64;
        self.limits.wanted = self.limits.wanted.saturating_sub(references);
        self.read_again(batch.visit, Duration::ZERO);
    }

    fn let_pass(&mut self, doomed: Doomed) {
        if !self.is_ending() && self.is_too_large_a_share() {
            self.stop(Reason::MaxShare);
        }
        let all = doomed.batch().members.len() as u64;
        let allowed = if self.is_ending() { 0 } else { self.take(all) };
        if allowed < all {
            self.give_up(&doomed.batch().visit.tag.page);
        }
        let cut = |batch: Batch| Batch {
            members: if allowed < all {
                batch.members.select(|i| (i as u64) < allowed)
            } else {
                batch.members
            },
            ..batch
        };
        match doomed {
            _ if allowed == 0 => self.let_go(doomed.into_batch().visit),
            Doomed::Stale(batch) => self.queue.condemned.push_back(cut(batch)),
            Doomed::Aged(batch, live) => {
                let (batch, live) = (cut(batch), live.min(allowed));
                self.queue.ask(Ask::Invalidate { batch, live, again: false });
            }
        }
        if allowed < all && !self.is_ending() {
            self.reach_limit();
        }
    }

    /// Takes as many of so many removals as are allowed.
    fn take(&mut self, more: u64) -> u64 {
        let most = self.options.max_removals.unwrap_or(u64::MAX);
        let allowed = more.min(most.saturating_sub(self.limits.allowed));
        self.limits.allowed += allowed;
        allowed
    }

    /// Of a dry run: how many of so many more removals the limits allow. Stops where a sweep would.
    pub(super) fn foresee_limits(&mut self, more: u64) -> u64 {
        self.limits.wanted += more;
        let judges = self.limits.told && self.proof.lets_pass();
        if judges && self.is_too_large_a_share() {
            self.stop(Reason::MaxShare);
            return 0;
        }
        let allowed = self.take(more);
        if judges && self.limits.is_exhausted() {
            self.stop(Reason::MaxRemovals);
        }
        allowed
    }

    /// Whether a larger share would go than allowed, of all that was looked at since a sweep was complete: where one
    /// is cut short there may be more to remove than elsewhere.
    pub(super) fn is_too_large_a_share(&self) -> bool {
        let (removed, checked) = self.looked_at(self.limits.wanted);
        judge::exceeds_share(removed, checked, self.options.max_share)
    }

    /// Whether so much was looked at that a share says something: a thousand references, or all there are.
    pub(super) fn tells(&self) -> bool {
        let is_unread = |later: &Later| matches!(later, Later::Tag(..));
        let is_all =
            || self.walk.is_done() && self.is_idle() && !self.queue.waiting.iter().any(is_unread);
        judge::is_sample(self.report.references_checked) || is_all()
    }

    /// No more removals than the operator allows: what may go goes, and then it ends.
    fn reach_limit(&mut self) {
        let condemned = std::mem::take(&mut self.queue.condemned);
        let is_allowed = |ask: &Ask| matches!(ask, Ask::Invalidate { .. });
        let (allowed, others) =
            self.queue.take_asks().into_iter().partition::<Vec<_>, _>(is_allowed);
        others.into_iter().for_each(|ask| self.queue.ask(ask));
        self.stop(Reason::MaxRemovals);
        allowed.into_iter().for_each(|ask| self.queue.ask(ask));
        condemned.into_iter().for_each(|batch| self.prune(batch));
    }
}
