//! The walk over one server's keys with SCAN. Pure: cursors in and out.
//!
//! A server counts through its table in the order of bit-reversed cursors, also when the table grows or
//! shrinks: a cursor is a position, and SCAN may begin at any. So the table is walked in two legs at once,
//! one for each half, and the server has a page to look for while we read the other. Where a leg ends its
//! last page reaches into what another has begun with; what stands there is told apart by its name.
//!
//! Only servers that are one table count so: no cluster, and nobody who only speaks their language. Others
//! are walked in one leg, from beginning to end.

use crate::sweep::page::Page;
use crate::sweep::records;
use serde::{Deserialize, Serialize};
use std::collections::{HashSet, VecDeque};
use std::rc::{Rc, Weak};

/// The largest page that is asked for.
pub(crate) const LARGEST: usize = 1000;

/// Legs at once.
const LEGS: usize = 2;

/// Where a walk could be gone on with: the cursor of each leg, unless there is nothing left of it, and since
/// when everything else was seen, by the server's clock (s).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub cursors: Vec<Option<u64>>,
    pub since: u64,
}

impl Place {
    /// Share of the keys that lie behind, 0 to 1.
    pub fn share(&self) -> f64 {
        let legs = self.cursors.len();
        let behind = |at: &Option<u64>| at.map_or(1.0, |cursor| fraction(offset(cursor, legs)));
        self.cursors.iter().map(behind).sum::<f64>() / legs.max(1) as f64
    }

    /// Whether it is one, and not the beginning.
    pub fn is_sound(&self) -> bool {
        self.cursors.len() == LEGS && !self.is_beginning()
    }

    fn is_beginning(&self) -> bool {
        self.cursors.iter().zip(0..).all(|(cursor, first)| *cursor == Some(first))
    }
}

/// How far a leg goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the end of its part.
    Rest,
    /// To the end, and on from the beginning.
    Round,
    /// Up to where it began.
    Back,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Asked,
    Done,
}

/// The walk over one part of the table.
#[derive(Debug)]
struct Leg {
    /// The first cursor of its part, and how many parts there are.
    first: u64,
    legs: usize,
    from: u64,
    way: Way,
    cursor: u64,
    /// Since when everything before the cursor was seen, and when this walk began (s).
    since: u64,
    begun: u64,
    state: State,
    /// What was asked for since the last beginning.
    asked: usize,
    /// Pages with what led to them, oldest first: the cursor, and since when.
    pages: VecDeque<(u64, u64, Weak<Page>)>,
}

impl Leg {
    fn new(first: usize, legs: usize, at: Option<u64>, way: Way, since: u64, now: u64) -> Self {
        let first = first as u64;
        let cursor = at.unwrap_or(first);
        // Nothing is left of it, unless it is to be walked anew.
        let state = if at.is_none() && way == Way::Rest { State::Done } else { State::Ready };
        let anew = cursor == first && state == State::Ready;
        let (way, since) = if anew { (Way::Rest, now) } else { (way, since) };
        let pages = VecDeque::new();
        Self { first, legs, from: cursor, way, cursor, since, begun: now, state, asked: 0, pages }
    }

    /// Takes in a cursor; whether the page is at an end, of the leg or of its walk.
    fn answered(&mut self, cursor: u64, count: usize, now: u64, page: &Rc<Page>) -> bool {
        self.pages.push_back((self.cursor, self.since, Rc::downgrade(page)));
        let is_new = self.asked < 2 * LARGEST;
        self.asked += count;
        let mask = self.legs as u64 - 1;
        let ended = cursor == 0 || cursor & mask != self.first;
        let back =
            self.way == Way::Back && offset(cursor, self.legs) >= offset(self.from, self.legs);
        (self.cursor, self.state) = (cursor, State::Ready);
        if ended && self.way == Way::Round {
            (self.way, self.cursor, self.since, self.asked) = (Way::Back, self.first, now, 0);
        } else if ended || back {
            (self.state, self.since) = (State::Done, self.begun.min(self.since));
        }
        is_new || ended || back
    }

    /// Where to go on: at the oldest page of which something is unsettled.
    fn settled(&mut self) -> (Option<u64>, u64) {
        while self.pages.front().is_some_and(|(_, _, page)| page.strong_count() == 0) {
            self.pages.pop_front();
        }
        match self.pages.front() {
            Some((cursor, since, _)) => (Some(*cursor), *since),
            None if self.state == State::Done => (None, self.since),
            None => (Some(self.cursor), self.since),
        }
    }

