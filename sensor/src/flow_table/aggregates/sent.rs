//! A packet as its sender sent it, and the keys of the aggregates that it may belong to.

use spanwatch_common::flow::{LAYER2, protocol};
use spanwatch_common::service::standing;

use crate::decode::{FlowKey, Kind, Packet, Speech, Way};

/// Most keys of [`Sent::last_key`]: two by two halves of IPv4 and eight by eight eighths of IPv6, each for TCP, UDP, ICMP and the rest; layer 2.
pub(super) const LAST_MAX: usize = (2 * 2 + 8 * 8) * 4 + 1;

/// Bits of a prefix, the narrowest first. The widest of IPv6 has three, so that the addresses in use (2000::/3 and above) do not become zero,
/// which stands for no address.
pub(super) type Widths = [u8; 4];
const IPV4: Widths = [32, 16, 4, 1];
const IPV6: Widths = [128, 48, 12, 3];

/// A packet as its sender sent it.
pub(super) struct Sent<'a> {
    packet: &'a Packet,
    pub(super) source: u128,
    pub(super) destination: u128,
    /// Ports, of which all but that of the service are zero; ICMP's type and code in place of the second.
    service: [u16; 2],
}

impl<'a> Sent<'a> {
    pub(super) fn of(packet: &'a Packet) -> Self {
        let key = &packet.key;
        let (source, destination, ports) = match packet.way {
            Way::FromA => (key.a, key.b, [key.a_port, key.b_port]),
            Way::FromB => (key.b, key.a, [key.b_port, key.a_port]),
        };
        let service = match key.protocol {
            protocol::ICMP | protocol::ICMPV6 => [0, packet.icmp_type_code],
            protocol::TCP | protocol::UDP | protocol::SCTP => match packet.speech {
                Speech::Request => [0, ports[1]],
                Speech::Response => [ports[0], 0],
                Speech::Silent => match standing(key.protocol, ports[0]).cmp(&standing(key.protocol, ports[1])) {
                    std::cmp::Ordering::Less => [0, ports[1]],
                    std::cmp::Ordering::Greater => [ports[0], 0],
                    std::cmp::Ordering::Equal => [0, 0],
                },
            },
            _ => [0, 0],
        };
        Self { packet, source: u128::from_be_bytes(source), destination: u128::from_be_bytes(destination), service }
    }

    /// How many bits describe an end of it, from the host on.
    pub(super) fn widths(&self) -> Widths {
        if self.packet.key.kind == Kind::Ipv4 as u8 { IPV4 } else { IPV6 }
    }

    /// The key of the aggregate of so many bits of each end; of layer 2 the addresses are no part.
    pub(super) fn key(&self, source_bits: u8, destination_bits: u8, with_service: bool) -> FlowKey {
        let key = &self.packet.key;
        let base = FlowKey { vlan: key.vlan, protocol: key.protocol, kind: key.kind, ..FlowKey::NONE };
        if key.is_layer2() {
            return FlowKey { detail: key.detail, customer_vlan: u16::from_be_bytes([1, 1]), ..base };
        }
        let is_tcp_request = key.protocol == protocol::TCP && self.packet.speech == Speech::Request;
        let [a_port, b_port] = if with_service { self.service } else { [0, 0] };
        let (a, b) = self.ends(source_bits, destination_bits);
        let prefix_lengths = u16::from_be_bytes([source_bits, destination_bits]);
        FlowKey { a, b, a_port, b_port, detail: u16::from(is_tcp_request), customer_vlan: prefix_lengths, ..base }
    }

    /// One of [`LAST_MAX`] keys. A protocol other than TCP, UDP and ICMP is 255 there, which IANA has reserved.
    pub(super) fn last_key(&self) -> FlowKey {
        let key = &self.packet.key;
        if key.is_layer2() {
            let base = FlowKey { protocol: LAYER2, kind: Kind::Layer2 as u8, ..FlowKey::NONE };
            return FlowKey { customer_vlan: u16::from_be_bytes([1, 1]), ..base };
        }
        let is_ipv4 = key.kind == Kind::Ipv4 as u8;
        let protocol = match key.protocol {
            protocol @ (protocol::TCP | protocol::UDP) => protocol,
            protocol::ICMP | protocol::ICMPV6 if is_ipv4 => protocol::ICMP,
            protocol::ICMP | protocol::ICMPV6 => protocol::ICMPV6,
            _ => 255,
        };
        let bits = if is_ipv4 { IPV4[3] } else { IPV6[3] };
        let (a, b) = self.ends(bits, bits);
        FlowKey { a, b, protocol, kind: key.kind, customer_vlan: u16::from_be_bytes([bits, bits]), ..FlowKey::NONE }
    }

    fn ends(&self, source_bits: u8, destination_bits: u8) -> ([u8; 16], [u8; 16]) {
        // IPv4 addresses are mapped: their own 32 bits come after 96 others.
        let before = if self.packet.key.kind == Kind::Ipv4 as u8 { 96 } else { 0 };
        let masked = |address: u128, bits: u8| (address & u128::MAX << (128 - before - u32::from(bits))).to_be_bytes();
        (masked(self.source, source_bits), masked(self.destination, destination_bits))
    }
}
