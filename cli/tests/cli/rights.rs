//! `tagsweep acl` and `doctor`.

use crate::fixtures::*;
use crate::support::{Server, age, run, signal, until};
use redis::Commands;
use std::process::{Child, Command, Output, Stdio};

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
    let first = lock(&["--ttl", "2s"], "3");
    until("it is held", || held(con));
    let waiters = format!("{{{key}}}:waiters");
    let others = [lock(&["--wait", "9s"], "0.1"), lock(&["--wait", "1s", "--ttl", "auto"], "1")];
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
    let lost = lock(&["--ttl", "2s"], "30");
    until("it is held", || held(con));
    let _: () = con.del(&key).unwrap();
    assert_eq!(ended(lost).0, Some(4));
    let (code, said) = ended(lock(&["--confirm", "1"], "0.1"));
    assert!(code == Some(1) && said.contains("replicas have the grant"), "{said}");
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
                    "--verify",
                    "3s",
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
    run::<()>(&mut con, "ACL SETUSER some on >pw ~* +@all -srem -blpop -client|tracking");
    let some = format!("unix://{}?user=some&pass=pw", server.socket().display());
    let (code, out, _) = examine(&some);
    assert!(code == 1 && out.contains("bad   the user may not: SREM on tag:"), "{out}");
    assert!(out.contains("note  commands do not block"), "{out}");
    assert!(out.contains("note  it does not tell of changes"), "{out}");
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
fn who_reads_no_more_is_told_by_the_exit_code_all_the_same() {
    let server = Server::start();
    let _: () = run(&mut server.connect(), "CONFIG SET min-replicas-to-write 1");
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let doctor =
        Command::new(TAGSWEEP).args(["doctor", "--url", &server.url()]).stdout(write).status();
    assert_eq!(doctor.unwrap().code(), Some(1));
}
