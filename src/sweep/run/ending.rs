//! How a run ends: why, and what is still owed then.

use super::{Later, Running};
use crate::clock::Moment;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::sweep::batch::Batch;
use crate::sweep::judge::twice_takes;
use crate::sweep::report::Reason;
use crate::sweep::round::Ask;
use std::time::Duration;

/// Longest time from a request to stop to the last verification.
pub(super) const STOPPING: Duration = Duration::from_millis(500);

/// Keys that we may have left ourselves where there is nothing else.
const OURS: u64 = 16;

/// Why a run ends; it is under way as long as there is no reason.
#[derive(Debug, Default)]
pub(super) struct Ending {
    pub reason: Option<Reason>,
    /// Since when there is one, or somebody waits for the end.
    pub since: Option<Moment>,
    /// The caller wants it.
    pub called_off: bool,
    /// The server refused a command, for the lock was another's.
    pub fenced: bool,
    /// The error of it, while what was removed is verified.
    pub failure: Option<Error>,
    /// Since when the server does not let us put references back.
    pub refused_since: Option<Moment>,
    /// Why entries could not be looked for, if some could not.
    pub unseen: Option<Error>,
}

impl Running<'_> {
    pub(super) fn is_ending(&self) -> bool {
        self.ending.reason.is_some()
    }

    /// The caller has said that it is to end, also when it is ending already.
    pub(super) fn call_off(&mut self) {
        if self.ending.called_off {
            return;
        }
        self.ending.called_off = true;
        self.stop(Reason::Stopped);
        self.ending.since = Some(Moment::now());
        self.queue.unverified.hurry(Moment::now() + STOPPING);
    }

    /// Nothing is removed any more; what was removed is still verified.
    pub(super) fn stop(&mut self, reason: Reason) {
        if self.is_ending() {
            return;
        }
        (self.ending.reason, self.ending.since) = (Some(reason), Some(Moment::now()));
        self.warn_of_haste();
        self.drop_what_waits();
        self.figures.looks_no_longer();
    }

    /// Where every sweep is as short as this one, tags that must be looked at twice keep what is stale in them.
    fn warn_of_haste(&mut self) {
        let needed = twice_takes(self.options.grace, self.idle.runs());
        let too_short = self.options.max_duration.is_some_and(|most| most < needed);
        let is_tag = |later: &Later| matches!(later, Later::Tag(..) | Later::Absent(_));
        if too_short && self.queue.waiting.iter().any(is_tag) {
            self.warn(&format!(
                "tags that must be looked at twice take {needed:?}, more than the time allowed: what is \
                 stale in them stays"
            ));
        }
    }

    /// Who waits for a sweep is to know what it waited for.
    pub(super) fn warn_of_full_memory(&mut self) {
        let (still, took) = (self.figures.stood_still, Moment::now().since(self.begun));
        if still > Duration::from_secs(1) && 4 * still > took {
            self.warn(&format!(
                "it stood still for {:.1} s of {:.1}, for what waits for its grace or its verification took all the \
                 memory: with more it is faster",
                still.as_secs_f64(),
                took.as_secs_f64()
            ));
        }
    }

    /// What waits for its turn is left as it is, but for what is owed.
    fn drop_what_waits(&mut self) {
        let held = self.proof.take_held().into_iter().map(|(_, batch)| batch);
        let barred = self.queue.take_held().into_iter().map(|(_, doomed)| doomed.into_batch());
        let batches: Vec<Batch> =
            self.queue.condemned.drain(..).chain(held).chain(barred).collect();
        for later in self.queue.waiting.drain() {
            match later {
                Later::Absent(batch) => self.put_off(batch.visit),
                Later::Tag(tag, _) => {
                    self.postpone(&tag.page);
                    self.settle(tag);
                }
                Later::Recover(_) => {}
            }
        }
        let (kept, dropped): (Vec<Ask>, Vec<Ask>) =
            self.queue.take_asks().into_iter().partition(Ask::is_owed);
        kept.into_iter().for_each(|ask| self.queue.ask(ask));
        for batch in dropped.into_iter().flat_map(Ask::into_batches).chain(batches) {
            self.leave(batch);
        }
    }

    /// An error that does not pass ends the sweep; but what is under way is taken in, and what was removed is
    /// verified, if that can be.
    pub(super) fn fail(&mut self, failure: Error) -> Result<()> {
        let reachable = !matches!(failure.kind(), ErrorKind::Unreachable | ErrorKind::Unknown);
        let first = self.ending.failure.take();
        if self.wire.cut_off {
            // Nobody lets us in again: nothing more can be asked.
            return Err(first.unwrap_or(failure));
        }
        if !reachable || !self.link.is_connected() {
            self.lose_flights();
        } else if first.is_some() {
            // More of what is under way may fail for the same reason.
            self.ending.failure = first;
            return Ok(());
        }
        if let Some(first) = first {
            return Err(first);
        }
        if !reachable || self.contender.lease().is_none() {
            return Err(failure);
        }
        self.wire.outage = None;
        self.ending.failure = Some(failure);
        self.stop(Reason::Error);
        Ok(())
    }

    /// At the end: whether what was held back means that the mapping is wrong.
    pub(super) fn verdict(&mut self) -> Result<()> {
        if self.options.dry_run {
            self.foresee_end();
        }
        self.warn_of_nothing();
        match self.proof.refutation() {
            Some(what) if self.options.dry_run => {
                self.foresee_nothing();
                self.warn(&what);
                Ok(())
            }
            Some(what) if !self.is_ending() => Err(Error::new(ErrorKind::Unproven, what)
                .advice("give entry_prefix, or trust_mapping if every entry may be gone")),
            None if !self.is_ending() && !self.proof.is_settled() => {
                self.ending.unseen.take().map_or(Ok(()), Err)
            }
            _ => Ok(()),
        }
    }

    /// A wrong prefix, database or layout looks like a cache without tags. Where an earlier sweep knew the mapping,
    /// it is one.
    fn warn_of_nothing(&mut self) {
        let (seen, skipped) = (self.report.tags_seen, self.report.tags_skipped);
        let whole = !self.is_ending() && self.report.resumed_at == 0.0;
        if seen > 0 || !whole || self.keys <= OURS || self.proof.is_given() {
            return;
        }
        let found = match skipped {
            0 => "no key".to_owned(),
            others => format!("no set among {others} keys"),
        };
        let pattern = printable(&self.pattern);
        self.warn(&format!("{found} matches {pattern}: are prefix, database and layout right?"));
    }

    /// At the end of a dry run: what the limits would have done to a sweep, that could be told only now.
    fn foresee_end(&mut self) {
        let too_large = !self.is_ending() && self.is_too_large_a_share();
        if too_large {
            self.stop(Reason::MaxShare);
        } else if !self.is_ending() && self.limits.is_exhausted() {
            self.stop(Reason::MaxRemovals);
        }
        if too_large || self.limits.refrains {
            self.foresee_nothing();
        }
    }
}
