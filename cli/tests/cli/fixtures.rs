//! The program, and a cache to sweep.

use crate::support::{Server, age};
use redis::Commands;
use std::process::{Child, Command, Output, Stdio};

pub const TAGSWEEP: &str = env!("CARGO_BIN_EXE_tagsweep");

pub fn tagsweep(arguments: &[&str]) -> (i32, String, String) {
    read(Command::new(TAGSWEEP).args(arguments).env_remove("REDIS_URL"))
}

pub fn read(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

pub fn fill(server: &Server) {
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:mixed", &["item:live", "item:gone"]).unwrap();
    let _: () = con.sadd("tag:orphan", &["item:a", "item:b"]).unwrap();
    age(&mut con, "tag:mixed", 60);
    age(&mut con, "tag:orphan", 60);
}

pub fn spawn(arguments: &[&str]) -> Child {
    Command::new(TAGSWEEP)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}
