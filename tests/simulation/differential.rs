//! The model of the scripts against the scripts, on a real server, with random histories: without it, a
//! simulation would prove something about the model alone.

use crate::server::{Mutation, Server, fence_of, owner};
use crate::support::{self, random::Random, say::say};
use std::time::{Duration, Instant};
use tagsweep::lock::SharedLink;
use tagsweep::lock::protocol::{Answer, CLAIM, Count, Keys, Request};

const LONG: Duration = Duration::from_secs(3600);

/// A random request of one of three contenders, out of what they have seen so far.
fn request(random: &mut Random, values: &[Vec<u8>], batons: &[Vec<u8>], n: u64) -> Request {
    let who = random.below(3);
    let pick = |random: &mut Random, from: &[Vec<u8>]| {
        if from.is_empty() {
            b"none:1|a|1|b".to_vec()
        } else {
            from[random.below(from.len() as u64) as usize].clone()
        }
    };
    let transit = format!("t{n}:0||").into_bytes();
    match random.below(8) {
        0..3 => {
            let claim = (random.below(2) == 0).then(|| (pick(random, batons), "0".to_owned()));
            // Few tokens, so that repetitions of one are met, too.
            let token = format!("c{who}x{}", random.below(3));
            Request::Acquire { token, ttl: LONG, claim, count: Count::Nothing }
        }
        3 => {
            let join = random.below(2) == 0;
            Request::Wait { waiter: format!("w{who}|h|1|p"), transit, life: LONG, join }
        }
        4 => Request::Leave { waiter: format!("w{who}|h|1|p"), timed_out: false },
        5 => Request::Extend { value: pick(random, values), ttl: LONG, exact: true, note: true },
        _ => {
            let value =
                if random.below(4) == 0 { pick(random, batons) } else { pick(random, values) };
            let fence = fence_of(&value);
            let keep = if random.below(6) == 0 { LONG } else { Duration::ZERO };
            let (run, counts) = (None, Vec::new());
            Request::Release { value, fence, ttl: LONG, transit, keep, run, counts }
        }
    }
}

/// What of a value both sides must agree on: its owner, and whether it is in transit.
fn shape(value: &[u8]) -> (Vec<u8>, bool) {
    (owner(value).to_vec(), fence_of(value) == 0)
}

fn same(real: &Answer, model: &Answer) -> bool {
    match (real, model) {
        (Answer::Granted(a), Answer::Granted(b)) => shape(a) == shape(b),
        (Answer::Held(a, _), Answer::Held(b, _)) => shape(a) == shape(b),
        (
            Answer::Waiting { holder: a, younger: n, ticket: s, .. },
            Answer::Waiting { holder: b, younger: m, ticket: t, .. },
        ) => shape(a) == shape(b) && n == m && s.is_empty() == t.is_empty(),
        (Answer::Extended(_), Answer::Extended(_)) => true,
        (a, b) => a == b,
    }
}

/// A value of the real server as the model has it: fences differ, owners do not.
fn translated(request: &Request, to_model: &dyn Fn(&[u8]) -> Vec<u8>) -> Request {
    let mut request = request.clone();
    match &mut request {
        Request::Extend { value, .. } => *value = to_model(value),
        Request::Release { value, fence, .. } => {
            *value = to_model(value);
            *fence = fence_of(value);
        }
        _ => {}
    }
    request
}

/// How many steps of one history agreed, on a lock of its own; nothing if it took so long that the server
/// may have ended a transit, which in the model's time it has not.
fn agreed(link: &SharedLink, seed: u64, name: &str) -> Option<u64> {
    let mut random = Random::new(seed);
    let mut model = Server::new(Mutation::None);
    let keys = Keys::new(b"", name.as_bytes()).unwrap();
    // Values as the real server gave them, and the same in the model.
    let mut values: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut batons: Vec<Vec<u8>> = Vec::new();
    let (begun, steps) = (Instant::now(), 119);
    for n in 1..=steps {
        let known: Vec<_> = values.iter().map(|(real, _)| real.clone()).collect();
        let request = request(&mut random, &known, &batons, n);
        let to_model = |value: &[u8]| {
            let pair = values.iter().find(|(real, _)| real == value);
            pair.map_or(value.to_vec(), |(_, model)| model.clone())
        };
        let expected = model.answer(&translated(&request, &to_model), n * 1000);
        let answer = tagsweep::lock::perform(link, &keys, &request).unwrap();
        if begun.elapsed() > CLAIM * 9 / 10 {
            return None;
        }
        assert!(
            same(&answer, &expected),
            "seed {seed}, step {n}: {request:?}\n{answer:?}\n{expected:?}"
        );
        if let (Answer::Granted(real), Answer::Granted(model)) = (answer, expected) {
            values.push((real, model));
        }
        if let Request::Wait { transit, .. } | Request::Release { transit, .. } = request {
            batons.push(transit);
        }
    }
    Some(steps)
}

#[test]
fn the_model_answers_as_the_scripts_do() {
    let real = support::Server::start();
    let link = real.link();
    let steps = (0..60).map(|seed| {
        let mut again = (0..5).map(|time| format!("d{seed}.{time}"));
        again.find_map(|name| agreed(&link, seed, &name)).unwrap()
    });
    say(&format!("{} steps agreed", steps.sum::<u64>()));
}
