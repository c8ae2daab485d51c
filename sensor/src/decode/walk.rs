//! The long way: header by header, from the outside in, to the innermost conversation that makes sense.
//!
//! A walk stands on a *level*: an Ethernet header, or an IP header. Tags (VLAN, HSR, …) belong to their Ethernet header. What leads from
//! one level to the next (MPLS, GRE, VXLAN, …) is pending until the next level proves good; if it does not, the packet stays what
//! the level says that was reached, and [`Packet::odd`] says why the walk ended there. Nothing recurses; every step reads at
//! least one header, and there are at most [`STEPS_MAX`] of them.

use etherparse::{Ethernet2HeaderSlice, SingleVlanHeaderSlice};
use spanwatch_common::encapsulation::{Encapsulation, Encapsulations};
use spanwatch_common::flow::protocol;
use spanwatch_common::layer2::ethertype;
use spanwatch_common::net::Address;

use super::settings::{Rules, UdpTunnel};
use super::{Around, Oddity, Packet, Redundancy, Undecodable, ip, layer2};
use crate::capture::{Frame, Link};

/// Most headers that are followed. Suricata stops at 16 as well; real nesting ends at 9 (VLAN, IP, UDP, VXLAN, Ethernet, VLAN, IP, GRE, IP).
const STEPS_MAX: usize = 24;

/// What stands where the walk stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// A MAC header.
    Ethernet,
    /// What this ethertype names.
    Type(u16),
    /// An IP header of either version.
    Ip,
    Mpls,
    Gre,
    Ppp,
    /// What stands behind the UDP header of a tunnel.
    Udp(UdpTunnel),
}

/// What is understood so far.
#[derive(Clone, Copy, Debug)]
enum Level {
    /// Not even a link.
    Nothing,
    /// A MAC header with its tags.
    Ethernet { ethernet_type: u16, body_at: usize },
    /// An IP header.
    Ip,
}

/// VLAN identifiers, the first two of all.
#[derive(Clone, Copy, Debug, Default)]
struct Vlans {
    ids: [u16; 2],
    count: u8,
}

/// A walk through one frame.
pub(super) struct Walk<'a> {
    pub(super) bytes: &'a [u8],
    /// Where the walk stands.
    pub(super) at: usize,
    /// Where what it walks through ends: as far as it was captured, and on the wire. Trailers of outer levels are behind both.
    pub(super) end: usize,
    pub(super) wire_end: usize,
    /// The innermost MAC header: where it begins, and where its frame ends on the wire.
    ethernet: (usize, usize),
    level: Level,
    packet: Packet,
    /// What was taken off, but proves good only with the next level; and what was said by it.
    pending: Encapsulations,
    pub(super) draft: Around,
    vlans: Vlans,
    /// The same as of the level that was reached.
    around: Around,
    vlans_reached: Vlans,
    stopped: Oddity,
    is_sliced: bool,
    /// The level of a tunnel whose packet is a first fragment: what the packet is if the inside cannot be read.
    outer_fragment: Option<(Packet, Around, Vlans)>,
}

/// Reads a frame of any link.
///
/// # Errors
/// Why there is nothing to meter.
#[inline(never)]
pub(super) fn read(frame: &Frame<'_>, rules: &Rules, around: &mut Around) -> Result<Packet, Undecodable> {
    let mut walk = Walk {
        bytes: frame.bytes,
        at: 0,
        end: frame.bytes.len(),
        wire_end: (frame.octets() as usize).max(frame.bytes.len()),
        ethernet: (0, 0),
        level: Level::Nothing,
        packet: Packet::blank(frame.at, frame.octets()),
        pending: Encapsulations::NONE,
        draft: Around::default(),
        vlans: Vlans::default(),
        around: Around::default(),
        vlans_reached: Vlans::default(),
        stopped: Oddity::None,
        is_sliced: frame.bytes.len() < frame.octets() as usize,
        outer_fragment: None,
    };
    let mut next = Some(walk.link(frame.link)?);
    for _ in 0..STEPS_MAX {
        let Some(here) = next else { break };
        next = walk.step(here, rules);
    }
    if next.is_some() {
        walk.stopped = Oddity::TooDeep;
    }
    walk.finish(rules, around)
}

