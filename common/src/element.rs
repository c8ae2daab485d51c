//! The fields of a flow record by their IPFIX information element.
//!
//! One table serves the wire (columns), JSON (keys) and CSV (header). Adding a field to [`FlowRecord`] means one line here;
//! a number, once used on the wire, never changes its meaning.

use crate::encapsulation::{Encapsulation, Encapsulations};
use crate::flow::{BiflowDirection, FORWARD, FlowEndReason, FlowRecord, FlowState, Mac, REVERSE};
use crate::net::Address;
use crate::time::Timestamp;

/// Private enterprise number of elements that neither IANA nor another vendor has: the documentation PEN of RFC 5612,
/// until one is registered.
pub const OWN_PEN: u32 = 32473;
/// CERT Network Situational Awareness, whose initialTCPFlags we reuse.
pub const CERT_PEN: u32 = 6871;

/// One field of the record.
pub struct Element {
    /// Name in the IANA registry (or in that of the enterprise); of the forward half for a reverse element.
    pub name: &'static str,
    /// Enterprise, 0 for IANA.
    pub pen: u32,
    /// Number within the enterprise, 1 to 32767.
    pub id: u16,
    /// Whether it counts the responder's half (RFC 5103).
    pub reverse: bool,
    /// When the field says something.
    pub applies: Applies,
    /// How text shows it.
    pub shown: Shown,
    /// How to read and write it.
    pub access: Access,
    /// How to read it of many records at once.
    pub gather: Gather,
}

/// Reading and writing a field as a number.
#[derive(Clone, Copy)]
pub enum Access {
    /// Fits 64 bits; times and other signed values in two's complement.
    Word(fn(&FlowRecord) -> u64, fn(&mut FlowRecord, u64)),
    /// Needs 128 bits: addresses.
    Wide(fn(&FlowRecord) -> u128, fn(&mut FlowRecord, u128)),
}

/// Reading a field of many records, each into its place of a slice as long. The same numbers as [`Access`] gives; one call for a block of
/// records lets the compiler see the loop.
#[derive(Clone, Copy)]
pub enum Gather {
    /// Fits 64 bits.
    Word(fn(&[FlowRecord], &mut [u64])),
    /// Needs 128 bits.
    Wide(fn(&[FlowRecord], &mut [u128])),
}

/// How a field is shown in JSON and CSV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A decimal number.
    Number,
    /// `aa:bb:cc:dd:ee:ff`.
    Mac,
    /// An IP address.
    Address,
    /// The word of a [`FlowState`].
    State,
    /// The names of [`Encapsulations`], joined by `+`.
    Encapsulations,
    /// Nanoseconds since the epoch, shown a second time in milliseconds.
    Time,
}

/// For which records a field says something. Text leaves it out otherwise; the wire carries it always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Every record.
    Always,
    /// Records with an IP header.
    Ip,
    /// TCP.
    Tcp,
    /// ICMP and ICMPv6.
    Icmp,
    /// LLC frames.
    Llc,
    /// Records whose direction saw a packet.
    Seen,
    /// Records with an IP header whose direction saw a packet.
    SeenIp,
    /// Records that end something.
    Ended,
    /// Records whose value is not zero.
    NotZero,
    /// Records of what came through ERSPAN II or III.
    Erspan,
}

impl Element {
    /// The number on the wire: bits 0–14 id, bit 15 reverse, bits 16–47 enterprise.
    pub const fn number(&self) -> u64 {
        self.id as u64 | (self.reverse as u64) << 15 | (self.pen as u64) << 16
    }

    /// Whether text shows the field for `record`.
    pub fn applies_to(&self, record: &FlowRecord) -> bool {
        let seen = || record.start[usize::from(self.reverse)].is_some();
        match self.applies {
            Applies::Always => true,
            Applies::Ip => !record.is_layer2(),
            Applies::Tcp => record.protocol == crate::flow::protocol::TCP,
            Applies::Icmp => record.is_icmp() && seen(),
            Applies::Llc => record.llc_saps != 0,
            Applies::Seen => seen(),
            Applies::SeenIp => seen() && !record.is_layer2(),
            Applies::Ended => record.end_reason != FlowEndReason::None,
            Applies::NotZero => match self.access {
                Access::Word(get, _) => get(record) != 0,
                Access::Wide(get, _) => get(record) != 0,
            },
            Applies::Erspan => {
                record.encapsulations.has(Encapsulation::Erspan2) || record.encapsulations.has(Encapsulation::Erspan3)
            }
        }
    }
}

