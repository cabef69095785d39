//! `tagsweep lock NAME -- COMMAND…`: like flock, across the fleet.

use crate::args::{LockArgs, bytes};
use crate::{Done, exit, signals};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tagsweep::lock::{Lock, Outcome};

/// Time between TERM and KILL for a command whose lease is lost.
const TERM_GRACE: Duration = Duration::from_secs(5);

enum Event {
    Signal(Signal),
    Exited(std::io::Result<ExitStatus>),
}

pub(crate) fn lock(args: &LockArgs) -> Done {
    let config = args.server.config()?;
    let patience = config.timeout.min(args.ttl / 3).max(Duration::from_millis(1));
    let mut lock = Lock::new(config.timeout(patience), &bytes(&args.name), args.ttl)?;
    let (tell, events) = channel();
    let interrupted = Arc::new(AtomicBool::new(false));
    listen(tell.clone(), Arc::clone(&interrupted))?;
    let mut go_on = |_: &_| !interrupted.load(Ordering::Relaxed);
    let fence = match lock.acquire_within(args.wait, &mut go_on)? {
        Outcome::Acquired { fence } => fence,
        Outcome::Held(holder) => {
            eprintln!("tagsweep: the lock {} is {holder}", args.name.to_string_lossy());
            let waited = !interrupted.load(Ordering::Relaxed);
            return Ok(if waited { args.conflict_exit_code } else { exit::PARTIAL });
        }
    };
    if interrupted.load(Ordering::Relaxed) {
        return Ok(exit::PARTIAL);
    }
    let pid = start(args, fence, tell)?;
    let code = watch(&mut lock, args.ttl, pid, &events)?;
    if let Err(e) = lock.release() {
        eprintln!("tagsweep: the lock could not be released and ends with its TTL: {e}");
    }
    Ok(code)
}

fn listen(tell: Sender<Event>, interrupted: Arc<AtomicBool>) -> std::io::Result<()> {
    signals::listen(move |signal| {
        interrupted.store(true, Ordering::Relaxed);
        // Nobody listens any more when the command has ended.
        let _ = tell.send(Event::Signal(signal));
    })
}

/// Starts the command; a thread waits for its end.
fn start(args: &LockArgs, fence: u64, tell: Sender<Event>) -> std::io::Result<Pid> {
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]).env("TAGSWEEP_FENCE", fence.to_string());
    let spawned = signals::unblocked(|| command.spawn())?;
    let mut child: Child = spawned.map_err(|e| {
        let name = args.command[0].to_string_lossy();
        std::io::Error::new(e.kind(), format!("{name} could not be started: {e}"))
    })?;
    let pid = Pid::from_raw(child.id() as i32);
    std::thread::spawn(move || tell.send(Event::Exited(child.wait())));
    Ok(pid)
}

/// Keeps the lease while the command runs, and hands signals on. When the lease is lost, the command
/// is told to end, and ended.
fn watch(lock: &mut Lock, ttl: Duration, pid: Pid, events: &Receiver<Event>) -> Done {
    let mut next = Instant::now() + ttl / 3;
    let mut lost: Option<Instant> = None;
    loop {
        match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Event::Exited(status)) if lost.is_none() => return Ok(code(status?)),
            Ok(Event::Exited(_)) => return Ok(exit::PARTIAL),
            Ok(Event::Signal(signal)) => send(pid, signal),
            Err(RecvTimeoutError::Disconnected) => return Ok(exit::ERROR),
            Err(RecvTimeoutError::Timeout) if lost.is_some() => {
                send(pid, Signal::SIGKILL);
                next = Instant::now() + TERM_GRACE;
            }
            Err(RecvTimeoutError::Timeout) => match renew(lock, ttl) {
                Some(wait) => next = Instant::now() + wait,
                None => {
                    eprintln!("tagsweep: the lock was lost; ending the command");
                    send(pid, Signal::SIGTERM);
                    lost = Some(Instant::now());
                    next = Instant::now() + TERM_GRACE;
                }
            },
        }
    }
}

/// Extends the lease; when to do so next, `None` when it is lost. A failed attempt is repeated
/// until the lease's own deadline.
fn renew(lock: &mut Lock, ttl: Duration) -> Option<Duration> {
    match lock.extend(None) {
        Ok(true) => Some(ttl / 3),
        Ok(false) => None,
        Err(e) if lock.is_held() => {
            eprintln!("tagsweep: renewal failed, trying again: {e}");
            Some((ttl / 20).min(Duration::from_millis(500)))
        }
        Err(_) => None,
    }
}

fn send(pid: Pid, signal: Signal) {
    // It may have ended just now.
    let _ = kill(pid, signal);
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::ERROR)
}
