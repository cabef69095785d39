//! Where a sweep stops.

use crate::fixtures::*;
use crate::support::{Server, age, until};
use redis::Commands;
use std::time::{Duration, Instant};
use tagsweep::sweep::{Flow, OnAged, Options, Reason, totals};

#[test]
fn limits_stop_it() {
    let server = Server::start();
    let mut con = server.connect();
    for i in 0..500 {
        tag(&mut con, "", &format!("t{i}"), 1, 5);
    }
    let plan = |options| sweep(server.config(), Options { dry_run: true, ..options });
    let report = plan(Options { max_removals: Some(333), ..quick() });
    assert_eq!((report.reason, report.references_removed), (Reason::MaxRemovals, 333));
    let report = plan(Options { max_share: 0.5, ..quick() });
    assert_eq!((report.reason, report.references_removed), (Reason::MaxShare, 0));
    let report = sweep(server.config(), Options { max_removals: Some(333), ..quick() });
    assert_eq!(report.reason, Reason::MaxRemovals);
    assert!((328..=333).contains(&report.references_removed), "{}", report.references_removed);
    let report = sweep(server.config(), Options { max_share: 0.5, ..quick() });
    assert_eq!(report.reason, Reason::MaxShare);
    let limit = Some(Duration::from_nanos(1));
    let report = sweep(server.config(), Options { max_duration: limit, ..quick() });
    assert_eq!((report.reason, report.tags_seen), (Reason::MaxDuration, 0));
    let report = sweep_watched(server.config(), quick(), &mut |_| Flow::Stop);
    assert_eq!((report.reason, report.complete), (Reason::Stopped, false));
    assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
}

#[test]
fn a_share_of_few_references_is_judged_when_all_are_seen() {
    let server = Server::start();
    let mut con = server.connect();
    (0..90).for_each(|i| tag(&mut con, "", &format!("t{i}"), 1, 9));
    let share = |max_share| Options { max_share, ..quick() };
    for dry_run in [true, false] {
        (0..90).for_each(|i| age(&mut con, format!("tag:t{i}"), 3600));
        let report = sweep(server.config(), Options { dry_run, ..share(0.8) });
        assert_eq!((report.reason, report.references_removed), (Reason::MaxShare, 0), "{dry_run}");
    }
    (0..90).for_each(|i| age(&mut con, format!("tag:t{i}"), 3600));
    let report = sweep(server.config(), share(0.95));
    assert_eq!((report.reason, report.references_removed), (Reason::Complete, 810));
}

#[test]
fn a_share_is_not_judged_while_tags_wait_for_their_grace() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "old", 1, 10);
    (0..50).for_each(|i| tag(&mut con, "", &format!("t{i}"), 10, 0));
    (0..50).for_each(|i| age(&mut con, format!("tag:t{i}"), 0));
    let grace = Duration::from_secs(1);
    let report = sweep(server.config(), Options { grace, max_share: 0.5, ..quick() });
    assert_eq!((report.reason, report.references_removed), (Reason::Complete, 10));
}

#[test]
fn limits_stop_an_invalidation() {
    let server = Server::start();
    let mut con = server.connect();
    for i in 0..50 {
        tag(&mut con, "", &format!("t{i}"), 5, 0);
    }
    let aged = || Options {
        max_tag_age: Some(Duration::from_secs(50)),
        on_aged: OnAged::Invalidate,
        max_removals: Some(33),
        ..quick()
    };
    for dry_run in [true, false] {
        // A look makes tags young, on servers before 7.2.
        (0..50).for_each(|i| age(&mut con, format!("tag:t{i}"), 3600));
        let report = sweep(server.config(), Options { dry_run, ..aged() });
        let figures = (report.references_removed, report.entries_invalidated);
        assert_eq!((report.reason, figures), (Reason::MaxRemovals, (33, 33)));
    }
    let entries: Vec<String> = con.keys("item:*").unwrap();
    assert_eq!(entries.len(), 250 - 33);
}

#[test]
fn a_limit_that_is_reached_leaves_verification_its_time() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    let _: () = con.sadd("tag:young", "item:gone").unwrap();
    let (begun, mut written) = (Instant::now(), false);
    let verify = Duration::from_secs(3);
    let max_duration = Some(Duration::from_secs(1));
    let report = sweep_watched(
        server.config(),
        Options { verify, max_duration, ..Options::default() },
        &mut |_| {
            if begun.elapsed().as_millis() > 2000 && !std::mem::replace(&mut written, true) {
                let _: () = con.set("item:a:s0", "x").unwrap();
            }
            Flow::Continue
        },
    );
    assert_eq!((report.reason, report.references_restored), (Reason::MaxDuration, 1));
    assert!(members(&mut con, "tag:a").contains("item:a:s0"));
}

