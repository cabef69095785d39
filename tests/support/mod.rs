//! Private servers for tests and benches: a child process on a unix socket in a folder of its own,
//! stopped by its pid, its log shown when the test fails. A test that cannot get its server fails.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod clock;
pub mod errors;
pub mod proxy;
pub mod random;
pub mod say;

use clock::Clock;
use redis::{Connection, FromRedisValue};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tagsweep::Config;
use tempfile::TempDir;

/// A private redis-server (or what `TAGSWEEP_TEST_SERVER` names).
pub struct Server {
    child: Child,
    dir: TempDir,
    log: Arc<Mutex<Vec<String>>>,
    args: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more command line options, such as `["--maxmemory", "1mb"]`.
    pub fn with(options: &[&str]) -> Self {
        Self::in_folder(folder(), Vec::new(), options)
    }

    /// With a clock that can be set.
    pub fn with_clock() -> (Self, Clock) {
        let dir = folder();
        let clock = Clock::build(dir.path());
        (Self::in_folder(dir, clock.environment(), &[]), clock)
    }

    fn in_folder(
        dir: TempDir,
        environment: Vec<(&'static str, PathBuf)>,
        options: &[&str],
    ) -> Self {
        let socket = dir.path().join("s").display().to_string();
        let home = dir.path().display().to_string();
        let fixed = ["--port", "0", "--unixsocket", &socket, "--dir", &home, "--save", ""];
        let args: Vec<String> =
            fixed.iter().chain(options).map(|option| (*option).to_owned()).collect();
        let (child, log) = launch(&args, &environment);
        Self { child, dir, log, args, environment }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn config(&self) -> Config {
        Config::from_url(&self.url()).expect("a URL")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Connection {
        redis::Client::open(self.url()).unwrap().get_connection().expect("a connection")
    }

    /// A link of its own.
    pub fn link(&self) -> tagsweep::lock::SharedLink {
        Arc::new(Mutex::new(tagsweep::connect::Link::new(self.config()).unwrap()))
    }

    /// Stops it without any farewell and starts it again on the same socket, empty.
    pub fn restart(&mut self) {
        self.stop();
        let _ = std::fs::remove_file(self.socket());
        (self.child, self.log) = launch(&self.args, &self.environment);
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal, such as `STOP`, to the server.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.log.lock().unwrap().join("\n"));
        }
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("tagsweep-test-").tempdir().expect("a folder")
}

fn launch(args: &[String], environment: &[(&str, PathBuf)]) -> (Child, Arc<Mutex<Vec<String>>>) {
    let program = std::env::var("TAGSWEEP_TEST_SERVER").unwrap_or("redis-server".into());
    let mut child = Command::new(&program)
        .args(args)
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} does not start ({e}); run `make deps`"));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let ready = |line: &str| {
        line.contains("Ready to accept connections") || line.contains("ready to accept connections")
    };
    while let Some(Ok(line)) = lines.next() {
        seen.push(line);
        if seen.last().is_some_and(|line| ready(line)) {
            let log = Arc::new(Mutex::new(seen));
            let sink = Arc::clone(&log);
            std::thread::spawn(move || {
                lines.map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line));
            });
            return (child, log);
        }
    }
    let _ = child.wait();
    panic!("{program} ended before it was ready:\n{}", seen.join("\n"));
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(sent.expect("kill runs").success(), "kill -{name} {pid}");
}

/// Runs a command written as on a command line; arguments hold no spaces.
pub fn run<T: FromRedisValue>(connection: &mut Connection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query(connection).unwrap_or_else(|e| panic!("{command}: {e}"))
}

/// Waits until something is so; fails after ten seconds.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited 10 s for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a lock may ask beside a call, it asks within this time, and does without the answer after that.
pub const ASIDE: Duration = Duration::from_millis(150);

/// What a scene came to in which something is asked aside, in a call that took so long; set again where
/// that may have been too long, for the machine stalled.
pub fn unstalled<T>(mut scene: impl FnMut() -> (Duration, T)) -> T {
    let mut in_time = || Some(scene()).filter(|(took, _)| *took < ASIDE);
    (0..5).find_map(|_| in_time()).expect("a machine that does not stall").1
}

/// Makes a key look unused for `seconds`, as its idle time goes.
pub fn age(connection: &mut Connection, key: impl AsRef<[u8]>, seconds: u64) {
    let key = key.as_ref();
    let dump: Vec<u8> = redis::cmd("DUMP").arg(key).query(connection).unwrap();
    let mut cmd = redis::cmd("RESTORE");
    cmd.arg(key).arg(0).arg(dump).arg("REPLACE").arg("IDLETIME").arg(seconds);
    cmd.query::<()>(connection).unwrap();
}
