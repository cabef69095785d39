//! What is said between a contender and the server: requests, answers, and the keys they are about.
//! Pure: encodes and decodes.
//!
//! Each request is one script and one round trip, and may be sent again when its answer is lost: an
//! acquisition is recognised by its owner token, everything else compares the whole value.

use crate::error::{Error, Result};
use crate::lock::lease::{ttl_ms, whoami};
use crate::reply::senseless;
use crate::script::{ACQUIRE, Args, EXTEND, LEAVE, RELEASE, Script, WAIT};
use redis::Value;
use std::time::Duration;

/// Life of what a lock leaves behind (fence, statistics, past runs): longer than any holder may sleep.
pub(crate) const MEMORY_MS: u64 = 30 * 24 * 3600 * 1000;

/// Past grants that the server remembers; the scripts say so, too.
pub(crate) const RUNS: usize = 10;

/// How long a lock stays in transit for the waiter that was woken.
pub const CLAIM: Duration = Duration::from_millis(1000);

/// Longest name of a lock.
const NAME_MAX: usize = 64 * 1024;

/// The keys of one lock. All share a slot of a Cluster, unless its name has braces that belong to none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    /// `lock:<name>`, after the prefix.
    pub lock: Vec<u8>,
    /// The last fence, and whether its grant is open.
    pub fence: Vec<u8>,
    /// The line of waiters.
    pub waiters: Vec<u8>,
    /// Where the baton is laid down.
    pub baton: Vec<u8>,
    /// Counters and histograms.
    pub stats: Vec<u8>,
    /// The last grants.
    pub runs: Vec<u8>,
}

impl Keys {
    /// Of the lock `name` (bytes).
    ///
    /// # Errors
    /// An empty name, or one that is too long.
    pub fn new(prefix: &[u8], name: &[u8]) -> Result<Self> {
        if name.is_empty() {
            return Err(Error::invalid("the lock key must not be empty"));
        }
        if name.len() > NAME_MAX {
            return Err(Error::invalid("the lock key must not be longer than 64 KiB"));
        }
        let lock = [prefix, b"lock:", name].concat();
        let of = |what| companion(&lock, what);
        let (fence, waiters, baton) = (of("fence"), of("waiters"), of("baton"));
        Ok(Self { fence, waiters, baton, stats: of("stats"), runs: of("runs"), lock })
    }
}

/// Key of something that belongs to a lock, in the same slot of a Cluster: in braces, unless the
/// lock key has a hash tag of its own.
pub(crate) fn companion(lock_key: &[u8], what: &str) -> Vec<u8> {
    if has_hash_tag(lock_key) {
        [lock_key, b":", what.as_bytes()].concat()
    } else {
        [b"{", lock_key, b"}:", what.as_bytes()].concat()
    }
}

/// Whether the server would hash only a part of the key: the part between the first `{` and the
/// first `}` after it, unless that is empty.
pub(crate) fn has_hash_tag(key: &[u8]) -> bool {
    key.iter().position(|b| *b == b'{').is_some_and(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|b| *b == b'}').is_some_and(|length| length > 0)
    })
}

/// What a contender asks of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The lock, if it is free, or in transit to us: then with the baton and our ticket.
    Acquire {
        /// New for each acquisition, the same for each repetition.
        token: String,
        /// Life of the lease.
        ttl: Duration,
        /// What BLPOP brought us, and our place in the line.
        claim: Option<(Vec<u8>, String)>,
        /// What the server counts.
        count: Count,
    },
    /// A place in the line, or another look from it.
    Wait {
        /// Who waits.
        waiter: String,
        /// The value in transit, should the lock be free.
        transit: Vec<u8>,
        /// Life of the line if nobody looks again.
        life: Duration,
        /// Whether it is the first look.
        join: bool,
    },
    /// Out of the line, and done with waiting.
    Leave {
        /// Who waited; nobody stands in line under an empty name.
        waiter: String,
        /// Whether it counts as a timeout.
        timed_out: bool,
    },
    /// More time.
    Extend {
        /// Our value.
        value: Vec<u8>,
        /// From now on.
        ttl: Duration,
        /// Exactly that, or never less than what is left.
        exact: bool,
        /// Whether the server is to know, if that is more than it has on record.
        note: bool,
    },
    /// The end of the lease.
    Release {
        /// Our value.
        value: Vec<u8>,
        /// Our fence, and the TTL that was in force; 0 for a lock in transit.
        fence: u64,
        /// See `fence`.
        ttl: Duration,
        /// The value in transit, should somebody wait.
        transit: Vec<u8>,
        /// How long the lock must stay taken all the same.
        keep: Duration,
        /// `fence|host|pid|program|ms` for the past runs.
        run: Option<String>,
        /// Statistics and what they grow by.
        counts: Vec<(String, u64)>,
    },
}

