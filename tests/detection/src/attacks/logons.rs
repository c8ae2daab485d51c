//! Guessing passwords: one attempt is a short connection that looks like the one before.

use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::Plot;
use crate::ordinary::{desk, dmz, internet, server};
use crate::traffic::{Dice, Flow, HOUR, MINUTE};
use crate::truth::Attack;

const GUESSING: [&str; 10] = ["ND-17", "ND-13", "ND-15", "ND-12", "ND-09", "AZ-09", "AZ-10", "AZ-13", "AZ-14", "AZ-21"];

fn attempt(at: Timestamp, by: Address, to: Address, port: u16, dice: &mut Dice) -> Flow {
    let try_one = Flow::tcp(at, by, to, port).with_source_port(dice.client_port()).lasting(Duration::from_millis(1_800));
    Flow { packets: [14 + dice.below(2), 12], octets: [2_400 + dice.below(120), 3_100], ..try_one }
}

pub(super) fn fast(plot: &mut Plot<'_>, day: u32) {
    for (name, by, to, port, gap_ms, count, minute) in [
        ("SSH, 1/s", desk(40), server(7), 22, 1_000, 400_u64, 0),
        ("RDP from outside, 1 in 3 s", internet(121_500), dmz(30), 3389, 3_000, 200, 10),
        ("FTP, 4/s", desk(41), server(8), 21, 250, 600, 30),
    ] {
        let mut dice = plot.dice(name);
        let start = plot.place.at(day, 17, minute);
        let flows: Vec<Flow> = (0..count)
            .map(|number| attempt(start.plus(Duration::from_millis(number * gap_ms)), by, to, port, &mut dice))
            .collect();
        let due = flows[19].at;
        let attack = Attack::new(&format!("guessing {name}"), "brute force", &["ND-17"], start, &flows);
        plot.add(attack.fair(&GUESSING).by(&[by]).to(&[to]).due(due, Some(MINUTE * 6)), flows);
    }
    let mut dice = plot.dice("spray");
    let (by, start) = (desk(42), plot.place.at(day, 18, 0));
    let flows: Vec<Flow> = (0..120_u64)
        .map(|number| attempt(start.plus(Duration::from_secs(number * 10)), by, desk(number % 40), 445, &mut dice))
        .collect();
    let hosts: Vec<Address> = (0..40).map(desk).collect();
    let due = flows[29].at;
    let attack = Attack::new("password spray, 40 hosts, 3 tries each", "brute force", &["ND-17"], start, &flows);
    plot.add(attack.fair(&GUESSING).by(&[by]).to(&hosts).due(due, Some(HOUR)), flows);
}

/// One attempt in four minutes for fourteen hours, and then a session.
pub(super) fn slow(plot: &mut Plot<'_>, day: u32) {
    let mut dice = plot.dice("slow guessing");
    let (by, to, start) = (desk(43), server(9), plot.place.at(day, 1, 0));
    let mut at = start;
    let mut flows = Vec::new();
    for _ in 0..210 {
        flows.push(attempt(at, by, to, 22, &mut dice));
        at = at.plus(dice.around(MINUTE * 4, 0.3));
    }
    flows.push(Flow::tcp(at, by, to, 22).carrying(90_000, 2_000_000).lasting(MINUTE * 8));
    let attack = Attack::new("guessing SSH, 1 in 4 min, with success", "brute force", &["ND-17"], start, &flows);
    plot.add(attack.fair(&GUESSING).by(&[by]).to(&[to]).due(start, Some(HOUR * 24)), flows);
}
