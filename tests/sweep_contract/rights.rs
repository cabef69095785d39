//! What a user may not do, and what a sweep does then.

use crate::fixtures::*;
use crate::support::{Server, age, run};
use redis::Commands;
use std::collections::BTreeSet;
use std::time::Duration;
use tagsweep::sweep::{Flow, Options, Sweep};
use tagsweep::{Config, ErrorKind};

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
    for (right, missing) in [("-sadd", "SADD"), ("-type -srem", "SREM, TYPE"), ("-hset", "HSET")] {
        let _: () = run(&mut con, &format!("ACL SETUSER half reset on >pw ~* &* +@all {right}"));
        let url = format!("{}?user=half&pass=pw", server.url());
        let options = Options { durable: missing == "HSET", ..quick() };
        let mut sweep = Sweep::new(Config::from_url(&url).unwrap(), options).unwrap();
        let e = sweep.run(&mut |_| Flow::Continue).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
        assert!(e.to_string().contains(&format!("may not run {missing}")), "{e}");
        assert_eq!(members(&mut con, "tag:t").len(), 5);
        assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    }
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
