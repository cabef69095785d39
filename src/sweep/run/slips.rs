//! Slips: notes on the server of what was removed and not verified yet, for the case of a crash.

use crate::clock::Moment;
use crate::error::Result;
use crate::lock::companion;
use crate::reply::{checked, understood};
use crate::sweep::batch::{Batch, Twice};
use crate::sweep::round::Ask;
use crate::sweep::run::answers::{Field, first};
use crate::sweep::run::{Later, Running};
use crate::sweep::slip::{self, Done, Slip};
use redis::Value;
use std::rc::Rc;

/// The slips of a run.
#[derive(Default)]
pub(super) struct Slips {
    /// Those to be crossed out, and how many were written.
    pub crossed: Done,
    written: u64,
    /// Those about what could not be put back.
    pub unrestored: Vec<Rc<Slip>>,
}

impl Running<'_> {
    /// Gives batches that go to a script together a slip, if removals are noted.
    pub(super) fn noted(&mut self, mut batches: Vec<Batch>) -> Vec<Batch> {
        if self.options.durable {
            let id = self.slip_id(&self.slips.written.to_string());
            let slip = Slip::new(id.into(), &self.slips.crossed);
            self.slips.written += 1;
            batches.iter_mut().for_each(|batch| batch.slip = Some(Rc::clone(&slip)));
        }
        batches
    }

    fn slip_id(&self, number: &str) -> String {
        format!("{}.{number}", self.figures.fence.unwrap_or(0))
    }

    pub(super) fn cross_out(&mut self) {
        let ids = self.slips.crossed.take();
        // What was verified in a hurry is left to the next sweep as well.
        if !ids.is_empty() && !self.ending.called_off {
            self.queue.ask(Ask::CrossOut(ids));
        }
    }

    /// Takes up what an earlier sweep removed and did not live to verify.
    pub(super) fn recovered(&mut self, replies: Vec<Value>) -> Result<()> {
        let reply = match checked(first(replies)) {
            // Where nothing can be noted, a sweep that is to note must not begin.
            Err(e) if self.options.durable => {
                return Err(e.key(&companion(&self.contender.keys().lock, "quarantine")));
            }
            Err(e) => {
                self.warn(&format!("the quarantine of this lock was passed over: {e}"));
                return Ok(());
            }
            Ok(reply) => reply,
        };
        let (cursor, slips): (u64, Vec<Field>) = understood(reply)?;
        let now = Moment::now();
        // What we note meanwhile may be told, too, and is verified in its time.
        let ours = self.slip_id("");
        for (id, bytes) in slips.into_iter().filter(|(id, _)| !id.starts_with(ours.as_bytes())) {
            let slip = Slip::new(id, &self.slips.crossed);
            let left = slip::read(&bytes, &slip).into_iter();
            self.queue.put_unverified(left.map(|batch| (batch, Twice::Recovered)).collect(), now);
            self.warn("an earlier sweep had left what it removed to be looked at again");
        }
        if cursor != 0 {
            self.queue.waiting.put(Later::Recover(cursor), 0, now);
        }
        Ok(())
    }
}
