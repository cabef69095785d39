//! One pass over all tags of a server, under a lock, that removes stale references and loses none.
//!
//! # How a reference goes
//! An atomic "entry absent? remove the reference" is not enough, because writers are not atomic: one
//! that has added the reference and is about to write the entry would lose it. So a reference goes
//! in three steps:
//! 1. **Grace.** The tag has not been touched for the grace period, so no writer is between reference
//!    and entry. Idle time tells, as far as the server keeps it (not while it saves, not under an LFU
//!    or LRM policy); where it does not tell, the entry must be seen absent twice, a grace apart.
//! 2. **Confirm.** One script, on the server, at one instant: the lock is still ours, the entry is
//!    still absent, the reference goes.
//! 3. **Verify.** A moment later the entry is looked for again, and the reference put back if it
//!    appeared after all. What had no idle time as evidence is verified a second time, a grace later.
//!
//! Nothing is removed at all before some member is proven to map to an existing entry: a wrong prefix
//! would make every entry look absent. A tag key is never deleted as a whole; the server drops a set
//! with its last member.
//!
//! # How it is done
//! Rounds of commands travel two at a time, so that the server works while we read (one at a time where
//! its time is not all ours). Each question
//! (`Ask`) is answered by replies that lead to further questions; a question whose answer is lost
//! is asked again. The size of a round is steered by `Pace`. Memory is bounded: when the quarantine
//! is full, the walk pauses.
//!
//! Cost: one SCAN over all keys; per tag OBJECT IDLETIME, SSCAN and EXISTS; per tag with something
//! stale a share of a script and one EXISTS more, and one for each member if not all are. A command
//! inside a script costs the server three times what it costs outside, so scripts are asked to do
//! only what must be done at one instant. A sweep that remembers asks for a record and
//! SCARD, and for the rest only where those do not vouch for the tag.

mod batch;
mod checkpoint;
mod history;
mod judge;
mod memory;
mod options;
mod pace;
mod page;
mod proof;
mod quarantine;
mod records;
mod report;
mod round;
mod run;
mod seam;
mod slip;
mod walk;

pub use history::{Run, Totals, history, totals};
pub use options::{OnAged, Options};
pub use report::{Flow, Progress, Reason, Report, Sample};

use crate::clock::Moment;
use crate::config::Config;
use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Plain;
use crate::lock::{ASIDE, Contender, Holder, Outcome, SharedLink, acquire_within, guard, release};
use crate::topology::{Facts, time_of};
use run::Running;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a sweep came out.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It ran; [`Report::reason`] tells whether to the end.
    Swept(Report),
    /// Another sweep holds the lock; nothing was done.
    Held(Holder),
}

/// A sweep of one server.
///
/// ```no_run
/// use tagsweep::{Config, sweep::{Ended, Flow, Options, Sweep}};
///
/// let mut sweep = Sweep::new(Config::from_url("redis://127.0.0.1")?, Options::default())?;
/// match sweep.run(&mut |progress| {
///     eprintln!("{:.0} %", progress.share * 100.0);
///     Flow::Continue
/// })? {
///     Ended::Swept(report) => println!("{} tags removed", report.tags_removed),
///     Ended::Held(holder) => println!("another sweep runs: {holder}"),
/// }
/// # Ok::<(), tagsweep::Error>(())
/// ```
#[derive(Debug)]
pub struct Sweep {
    link: SharedLink,
    options: Options,
    report: Option<Report>,
}

