//! Chaos: contenders in processes of their own (Rust, PHP with the extension, and PHP with the class
//! that it replaces) fight for one lock, while they are killed, stopped and continued, and while a proxy
//! loses, delays and cuts what they send. Afterwards their histories are checked offline.
//!
//! What must hold: claims to hold the lock never overlap, and their fences grow with time; effects that
//! the server accepted have growing fences. What must fail: effects that nobody compares.
//!
//! `TAGSWEEP_CHAOS_SECONDS` sets how long; 60 by default.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use redis::Commands;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::proxy::{Fault, Proxy};
use support::say::say;
use support::{Server, signal};
use tagsweep::Config;
use tagsweep::connect::Link;
use tagsweep::lock::{Lock, Options, Outcome, Watchdog};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Life of a lease, much shorter than the longest stop.
const TTL: u64 = 400;

/// An effect that compares, and the same that does not, one entry of a history each.
const EFFECT: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
     redis.call('RPUSH', KEYS[2], ARGV[2]) return 1";
const UNFENCED: &str = "redis.call('RPUSH', KEYS[2], ARGV[2]) return 1";

/// Microseconds of a clock that all processes of this machine share.
fn now() -> u128 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_micros()
}

fn random(bound: u64) -> u64 {
    u64::from(getrandom::u32().unwrap()) % bound
}

/// The contender in Rust: this test's own program, run again with its work in the environment.
#[test]
fn worker() {
    let Ok(work) = std::env::var("TAGSWEEP_CHAOS_WORK") else { return };
    let [socket, history] = work.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let history = std::fs::File::options().append(true).open(history).unwrap();
    let config = Config::from_url(&format!("unix://{socket}")).unwrap().timeout(MS(600));
    let watchdog = Watchdog::new();
    loop {
        let renew = (random(2) == 0).then(|| watchdog.clone());
        let options = Options { renew, record: true, ..Options::new(MS(TTL)) };
        let link = Arc::new(Mutex::new(Link::new(config.clone()).unwrap()));
        let mut lock = Lock::on(link, b"chaos", options).unwrap();
        for _ in 0..50 {
            // An unknown outcome is one; the next round tells what came of it.
            let _ = turn(&mut lock, &config, &history);
        }
    }
}

/// Gets the lock, works under it, gives it back.
fn turn(lock: &mut Lock, config: &Config, mut history: &std::fs::File) -> tagsweep::Result<()> {
    let budget = MS([0, 50, 2000, 2000][random(4) as usize]);
    let Outcome::Acquired { fence } = lock.acquire_within(budget, &mut |_| true)? else {
        return Ok(());
    };
    let owner = lock.owner().unwrap().to_vec();
    let client = redis::Client::open(config.label().replace("?db=0", "")).unwrap();
    let mut direct = client.get_connection().ok();
    for _ in 0..=random(5) {
        let at = now();
        if lock.is_held() {
            // In one piece: the next instant may be the last.
            history.write_all(format!("{at} {fence} {fence}\n").as_bytes()).unwrap();
        }
        for (script, list) in [(EFFECT, "effects"), (UNFENCED, "unfenced")] {
            let Some(direct) = &mut direct else { continue };
            let mut effect = redis::cmd("EVAL");
            effect.arg(script).arg(2).arg("lock:chaos").arg(list).arg(&owner).arg(fence);
            let _ = effect.query::<i64>(direct);
        }
        // Long enough to be stopped in the middle.
        std::thread::sleep(MS(random(20)));
        if random(4) == 0 && !lock.extend(None)? {
            return Ok(());
        }
    }
    lock.release().map(drop)
}

/// A process under test.
struct Contender {
    kind: &'static str,
    socket: PathBuf,
    history: PathBuf,
    child: Child,
}

impl Contender {
    fn start(kind: &'static str, socket: &Path, folder: &Path, serial: usize) -> Self {
        let history = folder.join(format!("history-{serial}"));
        std::fs::File::create(&history).unwrap();
        let child = launch(kind, socket, &history);
        Self { kind, socket: socket.to_owned(), history, child }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Again, with the same history.
    fn restart(&mut self) {
        self.kill();
        self.child = launch(self.kind, &self.socket, &self.history);
    }
}

fn launch(kind: &str, socket: &Path, history: &Path) -> Child {
    let mut command = match kind {
        "rust" => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let work = format!("{}\n{}", socket.display(), history.display());
            command.args(["worker", "--exact"]).env("TAGSWEEP_CHAOS_WORK", work);
            command
        }
        _ => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let extension = root.join("target/release/libtagsweep_php.so");
            assert!(extension.exists(), "the PHP extension is not built; run `make build`");
            let mut command = Command::new("php");
            command.arg("-d").arg(format!("extension={}", extension.display()));
            command.arg(root.join("tests/support/chaos_worker.php")).arg(kind);
            command.arg(socket).arg("chaos").arg(history);
            command
        }
    };
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.spawn().unwrap_or_else(|e| panic!("{kind}: {e}; run `make deps`"))
}

#[derive(Debug, Default)]
struct Figures {
    claims: usize,
    grants: usize,
    effects: usize,
    kills: u32,
    stops: u32,
    server_stops: u32,
    network_faults: u32,
    unfenced_stale: usize,
}

