//! What a sweep sends: the commands of each kind of question, and what they cost the server.

use crate::connect::Pack;
use crate::lock::{Contender, companion};
use crate::script::{Args, CHECKPOINT, EXTEND, INVALIDATE, PRUNE, RESTORE};
use crate::strings::Strings;
use crate::sweep::batch::{Batch, Twice, Visit};
use crate::sweep::checkpoint;
use crate::sweep::proof::Proof;
use crate::sweep::records::{self, Record};
use crate::sweep::slip;
use redis::Cmd;
use std::rc::Rc;

/// A question under way. Every one may be asked again when its answer is lost.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Keys of the next page.
    Page { cursor: u64, count: usize },
    /// Idle time, record and number of members of a tag.
    Recall(Rc<Visit>),
    /// Idle time (first) and members of a tag, at most about so many, and likely so many.
    Read { visit: Rc<Visit>, cursor: u64, count: usize, likely: usize },
    /// The memory of a tag that was read as a whole, with so many members.
    Weigh { key: Vec<u8>, members: u64 },
    /// How many entries exist, under each mapping that is not ruled out.
    Look(Batch),
    /// Which entries exist, so many looked for at once.
    Sift(Batch, usize),
    /// For how long entries live.
    Lifetimes(Batch),
    /// Remove references whose entry is absent.
    Prune(Vec<Batch>),
    /// Delete entries of an aged tag, of which so many were there; asked once more, for the answer was lost.
    Invalidate { batch: Batch, live: u64, again: bool },
    /// Whether entries of removed references exist after all.
    Verify(Vec<(Batch, Twice)>),
    /// Put back the references of those that do.
    Restore(Batch),
    /// Whether our reads leave idle times alone, from here on.
    Untouch(bool),
    /// Keep the lock.
    Extend,
    /// Whether a child of the server saves, how busy the server is, whether tags are written to, and what its clock
    /// shows.
    Load,
    /// Keep how far we are, or forget it.
    Checkpoint(Option<Vec<u8>>),
    /// Slips that an earlier sweep left.
    Recover { cursor: u64 },
    /// Cross out slips.
    CrossOut(Vec<Vec<u8>>),
    /// Keep the ages of tags, or forget them.
    Records(Vec<(Vec<u8>, Option<Record>)>),
    /// Records of ages in these buckets, from the first on.
    Tidy { first: u32, buckets: u32, cursor: u64, units: usize },
    /// Forget records of a bucket, by field.
    Forget { bucket: u32, fields: Vec<Vec<u8>> },
    /// Keep the proof of the mapping for later runs.
    Remember { key: Vec<u8>, proof: Vec<u8> },
}

/// How long a proof of the mapping is kept.
const PROOF_TTL_MS: u64 = 30 * 24 * 3600 * 1000;

/// What the commands are made of besides the question itself.
pub(crate) struct Terms<'a> {
    pub pattern: &'a [u8],
    pub proof: &'a Proof,
    pub contender: &'a Contender,
    /// Entries of restored references are deleted.
    pub strict: bool,
}

