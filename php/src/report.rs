//! `Tagsweep\SweepReport`: the figures of a sweep.

use ext_php_rs::boxed::ZBox;
use ext_php_rs::exception::{PhpException, PhpResult};
use ext_php_rs::prelude::*;
use ext_php_rs::types::{ZendHashTable, Zval};
use ext_php_rs::zend::ClassEntry;
use serde_json::{Map, Value};
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
    pub fn get_tags_unchanged(&self) -> i64 {
        int(self.report.tags_unchanged)
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
    pub fn get_references_skipped(&self) -> i64 {
        int(self.report.references_skipped)
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
    pub fn get_rounds(&self) -> i64 {
        int(self.report.rounds)
    }

    #[php(getter)]
    pub fn get_round_p50(&self) -> f64 {
        self.report.round_p50.as_secs_f64()
    }

    #[php(getter)]
    pub fn get_round_p99(&self) -> f64 {
        self.report.round_p99.as_secs_f64()
    }

    #[php(getter)]
    pub fn get_resumed_at(&self) -> f64 {
        self.report.resumed_at
    }

    #[php(getter)]
    pub fn get_removed_before(&self) -> i64 {
        int(self.report.removed_before)
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

    /// Some of what a plan would remove: arrays of tag, entry and why.
    #[php(getter)]
    pub fn get_samples(&self) -> PhpResult<Zval> {
        zval(&serde_json::json!(self.report.samples))
    }

    /// The figures under the names of the JSON report.
    pub fn json_serialize(&self) -> PhpResult<ZBox<ZendHashTable>> {
        match serde_json::json!(self.report) {
            Value::Object(figures) => table(&figures),
            _ => Ok(ZendHashTable::new()),
        }
    }
}

fn table(fields: &Map<String, Value>) -> PhpResult<ZBox<ZendHashTable>> {
    let mut table = ZendHashTable::new();
    for (name, value) in fields {
        table.insert(name.as_str(), zval(value)?)?;
    }
    Ok(table)
}

/// JSON as PHP has it: objects are arrays.
fn zval(json: &Value) -> PhpResult<Zval> {
    let mut zval = Zval::new();
    match json {
        Value::Null => zval.set_null(),
        Value::Bool(b) => zval.set_bool(*b),
        Value::Number(n) if n.is_f64() => zval.set_double(n.as_f64().unwrap_or_default()),
        Value::Number(n) => zval.set_long(n.as_i64().unwrap_or(i64::MAX)),
        Value::String(text) => zval.set_string(text, false)?,
        Value::Array(items) => {
            let mut table = ZendHashTable::new();
            items
                .iter()
                .try_for_each(|item| table.push(self::zval(item)?).map_err(PhpException::from))?;
            zval.set_hashtable(table);
        }
        Value::Object(fields) => zval.set_hashtable(table(fields)?),
    }
    Ok(zval)
}

fn reason(report: &Report) -> String {
    report.reason.name().to_owned()
}
