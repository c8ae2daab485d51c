//! The short way: Ethernet, IPv4 without options, TCP or UDP, whole and untunnelled. One check of the length, then every field stands
//! where it always stands.

use spanwatch_common::flow::protocol;

use super::{DONT_FRAGMENT, FlowKey, Packet, Rules};
use crate::capture::{Frame, Link};

/// Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 14 + 20 + 20;
/// A PRP trailer (IEC 62439-3) is the only thing behind an IP packet that is looked at.
const TRAILER_MIN: u32 = 6;

/// Reads a plain packet into `packet`. False, and nothing written, when the frame is anything else.
///
/// In place because this is what nearly every packet goes through, and copying it would be a tenth of the work.
#[inline]
pub(super) fn read(frame: &Frame<'_>, rules: &Rules, packet: &mut Packet) -> bool {
    let Some(h) = frame.bytes.first_chunk::<HEADERS>() else { return false };
    // Ethertype 0x0800, version 4 and five words of header; neither MF nor an offset (RFC 791 §3.1).
    let fragment = u16::from_be_bytes([h[20], h[21]]);
    if u32::from_be_bytes([h[12], h[13], h[14], 0]) != 0x0800_4500 || fragment & 0x3fff != 0 || frame.link != Link::Ethernet {
        return false;
    }
    let ip_octets = u32::from(u16::from_be_bytes([h[16], h[17]]));
    let frame_octets = frame.octets();
    if frame_octets >= 14 + ip_octets + TRAILER_MIN && frame.bytes.last_chunk() == Some(&[0x88, 0xfb]) {
        return false;
    }
    let (source_port, destination_port) = (u16::from_be_bytes([h[34], h[35]]), u16::from_be_bytes([h[36], h[37]]));
    let protocol = h[23];
    let header_octets = u32::from(h[46] >> 4) * 4;
    let is_tcp = protocol == protocol::TCP;
    let is_whole = match protocol {
        protocol::TCP => header_octets >= 20 && ip_octets >= 20 + header_octets,
        // DNS speaks of its direction, and tunnels have more inside.
        protocol::UDP => {
            let is_dns = matches!(source_port, 53 | 5353) || matches!(destination_port, 53 | 5353);
            ip_octets >= 28 && !is_dns && !rules.may_be_tunnel(destination_port)
        }
        _ => false,
    };
    if !is_whole {
        return false;
    }
    let source = [h[26], h[27], h[28], h[29]];
    let (key, way) = FlowKey::between_v4(source, source_port, [h[30], h[31], h[32], h[33]], destination_port, protocol);
    *packet = Packet {
        key,
        way,
        ip_octets,
        flags: (fragment & 0x4000) >> 2,
        ttl: h[22],
        class_of_service: h[15],
        destination_mac: [h[0], h[1], h[2], h[3], h[4], h[5]],
        source_mac: [h[6], h[7], h[8], h[9], h[10], h[11]],
        network_at: 14,
        is_cut: frame.bytes.len() < frame_octets as usize,
        ..Packet::blank(frame.at, frame_octets)
    };
    if is_tcp && let Some(tcp) = h.last_chunk() {
        packet.tcp_flags(u16::from_be_bytes([h[46], h[47]]));
        packet.tcp_numbers(tcp, ip_octets - 20 - header_octets);
    }
    true
}

// DF is 0x4000 in the header.
const _: () = assert!(DONT_FRAGMENT == 0x4000 >> 2);
