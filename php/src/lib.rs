//! The PHP face: translation of types, errors and signals; the core decides everything.
//!
//! The module entry is written by hand, because there must be a moment *after* the classes are
//! registered: for exceptions, parameter types and aliases.
#![allow(non_snake_case)] // parameters of PHP functions keep the names that PHP code uses

mod arginfo;
mod ending;
mod exceptions;
mod frame;
mod gate;
mod lock;
mod manager;
mod options;
mod report;
mod surplus;
mod target;
mod weak;

use exceptions::PhpInterfaceExceptionInterface;
use ext_php_rs::builders::{ModuleBuilder, ModuleStartup};
use ext_php_rs::class::RegisteredClass;
use ext_php_rs::error::php_error;
use ext_php_rs::flags::{ErrorType, IniEntryPermission};
use ext_php_rs::zend::{ClassEntry, IniEntryDef, IniEntryDefs, ModuleEntry, StaticModuleEntry};
use ext_php_rs::{info_table_end, info_table_header, info_table_row, info_table_start};
use lock::{DistributedLock, PhpInterfaceLockInterface};
use manager::TagCleanupManager;
use report::SweepReport;
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

static INI: IniEntryDefs<2> = IniEntryDefs::new([
    IniEntryDef::new(c"tagsweep.alias_namespace", c"", IniEntryPermission::System),
    IniEntryDef::end(),
]);

unsafe extern "C" {
    fn zend_ini_string(name: *const c_char, length: usize, original: c_int) -> *mut c_char;
    fn zend_register_class_alias_ex(
        name: *const c_char,
        length: usize,
        class: *mut ClassEntry,
        persistent: bool,
    ) -> c_int;
    fn zend_unregister_ini_entries(module: c_int);
    fn display_ini_entries(module: *mut ModuleEntry);
}

/// Namespace in which the classes are known, too; without the outer backslashes.
fn alias_namespace() -> String {
    let name = "tagsweep.alias_namespace";
    // SAFETY: the engine owns the string; it is copied at once.
    unsafe {
        let value = zend_ini_string(name.as_ptr().cast(), name.len(), 0);
        if value.is_null() {
            return String::new();
        }
        CStr::from_ptr(value).to_string_lossy().trim_matches('\\').to_owned()
    }
}

/// Whether code can name it; also nothing at all.
fn is_namespace(text: &str) -> bool {
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
    let is_name = |name: &str| {
        name.starts_with(begins) && name.chars().all(|c| begins(c) || c.is_ascii_digit())
    };
    text.is_empty() || text.split('\\').all(is_name)
}

fn alias(
    namespace: &str,
    short: &str,
    class: &'static ClassEntry,
) -> ext_php_rs::error::Result<()> {
    let name = format!("{namespace}\\{short}");
    let class = std::ptr::from_ref(class).cast_mut();
    // SAFETY: at module start; the engine copies the name and keeps the class, which lives as long.
    let done =
        unsafe { zend_register_class_alias_ex(name.as_ptr().cast(), name.len(), class, true) };
    if done == 0 { Ok(()) } else { Err(ext_php_rs::error::Error::InvalidScope) }
}

/// The table in phpinfo().
unsafe extern "C" fn module_info(module: *mut ModuleEntry) {
    info_table_start!();
    info_table_header!("tagsweep support", "enabled");
    info_table_row!("Version", env!("CARGO_PKG_VERSION"));
    info_table_row!("Layouts", "plain");
    info_table_row!("TLS", "rustls");
    info_table_end!();
    // SAFETY: called by the engine with our own entry.
    unsafe { display_ini_entries(module) };
}

unsafe extern "C" fn request_shutdown(_: c_int, _: c_int) -> c_int {
    // As below.
    let _ = std::panic::catch_unwind(target::close_unused);
    0
}

unsafe extern "C" fn module_shutdown(_: c_int, number: c_int) -> c_int {
    // A panic must not cross into the engine, and there is nobody left to tell.
    let _ = std::panic::catch_unwind(options::dismiss_watchdog);
    // SAFETY: called by the engine with our module's number.
    unsafe { zend_unregister_ini_entries(number) };
    0
}

/// What the engine calls at start, once the classes are known. Read by that thread only.
struct Startup(ModuleStartup);
// SAFETY: set before the engine can call us, and read at module start only, by one thread.
unsafe impl Sync for Startup {}
// SAFETY: as above.
unsafe impl Send for Startup {}
static STARTUP: OnceLock<Startup> = OnceLock::new();

extern "C" fn module_startup(kind: c_int, number: c_int) -> c_int {
    ext_php_rs::internal::startup_guard(|| {
        IniEntryDef::register(INI.as_slice(), number);
        if let Some(startup) = STARTUP.get() {
            startup.0.startup(kind, number)?;
        }
        exceptions::register()?;
        ending::prepare(lock::release_all);
        let (lock, manager) =
            (DistributedLock::get_metadata().ce(), TagCleanupManager::get_metadata().ce());
        arginfo::repair_constructor(lock, Some(2));
        arginfo::repair_constructor(manager, None);
        arginfo::repair_owners(lock);
        arginfo::repair_setters(manager);
        surplus::ignore(lock, manager);
        arginfo::compare_by_identity(DistributedLock::get_metadata().handlers());
        arginfo::compare_by_identity(TagCleanupManager::get_metadata().handlers());
        let namespace = alias_namespace();
        if !is_namespace(&namespace) {
            let told = format!("tagsweep.alias_namespace = \"{namespace}\" is no namespace");
            php_error(&ErrorType::CoreWarning, &told);
        } else if !namespace.is_empty() && !namespace.eq_ignore_ascii_case("Tagsweep") {
            alias(&namespace, "DistributedLock", lock)?;
            alias(&namespace, "TagCleanupManager", manager)?;
        }
        Ok(())
    })
}

fn module() -> ModuleBuilder<'static> {
    ModuleBuilder::new("tagsweep", env!("CARGO_PKG_VERSION"))
        .info_function(module_info)
        .shutdown_function(module_shutdown)
        .request_shutdown_function(request_shutdown)
        .interface::<PhpInterfaceExceptionInterface>()
        .interface::<PhpInterfaceLockInterface>()
        .class::<DistributedLock>()
        .class::<SweepReport>()
        .class::<TagCleanupManager>()
}

/// The one symbol that PHP looks for.
#[unsafe(no_mangle)]
pub extern "C" fn get_module() -> *mut ModuleEntry {
    static ENTRY: StaticModuleEntry = StaticModuleEntry::new();
    ENTRY.get_or_init(|| {
        #[allow(clippy::expect_used)] // a static description: it is right always or never
        let (mut entry, startup, owned) = module().try_into().expect("the module's description");
        let described: &mut ModuleEntry = &mut entry;
        described.module_startup_func = Some(module_startup);
        let _ = STARTUP.set(Startup(startup));
        (entry, owned)
    })
}
