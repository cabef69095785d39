//! How much may be asked for at once, so that what comes back fits. Pure.
//!
//! Names may be ten bytes long or sixty thousand, and nobody says so beforehand. So a run begins as if
//! they were long, and goes by the longest of late, which is forgotten within some twenty replies.

/// What a reply weighs, as the last ones did (bytes per item, the largest slowly forgotten).
#[derive(Clone, Copy, Debug)]
struct Weight(f64);

impl Weight {
    fn observe(&mut self, bytes: usize, items: usize) {
        self.0 = (self.0 * 0.8).max(bytes as f64 / items.max(1) as f64).max(16.0);
    }

    fn fit(self, bytes: usize) -> usize {
        (bytes as f64 / self.0) as usize
    }
}

/// What names are taken for as long as none was seen.
const LONG: Weight = Weight(65_536.0);

/// Members asked of SSCAN at once.
const MEMBERS: std::ops::RangeInclusive<usize> = 10..=512;

/// The memory that a run may take, and what its replies weigh.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    budget: usize,
    member: Weight,
    read: Weight,
    page: Weight,
    /// Members that the first read of a tag brings, on average of late.
    likely: f64,
}

impl Memory {
    /// Of `budget` bytes.
    pub fn new(budget: usize) -> Self {
        let read = Weight(LONG.0 * *MEMBERS.start() as f64);
        Self { budget, member: LONG, read, page: LONG, likely: *MEMBERS.end() as f64 }
    }

    /// Takes in the reply to a read of a tag.
    pub fn read(&mut self, bytes: usize, members: usize) {
        self.read.observe(bytes, 1);
        self.member.observe(bytes, members);
    }

    /// Takes in how many members the first read of a tag brought.
    pub fn opened(&mut self, members: usize) {
        self.likely += 0.1 * (members as f64 - self.likely);
    }

    /// Members that the first read of the next tag is likely to bring.
    pub fn likely(&self) -> usize {
        self.likely as usize
    }

    /// Takes in a page that was asked for with that count.
    pub fn paged(&mut self, bytes: usize, count: usize) {
        self.page.observe(bytes, count);
    }

    /// Members to ask of one SSCAN.
    pub fn members(&self) -> usize {
        self.member.fit(self.replies() / 8).clamp(*MEMBERS.start(), *MEMBERS.end())
    }

    /// Reads that may be under way.
    pub fn reads(&self) -> usize {
        self.read.fit(self.replies()).max(1)
    }

    /// The largest count for a page.
    pub fn count(&self) -> usize {
        self.page.fit(self.replies()).max(10)
    }

    /// For replies under way.
    fn replies(&self) -> usize {
        self.budget / 8
    }

    /// For what waits to be asked next; beyond that nothing more is read.
    pub fn queue(&self) -> usize {
        self.budget / 8
    }

    /// For what waits for its grace and for its verification.
    pub fn quarantine(&self) -> usize {
        self.budget / 8 * 5
    }

    /// For what waits for the proof of the mapping.
    pub fn held(&self) -> usize {
        self.budget / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_begins_carefully_and_opens_up_with_short_names() {
        let mut memory = Memory::new(48 << 20);
        assert_eq!((memory.members(), memory.reads()), (12, 9));
        for _ in 0..40 {
            memory.read(300, 10);
            memory.paged(2000, 1000);
        }
        assert_eq!(memory.members(), 512);
        assert!(memory.reads() > 1000 && memory.count() > 1000);
    }

    #[test]
    fn long_names_close_it_at_once() {
        let mut memory = Memory::new(48 << 20);
        (0..40).for_each(|_| memory.read(300, 10));
        memory.read(512 * 65_536, 512);
        assert_eq!((memory.members(), memory.reads()), (12, 1));
        memory.paged(65_536_000, 1000);
        assert_eq!(memory.count(), 96);
    }

    #[test]
    fn the_next_tag_is_likely_to_be_like_the_last_ones() {
        let mut memory = Memory::new(48 << 20);
        assert_eq!(memory.likely(), 512);
        (0..60).for_each(|_| memory.opened(10));
        assert_eq!(memory.likely(), 10);
        memory.opened(510);
        assert_eq!(memory.likely(), 60);
    }
}
