//! Lost answers and broken connections: what was executed is recognised, what is not known is said.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::Commands;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::proxy::{Fault, Proxy};
use support::{Server, age, run, unstalled, until};
use tagsweep::connect::Link;
use tagsweep::lock::{Lock, Options as Terms, Outcome, Ttl, WaitMode};
use tagsweep::sweep::{Ended, Flow, Options, Reason, Sweep};
use tagsweep::{Config, ErrorKind};

const TTL: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_millis(600);

/// What one lost answer costs of that.
const LOST: Duration = Duration::from_millis(270);

fn lock(proxy: &Proxy) -> Lock {
    Lock::new(proxy.config().timeout(PATIENCE), b"job", TTL).unwrap()
}

#[test]
fn an_acquire_whose_answer_was_lost_is_recognised() {
    for fault in [Fault::DropReply, Fault::CloseAfter, Fault::CloseBefore] {
        let server = Server::start();
        let proxy = Proxy::start(&server.socket());
        let mut lock = lock(&proxy);
        lock.acquire().unwrap();
        lock.release().unwrap();
        proxy.break_next("EVALSHA", fault, 1);
        let outcome = lock.acquire().unwrap();
        assert!(matches!(outcome, Outcome::Acquired { .. }), "{fault:?}: {outcome:?}");
        assert_eq!(proxy.left(), 0);
        let owner: Vec<u8> = server.connect().get("lock:job").unwrap();
        assert_eq!(lock.owner(), Some(owner.as_slice()), "{fault:?}");
        proxy.break_next("EVALSHA", fault, 1);
        assert!(lock.extend(Some(Duration::from_secs(90))).unwrap(), "{fault:?}");
        proxy.break_next("EVALSHA", fault, 1);
        assert!(lock.release().unwrap(), "{fault:?}");
        assert!(!run::<bool>(&mut server.connect(), "EXISTS lock:job"));
    }
}

#[test]
fn a_wait_that_ends_in_doubt_keeps_nothing() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut holder = Lock::new(server.config(), b"job", TTL).unwrap();
    let wait_mode = WaitMode::Backoff;
    let link = Arc::new(Mutex::new(Link::new(proxy.config().timeout(PATIENCE)).unwrap()));
    for answers in [true, false] {
        holder.acquire().unwrap();
        let mut waiter =
            Lock::on(Arc::clone(&link), b"job", Terms { wait_mode, ..Terms::new(TTL) }).unwrap();
        let mut con = server.connect();
        let (held, mut free) = (holder.owner().unwrap().to_vec(), false);
        let outcome = waiter.acquire_within(Duration::from_secs(20), &mut |_| {
            if !std::mem::replace(&mut free, true) {
                proxy.break_next("EVALSHA", Fault::DropReply, 1000);
                holder.release().unwrap();
            }
            // Until it was granted, and nobody said so.
            let taken: Option<Vec<u8>> = con.get("lock:job").unwrap();
            let goes_on = taken.is_none_or(|value| value == held);
            if !goes_on && answers {
                proxy.break_next("EVALSHA", Fault::DropReply, 0);
            }
            goes_on
        });
        let taken = run::<bool>(&mut con, "EXISTS lock:job");
        match outcome {
            Ok(Outcome::Held(_)) => assert!(answers && !taken),
            Err(e) => assert!(!answers && taken && e.is_unknown(), "{e}"),
            Ok(outcome) => panic!("{outcome:?}"),
        }
        proxy.break_next("EVALSHA", Fault::DropReply, 0);
        let _: () = con.del("lock:job").unwrap();
    }
}

#[test]
fn a_release_whose_answer_was_lost_does_not_take_a_theft_for_its_own_doing() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut con = server.connect();
    for (taken_over, recorded) in [(false, true), (true, true), (true, false)] {
        let options = || Terms { record: true, ..Terms::new(TTL) };
        let released = unstalled(|| {
            let link = Link::new(proxy.config().timeout(PATIENCE)).unwrap();
            let mut lock = Lock::on(Arc::new(Mutex::new(link)), b"job", options()).unwrap();
            lock.acquire().unwrap();
            let _: () = match taken_over {
                false => con.set("lock:job", "thief").unwrap(),
                true => con.del("lock:job").unwrap(),
            };
            if taken_over {
                // Another grant follows one that was never given back.
                let options = Terms { record: recorded, ..options() };
                let mut other = Lock::on(server.link(), b"job", options).unwrap();
                other.acquire().unwrap();
                other.forget();
            }
            proxy.break_next("EVALSHA", Fault::DropReply, 1);
            let asked = Instant::now();
            let released = lock.release();
            // The first of three times was in vain.
            let took = asked.elapsed().saturating_sub(LOST);
            assert_eq!(proxy.left(), 0);
            let _: () = con.del("lock:job").unwrap();
            (took, released)
        });
        assert!(!released.unwrap(), "{taken_over}, {recorded}");
    }
}

