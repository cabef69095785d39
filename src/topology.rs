//! What one server is and does right now, as far as it tells: the facts that decide how evidence is
//! gathered. Pure; the text of `INFO` comes in.

use crate::clock::Moment;
use crate::reply::Info;
use std::time::Duration;

/// Facts about a server. What it does not tell is assumed for the worse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Idle times are not kept under an LFU policy; under an LRM policy (Redis 8.6) they tell of writes only.
    pub without_idle: bool,
    /// A server that answers but is somebody's replica.
    pub replica: bool,
    /// It has a part of the keys only, and scripts may name keys of one slot only.
    pub cluster: bool,
    /// `CLIENT NO-TOUCH` exists: our own reads leave idle times alone.
    pub no_touch: bool,
    /// The server's clock; zero where it is not told.
    pub time: Duration,
    /// Cursors of SCAN are positions in one table: a standalone server of the family.
    pub positions: bool,
    /// Which process answers: new at each start.
    pub run_id: Option<String>,
    /// A child process saves or rewrites: idle times stand still.
    pub child: bool,
    /// Grows with every child: their number, or when the last one saved, where that is not told.
    pub children: Option<i64>,
    /// How often members were added to tags, or were to be: grows with every writer. `None`: not known.
    pub written: Option<u64>,
    /// Every child that there ever was ended at least this many seconds ago. `None`: not known.
    pub childless_for: Option<u64>,
}

/// What servers tell that speak the language and are no Redis inside.
const SPEAKERS: [&str; 4] =
    ["dragonfly_version", "garnet_version", "kvrocks_version", "pika_version"];

impl Facts {
    /// Reads the sections server, memory, persistence, stats, replication and commandstats of `INFO`; `now` is
    /// the server's clock.
    pub fn read(info: &str, now: Duration) -> Self {
        let info = Info(info);
        let is = |mode| ["redis_mode", "server_mode"].iter().any(|name| info.is(name, mode));
        let running = |name| !info.is(name, "0");
        let module = info.text("module_fork_in_progress").is_some_and(|running| running != "0");
        Self {
            without_idle: info
                .text("maxmemory_policy")
                .is_some_and(|policy| policy.ends_with("lfu") || policy.ends_with("lrm")),
            replica: info.is("role", "slave"),
            cluster: is("cluster"),
            no_touch: info.is_since([7, 2]),
            time: now,
            positions: is("standalone") && !SPEAKERS.iter().any(|other| info.text(other).is_some()),
            run_id: info.text("run_id").map(str::to_owned),
            child: running("rdb_bgsave_in_progress")
                || running("aof_rewrite_in_progress")
                || module,
            children: info.number("total_forks").or_else(|| info.number("rdb_last_save_time")),
            written: written(info),
            childless_for: childless_for(info, now.as_secs()),
        }
    }
}

/// The commands that put members into sets and sorted sets.
const ADDS: [&str; 16] = [
    "cmdstat_sadd",
    "cmdstat_zadd",
    "cmdstat_zincrby",
    "cmdstat_smove",
    "cmdstat_sunionstore",
    "cmdstat_sinterstore",
    "cmdstat_sdiffstore",
    "cmdstat_zunionstore",
    "cmdstat_zinterstore",
    "cmdstat_zdiffstore",
    "cmdstat_zrangestore",
    "cmdstat_geoadd",
    "cmdstat_copy",
    "cmdstat_rename",
    "cmdstat_renamenx",
    "cmdstat_restore",
];

/// Their calls, in scripts and transactions, too.
fn written(info: Info) -> Option<u64> {
    let calls = |name| -> Option<u64> {
        let told: &str = info.text(name)?.strip_prefix("calls=")?;
        told.split(',').next()?.parse().ok()
    };
    calls("cmdstat_info")?; // or this section was not told
    Some(ADDS.into_iter().filter_map(calls).sum())
}

/// The answer to `TIME`, seconds and microseconds, as a span since 1970.
pub(crate) fn time_of((seconds, micros): (u64, u64)) -> Duration {
    Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros))
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

