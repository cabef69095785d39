//! `tagsweep sweep` and `tagsweep plan`.

use crate::args::SweepArgs;
use crate::output::{Screen, print_json, print_report, way_out};
use crate::{Done, exit, signals, spelled};
use std::sync::atomic::Ordering;
use tagsweep::error::plain;
use tagsweep::lock::Holder;
use tagsweep::sweep::{Ended, Flow, Sweep};

pub(crate) fn sweep(args: &SweepArgs, plan: bool) -> Done {
    let config = args.server.config()?;
    let label = config.label();
    let mut options = args.options();
    options.dry_run |= plan;
    let mut sweep = Sweep::new(config, options)?;
    let stop = signals::stop_flag()?;
    let mut screen = Screen::new(args.json);
    let ended = sweep.run(&mut |progress| {
        screen.show(progress);
        if stop.load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue }
    });
    screen.end();
    let show = |report| match args.json {
        true => print_json("report", report, None),
        false => print_report(report, &label),
    };
    match ended {
        Ok(Ended::Swept(report)) => {
            show(&report);
            Ok(if report.complete { exit::DONE } else { exit::PARTIAL })
        }
        Ok(Ended::Held(holder)) => {
            held(args, &holder);
            Ok(exit::HELD)
        }
        Err(e) => {
            let e = spelled(e.into());
            sweep.report().into_iter().for_each(show);
            if args.json {
                say!("{}", serde_json::json!({ "type": "error", "error": e.to_string() }));
            }
            Err(e)
        }
    }
}

fn held(args: &SweepArgs, holder: &Holder) {
    let lock = plain(&args.lock.to_string_lossy());
    if args.json {
        let line = serde_json::json!({
            "type": "held", "lock": lock, "host": holder.host, "pid": holder.pid,
            "fence": holder.fence, "ttl_s": holder.ttl.map(|ttl| ttl.as_secs_f64()),
        });
        say!("{line}");
    }
    complain!(
        "tagsweep: skipped: the lock {lock} is {holder}{}",
        way_out(&args.server, &args.lock, holder)
    );
}
