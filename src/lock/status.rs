//! A lock as it is seen from outside: who has it, who waits, what happened.

use crate::connect::Link;
use crate::error::Result;
use crate::lock::lease::Holder;
use crate::lock::protocol::{Keys, RUNS};
use crate::lock::stats::Stats;
use crate::lock::{SharedLink, guard};
use crate::reply::{checked, texts, understood};
use redis::{Cmd, Value};
use std::time::Duration;

/// A lock as it is on the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Who has it.
    pub holder: Option<Holder>,
    /// Who waits, the first in line first; at most a hundred of them.
    pub waiters: Vec<Waiter>,
    /// The holder has given it back, and it stays taken for its minimum time (`at_least`).
    pub kept: bool,
    /// How many wait.
    pub waiting: u64,
    /// The last grants, newest first.
    pub runs: Vec<Run>,
    /// Fence of the last grant.
    pub fence: Option<u64>,
    /// What happened.
    pub stats: Stats,
    /// The server's time, since 1970.
    pub time: Duration,
}

impl Status {
    /// Whether the key lives longer than any lease should: the server's clock was set back, or
    /// somebody has set a TTL by hand.
    pub fn is_overlong(&self) -> bool {
        let left = self.holder.as_ref().and_then(|holder| holder.ttl);
        let known = self.holder.as_ref().is_some_and(|holder| holder.fence.is_some());
        let ttl = self.stats.ttl;
        known
            && !self.kept
            && !ttl.is_zero()
            && left.is_none_or(|left| left > ttl + Duration::from_secs(1))
    }
}

/// One who waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiter {
    /// Host name.
    pub host: Option<String>,
    /// Process.
    pub pid: Option<u32>,
    /// Program and version.
    pub program: Option<String>,
    /// When it joined the line, by the server's clock, since 1970.
    pub since: Duration,
}

/// A past grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Its fence, which is the server's time in microseconds when it was made.
    pub fence: u64,
    /// Host name.
    pub host: Option<String>,
    /// Process.
    pub pid: Option<u32>,
    /// How it ended.
    pub end: RunEnd,
}

/// How a past grant ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunEnd {
    /// Given back, after so long.
    Released(Duration),
    /// Never given back: it expired, or its key was deleted.
    #[default]
    Abandoned,
    /// Taken away by an operator.
    Forced,
}

/// Looks at a lock. One round trip.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) name; whatever keeps the server from answering.
pub fn status(link: &SharedLink, name: &[u8]) -> Result<Status> {
    let link = &mut guard(link);
    let keys = Keys::new(&link.config().prefix, name)?;
    look(link, &keys)
}

/// All that is known of a lock.
pub(crate) fn look(link: &mut Link, keys: &Keys) -> Result<Status> {
    let questions = questions(keys);
    let commands = questions.each_ref().map(|(ask, _)| ask.clone());
    let replies = link.ask_all(&commands)?;
    let server = link.config().label();
    let mut replies = replies
        .into_iter()
        .zip(questions)
        .map(|(reply, (_, key))| checked(reply).map_err(|e| e.key(key).server(&server)));
    told(&mut || replies.next().unwrap_or(Ok(Value::Nil)))
}

/// What is asked of a lock, each with the key that it is about.
fn questions(keys: &Keys) -> [(Cmd, &[u8]); 8] {
    let of = |command: &str, key: &Vec<u8>| redis::cmd(command).arg(key).to_owned();
    let (mut waiters, mut runs) = (of("ZRANGE", &keys.waiters), of("LRANGE", &keys.runs));
    waiters.arg(0).arg(99).arg("WITHSCORES");
    runs.arg(0).arg(RUNS - 1);
    [
        (of("GET", &keys.lock), &keys.lock),
        (of("PTTL", &keys.lock), &keys.lock),
        (waiters, &keys.waiters),
        (of("ZCARD", &keys.waiters), &keys.waiters),
        (runs, &keys.runs),
        (of("GET", &keys.fence), &keys.fence),
        (of("HGETALL", &keys.stats), &keys.stats),
        (redis::cmd("TIME"), &keys.lock),
    ]
}

