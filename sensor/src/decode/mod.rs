//! What one frame says. Pure: bytes in, a small `Copy` value out; no reference to the buffer survives.
//!
//! Most frames are Ethernet, IPv4, TCP or UDP and nothing else: [`plain`] reads those with one check of the length. All others take
//! [`walk`], from the outside in, header by header, to the innermost conversation that makes sense; where something does not, it stops at
//! the last good layer and says so in [`Packet::odd`]. Every frame with an Ethernet header is a conversation between two MAC
//! addresses at least.

mod ip;
mod key;
mod layer2;
mod plain;
mod settings;
mod tunnel;
mod update;
mod walk;

use spanwatch_common::encapsulation::Encapsulations;
use spanwatch_common::flow::{Mac, protocol, tcp};
use spanwatch_common::ledger;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

pub use key::{FlowKey, Kind, ShortKey, Way};
pub use plain::Found;
pub use settings::{DecodeSettings, Rules};
pub use update::Update;

use crate::capture::Frame;
use crate::flow_table::KeyHasher;

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
    /// Whether less of it is there than the wire had: the mirror sliced the frame, or it is the first fragment of a tunnel's packet.
    pub is_cut: bool,
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
    /// Number of the interface within a capture file, from 1; 0 where there is only one. Decoding leaves it 0.
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
    /// VLAN that the ERSPAN header names: that of the mirrored frame, whether its tag is still there or not.
    pub erspan_vlan: u16,
    /// Sequence number that ERSPAN put into the GRE header.
    pub erspan_sequence: Option<u32>,
    /// What HSR or PRP added.
    pub redundancy: Option<Redundancy>,
}

impl Around {
    /// Whether there is anything in it that a flow keeps.
    pub const fn names_tunnel(&self) -> bool {
        self.layer2_segment != 0 || self.mpls_top_label != 0 || self.tunnel[0].is_some()
    }
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
    /// Where its part of the datagram begins, in octets (RFC 791 §3.1, RFC 8200 §4.5).
    pub offset: u32,
    /// Whether more follow.
    pub more: bool,
    /// It is the first part of a tunnel's packet, too short to read what is inside; the packet is the tunnel's own.
    pub hides_tunnel: bool,
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
    /// See [`ledger::Odd::unknown_encapsulation`].
    UnknownEncapsulation,
    /// See [`ledger::Odd::bad_encapsulation`].
    BadEncapsulation,
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
            Self::UnknownEncapsulation => odd.unknown_encapsulation += 1,
            Self::BadEncapsulation => odd.bad_encapsulation += 1,
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
    /// Of a link without MAC addresses, and no IP header that makes sense. See [`ledger::Ignored::not_ip`].
    NotIp,
}

/// Reads one frame. `around` is written when the packet has [`encapsulations`](Packet::encapsulations), and left alone otherwise.
///
/// # Errors
/// Why the frame cannot be metered at all.
#[inline]
pub fn decode(frame: &Frame<'_>, rules: &Rules, around: &mut Around) -> Result<Packet, Undecodable> {
    let Some(packet) = decode_plain(frame, rules) else { return decode_any(frame, rules, around) };
    if !packet.encapsulations.is_empty() {
        *around = Around::default(); // a tag says nothing else
    }
    Ok(packet)
}

/// The short way of [`decode`]: reads Ethernet with at most one tag, IPv4, TCP or UDP, with nothing else around or out of the ordinary.
/// None when the frame is anything else, which [`decode_any`] reads.
pub fn decode_plain(frame: &Frame<'_>, rules: &Rules) -> Option<Packet> {
    plain::packet(frame, rules)
}

/// Writes into `update` what the packet of [`decode_plain`] adds to its flow, without the rest of it: the way of nearly every packet.
/// `origin` becomes [`Update::origin`].
#[inline(always)]
pub fn update_plain(frame: &Frame<'_>, rules: &Rules, hasher: &KeyHasher, origin: u16, update: &mut Update) -> Found {
    plain::update(frame, rules, hasher, origin, update)
}

