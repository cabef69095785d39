//! Does what an attempt's steps say: speaks to the server, listens, sleeps.

use crate::clock::Moment;
use crate::connect::{Link, Spare, passes};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::SharedLink;
use crate::lock::attempt::{Attempt, Event, Step};
use crate::lock::guard;
use crate::lock::lease::{Holder, Lease, tokens};
use crate::lock::line::{Heard, Line};
use crate::lock::protocol::{Answer, Keys, Request};
use crate::lock::track::{News, Tracker};
use crate::lock::wait::{WATCH, pause};
use std::time::Duration;

/// How often a waiter looks up: for a signal, or a caller who has had enough. No traffic.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Longest time to wait for the answer to a look before the baton is listened for again: well below the time
/// in which it must be claimed. A server that is farther away than that cannot be waited for in line.
const LOOK: Duration = Duration::from_millis(400);

/// Time to hear what has come.
const GLIMPSE: Duration = Duration::from_millis(1);

/// Longest time for a place in the line, with a connection of its own.
const JOIN: Duration = Duration::from_secs(1);

/// Time beyond the end of patience to leave the line in order.
const FAREWELL: Duration = Duration::from_millis(150);

/// Time for a last word however late it is.
const LEAST_FAREWELL: Duration = Duration::from_millis(20);

/// Asked before and while waiting, with who has the lock; false ends the wait.
pub type GoOn<'a> = &'a mut dyn FnMut(&Holder) -> bool;

/// An attempt under way.
pub(crate) struct Drive<'a> {
    keys: &'a Keys,
    link: &'a SharedLink,
    go_on: GoOn<'a>,
    end: Moment,
    /// Until when somebody who does not wait has patience.
    call: Moment,
    /// The process that waits. Whoever is asked whether to go on may fork: the child has no place in the line.
    pid: u32,
    /// There is a wait budget.
    waits: bool,
    line: Option<Line>,
    /// On which the server tells when lock or line change, and which of the link's connections was in use when it was
    /// made.
    tracker: Option<(Tracker, u64)>,
    /// The server has answered, and failures since then.
    heard: bool,
    failures: u32,
    /// What was borne with, since when nothing was heard of the lock.
    borne: Option<Error>,
    /// An acquisition may have been granted, for its answer was lost.
    doubtful: bool,
}

impl<'a> Drive<'a> {
    /// From now on, with this wait budget.
    pub fn new(keys: &'a Keys, link: &'a SharedLink, go_on: GoOn<'a>, budget: Duration) -> Self {
        let (end, waits) = (Moment::now() + budget, !budget.is_zero());
        let pid = std::process::id();
        let call = guard(link).deadline();
        Self {
            keys,
            link,
            go_on,
            end,
            call,
            pid,
            waits,
            line: None,
            tracker: None,
            heard: false,
            failures: 0,
            borne: None,
            doubtful: false,
        }
    }

    /// Drives an attempt to its end.
    pub fn run(mut self, attempt: &mut Attempt) -> Result<std::result::Result<Lease, Holder>> {
        let ended = self.go(attempt);
        if let (Ok(Ok(_)), Some(request)) = (&ended, attempt.farewell()) {
            // A moment, for the lease is running.
            self.end = self.end.min(Moment::now());
            self.leave(&request);
        }
        if let (Err(e), Some(request)) = (&ended, attempt.farewell())
            && !passes(e)
        {
            self.end = self.end.min(Moment::now());
            let hung_up = self.hang_up();
            self.leave(&request);
            if let Event::HungUp(Some(baton)) = hung_up {
                self.leave(&attempt.unwanted(baton));
            }
        }
        ended
    }

    fn go(&mut self, attempt: &mut Attempt) -> Result<std::result::Result<Lease, Holder>> {
        let mut step = attempt.begin();
        loop {
            let event = match step {
                Step::Done(outcome) => {
                    self.put_line_away();
                    return match (outcome, self.borne.take()) {
                        (Err(holder), _) if attempt.came_late() && holder == Holder::default() => {
                            Err(came_late().key(&self.keys.lock))
                        }
                        // Who called it off wants to know no more.
                        (Err(_), Some(fault)) if !attempt.is_cancelled() => Err(self.told(fault)),
                        (outcome, _) => Ok(outcome),
                    };
                }
                Step::Ask(request) => {
                    let asked = self.ask(&request, attempt.holder());
                    self.or_bear(asked, &request, attempt)?
                }
                Step::Join(request) => match self.called_off(attempt.holder()) {
                    Some(end) => end,
                    None => {
                        let joined = self.join(&request);
                        self.or_bear(joined, &request, attempt)?
                    }
                },
                Step::Track(request) => {
                    let asked = self.track(&request, attempt.holder());
                    self.or_bear(asked, &request, attempt)?
                }
                Step::Listen(until) => {
                    if !attempt.is_told() {
                        self.tracker = None;
                    }
                    self.listen(until, attempt.holder())?
                }
                Step::Pause(until) => self.pause(until, attempt.holder()),
                Step::HangUp => self.hang_up(),
            };
            if std::process::id() != self.pid {
                // Without a word: ticket and connection are the parent's.
                return Ok(Err(attempt.holder().clone()));
            }
            step = attempt.on(event, Moment::now());
        }
    }

