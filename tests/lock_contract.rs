//! What the lock promises, on a real server.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use redis::Commands;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{ASIDE, Server, run, unstalled, until};
use tagsweep::lock::{
    Lock, LossReason, Options, Outcome, RunEnd, Watchdog, force_release, perform, protocol, status,
};
use tagsweep::{Config, ErrorKind};

const TTL: Duration = Duration::from_secs(30);

fn lock(server: &Server) -> Lock {
    Lock::new(server.config(), b"job", TTL).unwrap()
}

fn fence(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Acquired { fence } => fence,
        Outcome::Held(holder) => panic!("held: {holder}"),
    }
}

#[test]
fn one_contender_at_a_time() {
    let server = Server::start();
    let (mut a, mut b) = (lock(&server), lock(&server));
    let first = fence(a.acquire().unwrap());
    assert!(a.is_held() && a.remaining().unwrap() > Duration::from_secs(29));
    let Outcome::Held(holder) = b.acquire().unwrap() else { panic!("two holders") };
    assert_eq!((holder.fence, holder.pid), (Some(first), Some(std::process::id())));
    assert!(!b.release().unwrap(), "only the holder releases");
    assert!(a.release().unwrap());
    assert!(!a.is_held() && a.fence().is_none());
    assert!(fence(b.acquire().unwrap()) > first);
}

#[test]
fn acquire_extend_and_release_are_one_round_trip_each() {
    let server = Server::start();
    let mut watch = server.connect();
    let mut warm = lock(&server);
    warm.acquire().unwrap();
    warm.extend(None).unwrap();
    warm.release().unwrap();
    let _: () = run(&mut watch, "CONFIG RESETSTAT");
    let mut lock = lock(&server);
    lock.acquire().unwrap();
    lock.extend(None).unwrap();
    lock.release().unwrap();
    let stats: String = run(&mut watch, "INFO commandstats");
    assert!(stats.contains("cmdstat_evalsha:calls=3"), "{stats}");
    assert!(!stats.contains("cmdstat_eval:"), "{stats}");
}

#[test]
fn an_old_php_instance_and_ours_exclude_each_other() {
    let server = Server::start();
    let mut php = server.connect();
    let mut ours = lock(&server);
    let _: () = run(&mut php, "SET lock:job 65f1c2 NX EX 60");
    let Outcome::Held(holder) = ours.acquire().unwrap() else { panic!("two holders") };
    assert_eq!(holder.fence, None);
    let _: () = run(&mut php, "DEL lock:job");
    fence(ours.acquire().unwrap());
    assert_eq!(run::<Option<String>>(&mut php, "SET lock:job 65f1c2 NX EX 60"), None);
    assert!(run::<i64>(&mut php, "PTTL lock:job") > 29_000);
}

#[test]
fn fences_grow_over_loss_of_all_data() {
    let mut server = Server::start();
    let mut lock = lock(&server);
    let mut last = 0;
    for lose in ["DEL lock:job", "FLUSHALL", "restart", "SET {lock:job}:fence nonsense", ""] {
        let next = fence(lock.acquire().unwrap());
        assert!(next > last, "{next} after {last}");
        last = next;
        lock.release().unwrap();
        match lose {
            "" => {}
            "restart" => server.restart(),
            command => run::<()>(&mut server.connect(), command),
        }
    }
    // Faster than the clock ticks, and after a clock that was ahead.
    let ahead = last + 3_600_000_000;
    let _: () = server.connect().set("{lock:job}:fence", ahead).unwrap();
    for step in 1..=3 {
        assert_eq!(fence(lock.acquire().unwrap()), ahead + step);
        lock.release().unwrap();
    }
}

#[test]
fn a_lease_ends_with_its_ttl_and_is_then_nobodys() {
    let server = Server::start();
    let mut a = Lock::new(server.config(), b"job", Duration::from_secs(1)).unwrap();
    let mut b = lock(&server);
    fence(a.acquire().unwrap());
    until("b takes over", || matches!(b.acquire().unwrap(), Outcome::Acquired { .. }));
    assert!(!a.is_held(), "the holder knows without asking");
    assert!(!a.extend(None).unwrap(), "extend does not take a lost lock again");
    assert!(!a.release().unwrap());
    assert!(b.is_held() && b.extend(None).unwrap(), "b is untouched");
}

