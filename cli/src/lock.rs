//! `tagsweep lock NAME -- COMMAND…`: like flock, across the fleet.

use crate::args::{LockArgs, RunArgs, WaitModeName, bytes};
use crate::output::way_out;
use crate::{Done, exit, signals};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{AccessFlags, Pid, access, getppid};
use std::ffi::OsStr;
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tagsweep::Error;
use tagsweep::connect::Link;
use tagsweep::error::plain;
use tagsweep::lock::{Lock, LossReason, Options, Outcome, WaitMode, Watchdog};

/// Time between two attempts to kill.
const AGAIN: Duration = Duration::from_millis(100);

/// Longest grace for a command that is to end.
const YEAR: Duration = Duration::from_secs(366 * 86_400);

/// This program.
const ONESELF: &str = "/proc/self/exe";

/// Longest sleep.
const IDLE: Duration = Duration::from_secs(3600);

/// How long a lease that is not extended any more outlasts the command.
const MARGIN: Duration = Duration::from_secs(1);

/// Longest time to give the lock back when somebody waits for our end.
const LAST_WORDS: Duration = Duration::from_secs(1);

enum Event {
    /// A signal, and whether somebody sent it to us; the terminal has told the command itself.
    Signal(Signal, bool),
    Exited(std::io::Result<ExitStatus>),
    Lost(LossReason),
}

pub(crate) fn lock(args: &LockArgs) -> Done {
    if let Err(e) = find(&args.command[0]) {
        return Ok(not_started(&args.command[0], e));
    }
    // Where our parent has it ignored, nobody would be told how the command ended.
    signal_hook::flag::register(Signal::SIGCHLD as i32, Arc::default())?;
    let (tell, events) = channel();
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut lock = contend(args, tell.clone())?;
    listen(tell.clone(), Arc::clone(&interrupted))?;
    let mut go_on = |_: &_| !interrupted.load(Ordering::Relaxed);
    let fence = match lock.acquire_within(args.wait, &mut go_on)? {
        Outcome::Acquired { fence } => fence,
        Outcome::Held(holder) => {
            let name = plain(&args.name.to_string_lossy());
            complain!(
                "tagsweep: the lock {name} is {holder}{}",
                way_out(&args.server, &args.name, &holder)
            );
            let waited = !interrupted.load(Ordering::Relaxed);
            return Ok(if waited { args.conflict_exit_code } else { exit::PARTIAL });
        }
    };
    // What was to be told to a command that did not run yet is no news to this one; but for an end.
    let losses: Vec<Event> =
        events.try_iter().filter(|event| matches!(event, Event::Lost(_))).collect();
    losses.into_iter().for_each(|event| drop(tell.send(event)));
    if interrupted.load(Ordering::Relaxed) {
        let _ = lock.give_back_within(LAST_WORDS);
        return Ok(exit::PARTIAL);
    }
    let granted = Instant::now();
    let family = start(args, fence, tell)?;
    let code = watch(&family, Ends::of(args, granted), &events)?;
    Ok(give_back(&mut lock, &plain(&args.name.to_string_lossy()), code))
}

/// Releases the lock; the exit code, which a loss changes that the command did not live to see.
fn give_back(lock: &mut Lock, name: &str, code: u8) -> u8 {
    // The word of it may still be on its way to us.
    let lost = lock.lost().is_some();
    let held = lock.fence().is_some() && !lost;
    let released = lock.release_within(LAST_WORDS);
    if lost && code != exit::PARTIAL {
        complain!("tagsweep: the lock {name} was lost just before the command ended");
        return exit::PARTIAL;
    }
    match released {
        Ok(false) if held => {
            complain!("tagsweep: the lock {name} was lost while the command ran, to its end");
            return exit::PARTIAL;
        }
        Ok(_) => {}
        Err(e) => {
            complain!("tagsweep: the lock could not be released and ends with its TTL: {e}");
        }
    }
    code
}

