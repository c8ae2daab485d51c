//! What the table holds for one flow beside its [`Hot`] line: a cold part, a wide one and an [`Aside`] for some. And what a record says of all.

use bytemuck::{Pod, Zeroable};
use spanwatch_common::encapsulation::{Encapsulation, Encapsulations};
use spanwatch_common::flow::{BiflowDirection, FORWARD, FlowRecord, Mac, REVERSE, protocol, tcp};
use spanwatch_common::layer2::ethertype;
use spanwatch_common::net::Address;
use spanwatch_common::service::{Standing, standing};
use spanwatch_common::time::Timestamp;

use super::aside::Aside;
use super::hot::Hot;
use super::talkers::Talker;
use super::tunnels::{Named, turned};
use crate::decode::{DONT_FRAGMENT, FlowKey, IS_FRAGMENT, Kind, Packet, ShortKey, Speech, TCP_FLAGS, Update, Way};

/// What is read when a flow begins, a slice ends, or a direction is heard first.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Cold {
    pub(super) flow_id: u64,
    /// First packet of the slice, each way.
    pub(super) start: [Timestamp; 2],
    /// The IPv4 addresses of endpoints a and b; with [`WIDE`], the number of the [`Wide`] part.
    ends: [u32; 2],
    /// See [`FlowRecord::tcp_handshake`].
    pub(super) handshake: [u32; 2],
    /// Number of the flow's [`Aside`]; 0 for none.
    pub(super) aside: u32,
    /// See [`FlowKey`].
    ports: [u16; 2],
    vlan: u16,
    detail: u16,
    /// Of the first packet each way: tcpControlBits in TCP, type · 256 + code in ICMP.
    initial: [u16; 2],
    /// Of the last ICMP error that quoted a packet of the slice.
    pub(super) icmp_error: [u16; 2],
    /// Of the initiator's frames.
    source_mac: Mac,
    destination_mac: Mac,
    class_of_service: [u8; 2],
    pub(super) protocol: u8,
    kind: u8,
    /// How many there are; with [`PRIORITY_TAG`].
    vlan_tags: u8,
    /// The [`Way`] of the initiator, and how it became known, shifted by one.
    initiator: u8,
    /// Some of the bits below.
    pub(super) life: u8,
    /// 1 once the initiator of a TCP connection has acknowledged something before the current slice.
    went_on: u8,
}

const _: () = assert!(size_of::<Cold>() == 80);

/// In [`Cold::life`]: a Begin record was made.
pub(super) const BEGUN: u8 = 1;
/// Endpoint a was heard; b's bit is the next one.
pub(super) const HEARD: u8 = 2;
/// More than one packet belonged to the flow before the current slice.
pub(super) const SEVERAL: u8 = 8;
/// At least one packet belonged to the flow before the current slice.
pub(super) const EARLIER: u8 = 16;
/// [`Half::next_seq`] holds for what endpoint a sends; b's bit is the next one.
pub(super) const SEQUENCED: u8 = 32;
/// There is a [`Wide`] part.
const WIDE: u8 = 128;
/// In [`Cold::vlan_tags`]: the tag has no VLAN.
const PRIORITY_TAG: u8 = 0x80;

/// What a flow needs beside its [`Cold`] part when it is not plain IPv4: IPv6, layer 2, tunnels, several tags or interfaces.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Wide {
    a: [u8; 16],
    b: [u8; 16],
    /// The bits of [`Encapsulations`], of the first packet.
    encapsulations: u32,
    /// Number of the tunnel, in the direction in which the initiator's packets go through it.
    pub(super) tunnel: u32,
    /// Number of the interface in a capture file.
    interface: u32,
    context: u32,
    customer_vlan: u16,
    unused: [u16; 3],
}

