//! A grant that replicas have, too, where the holder asks for that.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::contender::Contender;
use crate::lock::end::end;
use crate::lock::lease::Lease;
use crate::lock::{ASIDE, Lock, guard};
use crate::reply::checked;
use crate::script::EXTEND;
use redis::Value;
use std::time::Duration;

/// How long replicas have to confirm a grant.
const CONFIRM: Duration = Duration::from_millis(500);

/// A server notices that the time of a WAIT is over ten times a second only.
const TARDY: Duration = Duration::from_millis(110);

/// How long that and giving the grant back may take at the very end of a wait.
const LEAST_CONFIRM: Duration = Duration::from_millis(45);

impl Lock {
    /// Has replicas confirm the grant by then, or gives it back.
    pub(super) fn confirm(&mut self, until: Moment) -> Result<()> {
        let wanted = i64::from(self.contender.options().confirm);
        if wanted == 0 {
            return Ok(());
        }
        let link = &mut guard(&self.link);
        let left = until.left().max(LEAST_CONFIRM);
        let confirmed = count(&self.contender, link, left);
        if confirmed.as_ref().is_ok_and(|n| *n >= wanted) {
            return Ok(());
        }
        // The grant must not outlive the doubt; if this fails too, it ends with its TTL.
        let token = self.contender.lease().and_then(Lease::token);
        let give_back = |link: &mut Link| end(&mut self.contender, link, Contender::give_back);
        let given_back = link.hurry(ASIDE.min(left / 3), give_back);
        let told = match confirmed {
            Ok(n) => format!("{n} of {wanted} replicas have the grant"),
            Err(e) if !e.is_unknown() && given_back.is_ok() => return Err(e),
            Err(e) if !e.is_unknown() => e.to_string(),
            Err(_) => "the server does not tell in time which replicas have the grant".to_owned(),
        };
        if let Err(e) = given_back {
            token.into_iter().for_each(|token| self.contender.unsettle(token));
            let told = format!("{told}, and it could not be given back");
            return Err(Error::new(ErrorKind::Unknown, told)
                .key(self.key())
                .server(&link.config().label())
                .advice("the grant ends with its TTL")
                .because(e));
        }
        Err(Error::new(ErrorKind::Unconfirmed, told)
            .key(self.key())
            .server(&link.config().label())
            .advice("it was given back; check the replicas, or ask for fewer"))
    }
}

/// How many replicas have the grant, asked within two thirds of the time that is left; none if it is lost.
fn count(contender: &Contender, link: &mut Link, left: Duration) -> Result<i64> {
    let span = CONFIRM.min(contender.ttl / 2).min(left.saturating_sub(TARDY) / 2);
    let mut wait = redis::cmd("WAIT");
    wait.arg(contender.options().confirm).arg(span.as_millis().max(1) as u64);
    // It is about what its connection wrote, which may be another than that of the grant: so the grant is
    // written once more.
    let again = EXTEND.by_body(&contender.extend_args().unwrap_or_default());
    let deadline = Moment::now() + (span + TARDY).min(left - left / 3);
    let replies = link.calls(&[again, wait], deadline)?;
    let extended = matches!(replies.first(), Some(Value::Array(items))
        if items.first() == Some(&Value::Int(1)));
    match checked(replies.into_iter().last().unwrap_or(Value::Nil))? {
        Value::Int(n) if extended => Ok(n),
        _ => Ok(0),
    }
}
