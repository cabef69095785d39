//! Many byte strings in two allocations: keys, members and arguments come by the hundred thousand.

use redis::{RedisWrite, ToRedisArgs};

/// Byte strings, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Strings {
    pub fn push(&mut self, string: &[u8]) {
        self.push_joined(&[string]);
    }

    /// One string, made of these parts.
    pub fn push_joined(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of all of them together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start as usize..*end as usize])
    }

    /// Those at the positions for which `keep` is true.
    pub fn select(&self, keep: impl Fn(usize) -> bool) -> Self {
        self.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, string)| string).collect()
    }

    /// Those for which `first` is true, and the others.
    pub fn split(&self, first: impl Fn(usize) -> bool) -> (Self, Self) {
        (self.select(&first), self.select(|i| !first(i)))
    }

    /// Memory taken, roughly.
    pub fn size(&self) -> usize {
        self.bytes.capacity() + 4 * self.ends.capacity() + 64
    }
}

impl<'a> FromIterator<&'a [u8]> for Strings {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(strings: I) -> Self {
        let mut all = Self::default();
        strings.into_iter().for_each(|string| all.push(string));
        all.bytes.shrink_to_fit();
        all.ends.shrink_to_fit();
        all
    }
}

impl ToRedisArgs for Strings {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        self.iter().for_each(|string| out.write_arg(string));
    }

    fn num_of_args(&self) -> usize {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_as_they_went_in() {
        let given: [&[u8]; 4] = [b"a", b"", b"\0\xff", b"bcd"];
        let mut strings: Strings = given.into_iter().collect();
        assert_eq!(strings.iter().collect::<Vec<_>>(), given);
        let some = strings.select(|i| i % 2 == 0);
        assert_eq!(some.iter().collect::<Vec<_>>(), [given[0], given[2]]);
        assert_eq!((strings.len(), strings.bytes(), Strings::default().is_empty()), (4, 6, true));
        strings.push_joined(&[b"x:", b"y"]);
        assert_eq!(strings.iter().last(), Some(b"x:y".as_slice()));
    }
}
