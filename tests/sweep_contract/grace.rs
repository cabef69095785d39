//! Nothing is lost: graces, verification, and what is put back.

use crate::fixtures::*;
use crate::support::{Server, age, run, until};
use redis::{Commands, Connection};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tagsweep::ErrorKind;
use tagsweep::reply::Info;
use tagsweep::sweep::{Flow, Options, Reason, Sweep};

#[test]
fn a_young_tag_waits_for_its_grace_in_the_same_run() {
    let server = Server::start();
    let mut con = server.connect();
    tag(&mut con, "", "old", 1, 1);
    let _: () = con.sadd("tag:young", &["item:a", "item:b"]).unwrap();
    let begun = Instant::now();
    let report = sweep(server.config(), Options { grace: Duration::from_secs(1), ..quick() });
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
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
    let (wait, lock_ttl) = (Duration::from_secs(5), Duration::from_secs(5));
    let report = sweep(server.config(), Options { wait, lock_ttl, ..options });
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

/// Before Redis 7.2 the script that removes cannot ask whether the tag was used a moment ago.
#[test]
fn where_a_use_may_be_missed_and_tags_are_written_to_a_reference_has_the_grace_for_its_entry() {
    let server = Server::start();
    let mut con = server.connect();
    let can_ask = Info(&run::<String>(&mut con, "INFO server")).is_since([7, 2]);
    tag(&mut con, "", "a", 1, 1);
    let (grace, verify) = (Duration::from_secs(2), Duration::from_millis(200));
    let options = Options { grace, verify, ..Options::default() };
    let (mut removed, mut written) = (None, false);
    let report = sweep_watched(server.config(), options, &mut |progress| {
        let _: () = con.sadd("another set", "x").unwrap();
        if progress.report.references_removed > 0 {
            let at = *removed.get_or_insert_with(Instant::now);
            // Verified once by now.
            if at.elapsed() > 3 * verify && !std::mem::replace(&mut written, true) {
                let _: () = con.set("item:a:s0", "late").unwrap();
            }
        }
        Flow::Continue
    });
    assert_eq!(report.references_restored, u64::from(!can_ask), "{written} {report:?}");
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
    assert!(back < report.duration / 2, "{back:?} of {:?}", report.duration);
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

#[test]
fn a_sweep_that_lost_its_lock_verifies_what_it_removed_in_its_time() {
    let server = Server::with(&["--maxmemory-policy", "allkeys-lfu", "--maxmemory", "1gb"]);
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:t", &["item:live", "item:late"]).unwrap();
    let (grace, verify) = (Duration::from_secs(3), Duration::from_secs(1));
    let mut removed: Option<Instant> = None;
    let lock_ttl = Duration::from_secs(2);
    let options = Options { grace, verify, lock_ttl, ..Options::default() };
    let report = sweep_watched(server.config(), options, &mut |progress| {
        if progress.report.references_removed > 0 && removed.is_none() {
            let _: () = con.del("lock:cache_tag_cleanup").unwrap();
            run::<()>(&mut con, "SET lock:cache_tag_cleanup thief");
            removed = Some(Instant::now());
        }
        if removed.is_some_and(|at| at.elapsed() > Duration::from_millis(1500)) {
            let _: () = con.set("item:late", "x").unwrap();
        }
        Flow::Continue
    });
    assert_eq!((report.reason, report.references_restored), (Reason::Lost, 1), "{report:?}");
    assert_eq!(con.sismember("tag:t", "item:late"), Ok(true));
}
