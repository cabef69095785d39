//! The sweep's protocol as a model that is searched exhaustively (stateright): writers of the three
//! orders, entries that expire at any moment, two sweepers of which each may be paused until its lock is
//! gone, or die between any two steps.
//!
//! What the model assumes is what the options promise: no writer is slower than the grace between its
//! reference and its entry, and one that began within the moments between the judgement and the removal
//! has finished before the verification. Where the server keeps idle times from us (7.2 on) the removal
//! itself asks for them, and the second is not needed. Named mutations must be found out.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "support/say.rs"]
mod say;

use say::say;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// In which order a writer writes its two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    EntryFirst,
    ReferenceFirst,
    Together,
}

const ORDERS: [Order; 3] = [Order::EntryFirst, Order::ReferenceFirst, Order::Together];

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    None,
    /// A tag is judged although a writer is under way.
    NoGrace,
    /// What was removed is not looked for again.
    NoVerify,
    /// The removal goes by what was seen before, not by what is.
    TwoSteps,
    /// The removal does not ask whose the lock is.
    NoFence,
    /// A crash forgets what was removed and not verified.
    NotDurable,
}

#[derive(Clone, Debug)]
struct Sweeps {
    order: Order,
    mutation: Mutation,
    /// The removal asks for the tag's idle time.
    asks_idle: bool,
}

const WRITERS: usize = 2;
const SWEEPERS: usize = 2;
/// Writes of each writer, and locks that are granted: what keeps it finite.
const TURNS: u8 = 2;
const GRANTS: u8 = 3;

/// A set of writers.
type Writers = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sweeper {
    Idle,
    /// It has, or had, the lock with this fence.
    Locked(u8),
    /// The entry was seen absent, the tag left alone.
    Judged(u8),
    /// The reference is gone; the writers under way that began since the judgement.
    Removed(u8, Writers),
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    entry: bool,
    reference: bool,
    /// Writers between their two steps, and writes that each has begun.
    under_way: Writers,
    turns: [u8; WRITERS],
    sweepers: [Sweeper; SWEEPERS],
    /// Writers that touched the tag since the judgement of each sweeper.
    since: [Writers; SWEEPERS],
    lock: Option<(usize, u8)>,
    fence: u8,
    /// What a durable sweep noted of each sweeper's removal: the writers that its verification waits for.
    quarantine: [Option<Writers>; SWEEPERS],
    /// Fence of the last removal.
    removed_by: u8,
    removals: u8,
    restored: bool,
    by_a_stranger: bool,
    backward: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Begin(usize),
    Finish(usize),
    ExpireEntry,
    Acquire(usize),
    ExpireLock,
    /// A sweeper verifies what another one noted.
    Recover(usize, usize),
    Judge(usize),
    Confirm(usize),
    Verify(usize),
    Die(usize),
}

fn bit(writer: usize) -> Writers {
    1 << writer
}

impl Sweeps {
    fn begin(&self, world: &mut World, writer: usize) {
        world.turns[writer] += 1;
        if self.order != Order::EntryFirst {
            world.since.iter_mut().for_each(|since| *since |= bit(writer));
            world.reference = true;
        }
        if self.order != Order::ReferenceFirst {
            world.entry = true;
        }
        if self.order == Order::Together {
            world.reference = true;
        } else {
            world.under_way |= bit(writer);
        }
    }

    fn finish(&self, world: &mut World, writer: usize) {
        world.under_way &= !bit(writer);
        match self.order {
            Order::EntryFirst => {
                world.since.iter_mut().for_each(|since| *since |= bit(writer));
                world.reference = true;
            }
            _ => world.entry = true,
        }
        // Who waits for this writer waits no more.
        for sweeper in &mut world.sweepers {
            if let Sweeper::Removed(_, owed) = sweeper {
                *owed &= !bit(writer);
            }
        }
        for owed in world.quarantine.iter_mut().flatten() {
            *owed &= !bit(writer);
        }
    }

