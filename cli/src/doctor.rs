//! `tagsweep doctor`: looks at a server, and says what stands in the way of locks and sweeps. Changes
//! nothing.

use crate::args::{DoctorArgs, Role, bytes};
use crate::monitor::link;
use crate::output::span;
use crate::{Done, exit};
use redis::{Cmd, Value, cmd, from_redis_value};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};
use tagsweep::connect::Link;
use tagsweep::error::plain;
use tagsweep::lock::protocol::Keys;
use tagsweep::lock::{self, SharedLink, Status};
use tagsweep::reply::Info;
use tagsweep::sweep;

/// Round trips of which the median is told.
const TRIPS: usize = 9;

/// A round trip from which on it is worth a word.
const FAR: Duration = Duration::from_millis(5);

/// Which of these commands the user may not run on their keys; nothing where the server cannot tell. ARGV: a
/// command, its key, how many arguments follow that, and so on.
const REFUSED: &str = "local may, no = redis.acl_check_cmd, {} \
    if not may then return no end \
    for n = 1, #ARGV, 3 do \
      local ask = {ARGV[n], ARGV[n + 1]} \
      for more = 1, tonumber(ARGV[n + 2]) do ask[#ask + 1] = '1' end \
      if not may(unpack(ask)) then no[#no + 1] = ARGV[n] .. ' on ' .. ARGV[n + 1] end end \
    return no";

/// What a lock does to its keys, each with the number of arguments after the key.
const LOCKING: [(&str, u8); 15] = [
    ("DEL", 0),
    ("EXISTS", 0),
    ("HINCRBY", 2),
    ("LINDEX", 1),
    ("LPOP", 0),
    ("LPUSH", 1),
    ("LTRIM", 2),
    ("PEXPIRE", 1),
    ("PTTL", 0),
    ("SET", 1),
    ("ZADD", 2),
    ("ZREM", 1),
    ("ZREMRANGEBYSCORE", 2),
    ("ZREVRANK", 1),
    ("ZSCORE", 1),
];

/// And a sweep to tags, to entries, and to what it keeps.
const SWEEPING: [(&str, u8); 8] = [
    ("EXPIRE", 1),
    ("HSCAN", 1),
    ("HSET", 2),
    ("SADD", 1),
    ("SISMEMBER", 1),
    ("SREM", 1),
    ("TYPE", 0),
    ("UNLINK", 0),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grade {
    Good,
    /// To be known.
    Note,
    /// To be mended.
    Bad,
}

#[derive(Clone, Debug, PartialEq)]
struct Finding {
    grade: Grade,
    what: String,
    advice: &'static str,
}

impl Finding {
    fn new(grade: Grade, what: impl Into<String>, advice: &'static str) -> Self {
        Self { grade, what: what.into(), advice }
    }
}

/// What was seen of a server. What it did not tell is `None`.
#[derive(Debug, Default)]
struct Seen {
    info: Option<String>,
    trip: Duration,
    /// What it answers to a script and to a command that blocks, if that is an error.
    scripts: Option<String>,
    blocking: Option<String>,
    refused: Vec<String>,
    lock: Option<Status>,
    /// The server's clock, and when the last complete sweep ended (s).
    now: u64,
    swept: Option<u64>,
}

pub(crate) fn doctor(args: &DoctorArgs) -> Done {
    let link = link(&args.server)?;
    let (seen, server) = look(&link, args)?;
    let past = if args.role == Role::Plan { Vec::new() } else { past(&seen) };
    let findings = [about(&seen, args.role), rights(&seen, args.role), past].concat();
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(
            out,
            "{server}: {}",
            plain(&name(Info(seen.info.as_deref().unwrap_or_default())))
        )?;
    }
    for finding in &findings {
        let grade = match finding.grade {
            Grade::Good => "ok",
            Grade::Note => "note",
            Grade::Bad => "bad",
        };
        let (what, advice) = (plain(&finding.what), finding.advice);
        if args.json {
            let line = json!({ "grade": grade, "what": what, "advice": advice });
            writeln!(out, "{line}")?;
        } else {
            let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
            writeln!(out, "  {grade:<5} {what}{advice}")?;
        }
    }
    let bad = findings.iter().any(|finding| finding.grade == Grade::Bad);
    Ok(if bad { exit::ERROR } else { exit::DONE })
}

