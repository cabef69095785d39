//! Looks at a server as a role would, and changes nothing.

use crate::args::{DoctorArgs, Role, bytes};
use redis::{Cmd, Value, cmd, from_redis_value};
use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use tagsweep::Error;
use tagsweep::connect::Link;
use tagsweep::lock::protocol::Keys;
use tagsweep::lock::{self, SharedLink, Status};
use tagsweep::sweep;

/// Round trips of which the median is told.
const TRIPS: usize = 9;

/// Which of these commands the user may not run on their keys; nothing where the server cannot tell. ARGV: a
/// command, its key, how many arguments follow that, and so on.
const REFUSED: &str = "local may, no = redis.acl_check_cmd, {} \
    if not may then return no end \
    for n = 1, #ARGV, 3 do \
      local ask = {ARGV[n], ARGV[n + 1]} \
      for more = 1, tonumber(ARGV[n + 2]) do ask[#ask + 1] = '1' end \
      if not may(unpack(ask)) then no[#no + 1] = ARGV[n] .. ' on ' .. ARGV[n + 1] end end \
    return no";

/// What a lock does to its keys, each with the number of arguments after the key.
const LOCKING: [(&str, u8); 16] = [
    ("DEL", 0),
    ("EXISTS", 0),
    ("GETEX", 0),
    ("HINCRBY", 2),
    ("LINDEX", 1),
    ("LPOP", 0),
    ("LPUSH", 1),
    ("LTRIM", 2),
    ("PEXPIRE", 1),
    ("PTTL", 0),
    ("SET", 1),
    ("ZADD", 2),
    ("ZREM", 1),
    ("ZREMRANGEBYSCORE", 2),
    ("ZREVRANK", 1),
    ("ZSCORE", 1),
];

/// And a sweep to tags, to entries, and to what it keeps.
const SWEEPING: [(&str, u8); 8] = [
    ("EXPIRE", 1),
    ("HSCAN", 1),
    ("HSET", 2),
    ("SADD", 1),
    ("SISMEMBER", 1),
    ("SREM", 1),
    ("TYPE", 0),
    ("UNLINK", 0),
];

/// What was seen of a server. What it did not tell is `None`.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub info: Option<String>,
    pub trip: Option<Duration>,
    /// What it answers to a script and to a command that blocks, if that is an error.
    pub scripts: Option<String>,
    pub blocking: Option<String>,
    /// And to HELLO and a request to tell of changes no more, which do nothing.
    pub tracking: Option<String>,
    pub refused: Vec<String>,
    pub lock: Option<Status>,
    /// The server's clock, and when the last complete sweep ended, if one ever did (s); where both may be asked.
    pub swept: Option<(u64, Option<u64>)>,
}

/// Asks a server what that role wants to know.
pub(super) fn look(link: &SharedLink, args: &DoctorArgs) -> tagsweep::Result<Seen> {
    let name = bytes(&args.lock);
    let mut seen = Seen::default();
    let asked = seen.ask(&mut link.lock().unwrap_or_else(PoisonError::into_inner), args);
    asked.map_err(Error::of_a_question)?;
    // Of what keeps many commands from being answered once is enough.
    let mut known = HashSet::new();
    seen.refused.retain(|what| known.insert(what.clone()));
    if args.role == Role::Plan {
        return Ok(seen); // it is not there to look at locks
    }
    // A user without the permission is told nothing.
    seen.lock = lock::status(link, &name).ok();
    let totals = sweep::totals(link, &name).ok().filter(|_| args.role != Role::Lock);
    let now = seen.lock.as_ref().map(|status| status.time.as_secs());
    seen.swept = now.zip(totals.map(|totals| totals.last_success));
    Ok(seen)
}

impl Seen {
    fn ask(&mut self, link: &mut Link, args: &DoctorArgs) -> tagsweep::Result<()> {
        let prefix = args.server.prefix.as_encoded_bytes();
        let keys = Keys::new(prefix, &bytes(&args.lock))?;
        let tag = [prefix, b"tag:tagsweep-doctor"].concat();
        match trip(link) {
            Ok(trip) => self.trip = Some(trip),
            // Then nothing else is answered either.
            Err(e)
                if matches!(
                    e.code(),
                    None | Some("NOAUTH" | "WRONGPASS" | "MAXCLIENTS" | "ERR")
                ) =>
            {
                return Err(e);
            }
            Err(e) => self.refused.push(e.to_string()),
        }
        if args.role != Role::Watch {
            self.info = text(link.bare(&cmd("INFO")))?;
        }
        for read in reads(args.role, &keys, &tag) {
            self.refused.extend(refusal(link.bare(&read))?);
        }
        if matches!(args.role, Role::Lock | Role::Sweep) {
            self.ask_for_scripts(link)?;
            // Of a lock that nobody has.
            let nobody = Keys::new(prefix, b"tagsweep-doctor")?;
            self.blocking = refusal(link.bare(cmd("BLPOP").arg(nobody.baton).arg("0.01")))?;
            let untracked = cmd("CLIENT").arg("TRACKING").arg("OFF").to_owned();
            let speaks = refusal(link.bare(&cmd("HELLO")))?;
            self.tracking = refusal(link.bare(&untracked))?.or(speaks);
            if self.scripts.is_none() {
                self.refused.extend(refused_writes(link, args.role, &keys, &tag)?);
            }
        }
        if args.role == Role::Sweep {
            let load = cmd("SCRIPT").arg("LOAD").arg("return 1").to_owned();
            self.refused.extend(refusal(link.bare(&load))?);
        }
        Ok(())
    }

