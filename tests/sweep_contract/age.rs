//! How long a tag was left alone.

use crate::fixtures::*;
use crate::support::{Server, age, run, until};
use redis::{Commands, Connection};
use std::time::{Duration, Instant};
use tagsweep::sweep::{Flow, OnAged, Options, Reason};

#[test]
fn an_aged_tag_is_kept_or_invalidated() {
    let server = Server::start();
    let mut con = server.connect();
    let week = Some(Duration::from_secs(604_800));
    tag(&mut con, "", "used", 2, 1);
    tag(&mut con, "", "aged", 2, 1);
    age(&mut con, "tag:aged", 700_000);
    let keep = Options { max_tag_age: week, ..quick() };
    let report = sweep(server.config(), keep.clone());
    assert_eq!((report.tags_aged, report.entries_invalidated, report.tags_pruned), (1, 0, 2));
    age(&mut con, "tag:aged", 700_000);
    let report = sweep(server.config(), Options { on_aged: OnAged::Invalidate, ..keep });
    assert_eq!((report.tags_aged, report.entries_invalidated, report.tags_removed), (1, 2, 1));
    assert!(!con.exists::<_, bool>(&["tag:aged", "item:aged:l0", "item:aged:l1"]).unwrap());
    assert!(con.exists::<_, bool>("item:used:l0").unwrap());
}

#[test]
fn a_clock_that_is_set_back_makes_no_tag_old() {
    let (server, clock) = Server::with_clock();
    let mut con = server.connect();
    tag(&mut con, "", "old", 2, 1);
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:young", &["item:live", "item:late"]).unwrap();
    // What was used last looks as if that had been 194 days ago.
    clock.set(-30);
    until("the server looks at its clock", || {
        run::<i64>(&mut con, "OBJECT IDLETIME tag:young") > 1 << 23
    });
    let options = Options {
        grace: Duration::from_secs(3),
        max_tag_age: Some(Duration::from_secs(604_800)),
        on_aged: OnAged::Invalidate,
        ..quick()
    };
    let begun = Instant::now();
    let report = sweep_watched(server.config(), options, &mut |_| {
        // Its reference came first, its entry later, well within the grace.
        if begun.elapsed() > Duration::from_secs(1) {
            let _: () = con.set("item:late", "x").unwrap();
        }
        Flow::Continue
    });
    assert_eq!((report.tags_aged, report.entries_invalidated), (0, 0), "{report:?}");
    assert_eq!((report.references_removed, members(&mut con, "tag:young").len()), (1, 2));
}

#[test]
fn sweeps_do_not_make_a_tag_young() {
    let server = Server::start();
    let mut con = server.connect();
    let records = |con: &mut Connection| -> usize {
        let keys: Vec<String> = con.keys("{lock:cache_tag_cleanup}:records:*").unwrap();
        keys.iter().map(|key| con.hlen::<_, usize>(key).unwrap()).sum()
    };
    tag(&mut con, "", "old", 2, 0);
    age(&mut con, "tag:old", 1000);
    tag(&mut con, "", "older", 1, 1);
    age(&mut con, "tag:older", 1000);
    tag(&mut con, "", "orphan", 0, 1);
    age(&mut con, "tag:orphan", 100);
    let (max_tag_age, grace) = (Some(Duration::from_secs(900)), Duration::ZERO);
    let aged = || Options { max_tag_age, grace, ..quick() };
    for _ in 0..3 {
        assert_eq!(sweep(server.config(), aged()).tags_aged, 2);
    }
    let records_needed = records(&mut con) > 0;
    assert!(!records_needed || records(&mut con) == 2, "none for the orphan");
    // Used by the application; then it is as young as its idle time says.
    std::thread::sleep(Duration::from_secs(4));
    let _: bool = con.sismember("tag:old", "item:old:l0").unwrap();
    assert_eq!(sweep(server.config(), aged()).tags_aged, 1);
    let _: () = con.del("tag:older").unwrap();
    // A sweep that begins in the second of the last touch cannot tell that it did not see the tag.
    until("records go with their tags", || {
        assert_eq!(sweep(server.config(), aged()).tags_aged, 0);
        records(&mut con) == usize::from(records_needed)
    });
}

