//! What a durable quarantine keeps on the server: which references a script removed, until they are
//! verified. Whoever sweeps next finds what a crash left unverified, and verifies it.

use crate::strings::Strings;
use crate::sweep::batch::{Batch, Tag};
use std::cell::RefCell;
use std::rc::Rc;

/// For how long a slip is kept if nobody comes: as long as anybody may leave a cache unswept.
pub(crate) const KEPT_MS: u64 = 30 * 24 * 3600 * 1000;

/// Slips whose last batch is verified; they are to be crossed out on the server.
pub(crate) type Done = Rc<RefCell<Vec<Vec<u8>>>>;

/// A slip, shared by the batches that one script removed.
#[derive(Debug)]
pub(crate) struct Slip {
    pub id: Vec<u8>,
    done: Done,
}

impl Slip {
    pub fn new(id: Vec<u8>, done: &Done) -> Rc<Self> {
        Rc::new(Self { id, done: Rc::clone(done) })
    }
}

impl Drop for Slip {
    fn drop(&mut self) {
        self.done.borrow_mut().push(std::mem::take(&mut self.id));
    }
}

/// Tags and members, each with its length before it (32 bits, big endian).
pub(crate) fn write(batches: &[Batch]) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, n: usize| {
        out.extend(u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
    };
    for batch in batches {
        let names = std::iter::once(batch.visit.tag.key.as_slice()).chain(batch.members.iter());
        number(&mut out, batch.members.len());
        for name in names {
            number(&mut out, name.len());
            out.extend(name);
        }
    }
    out
}

/// The batches of a slip, as far as it can be read.
pub(crate) fn read(mut bytes: &[u8], slip: &Rc<Slip>) -> Vec<Batch> {
    let mut batches = Vec::new();
    while let Some(batch) = next(&mut bytes, slip) {
        batches.push(batch);
    }
    batches
}

fn next(bytes: &mut &[u8], slip: &Rc<Slip>) -> Option<Batch> {
    let count = number(bytes)?;
    let key = name(bytes)?.to_vec();
    let mut members = Strings::default();
    for _ in 0..count {
        members.push(name(bytes)?);
    }
    let visit = Rc::new(Tag { key, again: true, looked: true, ..Tag::default() }.into());
    Some(Batch { slip: Some(Rc::clone(slip)), ..Batch::of(&visit, members) })
}

fn number(bytes: &mut &[u8]) -> Option<usize> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    usize::try_from(u32::from_be_bytes(*head)).ok()
}

fn name<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(bytes)?;
    let (name, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(key: &[u8], members: &[&[u8]]) -> Batch {
        let visit = Rc::new(Tag { key: key.to_vec(), ..Tag::default() }.into());
        Batch::of(&visit, members.iter().copied().collect())
    }

    #[test]
    fn what_was_written_is_read_and_crossed_out_when_the_last_batch_goes() {
        let done = Done::default();
        let kept = write(&[batch(b"tag:a\0", &[b"", b"x\xff"]), batch(b"tag:b", &[])]);
        let batches = read(&kept, &Slip::new(b"7.1".to_vec(), &done));
        let names: Vec<Vec<&[u8]>> = batches.iter().map(|b| b.members.iter().collect()).collect();
        assert_eq!(names, [vec![b"".as_slice(), b"x\xff"], vec![]]);
        assert_eq!(batches[0].visit.tag.key, b"tag:a\0");
        assert!(done.borrow().is_empty());
        drop(batches);
        assert_eq!(*done.borrow(), [b"7.1"]);
    }

    #[test]
    fn what_was_cut_short_or_is_nonsense_gives_what_it_can() {
        let kept = write(&[batch(b"tag:a", &[b"x"]), batch(b"tag:b", &[b"y"])]);
        let slip = Slip::new(b"1".to_vec(), &Done::default());
        for end in 0..kept.len() {
            assert!(read(&kept[..end], &slip).len() < 2);
        }
        assert!(read(&[0xff; 40], &slip).is_empty());
    }
}
