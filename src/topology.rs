//! What one server is and does right now, as far as it tells: the facts that decide how evidence is
//! gathered. Pure; the text of `INFO` comes in.

use crate::clock::Moment;
use crate::reply::Info;
use std::time::Duration;

/// Facts about a server. What it does not tell is assumed for the worse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Idle times are not kept under an LFU policy.
    pub lfu: bool,
    /// A server that answers but is somebody's replica.
    pub replica: bool,
    /// It has a part of the keys only, and scripts may name keys of one slot only.
    pub cluster: bool,
    /// `CLIENT NO-TOUCH` exists: our own reads leave idle times alone.
    pub no_touch: bool,
    /// The server's clock (s).
    pub time: u64,
    /// Cursors of SCAN are positions in one table: a standalone server of the family.
    pub positions: bool,
    /// Which process answers: new at each start.
    pub run_id: Option<String>,
    /// A child process saves or rewrites: idle times stand still.
    pub child: bool,
    /// Grows with every child: their number, or when the last one saved, where that is not told.
    pub children: Option<i64>,
    /// Every child that there ever was ended at least this many seconds ago. `None`: not known.
    pub childless_for: Option<u64>,
}

/// What servers tell that speak the language and are no Redis inside.
const SPEAKERS: [&str; 4] =
    ["dragonfly_version", "garnet_version", "kvrocks_version", "pika_version"];

impl Facts {
    /// Reads the sections server, memory, persistence, stats and replication of `INFO`; `now` is
    /// the server's clock in seconds.
    pub fn read(info: &str, now: u64) -> Self {
        let info = Info(info);
        let is = |mode| ["redis_mode", "server_mode"].iter().any(|name| info.is(name, mode));
        let running = |name| !info.is(name, "0");
        Self {
            lfu: info.text("maxmemory_policy").is_some_and(|policy| policy.ends_with("lfu")),
            replica: info.is("role", "slave"),
            cluster: is("cluster"),
            no_touch: info.is_since([7, 2]),
            time: now,
            positions: is("standalone") && !SPEAKERS.iter().any(|other| info.text(other).is_some()),
            run_id: info.text("run_id").map(str::to_owned),
            child: running("rdb_bgsave_in_progress") || running("aof_rewrite_in_progress"),
            children: info.number("total_forks").or_else(|| info.number("rdb_last_save_time")),
            childless_for: childless_for(info, now),
        }
    }
}

