//! What the class macros cannot say: `Redis|string|array $redis`, `int|float $ttl`, and that the first
//! parameter is sensitive, so that no backtrace shows a password in a DSN; `?callable $listener`, `?object $logger`
//! and, of a maker, `static`; and that an object equals no other.

use ext_php_rs::ffi::zval;
use ext_php_rs::ffi::{_ZEND_TYPE_NAME_BIT, HashTable, zend_internal_arg_info};
use ext_php_rs::ffi::{
    IS_ARRAY, IS_CALLABLE, IS_DOUBLE, IS_LONG, IS_NULL, IS_OBJECT, IS_STRING, zend_function,
};
use ext_php_rs::types::ZendStr;
use ext_php_rs::zend::{ClassEntry, ZendObjectHandlers};
use std::ffi::c_int;

unsafe extern "C" {
    fn zend_std_compare_objects(one: *mut zval, other: *mut zval) -> c_int;
    // zend_mark_function_parameter_as_sensitive() is in PHP 8.2's headers, but not in its binary.
    fn zend_add_attribute(
        attributes: *mut *mut HashTable,
        name: *mut ZendStr,
        argc: u32,
        flags: u32,
        offset: u32,
        lineno: u32,
    ) -> *mut std::ffi::c_void;
}

/// Repairs `onProgress(?callable $listener = null)` and `setLogger(?object $logger = null)`. At module start
/// only. (They return the class, not `static`: a lazy proxy answers with the object behind it.)
pub(crate) fn repair_setters(class: &'static ClassEntry) {
    for (method, kind) in [("onprogress", IS_CALLABLE), ("setlogger", IS_OBJECT)] {
        // SAFETY: at module start nobody else uses the class entry; the table holds pointers to
        // functions, whose argument tables are ours and have the return type before the first argument.
        unsafe {
            let Some(entry) = class.function_table.get(method) else { continue };
            let Some(function) = entry.value.ptr.cast::<zend_function>().as_mut() else { continue };
            let table = function.internal_function.arg_info.cast::<zend_internal_arg_info>();
            let argument = &mut (*table).type_;
            argument.type_mask = (argument.type_mask & !TYPE_BITS) | (1 << kind) | (1 << IS_NULL);
        }
    }
}

/// An object equals itself alone: without properties to compare, the engine takes any two of a class for equal. At
/// module start only.
pub(crate) fn compare_by_identity(handlers: &'static ZendObjectHandlers) {
    unsafe extern "C" fn compare(one: *mut zval, other: *mut zval) -> c_int {
        const UNCOMPARABLE: c_int = 1;
        // SAFETY: the engine gives two values, at least one of which is an object.
        unsafe {
            match ((*one).object(), (*other).object()) {
                (Some(one), Some(other)) if std::ptr::eq(one, other) => 0,
                (Some(_), Some(_)) => UNCOMPARABLE,
                _ => zend_std_compare_objects(one, other),
            }
        }
    }
    // SAFETY: at module start nobody else uses the handlers, which are in a cell of the class macro's.
    unsafe { (*std::ptr::from_ref(handlers).cast_mut()).compare = Some(compare) };
}

/// `static` for what is returned.
///
/// # Safety
/// At module start; the function is one of ours.
unsafe fn returns_static(function: &mut zend_function) {
    // SAFETY: by the contract of this function; the return type stands before the first argument.
    unsafe {
        let table = function.internal_function.arg_info.cast::<zend_internal_arg_info>();
        let returned = &mut (*table.sub(1)).type_;
        returned.ptr = std::ptr::null_mut();
        returned.type_mask = (returned.type_mask & !TYPE_BITS) | MAY_BE_STATIC;
    }
}

/// `static` as a return type.
const MAY_BE_STATIC: u32 = 1 << 15;

/// Bits of a type mask that name types; the rest are flags of the parameter.
const TYPE_BITS: u32 = (1 << 25) - 1;
const PERSISTENT: u32 = 1;

/// Repairs a constructor `(redis, …)`; `number_at` is the position of an `int|float` parameter.
/// At module start only, after the class is registered.
pub(crate) fn repair_constructor(class: &'static ClassEntry, number_at: Option<usize>) {
    let class = std::ptr::from_ref(class).cast_mut();
    // SAFETY: at module start nobody else uses the class entry, and its argument table is ours.
    unsafe {
        let Some(constructor) = (*class).constructor.as_mut() else { return };
        repair_redis(constructor);
        if let Some(at) = number_at {
            let table = constructor.internal_function.arg_info.cast::<zend_internal_arg_info>();
            let number = &mut (*table.add(at)).type_;
            number.type_mask = (number.type_mask & !TYPE_BITS) | (1 << IS_LONG) | (1 << IS_DOUBLE);
        }
        hide(constructor, 0);
    }
}

/// Repairs what takes an owner: `restore(redis, lockKey, owner, …): static` and `isOwnedBy(owner)`. At
/// module start only.
pub(crate) fn repair_owners(class: &'static ClassEntry) {
    // SAFETY: at module start nobody else uses the class entry; the table holds pointers to functions.
    unsafe {
        let function = |name: &str| {
            let entry = class.function_table.get(name)?;
            entry.value.ptr.cast::<zend_function>().as_mut()
        };
        if let Some(restore) = function("restore") {
            repair_redis(restore);
            returns_static(restore);
            hide(restore, 0);
            hide(restore, 2);
        }
        if let Some(ask) = function("isownedby") {
            hide(ask, 0);
        }
    }
}

/// `Redis|string|array` for the first parameter.
///
/// # Safety
/// At module start; the function is one of ours and has a parameter.
unsafe fn repair_redis(function: &mut zend_function) {
    // SAFETY: by the contract of this function.
    unsafe {
        let table = function.internal_function.arg_info.cast::<zend_internal_arg_info>();
        let redis = &mut (*table).type_;
        redis.ptr = ZendStr::new_interned("Redis", true).into_raw().cast();
        redis.type_mask = (redis.type_mask & !TYPE_BITS)
            | _ZEND_TYPE_NAME_BIT
            | (1 << IS_STRING)
            | (1 << IS_ARRAY);
    }
}

/// Keeps a parameter out of backtraces.
///
/// # Safety
/// At module start; the function is one of ours.
unsafe fn hide(function: &mut zend_function, parameter: u32) {
    // SAFETY: by the contract of this function.
    unsafe {
        let name = ZendStr::new_interned("SensitiveParameter", true).into_raw();
        // Offset 1 is the first parameter (0 would be the function itself).
        let attributes = &raw mut function.internal_function.attributes;
        zend_add_attribute(attributes, name, 0, PERSISTENT, parameter + 1, 0);
    }
}