#[test]
fn a_share_comes_before_a_number_of_removals() {
    let server = Server::start();
    let mut con = server.connect();
    // Nine of ten are stale in each, so in whatever order they are seen.
    tags(&mut con, "mixed", 20, 100, 10);
    let grace = Duration::from_secs(1);
    for (max_share, expected) in [(0.01, (Reason::MaxShare, 0)), (0.95, (Reason::MaxRemovals, 500))]
    {
        for dry_run in [true, false] {
            (0..20).for_each(|t| age(&mut con, format!("tag:mixed:{t}"), 3600));
            let max_removals = Some(500);
            let options = Options { max_share, max_removals, grace, dry_run, ..quick() };
            let report = sweep(server.config(), options);
            let how = (report.reason, report.references_removed);
            assert_eq!(how, expected, "{max_share} {dry_run}: {report:?}");
        }
    }
}

#[test]
fn what_is_held_back_for_the_share_neither_fills_the_memory_nor_takes_its_time() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for t = 1, 3000 do local entry = 'item:' .. t .. string.rep('x', 1500) \
                redis.call('SADD', 'tag:' .. t, entry) redis.call('SET', entry, '') end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    (1..=3000).for_each(|t| age(&mut con, format!("tag:{t}"), if t % 5 == 0 { 600 } else { 7200 }));
    let options = Options {
        max_share: 0.9,
        max_tag_age: Some(Duration::from_secs(3600)),
        on_aged: OnAged::Invalidate,
        memory: 4 << 20,
        grace: Duration::from_secs(1),
        ..quick()
    };
    let report = sweep(server.config(), options.clone());
    assert!(report.complete, "{report:?}");
    assert_eq!((report.entries_invalidated, report.references_removed), (2400, 2400), "{report:?}");
    // Fewer than a thousand: judged when all are seen, and then at once.
    redis::cmd("FLUSHALL").exec(&mut con).unwrap();
    tags(&mut con, "aged", 900, 1, 1);
    (0..90).for_each(|t| age(&mut con, format!("tag:aged:{t}"), 600));
    (90..900).for_each(|t| age(&mut con, format!("tag:aged:{t}"), 7200));
    let report = sweep(server.config(), Options { max_share: 0.95, ..options });
    assert!(report.complete && report.duration < Duration::from_secs(3), "{report:?}");
    assert_eq!(report.entries_invalidated, 810, "{report:?}");
}

#[test]
fn what_is_left_alone_after_all_does_not_count_against_the_limits() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "used", 1, 100, 0);
    tags(&mut con, "young", 1, 100, 0);
    let _: () = con.sadd("tag:young:0", "item:young:0:0").unwrap();
    let (grace, mut used) = (Duration::from_secs(1), false);
    let entries: Vec<String> = (0..100).map(|r| format!("item:used:0:{r}")).collect();
    let options = Options { grace, max_removals: Some(100), trust_mapping: true, ..quick() };
    // Entries appear when all of the first tag were seen absent; the other one waits for its grace.
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_checked == 100 && !std::mem::replace(&mut used, true) {
            entries.iter().for_each(|entry| con.set(entry, "x").unwrap());
        }
        Flow::Continue
    });
    assert!(used && report.complete, "{report:?}");
    assert_eq!((report.references_removed, report.tags_removed), (100, 1), "{report:?}");
    assert_eq!(con.scard::<_, u64>("tag:used:0").unwrap(), 100);
}

#[test]
fn an_aged_tag_that_is_used_while_it_is_held_back_for_the_share_stays() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "live", 9, 0);
    tag(&mut con, "", "aged", 5, 0);
    let fill = "for i = 1, 30000 do redis.call('SET', 'other:' .. i, '') end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    age(&mut con, "tag:live", 10);
    let aged = Duration::from_secs(60);
    let options = Options {
        max_tag_age: Some(aged),
        on_aged: OnAged::Invalidate,
        max_share: 0.9,
        effort: 10,
        ..quick()
    };
    let mut used = false;
    let report = sweep_watched(server.config(), options, &mut |progress| {
        // So much later than our own look that it is told apart from that on servers before 7.2.
        if progress.report.references_checked == 14 && !used {
            std::thread::sleep(Duration::from_secs(4));
            let _: () = con.sadd("tag:aged", "item:aged:l0").unwrap();
            used = true;
        }
        Flow::Continue
    });
    assert!(used && report.complete, "{report:?}");
    assert_eq!((report.entries_invalidated, report.references_removed), (0, 0), "{report:?}");
}

#[test]
fn a_limit_that_is_reached_leaves_a_server_its_time() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 3, 4, 2);
    let options = Options { max_removals: Some(1), ..quick() };
    let mut stalled = None;
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed > 0 && stalled.is_none() {
            server.signal("STOP");
            let pid = server.pid();
            stalled = Some(std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(2600));
                crate::support::signal(pid, "CONT");
            }));
        }
        Flow::Continue
    });
    stalled.unwrap().join().unwrap();
    assert_eq!((report.reason, report.warnings.len()), (Reason::MaxRemovals, 0), "{report:?}");
}

