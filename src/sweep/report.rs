//! What a sweep did, and what it is doing.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Why a sweep ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// It has not ended: figures of progress.
    #[default]
    Running,
    /// Every tag was seen and judged.
    Complete,
    /// The lock was lost; the server refused what came after.
    Lost,
    /// The caller asked it to stop.
    Stopped,
    /// `max_duration` was reached.
    MaxDuration,
    /// `max_removals` was reached.
    MaxRemovals,
    /// More than `max_share` of the references would have gone.
    MaxShare,
    /// The server could not be reached any more, or refused.
    Error,
}

impl Reason {
    /// As the JSON report names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
            Self::MaxDuration => "max_duration",
            Self::MaxRemovals => "max_removals",
            Self::MaxShare => "max_share",
            Self::Error => "error",
        }
    }

    /// In words, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Running => "it has not ended",
            Self::Complete => "complete",
            Self::Lost => "the lock was lost",
            Self::Stopped => "stopped on request",
            Self::MaxDuration => "the time allowed was used up",
            Self::MaxRemovals => "the number of removals allowed was reached",
            Self::MaxShare => "a larger share than allowed would have been removed",
            Self::Error => "an error ended it",
        }
    }
}

/// Figures of a sweep. Counts are of effects, not of visits. In a dry run, of what would be done. Of a
/// sweep that went on where another was cut short, of its own part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Report {
    /// Tags read.
    pub tags_seen: u64,
    /// Tags that are gone because their last reference was removed.
    pub tags_removed: u64,
    /// Tags that lost some references and live on.
    pub tags_pruned: u64,
    /// Tags not used for `max_tag_age`.
    pub tags_aged: u64,
    /// Tags passed over because nothing in them can have become stale since an earlier sweep.
    pub tags_unchanged: u64,
    /// Keys under the pattern that hold another type; never touched.
    pub tags_skipped: u64,
    /// References whose entry was looked for.
    pub references_checked: u64,
    /// References removed.
    pub references_removed: u64,
    /// References to absent entries that were left alone, for their tag was in use or changed its type.
    pub references_skipped: u64,
    /// References put back because their entry appeared after all.
    pub references_restored: u64,
    /// Scores corrected (sorted sets only; the plain layout has none).
    pub scores_healed: u64,
    /// Entries deleted because their tag was aged, or, in a strict sweep, restored.
    pub entries_invalidated: u64,
    /// Memory given back by removed references, estimated from samples (bytes).
    pub bytes_reclaimed: u64,
    /// Pages of the walk over the keys.
    pub pages: u64,
    /// Duration (s).
    #[serde(rename = "duration_s", serialize_with = "seconds", deserialize_with = "span")]
    pub duration: Duration,
    /// Time that the server worked for us (s).
    #[serde(rename = "server_s", serialize_with = "seconds", deserialize_with = "span")]
    pub server: Duration,
    /// Rounds of commands; each kept the server from others for a moment.
    pub rounds: u64,
    /// How long: the median (s).
    #[serde(rename = "round_p50_s", serialize_with = "seconds", deserialize_with = "span")]
    pub round_p50: Duration,
    /// And of the slowest hundredth (s).
    #[serde(rename = "round_p99_s", serialize_with = "seconds", deserialize_with = "span")]
    pub round_p99: Duration,
    /// Share of the keys before the place at which an earlier sweep was cut short and this one began;
    /// else 0.
    pub resumed_at: f64,
    /// References that had been removed by then, since a sweep was complete.
    pub removed_before: u64,
    /// Whether every tag was seen and judged.
    pub complete: bool,
    /// Why it ended.
    pub reason: Reason,
    /// Nothing was written.
    pub dry_run: bool,
    /// The prefix that makes a member the key of its entry, as proven; `None` if nothing was proven.
    pub entry_prefix: Option<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Of a dry run: some of what would go, and why.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Adds the counts of another part of the same sweep.
    pub(crate) fn add(&mut self, part: &Self) {
        let mut part = part.clone();
        for (sum, more) in self.counts().into_iter().zip(part.counts()) {
            *sum = sum.saturating_add(*more);
        }
        self.duration = self.duration.saturating_add(part.duration);
        self.server = self.server.saturating_add(part.server);
    }

    /// What is counted.
    fn counts(&mut self) -> [&mut u64; 14] {
        [
            &mut self.tags_seen,
            &mut self.tags_removed,
            &mut self.tags_pruned,
            &mut self.tags_aged,
            &mut self.tags_skipped,
            &mut self.tags_unchanged,
            &mut self.references_checked,
            &mut self.references_removed,
            &mut self.references_skipped,
            &mut self.references_restored,
            &mut self.scores_healed,
            &mut self.entries_invalidated,
            &mut self.bytes_reclaimed,
            &mut self.pages,
        ]
    }
}

/// A reference that would go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Key of the tag; what is no UTF-8, or steers a terminal, is replaced.
    pub tag: String,
    /// Key of the entry, in the same way.
    pub entry: String,
    /// In words.
    pub why: String,
}

fn seconds<S: serde::Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((span.as_secs_f64() * 1e6).round() / 1e6)
}

fn span<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(from)?;
    Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
}

/// A look at a running sweep.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Figures so far.
    pub report: &'a Report,
    /// Share of the walk over the keys that is done, 0 to 1; it stays below 1 while anything is left to do.
    pub share: f64,
    /// Keys on the server, when the sweep began.
    pub keys: u64,
    /// Time that the rest will take: of the walk, at the rate so far, and until what waits is due; `None` while
    /// that cannot be told.
    pub left: Option<Duration>,
    /// How much of the server's time is taken at most now, in tenths: less than told while others
    /// keep the server busy.
    pub effort: f64,
    /// The walk is done, or paused; what is young waits for its grace, what was removed for its
    /// verification.
    pub waiting: bool,
}

impl Progress<'_> {
    /// References looked at per second, since the beginning.
    pub fn rate(&self) -> f64 {
        self.report.references_checked as f64 / self.report.duration.as_secs_f64().max(1e-3)
    }
}

/// What a watcher of a sweep answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End soon: verify what was removed, release the lock, report.
    Stop,
}