/// What the answers say, in the order of the questions.
fn told(next: &mut dyn FnMut() -> Result<Value>) -> Result<Status> {
    let (value, ttl): (Option<Vec<u8>>, i64) = (understood(next()?)?, understood(next()?)?);
    let left = u64::try_from(ttl).ok().map(Duration::from_millis);
    let waiters: Vec<(String, f64)> = texts(next()?)?;
    let waiting = understood(next()?)?;
    let runs: Vec<String> = texts(next()?)?;
    let grant: String = texts::<Option<String>>(next()?)?.unwrap_or_default();
    let fields: Vec<(String, String)> = texts(next()?)?;
    let (seconds, micros): (u64, u64) = understood(next()?)?;
    let ttl_ms = grant.rsplit('|').next().and_then(|ms| ms.parse().ok()).unwrap_or_default();
    // Between the two questions it may have expired.
    let holder = value.filter(|_| ttl != -2).map(|value| Holder::read(&value, left));
    let given_back = fence_of(&grant).filter(|_| !grant.contains('+'));
    Ok(Status {
        kept: given_back.is_some() && holder.as_ref().and_then(|holder| holder.fence) == given_back,
        holder,
        waiters: waiters.iter().map(|(who, ticket)| waiter(who, *ticket)).collect(),
        waiting,
        runs: runs.iter().filter_map(|run| past(run)).collect(),
        fence: fence_of(&grant),
        stats: Stats { ttl: Duration::from_millis(ttl_ms), ..Stats::read(&fields) },
        time: Duration::from_secs(seconds) + Duration::from_micros(micros),
    })
}

/// `id|host|pid|program`, and a ticket in microseconds.
fn waiter(member: &str, ticket: f64) -> Waiter {
    let mut who = Holder::default();
    who.take_who(member.split_once('|').map_or("", |(_, who)| who));
    let since = Duration::try_from_secs_f64(ticket / 1e6).unwrap_or_default();
    Waiter { host: who.host, pid: who.pid, program: who.program, since }
}

/// `fence|host|pid|program|ms`, with -1 for a grant that was never given back, -2 for one taken away.
pub(crate) fn past(run: &str) -> Option<Run> {
    let (rest, ms) = run.rsplit_once('|')?;
    let (fence, who) = rest.split_once('|')?;
    let mut holder = Holder::default();
    holder.take_who(who);
    let end = match ms.parse::<i64>().ok()? {
        -2 => RunEnd::Forced,
        ms => u64::try_from(ms)
            .map_or(RunEnd::Abandoned, |ms| RunEnd::Released(Duration::from_millis(ms))),
    };
    Some(Run { fence: fence.parse().ok()?, host: holder.host, pid: holder.pid, end })
}

/// The number in what a fence key holds.
pub(crate) fn fence_of(grant: &str) -> Option<u64> {
    grant.split(['+', '|']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_grants_are_read_and_nonsense_is_passed_over() {
        let run = past("17|web-1|4711|tagsweep/1.0|250").unwrap();
        assert_eq!((run.fence, run.pid), (17, Some(4711)));
        assert_eq!(run.end, RunEnd::Released(Duration::from_millis(250)));
        assert_eq!(past("17|web-1|4711|tagsweep/1.0|30000|-1").unwrap().end, RunEnd::Abandoned);
        assert_eq!(past("17|web-1|4711|tagsweep/1.0|-2").unwrap().end, RunEnd::Forced);
        assert_eq!(past("nonsense"), None);
        assert_eq!(
            (fence_of("7+|h|1|p|30"), fence_of("7|30"), fence_of("x")),
            (Some(7), Some(7), None)
        );
    }
}
