//! Caches to sweep, and sweeps.

use crate::support::{Server, age, run};
use redis::{Commands, Connection};
use std::collections::BTreeSet;
use std::time::Duration;
use tagsweep::Config;
use tagsweep::sweep::{Ended, Flow, Options, Progress, Report, Sweep};

/// Quick, for tests that are not about time: what is old enough goes at once.
pub fn quick() -> Options {
    Options { verify: Duration::from_millis(10), ..Options::default() }
}

pub fn sweep(config: Config, options: Options) -> Report {
    sweep_watched(config, options, &mut |_| Flow::Continue)
}

pub fn sweep_watched(
    config: Config,
    options: Options,
    watch: &mut dyn FnMut(&Progress) -> Flow,
) -> Report {
    match Sweep::new(config, options).unwrap().run(watch).unwrap() {
        Ended::Swept(report) => report,
        Ended::Held(holder) => panic!("{holder}"),
    }
}

/// A tag with `live` live entries and `stale` stale references, unused for an hour.
pub fn tag(con: &mut Connection, prefix: &str, name: &str, live: usize, stale: usize) {
    let key = format!("{prefix}tag:{name}");
    for i in 0..live {
        let _: () = con.set(format!("{prefix}item:{name}:l{i}"), "x").unwrap();
        let _: () = con.sadd(&key, format!("item:{name}:l{i}")).unwrap();
    }
    for i in 0..stale {
        let _: () = con.sadd(&key, format!("item:{name}:s{i}")).unwrap();
    }
    age(con, &key, 3600);
}

pub fn members(con: &mut Connection, key: &str) -> BTreeSet<String> {
    con.smembers(key).unwrap()
}

pub fn references(con: &mut Connection) -> usize {
    let tags: Vec<String> = con.keys("tag:*").unwrap();
    tags.iter().map(|key| con.scard::<_, usize>(key).unwrap()).sum()
}

/// A user who may do everything but that.
pub fn restricted(server: &Server, rights: &str) -> Config {
    let mut con = server.connect();
    run::<()>(&mut con, &format!("ACL SETUSER some on >pw {rights}"));
    let url = format!("unix://{}?user=some&pass=pw", server.socket().display());
    Config::from_url(&url).unwrap()
}

/// Tags named `name:0` and on, of so many references: one in `live` leads to an entry (0: none).
pub fn tags(con: &mut Connection, name: &str, tags: usize, references: usize, live: usize) {
    let fill = "for t = 0, ARGV[2] - 1 do for r = 0, ARGV[3] - 1 do \
                local entry = 'item:' .. ARGV[1] .. ':' .. t .. ':' .. r \
                redis.call('SADD', 'tag:' .. ARGV[1] .. ':' .. t, entry) \
                local live = tonumber(ARGV[4]) \
                if live > 0 and r % live == 0 then redis.call('SET', entry, '') end end end";
    let mut eval = redis::cmd("EVAL");
    eval.arg(fill).arg(0).arg(name).arg(tags).arg(references).arg(live).exec(con).unwrap();
    (0..tags).for_each(|t| age(con, format!("tag:{name}:{t}"), 3600));
}
