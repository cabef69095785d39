//! A contender for one lock: the lock's keys, and the lease while there is one.
//!
//! Every act is one script and one round trip, and may be repeated when its reply is lost: acquire
//! is recognised by its owner token, extend and release compare the whole value of the lock key.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lease::{Holder, Lease, owner_token, safe_until, ttl_ms, whoami};
use crate::script::{ACQUIRE, Args, EXTEND, RELEASE};
use redis::Value;
use std::time::Duration;

/// What an attempt to take a lock came to. Contention is an outcome, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is ours; the fencing token proves its order among all grants of this lock.
    Acquired {
        /// Larger than that of every grant before.
        fence: u64,
    },
    /// Somebody else has it.
    Held(Holder),
}

/// Life of the fence key: longer than any holder may sleep.
const FENCE_TTL_MS: u64 = 30 * 24 * 3600 * 1000;

/// Longest name of a lock.
const NAME_MAX: usize = 64 * 1024;

/// A contender for one lock.
#[derive(Debug)]
pub(crate) struct Contender {
    key: Vec<u8>,
    ttl: Duration,
    lease: Option<Lease>,
    /// The process that acquired. A forked child holds a copy of the lease, but not the lease.
    pid: u32,
}

impl Contender {
    /// For the lock `name` (bytes), under the prefix of `link`.
    pub fn new(link: &Link, name: &[u8], ttl: Duration) -> Result<Self> {
        ttl_ms(ttl)?;
        if name.is_empty() {
            return Err(Error::invalid("the lock key must not be empty"));
        }
        if name.len() > NAME_MAX {
            return Err(Error::invalid("the lock key must not be longer than 64 KiB"));
        }
        let key = [&link.config().prefix, b"lock:" as &[u8], name].concat();
        Ok(Self { key, ttl, lease: None, pid: std::process::id() })
    }

    /// The lock key on the server.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The lease, unless it belongs to the process that we were forked from.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref().filter(|_| self.pid == std::process::id())
    }

    /// Whether the lease may still be acted upon, by our own clock.
    pub fn is_held(&self) -> bool {
        self.lease().is_some_and(|lease| !lease.safe_until.passed())
    }

    /// Takes the lock if it is free. An acquired lock, ours included, is held.
    pub fn acquire(&mut self, link: &mut Link) -> Result<Outcome> {
        let token = owner_token()?;
        let args = Args::default()
            .key(&self.key)
            .key(&companion(&self.key, "fence"))
            .arg(&token)
            .arg(whoami())
            .number(ttl_ms(self.ttl)?)
            .number(FENCE_TTL_MS);
        let (reply, sent) = self.ask(link, |link, deadline| ACQUIRE.run(link, &args, deadline))?;
        match granted(&reply) {
            Some(Ok(value)) => match Lease::new(value.to_vec(), sent, self.ttl) {
                Some(lease) => Ok(self.take(lease)),
                None => Err(unreadable(&self.key)),
            },
            Some(Err(holder)) => Ok(Outcome::Held(holder)),
            None => Err(unreadable(&self.key)),
        }
    }

    fn take(&mut self, lease: Lease) -> Outcome {
        let fence = lease.fence;
        self.lease = Some(lease);
        self.pid = std::process::id();
        Outcome::Acquired { fence }
    }

    /// Gives the lease more time: `None` its usual TTL without shortening it, `Some` exactly that.
    /// False when it is not ours (any more).
    pub fn extend(&mut self, link: &mut Link, ttl: Option<Duration>) -> Result<bool> {
        let wanted = ttl_ms(ttl.unwrap_or(self.ttl))?;
        let Some(lease) = self.lease().cloned() else { return Ok(false) };
        let args = Args::default()
            .key(&self.key)
            .arg(&lease.value)
            .number(wanted)
            .number(u8::from(ttl.is_some()));
        let (reply, sent) = self.ask(link, |link, deadline| EXTEND.run(link, &args, deadline))?;
        self.extended(&reply, sent)
    }

    /// The command of an extend without its own round trip, for a sweep to send among others.
    pub fn extend_args(&self) -> Option<Args> {
        let lease = self.lease()?;
        let ttl = ttl_ms(self.ttl).ok()?;
        Some(Args::default().key(&self.key).arg(&lease.value).number(ttl).number(0))
    }

    /// Takes in the answer to an extend that was sent at `sent`.
    pub fn extended(&mut self, reply: &Value, sent: Moment) -> Result<bool> {
        let left = match reply {
            Value::Array(items) => match items.as_slice() {
                [Value::Int(1), Value::Int(left)] => u64::try_from(*left).ok(),
                [Value::Int(0)] => None,
                _ => return Err(unreadable(&self.key)),
            },
            _ => return Err(unreadable(&self.key)),
        };
        match (left, &mut self.lease) {
            (Some(left), Some(lease)) => {
                lease.safe_until = safe_until(sent, Duration::from_millis(left));
                Ok(true)
            }
            _ => {
                self.lease = None;
                Ok(false)
            }
        }
    }

    /// Gives the lock up. False when it was not ours (any more). After an error the lease is given
    /// up on this side all the same, and ends on the server with its TTL.
    pub fn release(&mut self, link: &mut Link) -> Result<bool> {
        let Some(lease) = self.lease().cloned() else { return Ok(false) };
        self.lease = None;
        let args = Args::default().key(&self.key).arg(&lease.value);
        let mut unknown = false;
        let (reply, _) = self.ask(link, |link, deadline| {
            RELEASE.run(link, &args, deadline).inspect_err(|e| unknown |= e.is_unknown())
        })?;
        // Gone after an attempt whose reply was lost: that attempt released it.
        Ok(reply == Value::Int(1) || unknown)
    }

    /// Gives the lease up on this side only.
    pub fn forget(&mut self) {
        self.lease = None;
    }

    /// Runs an idempotent script; also tells when the answered attempt was begun.
    fn ask(
        &self,
        link: &mut Link,
        mut run: impl FnMut(&mut Link, Moment) -> Result<Value>,
    ) -> Result<(Value, Moment)> {
        let attempt = |link: &mut Link, deadline| {
            // A connection made meanwhile would make the lease look younger than it is.
            link.connect(deadline)?;
            let sent = Moment::now();
            run(link, deadline).map(|reply| (reply, sent))
        };
        link.persist(attempt).map_err(|e| e.key(&self.key))
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
fn has_hash_tag(key: &[u8]) -> bool {
    key.iter().position(|b| *b == b'{').is_some_and(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|b| *b == b'}').is_some_and(|length| length > 0)
    })
}

/// Reads the reply of acquire.lua: the value that is now ours, or who holds it.
fn granted(reply: &Value) -> Option<std::result::Result<&[u8], Holder>> {
    let Value::Array(items) = reply else { return None };
    match items.as_slice() {
        [Value::Int(1), Value::BulkString(value)] => Some(Ok(value)),
        [Value::Int(0), Value::BulkString(value), Value::Int(ttl)] => {
            let ttl = u64::try_from(*ttl).ok().map(Duration::from_millis);
            Some(Err(Holder::read(value, ttl)))
        }
        _ => None,
    }
}

fn unreadable(key: &[u8]) -> Error {
    Error::new(ErrorKind::Refused, "the server's answer makes no sense").key(key)
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
}
