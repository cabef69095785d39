//! The walk over one server's keys with SCAN. Pure: cursors in and out.

use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

/// A page, for as long as something of it is unsettled, and what was counted of it so far.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub seen: Cell<u64>,
    pub aged: Cell<u64>,
    pub skipped: Cell<u64>,
    pub unchanged: Cell<u64>,
    pub checked: Cell<u64>,
}

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
        share(position(self.cursor))
    }
}

/// How far a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the end of the table.
    Rest,
    /// To its end, and on from its beginning.
    Round,
    /// Up to where it began.
    Back,
}

/// Where the walk is. An empty page with a cursor other than 0 is not the end.
#[derive(Debug)]
pub(crate) struct Walk {
    from: u64,
    way: Way,
    at: Place,
    state: State,
    /// Pages with the places that led to them, oldest first.
    pages: VecDeque<(Place, Weak<Page>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Asked,
    Done,
}

impl Walk {
    /// Of the whole table, which begins now.
    pub fn new(now: u64) -> Self {
        Self::rest(Place { cursor: 0, since: now })
    }

    /// Of what is behind a place.
    pub fn rest(at: Place) -> Self {
        let (from, way, state) = (at.cursor, Way::Rest, State::Ready);
        Self { from, way, at, state, pages: VecDeque::new() }
    }

    /// Of the whole table, from a place on and round to it.
    pub fn round(at: Place) -> Self {
        Self { way: Way::Round, ..Self::rest(at) }
    }

    /// The cursor to ask with, when no page is under way and more are to come.
    pub fn ask(&mut self) -> Option<u64> {
        let ready = self.state == State::Ready;
        ready.then(|| {
            self.state = State::Asked;
            self.at.cursor
        })
    }

    /// Takes in the cursor of a reply that came now, by the server's clock (s).
    pub fn answered(&mut self, cursor: u64, now: u64) -> Rc<Page> {
        let page = Rc::new(Page::default());
        self.pages.push_back((self.at, Rc::downgrade(&page)));
        self.at.cursor = cursor;
        let is_over = match self.way {
            Way::Rest => cursor == 0,
            Way::Round => false,
            Way::Back => cursor == 0 || position(cursor) >= position(self.from),
        };
        if self.way == Way::Round && cursor == 0 {
            (self.way, self.at.since) = (Way::Back, now);
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
        while self.pages.front().is_some_and(|(_, page)| page.strong_count() == 0) {
            self.pages.pop_front();
        }
        self.pages.front().map_or(self.at, |(place, _)| *place)
    }

    /// The pages that are unsettled, and those behind them.
    pub fn unsettled(&self) -> impl Iterator<Item = Rc<Page>> {
        self.pages.iter().filter_map(|(_, page)| page.upgrade())
    }

    /// Whether it sees the whole table.
    pub fn is_whole(&self) -> bool {
        self.way != Way::Rest || self.from == 0
    }

    /// Share of the table that this walk has passed, 0 to 1.
    pub fn passed(&self) -> f64 {
        match self.state {
            State::Done if self.is_whole() => 1.0,
            State::Done => 1.0 - share(position(self.from)),
            _ => share(position(self.at.cursor).wrapping_sub(position(self.from))),
        }
    }

    /// Share that is behind us, with what was before this walk if it goes to the end only.
    pub fn share(&self) -> f64 {
        let before = if self.is_whole() { 0.0 } else { share(position(self.from)) };
        before + self.passed()
    }
}

/// Where in the table a cursor is: the server counts through it in the order of bit-reversed cursors,
/// also when the table grows or shrinks.
fn position(cursor: u64) -> u64 {
    cursor.reverse_bits()
}

/// A position as a share of the table, 0 to 1.
fn share(position: u64) -> f64 {
    position as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place that was reached in a lap which began at 5.
    fn place(cursor: u64) -> Place {
        Place { cursor, since: 5 }
    }

    #[test]
    fn one_page_at_a_time_until_the_cursor_is_zero() {
        let mut walk = Walk::new(5);
        assert_eq!(walk.ask(), Some(0));
        assert_eq!(walk.ask(), None);
        walk.again();
        assert_eq!(walk.ask(), Some(0));
        walk.answered(8, 6);
        assert_eq!(walk.ask(), Some(8));
        walk.answered(0, 6);
        assert!(walk.is_done() && walk.ask().is_none());
        assert_eq!(walk.share(), 1.0);
    }

    #[test]
    fn somebody_else_goes_on_at_the_oldest_unsettled_page() {
        let mut walk = Walk::rest(place(4));
        assert_eq!(walk.settled(), place(4));
        let (first, second) = (walk.answered(2, 9), walk.answered(6, 9));
        second.seen.set(3);
        assert_eq!(walk.settled(), place(4));
        drop(first);
        assert_eq!(walk.settled(), place(2));
        assert_eq!(walk.unsettled().map(|page| page.seen.get()).sum::<u64>(), 3);
        drop(second);
        assert_eq!((walk.settled(), walk.unsettled().count()), (place(6), 0));
    }

    #[test]
    fn a_walk_that_goes_round_ends_where_it_began_and_says_since_when() {
        // A table of 8 buckets: 0 4 2 6 1 5 3 7; it began at bucket 6, and a page has two.
        let mut walk = Walk::round(place(6));
        assert!(walk.is_whole() && walk.passed() == 0.0);
        let last = walk.answered(5, 9);
        walk.answered(7, 9);
        assert_eq!((walk.passed(), walk.share()), (0.5, 0.5));
        walk.answered(0, 20);
        assert!(!walk.is_done() && walk.ask() == Some(0));
        assert!((walk.share() - 0.625).abs() < 1e-9, "{}", walk.share());
        walk.answered(2, 21);
        assert_eq!(walk.settled(), place(6), "the last page of the first lap is unsettled");
        drop(last);
        assert_eq!(walk.settled(), Place { cursor: 2, since: 20 });
        // The table has grown: 6 comes between 10 and 14.
        walk.answered(10, 21);
        assert!(!walk.is_done());
        walk.answered(14, 21);
        assert!(walk.is_done() && walk.share() == 1.0);
    }

    #[test]
    fn the_share_follows_the_reversed_cursor() {
        // A table of 16 buckets: 1000, 0100, 1100 are an eighth... in steps of 1/2, 1/4, 3/4 of 2^64.
        let mut walk = Walk::new(0);
        for (cursor, share) in [(1u64 << 63, 0.0), (1, 0.5), (2, 0.25), (3, 0.75)] {
            walk.answered(cursor, 0);
            assert!((walk.share() - share).abs() < 1e-9, "{cursor}");
        }
        let mut rest = Walk::rest(place(1));
        assert!((rest.share() - 0.5).abs() < 1e-9 && rest.passed() == 0.0);
        rest.answered(3, 9);
        assert!((rest.share() - 0.75).abs() < 1e-9 && (rest.passed() - 0.25).abs() < 1e-9);
    }
}
