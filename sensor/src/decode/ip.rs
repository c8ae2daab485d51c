//! IPv4, IPv6 and what they carry.

use etherparse::{IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice};
use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;

use super::key::Endpoint;
use super::{DONT_FRAGMENT, FlowKey, Fragment, IS_FRAGMENT, Kind, Oddity, Packet, Speech, Way};

/// Most extension headers that are followed; RFC 8200 §4.1 has each at most once, destination options twice.
const EXTENSIONS_MAX: usize = 8;

/// What an IP header carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    /// Protocol of the last header that was read.
    pub(super) protocol: u8,
    /// Where it begins in the frame.
    pub(super) at: usize,
    /// Where the IP packet ends in the frame, or the captured octets before that.
    pub(super) end: usize,
    /// Where it begins after the IP header, in octets: differs from `at` by extension headers.
    ip_header_octets: u32,
}

/// Reads the IP header of either version at `frame[at..end]` and completes `packet` with it, all but the transport. None, and nothing
/// changed, when there is none that makes sense.
#[inline]
pub(super) fn read(frame: &[u8], at: usize, end: usize, wire_end: usize, packet: &mut Packet) -> Option<(Payload, Ends)> {
    match frame[..end].get(at)? >> 4 {
        4 => v4(frame, at, end, wire_end, packet),
        6 => v6(frame, at, end, wire_end, packet),
        _ => None,
    }
}

/// Reads the IPv4 header at `frame[at..end]` and completes `packet` with it, all but the transport. None, and nothing changed, when the
/// header is cut short or contradicts itself (RFC 791 §3.1). `wire_end` is where the frame ends on the wire.
#[inline]
fn v4(frame: &[u8], at: usize, end: usize, wire_end: usize, packet: &mut Packet) -> Option<(Payload, Ends)> {
    let bytes = &frame[at..end];
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let header_len = header.slice().len();
    let mut odd = Oddity::None;
    let ip_octets = match usize::from(header.total_len()) {
        0 => {
            // Segmentation offload leaves the total length to the card.
            odd = Oddity::NoIpLength;
            wire_end.saturating_sub(at)
        }
        // Options that reach beyond it: the addresses are still where they belong.
        total if (20..header_len).contains(&total) => {
            odd = Oddity::BadTransportHeader;
            total
        }
        total if total < header_len => return None,
        total => total,
    };
    packet.reset_network(at, odd);
    packet.ip_octets = ip_octets as u32;
    packet.ttl = header.ttl();
    packet.class_of_service = bytes[1]; // the slice above holds at least 20 bytes
    if header.dont_fragment() {
        packet.flags |= DONT_FRAGMENT;
    }
    let offset = header.fragments_offset().value();
    if offset > 0 || header.more_fragments() {
        packet.flags |= IS_FRAGMENT;
        packet.fragment = Some(Fragment {
            id: u32::from(header.identification()),
            first: offset == 0,
            offset: u32::from(offset) * 8,
            more: header.more_fragments(),
            hides_tunnel: false,
        });
    }
    let ends = Ends { source: mapped(header.source()), destination: mapped(header.destination()), kind: Kind::Ipv4 };
    // What follows the total length is padding, or whatever lay in the sender's buffer.
    let end = end.min(at + ip_octets);
    let mut payload = Payload { protocol: header.protocol().0, at: at + header_len, end, ip_header_octets: header_len as u32 };
    if payload.protocol == AUTHENTICATION
        && packet.fragment.is_none_or(|fragment| fragment.first)
        && let Some(bytes) = frame[..end].get(payload.at..)
        && let Ok(header) = IpAuthHeaderSlice::from_slice(bytes)
    {
        payload = payload.after(header.next_header().0, header.slice().len());
    }
    Some((payload, ends))
}

impl Payload {
    /// What follows a header of `len` octets that names `protocol`.
    const fn after(self, protocol: u8, len: usize) -> Self {
        Self { protocol, at: self.at + len, ip_header_octets: self.ip_header_octets + len as u32, ..self }
    }
}

/// The addresses of an IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
    kind: Kind,
}

#[inline]
const fn mapped(octets: [u8; 4]) -> [u8; 16] {
    Address::from_v4(octets).0.to_be_bytes()
}

