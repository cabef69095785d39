//! What waiters hear of the lock while they wait, on a private server: the youngest and the oldest are told of changes,
//! and nobody asks more than once a lease while there are none.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::Connection;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::proxy::{Fault, Proxy};
use support::{Server, run, until};
use tagsweep::Config;
use tagsweep::lock::{Lock, Outcome, status};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// The time after a look in which there is no other, and some more.
const GAP: Duration = Duration::from_millis(1000);

/// Much sooner than whoever asks again and again would notice.
const AT_ONCE: Duration = Duration::from_millis(400);

fn lock(server: &Server) -> Lock {
    Lock::new(server.config(), b"a", MS(30_000)).unwrap()
}

/// A thread that waits for the lock; tells when it had it.
fn waiter(server: &Server) -> Receiver<(Instant, Lock)> {
    waiter_at(server.config(), MS(20_000), server)
}

/// The same, by that way to the server, and for so long at most.
fn waiter_at(config: Config, budget: Duration, server: &Server) -> Receiver<(Instant, Lock)> {
    let (tell, told) = channel();
    let mut lock = Lock::new(config, b"a", MS(30_000)).unwrap();
    let before = status(&server.link(), b"a").unwrap().waiting;
    std::thread::spawn(move || {
        let had = lock.acquire_within(budget, &mut |_| true).unwrap();
        if let Outcome::Acquired { .. } = had {
            tell.send((Instant::now(), lock)).unwrap();
        }
    });
    until("it waits", || status(&server.link(), b"a").unwrap().waiting > before);
    told
}

/// The connections on which the server tells of changes.
fn trackers(con: &mut Connection) -> Vec<String> {
    let list: String = run(con, "CLIENT LIST");
    let tracks = |line: &&str| line.contains("name=tagsweep-tracking");
    let id = |line: &str| line.split(['=', ' ']).nth(1).unwrap().to_owned();
    list.lines().filter(tracks).map(id).collect()
}

