//! The C examples are the C tests: compiled as C99 and as C++17 with all warnings as errors, linked
//! with both libraries, run against a real server, and run under valgrind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod build;
#[path = "../../tests/support/mod.rs"]
mod support;

use build::{archive, built, library, ok, repository, run, shared};
use redis::Commands;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::errors::{Refusing, matrix};
use support::{Server, age, until};

fn compile(example: &str, compiler: &[&str], link: &[&str], to: &Path) -> PathBuf {
    compile_in("capi/examples", example, compiler, link, to)
}

fn compile_in(folder: &str, name: &str, compiler: &[&str], link: &[&str], to: &Path) -> PathBuf {
    let program = to.join(format!("{name}-{}-{}", compiler[0], link.len()));
    let source = repository().join(folder).join(name);
    let include = format!("-I{}", repository().join("include").display());
    let mut command = Command::new(compiler[0]);
    command
        .args(&compiler[1..])
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", &include])
        .arg(&source)
        .arg("-o")
        .arg(&program);
    if compiler[0] == "c++" {
        command.args(["-x", "none"]);
    }
    ok(command.args(link));
    program
}

const C99: &[&str] = &["cc", "-std=c99"];
const CPP17: &[&str] = &["c++", "-x", "c++", "-std=c++17"];

fn program(example: &str, compiler: &[&str], to: &Path) -> PathBuf {
    let link = shared();
    compile(example, compiler, &link.iter().map(String::as_str).collect::<Vec<_>>(), to)
}

/// Where programs are built, and find the library: its soname is its name for the loader; a link stands for
/// `make install`.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let name = place.path().join("libtagsweep.so.0");
    std::os::unix::fs::symlink(built().join("libtagsweep.so"), name).unwrap();
    place
}

fn tagged_cache(server: &Server) {
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:mixed", &["item:live", "item:gone"]).unwrap();
    let _: () = con.sadd("tag:orphan", &["item:a", "item:b"]).unwrap();
    age(&mut con, "tag:mixed", 60);
    age(&mut con, "tag:orphan", 60);
}

#[test]
fn the_examples_run_as_c99_and_cpp17_and_statically() {
    library();
    let server = Server::start();
    let place = place();
    let archive = archive();
    let fixed: Vec<&str> = archive.iter().map(String::as_str).collect();
    for example in ["lock.c", "plan.c", "sweep.c", "renew.c"] {
        for program in [
            program(example, C99, place.path()),
            program(example, CPP17, place.path()),
            compile(example, C99, &fixed, place.path()),
        ] {
            tagged_cache(&server);
            let mut command = Command::new(&program);
            command.env("LD_LIBRARY_PATH", place.path()).arg(server.url());
            if example == "lock.c" {
                let text = ok(command.arg("job"));
                assert!(text.contains("acquired, fence ") && text.contains("released"), "{text}");
            } else if example == "renew.c" {
                let text = ok(command.args(["job", "0", "10"]));
                assert!(text.starts_with("acquired 1") && text.contains("released"), "{text}");
            } else if example == "plan.c" {
                let text = ok(&mut command);
                assert!(
                    text.contains("tag:mixed would lose item:gone: the entry is gone"),
                    "{text}"
                );
                let sum = "3 of 4 references would go, 2 of them shown; 1 tags with their last one";
                assert!(text.contains(sum), "{text}");
            } else {
                let text = ok(&mut command);
                assert!(text.contains("1 tags removed, 1 pruned, 3 references"), "{text}");
            }
        }
    }
    let symbols =
        ok(Command::new("nm").args(["-D", "--defined-only"]).arg(built().join("libtagsweep.so")));
    let foreign: Vec<_> = symbols.lines().filter(|line| !line.contains(" tagsweep_")).collect();
    assert!(foreign.is_empty(), "exported besides tagsweep_*: {foreign:?}");
}

#[test]
fn the_examples_are_clean_under_valgrind() {
    library();
    let server = Server::start();
    let place = place();
    tagged_cache(&server);
    let renew = &["job", "20000", "4500"][..];
    for (example, arguments) in
        [("lock.c", &["job"][..]), ("plan.c", &[]), ("sweep.c", &[]), ("renew.c", renew)]
    {
        let program = program(example, C99, place.path());
        let mut command = Command::new("valgrind");
        command
            .args(["--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"])
            .env("LD_LIBRARY_PATH", place.path())
            .arg(program)
            .arg(server.url())
            .args(arguments);
        ok(&mut command);
    }
}

