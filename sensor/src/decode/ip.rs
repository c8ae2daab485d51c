//! IPv4, IPv6 and what they carry.

use etherparse::{IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice};
use spanwatch_common::flow::{protocol, tcp};
use spanwatch_common::net::Address;

use super::key::Endpoint;
use super::{DONT_FRAGMENT, FlowKey, Fragment, IS_FRAGMENT, Kind, Oddity, Packet, Speech, TCP_FLAGS};

/// Most extension headers that are followed; RFC 8200 §4.1 has each at most once, destination options twice.
const EXTENSIONS_MAX: usize = 8;

/// An IPv4 packet: completes `packet`. False, and nothing changed, when the header is cut short or contradicts itself (RFC 791 §3.1).
#[inline]
pub(super) fn v4(bytes: &[u8], packet: &mut Packet, ethernet_octets: u32) -> bool {
    let Ok(header) = Ipv4HeaderSlice::from_slice(bytes) else { return false };
    let header_len = header.slice().len();
    match u32::from(header.total_len()) {
        0 => {
            // Segmentation offload leaves the total length to the card.
            packet.ip_octets = packet.frame_octets.saturating_sub(ethernet_octets);
            packet.odd = Oddity::NoIpLength;
        }
        total if (total as usize) < header_len => return false,
        total => packet.ip_octets = total,
    }
    packet.ttl = header.ttl();
    packet.class_of_service = bytes[1]; // the slice above holds at least 20 bytes
    if header.dont_fragment() {
        packet.flags |= DONT_FRAGMENT;
    }
    let offset = header.fragments_offset().value();
    if offset > 0 || header.more_fragments() {
        packet.flags |= IS_FRAGMENT;
        packet.fragment = Some(Fragment { id: u32::from(header.identification()), first: offset == 0 });
    }
    let ends = (mapped(header.source()), mapped(header.destination()));
    // What follows the total length is padding, or whatever lay in the sender's buffer. The slice above holds `header_len` bytes.
    let end = if packet.odd == Oddity::NoIpLength { bytes.len() } else { bytes.len().min(packet.ip_octets as usize) };
    transport(&bytes[header_len..end], packet, ends, Kind::Ipv4, header.protocol().0);
    true
}

#[inline]
const fn mapped(octets: [u8; 4]) -> [u8; 16] {
    Address::from_v4(octets).0.to_be_bytes()
}

/// An IPv6 packet with its extension headers: completes `packet`. False, and nothing changed, when the fixed header is cut short or of
/// another version (RFC 8200 §3).
pub(super) fn v6(bytes: &[u8], packet: &mut Packet, ethernet_octets: u32) -> bool {
    let Ok(header) = Ipv6HeaderSlice::from_slice(bytes) else { return false };
    let mut protocol = header.next_header().0;
    packet.ip_octets = 40 + u32::from(header.payload_length());
    packet.ttl = header.hop_limit();
    packet.class_of_service = header.traffic_class();
    if header.payload_length() == 0 && protocol == HOP_BY_HOP {
        // A jumbo payload (RFC 2675) has its length in an option; the frame knows it as well.
        packet.ip_octets = packet.frame_octets.saturating_sub(ethernet_octets);
        packet.odd = Oddity::NoIpLength;
    }
    // As in IPv4: padding is no header. The slice above holds the 40 bytes of the fixed header.
    let end = if packet.odd == Oddity::NoIpLength { bytes.len() } else { bytes.len().min(packet.ip_octets as usize) };
    let mut rest = &bytes[40..end];
    for extension in 0.. {
        if extension == EXTENSIONS_MAX {
            packet.odd = Oddity::TooDeep;
            break;
        }
        let Some((next, len)) = extension_header(rest, protocol, packet) else { break };
        protocol = next;
        rest = &rest[len..]; // no longer than what was just read from it
    }
    transport(rest, packet, (header.source(), header.destination()), Kind::Ipv6, protocol);
    true
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

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
            packet.fragment = Some(Fragment { id: header.identification(), first: header.fragment_offset().value() == 0 });
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

/// Reads the transport header at the start of `bytes` and completes the packet with its key.
#[inline]
fn transport(bytes: &[u8], packet: &mut Packet, ends: ([u8; 16], [u8; 16]), kind: Kind, protocol: u8) {
    let mut seen = Transport::default();
    if packet.fragment.is_none_or(|fragment| fragment.first) {
        match protocol {
            protocol::TCP => tcp_header(bytes, &mut seen, packet),
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
    let source = Endpoint { address: ends.0, port: seen.source_port };
    let destination = Endpoint { address: ends.1, port: seen.destination_port };
    (packet.key, packet.way) = FlowKey::between(source, destination, kind, protocol);
    packet.key.detail = seen.detail;
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

/// Ports need four bytes, flags fourteen (RFC 9293 §3.1); a mirror that slices frames may cut between them.
#[inline]
fn tcp_header(bytes: &[u8], seen: &mut Transport, packet: &mut Packet) {
    ports(bytes, seen, packet);
    let Some(&[offset, flags]) = bytes.get(12..14).and_then(|two| two.first_chunk()) else {
        packet.odd = Oddity::BadTransportHeader;
        return;
    };
    let flags = u16::from_be_bytes([offset, flags]) & TCP_FLAGS;
    packet.flags |= flags;
    packet.speech = match flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) {
        tcp::SYN => Speech::Request,
        both if both == tcp::SYN | tcp::ACK => Speech::Response,
        _ => Speech::Silent,
    };
}

/// The QR bit of a DNS header (RFC 1035 §4.1.1) says query or response.
fn dns_speech(udp: &[u8], seen: &Transport) -> Speech {
    if !matches!((seen.source_port, seen.destination_port), (53 | 5353, _) | (_, 53 | 5353)) {
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
