//! What happened around a lock: counters and histograms. Kept in process, and in a hash on the server
//! for programs that do not live long. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LossReason {
    /// The key is gone: it has expired, or was deleted.
    Expired,
    /// The key is gone before its time, on a server that evicts keys for want of memory.
    Evicted,
    /// The key is gone before its time, and with it all that the server knew of the grant: a replica
    /// took over that had not heard of it, or the server was restarted, or emptied.
    Failover,
    /// Somebody else has the lock.
    Stolen,
    /// An operator took it away.
    Forced,
    /// No answer came in time.
    Unknown,
    /// It was held for as long as it may be.
    MaxHold,
}

impl LossReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Expired,
        Self::Evicted,
        Self::Failover,
        Self::Stolen,
        Self::Forced,
        Self::Unknown,
        Self::MaxHold,
    ];

    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Failover => "failover",
            Self::Stolen => "stolen",
            Self::Forced => "forced",
            Self::Unknown => "unknown",
            Self::MaxHold => "max_hold",
        }
    }

    /// In words, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Expired => "its key is gone (expired, or deleted)",
            Self::Evicted => "the server evicted its key",
            Self::Failover => "the server lost it (a failover, a restart, or it was emptied)",
            Self::Stolen => "somebody else has it",
            Self::Forced => "an operator took it away",
            Self::Unknown => "the server confirmed no renewal in time",
            Self::MaxHold => "it was held for as long as it may be",
        }
    }
}

/// Spans, counted by their logarithm: four buckets an octave, from a microsecond on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: BTreeMap<u32, u64>,
    sum_us: u64,
}

/// Buckets in an octave: a bucket's bounds are 19 % apart.
const PER_OCTAVE: f64 = 4.0;

/// The last bucket: some twelve days.
const LAST: u32 = 160;

/// The bucket of a span.
fn bucket(span: Duration) -> u32 {
    let us = span.as_secs_f64() * 1e6;
    if us <= 1.0 { 0 } else { ((us.log2() * PER_OCTAVE).ceil() as u32).min(LAST) }
}

/// The largest span in a bucket.
pub(crate) fn bound(bucket: u32) -> Duration {
    Duration::from_secs_f64((f64::from(bucket) / PER_OCTAVE).exp2() / 1e6)
}

impl Histogram {
    /// Takes a span in.
    pub fn record(&mut self, span: Duration) {
        self.add(bucket(span), 1);
        let us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.sum_us = self.sum_us.saturating_add(us);
    }

    pub(crate) fn add(&mut self, bucket: u32, count: u64) {
        let entry = self.buckets.entry(bucket.min(LAST)).or_default();
        *entry = entry.saturating_add(count);
    }

    /// The first bucket that has any.
    pub(crate) fn first(&self) -> Option<u32> {
        self.buckets.keys().next().copied()
    }

    /// How many spans.
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum: u64, n| sum.saturating_add(*n))
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// The span that a share of them does not exceed, at most a bucket's width more; `None` without any.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0);
        // What was told of by parts may lack its sum.
        let most = Some(self.sum()).filter(|sum| !sum.is_zero()).unwrap_or(Duration::MAX);
        let mut seen = 0;
        self.buckets.iter().find_map(|(bucket, count)| {
            seen = u64::saturating_add(seen, *count);
            (seen as f64 >= wanted).then(|| bound(*bucket).min(most))
        })
    }

    /// How many spans are at most `limit`, for limits at bounds of buckets.
    pub fn up_to(&self, limit: Duration) -> u64 {
        let last = bucket(limit);
        self.buckets.range(..=last).fold(0, |sum: u64, (_, n)| sum.saturating_add(*n))
    }

    pub(crate) fn fields(&self, name: &str, out: &mut Vec<(String, u64)>) {
        out.extend(self.buckets.iter().map(|(bucket, count)| (format!("{name}.{bucket}"), *count)));
        if self.sum_us > 0 {
            out.push((format!("{name}.sum_us"), self.sum_us));
        }
    }

    pub(crate) fn take_field(&mut self, field: &str, value: u64) {
        if field == "sum_us" {
            self.sum_us = value;
        } else if let Ok(bucket) = field.parse() {
            self.add(bucket, value);
        }
    }
}

