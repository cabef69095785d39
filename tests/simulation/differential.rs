//! The model of the scripts against the scripts, on a real server, with random histories: without it, a
//! simulation would prove something about the model alone.

use crate::server::{Data, Mutation, Server, fence_of, owner};
use crate::support::{self, random::Random, say::say};
use redis::{Commands, Connection};
use std::time::{Duration, Instant};
use tagsweep::lock::protocol::{Answer, CLAIM, Count, Keys, Request};
use tagsweep::lock::{Forced, SharedLink, force_release};

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
        (Answer::Granted { value: a, takeover: t }, Answer::Granted { value: b, takeover: u }) => {
            shape(a) == shape(b) && t == u
        }
        (Answer::Held(a, _), Answer::Held(b, _)) => shape(a) == shape(b),
        (
            Answer::Waiting { holder: a, older: o, younger: n, ticket: s, .. },
            Answer::Waiting { holder: b, older: p, younger: m, ticket: t, .. },
        ) => shape(a) == shape(b) && (o, n) == (p, m) && s.is_empty() == t.is_empty(),
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

/// What must be the same on both servers after each step: who has the lock, which baton lies there, who stands
/// in line, whether the last grant is open.
#[derive(Debug, PartialEq)]
struct State {
    lock: Option<(Vec<u8>, bool)>,
    baton: Option<(Vec<u8>, bool)>,
    waiters: Vec<String>,
    open: Option<bool>,
}

impl State {
    fn of_the_model(data: &Data) -> Self {
        let value = |entry: &Option<(Vec<u8>, u64)>| entry.as_ref().map(|(value, _)| shape(value));
        Self {
            lock: value(&data.lock),
            baton: value(&data.baton),
            waiters: data.waiters.values().cloned().collect(),
            open: data.fence.map(|(_, open)| open),
        }
    }

    fn of_the_server(con: &mut Connection, keys: &Keys) -> Self {
        let lock: Option<Vec<u8>> = con.get(&keys.lock).unwrap();
        let batons: Vec<Vec<u8>> = con.lrange(&keys.baton, 0, -1).unwrap();
        let fence: Option<String> = con.get(&keys.fence).unwrap();
        assert!(batons.len() < 2, "{batons:?}");
        Self {
            lock: lock.as_deref().map(shape),
            baton: batons.first().map(|baton| shape(baton)),
            waiters: con.zrange(&keys.waiters, 0, -1).unwrap(),
            open: fence.map(|fence| fence.contains('+')),
        }
    }
}

/// A lock on the real server and the same in the model, with what was seen of both so far.
struct Twins {
    link: SharedLink,
    con: Connection,
    name: String,
    keys: Keys,
    model: Server,
    random: Random,
    /// Values as the real server gave them, and the same in the model.
    values: Vec<(Vec<u8>, Vec<u8>)>,
    batons: Vec<Vec<u8>>,
}

impl Twins {
    fn new(server: &support::Server, name: String, seed: u64) -> Self {
        let (link, con, model) = (server.link(), server.connect(), Server::new(Mutation::None));
        let keys = Keys::new(b"", name.as_bytes()).unwrap();
        let (values, batons, random) = (Vec::new(), Vec::new(), Random::new(seed));
        Self { link, con, name, keys, model, random, values, batons }
    }

    /// Who claims a baton, or hands it on, has popped it.
    fn pop(&mut self, baton: &[u8]) {
        let removed: u64 = self.con.lrem(&self.keys.baton, 1, baton).unwrap();
        let lay = self.model.data.baton.take_if(|(lies, _)| *lies == baton).is_some();
        assert_eq!(removed == 1, lay);
    }

    /// A request on both sides; what they answered, which must be the same, and what it was.
    fn ask(&mut self, n: u64) -> (bool, String) {
        let known: Vec<_> = self.values.iter().map(|(real, _)| real.clone()).collect();
        let request = request(&mut self.random, &known, &self.batons, n);
        match &request {
            Request::Acquire { claim: Some((baton, _)), .. } => self.pop(&baton.clone()),
            Request::Release { value, .. } => self.pop(&value.clone()),
            _ => {}
        }
        let to_model = |value: &[u8]| {
            let pair = self.values.iter().find(|(real, _)| real == value);
            pair.map_or(value.to_vec(), |(_, model)| model.clone())
        };
        let expected = self.model.answer(&translated(&request, &to_model), n * 1000);
        let answer = tagsweep::lock::perform(&self.link, &self.keys, &request).unwrap();
        let told = (same(&answer, &expected), format!("{request:?}\n{answer:?}\n{expected:?}"));
        if let Request::Wait { transit, .. } | Request::Release { transit, .. } = request {
            self.batons.push(transit);
        }
        if let (Answer::Granted { value: real, .. }, Answer::Granted { value: model, .. }) =
            (answer, expected)
        {
            self.values.push((real, model));
        }
        told
    }

    /// An operator takes the lock away from whoever has it, or from one of the holders so far.
    fn force(&mut self, n: u64) -> (bool, String) {
        let any = (vec![], vec![]);
        let of = self.random.below(2 * self.values.len() as u64 + 1) as usize;
        let (real, model) = self.values.get(of).unwrap_or(&any);
        let fence = |value: &Vec<u8>| (!value.is_empty()).then(|| fence_of(value));
        let answer = force_release(&self.link, self.name.as_bytes(), fence(real)).unwrap();
        // The name of the transit is made by the real one.
        let transit: Option<Vec<u8>> = self.con.lindex(&self.keys.baton, 0).unwrap();
        let transit = transit.unwrap_or_default();
        let expected = self.model.force(fence(model), &transit, n * 1000);
        self.batons.extend((!transit.is_empty()).then_some(transit));
        let same = expected
            == match answer {
                Forced::Taken(_) => Some(true),
                Forced::Another(_) => Some(false),
                Forced::Free => None,
            };
        (same, format!("force {:?}: {answer:?}\n{expected:?}", fence(real)))
    }
}

/// How many steps of one history agreed, on a lock of its own; nothing if it took so long that the server
/// may have ended a transit, which in the model's time it has not.
fn agreed(server: &support::Server, seed: u64, name: String) -> Option<u64> {
    let mut twins = Twins::new(server, name, seed);
    let (begun, steps) = (Instant::now(), 119);
    for n in 1..=steps {
        let forces = twins.random.below(20) == 0;
        let (same, told) = if forces { twins.force(n) } else { twins.ask(n) };
        let real = State::of_the_server(&mut twins.con, &twins.keys);
        let model = State::of_the_model(&twins.model.data);
        if begun.elapsed() > CLAIM * 9 / 10 {
            return None;
        }
        assert!(same && real == model, "seed {seed}, step {n}: {told}\n{real:?}\n{model:?}");
    }
    Some(steps)
}

#[test]
fn the_model_answers_as_the_scripts_do() {
    let server = support::Server::start();
    let steps = (0..60).map(|seed| {
        let mut again = (0..5).map(|time| format!("d{seed}.{time}"));
        again.find_map(|name| agreed(&server, seed, name)).unwrap()
    });
    say(&format!("{} steps agreed", steps.sum::<u64>()));
}
