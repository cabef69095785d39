//! Writers of every order hammer a tagged cache while sweeps run without pause: at every instant and
//! afterwards, every live entry is in its tag. So that we know that such a race would find a fault,
//! weakened sweeps run it, too, and must be caught. And sweeps run two at once, are killed, stopped and
//! deposed. `TAGSWEEP_RACE_SECONDS` sets the time of the sound ones (default 12).
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::{Commands, Connection};
use std::collections::VecDeque;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::Server;
use support::proxy::{Proxy, Swap};
use support::random::Random;
use support::say::say;
use tagsweep::Config;
use tagsweep::sweep::{Ended, Flow, OnAged, Options, Progress, Reason, Report, Sweep};

#[derive(Clone, Copy, Debug)]
enum Order {
    EntryFirst,
    ReferenceFirst,
    Together,
}

const ORDERS: [Order; 3] = [Order::EntryFirst, Order::ReferenceFirst, Order::Together];

/// Writers of each order, and slow writers besides; each has items of its own.
const WRITERS: u64 = 4;
const SLOW: u64 = 24;
const RARE: u64 = 4;
const TAGS: u64 = 20;
const ITEMS: u64 = 50;

const GRACE: Duration = Duration::from_secs(2);
const VERIFY: Duration = Duration::from_millis(100);

/// Longest time of a slow writer from its reference to its entry (ms): less than the grace, by enough
/// for a busy machine, and more than the first verification.
const GAP: u64 = 700;

/// By when a removed reference of a live entry is back: a grace after its removal, which the last look
/// of a busy machine may exceed.
const REPAIRED: Duration = Duration::from_secs(5);

/// Time in which a weakened sweep must be caught, and a sound one have done what there is to see.
const CAUGHT: Duration = Duration::from_secs(60);

/// What a sweep is robbed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weakness {
    None,
    /// It does not ask how long a tag has been left alone, nor look twice.
    Grace,
    /// What it removed by mistake is not put back.
    Verify,
    /// It looks for the entries in one step and removes references in a later one.
    OneStep,
    /// It removes whoever holds the lock.
    Fence,
}

/// One race at a time: the others' load would be mistaken for writers that are slower than the grace.
static TRACK: Mutex<()> = Mutex::new(());

/// A race under way.
struct Race {
    server: Server,
    weakness: Weakness,
    done: AtomicBool,
    writes: AtomicU64,
    /// Live entries that were missing from their tag when they should not have been.
    missing: Mutex<Vec<String>>,
    /// By when a removed reference of a live entry is back.
    repaired: Duration,
    /// Tags that were left alone for a second are invalidated.
    ages: bool,
}

impl Race {
    fn new(weakness: Weakness) -> Self {
        Self {
            server: Server::start(),
            weakness,
            done: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            missing: Mutex::new(Vec::new()),
            repaired: REPAIRED,
            ages: false,
        }
    }

    fn goes_on(&self) -> bool {
        !self.done.load(Ordering::Relaxed)
    }

    /// Looks at one instant whether a live entry is in its tag.
    fn check(&self, con: &mut Connection, tag: &str, entry: &str) {
        let (alive, in_tag): (bool, bool) =
            redis::pipe().atomic().exists(entry).sismember(tag, entry).query(con).unwrap();
        if alive && !in_tag {
            self.missing.lock().unwrap().push(format!("{entry} in {tag}"));
        }
    }

