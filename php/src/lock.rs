//! `Tagsweep\DistributedLock`.
//!
//! Methods take `&self`: a callable that we call, and a signal handler that runs while we wait, may
//! use the object that is in use. One that needs it exclusively is then told so.

use crate::ending::{LEASES, watch};
use crate::exceptions::{Class, exception, from_core, invalid};
use crate::frame::{called_class, refuse_twice};
use crate::gate::{self, Gate};
use crate::options::{Given, lock_options, positive, span};
use crate::target::{config, shared_link};
use crate::weak::{Array, Bytes, Callable, Int, Number};
use ext_php_rs::boxed::ZBox;
use ext_php_rs::exception::{PhpException, PhpResult};
use ext_php_rs::prelude::*;
use ext_php_rs::types::{ZendClassObject, ZendHashTable, Zval};
use ext_php_rs::zend::ExecutorGlobals;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tagsweep::lock::{Histogram, Holder, Lock, LossReason, Outcome, Stats};

/// What a lock can do.
#[php_interface]
#[php(name = "Tagsweep\\LockInterface")]
pub(crate) trait LockInterface {
    /// Takes the lock if it is free.
    fn acquire(&self) -> PhpResult<bool>;
    /// Gives the lock up.
    fn release(&self) -> PhpResult<bool>;
    /// Gives the lease more time.
    fn extend(&self, ttl: Option<Int>) -> PhpResult<bool>;
    /// Whether the lease may still be acted upon.
    #[php(name = "isAcquired")]
    fn is_acquired(&self) -> bool;
}

/// A distributed lock.
#[php_class]
#[php(name = "Tagsweep\\DistributedLock")]
pub(crate) struct DistributedLock {
    /// `None` only while it is being dropped.
    lock: RefCell<Option<Lock>>,
    wait: Duration,
    renewed: bool,
    given_back: bool,
    /// Fence of the lease that the registry has of us.
    registered: Cell<Option<u64>>,
}

const NAME: &str = "Tagsweep\\DistributedLock";

/// Longest time to give back what was granted to somebody who wants it no more.
const AT_ONCE: Duration = Duration::from_millis(150);

thread_local! {
    /// The leases that this process holds, by where they are: in objects that take themselves out before
    /// they go. Waiting for one that does not end in time would be waiting for oneself.
    static HELD: RefCell<HashMap<*const RefCell<Option<Lock>>, Held>> = RefCell::default();
}

/// A lease of this process.
#[derive(Clone, Copy)]
struct Held {
    fence: u64,
    renewed: bool,
    /// It ends with its object; others are to outlast the process.
    given_back: bool,
}

/// Releases all leases of this process, each within a second: a signal ends it.
pub(crate) fn release_all() {
    for lock in HELD.with_borrow_mut(std::mem::take).into_keys() {
        // SAFETY: objects take themselves out of the table before they go.
        let lock = unsafe { &*lock };
        if let Ok(mut lock) = lock.try_borrow_mut() {
            *lock = None;
        }
    }
}

impl DistributedLock {
    fn on(
        redis: &Zval,
        lockKey: &Bytes,
        ttl: f64,
        options: &Array,
        restoring: Option<&Bytes>,
    ) -> PhpResult<Self> {
        let given = Given::of(options)?;
        let config = config(redis, NAME, &given)?;
        let lock_options = lock_options(&given, ttl, restoring.is_none())?;
        let wait = given.seconds("wait")?.unwrap_or_default();
        let (renewed, given_back) = (lock_options.renew.is_some(), lock_options.release_on_drop);
        let link = shared_link(config)?;
        let lock = match restoring {
            Some(owner) => Lock::restore(link, &lockKey.0, &owner.0, lock_options),
            None => Lock::on(link, &lockKey.0, lock_options),
        };
        let lock = RefCell::new(Some(lock.map_err(from_core)?));
        Ok(Self { lock, wait, renewed, given_back, registered: Cell::default() })
    }

