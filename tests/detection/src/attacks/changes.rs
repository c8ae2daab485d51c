//! New neighbours, new doors, somebody in another's name, somebody gone: seen only by who knows what was there before.

use std::time::Duration;

use spanwatch_common::net::Address;

use super::Plot;
use crate::ordinary::{DOMAIN_CONTROLLER, HMI, desk, plc, server};
use crate::traffic::{Course, Flow, HOUR, MINUTE};
use crate::truth::Attack;

pub(super) fn enter(plot: &mut Plot<'_>, day: u32) {
    lateral(plot, day);
    newcomers(plot, day);
    spoofing(plot, day);
    silence(plot, day);
}

/// From one to the next by RDP, from there by SMB; and from one to six others within half an hour.
fn lateral(plot: &mut Plot<'_>, day: u32) {
    let fair = ["ND-13", "ND-15", "AZ-20", "AZ-21", "AZ-10", "AZ-13", "AZ-14", "ND-17"];
    let start = plot.place.at(day, 20, 0);
    let session = |at, from, to, port| Flow::tcp(at, from, to, port).carrying(400_000, 3_000_000).lasting(MINUTE * 9);
    let hops = [desk(94), desk(95), server(12)];
    let flows = vec![session(start, hops[0], hops[1], 3389), session(start.plus(MINUTE * 20), hops[1], hops[2], 445)];
    let attack = Attack::new("hop by hop", "lateral movement", &["ND-13"], start, &flows);
    plot.add(attack.fair(&fair).by(&hops[..2]).to(&hops[1..]).due(start.plus(MINUTE * 20), Some(HOUR)), flows);

    let start = plot.place.at(day, 21, 0);
    let by = desk(96);
    let flows: Vec<Flow> =
        (0..6_u64).map(|number| session(start.plus(MINUTE * (number as u32 * 5)), by, server(number), 5985)).collect();
    let servers: Vec<Address> = (0..6).map(server).collect();
    let attack = Attack::new("six new admin sessions from one desk", "lateral movement", &["ND-13"], start, &flows);
    plot.add(attack.fair(&fair).by(&[by]).to(&servers).due(start.plus(MINUTE * 10), Some(HOUR)), flows);
}

/// A host that was never there, and a door that was never open.
fn newcomers(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 20, 30);
    let by = Address::from_v4([10, 0, 20, 222]);
    let flows: Vec<Flow> = (0..40_u64)
        .map(|number| Flow::tcp(start.plus(MINUTE * number as u32), by, HMI, 80).with_source_mac([0x02, 9, 9, 9, 9, 9]))
        .collect();
    let attack = Attack::new("a new host in the plant", "change", &["ND-14"], start, &flows);
    plot.add(attack.fair(&["ND-15", "ND-13"]).by(&[by]).to(&[HMI]).due(start, Some(HOUR)), flows);

    let start = plot.place.at(day, 20, 45);
    let to = server(13);
    let flows: Vec<Flow> = (0..30_u64)
        .map(|number| Flow::tcp(start.plus(MINUTE * number as u32), desk(20 + number % 4), to, 4444).carrying(2_000, 9_000))
        .collect();
    let attack = Attack::new("a new service on a server", "change", &["ND-15"], start, &flows);
    plot.add(attack.fair(&["AZ-20", "AZ-21", "ND-13"]).to(&[to]).due(start, Some(HOUR)), flows);
}

/// Somebody else speaks in the domain controller's name.
fn spoofing(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 21, 30);
    let other = [0x02, 6, 6, 6, 6, 6];
    let flows: Vec<Flow> = (0..60_u64)
        .map(|number| {
            let at = start.plus(Duration::from_secs(number * 5));
            let answer = Flow::udp(at, DOMAIN_CONTROLLER, desk(97), 5353);
            if number % 2 == 0 { answer.with_source_mac(other) } else { answer }
        })
        .collect();
    let attack = Attack::new("another MAC for the domain controller", "change", &["ND-14"], start, &flows);
    plot.add(attack.by(&[DOMAIN_CONTROLLER]).due(start, Some(MINUTE * 10)), flows);
}

/// A PLC stops, and whoever polls it asks in vain.
fn silence(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 22, 30);
    let gone = plc(3);
    plot.traffic.dies(gone, start);
    let flows: Vec<Flow> = (0..30_u64)
        .map(|number| Flow::tcp(start.plus(Duration::from_secs(1 + number * 60)), HMI, gone, 502).going(Course::Silent))
        .collect();
    let attack = Attack::new("a PLC falls silent", "change", &["ND-16"], start, &flows);
    plot.add(attack.fair(&["ND-28"]).by(&[gone]).due(start, Some(HOUR)), flows);
}
