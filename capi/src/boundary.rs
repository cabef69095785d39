//! Where Rust ends: panics become a code, errors become a code and a text.

use crate::status::{TAGSWEEP_ERR_NULL, TAGSWEEP_ERR_PANIC, TAGSWEEP_OK, code_of};
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call failed.
pub(crate) enum Fault {
    Core(tagsweep::Error),
    Null(&'static str),
}

impl From<tagsweep::Error> for Fault {
    fn from(e: tagsweep::Error) -> Self {
        Self::Core(e)
    }
}

impl Fault {
    fn split(self) -> (i32, String) {
        match self {
            Self::Core(e) => (code_of(&e), e.spelled(field).to_string()),
            Self::Null(what) => (TAGSWEEP_ERR_NULL, format!("{what} must not be NULL")),
        }
    }
}

/// The field of an option.
fn field(name: &str) -> String {
    match name {
        "max_hold" | "at_least" | "max_tag_age" | "max_duration" | "lock_ttl" => {
            format!("{name}_ms")
        }
        "max_latency" => format!("{name}_us"),
        name => name.to_owned(),
    }
}

/// The caller's buffer for error text.
pub(crate) struct ErrorText {
    buffer: *mut c_char,
    size: usize,
}

impl ErrorText {
    /// # Safety
    /// `buffer` is NULL or writable for `size` bytes until the call returns.
    pub unsafe fn new(buffer: *mut c_char, size: usize) -> Self {
        Self { buffer, size }
    }

    /// Writes as much as fits, whole characters only, and a NUL.
    pub fn write(&self, text: &str) {
        if self.buffer.is_null() || self.size == 0 {
            return;
        }
        let mut end = text.len().min(self.size - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        // SAFETY: the caller of `new` vouches for `size` bytes; `end` is below that.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.buffer.cast(), end);
            *self.buffer.add(end) = 0;
        }
    }
}

/// Runs the body of a function that returns a status.
pub(crate) fn guarded(error: &ErrorText, body: impl FnOnce() -> Result<i32, Fault>) -> i32 {
    error.write("");
    match unwound(body) {
        Some(Ok(status)) => status,
        Some(Err(fault)) => {
            let (code, text) = fault.split();
            error.write(&text);
            code
        }
        None => {
            error.write("a bug in tagsweep was caught; free the handle");
            TAGSWEEP_ERR_PANIC
        }
    }
}

/// Runs the body of a function that cannot fail; its value, or the one for a bug.
pub(crate) fn infallible<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    unwound(body).unwrap_or(otherwise)
}

fn unwound<T>(body: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(body))
        .map_err(|payload| {
            // Dropping what was thrown may throw again.
            let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
        })
        .ok()
}

/// Success without more to say.
pub(crate) fn done(_: ()) -> i32 {
    TAGSWEEP_OK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_named_as_their_fields_are() {
        use tagsweep::sweep::Options;
        let header = include_str!("../../include/tagsweep.h");
        let zero = Some(std::time::Duration::ZERO);
        for (wrong, fields) in [
            (Options { max_tag_age: zero, ..Options::default() }, &["max_tag_age_ms"][..]),
            (Options { max_share: 0.0, ..Options::default() }, &["max_share"]),
            (
                Options { max_duration: zero, ..Options::default() },
                &["max_removals", "max_duration_ms"],
            ),
        ] {
            let (_, told) = wrong
                .check()
                .map_err(Fault::from)
                .map_or_else(Fault::split, |()| (0, String::new()));
            for field in fields {
                assert!(told.contains(field) && header.contains(&format!(" {field};")), "{told}");
            }
        }
    }

    #[test]
    #[allow(clippy::panic)]
    fn panics_become_a_code_and_texts_fit_their_buffer() {
        let mut buffer = [1 as c_char; 12];
        // SAFETY: the buffer lives to the end of the test and has this size.
        let error = unsafe { ErrorText::new(buffer.as_mut_ptr(), buffer.len()) };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        assert_eq!(guarded(&error, || std::panic::panic_any(1)), TAGSWEEP_ERR_PANIC);
        std::panic::set_hook(hook);
        error.write("12345678901é");
        assert_eq!(buffer[11], 0);
        error.write("1234567890é");
        assert_eq!((buffer[9], buffer[10]), (b'0' as c_char, 0), "no half character");
        assert_eq!(guarded(&error, || Err(Fault::Null("x"))), TAGSWEEP_ERR_NULL);
        // SAFETY: NULL stands for no buffer.
        unsafe { ErrorText::new(std::ptr::null_mut(), 9) }.write("nowhere");
    }
}