    /// Whether it sees all of its part.
    fn is_whole(&self) -> bool {
        self.way != Way::Rest || (self.from == self.first && !self.is_finished())
    }

    /// Nothing of it was left when this walk began.
    fn is_finished(&self) -> bool {
        self.state == State::Done && self.asked == 0
    }

    /// Share of its part that it leaves out.
    fn before(&self) -> f64 {
        match (self.is_finished(), self.is_whole()) {
            (true, _) => 1.0,
            (_, true) => 0.0,
            _ => fraction(offset(self.from, self.legs)),
        }
    }

    /// Share of its part that it has passed.
    fn passed(&self) -> f64 {
        let offset = |cursor| offset(cursor, self.legs);
        match self.state {
            State::Done => 1.0 - self.before(),
            _ => fraction(offset(self.cursor).wrapping_sub(offset(self.from))),
        }
    }
}

/// How far into its part a cursor is, as a share of 2^64.
fn offset(cursor: u64, legs: usize) -> u64 {
    cursor.reverse_bits() << legs.trailing_zeros()
}

fn fraction(offset: u64) -> f64 {
    offset as f64 / u64::MAX as f64
}

/// Where the walk is. An empty page with a cursor other than 0 is not the end.
#[derive(Debug)]
pub(crate) struct Walk {
    legs: Vec<Leg>,
    /// Names at the ends of legs.
    met: HashSet<[u8; 8]>,
}

impl Walk {
    /// Of all keys, beginning now (s, by the server's clock); in legs, if its cursors are positions.
    pub fn new(are_positions: bool, now: u64) -> Self {
        let legs = if are_positions { LEGS as u64 } else { 1 };
        let cursors = (0..legs).map(Some).collect();
        Self::along(Place { cursors, since: now }, Way::Rest, now)
    }

    /// Of what is left of an earlier walk.
    pub fn rest(place: Place, now: u64) -> Self {
        Self::along(place, Way::Rest, now)
    }

    /// Of all keys, from where an earlier walk ended and round to there.
    pub fn round(place: Place, now: u64) -> Self {
        Self::along(place, Way::Round, now)
    }

    fn along(place: Place, way: Way, now: u64) -> Self {
        let (since, legs) = (place.since, place.cursors.len());
        let cursors = place.cursors.into_iter().enumerate();
        let legs = cursors.map(|(first, at)| Leg::new(first, legs, at, way, since, now)).collect();
        Self { legs, met: HashSet::new() }
    }

    /// A leg, and the cursor to ask with, if no page of it is under way and more are to come: of those, the
    /// one that is behind.
    pub fn ask(&mut self) -> Option<(usize, u64)> {
        let ready = self.legs.iter_mut().enumerate().filter(|(_, leg)| leg.state == State::Ready);
        let (leg, next) = ready.min_by(|(_, a), (_, b)| a.passed().total_cmp(&b.passed()))?;
        next.state = State::Asked;
        Some((leg, next.cursor))
    }

    /// Takes in the cursor of a reply that came now (s, by the server's clock), and of the names with it
    /// those that were not met before.
    pub fn answered(
        &mut self,
        leg: usize,
        cursor: u64,
        count: usize,
        names: &mut Vec<Vec<u8>>,
        now: u64,
    ) -> Rc<Page> {
        let page = Rc::new(Page::default());
        if self.legs[leg].answered(cursor, count, now, &page) {
            names.retain(|name| self.met.insert(records::place(name).1));
        }
        page
    }

    /// The page asked for was lost; it is to be asked for again.
    pub fn again(&mut self, leg: usize) {
        if self.legs[leg].state == State::Asked {
            self.legs[leg].state = State::Ready;
        }
    }

    pub fn is_done(&self) -> bool {
        self.legs.iter().all(|leg| leg.state == State::Done)
    }

    /// Where somebody else could go on without passing anything over; `None` while that would be the
    /// beginning.
    pub fn settled(&mut self) -> Option<Place> {
        let places: Vec<_> = self.legs.iter_mut().map(Leg::settled).collect();
        let since = places.iter().map(|(_, since)| *since).min()?;
        let place =
            Place { cursors: places.into_iter().map(|(cursor, _)| cursor).collect(), since };
        (!place.is_beginning()).then_some(place)
    }

    /// The pages that are unsettled, and those behind them.
    pub fn unsettled(&self) -> impl Iterator<Item = Rc<Page>> {
        self.legs.iter().flat_map(|leg| leg.pages.iter()).filter_map(|(_, _, page)| page.upgrade())
    }

