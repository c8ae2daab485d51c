//! What leads from one level of a frame to the next: MPLS, PPPoE, GRE, ERSPAN, VXLAN, GENEVE and the rest.
//!
//! Layouts are those of the documents named beside each; where a document reserves bits, they are ignored, as it says.

use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::flow::segment;

use super::settings::UdpTunnel;
use super::walk::{Next, Walk};

/// Most labels in an MPLS stack. Real ones have a handful; hostile ones are followed as far as a frame has room for.
const LABELS_MAX: usize = 64;
/// Most extension headers of GTP-U.
const EXTENSIONS_MAX: usize = 8;

impl Walk<'_> {
    /// A label stack (RFC 3032 §2.1), then IP or a pseudowire: nothing says which but the first four bits (RFC 4385 §3), which in a
    /// pseudowire without control word belong to a MAC address. So each reading must make sense.
    pub(super) fn mpls(&mut self) -> Option<Next> {
        for _ in 0..LABELS_MAX {
            let entry = self.need().map(u32::from_be_bytes)?;
            self.take(Encapsulation::Mpls);
            self.at += 4;
            if self.draft.mpls_top_label == 0 {
                self.draft.mpls_top_label = entry >> 8;
            }
            if entry & 0x100 != 0 {
                return self.below_labels();
            }
        }
        self.cut_short()
    }

    fn below_labels(&mut self) -> Option<Next> {
        let Some(first) = self.byte(0) else { return self.cut_short() };
        let (here, behind_word) = (self.ethernet_plausibility(self.at), self.ethernet_plausibility(self.at + 4));
        let control_word = match first >> 4 {
            4 | 6 if self.is_plausible_ip() => return Some(Next::Ip),
            4 | 6 if here < 3 => return self.unknown(),
            0 if behind_word > here || behind_word > 0 && behind_word == here && self.is_control_word() => true,
            _ if here > 0 => false,
            // A control word of all zeros is nothing else (RFC 4448 §4.6), and no MAC address of a kind that exists.
            0 if self.octets() == Some([0; 4]) => true,
            // 1 is an associated channel (RFC 4385 §5), not traffic.
            0 | 1 => return self.unknown(),
            _ => false,
        };
        self.enter_ethernet(Encapsulation::Pseudowire, if control_word { 4 } else { 0 })
    }

    /// Whether the word here may be a control word of an Ethernet pseudowire (RFC 4448 §4.6): no flags, no fragmentation, and a length only
    /// where the whole is shorter than 64 octets.
    fn is_control_word(&self) -> bool {
        let room = self.wire_end.saturating_sub(self.at);
        matches!(self.octets::<2>(), Some([0, length]) if length == 0 || length < 64 && usize::from(length) == room)
    }

    /// Whether an IP header begins here whose lengths agree with the room there is. A mirror may have cut the frame, and a file may have
    /// forgotten its length: then IPv4's checksum says so, and for IPv6 that nothing else is likely.
    fn is_plausible_ip(&self) -> bool {
        let room = self.wire_end.saturating_sub(self.at);
        match self.octets::<6>() {
            Some([first, _, high, low, _, _]) if first >> 4 == 4 => {
                let (header, total) = (usize::from(first & 0xf) * 4, usize::from(u16::from_be_bytes([high, low])));
                header >= 20 && total >= 20 && (total <= room || self.has_ipv4_checksum(header))
            }
            Some([first, _, _, _, high, low]) if first >> 4 == 6 => {
                40 + usize::from(u16::from_be_bytes([high, low])) <= room || self.ethernet_plausibility(self.at) == 0
            }
            _ => false,
        }
    }

    /// Whether the sum over the header here is what RFC 791 §3.1 wants.
    fn has_ipv4_checksum(&self, header_len: usize) -> bool {
        let Some(header) = self.bytes[..self.end].get(self.at..self.at + header_len) else { return false };
        let sum: u32 = header.as_chunks().0.iter().map(|&pair| u32::from(u16::from_be_bytes(pair))).sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    /// PPPoE session stage (RFC 2516 §4): version and type 1, code 0, session, length, PPP.
    pub(super) fn pppoe(&mut self) -> Option<Next> {
        let [version_type, code, a, b, high, low] = self.need()?;
        if version_type != 0x11 || code != 0 {
            return self.cut_short();
        }
        self.take(Encapsulation::Pppoe);
        self.draft.layer2_segment = segment::id(segment::PPPOE, u32::from(u16::from_be_bytes([a, b])));
        self.at += 6;
        self.limit(usize::from(u16::from_be_bytes([high, low])));
        Some(Next::Ppp)
    }

    /// A PPP frame (RFC 1661 §2), with or without address and control field (RFC 1662 §3.1), its protocol in one octet or two.
    pub(super) fn ppp(&mut self) -> Option<Next> {
        if self.octets() == Some([0xff, 0x03]) {
            self.at += 2;
        }
        let Some(first) = self.byte(0) else { return self.cut_short() };
        let (protocol, len) = match first & 1 {
            1 => (u16::from(first), 1),
            _ => (self.octets().map_or(0, u16::from_be_bytes), 2),
        };
        self.at += len;
        match protocol {
            0x0021 | 0x0057 => Some(Next::Ip),
            _ => None, // the link talks about itself
        }
    }

    /// GRE (RFC 2784, RFC 2890) and the mirror formats on it.
    pub(super) fn gre(&mut self) -> Option<Next> {
        const CHECKSUM: u16 = 0x8000;
        const ROUTING: u16 = 0x4000;
        const KEY: u16 = 0x2000;
        const SEQUENCE: u16 = 0x1000;
        let [a, b, c, d] = self.need()?;
        let (flags, protocol) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match flags & 7 {
            0 if flags & ROUTING == 0 => {}
            1 if protocol == 0x880b => return self.pptp(flags),
            _ => return self.unknown(),
        }
        self.at += 4 + if flags & CHECKSUM != 0 { 4 } else { 0 };
        let mut key = None;
        if flags & KEY != 0 {
            key = self.octets().map(u32::from_be_bytes);
            self.at += 4;
        }
        let mut sequence = None;
        if flags & SEQUENCE != 0 {
            sequence = self.octets().map(u32::from_be_bytes);
            self.at += 4;
        }
        if self.at > self.end {
            return self.cut_short();
        }
        match (protocol, sequence) {
            // draft-foschiano-erspan: type I has no header of its own, and no sequence number; type II shares its protocol number.
            (0x88be, None) => self.enter_ethernet(Encapsulation::Erspan1, 0),
            (0x88be | 0x22eb, _) => self.erspan(sequence),
            _ => {
                // RFC 7637 §3.2: NVGRE has a key and neither checksum nor sequence.
                let is_nvgre = protocol == 0x6558 && flags & (CHECKSUM | KEY | SEQUENCE) == KEY;
                self.take(if is_nvgre { Encapsulation::Nvgre } else { Encapsulation::Gre });
                if let Some(key) = key {
                    self.draft.layer2_segment =
                        if is_nvgre { segment::id(segment::NVGRE, key >> 8) } else { segment::id(segment::GRE_KEY, key) };
                }
                Some(Next::Type(protocol))
            }
        }
    }

    /// GRE version 1 (RFC 2637 §4.1): payload length and call id instead of a key, then sequence and acknowledgement.
    fn pptp(&mut self, flags: u16) -> Option<Next> {
        let (has_sequence, has_acknowledgement) = (flags & 0x1000 != 0, flags & 0x0080 != 0);
        self.take(Encapsulation::Pptp);
        self.skip(8 + 4 * usize::from(has_sequence) + 4 * usize::from(has_acknowledgement))?;
        Some(Next::Ppp)
    }

    /// ERSPAN types II and III (draft-foschiano-erspan §4.2, §4.3), told apart by the version.
    fn erspan(&mut self, sequence: Option<u32>) -> Option<Next> {
        let [a, b, c, d, ..] = self.need::<8>()?;
        let session = u16::from_be_bytes([c, d]) & 0x03ff;
        let (kind, len) = match a >> 4 {
            1 => (Encapsulation::Erspan2, 8),
            2 => {
                let [.., high, low] = self.need::<12>()?;
                let word = u16::from_be_bytes([high, low]);
                let len = if word & 1 != 0 { 20 } else { 12 };
                // Frame type: Ethernet, or IP without a MAC header; anything else must not be taken for either.
                match word >> 10 & 0x1f {
                    0 => {}
                    2 if self.at + len <= self.end => {
                        self.said_by_erspan([a, b], session, sequence);
                        self.take(Encapsulation::Erspan3);
                        self.at += len;
                        return Some(Next::Ip);
                    }
                    _ => return self.unknown(),
                }
                (Encapsulation::Erspan3, len)
            }
            _ => return self.unknown(),
        };
        self.said_by_erspan([a, b], session, sequence);
        self.enter_ethernet(kind, len)
    }

    fn said_by_erspan(&mut self, version_and_vlan: [u8; 2], session: u16, sequence: Option<u32>) {
        self.draft.erspan_session = session;
        self.draft.erspan_vlan = u16::from_be_bytes(version_and_vlan) & 0x0fff;
        self.draft.erspan_sequence = sequence;
    }

    /// What stands behind the UDP header.
    pub(super) fn udp_tunnel(&mut self, tunnel: UdpTunnel) -> Option<Next> {
        match tunnel {
            UdpTunnel::Vxlan => self.vxlan(),
            UdpTunnel::VxlanGpe => self.vxlan_gpe(),
            UdpTunnel::Geneve => self.geneve(),
            UdpTunnel::GtpU => self.gtp_u(),
            UdpTunnel::Teredo => self.teredo(),
            UdpTunnel::Mpls => {
                self.take(Encapsulation::MplsInUdp);
                Some(Next::Mpls)
            }
        }
    }

    /// VXLAN (RFC 7348 §5): only the I flag counts; group policy and others set bits that the RFC reserves.
    fn vxlan(&mut self) -> Option<Next> {
        let [flags, _, _, _, a, b, c, _] = self.need()?;
        if flags & 0x08 == 0 {
            return self.unknown();
        }
        self.draft.layer2_segment = segment::id(segment::VXLAN, u32::from_be_bytes([0, a, b, c]));
        self.enter_ethernet(Encapsulation::Vxlan, 8)
    }

    /// VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe §3.1): says what is inside, where the P flag is set.
    fn vxlan_gpe(&mut self) -> Option<Next> {
        let [flags, _, _, protocol, a, b, c, _] = self.need()?;
        if flags & 0x08 == 0 {
            return self.unknown();
        }
        self.draft.layer2_segment = segment::id(segment::VXLAN_GPE, u32::from_be_bytes([0, a, b, c]));
        self.take(Encapsulation::VxlanGpe);
        self.at += 8;
        self.named(if flags & 0x04 != 0 { protocol } else { 3 })
    }

    /// The next protocol of VXLAN-GPE and of NSH (RFC 8300 §2.2), which number them alike.
    fn named(&mut self, protocol: u8) -> Option<Next> {
        match protocol {
            1 | 2 => Some(Next::Ip),
            3 => Some(Next::Ethernet),
            4 => Some(Next::Type(0x894f)),
            5 => Some(Next::Mpls),
            _ => self.unknown(),
        }
    }

    /// GENEVE (RFC 8926 §3.4): options, then whatever the protocol type names.
    fn geneve(&mut self) -> Option<Next> {
        let [version_len, _, high, low, a, b, c, _] = self.need()?;
        if version_len >> 6 != 0 {
            return self.unknown();
        }
        self.draft.layer2_segment = segment::id(segment::GENEVE, u32::from_be_bytes([0, a, b, c]));
        self.take(Encapsulation::Geneve);
        self.skip(8 + 4 * usize::from(version_len & 0x3f))?;
        Some(Next::Type(u16::from_be_bytes([high, low])))
    }

    /// GTP-U version 1 (3GPP TS 29.281 §5.1): a G-PDU, with its extension headers.
    fn gtp_u(&mut self) -> Option<Next> {
        let [flags, kind, _, _, teid @ ..] = self.need::<8>()?;
        if flags >> 4 != 3 {
            return self.unknown();
        }
        if kind != 255 {
            return None; // the path talks about itself
        }
        self.draft.layer2_segment = segment::id(segment::GTP_U, u32::from_be_bytes(teid));
        self.take(Encapsulation::GtpU);
        self.at += 8;
        if flags & 7 != 0 {
            let mut extension = self.byte(3).filter(|_| flags & 4 != 0);
            self.at += 4;
            for _ in 0..EXTENSIONS_MAX {
                let Some(1..) = extension else { break };
                // Length in words, content, and the next one's kind in the last octet.
                let Some(words @ 1..) = self.byte(0) else { return self.cut_short() };
                let len = 4 * usize::from(words);
                extension = self.byte(len - 1);
                self.at += len;
            }
        }
        if self.at > self.end { self.cut_short() } else { Some(Next::Ip) }
    }

    /// Teredo (RFC 4380 §5.1.1): authentication and origin indication may stand before the IPv6 packet.
    fn teredo(&mut self) -> Option<Next> {
        if let Some([0, 1, id_len, authentication_len]) = self.octets() {
            self.at += 4 + usize::from(id_len) + usize::from(authentication_len) + 9;
        }
        if self.octets() == Some([0, 0]) {
            self.at += 8;
        }
        match self.byte(0).map(|first| first >> 4) {
            Some(6) if self.is_plausible_ip() => {
                self.take(Encapsulation::Teredo);
                Some(Next::Ip)
            }
            _ => self.unknown(),
        }
    }

    /// Provider backbone bridging (IEEE 802.1Q clause 9.7): I-TAG with the service, the customer's MAC addresses, and what he sends. Only
    /// IP is followed; the rest stays a conversation of the backbone.
    pub(super) fn pbb(&mut self) -> Option<Next> {
        let [_, a, b, c] = self.need()?;
        self.take(Encapsulation::Pbb);
        self.draft.layer2_segment = segment::id(segment::PBB, u32::from_be_bytes([0, a, b, c]));
        self.at += 4 + 12;
        let named = self.need().map(u16::from_be_bytes)?;
        self.at += 2;
        matches!(named, 0x0800 | 0x86dd | 0x8100 | 0x88a8).then_some(Next::Type(named))
    }

    /// Network service header (RFC 8300 §2.2): length in words in the last six bits of the first two octets.
    pub(super) fn nsh(&mut self) -> Option<Next> {
        let [first, second, _, protocol] = self.need()?;
        let words = usize::from(u16::from_be_bytes([first, second]) & 0x3f);
        if first >> 6 != 0 || words < 2 {
            return self.cut_short();
        }
        self.take(Encapsulation::Nsh);
        self.skip(4 * words)?;
        self.named(protocol)
    }
}
