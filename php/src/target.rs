//! Where a PHP application's server is: out of a phpredis object, a DSN or an array.
//!
//! The object's public methods are asked; phpredis is not needed to build, and not to run with a DSN.

use crate::exceptions::{Class, exception, from_core, invalid, type_error};
use crate::frame::complaint;
use crate::options::Given;
use crate::weak::type_name;
use ext_php_rs::exception::{PhpException, PhpResult};
use ext_php_rs::types::{ZendObject, Zval};
use ext_php_rs::zend::{ClassEntry, ExecutorGlobals};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::available_parallelism;
use std::time::Duration;
use tagsweep::Config;
use tagsweep::clock::Moment;
use tagsweep::config::{Address, Secret};
use tagsweep::connect::{Fate, Link};
use tagsweep::lock::SharedLink;
use tagsweep::reply::Info;

/// `Redis::OPT_PREFIX` and `Redis::ATOMIC`, as phpredis numbers them.
const OPT_PREFIX: i64 = 2;
const ATOMIC: i64 = 0;

/// Reads the first argument of a constructor, and what the options say of the connection.
pub(crate) fn config(redis: &Zval, class: &str, options: &Given) -> PhpResult<Config> {
    let timeout = options.seconds("timeout")?;
    let mut config = where_to(redis, class, timeout)?;
    config.prefix = options.string("prefix")?.unwrap_or(config.prefix);
    config.timeout = timeout.unwrap_or(config.timeout);
    config.check().map_err(from_core)?;
    if let Some(busy_poll) = options.seconds("busyPoll")? {
        config.busy_poll = busy_poll;
        // Nothing else can be wrong with it now.
        config.check().map_err(|_| invalid("busyPoll must be at most 1 s"))?;
    }
    Ok(config)
}

/// How long an answer is waited for awake: PHP's one thread has nothing else to do meanwhile. Where there is one
/// processor, the server needs that.
fn busy_poll() -> Duration {
    static SPAN: OnceLock<Duration> = OnceLock::new();
    *SPAN.get_or_init(|| match available_parallelism() {
        Ok(processors) if processors.get() > 1 => Duration::from_micros(50),
        _ => Duration::ZERO,
    })
}

fn where_to(redis: &Zval, class: &str, timeout: Option<Duration>) -> PhpResult<Config> {
    let (argument, redis) = (redis, redis.dereference());
    if let Some(dsn) = redis.zend_str() {
        let dsn =
            std::str::from_utf8(dsn.as_bytes()).map_err(|_| invalid("the DSN is not UTF-8"))?;
        let config = Config::from_url(dsn).map_err(from_core)?;
        return Ok(Config { busy_poll: busy_poll(), ..config });
    }
    if let Some(array) = redis.array() {
        return from_array(&Given::new(array)?);
    }
    match redis.object() {
        Some(object) if is_a(object, "Redis") => from_object(object, timeout),
        _ => Err(type_error(complaint(argument).unwrap_or_else(|| {
            let given = type_name(redis);
            format!(
                "{class}: Argument #1 ($redis) must be of type Redis|string|array, {given} given"
            )
        }))),
    }
}

fn is_a(object: &ZendObject, class: &str) -> bool {
    ClassEntry::try_find(class).is_some_and(|class| object.instance_of(class))
}

const KEYS: &[&str] = &[
    "url",
    "host",
    "port",
    "path",
    "user",
    "password",
    "database",
    "prefix",
    "timeout",
    "connect_timeout",
    "busy_poll",
    "tls",
    "tls_ca",
    "tls_cert",
    "tls_key",
];