const _: () = assert!(size_of::<Wide>() == 56);

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
    /// The cold part of the flow that `packet` opens, and the wide one if it needs one.
    pub(super) fn new(packet: &Packet, flow_id: u64) -> (Self, Option<Wide>) {
        let (initiator, biflow_direction) = initiator(packet);
        let (source_mac, destination_mac) = if initiator == packet.way {
            (packet.source_mac, packet.destination_mac)
        } else {
            (packet.destination_mac, packet.source_mac)
        };
        let key = &packet.key;
        let priority_tag = if packet.encapsulations.has(Encapsulation::PriorityTag) { PRIORITY_TAG } else { 0 };
        let mut cold = Self {
            flow_id,
            start: [Timestamp::NONE; 2],
            ends: [0; 2],
            handshake: [0; 2],
            aside: 0,
            ports: [key.a_port, key.b_port],
            vlan: key.vlan,
            detail: key.detail,
            initial: [0; 2],
            icmp_error: [0; 2],
            source_mac,
            destination_mac,
            class_of_service: [0; 2],
            protocol: key.protocol,
            kind: key.kind,
            vlan_tags: packet.vlan_tags | priority_tag,
            initiator: initiator as u8 | (biflow_direction as u8) << 1,
            life: 0,
            went_on: 0,
        };
        let is_plain = key.kind == Kind::Ipv4 as u8
            && key.customer_vlan == 0
            && key.context == 0
            && packet.tunnel == 0
            && packet.interface == 0
            && packet.encapsulations == cold.tag();
        if is_plain {
            cold.ends = [&key.a, &key.b].map(|end| u128::from_be_bytes(*end) as u32);
            return (cold, None);
        }
        let wide = Wide {
            a: key.a,
            b: key.b,
            encapsulations: packet.encapsulations.0,
            tunnel: if initiator == packet.way { packet.tunnel } else { turned(packet.tunnel) },
            interface: packet.interface,
            context: key.context,
            customer_vlan: key.customer_vlan,
            unused: [0; 3],
        };
        (cold, Some(wide))
    }

    /// The same with the number of its wide part.
    pub(super) fn with_wide(self, number: u32) -> Self {
        Self { ends: [number, 0], life: self.life | WIDE, ..self }
    }

    /// The number of the wide part, if there is one.
    #[inline]
    pub(super) const fn wide(&self) -> Option<u32> {
        if self.life & WIDE == 0 { None } else { Some(self.ends[0]) }
    }

    /// The tag around a plain packet.
    const fn tag(&self) -> Encapsulations {
        match self.vlan_tags {
            0 => Encapsulations::NONE,
            tags if tags & PRIORITY_TAG == 0 => Encapsulations::NONE.with(Encapsulation::Vlan),
            _ => Encapsulations::NONE.with(Encapsulation::PriorityTag),
        }
    }

    /// The flow's key in short, if it is that of a plain flow.
    pub(super) fn short_key(&self) -> Option<ShortKey> {
        if self.life & WIDE != 0 || self.detail != 0 {
            return None;
        }
        let [a, b] = self.ends.map(u64::from);
        Some(ShortKey::new(a << 32 | b, self.ports, self.vlan, self.protocol))
    }

    /// The flow's key. `wide` is its wide part.
    pub(super) fn key(&self, wide: Option<&Wide>) -> FlowKey {
        let (a, b) = match wide {
            Some(wide) => (wide.a, wide.b),
            None => {
                let [a, b] = self.ends.map(|end| Address::from_v4(end.to_be_bytes()).0.to_be_bytes());
                (a, b)
            }
        };
        FlowKey {
            a,
            b,
            a_port: self.ports[0],
            b_port: self.ports[1],
            vlan: self.vlan,
            customer_vlan: wide.map_or(0, |wide| wide.customer_vlan),
            detail: self.detail,
            protocol: self.protocol,
            kind: self.kind,
            context: wide.map_or(0, |wide| wide.context),
        }
    }

    /// Whether there is no IP header in the flow.
    pub(super) const fn is_layer2(&self) -> bool {
        self.kind < Kind::Ipv4 as u8
    }

    /// The index of the initiator in pairs.
    const fn initiator(&self) -> usize {
        (self.initiator & 1) as usize
    }

    const fn biflow_direction(&self) -> BiflowDirection {
        BiflowDirection::from_number(self.initiator >> 1)
    }

    /// The first packet in its direction, with its ICMP type and code and the number of its tunnel. `wide` is the wide part.
    pub(super) fn hear(&mut self, packet: &Update, icmp_type_code: u16, tunnel: u32, wide: Option<&mut Wide>) {
        let way = packet.way.index();
        self.start[way] = packet.at;
        self.life |= HEARD << way;
        self.initial[way] = packet.flags & TCP_FLAGS | icmp_type_code;
        self.class_of_service[way] = packet.class_of_service;
        let is_initiator = way == self.initiator();
        // A SYN-ACK that is answered with RST was never asked for: whoever sent it was probing. Nothing has been said about
        // the flow yet, so the ends may still change places.
        let was_answer = self.biflow_direction() == BiflowDirection::ReverseInitiator;
        let was_probe = was_answer && packet.flags & tcp::RST != 0 && self.life & BEGUN == 0 && is_initiator;
        if was_probe {
            self.initiator = self.initiator & 1 ^ 1 | (BiflowDirection::Initiator as u8) << 1;
            std::mem::swap(&mut self.source_mac, &mut self.destination_mac);
        }
        if let Some(wide) = wide {
            if tunnel != 0 && is_initiator {
                wide.tunnel = tunnel;
            }
            if was_probe {
                wide.tunnel = turned(wide.tunnel);
            }
        }
    }

    /// Whether a packet ever went `way`.
    pub(super) const fn heard(&self, way: usize) -> bool {
        self.life & HEARD << way != 0
    }

    /// Whether [`Half::next_seq`] holds for what is sent `way`.
    pub(super) const fn is_sequenced(&self, way: usize) -> bool {
        self.life & SEQUENCED << way != 0
    }

    /// Whether what was first sent `way` is the SYN of a TCP connection.
    pub(super) const fn asked(&self, way: usize) -> bool {
        self.protocol == protocol::TCP && self.heard(way) && self.initial[way] & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether it is a TCP connection whose SYN nobody has answered. An initiator that acknowledges was answered where this table does not
    /// look, on the other fibre of a TAP for example.
    pub(super) const fn is_half_open(&self, hot: &Hot) -> bool {
        let initiator = self.initiator();
        self.asked(initiator) && !self.heard(initiator ^ 1) && self.went_on == 0 && !self.goes_on(hot)
    }

    /// Whether the initiator has acknowledged something in the current slice.
    const fn goes_on(&self, hot: &Hot) -> bool {
        hot.half[self.initiator()].flags & tcp::ACK != 0
    }

    /// Remembers of a slice that is over what [`Hot`] forgets.
    pub(super) const fn next_slice(&mut self, hot: &Hot) {
        self.went_on |= self.goes_on(hot) as u8;
    }
}