    fn may_judge(&self, world: &World) -> bool {
        let alone = world.under_way == 0 || self.mutation == Mutation::NoGrace;
        world.reference && !world.entry && alone
    }

    fn confirm(&self, world: &mut World, sweeper: usize, fence: u8) {
        let holds = world.lock == Some((sweeper, fence));
        let touched = world.since[sweeper] != 0 && self.asks_idle;
        let absent = !world.entry || self.mutation == Mutation::TwoSteps;
        world.sweepers[sweeper] = Sweeper::Locked(fence);
        if (!holds && self.mutation != Mutation::NoFence) || touched || !absent || !world.reference
        {
            return;
        }
        world.reference = false;
        world.by_a_stranger |= !holds;
        world.backward |= fence < world.removed_by;
        world.removed_by = world.removed_by.max(fence);
        world.removals = world.removals.saturating_add(1).min(2);
        let owed = world.under_way & world.since[sweeper];
        world.sweepers[sweeper] = match self.mutation {
            Mutation::NoVerify => Sweeper::Locked(fence),
            _ => Sweeper::Removed(fence, owed),
        };
        if !matches!(self.mutation, Mutation::NoVerify | Mutation::NotDurable) {
            world.quarantine[sweeper] = Some(owed);
        }
    }

    fn verify(&self, world: &mut World, sweeper: usize) {
        world.restored |= world.entry && !world.reference;
        world.reference |= world.entry;
        world.quarantine[sweeper] = None;
    }
}

impl Model for Sweeps {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        // A reference whose entry has expired, or a cache with nothing in it.
        let stale = |reference| World {
            entry: false,
            reference,
            under_way: 0,
            turns: [0; WRITERS],
            sweepers: [Sweeper::Idle; SWEEPERS],
            since: [0; SWEEPERS],
            lock: None,
            fence: 0,
            quarantine: [None; SWEEPERS],
            removed_by: 0,
            removals: 0,
            restored: false,
            by_a_stranger: false,
            backward: false,
        };
        vec![stale(true), stale(false)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for writer in 0..WRITERS {
            if world.under_way & bit(writer) != 0 {
                actions.push(Action::Finish(writer));
            } else if world.turns[writer] < TURNS {
                actions.push(Action::Begin(writer));
            }
        }
        if world.entry {
            actions.push(Action::ExpireEntry);
        }
        if world.lock.is_some() {
            actions.push(Action::ExpireLock);
        }
        for (n, sweeper) in world.sweepers.iter().enumerate() {
            match sweeper {
                Sweeper::Idle | Sweeper::Locked(_)
                    if world.lock.is_none() && world.fence < GRANTS =>
                {
                    actions.push(Action::Acquire(n));
                }
                _ => {}
            }
            match sweeper {
                Sweeper::Locked(_) => {
                    let due = (0..SWEEPERS).filter(|slip| world.quarantine[*slip] == Some(0));
                    actions.extend(due.map(|slip| Action::Recover(n, slip)));
                    if self.may_judge(world) {
                        actions.push(Action::Judge(n));
                    }
                }
                Sweeper::Judged(_) => actions.push(Action::Confirm(n)),
                Sweeper::Removed(_, 0) => actions.push(Action::Verify(n)),
                _ => {}
            }
            if !matches!(sweeper, Sweeper::Dead | Sweeper::Idle) {
                actions.push(Action::Die(n));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Begin(writer) => self.begin(&mut next, writer),
            Action::Finish(writer) => self.finish(&mut next, writer),
            Action::ExpireEntry => next.entry = false,
            Action::Acquire(n) => {
                next.fence += 1;
                next.lock = Some((n, next.fence));
                next.sweepers[n] = Sweeper::Locked(next.fence);
            }
            Action::ExpireLock => next.lock = None,
            Action::Recover(_, slip) => self.verify(&mut next, slip),
            Action::Judge(n) => {
                let Sweeper::Locked(fence) = next.sweepers[n] else { return None };
                next.sweepers[n] = Sweeper::Judged(fence);
                next.since[n] = 0;
            }
            Action::Confirm(n) => {
                let Sweeper::Judged(fence) = next.sweepers[n] else { return None };
                self.confirm(&mut next, n, fence);
            }
            Action::Verify(n) => {
                let Sweeper::Removed(fence, _) = next.sweepers[n] else { return None };
                next.sweepers[n] = Sweeper::Locked(fence);
                self.verify(&mut next, n);
            }
            Action::Die(n) => next.sweepers[n] = Sweeper::Dead,
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STRANGER, |_, world: &World| !world.by_a_stranger),
            Property::always(BACKWARD, |_, world: &World| !world.backward),
            Property::always(AT_REST, |_, world: &World| !at_rest(world) || !lost(world)),
            Property::always(ALWAYS, |model: &Self, world: &World| {
                let transient = model.order == Order::ReferenceFirst && !model.asks_idle;
                transient || world.under_way != 0 || !lost(world)
            }),
            Property::sometimes("references are removed", |_, world: &World| world.removals > 1),
            Property::sometimes("by two sweepers", |_, world: &World| world.removed_by > 1),
            Property::sometimes("an entry lives on", |_, world: &World| {
                at_rest(world) && world.entry && world.removals > 0
            }),
        ]
    }
}