/// How long ago the last child ended, at least. A save for a replica, a rewrite, a module's child and a save that
/// failed leave no time behind, so those make it unknown; so does one that was called off, if it was the first:
/// later ones cannot be told from those that saved, for it is beginnings that are counted.
fn childless_for(info: Info, now: u64) -> Option<u64> {
    let no_rewrite = info.is("aof_last_rewrite_time_sec", "-1");
    // Their number is forgotten at CONFIG RESETSTAT, what the last one took is not.
    if info.is("total_forks", "0") && no_rewrite && info.is("rdb_last_bgsave_time_sec", "-1") {
        return Some(u64::MAX);
    }
    let forks: Option<u64> = info.number("total_forks");
    let others = info.number("rdb_saves").is_some_and(|saves: u64| forks.is_none_or(|n| n > saves));
    let only_saves = no_rewrite
        && !others
        && info.is("connected_slaves", "0")
        && info.is("sync_full", "0")
        && info.is("rdb_last_bgsave_status", "ok");
    let saved: u64 = info.number("rdb_last_save_time")?;
    // Until something is saved that is when the server started.
    let started = info.number("uptime_in_seconds").map(|up: u64| now.saturating_sub(up) + 1);
    let saves = info.text("rdb_last_bgsave_time_sec").is_some_and(|took| took != "-1");
    if saves && started.is_some_and(|started| saved <= started) {
        return None;
    }
    // Two clocks that tick once a second.
    only_saves.then_some(now.saturating_sub(saved + 1))
}

/// The longest idle time that is one (s), 180 days. A server counts seconds in 24 bits: after its clock was set back,
/// what was used last looks as if that had been 194 days ago.
pub(crate) const LONGEST_IDLE: u64 = 180 * 86_400;

/// What the server's clock may be off from what we expect of it.
const SET: Duration = Duration::from_millis(500);

/// Whether idle times are evidence, watched over a run.
#[derive(Clone, Debug)]
pub(crate) struct IdleClock {
    facts: Facts,
    /// Since when we know that no child ran. `None` while one does.
    still_since: Option<Moment>,
    /// Since when we know that nobody wrote to tags.
    unwritten_since: Option<Moment>,
    /// As of when.
    observed: Moment,
    /// When the answer came; in between the server's clock showed `facts.time`.
    heard: Moment,
    /// The server kept none then, by its own clock (s): what a key holds from before that is no time.
    none_at: u64,
}

impl IdleClock {
    /// From what was asked then, and answered at that time.
    pub fn new(facts: Facts, sent: Moment, heard: Moment) -> Self {
        let before = Duration::from_secs(facts.childless_for.unwrap_or(0).min(365 * 86_400));
        let still_since = (!facts.child).then(|| sent - before);
        let unwritten_since = facts.written.map(|_| heard);
        Self { facts, still_since, unwritten_since, observed: sent, heard, none_at: 0 }
    }

    /// Takes in what `INFO` says now, as answer to a question that was sent then. A child that came and
    /// went meanwhile is known by their number. Once the clock was set idle times are no evidence for a grace: then
    /// what was used before it was left alone for long enough.
    pub fn observe(&mut self, facts: &Facts, sent: Moment, now: Moment) {
        if self.was_set(facts.time, sent, now) {
            self.stood_still(now);
        }
        let others = facts.children.is_none() || facts.children != self.facts.children;
        match (facts.child, self.still_since) {
            (true, _) => self.still_since = None,
            (false, Some(_)) if !others => {}
            (false, _) => self.still_since = Some(now),
        }
        if facts.written.is_none() || facts.written != self.facts.written {
            self.unwritten_since = facts.written.map(|_| now);
        }
        (self.facts.children, self.facts.time) = (facts.children, facts.time);
        self.facts.written = facts.written;
        (self.observed, self.heard) = (sent, now);
    }

    /// Whether the server's clock shows what it cannot show, unless it was set.
    fn was_set(&self, time: Duration, sent: Moment, now: Moment) -> bool {
        let before = self.facts.time;
        let least = before.saturating_add(sent.since(self.heard));
        let most = before.saturating_add(now.since(self.observed));
        let told = !before.is_zero() && !time.is_zero();
        told && (time.saturating_add(SET) < least || time > most.saturating_add(SET))
    }

    /// The server has not answered for a while, until now: what it was asked behind whatever took so long looks as
    /// old as that.
    pub fn stood_still(&mut self, now: Moment) {
        self.still_since = self.still_since.map(|since| since.max(now));
    }

    /// The server tells no idle time, at that time of its own (s): a policy without them is in force.
    pub fn ends(&mut self, now: u64) {
        (self.facts.without_idle, self.none_at) = (true, self.none_at.max(now));
    }

    /// An earlier sweep, at that time of the server's, found an LFU policy in force.
    pub fn not_before(&mut self, none_at: u64) {
        self.none_at = self.none_at.max(none_at);
    }

