//! The lock's protocol as a model that is searched exhaustively (stateright): every interleaving of a few
//! contenders with expiry at any moment (which is what a pause, a slow network or a jump of a clock comes
//! to), lost replies, late duplicates, and a failover to a replica that lags.
//!
//! The simulation in `tests/simulation` runs the shipped code, on random paths; this looks at all paths,
//! of an abstraction. Named mutations must be found out, and the shortest way there is printed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "support/say.rs"]
mod say;

use say::say;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    None,
    /// The fence is the last one plus one, without the time.
    CountingFence,
    /// The holder asks whether it holds the lock, and then has its effect.
    CheckThenAct,
    /// Effects compare the owner token alone, not the fence.
    TokenOnly,
    /// An extend creates the key.
    ExtendCreates,
    /// A release deletes whatever is there.
    BlindRelease,
    /// A claim does not look whether the lock is still in transit to it.
    BlindClaim,
}

#[derive(Clone, Debug)]
struct Lock {
    mutation: Mutation,
    failover: bool,
}

impl Lock {
    /// Grants that the server makes. A failover multiplies the states by sixty.
    fn grants(&self) -> u8 {
        if self.failover { 3 } else { 4 }
    }
}

const CONTENDERS: usize = 2;

/// Acquisitions that each contender begins; with the grants of [`Lock::grants`] what keeps it finite.
const TURNS: u8 = 2;

/// The value of the lock key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Value {
    Granted {
        token: u8,
        fence: u8,
    },
    /// Handed over, not claimed; named after the grant that it came from.
    Transit(u8),
}

/// What is on the server, and replicated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Data {
    lock: Option<Value>,
    last_fence: u8,
    waiting: Option<usize>,
    /// Fence of the last accepted effect.
    effect: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle,
    /// A request is under way, with this token.
    Asking(u8),
    Waiting(u8),
    /// The baton came.
    Claiming {
        token: u8,
        transit: u8,
    },
    Holding(Value),
    /// It has seen that it holds the lock, and is about to act.
    Checked(Value),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    primary: Data,
    replica: Data,
    failed_over: bool,
    states: [State; CONTENDERS],
    turns: [u8; CONTENDERS],
    /// Requests that may still arrive: the first time, or again.
    network: Vec<u8>,
    /// Grows with each grant; the server's clock.
    time: u8,
    /// Grants that a contender took in: the fence, and whose.
    acknowledged: Vec<(u8, u8)>,
    effects: u8,
    takeovers: u8,
    /// What must never be.
    by_a_stranger: bool,
    backward: bool,
    ended_by_another: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// Asks, with a token of its own.
    Ask(usize),
    /// A request arrives; its reply reaches the contender or is lost, and the request may come again.
    Arrive {
        request: usize,
        answered: bool,
        again: bool,
    },
    GiveUp(usize),
    /// Joins the line.
    Wait(usize),
    Claim(usize),
    Check(usize),
    Act(usize),
    Extend(usize),
    Release(usize),
    Expire,
    Replicate,
    FailOver,
}

fn token(contender: usize, turn: u8) -> u8 {
    u8::try_from(contender).unwrap() * TURNS + turn
}

impl Lock {
    fn fence(&self, world: &World) -> u8 {
        match self.mutation {
            Mutation::CountingFence => world.primary.last_fence + 1,
            _ => (world.primary.last_fence + 1).max(world.time),
        }
    }

    /// A new grant on the server.
    fn grant(&self, world: &mut World, token: u8) -> Value {
        world.time += 1;
        let fence = self.fence(world);
        world.primary.last_fence = fence;
        let value = Value::Granted { token, fence };
        world.primary.lock = Some(value);
        value
    }

    fn arrive(&self, world: &mut World, request: usize, answered: bool, again: bool) {
        let token = world.network[request];
        if !again {
            world.network.remove(request);
        }
        let value = match world.primary.lock {
            None => self.grant(world, token),
            // A repetition is recognised by its token.
            Some(value @ Value::Granted { token: theirs, .. }) if theirs == token => value,
            Some(_) => return,
        };
        let contender = usize::from(token / TURNS);
        if answered && world.states[contender] == State::Asking(token) {
            take(world, contender, value);
        }
    }

