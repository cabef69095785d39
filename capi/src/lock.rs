//! The lock, as C sees it.

use crate::boundary::{ErrorText, done, guarded, infallible};
use crate::client::tagsweep_client;
use crate::handle::{bytes, give, mutable, put, shared, take_back};
use crate::status::{TAGSWEEP_HELD, TAGSWEEP_LOST, TAGSWEEP_OK};
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;
use tagsweep::lock::{Holder, Lock, LossReason, Options, Outcome};

/// One contender for one lock. How its functions are used together: tagsweep_lock_new, then
/// tagsweep_lock_acquire; while it is held tagsweep_lock_extend before its TTL ends, and
/// tagsweep_lock_is_held before anything that must not happen twice; tagsweep_lock_release;
/// tagsweep_lock_free.
pub struct tagsweep_lock {
    pub(crate) lock: Lock,
}

/// Makes a contender for the lock `name` (bytes, 1 to 65536 of them), which neither renews its lease nor keeps
/// statistics: for that see tagsweep_lock_new_with. Sends nothing.
///
/// `ttl_ms`: life of a lease unless it is extended, 3 to 2^53.
/// `out`: receives the handle, to be freed with tagsweep_lock_free.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_ERR_INVALID or, for a NULL that must not be one, TAGSWEEP_ERR_NULL.
///
/// # Safety
/// Pointers are NULL or valid for their lengths; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_new(
    client: *const tagsweep_client,
    name: *const c_char,
    name_len: usize,
    ttl_ms: u64,
    out: *mut *mut tagsweep_lock,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (client, name) = unsafe { (shared(client, "client")?, bytes(name, name_len, "name")?) };
        let ttl = Duration::from_millis(ttl_ms);
        let make = || {
            Ok(tagsweep_lock { lock: Lock::on(Arc::clone(&client.link), name, Options::new(ttl))? })
        };
        // SAFETY: the caller's promise, passed on.
        unsafe { give(out, make) }.map(done)
    })
}

/// Takes the lock if it is free. One round trip.
///
/// `wait_ms`: how long to wait in line while another holds it; 0 to ask once.
/// `fence`: receives the fencing token, larger than that of every grant before; may be NULL.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_HELD (the error text then tells by whom), TAGSWEEP_LOST when it was granted and the
/// TTL was over before the answer came, TAGSWEEP_ERR_REENTRANT when this contender holds it, or another error.
/// Only after TAGSWEEP_OK the lock is held.
///
/// # Safety
/// `lock` is NULL or live; `fence` is NULL or writable; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_acquire(
    lock: *mut tagsweep_lock,
    wait_ms: u64,
    fence: *mut u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        tagsweep_lock_acquire_while(
            lock,
            wait_ms,
            None,
            std::ptr::null_mut(),
            fence,
            error,
            error_size,
        )
    }
}

/// Asked some twenty times a second while a lock is waited for. Answers true to go on waiting. Must not
/// use the lock, and must not unwind or jump out.
pub type tagsweep_keep_waiting = Option<unsafe extern "C" fn(context: *mut c_void) -> bool>;

/// As tagsweep_lock_acquire, with a function that can end the wait.
///
/// `keep_waiting`, `context`: NULL to wait for all of `wait_ms`.
///
/// Returns what tagsweep_lock_acquire does; TAGSWEEP_HELD when `keep_waiting` ends the wait.
///
/// # Safety
/// As tagsweep_lock_acquire; `keep_waiting` keeps its rules.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_acquire_while(
    lock: *mut tagsweep_lock,
    wait_ms: u64,
    keep_waiting: tagsweep_keep_waiting,
    context: *mut c_void,
    fence: *mut u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let handle = unsafe { mutable(lock, "lock")? };
        let budget = Duration::from_millis(wait_ms);
        let mut go_on = |_: &Holder| match keep_waiting {
            // SAFETY: the caller's function, called by its rules.
            Some(ask) => unsafe { ask(context) },
            None => true,
        };
        match handle.lock.acquire_within(budget, &mut go_on)? {
            Outcome::Acquired { fence: granted } => {
                // SAFETY: the caller's promise, passed on.
                unsafe { put(fence, granted) };
                Ok(TAGSWEEP_OK)
            }
            Outcome::Held(holder) => {
                error.write(&format!("the lock {} is {holder}", handle.lock.label()));
                Ok(TAGSWEEP_HELD)
            }
        }
    })
}

/// Does something that tells whether the lease was still ours.
///
/// # Safety
/// `lock` is NULL or live; `error` is writable for `error_size` bytes.
unsafe fn still(
    lock: *mut tagsweep_lock,
    error: *mut c_char,
    error_size: usize,
    act: impl FnOnce(&mut Lock) -> tagsweep::Result<bool>,
) -> i32 {
    // SAFETY: by the contract of this function.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: by the contract of this function.
        let handle = unsafe { mutable(lock, "lock")? };
        if act(&mut handle.lock)? {
            return Ok(TAGSWEEP_OK);
        }
        let why = handle.lock.last_loss().map_or("there is no lease", LossReason::text);
        error.write(&format!("the lock {}: {why}", handle.lock.label()));
        Ok(TAGSWEEP_LOST)
    })
}

/// Gives the lease more time. One round trip.
///
/// `ttl_ms`: exactly this from now on, at least 1 and at most 2^53 (of a few milliseconds nothing is left when
/// clocks may differ); 0 for the lock's TTL, never less than what is left.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_LOST when it is not ours any more, or an error; after an error the
/// lease is valid until tagsweep_lock_is_held says otherwise.
///
/// # Safety
/// `lock` is NULL or live; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_extend(
    lock: *mut tagsweep_lock,
    ttl_ms: u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let ttl = (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms));
    // SAFETY: the caller's promise, passed on.
    unsafe { still(lock, error, error_size, |lock| lock.extend(ttl)) }
}

