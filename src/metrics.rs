//! Statistics as OpenMetrics text. Pure.
//!
//! Names and labels are those of `ops/metrics.txt`. No label holds a tag, a token or a secret; the one
//! of a lock is its name, and of sweeps that of their lock.

use crate::lock::{Histogram, LossReason, Stats, Status};
use crate::sweep::Totals;
use std::collections::BTreeMap;
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

/// The sweeps under one lock.
#[derive(Clone, Copy, Debug)]
pub struct SweepSample<'a> {
    /// Name of the lock.
    pub lock: &'a [u8],
    /// Of [`totals`](crate::sweep::totals).
    pub totals: &'a Totals,
}

/// The text for a set of locks and for the sweeps under some of them, `# EOF` included.
///
/// ```
/// use tagsweep::{lock::Stats, metrics::{LockSample, open_metrics}};
/// let stats = Stats { acquired: 2, ..Stats::default() };
/// let text = open_metrics(&[LockSample { name: b"report", stats: &stats, status: None }], &[]);
/// assert!(text.contains("tagsweep_lock_acquire_total{lock=\"report\",result=\"acquired\"} 2\n"));
/// assert!(text.ends_with("# EOF\n"));
/// ```
pub fn open_metrics(locks: &[LockSample], sweeps: &[SweepSample]) -> String {
    let mut text = Text { out: String::new(), locks, sweeps };
    text.counters();
    text.histograms();
    text.gauges();
    text.runs();
    text.work();
    text.out.push_str("# EOF\n");
    text.out
}

/// Bounds of the buckets: powers of two of microseconds, from 64 µs to 71 min.
const OCTAVES: std::ops::RangeInclusive<u32> = 6..=32;

