//! A place in the line: a connection that blocks until the baton comes.

use crate::clock::Moment;
use crate::connect::{Link, Spare};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::protocol::{Answer, Keys, Request};
use crate::reply::checked;
use redis::{Cmd, Value};

/// A connection that blocks on the baton.
pub(crate) struct Line {
    spare: Spare,
    /// Whether a BLPOP is under way.
    blocked: bool,
}

/// What was heard.
pub(crate) enum Heard {
    Baton(Vec<u8>),
    Nothing,
    /// The server does not block for us.
    Refused,
}

impl Line {
    /// Joins: asks, and blocks behind the question, in one write, so that our ticket and our place in
    /// the server's own line come from one instant. One round trip; more on a new connection, and when
    /// the server does not know the script.
    pub fn join(
        link: &mut Link,
        keys: &Keys,
        request: &Request,
        deadline: Moment,
    ) -> Result<(Self, Answer)> {
        let (script, args) = request.script(keys);
        match Self::ask(link, keys, request, script.by_digest(&args), deadline) {
            // That connection blocks without a ticket; it is dropped.
            Err(e) if e.code() == Some("NOSCRIPT") => {
                Self::ask(link, keys, request, script.by_body(&args), deadline)
            }
            other => other,
        }
    }

    fn ask(
        link: &mut Link,
        keys: &Keys,
        request: &Request,
        question: Cmd,
        deadline: Moment,
    ) -> Result<(Self, Answer)> {
        let mut spare = link.take_spare(deadline)?;
        let mut commands = vec![question, block(keys)];
        if spare.id.is_none() {
            commands.insert(0, redis::cmd("CLIENT").arg("ID").to_owned());
        }
        spare.socket.send(&commands.iter().collect(), deadline)?;
        if spare.id.is_none() {
            spare.id = match spare.socket.receive(deadline)? {
                Value::Int(id) => Some(id),
                _ => None,
            };
        }
        let reply = checked(spare.socket.receive(deadline)?)?;
        Ok((Self { spare, blocked: true }, request.read(&reply)?))
    }

    /// Listens for the baton.
    ///
    /// # Errors
    /// The connection broke; our place is lost.
    pub fn listen(&mut self, until: Moment) -> Result<Heard> {
        let Some(reply) = self.spare.socket.listen(until)? else { return Ok(Heard::Nothing) };
        self.blocked = false;
        match checked(reply) {
            Ok(reply) => baton(reply).map(Heard::Baton).ok_or_else(broken),
            Err(e) if matches!(e.code(), Some("ERR" | "NOPERM")) => Ok(Heard::Refused),
            Err(e) => Err(e),
        }
    }

    /// Blocks no more; a baton may come at the last moment. One round trip.
    pub fn hang_up(&mut self, link: &mut Link, deadline: Moment) -> Result<Option<Vec<u8>>> {
        // Without the permission to ask for its name, the connection is dropped while it blocks.
        let Some(id) = self.spare.id.filter(|_| self.blocked) else { return Ok(None) };
        let mut unblock = redis::cmd("CLIENT");
        unblock.arg("UNBLOCK").arg(id);
        link.call(&unblock, deadline)?;
        let reply = checked(self.spare.socket.receive(deadline)?)?;
        self.blocked = false;
        Ok(baton(reply))
    }

    /// Gives the connection back for the next wait, unless it still blocks.
    pub fn put_away(self, link: &mut Link) {
        if !self.blocked {
            link.keep_spare(self.spare);
        }
    }
}

fn block(keys: &Keys) -> Cmd {
    let mut block = redis::cmd("BLPOP");
    block.arg(&keys.baton).arg(0);
    block
}

/// The reply of BLPOP: a key and a value, or nothing.
fn baton(reply: Value) -> Option<Vec<u8>> {
    let Value::Array(mut items) = reply else { return None };
    match items.pop() {
        Some(Value::BulkString(baton)) => Some(baton),
        _ => None,
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Unknown, "the server ended a wait that it was not asked to end")
}
