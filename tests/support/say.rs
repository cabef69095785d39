//! What a test tells that passes, too: the harness keeps to itself what `println!` says.
#![allow(dead_code, missing_docs)]

use std::io::Write;

pub fn say(figures: &str) {
    let _ = writeln!(std::io::stderr(), "{figures}");
}
