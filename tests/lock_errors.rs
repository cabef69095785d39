//! The error matrix: every error that a server is known to answer, and every outcome that stays
//! unknown, for each act of the lock: its kind, whether it is tried again, and how long that takes. PHP, C and
//! the shell run through the same table, `errors.tsv`; what they make of kinds that no answer of a server leads to is in
//! another, compared with their sources.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use redis::Commands;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::errors::{Refusing, matrix};
use support::proxy::{Fault, Proxy};
use support::{Server, run, until};
use tagsweep::lock::{Lock, LossReason, Options, Outcome, SharedLink, WaitMode, force_release};
use tagsweep::{Config, Error, ErrorKind};

const MS: fn(u64) -> Duration = Duration::from_millis;
const PATIENCE: Duration = Duration::from_secs(3);

/// What the faces make of each kind: PHP's class, C's code, the shell's exit code.
const FACES: &[(ErrorKind, &str, &str, u8)] = &[
    (ErrorKind::Invalid, "InvalidArgument", "TAGSWEEP_ERR_INVALID", 2),
    (ErrorKind::Unreachable, "Connection", "TAGSWEEP_ERR_UNREACHABLE", 1),
    (ErrorKind::Denied, "Connection", "TAGSWEEP_ERR_DENIED", 1),
    (ErrorKind::Unknown, "UnknownOutcome", "TAGSWEEP_ERR_UNKNOWN", 5),
    (ErrorKind::Refused, "Server", "TAGSWEEP_ERR_REFUSED", 1),
    (ErrorKind::WrongType, "Server", "TAGSWEEP_ERR_WRONG_TYPE", 1),
    (ErrorKind::Lost, "LockLost", "TAGSWEEP_LOST", 4),
    (ErrorKind::Reentrant, "Reentrant", "TAGSWEEP_ERR_REENTRANT", 1),
    (ErrorKind::Unconfirmed, "Server", "TAGSWEEP_ERR_UNCONFIRMED", 1),
    (ErrorKind::Unproven, "UnprovenMapping", "TAGSWEEP_ERR_UNPROVEN", 1),
];

/// An act that fails, and how often it is asked for where that may help: what takes a lock away from whoever has it may
/// hit the next one.
type Act = (&'static str, fn(SharedLink) -> Option<Error>, u32);

const ACTS: [Act; 5] = [
    ("acquire", |link| acquire(free(link)).err(), 3),
    ("extend", |link| granted(link).extend(None).err(), 3),
    ("verify", |link| granted(link).verify().err(), 3),
    ("release", |link| granted(link).release().err(), 3),
    ("force", |link| force_release(&link, b"job", Some(7)).err(), 1),
];

fn free(link: SharedLink) -> Lock {
    Lock::on(link, b"job", Options::new(MS(30_000))).unwrap()
}

/// And that is all: what it may have come to is not settled.
fn acquire(mut lock: Lock) -> Result<Outcome, Error> {
    let outcome = lock.acquire();
    lock.forget();
    outcome
}

fn granted(link: SharedLink) -> Lock {
    let options = Options { release_on_drop: false, record: false, ..Options::new(MS(30_000)) };
    Lock::restore(link, b"job", b"0123456789abcdef:7|host|1|test", options).unwrap()
}

#[test]
fn every_error_of_a_server_has_its_kind_and_is_repeated_only_if_that_may_help() {
    for row in matrix() {
        let first = row.answer.split(' ').next().unwrap();
        let word = match row.answer {
            answer if answer.contains("script") && first == "ERR" => "NOPERM",
            answer if answer.contains("number of clients") => "MAXCLIENTS",
            _ => first,
        };
        for (name, act, tries) in ACTS {
            let server = Refusing::with(row.answer);
            let config = Config::from_url(&server.url()).unwrap().timeout(2 * PATIENCE);
            let link = tagsweep::connect::Link::new(config).unwrap();
            let begun = Instant::now();
            let e = act(Arc::new(std::sync::Mutex::new(link))).unwrap();
            assert!(begun.elapsed() < PATIENCE, "{name}, {}: {:?}", row.answer, begun.elapsed());
            assert_eq!(format!("{:?}", e.kind()), row.kind, "{name}: {e}");
            assert_eq!(e.code(), Some(word).filter(|word| !word.is_empty()), "{name}: {e}");
            let told = e.to_string();
            assert!(told.contains("\"lock:job\"") && told.contains("unix://"), "{name}: {told}");
            assert_eq!(server.asked(), if row.again { tries } else { 1 }, "{name}: {told}");
        }
    }
}

#[test]
fn a_script_that_is_not_known_is_taught() {
    let server = Server::start();
    let mut con = server.connect();
    let mut lock = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    for _ in 0..3 {
        let _: String = run(&mut con, "SCRIPT FLUSH");
        assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
        let _: String = run(&mut con, "SCRIPT FLUSH");
        assert!(lock.extend(None).unwrap());
        let _: String = run(&mut con, "SCRIPT FLUSH");
        assert!(lock.release().unwrap());
    }
}

/// A server in that state.
fn refusing(state: &str) -> Server {
    match state {
        "OOM" => Server::with(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]),
        "NOREPLICAS" => Server::with(&["--min-replicas-to-write", "1"]),
        _ => Server::with(&["--replicaof", "127.0.0.1 1"]),
    }
}