#[test]
fn histories_of_killed_stopped_and_cut_off_contenders_are_in_order() {
    let seconds = std::env::var("TAGSWEEP_CHAOS_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(60));
    let server = Server::start();
    let proxy = Proxy::start(&server.socket());
    let behind = server.socket().with_extension("proxy");
    let kinds = ["rust", "rust", "rust", "rust", "php", "php", "php", "old"];
    let mut contenders: Vec<Contender> = kinds
        .into_iter()
        .enumerate()
        .map(|(n, kind)| {
            let socket = if n % 2 == 0 { &behind } else { &server.socket() };
            Contender::start(kind, socket, server.dir(), n)
        })
        .collect();
    let mut figures = Figures::default();
    while Instant::now() < end {
        torment(&mut contenders, &server, &proxy, &mut figures);
        std::thread::sleep(MS(50 + random(200)));
    }
    for contender in &mut contenders {
        signal(contender.child.id(), "CONT");
        contender.kill();
    }
    let mut violations = check_claims(&contenders, &mut figures);
    violations.extend(check_effects(&server, &mut figures));
    say(&format!("chaos: {figures:?}, violations: {}", violations.len()));
    assert_eq!(violations, [""; 0]);
    assert!(figures.kills > 10 && figures.stops > 10 && figures.network_faults > 10, "{figures:?}");
    assert!(figures.grants > 100 && figures.effects > 100, "{figures:?}");
    assert!(figures.unfenced_stale > 0, "the faults were too mild to prove anything: {figures:?}");
}

/// The contender that holds the lock, if it says so.
fn holder(contenders: &[Contender], server: &Server) -> Option<usize> {
    let value: Option<String> = server.connect().get("lock:chaos").ok()?;
    let pid = value?.split('|').nth(2)?.parse::<u32>().ok()?;
    contenders.iter().position(|contender| contender.child.id() == pid)
}

/// One fault.
fn torment(contenders: &mut [Contender], server: &Server, proxy: &Proxy, figures: &mut Figures) {
    let any = random(contenders.len() as u64) as usize;
    // Half of the time the holder is hit, which is where it hurts.
    let aimed = |may_be: &dyn Fn(usize) -> bool| {
        (0..500).find_map(|_| holder(contenders, server).filter(|n| may_be(*n)))
    };
    match random(12) {
        0..2 => {
            let n = if random(2) == 0 { any } else { aimed(&|_| true).unwrap_or(any) };
            contenders[n].restart();
            figures.kills += 1;
        }
        2..6 => {
            // Those in Rust have effects that may come too late.
            let effective = |n: usize| contenders[n].kind == "rust";
            let n = if random(4) == 0 { any } else { aimed(&effective).unwrap_or(any) };
            // Without a process of our own in between: what is aimed at may be over in a moment.
            let pid = Pid::from_raw(contenders[n].child.id() as i32);
            kill(pid, Signal::SIGSTOP).unwrap();
            // Mostly longer than a lease.
            let span = MS(TTL / 2 + random(2 * TTL));
            std::thread::spawn(move || {
                std::thread::sleep(span);
                // It may have been killed meanwhile; a pid is not reused that soon.
                let _ = kill(pid, Signal::SIGCONT);
            });
            figures.stops += 1;
        }
        6 => {
            server.signal("STOP");
            std::thread::sleep(MS(random(TTL)));
            server.signal("CONT");
            figures.server_stops += 1;
        }
        _ => {
            let faults = [
                Fault::DropReply,
                Fault::CloseAfter,
                Fault::CloseBefore,
                Fault::Delay(random(2 * TTL)),
                Fault::DelayReply(random(2 * TTL)),
            ];
            let word = ["EVALSHA", "EVALSHA", "BLPOP"][random(3) as usize];
            proxy.break_next(word, faults[random(5) as usize], 1);
            figures.network_faults += 1;
        }
    }
}

/// Who claimed to hold the lock, and when: claims of two holders never overlap, and fences grow. What does.
fn check_claims(contenders: &[Contender], figures: &mut Figures) -> Vec<String> {
    let mut spans: BTreeMap<String, (u128, u128, u64)> = BTreeMap::new();
    for contender in contenders {
        let history = std::fs::read_to_string(&contender.history).unwrap();
        for line in history.lines() {
            let [at, holder, fence] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let at = at.parse().unwrap();
            let span = spans.entry(holder.to_owned()).or_insert((at, at, fence.parse().unwrap()));
            *span = (span.0.min(at), span.1.max(at), span.2);
            figures.claims += 1;
        }
    }
    figures.grants = spans.len();
    let mut in_time: Vec<_> = spans.into_iter().map(|(holder, span)| (span, holder)).collect();
    in_time.sort();
    let overlap = |pair: &[((u128, u128, u64), String)]| {
        let [((_, until, _), first), ((from, _, _), second)] = pair else { return None };
        (until > from).then(|| format!("{first} held until {until}, {second} from {from}"))
    };
    let mut violations: Vec<String> = in_time.windows(2).filter_map(overlap).collect();
    let fences: Vec<u64> =
        in_time.iter().map(|((_, _, fence), _)| *fence).filter(|f| *f > 0).collect();
    let falls = fences.windows(2).filter(|pair| pair[0] > pair[1]);
    violations.extend(falls.map(|pair| format!("fence {} after {}", pair[1], pair[0])));
    violations
}

/// Effects whose fence was lower than that of one before.
fn check_effects(server: &Server, figures: &mut Figures) -> Vec<String> {
    let list = |name: &str| -> Vec<u64> { server.connect().lrange(name, 0, -1).unwrap() };
    let (effects, unfenced) = (list("effects"), list("unfenced"));
    figures.effects = effects.len();
    let mut youngest = 0;
    for fence in unfenced {
        figures.unfenced_stale += usize::from(fence < youngest);
        youngest = youngest.max(fence);
    }
    let stale = effects.windows(2).filter(|pair| pair[0] > pair[1]);
    stale.map(|pair| format!("an effect of {} after one of {}", pair[1], pair[0])).collect()
}
