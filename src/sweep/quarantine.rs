//! What waits: for its grace, or for its verification. First due first out; it says how much memory it takes.

use crate::clock::Moment;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Things that are due at a time.
#[derive(Debug)]
pub(crate) struct Quarantine<T> {
    waiting: BinaryHeap<Waiting<T>>,
    size: usize,
    order: u64,
    /// When the last of what was put in since it was empty is due.
    latest: Option<Moment>,
}

#[derive(Debug)]
struct Waiting<T> {
    due: Moment,
    order: u64,
    size: usize,
    what: T,
}

impl<T> Quarantine<T> {
    pub fn new() -> Self {
        Self { waiting: BinaryHeap::new(), size: 0, order: 0, latest: None }
    }

    /// Lets `what`, of about `size` bytes, wait until `due`.
    pub fn put(&mut self, what: T, size: usize, due: Moment) {
        // A heap that grows doubles, so half as much again is in use on average.
        let size = size + std::mem::size_of::<Waiting<T>>() * 3 / 2;
        self.order += 1;
        self.size += size;
        self.latest = self.latest.filter(|_| !self.is_empty()).max(Some(due));
        self.waiting.push(Waiting { due, order: self.order, size, what });
    }

    /// The next that is due.
    pub fn take(&mut self, now: Moment) -> Option<T> {
        if self.next_due()? > now {
            return None;
        }
        let first = self.waiting.pop()?;
        self.size -= first.size;
        Some(first.what)
    }

    /// A look at what `take` would give.
    pub fn peek(&self, now: Moment) -> Option<&T> {
        self.waiting.peek().filter(|first| first.due <= now).map(|first| &first.what)
    }

    pub fn next_due(&self) -> Option<Moment> {
        self.waiting.peek().map(|first| first.due)
    }

    /// When everything will have come due.
    pub fn last_due(&self) -> Option<Moment> {
        self.latest.filter(|_| !self.is_empty())
    }

    /// Nothing waits longer than until `latest`.
    pub fn hurry(&mut self, latest: Moment) {
        self.latest = self.latest.map(|last| last.min(latest));
        let all = std::mem::take(&mut self.waiting).into_iter();
        self.waiting = all.map(|w| Waiting { due: w.due.min(latest), ..w }).collect();
    }

    /// Gives up everything that waits.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.size = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|w| w.what)
    }

    /// Everything that waits, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|w| &w.what)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Memory that all of it takes.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl<T> Ord for Waiting<T> {
    /// A heap gives its largest first; ours gives what is due first, and of those the oldest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T> Eq for Waiting<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn first_due_first_out_and_nothing_early() {
        let now = Moment::now();
        let at = |s| now + Duration::from_secs(s);
        let mut quarantine = Quarantine::new();
        for (what, s) in [("c", 3), ("a", 1), ("b", 1)] {
            quarantine.put(what, 0, at(s));
        }
        assert_eq!(quarantine.take(now), None);
        assert_eq!((quarantine.peek(now), quarantine.peek(at(2))), (None, Some(&"a")));
        assert_eq!(quarantine.take(at(2)), Some("a"));
        assert_eq!(quarantine.take(at(2)), Some("b"));
        assert_eq!((quarantine.take(at(2)), quarantine.next_due()), (None, Some(at(3))));
        quarantine.hurry(at(2));
        assert_eq!(quarantine.take(at(2)), Some("c"));
        assert!(quarantine.is_empty());
    }

    #[test]
    fn its_size_counts_bytes() {
        let mut quarantine = Quarantine::new();
        (0..2).for_each(|_| quarantine.put((), 1000, Moment::now()));
        let both = quarantine.size();
        assert!((2000..2200).contains(&both));
        quarantine.take(Moment::now());
        assert_eq!(quarantine.size(), both / 2);
        quarantine.drain().for_each(drop);
        assert_eq!(quarantine.size(), 0);
    }
}