/// Somebody is between a removal and its verification.
fn removing(world: &World) -> bool {
    world.sweepers.iter().any(|sweeper| matches!(sweeper, Sweeper::Removed(..)))
}

/// A live entry that its tag does not know: an invalidation would miss it.
fn lost(world: &World) -> bool {
    world.entry && !world.reference
}

/// Nobody is in the middle of anything, and nothing waits to be made up for by the next sweep.
fn at_rest(world: &World) -> bool {
    world.under_way == 0 && !removing(world) && world.quarantine.iter().all(Option::is_none)
}

const STRANGER: &str = "P1: nothing is removed by anybody but the holder";
const BACKWARD: &str = "P2: fences of removals never fall";
const AT_REST: &str = "P3: at rest, every live entry is in its tag";
const ALWAYS: &str =
    "P4: at every instant, every live entry of a writer that is done is in its tag";

#[test]
fn the_protocol_holds_on_all_paths() {
    for order in ORDERS {
        for asks_idle in [false, true] {
            let model = Sweeps { order, mutation: Mutation::None, asks_idle };
            let checked = model.checker().threads(2).spawn_bfs().join();
            checked.assert_properties();
            let states = checked.unique_state_count();
            say(&format!("{order:?}, asks for idle times {asks_idle}: {states} states"));
            assert!(states > 10_000, "a model of {states} states looks at nothing");
        }
    }
}

/// A mutation that breaks a promise, and the shortest way to it.
fn found(order: Order, mutation: Mutation, promise: &'static str) {
    let model = Sweeps { order, mutation, asks_idle: false };
    let checked =
        model.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checked.discovery(promise);
    let path = path.unwrap_or_else(|| panic!("{order:?} {mutation:?} keeps {promise}"));
    say(&format!("{mutation:?} breaks {promise} by {:?}", path.into_actions()));
}

#[test]
fn without_the_grace_a_slow_writer_loses_its_reference() {
    found(Order::ReferenceFirst, Mutation::NoGrace, AT_REST);
}

#[test]
fn without_the_verification_a_quick_writer_loses_its_reference() {
    found(Order::ReferenceFirst, Mutation::NoVerify, AT_REST);
}

#[test]
fn a_removal_by_what_was_seen_before_takes_a_live_reference() {
    found(Order::EntryFirst, Mutation::TwoSteps, ALWAYS);
    found(Order::Together, Mutation::TwoSteps, ALWAYS);
}

#[test]
fn without_the_fence_a_deposed_sweeper_removes() {
    found(Order::Together, Mutation::NoFence, STRANGER);
}

#[test]
fn a_crash_before_the_verification_loses_a_reference_unless_it_was_noted() {
    found(Order::ReferenceFirst, Mutation::NotDurable, AT_REST);
}
