//! Server-side scripts: one file in `scripts/` per atomic act.
//!
//! A script is run by its digest; a server that does not know it (restart, `SCRIPT FLUSH`,
//! failover) is sent the body once. No script has a shebang: with one, Redis refuses the whole
//! script under memory pressure, which is when cleaning is needed.

use crate::clock::Moment;
use crate::connect::{Link, Pack};
use crate::error::Result;
use crate::strings::Strings;
use redis::{Cmd, Value};

/// One of the scripts in `scripts/`.
pub(crate) struct Script {
    body: &'static str,
    digest: std::sync::LazyLock<String>,
}

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(crate) static $name: Script = Script {
            body: include_str!(concat!("scripts/", $file)),
            digest: std::sync::LazyLock::new(|| {
                let body = include_str!(concat!("scripts/", $file));
                redis::Script::new(body).get_hash().to_owned()
            }),
        };
    };
}

script!(ACQUIRE, "acquire.lua");
script!(EXTEND, "extend.lua");
script!(RELEASE, "release.lua");
script!(WAIT, "wait.lua");
script!(LEAVE, "leave.lua");
script!(FORCE, "force.lua");
script!(PRUNE, "prune.lua");
script!(INVALIDATE, "invalidate.lua");
script!(RESTORE, "restore.lua");
script!(CHECKPOINT, "checkpoint.lua");
script!(RIGHTS, "rights.lua");

/// Keys and arguments of one run, in the order of the script's header.
#[derive(Clone, Default)]
pub(crate) struct Args {
    pub keys: Strings,
    pub argv: Strings,
}

impl Args {
    pub fn key(mut self, key: &[u8]) -> Self {
        self.keys.push(key);
        self
    }

    pub fn arg(mut self, arg: impl AsRef<[u8]>) -> Self {
        self.argv.push(arg.as_ref());
        self
    }

    pub fn number(self, n: impl ToString) -> Self {
        self.arg(n.to_string())
    }
}

impl Script {
    /// The short form, for a server that knows the script.
    pub fn by_digest(&self, args: &Args) -> Cmd {
        self.command("EVALSHA", &self.digest, args)
    }

    /// The short form, among other commands.
    pub fn pack(&self, args: &Args, pack: &mut Pack) {
        pack.write("EVALSHA", |cmd| fill(cmd, &self.digest, args));
    }

    /// The long form, which also teaches it.
    pub fn by_body(&self, args: &Args) -> Cmd {
        self.command("EVAL", self.body, args)
    }

    /// Teaches it to the server.
    pub fn load(&self) -> Cmd {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(self.body);
        cmd
    }

    fn command(&self, how: &str, what: &str, args: &Args) -> Cmd {
        let mut cmd = redis::cmd(how);
        fill(&mut cmd, what, args);
        cmd
    }

    /// Runs it: one round trip, two when the server does not know it yet.
    pub fn run(&self, link: &mut Link, args: &Args, deadline: Moment) -> Result<Value> {
        match link.call(&self.by_digest(args), deadline) {
            Err(e) if e.code() == Some("NOSCRIPT") => link.call(&self.by_body(args), deadline),
            other => other,
        }
    }
}

fn fill<'a>(cmd: &'a mut Cmd, what: &str, args: &Args) -> &'a mut Cmd {
    cmd.arg(what).arg(args.keys.len()).arg(&args.keys).arg(&args.argv)
}
