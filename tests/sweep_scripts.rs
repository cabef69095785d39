//! Every script of the sweep against a model of it: random states of a server, random calls, and both
//! the answer and what is on the server afterwards are compared. `TAGSWEEP_SCRIPT_CALLS` sets the
//! number of calls of each script (default 4000); the seed is printed when one differs.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::{Commands, Connection, Value};
use std::collections::{BTreeMap, BTreeSet};
use support::random::Random;
use support::{Server, age, run};

const LOCK: &str = "{lock:sweep}";
const QUARANTINE: &str = "{lock:sweep}:quarantine";
const CHECKPOINT: &str = "{lock:sweep}:checkpoint";
const OURS: &str = "0000000000000042:ours";
const TAGS: [&str; 3] = ["tag:a", "tag:b", "tag:c"];
const MEMBERS: u64 = 40;

/// Seconds that an old tag has been idle, and those that are asked for.
const OLD: u64 = 60;
const ASKED: u64 = 30;

fn one_in(dice: &mut Random, sides: u64) -> bool {
    dice.below(sides) == 0
}

fn members(dice: &mut Random, least: u64) -> Vec<String> {
    let most = if one_in(dice, 2) { 6 } else { MEMBERS };
    (0..least + dice.below(most)).map(|_| format!("m{}", dice.below(most))).collect()
}

#[derive(Clone, Debug, PartialEq)]
enum Tag {
    Set(BTreeSet<String>),
    Text,
}

/// What is on the server, as far as the scripts are concerned.
#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    lock: Option<String>,
    tags: BTreeMap<String, Tag>,
    entries: BTreeSet<String>,
    quarantine: BTreeMap<String, String>,
    checkpoint: Option<String>,
}