/// What the server counts of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Nothing.
    Nothing,
    /// Everything.
    All,
    /// Not that it was held: the attempt goes on.
    Takeovers,
}

/// What the server says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is ours.
    Granted {
        /// The value of the lock key.
        value: Vec<u8>,
        /// The grant before it was never given back.
        takeover: bool,
    },
    /// Another has it: the value, and what its TTL has left.
    Held(Vec<u8>, Option<Duration>),
    /// We are in the line.
    Waiting {
        /// The value of the lock key.
        holder: Vec<u8>,
        /// What its TTL has left.
        ttl: Option<Duration>,
        /// Waiters before us.
        older: u32,
        /// Waiters behind us.
        younger: u32,
        /// Our place; empty when we have none any more.
        ticket: String,
    },
    /// We are out of the line.
    Left,
    /// It is ours for this long.
    Extended(Duration),
    /// It is not ours any more; whether somebody else has it.
    NotOurs(bool),
    /// It was ours and is given up (or handed on).
    Released,
}

impl Request {
    /// Gives up what is not wanted: a lock in transit (fence 0), or a grant that nobody made use of. Nothing
    /// is told of it, and the lock need not stay taken.
    pub(crate) fn hand_on(value: Vec<u8>, fence: u64, ttl: Duration, transit: Vec<u8>) -> Self {
        let (keep, run, counts) = (Duration::ZERO, None, Vec::new());
        Self::Release { value, fence, ttl, transit, keep, run, counts }
    }

    /// The script that does it, and what it is given.
    pub(crate) fn script(&self, keys: &Keys) -> (&'static Script, Args) {
        let on = |keys: &[&Vec<u8>]| keys.iter().fold(Args::default(), |args, key| args.key(key));
        let Keys { lock, fence, waiters, baton, stats, runs } = keys;
        match self {
            Self::Acquire { token, ttl, claim, count } => {
                let args = on(&[lock, fence, waiters, baton, stats, runs]).arg(token);
                let args = args.arg(whoami()).number(ms(*ttl)).number(MEMORY_MS);
                let args = args.number(*count as u8);
                let claimed = |args: Args, (baton, ticket): &(_, _)| args.arg(baton).arg(ticket);
                (&ACQUIRE, claim.iter().fold(args, claimed))
            }
            Self::Wait { waiter, transit, life, join } => {
                let args = on(&[lock, waiters, baton]).arg(waiter).arg(transit);
                let args = args.number(ms(CLAIM)).number(ms(*life));
                (&WAIT, args.number(u8::from(*join)))
            }
            Self::Leave { waiter, timed_out } => {
                let args = on(&[lock, waiters, baton, stats]).arg(waiter);
                (&LEAVE, args.number(u8::from(*timed_out)).number(MEMORY_MS))
            }
            Self::Extend { value, ttl, exact, note } => {
                let keys = if *note { on(&[lock, fence]) } else { on(&[lock]) };
                let args = keys.arg(value).number(ms(*ttl)).number(u8::from(*exact));
                (&EXTEND, if *note { args.number(MEMORY_MS) } else { args })
            }
            Self::Release { value, fence: number, ttl, transit, keep, run, counts } => {
                let mut args = on(&[lock, fence, waiters, baton]).arg(value);
                let grant = format!("{number}|{}", ttl.max(keep).as_millis());
                args = args.arg(if *number == 0 { "0".to_owned() } else { grant });
                args = args.number(MEMORY_MS).arg(transit).number(ms(CLAIM));
                let Some(run) = run else {
                    let keep = (!keep.is_zero()).then_some(keep.as_millis());
                    return (&RELEASE, keep.into_iter().fold(args, Args::number));
                };
                args = args.key(stats).key(runs).number(keep.as_millis()).arg(run);
                let grow = |args: Args, (field, by): &(String, u64)| args.arg(field).number(by);
                (&RELEASE, counts.iter().fold(args, grow))
            }
        }
    }

