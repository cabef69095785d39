//! Leases are given back when a signal ends PHP: TERM, INT and HUP, as long as nobody else handles them.
//!
//! Nothing can be said to a server from within a signal handler. Ours asks the engine for an interrupt,
//! as pcntl does, which comes before the next opcode: there the leases are released, each within a second
//! and once, and the signal is let do what it would have done. Sleeps and waits of PHP are cut short by
//! the signal. A second signal, or one without any lease, ends the process at once.

use crate::gate::{disposition, sigaction};
use crate::lock::release_all;
use ext_php_rs::zend::{ExecuteData, ExecutorGlobals};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};

unsafe extern "C" {
    #[link_name = "zend_interrupt_function"]
    static mut INTERRUPT: Option<Interrupt>;
}

type Interrupt = unsafe extern "C" fn(*mut ExecuteData);

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Leases that this process holds.
pub(crate) static LEASES: AtomicUsize = AtomicUsize::new(0);

/// The signal that is to end the process, once.
static ENDING: AtomicI32 = AtomicI32::new(0);

/// The engine's flag for an interrupt: one byte.
static FLAG: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Who was interrupted before us.
static BEFORE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// At module start.
pub(crate) fn prepare() {
    // SAFETY: at module start one thread runs; the pointer is the engine's to chain, as pcntl does.
    unsafe {
        let before = (&raw const INTERRUPT).read();
        let before = before.map_or(std::ptr::null_mut(), |before| before as *mut ());
        BEFORE.store(before, Ordering::Release);
        (&raw mut INTERRUPT).write(Some(on_interrupt));
    }
}

/// Takes those signals over that nobody handles. In a PHP with threads the process is a server's, and so
/// are its signals.
pub(crate) fn watch() {
    // SAFETY: looks a symbol up in the running program.
    if !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"tsrm_get_ls_cache".as_ptr()) }.is_null() {
        return;
    }
    static FOUND: Once = Once::new();
    FOUND.call_once(|| {
        let flag = &raw const ExecutorGlobals::get().vm_interrupt;
        FLAG.store(flag.cast_mut().cast(), Ordering::Release);
    });
    for signal in SIGNALS.into_iter().filter(|signal| disposition(*signal) == libc::SIG_DFL) {
        sigaction(signal, on_signal as *const () as libc::sighandler_t);
    }
}

/// Whether a disposition is ours, which stands for the default.
pub(crate) fn is_ours(handler: libc::sighandler_t) -> bool {
    handler == on_signal as *const () as libc::sighandler_t
}

extern "C" fn on_signal(signal: libc::c_int) {
    let first = ENDING.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire).is_ok();
    let flag = FLAG.load(Ordering::Acquire);
    if first && LEASES.load(Ordering::Acquire) > 0 && !flag.is_null() {
        // SAFETY: one byte of the engine's, made to be written by signal handlers.
        unsafe { flag.write_volatile(1) };
    } else {
        end(signal);
    }
}

/// Lets a signal do what it would have done.
fn end(signal: libc::c_int) {
    // SAFETY: both may be called in a signal handler. While one runs its signal is blocked, and ends the
    // process when it returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

unsafe extern "C" fn on_interrupt(frame: *mut ExecuteData) {
    let signal = ENDING.load(Ordering::Acquire);
    if signal != 0 && LEASES.load(Ordering::Acquire) > 0 {
        // A panic must not cross into the engine, and the process ends in any case.
        let _ = std::panic::catch_unwind(release_all);
        end(signal);
    }
    let before = BEFORE.load(Ordering::Acquire);
    if !before.is_null() {
        // SAFETY: what the engine had in its place, called as the engine would.
        unsafe { std::mem::transmute::<*mut (), Interrupt>(before)(frame) };
    }
}