/// How often waiters have looked.
fn looks(con: &mut Connection) -> u64 {
    let stats: String = run(con, "INFO commandstats");
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_zrevrank:calls="));
    calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// Waiters in line behind a holder, the youngest told of changes, and nothing looked at for a while.
fn settled(server: &Server, waiting: usize) -> (Connection, Lock, Vec<Receiver<(Instant, Lock)>>) {
    let (mut con, mut holder) = (server.connect(), lock(server));
    assert!(matches!(holder.acquire().unwrap(), Outcome::Acquired { .. }));
    let line = (0..waiting).map(|_| waiter(server)).collect();
    until("the youngest are told", || trackers(&mut con).len() >= waiting.min(4));
    std::thread::sleep(GAP);
    let _: () = run(&mut con, "CONFIG RESETSTAT");
    (con, holder, line)
}

#[test]
fn who_waits_looks_once_a_lease_and_asks_nothing_else() {
    let server = Server::start();
    for waiting in [1, 4, 10] {
        let _: () = run(&mut server.connect(), "CONFIG RESETSTAT");
        let (mut con, mut holder) = (server.connect(), lock(&server));
        assert!(matches!(holder.acquire().unwrap(), Outcome::Acquired { .. }));
        let line: Vec<_> = (0..waiting).map(|_| waiter(&server)).collect();
        until("all have looked", || looks(&mut con) >= waiting);
        std::thread::sleep(GAP);
        // In a long line nobody knows whether it is young before it has looked.
        let more = if waiting > 4 { 4 } else { 0 };
        assert_eq!(looks(&mut con), waiting + more);
        assert_eq!(trackers(&mut con).len(), waiting.min(8) as usize);
        let _: () = run(&mut con, "CONFIG RESETSTAT");
        std::thread::sleep(MS(5000));
        let stats: String = run(&mut con, "INFO commandstats");
        let asked: Vec<&str> = stats.lines().filter(|line| line.starts_with("cmdstat_")).collect();
        assert!(asked.iter().all(|line| line.starts_with("cmdstat_config|resetstat")), "{asked:?}");
        assert!(holder.release().unwrap());
        for told in line {
            assert!(told.recv().unwrap().1.release().unwrap());
        }
        until("no connection is left behind", || trackers(&mut con).is_empty());
    }
}

/// One that stands in line and does not take what it is given, as a process that was stopped.
fn stopped_waiter(server: &Server) -> UnixStream {
    let mut con = server.connect();
    let time: (u64, u64) = run(&mut con, "TIME");
    let ticket = time.0 * 1_000_000 + time.1;
    let _: i64 = run(&mut con, &format!("ZADD {{lock:a}}:waiters {ticket} stopped|h|1|p"));
    let mut blocked = UnixStream::connect(server.socket()).unwrap();
    blocked.write_all(b"BLPOP {lock:a}:baton 0\r\n").unwrap();
    until("it blocks", || run::<String>(&mut con, "INFO clients").contains("blocked_clients:1\r"));
    blocked
}

#[test]
fn who_waits_long_watches_while_others_come_and_go() {
    let server = Server::start();
    let mut con = server.connect();
    for stopped in [false, true] {
        let mut holder = lock(&server);
        assert!(matches!(holder.acquire().unwrap(), Outcome::Acquired { .. }));
        let _first = stopped.then(|| stopped_waiter(&server));
        let next = waiter(&server);
        let others: Vec<_> =
            (0..9).map(|_| waiter_at(server.config(), MS(5000), &server)).collect();
        for other in others {
            assert!(other.recv().is_err(), "it has had enough");
        }
        let begun = Instant::now();
        if stopped {
            assert!(holder.release().unwrap());
        } else {
            let _: i64 = run(&mut con, "DEL lock:a");
        }
        let (had, mut lock) = next.recv().unwrap();
        let limit = if stopped { MS(2000) } else { MS(1200) };
        assert!(had - begun < limit, "{stopped}: {:?}", had - begun);
        assert!(lock.release().unwrap());
    }
}

#[test]
fn the_line_is_written_to_when_a_quarter_of_its_life_is_over_and_else_is_not() {
    let server = Server::start();
    let (mut con, mut holder, line) = settled(&server, 1);
    let left = |con: &mut Connection| run::<u64>(con, "PTTL {lock:a}:waiters");
    for (life, renewed) in [(100_000, true), (200_000, false)] {
        let _: i64 = run(&mut con, &format!("PEXPIRE {{lock:a}}:waiters {life}"));
        let before = looks(&mut con);
        std::thread::sleep(GAP);
        assert!(holder.extend(None).unwrap());
        until("it looks", || looks(&mut con) > before);
        assert_eq!(left(&mut con) > 210_000, renewed);
    }
    assert!(holder.release().unwrap());
    assert!(line[0].recv().unwrap().1.release().unwrap());
}

#[test]
fn what_becomes_of_the_lock_is_noticed_at_once_and_in_order() {
    let server = Server::start();
    for change in ["DEL lock:a", "PEXPIRE lock:a 1", "RENAME lock:a b", "SET lock:a old PX 1"] {
        let (mut con, _holder, line) = settled(&server, 3);
        let changed = Instant::now();
        let _: redis::Value = run(&mut con, change);
        for (n, told) in line.into_iter().enumerate() {
            let (had, mut lock) = told.recv().unwrap();
            assert!(n > 0 || had - changed < AT_ONCE, "{change}: {:?}", had - changed);
            assert!(n > 0 || looks(&mut con) <= 4, "{change}: {}", looks(&mut con));
            assert!(lock.release().unwrap());
        }
    }
}

#[test]
fn a_flush_is_noticed_at_once() {
    let server = Server::start();
    let (mut con, _holder, line) = settled(&server, 1);
    let changed = Instant::now();
    let _: () = run(&mut con, "FLUSHALL");
    let (had, _lock) = line[0].recv().unwrap();
    assert!(had - changed < AT_ONCE, "{:?}", had - changed);
}

#[test]
fn a_program_that_knows_no_line_gives_back_and_the_next_has_the_lock_at_once() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = run(&mut con, "SET lock:a 5f3c0de PX 30000");
    let (joined, line) = (Instant::now(), waiter(&server));
    until("it is told", || trackers(&mut con).len() == 1);
    assert!(
        joined.elapsed() < MS(700),
        "who waits for such a one asks soon: {:?}",
        joined.elapsed()
    );
    let released = Instant::now();
    let _: () = run(&mut con, "DEL lock:a");
    let (had, _lock) = line.recv().unwrap();
    assert!(had - released < AT_ONCE, "{:?}", had - released);
}

