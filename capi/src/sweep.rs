//! The sweep, as C sees it.

use crate::boundary::{ErrorText, Fault, guarded, infallible};
use crate::client::tagsweep_client;
use crate::handle::{bytes, put, shared, whole};
use crate::status::{TAGSWEEP_HELD, TAGSWEEP_LOST, TAGSWEEP_OK, TAGSWEEP_STOPPED};
use std::ffi::{CString, c_char, c_void};
use std::time::Duration;
use tagsweep::error::printable;
use tagsweep::sweep::{Ended, Flow, OnAged, Options, Progress, Reason, Report, Sweep};
use tagsweep::{Config, Error};

/// What a sweep is told. Fill it with tagsweep_options_init, then change what should differ.
#[repr(C)]
pub struct tagsweep_options {
    /// sizeof(tagsweep_options), set by tagsweep_options_init; lets the library tell old programs.
    pub size: usize,
    /// What makes a member the key of its entry; NULL: the prefix, or nothing, whichever existing
    /// entries prove. Default: NULL.
    pub entry_prefix: *const c_char,
    /// Its length.
    pub entry_prefix_len: usize,
    /// Go on although no member leads to an existing entry. Default: false.
    pub trust_mapping: bool,
    /// Judge, write nothing, take no lock. Default: false.
    pub dry_run: bool,
    /// Delete the entries of aged tags, then their references; otherwise aged tags are only counted.
    /// Default: false.
    pub invalidate_aged: bool,
    /// How long a tag must have been left alone before its references may go (ms): longer than the slowest
    /// writer takes from reference to entry. Default: 5000; at most 3600000.
    pub grace_ms: u64,
    /// Time from a removal to the look whether the entry appeared after all (ms). Default: 1000; at most
    /// 3600000.
    pub verify_ms: u64,
    /// Age from which a tag counts as aged (ms), 1 s to 180 days; 0 to not ask. Default: 0.
    pub max_tag_age_ms: u64,
    /// Stop when more than this share of the references would go, of all that this sweep and those cut short that it
    /// goes on from have looked at, greater than 0; 1 for never. Default: 1.
    pub max_share: f64,
    /// Stop after this many removed references; 0 for no limit. Default: 0.
    pub max_removals: u64,
    /// Stop after this time (ms): nothing more is removed, and what was is verified, after `verify_ms`, or
    /// `grace_ms` if that is longer; 0 for no limit. Default: 0.
    pub max_duration_ms: u64,
    /// Name of the lock, 1 to 65536 bytes; NULL for "cache_tag_cleanup". Default: NULL.
    pub lock: *const c_char,
    /// Its length.
    pub lock_len: usize,
    /// TTL of the lock (ms); it is extended while the sweep runs. Default: 30000; at least 1000.
    pub lock_ttl_ms: u64,
    /// How long to wait for the lock (ms). Default: 0.
    pub wait_ms: u64,
    /// How much longer others may have to wait for the server because of the sweep (us). Default: 500; 50 to
    /// 1000000.
    pub max_latency_us: u64,
    /// How much of the server's time to take at most, in tenths: 1 to 10. Default: 10.
    pub effort: u32,
    /// Memory for what is under way and for what waits (bytes). Default: 67108864; at least 4194304.
    pub memory: usize,
    /// Delete an entry whose reference had to be put back: it may have missed an invalidation.
    /// Default: false.
    pub strict: bool,
    /// Note on the server what is removed until it is verified, for the case of a crash. Default: false.
    pub durable: bool,
    /// Go on where an earlier sweep was cut short. Default: true.
    pub resume: bool,
    /// Remember for this long at most (ms) which tags can have nothing stale, and pass them over: 1 s to 30
    /// days; 0 to look at every tag. Default: 0.
    pub remember_ms: u64,
}

