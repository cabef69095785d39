//! The command line by its exit codes and output, against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../tests/support/mod.rs"]
mod support;

use redis::Commands;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Server, age, run, signal, until};
use tagsweep::lock::Lock;

const TAGSWEEP: &str = env!("CARGO_BIN_EXE_tagsweep");

fn tagsweep(arguments: &[&str]) -> (i32, String, String) {
    read(Command::new(TAGSWEEP).args(arguments).env_remove("REDIS_URL"))
}

fn read(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

fn fill(server: &Server) {
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:mixed", &["item:live", "item:gone"]).unwrap();
    let _: () = con.sadd("tag:orphan", &["item:a", "item:b"]).unwrap();
    age(&mut con, "tag:mixed", 60);
    age(&mut con, "tag:orphan", 60);
}

fn spawn(arguments: &[&str]) -> Child {
    Command::new(TAGSWEEP)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn plan_shows_and_sweep_does() {
    let server = Server::start();
    fill(&server);
    let (code, out, err) = tagsweep(&["plan", "--url", &server.url()]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("2 seen, 1 to remove, 1 pruned"), "{out}");
    fill(&server);
    let (code, out, err) = tagsweep(&["sweep", "--url", &server.url(), "--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&report["type"], &report["complete"]), (&"report".into(), &true.into()));
    assert_eq!((&report["tags_removed"], &report["references_removed"]), (&1.into(), &3.into()));
    for key in [
        "tags_seen",
        "tags_pruned",
        "tags_aged",
        "tags_skipped",
        "references_checked",
        "references_restored",
        "scores_healed",
        "entries_invalidated",
        "bytes_reclaimed",
        "pages",
        "duration_s",
        "server_s",
        "reason",
    ] {
        assert!(!report[key].is_null(), "{key}");
    }
    let (code, out, _) = read(Command::new(TAGSWEEP).arg("sweep").env("REDIS_URL", server.url()));
    assert!(code == 0 && out.contains("0 removed"), "the URL comes from the environment: {out}");
}

#[test]
fn exit_codes_tell_what_happened() {
    let server = Server::start();
    fill(&server);
    let url = server.url();
    for wrong in [
        &["sweep", "--grace", "soon"][..],
        &["sweep", "--nonsense"],
        &["sweep", "--max-tag-age", "181d", "--url", &url],
        &["sweep", "--url", "http://x"],
        &["lock", "job"],
        &["lock", "", "--url", &url, "--", "true"],
        &["lock", "job", "--ttl", "0s", "--url", &url, "--", "true"],
    ] {
        let (code, _, err) = tagsweep(wrong);
        assert!(code == 2 && !err.is_empty(), "{wrong:?}: {code} {err}");
    }
    let (code, _, err) = tagsweep(&["sweep", "--url", "redis://:canary@127.0.0.1:1"]);
    assert!(code == 1 && err.contains("redis://127.0.0.1:1/0") && !err.contains("canary"), "{err}");
    let (code, _, err) = tagsweep(&["sweep", "--url", &url, "--entry-prefix", "wrong:"]);
    assert!(code == 1 && err.contains("--trust-mapping"), "{err}");
    let _: () = server.connect().set("lock:cache_tag_cleanup", "x").unwrap();
    let (code, out, err) = tagsweep(&["sweep", "--url", &url, "--json"]);
    assert!(code == 3 && err.contains("skipped") && out.contains("\"held\""), "{out}{err}");
    let _: () = run(&mut server.connect(), "DEL lock:cache_tag_cleanup");
    fill(&server);
    let (code, out, _) = tagsweep(&["sweep", "--url", &url, "--max-removals", "1"]);
    assert!(code == 4 && out.contains("Ended early"), "{out}");
    server.signal("STOP");
    let (code, _, err) = tagsweep(&["plan", "--url", &url, "--timeout", "300ms"]);
    server.signal("CONT");
    assert!(code == 5 || err.contains("no connection"), "{code} {err}");
}

#[test]
fn ctrl_c_ends_a_sweep_within_a_second_with_its_lock_released() {
    let server = Server::start();
    fill(&server);
    let mut con = server.connect();
    let _: () = con.sadd("tag:young", "item:x").unwrap();
    let url = server.url();
    for name in ["INT", "TERM"] {
        let mut sweep = spawn(&["sweep", "--url", &url, "--json", "--grace", "20s"]);
        let mut lines = BufReader::new(sweep.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("progress"));
        let begun = Instant::now();
        signal(sweep.id(), name);
        let last = lines.map(Result::unwrap).last().unwrap();
        assert_eq!(sweep.wait().unwrap().code(), Some(4));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(last.contains("\"reason\":\"stopped\""), "{last}");
        assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    }
}

#[test]
fn a_killed_sweep_is_finished_by_the_next_within_one_ttl() {
    let server = Server::start();
    fill(&server);
    let mut con = server.connect();
    let _: () = con.sadd("tag:young", "item:x").unwrap();
    let url = server.url();
    let mut sweep =
        spawn(&["sweep", "--url", &url, "--json", "--grace", "20s", "--lock-ttl", "2s"]);
    let mut lines = BufReader::new(sweep.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("progress"));
    signal(sweep.id(), "KILL");
    sweep.wait().unwrap();
    let begun = Instant::now();
    let (code, _, err) =
        tagsweep(&["sweep", "--url", &url, "--wait", "10s", "--grace", "1s", "--lock-ttl", "2s"]);
    assert_eq!(code, 0, "{err}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let left: Vec<String> = con.keys("tag:*").unwrap();
    assert_eq!(left, ["tag:mixed"]);
}

#[test]
fn a_sweep_stopped_for_longer_than_its_ttl_removes_nothing_afterwards() {
    let server = Server::start();
    fill(&server);
    let mut con = server.connect();
    let url = server.url();
    let _: () = con.sadd("tag:young", "item:x").unwrap();
    let mut sweep = spawn(&["sweep", "--url", &url, "--json", "--grace", "2s", "--lock-ttl", "1s"]);
    let mut lines = BufReader::new(sweep.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("progress"));
    signal(sweep.id(), "STOP");
    until("the lock expires", || !con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    let _: () = con.set("lock:cache_tag_cleanup", "another").unwrap();
    signal(sweep.id(), "CONT");
    let last = lines.map(Result::unwrap).last().unwrap();
    assert_eq!(sweep.wait().unwrap().code(), Some(4));
    assert!(last.contains("\"reason\":\"lost\""), "{last}");
    assert!(con.exists::<_, bool>("tag:young").unwrap());
    assert_eq!(con.get::<_, String>("lock:cache_tag_cleanup").unwrap(), "another");
}

#[test]
fn a_command_runs_under_a_renewed_lock() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let script = ["lock", "job", "--url", &url, "--", "sh", "-c", "echo $TAGSWEEP_FENCE; exit 7"];
    let (code, out, _) = tagsweep(&script);
    assert!(code == 7 && out.trim().parse::<u64>().is_ok(), "{code} {out}");
    assert!(!con.exists::<_, bool>("lock:job").unwrap());

    let holder = spawn(&["lock", "job", "--ttl", "1s", "--url", &url, "--", "sleep", "30"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let (code, _, err) = tagsweep(&["lock", "job", "--url", &url, "--", "true"]);
    assert!(code == 3 && err.contains("held by"), "{err}");
    let conflict = ["lock", "job", "--conflict-exit-code", "9", "--url", &url, "--", "true"];
    assert_eq!(tagsweep(&conflict).0, 9);
    let (code, _, _) = tagsweep(&["lock", "job", "--wait", "2s", "--url", &url, "--", "true"]);
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
    let holder = spawn(&["lock", "job", "--ttl", "500ms", "--url", &url, "--", "sleep", "30"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let _: () = con.set("lock:job", "thief").unwrap();
    let ended = holder.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("lost"));
    assert_eq!(con.get::<_, String>("lock:job").unwrap(), "thief");
}

#[test]
fn the_demo_leaves_nothing_behind() {
    let server = Server::start();
    let (code, out, err) = tagsweep(&["demo", "--tags", "30", "--url", &server.url()]);
    assert!(code == 0 && out.contains("10 removed, 10 pruned"), "{out}{err}");
    assert_eq!(run::<u64>(&mut server.connect(), "DBSIZE"), 0);
}

#[test]
fn tls_with_a_private_authority_and_a_client_certificate() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    std::fs::write(path("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    let openssl = |arguments: &[&str]| {
        let done = Command::new("openssl").args(arguments).output().expect("openssl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=test CA",
        "-keyout",
        &ca_key,
        "-out",
        &ca,
    ]);
    for name in ["server", "client"] {
        let (key, csr, cert) =
            (path(&format!("{name}.key")), path("csr"), path(&format!("{name}.pem")));
        let subject = format!("/CN={name}");
        openssl(&[
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out",
            &csr,
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            &path("ext"),
            "-out",
            &cert,
        ]);
    }
    let port = {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probe.local_addr().unwrap().port().to_string()
    };
    let server = Server::with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "yes",
    ]);
    fill(&server);
    let url = format!("rediss://127.0.0.1:{port}");
    let (cert, key) = (path("client.pem"), path("client.key"));
    let with = ["sweep", "--url", &url, "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let (code, out, err) = tagsweep(&with);
    assert!(code == 0 && out.contains("1 removed, 1 pruned"), "{out}{err}");
    let (code, _, _) = tagsweep(&["sweep", "--url", &url, "--tls-ca", &ca]);
    assert_ne!(code, 0, "without a certificate");
    let (code, _, err) = tagsweep(&["sweep", "--url", &url]);
    assert!(code == 1 && err.contains("no connection: invalid peer certificate"), "{err}");
    let (code, _, err) = tagsweep(&["sweep", "--url", &format!("{url}/#insecure")]);
    assert!(code == 2 && err.contains("always checked"), "{err}");
}

#[test]
fn status_shows_who_holds_and_who_waits_and_force_release_takes_only_what_is_meant() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let (code, out, _) = tagsweep(&["status", "--url", &url]);
    assert!(code == 0 && out.contains("no locks"), "{out}");
    let holder = spawn(&["lock", "job", "--url", &url, "--", "sleep", "30"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let waiter =
        spawn(&["lock", "job", "--wait", "20s", "--url", &url, "--", "sh", "-c", "echo had it"]);
    until("one waits", || con.zcard::<_, u64>("{lock:job}:waiters").unwrap() == 1);
    let (code, out, err) = tagsweep(&["status", "--url", &url]);
    assert_eq!((code, err.as_str()), (0, ""));
    let (holding, waiting) = (format!("pid {}", holder.id()), format!("pid {}", waiter.id()));
    let line = |what: &str| out.lines().find(|line| line.trim().starts_with(what)).unwrap();
    assert!(line("holder").contains(&holding), "{out}");
    assert!(line("waiter 1").contains(&waiting), "{out}");
    assert!(line("ttl left").contains("29.") || line("ttl left").contains("30."), "{out}");
    let (_, json, _) = tagsweep(&["status", "job", "--json", "--url", &url]);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["holder"]["pid"], holder.id());
    let fence = status["fence"].as_u64().unwrap();

    let wrong = (fence - 1).to_string();
    let (code, _, err) = tagsweep(&["force-release", "job", "--fence", &wrong, "--url", &url]);
    assert!(code == 3 && err.contains("nothing was done"), "{err}");
    assert_eq!(tagsweep(&["force-release", "job", "--url", &url]).0, 2);
    let right = fence.to_string();
    let (code, out, _) = tagsweep(&["force-release", "job", "--fence", &right, "--url", &url]);
    assert!(code == 0 && out.contains(&holding), "{out}");
    let ended = waiter.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), &ended.stdout[..]), (Some(0), &b"had it\n"[..]));
    let (code, out, _) = tagsweep(&["force-release", "job", "--fence", &right, "--url", &url]);
    assert!(code == 0 && out.contains("free already"), "{out}");
    signal(holder.id(), "TERM");
    holder.wait_with_output().unwrap();

    let (code, text, _) = tagsweep(&["metrics", "--url", &url]);
    assert_eq!(code, 0);
    for said in [
        "acquire_total{lock=\"job\",result=\"acquired\"} 2\n",
        "lost_total{lock=\"job\",reason=\"forced\"} 1\n",
        "lost_total{lock=\"job\",reason=\"expired\"} 0\n",
        "wait_seconds_count{lock=\"job\"} 2\n",
        "held{lock=\"job\"} 0\n",
        "ttl_configured_seconds{lock=\"job\"} 30\n",
    ] {
        assert!(text.contains(said), "{said}{text}");
    }
    let file = server.dir().join("metrics.prom");
    let path = file.display().to_string();
    assert_eq!(tagsweep(&["metrics", "job", "--output", &path, "--url", &url]).0, 0);
    assert!(std::fs::read_to_string(file).unwrap().ends_with("# EOF\n"));
}

#[test]
fn a_ttl_longer_than_configured_is_warned_of() {
    let server = Server::start();
    let url = server.url();
    let mut con = server.connect();
    let holder = spawn(&["lock", "job", "--url", &url, "--", "sleep", "30"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let (_, out, _) = tagsweep(&["status", "job", "--url", &url]);
    assert!(!out.contains("warning"), "{out}");
    let _: () = con.pexpire("lock:job", 3_600_000).unwrap();
    let (_, out, _) = tagsweep(&["status", "job", "--url", &url]);
    assert!(out.contains("exceeds the configured 30.0 s"), "{out}");
    signal(holder.id(), "TERM");
    holder.wait_with_output().unwrap();
}

#[test]
fn a_command_is_ended_at_max_hold_and_the_lock_stays_for_at_least() {
    let server = Server::start();
    let url = server.url();
    let begun = Instant::now();
    let held = ["lock", "job", "--ttl", "1s", "--max-hold", "1500ms", "--url", &url];
    let (code, _, err) = tagsweep(&[&held[..], &["--", "sleep", "30"]].concat());
    assert!(code == 4 && err.contains("max_hold"), "{err}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Others must not begin while a command takes its time to end.
    let note = server.dir().join("pid").display().to_string();
    let deaf = format!("echo $$ >{note}; trap '' TERM; while :; do sleep 0.1; done");
    let hold = ["lock", "job", "--max-hold", "500ms", "--kill-after", "1s", "--url", &url];
    let deaf = spawn(&[&hold[..], &["--", "sh", "-c", &deaf]].concat());
    until("it runs", || std::fs::read_to_string(&note).is_ok_and(|pid| pid.ends_with('\n')));
    let gone = format!("! kill -0 $(cat {note})");
    let next = ["lock", "job", "--wait", "9s", "--url", &url, "--", "sh", "-c", &gone];
    assert_eq!(tagsweep(&next).0, 0, "the next one sees nothing of it");
    assert_eq!(deaf.wait_with_output().unwrap().status.code(), Some(4));
    let kept = ["lock", "short", "--at-least", "1s", "--url", &url, "--", "true"];
    assert_eq!(tagsweep(&kept).0, 0);
    assert_eq!(tagsweep(&kept).0, 3, "it ran a moment ago");
    until("a second is over", || tagsweep(&kept).0 == 0);
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
    let command = ["--ttl", "500ms", "--kill-after", "200ms", "--url", &url, "--", "sh", "-c"];
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
    let child = format!("/proc/{}/stat", child.trim());
    let gone = || std::fs::read_to_string(&child).map_or(true, |stat| stat.contains(") Z "));
    until("its child is gone", gone);
}

/// A command that says who it is, under a lock.
fn holding(url: &str, stderr: Stdio) -> (Child, u32) {
    let mut holder = Command::new(TAGSWEEP)
        .args(["lock", "job", "--ttl", "500ms", "--kill-after", "200ms", "--url", url])
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

fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
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
        .args(["lock", "job", "--ttl", "500ms", "--kill-after", "20s", "--url", &url])
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
fn history_is_a_table_or_json_or_a_page_of_its_own() {
    let server = Server::start();
    let url = server.url();
    let (code, out, _) = tagsweep(&["history", "--url", &url]);
    assert_eq!((code, out.as_str()), (0, "no sweeps\n"));
    for _ in 0..52 {
        let (code, _, err) = tagsweep(&["sweep", "--url", &url]);
        assert_eq!((code, err.as_str()), (0, ""));
    }
    fill(&server);
    tagsweep(&["sweep", "--url", &url]);
    let (code, out, err) = tagsweep(&["history", "--url", &url]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out.lines().filter(|line| line.contains(" complete ")).count(), 50, "{out}");
    let bars = out.lines().find(|line| line.starts_with("references removed")).unwrap();
    assert!(bars.contains('█') && bars.ends_with("up to 3"), "{bars}");
    let (code, out, _) = tagsweep(&["history", "--url", &url, "--json"]);
    let runs: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, runs.len()), (0, 50));
    assert_eq!(runs[0]["references_removed"], 3);
    assert_eq!(runs[1]["references_removed"], 0);
    let page = server.dir().join("history.html");
    let path = page.display().to_string();
    let (code, out, err) = tagsweep(&["history", "--url", &url, "--html", &path]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.to_lowercase().starts_with("<!doctype html>"), "{}", &page[..40]);
    assert!(page.contains("<svg"));
    assert!(!page.contains("http://") && !page.contains("https://"), "complete in itself");
    let (code, _, err) = tagsweep(&["history", "--url", &url, "--html", "/nowhere/at/all"]);
    assert!(code != 0 && err.contains("/nowhere/at/all"), "{code} {err}");
}

#[test]
fn a_plan_needs_no_permission_to_write() {
    let server = Server::start();
    fill(&server);
    let mut con = server.connect();
    let _: () = run(&mut con, "ACL SETUSER viewer on >secret ~* &* +@all -@write -@scripting");
    let before: i64 = run(&mut con, "DBSIZE");
    let url = format!("{}?user=viewer&pass=secret", server.url());
    let (code, out, err) = tagsweep(&["plan", "--url", &url]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("2 seen, 1 to remove, 1 pruned"), "{out}");
    assert!(out.contains("tag:mixed") && out.contains("item:gone"), "samples are shown: {out}");
    let (_, out, _) = tagsweep(&["plan", "--url", &url, "--json"]);
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(report["samples"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(run::<i64>(&mut con, "DBSIZE"), before, "a plan writes nothing");
    let (code, _, err) = tagsweep(&["sweep", "--url", &url]);
    assert!(code == 1 && err.contains("NOPERM") && !err.contains("secret"), "{code} {err}");
}

#[test]
fn options_out_of_bounds_are_refused_before_anything_is_touched() {
    for wrong in [
        ["--effort", "11"],
        ["--effort", "0"],
        ["--max-latency", "1us"],
        ["--memory", "1M"],
        ["--memory", "lots"],
        ["--max-share", "0"],
        ["--grace", "2h"],
        ["--max-tag-age", "200d"],
        ["--lock-ttl", "10ms"],
    ] {
        let (code, out, err) = tagsweep(&["sweep", "--url", "unix:///nowhere", wrong[0], wrong[1]]);
        assert!(code == 2 && out.is_empty(), "{wrong:?}: {code} {err}");
        assert!(!err.contains("nowhere"), "{wrong:?}: no server was asked: {err}");
    }
}

#[test]
fn a_sweep_goes_on_where_another_was_stopped_unless_told_otherwise() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 200000 do redis.call('SET', 'other:' .. i, '') end \
                for i = 1, 2000 do redis.call('SADD', 'tag:' .. i, 'item:' .. i) end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    let slowly = ["sweep", "--trust-mapping", "--effort", "1", "--max-duration", "300ms"];
    let url = ["--url", &server.url(), "--json", "--grace", "0s"];
    let (code, out, _) = tagsweep(&[slowly.as_slice(), &url].concat());
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((code, &report["reason"]), (4, &"max_duration".into()), "{report}");
    assert!(run::<bool>(&mut con, "EXISTS {lock:cache_tag_cleanup}:checkpoint"), "{report}");
    let plan = ["plan", "--trust-mapping", "--fresh"];
    let (_, out, _) = tagsweep(&[plan.as_slice(), &url].concat());
    let whole: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(whole["resumed_at"], 0.0);
    let (code, out, _) = tagsweep(&[["sweep", "--trust-mapping"].as_slice(), &url].concat());
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert!(code == 0 && report["resumed_at"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(run::<i64>(&mut con, "DBSIZE") - 200_000, leavings(&mut con), "no tag is left");
    assert!(!run::<bool>(&mut con, "EXISTS {lock:cache_tag_cleanup}:checkpoint"));
}

/// Keys of our own that stay.
fn leavings(con: &mut redis::Connection) -> i64 {
    con.keys::<_, Vec<String>>("{lock:*").unwrap().len() as i64
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
fn a_key_that_is_no_lock_does_not_hide_the_others() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = con.hset("lock:cart", "a", 1).unwrap();
    let _: () = con.set_ex("lock:job", "x", 60).unwrap();
    let (code, out, err) = tagsweep(&["status", "--url", &server.url()]);
    assert!(code == 0 && out.contains("job") && err.contains("lock:cart"), "{out}{err}");
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

/// A resolver that never answers, in place of the system's.
fn deaf_resolver(folder: &std::path::Path) -> std::path::PathBuf {
    let (source, library) = (folder.join("deaf.c"), folder.join("deaf.so"));
    let code = "#include <unistd.h>\nint getaddrinfo() { for (;;) pause(); }\n";
    std::fs::write(&source, code).unwrap();
    let mut build = Command::new("cc");
    build.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
    assert!(build.status().unwrap().success());
    library
}

#[test]
fn a_name_that_is_not_resolved_costs_no_more_than_the_time_given() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(TAGSWEEP);
    command.env("LD_PRELOAD", deaf_resolver(folder.path())).env_remove("REDIS_URL");
    let url = "redis://cache.example:6379";
    let begun = Instant::now();
    let (code, _, err) = read(command.args(["status", "job", "--url", url, "--timeout", "300ms"]));
    assert_eq!(code, 1, "{err}");
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
    assert!(err.contains("cache.example") && err.contains("not resolved in time"), "{err}");
}

#[test]
fn a_sweep_takes_the_memory_that_it_is_given_whatever_the_names() {
    let server = Server::start();
    let mut con = server.connect();
    let tags = 100;
    for tag in 0..tags {
        let name = |member| format!("item:{tag}.{member}.{}", "x".repeat(2000));
        let _: () = con.sadd(format!("tag:{tag}"), (0..150).map(name).collect::<Vec<_>>()).unwrap();
        let _: () = con.set(name(0), "live").unwrap();
        age(&mut con, format!("tag:{tag}"), 60);
    }
    // 30 MB of names, of which a fraction may be kept at a time.
    let url = server.url();
    let mut sweep = spawn(&["sweep", "--url", &url, "--memory", "8M", "--grace", "1s"]);
    let status = format!("/proc/{}/status", sweep.id());
    let mut peak = 0;
    while sweep.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(sweep.wait().unwrap().success());
    let left: i64 = (0..tags).map(|n| con.scard::<_, i64>(format!("tag:{n}")).unwrap()).sum();
    assert_eq!(left, tags);
    assert!((1..20 << 10).contains(&peak), "{peak} KiB");
}

#[test]
fn status_knows_locks_from_what_they_keep_and_bears_a_reader_who_leaves() {
    let server = Server::start();
    let (url, mut con) = (server.url(), server.connect());
    let under = |prefix: &str, name: &str| {
        let (code, _, err) =
            tagsweep(&["lock", "--url", &url, "--prefix", prefix, name, "--", "true"]);
        assert_eq!((code, err.as_str()), (0, ""));
    };
    for n in 0..300 {
        let _: () = con.set(format!("{{app}}:lock:n{n}"), "t:7|\x1b[2Jweb|1|p").unwrap();
    }
    under("{app}:", "job");
    let (code, out, _) = tagsweep(&["status", "--url", &url, "--prefix", "{app}:"]);
    let names = out.lines().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>();
    assert_eq!((code, names.len()), (0, 301), "{names:?}");
    assert!(names.contains(&"job") && !out.contains('\x1b'));
    let command = format!("{TAGSWEEP} status --url '{url}' --prefix '{{app}}:' | head -n 1");
    let script = format!("set -o pipefail; {command}");
    let (code, _, err) = read(Command::new("bash").args(["-c", &script]));
    assert_eq!((code, err.as_str()), (0, ""));
}

/// Gives the user that the printed rule is about its rights, as an operator would, and says how to be it.
fn allow(server: &Server, arguments: &[&str]) -> String {
    let (code, rule, err) = tagsweep(&[&["acl"], arguments].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    let mut cli = Command::new("redis-cli");
    cli.arg("-s").arg(server.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cli = cli.spawn().unwrap();
    std::io::Write::write_all(&mut cli.stdin.take().unwrap(), rule.as_bytes()).unwrap();
    let answer = cli.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&answer).trim(), "OK", "{rule}");
    format!("unix://{}?db=1&user=tagsweep&pass=PASSWORD", server.socket().display())
}

/// Commands of a printed rule that nobody ran since the statistics began.
fn idle_rights(server: &Server, arguments: &[&str]) -> Vec<String> {
    let (_, rule, _) = tagsweep(&[&["acl"], arguments].concat());
    let stats: String = run(&mut server.connect(), "INFO commandstats");
    let ran = |name: &str| stats.contains(&format!("cmdstat_{name}:"));
    let names = rule.split_whitespace().filter_map(|word| word.strip_prefix('+'));
    names.filter(|name| !ran(name)).map(str::to_owned).collect()
}

/// All that becomes of locks: handed over, looked at from the line, taken away, lost, not confirmed.
fn use_locks(url: &str, prefix: &str, con: &mut redis::Connection) {
    let on = ["--url", url, "--prefix", prefix];
    let lock = |more: &[&str], seconds: &str| {
        spawn(&[&["lock", "job"], &on[..], more, &["--", "sleep", seconds]].concat())
    };
    let key = format!("{prefix}lock:job");
    let held = |con: &mut redis::Connection| con.exists::<_, bool>(&key).unwrap();
    let ended = |child: Child| {
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(!said.contains("NOPERM"), "{said}");
        (status.code(), said)
    };
    let first = lock(&["--ttl", "600ms"], "2");
    until("it is held", || held(con));
    let waiters = format!("{{{key}}}:waiters");
    let others = [lock(&["--wait", "9s"], "0.1"), lock(&["--wait", "100ms", "--ttl", "auto"], "1")];
    assert_eq!(ended(first).0, Some(0));
    let codes = others.map(|other| ended(other).0);
    assert_eq!(codes, [Some(0), Some(3)]);
    let first = lock(&[], "30");
    until("it is held", || held(con));
    let next = lock(&["--wait", "9s"], "0.1");
    until("somebody waits", || con.zcard::<_, u64>(&waiters).unwrap() == 1);
    let (code, _, err) = tagsweep(&[&["force-release", "job", "--any"], &on[..]].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(ended(next).0, Some(0));
    signal(first.id(), "TERM");
    ended(first);
    let lost = lock(&["--ttl", "300ms"], "30");
    until("it is held", || held(con));
    let _: () = con.del(&key).unwrap();
    assert_eq!(ended(lost).0, Some(4));
    let (code, said) = ended(lock(&["--confirm", "1"], "0.1"));
    assert!(code == Some(1) && said.contains("0 of 1 replicas"), "{said}");
    let (code, _, err) = tagsweep(&[&["status", "job"], &on[..]].concat());
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn the_printed_rules_give_what_is_needed_and_no_more() {
    let server = Server::start();
    let admin = format!("unix://{}?db=1", server.socket().display());
    let mut con = redis::Client::open(admin.as_str()).unwrap().get_connection().unwrap();
    let info: String = run(&mut con, "INFO server");
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap();
    let version = ["--server-version", version];
    for (role, more) in [
        ("lock", &["--prefix", "app:"][..]),
        ("sweep", &[]),
        ("plan", &["--prefix", "app:", "--entry-prefix", "app:"]),
        ("watch", &[]),
    ] {
        let rule = [&[role], &version[..], more].concat();
        let url = allow(&server, &rule);
        for tag in ["tag:t", "app:tag:t"] {
            let _: () = con.sadd(tag, &["item:gone", "item:live"]).unwrap();
            age(&mut con, tag, 60);
        }
        let _: () = con.set("item:live", "x").unwrap();
        let _: () = con.set("app:item:live", "x").unwrap();
        run::<()>(&mut con, "ACL LOG RESET");
        run::<()>(&mut con, "CONFIG RESETSTAT");
        let done = |arguments: &[&str]| {
            let (code, out, err) = tagsweep(&[arguments, &["--url", &url]].concat());
            assert!(code == 0 && !err.contains("NOPERM"), "{role} {arguments:?}: {out} {err}");
        };
        match role {
            "lock" => use_locks(&url, "app:", &mut con),
            "sweep" => {
                use_locks(&url, "", &mut con);
                done(&["sweep", "--durable", "--remember", "1h", "--max-tag-age", "1h"]);
                // An entry that comes late, and its tag after all.
                let _: () = con.sadd("tag:late", "item:late").unwrap();
                age(&mut con, "tag:late", 60);
                let sweep = spawn(&[
                    "sweep",
                    "--url",
                    &url,
                    "--max-tag-age",
                    "30s",
                    "--on-aged",
                    "invalidate",
                ]);
                until("it is gone", || !con.exists::<_, bool>("tag:late").unwrap());
                let _: () = con.set("item:late", "x").unwrap();
                let ended = sweep.wait_with_output().unwrap();
                assert!(ended.status.success(), "{ended:?}");
                assert!(con.sismember::<_, _, bool>("tag:late", "item:late").unwrap());
            }
            "plan" => done(&[
                "plan",
                "--prefix",
                "app:",
                "--entry-prefix",
                "app:",
                "--remember",
                "1h",
                "--max-tag-age",
                "1h",
            ]),
            _ => {
                done(&["status"]);
                done(&["metrics"]);
                done(&["history"]);
            }
        }
        let refused: Vec<redis::Value> = run(&mut con, "ACL LOG");
        assert!(refused.is_empty(), "{role}: {refused:?}");
        // After it is asked which rights are idle: the doctor uses others' as well.
        let idle = idle_rights(&server, &rule);
        let prefix = if more.is_empty() { "" } else { "app:" };
        done(&["doctor", "--for", role, "--prefix", prefix]);
        let refused: Vec<redis::Value> = run(&mut con, "ACL LOG");
        assert!(refused.is_empty(), "{role}: {refused:?}");
        // Statistics of weeks ago are forgotten with HDEL; a connection without a password begins with PING.
        assert!(
            idle.iter().all(|name| ["hdel", "ping"].contains(&name.as_str())),
            "{role}: {idle:?}"
        );
    }
}

#[test]
fn the_doctor_says_what_stands_in_the_way_and_changes_nothing() {
    let server = Server::start();
    let mut con = server.connect();
    let examine = |url: &str| tagsweep(&["doctor", "--url", url]);
    let (code, out, err) = examine(&server.url());
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("round trip") && out.contains("no sweep was ever complete"), "{out}");
    run::<()>(&mut con, "ACL SETUSER some on >pw ~* +@all -srem -blpop");
    let some = format!("unix://{}?user=some&pass=pw", server.socket().display());
    let (code, out, _) = examine(&some);
    assert!(code == 1 && out.contains("bad   the user may not: SREM on tag:"), "{out}");
    assert!(out.contains("note  commands do not block"), "{out}");
    run::<()>(&mut con, "ACL SETUSER some -eval -info");
    let (code, out, _) = tagsweep(&["doctor", "--url", &some, "--json"]);
    let bad = |line: &serde_json::Value| line["grade"] == "bad";
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(code == 1 && lines.iter().filter(|line| bad(line)).count() == 1, "{out}");
    for (role, missing) in [
        ("lock", "evalsha"),
        ("lock", "zadd"),
        ("lock", "ping"),
        ("sweep", "hset"),
        ("watch", "scan"),
    ] {
        run::<()>(&mut con, &format!("ACL SETUSER some reset on >pw ~* +@all -{missing}"));
        let (code, out, err) = tagsweep(&["doctor", "--url", &some, "--for", role]);
        let told = out.to_lowercase().contains(missing) && out.contains("bad   the user may not");
        assert!(code == 1 && told, "{role} {missing}: {out}{err}");
    }
    run::<()>(&mut con, "REPLICAOF 127.0.0.1 1");
    let (code, out, _) = examine(&server.url());
    assert!(code == 1 && out.contains("bad   it is a replica"), "{out}");
    let left: Vec<String> = run(&mut con, "KEYS *");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(examine("redis://127.0.0.1:1").0, 1);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let server = Server::start();
    let url = server.url();
    for command in [
        &["plan", "--trust-mapping"][..],
        &["sweep", "--json", "--trust-mapping"],
        &["history"],
        &["acl", "lock"],
    ] {
        let on = if command[0] == "acl" { vec![] } else { vec!["--url", url.as_str()] };
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let run = Command::new(TAGSWEEP).args(command).args(on).stdout(full).output().unwrap();
        let err = String::from_utf8_lossy(&run.stderr);
        assert!(
            run.status.code() == Some(1) && err.contains("No space left"),
            "{command:?}: {err}"
        );
    }
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
        assert!(begun.elapsed() < Duration::from_secs(5), "it waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = run.wait_with_output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&said).contains("got yes"), "{said:?}");
}

#[test]
fn what_is_written_replaces_files_and_nothing_else() {
    let server = Server::start();
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let write = |to: &str| tagsweep(&["metrics", "--url", &server.url(), "--output", to]);
    std::fs::write(path("real"), "old").unwrap();
    std::fs::set_permissions(path("real"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
    assert_eq!(write(&path("link")).0, 0);
    let kept = std::fs::symlink_metadata(path("link")).unwrap();
    let text = std::fs::read_to_string(path("real")).unwrap();
    assert!(kept.is_symlink() && text.ends_with("# EOF\n"), "{text}");
    assert_eq!(std::fs::metadata(path("real")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(write("/dev/null").0, 0);
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let (_, out, _) = tagsweep(&[
        "metrics",
        "job",
        "--url",
        &server.url(),
        "--output",
        "-",
        "--label",
        "server=a",
    ]);
    assert!(out.contains("tagsweep_lock_held{server=\"a\",lock=\"job\"} 0\n"), "{out}");
    assert_eq!(tagsweep(&["metrics", "--label", "lock=a"]).0, 2);
    assert_eq!(tagsweep(&["metrics", "--label", "a=1", "--label", "a=2"]).0, 2);
    let (code, _, err) = write(&place.path().display().to_string());
    assert!(code == 1 && err.contains("cannot write"), "{err}");
    let mut left: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["link", "real"], "nothing beside");
}

#[test]
fn the_way_out_of_a_held_lock_can_be_pasted() {
    let server = Server::start();
    let url = server.url();
    let name = "it's; echo $HOME";
    let mut holder = Command::new(TAGSWEEP);
    holder.args([
        "lock", name, "--url", &url, "--prefix", "a b:", "--ttl", "2s", "--", "sleep", "60",
    ]);
    let mut holder = holder.spawn().unwrap();
    let mut con = server.connect();
    until("it is held", || con.exists(format!("a b:lock:{name}")).unwrap());
    let (code, _, err) = tagsweep(&["lock", name, "--url", &url, "--prefix", "a b:", "--", "true"]);
    assert_eq!(code, 3, "{err}");
    let words = err.split("tagsweep force-release").nth(1).unwrap();
    let words = words.split(" (on the same server)").next().unwrap();
    let mut pasted = Command::new("sh");
    pasted.args(["-c", &format!("{TAGSWEEP} force-release{words}")]).env("REDIS_URL", &url);
    let (code, out, err) = read(&mut pasted);
    assert!(code == 0 && out.contains("taken away"), "{words}: {out}{err}");
    assert_eq!(holder.wait().unwrap().code(), Some(4));
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
fn what_would_be_passed_over_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let ca = place.path().join("ca.pem").display().to_string();
    std::fs::write(&ca, "").unwrap();
    for (arguments, told) in [
        (&["status", "--url", "redis://127.0.0.1:1", "--tls-ca", &ca][..], "rediss://"),
        (&["plan", "--url", "redis://127.0.0.1:1", "--on-aged", "invalidate"], "max-tag-age"),
        (
            &["lock", "a", "--url", "redis://127.0.0.1:1", "--max-hold", "0", "--", "true"],
            "max-hold",
        ),
    ] {
        let (code, _, err) = tagsweep(arguments);
        assert!(code == 2 && err.contains(told), "{code} {err}");
    }
}
