//! The error matrix of `tests/errors.tsv`, and servers that answer as its rows say.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// What a server answers, and what becomes of it.
pub struct Row {
    /// Empty for a connection that is closed instead.
    pub answer: &'static str,
    pub kind: &'static str,
    pub again: bool,
    pub c: &'static str,
    pub exit: i32,
}

pub fn matrix() -> Vec<Row> {
    let rows = include_str!("../errors.tsv").lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let [answer, kind, again, _php, c, exit] =
            line.split('\t').collect::<Vec<_>>().try_into().expect("six columns");
        Row { answer, kind, again: again == "yes", c, exit: exit.parse().expect("a number") }
    };
    rows.map(row).collect()
}

/// A server that answers everything with one error, and counts what it was asked.
pub struct Refusing {
    folder: TempDir,
    asked: Arc<AtomicU32>,
}

impl Refusing {
    pub fn with(answer: &'static str) -> Self {
        let (folder, asked) = (super::folder(), Arc::new(AtomicU32::new(0)));
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(client, answer, &count));
            }
        });
        Self { folder, asked }
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("s").display())
    }

    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(client: UnixStream, answer: &str, count: &AtomicU32) {
    let mut asks = BufReader::new(client.try_clone().unwrap());
    let mut client = client;
    while command(&mut asks).is_some() {
        count.fetch_add(1, Ordering::SeqCst);
        if answer.is_empty() || client.write_all(format!("-{answer}\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads one command; nothing when the client is gone.
fn command(asks: &mut BufReader<UnixStream>) -> Option<()> {
    for _ in 0..number(asks, '*')? {
        let mut word = vec![0; number(asks, '$')? + 2];
        asks.read_exact(&mut word).ok()?;
    }
    Some(())
}

fn number(asks: &mut BufReader<UnixStream>, sign: char) -> Option<usize> {
    let mut line = String::new();
    asks.read_line(&mut line).ok().filter(|read| *read > 0)?;
    Some(line.trim().strip_prefix(sign).unwrap().parse().unwrap())
}
