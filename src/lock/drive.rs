//! Does what an attempt's steps say: speaks to the server, listens, sleeps.

use crate::clock::Moment;
use crate::connect::Link;
use crate::error::{Error, Result};
use crate::lock::SharedLink;
use crate::lock::attempt::{Attempt, Event, Step};
use crate::lock::guard;
use crate::lock::lease::{Holder, Lease};
use crate::lock::line::{Heard, Line};
use crate::lock::protocol::{Answer, Keys, Request};
use std::time::Duration;

/// How often a waiter looks up: for a signal, or a caller who has had enough. No traffic.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Time beyond the end of patience to leave the line in order.
const FAREWELL: Duration = Duration::from_millis(150);

/// Asked before and while waiting, with who has the lock; false ends the wait.
pub type GoOn<'a> = &'a mut dyn FnMut(&Holder) -> bool;

/// An attempt under way.
pub(crate) struct Drive<'a> {
    pub keys: &'a Keys,
    pub link: &'a SharedLink,
    pub go_on: GoOn<'a>,
    pub end: Moment,
    pub line: Option<Line>,
}

impl Drive<'_> {
    /// Drives an attempt to its end.
    pub fn run(mut self, attempt: &mut Attempt) -> Result<std::result::Result<Lease, Holder>> {
        let mut step = attempt.begin();
        loop {
            let event = match step {
                Step::Done(outcome) => {
                    self.put_line_away();
                    return Ok(outcome);
                }
                Step::Ask(request) => self.ask(&request)?,
                Step::Join(request) => self.join(&request)?,
                Step::Listen(until) => self.listen(until, attempt.holder()),
                Step::Pause(until) => self.pause(until, attempt.holder()),
                Step::HangUp => self.hang_up(),
            };
            step = attempt.on(event, Moment::now());
        }
    }

    /// One request, repeated while its answer is lost.
    fn ask(&mut self, request: &Request) -> Result<Event> {
        if let Request::Leave { .. } = request {
            return Ok(self.leave(request));
        }
        let mut link = guard(self.link);
        let asked = match &self.line {
            // While waiting, a call ends with our patience, not with its own.
            Some(_) => {
                let patience = self.end.left() + FAREWELL;
                link.hurry(patience, |link| ask(link, self.keys, request))
            }
            None => ask(&mut link, self.keys, request),
        };
        asked.map(|asked| Event::Answered(asked.answer, asked.sent))
    }

    /// Leaving is a courtesy: what is left behind goes with the next claim, or with time.
    fn leave(&mut self, request: &Request) -> Event {
        let mut link = guard(self.link);
        let (script, args) = request.script(self.keys);
        let _ = script.run(&mut link, &args, self.farewell());
        Event::Answered(Answer::Left, Moment::now())
    }

    fn farewell(&self) -> Moment {
        self.end.max(Moment::now()) + FAREWELL
    }

    fn join(&mut self, request: &Request) -> Result<Event> {
        self.put_line_away();
        let mut link = guard(self.link);
        let patience = self.end.left() + FAREWELL;
        let joined = link.hurry(patience, |link| {
            link.persist(|link, deadline| Line::join(link, self.keys, request, deadline))
        });
        let (line, answer) = joined.map_err(|e| e.key(&self.keys.lock))?;
        self.line = Some(line);
        Ok(Event::Answered(answer, Moment::now()))
    }

    fn listen(&mut self, until: Moment, holder: &Holder) -> Event {
        let Some(line) = &mut self.line else { return Event::Broken };
        loop {
            match line.listen(until.min(Moment::now() + LOOK_UP)) {
                Ok(Heard::Baton(baton)) => return Event::Baton(baton),
                Ok(Heard::Refused) => return Event::CannotBlock,
                Ok(Heard::Nothing) if until.passed() => return Event::Time,
                Ok(Heard::Nothing) if !(self.go_on)(holder) => {
                    self.end = Moment::now();
                    return Event::Cancel;
                }
                Ok(Heard::Nothing) => {}
                Err(_) => return Event::Broken,
            }
        }
    }

    fn pause(&mut self, until: Moment, holder: &Holder) -> Event {
        while !until.passed() {
            if !(self.go_on)(holder) {
                return Event::Cancel;
            }
            std::thread::sleep(until.left().min(LOOK_UP));
        }
        Event::Time
    }

    fn hang_up(&mut self) -> Event {
        let farewell = self.farewell();
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
    let (script, args) = request.script(keys);
    let named = |e: Error| e.key(&keys.lock);
    let mut repeated = false;
    let (reply, sent) = link
        .persist(|link, deadline| {
            // A connection made meanwhile would make the lease look younger than it is.
            link.connect(deadline)?;
            let sent = Moment::now();
            let reply = script.run(link, &args, deadline);
            reply.inspect_err(|e| repeated |= e.is_unknown()).map(|reply| (reply, sent))
        })
        .map_err(named)?;
    Ok(Asked { answer: request.read(&reply).map_err(named)?, sent, repeated })
}