/// What a sweep did; of a dry run, what would be done.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tagsweep_report {
    /// Tags read.
    pub tags_seen: u64,
    /// Tags that are gone because their last reference was removed.
    pub tags_removed: u64,
    /// Tags that lost some references and live on.
    pub tags_pruned: u64,
    /// Tags not used for the maximum age.
    pub tags_aged: u64,
    /// Keys under the pattern that hold another type; never touched.
    pub tags_skipped: u64,
    /// Tags passed over because nothing in them can have become stale since an earlier sweep.
    pub tags_unchanged: u64,
    /// References whose entry was looked for.
    pub references_checked: u64,
    /// References removed.
    pub references_removed: u64,
    /// References to absent entries that were left alone, for their tag was in use.
    pub references_skipped: u64,
    /// References put back because their entry appeared after all.
    pub references_restored: u64,
    /// Scores corrected.
    pub scores_healed: u64,
    /// Entries deleted because their tag was aged, or, in a strict sweep, restored.
    pub entries_invalidated: u64,
    /// Memory given back, estimated (bytes).
    pub bytes_reclaimed: u64,
    /// Pages of the walk over the keys.
    pub pages: u64,
    /// Duration (s).
    pub duration_s: f64,
    /// Time that the server worked for us (s).
    pub server_s: f64,
    /// Rounds of commands; each kept the server from others for a moment.
    pub rounds: u64,
    /// How long: the median (s).
    pub round_p50_s: f64,
    /// And of the slowest hundredth (s).
    pub round_p99_s: f64,
    /// Share of the keys before the place at which an earlier sweep was cut short and this one began;
    /// else 0.
    pub resumed_at: f64,
    /// References that had been removed by then, since a sweep was complete.
    pub removed_before: u64,
    /// Time that the rest will take (s), negative while that cannot be told; 0 at the end.
    pub left_s: f64,
    /// How much of the server's time is taken at most now, in tenths; 0 at the end.
    pub effort: f64,
    /// Whether every tag was seen and judged.
    pub complete: bool,
    /// How it ended: "complete", "lost", "stopped", "max_duration", "max_removals", "max_share" or "error" (static
    /// storage); NULL while it runs, and where nothing was done.
    pub reason: *const c_char,
}

impl Default for tagsweep_report {
    fn default() -> Self {
        Self { reason: std::ptr::null(), ..Self::from(&Report::default()) }
    }
}

fn name_of(reason: Reason) -> *const c_char {
    let name = match reason {
        Reason::Complete => c"complete",
        Reason::Lost => c"lost",
        Reason::Stopped => c"stopped",
        Reason::MaxDuration => c"max_duration",
        Reason::MaxRemovals => c"max_removals",
        Reason::MaxShare => c"max_share",
        _ => c"error",
    };
    name.as_ptr()
}

impl From<&Report> for tagsweep_report {
    fn from(report: &Report) -> Self {
        Self {
            tags_seen: report.tags_seen,
            tags_removed: report.tags_removed,
            tags_pruned: report.tags_pruned,
            tags_aged: report.tags_aged,
            tags_skipped: report.tags_skipped,
            tags_unchanged: report.tags_unchanged,
            references_checked: report.references_checked,
            references_removed: report.references_removed,
            references_skipped: report.references_skipped,
            references_restored: report.references_restored,
            scores_healed: report.scores_healed,
            entries_invalidated: report.entries_invalidated,
            bytes_reclaimed: report.bytes_reclaimed,
            pages: report.pages,
            duration_s: report.duration.as_secs_f64(),
            server_s: report.server.as_secs_f64(),
            rounds: report.rounds,
            round_p50_s: report.round_p50.as_secs_f64(),
            round_p99_s: report.round_p99.as_secs_f64(),
            resumed_at: report.resumed_at,
            removed_before: report.removed_before,
            left_s: 0.0,
            effort: 0.0,
            complete: report.complete,
            reason: name_of(report.reason),
        }
    }
}

