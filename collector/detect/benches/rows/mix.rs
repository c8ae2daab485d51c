//! Rows as they come: reproducible, in the order in which a sensor would send them.

use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

/// 2026-11-21T10:00:00Z.
const TEN: i64 = 1_795_255_200;
/// Rows of a second.
const ROWS_PER_SECOND: usize = 4_000;
/// Hosts inside.
const HOSTS: u64 = 600;
/// Addresses outside.
const PEERS: u64 = 5_000;

/// What kind of rows.
#[derive(Clone, Copy)]
pub(crate) enum Mix {
    /// A sensor's: beginning and end of conversations inside and to outside, DNS, slices, one contact in twenty comes to nothing.
    Sensor,
    /// Of Azure's flow logs: 60 interfaces with names around, one row in eight denied.
    Azure,
    /// A sensor's under a flood from forged sources, each new.
    Flood,
}

impl Mix {
    pub(crate) const ALL: [Self; 3] = [Self::Sensor, Self::Azure, Self::Flood];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sensor => "sensor",
            Self::Azure => "azure",
            Self::Flood => "flood",
        }
    }

    /// So many rows.
    pub(crate) fn records(self, rows: usize) -> Vec<FlowRecord> {
        let mut dice = Dice(7);
        let interfaces: Vec<Arc<CloudContext>> = (0..60).map(interface).collect();
        let mut records = Vec::with_capacity(rows + 1);
        while records.len() < rows {
            let nanos = records.len() as i64 * (1_000_000_000 / ROWS_PER_SECOND as i64);
            let at = Timestamp::from_nanos(TEN * 1_000_000_000 + nanos);
            match self {
                Self::Sensor => flow(&mut dice, at, &mut records),
                Self::Azure => {
                    let record = in_azure(&mut dice, at, &interfaces);
                    records.push(record);
                }
                Self::Flood if dice.below(4) == 0 => flow(&mut dice, at, &mut records),
                Self::Flood => records.push(forged(&mut dice, at)),
            }
        }
        // As they come: what ends a flow comes when it has ended.
        records.sort_by_key(FlowRecord::last);
        records.truncate(rows);
        records
    }
}

/// A reproducible stream of numbers (Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Small numbers more often than large ones, as some hosts are busier than others.
    fn skewed(&mut self, n: u64) -> u64 {
        let (a, b) = (self.below(n), self.below(n));
        a * b / n
    }
}

fn inside(number: u64) -> Address {
    Address::from_v4([10, 0, (number >> 8) as u8, number as u8])
}

fn outside(number: u64) -> Address {
    Address::from_v4([203, 0, (number >> 8) as u8, number as u8])
}

/// The rows of one flow: when it begins, and up to twenty seconds later.
fn flow(dice: &mut Dice, at: Timestamp, records: &mut Vec<FlowRecord>) {
    let source = inside(dice.skewed(HOSTS));
    let kind = dice.below(100);
    let (destination, protocol, port) = match kind {
        0..30 => (inside(HOSTS), protocol::UDP, 53),
        30..55 => (outside(dice.skewed(PEERS)), protocol::TCP, 443),
        55..60 => (outside(dice.below(PEERS)), protocol::UDP, 443),
        60..80 => (inside(HOSTS + 1 + dice.below(20)), protocol::TCP, [445, 389, 88, 80, 8080][dice.below(5) as usize]),
        80..90 => (inside(HOSTS + 30 + dice.below(50)), protocol::TCP, [502, 4840, 44818, 3389, 22][dice.below(5) as usize]),
        90..95 => (Address::from_v4([224, 0, 0, 251]), protocol::UDP, 5353),
        _ => (inside(dice.below(4 * HOSTS)), protocol::TCP, [22, 80, 135, 445][dice.below(4) as usize]),
    };
    let failed = kind >= 95;
    let begin = FlowRecord {
        flow_id: records.len() as u64 + 1,
        state: FlowState::Begin,
        source,
        destination,
        source_port: 1_024 + dice.below(64_000) as u16,
        destination_port: port,
        protocol,
        start: [at, if failed || kind >= 90 { Timestamp::NONE } else { at }],
        end: [at; 2],
        tcp_flags: flags(protocol, failed),
        initial_tcp_flags: if protocol == protocol::TCP {
            [tcp::SYN, if failed { 0 } else { tcp::SYN | tcp::ACK }]
        } else {
            [0; 2]
        },
        ..FlowRecord::default()
    };
    let packets = 2 + dice.below(20);
    let octets = [packets * 90, if failed { 0 } else { packets * (100 + dice.below(1_200)) }];
    let over = at.plus(Duration::from_millis(dice.skewed(20_000)));
    let end = FlowRecord {
        end: [over; 2],
        state: if dice.below(6) == 0 { FlowState::Continue } else { FlowState::End },
        end_reason: FlowEndReason::EndOfFlow,
        packets: [packets, if failed { 0 } else { packets }],
        octets,
        answered: !failed,
        ..begin.clone()
    };
    records.extend([begin, end]);
}

