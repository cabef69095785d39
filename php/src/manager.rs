//! `Tagsweep\TagCleanupManager`.

use crate::exceptions::{Class, exception, from_core, type_error};
use crate::frame::refuse_twice;
use crate::gate::{self, Gate};
use crate::options::{self, Given};
use crate::report::SweepReport;
use crate::target::config;
use crate::weak::{Array, Int, type_name};
use ext_php_rs::exception::{PhpException, PhpResult};
use ext_php_rs::prelude::*;
use ext_php_rs::types::{ZendCallable, ZendClassObject, ZendHashTable, Zval};
use ext_php_rs::zend::ExecutorGlobals;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tagsweep::Config;
use tagsweep::sweep::{Ended, Flow, Options, Progress, Reason, Report, Sweep};

/// Sweeps cache tags.
///
/// Methods take `&self`: a listener may call the object that is calling it.
#[php_class]
#[php(name = "Tagsweep\\TagCleanupManager")]
pub(crate) struct TagCleanupManager {
    config: Config,
    options: Options,
    listener: RefCell<Option<Zval>>,
    logger: RefCell<Option<Zval>>,
    report: RefCell<Option<Report>>,
    running: Cell<bool>,
    stopping: Cell<bool>,
}

const NAME: &str = "Tagsweep\\TagCleanupManager";

/// Time between two calls of the listener.
const EVERY: Duration = Duration::from_millis(100);

#[php_impl]
impl TagCleanupManager {
    #[php(defaults(maxTagAge = Int(604_800), options = Array::default()))]
    pub fn __construct(redis: &Zval, maxTagAge: Int, options: Array) -> PhpResult<Self> {
        refuse_twice::<Self>()?;
        let given = Given::of(&options)?;
        // Rounds take the server longer than anybody should wait awake.
        let busy_poll = Duration::ZERO;
        let config = Config { busy_poll, ..config(redis, NAME, &given)? };
        let options = options::sweep(&given, maxTagAge.0)?;
        Ok(Self {
            config,
            options,
            listener: RefCell::default(),
            logger: RefCell::default(),
            report: RefCell::default(),
            running: Cell::default(),
            stopping: Cell::default(),
        })
    }

    /// Sweeps; the number of tags removed.
    pub fn cleanup(&self) -> PhpResult<i64> {
        let report = self.sweep(self.options.clone())?;
        match report.reason {
            Reason::Lost => Err(exception(
                Class::LockLost,
                format!(
                    "The lock for cache tag cleanup was lost; {} tags were removed before, none after.",
                    report.tags_removed
                ),
            )),
            _ => Ok(i64::try_from(report.tags_removed).unwrap_or(i64::MAX)),
        }
    }

    /// What a cleanup would do. Writes nothing, takes no lock.
    pub fn plan(&self) -> PhpResult<SweepReport> {
        let options = Options { dry_run: true, ..self.options.clone() };
        self.sweep(options).map(SweepReport::from)
    }

    /// Figures of the last run, also of one that threw.
    pub fn last_report(&self) -> Option<SweepReport> {
        self.report.borrow().clone().map(SweepReport::from)
    }

    /// Calls `listener(SweepReport $report, float $share, ?float $left)` about ten times a second, with
    /// the share of the keys walked and the seconds left; null ends that.
    pub fn on_progress<'a>(
        self_: &'a mut ZendClassObject<TagCleanupManager>,
        listener: Option<&Zval>,
    ) -> &'a mut ZendClassObject<TagCleanupManager> {
        let listener = listener.filter(|listener| !listener.is_null());
        match listener.map(closure_of).transpose() {
            Ok(listener) => drop(self_.listener.replace(listener)),
            Err(e) => e.throw(),
        }
        self_
    }

    /// Tells a PSR-3 logger (any object with its `log()`) how cleanups end; null ends that.
    pub fn set_logger<'a>(
        self_: &'a mut ZendClassObject<TagCleanupManager>,
        logger: Option<&Zval>,
    ) -> &'a mut ZendClassObject<TagCleanupManager> {
        let logger = logger.filter(|logger| !logger.is_null());
        if logger.is_some_and(|logger| log_of(logger).is_none()) {
            type_error(format!(
                "{NAME}::setLogger(): Argument #1 ($logger) must have the method log() of PSR-3"
            ))
            .throw();
        } else {
            self_.logger.replace(logger.map(Zval::shallow_clone));
        }
        self_
    }

    /// Ends a running cleanup soon: what was removed is verified, the lock released.
    pub fn stop(&self) {
        self.stopping.set(true);
    }
}

/// What is callable where we are called, so that it is wherever we call it: a private method is, too.
fn closure_of(listener: &Zval) -> PhpResult<Zval> {
    if !listener.is_callable() {
        return Err(type_error(format!(
            "{NAME}::onProgress(): Argument #1 ($listener) must be of type ?callable, {} given",
            type_name(listener)
        )));
    }
    ZendCallable::try_from_name("Closure::fromCallable")
        .and_then(|make| make.try_call(vec![listener]))
        .map_err(PhpException::from)
}

impl TagCleanupManager {
    fn sweep(&self, options: Options) -> PhpResult<Report> {
        gate::end(self.sweep_behind_gate(options))
    }