/// CPU time that the server's main thread has used (s), or the whole process where it does not tell.
pub(crate) fn cpu_used(info: Info) -> Option<f64> {
    let sum = |user, sys| Some(info.number::<f64>(user)? + info.number::<f64>(sys)?);
    sum("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
        .or_else(|| sum("used_cpu_user", "used_cpu_sys"))
}

/// Bytes of all commands that the server was sent.
pub(crate) fn bytes_received(info: Info) -> Option<f64> {
    info.number("total_net_input_bytes")
}

/// How long ago the last child ended, at least. A save for a replica, a rewrite and a save that failed
/// leave no time behind, so those make it unknown.
fn childless_for(info: Info, now: u64) -> Option<u64> {
    if info.is("total_forks", "0") {
        return Some(u64::MAX);
    }
    let only_saves = info.is("aof_last_rewrite_time_sec", "-1")
        && info.is("connected_slaves", "0")
        && info.is("sync_full", "0")
        && info.is("rdb_last_bgsave_status", "ok");
    let saved: u64 = info.number("rdb_last_save_time")?;
    // Two clocks that tick once a second.
    only_saves.then_some(now.saturating_sub(saved + 1))
}

/// Whether idle times are evidence, watched over a run.
#[derive(Clone, Debug)]
pub(crate) struct IdleClock {
    facts: Facts,
    /// Since when we know that no child ran. `None` while one does.
    still_since: Option<Moment>,
    /// As of when.
    observed: Moment,
    /// The server kept none then, by its own clock (s): what a key holds from before that is no time.
    none_at: u64,
}

impl IdleClock {
    pub fn new(facts: Facts, now: Moment) -> Self {
        let before = Duration::from_secs(facts.childless_for.unwrap_or(0).min(365 * 86_400));
        let still_since = (!facts.child).then(|| now - before);
        Self { facts, still_since, observed: now, none_at: 0 }
    }

    /// Takes in what `INFO` says now, as answer to a question that was sent then. A child that came and
    /// went meanwhile is known by their number.
    pub fn observe(&mut self, facts: &Facts, sent: Moment, now: Moment) {
        let others = facts.children.is_none() || facts.children != self.facts.children;
        match (facts.child, self.still_since) {
            (true, _) => self.still_since = None,
            (false, Some(_)) if !others => {}
            (false, _) => self.still_since = Some(now),
        }
        (self.facts.children, self.observed) = (facts.children, sent);
    }

    /// The server has not answered for a while, until now: what it was asked behind whatever took so long looks as
    /// old as that.
    pub fn stood_still(&mut self, now: Moment) {
        self.still_since = self.still_since.map(|since| since.max(now));
    }

    /// The server tells no idle time, at that time of its own (s): a policy without them is in force.
    pub fn ends(&mut self, now: u64) {
        (self.facts.lfu, self.none_at) = (true, self.none_at.max(now));
    }

    /// An earlier sweep, at that time of the server's, found an LFU policy in force.
    pub fn not_before(&mut self, none_at: u64) {
        self.none_at = self.none_at.max(none_at);
    }

    /// An idle time that the server tells at that time of its own, if it is one: a key that was last used
    /// under an LFU policy has something else in its place, which is read as a time all the same.
    pub fn told(&self, idle: u64, now: u64) -> Option<u64> {
        (now.saturating_sub(idle) >= self.none_at).then_some(idle)
    }

    /// Whether the server keeps idle times at all.
    pub fn runs(&self) -> bool {
        !self.facts.lfu
    }

    /// Whether the server kept idle times for all of the last `span`.
    pub fn trusted(&self, span: Duration, now: Moment) -> bool {
        !self.facts.lfu && self.still_since.is_some_and(|since| now.since(since) >= span)
    }

    /// Whether the server kept idle times from then to then, as far as was observed since.
    pub fn was_still(&self, from: Moment, to: Moment) -> bool {
        let still = self.still_since.is_some_and(|since| since <= from);
        !self.facts.lfu && still && self.observed >= to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\n\
        rdb_bgsave_in_progress:0\r\naof_rewrite_in_progress:0\r\nrdb_last_save_time:1000\r\n\
        aof_last_rewrite_time_sec:-1\r\ntotal_forks:3\r\nrole:master\r\nconnected_slaves:0\r\n\
        sync_full:0\r\nrdb_last_bgsave_status:ok\r\n";

    fn with(from: &str, to: &str) -> Facts {
        Facts::read(&INFO.replace(from, to), 1007)
    }

    #[test]
    fn facts_are_read_and_the_unknown_is_assumed_for_the_worse() {
        let facts = Facts::read(INFO, 1007);
        let (childless_for, children) = (Some(6), Some(3));
        let quiet = Facts { childless_for, children, time: 1007, ..Facts::default() };
        assert_eq!(facts, quiet);
        assert!(with("7.0.15", "7.2.4").no_touch);
        assert!(with("noeviction", "allkeys-lfu").lfu);
        let mode = |text: &str| with("role:master", &format!("role:master\r\n{text}")).positions;
        assert!(mode("redis_mode:standalone") && mode("server_mode:standalone"));
        assert!(!mode("redis_mode:cluster"));
        assert!(with("role:master", "redis_mode:cluster").cluster && !facts.cluster);
        assert!(!mode("redis_mode:standalone\r\ndragonfly_version:df-v1.30"));
        assert!(with("bgsave_in_progress:0", "bgsave_in_progress:1").child);
        assert_eq!(with("connected_slaves:0", "connected_slaves:1").childless_for, None);
        assert_eq!(with("sync_full:0", "sync_full:1").childless_for, None);
        assert_eq!(with("status:ok", "status:err").childless_for, None);
        assert_eq!(with("rewrite_time_sec:-1", "rewrite_time_sec:0").childless_for, None);
        assert_eq!(with("total_forks:3", "total_forks:0").childless_for, Some(u64::MAX));
        assert!(Facts::read("", 0).child, "a server that says nothing may be saving");
    }

    #[test]
    fn the_main_thread_is_what_is_busy() {
        let whole = "# CPU\r\nused_cpu_sys:1.5\r\nused_cpu_user:2.0\r\n";
        assert_eq!(cpu_used(Info(whole)), Some(3.5));
        let main = "used_cpu_sys_main_thread:1.0\r\nused_cpu_user_main_thread:0.5\r\n";
        assert_eq!(cpu_used(Info(&[whole, main].concat())), Some(1.5));
        assert_eq!(cpu_used(Info("")), None);
    }

    #[test]
    fn idle_times_are_evidence_only_after_a_quiet_span() {
        let (now, span) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(5));
        let mut clock = IdleClock::new(Facts::read(INFO, 1007), now);
        assert!(clock.trusted(span, now));
        assert!(!clock.trusted(span * 2, now));
        clock.observe(&with("bgsave_in_progress:0", "bgsave_in_progress:1"), now, now);
        assert!(!clock.trusted(span, now + span));
        clock.observe(&Facts::read(INFO, 1007), now + span, now + span);
        assert!(!clock.trusted(span, now + span) && clock.trusted(span, now + span * 2));
    }

    #[test]
    fn idle_times_from_behind_a_long_command_are_no_evidence() {
        let (now, span) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(5));
        let mut clock = IdleClock::new(Facts::read(INFO, 1007), now);
        clock.stood_still(now);
        assert!(!clock.trusted(span, now + span / 2) && clock.trusted(span, now + span));
        assert!(!clock.was_still(now - span, now));
    }

    #[test]
    fn a_save_that_nobody_saw_is_known_by_the_number_of_children() {
        let (now, second) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(1));
        let mut clock = IdleClock::new(Facts::read(INFO, 1007), now);
        assert!(!clock.was_still(now, now + second), "nobody has looked since");
        clock.observe(&Facts::read(INFO, 1007), now + second, now + second);
        assert!(clock.was_still(now, now + second));
        clock.observe(&with("total_forks:3", "total_forks:4"), now + second * 2, now + second * 2);
        assert!(!clock.was_still(now, now + second) && !clock.trusted(second, now + second * 2));
        assert!(clock.was_still(now + second * 2, now + second * 2));
    }
}
