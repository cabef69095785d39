//! Renewal by a watchdog, on a private server: what it keeps, what it cannot keep, and who is told.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::proxy::{Fault, Proxy};
use support::{Server, run, until};
use tagsweep::Config;
use tagsweep::connect::Link;
use tagsweep::lock::{
    Lock, LossReason, Options, Outcome, SharedLink, Watchdog, force_release, status,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn take(lock: &mut Lock) -> Option<u64> {
    match lock.acquire().unwrap() {
        Outcome::Acquired { fence } => Some(fence),
        Outcome::Held(_) => None,
    }
}

/// A lock that a watchdog renews.
fn renewed(server: &Server, watchdog: &Watchdog, ttl: Duration) -> Lock {
    let options = Options { renew: Some(watchdog.clone()), ..Options::new(ttl) };
    Lock::on(server.link(), b"a", options).unwrap()
}

#[test]
fn a_lease_on_a_server_that_is_far_away_is_renewed() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let config = Config { db: 1, ..proxy.config() };
    let link = Arc::new(Mutex::new(Link::new(config).unwrap()));
    let options = Options { renew: Some(Watchdog::new()), ..Options::new(MS(6000)) };
    let mut lock = Lock::on(link, b"a", options).unwrap();
    take(&mut lock).unwrap();
    // A greeting takes longer than a renewal may.
    proxy.break_next("SELECT", Fault::Delay(700), u32::MAX);
    let begun = Instant::now();
    until("the first lease is over", || begun.elapsed() > MS(7000));
    assert!(lock.is_held(), "{:?}", lock.lost());
}

#[test]
fn a_restored_lease_is_renewed_once_it_is_known_to_be_ours() {
    let server = Server::start();
    let mut first = Lock::new(server.config(), b"a", MS(2000)).unwrap();
    take(&mut first).unwrap();
    let owner = first.owner().unwrap().to_vec();
    first.forget();
    let options = Options { renew: Some(Watchdog::new()), ..Options::new(MS(2000)) };
    let mut restored = Lock::restore(server.link(), b"a", &owner, options).unwrap();
    assert!(restored.verify().unwrap());
    let begun = Instant::now();
    until("two lives are over", || begun.elapsed() > MS(4500));
    assert!(restored.is_held() && restored.release().unwrap());
}

#[test]
fn a_restored_lease_is_renewed_before_what_it_has_left_is_over() {
    let server = Server::start();
    let mut lock = Lock::on(server.link(), b"a", Options::new(MS(2000))).unwrap();
    take(&mut lock).unwrap();
    let options = Options { renew: Some(Watchdog::new()), ..Options::new(MS(60_000)) };
    let owner = lock.owner().unwrap().to_vec();
    lock.forget();
    let mut lock = Lock::restore(server.link(), b"a", &owner, options).unwrap();
    assert!(lock.verify().unwrap());
    let begun = Instant::now();
    until("its first life is over", || begun.elapsed() > MS(3000));
    assert!(lock.is_held() && lock.verify().unwrap());
}

#[test]
fn what_a_restored_lease_may_and_must_counts_from_its_grant() {
    let server = Server::start();
    let mut con = server.connect();
    let heir = |options: Options| {
        let mut first = Lock::new(server.config(), b"a", MS(10_000)).unwrap();
        take(&mut first).unwrap();
        let (granted, owner) = (Instant::now(), first.owner().unwrap().to_vec());
        first.forget();
        until("it has been held for a while", || granted.elapsed() > MS(600));
        Lock::restore(server.link(), b"a", &owner, options).unwrap()
    };
    let terms = || Options::new(MS(10_000));
    let mut lock = heir(Options { at_least: MS(5000), ..terms() });
    assert!(lock.release().unwrap());
    let left: i64 = run(&mut con, "PTTL lock:a");
    assert!((1..=4400).contains(&left), "{left}");
    let _: () = run(&mut con, "DEL lock:a");
    drop(heir(Options { at_least: MS(500), ..terms() }));
    assert_eq!(run::<i64>(&mut con, "EXISTS lock:a"), 0);
    let mut lock = heir(Options { max_hold: Some(MS(500)), ..terms() });
    assert!(!lock.extend(None).unwrap() && !lock.is_held());
    let mut lock = heir(Options { max_hold: Some(MS(5000)), ..terms() });
    assert!(lock.extend(None).unwrap() && lock.remaining().unwrap() <= MS(4400));
}