/// Called by a running sweep, a few times a second at least and up to some thousand times a second. `report` is not
/// NULL and is valid during the call; `share` says how much is done, 0 to 1, and is below 1 until all is. Answers
/// 0 to go on and anything else to stop soon. Must not unwind or jump out.
pub type tagsweep_progress = Option<
    unsafe extern "C" fn(context: *mut c_void, report: *const tagsweep_report, share: f64) -> i32,
>;

/// Called by a plan for each of some references that would go, at the end: the tag's key, the key of the entry, and why.
/// None is NULL; bytes that are no printable text are escaped. They are valid during the call only. Must not unwind or
/// jump out.
pub type tagsweep_sample = Option<
    unsafe extern "C" fn(
        context: *mut c_void,
        tag: *const c_char,
        entry: *const c_char,
        why: *const c_char,
    ),
>;

/// Fills in the defaults. NULL is allowed.
///
/// # Safety
/// `options` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_options_init(options: *mut tagsweep_options) {
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    infallible((), || {
        let usual = Options::default();
        let filled = tagsweep_options {
            size: size_of::<tagsweep_options>(),
            entry_prefix: std::ptr::null(),
            entry_prefix_len: 0,
            trust_mapping: usual.trust_mapping,
            dry_run: usual.dry_run,
            invalidate_aged: usual.on_aged == OnAged::Invalidate,
            grace_ms: ms(usual.grace),
            verify_ms: ms(usual.verify),
            max_tag_age_ms: 0,
            max_share: usual.max_share,
            max_removals: 0,
            max_duration_ms: 0,
            lock: std::ptr::null(),
            lock_len: 0,
            lock_ttl_ms: ms(usual.lock_ttl),
            wait_ms: ms(usual.wait),
            max_latency_us: u64::try_from(usual.max_latency.as_micros()).unwrap_or(u64::MAX),
            effort: u32::from(usual.effort),
            memory: usual.memory,
            strict: usual.strict,
            durable: usual.durable,
            resume: usual.resume,
            remember_ms: 0,
        };
        // SAFETY: the caller's promise, passed on.
        unsafe { put(options, filled) };
    });
}

/// Removes stale references and orphaned tags of the plain layout, under a lock. Blocks until done.
///
/// `options`: NULL for the defaults.
/// `progress`, `context`: called between rounds; NULL to not be called.
/// `report`: receives the figures, also the partial ones of a sweep that was stopped, lost its lock or ended with an
///   error, once it has begun; zeros where nothing was done; may be NULL. Names in `options` need to live
///   during the call only.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_HELD (the error text then tells by whom), TAGSWEEP_LOST,
/// TAGSWEEP_STOPPED (by `progress` or a limit; the error text tells which), or an error. After TAGSWEEP_OK the
/// text is what an operator should know of the sweep; most often nothing.
///
/// # Safety
/// Pointers are NULL or valid; `error` is writable for `error_size` bytes; `progress` keeps its rules.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_sweep(
    client: *const tagsweep_client,
    options: *const tagsweep_options,
    progress: tagsweep_progress,
    context: *mut c_void,
    report: *mut tagsweep_report,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (config, options) = unsafe { beginning(client, options, report)? };
        let mut tell = |now: &Progress| {
            let Some(progress) = progress else { return Flow::Continue };
            let figures = tagsweep_report {
                left_s: now.left.map_or(-1.0, |left| left.as_secs_f64()),
                effort: now.effort,
                reason: std::ptr::null(),
                ..tagsweep_report::from(now.report)
            };
            // SAFETY: the caller's function, called by its rules.
            match unsafe { progress(context, &raw const figures, now.share) } {
                0 => Flow::Continue,
                _ => Flow::Stop,
            }
        };
        // SAFETY: the caller's promise, passed on.
        let ended = unsafe { run(config, options, report, &error, &mut tell)? };
        Ok(ended.map_or(TAGSWEEP_HELD, |figures| status(figures.reason)))
    })
}