/// Octets each way in the current slice: of IP, or at layer 2 of frames; and packets.
pub(super) fn volume(hot: &Hot, cold: &Cold, aside: &Aside) -> ([u64; 2], [u64; 2]) {
    let packets = std::array::from_fn(|way| u64::from(hot.half[way].packets) + aside.packets[way]);
    let ip_octets = std::array::from_fn(|way| u64::from(hot.half[way].ip_octets) + aside.ip_octets[way]);
    (if cold.is_layer2() { frame_octets(hot, aside) } else { ip_octets }, packets)
}

fn frame_octets(hot: &Hot, aside: &Aside) -> [u64; 2] {
    std::array::from_fn(|way| {
        let in_line = u64::from(hot.half[way].ip_octets) + u64::from(hot.half[way].overhead);
        (in_line + aside.ip_octets[way]).saturating_add_signed(aside.overhead[way])
    })
}

/// Everything that a record says about a slice, but for who made it and why.
pub(super) fn record(hot: &Hot, cold: &Cold, aside: &Aside, wide: Option<&Wide>, tunnel: &Named) -> FlowRecord {
    let key = &cold.key(wide);
    let forward = cold.initiator();
    let pick = |way: usize| if way == FORWARD { forward } else { forward ^ 1 };
    let ends = [(&key.a, key.a_port), (&key.b, key.b_port)];
    let is_icmp = matches!(key.protocol, protocol::ICMP | protocol::ICMPV6);
    let is_ip = !key.is_layer2();
    let address = |way: usize| if is_ip { Address(u128::from_be_bytes(*ends[pick(way)].0)) } else { Address::NONE };
    let port = |way: usize| if is_icmp || !is_ip { 0 } else { ends[pick(way)].1 };
    // A slice without packets is the tail of a flow that fell silent: its time is that of the last packet before it.
    let empty = hot.is_empty();
    let shown = |way: usize| hot.half[way].packets > 0 || empty && cold.heard(way);
    let start = |way: usize| match way {
        way if empty && cold.heard(way) => hot.last[way],
        way if shown(way) => cold.start[way],
        _ => Timestamp::NONE,
    };
    let end = |way: usize| if shown(way) { hot.last[way] } else { Timestamp::NONE };
    let (flags, type_code) = if is_icmp { ([0; 2], cold.initial) } else { (cold.initial, [0; 2]) };
    let (volume, packets) = volume(hot, cold, aside);
    let frame_octets = frame_octets(hot, aside);
    let half = |way: usize| &hot.half[pick(way)];
    fn pair<T>(of: impl Fn(usize) -> T) -> [T; 2] {
        [of(FORWARD), of(REVERSE)]
    }
    FlowRecord {
        flow_id: cold.flow_id,
        biflow_direction: cold.biflow_direction(),
        ingress_interface: wide.map_or(0, |wide| wide.interface),
        ethernet_type: ethernet_type(key),
        llc_saps: if key.kind == Kind::Llc as u8 { key.detail } else { 0 },
        vlan: key.vlan,
        customer_vlan: key.customer_vlan,
        vlan_tags: cold.vlan_tags & !PRIORITY_TAG,
        source_mac: cold.source_mac,
        destination_mac: cold.destination_mac,
        source: address(FORWARD),
        destination: address(REVERSE),
        source_port: port(FORWARD),
        destination_port: port(REVERSE),
        protocol: key.protocol,
        icmp_type_code: pair(|way| type_code[pick(way)]),
        class_of_service: pair(|way| cold.class_of_service[pick(way)]),
        fragment_flags: pair(|way| fragment_flags(half(way).flags)),
        packets: pair(|way| packets[pick(way)]),
        octets: pair(|way| if is_ip { volume[pick(way)] } else { 0 }),
        layer2_octets: pair(|way| frame_octets[pick(way)]),
        start: pair(|way| start(pick(way))),
        end: pair(|way| end(pick(way))),
        tcp_flags: pair(|way| half(way).flags & TCP_FLAGS),
        initial_tcp_flags: pair(|way| flags[pick(way)]),
        ttl_min: pair(|way| half(way).ttl_min),
        ttl_max: pair(|way| half(way).ttl_max),
        ip_len_min: pair(|way| half(way).ip_len_min),
        ip_len_max: pair(|way| half(way).ip_len_max),
        encapsulations: wide.map_or(cold.tag(), |wide| Encapsulations(wide.encapsulations)),
        layer2_segment: tunnel.layer2_segment,
        mpls_top_label: tunnel.mpls_top_label,
        tunnel: tunnel.ends,
        erspan_session: tunnel.erspan_session,
        erspan_vlan: tunnel.erspan_vlan,
        layer2_instance: layer2_instance(key),
        arp: pair(|way| arp(key, ends[pick(way)].0)),
        answered: cold.heard(FORWARD) && cold.heard(REVERSE),
        tcp_handshake: cold.handshake,
        tcp_retransmissions: pair(|way| aside.retransmissions[pick(way)]),
        tcp_out_of_order: pair(|way| aside.out_of_order[pick(way)]),
        tcp_zero_windows: pair(|way| aside.zero_windows[pick(way)]),
        tcp_missed_octets: pair(|way| aside.missed_octets[pick(way)]),
        icmp_error: pair(|way| cold.icmp_error[pick(way)]),
        ..FlowRecord::default()
    }
}

