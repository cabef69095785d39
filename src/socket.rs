//! A socket to one server: TCP, TLS or unix, every read and write bounded by a deadline.
//!
//! The redis crate packs commands and parses replies; the socket is ours, because a reply that is
//! awaited in slices (a waiter looks up for signals) must survive the end of a slice, and because a
//! server that dribbles byte by byte must not stretch a deadline.

use crate::clock::Moment;
use crate::config::{Address, Config};
use crate::error::{EFFECT_UNKNOWN, Error, ErrorKind, Result};
use crate::reply::checked;
use crate::thread;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt, socket,
    sockopt,
};
use redis::{Cmd, Value};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

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

/// A connected, authenticated socket: commands go to one server, and their replies come back in order.
pub(crate) struct Socket {
    bare: Bare,
    tls: Option<Box<ClientConnection>>,
    parser: redis::Parser,
}

/// What carries the bytes, with the timeouts of reads and writes as the kernel has them.
struct Bare {
    stream: Stream,
    reading: Duration,
    writing: Duration,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a server says that has no room for us; it hangs up then, whatever else is due.
fn turned_away(reply: &Value) -> Option<Error> {
    let refused = matches!(reply, Value::ServerError(_)).then(|| checked(reply.clone()))?;
    refused.err().filter(|e| e.code() == Some("MAXCLIENTS"))
}

/// How long a connection that is gone is read for its last words.
const FAREWELL: Duration = Duration::from_millis(20);

impl Socket {
    /// Connects, shakes hands, authenticates and chooses the database: one round trip after TCP and
    /// TLS, none without credentials and with database 0.
    pub fn dial(config: &Config, deadline: Moment) -> Result<Self> {
        let begun = Moment::now();
        let patience = (begun + config.connect_timeout).min(deadline);
        let mut socket =
            Self::connect(config, patience).map_err(|e| e.tried(1, Moment::now().since(begun)))?;
        socket.greet(config, patience)?;
        Ok(socket)
    }

    fn connect(config: &Config, deadline: Moment) -> Result<Self> {
        let (stream, tls) = match &config.address {
            Address::Unix(path) => {
                let unix = reach_unix(path, deadline).map_err(|e| not_connected(&e))?;
                (Stream::Unix(unix), None)
            }
            Address::Tcp { host, port, tls } => {
                let tcp = reach(host, *port, deadline).map_err(|e| not_connected(&e))?;
                settle(&tcp, config).map_err(|e| not_connected(&e))?;
                let session = tls.then(|| session(host, config)).transpose()?;
                (Stream::Tcp(tcp), session.map(Box::new))
            }
        };
        let bare = Bare { stream, reading: Duration::ZERO, writing: Duration::ZERO };
        Ok(Self { bare, tls, parser: redis::Parser::new() })
    }

    fn greet(&mut self, config: &Config, deadline: Moment) -> Result<()> {
        let commands = greeting(config);
        if commands.is_empty() && self.tls.is_none() {
            return Ok(());
        }
        let greeted = self.send(&commands.iter().collect(), deadline).and_then(|()| {
            commands.iter().try_for_each(|_| {
                let reply = self.receive(deadline)?;
                checked(reply).map(drop).map_err(refused)
            })
        });
        // Nothing that matters was sent, so nothing about its outcome is unknown.
        greeted.map_err(|e| match (e.is_unknown(), self.tls.is_some()) {
            (false, _) => e,
            (true, false) => e.unsent(),
            (true, true) if e.to_string().contains("certificate") => e.unsent().advice(
                "its certificate must name this host and come from an authority that we trust; another can be given",
            ),
            (true, true) => e.unsent().advice(
                "check that the server runs, that address and port are right, and that TLS is spoken there",
            ),
        })
    }

    /// Sends, without waiting for replies.
    pub fn send(&mut self, pack: &Pack, deadline: Moment) -> Result<()> {
        let mut bounded = Bounded { bare: &mut self.bare, deadline };
        let sent = match self.tls.as_deref_mut() {
            None => bounded.write_all(&pack.bytes),
            Some(session) => {
                let mut stream = rustls::Stream::new(session, &mut bounded);
                stream.write_all(&pack.bytes).and_then(|()| stream.flush())
            }
        };
        // It may have said why before it hung up.
        sent.map_err(|e| match self.listen(Moment::now() + FAREWELL) {
            Err(told) if told.code().is_some() => told,
            _ => no_answer(&e),
        })
    }

    /// The next reply. An error of the server is a reply: [`Value::ServerError`].
    pub fn receive(&mut self, deadline: Moment) -> Result<Value> {
        match self.listen(deadline)? {
            Some(reply) => Ok(reply),
            None => Err(no_answer(&io::ErrorKind::TimedOut.into())),
        }
    }

    /// Whether nothing came that is not due, nor the end.
    pub fn is_quiet(&self) -> bool {
        let fd = match &self.bare.stream {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(fd, &mut [0], flags), Err(Errno::EAGAIN | Errno::EINTR))
    }