impl Ask {
    /// Writes its commands; each brings one reply.
    pub fn write(&self, terms: &Terms, out: &mut Pack) {
        match self {
            Self::Page { cursor, count } => scan(*cursor, terms.pattern, *count, out),
            Self::Recall(visit) => {
                idle_time(visit, out);
                recall(visit, terms, out);
                on_key("SCARD", &visit.tag.key, out);
            }
            Self::Read { visit, cursor, count, .. } => read(visit, *cursor, *count, terms, out),
            Self::Weigh { key, .. } => {
                out.write("MEMORY", |cmd| cmd.arg("USAGE").arg(key));
            }
            Self::Look(batch) => terms.proof.open().iter().for_each(|mapping| {
                let mut entries = Strings::default();
                batch.entries(mapping, &mut entries);
                exists(&entries, out);
            }),
            Self::Sift(batch, group) => by_groups("EXISTS", batch, *group, terms, out),
            Self::Lifetimes(batch) => by_groups("PTTL", batch, 1, terms, out),
            Self::Verify(removed) => {
                let mut entries = Strings::default();
                removed.iter().for_each(|(batch, _)| all_entries(batch, terms.proof, &mut entries));
                exists(&entries, out);
            }
            Self::Prune(batches) => PRUNE.pack(&prune(batches, terms), out),
            Self::Invalidate { batch, .. } => INVALIDATE.pack(&invalidate(batch, terms), out),
            Self::Restore(batch) => RESTORE.pack(&restore(batch, terms), out),
            Self::Untouch(on) => {
                out.write("CLIENT", |cmd| cmd.arg("NO-TOUCH").arg(if *on { "ON" } else { "OFF" }))
            }
            Self::Extend => EXTEND.pack(&terms.contender.extend_args().unwrap_or_default(), out),
            Self::Load => {
                ["persistence", "cpu", "stats", "commandstats"].iter().for_each(|section| {
                    out.write("INFO", |cmd| cmd.arg(section));
                });
                out.write("TIME", |cmd| cmd);
            }
            Self::Checkpoint(kept) => CHECKPOINT.pack(&checkpoint(kept.as_deref(), terms), out),
            Self::Records(records) => {
                records.iter().for_each(|(tag, age)| keep_record(tag, *age, terms, out));
            }
            Self::Tidy { first, buckets, cursor, .. } => (*first..*first + buckets).for_each(|n| {
                on_bucket("HSCAN", n, terms, out, |cmd| {
                    cmd.arg(*cursor).arg("COUNT").arg(records::PART)
                });
                let life = records::LIFE.as_secs();
                on_bucket("EXPIRE", n, terms, out, |cmd| cmd.arg(life));
            }),
            Self::Forget { bucket, fields } => {
                on_bucket("HDEL", *bucket, terms, out, |cmd| cmd.arg(fields));
            }
            Self::Recover { cursor } => out
                .write("HSCAN", |cmd| cmd.arg(quarantine(terms)).arg(*cursor).arg("COUNT").arg(8)),
            Self::CrossOut(ids) => {
                out.write("HDEL", |cmd| cmd.arg(quarantine(terms)).arg(ids));
            }
            Self::Remember { key, proof } => {
                out.write("SET", |cmd| cmd.arg(key).arg(proof).arg("PX").arg(PROOF_TTL_MS))
            }
        }
    }