#[test]
fn leases_on_a_server_that_does_not_answer_cost_no_lease_on_another() {
    let (silent, server) = (Server::start(), Server::start());
    let watchdog = Watchdog::new();
    let renewed = |link: &SharedLink, name: &[u8], ttl| {
        let options = Options { renew: Some(watchdog.clone()), ..Options::new(ttl) };
        let mut lock = Lock::on(Arc::clone(link), name, options).unwrap();
        take(&mut lock).unwrap();
        lock
    };
    let link = silent.link();
    let mut others: Vec<Lock> = (0..8u8).map(|n| renewed(&link, &[n], MS(6000))).collect();
    let mut ours = renewed(&server.link(), b"a", MS(1500));
    silent.signal("STOP");
    let begun = Instant::now();
    until("all of them were due", || begun.elapsed() > MS(6000));
    let held = ours.is_held() && ours.verify().unwrap();
    // And at the end they do not cost a second each.
    let begun = Instant::now();
    others.clear();
    let farewell = begun.elapsed();
    silent.signal("CONT");
    assert!(held, "the lease on the server that answers");
    assert!(farewell < MS(4000), "{farewell:?}");
}

#[test]
fn leases_that_end_no_later_on_a_silent_server_cost_none_on_another_either() {
    let (silent, server) = (Server::start(), Server::start());
    let watchdog = Watchdog::new();
    let link = silent.link();
    let mut others: Vec<Lock> = Vec::new();
    for n in 0..3u8 {
        let options = Options { renew: Some(watchdog.clone()), ..Options::new(MS(2000)) };
        others.push(Lock::on(Arc::clone(&link), &[n], options).unwrap());
    }
    assert!(others.iter_mut().all(|lock| take(lock).is_some()));
    let mut ours = renewed(&server, &watchdog, MS(2000));
    take(&mut ours).unwrap();
    silent.signal("STOP");
    let begun = Instant::now();
    until("two lives are over", || begun.elapsed() > MS(4500));
    let held = ours.is_held() && ours.verify().unwrap();
    others.iter_mut().for_each(Lock::forget);
    silent.signal("CONT");
    assert!(held);
}

#[test]
fn a_shorter_life_is_renewed_in_time() {
    let server = Server::start();
    let mut lock = renewed(&server, &Watchdog::new(), MS(9000));
    take(&mut lock).unwrap();
    assert!(lock.extend(Some(MS(2000))).unwrap());
    let begun = Instant::now();
    until("two lives are over", || begun.elapsed() > MS(4500));
    assert!(lock.is_held() && lock.verify().unwrap());
    let left = run::<i64>(&mut server.connect(), "PTTL lock:a");
    assert!(left <= 2000, "{left}");
}

#[test]
fn whoever_fails_when_told_costs_no_other_lease() {
    let server = Server::start();
    let watchdog = Watchdog::new();
    let [mut lost, mut kept] = [b"lost", b"kept"].map(|name| {
        let options = Options { renew: Some(watchdog.clone()), ..Options::new(MS(1500)) };
        Lock::on(server.link(), name, options).unwrap()
    });
    let (tell, told) = channel();
    lost.on_lost(move |reason| {
        tell.send(reason).unwrap();
        // A panic without its report, which takes longer than a lease lives.
        std::panic::resume_unwind(Box::new("whoever was told failed"));
    });
    assert!(take(&mut lost).is_some() && take(&mut kept).is_some());
    let _: () = run(&mut server.connect(), "DEL lock:lost");
    told.recv_timeout(MS(5000)).unwrap();
    let begun = Instant::now();
    until("two lives are over", || begun.elapsed() > MS(3500));
    assert!(kept.is_held() && kept.verify().unwrap());
}

