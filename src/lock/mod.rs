//! A distributed lock on one server.
//!
//! ```no_run
//! use std::time::Duration;
//! use tagsweep::{Config, lock::{Lock, Outcome}};
//!
//! let config = Config::from_url("redis://127.0.0.1")?;
//! let mut lock = Lock::new(config, b"report", Duration::from_secs(30))?;
//! match lock.acquire()? {
//!     Outcome::Acquired { fence } => {
//!         println!("ours, with fence {fence}");
//!         lock.release()?;
//!     }
//!     Outcome::Held(holder) => println!("{holder}"),
//! }
//! # Ok::<(), tagsweep::Error>(())
//! ```
//!
//! # What it promises
//! At most one lease at a time, as long as the server keeps its data and its clock: a failover that
//! loses writes, an eviction of the lock key or a jump of the server's clock can make two. What a
//! lease protects must therefore check the fence (as the sweep's scripts do) or bear two holders.
//!
//! # Wire format
//! Key `lock:<name>`, after the prefix; value `token:fence|host|pid|program`; a TTL always. A class
//! that takes its lock with `SET lock:<name> <anything> NX EX n` and this one exclude each other.

mod contender;
mod lease;
mod wait;

pub use contender::Outcome;
pub(crate) use contender::{Contender, companion};
pub use lease::Holder;

use crate::config::Config;
use crate::connect::Link;
use crate::error::Result;
use crate::lock::wait::Patience;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A link that several locks of a process share. One of them speaks at a time.
pub type SharedLink = Arc<Mutex<Link>>;

/// A lock, as one contender sees it.
///
/// Dropping it releases the lease, within a second, if it is still ours. After `fork()` the child's
/// copy holds nothing and releases nothing. `Send`, not `Clone`: a lease has one owner.
#[derive(Debug)]
pub struct Lock {
    link: SharedLink,
    contender: Contender,
}

impl Lock {
    /// A lock with a connection of its own. Does not connect yet.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): an empty or oversized name, a TTL below 1 ms or above
    /// 2^53 ms, an unusable configuration.
    pub fn new(config: Config, name: &[u8], ttl: Duration) -> Result<Self> {
        Self::on(Arc::new(Mutex::new(Link::new(config)?)), name, ttl)
    }

    /// A lock on a link that others use too.
    ///
    /// # Errors
    /// As [`Lock::new`].
    pub fn on(link: SharedLink, name: &[u8], ttl: Duration) -> Result<Self> {
        let contender = Contender::new(&guard(&link), name, ttl)?;
        Ok(Self { link, contender })
    }

    /// Takes the lock if it is free, and tells who holds it otherwise. One round trip. A lock that
    /// this object holds is held: it does not count.
    ///
    /// # Errors
    /// Whatever keeps the server from answering; [`Unknown`](crate::ErrorKind::Unknown) leaves open
    /// whether the lock was taken, for at most one TTL.
    pub fn acquire(&mut self) -> Result<Outcome> {
        self.contender.acquire(&mut guard(&self.link))
    }

    /// Takes the lock, asking again for at most `budget`, at growing intervals of up to 250 ms with
    /// full jitter. `go_on` is asked before each pause; when it answers false, the wait ends.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn acquire_within(
        &mut self,
        budget: Duration,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome> {
        acquire_within(&mut self.contender, &self.link, budget, go_on)
    }

    /// Gives the lease more time. `None`: the usual TTL from now, never less than what is left;
    /// `Some(ttl)`: exactly that. One round trip. False when the lease is lost; a lost lock is never
    /// taken again by an extend.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; the lease then stays valid until its own deadline.
    pub fn extend(&mut self, ttl: Option<Duration>) -> Result<bool> {
        self.contender.extend(&mut guard(&self.link), ttl)
    }

    /// Gives the lock up. One round trip; none without a lease. False when it was not ours any more.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; the lease then ends with its TTL.
    pub fn release(&mut self) -> Result<bool> {
        self.contender.release(&mut guard(&self.link))
    }

    /// Whether the lease may still be acted upon, by our own clock and without a round trip.
    pub fn is_held(&self) -> bool {
        self.contender.is_held()
    }

    /// Time until the holder must stop; `None` without a lease.
    pub fn remaining(&self) -> Option<Duration> {
        self.contender.lease().map(|lease| lease.safe_until.left())
    }

    /// Fencing token of the lease.
    pub fn fence(&self) -> Option<u64> {
        self.contender.lease().map(|lease| lease.fence)
    }

    /// The value of the lock key, which proves ownership. A secret: whoever has it can release.
    pub fn owner(&self) -> Option<&[u8]> {
        self.contender.lease().map(|lease| lease.value.as_slice())
    }

    /// The key on the server, prefix included.
    pub fn key(&self) -> &[u8] {
        self.contender.key()
    }
}

/// Asks until the lock is ours, the budget is spent or the caller has had enough. The link is free
/// for others during the pauses.
pub(crate) fn acquire_within(
    contender: &mut Contender,
    link: &SharedLink,
    budget: Duration,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Outcome> {
    let mut patience = Patience::new(budget);
    loop {
        let outcome = contender.acquire(&mut guard(link))?;
        if matches!(outcome, Outcome::Acquired { .. }) || !go_on() || !patience.sleep() {
            return Ok(outcome);
        }
    }
}

/// Whether a TTL can be used for a lock.
pub(crate) fn check_ttl(ttl: Duration) -> Result<()> {
    lease::ttl_ms(ttl).map(|_| ())
}

/// Longest time that dropping a lock may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Drop for Lock {
    fn drop(&mut self) {
        if self.contender.lease().is_some() {
            let mut link = guard(&self.link);
            link.hurry(LAST_WORDS, |link| {
                // Nobody is left to tell; the lease ends with its TTL.
                let _ = self.contender.release(link);
            });
        }
    }
}

/// A link is whole after a panic: any fault drops its connection.
pub(crate) fn guard(link: &SharedLink) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}
