//! The proof that members map to entries: before it, nothing is removed. Pure.
//!
//! A wrong prefix makes every entry look absent. So a sweep waits for one member that leads to an
//! existing entry; what is condemned meanwhile is held back.

use crate::clock::Moment;
use crate::error::{Error, ErrorKind, Result, printable};
use crate::layout::Mapping;
use crate::sweep::batch::Batch;
use crate::sweep::page::Stretch;

/// Which mapping is in force, and what waits for the answer.
#[derive(Debug)]
pub(crate) struct Proof {
    mappings: Vec<Mapping>,
    /// Nothing waits for a proof. Of two mappings an entry must be absent under both until one is found right.
    trusted: bool,
    chosen: Option<usize>,
    held: Vec<(Moment, Batch)>,
    held_size: usize,
    /// Bytes that may be held back; of more, the tags are walked to again.
    budget: usize,
    missed: Option<Stretch>,
    /// The first that was, or in a dry run would be, held back: a tag and a member.
    example: Option<(Vec<u8>, Vec<u8>)>,
}

impl Proof {
    /// Of one mapping or of two, of which one is to be found right. If trusted, they need no proof.
    pub fn new(mappings: Vec<Mapping>, trusted: bool, budget: usize) -> Self {
        let chosen = (trusted && mappings.len() == 1).then_some(0);
        let (held, held_size, missed, example) = (Vec::new(), 0, None, None);
        Self { mappings, trusted, chosen, held, held_size, budget, missed, example }
    }

    /// The mapping in force, or the first one while none is.
    pub fn in_force(&self) -> &Mapping {
        &self.mappings[self.chosen.unwrap_or(0)]
    }

    /// All mappings, the one in force first.
    pub fn in_order(&self) -> impl Iterator<Item = &Mapping> {
        let chosen = self.chosen.unwrap_or(0);
        let others = self.mappings.iter().enumerate().filter(move |(at, _)| *at != chosen);
        std::iter::once(self.in_force()).chain(others.map(|(_, mapping)| mapping))
    }

    /// The mappings that may be right.
    pub fn open(&self) -> &[Mapping] {
        match self.chosen {
            Some(_) => std::slice::from_ref(self.in_force()),
            None => &self.mappings,
        }
    }

    /// Takes in how many entries were found under each of the mappings that were open when it was
    /// asked. The entry prefix, when some were found.
    ///
    /// # Errors
    /// Unproven, when two mappings lead to entries.
    pub fn learn(&mut self, counts: &[u64]) -> Result<Option<&[u8]>> {
        let found: Vec<usize> = (0..counts.len()).filter(|at| counts[*at] > 0).collect();
        let at = match (found.as_slice(), counts.len() == self.mappings.len()) {
            ([], _) => return Ok(None),
            ([at], true) => *at,
            ([_], false) => self.chosen.unwrap_or(0),
            _ => return Err(Self::ambiguous()),
        };
        if *self.chosen.get_or_insert(at) != at {
            return Err(Self::ambiguous());
        }
        Ok(Some(&self.mappings[at].entry_prefix))
    }

    /// Trusts the proof of an earlier run, if it is one of ours.
    pub fn recognise(&mut self, fingerprint: &[u8]) {
        let known = self.mappings.iter().position(|m| print_of(m) == fingerprint);
        self.chosen = self.chosen.or(known);
    }

    /// The proof, for a later run.
    pub fn fingerprint(&self) -> Option<Vec<u8>> {
        self.chosen.map(|at| print_of(&self.mappings[at]))
    }

    /// Lets a batch pass when the mapping is proven; holds it back otherwise.
    pub fn admit(&mut self, batch: Batch) -> Option<Batch> {
        if self.lets_pass() {
            return Some(batch);
        }
        self.foresee(&batch);
        let size = self.held_size + batch.size();
        if size > self.budget {
            let page = &batch.visit.tag.page;
            page.missed.set(true);
            self.missed = Some(self.missed.map_or(Stretch::of(page), |pages| pages.with(page)));
        } else {
            self.held_size = size;
            self.held.push((Moment::now(), batch));
        }
        None
    }

    /// Takes note of what is held back, or would be.
    pub fn foresee(&mut self, batch: &Batch) {
        let first = || Some((batch.visit.tag.key.clone(), batch.members.iter().next()?.to_vec()));
        if !self.lets_pass() && self.example.is_none() {
            self.example = first();
        }
    }

    /// What was held back, and since when.
    pub fn take_held(&mut self) -> Vec<(Moment, Batch)> {
        self.held_size = 0;
        std::mem::take(&mut self.held)
    }

