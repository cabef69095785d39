//! How a sweep goes: beside others, watched, called off, cut off.

use crate::fixtures::*;
use crate::support::{Server, age, run, until};
use redis::Commands;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tagsweep::ErrorKind;
use tagsweep::lock::{Lock, Options as Terms, Outcome, status};
use tagsweep::sweep::{Ended, Flow, Options, Reason, Report, Sweep, totals};

#[test]
fn a_held_lock_stops_it_at_once() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 1, 3);
    let mut lock =
        Lock::new(server.config(), b"cache_tag_cleanup", Duration::from_secs(30)).unwrap();
    assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
    let ended = Sweep::new(server.config(), quick()).unwrap().run(&mut |_| Flow::Continue);
    let Ended::Held(holder) = ended.unwrap() else { panic!("two sweeps") };
    assert_eq!(holder.pid, Some(std::process::id()));
    assert_eq!(members(&mut con, "tag:t").len(), 4);
    // A dry run writes nothing and needs no lock.
    let report = sweep(server.config(), Options { dry_run: true, ..quick() });
    assert_eq!((report.references_removed, report.tags_pruned), (3, 1));
    assert_eq!(members(&mut con, "tag:t").len(), 4);
}

#[test]
fn a_sweep_that_waited_goes_by_what_the_server_is_then() {
    let server = Server::start();
    let mut con = server.connect();
    let mut lock =
        Lock::new(server.config(), b"cache_tag_cleanup", Duration::from_secs(30)).unwrap();
    assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
    let options = Options { wait: Duration::from_secs(20), ..quick() };
    let (mut keys, config) = (0, server.config());
    std::thread::scope(|scope| {
        let sweeps = scope.spawn(|| {
            sweep_watched(config, options, &mut |progress| {
                keys = progress.keys;
                Flow::Continue
            })
        });
        until("it waits", || status(&server.link(), b"cache_tag_cleanup").unwrap().waiting == 1);
        (0..50).for_each(|i| tag(&mut con, "", &format!("t{i}"), 1, 2));
        assert!(lock.release().unwrap());
        assert!(sweeps.join().unwrap().complete);
    });
    assert!(keys >= 100, "{keys}");
}

#[test]
fn nothing_is_removed_after_the_lock_is_lost() {
    for how in ["DEL lock:cache_tag_cleanup", "SET lock:cache_tag_cleanup thief"] {
        let server = Server::start();
        let mut con = server.connect();
        for i in 0..2000 {
            tag(&mut con, "", &format!("t{i}"), 1, 2);
        }
        let mut thief = server.connect();
        let mut at_theft = None;
        let report = sweep_watched(server.config(), quick(), &mut |progress| {
            if at_theft.is_none() && progress.report.references_removed > 100 {
                let _: () = run(&mut thief, how);
                at_theft = Some(references(&mut thief));
            }
            Flow::Continue
        });
        assert_eq!(report.reason, Reason::Lost, "{how}");
        assert!(!report.complete);
        assert_eq!(Some(references(&mut con)), at_theft, "not one removal after that: {how}");
        assert!(report.references_removed < 4000);
        let totals = totals(&server.link(), b"cache_tag_cleanup").unwrap();
        assert_eq!(totals.counts.get("fenced"), Some(&1), "the server refused it: {totals:?}");
    }
}

#[test]
fn a_large_set_goes_in_small_bites() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 100000 do redis.call('SADD', KEYS[1], 'item:' .. i) \
                if i % 10 == 0 then redis.call('SET', 'item:' .. i, '') end end";
    let _: () = redis::cmd("EVAL").arg(fill).arg(1).arg("tag:big").query(&mut con).unwrap();
    age(&mut con, "tag:big", 3600);
    let _: () = run(&mut con, "CONFIG RESETSTAT");
    let report = sweep(server.config(), quick());
    assert_eq!((report.references_removed, report.tags_pruned), (90_000, 1));
    assert_eq!(con.scard::<_, usize>("tag:big").unwrap(), 10_000);
    // How many, for how long one takes is the scheduler's, too; `make bench` shows the longest.
    let stats: String = run(&mut con, "INFO commandstats");
    let script =
        stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    let bites: u32 = script.split(',').next().unwrap().parse().unwrap();
    assert!(bites >= 90_000 / 256, "{script}");
}

#[test]
fn forgotten_scripts_and_broken_connections_are_survived() {
    let server = Server::start();
    let mut con = server.connect();
    for i in 0..1000 {
        tag(&mut con, "", &format!("t{i}"), 1, 3);
    }
    let mut other = server.connect();
    let mut done = 0;
    let report = sweep_watched(server.config(), quick(), &mut |progress| {
        if progress.report.references_removed > done * 1000 {
            done += 1;
            let _: () = run(&mut other, "SCRIPT FLUSH");
            let _: i64 = run(&mut other, "CLIENT KILL TYPE normal SKIPME yes");
        }
        Flow::Continue
    });
    assert!(report.complete && done >= 2, "{done}");
    let mut con = server.connect();
    assert_eq!(references(&mut con), 1000);
}

