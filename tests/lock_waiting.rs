//! Waiting in line, on a private server: order, handover, and what a waiter notices by itself.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::Commands;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::proxy::{Fault, Proxy};
use support::{Server, run, unstalled, until};
use tagsweep::lock::{Holder, Lock, Options, Outcome, WaitMode, status};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A server that knows how a line is left, for which there is little time at the end of a wait.
fn server() -> Server {
    let server = Server::start();
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(include_str!("../src/scripts/leave.lua"));
    load.exec(&mut server.connect()).unwrap();
    server
}

fn lock(server: &Server, name: &[u8], ttl: Duration) -> Lock {
    Lock::new(server.config(), name, ttl).unwrap()
}

fn take(lock: &mut Lock, budget: Duration) -> Option<u64> {
    match lock.acquire_within(budget, &mut |_| true).unwrap() {
        Outcome::Acquired { fence } => Some(fence),
        Outcome::Held(_) => None,
    }
}

/// How many wait, as the server has it.
fn waiting(server: &Server, name: &[u8]) -> u64 {
    status(&server.link(), name).unwrap().waiting
}

/// A thread that waits for the lock; tells when it had it, and how long it had to wait.
fn waiter(
    server: &Server,
    name: &'static [u8],
    ttl: Duration,
    budget: Duration,
) -> Receiver<(Option<u64>, Instant, Lock)> {
    let (tell, told) = channel();
    let mut lock = lock(server, name, ttl);
    let before = waiting(server, name);
    std::thread::spawn(move || {
        let fence = take(&mut lock, budget);
        tell.send((fence, Instant::now(), lock)).unwrap();
    });
    until("it waits", || waiting(server, name) > before);
    told
}

#[test]
fn a_release_hands_over_at_once_and_leaves_nothing_behind() {
    let server = Server::start();
    let mut holder = lock(&server, b"a", MS(30_000));
    let first = take(&mut holder, MS(0)).unwrap();
    let next = waiter(&server, b"a", MS(30_000), MS(5000));
    let released = Instant::now();
    assert!(holder.release().unwrap());
    let (fence, had, mut lock) = next.recv().unwrap();
    assert!(fence.unwrap() > first);
    // Sooner than its first look.
    assert!(had - released < MS(800), "{:?}", had - released);
    assert!(lock.remaining().unwrap() > MS(29_000), "its own TTL, not that of the transit");
    assert!(lock.release().unwrap());
    let mut keys: Vec<String> = server.connect().keys("*").unwrap();
    keys.sort();
    assert_eq!(keys, ["{lock:a}:fence"]);
}

#[test]
fn a_wait_that_times_out_ends_in_time_and_leaves_nothing_behind() {
    let server = server();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let mut other = lock(&server, b"a", MS(30_000));
    let begun = Instant::now();
    assert_eq!(take(&mut other, MS(300)), None);
    let took = begun.elapsed();
    assert!(took >= MS(300) && took < MS(850), "{took:?}");
    assert_eq!(waiting(&server, b"a"), 0);
    assert!(holder.release().unwrap());
    let keys: Vec<String> = server.connect().keys("*").unwrap();
    assert_eq!(keys, ["{lock:a}:fence"]);
}

#[test]
fn a_cancelled_wait_ends_soon() {
    let server = server();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let mut other = lock(&server, b"a", MS(30_000));
    let begun = Instant::now();
    let ended = other.acquire_within(MS(30_000), &mut |holder| {
        assert_eq!(holder.pid, Some(std::process::id()));
        begun.elapsed() < MS(100)
    });
    assert!(matches!(ended.unwrap(), Outcome::Held(_)));
    assert!(begun.elapsed() < MS(2000));
    assert_eq!(waiting(&server, b"a"), 0);
}

#[test]
fn waiters_are_served_in_order_of_arrival() {
    let server = Server::start();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let line: Vec<_> = (0..20).map(|_| waiter(&server, b"a", MS(30_000), MS(20_000))).collect();
    holder.release().unwrap();
    let mut last = 0;
    for told in line {
        let (fence, _, mut lock) = told.recv().unwrap();
        assert!(fence.unwrap() > last);
        last = fence.unwrap();
        assert!(lock.release().unwrap());
    }
}

#[test]
fn a_key_deleted_by_hand_is_noticed_within_a_second() {
    let server = Server::start();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let next = waiter(&server, b"a", MS(30_000), MS(5000));
    let deleted = Instant::now();
    server.connect().del::<_, ()>("lock:a").unwrap();
    let (fence, had, _lock) = next.recv().unwrap();
    assert!(fence.is_some());
    assert!(had - deleted < MS(1700), "{:?}", had - deleted);
}