    /// Whether the server would take it for use of a tag.
    pub fn makes_young(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Recall(_) | Self::Prune(_))
    }

    /// Whether it is done even when the sweep is to end: what was removed is verified, what is known is kept.
    pub fn is_owed(&self) -> bool {
        matches!(self, Self::Verify(_) | Self::Restore(_) | Self::CrossOut(_) | Self::Records(_))
    }

    /// Whether what is answered to it decides what becomes of a tag.
    pub fn judges(&self) -> bool {
        let keeps = matches!(self, Self::Remember { .. } | Self::Tidy { .. } | Self::Forget { .. });
        let aside = matches!(self, Self::Untouch(_) | Self::Weigh { .. });
        !keeps && !aside && !self.is_owed() && !self.is_urgent()
    }

    /// Whether it comes before all else: what keeps us, and what is owed.
    pub fn is_urgent(&self) -> bool {
        let keeps = matches!(self, Self::Extend | Self::Load | Self::Checkpoint(_));
        keeps || (self.is_owed() && !matches!(self, Self::Records(_)))
    }

    /// What it works on; of a tag that is to be read, a batch of nothing.
    pub fn into_batches(self) -> Vec<Batch> {
        match self {
            Self::Read { visit, .. } | Self::Recall(visit) => {
                vec![Batch { visit, ..Batch::default() }]
            }
            Self::Look(batch) | Self::Sift(batch, _) => vec![batch],
            Self::Invalidate { batch, .. } => vec![batch],
            Self::Lifetimes(batch) => vec![batch],
            Self::Restore(batch) => vec![batch],
            Self::Prune(batches) => batches,
            Self::Verify(removed) => removed.into_iter().map(|(batch, _)| batch).collect(),
            _ => Vec::new(),
        }
    }

    /// Memory that its names take while it waits: members, and keys of tags that are to be read.
    pub fn size(&self) -> (usize, usize) {
        let all = |batches: &[Batch]| batches.iter().map(Batch::size).sum();
        match self {
            Self::Read { visit, .. } | Self::Recall(visit) => (0, visit.size()),
            Self::Look(batch) | Self::Sift(batch, _) | Self::Lifetimes(batch) => (batch.size(), 0),
            Self::Invalidate { batch, .. } | Self::Restore(batch) => (batch.size(), 0),
            Self::Prune(batches) => (all(batches), 0),
            Self::Verify(removed) => (removed.iter().map(|(batch, _)| batch.size()).sum(), 0),
            _ => (0, 0),
        }
    }

    /// Server time, in units of about half a microsecond.
    pub fn units(&self) -> usize {
        match self {
            Self::Page { count, .. } => 2 + count,
            Self::Recall(_) => 5,
            Self::Untouch(_) | Self::Weigh { .. } => 4,
            Self::Read { likely, .. } => 5 + likely / 3,
            Self::Look(batch) => 2 + weight(batch) * 2 / 3,
            Self::Verify(removed) => 2 + removed.iter().map(|(b, _)| weight(b)).sum::<usize>() / 2,
            Self::Sift(batch, group) => 1 + (weight(batch) + 3 * batch.members.len() / group) / 6,
            Self::Lifetimes(batch) => 2 * weight(batch),
            Self::Prune(batches) => 6 + 3 * batches.len() + weights(batches) / 2,
            Self::Invalidate { batch, .. } | Self::Restore(batch) => 10 + 2 * weight(batch),
            Self::Extend | Self::Remember { .. } | Self::Checkpoint(_) => 10,
            Self::Recover { .. } | Self::CrossOut(_) => 40,
            Self::Records(records) => 4 * records.len(),
            Self::Tidy { units, .. } => *units,
            Self::Forget { fields, .. } => 4 + fields.len(),
            Self::Load => 120,
        }
    }
}

/// Names of all entries of a batch under every mapping, the one in force first.
fn all_entries(batch: &Batch, proof: &Proof, out: &mut Strings) {
    proof.in_order().for_each(|mapping| batch.entries(mapping, out));
}

/// Members, those with long names several times.
fn weight(batch: &Batch) -> usize {
    batch.members.len() + batch.members.bytes() / 200
}

fn weights(batches: &[Batch]) -> usize {
    batches.iter().map(weight).sum()
}

fn scan(cursor: u64, pattern: &[u8], count: usize, out: &mut Pack) {
    out.write("SCAN", |cmd| cmd.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(count));
}

/// Idle time before anything that resets it, then the members. A key of another type answers the
/// last command with an error, which does no harm.
fn read(visit: &Visit, cursor: u64, count: usize, terms: &Terms, out: &mut Pack) {
    if cursor == 0 {
        idle_time(visit, out);
    }
    if cursor == 0 && visit.record.aging {
        recall(visit, terms, out);
    }
    out.write("SSCAN", |cmd| cmd.arg(&visit.tag.key).arg(cursor).arg("COUNT").arg(count));
}

fn on_key(command: &str, key: &[u8], out: &mut Pack) {
    out.write(command, |cmd| cmd.arg(key));
}

fn idle_time(visit: &Visit, out: &mut Pack) {
    out.write("OBJECT", |cmd| cmd.arg("IDLETIME").arg(&visit.tag.key));
}

fn recall(visit: &Visit, terms: &Terms, out: &mut Pack) {
    let (bucket, field) = records::place(&visit.tag.key);
    on_bucket("HGET", bucket, terms, out, |cmd| cmd.arg(&field));
}