    /// A writer as applications have them: two commands, or one transaction. Every fifth entry lives
    /// on, the others expire within half a second. Where the entry is there no later than its
    /// reference, nobody may see it without, not even for a moment.
    fn write(&self, writer: u64, order: Order) {
        let (mut con, mut dice) = (self.server.connect(), Random::new(writer));
        let mut last = VecDeque::new();
        while self.goes_on() {
            let (tag, item) = (dice.below(TAGS), dice.below(ITEMS));
            let tag_key = format!("tag:{order:?}:{tag}");
            let entry = format!("item:{order:?}:{tag}:{writer}.{item}");
            let ttl = if dice.below(5) == 0 { 600_000 } else { 1 + dice.below(500) };
            let gap = Duration::from_micros(dice.below(2000));
            match order {
                Order::EntryFirst => {
                    let _: () = con.pset_ex(&entry, "v", ttl).unwrap();
                    std::thread::sleep(gap);
                    let _: () = con.sadd(&tag_key, &entry).unwrap();
                }
                Order::ReferenceFirst => {
                    let _: () = con.sadd(&tag_key, &entry).unwrap();
                    std::thread::sleep(gap);
                    let _: () = con.pset_ex(&entry, "v", ttl).unwrap();
                }
                Order::Together => {
                    let mut pipe = redis::pipe();
                    pipe.atomic().sadd(&tag_key, &entry).ignore();
                    pipe.pset_ex(&entry, "v", ttl).ignore().exec(&mut con).unwrap();
                }
            }
            self.writes.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(dice.below(2000)));
            if !matches!(order, Order::ReferenceFirst) {
                last.push_back((tag_key, entry));
                if last.len() > 8 {
                    last.pop_front();
                }
                last.iter().for_each(|(tag, entry)| self.check(&mut con, tag, entry));
            }
        }
    }

    /// A writer that is slow between reference and entry: the entry may appear after its reference
    /// went, and only verification brings that back. An item that was given a long life is never
    /// written again, so that nothing else would; the next one takes its place.
    fn write_slowly(&self, writer: u64) {
        let (mut con, mut dice) = (self.server.connect(), Random::new(1000 + writer));
        let tag = format!("tag:Slow:{writer}");
        let (mut born, mut retired) = ([0; 8], VecDeque::new());
        while self.goes_on() {
            let place = dice.below(8) as usize;
            let entry = format!("item:Slow:{writer}:{place}.{}", born[place]);
            let _: () = con.sadd(&tag, &entry).unwrap();
            std::thread::sleep(Duration::from_millis(dice.below(GAP)));
            if dice.below(3) == 0 {
                let _: () = con.pset_ex(&entry, "v", 600_000).unwrap();
                retired.push_back((Instant::now(), entry));
                born[place] += 1;
            } else {
                let _: () = con.pset_ex(&entry, "v", 50).unwrap();
            }
            while retired.front().is_some_and(|(at, _)| at.elapsed() > self.repaired) {
                let (_, entry) = retired.pop_front().unwrap();
                self.check(&mut con, &tag, &entry);
            }
        }
    }

    /// A writer that comes back to a tag of many entries now and then: about when it is old enough to be
    /// invalidated.
    fn write_rarely(&self, writer: u64) {
        let (mut con, mut dice) = (self.server.connect(), Random::new(2000 + writer));
        let tag = format!("tag:Rare:{writer}");
        let entries: Vec<String> = (0..600).map(|n| format!("item:Rare:{writer}:{n}")).collect();
        while self.goes_on() {
            for entry in &entries {
                let _: () = con.pset_ex(entry, "v", 600_000).unwrap();
                let _: () = con.sadd(&tag, entry).unwrap();
                self.writes.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(1000 + dice.below(2500)));
            entries.iter().for_each(|entry| self.check(&mut con, &tag, entry));
        }
    }

    fn options(&self) -> Options {
        let (grace, lock_ttl) = (GRACE, Duration::from_secs(5));
        let sound =
            Options { grace, verify: VERIFY, lock_ttl, trust_mapping: true, ..Options::default() };
        match self.weakness {
            Weakness::Grace => Options { grace: Duration::ZERO, ..sound },
            _ if self.ages => {
                let max_tag_age = Some(Duration::from_secs(1));
                Options { max_tag_age, on_aged: OnAged::Invalidate, ..sound }
            }
            _ => sound,
        }
    }

    /// The way to the server, on which a script may be replaced by a weaker one.
    fn way(&self) -> Config {
        match self.weakness {
            Weakness::None | Weakness::Grace => self.server.config(),
            weakness => {
                let (sound, weak) = scripts(weakness);
                let mut con = self.server.connect();
                let [from, to] = [sound, &weak].map(|body| {
                    let load = redis::cmd("SCRIPT").arg("LOAD").arg(body).query::<String>(&mut con);
                    load.unwrap()
                });
                let swap = Swap::new(&from, &to);
                Proxy::swapping(&self.server.socket(), Some(swap)).config()
            }
        }
    }

    fn sweep(&self, way: &Config, watch: &mut dyn FnMut(&Progress) -> Flow) -> Report {
        let mut sweep = Sweep::new(way.clone(), self.options()).unwrap();
        match sweep.run(watch).unwrap() {
            Ended::Swept(report) => report,
            Ended::Held(holder) => panic!("{holder}"),
        }
    }

    /// Starts all writers.
    fn start<'a>(&'a self, scope: &'a std::thread::Scope<'a, '_>) {
        for (n, order) in (0..).zip(ORDERS.iter().cycle().take(3 * WRITERS as usize)) {
            scope.spawn(move || self.write(n, *order));
        }
        (0..SLOW).for_each(|n| {
            scope.spawn(move || self.write_slowly(n));
        });
        (0..if self.ages { RARE } else { 0 }).for_each(|n| {
            scope.spawn(move || self.write_rarely(n));
        });
    }

    /// Runs for some time, and to the first finding if `one_is_enough`; answers what was missing.
    fn run(self, time: Duration, one_is_enough: bool) -> Vec<String> {
        let way = self.way();
        let (mut removed, mut restored, mut invalidated, mut runs) = (0, 0, 0, 0);
        std::thread::scope(|scope| {
            let race = &self;
            race.start(scope);
            let begun = Instant::now();
            let found = || one_is_enough && !race.missing.lock().unwrap().is_empty();
            let mut watch = |_: &Progress| if found() { Flow::Stop } else { Flow::Continue };
            while !found() {
                // A slow machine may need longer to see each kind of thing.
                let lacks = (race.ages && invalidated == 0) || (!one_is_enough && restored == 0);
                if begun.elapsed() > if lacks { time.max(CAUGHT) } else { time } {
                    break;
                }
                let report = race.sweep(&way, &mut watch);
                removed += report.references_removed;
                restored += report.references_restored;
                invalidated += report.entries_invalidated;
                runs += 1;
            }
            race.done.store(true, Ordering::Relaxed);
        });
        let writes = self.writes.load(Ordering::Relaxed);
        say(&format!(
            "without {:?}: {writes} writes, {runs} sweeps, {removed} removed, {restored} restored, \
             {invalidated} invalidated",
            self.weakness
        ));
        assert_eq!(invalidated > 0, self.ages);
        let mut missing = self.missing.lock().unwrap().clone();
        assert!(!missing.is_empty() || (writes > 1000 && removed > 100), "the race was none");
        if !one_is_enough {
            assert!(restored > 0, "the race was none");
            // The writers are done; what they left stale goes, too.
            self.sweep(&way, &mut |_| Flow::Continue);
            let (lost, stale) = compare(&mut self.server.connect());
            missing.extend(lost);
            assert_eq!(stale, 0, "stale references older than the grace");
        }
        missing
    }
}

