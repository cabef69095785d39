//! How much to send at once, and when to rest. Pure.
//!
//! What one round makes the server work is what every other client waits for, so the round's server
//! time is steered: the measured time of a round, less the bare round trip, sets the size of the next (a
//! multiplicative controller, clamped so that one odd round does little). Where others are at work, a
//! round takes a fifth of the latency budget, for they meet two at times, and each other; where hardly
//! anybody is, it takes half of it, which costs the server less, and a page that is all that is under way takes
//! all of it.
//!
//! Whether others keep the server busy shows in the CPU time that our own rounds do not account for. Those are
//! taken at the least that a unit ever took, so at full effort some of our own work looks like theirs; where others
//! send next to nothing it is ours, and nobody is to be made room for.
//!
//! Rests change nothing for the slowest of the others, only how much of the server we take: they are
//! for a lower effort, and for a server that has no time to spare. They are long and come after normal
//! rounds; many tiny ones would get in the way of the others at each beginning.

use crate::clock::Moment;
use crate::sweep::batch::BATCH;
use std::time::Duration;

/// Bounds of a round, in units of about half a microsecond of server time each.
const SIZE: std::ops::RangeInclusive<f64> = 60.0..=4000.0;

/// The part of the budget that a round takes where others are at work.
const CROWD: u32 = 5;

/// Rest that is owed before one is taken.
const SPELL: Duration = Duration::from_millis(4);

/// A round that took so many times its target: the server is slow, and is left alone for as long.
const SLOW: u32 = 16;

/// Longest rest after a slow round.
const LONGEST: Duration = Duration::from_millis(50);

/// Longest rest at all. What would be owed for more was a stall, and not our work; the lock is to be kept
/// and what was removed to be verified meanwhile.
const REST: Duration = Duration::from_millis(500);

/// A server busier than this, by the work of others for at least [`OTHERS`], has no time to spare.
const BUSY: f64 = 0.93;
const OTHERS: f64 = 0.25;

/// Bytes that others send in a second, from which on they are at work. Less is a thousand small commands,
/// or an error of ours: what we have sent of late and the server has not read.
const QUIET: f64 = 64e3;

/// The smallest share of the server's time to which a busy server can bring us.
const LEAST: f64 = 0.05;

/// The size of rounds, the rests between them, and the sum of their server time.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    budget: Duration,
    target: Duration,
    /// Share of the server's time that we may take, and that we take now.
    most: f64,
    share: f64,
    size: f64,
    bare: Duration,
    server: Duration,
    owed: Duration,
    rest_until: Option<Moment>,
    /// When the last round or rest ended.
    free_since: Moment,
    /// The least that a unit took (s), slowly forgotten.
    unit: f64,
    /// Our own work since the server's CPU time was read last, by that least (s).
    own: f64,
    cpu: Option<(Moment, f64)>,
    others: Option<(Moment, f64)>,
}

impl Pace {
    /// For a latency budget, and an effort of 1 (a tenth of the server's time) to 10 (all of it).
    pub fn new(max_latency: Duration, effort: u8) -> Self {
        let most = f64::from(effort) / 10.0;
        Self {
            budget: max_latency,
            target: max_latency / CROWD,
            most,
            share: most,
            size: 400.0,
            bare: Duration::ZERO,
            server: Duration::ZERO,
            owed: Duration::ZERO,
            rest_until: None,
            free_since: Moment::at(Duration::ZERO),
            unit: f64::INFINITY,
            own: 0.0,
            cpu: None,
            others: None,
        }
    }

    /// A new connection, with the bare round trip as measured.
    pub fn connected(&mut self, bare: Duration) {
        self.bare = bare;
        (self.cpu, self.others) = (None, None);
    }

    /// The bare round trip.
    pub fn bare(&self) -> Duration {
        self.bare
    }

    /// Units that the next round may hold.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Units of a page that is all that is under way: nobody meets two such rounds. Where others are at work they are
    /// as large as all.
    pub fn page(&self) -> usize {
        if self.is_quiet() { 2 * self.size() } else { self.size() }
    }

    /// Whether hardly anybody else is at work.
    fn is_quiet(&self) -> bool {
        self.target > self.budget / CROWD
    }

    /// Members that one command or script of it may hold.
    pub fn members(&self) -> usize {
        BATCH.min(self.size() * 2 / 3)
    }