fn on_bucket(
    command: &str,
    bucket: u32,
    terms: &Terms,
    out: &mut Pack,
    more: impl FnOnce(&mut Cmd) -> &mut Cmd,
) {
    out.write(command, |cmd| {
        more(cmd.arg(companion(&terms.contender.keys().lock, &format!("records:{bucket}"))))
    });
}

fn keep_record(tag: &[u8], age: Option<Record>, terms: &Terms, out: &mut Pack) {
    let (bucket, field) = records::place(tag);
    let command = if age.is_some() { "HSET" } else { "HDEL" };
    let bytes = age.map(Record::to_bytes);
    on_bucket(command, bucket, terms, out, |cmd| cmd.arg(&field).arg(bytes));
}

fn exists(entries: &Strings, out: &mut Pack) {
    out.write("EXISTS", |cmd| cmd.arg(entries));
}

fn by_groups(command: &str, batch: &Batch, group: usize, terms: &Terms, out: &mut Pack) {
    let mut entries = Strings::default();
    batch.entries(terms.proof.in_force(), &mut entries);
    let mut entries = entries.iter().peekable();
    while entries.peek().is_some() {
        out.write(command, |cmd| entries.by_ref().take(group).fold(cmd, |cmd, e| cmd.arg(e)));
    }
}

fn value<'a>(terms: &'a Terms) -> &'a [u8] {
    terms.contender.lease().map_or(b"", |lease| lease.value.as_slice())
}

fn idle(visit: &Visit) -> String {
    visit.idle.wanted.get().map(|s| s.to_string()).unwrap_or_default()
}

/// Where removals are noted.
fn quarantine(terms: &Terms) -> Vec<u8> {
    companion(&terms.contender.keys().lock, "quarantine")
}

/// Field, text and TTL of the note about these batches.
fn note(args: Args, batches: &[Batch]) -> Args {
    match batches.first().and_then(|batch| batch.slip.as_ref()) {
        Some(slip) => args.arg(&slip.id).arg(slip::write(batches)).number(slip::KEPT_MS),
        None => args.arg("").arg("").number(slip::KEPT_MS),
    }
}

fn checkpoint(kept: Option<&[u8]>, terms: &Terms) -> Args {
    let lock = &terms.contender.keys().lock;
    let args = Args::default().key(lock).key(&companion(lock, "checkpoint")).arg(value(terms));
    args.arg(kept.unwrap_or_default()).number(checkpoint::FRESH.as_millis())
}

fn prune(batches: &[Batch], terms: &Terms) -> Args {
    let asked = batches.first().map(|batch| idle(&batch.visit)).unwrap_or_default();
    let mut args = Args::default()
        .key(&terms.contender.keys().lock)
        .key(&quarantine(terms))
        .arg(value(terms))
        .number(terms.proof.in_order().count())
        .arg(asked)
        .number(terms.proof.in_force().entry_prefix.len());
    args = note(args, batches);
    batches.iter().for_each(|batch| args.keys.push(&batch.visit.tag.key));
    for batch in batches {
        all_entries(batch, terms.proof, &mut args.keys);
        // A tag with live members stays; whether others are gone is looked at.
        let sign = if batch.visit.alive.get() { "-" } else { "" };
        args = args.arg(format!("{sign}{}", batch.members.len()));
    }
    args
}

fn invalidate(batch: &Batch, terms: &Terms) -> Args {
    let lock = &terms.contender.keys().lock;
    let mut args = Args::default().key(lock).key(&batch.visit.tag.key).arg(value(terms));
    args = args.arg(idle(&batch.visit));
    batch.entries(terms.proof.in_force(), &mut args.keys);
    args
}

fn restore(batch: &Batch, terms: &Terms) -> Args {
    let deletes = if terms.strict { value(terms) } else { b"" };
    let lock = &terms.contender.keys().lock;
    let mut args = Args::default().key(&batch.visit.tag.key).key(lock).arg(deletes);
    all_entries(batch, terms.proof, &mut args.keys);
    batch.members.iter().for_each(|member| args.argv.push(member));
    args
}
