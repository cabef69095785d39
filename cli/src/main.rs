//! `tagsweep`: the sweep and the lock for the shell and for cron.
//!
//! Exit codes: 0 done, 1 error, 2 usage, 3 held by another, 4 lost or interrupted (partial result),
//! 5 unknown (the server did not answer; what was sent may have taken effect); as shells have it, 126 and
//! 127 when the command of `tagsweep lock` cannot be run or found.

/// Prints a line. Nobody who reads no more can make us panic, and leave a lock or a command behind; any
/// other reason why it cannot be written is told of at the end.
macro_rules! say {
    ($($text:tt)*) => { crate::print(format_args!($($text)*)) };
}

/// Prints a line for people.
macro_rules! complain {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod acl;
mod args;
mod demo;
mod doctor;
mod generate;
mod history;
mod lock;
mod monitor;
mod output;
mod signals;
mod sweep;

use args::{Args, Command};
use clap::Parser;
use std::io::ErrorKind::BrokenPipe;
use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;
use tagsweep::{Error, ErrorKind};

/// Why a line could not be written, the first time.
static UNWRITTEN: OnceLock<std::io::Error> = OnceLock::new();

pub(crate) fn print(line: std::fmt::Arguments) {
    if let Err(e) = writeln!(std::io::stdout(), "{line}") {
        // Who reads no more, as in `tagsweep plan | head -n 1`, has read enough.
        if e.kind() != BrokenPipe {
            let _ = UNWRITTEN.set(e);
        }
    }
}

/// What the shell is told.
pub(crate) mod exit {
    pub const DONE: u8 = 0;
    pub const ERROR: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const HELD: u8 = 3;
    pub const PARTIAL: u8 = 4;
    pub const UNKNOWN: u8 = 5;
    /// Of a command that `tagsweep lock` cannot run, and of one that it cannot find.
    pub const CANNOT_RUN: u8 = 126;
    pub const NO_COMMAND: u8 = 127;
}

fn main() -> ExitCode {
    let args = Args::try_parse().unwrap_or_else(|e| refuse(&e));
    let done = match args.command {
        Command::Sweep(options) => sweep::sweep(&options, false),
        Command::Plan(options) => sweep::sweep(&options, true),
        Command::Lock(options) => lock::lock(&options),
        Command::Run(options) => lock::run(&options),
        Command::Status(options) => monitor::status(&options),
        Command::ForceRelease(options) => monitor::force_release(&options),
        Command::History(options) => history::history(&options),
        Command::Metrics(options) => monitor::metrics(&options),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Acl(options) => acl::acl(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Generate(options) => generate::generate(&options),
    };
    let code = done.map_err(spelled).unwrap_or_else(|e| {
        if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == BrokenPipe) {
            return exit::DONE;
        }
        complain!("tagsweep: {e}");
        code_of(e.as_ref())
    });
    let Some(e) = UNWRITTEN.get() else { return ExitCode::from(code) };
    complain!("tagsweep: the output could not be written: {e}");
    ExitCode::from(if code == exit::DONE { exit::ERROR } else { code })
}

/// What is wrong with the command line; a password in it is not repeated.
fn refuse(e: &clap::Error) -> ! {
    let args: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let secrets: Vec<&str> = args.iter().filter_map(|arg| args::with_password(arg)).collect();
    if secrets.is_empty() || !e.use_stderr() {
        e.exit();
    }
    let told = e.render().to_string();
    let told = secrets.iter().fold(told, |told, url| told.replace(url, "a URL with a password"));
    complain!("{}", told.trim_end());
    std::process::exit(e.exit_code());
}

/// With options as they are given here.
fn spelled(e: Box<dyn std::error::Error>) -> Box<dyn std::error::Error> {
    match e.downcast::<Error>() {
        Ok(e) => Box::new(e.spelled(|name| format!("--{}", name.replace('_', "-")))),
        Err(e) => e,
    }
}

fn code_of(e: &(dyn std::error::Error + 'static)) -> u8 {
    match e.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::Invalid) => exit::USAGE,
        Some(ErrorKind::Unknown) => exit::UNKNOWN,
        Some(ErrorKind::Lost) => exit::PARTIAL,
        _ => exit::ERROR,
    }
}

/// Result of a command: the exit code, or what went wrong.
pub(crate) type Done = Result<u8, Box<dyn std::error::Error>>;
