//! What became of a lease that is gone.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::Result;
use crate::lock::protocol::{Keys, RUNS};
use crate::lock::stats::LossReason;
use crate::lock::status::{Run, RunEnd, fence_of, past};
use crate::reply::{Info, texts, understood};
use redis::Value;
use std::time::Duration;

/// How long may be asked why a lease was lost: what was to be told is told already.
const WHY: Duration = Duration::from_millis(150);

/// A lease that was found lost, and as what.
pub(crate) struct Loss {
    pub fence: u64,
    /// Until when it should have lasted.
    pub until: Moment,
    pub found: LossReason,
}

/// Why a lease was lost, for a holder that found it gone: an operator leaves word, and what is gone
/// before its time leaves traces. One round trip, two if that must be told apart.
pub(crate) fn why(link: &mut Link, keys: &Keys, loss: &Loss) -> LossReason {
    let (early, deadline) = (!loss.until.passed(), (Moment::now() + WHY).min(link.deadline()));
    let Ok((grant, runs)) = grants(link, keys, deadline) else { return loss.found };
    if runs.iter().any(|run| run.fence == loss.fence && run.end == RunEnd::Forced) {
        return LossReason::Forced;
    }
    if loss.found != LossReason::Expired || !early {
        return loss.found;
    }
    // A user who may not ask is told nothing.
    let info: String =
        link.call(&redis::cmd("INFO"), deadline).and_then(understood).unwrap_or_default();
    cause(loss.fence, fence_of(&grant), evicts(&info))
}

/// What the server knows of grants: the last, and those that ended. One round trip.
fn grants(link: &mut Link, keys: &Keys, deadline: Moment) -> Result<(String, Vec<Run>)> {
    let asked = [
        redis::cmd("GET").arg(&keys.fence).to_owned(),
        redis::cmd("LRANGE").arg(&keys.runs).arg(0).arg(RUNS - 1).to_owned(),
    ];
    let mut replies = link.calls(&asked, deadline)?.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil);
    let grant: Option<String> = texts(next())?;
    let runs: Vec<String> = texts(next()).unwrap_or_default();
    Ok((grant.unwrap_or_default(), runs.iter().filter_map(|run| past(run)).collect()))
}

/// Whether a server, by its `INFO`, evicts keys and has done so.
fn evicts(info: &str) -> bool {
    let info = Info(info);
    let never = [None, Some("noeviction")].contains(&info.text("maxmemory_policy"));
    !never && info.number("evicted_keys").is_some_and(|count: u64| count > 0)
}

/// Whether a lease that is not there any more was given back by its holder, who has not heard of it: its
/// grant is closed then, or another has followed and no takeover is on record. `None` where none would be.
/// One round trip.
pub(crate) fn was_given_back(
    link: &mut Link,
    keys: &Keys,
    fence: u64,
    recorded: bool,
) -> Result<Option<bool>> {
    let deadline = link.deadline();
    let (grant, runs) = grants(link, keys, deadline)?;
    let is_forgotten = runs.len() >= RUNS && runs.iter().all(|run| run.fence > fence);
    let lost = |run: &Run| run.fence == fence && !matches!(run.end, RunEnd::Released(_));
    Ok(match fence_of(&grant) {
        Some(last) if last == fence => Some(!grant.contains('+') && !runs.iter().any(lost)),
        // What is on record goes back ten grants only.
        Some(last) if last > fence && recorded && !is_forgotten => Some(!runs.iter().any(lost)),
        Some(last) if last > fence => None,
        _ => Some(false),
    })
}

/// Why a key is gone before its time, by the last fence that the server knows of.
fn cause(fence: u64, last: Option<u64>, evicts: bool) -> LossReason {
    match last {
        Some(last) if last > fence => LossReason::Stolen,
        Some(last) if last == fence && !evicts => LossReason::Expired,
        Some(last) if last < fence => LossReason::Failover,
        None if !evicts => LossReason::Failover,
        _ => LossReason::Evicted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_gone_before_its_time_leaves_traces() {
        use LossReason::{Evicted, Expired, Failover, Stolen};
        let policy = |policy, count| {
            evicts(&format!("maxmemory_policy:{policy}\r\nevicted_keys:{count}\r\n"))
        };
        assert!(policy("allkeys-lru", 3) && !policy("allkeys-lru", 0) && !policy("noeviction", 3));
        assert!(!evicts(""));
        for (last, evicts, reason) in [
            (Some(7), false, Expired),
            (Some(7), true, Evicted),
            (Some(8), true, Stolen),
            (Some(6), true, Failover),
            (None, false, Failover),
            (None, true, Evicted),
        ] {
            assert_eq!(cause(7, last, evicts), reason, "{last:?} {evicts}");
        }
    }
}