#[test]
fn no_call_has_more_time_than_one() {
    let server = Server::start();
    let patience = Duration::from_secs(2);
    let most = patience * 3 / 2;
    let in_time = |act: &str, call: &mut dyn FnMut()| {
        let begun = Instant::now();
        call();
        assert!(begun.elapsed() < most, "{act}: {:?}", begun.elapsed());
    };
    let ttl = Ttl::Auto { least: Duration::from_secs(5), most: Duration::from_secs(60) };
    let options = Terms { ttl, confirm: 1, ..Terms::new(TTL) };
    let link = Arc::new(Mutex::new(Link::new(server.config().timeout(patience)).unwrap()));
    let mut learns = Lock::on(Arc::clone(&link), b"job", options).unwrap();
    let mut waits = Lock::new(server.config(), b"job", TTL).unwrap();
    server.signal("STOP");
    in_time("a lock that learns", &mut || assert!(learns.acquire().is_err()));
    in_time("a wait", &mut || {
        let budget = Duration::from_millis(500);
        assert!(waits.acquire_within(budget, &mut |_| true).is_err());
    });
    server.signal("CONT");
    let proxy = Proxy::start(&server.socket());
    let link = Link::new(proxy.config().timeout(patience)).unwrap();
    let options = Terms { confirm: 1, ..Terms::new(TTL) };
    let mut confirmed = Lock::on(Arc::new(Mutex::new(link)), b"other", options).unwrap();
    proxy.break_next("WAIT", Fault::DropReply, 99);
    in_time("a lock to be confirmed", &mut || assert!(confirmed.acquire().is_err()));
}

#[test]
fn what_stays_unknown_is_an_unknown_and_in_time() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut lock = lock(&proxy);
    lock.acquire().unwrap();
    proxy.break_next("EVALSHA", Fault::DropReply, 99);
    let begun = Instant::now();
    let e = lock.extend(None).unwrap_err();
    assert!(begun.elapsed() < PATIENCE * 5 / 2, "{:?}", begun.elapsed());
    assert!(e.is_unknown() && e.to_string().contains("tried "), "{e}");
    assert!(lock.is_held(), "until its own deadline");
    proxy.break_next("EVALSHA", Fault::DropReply, 0);
    assert!(lock.release().unwrap());
}

#[test]
fn a_tls_server_that_does_not_shake_hands_has_no_more_time_than_another() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}", silent.local_addr().unwrap());
    let config = Config::from_url(&url).unwrap().timeout(PATIENCE);
    let (told, tell) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let begun = Instant::now();
        let error = Lock::new(config, b"job", TTL).unwrap().acquire().unwrap_err();
        told.send((error, begun.elapsed()))
    });
    let (error, took) = tell.recv_timeout(PATIENCE * 10).unwrap();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(took < PATIENCE * 5 / 2, "{took:?}");
}

fn stale(con: &mut redis::Connection, tags: u32) {
    for i in 0..tags {
        let _: () = con.sadd(format!("tag:{i}"), (0..20).collect::<Vec<u32>>()).unwrap();
        age(con, format!("tag:{i}"), 60);
    }
}

fn patient() -> Options {
    let (verify, lock_ttl) = (Duration::from_millis(50), Duration::from_secs(10));
    Options { verify, lock_ttl, trust_mapping: true, ..Options::default() }
}

#[test]
fn a_sweep_outlasts_a_server_out_of_reach() {
    let server = Server::start();
    stale(&mut server.connect(), 500);
    let mut sweep = Sweep::new(server.config().timeout(PATIENCE), patient()).unwrap();
    let mut outage = None;
    let ended = sweep.run(&mut |progress| {
        if outage.is_none() && progress.report.references_removed > 0 {
            server.signal("STOP");
            let pid = server.pid();
            outage = Some(std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(2));
                support::signal(pid, "CONT");
            }));
        }
        Flow::Continue
    });
    outage.unwrap().join().unwrap();
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert!(report.complete && report.duration > Duration::from_secs(2), "{report:?}");
    assert_eq!(run::<u64>(&mut server.connect(), "EXISTS tag:0 tag:499"), 0);
}