    /// The lock, for one call at a time.
    fn lock(&self) -> PhpResult<RefMut<'_, Lock>> {
        let told = "this lock is in use: it is waiting, and a signal handler called it";
        let busy = |_| exception(Class::Reentrant, told);
        let lock = self.lock.try_borrow_mut().map_err(busy)?;
        RefMut::filter_map(lock, Option::as_mut).map_err(|_| invalid("this lock is gone"))
    }

    /// Something of the lock, if it is not in use.
    fn peek<T>(&self, ask: impl FnOnce(&Lock) -> T) -> Option<T> {
        self.lock.try_borrow().ok()?.as_ref().map(ask)
    }

    /// Takes the lock within a wait budget.
    fn take(&self, budget: Duration) -> PhpResult<bool> {
        Ok(matches!(self.contend(budget)?, Outcome::Acquired { .. }))
    }

    /// The same, and who has it otherwise.
    fn contend(&self, budget: Duration) -> PhpResult<Outcome> {
        gate::end(self.contend_behind_gate(budget))
    }

    fn contend_behind_gate(&self, budget: Duration) -> PhpResult<Outcome> {
        watch();
        let gate = Gate::close();
        let mut lock = self.lock()?;
        self.complain(&mut lock)?;
        let had = self.registered.get().is_some();
        if self.renewed && had && !lock.is_held() {
            // This process was stopped, and its renewal with it: it is over, whatever the server says now.
            self.register(None);
            let _ = lock.release_within(AT_ONCE);
            return Err(lost(&lock, lock.last_loss().unwrap_or(LossReason::Expired)));
        }
        if lock.is_held() && budget.is_zero() {
            return Ok(Outcome::Held(Holder::default())); // by ourselves, and that is an outcome
        }
        let mut by_ourselves = false;
        let outcome = lock.acquire_within(budget, &mut |holder| {
            by_ourselves = HELD.with_borrow(|held| {
                let ours = held.values().find(|held| Some(held.fence) == holder.fence);
                let ends = ours.is_some_and(|held| !held.renewed)
                    && holder.ttl.is_some_and(|ttl| ttl < budget);
                holder.pid == Some(std::process::id()) && ours.is_some() && !ends
            });
            !by_ourselves && !gate.must_stop()
        });
        let outcome = outcome.map_err(|e| {
            self.register(lock.fence());
            from_core(e)
        })?;
        let acquired = matches!(outcome, Outcome::Acquired { .. });
        if by_ourselves && !acquired {
            let told = format!(
                "this process itself holds the lock {}, and would wait for itself; release it first",
                lock.label()
            );
            return Err(exception(Class::Reentrant, told));
        }
        let ended = |gate: &Gate| {
            let waited = !budget.is_zero() && gate.must_stop();
            waited || ExecutorGlobals::has_exception() || gate::is_fatal()
        };
        if acquired && ended(&gate) {
            // A signal ended the wait, at the very moment.
            let _ = lock.give_back_within(AT_ONCE);
            self.register(None);
            return Ok(Outcome::Held(Holder::default()));
        }
        self.register(acquired.then(|| lock.fence()).flatten());
        Ok(outcome)
    }

    /// Notes which lease we hold, or that we hold none.
    fn register(&self, fence: Option<u64>) {
        self.registered.set(fence);
        HELD.with_borrow_mut(|held| {
            let lock = &raw const self.lock;
            match fence {
                Some(fence) => {
                    let Self { renewed, given_back, .. } = *self;
                    held.insert(lock, Held { fence, renewed, given_back })
                }
                None => held.remove(&lock),
            };
            let given_back = held.values().filter(|held| held.given_back).count();
            LEASES.store(given_back, Ordering::Release);
        });
    }

    /// A lease that was lost while PHP did something else is told of once, by the next operation.
    fn complain(&self, lock: &mut Lock) -> PhpResult<()> {
        let Some(reason) = lock.give_up_lost() else { return Ok(()) };
        self.register(None);
        Err(lost(lock, reason))
    }

    /// The outcome of an operation that finds out whether the lease is ours. One that was restored is
    /// known from now on.
    fn still(&self, lock: &Lock, ours: bool) -> PhpResult<bool> {
        let had = self.registered.get().is_some();
        let fence = lock.fence().filter(|_| ours);
        if fence != self.registered.get() {
            // In this order: a signal that comes in between finds what is to be given back.
            self.register(fence);
            watch();
        }
        self.found(lock, had, ours)
    }

    /// What an operation came to that was to find the lease ours. Of one that is renewed it is told by an exception that
    /// it is not, whoever found out.
    fn found(&self, lock: &Lock, had: bool, ours: bool) -> PhpResult<bool> {
        match lock.last_loss() {
            Some(reason) if had && !ours && self.renewed => Err(lost(lock, reason)),
            _ => Ok(ours),
        }
    }

    fn extend_by(&self, ttl: Option<Duration>) -> PhpResult<bool> {
        let _gate = Gate::close();
        let mut lock = self.lock()?;
        self.complain(&mut lock)?;
        let ours = lock.extend(ttl).map_err(from_core)?;
        self.still(&lock, ours)
    }

    /// Runs the body under the lock that was just taken.
    fn run(&self, body: Callable) -> PhpResult<Zval> {
        let result = body.call();
        match result {
            Ok(value) => {
                // Or the body has given it up itself.
                let is_over = |lock: &Lock| lock.owner().is_none() && lock.last_loss().is_none();
                if self.peek(is_over).unwrap_or(false) || self.release()? {
                    return Ok(value);
                }
                let lock = self.peek(Lock::label).unwrap_or_default();
                Err(exception(
                    Class::LockLost,
                    format!("the lock {lock} was lost while the body ran"),
                ))
            }
            Err(thrown) => {
                // The body's exception is what matters.
                let _ = self.release();
                Err(PhpException::from(thrown))
            }
        }
    }
}

