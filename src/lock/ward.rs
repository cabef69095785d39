//! A lease that is renewed, without I/O: when it is due, what is asked then, and what comes of the answer.
//!
//! It is due a third of its TTL after the last request that the server confirmed. One that fails is asked again until
//! the lease's own deadline; then, or when the server says so, the lease is lost. Each answer belongs to a version of
//! the lease: a holder who sets a TTL of his own makes a new one, of which an older answer says nothing.

use crate::clock::Moment;
use crate::lock::lease::{DRIFT_LEAST, safe_until};
use crate::lock::protocol::{Answer, Request};
use crate::lock::pulse::Pulse;
use crate::lock::stats::LossReason;
use crate::lock::ttl::PARTS;
use std::sync::Arc;
use std::time::Duration;

/// A lease that a watchdog watches.
#[derive(Clone, Debug)]
pub struct Ward {
    /// What the lock key holds.
    pub value: Vec<u8>,
    /// For how long it is renewed, unless its holder asked for another TTL.
    pub ttl: Duration,
    /// When it must end, however often it is extended.
    pub end: Option<Moment>,
    /// What its holder knows of it, too.
    pub pulse: Arc<Pulse>,
}

/// What is to be done about a lease that is due.
#[derive(Debug)]
pub enum Due {
    /// This is to be asked.
    Renewal(Asked),
    /// It is over.
    Lost(LossReason),
    /// It was given up, or is lost already.
    Nothing,
}

/// A renewal under way.
#[derive(Clone, Debug)]
pub struct Asked {
    /// To be sent at once.
    pub request: Request,
    /// What it asks for.
    pub ttl: Duration,
    usual: Duration,
    sent: Moment,
    version: u32,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is due again then.
    At(Moment),
    /// It is lost.
    Lost(LossReason),
}

/// Longest time between a failed renewal and the next attempt.
const AGAIN: Duration = Duration::from_millis(500);

impl Ward {
    /// When it is due first: one that was restored may have less than its TTL left.
    pub fn first_due(&self) -> Moment {
        let confirmed = self.pulse.confirmed();
        let left = self.pulse.safe_until().since(confirmed);
        self.next_due().min(confirmed + left / PARTS)
    }

    /// When it is due next: its TTL runs since the last request that the server confirmed.
    pub fn next_due(&self) -> Moment {
        let next = self.pulse.confirmed() + self.pulse.ttl(self.ttl) / PARTS;
        self.end.map_or(next, |end| next.min(end))
    }

    /// What is to be done about it now, that it is due.
    pub fn due(&self, now: Moment) -> Due {
        if self.pulse.is_ended() || self.pulse.lost().is_some() {
            return Due::Nothing;
        }
        // Before the TTL: one that is set meanwhile is then known to have been.
        let version = self.pulse.version();
        let usual = self.pulse.ttl(self.ttl);
        let left = self.end.map_or(usual, |end| end.since(now));
        if left < Duration::from_millis(1) || (self.is_over(now) && self.ends_with_its_hold()) {
            return Due::Lost(LossReason::MaxHold);
        }
        let (value, ttl, note) = (self.value.clone(), usual.min(left), self.pulse.wants_note());
        let request = Request::Extend { value, ttl, exact: false, note };
        Due::Renewal(Asked { request, ttl, usual, sent: now, version })
    }

    /// Takes in what the server says.
    pub fn answered(&self, asked: &Asked, answer: &Answer) -> Next {
        match answer {
            Answer::Extended(left) => {
                self.pulse.count(true);
                // What is left beyond that may be about to be taken away, by a request of the holder's.
                self.pulse.confirm(asked.sent, (*left).min(asked.usual), asked.version);
                self.pulse.noted();
                Next::At(self.next_due())
            }
            Answer::NotOurs(true) => Next::Lost(LossReason::Stolen),
            _ => Next::Lost(LossReason::Expired),
        }
    }

    /// Nobody knows what came of it, or it was refused.
    pub fn failed(&self, asked: &Asked, now: Moment) -> Next {
        self.pulse.count(false);
        if !self.is_over(now) {
            return Next::At((now + AGAIN.min(asked.usual / 20)).min(self.pulse.safe_until()));
        }
        Next::Lost(match self.ends_with_its_hold() {
            true => LossReason::MaxHold,
            false => LossReason::Unknown,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn at(ms: u64) -> Moment {
        Moment::at(Duration::from_millis(ms))
    }

    fn ward(end: Option<Moment>) -> Ward {
        let pulse = Arc::new(Pulse::new(at(1000), TTL));
        Ward { value: b"ours".to_vec(), ttl: TTL, end, pulse }
    }

    fn asked(ward: &Ward, now: Moment) -> Asked {
        match ward.due(now) {
            Due::Renewal(asked) => asked,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_is_renewed_every_third_of_its_ttl() {
        let ward = ward(None);
        assert_eq!(ward.next_due(), at(2000));
        assert!(ward.first_due() <= ward.next_due(), "and the first time not later");
        let asked = asked(&ward, at(2010));
        assert_eq!(ward.answered(&asked, &Answer::Extended(TTL)), Next::At(at(3010)));
        assert_eq!(ward.pulse.safe_until(), safe_until(at(2010), TTL), "since it was asked");
    }

    #[test]
    fn what_fails_is_asked_again_until_the_lease_is_over() {
        let ward = ward(None);
        let first = asked(&ward, at(2000));
        assert_eq!(ward.failed(&first, at(2300)), Next::At(at(2450)));
        let over = ward.pulse.safe_until();
        assert_eq!(ward.failed(&first, at(3950)), Next::At(over));
        assert_eq!(ward.failed(&first, over), Next::Lost(LossReason::Unknown));
    }

    #[test]
    fn what_the_server_says_is_final() {
        let ward = ward(None);
        let asked = asked(&ward, at(2000));
        for (theirs, reason) in [(true, LossReason::Stolen), (false, LossReason::Expired)] {
            assert_eq!(ward.answered(&asked, &Answer::NotOurs(theirs)), Next::Lost(reason));
        }
        assert!(ward.pulse.lose(LossReason::Stolen));
        assert!(matches!(ward.due(at(2100)), Due::Nothing));
    }

    #[test]
    fn an_answer_to_what_was_asked_before_the_holder_set_a_ttl_says_nothing() {
        let ward = ward(None);
        let asked = asked(&ward, at(2000));
        ward.pulse.set(at(2005), Duration::from_millis(300));
        ward.answered(&asked, &Answer::Extended(TTL));
        assert_eq!(ward.pulse.safe_until(), safe_until(at(2005), Duration::from_millis(300)));
    }

    #[test]
    fn the_last_renewal_asks_for_what_is_left_of_the_hold() {
        let ward = ward(Some(at(4500)));
        let last = asked(&ward, at(2000));
        assert_eq!(last.ttl, Duration::from_millis(2500));
        assert_eq!(ward.answered(&last, &Answer::Extended(last.ttl)), Next::At(at(3000)));
        assert!(matches!(ward.due(at(4500)), Due::Lost(LossReason::MaxHold)));
        assert!(matches!(ward.due(ward.pulse.safe_until()), Due::Lost(LossReason::MaxHold)));
    }

    #[test]
    fn what_was_given_up_is_not_renewed() {
        let ward = ward(None);
        ward.pulse.end();
        assert!(matches!(ward.due(at(2000)), Due::Nothing));
    }
}
