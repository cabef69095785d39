//! The C face: handles, status codes, and nothing that the core does not do.
//!
//! The contract is in the header of `include/tagsweep.h` (from `cbindgen.toml`). `handle.rs` is the
//! one place that casts pointers, `boundary.rs` the one place that panics and errors meet.
#![allow(non_camel_case_types)]

mod boundary;
mod client;
mod handle;
mod lock;
mod lock_options;
mod monitor;
mod status;
mod sweep;

pub use client::*;
pub use lock::*;
pub use lock_options::*;
pub use monitor::*;
pub use status::*;
pub use sweep::*;

/// Version of this interface. It grows by one when a function or a code is added; a program built against
/// an older one goes on working: the library's version is at least the program's then. It goes to the next hundred
/// when a struct grows, or something changes or goes: programs are to be built anew then, and the name that the
/// dynamic linker looks for (libtagsweep.so.N) is another one.
pub const TAGSWEEP_ABI_VERSION: u32 = 4;

/// The interface version of the library that is loaded, to compare with TAGSWEEP_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn tagsweep_abi_version() -> u32 {
    TAGSWEEP_ABI_VERSION
}

/// The version of the library, such as "1.2.3". Static storage, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn tagsweep_version() -> *const std::ffi::c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
