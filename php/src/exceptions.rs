//! `Tagsweep\Exception\*`: one class for each thing that a caller would do something else about.
//!
//! Registered by hand, without an object handler of ours: a `#[php_class]` that extends an exception
//! has neither file, line nor trace, and cannot be made by PHP code.

use ext_php_rs::builders::ClassBuilder;
use ext_php_rs::class::RegisteredClass;
use ext_php_rs::error::Result;
use ext_php_rs::exception::PhpException;
use ext_php_rs::prelude::*;
use ext_php_rs::zend::{ClassEntry, ce};
use std::sync::atomic::{AtomicPtr, Ordering};
use tagsweep::{Error, ErrorKind};

unsafe extern "C" {
    // At module start there is no table to look classes up in; these are exported for that.
    static spl_ce_RuntimeException: *mut ClassEntry;
    static spl_ce_InvalidArgumentException: *mut ClassEntry;
    static spl_ce_LogicException: *mut ClassEntry;
}

fn runtime() -> &'static ClassEntry {
    // SAFETY: set by the SPL extension, which is always there and starts before us.
    unsafe { &*spl_ce_RuntimeException }
}

fn invalid_argument() -> &'static ClassEntry {
    // SAFETY: as above.
    unsafe { &*spl_ce_InvalidArgumentException }
}

fn logic() -> &'static ClassEntry {
    // SAFETY: as above.
    unsafe { &*spl_ce_LogicException }
}

/// All exceptions of tagsweep.
#[php_interface]
#[php(name = "Tagsweep\\Exception\\ExceptionInterface")]
#[php(extends(ce = ce::throwable, stub = "\\Throwable"))]
#[allow(dead_code)]
pub(crate) trait ExceptionInterface {}

/// The class entries, in the order of [`CLASSES`]. Written at module start, read afterwards.
static ENTRIES: [AtomicPtr<ClassEntry>; CLASSES.len()] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; CLASSES.len()];

type Parent = (fn() -> &'static ClassEntry, &'static str);
const RUNTIME: Parent = (runtime, "\\RuntimeException");

const CLASSES: [(&str, Parent); 8] = [
    ("InvalidArgumentException", (invalid_argument, "\\InvalidArgumentException")),
    ("ConnectionException", RUNTIME),
    ("UnknownOutcomeException", RUNTIME),
    ("ServerException", RUNTIME),
    ("LockConflictedException", RUNTIME),
    ("LockLostException", RUNTIME),
    ("UnprovenMappingException", RUNTIME),
    ("ReentrantLockException", (logic, "\\LogicException")),
];

/// Position in [`CLASSES`].
#[derive(Clone, Copy)]
pub(crate) enum Class {
    InvalidArgument,
    Connection,
    UnknownOutcome,
    Server,
    LockConflicted,
    LockLost,
    UnprovenMapping,
    Reentrant,
}

/// After the interface, before anything can throw.
pub(crate) fn register() -> Result<()> {
    for (name, parent) in CLASSES {
        let interface =
            (marker as fn() -> &'static ClassEntry, "Tagsweep\\Exception\\ExceptionInterface");
        ClassBuilder::new(format!("Tagsweep\\Exception\\{name}"))
            .extends(parent)
            .implements(interface)
            .registration(|class, methods| {
                std::mem::forget(methods);
                remember(class);
            })
            .register()?;
    }
    Ok(())
}

fn marker() -> &'static ClassEntry {
    PhpInterfaceExceptionInterface::get_metadata().ce()
}

/// A plain function: it cannot know the position, and looks it up.
fn remember(class: &'static mut ClassEntry) {
    let name = class.name().unwrap_or_default().to_owned();
    let known = CLASSES.iter().position(|(short, _)| name.ends_with(&format!("\\{short}")));
    if let Some(at) = known {
        ENTRIES[at].store(class, Ordering::Release);
    }
}

fn entry(class: Class) -> &'static ClassEntry {
    let entry = ENTRIES[class as usize].load(Ordering::Acquire);
    // SAFETY: class entries of a module live until it is shut down; before that NULL cannot be seen
    // here, for module start fails when one is not registered.
    unsafe { entry.as_ref() }.unwrap_or_else(runtime)
}

/// An exception of a class, with a message.
pub(crate) fn exception(class: Class, message: impl Into<String>) -> PhpException {
    PhpException::new(whole(message.into()), 0, entry(class))
}

/// A message as it can be thrown: without the byte at which C's strings end.
fn whole(message: String) -> String {
    message.replace('\0', "\\0")
}

/// A wrong argument.
pub(crate) fn invalid(message: impl Into<String>) -> PhpException {
    exception(Class::InvalidArgument, message)
}

/// A wrong type, worded as PHP does.
pub(crate) fn type_error(message: String) -> PhpException {
    PhpException::new(whole(message), 0, ce::type_error())
}

/// An error of the core.
pub(crate) fn from_core(e: Error) -> PhpException {
    let class = match e.kind() {
        ErrorKind::Invalid => Class::InvalidArgument,
        ErrorKind::Unreachable | ErrorKind::Denied => Class::Connection,
        ErrorKind::Unknown => Class::UnknownOutcome,
        ErrorKind::Lost => Class::LockLost,
        ErrorKind::Reentrant => Class::Reentrant,
        ErrorKind::Unproven => Class::UnprovenMapping,
        _ => Class::Server,
    };
    exception(class, e.spelled(camel_case).to_string())
}

/// An option as it is spelled here.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| match word.split_at_checked(1) {
        Some((initial, rest)) => name + &initial.to_ascii_uppercase() + rest,
        None => name,
    })
}