#[test]
fn real_servers_that_refuse_are_told_apart_and_a_full_one_still_locks() {
    let server = refusing("READONLY");
    let mut lock = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    let e = lock.acquire().unwrap_err();
    assert!(e.code() == Some("READONLY") && e.to_string().contains("name the primary"), "{e}");

    let server = refusing("NOREPLICAS");
    let mut lock = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    assert_eq!(lock.acquire().unwrap_err().code(), Some("NOREPLICAS"));

    let server = refusing("OOM");
    let mut lock = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
    let mut other = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    assert!(matches!(other.acquire_within(MS(500), &mut |_| true).unwrap(), Outcome::Held(_)));
    assert!(lock.extend(None).unwrap() && lock.release().unwrap());
}

#[test]
fn a_server_that_starts_again_empty_is_found_out_and_waited_for() {
    let mut server = Server::start();
    let mut holder = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    let Outcome::Acquired { fence } = holder.acquire().unwrap() else { panic!("held") };
    let mut waiting = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    let waiter =
        std::thread::spawn(move || (waiting.acquire_within(MS(20_000), &mut |_| true), waiting));
    let mut con = server.connect();
    until("it waits", || con.zcard::<_, u64>("{lock:job}:waiters").unwrap() == 1);
    server.restart();
    let (outcome, _lock) = waiter.join().unwrap();
    let Outcome::Acquired { fence: next } = outcome.unwrap() else { panic!("held") };
    assert!(next > fence, "the server's clock goes on where its data was lost");
    assert!(!holder.extend(None).unwrap() && !holder.is_held());
    assert_eq!(holder.stats().lost.values().sum::<u64>(), 1);
}

/// Each act, with its answer lost or its connection cut, all the time: unknown, in time, never success.
#[test]
fn what_stays_unknown_is_said_in_time_for_every_act() {
    type Act = fn(&mut Lock) -> Result<bool, Error>;
    let acts: [(&str, Act); 4] = [
        ("acquire", |lock| lock.acquire().map(|_| true)),
        ("extend", |lock| lock.extend(None)),
        ("verify", Lock::verify),
        ("release", Lock::release),
    ];
    let try_each_fault = |(name, act): (&str, Act)| {
        let late = Fault::DelayReply(10 * PATIENCE.as_millis() as u64);
        for fault in [Fault::DropReply, Fault::CloseAfter, Fault::CloseBefore, late] {
            let server = Server::start();
            let proxy = Proxy::start(&server.socket());
            let options = Options { release_on_drop: false, ..Options::new(MS(30_000)) };
            let link = tagsweep::connect::Link::new(proxy.config().timeout(PATIENCE)).unwrap();
            let link = Arc::new(std::sync::Mutex::new(link));
            let mut lock = Lock::on(link, b"job", options).unwrap();
            if name != "acquire" {
                lock.acquire().unwrap();
            }
            proxy.break_next("EVALSHA", fault, 99);
            let begun = Instant::now();
            let e = act(&mut lock).unwrap_err();
            let took = begun.elapsed();
            assert!(took < 2 * PATIENCE, "{name} {fault:?}: {took:?}");
            assert_eq!(e.kind(), ErrorKind::Unknown, "{name} {fault:?}: {e}");
            assert!(e.to_string().contains("tried 3 times"), "{e}");
        }
    };
    std::thread::scope(|scope| {
        for act in acts {
            scope.spawn(move || try_each_fault(act));
        }
    });
}