/// Reads the IPv6 header at `frame[at..end]` with its extension headers and completes `packet`, all but the transport. None, and nothing
/// changed, when the fixed header is cut short or of another version (RFC 8200 §3).
fn v6(frame: &[u8], at: usize, end: usize, wire_end: usize, packet: &mut Packet) -> Option<(Payload, Ends)> {
    let header = Ipv6HeaderSlice::from_slice(&frame[at..end]).ok()?;
    let protocol = header.next_header().0;
    let (mut ip_octets, mut odd) = (40 + usize::from(header.payload_length()), Oddity::None);
    if header.payload_length() == 0 && protocol == HOP_BY_HOP {
        // A jumbo payload (RFC 2675) has its length in an option; the frame knows it as well.
        ip_octets = wire_end.saturating_sub(at);
        odd = Oddity::NoIpLength;
    }
    packet.reset_network(at, odd);
    packet.ip_octets = ip_octets as u32;
    packet.ttl = header.hop_limit();
    packet.class_of_service = header.traffic_class();
    // As in IPv4: padding is no header.
    let mut payload = Payload { protocol, at: at + 40, end: end.min(at + ip_octets), ip_header_octets: 40 };
    for extension in 0.. {
        if extension == EXTENSIONS_MAX {
            packet.odd = Oddity::TooDeep;
            break;
        }
        let rest = &frame[payload.at..payload.end];
        let Some((next, len)) = extension_header(rest, payload.protocol, packet) else {
            if is_extension(payload.protocol) && packet.fragment.is_none_or(|fragment| fragment.first) {
                packet.odd = Oddity::BadTransportHeader; // the header is cut short
            }
            break;
        };
        payload = payload.after(next, len); // no longer than what was just read from it
    }
    Some((payload, Ends { source: header.source(), destination: header.destination(), kind: Kind::Ipv6 }))
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// Whether `protocol` is the number of an extension header that is followed.
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 | AUTHENTICATION | FRAGMENT)
}

/// The next header's number and this one's length, if `protocol` names an extension header and all of it is there.
fn extension_header(bytes: &[u8], protocol: u8, packet: &mut Packet) -> Option<(u8, usize)> {
    if packet.fragment.is_some_and(|fragment| !fragment.first) {
        return None; // what follows in a later fragment is the middle of something
    }
    match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
            let header = Ipv6RawExtHeaderSlice::from_slice(bytes).ok()?;
            Some((header.next_header().0, header.slice().len()))
        }
        AUTHENTICATION => {
            let header = IpAuthHeaderSlice::from_slice(bytes).ok()?;
            Some((header.next_header().0, header.slice().len()))
        }
        FRAGMENT => {
            let header = Ipv6FragmentHeaderSlice::from_slice(bytes).ok()?;
            let offset = header.fragment_offset().value();
            packet.fragment = Some(Fragment {
                id: header.identification(),
                first: offset == 0,
                offset: u32::from(offset) * 8,
                more: header.more_fragments(),
                hides_tunnel: false,
            });
            packet.flags |= IS_FRAGMENT;
            Some((header.next_header().0, header.slice().len()))
        }
        _ => None,
    }
}

/// What the transport header adds to the key; all zero where there is none to read.
#[derive(Default)]
struct Transport {
    source_port: u16,
    destination_port: u16,
    /// Part of the key beside the ports.
    detail: u16,
}

/// Reads the transport header and completes the packet with its key.
#[inline]
pub(super) fn transport(frame: &[u8], payload: Payload, ends: &Ends, packet: &mut Packet) {
    let bytes = &frame[payload.at.min(payload.end)..payload.end];
    let protocol = payload.protocol;
    let mut seen = Transport::default();
    if packet.fragment.is_none_or(|fragment| fragment.first) {
        match protocol {
            protocol::TCP => {
                let octets = packet.ip_octets.saturating_sub(payload.ip_header_octets);
                tcp_header(bytes, octets, &mut seen, packet);
            }
            protocol::UDP => {
                ports(bytes, &mut seen, packet);
                packet.speech = dns_speech(bytes, &seen);
            }
            // DCCP and UDP-Lite have their ports where UDP has them (RFC 4340 §5.1, RFC 3828 §3.1); SCTP too (RFC 9260 §3.1).
            protocol::SCTP | 33 | 136 => ports(bytes, &mut seen, packet),
            protocol::ICMP | protocol::ICMPV6 => icmp_header(bytes, protocol, &mut seen, packet),
            _ => {}
        }
    }
    let source = Endpoint { address: ends.source, port: seen.source_port };
    let destination = Endpoint { address: ends.destination, port: seen.destination_port };
    (packet.key, packet.way) = FlowKey::between(source, destination, ends.kind, protocol);
    packet.key.detail = seen.detail;
}

/// Where the payload of the packet's innermost IP header begins and ends in `frame`; None at layer 2.
pub(super) fn payload(frame: &[u8], packet: &Packet) -> Option<(usize, usize)> {
    if packet.key.is_layer2() {
        return None;
    }
    let (payload, _) = read(frame, usize::from(packet.network_at), frame.len(), frame.len(), &mut { *packet })?;
    (payload.at <= payload.end).then_some((payload.at, payload.end))
}