#[test]
fn a_watchdog_that_was_closed_watches_again() {
    let server = Server::start();
    let watchdog = Watchdog::new();
    let mut first = renewed(&server, &watchdog, MS(1500));
    let mut others: Vec<Lock> = Vec::new();
    for n in 0..20u8 {
        take(&mut first).unwrap();
        let options = Options { renew: Some(watchdog.clone()), ..Options::new(MS(1500)) };
        others.push(Lock::on(server.link(), &[n], options).unwrap());
        // Its thread may not have ended yet.
        watchdog.close(Duration::ZERO);
        take(&mut others[usize::from(n)]).unwrap();
        first.forget();
        let _: () = run(&mut server.connect(), "DEL lock:a");
        if n % 5 == 4 {
            let begun = Instant::now();
            until("a life is over", || begun.elapsed() > MS(1600));
            assert!(others.last().unwrap().is_held(), "{n}");
        }
    }
}

#[test]
fn nothing_is_told_of_a_lease_any_more_when_its_lock_is_gone() {
    let server = Server::start();
    let mut lock = renewed(&server, &Watchdog::new(), MS(300));
    let (tell, told) = channel();
    lock.on_lost(move |reason| {
        tell.send(reason).unwrap();
        std::thread::sleep(MS(300)); // what it does takes a while
        tell.send(reason).unwrap();
    });
    take(&mut lock).unwrap();
    run::<()>(&mut server.connect(), "SET lock:a thief");
    told.recv().unwrap();
    assert!(!lock.is_held());
    drop(lock);
    assert!(told.try_recv().is_ok(), "it was waited for");
}

#[test]
fn a_loss_is_told_and_counted_once_whoever_finds_it() {
    let server = Server::start();
    let mut other = server.connect();
    let force = |lock: &Lock| drop(force_release(&server.link(), b"a", lock.fence()).unwrap());
    let mut by = |act: &str| drop(run::<redis::Value>(&mut other, act));
    for reason in [LossReason::Expired, LossReason::Stolen, LossReason::Forced, LossReason::MaxHold]
    {
        let max_hold = (reason == LossReason::MaxHold).then_some(MS(600));
        let renew = Some(Watchdog::new());
        let options = Options { renew, max_hold, record: true, ..Options::new(MS(1500)) };
        let mut lock = Lock::on(server.link(), b"a", options).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        lock.on_lost(move |reason| tell.lock().unwrap().push(reason));
        take(&mut lock).unwrap();
        match reason {
            LossReason::Expired => by("DEL lock:a"),
            LossReason::Stolen => by("SET lock:a thief"),
            LossReason::Forced => force(&lock),
            _ => {}
        }
        until("the watchdog has told", || !told.lock().unwrap().is_empty());
        assert_eq!(lock.remaining(), Some(MS(0)), "there is a lease, and nothing left of it");
        assert!(!lock.extend(None).unwrap() && !lock.verify().unwrap(), "{reason:?}");
        assert!(!lock.release().unwrap() && !lock.is_held());
        assert_eq!(*told.lock().unwrap(), [reason]);
        assert_eq!(lock.stats().lost.values().sum::<u64>(), 1);
        assert_eq!(lock.stats().lost.get(&reason), Some(&1));
        by("DEL lock:a");
    }
    let losses = "HMGET {lock:a}:stats lost.expired lost.stolen lost.forced lost.max_hold";
    assert_eq!(run::<Vec<u64>>(&mut other, losses), [1, 1, 1, 1]);
}

