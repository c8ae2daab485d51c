//! IPv4, IPv6 and what they carry.

use etherparse::{IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice};
use spanwatch_common::flow::{protocol, tcp};
use spanwatch_common::net::Address;

use super::key::Endpoint;
use super::{DONT_FRAGMENT, FlowKey, Fragment, FrameHeader, IS_FRAGMENT, Kind, Oddity, Packet, Speech, TCP_FLAGS};

/// Most extension headers that are followed; RFC 8200 §4.1 has each at most once, destination options twice.
const EXTENSIONS_MAX: usize = 8;

/// What the IP header says, whatever its version.
struct IpHeader {
    kind: Kind,
    source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
    ip_octets: u32,
    ttl: u8,
    class_of_service: u8,
    flags: u16,
    fragment: Option<Fragment>,
    odd: Oddity,
}

/// An IPv4 packet; `None` when the header is cut short or contradicts itself (RFC 791 §3.1).
#[inline]
pub(super) fn v4(bytes: &[u8], frame: &FrameHeader) -> Option<Packet> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let header_len = header.slice().len();
    let (ip_octets, odd) = match u32::from(header.total_len()) {
        // Segmentation offload leaves the total length to the card.
        0 => (frame.frame_octets.saturating_sub(frame.header_octets()), Oddity::NoIpLength),
        total if (total as usize) < header_len => return None,
        total => (total, Oddity::None),
    };
    let offset = header.fragments_offset().value();
    let is_fragment = offset > 0 || header.more_fragments();
    let mut flags = 0;
    if header.dont_fragment() {
        flags |= DONT_FRAGMENT;
    }
    if is_fragment {
        flags |= IS_FRAGMENT;
    }
    let ip = IpHeader {
        kind: Kind::Ipv4,
        source: Address::from_v4(header.source()).0.to_be_bytes(),
        destination: Address::from_v4(header.destination()).0.to_be_bytes(),
        protocol: header.protocol().0,
        ip_octets,
        ttl: header.ttl(),
        class_of_service: bytes[1], // the slice above holds at least 20 bytes
        flags,
        fragment: is_fragment.then(|| Fragment { id: u32::from(header.identification()), first: offset == 0 }),
        odd,
    };
    // What follows the total length is padding, or whatever lay in the sender's buffer. The slice above holds `header_len` bytes.
    let end = if odd == Oddity::NoIpLength { bytes.len() } else { bytes.len().min(ip_octets as usize) };
    Some(transport(&bytes[header_len..end], ip, frame))
}

/// An IPv6 packet with its extension headers; `None` when the fixed header is cut short or of another version (RFC 8200 §3).
pub(super) fn v6(bytes: &[u8], frame: &FrameHeader) -> Option<Packet> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let mut ip = IpHeader {
        kind: Kind::Ipv6,
        source: header.source(),
        destination: header.destination(),
        protocol: header.next_header().0,
        ip_octets: 40 + u32::from(header.payload_length()),
        ttl: header.hop_limit(),
        class_of_service: header.traffic_class(),
        flags: 0,
        fragment: None,
        odd: Oddity::None,
    };
    if header.payload_length() == 0 && ip.protocol == HOP_BY_HOP {
        // A jumbo payload (RFC 2675) has its length in an option; the frame knows it as well.
        ip.ip_octets = frame.frame_octets.saturating_sub(frame.header_octets());
        ip.odd = Oddity::NoIpLength;
    }
    // As in IPv4: padding is no header. The slice above holds the 40 bytes of the fixed header.
    let end = if ip.odd == Oddity::NoIpLength { bytes.len() } else { bytes.len().min(ip.ip_octets as usize) };
    let mut rest = &bytes[40..end];
    for extension in 0.. {
        if extension == EXTENSIONS_MAX {
            ip.odd = Oddity::TooDeep;
            break;
        }
        let Some((next, len)) = extension_header(rest, &mut ip) else { break };
        ip.protocol = next;
        rest = &rest[len..]; // no longer than what was just read from it
    }
    Some(transport(rest, ip, frame))
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// The next header's number and this one's length, if `ip.protocol` names an extension header and all of it is there.
fn extension_header(bytes: &[u8], ip: &mut IpHeader) -> Option<(u8, usize)> {
    if ip.fragment.is_some_and(|fragment| !fragment.first) {
        return None; // what follows in a later fragment is the middle of something
    }
    match ip.protocol {
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
            ip.fragment = Some(Fragment { id: header.identification(), first: header.fragment_offset().value() == 0 });
            ip.flags |= IS_FRAGMENT;
            Some((header.next_header().0, header.slice().len()))
        }
        _ => None,
    }
}

