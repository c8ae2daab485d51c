//! What the table holds for one flow: a hot line that every packet touches, and a cold part beside it.

use bytemuck::{Pod, Zeroable};
use spanwatch_common::flow::{BiflowDirection, FORWARD, FlowEndReason, FlowRecord, FlowState, Mac, REVERSE, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::service::{Standing, standing};
use spanwatch_common::time::Timestamp;

use crate::decode::{DONT_FRAGMENT, FlowKey, IS_FRAGMENT, Kind, Packet, Speech, TCP_FLAGS, Way};

/// One cache line. Pairs are indexed by [`Way`]: what endpoint a sent, what endpoint b sent. Counters are those of the current
/// slice of the flow's life, since its last record.
///
/// The tag stands for the key: 58 bits of a keyed universal hash, while the place in the table comes from another one. That a new
/// flow finds its tag taken at its place, and is counted with another flow, has a chance below 10⁻¹⁶; see ARCHITECTURE.md.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Hot {
    /// 0 where the slot is free; else the tag of the key and, in the last six bits, how far from its home the flow stands.
    pub(super) tag: u64,
    pub(super) last: [Timestamp; 2],
    pub(super) packets: [u32; 2],
    pub(super) ip_octets: [u32; 2],
    pub(super) frame_octets: [u32; 2],
    /// OR of [`Packet::flags`], and [`FIN_SEEN`], which outlives the slice.
    pub(super) flags: [u16; 2],
    pub(super) ip_len_min: [u16; 2],
    pub(super) ip_len_max: [u16; 2],
    pub(super) ttl_min: [u8; 2],
    pub(super) ttl_max: [u8; 2],
}

const _: () = assert!(size_of::<Hot>() == 64);

/// In [`Hot::flags`]: this end has closed its half with FIN, or either end has reset the connection.
pub(super) const FIN_SEEN: u16 = 0x8000;

/// What is read when a flow begins, a slice ends, or a direction is heard first.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Cold {
    pub(super) flow_id: u64,
    /// First packet of the slice, each way.
    pub(super) start: [Timestamp; 2],
    pub(super) key: FlowKey,
    initial_flags: [u16; 2],
    icmp_type_code: [u16; 2],
    class_of_service: [u8; 2],
    /// Of the initiator's frames.
    source_mac: Mac,
    destination_mac: Mac,
    vlan_tags: u8,
    /// The [`Way`] of the initiator.
    initiator: u8,
    biflow_direction: u8,
    /// Some of the bits below.
    pub(super) life: u8,
    /// Fills the last word.
    unused: [u8; 6],
}

const _: () = assert!(size_of::<Cold>() == 104);

/// In [`Cold::life`]: a Begin record was made.
pub(super) const BEGUN: u8 = 1;
/// Endpoint a was heard; b's bit is the next one.
pub(super) const HEARD: u8 = 2;
/// More than one packet belonged to the flow before the current slice.
pub(super) const SEVERAL: u8 = 8;
/// At least one packet belonged to the flow before the current slice.
pub(super) const EARLIER: u8 = 16;

/// Who opened a conversation, judged by the first packet seen of it.
///
/// In this order: what the packet says (SYN, ICMP query, DNS), then the ports (a known service, then a system port against
/// another), then who spoke first. A group (multicast, broadcast) opens nothing: what looks like an answer to it is an
/// announcement, such as that of a router or of mDNS.
fn initiator(packet: &Packet) -> (Way, BiflowDirection) {
    let is_to_group = packet.destination_mac[0] & 1 != 0;
    let answers = (packet.way.opposite(), BiflowDirection::ReverseInitiator);
    let asks = (packet.way, BiflowDirection::Initiator);
    match packet.speech {
        Speech::Request => return asks,
        Speech::Response if !is_to_group => return answers,
        Speech::Response | Speech::Silent => {}
    }
    let (own, other) = match packet.way {
        Way::FromA => (packet.key.a_port, packet.key.b_port),
        Way::FromB => (packet.key.b_port, packet.key.a_port),
    };
    let protocol = packet.key.protocol;
    if matches!(protocol, protocol::ICMP | protocol::ICMPV6) || packet.key.is_layer2() {
        return (packet.way, BiflowDirection::Arbitrary);
    }
    let (own, other) = (standing(protocol, own), standing(protocol, other));
    match own.cmp(&other) {
        std::cmp::Ordering::Greater if own > Standing::Ephemeral && !is_to_group => answers,
        std::cmp::Ordering::Less => asks,
        _ => (packet.way, BiflowDirection::Arbitrary),
    }
}

impl Cold {
    /// The cold part of the flow that `packet` opens.
    pub(super) fn new(packet: &Packet, flow_id: u64) -> Self {
        let (initiator, biflow_direction) = initiator(packet);
        let (source_mac, destination_mac) = if initiator == packet.way {
            (packet.source_mac, packet.destination_mac)
        } else {
            (packet.destination_mac, packet.source_mac)
        };
        Self {
            flow_id,
            start: [Timestamp::NONE; 2],
            key: packet.key,
            initial_flags: [0; 2],
            icmp_type_code: [0; 2],
            class_of_service: [0; 2],
            source_mac,
            destination_mac,
            vlan_tags: packet.vlan_tags,
            initiator: initiator as u8,
            biflow_direction: biflow_direction as u8,
            life: 0,
            unused: [0; 6],
        }
    }