/// The long way of [`decode`].
///
/// # Errors
/// Why the frame cannot be metered at all.
pub fn decode_any(frame: &Frame<'_>, rules: &Rules, around: &mut Around) -> Result<Packet, Undecodable> {
    walk::read(frame, rules, around)
}

/// The flow that an ICMP error names, and which of its ends sent the packet that the error quotes. None for every other packet.
pub fn quoted(frame: &[u8], packet: &Packet) -> Option<(FlowKey, Way)> {
    // Destination unreachable, source quench, time exceeded, parameter problem (RFC 792); their like in RFC 4443 §2.1.
    let is_error = match packet.key.protocol {
        protocol::ICMP => matches!(packet.icmp_type_code >> 8, 3 | 4 | 11 | 12),
        protocol::ICMPV6 => matches!(packet.icmp_type_code >> 8, 1..=4),
        _ => false,
    };
    if is_error { ip::quoted(frame, packet) } else { None }
}

/// Where the payload of the packet's innermost IP header begins and ends in `frame`; None at layer 2.
pub fn ip_payload(frame: &[u8], packet: &Packet) -> Option<(usize, usize)> {
    ip::payload(frame, packet)
}

/// Appends an IP header for `packet`, without options and with a length of zero.
pub fn ip_header(packet: &Packet, out: &mut Vec<u8>) {
    let (source, destination) = match packet.way {
        Way::FromA => (packet.key.a, packet.key.b),
        Way::FromB => (packet.key.b, packet.key.a),
    };
    if packet.key.kind == Kind::Ipv4 as u8 {
        out.extend_from_slice(&[0x45, packet.class_of_service, 0, 0, 0, 0, 0, 0, packet.ttl, packet.key.protocol, 0, 0]);
        out.extend_from_slice(&source[12..]);
        out.extend_from_slice(&destination[12..]);
    } else {
        out.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, packet.key.protocol, packet.ttl]);
        out.extend_from_slice(&source);
        out.extend_from_slice(&destination);
    }
}

impl Packet {
    /// A packet of which only the frame is known.
    #[inline]
    pub const fn blank(at: Timestamp, frame_octets: u32) -> Self {
        Self {
            at,
            key: FlowKey::NONE,
            way: Way::FromA,
            speech: Speech::Silent,
            frame_octets,
            ip_octets: 0,
            flags: 0,
            icmp_type_code: 0,
            ttl: 0,
            class_of_service: 0,
            vlan_tags: 0,
            odd: Oddity::None,
            is_cut: false,
            source_mac: [0; 6],
            destination_mac: [0; 6],
            fragment: None,
            sequence: 0,
            acknowledgement: 0,
            window: 0,
            payload_octets: 0,
            network_at: 0,
            encapsulations: Encapsulations::NONE,
            tunnel: 0,
            interface: 0,
        }
    }

    /// Forgets what an outer IP header said: another level begins at `network_at`. The key and what is in every IP header follow.
    fn reset_network(&mut self, network_at: usize, odd: Oddity) {
        self.network_at = network_at as u16;
        self.odd = odd;
        self.speech = Speech::Silent;
        (self.ip_octets, self.payload_octets) = (0, 0);
        (self.sequence, self.acknowledgement, self.window) = (0, 0, 0);
        (self.flags, self.icmp_type_code) = (0, 0);
        (self.ttl, self.class_of_service) = (0, 0);
        self.fragment = None;
    }

    /// Takes over the TCP flags, and what they say about who opened the connection.
    #[inline]
    fn tcp_flags(&mut self, offset_and_flags: u16) {
        let flags = offset_and_flags & TCP_FLAGS;
        self.flags |= flags;
        if flags & tcp::SYN != 0 {
            self.speech = match flags & (tcp::ACK | tcp::RST | tcp::FIN) {
                0 => Speech::Request,
                tcp::ACK => Speech::Response,
                _ => Speech::Silent,
            };
        }
    }

    /// Takes over the numbers of a TCP header that is whole.
    #[inline]
    fn tcp_numbers(&mut self, header: &[u8; 20], payload_octets: u32) {
        self.sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        self.acknowledgement = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        self.window = u16::from_be_bytes([header[14], header[15]]);
        self.payload_octets = payload_octets;
    }
}

#[cfg(test)]
mod tests;
