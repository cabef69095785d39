//! What a sweep remembers for the next.

use crate::fixtures::*;
use crate::support::{Server, age, run, until};
use redis::{Commands, Connection};
use std::time::Duration;
use tagsweep::sweep::{Options, Report};

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
fn however_many_records_there_are_of_tags_that_are_gone_they_go_a_part_at_a_time() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 2, 3);
    let records = "{lock:cache_tag_cleanup}:records:7";
    for n in 0..5000u64 {
        let _: () = con.hset(records, n.to_be_bytes().as_slice(), "nonsense").unwrap();
    }
    assert!(remembering(&server).complete);
    assert_eq!(con.exists(records), Ok(false));
    let asked: String = run(&mut con, "INFO commandstats");
    // Those for what this sweep may know of earlier ones.
    let whole =
        asked.split("cmdstat_hgetall:calls=").nth(1).and_then(|told| told.split(',').next());
    let whole = whole.map_or(0, |calls| calls.parse::<u32>().unwrap());
    assert!(whole < 5, "{asked}");
}

#[test]
fn what_is_remembered_ends_with_the_first_entry_that_expires() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "t", 3, 0);
    let _: () = con.pset_ex("item:t:l1", "x", 6000).unwrap();
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