    fn ask_for_scripts(&mut self, link: &mut Link) -> tagsweep::Result<()> {
        self.scripts = refusal(link.bare(cmd("EVAL").arg("return 1").arg(0)))?;
        let unknown = cmd("EVALSHA").arg("0".repeat(40)).arg(0).to_owned();
        self.refused.extend(refusal(link.bare(&unknown))?.filter(|e| !e.contains("NOSCRIPT")));
        Ok(())
    }
}

fn trip(link: &mut Link) -> tagsweep::Result<Duration> {
    link.bare(&cmd("PING"))?;
    let mut trips = Vec::new();
    for _ in 0..TRIPS {
        let begun = Instant::now();
        link.bare(&cmd("PING"))?;
        trips.push(begun.elapsed());
    }
    trips.sort();
    Ok(trips[TRIPS / 2])
}

/// What a role reads, as commands that do no harm.
fn reads(role: Role, keys: &Keys, tag: &[u8]) -> Vec<Cmd> {
    let on = |name: &str, key: &[u8]| cmd(name).arg(key).to_owned();
    let mut reads = vec![cmd("TIME"), on("GET", &keys.lock)];
    if role == Role::Watch {
        reads.extend([on("PTTL", &keys.lock), on("HGETALL", &keys.stats)]);
        reads.push(on("ZCARD", &keys.waiters));
        reads.push(cmd("LRANGE").arg(&keys.runs).arg(0).arg(0).to_owned());
    }
    if matches!(role, Role::Plan | Role::Sweep) {
        reads.extend([cmd("DBSIZE"), on("EXISTS", tag)]);
        reads.push(cmd("SSCAN").arg(tag).arg(0).to_owned());
    }
    if role != Role::Lock {
        reads.push(cmd("SCAN").arg(0).arg("COUNT").arg(1).to_owned());
    }
    reads
}

/// What a role writes and the user may not, asked in a script that writes nothing.
fn refused_writes(
    link: &mut Link,
    role: Role,
    keys: &Keys,
    tag: &[u8],
) -> tagsweep::Result<Vec<String>> {
    let mut ask = cmd("EVAL");
    ask.arg(REFUSED).arg(0);
    for (name, more) in LOCKING {
        ask.arg(name).arg(&keys.lock).arg(more).arg(name).arg(&keys.fence).arg(more);
    }
    for (name, more) in SWEEPING.into_iter().filter(|_| role == Role::Sweep) {
        let key = if name.starts_with('H') || name == "EXPIRE" { &keys.stats } else { tag };
        ask.arg(name).arg(key).arg(more);
    }
    match link.bare(&ask) {
        Ok(told) => Ok(from_redis_value(told).unwrap_or_default()),
        Err(e) if e.code().is_some() => Ok(vec![e.to_string()]),
        Err(e) => Err(e),
    }
}

/// An error of the server as text; what keeps it from answering is ours.
fn refusal(answer: tagsweep::Result<Value>) -> tagsweep::Result<Option<String>> {
    match answer {
        Ok(_) => Ok(None),
        Err(e) if e.code().is_some() => Ok(Some(e.to_string())),
        Err(e) => Err(e),
    }
}

fn text(answer: tagsweep::Result<Value>) -> tagsweep::Result<Option<String>> {
    match answer {
        Ok(value) => Ok(from_redis_value(value).ok()),
        Err(e) if e.code().is_some() => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl;

    #[test]
    fn nothing_is_asked_for_that_the_printed_rule_does_not_give() {
        let given = |name: &str, lists: &[&str]| {
            let name = name.to_lowercase();
            lists.iter().any(|list| list.split_whitespace().any(|given| given == name))
        };
        assert!(LOCKING.iter().all(|(name, _)| given(name, &[acl::LOCK])));
        assert!(SWEEPING.iter().all(|(name, _)| given(name, &[acl::LOCK, acl::SWEEP])));
    }
}
