//! What a row says about its source's searching: that it came away empty-handed, and how it knocked, or that it was answered.
//!
//! The probe is named by the initiator's first packet: SYN, nothing (NULL), FIN, FIN+PSH+URG (XMAS), FIN+ACK (Maimon), ACK. A flow
//! that begins with ACK mostly is a connection from before the sensor looked, so it counts only if it is a lone question: nothing but
//! that packet, and a RST, an ICMP unreachable or nothing in answer.

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::{Direction, Origin};
use spanwatch_common::flow::{FORWARD, FlowState, REVERSE, protocol, tcp};

use crate::row::{Contact, Outcome, Part, Row};
use crate::rules::Exclude;
use crate::scan::is_countable;
use crate::sites::FlowClass;

/// Of tcpControlBits, those that make a probe what it is; ECN's are left out (RFC 3168).
const PROBE_BITS: u16 = 0x3f;
/// From such a port to an unprivileged one a datagram is an answer, perhaps to somebody who forged its sender.
const SERVICE_PORTS_END: u16 = 1_024;

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The source knocked in vain.
    Failed(Technique, Came),
    /// The source was answered, and there was something to say.
    Answered,
}

/// How a source knocks (nmap's reference guide has the names).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Technique {
    /// SYN, and no more to be seen; or a TCP tuple of a cloud, which has no flags.
    Syn,
    /// SYN, SYN-ACK, RST.
    HalfOpen,
    /// A whole handshake, and nothing said.
    Connect,
    /// No flags.
    Null,
    /// FIN alone.
    Fin,
    /// FIN, PSH and URG.
    Xmas,
    /// FIN and ACK.
    Maimon,
    /// ACK alone: finds what a firewall lets through.
    Ack,
    /// A datagram.
    Udp,
    /// ICMP echo request.
    Ping,
    /// ICMP timestamp or address mask request.
    IcmpQuery,
    /// Any other protocol.
    Other,
}

impl Technique {
    /// As in "a FIN scan"; nothing where there is nothing special to say.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYN",
            Self::HalfOpen => "half-open SYN",
            Self::Connect => "connect",
            Self::Null => "NULL (no flags)",
            Self::Fin => "FIN",
            Self::Xmas => "XMAS (FIN, PSH, URG)",
            Self::Maimon => "FIN+ACK (Maimon)",
            Self::Ack => "ACK",
            Self::Udp => "UDP",
            Self::Ping => "ping",
            Self::IcmpQuery => "ICMP timestamp or mask",
            Self::Other => "",
        }
    }

    /// How the source knocks with `row`.
    fn of(row: &Row) -> Self {
        match row.protocol {
            protocol::TCP if row.origin != Origin::Sensor => Self::Syn,
            protocol::TCP => Self::of_flags(row.initial_flags[FORWARD], row.flags),
            protocol::UDP => Self::Udp,
            protocol::ICMP if row.icmp >> 8 != 8 => Self::IcmpQuery,
            protocol::ICMP | protocol::ICMPV6 => Self::Ping,
            _ => Self::Other,
        }
    }

    const fn of_flags(initial: u16, [forward, reverse]: [u16; 2]) -> Self {
        const XMAS: u16 = tcp::FIN | tcp::PSH | tcp::URG;
        const MAIMON: u16 = tcp::FIN | tcp::ACK;
        match initial & PROBE_BITS {
            0 => Self::Null,
            tcp::FIN => Self::Fin,
            XMAS => Self::Xmas,
            MAIMON => Self::Maimon,
            tcp::ACK => Self::Ack,
            _ if reverse & tcp::SYN == 0 => Self::Syn,
            _ if forward & tcp::ACK != 0 => Self::Connect,
            _ => Self::HalfOpen,
        }
    }
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Came {
    /// Nothing.
    Nothing,
    /// RST.
    Refusal,
    /// An ICMP error: nobody is there, or nobody may go there.
    Unreachable,
    /// A policy's denial.
    Denial,
    /// A welcome that the source did not use.
    Welcome,
}

impl Came {
    fn of(row: &Row) -> Self {
        match row.outcome {
            Outcome::Denied => Self::Denial,
            Outcome::Reset => Self::Refusal,
            Outcome::Unreachable => Self::Unreachable,
            Outcome::Success => Self::Welcome,
            Outcome::NoReply | Outcome::Unknown => Self::Nothing,
        }
    }
}

/// What `row` says; none if it says nothing of the kind.
pub(super) fn read(row: &Row, exclude: &Exclude) -> Option<Reading> {
    let reading = match row.contact {
        Contact::Probe if is_answer(row) => None,
        Contact::Probe => Some(Reading::Failed(Technique::of(row), Came::of(row))),
        Contact::Other if row.outcome == Outcome::Success => talked(row).then_some(Reading::Answered),
        Contact::Other if waits(row) && !is_answer(row) => Some(Reading::Failed(Technique::Udp, Came::Nothing)),
        Contact::Other => lone_acknowledgement(row),
    }?;
    (row.events > 0 && !row.aggregate && is_countable(row, exclude)).then_some(reading)
}

/// Whether the source is outside of what the operator calls his own.
pub(super) fn is_external(row: &Row) -> bool {
    let at_home = matches!(row.class, FlowClass::IntraSite | FlowClass::InterSite);
    let goes_out = row.class == FlowClass::External && row.direction == Direction::Outbound;
    !(at_home || goes_out || row.source.is_private())
}

/// Whether something was said, not only greeted; judged once when the flow is announced and once at its end.
fn talked(row: &Row) -> bool {
    if row.origin != Origin::Sensor {
        return true;
    }
    if row.state == FlowState::Continue || row.part == Part::Tail {
        return false;
    }
    row.protocol != protocol::TCP || (row.flags[FORWARD] | row.flags[REVERSE]) & tcp::PSH != 0
}

/// A datagram that has not been answered when it is announced. That is early, but a scan should be seen while it lasts: it is doubtful
/// as silence always is, and taken back when an answer comes after all.
pub(super) fn waits(row: &Row) -> bool {
    row.protocol == protocol::UDP
        && row.origin == Origin::Sensor
        && row.part == Part::Announcement
        && row.outcome == Outcome::Unknown
        && !row.answered
        && !row.half_heard
}

/// A datagram from a service to an unprivileged port, whose question was not seen.
fn is_answer(row: &Row) -> bool {
    row.protocol == protocol::UDP && (1..SERVICE_PORTS_END).contains(&row.source_port) && row.port >= SERVICE_PORTS_END
}

/// A flow that begins with ACK (or FIN+ACK) and is no more than that.
fn lone_acknowledgement(row: &Row) -> Option<Reading> {
    let opening = row.initial_flags[FORWARD] & PROBE_BITS;
    let asks = row.protocol == protocol::TCP && row.origin == Origin::Sensor && opening & !tcp::FIN == tcp::ACK;
    if !asks || row.flags[FORWARD] & PROBE_BITS & !opening != 0 {
        return None;
    }
    // A host that knows of no such connection answers with RST and no ACK (RFC 9293 §3.10.7.1).
    let came = if row.outcome == Outcome::Unreachable {
        Came::Unreachable
    } else if row.flags[REVERSE] & PROBE_BITS == tcp::RST {
        Came::Refusal
    } else if row.state == FlowState::End
        && row.part == Part::Slice
        && !row.answered
        && !row.half_heard
        && row.packets[FORWARD] <= 2
    {
        Came::Nothing
    } else {
        return None;
    };
    Some(Reading::Failed(Technique::of_flags(opening, row.flags), came))
}
