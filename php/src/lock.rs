//! `Tagsweep\DistributedLock`.

use crate::exceptions::{from_core, invalid};
use crate::gate::Gate;
use crate::options::{Given, span};
use crate::target::{config, shared_link};
use crate::weak::{Array, Bytes, Int, Number};
use ext_php_rs::exception::PhpResult;
use ext_php_rs::prelude::*;
use ext_php_rs::types::Zval;
use std::time::Duration;
use tagsweep::lock::{Lock, Outcome};

/// What a lock can do.
#[php_interface]
#[php(name = "Tagsweep\\LockInterface")]
pub(crate) trait LockInterface {
    /// Takes the lock if it is free.
    fn acquire(&mut self) -> PhpResult<bool>;
    /// Gives the lock up.
    fn release(&mut self) -> PhpResult<bool>;
    /// Gives the lease more time.
    fn extend(&mut self, ttl: Option<Int>) -> PhpResult<bool>;
    /// Whether the lease may still be acted upon.
    #[php(name = "isAcquired")]
    fn is_acquired(&self) -> bool;
}

/// A distributed lock.
#[php_class]
#[php(name = "Tagsweep\\DistributedLock")]
pub(crate) struct DistributedLock {
    /// `None` only while it is being dropped.
    lock: Option<Lock>,
    wait: Duration,
}

const NAME: &str = "Tagsweep\\DistributedLock";
const OPTIONS: &[&str] = &["prefix", "timeout", "wait"];

impl DistributedLock {
    fn lock(&self) -> PhpResult<&Lock> {
        self.lock.as_ref().ok_or_else(|| invalid("this lock is gone"))
    }

    fn lock_mut(&mut self) -> PhpResult<&mut Lock> {
        self.lock.as_mut().ok_or_else(|| invalid("this lock is gone"))
    }
}

#[php_impl]
impl DistributedLock {
    #[php(defaults(ttl = Number(60.0), options = Array::default()))]
    pub fn __construct(
        redis: &Zval,
        lockKey: Bytes,
        ttl: Number,
        options: Array,
    ) -> PhpResult<Self> {
        let mut config = config(redis, NAME)?;
        let ttl = positive(ttl.0)?;
        let given = Given::of(&options)?;
        given.only(OPTIONS)?;
        config.prefix = given.string("prefix")?.unwrap_or(config.prefix);
        config.timeout = given.seconds("timeout")?.unwrap_or(config.timeout);
        let wait = given.seconds("wait")?.unwrap_or_default();
        let lock = Lock::on(shared_link(config)?, &lockKey.0, ttl).map_err(from_core)?;
        Ok(Self { lock: Some(lock), wait })
    }

    /// Seconds until the holder must stop; null without a lease.
    pub fn remaining(&self) -> PhpResult<Option<f64>> {
        Ok(self.lock()?.remaining().map(|left| left.as_secs_f64()))
    }

    /// Fencing token of the lease; null without one.
    pub fn fence(&self) -> PhpResult<Option<i64>> {
        Ok(self.lock()?.fence().and_then(|fence| i64::try_from(fence).ok()))
    }

    /// The value of the lock key, which proves ownership; null without a lease.
    pub fn owner(&self) -> PhpResult<Option<String>> {
        Ok(self.lock()?.owner().map(|owner| String::from_utf8_lossy(owner).into_owned()))
    }
}

#[php_impl_interface]
impl LockInterface for DistributedLock {
    fn acquire(&mut self) -> PhpResult<bool> {
        let wait = self.wait;
        let gate = Gate::close();
        let lock = self.lock_mut()?;
        let outcome = lock.acquire_within(wait, &mut || !gate.must_stop());
        Ok(matches!(outcome.map_err(from_core)?, Outcome::Acquired { .. }))
    }

    fn release(&mut self) -> PhpResult<bool> {
        let _gate = Gate::close();
        self.lock_mut()?.release().map_err(from_core)
    }

    fn extend(&mut self, ttl: Option<Int>) -> PhpResult<bool> {
        let ttl = ttl.map(|seconds| positive(seconds.0 as f64)).transpose()?;
        let _gate = Gate::close();
        self.lock_mut()?.extend(ttl).map_err(from_core)
    }

    fn is_acquired(&self) -> bool {
        self.lock.as_ref().is_some_and(Lock::is_held)
    }
}

fn positive(seconds: f64) -> PhpResult<Duration> {
    if seconds > 0.0 {
        span(seconds, "ttl")
    } else {
        Err(invalid("ttl must be greater than 0 seconds"))
    }
}

impl Drop for DistributedLock {
    /// The destructor: one attempt to release, bounded to a second.
    fn drop(&mut self) {
        let _gate = Gate::close();
        self.lock = None;
    }
}