/// A lock that was granted without hearing of it: all answers were lost, and from now on none is.
fn granted_unheard(server: &Server, proxy: &Proxy) -> Lock {
    let link = tagsweep::connect::Link::new(proxy.config().timeout(MS(800))).unwrap();
    let options = Options { record: true, ..Options::new(MS(30_000)) };
    let mut lock = Lock::on(Arc::new(std::sync::Mutex::new(link)), b"job", options).unwrap();
    lock.acquire().unwrap();
    lock.release().unwrap();
    proxy.break_next("EVALSHA", Fault::DropReply, 3);
    assert!(lock.acquire().unwrap_err().is_unknown());
    assert_eq!((proxy.left(), lock.owner()), (0, None));
    assert!(run::<bool>(&mut server.connect(), "EXISTS lock:job"), "it was granted");
    lock
}

#[test]
fn what_was_granted_unheard_is_taken_over_or_given_up() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut con = server.connect();
    let value = |con: &mut redis::Connection| -> Option<String> { run(con, "GET lock:job") };

    for budget in [MS(0), MS(5000)] {
        let mut lock = granted_unheard(&server, &proxy);
        let (before, begun) = (value(&mut con).unwrap(), Instant::now());
        assert!(matches!(lock.acquire_within(budget, &mut |_| true), Ok(Outcome::Acquired { .. })));
        assert!(begun.elapsed() < MS(300), "it does not wait for itself");
        assert_eq!(lock.owner().unwrap(), before.as_bytes());
        assert!(run::<u64>(&mut con, "PTTL lock:job") > 29_000);
        assert!(lock.release().unwrap() && value(&mut con).is_none());
        assert!(!lock.release().unwrap(), "there is nothing left to settle");
    }
    let mut released = granted_unheard(&server, &proxy);
    assert!(released.release().unwrap() && value(&mut con).is_none());
    assert!(!released.release().unwrap());

    drop(granted_unheard(&server, &proxy));
    assert!(value(&mut con).is_none(), "its end gives it up");
    let unknown: u64 = run(&mut con, "HGET {lock:job}:stats unknown");
    assert!(unknown >= 1, "and tells of it");

    let mut late = granted_unheard(&server, &proxy);
    let _: () = con.set("lock:job", "another's").unwrap();
    assert!(!late.release().unwrap() && value(&mut con).as_deref() == Some("another's"));
    let _: () = con.del("lock:job").unwrap();

    let mut forgotten = granted_unheard(&server, &proxy);
    forgotten.forget();
    drop(forgotten);
    assert!(value(&mut con).is_some(), "it was to stay");
}

#[test]
fn more_time_that_is_over_when_its_answer_comes_is_none() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let link = tagsweep::connect::Link::new(proxy.config()).unwrap();
    let options = Options { max_hold: Some(MS(600)), ..Options::new(MS(30_000)) };
    let mut lock = Lock::on(Arc::new(std::sync::Mutex::new(link)), b"job", options).unwrap();
    lock.acquire().unwrap();
    assert!(lock.extend(None).unwrap(), "there is some left");
    proxy.break_next("EVALSHA", Fault::DelayReply(700), 1);
    assert!(!lock.extend(None).unwrap() && !lock.is_held());
    assert_eq!((lock.owner(), lock.last_loss()), (None, Some(LossReason::MaxHold)));
}

