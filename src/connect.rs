//! A link to one server: commands out, replies in, every step bounded in time.
//!
//! A link connects when it is first used and again after any fault: once a reply is overdue, what
//! comes next on that connection can no longer be told apart, so the connection is dropped. Nothing
//! is sent twice here; callers that may repeat a command do so through `Link::persist`.
//!
//! After `fork()` the child drops the inherited connection without a word to the server and makes
//! its own.

use crate::clock::Moment;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::reply::{Info, checked};
pub(crate) use crate::socket::Pack;
use crate::socket::Socket;
use redis::{Cmd, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A link to one server: one command sequence at a time, and connections that are to block besides.
pub struct Link {
    config: Config,
    label: String,
    socket: Option<Socket>,
    spares: Vec<Spare>,
    pid: u32,
    /// Connections that were made, not counting those to block on: each may lead to another server.
    dials: u64,
    sent: u64,
    /// The connection was looked at, and nothing was sent since.
    fresh: bool,
    fate: Fate,
    /// When the server refused to tell of changes.
    refused_to_tell: Option<Moment>,
    /// When what is done in a hurry must have ended.
    until: Option<Moment>,
}

/// What is known of a server to all links that lead there.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Fate(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    /// When last words were said in vain (us).
    given_up: AtomicU64,
    awake: Awake,
}

/// A connection besides the link's own, for commands that block.
pub(crate) struct Spare {
    pub socket: Socket,
    /// What the server calls it, once asked, and what we call it there.
    pub id: Option<i64>,
    pub name: String,
    /// Which of the link's connections is known to lead to the same server, and which it had when this one was
    /// made.
    pub beside: Option<u64>,
    pub made_beside: u64,
}

impl Spare {
    /// A new one, of that name.
    ///
    /// # Errors
    /// What keeps the server from being reached.
    pub fn dial(config: &Config, name: String, deadline: Moment) -> Result<Self> {
        let socket = Socket::dial(config, deadline).map_err(|e| e.server(&config.label()))?;
        Ok(Self { socket, id: None, name, beside: None, made_beside: 0 })
    }
}

/// Whether it is worth it to wait for an answer awake: it is, as long as answers come in that time. Each that does not
/// makes us sleep over twice as many as the one before; each that does over one less.
#[derive(Debug, Default)]
struct Awake {
    /// Answers that are still to be slept over, and how many the next late one makes them.
    asleep: AtomicU32,
    penalty: AtomicU32,
}

impl Awake {
    /// Answers that are slept over at most.
    const MOST: u32 = 1024;

    fn is_worth_it(&self) -> bool {
        let asleep = self.asleep.load(Ordering::Relaxed);
        self.asleep.store(asleep.saturating_sub(1), Ordering::Relaxed);
        asleep == 0
    }

    fn observe(&self, came: bool) {
        let penalty = self.penalty.load(Ordering::Relaxed);
        if came {
            self.penalty.store(penalty.saturating_sub(1), Ordering::Relaxed);
        } else {
            let penalty = (2 * penalty).clamp(1, Self::MOST);
            self.penalty.store(penalty, Ordering::Relaxed);
            self.asleep.store(penalty, Ordering::Relaxed);
        }
    }
}

/// For how long last words are not tried again.
const GIVEN_UP: Duration = Duration::from_millis(250);

/// For how long a server is not asked again that refused to tell of changes.
const REFUSED: Duration = Duration::from_secs(300);

/// Spare connections that are kept.
const SPARES: usize = 4;

impl Link {
    /// A link. Connects at first use.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) when the configuration is out of bounds.
    pub fn new(config: Config) -> Result<Self> {
        config.check()?;
        let label = config.label();
        Ok(Self {
            config,
            label,
            socket: None,
            spares: Vec::new(),
            pid: 0,
            dials: 0,
            sent: 0,
            fresh: false,
            fate: Fate::default(),
            refused_to_tell: None,
            until: None,
        })
    }

    /// The same link, given up together with others to the same server.
    #[doc(hidden)]
    pub fn sharing(mut self, fate: &Fate) -> Self {
        self.fate = fate.clone();
        self
    }

    /// Where this link leads.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// When a call that starts now must have ended.
    pub(crate) fn deadline(&self) -> Moment {
        let end = Moment::now() + self.config.timeout;
        self.until.map_or(end, |until| until.min(end))
    }

