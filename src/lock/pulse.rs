//! What is known of a lease at this moment, shared between its holder and the watchdog without a lock:
//! until when it is safe, and whether and why it is lost. (One lock there is, for the moment in which a
//! loss is told of: who gives the lease up waits for its end.)

use crate::clock::Moment;
use crate::lock::lease::safe_until;
use crate::lock::stats::LossReason;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{ThreadId, current};
use std::time::Duration;

/// Of one lease.
#[derive(Debug, Default)]
pub struct Pulse {
    safe_until: AtomicU64,
    /// When the last confirmed request was sent, and the longest time between two of them.
    confirmed: AtomicU64,
    longest_gap: AtomicU64,
    renewed: AtomicU32,
    failed: AtomicU32,
    /// Grows when the holder sets a TTL of its own: an older renewal then says nothing.
    version: AtomicU32,
    /// The TTL that the holder asked for last (us); 0 while that is the usual one.
    ttl: AtomicU64,
    /// Another's grant: the server has its TTL on record, not ours.
    unrecorded: AtomicBool,
    ended: AtomicBool,
    /// The thread that tells of the loss.
    teller: Mutex<Option<ThreadId>>,
    told: Condvar,
    /// 0, or 1 more than the position in [`LossReason::ALL`].
    lost: AtomicU8,
}

impl Pulse {
    /// Of a lease that was granted to a request sent then.
    pub fn new(sent: Moment, ttl: Duration) -> Self {
        let pulse = Self::default();
        pulse.safe_until.store(safe_until(sent, ttl).micros(), Ordering::Release);
        pulse.confirmed.store(sent.micros(), Ordering::Release);
        pulse
    }

    /// Of a lease of which nothing else is known.
    pub fn restored(now: Moment) -> Self {
        let pulse = Self::new(now, Duration::ZERO);
        pulse.unrecorded.store(true, Ordering::Release);
        pulse
    }

    /// Whether the next extension is to put our TTL on record.
    pub fn wants_note(&self) -> bool {
        self.unrecorded.load(Ordering::Acquire)
    }

    /// It is on record.
    pub fn noted(&self) {
        self.unrecorded.store(false, Ordering::Release);
    }

    /// After this nobody may act on the lease any more.
    pub fn safe_until(&self) -> Moment {
        Moment::from_micros(self.safe_until.load(Ordering::Acquire))
    }