#[test]
fn a_loss_has_a_reason() {
    let server = Server::start();
    let mut other = server.connect();
    let memory = ["CONFIG SET maxmemory-policy allkeys-random", "CONFIG SET maxmemory 1", "DBSIZE"];
    let value = "SET lock:job somebody";
    for (acts, reason) in [
        (["DEL lock:job"].as_slice(), LossReason::Expired),
        (&["FLUSHALL"], LossReason::Failover),
        (&[value], LossReason::Stolen),
        (&memory, LossReason::Evicted),
    ] {
        let (lock, told) = unstalled(|| {
            let told = Arc::new(Mutex::new(Vec::new()));
            let mut lock = lock(&server);
            let tell = Arc::clone(&told);
            lock.on_lost(move |reason| tell.lock().unwrap().push(reason));
            fence(lock.acquire().unwrap());
            acts.iter().for_each(|act| drop(run::<redis::Value>(&mut other, act)));
            if reason == LossReason::Evicted {
                // It evicts a little with each command.
                until("the key is evicted", || !run::<bool>(&mut other, "EXISTS lock:job"));
                let _: () = run(&mut other, "CONFIG SET maxmemory 0");
            }
            let asked = Instant::now();
            assert!(!lock.extend(None).unwrap());
            let took = asked.elapsed();
            let _: () = run(&mut other, "DEL lock:job");
            (took, (lock, told))
        });
        assert_eq!(*told.lock().unwrap(), [reason]);
        assert_eq!(lock.stats().lost.get(&reason), Some(&1));
    }
}

#[test]
fn nobody_counts_on_from_a_fence_that_is_too_large() {
    let server = Server::start();
    let mut other = server.connect();
    let _: () = run(&mut other, "SET {lock:job}:fence 9007199254740992|30000");
    let e = lock(&server).acquire().unwrap_err();
    assert!(e.to_string().contains("delete the fence key"), "{e}");
    assert!(!run::<bool>(&mut other, "EXISTS lock:job"));
    let kept: String = run(&mut other, "GET {lock:job}:fence");
    assert_eq!(kept, "9007199254740992|30000");
    let e = Lock::new(server.config(), b"job", Duration::from_millis(2)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
}

#[test]
fn extend_never_creates_and_shortens_only_when_told() {
    let server = Server::start();
    let mut other = server.connect();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    let _: () = run(&mut other, "PEXPIRE lock:job 90000");
    assert!(lock.extend(None).unwrap());
    assert!(run::<i64>(&mut other, "PTTL lock:job") > 80_000);
    assert!(lock.extend(Some(Duration::from_secs(2))).unwrap());
    assert!(run::<i64>(&mut other, "PTTL lock:job") <= 2000);
    assert!(lock.remaining().unwrap() < Duration::from_secs(2));
    let _: () = run(&mut other, "DEL lock:job");
    assert!(!lock.extend(None).unwrap());
    assert!(!run::<bool>(&mut other, "EXISTS lock:job"));
}

#[test]
fn a_replaced_value_is_not_ours_even_with_our_token() {
    let server = Server::start();
    let mut other = server.connect();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    let value = String::from_utf8(lock.owner().unwrap().to_vec()).unwrap();
    let token = value.split(':').next().unwrap().to_owned();
    // A late duplicate of our own acquire would leave our token with another fence.
    let _: () = other.set("lock:job", format!("{token}:1|h|1|x")).unwrap();
    assert!(!lock.extend(None).unwrap());
    assert!(!lock.release().unwrap());
    assert!(run::<bool>(&mut other, "EXISTS lock:job"));
}

#[test]
fn names_are_bytes_and_the_prefix_stands_before_them() {
    let server = Server::start();
    let mut other = server.connect();
    let long = vec![b'x'; 64 * 1024];
    for name in [b"a b\n\0*[?]\xff".as_slice(), b"{tag}x", &long] {
        let mut lock = Lock::new(server.config().prefix("app:"), name, TTL).unwrap();
        fence(lock.acquire().unwrap());
        let key = [b"app:lock:", name].concat();
        assert_eq!(lock.key(), key);
        assert!(other.exists::<_, bool>(&key).unwrap());
        assert!(lock.release().unwrap());
    }
    for name in [b"".as_slice(), &[b'x'; 64 * 1024 + 1]] {
        assert!(Lock::new(server.config(), name, TTL).unwrap_err().is_invalid());
    }
    for ttl in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        assert!(Lock::new(server.config(), b"a", ttl).unwrap_err().is_invalid());
    }
}

#[test]
fn dropping_a_lock_releases_it() {
    let server = Server::start();
    let mut held = lock(&server);
    fence(held.acquire().unwrap());
    drop(held);
    assert!(!run::<bool>(&mut server.connect(), "EXISTS lock:job"));
}

#[test]
fn faults_are_told_apart() {
    let server = Server::with(&["--requirepass", "canary-secret"]);
    let e = lock(&server).acquire().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
    let wrong = Config::from_url(&format!("{}?pass=wrong-canary", server.url())).unwrap();
    let e = Lock::new(wrong, b"job", TTL).unwrap().acquire().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(!format!("{e} {e:?}").contains("canary"), "{e:?}");
    let right = Config::from_url(&format!("{}?pass=canary-secret", server.url())).unwrap();
    let mut open = Lock::new(right.clone(), b"job", TTL).unwrap();
    fence(open.acquire().unwrap());

    let nowhere = Config::from_url("redis://127.0.0.1:1").unwrap();
    let e = Lock::new(nowhere, b"job", TTL).unwrap().acquire().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unreachable);
    let text = e.to_string();
    assert!(text.contains("redis://127.0.0.1:1/0") && text.contains("tried 3 times"), "{text}");

    let mut other = redis::Client::open(format!("{}?pass=canary-secret", server.url()))
        .unwrap()
        .get_connection()
        .unwrap();
    let _: () = run(&mut other, "LPUSH lock:list x");
    let e = Lock::new(right, b"list", TTL).unwrap().acquire().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::WrongType);
    assert!(e.to_string().contains("\"lock:list\""), "{e}");
}

