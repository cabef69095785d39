//! `tagsweep status`, `force-release` and `metrics`: locks as seen from outside.

use crate::args::{ForceReleaseArgs, MetricsArgs, ServerArgs, StatusArgs, bytes};
use crate::output::{replace, span};
use crate::{Done, exit};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tagsweep::connect::Link;
use tagsweep::error::plain;
use tagsweep::lock::{self, Forced, Holder, LossReason, Run, RunEnd, SharedLink, Status, Waiter};
use tagsweep::metrics::{LockSample, SweepSample, labelled, open_metrics};
use tagsweep::sweep::{self, Totals};
use tagsweep::{Error, ErrorKind};

pub(crate) fn link(server: &ServerArgs) -> tagsweep::Result<SharedLink> {
    Ok(Arc::new(Mutex::new(Link::new(server.config()?)?)))
}

/// What was seen of locks, and whether one that was named could not be looked at.
struct Looked {
    locks: Vec<(Vec<u8>, Status)>,
    passed_over: bool,
}

impl Looked {
    fn code(&self) -> u8 {
        if self.passed_over { exit::ERROR } else { exit::DONE }
    }
}

/// The locks that were named, or all. One that is none (`lock:cart` of another program) is told of, and passed
/// over.
fn looked_at(link: &SharedLink, names: &[OsString]) -> tagsweep::Result<Looked> {
    let mut named: Vec<Vec<u8>> = names.iter().map(|name| bytes(name)).collect();
    if names.is_empty() {
        named.extend(lock::names(link)?);
    }
    named.sort();
    named.dedup();
    let mut looked = Looked { locks: Vec::new(), passed_over: false };
    for name in named {
        match lock::status(link, &name) {
            Ok(status) => looked.locks.push((name, status)),
            Err(e) if matches!(e.kind(), ErrorKind::WrongType | ErrorKind::Refused) => {
                complain!("tagsweep: passed over: {e}");
                looked.passed_over |= !names.is_empty();
            }
            Err(e) => return Err(e),
        }
    }
    Ok(looked)
}

pub(crate) fn status(args: &StatusArgs) -> Done {
    let looked = looked_at(&link(&args.server)?, &args.names)?;
    for (name, status) in &looked.locks {
        match args.json {
            true => say!("{}", as_json(name, status)),
            false => say!("{}", as_text(name, status).trim_end_matches('\n')),
        }
    }
    if looked.locks.is_empty() && !looked.passed_over && !args.json {
        say!("no locks");
    }
    Ok(looked.code())
}

pub(crate) fn force_release(args: &ForceReleaseArgs) -> Done {
    let name = plain(&args.name.to_string_lossy());
    match lock::force_release(&link(&args.server)?, &bytes(&args.name), args.fence)? {
        Forced::Taken(holder) => {
            let learns = match holder.fence {
                Some(1..) => "; that learns of it when it next renews or asks",
                _ => "",
            };
            say!("{name}: taken away; it was {}{learns}", holder.who());
            Ok(exit::DONE)
        }
        Forced::Free => {
            say!("{name}: free already");
            Ok(exit::DONE)
        }
        Forced::Another(holder) => {
            complain!("tagsweep: {name} is {}; nothing was done", holder.who());
            Ok(exit::HELD)
        }
    }
}

pub(crate) fn metrics(args: &MetricsArgs) -> Done {
    let names: BTreeSet<&String> = args.label.iter().map(|(name, _)| name).collect();
    if names.len() < args.label.len() {
        return Err(Error::bad_argument("each --label needs a name of its own").into());
    }
    let link = link(&args.server)?;
    let looked = looked_at(&link, &args.names)?;
    let sweeps = swept_under(&link, &looked.locks)?;
    let sweeps: Vec<SweepSample> =
        sweeps.iter().map(|(lock, totals)| SweepSample { lock, totals }).collect();
    let samples: Vec<LockSample> = looked
        .locks
        .iter()
        .map(|(name, status)| LockSample { name, stats: &status.stats, status: Some(status) })
        .collect();
    let text = labelled(&open_metrics(&samples, &sweeps), &args.label);
    match &args.output {
        None => replace(Path::new("-"), text)?,
        Some(path) => replace(path, text)?,
    }
    Ok(looked.code())
}

/// The locks under which anything was ever swept.
fn swept_under<'a>(
    link: &SharedLink,
    locks: &'a [(Vec<u8>, Status)],
) -> tagsweep::Result<Vec<(&'a [u8], Totals)>> {
    let totals = locks.iter().map(|(name, _)| Ok((name.as_slice(), sweep::totals(link, name)?)));
    let totals: Vec<_> = totals.collect::<tagsweep::Result<_>>()?;
    Ok(totals.into_iter().filter(|(_, totals)| !totals.runs.is_empty()).collect())
}