#[test]
fn an_aged_tag_goes_as_a_whole_however_large() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "mixed", 500, 500);
    tag(&mut con, "", "dead", 0, 600);
    for n in 0..300 {
        let _: () = con.set(n, "x").unwrap();
        let _: () = con.sadd("tag:numbers", n).unwrap();
    }
    tag(&mut con, "", "young", 1, 0);
    let options = Options {
        max_tag_age: Some(Duration::from_secs(600)),
        on_aged: OnAged::Invalidate,
        ..quick()
    };
    let mut run_once = |dry_run| {
        for name in ["mixed", "dead", "numbers"] {
            age(&mut con, format!("tag:{name}"), 3600);
        }
        age(&mut con, "tag:young", 60);
        sweep(server.config(), Options { dry_run, ..options.clone() })
    };
    let plan = run_once(true);
    assert_eq!((plan.references_removed, plan.entries_invalidated), (1900, 800), "{plan:?}");
    assert!(plan.samples.iter().any(|sample| sample.why.contains("not used")), "{plan:?}");
    let report = run_once(false);
    assert_eq!((report.tags_seen, report.tags_aged, report.tags_removed), (4, 3, 3), "{report:?}");
    let figures = (report.references_removed, report.entries_invalidated);
    assert_eq!((figures, report.references_skipped), ((1900, 800), 0), "{report:?}");
    let left: Vec<String> = con.keys("*").unwrap();
    let left: Vec<&String> = left.iter().filter(|key| !key.contains("lock:")).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_tag_that_ages_while_it_waits_counts_as_aged() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = con.set("item:a", "x").unwrap();
    let _: () = con.sadd("tag:t", &["item:a", "item:gone"]).unwrap();
    let options = Options {
        grace: Duration::from_secs(3),
        max_tag_age: Some(Duration::from_secs(2)),
        on_aged: OnAged::Invalidate,
        ..quick()
    };
    let report = sweep(server.config(), options);
    let figures = (report.tags_seen, report.tags_aged, report.tags_removed);
    assert_eq!((figures, report.entries_invalidated), ((1, 1, 1), 1), "{report:?}");
}

#[test]
fn ages_and_warrants_go_together() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "old", 3, 0);
    tag(&mut con, "", "new", 3, 0);
    age(&mut con, "tag:new", 10);
    let options = Options {
        remember: Some(Duration::from_secs(3600)),
        max_tag_age: Some(Duration::from_secs(1800)),
        ..quick()
    };
    for sweeps in 0..3 {
        let report = sweep(server.config(), options.clone());
        let unchanged = if sweeps == 0 { 0 } else { 2 };
        assert_eq!((report.tags_aged, report.tags_unchanged), (1, unchanged), "{sweeps}");
    }
    let options = Options { on_aged: OnAged::Invalidate, ..options };
    let report = sweep(server.config(), options);
    assert_eq!((report.tags_removed, report.entries_invalidated), (1, 3));
    assert_eq!(members(&mut con, "tag:new").len(), 3);
}

#[test]
fn a_large_aged_tag_that_is_invalidated_counts_as_removed() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "large", 1, 1500);
    let (age, on_aged) = (Some(Duration::from_secs(60)), OnAged::Invalidate);
    let report = sweep(server.config(), Options { max_tag_age: age, on_aged, ..quick() });
    assert!(!con.exists::<_, bool>("tag:large").unwrap());
    assert_eq!((report.tags_removed, report.tags_pruned), (1, 0), "{report:?}");
}

#[test]
fn a_tag_that_goes_because_another_was_invalidated_counts_as_removed() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:live", "item:live").unwrap();
    for i in 0..300 {
        let (entry, old) = (format!("item:{i}"), format!("tag:old{i}"));
        let _: () = con.set(&entry, "x").unwrap();
        let _: () = con.sadd(&old, &entry).unwrap();
        let _: () = con.sadd(format!("tag:new{i}"), &[entry, format!("gone:{i}")]).unwrap();
        age(&mut con, old, 1_000_000);
    }
    let options = Options {
        max_tag_age: Some(Duration::from_secs(7 * 86_400)),
        on_aged: OnAged::Invalidate,
        ..quick()
    };
    let before: Vec<String> = con.keys("tag:*").unwrap();
    let report = sweep(server.config(), Options { grace: Duration::ZERO, ..options });
    let after: Vec<String> = con.keys("tag:*").unwrap();
    assert_eq!(report.tags_removed as usize, before.len() - after.len(), "{report:?}");
}

