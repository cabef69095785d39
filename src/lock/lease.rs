//! A lease: one grant of a lock, bounded in time. Pure: no server, no clock of its own.

use crate::clock::Moment;
use crate::error::{Error, Result, plain};
use std::sync::LazyLock;
use std::time::Duration;

/// Shortest and longest TTL. Redis deletes a key whose TTL is set to 0, and counts milliseconds in
/// numbers that Lua keeps exact only up to 2^53.
const TTL_BOUNDS_MS: std::ops::RangeInclusive<u64> = 1..=1 << 53;

/// A TTL in milliseconds that the server takes as it is meant.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) below 1 ms and above 2^53 ms.
pub(crate) fn ttl_ms(ttl: Duration) -> Result<u64> {
    u64::try_from(ttl.as_millis())
        .ok()
        .filter(|ms| TTL_BOUNDS_MS.contains(ms))
        .ok_or_else(|| Error::invalid("the TTL must be at least 1 ms and at most 2^53 ms"))
}

/// An owner token, which proves ownership: 128 bits from the kernel's CSPRNG, in hexadecimal; new for
/// each acquisition. And a name for what others see of the attempt, 64 bits that tell nothing of it.
pub(crate) fn tokens() -> Result<(String, String)> {
    let mut bytes = [0u8; 24];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::invalid(format!("the system gives no random bytes for an owner token: {e}"))
    })?;
    let (token, name) = bytes.split_at(16);
    Ok((hex(token), hex(name)))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// The value of a lock that is handed over and not yet claimed: fence 0, and nobody's.
pub(crate) fn transit(token: &str) -> Vec<u8> {
    format!("{token}:0||").into_bytes()
}

/// One grant of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The value of the lock key: owner token, fence, who. Equality of the whole proves ownership.
    pub(crate) value: Vec<u8>,
    /// Grows with each grant.
    pub(crate) fence: u64,
    /// When the request for it was sent.
    pub(crate) begun: Moment,
}

impl Lease {
    /// From the value that the server made, and the moment *before* the request was sent.
    pub(crate) fn new(value: Vec<u8>, sent: Moment) -> Option<Self> {
        let fence = Holder::read(&value, None).fence.filter(|fence| *fence > 0)?;
        Some(Self { value, fence, begun: sent })
    }
}

impl Lease {
    /// The value of the lock key, which proves ownership: a secret.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// When the request for it was sent.
    pub fn begun(&self) -> Moment {
        self.begun
    }

    /// The owner token.
    pub(crate) fn token(&self) -> Option<String> {
        let token = self.value.split(|b| *b == b':').next().unwrap_or_default();
        String::from_utf8(token.to_vec()).ok()
    }

    /// Names the next transit: part of our secret, which ends with our lease, and the fence.
    pub(crate) fn transit_token(&self) -> String {
        format!("{}.{}", self.token().unwrap_or_default(), self.fence)
    }
}

/// What two clocks may drift apart at least.
pub(crate) const DRIFT_LEAST: Duration = Duration::from_millis(2);

/// The holder's own deadline: the start of the request plus the TTL, less what two clocks may drift
/// apart in that time (1 % and 2 ms, the allowance of Redlock).
pub(crate) fn safe_until(sent: Moment, ttl: Duration) -> Moment {
    sent + ttl.saturating_sub(ttl / 100 + DRIFT_LEAST)
}

/// Who holds a lock, as far as its value tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Fencing token of the grant; `None` when the value was not written by tagsweep; 0 while the lock
    /// is being handed over to a waiter.
    pub fence: Option<u64>,
    /// Host name.
    pub host: Option<String>,
    /// Process.
    pub pid: Option<u32>,
    /// Program and version.
    pub program: Option<String>,
    /// Time that the key has left; `None` when it never expires.
    pub ttl: Option<Duration>,
}

impl Holder {
    /// Reads the value of a lock key: `token:fence|host|pid|program`. A value of any other form (an
    /// old PHP instance, another library) is a holder of whom nothing is known.
    pub(crate) fn read(value: &[u8], ttl: Option<Duration>) -> Self {
        let parse = || {
            let text = std::str::from_utf8(value).ok()?;
            let (_, rest) = text.split_once(':')?;
            let (fence, who) = rest.split_once('|')?;
            let mut holder = Self { fence: Some(fence.parse().ok()?), ttl, ..Self::default() };
            holder.take_who(who);
            Some(holder)
        };
        parse().unwrap_or(Self { ttl, ..Self::default() })
    }