fn look(link: &SharedLink, args: &DoctorArgs) -> tagsweep::Result<(Seen, String)> {
    let name = bytes(&args.lock);
    let mut seen = Seen::default();
    let server = {
        let mut link = link.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let link = &mut *link;
        match trip(link) {
            Ok(trip) => seen.trip = trip,
            Err(e) => seen.refused.extend(refusal(Err(e))?),
        }
        if args.role != Role::Watch {
            seen.info = text(link.bare(&cmd("INFO")))?;
        }
        let keys = Keys::new(args.server.prefix.as_encoded_bytes(), &name)?;
        let tag = [args.server.prefix.as_encoded_bytes(), b"tag:tagsweep-doctor"].concat();
        for read in reads(args.role, &keys, &tag) {
            seen.refused.extend(refusal(link.bare(&read))?);
        }
        if matches!(args.role, Role::Lock | Role::Sweep) {
            seen.scripts = refusal(link.bare(cmd("EVAL").arg("return 1").arg(0)))?;
            // Of a lock that nobody has.
            let nobody = Keys::new(args.server.prefix.as_encoded_bytes(), b"tagsweep-doctor")?;
            seen.blocking = refusal(link.bare(cmd("BLPOP").arg(nobody.baton).arg("0.01")))?;
            if seen.scripts.is_none() {
                seen.refused.extend(refused_writes(link, args.role, &keys, &tag)?);
            }
            let unknown = cmd("EVALSHA").arg("0".repeat(40)).arg(0).to_owned();
            seen.refused.extend(refusal(link.bare(&unknown))?.filter(|e| !e.contains("NOSCRIPT")));
            if args.role == Role::Sweep {
                let load = cmd("SCRIPT").arg("LOAD").arg("return 1").to_owned();
                seen.refused.extend(refusal(link.bare(&load))?);
            }
        }
        link.config().label()
    };
    if args.role == Role::Plan {
        return Ok((seen, server)); // it is not there to look at locks
    }
    // A user without the permission is told nothing.
    seen.lock = lock::status(link, &name).ok();
    seen.swept = sweep::totals(link, &name).ok().and_then(|totals| totals.last_success);
    seen.now = seen.lock.as_ref().map_or(0, |status| status.time.as_secs());
    Ok((seen, server))
}

fn trip(link: &mut Link) -> tagsweep::Result<Duration> {
    link.bare(&cmd("PING"))?;
    let mut trips = Vec::new();
    for _ in 0..TRIPS {
        let begun = Instant::now();
        link.bare(&cmd("PING"))?;
        trips.push(begun.elapsed());
    }
    trips.sort();
    Ok(trips[TRIPS / 2])
}

/// What a role reads, as commands that do no harm.
fn reads(role: Role, keys: &Keys, tag: &[u8]) -> Vec<Cmd> {
    let on = |name: &str, key: &[u8]| cmd(name).arg(key).to_owned();
    let mut reads = vec![cmd("TIME"), on("GET", &keys.lock)];
    if role == Role::Watch {
        reads.extend([on("PTTL", &keys.lock), on("HGETALL", &keys.stats)]);
        reads.push(on("ZCARD", &keys.waiters));
        reads.push(cmd("LRANGE").arg(&keys.runs).arg(0).arg(0).to_owned());
    }
    if matches!(role, Role::Plan | Role::Sweep) {
        reads.extend([cmd("DBSIZE"), on("EXISTS", tag)]);
        reads.push(cmd("SSCAN").arg(tag).arg(0).to_owned());
    }
    if role != Role::Lock {
        reads.push(cmd("SCAN").arg(0).arg("COUNT").arg(1).to_owned());
    }
    reads
}