#[test]
fn an_expired_lease_is_taken_over_in_order_as_soon_as_it_ends() {
    let server = Server::start();
    let mut holder = lock(&server, b"a", MS(2000));
    take(&mut holder, MS(0)).unwrap();
    let begun = Instant::now();
    let line: Vec<_> = (0..5).map(|_| waiter(&server, b"a", MS(30_000), MS(9000))).collect();
    let mut last = 0;
    for (n, told) in line.into_iter().enumerate() {
        let (fence, had, mut lock) = told.recv().unwrap();
        assert!(fence.unwrap() > last);
        last = fence.unwrap();
        assert!(n > 0 || had - begun < MS(2600), "{:?}", had - begun);
        assert!(lock.release().unwrap());
    }
    assert!(!holder.release().unwrap());
}

#[test]
fn a_foreign_holder_is_waited_for_and_its_release_noticed_within_a_second() {
    let server = Server::start();
    let mut redis = server.connect();
    redis.set_ex::<_, _, ()>("lock:a", "5f3c0de", 3600).unwrap();
    let next = waiter(&server, b"a", MS(30_000), MS(5000));
    redis.del::<_, ()>("lock:a").unwrap();
    let deleted = Instant::now();
    let (fence, had, _lock) = next.recv().unwrap();
    assert!(fence.is_some() && had - deleted < MS(1700));
}

#[test]
fn without_blocking_commands_waiting_is_asking_again() {
    let server = Server::start();
    let _: () = run(&mut server.connect(), "ACL SETUSER default -blpop");
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let mut other = lock(&server, b"a", MS(30_000));
    let mut asked = 0;
    let outcome = other.acquire_within(MS(5000), &mut |_| {
        asked += 1;
        if asked == 3 {
            holder.release().unwrap();
        }
        true
    });
    assert!(matches!(outcome.unwrap(), Outcome::Acquired { .. }));
}

#[test]
fn waiting_for_oneself_is_refused() {
    let server = Server::start();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let e = holder.acquire_within(MS(30_000), &mut |_| true).unwrap_err();
    assert_eq!(e.kind(), tagsweep::ErrorKind::Reentrant);
    assert!(e.to_string().contains("holds the lock already"), "{e}");
}

#[test]
fn the_dead_behind_a_waiter_do_not_make_it_sleep() {
    let server = Server::start();
    let mut con = server.connect();
    let holders = ["an old program", "token:7|host|1|tagsweep"];
    for (holder, tells) in holders.into_iter().flat_map(|holder| [(holder, true), (holder, false)])
    {
        let right = if tells { "+client|tracking" } else { "-client|tracking" };
        let _: () = run(&mut con, &format!("ACL SETUSER default {right}"));
        let _: () = con.set_ex("lock:a", holder, 3600).unwrap();
        let next = waiter(&server, b"a", MS(30_000), MS(20_000));
        // A dozen that came after it, and died without a word.
        for n in 1..=12 {
            let _: () =
                con.zadd("{lock:a}:waiters", format!("dead{n}"), 9e15 + f64::from(n)).unwrap();
        }
        let looks = |con: &mut redis::Connection| -> String { run(con, "INFO commandstats") };
        let looked = |text: &str| text.matches("cmdstat_zrevrank").count();
        until("it has seen them", || looked(&looks(&mut con)) == 1);
        let deleted = Instant::now();
        let _: () = con.del("lock:a").unwrap();
        let (fence, had, mut lock) = next.recv().unwrap();
        assert!(fence.is_some() && had - deleted < MS(1200), "{holder}: {:?}", had - deleted);
        assert!(lock.release().unwrap());
        let _: () = con.del("{lock:a}:waiters").unwrap();
        let _: () = run(&mut con, "CONFIG RESETSTAT");
    }
}

#[test]
fn a_waiter_whose_connection_dies_comes_back_and_leaves_nothing_behind() {
    let server = server();
    let mut con = server.connect();
    let _: () = con.set_ex("lock:a", "an old program", 3600).unwrap();
    let next = waiter(&server, b"a", MS(30_000), MS(1500));
    let _: () = run(&mut con, "CLIENT KILL TYPE normal SKIPME yes");
    assert!(next.recv().unwrap().0.is_none());
    assert!(!con.exists::<_, bool>("{lock:a}:waiters").unwrap());
}

