//! Options arrays: names in camelCase, spans in seconds. An unknown name is an error, not a surprise.

use crate::exceptions::{invalid, type_error};
use crate::weak::{Array, Bytes, Int, Number, type_name};
use ext_php_rs::convert::FromZval;
use ext_php_rs::exception::PhpResult;
use ext_php_rs::types::{ZendHashTable, Zval};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;
use tagsweep::lock::{self, Ttl, WaitMode, Watchdog};
use tagsweep::sweep::{OnAged, Options};

/// An array of named values.
pub(crate) struct Given<'a> {
    values: Vec<(String, &'a Zval)>,
}

impl<'a> Given<'a> {
    /// An argument's array.
    pub fn of(array: &'a Array) -> PhpResult<Self> {
        array.table().map_or(Ok(Self { values: Vec::new() }), Self::new)
    }

    pub fn new(array: &'a ZendHashTable) -> PhpResult<Self> {
        let (mut values, mut all) = (Vec::with_capacity(array.len()), array.iter());
        // Keys as they are: the other iterator panics where one is no UTF-8.
        while let Some((key, value)) = all.next_zval() {
            let Some(name) = key.zend_str() else {
                let at = key.long().unwrap_or_default();
                return Err(invalid(format!("options have names, {at} is none")));
            };
            // Once a foreach by reference was there, values are references.
            let value = value.dereference();
            values.push((String::from_utf8_lossy(name.as_bytes()).into_owned(), value));
        }
        Ok(Self { values })
    }

    /// Complains about a name that is not known.
    pub fn only(&self, known: &[&str]) -> PhpResult<()> {
        match self.values.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => {
                Err(invalid(format!("unknown option \"{name}\"; known are {}", known.join(", "))))
            }
            None => Ok(()),
        }
    }

    /// Whether something other than null has that name.
    pub fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(known, value)| known == name && !value.is_null())
    }

    fn get<T>(
        &self,
        name: &str,
        what: &str,
        read: impl Fn(&Zval) -> Option<T>,
    ) -> PhpResult<Option<T>> {
        let found = self.values.iter().find(|(known, value)| known == name && !value.is_null());
        let Some((_, value)) = found else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            type_error(format!("option \"{name}\" must be {what}, {} given", type_name(value)))
        })
    }

    pub fn string(&self, name: &str) -> PhpResult<Option<Vec<u8>>> {
        self.get(name, "of type string", |value| Bytes::from_zval(value).map(|bytes| bytes.0))
    }

    pub fn int(&self, name: &str) -> PhpResult<Option<i64>> {
        // PHP itself cuts a fraction off, and says so at most in its log.
        let whole = |value: &&Zval| value.double().is_none_or(|number| number.fract() == 0.0);
        let plain = |value: &Zval| Int::from_zval(Some(value).filter(whole)?).map(|int| int.0);
        self.get(name, "of type int", |value| written(value).or_else(|| plain(value)))
    }

    pub fn bool(&self, name: &str) -> PhpResult<Option<bool>> {
        let number = |value: &Zval| value.long().or_else(|| written(value));
        self.get(name, "of type bool", |value| value.bool().or(number(value).map(|n| n != 0)))
    }

    pub fn float(&self, name: &str) -> PhpResult<Option<f64>> {
        let plain = |value: &Zval| Number::from_zval(value).map(|n| n.0);
        self.get(name, "of type int|float", |value| written(value).or_else(|| plain(value)))
    }

    pub fn seconds(&self, name: &str) -> PhpResult<Option<Duration>> {
        self.float(name)?.map(|seconds| span(seconds, name)).transpose()
    }
}

/// A number that is written out. Configurations hold strings, whether or not the file that passes them on is strict.
fn written<T: FromStr>(value: &Zval) -> Option<T> {
    let is_number = |text: &&str| text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    value.str().filter(is_number)?.parse().ok()
}

/// Seconds of PHP as a span.
pub(crate) fn span(seconds: f64, name: &str) -> PhpResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        invalid(format!("{name} must be a number of seconds, 0 or more, not {seconds}"))
    })
}

const LOCK: &[&str] = &[
    "prefix",
    "timeout",
    "busyPoll",
    "wait",
    "waitMode",
    "ttl",
    "renew",
    "maxHold",
    "atLeast",
    "autoRelease",
    "confirm",
];