fn flags(protocol: u8, failed: bool) -> [u16; 2] {
    match (protocol, failed) {
        (protocol::TCP, true) => [tcp::SYN, 0],
        (protocol::TCP, false) => [tcp::SYN | tcp::ACK | tcp::PSH | tcp::FIN; 2],
        _ => [0; 2],
    }
}

/// A SYN whose source is new each time.
fn forged(dice: &mut Dice, at: Timestamp) -> FlowRecord {
    FlowRecord {
        flow_id: dice.below(u64::MAX),
        state: FlowState::Begin,
        source: Address(0xffff_0000_0000 | u128::from(dice.below(1 << 31) | 0x2000_0000)),
        destination: inside(HOSTS + 3),
        source_port: dice.below(65_536) as u16,
        destination_port: 80,
        protocol: protocol::TCP,
        start: [at, Timestamp::NONE],
        end: [at, Timestamp::NONE],
        tcp_flags: [tcp::SYN, 0],
        initial_tcp_flags: [tcp::SYN, 0],
        ..FlowRecord::default()
    }
}

fn interface(number: u32) -> Arc<CloudContext> {
    let name = |text: String| -> Arc<str> { Arc::from(text) };
    Arc::new(CloudContext {
        observer: name(format!("0022481A{number:04X}")),
        resource: name(format!("/subscriptions/0/resourceGroups/plant/providers/Microsoft.Network/virtualNetworks/net-{number}")),
        rule: name("UserRule_allow".to_owned()),
        encryption: name("NX".to_owned()),
        ..CloudContext::default()
    })
}

/// A tuple of a VNet flow log.
fn in_azure(dice: &mut Dice, at: Timestamp, interfaces: &[Arc<CloudContext>]) -> FlowRecord {
    let number = dice.skewed(interfaces.len() as u64) as usize;
    let own = inside(number as u64);
    let inbound = dice.below(2) == 0;
    let denied = dice.below(8) == 0;
    let other = if dice.below(3) == 0 { outside(dice.skewed(PEERS)) } else { inside(dice.below(60)) };
    let state = [FlowState::Begin, FlowState::Continue, FlowState::End][dice.below(3) as usize];
    let packets = if denied || state == FlowState::Begin { 0 } else { 1 + dice.below(40) };
    let port = [443, 443, 80, 22, 3389, 1433, 53, 445, 8080, dice.below(65_536) as u16][dice.below(10) as usize];
    FlowRecord {
        state,
        source: if inbound { other } else { own },
        destination: if inbound { own } else { other },
        source_port: 1_024 + dice.below(64_000) as u16,
        destination_port: port,
        protocol: if port == 53 { protocol::UDP } else { protocol::TCP },
        packets: [packets; 2],
        octets: [packets * 80, packets * 900],
        start: [at; 2],
        end: [at; 2],
        cloud: Some(Box::new(Cloud {
            origin: Origin::VnetV4,
            action: if denied { Action::Deny } else { Action::Allow },
            direction: if inbound { Direction::Inbound } else { Direction::Outbound },
            context: interfaces[number].clone(),
            ..Cloud::default()
        })),
        ..FlowRecord::default()
    }
}