#[test]
fn a_stopped_server_costs_no_more_than_the_timeout() {
    let server = Server::start();
    let patience = Duration::from_secs(1);
    let mut lock = Lock::new(server.config().timeout(patience), b"job", TTL).unwrap();
    fence(lock.acquire().unwrap());
    server.signal("STOP");
    let begun = Instant::now();
    let e = lock.extend(None).unwrap_err();
    assert!(e.is_unknown() || e.kind() == ErrorKind::Unreachable, "{e}");
    assert!(begun.elapsed() < patience * 5 / 2, "{:?}", begun.elapsed());
    assert!(lock.is_held(), "the lease lives on until its own deadline");
    server.signal("CONT");
    assert!(lock.extend(None).unwrap());
}

#[test]
fn works_without_memory_and_after_the_scripts_are_forgotten() {
    let server = Server::start();
    let mut other = server.connect();
    let mut lock = lock(&server);
    let _: () = run(&mut other, "CONFIG SET maxmemory 1");
    fence(lock.acquire().unwrap());
    let _: () = run(&mut other, "SCRIPT FLUSH");
    assert!(lock.extend(None).unwrap());
    assert!(lock.release().unwrap());
}

#[test]
fn without_memory_a_grant_is_closed_and_handed_over() {
    let server = Server::start();
    let mut other = server.connect();
    let options = || Options { record: true, ..Options::new(TTL) };
    let mut holder = Lock::on(server.link(), b"job", options()).unwrap();
    fence(holder.acquire().unwrap());
    let mut waiter = Lock::on(server.link(), b"job", options()).unwrap();
    let waiting = std::thread::spawn(move || {
        let outcome = waiter.acquire_within(TTL, &mut |_| true).unwrap();
        (fence(outcome), Instant::now(), waiter)
    });
    until("it waits", || run::<bool>(&mut other, "EXISTS {lock:job}:waiters"));
    let _: () = run(&mut other, "CONFIG SET maxmemory 1");
    let given = Instant::now();
    assert!(holder.release().unwrap());
    let (_, granted, mut waiter) = waiting.join().unwrap();
    // Its own look would come after 900 ms.
    assert!(granted - given < Duration::from_millis(600), "{:?}", granted - given);
    assert!(waiter.release().unwrap());
    assert!(!run::<String>(&mut other, "GET {lock:job}:fence").contains('+'));
    assert_eq!(run::<Option<u64>>(&mut other, "HGET {lock:job}:stats takeover"), None);
}

#[test]
fn a_grant_that_nobody_made_use_of_does_not_stay() {
    let server = Server::start();
    let mut other = server.connect();
    let options = Options { at_least: TTL, ..Options::new(TTL) };
    let mut lock = Lock::on(server.link(), b"job", options).unwrap();
    fence(lock.acquire().unwrap());
    assert!(lock.give_back_within(TTL).unwrap());
    assert!(!run::<bool>(&mut other, "EXISTS lock:job"));
}

#[test]
fn a_lease_that_is_given_back_elsewhere_was_held_since_it_was_granted() {
    let server = Server::start();
    let mut other = server.connect();
    let options = || Options { record: true, ..Options::new(TTL) };
    let mut lock = Lock::on(server.link(), b"job", options()).unwrap();
    fence(lock.acquire().unwrap());
    let owner = lock.owner().unwrap().to_vec();
    lock.forget();
    let begun = Instant::now();
    until("some time has passed", || begun.elapsed() > Duration::from_millis(300));
    let heir = || Lock::restore(server.link(), b"job", &owner, options()).unwrap();
    // Who has asked before knows it, too.
    let mut heir = unstalled(|| {
        let (mut heir, begun) = (heir(), Instant::now());
        assert!(heir.verify().unwrap());
        (begun.elapsed(), heir)
    });
    assert!(heir.release().unwrap());
    let runs: Vec<String> = run(&mut other, "LRANGE {lock:job}:runs 0 -1");
    let held: u64 = runs[0].rsplit('|').next().unwrap().parse().unwrap();
    assert!(held >= 300, "{runs:?}");
}

#[test]
fn the_shortest_wait_asks_whether_to_go_on() {
    let server = Server::start();
    let mut holder = lock(&server);
    fence(holder.acquire().unwrap());
    let mut asked = 0;
    let outcome = lock(&server).acquire_within(Duration::from_millis(45), &mut |_| {
        asked += 1;
        true
    });
    assert!(matches!(outcome.unwrap(), Outcome::Held(_)));
    assert!(asked > 0);
}

