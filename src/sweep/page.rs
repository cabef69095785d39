//! The walk over one server's keys with SCAN. Pure: cursors in and out.

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

/// Where the walk is. An empty page with a cursor other than 0 is not the end.
#[derive(Debug)]
pub(crate) struct Walk {
    cursor: u64,
    state: State,
    /// Pages with the cursors that led to them, oldest first.
    pages: VecDeque<(u64, Weak<Page>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Asked,
    Done,
}

impl Walk {
    /// From a cursor on; 0 is the beginning.
    pub fn new(cursor: u64) -> Self {
        Self { cursor, state: State::Ready, pages: VecDeque::new() }
    }

    /// The cursor to ask with, when no page is under way and more are to come.
    pub fn ask(&mut self) -> Option<u64> {
        let ready = self.state == State::Ready;
        ready.then(|| {
            self.state = State::Asked;
            self.cursor
        })
    }

    /// Takes in the cursor of a reply.
    pub fn answered(&mut self, cursor: u64) -> Rc<Page> {
        let page = Rc::new(Page::default());
        self.pages.push_back((self.cursor, Rc::downgrade(&page)));
        self.cursor = cursor;
        self.state = if cursor == 0 { State::Done } else { State::Ready };
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
    pub fn settled(&mut self) -> u64 {
        while self.pages.front().is_some_and(|(_, page)| page.strong_count() == 0) {
            self.pages.pop_front();
        }
        self.pages.front().map_or(self.cursor, |(cursor, _)| *cursor)
    }

    /// The pages that are unsettled, and those behind them.
    pub fn unsettled(&self) -> impl Iterator<Item = Rc<Page>> {
        self.pages.iter().filter_map(|(_, page)| page.upgrade())
    }

    /// Share of the table that is behind us, 0 to 1. The server counts through its table in the
    /// order of bit-reversed cursors.
    pub fn share(&self) -> f64 {
        match self.state {
            State::Done => 1.0,
            _ => self.cursor.reverse_bits() as f64 / u64::MAX as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_at_a_time_until_the_cursor_is_zero() {
        let mut walk = Walk::new(0);
        assert_eq!(walk.ask(), Some(0));
        assert_eq!(walk.ask(), None);
        walk.again();
        assert_eq!(walk.ask(), Some(0));
        walk.answered(8);
        assert_eq!(walk.ask(), Some(8));
        walk.answered(0);
        assert!(walk.is_done() && walk.ask().is_none());
        assert_eq!(walk.share(), 1.0);
    }

    #[test]
    fn somebody_else_goes_on_at_the_oldest_unsettled_page() {
        let mut walk = Walk::new(4);
        assert_eq!(walk.settled(), 4);
        let (first, second) = (walk.answered(2), walk.answered(6));
        second.seen.set(3);
        assert_eq!(walk.settled(), 4);
        drop(first);
        assert_eq!(walk.settled(), 2);
        assert_eq!(walk.unsettled().map(|page| page.seen.get()).sum::<u64>(), 3);
        drop(second);
        assert_eq!((walk.settled(), walk.unsettled().count()), (6, 0));
    }

    #[test]
    fn the_share_follows_the_reversed_cursor() {
        // A table of 16 buckets: 1000, 0100, 1100 are an eighth... in steps of 1/2, 1/4, 3/4 of 2^64.
        let mut walk = Walk::new(0);
        for (cursor, share) in [(1u64 << 63, 0.0), (1, 0.5), (2, 0.25), (3, 0.75)] {
            walk.answered(cursor);
            assert!((walk.share() - share).abs() < 1e-9, "{cursor}");
        }
    }
}
