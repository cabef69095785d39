//! When a waiter does what. Pure.
//!
//! In line, a waiter is woken by the baton and looks at the lock only for what no baton tells: a lease
//! that expired, a key deleted by hand, a program that gives back without knowing of the line, a
//! woken waiter that was stopped before its claim. It looks once when it has stood there for a moment, and
//! once a lease, when it ends. Some watch for all: the youngest and the oldest, so that it does not matter who leaves or
//! dies. They have the server tell them what becomes of the lock (`track.rs`), and look when it has changed. Where the
//! server does not tell, they look every [`WATCH`] and multiples of it, and so does everybody while a program that knows
//! no line has the lock.
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

/// How soon a waiter looks that has just joined, how often one that watches and is not told, and how long after a
/// look a change leads to another at the earliest.
pub(crate) const WATCH: Duration = Duration::from_millis(900);

/// The first and the last of these while a program that knows no line has the lock.
const GLANCE: Duration = Duration::from_millis(100);

/// Longest time between two looks.
const RAREST: Duration = Duration::from_secs(60);

/// Time between the looks of waiters when a TTL ends: the youngest comes first.
const STAGGER: Duration = Duration::from_millis(20);

/// So many of the oldest and of the youngest watch: some may be stopped. Who was among the youngest watches on until so
/// many others are: they may have come for a moment only.
const OLDEST: u32 = 2;
const YOUNGEST: u32 = 4;
const RELIEVED: u32 = 8;

/// How much longer who is told rests each time before it looks who has joined since, and how much longer each time
/// being told has failed it looks for itself before it tries that again.
const GROWTH: u32 = 4;
const MOST_GROWTH: u32 = 3;

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
    /// It has joined, and not looked since.
    is_new: bool,
    /// Whether it watches for all.
    watches: bool,
    /// Waiters before and behind it, at its last look.
    older: u32,
    younger: u32,
    /// The holder's fence: a program that knows no line has none, a lock in transit 0.
    fence: Option<u64>,
    /// The last look was to be one after which we are told.
    asked: bool,
    /// Looks in a row after which we were told; others since that failed, and how often it did.
    rests: u32,
    untold: u32,
    failures: u32,
}

impl Watch {
    /// The watch of one that has joined a line of so many; in a longer one it does not know, when it looks, whether it
    /// is among the youngest.
    pub fn joined(older: u32, fence: Option<u64>) -> Self {
        Self { is_new: true, watches: older < YOUNGEST, older, fence, ..Self::default() }
    }

    /// Takes in what a look told.
    pub fn looked(&mut self, older: u32, younger: u32, fence: Option<u64>) {
        (self.is_new, self.older, self.younger, self.fence) = (false, older, younger, fence);
        let is_told = self.told == Told::Yes;
        self.rests = if is_told { self.rests.saturating_add(1) } else { 0 };
        if self.rests > 1 {
            self.failures = 0; // they are over
        }
        if std::mem::take(&mut self.asked) && !is_told {
            self.failed();
        }
        self.watches = older < OLDEST || younger < if is_told { RELIEVED } else { YOUNGEST };
        self.untold += u32::from(self.told == Told::No);
        let tries_again = self.untold > growth(self.failures);
        if is_told && !self.watches || tries_again {
            (self.told, self.untold) = (Told::NotAsked, 0);
        }
    }

    /// Nobody tells us any more.
    pub fn failed(&mut self) {
        (self.told, self.untold) = (Told::No, 0);
        self.failures = self.failures.saturating_add(1);
    }

    /// The next look is made now, by one who waits for so long at most: whether the server is to tell of changes after
    /// it. It does not, until the answer says so.
    pub fn asks_to_be_told(&mut self, left: Duration) -> bool {
        if !self.watches || self.told == Told::No {
            return false;
        }
        let told = std::mem::replace(&mut self.told, Told::No);
        self.asked = told == Told::Yes || left >= WORTH_A_CONNECTION;
        if !self.asked {
            self.failures = MOST_GROWTH; // nor will it be worth it soon
        }
        self.asked
    }

    /// How long after the last look the next one may come, when the lock has changed.
    pub fn gap(&self) -> Duration {
        if self.fence.is_none() { GLANCE } else { WATCH }
    }

    /// The same when only the line has: ever longer, for some must hear of it, and not again and again.
    pub fn rest(&self) -> Duration {
        WATCH * growth(self.rests)
    }

    /// How long after the last look the next one is due, for a holder whose TTL has `left`.
    pub fn next_look(&self, left: Option<Duration>) -> Duration {
        let span = match self.told {
            _ if self.is_new => self.gap(),
            Told::NotAsked if self.watches => Duration::ZERO,
            // A baton that nobody takes lies there for as long, and tells who lost it.
            Told::Yes if self.fence == Some(0) => WATCH,
            Told::Yes => RAREST,
            _ if self.fence.is_none() => WATCH,
            _ if self.watches => WATCH * (self.older.min(self.younger) + 1),
            _ => RAREST,
        };
        span.min(left.map_or(RAREST, |left| left + SOON + STAGGER * self.younger.min(50)))
    }
}

fn growth(times: u32) -> u32 {
    GROWTH.pow(times.min(MOST_GROWTH))
}