/// An object of the class that a static method was called on: an application may have its own.
fn instance(lock: DistributedLock) -> ZBox<ZendClassObject<DistributedLock>> {
    // SAFETY: it is initialised before anybody sees it.
    let mut object = unsafe {
        ZendClassObject::<DistributedLock>::new_uninit(called_class::<DistributedLock>())
    };
    object.initialize(lock);
    object
}

fn lost(lock: &Lock, reason: LossReason) -> PhpException {
    exception(Class::LockLost, format!("the lock {} was lost: {}", lock.label(), reason.text()))
}

/// A lock as messages name it.
#[php_impl]
impl DistributedLock {
    #[php(defaults(ttl = Number(60.0), options = Array::default()))]
    pub fn __construct(
        redis: &Zval,
        lockKey: Bytes,
        ttl: Number,
        options: Array,
    ) -> PhpResult<Self> {
        refuse_twice::<Self>()?;
        Self::on(redis, &lockKey, ttl.0, &options, None)
    }

    /// A lock whose lease was granted to whoever gave us its owner.
    #[php(defaults(options = Array::default()))]
    pub fn restore(
        redis: &Zval,
        lockKey: Bytes,
        owner: Bytes,
        options: Array,
    ) -> PhpResult<ZBox<ZendClassObject<DistributedLock>>> {
        let lock = Self::on(redis, &lockKey, 60.0, &options, Some(&owner))?;
        Ok(instance(lock))
    }

    /// Takes the lock, waiting in line.
    pub fn acquire_within(&self, seconds: Number) -> PhpResult<bool> {
        self.take(span(seconds.0, "seconds")?)
    }

    /// Alias, as Laravel names it.
    pub fn block(&self, seconds: Number) -> PhpResult<bool> {
        self.acquire_within(seconds)
    }

