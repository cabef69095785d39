//! What is told of locks and sweeps: `status`, `force-release`, `history`, `metrics`.

use crate::fixtures::*;
use crate::support::{Server, signal, until};
use redis::Commands;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::Command;

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
    let left: f64 = line("ttl left").split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!((15.0..=30.0).contains(&left), "{out}");
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
    let (code, text, _) = tagsweep(&["metrics", "--url", &url]);
    assert_eq!(code, 0);
    for said in [
        "run_total{lock=\"cache_tag_cleanup\",result=\"complete\"} 53\n",
        "run_total{lock=\"cache_tag_cleanup\",result=\"error\"} 0\n",
        "members_removed_total{lock=\"cache_tag_cleanup\"} 3\n",
        "last_success_timestamp_seconds{lock=\"cache_tag_cleanup\"} 1",
    ] {
        assert!(text.contains(said), "{said}{text}");
    }
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
fn a_key_that_is_no_lock_does_not_hide_the_others() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = con.hset("lock:cart", "a", 1).unwrap();
    let _: () = con.set_ex("lock:job", "x", 60).unwrap();
    let (code, out, err) = tagsweep(&["status", "--url", &server.url()]);
    assert!(code == 0 && out.contains("job") && err.contains("lock:cart"), "{out}{err}");
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
    paste_the_way_out_of("it's; echo $HOME", "sh");
    paste_the_way_out_of("it's\n\\a tab\t", "bash");
}

fn paste_the_way_out_of(name: &str, shell: &str) {
    let server = Server::start();
    let url = server.url();
    let mut holder = Command::new(TAGSWEEP);
    holder.args([
        "lock", "--url", &url, "--prefix", "a b:", "--ttl", "2s", name, "--", "sleep", "60",
    ]);
    let mut holder = holder.spawn().unwrap();
    let mut con = server.connect();
    until("it is held", || con.exists(format!("a b:lock:{name}")).unwrap());
    let (code, _, err) = tagsweep(&["lock", "--url", &url, "--prefix", "a b:", name, "--", "true"]);
    assert_eq!(code, 3, "{err}");
    paste(&err, shell, &url);
    assert_eq!(holder.wait().unwrap().code(), Some(4));
}

#[test]
fn a_lock_that_is_called_like_an_option_has_a_way_out() {
    let server = Server::start();
    let _: () = server.connect().set("lock:-x", "somebody:7|host|1|program").unwrap();
    let (code, _, err) = tagsweep(&["sweep", "--lock=-x", "--url", &server.url()]);
    assert_eq!(code, 3, "{err}");
    paste(&err, "sh", &server.url());
}

fn paste(told: &str, shell: &str, url: &str) {
    let words = told.split("tagsweep force-release").nth(1).unwrap();
    let words = words.split(" (on the same server)").next().unwrap();
    let mut pasted = Command::new(shell);
    pasted.args(["-c", &format!("{TAGSWEEP} force-release{words}")]).env("REDIS_URL", url);
    let (code, out, err) = read(&mut pasted);
    assert!(code == 0 && out.contains("taken away"), "{words}: {out}{err}");
}

#[test]
fn status_tells_who_waits_in_their_order_since_when_and_who_had_it() {
    let server = Server::start();
    let (url, mut con) = (server.url(), server.connect());
    let holder = spawn(&["lock", "job", "--url", &url, "--", "sleep", "60"]);
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let mut waiters = Vec::new();
    for n in 1..=3 {
        waiters.push(spawn(&["lock", "job", "--wait", "60s", "--url", &url, "--", "true"]));
        until("it waits", || con.zcard::<_, u64>("{lock:job}:waiters").unwrap() == n);
    }
    let look = || -> serde_json::Value {
        let (code, out, err) = tagsweep(&["status", "job", "--json", "--url", &url]);
        assert_eq!((code, err.as_str()), (0, ""));
        serde_json::from_str(&out).unwrap()
    };
    let status = look();
    let program = |who: &serde_json::Value| who["program"].as_str().unwrap().to_owned();
    assert!(program(&status["holder"]).starts_with("tagsweep/"), "{status}");
    let since = |who: &serde_json::Value| who["since"].as_f64().unwrap();
    let mut times = vec![since(&status["holder"])];
    times.extend(status["waiters"].as_array().unwrap().iter().map(since));
    times.push(status["time"].as_f64().unwrap());
    assert!(times.len() == 5 && times.is_sorted(), "{status}");
    let pids = |list: &str| -> Vec<u64> {
        status[list].as_array().unwrap().iter().map(|one| one["pid"].as_u64().unwrap()).collect()
    };
    let order: Vec<u64> = waiters.iter().map(|waiter| u64::from(waiter.id())).collect();
    assert_eq!(pids("waiters"), order);
    let (_, out, _) = tagsweep(&["status", "job", "--url", &url]);
    assert!(out.lines().any(|line| line.contains("holder") && line.contains(", for ")), "{out}");

    signal(holder.id(), "TERM");
    let first = holder.id();
    holder.wait_with_output().unwrap();
    for waiter in waiters {
        assert_eq!(waiter.wait_with_output().unwrap().status.code(), Some(0));
    }
    let status = look();
    let had: Vec<u64> = status["runs"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|run| run["pid"].as_u64().unwrap())
        .collect();
    assert_eq!(had, [&[u64::from(first)], order.as_slice()].concat(), "first come, first served");
    assert_eq!(status["runs"][0]["end"], "released");
    let (_, out, _) = tagsweep(&["status", "job", "--url", &url]);
    let past = out.lines().filter(|line| line.contains("past") && line.contains("held it"));
    assert_eq!(past.count(), 4, "{out}");
}
