//! A connection on which the server tells when the lock or its line changes: client tracking, as of Redis 6.
//!
//! The keys that a look reads are remembered with its connection, once; with their first change
//! (released by whomever, renewed, deleted, expired, evicted, flushed) comes a word of it, and the look must be
//! repeated to hear of the next. It costs others nothing until then. How a peer, rueidislock, waits.

use crate::clock::Moment;
use crate::config::Config;
use crate::error::Result;
use crate::lock::protocol::{Answer, Keys, Request};
use crate::reply::checked;
use crate::socket::Socket;
use redis::{Cmd, Value};
use std::time::Duration;

/// How the server lists it.
const NAME: &str = "tagsweep-tracking";

/// Time for the rest of a message of which something has come.
const REST: Duration = Duration::from_millis(1);

/// What has changed since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum News {
    /// The line alone.
    Line,
    Lock,
}

/// The connection.
pub(crate) struct Tracker(Socket);

impl Tracker {
    /// A new one, and a look; the answer alone where the server does not tell (no such command, no right to it, a
    /// proxy that knows RESP2 only). Two round trips; one more with a password or a database, two
    /// with TLS.
    ///
    /// # Errors
    /// No answer.
    pub fn start(
        config: &Config,
        keys: &Keys,
        look: &Request,
        deadline: Moment,
    ) -> Result<(Option<Self>, Answer)> {
        let mut socket = Socket::dial(config, deadline)?;
        let hello = redis::cmd("HELLO").arg(3).arg("SETNAME").arg(NAME).to_owned();
        // We are not to hear of what our own look changes. (Some versions tell all the same: one look in vain.)
        let track = redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP").to_owned();
        socket.send(&[hello, track, question(keys, look)].iter().collect(), deadline)?;
        let mut tells = true;
        for _ in 0..2 {
            tells &= checked(socket.receive(deadline)?).is_ok();
        }
        let mut tracker = Self(socket);
        let answer = tracker.answer(look, deadline)?;
        Ok((tells.then_some(tracker), answer))
    }

    /// Looks, and is told of the next change. One round trip.
    pub fn look(&mut self, keys: &Keys, look: &Request, deadline: Moment) -> Result<Answer> {
        self.0.send(&std::iter::once(&question(keys, look)).collect(), deadline)?;
        self.answer(look, deadline)
    }

    fn answer(&mut self, look: &Request, deadline: Moment) -> Result<Answer> {
        loop {
            // What is told before the answer is older than it.
            match self.0.receive(deadline)? {
                Value::Push { .. } => {}
                reply => return look.read(&checked(reply)?),
            }
        }
    }

    /// What the server has told since the last look. No round trip.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn news(&mut self, keys: &Keys) -> Result<Option<News>> {
        let mut news = None;
        loop {
            // What came together with something else was read with it.
            let rest = if self.0.is_quiet() { Duration::ZERO } else { REST };
            match self.0.listen(Moment::now() + rest)? {
                Some(told) => news = news.max(read(&told, keys)),
                None => return Ok(news),
            }
        }
    }
}

/// The look as a command; in the long form, for it is rare and the script may be unknown.
fn question(keys: &Keys, look: &Request) -> Cmd {
    let (script, args) = look.script(keys);
    script.by_body(&args)
}

/// What the server tells: a list of keys, or none when all are gone.
fn read(told: &Value, keys: &Keys) -> Option<News> {
    let Value::Push { data, .. } = told else { return None };
    let names = |key: &[u8]| {
        data.iter().any(|item| match item {
            Value::Array(keys) => keys.contains(&Value::BulkString(key.to_vec())),
            item => *item == Value::Nil,
        })
    };
    let line = names(&keys.waiters).then_some(News::Line);
    if names(&keys.lock) { Some(News::Lock) } else { line }
}
