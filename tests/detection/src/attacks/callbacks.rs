//! Malware that calls home: in a rhythm when somebody answers, in a storm when nobody does.

use std::time::Duration;

use super::Plot;
use crate::ordinary::{desk, internet};
use crate::traffic::{Course, DAY, Flow, HOUR};
use crate::truth::Attack;

const CALLS: [&str; 8] = ["ND-10", "AZ-11", "AZ-12", "ND-28", "AZ-18", "AZ-20", "AZ-21", "AZ-22"];
/// Periods in seconds, and shares by which a beat may be off.
const PERIODS: [u64; 6] = [30, 60, 300, 900, 1_800, 3_600];
const JITTERS: [f64; 4] = [0.0, 0.1, 0.2, 0.3];

/// Every ten seconds to a server that is gone.
pub(super) fn storm(plot: &mut Plot<'_>, day: u32) {
    for (name, by, to, course, minute) in [
        ("callbacks that nobody answers", desk(44), internet(122_300), Course::Silent, 20),
        ("callbacks that are refused", desk(45), internet(122_600), Course::Refused, 25),
    ] {
        let start = plot.place.at(day, 18, minute);
        let flows: Vec<Flow> = (0..150_u64)
            .map(|number| Flow::tcp(start.plus(Duration::from_secs(number * 10)), by, to, 8443).going(course))
            .collect();
        let due = flows[29].at;
        let attack = Attack::new(name, "callback storm", &["ND-28"], start, &flows).fair(&CALLS).by(&[by]);
        plot.add(attack.due(due, Some(Duration::from_secs(60))), flows);
    }
}

/// Twenty-four hosts for two days: each period with each jitter, one beat in twenty missed.
pub(super) fn beacons(plot: &mut Plot<'_>, day: u32) {
    let mut number = 0;
    for period in PERIODS {
        for jitter in JITTERS {
            let name = format!("beacon, {period} s ± {:.0} %", jitter * 100.0);
            let mut dice = plot.dice(&name);
            let (by, to) = (desk(if number < 14 { 46 + number } else { 84 + number }), internet(123_000 + number as u32 * 7));
            let start = plot.place.at(day, 0, 5).plus(Duration::from_secs(number * 61));
            let mut at = start;
            let mut flows = Vec::new();
            while at < start.plus(DAY * 2) {
                if dice.chance(0.95) {
                    let call = Flow::tcp(at, by, to, 443).with_source_port(dice.client_port());
                    flows.push(call.carrying(420 + dice.below(40), 260 + dice.below(60)));
                }
                at = at.plus(dice.around(Duration::from_secs(period), jitter));
            }
            let attack = Attack::new(&name, "beacon", &["ND-10"], start, &flows).fair(&CALLS).by(&[by]).to(&[to]);
            plot.add(attack.due(start, Some(DAY + HOUR)), flows);
            number += 1;
        }
    }
}