#[test]
fn a_sweep_that_waits_outlasts_connections_that_are_cut_again_and_again() {
    let server = Server::start();
    stale(&mut server.connect(), 5);
    let (verify, lock_ttl) = (Duration::from_secs(4), Duration::from_secs(2));
    let options = Options { verify, lock_ttl, ..patient() };
    let mut sweep = Sweep::new(server.config(), options).unwrap();
    let (mut other, mut cut, mut cuts) = (server.connect(), Instant::now(), 0);
    let ended = sweep.run(&mut |progress| {
        if progress.report.references_removed == 100 && cut.elapsed() > Duration::from_millis(300) {
            cuts += run::<i64>(&mut other, "CLIENT KILL TYPE normal SKIPME yes");
            cut = Instant::now();
        }
        Flow::Continue
    });
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert!(report.complete && cuts > 5, "{cuts}: {report:?}");
}

#[test]
fn a_sweep_outlasts_a_server_that_has_no_room_for_it() {
    let server = Server::start();
    stale(&mut server.connect(), 500);
    let options = Options { grace: Duration::from_secs(1), ..patient() };
    let mut sweep = Sweep::new(server.config(), options).unwrap();
    let (mut con, mut full) = (Some(server.connect()), None);
    let ended = sweep.run(&mut |progress| {
        if progress.report.references_removed > 0
            && let Some(mut con) = con.take()
        {
            let _: () = run(&mut con, "CONFIG SET maxclients 1");
            let _: () = run(&mut con, "CLIENT KILL TYPE normal SKIPME yes");
            full = Some(std::thread::spawn(move || {
                until("it was refused", || {
                    let stats: String = run(&mut con, "INFO stats");
                    let told =
                        |line: &str| line.strip_prefix("rejected_connections:")?.parse().ok();
                    stats.lines().find_map(told).is_some_and(|times: u64| times > 2)
                });
                let _: () = run(&mut con, "CONFIG SET maxclients 100");
            }));
        }
        Flow::Continue
    });
    full.unwrap().join().unwrap();
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert!(report.complete, "{report:?}");
    assert_eq!(run::<u64>(&mut server.connect(), "EXISTS tag:0 tag:499"), 0);
}

#[test]
fn what_a_replica_answers_is_not_heard() {
    for cut in [true, false] {
        a_server_is_a_replica_for_a_while(cut);
    }
}

/// And cuts its connections then, or keeps them.
fn a_server_is_a_replica_for_a_while(cut: bool) {
    let server = Server::start();
    stale(&mut server.connect(), 500);
    let options = Options { grace: Duration::from_secs(1), ..patient() };
    let mut sweep = Sweep::new(server.config(), options).unwrap();
    let mut con = server.connect();
    let mut since = None;
    let ended = sweep.run(&mut |progress| {
        if progress.report.references_removed == 0 {
            return Flow::Continue;
        }
        let looks = since.get_or_insert(0);
        *looks += 1;
        if *looks == 1 {
            let _: () = run(&mut con, "REPLICAOF 127.0.0.1 1");
            if cut {
                let _: () = run(&mut con, "CLIENT KILL TYPE normal SKIPME yes");
            }
        } else if *looks == 9 {
            let _: () = run(&mut con, "REPLICAOF NO ONE");
        }
        Flow::Continue
    });
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert!(report.complete, "{report:?}");
    assert_eq!(run::<u64>(&mut con, "EXISTS tag:0 tag:499"), 0, "{cut} {report:?}");
}

#[test]
fn a_server_that_was_restarted_is_another_one() {
    let mut server = Server::start();
    stale(&mut server.connect(), 500);
    let mut sweep = Sweep::new(server.config(), patient()).unwrap();
    let mut restarted = false;
    let ended = sweep.run(&mut |progress| {
        if !restarted && progress.report.references_removed > 0 {
            server.restart();
            stale(&mut server.connect(), 500);
            // As if it were still ours.
            let _: () = server.connect().set("lock:cache_tag_cleanup", "ours").unwrap();
            restarted = true;
        }
        Flow::Continue
    });
    let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
    assert_eq!(report.reason, Reason::Lost, "{report:?}");
    assert!(report.warnings[0].contains("restarted"), "{report:?}");
    assert_eq!(run::<u64>(&mut server.connect(), "SCARD tag:0"), 20);
}