    fn act(&self, world: &mut World, contender: usize) {
        let (State::Holding(value) | State::Checked(value)) = world.states[contender] else {
            return;
        };
        let Value::Granted { token, fence } = value else { return };
        let there = world.primary.lock;
        let accepted = match self.mutation {
            Mutation::CheckThenAct => true,
            Mutation::TokenOnly => {
                matches!(there, Some(Value::Granted { token: theirs, .. }) if theirs == token)
            }
            _ => there == Some(value),
        };
        if !accepted {
            world.states[contender] = State::Idle;
            return;
        }
        world.by_a_stranger |= there != Some(value);
        world.backward |= fence < world.primary.effect;
        world.primary.effect = world.primary.effect.max(fence);
        world.effects = 1;
        world.states[contender] = State::Holding(value);
    }

    fn extend(&self, world: &mut World, contender: usize) {
        let State::Holding(value) = world.states[contender] else { return };
        if world.primary.lock == Some(value) {
            return;
        }
        if world.primary.lock.is_none() && self.mutation == Mutation::ExtendCreates {
            world.primary.lock = Some(value);
        } else {
            world.states[contender] = State::Idle;
        }
    }

    fn release(&self, world: &mut World, contender: usize) {
        let State::Holding(value) = world.states[contender] else { return };
        world.states[contender] = State::Idle;
        if world.primary.lock != Some(value) {
            if self.mutation != Mutation::BlindRelease || world.primary.lock.is_none() {
                return;
            }
            world.ended_by_another = true;
        }
        let Value::Granted { fence, .. } = value else { return };
        world.primary.lock = None;
        // Handed over in the same step.
        let waiting = world.primary.waiting.take();
        if let Some((next, State::Waiting(token))) = waiting.map(|next| (next, world.states[next]))
        {
            world.primary.lock = Some(Value::Transit(fence));
            world.states[next] = State::Claiming { token, transit: fence };
        }
    }

    fn claim(&self, world: &mut World, contender: usize) {
        let State::Claiming { token, transit } = world.states[contender] else { return };
        let there = world.primary.lock;
        let ours = matches!(there, None | Some(Value::Transit(_)))
            && there.is_none_or(|value| value == Value::Transit(transit));
        if !ours && self.mutation != Mutation::BlindClaim {
            world.states[contender] = State::Idle;
            return;
        }
        world.ended_by_another |= !ours;
        let value = self.grant(world, token);
        take(world, contender, value);
    }
}

/// A contender learns that it has the lock.
fn take(world: &mut World, contender: usize, value: Value) {
    world.states[contender] = State::Holding(value);
    if let Value::Granted { token, fence } = value {
        let entry = (fence, token);
        if let Err(at) = world.acknowledged.binary_search(&entry) {
            world.acknowledged.insert(at, entry);
        }
    }
}

