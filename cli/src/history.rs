//! `tagsweep history`: what the last sweeps did, as a table, as JSON, or as a page with plots.

use crate::args::{HistoryArgs, bytes};
use crate::monitor::link;
use crate::output::{replace, size, span};
use crate::{Done, exit};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;
use tagsweep::error::plain;
use tagsweep::sweep::{self, Run};

pub(crate) fn history(args: &HistoryArgs) -> Done {
    let runs = sweep::history(&link(&args.server)?, &bytes(&args.lock))?;
    let mut out = std::io::stdout().lock();
    if let Some(path) = &args.html {
        let page = page(&runs, &args.lock.to_string_lossy());
        replace(path, page)?;
    } else if args.json {
        for run in &runs {
            writeln!(out, "{}", serde_json::to_string(run)?)?;
        }
    } else {
        write!(out, "{}", table(&runs))?;
    }
    Ok(exit::DONE)
}

/// What is plotted of a run.
type Figure = fn(&Run) -> f64;

const FIGURES: [(&str, &str, Figure); 4] = [
    ("duration", "s", |run| run.report.duration.as_secs_f64()),
    ("references removed", "", |run| run.report.references_removed as f64),
    ("tags removed", "", |run| run.report.tags_removed as f64),
    ("slowest hundredth of rounds", "ms", |run| run.report.round_p99.as_secs_f64() * 1e3),
];

/// Newest first, and below it a line of little bars a figure, oldest first.
fn table(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "no sweeps\n".to_owned();
    }
    let mut text = format!(
        "{:<20} {:>9} {:>9} {:>11} {:>9} {:>9}  {:<13} host\n",
        "ended (UTC)", "took", "tags gone", "refs gone", "memory", "p99", "how"
    );
    for run in runs {
        let report = &run.report;
        let _ = writeln!(
            text,
            "{:<20} {:>9} {:>9} {:>11} {:>9} {:>9}  {:<13} {} pid {}",
            utc(run.at),
            span(report.duration),
            report.tags_removed,
            report.references_removed,
            size(report.bytes_reclaimed),
            span(report.round_p99),
            report.reason.name(),
            plain(&run.host),
            run.pid,
        );
        if let Some(error) = &run.error {
            let _ = writeln!(text, "{:<20} {}", "", plain(error));
        }
    }
    text.push('\n');
    for (name, unit, figure) in FIGURES {
        let values: Vec<f64> = runs.iter().rev().map(figure).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(text, "{name:<28} {}  up to {}", sparkline(&values), amount(most, unit));
    }
    text
}

fn amount(value: f64, unit: &str) -> String {
    match unit {
        "s" => span(Duration::try_from_secs_f64(value).unwrap_or_default()),
        "ms" => span(Duration::try_from_secs_f64(value / 1e3).unwrap_or_default()),
        _ => format!("{value:.0}"),
    }
}

/// One character a value, by its share of the largest.
fn sparkline(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    values.iter().map(|value| BARS[((value / most * 7.0).round() as usize).min(7)]).collect()
}

/// Seconds since 1970 as a date and a time (the civil calendar, after Howard Hinnant's
/// `civil_from_days`).
pub(crate) fn utc(at: u64) -> String {
    let (days, seconds) = (at / 86_400 + 719_468, at % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// A page that needs nothing but itself.
fn page(runs: &[Run], lock: &str) -> String {
    let plots: String =
        FIGURES.iter().map(|(name, unit, of)| plot(runs, name, unit, *of)).collect();
    let rows: String = runs.iter().map(row).collect();
    include_str!("history.html")
        .replace("{lock}", &escaped(lock))
        .replace("{runs}", &runs.len().to_string())
        .replace("{plots}", &plots)
        .replace("{rows}", &rows)
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 120.0;

/// Bars, oldest first; those of incomplete runs are marked, and each says what it is.
fn plot(runs: &[Run], name: &str, unit: &str, of: Figure) -> String {
    let most = runs.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let step = WIDTH / runs.len().max(1) as f64;
    let mut bars = String::new();
    for (at, run) in runs.iter().rev().enumerate() {
        let height = (of(run) / most * HEIGHT).max(1.0);
        let class = if run.report.complete { "bar" } else { "bar partial" };
        let _ = write!(
            bars,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>{}: {} ({})</title></rect>",
            at as f64 * step,
            HEIGHT - height,
            (step * 0.8).min(40.0),
            utc(run.at),
            amount(of(run), unit),
            run.report.reason.name(),
        );
    }
    let top = if runs.is_empty() { "-".to_owned() } else { amount(most, unit) };
    format!(
        "<figure><figcaption>{name} <small>up to {top}</small></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{name}\">{bars}</svg>{}</figure>",
        time_span(runs),
    )
}

/// When the first and the last of them were.
fn time_span(runs: &[Run]) -> String {
    let (Some(last), Some(first)) = (runs.first(), runs.last()) else { return String::new() };
    format!("<div class=\"span\"><span>{}</span><span>{}</span></div>", utc(first.at), utc(last.at))
}

fn row(run: &Run) -> String {
    let report = &run.report;
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{}{}</td><td>{} pid {}</td></tr>\n",
        utc(run.at),
        span(report.duration),
        report.tags_seen,
        report.tags_removed,
        report.references_removed,
        size(report.bytes_reclaimed),
        span(report.round_p99),
        report.reason.text(),
        run.error.as_ref().map(|e| format!(": {}", escaped(e))).unwrap_or_default(),
        escaped(&run.host),
        run.pid,
    )
}

fn escaped(text: &str) -> String {
    let entity = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        // Not a place of the page that is to be filled in.
        '{' => "&#123;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(entity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(utc(1_795_500_061), "2026-11-24 06:01:01");
    }

    #[test]
    fn bars_go_by_the_largest() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0]), "▁▅█");
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn nothing_to_show_is_said_and_names_are_escaped() {
        assert_eq!(table(&[]), "no sweeps\n");
        let text = page(&[], "<script>");
        assert!(text.contains("&lt;script&gt;") && !text.contains("<script>"));
        assert!(!text.contains("{plots}") && !text.contains("http"), "complete in itself");
        assert_eq!(page(&[], "{rows}").matches("&#123;rows}").count(), 2);
    }
}
