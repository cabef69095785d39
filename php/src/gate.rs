//! Signals during native work.
//!
//! PHP's handlers run between opcodes, and a read with a timeout is interrupted by any signal. So
//! asynchronous signals are blocked while we speak to the server, and looked at between two rounds:
//! - one that would end the process: we stop, give the lock back, and then let it;
//! - one with a PHP handler: the handler runs now, and native work goes on, unless it threw;
//! - the time limit: we stop and return; the engine then raises its error.

use ext_php_rs::zend::{ExecuteData, ExecutorGlobals, bailout, try_catch};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

unsafe extern "C" {
    #[link_name = "zend_interrupt_function"]
    static mut INTERRUPT: Option<Interrupt>;
}

/// What the engine calls between two opcodes when a signal waits.
pub(crate) type Interrupt = unsafe extern "C" fn(*mut ExecuteData);

/// Puts ours in the place of what the engine calls, and says what that was: it is to be called by ours. For
/// the start of the module only, where one thread runs.
pub(crate) fn chain_interrupt(ours: Interrupt) -> Option<Interrupt> {
    // SAFETY: the pointer is the engine's to chain, as pcntl does, and nobody else is there to read it.
    unsafe {
        let before = (&raw const INTERRUPT).read();
        (&raw mut INTERRUPT).write(Some(ours));
        before
    }
}

thread_local! {
    /// A fatal error of PHP waits until we have given back what we hold.
    static FATAL: Cell<bool> = const { Cell::new(false) };
}

/// Calls into PHP. A fatal error there jumps to the end of the script, past everything of ours; so it is
/// caught, nothing more is called, and [`end`] lets it go on. `None` then.
pub(crate) fn call<T>(act: impl FnOnce() -> T) -> Option<T> {
    if is_fatal() {
        return None;
    }
    let done = try_catch(AssertUnwindSafe(act));
    FATAL.set(done.is_err());
    done.ok()
}

/// Whether a fatal error waits.
pub(crate) fn is_fatal() -> bool {
    FATAL.get()
}

/// The end of a method, when nothing of it is left to be given back: a fatal error that waited goes on.
pub(crate) fn end<T>(done: T) -> T {
    if FATAL.take() {
        drop(done);
        // SAFETY: the frames that this jumps past are those of one method of ours and of what calls it for the
        // engine: no lock, no lease and no guard is left in them. Arguments may be, whose memory is lost once.
        unsafe { bailout() }
    }
    done
}

/// Signals that end a process unless somebody handles them.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Faults are never blocked.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// While it lives, signals wait. Drop it after everything that must not be interrupted, the release
/// of the lock included: what waited is delivered then.
pub(crate) struct Gate {
    before: libc::sigset_t,
    blocked: libc::sigset_t,
}

impl Gate {
    pub fn close() -> Self {
        let mut blocked = empty_set();
        let mut before = empty_set();
        // SAFETY: calls of libc on sets of this frame.
        unsafe {
            libc::sigfillset(&raw mut blocked);
            for fault in FAULTS {
                libc::sigdelset(&raw mut blocked, fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before);
        }
        Self { before, blocked }
    }

    /// Lets handlers run that wait. True when native work should end.
    pub fn must_stop(&self) -> bool {
        is_fatal() || self.is_ending() || self.open(interrupted)
    }

    /// Does something with signals as they were, such as calling PHP; but those that would end the
    /// process go on waiting, for the lock is still ours.
    pub fn open<T>(&self, act: impl FnOnce() -> T) -> T {
        let mut ajar = self.before;
        for signal in ENDING.into_iter().filter(|signal| disposition(*signal) == libc::SIG_DFL) {
            // SAFETY: adds to a set of this frame.
            unsafe { libc::sigaddset(&raw mut ajar, signal) };
        }
        self.mask(&ajar);
        let done = act();
        self.mask(&self.blocked);
        done
    }

    fn mask(&self, set: &libc::sigset_t) {
        // SAFETY: a set that was filled when the gate was closed.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
    }

    /// Whether a signal waits that the caller had not blocked and that will end the process.
    fn is_ending(&self) -> bool {
        let mut pending = empty_set();
        // SAFETY: calls of libc on sets of ours.
        unsafe {
            libc::sigpending(&raw mut pending);
            ENDING.into_iter().any(|signal| {
                libc::sigismember(&raw const pending, signal) == 1
                    && libc::sigismember(&raw const self.before, signal) == 0
                    && disposition(signal) == libc::SIG_DFL
            })
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.mask(&self.before);
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

type Sigaction = unsafe extern "C" fn(libc::c_int, *const libc::sigaction, *mut libc::sigaction);

/// In a PHP with its own signal queue, the kernel always shows the queue's handler; this shows what
/// is behind it. Not every build has it, so it is looked up.
fn zend_sigaction() -> Option<Sigaction> {
    static FOUND: OnceLock<Option<Sigaction>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: looks a symbol up in the running program.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"zend_sigaction".as_ptr()) };
        // SAFETY: the type is that of zend_signal.h.
        (!found.is_null())
            .then(|| unsafe { std::mem::transmute::<*mut libc::c_void, Sigaction>(found) })
    })
}

