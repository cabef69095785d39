//! `tagsweep demo`: the whole story on a small cache of its own.

use crate::args::{DemoArgs, environment};
use crate::output::{Place, Screen, print_report};
use crate::{Done, exit, signals};
use redis::Value;
use std::error::Error;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tagsweep::Config;
use tagsweep::connect::Link;
use tagsweep::sweep::{Ended, Flow, Options, Sweep};
use tempfile::TempDir;

/// References of each tag.
const MEMBERS: u32 = 10;

pub(crate) fn demo(args: &DemoArgs) -> Done {
    let given = args.url.clone().or_else(environment);
    let private = given.is_none().then(Private::start).transpose()?;
    let url = given.or(private.as_ref().map(|private| private.url.clone())).unwrap_or_default();
    let prefix = format!("tagsweep-demo:{}:", std::process::id());
    let config = Config::from_url(&url)?.prefix(prefix.as_str());
    let label = config.label();
    let lock = OsStr::new("cache_tag_cleanup");
    let place = Place { server: label.clone(), prefix: OsStr::new(&prefix), lock };
    let stop = signals::stop_flag()?;
    let mut link = Link::new(config.clone())?;
    say!("Writing {} tags of {MEMBERS} references each to {label}", args.tags);
    say!("  a third live, a third half stale, a third orphaned");
    write(&mut link, &prefix, args.tags)?;
    say!("Sweeping. The tags are young, so the sweep waits for its grace (1 s and a tick).");
    let options = Options { grace: Duration::from_secs(1), ..Options::default() };
    let mut screen = Screen::new(false);
    let ended = Sweep::new(config, options)?.run(&mut |progress| {
        screen.show(progress);
        if stop.load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue }
    });
    screen.end();
    let left = clear(&mut link, &prefix, args.tags)?;
    match ended? {
        Ended::Swept(report) => {
            print_report(&report, &place);
            let how = if report.complete {
                "each with live references only"
            } else {
                "not all of them judged"
            };
            say!("{left} tags are left, {how}.");
            Ok(if report.complete { exit::DONE } else { exit::PARTIAL })
        }
        Ended::Held(holder) => {
            say!("Somebody else sweeps under the demo's own name: {holder}");
            Ok(exit::HELD)
        }
    }
}

/// Tag n: members 0..10; live ones have an entry.
fn write(link: &mut Link, prefix: &str, tags: u32) -> Result<(), Box<dyn Error>> {
    for n in 0..tags {
        let is_live = |i: &u32| n % 3 == 0 || (n % 3 == 1 && i.is_multiple_of(2));
        let entry = |i| [format!("{prefix}item:{n}:{i}"), "a cached value".to_owned()];
        let entries: Vec<_> = (0..MEMBERS).filter(is_live).flat_map(entry).collect();
        if !entries.is_empty() {
            ask(link, "MSET", &entries)?;
        }
        let members = (0..MEMBERS).map(|i| format!("item:{n}:{i}"));
        let words: Vec<_> = std::iter::once(format!("{prefix}tag:t{n}")).chain(members).collect();
        ask(link, "SADD", &words)?;
    }
    Ok(())
}

/// Removes what the demo wrote; answers how many of its tags the sweep left.
fn clear(link: &mut Link, prefix: &str, tags: u32) -> Result<u32, Box<dyn Error>> {
    let mut left = 0;
    for n in 0..tags {
        left += u32::from(ask(link, "UNLINK", &[format!("{prefix}tag:t{n}")])? == Value::Int(1));
        let entries: Vec<_> = (0..MEMBERS).map(|i| format!("{prefix}item:{n}:{i}")).collect();
        ask(link, "UNLINK", &entries)?;
    }
    let lock = format!("{prefix}lock:cache_tag_cleanup");
    let ours = ["fence", "stats", "runs", "mapping", "checkpoint", "history", "sweeps"];
    ask(link, "UNLINK", &ours.map(|what| format!("{{{lock}}}:{what}")))?;
    Ok(left)
}

fn ask(link: &mut Link, command: &str, words: &[impl AsRef<str>]) -> Result<Value, Box<dyn Error>> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    Ok(link.bare(redis::cmd(command).arg(words))?.extract_error()?)
}

/// A redis-server of the demo's own, which ends with it.
struct Private {
    server: Child,
    url: String,
    _folder: TempDir,
}

impl Private {
    fn start() -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tagsweep-demo-").tempdir()?;
        let socket = folder.path().join("s").display().to_string();
        let home = folder.path().display().to_string();
        let mut server = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--dir", &home, "--unixsocket", &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C is for us: without a server nothing could be cleared away.
            .process_group(0)
            .spawn()
            .map_err(|e| {
                let what = format!("no redis-server ({e}); install it or give --url");
                std::io::Error::new(e.kind(), what)
            })?;
        let lines = server.stdout.take().map(|out| BufReader::new(out).lines());
        let ready = |line: &String| line.to_lowercase().contains("ready to accept connections");
        if !lines.into_iter().flatten().map_while(Result::ok).any(|line| ready(&line)) {
            let _ = server.wait();
            return Err(std::io::Error::other("redis-server ended before it was ready"));
        }
        Ok(Self { server, url: format!("unix://{socket}"), _folder: folder })
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