/// What a sweep with these options would do; writes nothing, and takes no lock. Blocks until done.
///
/// `options`: NULL for the defaults; `dry_run` is taken for granted.
/// `sample`, `context`: shown some of the references that would go, twenty at most; NULL to be shown none.
/// `report`: receives the figures; may be NULL.
///
/// Returns TAGSWEEP_OK, TAGSWEEP_STOPPED (by a limit that a sweep would reach; the error text tells which), or an error.
/// After TAGSWEEP_OK the text is what an operator should know of it; most often nothing.
///
/// # Safety
/// Pointers are NULL or valid; `error` is writable for `error_size` bytes; `sample` keeps its rules.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tagsweep_plan(
    client: *const tagsweep_client,
    options: *const tagsweep_options,
    sample: tagsweep_sample,
    context: *mut c_void,
    report: *mut tagsweep_report,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    // SAFETY: the caller's promise, passed on.
    let error = unsafe { ErrorText::new(error, error_size) };
    guarded(&error, || {
        // SAFETY: the caller's promise, passed on.
        let (config, options) = unsafe { beginning(client, options, report)? };
        let options = Options { dry_run: true, ..options };
        // SAFETY: the caller's promise, passed on.
        let planned = unsafe { run(config, options, report, &error, &mut |_| Flow::Continue)? };
        for shown in planned.iter().flat_map(|figures| &figures.samples) {
            let Some(sample) = sample else { break };
            let text = |text: &str| CString::new(text).unwrap_or_default();
            let (tag, entry, why) = (text(&shown.tag), text(&shown.entry), text(&shown.why));
            // SAFETY: the caller's function, called by its rules.
            unsafe { sample(context, tag.as_ptr(), entry.as_ptr(), why.as_ptr()) };
        }
        Ok(planned.map_or(TAGSWEEP_HELD, |figures| status(figures.reason)))
    })
}

/// What a call is about; the report is zeros until there are figures.
///
/// # Safety
/// Pointers are NULL or valid.
unsafe fn beginning(
    client: *const tagsweep_client,
    options: *const tagsweep_options,
    report: *mut tagsweep_report,
) -> Result<(Config, Options), Fault> {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        put(report, tagsweep_report::default());
        // A connection of its own: locks of the client are used meanwhile.
        let config = shared(client, "client")?.config();
        let options = whole(options, "tagsweep_options_init")?.map(|o| read(o)).transpose()?;
        Ok((config, options.unwrap_or_default()))
    }
}

/// Sweeps, or plans: the figures, unless another holds the lock, and what there is to say of them.
///
/// # Safety
/// `report` is NULL or valid.
unsafe fn run(
    config: Config,
    options: Options,
    report: *mut tagsweep_report,
    error: &ErrorText,
    watch: &mut dyn FnMut(&Progress) -> Flow,
) -> Result<Option<Report>, Fault> {
    let lock = format!("the lock {} on {}", printable(&options.lock), config.label());
    let mut sweep = Sweep::new(config, options)?;
    let ended = sweep.run(watch);
    let figures = sweep.report().map_or_else(tagsweep_report::default, Into::into);
    // SAFETY: the caller's promise, passed on.
    unsafe { put(report, figures) };
    match ended? {
        Ended::Held(holder) => {
            error.write(&format!("{lock} is {holder}"));
            Ok(None)
        }
        Ended::Swept(figures) => {
            let reason = (!figures.complete).then(|| figures.reason.text().to_owned());
            let told: Vec<String> = reason.into_iter().chain(figures.warnings.clone()).collect();
            error.write(&told.join("; "));
            Ok(Some(figures))
        }
    }
}

fn status(reason: Reason) -> i32 {
    match reason {
        Reason::Complete => TAGSWEEP_OK,
        Reason::Lost => TAGSWEEP_LOST,
        _ => TAGSWEEP_STOPPED,
    }
}

