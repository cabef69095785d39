//! How members lead to entries: what is proven, and what is not guessed.

use crate::fixtures::*;
use crate::support::{Server, age, run};
use redis::{Commands, Connection};
use std::time::Duration;
use tagsweep::ErrorKind;
use tagsweep::sweep::{Flow, Options, Reason, Sweep};

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
    assert!(text.contains("wrong:item:") && text.contains("entry_prefix"), "{text}");
    assert_eq!(run_.report().unwrap().references_removed, 0);
    assert_eq!(members(&mut con, "tag:t7").len(), 10);
    assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    // Said by name, it is done.
    let report = sweep(server.config(), Options { trust_mapping: true, ..wrong });
    assert_eq!(report.tags_removed, 50);
}

#[test]
fn a_cache_without_tags_may_be_another_one() {
    let server = Server::start();
    let mut con = server.connect();
    for i in 0..30 {
        let _: () = con.set(format!("other:{i}"), "x").unwrap();
    }
    let _: () = con.zadd("app:tag:sorted", "item:1", 1).unwrap();
    let doubts = |prefix: &str, dry_run| {
        let options = Options { dry_run, ..quick() };
        let report = sweep(server.config().prefix(prefix), options);
        assert_eq!((report.complete, report.tags_seen), (true, 0));
        report.warnings
    };
    for dry_run in [true, false] {
        let told = doubts("typo:", dry_run);
        assert!(told[0].starts_with("no key matches \"typo:tag:*\""), "{told:?}");
        let told = doubts("app:", dry_run);
        assert!(told[0].starts_with("no set among 1 keys matches \"app:tag:*\""), "{told:?}");
    }
    // It had tags once: that they are gone is no news.
    tag(&mut con, "was:", "t", 1, 2);
    assert_eq!(sweep(server.config().prefix("was:"), quick()).tags_pruned, 1);
    let _: () = con.del("was:tag:t").unwrap();
    assert_eq!(doubts("was:", false), [""; 0]);
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
    assert!(e.kind() == ErrorKind::Denied && e.to_string().contains("entry_prefix"), "{e}");
    let options = Options { entry_prefix: Some(b"app:".to_vec()), ..quick() };
    let report = sweep(config, options);
    assert!(report.complete && report.warnings.len() == 1, "{report:?}");
    assert_eq!((report.references_removed, report.entry_prefix.as_deref()), (50, Some("app:")));
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

/// The key at that share of the way of SCAN.
fn key_at(con: &mut Connection, share: f64) -> String {
    let keys: Vec<String> = con.scan().unwrap().map(Result::unwrap).collect();
    keys[(keys.len() as f64 * share) as usize].clone()
}

#[test]
fn what_was_passed_over_for_want_of_a_proof_is_not_behind_a_checkpoint() {
    let server = Server::start();
    let mut con = server.connect();
    // The proof comes when more than may be held back was passed over, and before the end.
    tags(&mut con, "gone", 1000, 300, 0);
    let middle = key_at(&mut con, 0.6);
    let _: () = con.set(middle.replace("tag:", "item:") + ":0", "").unwrap();
    let grace = Duration::from_secs(4);
    let options = || Options { memory: 4 << 20, grace, ..quick() };
    let cut = sweep_watched(server.config(), options(), &mut |progress| {
        if progress.report.references_removed > 30_000 { Flow::Stop } else { Flow::Continue }
    });
    assert!(cut.reason == Reason::Stopped && cut.tags_seen < 1000, "{cut:?}");
    let next = sweep(server.config(), options());
    assert!(next.complete && references(&mut con) == 1, "{next:?}");
}
