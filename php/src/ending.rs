//! Leases are given back when a signal ends PHP: TERM, INT and HUP, as long as nobody else handles them.
//!
//! Nothing can be said to a server from within a signal handler. Ours asks the engine for an interrupt,
//! as pcntl does, which comes before the next opcode: there the leases are released, each within a second
//! and once, and the signal is let do what it would have done. Sleeps and waits of PHP are cut short by
//! the signal. One that comes just before such a wait would be noticed only after it: a timer nudges it,
//! with a signal of its own, until the interrupt has come; a process that does not come to it within a second, for it
//! waits for somebody else, ends without. A second signal, or one without any lease, ends the process at once.

use crate::gate::{Interrupt, chain_interrupt, handler, sigaction, stand_for_default};
use ext_php_rs::zend::{ExecuteData, ExecutorGlobals};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// How long a wait may go on that began just after the signal.
const NUDGE: Duration = Duration::from_millis(20);

/// Nudges after which the process ends, for about a second: whatever it waits for begins its whole timeout
/// anew at each, and leases end with their TTL.
const PATIENCE: u32 = 50;

/// Those that there were.
static NUDGES: AtomicU32 = AtomicU32::new(0);

/// Leases that this process holds.
pub(crate) static LEASES: AtomicUsize = AtomicUsize::new(0);

/// The signal that is to end the process, once.
static ENDING: AtomicI32 = AtomicI32::new(0);

/// The engine's flag for an interrupt: one byte.
static FLAG: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// The timer that nudges; [`NO_TIMER`] where there is none.
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(NO_TIMER);

/// No kernel gives out this number.
const NO_TIMER: *mut libc::c_void = std::ptr::without_provenance_mut(usize::MAX);

/// The process that has the timer: a fork does not.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Releases all leases of this process.
static RELEASE: OnceLock<fn()> = OnceLock::new();

/// Who was interrupted before us.
static BEFORE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// At module start, with what releases all leases.
pub(crate) fn prepare(release_all: fn()) {
    let _ = RELEASE.set(release_all);
    stand_for_default(on_signal as *const () as libc::sighandler_t);
    let before = chain_interrupt(on_interrupt);
    let before = before.map_or(std::ptr::null_mut(), |before| before as *mut ());
    BEFORE.store(before, Ordering::Release);
}

/// Takes those signals over that nobody handles. In a PHP with threads the process is a server's, and so
/// are its signals.
pub(crate) fn watch() {
    if !is_alone() {
        return;
    }
    static FOUND: Once = Once::new();
    FOUND.call_once(|| {
        let flag = &raw const ExecutorGlobals::get().vm_interrupt;
        FLAG.store(flag.cast_mut().cast(), Ordering::Release);
    });
    create_timer();
    for signal in SIGNALS.into_iter().filter(|signal| handler(*signal) == libc::SIG_DFL) {
        sigaction(signal, on_signal as *const () as libc::sighandler_t);
    }
}

/// Whether this PHP is one without threads.
fn is_alone() -> bool {
    static ALONE: OnceLock<bool> = OnceLock::new();
    *ALONE.get_or_init(|| {
        // SAFETY: looks a symbol up in the running program.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"tsrm_get_ls_cache".as_ptr()) }.is_null()
    })
}

/// The signal of the nudges, one that nobody handles: the engine keeps those that it knows in a queue, and what
/// it says of them later is not to be relied on. None where all are in use.
fn nudging() -> Option<libc::c_int> {
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().find(|signal| handler(*signal) == libc::SIG_DFL)
}

/// Once in each process. Without a timer, a signal just before a wait is noticed after it.
fn create_timer() {
    let process = std::process::id();
    if OWNER.swap(process, Ordering::AcqRel) == process {
        return;
    }
    TIMER.store(NO_TIMER, Ordering::Release);
    let Some(signal) = nudging() else { return };
    let mut event = MaybeUninit::<libc::sigevent>::zeroed();
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut made = NO_TIMER;
    // SAFETY: whole structs, zero where it does not matter, and a handler that lives as long as the program.
    unsafe {
        (*action.as_mut_ptr()).sa_sigaction = on_nudge as *const () as libc::sighandler_t;
        (*event.as_mut_ptr()).sigev_notify = libc::SIGEV_SIGNAL;
        (*event.as_mut_ptr()).sigev_signo = signal;
        let heard = libc::sigaction(signal, action.as_ptr(), std::ptr::null_mut()) == 0;
        let timed = libc::timer_create(libc::CLOCK_MONOTONIC, event.as_mut_ptr(), &raw mut made);
        if !heard || timed != 0 {
            made = NO_TIMER;
        }
    }
    TIMER.store(made, Ordering::Release);
}

/// Has the timer cut short what the process waits for, again and again, or, with zero, no more.
fn nudge(every: Duration) {
    let timer = TIMER.load(Ordering::Acquire);
    if timer == NO_TIMER || OWNER.load(Ordering::Acquire) != std::process::id() {
        return;
    }
    let span = libc::timespec { tv_sec: 0, tv_nsec: every.subsec_nanos().into() };
    let spec = libc::itimerspec { it_interval: span, it_value: span };
    // SAFETY: a timer of this process; may be called in a signal handler.
    unsafe { libc::timer_settime(timer, 0, &raw const spec, std::ptr::null_mut()) };
}

unsafe extern "C" fn on_signal(
    signal: libc::c_int,
    _info: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    let first = ENDING.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire).is_ok();
    // Leases are those of the process that has the timer, too: a fork holds none until it takes one.
    let ours = OWNER.load(Ordering::Acquire) == std::process::id();
    if first && ours && LEASES.load(Ordering::Acquire) > 0 && interrupt() {
        nudge(NUDGE);
    } else {
        end(signal);
    }
}

unsafe extern "C" fn on_nudge(_signal: libc::c_int) {
    let signal = ENDING.load(Ordering::Acquire);
    if signal == 0 {
        return;
    }
    let waits = NUDGES.fetch_add(1, Ordering::AcqRel) < PATIENCE && interrupt();
    if !waits {
        end(signal);
    }
}

/// Asks the engine for an interrupt; false where it has no such flag.
fn interrupt() -> bool {
    let flag = FLAG.load(Ordering::Acquire);
    if flag.is_null() {
        return false;
    }
    // SAFETY: one byte of the engine's, made to be written by signal handlers.
    unsafe { flag.write_volatile(1) };
    true
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
    // Also if the last lease was given back since the signal came.
    if signal != 0 {
        nudge(Duration::ZERO);
        // A panic must not cross into the engine, and the process ends in any case.
        let _ =
            std::panic::catch_unwind(|| RELEASE.get().into_iter().for_each(|release| release()));
        end(signal);
    }
    let before = BEFORE.load(Ordering::Acquire);
    if !before.is_null() {
        // SAFETY: what the engine had in its place, called as the engine would.
        unsafe { std::mem::transmute::<*mut (), Interrupt>(before)(frame) };
    }
}
