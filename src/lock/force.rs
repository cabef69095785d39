//! How an operator takes a lock away from its holder.

use crate::connect::Link;
use crate::error::Result;
use crate::lock::lease::{Holder, tokens, transit};
use crate::lock::protocol::{CLAIM, Keys, MEMORY_MS};
use crate::lock::{SharedLink, guard};
use crate::reply::senseless;
use crate::script::{Args, FORCE};
use redis::Value;
use std::time::Duration;

/// What a force release came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forced {
    /// It was taken away from this holder.
    Taken(Holder),
    /// Another grant than the one that was meant has it.
    Another(Holder),
    /// Nobody has it.
    Free,
}

/// Takes a lock away from its holder, if the holder's grant has this fence (`None`: whoever holds it),
/// and hands it to the first who waits. One round trip. The holder finds out at its next renewal, and
/// every fenced command of it is refused from now on.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) name; whatever keeps the server from answering.
pub fn force_release(link: &SharedLink, name: &[u8], fence: Option<u64>) -> Result<Forced> {
    let link = &mut guard(link);
    let keys = Keys::new(&link.config().prefix, name)?;
    force(link, &keys, fence)
}

/// See [`force_release`].
pub(crate) fn force(link: &mut Link, keys: &Keys, fence: Option<u64>) -> Result<Forced> {
    let args = [&keys.lock, &keys.fence, &keys.waiters, &keys.baton, &keys.stats, &keys.runs];
    let args = args.into_iter().fold(Args::default(), |args, key| args.key(key));
    let args = args.arg(fence.map(|fence| fence.to_string()).unwrap_or_default());
    let args = args.arg(transit(&tokens()?.1)).number(CLAIM.as_millis()).number(MEMORY_MS);
    // Not repeated when its reply is lost: without a fence it might hit the next holder.
    let deadline = link.deadline();
    let reply = FORCE.run(link, &args, deadline).map_err(|e| e.key(&keys.lock))?;
    let Value::Array(items) = reply else { return Err(senseless().key(&keys.lock)) };
    let [Value::Int(taken), Value::BulkString(held), Value::Int(left)] = items.as_slice() else {
        let free = matches!(items.as_slice(), [Value::Int(0)]);
        return if free { Ok(Forced::Free) } else { Err(senseless().key(&keys.lock)) };
    };
    let holder = Holder::read(held, u64::try_from(*left).ok().map(Duration::from_millis));
    Ok(if *taken == 1 { Forced::Taken(holder) } else { Forced::Another(holder) })
}
