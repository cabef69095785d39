//! What a doctor finds in what was seen of a server. Pure.

use crate::args::Role;
use crate::doctor::look::Seen;
use crate::output::span;
use std::time::Duration;
use tagsweep::reply::Info;

/// A round trip from which on it is worth a word.
const FAR: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grade {
    Good,
    /// To be known.
    Note,
    /// To be mended.
    Bad,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub grade: Grade,
    pub what: String,
    pub advice: &'static str,
}

impl Finding {
    fn new(grade: Grade, what: impl Into<String>, advice: &'static str) -> Self {
        Self { grade, what: what.into(), advice }
    }
}

/// All that is to be said of it to that role.
pub(super) fn findings(seen: &Seen, role: Role) -> Vec<Finding> {
    let past = if role == Role::Plan { Vec::new() } else { past(seen) };
    [about(seen, role), rights(seen, role), past].concat()
}

/// What it calls itself.
pub(super) fn name(info: Info) -> String {
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
const OF_SWEEPS: [Check; 4] = [
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
        |info| policy(info).ends_with("lrm"),
        Grade::Note,
        "an LRM policy keeps idle times of writes only",
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
    let trip = |trip: Duration| match (trip < FAR, format!("round trip {}", span(trip))) {
        (true, told) => Finding::new(Grade::Good, told, ""),
        (false, told) => {
            Finding::new(Grade::Note, told, "a sweep takes longer the farther away it runs")
        }
    };
    let mut found: Vec<Finding> = seen.trip.map(trip).into_iter().collect();
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
        // No lock is had there at all, which is said.
        Some(e) if e.contains("READONLY") => return found,
        Some(e) => Finding::new(
            Note,
            format!("commands do not block: {e}"),
            "locks are waited for by asking again, in no order",
        ),
    });
    found.extend(seen.tracking.as_ref().map(|e| {
        let what = format!("it does not tell of changes (client tracking): {e}");
        Finding::new(Note, what, "whoever waits looks at the lock about once a second")
    }));
    found
}

/// The lock of sweeps, and the last one under it.
fn past(seen: &Seen) -> Vec<Finding> {
    use Grade::{Good, Note};
    let mut found = Vec::new();
    if let Some(holder) = seen.lock.as_ref().and_then(|status| status.holder.as_ref()) {
        found.push(Finding::new(Note, format!("the lock of sweeps is {holder}"), ""));
    }
    found.extend(seen.swept.map(|(now, swept)| match swept {
        Some(at) => {
            let ago = span(Duration::from_secs(now.saturating_sub(at)));
            Finding::new(Good, format!("the last complete sweep ended {ago} ago"), "")
        }
        None => Finding::new(
            Note,
            "no sweep was ever complete",
            "`tagsweep plan` shows what one would do",
        ),
    }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "redis_version:7.2.4\r\nredis_mode:standalone\r\nrole:master\r\n\
        maxmemory:0\r\nmaxmemory_policy:noeviction\r\nused_memory:1000\r\nloading:0\r\n\
        rdb_bgsave_in_progress:0\r\naof_rewrite_in_progress:0\r\nrdb_last_bgsave_status:ok\r\n";

    fn told(from: &str, to: &str) -> Vec<(Grade, String)> {
        let seen = Seen { info: Some(INFO.replace(from, to)), ..Seen::default() };
        about(&seen, Role::Sweep).into_iter().map(|f| (f.grade, f.what)).collect()
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
            ("noeviction", "volatile-lrm", Note, "writes only"),
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
    fn what_a_user_may_not_do_is_told() {
        let seen = Seen {
            scripts: Some("NOPERM".into()),
            blocking: Some("NOPERM".into()),
            tracking: Some("NOPERM".into()),
            refused: vec!["SREM".into()],
            ..Seen::default()
        };
        let grades: Vec<Grade> =
            rights(&seen, Role::Sweep).iter().map(|finding| finding.grade).collect();
        assert_eq!(grades, [Grade::Bad, Grade::Bad, Grade::Note, Grade::Note]);
        assert_eq!(rights(&seen, Role::Plan).len(), 1);
        assert_eq!(about(&seen, Role::Sweep)[0].grade, Grade::Note, "INFO is not told");
        assert_eq!(about(&seen, Role::Watch).len(), 0, "and not missed");
    }
}