#[test]
fn a_callback_ends_a_sweep_with_its_figures_and_without_its_lock() {
    library();
    let server = Server::start();
    let place = place();
    tagged_cache(&server);
    let mut con = server.connect();
    // It waits for this one.
    let _: () = con.sadd("tag:young", "item:soon").unwrap();
    let mut command = Command::new(program("sweep.c", C99, place.path()));
    command.env("LD_LIBRARY_PATH", place.path()).arg(server.url());
    let sweep = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A look at its members would make a tag young.
    until("it has removed something", || !con.exists::<_, bool>("tag:orphan").unwrap());
    support::signal(sweep.id(), "INT");
    let ended = sweep.wait_with_output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(4), "{out}{err}");
    assert!(out.contains("1 tags removed, "), "{out}");
    assert!(err.contains("ended early (stopped)"), "{err}");
    assert!(!con.exists::<_, bool>("lock:cache_tag_cleanup").unwrap());
}

#[test]
fn outcomes_and_errors_reach_the_shell() {
    library();
    let server = Server::start();
    let place = place();
    let lock = program("lock.c", C99, place.path());
    let sweep = program("sweep.c", C99, place.path());
    let tell = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        let output = run(command.env("LD_LIBRARY_PATH", place.path()).args(arguments));
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut con = server.connect();
    let _: () = con.set("lock:job", "somebody").unwrap();
    let (code, text) = tell(&lock, &[&server.url(), "job"]);
    assert!(code == 3 && text.contains("held by an unknown program"), "{text}");
    let (code, text) = tell(&lock, &["redis://127.0.0.1:1", "job"]);
    assert!(code == 1 && text.contains("redis://127.0.0.1:1/0"), "{text}");
    let (code, text) = tell(&lock, &["redis://:canary@127.0.0.1:x", "job"]);
    assert!(code == 1 && text.contains("rediss://") && !text.contains("canary"), "{text}");
    let (code, text) = tell(&lock, &[&server.url(), ""]);
    assert!(code == 1 && text.contains("must not be empty"), "{text}");
    let _: () = con.set("lock:cache_tag_cleanup", "somebody").unwrap();
    let (code, text) = tell(&sweep, &[&server.url()]);
    assert!(code == 3 && text.contains("another sweep runs"), "{text}");
}

#[test]
fn a_renewed_lease_is_waited_for_handed_over_and_lost() {
    library();
    let server = Server::start();
    let place = place();
    let renew = program("renew.c", C99, place.path());
    let start = |wait: &str, work: &str| {
        let mut command = Command::new(&renew);
        command.env("LD_LIBRARY_PATH", place.path()).args([&server.url(), "job", wait, work]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut con = server.connect();
    let holder = start("0", "4500");
    until("it holds", || con.exists::<_, bool>("lock:job").unwrap());
    let waiter = start("20000", "30000");
    until("one waits", || con.zcard::<_, u64>("{lock:job}:waiters").unwrap() == 1);
    let cancelled = start("20000", "30000");
    until("two wait", || con.zcard::<_, u64>("{lock:job}:waiters").unwrap() == 2);
    support::signal(cancelled.id(), "INT");
    assert_eq!(cancelled.wait_with_output().unwrap().status.code(), Some(3));
    let first = holder.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(0), "held beyond its TTL of three seconds");
    until("it is handed over", || {
        con.get::<_, String>("lock:job").unwrap().contains(&format!("|{}|", waiter.id()))
    });
    let _: () = con.set("lock:job", "thief").unwrap();
    let second = waiter.wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&second.stderr).contains("lost: stolen"));
}

#[test]
fn every_answer_of_a_server_has_its_code_for_every_act() {
    library();
    let (place, link) = (place(), shared());
    let link: Vec<&str> = link.iter().map(String::as_str).collect();
    let program = compile_in("capi/tests/programs", "errors.c", C99, &link, place.path());
    for row in matrix() {
        let server = Refusing::with(row.answer);
        let mut command = Command::new(&program);
        let told = ok(command.env("LD_LIBRARY_PATH", place.path()).arg(server.url()));
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 4, "{told}");
        for (line, act) in lines.iter().zip(["acquire", "verify", "extend", "release"]) {
            assert!(line.starts_with(&format!("{act} {} ", row.c)), "{}: {line}", row.answer);
            assert!(line.contains("lock:job") && line.contains("unix://"), "{line}");
        }
    }
}
