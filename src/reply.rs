//! What replies mean: errors, values, and the text of `INFO`. Pure.

use crate::error::{Error, ErrorKind, Result, plain};
use redis::{FromRedisValue, Value};
use std::borrow::Cow;
use std::str::FromStr;

/// Turns an error reply into an error, by its first word where that says it: texts differ between servers.
pub(crate) fn checked(reply: Value) -> Result<Value> {
    let Value::ServerError(e) = &reply else { return Ok(reply) };
    let told = |what: &str| e.details().is_some_and(|text| text.contains(what));
    let code = match e.code() {
        // Long commands are refused before the password is asked for.
        _ if told("unauthenticated") => "NOAUTH",
        "ERR" if told("max number of clients") => "MAXCLIENTS",
        // Of a script, before and since Redis 7.2.
        "ERR" if told("user executing the script can't") || told("ACL failure in script") => {
            "NOPERM"
        }
        code => code,
    };
    let kind = match code {
        "WRONGTYPE" => ErrorKind::WrongType,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => ErrorKind::Denied,
        _ => ErrorKind::Refused,
    };
    let text = format!("the server answered {code} {}", plain(e.details().unwrap_or_default()));
    let error = Error::new(kind, text.trim_end()).code_of(code);
    Err(match code {
        "WRONGTYPE" => error.advice("another program uses this key or one that belongs to it; choose another name or prefix"),
        "NOAUTH" => error.advice("give a password"),
        "WRONGPASS" => error.advice("check user and password"),
        "NOPERM" => error.advice("grant the user this command and key"),
        "MAXCLIENTS" => error.advice("raise maxclients, or close connections that nobody uses"),
        "READONLY" => error.advice("this is a replica; name the primary"),
        "OOM" => error.advice("raise maxmemory or choose an eviction policy"),
        _ => error,
    })
}

/// A reply as what it should be.
pub(crate) fn understood<T: FromRedisValue>(reply: Value) -> Result<T> {
    redis::from_redis_value(reply).map_err(|e| senseless().because(e))
}

/// The same of texts. Bytes that are none are replaced: what somebody else left must not hide the rest.
pub(crate) fn texts<T: FromRedisValue>(reply: Value) -> Result<T> {
    fn legible(reply: Value) -> Value {
        match reply {
            Value::BulkString(bytes) => Value::BulkString(match String::from_utf8_lossy(&bytes) {
                Cow::Borrowed(_) => bytes,
                Cow::Owned(text) => text.into_bytes(),
            }),
            Value::Array(items) => Value::Array(items.into_iter().map(legible).collect()),
            other => other,
        }
    }
    understood(legible(reply))
}

/// The error for an answer of another shape than any server of ours gives.
pub(crate) fn senseless() -> Error {
    Error::new(ErrorKind::Refused, "the server's answer makes no sense")
}

/// The text of `INFO`, whichever of its sections were asked for. What a server does not tell is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Info<'a>(pub &'a str);

impl<'a> Info<'a> {
    /// The value of a field.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        let value = |line: &'a str| line.trim_end().strip_prefix(name)?.strip_prefix(':');
        self.0.lines().find_map(value)
    }

    /// The same, as a number.
    pub fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// Whether the field says so.
    pub fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == Some(value)
    }

    /// Whether the server knows what that version of Redis does. Valkey reports 7.2.4 whatever its own is.
    pub fn is_since(&self, version: [u32; 2]) -> bool {
        let told = self.text("redis_version").unwrap_or_default();
        let told: Vec<u32> = told.split('.').filter_map(|part| part.parse().ok()).collect();
        told.as_slice() >= version.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_names_and_versions_are_numbers() {
        let info = Info("# Server\r\nredis_version:7.10.1\r\nrole:master\r\nmaxmemory:5\r\n");
        assert_eq!((info.text("role"), info.text("rol")), (Some("master"), None));
        assert_eq!((info.number("maxmemory"), info.number::<u64>("role")), (Some(5), None));
        assert!(info.is_since([7, 2]) && info.is_since([7, 10]) && !info.is_since([8, 0]));
        assert!(!Info("").is_since([0, 1]));
    }
}
