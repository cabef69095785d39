//! The command line.

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use tagsweep::lock::Ttl;
use tagsweep::sweep::{OnAged, Options};
use tagsweep::{Config, Error};

/// Distributed locks and a safe sweep of cache tags, for Redis and Valkey.
#[derive(Debug, Parser)]
#[command(name = "tagsweep", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "A DURATION is a number with us, ms, s, m, h or d, such as 1.5h; without one it is seconds.\n\n\
    Exit codes: 0 done, 1 error, 2 usage, 3 held by another, \
    4 lost or interrupted (partial result), 5 unknown (the server did not answer, and may have done it)";

const DOCTOR_EXIT_CODES: &str = "A DURATION is a number with us, ms, s, m, h or d, such as 1.5h; without one it is \
    seconds.\n\nExit codes: 0 nothing is in the way, 1 something is, or an error, 2 usage, 5 unknown (the server did \
    not answer)";

const ACL_HELP: &str = "The line is for redis-cli's own prompt (a shell takes > for something else). Put the password in \
    the place of PASSWORD. `reset` takes away what the user had before.";

const LOCK_EXIT_CODES: &str = "A DURATION is a number with us, ms, s, m, h or d, such as 1.5h; without one it is \
    seconds.\n\nExit codes: the command's own (128 and the signal's number when one ended \
    it); 126 when it cannot be run, 127 when there is none; 1 error, 2 usage, 3 held by another, 4 lost or \
    interrupted, 5 unknown (the server did not answer, and may have done it)";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Remove stale references and orphaned tags, under a lock.
    #[command(after_help = EXIT_CODES)]
    Sweep(SweepArgs),
    /// Show what a sweep would do; writes nothing and takes no lock.
    #[command(after_help = EXIT_CODES)]
    Plan(SweepArgs),
    /// Run a command under a renewed lock and pass its exit code on.
    ///
    /// The command finds the fence of its grant in TAGSWEEP_FENCE: what it writes elsewhere can be refused there
    /// when a larger fence has been seen.
    #[command(
        after_help = LOCK_EXIT_CODES,
        override_usage = "tagsweep lock [OPTIONS] <NAME> -- <COMMAND>..."
    )]
    Lock(LockArgs),
    /// Become a command that does not outlive its parent.
    #[command(hide = true)]
    Run(RunArgs),
    /// Show who holds a lock, who waits for it, and what happened to it.
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
    /// Take a lock away from its holder and hand it to the first who waits.
    #[command(after_help = EXIT_CODES)]
    ForceRelease(ForceReleaseArgs),
    /// Show the last fifty sweeps.
    #[command(after_help = EXIT_CODES)]
    History(HistoryArgs),
    /// Print the statistics of locks and sweeps as OpenMetrics text.
    #[command(after_help = EXIT_CODES)]
    Metrics(MetricsArgs),
    /// Look at a server, and say what stands in the way of locks and sweeps.
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Print the rule that gives a user of the server what tagsweep needs, and no more.
    #[command(after_help = ACL_HELP)]
    Acl(AclArgs),
    /// Write a small tagged cache, sweep it, and show what happened.
    Demo(DemoArgs),
    /// Write the man pages, or what a shell needs to complete the command line.
    Generate(GenerateArgs),
}

const DEFAULT_URL: &str = "redis://127.0.0.1:6379";

/// The server.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// redis://[user:password@]host[:port][/db], rediss://… for TLS, or unix:///path[?db=N&user=U&pass=P]; valkey://
    /// and valkeys:// are the same. Default: the environment's REDIS_URL, where a password is hidden from other users of
    /// the machine, or redis://127.0.0.1:6379.
    #[arg(long)]
    pub url: Option<String>,
    /// Stands before every key, as phpredis' OPT_PREFIX does.
    #[arg(long, default_value = "")]
    pub prefix: OsString,
    /// Longest time that one call to the server may take.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "5s")]
    pub timeout: Duration,
    /// Certificate authority to trust instead of the system's (PEM file).
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate (PEM file).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM file).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