    /// Runs a sweep with signals held back between rounds.
    fn sweep_behind_gate(&self, options: Options) -> PhpResult<Report> {
        if self.running.replace(true) {
            return Err(exception(Class::Reentrant, "this cleanup is running already"));
        }
        self.stopping.set(false);
        self.report.replace(None);
        // A child that a listener forks has nothing to tell.
        let process = std::process::id();
        let gate = Gate::close();
        let mut thrown = None;
        let ended = self.run(options, &gate, &mut thrown);
        self.running.set(false);
        drop(gate); // after the lock was released: a signal that ends the process is delivered here
        if std::process::id() == process {
            gate::call(|| aside_of_exceptions(|| self.log(&ended))).unwrap_or(Ok(()))?;
        }
        match (thrown, ended.map_err(from_core)?) {
            (Some(e), _) => Err(e),
            (None, Ended::Swept(report)) => Ok(report),
            (None, Ended::Held(_)) => Err(exception(
                Class::LockConflicted,
                "Unable to acquire lock for cache tag cleanup.",
            )),
        }
    }

    fn run(
        &self,
        options: Options,
        gate: &Gate,
        thrown: &mut Option<PhpException>,
    ) -> tagsweep::Result<Ended> {
        let mut sweep = Sweep::new(self.config.clone(), options)?;
        let mut last = Instant::now();
        let ended = sweep.run(&mut |progress| {
            if last.elapsed() >= EVERY {
                let told = gate.open(|| gate::call(|| self.tell(progress)));
                *thrown = thrown.take().or(told.and_then(PhpResult::err));
                // From its end: a slow listener gets no more of our time than a quick one.
                last = Instant::now();
            }
            let stop = thrown.is_some() || self.stopping.get() || gate.must_stop();
            if stop { Flow::Stop } else { Flow::Continue }
        });
        self.report.replace(sweep.report().cloned());
        ended
    }

    /// Tells the logger how it ended. What the logger throws is thrown.
    fn log(&self, ended: &tagsweep::Result<Ended>) -> PhpResult<()> {
        let Some(logger) = self.logger.borrow().as_ref().map(Zval::shallow_clone) else {
            return Ok(());
        };
        let (level, message) = match ended {
            Err(e) => ("error", format!("The cache tag cleanup failed: {e}")),
            Ok(Ended::Held(holder)) => {
                ("notice", format!("The cache tag cleanup did not run: {holder}."))
            }
            Ok(Ended::Swept(report)) => (level(report), sentence(report)),
        };
        let report = self.report.borrow().clone();
        let begun = report.is_some();
        let mut context = SweepReport::from(report.unwrap_or_default()).json_serialize()?;
        if !begun {
            let reason = if ended.is_ok() { "held" } else { "error" };
            context.insert("reason", reason).map_err(PhpException::from)?;
        }
        let Some(call) = log_of(&logger) else { return Ok(()) };
        ZendCallable::new_owned(call)
            .and_then(|call| call.try_call(vec![&level, &message, &context]))
            .map_err(PhpException::from)?;
        Ok(())
    }

    /// Calls the listener; false from it means stop.
    fn tell(&self, progress: &Progress) -> PhpResult<()> {
        let Some(listener) = self.listener.borrow().as_ref().map(Zval::shallow_clone) else {
            return Ok(());
        };
        let report = SweepReport::from(progress.report.clone());
        let mut object = Zval::new();
        ext_php_rs::convert::IntoZval::set_zval(report, &mut object, false)?;
        let left = progress.left.map(|left| left.as_secs_f64());
        let (share, effort, rate) = (progress.share, progress.effort, progress.rate());
        let answer = ZendCallable::new_owned(listener)
            .and_then(|call| call.try_call(vec![&object, &share, &left, &effort, &rate]))
            .map_err(PhpException::from)?;
        if answer.is_false() {
            self.stopping.set(true);
        }
        Ok(())
    }
}

/// Runs what calls into PHP also when an exception, or `exit`, is on its way out: the engine would run
/// nothing. What is thrown meanwhile gives way to it.
fn aside_of_exceptions(run: impl FnOnce() -> PhpResult<()>) -> PhpResult<()> {
    let Some(first) = ExecutorGlobals::take_exception() else { return run() };
    let _ = run();
    drop(ExecutorGlobals::take_exception());
    ExecutorGlobals::get_mut().exception = first.into_raw();
    Ok(())
}

/// The callable `[$logger, 'log']`, if there is such a method.
fn log_of(logger: &Zval) -> Option<Zval> {
    let mut pair = ZendHashTable::new();
    pair.push(logger.shallow_clone()).ok()?;
    pair.push("log").ok()?;
    let mut call = Zval::new();
    call.set_hashtable(pair);
    (logger.is_object() && call.is_callable()).then_some(call)
}

fn level(report: &Report) -> &'static str {
    match report.reason {
        Reason::Complete if report.warnings.is_empty() => "info",
        Reason::Complete | Reason::Stopped => "notice",
        _ => "warning",
    }
}

fn sentence(report: &Report) -> String {
    let did = if report.dry_run { "would remove" } else { "removed" };
    let (tags, references) = (report.tags_removed, report.references_removed);
    let seconds = report.duration.as_secs_f64();
    let how = report.reason.text();
    let warned: String =
        report.warnings.iter().map(|warning| format!(" Warning: {warning}.")).collect();
    format!(
        "The cache tag cleanup {did} {tags} tags and {references} references in {seconds:.2} s: {how}.{warned}"
    )
}
