//! The short way: Ethernet with at most one 802.1Q tag, IPv4 without options (or no tag, and IPv6 without extension headers), TCP or UDP,
//! whole and untunnelled. Behind the ethertype every field stands where it always stands.

use spanwatch_common::encapsulation::{Encapsulation, Encapsulations};
use spanwatch_common::flow::protocol;

use super::ip::is_dns;
use super::key::Endpoint;
use super::{DONT_FRAGMENT, FlowKey, Kind, Packet, Rules, ShortKey, TCP_FLAGS, Update};
use crate::capture::{Frame, Link};
use crate::flow_table::KeyHasher;

/// IPv4 and TCP without options.
const HEADERS: usize = 20 + 20;
/// A PRP trailer (IEC 62439-3) is the only thing behind an IP packet that is looked at.
const TRAILER_MIN: u32 = 6;

/// The headers of a plain packet, of which [`headers`] has made sure that it is one.
struct Plain<'a> {
    /// IP and what follows; beyond eight octets that is the transport header of TCP only.
    ip: &'a [u8; HEADERS],
    /// The control information of its tag.
    tag: Option<u16>,
    frame_octets: u32,
}

impl Plain<'_> {
    const fn octet(&self, at: usize) -> u8 {
        self.ip[at]
    }

    const fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.ip[at], self.ip[at + 1]])
    }

    const fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.ip[at], self.ip[at + 1], self.ip[at + 2], self.ip[at + 3]])
    }

    const fn ip_octets(&self) -> u32 {
        self.u16(2) as u32
    }

    const fn protocol(&self) -> u8 {
        self.octet(9)
    }

    const fn is_tcp(&self) -> bool {
        self.protocol() == protocol::TCP
    }

    /// TCP's own.
    const fn header_octets(&self) -> u32 {
        (self.u16(32) >> 12) as u32 * 4
    }

    /// [`DONT_FRAGMENT`], if it is set.
    const fn dont_fragment(&self) -> u16 {
        (self.u16(6) & 0x4000) >> 2
    }

    const fn ethernet_octets(&self) -> u32 {
        if self.tag.is_some() { 18 } else { 14 }
    }

    fn encapsulation(&self) -> Option<Encapsulation> {
        self.tag.map(|tag| if tag & 0x0fff == 0 { Encapsulation::PriorityTag } else { Encapsulation::Vlan })
    }

    fn vlan(&self, rules: &Rules) -> u16 {
        if rules.vlan_in_key { self.tag.unwrap_or(0) & 0x0fff } else { 0 }
    }
}

/// What was found out about a frame by [`update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A plain packet.
    Untagged,
    /// The same behind a tag with a VLAN.
    Tagged,
    /// The same behind a tag without.
    PriorityTagged,
    /// Anything else; what was written means nothing.
    Other,
}

/// Writes into `update` what a plain packet adds to its flow. Nearly every packet comes this way, and goes no other.
///
/// All but [`Update::guess`], which is the flow table's.
#[inline(always)]
pub(super) fn update(frame: &Frame<'_>, rules: &Rules, hasher: &KeyHasher, origin: u16, update: &mut Update) -> Found {
    let Some(head) = frame.bytes.first_chunk::<{ 14 + HEADERS }>() else { return Found::Other };
    // Ethertype IPv4, version 4 and five words of header (RFC 791 §3.1), in one look.
    let begins = u32::from_be_bytes([head[12], head[13], head[14], 0]);
    if begins == 0x0800_4500
        && let Some(ip) = head.last_chunk()
    {
        let plain = Plain { ip, tag: None, frame_octets: frame.wire_len };
        if frame.wire_len != frame.octets() || !is_plain(frame, &plain, rules) {
            return Found::Other;
        }
        write(frame, &plain, 0, hasher, origin, update);
        return Found::Untagged;
    }
    match begins >> 16 {
        0x8100 => update_tagged(frame, rules, hasher, origin, update),
        0x86dd => update_v6(frame, rules, hasher, origin, update),
        _ => Found::Other,
    }
}

