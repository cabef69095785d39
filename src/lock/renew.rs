//! The watchdog: one thread that extends leases, every third of their TTL, on connections of its own.
//!
//! The thread is started with the first lease and blocks all signals, so that no handler of the
//! application runs in it. A failed renewal is tried again until the lease's own deadline; then, or
//! when the server says so, the lease is lost, and its holder is told. A lease that was given up is
//! never renewed: the script compares the value, and an absent key is not created.
//!
//! After `fork()` the child has neither the thread nor the leases; its first lease starts a thread of
//! its own.

use crate::clock::Moment;
use crate::config::Config;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lease::{DRIFT_LEAST, safe_until};
use crate::lock::loss::{Loss, why};
use crate::lock::protocol::{Answer, Keys, Request};
use crate::lock::pulse::Pulse;
use crate::lock::stats::LossReason;
use crate::lock::ttl::PARTS;
use crate::thread;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Told when a lease is lost; called by the watchdog's thread, which must not be held up. A panic in it is
/// reported as any, and ends there.
pub type OnLost = Arc<dyn Fn(LossReason) + Send + Sync>;

/// Extends leases in a thread of its own. Clones share the thread; it ends with the last of them.
#[derive(Clone, Debug, Default)]
pub struct Watchdog(Arc<Home>);

/// What the clones share, and the process in which they do: it is replaced in a forked child, for what it
/// holds there belongs to a thread that does not exist.
#[derive(Debug)]
struct Home(Mutex<(u32, Arc<Shared>)>);

/// What the watchdog needs to know of a lease.
pub(crate) struct Ward {
    pub config: Config,
    pub keys: Keys,
    pub value: Vec<u8>,
    pub fence: u64,
    pub ttl: Duration,
    /// When the lease must end, however often it is extended.
    pub end: Option<Moment>,
    pub pulse: Arc<Pulse>,
    pub on_lost: Option<OnLost>,
}

impl Ward {
    /// When it is to be extended first: one that was restored may have less than its TTL left.
    fn first_due(&self) -> Moment {
        let confirmed = self.pulse.confirmed();
        let left = self.pulse.safe_until().since(confirmed);
        self.next_due().min(confirmed + left / PARTS)
    }

    /// When it is to be extended next: its TTL runs since the last request that the server confirmed.
    fn next_due(&self) -> Moment {
        let next = self.pulse.confirmed() + self.pulse.ttl(self.ttl) / PARTS;
        self.end.map_or(next, |end| next.min(end))
    }

    /// Whether it must not be acted upon any more.
    fn is_over(&self, now: Moment) -> bool {
        now >= self.pulse.safe_until()
    }

    /// Whether it was given all the time for which it may be held.
    fn ends_with_its_hold(&self) -> bool {
        let confirmed = self.pulse.confirmed();
        let whole = |end: Moment| safe_until(confirmed, end.since(confirmed));
        self.end.is_some_and(|end| whole(end) <= self.pulse.safe_until() + DRIFT_LEAST)
    }
}

/// A connection to a server, and whether the last renewal over it failed.
struct Known {
    link: Link,
    failing: bool,
}

type Links = HashMap<Config, Known>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

#[derive(Default)]
struct State {
    wards: Vec<(Moment, Ward)>,
    running: bool,
    closing: bool,
}

impl State {
    /// Those whose leases were given up, to be dropped without the lock: what a listener captured may watch others.
    fn take_ended(&mut self) -> Vec<(Moment, Ward)> {
        if self.wards.iter().all(|(_, ward)| !ward.pulse.is_ended()) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.wards);
        let (ended, kept) = all.into_iter().partition(|(_, ward)| ward.pulse.is_ended());
        self.wards = kept;
        ended
    }
}

/// Longest time for one renewal on a connection; leases of other servers wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// Longest time for a connection to renew with: a server that is far away takes several round trips for that.
const DIAL: Duration = Duration::from_millis(1500);

/// Longest time between a failed renewal and the next attempt.
const AGAIN: Duration = Duration::from_millis(500);

/// Longest sleep: a wrong guess of when to wake must not be for ever.
const NAP: Duration = Duration::from_secs(60);

impl Default for Home {
    fn default() -> Self {
        Self(Mutex::new((std::process::id(), Arc::default())))
    }
}

