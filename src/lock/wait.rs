//! When a waiter does what. Pure.
//!
//! In line, a waiter is woken by the baton and looks at the lock only for what no baton tells: a lease
//! that expired, a key deleted by hand, a program that gives back without knowing of the line, a
//! woken waiter that was stopped before its claim. The youngest waiter looks every [`WATCH`], the one
//! before it half as often, then a third: a few looks a second for the whole line, as many as the
//! logarithm of its length, and a youngest that died is stood in for. While a program that knows no line
//! has the lock, each looks every [`WATCH`]. All look when the holder's TTL ends.
//!
//! Where blocking is not possible, exponential back-off with full jitter (a uniform draw between
//! nothing and the growing bound); see M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
//! Blog, 2015.

use std::time::Duration;

/// How waiters wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitMode {
    /// In line, woken by the one who gives back: first come, first served.
    #[default]
    Line,
    /// By asking again, at growing random intervals of up to 250 ms: for servers and proxies without
    /// blocking commands.
    Backoff,
}

/// How often the youngest waiter looks.
pub(crate) const WATCH: Duration = Duration::from_millis(900);

/// Longest time between two looks: the line's key must outlive it. It lives for two of these, so that
/// the tickets of waiters who were killed are soon gone when nobody else waits.
const RAREST: Duration = Duration::from_secs(60);

/// Time between the first looks of waiters when a TTL ends: the youngest comes first.
const STAGGER: Duration = Duration::from_millis(20);

/// How long after the last look the next one is due, for a waiter with `younger` ones behind it and a
/// holder whose TTL has `left`; a `strange` one will give back without a word.
pub(crate) fn next_look(left: Option<Duration>, younger: u32, strange: bool) -> Duration {
    let watch = WATCH.saturating_mul(if strange { 1 } else { younger.saturating_add(1) });
    let expiry = left.map_or(RAREST, |left| left + SOON + STAGGER * younger.min(50));
    watch.min(expiry).min(RAREST)
}

/// A TTL is told in whole milliseconds, rounded down.
const SOON: Duration = Duration::from_millis(2);

/// How long the line's key lives after a look: until well after the next.
pub(crate) fn line_life() -> Duration {
    2 * RAREST + Duration::from_secs(10)
}

/// Bound of the first pause, its growth, and the cap.
const FIRST: Duration = Duration::from_millis(5);
const GROWTH: f64 = 1.6;
const CAP: Duration = Duration::from_millis(250);

/// The pause before attempt `n` (from 0), for a `draw` between 0 and 1.
pub(crate) fn pause(n: u32, draw: f64) -> Duration {
    let bound = FIRST.as_secs_f64() * GROWTH.powi(n.min(60) as i32);
    Duration::from_secs_f64(bound.min(CAP.as_secs_f64()) * draw.clamp(0.0, 1.0))
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

    #[test]
    fn a_long_line_looks_a_few_times_a_second_and_one_that_died_is_stood_in_for() {
        let looks = |length: u32| -> f64 {
            (0..length).map(|rank| 1.0 / next_look(None, rank, false).as_secs_f64()).sum()
        };
        assert!(looks(1) < 1.2 && looks(10) < 3.5 && looks(100) < 6.0, "{}", looks(100));
        assert!(next_look(None, 1, false) < Duration::from_secs(2));
        assert!(next_look(None, 50, true) < Duration::from_secs(1));
        let expiry = next_look(Some(Duration::from_millis(40)), 0, false);
        assert_eq!(expiry, Duration::from_millis(42));
        assert!(next_look(Some(Duration::from_millis(40)), 3, false) > expiry);
    }
}