struct Text<'a> {
    out: String,
    locks: &'a [LockSample<'a>],
    sweeps: &'a [SweepSample<'a>],
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
                ("error", stats.errors),
            ] {
                line(out, "lock_acquire_total", name, &[("result", result)], n);
            }
        });
        self.family("tagsweep_lock_renew", "counter", "Renewals of leases.");
        self.each(|out, lock, name| {
            line(out, "lock_renew_total", name, &[("result", "ok")], lock.stats.renewed);
            line(out, "lock_renew_total", name, &[("result", "failed")], lock.stats.renew_failed);
        });
        self.family("tagsweep_lock_lost", "counter", "Leases lost before they were given back.");
        self.each(|out, lock, name| {
            for reason in LossReason::ALL {
                let n = lock.stats.lost.get(&reason).copied().unwrap_or(0);
                line(out, "lock_lost_total", name, &[("reason", reason.name())], n);
            }
        });
        self.family("tagsweep_lock_takeover", "counter", "Grants after one never given back.");
        self.each(|out, lock, name| {
            line(out, "lock_takeover_total", name, &[], lock.stats.takeovers);
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
            self.each(|out, lock, name| {
                histogram(out, &format!("lock_{what}"), name, of(lock.stats))
            });
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
            ("token", |s| Some(s.status?.fence? as f64), "Fencing token of the last grant."),
            (
                "ttl_seconds",
                |s| {
                    let left = s.status?.holder.as_ref()?.ttl;
                    Some(left.map_or(f64::INFINITY, |left| left.as_secs_f64()))
                },
                "Time that the lock key has left; +Inf if it never expires.",
            ),
            (
                "ttl_configured_seconds",
                |s| {
                    // A holder that is not ours has a TTL of its own.
                    let strange = |status: &Status| {
                        status.holder.as_ref().is_some_and(|holder| holder.fence.is_none())
                    };
                    let ttl = s.stats.ttl;
                    let told = !ttl.is_zero() && !s.status.is_some_and(strange);
                    told.then_some(ttl.as_secs_f64())
                },
                "TTL of the last grant, unless something else holds the lock.",
            ),
        ];
        for (what, of, help) in all {
            self.family(&format!("tagsweep_lock_{what}"), "gauge", help);
            self.each(|out, lock, name| {
                if let Some(value) = of(lock) {
                    let value = if value.is_infinite() { "+Inf".into() } else { value.to_string() };
                    line(out, &format!("lock_{what}"), name, &[], value);
                }
            });
        }
    }

    /// How sweeps ended, and how long they took.
    fn runs(&mut self) {
        self.family("tagsweep_run", "counter", "Sweeps, by how they ended.");
        self.sweeps(|out, totals, name| {
            for result in RESULTS {
                let n = totals.runs.iter().filter(|(reason, _)| result_of(reason) == result);
                line(out, "run_total", name, &[("result", result)], n.map(|(_, n)| n).sum::<u64>());
            }
        });
        self.family("tagsweep_run_seconds", "histogram", "Durations of sweeps.");
        self.sweeps(|out, totals, name| histogram(out, "run", name, &totals.durations));
        let help = "How long one round of a sweep's commands kept the server.";
        self.family("tagsweep_page_seconds", "histogram", help);
        self.sweeps(|out, totals, name| histogram(out, "page", name, &totals.rounds));
        let help = "When all tags had been seen: by a complete sweep, or by several in a row.";
        self.family("tagsweep_last_success_timestamp_seconds", "gauge", help);
        self.sweeps(|out, totals, name| {
            if let Some(at) = totals.last_success {
                line(out, "last_success_timestamp_seconds", name, &[], at);
            }
        });
        self.family("tagsweep_redis_errors", "counter", "Errors that sweeps met, by first word.");
        self.sweeps(|out, totals, name| {
            // From the beginning: a counter that appears with its first error has no increase.
            let usual = ALARMING.iter().filter(|code| !totals.errors.contains_key(**code));
            for (code, n) in usual.map(|code| (*code, 0)).chain(told(&totals.errors)) {
                line(out, "redis_errors_total", name, &[("code", code)], n);
            }
        });
    }

    /// What sweeps did.
    fn work(&mut self) {
        let counters = [
            ("tags_scanned", "tags_seen", "Tags read."),
            ("tags_removed", "tags_removed", "Tags whose last reference was removed."),
            ("tags_skipped", "tags_skipped", "Keys of another type under the names of tags."),
            ("members_checked", "references_checked", "References whose entry was looked for."),
            ("members_removed", "references_removed", "References removed."),
            ("members_restored", "references_restored", "References put back."),
            ("reclaimed_bytes", "bytes_reclaimed", "Memory given back, estimated from samples."),
            ("lock_fenced", "fenced", "Sweeps whose commands the server refused: lock lost."),
        ];
        for (metric, count, help) in counters {
            self.family(&format!("tagsweep_{metric}"), "counter", help);
            self.sweeps(|out, totals, name| {
                let n = totals.counts.get(count).copied().unwrap_or(0);
                line(out, &format!("{metric}_total"), name, &[], n);
            });
        }
        let help = "References to absent entries that were left alone, and why.";
        self.family("tagsweep_members_skipped", "counter", help);
        self.sweeps(|out, totals, name| {
            let n = totals.counts.get("references_skipped").copied().unwrap_or(0);
            line(out, "members_skipped_total", name, &[("reason", "in_use")], n);
        });
        let help = "Share of the references checked that were removed, of all sweeps.";
        self.family("tagsweep_orphan_ratio", "gauge", help);
        self.sweeps(|out, totals, name| {
            let count = |count: &str| totals.counts.get(count).copied().unwrap_or(0) as f64;
            let checked = count("references_checked");
            if checked > 0.0 {
                line(out, "orphan_ratio", name, &[], count("references_removed") / checked);
            }
        });
    }

    fn sweeps(&mut self, show: impl Fn(&mut String, &Totals, &str)) {
        for sweep in self.sweeps {
            show(&mut self.out, sweep.totals, &label(sweep.lock));
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

/// The same text with more labels at every sample: where the metrics of several servers or prefixes come
/// together, locks of one name stay apart.
pub fn labelled(text: &str, labels: &[(String, String)]) -> String {
    let more: String = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\",", label(value.as_bytes())))
        .collect();
    let lines = text.split_inclusive('\n').map(|line| match line.starts_with('#') {
        true => line.to_owned(),
        false => line.replacen('{', &format!("{{{more}"), 1),
    });
    lines.collect()
}

/// Values of the label `result`.
const RESULTS: [&str; 5] = ["complete", "partial", "lost", "busy", "error"];

/// Errors that an alert asks for.
const ALARMING: [&str; 4] = ["MISCONF", "NOREPLICAS", "OOM", "READONLY"];

fn told(errors: &BTreeMap<String, u64>) -> impl Iterator<Item = (&str, u64)> {
    errors.iter().map(|(code, n)| (code.as_str(), *n))
}

/// Under which of them a run counts that ended for that reason.
fn result_of(reason: &str) -> &str {
    match reason {
        "complete" | "lost" | "busy" | "error" => reason,
        _ => "partial",
    }
}