    /// One request, repeated while its answer is lost.
    fn ask(&mut self, request: &Request, holder: &Holder) -> Result<Event> {
        if let Request::Leave { .. } = request {
            return Ok(self.leave(request));
        }
        let patience = self.patience();
        if let Request::Wait { .. } = request {
            return self.look(request, Moment::now() + patience, holder);
        }
        let mut link = guard(self.link);
        let asked = link.hurry(patience, |link| ask(link, self.keys, request))?;
        Ok(Event::Answered(asked.answer, asked.sent))
    }

    /// A look at the lock from the line, in which the baton may come while its answer does not.
    fn look(&mut self, request: &Request, end: Moment, holder: &Holder) -> Result<Event> {
        let mut refusal = None;
        loop {
            let patience = LOOK.min(end.left());
            let asked = guard(self.link).hurry(patience, |link| ask_once(link, self.keys, request));
            let fault = match asked {
                Ok(asked) => return Ok(Event::Answered(asked.answer, asked.sent)),
                Err(fault) => fault,
            };
            if end.passed() || !is_bearable(&fault) {
                return Err(refusal.unwrap_or(fault));
            }
            // A server that answers is asked again when it may have changed its mind.
            let rest = if fault.code().is_some() { WATCH } else { LOOK_UP };
            refusal = Some(fault).filter(|fault| fault.code().is_some()).or(refusal);
            match self.listen((Moment::now() + rest).min(end), holder)? {
                Event::Time | Event::Changed | Event::LineChanged | Event::Untold => {
                    if let Some(end) = self.called_off(holder) {
                        return Ok(end);
                    }
                }
                heard => return Ok(heard),
            }
        }
    }

    /// A look at the lock after which we are told of changes; without, if that cannot be had.
    fn track(&mut self, request: &Request, holder: &Holder) -> Result<Event> {
        let sent = Moment::now();
        match self.look_tracked(request) {
            // Without a ticket it may be another server than the one where we stand in line.
            Some(Answer::Waiting { ticket, .. }) if ticket.is_empty() => {}
            Some(answer) if self.tracker.is_some() => return Ok(Event::Tracked(answer, sent)),
            Some(answer) => return Ok(Event::Answered(answer, sent)),
            None => {}
        }
        // It took its time, in which the baton may have come.
        self.tracker = None;
        match self.listen(Moment::now(), holder)? {
            Event::Time => self.called_off(holder).map_or_else(|| self.ask(request, holder), Ok),
            heard => Ok(heard),
        }
    }

    /// The answer, if one came; the tracker is there if it will tell.
    fn look_tracked(&mut self, request: &Request) -> Option<Answer> {
        let refuses = || self.tracker.is_none() && guard(self.link).refuses_to_tell();
        if self.patience() < LOOK || refuses() {
            return None;
        }
        match &mut self.tracker {
            Some((tracker, _)) => tracker.look(self.keys, request, Moment::now() + LOOK / 2).ok(),
            None => self.begin_to_track(request).ok(),
        }
    }

    fn begin_to_track(&mut self, request: &Request) -> Result<Answer> {
        let link = guard(self.link);
        let (config, beside) = (link.config().clone(), link.connection());
        drop(link);
        let (tracker, answer) = Tracker::start(&config, self.keys, request, Moment::now() + LOOK)?;
        match tracker {
            Some(tracker) => self.tracker = Some((tracker, beside)),
            None => guard(self.link).note_refusal_to_tell(),
        }
        Ok(answer)
    }