/// The same of IPv6 without extension headers (RFC 8200 §3), untagged.
#[inline(never)]
fn update_v6(frame: &Frame<'_>, rules: &Rules, hasher: &KeyHasher, origin: u16, update: &mut Update) -> Found {
    const IP: usize = 40;
    let octets = frame.octets();
    let Some((_, ip)) = frame.bytes.split_first_chunk::<14>() else { return Found::Other };
    let Some((header, transport)) = ip.split_first_chunk::<IP>() else { return Found::Other };
    let payload_octets = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let ip_octets = IP as u32 + payload_octets;
    if header[0] >> 4 != 6 || frame.link != Link::Ethernet || !is_fitting(frame, 14 + ip_octets) {
        return Found::Other;
    }
    *update = Update {
        at: frame.at,
        frame_octets: octets,
        ip_octets,
        ttl: header[7],
        has_numbers: true,
        class_of_service: header[0] << 4 | header[1] >> 4,
        is_simple: true,
        origin,
        ..Update::NONE
    };
    let u16_at = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
    let is_whole = match header[6] {
        protocol::TCP if transport.len() >= 20 => {
            let header_octets = u32::from(transport[12] >> 4) * 4;
            (update.sequence, update.acknowledgement, update.window) = (u32_at(4), u32_at(8), u16_at(14));
            update.flags = u16_at(12) & TCP_FLAGS;
            update.payload_octets = payload_octets.wrapping_sub(header_octets);
            header_octets >= 20 && header_octets <= payload_octets
        }
        protocol::UDP if transport.len() >= 8 => payload_octets >= 8 && !rules.may_be_tunnel(u16_at(2)),
        _ => false,
    };
    if !is_whole {
        return Found::Other;
    }
    let [source, destination] = [8, 24].map(|at| *header[at..].first_chunk::<16>().unwrap_or(&[0; 16]));
    let (source, destination) =
        (Endpoint { address: source, port: u16_at(0) }, Endpoint { address: destination, port: u16_at(2) });
    let (key, way) = FlowKey::between(source, destination, Kind::Ipv6, header[6]);
    (update.way, update.hash) = (way, hasher.hash(&key));
    Found::Untagged
}

/// Whether the frame holds the IP packet, which ends after so many octets, and no PRP trailer behind it.
#[inline(always)]
fn is_fitting(frame: &Frame<'_>, end: u32) -> bool {
    // Where the packet claims more than the frame has, the difference wraps.
    let behind = frame.wire_len.wrapping_sub(end);
    behind < TRAILER_MIN || behind <= frame.wire_len && frame.bytes.last_chunk() != Some(&[0x88, 0xfb])
}

/// The same behind a tag.
#[inline(never)]
fn update_tagged(frame: &Frame<'_>, rules: &Rules, hasher: &KeyHasher, origin: u16, update: &mut Update) -> Found {
    let Some(plain) = headers(frame, rules) else { return Found::Other };
    write(frame, &plain, plain.vlan(rules), hasher, origin, update);
    if plain.encapsulation() == Some(Encapsulation::Vlan) { Found::Tagged } else { Found::PriorityTagged }
}

/// Field by field as it is read, so that little has to be remembered.
#[inline(always)]
fn write(frame: &Frame<'_>, plain: &Plain<'_>, vlan: u16, hasher: &KeyHasher, origin: u16, update: &mut Update) {
    let [.., a, b, c, d, e, f, g, h] = *plain.ip.first_chunk::<20>().unwrap_or(&[0; 20]);
    let ip_octets = plain.ip_octets();
    update.at = frame.at;
    (update.frame_octets, update.ip_octets) = (plain.frame_octets, ip_octets);
    (update.ttl, update.class_of_service, update.origin) = (plain.octet(8), plain.octet(1), origin);
    (update.has_numbers, update.is_simple) = (true, true);
    if plain.is_tcp() {
        (update.sequence, update.acknowledgement, update.window) = (plain.u32(24), plain.u32(28), plain.u16(34));
        update.payload_octets = ip_octets - 20 - plain.header_octets();
        update.flags = plain.dont_fragment() | plain.u16(32) & TCP_FLAGS;
    } else {
        (update.sequence, update.acknowledgement, update.window, update.payload_octets) = (0, 0, 0, 0);
        update.flags = plain.dont_fragment();
    }
    let addresses = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let (key, way) = ShortKey::between(addresses, plain.u32(20), vlan, plain.protocol());
    update.way = way;
    update.hash = hasher.hash_short(key);
}

