//! A socket to one server: TCP, TLS or unix, every read and write bounded by a deadline.
//!
//! The redis crate packs commands and parses replies; the socket is ours, because a reply that is
//! awaited in slices (a waiter looks up for signals) must survive the end of a slice, and because a
//! server that dribbles byte by byte must not stretch a deadline.

use crate::clock::Moment;
use crate::config::{Address, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::thread;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt, socket,
    sockopt,
};
use redis::{Cmd, Value};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Carries commands to one server and brings their replies back in the same order.
///
/// The crate's own transport is a socket; the PHP face has a second one, through a PHP client.
#[doc(hidden)]
pub trait Transport: Send {
    /// Sends, without waiting for replies.
    fn send(&mut self, pack: &Pack, deadline: Moment) -> Result<()>;
    /// The next reply. An error of the server is a reply: [`Value::ServerError`].
    fn receive(&mut self, deadline: Moment) -> Result<Value>;
    /// Whether nothing came that is not due, nor the end.
    fn is_quiet(&self) -> bool;
    /// The next reply, if it comes in time; it may be listened for again.
    fn listen(&mut self, until: Moment) -> Result<Option<Value>>;
}

/// Commands, to be sent in one write.
#[derive(Default)]
pub struct Pack {
    bytes: Vec<u8>,
    commands: usize,
    /// What the last command was made in: sweeps send a million small ones.
    scratch: Cmd,
}

impl Pack {
    /// A command that is made here: its name, and what `fill` gives it.
    pub fn write(&mut self, name: &str, fill: impl FnOnce(&mut Cmd) -> &mut Cmd) {
        let mut cmd = std::mem::take(&mut self.scratch);
        cmd.clear();
        cmd.arg(name);
        fill(&mut cmd);
        self.add(&cmd);
        self.scratch = cmd;
    }

    /// A command.
    pub fn add(&mut self, cmd: &Cmd) {
        cmd.write_packed_command(&mut self.bytes);
        self.commands += 1;
    }

    /// How many there are.
    pub fn commands(&self) -> usize {
        self.commands
    }

    /// How many bytes they are.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> FromIterator<&'a Cmd> for Pack {
    fn from_iter<I: IntoIterator<Item = &'a Cmd>>(commands: I) -> Self {
        let mut pack = Self::default();
        commands.into_iter().for_each(|cmd| pack.add(cmd));
        pack
    }
}

/// What carries the bytes.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connected, authenticated socket.
pub(crate) struct Socket {
    stream: Stream,
    parser: redis::Parser,
    /// Timeouts of reads and writes as the kernel has them.
    reading: Duration,
    writing: Duration,
}

impl Socket {
    /// Connects, shakes hands, authenticates and chooses the database: one round trip after TCP and
    /// TLS, none without credentials and with database 0.
    pub fn dial(config: &Config, deadline: Moment) -> Result<Box<dyn Transport>> {
        let begun = Moment::now();
        let patience = (begun + config.connect_timeout).min(deadline);
        let stream = Stream::connect(config, patience)
            .map_err(|e| e.tried(1, Moment::now().since(begun)))?;
        let (reading, writing) = (Duration::ZERO, Duration::ZERO);
        let mut socket = Self { stream, parser: redis::Parser::new(), reading, writing };
        socket.greet(config, patience)?;
        Ok(Box::new(socket))
    }

    fn greet(&mut self, config: &Config, deadline: Moment) -> Result<()> {
        let commands = greeting(config);
        if commands.is_empty() && !matches!(self.stream, Stream::Tls(_)) {
            return Ok(());
        }
        let greeted = self.send(&commands.iter().collect(), deadline).and_then(|()| {
            commands.iter().try_for_each(|_| {
                self.receive(deadline).and_then(|reply| checked(reply).map(drop).map_err(refused))
            })
        });
        // Nothing that matters was sent, so nothing about its outcome is unknown.
        greeted.map_err(|e| if e.is_unknown() { e.unsent() } else { e })
    }

    fn write(&mut self, bytes: &[u8], deadline: Moment) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let patience = patience(deadline)?;
            if let Some(patience) = retime(self.writing, patience) {
                self.stream.tcp_or_unix(
                    |tcp| tcp.set_write_timeout(Some(patience)),
                    |unix| unix.set_write_timeout(Some(patience)),
                )?;
                self.writing = patience;
            }
            match self.stream.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => left = &left[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.stream.flush()
    }
}

