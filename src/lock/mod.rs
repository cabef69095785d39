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
//! # How waiters are served
//! First come, first served: they block on one list, and the script that releases hands the lock over
//! to whoever has blocked longest (see [`WaitMode`]). A waiter that died is never served; one that was
//! stopped costs the others at most two seconds.
//!
//! # Wire format
//! Key `lock:<name>`, after the prefix; value `token:fence|host|pid|program`; a TTL always. A class
//! that takes its lock with `SET lock:<name> <anything> NX EX n` and this one exclude each other.
//! Companions, in the same slot: `{lock:<name>}:fence`, `:waiters`, `:baton`, `:stats`, `:runs`.

#[doc(hidden)]
pub mod attempt;
mod confirm;
#[doc(hidden)]
pub mod contender;
mod drive;
mod end;
mod force;
mod lease;
mod line;
mod loss;
mod names;
mod options;
#[doc(hidden)]
pub mod protocol;
mod pulse;
mod renew;
mod stats;
mod status;
mod track;
mod ttl;
mod wait;
#[doc(hidden)]
pub mod ward;

pub(crate) use contender::Contender;
pub use drive::GoOn;
pub(crate) use end::release;
pub use force::{Forced, force_release};
pub(crate) use lease::whoami;
pub use lease::{Holder, Lease};
pub use names::names;
pub use options::Options;
pub(crate) use protocol::companion;
pub use renew::{OnLost, Watchdog};
pub use stats::{Histogram, LossReason, Stats};
pub use status::{Run, RunEnd, Status, Waiter, status};
pub use ttl::Ttl;
pub use wait::WaitMode;

use crate::clock::Moment;
use crate::config::Config;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::lock::attempt::Attempt;
use crate::lock::drive::{Asked, Drive, ask};
use crate::lock::end::end;
use crate::lock::loss::Loss;
use crate::lock::protocol::{Answer, Request};
use crate::lock::renew::Watched;
use crate::lock::ward::Ward;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A link that several locks of a process share. One of them speaks at a time.
pub type SharedLink = Arc<Mutex<Link>>;

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

/// A lock, as one contender sees it.
///
/// Dropping it releases the lease, within a second, if it is still ours. After `fork()` the child's
/// copy holds nothing and releases nothing. `Send`, not `Clone`: a lease has one owner.
pub struct Lock {
    link: SharedLink,
    contender: Contender,
    on_lost: Option<OnLost>,
    /// When the TTL was learned last.
    learned: Option<Moment>,
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").field("key", &crate::error::printable(self.key())).finish()
    }
}

/// Longest time that dropping a lock may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often a TTL is learned anew.
const LEARN_EVERY: Duration = Duration::from_secs(300);

/// How long what comes before or after the answer of a call may take.
pub(crate) const ASIDE: Duration = Duration::from_millis(150);

/// What is left of a wait however long that took.
const MOMENT: Duration = Duration::from_millis(1);

impl Lock {
    /// A lock with a connection of its own. Does not connect yet.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid): an empty or oversized name, a TTL below 3 ms or above 2^53 ms,
    /// an unusable configuration.
    pub fn new(config: Config, name: &[u8], ttl: Duration) -> Result<Self> {
        Self::on(Arc::new(Mutex::new(Link::new(config)?)), name, Options::new(ttl))
    }

    /// A lock on a link that others use too.
    ///
    /// # Errors
    /// As [`Lock::new`].
    pub fn on(link: SharedLink, name: &[u8], options: Options) -> Result<Self> {
        let contender = Contender::new(&guard(&link), name, options)?;
        Ok(Self { link, contender, on_lost: None, learned: None })
    }

    /// A lock whose lease was granted to somebody who gave us the [`Lock::owner`]: another process, or
    /// an earlier one. Sends nothing; until [`Lock::verify`] or [`Lock::extend`] has asked, nothing is
    /// known of the lease and [`Lock::is_held`] is false. It is not renewed until then either.
    /// [`Options::max_hold`], [`Options::at_least`] and what is on record count from the grant, wherever that was made:
    /// the first call to which that matters asks for the server's time, in one round trip more.
    ///
    /// # Errors
    /// As [`Lock::new`]; and an owner that is not one.
    pub fn restore(link: SharedLink, name: &[u8], owner: &[u8], options: Options) -> Result<Self> {
        let mut lock = Self::on(link, name, options)?;
        let lease = Lease::new(owner.to_vec(), Moment::now())
            .ok_or_else(|| Error::invalid("this is not the owner of a lease"))?;
        lock.contender.restored(lease);
        Ok(lock)
    }

