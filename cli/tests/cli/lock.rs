//! `tagsweep lock`: a command under a lock.

use crate::fixtures::*;
use crate::support::errors::{Refusing, matrix};
use crate::support::{Server, run, signal, until};
use redis::Commands;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tagsweep::lock::Lock;

#[test]
fn a_command_runs_under_a_renewed_lock() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let script = ["lock", "job", "--url", &url, "--", "sh", "-c", "echo $TAGSWEEP_FENCE; exit 7"];
    let (code, out, _) = tagsweep(&script);
    assert!(code == 7 && out.trim().parse::<u64>().is_ok(), "{code} {out}");
    assert!(!con.exists::<_, bool>("lock:job").unwrap());

    let holder = spawn(&["lock", "job", "--ttl", "2s", "--url", &url, "--", "sleep", "30"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let (code, _, err) = tagsweep(&["lock", "job", "--url", &url, "--", "true"]);
    assert!(code == 3 && err.contains("held by"), "{err}");
    let conflict = ["lock", "job", "--conflict-exit-code", "9", "--url", &url, "--", "true"];
    assert_eq!(tagsweep(&conflict).0, 9);
    let (code, _, _) = tagsweep(&["lock", "job", "--wait", "4500ms", "--url", &url, "--", "true"]);
    assert_eq!(code, 3, "renewed over two of its TTLs");
    signal(holder.id(), "TERM");
    let ended = holder.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(128 + 15), "the command's own end is passed on");
    assert!(!con.exists::<_, bool>("lock:job").unwrap());
}

#[test]
fn a_lost_lock_ends_the_command() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let holder = spawn(&["lock", "job", "--ttl", "2s", "--url", &url, "--", "sleep", "30"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let _: () = con.set("lock:job", "thief").unwrap();
    let ended = holder.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("lost"));
    assert_eq!(con.get::<_, String>("lock:job").unwrap(), "thief");
}

#[test]
fn a_command_is_ended_at_max_hold_and_the_lock_stays_for_at_least() {
    let server = Server::start();
    let url = server.url();
    let begun = Instant::now();
    let held = ["lock", "job", "--ttl", "5s", "--max-hold", "1500ms", "--url", &url];
    let (code, _, err) = tagsweep(&[&held[..], &["--", "sleep", "30"]].concat());
    assert!(code == 4 && err.contains("max_hold"), "{err}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Others must not begin while a command takes its time to end.
    let note = server.dir().join("pid").display().to_string();
    let deaf = format!("trap '' TERM; echo $$ >{note}; while :; do sleep 0.1; done");
    let hold = ["lock", "job", "--max-hold", "1500ms", "--kill-after", "1s", "--url", &url];
    let deaf = spawn(&[&hold[..], &["--", "sh", "-c", &deaf]].concat());
    until("it runs", || std::fs::read_to_string(&note).is_ok_and(|pid| pid.ends_with('\n')));
    let gone = format!("! kill -0 $(cat {note})");
    let next = ["lock", "job", "--wait", "9s", "--url", &url, "--", "sh", "-c", &gone];
    assert_eq!(tagsweep(&next).0, 0, "the next one sees nothing of it");
    assert_eq!(deaf.wait_with_output().unwrap().status.code(), Some(4));
    let kept = ["lock", "short", "--at-least", "4s", "--url", &url, "--", "true"];
    assert_eq!(tagsweep(&kept).0, 0);
    assert_eq!(tagsweep(&kept).0, 3, "it ran a moment ago");
    let (_, told, _) = tagsweep(&["status", "short", "--url", &url]);
    assert!(told.contains("  kept ") && !told.contains("warning"), "{told}");
    until("the four seconds are over", || tagsweep(&kept).0 == 0);
}

#[test]
fn a_command_that_cannot_run_takes_no_lock() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let lock = |command: &str| {
        let mut lock = Command::new(TAGSWEEP);
        lock.args(["lock", "job", "--url", &server.url(), "--at-least", "1h", "--", command]);
        read(lock.env("PATH", folder.path()))
    };
    for (command, expected) in [
        ("nothing-of-that-name", 127),
        ("/nowhere/at/all", 127),
        ("plain", 126),
        (folder.path().to_str().unwrap(), 126),
    ] {
        let (code, _, err) = lock(command);
        let told = if code == 127 { "there is no command" } else { "could not be started" };
        assert!(code == expected && err.contains(told), "{code} {err}");
    }
    let left: Vec<String> = run(&mut server.connect(), "KEYS *");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_lost_lock_kills_what_does_not_end_by_itself_and_its_children() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let stubborn = "trap '' TERM; sleep 31 & echo $!; while :; do sleep 1; done";
    let command = ["--ttl", "3s", "--kill-after", "200ms", "--url", &url, "--", "sh", "-c"];
    let mut holder = Command::new(TAGSWEEP)
        .args([&["lock", "job"][..], &command, &[stubborn]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut child).unwrap();
    let _: () = con.set("lock:job", "thief").unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(4));
    let child = child.trim().parse().unwrap();
    until("its child is gone", || is_gone(child));
}