impl ServerArgs {
    pub fn config(&self) -> tagsweep::Result<Config> {
        let url = self.url.clone().or_else(environment);
        let url = url.as_deref().unwrap_or(DEFAULT_URL);
        let mut config =
            Config::from_url(url)?.prefix(self.prefix.as_bytes()).timeout(self.timeout);
        config.tls.ca = self.tls_ca.as_ref().map(pem).transpose()?;
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            config.tls.identity = Some((pem(cert)?, pem(key)?));
        }
        config.check()?;
        Ok(config)
    }
}

/// What REDIS_URL says; an empty variable is one that is not set.
pub(crate) fn environment() -> Option<String> {
    let url = std::env::var_os("REDIS_URL").filter(|url| !url.is_empty());
    url.map(|url| url.to_string_lossy().into_owned())
}

/// The part of a text from where a server's URL begins, if that holds a user or a password.
pub(crate) fn with_password(text: &str) -> Option<&str> {
    let schemes = ["redis://", "rediss://", "valkey://", "valkeys://", "unix://"];
    let url = schemes.iter().filter_map(|scheme| text.find(scheme)).min().map(|at| &text[at..])?;
    (url.contains('@') || url.contains("pass=")).then_some(url)
}

/// Name of a lock. A server's URL in its place would be asked for at another server, and shown to everybody.
fn lock_name() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(|name| match with_password(&name.to_string_lossy()) {
        Some(_) => Err("a URL with a password is no name of a lock; it goes with --url"),
        None => Ok(name),
    })
}

/// A label of a metric, which must be none of ours.
fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is wanted")?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || !name.chars().all(is_name) || name.starts_with("__") {
        return Err(format!("{name} cannot be the name of a label"));
    }
    match ["lock", "result", "reason", "code", "le"].contains(&name) {
        true => Err(format!("the label {name} is there already")),
        false => Ok((name.to_owned(), value.to_owned())),
    }
}

fn pem(path: &PathBuf) -> tagsweep::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::bad_argument(format!("{}: {e}", path.display())))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Aged {
    /// Count them.
    Keep,
    /// Delete their entries and references.
    Invalidate,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LayoutName {
    /// A set `tag:<tag>` whose members name entries.
    Plain,
}

/// The sweep.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// How the application stores its tags.
    #[arg(long, value_enum, default_value = "plain")]
    pub layout: LayoutName,
    /// What makes a member the key of its entry. Default: the prefix, or nothing, whichever
    /// existing entries prove.
    #[arg(long)]
    pub entry_prefix: Option<OsString>,
    /// Go on although no member leads to an existing entry.
    #[arg(long)]
    pub trust_mapping: bool,
    /// How long a tag must have been left alone before its references may go; at most 1h.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "5s")]
    pub grace: Duration,
    /// Time from a removal to the look whether the entry appeared after all; at most 1h.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "1s")]
    pub verify: Duration,
    /// Age from which a tag counts as aged, 1s to 180d.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub max_tag_age: Option<Duration>,
    /// What to do with aged tags that still have live entries.
    #[arg(long, value_enum, default_value = "keep", requires_if("invalidate", "max_tag_age"))]
    pub on_aged: Aged,
    /// Stop when more than this share of the references would go (1 = never), of all that this sweep and those cut
    /// short that it goes on from have looked at.
    #[arg(long, default_value_t = 1.0)]
    pub max_share: f64,
    /// Stop after this many removed references, at least 1.
    #[arg(long)]
    pub max_removals: Option<u64>,
    /// Stop after this time: nothing more is removed, and what was is verified (--verify, or --grace if that is longer).
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub max_duration: Option<Duration>,
    /// How much longer others may have to wait for the server because of the sweep, 50us to 1s.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "500us")]
    pub max_latency: Duration,
    /// How much of the server's time to take at most, in tenths.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=10))]
    pub effort: u8,
    /// Memory of this process for what is under way and for what waits, such as 64M; at least 4M.
    #[arg(long, value_parser = size, default_value = "64M")]
    pub memory: usize,
    /// Delete an entry whose reference had to be put back: it may have missed an invalidation.
    #[arg(long)]
    pub strict: bool,
    /// Note on the server what is removed until it is verified, for the case of a crash.
    #[arg(long)]
    pub durable: bool,
    /// Remember for this long at most which tags can have nothing stale, and pass them over, 1s to 30d. Entries that
    /// are deleted or evicted meanwhile are found later.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub remember: Option<Duration>,
    /// Begin at the beginning, not where an earlier sweep was cut short.
    #[arg(long)]
    pub fresh: bool,
    /// Name of the lock.
    #[arg(long, default_value = "cache_tag_cleanup")]
    pub lock: OsString,
    /// TTL of the lock, at least 1s; it is extended while the sweep runs.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "30s")]
    pub lock_ttl: Duration,
    /// How long to wait for the lock.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "0s")]
    pub wait: Duration,
    /// Judge, write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object a line, the report last; after that the error, if there was one.
    #[arg(long)]
    pub json: bool,
}

