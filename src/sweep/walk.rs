//! The walk over one server's keys with SCAN. Pure: cursors in and out.
//!
//! A server counts through its table in the order of bit-reversed cursors, also when the table grows or
//! shrinks: a cursor is a position, and a walk may begin at any. One that goes round ends with a page that
//! reaches into what it began with; what stands there is told apart by its name. A server may also name a
//! key twice when it shrinks its table, soon after the first time: of late names the second is passed over.
//!
//! Only servers that are one table count so: no cluster, and nobody who only speaks their language. There a
//! walk goes from beginning to end.

use crate::sweep::page::{Page, Stretch};
use crate::sweep::records;
use serde::{Deserialize, Serialize};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;

/// The largest page that is asked for.
pub(crate) const LARGEST: usize = 1000;

/// A place in the table, and since when everything before it was seen: the server's clock (s) when the
/// walk was at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub cursor: u64,
    pub since: u64,
}

impl Place {
    /// Share of the table before it, 0 to 1.
    pub fn share(self) -> f64 {
        fraction(position(self.cursor))
    }
}

/// How far a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the end of the table.
    Rest,
    /// To its end, and on from its beginning.
    Round,
    /// Up to a cursor, or to the end of the table.
    UpTo(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Asked,
    Done,
}

/// Names that were met: those of the first pages, and the last ones.
#[derive(Debug, Default)]
struct Met {
    first: HashSet<u64>,
    late: HashSet<u64>,
    order: VecDeque<u64>,
}

/// How many late names are kept.
const LATE: usize = 4 * LARGEST;

impl Met {
    /// Whether a name is new.
    fn is_new(&mut self, name: &[u8], is_first: bool) -> bool {
        let name = records::name(name);
        if self.first.contains(&name) || !self.late.insert(name) {
            return false;
        }
        self.order.push_back(name);
        if self.order.len() > LATE {
            self.order.pop_front().map(|oldest| self.late.remove(&oldest));
        }
        if is_first {
            self.first.insert(name);
        }
        true
    }
}

/// Where the walk is. An empty page with a cursor other than 0 is not the end.
#[derive(Debug)]
pub(crate) struct Walk {
    from: u64,
    way: Way,
    /// With what was walked before, it sees the whole table.
    whole: bool,
    at: Place,
    state: State,
    /// How many keys were asked for, and how many pages came.
    asked: usize,
    count: u64,
    met: Met,
    /// What earlier walks of the same round saw, as shares of the table from our beginning on: up to the first, and
    /// from the second on.
    known: (f64, f64),
    /// Pages with the places that led to them, oldest first, from the first one on of which something is
    /// unsettled. Who else has a page is not done with it.
    pages: VecDeque<(Place, Rc<Page>)>,
}

impl Walk {
    /// Of the whole table, which begins now (s, by the server's clock).
    pub fn new(now: u64) -> Self {
        Self::rest(Place { cursor: 0, since: now })
    }

    /// Of what is behind a place.
    pub fn rest(at: Place) -> Self {
        Self {
            from: at.cursor,
            way: Way::Rest,
            whole: at.cursor == 0,
            at,
            state: State::Ready,
            asked: 0,
            count: 0,
            met: Met::default(),
            known: (0.0, 1.0),
            pages: VecDeque::new(),
        }
    }

    /// The same, after others that came so much farther than here, and had begun so far before.
    pub fn after(self, farther: f64, before: f64) -> Self {
        Self { known: (farther, 1.0 - before), ..self }
    }

    /// Of the whole table, from a place on and round to it.
    pub fn round(at: Place) -> Self {
        Self { way: Way::Round, whole: true, ..Self::rest(at) }
    }

    /// After this one, of a stretch of it once more, from now on (s, by the server's clock).
    pub fn again_over(&self, pages: Stretch, now: u64) -> Self {
        match self.way {
            // Where it went round, a stretch may be more than a round.
            Way::Round | Way::UpTo(_) => Self::new(now),
            Way::Rest => {
                let (way, at) = (Way::UpTo(pages.to()), Place { cursor: pages.from(), since: now });
                Self { way, whole: self.whole, ..Self::rest(at) }
            }
        }
    }

