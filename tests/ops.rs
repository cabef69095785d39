//! What operators are given: the list of metrics is what the code writes, rules and dashboard use nothing
//! else, and promtool finds the rules right and the alerts raised.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tagsweep::lock::{Holder, Stats, Status};
use tagsweep::metrics::{LockSample, SweepSample, open_metrics};

fn ops(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(ops(name)).unwrap()
}

/// Name, type and labels of each.
fn listed() -> BTreeSet<(String, String, String)> {
    let text = read("metrics.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let entry = |line: &str| {
        let [name, kind, labels]: [&str; 3] =
            line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        (name.to_owned(), kind.to_owned(), labels.to_owned())
    };
    lines.map(entry).collect()
}

/// A metric's name without what a histogram adds.
fn family(name: &str) -> &str {
    let endings = ["_bucket", "_sum", "_count"];
    endings.into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

fn sample() -> String {
    let mut stats = Stats { ttl: Duration::from_secs(30), ..Stats::default() };
    stats.holds.record(Duration::from_millis(3));
    let ttl = Some(Duration::from_secs(9));
    let holder = Some(Holder { ttl, fence: Some(7), ..Holder::default() });
    let status = Status { holder, fence: Some(7), ..Status::default() };
    let mut totals = tagsweep::sweep::Totals::default();
    totals.last_success = Some(1);
    totals.errors.insert("OOM".into(), 1);
    totals.counts.insert("references_checked".into(), 1);
    let lock = LockSample { name: b"a", stats: &stats, status: Some(&status) };
    open_metrics(&[lock], &[SweepSample { lock: b"a", totals: &totals }])
}

#[test]
fn the_list_is_what_the_code_writes() {
    let text = sample();
    let kinds: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut written = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once('{').unwrap();
        let labels: Vec<&str> = rest
            .split_once('}')
            .unwrap()
            .0
            .split(',')
            .map(|label| label.split('=').next().unwrap())
            .filter(|label| *label != "le")
            .collect();
        let name = family(name);
        let kind = kinds.iter().find(|(known, _)| *known == name.trim_end_matches("_total"));
        let kind = kind.unwrap_or_else(|| panic!("{name} has no type")).1;
        written.insert((name.to_owned(), kind.to_owned(), labels.join(",")));
    }
    assert_eq!(written, listed());
}

#[test]
fn rules_and_dashboard_use_only_what_is_listed() {
    let known: BTreeSet<String> = listed().into_iter().map(|(name, ..)| name).collect();
    for file in ["alerts.yml", "alerts.test.yml", "alerts.sweep.test.yml", "dashboard.json"] {
        let text = read(file);
        let mut used = 0;
        for rest in text.split("tagsweep_").skip(1) {
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap();
            let name = format!("tagsweep_{}", &rest[..end]);
            assert!(known.contains(family(&name)), "{file} uses {name}");
            used += 1;
        }
        assert!(used > 9, "{file}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}

#[test]
fn promtool_finds_the_rules_right_and_the_alerts_raised() {
    let promtool = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/packages/prometheus-bookworm/usr/bin/promtool");
    assert!(promtool.exists(), "promtool is missing; run tools/packages.sh");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
        ["test", "rules", "alerts.sweep.test.yml"],
    ] {
        let run = Command::new(&promtool).args(arguments).current_dir(ops("")).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned()
            + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && said.contains("SUCCESS"), "{arguments:?}: {said}");
    }
}
