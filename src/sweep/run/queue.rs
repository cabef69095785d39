//! What is asked next: rounds are put together here.

use crate::clock::Moment;
use crate::sweep::batch::{BATCH, BATCH_BYTES, Batch, Twice};
use crate::sweep::memory::Memory;
use crate::sweep::quarantine::Quarantine;
use crate::sweep::round::Ask;
use crate::sweep::run::limits::Doomed;
use crate::sweep::run::{Later, Running};
use crate::sweep::walk::LARGEST;
use std::collections::VecDeque;
use std::time::Duration;

/// How long what is condemned waits for company: what proved that a tag was left alone gets old.
const COMPANY: Duration = Duration::from_millis(50);

/// What waits to be asked, and when what waits for its time is due.
#[derive(Debug)]
pub(super) struct Queue {
    /// What keeps us, and what was removed is owed: asked before anything else.
    urgent: VecDeque<Ask>,
    ready: VecDeque<Ask>,
    /// References that a script is to remove, and when the last one was put together.
    pub condemned: VecDeque<Batch>,
    pub pruned_at: Moment,
    /// What is held back until it can be told what share of all would go, and the memory that it takes.
    held: Vec<(Moment, Doomed)>,
    held_size: usize,
    pub waiting: Quarantine<Later>,
    /// What was removed, together what was removed together.
    pub unverified: Quarantine<Vec<(Batch, Twice)>>,
    pub memory: Memory,
}

impl Queue {
    pub fn new(memory: Memory, now: Moment) -> Self {
        Self {
            urgent: VecDeque::new(),
            ready: VecDeque::new(),
            condemned: VecDeque::new(),
            pruned_at: now,
            held: Vec::new(),
            held_size: 0,
            waiting: Quarantine::new(),
            unverified: Quarantine::new(),
            memory,
        }
    }

    /// To be asked, after all that is as urgent.
    pub fn ask(&mut self, ask: Ask) {
        self.those_like(&ask).push_back(ask);
    }

    /// To be asked before all that is as urgent.
    pub fn ask_first(&mut self, ask: Ask) {
        self.those_like(&ask).push_front(ask);
    }

    fn those_like(&mut self, ask: &Ask) -> &mut VecDeque<Ask> {
        if ask.is_urgent() { &mut self.urgent } else { &mut self.ready }
    }

    pub fn asks_nothing(&self) -> bool {
        self.urgent.is_empty() && self.ready.is_empty()
    }

    /// All that waits to be asked.
    pub fn asks(&self) -> impl Iterator<Item = &Ask> {
        self.urgent.iter().chain(&self.ready)
    }

    /// The same, to be asked no more or otherwise.
    pub fn take_asks(&mut self) -> VecDeque<Ask> {
        let mut all = std::mem::take(&mut self.urgent);
        all.append(&mut self.ready);
        all
    }

    pub fn hold(&mut self, doomed: Doomed) {
        self.held_size += doomed.batch().size();
        self.held.push((Moment::now(), doomed));
    }

    pub fn holds_nothing(&self) -> bool {
        self.held.is_empty()
    }

    /// What is held back, and since when.
    pub fn take_held(&mut self) -> Vec<(Moment, Doomed)> {
        self.held_size = 0;
        std::mem::take(&mut self.held)
    }

    /// Whether what is condemned has waited for company for long enough.
    fn is_overdue(&self) -> bool {
        !self.condemned.is_empty() && Moment::now().since(self.pruned_at) >= COMPANY
    }

    /// Whether so many members are condemned, or as many as one script takes by their length.
    fn condemns(&self, members: usize) -> bool {
        let (mut sum, mut bytes) = (0, 0);
        self.condemned.iter().any(|batch| {
            let (more, length) = in_script(batch);
            (sum, bytes) = (sum + more, bytes + length);
            sum >= members || bytes > BATCH_BYTES
        })
    }

    /// Whether what is condemned fills a script of so many members, or has waited for long enough.
    fn is_full_script(&self, members: usize) -> bool {
        self.condemns(members) || self.is_overdue()
    }

    /// Whether a script is next, of which a round had better have nothing but that.
    fn begins_a_round(&self, members: usize) -> bool {
        self.urgent.is_empty() && self.is_full_script(members)
    }