    /// After a panic of whoever used it: whatever was under way is not any more.
    pub(crate) fn mend(&mut self) {
        (self.socket, self.until) = (None, None);
    }

    /// Connects, if that is not done or the peer has hung up: what is sent into a connection that is
    /// gone may have taken effect for all we know.
    pub(crate) fn check(&mut self, deadline: Moment) -> Result<()> {
        self.socket.take_if(|socket| !socket.is_quiet());
        self.socket(deadline)?;
        self.fresh = true;
        Ok(())
    }

    /// The same, and which connection it is.
    pub(crate) fn connected(&mut self, deadline: Moment) -> Result<u64> {
        self.check(deadline)?;
        Ok(self.dials)
    }

    /// In a forked child, what was inherited is dropped.
    fn own(&mut self) {
        if self.pid != std::process::id() {
            self.socket = None;
            self.spares.clear();
            self.pid = std::process::id();
        }
    }

    /// Which connection it has, or had last.
    pub(crate) fn connection(&self) -> u64 {
        self.dials
    }

    /// Connections to block on that were kept are of no use.
    pub(crate) fn drop_spares(&mut self) {
        self.spares.clear();
    }

    /// A connection to block on that was kept and is alive.
    pub(crate) fn take_spare(&mut self) -> Option<Spare> {
        self.own();
        while let Some(spare) = self.spares.pop() {
            if spare.socket.is_quiet() {
                return Some(spare);
            }
        }
        None
    }

    /// Keeps a connection on which nothing is due.
    pub(crate) fn keep_spare(&mut self, spare: Spare) {
        self.own();
        if self.spares.len() < SPARES {
            self.spares.push(spare);
        }
    }

    fn dial(&self, deadline: Moment) -> Result<Socket> {
        Socket::dial(&self.config, deadline).map_err(|e| e.server(&self.label))
    }

