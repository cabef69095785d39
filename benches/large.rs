//! What is large: ten million keys without a tag, and one set of ten million members.
//!
//! `cargo bench --bench large -- [walk|set|linear] [SIZE]`; 10,000,000 by default. The program is the
//! built one (`make build`), so that its memory is its own.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use redis::{Commands, Connection};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Server;

fn eval(con: &mut Connection, script: &str, from: u64, to: u64) {
    redis::cmd("EVAL").arg(script).arg(0).arg(from).arg(to).exec(con).unwrap();
}

/// Runs a script over numbers, so many at a time.
fn fill(con: &mut Connection, script: &str, numbers: u64) {
    const STEP: u64 = 100_000;
    (0..numbers.div_ceil(STEP))
        .for_each(|n| eval(con, script, n * STEP, (n * STEP + STEP).min(numbers)));
}

/// CPU time of the server (s).
fn cpu(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", server.pid())).unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// What a run of the program took.
struct Run {
    wall: Duration,
    cpu: f64,
    /// Largest resident memory (MiB).
    memory: f64,
    report: serde_json::Value,
}

fn tagsweep(server: &Server, arguments: &[&str]) -> Run {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/tagsweep");
    // A pipe that nobody reads would hold it up.
    let told = server.dir().join("told");
    let (before, begun) = (cpu(server), Instant::now());
    let mut child = Command::new(program)
        .args(arguments)
        .args(["--url", &server.url(), "--json"])
        .stdout(std::fs::File::create(&told).unwrap())
        .spawn()
        .unwrap();
    let (mut memory, status) = (0.0f64, format!("/proc/{}/status", child.id()));
    while child.try_wait().unwrap().is_none() {
        let told = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = told.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        memory = memory.max(peak.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (wall, cpu) = (begun.elapsed(), cpu(server) - before);
    let text = std::fs::read_to_string(told).unwrap();
    let report = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    Run { wall, cpu, memory, report }
}

fn bare_walk(con: &mut Connection) -> Duration {
    let (begun, mut cursor) = (Instant::now(), 0u64);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("tag:*").arg("COUNT").arg(1000);
        let page: (u64, Vec<Vec<u8>>) = scan.query(con).unwrap();
        cursor = page.0;
        if cursor == 0 {
            return begun.elapsed();
        }
    }
}

/// A walk over keys that are none of ours, and a few tags, beside a bare SCAN walk of the same client.
fn walk(size: u64) {
    let server = Server::with(&["--enable-debug-command", "yes"]);
    let mut con = server.connect();
    redis::cmd("DEBUG").arg("POPULATE").arg(size).arg("other").arg(1).exec(&mut con).unwrap();
    let tags = "for i = ARGV[1], ARGV[2] - 1 do redis.call('SADD', 'tag:' .. i, 'item:' .. i) \
                redis.call('SET', 'item:' .. i, '') end";
    fill(&mut con, tags, 100);
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let bare = bare_walk(&mut con);
        let ours = tagsweep(&server, &["plan"]);
        assert_eq!(ours.report["tags_seen"], 100);
        let ratio = ours.wall.as_secs_f64() / bare.as_secs_f64();
        println!(
            "walk over {size} keys: bare SCAN {bare:.2?}, plan {:.2?}, {ratio:.2}x",
            ours.wall
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("walk: median {:.2}x\n", ratios[1]);
}

/// One set, nine in ten of its members stale.
fn set(size: u64) {
    let server = Server::with(&["--slowlog-log-slower-than", "2000"]);
    let mut con = server.connect();
    let members = "for i = ARGV[1], ARGV[2] - 1, 1000 do local some = {} \
                   for j = 0, 999 do some[j + 1] = 'item:' .. (i + j) end \
                   redis.call('SADD', 'tag:large', unpack(some)) end";
    fill(&mut con, members, size);
    let entries = "for i = ARGV[1], ARGV[2] - 1, 10 do redis.call('SET', 'item:' .. i, '') end";
    fill(&mut con, entries, size);
    redis::cmd("SLOWLOG").arg("RESET").exec(&mut con).unwrap();
    let run = tagsweep(&server, &["sweep"]);
    let slow: Vec<(u64, u64, u64, Vec<String>)> = {
        let entries: Vec<redis::Value> =
            redis::cmd("SLOWLOG").arg("GET").arg(-1).query(&mut con).unwrap();
        entries
            .into_iter()
            .map(|entry| {
                let (id, at, took, args, _, _): (u64, u64, u64, Vec<String>, String, String) =
                    redis::from_redis_value(entry).unwrap();
                (id, at, took, args)
            })
            .collect()
    };
    assert_eq!(run.report["references_removed"], size - size / 10);
    assert_eq!(con.scard::<_, u64>("tag:large").unwrap(), size / 10);
    println!(
        "a set of {size}: {:.1?}, server {:.1} s ({:.2} us a reference), {:.0} MiB, {} commands above 2 ms",
        run.wall,
        run.cpu,
        run.cpu * 1e6 / size as f64,
        run.memory,
        slow.len(),
    );
    for (_, _, took, args) in slow.iter().take(5) {
        println!("  {:.1} ms: {}", *took as f64 / 1e3, args.first().map_or("", String::as_str));
    }
    println!();
}

/// Cost by size: tags of ten members, half of them stale. Draws `benches/linear.svg`.
fn linear(most: u64) {
    println!("references,wall_s,server_s,client_MiB");
    let mut points = Vec::new();
    let sizes = (0..7).map(|n| 10f64.powf(4.0 + f64::from(n) / 2.0) / 10.0);
    for references in sizes.map(|tags| 10 * tags.round() as u64).filter(|size| *size <= most) {
        let server = Server::start();
        let mut con = server.connect();
        let tags = "for i = ARGV[1], ARGV[2] - 1 do for j = 0, 9 do local e = 'item:' .. i .. ':' .. j \
                    if j % 2 == 0 then redis.call('SET', e, '') end \
                    redis.call('SADD', 'tag:' .. i, e) end end";
        fill(&mut con, tags, references / 10);
        let run = tagsweep(&server, &["sweep", "--grace", "0s", "--verify", "0s"]);
        assert_eq!(run.report["references_removed"], references / 2);
        println!("{references},{:.4},{:.4},{:.1}", run.wall.as_secs_f64(), run.cpu, run.memory);
        points.push((references as f64, run.wall.as_secs_f64(), run.cpu));
    }
    println!();
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/linear.svg");
    std::fs::write(picture, plot(&points)).unwrap();
}

/// Both scales logarithmic: what is linear is a straight line of slope one.
fn plot(points: &[(f64, f64, f64)]) -> String {
    let x = |references: f64| 70.0 + (references.log10() - 4.0) * 170.0;
    let y = |seconds: f64| 300.0 - (seconds.log10() + 2.0) * 70.0;
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 620 360\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"620\" height=\"360\" fill=\"white\"/>\n",
    );
    for (at, text) in [(1e4, "10^4"), (1e5, "10^5"), (1e6, "10^6"), (1e7, "10^7")] {
        let x = x(at);
        out += &format!("<path d=\"M{x:.0} 20V300\" stroke=\"#ddd\"/>\n");
        out += &format!("<text x=\"{x:.0}\" y=\"318\" text-anchor=\"middle\">{text}</text>\n");
    }
    for at in [0.01, 0.1, 1.0, 10.0, 100.0] {
        let y = y(at);
        out += &format!("<path d=\"M70 {y:.0}H580\" stroke=\"#ddd\"/>\n");
        out += &format!("<text x=\"62\" y=\"{:.0}\" text-anchor=\"end\">{at} s</text>\n", y + 4.0);
    }
    let mut line = |color: &str, name: &str, row: f64, of: fn(&(f64, f64, f64)) -> f64| {
        let path: Vec<String> = points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.0), y(of(point).max(0.01))))
            .collect();
        out += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
             <text x=\"90\" y=\"{row}\" fill=\"{color}\">{name}</text>\n",
            path.join(" ")
        );
    };
    line("#2f6fdd", "from start to end", 40.0, |point| point.1);
    line("#d9822b", "the server's CPU", 58.0, |point| point.2);
    out + "<text x=\"325\" y=\"345\" text-anchor=\"middle\">references looked at, half of them \
           removed</text>\n</svg>\n"
}

fn main() {
    let told: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let size = told.get(1).and_then(|size| size.parse().ok()).unwrap_or(10_000_000);
    let wanted = |what: &str| told.first().is_none_or(|first| first == what);
    for (what, bench) in [("walk", walk as fn(u64)), ("set", set), ("linear", linear)] {
        if wanted(what) {
            bench(size);
        }
    }
}
