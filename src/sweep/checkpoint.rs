//! How far a sweep has come, kept on the server: whoever has the lock next goes on from there. Pure.
//!
//! A checkpoint names the oldest page of which something is unsettled, so nothing is passed over by
//! going on. It counts only for the same server process (cursors mean nothing to another), the same
//! keys and the same question. Where a sweep came no farther than it began, because tags in use would have taken
//! longer than it ran, it names the first page behind them: shorter sweeps than that still come to all others.
//!
//! Whoever goes on begins there and goes round, to that place again: what became stale before it since
//! then is found, too, and a sweep that is cut short every night still comes to every tag in turn. Only
//! if the beginning was left no longer than a grace ago can nothing have become stale in it that a sweep
//! would have to find; then the rest is enough.

use crate::sweep::options::Options;
use crate::sweep::report::Report;
use crate::sweep::walk::{Place, Walk};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// For how long a checkpoint is kept: longer than a week of nights lasts.
pub(crate) const FRESH: Duration = Duration::from_secs(8 * 24 * 3600);

/// How often one is kept.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// How far a sweep has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// What it is good for, see [`purpose`].
    purpose: String,
    /// Where to go on.
    #[serde(flatten)]
    pub place: Place,
    /// How much of the table was seen up to there since a sweep was complete, or several had gone round it
    /// together: a share, below 1.
    #[serde(default)]
    pub seen: f64,
    /// Of the same sweeps, to judge by what share would go.
    #[serde(default)]
    pub looked: Looked,
    /// Figures of all that was done so far, since then.
    pub report: Report,
}

/// References that the sweeps of one round looked at, each counted once however many saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Looked {
    /// What they removed.
    pub removed: u64,
    /// What they looked at, but for what comes next.
    pub checked: u64,
    /// What stands behind the place, where they had looked already, and is seen again.
    pub ahead: u64,
    /// How far behind it they had looked: a share of the table.
    pub reach: f64,
}

impl Looked {
    /// With those of a sweep that goes on from there: what it removed, and how many it looked at on pages where they
    /// had looked, and on others. How many are removed, and how many there are.
    pub fn and(&self, removed: u64, again: u64, new: u64) -> (u64, u64) {
        // What was removed is not what is there now.
        let least = self.removed.saturating_add(again);
        let known = self.checked.saturating_add(self.ahead).max(least);
        (self.removed.saturating_add(removed), known.saturating_add(new))
    }
}

impl Checkpoint {
    pub fn new(purpose: &str, place: Place, seen: f64, looked: Looked, report: Report) -> Self {
        Self { purpose: purpose.to_owned(), place, seen, looked, report }
    }

    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers, strings and their structs: JSON has no way to refuse them.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// One that is good for `purpose`; anything else is as if there were none.
    pub fn read(kept: &[u8], purpose: &str) -> Option<Self> {
        let found: Self = serde_json::from_slice(kept).ok()?;
        let sound = (0.0..1.0).contains(&found.seen) && (0.0..=1.0).contains(&found.looked.reach);
        (found.purpose == purpose && sound).then_some(found)
    }

    /// How to go on, now, by the server's clock (s).
    pub fn walk(&self, now: u64, grace: Duration) -> Walk {
        // A second more, for clocks of whole seconds.
        let left = now.saturating_sub(self.place.since) + 1;
        let walk = match self.place.cursor {
            0 => Walk::new(now),
            _ if left <= grace.as_secs() => Walk::rest(self.place),
            _ => Walk::round(self.place),
        };
        walk.after(self.looked.reach, self.seen)
    }
}

/// What a checkpoint is good for: this server process, these keys, this question.
pub(crate) fn purpose(server: &str, pattern: &[u8], options: &Options) -> String {
    let Options { entry_prefix, grace, max_tag_age, on_aged, .. } = options;
    let prefix = entry_prefix.as_ref().map(|prefix| prefix.escape_ascii().to_string());
    let pattern = pattern.escape_ascii();
    format!("2|{server}|{pattern}|{prefix:?}|{grace:?}|{max_tag_age:?}|{on_aged:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_for_its_own_purpose() {
        let options = Options::default();
        let ours = purpose("run1", b"tag:*", &options);
        let report =
            Report { tags_seen: 7, duration: Duration::from_millis(1500), ..Report::default() };
        let place = Place { cursor: 9, since: 1000 };
        let kept = Checkpoint::new(&ours, place, 0.25, Looked::default(), report).to_bytes();
        let found = Checkpoint::read(&kept, &ours).unwrap();
        assert_eq!((found.place, found.report.tags_seen), (place, 7));
        assert_eq!(found.report.duration, Duration::from_millis(1500));
        let longer = Options { grace: Duration::from_secs(60), ..options.clone() };
        for other in [
            purpose("run2", b"tag:*", &options),
            purpose("run1", b"app:tag:*", &options),
            purpose("run1", b"tag:*", &longer),
        ] {
            assert_eq!(Checkpoint::read(&kept, &other), None);
        }
    }

    #[test]
    fn nonsense_is_no_checkpoint() {
        for kept in [b"".as_slice(), b"{}", b"\xff", b"{\"purpose\":\"p\",\"cursor\":0}"] {
            assert_eq!(Checkpoint::read(kept, "p"), None);
        }
        let place = Place { cursor: 9, since: 1000 };
        for seen in [-1.0, 1.0, f64::MAX] {
            let kept = Checkpoint::new("p", place, seen, Looked::default(), Report::default());
            let kept = kept.to_bytes();
            assert_eq!(Checkpoint::read(&kept, "p"), None);
        }
    }

    #[test]
    fn the_rest_is_enough_for_a_grace() {
        let place = Place { cursor: 9, since: 1000 };
        let kept = Checkpoint::new("p", place, 0.5, Looked::default(), Report::default());
        let goes_round = |now, grace| kept.walk(now, Duration::from_secs(grace)).is_whole();
        assert!(!goes_round(1000, 5) && !goes_round(1004, 5));
        assert!(goes_round(1005, 5) && goes_round(1000, 0) && goes_round(90_000, 5));
    }

    #[test]
    fn what_is_looked_at_twice_counts_once() {
        let first = Looked { removed: 400, checked: 500, ahead: 300, reach: 0.1 };
        assert_eq!(first.and(0, 0, 0), (400, 800));
        assert_eq!(first.and(50, 200, 0), (450, 800), "of those 300");
        assert_eq!(first.and(50, 300, 70), (450, 870), "and 70 behind them");
        assert_eq!(first.and(50, 900, 70), (450, 1370), "all of them again, and more have come");
        // A round that begins where half was seen, and most of all of it is stale both times.
        let half = Looked { removed: 400, checked: 500, ahead: 0, reach: 0.0 };
        assert_eq!(half.and(800, 500, 500), (1200, 1400));
        // Those ahead were passed over, for nobody has used them.
        assert_eq!(first.and(50, 0, 70), (450, 870));
        let nonsense = Looked { removed: u64::MAX, checked: u64::MAX, ahead: u64::MAX, reach: 1.0 };
        assert_eq!(nonsense.and(1, 1, 1), (u64::MAX, u64::MAX));
    }
}
