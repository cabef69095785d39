//! What the sweep promises, on a real server.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod age;
mod course;
mod fixtures;
mod grace;
mod limits;
mod mapping;
mod remember;
mod rights;
#[path = "../support/mod.rs"]
mod support;

use fixtures::*;
use redis::Commands;
use std::collections::BTreeSet;
use std::time::Duration;
use support::{Server, age, run};
use tagsweep::sweep::{Flow, Options, Reason, Sweep};

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
fn a_replica_is_refused() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = run(&mut con, "REPLICAOF 127.0.0.1 1");
    let e = Sweep::new(server.config(), quick()).unwrap().run(&mut |_| Flow::Continue);
    assert!(e.unwrap_err().to_string().contains("name the primary"));
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
