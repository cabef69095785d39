//! The walk over one server's keys with SCAN. Pure: cursors in and out.

/// Where the walk is. An empty page with a cursor other than 0 is not the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    cursor: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Asked,
    Done,
}

impl Walk {
    pub fn new() -> Self {
        Self { cursor: 0, state: State::Ready }
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
    pub fn answered(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.state = if cursor == 0 { State::Done } else { State::Ready };
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
        let mut walk = Walk::new();
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
    fn the_share_follows_the_reversed_cursor() {
        // A table of 16 buckets: 1000, 0100, 1100 are an eighth... in steps of 1/2, 1/4, 3/4 of 2^64.
        let mut walk = Walk::new();
        for (cursor, share) in [(1u64 << 63, 0.0), (1, 0.5), (2, 0.25), (3, 0.75)] {
            walk.answered(cursor);
            assert!((walk.share() - share).abs() < 1e-9, "{cursor}");
        }
    }
}
