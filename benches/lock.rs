//! The lock beside the barest commands that could do the same, on one private server.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;
use support::Server;
use tagsweep::lock::{Lock, Outcome};

fn lock(c: &mut Criterion) {
    let server = Server::start();
    let mut con = server.connect();
    let mut group = c.benchmark_group("lock");
    group.measurement_time(Duration::from_secs(3)).sample_size(30);
    group.bench_function("PING (one bare round trip)", |b| {
        b.iter(|| redis::cmd("PING").exec(&mut con).unwrap());
    });
    group.bench_function("SET NX PX, then DEL (two bare round trips)", |b| {
        b.iter(|| {
            let set =
                redis::cmd("SET").arg("k").arg("v").arg("NX").arg("PX").arg(60_000).exec(&mut con);
            set.unwrap();
            redis::cmd("DEL").arg("k").exec(&mut con).unwrap();
        });
    });
    let mut lock = Lock::new(server.config(), b"bench", Duration::from_secs(60)).unwrap();
    group.bench_function("acquire, then release", |b| {
        b.iter(|| {
            assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
            assert!(lock.release().unwrap());
        });
    });
    group.finish();
}

criterion_group!(benches, lock);
criterion_main!(benches);