/// How members are mapped to entries: the name in force first.
struct Names(Vec<&'static str>);

impl Names {
    fn roll(dice: &mut Random) -> Self {
        let all = [vec!["x:"], vec![""], vec!["x:", ""], vec!["", "x:"]];
        Self(all[dice.below(4) as usize].clone())
    }

    fn of<'a>(&'a self, member: &'a str) -> impl Iterator<Item = String> + 'a {
        self.0.iter().map(move |prefix| format!("{prefix}{member}"))
    }

    /// All first names, then all second names.
    fn keys(&self, members: &[String]) -> Vec<String> {
        let prefixed = |prefix: &&str| members.iter().map(|m| format!("{prefix}{m}")).collect();
        self.0.iter().flat_map(|prefix| -> Vec<String> { prefixed(prefix) }).collect()
    }
}

impl World {
    fn roll(dice: &mut Random) -> Self {
        let lock = [Some(OURS), Some(OURS), Some(OURS), Some("another"), None];
        let mut world = Self {
            lock: lock[dice.below(5) as usize].map(str::to_owned),
            checkpoint: one_in(dice, 2).then(|| "old".to_owned()),
            ..Self::default()
        };
        for tag in TAGS {
            match dice.below(6) {
                0 => None,
                1 => world.tags.insert(tag.into(), Tag::Text),
                _ => {
                    world.tags.insert(tag.into(), Tag::Set(members(dice, 1).into_iter().collect()))
                }
            };
        }
        // Few alive, or many, or most.
        let alive = [2, 15, 48][dice.below(3) as usize];
        for n in 0..MEMBERS {
            let names = ["", "x:"].into_iter().filter(|_| dice.below(50) < alive);
            world.entries.extend(names.map(|prefix| format!("{prefix}m{n}")).collect::<Vec<_>>());
        }
        if one_in(dice, 4) {
            world.quarantine.insert("7.0".into(), "earlier".into());
        }
        world
    }

    /// Puts it on an empty server; tags in `old` look as if left alone for a minute.
    fn build(&self, con: &mut Connection, old: &BTreeSet<&str>) {
        support::run::<()>(con, "FLUSHALL");
        let mut pipe = redis::pipe();
        if let Some(value) = &self.lock {
            pipe.pset_ex(LOCK, value, 60_000);
        }
        if let Some(kept) = &self.checkpoint {
            pipe.set(CHECKPOINT, kept);
        }
        for entry in &self.entries {
            pipe.set(entry, "v");
        }
        for (id, text) in &self.quarantine {
            pipe.hset(QUARANTINE, id, text);
        }
        for (tag, held) in &self.tags {
            match held {
                Tag::Set(members) => pipe.sadd(tag, members),
                Tag::Text => pipe.set(tag, "text"),
            };
        }
        pipe.exec(con).unwrap();
        for tag in old.iter().filter(|tag| self.tags.contains_key(**tag)) {
            age(con, tag, OLD);
        }
    }

    fn read(con: &mut Connection) -> Self {
        let mut world = Self {
            lock: con.get(LOCK).unwrap(),
            checkpoint: con.get(CHECKPOINT).unwrap(),
            quarantine: con.hgetall(QUARANTINE).unwrap(),
            ..Self::default()
        };
        for key in con.keys::<_, Vec<String>>("*").unwrap() {
            if !key.starts_with("tag:") {
                world.entries.extend((!key.starts_with('{')).then_some(key));
                continue;
            }
            let held = match con.key_type::<_, redis::ValueType>(&key).unwrap() {
                redis::ValueType::Set => Tag::Set(con.smembers(&key).unwrap()),
                _ => Tag::Text,
            };
            world.tags.insert(key, held);
        }
        world
    }

    fn is_ours(&self) -> bool {
        self.lock.as_deref() == Some(OURS)
    }

    /// Takes references out of a tag; a set without members is no more. Counts them; `None` if it is
    /// no set.
    fn remove(&mut self, tag: &str, members: &[String]) -> Option<i64> {
        match self.tags.get_mut(tag) {
            None => Some(0),
            Some(Tag::Text) => None,
            Some(Tag::Set(held)) => {
                let before = held.len();
                held.retain(|member| !members.contains(member));
                let removed = before - held.len();
                if held.is_empty() {
                    self.tags.remove(tag);
                }
                Some(removed as i64)
            }
        }
    }

    fn note(&mut self, removed: i64, field: &str) {
        if removed > 0 && !field.is_empty() {
            self.quarantine.insert(field.into(), "noted".into());
        }
    }
}

fn int(n: i64) -> Value {
    Value::Int(n)
}

fn ints(figures: impl IntoIterator<Item = i64>) -> Value {
    Value::Array(figures.into_iter().map(int).collect())
}

fn fenced() -> Value {
    Value::Array(vec![Value::BulkString(b"FENCED".to_vec())])
}

/// A call of a script: what it is given, and its model.
struct Call {
    keys: Vec<String>,
    args: Vec<String>,
    expected: Value,
    after: World,
}

/// What the script says of an item; whether its tag is gone shows when all items are done.
enum Answer<'a> {
    Plain(i64),
    Pruned(&'a str, i64, Vec<i64>, bool),
}

fn prune(dice: &mut Random, before: &World, old: &BTreeSet<&str>) -> Call {
    let names = Names::roll(dice);
    let items: Vec<(&str, Vec<String>)> =
        (0..1 + dice.below(3)).map(|_| (TAGS[dice.below(3) as usize], members(dice, 1))).collect();
    let (asks, field) = (one_in(dice, 2), if one_in(dice, 2) { "42.0" } else { "" });
    let others: Vec<bool> = items.iter().map(|_| one_in(dice, 2)).collect();
    let (mut after, mut noted, mut old) = (before.clone(), 0, old.clone());
    let answers: Vec<Answer> = items
        .iter()
        .zip(&others)
        .map(|((tag, members), others)| {
            if asks && after.tags.contains_key(*tag) && !old.contains(tag) {
                return Answer::Plain(-1);
            }
            let place =
                |member: &String| names.of(member).position(|name| before.entries.contains(&name));
            let stay = members.iter().zip(0..).filter_map(|(m, at)| match place(m)? {
                0 => Some(at),
                _ => Some(-at - 1),
            });
            let stay: Vec<i64> = stay.collect();
            let stale: Vec<String> =
                members.iter().filter(|m| place(m).is_none()).cloned().collect();
            if names.0.len() == 1 && stale.is_empty() {
                return Answer::Plain(0);
            }
            let mut removed = Some(0);
            if !stale.is_empty() {
                removed = after.remove(tag, &stale);
                old.remove(tag);
            }
            let Some(removed) = removed else { return Answer::Plain(-2) };
            noted += removed;
            Answer::Pruned(tag, removed, stay, *others)
        })
        .collect();
    let answers = answers.into_iter().map(|answer| match answer {
        Answer::Plain(n) => int(n),
        Answer::Pruned(tag, removed, stay, others) => {
            let gone = stay.is_empty() && !others && !after.tags.contains_key(tag);
            ints([i64::from(gone), removed].into_iter().chain(stay))
        }
    });
    let answers = answers.collect();
    after.note(noted, field);
    let ours = before.is_ours();
    let mut keys = vec![LOCK.to_owned(), QUARANTINE.to_owned()];
    keys.extend(items.iter().map(|(tag, _)| (*tag).to_owned()));
    items.iter().for_each(|(_, members)| keys.extend(names.keys(members)));
    let asked = if asks { ASKED.to_string() } else { String::new() };
    let count = names.0.len().to_string();
    let length = names.0[0].len().to_string();
    let mut args: Vec<String> =
        [OURS, &count, &asked, &length, field, "noted", "60000"].map(str::to_owned).into();
    let signed = |((_, members), others): (&(_, Vec<String>), &bool)| {
        format!("{}{}", if *others { "-" } else { "" }, members.len())
    };
    args.extend(items.iter().zip(&others).map(signed));
    let expected = if ours { Value::Array(answers) } else { fenced() };
    Call { keys, args, expected, after: if ours { after } else { before.clone() } }
}

fn invalidate(dice: &mut Random, before: &World, old: &BTreeSet<&str>) -> Call {
    let (names, tag, members) = (Names::roll(dice), TAGS[dice.below(3) as usize], members(dice, 1));
    let names = Names(names.0[..1].to_vec());
    let asks = one_in(dice, 2);
    let mut after = before.clone();
    let expected = match before.tags.get(tag) {
        _ if !before.is_ours() => fenced(),
        Some(_) if asks && !old.contains(tag) => ints([-1]),
        None => ints([0]),
        Some(Tag::Text) => ints([-2]),
        Some(Tag::Set(_)) => {
            let entries = names.keys(&members);
            after.entries.retain(|entry| !entries.contains(entry));
            ints([(before.entries.len() - after.entries.len()) as i64])
        }
    };
    let asked = if asks { ASKED.to_string() } else { String::new() };
    let mut keys = vec![LOCK.to_owned(), tag.to_owned()];
    keys.extend(names.keys(&members));
    Call { keys, args: vec![OURS.to_owned(), asked], expected, after }
}

fn restore(dice: &mut Random, before: &World, _old: &BTreeSet<&str>) -> Call {
    let (names, tag) = (Names::roll(dice), TAGS[dice.below(3) as usize]);
    let members: BTreeSet<String> = members(dice, 1).into_iter().collect();
    let members: Vec<String> = members.into_iter().collect();
    let strict = one_in(dice, 2);
    let mut after = before.clone();
    let expected = if before.tags.get(tag) == Some(&Tag::Text) {
        ints([-2, 0])
    } else {
        let mut held = match before.tags.get(tag) {
            Some(Tag::Set(held)) => held.clone(),
            _ => BTreeSet::new(),
        };
        let (mut back, mut deleted) = (0, 0);
        for member in &members {
            let Some(name) = names.of(member).find(|name| before.entries.contains(name)) else {
                continue;
            };
            if held.contains(member) {
                continue;
            }
            if strict && before.is_ours() {
                deleted += i64::from(after.entries.remove(&name));
            } else {
                held.insert(member.clone());
                back += 1;
            }
        }
        if !held.is_empty() {
            after.tags.insert(tag.into(), Tag::Set(held));
        }
        ints([back, deleted])
    };
    let mut keys = vec![tag.to_owned(), LOCK.to_owned()];
    keys.extend(names.keys(&members));
    let mut args = vec![if strict { OURS.to_owned() } else { String::new() }];
    args.extend(members);
    Call { keys, args, expected, after }
}

fn checkpoint(dice: &mut Random, before: &World, _old: &BTreeSet<&str>) -> Call {
    let text = if one_in(dice, 2) { "kept" } else { "" };
    let mut after = before.clone();
    if before.is_ours() {
        after.checkpoint = (!text.is_empty()).then(|| text.to_owned());
    }
    Call {
        keys: vec![LOCK.to_owned(), CHECKPOINT.to_owned()],
        args: [OURS, text, "60000"].map(str::to_owned).into(),
        expected: int(i64::from(before.is_ours())),
        after,
    }
}

type Model = fn(&mut Random, &World, &BTreeSet<&str>) -> Call;

fn compare(body: &str, model: Model) {
    let calls = std::env::var("TAGSWEEP_SCRIPT_CALLS").ok().and_then(|n| n.parse().ok());
    let server = Server::start();
    let mut con = server.connect();
    for seed in 0..calls.unwrap_or(4000) {
        let mut dice = Random::new(seed);
        let before = World::roll(&mut dice);
        let old: BTreeSet<&str> = TAGS.into_iter().filter(|_| one_in(&mut dice, 2)).collect();
        before.build(&mut con, &old);
        let call = model(&mut dice, &before, &old);
        let mut eval = redis::cmd("EVAL");
        eval.arg(body).arg(call.keys.len()).arg(&call.keys).arg(&call.args);
        let answer: Value = eval.query(&mut con).unwrap();
        let asked = format!("seed {seed}: {before:?}, old {old:?}, called {:?}", call.args);
        assert_eq!(answer, call.expected, "{asked} on {:?}", call.keys);
        assert_eq!(World::read(&mut con), call.after, "{asked} on {:?}", call.keys);
        if before.quarantine != call.after.quarantine {
            assert!(con.pttl::<_, i64>(QUARANTINE).unwrap() > 0, "the quarantine must expire");
        }
    }
}

#[test]
fn prune_is_what_its_model_is() {
    compare(include_str!("../src/scripts/prune.lua"), prune);
}

#[test]
fn invalidate_is_what_its_model_is() {
    compare(include_str!("../src/scripts/invalidate.lua"), invalidate);
}

#[test]
fn restore_is_what_its_model_is() {
    compare(include_str!("../src/scripts/restore.lua"), restore);
}

#[test]
fn checkpoint_is_what_its_model_is() {
    compare(include_str!("../src/scripts/checkpoint.lua"), checkpoint);
}

#[test]
fn rights_is_what_its_model_is() {
    let server = Server::start();
    let (mut root, mut con) = (server.connect(), server.connect());
    let _: () = run(&mut root, "ACL SETUSER sweeper on nopass ~tag:* ~{lock:sweep}:* +eval");
    let _: () = run(&mut con, "AUTH sweeper none");
    for seed in 0..500 {
        let mut dice = Random::new(seed);
        let mut refused = Vec::new();
        for name in ["SREM", "SADD", "SISMEMBER", "TYPE", "HSET"] {
            let may = one_in(&mut dice, 2);
            let sign = if may { '+' } else { '-' };
            let _: () = run(&mut root, &format!("ACL SETUSER sweeper {sign}{name}"));
            refused.extend((!may).then(|| Value::BulkString(name.into())));
        }
        let keys = &["tag:a", QUARANTINE][..1 + dice.below(2) as usize];
        if keys.len() == 1 {
            refused.retain(|name| *name != Value::BulkString("HSET".into()));
        }
        let mut eval = redis::cmd("EVAL");
        eval.arg(include_str!("../src/scripts/rights.lua")).arg(keys.len()).arg(keys);
        let answer: Value = eval.query(&mut con).unwrap();
        assert_eq!(answer, Value::Array(refused), "seed {seed}: {keys:?}");
    }
    assert_eq!(run::<u64>(&mut root, "DBSIZE"), 0);
}

#[test]
fn where_idle_times_are_kept_no_more_a_tag_counts_as_used() {
    let server = Server::start();
    let mut con = server.connect();
    let _: () = con.set(LOCK, OURS).unwrap();
    let _: () = con.sadd("tag:a", "gone").unwrap();
    age(&mut con, "tag:a", OLD);
    run::<()>(&mut con, "CONFIG SET maxmemory-policy allkeys-lfu");
    let mut eval = redis::cmd("EVAL");
    eval.arg(include_str!("../src/scripts/prune.lua")).arg(4);
    eval.arg(&[LOCK, QUARANTINE, "tag:a", "gone"]).arg(OURS).arg(1).arg(ASKED).arg(0);
    let answer: Value = eval.arg("").arg("").arg(1).arg(1).query(&mut con).unwrap();
    assert_eq!(answer, ints([-1]));
    let mut eval = redis::cmd("EVAL");
    eval.arg(include_str!("../src/scripts/invalidate.lua")).arg(3);
    eval.arg(&[LOCK, "tag:a", "gone"]).arg(OURS).arg(ASKED);
    assert_eq!(eval.query::<Value>(&mut con).unwrap(), ints([-1]));
    assert_eq!(con.scard::<_, u64>("tag:a").unwrap(), 1);
}