    /// An idle time that the server tells at that time of its own, if it is one. Under an LRM policy none is, though
    /// it is told; a key that was last used under an LFU policy has something else in its place, which is read as a
    /// time all the same; so is one that was used before the clock was set back.
    pub fn told(&self, idle: u64, now: u64) -> Option<u64> {
        let is_one =
            self.runs() && idle <= LONGEST_IDLE && now.saturating_sub(idle) >= self.none_at;
        is_one.then_some(idle)
    }

    /// Whether the server keeps idle times at all.
    pub fn runs(&self) -> bool {
        !self.facts.without_idle
    }

    /// Whether the server kept idle times for all of the last `span`.
    pub fn trusted(&self, span: Duration, now: Moment) -> bool {
        !self.facts.without_idle && self.still_since.is_some_and(|since| now.since(since) >= span)
    }

    /// Whether the server kept idle times from then to then, as far as was observed since.
    pub fn was_still(&self, from: Moment, to: Moment) -> bool {
        let still = self.still_since.is_some_and(|since| since <= from);
        !self.facts.without_idle && still && self.observed >= to
    }

    /// Whether nobody wrote to any tag from then to then, as far as was observed since.
    pub fn was_unwritten(&self, from: Moment, to: Moment) -> bool {
        self.unwritten_since.is_some_and(|since| since <= from) && self.observed >= to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\n\
        rdb_bgsave_in_progress:0\r\naof_rewrite_in_progress:0\r\nrdb_last_save_time:1000\r\n\
        aof_last_rewrite_time_sec:-1\r\ntotal_forks:3\r\nrdb_saves:3\r\nrdb_last_bgsave_time_sec:0\r\nrole:master\r\nconnected_slaves:0\r\n\
        sync_full:0\r\nrdb_last_bgsave_status:ok\r\n";

    fn with(from: &str, to: &str) -> Facts {
        Facts::read(&INFO.replace(from, to), Duration::from_secs(1007))
    }

    #[test]
    fn facts_are_read_and_the_unknown_is_assumed_for_the_worse() {
        let facts = Facts::read(INFO, Duration::from_secs(1007));
        let (childless_for, children) = (Some(6), Some(3));
        let quiet =
            Facts { childless_for, children, time: Duration::from_secs(1007), ..Facts::default() };
        assert_eq!(facts, quiet);
        assert!(with("7.0.15", "7.2.4").no_touch);
        assert!(with("noeviction", "allkeys-lfu").without_idle);
        let lrm = IdleClock::new(with("noeviction", "volatile-lrm"), Moment::now(), Moment::now());
        assert_eq!((lrm.runs(), lrm.told(3600, 5000)), (false, None), "not since it was used");
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
        assert_eq!(with("total_forks:3", "total_forks:4").childless_for, None, "not all saved");
        let reset = with("total_forks:3\r\nrdb_saves:3", "total_forks:0\r\nrdb_saves:0");
        assert_eq!(reset.childless_for, Some(6), "statistics were reset");
        let never =
            INFO.replace("total_forks:3", "total_forks:0").replace("time_sec:0", "time_sec:-1");
        let never = Facts::read(&never, Duration::from_secs(1007));
        assert_eq!(never.childless_for, Some(u64::MAX));
        assert!(with("sync_full:0", "sync_full:0\r\nmodule_fork_in_progress:1").child);
        let up = |seconds| format!("total_forks:3\r\nuptime_in_seconds:{seconds}");
        assert_eq!(with("total_forks:3", &up(100)).childless_for, Some(6));
        assert_eq!(
            with("total_forks:3", &up(7)).childless_for,
            None,
            "it began, and saved nothing"
        );
        assert!(Facts::read("", Duration::ZERO).child, "a server that says nothing may be saving");
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
        let mut clock = IdleClock::new(Facts::read(INFO, Duration::from_secs(1007)), now, now);
        assert!(clock.trusted(span, now));
        assert!(!clock.trusted(span * 2, now));
        clock.observe(&with("bgsave_in_progress:0", "bgsave_in_progress:1"), now, now);
        assert!(!clock.trusted(span, now + span));
        clock.observe(&Facts::read(INFO, Duration::from_secs(1007)), now + span, now + span);
        assert!(!clock.trusted(span, now + span) && clock.trusted(span, now + span * 2));
    }

    #[test]
    fn a_clock_that_was_set_makes_idle_times_no_evidence_for_a_grace() {
        let (begun, span) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(5));
        let ms = Duration::from_millis;
        for (shows, set) in
            [(1_010_000, false), (1_010_400, false), (1_013_000, true), (1_009_000, true)]
        {
            let mut clock =
                IdleClock::new(Facts::read(INFO, Duration::from_secs(1007)), begun, begun);
            let (sent, now) = (begun + ms(3000), begun + ms(3010));
            clock.observe(&Facts::read(INFO, ms(shows)), sent, now);
            assert_eq!(clock.trusted(span, now), !set, "{shows}");
            assert!(clock.trusted(span, now + span));
            // From then on it is what it is.
            clock.observe(&Facts::read(INFO, ms(shows + 500)), sent + ms(500), now + ms(500));
            assert!(clock.trusted(ms(500), now + ms(500)));
        }
        // Two answers of which the first was late: nobody set anything.
        let late = begun + ms(2000);
        let mut clock = IdleClock::new(Facts::read(INFO, Duration::from_secs(1007)), begun, late);
        for shows in [1_007_100, 1_009_100] {
            let mut clock = clock.clone();
            clock.observe(&Facts::read(INFO, ms(shows)), late + ms(100), late + ms(110));
            assert!(clock.trusted(span, late + ms(110)), "{shows}");
        }
        clock.observe(&Facts::read(INFO, Duration::MAX), late + ms(100), late + ms(110));
        assert!(!clock.trusted(span, late + ms(110)), "nonsense is no reason to trust it");
        assert_eq!(clock.told(LONGEST_IDLE, u64::MAX), Some(LONGEST_IDLE));
        assert_eq!(clock.told((1 << 24) - 3, u64::MAX), None, "used three seconds ahead");
    }

