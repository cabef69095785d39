//! What a sweep is told.

use crate::error::{Error, Result};
use crate::lock;
use crate::topology::LONGEST_IDLE;
use std::time::Duration;

/// What to do with an aged tag that still has live entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAged {
    /// Count it; its stale references go like everybody's.
    #[default]
    Keep,
    /// Delete its entries, then their references, as the framework's own invalidation does.
    Invalidate,
}

/// Options of a sweep. Start from `Options::default()`; every field stands alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What makes a member the key of its entry. `None`: the prefix in force, or nothing at all,
    /// whichever existing entries prove.
    pub entry_prefix: Option<Vec<u8>>,
    /// Take the mapping of members to entries for right, without a proof. Default: false.
    pub trust_mapping: bool,
    /// How long a tag must have been left alone before its references may go. Must exceed the
    /// slowest writer's time between reference and entry. Default: 5 s; at most 1 h.
    pub grace: Duration,
    /// Time from a removal to the look whether the entry appeared after all. Default: 1 s; at most 1 h.
    pub verify: Duration,
    /// Age from which a tag counts as aged; `None` to not ask. 1 s to 180 days.
    pub max_tag_age: Option<Duration>,
    /// What to do with aged tags. Default: keep.
    pub on_aged: OnAged,
    /// Stop when more than this share of the references looked at would go, stale or of aged tags
    /// (1 = never): by this sweep, and by those cut short that it goes on from. Judged from a thousand references of
    /// its own on, when all are seen, or when what is held back fills the memory; nothing goes before. Default: 1;
    /// greater than 0.
    pub max_share: f64,
    /// Stop after this many removed references; `None` for no limit.
    pub max_removals: Option<u64>,
    /// Stop after this time: nothing more is removed, and what was is verified, after `verify`, or `grace` if that is longer;
    /// `None` for no limit.
    pub max_duration: Option<Duration>,
    /// Delete an entry whose reference had to be put back: it may have missed an invalidation.
    /// Default: false.
    pub strict: bool,
    /// Note on the server what was removed until it is verified, so that a crash in between leaves
    /// nothing unverified: the next sweep does it. Costs the server as many bytes as the names.
    /// Default: false.
    pub durable: bool,
    /// Note for each tag until when none of its entries expires, but for this long at most, and pass it
    /// over until then unless its number of references changes. Saves later sweeps most of their work
    /// and costs the server some 45 bytes a tag; entries that are deleted or evicted meanwhile leave
    /// references that stay for as long. `None` to look at every tag. 1 s to 30 days.
    pub remember: Option<Duration>,
    /// Begin where an earlier sweep was cut short, and go round; only to the end of the keys if that
    /// sweep began no longer than a grace ago. Default: true.
    pub resume: bool,
    /// How much longer others may have to wait for the server because of us: a round of commands
    /// takes a fifth of it where others are at work, and half of it where hardly anybody is. Default: 500 us;
    /// 50 us to 1 s.
    pub max_latency: Duration,
    /// How much of the server's time to take at most, in tenths: 1 to 10. Default: 10.
    pub effort: u8,
    /// Memory to take for what is under way and for what waits (bytes). When it is full, the walk
    /// pauses. Default: 64 MiB; at least 4 MiB.
    pub memory: usize,
    /// Name of the lock, 1 to 65536 bytes. Default: cache_tag_cleanup.
    pub lock: Vec<u8>,
    /// TTL of the lock; extended while the sweep runs. A server out of reach is waited for as long.
    /// Default: 30 s; at least 1 s.
    pub lock_ttl: Duration,
    /// How long to wait for the lock. Default: 0 s.
    pub wait: Duration,
    /// Judge, write nothing (and take no lock). Default: false.
    pub dry_run: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            entry_prefix: None,
            trust_mapping: false,
            grace: Duration::from_secs(5),
            verify: Duration::from_secs(1),
            max_tag_age: None,
            on_aged: OnAged::Keep,
            max_share: 1.0,
            max_removals: None,
            max_duration: None,
            strict: false,
            durable: false,
            remember: None,
            resume: true,
            max_latency: Duration::from_micros(500),
            effort: 10,
            memory: 64 << 20,
            lock: b"cache_tag_cleanup".to_vec(),
            lock_ttl: Duration::from_secs(30),
            wait: Duration::ZERO,
            dry_run: false,
        }
    }
}