#[test]
fn asking_after_a_lease_never_ends_it() {
    let server = Server::start();
    let mut other = server.connect();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    let _: () = run(&mut other, "PERSIST lock:job");
    let owner = lock.owner().unwrap().to_vec();
    assert!(lock.verify().unwrap() && lock.is_owned_by(&owner).unwrap());
    assert_eq!(run::<i64>(&mut other, "PTTL lock:job"), -1);
}

#[test]
fn a_lease_that_may_not_be_held_longer_is_given_back() {
    let server = Server::start();
    let mut other = server.connect();
    let options = Options {
        max_hold: Some(Duration::from_millis(300)),
        ..Options::new(Duration::from_secs(20))
    };
    let mut lock = Lock::on(server.link(), b"job", options).unwrap();
    fence(lock.acquire().unwrap());
    assert!(run::<i64>(&mut other, "PTTL lock:job") <= 300);
    until("its time is over", || !lock.extend(None).unwrap());
    assert!(!lock.is_held());
    assert!(!run::<bool>(&mut other, "EXISTS lock:job"));
}

#[test]
fn a_lock_that_stays_for_a_time_was_given_back_all_the_same() {
    let server = Server::start();
    let mut other = server.connect();
    let at_least = Duration::from_millis(200);
    let options = Options { at_least, ..Options::new(Duration::from_secs(20)) };
    let mut first = Lock::on(server.link(), b"job", options).unwrap();
    fence(first.acquire().unwrap());
    let owner = first.owner().unwrap().to_vec();
    assert!(first.release().unwrap());
    // Nobody has it, and nobody can make it last.
    let terms = Options::new(Duration::from_secs(20));
    let mut heir = Lock::restore(server.link(), b"job", &owner, terms).unwrap();
    assert!(!heir.extend(None).unwrap() && !heir.is_owned_by(&owner).unwrap());
    assert!(run::<i64>(&mut other, "PTTL lock:job") <= 200);
    let mut next = lock(&server);
    until("it is free", || matches!(next.acquire().unwrap(), Outcome::Acquired { .. }));
    assert_eq!(run::<Option<u64>>(&mut other, "HGET {lock:job}:stats takeover"), None);
}

#[test]
fn a_grant_after_one_that_was_never_given_back_is_a_takeover_here_as_on_the_server() {
    let server = Server::start();
    let mut other = server.connect();
    // The server counts for whom keeps statistics there.
    for record in [true, false] {
        let options = Options { record, ..Options::new(TTL) };
        let mut next = Lock::on(server.link(), b"job", options).unwrap();
        let mut killed = lock(&server);
        fence(killed.acquire().unwrap());
        assert_eq!(killed.stats().takeovers, 0);
        let _: () = run(&mut other, "DEL lock:job");
        fence(next.acquire().unwrap());
        assert_eq!(next.stats().takeovers, 1);
        assert!(next.release().unwrap());
        fence(next.acquire().unwrap());
        assert_eq!(next.stats().takeovers, 1, "that was given back");
        assert!(next.release().unwrap());
        let counted = run::<Option<u64>>(&mut other, "HGET {lock:job}:stats takeover");
        assert_eq!(counted, Some(1), "not once more with what is told");
    }
}

#[test]
fn a_release_over_a_connection_that_died_tells_the_truth() {
    let server = Server::start();
    let mut other = server.connect();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    let _: () = run(&mut other, "SET lock:job another");
    let _: () = run(&mut other, "CLIENT KILL TYPE normal SKIPME yes");
    assert!(!lock.release().unwrap());
}

#[test]
fn a_server_that_accepts_nobody_is_not_waited_for_for_ever() {
    let server = Server::with(&["--tcp-backlog", "1"]);
    support::signal(server.pid(), "STOP");
    // The queue of a unix socket, filled.
    let address = UnixAddr::new(&server.socket()).unwrap();
    let mut queue = Vec::new();
    let is_full = (0..100).any(|_| {
        let (unix, at_once) = (AddressFamily::Unix, SockFlag::SOCK_NONBLOCK);
        queue.push(socket(unix, SockType::Stream, at_once, None).unwrap());
        connect(queue.last().unwrap().as_raw_fd(), &address) == Err(Errno::EAGAIN)
    });
    assert!(is_full);
    let config = server.config().timeout(Duration::from_millis(500));
    let begun = Instant::now();
    let mut lock = Lock::new(config, b"job", Duration::from_secs(1)).unwrap();
    assert!(lock.acquire().is_err());
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    support::signal(server.pid(), "CONT");
}