    /// Calls `tell` when the lease is lost: from the watchdog's thread, or from the call that notices. While
    /// it tells, whoever gives the lease up waits; afterwards it tells no more.
    pub fn on_lost(&mut self, tell: impl Fn(LossReason) + Send + Sync + 'static) {
        self.on_lost = Some(Arc::new(tell));
    }

    /// Takes the lock if it is free, and tells who holds it otherwise. One round trip.
    ///
    /// # Errors
    /// [`Reentrant`](ErrorKind::Reentrant) when this object holds it. Whatever keeps the server from
    /// answering; [`Unknown`](ErrorKind::Unknown) leaves open whether the lock was taken, for at most
    /// one TTL: the next acquire of this object takes it over, a release or its end gives it up.
    /// [`Lost`](ErrorKind::Lost) when it was granted, twice, and answers took longer than the TTL.
    /// [`Unconfirmed`](ErrorKind::Unconfirmed), with [`Options::confirm`].
    pub fn acquire(&mut self) -> Result<Outcome> {
        self.acquire_within(Duration::ZERO, &mut |_| true)
    }

    /// Takes the lock, waiting in line for at most `budget`. `go_on` is asked some twenty times a
    /// second, with who has the lock; when it answers false, the wait ends.
    ///
    /// Round trips: one to try, one to join the line; when the lock is handed over, one to claim it.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn acquire_within(&mut self, budget: Duration, go_on: GoOn) -> Result<Outcome> {
        if self.is_held() {
            return Err(Error::new(ErrorKind::Reentrant, "this contender holds the lock already")
                .key(self.key())
                .advice("release it first; leases do not nest"));
        }
        let begun = Moment::now();
        let first = begun + if budget.is_zero() { ASIDE } else { ASIDE.min(budget / 2) };
        self.outlive(first);
        self.learn(first);
        // Whoever waits does so until the end of his budget, not for the time of a call.
        let spent = Moment::now().since(begun);
        let left = budget.saturating_sub(spent).max(budget.min(MOMENT));
        let outcome = acquire_within(&mut self.contender, &self.link, left, go_on)?;
        if let Outcome::Acquired { .. } = outcome {
            let usual = guard(&self.link).config().timeout;
            self.confirm(if budget.is_zero() { begun + usual } else { begun + budget + ASIDE })?;
            self.watch().inspect_err(|_| {
                // What was promised cannot be kept.
                let _ = end(&mut self.contender, &mut guard(&self.link), Contender::give_back);
            })?;
        }
        Ok(outcome)
    }

    /// Gives the lease more time. `None`: the usual TTL from now, never less than what is left;
    /// `Some(ttl)`: exactly that, which a watchdog then renews it with. One round trip. False when the
    /// lease is lost, or was held for [`Options::max_hold`]; a lost lock is never taken again by an extend.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; the lease then stays valid until its own deadline.
    pub fn extend(&mut self, ttl: Option<Duration>) -> Result<bool> {
        if self.give_up_lost().is_some() || self.contender.lease().is_none() {
            return Ok(false);
        }
        let spent = self.date(Duration::MAX, false);
        match self.contender.extend(ttl, Moment::now())? {
            Some(request) => {
                let usual = ttl.unwrap_or(self.contender.ttl);
                let ours = self.extended(&request, spent)?;
                let is_last = matches!(request, Request::Extend { ttl, .. } if ttl < usual);
                if ours && !self.is_held() {
                    // The answer took as long as the lease, or as what was left.
                    self.give_up(if is_last { LossReason::MaxHold } else { LossReason::Expired });
                }
                Ok(ours && self.is_held())
            }
            None => {
                self.give_up(LossReason::MaxHold);
                Ok(false)
            }
        }
    }

    /// The lease is over by our own clock: others need not wait for its TTL.
    fn give_up(&mut self, reason: LossReason) {
        let news = self.contender.pulse().is_some_and(|pulse| pulse.lose(reason));
        // Over on our side, whatever this comes to.
        let _ = self.release_within(ASIDE);
        if news {
            self.tell(reason);
        }
    }

    /// Gives up a lease that the watchdog has lost, and says why it has: it is over, whatever the server
    /// says now, for nobody renews it. One round trip if it may still be there.
    pub fn give_up_lost(&mut self) -> Option<LossReason> {
        match self.lost()? {
            // Others need not wait for its TTL.
            LossReason::Unknown | LossReason::MaxHold => drop(self.release_within(ASIDE)),
            _ => self.forget(),
        }
        self.last_loss()
    }

    fn tell(&self, reason: LossReason) {
        if let Some(tell) = &self.on_lost {
            tell(reason);
        }
    }

    /// Asks the server whether the lease is still ours, and changes nothing. One round trip; none
    /// without a lease.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn verify(&mut self) -> Result<bool> {
        if self.give_up_lost().is_some() {
            return Ok(false);
        }
        let spent = self.date(Duration::MAX, false);
        match self.contender.verify() {
            Some(request) => self.extended(&request, spent),
            None => Ok(false),
        }
    }

    /// Gives the lock up, to the waiter that has waited longest. One round trip; none without a lease.
    /// False when it was not ours any more. After an [`acquire`](Lock::acquire) of which nobody knows what it came to
    /// whatever it was granted is given up, in two round trips.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; the lease then ends with its TTL.
    pub fn release(&mut self) -> Result<bool> {
        self.release_within(Duration::MAX)
    }

    /// The same, within so much time, if that is less than [`Config::timeout`].
    ///
    /// # Errors
    /// As [`Lock::release`].
    pub fn release_within(&mut self, patience: Duration) -> Result<bool> {
        self.end_within(patience, Contender::release)
    }

    /// The same for a grant that nobody made use of: the lock does not stay taken for [`Options::at_least`].
    ///
    /// # Errors
    /// As [`Lock::release`].
    pub fn give_back_within(&mut self, patience: Duration) -> Result<bool> {
        self.end_within(patience, Contender::give_back)
    }

    fn end_within(
        &mut self,
        patience: Duration,
        say: fn(&mut Contender, Moment) -> Option<Request>,
    ) -> Result<bool> {
        self.contender.hush();
        let spent = self.date(patience, self.contender.options().record);
        let mut link = guard(&self.link);
        let patience = patience.min(link.config().timeout).saturating_sub(spent);
        link.hurry(patience, |link| end(&mut self.contender, link, say))
    }

    /// Whether the lease may still be acted upon, by our own clock and without a round trip.
    pub fn is_held(&self) -> bool {
        self.contender.is_held(Moment::now())
    }

    /// Whether and why the watchdog has lost the lease that we still believe in.
    pub fn lost(&self) -> Option<LossReason> {
        self.contender.pulse()?.lost()
    }

    /// Why the last lease was lost, if it was.
    pub fn last_loss(&self) -> Option<LossReason> {
        self.contender.last_loss()
    }

    /// Gives the lease up on this side only: it ends with its TTL.
    pub fn forget(&mut self) {
        self.contender.settle();
        self.contender.forget();
    }

    /// Time until the holder must stop, which is none when the lease is lost; `None` without a lease.
    pub fn remaining(&self) -> Option<Duration> {
        self.contender.lease()?;
        Some(self.contender.safe_until().map_or(Duration::ZERO, Moment::left))
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
        &self.contender.keys().lock
    }

    /// The server, as messages name it: without secrets.
    pub fn server(&self) -> String {
        guard(&self.link).config().label()
    }

    /// The lock, as messages name it: its key and the server, without secrets.
    pub fn label(&self) -> String {
        format!("{} on {}", printable(self.key()), self.server())
    }

    /// Life of a lease: as given, or as learned.
    pub fn ttl(&self) -> Duration {
        self.contender.ttl
    }

    /// What happened to this contender.
    pub fn stats(&self) -> &Stats {
        self.contender.stats()
    }

    /// Whether the lock is held with that owner. One round trip.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn is_owned_by(&self, owner: &[u8]) -> Result<bool> {
        let (value, ttl) = (owner.to_vec(), Duration::from_millis(1));
        let request = Request::Extend { value, ttl, exact: false, note: false };
        let asked = ask(&mut guard(&self.link), self.contender.keys(), &request)?;
        Ok(matches!(asked.answer, Answer::Extended(_)))
    }

    /// Takes the lock away from whoever holds it; false when it was free. See [`force_release`].
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn force_release(&mut self) -> Result<bool> {
        self.contender.forget();
        let link = &mut guard(&self.link);
        let forced = force::force(link, self.contender.keys(), None)?;
        self.contender.settle();
        Ok(matches!(forced, Forced::Taken(_)))
    }

    /// Who has the lock and who waits for it. One round trip.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn status(&self) -> Result<Status> {
        status::look(&mut guard(&self.link), self.contender.keys())
    }

    /// Asks for more time, in a call of which so much is spent, and takes in the answer.
    fn extended(&mut self, request: &Request, spent: Duration) -> Result<bool> {
        if let (Request::Extend { ttl, exact: true, .. }, Some(pulse)) =
            (request, self.contender.pulse())
        {
            pulse.ask_for(Moment::now(), *ttl, self.contender.ttl);
            self.hasten();
        }
        let asked = self.ask(request, spent)?;
        if let (Answer::NotOurs(somebody), Some(fence)) = (&asked.answer, self.fence()) {
            let found = if *somebody { LossReason::Stolen } else { LossReason::Expired };
            let until = self.contender.safe_until().unwrap_or(asked.sent);
            let loss = Loss { fence, until, found };
            let reason = loss::why(&mut guard(&self.link), self.contender.keys(), &loss);
            // Who is told may use the link.
            if self.contender.lose(reason) {
                self.tell(reason);
            }
            return Ok(false);
        }
        let exact = matches!(request, Request::Extend { exact: true, .. });
        let ours = self.contender.extended(&asked.answer, asked.sent, exact);
        if let (Request::Extend { note: true, .. }, Some(pulse)) = (request, self.contender.pulse())
        {
            pulse.noted();
        }
        if ours && self.contender.take_restored() {
            self.watch()?;
        }
        if exact && ours {
            self.hasten();
        }
        Ok(ours)
    }

    /// Asks within the time of a call of which so much is spent; it begins when the link is ours.
    fn ask(&self, request: &Request, spent: Duration) -> Result<Asked> {
        let mut link = guard(&self.link);
        let left = link.config().timeout.saturating_sub(spent);
        link.hurry(left, |link| ask(link, self.contender.keys(), request))
    }

    /// The watchdog has less time than it thought.
    fn hasten(&self) {
        if let (Some(watchdog), Some(pulse)) =
            (&self.contender.options().renew, self.contender.pulse())
        {
            watchdog.hasten(pulse);
        }
    }

    /// When a restored lease was granted, if something counts from then, such as how long it was held: its fence is
    /// the server's time of that. One round trip more; without an answer it was granted when it was restored. How
    /// long that took.
    fn date(&mut self, patience: Duration, records: bool) -> Duration {
        let Options { max_hold, at_least, .. } = self.contender.options();
        let counts = records || max_hold.is_some() || !at_least.is_zero();
        if !counts || !self.contender.is_undated() {
            return Duration::ZERO;
        }
        let mut link = guard(&self.link);
        let begun = Moment::now();
        let now = link.hurry(ASIDE.min(patience / 2), |link| {
            let deadline = link.deadline();
            link.call(&redis::cmd("TIME"), deadline)
        });
        drop(link);
        let now = now.ok().and_then(|told| redis::from_redis_value::<(u64, u64)>(told).ok());
        if let Some((seconds, micros)) = now {
            self.contender.date(Duration::from_secs(seconds) + Duration::from_micros(micros));
        }
        Moment::now().since(begun)
    }

    /// Gives up a lease that is over by our own clock. The server may have it still, where a shorter TTL was asked
    /// for and that was lost.
    fn outlive(&mut self, until: Moment) {
        let news = self.contender.outlive(Moment::now());
        if self.contender.lease().is_some() {
            let _ = self.release_within(until.left());
        }
        if let Some(reason) = news {
            self.tell(reason);
        }
    }

    /// Learns the TTL from the past, if it is to be learned; without it the TTL stays as it is.
    fn learn(&mut self, until: Moment) {
        let ttl = self.contender.options().ttl;
        let fresh = self.learned.is_some_and(|at| Moment::now().since(at) < LEARN_EVERY);
        if matches!(ttl, Ttl::Auto { .. }) && !fresh {
            let renewed = self.contender.options().renew.is_some();
            let keys = self.contender.keys();
            let mut link = guard(&self.link);
            let learned = link.hurry(until.left(), |link| ttl::learn(link, keys, ttl, renewed));
            drop(link);
            if let Ok(ttl) = learned {
                self.contender.ttl = ttl;
                self.learned = Some(Moment::now());
            }
        }
    }

    /// Hands the lease to the watchdog, if there is one.
    fn watch(&self) -> Result<()> {
        let (Some(watchdog), Some(lease), Some(pulse)) =
            (&self.contender.options().renew, self.contender.lease(), self.contender.pulse())
        else {
            return Ok(());
        };
        // Not while the link is ours: what is dropped on the way may use it.
        let config = guard(&self.link).config().clone();
        // Nobody waits for a renewal; and whoever holds the lock needs the processor.
        let config = Config { busy_poll: Duration::ZERO, ..config };
        let ward = Ward {
            value: lease.value.clone(),
            ttl: self.contender.ttl,
            end: self.contender.end_of_hold(),
            pulse: Arc::clone(pulse),
        };
        let (keys, fence, on_lost) =
            (self.contender.keys().clone(), lease.fence, self.on_lost.clone());
        watchdog.watch(Watched { ward, config, keys, fence, on_lost })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.contender.options().release_on_drop {
            self.contender.forget();
        }
        let owes = self.contender.lease().is_some() || self.contender.unsettled().is_some();
        if !owes && self.contender.is_told() {
            return;
        }
        self.contender.hush();
        if guard(&self.link).is_given_up() {
            return self.contender.forget();
        }
        self.date(LAST_WORDS, self.contender.options().record);
        let mut link = guard(&self.link);
        // What may have been granted unheard is looked for where an answer comes at once.
        let patience = if self.contender.unsettled().is_some() { ASIDE } else { LAST_WORDS };
        link.hurry(patience, |link| {
            // Nobody is left to tell; a lease ends with its TTL. Where nobody answers, other leases on this link need
            // not try.
            match release(&mut self.contender, link) {
                Err(e) if e.code().is_none() => return link.give_up(),
                _ => {}
            }
            if !link.is_connected() {
                return;
            }
            let words = self.contender.last_words();
            let deadline = link.deadline();
            if !words.is_empty() {
                let _ = link.calls(&words, deadline);
            }
        });
    }
}

