//! What is known of tags from earlier sweeps. Pure.
//!
//! **Ages**, on a server that takes our own reads for use (Redis before 7.2). A sweep reads every tag,
//! which sets its idle time back to zero; without a record no tag would ever look older than the time
//! between two sweeps. So each tag's record says since when the application has left it alone, and when
//! we touched it last: if nobody touched it after that, it is as old as the record says, else as its
//! idle time says.
//!
//! **Warrants**, for sweeps that are to remember: until when none of a tag's entries can expire, and how
//! many references it had then. While the number is the same, nobody has used the tag (as far as the
//! server tells in spite of our own reads) and that time has not come, nothing in it is stale, unless an
//! entry was deleted, evicted or given a shorter life by itself.
//!
//! Records are 8 or 16 bytes under 8 bytes of the key's hash, in small hashes that the server packs: some
//! 20 or 45 bytes a tag. Two tags of one hash share a record, which by chance none do. They go with their tag, or, if
//! the application removed that, with the next complete sweep, or with time.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

/// Hashes over which the records are spread: up to a million tags they stay packed.
pub(crate) const BUCKETS: u32 = 8192;

/// Buckets that are tidied up at once.
pub(crate) const TIDIED: u32 = 16;

/// Records of a bucket that are looked at at once, where the server does not have it packed.
pub(crate) const PART: usize = 256;

/// Life of records that no sweep comes to see any more.
pub(crate) const LIFE: Duration = Duration::from_secs(200 * 86_400);

/// The server's clock of uses ticks once a second, and ours may be between two ticks.
pub(crate) const SLOP: u64 = 2;

/// Seconds of the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Last use by the application.
    pub used: u32,
    /// Last touch by a sweep.
    pub touched: u32,
    /// Until when nothing in it can be stale, if that is known.
    pub warrant: Option<Warrant>,
}

/// That nothing in a tag is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Warrant {
    /// Until then.
    pub until: u32,
    /// As long as this is so.
    pub mark: u32,
}

impl Warrant {
    /// For a tag with so many references, whose members lead to entries by this prefix.
    pub fn new(until: u64, references: u64, entry_prefix: &[u8]) -> Self {
        let mark = hash(&[references.to_be_bytes().as_slice(), entry_prefix].concat());
        Self { until: clamp(until), mark: (mark & u64::from(u32::MAX)) as u32 }
    }

    /// Whether it holds now for what the tag is now.
    pub fn holds(self, now: u64, references: u64, entry_prefix: &[u8]) -> bool {
        u64::from(self.until) > now && Self::new(0, references, entry_prefix).mark == self.mark
    }
}

impl Record {
    /// Takes in an idle time as read before our own reads. `now`: the server's clock (s).
    pub fn observe(known: Option<Self>, idle: u64, now: u64) -> Self {
        let last = now.saturating_sub(idle);
        let used = match known {
            Some(known) if last <= u64::from(known.touched) + SLOP => known.used,
            _ => clamp(last),
        };
        Self { used, touched: clamp(now), warrant: None }
    }

    /// Time since the application used the tag (s).
    pub fn age(self, now: u64) -> u64 {
        now.saturating_sub(u64::from(self.used))
    }

    /// Whether the application has used the tag since this was noted, where our own reads leave idle times
    /// alone.
    pub fn is_used_since(self, idle: u64, now: u64) -> bool {
        now.saturating_sub(idle) > u64::from(self.used) + SLOP
    }

    pub fn to_bytes(self) -> Vec<u8> {
        let warrant = self.warrant.map(|warrant| [warrant.until, warrant.mark]);
        let numbers = [self.used, self.touched].into_iter().chain(warrant.into_iter().flatten());
        numbers.flat_map(u32::to_be_bytes).collect()
    }

