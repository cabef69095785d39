//! Signals, told to those who can act on them.
//!
//! The main thread blocks them, so that no read from the server is interrupted; a thread of their
//! own takes them and passes them on.

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

fn ending() -> SigSet {
    ENDING.into_iter().collect()
}

/// Calls `tell` for every INT, TERM and HUP from now on. Call it before other threads are made.
pub(crate) fn listen(mut tell: impl FnMut(Signal) + Send + 'static) -> std::io::Result<()> {
    ending().thread_block()?;
    let mut signals = Signals::new(ENDING.map(|signal| signal as i32))?;
    std::thread::spawn(move || {
        // If it cannot be unblocked here, signals stay pending: nothing is lost but promptness.
        let _ = ending().thread_unblock();
        signals.forever().filter_map(|n| Signal::try_from(n).ok()).for_each(&mut tell);
    });
    Ok(())
}

/// Does something with the signals unblocked, for a child inherits the mask.
pub(crate) fn unblocked<T>(act: impl FnOnce() -> T) -> std::io::Result<T> {
    ending().thread_unblock()?;
    let done = act();
    ending().thread_block()?;
    Ok(done)
}

/// A flag that the first of these signals raises; the second ends the process as it would have.
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    listen(move |signal| {
        if raised.swap(true, Ordering::SeqCst) {
            let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
        }
    })?;
    Ok(flag)
}