#[test]
fn what_is_condemned_goes_soon_and_does_not_wait_for_the_end_of_the_walk() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 200000 do redis.call('SET', 'other:' .. i, '') end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    (0..100).for_each(|n| tag(&mut con, "", &n.to_string(), 1, 1));
    // A machine that stalls makes the server no witness of idle times: what is seen then waits for its grace.
    let (mut halfway, options) = (None, Options { effort: 1, grace: Duration::ZERO, ..quick() });
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.share > 0.8 {
            halfway.get_or_insert(progress.report.references_removed);
        }
        Flow::Continue
    });
    assert_eq!(report.references_removed, 100);
    assert!(halfway.is_some_and(|removed| removed > 25), "{halfway:?}");
}

/// Servers crash when a client in NO-TOUCH mode wakes one that blocks (Redis 8.0, Valkey 8.1).
#[test]
fn who_waits_for_a_sweep_or_for_a_lock_after_it_is_woken_and_the_server_lives() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    let patient = || Options { wait: Duration::from_secs(20), ..quick() };
    let link = server.link();
    std::thread::scope(|scope| {
        let mut second = None;
        let first = Sweep::on(Arc::clone(&link), patient()).unwrap().run(&mut |_| {
            second.get_or_insert_with(|| {
                let second = scope.spawn(|| sweep(server.config(), patient()));
                let status = || status(&server.link(), b"cache_tag_cleanup").unwrap();
                until("it waits", || status().waiting == 1);
                second
            });
            Flow::Continue
        });
        assert!(matches!(first.unwrap(), Ended::Swept(report) if report.complete));
        assert!(second.unwrap().join().unwrap().complete);
        // The same connection, after the sweep.
        let mut lock = Lock::on(link, b"job", Terms::new(Duration::from_secs(30))).unwrap();
        assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
        let waiter = scope.spawn(|| {
            let mut lock = Lock::new(server.config(), b"job", Duration::from_secs(30)).unwrap();
            lock.acquire_within(Duration::from_secs(20), &mut |_| true).unwrap()
        });
        until("it waits", || status(&server.link(), b"job").unwrap().waiting == 1);
        assert!(lock.release().unwrap());
        assert!(matches!(waiter.join().unwrap(), Outcome::Acquired { .. }));
    });
}

#[test]
fn members_that_a_shrinking_set_names_twice_count_once() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "big", 1, 300_000, 200);
    let report = sweep(server.config(), Options { grace: Duration::from_secs(1), ..quick() });
    assert_eq!((report.references_checked, report.tags_pruned), (300_000, 1), "{report:?}");
    assert_eq!(report.references_removed, 300_000 - 1500, "{report:?}");
}

#[test]
fn whoever_watches_may_take_his_time() {
    // What a slow listener does, and longer than the server is left without a question how it is, the lock without
    // an extension, and the way without a checkpoint.
    let cases = [(520, 30), (1100, 3)].map(|(look, ttl)| {
        std::thread::spawn(move || {
            let server = Server::start();
            let mut con = server.connect();
            tags(&mut con, "some", 3, 4, 2);
            let mut looks = 0;
            let options = Options { lock_ttl: Duration::from_secs(ttl), ..quick() };
            let report = sweep_watched(server.config(), options, &mut |_| {
                looks += 1;
                std::thread::sleep(Duration::from_millis(look));
                if looks > 30 { Flow::Stop } else { Flow::Continue }
            });
            assert!(report.complete && looks < 30, "{look}: {looks}: {report:?}");
            assert_eq!(con.exists("{lock:cache_tag_cleanup}:checkpoint"), Ok(false), "{look}");
        })
    });
    cases.into_iter().for_each(|case| case.join().unwrap());
}

#[test]
fn progress_is_not_at_its_end_before_all_is_done() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "old", 50, 20, 2);
    for i in 0..500 {
        let _: () = con.sadd(format!("tag:young{i}"), format!("gone:{i}")).unwrap();
    }
    let verify = Duration::from_secs(2);
    let options = Options { grace: verify, verify, ..Options::default() };
    let (mut told, mut removed) = (Vec::new(), 0);
    let report = sweep_watched(server.config(), options, &mut |progress| {
        removed = progress.report.references_removed;
        told.push((Instant::now(), progress.share, progress.left, removed));
        Flow::Continue
    });
    let ended = Instant::now();
    assert!(report.complete && report.references_removed == 1000, "{report:?}");
    assert!(told.windows(2).all(|two| two[0].1 <= two[1].1), "shares grow");
    let early = |(at, share, _, removed): &(Instant, f64, _, u64)| {
        *share >= 1.0 && (*removed < 1000 || ended - *at > verify / 2)
    };
    assert_eq!(told.iter().filter(|told| early(told)).count(), 0);
    // A second after the beginning nothing but waiting is left, and for how long is known.
    let begun = told[0].0;
    let waits = told.iter().filter(|(at, ..)| *at - begun > verify / 2 && ended - *at > verify / 2);
    let wrong = |(at, _, left, _): &(Instant, f64, Option<Duration>, u64)| {
        left.is_some_and(|left| left.abs_diff(ended - *at) > verify * 3 / 4)
    };
    let (wrong, all) = (waits.clone().filter(|told| wrong(told)).count(), waits.count());
    assert!(all > 10 && wrong == 0, "{wrong} of {all}");
}

