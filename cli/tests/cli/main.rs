//! The command line by its exit codes and output, against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod fixtures;
mod lock;
mod rights;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod sweep;
mod watch;

use fixtures::*;
use redis::Commands;
use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Server, run};

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
    for wrong in [["--max-share", "5"], ["--tls-ca", "/nowhere"]] {
        let (code, out, err) =
            tagsweep(&[&["sweep", "--json", "--url", &url], &wrong[..]].concat());
        assert!(code != 0 && !err.is_empty(), "{code} {err}");
        assert!(out.lines().last().is_some_and(|line| line.contains(r#""type":"error""#)), "{out}");
    }
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
fn a_password_in_the_wrong_place_is_not_repeated() {
    for url in ["redis://user:top@secret@127.0.0.1:1", "unix:///s?user=top&pass=secret"] {
        let beside = format!("--url {url}");
        for wrong in [
            &["sweep", url][..],
            &[url],
            &["demo", url],
            &["sweep", &beside],
            &["sweep", "--grace", url],
            &["status", url],
            &["lock", url, "--", "true"],
            &["force-release", "--any", url],
            &["metrics", "--label", url],
        ] {
            let (code, out, err) = tagsweep(wrong);
            assert!(code == 2 && !(out + &err).contains("secret"), "{wrong:?}: {err}");
            assert!(!err.is_empty() && !err.contains("top"), "{err}");
        }
    }
    let (code, out, err) = tagsweep(&["metrics", "redis://:secret@h"]);
    assert!(code == 2 && !(out + &err).contains("secret"), "{err}");
    let (code, out, _) = tagsweep(&["sweep", "--url", "redis://u:secret@h", "--help"]);
    assert!(code == 0 && out.contains("--grace"), "{out}");
    let name = "https://u@h/name";
    let (code, _, err) = tagsweep(&["status", name, "--url", "redis://127.0.0.1:1"]);
    assert!(code == 1 && err.contains("no connection"), "a name like any other: {err}");
    let (code, _, err) = tagsweep(&["status", "--url", ""]);
    assert!(code == 2 && err.contains("not a server URL"), "{code} {err}");
}

#[test]
fn what_keeps_everything_from_being_answered_is_told_once() {
    let server = Server::with(&["--requirepass", "pw"]);
    let unknowing = Server::with(&["--rename-command", "AUTH", ""]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n<html>");
        }
    });
    for (url, status, said) in [
        (server.url(), 1, "NOAUTH"),
        (format!("{}?pass=wrong", server.url()), 1, "WRONGPASS"),
        (format!("{}?pass=pw&db=77", server.url()), 1, "check the database number"),
        (elsewhere, 5, "not the answer of a Redis server"),
        (format!("{}?pass=canary", unknowing.url()), 1, "check user and password"),
    ] {
        let (code, out, err) = tagsweep(&["doctor", "--timeout", "1s", "--url", &url]);
        assert_eq!((code, out.as_str(), err.lines().count()), (status, "", 1), "{err}");
        assert!(err.contains(said) && !err.contains("canary"), "{err}");
    }
    // What refuses some commands only is looked at.
    let mut con = unknowing.connect();
    let _: () = run(&mut con, "CONFIG SET min-replicas-to-write 1");
    let (code, out, _) = tagsweep(&["doctor", "--url", &unknowing.url()]);
    assert!(
        code == 1 && out.contains("min-replicas-to-write") && out.contains("round trip"),
        "{out}"
    );
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
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(err.contains("cache.example") && err.contains("not resolved in time"), "{err}");
}

#[test]
fn what_would_be_passed_over_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let ca = place.path().join("ca.pem").display().to_string();
    std::fs::write(&ca, "").unwrap();
    // Settings are looked at once somebody answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = format!("rediss://{}", listener.local_addr().unwrap());
    for (arguments, told) in [
        (&["status", "--url", "redis://127.0.0.1:1", "--tls-ca", &ca][..], "rediss://"),
        (&["status", "--url", &tls, "--tls-ca", &ca], "there is no certificate in it"),
        (&["status", "--url", &tls, "--tls-ca", "/no_such_file"], "/no_such_file"),
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
