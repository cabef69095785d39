//! How long a lease should live: fixed, or learned from the past.
//!
//! Learned from a log-histogram of how late renewals came at most (of whole durations when nothing
//! renews), the newest weeks weighing most: a high quantile, times a margin, within bounds. The
//! estimator of TCP's retransmission timer (mean plus deviations) was measured to be unsound here:
//! durations are skewed, not jittered.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::Result;
use crate::lock::protocol::Keys;
use crate::lock::stats::Histogram;
use crate::reply::{texts, understood};
use redis::Value;
use std::time::Duration;

/// Life of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// This long.
    Fixed(Duration),
    /// As the lock's past teaches.
    Auto {
        /// Never less.
        least: Duration,
        /// Never more.
        most: Duration,
    },
}

impl Ttl {
    /// Learned, within 10 s and 5 min.
    pub const AUTO: Self =
        Self::Auto { least: Duration::from_secs(10), most: Duration::from_secs(300) };

    /// What it is without a past.
    pub fn initial(self) -> Duration {
        match self {
            Self::Fixed(ttl) => ttl,
            Self::Auto { least, most } => UNTAUGHT.clamp(least, most.max(least)),
        }
    }
}

/// Without a past.
const UNTAUGHT: Duration = Duration::from_secs(30);

/// Which share of the past must fit.
const SHARE: f64 = 0.999;

/// A renewal every so many parts of a TTL.
pub(crate) const PARTS: u32 = 3;

/// Margin over how late a renewal comes: two of three may fail, and be late.
const RENEWED: u32 = 6;

/// Margin over a duration.
const UNRENEWED: u32 = 2;

/// A past so short teaches nothing.
const FEWEST: u64 = 5;

/// How long a week's weight takes to halve, in weeks, and how many weeks count at all.
const WEEKS: u64 = 4;

/// The field of the statistics in which a span of this week is counted.
pub(crate) fn field(renewed: bool, server_us: u64, span: Duration) -> String {
    let mut one = Histogram::default();
    one.record(span);
    let bucket = one.first().unwrap_or_default();
    format!("{}{}.{bucket}", letter(renewed), week(server_us))
}

fn letter(renewed: bool) -> char {
    if renewed { 'g' } else { 'd' }
}

fn week(server_us: u64) -> u64 {
    server_us / 1_000_000 / 604_800
}

/// The past of one lock: spans of the last weeks, weighed, and fields that are too old to keep.
pub(crate) struct Past {
    spans: Histogram,
    samples: u64,
    pub outdated: Vec<String>,
}

impl Past {
    /// From the statistics' hash; `server_us` is the server's time. What makes no sense is ignored.
    pub fn read(fields: &[(String, String)], renewed: bool, server_us: u64) -> Self {
        let (now, mut past) = (week(server_us), Self::empty());
        for (field, value) in fields {
            let Some((name, bucket)) = field.split_once('.') else { continue };
            let (Some(kind), Ok(bucket)) = (name.chars().next(), bucket.parse::<u32>()) else {
                continue;
            };
            let (Ok(then), Ok(count)) =
                (name[kind.len_utf8()..].parse::<u64>(), value.parse::<u64>())
            else {
                continue;
            };
            match now.checked_sub(then) {
                _ if kind != 'g' && kind != 'd' => {}
                Some(age) if age < WEEKS => {
                    if kind == letter(renewed) {
                        past.samples = past.samples.saturating_add(count);
                        past.spans.add(bucket, count.min(1 << 40) << (WEEKS - 1 - age));
                    }
                }
                // Too old; or from a future that was never, or is no more.
                _ => past.outdated.push(field.clone()),
            }
        }
        past
    }

    fn empty() -> Self {
        Self { spans: Histogram::default(), samples: 0, outdated: Vec::new() }
    }

    /// What a TTL should be.
    pub fn teach(&self, ttl: Ttl, renewed: bool) -> Duration {
        let Ttl::Auto { least, most } = ttl else { return ttl.initial() };
        let margin = if renewed { RENEWED } else { UNRENEWED };
        match self.spans.quantile(SHARE) {
            Some(span) if self.samples >= FEWEST => (span * margin).clamp(least, most.max(least)),
            _ => ttl.initial(),
        }
    }
}

/// The TTL that the past of a lock teaches; forgets what is too old. One round trip, at most two.
pub(crate) fn learn(link: &mut Link, keys: &Keys, ttl: Ttl, renewed: bool) -> Result<Duration> {
    let commands = [redis::cmd("HGETALL").arg(&keys.stats).to_owned(), redis::cmd("TIME")];
    let replies = link.ask_all(&commands)?;
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil);
    // A hash that is none, or a permission that is missing, is a past that teaches nothing.
    let fields: Vec<(String, String)> = texts(next()).unwrap_or_default();
    let (seconds, _): (u64, u64) = understood(next()).unwrap_or_default();
    let past = Past::read(&fields, renewed, seconds * 1_000_000);
    if !past.outdated.is_empty() {
        let mut forget = redis::cmd("HDEL");
        forget.arg(&keys.stats).arg(&past.outdated);
        let deadline = (Moment::now() + Duration::from_millis(500)).min(link.deadline());
        let _ = link.call(&forget, deadline);
    }
    Ok(past.teach(ttl, renewed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000_000;

    fn past(spans: &[(u64, u64)]) -> Vec<(String, String)> {
        let of =
            |(ms, n): &(u64, u64)| (field(true, NOW, Duration::from_millis(*ms)), n.to_string());
        spans.iter().map(of).collect()
    }

    #[test]
    fn without_a_past_it_is_half_a_minute_and_always_within_bounds() {
        let taught = |fields: &[_]| Past::read(fields, true, NOW).teach(Ttl::AUTO, true);
        assert_eq!(taught(&[]), Duration::from_secs(30));
        assert_eq!(taught(&past(&[(5000, 4)])), Duration::from_secs(30), "too few");
        assert_eq!(taught(&past(&[(5, 1000)])), Duration::from_secs(10));
        assert_eq!(taught(&past(&[(3_600_000, 1000)])), Duration::from_secs(300));
        let learned = taught(&past(&[(5000, 100_000), (6000, 1000)]));
        assert!((30..45).contains(&learned.as_secs()), "{learned:?}");
    }

    #[test]
    fn a_poisoned_past_is_bounded_or_ignored() {
        let poison = [("g999999.3", "5"), ("g.1", "1"), ("gx.1", "1"), ("é.1", "2"), ("g1.1", "7")];
        let fields: Vec<_> = poison.map(|(f, v)| (f.to_owned(), v.to_owned())).into();
        let read = Past::read(&fields, true, NOW);
        assert_eq!(read.teach(Ttl::AUTO, true), Duration::from_secs(30));
        assert_eq!(read.outdated, ["g999999.3", "g1.1"]);
        let huge = [(field(true, NOW, Duration::MAX), u64::MAX.to_string())];
        let ttl = Past::read(&huge, true, NOW).teach(Ttl::AUTO, true);
        assert_eq!(ttl, Duration::from_secs(300));
    }

    #[test]
    fn what_is_new_weighs_more_than_what_is_old() {
        let old = NOW - 3 * 604_800_000_000;
        let fields = [
            (field(true, old, Duration::from_secs(20)), "1".to_owned()),
            (field(true, NOW, Duration::from_secs(4)), "2000".to_owned()),
        ];
        let ttl = Past::read(&fields, true, NOW).teach(Ttl::AUTO, true);
        assert!(ttl < Duration::from_secs(40), "{ttl:?}");
    }
}
