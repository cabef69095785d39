//! What the sweep promises, on a real server.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::{Commands, Connection};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Server, age, run, until};
use tagsweep::lock::{Lock, Options as Terms, Outcome, status};
use tagsweep::sweep::{Ended, Flow, OnAged, Options, Progress, Reason, Report, Sweep};
use tagsweep::{Config, ErrorKind};

/// Quick, for tests that are not about time: what is old enough goes at once.
fn quick() -> Options {
    Options { verify: Duration::from_millis(10), ..Options::default() }
}

fn sweep(config: Config, options: Options) -> Report {
    sweep_watched(config, options, &mut |_| Flow::Continue)
}

fn sweep_watched(
    config: Config,
    options: Options,
    watch: &mut dyn FnMut(&Progress) -> Flow,
) -> Report {
    match Sweep::new(config, options).unwrap().run(watch).unwrap() {
        Ended::Swept(report) => report,
        Ended::Held(holder) => panic!("{holder}"),
    }
}

/// A tag with `live` live entries and `stale` stale references, unused for an hour.
fn tag(con: &mut Connection, prefix: &str, name: &str, live: usize, stale: usize) {
    let key = format!("{prefix}tag:{name}");
    for i in 0..live {
        let _: () = con.set(format!("{prefix}item:{name}:l{i}"), "x").unwrap();
        let _: () = con.sadd(&key, format!("item:{name}:l{i}")).unwrap();
    }
    for i in 0..stale {
        let _: () = con.sadd(&key, format!("item:{name}:s{i}")).unwrap();
    }
    age(con, &key, 3600);
}

fn members(con: &mut Connection, key: &str) -> BTreeSet<String> {
    con.smembers(key).unwrap()
}

#[test]
fn stale_references_and_orphaned_tags_go_and_nothing_else() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "live", 3, 0);
    tag(&mut con, "", "mixed", 2, 3);
    tag(&mut con, "", "orphan", 0, 4);
    let _: () = con.set("tag:string", "x").unwrap();
    let _: () = con.rpush("tag:list", "x").unwrap();
    let _: () = con.sadd("other:set", "item:none").unwrap();
    let report = sweep(server.config(), quick());
    assert_eq!((report.tags_seen, report.tags_removed, report.tags_pruned), (3, 1, 1));
    assert_eq!((report.references_checked, report.references_removed), (12, 7));
    assert_eq!((report.tags_skipped, report.references_restored), (2, 0));
    assert!(report.complete && report.reason == Reason::Complete && report.bytes_reclaimed > 0);
    assert_eq!(report.entry_prefix.as_deref(), Some(""));
    assert_eq!(members(&mut con, "tag:live").len(), 3);
    assert_eq!(members(&mut con, "tag:mixed").len(), 2);
    let left: BTreeSet<String> = con.keys("tag:*").unwrap();
    assert_eq!(left, ["tag:list", "tag:live", "tag:mixed", "tag:string"].map(Into::into).into());
    assert!(con.exists::<_, bool>("other:set").unwrap());
    assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap(), "the lock is released");
}

#[test]
fn names_are_bytes() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "live", 1, 0);
    let long = vec![b'n'; 64 * 1024];
    let names: [&[u8]; 7] =
        [b"a b\r\n\t", b"nul\0nul", b"*?[a-z]\\^", b"", b"\xff\xfe", b"{x}y}z{", &long];
    for name in names {
        let key = [b"tag:", name].concat();
        let _: () = con.sadd(&key, [b"gone:", name].concat()).unwrap();
        let _: () = con.sadd(&key, [b"here:", name].concat()).unwrap();
        let _: () = con.set([b"here:", name].concat(), "x").unwrap();
        age(&mut con, &key, 3600);
    }
    let report = sweep(server.config(), quick());
    assert_eq!((report.tags_pruned, report.references_removed), (7, 7));
    for name in names {
        let left: Vec<Vec<u8>> = con.smembers([b"tag:", name].concat()).unwrap();
        assert_eq!(left, [[b"here:", name].concat()]);
    }
}

#[test]
fn the_prefix_is_taken_literally_and_its_mapping_is_proven() {
    let server = Server::start();
    let mut con = server.connect();
    // As phpredis writes with OPT_PREFIX "a*:": keys carry the prefix, members do not.
    tag(&mut con, "a*:", "t", 1, 2);
    tag(&mut con, "abc:", "t", 1, 2);
    let report = sweep(server.config().prefix("a*:"), quick());
    assert_eq!((report.tags_seen, report.references_removed), (1, 2));
    assert_eq!(report.entry_prefix.as_deref(), Some("a*:"));
    assert_eq!(members(&mut con, "abc:tag:t").len(), 3, "another prefix is another cache");
    assert!(!con.exists::<_, bool>("a*:lock:cache_tag_cleanup").unwrap());
    // Members that hold the whole key.
    let _: () = con.set("p:full:1", "x").unwrap();
    let _: () = con.sadd("p:tag:f", &["p:full:1", "p:full:2"]).unwrap();
    age(&mut con, "p:tag:f", 3600);
    let report = sweep(server.config().prefix("p:"), quick());
    assert_eq!((report.references_removed, report.entry_prefix.as_deref()), (1, Some("")));
    assert_eq!(members(&mut con, "p:tag:f"), ["p:full:1".to_owned()].into());
}

