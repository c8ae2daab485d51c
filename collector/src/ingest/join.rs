//! The two halves of a flow that a sensor saw one-sided, put together again.
//!
//! Where a card cannot send both directions of a conversation to one queue, or two fibres of a TAP come in at two ports, each direction
//! becomes a flow of its own at the sensor, and its records say so ([`FlowRecord::one_sided`]). [`join`] finds what belongs together:
//!
//! | halves of | that | become |
//! | --- | --- | --- |
//! | one conversation: ends, protocol, VLANs, overlay | both announce it | one announcement |
//! | | both have counters of the same minute | one slice; it ends the flow if both do |
//! | | both only say that it is over | one such record |
//!
//! and go opposite ways. The capture port is no part of it: two fibres are two ports. The whole is a record like any other; what finds
//! no partner stays what it is. A flow both of whose directions happened to come to one queue is whole already: its mark goes.
//!
//! Both halves name the same initiator when the packets or the ports say who it is. Otherwise SYN counts more than ports, and ports more
//! than who was heard first. Of equals it is the end with the lower address and port: times of two queues say little about what
//! was first, and every slice of a flow should say the same.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use spanwatch_common::flow::{BiflowDirection, FORWARD, FlowRecord, FlowState, REVERSE, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

/// Counters of halves belong together within this: sensors cut flows at each full minute.
const SLICE: Duration = Duration::from_secs(60);

/// What [`join`] makes of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Whole ones and lone halves, each where its first half was.
    pub records: Vec<FlowRecord>,
    /// How many were put together of two.
    pub pairs: u64,
    /// How many halves found no partner.
    pub lone: u64,
}

/// Whether the record shows one direction of a flow whose other direction may be elsewhere.
pub fn is_half(record: &FlowRecord) -> bool {
    record.one_sided && !record.answered && record.prefix_lengths == [0; 2]
}

/// Puts halves together, the first of each direction with the first of the other.
pub fn join(records: Vec<FlowRecord>) -> Joined {
    let mut waiting: HashMap<(Conversation, bool), VecDeque<usize>> = HashMap::new();
    let mut joined = Joined::default();
    for mut record in records {
        record.one_sided &= !record.answered;
        let Some((conversation, ascends)) = (if is_half(&record) { Conversation::of(&record) } else { None }) else {
            joined.lone += u64::from(is_half(&record));
            joined.records.push(record);
            continue;
        };
        let partner = waiting.get_mut(&(conversation, !ascends)).and_then(VecDeque::pop_front);
        match partner.and_then(|at| joined.records.get_mut(at)) {
            Some(first) => {
                *first = whole(std::mem::take(first), record);
                joined.pairs += 1;
                joined.lone -= 1;
            }
            None => {
                waiting.entry((conversation, ascends)).or_default().push_back(joined.records.len());
                joined.records.push(record);
                joined.lone += 1;
            }
        }
    }
    joined
}

/// Address or MAC address, and port.
type End = (u128, u16);

/// What two halves must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Conversation {
    /// The lower end first.
    ends: [End; 2],
    protocol: u8,
    ethernet_type: u16,
    llc_saps: u16,
    vlan: u16,
    customer_vlan: u16,
    layer2_instance: u64,
    layer2_segment: u64,
    /// ICMP: the type of the question.
    question: u8,
    part: Part,
}

/// Which records of a flow can be two halves of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Announcement,
    /// With counters, of the minute that begins then.
    Slice(Timestamp),
    /// The end of a flow that was silent.
    Tail,
}

impl Conversation {
    /// That of a half, and whether its packets go from the lower end to the higher one; none if it has no partner by its nature.
    fn of(record: &FlowRecord) -> Option<(Self, bool)> {
        let way = heard(record)?;
        let [source, destination] = ends(record);
        let [from, to] = if way == FORWARD { [source, destination] } else { [destination, source] };
        if from == to {
            return None;
        }
        let part = match record.state {
            FlowState::Begin => Part::Announcement,
            FlowState::Continue | FlowState::End if record.packets == [0; 2] => Part::Tail,
            FlowState::Continue | FlowState::End => Part::Slice(record.first().floor(SLICE)),
        };
        let conversation = Self {
            ends: [from.min(to), from.max(to)],
            protocol: record.protocol,
            ethernet_type: record.ethernet_type,
            llc_saps: record.llc_saps,
            vlan: record.vlan,
            customer_vlan: record.customer_vlan,
            layer2_instance: record.layer2_instance,
            layer2_segment: record.layer2_segment,
            question: if record.is_icmp() { question(record.protocol, record.icmp_type_code[way])? } else { 0 },
            part,
        };
        Some((conversation, from < to))
    }
}

/// The one direction in which packets went; none if it is not one.
fn heard(record: &FlowRecord) -> Option<usize> {
    match record.start.map(|start| start.is_some()) {
        [true, false] => Some(FORWARD),
        [false, true] => Some(REVERSE),
        _ => None,
    }
}

/// Source and destination.
fn ends(record: &FlowRecord) -> [End; 2] {
    if record.is_layer2() {
        let station = |mac: [u8; 6], arp: Address| {
            let mac = mac.iter().fold(0, |word, &byte| word << 8 | u128::from(byte));
            (mac << 32 | arp.0 & 0xffff_ffff, 0)
        };
        return [station(record.source_mac, record.arp[FORWARD]), station(record.destination_mac, record.arp[REVERSE])];
    }
    [(record.source.0, record.source_port), (record.destination.0, record.destination_port)]
}