#[test]
fn a_waiter_outlasts_a_restart_of_the_server() {
    let mut server = Server::start();
    let mut con = server.connect();
    let _: () = con.set_ex("lock:a", "an old program", 3600).unwrap();
    let next = waiter(&server, b"a", MS(30_000), MS(20_000));
    server.restart();
    assert!(next.recv().unwrap().0.is_some(), "the lock went with the data");
}

#[test]
fn a_wait_by_asking_again_ends_in_time_when_the_server_stops() {
    let server = Server::start();
    let _: () = server.connect().set_ex("lock:a", "an old program", 3600).unwrap();
    for wait_mode in [WaitMode::Backoff, WaitMode::Line] {
        let options = Options { wait_mode, ..Options::new(MS(30_000)) };
        let mut lock = Lock::on(server.link(), b"a", options).unwrap();
        let (begun, mut stopped) = (Instant::now(), false);
        let outcome = lock.acquire_within(MS(2000), &mut |_| {
            if begun.elapsed() > MS(500) && !std::mem::replace(&mut stopped, true) {
                server.signal("STOP");
            }
            true
        });
        let took = begun.elapsed();
        server.signal("CONT");
        assert!(stopped && took < MS(4000), "{wait_mode:?}: {took:?}, {outcome:?}");
    }
}

#[test]
fn a_handover_that_nobody_heard_of_delays_a_lone_waiter_by_three_seconds_at_most() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let (tell, told) = channel();
    let mut other = Lock::new(proxy.config(), b"a", MS(30_000)).unwrap();
    std::thread::spawn(move || {
        let fence = take(&mut other, MS(20_000));
        tell.send((fence, Instant::now(), other)).unwrap();
    });
    until("it waits", || waiting(&server, b"a") == 1);
    // The server serves it, and the answer is lost, as where a firewall forgets the connection.
    assert!(proxy.silence("BLPOP") > 0);
    let released = Instant::now();
    assert!(holder.release().unwrap());
    let (fence, had, mut other) = told.recv().unwrap();
    assert!(fence.is_some() && had - released < MS(4000), "{:?}", had - released);
    assert!(other.release().unwrap());
    let keys: Vec<String> = server.connect().keys("*").unwrap();
    assert_eq!(keys, ["{lock:a}:fence"]);
}

#[test]
fn a_wait_for_a_server_that_refuses_says_so_and_names_no_holder() {
    for refuse in ["CONFIG SET min-replicas-to-write 1", "REPLICAOF 127.0.0.1 1"] {
        let server = server();
        let _: () = run(&mut server.connect(), refuse);
        for wait_mode in [WaitMode::Line, WaitMode::Backoff] {
            for budget in [1000, 1300] {
                let options = Options { wait_mode, ..Options::new(MS(30_000)) };
                let mut lock = Lock::on(server.link(), b"a", options).unwrap();
                let e = unstalled(|| {
                    let begun = Instant::now();
                    let e = lock.acquire_within(MS(budget), &mut |_| true).unwrap_err();
                    (begun.elapsed().saturating_sub(MS(budget)), e)
                });
                assert!(matches!(e.code(), Some("NOREPLICAS" | "READONLY")), "{e}");
            }
        }
        // Who calls it off is told who had it last, as far as anybody knows.
        let mut lock = lock(&server, b"a", MS(30_000));
        let begun = Instant::now();
        let had = lock.acquire_within(MS(20_000), &mut |_| begun.elapsed() < MS(300)).unwrap();
        assert_eq!(had, Outcome::Held(Holder::default()));
    }
}

#[test]
fn who_is_granted_the_lock_besides_leaves_no_place_behind() {
    let server = server();
    let mut con = server.connect();
    let proxy = Proxy::start(&server.socket());
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let mut other = Lock::new(proxy.config(), b"a", MS(30_000)).unwrap();
    // It is in line, and was not told: it asks again, and finds the lock free.
    proxy.break_next("BLPOP", Fault::CloseAfter, 1);
    let line = server.link();
    let freed = &mut |_: &Holder| {
        if status(&line, b"a").unwrap().waiting == 1 {
            let _: () = con.del("lock:a").unwrap();
        }
        true
    };
    let had = other.acquire_within(MS(20_000), freed).unwrap();
    assert!(matches!(had, Outcome::Acquired { .. }) && proxy.left() == 0);
    assert_eq!(waiting(&server, b"a"), 0);
    assert!(other.release().unwrap());
    let keys: Vec<String> = server.connect().keys("*").unwrap();
    assert_eq!(keys, ["{lock:a}:fence"]);
}

