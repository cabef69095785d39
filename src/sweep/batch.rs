//! What a sweep works on: a tag, and some of its members at a time.

use crate::clock::Moment;
use crate::layout::Mapping;
use crate::strings::Strings;
use crate::sweep::page::Page;
use crate::sweep::records::Record;
use crate::sweep::seam::Seam;
use crate::sweep::slip::Slip;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Members of one command or script. 256 keep a script near 0.4 ms and cost a tenth of the speed.
pub(crate) const BATCH: usize = 256;

/// Bytes of names in one command, after which it holds no further member.
pub(crate) const BATCH_BYTES: usize = 128 << 10;

/// One tag being worked on. Its figures are settled when the last one who works on it lets go.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    pub tag: Tag,
    pub idle: Idleness,
    pub record: OnRecord,
    pub lifetimes: Lifetimes,
    /// Its memory is to be known, as a sample.
    pub weighed: bool,
    pub aged: Cell<bool>,
    pub removed: Cell<u64>,
    pub checked: Cell<u64>,
    pub gone: Cell<bool>,
    /// More of its members are to be read.
    pub partial: Cell<bool>,
    /// Whether some of its members are known to stay.
    pub alive: Cell<bool>,
    /// It is to be read again, for it was used after all, or what was known of it is too old.
    pub reread: Cell<bool>,
    /// It turned out to be of another type.
    pub strange: Cell<bool>,
    /// Where the last reply about its members ended.
    pub seam: RefCell<Seam>,
}

/// A tag, and what earlier visits of this run know of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tag {
    pub key: Vec<u8>,
    /// Where the walk found it.
    pub page: Rc<Page>,
    /// What this and other visits removed of it.
    pub tally: Rc<Tally>,
    /// Read before: it was young then, or held back.
    pub again: bool,
    /// Its entries were looked for before, so its references are counted already.
    pub looked: bool,
    /// Counted as aged before.
    pub was_aged: bool,
}

/// For how long a tag was left alone.
#[derive(Debug, Default)]
pub(crate) struct Idleness {
    /// Its idle time, where that was asked before (s), and when it was asked for.
    pub told: Cell<Option<u64>>,
    pub asked: Cell<Option<Moment>>,
    /// The idle time that the confirming script is to insist on (s).
    pub wanted: Cell<Option<u64>>,
    /// It was no evidence: absent entries must be seen absent twice.
    pub unclear: Cell<bool>,
    /// When we touched it last: that is what the server takes for its last use, then.
    pub touched: Cell<Option<Moment>>,
}

/// Whether a tag's age is on record, and that record: as told beforehand, and as it is to be.
#[derive(Debug, Default)]
pub(crate) struct OnRecord {
    pub aging: bool,
    pub known: Cell<Option<Record>>,
    pub new: Cell<Option<Record>>,
}

/// Members whose entries were asked for their lifetimes, and when the first of them ends (s).
#[derive(Debug, Default)]
pub(crate) struct Lifetimes {
    pub vouched: Cell<u64>,
    pub until: Cell<Option<u64>>,
}

/// What was removed of a tag, by all visits that repeat each other. The last who lets go of it counts the
/// tag, once.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub removed: Cell<u64>,
    pub gone: Cell<bool>,
}

/// Some members of a tag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub visit: Rc<Visit>,
    pub members: Strings,
    /// Where their removal is noted, if it is.
    pub slip: Option<Rc<Slip>>,
    /// An answer to their removal was lost: it may be done already.
    pub asked: bool,
}

/// Whether what was removed is looked for a second time, a grace later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    Never,
    /// What proved that its tag was left alone was old.
    Always,
    /// Unless it is known that the tag was left alone from when it was read until after that moment.
    UnlessStill(Moment),
    /// An earlier sweep removed it, nobody knows when.
    Recovered,
}

impl From<Tag> for Visit {
    fn from(tag: Tag) -> Self {
        Self { tag, ..Self::default() }
    }
}

impl Visit {
    /// We have touched the tag, just now.
    pub fn touch(&self) {
        self.idle.touched.set(Some(Moment::now()));
    }

    /// Memory taken.
    pub fn size(&self) -> usize {
        self.tag.key.len() + std::mem::size_of::<Self>()
    }
}

impl Batch {
    pub fn of(visit: &Rc<Visit>, members: Strings) -> Self {
        Self { visit: Rc::clone(visit), members, slip: None, asked: false }
    }

    /// Memory taken while it waits.
    pub fn size(&self) -> usize {
        self.members.size() + self.visit.size()
    }

    /// Names of all entries, under this mapping.
    pub fn entries(&self, mapping: &Mapping, out: &mut Strings) {
        self.members.iter().for_each(|member| out.push_joined(&mapping.parts(member)));
    }
}
