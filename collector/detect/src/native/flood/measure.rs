//! What a row adds to a flood, for each of the three rules.
//!
//! | | counted as it begins, by the second | counted when a slice is told, by the minute |
//! | --- | --- | --- |
//! | ND-07 | TCP connections asked for (SYN); good are those that the client acknowledged | further SYNs of one flow; SYNs in aggregates |
//! | ND-08 | | octets that a service known as a reflector sent unasked, or more than ten for each asked |
//! | ND-09 | TCP connections that came about; UDP flows, good are those answered; ICMP flows | datagrams, ICMP packets |
//!
//! A flow is counted once: when the sensor announces it, half a second after its first packet, in which a handshake is done. A cloud's log
//! counts it when it is over or denied. Folded rows of Traffic Analytics stand for an hour, and have no rate.

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Origin;
use spanwatch_common::flow::{FORWARD, FlowState, REVERSE, protocol, tcp};
use spanwatch_common::net::Address;

use crate::ports::PortSet;
use crate::roles::Role;
use crate::row::{Outcome, Part, Row};

/// Which rule.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// ND-07: connections are asked for and not completed.
    Syn,
    /// ND-08: answers that nobody asked for, from services on these ports.
    Reflection(PortSet),
    /// ND-09: too many connections, datagrams or pings.
    Load,
}

/// Who is flooded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Key {
    /// The host.
    pub(super) victim: u128,
    /// Its port; the reflectors' in ND-08; 0 for all ports that are not busy by themselves.
    pub(super) port: u16,
    /// IP protocol number.
    pub(super) protocol: u8,
}

/// What one row adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    pub(super) key: Key,
    /// Who sends it.
    pub(super) source: Address,
    /// Flows that began.
    pub(super) count: u32,
    /// Those of them that came to something.
    pub(super) good: u32,
    /// Packets or octets of a slice.
    pub(super) bulk: u64,
    /// What went the other way meanwhile.
    pub(super) bulk_back: u64,
    /// Whether the source is a prefix.
    pub(super) from_prefix: bool,
    /// Whether ports that are not busy by themselves are added up.
    pub(super) any_port: bool,
}

impl Kind {
    /// What `row` adds; none if the rule does not look at it.
    pub(super) fn measure(&self, row: &Row) -> Option<Measure> {
        if row.aggregate && row.destination_prefix.is_some() || row.origin.is_folded() {
            return None;
        }
        match self {
            Self::Syn if row.protocol == protocol::TCP => opening(row),
            Self::Reflection(ports) if row.protocol == protocol::UDP => reflected(row, ports),
            Self::Load => match row.protocol {
                protocol::TCP => opening(row).filter(|opening| opening.good > 0).map(|opening| Measure {
                    count: opening.good,
                    good: 0,
                    bulk: 0,
                    any_port: false,
                    ..opening
                }),
                protocol::UDP | protocol::ICMP | protocol::ICMPV6 => packets(row),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Of `row`'s destination and port, nothing yet.
fn towards_destination(row: &Row) -> Measure {
    Measure {
        key: Key { victim: row.destination.0, port: row.port, protocol: row.protocol },
        source: row.source,
        count: 0,
        good: 0,
        bulk: 0,
        bulk_back: 0,
        from_prefix: row.source_prefix.is_some(),
        any_port: true,
    }
}

/// A TCP connection that was asked for.
fn opening(row: &Row) -> Option<Measure> {
    let measure = towards_destination(row);
    if row.origin != Origin::Sensor {
        let over = row.outcome == Outcome::Denied || row.state == FlowState::End;
        let good = if row.outcome.is_failure() { 0 } else { row.events };
        return over.then_some(Measure { count: row.events, good, ..measure });
    }
    let is_request = |flags: u16| flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    match row.part {
        Part::Announcement if is_request(row.initial_flags[FORWARD]) && row.events > 0 => {
            // RST after SYN-ACK acknowledges nothing: whose address was forged does that.
            Some(Measure { count: 1, good: u32::from(row.flags[FORWARD] & tcp::ACK != 0), ..measure })
        }
        // The first of them was announced.
        Part::Slice if is_request(row.flags[FORWARD]) => {
            let bulk = row.packets[FORWARD].saturating_sub(u64::from(!row.aggregate));
            (bulk > 0).then_some(Measure { bulk, ..measure })
        }
        _ => None,
    }
}

/// Datagrams and pings.
fn packets(row: &Row) -> Option<Measure> {
    let measure = Measure { any_port: row.protocol == protocol::UDP, ..towards_destination(row) };
    match row.part {
        Part::Announcement => (row.events > 0).then_some(Measure {
            count: 1,
            good: u32::from(row.answered && row.protocol == protocol::UDP),
            ..measure
        }),
        Part::Slice => {
            let bulk = row.packets[FORWARD].saturating_sub(u64::from(!row.aggregate));
            // An answered ping is a flood nevertheless; answered datagrams are a conversation.
            let bulk_back = if row.protocol == protocol::UDP { row.packets[REVERSE] } else { 0 };
            (bulk > 0).then_some(Measure { bulk, bulk_back, ..measure })
        }
        Part::Tail => None,
    }
}

/// How many octets an answer must have for each that asked.
const AMPLIFICATION_MIN: u64 = 10;

/// Answers of a reflector. Who is known as the initiator depends on what the sensor saw first, so the victim may be either end.
fn reflected(row: &Row, ports: &PortSet) -> Option<Measure> {
    if row.part != Part::Slice {
        return None;
    }
    let way = |from: usize| (row.octets[from], row.octets[1 - from]);
    let is_much = |(answer, question): (u64, u64)| answer > 0 && answer > question.saturating_mul(AMPLIFICATION_MIN);
    let (victim, reflector, port, from, roles) = if ports.contains(row.port) && is_much(way(REVERSE)) {
        (row.source, row.destination, row.port, REVERSE, row.source_roles)
    } else if ports.contains(row.source_port) && is_much(way(FORWARD)) {
        (row.destination, row.source, row.source_port, FORWARD, row.destination_roles)
    } else {
        return None;
    };
    let (answer, question) = way(from);
    // Who asks for a living gets long answers.
    if question > 0 && roles.has_any(&[Role::Dns, Role::Monitor, Role::Proxy]) {
        return None;
    }
    Some(Measure {
        key: Key { victim: victim.0, port, protocol: protocol::UDP },
        source: reflector,
        count: 0,
        good: 0,
        bulk: answer,
        bulk_back: question,
        from_prefix: from == FORWARD && row.source_prefix.is_some(),
        any_port: false,
    })
}
