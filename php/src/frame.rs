//! The call under way, as the engine has it: its arguments, its object, its class.

use crate::exceptions::{invalid, type_error};
use crate::weak::type_name;
use ext_php_rs::boxed::ZBox;
use ext_php_rs::class::RegisteredClass;
use ext_php_rs::exception::PhpResult;
use ext_php_rs::ffi::{IS_NULL, zend_execute_data, zend_internal_arg_info, zend_string, zend_type};
use ext_php_rs::flags::ClassFlags;
use ext_php_rs::types::{ZendClassObject, ZendStr, Zval};
use ext_php_rs::zend::{ClassEntry, ExecutorGlobals};
use std::ffi::CStr;

unsafe extern "C" {
    fn zend_type_to_string(kind: zend_type) -> *mut zend_string;
}

/// "No argument number": the caller words the error.
pub(crate) const NO_ARG: u32 = u32::MAX;

/// Where the arguments of a call begin, in its frame.
const FRAME: usize = size_of::<zend_execute_data>().div_ceil(size_of::<Zval>());

/// The call under way, and which of its arguments a value is; nothing if it is none.
fn argument(zval: &Zval) -> Option<(&zend_execute_data, usize)> {
    // SAFETY: the frame of the call under way outlives the values that it was given; they follow it.
    let frame = unsafe { ExecutorGlobals::get().current_execute_data.as_ref()? };
    let first = std::ptr::from_ref(frame).addr() + FRAME * size_of::<Zval>();
    let at = std::ptr::from_ref(zval).addr().checked_sub(first)? / size_of::<Zval>();
    // SAFETY: of a frame, that is the number of its arguments.
    let given = unsafe { frame.This.u2.num_args };
    (at < given as usize).then_some((frame, at))
}

/// The number by which the engine complains of a value; none where the caller words the complaint.
pub(crate) fn number(zval: &Zval) -> u32 {
    argument(zval).and_then(|(_, at)| u32::try_from(at + 1).ok()).unwrap_or(NO_ARG)
}

/// `None`, after a complaint in PHP's own words if the value is an argument of the method under way.
pub(crate) fn refused<T>(zval: &Zval) -> Option<T> {
    if let Some(complaint) = complaint(zval) {
        type_error(complaint).throw();
    }
    None
}

/// `Class::method(): Argument #1 ($name) must be of type int, string given`
pub(crate) fn complaint(zval: &Zval) -> Option<String> {
    let (frame, at) = argument(zval)?;
    // SAFETY: the frame is that of a method of ours, of which the engine has a description, of each argument, too.
    unsafe {
        let method = &frame.func.as_ref()?.internal_function;
        if at >= method.num_args as usize {
            return None;
        }
        let text = |string: *const ZendStr| string.as_ref().and_then(|text| text.as_str().ok());
        let class = text(method.scope.as_ref()?.name)?;
        let told = method.arg_info.cast::<zend_internal_arg_info>().add(at).as_ref()?;
        if zval.is_null() && told.type_.type_mask & (1 << IS_NULL) != 0 {
            return None;
        }
        let name = CStr::from_ptr(told.name).to_str().ok()?;
        let kind = ZBox::from_raw(zend_type_to_string(told.type_));
        Some(format!(
            "{class}::{}(): Argument #{} (${name}) must be of type {}, {} given",
            text(method.function_name)?,
            at + 1,
            kind.as_str().ok()?,
            type_name(zval),
        ))
    }
}

/// In a constructor: the object must be new. One that is in use is not to become another.
pub(crate) fn refuse_twice<T: RegisteredClass>() -> PhpResult<()> {
    // SAFETY: while a constructor of ours runs the current frame is its own, and holds the object.
    let made = unsafe {
        ExecutorGlobals::get().current_execute_data.as_ref().is_some_and(|frame| {
            let object = frame.This.object();
            object.and_then(ZendClassObject::<T>::from_zend_obj).is_some_and(|o| o.obj.is_some())
        })
    };
    if made { Err(invalid("this object is constructed already; make another one")) } else { Ok(()) }
}

/// The class that the static method under way was called on, if it is a `T` that can have objects.
pub(crate) fn called_class<T: RegisteredClass>() -> Option<&'static ClassEntry> {
    // SAFETY: while a static method of ours runs the current frame is its own, and holds the class where
    // other frames hold the object; classes outlive the request's frames.
    let class = unsafe {
        let this = &ExecutorGlobals::get().current_execute_data.as_ref()?.This;
        if this.is_object() { (*this.value.obj).ce.as_ref()? } else { this.value.ce.as_ref()? }
    };
    let ours = class.instance_of(T::get_metadata().ce());
    (ours && !class.flags().contains(ClassFlags::Abstract)).then_some(class)
}