#[test]
fn who_is_told_may_use_the_client_whatever_the_holder_does_meanwhile() {
    let server = Server::start();
    let mut other = server.connect();
    for renew in [Some(Watchdog::new()), None] {
        let watched = renew.is_some();
        let link = server.link();
        let options = Options { renew, ..Options::new(MS(300)) };
        let mut lock = Lock::on(Arc::clone(&link), b"a", options).unwrap();
        let ((tell, told), (go, may_go)) = (channel(), channel());
        let may_go = Mutex::new(may_go);
        let (begin, may_begin) = channel();
        lock.on_lost(move |_| {
            tell.send(false).unwrap();
            let _: Result<(), _> = may_go.lock().unwrap().recv_timeout(MS(200));
            status(&link, b"a").unwrap();
            tell.send(true).unwrap();
        });
        take(&mut lock).unwrap();
        run::<()>(&mut other, "SET lock:a thief");
        let holder = std::thread::spawn(move || {
            if watched {
                may_begin.recv().unwrap();
            } else {
                go.send(()).unwrap();
            }
            let done = if watched { lock.release() } else { lock.extend(None) };
            drop(go);
            done.unwrap()
        });
        // A lease that is given up before anybody tells of its loss is nobody's loss.
        assert_eq!(told.recv_timeout(MS(5000)), Ok(false), "renewed: {watched}");
        let _ = begin.send(());
        assert_eq!(told.recv_timeout(MS(5000)), Ok(true), "renewed: {watched}");
        assert!(!holder.join().unwrap());
        run::<()>(&mut other, "SET lock:a thief XX PX 1");
        until("it is free", || !run::<bool>(&mut other, "EXISTS lock:a"));
    }
}

#[test]
fn a_lease_whose_grant_came_late_is_renewed_in_time() {
    let server = Server::start();
    // The server goes on when it is told to, and that may be too late: then the scene is set again.
    let in_time = |_| {
        // So patient that the first request is the one that is answered.
        let link = Link::new(server.config().timeout(MS(9000))).unwrap();
        let options = Options { renew: Some(Watchdog::new()), ..Options::new(MS(3000)) };
        let mut lock = Lock::on(Arc::new(Mutex::new(link)), b"a", options).unwrap();
        take(&mut lock).unwrap();
        assert!(lock.release().unwrap());
        server.signal("STOP");
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| take(&mut lock).map(|_| lock));
            until("more than two thirds of a life are over", || begun.elapsed() > MS(2050));
            server.signal("CONT");
            let took = begun.elapsed();
            let lock = taking.join().unwrap().unwrap();
            (took < MS(2250)).then_some((begun, lock))
        })
    };
    let (begun, lock) = (0..5).find_map(in_time).unwrap();
    until("another life is over", || begun.elapsed() > MS(5500));
    assert!(lock.is_held(), "{:?}", lock.lost());
}

#[test]
fn a_lease_that_is_held_for_as_long_as_it_may_be_is_lost_for_that_reason() {
    let server = Server::start();
    let (ttl, watchdog) = (MS(1500), Watchdog::new());
    let reasons: Vec<_> = (0..12)
        .map(|n| {
            let (said, heard) = channel();
            let hold = MS(1500 + 40 * n);
            let options = Options {
                renew: Some(watchdog.clone()),
                max_hold: Some(hold),
                ..Options::new(ttl)
            };
            let mut lock = Lock::on(server.link(), format!("job{n}").as_bytes(), options).unwrap();
            lock.on_lost(move |reason| said.send(reason).unwrap());
            take(&mut lock).unwrap();
            (lock, heard)
        })
        .collect();
    for (_lock, heard) in reasons {
        assert_eq!(heard.recv_timeout(Duration::from_secs(5)), Ok(LossReason::MaxHold));
    }
}

#[test]
fn a_loss_is_told_as_what_it_is_though_the_holder_finds_it_meanwhile() {
    let server = Server::start();
    let mut lock = renewed(&server, &Watchdog::new(), MS(1500));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    lock.on_lost(move |reason| tell.lock().unwrap().push(reason));
    take(&mut lock).unwrap();
    assert!(force_release(&server.link(), b"a", lock.fence()).is_ok());
    // The watchdog knows that it is lost, and asks why.
    while lock.lost().is_none() {
        std::hint::spin_loop();
    }
    assert_eq!(lock.give_up_lost(), Some(LossReason::Forced));
    assert_eq!(*told.lock().unwrap(), [LossReason::Forced]);
    assert_eq!(lock.last_loss(), Some(LossReason::Forced));
}