#[test]
fn a_wrong_prefix_removes_nothing_and_says_so() {
    let server = Server::start();
    let mut con = server.connect();
    for i in 0..50 {
        tag(&mut con, "", &format!("t{i}"), 5, 5);
    }
    let wrong = Options { entry_prefix: Some(b"wrong:".to_vec()), ..quick() };
    let mut run_ = Sweep::new(server.config(), wrong.clone()).unwrap();
    let e = run_.run(&mut |_| Flow::Continue).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unproven);
    let text = e.to_string();
    assert!(text.contains("wrong:item:") && text.contains("--entry-prefix"), "{text}");
    assert_eq!(run_.report().unwrap().references_removed, 0);
    assert_eq!(members(&mut con, "tag:t7").len(), 10);
    assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    // Said by name, it is done.
    let report = sweep(server.config(), Options { trust_mapping: true, ..wrong });
    assert_eq!(report.tags_removed, 50);
}

#[test]
fn two_proven_mappings_are_a_question_not_a_guess() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "p:", "t", 3, 3);
    let _: () = con.set("item:t:l0", "another application's").unwrap();
    let mut sweep = Sweep::new(server.config().prefix("p:"), quick()).unwrap();
    let e = sweep.run(&mut |_| Flow::Continue).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unproven);
    assert_eq!(members(&mut con, "p:tag:t").len(), 6);
}

#[test]
fn to_trust_the_mapping_is_not_to_guess_one() {
    let server = Server::start();
    let mut con = server.connect();
    let config = || server.config().prefix(b"app:");
    let options = || Options { trust_mapping: true, ..quick() };
    let fill = |con: &mut Connection, prefix: &str| {
        for i in 0..50 {
            let (tag, entry) = (format!("app:tag:{i}"), format!("item:{i}"));
            let _: () = con.set(format!("{prefix}{entry}"), "x").unwrap();
            let _: () = con.sadd(&tag, &[&entry, "item:gone", "item:lost"]).unwrap();
            age(con, &tag, 60);
        }
    };
    for prefix in ["", "app:"] {
        fill(&mut con, prefix);
        let plan = sweep(config(), Options { dry_run: true, ..options() });
        let report = sweep(config(), options());
        for report in [plan, report] {
            let figures = (report.references_removed, report.tags_pruned, report.complete);
            assert_eq!(figures, (100, 50, true), "{prefix}: {report:?}");
        }
        let _: () = run(&mut con, "FLUSHALL");
    }
    let _: () = con.sadd("app:tag:orphan", "item:gone").unwrap();
    age(&mut con, "app:tag:orphan", 60);
    assert_eq!(sweep(config(), options()).tags_removed, 1);
}

#[test]
fn a_proof_is_remembered_for_a_cache_that_has_expired_as_a_whole() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 1, 1);
    sweep(server.config(), quick());
    let _: () = con.del("item:t:l0").unwrap();
    age(&mut con, "tag:t", 3600);
    assert_eq!(sweep(server.config(), quick()).tags_removed, 1);
}

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
fn a_dry_run_needs_no_permission_to_write() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 2, 3);
    tag(&mut con, "", "o", 0, 3);
    let _: () =
        run(&mut con, "ACL SETUSER reader on >pw ~* +@read +@connection +info +time -@write");
    let url = format!("{}?user=reader&pass=pw", server.url());
    let report = sweep(Config::from_url(&url).unwrap(), Options { dry_run: true, ..quick() });
    assert_eq!((report.tags_removed, report.tags_pruned, report.references_removed), (1, 1, 6));
    assert!(report.complete && report.dry_run);
}

#[test]
fn who_could_not_put_back_may_not_remove() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 2, 3);
    for (right, missing) in [("-sadd", "SADD"), ("-type -srem", "SREM, TYPE")] {
        let _: () = run(&mut con, &format!("ACL SETUSER half reset on >pw ~* &* +@all {right}"));
        let url = format!("{}?user=half&pass=pw", server.url());
        let mut sweep = Sweep::new(Config::from_url(&url).unwrap(), quick()).unwrap();
        let e = sweep.run(&mut |_| Flow::Continue).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
        assert!(e.to_string().contains(&format!("may not run {missing}")), "{e}");
        assert_eq!(members(&mut con, "tag:t").len(), 5);
        assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    }
}

#[test]
fn a_young_tag_waits_for_its_grace_in_the_same_run() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "old", 1, 1);
    let _: () = con.sadd("tag:young", &["item:a", "item:b"]).unwrap();
    let begun = Instant::now();
    let report = sweep(server.config(), Options { grace: Duration::from_secs(1), ..quick() });
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((report.tags_seen, report.tags_removed, report.references_removed), (2, 1, 3));
}

