//! A place in the line: a connection that blocks until the baton comes.

use crate::clock::Moment;
use crate::connect::{Link, Spare};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::protocol::{Answer, Keys, Request};
use crate::reply::{checked, understood};
use redis::{Cmd, Value};

/// A connection that blocks on the baton.
pub(crate) struct Line {
    spare: Spare,
    /// Whether a BLPOP is under way.
    blocked: bool,
}

/// What ends a wait, and says nothing of the next one; whatever else is answered to a command that blocks means that
/// there is none.
const ENDED: [&str; 8] = [
    "UNBLOCKED",
    "READONLY",
    "LOADING",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "WRONGTYPE",
];

/// What was heard.
pub(crate) enum Heard {
    Baton(Vec<u8>),
    Nothing,
    /// The server does not block for us.
    Refused,
}

impl Line {
    /// Joins: asks, and blocks behind the question, in one write, so that our ticket and our place in
    /// the server's own line come from one instant. One round trip. Where the script may be unknown it is sent
    /// along: a connection that blocks without a ticket would have to be dropped, and a baton with it.
    pub fn join(
        mut spare: Spare,
        keys: &Keys,
        request: &Request,
        deadline: Moment,
    ) -> Result<(Self, Answer)> {
        let (script, args) = request.script(keys);
        let is_new = spare.id.is_none();
        let question = if is_new { script.by_body(&args) } else { script.by_digest(&args) };
        let mut commands = vec![question, block(keys)];
        if is_new {
            let named = redis::cmd("CLIENT").arg("SETNAME").arg(&spare.name).to_owned();
            commands.splice(0..0, [named, redis::cmd("CLIENT").arg("ID").to_owned()]);
        }
        spare.socket.send(&commands.iter().collect(), deadline)?;
        if is_new {
            if spare.socket.receive(deadline)? != Value::Okay {
                spare.name.clear();
            }
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
            Err(e) if e.code().is_none_or(|code| ENDED.contains(&code)) => Err(e),
            Err(_) => Ok(Heard::Refused),
        }
    }

    /// Blocks no more; a baton may come at the last moment. One round trip, two the first time.
    pub fn hang_up(&mut self, link: &mut Link, deadline: Moment) -> Result<Option<Vec<u8>>> {
        // Without the permission to ask for its name, the connection is dropped while it blocks.
        let Some(id) = self.spare.id.filter(|_| self.blocked) else { return Ok(None) };
        if !self.is_known(id, link, deadline)? {
            return Ok(None);
        }
        let unblock = redis::cmd("CLIENT").arg("UNBLOCK").arg(id).to_owned();
        link.follow_up(&unblock, deadline)?;
        let reply = checked(self.spare.socket.receive(deadline)?)?;
        self.blocked = false;
        Ok(baton(reply))
    }

    /// Whether our connection is known by that number where the link's leads: an address may have moved since, and
    /// there the number is somebody else's.
    fn is_known(&mut self, id: i64, link: &mut Link, deadline: Moment) -> Result<bool> {
        let connection = link.connected(deadline)?;
        if self.spare.beside == Some(connection) {
            return Ok(true);
        }
        // A user who may not ask or be named: then the link must not have been made anew.
        let is_old = self.spare.made_beside == connection;
        if self.spare.name.is_empty() {
            return Ok(is_old);
        }
        let ask = redis::cmd("CLIENT").arg("LIST").arg("ID").arg(id).to_owned();
        let told: String = match link.follow_up(&ask, deadline) {
            Err(e) if e.kind() == ErrorKind::Denied => return Ok(is_old),
            told => told.and_then(understood)?,
        };
        let name = format!("name={}", self.spare.name);
        self.spare.beside = told.split(' ').any(|field| field == name).then_some(connection);
        Ok(self.spare.beside.is_some())
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
