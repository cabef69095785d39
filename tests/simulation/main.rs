//! Deterministic simulation: the shipped state machines of contenders, in virtual time, on a modelled
//! server and network. One seed is one run, and a failing seed is printed.
//!
//! What happens: requests and replies are lost, delayed for longer than timeouts, duplicated; clients
//! pause at any point for longer than their lease, and crash; the server's clock jumps, and it fails
//! over to a replica that has not seen the last writes.
//!
//! What must hold: no effect of an older grant after one of a younger (on one server lineage); no fence
//! granted twice; an extend confirms only what is there; and when the faults end, everybody gets the
//! lock: no wake-up is lost. Named mutations of the server must be caught.
//!
//! `TAGSWEEP_SEEDS` runs more seeds than the default, `TAGSWEEP_SEED` one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod differential;
mod server;
mod world;

use server::Mutation;
use support::say::say;
use world::{Faults, World};

const SEEDS: u64 = 200;

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("TAGSWEEP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TAGSWEEP_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn no_stale_effect_no_repeated_fence_and_no_lost_wake_up() {
    let mut sum = world::Tally::default();
    for seed in seeds() {
        let mut world = World::new(seed, Faults::ALL, Mutation::None);
        world.run();
        assert!(
            world.violations.is_empty(),
            "seed {seed} (run it alone with TAGSWEEP_SEED={seed}): {:?}\n{:?}",
            world.violations,
            world.tally
        );
        sum += world.tally;
    }
    say(&format!("{} seeds from {}: {sum:?}", seeds().count(), seeds().start));
    // A simulation in which nothing happens proves nothing.
    let per_seed = seeds().count() as u64;
    assert!(sum.grants > 50 * per_seed && sum.effects > 100 * per_seed, "{sum:?}");
    assert!(sum.handovers > 10 * per_seed && sum.takeovers > per_seed, "{sum:?}");
    assert!(sum.refused > 0 && sum.failovers > 0 && sum.pauses > 0 && sum.crashes > 0, "{sum:?}");
    assert!(sum.renewed > 3 * per_seed, "{sum:?}");
    assert!(sum.told > per_seed, "{sum:?}");
    assert!(sum.repeated > 0 && sum.doubts > 0 && sum.duplicates > 0 && sum.jumps > 0, "{sum:?}");
}

/// How many seeds it takes to catch a mutation; fails when these do not.
fn caught(mutation: Mutation, what: &str) {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, Faults::ALL, mutation);
        world.run();
        if let Some(violation) = world.violations.iter().find(|v| v.starts_with(what)) {
            say(&format!("{mutation:?} is caught by seed {seed}: {violation}"));
            return;
        }
    }
    panic!("{mutation:?} is not caught by {SEEDS} seeds");
}

#[test]
fn a_dropped_fence_compare_is_caught() {
    caught(Mutation::NoCompare, "stale effect");
}

#[test]
fn a_fence_from_a_counter_alone_is_caught() {
    caught(Mutation::CountingFence, "fence granted twice");
}

#[test]
fn an_extend_that_creates_is_caught() {
    caught(Mutation::ExtendCreates, "stale effect");
}

#[test]
fn a_release_without_compare_is_caught() {
    caught(Mutation::BlindRelease, "two grants");
}

#[test]
fn a_release_that_wakes_nobody_is_caught() {
    caught(Mutation::SilentRelease, "overtaken");
}