    /// Rounds that may be under way at once: two, so that the server works on one while we read the
    /// other; one where the server's time is not all ours, for after each rest two would meet.
    pub fn depth(&self) -> usize {
        if self.share < 1.0 { 1 } else { 2 }
    }

    /// Takes in a round that ended now: units sent, and the time that the server was ours, which is without
    /// the bare round trip.
    pub fn observe(&mut self, units: usize, own: Duration, now: Moment) {
        self.take_in(units, own, now, 1.0);
    }

    /// The same of a round that was nothing but a page, which may be as large as several.
    pub fn observe_page(&mut self, units: usize, own: Duration, now: Moment) {
        self.take_in(units, own, now, (units as f64 / self.size).max(1.0));
    }

    fn take_in(&mut self, units: usize, own: Duration, now: Moment, rounds: f64) {
        self.server += own;
        // While we read and thought, and words were on their way, the server was left alone as well.
        let left_alone = now.since(self.free_since).saturating_sub(own);
        self.owed = self.owed.saturating_sub(left_alone);
        self.free_since = now;
        self.owe(own, now);
        let (units, seconds) = (units as f64, own.as_secs_f64());
        self.own += if self.unit.is_finite() { units * self.unit } else { seconds };
        if own.is_zero() || units < self.size / 2.0 {
            return; // too small a round to say anything about a full one
        }
        self.unit = (self.unit * 1.01).min(seconds / units);
        let factor = self.target.as_secs_f64() * rounds / seconds;
        self.size = (self.size * factor.clamp(0.5, 1.25)).clamp(*SIZE.start(), *SIZE.end());
    }

    fn owe(&mut self, own: Duration, now: Moment) {
        self.owed += own.mul_f64(1.0 / self.share - 1.0);
        if own > self.target * SLOW {
            self.owed += own.min(LONGEST);
        }
        if self.owed >= SPELL {
            self.free_since = now + std::mem::take(&mut self.owed).min(REST);
            self.rest_until = Some(self.free_since);
        }
    }

    /// Takes in the CPU time (s) that the server has used so far: who has no time to spare is left
    /// more of it.
    pub fn observe_cpu(&mut self, used: f64, now: Moment) {
        if let Some((then, before)) = self.cpu {
            let span = now.since(then).as_secs_f64().max(1e-3);
            let (busy, ours) = ((used - before) / span, self.own / span);
            let by_others = busy - ours > OTHERS && !self.is_quiet();
            self.share = match busy > BUSY && by_others {
                true => (self.share * 0.7).max(LEAST.min(self.most)),
                false => (self.share + 0.1).min(self.most),
            };
        }
        (self.cpu, self.own) = (Some((now, used)), 0.0);
    }

    /// Takes in how many bytes others have sent so far.
    pub fn observe_others(&mut self, sent: f64, now: Moment) {
        if let Some((then, before)) = self.others {
            let rate = (sent - before) / now.since(then).as_secs_f64().max(1e-3);
            self.target = if rate < QUIET { self.budget / 2 } else { self.budget / CROWD };
        }
        self.others = Some((now, sent));
    }

    /// Until when nothing is to be sent.
    pub fn rest(&self, now: Moment) -> Option<Moment> {
        self.rest_until.filter(|until| *until > now)
    }

    /// The effort in force, 1 to 10 and less on a busy server.
    pub fn effort(&self) -> f64 {
        self.share * 10.0
    }

