//! When a waiter does what. Pure.
//!
//! In line, a waiter is woken by the baton and looks at the lock only for what no baton tells: a lease
//! that expired, a key deleted by hand, a program that gives back without knowing of the line, a
//! woken waiter that was stopped before its claim. It looks once when it has stood there for a moment, and
//! once a lease, when it ends. The youngest have the server tell them what becomes of the lock
//! (`track.rs`), and look when it has changed: the others need not, and one that died is stood in for. Where the
//! server does not tell, the youngest looks every [`WATCH`], the one before it half as often, and so on.
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

/// How soon a waiter looks that has just joined, how often the youngest where the server does not tell, and how long
/// after a look the next one comes at the earliest, whatever the server tells.
pub(crate) const WATCH: Duration = Duration::from_millis(900);

/// The first and the last of these while a program that knows no line has the lock.
const GLANCE: Duration = Duration::from_millis(100);

/// Longest time between two looks: the line's key must outlive it.
const RAREST: Duration = Duration::from_secs(60);

/// Time between the looks of waiters when a TTL ends: the youngest comes first.
const STAGGER: Duration = Duration::from_millis(20);

/// So many watch, in case that some of them are stopped; who has more behind it leaves it to them.
const YOUNG: u32 = 4;

/// How much longer who is told rests each time before it looks who has joined since.
const GROWTH_OF_RESTS: u32 = 4;

/// Who waits no longer than that does not begin to be told of changes.
const WORTH_A_CONNECTION: Duration = Duration::from_secs(2);

/// After so many looks for want of an answer that is told of changes, that is tried again.
const TRIED_AGAIN: u32 = 64;

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
    /// It has joined, and not looked since.
    is_new: bool,
    /// Few enough are behind it, as far as it knows.
    is_young: bool,
    /// Waiters behind it, at its last look.
    younger: u32,
    /// The holder's fence: a program that knows no line has none, a lock in transit 0.
    fence: Option<u64>,
    /// Looks in a row after which we were told, and others since they were refused.
    rests: u32,
    untold: u32,
}

impl Watch {
    /// The watch of one that has joined a line of so many.
    pub fn joined(older: u32, fence: Option<u64>) -> Self {
        Self { is_new: true, is_young: older < YOUNG, fence, ..Self::default() }
    }

    /// Takes in what a look told.
    pub fn looked(&mut self, younger: u32, fence: Option<u64>) {
        (self.is_new, self.is_young) = (false, younger < YOUNG);
        (self.younger, self.fence) = (younger, fence);
        let next = |count: u32, so: bool| if so { count.saturating_add(1) } else { 0 };
        self.rests = next(self.rests, self.told == Told::Yes);
        self.untold = next(self.untold, self.told == Told::No);
        let leaves_it_to_others = self.told == Told::Yes && !self.is_young; // who may leave
        if leaves_it_to_others || self.untold >= TRIED_AGAIN {
            (self.told, self.untold) = (Told::NotAsked, 0);
        }
    }

    /// The next look is made now, by one who waits for so long at most: whether the server is to tell of changes after
    /// it. It does not, until the answer says so.
    pub fn asks_to_be_told(&mut self, left: Duration) -> bool {
        if !self.is_young || self.told == Told::No {
            return false;
        }
        let told = std::mem::replace(&mut self.told, Told::No);
        told == Told::Yes || left >= WORTH_A_CONNECTION
    }

    /// How long after the last look the next one may come, when the lock has changed.
    pub fn gap(&self) -> Duration {
        if self.fence.is_none() { GLANCE } else { WATCH }
    }

    /// The same when only the line has: ever longer, for some must hear of it, and not again and again.
    pub fn rest(&self) -> Duration {
        WATCH.saturating_mul(GROWTH_OF_RESTS.saturating_pow(self.rests)).min(RAREST)
    }

    /// How long after the last look the next one is due, for a holder whose TTL has `left`.
    pub fn next_look(&self, left: Option<Duration>) -> Duration {
        let span = match self.told {
            _ if self.is_new => self.gap(),
            _ if !self.is_young => RAREST,
            Told::NotAsked => Duration::ZERO,
            Told::No => WATCH * (self.younger + 1),
            // A baton that nobody takes lies there for as long, and tells who lost it.
            Told::Yes if self.fence == Some(0) => WATCH,
            Told::Yes => RAREST,
        };
        span.min(left.map_or(RAREST, |left| left + SOON + STAGGER * self.younger.min(50)))
    }
}