#[test]
fn who_has_had_enough_when_the_lock_comes_hands_it_on_and_leaves_no_ticket() {
    let server = server();
    let (mut redis, mut holder) = (server.connect(), lock(&server, b"a", MS(30_000)));
    let mut handed_on = 0;
    for round in 0..20 {
        take(&mut holder, MS(0)).unwrap();
        let mut other = lock(&server, b"a", MS(30_000));
        let mut asked = 0;
        let outcome = other.acquire_within(MS(20_000), &mut |_| {
            asked += 1;
            if asked == 2 {
                // Handed over at the very moment in which the wait is called off.
                assert!(holder.release().unwrap(), "round {round}");
            }
            asked < 2
        });
        assert!(matches!(outcome.unwrap(), Outcome::Held(_)));
        // Where there was a stall right then, the handover ends with its time.
        handed_on += u32::from(!redis.exists::<_, bool>("lock:a").unwrap());
        until("it is free", || !redis.exists::<_, bool>("lock:a").unwrap());
        let keys: Vec<String> = redis.keys("*").unwrap();
        assert_eq!(keys, ["{lock:a}:fence"]);
    }
    assert!(handed_on > 10, "{handed_on} of 20");
}

#[test]
fn a_refused_place_in_the_line_is_given_up_and_a_timeout_is_counted() {
    let server = server();
    let _: () = run(&mut server.connect(), "ACL SETUSER default -blpop");
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let options = Options { record: true, ..Options::new(MS(30_000)) };
    let mut other = Lock::on(server.link(), b"a", options).unwrap();
    assert_eq!(take(&mut other, MS(300)), None);
    let status = status(&server.link(), b"a").unwrap();
    assert_eq!((status.waiting, status.stats.timeouts), (0, 1));
}

