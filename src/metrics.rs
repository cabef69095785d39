//! Statistics as OpenMetrics text. Pure.
//!
//! Names and labels are those of `ops/metrics.txt`. No label holds a tag, a token or a secret; the one
//! of a lock is its name.

use crate::lock::{Histogram, LossReason, Stats, Status};
use std::fmt::Write;
use std::time::Duration;

/// One lock to be shown: what happened to it, and how it is now, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct LockSample<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Of [`Lock::stats`](crate::lock::Lock::stats), or of a [`Status`].
    pub stats: &'a Stats,
    /// From the server.
    pub status: Option<&'a Status>,
}

/// The text for a set of locks, `# EOF` included.
///
/// ```
/// use tagsweep::{lock::Stats, metrics::{LockSample, open_metrics}};
/// let stats = Stats { acquired: 2, ..Stats::default() };
/// let text = open_metrics(&[LockSample { name: b"report", stats: &stats, status: None }]);
/// assert!(text.contains("tagsweep_lock_acquire_total{lock=\"report\",result=\"acquired\"} 2\n"));
/// assert!(text.ends_with("# EOF\n"));
/// ```
pub fn open_metrics(locks: &[LockSample]) -> String {
    let mut text = Text { out: String::new(), locks };
    text.counters();
    text.histograms();
    text.gauges();
    text.out.push_str("# EOF\n");
    text.out
}

/// Bounds of the buckets: powers of two of microseconds, from 64 µs to 71 min.
const OCTAVES: std::ops::RangeInclusive<u32> = 6..=32;

struct Text<'a> {
    out: String,
    locks: &'a [LockSample<'a>],
}

impl Text<'_> {
    fn counters(&mut self) {
        self.family("tagsweep_lock_acquire", "counter", "Attempts to take the lock.");
        self.each(|out, lock, name| {
            let stats = lock.stats;
            for (result, n) in [
                ("acquired", stats.acquired),
                ("held", stats.held),
                ("timeout", stats.timeouts),
                ("unknown", stats.unknown),
            ] {
                line(out, "acquire_total", name, &[("result", result)], n);
            }
        });
        self.family("tagsweep_lock_renew", "counter", "Renewals of leases.");
        self.each(|out, lock, name| {
            line(out, "renew_total", name, &[("result", "ok")], lock.stats.renewed);
            line(out, "renew_total", name, &[("result", "failed")], lock.stats.renew_failed);
        });
        self.family("tagsweep_lock_lost", "counter", "Leases lost before they were given back.");
        self.each(|out, lock, name| {
            for reason in LossReason::ALL {
                let n = lock.stats.lost.get(&reason).copied().unwrap_or(0);
                line(out, "lost_total", name, &[("reason", reason.name())], n);
            }
        });
        self.family("tagsweep_lock_takeover", "counter", "Grants after one never given back.");
        self.each(|out, lock, name| {
            line(out, "takeover_total", name, &[], lock.stats.takeovers);
        });
    }

    fn histograms(&mut self) {
        type Of = fn(&Stats) -> &Histogram;
        let all: [(&str, Of, &str); 3] = [
            ("wait", |stats| &stats.waits, "Time that grants were waited for."),
            ("hold", |stats| &stats.holds, "Time that leases were held."),
            ("renew_gap", |stats| &stats.gaps, "Longest time between two renewals of a lease."),
        ];
        for (what, of, help) in all {
            self.family(&format!("tagsweep_lock_{what}_seconds"), "histogram", help);
            self.each(|out, lock, name| histogram(out, what, name, of(lock.stats)));
        }
    }

    fn gauges(&mut self) {
        type Of = fn(&LockSample) -> Option<f64>;
        let all: [(&str, Of, &str); 5] = [
            (
                "held",
                |s| Some(f64::from(u8::from(s.status?.holder.is_some()))),
                "1 while it is held.",
            ),
            ("waiters", |s| Some(s.status?.waiting as f64), "Waiters in line."),
            ("fence", |s| Some(s.status?.fence? as f64), "Fencing token of the last grant."),
            (
                "ttl_seconds",
                |s| Some(s.status?.holder.as_ref()?.ttl?.as_secs_f64()),
                "Time that the lock key has left.",
            ),
            (
                "ttl_configured_seconds",
                |s| Some(s.stats.ttl).filter(|ttl| !ttl.is_zero()).map(|ttl| ttl.as_secs_f64()),
                "TTL of the last grant.",
            ),
        ];
        for (what, of, help) in all {
            self.family(&format!("tagsweep_lock_{what}"), "gauge", help);
            self.each(|out, lock, name| {
                if let Some(value) = of(lock) {
                    line(out, what, name, &[], value);
                }
            });
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    fn each(&mut self, show: impl Fn(&mut String, &LockSample, &str)) {
        for lock in self.locks {
            show(&mut self.out, lock, &label(lock.name));
        }
    }
}

fn line(
    out: &mut String,
    what: &str,
    lock: &str,
    labels: &[(&str, &str)],
    value: impl std::fmt::Display,
) {
    let _ = write!(out, "tagsweep_lock_{what}{{lock=\"{lock}\"");
    for (label, value) in labels {
        let _ = write!(out, ",{label}=\"{value}\"");
    }
    let _ = writeln!(out, "}} {value}");
}

fn histogram(out: &mut String, what: &str, lock: &str, spans: &Histogram) {
    let bucket = format!("{what}_seconds_bucket");
    for octave in OCTAVES {
        let bound = Duration::from_micros(1 << octave);
        let le = format!("{}", bound.as_secs_f64());
        line(out, &bucket, lock, &[("le", &le)], spans.up_to(bound));
    }
    line(out, &bucket, lock, &[("le", "+Inf")], spans.count());
    line(out, &format!("{what}_seconds_sum"), lock, &[], spans.sum().as_secs_f64());
    line(out, &format!("{what}_seconds_count"), lock, &[], spans.count());
}

/// A name as a label's value: quotes, backslashes and line ends escaped, what is no UTF-8 replaced.
fn label(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_labels_escaped() {
        let mut stats = Stats::default();
        stats.holds.record(Duration::from_millis(3));
        stats.holds.record(Duration::from_secs(3));
        let status = Status { fence: Some(7), waiting: 2, ..Status::default() };
        let sample = LockSample { name: b"a\"\\\n\xff", stats: &stats, status: Some(&status) };
        let text = open_metrics(&[sample]);
        let has = |end: &str| {
            let line = text.lines().find(|line| line.ends_with(end));
            assert!(
                line.is_some_and(|line| line.contains("lock=\"a\\\"\\\\\\n\u{fffd}\"")),
                "{end}\n{text}"
            );
        };
        has(",le=\"0.002048\"} 0");
        has(",le=\"0.004096\"} 1");
        has(",le=\"4.194304\"} 2");
        has(",le=\"+Inf\"} 2");
        has("hold_seconds_sum{lock=\"a\\\"\\\\\\n\u{fffd}\"} 3.003");
        has("waiters{lock=\"a\\\"\\\\\\n\u{fffd}\"} 2");
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("tagsweep_")));
        assert!(!text.contains("ttl_seconds{"), "nobody holds it");
    }
}
