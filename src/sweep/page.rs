//! A page of the walk.

use std::cell::Cell;

/// A page, for as long as something of it is unsettled, and what was counted of it so far.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// How many came before it, the cursor that led to it, and the one behind it.
    pub number: u64,
    pub cursor: u64,
    pub next: u64,
    /// Something of it was passed over before the mapping was proven.
    pub missed: Cell<bool>,
    /// An earlier sweep, that this one goes on from, looked at it, too.
    pub known: bool,
    /// Nothing more is done about something of it.
    pub given_up: Cell<bool>,
    /// Something of it waited for a grace when the sweep was cut short.
    pub postponed: Cell<bool>,
    pub seen: Cell<u64>,
    pub aged: Cell<u64>,
    pub skipped: Cell<u64>,
    pub unchanged: Cell<u64>,
    pub checked: Cell<u64>,
    /// Of those checked, what nobody sees again.
    pub removed: Cell<u64>,
}

impl Page {
    /// Counts another one as a part of this.
    pub fn absorb(&self, other: &Self) {
        for (sum, part) in self.counts().into_iter().zip(other.counts()) {
            sum.set(sum.get() + part.get());
        }
    }

    fn counts(&self) -> [&Cell<u64>; 6] {
        [&self.seen, &self.aged, &self.skipped, &self.unchanged, &self.checked, &self.removed]
    }

    /// References that whoever begins with it looks at once more.
    pub fn left(&self) -> u64 {
        self.checked.get().saturating_sub(self.removed.get())
    }
}

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Number and cursor of the first, number and cursor behind the last.
    first: (u64, u64),
    last: (u64, u64),
}

impl Stretch {
    /// This page alone.
    pub fn of(page: &Page) -> Self {
        Self { first: (page.number, page.cursor), last: (page.number, page.next) }
    }

    /// Up to this page, too.
    pub fn with(self, page: &Page) -> Self {
        let other = Self::of(page);
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// The cursor that leads to the first page.
    pub fn from(&self) -> u64 {
        self.first.1
    }

    /// The cursor behind the last page; 0 at the end of the table.
    pub fn to(&self) -> u64 {
        self.last.1
    }
}
