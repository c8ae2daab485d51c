//! What intruders do, each time with its truth. Every attack has a host of its own, so that an alert tells which attack it means.
//!
//! `scans` looking for an open door · `floods` too much for one host · `logons` guessing passwords · `callbacks` malware that calls
//! home · `transfers` what leaves the house · `changes` new neighbours, new doors, somebody gone.

mod callbacks;
mod changes;
mod floods;
mod logons;
mod scans;
mod transfers;

use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::ordinary::Place;
use crate::traffic::{Course, Dice, Flow, Traffic};
use crate::truth::Attack;

/// Failed probes by which a scan is to be seen.
const TELLING: usize = 25;

/// Rules that are right about any scan.
pub(crate) const ANY_SCAN: [&str; 18] = [
    "ND-01", "ND-02", "ND-03", "ND-04", "ND-05", "ND-06", "AZ-01", "AZ-02", "AZ-04", "AZ-05", "AZ-06", "AZ-16", "AZ-17", "AZ-18",
    "AZ-19", "AZ-21", "AZ-22", "AZ-23",
];

/// One thing that a scanner tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Knock {
    pub(crate) host: Address,
    pub(crate) port: u16,
    pub(crate) course: Course,
}

/// TCP knocks of `from`, one each `gap` that is off by up to `jitter` of it; and the time of the 25th that failed, or of the last.
pub(crate) fn probes(
    dice: &mut Dice,
    from: Address,
    start: Timestamp,
    gap: Duration,
    jitter: f64,
    knocks: impl IntoIterator<Item = Knock>,
) -> (Vec<Flow>, Timestamp) {
    let mut at = start;
    let mut failed = Vec::new();
    let mut flows = Vec::new();
    for Knock { host, port, course } in knocks {
        if !matches!(course, Course::HungUp | Course::Talk) {
            failed.push(at);
        }
        let knock = Flow::tcp(at, from, host, port).with_source_port(dice.client_port()).going(course);
        flows.push(if matches!(course, Course::Talk | Course::HungUp) { knock } else { knock.once() });
        at = at.plus(dice.around(gap, jitter));
    }
    let due = failed.get(TELLING - 1).or(failed.last()).copied().unwrap_or(start);
    (flows, due)
}

/// Attacks that are being written: what they do, and what is true of them.
pub(crate) struct Plot<'a> {
    pub(crate) place: &'a Place,
    pub(crate) traffic: &'a mut Traffic,
    pub(crate) truth: Vec<Attack>,
}

impl Plot<'_> {
    /// `attack` is what `flows` do.
    fn add(&mut self, attack: Attack, flows: Vec<Flow>) {
        self.truth.push(attack);
        self.traffic.play(flows);
    }

    fn dice(&self, name: &str) -> Dice {
        Dice::new(self.place.seed, name)
    }
}

/// Which attacks, and from which day on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) first_day: u32,
    /// Those that take days, too: low and slow scans, beacons of an hour, what is compared with a learned past.
    pub(crate) patient: bool,
}

/// All of them.
pub(crate) fn enter(place: &Place, plan: Plan, traffic: &mut Traffic) -> Vec<Attack> {
    let mut plot = Plot { place, traffic, truth: Vec::new() };
    scans::fast(&mut plot, plan.first_day);
    floods::enter(&mut plot, plan.first_day);
    logons::fast(&mut plot, plan.first_day);
    callbacks::storm(&mut plot, plan.first_day);
    transfers::fast(&mut plot, plan.first_day);
    if plan.patient {
        scans::slow(&mut plot, plan.first_day);
        logons::slow(&mut plot, plan.first_day);
        callbacks::beacons(&mut plot, plan.first_day);
        transfers::slow(&mut plot, plan.first_day);
        changes::enter(&mut plot, plan.first_day);
    }
    plot.truth
}