impl SweepArgs {
    pub fn options(&self) -> Options {
        let LayoutName::Plain = self.layout;
        Options {
            entry_prefix: self.entry_prefix.as_deref().map(bytes),
            trust_mapping: self.trust_mapping,
            grace: self.grace,
            verify: self.verify,
            max_tag_age: self.max_tag_age,
            on_aged: match self.on_aged {
                Aged::Keep => OnAged::Keep,
                Aged::Invalidate => OnAged::Invalidate,
            },
            max_share: self.max_share,
            max_removals: self.max_removals,
            max_duration: self.max_duration,
            lock: bytes(&self.lock),
            lock_ttl: self.lock_ttl,
            wait: self.wait,
            dry_run: self.dry_run,
            max_latency: self.max_latency,
            effort: self.effort,
            memory: self.memory,
            strict: self.strict,
            durable: self.durable,
            remember: self.remember,
            resume: !self.fresh,
        }
    }
}

/// The lock.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LockArgs {
    /// What is protected; the lock's key is `lock:NAME`.
    #[arg(value_parser = lock_name())]
    pub name: OsString,
    #[command(flatten)]
    pub server: ServerArgs,
    /// TTL of the lock, renewed while the command runs; "auto" to learn it from the past.
    #[arg(long, value_parser = ttl, value_name = "DURATION", default_value = "30s")]
    pub ttl: Ttl,
    /// How long to wait for the lock.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "0s")]
    pub wait: Duration,
    /// How to wait: in line, or by asking again (for proxies without blocking commands).
    #[arg(long, value_enum, default_value = "line")]
    pub wait_mode: WaitModeName,
    /// The command is ended when it has held the lock for so long; the lock is kept until it has.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub max_hold: Option<Duration>,
    /// The lock stays taken for so long, even when the command ends earlier.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "0s")]
    pub at_least: Duration,
    /// So many replicas must have the grant.
    #[arg(long, default_value_t = 0, value_name = "REPLICAS")]
    pub confirm: u32,
    /// Time between TERM and KILL for a command whose lock is lost, or must not be held longer.
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "5s")]
    pub kill_after: Duration,
    /// Exit code when the lock is held by another.
    #[arg(long, default_value_t = crate::exit::HELD)]
    pub conflict_exit_code: u8,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What `tagsweep lock` starts.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The process that holds the lock.
    pub parent: i32,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What is looked at.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Locks to show. Default: all, found by walking over all keys.
    #[arg(value_parser = lock_name())]
    pub names: Vec<OsString>,
    #[command(flatten)]
    pub server: ServerArgs,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// What is taken away.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "grant", required = true, multiple = false, args = ["fence", "any"])]
pub(crate) struct ForceReleaseArgs {
    /// The lock.
    #[arg(value_parser = lock_name())]
    pub name: OsString,
    #[command(flatten)]
    pub server: ServerArgs,
    /// Fence of the grant that is meant, as `tagsweep status` shows it; another grant is left alone.
    #[arg(long)]
    pub fence: Option<u64>,
    /// Whoever holds it, programs that know no fence included.
    #[arg(long)]
    pub any: bool,
}

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MetricsArgs {
    /// Locks to show. Default: all, found by walking over all keys: name them on a large server.
    #[arg(value_parser = lock_name())]
    pub names: Vec<OsString>,
    #[command(flatten)]
    pub server: ServerArgs,
    /// Replace this file at once, for a textfile collector, instead of printing; "-" for standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A label for every sample, such as server=cache1: where several servers or prefixes are scraped together.
    #[arg(long, value_parser = label, value_name = "NAME=VALUE")]
    pub label: Vec<(String, String)>,
}