#[test]
fn idle_times_from_before_an_lfu_policy_was_given_up_are_none() {
    let server = Server::with(&["--maxmemory-policy", "allkeys-lfu"]);
    let mut con = server.connect();
    for i in 0..20 {
        tag(&mut con, "", &format!("t{i}"), 1, 1);
    }
    let options = Options {
        max_tag_age: Some(Duration::from_secs(1)),
        on_aged: OnAged::Invalidate,
        grace: Duration::from_secs(1),
        ..quick()
    };
    let first = Options { max_removals: Some(1), ..options.clone() };
    assert_eq!(sweep(server.config(), first).references_removed, 1);
    // What a key holds of its use is read as a time from now on, and is none.
    let _: () = run(&mut con, "CONFIG SET maxmemory-policy noeviction");
    let idle: u64 = run(&mut con, "OBJECT IDLETIME tag:t0");
    assert!(idle > 1000, "{idle}: as it was in all versions so far");
    let begun = Instant::now();
    let report = sweep(server.config(), options);
    assert_eq!((report.tags_aged, report.entries_invalidated), (0, 0), "{report:?}");
    assert_eq!(report.references_removed, 19);
    assert!(begun.elapsed() > Duration::from_secs(1), "it had its grace");
    assert!(report.warnings.iter().any(|warning| warning.contains("idle times")), "{report:?}");
}

#[test]
fn a_use_while_a_sweep_waits_for_its_verification_is_seen_by_the_next() {
    let server = Server::start();
    let mut con = server.connect();
    let second = Duration::from_secs(1);
    tag(&mut con, "", "used", 1, 1);
    tag(&mut con, "", "idle", 1, 1);
    let ages = |verify| Options {
        max_tag_age: Some(60 * second),
        grace: second,
        verify,
        ..Options::default()
    };
    let mut used = false;
    let begun = Instant::now();
    let first = sweep_watched(server.config(), ages(5 * second), &mut |_| {
        if !used && begun.elapsed() > 4 * second {
            used = true;
            let _: () = con.sadd("tag:used", "item:used:l0").unwrap();
        }
        Flow::Continue
    });
    assert!(used && first.tags_aged == 2, "{first:?}");
    let report = sweep(server.config(), ages(Duration::from_millis(500) / 50));
    assert_eq!(report.tags_aged, 1, "{report:?}");
}

#[test]
fn ages_outlast_a_sweep_that_ends_while_tags_wait_for_their_grace() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 100, 2, 1);
    let max_tag_age = Some(Duration::from_secs(900));
    let options = |grace| Options { max_tag_age, grace: Duration::from_secs(grace), ..quick() };
    assert_eq!(sweep(server.config(), options(0)).tags_aged, 100);
    // As long as it takes to tell our own touch from another's, and less than a grace.
    std::thread::sleep(Duration::from_secs(3));
    let cut = sweep_watched(server.config(), options(20), &mut |progress| {
        if progress.report.tags_seen == 100 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!(cut.reason, Reason::Stopped);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(sweep(server.config(), options(0)).tags_aged, 100);
}

#[test]
fn who_may_not_ask_for_idle_times_knows_of_no_policy() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 3, 4, 2);
    let config = restricted(&server, "~* &* +@all -object");
    let max_tag_age = Some(Duration::from_secs(60));
    let grace = Duration::from_millis(100);
    let report = sweep(config, Options { max_tag_age, grace, ..quick() });
    assert_eq!((report.complete, report.references_removed, report.tags_aged), (true, 6, 0));
    assert!(report.warnings.iter().any(|w| w.contains("NOPERM")), "{report:?}");
    let lfu: bool = con.hexists("{lock:cache_tag_cleanup}:sweeps", "last_lfu").unwrap();
    assert!(!lfu);
}

#[test]
fn an_aged_tag_that_is_used_is_spared_whatever_else_its_idle_time_proves() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "aged", 1, 20_000, 1);
    let mut used = false;
    let options = Options {
        grace: Duration::ZERO,
        max_tag_age: Some(Duration::from_secs(600)),
        on_aged: OnAged::Invalidate,
        ..quick()
    };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.entries_invalidated > 0 && !std::mem::replace(&mut used, true) {
            let _: () = con.sadd("tag:aged:0", "item:new").unwrap();
        }
        Flow::Continue
    });
    // Before Redis 7.2 nobody can ask: our own reads have made it young.
    let can_ask = redis::cmd("CLIENT").arg("NO-TOUCH").arg("OFF").exec(&mut con).is_ok();
    assert!(used && report.complete, "{report:?}");
    assert_eq!(report.entries_invalidated < 20_000, can_ask, "{report:?}");
}