#[test]
fn without_idle_times_an_entry_must_be_absent_twice() {
    let server = Server::with(&["--maxmemory-policy", "allkeys-lfu", "--maxmemory", "1gb"]);
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:t", &["item:live", "item:dead", "item:back"]).unwrap();
    let grace = Duration::from_millis(600);
    let begun = Instant::now();
    let mut other = server.connect();
    let options = Options { grace, max_tag_age: Some(Duration::from_secs(9)), ..quick() };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.waiting && begun.elapsed() > grace / 2 {
            let _: () = other.set("item:back", "written between the two looks").unwrap();
        }
        Flow::Continue
    });
    assert!(begun.elapsed() >= grace);
    assert_eq!(report.references_removed, 1);
    assert_eq!(members(&mut con, "tag:t"), ["item:back", "item:live"].map(Into::into).into());
    assert!(report.warnings[0].contains("LFU"), "{:?}", report.warnings);
}

#[test]
fn an_entry_that_appears_after_all_gets_its_reference_back() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 1, 2);
    let mut other = server.connect();
    let options = Options { verify: Duration::from_millis(300), ..quick() };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed == 2 {
            let _: () = other.set("item:t:s0", "the writer was slow").unwrap();
        }
        Flow::Continue
    });
    assert_eq!((report.references_removed, report.references_restored), (2, 1));
    assert_eq!(members(&mut con, "tag:t"), ["item:t:l0", "item:t:s0"].map(Into::into).into());
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
    }
}

fn references(con: &mut Connection) -> usize {
    let tags: Vec<String> = con.keys("tag:*").unwrap();
    tags.iter().map(|key| con.scard::<_, usize>(key).unwrap()).sum()
}

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
    // The mean, for the longest of some hundred is the scheduler's; `make bench` shows the longest.
    let stats: String = run(&mut con, "INFO commandstats");
    let script = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).unwrap();
    let mean = script.split("usec_per_call=").nth(1).unwrap().split(',').next().unwrap();
    assert!(mean.parse::<f64>().unwrap() < 1000.0, "{script}");
}

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
fn a_dry_run_says_that_a_sweep_would_remove_nothing_for_want_of_a_proof() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "orphan", 0, 4);
    let report = sweep(server.config(), Options { dry_run: true, ..quick() });
    assert_eq!((report.references_removed, report.tags_removed), (0, 0));
    let told = report.warnings.join("\n");
    assert!(told.contains("no reference leads") && told.contains("tag:orphan"), "{told}");
    let mut real = Sweep::new(server.config(), quick()).unwrap();
    assert_eq!(real.run(&mut |_| Flow::Continue).unwrap_err().kind(), ErrorKind::Unproven);
}

#[test]
fn a_dry_run_does_not_stop_before_the_mapping_is_proven() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "orphan", 200, 5, 0);
    let options = || Options { max_removals: Some(7), ..quick() };
    // One tag in many proves it, wherever the walk comes by it.
    tags(&mut con, "live", 1, 1, 1);
    let plan = sweep(server.config(), Options { dry_run: true, ..options() });
    let report = sweep(server.config(), options());
    for report in [plan, report] {
        assert_eq!(
            (report.references_removed, report.reason),
            (7, Reason::MaxRemovals),
            "{report:?}"
        );
    }
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
fn cleans_without_memory() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 1, 2);
    let _: () = run(&mut con, "CONFIG SET maxmemory 1");
    let mut other = server.connect();
    let mut written = false;
    let options = Options { verify: Duration::from_millis(300), ..quick() };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed == 2 && !written {
            let _: () = run(&mut other, "CONFIG SET maxmemory 0");
            let _: () = other.set("item:t:s0", "slow").unwrap();
            let _: () = run(&mut other, "CONFIG SET maxmemory 1");
            written = true;
        }
        Flow::Continue
    });
    assert_eq!((report.references_removed, report.references_restored), (2, 1));
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
fn a_replica_is_refused() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = run(&mut con, "REPLICAOF 127.0.0.1 1");
    let e = Sweep::new(server.config(), quick()).unwrap().run(&mut |_| Flow::Continue);
    assert!(e.unwrap_err().to_string().contains("name the primary"));
}

/// A sweep that remembers for an hour.
fn remembering(server: &Server) -> Report {
    let remember = Some(Duration::from_secs(3600));
    sweep(server.config(), Options { remember, grace: Duration::ZERO, ..quick() })
}

#[test]
fn a_sweep_that_remembers_passes_over_what_cannot_have_become_stale() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "live", 300, 0);
    tag(&mut con, "", "mixed", 2, 3);
    let first = remembering(&server);
    assert_eq!((first.tags_seen, first.tags_unchanged, first.references_removed), (2, 0, 3));
    let second = remembering(&server);
    assert_eq!((second.tags_seen, second.tags_unchanged), (2, 2));
    assert_eq!((second.references_checked, second.complete), (0, true));
    // Who does not ask for it looks at everything.
    assert_eq!(sweep(server.config(), quick()).references_checked, 302);
    // A new reference is a change, and so are names that lead elsewhere.
    let _: () = con.sadd("tag:live", "item:live:new").unwrap();
    age(&mut con, "tag:live", 3600);
    let third = remembering(&server);
    assert_eq!((third.tags_unchanged, third.references_removed), (1, 1));
    assert_eq!(remembering(&server).tags_unchanged, 2);
    let remember = Some(Duration::from_secs(3600));
    let options = Options { entry_prefix: Some(b"".to_vec()), remember, ..quick() };
    assert_eq!(sweep(server.config(), options.clone()).tags_unchanged, 2);
    let renamed = Options { entry_prefix: Some(b"x:".to_vec()), dry_run: true, ..options };
    let plan = Options { trust_mapping: true, ..renamed };
    assert_eq!(sweep(server.config(), plan).tags_unchanged, 0);
}