    /// As Laravel has it: takes the lock; with a body, runs it and gives the lock up.
    #[php(optional = callback)]
    pub fn get(&self, callback: Option<Callable>) -> PhpResult<Zval> {
        let taken = self.take(self.wait)?;
        match callback {
            Some(body) if taken => self.run(body),
            _ => {
                let mut answer = Zval::new();
                answer.set_bool(taken);
                Ok(answer)
            }
        }
    }

    /// Runs the body under the lock.
    #[php(defaults(wait = Number(0.0)))]
    pub fn synchronized(&self, body: Callable, wait: Number) -> PhpResult<Zval> {
        let budget = span(wait.0, "wait")?;
        if self.peek(Lock::is_held).unwrap_or(true) {
            return Err(exception(
                Class::Reentrant,
                "this lock is held already, and leases do not nest",
            ));
        }
        let Outcome::Held(holder) = self.contend(budget)? else { return self.run(body) };
        if ExecutorGlobals::has_exception() {
            return Ok(Zval::new()); // a signal handler threw while we waited
        }
        let lock = self.peek(Lock::label).unwrap_or_default();
        let waited = if budget.is_zero() {
            String::new()
        } else {
            format!("; it was waited for {} s", budget.as_secs_f64())
        };
        Err(exception(Class::LockConflicted, format!("the lock {lock} is {holder}{waited}")))
    }

    /// The same as extend(), with fractions.
    #[php(optional = ttl)]
    pub fn refresh(&self, ttl: Option<Number>) -> PhpResult<bool> {
        self.extend_by(ttl.map(|seconds| positive(seconds.0)).transpose()?)
    }

    /// Asks the server whether the lease is still ours.
    pub fn verify(&self) -> PhpResult<bool> {
        let _gate = Gate::close();
        let mut lock = self.lock()?;
        self.complain(&mut lock)?;
        let ours = lock.verify().map_err(from_core)?;
        self.still(&lock, ours)
    }

    /// Whether there is a lease that must not be acted upon any more.
    pub fn is_expired(&self) -> bool {
        self.peek(|lock| lock.owner().is_some() && !lock.is_held()).unwrap_or(false)
    }

    /// Seconds until the holder must stop; null without a lease.
    pub fn remaining(&self) -> Option<f64> {
        self.peek(Lock::remaining).flatten().map(|left| left.as_secs_f64())
    }

    /// Alias, as Symfony names it.
    pub fn get_remaining_lifetime(&self) -> Option<f64> {
        self.remaining()
    }

    /// Fencing token of the lease; null without one.
    pub fn fence(&self) -> Option<i64> {
        self.peek(Lock::fence).flatten().and_then(|fence| i64::try_from(fence).ok())
    }

    /// The value of the lock key, which proves ownership; null without a lease.
    pub fn owner(&self) -> Option<String> {
        let text = |owner: &[u8]| String::from_utf8_lossy(owner).into_owned();
        self.peek(|lock| lock.owner().map(text)).flatten()
    }

    /// Whether anybody holds it.
    pub fn is_locked(&self) -> PhpResult<bool> {
        Ok(self.holder()?.is_some())
    }

    /// Whether the lock is held by that owner.
    #[php(optional = owner)]
    pub fn is_owned_by(&self, owner: Option<Bytes>) -> PhpResult<bool> {
        let Some(owner) = owner else { return Ok(!self.is_locked()?) };
        let _gate = Gate::close();
        self.lock()?.is_owned_by(&owner.0).map_err(from_core)
    }

    /// Whether this object holds it, by the server's word.
    pub fn is_owned_by_current_process(&self) -> PhpResult<bool> {
        self.verify()
    }

    /// Takes the lock away from whoever holds it.
    pub fn force_release(&self) -> PhpResult<bool> {
        let _gate = Gate::close();
        let mut lock = self.lock()?;
        self.register(None);
        lock.force_release().map_err(from_core)
    }

