//! Nonsense from every side that is not ours: names, addresses, and what lies about on a server.
//! `TAGSWEEP_FUZZ_SECONDS` sets the time of each target (default 4); `TAGSWEEP_FUZZ_SEED` the first
//! seed, which is printed when something fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use redis::{Commands, Connection};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::Server;
use support::random::Random;
use tagsweep::Config;
use tagsweep::sweep::{Ended, Flow, Options, Report, Sweep};

/// Seeds, until the time is over; the one that fails is named.
fn seeds(mut case: impl FnMut(&mut Random)) {
    struct Name(u64);
    impl Drop for Name {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("TAGSWEEP_FUZZ_SEED={}", self.0);
            }
        }
    }
    let told = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let time = Duration::from_secs(told("TAGSWEEP_FUZZ_SECONDS").unwrap_or(4));
    let first = told("TAGSWEEP_FUZZ_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 >> 8
    });
    let begun = Instant::now();
    let mut cases = 0;
    for seed in first.. {
        let name = Name(seed);
        case(&mut Random::new(name.0));
        cases += 1;
        // Fewer are too few to find anything.
        if begun.elapsed() > time && cases > 10 {
            break;
        }
    }
    support::say::say(&format!("{cases} cases from seed {first}"));
}

fn pick<'a, T: ?Sized>(dice: &mut Random, from: &[&'a T]) -> &'a T {
    from[dice.below(from.len() as u64) as usize]
}

fn bytes(dice: &mut Random, most: u64) -> Vec<u8> {
    (0..dice.below(most + 1)).map(|_| dice.below(256) as u8).collect()
}

/// Something like it: a byte changed, cut out, put in, or the end torn off.
fn mutate(dice: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len() as u64 + 1) as usize;
        let any = dice.below(256) as u8;
        match dice.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, any),
            // A number that becomes a huge one.
            2 => drop(bytes.splice(at..at, b"99999999999999999999".iter().copied())),
            _ if at == bytes.len() => bytes.push(any),
            3 => drop(bytes.remove(at)),
            _ => bytes[at] = any,
        }
    }
    bytes
}

fn run(server: &Config, options: Options, flow: Flow) -> tagsweep::Result<Report> {
    let mut sweep = Sweep::new(server.clone(), options).unwrap();
    sweep.run(&mut |_| flow).map(|ended| match ended {
        Ended::Swept(report) => report,
        Ended::Held(holder) => panic!("{holder}"),
    })
}

/// A prefix is a name, not a pattern, whatever is in it.
#[test]
fn prefixes_match_themselves_and_nothing_else() {
    let server = Server::start();
    let mut con = server.connect();
    const SPECIAL: &[u8] = b"*?[]\\^-!a\0\xff{}";
    seeds(|dice| {
        support::run::<()>(&mut con, "FLUSHALL");
        let prefix: Vec<u8> =
            (0..dice.below(8)).map(|_| SPECIAL[dice.below(13) as usize]).collect();
        let wanted = [prefix.as_slice(), b"tag:"].concat();
        let key = [wanted.as_slice(), b"x"].concat();
        let mut keys: Vec<Vec<u8>> = (0..8).map(|_| mutate(dice, &key)).collect();
        keys.push(key);
        keys.extend((0..4).map(|_| [bytes(dice, 3), wanted.clone()].concat()));
        keys.sort();
        keys.dedup();
        keys.iter().for_each(|key| con.sadd(key, "m").unwrap());
        let ours = keys.iter().filter(|key| key.starts_with(&wanted)).count() as u64;
        let plan = Options { dry_run: true, trust_mapping: true, ..Options::default() };
        let report = run(&server.config().prefix(prefix.clone()), plan, Flow::Continue).unwrap();
        assert_eq!(report.tags_seen, ours, "prefix {prefix:?} among {keys:?}");
    });
}

/// An address is taken or refused; a password is repeated nowhere.
#[test]
fn addresses_are_taken_or_refused_without_a_word_of_the_password() {
    const PARTS: &[&str] = &[
        "redis://",
        "rediss://",
        "valkey://",
        "valkeys://",
        "unix://",
        "/",
        "/run/s",
        "user",
        ":",
        "hunter2",
        ":hunter2@",
        "app:hunter2@",
        "@",
        "host",
        "[::1]",
        "[",
        "]",
        ":6379",
        ":0",
        ":99999",
        "/1",
        "/-1",
        "/99999999999999999999",
        "?db=1",
        "?",
        "&",
        "=",
        "pass=hunter2",
        "?pass=hunter2",
        "user=x",
        "#insecure",
        "%",
        "%00",
        "%ff",
        "\0",
        " ",
        "é",
        "protocol=3",
    ];
    seeds(|dice| {
        for _ in 0..100 {
            let url: String = (0..1 + dice.below(7)).map(|_| pick(dice, PARTS)).collect();
            match Config::from_url(&url) {
                Err(e) => assert!(e.is_invalid() && !e.to_string().contains("hunter2"), "{url}"),
                Ok(config) => {
                    let elsewhere = url.matches("hunter2").count() > 1
                        || config.label().contains("hunter2")
                        || config.user.as_deref().is_some_and(|user| user.contains("hunter2"));
                    let told = format!("{config:?} {}", config.label());
                    let secret = config.password.is_some() && !elsewhere;
                    assert!(!secret || !told.contains("hunter2"), "{url}: {told}");
                    assert!(config.check().is_ok());
                }
            }
        }
    });
}