/// A talker's name and volume, and when the slice's first packet came.
pub(super) fn talker(hot: &Hot, cold: &Cold, aside: &Aside, wide: Option<&Wide>) -> (Talker, Timestamp) {
    let record = record(hot, cold, aside, wide, &Named::default());
    let first = record.first();
    let FlowRecord { source, destination, source_port, destination_port, protocol, ethernet_type, .. } = record;
    let (octets, packets) = volume(hot, cold, aside);
    let talker = Talker {
        source,
        destination,
        source_port,
        destination_port,
        protocol,
        ethernet_type,
        source_mac: cold.source_mac,
        destination_mac: cold.destination_mac,
        packets: packets.iter().sum(),
        octets: octets.iter().sum(),
        ..Talker::default()
    };
    (talker, first)
}

const fn ethernet_type(key: &FlowKey) -> u16 {
    match key.kind {
        kind if kind == Kind::Ipv4 as u8 => ethertype::IPV4,
        kind if kind == Kind::Ipv6 as u8 => ethertype::IPV6,
        kind if kind == Kind::Layer2 as u8 => key.detail,
        _ => 0,
    }
}

/// The key has the instance of a layer-2 protocol where others have their ports, and SNAP's OUI before the MAC address.
fn layer2_instance(key: &FlowKey) -> u64 {
    match key.detail {
        0xaaaa if key.kind == Kind::Llc as u8 => {
            u64::from(u32::from_be_bytes([0, key.a[0], key.a[1], key.a[2]])) << 16 | u64::from(key.a_port)
        }
        _ if key.is_layer2() => u64::from(key.a_port),
        _ => 0,
    }
}

/// ARP's address of one end, which the key has before the MAC address.
fn arp(key: &FlowKey, end: &[u8; 16]) -> Address {
    let is_arp = key.kind == Kind::Layer2 as u8 && key.detail == ethertype::ARP;
    // Where the packet was too short to name any, both are zero.
    if !is_arp || key.a[6..10] == [0; 4] && key.b[6..10] == [0; 4] {
        return Address::NONE;
    }
    Address::from_v4([end[6], end[7], end[8], end[9]])
}

/// fragmentFlags (element 197) has DF at 0x40 and MF at 0x20.
const fn fragment_flags(flags: u16) -> u8 {
    (if flags & DONT_FRAGMENT != 0 { 0x40 } else { 0 }) | (if flags & IS_FRAGMENT != 0 { 0x20 } else { 0 })
}