    /// Who holds it; null when nobody does.
    pub fn get_holder(&self) -> PhpResult<Option<ZBox<ZendHashTable>>> {
        self.holder()?.map(|holder| holder_array(&holder)).transpose()
    }

    /// What happened around this lock, as the server has it.
    pub fn stats(&self) -> PhpResult<ZBox<ZendHashTable>> {
        let _gate = Gate::close();
        let status = self.lock()?.status().map_err(from_core)?;
        stats_array(&status.stats)
    }
}

impl DistributedLock {
    fn holder(&self) -> PhpResult<Option<Holder>> {
        let _gate = Gate::close();
        Ok(self.lock()?.status().map_err(from_core)?.holder)
    }
}

fn holder_array(holder: &Holder) -> PhpResult<ZBox<ZendHashTable>> {
    let mut array = ZendHashTable::new();
    array.insert("fence", holder.fence.and_then(|fence| i64::try_from(fence).ok()))?;
    array.insert("host", holder.host.clone())?;
    array.insert("pid", holder.pid.map(i64::from))?;
    array.insert("program", holder.program.clone())?;
    array.insert("ttl", holder.ttl.map(|ttl| ttl.as_secs_f64()))?;
    array.insert("since", holder.since().map(|since| since.as_secs_f64()))?;
    Ok(array)
}

fn stats_array(stats: &Stats) -> PhpResult<ZBox<ZendHashTable>> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut array = ZendHashTable::new();
    for (name, n) in [
        ("acquired", stats.acquired),
        ("held", stats.held),
        ("timeouts", stats.timeouts),
        ("unknown", stats.unknown),
        ("errors", stats.errors),
        ("takeovers", stats.takeovers),
        ("renewed", stats.renewed),
        ("renewFailed", stats.renew_failed),
    ] {
        array.insert(name, number(n))?;
    }
    let mut lost = ZendHashTable::new();
    for reason in LossReason::ALL {
        lost.insert(reason.name(), number(stats.lost.get(&reason).copied().unwrap_or(0)))?;
    }
    array.insert("lost", lost)?;
    array.insert("ttl", stats.ttl.as_secs_f64())?;
    for (name, spans) in [("wait", &stats.waits), ("hold", &stats.holds), ("renewGap", &stats.gaps)]
    {
        array.insert(name, histogram_array(spans)?)?;
    }
    Ok(array)
}

fn histogram_array(spans: &Histogram) -> PhpResult<ZBox<ZendHashTable>> {
    let mut array = ZendHashTable::new();
    array.insert("count", i64::try_from(spans.count()).unwrap_or(i64::MAX))?;
    array.insert("sum", spans.sum().as_secs_f64())?;
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        array.insert(name, spans.quantile(share).map(|span| span.as_secs_f64()))?;
    }
    Ok(array)
}

#[php_impl_interface]
impl LockInterface for DistributedLock {
    fn acquire(&self) -> PhpResult<bool> {
        self.take(self.wait)
    }

    fn release(&self) -> PhpResult<bool> {
        let _gate = Gate::close();
        let mut lock = self.lock()?;
        self.complain(&mut lock)?;
        let had = self.registered.get().is_some();
        self.register(None);
        let released = lock.release().map_err(from_core)?;
        self.found(&lock, had, released)
    }

    fn extend(&self, ttl: Option<Int>) -> PhpResult<bool> {
        self.extend_by(ttl.map(|seconds| positive(seconds.0 as f64)).transpose()?)
    }

    fn is_acquired(&self) -> bool {
        self.peek(Lock::is_held).unwrap_or(false)
    }
}

impl Drop for DistributedLock {
    /// The destructor: one attempt to release, bounded to a second.
    fn drop(&mut self) {
        let _gate = Gate::close();
        self.register(None);
        self.lock.replace(None);
    }
}