#[test]
fn a_grant_that_no_replica_confirms_is_given_back_at_once_and_within_the_wait() {
    let server = Server::start();
    let ttl = Duration::from_secs(20);
    let options = Options { at_least: ttl, confirm: 1, ..Options::new(ttl) };
    for budget in [Duration::ZERO, Duration::from_millis(600)] {
        let mut other = lock(&server);
        fence(other.acquire().unwrap());
        let mut lock = Lock::on(server.link(), b"job", options.clone()).unwrap();
        if budget.is_zero() {
            other.release().unwrap();
        }
        let begun = Instant::now();
        let mut free = Some(other);
        let e = lock.acquire_within(budget, &mut |_| {
            // At the last moment.
            if begun.elapsed() > budget / 2 {
                drop(free.take());
            }
            true
        });
        assert_eq!(e.unwrap_err().kind(), ErrorKind::Unconfirmed);
        let usual = server.config().timeout;
        let most = if budget.is_zero() { usual } else { budget } + Duration::from_secs(1);
        assert!(begun.elapsed() < most, "{:?}", begun.elapsed());
        assert!(!run::<bool>(&mut server.connect(), "EXISTS lock:job"), "nobody made use of it");
    }
}

#[test]
fn a_grant_is_confirmed_by_as_many_replicas_as_there_are() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::with(&["--port", &port.to_string(), "--repl-diskless-sync-delay", "0"]);
    let replica = Server::with(&["--replicaof", &format!("127.0.0.1 {port}")]);
    let mut con = server.connect();
    // The first write that it has may have come with the copy of all; the stream begins a second later.
    let (mut writes, mut came) = (0, 0);
    until("it follows", || {
        writes += 1;
        let _: () = con.set("write", writes).unwrap();
        let _: u32 = run(&mut con, "WAIT 1 100");
        came += u32::from(replica.connect().get("write") == Ok(writes));
        came > 1
    });
    let asking = |confirm| {
        let options = Options { confirm, ..Options::new(TTL) };
        Lock::on(server.link(), b"job", options).unwrap()
    };
    let mut lock = asking(1);
    fence(lock.acquire().unwrap());
    let theirs: Vec<u8> = replica.connect().get("lock:job").unwrap();
    assert_eq!(Some(theirs.as_slice()), lock.owner(), "at once");
    assert!(lock.release().unwrap());
    let e = asking(2).acquire().unwrap_err();
    assert!(e.kind() == ErrorKind::Unconfirmed && e.to_string().contains("1 of 2"), "{e}");
    replica.signal("STOP");
    assert_eq!(asking(1).acquire().unwrap_err().kind(), ErrorKind::Unconfirmed);
    replica.signal("CONT");
}

#[test]
fn a_lease_that_its_holder_made_longer_is_no_cause_for_a_warning() {
    let server = Server::start();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    let ttl = lock.ttl();
    let overlong = || status(&server.link(), b"job").unwrap().is_overlong();
    assert!(lock.extend(Some(10 * ttl)).unwrap() && !overlong());
    assert!(lock.extend(Some(ttl / 2)).unwrap() && lock.extend(None).unwrap() && !overlong());
    let _: () = run(&mut server.connect(), "PEXPIRE lock:job 100000000");
    assert!(overlong());
    assert!(lock.release().unwrap());
}

#[test]
fn a_server_that_became_a_replica_is_left_for_where_the_address_leads_now() {
    let (old, new) = (Server::start(), Server::start());
    let address = old.dir().join("address");
    let lead_to = |server: &Server| {
        let _ = std::fs::remove_file(&address);
        std::os::unix::fs::symlink(server.socket(), &address).unwrap();
    };
    lead_to(&old);
    let config = Config::from_url(&format!("unix://{}", address.display())).unwrap();
    let mut lock = Lock::new(config.clone(), b"job", TTL).unwrap();
    fence(lock.acquire().unwrap());
    let (told, tell) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut waiter = Lock::new(config, b"job", TTL).unwrap();
        told.send(waiter.acquire_within(Duration::from_secs(15), &mut |_| true)).unwrap();
    });
    until("it waits", || status(&old.link(), b"job").unwrap().waiting == 1);
    let held: Vec<u8> = old.connect().get("lock:job").unwrap();
    let _: () = new.connect().pset_ex("lock:job", held, 20_000).unwrap();
    lead_to(&new);
    let _: () = run(&mut old.connect(), "REPLICAOF 127.0.0.1 1");
    assert!(lock.extend(None).unwrap(), "the new primary has it");
    until("it waits there", || status(&new.link(), b"job").unwrap().waiting == 1);
    assert!(lock.release().unwrap());
    fence(tell.recv().unwrap().unwrap());
}