/// A lock on a link that lives, to a server that executes the next script, loses its answer, and is gone.
fn before_a_partition(proxy: &Proxy) -> Lock {
    let link = tagsweep::connect::Link::new(proxy.config().timeout(PATIENCE)).unwrap();
    let options = Options { release_on_drop: false, ..Options::new(MS(30_000)) };
    let mut lock = Lock::on(Arc::new(std::sync::Mutex::new(link)), b"job", options).unwrap();
    lock.acquire().unwrap();
    lock.release().unwrap();
    proxy.break_next("EVALSHA", Fault::CloseAfter, 1);
    proxy.close();
    lock
}

#[test]
fn what_may_be_done_stays_unknown_when_the_server_is_gone_afterwards() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let mut lock = before_a_partition(&proxy);
    let e = lock.acquire().unwrap_err();
    assert!(run::<bool>(&mut server.connect(), "EXISTS lock:job"), "it was granted");
    assert!(e.is_unknown(), "{e}");
    let told = e.to_string();
    assert!(told.contains("an answer was lost") && told.contains("tried 3 times"), "{told}");
    assert_eq!((lock.stats().unknown, lock.stats().errors), (1, 0));
}

#[test]
fn what_may_be_done_stays_unknown_to_the_end_of_a_wait() {
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let link = tagsweep::connect::Link::new(proxy.config().timeout(PATIENCE)).unwrap();
    let wait_mode = WaitMode::Backoff;
    let options = Options { release_on_drop: false, wait_mode, ..Options::new(MS(30_000)) };
    let mut lock = Lock::on(Arc::new(std::sync::Mutex::new(link)), b"job", options).unwrap();
    let mut con = server.connect();
    let _: () = con.set("lock:job", "somebody").unwrap();
    let mut asked = 0;
    let ended = lock.acquire_within(MS(2000), &mut |_| {
        asked += 1;
        if asked == 1 {
            // It becomes free; the answer to that is lost, and then the server.
            let _: () = con.del("lock:job").unwrap();
            proxy.break_next("EVALSHA", Fault::CloseAfter, 1);
            proxy.close();
        }
        true
    });
    let e = ended.unwrap_err();
    assert!(run::<bool>(&mut con, "EXISTS lock:job"), "it was granted");
    assert!(e.is_unknown(), "{e}");
}

#[test]
fn a_silent_server_outlasts_no_wait() {
    let server = Server::start();
    let mut holder = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    holder.acquire().unwrap();
    let mut lock = Lock::new(server.config(), b"job", MS(30_000)).unwrap();
    let begun = Instant::now();
    let mut frozen = false;
    let outcome = lock.acquire_within(MS(1500), &mut |_| {
        if !frozen && begun.elapsed() > MS(300) {
            frozen = true;
            server.signal("STOP");
        }
        true
    });
    let took = begun.elapsed();
    server.signal("CONT");
    assert!(took < MS(3500), "{took:?}: {outcome:?}");
}

#[test]
fn the_faces_know_every_kind() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (php, c, cli) =
        (source("php/src/exceptions.rs"), source("capi/src/status.rs"), source("cli/src/main.rs"));
    let arm = |text: &str, kind: &str| {
        let arms = text.lines().filter(|line| line.contains("=>") && line.contains("ErrorKind::"));
        let line = arms.into_iter().find(|line| {
            line.split("=>")
                .next()
                .unwrap()
                .split([' ', '|', '(', ')'])
                .any(|word| word.ends_with(kind))
        });
        line.map(|line| line.split("=>").nth(1).unwrap().trim().trim_end_matches(',').to_owned())
    };
    for (kind, class, code, exit) in FACES {
        let name = format!("ErrorKind::{kind:?}");
        // What a face does not name falls to its last arm.
        let php = arm(&php, &name).unwrap_or_else(|| "Class::Server".into());
        assert_eq!(php, format!("Class::{class}"), "{kind:?}");
        let c = arm(&c, &name).unwrap_or_else(|| "TAGSWEEP_ERR_REFUSED".into());
        assert_eq!(c, *code, "{kind:?}");
        let exit_name =
            ["DONE", "ERROR", "USAGE", "HELD", "PARTIAL", "UNKNOWN"][usize::from(*exit)];
        let cli = arm(&cli, &name).unwrap_or_else(|| "exit::ERROR".into());
        assert_eq!(cli, format!("exit::{exit_name}"), "{kind:?}");
    }
}
