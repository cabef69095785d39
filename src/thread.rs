//! Threads beside those of the application: no signal handler of it ever runs in one.

use nix::sys::signal::{SigSet, SigmaskHow};
use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread with all signals blocked from its first instruction on.
pub(crate) fn start(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
    let thread = Builder::new().name(name.into()).stack_size(1 << 20).spawn(body);
    if let Some(before) = before {
        // It was in force a moment ago.
        let _ = before.thread_set_mask();
    }
    thread
}