    #[test]
    fn idle_times_from_behind_a_long_command_are_no_evidence() {
        let (now, span) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(5));
        let mut clock = IdleClock::new(Facts::read(INFO, Duration::from_secs(1007)), now, now);
        clock.stood_still(now);
        assert!(!clock.trusted(span, now + span / 2) && clock.trusted(span, now + span));
        assert!(!clock.was_still(now - span, now));
    }

    #[test]
    fn a_save_that_nobody_saw_is_known_by_the_number_of_children() {
        let (now, second) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(1));
        // One that does not tell its time.
        let facts = Facts { time: Duration::ZERO, ..Facts::read(INFO, Duration::from_secs(1007)) };
        let mut clock = IdleClock::new(facts, now, now);
        assert!(!clock.was_still(now, now + second), "nobody has looked since");
        clock.observe(&Facts::read(INFO, Duration::from_secs(1007)), now + second, now + second);
        assert!(clock.was_still(now, now + second));
        clock.observe(&with("total_forks:3", "total_forks:4"), now + second * 2, now + second * 2);
        assert!(!clock.was_still(now, now + second) && !clock.trusted(second, now + second * 2));
        assert!(clock.was_still(now + second * 2, now + second * 2));
    }

    #[test]
    fn a_writer_is_known_by_the_number_of_commands_that_add_members() {
        let told = |text: &str| {
            let facts = Facts::read(&[INFO, text].concat(), Duration::from_secs(1007));
            facts.written
        };
        let own = "cmdstat_info:calls=2,usec=9\r\n";
        assert_eq!(told(""), None);
        assert_eq!(told(own), Some(0));
        let adds = format!("{own}cmdstat_zadd:calls=2,usec=1\r\ncmdstat_sadd:calls=40,usec=1\r\n");
        assert_eq!(told(&adds), Some(42));

        let (now, second) = (Moment::now() + Duration::from_secs(100), Duration::from_secs(1));
        let facts = |written| Facts { written, ..Facts::read(INFO, Duration::from_secs(1007)) };
        let mut clock = IdleClock::new(facts(None), now, now);
        assert!(!clock.was_unwritten(now, now), "nobody told");
        let mut told = |at: u32, written| {
            clock.observe(&facts(written), now + second * at, now + second * at);
            clock.clone()
        };
        assert!(told(1, Some(7)).was_unwritten(now + second, now + second));
        let still = told(2, Some(7));
        assert!(still.was_unwritten(now + second, now + second * 2));
        assert!(
            !still.was_unwritten(now, now + second)
                && !still.was_unwritten(now + second, now + second * 3)
        );
        assert!(!told(3, Some(8)).was_unwritten(now + second, now + second * 2));
        assert!(told(4, Some(8)).was_unwritten(now + second * 3, now + second * 4));
        assert!(!told(5, None).was_unwritten(now + second * 3, now + second * 4));
    }
}
