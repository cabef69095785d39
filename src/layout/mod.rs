//! Layouts: how a framework names its tags and entries, and how its writers go about it. Pure.

mod plain;

pub use plain::Plain;

/// A name that stands before a member to make the key of its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Entry key = this + member.
    pub entry_prefix: Vec<u8>,
}

impl Mapping {
    /// The key of the entry that a member names.
    pub fn entry(&self, member: &[u8]) -> Vec<u8> {
        self.parts(member).concat()
    }

    /// The same, in parts.
    pub fn parts<'a>(&'a self, member: &'a [u8]) -> [&'a [u8]; 2] {
        [&self.entry_prefix, member]
    }
}

/// One framework's way of storing tags.
pub trait Layout {
    /// `MATCH` pattern of the tag keys, with the prefix escaped.
    fn pattern(&self) -> Vec<u8>;
    /// A key that the pattern matches, for questions about all of them.
    fn sample(&self) -> Vec<u8>;
    /// How a member may map to its entry: one way, or two of which a sweep must prove one.
    fn mappings(&self) -> Vec<Mapping>;
}

/// Escapes what `MATCH` takes for a wildcard, so that a name matches only itself.
pub fn escape_glob(name: &[u8]) -> Vec<u8> {
    let special = |b: &u8| b"*?[]\\^-".contains(b);
    name.iter().flat_map(|b| special(b).then_some(b'\\').into_iter().chain([*b])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_escaped_and_other_bytes_kept() {
        assert_eq!(escape_glob(b"a*[x]?\\^-\0\n\xff"), b"a\\*\\[x\\]\\?\\\\\\^\\-\0\n\xff");
    }
}