impl Walk<'_> {
    /// The first header.
    fn link(&mut self, link: Link) -> Result<Next, Undecodable> {
        let bytes = self.bytes;
        match link {
            Link::Ethernet if bytes.len() < 14 => Err(Undecodable::Runt),
            Link::Ethernet => Ok(Next::Ethernet),
            Link::Raw => Ok(Next::Ip),
            Link::Null => {
                let family = bytes.first_chunk().ok_or(Undecodable::Runt)?;
                self.at = 4;
                // AF_INET, and AF_INET6 as NetBSD, FreeBSD, macOS and Linux have it; in the byte order of whoever captured.
                let is_ip = |family: u32| matches!(family, 2 | 10 | 24 | 28 | 30);
                let known = is_ip(u32::from_le_bytes(*family)) || is_ip(u32::from_be_bytes(*family));
                if known { Ok(Next::Ip) } else { Err(Undecodable::NotIp) }
            }
            Link::Sll => self.cooked(16, 5, 14),
            Link::Sll2 => self.cooked(20, 11, 0),
            Link::Unread => Err(Undecodable::LinkType),
        }
    }

    /// A Linux cooked header of `len` octets (LINKTYPE_LINUX_SLL, LINKTYPE_LINUX_SLL2): the sender's address follows its own length.
    fn cooked(&mut self, len: usize, address_len_at: usize, type_at: usize) -> Result<Next, Undecodable> {
        let header = self.bytes.get(..len).ok_or(Undecodable::Runt)?;
        if header[address_len_at] == 6 {
            self.packet.source_mac = header[address_len_at + 1..].first_chunk().copied().unwrap_or_default();
        }
        let ethernet_type = u16::from_be_bytes([header[type_at], header[type_at + 1]]);
        self.at = len;
        // As if a MAC header ended here.
        self.ethernet = (len - 14, self.wire_end);
        self.level = Level::Ethernet { ethernet_type, body_at: len };
        self.packet.network_at = len as u16;
        Ok(Next::Type(ethernet_type))
    }

    /// Reads one header (or a few that belong together); None where the walk ends.
    fn step(&mut self, here: Next, rules: &Rules) -> Option<Next> {
        match here {
            Next::Ethernet => self.ethernet(),
            Next::Type(ethernet_type) => self.ethernet_type(ethernet_type),
            Next::Ip => self.ip(rules),
            Next::Mpls => self.mpls(),
            Next::Gre => self.gre(),
            Next::Ppp => self.ppp(),
            Next::Udp(tunnel) => self.udp_tunnel(tunnel),
        }
    }

    fn ethernet(&mut self) -> Option<Next> {
        let Ok(header) = Ethernet2HeaderSlice::from_slice(&self.bytes[self.at..self.end]) else { return self.cut_short() };
        let (source_mac, destination_mac) = (header.source(), header.destination());
        let ethernet_type = header.ether_type().0;
        self.ethernet = (self.at, self.wire_end);
        self.at += 14;
        self.vlans = Vlans::default();
        self.reach();
        (self.packet.source_mac, self.packet.destination_mac) = (source_mac, destination_mac);
        self.packet.reset_network(self.at, Oddity::None);
        self.level = Level::Ethernet { ethernet_type, body_at: self.at };
        Some(Next::Type(ethernet_type))
    }

    fn ethernet_type(&mut self, ethernet_type: u16) -> Option<Next> {
        match ethernet_type {
            ethertype::IPV4 | ethertype::IPV6 => Some(Next::Ip),
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => self.vlan(ethernet_type),
            0x8847 | 0x8848 => Some(Next::Mpls),
            0x8864 => self.pppoe(),
            0x8926 => self.tag(Encapsulation::VnTag, 4),
            0x893f => self.tag(Encapsulation::ETag, 6),
            0xf1c1 => self.tag(Encapsulation::RTag, 4),
            0x8909 => {
                // Version, length of the options in words, options.
                let words = self.byte(1).map_or(0, usize::from);
                self.tag(Encapsulation::CiscoMetaData, 2 + 4 * words)
            }
            0x892f => {
                if let Some([path, _, a, b]) = self.octets() {
                    self.draft.redundancy = Some(Redundancy { sequence: u16::from_be_bytes([a, b]), path: path >> 4 });
                }
                self.tag(Encapsulation::Hsr, 4)
            }
            0x8903 => self.enter_ethernet(Encapsulation::FabricPath, 2),
            0x22f3 => {
                // RFC 6325 §3.2: five bits of options, in words, lie across the first two octets.
                let [high, low] = self.need()?;
                let words = usize::from((u16::from_be_bytes([high, low]) >> 6) & 0x1f);
                self.enter_ethernet(Encapsulation::Trill, 6 + 4 * words)
            }
            0x88e7 => self.pbb(),
            0x894f => self.nsh(),
            0x6558 if self.is_inside_ip() => Some(Next::Ethernet),
            0x880b if self.is_inside_ip() => Some(Next::Ppp),
            _ if ethernet_type < layer2::ETHERTYPE_MIN => self.length(),
            _ if self.is_inside_ip() || !self.pending.is_empty() => self.unknown(),
            _ => None,
        }
    }

    /// An 802.3 frame: LLC, and SNAP around IP (RFC 1042; 802.1H has an OUI of its own).
    fn length(&mut self) -> Option<Next> {
        let body = &self.bytes[self.at..self.end];
        let (oui, ethernet_type) = layer2::snap(body)?;
        if !matches!(oui, [0, 0, 0] | [0, 0, 0xf8]) || !matches!(ethernet_type, ethertype::IPV4 | ethertype::IPV6) {
            return None;
        }
        self.at += 8;
        self.take(Encapsulation::Snap);
        Some(Next::Ip)
    }

    fn vlan(&mut self, tpid: u16) -> Option<Next> {
        let Ok(tag) = SingleVlanHeaderSlice::from_slice(&self.bytes[self.at..self.end]) else { return self.cut_short() };
        let (id, ethernet_type) = (tag.vlan_identifier().value(), tag.ether_type().0);
        if let Some(slot) = self.vlans.ids.get_mut(usize::from(self.vlans.count)) {
            *slot = id;
        }
        self.vlans.count = self.vlans.count.saturating_add(1);
        let kind = match (tpid, id) {
            (0x8100, 0) => Encapsulation::PriorityTag,
            (0x8100, _) => Encapsulation::Vlan,
            _ => Encapsulation::ServiceVlan,
        };
        self.at += 4; // as long as the tag that was just read
        self.tagged(kind, ethernet_type)
    }

    /// A tag of `len` octets, then the ethertype of what follows.
    fn tag(&mut self, kind: Encapsulation, len: usize) -> Option<Next> {
        let Some(&[high, low]) = self.bytes[..self.end].get(self.at + len..).and_then(|rest| rest.first_chunk()) else {
            return self.cut_short();
        };
        self.at += len + 2;
        self.tagged(kind, u16::from_be_bytes([high, low]))
    }

    /// A tag was read: the conversation is what it names.
    fn tagged(&mut self, kind: Encapsulation, named: u16) -> Option<Next> {
        let at = self.at;
        let is_pending = !self.pending.is_empty();
        self.take(kind);
        if let Level::Ethernet { ethernet_type, body_at } = &mut self.level
            && !is_pending
        {
            (*ethernet_type, *body_at) = (named, at);
            self.packet.network_at = at as u16;
            self.reach();
        }
        Some(Next::Type(named))
    }

    fn ip(&mut self, rules: &Rules) -> Option<Next> {
        let read = ip::read(self.bytes, self.at, self.end, self.wire_end, &mut self.packet);
        let Some((payload, ends)) = read else {
            let is_own = matches!(self.level, Level::Ethernet { .. }) && self.pending.is_empty();
            self.stopped = if is_own { Oddity::BadIpHeader } else { Oddity::BadEncapsulation };
            return None;
        };
        self.reach();
        self.level = Level::Ip;
        ip::transport(self.bytes, payload, &ends, &mut self.packet);
        // An IP header may promise more than what is around it has room for: that much was never sent.
        let ip_end = self.at + self.packet.ip_octets as usize;
        let missing = ip_end.saturating_sub(self.wire_end.max(self.end));
        self.packet.payload_octets = self.packet.payload_octets.saturating_sub(missing as u32);
        self.wire_end = ip_end;
        (self.at, self.end) = (payload.at, payload.end);
        if self.packet.fragment.is_some_and(|fragment| !fragment.first) {
            return None; // the middle of something
        }
        let fragmented = self.packet.fragment.map(|_| (self.packet, self.around, self.vlans_reached));
        let next = self.inside_ip(payload.protocol, rules)?;
        if self.outer_fragment.is_none() {
            self.outer_fragment = fragmented;
        }
        if !self.draft.tunnel[0].is_some() {
            self.draft.tunnel = [Address::from_v6(ends.source), Address::from_v6(ends.destination)];
        }
        Some(next)
    }

    /// What an IP packet carries, if it is a tunnel.
    fn inside_ip(&mut self, protocol: u8, rules: &Rules) -> Option<Next> {
        match protocol {
            4 | 41 => {
                self.take(Encapsulation::IpInIp);
                Some(Next::Ip)
            }
            47 => Some(Next::Gre),
            137 => Some(Next::Mpls), // RFC 4023 §3
            protocol::UDP => {
                let [_, _, high, low] = self.octets()?;
                let tunnel = rules.tunnel(u16::from_be_bytes([high, low]))?;
                self.skip(8)?;
                Some(Next::Udp(tunnel))
            }
            _ => None,
        }
    }

    /// Whether the level that was reached is an IP header, whose tunnel the walk is in.
    fn is_inside_ip(&self) -> bool {
        matches!(self.level, Level::Ip)
    }

    /// Notes something that was taken off on the way to the next level.
    pub(super) fn take(&mut self, kind: Encapsulation) {
        self.pending = self.pending.with(kind);
    }

    /// A level proved good, and with it everything that led to it.
    fn reach(&mut self) {
        self.packet.encapsulations.0 |= self.pending.0;
        self.pending = Encapsulations::NONE;
        self.around = self.draft;
        self.vlans_reached = self.vlans;
    }

    /// A whole Ethernet frame begins `skipped` octets further on.
    pub(super) fn enter_ethernet(&mut self, kind: Encapsulation, skipped: usize) -> Option<Next> {
        self.take(kind);
        self.skip(skipped)?;
        Some(Next::Ethernet)
    }

    /// What is ahead ends after `octets`, as a header has just said.
    pub(super) fn limit(&mut self, octets: usize) {
        self.wire_end = self.wire_end.min(self.at + octets);
        self.end = self.end.min(self.wire_end).max(self.at);
    }

    /// The octet `offset` further on, if it was captured.
    pub(super) fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes[..self.end].get(self.at + offset).copied()
    }

    /// The octets here, if they were captured.
    pub(super) fn octets<const N: usize>(&self) -> Option<[u8; N]> {
        self.bytes[..self.end].get(self.at..)?.first_chunk().copied()
    }

    /// The octets here; where they were not captured, the walk ends.
    pub(super) fn need<const N: usize>(&mut self) -> Option<[u8; N]> {
        let octets = self.octets();
        if octets.is_none() {
            self.cut_short();
        }
        octets
    }

    /// Goes on behind `octets` octets; where they were not captured, the walk ends.
    pub(super) fn skip(&mut self, octets: usize) -> Option<()> {
        self.at += octets;
        if self.at > self.end {
            self.cut_short();
            return None;
        }
        Some(())
    }

    /// A header is not all there, or contradicts itself: the level that was reached stands.
    pub(super) fn cut_short(&mut self) -> Option<Next> {
        self.stopped = Oddity::BadEncapsulation;
        None
    }

    /// A tunnel around something unknown: the level that was reached stands.
    pub(super) fn unknown(&mut self) -> Option<Next> {
        self.stopped = Oddity::UnknownEncapsulation;
        None
    }

    fn finish(&mut self, rules: &Rules, around: &mut Around) -> Result<Packet, Undecodable> {
        let is_cut = matches!(self.stopped, Oddity::BadEncapsulation | Oddity::BadIpHeader)
            || match self.level {
                Level::Ip => self.packet.odd == Oddity::BadTransportHeader,
                Level::Ethernet { body_at, .. } => self.end < body_at + layer2::BODY_READ,
                Level::Nothing => false,
            };
        if is_cut && let Some((mut outer, around, vlans)) = self.outer_fragment {
            if let Some(fragment) = &mut outer.fragment {
                fragment.hides_tunnel = true;
            }
            (self.packet, self.around, self.vlans_reached) = (outer, around, vlans);
            (self.level, self.stopped) = (Level::Ip, Oddity::None);
        }
        match self.level {
            Level::Nothing => return Err(Undecodable::NotIp),
            Level::Ethernet { ethernet_type, body_at } => {
                let body = self.bytes.get(body_at..self.ethernet.1.max(body_at).min(self.bytes.len()));
                layer2::complete(&mut self.packet, ethernet_type, body.unwrap_or_default());
            }
            Level::Ip => {}
        }
        if self.stopped != Oddity::None {
            self.packet.odd = self.stopped;
        }
        self.packet.is_cut = self.is_sliced || self.outer_fragment.is_some();
        self.redundancy_trailer();
        self.packet.vlan_tags = self.vlans_reached.count;
        if rules.vlan_in_key {
            (self.packet.key.vlan, self.packet.key.customer_vlan) = (self.vlans_reached.ids[0], self.vlans_reached.ids[1]);
        }
        if !self.packet.encapsulations.is_empty() {
            *around = self.around;
        }
        Ok(self.packet)
    }

    /// PRP's redundancy control trailer: sequence, LAN and size, 0x88fb (IEC 62439-3 clause 4.2.7). The size counts what follows the MAC
    /// addresses and tags, and the trailer itself, so that a payload hardly ever looks like one.
    /// It ends the innermost frame, or the outermost, which carries a tunnel over both networks.
    fn redundancy_trailer(&mut self) {
        let outermost = (0, self.packet.frame_octets as usize);
        for (begin, end) in [self.ethernet, outermost] {
            let body = self.bytes.get(begin + 14..end).unwrap_or_default();
            let Some([a, b, lan, size, 0x88, 0xfb]) = body.last_chunk().copied() else { continue };
            let size = usize::from(u16::from_be_bytes([lan & 0x0f, size]));
            let tags = usize::from(self.vlans_reached.count) * 4;
            if matches!(lan >> 4, 0xa | 0xb) && (size == body.len() || size + tags == body.len()) {
                self.packet.encapsulations = self.packet.encapsulations.with(Encapsulation::Prp);
                self.around.redundancy = Some(Redundancy { sequence: u16::from_be_bytes([a, b]), path: lan >> 4 });
                return;
            }
        }
    }

    /// How much speaks for an Ethernet header at `at`: 3 when it names a protocol that is known, 2 when it has the length of what follows,
    /// 1 when that may be padded, 0 when it makes no sense.
    pub(super) fn ethernet_plausibility(&self, at: usize) -> u8 {
        let Some(header) = self.bytes[..self.end].get(at..).and_then(|rest| rest.first_chunk::<14>()) else { return 0 };
        let room = self.wire_end.saturating_sub(at + 14);
        let named = match u16::from_be_bytes([header[12], header[13]]) {
            0x0800 | 0x0806 | 0x86dd | 0x8100 | 0x88a8 | 0x9100 | 0x8035 | 0x9000 | 0x22f0 => 3,
            0x8847..=0x8848 | 0x8863..=0x8864 | 0x8808..=0x8809 | 0x8892 | 0x88a4 | 0x88ab | 0x88b8..=0x88ba => 3,
            0x22f3 | 0x8903 | 0x8909 | 0x8926 | 0x893f | 0x894f | 0x88a7 | 0xd28b | 0xf1c1 => 3,
            0x88cc | 0x88cd | 0x88e1 | 0x88e3 | 0x88e5 | 0x88e7 | 0x88f7 | 0x88fb | 0x888e | 0x8902 | 0x892f => 3,
            length if length < layer2::ETHERTYPE_MIN => match usize::from(length) {
                length if length == room => 2,
                length if length < room && room <= 46 => 1,
                _ => 0,
            },
            _ => 0,
        };
        // Groups send nothing, unless somebody made it all up.
        if header[6] & 1 != 0 { named.min(1) } else { named }
    }
}