/// A TTL is told in whole milliseconds, rounded down.
const SOON: Duration = Duration::from_millis(2);

/// How long the line's key lives after a look: a look makes it last so long again when less than half of that is left,
/// which must be more than there is until the next look. The tickets of waiters who were killed are soon gone when nobody
/// else waits.
pub(crate) fn line_life() -> Duration {
    2 * (RAREST + Duration::from_secs(10))
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

    /// After joining alone, and so many looks more.
    fn watch(younger: u32, fence: Option<u64>, told: Told, looks: u32) -> Watch {
        let mut watch = Watch::joined(0, fence);
        for _ in 0..looks {
            watch.told = told;
            watch.looked(younger, fence);
        }
        watch
    }

    #[test]
    fn a_line_looks_once_a_lease_and_waiter_and_where_nobody_is_told_two_or_three_times_a_second() {
        let lease = Some(Duration::from_secs(30));
        let looks = |length: u32, told: Told| -> f64 {
            let next = |rank| watch(rank, Some(7), told, 1).next_look(lease);
            (0..length).map(|rank| 1.0 / next(rank).as_secs_f64()).sum()
        };
        for length in [1, 2, 8, 10, 100] {
            let a_lease = f64::from(length) / 30.0;
            assert!(looks(length, Told::Yes) <= a_lease, "{}", looks(length, Told::Yes));
            assert!(looks(length, Told::No) < 2.4 + a_lease, "{}", looks(length, Told::No));
        }
    }

    #[test]
    fn who_is_young_asks_to_be_told_at_its_first_look_or_else_behind_it() {
        use Told::{No, NotAsked, Yes};
        let (ours, long) = (Some(7), Duration::from_secs(60));
        let asks = |mut watch: Watch| watch.asks_to_be_told(long);
        assert!(asks(Watch::joined(3, ours)) && !asks(Watch::joined(4, ours)));
        assert_eq!(Watch::joined(0, ours).next_look(None), WATCH);
        assert_eq!(Watch::joined(90, None).next_look(None), GLANCE);
        assert!(asks(watch(3, ours, NotAsked, 1)) && !asks(watch(4, ours, NotAsked, 1)));
        assert_eq!(watch(3, ours, NotAsked, 1).next_look(None), Duration::ZERO);
        assert_eq!(watch(4, ours, NotAsked, 1).next_look(None), RAREST);
        assert!(!asks(watch(4, ours, Yes, 1)) && watch(4, ours, Yes, 1).told == NotAsked);
        assert!(!asks(watch(0, ours, No, 1)));
    }

    #[test]
    fn who_is_not_told_looks_again_and_again_and_tries_once_more_after_a_while() {
        let untold = |looks| watch(1, Some(7), Told::No, looks);
        assert_eq!(untold(5).next_look(None), WATCH * 2);
        assert_eq!(untold(TRIED_AGAIN - 1).told, Told::No);
        assert_eq!(untold(TRIED_AGAIN).told, Told::NotAsked);
        assert_eq!(untold(TRIED_AGAIN + 1).told, Told::No);
    }

    #[test]
    fn who_is_told_rests_until_the_lease_ends_but_while_a_lock_is_in_transit() {
        let rests = |n| watch(0, Some(7), Told::Yes, n).rest();
        assert_eq!(
            [0, 1, 2, 3, 99].map(rests),
            [WATCH, WATCH * 4, WATCH * 16, WATCH * 64, RAREST].map(|rest| rest.min(RAREST))
        );
        let next = |younger, fence, left| watch(younger, fence, Told::Yes, 1).next_look(left);
        let soon = Some(Duration::from_millis(40));
        assert_eq!(next(0, Some(7), None), RAREST);
        assert_eq!(next(0, Some(7), soon), Duration::from_millis(42));
        assert_eq!(next(3, Some(7), soon), Duration::from_millis(102));
        assert_eq!(next(0, Some(0), None), WATCH);
        assert_eq!(watch(9, None, Told::Yes, 1).gap(), GLANCE);
    }
}