#[test]
fn what_is_remembered_ends_with_the_first_entry_that_expires() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 3, 0);
    let _: () = con.pset_ex("item:t:l1", "x", 2500).unwrap();
    remembering(&server);
    assert_eq!(remembering(&server).tags_unchanged, 1);
    until("the entry expires", || !run::<bool>(&mut con, "EXISTS item:t:l1"));
    let report = remembering(&server);
    assert_eq!((report.tags_unchanged, report.references_removed), (0, 1));
    // A tag that goes takes its record along, and one that the application removes is forgotten.
    let records = |con: &mut Connection| -> usize {
        con.keys::<_, Vec<String>>("{lock:cache_tag_cleanup}:records:*").unwrap().len()
    };
    assert_eq!(records(&mut con), 1);
    let _: () = con.del("item:t:l0").unwrap();
    let _: () = con.del("item:t:l2").unwrap();
    let _: () = con.sadd("tag:t", "item:t:gone").unwrap();
    let _: () = con.set("item:other", "x").unwrap();
    let _: () = con.sadd("tag:other", "item:other").unwrap();
    age(&mut con, "tag:other", 60);
    assert_eq!(remembering(&server).tags_removed, 1);
    assert_eq!(records(&mut con), 1, "that of the other tag");
}

#[test]
fn a_tag_in_use_is_not_vouched_for() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = con.mset(&[("a", "x"), ("b", "x")]).unwrap();
    let _: () = con.sadd("tag:x", &["a", "b"]).unwrap();
    let options =
        || Options { grace: Duration::ZERO, remember: Some(Duration::from_secs(3600)), ..quick() };
    sweep(server.config(), options());
    // As many references as before, within the resolution of the server's clock of uses.
    let _: () = con.sadd("tag:x", "gone").unwrap();
    let _: () = con.srem("tag:x", "b").unwrap();
    age(&mut con, "tag:x", 8);
    let report = sweep(server.config(), options());
    assert_eq!((report.tags_unchanged, report.references_removed), (0, 1), "{report:?}");
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
fn what_is_condemned_goes_soon_and_does_not_wait_for_the_end_of_the_walk() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 200000 do redis.call('SET', 'other:' .. i, '') end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    (0..100).for_each(|n| tag(&mut con, "", &n.to_string(), 1, 1));
    let (mut halfway, options) = (None, Options { effort: 2, ..quick() });
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
fn a_large_tag_that_is_used_meanwhile_is_read_once_more_and_no_more() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 100000 do redis.call('SADD', 'tag:big', 'item:' .. i) end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:other", "item:live").unwrap();
    age(&mut con, "tag:big", 3600);
    age(&mut con, "tag:other", 3600);
    let (mut used, grace) = (false, Duration::from_secs(1));
    let report = sweep_watched(server.config(), Options { grace, ..quick() }, &mut |progress| {
        if progress.report.references_removed > 1000 && !std::mem::replace(&mut used, true) {
            let _: () = con.sadd("tag:big", "item:live").unwrap();
        }
        Flow::Continue
    });
    assert!(used && report.complete, "{report:?}");
    assert_eq!(members(&mut con, "tag:big"), BTreeSet::from(["item:live".to_owned()]));
    assert_eq!((report.references_removed, report.tags_pruned), (100_000, 1), "{report:?}");
    assert!(report.references_checked <= 100_002 + 1000, "{report:?}");
}

/// A user who may do everything but that.
fn restricted(server: &Server, rights: &str) -> Config {
    let mut con = server.connect();
    run::<()>(&mut con, &format!("ACL SETUSER some on >pw {rights}"));
    let url = format!("unix://{}?user=some&pass=pw", server.socket().display());
    Config::from_url(&url).unwrap()
}

#[test]
fn a_removal_that_is_refused_is_an_error_that_names_the_tag() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    let mut sweep = Sweep::new(restricted(&server, "~* &* +@all"), quick()).unwrap();
    let watched = sweep.run(&mut |_| {
        run::<()>(&mut con, "ACL SETUSER some -srem");
        Flow::Continue
    });
    let e = watched.unwrap_err();
    assert!(e.to_string().contains("tag:a"), "{e}");
    assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap(), "the lock was given back");
}

