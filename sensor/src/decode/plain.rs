//! The short way: Ethernet, IPv4 without options, TCP or UDP, whole and untunnelled. One check of the length, then every field stands
//! where it always stands.

use spanwatch_common::flow::protocol;

use super::{DONT_FRAGMENT, FlowKey, Packet, Rules};
use crate::capture::{Frame, Link};

/// Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 14 + 20 + 20;
/// A PRP trailer (IEC 62439-3) is the only thing behind an IP packet that is looked at.
const TRAILER_MIN: usize = 6;

/// The packet, if it is a plain one.
#[inline]
pub(super) fn read(frame: &Frame<'_>, rules: &Rules) -> Option<Packet> {
    let h = frame.bytes.first_chunk::<HEADERS>()?;
    // Ethertype 0x0800, version 4 and five words of header.
    if u32::from_be_bytes([h[12], h[13], h[14], 0]) != 0x0800_4500 || frame.link != Link::Ethernet {
        return None;
    }
    let ip_octets = usize::from(u16::from_be_bytes([h[16], h[17]]));
    let fragment = u16::from_be_bytes([h[20], h[21]]);
    // Neither MF nor an offset (RFC 791 §3.1).
    if fragment & 0x3fff != 0 {
        return None;
    }
    let behind = (frame.wire_len as usize).saturating_sub(14);
    if behind >= ip_octets + TRAILER_MIN && frame.bytes.last_chunk() == Some(&[0x88, 0xfb]) {
        return None;
    }
    let (source_port, destination_port) = (u16::from_be_bytes([h[34], h[35]]), u16::from_be_bytes([h[36], h[37]]));
    let mut packet = Packet::blank(frame.at, frame.wire_len);
    let protocol = h[23];
    match protocol {
        protocol::TCP => {
            let header_octets = usize::from(h[46] >> 4) * 4;
            if header_octets < 20 || ip_octets < 20 + header_octets {
                return None;
            }
            packet.flags = (fragment & 0x4000) >> 2;
            packet.tcp_flags(u16::from_be_bytes([h[46], h[47]]));
            let tcp: &[u8; 20] = h.last_chunk()?;
            packet.tcp_numbers(tcp, (ip_octets - 20 - header_octets) as u32);
        }
        // DNS speaks of its direction, and tunnels have more inside.
        protocol::UDP
            if ip_octets >= 28
                && !rules.may_be_tunnel(destination_port)
                && !matches!(source_port, 53 | 5353)
                && !matches!(destination_port, 53 | 5353) =>
        {
            packet.flags = (fragment & 0x4000) >> 2;
        }
        _ => return None,
    }
    (packet.key, packet.way) =
        FlowKey::between_v4([h[26], h[27], h[28], h[29]], source_port, [h[30], h[31], h[32], h[33]], destination_port, protocol);
    packet.ip_octets = ip_octets as u32;
    packet.ttl = h[22];
    packet.class_of_service = h[15];
    packet.destination_mac = [h[0], h[1], h[2], h[3], h[4], h[5]];
    packet.source_mac = [h[6], h[7], h[8], h[9], h[10], h[11]];
    packet.network_at = 14;
    packet.is_cut = frame.bytes.len() < frame.wire_len as usize;
    Some(packet)
}

// DF is 0x4000 in the header.
const _: () = assert!(DONT_FRAGMENT == 0x4000 >> 2);