#[test]
fn a_server_that_is_far_away_is_waited_for_like_a_near_one() {
    let server = Server::start();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let proxy = Proxy::start(&server.socket());
    proxy.break_next("EVALSHA", Fault::Delay(200), u32::MAX);
    let mut other = Lock::new(proxy.config(), b"a", MS(30_000)).unwrap();
    let begun = Instant::now();
    // Looks on the way.
    assert_eq!(take(&mut other, MS(2500)), None);
    assert!(begun.elapsed() < MS(4000), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_does_not_write_for_a_while_does_not_change_the_order() {
    let server = Server::start();
    let mut con = server.connect();
    let mut holder = lock(&server, b"a", MS(30_000));
    take(&mut holder, MS(0)).unwrap();
    let waiters: Vec<_> = (0..4).map(|_| waiter(&server, b"a", MS(30_000), MS(20_000))).collect();
    // Who looks would have to write.
    let _: () = con.pexpire("{lock:a}:waiters", 60_000).unwrap();
    let _: () = run(&mut con, "CONFIG SET min-replicas-to-write 1");
    let refused = |con: &mut redis::Connection| -> u64 {
        let stats: String = run(con, "INFO errorstats");
        let count = stats.split("errorstat_NOREPLICAS:count=").nth(1);
        count.map_or(0, |rest| rest.split_whitespace().next().unwrap().parse().unwrap())
    };
    until("they have looked", || refused(&mut con) >= 8);
    let _: () = run(&mut con, "CONFIG SET min-replicas-to-write 0");
    assert!(holder.release().unwrap());
    let mut served = Vec::new();
    for told in waiters {
        let (fence, _, mut lock) = told.recv().unwrap();
        served.push(fence.unwrap());
        assert!(lock.release().unwrap());
    }
    assert!(served.is_sorted(), "{served:?}");
}

#[test]
fn something_else_in_place_of_the_baton_ends_a_wait_and_says_so() {
    let server = server();
    let mut con = server.connect();
    let mut holder = lock(&server, b"job", Duration::from_secs(30));
    take(&mut holder, Duration::ZERO).unwrap();
    let _: () = con.set("{lock:job}:baton", "x").unwrap();
    let refused = lock(&server, b"job", Duration::from_secs(30))
        .acquire_within(Duration::from_secs(5), &mut |_| true);
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("{lock:job}:baton"), "{told}");
    assert!(!con.exists::<_, bool>("{lock:job}:waiters").unwrap(), "no ticket is left");
}

#[test]
fn who_has_had_enough_need_not_wait_for_a_server_that_does_not_answer() {
    let server = Server::start();
    let mut holder = lock(&server, b"job", Duration::from_secs(60));
    take(&mut holder, Duration::ZERO).unwrap();
    let mut waiter = lock(&server, b"job", Duration::from_secs(60));
    let (mut stopped, mut turns) = (None, 0);
    let outcome = waiter.acquire_within(Duration::from_secs(30), &mut |_| {
        turns += 1;
        if turns == 10 {
            server.signal("STOP");
            stopped = Some(Instant::now());
        }
        // Long enough for a look that is not answered.
        stopped.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(1500))
    });
    let took = stopped.unwrap().elapsed();
    server.signal("CONT");
    assert!(!matches!(outcome, Ok(Outcome::Acquired { .. })));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// A server that is full: a connection, a holder, and a waiter that has one connection and finds no second.
fn crowded(server: &Server) -> (redis::Connection, Lock, Lock) {
    let mut con = server.connect();
    let mut holder = lock(server, b"job", MS(60_000));
    take(&mut holder, MS(0)).unwrap();
    let waiter = lock(server, b"job", MS(60_000));
    waiter.status().unwrap();
    let _: () = run(&mut con, "CONFIG SET maxclients 3");
    (con, holder, waiter)
}

#[test]
fn who_has_no_room_for_a_place_in_the_line_asks_again() {
    let server = Server::start();
    let (_third, mut holder, mut waiter) = crowded(&server);
    let begun = Instant::now();
    let had = std::thread::scope(|scope| {
        let waits = scope.spawn(|| take(&mut waiter, MS(8000)));
        until("it has tried", || begun.elapsed() > MS(1000));
        assert!(holder.release().unwrap());
        waits.join().unwrap()
    });
    assert!(had.is_some() && begun.elapsed() < MS(3500), "{had:?} {:?}", begun.elapsed());
}

#[test]
fn who_has_no_room_for_a_place_in_the_line_knows_who_has_the_lock() {
    let server = Server::start();
    let (_third, holder, mut waiter) = crowded(&server);
    for budget in [1, 10, 30, 100, 400, 1100] {
        let had = unstalled(|| {
            let begun = Instant::now();
            let had = waiter.acquire_within(MS(budget), &mut |_| true);
            (begun.elapsed().saturating_sub(MS(budget)), had)
        });
        let Outcome::Held(by) = had.unwrap() else { panic!("two holders") };
        assert_eq!(by.fence, holder.fence(), "{budget} ms: {by}");
    }
}

#[test]
fn who_had_no_room_for_a_place_in_the_line_stands_in_it_again() {
    let server = Server::start();
    let (mut con, mut holder, mut waiter) = crowded(&server);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| take(&mut waiter, MS(20_000)));
        until("it has tried", || begun.elapsed() > MS(1500));
        let _: () = run(&mut con, "CONFIG SET maxclients 100");
        until("it is in line", || run::<u64>(&mut con, "ZCARD {lock:job}:waiters") == 1);
        let released = Instant::now();
        assert!(holder.release().unwrap());
        assert!(waits.join().unwrap().is_some() && released.elapsed() < MS(800));
    });
}

#[test]
fn a_full_server_is_waited_for_and_says_what_is_wrong() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = run(&mut con, "CONFIG SET maxclients 1");
    let mut refused = lock(&server, b"job", MS(60_000));
    let told = refused.acquire().unwrap_err();
    assert!(told.to_string().contains("max number of clients") && !told.is_unknown(), "{told}");
    let mut waiter = lock(&server, b"job", MS(60_000));
    let begun = Instant::now();
    let had = std::thread::scope(|scope| {
        let waits = scope.spawn(|| take(&mut waiter, MS(5000)));
        until("it has tried", || begun.elapsed() > MS(500));
        let _: () = run(&mut con, "CONFIG SET maxclients 100");
        waits.join().unwrap()
    });
    assert!(had.is_some() && begun.elapsed() < MS(2500), "{:?}", begun.elapsed());
}

#[test]
fn who_finds_the_lock_free_on_a_server_that_does_not_write_asks_once_a_second_and_says_why_it_had_nothing()
 {
    let server = Server::start();
    let mut con = server.connect();
    let mut holder = lock(&server, b"job", MS(1000));
    take(&mut holder, MS(0)).unwrap();
    let mut waiter = lock(&server, b"job", MS(60_000));
    let wait = |waiter: &mut Lock| waiter.acquire_within(MS(4000), &mut |_| true);
    let refused = std::thread::scope(|scope| {
        let waits = scope.spawn(|| wait(&mut waiter));
        until("it waits", || waiting(&server, b"job") == 1);
        let _: () = run(&mut con, "CONFIG SET min-replicas-to-write 1");
        waits.join().unwrap()
    });
    let told = refused.unwrap_err();
    assert!(told.to_string().contains("NOREPLICAS") && !told.is_unknown(), "{told}");
    let stats: String = run(&mut con, "INFO commandstats");
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:calls=")).unwrap();
    let calls: u32 =
        line["cmdstat_evalsha:calls=".len()..].split(',').next().unwrap().parse().unwrap();
    assert!(calls <= 10, "{line}");
}

