//! A lock seen from outside, as C sees it.

use crate::boundary::{ErrorText, guarded};
use crate::client::tagsweep_client;
use crate::handle::{bytes, put, shared};
use crate::status::{TAGSWEEP_HELD, TAGSWEEP_OK};
use std::ffi::c_char;
use tagsweep::lock::{Forced, Status, force_release, status};

/// Who holds a lock.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tagsweep_holder {
    /// Fencing token of the grant; 0 while it is being handed over, and for a program that is not
    /// tagsweep.
    pub fence: u64,
    /// Milliseconds that the lock key has left; UINT64_MAX when it never expires.
    pub ttl_ms: u64,
    /// How many wait.
    pub waiting: u64,
    /// Process; 0 when not known.
    pub pid: u32,
    /// Host name, NUL-terminated; empty when not known.
    pub host: [c_char; 65],
}

impl From<&Status> for tagsweep_holder {
    fn from(status: &Status) -> Self {
        let holder = status.holder.clone().unwrap_or_default();
        let mut host = [0; 65];
        let name = holder.host.unwrap_or_default();
        for (to, from) in host.iter_mut().take(64).zip(name.bytes()) {
            *to = from as c_char;
        }
        Self {
            fence: holder.fence.unwrap_or(0),
            ttl_ms: holder
                .ttl
                .map_or(u64::MAX, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            waiting: status.waiting,
            pid: holder.pid.unwrap_or(0),
            host,
        }
    }
}

/// Tells who holds the lock `name`. One round trip.
///
/// `out`: receives the holder when there is one; may be NULL.
///
/// Returns TAGSWEEP_HELD, TAGSWEEP_OK when nobody holds it, or an error.
///
/// # Safety
/// Pointers are NULL or valid for their lengths; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_lock_status(
    client: *const tagsweep_client,
    name: *const c_char,
    name_len: usize,
    out: *mut tagsweep_holder,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (client, name) = unsafe { (shared(client, "client")?, bytes(name, name_len, "name")?) };
        let now = status(&client.link, name)?;
        if now.holder.is_none() {
            return Ok(TAGSWEEP_OK);
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { put(out, tagsweep_holder::from(&now)) };
        Ok(TAGSWEEP_HELD)
    })
}

/// Takes the lock `name` away from its holder and hands it to the first who waits. One round trip.
///
/// `fence`: of the grant that is meant; another one is left alone. 0 for whoever holds it.
///
/// Returns TAGSWEEP_OK when it was taken away or free, TAGSWEEP_HELD when another grant holds it (the
/// error text tells which), or an error.
///
/// # Safety
/// Pointers are NULL or valid for their lengths; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_force_release(
    client: *const tagsweep_client,
    name: *const c_char,
    name_len: usize,
    fence: u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (client, name) = unsafe { (shared(client, "client")?, bytes(name, name_len, "name")?) };
        match force_release(&client.link, name, (fence > 0).then_some(fence))? {
            Forced::Another(holder) => {
                error.write(&holder.to_string());
                Ok(TAGSWEEP_HELD)
            }
            Forced::Taken(_) | Forced::Free => Ok(TAGSWEEP_OK),
        }
    })
}
