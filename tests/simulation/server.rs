//! A model of one Redis as far as the lock's scripts use it. `differential.rs` compares it with the
//! scripts on a real server.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tagsweep::lock::protocol::{Answer, CLAIM, Request};

/// What is wrong with the server on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Effects are accepted whoever holds the lock.
    NoCompare,
    /// The fence is a counter on the server.
    CountingFence,
    /// An extend creates a key that is gone.
    ExtendCreates,
    /// A release deletes whatever is there.
    BlindRelease,
    /// A release deletes and hands nothing over.
    SilentRelease,
}

/// A blocked connection.
pub type Connection = u64;

/// What is replicated.
#[derive(Clone, Debug, Default)]
pub struct Data {
    pub lock: Option<(Vec<u8>, u64)>,
    pub fence: Option<(u64, bool)>,
    /// By ticket.
    pub waiters: BTreeMap<u64, String>,
    pub baton: Option<(Vec<u8>, u64)>,
    /// Fence of the youngest accepted effect.
    pub effect: u64,
}

#[derive(Debug)]
pub struct Server {
    pub data: Data,
    pub blocked: VecDeque<Connection>,
    pub mutation: Mutation,
    pub takeovers: u64,
    pub handovers: u64,
}

fn micros(span: Duration) -> u64 {
    // The protocol speaks in whole milliseconds, at least one.
    u64::try_from(span.as_millis()).unwrap().max(1) * 1000
}

pub fn owner(value: &[u8]) -> &[u8] {
    value.split(|b| *b == b':').next().unwrap()
}

pub fn fence_of(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).unwrap();
    text.split([':', '|']).nth(1).unwrap().parse().unwrap()
}

impl Server {
    pub fn new(mutation: Mutation) -> Self {
        let (data, blocked) = (Data::default(), VecDeque::new());
        Self { data, blocked, mutation, takeovers: 0, handovers: 0 }
    }

    /// Expiry, as the server's clock has it.
    pub fn expire(&mut self, now: u64) {
        if self.data.lock.as_ref().is_some_and(|(_, end)| *end <= now) {
            self.data.lock = None;
        }
        if self.data.baton.as_ref().is_some_and(|(_, end)| *end <= now) {
            self.data.baton = None;
        }
    }

    /// A request, at one instant.
    pub fn answer(&mut self, request: &Request, now: u64) -> Answer {
        self.expire(now);
        match request {
            Request::Acquire { token, ttl, claim, .. } => {
                self.acquire(token, micros(*ttl), claim.as_ref(), now)
            }
            Request::Wait { waiter, transit, join, .. } => self.wait(waiter, transit, *join, now),
            Request::Leave { waiter, .. } => self.leave(waiter),
            Request::Extend { value, ttl, exact, .. } => {
                self.extend(value, micros(*ttl), *exact, now)
            }
            Request::Release { value, fence, transit, keep, .. } => {
                self.release(value, *fence, transit, micros(*keep), keep.is_zero(), now)
            }
        }
    }

    fn held(&self, now: u64) -> Option<(Vec<u8>, Option<Duration>)> {
        let (value, end) = self.data.lock.clone()?;
        Some((value, Some(Duration::from_micros(end.saturating_sub(now)))))
    }

    fn acquire(
        &mut self,
        token: &str,
        ttl: u64,
        claim: Option<&(Vec<u8>, String)>,
        now: u64,
    ) -> Answer {
        let popped = claim.map(|(baton, _)| baton.as_slice()).unwrap_or_default();
        if let Some((held, left)) = self.held(now).filter(|(held, _)| held != popped) {
            if owner(&held) == token.as_bytes() {
                self.data.lock = Some((held.clone(), now + ttl));
                return Answer::Granted { value: held, takeover: false };
            }
            let lies = self.data.baton.as_ref().is_some_and(|(baton, _)| *baton == held);
            if fence_of(&held) != 0 || !lies {
                if fence_of(&held) == 0 {
                    self.data.baton = None;
                }
                return Answer::Held(held, left);
            }
            self.data.baton = None;
            self.data.waiters.clear();
        }
        let last = self.data.fence.map_or(0, |(last, _)| last);
        let open = self.data.fence.is_some_and(|(_, open)| open);
        self.takeovers += u64::from(open);
        let fence = match self.mutation {
            Mutation::CountingFence => last + 1,
            _ => (last + 1).max(now),
        };
        self.data.fence = Some((fence, true));
        let value = format!("{token}:{fence}|host|1|sim").into_bytes();
        self.data.lock = Some((value.clone(), now + ttl));
        if let Some((_, ticket)) = claim {
            let ticket: u64 = ticket.parse().unwrap_or(0);
            self.data.waiters.retain(|other, _| *other > ticket);
        }
        Answer::Granted { value, takeover: open }
    }

    fn put_in_transit(&mut self, transit: &[u8], now: u64) {
        let end = now + micros(CLAIM);
        self.data.lock = Some((transit.to_vec(), end));
        self.data.baton = Some((transit.to_vec(), end));
    }

