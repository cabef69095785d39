//! A link to one server: commands out, replies in, every step bounded in time.
//!
//! A link connects when it is first used and again after any fault: once a reply is overdue, what
//! comes next on that connection can no longer be told apart, so the connection is dropped. Nothing
//! is sent twice here; callers that may repeat a command do so through [`Link::persist`].
//!
//! After `fork()` the child drops the inherited connection without a word to the server and makes
//! its own.

use crate::clock::Moment;
use crate::config::{Address, Config};
use crate::error::{Error, ErrorKind, Result};
use redis::{Cmd, TlsCertificates, Value};
use std::sync::Arc;
use std::time::Duration;

/// Carries commands to one server and brings their replies back in the same order.
///
/// The crate's own transport is a socket; the PHP face has a second one, through a PHP client.
#[doc(hidden)]
pub trait Transport: Send {
    /// Sends, without waiting for replies.
    fn send(&mut self, commands: &[Cmd], deadline: Moment) -> Result<()>;
    /// The next reply. An error of the server is a reply: [`Value::ServerError`].
    fn receive(&mut self, deadline: Moment) -> Result<Value>;
}

/// Makes a transport; called at first use and after each fault.
#[doc(hidden)]
pub type Dial = Arc<dyn Fn(&Config, Moment) -> Result<Box<dyn Transport>> + Send + Sync>;

/// A link to one server. Not a pool: one command sequence at a time.
pub struct Link {
    config: Config,
    label: String,
    dial: Dial,
    transport: Option<Box<dyn Transport>>,
    pid: u32,
}

impl Link {
    /// A link by socket. Connects at first use.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) when the configuration is out of bounds.
    pub fn new(config: Config) -> Result<Self> {
        Self::over(config, Arc::new(Socket::dial))
    }

    /// A link over another transport.
    ///
    /// # Errors
    /// As [`Link::new`].
    #[doc(hidden)]
    pub fn over(config: Config, dial: Dial) -> Result<Self> {
        config.check()?;
        let label = config.label();
        Ok(Self { config, label, dial, transport: None, pid: 0 })
    }

    /// Where this link leads.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// When a call that starts now must have ended.
    pub(crate) fn deadline(&self) -> Moment {
        Moment::now() + self.config.timeout
    }

    /// Connects, if that is not done.
    pub(crate) fn connect(&mut self, deadline: Moment) -> Result<()> {
        self.transport(deadline).map(|_| ())
    }

    fn transport(&mut self, deadline: Moment) -> Result<&mut dyn Transport> {
        if self.pid != std::process::id() {
            self.transport = None;
            self.pid = std::process::id();
        }
        if self.transport.is_none() {
            let made = (self.dial)(&self.config, deadline).map_err(|e| e.server(&self.label))?;
            self.transport = Some(made);
        }
        match &mut self.transport {
            Some(transport) => Ok(transport.as_mut()),
            None => Err(Error::new(ErrorKind::Unreachable, "no connection")),
        }
    }

    /// Sends without waiting; the replies are then due, in order.
    pub(crate) fn send(&mut self, commands: &[Cmd], deadline: Moment) -> Result<()> {
        let sent = self.transport(deadline)?.send(commands, deadline);
        self.keep_if(sent)
    }

    /// The next reply.
    pub(crate) fn receive(&mut self, deadline: Moment) -> Result<Value> {
        let received = self.transport(deadline)?.receive(deadline);
        self.keep_if(received)
    }

    /// One command, one reply; an error of the server is an error.
    pub(crate) fn call(&mut self, command: &Cmd, deadline: Moment) -> Result<Value> {
        self.send(std::slice::from_ref(command), deadline)?;
        let reply = self.receive(deadline)?;
        checked(reply).map_err(|e| e.server(&self.label))
    }

    /// Several commands in one round trip; errors of the server stay in their places.
    pub(crate) fn calls(&mut self, commands: &[Cmd], deadline: Moment) -> Result<Vec<Value>> {
        self.send(commands, deadline)?;
        commands.iter().map(|_| self.receive(deadline)).collect()
    }