    /// Reads the reply to this request.
    pub(crate) fn read(&self, reply: &Value) -> Result<Answer> {
        let understood = match (self, reply) {
            (Self::Acquire { token, .. }, Value::BulkString(value)) => granted(token, value, false),
            (Self::Acquire { token, .. }, Value::Array(items)) => match items.as_slice() {
                [Value::BulkString(value), Value::BulkString(_)] => granted(token, value, true),
                items => held(items),
            },
            (Self::Wait { .. }, Value::Array(items)) => waiting(items),
            (Self::Leave { .. }, Value::Int(1)) => Some(Answer::Left),
            (Self::Extend { .. }, Value::Array(items)) => extended(items),
            (Self::Release { .. }, Value::Int(1)) => Some(Answer::Released),
            (Self::Release { .. }, Value::Int(0)) => Some(Answer::NotOurs(false)),
            _ => None,
        };
        understood.ok_or_else(senseless)
    }
}

fn ms(span: Duration) -> u64 {
    // Spans from callers were checked; what is left of one may have shrunk to nothing.
    ttl_ms(span).unwrap_or(1)
}

fn granted(token: &str, value: &[u8], takeover: bool) -> Option<Answer> {
    let rest = value.strip_prefix(token.as_bytes())?;
    rest.starts_with(b":").then(|| Answer::Granted { value: value.to_vec(), takeover })
}

fn held(items: &[Value]) -> Option<Answer> {
    match items {
        [Value::BulkString(value), Value::Int(ttl)] => {
            Some(Answer::Held(value.clone(), left(*ttl)))
        }
        _ => None,
    }
}

fn waiting(items: &[Value]) -> Option<Answer> {
    let [
        Value::BulkString(holder),
        Value::Int(ttl),
        Value::Int(older),
        Value::Int(younger),
        Value::BulkString(ticket),
    ] = items
    else {
        return None;
    };
    Some(Answer::Waiting {
        holder: holder.clone(),
        ttl: left(*ttl),
        older: u32::try_from(*older).ok()?,
        younger: u32::try_from(*younger).ok()?,
        ticket: String::from_utf8(ticket.clone()).ok()?,
    })
}

fn extended(items: &[Value]) -> Option<Answer> {
    match items {
        [Value::Int(1), Value::Int(left)] => {
            Some(Answer::Extended(Duration::from_millis(u64::try_from(*left).ok()?)))
        }
        [Value::Int(0), Value::BulkString(somebody)] => Some(Answer::NotOurs(somebody == b"1")),
        _ => None,
    }
}

/// A PTTL: negative when the key has none.
fn left(ttl: i64) -> Option<Duration> {
    u64::try_from(ttl).ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_share_the_slot_of_the_lock() {
        assert_eq!(companion(b"lock:a", "fence"), b"{lock:a}:fence");
        assert_eq!(companion(b"lock:{a}b", "fence"), b"lock:{a}b:fence");
        assert_eq!(companion(b"lock:{}b", "fence"), b"{lock:{}b}:fence");
    }

    #[test]
    fn names_have_bounds() {
        assert!(Keys::new(b"", b"").is_err());
        assert!(Keys::new(b"", &[b'x'; 65 * 1024]).is_err());
        assert_eq!(Keys::new(b"app:", b"\0").unwrap().lock, b"app:lock:\0");
    }

    #[test]
    fn an_answer_to_another_question_makes_no_sense() {
        let release = Request::Leave { waiter: "a".into(), timed_out: false };
        assert!(release.read(&Value::Nil).is_err());
        assert_eq!(release.read(&Value::Int(1)).unwrap(), Answer::Left);
        let (token, claim, count) = ("ab".to_owned(), None, Count::All);
        let acquire = Request::Acquire { token, ttl: CLAIM, claim, count };
        let granted = |value: &[u8]| acquire.read(&Value::BulkString(value.to_vec())).is_ok();
        assert!(granted(b"ab:7|host") && !granted(b"abc:7|host") && !granted(b"cd:7|host"));
        let pair = |last| Value::Array(vec![Value::BulkString(b"ab:7|h".to_vec()), last]);
        let after = acquire.read(&pair(Value::BulkString(b"takeover".to_vec()))).unwrap();
        assert_eq!(after, Answer::Granted { value: b"ab:7|h".to_vec(), takeover: true });
        let held = acquire.read(&pair(Value::Int(-1))).unwrap();
        assert_eq!(held, Answer::Held(b"ab:7|h".to_vec(), None));
    }
}