/// What is on a server under our names, with its type.
#[derive(Clone, Debug)]
enum Kept {
    Text(Vec<u8>),
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
    List(Vec<Vec<u8>>),
}

impl Kept {
    fn read(con: &mut Connection, key: &[u8]) -> Self {
        match con.key_type::<_, redis::ValueType>(key).unwrap() {
            redis::ValueType::Hash => Self::Hash(con.hgetall(key).unwrap()),
            redis::ValueType::List => Self::List(con.lrange(key, 0, -1).unwrap()),
            _ => Self::Text(con.get(key).unwrap()),
        }
    }

    /// Spoilt here and there, or something else altogether.
    fn spoilt(&self, dice: &mut Random) -> Self {
        let mut spoil = |bytes: &[u8]| match dice.below(4) {
            0 => mutate(dice, bytes),
            1 => self::bytes(dice, 40),
            _ => bytes.to_vec(),
        };
        let spoilt = match self {
            Self::Text(text) => Self::Text(spoil(text)),
            Self::List(items) => Self::List(items.iter().map(|item| spoil(item)).collect()),
            Self::Hash(fields) => Self::Hash(
                fields.iter().map(|(field, value)| (spoil(field), spoil(value))).collect(),
            ),
        };
        match (dice.below(12), spoilt) {
            (0, _) => Self::Text(bytes(dice, 40)),
            (1, _) => Self::List(vec![bytes(dice, 40)]),
            (2, _) => Self::Hash(vec![(bytes(dice, 8), bytes(dice, 40))]),
            (_, spoilt) => spoilt,
        }
    }

    fn write(&self, con: &mut Connection, key: &[u8]) {
        let _: () = match self {
            Self::Text(text) => con.set(key, text).unwrap(),
            Self::List(items) => con.rpush(key, items).unwrap(),
            Self::Hash(fields) => con.hset_multiple(key, fields).unwrap(),
        };
    }
}

const LOCK: &[u8] = b"cache_tag_cleanup";

/// What earlier sweeps leave on a server: history, sums, ages, a checkpoint, slips of removals.
fn leavings(server: &Server) -> Vec<(Vec<u8>, Kept)> {
    let mut con = server.connect();
    let fill = "for i = 1, 3000 do redis.call('SADD', 'tag:' .. i, 'item:' .. i) \
                redis.call('SET', 'item:' .. i, '') end \
                for i = 1, 30000 do redis.call('SET', 'other:' .. i, '') end";
    redis::cmd("EVAL").arg(fill).arg(0).exec(&mut con).unwrap();
    let age = Some(Duration::from_secs(86_400));
    let options = Options { max_tag_age: age, max_latency: Duration::from_micros(50), ..quick() };
    run(&server.config(), options.clone(), Flow::Continue).unwrap();
    // Cut short in the middle.
    let mut sweep = Sweep::new(server.config(), options).unwrap();
    let half = |p: &tagsweep::sweep::Progress| match p.share > 0.5 {
        true => Flow::Stop,
        false => Flow::Continue,
    };
    sweep.run(&mut { half }).unwrap();
    let slip = [1u32, 5].map(u32::to_be_bytes).concat();
    let slip = [slip.as_slice(), b"tag:1", &6u32.to_be_bytes(), b"item:1"].concat();
    let _: () = con.hset("{lock:cache_tag_cleanup}:quarantine", "7.0", slip).unwrap();
    let mut keys: Vec<Vec<u8>> = con.keys("{lock:cache_tag_cleanup}:*").unwrap();
    // Of the many records of tags, a few.
    keys.sort_by_key(|key| (key.windows(9).any(|part| part == b":records:"), key.clone()));
    keys.truncate(20);
    let kept: Vec<_> = keys.into_iter().map(|key| (Kept::read(&mut con, &key), key)).collect();
    kept.into_iter().map(|(kept, key)| (key, kept)).collect()
}

