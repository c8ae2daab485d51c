//! Looking for an open door: fast and slow, straight and crooked.

use std::time::Duration;

use spanwatch_common::flow::tcp;
use spanwatch_common::net::Address;

use super::{ANY_SCAN, Knock, Plot, probes};
use crate::ordinary::{desk, dmz, internet, server};
use crate::traffic::{Course, Flow, HOUR, MINUTE};
use crate::truth::Attack;

/// The goal for ten probes a second and more.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Ports that are open on every server here.
const OPEN: [u16; 3] = [22, 443, 445];

/// Of a live host: open ports are found and left, closed ones refuse.
fn live(host: Address, port: u16) -> Knock {
    Knock { host, port, course: if OPEN.contains(&port) { Course::HungUp } else { Course::Refused } }
}

/// Of a host that is not there, or behind a wall.
const fn dead(host: Address, port: u16) -> Knock {
    Knock { host, port, course: Course::Silent }
}

/// Ten probes a second and more: each has to be found within two seconds.
pub(super) fn fast(plot: &mut Plot<'_>, day: u32) {
    let mut minute = 0;
    let mut number = 0;
    let mut scan =
        |plot: &mut Plot<'_>, name: &str, rule: &str, outside: bool, gap_ms: u64, mut knocks: Vec<Knock>, mixed: bool| {
            let mut dice = plot.dice(name);
            if mixed {
                dice.shuffle(&mut knocks);
            }
            let by = if outside { internet(110_000 + number * 300) } else { desk(10 + u64::from(number)) };
            let start = plot.place.at(day, 9, 0).plus(MINUTE * minute);
            (minute, number) = (minute + 7, number + 1);
            let (flows, due) = probes(&mut dice, by, start, Duration::from_millis(gap_ms), 0.1, knocks);
            let attack = Attack::new(name, "fast scan", &[rule], start, &flows).fair(&ANY_SCAN).by(&[by]).due(due, Some(AT_ONCE));
            plot.add(attack, flows);
        };
    let ports = |host: Address, end: u16| (1..=end).map(move |port| live(host, port)).collect::<Vec<_>>();
    for (gap, word) in [(100, "10/s"), (10, "100/s"), (2, "500/s")] {
        for (outside, host) in [(false, server(1)), (true, dmz(10))] {
            let from = if outside { "from outside" } else { "from inside" };
            scan(plot, &format!("vertical, {word}, {from}, in order"), "ND-01", outside, gap, ports(host, 1_000), false);
            scan(plot, &format!("vertical, {word}, {from}, mixed"), "ND-01", outside, gap, ports(host, 1_000), true);
        }
    }
    let silent = (1..=1_000).map(|port| dead(server(2), port)).collect();
    scan(plot, "vertical, 50/s, a wall in front", "ND-01", false, 20, silent, true);
    let subnet = |port: u16| (1..=254).map(move |host| dead(Address::from_v4([10, 0, 77, host]), port));
    scan(plot, "horizontal, 10/s, SMB", "ND-02", false, 100, subnet(445).collect(), false);
    scan(plot, "horizontal, 100/s, RDP, mixed", "ND-02", false, 10, subnet(3389).collect(), true);
    let half = (0..200).map(|host| {
        if host % 3 == 0 { live(desk(host % 100), 445) } else { dead(Address::from_v4([10, 0, 78, host as u8]), 445) }
    });
    scan(plot, "horizontal, 20/s, a third answers", "ND-02", false, 50, half.collect(), true);
    let from_outside = (0..=255).map(|host| dead(dmz(host), 6379));
    scan(plot, "horizontal, 30/s, from outside", "ND-02", true, 33, from_outside.collect(), true);
    let block: Vec<Knock> = (0..20).flat_map(|host| (8_000..8_020).map(move |port| live(server(host % 15), port))).collect();
    scan(plot, "block, 50/s", "ND-03", false, 20, block, true);
    for (bits, word) in [(0, "NULL"), (tcp::FIN, "FIN"), (tcp::FIN | tcp::PSH | tcp::URG, "XMAS"), (tcp::ACK, "ACK")] {
        let course =
            |port: u16| if OPEN.contains(&port) && bits != tcp::ACK { Course::Bare(bits) } else { Course::BareReset(bits) };
        let knocks = (1..=300).map(|port| Knock { host: server(3), port, course: course(port) }).collect();
        scan(plot, &format!("{word}, 20/s"), "ND-01", false, 50, knocks, true);
    }
    datagrams(plot, day);
    decoys(plot, day);
    distributed(plot, day);
}

/// UDP with and without word of closed ports, and ping.
fn datagrams(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 14, 0);
    let every = |number: u64, millis: u64| start.plus(Duration::from_millis(number * millis));
    let by = desk(60);
    let flows: Vec<Flow> =
        (1..=400).map(|port| Flow::udp(every(u64::from(port), 100), by, server(4), port).going(Course::Refused)).collect();
    let due = flows[24].at;
    let attack = Attack::new("UDP, 10/s, unreachable", "fast scan", &["ND-01"], start, &flows);
    plot.add(attack.fair(&ANY_SCAN).by(&[by]).due(due, Some(AT_ONCE)), flows);

    let by = desk(61);
    let flows: Vec<Flow> =
        (1..=400).map(|port| Flow::udp(every(u64::from(port), 100), by, server(5), port).going(Course::Silent)).collect();
    // Silence of a datagram is known when the sensor gives up: after 15 seconds.
    let due = flows[24].at.plus(Duration::from_secs(15));
    let attack = Attack::new("UDP, 10/s, silent", "fast scan", &["ND-01"], start, &flows);
    plot.add(attack.fair(&ANY_SCAN).by(&[by]).due(due, Some(AT_ONCE * 2)), flows);

    let by = desk(62);
    let flows: Vec<Flow> = (1..=254)
        .map(|host| Flow::ping(every(u64::from(host), 50), by, Address::from_v4([10, 0, 79, host])).going(Course::Silent))
        .collect();
    let due = flows[24].at;
    let attack = Attack::new("ping sweep, 20/s", "fast scan", &["ND-02"], start, &flows);
    plot.add(attack.fair(&ANY_SCAN).by(&[by]).due(due, Some(AT_ONCE)), flows);
}