    /// What the server has told.
    fn news(&mut self) -> Option<Event> {
        let (tracker, beside) = self.tracker.as_mut()?;
        let told = tracker.news(self.keys);
        // The link may lead elsewhere now. Whoever uses it is not waited for.
        let moved = self.link.try_lock().is_ok_and(|link| link.connection() != *beside);
        match told {
            Ok(news) if !moved => news.map(|news| match news {
                News::Lock => Event::Changed,
                News::Line => Event::LineChanged,
            }),
            _ => {
                self.tracker = None;
                Some(Event::Untold)
            }
        }
    }

    /// Time for what is left to say: a little beyond the end of patience, whenever we come to it; who only
    /// tries has as much for all of it as a call has.
    fn patience(&self) -> Duration {
        let end = if self.waits { self.end + FAREWELL } else { self.call };
        end.left().max(LEAST_FAREWELL)
    }

    /// While we wait, a server out of reach is waited for, too. Not after a claim of which nobody knows what
    /// it came to.
    fn or_bear(
        &mut self,
        event: Result<Event>,
        request: &Request,
        attempt: &mut Attempt,
    ) -> Result<Event> {
        let fault = match event {
            Ok(event) => {
                // How leaving went nobody looks at.
                self.doubtful &= !matches!(request, Request::Acquire { .. });
                if !matches!(request, Request::Leave { .. }) {
                    (self.heard, self.failures, self.borne) = (true, 0, None);
                }
                return Ok(event);
            }
            Err(fault) => fault,
        };
        let again = match request {
            Request::Wait { .. } | Request::Acquire { claim: None, .. } => true,
            Request::Acquire { .. } => !fault.is_unknown(),
            _ => false,
        };
        self.heard |= fault.code().is_some();
        // Who was never answered may have a wrong address.
        let gives_up = !self.heard || !attempt.has_time(Moment::now());
        // That there is no place in the line says nothing of the lock, of which we have just heard.
        let no_place = is_no_place(request, &fault);
        let gives_up = gives_up && !(self.heard && no_place);
        if !again || gives_up || !(is_bearable(&fault) || no_place) {
            return Err(self.told(fault));
        }
        if fault.is_unknown() && matches!(request, Request::Acquire { .. }) {
            attempt.doubt();
            self.doubtful = true;
        }
        let draw = f64::from(Moment::now().micros() as u32 % 1000) / 1000.0;
        let rest = pause(self.failures.saturating_add(4), draw).min(self.end.left());
        self.failures += 1;
        if !no_place {
            self.borne = Some(fault);
        }
        std::thread::sleep(rest);
        Ok(self.called_off(attempt.holder()).unwrap_or(Event::Broken))
    }

    /// What ends a wait, as it is to be told: an earlier request may have been granted.
    fn told(&self, fault: Error) -> Error {
        if self.doubtful { Error::of_a_lost_answer(fault) } else { fault }
    }

    /// Leaving is a courtesy: what is left behind goes with the next claim, or with time. A link that has not been used
    /// since the address moved finds that out first.
    fn leave(&mut self, request: &Request) -> Event {
        let mut link = guard(self.link);
        let deadline = (Moment::now() + self.patience()).min(link.deadline());
        let (script, args) = request.script(self.keys);
        let mut leave = || script.run(&mut link, &args, deadline);
        if leave().is_err_and(|e| e.code() == Some("READONLY")) {
            let _ = leave();
        }
        Event::Answered(Answer::Left, Moment::now())
    }

    /// Without the link while that takes its time: others use it.
    fn join(&mut self, request: &Request) -> Result<Event> {
        self.put_line_away();
        let deadline = Moment::now() + self.patience().min(JOIN);
        let kept = guard(self.link).take_spare();
        let joined = match self.join_on(kept, request, deadline) {
            Err(e) if e.code() == Some("NOSCRIPT") => {
                guard(self.link).drop_spares();
                self.join_on(None, request, deadline)
            }
            joined => joined,
        };
        let label = || guard(self.link).config().label();
        let (line, answer) = joined.map_err(|e| e.key(&self.keys.lock).server(&label()))?;
        self.line = Some(line);
        Ok(Event::Answered(answer, Moment::now()))
    }

    fn join_on(
        &self,
        kept: Option<Spare>,
        request: &Request,
        deadline: Moment,
    ) -> Result<(Line, Answer)> {
        let link = guard(self.link);
        let (config, made_beside) = (link.config().clone(), link.connection());
        drop(link);
        let spare = match kept {
            Some(spare) => spare,
            None => {
                let name = format!("tagsweep-{}", tokens()?.1);
                Spare { made_beside, ..Spare::dial(&config, name, deadline)? }
            }
        };
        Line::join(spare, self.keys, request, deadline)
    }