    /// The run id of the server, new at each of its starts; `None` when we may not ask. One round trip.
    ///
    /// # Errors
    /// What keeps the server from answering.
    pub fn server_id(&mut self) -> Result<Option<String>> {
        let mut ask = redis::cmd("INFO");
        ask.arg("server");
        match self.persist(|link, deadline| link.call(&ask, deadline)) {
            Ok(Value::BulkString(info)) => Ok(run_id(&String::from_utf8_lossy(&info))),
            Ok(_) => Ok(None),
            Err(e) if e.code() == Some("NOPERM") => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Does something with less patience than usual.
    pub(crate) fn hurry<T>(&mut self, patience: Duration, act: impl FnOnce(&mut Self) -> T) -> T {
        let usual = self.config.timeout;
        self.config.timeout = usual.min(patience);
        let done = act(self);
        self.config.timeout = usual;
        done
    }

    /// Drops the connection; the next use makes a new one.
    pub(crate) fn drop_connection(&mut self) {
        self.transport = None;
    }

    /// The bare round trip: the shortest of a few.
    pub(crate) fn round_trip(&mut self) -> Result<Duration> {
        let mut ping = || {
            let begun = Moment::now();
            self.call(&redis::cmd("PING"), self.deadline()).map(|_| Moment::now().since(begun))
        };
        (1..5).try_fold(ping()?, |least, _| Ok(least.min(ping()?)))
    }

    fn keep_if<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|e| {
            self.transport = None;
            e.server(&self.label)
        })
    }

    /// Does what may be done twice until it is done, at most [`ATTEMPTS`] times and within the
    /// link's timeout. Each attempt has a share of that time, so that one lost reply does not eat
    /// it all.
    pub(crate) fn persist<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self, Moment) -> Result<T>,
    ) -> Result<T> {
        let begun = Moment::now();
        let end = begun + self.config.timeout;
        let mut times = 0;
        loop {
            times += 1;
            let share = Moment::now() + self.config.timeout / ATTEMPTS;
            match attempt(self, share.min(end)) {
                Err(e) if passes(&e) && times < ATTEMPTS && !end.passed() => {
                    std::thread::sleep(pause(times).min(end.left()));
                }
                Err(e) if times > 1 || e.is_unknown() => {
                    return Err(e.tried(times, Moment::now().since(begun)));
                }
                other => return other,
            }
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("server", &self.label).finish_non_exhaustive()
    }
}

/// The run id in the text of `INFO server`.
pub fn run_id(info: &str) -> Option<String> {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim_end().to_owned())
}

/// How often an idempotent call is tried.
const ATTEMPTS: u32 = 3;

/// Time between two attempts: 20 ms, 60 ms.
fn pause(times: u32) -> Duration {
    Duration::from_millis(20 * 3u64.pow(times - 1))
}