#[test]
fn figures_of_a_sweep_that_an_error_ends_are_those_of_a_full_comparison() {
    const FILL: &str = "for t = 1, 3000 do for r = 1, 20 do \
        redis.call('SADD', 'app:tag:' .. t, t .. ':' .. r) end \
        redis.call('SET', 'app:' .. t .. ':1', '') end";
    const COUNT: &str = "local all = 0 for t = 1, 3000 do \
        all = all + redis.call('SCARD', 'app:tag:' .. t) end return all";
    for _ in 0..4 {
        let server = Server::start();
        let mut con = server.connect();
        redis::cmd("EVAL").arg(FILL).arg(0).exec(&mut con).unwrap();
        // An entry without the prefix that leads to all others.
        let _: () = con.set("odd", "x").unwrap();
        let _: () = con.sadd("app:tag:odd", "odd").unwrap();
        let options = Options { grace: Duration::ZERO, ..quick() };
        let mut sweep = Sweep::new(server.config().prefix(b"app:"), options).unwrap();
        let e = sweep.run(&mut |_| Flow::Continue).unwrap_err();
        assert_eq!(e.kind(), tagsweep::ErrorKind::Unproven);
        let left: u64 = redis::cmd("EVAL").arg(COUNT).arg(0).query(&mut con).unwrap();
        let report = sweep.report().unwrap();
        assert_eq!(report.references_removed, 60_000 - left, "{report:?}");
    }
}

#[test]
fn a_sweep_that_may_not_look_for_any_entry_is_an_error() {
    let server = Server::start();
    let mut con = server.connect();
    (0..200).for_each(|n| tag(&mut con, "", &n.to_string(), 1, 1));
    let mut sweep = Sweep::new(restricted(&server, "~* &* +@all -exists"), quick()).unwrap();
    let e = sweep.run(&mut |_| Flow::Continue).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
    let report = sweep.report().unwrap();
    assert_eq!((report.complete, report.warnings.len()), (false, 1), "{report:?}");
}

#[test]
fn what_may_be_seen_proves_the_mapping_whatever_else_a_tag_holds() {
    let server = Server::start();
    let mut con = server.connect();
    for n in 0..50 {
        tag(&mut con, "app:", &n.to_string(), 1, 1);
        let _: () = con.sadd(format!("app:tag:{n}"), "other:1").unwrap();
        age(&mut con, format!("app:tag:{n}"), 3600);
    }
    let config = restricted(&server, "~app:tag:* ~app:item:* ~*lock:* &* +@all").prefix("app:");
    let e = Sweep::new(config.clone(), quick()).unwrap().run(&mut |_| Flow::Continue).unwrap_err();
    assert!(e.kind() == ErrorKind::Denied && e.to_string().contains("--entry-prefix"), "{e}");
    let options = Options { entry_prefix: Some(b"app:".to_vec()), ..quick() };
    let report = sweep(config, options);
    assert!(report.complete && report.warnings.len() == 1, "{report:?}");
    assert_eq!((report.references_removed, report.entry_prefix.as_deref()), (50, Some("app:")));
}

#[test]
fn what_may_not_be_looked_for_stays_and_everything_else_goes() {
    let server = Server::start();
    let mut con = server.connect();
    (0..50).for_each(|n| tag(&mut con, "", &n.to_string(), 1, 1));
    let _: () = con.sadd("tag:7", "secret:1").unwrap();
    age(&mut con, "tag:7", 3600);
    let config = restricted(&server, "~tag:* ~item:* ~*lock:* &* +@all");
    let report = sweep(config, quick());
    assert!(report.complete && report.warnings.iter().any(|w| w.contains("tag:7")), "{report:?}");
    let kept = BTreeSet::from(["item:7:l0".to_owned(), "secret:1".to_owned()]);
    assert_eq!((report.references_removed, members(&mut con, "tag:7")), (50, kept));
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
fn a_limit_that_is_reached_leaves_verification_its_time() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    let (begun, mut written) = (Instant::now(), false);
    let verify = Duration::from_millis(1500);
    let max_duration = Some(Duration::from_millis(200));
    let report = sweep_watched(
        server.config(),
        Options { verify, max_duration, ..Options::default() },
        &mut |_| {
            if begun.elapsed().as_millis() > 1000 && !std::mem::replace(&mut written, true) {
                let _: () = con.set("item:a:s0", "x").unwrap();
            }
            Flow::Continue
        },
    );
    assert_eq!((report.reason, report.references_restored), (Reason::MaxDuration, 1));
    assert!(members(&mut con, "tag:a").contains("item:a:s0"));
}

#[test]
fn what_was_removed_is_verified_although_an_error_ends_the_sweep() {
    let server = Server::start();
    let mut con = server.connect();
    (0..3000).for_each(|n| tag(&mut con, "", &n.to_string(), 1, 1));
    let config = restricted(&server, "~* &* +@all");
    let verify = Duration::from_millis(300);
    let mut sweep = Sweep::new(config, Options { verify, ..Options::default() }).unwrap();
    let mut back = None;
    let ended = sweep.run(&mut |progress| {
        if progress.report.references_removed > 0 && back.is_none() {
            let gone = (0..3000).find(|n| con.scard::<_, u64>(format!("tag:{n}")).unwrap() == 1);
            back = gone;
            let _: () = con.set(format!("item:{}:s0", gone.unwrap()), "x").unwrap();
            run::<()>(&mut con, "ACL SETUSER some -sscan");
        }
        Flow::Continue
    });
    assert!(ended.unwrap_err().to_string().contains("tag:"));
    assert_eq!(sweep.report().unwrap().references_restored, 1);
    let back = back.unwrap();
    assert!(members(&mut con, &format!("tag:{back}")).contains(&format!("item:{back}:s0")));
}

