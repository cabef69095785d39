//! What is known of tags: on record for later sweeps, their age and until when nothing in them can be stale.

use crate::clock::Moment;
use crate::error::Result;
use crate::reply::{checked, understood};
use crate::sweep::batch::{Batch, Visit};
use crate::sweep::records::{self, Record, Warrant};
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use crate::sweep::run::answers::Field;
use crate::sweep::run::ledger::grow;
use redis::Value;

/// Records of a run.
pub(super) struct Records {
    /// Ages are kept on record, because our reads reset them.
    pub aging: bool,
    /// Those to be written.
    pub due: Vec<(Vec<u8>, Option<Record>)>,
    /// Buckets that are tidied up, and what one costs, in units.
    tidied: u32,
    bucket: usize,
}

/// What an empty bucket costs, and one of which only a part is looked at.
const EMPTY: usize = 24;
const LARGE: usize = EMPTY + records::PART;

impl Default for Records {
    fn default() -> Self {
        Self { aging: false, due: Vec::new(), tidied: 0, bucket: EMPTY }
    }
}

impl Running<'_> {
    /// Keeps what is known of a tag. One that is gone takes its record along.
    pub(super) fn keep_record(&mut self, visit: &Visit) {
        let now = self.server_time();
        let touched = visit.idle.touched.get().map_or(now, |at| self.clock.at(at));
        let touched = u32::try_from(touched).unwrap_or(u32::MAX);
        let warrant = self.warrant(visit);
        let read_at = visit.idle.asked.get().map_or(now, |at| self.clock.at(at));
        let fresh = || Record::observe(None, visit.idle.told.get().unwrap_or(0), read_at);
        let record = visit.record.new.get().or_else(|| warrant.map(|_| fresh()));
        let record =
            record.map(|record| Record { touched, warrant: warrant.or(record.warrant), ..record });
        match record.filter(|_| !visit.gone.get()) {
            None if visit.record.known.get().is_none() || !visit.gone.get() => {}
            record => self.records.due.push((visit.tag.key.clone(), record)),
        }
    }

    /// Asks for how long live entries live, if that is to be remembered.
    pub(super) fn vouch(&mut self, batch: Batch) {
        let vouches = self.options.remember.is_some() && !self.options.dry_run;
        if batch.members.is_empty() || !vouches || self.is_ending() {
            return self.let_go(batch.visit);
        }
        self.queue.ask(Ask::Lifetimes(batch));
    }

    pub(super) fn vouched(&mut self, batch: Batch, replies: &[Value]) {
        let (now, visit) = (self.server_time(), &batch.visit);
        for reply in replies {
            let Value::Int(life @ (-1 | 0..)) = reply else { continue };
            grow(&visit.lifetimes.vouched, 1);
            if let Ok(life) = u64::try_from(*life) {
                let end = now + life / 1000;
                visit
                    .lifetimes
                    .until
                    .set(Some(visit.lifetimes.until.get().map_or(end, |until| until.min(end))));
            }
        }
        self.let_go(batch.visit);
    }

    /// What is to be remembered of a tag, if each of its references was vouched for.
    fn warrant(&self, visit: &Visit) -> Option<Warrant> {
        let left = visit.checked.get().checked_sub(visit.removed.get())?;
        let most = self.server_time() + self.options.remember?.as_secs();
        let until = visit.lifetimes.until.get().map_or(most, |until| until.min(most));
        let sound = left > 0 && visit.lifetimes.vouched.get() == left && self.was_left_alone(visit);
        sound.then(|| Warrant::new(until, left, &self.proof.in_force().entry_prefix))
    }

    /// Whether the application had left a tag alone when it was read: of one in use nobody could tell later
    /// that it was used again.
    fn was_left_alone(&self, visit: &Visit) -> bool {
        let (Some(idle), Some(at)) = (visit.idle.told.get(), visit.idle.asked.get()) else {
            return false;
        };
        let at = self.clock.at(at);
        let known = visit.record.known.get().filter(|_| !self.untouching);
        Record::observe(known, idle, at).age(at) > records::SLOP
    }

    /// At the end of a sweep that saw every tag: records of those that it did not see go, bucket by
    /// bucket. False when there is nothing to tidy up.
    pub(super) fn tidy(&mut self) -> bool {
        let whole = !self.is_ending() && self.walk.is_whole();
        let keeps = self.records.aging || self.options.remember.is_some();
        let writes = keeps && !self.options.dry_run;
        let done = self.records.tidied >= records::BUCKETS || self.is_over(Moment::now());
        if !whole || !writes || done {
            return false;
        }
        // Each sweep begins elsewhere: one that ends early still comes to all in turn.
        let begin =
            self.contender.lease().map_or(0, |lease| lease.fence % u64::from(records::BUCKETS));
        let first = (begin as u32 + self.records.tidied) % records::BUCKETS;
        // The first one tells how large they are.
        let units = self.records.bucket;
        let most = if self.records.tidied == 0 { 1 } else { (self.pace.size() / units) as u32 };
        let left = (records::BUCKETS - first).min(records::BUCKETS - self.records.tidied);
        let buckets = most.clamp(1, records::TIDIED).min(left);
        self.queue.ask(Ask::Tidy { first, buckets, cursor: 0, units: units * buckets as usize });
        self.records.tidied += buckets;
        true
    }

    /// Forgets records of tags that this sweep did not see.
    pub(super) fn tidied_up(&mut self, first: u32, replies: Vec<Value>) -> Result<()> {
        for (bucket, reply) in (first..).zip(replies.into_iter().step_by(2)) {
            // Another type under our name is not ours to tidy up.
            let Ok(reply) = checked(reply) else { continue };
            let (cursor, records): (u64, Vec<Field>) = understood(reply)?;
            if cursor != 0 && !self.is_ending() && !self.is_over(Moment::now()) {
                self.queue.ask(Ask::Tidy { first: bucket, buckets: 1, cursor, units: LARGE });
            }
            self.records.bucket = self.records.bucket.max(EMPTY + records.len());
            let (began, now) = (self.clock.at(self.begun), self.server_time());
            let unseen = |record: &[u8]| {
                Record::read(record).is_none_or(|record| record.is_unseen(began, now))
            };
            let fields: Vec<Vec<u8>> = records
                .into_iter()
                .filter(|(_, record)| unseen(record))
                .map(|(field, _)| field)
                .collect();
            if !fields.is_empty() {
                self.queue.ask(Ask::Forget { bucket, fields });
            }
        }
        Ok(())
    }
}