    /// The next question, unless it is a read and enough of them are under way.
    fn next_ready(&mut self, reads: &mut usize) -> Option<Ask> {
        let is_read = |ask: &Ask| matches!(ask, Ask::Read { .. });
        let at = self.ready.iter().position(|ask| *reads > 0 || !is_read(ask))?;
        let next = self.ready.remove(at)?;
        *reads -= usize::from(is_read(&next));
        Some(next)
    }

    /// Whether what waits for its time, for its verification or for the share, takes all the memory it may.
    pub fn is_full(&self) -> bool {
        self.waiting.size() + self.unverified.size() + self.held_size >= self.memory.quarantine()
    }

    /// Whether what has come due cannot be taken up, for the keys that are to be read before leave no room.
    fn is_stuck(&self) -> bool {
        let is_due = self.waiting.next_due().is_some_and(Moment::passed);
        is_due && self.is_full() && !self.has_room_for_keys()
    }

    /// Batches for one script: of like terms, and not too much; a single one whatever it costs.
    fn next_prune(&mut self, most: usize) -> Option<Vec<Batch>> {
        let terms = self.condemned.front()?.visit.idle.wanted.get();
        self.pruned_at = Moment::now();
        let (mut batches, mut members, mut bytes) = (Vec::new(), 0, 0);
        while let Some(batch) = self.condemned.front() {
            let (more, length) = in_script(batch);
            let full = members + more > most || bytes + length > BATCH_BYTES;
            if batch.visit.idle.wanted.get() != terms || (!batches.is_empty() && full) {
                break;
            }
            (members, bytes) = (members + more, bytes + length);
            batches.extend(self.condemned.pop_front());
        }
        Some(batches)
    }

    /// Lets what was removed wait for its verification.
    pub fn put_unverified(&mut self, removed: Vec<(Batch, Twice)>, due: Moment) {
        let each = |(batch, _): &(Batch, Twice)| batch.size() + size_of::<(Batch, Twice)>();
        let size = removed.iter().map(each).sum();
        if !removed.is_empty() {
            self.unverified.put(removed, size, due);
        }
    }

    /// Batches whose verification is due, as many as one command may look for.
    pub fn next_verify(&mut self, now: Moment) -> Option<Vec<(Batch, Twice)>> {
        let mut removed = self.unverified.take(now)?;
        let (mut members, mut bytes) = names_of(&removed);
        while let Some((more, length)) = self.unverified.peek(now).map(|next| names_of(next))
            && members + more <= BATCH
            && bytes <= BATCH_BYTES
        {
            (members, bytes) = (members + more, bytes + length);
            removed.extend(self.unverified.take(now).into_iter().flatten());
        }
        Some(removed)
    }

    /// Memory that names take which wait to be sent: members, and keys of tags that are to be read.
    fn names(&self) -> (usize, usize) {
        let condemned = self.condemned.iter().map(Batch::size).sum();
        let add = |(a, b): (usize, usize), (c, d): (usize, usize)| (a + c, b + d);
        self.asks().map(Ask::size).fold((condemned, 0), add)
    }

    /// Whether keys of tags that are to be read take less than the memory that there is for what waits to be sent.
    pub fn has_room_for_keys(&self) -> bool {
        self.names().1 <= self.memory.queue()
    }

    /// Units of work that wait to be sent.
    pub fn backlog(&self) -> usize {
        // A tag of ten members is about what a question is on average.
        8 * (self.urgent.len() + self.ready.len() + self.condemned.len())
    }
}

/// How many members were removed, and how long their names are.
fn names_of(removed: &[(Batch, Twice)]) -> (usize, usize) {
    let of = |(batch, _): &(Batch, Twice)| (batch.members.len(), batch.members.bytes());
    removed.iter().map(of).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
}

/// What a batch is in a script, which takes some time for each tag besides that for its members: in members, and
/// in bytes.
fn in_script(batch: &Batch) -> (usize, usize) {
    const TAG: usize = 2;
    (TAG + batch.members.len(), batch.visit.tag.key.len() + batch.members.bytes())
}

