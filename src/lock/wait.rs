//! When a waiter does what. Pure.
//!
//! In line, a waiter is woken by the baton and looks at the lock only for what no baton tells: a lease
//! that expired, a key deleted by hand, a program that gives back without knowing of the line, a
//! woken waiter that was stopped before its claim. The youngest waiters have the server tell them when
//! the lock changes (`track.rs`), and look then, and when the lease ends: one that died is stood in for. Where the
//! server does not tell, the youngest looks every [`WATCH`], the one before it half as often. All others look ever more
//! rarely, down to once a lease; while a program that knows no line has the lock, those who are not told every [`WATCH`].
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

/// How soon a waiter looks that has just joined, how often one for whom nobody else does, and how long after a look
/// the next one comes at the earliest, whatever the server tells.
pub(crate) const WATCH: Duration = Duration::from_millis(900);

/// The first and the last of these while a program that knows no line has the lock.
const GLANCE: Duration = Duration::from_millis(100);

/// Longest time between two looks: the line's key must outlive it. It lives for two of these, so that
/// the tickets of waiters who were killed are soon gone when nobody else waits.
const RAREST: Duration = Duration::from_secs(60);

/// Time between the first looks of waiters when a TTL ends: the youngest comes first.
const STAGGER: Duration = Duration::from_millis(20);

/// A waiter behind which so many others stand leaves it to them to watch; so does at its first look, and where the
/// server does not tell of changes, one that has two behind it.
const YOUNG: u32 = 8;
const YOUNGEST: u32 = 2;

/// How much longer the next rest is of those who are told, for they must hear of whoever has joined since.
const GROWTH_OF_RESTS: u32 = 4;

/// Who waits no longer than that does not begin to be told of changes.
const WORTH_A_CONNECTION: Duration = Duration::from_secs(2);

/// Whether the server tells of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Told {
    #[default]
    NotAsked,
    Yes,
    No,
}

/// How a waiter watches the lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    pub told: Told,
    /// Waiters behind it, at its last look.
    younger: u32,
    /// The holder's fence: a program that knows no line has none, a lock in transit 0.
    fence: Option<u64>,
    /// Looks so far, joining the line among them; those in a row at which others were to watch, and after which
    /// we were told.
    looks: u32,
    spared: u32,
    rests: u32,
}

impl Watch {
    /// Takes in what a look told.
    pub fn looked(&mut self, younger: u32, fence: Option<u64>) {
        (self.younger, self.fence) = (younger, fence);
        self.looks = self.looks.saturating_add(1);
        let next = |count: u32, so: bool| if so { count.saturating_add(1) } else { 0 };
        if self.told == Told::Yes && !self.is_young() {
            self.told = Told::NotAsked; // left to others, who may leave
        }
        self.spared = next(self.spared, !self.is_young());
        self.rests = next(self.rests, self.told == Told::Yes);
    }

    fn is_young(&self) -> bool {
        self.younger < if self.looks > 2 && self.told != Told::No { YOUNG } else { YOUNGEST }
    }

    /// Whether the next look is one after which the server is to tell of changes: most waiters have the lock before
    /// that, and who has just joined does not know how many have come since.
    fn tracks(&self) -> bool {
        self.looks > 1 && self.is_young() && self.told != Told::No
    }

    /// The next look is made now, by one who waits for so long at most: whether the server is to tell of changes after
    /// it. It does not, until the answer says so.
    pub fn asks_to_be_told(&mut self, left: Duration) -> bool {
        let tracks = self.tracks();
        let asks = tracks && (self.told == Told::Yes || left >= WORTH_A_CONNECTION);
        if tracks {
            self.told = Told::No; // until the answer says otherwise
        }
        asks
    }

    /// How long after the last look the next one may come, when the lock has changed.
    pub fn gap(&self) -> Duration {
        if self.fence.is_none() { GLANCE } else { WATCH }
    }

