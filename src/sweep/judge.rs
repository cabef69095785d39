//! Facts in, decisions out. Pure: every rule of the sweep that can be wrong without a server is here.

use std::time::Duration;

/// What an idle time proves about writers between a reference and its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nobody touched the tag for the grace period: no writer is in between.
    Settled,
    /// Touched of late: look again after this time.
    Young(Duration),
    /// The server cannot tell: an entry must be seen absent twice, a grace apart.
    Unclear,
}

/// Idle seconds that prove `grace`. The server's clock ticks once a second, hence one more.
pub(crate) fn idle_needed(grace: Duration) -> u64 {
    grace.as_secs() + u64::from(grace.subsec_nanos() > 0) + 1
}

/// How long it takes until something stale is removed from a tag that must be looked at twice: what is seen absent
/// must be so a grace later. One in use is read for that when it could have been left alone.
pub(crate) fn twice_takes(grace: Duration, idle_runs: bool) -> Duration {
    let by_idle = idle_runs && grace >= Duration::from_secs(1);
    let first = if by_idle { Duration::from_secs(idle_needed(grace)) } else { Duration::ZERO };
    first + grace + Duration::from_millis(500)
}

/// Judges an idle time in seconds. `trusted`: the server kept idle times for all of that period.
/// `touching`: reading the tag, as we just did, set its idle time back to zero.
pub(crate) fn evidence(
    idle: Option<u64>,
    grace: Duration,
    trusted: bool,
    touching: bool,
) -> Evidence {
    if grace.is_zero() {
        return Evidence::Settled;
    }
    let needed = idle_needed(grace);
    match idle {
        Some(idle) if trusted && grace >= Duration::from_secs(1) => {
            let spent = if touching { 0 } else { idle };
            match idle >= needed {
                true => Evidence::Settled,
                false => Evidence::Young(Duration::from_secs(needed - spent.min(needed)) + TICK),
            }
        }
        _ => Evidence::Unclear,
    }
}

/// A little more than the server's own delay in advancing its clock.
const TICK: Duration = Duration::from_millis(150);

/// Whether a tag is aged.
pub(crate) fn aged(idle: Option<u64>, max_tag_age: Option<Duration>) -> bool {
    matches!((idle, max_tag_age), (Some(idle), Some(age)) if Duration::from_secs(idle) >= age)
}

/// Whether a run that has looked at `checked` references and would have removed `removed` of them
/// exceeds the share that the operator allows.
pub(crate) fn exceeds_share(removed: u64, checked: u64, max_share: f64) -> bool {
    max_share < 1.0 && removed as f64 > max_share * checked as f64
}

/// Whether so many references are enough to judge a share by: of small samples nothing follows.
pub(crate) fn is_sample(checked: u64) -> bool {
    checked >= 1000
}

/// How many entries to look for with one command, where `few` of `all` are unlike the rest: a group of
/// like ones is done with at once, and one that is mixed costs a second look at each. Two-stage group
/// testing (R. Dorfman, "The Detection of Defective Members of Large Populations", 1943), where a command
/// costs the server three times what a further entry in it does.
pub(crate) fn group(few: usize, all: usize) -> usize {
    const COMMAND: f64 = 3.0;
    let unlike = few as f64 / all.max(1) as f64;
    let cost = |size: usize| {
        let again = if size == 1 { 0.0 } else { 1.0 - (1.0 - unlike).powi(size as i32) };
        (COMMAND + size as f64) / size as f64 + again * (COMMAND + 1.0)
    };
    let sizes = [1, 2, 4, 8, 16, 32];
    sizes.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    const GRACE: Duration = Duration::from_secs(5);

    #[test]
    fn five_seconds_of_grace_need_six_idle_seconds() {
        assert_eq!(evidence(Some(6), GRACE, true, true), Evidence::Settled);
        let again = Duration::from_secs(6) + TICK;
        assert_eq!(evidence(Some(5), GRACE, true, true), Evidence::Young(again));
        let rest = Duration::from_secs(1) + TICK;
        assert_eq!(evidence(Some(5), GRACE, true, false), Evidence::Young(rest));
    }

    #[test]
    fn without_a_clock_two_looks_are_needed() {
        assert_eq!(evidence(Some(60), GRACE, false, true), Evidence::Unclear);
        assert_eq!(evidence(None, GRACE, true, true), Evidence::Unclear);
        assert_eq!(evidence(Some(60), Duration::from_millis(500), true, true), Evidence::Unclear);
        assert_eq!(evidence(None, Duration::ZERO, false, true), Evidence::Settled);
    }

    #[test]
    fn a_tag_is_aged_from_its_age_on_and_never_without_a_clock() {
        assert!(aged(Some(7), Some(Duration::from_secs(7))));
        assert!(!aged(Some(6), Some(Duration::from_secs(7))));
        assert!(!aged(None, Some(GRACE)) && !aged(Some(9), None));
    }

    #[test]
    fn groups_are_large_where_few_are_unlike_the_rest() {
        let sizes = [(5, 10), (2, 10), (1, 10), (26, 256), (5, 256), (1, 256), (0, 0)];
        assert_eq!(sizes.map(|(few, all)| group(few, all)), [1, 2, 4, 4, 8, 16, 32]);
    }

    #[test]
    fn the_breaker_waits_for_a_sample() {
        assert!(!is_sample(999) && is_sample(1000));
        assert!(exceeds_share(501, 1000, 0.5));
        assert!(!exceeds_share(1000, 1000, 1.0));
    }
}
