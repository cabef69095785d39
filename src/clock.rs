//! Time as this crate counts it: a monotonic clock that goes on while the machine sleeps.
//!
//! Leases are judged by this clock alone. The wall clock of a client is never read for a decision;
//! where wall time matters (fences, ages), the server's is used, inside scripts.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A point in time: the span since the machine was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The present. `CLOCK_BOOTTIME`, so a suspended laptop does not believe in its old lease.
    pub fn now() -> Self {
        // Linux has had this clock since 2.6.39; every system has the other.
        let told = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
        Self(told.map(Duration::from).unwrap_or_default())
    }

    /// In whole microseconds, for an atomic.
    pub(crate) fn micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    /// From [`Moment::micros`].
    pub(crate) fn from_micros(micros: u64) -> Self {
        Self(Duration::from_micros(micros))
    }

    /// A moment of a clock that is not this machine's, such as a simulation's.
    #[doc(hidden)]
    pub fn at(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Span from now to here; zero when it has passed.
    pub fn left(self) -> Duration {
        self.since(Self::now())
    }

    /// Span from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether this moment has come.
    pub fn passed(self) -> bool {
        Self::now() >= self
    }
}

/// A server's clock, by ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerClock {
    /// What it told (s), and when.
    told: u64,
    at: Moment,
}

impl ServerClock {
    pub fn new(told: u64, at: Moment) -> Self {
        Self { told, at }
    }

    /// What it shows at a moment after that (s).
    pub fn at(&self, moment: Moment) -> u64 {
        self.told.saturating_add(moment.since(self.at).as_secs())
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl std::ops::Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}
