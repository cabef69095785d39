//! What follows from each answer: the second half of a run.
//!
//! Every answer either settles something or leads to another question; nothing here sends or waits.

use crate::clock::Moment;
use crate::connect::passes;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::lock::companion;
use crate::socket::checked;
use crate::strings::Strings;
use crate::sweep::judge::{self, Evidence, idle_needed};
use crate::sweep::options::OnAged;
use crate::sweep::proof::Proof;
use crate::sweep::records::{Record, Warrant};
use crate::sweep::report::{Reason, Sample};
use crate::sweep::round::{Ask, BATCH, BATCH_BYTES, Batch, Visit};
use crate::sweep::run::{Later, Running, STOPPING};
use crate::sweep::slip::{self, Slip};
use crate::topology::{Facts, bytes_received, cpu_used};
use redis::Value;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// The first so many tags are weighed, and then one in so many.
const WEIGHED: u64 = 64;

/// References that a dry run shows.
const SAMPLES: usize = 20;

/// How old the idle time of a tag may be when its references go, where the script cannot ask for it again:
/// then their entries are looked for a second time, a grace later.
const IDLE_FRESH: Duration = Duration::from_millis(60);

/// How soon a tag is read again that could not be judged before the mapping was proven.
const PROVEN_SOON: Duration = Duration::from_millis(100);

/// For how long what was held back for the proof of the mapping stays fresh.
const HELD_FRESH: Duration = Duration::from_secs(1);

/// A field of a hash, and what it holds.
type Field = (Vec<u8>, Vec<u8>);

