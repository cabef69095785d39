//! A contender for one lock: its terms, and the lease while there is one. Without I/O: requests come
//! out, answers and the time go in.
//!
//! How a lease ends on this side, and what comes of it:
//!
//! | | the server is told | counted | the lease |
//! |---|---|---|---|
//! | `release`, `give_back` | by the request that comes out | its hold, and a loss if one is known | is gone |
//! | `lose` | no | its hold and the loss | is gone |
//! | `forget` | no | its hold, and a loss if one is known | is gone |
//! | `outlive` | no | not yet | is there, and lost |
//! | `hush` | no | no | is there; nobody renews it or hears of its loss |
//! | `inherit` | no | no | was the parent's |

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::Result;
use crate::lock::attempt::Manner;
use crate::lock::lease::{Lease, transit, ttl_ms, whoami};
use crate::lock::options::Options;
use crate::lock::protocol::{Answer, Keys, MEMORY_MS, RUNS, Request};
use crate::lock::pulse::Pulse;
use crate::lock::stats::{LossReason, Stats};
use crate::lock::ttl::{self, PARTS};
use crate::script::Args;
use redis::{Cmd, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Fields of spans that are kept until they can be told.
const SPANS: usize = 32;

/// How often statistics travel to the server, with a release.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A contender for one lock.
#[derive(Debug)]
pub struct Contender {
    keys: Keys,
    options: Options,
    /// In force for the next lease: fixed, or learned.
    pub(crate) ttl: Duration,
    lease: Option<(Lease, Arc<Pulse>)>,
    /// The lease is somebody else's grant, of which the server has told nothing yet.
    restored: bool,
    /// When it was granted is not known: it was restored.
    undated: bool,
    /// The process that acquired. A forked child holds a copy of the lease, but not the lease.
    pid: u32,
    /// Since this contender was made; and of that what the server was not told yet.
    total: Stats,
    untold: Stats,
    /// Spans that the server was not told of, by the field in which it counts them.
    spans: BTreeMap<String, u64>,
    /// The last grant, as it is to be kept among the runs.
    untold_run: Option<String>,
    told: Option<Moment>,
    last_loss: Option<LossReason>,
    /// The owner token of an acquisition of which nobody knows what it came to, and whose it was.
    unsettled: Option<(String, u32)>,
}

impl Contender {
    /// For the lock `name` (bytes), under the prefix of `link`.
    pub(crate) fn new(link: &Link, name: &[u8], options: Options) -> Result<Self> {
        Self::with_keys(Keys::new(&link.config().prefix, name)?, options)
    }

    /// For a lock of these keys.
    pub fn with_keys(keys: Keys, options: Options) -> Result<Self> {
        options.check()?;
        let ttl = options.ttl.initial();
        let (total, untold) = (Stats::default(), Stats::default());
        Ok(Self {
            keys,
            options,
            ttl,
            lease: None,
            restored: false,
            undated: false,
            pid: std::process::id(),
            total,
            untold,
            spans: BTreeMap::new(),
            untold_run: None,
            told: None,
            last_loss: None,
            unsettled: None,
        })
    }

    /// The keys on the server.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How it contends.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How the next attempt is made, with this wait budget.
    pub fn manner(&self, budget: Duration) -> Manner {
        let (mode, record) = (self.options.wait_mode, self.options.record);
        let ttl = self.options.max_hold.map_or(self.ttl, |most| self.ttl.min(most));
        Manner { ttl, budget, mode, record }
    }

    /// The lease and what is known of it, unless it belongs to the process that we were forked from.
    fn own(&self) -> Option<&(Lease, Arc<Pulse>)> {
        self.lease.as_ref().filter(|_| self.pid == std::process::id())
    }

    /// The lease.
    pub fn lease(&self) -> Option<&Lease> {
        self.own().map(|(lease, _)| lease)
    }

    /// What is known of the lease.
    pub fn pulse(&self) -> Option<&Arc<Pulse>> {
        self.own().map(|(_, pulse)| pulse)
    }

    /// Whether and why the lease is known to be lost, be it another process' lease.
    pub fn known_loss(&self) -> Option<LossReason> {
        self.lease.as_ref().and_then(|(_, pulse)| pulse.lost())
    }

    /// Until when the lease may be acted upon.
    pub fn safe_until(&self) -> Option<Moment> {
        let until = self.pulse().filter(|pulse| pulse.lost().is_none())?.safe_until();
        Some(self.end_of_hold().map_or(until, |end| until.min(end)))
    }

    /// Whether the lease may be acted upon at that moment, by our own clock.
    pub fn is_held(&self, now: Moment) -> bool {
        self.safe_until().is_some_and(|until| now < until)
    }

    /// In a forked child: what was not told yet is the parent's to tell.
    fn inherit(&mut self) {
        if self.pid != std::process::id() {
            (self.untold, self.told, self.untold_run) = (Stats::default(), None, None);
            self.spans.clear();
            self.lease = None;
            self.pid = std::process::id();
        }
    }

    /// Takes a lease in, for which we waited so long.
    pub fn granted(&mut self, lease: Lease, ttl: Duration, waited: Duration) -> &Arc<Pulse> {
        self.inherit();
        (self.pid, self.last_loss) = (std::process::id(), None);
        (self.restored, self.undated) = (false, false);
        for stats in [&mut self.total, &mut self.untold] {
            stats.acquired += 1;
            stats.waits.record(waited);
            stats.ttl = ttl;
        }
        let pulse = Arc::new(Pulse::new(lease.begun, ttl));
        &self.lease.insert((lease, pulse)).1
    }

    /// What was granted follows a grant that was never given back. The server has counted that itself.
    pub fn took_over(&mut self) {
        self.total.takeovers += 1;
    }

    /// Takes an owner's value in, of whose lease nothing else is known yet.
    pub fn restored(&mut self, lease: Lease) {
        (self.pid, self.restored, self.undated) = (std::process::id(), true, true);
        let pulse = Arc::new(Pulse::restored(lease.begun));
        self.lease = Some((lease, pulse));
    }

    /// Whether nothing is known of the lease yet but its owner.
    pub fn is_restored(&self) -> bool {
        self.restored && self.lease().is_some()
    }

    /// Whether it is not known when the lease was granted.
    pub fn is_undated(&self) -> bool {
        self.undated && self.lease().is_some()
    }

    /// Something is known of the lease now; true when that is news.
    pub fn take_restored(&mut self) -> bool {
        std::mem::take(&mut self.restored)
    }

    /// Takes in the server's time: how old the lease is shows in its fence, which is no later.
    pub fn date(&mut self, now: Duration) {
        if let Some((lease, _)) = &mut self.lease {
            let age = now.saturating_sub(Duration::from_micros(lease.fence));
            lease.begun = Moment::now() - age;
            self.undated = false;
        }
    }

    /// Counts what an attempt without a lease came to.
    pub fn not_granted(&mut self, waited: bool) {
        self.inherit();
        for stats in [&mut self.total, &mut self.untold] {
            *(if waited { &mut stats.timeouts } else { &mut stats.held }) += 1;
        }
    }

    /// Counts an attempt that failed, or of which nobody knows how it ended.
    pub fn failed(&mut self, unknown: bool) {
        self.inherit();
        for stats in [&mut self.total, &mut self.untold] {
            *(if unknown { &mut stats.unknown } else { &mut stats.errors }) += 1;
        }
    }

    /// Nobody knows what an acquisition with that owner token came to: the lock may be ours.
    pub fn unsettle(&mut self, token: String) {
        self.unsettled = Some((token, std::process::id()));
    }

    /// It is known now, or matters no more.
    pub fn settle(&mut self) {
        self.unsettled = None;
    }

    /// The owner token with which we may have the lock without knowing it.
    pub fn unsettled(&self) -> Option<String> {
        let (token, pid) = self.unsettled.as_ref()?;
        (*pid == std::process::id()).then(|| token.clone())
    }

    /// Gives up what was granted to that owner token, if this value of the lock is it.
    pub(crate) fn give_up_unheard(&self, value: Vec<u8>) -> Option<Request> {
        let lease =
            Lease::new(value, Moment::now()).filter(|lease| lease.token() == self.unsettled())?;
        let (transit, ttl) = (transit(&lease.transit_token()), self.manner(Duration::ZERO).ttl);
        Some(Request::hand_on(lease.value, lease.fence, ttl, transit))
    }

    /// When a lease that began then must end, however often it is extended.
    pub fn end_of_hold(&self) -> Option<Moment> {
        let lease = self.lease()?;
        self.options.max_hold.map(|most| lease.begun + most)
    }

    /// Whether it is held for as long as it may be.
    pub fn is_held_too_long(&self, now: Moment) -> bool {
        self.end_of_hold().is_some_and(|end| end <= now)
    }

    /// More time for the lease: `None` its usual TTL without shortening it, `Some` exactly that; in either
    /// case exactly what it may still be held for, if that is less. No request without a lease, or when it
    /// has been held for as long as it may be.
    pub fn extend(&self, wanted: Option<Duration>, now: Moment) -> Result<Option<Request>> {
        let ttl = wanted.unwrap_or(self.ttl);
        ttl_ms(ttl)?;
        let Some(lease) = self.lease() else { return Ok(None) };
        let left = self.end_of_hold().map(|end| end.since(now)).filter(|left| *left < ttl);
        let (value, exact) = (lease.value.clone(), wanted.is_some() || left.is_some());
        let ttl = left.unwrap_or(ttl);
        let note = exact || self.pulse().is_some_and(|pulse| pulse.wants_note());
        Ok(ttl_ms(ttl).is_ok().then_some(Request::Extend { value, ttl, exact, note }))
    }

    /// What the lease has left: asks without changing it.
    pub fn verify(&self) -> Option<Request> {
        let (value, ttl) = (self.lease()?.value.clone(), Duration::from_millis(1));
        Some(Request::Extend { value, ttl, exact: false, note: false })
    }

    /// The arguments of an extend, for a sweep to send among other commands.
    pub(crate) fn extend_args(&self) -> Option<Args> {
        let request = self.extend(None, Moment::now()).ok()??;
        Some(request.script(&self.keys).1)
    }

    /// Takes in the reply to a command of [`Contender::extend_args`].
    pub(crate) fn extend_replied(&mut self, reply: &Value, sent: Moment) -> Result<bool> {
        let (value, ttl) = (Vec::new(), self.ttl);
        let answer = Request::Extend { value, ttl, exact: false, note: false }.read(reply)?;
        Ok(self.extended(&answer, sent, false))
    }

    /// Takes in the answer to an extend that was sent then; false when the lease is lost.
    pub fn extended(&mut self, answer: &Answer, sent: Moment, exact: bool) -> bool {
        match (answer, self.pulse()) {
            (Answer::Extended(left), Some(pulse)) if exact => {
                pulse.set(sent, *left);
                true
            }
            (Answer::Extended(left), Some(pulse)) => {
                pulse.confirm(sent, *left, pulse.version());
                true
            }
            (Answer::NotOurs(somebody), _) => {
                self.lose(if *somebody { LossReason::Stolen } else { LossReason::Expired });
                false
            }
            _ => false,
        }
    }

    /// The lease is lost; true when that is news.
    pub fn lose(&mut self, reason: LossReason) -> bool {
        let news = self.pulse().is_some_and(|pulse| pulse.lose(reason));
        self.forget();
        news
    }

    /// The lease is about to be given up: it is not renewed any more, and nobody is told of its loss. To be
    /// called before the link is taken, for who is told right now may be waiting for that.
    pub(crate) fn hush(&self) {
        if let Some(pulse) = self.pulse() {
            pulse.end();
        }
    }

    /// By our own clock the lease is over: it may not be acted upon any more. Why, when that is news. Of another's
    /// grant we know nothing, and give it up.
    pub fn outlive(&mut self, now: Moment) -> Option<LossReason> {
        let over = match self.is_held_too_long(now) {
            true => LossReason::MaxHold,
            false => LossReason::Expired,
        };
        match self.pulse() {
            Some(pulse) if !self.restored => pulse.lose(over).then_some(over),
            _ => {
                self.forget();
                None
            }
        }
    }

    /// Counts what became of the lease, and gives it up on this side.
    pub fn forget(&mut self) {
        if let Some((lease, pulse)) = self.lease.take().filter(|_| self.pid == std::process::id()) {
            self.account(&lease, &pulse, Moment::now());
        }
    }

    /// Takes what became of a lease into the statistics.
    fn account(&mut self, lease: &Lease, pulse: &Pulse, now: Moment) {
        // Who tells of a loss knows better why it is one.
        pulse.end();
        if self.restored {
            // It never was ours, as far as anybody knows.
            self.last_loss = pulse.lost();
            return;
        }
        let (renewed, failed) = pulse.take_counts();
        let gap = pulse.longest_gap(self.renewed_until(lease, now));
        for stats in [&mut self.total, &mut self.untold] {
            stats.renewed += renewed;
            stats.renew_failed += failed;
            stats.holds.record(now.since(lease.begun));
            if renewed > 0 {
                stats.gaps.record(gap);
            }
        }
        if let Some(reason) = pulse.lost() {
            self.count_loss(reason);
        }
    }

    /// Until when it was to be renewed: what is held for too long is not, and none of that came late.
    fn renewed_until(&self, lease: &Lease, now: Moment) -> Moment {
        self.options.max_hold.map_or(now, |most| now.min(lease.begun + most))
    }

    /// The end of the lease, and what the server is to be told; no request without a lease. The
    /// lease is given up on this side at once: a renewal that is on its way finds nothing to renew.
    pub fn release(&mut self, now: Moment) -> Option<Request> {
        let ours = self.pid == std::process::id();
        let (lease, pulse) = self.lease.take().filter(|_| ours)?;
        let held = now.since(lease.begun);
        let gap = pulse.longest_gap(self.renewed_until(&lease, now));
        self.account(&lease, &pulse, now);
        let (mut run, mut counts) = (None, Vec::new());
        if self.options.record {
            let renewed = self.options.renew.is_some();
            // Of renewals, how late they came: they are due after a part of the TTL, whatever that is.
            let late = gap.saturating_sub(pulse.ttl(self.ttl) / PARTS);
            let span = ttl::field(renewed, lease.fence, if renewed { late } else { held });
            let this_run = format!("{}|{}|{}", lease.fence, whoami(), held.as_millis());
            (run, counts) = match self.restored {
                true => (Some(this_run), self.counts_with(held, pulse.lost(), span)),
                false => self.counts_so_far(this_run, span, now),
            };
        }
        let keep = self.options.at_least.saturating_sub(held);
        let transit = transit(&lease.transit_token());
        Some(Request::Release {
            value: lease.value,
            ttl: self.manner(Duration::ZERO).ttl,
            fence: lease.fence,
            transit,
            keep,
            run,
            counts,
        })
    }

    /// What is told with a release, once a second. Also of a lease that turns out to be lost: a job that takes too long
    /// is what there is to learn.
    fn counts_so_far(
        &mut self,
        run: String,
        span: String,
        now: Moment,
    ) -> (Option<String>, Vec<(String, u64)>) {
        if self.spans.len() < SPANS {
            *self.spans.entry(span).or_default() += 1;
        }
        let run = self.untold_run.insert(run);
        if self.told.is_some_and(|told| now.since(told) < TELL_EVERY) {
            return (None, Vec::new());
        }
        let counts = self.untold.fields().into_iter().chain(self.spans.clone());
        (Some(run.clone()), counts.collect())
    }

    /// The same of a lease that may never have been ours: it is told now, and only if it is given back, or never.
    fn counts_with(
        &self,
        held: Duration,
        lost: Option<LossReason>,
        span: String,
    ) -> Vec<(String, u64)> {
        let mut untold = self.untold.clone();
        untold.holds.record(held);
        lost.into_iter().for_each(|reason| untold.lose(reason));
        untold.fields().into_iter().chain(self.spans.clone()).chain([(span, 1)]).collect()
    }

    /// The same for a grant that nobody made use of: the lock need not stay taken.
    pub(crate) fn give_back(&mut self, now: Moment) -> Option<Request> {
        let mut request = self.release(now);
        if let Some(Request::Release { keep, .. }) = &mut request {
            *keep = Duration::ZERO;
        }
        request
    }

    /// Why the last lease was lost, if it was.
    pub fn last_loss(&self) -> Option<LossReason> {
        self.last_loss
    }

    /// Counts a lost lease.
    pub fn count_loss(&mut self, reason: LossReason) {
        self.last_loss = Some(reason);
        self.total.lose(reason);
        // An operator's act was counted when it was done.
        if reason != LossReason::Forced {
            self.untold.lose(reason);
        }
    }

    /// Takes in what the release came to.
    pub fn released(&mut self, request: &Request, done: bool, now: Moment) {
        let told = matches!(request, Request::Release { run: Some(_), .. });
        if !done {
            // Whoever took the lock, or gave it back in our place, leaves the record.
            self.untold_run = None;
        } else if told {
            (self.told, self.untold, self.untold_run) = (Some(now), Stats::default(), None);
            self.spans.clear();
        }
    }

    /// Whether the server knows all that it is to be told.
    pub(crate) fn is_told(&self) -> bool {
        let ours = self.pid == std::process::id();
        let nothing = self.untold.fields().is_empty() && self.spans.is_empty();
        !self.options.record || !ours || nothing
    }

    /// Commands that tell the server what no release has told it.
    pub(crate) fn last_words(&mut self) -> Vec<Cmd> {
        if self.is_told() {
            return Vec::new();
        }
        let mut counts = std::mem::take(&mut self.untold).fields();
        counts.extend(std::mem::take(&mut self.spans));
        let run = self.untold_run.take();
        let grow = |(field, by): &(String, u64)| {
            redis::cmd("HINCRBY").arg(&self.keys.stats).arg(field).arg(by).to_owned()
        };
        let mut words: Vec<Cmd> = counts.iter().map(grow).collect();
        words.push(redis::cmd("PEXPIRE").arg(&self.keys.stats).arg(MEMORY_MS).to_owned());
        if let Some(run) = run {
            let on = |name: &str| redis::cmd(name).arg(&self.keys.runs).to_owned();
            words.push(on("LPUSH").arg(run).to_owned());
            words.push(on("LTRIM").arg(0).arg(RUNS - 1).to_owned());
            words.push(on("PEXPIRE").arg(MEMORY_MS).to_owned());
        }
        words
    }

    /// Everything that happened to this contender.
    pub fn stats(&self) -> &Stats {
        &self.total
    }
}
