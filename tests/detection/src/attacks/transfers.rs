//! What leaves the house.

use std::time::Duration;

use spanwatch_common::net::Address;

use super::Plot;
use crate::ordinary::{FILES, desk, internet, server};
use crate::traffic::{DAY, Flow, HOUR, MINUTE};
use crate::truth::Attack;

const LEAVING: [&str; 6] = ["ND-11", "ND-12", "AZ-03", "AZ-15", "ND-10", "AZ-11"];

/// Two gigabytes in twenty minutes to somebody who was never spoken to.
pub(super) fn fast(plot: &mut Plot<'_>, day: u32) {
    let (by, to, start) = (desk(91), internet(124_000), plot.place.at(day, 19, 0));
    let flows = vec![Flow::tcp(start, by, to, 443).carrying(2_000_000_000, 12_000_000).lasting(MINUTE * 20)];
    let attack = Attack::new("exfiltration, 2 GB in 20 min", "exfiltration", &["ND-11"], start, &flows);
    plot.add(attack.fair(&LEAVING).by(&[by]).to(&[to]).due(start, Some(MINUTE * 30)), flows);
    let (by, start) = (server(11), plot.place.at(day, 19, 30));
    let flows = vec![Flow::tcp(start, by, internet(124_200), 22).carrying(700_000_000, 9_000_000).lasting(MINUTE * 15)];
    let attack = Attack::new("exfiltration, 700 MB from a server over SSH", "exfiltration", &["ND-11"], start, &flows);
    plot.add(attack.fair(&LEAVING).by(&[by]).due(start, Some(MINUTE * 30)), flows);
}

/// Spread over a day and more, or through the DNS; and a flood of file copies that is unusual for the whole site.
pub(super) fn slow(plot: &mut Plot<'_>, day: u32) {
    let (by, to, start) = (desk(92), internet(124_400), plot.place.at(day, 0, 10));
    let mut dice = plot.dice("slow exfiltration");
    let mut flows = Vec::new();
    let mut at = start;
    while at < start.plus(DAY + HOUR * 12) {
        flows.push(Flow::tcp(at, by, to, 443).carrying(6_000_000, 30_000).lasting(Duration::from_secs(30)));
        at = at.plus(dice.around(MINUTE * 10, 0.5));
    }
    let attack = Attack::new("exfiltration, 6 MB every 10 min", "exfiltration", &["ND-11"], start, &flows);
    plot.add(attack.fair(&LEAVING).by(&[by]).to(&[to]).due(start, Some(HOUR * 30)), flows);

    let (by, to, start) = (desk(93), internet(124_600), plot.place.at(day, 2, 0));
    let flows: Vec<Flow> = (0..40_000_u64)
        .map(|number| {
            let question = Flow::udp(start.plus(Duration::from_millis(number * 700)), by, to, 53);
            Flow { octets: [230, 260], ..question.with_source_port(20_000 + (number % 40_000) as u16) }
        })
        .collect();
    let attack = Attack::new("tunnel through the DNS, 9 MB out", "exfiltration", &["ND-11"], start, &flows);
    plot.add(attack.fair(&LEAVING).by(&[by]).to(&[to]).due(start, Some(HOUR * 24)), flows);

    let start = plot.place.at(day, 22, 0);
    let hosts: Vec<Address> = (0..30).map(desk).collect();
    let copies = hosts.iter().map(|&host| Flow::tcp(start, host, FILES, 445).carrying(5_000_000_000, 20_000_000).lasting(HOUR));
    let flows: Vec<Flow> = copies.collect();
    let attack = Attack::new("150 GB over SMB in an hour of the night", "volume", &["ND-12"], start, &flows);
    let unusual = ["ND-12", "AZ-03", "AZ-08", "AZ-10", "AZ-13"];
    plot.add(attack.fair(&unusual).by(&hosts).to(&[FILES]).due(start, Some(HOUR * 2)), flows);
}