/// Longest time that giving the lock back may take after an error.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Sweep {
    /// A sweep with a connection of its own. Does not connect yet.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with the first option out of bounds.
    pub fn new(config: Config, options: Options) -> Result<Self> {
        Self::on(Arc::new(Mutex::new(Link::new(config)?)), options)
    }

    /// A sweep on a link that others use too; they wait while it runs.
    ///
    /// # Errors
    /// As [`Sweep::new`].
    pub fn on(link: SharedLink, options: Options) -> Result<Self> {
        options.check()?;
        Contender::new(&guard(&link), &options.lock, options.lock_options())?;
        Ok(Self { link, options, report: None })
    }

    /// Sweeps. `watch` is called between any two rounds, a few thousand times a second; what it
    /// answers decides whether the sweep goes on.
    ///
    /// # Errors
    /// What keeps the server from answering; [`Unproven`](ErrorKind::Unproven) when no member maps to
    /// an existing entry. What was done before is in [`Sweep::report`].
    pub fn run(&mut self, watch: &mut dyn FnMut(&Progress) -> Flow) -> Result<Ended> {
        self.report = None;
        let mut survey = survey(&mut guard(&self.link))?;
        let mut contender =
            Contender::new(&guard(&self.link), &self.options.lock, self.options.lock_options())?;
        let process = std::process::id();
        let held = self.lock(&mut contender, watch)?;
        if std::process::id() != process {
            return Err(run::forked());
        }
        if let Some(holder) = held {
            let busy = history::busy(&contender.keys().lock);
            let _ = guard(&self.link).hurry(LAST_WORDS, |link| history::write(link, &busy));
            return Ok(Ended::Held(holder));
        }
        let link = &mut guard(&self.link);
        if !self.options.wait.is_zero() {
            survey = survey_again(&mut contender, link)?;
        }
        let layout = Plain::new(link.config().prefix.clone(), self.options.entry_prefix.clone());
        let mut run = Running::new(link, &mut contender, &self.options, &layout, survey);
        let swept = run.finish(watch);
        if std::process::id() != process {
            link.drop_connection();
            return Err(run::forked());
        }
        let mut report = run.report();
        let commands = run.entry(swept.as_ref().err().map(ToString::to_string));
        // After an error or a loss there may be nothing to release; the TTL ends what is left.
        if swept.is_err() {
            link.drop_connection(); // replies may be due on it
        }
        let written = link.hurry(LAST_WORDS, |link| {
            // Others wait for the lock; nobody waits for the history.
            let _ = release(&mut contender, link);
            history::write(link, &commands)
        });
        if let Err(e) = written {
            report.warnings.push(format!("no history and no metric knows of this sweep: {e}"));
        }
        self.report = Some(report.clone());
        let of_a_plan = |e: Error| if self.options.dry_run { e.of_a_question() } else { e };
        swept
            .map(|()| Ended::Swept(report))
            .map_err(|e| of_a_plan(e).server(&link.config().label()))
    }

    /// Figures of the last run, also of one that ended with an error.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// Takes the lock, unless nothing will be written; answers who has it.
    fn lock(
        &self,
        contender: &mut Contender,
        watch: &mut dyn FnMut(&Progress) -> Flow,
    ) -> Result<Option<Holder>> {
        if self.options.dry_run {
            return Ok(None);
        }
        let idle = Report::default();
        let mut go_on = |_: &Holder| {
            let effort = f64::from(self.options.effort);
            let (share, keys, left, waiting) = (0.0, 0, None, true);
            watch(&Progress { report: &idle, share, keys, left, effort, waiting }) == Flow::Continue
        };
        match acquire_within(contender, &self.link, self.options.wait, &mut go_on) {
            Ok(Outcome::Held(holder)) => Ok(Some(holder)),
            Ok(Outcome::Acquired { .. }) => Ok(None),
            Err(e) => {
                // It may have been granted unheard.
                let _ = guard(&self.link).hurry(ASIDE, |link| release(contender, link));
                Err(e)
            }
        }
    }
}

/// What a server said of itself.
struct Survey {
    facts: Facts,
    keys: u64,
    /// When it was asked, and when it had answered.
    sent: Moment,
    heard: Moment,
}

/// Asks once more when the lock was waited for: another server may have taken the first one's place.
fn survey_again(contender: &mut Contender, link: &mut Link) -> Result<Survey> {
    survey(link).inspect_err(|_| {
        let _ = link.hurry(LAST_WORDS, |link| release(contender, link));
    })
}

/// Asks the server what it is, and how many keys it holds.
fn survey(link: &mut Link) -> Result<Survey> {
    let sent = Moment::now();
    let replies = link.ask_all(&["INFO", "TIME", "DBSIZE"].map(redis::cmd))?;
    let heard = Moment::now();
    let mut replies = replies.into_iter();
    // A user without the permission is told nothing, and nothing is assumed.
    let info = replies.next().and_then(|r| redis::from_redis_value::<String>(r).ok());
    let time = replies.next().and_then(|r| redis::from_redis_value::<(u64, u64)>(r).ok());
    let keys = replies.next().and_then(|r| redis::from_redis_value::<u64>(r).ok());
    let facts = Facts::read(&info.unwrap_or_default(), time.map_or(Duration::ZERO, time_of));
    if facts.replica {
        return Err(Error::new(ErrorKind::Refused, "this server is a replica")
            .server(&link.config().label())
            .advice("name the primary: what a replica does not see yet is no evidence"));
    }
    if facts.cluster {
        return Err(Error::new(ErrorKind::Refused, "this server is part of a Cluster")
            .server(&link.config().label())
            .advice("sweeps of a Cluster are not supported"));
    }
    Ok(Survey { facts, keys: keys.unwrap_or(0), sent, heard })
}
