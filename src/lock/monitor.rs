//! What can be seen of a lock from outside: who has it, who waits, what happened; and how an operator
//! takes it away.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::Result;
use crate::layout::escape_glob;
use crate::lock::lease::{Holder, names as random_names, transit};
use crate::lock::protocol::{CLAIM, Keys, MEMORY_MS, has_hash_tag};
use crate::lock::stats::{LossReason, Stats};
use crate::lock::ttl::{Past, Ttl};
use crate::lock::{SharedLink, guard};
use crate::reply::{Info, checked, understood};
use crate::script::{Args, FORCE};
use redis::{Cmd, Value};
use std::collections::BTreeSet;
use std::time::Duration;

/// A lock as it is on the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Who has it.
    pub holder: Option<Holder>,
    /// Who waits, the first in line first; at most a hundred of them.
    pub waiters: Vec<Waiter>,
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
        known && !ttl.is_zero() && left.is_none_or(|left| left > ttl + Duration::from_secs(1))
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

/// What a force release came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forced {
    /// It was taken away from this holder.
    Taken(Holder),
    /// Another grant than the one that was meant has it.
    Another(Holder),
    /// Nobody has it.
    Free,
}

/// Looks at a lock. One round trip.
///
/// # Errors
/// [`Invalid`](ErrorKind::Invalid) name; whatever keeps the server from answering.
pub fn status(link: &SharedLink, name: &[u8]) -> Result<Status> {
    let link = &mut guard(link);
    let keys = Keys::new(&link.config().prefix, name)?;
    look(link, &keys)
}

/// Takes a lock away from its holder, if the holder's grant has this fence (`None`: whoever holds it),
/// and hands it to the first who waits. One round trip. The holder finds out at its next renewal, and
/// every fenced command of it is refused from now on.
///
/// # Errors
/// As [`status`].
pub fn force_release(link: &SharedLink, name: &[u8], fence: Option<u64>) -> Result<Forced> {
    let link = &mut guard(link);
    let keys = Keys::new(&link.config().prefix, name)?;
    force(link, &keys, fence)
}

/// See [`force_release`].
pub(crate) fn force(link: &mut Link, keys: &Keys, fence: Option<u64>) -> Result<Forced> {
    let args = [&keys.lock, &keys.fence, &keys.waiters, &keys.baton, &keys.stats, &keys.runs];
    let args = args.into_iter().fold(Args::default(), |args, key| args.key(key));
    let args = args.arg(fence.map(|fence| fence.to_string()).unwrap_or_default());
    let args = args.arg(transit(&random_names()?.1)).number(CLAIM.as_millis()).number(MEMORY_MS);
    // Not repeated when its reply is lost: without a fence it might hit the next holder.
    let deadline = link.deadline();
    let reply = FORCE.run(link, &args, deadline).map_err(|e| e.key(&keys.lock))?;
    let Value::Array(items) = reply else { return Ok(Forced::Free) };
    let [Value::Int(taken), Value::BulkString(held), Value::Int(left)] = items.as_slice() else {
        return Ok(Forced::Free);
    };
    let holder = Holder::read(held, u64::try_from(*left).ok().map(Duration::from_millis));
    Ok(if *taken == 1 { Forced::Taken(holder) } else { Forced::Another(holder) })
}

/// Names of all locks that are held or were held in the last month: walks over all keys, some 10,000 a
/// round trip, about a second for a million keys.
///
/// # Errors
/// As [`status`].
pub fn names(link: &SharedLink) -> Result<Vec<Vec<u8>>> {
    let link = &mut guard(link);
    let prefix = link.config().prefix.clone();
    let (plain, braced) =
        ([&prefix, b"lock:" as &[u8]].concat(), [b"{", &prefix[..], b"lock:"].concat());
    let mut found = BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let mut scan = redis::cmd("SCAN");
        // One walk for both forms: of the lock key, and of companions in braces.
        let pattern =
            [b"*", escape_glob(&[&prefix[..], b"lock:"].concat()).as_slice(), b"*"].concat();
        scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
        let reply = link.persist(|link, deadline| link.call(&scan, deadline))?;
        let (next, keys): (Vec<u8>, Vec<Vec<u8>>) = understood(reply)?;
        for key in keys {
            found.extend(name_in(&key, &plain, &braced));
        }
        if next == b"0" {
            return Ok(found.into_iter().collect());
        }
        cursor = next;
    }
}

/// What a lock, or a sweep under it, keeps beside the lock key; and records, which are numbered.
const COMPANIONS: [&[u8]; 10] = [
    b":fence",
    b":stats",
    b":runs",
    b":waiters",
    b":baton",
    b":history",
    b":sweeps",
    b":mapping",
    b":checkpoint",
    b":quarantine",
];