/// The ICMP question to which a message is the answer, or that it is; none for errors and announcements, which nobody answers.
const fn question(protocol: u8, type_code: u16) -> Option<u8> {
    match (protocol, (type_code >> 8) as u8) {
        // Echo, timestamp, information, mask (RFC 792, RFC 950).
        (protocol::ICMP, 0 | 8) => Some(8),
        (protocol::ICMP, asked @ (13 | 15 | 17)) => Some(asked),
        (protocol::ICMP, answer @ (14 | 16 | 18)) => Some(answer - 1),
        // Echo (RFC 4443).
        (protocol::ICMPV6, 128 | 129) => Some(128),
        _ => None,
    }
}

/// How sure a half is of its initiator.
fn certainty(half: &FlowRecord) -> u8 {
    let opening = half.initial_tcp_flags[FORWARD] | half.initial_tcp_flags[REVERSE];
    match half.biflow_direction {
        _ if half.protocol == protocol::TCP && opening & tcp::SYN != 0 => 2,
        BiflowDirection::Initiator | BiflowDirection::ReverseInitiator => 1,
        BiflowDirection::Arbitrary => 0,
    }
}

/// Two halves, in whichever order, as one record.
fn whole(mut one: FlowRecord, mut other: FlowRecord) -> FlowRecord {
    let ([initiator, responder], [theirs, _]) = (ends(&one), ends(&other));
    if initiator != theirs {
        let other_is_right = match certainty(&one).cmp(&certainty(&other)) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => responder < initiator,
            std::cmp::Ordering::Greater => false,
        };
        turn(if other_is_right { &mut one } else { &mut other });
    }
    if heard(&one) == Some(FORWARD) { both(one, other) } else { both(other, one) }
}

/// Makes the destination the source.
fn turn(record: &mut FlowRecord) {
    std::mem::swap(&mut record.source, &mut record.destination);
    std::mem::swap(&mut record.source_port, &mut record.destination_port);
    std::mem::swap(&mut record.source_mac, &mut record.destination_mac);
    record.biflow_direction = BiflowDirection::Arbitrary; // it was mistaken
    record.icmp_type_code.reverse();
    record.class_of_service.reverse();
    record.fragment_flags.reverse();
    record.packets.reverse();
    record.octets.reverse();
    record.layer2_octets.reverse();
    record.start.reverse();
    record.end.reverse();
    record.tcp_flags.reverse();
    record.initial_tcp_flags.reverse();
    record.ttl_min.reverse();
    record.ttl_max.reverse();
    record.ip_len_min.reverse();
    record.ip_len_max.reverse();
    record.tunnel.reverse();
    record.arp.reverse();
    record.tcp_retransmissions.reverse();
    record.tcp_out_of_order.reverse();
    record.tcp_zero_windows.reverse();
    record.tcp_missed_octets.reverse();
    record.icmp_error.reverse();
}

/// What the initiator sent and what the responder sent, both with the same source.
fn both(forward: FlowRecord, reverse: FlowRecord) -> FlowRecord {
    let ends_it = forward.state == FlowState::End && reverse.state == FlowState::End;
    let last_word = match (forward.state, reverse.state) {
        (FlowState::End, FlowState::Continue) => &reverse,
        (FlowState::Continue, FlowState::End) => &forward,
        _ if ends_it && reverse.end[REVERSE] > forward.end[FORWARD] => &reverse,
        _ => &forward,
    };
    let biflow_direction = match (forward.biflow_direction, reverse.biflow_direction) {
        (BiflowDirection::Arbitrary, BiflowDirection::ReverseInitiator) => BiflowDirection::ReverseInitiator,
        (said, _) => said,
    };
    let (state, end_reason) = (last_word.state, last_word.end_reason);
    let error = |way: usize| if forward.icmp_error[way] != 0 { forward.icmp_error[way] } else { reverse.icmp_error[way] };
    macro_rules! pair {
        ($field:ident) => {
            [forward.$field[FORWARD], reverse.$field[REVERSE]]
        };
    }
    FlowRecord {
        state,
        end_reason,
        biflow_direction,
        icmp_type_code: pair!(icmp_type_code),
        class_of_service: pair!(class_of_service),
        fragment_flags: pair!(fragment_flags),
        packets: pair!(packets),
        octets: pair!(octets),
        layer2_octets: pair!(layer2_octets),
        start: pair!(start),
        end: pair!(end),
        tcp_flags: pair!(tcp_flags),
        initial_tcp_flags: pair!(initial_tcp_flags),
        ttl_min: pair!(ttl_min),
        ttl_max: pair!(ttl_max),
        ip_len_min: pair!(ip_len_min),
        ip_len_max: pair!(ip_len_max),
        tcp_retransmissions: pair!(tcp_retransmissions),
        tcp_out_of_order: pair!(tcp_out_of_order),
        tcp_zero_windows: pair!(tcp_zero_windows),
        tcp_missed_octets: pair!(tcp_missed_octets),
        icmp_error: [error(FORWARD), error(REVERSE)],
        answered: true,
        one_sided: false,
        sampling_population: forward.sampling_population.max(reverse.sampling_population),
        ..forward
    }
}

#[cfg(test)]
mod tests;