#[test]
fn a_limit_too_short_for_tags_in_use_says_so() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "live", 1, 0);
    let limited = || Options { max_duration: Some(Duration::from_secs(2)), ..quick() };
    assert!(sweep(server.config(), limited()).warnings.is_empty(), "nothing waits");
    let _: () = con.sadd("tag:young", "item:gone").unwrap();
    let report = sweep(server.config(), limited());
    assert_eq!(report.reason, Reason::MaxDuration);
    assert!(report.warnings[0].contains("looked at twice take 11.5s"), "{report:?}");
}

#[test]
fn a_sweep_that_has_only_to_verify_is_complete_though_its_time_is_over() {
    let server = Server::start();
    let mut con = server.connect();
    (0..300).for_each(|t| tag(&mut con, "", &format!("t{t}"), 1, 1));
    let options = || Options { verify: Duration::from_secs(3), ..Options::default() };
    let limit = Duration::from_secs(2);
    let max_duration = Some(limit);
    let report = sweep(server.config(), Options { max_duration, ..options() });
    assert!(report.complete && report.references_removed == 300, "{report:?}");
    assert!(report.duration > Duration::from_secs(3), "{report:?}");
    // Called off then, it has seen everything all the same.
    (0..300).for_each(|t| tag(&mut con, "", &format!("t{t}"), 1, 1));
    let before = totals(&server.link(), b"cache_tag_cleanup").unwrap().last_success.unwrap();
    until("a second is over", || now(&mut con) > before + 1);
    let report = sweep_watched(server.config(), options(), &mut |progress| {
        let over = progress.report.duration > limit;
        if over { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!((report.reason, report.references_removed), (Reason::Stopped, 300), "{report:?}");
    let last = totals(&server.link(), b"cache_tag_cleanup").unwrap().last_success.unwrap();
    assert!(last > before, "{before} {last}");
    assert_eq!(sweep(server.config(), quick()).removed_before, 0);
}

/// The server's time (s).
fn now(con: &mut redis::Connection) -> u64 {
    redis::cmd("TIME").query::<(u64, u64)>(con).unwrap().0
}

#[test]
fn the_share_of_sweeps_that_go_on_from_each_other_is_that_of_what_they_saw() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "half", 600, 10, 2);
    let share = || Options { max_share: 0.6, ..quick() };
    for run in 0..20 {
        // Some are in use: of them is removed nothing, and what is removed of others counts all the same.
        for t in (0..600).step_by(10) {
            let _: () = con.sadd(format!("tag:half:{t}"), format!("item:half:{t}:0")).unwrap();
        }
        let mut rounds = 0;
        let report = sweep_watched(server.config(), share(), &mut |_| {
            rounds += 1;
            std::thread::sleep(Duration::from_millis(4));
            if rounds < 30 { Flow::Continue } else { Flow::Stop }
        });
        assert_ne!(report.reason, Reason::MaxShare, "{run}: {report:?}");
    }
    assert!(sweep(server.config(), share()).complete);
}

#[test]
fn a_part_of_a_large_tag_is_not_taken_for_all_of_it() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "large", 1, 100_000, 2);
    let few = || Options { max_removals: Some(500), ..quick() };
    let plan = sweep(server.config(), Options { dry_run: true, ..few() });
    assert_eq!((plan.reason, plan.tags_removed, plan.tags_pruned), (Reason::MaxRemovals, 0, 1));
    let report = sweep(server.config(), few());
    assert_eq!((report.tags_removed, report.tags_pruned), (0, 1), "{report:?}");
    assert!(
        (10_000..100_000).contains(&report.bytes_reclaimed),
        "its memory is not that of what was read: {report:?}"
    );
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut con).unwrap();
    assert!(!stats.contains("memory|usage"), "it may take long: {stats}");
}

/// A tag of 200,000 members, all stale and left alone.
fn large_tag(con: &mut redis::Connection) {
    for from in (0..200_000).step_by(1000) {
        let members: Vec<u32> = (from..from + 1000).collect();
        let _: () = con.sadd("tag:large", members).unwrap();
    }
    age(con, "tag:large", 60);
}

#[test]
fn who_gives_little_memory_is_told_what_it_costs() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "live", 1, 4, 1);
    for (memory, told) in [(4, true), (64, false)] {
        large_tag(&mut con);
        let options = Options { memory: memory << 20, verify: Duration::from_secs(5), ..quick() };
        let report = sweep(server.config(), options);
        assert!(report.complete && report.references_removed == 200_000, "{report:?}");
        let warned = report.warnings.iter().any(|w| w.starts_with("it stood still for"));
        assert_eq!(warned, told, "{report:?}");
    }
}

#[test]
fn a_sweep_that_is_to_end_waits_for_no_memory() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "live", 1, 4, 1);
    large_tag(&mut con);
    let (verify, most) = (Duration::from_secs(5), Some(Duration::from_millis(800)));
    let options = Options { memory: 4 << 20, verify, max_duration: most, ..quick() };
    let report = sweep(server.config(), options);
    assert_eq!(report.reason, Reason::MaxDuration, "{report:?}");
    assert!(!report.warnings.iter().any(|w| w.starts_with("it stood still for")), "{report:?}");
}