    /// One from the server; anything else is as if there were none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<4>();
        let numbers: Vec<u32> = numbers.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
        match (numbers.as_slice(), rest.is_empty()) {
            ([used, touched], true) => Some(Self { used: *used, touched: *touched, warrant: None }),
            ([used, touched, until, mark], true) => {
                let warrant = Some(Warrant { until: *until, mark: *mark });
                Some(Self { used: *used, touched: *touched, warrant })
            }
            _ => None,
        }
    }

    /// Whether a sweep that began then, and has seen every tag, may forget it.
    pub fn is_unseen(self, began: u64, now: u64) -> bool {
        let warranted = self.warrant.is_some_and(|warrant| u64::from(warrant.until) > now);
        u64::from(self.touched) < began && !warranted
    }
}

fn clamp(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Where a tag's record is: its bucket and its field.
pub(crate) fn place(tag: &[u8]) -> (u32, [u8; 8]) {
    let hash = hash(tag);
    ((hash % u64::from(BUCKETS)) as u32, hash.to_be_bytes())
}

/// FNV-1a, and the finalizer of SplitMix64, for FNV's low bits are poor. Must not change: it names
/// what is kept on servers.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A name's hash in this process, which nobody can choose names for.
pub(crate) fn name(bytes: &[u8]) -> u64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    STATE.hash_one(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn daily_sweeps_do_not_make_a_tag_young() {
        let start = 1_800_000_000;
        let mut known = None;
        for day in 0..10 {
            let now = start + day * DAY;
            // Nobody but the sweeps has touched it: the second one finds it idle for a day.
            let idle = if day == 0 { 3600 } else { DAY };
            let record = Record::observe(known, idle, now);
            assert_eq!(record.age(now), 3600 + day * DAY);
            known = Some(record);
        }
    }

    #[test]
    fn use_by_the_application_makes_it_young_again() {
        let known = Some(Record { used: 1000, touched: 50_000, warrant: None });
        let record = Record::observe(known, 100, 60_000);
        assert_eq!((record.used, record.age(60_000)), (59_900, 100));
        // A restart of the server sets idle times back: younger than it is, never older.
        assert_eq!(Record::observe(known, 10, 60_000).age(60_000), 10);
        assert_eq!(Record::observe(known, 9_999, 60_000).age(60_000), 59_000);
    }

    #[test]
    fn records_come_back_and_nonsense_is_none() {
        let record = Record { used: 7, touched: u32::MAX, warrant: None };
        assert_eq!(Record::read(&record.to_bytes()), Some(record));
        let record = Record { warrant: Some(Warrant::new(9, 3, b"app:")), ..record };
        assert_eq!(Record::read(&record.to_bytes()), Some(record));
        for nonsense in [0, 4, 9, 12, 20] {
            assert_eq!(Record::read(&vec![0; nonsense]), None, "{nonsense}");
        }
    }

    #[test]
    fn a_warrant_ends_with_its_time_or_when_the_tag_is_another() {
        let warrant = Warrant::new(1000, 10, b"app:");
        assert!(warrant.holds(999, 10, b"app:"));
        assert!(!warrant.holds(1000, 10, b"app:") && !warrant.holds(999, 11, b"app:"));
        assert!(!warrant.holds(999, 10, b""));
        let record = Record { used: 900, touched: 950, warrant: Some(warrant) };
        assert!(!record.is_used_since(60, 960) && record.is_used_since(5, 960));
        let record = Record { used: 1, touched: 500, warrant: Some(warrant) };
        assert!(record.is_unseen(600, 1000) && !record.is_unseen(600, 999));
        assert!(!record.is_unseen(400, 2000));
    }

    #[test]
    fn places_are_spread_and_stay_where_they_are() {
        assert_eq!(place(b"tag:1").0, (hash(b"tag:1") % 8192) as u32);
        assert_eq!(hash(b"tag:1"), 0x0795_07d6_a7eb_1d59);
        let mut buckets = vec![0; BUCKETS as usize];
        (0..81_920).for_each(|n| buckets[place(format!("tag:{n}").as_bytes()).0 as usize] += 1);
        assert!(buckets.iter().all(|n| *n < 40), "{:?}", buckets.iter().max());
    }
}
