//! What earlier sweeps did: the last fifty runs, and the sums of all of them, kept on the server next
//! to the lock. The first is for people, the second for a monitor.

use crate::connect::Link;
use crate::error::Result;
use crate::lock::protocol::Keys;
use crate::lock::{Histogram, SharedLink, companion, guard};
use crate::reply::{checked, texts, understood};
use crate::sweep::report::Report;
use redis::Cmd;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Runs that are kept.
const RUNS: isize = 50;

/// For how long runs and sums are kept when no more come.
const KEPT_MS: u64 = 400 * 24 * 3600 * 1000;

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Run {
    /// When it ended, by the server's clock (s since 1970).
    pub at: u64,
    /// Fence of its lock.
    pub fence: Option<u64>,
    /// Host that it ran on.
    pub host: String,
    /// Process that it ran in.
    pub pid: u32,
    /// Program that it ran in.
    pub program: String,
    /// Version of tagsweep.
    pub version: String,
    /// What ended it, if it was an error.
    pub error: Option<String>,
    /// Its figures.
    #[serde(flatten)]
    pub report: Report,
}

/// What all runs did together.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Totals {
    /// Runs by how they ended: the names of [`Reason`](crate::sweep::Reason), and `busy` for those that found the lock
    /// held.
    pub runs: BTreeMap<String, u64>,
    /// Counters, by the names of the report.
    pub counts: BTreeMap<String, u64>,
    /// Errors of the server, by their first word, those that were survived included.
    pub errors: BTreeMap<String, u64>,
    /// Durations of runs.
    pub durations: Histogram,
    /// How long rounds of commands kept the server.
    pub rounds: Histogram,
    /// When the last complete one ended, or one by which several that went on from each other had gone round
    /// all tags (s since 1970).
    pub last_success: Option<u64>,
}

/// The last runs under a lock, newest first. One round trip.
///
/// # Errors
/// What keeps the server from answering.
pub fn history(link: &SharedLink, lock: &[u8]) -> Result<Vec<Run>> {
    let mut link = guard(link);
    let mut ask = redis::cmd("LRANGE");
    ask.arg(key(&link, lock, "history")?).arg(0).arg(-1);
    let reply = link.ask(&ask)?;
    let lines: Vec<Vec<u8>> = understood(reply)?;
    // Lines of a later version that cannot be read are passed over.
    Ok(lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// What all runs under a lock did together. One round trip.
///
/// # Errors
/// What keeps the server from answering.
pub fn totals(link: &SharedLink, lock: &[u8]) -> Result<Totals> {
    let mut link = guard(link);
    let mut ask = redis::cmd("HGETALL");
    ask.arg(key(&link, lock, "sweeps")?);
    let reply = link.ask(&ask)?;
    let fields: Vec<(String, String)> = texts(reply).unwrap_or_default();
    Ok(Totals::read(&fields))
}

fn key(link: &Link, lock: &[u8], what: &str) -> Result<Vec<u8>> {
    Ok(companion(&Keys::new(&link.config().prefix, lock)?.lock, what))
}

impl Totals {
    fn read(fields: &[(String, String)]) -> Self {
        let mut totals = Self::default();
        for (field, value) in fields {
            let Ok(value) = value.parse::<u64>() else { continue };
            let (name, rest) = field.split_once('.').unwrap_or((field, ""));
            match name {
                "run" => drop(totals.runs.insert(rest.to_owned(), value)),
                "error" => drop(totals.errors.insert(rest.to_owned(), value)),
                "count" => drop(totals.counts.insert(rest.to_owned(), value)),
                "duration" => totals.durations.take_field(rest, value),
                "round" => totals.rounds.take_field(rest, value),
                "last_success" => totals.last_success = Some(value),
                _ => {}
            }
        }
        totals
    }
}

/// What a run leaves: a line of the history, and what the sums grow by.
pub(super) struct Entry<'a> {
    pub run: &'a Run,
    /// Every tag was seen, by this run or by those that it went on from and this one.
    pub seen: bool,
    /// The server kept no idle times.
    pub lfu: bool,
    /// The server refused it a command.
    pub fenced: bool,
    pub rounds: &'a Histogram,
    pub errors: &'a BTreeMap<String, u64>,
}

impl Entry<'_> {
    /// The commands that write it.
    pub fn commands(&self, lock_key: &[u8]) -> Vec<Cmd> {
        let history = companion(lock_key, "history");
        let line = serde_json::to_vec(self.run).unwrap_or_default();
        let [mut push, mut trim, mut keep] = ["LPUSH", "LTRIM", "PEXPIRE"].map(redis::cmd);
        push.arg(&history).arg(line);
        trim.arg(&history).arg(0).arg(RUNS - 1);
        keep.arg(&history).arg(KEPT_MS);
        let mut commands = vec![push, trim, keep];
        commands.extend(grow(lock_key, self.fields()));
        let marks = [("last_success", self.seen), (LAST_LFU, self.lfu)];
        for (mark, _) in marks.into_iter().filter(|(_, holds)| *holds) {
            let mut set = redis::cmd("HSET");
            set.arg(companion(lock_key, "sweeps")).arg(mark).arg(self.run.at);
            commands.push(set);
        }
        commands
    }

    fn fields(&self) -> Vec<(String, u64)> {
        let report = &self.run.report;
        let mut fields = vec![(format!("run.{}", report.reason.name()), 1)];
        let counts = [
            ("tags_seen", report.tags_seen),
            ("tags_removed", report.tags_removed),
            ("tags_skipped", report.tags_skipped),
            ("tags_unchanged", report.tags_unchanged),
            ("references_checked", report.references_checked),
            ("references_removed", report.references_removed),
            ("references_restored", report.references_restored),
            ("references_skipped", report.references_skipped),
            ("entries_invalidated", report.entries_invalidated),
            ("bytes_reclaimed", report.bytes_reclaimed),
            ("fenced", u64::from(self.fenced)),
        ];
        fields.extend(counts.map(|(name, n)| (format!("count.{name}"), n)));
        fields.extend(self.errors.iter().map(|(code, n)| (format!("error.{code}"), *n)));
        let mut durations = Histogram::default();
        durations.record(report.duration);
        durations.fields("duration", &mut fields);
        self.rounds.fields("round", &mut fields);
        fields
    }
}

