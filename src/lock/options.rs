//! How a lock is contended for. Pure.

use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::lock::lease::{safe_until, ttl_ms};
use crate::lock::renew::Watchdog;
use crate::lock::ttl::Ttl;
use crate::lock::wait::WaitMode;
use std::time::Duration;

/// How a lock is contended for. Only the TTL has no sensible default for everybody; 30 s with renewal.
#[derive(Clone, Debug)]
pub struct Options {
    /// Life of a lease unless it is extended: 3 ms to 2^53 ms, or learned.
    pub ttl: Ttl,
    /// How waiters wait. Default: in line.
    pub wait_mode: WaitMode,
    /// Extends the lease every third of its TTL, in a thread. Default: none.
    pub renew: Option<Watchdog>,
    /// A lease is not extended beyond this. Default: none, for no limit; at least 3 ms.
    pub max_hold: Option<Duration>,
    /// The lock stays taken for this long, even when it is released earlier: a fast job then does not
    /// run again on a machine whose schedule is late. (ShedLock's `lockAtLeastFor`.)
    /// Default: 0 s; at most a year, and no more than the TTL of a lease that is not renewed.
    pub at_least: Duration,
    /// So many replicas must have the grant, or it is given back: see the server's `WAIT`. Default: 0.
    pub confirm: u32,
    /// Whether statistics are kept on the server, for `tagsweep status` and `metrics`. Default: false.
    pub record: bool,
    /// Whether dropping the lock releases it. Default: true.
    pub release_on_drop: bool,
}

impl Options {
    /// A lease of this life, everything else as usual.
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl: Ttl::Fixed(ttl),
            wait_mode: WaitMode::Line,
            renew: None,
            max_hold: None,
            at_least: Duration::ZERO,
            confirm: 0,
            record: false,
            release_on_drop: true,
        }
    }

    /// Whether they can be used.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) with the first that is out of bounds.
    pub fn check(&self) -> Result<()> {
        match self.ttl {
            Ttl::Fixed(ttl) => lasting(ttl)?,
            Ttl::Auto { least, most } => {
                lasting(least)?;
                lasting(most)?;
                if least > most {
                    return Err(Error::invalid("the least TTL must not exceed the greatest"));
                }
            }
        }
        if let Some(most) = self.max_hold {
            lasting(most).map_err(|_| {
                Error::invalid("max_hold must be at least 3 ms, and at most 2^53 ms")
            })?;
        }
        if self.at_least > YEAR {
            return Err(Error::invalid("at_least must be at most a year"));
        }
        // It would end before that, unless it was released.
        if self.renew.is_none() && matches!(self.ttl, Ttl::Fixed(ttl) if self.at_least > ttl) {
            return Err(Error::invalid(
                "at_least must not exceed the TTL, unless the lease is renewed",
            ));
        }
        Ok(())
    }
}

/// A TTL of which something is left when clocks may differ.
fn lasting(ttl: Duration) -> Result<()> {
    let begun = Moment::at(Duration::ZERO);
    match ttl_ms(ttl).is_ok() && safe_until(begun, ttl) > begun {
        true => Ok(()),
        false => Err(Error::invalid(
            "the TTL must be at least 3 ms, of which two are for clocks that drift, and at most 2^53 ms",
        )),
    }
}

const YEAR: Duration = Duration::from_secs(366 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Watchdog;

    #[test]
    fn bounds_are_checked_before_anything_is_touched() {
        let second = Duration::from_secs(1);
        let usual = || Options::new(second);
        let beyond = Options { at_least: 2 * second, ..usual() };
        let renewed = Options { renew: Some(Watchdog::new()), ..beyond.clone() };
        let learned = Options { ttl: Ttl::AUTO, ..beyond.clone() };
        for right in [usual(), renewed, learned, Options { at_least: second, ..usual() }] {
            assert!(right.check().is_ok(), "{right:?}");
        }
        for wrong in [
            beyond,
            Options { at_least: 2 * YEAR, ..usual() },
            Options { max_hold: Some(Duration::ZERO), ..usual() },
            Options::new(Duration::ZERO),
            Options { ttl: Ttl::Auto { least: 2 * second, most: second }, ..usual() },
        ] {
            let e = wrong.check().unwrap_err();
            assert!(e.is_invalid(), "{wrong:?}");
            let told = e.spelled(|_| "as a face does".to_owned()).to_string();
            assert!(!told.contains('_'), "every option is known to be one: {told}");
        }
    }
}
