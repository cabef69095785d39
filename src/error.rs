//! The one error type: what failed, on which key and server, how long and how often it was tried,
//! and what to do. An option is named as its field is (`max_hold`); each face spells it in its own way.
//!
//! Contention is never an error (see [`Outcome`](crate::lock::Outcome)), and neither is a sweep that
//! ends early (see [`Reason`](crate::sweep::Reason)).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What follows when no answer comes to a command that changes something.
pub(crate) const EFFECT_UNKNOWN: &str = "whether the command took effect is not known";

/// What went wrong, by what a caller would do about it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An argument is out of bounds. Nothing was sent.
    Invalid,
    /// No connection could be made. Nothing was sent.
    Unreachable,
    /// The server refused the credentials, or the user lacks a permission. Trying again is no use.
    Denied,
    /// The command was sent and no answer came in time: it may or may not have taken effect.
    Unknown,
    /// The server answered with an error; [`Error::code`] is its first word.
    Refused,
    /// The key holds a value of another type.
    WrongType,
    /// The lease is not ours any more.
    Lost,
    /// The caller waits for a lock that it holds itself.
    Reentrant,
    /// Too few replicas have the grant; it was given back.
    Unconfirmed,
    /// No member maps to an existing entry, or two mappings do: a sweep would guess.
    Unproven,
}

/// An error of tagsweep. Its text is complete and holds no secret.
#[derive(thiserror::Error, Debug)]
#[error(transparent)]
pub struct Error(Box<Fault>);

/// What an error knows.
#[derive(thiserror::Error, Debug)]
#[error("{}", self.text())]
struct Fault {
    kind: ErrorKind,
    what: String,
    code: Option<String>,
    server: Option<String>,
    key: Option<String>,
    tries: Option<(u32, Duration)>,
    advice: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Box::new(Fault {
            kind,
            what: what.into(),
            code: None,
            server: None,
            key: None,
            tries: None,
            advice: None,
            source: None,
        }))
    }

    /// An argument out of bounds: what is wrong, and what would be right.
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what)
    }

    /// An argument that a face found to be out of bounds.
    #[doc(hidden)]
    pub fn bad_argument(what: impl Into<String>) -> Self {
        Self::invalid(what)
    }

    pub(crate) fn code_of(mut self, code: &str) -> Self {
        self.0.code = Some(code.to_owned());
        self
    }

    pub(crate) fn server(mut self, label: &str) -> Self {
        self.0.server.get_or_insert_with(|| label.to_owned());
        self
    }

    pub(crate) fn key(mut self, key: &[u8]) -> Self {
        self.0.key.get_or_insert_with(|| printable(key));
        self
    }

    pub(crate) fn tried(mut self, times: u32, elapsed: Duration) -> Self {
        self.0.tries = Some((times, elapsed));
        self
    }

    pub(crate) fn advice(mut self, advice: &'static str) -> Self {
        self.0.advice = Some(Cow::Borrowed(advice));
        self
    }

    /// The same fault, met before anything that matters was sent.
    pub(crate) fn unsent(mut self) -> Self {
        let what = self.0.what.trim_start_matches("the connection broke: ");
        self.0.what = format!("no connection: {what}");
        self.0.kind = ErrorKind::Unreachable;
        self.advice("check that the server runs and that address and port are right")
    }

    /// The same, of a question: it had no effect that could be unknown.
    #[doc(hidden)]
    pub fn of_a_question(self) -> Self {
        if self.0.advice.as_deref() == Some(EFFECT_UNKNOWN) {
            return self.advice("check that the server is neither stopped nor overloaded");
        }
        self
    }

    /// The last of several attempts at one thing: an earlier one may have done it.
    pub(crate) fn of_a_lost_answer(e: Self) -> Self {
        if matches!(e.kind(), ErrorKind::Unknown | ErrorKind::WrongType) {
            return e;
        }
        Self(Box::new(Fault {
            kind: ErrorKind::Unknown,
            what: format!("an answer was lost, and then: {}; {EFFECT_UNKNOWN}", e.0.what),
            ..*e.0
        }))
    }

    pub(crate) fn because(mut self, e: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(e));
        self
    }

    /// The same, with its options as a face spells them.
    #[doc(hidden)]
    pub fn spelled(mut self, spell: impl Fn(&str) -> String) -> Self {
        if self.is_invalid() {
            self.0.what = respelled(&self.0.what, &spell);
        }
        self.0.advice = self.0.advice.map(|advice| respelled(&advice, &spell).into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// First word of the server's error (`READONLY`, `OOM`, …), if the server answered with one.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The command was sent and its effect is not known.
    pub fn is_unknown(&self) -> bool {
        self.0.kind == ErrorKind::Unknown
    }

    /// An argument was out of bounds; nothing was sent.
    pub fn is_invalid(&self) -> bool {
        self.0.kind == ErrorKind::Invalid
    }
}

impl Fault {
    fn text(&self) -> String {
        let mut text = self.what.clone();
        if let Some(key) = &self.key {
            text += &format!(" (key {key})");
        }
        if let Some(server) = &self.server {
            text += &format!(" on {server}");
        }
        if let Some((times, elapsed)) = self.tries {
            let plural = if times == 1 { "" } else { "s" };
            text += &format!(", tried {times} time{plural} in {} ms", elapsed.as_millis());
        }
        if let Some(advice) = &self.advice {
            text += &format!("; {advice}");
        }
        text
    }
}

/// Options that messages name.
const OPTIONS: [&str; 10] = [
    "at_least",
    "entry_prefix",
    "lock_ttl",
    "max_duration",
    "max_hold",
    "max_latency",
    "max_removals",
    "max_share",
    "max_tag_age",
    "trust_mapping",
];

/// A text with its options spelled anew.
fn respelled(text: &str, spell: impl Fn(&str) -> String) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split_inclusive(|c: char| !is_part(c));
    let anew = |word: &str| {
        let name = word.trim_end_matches(|c: char| !is_part(c));
        let spelled = if OPTIONS.contains(&name) { spell(name) } else { name.to_owned() };
        spelled + &word[name.len()..]
    };
    words.map(anew).collect()
}

