//! `Tagsweep\TagCleanupManager`.

use crate::exceptions::{Class, exception, from_core, invalid, type_error};
use crate::gate::Gate;
use crate::options::{self, Given};
use crate::report::SweepReport;
use crate::target::config;
use crate::weak::{Array, Int};
use ext_php_rs::exception::{PhpException, PhpResult};
use ext_php_rs::prelude::*;
use ext_php_rs::types::{ZendCallable, ZendClassObject, Zval};
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
        let mut config = config(redis, NAME)?;
        let given = Given::of(&options)?;
        config.prefix = given.string("prefix")?.unwrap_or(config.prefix);
        config.timeout = given.seconds("timeout")?.unwrap_or(config.timeout);
        let options = options::sweep(&given, maxTagAge.0)?;
        Ok(Self {
            config,
            options,
            listener: RefCell::default(),
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

    /// Calls `listener(SweepReport $report, float $share)` about ten times a second; null ends that.
    pub fn on_progress<'a>(
        self_: &'a mut ZendClassObject<TagCleanupManager>,
        listener: Option<&Zval>,
    ) -> &'a mut ZendClassObject<TagCleanupManager> {
        let listener = listener.filter(|listener| !listener.is_null());
        if listener.is_some_and(|listener| !listener.is_callable()) {
            type_error(format!(
                "{NAME}::onProgress(): Argument #1 ($listener) must be callable or null"
            ))
            .throw();
        } else {
            self_.listener.replace(listener.map(Zval::shallow_clone));
        }
        self_
    }

    /// Ends a running cleanup soon: what was removed is verified, the lock released.
    pub fn stop(&self) {
        self.stopping.set(true);
    }
}

impl TagCleanupManager {
    /// Runs a sweep with signals held back between rounds.
    fn sweep(&self, options: Options) -> PhpResult<Report> {
        if self.running.replace(true) {
            return Err(invalid("this cleanup is running already"));
        }
        self.stopping.set(false);
        self.report.replace(None);
        let gate = Gate::close();
        let mut thrown = None;
        let ended = self.run(options, &gate, &mut thrown);
        self.running.set(false);
        drop(gate); // after the lock was released: a signal that ends the process is delivered here
        match (thrown, ended?) {
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
    ) -> PhpResult<Ended> {
        let mut sweep = Sweep::new(self.config.clone(), options).map_err(from_core)?;
        let mut told = Instant::now();
        let ended = sweep.run(&mut |progress| {
            if told.elapsed() >= EVERY {
                told = Instant::now();
                *thrown = thrown.take().or(gate.open(|| self.tell(progress)).err());
            }
            let stop = thrown.is_some() || self.stopping.get() || gate.must_stop();
            if stop { Flow::Stop } else { Flow::Continue }
        });
        self.report.replace(sweep.report().cloned());
        ended.map_err(from_core)
    }

    /// Calls the listener; false from it means stop.
    fn tell(&self, progress: &Progress) -> PhpResult<()> {
        let Some(listener) = self.listener.borrow().as_ref().map(Zval::shallow_clone) else {
            return Ok(());
        };
        let report = SweepReport::from(progress.report.clone());
        let mut object = Zval::new();
        ext_php_rs::convert::IntoZval::set_zval(report, &mut object, false)?;
        let answer = ZendCallable::new_owned(listener)
            .and_then(|call| call.try_call(vec![&object, &progress.share]))
            .map_err(PhpException::from)?;
        if answer.is_false() {
            self.stopping.set(true);
        }
        Ok(())
    }
}