/// When a sweep last found an LFU policy in force.
const LAST_LFU: &str = "last_lfu";

/// Asks for that.
pub(super) fn last_lfu(lock_key: &[u8]) -> Cmd {
    let mut ask = redis::cmd("HGET");
    ask.arg(companion(lock_key, "sweeps")).arg(LAST_LFU);
    ask
}

/// A run that found the lock held.
pub(super) fn busy(lock_key: &[u8]) -> Vec<Cmd> {
    grow(lock_key, vec![("run.busy".to_owned(), 1)])
}

fn grow(lock_key: &[u8], fields: Vec<(String, u64)>) -> Vec<Cmd> {
    let key = companion(lock_key, "sweeps");
    let by = |(field, by): (String, u64)| {
        let mut cmd = redis::cmd("HINCRBY");
        cmd.arg(&key).arg(field).arg(by);
        cmd
    };
    let mut keep = redis::cmd("PEXPIRE");
    keep.arg(&key).arg(KEPT_MS);
    fields.into_iter().filter(|(_, n)| *n > 0).map(by).chain([keep]).collect()
}

/// Writes, and answers what kept that from being done: the sweep is over, whatever comes of this.
pub(super) fn write(link: &mut Link, commands: &[Cmd]) -> Result<()> {
    let deadline = link.deadline();
    let replies = link.calls(commands, deadline)?;
    replies.into_iter().try_for_each(|reply| checked(reply).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::report::Reason;
    use std::time::Duration;

    #[test]
    fn sums_come_back_as_they_went_in_and_nonsense_is_passed_over() {
        let report = Report {
            tags_removed: 3,
            reason: Reason::Lost,
            duration: Duration::from_secs(2),
            ..Report::default()
        };
        let mut rounds = Histogram::default();
        rounds.record(Duration::from_micros(250));
        let errors = BTreeMap::from([("LOADING".to_owned(), 2)]);
        let run = Run { report, ..Run::default() };
        let fields = Entry {
            run: &run,
            seen: false,
            lfu: false,
            fenced: true,
            rounds: &rounds,
            errors: &errors,
        }
        .fields();
        let mut fields: Vec<(String, String)> =
            fields.into_iter().map(|(name, n)| (name, n.to_string())).collect();
        fields.extend([("?".into(), "1".into()), ("run.x".into(), "many".into())]);
        let totals = Totals::read(&fields);
        assert_eq!(totals.runs, BTreeMap::from([("lost".to_owned(), 1)]));
        assert_eq!((totals.counts["tags_removed"], totals.counts["fenced"]), (3, 1));
        assert_eq!((totals.errors, totals.rounds), (errors, rounds));
        assert_eq!((totals.durations.count(), totals.last_success), (1, None));
    }

    #[test]
    fn a_line_of_another_version_is_read_as_far_as_it_goes() {
        let line =
            r#"{"at":7,"tags_removed":2,"reason":"complete","new":{"x":1},"duration_s":1.5}"#;
        let run: Run = serde_json::from_str(line).unwrap();
        assert_eq!((run.at, run.report.tags_removed, run.report.reason), (7, 2, Reason::Complete));
        let back = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&back).unwrap(), run);
    }
}
