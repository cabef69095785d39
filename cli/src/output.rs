//! What people and machines are shown of a sweep.

use crate::args::ServerArgs;
use crate::history::utc;
use indicatif::{ProgressBar, ProgressStyle};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tagsweep::error::{plain, printable};
use tagsweep::lock::Holder;
use tagsweep::sweep::{Progress, Report, Sample};

/// Shows progress: a bar on a terminal, a JSON line a second for machines, nothing otherwise.
pub(crate) enum Meter {
    Bar(ProgressBar),
    Json,
    Silent,
}

/// A meter that is looked at thousands of times a second and moves a few times.
pub(crate) struct Screen {
    meter: Meter,
    every: Duration,
    shown: Instant,
}

const BAR_STEPS: u64 = 1000;

impl Screen {
    pub fn new(json: bool) -> Self {
        let (meter, every) = match (json, std::io::stderr().is_terminal()) {
            (true, _) => (Meter::Json, Duration::from_secs(1)),
            (false, true) => (Meter::Bar(bar()), Duration::from_millis(100)),
            (false, false) => (Meter::Silent, Duration::MAX),
        };
        Self { meter, every, shown: Instant::now() }
    }

    pub fn show(&mut self, progress: &Progress) {
        if self.shown.elapsed() < self.every {
            return;
        }
        self.shown = Instant::now();
        match &self.meter {
            Meter::Bar(bar) if has_room(std::io::stderr()) => {
                bar.set_position((progress.share * BAR_STEPS as f64) as u64);
                bar.set_message(message(progress));
            }
            Meter::Json if has_room(std::io::stdout()) => {
                print_json("progress", progress.report, course(progress));
            }
            _ => {}
        }
    }

    pub fn end(&self) {
        if let Meter::Bar(bar) = &self.meter {
            bar.finish_and_clear();
        }
    }
}

/// Whether a line can be written there at once. Whoever does not read (a pipe that is full, a terminal that was stopped)
/// misses some, and holds no sweep up.
fn has_room(out: impl AsFd) -> bool {
    let mut asked = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {wide_msg}");
    let bar = ProgressBar::new(BAR_STEPS);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn message(progress: &Progress) -> String {
    let report = progress.report;
    let rate = progress.rate();
    let slowed = match progress.effort {
        effort if effort < 9.95 => format!(", effort {effort:.1}"),
        _ => String::new(),
    };
    let waits = if progress.waiting { ", waiting for grace and verification" } else { "" };
    // First, for a narrow terminal cuts the end off.
    let left = progress.left.map_or(String::new(), |left| format!("{} left, ", span(left)));
    format!(
        "{left}{} tags, {} references ({rate:.0}/s), {} removed{slowed}{waits}",
        report.tags_seen, report.references_checked, report.references_removed
    )
}

/// Where something was swept: several servers, and many nights, may share one log.
pub(crate) struct Place<'a> {
    pub server: String,
    pub prefix: &'a OsStr,
    pub lock: &'a OsStr,
}

impl Place<'_> {
    /// For machines, with the time.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let text = |text: &OsStr| plain(&text.to_string_lossy()).into();
        let mut line = serde_json::Map::new();
        line.insert("at".into(), now().into());
        if !self.server.is_empty() {
            line.insert("server".into(), self.server.clone().into());
        }
        line.insert("prefix".into(), text(self.prefix));
        line.insert("lock".into(), text(self.lock));
        line
    }
}

/// Our own clock's time, as RFC 3339 has it.
fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    utc(now.as_secs()).replace(' ', "T") + "Z"
}

/// Prints the report, and to people what it warns of.
pub(crate) fn print_report(report: &Report, place: &Place) {
    say!("{}", heading(report, place));
    figures(report).iter().for_each(|line| say!("  {line}"));
    for Sample { tag, entry, why } in &report.samples {
        let (tag, entry) = (printable(tag.as_bytes()), printable(entry.as_bytes()));
        say!("  example     {tag} would lose {entry}: {why}");
    }
    for warning in &report.warnings {
        complain!("warning: {warning}");
    }
}

fn heading(report: &Report, place: &Place) -> String {
    let done = match (report.dry_run, report.complete) {
        (true, true) => "Planned".to_owned(),
        (false, true) => "Swept".to_owned(),
        (_, false) => format!("Ended early ({})", report.reason.text()),
    };
    let (took, worked) = (report.duration.as_secs_f64(), report.server.as_secs_f64());
    let under = match place.prefix.is_empty() {
        true => String::new(),
        false => format!(" under {}", plain(&place.prefix.to_string_lossy())),
    };
    let (server, at) = (&place.server, now());
    format!(
        "{done} on {server}{under} at {at}, in {took:.2} s ({worked:.2} s of the server's time)"
    )
}