#[test]
fn a_connection_that_the_server_closed_costs_no_call_and_no_renewal() {
    let server = Server::start();
    let mut con = server.connect();
    let close = |con: &mut redis::Connection| run::<i64>(con, "CLIENT KILL TYPE normal SKIPME yes");
    let (max_hold, ttl) = (Some(10 * TTL), Duration::from_secs(3));
    let watchdog = Some(tagsweep::lock::Watchdog::new());
    let terms = Options { renew: watchdog, ..Options::new(ttl) };
    let mut renewed = Lock::on(server.link(), b"renewed", terms).unwrap();
    fence(renewed.acquire().unwrap());
    for _ in 0..4 {
        // Right after a renewal none is under way.
        until("it is renewed", || run::<i64>(&mut con, "PTTL lock:renewed") > 2900);
        assert!(close(&mut con) > 0);
        until("time passes", || run::<i64>(&mut con, "PTTL lock:renewed") < 2800);
    }
    assert!(renewed.is_held() && renewed.release().unwrap());
    assert!(renewed.stats().renewed > 2, "{:?}", renewed.stats());
    assert_eq!(renewed.stats().renew_failed, 0);
    let age = Duration::from_millis(300);
    let (mut granted, lock) = unstalled(|| {
        let mut granted = lock(&server);
        fence(granted.acquire().unwrap());
        let owner = granted.owner().unwrap().to_vec();
        std::thread::sleep(age);
        let link = server.link();
        status(&link, b"job").unwrap();
        let options = Options { max_hold, ..Options::new(TTL) };
        let mut lock = Lock::restore(link, b"job", &owner, options).unwrap();
        close(&mut con);
        let asked = Instant::now();
        assert!(lock.extend(Some(20 * TTL)).unwrap());
        let took = asked.elapsed();
        (took, (granted, lock))
    });
    assert!(lock.remaining().unwrap() <= 10 * TTL - age, "it counts from the grant");
    close(&mut con);
    assert!(granted.force_release().unwrap());
}

#[test]
fn a_server_that_answers_again_is_told_of_the_end_of_a_lease() {
    let server = Server::start();
    let config = server.config().timeout(Duration::from_secs(1));
    let link = Arc::new(Mutex::new(tagsweep::connect::Link::new(config).unwrap()));
    let take = |name: &[u8]| {
        let mut lock = Lock::on(Arc::clone(&link), name, Options::new(TTL)).unwrap();
        fence(lock.acquire().unwrap());
        lock
    };
    let first = take(b"first");
    server.signal("STOP");
    drop(first);
    server.signal("CONT");
    drop(take(b"second"));
    assert!(!run::<bool>(&mut server.connect(), "EXISTS lock:second"));
}

#[test]
fn losses_are_those_that_happened() {
    let server = Server::start();
    let options = || Options { record: true, ..Options::new(Duration::from_millis(800)) };
    let over = || std::thread::sleep(Duration::from_millis(810));
    let mut lock = Lock::on(server.link(), b"job", options()).unwrap();
    for _ in 0..3 {
        fence(lock.acquire().unwrap());
        over();
    }
    assert_eq!(lock.stats().lost.get(&LossReason::Expired), Some(&2), "and one is to come");
    let max_hold = Some(Duration::from_millis(800));
    let mut held = Lock::on(server.link(), b"held", Options { max_hold, ..options() }).unwrap();
    fence(held.acquire().unwrap());
    over();
    assert!(!held.release().unwrap());
    assert_eq!(held.stats().lost.get(&LossReason::MaxHold), Some(&1));
    let long = Options { record: true, ..Options::new(TTL) };
    let given = unstalled(|| {
        let mut given = Lock::on(server.link(), b"given", long.clone()).unwrap();
        fence(given.acquire().unwrap());
        let owner = given.owner().unwrap().to_vec();
        let mut other = Lock::restore(server.link(), b"given", &owner, long.clone()).unwrap();
        assert!(other.release().unwrap());
        let asked = Instant::now();
        assert!(!given.release().unwrap());
        (asked.elapsed(), given)
    });
    assert!(given.stats().lost.is_empty(), "{:?}", given.stats());
}

/// What no real server does: a proxy that lost its place among the answers.
#[test]
fn an_answer_that_makes_no_sense_is_no_success() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
            let _ = stream.write_all(b"+OK\r\n");
        }
    });
    let link = tagsweep::connect::Link::new(Config::from_url(&url).unwrap()).unwrap();
    let e = force_release(&Arc::new(Mutex::new(link)), b"job", None).unwrap_err();
    assert!(e.to_string().contains("makes no sense") && e.to_string().contains("lock:job"), "{e}");
}

#[test]
fn a_grant_that_was_taken_away_is_on_record_once() {
    let server = Server::start();
    let renewals = [None, Some(Watchdog::new())];
    for renew in renewals {
        let options = Options { record: true, renew, ..Options::new(TTL) };
        let mut lock = Lock::on(server.link(), b"job", options).unwrap();
        let fence = fence(lock.acquire().unwrap());
        force_release(&server.link(), b"job", Some(fence)).unwrap();
        assert!(!lock.release().unwrap());
        drop(lock);
        let runs = status(&server.link(), b"job").unwrap().runs;
        let ends = runs.iter().filter(|run| run.fence == fence).map(|run| &run.end);
        assert_eq!(ends.collect::<Vec<_>>(), [&RunEnd::Forced], "{runs:?}");
    }
}

