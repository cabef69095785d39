//! The one place where pointers from C become references.

use crate::boundary::Fault;
use std::ffi::c_char;
use tagsweep::Error;

/// A handle for C; `out` receives it.
///
/// # Safety
/// `out` is NULL or writable.
pub(crate) unsafe fn give<T>(
    out: *mut *mut T,
    make: impl FnOnce() -> Result<T, Fault>,
) -> Result<(), Fault> {
    if out.is_null() {
        return Err(Fault::Null("the pointer to the handle"));
    }
    let handle = Box::into_raw(Box::new(make()?));
    // SAFETY: not NULL, so writable by the contract of this function.
    unsafe { out.write(handle) };
    Ok(())
}

/// Takes a handle back; NULL is nothing.
///
/// # Safety
/// `handle` is NULL or came from [`give`] and was not taken back yet.
pub(crate) unsafe fn take_back<T>(handle: *mut T) -> Option<Box<T>> {
    // SAFETY: by the contract of this function it is a live box of ours.
    (!handle.is_null()).then(|| unsafe { Box::from_raw(handle) })
}

/// # Safety
/// `handle` is NULL or live, and not used by another call at the same time.
pub(crate) unsafe fn mutable<'a, T>(
    handle: *mut T,
    what: &'static str,
) -> Result<&'a mut T, Fault> {
    // SAFETY: by the contract of this function.
    unsafe { handle.as_mut() }.ok_or(Fault::Null(what))
}

/// # Safety
/// `handle` is NULL or live.
pub(crate) unsafe fn shared<'a, T>(handle: *const T, what: &'static str) -> Result<&'a T, Fault> {
    // SAFETY: by the contract of this function.
    unsafe { handle.as_ref() }.ok_or(Fault::Null(what))
}

/// Bytes of the caller; no bytes when the length is 0, whatever the pointer.
///
/// # Safety
/// `bytes` is readable for `length` bytes, unless it is NULL or `length` is 0.
pub(crate) unsafe fn bytes<'a>(
    bytes: *const c_char,
    length: usize,
    what: &'static str,
) -> Result<&'a [u8], Fault> {
    match (bytes.is_null(), length) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Fault::Null(what)),
        // SAFETY: by the contract of this function.
        (false, length) => Ok(unsafe { std::slice::from_raw_parts(bytes.cast(), length) }),
    }
}

/// Writes an output that the caller may not want.
///
/// # Safety
/// `out` is NULL or writable.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: by the contract of this function.
        unsafe { out.write(value) };
    }
}

/// The caller's options, once they are known to be as large as ours.
///
/// # Safety
/// `options` is NULL or points to a struct of that layout, which begins with its size, and is that large.
pub(crate) unsafe fn whole<'a, T>(options: *const T, init: &str) -> Result<Option<&'a T>, Fault> {
    // SAFETY: by the contract of this function; nothing but the size is read before that is known.
    match unsafe { options.is_null() || options.cast::<usize>().read() == size_of::<T>() } {
        // SAFETY: by the contract of this function.
        true => Ok(unsafe { options.as_ref() }),
        false => {
            Err(Error::bad_argument(format!("the options were not filled with {init}")).into())
        }
    }
}