impl Home {
    fn shared(&self) -> Arc<Shared> {
        let mut shared = lock(&self.0);
        if shared.0 != std::process::id() {
            // The thread that it belonged to may have held its lock when we were forked.
            let orphaned = std::mem::replace(&mut *shared, (std::process::id(), Arc::default()));
            std::mem::forget(orphaned);
        }
        Arc::clone(&shared.1)
    }

    fn close(&self, patience: Duration) {
        let shared = self.shared();
        let mut state = lock(&shared.state);
        state.closing = true;
        let wards = std::mem::take(&mut state.wards);
        shared.changed.notify_all();
        let ended = shared.changed.wait_timeout_while(state, patience, |state| state.running);
        drop(ended);
        drop(wards);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Watchdog {
    /// A watchdog without a thread yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches a lease until it is given up or lost.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn watch(&self, ward: Ward) -> Result<()> {
        let shared = self.0.shared();
        let mut state = lock(&shared.state);
        // A thread that was to end, and has not yet, goes on.
        state.closing = false;
        let ended = state.take_ended();
        let due = ward.first_due();
        let sooner = state.wards.iter().all(|(other, _)| due < *other);
        state.wards.push((due, ward));
        if !state.running {
            if let Err(e) = start(Arc::clone(&shared)) {
                state.wards.pop();
                drop(state);
                drop(ended);
                return Err(e);
            }
            state.running = true;
        } else if sooner {
            shared.changed.notify_one();
        }
        drop(state);
        drop(ended);
        Ok(())
    }

    /// The holder has set another TTL: its lease may be due sooner.
    pub(crate) fn hasten(&self, pulse: &Arc<Pulse>) {
        let shared = self.0.shared();
        let mut state = lock(&shared.state);
        for (due, ward) in &mut state.wards {
            if Arc::ptr_eq(&ward.pulse, pulse) {
                *due = (*due).min(ward.next_due());
            }
        }
        shared.changed.notify_one();
    }

    /// Ends the thread, and waits for that at most so long. Leases end with their TTL. For programs
    /// that unload their code; others need not.
    pub fn close(&self, patience: Duration) {
        self.0.close(patience);
    }
}

fn start(shared: Arc<Shared>) -> Result<()> {
    let thread = thread::start("tagsweep-renew", move || keep_watch(&shared));
    let refused =
        |e| Error::new(ErrorKind::Refused, "the system gives no thread for renewal").because(e);
    thread.map(drop).map_err(refused)
}

fn keep_watch(shared: &Shared) {
    let watch = Watch(shared);
    let mut links = Links::new();
    loop {
        let Some((ward, dial)) = wait_for_due(shared, &mut links) else {
            // It is said already, and another thread may watch by now.
            return std::mem::forget(watch);
        };
        let version = ward.pulse.version();
        if let Some(next) = tend(&ward, dial, &mut links) {
            // The holder may have set another TTL meanwhile.
            let changed = ward.pulse.version() != version;
            let due = if changed { next.min(ward.next_due()) } else { next };
            lock(&shared.state).wards.push((due, ward));
        }
    }
}

/// If the thread fails, it is known to have ended: leases are then lost by their own clock.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).running = false;
        self.0.changed.notify_all();
    }
}