impl Transport for Socket {
    fn send(&mut self, pack: &Pack, deadline: Moment) -> Result<()> {
        self.write(&pack.bytes, deadline).map_err(|e| no_answer(&e))
    }

    fn receive(&mut self, deadline: Moment) -> Result<Value> {
        match self.listen(deadline)? {
            Some(reply) => Ok(reply),
            None => Err(no_answer(&io::ErrorKind::TimedOut.into())),
        }
    }

    fn is_quiet(&self) -> bool {
        let fd = self.stream.tcp_or_unix(AsRawFd::as_raw_fd, AsRawFd::as_raw_fd);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(fd, &mut [0], flags), Err(Errno::EAGAIN | Errno::EINTR))
    }

    fn listen(&mut self, until: Moment) -> Result<Option<Value>> {
        let Self { stream, parser, reading, .. } = self;
        let fault = match parser.parse_value(Bounded { stream, reading, deadline: until }) {
            Ok(reply) => return Ok(Some(reply)),
            Err(fault) => fault,
        };
        if fault.is_timeout() { Ok(None) } else { Err(broken(&fault)) }
    }
}

/// Reads of one reply, each within what is left of the time.
struct Bounded<'a> {
    stream: &'a mut Stream,
    reading: &'a mut Duration,
    deadline: Moment,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(patience) = retime(*self.reading, patience(self.deadline)?) {
                self.stream.tcp_or_unix(
                    |tcp| tcp.set_read_timeout(Some(patience)),
                    |unix| unix.set_read_timeout(Some(patience)),
                )?;
                *self.reading = patience;
            }
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) && !self.deadline.passed() => {}
                other => return other,
            }
        }
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// What is left of the time, as an error when nothing is.
fn patience(deadline: Moment) -> io::Result<Duration> {
    let left = deadline.left();
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left.max(SHORTEST)) }
}

/// Shortest patience handed to the kernel, for which a timeout of zero means "for ever".
const SHORTEST: Duration = Duration::from_millis(1);

/// What a timeout may be too long before the kernel is told again: replies come by the hundred
/// thousand. One that is too short is repeated by the reader, so only gross shortness counts.
const SLACK: Duration = Duration::from_millis(50);

/// The new timeout, if the one in force is too far off.
fn retime(in_force: Duration, left: Duration) -> Option<Duration> {
    let too_long = in_force > left + SLACK.min(left / 10);
    let too_short = in_force < left / 2;
    (too_long || too_short).then_some(left)
}

impl Stream {
    fn connect(config: &Config, deadline: Moment) -> Result<Self> {
        match &config.address {
            Address::Unix(path) => {
                reach_unix(path, deadline).map(Self::Unix).map_err(|e| not_connected(&e))
            }
            Address::Tcp { host, port, tls } => {
                let tcp = reach(host, *port, deadline).map_err(|e| not_connected(&e))?;
                settle(&tcp, config).map_err(|e| not_connected(&e))?;
                if *tls { secure(tcp, host, config) } else { Ok(Self::Tcp(tcp)) }
            }
        }
    }

    fn tcp_or_unix<T>(
        &self,
        tcp: impl FnOnce(&TcpStream) -> T,
        unix: impl FnOnce(&UnixStream) -> T,
    ) -> T {
        match self {
            Self::Tcp(stream) => tcp(stream),
            Self::Tls(stream) => tcp(&stream.sock),
            Self::Unix(stream) => unix(stream),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// The first address of a host that answers.
fn reach(host: &str, port: u16, deadline: Moment) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in resolve(host, port, deadline)? {
        match TcpStream::connect_timeout(&address, patience(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The addresses of a host. The system takes its own time to resolve a name, which may be longer than
/// ours: it does so in a thread, and is left alone with it when our time is up.
fn resolve(host: &str, port: u16, deadline: Moment) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (tell, told) = mpsc::channel();
    let host = host.to_owned();
    thread::start("tagsweep-name", move || {
        let _ = tell.send((host.as_str(), port).to_socket_addrs().map(Vec::from_iter));
    })?;
    told.recv_timeout(patience(deadline)?).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "its name was not resolved in time"))
    })
}

/// A unix socket. One whose queue is full, because its server does not accept, is tried until the deadline.
fn reach_unix(path: &Path, deadline: Moment) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN | Errno::EINTR) => std::thread::sleep(QUEUE.min(patience(deadline)?)),
            Err(e) => return Err(e.into()),
        }
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Time between two attempts to get into a full queue.
const QUEUE: Duration = Duration::from_millis(5);

