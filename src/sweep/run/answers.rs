//! What follows from each answer. Every one either settles something or leads to another question;
//! nothing here sends or waits.

use crate::clock::Moment;
use crate::connect::may_pass;
use crate::error::{Error, ErrorKind, Result};
use crate::reply::{Info, checked};
use crate::sweep::round::Ask;
use crate::sweep::run::Running;
use crate::topology::{Facts, bytes_received, cpu_used, time_of};
use redis::Value;
use std::time::Duration;

/// A field of a hash, and what it holds.
pub(super) type Field = (Vec<u8>, Vec<u8>);

impl Running<'_> {
    /// Goes where an answer leads.
    pub(super) fn follow(&mut self, ask: Ask, replies: Vec<Value>, sent: Moment) -> Result<()> {
        if let Some(fault) = replies.iter().find_map(passing_fault) {
            self.ask_again(ask);
            return Err(fault);
        }
        match ask {
            Ask::Page { count, .. } => self.paged(count, replies)?,
            Ask::Recall(visit) => self.recalled(visit, &replies, sent),
            Ask::Read { visit, cursor, .. } => self.read(visit, cursor, replies, sent)?,
            Ask::Weigh { members, .. } => {
                if let Some(bytes) = replies.first().and_then(number) {
                    self.figures.weigh(bytes, members);
                }
            }
            Ask::Look(batch) => self.looked(batch, replies)?,
            Ask::Sift(batch, group) => self.sifted(batch, group, &replies),
            Ask::Lifetimes(batch) => self.vouched(batch, &replies),
            Ask::Prune(batches) => self.pruned(batches, replies)?,
            Ask::Invalidate { batch, live, again } => {
                self.invalidated(batch, live, again, replies)?
            }
            Ask::Verify(removed) => self.verified(removed, first(replies)),
            Ask::Restore(batch) => self.restored(batch, replies)?,
            Ask::Extend => self.extended(replies, sent)?,
            Ask::Load => self.loaded(&replies, sent),
            Ask::Recover { .. } => self.recovered(replies)?,
            Ask::Tidy { first, .. } => self.tidied_up(first, replies)?,
            Ask::Untouch(on) => self.untouching &= !on || replies.first() == Some(&Value::Okay),
            Ask::Checkpoint(_) | Ask::CrossOut(_) | Ask::Remember { .. } => {}
            Ask::Records(_) | Ask::Forget { .. } => {}
        }
        Ok(())
    }

    /// How the server is: whether it saves, how busy it is, whether tags are written to. Who may not ask knows nothing.
    fn loaded(&mut self, replies: &[Value], sent: Moment) {
        let now = Moment::now();
        let text = |at: usize| match replies.get(at) {
            Some(Value::BulkString(info)) => String::from_utf8_lossy(info),
            _ => "".into(),
        };
        let time = replies.get(4).and_then(|told| redis::from_redis_value_ref(told).ok());
        let time = time.map_or(Duration::ZERO, time_of);
        let facts = Facts::read(&[text(0), text(2), text(3)].concat(), time);
        self.idle.observe(&facts, sent, now);
        // First: where others are not at work, nobody is made room for.
        if let Some(received) = bytes_received(Info(&text(2))) {
            self.pace.observe_others(received - self.wire.sent as f64, now);
        }
        if let Some(used) = cpu_used(Info(&text(1))) {
            self.pace.observe_cpu(used, now);
        }
    }

    fn extended(&mut self, replies: Vec<Value>, sent: Moment) -> Result<()> {
        let reply = match checked(first(replies)) {
            // What is left to do needs no lock.
            Err(_) if self.is_ending() => return Ok(()),
            reply => reply.map_err(|e| e.key(&self.contender.keys().lock))?,
        };
        if self.contender.lease().is_some() && !self.contender.extend_replied(&reply, sent)? {
            self.lost();
        }
        Ok(())
    }
}

/// An answer that may be another one in a moment: the server is busy, or forgot our scripts.
fn passing_fault(reply: &Value) -> Option<Error> {
    let Value::ServerError(_) = reply else { return None };
    match checked(reply.clone()) {
        Err(e) if e.code() == Some("NOSCRIPT") => {
            Some(Error::new(ErrorKind::Unknown, "the server forgot our scripts"))
        }
        Err(e) if may_pass(&e) => Some(e),
        _ => None,
    }
}

pub(super) fn first(replies: Vec<Value>) -> Value {
    replies.into_iter().next().unwrap_or(Value::Nil)
}

pub(super) fn last(replies: &mut Vec<Value>) -> Value {
    replies.pop().unwrap_or(Value::Nil)
}

pub(super) fn number(reply: &Value) -> Option<u64> {
    match reply {
        Value::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}