/// A script, and the same without its strength.
fn scripts(weakness: Weakness) -> (&'static str, String) {
    let without = |body: &str, part: &str, instead: &str| {
        assert_eq!(body.matches(part).count(), 1, "the script has changed: {part}");
        body.replace(part, instead)
    };
    let prune = include_str!("../src/scripts/prune.lua");
    let fence = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end\n";
    match weakness {
        Weakness::Verify => (include_str!("../src/scripts/restore.lua"), "return {0, 0}".into()),
        Weakness::Fence => (prune, without(prune, fence, "")),
        // What is found stale goes with a later call, as where somebody looks first and removes then.
        _ => {
            let weak = without(
                prune,
                "removed = try('SREM', tag, unpack(go, from, to))",
                "for i = from, to do redis.call('RPUSH', 'pending', tag, go[i]) end \
                 redis.call('SET', 'between', '', 'PX', 20, 'NX') removed = to - from + 1",
            );
            let before = "local between = redis.call('EXISTS', 'between') == 1\n\
                          local pending = between and {} or redis.call('LRANGE', 'pending', 0, -1)\n\
                          if not between then redis.call('DEL', 'pending') end\n\
                          for i = 1, #pending, 2 do \
                          redis.call('SREM', pending[i], pending[i + 1]) end\n";
            (prune, format!("{before}{weak}"))
        }
    }
}