/// # Safety
/// The names in `given` are NULL or valid for their lengths.
unsafe fn read(given: &tagsweep_options) -> Result<Options, Fault> {
    let name = |pointer: *const c_char, length| {
        // SAFETY: the caller's promise, passed on.
        let named = (!pointer.is_null()).then(|| unsafe { bytes(pointer, length, "name") });
        named.transpose().map(|name| name.map(<[u8]>::to_vec))
    };
    let ms = Duration::from_millis;
    if given.invalidate_aged && given.max_tag_age_ms == 0 {
        return Err(Error::bad_argument("invalidate_aged needs max_tag_age_ms").into());
    }
    let usual = Options::default();
    Ok(Options {
        entry_prefix: name(given.entry_prefix, given.entry_prefix_len)?,
        trust_mapping: given.trust_mapping,
        dry_run: given.dry_run,
        on_aged: if given.invalidate_aged { OnAged::Invalidate } else { OnAged::Keep },
        grace: ms(given.grace_ms),
        verify: ms(given.verify_ms),
        max_tag_age: (given.max_tag_age_ms > 0).then(|| ms(given.max_tag_age_ms)),
        max_share: given.max_share,
        max_removals: (given.max_removals > 0).then_some(given.max_removals),
        max_duration: (given.max_duration_ms > 0).then(|| ms(given.max_duration_ms)),
        lock: name(given.lock, given.lock_len)?.unwrap_or(usual.lock),
        lock_ttl: ms(given.lock_ttl_ms),
        wait: ms(given.wait_ms),
        max_latency: Duration::from_micros(given.max_latency_us),
        effort: u8::try_from(given.effort).unwrap_or(u8::MAX),
        memory: given.memory,
        strict: given.strict,
        durable: given.durable,
        resume: given.resume,
        remember: (given.remember_ms > 0).then(|| ms(given.remember_ms)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_read_where_it_belongs() {
        let lock = b"nightly";
        let prefix = b"app:";
        let given = tagsweep_options {
            size: size_of::<tagsweep_options>(),
            entry_prefix: prefix.as_ptr().cast(),
            entry_prefix_len: prefix.len(),
            trust_mapping: true,
            dry_run: false,
            invalidate_aged: true,
            grace_ms: 1,
            verify_ms: 2,
            max_tag_age_ms: 3000,
            max_share: 0.4,
            max_removals: 5,
            max_duration_ms: 6,
            lock: lock.as_ptr().cast(),
            lock_len: lock.len(),
            lock_ttl_ms: 7000,
            wait_ms: 8,
            max_latency_us: 9,
            effort: 10,
            memory: 11,
            strict: true,
            durable: false,
            resume: true,
            remember_ms: 12_000,
        };
        let ms = Duration::from_millis;
        let wanted = Options {
            entry_prefix: Some(prefix.to_vec()),
            trust_mapping: true,
            dry_run: false,
            on_aged: OnAged::Invalidate,
            grace: ms(1),
            verify: ms(2),
            max_tag_age: Some(ms(3000)),
            max_share: 0.4,
            max_removals: Some(5),
            max_duration: Some(ms(6)),
            lock: lock.to_vec(),
            lock_ttl: ms(7000),
            wait: ms(8),
            max_latency: Duration::from_micros(9),
            effort: 10,
            memory: 11,
            strict: true,
            durable: false,
            resume: true,
            remember: Some(ms(12_000)),
        };
        let told = |options: &Options| format!("{options:?}");
        // SAFETY: the names live, and their lengths are theirs.
        let read_of = |given: &tagsweep_options| unsafe { read(given) }.unwrap_or_default();
        assert_eq!(told(&read_of(&given)), told(&wanted));
        let bools = tagsweep_options {
            trust_mapping: false,
            dry_run: true,
            strict: false,
            durable: true,
            resume: false,
            ..given
        };
        let wanted = Options {
            trust_mapping: false,
            dry_run: true,
            strict: false,
            durable: true,
            resume: false,
            ..wanted
        };
        assert_eq!(told(&read_of(&bools)), told(&wanted));
    }
}
