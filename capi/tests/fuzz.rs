//! Calls in any order with any arguments, made up by libFuzzer, under the address sanitizer, against a
//! real server. `TAGSWEEP_FUZZ_SECONDS` sets the time (default 4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod build;
#[path = "../../tests/support/mod.rs"]
mod support;

use build::{archive, library, ok, repository};
use std::process::Command;
use support::Server;

#[test]
fn no_order_of_calls_breaks_the_library() {
    library();
    let server = Server::start();
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("calls");
    let root = repository();
    let include = format!("-I{}", root.join("include").display());
    let mut build = Command::new("clang");
    build.args(["-std=c99", "-g", "-O1", "-Wall", "-Wextra", "-Werror", &include]);
    build.arg("-fsanitize=fuzzer,address").arg(root.join("capi/fuzz/calls.c"));
    ok(build.arg("-o").arg(&program).args(archive()));
    let seconds = std::env::var("TAGSWEEP_FUZZ_SECONDS").unwrap_or("4".into());
    let mut fuzz = Command::new(&program);
    fuzz.args([&format!("-max_total_time={seconds}"), "-print_final_stats=1"]);
    fuzz.args(["-max_len=512", "-len_control=0"]);
    fuzz.env("TAGSWEEP_FUZZ_URL", server.url()).current_dir(place.path());
    let told = ok(&mut fuzz);
    let runs = told.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let runs: u64 = runs.expect("libFuzzer tells its runs").trim().parse().unwrap();
    println!("{runs} sequences of calls");
    assert!(runs > 100, "too few to find anything: {told}");
}