fn as_text(name: &[u8], status: &Status) -> String {
    let mut text = format!("{}\n", plain(&String::from_utf8_lossy(name)));
    let mut line = |what: &str, said: String| text.push_str(&format!("  {what:<10} {said}\n"));
    match &status.holder {
        None => line("free", String::new()),
        Some(holder) => {
            line("holder", describe(holder, status.time));
            line("ttl left", holder.ttl.map_or("never expires".into(), span));
        }
    }
    if status.kept {
        line("kept", "its holder has given it back; it stays taken for its minimum time".into());
    }
    if status.is_overlong() {
        let usual = span(status.stats.ttl);
        line(
            "warning",
            format!("the TTL left exceeds the configured {usual}: was the clock set back?"),
        );
    }
    if let Some(fence) = status.fence {
        line("fence", fence.to_string());
    }
    for (place, waiter) in status.waiters.iter().enumerate() {
        line(&format!("waiter {}", place + 1), waits(waiter, status.time));
    }
    if status.waiting > status.waiters.len() as u64 {
        line("waiters", format!("{} in all", status.waiting));
    }
    for run in &status.runs {
        line("past", ran(run, status.time));
    }
    line("counts", counts(status));
    text
}

fn describe(holder: &Holder, now: Duration) -> String {
    let ago = holder.since().map(|since| span(now.saturating_sub(since)));
    format!("{}{}", holder.who(), ago.map_or(String::new(), |ago| format!(", for {ago}")))
}

fn waits(waiter: &Waiter, now: Duration) -> String {
    let host = waiter.host.as_deref().unwrap_or("?");
    let pid = waiter.pid.map_or("?".into(), |pid| pid.to_string());
    format!("{host} pid {pid}, for {}", span(now.saturating_sub(waiter.since)))
}

fn ran(run: &Run, now: Duration) -> String {
    let host = run.host.as_deref().unwrap_or("?");
    let pid = run.pid.map_or("?".into(), |pid| pid.to_string());
    let ago = span(now.saturating_sub(Duration::from_micros(run.fence)));
    let end = match run.end {
        RunEnd::Released(held) => format!("held it {}", span(held)),
        RunEnd::Abandoned => "never gave it back".into(),
        RunEnd::Forced => "had it taken away".into(),
    };
    format!("{host} pid {pid} {end}, taken {ago} ago, fence {}", run.fence)
}

fn counts(status: &Status) -> String {
    let stats = &status.stats;
    let lost: u64 = stats.lost.values().sum();
    let quantile = |h: &lock::Histogram| h.quantile(0.99).map_or("-".into(), span);
    format!(
        "{} acquired, {} held by others, {} timeouts, {} takeovers, {lost} lost; \
         p99 of waits {}, of holds {}",
        stats.acquired,
        stats.held,
        stats.timeouts,
        stats.takeovers,
        quantile(&stats.waits),
        quantile(&stats.holds)
    )
}

fn as_json(name: &[u8], status: &Status) -> Value {
    let stats = &status.stats;
    let lost: serde_json::Map<String, Value> = LossReason::ALL
        .into_iter()
        .map(|why| (why.name().to_owned(), json!(stats.lost.get(&why).copied().unwrap_or(0))))
        .collect();
    json!({
        "type": "lock", "name": String::from_utf8_lossy(name),
        "holder": status.holder.as_ref().map(holder_as_json),
        "overlong": status.is_overlong(), "fence": status.fence, "waiting": status.waiting,
        "kept": status.kept,
        "waiters": status.waiters.iter().map(waiter_as_json).collect::<Vec<_>>(),
        "runs": status.runs.iter().map(run_as_json).collect::<Vec<_>>(),
        "ttl_configured_s": stats.ttl.as_secs_f64(), "acquired": stats.acquired,
        "held": stats.held, "timeouts": stats.timeouts, "unknown": stats.unknown,
        "errors": stats.errors, "takeovers": stats.takeovers,
        "renewed": stats.renewed, "renew_failed": stats.renew_failed, "lost": lost,
        "time": status.time.as_secs_f64(),
    })
}

fn holder_as_json(holder: &Holder) -> Value {
    json!({
        "fence": holder.fence, "host": holder.host, "pid": holder.pid, "program": holder.program,
        "ttl_s": holder.ttl.map(|ttl| ttl.as_secs_f64()),
        "since": holder.since().map(|since| since.as_secs_f64()),
    })
}

fn waiter_as_json(waiter: &Waiter) -> Value {
    json!({ "host": waiter.host, "pid": waiter.pid, "program": waiter.program,
            "since": waiter.since.as_secs_f64() })
}

fn run_as_json(run: &Run) -> Value {
    let (held, end) = match run.end {
        RunEnd::Released(held) => (Some(held.as_secs_f64()), "released"),
        RunEnd::Abandoned => (None, "abandoned"),
        RunEnd::Forced => (None, "forced"),
    };
    json!({ "fence": run.fence, "host": run.host, "pid": run.pid, "held_s": held, "end": end })
}
