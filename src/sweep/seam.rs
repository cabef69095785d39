//! Where two replies about one set meet. Pure.
//!
//! A server whose set shrinks between two replies counts through a smaller table from then on, and begins
//! with a bucket that it had begun before: members at the end of one reply may come again at the beginning of
//! the next (`dictScan` in Redis' dict.c tells why). No more than one bucket of the smaller table holds: a
//! handful, and some sixty in Valkey 9.

use crate::sweep::records;

/// How many members at the end of a reply are kept, and at the beginning of the next are compared.
const WIDTH: usize = 256;

/// The last members of a reply, in the order of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seam(Box<[u64]>);

impl Seam {
    /// Leaves of the next reply what was not at the end of the last one. `more`: another reply follows.
    pub fn join(&mut self, members: &mut Vec<Vec<u8>>, more: bool) {
        let name = |member: &Vec<u8>| records::name(member);
        let mut at = 0;
        members.retain(|member| {
            at += 1;
            at > WIDTH || self.0.binary_search(&name(member)).is_err()
        });
        let last = if more { WIDTH } else { 0 };
        self.0 = members.iter().rev().take(last).map(name).collect();
        self.0.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
        range.map(|n| n.to_string().into_bytes()).collect()
    }

    #[test]
    fn what_ended_one_reply_is_no_news_in_the_next() {
        let mut seam = Seam::default();
        for (reply, more, new) in [
            (names(0..500), true, names(0..500)),
            (names(495..900), true, names(500..900)),
            // An empty reply in between; of what is further back nothing is known any more.
            (names(0..0), true, names(0..0)),
            (names(899..1000), true, names(899..1000)),
            (names(999..1100), false, names(1000..1100)),
        ] {
            let mut members = reply;
            seam.join(&mut members, more);
            assert_eq!(members, new);
        }
    }

    #[test]
    fn all_of_a_reply_may_have_been_met() {
        let mut seam = Seam::default();
        seam.join(&mut names(0..10), true);
        let mut again = names(0..10);
        seam.join(&mut again, true);
        assert!(again.is_empty());
    }
}