    /// # Errors
    /// Something else has the name of the baton.
    fn listen(&mut self, until: Moment, holder: &Holder) -> Result<Event> {
        loop {
            let Some(line) = &mut self.line else { return Ok(Event::Broken) };
            // What has come is heard, also when time is up.
            let now = Moment::now();
            match line.listen(until.clamp(now + GLIMPSE, now + LOOK_UP)) {
                Ok(Heard::Baton(baton)) => return Ok(Event::Baton(baton)),
                Ok(Heard::Refused) => return Ok(Event::CannotBlock),
                Ok(Heard::Nothing) if until.passed() => return Ok(Event::Time),
                Ok(Heard::Nothing) => {
                    if let Some(end) = self.called_off(holder) {
                        return Ok(end);
                    }
                    if let Some(news) = self.news() {
                        return Ok(news);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WrongType => {
                    return Err(e.key(&self.keys.baton).server(&guard(self.link).config().label()));
                }
                Err(_) => return Ok(Event::Broken),
            }
        }
    }

    /// The event that ends a wait which is not to go on; a child that was forked meanwhile does not wait.
    fn called_off(&mut self, holder: &Holder) -> Option<Event> {
        let goes_on = (self.go_on)(holder) && std::process::id() == self.pid;
        (!goes_on).then(|| {
            self.end = Moment::now();
            Event::Cancel
        })
    }

    fn pause(&mut self, until: Moment, holder: &Holder) -> Event {
        while !until.passed() {
            if let Some(end) = self.called_off(holder) {
                return end;
            }
            std::thread::sleep(until.left().min(LOOK_UP));
        }
        Event::Time
    }

    fn hang_up(&mut self) -> Event {
        // A connection that is dead does not answer.
        let farewell = Moment::now() + self.patience().min(LOOK);
        let Some(mut line) = self.line.take() else { return Event::HungUp(None) };
        let mut link = guard(self.link);
        match line.hang_up(&mut link, farewell) {
            Ok(baton) => {
                line.put_away(&mut link);
                Event::HungUp(baton)
            }
            Err(_) => Event::HungUp(None),
        }
    }

    fn put_line_away(&mut self) {
        if let Some(line) = self.line.take() {
            line.put_away(&mut guard(self.link));
        }
    }
}

/// Whether a wait goes on after that: a server that does not write now may do so in a moment, or be replaced.
fn is_bearable(fault: &Error) -> bool {
    passes(fault)
        || matches!(fault.code(), Some("READONLY" | "NOREPLICAS" | "MISCONF" | "MAXCLIENTS"))
}

/// Whether it means that there is no place in the line, which is not the only way to wait.
fn is_no_place(request: &Request, fault: &Error) -> bool {
    matches!(request, Request::Wait { join: true, .. }) && fault.kind() == ErrorKind::Refused
}

fn came_late() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the lock was granted, but the lease was over before the answer came",
    )
    .advice("give it a longer TTL")
}

/// An answered request.
pub(crate) struct Asked {
    pub answer: Answer,
    /// When the answered attempt was begun.
    pub sent: Moment,
    /// An attempt before it may have taken effect.
    pub repeated: bool,
}

/// Sends an idempotent request until it is answered.
pub(crate) fn ask(link: &mut Link, keys: &Keys, request: &Request) -> Result<Asked> {
    let mut repeated = false;
    let asked = link.persist(|link, deadline| {
        let asked = ask_by(link, keys, request, deadline);
        asked.inspect_err(|e| repeated |= e.is_unknown())
    });
    let may_be_done = |e: Error| if repeated { Error::of_a_lost_answer(e) } else { e };
    asked.map(|asked| Asked { repeated, ..asked }).map_err(|e| may_be_done(e).key(&keys.lock))
}

/// Sends a request once, with all the time that there is.
fn ask_once(link: &mut Link, keys: &Keys, request: &Request) -> Result<Asked> {
    let deadline = link.deadline();
    ask_by(link, keys, request, deadline).map_err(|e| e.key(&keys.lock))
}

fn ask_by(link: &mut Link, keys: &Keys, request: &Request, deadline: Moment) -> Result<Asked> {
    let (script, args) = request.script(keys);
    // A connection made meanwhile would make the lease look younger than it is.
    link.check(deadline)?;
    let sent = Moment::now();
    let reply = script.run(link, &args, deadline)?;
    // What answers another question is not heard again.
    let answer = request.read(&reply).inspect_err(|_| link.drop_connection())?;
    Ok(Asked { answer, sent, repeated: false })
}
