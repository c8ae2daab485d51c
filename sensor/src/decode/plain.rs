//! The short way: Ethernet with at most one 802.1Q tag, IPv4 without options, TCP or UDP, whole and untunnelled. Behind the ethertype every
//! field stands where it always stands.

use spanwatch_common::encapsulation::{Encapsulation, Encapsulations};
use spanwatch_common::flow::protocol;

use super::{DONT_FRAGMENT, FlowKey, Packet, Rules};
use crate::capture::{Frame, Link};

/// IPv4 and TCP without options.
const HEADERS: usize = 20 + 20;
/// A PRP trailer (IEC 62439-3) is the only thing behind an IP packet that is looked at.
const TRAILER_MIN: u32 = 6;

/// Reads a plain packet into `packet`. False, and nothing written, when the frame is anything else.
///
/// In place because this is what nearly every packet goes through, and copying it would be a tenth of the work.
#[inline]
pub(super) fn read(frame: &Frame<'_>, rules: &Rules, packet: &mut Packet) -> bool {
    let Some((ethernet, behind)) = frame.bytes.first_chunk::<{ 14 + HEADERS }>().and_then(|h| h.split_first_chunk::<14>()) else {
        return false;
    };
    match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => behind.first_chunk().is_some_and(|h| read_ip(frame, rules, ethernet, h, None, packet)),
        [0x81, 0x00] => read_tagged(frame, rules, ethernet, packet),
        _ => false,
    }
}

/// The same behind a tag.
fn read_tagged(frame: &Frame<'_>, rules: &Rules, ethernet: &[u8; 14], packet: &mut Packet) -> bool {
    let Some(([a, b, 0x08, 0x00], behind)) = frame.bytes[14..].split_first_chunk::<4>() else { return false };
    let tag = u16::from_be_bytes([*a, *b]) & 0x0fff;
    behind.first_chunk().is_some_and(|h| read_ip(frame, rules, ethernet, h, Some(tag), packet))
}

/// The IP packet whose headers are `h`, in a frame that begins with `ethernet`, and the VID of its tag.
#[inline(always)]
fn read_ip(
    frame: &Frame<'_>,
    rules: &Rules,
    ethernet: &[u8; 14],
    h: &[u8; HEADERS],
    tag: Option<u16>,
    packet: &mut Packet,
) -> bool {
    let ethernet_octets = if tag.is_some() { 18 } else { 14 };
    // Version 4 and five words of header; neither MF nor an offset (RFC 791 §3.1).
    let fragment = u16::from_be_bytes([h[6], h[7]]);
    if h[0] != 0x45 || fragment & 0x3fff != 0 || frame.link != Link::Ethernet {
        return false;
    }
    let ip_octets = u32::from(u16::from_be_bytes([h[2], h[3]]));
    let frame_octets = frame.octets();
    if frame_octets >= ethernet_octets + ip_octets + TRAILER_MIN && frame.bytes.last_chunk() == Some(&[0x88, 0xfb]) {
        return false;
    }
    let (source_port, destination_port) = (u16::from_be_bytes([h[20], h[21]]), u16::from_be_bytes([h[22], h[23]]));
    let protocol = h[9];
    let header_octets = u32::from(h[32] >> 4) * 4;
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
    let (source, destination) = ([h[12], h[13], h[14], h[15]], [h[16], h[17], h[18], h[19]]);
    let (key, way) = FlowKey::between_v4(source, source_port, destination, destination_port, protocol);
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *ethernet;
    *packet = Packet {
        key,
        way,
        ip_octets,
        flags: (fragment & 0x4000) >> 2,
        ttl: h[8],
        class_of_service: h[1],
        destination_mac: [d0, d1, d2, d3, d4, d5],
        source_mac: [s0, s1, s2, s3, s4, s5],
        network_at: ethernet_octets as u16,
        is_cut: frame.bytes.len() < frame_octets as usize,
        ..Packet::blank(frame.at, frame_octets)
    };
    if is_tcp && let Some(tcp) = h.last_chunk() {
        packet.tcp_flags(u16::from_be_bytes([h[32], h[33]]));
        packet.tcp_numbers(tcp, ip_octets - 20 - header_octets);
    }
    if let Some(id) = tag {
        packet.vlan_tags = 1;
        packet.encapsulations = Encapsulations::NONE.with(if id == 0 { Encapsulation::PriorityTag } else { Encapsulation::Vlan });
        packet.key.vlan = if rules.vlan_in_key { id } else { 0 };
    }
    true
}

// DF is 0x4000 in the header.
const _: () = assert!(DONT_FRAGMENT == 0x4000 >> 2);
