//! Leases are given back when a signal ends PHP: TERM, INT and HUP, as long as nobody else handles them.
//!
//! Nothing can be said to a server from within a signal handler. Ours asks the engine for an interrupt,
//! as pcntl does, which comes before the next opcode: there the leases are released, each within a second
//! and once, and the signal is let do what it would have done. Sleeps and waits of PHP are cut short by
//! the signal. One that comes just before such a wait would be noticed only after it: a timer sends it
//! again, as a nudge, until the interrupt has come; a process that does not come to it within a second, for it
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

/// The timers that nudge, one for each signal; [`NO_TIMER`] where there is none.
static TIMERS: [AtomicPtr<libc::c_void>; 3] = [const { AtomicPtr::new(NO_TIMER) }; 3];

/// No kernel gives out this number.
const NO_TIMER: *mut libc::c_void = std::ptr::without_provenance_mut(usize::MAX);

/// The process that has the timers: a fork does not.
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
    create_timers();
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

/// Once in each process. Without a timer, a signal just before a wait is noticed after it.
fn create_timers() {
    let process = std::process::id();
    if OWNER.swap(process, Ordering::AcqRel) == process {
        return;
    }
    for (signal, timer) in SIGNALS.into_iter().zip(&TIMERS) {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        let mut made = NO_TIMER;
        // SAFETY: a whole struct, zero where it does not matter.
        unsafe {
            (*event.as_mut_ptr()).sigev_notify = libc::SIGEV_SIGNAL;
            (*event.as_mut_ptr()).sigev_signo = signal;
            if libc::timer_create(libc::CLOCK_MONOTONIC, event.as_mut_ptr(), &raw mut made) != 0 {
                made = NO_TIMER;
            }
        }
        timer.store(made, Ordering::Release);
    }
}

/// Has the timer of a signal send it again and again, or, with zero, no more.
fn nudge(signal: libc::c_int, every: Duration) {
    let known = SIGNALS.iter().position(|known| *known == signal);
    let Some(timer) = known.map(|n| TIMERS[n].load(Ordering::Acquire)) else { return };
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
    info: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    // SAFETY: what the kernel says of this signal, if anything.
    let nudged = unsafe { info.as_ref() }.is_some_and(|info| info.si_code == libc::SI_TIMER);
    let first = ENDING.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire).is_ok();
    let flag = FLAG.load(Ordering::Acquire);
    // Leases are those of the process that has the timers, too: a fork holds none until it takes one.
    let ours = OWNER.load(Ordering::Acquire) == std::process::id();
    let waits = !nudged || NUDGES.fetch_add(1, Ordering::AcqRel) < PATIENCE;
    let asks = (first || nudged) && waits && ours;
    if asks && LEASES.load(Ordering::Acquire) > 0 && !flag.is_null() {
        // SAFETY: one byte of the engine's, made to be written by signal handlers.
        unsafe { flag.write_volatile(1) };
        if !nudged {
            nudge(signal, NUDGE);
        }
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
        nudge(signal, Duration::ZERO);
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