/// Sends one request, for tests that compare the scripts with a model of them.
#[doc(hidden)]
pub fn perform(link: &SharedLink, keys: &protocol::Keys, request: &Request) -> Result<Answer> {
    ask(&mut guard(link), keys, request).map(|asked| asked.answer)
}

/// Makes one attempt, with a wait budget.
pub(crate) fn acquire_within(
    contender: &mut Contender,
    link: &SharedLink,
    budget: Duration,
    go_on: GoOn,
) -> Result<Outcome> {
    let begun = Moment::now();
    let manner = contender.manner(budget);
    let ttl = manner.ttl;
    let mut attempt = Attempt::new(manner, contender.unsettled(), begun)?;
    let drive = Drive::new(contender.keys(), link, go_on, budget);
    let ended = drive.run(&mut attempt);
    let unknown = ended.as_ref().is_err_and(Error::is_unknown);
    match attempt.unsettled().or(unknown.then_some(attempt.token())) {
        Some(token) => contender.unsettle(token.to_owned()),
        None => contender.settle(),
    }
    match ended {
        Ok(Ok(lease)) => {
            let fence = lease.fence;
            let waited = lease.begun.since(begun);
            contender.granted(lease, ttl, waited);
            if attempt.took_over() {
                contender.took_over();
            }
            Ok(Outcome::Acquired { fence })
        }
        Ok(Err(holder)) => {
            if !attempt.is_cancelled() {
                contender.not_granted(!budget.is_zero());
            }
            Ok(Outcome::Held(holder))
        }
        Err(e) => {
            contender.failed(e.is_unknown());
            Err(e)
        }
    }
}

/// A link is whole after a panic.
pub(crate) fn guard(link: &SharedLink) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(|poisoned| {
        link.clear_poison();
        let mut link = poisoned.into_inner();
        link.mend();
        link
    })
}