#[test]
fn a_reference_that_is_written_while_the_server_saves_has_the_grace_for_its_entry() {
    // Seen by the next look at the server, which is before the tag is read; or between two looks.
    [250_000, 15_000].into_iter().for_each(write_while_it_saves);
}

/// A few keys, each of which takes the server so long to save (us).
fn write_while_it_saves(delay: u32) {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    run::<()>(&mut con, &format!("CONFIG SET rdb-key-save-delay {delay}"));
    let (grace, verify) = (Duration::from_secs(2), Duration::from_millis(200));
    let options = Options { grace, verify, ..Options::default() };
    let (mut saved, mut removed, mut written) = (false, None, false);
    let report = sweep_watched(server.config(), options, &mut |progress| {
        let report = progress.report;
        if report.pages > 0 && !std::mem::replace(&mut saved, true) {
            assert_eq!(report.references_checked, 0, "the tag is read after this");
            run::<redis::Value>(&mut con, "BGSAVE");
            let _: () = con.sadd("tag:a", "item:a:s0").unwrap();
            until("it was saved", || {
                let info: String = run(&mut con, "INFO persistence");
                info.contains("rdb_bgsave_in_progress:0")
            });
            let idle: u64 = run(&mut con, "OBJECT IDLETIME tag:a");
            assert!(idle > 1000, "the server does not know of that use: {idle}");
        }
        if report.references_removed > 0 {
            let at = *removed.get_or_insert_with(Instant::now);
            // Verified once by now.
            if at.elapsed() > 3 * verify && !std::mem::replace(&mut written, true) {
                let _: () = con.set("item:a:s0", "late").unwrap();
            }
        }
        Flow::Continue
    });
    assert!(written, "the sweep did not wait for it: {report:?}");
    assert_eq!((report.references_removed, report.references_restored), (1, 1));
    assert_eq!(members(&mut con, "tag:a").len(), 2);
}

/// How often the server refused to write for want of replicas.
fn refusals(con: &mut Connection) -> u64 {
    let stats: String = run(con, "INFO errorstats");
    let count = stats.lines().find_map(|l| l.strip_prefix("errorstat_NOREPLICAS:count="));
    count.map_or(0, |n| n.trim().parse().unwrap())
}

#[test]
fn a_reference_that_the_server_does_not_let_us_put_back_is_put_back_when_it_does() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    let verify = Duration::from_millis(300);
    let (mut written, mut refused) = (false, 0);
    let report =
        sweep_watched(server.config(), Options { verify, ..Options::default() }, &mut |progress| {
            if progress.report.references_removed > 0 && !written {
                written = true;
                let _: () = con.set("item:a:s0", "late").unwrap();
                run::<()>(&mut con, "CONFIG SET min-replicas-to-write 1");
            } else if written && refused < 3 {
                refused = refusals(&mut con);
                let replicas = u8::from(refused < 3);
                run::<()>(&mut con, &format!("CONFIG SET min-replicas-to-write {replicas}"));
            }
            Flow::Continue
        });
    assert_eq!((report.references_removed, report.references_restored), (1, 1));
    assert!(report.complete && refused >= 3);
    assert_eq!(members(&mut con, "tag:a").len(), 2);
}

#[test]
fn what_cannot_be_put_back_is_told_of_and_its_note_stays() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "a", 1, 1);
    let (verify, lock_ttl) = (Duration::from_millis(100), Duration::from_secs(1));
    let options = Options { verify, lock_ttl, durable: true, ..Options::default() };
    let mut first = Sweep::new(server.config(), options.clone()).unwrap();
    let mut written = false;
    let ended = first.run(&mut |progress| {
        if progress.report.references_removed > 0 && !std::mem::replace(&mut written, true) {
            let _: () = con.set("item:a:s0", "late").unwrap();
            run::<()>(&mut con, "CONFIG SET min-replicas-to-write 1");
        }
        Flow::Continue
    });
    let told = ended.unwrap_err().to_string();
    assert!(told.contains("NOREPLICAS") && told.contains("tag:a"), "{told}");
    let warnings = &first.report().unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains("missing") && w.contains("tag:a")), "{warnings:?}");
    run::<()>(&mut con, "CONFIG SET min-replicas-to-write 0");
    let wait = Duration::from_secs(5);
    let report = sweep(server.config(), Options { wait, ..options });
    assert_eq!((report.references_restored, report.complete), (1, true));
    assert_eq!(members(&mut con, "tag:a").len(), 2);
}

