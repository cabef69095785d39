//! Sweeps that are cut short, by a limit or by death, and those that go on after them.
//!
//! The sweepers that die are processes: this test binary, started again as `a_sweeper`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::{Commands, Connection};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::random::Random;
use support::{Server, age, until};
use tagsweep::Config;
use tagsweep::lock::{Lock, Outcome};
use tagsweep::sweep::{Ended, Flow, Options, Reason, Report, Sweep, totals};

fn quick() -> Options {
    Options {
        verify: Duration::from_millis(100),
        lock_ttl: Duration::from_secs(3),
        wait: Duration::from_secs(10),
        trust_mapping: true,
        ..Options::default()
    }
}

fn sweep(server: &Server, options: Options) -> Report {
    match Sweep::new(server.config(), options).unwrap().run(&mut |_| Flow::Continue).unwrap() {
        Ended::Swept(report) => report,
        Ended::Held(holder) => panic!("{holder}"),
    }
}

/// Not a test: the process that is to die. `TAGSWEEP_SWEEPER` names its server and how it ends.
#[test]
fn a_sweeper() {
    let Ok(told) = std::env::var("TAGSWEEP_SWEEPER") else { return };
    let (url, how) = told.split_once(' ').unwrap();
    let effort = if how == "slowly" { 1 } else { 10 };
    let options = Options { durable: how.contains("durable"), effort, ..quick() };
    let mut sweep = Sweep::new(Config::from_url(url).unwrap(), options).unwrap();
    println!("ready");
    sweep
        .run(&mut |progress| {
            if how.contains("removing") && progress.report.references_removed > 0 {
                std::process::abort();
            }
            Flow::Continue
        })
        .unwrap();
}

