//! The lock beside the barest commands that could do the same, by the same client, on one private
//! server, over a unix socket and over TCP. The four take turns, so that a noisy moment hits all.
//!
//! `cargo bench --bench lock`; medians, and ratios of the same run.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use redis::{Cmd, cmd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::Server;
use tagsweep::Config;
use tagsweep::connect::Link;
use tagsweep::lock::{Lock, Options, Outcome};

const ROUNDS: usize = 20_000;

/// Compare and delete, as every lock library has it.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

/// The least that grants with a fence which survives the lock: no line, no statistics, no repetition.
const FENCED: &str = "local last = redis.call('GET', KEYS[2]) local time = redis.call('TIME') \
    local fence = time[1] .. string.format('%06d', time[2]) \
    local value = ARGV[1] .. ':' .. fence \
    if not redis.call('SET', KEYS[1], value, 'NX', 'PX', ARGV[2]) then return 0 end \
    redis.call('SET', KEYS[2], fence, 'PX', ARGV[3]) return value";

fn main() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::with(&["--port", &port.to_string()]);
    println!("median us of {ROUNDS} rounds: the same client, one round trip each");
    println!(
        "| over | PING | SET NX PX | least with a fence | acquire | x | x least | EVALSHA compare-and-delete | release | x |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    compare("unix", server.config());
    compare("TCP", Config::from_url(&format!("redis://127.0.0.1:{port}")).unwrap());
}

fn compare(over: &str, config: Config) {
    let mut link = Link::new(config.clone()).unwrap();
    let (sha, fenced) = (load(&mut link, RELEASE), load(&mut link, FENCED));
    let options = Options::new(Duration::from_secs(60));
    let ours = Arc::new(Mutex::new(Link::new(config).unwrap()));
    let mut lock = Lock::on(ours, b"bench", options).unwrap();
    let (ping, set, del) = (cmd("PING"), set_nx(), release(&sha));
    let (least, undo) = (fenced_acquire(&fenced), cmd("DEL").arg("lock:least").to_owned());
    let mut spans = [const { Vec::new() }; 6];
    for _ in 0..ROUNDS {
        spans[0].push(timed(|| drop(link.bare(&ping).unwrap())));
        spans[1].push(timed(|| drop(link.bare(&set).unwrap())));
        spans[2].push(timed(|| drop(link.bare(&del).unwrap())));
        spans[3]
            .push(timed(|| assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }))));
        spans[4].push(timed(|| assert!(lock.release().unwrap())));
        spans[5].push(timed(|| drop(link.bare(&least).unwrap())));
        drop(link.bare(&undo).unwrap());
    }
    let [ping, set, del, acquire, release, least] = spans.map(median);
    let (a, l, r) = (acquire / set, acquire / least, release / del);
    println!(
        "| {over} | {ping:.1} | {set:.1} | {least:.1} | {acquire:.1} | {a:.2} | {l:.2} | {del:.1} | {release:.1} | {r:.2} |"
    );
}

fn load(link: &mut Link, script: &str) -> String {
    redis::from_redis_value(link.bare(cmd("SCRIPT").arg("LOAD").arg(script)).unwrap()).unwrap()
}

fn fenced_acquire(sha: &str) -> Cmd {
    let mut cmd = cmd("EVALSHA");
    cmd.arg(sha).arg(2).arg("lock:least").arg("{lock:least}:fence");
    cmd.arg("a-token-as-long-as-that-of-ours").arg(60_000).arg(86_400_000).to_owned()
}

fn set_nx() -> Cmd {
    cmd("SET").arg("lock:bare").arg("token").arg("NX").arg("PX").arg(60_000).to_owned()
}

fn release(sha: &str) -> Cmd {
    cmd("EVALSHA").arg(sha).arg(1).arg("lock:bare").arg("token").to_owned()
}

fn timed(act: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

fn median(mut spans: Vec<Duration>) -> f64 {
    spans.sort_unstable();
    spans[spans.len() / 2].as_secs_f64() * 1e6
}
