//! What one frame says. Pure: bytes in, a small `Copy` value out; no reference to the buffer survives.
//!
//! Headers are read one at a time with etherparse's slices, from the outside in; where something does not make sense, decoding
//! stops at the last good layer and says so in [`Packet::odd`]. Every frame with an Ethernet header is a conversation between two
//! MAC addresses at least.

mod ip;
mod key;

use bytemuck::Zeroable as _;
use etherparse::{EtherType, Ethernet2HeaderSlice, SingleVlanHeaderSlice};
use spanwatch_common::encapsulation::Encapsulations;
use spanwatch_common::flow::{LAYER2, Mac};
use spanwatch_common::ledger;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

pub use key::{FlowKey, Kind, Way};

use crate::capture::{Frame, Link};
use key::Endpoint;

/// Most VLAN tags that are read; a frame with more is metered by its MAC addresses.
const VLAN_TAGS_MAX: usize = 4;
/// Ethertypes below this are lengths of 802.3 frames (IEEE 802.3 clause 3.2.6).
const ETHERTYPE_MIN: u16 = 0x0600;

/// What was understood of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When it was captured.
    pub at: Timestamp,
    /// The flow that it belongs to.
    pub key: FlowKey,
    /// Which end sent it.
    pub way: Way,
    /// A hint at who opened the conversation, from what the packet itself says.
    pub speech: Speech,
    /// Octets of the frame without preamble and FCS.
    pub frame_octets: u32,
    /// Octets of the IP header and payload; 0 at layer 2.
    pub ip_octets: u32,
    /// tcpControlBits, and [`DONT_FRAGMENT`] and [`IS_FRAGMENT`] above them.
    pub flags: u16,
    /// ICMP type · 256 + code.
    pub icmp_type_code: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub class_of_service: u8,
    /// VLAN tags on the frame.
    pub vlan_tags: u8,
    /// What kept it from being understood as a whole.
    pub odd: Oddity,
    /// Of the frame.
    pub source_mac: Mac,
    /// Of the frame.
    pub destination_mac: Mac,
    /// The datagram that it is a fragment of.
    pub fragment: Option<Fragment>,
    /// TCP: sequence number of its first octet (RFC 9293 §3.1). 0 where the header is cut short.
    pub sequence: u32,
    /// TCP: acknowledgement number; says something only with ACK.
    pub acknowledgement: u32,
    /// TCP: window, not scaled.
    pub window: u16,
    /// TCP: octets of payload, by the IP header's length.
    pub payload_octets: u32,
    /// Where in the frame the innermost network header begins (for layer 2: what follows the ethertype or length).
    pub network_at: u16,
    /// What was around it. Not empty: [`Around`] was written, too.
    pub encapsulations: Encapsulations,
    /// Number of its tunnel in the flow table's list of them; 0 for none. Decoding leaves it 0.
    pub tunnel: u32,
    /// Number of the interface within a capture file, from 1; 0 where there is only one.
    pub interface: u32,
}

/// What was around the innermost conversation of one frame, from the outside in. Only written for a frame that has any
/// [`encapsulations`](Packet::encapsulations); lent, so that a plain frame costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// layer2SegmentId of the innermost overlay; 0 without.
    pub layer2_segment: u64,
    /// Outermost MPLS label stack entry without its TTL (element 70); 0 without.
    pub mpls_top_label: u32,
    /// Source and destination of the outermost tunnel's IP header; none without a tunnel.
    pub tunnel: [Address; 2],
    /// Session of the ERSPAN header.
    pub erspan_session: u16,
    /// Sequence number that ERSPAN put into the GRE header.
    pub erspan_sequence: Option<u32>,
    /// What HSR or PRP added.
    pub redundancy: Option<Redundancy>,
}

/// What tells an HSR or PRP frame from its twin, and from the next frame (IEC 62439-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redundancy {
    /// Sequence number of the source; twins have the same.
    pub sequence: u16,
    /// HSR path, or PRP's LAN (0xa, 0xb); twins differ.
    pub path: u8,
}

/// The tcpControlBits within [`Packet::flags`]: the twelve bits between data offset and window (RFC 9293 §3.1).
pub const TCP_FLAGS: u16 = 0x0fff;
/// In [`Packet::flags`]: the packet must not be fragmented.
pub const DONT_FRAGMENT: u16 = 0x1000;
/// In [`Packet::flags`]: the packet is a fragment.
pub const IS_FRAGMENT: u16 = 0x2000;

/// A part of a larger datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4 (RFC 791 §3.1), 32 in IPv6 (RFC 8200 §4.5).
    pub id: u32,
    /// Whether it has the transport header, from which the later ones borrow the ports.
    pub first: bool,
}

/// What the packet itself says about who opened the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Speech {
    /// Nothing.
    Silent,
    /// Its sender asks: TCP SYN, an ICMP query, a DNS query.
    Request,
    /// Its sender answers: TCP SYN+ACK, an ICMP reply, a DNS response.
    Response,
}