/// Whether another attempt may fare better.
pub(crate) fn passes(e: &Error) -> bool {
    match e.kind() {
        ErrorKind::Unknown | ErrorKind::Unreachable => true,
        ErrorKind::Refused => {
            matches!(e.code(), Some("LOADING" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY"))
        }
        _ => false,
    }
}

/// Turns an error reply into an error, by its first word only: texts differ between servers.
pub(crate) fn checked(reply: Value) -> Result<Value> {
    let Value::ServerError(e) = &reply else { return Ok(reply) };
    let code = e.code();
    let kind = match code {
        "WRONGTYPE" => ErrorKind::WrongType,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => ErrorKind::Denied,
        _ => ErrorKind::Refused,
    };
    let text = format!("the server answered {code} {}", e.details().unwrap_or_default());
    let error = Error::new(kind, text.trim_end()).code_of(code);
    Err(match code {
        "WRONGTYPE" => error.advice("another program uses this key; choose another name or prefix"),
        "NOAUTH" => error.advice("give a password"),
        "WRONGPASS" => error.advice("check user and password"),
        "NOPERM" => error.advice("grant the user this command and key"),
        "READONLY" => error.advice("this is a replica; name the primary"),
        "OOM" => error.advice("raise maxmemory or choose an eviction policy"),
        _ => error,
    })
}

/// A socket of the redis crate: TCP, TLS or unix.
struct Socket {
    connection: redis::Connection,
    /// Timeouts of reads and writes as the kernel has them.
    reading: Duration,
    writing: Duration,
}

impl Socket {
    fn dial(config: &Config, deadline: Moment) -> Result<Box<dyn Transport>> {
        let info = config.connection_info()?;
        let patience = config.connect_timeout.min(deadline.left()).max(SHORTEST);
        let client = match &config.address {
            Address::Tcp { tls: true, .. } => {
                // An error means that the process has chosen a provider already, which will do.
                let _ = rustls::crypto::ring::default_provider().install_default();
                redis::Client::build_with_tls(info, certificates(config))
            }
            _ => redis::Client::open(info),
        };
        let client = client.map_err(|e| Error::invalid("unusable TLS settings").because(e))?;
        let begun = Moment::now();
        let secure = matches!(&config.address, Address::Tcp { tls: true, .. });
        let connected = client.get_connection_with_timeout(patience);
        match connected.and_then(|c| if secure { shake_hands(c, patience) } else { Ok(c) }) {
            Ok(connection) => {
                Ok(Box::new(Self { connection, reading: Duration::ZERO, writing: Duration::ZERO }))
            }
            Err(e) => Err(not_connected(e, Moment::now().since(begun))),
        }
    }
}

/// Shortest patience handed to the kernel, for which a timeout of zero means "for ever".
const SHORTEST: Duration = Duration::from_millis(1);

/// What a timeout may be off before the kernel is told again: replies come by the hundred thousand.
const SLACK: Duration = Duration::from_millis(50);

/// The new timeout for a deadline, if the one in force is too far off.
fn retime(in_force: Duration, deadline: Moment) -> Option<Duration> {
    let left = deadline.left().max(SHORTEST);
    let off = in_force.abs_diff(left);
    (off > SLACK || off > left / 10).then_some(left)
}

impl Transport for Socket {
    fn send(&mut self, commands: &[Cmd], deadline: Moment) -> Result<()> {
        if let Some(patience) = retime(self.writing, deadline) {
            self.connection.set_write_timeout(Some(patience)).map_err(no_answer)?;
            self.writing = patience;
        }
        let mut bytes = Vec::new();
        commands.iter().for_each(|c| c.write_packed_command(&mut bytes));
        self.connection.send_packed_command(&bytes).map_err(no_answer)
    }

    fn receive(&mut self, deadline: Moment) -> Result<Value> {
        if let Some(patience) = retime(self.reading, deadline) {
            self.connection.set_read_timeout(Some(patience)).map_err(no_answer)?;
            self.reading = patience;
        }
        self.connection.recv_response().map_err(no_answer)
    }
}

/// TLS shakes hands at the first use; a certificate that does not fit is no unknown outcome of it.
fn shake_hands(
    mut connection: redis::Connection,
    patience: Duration,
) -> redis::RedisResult<redis::Connection> {
    connection.set_read_timeout(Some(patience))?;
    connection.set_write_timeout(Some(patience))?;
    connection.send_packed_command(&redis::cmd("PING").get_packed_command())?;
    connection.recv_response()?;
    Ok(connection)
}

fn certificates(config: &Config) -> TlsCertificates {
    TlsCertificates {
        client_tls: config
            .tls
            .identity
            .clone()
            .map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key }),
        root_cert: config.tls.ca.clone(),
    }
}

fn no_answer(e: redis::RedisError) -> Error {
    let what = if e.is_timeout() { "no answer in time" } else { "the connection broke" };
    Error::new(ErrorKind::Unknown, format!("{what}: {e}"))
        .because(e)
        .advice("whether the command took effect is not known")
}

fn not_connected(e: redis::RedisError, elapsed: Duration) -> Error {
    let denied = e.kind() == redis::ErrorKind::AuthenticationFailed
        || matches!(e.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
    if denied {
        return Error::new(ErrorKind::Denied, "the server refused the user or password")
            .advice("check user and password");
    }
    if let redis::ErrorKind::Server(_) = e.kind() {
        let error = Error::new(ErrorKind::Refused, format!("the server refused to serve us: {e}"));
        return error.code_of(e.code().unwrap_or("ERR")).advice("check the database number");
    }
    Error::new(ErrorKind::Unreachable, format!("no connection: {e}"))
        .tried(1, elapsed)
        .because(e)
        .advice("check that the server runs and that address and port are right")
}