#[test]
fn a_lease_that_was_handed_over_and_lives_longer_there_is_no_cause_for_a_warning() {
    let server = Server::start();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    let owner = lock.owner().unwrap().to_vec();
    lock.forget();
    let mut lock = Lock::restore(server.link(), b"job", &owner, Options::new(10 * TTL)).unwrap();
    assert!(lock.verify().unwrap() && lock.extend(None).unwrap());
    assert!(lock.remaining().unwrap() > 9 * TTL);
    assert!(!status(&server.link(), b"job").unwrap().is_overlong());
}

#[test]
fn spans_of_long_ago_are_forgotten_and_nothing_else() {
    let server = Server::start();
    let mut con = server.connect();
    let stats = "{lock:job}:stats";
    for field in ["g1.3", "d7.12", "renewed", "wait.3", "g999999.1"] {
        let _: () = con.hset(stats, field, 5).unwrap();
    }
    let options = Options { record: true, ..Options::new(TTL) };
    let mut lock = Lock::on(server.link(), b"job", options).unwrap();
    fence(lock.acquire().unwrap());
    assert!(lock.release().unwrap());
    let left: Vec<String> = con.hkeys(stats).unwrap();
    assert!(!left.iter().any(|field| field == "g1.3" || field == "d7.12"), "{left:?}");
    for field in ["renewed", "wait.3", "g999999.1"] {
        assert!(left.iter().any(|kept| kept == field), "{field}: {left:?}");
    }
    assert!(left.iter().any(|field| field.starts_with('d')), "{left:?}");
}

#[test]
fn jobs_that_outlast_their_lease_teach_a_longer_one() {
    let server = Server::start();
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
    let ttl = tagsweep::lock::Ttl::Auto { least, most };
    let run_for = |lives: u32| {
        unstalled(|| {
            let options = Options { ttl, record: true, ..Options::new(TTL) };
            let mut lock = Lock::on(server.link(), b"job", options).unwrap();
            let asked = Instant::now();
            fence(lock.acquire().unwrap());
            let (took, ttl) = (asked.elapsed(), lock.ttl());
            if took < ASIDE {
                std::thread::sleep(lives * ttl);
            }
            (took, (ttl, lock.release().unwrap()))
        })
    };
    for _ in 0..6 {
        run_for(0);
    }
    let (ttl, kept) = run_for(3);
    assert!(!kept && ttl < Duration::from_secs(5), "it was lost");
    assert!(run_for(0).0 > 3 * ttl);
}

#[test]
fn a_late_duplicate_of_an_acquisition_takes_no_time_away() {
    let server = Server::start();
    let link = server.link();
    let keys = protocol::Keys::new(b"", b"job").unwrap();
    let request = protocol::Request::Acquire {
        token: "0123".into(),
        ttl: TTL,
        claim: None,
        count: protocol::Count::Nothing,
    };
    let granted = perform(&link, &keys, &request).unwrap();
    let mut con = server.connect();
    run::<()>(&mut con, "PEXPIRE lock:job 90000");
    assert_eq!(perform(&link, &keys, &request).unwrap(), granted);
    assert!(con.pttl::<_, i64>("lock:job").unwrap() > 80_000);
}

#[test]
fn a_replica_does_not_know_whether_a_lease_is_held() {
    let server = Server::start();
    let mut lock = lock(&server);
    fence(lock.acquire().unwrap());
    assert!(lock.verify().unwrap());
    run::<()>(&mut server.connect(), "REPLICAOF 127.0.0.1 1");
    assert_eq!(lock.verify().unwrap_err().code(), Some("READONLY"));
}

#[test]
fn a_replica_does_not_know_that_a_lease_is_gone() {
    for (what, theirs) in [("gone", None), ("another's", Some("theirs"))] {
        let server = Server::start();
        let mut con = server.connect();
        let mut extended = lock(&server);
        fence(extended.acquire().unwrap());
        let owner = extended.owner().unwrap().to_vec();
        let restored = || Lock::restore(server.link(), b"job", &owner, Options::new(TTL)).unwrap();
        let _: () = con.del("lock:job").unwrap();
        theirs.iter().for_each(|value| con.pset_ex("lock:job", value, 50_000).unwrap());
        run::<()>(&mut con, "REPLICAOF 127.0.0.1 1");
        let force = |fence| force_release(&server.link(), b"job", fence).err();
        let acts = [
            extended.extend(None).err(),
            restored().verify().err(),
            restored().release().err(),
            force(Some(1)),
            force(None),
        ];
        for refused in acts.map(Option::unwrap) {
            assert_eq!(refused.code(), Some("READONLY"), "{what}: {refused}");
        }
        run::<()>(&mut con, "REPLICAOF NO ONE");
        assert!(!extended.extend(None).unwrap() && !restored().release().unwrap(), "{what}");
        let left: i64 = con.pttl("lock:job").unwrap();
        assert!(if theirs.is_some() { left > 30_000 } else { left == -2 }, "{what}: {left}");
    }
}