/// Our own handler, which ends the process after all.
static ENDS: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

/// Names the handler that does, in the end, what signals do by default.
pub(crate) fn stand_for_default(handler: libc::sighandler_t) {
    ENDS.store(handler, Ordering::Release);
}

/// What a signal does.
fn disposition(signal: libc::c_int) -> libc::sighandler_t {
    let handler = handler(signal);
    if handler == ENDS.load(Ordering::Acquire) { libc::SIG_DFL } else { handler }
}

/// What is called for a signal.
pub(crate) fn handler(signal: libc::c_int) -> libc::sighandler_t {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only reads the disposition, into a struct for which all zeroes are a value.
    unsafe {
        match zend_sigaction() {
            Some(ask) => ask(signal, std::ptr::null(), action.as_mut_ptr()),
            None => {
                libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
            }
        }
        action.assume_init().sa_sigaction
    }
}

/// Sets what a signal does; system calls are cut short by it. Whether it is blocked stays as it was: the
/// engine's own call lets it through.
pub(crate) fn sigaction(signal: libc::c_int, handler: libc::sighandler_t) {
    let mut before = empty_set();
    // SAFETY: reads the mask into a set of this frame.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut before) };
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a whole struct, with an empty mask, and a handler that lives as long as the program.
    unsafe {
        (*action.as_mut_ptr()).sa_sigaction = handler;
        (*action.as_mut_ptr()).sa_flags = libc::SA_SIGINFO;
        match zend_sigaction() {
            Some(set) => set(signal, action.as_ptr(), std::ptr::null_mut()),
            None => {
                libc::sigaction(signal, action.as_ptr(), std::ptr::null_mut());
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
}

/// Runs PHP's handlers that wait. True when they threw, or time is up.
fn interrupted() -> bool {
    let (waiting, timed_out) = {
        let globals = ExecutorGlobals::get();
        (is_set(&globals.vm_interrupt), is_set(&globals.timed_out))
    };
    if timed_out {
        return true; // the engine raises its error when we have returned
    }
    if !waiting {
        return false;
    }
    let frame = {
        let mut globals = ExecutorGlobals::get_mut();
        clear(&mut globals.vm_interrupt);
        globals.current_execute_data
    };
    // SAFETY: a function pointer that is set at start and not changed after.
    if let Some(run_handlers) = unsafe { (&raw const INTERRUPT).read() } {
        // SAFETY: the same call, with the same frame, as the engine makes after internal functions.
        if call(|| unsafe { run_handlers(frame) }).is_none() {
            return true;
        }
    }
    ExecutorGlobals::has_exception()
}

fn is_set<T>(flag: &T) -> bool {
    // SAFETY: a bool, or a struct of one atomic bool: one byte, written by signal handlers.
    unsafe { std::ptr::from_ref(flag).cast::<u8>().read_volatile() != 0 }
}

fn clear<T>(flag: &mut T) {
    // SAFETY: as above.
    unsafe { std::ptr::from_mut(flag).cast::<u8>().write_volatile(0) }
}