    /// To be read before a renewal is sent.
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The server has confirmed a request that was sent then, for this long.
    pub fn confirm(&self, sent: Moment, ttl: Duration, version: u32) {
        self.heard(sent);
        let until = safe_until(sent, ttl).micros();
        // Compared at the instant of the change: the holder sets the version first, then its own time.
        let unless_set = |known: u64| (version == self.version()).then_some(until.max(known));
        let _ = self.safe_until.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_set);
    }

    fn heard(&self, sent: Moment) {
        let gap = sent.since(self.confirmed());
        self.longest_gap.fetch_max(Moment::at(gap).micros(), Ordering::AcqRel);
        self.confirmed.fetch_max(sent.micros(), Ordering::AcqRel);
    }

    /// The holder has set another TTL, perhaps a shorter one.
    pub fn set(&self, sent: Moment, ttl: Duration) {
        self.ttl.store(Moment::at(ttl).micros(), Ordering::Release);
        self.version.fetch_add(1, Ordering::AcqRel);
        self.heard(sent);
        self.safe_until.store(safe_until(sent, ttl).micros(), Ordering::Release);
    }

    /// The holder is about to ask for exactly that TTL: whatever comes of that, no more is certain from here on.
    /// A longer one than the usual is none until it is granted.
    pub fn ask_for(&self, now: Moment, ttl: Duration, usual: Duration) {
        let until = safe_until(now, ttl);
        if ttl < self.ttl(usual) {
            self.ttl.store(Moment::at(ttl).micros(), Ordering::Release);
        } else if until >= self.safe_until() {
            return;
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        self.safe_until.fetch_min(until.micros(), Ordering::AcqRel);
    }

    /// When the last request was sent that the server confirmed.
    pub fn confirmed(&self) -> Moment {
        Moment::from_micros(self.confirmed.load(Ordering::Acquire))
    }

    /// The longest gap between two confirmed requests, the one up to now included.
    pub fn longest_gap(&self, now: Moment) -> Duration {
        let open = now.since(self.confirmed());
        open.max(Duration::from_micros(self.longest_gap.load(Ordering::Acquire)))
    }

    /// Counts a renewal.
    pub fn count(&self, done: bool) {
        let counter = if done { &self.renewed } else { &self.failed };
        counter.fetch_add(1, Ordering::AcqRel);
    }

    /// Renewals that were done and that failed, since this was asked last.
    pub fn take_counts(&self) -> (u64, u64) {
        (
            self.renewed.swap(0, Ordering::AcqRel).into(),
            self.failed.swap(0, Ordering::AcqRel).into(),
        )
    }

    /// For how long it is to be renewed, if the usual TTL is that.
    pub fn ttl(&self, usual: Duration) -> Duration {
        match self.ttl.load(Ordering::Acquire) {
            0 => usual,
            us => Duration::from_micros(us),
        }
    }

    /// The holder gives it up: no renewal any more. Waits until nobody else tells of a loss.
    pub fn end(&self) {
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.store(true, Ordering::Release);
        let other = |teller: &mut Option<ThreadId>| teller.is_some_and(|id| id != current().id());
        while other(&mut teller) {
            teller = self.told.wait(teller).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same, and tells: whoever gives it up meanwhile waits for that.
    pub fn lose_and(&self, reason: LossReason, tell: impl FnOnce()) {
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.lose(reason) {
            return;
        }
        *teller = Some(current().id());
        drop(teller);
        let _telling = Telling(self);
        tell();
    }

    /// Whether it was given up.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// It is lost; true for the first who says so, unless it was given up: who tells of it, then.
    pub fn lose(&self, reason: LossReason) -> bool {
        let unless = |lost: u8| (lost == 0 && !self.is_ended()).then_some(code(reason));
        self.lost.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless).is_ok()
    }

    /// It is lost already, and now it is known why.
    pub fn explain(&self, reason: LossReason) {
        self.lost.store(code(reason), Ordering::Release);
    }

    /// Whether and why it is lost.
    pub fn lost(&self) -> Option<LossReason> {
        let code = usize::from(self.lost.load(Ordering::Acquire));
        LossReason::ALL.get(code.checked_sub(1)?).copied()
    }
}

/// A reason, as it is kept.
fn code(reason: LossReason) -> u8 {
    let at = LossReason::ALL.iter().position(|known| *known == reason).unwrap_or_default();
    u8::try_from(at + 1).unwrap_or(u8::MAX)
}

/// However the telling ends, it has ended.
struct Telling<'a>(&'a Pulse);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        *self.0.teller.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.told.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_from_before_a_shorter_ttl_says_nothing() {
        let (t, s) = (Moment::at(Duration::from_secs(100)), Duration::from_secs);
        let pulse = Pulse::new(t, s(30));
        let before = pulse.version();
        pulse.set(t + s(1), s(2));
        let short = pulse.safe_until();
        pulse.confirm(t, s(30), before);
        assert_eq!(pulse.safe_until(), short);
        pulse.confirm(t + s(2), s(30), pulse.version());
        assert!(pulse.safe_until() > short);
        assert_eq!(pulse.longest_gap(t + s(2)), s(1));
        assert_eq!(pulse.longest_gap(t + s(10)), s(8));
    }

    #[test]
    fn what_is_asked_for_counts_at_once_if_it_is_shorter_and_else_when_it_is_granted() {
        let (t, s) = (Moment::at(Duration::from_secs(100)), Duration::from_secs);
        let pulse = Pulse::new(t, s(30));
        pulse.ask_for(t + s(1), s(60), s(30));
        assert_eq!((pulse.ttl(s(30)), pulse.version()), (s(30), 0));
        pulse.set(t + s(1), s(60));
        assert_eq!(pulse.ttl(s(30)), s(60));
        let before = pulse.version();
        pulse.ask_for(t + s(2), s(10), s(30));
        assert_eq!((pulse.ttl(s(30)), pulse.safe_until()), (s(10), safe_until(t + s(2), s(10))));
        pulse.confirm(t + s(2), s(60), before);
        assert_eq!(
            pulse.safe_until(),
            safe_until(t + s(2), s(10)),
            "an older renewal says nothing"
        );
        // Another's grant may have much more left than the usual time, and all of it goes.
        let pulse = Pulse::new(t, s(3600));
        pulse.ask_for(t + s(1), s(120), s(60));
        assert_eq!((pulse.ttl(s(60)), pulse.version()), (s(60), 1));
        assert_eq!(pulse.safe_until(), safe_until(t + s(1), s(120)));
    }

    #[test]
    fn a_loss_is_told_once_and_never_after_the_end() {
        let pulse = Pulse::new(Moment::now(), Duration::from_secs(1));
        assert!(pulse.lose(LossReason::Stolen) && !pulse.lose(LossReason::Expired));
        assert_eq!(pulse.lost(), Some(LossReason::Stolen));
        let pulse = Pulse::new(Moment::now(), Duration::from_secs(1));
        pulse.end();
        assert!(!pulse.lose(LossReason::Expired) && pulse.lost().is_none());
    }
}