/// What a role writes and the user may not, asked in a script that writes nothing.
fn refused_writes(
    link: &mut Link,
    role: Role,
    keys: &Keys,
    tag: &[u8],
) -> tagsweep::Result<Vec<String>> {
    let mut ask = cmd("EVAL");
    ask.arg(REFUSED).arg(0);
    for (name, more) in LOCKING {
        ask.arg(name).arg(&keys.lock).arg(more).arg(name).arg(&keys.fence).arg(more);
    }
    for (name, more) in SWEEPING.into_iter().filter(|_| role == Role::Sweep) {
        let key = if name.starts_with('H') || name == "EXPIRE" { &keys.stats } else { tag };
        ask.arg(name).arg(key).arg(more);
    }
    match link.bare(&ask) {
        Ok(told) => Ok(from_redis_value(told).unwrap_or_default()),
        Err(e) if e.code().is_some() => Ok(vec![e.to_string()]),
        Err(e) => Err(e),
    }
}

/// An error of the server as text; what keeps it from answering is ours.
fn refusal(answer: tagsweep::Result<Value>) -> tagsweep::Result<Option<String>> {
    match answer {
        Ok(_) => Ok(None),
        Err(e) if e.code().is_some() => Ok(Some(e.to_string())),
        Err(e) => Err(e),
    }
}

fn text(answer: tagsweep::Result<Value>) -> tagsweep::Result<Option<String>> {
    match answer {
        Ok(value) => Ok(from_redis_value(value).ok()),
        Err(e) if e.code().is_some() => Ok(None),
        Err(e) => Err(e),
    }
}

fn name(info: Info) -> String {
    let valkey = info.text("valkey_version").map(|version| format!("Valkey {version}"));
    let redis = || info.text("redis_version").map(|version| format!("Redis {version}"));
    valkey.or_else(redis).unwrap_or_else(|| "a server that does not say what it is".to_owned())
}

fn policy<'a>(info: &Info<'a>) -> &'a str {
    info.text("maxmemory_policy").unwrap_or("noeviction")
}

/// The bytes that it may hold, if that is bounded.
fn most(info: &Info) -> Option<u64> {
    info.number("maxmemory").filter(|most| *most > 0)
}

fn evicts(info: &Info) -> bool {
    most(info).is_some() && policy(info) != "noeviction"
}

fn is_full(info: &Info) -> bool {
    let used: u64 = info.number("used_memory").unwrap_or(0);
    most(info).is_some_and(|most| used * 20 > most * 19)
}

fn is_alone(info: &Info) -> bool {
    let mode = info.text("redis_mode").or(info.text("server_mode"));
    mode.is_none_or(|mode| mode == "standalone")
}

/// When something is to be said, how bad it is, what it is, and what follows or helps.
type Check = (fn(&Info) -> bool, Grade, &'static str, &'static str);

/// What matters to everybody.
const CHECKS: [Check; 9] = [
    (
        |info| info.is("role", "slave"),
        Grade::Bad,
        "it is a replica",
        "name the primary: what a replica does not see yet is no evidence",
    ),
    (
        |info| !is_alone(info),
        Grade::Bad,
        "it is no standalone server",
        "Cluster and Sentinel are not supported",
    ),
    (
        |info| !info.is_since([6, 2]),
        Grade::Bad,
        "it is older than 6.2",
        "locks need SET with GET: upgrade it",
    ),
    (
        |info| evicts(info),
        Grade::Note,
        "keys with a TTL may be evicted",
        "a lock that is evicted is noticed, but lost",
    ),
    (
        |info| is_full(info) && !evicts(info),
        Grade::Bad,
        "memory is nearly all used",
        "when it is, applications cannot write; locks and sweeps can, and sweeps give some back",
    ),
    (
        |info| info.is("rdb_last_bgsave_status", "err"),
        Grade::Bad,
        "the last save failed",
        "where stop-writes-on-bgsave-error is set nobody can write: see the server's log",
    ),
    (
        |info| info.is("aof_last_write_status", "err"),
        Grade::Bad,
        "the last write of the AOF failed",
        "nobody can write until it succeeds: see the server's log",
    ),
    (
        |info| info.number("min_slaves_good_slaves").is_some_and(|good: u64| good == 0),
        Grade::Bad,
        "it wants replicas (min-replicas-to-write), and none is good",
        "nobody can write until one is",
    ),
    (
        |info| info.is("loading", "1"),
        Grade::Bad,
        "it is loading its data",
        "nothing can be done until it has",
    ),
];