/// Sleeps until a lease is due, and gives the one that ends first; those of a server out of reach come
/// after those of others, which it must not cost. `None` when the watch is over.
///
/// With it, how long a connection for it may take: longer than a renewal only where no lease of another server waits.
fn wait_for_due(shared: &Shared, links: &mut Links) -> Option<(Ward, Duration)> {
    let mut state = lock(&shared.state);
    loop {
        if state.closing {
            // Whoever waits for the end may unload the code.
            links.clear();
            state.running = false;
            shared.changed.notify_all();
            return None;
        }
        let ended = state.take_ended();
        if !ended.is_empty() {
            drop(state);
            drop(ended);
            state = lock(&shared.state);
            continue;
        }
        links.retain(|config, _| state.wards.iter().any(|(_, ward)| ward.config == *config));
        let failing = |ward: &Ward| links.get(&ward.config).is_some_and(|known| known.failing);
        let now = Moment::now();
        let due = state.wards.iter().enumerate().filter(|(_, (due, _))| *due <= now);
        let urgency = |(_, (_, ward)): &(_, &(_, Ward))| (failing(ward), ward.pulse.safe_until());
        if let Some((at, _)) = due.min_by_key(urgency) {
            let ward = state.wards.swap_remove(at).1;
            let alone = state.wards.iter().all(|(_, other)| other.config == ward.config);
            return Some((ward, if alone { DIAL } else { Duration::ZERO }));
        }
        let first = state.wards.iter().map(|(due, _)| *due).min();
        let nap = first.map_or(NAP, |due| due.since(now).min(NAP));
        let woken = shared.changed.wait_timeout(state, nap);
        state = woken.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Extends one lease; when to do so next, or nothing when it has ended.
fn tend(ward: &Ward, dial: Duration, links: &mut Links) -> Option<Moment> {
    let now = Moment::now();
    if ward.pulse.is_ended() || ward.pulse.lost().is_some() {
        return None;
    }
    // Before the TTL: one that is set meanwhile is then known to have been.
    let version = ward.pulse.version();
    let ttl = ward.pulse.ttl(ward.ttl);
    let left = ward.end.map_or(ttl, |end| end.since(now));
    if left < Duration::from_millis(1) || (ward.is_over(now) && ward.ends_with_its_hold()) {
        return lose(ward, LossReason::MaxHold, || LossReason::MaxHold);
    }
    match renew(ward, ttl.min(left), dial, links) {
        Ok(Answer::Extended(left)) => {
            ward.pulse.count(true);
            // What is left beyond that may be about to be taken away, by a request of the holder's.
            ward.pulse.confirm(now, left.min(ttl), version);
            ward.pulse.noted();
            Some(ward.next_due())
        }
        Ok(answer) => {
            let stolen = answer == Answer::NotOurs(true);
            let found = if stolen { LossReason::Stolen } else { LossReason::Expired };
            let loss = Loss { fence: ward.fence, until: ward.pulse.safe_until(), found };
            // Its holder knows at once; why it is, in a moment.
            lose(ward, found, || {
                let known = links.get_mut(&ward.config);
                let reason = known.map_or(found, |known| why(&mut known.link, &ward.keys, &loss));
                ward.pulse.explain(reason);
                reason
            })
        }
        // Somebody has put something else in its place.
        Err(e) if e.kind() == ErrorKind::WrongType => {
            lose(ward, LossReason::Stolen, || LossReason::Stolen)
        }
        Err(_) => {
            ward.pulse.count(false);
            let now = Moment::now();
            if ward.is_over(now) {
                let held = ward.ends_with_its_hold();
                let reason = if held { LossReason::MaxHold } else { LossReason::Unknown };
                return lose(ward, reason, || reason);
            }
            Some((now + AGAIN.min(ttl / 20)).min(ward.pulse.safe_until()))
        }
    }
}

/// Its lease is lost, and its listener told why, as can be found out. Whoever is told may fail, and other leases
/// are renewed all the same.
fn lose(ward: &Ward, found: LossReason, why: impl FnOnce() -> LossReason) -> Option<Moment> {
    let tell = || {
        let reason = why();
        ward.on_lost.iter().for_each(|tell| tell(reason));
    };
    let _ = catch_unwind(AssertUnwindSafe(|| ward.pulse.lose_and(found, tell)));
    None
}

/// One renewal: one attempt, bounded, so that there is time for another. `dial`: time for a connection, beside that.
fn renew(ward: &Ward, ttl: Duration, dial: Duration, links: &mut Links) -> Result<Answer> {
    let known = match links.entry(ward.config.clone()) {
        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::hash_map::Entry::Vacant(new) => {
            new.insert(Known { link: Link::new(ward.config.clone())?, failing: false })
        }
    };
    let (value, note) = (ward.value.clone(), ward.pulse.wants_note());
    let request = Request::Extend { value, ttl, exact: false, note };
    let (script, args) = request.script(&ward.keys);
    let by = |patience: Duration| (Moment::now() + patience).min(ward.pulse.safe_until());
    let connected = if dial.is_zero() { Ok(()) } else { known.link.check(by(dial.min(ttl / 6))) };
    let patience = PATIENCE.min(ttl / 6).max(Duration::from_millis(10));
    let reply = connected.and_then(|()| script.run(&mut known.link, &args, by(patience)));
    known.failing = reply.is_err();
    request.read(&reply?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