/// A contender whose lease is renewed, and whose loss is an event.
fn contend(args: &LockArgs, tell: Sender<Event>) -> tagsweep::Result<Lock> {
    let options = Options {
        ttl: args.ttl,
        wait_mode: match args.wait_mode {
            WaitModeName::Line => WaitMode::Line,
            WaitModeName::Backoff => WaitMode::Backoff,
        },
        renew: Some(Watchdog::new()),
        // The command is told to end when that is over, and has its grace.
        max_hold: args.max_hold.map(|most| most.saturating_add(args.kill_after + MARGIN)),
        at_least: args.at_least,
        confirm: args.confirm,
        record: true,
        ..Options::new(Duration::from_secs(30))
    };
    if args.max_hold == Some(Duration::ZERO) {
        return Err(Error::bad_argument("--max-hold must be longer than nothing"));
    }
    if args.kill_after > YEAR {
        return Err(Error::bad_argument("--kill-after must be at most a year"));
    }
    let link = Link::new(args.server.config()?)?;
    let mut lock = Lock::on(Arc::new(Mutex::new(link)), &bytes(&args.name), options)?;
    // Nobody listens any more when the command has ended.
    lock.on_lost(move |reason| drop(tell.send(Event::Lost(reason))));
    Ok(lock)
}

fn listen(tell: Sender<Event>, interrupted: Arc<AtomicBool>) -> std::io::Result<()> {
    signals::listen(&signals::forwarded(), move |signal, sent| {
        // Of a wait; a command has them all.
        let ends = signals::ENDING.contains(&signal) || signal == Signal::SIGQUIT;
        interrupted.fetch_or(ends, Ordering::Relaxed);
        let _ = tell.send(Event::Signal(signal, sent));
    })
}

/// The command and, unless it may speak to a terminal, what it starts.
enum Family {
    Process(Pid),
    Group(Pid),
}

impl Family {
    /// False when we may not.
    fn send(&self, signal: Signal) -> bool {
        let sent = match self {
            Self::Process(pid) => kill(*pid, signal),
            Self::Group(pid) => killpg(*pid, signal),
        };
        // It may have ended just now.
        sent != Err(Errno::EPERM)
    }

    fn is_a_group(&self) -> bool {
        matches!(self, Self::Group(_))
    }

