//! What happens: ordinary traffic, and traffic planted at each threshold, one above it, and across the edge of a bin.
//!
//! Each plant has addresses of its own in 10.1.0.0/16, 192.0.2.0/24 and 203.0.113.0/24, so that its verdict is known; ordinary traffic
//! keeps to 10.20.0.0/16, 10.30.0.0/16 and 198.51.100.0/24.

use std::net::{IpAddr, Ipv6Addr};

use super::{DAY, Dice, EPOCH, INTERFACES, Interface, State, Tuple};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
/// Interfaces on which plants are laid: flow logs of every version. Traffic Analytics folds what must stay apart.
const LOGGING: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// What is known about a plant before anybody computes: whether the exact form of a rule reports this key.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub rule: &'static str,
    /// A key field and its value, such as `src` and `10.1.0.1`.
    pub field: &'static str,
    pub value: String,
    /// Bins that begin before this, in milliseconds, do not count.
    pub from_ms: i64,
    pub reported: bool,
}

/// Tuples being made.
pub struct Traffic {
    pub tuples: Vec<Tuple>,
    pub verdicts: Vec<Verdict>,
    days: i64,
    dice: Dice,
    plants: u8,
    ports: u16,
}

impl Traffic {
    /// Ordinary traffic of about `tuples` tuples spread over `days` days, and every plant that fits into them (all from 15 on).
    pub fn new(seed: u64, days: i64, tuples: usize) -> Self {
        let mut traffic = Self { tuples: Vec::new(), verdicts: Vec::new(), days, dice: Dice::new(seed), plants: 0, ports: 0 };
        traffic.scans();
        traffic.sessions();
        traffic.beacons();
        traffic.daily();
        while traffic.tuples.len() < tuples {
            traffic.conversation();
        }
        traffic
    }