/// The key and direction of the packet that an ICMP error quotes: IP header and at least eight octets of what follows (RFC 792,
/// RFC 4443 §3). `error` is the packet with the error, whose ICMP header stands at the end of its IP header.
pub(super) fn quoted(frame: &[u8], error: &Packet) -> Option<(FlowKey, Way)> {
    let (outer, _) = read(frame, usize::from(error.network_at), frame.len(), frame.len(), &mut { *error })?;
    let mut inner = *error;
    // Type, code, checksum, and four octets that are unused or a parameter.
    let (payload, ends) = read(frame, outer.at + 8, frame.len(), frame.len(), &mut inner)?;
    inner.key.detail = 0;
    transport(frame, payload, &ends, &mut inner);
    let key = FlowKey { vlan: error.key.vlan, customer_vlan: error.key.customer_vlan, context: error.key.context, ..inner.key };
    Some((key, inner.way))
}

#[inline]
fn ports(bytes: &[u8], seen: &mut Transport, packet: &mut Packet) {
    match bytes {
        [a, b, c, d, ..] => {
            seen.source_port = u16::from_be_bytes([*a, *b]);
            seen.destination_port = u16::from_be_bytes([*c, *d]);
        }
        _ => packet.odd = Oddity::BadTransportHeader,
    }
}

/// Ports need four bytes, flags fourteen, the rest twenty (RFC 9293 §3.1); a mirror that slices frames may cut between them.
/// `octets` is the length of header and payload, by the IP header.
#[inline]
fn tcp_header(bytes: &[u8], octets: u32, seen: &mut Transport, packet: &mut Packet) {
    ports(bytes, seen, packet);
    let Some(&[offset, flags]) = bytes.get(12..14).and_then(|two| two.first_chunk()) else {
        packet.odd = Oddity::BadTransportHeader;
        return;
    };
    packet.tcp_flags(u16::from_be_bytes([offset, flags]));
    let header_octets = u32::from(offset >> 4) * 4;
    match bytes.first_chunk::<20>() {
        Some(header) if (20..=octets).contains(&header_octets) => packet.tcp_numbers(header, octets - header_octets),
        _ => packet.odd = Oddity::BadTransportHeader,
    }
}

/// Whether a datagram between these ports is DNS or mDNS (RFC 6762 §3).
pub(super) const fn is_dns(source_port: u16, destination_port: u16) -> bool {
    matches!((source_port, destination_port), (53 | 5353, _) | (_, 53 | 5353))
}

/// The QR bit of a DNS header (RFC 1035 §4.1.1) says query or response.
fn dns_speech(udp: &[u8], seen: &Transport) -> Speech {
    if !is_dns(seen.source_port, seen.destination_port) {
        return Speech::Silent;
    }
    match udp.get(8 + 2) {
        Some(flags) if flags & 0x80 != 0 => Speech::Response,
        Some(_) => Speech::Request,
        None => Speech::Silent,
    }
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861): a query and its reply share a key, made of the query's type and the
/// identifier where there is one; everything else is a conversation of its own type and code.
fn icmp_header(bytes: &[u8], protocol: u8, seen: &mut Transport, packet: &mut Packet) {
    let [kind, code, rest @ ..] = bytes else {
        packet.odd = Oddity::BadTransportHeader;
        return;
    };
    packet.icmp_type_code = u16::from_be_bytes([*kind, *code]);
    // (type of the query, whether this is the query, whether an identifier follows the checksum)
    let query = match (protocol, *kind) {
        (protocol::ICMP, 8) => Some((8, true, true)),
        (protocol::ICMP, 0) => Some((8, false, true)),
        (protocol::ICMP, kind @ (13 | 15 | 17)) => Some((kind, true, true)),
        (protocol::ICMP, kind @ (14 | 16 | 18)) => Some((kind - 1, false, true)),
        (protocol::ICMPV6, 128) => Some((128, true, true)),
        (protocol::ICMPV6, 129) => Some((128, false, true)),
        (protocol::ICMPV6, kind @ (133 | 135)) => Some((kind, true, false)),
        (protocol::ICMPV6, kind @ (134 | 136)) => Some((kind - 1, false, false)),
        _ => None,
    };
    match query {
        Some((request, is_request, has_identifier)) => {
            packet.speech = if is_request { Speech::Request } else { Speech::Response };
            seen.detail = u16::from_be_bytes([request, 0]);
            if let ([_, _, high, low, ..], true) = (rest, has_identifier) {
                let identifier = u16::from_be_bytes([*high, *low]);
                (seen.source_port, seen.destination_port) = (identifier, identifier);
            }
        }
        None => seen.detail = packet.icmp_type_code,
    }
}