impl Running<'_> {
    /// Goes where an answer leads.
    pub(super) fn follow(&mut self, ask: Ask, replies: Vec<Value>, sent: Moment) -> Result<()> {
        if let Some(fault) = replies.iter().find_map(passing_fault) {
            self.ask_again(ask);
            return Err(fault);
        }
        match ask {
            Ask::Page { count, .. } => self.paged(count, replies),
            Ask::Recall(visit) => {
                self.recalled(visit, &replies);
                Ok(())
            }
            Ask::Read { visit, cursor, .. } => self.read(visit, cursor, replies, sent),
            Ask::Look(batch) => self.looked(batch, replies),
            Ask::Sift(batch, group) => {
                self.sifted(batch, group, &replies);
                Ok(())
            }
            Ask::Lifetimes(batch) => {
                self.vouched(batch, &replies);
                Ok(())
            }
            Ask::Prune(batches) => self.pruned(batches, replies),
            Ask::Invalidate(batch) => self.invalidated(batch, replies),
            Ask::Verify { batches, again } => {
                self.verified(batches, again, first(replies));
                Ok(())
            }
            Ask::Restore(batch) => self.restored(batch, replies),
            Ask::Extend => self.extended(replies, sent),
            Ask::Recover { .. } => self.recovered(replies),
            Ask::Tidy { first } => self.tidied_up(first, replies),
            Ask::Untouch(on) => {
                self.untouching &= !on || replies.first() == Some(&Value::Okay);
                Ok(())
            }
            Ask::Checkpoint(_) | Ask::CrossOut(_) | Ask::Remember { .. } => Ok(()),
            Ask::Records(_) | Ask::Forget { .. } => Ok(()),
            Ask::Load => {
                self.loaded(&replies);
                Ok(())
            }
        }
    }

    /// How the server is: whether it saves, and how busy it is. Who may not ask knows neither.
    fn loaded(&mut self, replies: &[Value]) {
        let now = Moment::now();
        let text = |at: usize| match replies.get(at) {
            Some(Value::BulkString(info)) => String::from_utf8_lossy(info),
            _ => "".into(),
        };
        self.idle.observe(&Facts::read(&text(0), 0), now);
        if let Some(used) = cpu_used(&text(1)) {
            self.pace.observe_cpu(used, now);
        }
        if let Some(received) = bytes_received(&text(2)) {
            self.pace.observe_others(received - self.sent as f64, now);
        }
    }

    fn paged(&mut self, count: usize, replies: Vec<Value>) -> Result<()> {
        let reply = checked(first(replies))?;
        let (cursor, keys): (u64, Vec<Vec<u8>>) = understood(reply)?;
        let now = self.server_time();
        let page = self.walk.answered(cursor, now);
        self.memory.paged(keys.iter().map(Vec::len).sum(), count);
        self.report.pages += 1;
        let again = self.second_pass;
        for key in keys {
            let page = Rc::clone(&page);
            self.visit(Visit { key, page, again, looked: again, ..Visit::default() });
        }
        Ok(())
    }

    /// Forgets records of tags that this sweep did not see.
    fn tidied_up(&mut self, first: u32, replies: Vec<Value>) -> Result<()> {
        for (bucket, reply) in (first..).zip(replies.into_iter().step_by(2)) {
            // Another type under our name is not ours to tidy up.
            let Ok(reply) = checked(reply) else { continue };
            let records: Vec<Field> = understood(reply)?;
            let (began, now) = (self.began(), self.server_time());
            let unseen = |record: &[u8]| {
                Record::read(record).is_none_or(|record| record.is_unseen(began, now))
            };
            let fields: Vec<Vec<u8>> = records
                .into_iter()
                .filter(|(_, record)| unseen(record))
                .map(|(field, _)| field)
                .collect();
            if !fields.is_empty() {
                self.ready.push_back(Ask::Forget { bucket, fields });
            }
        }
        Ok(())
    }

    /// Takes up what an earlier sweep removed and did not live to verify.
    fn recovered(&mut self, replies: Vec<Value>) -> Result<()> {
        let reply = match checked(first(replies)) {
            // Where nothing can be noted, a sweep that is to note must not begin.
            Err(e) if self.options.durable => {
                return Err(e.key(&companion(&self.contender.keys().lock, "quarantine")));
            }
            Err(e) => {
                self.warn(&format!("the quarantine of this lock was passed over: {e}"));
                return Ok(());
            }
            Ok(reply) => reply,
        };
        let (cursor, slips): (u64, Vec<Field>) = understood(reply)?;
        let now = Moment::now();
        for (id, bytes) in slips {
            let slip = Slip::new(id, &self.crossed);
            for batch in slip::read(&bytes, &slip) {
                let size = batch.size();
                self.unverified.put((batch, false), size, now);
            }
            self.warn("an earlier sweep was cut off before it had verified; that was made up for");
        }
        if cursor != 0 {
            self.waiting.put(Later::Recover(cursor), 0, now);
        }
        Ok(())
    }

    pub(super) fn visit(&mut self, visit: Visit) {
        if self.stop.is_some() {
            return self.give_up(&visit.page);
        }
        self.visits += 1;
        let weigh = self.visits <= WEIGHED || self.visits.is_multiple_of(WEIGHED);
        let visit = Rc::new(Visit { weigh, aging: self.aging, ..visit });
        if self.options.remember.is_some() && !visit.again {
            return self.ready.push_back(Ask::Recall(visit));
        }
        let count = self.memory.members();
        self.ready.push_back(Ask::Read { visit, cursor: 0, count });
    }

    /// Passes a tag over, if an earlier sweep knew that nothing in it can be stale.
    fn recalled(&mut self, visit: Rc<Visit>, replies: &[Value]) {
        let idle = replies.first().and_then(number);
        let kept = replies.get(1).and_then(kept);
        let references = replies.get(2).and_then(number).unwrap_or(0);
        let prefix = &self.proof.in_force().entry_prefix;
        let warrant = kept.and_then(|record| record.warrant);
        let now = self.server_time();
        let used = |record: Record| idle.is_none_or(|idle| record.is_used_since(idle, now));
        let changed = self.untouching && kept.is_some_and(used);
        let holds = !changed && warrant.is_some_and(|w| w.holds(now, references, prefix));
        visit.known.set(kept);
        visit.idled.set(idle);
        let age = if holds { self.age(&visit, idle) } else { None };
        let invalidates = self.options.on_aged == OnAged::Invalidate
            && judge::aged(age, self.options.max_tag_age);
        if !holds || invalidates {
            visit.record.set(None);
            let count = self.memory.members();
            return self.ready.push_back(Ask::Read { visit, cursor: 0, count });
        }
        self.first_seen(&visit, age);
        self.report.tags_unchanged += 1;
        grow(&visit.page.unchanged, 1);
        if let Some(record) = visit.record.get() {
            visit.record.set(Some(Record { warrant, ..record }));
        }
        self.let_go(visit);
    }

    fn read(
        &mut self,
        visit: Rc<Visit>,
        cursor: u64,
        mut replies: Vec<Value>,
        sent: Moment,
    ) -> Result<()> {
        let (next, members): (u64, Vec<Vec<u8>>) = match checked(last(&mut replies)) {
            Err(e) if e.kind() == ErrorKind::WrongType => {
                if !visit.again {
                    self.report.tags_skipped += 1;
                    grow(&visit.page.skipped, 1);
                }
                return Ok(());
            }
            other => understood(other.map_err(|e| e.key(&visit.key))?)?,
        };
        if visit.reread.get() {
            self.let_go(visit);
            return Ok(());
        }
        self.memory.read(members.iter().map(Vec::len).sum(), members.len());
        if cursor == 0 {
            visit.idled_at.set(Some(sent));
            let idle = visit.idled.get().or_else(|| replies.first().and_then(number));
            if visit.aging && visit.known.get().is_none() {
                visit.known.set(replies.get(1).and_then(kept));
            }
            visit
                .weight
                .set(replies.get(1 + usize::from(visit.aging)).and_then(number).unwrap_or(0));
            if !members.is_empty() || next != 0 {
                let age = self.age(&visit, idle);
                self.first_seen(&visit, age);
            }
            if let Evidence::Young(span) = self.evidence(&visit, idle) {
                self.read_later(&visit, span);
                return Ok(());
            }
        }
        for members in bites(&members) {
            let batch = Batch { visit: Rc::clone(&visit), members, slip: None };
            self.ready.push_back(Ask::Look(batch));
        }
        if next != 0 && self.stop.is_some() {
            self.give_up(&visit.page);
            self.let_go(visit);
        } else if next != 0 {
            let count = self.memory.members();
            self.ready.push_back(Ask::Read { visit, cursor: next, count });
        } else {
            self.let_go(visit);
        }
        Ok(())
    }

    /// How long the application has left a tag alone: its idle time, or what is on record.
    fn age(&self, visit: &Visit, idle: Option<u64>) -> Option<u64> {
        if !visit.aging {
            return idle;
        }
        let now = self.server_time();
        let record = Record::observe(visit.known.get(), idle?, now);
        visit.record.set(Some(record));
        Some(record.age(now))
    }

    fn read_later(&mut self, visit: &Visit, span: Duration) {
        let (key, page) = (visit.key.clone(), Rc::clone(&visit.page));
        let (size, record, earlier) = (key.capacity(), visit.record.get(), None);
        self.waiting.put(Later::Tag { key, page, record, earlier }, size, Moment::now() + span);
    }

    /// Reads a tag anew, once, whatever was found of it so far; what was removed stays removed.
    fn read_again(&mut self, visit: Rc<Visit>, span: Duration) {
        if visit.reread.replace(true) {
            return self.let_go(visit);
        }
        let counted = if visit.looked { 0 } else { visit.checked.get() };
        self.report.references_checked -= counted;
        visit.page.checked.set(visit.page.checked.get() - counted);
        let (key, page, record) = (visit.key.clone(), Rc::clone(&visit.page), visit.record.get());
        let (size, earlier) = (key.capacity() + size_of::<Visit>(), Some(visit));
        self.waiting.put(Later::Tag { key, page, record, earlier }, size, Moment::now() + span);
    }

    fn first_seen(&mut self, visit: &Visit, idle: Option<u64>) {
        visit.aged.set(judge::aged(idle, self.options.max_tag_age));
        if !visit.again {
            self.report.tags_seen += 1;
            self.report.tags_aged += u64::from(visit.aged.get());
            grow(&visit.page.seen, 1);
            grow(&visit.page.aged, u64::from(visit.aged.get()));
        }
        if idle.is_none() && self.options.max_tag_age.is_some() {
            self.warn("the server keeps no idle times (LFU policy): no tag counts as aged");
        }
    }

    /// Judges a tag's idle time. A tag that is young twice, or whose idle time means nothing, goes
    /// the way of two looks. A dry run takes the grace for granted.
    fn evidence(&mut self, visit: &Visit, idle: Option<u64>) -> Evidence {
        let grace = self.options.grace;
        let needed = idle_needed(grace);
        let trusted = self.idle.trusted(Duration::from_secs(needed), Moment::now());
        let mut evidence = judge::evidence(idle, grace, trusted, !self.untouching);
        if self.options.dry_run {
            evidence = Evidence::Settled;
        }
        if visit.again && matches!(evidence, Evidence::Young(_)) {
            evidence = Evidence::Unclear;
        }
        visit.unclear.set(evidence == Evidence::Unclear);
        let ask = self.untouching && evidence == Evidence::Settled && !grace.is_zero();
        let age = self.options.max_tag_age.filter(|_| visit.aged.get()).map(|age| age.as_secs());
        visit.idle.set(ask.then_some(age.unwrap_or(0).max(needed)));
        evidence
    }

    /// How many entries exist.
    fn looked(&mut self, batch: Batch, replies: Vec<Value>) -> Result<()> {
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
        self.prove(&counts)?;
        let live = counts.iter().copied().max().unwrap_or(total);
        let visit = &batch.visit;
        if visit.aged.get() && self.options.on_aged == OnAged::Invalidate && live > 0 {
            self.invalidate(batch, live);
            return Ok(());
        }
        visit.alive.set(visit.alive.get() || live > 0);
        if self.options.dry_run {
            self.foresee_or_sift(batch, total - live);
        } else if live == total {
            self.vouch(batch);
        } else if live == 0 {
            self.found_absent(batch);
        } else {
            let group = judge::group(live.min(total - live) as usize, total as usize);
            self.ready.push_back(Ask::Sift(batch, group));
        }
        Ok(())
    }

    /// Counts references that were looked at; a repeated visit only for itself.
    fn count_checked(&mut self, batch: &Batch) -> u64 {
        let (visit, total) = (&batch.visit, batch.members.len() as u64);
        if !visit.looked {
            self.report.references_checked += total;
            grow(&visit.page.checked, total);
        }
        grow(&visit.checked, total);
        total
    }

    /// Entries that we are not let see: each is looked for by itself, and what cannot be seen stays.
    fn not_to_be_seen(&mut self, batch: Batch, e: Error) {
        if !self.proof.is_settled() && !batch.visit.again {
            // Only once the mapping is proven is it known which entry to look for.
            return self.read_again(batch.visit, PROVEN_SOON);
        }
        let key = printable(&batch.visit.key);
        self.warn(&format!("entries of some tags cannot be looked for, such as of {key}: {e}"));
        self.count_checked(&batch);
        batch.visit.alive.set(true);
        match self.proof.is_settled() {
            true => self.ready.push_back(Ask::Sift(batch, 1)),
            false => self.let_go(batch.visit),
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
            self.ready.push_back(Ask::Remember { key, proof });
        }
        Ok(())
    }

    /// Of a dry run: some are looked at one by one, to be shown.
    fn foresee_or_sift(&mut self, batch: Batch, stale: u64) {
        if stale > 0 && self.report.samples.len() < SAMPLES {
            self.ready.push_back(Ask::Sift(batch, 1));
        } else {
            self.foresee(batch, stale);
        }
    }

    /// Counts what a sweep would do, and stops where it would.
    fn foresee(&mut self, batch: Batch, stale: u64) {
        if self.stop.is_some() {
            return self.let_go(batch.visit);
        }
        let allowed = self.allow(stale);
        let removed = allowed.unwrap_or(0);
        self.report.references_removed += removed;
        let visit = &batch.visit;
        grow(&visit.removed, removed);
        visit.gone.set(visit.removed.get() == visit.checked.get());
        self.let_go(batch.visit);
        match allowed {
            None => self.stop(Reason::MaxShare),
            Some(allowed) if allowed < stale => self.stop(Reason::MaxRemovals),
            Some(_) => {}
        }
    }

    /// Which entries exist; those of a mixed group are looked for one by one.
    fn sifted(&mut self, batch: Batch, group: usize, replies: &[Value]) {
        let Batch { visit, members, .. } = batch;
        // Of an error nothing follows: the reference stays.
        let found = |i: usize| replies.get(i / group).and_then(number);
        let size = |i: usize| (members.len() - i / group * group).min(group) as u64;
        let is_mixed = |i: usize| found(i).is_some_and(|n| n > 0 && n < size(i));
        let of = |members| Batch { visit: Rc::clone(&visit), members, slip: None };
        let absent = of(members.select(|i| found(i) == Some(0)));
        let mixed = of(members.select(is_mixed));
        let alive = of(members.select(|i| found(i) != Some(0) && !is_mixed(i)));
        drop(visit);
        match mixed.members.is_empty() {
            true => self.let_go(mixed.visit),
            false => self.ready.push_back(Ask::Sift(mixed, 1)),
        }
        if self.options.dry_run {
            self.sample(&absent);
            let stale = absent.members.len() as u64;
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
        } else if batch.visit.unclear.get() {
            let (size, due) = (batch.size(), Moment::now() + self.options.grace);
            self.waiting.put(Later::Absent(batch), size, due);
        } else {
            self.condemn(batch);
        }
    }

    /// Shows a reference that would go.
    fn sample(&mut self, batch: &Batch) {
        let Some(member) = batch.members.iter().next() else { return };
        if self.report.samples.len() < SAMPLES {
            let (stale, all) = (batch.members.len(), batch.visit.checked.get());
            self.report.samples.push(Sample {
                tag: printable(&batch.visit.key),
                entry: printable(&self.proof.in_force().entry(member)),
                why: format!("the entry is gone, as of {stale} of the tag's {all} references seen"),
            });
        }
    }

    /// Sends references to the confirming script, as soon as the mapping is proven and as long as
    /// the operator's limits allow.
    pub(super) fn condemn(&mut self, batch: Batch) {
        if self.stop.is_some() {
            self.give_up(&batch.visit.page);
            return self.let_go(batch.visit);
        }
        let Some(batch) = self.proof.admit(batch) else { return };
        let Some((batch, is_last)) = self.limit(batch) else { return };
        self.condemned.push_back(batch);
        if is_last {
            self.reach_limit();
        }
    }

    /// As many of the references as the operator's limits allow to go, and whether that is all they do.
    fn limit(&mut self, mut batch: Batch) -> Option<(Batch, bool)> {
        let all = batch.members.len() as u64;
        let allowed = self.allow(all);
        if allowed != Some(all) {
            self.give_up(&batch.visit.page);
        }
        let Some(allowed) = allowed else {
            self.let_go(batch.visit);
            self.stop(Reason::MaxShare);
            return None;
        };
        if allowed < all {
            batch.members = batch.members.select(|i| (i as u64) < allowed);
        }
        Some((batch, allowed < all))
    }

    /// How many of so many more removals the operator's limits allow; `None` if they would make a larger
    /// share than allowed.
    fn allow(&mut self, more: u64) -> Option<u64> {
        let most = self.options.max_removals.unwrap_or(u64::MAX);
        let allowed = more.min(most.saturating_sub(self.condemned_total));
        self.condemned_total += allowed;
        let checked = self.report.references_checked;
        let too_large = judge::exceeds_share(self.condemned_total, checked, self.options.max_share);
        (!too_large).then_some(allowed)
    }

    /// No more removals than the operator allows: what is condemned goes, and then it ends.
    fn reach_limit(&mut self) {
        let condemned = std::mem::take(&mut self.condemned);
        let is_allowed = |ask: &Ask| matches!(ask, Ask::Invalidate(_));
        let (allowed, others) =
            std::mem::take(&mut self.ready).into_iter().partition::<VecDeque<_>, _>(is_allowed);
        self.ready = others;
        self.stop(Reason::MaxRemovals);
        self.ready.extend(allowed);
        for batch in condemned {
            if batch.members.is_empty() {
                self.let_go(batch.visit);
            } else {
                let noted = self.noted(vec![batch]);
                self.ready.push_back(Ask::Prune(noted));
            }
        }
    }

    fn pruned(&mut self, batches: Vec<Batch>, replies: Vec<Value>) -> Result<()> {
        let Some(items) = self.unless_fenced(checked(first(replies))?)? else { return Ok(()) };
        let mut refused = Ok(());
        for (batch, item) in batches.into_iter().zip(items) {
            let skipped = batch.members.len() as u64;
            match item {
                Value::Int(0) => self.vouch(batch),
                Value::Int(-1) if !batch.visit.again && self.stop.is_none() => {
                    self.read_again(batch.visit, self.options.grace);
                }
                Value::Int(-1) => {
                    self.give_up(&batch.visit.page);
                    self.report.references_skipped += skipped;
                    self.let_go(batch.visit);
                }
                Value::Int(-2) => {
                    self.report.tags_skipped += 1;
                    self.report.references_skipped += skipped;
                    self.let_go(batch.visit);
                }
                Value::Array(figures) => {
                    let done = self.removed(batch, figures);
                    refused = refused.and(done);
                }
                other => {
                    let key = batch.visit.key.clone();
                    self.give_up(&batch.visit.page);
                    self.let_go(batch.visit);
                    refused = refused.and(checked(other).map(drop).map_err(|e| e.key(&key)));
                }
            }
        }
        refused
    }

    /// Counts what the script removed, and sees to its verification.
    fn removed(&mut self, batch: Batch, figures: Vec<Value>) -> Result<()> {
        let figures = figures.into_iter().map(understood).collect::<Result<Vec<i64>>>()?;
        let [gone, removed, stayed @ ..] = figures.as_slice() else {
            return Err(Error::new(ErrorKind::Refused, "the server's answer makes no sense"));
        };
        let visit = &batch.visit;
        let removed = match removed.unsigned_abs() {
            // Done the first time, when the answer was lost.
            0 if visit.asked.get() => (batch.members.len() - stayed.len()) as u64,
            removed => removed,
        };
        self.report.references_removed += removed;
        grow(&visit.removed, removed);
        visit.gone.set(visit.gone.get() || (*gone == 1 && removed > 0));
        let ambiguous = stayed.iter().any(|position| *position < 0);
        let stays = |i: usize| {
            let i = i as i64;
            stayed.contains(&i) || stayed.contains(&(-i - 1))
        };
        let (went, alive) = match stayed {
            [] => (batch.members, Strings::default()),
            _ => batch.members.split(|i| !stays(i)),
        };
        self.vouch(Batch { visit: Rc::clone(visit), members: alive, slip: None });
        match removed {
            0 => self.let_go(batch.visit),
            _ => self.verify_later(Batch { members: went, ..batch }),
        }
        if ambiguous { Err(Proof::ambiguous()) } else { Ok(()) }
    }

    /// Asks for how long live entries live, if that is to be remembered.
    fn vouch(&mut self, batch: Batch) {
        let vouches = self.options.remember.is_some() && !self.options.dry_run;
        if batch.members.is_empty() || !vouches || self.stop.is_some() {
            return self.let_go(batch.visit);
        }
        self.ready.push_back(Ask::Lifetimes(batch));
    }

    fn vouched(&mut self, batch: Batch, replies: &[Value]) {
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
        let sound = left > 0 && visit.vouched.get() == left;
        sound.then(|| Warrant::new(until, left, &self.proof.in_force().entry_prefix))
    }

    fn verify_later(&mut self, batch: Batch) {
        if batch.members.is_empty() {
            return self.let_go(batch.visit);
        }
        let wait = match self.is_hurried() {
            true => self.options.verify.min(STOPPING),
            false => self.options.verify,
        };
        let again = batch.visit.unclear.get() || self.is_old(&batch.visit);
        self.unverified.put((batch.clone(), again), batch.size(), Moment::now() + wait);
    }

    /// Whether a writer may have begun between the idle time that we go by and the script, which could not
    /// ask for it again.
    fn is_old(&self, visit: &Visit) -> bool {
        let asked = visit.idle.get().is_some() || self.options.grace.is_zero();
        !asked && visit.idled_at.get().is_none_or(|at| Moment::now().since(at) > IDLE_FRESH)
    }

    /// The items of a fenced script's answer, unless it refused because the lock is not ours.
    fn unless_fenced(&mut self, reply: Value) -> Result<Option<Vec<Value>>> {
        let Value::Array(items) = reply else {
            return Err(Error::new(ErrorKind::Refused, "the server's answer makes no sense"));
        };
        if matches!(items.first(), Some(Value::BulkString(word)) if word == b"FENCED") {
            self.lost();
            return Ok(None);
        }
        Ok(Some(items))
    }

    pub(super) fn lost(&mut self) {
        self.contender.forget();
        self.stop(Reason::Lost);
    }

    fn invalidate(&mut self, batch: Batch, live: u64) {
        if self.options.dry_run {
            self.report.entries_invalidated += live;
            let all = batch.members.len() as u64;
            return self.foresee(batch, all);
        }
        if self.stop.is_some() {
            self.give_up(&batch.visit.page);
            return self.let_go(batch.visit);
        }
        let Some((batch, is_last)) = self.limit(batch) else { return };
        if batch.members.is_empty() {
            self.let_go(batch.visit);
        } else {
            let noted = self.noted(vec![batch]);
            self.ready.extend(noted.into_iter().map(Ask::Invalidate));
        }
        if is_last {
            self.reach_limit();
        }
    }

    fn invalidated(&mut self, batch: Batch, replies: Vec<Value>) -> Result<()> {
        let Some(items) = self.unless_fenced(checked(first(replies))?)? else { return Ok(()) };
        let figures = items.into_iter().map(understood).collect::<Result<Vec<i64>>>()?;
        if let [gone, references, entries] = figures.as_slice() {
            self.report.references_removed += references.unsigned_abs();
            self.report.entries_invalidated += entries.unsigned_abs();
            let visit = &batch.visit;
            grow(&visit.removed, references.unsigned_abs());
            visit.gone.set(*gone == 1);
            self.verify_later(batch);
        } else {
            self.let_go(batch.visit);
        }
        Ok(())
    }

    fn verified(&mut self, batches: Vec<Batch>, again: bool, reply: Value) {
        let clean = reply == Value::Int(0);
        let grace = self.options.grace.saturating_sub(self.options.verify);
        let again = again && !grace.is_zero() && !self.is_hurried();
        for batch in batches {
            if again {
                let size = batch.size();
                self.unverified.put((batch.clone(), false), size, Moment::now() + grace);
            }
            if clean {
                self.let_go(batch.visit);
            } else {
                // Some entry exists, or it cannot be told: the script looks at each.
                self.ready.push_back(Ask::Restore(batch));
            }
        }
    }

    fn restored(&mut self, batch: Batch, replies: Vec<Value>) -> Result<()> {
        let (back, deleted) = understood::<(i64, u64)>(checked(first(replies))?)?;
        if let Ok(back @ 1..) = u64::try_from(back) {
            self.report.references_restored += back;
            self.report.entries_invalidated += deleted;
            let visit = &batch.visit;
            visit.removed.set(visit.removed.get().saturating_sub(back));
            visit.gone.set(false);
        } else if back < 0 {
            self.warn("a tag key changed its type during the sweep");
        }
        self.let_go(batch.visit);
        Ok(())
    }

    fn extended(&mut self, replies: Vec<Value>, sent: Moment) -> Result<()> {
        let reply = checked(first(replies))?;
        if self.contender.lease().is_some() && !self.contender.extend_replied(&reply, sent)? {
            self.lost();
        }
        Ok(())
    }

    /// Lets go of a tag; the last one who does settles its figures.
    pub(super) fn let_go(&mut self, visit: Rc<Visit>) {
        let Some(mut visit) = Rc::into_inner(visit) else { return };
        if let Some(earlier) = visit.earlier.take().and_then(Rc::into_inner) {
            grow(&visit.removed, earlier.removed.get());
        }
        if visit.weight.get() > 0 {
            self.weighed.0 += visit.weight.get();
            self.weighed.1 += visit.checked.get();
        }
        if !self.options.dry_run {
            self.keep_record(&visit);
        }
        if visit.removed.get() > 0 {
            match visit.gone.get() {
                true => self.report.tags_removed += 1,
                false => self.report.tags_pruned += 1,
            }
        }
    }

    /// Keeps what is known of a tag. One that is gone takes its record along.
    fn keep_record(&mut self, visit: &Visit) {
        let now = self.server_time();
        // Ours was the last touch, as far as we saw.
        let touched = u32::try_from(now).unwrap_or(u32::MAX);
        let warrant = self.warrant(visit);
        let fresh = || Record::observe(None, visit.idled.get().unwrap_or(0), now);
        let record = visit.record.get().or_else(|| warrant.map(|_| fresh()));
        let record =
            record.map(|record| Record { touched, warrant: warrant.or(record.warrant), ..record });
        match record.filter(|_| !visit.gone.get()) {
            None if visit.known.get().is_none() || !visit.gone.get() => {}
            record => self.records.push((visit.key.clone(), record)),
        }
    }

    pub(super) fn warn(&mut self, what: &str) {
        if !self.report.warnings.iter().any(|known| known == what) {
            self.report.warnings.push(what.to_owned());
        }
    }
}