    /// Waits awake for something to read; whether it came in time.
    pub fn poll(&self, until: Moment) -> bool {
        while self.is_quiet() {
            if until.passed() {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    /// The next reply, if it comes in time; it may be listened for again.
    pub fn listen(&mut self, until: Moment) -> Result<Option<Value>> {
        let mut bounded = Bounded { bare: &mut self.bare, deadline: until };
        let parsed = match self.tls.as_deref_mut() {
            None => self.parser.parse_value(bounded),
            Some(session) => self.parser.parse_value(rustls::Stream::new(session, &mut bounded)),
        };
        match parsed {
            Ok(reply) => turned_away(&reply).map_or(Ok(Some(reply)), Err),
            Err(fault) if fault.is_timeout() => Ok(None),
            Err(fault) => Err(broken(&fault)),
        }
    }
}

impl Bare {
    fn read(&mut self, buffer: &mut [u8], patience: Duration) -> io::Result<usize> {
        let anew = retime(&mut self.reading, patience);
        match &mut self.stream {
            Stream::Tcp(stream) => {
                anew.map_or(Ok(()), |time| stream.set_read_timeout(Some(time)))?;
                stream.read(buffer)
            }
            Stream::Unix(stream) => {
                anew.map_or(Ok(()), |time| stream.set_read_timeout(Some(time)))?;
                stream.read(buffer)
            }
        }
    }

    fn write(&mut self, bytes: &[u8], patience: Duration) -> io::Result<usize> {
        let anew = retime(&mut self.writing, patience);
        match &mut self.stream {
            Stream::Tcp(stream) => {
                anew.map_or(Ok(()), |time| stream.set_write_timeout(Some(time)))?;
                stream.write(bytes)
            }
            Stream::Unix(stream) => {
                anew.map_or(Ok(()), |time| stream.set_write_timeout(Some(time)))?;
                stream.write(bytes)
            }
        }
    }
}

/// Reads and writes that belong together, each within what is left of the time; those of a TLS handshake
/// are among them.
struct Bounded<'a> {
    bare: &'a mut Bare,
    deadline: Moment,
}

impl Bounded<'_> {
    /// Repeats what a signal interrupted, and what the kernel gave up before its time.
    fn persist(
        &mut self,
        mut act: impl FnMut(&mut Bare, Duration) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match act(self.bare, patience(self.deadline)?) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) && !self.deadline.passed() => {}
                other => return other,
            }
        }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.persist(|bare, patience| bare.read(buffer, patience))
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.persist(|bare, patience| bare.write(bytes, patience))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
/// thousand. One that is too short is repeated, so only gross shortness counts.
const SLACK: Duration = Duration::from_millis(50);

/// The new timeout, if the one in force is too far off.
fn retime(in_force: &mut Duration, left: Duration) -> Option<Duration> {
    let too_long = *in_force > left + SLACK.min(left / 10);
    let too_short = *in_force < left / 2;
    if too_long || too_short {
        *in_force = left;
        return Some(left);
    }
    None
}

/// The first address of a host that answers. Each has its share of the time: one that swallows packets must
/// not keep us from the next.
fn reach(host: &str, port: u16, deadline: Moment) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let addresses = resolve(host, port, deadline)?;
    for (at, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        let share = (patience(deadline)? / others).max(SHORTEST);
        match TcpStream::connect_timeout(address, share) {
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
    // Linux takes no more.
    let most = i32::MAX.unsigned_abs();
    let unsent = u32::try_from(config.timeout.as_millis()).unwrap_or(most).min(most);
    setsockopt(tcp, sockopt::TcpUserTimeout, &unsent.max(1))?;
    Ok(())
}

/// A TLS session that is still to shake hands: it does so with the first bytes that are sent.
fn session(host: &str, config: &Config) -> Result<ClientConnection> {
    let unusable = |what: &str| Error::invalid(format!("unusable TLS settings: {what}"));
    let name = ServerName::try_from(host.to_owned()).map_err(|e| unusable(&e.to_string()))?;
    let settings = tls_settings(config).map_err(|e| unusable(&e))?;
    ClientConnection::new(Arc::new(settings), name).map_err(|e| unusable(&e.to_string()))
}

/// Whom we trust, and who we say we are: as configured; else the system's authorities, and nobody.
fn tls_settings(config: &Config) -> std::result::Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &config.tls.ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|e| format!("the authority: {e}"))?;
                roots.add(certificate).map_err(|e| format!("the authority: {e}"))?;
            }
            if roots.is_empty() {
                return Err("the authority: there is no certificate in it".to_owned());
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

fn no_answer(e: &io::Error) -> Error {
    let what = match e.get_ref() {
        Some(ours) if is_timeout(e) => ours.to_string(),
        None if is_timeout(e) => "no answer in time".into(),
        _ => format!("the connection broke: {e}"),
    };
    Error::new(ErrorKind::Unknown, what).advice(EFFECT_UNKNOWN)
}

fn broken(e: &redis::RedisError) -> Error {
    if e.kind() == redis::ErrorKind::Parse {
        let what = "the connection broke: what came is not the answer of a Redis server";
        return Error::new(ErrorKind::Unknown, what)
            .advice("check what listens there; rediss:// speaks TLS");
    }
    Error::new(ErrorKind::Unknown, format!("the connection broke: {e}")).advice(EFFECT_UNKNOWN)
}

fn not_connected(e: &io::Error) -> Error {
    no_answer(e).unsent()
}

/// The server spoke, but will not serve us.
fn refused(e: Error) -> Error {
    match e.code() {
        // What it says may repeat the password, as a server does that does not know AUTH.
        Some("ERR") if e.to_string().contains("AUTH") || e.to_string().contains("password") => {
            Error::new(ErrorKind::Denied, "the server takes no password, or not in this way")
                .advice("check user and password: it may want none")
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
        for (in_force, left, told) in
            [(0, 500, true), (500, 480, false), (500, 400, true), (100, 5000, true)]
        {
            let mut kernel = ms(in_force);
            assert_eq!(retime(&mut kernel, ms(left)), told.then_some(ms(left)), "{in_force}");
            assert_eq!(kernel, ms(if told { left } else { in_force }));
        }
    }
}