    /// The first packet of a slice in its direction.
    #[cold]
    pub(super) fn first_of_slice(&mut self, packet: &Packet) {
        let way = packet.way.index();
        self.start[way] = packet.at;
        if self.life & HEARD << way == 0 {
            self.life |= HEARD << way;
            self.initial_flags[way] = packet.flags & TCP_FLAGS;
            self.icmp_type_code[way] = packet.icmp_type_code;
            self.class_of_service[way] = packet.class_of_service;
            // A SYN-ACK that is answered with RST was never asked for: whoever sent it was probing. Nothing has been said about
            // the flow yet, so the ends may still change places.
            let was_answer = self.biflow_direction == BiflowDirection::ReverseInitiator as u8;
            if was_answer && packet.flags & tcp::RST != 0 && self.life & BEGUN == 0 && way == usize::from(self.initiator) {
                self.initiator ^= 1;
                self.biflow_direction = BiflowDirection::Initiator as u8;
                std::mem::swap(&mut self.source_mac, &mut self.destination_mac);
            }
        }
    }

    /// Whether a packet ever went `way`.
    pub(super) const fn heard(&self, way: usize) -> bool {
        self.life & HEARD << way != 0
    }

    /// Whether it is a TCP connection whose SYN nobody has answered.
    pub(super) const fn is_half_open(&self) -> bool {
        let initiator = self.initiator as usize;
        self.key.protocol == protocol::TCP
            && !self.heard(initiator ^ 1)
            && self.initial_flags[initiator] & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

/// Everything that a record says about a slice, but for why it was made.
pub(super) fn record(hot: &Hot, cold: &Cold) -> FlowRecord {
    let key = &cold.key;
    let forward = usize::from(cold.initiator & 1);
    let pick = |way: usize| if way == FORWARD { forward } else { forward ^ 1 };
    let ends = [(&key.a, key.a_port), (&key.b, key.b_port)];
    let is_icmp = matches!(key.protocol, protocol::ICMP | protocol::ICMPV6);
    let is_ip = !key.is_layer2();
    let address = |way: usize| if is_ip { Address(u128::from_be_bytes(*ends[pick(way)].0)) } else { Address::NONE };
    let port = |way: usize| if is_icmp { 0 } else { ends[pick(way)].1 };
    // A slice without packets is the tail of a flow that fell silent: its time is that of the last packet before it.
    let empty = hot.packets == [0; 2];
    let shown = |way: usize| hot.packets[way] > 0 || empty && cold.heard(way);
    let start = |way: usize| match way {
        way if empty && cold.heard(way) => hot.last[way],
        way if shown(way) => cold.start[way],
        _ => Timestamp::NONE,
    };
    let end = |way: usize| if shown(way) { hot.last[way] } else { Timestamp::NONE };
    fn pair<T>(of: impl Fn(usize) -> T) -> [T; 2] {
        [of(FORWARD), of(REVERSE)]
    }
    FlowRecord {
        flow_id: cold.flow_id,
        state: FlowState::End,
        end_reason: FlowEndReason::None,
        biflow_direction: BiflowDirection::from_number(cold.biflow_direction),
        observation_point: 0,
        ingress_interface: 0,
        ethernet_type: match key.kind {
            kind if kind == Kind::Ipv4 as u8 => 0x0800,
            kind if kind == Kind::Ipv6 as u8 => 0x86dd,
            kind if kind == Kind::Layer2 as u8 => key.detail,
            _ => 0,
        },
        llc_saps: if key.kind == Kind::Llc as u8 { key.detail } else { 0 },
        vlan: key.vlan,
        customer_vlan: key.customer_vlan,
        vlan_tags: cold.vlan_tags,
        source_mac: cold.source_mac,
        destination_mac: cold.destination_mac,
        source: address(FORWARD),
        destination: address(REVERSE),
        source_port: port(FORWARD),
        destination_port: port(REVERSE),
        protocol: key.protocol,
        icmp_type_code: pair(|way| cold.icmp_type_code[pick(way)]),
        class_of_service: pair(|way| cold.class_of_service[pick(way)]),
        fragment_flags: pair(|way| fragment_flags(hot.flags[pick(way)])),
        packets: pair(|way| u64::from(hot.packets[pick(way)])),
        octets: pair(|way| u64::from(hot.ip_octets[pick(way)])),
        layer2_octets: pair(|way| u64::from(hot.frame_octets[pick(way)])),
        start: pair(|way| start(pick(way))),
        end: pair(|way| end(pick(way))),
        tcp_flags: pair(|way| hot.flags[pick(way)] & TCP_FLAGS),
        initial_tcp_flags: pair(|way| cold.initial_flags[pick(way)]),
        ttl_min: pair(|way| hot.ttl_min[pick(way)]),
        ttl_max: pair(|way| hot.ttl_max[pick(way)]),
        ip_len_min: pair(|way| hot.ip_len_min[pick(way)]),
        ip_len_max: pair(|way| hot.ip_len_max[pick(way)]),
        ..FlowRecord::default()
    }
}

/// fragmentFlags (element 197) has DF at 0x40 and MF at 0x20.
const fn fragment_flags(flags: u16) -> u8 {
    (if flags & DONT_FRAGMENT != 0 { 0x40 } else { 0 }) | (if flags & IS_FRAGMENT != 0 { 0x20 } else { 0 })
}
