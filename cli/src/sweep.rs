//! `tagsweep sweep` and `tagsweep plan`.

use crate::args::SweepArgs;
use crate::output::{Place, Screen, print_json, print_report, way_out};
use crate::{Done, exit, signals, spelled};
use std::error::Error;
use std::sync::atomic::Ordering;
use tagsweep::error::plain;
use tagsweep::lock::Holder;
use tagsweep::sweep::{Ended, Flow, Sweep};

pub(crate) fn sweep(args: &SweepArgs, plan: bool) -> Done {
    let mut place = Place { server: String::new(), prefix: &args.server.prefix, lock: &args.lock };
    let made = args.server.config().and_then(|config| {
        place.server = config.label();
        let mut options = args.options();
        options.dry_run |= plan;
        Sweep::new(config, options)
    });
    let mut sweep = made.map_err(|e| told(args, &place, e))?;
    let stop = signals::stop_flag()?;
    let mut screen = Screen::new(args.json);
    let ended = sweep.run(&mut |progress| {
        screen.show(progress);
        if stop.load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue }
    });
    screen.end();
    let show = |report| match args.json {
        true => print_json("report", report, place.to_json()),
        false => print_report(report, &place),
    };
    match ended {
        Ok(Ended::Swept(report)) => {
            show(&report);
            Ok(if report.complete { exit::DONE } else { exit::PARTIAL })
        }
        Ok(Ended::Held(holder)) => {
            held(args, &place, &holder);
            Ok(exit::HELD)
        }
        Err(e) => {
            sweep.report().into_iter().for_each(show);
            Err(told(args, &place, e))
        }
    }
}

/// An error, which is the last line of what is read by programs, too.
fn told(args: &SweepArgs, place: &Place, e: tagsweep::Error) -> Box<dyn Error> {
    let e = spelled(e.into());
    if args.json {
        let mut line = place.to_json();
        line.insert("type".into(), "error".into());
        line.insert("error".into(), e.to_string().into());
        say!("{}", serde_json::Value::Object(line));
    }
    e
}

fn held(args: &SweepArgs, place: &Place, holder: &Holder) {
    if args.json {
        let mut line = place.to_json();
        line.insert("type".into(), "held".into());
        line.insert("host".into(), holder.host.clone().into());
        line.insert("pid".into(), holder.pid.into());
        line.insert("fence".into(), holder.fence.into());
        line.insert("ttl_s".into(), holder.ttl.map(|ttl| ttl.as_secs_f64()).into());
        say!("{}", serde_json::Value::Object(line));
    }
    let lock = plain(&args.lock.to_string_lossy());
    complain!(
        "tagsweep: skipped: the lock {lock} is {holder}{}",
        way_out(&args.server, &args.lock, holder)
    );
}
