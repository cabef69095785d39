//! Waiting for a lock by asking again: exponential back-off with full jitter.
//!
//! Full jitter (a uniform draw between nothing and the growing bound) is what spreads contenders
//! best; see M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use crate::clock::Moment;
use std::time::Duration;

/// Bound of the first pause, its growth, and the cap.
const FIRST: Duration = Duration::from_millis(5);
const GROWTH: f64 = 1.6;
const CAP: Duration = Duration::from_millis(250);

/// The pause before attempt `n` (from 0), for a `draw` between 0 and 1.
fn pause(n: u32, draw: f64) -> Duration {
    let bound = FIRST.as_secs_f64() * GROWTH.powi(n.min(60) as i32);
    Duration::from_secs_f64(bound.min(CAP.as_secs_f64()) * draw.clamp(0.0, 1.0))
}

/// A wait budget that is being spent.
pub(crate) struct Patience {
    end: Moment,
    attempts: u32,
}

impl Patience {
    pub fn new(budget: Duration) -> Self {
        Self { end: Moment::now() + budget, attempts: 0 }
    }

    /// Sleeps for the next pause. False when the budget is spent.
    pub fn sleep(&mut self) -> bool {
        let left = self.end.left();
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(pause(self.attempts, draw()).min(left));
        self.attempts += 1;
        true
    }
}

/// Uniform between 0 and 1; without random bytes, the whole pause.
fn draw() -> f64 {
    getrandom::u32().map_or(1.0, |n| f64::from(n) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_are_drawn_from_the_whole_span() {
        assert_eq!(pause(0, 1.0), FIRST);
        assert_eq!(pause(1, 1.0), Duration::from_millis(8));
        assert_eq!(pause(1000, 1.0), CAP);
        assert_eq!(pause(1000, 0.0), Duration::ZERO);
    }
}
