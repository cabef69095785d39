//! Where the server is and how to speak to it. Pure: reads no environment, opens nothing.

use crate::error::{Error, Result};
use redis::{ConnectionAddr, IntoConnectionInfo};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A password. Neither `Debug` nor any error shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Takes a password in.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How the server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP, with TLS (rustls, system roots or [`Tls::ca`]) if asked for.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// Whether to speak TLS.
        tls: bool,
    },
    /// Unix socket.
    Unix(PathBuf),
}

/// Certificates in PEM.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Certificate authority to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// Client certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    fn is_given(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

/// One server, the credentials for it, the prefix of all keys, and the patience with it.
///
/// ```
/// use tagsweep::Config;
/// let config = Config::from_url("redis://:secret@cache.internal:6380/2")?.prefix("app:");
/// assert_eq!(config.label(), "redis://cache.internal:6380/2");
/// # Ok::<(), tagsweep::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Where the server is.
    pub address: Address,
    /// User name of the server's ACL.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Database number.
    pub db: i64,
    /// Stands before every key, as phpredis' `OPT_PREFIX` does.
    pub prefix: Vec<u8>,
    /// Longest time to wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time that one call may take, connecting and repeating included.
    pub timeout: Duration,
    /// How long the answer to one command is waited for awake, before the thread sleeps: where it comes sooner, that
    /// spares falling asleep and being woken, which takes a virtual machine longer than a server next door. Not done
    /// on a connection whose answers take longer. Default: 0.
    pub busy_poll: Duration,
    /// Certificates.
    pub tls: Tls,
}

/// Longest time in which an answer is waited for awake.
const BUSY_POLL_MAX: Duration = Duration::from_secs(1);

/// What to expect of a URL, for error messages.
const URL_FORMS: &str = "expected redis://[user:password@]host[:port][/db], rediss://… for TLS, \
                         or unix:///path/to/socket[?db=N&user=U&pass=P]; of a user or password # / ? and @ are \
                         written %23 %2F %3F and %40";