fn quick() -> Options {
    let verify = Duration::from_millis(1);
    Options { grace: Duration::ZERO, verify, trust_mapping: true, ..Options::default() }
}

/// Whatever stands under our names on a server: a sweep ends, removes what is stale and nothing else,
/// and those who look back are told something, or told why not.
#[test]
fn nonsense_under_our_names_neither_stops_a_sweep_nor_misleads_it() {
    let server = Server::start();
    let mut con = server.connect();
    let leavings = leavings(&server);
    for what in ["checkpoint", "quarantine", "history", "sweeps", "stats", "runs", "fence"] {
        let found = leavings.iter().any(|(key, _)| key.ends_with(what.as_bytes()));
        assert!(found, "no {what} to be spoilt");
    }
    let link = server.link();
    seeds(|dice| {
        support::run::<()>(&mut con, "FLUSHALL");
        for (key, kept) in &leavings {
            // A fence that is no number is an error that names the key, and that is right.
            if dice.below(2) == 0 && !key.ends_with(b"fence") {
                kept.spoilt(dice).write(&mut con, key);
            }
        }
        let _: () = con.set("item:live", "").unwrap();
        let _: () = con.sadd("tag:a", &["item:live", "item:gone"]).unwrap();
        let (durable, strict) = (dice.below(2) == 0, dice.below(2) == 0);
        let max_tag_age = (dice.below(2) == 0).then(|| Duration::from_secs(86_400));
        let options = Options { durable, strict, max_tag_age, resume: false, ..quick() };
        match run(&server.config(), options, Flow::Continue) {
            Ok(report) => {
                assert!(report.complete, "{report:?}");
                assert_eq!(con.smembers::<_, Vec<String>>("tag:a").unwrap(), ["item:live"]);
            }
            // Another program's key in place of one that we cannot do without.
            Err(e) => {
                assert!(e.to_string().contains("{lock:cache_tag_cleanup}:"), "{e}");
                assert!(con.sismember::<_, _, bool>("tag:a", "item:live").unwrap());
                return;
            }
        }
        // Once more, going on from wherever it is told to.
        let report = run(&server.config(), quick(), Flow::Continue).unwrap();
        assert!(report.complete, "{report:?}");
        assert_eq!(con.smembers::<_, Vec<String>>("tag:a").unwrap(), ["item:live"]);
        let _ = tagsweep::sweep::history(&link, LOCK);
        let _ = tagsweep::sweep::totals(&link, LOCK);
        let _ = tagsweep::lock::status(&link, LOCK);
        let _ = tagsweep::lock::names(&link);
    });
}

/// Whatever stands where a lock, its line and its baton are: it can be looked at, waited for and taken away, and what
/// comes after it is a lock like any other.
#[test]
fn nonsense_for_a_lock_misleads_nobody() {
    use tagsweep::lock::{Forced, Lock, Options as Terms, Outcome, force_release, status};
    let server = Server::start();
    let (mut con, link) = (server.connect(), server.link());
    seeds(|dice| {
        support::run::<()>(&mut con, "FLUSHALL");
        let spoil = |dice: &mut Random, text: &str| match dice.below(4) {
            0 => bytes(dice, 60),
            1 => text.as_bytes().to_vec(),
            _ => mutate(dice, text.as_bytes()),
        };
        let held = spoil(dice, "c0ffee0123456789:1764000000000000|host|42|program");
        let transit = spoil(dice, "c0ffee0123456789:0||");
        let value = if dice.below(3) == 0 { &transit } else { &held };
        let _: () = con.pset_ex("lock:job", value.as_slice(), 60_000).unwrap();
        for n in 0..dice.below(4) {
            let who = spoil(dice, "17|host|42|program");
            let _: () = con.zadd("{lock:job}:waiters", who, n).unwrap();
        }
        if dice.below(3) == 0 {
            let _: () = con.rpush("{lock:job}:baton", &transit).unwrap();
        }
        status(&link, b"job").unwrap();
        let mut lock = Lock::on(link.clone(), b"job", Terms::new(Duration::from_secs(9))).unwrap();
        if matches!(lock.acquire().unwrap(), Outcome::Held(_)) {
            let now: Vec<u8> = con.get("lock:job").unwrap();
            assert_eq!(&now, value, "it is as it was");
            let taken = force_release(&link, b"job", None).unwrap();
            assert!(matches!(taken, Forced::Taken(_)), "{taken:?}");
            let _: () = con.del("lock:job").unwrap();
            assert!(matches!(lock.acquire().unwrap(), Outcome::Acquired { .. }));
        }
        assert!(lock.extend(None).unwrap() && lock.verify().unwrap());
        assert!(lock.release().unwrap());
    });
}
