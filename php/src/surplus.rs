//! Arguments beyond those that a method declares. A class written in PHP ignores them, so a method serves as a handler
//! (which is given the number of its signal) or as a listener (which is given its event); a native one throws. Ours
//! ignore them, too.

use crate::exceptions::invalid;
use ext_php_rs::ffi::{zend_execute_data, zend_function, zif_handler, zval};
use ext_php_rs::zend::ClassEntry;
use std::collections::HashMap;
use std::sync::OnceLock;

/// What the engine called before us, by where a method's arguments are described: a closure made of it is a copy, and
/// opcache gives it another name string.
static HANDLERS: OnceLock<HashMap<usize, zif_handler>> = OnceLock::new();

/// From now on methods of these classes ignore what is surplus. At module start only.
pub(crate) fn ignore(classes: &[&'static ClassEntry]) {
    let mut handlers = HashMap::new();
    for class in classes {
        for (_, entry) in &class.function_table {
            // SAFETY: at module start nobody else uses the class entry; the table holds pointers to functions.
            let Some(function) = (unsafe { entry.value.ptr.cast::<zend_function>().as_mut() })
            else {
                continue;
            };
            // SAFETY: methods of a native class are native, but for those of a parent, which are not ours.
            unsafe {
                if std::ptr::eq(function.common.scope, *class) {
                    handlers.insert(key(function), function.internal_function.handler);
                    function.internal_function.handler = Some(without_surplus);
                }
            }
        }
    }
    let _ = HANDLERS.set(handlers);
}

/// # Safety
/// A native function.
unsafe fn key(function: &zend_function) -> usize {
    // SAFETY: by the contract of this function.
    unsafe { function.internal_function.arg_info.addr() }
}

/// What the engine calls. The frame is as it was afterwards: the engine frees all arguments.
unsafe extern "C" fn without_surplus(call: *mut zend_execute_data, returned: *mut zval) {
    // SAFETY: the engine gives the frame of a call to a method that was registered above, and frees it after us.
    unsafe {
        let function = &*(*call).func;
        let Some(Some(handler)) = HANDLERS.get().and_then(|known| known.get(&key(function))) else {
            invalid("this method was not known at module start").throw();
            return;
        };
        let given = (*call).This.u2.num_args;
        (*call).This.u2.num_args = given.min(function.common.num_args);
        handler(call, returned);
        (*call).This.u2.num_args = given;
    }
}
