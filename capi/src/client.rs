//! A server, as C sees it.

use crate::boundary::{ErrorText, Fault, done, guarded, infallible};
use crate::handle::{bytes, give, take_back};
use std::ffi::c_char;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tagsweep::connect::Link;
use tagsweep::lock::SharedLink;
use tagsweep::{Config, Error};

/// A server and the connection to it. Functions: tagsweep_client_new, tagsweep_client_free.
pub struct tagsweep_client {
    pub(crate) link: SharedLink,
}

impl tagsweep_client {
    pub(crate) fn config(&self) -> Config {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).config().clone()
    }
}

/// Makes a client. Connects at first use.
///
/// `url`: redis://[user:password@]host[:port][/db], rediss://… for TLS, unix:///path[?db=N]; UTF-8.
/// `prefix`: stands before every key; may be empty.
/// `timeout_ms`: longest time of any one call, connecting and repeating included; 0 for 5000.
/// `out`: receives the handle, to be freed with tagsweep_client_free.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_ERR_INVALID or, for a NULL that must not be one, TAGSWEEP_ERR_NULL.
///
/// # Safety
/// Pointers are NULL or valid for their lengths; `error` is writable for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_client_new(
    url: *const c_char,
    url_len: usize,
    prefix: *const c_char,
    prefix_len: usize,
    timeout_ms: u64,
    out: *mut *mut tagsweep_client,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (url, prefix) =
            unsafe { (bytes(url, url_len, "url")?, bytes(prefix, prefix_len, "prefix")?) };
        // SAFETY: the caller's promise, passed on.
        unsafe { give(out, || Ok(tagsweep_client { link: link(url, prefix, timeout_ms)? })) }
            .map(done)
    })
}

fn link(url: &[u8], prefix: &[u8], timeout_ms: u64) -> Result<SharedLink, Fault> {
    let url = std::str::from_utf8(url).map_err(|_| Error::bad_argument("the URL is not UTF-8"))?;
    let mut config = Config::from_url(url)?.prefix(prefix);
    if timeout_ms > 0 {
        config = config.timeout(Duration::from_millis(timeout_ms));
    }
    Ok(Arc::new(Mutex::new(Link::new(config)?)))
}

/// Frees a client. Locks made from it live on and keep its connection. NULL is allowed.
///
/// # Safety
/// `client` is NULL or came from tagsweep_client_new and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_client_free(client: *mut tagsweep_client) {
    // SAFETY: the caller's promise, passed on.
    infallible((), || drop(unsafe { take_back(client) }));
}