    /// Reads `host|pid|program`. Anybody may have written it: nothing of it steers a terminal.
    pub(crate) fn take_who(&mut self, who: &str) {
        let mut fields = who.split('|');
        let mut field = || fields.next().filter(|f| !f.is_empty()).map(plain);
        self.host = field();
        self.pid = field().and_then(|pid: String| pid.parse().ok());
        self.program = field();
    }

    /// By whom the lock is held, in words: `held by web-1 pid 42 (tagsweep/0.1.0), fence 7`.
    pub fn who(&self) -> String {
        let fence = match self.fence {
            Some(0) => return "being handed over to a waiter".to_owned(),
            None => return "held by an unknown program (its value is not tagsweep's)".to_owned(),
            Some(fence) => fence,
        };
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "?".to_owned());
        let pid = self.pid.map_or("?".to_owned(), |pid| pid.to_string());
        let (host, program) = (part(&self.host), part(&self.program));
        format!("held by {host} pid {pid} ({program}), fence {fence}")
    }

    /// When the grant was made by the server's clock, in seconds since 1970: a fence is a time.
    pub fn since(&self) -> Option<Duration> {
        self.fence.filter(|fence| *fence > 0).map(Duration::from_micros)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.who())?;
        match self.ttl {
            _ if self.fence == Some(0) => Ok(()),
            Some(ttl) => write!(f, ", expires in {:.1} s unless extended", ttl.as_secs_f64()),
            None => f.write_str(", never expires"),
        }
    }
}

/// Who we are, for the value of the lock key. No field holds a separator.
pub(crate) fn whoami() -> String {
    static HOST: LazyLock<String> = LazyLock::new(|| {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy();
        host.chars().filter(|c| !c.is_control() && *c != '|').take(64).collect()
    });
    format!("{}|{}|tagsweep/{}", *HOST, std::process::id(), env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttl_zero_and_overflow_are_refused() {
        assert!(ttl_ms(Duration::ZERO).is_err());
        assert!(ttl_ms(Duration::from_micros(999)).is_err());
        assert!(ttl_ms(Duration::MAX).is_err());
        assert_eq!(ttl_ms(Duration::from_millis(1)).unwrap(), 1);
    }

    #[test]
    fn owner_tokens_are_128_bit_and_new_each_time() {
        let ((a, name), (b, _)) = (tokens().unwrap(), tokens().unwrap());
        assert_eq!((a.len(), name.len()), (32, 16));
        assert!(a.bytes().all(|c| c.is_ascii_hexdigit()) && a != b && !a.contains(&name));
    }

    #[test]
    fn a_value_tells_who_holds() {
        let ours = format!("0f:17|{}", whoami());
        let holder = Holder::read(ours.as_bytes(), Some(Duration::from_secs(2)));
        assert_eq!((holder.fence, holder.pid), (Some(17), Some(std::process::id())));
        assert!(holder.to_string().ends_with(", fence 17, expires in 2.0 s unless extended"));
        let evil = Holder::read(b"0f:17|\x1b[2Jweb|1|p\n", None);
        assert_eq!((evil.host.as_deref(), evil.program.as_deref()), (Some("?[2Jweb"), Some("p?")));
        let foreign = Holder::read(b"5f3c:uniqid", None);
        assert_eq!(foreign, Holder::default());
        assert_eq!(
            foreign.to_string(),
            "held by an unknown program (its value is not tagsweep's), never expires"
        );
        let moving = Holder::read(&transit("0f"), None);
        assert_eq!((moving.fence, moving.since()), (Some(0), None));
        assert!(Lease::new(transit("0f"), Moment::now()).is_none());
    }

    #[test]
    fn safe_until_lies_before_the_end_of_the_ttl() {
        let sent = Moment::now();
        let until = safe_until(sent, Duration::from_secs(10));
        assert_eq!(until.since(sent), Duration::from_millis(10_000 - 100 - 2));
        assert_eq!(safe_until(sent, Duration::from_millis(1)), sent);
    }
}
