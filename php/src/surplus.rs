//! Arguments beyond those that a method declares. A class written in PHP ignores them, so a method serves as a handler
//! (which is given the number of its signal) or as a listener (which is given its event); a native one throws. Those
//! of ours that are made for that ignore them, too; of all others surplus arguments are a mistake.

use ext_php_rs::ffi::{zend_execute_data, zend_function, zif_handler, zval};
use ext_php_rs::zend::ClassEntry;
use std::sync::RwLock;

/// What the engine called before us. It may start a module anew in one process.
static HANDLERS: [RwLock<zif_handler>; 3] = [const { RwLock::new(None) }; 3];

/// From now on these methods ignore what is surplus. At module start only.
pub(crate) fn ignore(lock: &'static ClassEntry, manager: &'static ClassEntry) {
    wrap::<0>(manager, "stop");
    wrap::<1>(lock, "release");
    wrap::<2>(lock, "forcerelease");
}

fn wrap<const AT: usize>(class: &'static ClassEntry, method: &str) {
    let Some(entry) = class.function_table.get(method) else { return };
    // SAFETY: at module start nobody else uses the class entry; the table holds pointers to native functions.
    unsafe {
        let Some(function) = entry.value.ptr.cast::<zend_function>().as_mut() else { return };
        if let Ok(mut before) = HANDLERS[AT].write() {
            *before = function.internal_function.handler;
            function.internal_function.handler = Some(without_surplus::<AT>);
        }
    }
}

/// What the engine calls. The frame is as it was afterwards: the engine frees all arguments.
unsafe extern "C" fn without_surplus<const AT: usize>(
    call: *mut zend_execute_data,
    returned: *mut zval,
) {
    let handler = HANDLERS[AT].read().ok().and_then(|before| *before);
    // SAFETY: the engine gives the frame of a call to the method that was registered above, and frees it after us.
    // Nothing of ours that calls into PHP is called from there, so nothing jumps over the last line.
    unsafe {
        let given = (*call).This.u2.num_args;
        (*call).This.u2.num_args = given.min((*(*call).func).common.num_args);
        handler.into_iter().for_each(|handler| handler(call, returned));
        (*call).This.u2.num_args = given;
    }
}
