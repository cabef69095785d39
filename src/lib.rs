//! Two jobs on Redis and Valkey: a [distributed lock](lock), and a [sweep] of cache tags under
//! that lock.
//!
//! The crate reads no environment, has no global state, and opens no thread but the one of a
//! [`Watchdog`](lock::Watchdog) that was asked for, and one for as long as the name of a host is being
//! resolved. All calls block, and all are bounded by [`Config::timeout`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod clock;
pub mod config;
pub mod connect;
pub mod error;
pub mod layout;
pub mod lock;
pub mod metrics;
#[doc(hidden)]
pub mod reply;
mod script;
mod socket;
mod strings;
pub mod sweep;
mod thread;
mod topology;

pub use config::Config;
pub use error::{Error, ErrorKind, Result};

/// The README's Rust example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
