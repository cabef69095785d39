//! `Tagsweep\SweepReport`: the figures of a sweep.

use ext_php_rs::boxed::ZBox;
use ext_php_rs::exception::PhpResult;
use ext_php_rs::prelude::*;
use ext_php_rs::types::{ZendHashTable, Zval};
use ext_php_rs::zend::ClassEntry;
use tagsweep::sweep::Report;

unsafe extern "C" {
    static php_json_serializable_ce: *mut ClassEntry;
}

fn json_serializable() -> &'static ClassEntry {
    // SAFETY: set by the JSON extension, which is always there and starts before us.
    unsafe { &*php_json_serializable_ce }
}

/// What a sweep did; of a plan, what would be done. Read-only.
#[php_class]
#[php(name = "Tagsweep\\SweepReport")]
#[php(implements(ce = json_serializable, stub = "\\JsonSerializable"))]
pub(crate) struct SweepReport {
    report: Report,
}

impl From<Report> for SweepReport {
    fn from(report: Report) -> Self {
        Self { report }
    }
}

/// Counts fit: a server holds fewer keys than 2^63.
fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[php_impl]
impl SweepReport {
    #[php(getter)]
    pub fn get_tags_seen(&self) -> i64 {
        int(self.report.tags_seen)
    }

    #[php(getter)]
    pub fn get_tags_removed(&self) -> i64 {
        int(self.report.tags_removed)
    }

    #[php(getter)]
    pub fn get_tags_pruned(&self) -> i64 {
        int(self.report.tags_pruned)
    }

    #[php(getter)]
    pub fn get_tags_aged(&self) -> i64 {
        int(self.report.tags_aged)
    }

    #[php(getter)]
    pub fn get_tags_skipped(&self) -> i64 {
        int(self.report.tags_skipped)
    }

    #[php(getter)]
    pub fn get_references_checked(&self) -> i64 {
        int(self.report.references_checked)
    }

    #[php(getter)]
    pub fn get_references_removed(&self) -> i64 {
        int(self.report.references_removed)
    }

    #[php(getter)]
    pub fn get_references_restored(&self) -> i64 {
        int(self.report.references_restored)
    }

    #[php(getter)]
    pub fn get_scores_healed(&self) -> i64 {
        int(self.report.scores_healed)
    }

    #[php(getter)]
    pub fn get_entries_invalidated(&self) -> i64 {
        int(self.report.entries_invalidated)
    }

    #[php(getter)]
    pub fn get_bytes_reclaimed(&self) -> i64 {
        int(self.report.bytes_reclaimed)
    }

    #[php(getter)]
    pub fn get_pages(&self) -> i64 {
        int(self.report.pages)
    }

    #[php(getter)]
    pub fn get_duration(&self) -> f64 {
        self.report.duration.as_secs_f64()
    }

    #[php(getter)]
    pub fn get_server(&self) -> f64 {
        self.report.server.as_secs_f64()
    }

    #[php(getter)]
    pub fn get_complete(&self) -> bool {
        self.report.complete
    }

    #[php(getter)]
    pub fn get_reason(&self) -> String {
        reason(&self.report)
    }

    #[php(getter)]
    pub fn get_dry_run(&self) -> bool {
        self.report.dry_run
    }

    #[php(getter)]
    pub fn get_entry_prefix(&self) -> Option<String> {
        self.report.entry_prefix.clone()
    }

    #[php(getter)]
    pub fn get_warnings(&self) -> Vec<String> {
        self.report.warnings.clone()
    }

    /// The figures under the names of the JSON report.
    pub fn json_serialize(&self) -> PhpResult<ZBox<ZendHashTable>> {
        let report = &self.report;
        let mut figures = ZendHashTable::new();
        figures.insert("tags_seen", int(report.tags_seen))?;
        figures.insert("tags_removed", int(report.tags_removed))?;
        figures.insert("tags_pruned", int(report.tags_pruned))?;
        figures.insert("tags_aged", int(report.tags_aged))?;
        figures.insert("tags_skipped", int(report.tags_skipped))?;
        figures.insert("references_checked", int(report.references_checked))?;
        figures.insert("references_removed", int(report.references_removed))?;
        figures.insert("references_restored", int(report.references_restored))?;
        figures.insert("scores_healed", int(report.scores_healed))?;
        figures.insert("entries_invalidated", int(report.entries_invalidated))?;
        figures.insert("bytes_reclaimed", int(report.bytes_reclaimed))?;
        figures.insert("pages", int(report.pages))?;
        figures.insert("duration_s", report.duration.as_secs_f64())?;
        figures.insert("server_s", report.server.as_secs_f64())?;
        figures.insert("complete", report.complete)?;
        figures.insert("reason", reason(report))?;
        figures.insert("dry_run", report.dry_run)?;
        figures.insert("entry_prefix", nullable(report.entry_prefix.as_deref())?)?;
        figures.insert("warnings", report.warnings.clone())?;
        Ok(figures)
    }
}

fn nullable(text: Option<&str>) -> PhpResult<Zval> {
    let mut zval = Zval::new();
    match text {
        Some(text) => zval.set_string(text, false)?,
        None => zval.set_null(),
    }
    Ok(zval)
}

fn reason(report: &Report) -> String {
    report.reason.name().to_owned()
}