#[test]
fn what_is_told_on_the_way_fits_the_end() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "live", 1, 4, 1);
    for i in 0..30 {
        let _: () = con.sadd(format!("tag:young{i}"), (0..400).collect::<Vec<u32>>()).unwrap();
    }
    let (grace, verify) = (Duration::from_secs(4), Duration::from_secs(1));
    let options = Options { grace, verify, ..Options::default() };
    let (mut reclaimed, mut ends) = (0, Vec::new());
    let report = sweep_watched(server.config(), options, &mut |progress| {
        reclaimed = progress.report.bytes_reclaimed.max(reclaimed);
        ends.extend(progress.left.map(|left| Instant::now() + left));
        Flow::Continue
    });
    assert!(report.complete && report.references_removed == 12_000, "{report:?}");
    assert!(reclaimed <= 2 * report.bytes_reclaimed, "{reclaimed}: {report:?}");
    let ended = Instant::now();
    let early = ends.iter().map(|end| ended.saturating_duration_since(*end)).max().unwrap();
    assert!(early < grace / 2, "{early:?} more than was told");
}

#[test]
fn whoever_calls_it_off_waits_for_no_verification_of_a_limit() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 3, 4, 2);
    let verify = Duration::from_secs(30);
    let options = Options { verify, max_removals: Some(1), ..quick() };
    let mut stopped: Option<Instant> = None;
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed == 0 {
            return Flow::Continue;
        }
        stopped.get_or_insert_with(Instant::now);
        Flow::Stop
    });
    assert_eq!((report.reason, report.references_removed), (Reason::MaxRemovals, 1));
    assert!(stopped.unwrap().elapsed() < Duration::from_secs(2));
}

#[test]
fn the_lock_is_kept_while_there_is_more_to_remove_than_rounds_have_room_for() {
    let server = Server::start();
    let mut con = server.connect();
    // No evidence but two looks: all of it comes due at once.
    run::<()>(&mut con, "CONFIG SET maxmemory-policy allkeys-lfu");
    tags(&mut con, "some", 6000, 10, 10);
    let (lock_ttl, grace) = (Duration::from_secs(2), Duration::from_secs(1));
    let options = Options { lock_ttl, grace, effort: 10, ..quick() };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed > 0 {
            std::thread::sleep(Duration::from_millis(12));
        }
        Flow::Continue
    });
    assert_eq!((report.reason, report.references_removed), (Reason::Complete, 54_000));
    assert!(report.duration > grace + lock_ttl, "{report:?}");
}

#[test]
fn a_server_that_does_not_answer_does_not_keep_who_wants_an_end() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 300, 4, 2);
    let mut stopped: Option<Instant> = None;
    let ended = Sweep::new(server.config(), quick()).unwrap().run(&mut |progress| {
        if stopped.is_none() && progress.report.references_removed > 0 {
            server.signal("STOP");
            stopped = Some(Instant::now());
        }
        if stopped.is_some() { Flow::Stop } else { Flow::Continue }
    });
    let took = stopped.unwrap().elapsed();
    server.signal("CONT");
    assert!(matches!(ended.unwrap_err().kind(), ErrorKind::Unreachable | ErrorKind::Unknown));
    assert!(took < Duration::from_millis(4500), "{took:?}");
}

#[test]
fn effort_and_latency_budget_are_felt_by_the_server() {
    let server = Server::start();
    tags(&mut server.connect(), "many", 6000, 10, 2);
    let plan = |effort: u8, max_latency: Duration| {
        let options = Options { dry_run: true, effort, max_latency, ..quick() };
        let report = sweep(server.config(), options);
        assert!(report.complete && report.references_removed == 30_000, "{report:?}");
        report
    };
    let usual = Options::default().max_latency;
    let share = |report: &Report| report.server.as_secs_f64() / report.duration.as_secs_f64();
    let (full, tenth) = (plan(10, usual), plan(1, usual));
    assert!(share(&tenth) < 0.2, "{tenth:?}");
    assert!(share(&full) > 1.5 * share(&tenth), "{full:?} {tenth:?}");
    let (short, long) = (plan(10, Duration::from_micros(50)), plan(10, Duration::from_millis(10)));
    assert!(short.rounds > 2 * long.rounds, "{short:?} {long:?}");
}
