//! Parameters that follow PHP's own rules for scalars, weak or strict as the calling file says.
//! (`i64` and `&str` take the exact type only, and `&str` valid UTF-8 only.) What is refused is refused in PHP's
//! own words.

use crate::frame::{NO_ARG, number, refused};
use ext_php_rs::convert::{FromZval, IntoZval, StubLiteral};
use ext_php_rs::ffi::zend_string;
use ext_php_rs::flags::DataType;
use ext_php_rs::types::{ZendCallable, ZendHashTable, ZendStr, Zval};

unsafe extern "C" {
    // Both look at the strict_types declaration of the calling file themselves.
    fn zend_parse_arg_long_slow(arg: *const Zval, dest: *mut i64, arg_num: u32) -> bool;
    fn zend_parse_arg_str_slow(arg: *mut Zval, dest: *mut *mut zend_string, arg_num: u32) -> bool;
    fn zend_parse_arg_number_slow(arg: *mut Zval, dest: *mut *mut Zval, arg_num: u32) -> bool;
}

/// Null is no scalar here: in files that are not strict the engine would make 0 and '' of it, also where
/// it stands for a parameter that was not given.
fn is_null(zval: &Zval) -> bool {
    zval.dereference().is_null()
}

/// `int`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int(pub i64);

impl FromZval<'_> for Int {
    const TYPE: DataType = DataType::Long;

    fn from_zval(zval: &Zval) -> Option<Self> {
        if let Some(long) = zval.long() {
            return Some(Self(long));
        }
        let mut long = 0;
        // SAFETY: reads the zval, writes one long.
        let parsed = !is_null(zval)
            && unsafe { zend_parse_arg_long_slow(zval, &raw mut long, number(zval)) };
        if parsed { Some(Self(long)) } else { refused(zval) }
    }
}

impl From<i64> for Int {
    fn from(long: i64) -> Self {
        Self(long)
    }
}

impl IntoZval for Int {
    const TYPE: DataType = DataType::Long;
    const NULLABLE: bool = false;

    fn set_zval(self, zval: &mut Zval, _: bool) -> ext_php_rs::error::Result<()> {
        zval.set_long(self.0);
        Ok(())
    }
}

impl StubLiteral for Int {
    fn stub_literal(&self) -> String {
        self.0.to_string()
    }
}

/// `int|float`, as a float.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(pub f64);

impl FromZval<'_> for Number {
    const TYPE: DataType = DataType::Double;

    fn from_zval(zval: &Zval) -> Option<Self> {
        let plain = |zval: &Zval| zval.long().map(|n| n as f64).or_else(|| zval.double());
        if let Some(number) = plain(zval) {
            return Some(Self(number));
        }
        let mut out: *mut Zval = std::ptr::null_mut();
        // Converts in place: a copy, so that the caller's variable keeps its type.
        let mut copy = zval.shallow_clone();
        // SAFETY: `out` then points to `copy`.
        let parsed = !is_null(zval)
            && unsafe { zend_parse_arg_number_slow(&raw mut copy, &raw mut out, NO_ARG) };
        parsed.then(|| plain(&copy)).flatten().map(Self).or_else(|| refused(zval))
    }
}

impl IntoZval for Number {
    const TYPE: DataType = DataType::Double;
    const NULLABLE: bool = false;

    fn set_zval(self, zval: &mut Zval, _: bool) -> ext_php_rs::error::Result<()> {
        zval.set_double(self.0);
        Ok(())
    }
}

impl StubLiteral for Number {
    /// 60 is the default of an `int|float`, 0.0 that of a `float`.
    fn stub_literal(&self) -> String {
        if self.0 == 0.0 { "0.0".to_owned() } else { self.0.to_string() }
    }
}

/// `array`; empty when it is not given.
#[derive(Debug, Default)]
pub(crate) struct Array(Zval);

impl Array {
    pub fn table(&self) -> Option<&ZendHashTable> {
        self.0.array()
    }
}

impl FromZval<'_> for Array {
    const TYPE: DataType = DataType::Array;

    fn from_zval(zval: &Zval) -> Option<Self> {
        if zval.is_array() { Some(Self(zval.shallow_clone())) } else { refused(zval) }
    }
}

impl IntoZval for Array {
    const TYPE: DataType = DataType::Array;
    const NULLABLE: bool = false;

    fn set_zval(self, zval: &mut Zval, _: bool) -> ext_php_rs::error::Result<()> {
        zval.set_hashtable(ZendHashTable::new());
        Ok(())
    }
}

impl StubLiteral for Array {
    fn stub_literal(&self) -> String {
        "[]".to_owned()
    }
}

/// `string`: any bytes.
#[derive(Clone, Debug)]
pub(crate) struct Bytes(pub Vec<u8>);

impl FromZval<'_> for Bytes {
    const TYPE: DataType = DataType::String;

    fn from_zval(zval: &Zval) -> Option<Self> {
        if let Some(string) = zval.zend_str() {
            return Some(Self(string.as_bytes().to_vec()));
        }
        let mut out: *mut zend_string = std::ptr::null_mut();
        // Converts in place: a copy, so that the caller's variable keeps its type.
        let mut copy = zval.shallow_clone();
        // SAFETY: `out` then points into `copy`.
        let parsed = !is_null(zval)
            && unsafe { zend_parse_arg_str_slow(&raw mut copy, &raw mut out, NO_ARG) };
        if !parsed || out.is_null() {
            return refused(zval);
        }
        // SAFETY: a live string, borrowed from `copy`, which lives to the end of this function.
        let string: &ZendStr = unsafe { &*out };
        Some(Self(string.as_bytes().to_vec()))
    }
}

/// `callable`
#[derive(Debug)]
pub(crate) struct Callable(Zval);

impl Callable {
    /// Calls it without arguments.
    pub fn call(self) -> ext_php_rs::error::Result<Zval> {
        ZendCallable::new_owned(self.0)?.try_call(vec![])
    }
}

impl FromZval<'_> for Callable {
    const TYPE: DataType = DataType::Callable;

    fn from_zval(zval: &Zval) -> Option<Self> {
        if zval.is_callable() { Some(Self(zval.shallow_clone())) } else { refused(zval) }
    }
}

/// The type of a value, as PHP's own messages name it.
pub(crate) fn type_name(zval: &Zval) -> String {
    match zval.object() {
        // Behind a zero byte, anonymous classes have where they are.
        Some(object) => object.get_class_name().map_or("object".to_owned(), |name| {
            name.split('\0').next().unwrap_or_default().to_owned()
        }),
        None if zval.is_null() => "null".to_owned(),
        None if zval.is_long() => "int".to_owned(),
        None if zval.is_double() => "float".to_owned(),
        None if zval.is_bool() => "bool".to_owned(),
        None if zval.is_array() => "array".to_owned(),
        None if zval.is_string() => "string".to_owned(),
        None => format!("{:?}", zval.get_type()).to_lowercase(),
    }
}