/// Everything, looked at naively: live entries that are not in their tag, and stale references.
fn compare(con: &mut Connection) -> (Vec<String>, usize) {
    let entries: Vec<String> = con.keys("item:*").unwrap();
    let mut lost = Vec::new();
    for entry in entries {
        let tag = format!("tag:{}", entry[5..].rsplit_once(':').unwrap().0);
        if !con.sismember::<_, _, bool>(tag, &entry).unwrap() && con.exists(&entry).unwrap() {
            lost.push(entry);
        }
    }
    let tags: Vec<String> = con.keys("tag:*").unwrap();
    let members: Vec<Vec<String>> = tags.iter().map(|tag| con.smembers(tag).unwrap()).collect();
    let stale = members.iter().flatten().filter(|entry| !con.exists::<_, bool>(entry).unwrap());
    (lost, stale.count())
}

#[test]
fn no_live_entry_leaves_its_tag() {
    let _alone = TRACK.lock();
    let seconds = std::env::var("TAGSWEEP_RACE_SECONDS").ok().and_then(|s| s.parse().ok());
    let missing = Race::new(Weakness::None).run(Duration::from_secs(seconds.unwrap_or(12)), false);
    assert!(missing.is_empty(), "live entries missing from their tags: {missing:?}");
}

#[test]
fn an_invalidation_of_aged_tags_takes_entries_and_references_together() {
    let _alone = TRACK.lock();
    let seconds = std::env::var("TAGSWEEP_RACE_SECONDS").ok().and_then(|s| s.parse().ok());
    let race = Race { ages: true, ..Race::new(Weakness::None) };
    let missing = race.run(Duration::from_secs(seconds.unwrap_or(12) / 2), false);
    assert!(missing.is_empty(), "live entries missing from their tags: {missing:?}");
}

/// Not a test: a sweeper that is tormented. `TAGSWEEP_SWEEPER` names its server.
#[test]
fn a_sweeper() {
    let Ok(url) = std::env::var("TAGSWEEP_SWEEPER") else { return };
    let options = Options { wait: Duration::from_secs(60), ..durable() };
    loop {
        let _ = Sweep::new(Config::from_url(&url).unwrap(), options.clone())
            .unwrap()
            .run(&mut |_| Flow::Continue);
    }
}

/// Killed sweeps leave to the next what they have not verified.
fn durable() -> Options {
    let lock_ttl = Duration::from_secs(1);
    let sound = Options { grace: GRACE, verify: VERIFY, lock_ttl, ..Options::default() };
    Options { durable: true, trust_mapping: true, ..sound }
}

/// A sweeper that ends with the test, however that ends.
struct Sweeper(Child);

impl Drop for Sweeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sweeper(server: &Server) -> Sweeper {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["a_sweeper", "--exact"])
        .env("TAGSWEEP_SWEEPER", server.url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Sweeper(child)
}

/// Kills, stops and deposes two sweepers for some time. Answers how often.
fn torment(race: &Race, time: Duration) -> [u32; 3] {
    let (mut dice, mut faults) = (Random::new(1), [0; 3]);
    let mut sweepers = [sweeper(&race.server), sweeper(&race.server)];
    let mut con = race.server.connect();
    let link = race.server.link();
    let runs = || tagsweep::sweep::totals(&link, b"cache_tag_cleanup").unwrap().runs;
    let begun = Instant::now();
    // A slow machine may need longer to see each kind of fault, and two sweeps to their end.
    let lacks = |faults: &[u32]| faults.contains(&0) || runs().values().sum::<u64>() < 2;
    while begun.elapsed() < time || (lacks(&faults) && begun.elapsed() < time.max(CAUGHT)) {
        std::thread::sleep(Duration::from_millis(dice.below(1500)));
        let (kind, victim) = (dice.below(3) as usize, &mut sweepers[dice.below(2) as usize]);
        match kind {
            0 => *victim = sweeper(&race.server),
            1 => {
                support::signal(victim.0.id(), "STOP");
                std::thread::sleep(Duration::from_millis(dice.below(2500)));
                support::signal(victim.0.id(), "CONT");
            }
            _ => {
                let _: () = con.del("lock:cache_tag_cleanup").unwrap();
            }
        }
        faults[kind] += 1;
    }
    faults
}