/// Each probe comes from the scanner and from five forged addresses: whoever looks sees six scanners.
fn decoys(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 14, 30);
    let sources: Vec<Address> = (0..5).map(|decoy| internet(119_000 + decoy * 700)).chain([internet(118_000)]).collect();
    let mut flows = Vec::new();
    for port in 1..=300_u16 {
        for (number, &source) in (0..).zip(&sources) {
            let at = start.plus(Duration::from_millis(u64::from(port) * 40 + number));
            flows.push(Flow::tcp(at, source, dmz(25), port).going(Course::Refused).once());
        }
    }
    let due = flows[24 * 6 + 5].at;
    let attack = Attack::new("decoys, 25/s each", "fast scan", &["ND-01"], start, &flows);
    plot.add(attack.fair(&ANY_SCAN).by(&sources).due(due, Some(AT_ONCE)), flows);
}

/// Two hundred hosts of many networks share one subnet among them, three targets each.
fn distributed(plot: &mut Plot<'_>, day: u32) {
    let start = plot.place.at(day, 15, 0);
    let sources: Vec<Address> = (0..200).map(|number| internet(120_000 + number * 41)).collect();
    let mut flows = Vec::new();
    for number in 0..600_u64 {
        let at = start.plus(Duration::from_millis(number * 900));
        let target = dmz((number * 7 % 256) as u8);
        flows.push(Flow::tcp(at, sources[(number % 200) as usize], target, 8291).going(Course::Silent).once());
    }
    let targets: Vec<Address> = (0..=255).map(dmz).collect();
    let attack = Attack::new("distributed, 200 sources", "distributed scan", &["ND-06"], start, &flows);
    plot.add(attack.fair(&ANY_SCAN).by(&sources).to(&targets).due(start.plus(MINUTE), None), flows);
}

/// One probe in fifteen seconds to one in ten minutes: to be found within a day. One in twenty minutes: if at all, in four days.
pub(super) fn slow(plot: &mut Plot<'_>, day: u32) {
    let paces = [(15, "15 s"), (60, "1 min"), (300, "5 min"), (600, "10 min")];
    for (number, (secs, word)) in (0_u32..).zip(paces) {
        let count = (86_400 / secs).min(1_500) as u16;
        let high = |host: Address| (0..count).map(move |port| live(host, 1_000 + port * 3)).collect::<Vec<_>>();
        let wide = |net: u8| {
            (0..count)
                .map(move |host| dead(Address::from_v4([10, 1, net + (host >> 8) as u8, host as u8]), 445))
                .collect::<Vec<_>>()
        };
        let dmz_ports = (0..count).map(|port| live(dmz(10), 2_000 + port * 3)).collect::<Vec<_>>();
        let dmz_hosts = (0..count).map(|host| dead(dmz(host as u8), 23 + host / 256)).collect::<Vec<_>>();
        for (kind, outside, rule, knocks) in [
            ("vertical", false, "ND-01", high(server(6))),
            ("horizontal", false, "ND-02", wide(10 * number as u8)),
            ("vertical", true, "ND-01", dmz_ports),
            ("horizontal", true, "ND-02", dmz_hosts),
        ] {
            let from = if outside { "from outside" } else { "from inside" };
            let name = format!("{kind}, 1 in {word}, {from}");
            let mut dice = plot.dice(&name);
            let mut knocks = knocks;
            dice.shuffle(&mut knocks);
            let own = number * 4 + if kind == "vertical" { 0 } else { 1 };
            let by = if outside { internet(125_000 + own * 301) } else { desk(70 + u64::from(own)) };
            let start = plot.place.at(day, 0, 20).plus(MINUTE * number);
            let (flows, due) = probes(&mut dice, by, start, Duration::from_secs(secs), 0.2, knocks);
            let attack = Attack::new(&name, "slow scan", &[], start, &flows).fair(&ANY_SCAN).fair(&[rule]);
            plot.add(attack.by(&[by]).due(due, Some(HOUR * 24)), flows);
        }
    }
    let name = "horizontal, 1 in 20 min, for four days";
    let mut dice = plot.dice(name);
    let (by, start) = (desk(90), plot.place.at(day, 0, 40));
    let knocks = (0..288_u16).map(|host| dead(Address::from_v4([10, 2, (host >> 8) as u8, host as u8]), 22));
    let (flows, due) = probes(&mut dice, by, start, MINUTE * 20, 0.3, knocks);
    let attack = Attack::new(name, "low and slow", &["ND-05"], start, &flows).fair(&ANY_SCAN);
    plot.add(attack.by(&[by]).due(due, None), flows);
}
