//! What makes two packets belong to one flow.

use bytemuck::{Pod, Zeroable};
use spanwatch_common::net::Address;

/// What kind of conversation a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Two MAC addresses and an ethertype.
    Layer2 = 2,
    /// Two MAC addresses and the service access points of LLC (IEEE 802.2).
    Llc = 3,
    /// IPv4.
    Ipv4 = 4,
    /// IPv6.
    Ipv6 = 6,
}

/// Key of a bidirectional flow: the same whichever end sent the packet.
///
/// Endpoint `a` is the smaller of the two by (address, port). 48 bytes without padding, so that it can be hashed and compared
/// as plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// Address of endpoint a, network byte order: IPv6, mapped IPv4, or at layer 2 a MAC in the last six bytes, before it ARP's IPv4
    /// address (four bytes), and SNAP's OUI in the first three.
    pub a: [u8; 16],
    /// Address of endpoint b.
    pub b: [u8; 16],
    /// Port of endpoint a; the identifier of an ICMP query; at layer 2 what tells apart conversations of one protocol
    /// ([`spanwatch_common::layer2`]), the same for both ends; 0 where there is none.
    pub a_port: u16,
    /// Port of endpoint b.
    pub b_port: u16,
    /// VID of the outer tag; 0 when untagged, priority-tagged, or when VLANs are not part of the key.
    pub vlan: u16,
    /// VID of the inner tag.
    pub customer_vlan: u16,
    /// Ethertype (layer 2), DSAP and SSAP (LLC), type and code of the ICMP request (ICMP); else 0.
    pub detail: u16,
    /// IP protocol; 255 at layer 2.
    pub protocol: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Stands for whatever else `flow.key` puts into the key: tunnel, interface, MAC addresses; 0 when nothing is.
    pub context: u32,
}

/// Which end of its key sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Endpoint a sent it.
    FromA = 0,
    /// Endpoint b sent it.
    FromB = 1,
}

impl Way {
    /// Index into the pairs of a flow.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    pub const fn opposite(self) -> Self {
        match self {
            Self::FromA => Self::FromB,
            Self::FromB => Self::FromA,
        }
    }
}

/// The key of an IPv4 flow that is told apart by addresses, ports, protocol and VLAN alone, in two words. No two keys have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortKey {
    /// Address of endpoint a in the upper half, of b in the lower.
    pub addresses: u64,
    /// From the lowest bit on: port of b, port of a, VID of the outer tag (16 bits each), protocol.
    pub rest: u64,
}

impl ShortKey {
    /// The short form of a key; none if the key says more.
    #[inline]
    pub fn of(key: &FlowKey) -> Option<Self> {
        let v4 = |end: &[u8; 16]| {
            let word = u128::from_be_bytes(*end);
            (word >> 32 == 0xffff).then_some(word as u64 & 0xffff_ffff)
        };
        if key.kind != Kind::Ipv4 as u8 || key.customer_vlan | key.detail != 0 || key.context != 0 {
            return None;
        }
        Some(Self::new(v4(&key.a)? << 32 | v4(&key.b)?, [key.a_port, key.b_port], key.vlan, key.protocol))
    }

    /// The key of these endpoints: `addresses` as in the field, ports of a and b.
    #[inline(always)]
    pub const fn new(addresses: u64, ports: [u16; 2], vlan: u16, protocol: u8) -> Self {
        let [a, b] = ports;
        Self { addresses, rest: (protocol as u64) << 48 | (vlan as u64) << 32 | (a as u64) << 16 | b as u64 }
    }

    /// The key of a packet by the headers of IPv4 and transport, and which end sent it.
    ///
    /// `addresses` and `ports` are source and destination as they stand in the headers, source in the upper half.
    #[inline(always)]
    pub(super) const fn between(addresses: u64, ports: u32, vlan: u16, protocol: u8) -> (Self, Way) {
        let turned = addresses.rotate_left(32);
        // Only a host that speaks with itself is sorted by ports.
        let is_turned = if addresses == turned { ports > ports.rotate_left(16) } else { addresses > turned };
        // Without a jump: half of them would be guessed wrong.
        let ports = ports.rotate_left(16 * is_turned as u32);
        let addresses = addresses.rotate_left(32 * is_turned as u32);
        let key = Self::new(addresses, [(ports >> 16) as u16, ports as u16], vlan, protocol);
        (key, if is_turned { Way::FromB } else { Way::FromA })
    }
}

/// One end of a packet, before the ends are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    pub(super) address: [u8; 16],
    pub(super) port: u16,
}

impl FlowKey {
    /// The key of nothing.
    pub const NONE: Self = Self {
        a: [0; 16],
        b: [0; 16],
        a_port: 0,
        b_port: 0,
        vlan: 0,
        customer_vlan: 0,
        detail: 0,
        protocol: 0,
        kind: 0,
        context: 0,
    };

    /// Sorts the ends; everything else is zero still.
    #[inline]
    pub(super) fn between(source: Endpoint, destination: Endpoint, kind: Kind, protocol: u8) -> (Self, Way) {
        let key = |a: Endpoint, b: Endpoint| Self {
            a: a.address,
            b: b.address,
            a_port: a.port,
            b_port: b.port,
            vlan: 0,
            customer_vlan: 0,
            detail: 0,
            protocol,
            kind: kind as u8,
            context: 0,
        };
        let number = |end: &Endpoint| (u128::from_be_bytes(end.address), end.port);
        if number(&source) <= number(&destination) {
            (key(source, destination), Way::FromA)
        } else {
            (key(destination, source), Way::FromB)
        }
    }

    /// The same for IPv4 addresses: one comparison of 48 bits.
    #[inline]
    pub(super) fn between_v4(
        source: [u8; 4],
        source_port: u16,
        destination: [u8; 4],
        destination_port: u16,
        protocol: u8,
    ) -> (Self, Way) {
        let number = |address: [u8; 4], port: u16| u64::from(u32::from_be_bytes(address)) << 16 | u64::from(port);
        let is_sorted = number(source, source_port) <= number(destination, destination_port);
        let (a, a_port, b, b_port) = if is_sorted {
            (source, source_port, destination, destination_port)
        } else {
            (destination, destination_port, source, source_port)
        };
        let mapped = |address| Address::from_v4(address).0.to_be_bytes();
        let key = Self {
            a: mapped(a),
            b: mapped(b),
            a_port,
            b_port,
            vlan: 0,
            customer_vlan: 0,
            detail: 0,
            protocol,
            kind: Kind::Ipv4 as u8,
            context: 0,
        };
        (key, if is_sorted { Way::FromA } else { Way::FromB })
    }

    /// The key of the same flow with other ports: for a later fragment, whose own bytes name none.
    ///
    /// `source` and `destination` are the ports as the sender of the packet `way` names them. Returns the key and the way, which
    /// changes when both addresses are equal and the ports decide the order.
    pub fn with_ports(&self, way: Way, source: u16, destination: u16) -> (Self, Way) {
        let (from, to) = match way {
            Way::FromA => (self.a, self.b),
            Way::FromB => (self.b, self.a),
        };
        let (source, destination) = (Endpoint { address: from, port: source }, Endpoint { address: to, port: destination });
        let (sorted, way) = Self::between(source, destination, Kind::Ipv4, self.protocol);
        (Self { a: sorted.a, b: sorted.b, a_port: sorted.a_port, b_port: sorted.b_port, ..*self }, way)
    }

    /// Whether there is no IP header in the flow.
    pub const fn is_layer2(&self) -> bool {
        self.kind < Kind::Ipv4 as u8
    }
}
