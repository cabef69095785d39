//! `tagsweep doctor`: looks at a server, and says what stands in the way of locks and sweeps. Changes
//! nothing.

mod findings;
mod look;

use crate::args::{DoctorArgs, Role};
use crate::monitor::link;
use crate::{Done, exit};
use findings::{Finding, Grade};
use serde_json::json;
use tagsweep::error::plain;
use tagsweep::reply::Info;

pub(crate) fn doctor(args: &DoctorArgs) -> Done {
    let link = link(&args.server)?;
    let seen = look::look(&link, args)?;
    if !args.json {
        let server = args.server.config()?.label();
        match (&seen.info, args.role) {
            (None, Role::Watch) => say!("{server}:"), // it was not asked what it is
            (info, _) => {
                let name = findings::name(Info(info.as_deref().unwrap_or_default()));
                say!("{server}: {}", plain(&name));
            }
        }
    }
    let findings = findings::findings(&seen, args.role);
    for finding in &findings {
        say!("{}", if args.json { as_json(finding) } else { as_text(finding) });
    }
    let bad = findings.iter().any(|finding| finding.grade == Grade::Bad);
    Ok(if bad { exit::ERROR } else { exit::DONE })
}

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "ok",
        Grade::Note => "note",
        Grade::Bad => "bad",
    }
}

fn as_json(finding: &Finding) -> String {
    let (grade, what) = (word(finding.grade), plain(&finding.what));
    json!({ "grade": grade, "what": what, "advice": finding.advice }).to_string()
}

fn as_text(finding: &Finding) -> String {
    let (grade, what) = (word(finding.grade), plain(&finding.what));
    let advice = Some(finding.advice).filter(|advice| !advice.is_empty());
    let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
    format!("  {grade:<5} {what}{advice}")
}
