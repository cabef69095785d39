//! Looks at entries: which references are stale, and whether members lead to entries at all.

use crate::clock::Moment;
use crate::error::{Error, Result, plain, printable};
use crate::lock::companion;
use crate::reply::{checked, understood};
use crate::sweep::batch::Batch;
use crate::sweep::judge;
use crate::sweep::options::OnAged;
use crate::sweep::report::Sample;
use crate::sweep::round::Ask;
use crate::sweep::run::answers::number;
use crate::sweep::run::ledger::grow;
use crate::sweep::run::{Later, Running};
use redis::Value;
use std::time::Duration;

/// References that a dry run shows.
const SAMPLES: usize = 20;

/// How soon a tag is read again that could not be judged before the mapping was proven.
const PROVEN_SOON: Duration = Duration::from_millis(100);

/// For how long what was held back for the proof of the mapping stays fresh.
pub(super) const HELD_FRESH: Duration = Duration::from_secs(1);

impl Running<'_> {
    /// How many entries exist.
    pub(super) fn looked(&mut self, batch: Batch, replies: Vec<Value>) -> Result<()> {
        if batch.visit.reread.get() {
            self.let_go(batch.visit);
            return Ok(());
        }
        if let Some(Err(e)) = replies.iter().cloned().map(checked).find(Result::is_err) {
            self.not_to_be_seen(batch, e);
            return Ok(());
        }
        let counts = replies.into_iter().map(|reply| understood(checked(reply)?));
        let counts = counts.collect::<Result<Vec<u64>>>()?;
        let total = self.count_checked(&batch);
        if let Err(e) = self.prove(&counts) {
            self.leave(batch);
            return Err(e);
        }
        let live = counts.iter().copied().max().unwrap_or(total);
        let visit = &batch.visit;
        if visit.aged.get() && self.options.on_aged == OnAged::Invalidate && live > 0 {
            self.invalidate(batch, live);
            return Ok(());
        }
        visit.alive.set(visit.alive.get() || live == total);
        if self.options.dry_run {
            self.foresee_or_sift(batch, total - live);
        } else if live == total {
            self.vouch(batch);
        } else if live == 0 {
            self.found_absent(batch);
        } else {
            let group = judge::group(live.min(total - live) as usize, total as usize);
            self.queue.ask_first(Ask::Sift(batch, group));
        }
        Ok(())
    }

    /// Counts references that were looked at; a repeated visit only for itself.
    fn count_checked(&mut self, batch: &Batch) -> u64 {
        let (visit, total) = (&batch.visit, batch.members.len() as u64);
        if !visit.tag.looked {
            self.count_looks(&visit.tag.page, total as i64);
        }
        grow(&visit.checked, total);
        total
    }

    /// Entries of which we are not let see some: each is looked for by itself, and what cannot be seen
    /// stays.
    fn not_to_be_seen(&mut self, batch: Batch, e: Error) {
        let key = printable(&batch.visit.tag.key);
        self.warn_of("entries of some tags cannot be looked for", &format!("of {key}: {e}"));
        batch.visit.alive.set(true);
        if self.proof.is_settled() {
            self.count_checked(&batch);
            self.queue.ask_first(Ask::Sift(batch, 1));
        } else if batch.members.len() > 1 {
            for at in 0..batch.members.len() {
                let one = Batch::of(&batch.visit, batch.members.select(|i| i == at));
                self.queue.ask(Ask::Look(one));
            }
            self.let_go(batch.visit);
        } else if !batch.visit.tag.again {
            // Only once the mapping is proven is it known which entry to look for.
            self.read_again(batch.visit, PROVEN_SOON);
        } else {
            self.count_checked(&batch);
            self.report.references_skipped += 1;
            self.ending.unseen.get_or_insert(e.advice("grant it, or give entry_prefix"));
            self.let_go(batch.visit);
        }
    }

    /// Takes in how many entries exist under each mapping that is still open.
    fn prove(&mut self, counts: &[u64]) -> Result<()> {
        let Some(prefix) = self.proof.learn(counts)? else { return Ok(()) };
        if self.report.entry_prefix.is_some() {
            return Ok(());
        }
        self.report.entry_prefix = Some(String::from_utf8_lossy(prefix).into_owned());
        let now = Moment::now();
        for (since, batch) in self.proof.take_held() {
            if now.since(since) <= HELD_FRESH {
                self.condemn(batch);
            } else {
                self.read_again(batch.visit, Duration::ZERO);
            }
        }
        if let (Some(proof), false) = (self.proof.fingerprint(), self.options.dry_run) {
            // A later run may find a cache whose entries have all expired, and trust this one.
            let key = companion(&self.contender.keys().lock, "mapping");
            self.queue.ask(Ask::Remember { key, proof });
        }
        Ok(())
    }

    /// Of a dry run: some are looked at one by one, to be shown.
    fn foresee_or_sift(&mut self, batch: Batch, stale: u64) {
        if stale > 0 && self.report.samples.len() < SAMPLES {
            self.queue.ask_first(Ask::Sift(batch, 1));
        } else {
            self.foresee(batch, stale);
        }
    }

    /// Counts what a sweep would do, and stops where it would.
    pub(super) fn foresee(&mut self, batch: Batch, stale: u64) {
        if self.is_ending() {
            return self.let_go(batch.visit);
        }
        if stale > 0 {
            self.proof.foresee(&batch);
        }
        let removed = self.foresee_limits(stale);
        self.report.references_removed += removed;
        let visit = &batch.visit;
        grow(&visit.removed, removed);
        self.let_go(batch.visit);
    }

    /// Which entries exist; those of a mixed group are looked for one by one.
    pub(super) fn sifted(&mut self, batch: Batch, group: usize, replies: &[Value]) {
        let Batch { visit, members, .. } = batch;
        // Of an error nothing follows: the reference stays.
        let found = |i: usize| replies.get(i / group).and_then(number);
        let size = |i: usize| (members.len() - i / group * group).min(group) as u64;
        let is_mixed = |i: usize| found(i).is_some_and(|n| n > 0 && n < size(i));
        let of = |members| Batch::of(&visit, members);
        let absent = of(members.select(|i| found(i) == Some(0)));
        let mixed = of(members.select(is_mixed));
        let alive = of(members.select(|i| found(i) != Some(0) && !is_mixed(i)));
        visit.alive.set(visit.alive.get() || !alive.members.is_empty());
        drop(visit);
        match mixed.members.is_empty() {
            true => self.let_go(mixed.visit),
            false => self.queue.ask_first(Ask::Sift(mixed, 1)),
        }
        if self.options.dry_run {
            let (stale, all) = (absent.members.len() as u64, absent.visit.checked.get());
            self.sample(&absent, || {
                format!("the entry is gone, as of {stale} of the tag's {all} references seen")
            });
            self.foresee(absent, stale);
        } else {
            self.found_absent(absent);
        }
        self.vouch(alive);
    }

    /// References whose entries were seen absent: they are condemned, or wait for a second look.
    fn found_absent(&mut self, batch: Batch) {
        if batch.members.is_empty() {
            self.let_go(batch.visit);
        } else if batch.visit.idle.unclear.get() && self.is_ending() {
            self.put_off(batch.visit);
        } else if batch.visit.idle.unclear.get() {
            let (size, due) = (batch.size(), Moment::now() + self.options.grace);
            self.figures.looks_until(due + self.options.grace.max(self.options.verify));
            self.queue.waiting.put(Later::Absent(batch), size, due);
        } else {
            self.condemn(batch);
        }
    }

    /// Shows a reference that would go, and why it would.
    pub(super) fn sample(&mut self, batch: &Batch, why: impl FnOnce() -> String) {
        let Some(member) = batch.members.iter().next() else { return };
        if self.report.samples.len() < SAMPLES {
            let name = |key: &[u8]| plain(&String::from_utf8_lossy(key));
            let (tag, entry) = (&batch.visit.tag.key, self.proof.in_force().entry(member));
            self.report.samples.push(Sample { tag: name(tag), entry: name(&entry), why: why() });
        }
    }
}