/// The lock that a key belongs to.
fn name_in(key: &[u8], plain: &[u8], braced: &[u8]) -> Option<Vec<u8>> {
    if let Some(rest) = key.strip_prefix(braced) {
        // Those that outlive a lease; the others tell nothing more.
        let lasting: [&[u8]; 2] = [b"}:fence", b"}:stats"];
        return lasting.into_iter().find_map(|end| rest.strip_suffix(end)).map(<[u8]>::to_vec);
    }
    let name = key.strip_prefix(plain)?;
    // Where the lock key has a hash tag of its own, its companions have no braces.
    let owner = if has_hash_tag(key) { companion_of(name) } else { None };
    Some(owner.unwrap_or(name).to_vec())
}

/// What the rest of a key is a companion of, if its end is that of one.
fn companion_of(rest: &[u8]) -> Option<&[u8]> {
    let digits = rest.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (unnumbered, _) = rest.split_at(rest.len() - digits);
    let ends = COMPANIONS.into_iter().find_map(|what| rest.strip_suffix(what));
    ends.or_else(|| unnumbered.strip_suffix(b":records:").filter(|_| digits > 0))
}

/// All that is known of a lock.
pub(crate) fn look(link: &mut Link, keys: &Keys) -> Result<Status> {
    let questions = questions(keys);
    let commands = questions.each_ref().map(|(ask, _)| ask.clone());
    let replies = link.persist(|link, deadline| link.calls(&commands, deadline))?;
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
    runs.arg(0).arg(9);
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
    let waiters: Vec<(String, f64)> = understood(next()?)?;
    let waiting = understood(next()?)?;
    let runs: Vec<String> = understood(next()?)?;
    let grant: String = understood::<Option<String>>(next()?)?.unwrap_or_default();
    let fields: Vec<(String, String)> = understood(next()?)?;
    let (seconds, micros): (u64, u64) = understood(next()?)?;
    let ttl_ms = grant.rsplit('|').next().and_then(|ms| ms.parse().ok()).unwrap_or_default();
    Ok(Status {
        // Between the two questions it may have expired.
        holder: value.filter(|_| ttl != -2).map(|value| Holder::read(&value, left)),
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
fn past(run: &str) -> Option<Run> {
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

/// How long may be asked why a lease was lost: what was to be told is told already.
const WHY: Duration = Duration::from_millis(150);

/// A lease that was found lost, and as what.
pub(crate) struct Loss {
    pub fence: u64,
    /// Until when it should have lasted.
    pub until: Moment,
    pub found: LossReason,
}

/// Why a lease was lost, for a holder that found it gone: an operator leaves word, and what is gone
/// before its time leaves traces. One round trip, two if that must be told apart.
pub(crate) fn why(link: &mut Link, keys: &Keys, loss: &Loss) -> LossReason {
    let (early, deadline) = (!loss.until.passed(), (Moment::now() + WHY).min(link.deadline()));
    let Ok((grant, runs)) = grants(link, keys, deadline) else { return loss.found };
    if runs.iter().any(|run| run.fence == loss.fence && run.end == RunEnd::Forced) {
        return LossReason::Forced;
    }
    if loss.found != LossReason::Expired || !early {
        return loss.found;
    }
    // A user who may not ask is told nothing.
    let info: String =
        link.call(&redis::cmd("INFO"), deadline).and_then(understood).unwrap_or_default();
    cause(loss.fence, fence_of(&grant), evicts(&info))
}

/// What the server knows of grants: the last, and those that ended. One round trip.
fn grants(link: &mut Link, keys: &Keys, deadline: Moment) -> Result<(String, Vec<Run>)> {
    let asked = [
        redis::cmd("GET").arg(&keys.fence).to_owned(),
        redis::cmd("LRANGE").arg(&keys.runs).arg(0).arg(9).to_owned(),
    ];
    let mut replies = link.calls(&asked, deadline)?.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil);
    let grant: Option<String> = understood(next())?;
    let runs: Vec<String> = understood(next()).unwrap_or_default();
    Ok((grant.unwrap_or_default(), runs.iter().filter_map(|run| past(run)).collect()))
}

/// The number in what a fence key holds.
fn fence_of(grant: &str) -> Option<u64> {
    grant.split(['+', '|']).next()?.parse().ok()
}

/// Whether a server, by its `INFO`, evicts keys and has done so.
fn evicts(info: &str) -> bool {
    let info = Info(info);
    let never = [None, Some("noeviction")].contains(&info.text("maxmemory_policy"));
    !never && info.number("evicted_keys").is_some_and(|count: u64| count > 0)
}

/// Whether a lease that is not there any more was given back by its holder, who has not heard of it: its
/// grant is closed then, or another has followed and no takeover is on record. `None` where none would be.
/// One round trip.
pub(crate) fn was_given_back(
    link: &mut Link,
    keys: &Keys,
    fence: u64,
    recorded: bool,
) -> Result<Option<bool>> {
    let deadline = link.deadline();
    let (grant, runs) = grants(link, keys, deadline)?;
    let lost = |run: &Run| run.fence == fence && !matches!(run.end, RunEnd::Released(_));
    Ok(match fence_of(&grant) {
        Some(last) if last == fence => Some(!grant.contains('+')),
        Some(last) if last > fence && recorded => Some(!runs.iter().any(lost)),
        Some(last) if last > fence => None,
        _ => Some(false),
    })
}

/// Why a key is gone before its time, by the last fence that the server knows of.
fn cause(fence: u64, last: Option<u64>, evicts: bool) -> LossReason {
    match last {
        Some(last) if last > fence => LossReason::Stolen,
        Some(last) if last == fence && !evicts => LossReason::Expired,
        Some(last) if last < fence => LossReason::Failover,
        None if !evicts => LossReason::Failover,
        _ => LossReason::Evicted,
    }
}

/// The TTL that the past of a lock teaches; forgets what is too old. One round trip, at most two.
pub(crate) fn learn(link: &mut Link, keys: &Keys, ttl: Ttl, renewed: bool) -> Result<Duration> {
    let commands = [redis::cmd("HGETALL").arg(&keys.stats).to_owned(), redis::cmd("TIME")];
    let replies = link.persist(|link, deadline| link.calls(&commands, deadline))?;
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil);
    // A hash that is none, or a permission that is missing, is a past that teaches nothing.
    let fields: Vec<(String, String)> = understood(next()).unwrap_or_default();
    let (seconds, _): (u64, u64) = understood(next()).unwrap_or_default();
    let past = Past::read(&fields, renewed, seconds * 1_000_000);
    if !past.outdated.is_empty() {
        let mut forget = redis::cmd("HDEL");
        forget.arg(&keys.stats).arg(&past.outdated);
        let _ = link.call(&forget, Moment::now() + Duration::from_millis(500));
    }
    Ok(past.teach(ttl, renewed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_gone_before_its_time_leaves_traces() {
        use LossReason::{Evicted, Expired, Failover, Stolen};
        let policy = |policy, count| {
            evicts(&format!("maxmemory_policy:{policy}\r\nevicted_keys:{count}\r\n"))
        };
        assert!(policy("allkeys-lru", 3) && !policy("allkeys-lru", 0) && !policy("noeviction", 3));
        assert!(!evicts(""));
        for (last, evicts, reason) in [
            (Some(7), false, Expired),
            (Some(7), true, Evicted),
            (Some(8), true, Stolen),
            (Some(6), true, Failover),
            (None, false, Failover),
            (None, true, Evicted),
        ] {
            assert_eq!(cause(7, last, evicts), reason, "{last:?} {evicts}");
        }
        assert_eq!(
            (fence_of("7+|h|1|p|30"), fence_of("7|30"), fence_of("x")),
            (Some(7), Some(7), None)
        );
    }

    #[test]
    fn names_are_read_from_keys() {
        let name = |key: &[u8]| name_in(key, b"lock:", b"{lock:");
        assert_eq!(name(b"lock:a").unwrap(), b"a");
        assert_eq!(name(b"{lock:a}:fence").unwrap(), b"a");
        assert_eq!(name(b"{lock:a}:waiters"), None);
        assert_eq!(name(b"lock:{a}b:stats").unwrap(), b"{a}b");
        assert_eq!(name(b"lock:a:stats").unwrap(), b"a:stats");
        assert_eq!(name(b"block:a"), None);
        // A prefix with a hash tag, as a Cluster's users have it.
        let name = |key: &[u8]| name_in(key, b"{app}:lock:", b"{{app}:lock:");
        assert_eq!(name(b"{app}:lock:a").unwrap(), b"a");
        for what in ["fence", "waiters", "history", "checkpoint", "mapping", "records:17"] {
            assert_eq!(name(format!("{{app}}:lock:a:{what}").as_bytes()).unwrap(), b"a", "{what}");
        }
        assert_eq!(name(b"{app}:lock:a:records:").unwrap(), b"a:records:");
    }

    #[test]
    fn past_grants_are_read_and_nonsense_is_passed_over() {
        let run = past("17|web-1|4711|tagsweep/1.0|250").unwrap();
        assert_eq!((run.fence, run.pid), (17, Some(4711)));
        assert_eq!(run.end, RunEnd::Released(Duration::from_millis(250)));
        assert_eq!(past("17|web-1|4711|tagsweep/1.0|30000|-1").unwrap().end, RunEnd::Abandoned);
        assert_eq!(past("17|web-1|4711|tagsweep/1.0|-2").unwrap().end, RunEnd::Forced);
        assert_eq!(past("nonsense"), None);
    }
}