/// What the transport header says; all zero where there is none to read.
#[derive(Default)]
struct Transport {
    source_port: u16,
    destination_port: u16,
    /// Part of the key beside the ports.
    detail: u16,
    flags: u16,
    icmp_type_code: u16,
}

/// Reads the transport header at the start of `bytes` and puts the packet together.
#[inline]
fn transport(bytes: &[u8], ip: IpHeader, frame: &FrameHeader) -> Packet {
    let mut odd = ip.odd;
    let mut speech = Speech::Silent;
    let mut seen = Transport::default();
    if ip.fragment.is_none_or(|fragment| fragment.first) {
        match ip.protocol {
            protocol::TCP => tcp_header(bytes, &mut seen, &mut speech, &mut odd),
            protocol::UDP => {
                ports(bytes, &mut seen, &mut odd);
                speech = dns_speech(bytes, &seen);
            }
            // DCCP and UDP-Lite have their ports where UDP has them (RFC 4340 §5.1, RFC 3828 §3.1); SCTP too (RFC 9260 §3.1).
            protocol::SCTP | 33 | 136 => ports(bytes, &mut seen, &mut odd),
            protocol::ICMP | protocol::ICMPV6 => icmp_header(bytes, ip.protocol, &mut seen, &mut speech, &mut odd),
            _ => {}
        }
    }
    let source = Endpoint { address: ip.source, port: seen.source_port };
    let destination = Endpoint { address: ip.destination, port: seen.destination_port };
    let (mut key, way) = FlowKey::between(source, destination, ip.kind, ip.protocol);
    key.detail = seen.detail;
    Packet {
        at: frame.at,
        key,
        way,
        speech,
        frame_octets: frame.frame_octets,
        ip_octets: ip.ip_octets,
        flags: ip.flags | seen.flags,
        icmp_type_code: seen.icmp_type_code,
        ttl: ip.ttl,
        class_of_service: ip.class_of_service,
        vlan_tags: frame.vlan_tags,
        odd,
        source_mac: frame.source_mac,
        destination_mac: frame.destination_mac,
        fragment: ip.fragment,
    }
}

#[inline]
fn ports(bytes: &[u8], seen: &mut Transport, odd: &mut Oddity) {
    match bytes {
        [a, b, c, d, ..] => {
            seen.source_port = u16::from_be_bytes([*a, *b]);
            seen.destination_port = u16::from_be_bytes([*c, *d]);
        }
        _ => *odd = Oddity::BadTransportHeader,
    }
}

/// Ports need four bytes, flags fourteen (RFC 9293 §3.1); a mirror that slices frames may cut between them.
#[inline]
fn tcp_header(bytes: &[u8], seen: &mut Transport, speech: &mut Speech, odd: &mut Oddity) {
    ports(bytes, seen, odd);
    let &[offset, flags] = bytes.get(12..14).and_then(|two| two.first_chunk()).unwrap_or_else(|| {
        *odd = Oddity::BadTransportHeader;
        &[0; 2]
    });
    seen.flags = u16::from_be_bytes([offset, flags]) & TCP_FLAGS;
    *speech = match seen.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) {
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
fn icmp_header(bytes: &[u8], protocol: u8, seen: &mut Transport, speech: &mut Speech, odd: &mut Oddity) {
    let [kind, code, rest @ ..] = bytes else {
        *odd = Oddity::BadTransportHeader;
        return;
    };
    seen.icmp_type_code = u16::from_be_bytes([*kind, *code]);
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
            *speech = if is_request { Speech::Request } else { Speech::Response };
            seen.detail = u16::from_be_bytes([request, 0]);
            if let ([_, _, high, low, ..], true) = (rest, has_identifier) {
                let identifier = u16::from_be_bytes([*high, *low]);
                (seen.source_port, seen.destination_port) = (identifier, identifier);
            }
        }
        None => seen.detail = seen.icmp_type_code,
    }
}