    fn wait(&mut self, waiter: &str, transit: &[u8], join: bool, now: u64) -> Answer {
        let lies = |held: &Vec<u8>| self.data.baton.as_ref().is_some_and(|(b, _)| b == held);
        let lost = self.data.lock.as_ref().is_some_and(|(held, _)| lies(held));
        if self.data.lock.is_none() {
            self.put_in_transit(transit, now);
        }
        let waiters = &mut self.data.waiters;
        let known = waiters.iter().find(|(_, who)| *who == waiter).map(|(ticket, _)| *ticket);
        let (ticket, older, younger) = match known {
            _ if join => {
                waiters.retain(|_, who| who != waiter);
                let free = |ticket: &u64| !waiters.contains_key(ticket);
                let ticket = (now..).find(free).unwrap();
                waiters.insert(ticket, waiter.to_owned());
                (ticket.to_string(), waiters.len() - 1, 0)
            }
            Some(ticket) if !lost => {
                let younger = waiters.range(ticket + 1..).count();
                (ticket.to_string(), waiters.len() - 1 - younger, younger)
            }
            _ => (String::new(), 0, 0),
        };
        let (holder, ttl) = self.held(now).unwrap();
        let [older, younger] = [older, younger].map(|n| u32::try_from(n).unwrap());
        Answer::Waiting { holder, ttl, older, younger, ticket }
    }

    fn leave(&mut self, waiter: &str) -> Answer {
        self.data.waiters.retain(|_, who| who != waiter);
        if let Some((baton, _)) = self.data.baton.take()
            && self.data.lock.as_ref().is_some_and(|(held, _)| *held == baton)
        {
            self.data.lock = None;
        }
        Answer::Left
    }

    fn extend(&mut self, value: &[u8], ttl: u64, exact: bool, now: u64) -> Answer {
        match &mut self.data.lock {
            None if self.mutation == Mutation::ExtendCreates => {
                self.data.lock = Some((value.to_vec(), now + ttl));
                Answer::Extended(Duration::from_micros(ttl))
            }
            None => Answer::NotOurs(false),
            Some((held, _)) if held != value => Answer::NotOurs(true),
            Some((_, end)) => {
                *end = if exact { now + ttl } else { (now + ttl).max(*end) };
                Answer::Extended(Duration::from_micros(*end - now))
            }
        }
    }

    fn release(
        &mut self,
        value: &[u8],
        fence: u64,
        transit: &[u8],
        keep: u64,
        give: bool,
        now: u64,
    ) -> Answer {
        let ours = self.data.lock.as_ref().is_some_and(|(held, _)| held == value);
        if !ours && self.mutation != Mutation::BlindRelease {
            return Answer::NotOurs(false);
        }
        if fence != 0 {
            self.data.fence = Some((fence, false));
        }
        if !give {
            let rest = &value[owner(value).len()..];
            let nobody = [owner(transit), rest].concat();
            self.data.lock = Some((nobody, now + keep));
        } else if self.data.waiters.is_empty() || self.mutation == Mutation::SilentRelease {
            self.data.lock = None;
        } else {
            self.put_in_transit(transit, now);
            self.handovers += 1;
        }
        Answer::Released
    }

    /// An operator takes the lock away; whether it was held, and whether that was the grant which was meant.
    pub fn force(&mut self, fence: Option<u64>, transit: &[u8], now: u64) -> Option<bool> {
        self.expire(now);
        let (held, _) = self.data.lock.clone()?;
        let has = fence_of(&held);
        if fence.is_some_and(|meant| meant != has) {
            return Some(false);
        }
        (self.data.lock, self.data.baton) = (None, None);
        if !self.data.waiters.is_empty() {
            self.put_in_transit(transit, now);
        }
        if has != 0 {
            self.data.fence = Some((has, false));
        }
        Some(true)
    }

    /// A connection blocks on the baton.
    pub fn block(&mut self, connection: Connection) {
        self.blocked.push_back(connection);
    }

    /// Who is served with the baton now, if anybody.
    pub fn serve(&mut self) -> Option<(Connection, Vec<u8>)> {
        let connection = *self.blocked.front()?;
        let (baton, _) = self.data.baton.take()?;
        self.blocked.pop_front();
        Some((connection, baton))
    }

    /// A connection blocks no more; false when it did not.
    pub fn unblock(&mut self, connection: Connection) -> bool {
        let before = self.blocked.len();
        self.blocked.retain(|other| *other != connection);
        self.blocked.len() < before
    }

    /// A fenced effect: the script compares the whole value, in the same step. None when it is refused,
    /// else whether an effect of a younger grant came before.
    pub fn effect(&mut self, value: &[u8], now: u64) -> Option<bool> {
        self.expire(now);
        let ours = self.data.lock.as_ref().is_some_and(|(held, _)| held == value);
        if !ours && self.mutation != Mutation::NoCompare {
            return None;
        }
        let fence = fence_of(value);
        let stale = fence < self.data.effect;
        self.data.effect = self.data.effect.max(fence);
        Some(stale)
    }
}