impl Config {
    /// A server at an address, without credentials, database 0.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            user: None,
            password: None,
            db: 0,
            prefix: Vec::new(),
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            busy_poll: Duration::ZERO,
            tls: Tls::default(),
        }
    }

    /// Parses `redis://`, `rediss://`, `valkey://`, `valkeys://`, `unix://` or the path of a socket.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid); the text does not repeat the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        if url.starts_with('/') {
            return Ok(Self::new(Address::Unix(url.into())));
        }
        let wrong = |why: &str| Error::invalid(format!("not a server URL: {why}; {URL_FORMS}"));
        if url.contains("#insecure") {
            return Err(wrong("certificates are always checked (#insecure is not supported)"));
        }
        if url.contains('#') {
            return Err(wrong("it has a fragment"));
        }
        // The parser knows TLS only with its own TLS built in; ours is in `socket.rs`.
        let (plain, tls) = match url.split_once("://") {
            Some(("rediss" | "valkeys", rest)) => (format!("redis://{rest}"), true),
            _ => (url.to_owned(), false),
        };
        // What the parser says after the first dash repeats parts of the URL.
        let refused = |e: redis::RedisError| wrong(e.to_string().split(" - ").next().unwrap_or(""));
        let info = plain.into_connection_info().map_err(refused)?;
        // The parser passes over what it does not know, and the wrong database would be swept.
        let known: &[&str] = match info.addr() {
            ConnectionAddr::Unix(_) => &["db", "user", "pass", "protocol"],
            _ => &["protocol"],
        };
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let mut names = query.split('&').filter_map(|pair| pair.split('=').next());
        if names.any(|name| !name.is_empty() && !known.contains(&name)) {
            return Err(wrong("it has a parameter that is not known"));
        }
        let mut config = Self::new(match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                Address::Tcp { host: host.clone(), port: *port, tls }
            }
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(wrong("unknown kind of address")),
        });
        let settings = info.redis_settings();
        config.user = settings.username().map(str::to_owned);
        config.password = settings.password().map(Secret::new);
        config.db = settings.db();
        config.check()?;
        Ok(config)
    }

    /// The same server with a prefix before every key.
    pub fn prefix(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The same server with other patience; see [`Config::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether it can be tried at all.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) with the first thing that is out of bounds.
    pub fn check(&self) -> Result<()> {
        if self.db < 0 {
            return Err(Error::invalid("the database number must be 0 or greater"));
        }
        if self.timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(Error::invalid("timeouts must be greater than 0"));
        }
        if self.busy_poll > BUSY_POLL_MAX {
            return Err(Error::invalid("busy_poll must be at most 1 s"));
        }
        match &self.address {
            Address::Tcp { host, .. } if host.is_empty() => Err(Error::invalid("no host given")),
            Address::Tcp { tls: true, .. } => Ok(()),
            _ if self.tls.is_given() => Err(Error::invalid(
                "a CA, a certificate or its key is given, but this server is spoken to without TLS: nothing would \
                 be encrypted",
            )
            .advice("rediss:// speaks TLS")),
            _ => Ok(()),
        }
    }

    /// The server in words, for messages: scheme, host, port and database; never a secret.
    pub fn label(&self) -> String {
        match &self.address {
            Address::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                format!("{scheme}://{host}:{port}/{}", self.db)
            }
            Address::Unix(path) => format!("unix://{}?db={}", path.display(), self.db),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_show_neither_in_debug_nor_in_errors() {
        let config = Config::from_url("redis://app:hunter2@h/1").unwrap();
        assert_eq!(config.user.as_deref(), Some("app"));
        assert!(!format!("{config:?}{}", config.label()).contains("hunter2"));
        for url in [
            "redis://:hunter2@h:port",
            "http://:hunter2@h",
            "redis://:hunter2@h/minus",
            "redis://h?protocol=3:hunter2@h",
            "",
        ] {
            let e = Config::from_url(url).unwrap_err();
            assert!(e.is_invalid() && !e.to_string().contains("hunter2"), "{e}");
        }
    }

    #[test]
    fn a_path_is_a_unix_socket() {
        let config = Config::from_url("/run/redis.sock").unwrap();
        assert_eq!(config.label(), "unix:///run/redis.sock?db=0");
        let config = Config::from_url("unix:///run/redis.sock?db=3&pass=x").unwrap();
        assert_eq!((config.db, config.password.is_some()), (3, true));
    }

    #[test]
    fn a_label_can_be_given_as_a_url() {
        for url in ["redis://h:6380/3", "rediss://[::1]:6379/0", "unix:///run/redis.sock?db=3"] {
            assert_eq!(Config::from_url(url).unwrap().label(), url);
        }
    }

    #[test]
    fn parameters_that_are_not_known_are_refused() {
        for url in [
            "redis://h?db=3",
            "rediss://h/?database=3",
            "unix:///s?database=3",
            "unix:///s?user=u&password=hunter2",
            "redis://:hunter2?@h",
            "redis://default:hunter2#abc@h",
            "redis://h:6379#hunter2",
        ] {
            let e = Config::from_url(url).unwrap_err();
            assert!(e.is_invalid() && !e.to_string().contains("hunter2"), "{url}: {e}");
        }
        assert!(Config::from_url("redis://h/3?protocol=resp3").is_ok());
    }

    #[test]
    fn what_is_for_tls_is_refused_without_it() {
        for (url, fits) in [("rediss://h", true), ("redis://h", false), ("/run/redis.sock", false)]
        {
            let mut config = Config::from_url(url).unwrap();
            config.tls.ca = Some(b"pem".to_vec());
            assert_eq!(config.check().is_ok(), fits, "{url}");
        }
    }

    #[test]
    fn negative_databases_are_refused() {
        assert!(Config::from_url("redis://h/-1").unwrap_err().is_invalid());
    }
}
