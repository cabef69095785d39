//! Removals: within limits, confirmed by the server, verified, and taken back.

use crate::clock::Moment;
use crate::connect::may_pass;
use crate::error::{Error, Result, printable};
use crate::reply::{checked, senseless, understood};
use crate::strings::Strings;
use crate::sweep::batch::{Batch, Twice, Visit};
use crate::sweep::proof::Proof;
use crate::sweep::report::Reason;
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use crate::sweep::run::answers::first;
use crate::sweep::run::ending::STOPPING;
use crate::sweep::run::ledger::grow;
use crate::sweep::run::limits::Doomed;
use crate::sweep::run::wire::LAST_TRY;
use redis::Value;
use std::time::Duration;

/// How soon references are put back that the server did not let us put back.
const RESTORE_AGAIN: Duration = Duration::from_millis(100);

/// How old the idle time of a tag may be when its references go, where the script cannot ask for it again:
/// then their entries are looked for a second time, a grace later.
const IDLE_FRESH: Duration = Duration::from_millis(60);

impl Running<'_> {
    /// Sends references to the confirming script, as soon as the mapping is proven and as far as the
    /// operator's limits allow.
    pub(super) fn condemn(&mut self, batch: Batch) {
        if self.is_ending() {
            return self.leave(batch);
        }
        let Some(batch) = self.proof.admit(batch) else { return };
        self.admit(Doomed::Stale(batch));
    }

    pub(super) fn pruned(&mut self, batches: Vec<Batch>, replies: Vec<Value>) -> Result<()> {
        let reply = match checked(first(replies)) {
            Ok(reply) => reply,
            Err(e) => {
                // Somebody in between may say so after the script has run.
                for batch in batches {
                    self.give_up(&batch.visit.tag.page);
                    self.may_be_gone(batch);
                }
                return Err(e);
            }
        };
        let Some(items) = self.unless_fenced(reply)? else {
            batches.into_iter().for_each(|batch| self.let_go(batch.visit));
            return Ok(());
        };
        let (mut refused, mut gone) = (Ok(()), Vec::new());
        for (batch, item) in batches.into_iter().zip(items) {
            batch.visit.touch();
            match item {
                Value::Int(0) => {
                    self.limits.take_back(batch.members.len() as u64);
                    self.vouch(batch);
                }
                Value::Int(-1) => {
                    let absent = batch.members.len() as u64;
                    self.used_meanwhile(batch, absent);
                }
                Value::Int(-2) => self.of_another_type(batch),
                Value::Array(figures) => {
                    let done = self.removed(batch, figures, &mut gone);
                    refused = refused.and(done);
                }
                other => {
                    let told = self.not_removed(batch, other);
                    refused = refused.and(told);
                }
            }
        }
        self.verify_later(gone);
        refused
    }

    /// The server refused to remove these, and may not in a moment.
    fn not_removed(&mut self, batch: Batch, told: Value) -> Result<()> {
        let key = batch.visit.tag.key.clone();
        let told = checked(told).map(drop).map_err(|e| e.key(&key));
        match &told {
            Err(e) if may_pass(e) && !self.is_ending() => self.queue.condemned.push_back(batch),
            _ => self.leave(batch),
        }
        told
    }

    /// Of references that may have been removed, nobody said so: they are verified like all.
    pub(super) fn may_be_gone(&mut self, batch: Batch) {
        let due = Moment::now() + self.to_verification();
        self.queue.put_unverified(vec![(batch, Twice::Always)], due);
    }

    /// Counts what the script removed; it is `gone`, and to be verified.
    fn removed(&mut self, batch: Batch, figures: Vec<Value>, gone: &mut Vec<Batch>) -> Result<()> {
        let figures = figures.into_iter().map(understood).collect::<Result<Vec<i64>>>()?;
        let [bare, removed, stayed @ ..] = figures.as_slice() else {
            return Err(senseless());
        };
        let visit = &batch.visit;
        let removed = match removed.unsigned_abs() {
            // Done the first time, when the answer was lost.
            0 if batch.asked => (batch.members.len() - stayed.len()) as u64,
            removed => removed,
        };
        self.report.references_removed += removed;
        self.limits.take_back((batch.members.len() as u64).saturating_sub(removed));
        grow(&visit.removed, removed);
        grow(&visit.tag.page.removed, removed);
        if visit.reread.get() && !visit.tag.looked {
            // Whoever reads the tag again does not see them any more.
            self.count_looks(&visit.tag.page, removed as i64);
        }
        visit.gone.set(visit.gone.get() || (*bare == 1 && removed > 0));
        let ambiguous = self.proof.is_given() && stayed.iter().any(|position| *position < 0);
        let stays = |i: usize| {
            let i = i as i64;
            stayed.contains(&i) || stayed.contains(&(-i - 1))
        };
        let (went, alive) = match stayed {
            [] => (batch.members, Strings::default()),
            _ => batch.members.split(|i| !stays(i)),
        };
        self.vouch(Batch::of(visit, alive));
        match removed > 0 && !went.is_empty() {
            true => gone.push(Batch { members: went, ..batch }),
            false => self.let_go(batch.visit),
        }
        if ambiguous { Err(Proof::ambiguous()) } else { Ok(()) }
    }

    /// How long what is removed now waits.
    fn to_verification(&self) -> Duration {
        match self.ending.called_off {
            true => self.options.verify.min(STOPPING),
            false => self.options.verify,
        }
    }

    fn verify_later(&mut self, gone: Vec<Batch>) {
        let (now, wait) = (Moment::now(), self.to_verification());
        let removed: Vec<_> = gone.into_iter().map(|batch| self.twice(batch, now)).collect();
        let is_twice = |(_, twice): &(Batch, Twice)| *twice == Twice::Always;
        if removed.iter().any(is_twice) && !self.ending.called_off {
            self.figures.looks_until(now + self.options.grace.max(wait));
        }
        self.queue.put_unverified(removed, now + wait);
    }

    /// What was removed now, and whether it is verified twice.
    fn twice(&self, batch: Batch, now: Moment) -> (Batch, Twice) {
        let twice = match batch.visit.idle.unclear.get() || self.is_old(&batch.visit) {
            true => Twice::Always,
            false => Twice::UnlessStill(now),
        };
        (batch, twice)
    }

    /// Whether a writer may have begun between the idle time that we go by and the script, which could not
    /// ask for it again.
    fn is_old(&self, visit: &Visit) -> bool {
        !self.is_asked_again(visit)
            && visit.idle.asked.get().is_none_or(|at| Moment::now().since(at) > IDLE_FRESH)
    }

    /// The items of a fenced script's answer, unless it refused because the lock is not ours.
    fn unless_fenced(&mut self, reply: Value) -> Result<Option<Vec<Value>>> {
        let Value::Array(items) = reply else {
            return Err(senseless());
        };
        if matches!(items.first(), Some(Value::BulkString(word)) if word == b"FENCED") {
            self.ending.fenced = true;
            self.lost();
            return Ok(None);
        }
        Ok(Some(items))
    }

    pub(super) fn lost(&mut self) {
        self.contender.forget();
        self.stop(Reason::Lost);
    }

    /// Deletes the entries of an aged tag, of which so many are there; its references go after them.
    pub(super) fn invalidate(&mut self, batch: Batch, live: u64) {
        if self.options.dry_run {
            let (all, before) = (batch.members.len() as u64, self.report.references_removed);
            self.sample(&batch, || {
                format!(
                    "the tag was not used for too long; {live} of these {all} entries go with it"
                )
            });
            self.foresee(batch, all);
            self.report.entries_invalidated += live.min(self.report.references_removed - before);
            return;
        }
        if self.is_ending() {
            return self.leave(batch);
        }
        self.admit(Doomed::Aged(batch, live));
    }

    pub(super) fn invalidated(
        &mut self,
        batch: Batch,
        live: u64,
        again: bool,
        replies: Vec<Value>,
    ) -> Result<()> {
        let reply = match checked(first(replies)) {
            Ok(reply) => reply,
            Err(e) => {
                self.leave(batch);
                return Err(e);
            }
        };
        let Some(items) = self.unless_fenced(reply)? else {
            self.let_go(batch.visit);
            return Ok(());
        };
        match items.first() {
            Some(Value::Int(deleted @ 0..)) => {
                // Deleted the first time, when the answer was lost.
                let deleted = if again { live } else { deleted.unsigned_abs() };
                self.report.entries_invalidated += deleted;
                self.prune(batch);
            }
            Some(Value::Int(-1)) => {
                let absent = (batch.members.len() as u64).saturating_sub(live);
                self.used_meanwhile(batch, absent);
            }
            _ => self.of_another_type(batch),
        }
        Ok(())
    }

    /// Sends references to the confirming script, also when nothing else is removed any more.
    pub(super) fn prune(&mut self, batch: Batch) {
        if !self.is_ending() {
            return self.queue.condemned.push_back(batch);
        }
        if self.contender.lease().is_none() {
            return self.leave(batch);
        }
        let noted = self.noted(vec![batch]);
        self.queue.ask(Ask::Prune(noted));
    }

    /// A tag that was used since it was read is read again, once; so many of these references lead nowhere.
    fn used_meanwhile(&mut self, batch: Batch, absent: u64) {
        self.limits.take_back(batch.members.len() as u64);
        if !batch.visit.tag.again && !self.is_ending() {
            return self.read_again(batch.visit, self.options.grace);
        }
        self.report.references_skipped += absent;
        self.leave(batch);
    }

    fn of_another_type(&mut self, batch: Batch) {
        self.limits.take_back(batch.members.len() as u64);
        let known = batch.visit.strange.replace(true);
        self.report.tags_skipped += u64::from(!known);
        self.report.references_skipped += batch.members.len() as u64;
        self.let_go(batch.visit);
    }

    pub(super) fn verified(&mut self, removed: Vec<(Batch, Twice)>, reply: Value) {
        let clean = reply == Value::Int(0);
        let now = Moment::now();
        for (batch, twice) in removed {
            if let Some(span) = self.verified_again_in(&batch.visit, twice) {
                self.queue.put_unverified(vec![(batch.clone(), Twice::Never)], now + span);
            }
            if clean {
                self.let_go(batch.visit);
            } else {
                // Some entry exists, or it cannot be told: the script looks at each.
                self.queue.ask_first(Ask::Restore(batch));
            }
        }
    }

    /// When it is verified once more, if a writer may have come between what proved that a tag was left alone and
    /// the removal, unseen: then it has the grace for its entry, too.
    fn verified_again_in(&self, visit: &Visit, twice: Twice) -> Option<Duration> {
        let (grace, read) = (self.options.grace, visit.idle.asked.get());
        let rest = grace.saturating_sub(self.options.verify);
        let span = match twice {
            Twice::Never => Duration::ZERO,
            Twice::Always => rest,
            Twice::Recovered => grace,
            Twice::UnlessStill(removed) => {
                let still = read.is_some_and(|read| self.was_untouched(visit, read, removed));
                if still { Duration::ZERO } else { rest }
            }
        };
        (!span.is_zero() && !self.ending.called_off).then_some(span)
    }

    /// Whether the server kept idle times from when we read a tag until after something was removed from it; and where
    /// the script could not ask for its idle time again, nobody wrote to any tag meanwhile.
    fn was_untouched(&self, visit: &Visit, read: Moment, removed: Moment) -> bool {
        self.idle.was_still(read, removed)
            && (self.is_asked_again(visit) || self.idle.was_unwritten(read, removed))
    }

    /// Whether the script asks for the idle time of a tag once more; without a grace none is needed.
    fn is_asked_again(&self, visit: &Visit) -> bool {
        visit.idle.wanted.get().is_some() || self.options.grace.is_zero()
    }

    pub(super) fn restored(&mut self, batch: Batch, replies: Vec<Value>) -> Result<()> {
        let reply = match checked(first(replies)) {
            Ok(reply) => reply,
            Err(e) => {
                self.not_restored(batch, e);
                return Ok(());
            }
        };
        let (back, deleted) = understood::<(i64, u64)>(reply)?;
        batch.visit.touch();
        self.ending.refused_since = None;
        self.report.entries_invalidated += deleted;
        if let Ok(back @ 1..) = u64::try_from(back) {
            self.report.references_restored += back;
            let visit = &batch.visit;
            for removed in [&visit.removed, &visit.tag.page.removed] {
                removed.set(removed.get().saturating_sub(back));
            }
            if visit.reread.get() && !visit.tag.looked {
                self.count_looks(&visit.tag.page, -(back as i64));
            }
            visit.gone.set(false);
        } else if back < 0 {
            self.warn("a tag key changed its type during the sweep");
        }
        self.let_go(batch.visit);
        Ok(())
    }

    /// The server does not let us put references back: it is asked again as long as the lock would live, or
    /// a moment if somebody waits for our end. Then all that is left is to say so.
    fn not_restored(&mut self, batch: Batch, refusal: Error) {
        let now = Moment::now();
        let refused_since = *self.ending.refused_since.get_or_insert(now);
        let patience = if self.ending.called_off { LAST_TRY } else { self.options.lock_ttl };
        if now.since(refused_since) < patience {
            let again = vec![(batch, Twice::Never)];
            return self.queue.put_unverified(again, now + RESTORE_AGAIN);
        }
        self.warn_of("references of some tags may be missing", &printable(&batch.visit.tag.key));
        let failure = refusal
            .key(&batch.visit.tag.key)
            .advice("references that were removed could not be put back; rebuild this tag");
        // Whatever else there is to complain of, this is worse.
        self.ending.failure = Some(failure);
        // A note of them, if there is one, stays for the next sweep.
        self.slips.unrestored.extend(batch.slip.clone());
        self.let_go(batch.visit);
        self.stop(Reason::Error);
    }

    /// After an end that came too early: what may have been removed and was not looked for again.
    pub(super) fn warn_of_unverified(&mut self) {
        let owed = self.queue.take_asks().into_iter().filter(Ask::is_owed);
        let waiting = self.queue.unverified.drain().flatten().map(|(batch, _)| batch);
        let batches: Vec<Batch> = owed.flat_map(Ask::into_batches).chain(waiting).collect();
        let total: usize = batches.iter().map(|batch| batch.members.len()).sum();
        if let Some(batch) = batches.first() {
            let key = printable(&batch.visit.tag.key);
            let told = format!("up to {total} references were removed and not verified");
            self.warn_of(&told, &format!("of {key}"));
        }
        for batch in batches {
            self.slips.unrestored.extend(batch.slip);
            self.let_go(batch.visit);
        }
    }
}
