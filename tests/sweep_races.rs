//! Writers of every order hammer a tagged cache while sweeps run without pause: afterwards every live
//! entry is in its tag. `TAGSWEEP_RACE_SECONDS` sets the time (default 12).
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::{Commands, Connection};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::Server;
use tagsweep::sweep::{Ended, Flow, Options, Sweep};

#[derive(Clone, Copy, Debug)]
enum Order {
    EntryFirst,
    ReferenceFirst,
    Together,
}

const ORDERS: [Order; 3] = [Order::EntryFirst, Order::ReferenceFirst, Order::Together];
const WRITERS: u64 = 4;
const TAGS: u64 = 20;
const ITEMS: u64 = 200;

/// SplitMix64: which tag, item and lifetime come next; the seed is printed when the test fails.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// One write as an application does it: two commands, or one transaction. Every fifth entry lives
/// on, the others expire within half a second.
fn write(con: &mut Connection, order: Order, dice: &mut Dice) {
    let (tag, item) = (dice.roll(TAGS), dice.roll(ITEMS));
    let tag_key = format!("tag:{order:?}:{tag}");
    let entry = format!("item:{order:?}:{tag}:{item}");
    let ttl = if dice.roll(5) == 0 { 600_000 } else { 1 + dice.roll(500) };
    let gap = Duration::from_micros(dice.roll(2000));
    match order {
        Order::EntryFirst => {
            let _: () = con.pset_ex(&entry, "v", ttl).unwrap();
            std::thread::sleep(gap);
            let _: () = con.sadd(&tag_key, &entry).unwrap();
        }
        Order::ReferenceFirst => {
            let _: () = con.sadd(&tag_key, &entry).unwrap();
            std::thread::sleep(gap);
            let _: () = con.pset_ex(&entry, "v", ttl).unwrap();
        }
        Order::Together => {
            let mut pipe = redis::pipe();
            pipe.atomic().sadd(&tag_key, &entry).ignore().pset_ex(&entry, "v", ttl).ignore();
            pipe.exec(con).unwrap();
        }
    }
}

/// A writer that is slow between reference and entry, slower than a sweep is from its confirm to the
/// next round: the entry appears after its reference went, and only verification brings that back.
/// An item that was given a long life is never written again, so that nothing else would.
fn write_slowly(con: &mut Connection, n: u64, dice: &mut Dice, retired: &mut BTreeSet<u64>) {
    let item = dice.roll(40);
    if retired.contains(&item) {
        return std::thread::sleep(Duration::from_millis(5));
    }
    let entry = format!("item:Slow:{n}:{item}");
    let _: () = con.sadd(format!("tag:Slow:{n}"), &entry).unwrap();
    std::thread::sleep(Duration::from_millis(dice.roll(600)));
    let stays = dice.roll(3) == 0;
    let _: () = con.pset_ex(&entry, "v", if stays { 600_000 } else { 50 }).unwrap();
    if stays {
        retired.insert(item);
    }
}

/// Slow writers; each has a tag of its own.
const SLOW: u64 = 24;

#[test]
fn no_live_entry_leaves_its_tag() {
    let seconds = std::env::var("TAGSWEEP_RACE_SECONDS").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(12));
    let server = Server::start();
    let (done, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut removed, mut restored, mut runs) = (0, 0, 0);
    std::thread::scope(|scope| {
        for (n, order) in (0..).zip(ORDERS.iter().cycle().take(3 * WRITERS as usize)) {
            let (server, done, writes) = (&server, &done, &writes);
            scope.spawn(move || {
                let (mut con, mut dice) = (server.connect(), Dice(n));
                while !done.load(Ordering::Relaxed) {
                    write(&mut con, *order, &mut dice);
                    writes.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(dice.roll(2000)));
                }
            });
        }
        for n in 0..SLOW {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let (mut con, mut dice) = (server.connect(), Dice(1000 + n));
                let mut retired = BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    write_slowly(&mut con, n, &mut dice, &mut retired);
                }
            });
        }
        let begun = Instant::now();
        while begun.elapsed() < time {
            let report = sweep(&server, Duration::from_secs(1));
            removed += report.references_removed;
            restored += report.references_restored;
            runs += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    // The writers are done; what they left stale goes, too.
    sweep(&server, Duration::from_secs(1));
    let writes = writes.into_inner();
    eprintln!("{writes} writes, {runs} sweeps, {removed} removed, {restored} restored");
    assert!(writes > 1000 && removed > 100 && restored > 0, "the race was none");
    let (lost, stale) = compare(&mut server.connect());
    assert!(lost.is_empty(), "live entries missing from their tags: {lost:?}");
    assert_eq!(stale, 0, "stale references older than the grace");
}

fn sweep(server: &Server, grace: Duration) -> tagsweep::sweep::Report {
    let options = Options { grace, trust_mapping: true, ..Options::default() };
    match Sweep::new(server.config(), options).unwrap().run(&mut |_| Flow::Continue).unwrap() {
        Ended::Swept(report) => report,
        Ended::Held(holder) => panic!("{holder}"),
    }
}

/// Everything, looked at naively: live entries that are not in their tag, and stale references.
fn compare(con: &mut Connection) -> (Vec<String>, usize) {
    let entries: Vec<String> = con.keys("item:*").unwrap();
    let mut lost = Vec::new();
    for entry in entries {
        let tag = format!("tag:{}", entry[5..].rsplit_once(':').unwrap().0);
        if !con.sismember::<_, _, bool>(tag, &entry).unwrap() && con.exists(&entry).unwrap() {
            lost.push(entry);
        }
    }
    let tags: Vec<String> = con.keys("tag:*").unwrap();
    let members: Vec<Vec<String>> = tags.iter().map(|tag| con.smembers(tag).unwrap()).collect();
    let stale = members.iter().flatten().filter(|entry| !con.exists::<_, bool>(entry).unwrap());
    (lost, stale.count())
}