/// Text from elsewhere, of which nothing steers a terminal.
#[doc(hidden)]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A key as people can read it: control characters and bytes outside UTF-8 are escaped, long ones cut.
pub fn printable(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let mut text = String::from("\"");
    for chunk in shown.utf8_chunks() {
        chunk.valid().chars().for_each(|c| match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        });
        chunk.invalid().iter().for_each(|b| text += &format!("\\x{b:02x}"));
    }
    text.push('"');
    if bytes.len() > SHOWN {
        text += &format!("… ({} bytes)", bytes.len());
    }
    text
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_where_how_often_and_what_to_do() {
        let e = Error::new(ErrorKind::Unreachable, "no connection")
            .key(b"lock:a\nb")
            .server("redis://h:1")
            .tried(3, Duration::from_millis(20))
            .advice("start the server");
        assert_eq!(
            e.to_string(),
            "no connection (key \"lock:a\\nb\") on redis://h:1, tried 3 times in 20 ms; start the server"
        );
    }

    #[test]
    fn options_are_spelled_as_a_face_does() {
        let e =
            Error::invalid("max_hold must be at least 3 ms").key(b"a_b").advice("give no at_least");
        let told = e.spelled(|name| format!("--{}", name.replace('_', "-"))).to_string();
        assert_eq!(told, "--max-hold must be at least 3 ms (key \"a_b\"); give no --at-least");
        let file = Error::bad_argument("/etc/my_ca.pem: no such file").spelled(|_| "?".to_owned());
        assert_eq!(file.to_string(), "/etc/my_ca.pem: no such file");
    }

    #[test]
    fn keys_are_printed_without_control_characters() {
        assert_eq!(printable(b"a\0\"\xff"), "\"a\\u{0}\\\"\\xff\"");
        assert!(printable(&[b'x'; 500]).ends_with("… (500 bytes)"));
    }
}
