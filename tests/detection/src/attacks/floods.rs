//! Too much for one host.

use std::time::Duration;

use spanwatch_common::net::Address;

use super::Plot;
use crate::ordinary::{dmz, internet};
use crate::traffic::{Course, Flow, MINUTE};
use crate::truth::Attack;

/// Rules that are right about too much of anything, besides those for floods.
const TOO_MUCH: [&str; 7] = ["ND-07", "ND-08", "ND-09", "ND-12", "AZ-03", "AZ-08", "AZ-10"];

pub(super) fn enter(plot: &mut Plot<'_>, day: u32) {
    syn_flood(plot, day);
    amplification(plot, day);
    connection_flood(plot, day);
}

/// 2,500 SYNs a second for twenty seconds, each from a forged address.
fn syn_flood(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 16, 0);
    let mut dice = plot.dice("SYN flood");
    let forged = |dice: &mut crate::traffic::Dice| {
        Address::from_v4([100, 64 + dice.below(60) as u8, dice.below(256) as u8, dice.below(256) as u8])
    };
    let flows: Vec<Flow> = (0..50_000_u64)
        .map(|number| {
            let at = start.plus(Duration::from_micros(number * 400));
            Flow::tcp(at, forged(&mut dice), dmz(10), 443).with_source_port(dice.client_port()).going(Course::Silent).once()
        })
        .collect();
    let attack = Attack::new("SYN flood, 2,500/s, forged sources", "flood", &["ND-07"], start, &flows);
    // Who has forged what is not to be told; the victim is.
    plot.add(attack.fair(&TOO_MUCH).to(&[dmz(10)]).due(start, Some(MINUTE)), flows);
}

/// 300 time servers answer 120 Mbit/s to somebody who did not ask.
fn amplification(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 16, 20);
    let reflectors: Vec<Address> = (0..300).map(|number| internet(50_000 + number)).collect();
    let mut flows = Vec::new();
    for (number, &reflector) in (0_u64..).zip(&reflectors) {
        let at = start.plus(Duration::from_millis(number * 7));
        let answers = Flow::udp(at, dmz(25), reflector, 123).with_source_port(40_000 + (number % 1_000) as u16);
        let answers = Flow { packets: [0, 6_400], octets: [0, 3_000_000], ..answers };
        flows.push(Flow { lasts: MINUTE, ..answers.going(Course::Backscatter(0)) });
    }
    let attack = Attack::new("amplification, 120 Mbit/s over NTP", "flood", &["ND-08"], start, &flows);
    plot.add(attack.fair(&TOO_MUCH).to(&[dmz(25)]).due(start, Some(MINUTE * 2)), flows);
}

/// 800 connections a second from 400 clients, each of which is opened as it should be.
fn connection_flood(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 16, 40);
    let flows: Vec<Flow> = (0..40_000_u64)
        .map(|number| {
            let at = start.plus(Duration::from_micros(number * 1_250));
            let client = internet(55_000 + (number % 400) as u32);
            Flow::tcp(at, client, dmz(10), 443).with_source_port(10_000 + (number / 400 % 50_000) as u16).carrying(200, 300)
        })
        .collect();
    let attack = Attack::new("connection flood, 800/s from 400 clients", "flood", &["ND-09"], start, &flows);
    plot.add(attack.fair(&TOO_MUCH).to(&[dmz(10)]).due(start, Some(MINUTE)), flows);
}