/// All of a plain packet; none when the frame is anything else.
pub(super) fn packet(frame: &Frame<'_>, rules: &Rules) -> Option<Packet> {
    let plain = headers(frame, rules)?;
    // DNS speaks of its direction.
    if plain.protocol() == protocol::UDP && is_dns(plain.u16(20), plain.u16(22)) {
        return None;
    }
    let ip = plain.ip;
    let (source, destination) = ([ip[12], ip[13], ip[14], ip[15]], [ip[16], ip[17], ip[18], ip[19]]);
    let (key, way) = FlowKey::between_v4(source, plain.u16(20), destination, plain.u16(22), plain.protocol());
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = *frame.bytes.first_chunk()?;
    let mut packet = Packet {
        key: FlowKey { vlan: plain.vlan(rules), ..key },
        way,
        ip_octets: plain.ip_octets(),
        flags: plain.dont_fragment(),
        ttl: plain.octet(8),
        class_of_service: plain.octet(1),
        destination_mac: [d0, d1, d2, d3, d4, d5],
        source_mac: [s0, s1, s2, s3, s4, s5],
        vlan_tags: u8::from(plain.tag.is_some()),
        encapsulations: plain.encapsulation().map_or(Encapsulations::NONE, |kind| Encapsulations::NONE.with(kind)),
        network_at: plain.ethernet_octets() as u16,
        is_cut: frame.bytes.len() < plain.frame_octets as usize,
        ..Packet::blank(frame.at, plain.frame_octets)
    };
    if plain.is_tcp()
        && let Some(tcp) = ip.last_chunk()
    {
        packet.tcp_flags(plain.u16(32));
        packet.tcp_numbers(tcp, plain.ip_octets() - 20 - plain.header_octets());
    }
    Some(packet)
}

/// The headers of a plain packet; none when the frame is anything else.
#[inline]
fn headers<'a>(frame: &Frame<'a>, rules: &Rules) -> Option<Plain<'a>> {
    let (ethernet, behind) = frame.bytes.first_chunk::<{ 14 + HEADERS }>()?.split_first_chunk::<14>()?;
    let (ip, tag) = match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => (behind.first_chunk()?, None),
        [0x81, 0x00] => tagged(frame)?,
        _ => return None,
    };
    let plain = Plain { ip, tag, frame_octets: frame.octets() };
    (plain.octet(0) == 0x45 && is_plain(frame, &plain, rules)).then_some(plain)
}

/// Whether what follows the first octet of the IP header is that of a plain packet, too.
#[inline(always)]
fn is_plain(frame: &Frame<'_>, plain: &Plain<'_>, rules: &Rules) -> bool {
    // Neither MF nor an offset (RFC 791 §3.1).
    if plain.u16(6) & 0x3fff != 0 || frame.link != Link::Ethernet {
        return false;
    }
    let ip_octets = plain.ip_octets();
    if !is_fitting(frame, plain.ethernet_octets() + ip_octets) {
        return false;
    }
    match plain.protocol() {
        protocol::TCP => plain.header_octets() >= 20 && ip_octets >= 20 + plain.header_octets(),
        // Tunnels have more inside.
        protocol::UDP => ip_octets >= 28 && !rules.may_be_tunnel(plain.u16(22)),
        _ => false,
    }
}

/// The same behind a tag.
fn tagged<'a>(frame: &Frame<'a>) -> Option<(&'a [u8; HEADERS], Option<u16>)> {
    let ([a, b, 0x08, 0x00], behind) = frame.bytes.get(14..)?.split_first_chunk::<4>()? else { return None };
    Some((behind.first_chunk()?, Some(u16::from_be_bytes([*a, *b]))))
}

// DF is 0x4000 in the header.
const _: () = assert!(DONT_FRAGMENT == 0x4000 >> 2);