#[test]
fn sweeps_that_are_killed_stopped_and_deposed_lose_nothing() {
    let _alone = TRACK.lock();
    let seconds = std::env::var("TAGSWEEP_RACE_SECONDS").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(12));
    // What a killed sweep removed by mistake is back after the next one, whenever that comes.
    let race = Race { repaired: Duration::MAX, ..Race::new(Weakness::None) };
    let faults = std::thread::scope(|scope| {
        race.start(scope);
        let faults = torment(&race, time);
        race.done.store(true, Ordering::Relaxed);
        faults
    });
    let mut con = race.server.connect();
    let totals = tagsweep::sweep::totals(&race.server.link(), b"cache_tag_cleanup").unwrap();
    let before = references(&mut con);
    let options = Options { wait: Duration::from_secs(10), ..durable() };
    let mut sweep = Sweep::new(race.server.config(), options).unwrap();
    let Ended::Swept(last) = sweep.run(&mut |_| Flow::Continue).unwrap() else { panic!("held") };
    say(&format!(
        "{:?} writes; killed, stopped, deposed {faults:?} times; {:?}; the last one removed {}",
        race.writes, totals.runs, last.references_removed
    ));
    assert!(faults.iter().all(|n| *n > 0) && totals.runs.values().sum::<u64>() > 1);
    let went = last.references_removed - last.references_restored;
    assert!(last.complete && before.abs_diff(references(&mut con)) == went, "{last:?}");
    let missing = race.missing.lock().unwrap().clone();
    assert!(missing.is_empty(), "live entries missing from their tags: {missing:?}");
    let (lost, stale) = compare(&mut con);
    assert!(lost.is_empty(), "live entries missing from their tags: {lost:?}");
    assert_eq!(stale, 0, "stale references older than the grace");
}

fn is_caught(weakness: Weakness) {
    let _alone = TRACK.lock();
    let begun = Instant::now();
    let missing = Race::new(weakness).run(CAUGHT, true);
    assert!(!missing.is_empty(), "a sweep without {weakness:?} runs, and nobody notices");
    say(&format!("without {weakness:?}: caught after {:?}", begun.elapsed()));
}

#[test]
fn a_sweep_without_grace_is_caught() {
    is_caught(Weakness::Grace);
}

#[test]
fn a_sweep_that_does_not_verify_is_caught() {
    is_caught(Weakness::Verify);
}

#[test]
fn a_sweep_in_two_steps_is_caught() {
    is_caught(Weakness::OneStep);
}

/// Somebody else takes the lock in the middle of a sweep. Answers how many references go after that.
fn depose(weakness: Weakness) -> u64 {
    const STALE: u64 = 100_000;
    let race = Race::new(weakness);
    let mut con = race.server.connect();
    // Where a look counts as use, ours must not, or the tags are let alone for that.
    let _ = redis::cmd("CLIENT").arg("NO-TOUCH").arg("ON").exec(&mut con);
    let fill = "for i = 1, ARGV[1] do redis.call('SADD', 'tag:' .. i % 100, 'item:' .. i) end";
    redis::cmd("EVAL").arg(fill).arg(0).arg(STALE).exec(&mut con).unwrap();
    (0..100).for_each(|tag| support::age(&mut con, format!("tag:{tag}"), 60));
    let mut usurped = None;
    let report = race.sweep(&race.way(), &mut |progress| {
        if progress.report.references_removed > 0 && usurped.is_none() {
            let _: () = con.pset_ex("lock:cache_tag_cleanup", "another", 60_000).unwrap();
            usurped = Some(references(&mut con));
        }
        Flow::Continue
    });
    let then = usurped.unwrap();
    assert!(then > STALE / 2, "it was over too soon: {then} left");
    assert!(weakness == Weakness::Fence || report.reason == Reason::Lost, "{report:?}");
    then - references(&mut con)
}

fn references(con: &mut Connection) -> u64 {
    let tags: Vec<String> = con.keys("tag:*").unwrap();
    tags.iter().map(|tag| con.scard::<_, u64>(tag).unwrap()).sum()
}

#[test]
fn a_deposed_sweep_removes_nothing_and_one_without_a_fence_is_caught() {
    let _alone = TRACK.lock();
    assert_eq!(depose(Weakness::None), 0);
    assert!(depose(Weakness::Fence) > 0, "a sweep without a fence runs, and nobody notices");
}
