//! How much to send at once. Pure.
//!
//! What one round makes the server work is what every other client waits for, so the round's server
//! time is steered to a target: the measured time of a round, less the bare round trip, sets the size
//! of the next (a multiplicative controller, clamped so that one odd round does little).

use std::time::Duration;

/// Server time that one round should take.
pub(crate) const TARGET: Duration = Duration::from_micros(250);

/// Bounds of a round, in units of about half a microsecond of server time each.
const SIZE: std::ops::RangeInclusive<f64> = 60.0..=4000.0;

/// The size of rounds, and the sum of their server time.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    size: f64,
    bare: Duration,
    server: Duration,
}

impl Pace {
    /// Starts in the middle, with the bare round trip as measured before.
    pub fn new(bare: Duration) -> Self {
        Self { size: 400.0, bare, server: Duration::ZERO }
    }

    /// Units that the next round may hold.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Takes in a round: units sent, and the time that the server was ours. `overlapped`: the server
    /// had the round before it was done with the one before, so no round trip is in the time.
    pub fn observe(&mut self, units: usize, took: Duration, overlapped: bool) {
        let own = if overlapped { took } else { took.saturating_sub(self.bare) };
        self.server += own;
        if own.is_zero() || (units as f64) < self.size / 2.0 {
            return; // too small a round to say anything about a full one
        }
        let factor = TARGET.as_secs_f64() / own.as_secs_f64();
        self.size = (self.size * factor.clamp(0.5, 1.25)).clamp(*SIZE.start(), *SIZE.end());
    }

    /// Server time of all rounds so far.
    pub fn server_time(&self) -> Duration {
        self.server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_settle_at_the_target() {
        let mut pace = Pace::new(Duration::from_micros(50));
        for _ in 0..100 {
            let work = Duration::from_nanos(700) * pace.size() as u32;
            pace.observe(pace.size(), work + Duration::from_micros(50), false);
        }
        let settled = Duration::from_nanos(700) * pace.size() as u32;
        let error = settled.as_secs_f64() / TARGET.as_secs_f64();
        assert!((0.9..1.1).contains(&error), "{settled:?}");
    }

    #[test]
    fn one_odd_round_does_little_and_small_rounds_nothing() {
        let mut pace = Pace::new(Duration::ZERO);
        let before = pace.size();
        pace.observe(1, Duration::from_secs(1), true);
        assert_eq!(pace.size(), before);
        pace.observe(before, Duration::from_secs(1), true);
        assert_eq!(pace.size(), before / 2);
        assert_eq!(pace.server_time(), Duration::from_secs(2));
    }
}