#[test]
fn a_reference_that_is_written_while_a_large_tag_is_swept_is_not_lost() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 200000 do redis.call('SADD', 'tag:big', 'item:' .. i) end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:other", "item:live").unwrap();
    age(&mut con, "tag:big", 3600);
    age(&mut con, "tag:other", 3600);
    let entries: Vec<String> = (0..100).map(|n| format!("item:{}", 1 + n * 2000)).collect();
    let (mut referred, grace) = (None, Duration::from_secs(2));
    let mut written = false;
    sweep_watched(server.config(), Options { grace, ..quick() }, &mut |progress| {
        if progress.report.references_removed > 50_000 && referred.is_none() {
            let _: () = con.sadd("tag:big", &entries).unwrap();
            referred = Some(Instant::now());
        }
        let due = referred.is_some_and(|at| at.elapsed() > Duration::from_millis(700));
        if due && !std::mem::replace(&mut written, true) {
            entries.iter().for_each(|entry| con.set(entry, "x").unwrap());
        }
        Flow::Continue
    });
    let kept = members(&mut con, "tag:big");
    let lost: Vec<&String> = entries.iter().filter(|entry| !kept.contains(*entry)).collect();
    assert!(written && lost.is_empty(), "{lost:?}");
}

#[test]
fn a_tag_that_was_rewritten_is_not_passed_over_where_use_can_be_told() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 1, 0);
    assert_eq!(remembering(&server).tags_unchanged, 0);
    let _: () = con.del("tag:t").unwrap();
    let _: () = con.sadd("tag:t", "item:gone").unwrap();
    let untouching = redis::cmd("CLIENT").arg("NO-TOUCH").arg("OFF").exec(&mut con).is_ok();
    let report = remembering(&server);
    assert_eq!((report.tags_unchanged, untouching), (u64::from(!untouching), untouching));
}

/// Tags named `name:0` and on, of so many references: one in `live` leads to an entry (0: none).
fn tags(con: &mut Connection, name: &str, tags: usize, references: usize, live: usize) {
    let fill = "for t = 0, ARGV[2] - 1 do for r = 0, ARGV[3] - 1 do \
                local entry = 'item:' .. ARGV[1] .. ':' .. t .. ':' .. r \
                redis.call('SADD', 'tag:' .. ARGV[1] .. ':' .. t, entry) \
                local live = tonumber(ARGV[4]) \
                if live > 0 and r % live == 0 then redis.call('SET', entry, '') end end end";
    let mut eval = redis::cmd("EVAL");
    eval.arg(fill).arg(0).arg(name).arg(tags).arg(references).arg(live).exec(con).unwrap();
    (0..tags).for_each(|t| age(con, format!("tag:{name}:{t}"), 3600));
}

#[test]
fn figures_are_those_of_a_full_comparison_though_the_proof_comes_late() {
    let server = Server::start();
    let mut con = server.connect();
    // More than may be held back, whatever the order; each of the others straddles the proof if it brings it.
    tags(&mut con, "gone", 40, 4000, 0);
    tags(&mut con, "kept", 4, 4000, 4000);
    let options = Options { memory: 4 << 20, grace: Duration::from_secs(1), ..quick() };
    let report = sweep(server.config(), options);
    assert!(report.complete, "{report:?}");
    assert_eq!((report.tags_seen, report.references_checked), (44, 176_000), "{report:?}");
    assert_eq!((report.tags_removed, report.tags_pruned), (40, 4), "{report:?}");
    assert_eq!(report.references_removed, 40 * 4000 + 4 * 3999, "{report:?}");
}