/// Options of `DistributedLock`, whose TTL is given besides unless it is among them.
pub(crate) fn lock_options(
    given: &Given,
    ttl: f64,
    auto_release: bool,
) -> PhpResult<lock::Options> {
    given.only(LOCK)?;
    let ttl = match given.string("ttl") {
        Ok(Some(word)) if word == b"auto" => Ttl::AUTO,
        _ => Ttl::Fixed(positive(given.float("ttl")?.unwrap_or(ttl))?),
    };
    let wait_mode = match given.string("waitMode")?.as_deref() {
        None | Some(b"line") => WaitMode::Line,
        Some(b"backoff") => WaitMode::Backoff,
        Some(_) => return Err(invalid("waitMode must be \"line\" or \"backoff\"")),
    };
    let confirm = given.int("confirm")?.unwrap_or(0);
    let options = lock::Options {
        ttl,
        wait_mode,
        renew: given.bool("renew")?.unwrap_or(false).then(watchdog),
        max_hold: given.seconds("maxHold")?,
        at_least: given.seconds("atLeast")?.unwrap_or_default(),
        confirm: u32::try_from(confirm).map_err(|_| invalid("confirm must be 0 or greater"))?,
        record: true,
        release_on_drop: given.bool("autoRelease")?.unwrap_or(auto_release),
    };
    options.check().map_err(crate::exceptions::from_core)?;
    Ok(options)
}

/// The watchdog of this process: one thread, started with the first lease that it is to renew.
static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();

fn watchdog() -> Watchdog {
    WATCHDOG.get_or_init(Watchdog::new).clone()
}

/// Ends the watchdog's thread, at the end of the module.
pub(crate) fn dismiss_watchdog() {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.close(Duration::from_secs(1));
    }
}

const SWEEP: &[&str] = &[
    "prefix",
    "timeout",
    "layout",
    "entryPrefix",
    "trustMapping",
    "grace",
    "verify",
    "onAged",
    "maxShare",
    "maxRemovals",
    "maxDuration",
    "maxLatency",
    "effort",
    "memory",
    "strict",
    "durable",
    "remember",
    "resume",
    "lock",
    "lockTtl",
    "wait",
    "dryRun",
];

/// Options of `TagCleanupManager`. With it, aged tags are invalidated: that is what its
/// `$maxTagAge` asks for.
pub(crate) fn sweep(given: &Given, max_tag_age: i64) -> PhpResult<Options> {
    given.only(SWEEP)?;
    let usual = Options::default();
    let age =
        u64::try_from(max_tag_age).map_err(|_| invalid("maxTagAge must be at least 1 second"))?;
    match given.string("layout")?.as_deref() {
        None | Some(b"plain") => {}
        Some(other) => {
            let name = String::from_utf8_lossy(other);
            return Err(invalid(format!("unknown layout \"{name}\"; known is plain")));
        }
    }
    let on_aged = match given.string("onAged")?.as_deref() {
        None | Some(b"invalidate") => OnAged::Invalidate,
        Some(b"keep") => OnAged::Keep,
        Some(_) => return Err(invalid("onAged must be \"keep\" or \"invalidate\"")),
    };
    let count = |name| match given.int(name)? {
        Some(n) => {
            u64::try_from(n).map(Some).map_err(|_| invalid(format!("{name} must be 0 or greater")))
        }
        None => Ok(None),
    };
    let options = Options {
        entry_prefix: given.string("entryPrefix")?,
        trust_mapping: given.bool("trustMapping")?.unwrap_or(usual.trust_mapping),
        grace: given.seconds("grace")?.unwrap_or(usual.grace),
        verify: given.seconds("verify")?.unwrap_or(usual.verify),
        max_tag_age: Some(Duration::from_secs(age)),
        on_aged,
        max_share: given.float("maxShare")?.unwrap_or(usual.max_share),
        max_removals: count("maxRemovals")?,
        max_duration: given.seconds("maxDuration")?,
        lock: given.string("lock")?.unwrap_or(usual.lock),
        lock_ttl: given.seconds("lockTtl")?.unwrap_or(usual.lock_ttl),
        wait: given.seconds("wait")?.unwrap_or(usual.wait),
        dry_run: given.bool("dryRun")?.unwrap_or(usual.dry_run),
        max_latency: given.seconds("maxLatency")?.unwrap_or(usual.max_latency),
        effort: match given.int("effort")? {
            Some(effort) => u8::try_from(effort).map_err(|_| invalid("effort must be 1 to 10"))?,
            None => usual.effort,
        },
        memory: count("memory")?
            .map_or(usual.memory, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        strict: given.bool("strict")?.unwrap_or(usual.strict),
        durable: given.bool("durable")?.unwrap_or(usual.durable),
        remember: given.seconds("remember")?,
        resume: given.bool("resume")?.unwrap_or(usual.resume),
    };
    options.check().map_err(crate::exceptions::from_core)?;
    Ok(options)
}

/// A TTL.
pub(crate) fn positive(seconds: f64) -> PhpResult<Duration> {
    if seconds > 0.0 {
        span(seconds, "ttl")
    } else {
        Err(invalid("ttl must be greater than 0 seconds"))
    }
}