fn from_array(given: &Given) -> PhpResult<Config> {
    given.only(KEYS)?;
    let text = |key| {
        let bytes = given.string(key)?;
        let utf8 = |_| invalid(format!("option \"{key}\" must be UTF-8"));
        bytes.map(|bytes| String::from_utf8(bytes).map_err(utf8)).transpose()
    };
    // What would be passed over is refused: `tls` beside a URL that says no such thing would send a password
    // in the open.
    for (one, others) in
        [("url", &["path", "host", "port", "tls"][..]), ("path", &["host", "port", "tls"])]
    {
        let other = others.iter().find(|other| given.has(one) && given.has(other));
        if let Some(other) = other {
            return Err(invalid(format!(
                "\"{other}\" cannot be given beside \"{one}\", which says it"
            )));
        }
    }
    if given.has("tls_cert") != given.has("tls_key") {
        return Err(invalid("\"tls_cert\" and \"tls_key\" belong together"));
    }
    let mut config = match (text("url")?, text("path")?) {
        (Some(url), _) => Config::from_url(&url).map_err(from_core)?,
        (None, Some(path)) => Config::new(Address::Unix(path.into())),
        (None, None) => {
            let port = given.int("port")?.unwrap_or(6379);
            Config::new(Address::Tcp {
                host: text("host")?.unwrap_or_else(|| "127.0.0.1".to_owned()),
                port: u16::try_from(port).map_err(|_| invalid("port must be from 0 to 65535"))?,
                tls: given.bool("tls")?.unwrap_or(false),
            })
        }
    };
    config.user = text("user")?.or(config.user);
    config.password = text("password")?.map(Secret::new).or(config.password);
    config.db = given.int("database")?.unwrap_or(config.db);
    config.prefix = given.string("prefix")?.unwrap_or_default();
    config.timeout = given.seconds("timeout")?.unwrap_or(config.timeout);
    config.connect_timeout = given.seconds("connect_timeout")?.unwrap_or(config.connect_timeout);
    config.busy_poll = given.seconds("busy_poll")?.unwrap_or_else(busy_poll);
    let pem = |name: &'static str| text(name)?.map(|path| pem(name, &path)).transpose();
    config.tls.ca = pem("tls_ca")?;
    if let (Some(cert), Some(key)) = (pem("tls_cert")?, pem("tls_key")?) {
        config.tls.identity = Some((cert, key));
    }
    config.check().map_err(from_core)?;
    Ok(config)
}

/// What may be a key by mistake is not repeated.
fn pem(name: &str, path: &str) -> PhpResult<Vec<u8>> {
    let told =
        if path.contains('\n') || path.contains("-----") { "no path of a file" } else { path };
    std::fs::read(path).map_err(|e| invalid(format!("{name}: {told}: {e}")))
}

fn from_object(object: &ZendObject, timeout: Option<Duration>) -> PhpResult<Config> {
    let host = call(object, "getHost")?;
    let Some(host) = host.str().filter(|host| !host.is_empty()).map(str::to_owned) else {
        // Never, or its connection broke: it does not tell which.
        let told = "the Redis object is not connected; call connect(), or give a DSN or an array";
        return Err(exception(Class::Connection, told));
    };
    let port = call(object, "getPort")?.long().unwrap_or(0);
    let mut config = Config::new(address(&host, port)?);
    config.db = call(object, "getDbNum")?.long().unwrap_or(0);
    (config.user, config.password) = credentials(&call(object, "getAuth")?)?;
    let prefix =
        object.try_call_method("getOption", vec![&OPT_PREFIX]).map_err(PhpException::from)?;
    config.prefix = prefix.zend_str().map(|p| p.as_bytes().to_vec()).unwrap_or_default();
    let patience = |method| -> PhpResult<Option<Duration>> {
        let seconds = call(object, method)?.double().filter(|seconds| *seconds > 0.0);
        Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
    };
    config.busy_poll = busy_poll();
    config.connect_timeout = patience("getTimeout")?.unwrap_or(config.connect_timeout);
    config.timeout = patience("getReadTimeout")?.unwrap_or(config.timeout);
    config.check().map_err(from_core)?;
    config.timeout = timeout.unwrap_or(config.timeout).min(config.timeout);
    prove(object, &mut config)?;
    Ok(config)
}

