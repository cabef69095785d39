//! `tagsweep sweep` and `plan`.

use crate::fixtures::*;
use crate::support::{Server, age, run, signal, until};
use redis::Commands;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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
    // Several servers and nights may share one log.
    assert_eq!((&report["prefix"], &report["lock"]), (&"".into(), &"cache_tag_cleanup".into()));
    assert!(report["server"].as_str().unwrap().starts_with("unix://"), "{report}");
    let at = report["at"].as_str().unwrap();
    assert!(at.len() == "2026-11-26T13:00:00Z".len() && at.ends_with('Z'), "{at}");
    let (code, out, _) = read(Command::new(TAGSWEEP).arg("sweep").env("REDIS_URL", server.url()));
    assert!(code == 0 && out.contains("0 removed"), "the URL comes from the environment: {out}");
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
        let line: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["type"], "progress");
        for figure in ["share", "keys", "effort", "references_per_s", "tags_seen", "duration_s"] {
            assert!(line[figure].is_number(), "{figure}: {line}");
        }
        let begun = Instant::now();
        signal(sweep.id(), name);
        let last = lines.map(Result::unwrap).last().unwrap();
        assert_eq!(sweep.wait().unwrap().code(), Some(4));
        assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
        assert!(last.contains("\"reason\":\"stopped\""), "{last}");
        assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
    }
}

#[test]
fn a_sweep_is_not_held_up_by_whoever_does_not_read() {
    let server = Server::start();
    fill(&server);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'\n'; 65_536]).unwrap(); // as much as there is room for
    let mut sweep = Command::new(TAGSWEEP)
        .args(["sweep", "--url", &server.url(), "--json", "--verify", "3s", "--lock-ttl", "2s"])
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut con = server.connect();
    let locked = |con: &mut redis::Connection| con.exists("lock:cache_tag_cleanup").unwrap();
    until("it sweeps", || locked(&mut con));
    until("it has ended", || !locked(&mut con));
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    assert_eq!(sweep.wait().unwrap().code(), Some(0));
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(report["references_removed"], 3, "{report}");
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
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
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
fn the_demo_leaves_nothing_behind() {
    let server = Server::start();
    let (code, out, err) = tagsweep(&["demo", "--tags", "30", "--url", &server.url()]);
    assert!(code == 0 && out.contains("10 removed, 10 pruned"), "{out}{err}");
    assert_eq!(run::<u64>(&mut server.connect(), "DBSIZE"), 0);
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
fn a_sweep_goes_on_where_another_was_stopped_unless_told_otherwise() {
    let server = Server::start();
    let mut con = server.connect();
    let fill = "for i = 1, 200000 do redis.call('SET', 'other:' .. i, '') end \
                for i = 1, 2000 do redis.call('SADD', 'tag:' .. i, 'item:' .. i) end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    let in_part = ["sweep", "--trust-mapping", "--max-removals", "500"];
    let url = ["--url", &server.url(), "--json", "--grace", "0s"];
    let (code, out, _) = tagsweep(&[in_part.as_slice(), &url].concat());
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((code, &report["reason"]), (4, &"max_removals".into()), "{report}");
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

/// The most memory that a sweep had (KiB).
fn peak_of(server: &Server, memory: &str) -> u64 {
    let url = server.url();
    let mut sweep = spawn(&["sweep", "--url", &url, "--memory", memory, "--grace", "1s"]);
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
    peak
}

#[test]
fn a_sweep_takes_the_memory_that_it_is_given_whatever_the_names() {
    // Tags, members, length of a name: 30 MB of names, of which a fraction may be kept at a time; some 10 MB in one set;
    // and names as long as LIMITS.md speaks of.
    for (tags, members, length, most) in
        [(100, 150, 2000, 20 << 10), (1, 400_000, 10, 20 << 10), (20, 20, 60_000, 40 << 10)]
    {
        let server = Server::start();
        let mut con = server.connect();
        for tag in 0..tags {
            let name = |member| format!("item:{tag}.{member}.{}", "x".repeat(length));
            let names: Vec<String> = (0..members).map(name).collect();
            for some in names.chunks(1000) {
                let _: () = con.sadd(format!("tag:{tag}"), some).unwrap();
            }
            let _: () = con.set(name(0), "live").unwrap();
            age(&mut con, format!("tag:{tag}"), 60);
        }
        let peak = peak_of(&server, "8M");
        let left: i64 = (0..tags).map(|n| con.scard::<_, i64>(format!("tag:{n}")).unwrap()).sum();
        assert_eq!(left, tags);
        assert!((1..most).contains(&peak), "{tags} {members} {length}: {peak} KiB");
    }
}

/// A sweep that waits for a young tag, started by a shell after these words.
fn waiting_sweep(server: &Server, after: &str) -> Child {
    let mut con = server.connect();
    let _: () = con.sadd("tag:young", "item:gone").unwrap();
    let sweep = Command::new("sh")
        .args(["-c", &format!("{after} exec \"$0\" sweep --trust-mapping --grace 1s --url \"$1\"")])
        .args([TAGSWEEP, &server.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it holds its lock", || run(&mut con, "EXISTS lock:cache_tag_cleanup"));
    sweep
}

#[test]
fn a_signal_that_comes_twice_at_once_is_one() {
    let server = Server::start();
    let sweep = waiting_sweep(&server, "");
    // As `timeout` and a shell's `kill %1` do it.
    (0..3).for_each(|_| signal(sweep.id(), "TERM"));
    let Output { status, stdout, .. } = sweep.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(4));
    assert!(String::from_utf8_lossy(&stdout).contains("stopped on request"));
    assert!(!run::<bool>(&mut server.connect(), "EXISTS lock:cache_tag_cleanup"));
}

#[test]
fn a_signal_that_is_ignored_ends_no_sweep() {
    let server = Server::start();
    let sweep = waiting_sweep(&server, "trap '' HUP INT;");
    signal(sweep.id(), "HUP");
    signal(sweep.id(), "INT");
    assert_eq!(sweep.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
fn a_terminal_shows_a_bar() {
    let server = Server::start();
    fill(&server);
    let _: () = server.connect().sadd("tag:young", "item:x").unwrap();
    let (program, url) = (env!("CARGO_BIN_EXE_tagsweep"), server.url());
    let mut script = Command::new("script");
    script.args(["-qec", &format!("{program} sweep --url {url} --grace 1s"), "/dev/null"]);
    let shown = script.stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let is_bar = |line: &str| line.contains(" %  ") && line.contains(" left, 3 tags, ");
    let bar = shown.split(['\r', '\n']).find(|line| is_bar(line)).unwrap_or_default();
    assert!(bar.contains(" references (") && bar.contains("/s), "), "{shown}");
    assert!(shown.contains("5 checked, 4 removed"), "{shown}");
}
