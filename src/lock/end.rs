//! The end of a lease: it is given back, or found to be lost.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::ASIDE;
use crate::lock::contender::Contender;
use crate::lock::drive::{Asked, ask};
use crate::lock::loss::{self, Loss};
use crate::lock::protocol::{Answer, Request};
use crate::lock::stats::LossReason;
use crate::reply::understood;

/// Releases; false when it was not ours any more.
pub(crate) fn release(contender: &mut Contender, link: &mut Link) -> Result<bool> {
    end(contender, link, Contender::release)
}

/// Ends a lease as the contender says.
pub(crate) fn end(
    contender: &mut Contender,
    link: &mut Link,
    say: impl FnOnce(&mut Contender, Moment) -> Option<Request>,
) -> Result<bool> {
    let known = contender.known_loss();
    let restored = contender.is_restored();
    let (until, too_long) = (contender.safe_until(), contender.is_held_too_long(Moment::now()));
    let Some(request) = say(contender, Moment::now()) else { return settle(contender, link) };
    let Asked { answer, repeated, .. } = ask(link, contender.keys(), &request)?;
    let after = Moment::now() + ASIDE;
    let done = match (&answer, &request) {
        (Answer::Released, _) => true,
        // Gone after an attempt whose reply was lost: did that attempt release it?
        (_, Request::Release { fence, .. }) if repeated => {
            let (keys, recorded) = (contender.keys(), contender.options().record);
            let unknown =
                Error::new(ErrorKind::Unknown, "its answer was lost, and others had it since");
            link.hurry(after.left(), |link| loss::was_given_back(link, keys, *fence, recorded))
                .and_then(|told| told.ok_or(unknown))
                .map_err(|e| e.key(&keys.lock))?
        }
        _ => false,
    };
    contender.released(&request, done, Moment::now());
    if let (Request::Release { fence, .. }, false, None, false) = (&request, done, known, restored)
    {
        let until = until.unwrap_or(Moment::now());
        let loss = Loss { fence: *fence, until, found: LossReason::Expired };
        let reason = match too_long {
            true => Some(LossReason::MaxHold),
            false => link.hurry(after.left(), |link| became(link, contender, &loss)),
        };
        reason.into_iter().for_each(|reason| contender.count_loss(reason));
    }
    Ok(done)
}

/// Gives up what an acquisition was granted of which nobody knows what it came to; false when that is nothing.
fn settle(contender: &mut Contender, link: &mut Link) -> Result<bool> {
    if contender.unsettled().is_none() {
        return Ok(false);
    }
    let key = &contender.keys().lock;
    // A replica, which knows of the past only, refuses this.
    let look = redis::cmd("GETEX").arg(key).to_owned();
    let value = link.persist(|link, deadline| link.call(&look, deadline));
    let value: Option<Vec<u8>> = value.and_then(understood).map_err(|e| e.key(key))?;
    let released = match value.and_then(|value| contender.give_up_unheard(value)) {
        Some(request) => ask(link, contender.keys(), &request)?.answer == Answer::Released,
        None => false,
    };
    contender.settle();
    Ok(released)
}

/// Why a lease was lost; nothing if it was given back by somebody who has its owner, too.
fn became(link: &mut Link, contender: &Contender, loss: &Loss) -> Option<LossReason> {
    let keys = contender.keys();
    let reason = loss::why(link, keys, loss);
    // Unless others had it since: what is on record of that goes back ten grants only.
    let given_back = reason == LossReason::Expired
        && loss::was_given_back(link, keys, loss.fence, false).ok().flatten() == Some(true);
    (!given_back).then_some(reason)
}