    /// A conversation such as there are many: by day more than by night, on weekdays more than on Sundays.
    fn conversation(&mut self) {
        let dice = &mut self.dice;
        let day = dice.below(self.days as u64) as i64;
        if matches!(day % 7, 0 | 6) && dice.one_in(2) {
            return;
        }
        let of_day = (dice.below(43_200) + dice.below(43_200)) as i64;
        let at_ms = (EPOCH + day * DAY + of_day) * 1_000 + dice.below(1_000) as i64;
        let interface = Interface(dice.below(INTERFACES.len() as u64) as u8);
        let form = interface.form();
        let peer = match dice.below(20) {
            0..=11 => IpAddr::from([10, 30, 0, dice.below(40) as u8]),
            12..=17 => IpAddr::from([198, 51, 100, dice.below(60) as u8]),
            18 if !form.is_folded() => IpAddr::from(Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(dice.below(30)))),
            _ => IpAddr::from([10, 20, dice.below(11) as u8, 4]),
        };
        let protocol = match dice.below(20) {
            0 if !form.is_nsg() => ICMP,
            0..=2 => UDP,
            _ => TCP,
        };
        let port = match protocol {
            ICMP => 0,
            UDP => dice.pick(&[53, 123, 443, 3_478]),
            _ => dice.pick(&[22, 53, 80, 443, 443, 443, 1_433, 3_389, 5_985, 8_080, 8_888, 445, 9_999, 10_000, 49_152]),
        };
        let inbound = dice.one_in(2);
        let (source, destination) = if inbound { (peer, interface.address()) } else { (interface.address(), peer) };
        let mut tuple = Tuple {
            at_ms,
            interface,
            source,
            destination,
            source_port: if protocol == ICMP { 0 } else { 1_024 + dice.below(60_000) as u16 },
            port,
            protocol,
            inbound,
            state: if dice.one_in(12) { State::Denied } else { State::Begin },
            packets: [0; 2],
            octets: [0; 2],
            platform: dice.one_in(50),
        };
        self.tuples.push(tuple.clone());
        if tuple.state == State::Denied {
            return;
        }
        let slices = if dice.one_in(15) { 1 + dice.below(8) } else { 0 };
        for slice in 0..=slices {
            tuple.state = if slice == slices { State::End } else { State::Continue };
            tuple.at_ms += if slice == slices { dice.below(60_000) as i64 } else { 300_000 };
            let answered = u64::from(!dice.one_in(10));
            tuple.packets = [1 + dice.below(200), answered * dice.below(300)];
            tuple.octets = [tuple.packets[0] * (60 + dice.below(400)), tuple.packets[1] * (60 + dice.below(1_200))];
            if tuple.at_ms < (EPOCH + self.days * DAY) * 1_000 {
                self.tuples.push(tuple.clone());
            }
        }
    }

    /// The next interface in turn, so that every form carries plants.
    fn next_interface(&mut self) -> Interface {
        self.plants = self.plants.wrapping_add(1);
        Interface(LOGGING[usize::from(self.plants) % LOGGING.len()])
    }

    /// One tuple without counters. Source ports differ, so that no two are alike.
    fn knock(&mut self, interface: Interface, at_ms: i64, way: Way, ends: (IpAddr, IpAddr), protocol: u8, port: u16) {
        self.ports = self.ports.wrapping_add(1);
        let (inbound, state) = match way {
            Way::In => (true, State::Begin),
            Way::Out => (false, State::Begin),
            Way::Refused => (true, State::Denied),
        };
        self.tuples.push(Tuple {
            at_ms,
            interface,
            source: ends.0,
            destination: ends.1,
            source_port: self.ports,
            port,
            protocol,
            inbound,
            state,
            packets: [0; 2],
            octets: [0; 2],
            platform: false,
        });
    }

    fn verdict(&mut self, rule: &'static str, field: &'static str, value: impl ToString, reported: bool) {
        self.verdicts.push(Verdict { rule, field, value: value.to_string(), from_ms: 0, reported });
    }

    /// AZ-01, 02, 05, 06, 16, 17, 23: distinct hosts and ports.
    fn scans(&mut self) {
        // (hosts, milliseconds between, port, transport, whether AZ-01 reports it); twelve are six each side of the edge of a minute.
        let sweeps: [(u8, i64, u16, u8, bool); 8] = [
            (7, 0, 445, TCP, true),
            (6, 0, 445, TCP, false),
            (12, 10_000, 445, TCP, false),
            (7, 0, 9_999, TCP, true),
            (7, 0, 10_000, TCP, false),
            (7, 0, 445, UDP, false),
            (200, 0, 22, TCP, true),
            (7, 1, 0, TCP, true),
        ];
        for (n, (hosts, apart, port, transport, reported)) in sweeps.into_iter().enumerate() {
            let source = IpAddr::from([10, 1, 1, n as u8]);
            let interface = self.next_interface();
            for host in 0..hosts {
                let at = at(0, 3, 0, 5) + i64::from(host) * apart;
                self.knock(interface, at, Way::In, (source, IpAddr::from([172, 16, 1, host])), transport, port);
            }
            self.verdict("AZ-01", "src", source, reported);
        }
        let public = IpAddr::from([203, 0, 113, 1]);
        for host in 0..7 {
            let interface = self.next_interface();
            self.knock(interface, at(0, 3, 1, 0), Way::In, (public, IpAddr::from([172, 16, 1, host])), TCP, 445);
        }
        self.verdict("AZ-01", "src", public, false);

        // Ports of one host: AZ-02 reports above 3 in a minute, AZ-16 above 100 in half a minute.
        for (n, (ports, apart, two, sixteen)) in [
            (4_u16, 0, true, false),
            (3, 0, false, false),
            // Three each side of the edge.
            (6, 10_000, false, false),
            (100, 10, true, false),
            (101, 10, true, true),
            // Fifty-one and fifty.
            (101, 295, true, false),
        ]
        .into_iter()
        .enumerate()
        {
            let (source, target) = (IpAddr::from([10, 1, 2, n as u8]), IpAddr::from([172, 16, 2, n as u8]));
            let interface = self.next_interface();
            // A minute and half a minute end at 05:10:00.
            let last_first = if n == 2 {
                at(1, 5, 9, 30)
            } else if n == 5 {
                at(1, 5, 9, 45)
            } else {
                at(1, 5, 9, 0)
            };
            for port in 0..ports {
                self.knock(interface, last_first + i64::from(port) * apart, Way::In, (source, target), TCP, 1 + port * 7);
            }
            self.verdict("AZ-02", "src", source, two);
            self.verdict("AZ-16", "src", source, sixteen);
        }

        // AZ-05: above 50 ports of whatever host in five minutes, from a public IPv4 source.
        let v6 = IpAddr::from(Ipv6Addr::from(0x2001_0db8_0000_0005_u128 << 64));
        for (source, ports, apart, reported) in [
            (IpAddr::from([203, 0, 113, 51]), 51_u16, 0, true),
            (IpAddr::from([203, 0, 113, 50]), 50, 0, false),
            (IpAddr::from([203, 0, 113, 52]), 51, 5_000, false),
            (IpAddr::from([10, 1, 5, 1]), 51, 0, false),
            (IpAddr::from([127, 0, 0, 1]), 51, 0, false),
            (v6, 51, 0, false),
        ] {
            for port in 0..ports {
                let interface = self.next_interface();
                let target = IpAddr::from([10, 1, 5, (port % 40) as u8]);
                // The five minutes end at 07:55.
                self.knock(interface, at(1, 7, 53, 0) + i64::from(port) * apart, Way::In, (source, target), UDP, 20_000 + port);
            }
            self.verdict("AZ-05", "src", source, reported);
        }

        // AZ-06: above 20 hosts reached inbound on a port in an hour. AZ-17: above 200 by one source in half a minute, not on 80 and 443.
        for (port, hosts, way, six, seventeen) in [
            (7_021_u16, 21_u8, Way::In, true, false),
            (7_020, 20, Way::In, false, false),
            (7_022, 21, Way::Out, false, false),
            (7_200, 200, Way::In, true, false),
            (7_201, 201, Way::In, true, true),
        ] {
            let source = IpAddr::from([10, 1, 6, (port % 250) as u8]);
            for host in 0..hosts {
                let interface = self.next_interface();
                let at = at(2, 9, 0, 0) + i64::from(host);
                self.knock(interface, at, way, (source, IpAddr::from([10, 1, 7, host])), TCP, port);
            }
            self.verdict("AZ-06", "dport", port, six);
            self.verdict("AZ-17", "dport", port, seventeen);
        }

        // AZ-23: at least 600 ports from as many, between private and public.
        for (source, ports, reported) in [([203, 0, 113, 60], 600_u16, true), ([203, 0, 113, 61], 599, false)] {
            let source = IpAddr::from(source);
            let interface = self.next_interface();
            for port in 0..ports {
                self.knock(
                    interface,
                    at(2, 11, 0, 0) + i64::from(port) * 5_000,
                    Way::In,
                    (source, IpAddr::from([10, 1, 8, 1])),
                    TCP,
                    30_000 + port,
                );
            }
            self.verdict("AZ-23", "src", source, reported);
        }
    }

    /// AZ-07, 09, 14, 18, 22: counts.
    fn sessions(&mut self) {
        for (n, (denials, reported)) in [(5_001_u16, true), (5_000, false)].into_iter().enumerate() {
            let source = IpAddr::from([203, 0, 113, 70 + n as u8]);
            let interface = self.next_interface();
            for denial in 0..denials {
                let at = at(3, 10, 5, 0) + i64::from(denial) * 50;
                self.knock(interface, at, Way::Refused, (source, IpAddr::from([10, 1, 9, 1])), TCP, 25);
            }
            self.verdict("AZ-07", "src", source, reported);
        }
        // The same 5,001 across the edge of five minutes.
        let source = IpAddr::from([203, 0, 113, 72]);
        for denial in 0..5_001_u16 {
            self.knock(
                Interface(0),
                at(3, 10, 8, 0) + i64::from(denial) * 50,
                Way::Refused,
                (source, IpAddr::from([10, 1, 9, 2])),
                TCP,
                25,
            );
        }
        self.verdict("AZ-07", "src", source, false);

        // AZ-09: above 1,000 of one port, way and action in ten minutes. 9150 nobody else uses.
        for (hour, count, port) in [(1_i64, 1_001_u16, 9_150_u16), (2, 1_000, 9_151)] {
            let interface = self.next_interface();
            for n in 0..count {
                let source = IpAddr::from([10, 1, 10, (n % 5) as u8]);
                self.knock(
                    interface,
                    at(4, hour, 0, 0) + i64::from(n) * 500,
                    Way::Out,
                    (source, IpAddr::from([203, 0, 113, 90])),
                    TCP,
                    port,
                );
            }
            self.verdict("AZ-09", "dport", port, count > 1_000);
        }

        // AZ-14 wants failures that are not denials, which Azure's logs do not have: silent.
        let source = IpAddr::from([203, 0, 113, 80]);
        for n in 0..30 {
            self.knock(
                Interface(1),
                at(4, 4, 0, 0) + n * 1_000,
                Way::Refused,
                (source, IpAddr::from([10, 1, 11, 1])),
                TCP,
                3_389,
            );
        }
        self.verdict("AZ-14", "src", source, false);

        // AZ-18: eight quiet hours of denials (2 or 3 each: mean 2.5, deviation 0.53), then 6 or 5 in one; three deviations are below 5, so 5 is the limit.
        for (n, (last, reported)) in [(6_i64, true), (5, false)].into_iter().enumerate() {
            let source = IpAddr::from([203, 0, 113, 85 + n as u8]);
            let ends = (source, IpAddr::from([10, 1, 12, 1]));
            for hour in 0..9_i64 {
                let count = if hour == 8 { last } else { 2 + hour % 2 };
                for denial in 0..count {
                    self.knock(Interface(2), at(5, 8 + hour, 10, 0) + denial * 1_000, Way::Refused, ends, TCP, 23);
                }
            }
            self.verdict("AZ-18", "src", source, reported);
        }
    }

    /// AZ-11 and AZ-12: the time between a source's connections.
    fn beacons(&mut self) {
        // (events, seconds between, whether other traffic of the host comes between, AZ-11, AZ-12)
        for (n, (events, apart, disturbed, eleven, twelve)) in [
            (60_i64, 60_i64, false, true, true),
            (17, 200, false, true, false),
            (16, 200, false, false, false),
            (32, 100, false, true, true),
            (31, 100, false, true, false),
            (60, 60, true, false, false),
            (300, 10, false, false, false),
            (300, 11, false, true, false),
        ]
        .into_iter()
        .enumerate()
        {
            let source = IpAddr::from([10, 1, 20, n as u8]);
            let far = IpAddr::from([203, 0, 113, 120 + n as u8]);
            let interface = self.next_interface();
            for event in 0..events {
                let at = at(6, 13, 0, 0) + event * apart * 1_000;
                self.knock(interface, at, Way::Out, (source, far), TCP, 443);
                if disturbed {
                    self.knock(interface, at + 20_000 + event * 300, Way::Out, (source, IpAddr::from([192, 0, 2, 9])), TCP, 80);
                }
            }
            self.verdict("AZ-11", "src", source, eleven);
            self.verdict("AZ-12", "src", source, twelve);
        }
    }

    /// AZ-10, 13, 15: days compared with days. Needs 15 days.
    fn daily(&mut self) {
        if self.days < 15 {
            return;
        }
        // AZ-13: 13 days in sum against the last. 20 a day: |20 - 260| / 260 = 0.92. 130 in sum: 65 is half, 66 less, 196 more than half.
        for (n, (each, last, reported)) in
            [(20_i64, 20_i64, true), (10, 65, false), (10, 66, false), (10, 64, true), (10, 196, true)].into_iter().enumerate()
        {
            let source = IpAddr::from([10, 1, 13, n as u8]);
            let interface = self.next_interface();
            for day in 1..15 {
                for event in 0..if day == 14 { last } else { each } {
                    let at = at(day, 6, 0, 0) + event * 61_000;
                    self.knock(interface, at, Way::In, (source, IpAddr::from([10, 1, 14, 1])), TCP, 139);
                }
            }
            self.verdicts.push(Verdict {
                rule: "AZ-13",
                field: "src",
                value: source.to_string(),
                from_ms: at(14, 0, 0, 0),
                reported,
            });
        }
        // AZ-10: ten times as much on the last day. Among days that are alike such a day scores 5.8 whatever its height, and the rule
        // wants 6; among days that rise and fall, slowly, it scores 7.
        for (port, reported) in [(389_u16, false), (636, true)] {
            for day in 0..15_i64 {
                let count = match (day, reported) {
                    (14, _) => 1_000,
                    (_, false) => 100 + day * 37 % 11,
                    (_, true) => 190 - 5 * (day - 7) * (day - 7) / 2,
                };
                for event in 0..count {
                    let source = IpAddr::from([10, 1, 15, (event % 20) as u8]);
                    let ends = (source, IpAddr::from([10, 1, 16, 1]));
                    self.knock(Interface(0), at(day, 1, 0, 0) + event * 60_000, Way::In, ends, TCP, port);
                }
            }
            self.verdict("AZ-10", "dport", port, reported);
        }
        // AZ-15: about 100 MB an hour to the outside past one interface; on the day before the last, an hour
        // with a gigabyte more from one source, a little over 10 MB from another, and 10 MB exactly from a third.
        for hour in 0..24 * 15_i64 {
            let wobble = (hour * 7_919 % 97) as u64 * 10_000;
            self.upload(Interface(3), hour, 1, 100_000_000 + wobble);
        }
        for (source, octets) in [(2, 1_000_000_000), (3, 10_000_001), (4, 10_000_000)] {
            self.upload(Interface(3), 24 * 13 + 15, source, octets);
        }
    }

    /// One flow that sends `octets` to a public address at half past an hour.
    fn upload(&mut self, interface: Interface, hour: i64, source: u8, octets: u64) {
        let ends = (IpAddr::from([10, 1, 17, source]), IpAddr::from([203, 0, 113, 200]));
        self.knock(interface, at(hour / 24, hour % 24, 30, 0), Way::Out, ends, TCP, 443);
        if let Some(tuple) = self.tuples.last_mut() {
            (tuple.state, tuple.packets, tuple.octets) = (State::End, [octets / 1_400, 10], [octets, 600]);
        }
    }
}

/// How a planted connection is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
    /// Inbound and denied.
    Refused,
}

/// Milliseconds of a day, hour, minute and second.
fn at(day: i64, hour: i64, minute: i64, second: i64) -> i64 {
    (EPOCH + day * DAY + hour * 3_600 + minute * 60 + second) * 1_000
}