/// A guess that was wrong must be caught: a TLS context and a database selected by a raw command have
/// no getter. So the object is asked for its database, and the server who it is, through the object
/// and natively (compared once for each configuration of a thread). What the server does not tell, for
/// want of a permission, is not held against it.
fn prove(object: &ZendObject, config: &mut Config) -> PhpResult<()> {
    if call(object, "getMode")?.long() != Some(ATOMIC) {
        return Ok(()); // in the middle of MULTI: a question would be queued
    }
    let is_proven = |config: &Config| PROVEN.with_borrow(|proven| proven.contains(config));
    let ours = if is_proven(config) { None } else { asked_by_ourselves(config)? };
    if let Some(db) = ask(object, "CLIENT", "INFO")?.and_then(|info| database(&info)) {
        config.db = db;
    }
    if is_proven(config) {
        return Ok(());
    }
    let info = ask(object, "INFO", "server")?.unwrap_or_default();
    let Some(theirs) = Info(&info).text("run_id") else {
        return Ok(());
    };
    if ours.is_some_and(|ours| ours != theirs) {
        return Err(cannot_copy("it leads to another server"));
    }
    PROVEN.with_borrow_mut(|proven| {
        if proven.len() >= KNOWN {
            proven.clear();
        }
        proven.insert(config.clone())
    });
    Ok(())
}

/// Who the server is, in the time given: phpredis may be set to wait for a minute, or for ever, so it is
/// asked afterwards. An answer holds for a second.
fn asked_by_ourselves(config: &Config) -> PhpResult<Option<String>> {
    let known = ANSWERED.with_borrow(|answered| answered.get(config).cloned());
    if let Some((_, id)) = known.filter(|(at, _)| Moment::now().since(*at) < FRESH) {
        return Ok(id);
    }
    let asked = Link::new(config.clone()).and_then(|mut link| link.server_id());
    let id = asked.map_err(|e| not_answered(&e))?;
    let answer = (Moment::now(), id.clone());
    ANSWERED.with_borrow_mut(|answered| {
        answered.retain(|_, (at, _)| Moment::now().since(*at) < FRESH);
        answered.insert(config.clone(), answer)
    });
    Ok(id)
}

/// An outage, or a connection of which something was not to be seen.
fn not_answered(e: &tagsweep::Error) -> PhpException {
    exception(
        Class::Connection,
        format!(
            "{e}; if the Redis object itself is answered, its connection cannot be copied: give a DSN or an array instead"
        ),
    )
}

fn cannot_copy(why: &str) -> PhpException {
    exception(
        Class::Connection,
        format!(
            "the connection of the Redis object cannot be copied ({why}); give a DSN or an array instead"
        ),
    )
}

/// Configurations that are known at most: there may be one for each tenant of an application.
const KNOWN: usize = 64;

/// For how long a server that answered is not asked again.
const FRESH: Duration = Duration::from_secs(1);

/// A command through the object; nothing when it is refused. What the application finds there as the last error
/// is not of ours.
///
/// # Errors
/// A signal's handler threw, or ended the script: that goes its way. What phpredis throws is a refusal, and so is what
/// an application makes of its warnings.
fn ask(object: &ZendObject, command: &str, what: &str) -> PhpResult<Option<String>> {
    let told = |method: &str| object.try_call_method(method, vec![]).ok();
    let erred = told("getLastError").is_some_and(|error| !error.is_null());
    let answer = object.try_call_method("rawCommand", vec![&command, &what]);
    if let Some(thrown) = ExecutorGlobals::take_exception()
        && !["RedisException", "ErrorException"].iter().any(|refusal| is_a(&thrown, refusal))
    {
        ExecutorGlobals::get_mut().exception = thrown.into_raw();
        return Err(cannot_copy("it was interrupted"));
    }
    let answer = answer.ok().filter(Zval::is_string).and_then(|answer| answer.string());
    if answer.is_none() && !erred {
        told("clearLastError");
    }
    Ok(answer)
}

/// The database in the text of `CLIENT INFO`.
fn database(info: &str) -> Option<i64> {
    info.split(' ').find_map(|field| field.strip_prefix("db="))?.parse().ok()
}

