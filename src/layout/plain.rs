//! The plain layout: a set `tag:<tag>` whose members name entries.
//!
//! Its writers add the reference at every write, before the entry, after it, or in one transaction.
//! That is the writer class "always re-adds": a tag that nobody has touched for the grace period has
//! no writer between reference and entry.

use super::{Layout, Mapping, escape_glob};

/// The plain layout under a prefix.
#[derive(Clone, Debug)]
pub struct Plain {
    prefix: Vec<u8>,
    entry_prefix: Option<Vec<u8>>,
}

impl Plain {
    /// `prefix` stands before the tag keys. `entry_prefix` is what makes a member an entry key; when
    /// it is not given, `prefix` and the empty prefix (members hold whole keys) are both tried.
    pub fn new(prefix: Vec<u8>, entry_prefix: Option<Vec<u8>>) -> Self {
        Self { prefix, entry_prefix }
    }
}

impl Layout for Plain {
    fn pattern(&self) -> Vec<u8> {
        [&escape_glob(&self.prefix), b"tag:*".as_slice()].concat()
    }

    fn sample(&self) -> Vec<u8> {
        [&self.prefix, b"tag:".as_slice()].concat()
    }

    fn mappings(&self) -> Vec<Mapping> {
        let given = |prefix: &[u8]| Mapping { entry_prefix: prefix.to_vec() };
        match &self.entry_prefix {
            Some(prefix) => vec![given(prefix)],
            None if self.prefix.is_empty() => vec![given(b"")],
            None => vec![given(&self.prefix), given(b"")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_gives_two_mappings_to_prove_and_an_explicit_one_decides() {
        assert_eq!(Plain::new(vec![], None).mappings().len(), 1);
        let two = Plain::new(b"app:".to_vec(), None);
        assert_eq!(two.mappings()[0].entry(b"item:1"), b"app:item:1");
        assert_eq!(two.mappings()[1].entry(b"item:1"), b"item:1");
        let one = Plain::new(b"a*:".to_vec(), Some(b"x:".to_vec()));
        assert_eq!(one.mappings(), [Mapping { entry_prefix: b"x:".to_vec() }]);
        assert_eq!(one.pattern(), b"a\\*:tag:*");
    }
}