fn mac_to_word(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

fn word_to_mac(word: u64) -> Mac {
    let [_, _, mac @ ..] = word.to_be_bytes();
    mac
}

/// A blank element that is read and written so, for the others to build on.
macro_rules! word {
    (|$r:ident| $get:expr, $set:expr) => {
        Element {
            gather: Gather::Word(|records, out| records.iter().zip(out).for_each(|($r, out)| *out = $get)),
            ..blank(Access::Word(|$r| $get, $set))
        }
    };
}

const fn blank(access: Access) -> Element {
    Element {
        name: "",
        pen: 0,
        id: 0,
        reverse: false,
        applies: Applies::Always,
        shown: Shown::Number,
        access,
        gather: Gather::Word(|_, _| ()),
    }
}

/// A field that is a plain unsigned integer of the record.
macro_rules! number {
    ($pen:expr, $id:expr, $name:literal, $applies:ident, $field:ident : $ty:ty) => {
        Element {
            name: $name,
            pen: $pen,
            id: $id,
            applies: Applies::$applies,
            ..word!(|r| u64::from(r.$field), |r, v| r.$field = v as $ty)
        }
    };
}

/// One direction of a field that comes as a pair of unsigned integers.
macro_rules! half {
    ($pen:expr, $id:expr, $name:literal, $applies:ident, $field:ident [$way:ident] : $ty:ty) => {
        Element {
            name: $name,
            pen: $pen,
            id: $id,
            reverse: $way == REVERSE,
            applies: Applies::$applies,
            ..word!(|r| u64::from(r.$field[$way]), |r, v| r.$field[$way] = v as $ty)
        }
    };
}

macro_rules! time {
    ($id:expr, $name:literal, $field:ident [$way:ident]) => {
        Element {
            name: $name,
            id: $id,
            reverse: $way == REVERSE,
            applies: Applies::Seen,
            shown: Shown::Time,
            ..word!(|r| r.$field[$way].as_nanos().cast_unsigned(), |r, v| r.$field[$way] = Timestamp::from_nanos(v.cast_signed()))
        }
    };
}

macro_rules! mac {
    ($id:expr, $name:literal, $field:ident) => {
        Element { name: $name, id: $id, shown: Shown::Mac, ..word!(|r| mac_to_word(r.$field), |r, v| r.$field = word_to_mac(v)) }
    };
}

macro_rules! address {
    ($pen:expr, $id:expr, $name:literal, $applies:ident, $field:ident $([$way:ident])?) => {
        Element {
            name: $name,
            pen: $pen,
            id: $id,
            applies: Applies::$applies,
            shown: Shown::Address,
            gather: Gather::Wide(|records, out| records.iter().zip(out).for_each(|(r, out)| *out = r.$field$([$way])?.0)),
            ..blank(Access::Wide(|r| r.$field$([$way])?.0, |r, v| r.$field$([$way])? = Address(v)))
        }
    };
}

/// Every field, in the order of JSON keys and CSV columns. Addresses have the element of IPv6 on the wire, IPv4 mapped into it;
/// text names them by their family.
pub static ELEMENTS: [Element; 73] = [
    time!(156, "flowStartNanoseconds", start[FORWARD]),
    time!(157, "flowEndNanoseconds", end[FORWARD]),
    Element {
        name: "flowState",
        pen: OWN_PEN,
        id: 60,
        shown: Shown::State,
        ..word!(|r| r.state as u64, |r, v| r.state = FlowState::from_number(v as u8))
    },
    Element {
        name: "flowEndReason",
        id: 136,
        applies: Applies::Ended,
        ..word!(|r| r.end_reason as u64, |r, v| r.end_reason = FlowEndReason::from_number(v as u8))
    },
    number!(0, 148, "flowId", Always, flow_id: u64),
    Element {
        name: "biflowDirection",
        id: 239,
        ..word!(|r| r.biflow_direction as u64, |r, v| r.biflow_direction = BiflowDirection::from_number(v as u8))
    },
    number!(0, 138, "observationPointId", Always, observation_point: u32),
    number!(0, 10, "ingressInterface", Always, ingress_interface: u32),
    number!(0, 256, "ethernetType", Always, ethernet_type: u16),
    number!(OWN_PEN, 61, "llcServiceAccessPoints", Llc, llc_saps: u16),
    number!(0, 243, "dot1qVlanId", Always, vlan: u16),
    number!(0, 245, "dot1qCustomerVlanId", Always, customer_vlan: u16),
    number!(OWN_PEN, 62, "vlanTagCount", Always, vlan_tags: u8),
    mac!(56, "sourceMacAddress", source_mac),
    mac!(80, "destinationMacAddress", destination_mac),
    address!(0, 27, "sourceIPv6Address", Ip, source),
    address!(0, 28, "destinationIPv6Address", Ip, destination),
    number!(0, 4, "protocolIdentifier", Ip, protocol: u8),
    number!(0, 7, "sourceTransportPort", Ip, source_port: u16),
    number!(0, 11, "destinationTransportPort", Ip, destination_port: u16),
    half!(0, 139, "icmpTypeCode", Icmp, icmp_type_code[FORWARD]: u16),
    half!(0, 139, "icmpTypeCode", Icmp, icmp_type_code[REVERSE]: u16),
    half!(0, 2, "packetDeltaCount", Always, packets[FORWARD]: u64),
    half!(0, 1, "octetDeltaCount", Always, octets[FORWARD]: u64),
    half!(0, 352, "layer2OctetDeltaCount", Always, layer2_octets[FORWARD]: u64),
    half!(0, 2, "packetDeltaCount", Always, packets[REVERSE]: u64),
    half!(0, 1, "octetDeltaCount", Always, octets[REVERSE]: u64),
    half!(0, 352, "layer2OctetDeltaCount", Always, layer2_octets[REVERSE]: u64),
    time!(156, "flowStartNanoseconds", start[REVERSE]),
    time!(157, "flowEndNanoseconds", end[REVERSE]),
    half!(0, 6, "tcpControlBits", Tcp, tcp_flags[FORWARD]: u16),
    half!(0, 6, "tcpControlBits", Tcp, tcp_flags[REVERSE]: u16),
    half!(CERT_PEN, 14, "initialTCPFlags", Tcp, initial_tcp_flags[FORWARD]: u16),
    half!(CERT_PEN, 14, "initialTCPFlags", Tcp, initial_tcp_flags[REVERSE]: u16),
    half!(0, 52, "minimumTTL", SeenIp, ttl_min[FORWARD]: u8),
    half!(0, 53, "maximumTTL", SeenIp, ttl_max[FORWARD]: u8),
    half!(0, 52, "minimumTTL", SeenIp, ttl_min[REVERSE]: u8),
    half!(0, 53, "maximumTTL", SeenIp, ttl_max[REVERSE]: u8),
    half!(0, 25, "minimumIpTotalLength", SeenIp, ip_len_min[FORWARD]: u16),
    half!(0, 26, "maximumIpTotalLength", SeenIp, ip_len_max[FORWARD]: u16),
    half!(0, 25, "minimumIpTotalLength", SeenIp, ip_len_min[REVERSE]: u16),
    half!(0, 26, "maximumIpTotalLength", SeenIp, ip_len_max[REVERSE]: u16),
    half!(0, 5, "ipClassOfService", SeenIp, class_of_service[FORWARD]: u8),
    half!(0, 5, "ipClassOfService", SeenIp, class_of_service[REVERSE]: u8),
    half!(0, 197, "fragmentFlags", SeenIp, fragment_flags[FORWARD]: u8),
    half!(0, 197, "fragmentFlags", SeenIp, fragment_flags[REVERSE]: u8),
    Element {
        name: "encapsulations",
        pen: OWN_PEN,
        id: 63,
        applies: Applies::NotZero,
        shown: Shown::Encapsulations,
        ..word!(|r| u64::from(r.encapsulations.0), |r, v| r.encapsulations = Encapsulations(v as u32))
    },
    number!(0, 351, "layer2SegmentId", NotZero, layer2_segment: u64),
    number!(0, 70, "mplsTopLabelStackSection", NotZero, mpls_top_label: u32),
    address!(OWN_PEN, 64, "tunnelSourceAddress", NotZero, tunnel[FORWARD]),
    address!(OWN_PEN, 65, "tunnelDestinationAddress", NotZero, tunnel[REVERSE]),
    number!(OWN_PEN, 66, "erspanSessionId", Erspan, erspan_session: u16),
    number!(OWN_PEN, 74, "erspanVlanId", Erspan, erspan_vlan: u16),
    number!(OWN_PEN, 67, "layer2Instance", NotZero, layer2_instance: u64),
    address!(OWN_PEN, 68, "arpSenderAddress", NotZero, arp[FORWARD]),
    address!(OWN_PEN, 69, "arpTargetAddress", NotZero, arp[REVERSE]),
    Element { name: "flowAnswered", pen: OWN_PEN, id: 70, ..word!(|r| u64::from(r.answered), |r, v| r.answered = v != 0) },
    half!(OWN_PEN, 1, "tcpHandshakeRttNanoseconds", NotZero, tcp_handshake[FORWARD]: u32),
    Element { reverse: false, ..half!(OWN_PEN, 2, "tcpHandshakeClientRttNanoseconds", NotZero, tcp_handshake[REVERSE]: u32) },
    half!(OWN_PEN, 71, "tcpRetransmissionDeltaCount", NotZero, tcp_retransmissions[FORWARD]: u32),
    half!(OWN_PEN, 71, "tcpRetransmissionDeltaCount", NotZero, tcp_retransmissions[REVERSE]: u32),
    half!(OWN_PEN, 72, "tcpOutOfOrderDeltaCount", NotZero, tcp_out_of_order[FORWARD]: u32),
    half!(OWN_PEN, 72, "tcpOutOfOrderDeltaCount", NotZero, tcp_out_of_order[REVERSE]: u32),
    half!(OWN_PEN, 3, "tcpZeroWindowDeltaCount", NotZero, tcp_zero_windows[FORWARD]: u32),
    half!(OWN_PEN, 3, "tcpZeroWindowDeltaCount", NotZero, tcp_zero_windows[REVERSE]: u32),
    half!(OWN_PEN, 4, "tcpMissedOctetDeltaCount", NotZero, tcp_missed_octets[FORWARD]: u64),
    half!(OWN_PEN, 4, "tcpMissedOctetDeltaCount", NotZero, tcp_missed_octets[REVERSE]: u64),
    half!(OWN_PEN, 73, "icmpErrorTypeCode", NotZero, icmp_error[FORWARD]: u16),
    half!(OWN_PEN, 73, "icmpErrorTypeCode", NotZero, icmp_error[REVERSE]: u16),
    Element { reverse: false, ..half!(0, 29, "sourceIPv6PrefixLength", NotZero, prefix_lengths[FORWARD]: u8) },
    Element { reverse: false, ..half!(0, 30, "destinationIPv6PrefixLength", NotZero, prefix_lengths[REVERSE]: u8) },
    number!(0, 310, "samplingPopulation", NotZero, sampling_population: u32),
    Element {
        name: "flowOneSided",
        pen: OWN_PEN,
        id: 75,
        applies: Applies::NotZero,
        ..word!(|r| u64::from(r.one_sided), |r, v| r.one_sided = v != 0)
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_element_has_a_number_of_its_own() {
        let numbers: HashSet<u64> = ELEMENTS.iter().map(Element::number).collect();
        assert_eq!(numbers.len(), ELEMENTS.len());
    }

    #[test]
    fn what_is_written_is_read_back_and_touches_no_other_field() {
        for element in &ELEMENTS {
            let mut record = FlowRecord::default();
            let before: Vec<u128> = ELEMENTS.iter().map(|e| read(e, &record)).collect();
            match element.access {
                Access::Word(get, set) => {
                    let value = if matches!(element.name, "flowAnswered" | "flowOneSided") { 1 } else { 2 };
                    set(&mut record, value);
                    assert_eq!(get(&record), value, "{}", element.name);
                }
                Access::Wide(get, set) => {
                    set(&mut record, 1 << 100);
                    assert_eq!(get(&record), 1 << 100, "{}", element.name);
                }
            }
            assert_eq!(gathered(element, &record), read(element, &record), "{}", element.name);
            let changed = ELEMENTS.iter().zip(before).filter(|(e, before)| read(e, &record) != *before).count();
            assert_eq!(changed, 1, "{} reverse={}", element.name, element.reverse);
        }
    }

    fn gathered(element: &Element, record: &FlowRecord) -> u128 {
        let (mut word, mut wide) = ([0], [0]);
        match element.gather {
            Gather::Word(gather) => gather(std::slice::from_ref(record), &mut word),
            Gather::Wide(gather) => gather(std::slice::from_ref(record), &mut wide),
        }
        u128::from(word[0]) + wide[0]
    }

    fn read(element: &Element, record: &FlowRecord) -> u128 {
        match element.access {
            Access::Word(get, _) => u128::from(get(record)),
            Access::Wide(get, _) => get(record),
        }
    }
}
