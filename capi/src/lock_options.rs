//! What a lock is told, as C sees it.

use crate::boundary::{ErrorText, done, guarded, infallible};
use crate::client::tagsweep_client;
use crate::handle::{bytes, give, put, shared, whole};
use crate::lock::tagsweep_lock;
use std::ffi::c_char;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tagsweep::lock::{Lock, Options, Ttl, WaitMode, Watchdog};

/// How a lock is contended for. Fill it with tagsweep_lock_options_init, then change what should differ.
#[repr(C)]
pub struct tagsweep_lock_options {
    /// sizeof(tagsweep_lock_options), set by tagsweep_lock_options_init.
    pub size: usize,
    /// Life of a lease unless it is extended (ms), 3 to 2^53; 0 to learn it from past durations, within 10 s
    /// and 5 min. Default: 30000.
    pub ttl_ms: u64,
    /// Extend the lease every third of its TTL, in a thread of the library. Default: true.
    pub renew: bool,
    /// Wait by asking again instead of standing in line: for proxies without blocking commands.
    /// Default: false.
    pub backoff: bool,
    /// Release when the lock is freed. Default: true.
    pub release_on_free: bool,
    /// Keep statistics on the server, for `tagsweep status` and `tagsweep metrics`. Default: true.
    pub record: bool,
    /// No lease is extended beyond this (ms), at least 3; 0 for no limit. Default: 0.
    pub max_hold_ms: u64,
    /// The lock stays taken for so long, even if it is released earlier (ms), at most a year; without `renew` no
    /// more than the TTL. Default: 0.
    pub at_least_ms: u64,
    /// So many replicas must have the grant, or it is given back. Default: 0.
    pub confirm: u32,
}

/// Fills in the defaults: a TTL of 30 s, renewed, statistics kept. NULL is allowed.
///
/// # Safety
/// `options` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_options_init(options: *mut tagsweep_lock_options) {
    let filled = tagsweep_lock_options {
        size: size_of::<tagsweep_lock_options>(),
        ttl_ms: 30_000,
        renew: true,
        backoff: false,
        release_on_free: true,
        record: true,
        max_hold_ms: 0,
        at_least_ms: 0,
        confirm: 0,
    };
    // SAFETY: the caller's promise, passed on.
    infallible((), || unsafe { put(options, filled) });
}

/// Makes a contender for the lock `name` (bytes, 1 to 65536 of them). Sends nothing.
///
/// `options`: NULL for the defaults, which renew the lease and keep statistics.
/// `out`: receives the handle, to be freed with tagsweep_lock_free.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_ERR_INVALID or, for a NULL that must not be one, TAGSWEEP_ERR_NULL.
///
/// # Safety
/// Pointers are NULL or valid for their lengths; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_new_with(
    client: *const tagsweep_client,
    name: *const c_char,
    name_len: usize,
    options: *const tagsweep_lock_options,
    out: *mut *mut tagsweep_lock,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (client, name, options) = unsafe {
            (
                shared(client, "client")?,
                bytes(name, name_len, "name")?,
                whole(options, "tagsweep_lock_options_init")?,
            )
        };
        let options = read(options);
        let make =
            || Ok(tagsweep_lock { lock: Lock::on(Arc::clone(&client.link), name, options)? });
        // SAFETY: the caller's promise, passed on.
        unsafe { give(out, make) }.map(done)
    })
}

/// A contender whose lease was granted to whoever gave us its owner (see tagsweep_lock_owner): another
/// process, or an earlier one. Sends nothing; until tagsweep_lock_verify or tagsweep_lock_extend has
/// asked, tagsweep_lock_is_held is false.
///
/// `options`: NULL for the defaults, but that freeing the handle does not release: the lease is another's.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_ERR_INVALID or, for a NULL that must not be one, TAGSWEEP_ERR_NULL.
///
/// # Safety
/// As tagsweep_lock_new_with; `owner` is readable for `owner_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_restore(
    client: *const tagsweep_client,
    name: *const c_char,
    name_len: usize,
    owner: *const c_char,
    owner_len: usize,
    options: *const tagsweep_lock_options,
    out: *mut *mut tagsweep_lock,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (client, name, owner, options) = unsafe {
            (
                shared(client, "client")?,
                bytes(name, name_len, "name")?,
                bytes(owner, owner_len, "owner")?,
                whole(options, "tagsweep_lock_options_init")?,
            )
        };
        let release_on_drop = options.is_some_and(|options| options.release_on_free);
        let options = Options { release_on_drop, ..read(options) };
        let link = Arc::clone(&client.link);
        let make = || Ok(tagsweep_lock { lock: Lock::restore(link, name, owner, options)? });
        // SAFETY: the caller's promise, passed on.
        unsafe { give(out, make) }.map(done)
    })
}

/// The watchdog of this process: one thread, started with the first lease that it is to renew.
fn watchdog() -> Watchdog {
    static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(Watchdog::new).clone()
}

fn read(given: Option<&tagsweep_lock_options>) -> Options {
    let usual = Options::new(Duration::from_secs(30));
    let Some(given) = given else {
        return Options { renew: Some(watchdog()), record: true, ..usual };
    };
    let ms = Duration::from_millis;
    Options {
        ttl: if given.ttl_ms == 0 { Ttl::AUTO } else { Ttl::Fixed(ms(given.ttl_ms)) },
        wait_mode: if given.backoff { WaitMode::Backoff } else { WaitMode::Line },
        renew: given.renew.then(watchdog),
        max_hold: (given.max_hold_ms > 0).then(|| ms(given.max_hold_ms)),
        at_least: ms(given.at_least_ms),
        confirm: given.confirm,
        record: given.record,
        release_on_drop: given.release_on_free,
    }
}
