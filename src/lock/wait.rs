//! When a waiter does what. Pure.
//!
//! In line, a waiter is woken by the baton and looks at the lock only for what no baton tells: a lease
//! that expired, a key deleted by hand, a program that gives back without knowing of the line, a
//! woken waiter that was stopped before its claim. The two youngest waiters have the server tell them when
//! the lock changes (`track.rs`), and look then, and when the lease ends: one that died is stood in for. Where the
//! server does not tell, the youngest looks every [`WATCH`], the one before it half as often. All others look
//! ever more rarely, down to once a lease; while a program that knows no line has the lock, every [`WATCH`].
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

/// How often a waiter looks for whom nobody else does, and how often one at most who is told of changes.
pub(crate) const WATCH: Duration = Duration::from_millis(900);

/// The same while a program that knows no line has the lock, for who has just joined or is told of changes.
const GLANCE: Duration = Duration::from_millis(100);

/// Longest time between two looks: the line's key must outlive it. It lives for two of these, so that
/// the tickets of waiters who were killed are soon gone when nobody else waits.
const RAREST: Duration = Duration::from_secs(60);

/// Time between the first looks of waiters when a TTL ends: the youngest comes first.
const STAGGER: Duration = Duration::from_millis(20);

/// So many of the youngest waiters have the server tell them of changes; who is told already goes on until more
/// stand behind it, for they may leave before it does.
const TRACKERS: u32 = 2;
const MOST_TRACKERS: u32 = 8;

/// How a waiter watches the lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Waiters behind it, at its last look.
    pub younger: u32,
    /// The holder's fence: a program that knows no line has none, a lock in transit 0.
    pub fence: Option<u64>,
    /// Whether the server tells of changes, once it was asked to.
    pub tracked: Option<bool>,
    /// Looks so far, joining the line among them, and those in a row at which others were to watch.
    looks: u32,
    spared: u32,
}

impl Watch {
    /// Takes in what a look told.
    pub fn looked(&mut self, younger: u32, fence: Option<u64>) {
        (self.younger, self.fence) = (younger, fence);
        self.looks = self.looks.saturating_add(1);
        self.spared = if self.is_young() { 0 } else { self.spared.saturating_add(1) };
    }

    fn is_young(&self) -> bool {
        let trackers = if self.tracked == Some(true) { MOST_TRACKERS } else { TRACKERS };
        self.younger < trackers
    }

    /// Whether the next look is one after which the server is to tell of changes: most waiters have the lock before
    /// that, and who has just joined does not know how many have come since.
    pub fn tracks(&self) -> bool {
        self.looks > 1 && self.is_young() && self.tracked != Some(false)
    }

    /// How long after the last look the next one may come, when the lock has changed.
    pub fn gap(&self) -> Duration {
        if self.fence.is_none() { GLANCE } else { WATCH }
    }

    /// How long after the last look the next one is due, for a holder whose TTL has `left`.
    pub fn next_look(&self, left: Option<Duration>) -> Duration {
        let rarer = 1 << self.spared.saturating_sub(1).min(6);
        let span = match (self.tracks(), self.tracked) {
            (true, None) => Duration::ZERO,
            // A baton that nobody takes lies there for as long, and tells who lost it.
            (true, _) if self.fence == Some(0) => WATCH,
            (true, _) => RAREST,
            _ if self.fence.is_none() && self.looks > 1 => WATCH,
            _ if self.fence.is_none() => GLANCE,
            _ => WATCH.saturating_mul(self.younger.saturating_add(1)).saturating_mul(rarer),
        };
        let expiry = left.map_or(RAREST, |left| left + SOON + STAGGER * self.younger.min(50));
        span.min(expiry).min(RAREST)
    }
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

    fn watch(younger: u32, fence: Option<u64>, tracked: Option<bool>, looks: u32) -> Watch {
        let mut watch = Watch { tracked, ..Watch::default() };
        watch.looked(0, fence);
        (0..looks).for_each(|_| watch.looked(younger, fence));
        watch
    }

    #[test]
    fn a_line_settles_at_one_look_a_lease_and_waiter_and_where_nobody_is_told_at_two_a_second() {
        let lease = Some(Duration::from_secs(30));
        let looks = |length: u32, tracked: bool, looks: u32| -> f64 {
            let next = |rank| watch(rank, Some(7), Some(tracked), looks).next_look(lease);
            (0..length).map(|rank| 1.0 / next(rank).as_secs_f64()).sum()
        };
        for length in [1, 2, 8, 10, 100] {
            let a_lease = f64::from(length) / 30.0;
            assert!(looks(length, true, 9) <= a_lease, "{}", looks(length, true, 9));
            assert!(looks(length, false, 9) < 1.7 + a_lease, "{}", looks(length, false, 9));
        }
        assert!(looks(100, false, 1) < 7.0, "{}", looks(100, false, 1));
    }

    #[test]
    fn who_is_the_youngest_asks_to_be_told_at_once_and_where_that_cannot_be_looks_again_and_again()
    {
        assert!(!watch(0, Some(7), None, 0).tracks());
        assert_eq!(watch(0, Some(7), None, 0).next_look(None), WATCH);
        assert!(watch(1, Some(7), None, 1).tracks() && !watch(2, Some(7), None, 1).tracks());
        assert_eq!(watch(0, Some(7), None, 1).next_look(None), Duration::ZERO);
        assert_eq!(watch(0, None, Some(true), 1).next_look(None), RAREST);
        assert_eq!(watch(0, Some(0), Some(true), 1).next_look(None), WATCH);
        assert!(
            watch(7, Some(7), Some(true), 1).tracks() && !watch(8, Some(7), Some(true), 1).tracks()
        );
        assert!(!watch(0, Some(7), Some(false), 1).tracks());
        assert!(watch(1, Some(7), Some(false), 5).next_look(None) < Duration::from_secs(2));
        assert_eq!(watch(0, None, None, 0).next_look(None), GLANCE);
        assert!(watch(50, None, None, 5).next_look(None) < Duration::from_secs(1));
        let soon = Some(Duration::from_millis(40));
        let expiry = watch(0, Some(7), Some(true), 1).next_look(soon);
        assert_eq!(expiry, Duration::from_millis(42));
        assert!(watch(3, Some(7), None, 1).next_look(soon) > expiry);
    }
}
