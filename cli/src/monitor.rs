//! `tagsweep status`, `force-release` and `metrics`: locks as seen from outside.

use crate::args::{ForceReleaseArgs, MetricsArgs, ServerArgs, StatusArgs, bytes};
use crate::output::{replace, span};
use crate::{Done, exit};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tagsweep::connect::Link;
use tagsweep::error::plain;
use tagsweep::lock::{self, Forced, Holder, LossReason, Run, RunEnd, SharedLink, Status, Waiter};
use tagsweep::metrics::{LockSample, SweepSample, open_metrics};
use tagsweep::sweep::{self, Totals};

pub(crate) fn link(server: &ServerArgs) -> tagsweep::Result<SharedLink> {
    Ok(Arc::new(Mutex::new(Link::new(server.config()?)?)))
}

/// The locks that were named, or all.
fn looked_at(link: &SharedLink, names: &[OsString]) -> tagsweep::Result<Vec<(Vec<u8>, Status)>> {
    let look = |name: Vec<u8>| lock::status(link, &name).map(|status| (name, status));
    if names.is_empty() {
        return Ok(lock::names(link)?
            .into_iter()
            .filter_map(|name| look_or_say(name, look))
            .collect());
    }
    let mut named: Vec<Vec<u8>> = names.iter().map(|name| bytes(name)).collect();
    named.sort();
    named.dedup();
    named.into_iter().map(look).collect()
}

/// Of all locks, one that is none (`lock:cart` of another program) is told of, and passed over.
fn look_or_say<T>(name: Vec<u8>, look: impl Fn(Vec<u8>) -> tagsweep::Result<T>) -> Option<T> {
    look(name).inspect_err(|e| complain!("tagsweep: passed over: {e}")).ok()
}

pub(crate) fn status(args: &StatusArgs) -> Done {
    let locks = looked_at(&link(&args.server)?, &args.names)?;
    let mut out = std::io::stdout().lock();
    for (name, status) in &locks {
        if args.json {
            writeln!(out, "{}", as_json(name, status))?;
        } else {
            write!(out, "{}", as_text(name, status))?;
        }
    }
    if locks.is_empty() && !args.json {
        writeln!(out, "no locks")?;
    }
    Ok(exit::DONE)
}

pub(crate) fn force_release(args: &ForceReleaseArgs) -> Done {
    let name = plain(&args.name.to_string_lossy());
    match lock::force_release(&link(&args.server)?, &bytes(&args.name), args.fence)? {
        Forced::Taken(holder) => {
            say!("{name}: taken away; it was {}", named(&holder));
            Ok(exit::DONE)
        }
        Forced::Free => {
            say!("{name}: free already");
            Ok(exit::DONE)
        }
        Forced::Another(holder) => {
            complain!("tagsweep: {name} is {}; nothing was done", named(&holder));
            Ok(exit::HELD)
        }
    }
}

pub(crate) fn metrics(args: &MetricsArgs) -> Done {
    let link = link(&args.server)?;
    let locks = looked_at(&link, &args.names)?;
    let sweeps = swept_under(&link, &locks)?;
    let sweeps: Vec<SweepSample> =
        sweeps.iter().map(|(lock, totals)| SweepSample { lock, totals }).collect();
    let samples: Vec<LockSample> = locks
        .iter()
        .map(|(name, status)| LockSample { name, stats: &status.stats, status: Some(status) })
        .collect();
    let text = open_metrics(&samples, &sweeps);
    match &args.output {
        None => std::io::stdout().write_all(text.as_bytes())?,
        Some(path) => replace(path, text)?,
    }
    Ok(exit::DONE)
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
    format!("{}{}", named(holder), ago.map_or(String::new(), |ago| format!(", for {ago}")))
}

fn named(holder: &Holder) -> String {
    let fence = match holder.fence {
        Some(0) => return "being handed over to a waiter".into(),
        None => return "held by an unknown program (its value is not tagsweep's)".into(),
        Some(fence) => fence,
    };
    let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "?".into());
    let pid = holder.pid.map_or("?".into(), |pid| pid.to_string());
    let (host, program) = (part(&holder.host), part(&holder.program));
    format!("held by {host} pid {pid} ({program}), fence {fence}")
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
    let seconds = |span: Duration| span.as_secs_f64();
    let holder = status.holder.as_ref().map(|holder| {
        json!({
            "fence": holder.fence, "host": holder.host, "pid": holder.pid,
            "program": holder.program, "ttl_s": holder.ttl.map(seconds),
            "since": holder.since().map(seconds),
        })
    });
    let waiter = |waiter: &Waiter| {
        json!({ "host": waiter.host, "pid": waiter.pid, "program": waiter.program,
                "since": seconds(waiter.since) })
    };
    let run = |run: &Run| {
        let (held, end) = match run.end {
            RunEnd::Released(held) => (Some(seconds(held)), "released"),
            RunEnd::Abandoned => (None, "abandoned"),
            RunEnd::Forced => (None, "forced"),
        };
        json!({ "fence": run.fence, "host": run.host, "pid": run.pid,
                "held_s": held, "end": end })
    };
    let stats = &status.stats;
    let lost: serde_json::Map<String, Value> = LossReason::ALL
        .into_iter()
        .map(|why| (why.name().to_owned(), json!(stats.lost.get(&why).copied().unwrap_or(0))))
        .collect();
    json!({
        "type": "lock", "name": String::from_utf8_lossy(name), "holder": holder,
        "overlong": status.is_overlong(), "fence": status.fence,
        "waiting": status.waiting,
        "waiters": status.waiters.iter().map(waiter).collect::<Vec<_>>(),
        "runs": status.runs.iter().map(run).collect::<Vec<_>>(),
        "ttl_configured_s": seconds(stats.ttl), "acquired": stats.acquired, "held": stats.held,
        "timeouts": stats.timeouts, "unknown": stats.unknown,
        "errors": stats.errors, "takeovers": stats.takeovers,
        "renewed": stats.renewed, "renew_failed": stats.renew_failed, "lost": lost,
        "time": seconds(status.time),
    })
}