#[test]
fn a_lock_that_changes_all_the_time_is_looked_at_about_once_a_second() {
    let server = Server::start();
    let (mut con, mut holder, line) = settled(&server, 2);
    let begun = Instant::now();
    while begun.elapsed() < MS(3000) {
        assert!(holder.extend(None).unwrap());
    }
    let looks = looks(&mut con);
    assert!((2..=8).contains(&looks), "{looks}");
    assert!(holder.release().unwrap());
    for told in line {
        assert!(told.recv().unwrap().1.release().unwrap());
    }
}

#[test]
fn a_connection_that_is_cut_is_made_again() {
    let server = Server::start();
    let (mut con, _holder, line) = settled(&server, 1);
    let before = trackers(&mut con);
    let _: i64 = run(&mut con, &format!("CLIENT KILL ID {}", before[0]));
    until("it is told again", || {
        let now = trackers(&mut con);
        now.len() == 1 && now != before
    });
    std::thread::sleep(GAP);
    let deleted = Instant::now();
    let _: i64 = run(&mut con, "DEL lock:a");
    let (had, _lock) = line[0].recv().unwrap();
    assert!(had - deleted < AT_ONCE, "{:?}", had - deleted);
}

#[test]
fn where_the_server_does_not_tell_the_lock_is_looked_at_again_and_again() {
    let server = Server::start();
    let (mut con, mut holder) = (server.connect(), lock(&server));
    let _: () = run(&mut con, "ACL SETUSER default -client|tracking");
    assert!(matches!(holder.acquire().unwrap(), Outcome::Acquired { .. }));
    let line = waiter(&server);
    until("it looks", || looks(&mut con) >= 3);
    let deleted = Instant::now();
    let _: i64 = run(&mut con, "DEL lock:a");
    let (had, _lock) = line.recv().unwrap();
    assert!(had - deleted < MS(1700), "{:?}", had - deleted);
}

#[test]
fn of_those_who_come_one_after_the_other_the_oldest_and_the_youngest_are_told() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = run(&mut con, "SET lock:a 5f3c0de PX 30000");
    let (mut line, mut told) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        line.push(waiter(&server));
        until("it is told", || {
            let new = trackers(&mut con).into_iter().find(|id| !told.contains(id));
            told.extend(new.clone());
            new.is_some()
        });
    }
    until("two are told no more", || {
        let now = trackers(&mut con);
        (0..12).all(|n| now.contains(&told[n]) != (2..4).contains(&n))
    });
    let _: () = run(&mut con, "DEL lock:a");
    for told in line {
        assert!(told.recv().unwrap().1.release().unwrap());
    }
}

#[test]
fn a_server_that_refuses_is_not_asked_again_and_again() {
    let server = Server::start();
    let (mut con, mut holder) = (server.connect(), lock(&server));
    let _: () = run(&mut con, "ACL SETUSER default -client|tracking");
    assert!(matches!(holder.acquire().unwrap(), Outcome::Acquired { .. }));
    let mut other = lock(&server);
    for _ in 0..2 {
        assert!(matches!(other.acquire_within(MS(3500), &mut |_| true).unwrap(), Outcome::Held(_)));
    }
    let stats: String = run(&mut con, "INFO commandstats");
    assert_eq!(stats.matches("cmdstat_hello:calls=1,").count(), 1, "{stats}");
}

#[test]
fn a_look_that_is_not_answered_there_is_made_elsewhere() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let (mut con, mut holder) = (server.connect(), lock(&server));
    assert!(matches!(holder.acquire().unwrap(), Outcome::Acquired { .. }));
    let line = waiter_at(proxy.config(), MS(20_000), &server);
    until("it is told", || trackers(&mut con).len() == 1);
    std::thread::sleep(GAP);
    proxy.break_next("EVAL", Fault::DropReply, 1);
    let before = looks(&mut con);
    assert!(holder.extend(None).unwrap());
    until("it has looked twice", || looks(&mut con) == before + 2);
    assert!(trackers(&mut con).is_empty(), "that connection is given up");
    let deleted = Instant::now();
    let _: i64 = run(&mut con, "DEL lock:a");
    let (had, _lock) = line.recv().unwrap();
    assert!(had - deleted < MS(1700), "{:?}", had - deleted);
}