fn line(
    out: &mut String,
    what: &str,
    lock: &str,
    labels: &[(&str, &str)],
    value: impl std::fmt::Display,
) {
    let _ = write!(out, "tagsweep_{what}{{lock=\"{lock}\"");
    for (key, value) in labels {
        let _ = write!(out, ",{key}=\"{}\"", label(value.as_bytes()));
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

/// What stands for a byte that is no UTF-8, before its two digits.
const STRANGE: &str = "\u{fffd}";

/// A name as a label's value: quotes, backslashes and line ends escaped; names that are no UTF-8 stay apart.
fn label(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        text.push_str(&chunk.valid().replace(STRANGE, &STRANGE.repeat(2)));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("{STRANGE}{byte:02x}")));
    }
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
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
        let text = open_metrics(&[sample], &[]);
        let has = |end: &str| {
            let line = text.lines().find(|line| line.ends_with(end));
            assert!(
                line.is_some_and(|line| line.contains("lock=\"a\\\"\\\\\\n\u{fffd}ff\"")),
                "{end}\n{text}"
            );
        };
        has(",le=\"0.002048\"} 0");
        has(",le=\"0.004096\"} 1");
        has(",le=\"4.194304\"} 2");
        has(",le=\"+Inf\"} 2");
        has("hold_seconds_sum{lock=\"a\\\"\\\\\\n\u{fffd}ff\"} 3.003");
        has("waiters{lock=\"a\\\"\\\\\\n\u{fffd}ff\"} 2");
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("tagsweep_")));
        assert!(!text.contains("ttl_seconds{"), "nobody holds it");
        let names = [b"\xff".as_slice(), b"\\xff", "\u{fffd}ff".as_bytes(), b"ff", b"xff"];
        let labels: std::collections::BTreeSet<String> = names.map(label).into();
        assert_eq!(labels.len(), names.len(), "{labels:?}");
    }

    #[test]
    fn what_never_expires_and_what_is_not_ours_is_told() {
        use crate::lock::Holder;
        let stats = Stats { ttl: Duration::from_secs(30), ..Stats::default() };
        let told = |fence, ttl| {
            let holder = Some(Holder { fence, ttl, ..Holder::default() });
            let status = Status { holder, ..Status::default() };
            let sample = LockSample { name: b"l", stats: &stats, status: Some(&status) };
            open_metrics(&[sample], &[])
        };
        let forever = told(Some(7), None);
        assert!(forever.contains("lock_ttl_seconds{lock=\"l\"} +Inf\n"), "{forever}");
        assert!(forever.contains("ttl_configured_seconds{"), "{forever}");
        assert!(!told(None, None).contains("ttl_configured_seconds{"));
    }

    #[test]
    fn more_labels_come_first() {
        let totals = Totals::default();
        let text = open_metrics(&[], &[SweepSample { lock: b"l{", totals: &totals }]);
        let more = labelled(&text, &[("server".into(), "a\"b".into())]);
        assert!(
            more.contains("run_total{server=\"a\\\"b\",lock=\"l{\",result=\"lost\"} 0\n"),
            "{more}"
        );
        assert_eq!(
            more.lines().filter(|line| line.starts_with('#')).count(),
            text.lines().filter(|line| line.starts_with('#')).count()
        );
    }

    #[test]
    fn what_a_server_calls_an_error_is_escaped_too() {
        let totals = Totals { errors: [("A\"}".to_owned(), 1)].into(), ..Totals::default() };
        let text = open_metrics(&[], &[SweepSample { lock: b"l", totals: &totals }]);
        assert!(text.contains("{lock=\"l\",code=\"A\\\"}\"} 1\n"), "{text}");
    }

    #[test]
    fn what_an_alert_asks_for_is_there_before_it_happens() {
        let errors = [("OOM".to_owned(), 2), ("LOADING".to_owned(), 1)].into();
        let totals = Totals { errors, ..Totals::default() };
        let text = open_metrics(&[], &[SweepSample { lock: b"l", totals: &totals }]);
        let told = |code: &str, n: u64| text.contains(&format!("code=\"{code}\"}} {n}\n"));
        assert!(told("OOM", 2) && told("LOADING", 1) && !told("OOM", 0), "{text}");
        assert!(told("MISCONF", 0) && told("NOREPLICAS", 0) && told("READONLY", 0), "{text}");
        let alerts = include_str!("../ops/alerts.yml");
        assert!(alerts.contains("code=~\"OOM|NOREPLICAS|MISCONF|READONLY\""));
    }
}
