//! Tags, from the page that named them to the members that are to be looked for.

use crate::clock::Moment;
use crate::error::{ErrorKind, Result};
use crate::reply::{checked, understood};
use crate::strings::Strings;
use crate::sweep::batch::{BATCH_BYTES, Batch, OnRecord, Tag, Tally, Visit};
use crate::sweep::judge::{self, Evidence, idle_needed};
use crate::sweep::options::OnAged;
use crate::sweep::records::Record;
use crate::sweep::round::Ask;
use crate::sweep::run::answers::{first, last, number};
use crate::sweep::run::ledger::grow;
use crate::sweep::run::{Later, Running};
use crate::topology::LONGEST_IDLE;
use redis::{ServerError, Value};
use std::rc::Rc;
use std::time::Duration;

/// What the memory of a tag that waits is divided into takes besides.
const SEPARATE: usize = 64;

/// The first so many tags are weighed, and then one in so many.
const WEIGHED: u64 = 64;

/// What a member of a large set takes besides its name (bytes): 50 in Redis 7 and 8, 22 in Valkey 8.1, so something in
/// between. Such sets are not asked about: while a server moves one to another table, MEMORY USAGE counts through all
/// that is empty already (2.5 ms for 10 million members).
const MEMBER: u64 = 36;

impl Running<'_> {
    pub(super) fn paged(&mut self, count: usize, replies: Vec<Value>) -> Result<()> {
        let reply = checked(first(replies))?;
        let (cursor, mut keys): (u64, Vec<Vec<u8>>) = understood(reply)?;
        self.queue.memory.paged(keys.iter().map(Vec::len).sum(), count);
        let now = self.server_time();
        let page = self.walk.answered(cursor, count, &mut keys, now);
        self.report.pages += 1;
        let again = self.second_pass;
        for key in keys {
            let page = Rc::clone(&page);
            self.visit(Tag { key, page, again, looked: again, ..Tag::default() }.into());
        }
        Ok(())
    }

    pub(super) fn visit(&mut self, visit: Visit) {
        if self.is_ending() {
            return self.give_up(&visit.tag.page);
        }
        self.figures.visits += 1;
        let weighed = self.figures.visits <= WEIGHED || self.figures.visits.is_multiple_of(WEIGHED);
        let record = OnRecord { aging: self.records.aging, ..visit.record };
        let visit = Rc::new(Visit { weighed, record, ..visit });
        if self.options.remember.is_some() && !visit.tag.again {
            return self.queue.ask(Ask::Recall(visit));
        }
        let first = self.next_read(visit, 0);
        self.queue.ask(first);
    }

    /// Reads a tag, or goes on with it.
    fn next_read(&self, visit: Rc<Visit>, cursor: u64) -> Ask {
        let count = self.queue.memory.members().min(2 * self.pace.members());
        let likely = if cursor == 0 { self.queue.memory.likely() } else { count };
        Ask::Read { visit, cursor, count, likely }
    }

    /// Passes a tag over, if an earlier sweep knew that nothing in it can be stale.
    pub(super) fn recalled(&mut self, visit: Rc<Visit>, replies: &[Value], sent: Moment) {
        let idle = self.idle_time(replies);
        let kept = self.record(replies.get(1));
        let references = replies.get(2).and_then(number).unwrap_or(0);
        let prefix = &self.proof.in_force().entry_prefix;
        let warrant = kept.and_then(|record| record.warrant);
        let now = self.server_time();
        let used = |record: Record| idle.is_none_or(|idle| record.is_used_since(idle, now));
        let changed = self.untouching && kept.is_some_and(used);
        let holds = !changed && warrant.is_some_and(|w| w.holds(now, references, prefix));
        visit.touch();
        visit.record.known.set(kept);
        visit.idle.told.set(idle);
        visit.idle.asked.set(Some(sent));
        let age = if holds { self.age(&visit, idle) } else { None };
        let invalidates = self.options.on_aged == OnAged::Invalidate
            && judge::aged(age, self.options.max_tag_age);
        if !holds || invalidates {
            visit.record.new.set(None);
            let first = self.next_read(visit, 0);
            return self.queue.ask(first);
        }
        self.first_seen(&visit, age);
        self.report.tags_unchanged += 1;
        grow(&visit.tag.page.unchanged, 1);
        if let Some(record) = visit.record.new.get() {
            visit.record.new.set(Some(Record { warrant, ..record }));
        }
        self.let_go(visit);
    }

    pub(super) fn read(
        &mut self,
        visit: Rc<Visit>,
        cursor: u64,
        mut replies: Vec<Value>,
        sent: Moment,
    ) -> Result<()> {
        let (next, mut members): (u64, Vec<Vec<u8>>) = match checked(last(&mut replies)) {
            Err(e) if e.kind() == ErrorKind::WrongType => {
                self.is_no_tag(visit);
                return Ok(());
            }
            other => match other.and_then(understood) {
                Ok(answer) => answer,
                Err(e) => {
                    self.give_up(&visit.tag.page);
                    return Err(e.key(&visit.tag.key));
                }
            },
        };
        visit.touch();
        if visit.reread.get() {
            self.let_go(visit);
            return Ok(());
        }
        self.queue.memory.read(members.iter().map(Vec::len).sum(), members.len());
        visit.seam.borrow_mut().join(&mut members, next != 0);
        if cursor == 0 {
            let is_empty = members.is_empty() && next == 0;
            self.queue.memory.opened(members.len());
            if let Evidence::Young(span) = self.opened(&visit, is_empty, &replies, sent) {
                match self.is_ending() {
                    true => self.put_off(visit),
                    false => self.read_later(&visit, span),
                }
                return Ok(());
            }
        }
        self.look_for(visit, &members, next);
        Ok(())
    }

    /// Takes in what was told of a tag with its first members: what its idle time proves.
    fn opened(
        &mut self,
        visit: &Visit,
        is_empty: bool,
        replies: &[Value],
        sent: Moment,
    ) -> Evidence {
        let idle = self.told_idle(visit, replies, sent);
        if !is_empty {
            let age = self.age(visit, idle);
            self.first_seen(visit, age);
        }
        self.evidence(visit, idle)
    }

    /// The idle time that comes first among the replies about a tag.
    fn idle_time(&mut self, replies: &[Value]) -> Option<u64> {
        let reply = replies.first()?;
        if let Value::ServerError(e) = reply {
            self.tells_no_idle_time(e);
        }
        let told = number(reply)?;
        let idle = self.idle.told(told, self.server_time());
        if idle.is_none() && self.idle.runs() {
            self.warn(match told > LONGEST_IDLE {
                true => "idle times above 180 days are none (they may be that old, or the server's clock was set back): \
                         such tags have no age",
                false => "idle times from before the LFU policy was given up are none: such tags have no age",
            });
        }
        idle
    }

    fn tells_no_idle_time(&mut self, e: &ServerError) {
        if e.details().is_some_and(|text| text.contains("LFU")) {
            self.idle.ends(self.server_time());
        } else {
            self.warn(&format!(
                "idle times cannot be asked for ({}): no tag counts as aged",
                e.code()
            ));
        }
    }

    /// What is on record of a tag, among the replies about it.
    fn record(&mut self, reply: Option<&Value>) -> Option<Record> {
        match reply? {
            Value::BulkString(bytes) => Record::read(bytes),
            Value::ServerError(e) => {
                let e = e.code();
                self.warn(&format!("the records of earlier sweeps cannot be read ({e})"));
                None
            }
            _ => None,
        }
    }

    /// A key under the pattern that holds something else.
    fn is_no_tag(&mut self, visit: Rc<Visit>) {
        if !visit.tag.again {
            self.report.tags_skipped += 1;
            grow(&visit.tag.page.skipped, 1);
        }
        self.let_go(visit);
    }

    /// Takes in what was told of a tag before its members: its idle time and its record.
    fn told_idle(&mut self, visit: &Visit, replies: &[Value], sent: Moment) -> Option<u64> {
        if visit.idle.told.get().is_none() {
            visit.idle.asked.set(Some(sent));
        }
        let idle = visit.idle.told.get().or_else(|| self.idle_time(replies));
        visit.idle.told.set(idle);
        if visit.record.aging && visit.record.known.get().is_none() {
            visit.record.known.set(self.record(replies.get(1)));
        }
        idle
    }

    /// Looks for the entries of some members, and reads the next ones of their tag. What was begun comes
    /// before what is new: the idle time that we go by gets old.
    fn look_for(&mut self, visit: Rc<Visit>, members: &[Vec<u8>], next: u64) {
        let begun = visit.partial.replace(next != 0);
        if next != 0 && self.is_ending() {
            self.give_up(&visit.tag.page);
        } else if next != 0 {
            let on = self.next_read(Rc::clone(&visit), next);
            self.queue.ask_first(on);
        }
        for members in bites(members, self.pace.members()) {
            self.queue.ask_first(Ask::Look(Batch::of(&visit, members)));
        }
        if visit.weighed {
            self.weigh(&visit.tag.key, members, !begun && next == 0);
        }
        self.let_go(visit);
    }

    /// Asks what a tag takes that was read as a `whole`; of one that is larger, takes it for what its members are.
    fn weigh(&mut self, key: &[u8], members: &[Vec<u8>], whole: bool) {
        let count = members.len() as u64;
        if whole && count > 0 {
            return self.queue.ask_first(Ask::Weigh { key: key.to_vec(), members: count });
        }
        let names: usize = members.iter().map(Vec::len).sum();
        self.figures.weigh(names as u64 + MEMBER * count, count);
    }

    /// How long the application has left a tag alone: its idle time, or what is on record.
    fn age(&self, visit: &Visit, idle: Option<u64>) -> Option<u64> {
        if !visit.record.aging {
            return idle;
        }
        let now = self.server_time();
        let record = Record::observe(visit.record.known.get(), idle?, now);
        visit.record.new.set(Some(record));
        Some(record.age(now))
    }

    fn read_later(&mut self, visit: &Visit, span: Duration) {
        let tag = Tag { again: true, was_aged: visit.aged.get(), ..visit.tag.clone() };
        let size = tag.key.capacity() + size_of::<Tally>() + SEPARATE;
        let known = visit.record.new.get();
        self.queue.waiting.put(Later::Tag(tag, known), size, Moment::now() + span);
        // What is known of it is written now: whoever waits may be ended, and we have touched it.
        if let Some(record) = known.filter(|_| self.records.aging && !self.options.dry_run) {
            self.records.due.push((visit.tag.key.clone(), Some(record)));
        }
    }

    /// Reads a tag anew, once, whatever was found of it so far; what was removed stays removed, and counts as
    /// looked at: nobody sees it again.
    pub(super) fn read_again(&mut self, visit: Rc<Visit>, span: Duration) {
        if visit.reread.replace(true) {
            return self.let_go(visit);
        }
        let again = visit.checked.get().saturating_sub(visit.removed.get());
        let counted = if visit.tag.looked { 0 } else { again };
        self.count_looks(&visit.tag.page, -(counted as i64));
        self.read_later(&visit, span);
        self.let_go(visit);
    }

    fn first_seen(&mut self, visit: &Visit, idle: Option<u64>) {
        visit.aged.set(judge::aged(idle, self.options.max_tag_age));
        if !visit.tag.again {
            self.report.tags_seen += 1;
            grow(&visit.tag.page.seen, 1);
        }
        if !visit.tag.looked {
            let (before, now) = (u64::from(visit.tag.was_aged), u64::from(visit.aged.get()));
            self.report.tags_aged = self.report.tags_aged + now - before;
            visit.tag.page.aged.set(visit.tag.page.aged.get() + now - before);
        }
        if !self.idle.runs() && self.options.max_tag_age.is_some() {
            self.warn("the server keeps no idle times (LFU or LRM policy): no tag counts as aged");
        }
    }

    /// Judges a tag's idle time. A tag that is young twice, or whose idle time means nothing, goes
    /// the way of two looks. A dry run takes the grace for granted.
    fn evidence(&mut self, visit: &Visit, idle: Option<u64>) -> Evidence {
        let grace = self.options.grace;
        let needed = idle_needed(grace);
        let trusted = self.idle.trusted(Duration::from_secs(needed), Moment::now());
        let mut evidence = judge::evidence(idle, grace, trusted, !self.untouching);
        if self.options.dry_run {
            evidence = Evidence::Settled;
        }
        if visit.tag.again && matches!(evidence, Evidence::Young(_)) {
            evidence = Evidence::Unclear;
        }
        visit.idle.unclear.set(evidence == Evidence::Unclear);
        let settled = evidence == Evidence::Settled && !grace.is_zero();
        let age = self.options.max_tag_age.filter(|_| visit.aged.get()).map(|age| age.as_secs());
        // Whatever else its idle time proves, an aged tag that is used meanwhile is none any more.
        let wanted = settled.then_some(needed).max(age);
        visit.idle.wanted.set(wanted.filter(|_| self.untouching));
        evidence
    }
}

/// Members in batches that one command takes, by number and by length.
fn bites(members: &[Vec<u8>], most: usize) -> Vec<Strings> {
    let mut bites: Vec<Strings> = Vec::new();
    for member in members {
        match bites.last_mut() {
            Some(bite) if bite.len() < most && bite.bytes() < BATCH_BYTES => bite.push(member),
            _ => bites.push(std::iter::once(member.as_slice()).collect()),
        }
    }
    bites
}