fn grow(count: &Cell<u64>, by: u64) {
    count.set(count.get() + by);
}

/// Members in batches that one command takes, by number and by length.
fn bites(members: &[Vec<u8>]) -> Vec<Strings> {
    let mut bites: Vec<Strings> = Vec::new();
    for member in members {
        match bites.last_mut() {
            Some(bite) if bite.len() < BATCH && bite.bytes() < BATCH_BYTES => bite.push(member),
            _ => bites.push(std::iter::once(member.as_slice()).collect()),
        }
    }
    bites
}

/// An answer that may be another one in a moment: the server is busy, or forgot our scripts.
fn passing_fault(reply: &Value) -> Option<Error> {
    let Value::ServerError(_) = reply else { return None };
    match checked(reply.clone()) {
        Err(e) if e.code() == Some("NOSCRIPT") => {
            Some(Error::new(ErrorKind::Unknown, "the server forgot our scripts"))
        }
        Err(e) if passes(&e) => Some(e),
        _ => None,
    }
}

fn first(replies: Vec<Value>) -> Value {
    replies.into_iter().next().unwrap_or(Value::Nil)
}

fn last(replies: &mut Vec<Value>) -> Value {
    replies.pop().unwrap_or(Value::Nil)
}

fn kept(reply: &Value) -> Option<Record> {
    match reply {
        Value::BulkString(bytes) => Record::read(bytes),
        _ => None,
    }
}

fn number(reply: &Value) -> Option<u64> {
    match reply {
        Value::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn understood<T: redis::FromRedisValue>(reply: Value) -> Result<T> {
    redis::from_redis_value(reply).map_err(|e| {
        Error::new(ErrorKind::Refused, "the server's answer makes no sense").because(e)
    })
}