/// What happened around one lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Grants.
    pub acquired: u64,
    /// Attempts that found it held.
    pub held: u64,
    /// Waits that ended without it.
    pub timeouts: u64,
    /// Attempts of which nobody knows how they ended.
    pub unknown: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Grants that followed one that was never given back.
    pub takeovers: u64,
    /// Renewals.
    pub renewed: u64,
    /// Renewals that failed, before one succeeded or the lease was lost.
    pub renew_failed: u64,
    /// Leases lost.
    pub lost: BTreeMap<LossReason, u64>,
    /// How long grants were waited for.
    pub waits: Histogram,
    /// How long leases were held.
    pub holds: Histogram,
    /// Longest gap between two renewals of each lease.
    pub gaps: Histogram,
    /// TTL in force, at the last grant.
    pub ttl: Duration,
}

impl Stats {
    /// Counts a lost lease.
    pub(crate) fn lose(&mut self, reason: LossReason) {
        *self.lost.entry(reason).or_default() += 1;
    }

    /// As fields of a hash, with what each grows by.
    pub(crate) fn fields(&self) -> Vec<(String, u64)> {
        let counters = [
            ("acquired", self.acquired),
            ("unknown", self.unknown),
            ("error", self.errors),
            ("renewed", self.renewed),
            ("renew_failed", self.renew_failed),
        ];
        let mut out: Vec<_> = counters
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        out.extend(self.lost.iter().map(|(why, n)| (format!("lost.{}", why.name()), *n)));
        self.waits.fields("wait", &mut out);
        self.holds.fields("hold", &mut out);
        self.gaps.fields("gap", &mut out);
        out
    }

    /// From the hash. What is not understood is passed over: the hash may be anybody's.
    pub(crate) fn read(fields: &[(String, String)]) -> Self {
        let mut stats = Self::default();
        for (field, value) in fields {
            let Ok(value) = value.parse::<u64>() else { continue };
            let (name, rest) = field.split_once('.').unwrap_or((field, ""));
            match name {
                "acquired" => stats.acquired = value,
                "held" => stats.held = value,
                "timeout" => stats.timeouts = value,
                "unknown" => stats.unknown = value,
                "error" => stats.errors = value,
                "takeover" => stats.takeovers = value,
                "renewed" => stats.renewed = value,
                "renew_failed" => stats.renew_failed = value,
                "wait" => stats.waits.take_field(rest, value),
                "hold" => stats.holds.take_field(rest, value),
                "gap" => stats.gaps.take_field(rest, value),
                "lost" => {
                    if let Some(why) = LossReason::ALL.into_iter().find(|why| why.name() == rest) {
                        stats.lost.insert(why, value);
                    }
                }
                _ => {}
            }
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut spans = Histogram::default();
        (1..=1000).for_each(|ms| spans.record(Duration::from_millis(ms)));
        for (share, truth) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let told = spans.quantile(share).unwrap().as_secs_f64() * 1e3;
            assert!(told >= truth && told < truth * 1.2, "{share}: {told}");
        }
        assert_eq!(spans.count(), 1000);
        assert_eq!(spans.sum(), Duration::from_millis(500_500));
        assert_eq!(spans.up_to(Duration::from_secs(4000)), 1000);
        assert_eq!(Histogram::default().quantile(0.5), None);
        let mut one = Histogram::default();
        one.record(Duration::from_millis(6001));
        assert_eq!(
            one.quantile(0.99),
            Some(Duration::from_millis(6001)),
            "no more than all together"
        );
    }

    #[test]
    fn statistics_come_back_as_they_went_in_and_nonsense_is_passed_over() {
        let mut stats = Stats { acquired: 3, renewed: 2, ..Stats::default() };
        stats.lose(LossReason::Stolen);
        stats.holds.record(Duration::from_millis(12));
        stats.waits.record(Duration::ZERO);
        let mut fields: Vec<(String, String)> =
            stats.fields().into_iter().map(|(name, n)| (name, n.to_string())).collect();
        assert_eq!(Stats::read(&fields), stats);
        fields.push(("hold.x".into(), "9".into()));
        fields.push(("acquired".into(), "minus".into()));
        fields.push(("?".into(), "1".into()));
        assert_eq!(Stats::read(&fields), stats);
    }
}
