//! Ages of tags on a server that takes our own reads for use (Redis before 7.2). Pure.
//!
//! A sweep reads every tag, which sets its idle time back to zero; without a record no tag would ever
//! look older than the time between two sweeps. So each tag's record says since when the application
//! has left it alone, and when we touched it last: if nobody touched it after that, it is as old as
//! the record says, else as its idle time says.
//!
//! Records are 8 bytes under 8 bytes of the key's hash, in small hashes that the server packs: some 20
//! bytes a tag. A collision makes two tags look younger. They go with their tag, or, if the
//! application removed that, with the next complete sweep, or with time.

use std::time::Duration;

/// Hashes over which the records are spread: up to a million tags they stay packed.
pub(crate) const BUCKETS: u32 = 8192;

/// Buckets that are tidied up at once.
pub(crate) const TIDIED: u32 = 16;

/// Life of records that no sweep comes to see any more.
pub(crate) const LIFE: Duration = Duration::from_secs(200 * 86_400);

/// The server's clock of uses ticks once a second, and ours may be between two ticks.
const SLOP: u64 = 2;

/// Seconds of the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Last use by the application.
    pub used: u32,
    /// Last touch by a sweep.
    pub touched: u32,
}

impl Record {
    /// Takes in an idle time as read before our own reads. `now`: the server's clock (s).
    pub fn observe(known: Option<Self>, idle: u64, now: u64) -> Self {
        let last = now.saturating_sub(idle);
        let used = match known {
            Some(known) if last <= u64::from(known.touched) + SLOP => known.used,
            _ => clamp(last),
        };
        Self { used, touched: clamp(now) }
    }

    /// Time since the application used the tag (s).
    pub fn age(self, now: u64) -> u64 {
        now.saturating_sub(u64::from(self.used))
    }

    pub fn to_bytes(self) -> [u8; 8] {
        ((u64::from(self.used) << 32) | u64::from(self.touched)).to_be_bytes()
    }

    /// One from the server; anything else is as if there were none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let both = u64::from_be_bytes(bytes.try_into().ok()?);
        Some(Self { used: clamp(both >> 32), touched: clamp(both & u64::from(u32::MAX)) })
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
        let known = Some(Record { used: 1000, touched: 50_000 });
        let record = Record::observe(known, 100, 60_000);
        assert_eq!((record.used, record.age(60_000)), (59_900, 100));
        // A restart of the server sets idle times back: younger than it is, never older.
        assert_eq!(Record::observe(known, 10, 60_000).age(60_000), 10);
        assert_eq!(Record::observe(known, 9_999, 60_000).age(60_000), 59_000);
    }

    #[test]
    fn records_come_back_and_nonsense_is_none() {
        let record = Record { used: 7, touched: u32::MAX };
        assert_eq!(Record::read(&record.to_bytes()), Some(record));
        assert_eq!((Record::read(b""), Record::read(&[0; 9])), (None, None));
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