#[test]
fn a_wait_for_ever_is_one() {
    let server = Server::start();
    fence(lock(&server).acquire_within(Duration::MAX, &mut |_| true).unwrap());
}

#[test]
fn who_waited_for_the_link_has_its_own_time_then() {
    let server = Server::start();
    let config = server.config().timeout(Duration::from_secs(1));
    let link = Arc::new(Mutex::new(tagsweep::connect::Link::new(config).unwrap()));
    let mut lock = Lock::on(Arc::clone(&link), b"job", Options::new(TTL)).unwrap();
    fence(lock.acquire().unwrap());
    for act in [|lock: &mut Lock| lock.extend(None), Lock::verify, Lock::release] {
        let busy = link.lock().unwrap();
        std::thread::scope(|scope| {
            let done = scope.spawn(|| act(&mut lock));
            std::thread::sleep(Duration::from_millis(1200));
            drop(busy);
            assert!(done.join().unwrap().unwrap());
        });
    }
}

#[test]
fn a_loss_is_told_by_whichever_call_finds_it() {
    let server = Server::start();
    for find in [
        (|lock| drop(lock.acquire().unwrap())) as fn(&mut Lock),
        |lock| assert!(!lock.extend(None).unwrap()),
        |lock| assert!(!lock.verify().unwrap()),
    ] {
        let mut lock = Lock::new(server.config(), b"brief", Duration::from_millis(500)).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        lock.on_lost(move |reason| tell.send(reason).unwrap());
        assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
        until("it is over", || {
            !lock.is_held() && !run::<bool>(&mut server.connect(), "EXISTS lock:brief")
        });
        find(&mut lock);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [LossReason::Expired]);
        drop(lock);
    }
}

#[test]
fn the_last_grant_is_among_the_runs_however_soon_it_came() {
    let server = Server::start();
    let options = Options { record: true, ..Options::new(TTL) };
    let mut lock = Lock::on(server.link(), b"often", options).unwrap();
    let mut fence = 0;
    for _ in 0..3 {
        let Outcome::Acquired { fence: granted } = lock.acquire().unwrap() else { panic!() };
        fence = granted;
        assert!(lock.release().unwrap());
    }
    drop(lock);
    let runs = status(&server.link(), b"often").unwrap().runs;
    assert_eq!(runs.first().map(|run| run.fence), Some(fence), "{runs:?}");
}

#[test]
fn a_lease_is_given_back_though_another_could_not_be() {
    let server = Server::start();
    let mut con = server.connect();
    let link = server.link();
    let on = |name: &[u8]| {
        let mut lock = Lock::on(Arc::clone(&link), name, Options::new(Duration::from_secs(60)));
        assert!(matches!(lock.as_mut().unwrap().acquire().unwrap(), Outcome::Acquired { .. }));
        lock.unwrap()
    };
    let (a, b) = (on(b"a"), on(b"b"));
    let _: () = run(&mut con, "DEL lock:a");
    let _: () = run(&mut con, "LPUSH lock:a x");
    drop(a);
    drop(b);
    assert!(!run::<bool>(&mut con, "EXISTS lock:b"));
}

#[test]
fn a_lease_that_never_was_ours_is_no_loss() {
    let server = Server::start();
    let options = || Options { record: true, ..Options::new(Duration::from_secs(5)) };
    let mut lock = Lock::restore(server.link(), b"a", b"somebody:7|h|1|p", options()).unwrap();
    assert!(!lock.verify().unwrap() && !lock.release().unwrap());
    assert!(lock.stats().lost.is_empty() && lock.stats().holds.count() == 0);
    drop(lock);
    // Given back by its owner when it is over, or held too long: neither a hold nor a run.
    for max_hold in [None, Some(Duration::from_secs(1))] {
        let options = Options { max_hold, ..options() };
        let restored = || Lock::restore(server.link(), b"a", b"somebody:7|h|1|p", options.clone());
        assert!(!restored().unwrap().release().unwrap());
        assert!(!restored().unwrap().extend(None).unwrap());
    }
    let left: Vec<String> = run(&mut server.connect(), "KEYS *");
    assert_eq!(left, Vec::<String>::new());
    // And of one that was ours, both.
    let mut granted = Lock::on(server.link(), b"a", options()).unwrap();
    fence(granted.acquire().unwrap());
    let owner = granted.owner().unwrap().to_vec();
    granted.forget();
    let mut lock = Lock::restore(server.link(), b"a", &owner, options()).unwrap();
    assert!(lock.release().unwrap());
    assert_eq!(status(&server.link(), b"a").unwrap().runs.len(), 1);
}

#[test]
fn a_key_that_names_no_lock_keeps_nobody_from_the_others() {
    let server = Server::start();
    let mut con = server.connect();
    for key in ["lock:", "lock:a", "{lock:}:fence"] {
        run::<()>(&mut con, &format!("SET {key} x"));
    }
    assert_eq!(tagsweep::lock::names(&server.link()).unwrap(), [b"a".to_vec()]);
}