/// The server keeps idle times in 24 bits of seconds, which wrap after 194 days.
const AGE_MAX: Duration = Duration::from_secs(LONGEST_IDLE);

/// Longest grace and verify: what is removed waits in memory for it.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// From the shortest round that is worth its round trip to what nobody would call bounded.
const LATENCY: std::ops::RangeInclusive<Duration> =
    Duration::from_micros(50)..=Duration::from_secs(1);

/// Longer than a second, which is how finely a server keeps time; shorter than anybody would wait for
/// what was evicted.
const REMEMBER: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);

/// Less holds too little to be worth a round.
const MEMORY_MIN: usize = 4 << 20;

impl Options {
    /// Whether it can be done as told.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) with the first option that is out of bounds.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid(what));
        if self.grace > WAIT_MAX || self.verify > WAIT_MAX {
            return wrong("grace and verify must be at most one hour");
        }
        match self.max_tag_age {
            Some(age) if age < Duration::from_secs(1) => {
                return wrong("max_tag_age must be at least 1 second");
            }
            Some(age) if age > AGE_MAX => {
                return wrong("max_tag_age must be at most 180 days: the server cannot tell more");
            }
            _ => {}
        }
        if self.remember.is_some_and(|most| !REMEMBER.contains(&most)) {
            return wrong("remember must be at least 1 second and at most 30 days");
        }
        // Where it is taken for "no limit", and where for "nothing at all", both would be a surprise.
        if self.max_removals == Some(0) || self.max_duration.is_some_and(|most| most.is_zero()) {
            return wrong(
                "max_removals and max_duration must be greater than 0; without them there is no limit",
            );
        }
        if !(self.max_share > 0.0 && self.max_share <= 1.0) {
            return wrong("max_share must be greater than 0 and at most 1");
        }
        if !LATENCY.contains(&self.max_latency) {
            let given = self.max_latency;
            return wrong(&format!(
                "max_latency must be at least 50us and at most 1s, not {given:?}"
            ));
        }
        if !(1..=10).contains(&self.effort) {
            return wrong("effort must be 1 to 10");
        }
        if self.memory < MEMORY_MIN {
            return wrong("memory must be at least 4 MiB");
        }
        // Extended every third of it, between two rounds; shorter ones could end within a round.
        if self.lock_ttl < Duration::from_secs(1) {
            return wrong("the TTL of the sweep's lock must be at least 1 second");
        }
        lock::protocol::Keys::new(b"", &self.lock)?;
        self.lock_options().check()
    }

    /// How the lock is contended for.
    pub(super) fn lock_options(&self) -> lock::Options {
        lock::Options { record: true, ..lock::Options::new(self.lock_ttl) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_before_anything_is_touched() {
        assert!(Options::default().check().is_ok());
        let days = |n: u64| Some(Duration::from_secs(n * 86_400));
        for wrong in [
            Options { max_tag_age: days(181), ..Options::default() },
            Options { max_tag_age: Some(Duration::ZERO), ..Options::default() },
            Options { max_share: 0.0, ..Options::default() },
            Options { remember: days(31), ..Options::default() },
            Options { remember: Some(Duration::ZERO), ..Options::default() },
            Options { max_share: f64::NAN, ..Options::default() },
            Options { lock_ttl: Duration::from_millis(10), ..Options::default() },
            Options { lock_ttl: Duration::MAX, ..Options::default() },
            Options { grace: Duration::from_secs(7200), ..Options::default() },
            Options { max_latency: Duration::ZERO, ..Options::default() },
            Options { max_removals: Some(0), ..Options::default() },
            Options { max_duration: Some(Duration::ZERO), ..Options::default() },
            Options { effort: 0, ..Options::default() },
            Options { effort: 11, ..Options::default() },
            Options { memory: 1 << 20, ..Options::default() },
            Options { lock: Vec::new(), ..Options::default() },
        ] {
            let e = wrong.check().unwrap_err();
            assert!(e.is_invalid(), "{wrong:?}");
            let told = e.spelled(|_| "as a face does".to_owned()).to_string();
            assert!(!told.contains('_'), "every option is known to be one: {told}");
        }
    }
}