fn figures(report: &Report) -> Vec<String> {
    let gone = if report.dry_run { "to remove" } else { "removed" };
    let mut lines = vec![
        format!(
            "tags        {} seen, {} {gone}, {} pruned, {} aged, {} unchanged, {} skipped (other types)",
            report.tags_seen,
            report.tags_removed,
            report.tags_pruned,
            report.tags_aged,
            report.tags_unchanged,
            report.tags_skipped
        ),
        format!(
            "references  {} checked, {} {gone}, {} restored; {} entries invalidated",
            report.references_checked,
            report.references_removed,
            report.references_restored,
            report.entries_invalidated
        ),
        format!("memory      about {} reclaimed", size(report.bytes_reclaimed)),
        format!(
            "rounds      {}, each kept the server for {} (median), {} (slowest hundredth)",
            report.rounds,
            span(report.round_p50),
            span(report.round_p99)
        ),
    ];
    if report.references_skipped > 0 {
        lines.push(format!("left alone  {} references of tags in use", report.references_skipped));
    }
    if report.resumed_at > 0.0 {
        let (at, before) = (report.resumed_at * 100.0, report.removed_before);
        lines
            .push(format!("went on     at {at:.0} %; {before} references had been removed before"));
    }
    lines
}

/// What an operator can do about a holder that is gone for good.
pub(crate) fn way_out(server: &ServerArgs, lock: &OsStr, holder: &Holder) -> String {
    let Some(fence @ 1..) = holder.fence else { return String::new() };
    let mut words = format!("tagsweep force-release --fence {fence}");
    if !server.prefix.is_empty() {
        words.push_str(&format!(" --prefix={}", for_shell(&server.prefix)));
    }
    let is_like_an_option = lock.as_encoded_bytes().starts_with(b"-");
    words.push_str(if is_like_an_option { " -- " } else { " " });
    words.push_str(&for_shell(lock));
    format!("; if that is wrong: {words} (on the same server)")
}

/// A word as a shell takes it; one that cannot be shown as it is, as bash does.
fn for_shell(word: &OsStr) -> String {
    let shown = plain(&word.to_string_lossy());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,".contains(c);
    if OsStr::new(&shown) != word {
        return format!("$'{}'", word.as_encoded_bytes().escape_ascii());
    }
    match !shown.is_empty() && shown.chars().all(is_plain) {
        true => shown,
        false => format!("'{}'", shown.replace('\'', "'\\''")),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// How far it is.
fn course(progress: &Progress) -> serde_json::Map<String, serde_json::Value> {
    let mut line = serde_json::Map::new();
    line.insert("share".into(), progress.share.into());
    line.insert("left_s".into(), progress.left.map(|left| left.as_secs_f64()).into());
    line.insert("keys".into(), progress.keys.into());
    line.insert("effort".into(), progress.effort.into());
    line.insert("references_per_s".into(), progress.rate().into());
    line
}

/// One line of JSON: the report's keys, with a type, and what else there is to say.
pub(crate) fn print_json(
    kind: &str,
    report: &Report,
    mut line: serde_json::Map<String, serde_json::Value>,
) {
    line.insert("type".into(), kind.into());
    if let Ok(serde_json::Value::Object(figures)) = serde_json::to_value(report) {
        line.extend(figures);
    }
    say!("{}", serde_json::Value::Object(line));
}

/// Writes a file in place of an older one: whoever reads it finds the old text or the new, never a part,
/// however many write it at once. What is no file is written into; "-" is standard output.
pub(crate) fn replace(path: &Path, text: impl AsRef<[u8]>) -> std::io::Result<()> {
    if path == Path::new("-") {
        return std::io::stdout().write_all(text.as_ref()).map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe => e,
            kind => std::io::Error::new(kind, format!("the output could not be written: {e}")),
        });
    }
    let written = match std::fs::metadata(path) {
        Ok(known) if !known.is_file() => {
            File::options().write(true).open(path).and_then(|mut it| it.write_all(text.as_ref()))
        }
        // What a link leads to is replaced, not the link.
        Ok(known) => path.canonicalize().and_then(|path| swap(&path, text.as_ref(), Some(known))),
        Err(_) => swap(path, text.as_ref(), None),
    };
    written
        .map_err(|e| std::io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display())))
}

/// Writes beside a file, under a name that no other process takes, and puts that in its place.
fn swap(path: &Path, text: &[u8], known: Option<Metadata>) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let _ = std::fs::remove_file(&beside);
    let written = File::create_new(&beside).and_then(|mut file| {
        known.map_or(Ok(()), |known| file.set_permissions(known.permissions()))?;
        file.write_all(text)?;
        std::fs::rename(&beside, path)
    });
    written.inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// A span as people say it.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        0.0 => "0 s".to_owned(),
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