/// What matters to whoever looks at idle times.
const OF_SWEEPS: [Check; 3] = [
    (
        |info| info.is_since([6, 2]) && !info.is_since([7, 2]),
        Grade::Note,
        "it has no CLIENT NO-TOUCH (7.2)",
        "reading a tag makes it young: ages are kept on record, some 20 bytes a tag",
    ),
    (
        |info| policy(info).ends_with("lfu"),
        Grade::Note,
        "an LFU policy keeps no idle times",
        "entries must be seen absent twice, a grace apart; no tag counts as aged",
    ),
    (
        |info| info.is("rdb_bgsave_in_progress", "1") || info.is("aof_rewrite_in_progress", "1"),
        Grade::Note,
        "it is saving",
        "idle times stand still meanwhile; a sweep then takes a grace longer",
    ),
];

/// What the server is, and how it is doing.
fn about(seen: &Seen, role: Role) -> Vec<Finding> {
    let sweeps = matches!(role, Role::Sweep | Role::Plan);
    let trip = format!("round trip {}", span(seen.trip));
    let mut found = vec![match seen.trip < FAR {
        true => Finding::new(Grade::Good, trip, ""),
        false => Finding::new(Grade::Note, trip, "a sweep takes longer the farther away it runs"),
    }];
    match &seen.info {
        Some(info) => {
            let checks = CHECKS.iter().chain(OF_SWEEPS.iter().filter(|_| sweeps));
            let told = checks.filter(|(holds, ..)| holds(&Info(info)));
            found.extend(told.map(|(_, grade, what, advice)| Finding::new(*grade, *what, advice)));
        }
        None if !sweeps => {}
        None => found.push(Finding::new(
            Grade::Note,
            "the user may not ask INFO",
            "without it idle times are no evidence, and every entry must be seen absent twice",
        )),
    }
    found
}

/// What the user may do there.
fn rights(seen: &Seen, role: Role) -> Vec<Finding> {
    use Grade::{Bad, Good, Note};
    let advice = "grant it: `tagsweep acl` prints what is needed";
    let refused =
        |what: &String| match what.contains("the server answered") && !what.contains("NOPERM") {
            true => Finding::new(Bad, what.clone(), ""),
            false => Finding::new(Bad, format!("the user may not: {what}"), advice),
        };
    let mut found: Vec<Finding> = seen.refused.iter().map(refused).collect();
    if matches!(role, Role::Plan | Role::Watch) {
        return found;
    }
    found.push(match &seen.scripts {
        None => Finding::new(Good, "scripts run", ""),
        Some(e) => Finding::new(Bad, format!("scripts do not run: {e}"), advice),
    });
    found.push(match &seen.blocking {
        None => Finding::new(Good, "commands may block, so locks are waited for in line", ""),
        Some(e) => Finding::new(
            Note,
            format!("commands do not block: {e}"),
            "locks are waited for by asking again, in no order",
        ),
    });
    found
}