    /// How long after the last look the next one is due, for a holder whose TTL has `left`.
    pub fn next_look(&self, left: Option<Duration>) -> Duration {
        let span = match (self.tracks(), self.told) {
            _ if self.looks < 2 => self.gap(),
            (true, Told::NotAsked) => Duration::ZERO,
            // A baton that nobody takes lies there for as long, and tells who lost it.
            (true, _) if self.fence == Some(0) => WATCH,
            (true, _) => WATCH.saturating_mul(GROWTH_OF_RESTS.saturating_pow(self.rests)),
            _ if self.fence.is_none() => WATCH,
            _ => WATCH.saturating_mul(self.younger.saturating_add(1)).saturating_mul(self.rarer()),
        };
        let expiry = left.map_or(RAREST, |left| left + SOON + STAGGER * self.younger.min(50));
        span.min(expiry).min(RAREST)
    }

    /// How much rarer looks have become that were left to others.
    fn rarer(&self) -> u32 {
        1 << self.spared.saturating_sub(1).min(6)
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

    /// After joining, and so many looks more.
    fn watch(younger: u32, fence: Option<u64>, told: Told, looks: u32) -> Watch {
        let mut watch = Watch { told, ..Watch::default() };
        watch.looked(0, fence);
        for _ in 0..looks {
            watch.told = told;
            watch.looked(younger, fence);
        }
        watch
    }

    #[test]
    fn a_line_settles_at_one_look_a_lease_and_waiter_and_where_nobody_is_told_at_two_a_second() {
        let lease = Some(Duration::from_secs(30));
        let looks = |length: u32, told: Told, looks: u32| -> f64 {
            let next = |rank| watch(rank, Some(7), told, looks).next_look(lease);
            (0..length).map(|rank| 1.0 / next(rank).as_secs_f64()).sum()
        };
        for length in [1, 2, 8, 10, 100] {
            let a_lease = f64::from(length) / 30.0;
            assert!(looks(length, Told::Yes, 9) <= a_lease, "{}", looks(length, Told::Yes, 9));
            assert!(looks(length, Told::No, 9) < 1.7 + a_lease, "{}", looks(length, Told::No, 9));
        }
        assert!(looks(100, Told::No, 1) < 7.0, "{}", looks(100, Told::No, 1));
    }

    #[test]
    fn who_is_young_asks_to_be_told_at_once_and_where_that_cannot_be_looks_again_and_again() {
        use Told::{No, NotAsked, Yes};
        let ours = Some(7);
        assert!(!watch(0, ours, NotAsked, 0).tracks());
        assert_eq!(watch(0, ours, NotAsked, 0).next_look(None), WATCH);
        assert!(watch(1, ours, NotAsked, 1).tracks() && !watch(2, ours, NotAsked, 1).tracks());
        assert!(watch(7, ours, NotAsked, 2).tracks() && !watch(8, ours, NotAsked, 2).tracks());
        assert_eq!(watch(0, ours, NotAsked, 1).next_look(None), Duration::ZERO);
        assert!(!watch(0, ours, No, 1).tracks());
        assert!(watch(1, ours, No, 5).next_look(None) < Duration::from_secs(2));
        let soon = Some(Duration::from_millis(40));
        let expiry = watch(0, ours, Yes, 1).next_look(soon);
        assert_eq!(expiry, Duration::from_millis(42));
        assert!(watch(3, ours, NotAsked, 1).next_look(soon) > expiry);
    }

    #[test]
    fn who_is_told_rests_ever_longer_but_while_a_lock_is_in_transit_or_strange() {
        let rests = |fence| [0, 1, 2, 3].map(|n| watch(0, fence, Told::Yes, n).next_look(None));
        assert_eq!(rests(Some(7)), [WATCH, WATCH * 16, WATCH * 64, RAREST]);
        assert_eq!(rests(Some(0)), [WATCH; 4]);
        assert_eq!(watch(0, None, Told::NotAsked, 0).next_look(None), GLANCE);
        assert!(watch(50, None, Told::NotAsked, 5).next_look(None) < Duration::from_secs(1));
        assert_eq!(watch(9, None, Told::Yes, 1).gap(), GLANCE);
    }
}
