//! A page of the walk.

use std::cell::Cell;

/// A page, for as long as something of it is unsettled, and what was counted of it so far.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub seen: Cell<u64>,
    pub aged: Cell<u64>,
    pub skipped: Cell<u64>,
    pub unchanged: Cell<u64>,
    pub checked: Cell<u64>,
}
