//! Many byte strings in two allocations: members wait in the quarantine by the hundred thousand.

/// Members of a tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Members {
    pub fn push(&mut self, member: &[u8]) {
        self.bytes.extend_from_slice(member);
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of all names together.
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
        self.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, member)| member).collect()
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

impl<'a> FromIterator<&'a [u8]> for Members {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(members: I) -> Self {
        let mut all = Self::default();
        members.into_iter().for_each(|member| all.push(member));
        all.bytes.shrink_to_fit();
        all.ends.shrink_to_fit();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_as_they_went_in() {
        let given: [&[u8]; 4] = [b"a", b"", b"\0\xff", b"bcd"];
        let members: Members = given.into_iter().collect();
        assert_eq!(members.iter().collect::<Vec<_>>(), given);
        let some = members.select(|i| i % 2 == 0);
        assert_eq!(some.iter().collect::<Vec<_>>(), [given[0], given[2]]);
        assert_eq!((members.len(), Members::default().is_empty()), (4, true));
    }
}