#[test]
fn what_was_removed_is_told_to_the_next_though_the_proof_came_late() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "gone", 40, 4000, 0);
    tags(&mut con, "kept", 4, 4000, 4000);
    let stale = 40 * 4000 + 4 * 3999;
    let options = || Options { memory: 4 << 20, grace: Duration::from_secs(1), ..quick() };
    // The last of them are those of the second walk.
    let cut = sweep(server.config(), Options { max_removals: Some(stale - 1), ..options() });
    assert_eq!((cut.reason, cut.references_removed), (Reason::MaxRemovals, stale - 1));
    let next = sweep(server.config(), options());
    assert!(next.complete, "{next:?}");
    assert_eq!((next.removed_before, next.references_removed), (stale - 1, 1), "{next:?}");
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
fn what_was_removed_is_verified_in_time_however_large_its_tag() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "big", 1, 300_000, 0);
    let options = Options {
        verify: Duration::from_millis(200),
        max_latency: Duration::from_micros(50),
        trust_mapping: true,
        ..Options::default()
    };
    // One of the first that go; its entry appears after all.
    let (mut late, mut back): (Option<(String, Instant)>, Option<Duration>) = (None, None);
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if late.is_none() && progress.report.references_removed > 0 {
            let names: Vec<String> = (0..1000).map(|r| format!("item:big:0:{r}")).collect();
            let stay: Vec<bool> =
                redis::cmd("SMISMEMBER").arg("tag:big:0").arg(&names).query(&mut con).unwrap();
            let gone = names.into_iter().zip(stay).find(|(_, stays)| !stays);
            late = gone.map(|(name, _)| {
                let _: () = con.set(&name, "x").unwrap();
                (name, Instant::now())
            });
        } else if let (Some((name, since)), None) = (&late, back) {
            let is_back: bool = con.sismember("tag:big:0", name).unwrap();
            back = is_back.then(|| since.elapsed());
        }
        Flow::Continue
    });
    assert_eq!((report.references_removed, report.references_restored), (300_000, 1));
    let back = back.unwrap();
    assert!(back < Duration::from_secs(1), "{back:?} of {:?}", report.duration);
    assert!(back < report.duration / 2, "{back:?} of {:?}", report.duration);
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
fn whoever_watches_may_take_his_time() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 3, 4, 2);
    let mut looks = 0;
    let report = sweep_watched(server.config(), quick(), &mut |_| {
        looks += 1;
        // What a slow listener does, and longer than the server is left without a question how it is.
        std::thread::sleep(Duration::from_millis(520));
        if looks > 40 { Flow::Stop } else { Flow::Continue }
    });
    assert!(report.complete && looks < 30, "{looks}: {report:?}");
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
fn progress_is_not_at_its_end_before_all_is_done() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "old", 50, 20, 2);
    for i in 0..500 {
        let _: () = con.sadd(format!("tag:young{i}"), format!("gone:{i}")).unwrap();
    }
    let options = Options { grace: Duration::from_secs(2), verify: MS500, ..Options::default() };
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
        *share >= 1.0 && (*removed < 1000 || ended - *at > MS500 / 2)
    };
    assert_eq!(told.iter().filter(|told| early(told)).count(), 0);
    // Half a second after the beginning nothing but waiting is left, and for how long is known.
    let begun = told[0].0;
    let waits = told.iter().filter(|(at, ..)| *at - begun > MS500 && ended - *at > MS500 * 2);
    let wrong = |(at, _, left, _): &(Instant, f64, Option<Duration>, u64)| {
        left.is_some_and(|left| left.abs_diff(ended - *at) > MS500 * 2)
    };
    let (wrong, all) = (waits.clone().filter(|told| wrong(told)).count(), waits.count());
    assert!(all > 10 && wrong == 0, "{wrong} of {all}");
}

const MS500: Duration = Duration::from_millis(500);

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
    let report = sweep(server.config(), ages(MS500 / 50));
    assert_eq!(report.tags_aged, 1, "{report:?}");
}

#[test]
fn a_server_that_lets_nobody_in_any_more_ends_it() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 3000, 4, 2);
    let (mut shut, mut turns) = (false, 0);
    let ended = Sweep::new(server.config(), quick()).unwrap().run(&mut |progress| {
        if progress.report.references_removed > 0 && !std::mem::replace(&mut shut, true) {
            run::<()>(&mut con, "CONFIG SET requirepass secret");
            run::<i64>(&mut con, "CLIENT KILL TYPE normal SKIPME yes");
        }
        turns += u64::from(shut);
        assert!(turns < 1000, "it goes on for ever");
        Flow::Continue
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Denied);
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
    let (lock_ttl, grace) = (Duration::from_secs(1), Duration::from_secs(1));
    let options = Options { lock_ttl, grace, effort: 10, ..quick() };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed > 0 {
            std::thread::sleep(Duration::from_millis(8));
        }
        Flow::Continue
    });
    assert_eq!((report.reason, report.references_removed), (Reason::Complete, 54_000));
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
    assert!(took < Duration::from_millis(3500), "{took:?}");
}

#[test]
fn a_part_of_a_cluster_is_refused() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    for dry_run in [true, false] {
        let options = Options { dry_run, ..quick() };
        let e = Sweep::new(server.config(), options).unwrap().run(&mut |_| Flow::Continue);
        assert!(e.unwrap_err().to_string().contains("Cluster"));
    }
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
                support::signal(pid, "CONT");
            }));
        }
        Flow::Continue
    });
    stalled.unwrap().join().unwrap();
    assert_eq!((report.reason, report.warnings.len()), (Reason::MaxRemovals, 0), "{report:?}");
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
fn what_a_refused_script_left_is_found_by_the_next_sweep() {
    let server = Server::start();
    let mut con = server.connect();
    tags(&mut con, "some", 3000, 4, 2);
    let grace = Duration::from_secs(30);
    let config = restricted(&server, "~* &* +@all");
    let mut refused = false;
    let options = || Options { grace, ..quick() };
    let ended = Sweep::new(config.clone(), options()).unwrap().run(&mut |progress| {
        if progress.report.references_removed > 0 && !std::mem::replace(&mut refused, true) {
            run::<()>(&mut con, "ACL SETUSER some -evalsha");
        }
        Flow::Continue
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Denied);
    run::<()>(&mut con, "ACL SETUSER some +evalsha");
    // Nor could it give its lock back.
    let _: () = con.del("lock:cache_tag_cleanup").unwrap();
    assert!(sweep(config, options()).complete);
    assert_eq!(references(&mut con), 6000);
}