    /// Whether it sees all keys.
    pub fn is_whole(&self) -> bool {
        self.legs.iter().all(Leg::is_whole)
    }

    /// Share of the keys that this walk has passed, 0 to 1.
    pub fn passed(&self) -> f64 {
        self.legs.iter().map(Leg::passed).sum::<f64>() / self.legs.len() as f64
    }

    /// Share that is behind us, with what this walk leaves out.
    pub fn share(&self) -> f64 {
        self.passed() + self.legs.iter().map(Leg::before).sum::<f64>() / self.legs.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A table of 2^bits buckets with some names each, which SCAN counts through as servers do.
    struct Table {
        buckets: Vec<Vec<Vec<u8>>>,
        size: usize,
    }

    impl Table {
        /// So many names, their hashes drawn.
        fn new(bits: u32, size: usize, seed: u64) -> Self {
            let mut buckets = vec![Vec::new(); 1 << bits];
            for n in 0..size {
                let name = records::place(format!("{seed}.{n}").as_bytes()).1;
                let bucket = u64::from_be_bytes(name) as usize % buckets.len();
                buckets[bucket].push(name.to_vec());
            }
            Self { buckets, size }
        }

        fn scan(&self, mut cursor: u64, count: usize) -> (u64, Vec<Vec<u8>>) {
            let mask = self.buckets.len() as u64 - 1;
            let mut found = Vec::new();
            for _ in 0..10 * count {
                found.extend_from_slice(&self.buckets[(cursor & mask) as usize]);
                cursor = ((cursor | !mask).reverse_bits().wrapping_add(1)).reverse_bits();
                if cursor == 0 || found.len() >= count {
                    break;
                }
            }
            (cursor, found)
        }
    }

    /// What a walk meets, and how often.
    type Met = BTreeMap<Vec<u8>, u32>;

    /// Walks for so many pages, two under way at a time, which settle at once.
    fn walk(walk: &mut Walk, table: &Table, count: usize, pages: usize, now: u64, met: &mut Met) {
        for _ in 0..pages {
            let asked: Vec<_> = std::iter::from_fn(|| walk.ask()).collect();
            if asked.is_empty() {
                return;
            }
            for (leg, cursor) in asked {
                let (next, mut names) = table.scan(cursor, count);
                walk.answered(leg, next, count, &mut names, now);
                names.into_iter().for_each(|name| *met.entry(name).or_default() += 1);
            }
        }
    }

    fn is_once(met: &Met, table: &Table) -> bool {
        met.len() == table.size && met.values().all(|times| *times == 1)
    }

    #[test]
    fn every_name_is_met_once() {
        for bits in [0, 1, 2, 5, 9] {
            for (count, positions) in [(1, true), (7, true), (50, true), (1000, true), (7, false)] {
                let table = Table::new(bits, 700, 5);
                let (mut new, mut met) = (Walk::new(positions, 5), Met::new());
                walk(&mut new, &table, count, usize::MAX, 5, &mut met);
                assert!(new.is_done() && new.is_whole() && new.ask().is_none());
                assert!(is_once(&met, &table), "{bits} {count}: {} of 700", met.len());
                assert_eq!((new.share(), new.passed()), (1.0, 1.0));
            }
        }
    }

    #[test]
    fn who_goes_round_meets_everything_once_from_wherever_another_ended() {
        let table = Table::new(7, 400, 7);
        for pages in 1..100 {
            let mut cut = Walk::new(true, 5);
            walk(&mut cut, &table, 3, pages, 6, &mut Met::new());
            let place = cut.settled().unwrap();
            assert_eq!(place.since, 5);
            let (mut round, mut met) = (Walk::round(place.clone(), 20), Met::new());
            assert!(round.passed() == 0.0 && round.share() == 0.0 && round.is_whole());
            walk(&mut round, &table, 3, pages.min(20), 21, &mut met);
            let again =
                round.settled().unwrap_or(Place { cursors: vec![Some(0), Some(1)], since: 20 });
            walk(&mut round, &table, 5, usize::MAX, 22, &mut met);
            assert!(round.is_done() && is_once(&met, &table), "{place:?}: {}", met.len());
            // And what that one would have left to another.
            let (mut last, mut met) = (Walk::round(again.clone(), 30), Met::new());
            walk(&mut last, &table, 7, usize::MAX, 30, &mut met);
            assert!(is_once(&met, &table), "{again:?}");
        }
    }

    #[test]
    fn large_pages_reach_far_into_what_was_met_before() {
        for bits in [10, 14, 17] {
            let table = Table::new(bits, 30_000, 11);
            for (first, then) in [(LARGEST, 50), (50, LARGEST), (LARGEST, LARGEST), (333, 999)] {
                let (mut cut, mut met) = (Walk::new(true, 5), Met::new());
                walk(&mut cut, &table, first, 7, 6, &mut met);
                let place = cut.settled().unwrap();
                walk(&mut cut, &table, then, usize::MAX, 6, &mut met);
                assert!(cut.is_done() && is_once(&met, &table), "{bits} {first} {then}");
                let (mut round, mut met) = (Walk::round(place, 20), Met::new());
                walk(&mut round, &table, first, 3, 20, &mut met);
                walk(&mut round, &table, then, usize::MAX, 20, &mut met);
                assert!(round.is_done() && is_once(&met, &table), "{bits} {first} {then} round");
            }
        }
    }

    #[test]
    fn the_rest_is_what_was_not_met() {
        let table = Table::new(7, 400, 9);
        for pages in 1..100 {
            let (mut cut, mut met) = (Walk::new(true, 5), Met::new());
            walk(&mut cut, &table, 3, pages, 6, &mut met);
            let place = cut.settled().unwrap();
            let mut rest = Walk::rest(place.clone(), 7);
            assert!(!rest.is_whole());
            assert!(
                (rest.share() - place.share()).abs() < 1e-9
                    && (cut.share() - rest.share()).abs() < 1e-9
            );
            walk(&mut rest, &table, 3, usize::MAX, 7, &mut met);
            assert!(rest.is_done() && met.len() == 400, "{place:?}");
            assert!((rest.share() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_table_may_grow_and_shrink_meanwhile() {
        for (before, after) in [(6, 9), (9, 6), (3, 7)] {
            let (small, large) = (Table::new(before, 500, 3), Table::new(after, 500, 3));
            for pages in 1..60 {
                let (mut new, mut met) = (Walk::new(true, 5), Met::new());
                walk(&mut new, &small, 4, pages, 5, &mut met);
                walk(&mut new, &large, 4, usize::MAX, 5, &mut met);
                assert!(new.is_done() && met.len() == 500);
            }
        }
    }

    #[test]
    fn somebody_else_goes_on_at_the_oldest_unsettled_page() {
        let mut new = Walk::new(true, 5);
        assert_eq!(new.settled(), None, "that would be the beginning");
        let page = |walk: &mut Walk, leg, cursor| walk.answered(leg, cursor, 9, &mut vec![], 6);
        let (first, second) = (page(&mut new, 0, 4), page(&mut new, 0, 6));
        let other = page(&mut new, 1, 5);
        second.seen.set(3);
        assert_eq!(new.settled(), None);
        drop(other);
        assert_eq!(new.settled().unwrap().cursors, [Some(0), Some(5)]);
        drop(first);
        assert_eq!(new.settled().unwrap().cursors, [Some(4), Some(5)]);
        assert_eq!(new.unsettled().map(|page| page.seen.get()).sum::<u64>(), 3);
        drop(second);
        assert_eq!(
            (new.settled().unwrap().cursors, new.unsettled().count()),
            (vec![Some(6), Some(5)], 0)
        );
        page(&mut new, 1, 0);
        let place = new.settled().unwrap();
        assert_eq!((place.cursors, place.since), (vec![Some(6), None], 5));
    }

    #[test]
    fn a_page_that_was_lost_is_asked_for_again() {
        let mut new = Walk::new(true, 0);
        assert_eq!((new.ask(), new.ask(), new.ask()), (Some((0, 0)), Some((1, 1)), None));
        new.again(1);
        assert_eq!((new.ask(), new.ask()), (Some((1, 1)), None));
    }

    #[test]
    fn the_share_follows_the_reversed_cursors() {
        // A table of 8 buckets: 0 4 2 6, and 1 5 3 7.
        let mut new = Walk::new(true, 0);
        for (leg, cursor, share) in
            [(0, 4, 0.125), (0, 2, 0.25), (1, 3, 0.5), (1, 7, 0.625), (0, 1, 0.875)]
        {
            new.answered(leg, cursor, 1, &mut vec![], 0);
            assert!((new.share() - share).abs() < 1e-9, "{leg} {cursor}: {}", new.share());
        }
        new.answered(1, 0, 1, &mut vec![], 0);
        assert!(new.is_done() && new.share() == 1.0);
    }
}