    fn socket(&mut self, deadline: Moment) -> Result<&mut Socket> {
        self.own();
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                self.dials += 1;
                self.dial(deadline)?
            }
        };
        Ok(self.socket.insert(socket))
    }

    /// Sends without waiting; the replies are then due, in order.
    pub(crate) fn send(&mut self, pack: &Pack, deadline: Moment) -> Result<()> {
        self.fresh = false;
        let sent = self.socket(deadline)?.send(pack, deadline);
        self.keep_if(sent)?;
        self.sent += pack.bytes() as u64;
        Ok(())
    }

    /// Bytes of all commands so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The next reply.
    pub(crate) fn receive(&mut self, deadline: Moment) -> Result<Value> {
        self.hear(|socket| socket.receive(deadline))
    }

    /// The next reply, if it comes until then; it may be listened for again.
    pub(crate) fn listen(&mut self, until: Moment) -> Result<Option<Value>> {
        self.hear(|socket| socket.listen(until))
    }

    /// A server that answers is not given up any more.
    fn hear<T>(&mut self, hear: impl FnOnce(&mut Socket) -> Result<T>) -> Result<T> {
        // What was sent was sent by this process, so nothing was inherited.
        let received = match &mut self.socket {
            Some(socket) => hear(socket),
            None => Err(Error::new(ErrorKind::Unknown, "the connection is gone")),
        };
        if received.is_ok() && self.fate.0.given_up.load(Ordering::Relaxed) != 0 {
            self.fate.0.given_up.store(0, Ordering::Release);
        }
        self.keep_if(received)
    }

    /// One command, one reply; an error of the server is an error. Nothing else may be under way.
    pub(crate) fn call(&mut self, command: &Cmd, deadline: Moment) -> Result<Value> {
        if !self.fresh {
            self.check(deadline)?;
        }
        self.follow_up(command, deadline)
    }

    /// The same, for a command that means the connection itself.
    pub(crate) fn follow_up(&mut self, command: &Cmd, deadline: Moment) -> Result<Value> {
        self.send(&std::iter::once(command).collect(), deadline)?;
        let reply = self.receive_awake(deadline)?;
        checked(reply).map_err(|e| self.refused(e))
    }

    /// The next reply, waited for awake if it is likely to come in that time.
    fn receive_awake(&mut self, deadline: Moment) -> Result<Value> {
        let (span, awake) = (self.config.busy_poll, &self.fate.0.awake);
        if let Some(socket) = &self.socket
            && !span.is_zero()
            && awake.is_worth_it()
        {
            awake.observe(socket.poll((Moment::now() + span).min(deadline)));
        }
        self.receive(deadline)
    }

    /// An error of the server. One that was made a replica keeps its connections: whoever asks again is to
    /// ask where the address leads now.
    fn refused(&mut self, e: Error) -> Error {
        if e.code() == Some("READONLY") {
            self.socket = None;
            self.spares.clear();
        }
        e.server(&self.label)
    }

    /// One bare command, for a bench that compares with it, and for `tagsweep doctor`.
    #[doc(hidden)]
    pub fn bare(&mut self, command: &Cmd) -> Result<Value> {
        let deadline = self.deadline();
        self.call(command, deadline)
    }

    /// Several commands in one round trip; errors of the server stay in their places. Nothing else may be
    /// under way.
    pub(crate) fn calls(&mut self, commands: &[Cmd], deadline: Moment) -> Result<Vec<Value>> {
        self.check(deadline)?;
        self.send(&commands.iter().collect(), deadline)?;
        commands.iter().map(|_| self.receive(deadline)).collect()
    }

    /// Asks what changes nothing, until it is answered.
    pub(crate) fn ask(&mut self, question: &Cmd) -> Result<Value> {
        self.persist(|link, deadline| link.call(question, deadline)).map_err(Error::of_a_question)
    }

    /// The same for several, in one round trip; errors of the server stay in their places.
    pub(crate) fn ask_all(&mut self, questions: &[Cmd]) -> Result<Vec<Value>> {
        self.persist(|link, deadline| link.calls(questions, deadline)).map_err(Error::of_a_question)
    }

    /// The run id of the server, new at each of its starts; `None` when we may not ask. One round trip.
    ///
    /// # Errors
    /// What keeps the server from answering.
    pub fn server_id(&mut self) -> Result<Option<String>> {
        let told = self.info("server")?;
        Ok(told.and_then(|info| Info(&info).text("run_id").map(str::to_owned)))
    }

    /// Whether a replica answers; `None` when we may not ask. One round trip.
    pub(crate) fn leads_to_a_replica(&mut self) -> Result<Option<bool>> {
        let told = self.info("replication")?;
        Ok(told.map(|info| Info(&info).is("role", "slave")))
    }

    /// A section of `INFO`; `None` when we may not ask.
    fn info(&mut self, section: &str) -> Result<Option<String>> {
        let mut ask = redis::cmd("INFO");
        ask.arg(section);
        match self.ask(&ask) {
            Ok(Value::BulkString(info)) => Ok(Some(String::from_utf8_lossy(&info).into_owned())),
            Ok(_) => Ok(None),
            Err(e) if e.code() == Some("NOPERM") => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Does something that has less patience than usual, all of it together.
    pub(crate) fn hurry<T>(&mut self, patience: Duration, act: impl FnOnce(&mut Self) -> T) -> T {
        let (usual, end) = (self.until, Moment::now() + patience);
        self.until = Some(usual.map_or(end, |until| until.min(end)));
        let done = act(self);
        self.until = usual;
        done
    }

    /// Whether there is a connection, as far as we know.
    pub(crate) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// The last words were said in vain: whoever has others need not try for a while.
    pub(crate) fn give_up(&mut self) {
        self.fate.0.given_up.store(Moment::now().micros(), Ordering::Release);
    }

    /// Whether that was just now.
    pub(crate) fn is_given_up(&self) -> bool {
        let at = self.fate.0.given_up.load(Ordering::Acquire);
        at != 0 && Moment::now().since(Moment::from_micros(at)) < GIVEN_UP
    }

    /// The server does not tell of changes: it knows no such command, or has no right to it for us.
    pub(crate) fn note_refusal_to_tell(&mut self) {
        self.refused_to_tell = Some(Moment::now());
    }

    /// Whether that was not long ago.
    pub(crate) fn refuses_to_tell(&self) -> bool {
        self.refused_to_tell.is_some_and(|at| Moment::now().since(at) < REFUSED)
    }

    /// Drops the connection; the next use makes a new one.
    pub(crate) fn drop_connection(&mut self) {
        self.socket = None;
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
            self.socket = None;
            e.server(&self.label)
        })
    }

    /// Does what may be done twice until it is done, at most [`ATTEMPTS`] times and within the
    /// link's timeout. Each attempt but the last has a share of that time, so that one lost reply does not eat
    /// it all, and time for a round trip; the last has what is left, for a server that is slow.
    pub(crate) fn persist<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self, Moment) -> Result<T>,
    ) -> Result<T> {
        let begun = Moment::now();
        let end = self.deadline();
        let share = (end.since(begun) / (ATTEMPTS + 1)).max(LEAST_SHARE);
        let mut times = 0;
        loop {
            times += 1;
            let deadline = if times < ATTEMPTS { (Moment::now() + share).min(end) } else { end };
            match attempt(self, deadline) {
                Err(e) if may_pass(&e) && times < ATTEMPTS && !end.passed() => {
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

/// How often an idempotent call is tried.
const ATTEMPTS: u32 = 3;

/// Least time of an attempt, if there is as much: a server that is far away must be able to answer.
const LEAST_SHARE: Duration = Duration::from_millis(250);

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

/// The same, where each attempt may lead to another server.
pub(crate) fn may_pass(e: &Error) -> bool {
    passes(e) || e.code() == Some("READONLY")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_hurry_shortens_deadlines_and_nothing_else() {
        let mut link = Link::new(Config::from_url("redis://127.0.0.1").unwrap()).unwrap();
        let (usual, ms) = (link.config().timeout, Duration::from_millis);
        link.hurry(ms(100), |link| {
            assert_eq!(link.config().timeout, usual, "connections made in it are like others");
            assert!(link.deadline() <= Moment::now() + ms(100));
            link.hurry(ms(200), |link| assert!(link.deadline() <= Moment::now() + ms(100)));
        });
        assert!(link.deadline() > Moment::now() + usual / 2);
    }

    /// A server that answers each command after a span of its own.
    fn server(pauses: &[u64]) -> (Config, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let pauses = pauses.to_owned();
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for pause in pauses {
                assert!(stream.read(&mut [0; 64]).unwrap() > 0);
                std::thread::sleep(Duration::from_millis(pause));
                stream.write_all(b"+PONG\r\n").unwrap();
            }
        });
        (Config::from_url(&url).unwrap(), answers)
    }

    #[test]
    fn answers_that_come_late_are_slept_over() {
        let awake = Awake::default();
        let polls = |answers: u32, came: bool| {
            (0..answers)
                .filter(|_| awake.is_worth_it().then(|| awake.observe(came)).is_some())
                .count()
        };
        assert_eq!(polls(1000, true), 1000);
        assert_eq!(polls(1000, false), 10, "after 1, 2, 4 ...");
        assert!(polls(100_000, false) < 100);
        assert!(polls(100_000, true) > 98_000);
        assert_eq!((polls(1, false), polls(2, true)), (1, 1), "one late one is soon forgiven");
    }

    #[test]
    fn an_answer_is_waited_for_awake_so_long_and_asleep_thereafter() {
        let (config, answers) = server(&[0, 1500, 0, 0]);
        let busy_poll = Duration::from_millis(500);
        let mut link = Link::new(Config { busy_poll, ..config }).unwrap();
        let asleep = [(); 4].map(|()| {
            link.bare(&redis::cmd("PING")).unwrap();
            link.fate.0.awake.asleep.load(Ordering::Relaxed)
        });
        assert_eq!(asleep, [0, 1, 0, 0]);
        answers.join().unwrap();
    }

    #[test]
    fn who_did_not_ask_for_it_waits_asleep() {
        let (config, answers) = server(&[1500]);
        let mut link = Link::new(config).unwrap();
        link.bare(&redis::cmd("PING")).unwrap();
        assert_eq!(link.fate.0.awake.penalty.load(Ordering::Relaxed), 0);
        answers.join().unwrap();
    }

    #[test]
    fn an_attempt_has_time_for_a_server_that_is_far_away_and_the_last_for_one_that_is_slow() {
        let shares = |timeout: u64| -> Vec<u128> {
            let config = Config::from_url("redis://127.0.0.1").unwrap();
            let config = config.timeout(Duration::from_millis(timeout));
            let mut shares = Vec::new();
            let ended = Link::new(config).unwrap().persist(|_, deadline| {
                shares.push(deadline.left().as_millis());
                Err::<(), _>(Error::new(ErrorKind::Unknown, "no answer"))
            });
            assert!(ended.is_err());
            shares
        };
        assert!((200..=300).contains(&shares(300)[0]), "of a short time most");
        let [first, second, last] = shares(3000)[..] else { panic!() };
        assert!((700..=750).contains(&first) && (700..=750).contains(&second));
        assert!((2700..=3000).contains(&last), "all that is left");
    }
}