/// What is looked back at.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Name of the lock that the sweeps ran under.
    #[arg(long, default_value = "cache_tag_cleanup")]
    pub lock: OsString,
    /// One JSON object a line, newest first.
    #[arg(long, conflicts_with = "html")]
    pub json: bool,
    /// Write a page with plots, complete in itself, instead of printing; "-" for standard output.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WaitModeName {
    /// First come, first served.
    Line,
    /// Exponential back-off.
    Backoff,
}

/// Whom to examine.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// What the user is there for: others need fewer rights.
    #[arg(long = "for", value_enum, default_value = "sweep", value_name = "ROLE")]
    pub role: Role,
    /// Name of the lock that sweeps run under.
    #[arg(long, default_value = "cache_tag_cleanup")]
    pub lock: OsString,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// What somebody is to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Hold locks, wait for them, take them away.
    Lock,
    /// Sweep, with everything that a plan and a lock take.
    Sweep,
    /// See what a sweep would do; writes nothing.
    Plan,
    /// See status, metrics and history; writes nothing.
    Watch,
}

/// Who is allowed what.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AclArgs {
    /// What the user does.
    #[arg(value_enum)]
    pub role: Role,
    /// Name of the user.
    #[arg(long, default_value = "tagsweep")]
    pub user: OsString,
    /// Stands before every key.
    #[arg(long, default_value = "")]
    pub prefix: OsString,
    /// Version of the server, such as 7.0: older ones refuse rules about commands that they do not know.
    /// Default: as new as any.
    #[arg(long, value_parser = version, value_name = "VERSION")]
    pub server_version: Option<(u32, u32)>,
    /// What makes a member the key of its entry, as the sweep is told. Default: any key may be an entry.
    #[arg(long)]
    pub entry_prefix: Option<OsString>,
}

/// The demo.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Server to use, under a prefix of the demo's own. Default: the environment's REDIS_URL, or a
    /// private redis-server.
    #[arg(long)]
    pub url: Option<String>,
    /// Tags to write.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(3..=1_000_000))]
    pub tags: u32,
}

/// What a package installs beside the program.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Generated {
    /// A page for the program and one for each of its commands.
    Man,
    /// Completion for bash.
    Bash,
    /// Completion for fish.
    Fish,
    /// Completion for zsh.
    Zsh,
}

/// What is written where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// What to write.
    #[arg(value_enum)]
    pub what: Generated,
    /// Folder to write it to; it is made where there is none.
    pub folder: PathBuf,
}

pub(crate) fn bytes(text: &OsStr) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// The first two numbers of a version.
fn version(text: &str) -> Result<(u32, u32), String> {
    let mut numbers = text.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err("not a version, such as 7.0".to_owned()),
    }
}

/// A duration, or "auto".
fn ttl(text: &str) -> Result<Ttl, String> {
    if text == "auto" { Ok(Ttl::AUTO) } else { duration(text).map(Ttl::Fixed) }
}

/// Bytes, with K, M or G for powers of 1024.
fn size(text: &str) -> Result<usize, String> {
    let (number, scale) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 1 << 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 1 << 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let number: usize = number.parse().map_err(|_| "not a size, such as 48M or 1G")?;
    number.checked_mul(scale).ok_or_else(|| "out of range".to_owned())
}

/// `250us`, `50ms`, `1.5s`, `2m`, `1h`, `7d`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("unknown unit {unit:?}; use us, ms, s, m, h or d")),
    };
    let number: f64 = number.trim().parse().map_err(|_| "not a number, such as 30s or 1.5h")?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!((size("48M"), size("1g"), size("7")), (Ok(48 << 20), Ok(1 << 30), Ok(7)));
        for wrong in ["", "M", "-1", "1T", "99999999999999999999G", "17179869184G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for wrong in ["", "s", "-1s", "1w", "1e300d", "nan"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
