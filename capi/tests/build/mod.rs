//! The library as C programs link it, and the programs that build them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Folder of the built library: two above this test's binary (`target/debug/deps/…`).
pub fn built() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().to_owned()
}

pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `make deps`"))
}

pub fn ok(command: &mut Command) -> String {
    let output = run(command);
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    let text = String::from_utf8_lossy(&both).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// `cargo test` builds a cdylib only as a dependency of nothing, so it is asked for by name.
pub fn library() {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        ok(build.args(["build", "--quiet", "-p", "tagsweep-capi"]).current_dir(repository()));
    });
}

pub fn shared() -> Vec<String> {
    let folder = built().display().to_string();
    vec![format!("-L{folder}"), format!("-Wl,-rpath,{folder}"), "-ltagsweep".into()]
}

/// The library to be linked statically, with what it needs.
pub fn archive() -> Vec<String> {
    let archive = built().join("libtagsweep.a").display().to_string();
    let needed = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc".split(' ').map(str::to_owned);
    std::iter::once(archive).chain(needed).collect()
}