thread_local! {
    /// Configurations that were seen to lead where their object leads.
    static PROVEN: RefCell<HashSet<Config>> = RefCell::default();
    /// When servers answered last, and who they are, if they say so.
    static ANSWERED: RefCell<HashMap<Config, (Moment, Option<String>)>> = RefCell::default();
}

fn call(object: &ZendObject, method: &str) -> PhpResult<Zval> {
    object.try_call_method(method, vec![]).map_err(PhpException::from)
}

/// phpredis keeps the scheme in the host, and has a path there for a unix socket.
fn address(host: &str, port: i64) -> PhpResult<Address> {
    let (scheme, rest) = host.split_once("://").unwrap_or(("tcp", host));
    if scheme == "unix" || rest.starts_with('/') {
        return Ok(Address::Unix(rest.into()));
    }
    let port = u16::try_from(port).map_err(|_| invalid("the Redis object has no usable port"))?;
    let host = rest.to_owned();
    match scheme {
        "tcp" => Ok(Address::Tcp { host, port, tls: false }),
        "tls" | "ssl" => Ok(Address::Tcp { host, port, tls: true }),
        _ => Err(invalid(format!(
            "the Redis object is connected by {scheme}://, which is not supported"
        ))),
    }
}

/// `getAuth()`: nothing, a password, or a user and a password.
fn credentials(auth: &Zval) -> PhpResult<(Option<String>, Option<Secret>)> {
    let text = |value: &Zval| {
        value.dereference().string().ok_or_else(|| cannot_copy("its user or password is not UTF-8"))
    };
    let list: Vec<String> = match auth.array() {
        Some(array) => array.values().map(text).collect::<PhpResult<_>>()?,
        None if auth.is_string() => vec![text(auth)?],
        None => Vec::new(),
    };
    Ok(match list.as_slice() {
        [password] if password.is_empty() => (None, None),
        [password] => (None, Some(Secret::new(password))),
        [user, password, ..] => (Some(user.clone()), Some(Secret::new(password))),
        [] => (None, None),
    })
}

/// Links that are kept while no lock uses them.
const KEPT_MOST: usize = 4;

thread_local! {
    /// Links in use, one for each server: a connection for every lock would cost more than its use.
    static LINKS: RefCell<HashMap<Config, Weak<Mutex<Link>>>> = RefCell::default();
    /// The last ones that were asked for, used last at the end.
    static KEPT: RefCell<VecDeque<SharedLink>> = RefCell::default();
    /// Links to one server are given up together, and know together how near it is, whatever else they differ in.
    static FATES: RefCell<HashMap<Address, Fate>> = RefCell::default();
}

/// The link to a server that this thread's locks share; closed with the last of them, and not before the end
/// of the request if it is one of the last few: applications make a lock for each use.
pub(crate) fn shared_link(config: Config) -> PhpResult<SharedLink> {
    let link = found_or_made(config)?;
    KEPT.with_borrow_mut(|kept| {
        kept.retain(|other| !Arc::ptr_eq(other, &link));
        kept.push_back(Arc::clone(&link));
        if kept.len() > KEPT_MOST {
            kept.pop_front();
        }
    });
    Ok(link)
}

/// At the end of a request: connections that nobody uses are closed.
pub(crate) fn close_unused() {
    KEPT.take();
}

fn found_or_made(config: Config) -> PhpResult<SharedLink> {
    LINKS.with_borrow_mut(|links| {
        links.retain(|_, link| link.strong_count() > 0);
        if let Some(link) = links.get(&config).and_then(Weak::upgrade) {
            return Ok(link);
        }
        let fate =
            FATES.with_borrow_mut(|fates| fates.entry(config.address.clone()).or_default().clone());
        let link = Link::new(config.clone()).map_err(from_core)?.sharing(&fate);
        let link = Arc::new(Mutex::new(link));
        links.insert(config, Arc::downgrade(&link));
        Ok(link)
    })
}