    /// Waits until nobody is left, at most until then.
    fn wait_until(&self, then: Option<Instant>) {
        let Self::Group(group) = self else { return };
        while killpg(*group, None).is_ok() && then.is_none_or(|then| Instant::now() < then) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Becomes the command, which is killed when its parent dies: whoever has no one to tell it of the loss of
/// its lock must not go on. (It dies with the thread that started it, which is the parent's main thread.)
pub(crate) fn run(args: &RunArgs) -> Done {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() != args.parent {
        return Ok(exit::PARTIAL);
    }
    let e = Command::new(&args.command[0]).args(&args.command[1..]).exec();
    Ok(not_started(&args.command[0], e))
}

/// Whether there is such a command, before a lock is taken for it.
fn find(command: &OsStr) -> std::io::Result<()> {
    if command.as_bytes().contains(&b'/') {
        return runs(Path::new(command));
    }
    // Without one, where execvp looks.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut found = Err(std::io::ErrorKind::NotFound.into());
    for folder in std::env::split_paths(&path) {
        match runs(&folder.join(command)) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => found = Err(e),
            Err(_) => {}
        }
    }
    found
}

fn runs(file: &Path) -> std::io::Result<()> {
    // A command is started through ourselves.
    access(ONESELF, AccessFlags::X_OK).map_err(|e| {
        std::io::Error::other(format!("{ONESELF} cannot be run ({e}); mount /proc"))
    })?;
    access(file, AccessFlags::X_OK)?;
    if file.is_dir() { Err(std::io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
}

/// Says so, with the code that shells use for it.
fn not_started(command: &OsStr, e: std::io::Error) -> u8 {
    let name = plain(&command.to_string_lossy());
    match e.kind() {
        std::io::ErrorKind::NotFound => complain!("tagsweep: there is no command {name}"),
        _ => complain!("tagsweep: {name} could not be started: {e}"),
    }
    match e.kind() {
        std::io::ErrorKind::NotFound => exit::NO_COMMAND,
        _ => exit::CANNOT_RUN,
    }
}

/// Starts the command; a thread waits for its end. Where no terminal could be spoken to it leads a group of its own, so
/// that a signal reaches its children, too; with one it must stay in the terminal's group.
fn start(args: &LockArgs, fence: u64, tell: Sender<Event>) -> std::io::Result<Family> {
    let mut command = Command::new(ONESELF);
    command.arg0("tagsweep").arg("run").arg(std::process::id().to_string()).arg("--");
    command.args(&args.command).env("TAGSWEEP_FENCE", fence.to_string());
    let alone = !std::io::stdin().is_terminal() && File::open("/dev/tty").is_err();
    if alone {
        command.process_group(0);
    }
    // Before the command: afterwards there may be no thread to be had.
    let (hand, started) = channel::<Child>();
    let waits = std::thread::Builder::new().spawn(move || {
        let Ok(mut child) = started.recv() else { return };
        let _ = tell.send(Event::Exited(child.wait()));
    });
    waits.map_err(signals::no_thread)?;
    let spawned = signals::unblocked(&signals::forwarded(), || command.spawn())?;
    let child = spawned?;
    let pid = Pid::from_raw(child.id() as i32);
    let _ = hand.send(child);
    Ok(if alone { Family::Group(pid) } else { Family::Process(pid) })
}

/// When the command is told to end, and ended.
struct Ends {
    term_at: Option<Instant>,
    kill_at: Option<Instant>,
    told: bool,
    /// Time between the two.
    grace: Duration,
}

impl Ends {
    /// A command that may hold the lock for so long only is told so then, while the lock is still kept: the
    /// next holder must not begin before it has ended.
    fn of(args: &LockArgs, granted: Instant) -> Self {
        let term_at = args.max_hold.and_then(|most| granted.checked_add(most));
        Self { term_at, kill_at: None, told: false, grace: args.kill_after }
    }

    /// What comes next.
    fn next(&self) -> Option<Instant> {
        if self.told { self.kill_at } else { self.term_at }
    }

    /// The command is told to end, once.
    fn term(&mut self, family: &Family, why: &str) {
        if !self.told {
            self.kill_at = Instant::now().checked_add(self.grace);
            self.told = true;
            match family.send(Signal::SIGTERM) {
                true => complain!("tagsweep: {why}; ending the command"),
                false => complain!(
                    "tagsweep: {why}; the command has become another user's and cannot be ended: it goes on, \
                     soon without the lock"
                ),
            }
        }
    }

    /// The next has come.
    fn go_on(&mut self, family: &Family) {
        if self.told {
            family.send(Signal::SIGKILL);
            self.kill_at = Some(Instant::now() + AGAIN);
        } else {
            self.term(family, "the lock must not be held longer (max_hold)");
        }
    }
}

/// Hands signals on until the command ends. When the lease is lost, or about to end for good, the command is
/// told to end, and ended.
fn watch(family: &Family, mut ends: Ends, events: &Receiver<Event>) -> Done {
    loop {
        let next = ends.next().map(|at| at.saturating_duration_since(Instant::now()));
        match events.recv_timeout(next.unwrap_or(IDLE).min(IDLE)) {
            Ok(Event::Exited(status)) if !ends.told => return Ok(code(status?)),
            Ok(Event::Exited(_)) => {
                // What the command started must not outlive the lock either, but has its grace, too.
                family.wait_until(ends.kill_at);
                if family.is_a_group() {
                    family.send(Signal::SIGKILL);
                }
                return Ok(exit::PARTIAL);
            }
            Ok(Event::Signal(signal, sent)) => {
                if sent || family.is_a_group() {
                    family.send(signal);
                }
            }
            Ok(Event::Lost(reason)) => {
                ends.term(family, &format!("the lock was lost ({})", reason.name()));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(exit::ERROR),
            Err(RecvTimeoutError::Timeout)
                if ends.next().is_some_and(|at| at <= Instant::now()) =>
            {
                ends.go_on(family);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::ERROR)
}