/// The lock of sweeps, and the last one under it.
fn past(seen: &Seen) -> Vec<Finding> {
    use Grade::{Good, Note};
    let mut found = Vec::new();
    if let Some(holder) = seen.lock.as_ref().and_then(|status| status.holder.as_ref()) {
        found.push(Finding::new(Note, format!("the lock of sweeps is {holder}"), ""));
    }
    found.push(match seen.swept {
        Some(at) => {
            let ago = span(Duration::from_secs(seen.now.saturating_sub(at)));
            Finding::new(Good, format!("the last complete sweep ended {ago} ago"), "")
        }
        None => Finding::new(
            Note,
            "no sweep was ever complete",
            "`tagsweep plan` shows what one would do",
        ),
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl;

    const INFO: &str = "redis_version:7.2.4\r\nredis_mode:standalone\r\nrole:master\r\n\
        maxmemory:0\r\nmaxmemory_policy:noeviction\r\nused_memory:1000\r\nloading:0\r\n\
        rdb_bgsave_in_progress:0\r\naof_rewrite_in_progress:0\r\nrdb_last_bgsave_status:ok\r\n";

    fn told(from: &str, to: &str) -> Vec<(Grade, String)> {
        let seen = Seen { info: Some(INFO.replace(from, to)), ..Seen::default() };
        about(&seen, Role::Sweep).into_iter().skip(1).map(|f| (f.grade, f.what)).collect()
    }

    #[test]
    fn a_healthy_server_gives_no_cause_for_words() {
        assert_eq!(told("", ""), []);
        assert_eq!(name(Info(INFO)), "Redis 7.2.4");
        assert_eq!(name(Info(&format!("{INFO}valkey_version:8.1.1\r\n"))), "Valkey 8.1.1");
    }

    #[test]
    fn what_stands_in_the_way_is_told() {
        use Grade::{Bad, Note};
        for (from, to, grade, what) in [
            ("role:master", "role:slave", Bad, "replica"),
            ("standalone", "cluster", Bad, "standalone"),
            ("7.2.4", "6.0.16", Bad, "older than 6.2"),
            ("7.2.4", "7.0.15", Note, "NO-TOUCH"),
            ("noeviction", "allkeys-lfu", Note, "idle times"),
            (
                "maxmemory:0\r\nmaxmemory_policy:noeviction",
                "maxmemory:9\r\nmaxmemory_policy:volatile-ttl",
                Note,
                "evicted",
            ),
            ("maxmemory:0", "maxmemory:1010", Bad, "memory"),
            ("bgsave_status:ok", "bgsave_status:err", Bad, "save failed"),
            ("loading:0", "loading:1", Bad, "loading"),
            ("bgsave_in_progress:0", "bgsave_in_progress:1", Note, "saving"),
        ] {
            let found = told(from, to);
            assert!(found.len() == 1 && found[0].0 == grade, "{to}: {found:?}");
            assert!(found[0].1.contains(what), "{to}: {found:?}");
        }
    }

    #[test]
    fn nothing_is_asked_for_that_the_printed_rule_does_not_give() {
        let given = |name: &str, lists: &[&str]| {
            let name = name.to_lowercase();
            lists.iter().any(|list| list.split_whitespace().any(|given| given == name))
        };
        assert!(LOCKING.iter().all(|(name, _)| given(name, &[acl::LOCK])));
        assert!(SWEEPING.iter().all(|(name, _)| given(name, &[acl::LOCK, acl::SWEEP])));
    }

    #[test]
    fn what_a_user_may_not_do_is_told() {
        let seen = Seen {
            scripts: Some("NOPERM".into()),
            blocking: Some("NOPERM".into()),
            refused: vec!["SREM".into()],
            ..Seen::default()
        };
        let grades: Vec<Grade> =
            rights(&seen, Role::Sweep).iter().map(|finding| finding.grade).collect();
        assert_eq!(grades, [Grade::Bad, Grade::Bad, Grade::Note]);
        assert_eq!(rights(&seen, Role::Plan).len(), 1);
        assert_eq!(about(&seen, Role::Sweep)[1].grade, Grade::Note, "INFO is not told");
        assert_eq!(about(&seen, Role::Watch).len(), 1, "and not missed");
    }
}