    /// Server time of all rounds so far.
    pub fn server_time(&self) -> Duration {
        self.server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_micros(500);

    fn now() -> Moment {
        Moment::at(Duration::from_secs(1000))
    }

    #[test]
    fn rounds_settle_at_a_fifth_of_the_budget_and_at_half_of_it_where_nobody_else_is() {
        let mut pace = Pace::new(BUDGET, 10);
        pace.connected(Duration::from_micros(50));
        let settle = |pace: &mut Pace, at: Duration| {
            for _ in 0..100 {
                let work = Duration::from_nanos(700) * pace.size() as u32;
                pace.observe(pace.size(), work, now());
            }
            let settled = Duration::from_nanos(700) * pace.size() as u32;
            let error = settled.as_secs_f64() / at.as_secs_f64();
            assert!((0.9..1.1).contains(&error), "{settled:?}");
        };
        settle(&mut pace, BUDGET / CROWD);
        pace.observe_others(0.0, now());
        settle(&mut pace, BUDGET / CROWD);
        pace.observe_others(10e3, now() + Duration::from_secs(1));
        settle(&mut pace, BUDGET / 2);
        pace.observe_others(150e3, now() + Duration::from_secs(2));
        settle(&mut pace, BUDGET / CROWD);
    }

    #[test]
    fn a_page_that_is_alone_takes_the_whole_budget_where_nobody_else_is() {
        let mut pace = Pace::new(BUDGET, 10);
        assert_eq!(pace.page(), pace.size(), "until that is known");
        pace.observe_others(0.0, now());
        pace.observe_others(10e3, now() + Duration::from_secs(1));
        for _ in 0..100 {
            let work = Duration::from_nanos(700) * pace.page() as u32;
            pace.observe_page(pace.page(), work, now());
        }
        let page = Duration::from_nanos(700) * pace.page() as u32;
        assert!(page > BUDGET * 9 / 10 && page < BUDGET * 11 / 10, "{page:?}");
        pace.observe_others(150e3, now() + Duration::from_secs(2));
        assert_eq!(pace.page(), pace.size());
    }

    #[test]
    fn one_odd_round_does_little_and_small_rounds_nothing() {
        let mut pace = Pace::new(BUDGET, 10);
        let before = pace.size();
        pace.observe(1, Duration::from_secs(1), now());
        assert_eq!(pace.size(), before);
        pace.observe(before, Duration::from_secs(1), now());
        assert_eq!(pace.size(), before / 2);
        assert_eq!(pace.server_time(), Duration::from_secs(2));
    }

    #[test]
    fn full_effort_never_rests_and_half_of_it_rests_half_the_time() {
        for (effort, share) in [(10, 1.0), (5, 0.5), (1, 0.1)] {
            let (mut pace, mut at, mut worked) = (Pace::new(BUDGET, effort), now(), 0.0);
            for _ in 0..1000 {
                at = pace.rest(at).unwrap_or(at) + BUDGET;
                pace.observe(pace.size(), BUDGET, at);
                worked += BUDGET.as_secs_f64();
            }
            let took = pace.rest(at).unwrap_or(at).since(now()).as_secs_f64();
            assert!((worked / took / share - 1.0).abs() < 0.05, "{effort}: {worked} of {took} s");
        }
    }

    #[test]
    fn a_slow_server_is_left_alone_at_once() {
        let mut pace = Pace::new(BUDGET, 10);
        pace.observe(pace.size(), Duration::from_millis(30), now());
        assert_eq!(pace.rest(now()), Some(now() + Duration::from_millis(30)));
        assert_eq!(pace.rest(now() + Duration::from_millis(30)), None);
    }

    #[test]
    fn after_a_stall_no_rest_is_long() {
        let mut pace = Pace::new(BUDGET, 1);
        pace.observe(pace.size(), Duration::from_secs(4), now());
        assert!(pace.rest(now()).unwrap().since(now()) <= REST);
    }

    #[test]
    fn a_server_that_others_keep_busy_gets_more_rest_and_an_idle_one_none() {
        let mut pace = Pace::new(BUDGET, 10);
        let (mut at, mut used) = (now(), 0.0);
        let mut second = |pace: &mut Pace, busy: f64| {
            // A tenth of a second of our own work.
            (0..200).for_each(|_| pace.observe(1000, BUDGET, at));
            (at, used) = (at + Duration::from_secs(1), used + busy);
            pace.observe_cpu(used, at);
        };
        second(&mut pace, 0.99);
        (0..5).for_each(|_| second(&mut pace, 0.99));
        assert!(pace.effort() < 2.0, "{}", pace.effort());
        (0..20).for_each(|_| second(&mut pace, 0.5));
        assert_eq!(pace.effort(), 10.0);
    }

    #[test]
    fn a_server_that_we_alone_keep_busy_is_not_made_room_on() {
        let mut pace = Pace::new(BUDGET, 10);
        pace.observe_others(0.0, now());
        pace.observe_others(10e3, now() + Duration::from_secs(1));
        // One round in two takes twice what the cheapest took: two thirds of our work by the least.
        let cost = |round: u64| Duration::from_nanos(500 * (1 + round % 2));
        let (mut at, mut used) = (now(), 0.0);
        for second in 0..10 {
            let begun = at;
            for round in 0..5000 {
                let work = cost(round) * 300;
                at = at + work;
                pace.observe(300, work, at);
            }
            used += at.since(begun).as_secs_f64() * 0.98;
            pace.observe_cpu(used, at);
            assert_eq!((pace.effort(), pace.depth()), (10.0, 2), "after {second} s");
        }
    }
}
