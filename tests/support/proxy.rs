//! A proxy between a client and a private server that executes a request and loses its answer, or runs
//! another script than it was asked for: what no real server can be told to do.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tagsweep::Config;

/// What happens to a request that holds the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is executed, the answer is lost, the connection stays open and silent.
    DropReply,
    /// It is executed, the answer is lost, the connection is closed.
    CloseAfter,
    /// It is not executed, the connection is closed.
    CloseBefore,
    /// It is executed so many milliseconds late.
    Delay(u64),
    /// It is executed at once, and its answer comes so many milliseconds late.
    DelayReply(u64),
}

/// A rule: the next `times` requests that hold `word`.
struct Rule {
    word: &'static str,
    fault: Fault,
    times: u32,
}

/// One connection: its last request, whether answers are swallowed, and how long the next one is kept back (ms).
#[derive(Default)]
struct Passage {
    last: Vec<u8>,
    silent: bool,
    lag: u64,
}

pub struct Proxy {
    socket: PathBuf,
    rule: Arc<Mutex<Option<Rule>>>,
    passages: Arc<Mutex<Vec<Arc<Mutex<Passage>>>>>,
}

/// A word that is replaced by another of the same length wherever it is sent.
#[derive(Clone, Debug)]
pub struct Swap {
    pub from: Vec<u8>,
    pub to: Vec<u8>,
    /// What may be the beginning of the word.
    tail: Vec<u8>,
}

impl Swap {
    pub fn new(from: &str, to: &str) -> Self {
        assert_eq!(from.len(), to.len());
        Self { from: from.into(), to: to.into(), tail: Vec::new() }
    }

    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.tail);
        all.extend(bytes);
        let length = self.from.len();
        let mut at = 0;
        while let Some(found) = all[at..].windows(length).position(|part| part == self.from) {
            at += found + length;
            all[at - length..at].copy_from_slice(&self.to);
        }
        let begun = (1..length).rev().find(|n| all[at..].ends_with(&self.from[..*n]));
        self.tail = all.split_off(all.len() - begun.unwrap_or(0));
        all
    }
}

impl Proxy {
    /// In front of the server at `target`; listens beside it.
    pub fn start(target: &Path) -> Self {
        Self::swapping(target, None)
    }

    /// The same, with a word replaced in every request.
    pub fn swapping(target: &Path, swap: Option<Swap>) -> Self {
        let socket = target.with_extension("proxy");
        let listener = UnixListener::bind(&socket).unwrap();
        let rule = Arc::new(Mutex::new(None));
        let (shared, target) = (Arc::clone(&rule), target.to_owned());
        let passages = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&passages);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (rule, target, swap) = (Arc::clone(&shared), target.clone(), swap.clone());
                let passage = Arc::new(Mutex::new(Passage::default()));
                all.lock().unwrap().push(Arc::clone(&passage));
                std::thread::spawn(move || carry(client, &target, &rule, swap, &passage));
            }
        });
        Self { socket, rule, passages }
    }

    /// From now on answers are swallowed on each connection whose last request held `word`; how many
    /// there are.
    pub fn silence(&self, word: &str) -> usize {
        let passages = self.passages.lock().unwrap();
        let silenced = passages.iter().filter(|passage| {
            let mut passage = passage.lock().unwrap();
            let asked = holds(&passage.last, word);
            passage.silent |= asked;
            asked
        });
        silenced.count()
    }

    pub fn config(&self) -> Config {
        Config::from_url(&format!("unix://{}", self.socket.display())).unwrap()
    }

    /// The next `times` requests that hold `word` meet a fault.
    pub fn break_next(&self, word: &'static str, fault: Fault, times: u32) {
        *self.rule.lock().unwrap() = Some(Rule { word, fault, times });
    }

    /// Nobody can connect any more; connections live on.
    pub fn close(&self) {
        std::fs::remove_file(&self.socket).unwrap();
    }

    /// Faults that were not met.
    pub fn left(&self) -> u32 {
        self.rule.lock().unwrap().as_ref().map_or(0, |rule| rule.times)
    }
}

/// Requests one way, answers the other, until either side ends.
fn carry(
    mut client: UnixStream,
    target: &Path,
    rule: &Mutex<Option<Rule>>,
    mut swap: Option<Swap>,
    passage: &Arc<Mutex<Passage>>,
) {
    let Ok(mut server) = UnixStream::connect(target) else { return };
    let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let heard = Arc::clone(passage);
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = answers.read(&mut buffer) {
            let lag = std::mem::take(&mut heard.lock().unwrap().lag);
            std::thread::sleep(std::time::Duration::from_millis(lag));
            if !heard.lock().unwrap().silent && back.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 1 << 20];
    while let Ok(n @ 1..) = client.read(&mut buffer) {
        passage.lock().unwrap().last = buffer[..n].to_vec();
        let fault = strike(rule, &buffer[..n]);
        if fault == Some(Fault::CloseBefore) {
            break;
        }
        match fault {
            Some(Fault::Delay(ms)) => std::thread::sleep(std::time::Duration::from_millis(ms)),
            Some(Fault::DelayReply(ms)) => passage.lock().unwrap().lag = ms,
            Some(_) => passage.lock().unwrap().silent = true,
            None => {}
        }
        let swapped = swap.as_mut().map(|swap| swap.pass(&buffer[..n]));
        if server.write_all(swapped.as_deref().unwrap_or(&buffer[..n])).is_err() {
            break;
        }
        if fault == Some(Fault::CloseAfter) {
            // The server answers in order: when it has answered this, the request was executed.
            let _ = server.shutdown(Shutdown::Write);
            let _ = client.shutdown(Shutdown::Both);
            return;
        }
    }
    // A client that died is gone for the server, too.
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
}

fn strike(rule: &Mutex<Option<Rule>>, request: &[u8]) -> Option<Fault> {
    let mut rule = rule.lock().unwrap();
    let rule = rule.as_mut().filter(|rule| rule.times > 0)?;
    holds(request, rule.word).then(|| {
        rule.times -= 1;
        rule.fault
    })
}

fn holds(request: &[u8], word: &str) -> bool {
    request.windows(word.len()).any(|window| window == word.as_bytes())
}
