//! The connection of a run: rounds out, answers in, and what is done when it breaks.

use crate::clock::Moment;
use crate::connect::{Link, Pack, may_pass};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::{Histogram, companion};
use crate::reply::checked;
use crate::script::{Args, CHECKPOINT, EXTEND, INVALIDATE, PRUNE, RESTORE, RIGHTS};
use crate::sweep::batch::Batch;
use crate::sweep::history;
use crate::sweep::report::Reason;
use crate::sweep::round::{Ask, Terms};
use crate::sweep::run::{LOAD_EVERY, Running};
use redis::{Cmd, Value};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Longest time in which a server may be out of reach, or refuse, while we are to stop.
pub(super) const LAST_TRY: Duration = Duration::from_secs(1);

/// How long a reply is waited for before whoever watches is asked again, and how long at least.
const LOOK_UP: Duration = Duration::from_millis(50);
const LEAST_LOOK: Duration = Duration::from_millis(10);

/// A server that does nothing for so long does not count the time of uses meanwhile.
const STALL: Duration = Duration::from_millis(500);

/// Longest rest between two attempts to reach it.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A round under way.
pub(super) struct Flight {
    /// Each with the number of replies that are due.
    asks: VecDeque<(Ask, usize)>,
    /// How many are due to all of them, and those that came and were not looked at.
    due: usize,
    came: VecDeque<Value>,
    units: usize,
    /// It is nothing but a page.
    page: bool,
    /// Tags read in it.
    pub reads: usize,
    sent: Moment,
    /// Since when nothing is waited for but it.
    awaited: Option<Moment>,
}

/// What is known of the connection and of what is under way on it.
pub(super) struct Wire {
    pub flights: VecDeque<Flight>,
    /// When the last round came back.
    landed: Moment,
    /// How long the next reply was waited for.
    waited: Duration,
    /// Time that was spent with whoever watches since then: no server's.
    pub aside: Duration,
    /// How long rounds kept the server.
    pub rounds: Histogram,
    /// Errors of the server, by their first word.
    pub errors: BTreeMap<String, u64>,
    /// Since when there was no answer, and how many attempts were made.
    pub outage: Option<(Moment, u32)>,
    /// A replica refused something, and no primary has answered since.
    demoted: bool,
    /// The connection is to be made anew.
    pub cut_off: bool,
    /// Which server process it is, if it says so.
    server_id: Option<String>,
    /// When the server was asked how it is, and the bytes that we had sent then.
    pub observed: Moment,
    pub sent: u64,
}

impl Wire {
    pub fn new(server_id: Option<String>, now: Moment) -> Self {
        Self {
            flights: VecDeque::new(),
            landed: now,
            waited: Duration::ZERO,
            aside: Duration::ZERO,
            rounds: Histogram::default(),
            errors: BTreeMap::new(),
            outage: None,
            demoted: false,
            cut_off: false,
            server_id,
            // At once: our facts are from before we waited for the lock.
            observed: now - LOAD_EVERY,
            sent: 0,
        }
    }

    /// Rounds that the server has not answered.
    pub fn under_way(&self) -> usize {
        self.flights.iter().filter(|flight| !flight.has_landed()).count()
    }

    /// What was asked, and of which no answer was followed.
    pub fn asks(&self) -> impl Iterator<Item = &Ask> {
        self.flights.iter().flat_map(|flight| &flight.asks).map(|(ask, _)| ask)
    }
}

impl Flight {
    /// Whether all replies are there.
    fn has_landed(&self) -> bool {
        self.came.len() == self.due
    }

    /// The next question with its replies, if they are there.
    fn next_answer(&mut self) -> Option<(Ask, Vec<Value>)> {
        self.asks.front().filter(|(_, due)| *due <= self.came.len())?;
        let (ask, due) = self.asks.pop_front()?;
        self.due -= due;
        Some((ask, self.came.drain(..due).collect()))
    }
}

