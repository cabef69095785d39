//! The watchdog: one thread that extends leases, every third of their TTL, on connections of its own.
//!
//! The thread is started with the first lease and blocks all signals, so that no handler of the
//! application runs in it. What is decided about a lease is decided in `ward.rs`; when one is lost, its
//! holder is told. A lease that was given up is never renewed: the script compares the value, and an
//! absent key is not created.
//!
//! After `fork()` the child has neither the thread nor the leases; its first lease starts a thread of
//! its own.

use crate::clock::Moment;
use crate::config::Config;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::loss::{Loss, why};
use crate::lock::protocol::{Answer, Keys};
use crate::lock::pulse::Pulse;
use crate::lock::stats::LossReason;
use crate::lock::ward::{Asked, Due, Next, Ward};
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

/// A lease that is watched, where it is, and who is told when it is lost.
pub(crate) struct Watched {
    pub ward: Ward,
    pub config: Config,
    pub keys: Keys,
    pub fence: u64,
    pub on_lost: Option<OnLost>,
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
    watched: Vec<(Moment, Watched)>,
    running: bool,
    closing: bool,
}

impl State {
    /// Those whose leases were given up, to be dropped without the lock: what a listener captured may watch others.
    fn take_ended(&mut self) -> Vec<(Moment, Watched)> {
        let is_ended = |(_, watched): &(Moment, Watched)| watched.ward.pulse.is_ended();
        if !self.watched.iter().any(is_ended) {
            return Vec::new();
        }
        let (ended, kept) = std::mem::take(&mut self.watched).into_iter().partition(is_ended);
        self.watched = kept;
        ended
    }
}

/// Longest time for one renewal on a connection; leases of other servers wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// Longest time for a connection to renew with: a server that is far away takes several round trips for that.
const DIAL: Duration = Duration::from_millis(1500);

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
        let watched = std::mem::take(&mut state.watched);
        shared.changed.notify_all();
        let ended = shared.changed.wait_timeout_while(state, patience, |state| state.running);
        drop(ended);
        drop(watched);
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
    pub(crate) fn watch(&self, watched: Watched) -> Result<()> {
        let shared = self.0.shared();
        let mut state = lock(&shared.state);
        // A thread that was to end, and has not yet, goes on.
        state.closing = false;
        let ended = state.take_ended();
        let due = watched.ward.first_due();
        let sooner = state.watched.iter().all(|(other, _)| due < *other);
        state.watched.push((due, watched));
        if !state.running {
            if let Err(e) = start(Arc::clone(&shared)) {
                state.watched.pop();
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
        for (due, Watched { ward, .. }) in &mut state.watched {
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
        let Some((watched, dial)) = wait_for_due(shared, &mut links) else {
            // It is said already, and another thread may watch by now.
            return std::mem::forget(watch);
        };
        let ward = &watched.ward;
        let version = ward.pulse.version();
        if let Some(next) = tend(&watched, dial, &mut links) {
            // The holder may have set another TTL meanwhile.
            let changed = ward.pulse.version() != version;
            let due = if changed { next.min(ward.next_due()) } else { next };
            lock(&shared.state).watched.push((due, watched));
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
fn wait_for_due(shared: &Shared, links: &mut Links) -> Option<(Watched, Duration)> {
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
        links.retain(|config, _| state.watched.iter().any(|(_, other)| other.config == *config));
        let failing = |one: &Watched| links.get(&one.config).is_some_and(|known| known.failing);
        let now = Moment::now();
        let due = state.watched.iter().enumerate().filter(|(_, (due, _))| *due <= now);
        let urgency =
            |(_, (_, one)): &(_, &(_, Watched))| (failing(one), one.ward.pulse.safe_until());
        if let Some((at, _)) = due.min_by_key(urgency) {
            let first = state.watched.swap_remove(at).1;
            let alone = state.watched.iter().all(|(_, other)| other.config == first.config);
            return Some((first, if alone { DIAL } else { Duration::ZERO }));
        }
        let first = state.watched.iter().map(|(due, _)| *due).min();
        let nap = first.map_or(NAP, |due| due.since(now).min(NAP));
        let woken = shared.changed.wait_timeout(state, nap);
        state = woken.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Extends one lease; when to do so next, or nothing when it has ended.
fn tend(watched: &Watched, dial: Duration, links: &mut Links) -> Option<Moment> {
    let ward = &watched.ward;
    let asked = match ward.due(Moment::now()) {
        Due::Nothing => return None,
        Due::Lost(reason) => return lose(watched, reason, || reason),
        Due::Renewal(asked) => asked,
    };
    match renew(watched, &asked, dial, links) {
        Ok(answer) => match ward.answered(&asked, &answer) {
            Next::At(due) => Some(due),
            Next::Lost(found) => {
                let loss = Loss { fence: watched.fence, until: ward.pulse.safe_until(), found };
                // Its holder knows at once; why it is, in a moment.
                lose(watched, found, || {
                    let known = links.get_mut(&watched.config);
                    let reason =
                        known.map_or(found, |known| why(&mut known.link, &watched.keys, &loss));
                    ward.pulse.explain(reason);
                    reason
                })
            }
        },
        // Somebody has put something else in its place.
        Err(e) if e.kind() == ErrorKind::WrongType => {
            lose(watched, LossReason::Stolen, || LossReason::Stolen)
        }
        Err(_) => match ward.failed(&asked, Moment::now()) {
            Next::At(due) => Some(due),
            Next::Lost(reason) => lose(watched, reason, || reason),
        },
    }
}

/// Its lease is lost, and its listener told why, as can be found out. Whoever is told may fail, and other leases
/// are renewed all the same.
fn lose(watched: &Watched, found: LossReason, why: impl FnOnce() -> LossReason) -> Option<Moment> {
    let tell = || {
        let reason = why();
        watched.on_lost.iter().for_each(|tell| tell(reason));
    };
    let _ = catch_unwind(AssertUnwindSafe(|| watched.ward.pulse.lose_and(found, tell)));
    None
}

/// One renewal: one attempt, bounded, so that there is time for another. `dial`: time for a connection, beside that.
fn renew(watched: &Watched, asked: &Asked, dial: Duration, links: &mut Links) -> Result<Answer> {
    let known = match links.entry(watched.config.clone()) {
        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::hash_map::Entry::Vacant(new) => {
            new.insert(Known { link: Link::new(watched.config.clone())?, failing: false })
        }
    };
    let (script, args) = asked.request.script(&watched.keys);
    let end = watched.ward.pulse.safe_until();
    let by = |patience: Duration| (Moment::now() + patience).min(end);
    let most = asked.ttl / 6;
    let connected = if dial.is_zero() { Ok(()) } else { known.link.check(by(dial.min(most))) };
    let patience = PATIENCE.min(most).max(Duration::from_millis(10));
    let reply = connected.and_then(|()| script.run(&mut known.link, &args, by(patience)));
    known.failing = reply.is_err();
    asked.request.read(&reply?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
