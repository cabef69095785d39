//! Signals, told to those who can act on them.
//!
//! The main thread blocks them, so that no read from the server is interrupted; a thread of their
//! own takes them and passes them on.

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level::siginfo::Cause;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Those that ask a program to end.
pub(crate) const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A second one counts from then on after the first: `timeout`, a shell's `kill %1` and whoever signals a whole
/// group send each twice.
const IMPATIENT: Duration = Duration::from_secs(1);

/// Those that a wrapped command is to have, too; not those that are ignored, for then the command is to ignore
/// them as well.
pub(crate) fn forwarded() -> Vec<Signal> {
    heeded(&FORWARDED)
}

/// Those that are not ignored, as `nohup` and a shell's `&` have it.
fn heeded(signals: &[Signal]) -> Vec<Signal> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let is_ignored = |signal: &&Signal| mask >> (**signal as i32 - 1) & 1 == 1;
    signals.iter().filter(|signal| !is_ignored(signal)).copied().collect()
}

const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

fn set(signals: &[Signal]) -> SigSet {
    signals.iter().copied().collect()
}

/// Calls `tell` for each of the signals from now on, with whether a process sent it; the terminal's come
/// from the kernel. Call it before other threads are made.
pub(crate) fn listen(
    which: &[Signal],
    mut tell: impl FnMut(Signal, bool) + Send + 'static,
) -> std::io::Result<()> {
    let which = set(which);
    which.thread_block()?;
    let numbers = which.iter().map(|signal| signal as i32);
    let mut signals = SignalsInfo::<WithOrigin>::new(numbers)?;
    let thread = std::thread::Builder::new().spawn(move || {
        // If it cannot be unblocked here, signals stay pending: nothing is lost but promptness.
        let _ = which.thread_unblock();
        for origin in signals.forever() {
            let sent = !matches!(origin.cause, Cause::Kernel);
            let _ = Signal::try_from(origin.signal).map(|signal| tell(signal, sent));
        }
    });
    thread.map(drop).map_err(no_thread)
}

/// Says what it is that there is no more of.
pub(crate) fn no_thread(e: std::io::Error) -> std::io::Error {
    std::io::Error::new(e.kind(), format!("the system gives no thread: {e}"))
}

/// Does something with the signals unblocked, for a child inherits the mask.
pub(crate) fn unblocked<T>(which: &[Signal], act: impl FnOnce() -> T) -> std::io::Result<T> {
    let which = set(which);
    which.thread_unblock()?;
    let done = act();
    which.thread_block()?;
    Ok(done)
}

/// A flag that the first of these signals raises; one that comes a second later ends the process as it would have.
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let (raised, mut first) = (Arc::clone(&flag), None);
    listen(&heeded(&ENDING), move |signal, _| {
        raised.store(true, Ordering::SeqCst);
        if first.get_or_insert_with(Instant::now).elapsed() >= IMPATIENT {
            let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
        }
    })?;
    Ok(flag)
}