impl Running<'_> {
    /// The next round: what is urgent, a full script, or questions, and a page if there is room for a good one. Many
    /// small scripts and pages would cost the server more than a few large ones.
    pub(super) fn compose(&mut self) -> Vec<Ask> {
        let size = self.pace.size();
        let script = self.pace.members();
        let (mut asks, mut units) = (Vec::new(), 0);
        let under_way: usize = self.wire.flights.iter().map(|flight| flight.reads).sum();
        let (members, keys) = self.queue.names();
        // Whatever is read comes to where there is no room.
        let no_room = members > self.queue.memory.queue() || self.queue.is_full();
        let may_read = if no_room { 0 } else { self.queue.memory.reads() };
        let mut reads = may_read.saturating_sub(under_way);
        while units < size {
            if units > size / 3 && self.queue.begins_a_round(script) {
                return asks;
            }
            let Some(ask) = self.next_ask(script, &mut reads) else { break };
            // How the server is may have to be asked in every round: it takes nobody's place.
            units += if matches!(ask, Ask::Load) { 0 } else { ask.units() };
            asks.push(ask);
        }
        if members + keys <= self.queue.memory.queue() {
            let alone = asks.is_empty() && self.wire.flights.is_empty();
            let room = if alone { self.pace.page() } else { size.saturating_sub(units) };
            asks.extend(self.next_page(room));
        }
        let idle = asks.is_empty() && self.wire.flights.is_empty();
        if let Some(batches) = idle.then(|| self.queue.next_prune(script)).flatten() {
            asks.push(Ask::Prune(self.noted(batches)));
        } else if idle && self.queue.is_stuck() {
            asks.extend(self.queue.next_ready(&mut 1));
        }
        asks
    }

    /// What is urgent, a full script, or a question.
    fn next_ask(&mut self, script: usize, reads: &mut usize) -> Option<Ask> {
        if let Some(ask) = self.queue.urgent.pop_front() {
            return Some(ask);
        }
        if !self.queue.is_full_script(script) {
            return self.queue.next_ready(reads);
        }
        self.queue.next_prune(script).map(|batches| Ask::Prune(self.noted(batches)))
    }

    /// The next page, if so many units are room enough.
    fn next_page(&mut self, units: usize) -> Option<Ask> {
        if units < self.pace.size() / 2 || !self.may_walk() {
            return None;
        }
        let cursor = self.walk.ask()?;
        let count = units.clamp(50, LARGEST).min(self.queue.memory.count());
        Some(Ask::Page { cursor, count })
    }

    fn may_walk(&self) -> bool {
        !self.is_ending() && self.queue.backlog() < 2 * self.pace.size() && !self.queue.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::batch::Tag;
    use std::rc::Rc;

    /// How many batches of one member each go to one script, under keys so long.
    fn in_one_script(key: usize) -> usize {
        let mut queue = Queue::new(Memory::new(48 << 20), Moment::now());
        for _ in 0..300 {
            let visit = Rc::new(Tag { key: vec![b'k'; key], ..Tag::default() }.into());
            let members = std::iter::once(b"member".as_slice()).collect();
            queue.condemned.push_back(Batch::of(&visit, members));
        }
        assert!(queue.condemns(BATCH));
        queue.next_prune(BATCH).unwrap().len()
    }

    /// What one script removed of so many tags, a member each.
    fn removed(tags: usize) -> Vec<(Batch, Twice)> {
        let one = || {
            let visit = Rc::new(Tag::default().into());
            Batch::of(&visit, std::iter::once(b"member".as_slice()).collect())
        };
        (0..tags).map(|_| (one(), Twice::Never)).collect()
    }

    #[test]
    fn what_was_removed_together_is_verified_together_with_what_else_is_due() {
        let now = Moment::now();
        let mut queue = Queue::new(Memory::new(48 << 20), now);
        queue.put_unverified(vec![], now);
        assert!(queue.unverified.is_empty(), "a command without entries is none");
        for tags in [100, 150, 100] {
            queue.put_unverified(removed(tags), now);
        }
        queue.put_unverified(removed(1), now + COMPANY);
        let mut next = |at| queue.next_verify(at).map(|removed| removed.len());
        assert_eq!([next(now), next(now), next(now)], [Some(250), Some(100), None]);
        assert_eq!(next(now + COMPANY), Some(1));
    }

    #[test]
    fn what_waits_for_its_verification_takes_little_more_than_its_names() {
        let mut queue = Queue::new(Memory::new(48 << 20), Moment::now());
        queue.put_unverified(removed(100), Moment::now());
        assert!(queue.unverified.size() < 100 * 512, "{}", queue.unverified.size());
    }

    #[test]
    fn a_script_is_bounded_by_its_tags_and_by_the_length_of_their_keys() {
        assert_eq!(in_one_script(10), 85);
        assert_eq!(in_one_script(64 << 10), 1);
        assert_eq!(in_one_script(200 << 10), 1, "a single one whatever it costs");
    }
}