/// A command that says who it is, under a lock.
fn holding(url: &str, stderr: Stdio) -> (Child, u32) {
    let mut holder = Command::new(TAGSWEEP)
        .args(["lock", "job", "--ttl", "3s", "--kill-after", "200ms", "--url", url])
        .args(["--", "sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    (holder, pid.trim().parse().unwrap())
}

#[test]
fn a_command_does_not_outlive_whoever_holds_its_lock() {
    let server = Server::start();
    let (mut holder, command) = holding(&server.url(), Stdio::null());
    holder.kill().unwrap();
    holder.wait().unwrap();
    until("the command is gone", || is_gone(command));
}

#[test]
fn nobody_who_listens_no_more_keeps_a_lost_command_alive() {
    let server = Server::start();
    let (_, deaf) = std::io::pipe().unwrap();
    let (mut holder, command) = holding(&server.url(), deaf.try_clone().unwrap().into());
    drop(deaf);
    let _: () = server.connect().set("lock:job", "thief").unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(4));
    until("the command is gone", || is_gone(command));
    let (_, deaf) = std::io::pipe().unwrap();
    let mut held = Command::new(TAGSWEEP);
    held.args(["lock", "job", "--url", &server.url(), "--", "true"]).stderr(deaf);
    assert_eq!(held.status().unwrap().code(), Some(3));
}

#[test]
fn what_the_command_started_has_its_grace_too() {
    let server = Server::start();
    let (url, mut con) = (server.url(), server.connect());
    let tidy = server.dir().join("tidy");
    let command = "(trap 'sleep 0.3; echo > \"$0\"; exit' TERM; echo ready; \
                    while :; do sleep 0.05; done) & wait";
    let mut holder = Command::new(TAGSWEEP)
        .args(["lock", "job", "--ttl", "3s", "--kill-after", "20s", "--url", &url])
        .args(["--", "sh", "-c", command])
        .arg(&tidy)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let _: () = con.set("lock:job", "thief").unwrap();
    let begun = Instant::now();
    assert_eq!(holder.wait().unwrap().code(), Some(4));
    assert!(tidy.exists(), "the child was left its time");
    assert!(begun.elapsed() < Duration::from_secs(10), "and no more than it took");
}

#[test]
fn a_lock_that_is_gone_when_the_command_ends_is_told() {
    let server = Server::start();
    let url = server.url();
    let delete = format!("redis-cli -s {} del lock:d", server.socket().display());
    let (code, _, err) = tagsweep(&["lock", "d", "--url", &url, "--", "sh", "-c", &delete]);
    assert!(code == 4 && err.contains("the lock d was lost"), "{code}: {err}");
}

#[test]
fn a_signal_that_is_ignored_stays_ignored_in_the_command() {
    let server = Server::start();
    let ignoring = format!(
        "trap '' HUP; exec {TAGSWEEP} lock a --url {} -- sh -c 'kill -HUP $$; echo alive'",
        server.url()
    );
    let (code, out, err) = read(Command::new("sh").args(["-c", &ignoring]));
    assert!(code == 0 && out == "alive\n", "{code}: {out}{err}");
}

#[test]
fn a_command_may_speak_to_the_terminal_behind_its_input() {
    let server = Server::start();
    let command = format!(
        "printf x | {TAGSWEEP} lock job --url {} -- sh -c 'read answer </dev/tty; echo got $answer'",
        server.url()
    );
    let mut run = Command::new("script");
    run.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut run = run.spawn().unwrap();
    std::io::Write::write_all(run.stdin.as_mut().unwrap(), b"yes\n").unwrap();
    let begun = Instant::now();
    while run.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = run.wait_with_output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&said).contains("got yes"), "{said:?}");
}

#[test]
fn signals_of_a_wait_are_none_to_the_command_and_quit_ends_it() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let waiting = |con: &mut redis::Connection, n: u64| {
        until("it waits", || con.zcard::<_, u64>("{lock:job}:waiters").unwrap() == n);
    };
    let wait = |command: &[&str]| {
        let mut waiter = Command::new(TAGSWEEP);
        waiter.args(["lock", "job", "--url", &url, "--wait", "60s", "--"]).args(command);
        waiter.spawn().unwrap()
    };
    let mut holder = Lock::new(server.config(), b"job", Duration::from_secs(60)).unwrap();
    holder.acquire().unwrap();
    let mut told = wait(&["true"]);
    waiting(&mut con, 1);
    signal(told.id(), "USR1");
    let mut quits = wait(&["true"]);
    waiting(&mut con, 2);
    signal(quits.id(), "QUIT");
    assert_eq!(quits.wait().unwrap().code(), Some(4));
    holder.release().unwrap();
    assert_eq!(told.wait().unwrap().code(), Some(0));
}

#[test]
fn the_exit_code_is_told_where_children_are_ignored() {
    let server = Server::start();
    let started = "trap '' CHLD; exec \"$0\" lock job --url \"$1\" -- sh -c 'exit 7'";
    let status = Command::new("sh").args(["-c", started, TAGSWEEP, &server.url()]).status();
    assert_eq!(status.unwrap().code(), Some(7));
}

#[test]
fn a_server_that_does_not_answer_keeps_nobody_when_the_command_has_ended() {
    let server = Server::start();
    let url = server.url();
    let stop = format!("kill -STOP {}; exit 5", server.pid());
    let begun = Instant::now();
    let (code, _, err) = tagsweep(&["lock", "job", "--url", &url, "--", "sh", "-c", &stop]);
    let took = begun.elapsed();
    server.signal("CONT");
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("could not be released and ends with its TTL"), "{err}");
    assert!(took < Duration::from_millis(2500), "{took:?}");
}

#[test]
fn every_answer_of_a_server_has_its_exit_code_and_says_what_failed_where() {
    for row in matrix() {
        let server = Refusing::with(row.answer);
        let url = server.url();
        let acts: [&[&str]; 2] = [
            &["lock", "job", "--url", &url, "--", "true"],
            &["force-release", "job", "--fence", "7", "--url", &url],
        ];
        for act in acts {
            let (code, out, err) = tagsweep(act);
            assert_eq!(code, row.exit, "{act:?}, {}: {out}{err}", row.answer);
            assert!(err.contains("lock:job") && err.contains(&url), "{err}");
        }
    }
}