/// That process, when it is about to sweep.
fn sweeper(server: &Server, how: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["a_sweeper", "--exact", "--nocapture"])
        .env("TAGSWEEP_SWEEPER", format!("{} {how}", server.url()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")));
    child
}

/// Tags with live and stale references, unused for an hour. Returns what is to be left of them.
fn fill(con: &mut Connection, seed: u64, tags: u64) -> Tags {
    let (mut dice, mut left) = (Random::new(seed), BTreeMap::new());
    let mut pipe = redis::pipe();
    for t in 0..tags {
        for m in 0..1 + dice.below(20) {
            let entry = format!("item:{t}:{m}");
            pipe.sadd(format!("tag:{t}"), &entry).ignore();
            if dice.below(3) == 0 {
                pipe.set(&entry, "x").ignore();
                left.entry(format!("tag:{t}")).or_insert_with(BTreeSet::new).insert(entry);
            }
        }
    }
    pipe.exec(con).unwrap();
    age_all(con, tags);
    left
}

fn age_all(con: &mut Connection, tags: u64) {
    let (mut dumps, mut restores) = (redis::pipe(), redis::pipe());
    for t in 0..tags {
        dumps.cmd("DUMP").arg(format!("tag:{t}"));
    }
    let dumps: Vec<Option<Vec<u8>>> = dumps.query(con).unwrap();
    for (t, dump) in dumps.into_iter().enumerate() {
        let Some(dump) = dump else { continue };
        let restore = restores.cmd("RESTORE").arg(format!("tag:{t}")).arg(0).arg(dump);
        restore.arg("REPLACE").arg("IDLETIME").arg(3600).ignore();
    }
    restores.exec(con).unwrap();
}

fn all_tags(con: &mut Connection) -> Tags {
    let tags: Vec<String> = con.keys("tag:*").unwrap();
    tags.into_iter().map(|tag| (tag.clone(), con.smembers(tag).unwrap())).collect()
}

fn references(tags: &Tags) -> usize {
    tags.values().map(BTreeSet::len).sum()
}

type Tags = BTreeMap<String, BTreeSet<String>>;

fn assert_same(found: &Tags, wanted: &Tags) {
    let differ = |tag: &&String| found.get(*tag) != wanted.get(*tag);
    let tags: BTreeSet<&String> = found.keys().chain(wanted.keys()).filter(differ).collect();
    let first = tags.first().map(|tag| (tag, found.get(*tag), wanted.get(*tag)));
    assert!(tags.is_empty(), "{} tags differ: {first:?}", tags.len());
}

#[test]
fn killed_a_hundred_times_and_then_complete() {
    let server = Server::start();
    let mut con = server.connect();
    let mut dice = Random::new(7);
    let mut left = fill(&mut con, 1, 1000);
    let (mut all, mut span, mut worked) = (references(&all_tags(&mut con)), 60_000, 0);
    // A look makes tags young, on servers before 7.2.
    age_all(&mut con, 1000);
    for death in 0..100 {
        let mut child = sweeper(&server, if death % 2 == 0 { "durable" } else { "plain" });
        std::thread::sleep(Duration::from_micros(dice.below(span)));
        child.kill().unwrap();
        child.wait().unwrap();
        // The next one need not wait for the TTL of the dead.
        let _: () = con.del("lock:cache_tag_cleanup").unwrap();
        if death % 10 == 9 {
            // On a slow machine they live longer.
            match references(&all_tags(&mut con)) < all {
                true => worked += 1,
                false => span *= 2,
            }
            let found = all_tags(&mut con);
            let kept = |(tag, live): (&String, &BTreeSet<String>)| {
                found.get(tag).is_some_and(|members| members.is_superset(live))
            };
            assert!(left.iter().all(kept), "{death}: nothing that lives is lost");
            // More work for those who come.
            let more = fill(&mut con, death, 1000);
            let tags = all_tags(&mut con);
            all = references(&tags);
            left = tags
                .into_iter()
                .map(|(tag, members)| {
                    let live = members.into_iter().filter(|entry| con.exists(entry).unwrap());
                    (tag, live.collect::<BTreeSet<String>>())
                })
                .filter(|(_, live)| !live.is_empty())
                .collect();
            assert!(more.iter().all(|(tag, live)| left[tag].is_superset(live)), "it is a model");
            age_all(&mut con, 1000);
        }
    }
    assert!(worked > 4, "they died too soon");
    let report = sweep(&server, Options { resume: false, ..quick() });
    assert!(report.complete);
    assert_same(&all_tags(&mut con), &left);
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:checkpoint"), Ok(false));
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:quarantine"), Ok(false));
}

#[test]
fn a_sweep_that_was_cut_short_is_gone_on_with_and_passes_nothing_over() {
    let server = Server::start();
    let mut con = server.connect();
    let left = fill(&mut con, 3, 3000);
    let stale = references(&all_tags(&mut con)) - references(&left);
    let (mut removed, mut resumed, mut runs) = (0, 0, 0);
    loop {
        let (limit, grace) = (Some(stale as u64 / 7), Duration::ZERO);
        let report = sweep(&server, Options { max_removals: limit, grace, ..quick() });
        assert!(report.references_removed <= limit.unwrap());
        removed += report.references_removed;
        resumed += u64::from(report.resumed_at > 0.0);
        runs += 1;
        if report.complete {
            break;
        }
        assert_eq!(report.reason, Reason::MaxRemovals);
    }
    assert_eq!(removed as usize, stale);
    assert_same(&all_tags(&mut con), &left);
    assert!(resumed >= 5 && runs <= 10, "{resumed} of {runs}");
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:checkpoint"), Ok(false));
}

#[test]
fn what_became_stale_behind_a_sweep_that_was_cut_short_is_found_by_the_next() {
    let server = Server::start();
    let mut con = server.connect();
    let left = fill(&mut con, 3, 3000);
    let quick = || Options { grace: Duration::ZERO, ..quick() };
    let cut = sweep(&server, Options { max_removals: Some(5000), ..quick() });
    assert_eq!(cut.reason, Reason::MaxRemovals);
    for tag in left.keys() {
        let _: () = con.sadd(tag, "item:gone-meanwhile").unwrap();
    }
    let report = sweep(&server, quick());
    assert!(report.complete && report.resumed_at > 0.0 && report.resumed_at < 1.0, "{report:?}");
    assert_eq!(report.removed_before, cut.references_removed);
    assert_same(&all_tags(&mut con), &left);
}

#[test]
fn who_waited_for_longer_than_a_grace_goes_round_the_whole_table() {
    let server = Server::start();
    let mut con = server.connect();
    let left = fill(&mut con, 3, 3000);
    let grace = Duration::from_secs(3);
    let ended = Sweep::new(server.config(), Options { grace, ..quick() }).unwrap().run(&mut |p| {
        if p.report.references_removed < 5000 { Flow::Continue } else { Flow::Stop }
    });
    assert!(matches!(ended, Ok(Ended::Swept(report)) if report.reason == Reason::Stopped));
    let mut lock = Lock::new(server.config(), b"cache_tag_cleanup", grace * 10).unwrap();
    assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
    let report = std::thread::scope(|scope| {
        let next = scope.spawn(|| sweep(&server, Options { grace, ..quick() }));
        until("it waits", || con.zcard("{lock:cache_tag_cleanup}:waiters") == Ok(1));
        std::thread::sleep(grace * 3 / 2);
        for tag in left.keys() {
            let _: () = con.sadd(tag, "item:gone-meanwhile").unwrap();
        }
        age_all(&mut con, 3000);
        assert!(lock.release().unwrap());
        next.join().unwrap()
    });
    assert!(report.complete && report.resumed_at > 0.0, "{report:?}");
    assert_same(&all_tags(&mut con), &left);
}

#[test]
fn sweeps_that_are_cut_short_every_time_see_all_tags_together() {
    let server = Server::start();
    let mut con = server.connect();
    fill(&mut con, 3, 2000);
    let grace = Duration::ZERO;
    let seen = || totals(&server.link(), b"cache_tag_cleanup").unwrap().last_success;
    let mut runs = 0;
    while seen().is_none() {
        assert!(runs < 40, "they go round and round");
        let mut sweep = Sweep::new(server.config(), Options { grace, ..quick() }).unwrap();
        let ended = sweep.run(&mut |progress| {
            // Longer than what is condemned waits for company.
            std::thread::sleep(Duration::from_millis(4));
            if progress.share < 0.4 { Flow::Continue } else { Flow::Stop }
        });
        let Ok(Ended::Swept(report)) = ended else { panic!("{ended:?}") };
        assert_eq!((report.complete, report.reason), (false, Reason::Stopped));
        runs += 1;
    }
    assert!(runs > 1, "{runs}");
    let entries: Vec<String> = all_tags(&mut con).into_values().flatten().collect();
    assert!(entries.iter().all(|entry| con.exists(entry).unwrap()));
    // What was done before that belongs to that round.
    let next = sweep(&server, Options { grace, ..quick() });
    assert!(next.resumed_at > 0.0 && next.removed_before == 0, "{next:?}");
}

#[test]
fn sweeps_too_short_for_tags_in_use_still_come_to_all_others() {
    let server = Server::start();
    let mut con = server.connect();
    let mut pipe = redis::pipe();
    for t in 0..5000 {
        pipe.sadd(format!("tag:{t}"), "item:gone").ignore();
    }
    pipe.exec(&mut con).unwrap();
    let in_use: BTreeSet<String> = (0..5000).step_by(20).map(|t| format!("tag:{t}")).collect();
    for run in 0..200 {
        // Before Redis 7.2 a sweep makes those young, too, that it reads and leaves.
        age_all(&mut con, 5000);
        for tag in &in_use {
            let _: () = con.sadd(tag, format!("item:gone:{run}")).unwrap();
        }
        let mut sweep = Sweep::new(server.config(), quick()).unwrap();
        let mut rounds = 0;
        let ended = sweep.run(&mut |_| {
            rounds += 1;
            // Longer than what is condemned waits for company.
            std::thread::sleep(Duration::from_millis(4));
            if rounds < 30 { Flow::Continue } else { Flow::Stop }
        });
        let Ok(Ended::Swept(report)) = ended else { panic!("{ended:?}") };
        assert_eq!(report.reason, Reason::Stopped);
        // Any other command would make them young.
        if con.keys::<_, BTreeSet<String>>("tag:*").unwrap() == in_use {
            let totals = totals(&server.link(), b"cache_tag_cleanup").unwrap();
            assert!(run > 2 && totals.last_success.is_none(), "{run}");
            return;
        }
    }
    panic!("they come no farther");
}

#[test]
fn what_was_removed_before_is_told_though_no_page_was_done() {
    let server = Server::start();
    let mut con = server.connect();
    fill(&mut con, 3, 10);
    for before in [0, 2, 4] {
        let report = sweep(&server, Options { max_removals: Some(2), ..quick() });
        assert_eq!((report.removed_before, report.references_removed), (before, 2));
    }
}

#[test]
fn a_killed_sweep_is_gone_on_with_by_the_next() {
    let server = Server::start();
    let mut con = server.connect();
    fill(&mut con, 4, 20_000);
    let mut child = sweeper(&server, "slowly");
    // The first may be of the beginning.
    until("a checkpoint", || {
        let kept: Option<String> = con.get("{lock:cache_tag_cleanup}:checkpoint").unwrap();
        kept.is_some_and(|kept| !kept.contains("\"cursor\":0,"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let report = sweep(&server, quick());
    assert!(report.complete && report.resumed_at > 0.0, "{report:?}");
    let entries: Vec<String> = all_tags(&mut con).into_values().flatten().collect();
    assert!(
        entries.iter().all(|entry| con.exists(entry).unwrap()),
        "everything before it was done"
    );
}

#[test]
fn a_checkpoint_of_another_question_or_server_is_none() {
    let mut server = Server::start();
    let mut con = server.connect();
    fill(&mut con, 3, 3000);
    let cut = || Options { max_removals: Some(3000), ..quick() };
    assert_eq!(sweep(&server, cut()).reason, Reason::MaxRemovals);
    let key = "{lock:cache_tag_cleanup}:checkpoint";
    let kept: Vec<u8> = con.get(key).unwrap();
    let other = Options { grace: Duration::from_secs(4), ..cut() };
    assert_eq!(sweep(&server, other).resumed_at, 0.0);
    let _: () = con.set(key, &kept).unwrap();
    assert!(sweep(&server, Options { max_removals: Some(1), ..quick() }).resumed_at > 0.0);
    for nonsense in [b"{".as_slice(), b"", &kept[..kept.len() / 2], &[0xff; 100]] {
        let _: () = con.set(key, nonsense).unwrap();
        assert_eq!(sweep(&server, Options { max_removals: Some(1), ..quick() }).resumed_at, 0.0);
    }
    server.restart();
    let mut con = server.connect();
    fill(&mut con, 3, 3000);
    let _: () = con.set(key, &kept).unwrap();
    let report = sweep(&server, quick());
    assert_eq!((report.resumed_at, report.complete), (0.0, true));
}

/// A sweeper dies after it has removed a reference: of that tag.
fn die_before_verification(how: &str) -> (Server, Connection, usize) {
    let server = Server::start();
    let mut con = server.connect();
    for t in 0..300 {
        let _: () = con.sadd(format!("tag:{t}"), format!("item:{t}")).unwrap();
        age(&mut con, format!("tag:{t}"), 3600);
    }
    assert!(!sweeper(&server, how).wait().unwrap().success());
    let tags = all_tags(&mut con);
    let gone = (0..300).find(|t| !tags.contains_key(&format!("tag:{t}"))).unwrap();
    (server, con, gone)
}

/// The entry appears then, and somebody sweeps.
fn is_put_back_after(how: &str) -> bool {
    let (server, mut con, gone) = die_before_verification(how);
    let _: () = con.set(format!("item:{gone}"), "late").unwrap();
    let report = sweep(&server, quick());
    assert!(report.complete);
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:quarantine"), Ok(false), "crossed out");
    con.sismember(format!("tag:{gone}"), format!("item:{gone}")).unwrap()
}

#[test]
fn a_durable_quarantine_outlives_the_sweeper() {
    assert!(is_put_back_after("removing durable"));
    assert!(!is_put_back_after("removing"), "this is what the option is for");
}

#[test]
fn what_a_durable_sweep_left_has_the_grace_for_its_entry() {
    let (server, mut con, gone) = die_before_verification("removing durable");
    let grace = Duration::from_secs(3);
    let mut sweep = Sweep::new(server.config(), Options { grace, ..quick() }).unwrap();
    let (mut asked, mut written) = (0, false);
    let ended = sweep.run(&mut |progress| {
        // The writer comes when the entry was looked for, and not there.
        asked += u32::from(progress.waiting && progress.report.pages > 0);
        if asked > 3 && !std::mem::replace(&mut written, true) {
            let _: () = con.set(format!("item:{gone}"), "late").unwrap();
        }
        Flow::Continue
    });
    assert!(written && matches!(ended, Ok(Ended::Swept(report)) if report.complete));
    assert_eq!(con.sismember(format!("tag:{gone}"), format!("item:{gone}")), Ok(true));
}

#[test]
fn what_a_sweep_notes_itself_is_not_what_an_earlier_one_left() {
    let (server, mut con, _) = die_before_verification("removing durable");
    let quarantine = "{lock:cache_tag_cleanup}:quarantine";
    let mut sweep = Sweep::new(server.config(), quick()).unwrap();
    let mut ours = None;
    let ended = sweep.run(&mut |_| {
        // Once the lock of the one that died is over.
        let grant: String = con.get("{lock:cache_tag_cleanup}:fence").unwrap();
        let fence = grant.split('+').next().unwrap();
        let left: Vec<(String, Vec<u8>)> = con.hgetall(quarantine).unwrap();
        if ours.is_none() && !left[0].0.starts_with(fence) {
            let id = format!("{fence}.99");
            let _: () = con.del(quarantine).unwrap();
            let _: () = con.hset(quarantine, &id, &left[0].1).unwrap();
            ours = Some(id);
        }
        Flow::Continue
    });
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert!(report.complete && report.warnings.is_empty(), "{report:?}");
    assert_eq!(con.hkeys(quarantine), Ok(vec![ours.unwrap()]), "it is not crossed out");
}

#[test]
fn a_durable_sweep_crosses_everything_out_that_it_verified() {
    let server = Server::start();
    let mut con = server.connect();
    let left = fill(&mut con, 9, 2000);
    let report = sweep(&server, Options { durable: true, ..quick() });
    assert!(report.complete && report.warnings.is_empty(), "{:?}", report.warnings);
    assert_same(&all_tags(&mut con), &left);
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:quarantine"), Ok(false));
}

#[test]
fn what_was_verified_in_a_hurry_is_left_to_the_next_durable_sweep() {
    let server = Server::start();
    let mut con = server.connect();
    let left = fill(&mut con, 9, 2000);
    let durable = || Options { durable: true, ..quick() };
    let mut sweep_once = Sweep::new(server.config(), durable()).unwrap();
    let ended = sweep_once.run(&mut |progress| match progress.report.references_removed {
        0 => Flow::Continue,
        _ => Flow::Stop,
    });
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert!(report.reason == Reason::Stopped && report.references_removed > 0, "{report:?}");
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:quarantine"), Ok(true));
    let report = sweep(&server, durable());
    assert!(report.complete && report.warnings[0].contains("to be looked at again"), "{report:?}");
    assert_same(&all_tags(&mut con), &left);
    assert_eq!(con.exists("{lock:cache_tag_cleanup}:quarantine"), Ok(false));
}

#[test]
fn a_strict_sweep_deletes_an_entry_whose_reference_it_would_put_back() {
    for strict in [false, true] {
        let server = Server::start();
        let mut con = server.connect();
        let _: () = con.sadd("tag:a", "item:late").unwrap();
        age(&mut con, "tag:a", 3600);
        let mut other = server.connect();
        let options = Options { strict, verify: Duration::from_millis(300), ..quick() };
        let mut sweep = Sweep::new(server.config(), options).unwrap();
        let mut written = false;
        let ended = sweep.run(&mut |progress| {
            if progress.report.references_removed == 1 && !std::mem::replace(&mut written, true) {
                let _: () = other.set("item:late", "x").unwrap();
            }
            Flow::Continue
        });
        let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
        assert_eq!(report.references_restored, u64::from(!strict));
        assert_eq!(report.entries_invalidated, u64::from(strict));
        assert_eq!(con.exists("item:late"), Ok(!strict));
        assert_eq!(con.sismember("tag:a", "item:late"), Ok(!strict));
    }
}