/// Small packets at once; a peer that vanished is noticed even while we only wait.
fn settle(tcp: &TcpStream, config: &Config) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &15)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &5)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &3)?;
    let unsent = u32::try_from(config.timeout.as_millis()).unwrap_or(u32::MAX);
    setsockopt(tcp, sockopt::TcpUserTimeout, &unsent.max(1))?;
    Ok(())
}

fn secure(tcp: TcpStream, host: &str, config: &Config) -> Result<Stream> {
    let unusable = |what: &str| Error::invalid(format!("unusable TLS settings: {what}"));
    let name = ServerName::try_from(host.to_owned()).map_err(|e| unusable(&e.to_string()))?;
    let settings = tls_settings(config).map_err(|e| unusable(&e))?;
    let session =
        ClientConnection::new(Arc::new(settings), name).map_err(|e| unusable(&e.to_string()))?;
    Ok(Stream::Tls(Box::new(StreamOwned::new(session, tcp))))
}

/// The authority and the identity of the configuration; else the system's authorities, nobody.
fn tls_settings(config: &Config) -> std::result::Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &config.tls.ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|e| format!("the authority: {e}"))?;
                roots.add(certificate).map_err(|e| format!("the authority: {e}"))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    // Named, so that no process-wide choice is needed and none is disturbed.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusting = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &config.tls.identity else {
        return Ok(trusting.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| format!("the client certificate: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the client key: {e}"))?;
    trusting.with_client_auth_cert(chain, key).map_err(|e| e.to_string())
}

/// What is said first. Over TLS always something, so that a certificate that does not fit is no
/// unknown outcome of the first real command.
fn greeting(config: &Config) -> Vec<Cmd> {
    let mut commands = Vec::new();
    let user = config.user.as_deref().filter(|user| !user.is_empty());
    if config.password.is_some() || user.is_some() {
        // A user without a password is one that needs none, and not the default user.
        let password = config.password.as_ref().map_or("", |secret| secret.reveal());
        let mut auth = redis::cmd("AUTH");
        auth.arg(user).arg(password);
        commands.push(auth);
    }
    if config.db != 0 {
        let mut select = redis::cmd("SELECT");
        select.arg(config.db);
        commands.push(select);
    }
    if commands.is_empty() && matches!(config.address, Address::Tcp { tls: true, .. }) {
        commands.push(redis::cmd("PING"));
    }
    commands
}

/// Turns an error reply into an error, by its first word only: texts differ between servers.
pub(crate) fn checked(reply: Value) -> Result<Value> {
    let Value::ServerError(e) = &reply else { return Ok(reply) };
    // Long commands are refused before the password is asked for.
    let unnamed = e.details().is_some_and(|text| text.contains("unauthenticated"));
    let code = if unnamed { "NOAUTH" } else { e.code() };
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

fn no_answer(e: &io::Error) -> Error {
    let what = match e.get_ref() {
        Some(ours) if is_timeout(e) => ours.to_string(),
        None if is_timeout(e) => "no answer in time".into(),
        _ => format!("the connection broke: {e}"),
    };
    Error::new(ErrorKind::Unknown, what).advice("whether the command took effect is not known")
}

fn broken(e: &redis::RedisError) -> Error {
    Error::new(ErrorKind::Unknown, format!("the connection broke: {e}"))
        .advice("whether the command took effect is not known")
}

fn not_connected(e: &io::Error) -> Error {
    no_answer(e).unsent()
}

/// The server spoke, but will not serve us.
fn refused(e: Error) -> Error {
    match e.code() {
        Some("WRONGPASS" | "NOAUTH" | "NOPERM") => {
            Error::new(ErrorKind::Denied, "the server refused the user or password")
                .advice("check user and password")
        }
        Some("ERR") if e.to_string().contains("AUTH") || e.to_string().contains("password") => {
            Error::new(ErrorKind::Denied, "the server refused the user or password")
                .advice("check user and password")
        }
        Some("ERR") => e.advice("check the database number"),
        _ => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_a_deadline_only_when_it_moved_much() {
        let ms = Duration::from_millis;
        assert_eq!(retime(Duration::ZERO, ms(500)), Some(ms(500)));
        assert_eq!(retime(ms(500), ms(480)), None);
        assert_eq!(retime(ms(500), ms(400)), Some(ms(400)));
        assert_eq!(retime(ms(100), ms(5000)), Some(ms(5000)));
    }
}