/// Gives the lock up. One round trip; none without a lease, two after an acquire of which nobody knows what it came to.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_LOST when it was not ours (any more), or an error; after an error the
/// lease ends with its TTL.
///
/// # Safety
/// `lock` is NULL or live; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_release(
    lock: *mut tagsweep_lock,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    unsafe { still(lock, error, error_size, Lock::release) }
}

/// Asks the server whether the lease is still ours. One round trip.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_LOST when it is not, or an error.
///
/// # Safety
/// `lock` is NULL or live; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_verify(
    lock: *mut tagsweep_lock,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    unsafe { still(lock, error, error_size, Lock::verify) }
}

/// Told once when a lease is lost, with the reason ("expired", "evicted", "failover", "stolen", "forced",
/// "unknown", "max_hold"; static storage): by the thread that renews, or within the call that finds out.
/// Must not use the lock, and must not unwind or jump out. Whoever gives the lease up or frees the lock
/// meanwhile waits until it returns; afterwards it is not called any more.
pub type tagsweep_on_lost =
    Option<unsafe extern "C" fn(context: *mut c_void, reason: *const c_char)>;

/// Names the function that is told when a lease is lost, before the lock is acquired; NULL for none. `context` must
/// be usable from another thread until the lock is freed. NULL for `lock` is allowed.
///
/// # Safety
/// `lock` is NULL or live; `on_lost` keeps its rules.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_on_lost(
    lock: *mut tagsweep_lock,
    on_lost: tagsweep_on_lost,
    context: *mut c_void,
) {
    infallible((), || {
        // SAFETY: the caller's promise, passed on.
        let Some(handle) = (unsafe { lock.as_mut() }) else { return };
        let listener = Listener { on_lost, context };
        handle.lock.on_lost(move |reason| listener.tell(reason));
    });
}

/// A function of the caller's, and what it is to be given.
struct Listener {
    on_lost: tagsweep_on_lost,
    context: *mut c_void,
}

// SAFETY: the caller promised that the context may be used from another thread.
unsafe impl Send for Listener {}
// SAFETY: as above; and it is told of one loss at a time.
unsafe impl Sync for Listener {}

impl Listener {
    fn tell(&self, reason: LossReason) {
        let name = match reason {
            LossReason::Expired => c"expired",
            LossReason::Evicted => c"evicted",
            LossReason::Failover => c"failover",
            LossReason::Stolen => c"stolen",
            LossReason::Forced => c"forced",
            LossReason::MaxHold => c"max_hold",
            _ => c"unknown",
        };
        if let Some(on_lost) = self.on_lost {
            // SAFETY: the caller's function, called by its rules.
            unsafe { on_lost(self.context, name.as_ptr()) };
        }
    }
}

/// Copies the owner of the lease, which proves ownership to tagsweep_lock_restore: keep it secret. Bytes, without a
/// terminating NUL. Returns their number; nothing is written when `size` is smaller, or for a NULL `buffer`. 0
/// without a lease and for NULL.
///
/// # Safety
/// `lock` is NULL or live; `buffer` is NULL or writable for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_owner(
    lock: *const tagsweep_lock,
    buffer: *mut c_char,
    size: usize,
) -> usize {
    infallible(0, || {
        // SAFETY: the caller's promise, passed on.
        let Some(owner) = (unsafe { lock.as_ref() }).and_then(|handle| handle.lock.owner()) else {
            return 0;
        };
        if !buffer.is_null() && owner.len() <= size {
            // SAFETY: the caller vouches for `size` bytes, and a lease's owner is not there.
            unsafe { std::ptr::copy_nonoverlapping(owner.as_ptr(), buffer.cast(), owner.len()) };
        }
        owner.len()
    })
}

/// Fencing token of the lease; 0 without one and for NULL. No round trip.
///
/// # Safety
/// `lock` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_fence(lock: *const tagsweep_lock) -> u64 {
    infallible(0, || {
        // SAFETY: the caller's promise, passed on.
        unsafe { lock.as_ref() }.and_then(|handle| handle.lock.fence()).unwrap_or(0)
    })
}

/// Whether the lease may still be acted upon, by our own clock; no round trip. False for NULL.
///
/// # Safety
/// `lock` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_is_held(lock: *const tagsweep_lock) -> bool {
    // SAFETY: the caller's promise, passed on.
    infallible(false, || unsafe { lock.as_ref() }.is_some_and(|handle| handle.lock.is_held()))
}

/// Milliseconds until the holder must stop; 0 without a lease and for NULL. No round trip.
///
/// # Safety
/// `lock` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_remaining_ms(lock: *const tagsweep_lock) -> u64 {
    infallible(0, || {
        // SAFETY: the caller's promise, passed on.
        let left = unsafe { lock.as_ref() }.and_then(|handle| handle.lock.remaining());
        left.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    })
}

/// Frees a contender and releases its lease, within a second; not one that was restored without options, nor
/// any with `release_on_free` false. NULL is allowed.
///
/// # Safety
/// `lock` is NULL or came from tagsweep_lock_new, tagsweep_lock_new_with or tagsweep_lock_restore, and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_free(lock: *mut tagsweep_lock) {
    // SAFETY: the caller's promise, passed on.
    infallible((), || drop(unsafe { take_back(lock) }));
}
