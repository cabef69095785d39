//! What others feel of a sweep: an open-loop load of GET and SET, each timed from the moment at which it
//! was to be sent, alone and beside each way to clean tags.
//!
//! `cargo bench --bench load -- [TAGS [ENGINE]]`; 200,000 by default. Needs the built program and PHP.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::Server;

/// Longest time beside one engine.
const SPELL: Duration = Duration::from_secs(8);

/// The latencies of a load (s), and how much of it was done.
struct Load {
    latencies: Vec<f64>,
    wall: f64,
}

impl Load {
    fn quantile(&self, share: f64) -> f64 {
        self.latencies[((self.latencies.len() - 1) as f64 * share) as usize] * 1e3
    }
}

/// One client: a request at each of its moments, one after the other; a late answer delays the next,
/// and that is counted, too.
fn client(socket: &Path, n: u64, every: Duration, done: &AtomicBool) -> Vec<f64> {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut latencies = Vec::with_capacity(100_000);
    let mut buffer = [0; 512];
    let mut due = Instant::now() + every.mul_f64((n % 50) as f64 / 50.0);
    for turn in 0u64.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let key = format!("load:{}", (turn * 7919 + n) % 10_000);
        let request = match turn % 4 {
            0 => format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$3\r\nabc\r\n", key.len()),
            _ => format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()),
        };
        stream.write_all(request.as_bytes()).unwrap();
        // Answers are shorter than a packet.
        assert!(stream.read(&mut buffer).unwrap() > 0);
        latencies.push(due.elapsed().as_secs_f64());
        due += every;
    }
    latencies
}

/// The load, for as long as `beside` goes on.
fn load(socket: &Path, clients: u64, rate: u64, beside: impl FnOnce()) -> Load {
    let (done, begun) = (AtomicBool::new(false), Instant::now());
    let every = Duration::from_secs(1) * clients as u32 / rate as u32;
    let mut latencies = std::thread::scope(|scope| {
        let done = &done;
        let all: Vec<_> =
            (0..clients).map(|n| scope.spawn(move || client(socket, n, every, done))).collect();
        beside();
        done.store(true, Ordering::Relaxed);
        all.into_iter().flat_map(|one| one.join().unwrap()).collect::<Vec<f64>>()
    });
    let wall = begun.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    Load { latencies, wall }
}

fn launch(engine: &str, server: &Server) -> Child {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let socket = server.socket().display().to_string();
    let mut command = match engine.strip_prefix("tagsweep") {
        Some(options) => {
            let mut command = Command::new(root.join("target/release/tagsweep"));
            command.args(["sweep", "--url", &server.url(), "--json"]);
            command.args(options.split(' ').filter(|option| !option.is_empty()));
            command
        }
        None => {
            let mut command = Command::new("php");
            let extension = root.join("target/release/libtagsweep_php.so");
            command.arg("-d").arg(format!("extension={}", extension.display()));
            command.arg(root.join("benches/peers/engines.php")).args([engine, &socket]);
            command
        }
    };
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Lets an engine work for a spell, or to its end. Answers the time that it had.
fn work(engine: &str, server: &Server) -> Duration {
    let begun = Instant::now();
    if engine == "nobody" {
        std::thread::sleep(SPELL);
        return SPELL;
    }
    let mut child = launch(engine, server);
    while begun.elapsed() < SPELL && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    begun.elapsed()
}

/// A server with its data, as an engine knows it.
struct Cache {
    server: Server,
    references: u64,
}

/// How a reference `e` of tag `i`, whose entry is there or not, is written: plainly, by Laravel, by
/// Symfony.
const PLAIN: &str = "redis.call('SADD', 'tag:' .. i, e)";
const LARAVEL: &str = "redis.call('ZADD', 'tag:t' .. i .. ':entries', live and 4e9 or 1, e)";
const SYMFONY: &str = "redis.call('SADD', '\\0tags\\0t' .. i, e)";

impl Cache {
    fn new(reference: &str, tags: u64) -> Self {
        // The LRU policy keeps idle times in the snapshot.
        let server = Server::with(&["--maxmemory-policy", "volatile-lru"]);
        fill(&server, reference, tags);
        std::thread::sleep(Duration::from_secs(7)); // the grace, so that no engine waits for it
        support::run::<()>(&mut server.connect(), "SAVE");
        let references = references(&server);
        Self { server, references }
    }
}

fn fill(server: &Server, reference: &str, tags: u64) {
    let script = format!(
        "for i = ARGV[1], ARGV[2] - 1 do for j = 0, 9 do \
         local e, live = 'item:' .. i .. ':' .. j, i % 2 == 0 and j % 2 == 0 \
         if live then redis.call('SET', e, 'value') end \
         {reference} end \
         redis.call('SET', 'other:' .. i, '') redis.call('SET', 'more:' .. i, '') end"
    );
    let mut con = server.connect();
    for n in 0..tags.div_ceil(10_000) {
        let mut eval = redis::cmd("EVAL");
        eval.arg(&script).arg(0).arg(n * 10_000).arg((n * 10_000 + 10_000).min(tags));
        eval.exec(&mut con).unwrap();
    }
}

/// References in all tags.
fn references(server: &Server) -> u64 {
    let script = "local size, n, c = {set = 'SCARD', zset = 'ZCARD'}, 0, '0' \
                  repeat local p = redis.call('SCAN', c, 'MATCH', '*tag*', 'COUNT', 10000) \
                  c = p[1] for _, k in ipairs(p[2]) do \
                  local command = size[redis.call('TYPE', k).ok] \
                  n = n + (command and redis.call(command, k) or 0) end until c == '0' return n";
    redis::cmd("EVAL").arg(script).arg(0).query(&mut server.connect()).unwrap()
}

fn main() {
    let told: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let tags = told.first().and_then(|tags| tags.parse().ok()).unwrap_or(200_000);
    let wanted = |engine: &str| told.get(1).is_none_or(|wanted| wanted == engine);
    let [mut plain, mut laravel, mut symfony] =
        [PLAIN, LARAVEL, SYMFONY].map(|reference| Cache::new(reference, tags));
    for (clients, rate) in [(8, 4_000), (50, 20_000)] {
        println!(
            "{clients} clients, {rate} requests/s; {tags} tags of 10; ms from the intended start\n"
        );
        println!("| beside | p50 | p99 | p99.9 | longest | requests/s | refs removed/s |");
        println!("|---|---|---|---|---|---|---|");
        for engine in [
            "nobody",
            "tagsweep",
            "tagsweep --effort 5",
            "tagsweep --max-latency 20ms",
            "php-loop",
            "php-pipelined",
            "lua-pages",
            "laravel-prune",
            "symfony-invalidate",
            "nobody",
        ] {
            if !wanted(engine) && engine != "nobody" {
                continue;
            }
            let Cache { server, references: all } = match engine {
                "laravel-prune" => &mut laravel,
                "symfony-invalidate" => &mut symfony,
                _ => &mut plain,
            };
            server.restart();
            let mut took = Duration::ZERO;
            let load = load(&server.socket(), clients, rate, || took = work(engine, server));
            let removed = *all - references(server);
            println!(
                "| {engine} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} |",
                load.quantile(0.5),
                load.quantile(0.99),
                load.quantile(0.999),
                load.quantile(1.0),
                load.latencies.len() as f64 / load.wall,
                removed as f64 / took.as_secs_f64(),
            );
        }
        println!();
    }
}