/// A TTL is told in whole milliseconds, rounded down.
const SOON: Duration = Duration::from_millis(2);

/// How long the line's key lives: a look renews it when a quarter is over, so it outlives all who wait being stopped
/// for half of it. The tickets of waiters who were killed are gone by then when nobody else waits.
pub(crate) fn line_life() -> Duration {
    4 * RAREST
}

/// Bound of the first pause, its growth, and the cap.
const FIRST: Duration = Duration::from_millis(5);
const GROWTH_OF_PAUSES: f64 = 1.6;
const CAP: Duration = Duration::from_millis(250);

/// The pause before attempt `n` (from 0), for a `draw` between 0 and 1.
pub(crate) fn pause(n: u32, draw: f64) -> Duration {
    let bound = FIRST.as_secs_f64() * GROWTH_OF_PAUSES.powi(n.min(60) as i32);
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

    const LONG: Duration = Duration::from_secs(100);
    const OURS: Option<u64> = Some(7);

    /// After joining alone, and so many looks more.
    fn watch(older: u32, younger: u32, fence: Option<u64>, told: Told, looks: u32) -> Watch {
        let mut watch = Watch::joined(0, fence);
        for _ in 0..looks {
            watch.told = told;
            watch.looked(older, younger, fence);
        }
        watch
    }

    #[test]
    fn a_line_looks_once_a_lease_and_waiter_and_where_nobody_is_told_four_times_a_second() {
        let lease = Some(Duration::from_secs(30));
        let looks = |length: u32, told: Told| -> f64 {
            let rank = |younger| watch(length - 1 - younger, younger, OURS, told, 1);
            (0..length).map(|younger| 1.0 / rank(younger).next_look(lease).as_secs_f64()).sum()
        };
        for length in [1, 2, 8, 10, 100] {
            let a_lease = f64::from(length) / 30.0;
            assert!(looks(length, Told::Yes) <= a_lease, "{}", looks(length, Told::Yes));
            assert!(looks(length, Told::No) < 4.1 + a_lease, "{}", looks(length, Told::No));
        }
    }

    #[test]
    fn the_youngest_and_the_oldest_ask_to_be_told_at_their_first_look_or_else_behind_it() {
        use Told::{NotAsked, Yes};
        let asks = |mut watch: Watch| watch.asks_to_be_told(LONG);
        assert!(asks(Watch::joined(3, OURS)) && !asks(Watch::joined(4, OURS)));
        assert_eq!(Watch::joined(0, OURS).next_look(None), WATCH);
        assert_eq!(Watch::joined(90, None).next_look(None), GLANCE);
        for (older, younger, watches) in [(50, 3, true), (50, 4, false), (1, 50, true)] {
            let looked = watch(older, younger, OURS, NotAsked, 1);
            assert_eq!(looked.next_look(None), if watches { Duration::ZERO } else { RAREST });
            assert_eq!(asks(looked), watches, "{older}, {younger}");
        }
        assert!(watch(50, 7, OURS, Yes, 1).told == Yes && watch(1, 50, OURS, Yes, 1).told == Yes);
        let relieved = watch(50, 8, OURS, Yes, 1);
        assert!(relieved.told == NotAsked && !asks(relieved));
    }

    #[test]
    fn where_being_told_fails_it_is_tried_again_though_ever_more_rarely() {
        let mut watch = watch(9, 1, OURS, Told::NotAsked, 1);
        let mut looks = Vec::new();
        for _ in 0..5 {
            assert!(watch.asks_to_be_told(LONG));
            watch.looked(9, 1, OURS);
            assert_eq!(watch.next_look(None), WATCH * 2);
            let until = (2..).find(|_| {
                assert!(!watch.asks_to_be_told(LONG));
                watch.looked(9, 1, OURS);
                watch.told == Told::NotAsked
            });
            looks.push(until.unwrap());
        }
        assert_eq!(looks, [5, 17, 65, 65, 65]);
    }

    #[test]
    fn everybody_looks_once_a_second_while_a_program_that_knows_no_line_has_the_lock_and_nobody_tells()
     {
        assert_eq!(watch(50, 50, None, Told::NotAsked, 1).next_look(None), WATCH);
        assert_eq!(watch(50, 3, None, Told::No, 1).next_look(None), WATCH);
        assert_eq!(watch(50, 3, None, Told::Yes, 1).next_look(None), RAREST);
        assert_eq!(watch(0, 0, None, Told::Yes, 1).gap(), GLANCE);
    }

    #[test]
    fn who_is_told_rests_until_the_lease_ends_but_while_a_lock_is_in_transit() {
        let rests = |n| watch(9, 0, OURS, Told::Yes, n).rest();
        let (rarest, often) = (WATCH * 64, WATCH * 16);
        assert_eq!([0, 1, 2, 3, 99].map(rests), [WATCH, WATCH * 4, often, rarest, rarest]);
        let next = |younger, fence, left| watch(9, younger, fence, Told::Yes, 1).next_look(left);
        let soon = Some(Duration::from_millis(40));
        assert_eq!(next(0, OURS, None), RAREST);
        assert_eq!(next(0, OURS, soon), Duration::from_millis(42));
        assert_eq!(next(3, OURS, soon), Duration::from_millis(102));
        assert_eq!(next(0, Some(0), None), WATCH);
    }
}