impl Model for Lock {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            primary: Data::default(),
            replica: Data::default(),
            failed_over: false,
            states: [State::Idle; CONTENDERS],
            turns: [0; CONTENDERS],
            network: Vec::new(),
            time: 0,
            acknowledged: Vec::new(),
            effects: 0,
            takeovers: 0,
            by_a_stranger: false,
            backward: false,
            ended_by_another: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for contender in 0..CONTENDERS {
            match world.states[contender] {
                State::Idle if world.turns[contender] < TURNS => {
                    actions.push(Action::Ask(contender))
                }
                State::Idle => {}
                State::Asking(_) => {
                    actions.push(Action::GiveUp(contender));
                    if world.primary.lock.is_some() && world.primary.waiting.is_none() {
                        actions.push(Action::Wait(contender));
                    }
                }
                State::Waiting(_) => actions.push(Action::GiveUp(contender)),
                State::Claiming { .. } if world.time < self.grants() => {
                    actions.push(Action::Claim(contender))
                }
                State::Claiming { .. } => {}
                State::Holding(_) => {
                    actions.extend([Action::Extend(contender), Action::Release(contender)]);
                    if self.mutation == Mutation::CheckThenAct {
                        actions.push(Action::Check(contender));
                    } else {
                        actions.push(Action::Act(contender));
                    }
                }
                State::Checked(_) => actions.push(Action::Act(contender)),
            }
        }
        if world.time < self.grants() {
            for request in 0..world.network.len() {
                actions.push(Action::Arrive { request, answered: true, again: false });
                actions.push(Action::Arrive { request, answered: false, again: true });
                if !self.failover {
                    actions.push(Action::Arrive { request, answered: true, again: true });
                }
            }
        }
        if world.primary.lock.is_some() {
            actions.push(Action::Expire);
        }
        if self.failover && !world.failed_over {
            actions.extend([Action::Replicate, Action::FailOver]);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Ask(contender) => {
                let token = token(contender, next.turns[contender]);
                next.turns[contender] += 1;
                next.states[contender] = State::Asking(token);
                next.network.push(token);
            }
            Action::Arrive { request, answered, again } => {
                self.arrive(&mut next, request, answered, again)
            }
            Action::GiveUp(contender) => {
                next.states[contender] = State::Idle;
                if next.primary.waiting == Some(contender) {
                    next.primary.waiting = None;
                }
            }
            Action::Wait(contender) => {
                let State::Asking(token) = next.states[contender] else { return None };
                next.states[contender] = State::Waiting(token);
                next.primary.waiting = Some(contender);
            }
            Action::Claim(contender) => self.claim(&mut next, contender),
            Action::Check(contender) => {
                let State::Holding(value) = next.states[contender] else { return None };
                let held = next.primary.lock == Some(value);
                next.states[contender] = if held { State::Checked(value) } else { State::Idle };
            }
            Action::Act(contender) => self.act(&mut next, contender),
            Action::Extend(contender) => self.extend(&mut next, contender),
            Action::Release(contender) => self.release(&mut next, contender),
            Action::Expire => {
                next.primary.lock = None;
                next.takeovers = 1;
            }
            Action::Replicate => next.replica = next.primary.clone(),
            Action::FailOver => {
                next.primary = next.replica.clone();
                next.failed_over = true;
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(STRANGER, |_, world: &World| !world.by_a_stranger),
            Property::always(BACKWARD, |_, world: &World| !world.backward),
            Property::always(TWICE, |_, world: &World| {
                world.acknowledged.windows(2).all(|pair| pair[0].0 != pair[1].0)
            }),
            Property::always(ENDED, |_, world: &World| !world.ended_by_another),
            Property::sometimes("effects happen", |_, world: &World| world.effects > 0),
            Property::sometimes("a lease is taken over", |_, world: &World| {
                world.takeovers > 0 && world.acknowledged.len() > 1
            }),
            Property::sometimes("a lock is handed over", |_, world: &World| {
                world.states.iter().any(|state| matches!(state, State::Claiming { .. }))
            }),
        ]
    }
}

const STRANGER: &str = "P1: no effect of anybody but the holder";
const BACKWARD: &str = "P2: fences of accepted effects never fall";
const TWICE: &str = "P3: no fence is granted twice";
const ENDED: &str = "P4: a grant ends by its holder, by time or by a failover";

#[test]
fn the_protocol_holds_on_all_paths() {
    for failover in [false, true] {
        let model = Lock { mutation: Mutation::None, failover };
        let checked = model.checker().threads(2).spawn_bfs().join();
        checked.assert_properties();
        let states = checked.unique_state_count();
        say(&format!(
            "failover {failover}: {states} states, to a depth of {}",
            checked.max_depth()
        ));
        assert!(states > 20_000, "a model of {states} states looks at nothing");
    }
}

/// A mutation that breaks a promise, and the shortest way to it.
fn found(mutation: Mutation, failover: bool, promise: &'static str) {
    let model = Lock { mutation, failover };
    let checked =
        model.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checked.discovery(promise);
    let path = path.unwrap_or_else(|| panic!("{mutation:?} keeps {promise}"));
    say(&format!("{mutation:?} breaks {promise} by {:?}", path.into_actions()));
}

#[test]
fn a_fence_from_a_counter_repeats_after_a_failover() {
    found(Mutation::CountingFence, true, TWICE);
}

#[test]
fn a_check_before_the_effect_is_not_enough() {
    found(Mutation::CheckThenAct, false, STRANGER);
}

#[test]
fn an_owner_token_alone_is_not_enough() {
    found(Mutation::TokenOnly, false, STRANGER);
}

#[test]
fn an_extend_that_creates_brings_old_grants_back() {
    found(Mutation::ExtendCreates, false, BACKWARD);
}

#[test]
fn a_release_without_compare_ends_the_grant_of_another() {
    found(Mutation::BlindRelease, false, ENDED);
}

#[test]
fn a_claim_without_compare_ends_the_grant_of_another() {
    found(Mutation::BlindClaim, false, ENDED);
}