/// An address that may come to lead elsewhere.
struct Address(tempfile::TempDir);

impl Address {
    fn of(server: &Server) -> Self {
        let address = Self(tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(server.socket(), address.path()).unwrap();
        address
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("s")
    }

    fn config(&self) -> tagsweep::Config {
        tagsweep::Config::from_url(&format!("unix://{}", self.path().display())).unwrap()
    }

    fn lead_to(&self, server: &Server) {
        std::fs::remove_file(self.path()).unwrap();
        std::os::unix::fs::symlink(server.socket(), self.path()).unwrap();
    }
}

#[test]
fn a_wait_that_is_called_off_leaves_no_ticket_where_its_address_leads_now() {
    let (first, second) = (Server::start(), Server::start());
    let address = Address::of(&first);
    for server in [&first, &second] {
        let mut con = server.connect();
        let _: () = con.set_ex("lock:job", "token:7|host|1|tagsweep", 60).unwrap();
    }
    let mut waiter = Lock::new(address.config(), b"job", MS(60_000)).unwrap();
    let (mut turns, mut con) = (0, second.connect());
    let in_line = |con: &mut redis::Connection| run::<usize>(con, "ZCARD {lock:job}:waiters");
    let outcome = waiter.acquire_within(MS(20_000), &mut |_| {
        turns += 1;
        // When its place has lasted, it joins again without asking for the lock before.
        if turns == 12 {
            address.lead_to(&second);
            run::<()>(&mut first.connect(), "REPLICAOF 127.0.0.1 1");
        }
        turns <= 12 || in_line(&mut con) == 0
    });
    assert!(turns > 12 && !matches!(outcome, Ok(Outcome::Acquired { .. })), "{outcome:?}");
    assert_eq!(in_line(&mut con), 0);
}

#[test]
fn a_wait_that_ends_wakes_nobody_else_where_its_address_leads_now() {
    // The connection that waits stays at the first server, that which asks comes to the second.
    let (first, second) = (Server::start(), Server::start());
    let address = Address::of(&first);
    let mut holder = lock(&first, b"job", MS(60_000));
    take(&mut holder, MS(0)).unwrap();
    // Somebody else blocks there, under each number that might be meant.
    let innocents: Vec<_> = (0..30)
        .map(|_| {
            let mut con = second.connect();
            std::thread::spawn(move || {
                redis::cmd("BLPOP").arg("queue").arg(0).query::<Option<(String, String)>>(&mut con)
            })
        })
        .collect();
    let mut con = second.connect();
    let blocked = |con: &mut redis::Connection| -> usize {
        let info: String = run(con, "INFO clients");
        let line = info.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
        line.unwrap().parse().unwrap()
    };
    until("they block", || blocked(&mut con) == 30);
    let mut waiter = Lock::new(address.config(), b"job", MS(60_000)).unwrap();
    let mut turns = 0;
    let outcome = waiter.acquire_within(MS(20_000), &mut |_| {
        turns += 1;
        if turns == 3 {
            address.lead_to(&second);
            let mut con = first.connect();
            let me: i64 = redis::cmd("CLIENT").arg("ID").query(&mut con).unwrap();
            // All connections but the one that blocks, and this one.
            let list: String = run(&mut con, "CLIENT LIST");
            for line in list.lines().filter(|line| !line.contains("cmd=blpop")) {
                let id = line.split(' ').next().unwrap().strip_prefix("id=").unwrap();
                if id != me.to_string() {
                    run::<()>(&mut con, &format!("CLIENT KILL ID {id}"));
                }
            }
        }
        turns < 5
    });
    assert!(!matches!(outcome, Ok(Outcome::Acquired { .. })), "{outcome:?}");
    assert_eq!(blocked(&mut con), 30, "nobody was woken");
    for _ in 0..30 {
        let _: () = con.rpush("queue", "x").unwrap();
    }
    assert!(innocents.into_iter().all(|innocent| innocent.join().unwrap().unwrap().is_some()));
}