    /// The cursor to ask with, when no page is under way and more are to come.
    pub fn ask(&mut self) -> Option<u64> {
        let ready = self.state == State::Ready;
        ready.then(|| {
            self.state = State::Asked;
            self.at.cursor
        })
    }

    /// Takes in the cursor of a reply that came now (s, by the server's clock), and leaves of the names with
    /// it those that were not met before.
    pub fn answered(
        &mut self,
        cursor: u64,
        count: usize,
        names: &mut Vec<Vec<u8>>,
        now: u64,
    ) -> Rc<Page> {
        // A page reaches no further than it was asked to, so this is more than the last may share.
        let is_first = self.way == Way::Round && self.asked < 2 * LARGEST;
        self.asked += count;
        names.retain(|name| self.met.is_new(name, is_first));
        let (number, from) = (self.count, self.at.cursor);
        let known = self.passed() < self.known.0 || self.passed() >= self.known.1;
        let page = Rc::new(Page { number, cursor: from, next: cursor, known, ..Page::default() });
        self.count += 1;
        self.forget_settled();
        self.pages.push_back((self.at, Rc::clone(&page)));
        self.at.cursor = cursor;
        let is_over = match self.way {
            Way::Rest => cursor == 0,
            Way::Round => false,
            Way::UpTo(end) => cursor == 0 || (end != 0 && position(cursor) >= position(end)),
        };
        if self.way == Way::Round && cursor == 0 {
            (self.way, self.at.since) = (Way::UpTo(self.from), now);
        }
        self.state = if is_over { State::Done } else { State::Ready };
        page
    }