#[test]
fn a_sweep_whose_answers_are_lost_does_the_same_and_loses_nothing() {
    for fault in [Fault::DropReply, Fault::CloseAfter, Fault::CloseBefore] {
        let server = Server::start();
        let proxy = Proxy::start(&server.socket());
        let mut con = server.connect();
        for i in 0..300 {
            let _: () = con.set(format!("item:{i}:live"), "x").unwrap();
            let members = [format!("item:{i}:live"), format!("item:{i}:gone")];
            let _: () = con.sadd(format!("tag:{i}"), &members).unwrap();
            age(&mut con, format!("tag:{i}"), 60);
        }
        for i in 300..400 {
            let _: () = con.sadd(format!("tag:{i}"), "item:gone").unwrap();
            age(&mut con, format!("tag:{i}"), 60);
        }
        let options = Options {
            grace: Duration::from_secs(1),
            verify: Duration::from_millis(50),
            lock_ttl: Duration::from_secs(5),
            ..Options::default()
        };
        let mut sweep = Sweep::new(proxy.config().timeout(PATIENCE), options).unwrap();
        let mut struck = 0;
        let ended = sweep.run(&mut |_| {
            if proxy.left() == 0 && struck < 5 {
                struck += 1;
                proxy.break_next(
                    ["SSCAN", "EVALSHA", "EXISTS", "SCAN", "OBJECT"][struck - 1],
                    fault,
                    1,
                );
            }
            Flow::Continue
        });
        let Ended::Swept(report) = ended.unwrap() else { panic!("held") };
        assert!(report.complete && struck > 1, "{fault:?}: {report:?}");
        let figures = (report.references_removed, report.tags_pruned, report.tags_removed);
        assert_eq!(figures, (400, 300, 100), "{fault:?}: {report:?}");
        assert_eq!((report.tags_seen, report.references_checked), (400, 700), "{fault:?}");
        for i in 0..300 {
            let left: Vec<String> = con.smembers(format!("tag:{i}")).unwrap();
            assert_eq!(left, [format!("item:{i}:live")], "{fault:?}");
        }
        until("the lock is free", || !run::<bool>(&mut con, "EXISTS lock:cache_tag_cleanup"));
    }
}

#[test]
fn a_lease_whose_shortening_nobody_confirms_is_believed_in_no_longer_than_that() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut lock = lock(&proxy);
    lock.acquire().unwrap();
    proxy.break_next("EVALSHA", Fault::DropReply, 1000);
    assert!(lock.extend(Some(Duration::from_secs(2))).unwrap_err().is_unknown());
    assert!(lock.remaining().unwrap() < Duration::from_secs(2));
}

#[test]
fn who_asked_in_vain_for_less_time_takes_the_lock_anew_all_the_same() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let outcome = unstalled(|| {
        let mut lock = lock(&proxy);
        lock.acquire().unwrap();
        proxy.break_next("EVALSHA", Fault::CloseBefore, 1000);
        assert!(lock.extend(Some(Duration::from_millis(100))).is_err());
        proxy.break_next("EVALSHA", Fault::CloseBefore, 0);
        until("it is over", || !lock.is_held());
        let left = run::<i64>(&mut server.connect(), "PTTL lock:job");
        assert!(left > 20_000, "but not on the server");
        let asked = Instant::now();
        let outcome = lock.acquire().unwrap();
        let took = asked.elapsed();
        let _: () = run(&mut server.connect(), "DEL lock:job");
        (took, outcome)
    });
    assert!(matches!(outcome, Outcome::Acquired { .. }), "{outcome:?}");
}

#[test]
fn a_wait_ends_in_time_whatever_comes_before_it() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let ttl = Ttl::Auto { least: Duration::from_secs(1), most: Duration::from_secs(60) };
    let terms = Terms { ttl, ..Terms::new(TTL) };
    let link = Arc::new(Mutex::new(Link::new(proxy.config().timeout(TTL)).unwrap()));
    let mut lock = Lock::on(link, b"job", terms).unwrap();
    lock.status().unwrap();
    proxy.break_next("\r\n", Fault::DropReply, 1000);
    let begun = Instant::now();
    assert!(lock.acquire_within(Duration::from_millis(50), &mut |_| true).is_err());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_grant_that_is_over_when_it_is_told_and_cannot_be_extended_is_a_loss() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let (ttl, timeout) = (Duration::from_millis(600), Duration::from_secs(6));
    let mut lock = Lock::new(proxy.config().timeout(timeout), b"job", ttl).unwrap();
    lock.acquire().unwrap();
    lock.extend(None).unwrap();
    lock.release().unwrap();
    proxy.break_next("EVALSHA", Fault::Delay(1000), 2);
    let begun = Instant::now();
    assert_eq!(lock.acquire().unwrap_err().kind(), ErrorKind::Lost);
    assert!(begun.elapsed() < timeout, "{:?}", begun.elapsed());
}