impl Running<'_> {
    /// Sets a connection up: scripts, idle times left alone, the bare round trip.
    pub(super) fn prepare(&mut self) -> Result<()> {
        let (asked, needed) = (self.what_is_known(), self.what_is_needed());
        let setup = [asked.as_slice(), &needed].concat();
        let mut told = self.link.hurry(self.patience(), |link| {
            link.persist(|link, deadline| {
                let replies = link.calls(&setup, deadline)?;
                // What may fail for want of a permission comes first; scripts must be known.
                replies
                    .iter()
                    .skip(asked.len())
                    .try_for_each(|r| checked(r.clone()).map(|_| ()))?;
                Ok(replies)
            })
        })?;
        if let Some(Value::Array(refused)) = told.split_off(asked.len()).last() {
            self.may_all_but(refused)?;
        }
        self.take_in(&told);
        self.pace.connected(self.link.round_trip()?);
        Ok(())
    }

    /// What is asked of a server before anything is judged; see [`Running::take_in`].
    fn what_is_known(&self) -> Vec<Cmd> {
        let last_lfu = history::last_lfu(&self.contender.keys().lock);
        let mut asked = vec![self.kept("mapping"), self.kept("checkpoint"), last_lfu];
        if self.untouching {
            // On for the answer, and off at once: see `in_its_mode`.
            let mode = |on: &str| redis::cmd("CLIENT").arg("NO-TOUCH").arg(on).to_owned();
            asked.extend([mode("ON"), mode("OFF")]);
        }
        asked
    }

    /// Scripts, and last the question which commands we may not run.
    fn what_is_needed(&self) -> Vec<Cmd> {
        if self.options.dry_run {
            return Vec::new();
        }
        let scripts = [&PRUNE, &INVALIDATE, &RESTORE, &EXTEND, &CHECKPOINT];
        let mut needed: Vec<Cmd> = scripts.map(|script| script.load()).into();
        let quarantine = companion(&self.contender.keys().lock, "quarantine");
        let asked = Args::default().key(&self.sample);
        let asked = if self.options.durable { asked.key(&quarantine) } else { asked };
        needed.push(RIGHTS.by_body(&asked));
        needed
    }

    fn take_in(&mut self, told: &[Value]) {
        if let Some(Value::BulkString(fingerprint)) = told.first() {
            self.proof.recognise(fingerprint);
        }
        if let Some(Value::BulkString(kept)) = told.get(1) {
            self.go_on_from(kept);
        }
        if let Some(Ok(at)) = told.get(2).map(redis::from_redis_value_ref::<u64>) {
            self.idle.not_before(at);
        }
        self.untouching &= matches!(told.get(3), Some(Value::Okay));
        self.records.aging =
            self.options.max_tag_age.is_some() && !self.untouching && self.idle.runs();
    }

    /// Nothing is begun that could not be undone.
    fn may_all_but(&self, refused: &[Value]) -> Result<()> {
        let names: Vec<String> =
            refused.iter().filter_map(|name| redis::from_redis_value_ref(name).ok()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = names.join(", ");
        Err(Error::new(ErrorKind::Denied, format!("the user may not run {names}, as a sweep must"))
            .key(&self.sample)
            .advice("grant it: what a sweep removes it must be able to put back, or to note"))
    }

    /// Asks for what an earlier run left.
    fn kept(&self, what: &str) -> Cmd {
        let mut cmd = redis::cmd("GET");
        cmd.arg(companion(&self.contender.keys().lock, what));
        cmd
    }

    pub(super) fn launch(&mut self, asks: Vec<Ask>) -> Result<()> {
        let (pattern, strict) = (self.pattern.as_slice(), self.options.strict);
        let terms = Terms { pattern, proof: &self.proof, contender: self.contender, strict };
        let units = asks.iter().map(Ask::units).sum();
        let reads = asks.iter().filter(|ask| matches!(ask, Ask::Read { .. })).count();
        let page = matches!(asks.as_slice(), [Ask::Page { .. }]);
        let mut pack = Pack::default();
        let mut due = VecDeque::with_capacity(asks.len());
        for ask in in_its_mode(asks, self.untouching) {
            let before = pack.commands();
            ask.write(&terms, &mut pack);
            due.push_back((ask, pack.commands() - before));
        }
        if self.wire.flights.is_empty() {
            self.wire.aside = Duration::ZERO;
        }
        self.wire.flights.push_back(Flight {
            due: due.iter().map(|(_, replies)| replies).sum(),
            asks: due,
            came: VecDeque::new(),
            units,
            page,
            reads,
            sent: Moment::now(),
            awaited: None,
        });
        let deadline = self.link.deadline();
        self.link.send(&pack, deadline)
    }

    /// Reads the oldest round; false when its answers are not all there after a moment, in which whoever watches
    /// may want something else.
    pub(super) fn land(&mut self) -> Result<bool> {
        let Some(flight) = self.wire.flights.front_mut() else { return Ok(false) };
        if flight.has_landed() {
            return Ok(true); // and what came of it was not followed to its end
        }
        let (units, page, sent) = (flight.units, flight.page, flight.sent);
        let awaited = *flight.awaited.get_or_insert_with(Moment::now);
        let mut deadline = awaited + self.link.config().timeout;
        if let Some(since) = self.ending.since.filter(|_| self.ending.called_off) {
            deadline = deadline.min(awaited.max(since) + LAST_TRY);
        }
        match self.read_flight(deadline) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(fault) => {
                // What is answered is not asked again.
                self.follow_landed()?;
                return Err(fault);
            }
        }
        let now = Moment::now();
        // The server was ours from when it had the round, or was done with the one before.
        let from = self.wire.landed.max(sent + self.pace.bare());
        let took = now.since(from).saturating_sub(std::mem::take(&mut self.wire.aside));
        self.wire.rounds.record(took);
        match page {
            true => self.pace.observe_page(units, took, now),
            false => self.pace.observe(units, took, now),
        }
        self.wire.landed = now;
        Ok(true)
    }

    /// Whether all replies to the oldest round came.
    fn read_flight(&mut self, deadline: Moment) -> Result<bool> {
        while let Some(flight) = self.wire.flights.front_mut()
            && !flight.has_landed()
        {
            let (now, over) = (Moment::now(), deadline.passed());
            // However late it is, what is there already is read.
            let until = deadline.min(now + LOOK_UP).max(now + LEAST_LOOK);
            let reply = self.link.listen(until)?;
            self.wire.waited += Moment::now().since(now);
            match reply {
                Some(reply) => {
                    flight.came.push_back(reply);
                    if std::mem::take(&mut self.wire.waited) >= STALL {
                        self.idle.stood_still(Moment::now());
                    }
                }
                None if over => return self.link.receive(now).map(|_| false),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Follows the answers to the oldest round, as far as they came.
    pub(super) fn follow_landed(&mut self) -> Result<()> {
        while let Some(flight) = self.wire.flights.front_mut()
            && let Some((ask, replies)) = flight.next_answer()
        {
            let sent = flight.sent;
            self.follow(ask, replies, sent)?;
        }
        if self.wire.flights.front().is_some_and(|flight| flight.asks.is_empty()) {
            self.wire.flights.pop_front();
        }
        Ok(())
    }

    /// After a fault that may pass: what was not answered is asked again. What may have been removed
    /// meanwhile is verified like everything removed. A server out of reach is waited for as long as
    /// the lock lives.
    pub(super) fn endure(&mut self, fault: Error) -> Result<()> {
        let code = fault.code().unwrap_or("connection").to_owned();
        *self.wire.errors.entry(code).or_default() += 1;
        let now = Moment::now();
        let (since, tries) = self.wire.outage.unwrap_or((now, 0));
        let patience = if self.ending.called_off { LAST_TRY } else { self.options.lock_ttl };
        // A server that is full is one out of reach: there was room for us.
        self.wire.demoted |= fault.code() == Some("READONLY");
        let passes = may_pass(&fault) || fault.code() == Some("MAXCLIENTS");
        if !passes || (tries > 0 && now.since(since) >= patience) {
            return Err(if tries > 0 { fault.tried(tries + 1, now.since(since)) } else { fault });
        }
        self.wire.outage = Some((since, tries + 1));
        self.lose_flights();
        // The first attempt at once: most often it was the connection alone.
        let pause = Duration::from_millis(10) * tries.min(100);
        std::thread::sleep(pause.min(PAUSE_MAX));
        Ok(())
    }

    /// The connection goes, and what was not answered is to be asked again.
    pub(super) fn lose_flights(&mut self) {
        self.wire.cut_off = true;
        self.link.drop_connection();
        let lost: Vec<Ask> = self
            .wire
            .flights
            .drain(..)
            .flat_map(|flight| flight.asks)
            .map(|(ask, _)| ask)
            .collect();
        for ask in lost.into_iter().rev() {
            self.ask_again(ask);
        }
    }

    /// A server that was restarted, or another one in its place, is not held to what the old one
    /// promised: neither our lock nor our cursor means anything there.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        self.expect_a_primary()?;
        self.prepare()?;
        self.idle.stood_still(Moment::now());
        let (known, found) = (self.wire.server_id.as_ref(), self.link.server_id()?);
        if known.is_some() && found.is_some() && known != found.as_ref() {
            self.warn("the server was restarted or replaced during the sweep");
            // If it kept its data, our lock is there, too, and is given back in the end.
            self.stop(Reason::Lost);
        }
        Ok(())
    }

    /// Of what the primary has a replica knows the past only.
    fn expect_a_primary(&mut self) -> Result<()> {
        let is_replica = self.link.hurry(self.patience(), Link::leads_to_a_replica)?;
        let kind = match is_replica {
            Some(true) => ErrorKind::Unreachable,
            // Whoever refused as a replica does, and may not be asked, is one.
            None if self.wire.demoted => ErrorKind::Refused,
            _ => {
                self.wire.demoted = false;
                return Ok(());
            }
        };
        let label = self.link.config().label();
        Err(Error::new(kind, "a replica answers there now").server(&label))
    }

    /// How long the server is waited for in one call.
    fn patience(&self) -> Duration {
        if self.ending.called_off { LAST_TRY } else { Duration::MAX }
    }

    pub(super) fn ask_again(&mut self, ask: Ask) {
        match ask {
            Ask::Page { .. } => self.walk.again(),
            Ask::Remember { .. } | Ask::Untouch(_) => {}
            // Their answer is what shows that the server is there again, where nothing else is asked.
            ask @ (Ask::Extend | Ask::Load) => self.queue.ask_first(ask),
            ask @ (Ask::Records(_) | Ask::Tidy { .. } | Ask::Forget { .. }) => self.queue.ask(ask),
            ask @ (Ask::Recover { .. } | Ask::CrossOut(_) | Ask::Checkpoint(_)) => {
                self.queue.ask_first(ask);
            }
            Ask::Prune(batches) => {
                for batch in batches {
                    self.may_be_gone(batch.clone());
                    match self.ending.reason {
                        None => self.queue.condemned.push_front(Batch { asked: true, ..batch }),
                        Some(_) => self.leave(batch),
                    }
                }
            }
            Ask::Invalidate { batch, live, .. } if !self.is_ending() => {
                self.queue.ask_first(Ask::Invalidate { batch, live, again: true });
            }
            ask @ (Ask::Verify(_) | Ask::Restore(_)) => self.queue.ask_first(ask),
            ask if !self.is_ending() => self.queue.ask_first(ask),
            ask => ask.into_batches().into_iter().for_each(|batch| self.leave(batch)),
        }
    }
}

/// The questions of a round, in NO-TOUCH mode those that would make tags look used, and nothing else: a
/// server whose client in that mode wakes another one that blocks crashes (Redis 8.0.2, Valkey 8.1.1),
/// which a release, a deleted entry or an expired key on the way of SCAN may do. So no connection is ever
/// left in that mode.
fn in_its_mode(asks: Vec<Ask>, untouching: bool) -> Vec<Ask> {
    let mut round = Vec::with_capacity(asks.len() + 2);
    let mut mode = false;
    for ask in asks {
        let wanted = untouching && ask.makes_young();
        if wanted != mode {
            round.push(Ask::Untouch(wanted));
            mode = wanted;
        }
        round.push(ask);
    }
    round.extend(mode.then_some(Ask::Untouch(false)));
    round
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::batch::{Batch, Visit};
    use std::rc::Rc;

    fn modes(asks: Vec<Ask>, untouching: bool) -> String {
        let letter = |ask: &Ask| match ask {
            Ask::Untouch(true) => '(',
            Ask::Untouch(false) => ')',
            ask if ask.makes_young() => 'y',
            _ => 'n',
        };
        in_its_mode(asks, untouching).iter().map(letter).collect()
    }

    #[test]
    fn nothing_else_is_sent_in_no_touch_mode_and_no_round_ends_in_it() {
        let asks = || {
            let visit = Rc::new(Visit::default());
            let batch = || Batch { visit: Rc::clone(&visit), ..Batch::default() };
            let read = || Ask::Read { visit: Rc::clone(&visit), cursor: 0, count: 1, likely: 1 };
            let page = Ask::Page { cursor: 0, count: 1 };
            vec![read(), Ask::Look(batch()), read(), Ask::Prune(vec![batch()]), page, read()]
        };
        assert_eq!(modes(asks(), true), "(y)n(yy)n(y)");
        assert_eq!(modes(asks(), false), "ynyyny");
        let invalidate = Ask::Invalidate { batch: Batch::default(), live: 1, again: false };
        let others = vec![Ask::Load, Ask::Extend, invalidate];
        assert_eq!(modes(others, true), "nnn");
    }
}