    /// The page asked for was lost; it is to be asked for again.
    pub fn again(&mut self) {
        if self.state == State::Asked {
            self.state = State::Ready;
        }
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Where somebody else could go on without passing anything over: at the oldest page of which
    /// something is unsettled.
    pub fn settled(&mut self) -> Place {
        self.forget_settled();
        let all = std::mem::take(&mut self.pages);
        for (place, page) in all {
            match self.pages.back() {
                // What is settled behind it goes with it: many pages may come before the first one is done with.
                Some((_, unsettled)) if is_settled(&page) => unsettled.absorb(&page),
                _ => self.pages.push_back((place, page)),
            }
        }
        self.pages.front().map_or(self.at, |(place, _)| *place)
    }

    /// If that place is where this walk began, the next one where more is unsettled than tags that have to wait, for
    /// whoever began there would come no farther. `timed_out`: what the first page is about took all the time there was.
    pub fn beyond_what_takes_long(&self, timed_out: bool) -> Option<Place> {
        let stuck = self.pages.front().is_some_and(|(place, _)| place.cursor == self.from);
        let open = |page: &Page| !page.postponed.get() || page.given_up.get();
        let passed = usize::from(timed_out);
        let next = self.pages.iter().skip(passed);
        let mut next = next.filter(|(_, page)| !is_settled(page) && open(page));
        let place = next.next().map_or(self.at, |(place, _)| *place);
        (stuck && place.cursor != self.from).then_some(place)
    }

    fn forget_settled(&mut self) {
        while self.pages.front().is_some_and(|(_, page)| is_settled(page)) {
            self.pages.pop_front();
        }
    }

    /// The first page of which something is unsettled, and all behind it: whoever goes on sees them again.
    pub fn seen_again(&self) -> impl Iterator<Item = &Page> {
        self.pages.iter().map(|(_, page)| &**page)
    }

    /// Whether it sees the whole table.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Share of the table between its beginning and a place that it came by, 0 to 1.
    pub fn passed_to(&self, place: Place) -> f64 {
        match self.is_done() && self.pages.is_empty() {
            true => self.passed(),
            false => fraction(position(place.cursor).wrapping_sub(position(self.from))),
        }
    }

    /// Share of the table that this walk has passed, 0 to 1.
    pub fn passed(&self) -> f64 {
        match self.state {
            State::Done if self.is_whole() => 1.0,
            State::Done => 1.0 - fraction(position(self.from)),
            _ => fraction(position(self.at.cursor).wrapping_sub(position(self.from))),
        }
    }

    /// Share that is behind us, with what was before this walk if it goes to the end only.
    pub fn share(&self) -> f64 {
        let before = if self.is_whole() { 0.0 } else { fraction(position(self.from)) };
        before + self.passed()
    }
}

/// Whether nobody has anything to do with a page any more.
fn is_settled(page: &Rc<Page>) -> bool {
    Rc::strong_count(page) == 1
}

/// Where in the table a cursor is, as a share of 2^64.
fn position(cursor: u64) -> u64 {
    cursor.reverse_bits()
}

fn fraction(position: u64) -> f64 {
    position as f64 / u64::MAX as f64
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

    /// Walks for so many pages, which settle at once.
    fn walk(walk: &mut Walk, table: &Table, count: usize, pages: usize, now: u64, met: &mut Met) {
        for _ in 0..pages {
            let Some(cursor) = walk.ask() else { return };
            let (next, mut names) = table.scan(cursor, count);
            walk.answered(next, count, &mut names, now);
            names.into_iter().for_each(|name| *met.entry(name).or_default() += 1);
        }
    }

    fn is_once(met: &Met, table: &Table) -> bool {
        met.len() == table.size && met.values().all(|times| *times == 1)
    }

    #[test]
    fn every_name_is_met_once() {
        for bits in [0, 1, 2, 5, 9] {
            for count in [1, 7, 50, 1000] {
                let table = Table::new(bits, 700, 5);
                let (mut new, mut met) = (Walk::new(5), Met::new());
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
            let mut cut = Walk::new(5);
            walk(&mut cut, &table, 3, pages, 6, &mut Met::new());
            let place = cut.settled();
            assert_eq!(place.since, 5);
            let (mut round, mut met) = (Walk::round(place), Met::new());
            assert!(round.passed() == 0.0 && round.share() == 0.0 && round.is_whole());
            walk(&mut round, &table, 3, pages.min(20), 21, &mut met);
            let again = round.settled();
            walk(&mut round, &table, 5, usize::MAX, 22, &mut met);
            assert!(round.is_done() && is_once(&met, &table), "{place:?}: {}", met.len());
            // And what that one would have left to another.
            let (mut last, mut met) = (Walk::round(again), Met::new());
            walk(&mut last, &table, 7, usize::MAX, 30, &mut met);
            assert!(is_once(&met, &table), "{again:?}");
        }
    }

    #[test]
    fn what_takes_long_keeps_nobody_where_he_began() {
        let place = |cursor| Place { cursor, since: 5 };
        let page = |walk: &mut Walk, cursor| walk.answered(cursor, 2, &mut vec![], 9);
        let mut walk = Walk::round(place(4));
        let first = page(&mut walk, 2);
        assert_eq!(walk.beyond_what_takes_long(false), None, "it is under way");
        first.postponed.set(true);
        assert_eq!(
            (walk.settled(), walk.beyond_what_takes_long(false)),
            (place(4), Some(place(2)))
        );
        let (second, third) = (page(&mut walk, 6), page(&mut walk, 1));
        second.postponed.set(true);
        third.given_up.set(true);
        assert_eq!(walk.beyond_what_takes_long(false), Some(place(6)));
        second.given_up.set(true);
        assert_eq!(walk.beyond_what_takes_long(false), Some(place(2)));
        first.given_up.set(true);
        assert_eq!(walk.beyond_what_takes_long(false), None);
        assert_eq!(walk.beyond_what_takes_long(true), Some(place(2)), "it took all the time");
        drop(first);
        assert_eq!(
            (walk.settled(), walk.beyond_what_takes_long(false)),
            (place(2), None),
            "it came on"
        );
    }

    #[test]
    fn settled_pages_take_no_memory() {
        let table = Table::new(9, 700, 5);
        let (mut new, mut met) = (Walk::new(5), Met::new());
        walk(&mut new, &table, 1, 100, 5, &mut met);
        assert!(!new.is_done() && new.pages.len() <= 1, "{}", new.pages.len());
    }

    #[test]
    fn large_pages_reach_far_into_what_was_met_before() {
        for bits in [10, 14, 17] {
            let table = Table::new(bits, 30_000, 11);
            for (first, then) in [(LARGEST, 50), (50, LARGEST), (LARGEST, LARGEST), (333, 999)] {
                let mut cut = Walk::new(5);
                walk(&mut cut, &table, first, 7, 6, &mut Met::new());
                let (mut round, mut met) = (Walk::round(cut.settled()), Met::new());
                walk(&mut round, &table, first, 3, 20, &mut met);
                walk(&mut round, &table, then, usize::MAX, 20, &mut met);
                assert!(round.is_done() && is_once(&met, &table), "{bits} {first} {then}");
            }
        }
    }

    #[test]
    fn who_goes_round_says_since_when_and_how_far() {
        // A table of 8 buckets: 0 4 2 6 1 5 3 7.
        let place = |cursor, since| Place { cursor, since };
        let page = |walk: &mut Walk, cursor, now| walk.answered(cursor, 2, &mut vec![], now);
        let mut walk = Walk::round(place(6, 5));
        let last = page(&mut walk, 5, 9);
        page(&mut walk, 7, 9);
        assert_eq!((walk.passed(), walk.share()), (0.5, 0.5));
        page(&mut walk, 0, 20);
        assert!(!walk.is_done() && walk.ask() == Some(0));
        assert!((walk.share() - 0.625).abs() < 1e-9, "{}", walk.share());
        page(&mut walk, 2, 21);
        assert_eq!(walk.settled(), place(6, 5), "a page of the first lap is unsettled");
        drop(last);
        assert_eq!(walk.settled(), place(2, 20));
        // The table has grown: 6 comes between 10 and 14.
        page(&mut walk, 10, 21);
        assert!(!walk.is_done());
        page(&mut walk, 14, 21);
        assert!(walk.is_done() && walk.share() == 1.0);
    }

    #[test]
    fn a_stretch_is_met_again_and_little_else() {
        let table = Table::new(9, 900, 13);
        let mut first = Walk::new(5);
        let mut pages = Vec::new();
        while let Some(cursor) = first.ask() {
            let (next, mut names) = table.scan(cursor, 10);
            pages.push((first.answered(next, 10, &mut names, 5), names));
        }
        for (from, to) in [(0, 0), (3, 9), (20, pages.len() - 1), (0, pages.len() - 1)] {
            let stretch = Stretch::of(&pages[to].0).with(&pages[from].0);
            for count in [1, 10, 50] {
                let (mut again, mut met) = (first.again_over(stretch, 9), Met::new());
                walk(&mut again, &table, count, usize::MAX, 9, &mut met);
                assert!(again.is_done() && again.is_whole());
                let due: usize = pages[from..=to].iter().map(|(_, names)| names.len()).sum();
                let all = pages[from..=to].iter().flat_map(|(_, names)| names);
                assert!(all.into_iter().all(|name| met[name] == 1), "{from} {to} {count}");
                assert!((due..=due + count + 10).contains(&met.len()), "{from} {to} {count}");
            }
        }
        let mut round = Walk::round(Place { cursor: 6, since: 5 });
        walk(&mut round, &table, 10, usize::MAX, 6, &mut Met::new());
        assert_eq!(round.again_over(Stretch::of(&pages[3].0), 9).ask(), Some(0));
    }

    #[test]
    fn the_rest_is_what_was_not_met() {
        let table = Table::new(7, 400, 9);
        for pages in 1..80 {
            let (mut cut, mut met) = (Walk::new(5), Met::new());
            walk(&mut cut, &table, 3, pages, 6, &mut met);
            let mut rest = Walk::rest(cut.settled());
            assert!(!rest.is_whole() && (cut.share() - rest.share()).abs() < 1e-9);
            walk(&mut rest, &table, 3, usize::MAX, 7, &mut met);
            assert!(rest.is_done() && is_once(&met, &table), "{pages}");
            assert!((rest.share() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_table_may_grow_and_shrink_meanwhile() {
        for (before, after) in [(6, 9), (9, 6), (3, 7)] {
            let (first, then) = (Table::new(before, 500, 3), Table::new(after, 500, 3));
            for pages in 1..60 {
                let (mut new, mut met) = (Walk::new(5), Met::new());
                walk(&mut new, &first, 4, pages, 5, &mut met);
                walk(&mut new, &then, 4, usize::MAX, 5, &mut met);
                assert!(new.is_done() && is_once(&met, &first), "{before} {after} {pages}");
            }
        }
    }

    #[test]
    fn somebody_else_goes_on_at_the_oldest_unsettled_page() {
        let mut walk = Walk::new(5);
        let page = |walk: &mut Walk, cursor| walk.answered(cursor, 9, &mut vec![], 6);
        let (first, second) = (page(&mut walk, 4), page(&mut walk, 6));
        second.seen.set(3);
        assert_eq!(walk.settled().cursor, 0);
        drop(first);
        assert_eq!(walk.settled(), Place { cursor: 4, since: 5 });
        assert_eq!(walk.seen_again().map(|page| page.seen.get()).sum::<u64>(), 3);
        drop(second);
        assert_eq!((walk.settled().cursor, walk.seen_again().count()), (6, 0));
    }

    #[test]
    fn what_is_settled_behind_the_oldest_unsettled_page_is_seen_again_too() {
        let mut walk = Walk::new(5);
        let page = |walk: &mut Walk, cursor| walk.answered(cursor, 9, &mut vec![], 6);
        let first = page(&mut walk, 4);
        for cursor in [6, 1, 5] {
            let behind = page(&mut walk, cursor);
            behind.checked.set(10);
            behind.removed.set(4);
        }
        assert_eq!(walk.settled().cursor, 0);
        assert_eq!(walk.pages.len(), 1, "however many they are");
        assert_eq!(walk.seen_again().map(Page::left).sum::<u64>(), 18);
        drop(first);
        assert_eq!((walk.settled().cursor, walk.seen_again().count()), (5, 0));
    }

    #[test]
    fn pages_are_known_as_far_as_an_earlier_walk_came() {
        let at = Place { cursor: 0, since: 5 };
        let mut walk = Walk::rest(at).after(0.5, 0.0);
        // Positions are bit-reversed cursors: a quarter, a half, three quarters.
        let known = [2 << 61, 1 << 63, 3 << 62].map(u64::reverse_bits);
        let known = known.map(|cursor| walk.answered(cursor, 9, &mut vec![], 6).known);
        assert_eq!(known, [true, true, false]);
        // And as they had begun before that place, which a round comes to in the end.
        let mut walk = Walk::round(Place { cursor: 2, since: 5 }).after(0.0, 0.25);
        let known = [1, 3, 0].map(|cursor| walk.answered(cursor, 9, &mut vec![], 6).known);
        assert_eq!(known, [false, false, false]);
        assert!(walk.answered(2, 9, &mut vec![], 6).known);
    }

    #[test]
    fn a_page_that_was_lost_is_asked_for_again() {
        let mut walk = Walk::new(0);
        assert_eq!((walk.ask(), walk.ask()), (Some(0), None));
        walk.again();
        assert_eq!((walk.ask(), walk.ask()), (Some(0), None));
    }

    #[test]
    fn the_share_follows_the_reversed_cursor() {
        // A table of 16 buckets: 1000, 0100, 1100 are an eighth... in steps of 1/2, 1/4, 3/4 of 2^64.
        let mut walk = Walk::new(0);
        for (cursor, share) in [(1u64 << 63, 0.0), (1, 0.5), (2, 0.25), (3, 0.75)] {
            walk.answered(cursor, 1, &mut vec![], 0);
            assert!((walk.share() - share).abs() < 1e-9, "{cursor}");
        }
    }
}
