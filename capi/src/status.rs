//! Status codes. New ones are appended; none changes its meaning.

use std::ffi::c_char;
use tagsweep::{Error, ErrorKind};

/// Done.
pub const TAGSWEEP_OK: i32 = 0;
/// The lock is held by another; nothing was done.
pub const TAGSWEEP_HELD: i32 = 1;
/// The lock is not ours any more.
pub const TAGSWEEP_LOST: i32 = 2;
/// A sweep ended early, as it was asked to; its report is partial.
pub const TAGSWEEP_STOPPED: i32 = 3;
/// An argument is out of bounds. Nothing was sent.
pub const TAGSWEEP_ERR_INVALID: i32 = -1;
/// A pointer that must not be NULL is.
pub const TAGSWEEP_ERR_NULL: i32 = -2;
/// No connection could be made. Nothing was sent.
pub const TAGSWEEP_ERR_UNREACHABLE: i32 = -3;
/// The server refused the credentials, or a permission is missing.
pub const TAGSWEEP_ERR_DENIED: i32 = -4;
/// No answer came in time: the command may or may not have taken effect.
pub const TAGSWEEP_ERR_UNKNOWN: i32 = -5;
/// The server answered with an error.
pub const TAGSWEEP_ERR_REFUSED: i32 = -6;
/// The key holds a value of another type.
pub const TAGSWEEP_ERR_WRONG_TYPE: i32 = -7;
/// No member leads to an existing entry, or two mappings do. Nothing was removed.
pub const TAGSWEEP_ERR_UNPROVEN: i32 = -8;
/// A bug in the library.
pub const TAGSWEEP_ERR_PANIC: i32 = -9;
/// The contender holds the lock that it asks for.
pub const TAGSWEEP_ERR_REENTRANT: i32 = -10;
/// Too few replicas had the grant; it was given back.
pub const TAGSWEEP_ERR_UNCONFIRMED: i32 = -11;

pub(crate) fn code_of(e: &Error) -> i32 {
    match e.kind() {
        ErrorKind::Invalid => TAGSWEEP_ERR_INVALID,
        ErrorKind::Unreachable => TAGSWEEP_ERR_UNREACHABLE,
        ErrorKind::Denied => TAGSWEEP_ERR_DENIED,
        ErrorKind::Unknown => TAGSWEEP_ERR_UNKNOWN,
        ErrorKind::WrongType => TAGSWEEP_ERR_WRONG_TYPE,
        ErrorKind::Lost => TAGSWEEP_LOST,
        ErrorKind::Reentrant => TAGSWEEP_ERR_REENTRANT,
        ErrorKind::Unconfirmed => TAGSWEEP_ERR_UNCONFIRMED,
        ErrorKind::Unproven => TAGSWEEP_ERR_UNPROVEN,
        _ => TAGSWEEP_ERR_REFUSED,
    }
}

/// What a status code means, in a few words. Static storage, never NULL, for any number.
#[unsafe(no_mangle)]
pub extern "C" fn tagsweep_status_text(status: i32) -> *const c_char {
    let text = match status {
        TAGSWEEP_OK => c"done",
        TAGSWEEP_HELD => c"held by another",
        TAGSWEEP_LOST => c"lost",
        TAGSWEEP_STOPPED => c"stopped early",
        TAGSWEEP_ERR_INVALID => c"invalid argument",
        TAGSWEEP_ERR_NULL => c"unexpected NULL",
        TAGSWEEP_ERR_UNREACHABLE => c"server unreachable",
        TAGSWEEP_ERR_DENIED => c"access denied",
        TAGSWEEP_ERR_UNKNOWN => c"outcome unknown",
        TAGSWEEP_ERR_REFUSED => c"refused by the server",
        TAGSWEEP_ERR_WRONG_TYPE => c"key of another type",
        TAGSWEEP_ERR_UNPROVEN => c"mapping of members to entries unproven",
        TAGSWEEP_ERR_REENTRANT => c"held by the caller itself",
        TAGSWEEP_ERR_UNCONFIRMED => c"not confirmed by replicas",
        TAGSWEEP_ERR_PANIC => c"bug in the library",
        _ => c"unknown status",
    };
    text.as_ptr()
}