    /// Whether a mapping is known to be right, and the other one to be wrong.
    pub fn is_given(&self) -> bool {
        self.chosen.is_some()
    }

    /// Whether what is condemned may pass.
    pub fn lets_pass(&self) -> bool {
        self.chosen.is_some() || self.trusted
    }

    /// Whether nothing waits for a proof any more, and nothing was passed over for want of one.
    pub fn is_settled(&self) -> bool {
        self.lets_pass() && self.missed.is_none()
    }

    /// Whether something was passed over for want of a proof.
    pub fn misses(&self) -> bool {
        self.missed.is_some()
    }

    /// Pages of which something was passed over that can be dealt with now. Told once.
    pub fn take_missed(&mut self) -> Option<Stretch> {
        self.missed.take_if(|_| self.chosen.is_some())
    }

    /// At the end of a walk: what speaks against every mapping, if anything does.
    pub fn refutation(&self) -> Option<String> {
        let (tag, member) = self.example.as_ref().filter(|_| !self.lets_pass())?;
        let (entry, tag) = (printable(&self.in_force().entry(member)), printable(tag));
        Some(format!(
            "no reference leads to an existing entry (such as {entry} of {tag}): either every entry \
             is gone, or the prefix is wrong; nothing was removed"
        ))
    }

    /// Two mappings lead to entries.
    pub fn ambiguous() -> Error {
        Error::new(
            ErrorKind::Unproven,
            "members lead to existing entries both with the key prefix and without it",
        )
        .advice("say by entry_prefix which is meant")
    }
}

fn print_of(mapping: &Mapping) -> Vec<u8> {
    [b"plain|".as_slice(), &mapping.entry_prefix].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::batch::Tag;
    use crate::sweep::page::Page;
    use std::rc::Rc;

    fn two() -> Proof {
        let mapping = |prefix: &str| Mapping { entry_prefix: prefix.into() };
        Proof::new(vec![mapping("p:"), mapping("")], false, 1000)
    }

    fn batch() -> Batch {
        let members = [b"m".as_slice()].into_iter().collect();
        Batch { members, ..Batch::default() }
    }

    #[test]
    fn the_mapping_that_leads_to_entries_is_taken() {
        let mut proof = two();
        assert_eq!(proof.learn(&[0, 0]).unwrap(), None);
        assert!(proof.admit(batch()).is_none());
        assert!(proof.refutation().unwrap().contains("\"p:m\""));
        assert_eq!(proof.learn(&[0, 2]).unwrap(), Some(b"".as_slice()));
        assert_eq!((proof.open().len(), proof.take_held().len()), (1, 1));
        assert!(proof.admit(batch()).is_some());
        let order: Vec<_> = proof.in_order().map(|m| m.entry_prefix.clone()).collect();
        assert_eq!(order, [b"".to_vec(), b"p:".to_vec()]);
        // A look that was under way before the choice, and one after it.
        assert!(proof.learn(&[0, 1]).is_ok() && proof.learn(&[1]).is_ok());
        assert!(proof.learn(&[1, 0]).is_err());
    }

    #[test]
    fn two_mappings_that_lead_to_entries_are_an_error() {
        assert!(two().learn(&[1, 1]).is_err());
    }

    #[test]
    fn a_remembered_proof_counts_only_for_the_same_mapping() {
        let mut proof = two();
        proof.recognise(b"plain|q:");
        assert_eq!(proof.fingerprint(), None);
        proof.recognise(b"plain|p:");
        assert_eq!(proof.fingerprint().unwrap(), b"plain|p:");
    }

    #[test]
    fn what_does_not_fit_is_walked_to_again() {
        let mut proof = two();
        proof.held_size = 1000;
        let on = |number, cursor, next| {
            let page = Rc::new(Page { number, cursor, next, ..Page::default() });
            Batch { visit: Rc::new(Tag { page, ..Tag::default() }.into()), ..batch() }
        };
        for passed_over in [on(2, 6, 1), on(1, 2, 6), on(3, 1, 5), on(2, 6, 1)] {
            assert!(proof.admit(passed_over.clone()).is_none());
            assert!(passed_over.visit.tag.page.missed.get() && proof.take_missed().is_none());
        }
        proof.learn(&[1, 0]).unwrap();
        let pages = proof.take_missed().unwrap();
        assert_eq!((pages.from(), pages.to()), (2, 5));
        assert!(proof.is_settled() && proof.take_missed().is_none());
    }
}
