//! The SCAN loop: a walk that finds nothing beside a bare SCAN walk of the same client, and a look at
//! tags that are all live.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use redis::Connection;
use std::time::Duration;
use support::Server;
use tagsweep::sweep::{Ended, Flow, Options, Report, Sweep};

const KEYS: u64 = 100_000;
const TAGS: u64 = 5_000;

fn fill(con: &mut Connection, script: &str, n: u64) {
    redis::cmd("EVAL").arg(script).arg(0).arg(n).exec(con).unwrap();
}

fn bare_walk(con: &mut Connection) -> usize {
    let (mut cursor, mut found) = (0u64, 0);
    loop {
        let page: (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg("tag:*")
            .arg("COUNT")
            .arg(1000)
            .query(con)
            .unwrap();
        found += page.1.len();
        cursor = page.0;
        if cursor == 0 {
            return found;
        }
    }
}

fn plan(server: &Server) -> Report {
    let options = Options { dry_run: true, ..Options::default() };
    match Sweep::new(server.config(), options).unwrap().run(&mut |_| Flow::Continue).unwrap() {
        Ended::Swept(report) => report,
        Ended::Held(holder) => panic!("{holder}"),
    }
}

fn sweep(c: &mut Criterion) {
    let server = Server::start();
    let mut con = server.connect();
    fill(&mut con, "for i = 1, ARGV[1] do redis.call('SET', 'other:' .. i, '') end", KEYS);
    let mut group = c.benchmark_group("sweep");
    group.measurement_time(Duration::from_secs(4)).sample_size(10);
    group.bench_function("bare SCAN walk over 100,000 keys", |b| {
        b.iter(|| assert_eq!(bare_walk(&mut con), 0));
    });
    group.bench_function("plan over 100,000 keys without a tag", |b| {
        b.iter(|| assert_eq!(plan(&server).tags_seen, 0));
    });
    let tags = "for i = 1, ARGV[1] do for j = 1, 10 do local e = 'item:' .. i .. ':' .. j \
                redis.call('SET', e, '') redis.call('SADD', 'tag:' .. i, e) end end";
    fill(&mut con, tags, TAGS);
    group.bench_function("plan of 5,000 live tags of 10 among 150,000 keys", |b| {
        b.iter(|| assert_eq!(plan(&server).references_checked, 10 * TAGS));
    });
    group.finish();
}

criterion_group!(benches, sweep);
criterion_main!(benches);