/// Why a packet was understood only in part; counted in [`ledger::Odd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Oddity {
    /// It was understood.
    #[default]
    None,
    /// See [`ledger::Odd::bad_ip_header`].
    BadIpHeader,
    /// See [`ledger::Odd::bad_transport_header`].
    BadTransportHeader,
    /// See [`ledger::Odd::no_ip_length`].
    NoIpLength,
    /// See [`ledger::Odd::too_deep`].
    TooDeep,
}

impl Oddity {
    /// Counts itself.
    pub const fn count(self, odd: &mut ledger::Odd) {
        match self {
            Self::None => {}
            Self::BadIpHeader => odd.bad_ip_header += 1,
            Self::BadTransportHeader => odd.bad_transport_header += 1,
            Self::NoIpLength => odd.no_ip_length += 1,
            Self::TooDeep => odd.too_deep += 1,
        }
    }
}

/// Why a frame is not metered at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecodable {
    /// Shorter than an Ethernet header. See [`ledger::Ignored::runt`].
    Runt,
    /// Of a link type that is not read. See [`ledger::Ignored::link_type`].
    LinkType,
}

/// What the decoder may be told.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether VLAN identifiers are part of the key.
    pub vlan_in_key: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { vlan_in_key: true }
    }
}

/// Reads one frame.
///
/// # Errors
/// [`Undecodable::Runt`] when not even the header of its link is there, [`Undecodable::LinkType`] when that is not read.
#[inline]
pub fn decode(frame: &Frame<'_>, rules: &Rules, _around: &mut Around) -> Result<Packet, Undecodable> {
    let Frame { bytes, wire_len: frame_octets, at, link, .. } = *frame;
    if link != Link::Ethernet {
        return Err(Undecodable::LinkType);
    }
    let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(bytes) else { return Err(Undecodable::Runt) };
    let mut rest = &bytes[14..]; // the slice above holds at least the 14 bytes of the header
    let mut ethertype = ethernet.ether_type().0;
    let mut tags = [0; 2];
    let mut tag_count = 0;
    while matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) && tag_count < VLAN_TAGS_MAX {
        let Ok(tag) = SingleVlanHeaderSlice::from_slice(rest) else { break };
        if let Some(slot) = tags.get_mut(tag_count) {
            *slot = tag.vlan_identifier().value();
        }
        tag_count += 1;
        ethertype = tag.ether_type().0;
        rest = &rest[4..]; // as long as the tag that was just read from it
    }
    let mut packet = Packet {
        at,
        key: FlowKey::zeroed(),
        way: Way::FromA,
        speech: Speech::Silent,
        frame_octets,
        ip_octets: 0,
        flags: 0,
        icmp_type_code: 0,
        ttl: 0,
        class_of_service: 0,
        vlan_tags: tag_count as u8,
        odd: Oddity::None,
        source_mac: ethernet.source(),
        destination_mac: ethernet.destination(),
        fragment: None,
        sequence: 0,
        acknowledgement: 0,
        window: 0,
        payload_octets: 0,
        network_at: 0,
        encapsulations: Encapsulations::NONE,
        tunnel: 0,
        interface: frame.interface,
    };
    let ethernet_octets = 14 + 4 * tag_count as u32;
    let is_ip = match EtherType(ethertype) {
        EtherType::IPV4 => ip::v4(rest, &mut packet, ethernet_octets),
        EtherType::IPV6 => ip::v6(rest, &mut packet, ethernet_octets),
        _ => false,
    };
    if !is_ip {
        layer2(&mut packet, ethertype, rest);
    }
    if rules.vlan_in_key {
        (packet.key.vlan, packet.key.customer_vlan) = (tags[0], tags[1]);
    }
    Ok(packet)
}

/// A conversation between two MAC addresses: not IP, or IP that makes no sense.
fn layer2(packet: &mut Packet, ethertype: u16, rest: &[u8]) {
    let end = |mac: Mac| {
        let mut address = [0; 16];
        address[10..].copy_from_slice(&mac);
        Endpoint { address, port: 0 }
    };
    let (kind, detail) = match rest {
        [dsap, ssap, ..] if ethertype < ETHERTYPE_MIN => (Kind::Llc, u16::from_be_bytes([*dsap, *ssap])),
        _ if ethertype < ETHERTYPE_MIN => (Kind::Llc, 0),
        _ => (Kind::Layer2, ethertype),
    };
    (packet.key, packet.way) = FlowKey::between(end(packet.source_mac), end(packet.destination_mac), kind, LAYER2);
    packet.key.detail = detail;
    packet.odd = match ethertype {
        0x0800 | 0x86dd => Oddity::BadIpHeader,
        0x8100 | 0x88a8 | 0x9100 => Oddity::TooDeep,
        _ => Oddity::None,
    };
}

#[cfg(test)]
mod tests;
