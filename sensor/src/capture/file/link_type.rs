//! Link types of capture files: which of them are read, and what the others are called. The numbers are those of the tcpdump group's
//! registry (draft-ietf-opsawg-pcaplinktype).

use std::fmt;

use crate::capture::Link;

/// What frames of this link type begin with.
pub(super) const fn link(link_type: u16) -> Link {
    match link_type {
        1 => Link::Ethernet,
        0 | 108 => Link::Null,
        // 12 and 14 are what BSD systems call 101.
        12 | 14 | 101 | 228 | 229 => Link::Raw,
        113 => Link::Sll,
        276 => Link::Sll2,
        _ => Link::Unread,
    }
}

/// Its name, for people.
const fn name(link_type: u16) -> &'static str {
    match link_type {
        3 => "AX.25",
        6 => "IEEE 802.5 token ring",
        7 => "ARCNET",
        8 => "SLIP",
        9 => "PPP",
        10 => "FDDI",
        50 => "PPP in HDLC framing",
        51 => "PPPoE",
        104 => "Cisco HDLC",
        105 => "IEEE 802.11",
        107 => "Frame Relay",
        117 => "OpenBSD pflog",
        119 => "IEEE 802.11 after a Prism header",
        122 => "IP over Fibre Channel",
        127 => "IEEE 802.11 after a radiotap header",
        129 => "ARCNET of Linux",
        147..=162 => "private use",
        163 => "IEEE 802.11 after an AVS header",
        165 => "BACnet MS/TP",
        166 => "PPP of Linux pppd",
        187 => "Bluetooth HCI",
        189 => "USB of Linux",
        192 => "per-packet information (PPI)",
        195 | 230 | 215 => "IEEE 802.15.4",
        197 => "Endace ERF",
        201 => "Bluetooth HCI with direction",
        204 => "PPP with direction",
        220 => "USB of Linux, memory-mapped",
        226 => "Solaris IPNET",
        227 => "SocketCAN",
        239 => "Linux netfilter log",
        249 => "USBPcap",
        253 => "Linux netlink",
        258 => "macOS PKTAP",
        272 => "nRF Sniffer",
        283 => "IEEE 802.15.4 with TAP header",
        _ => "no name known",
    }
}

/// Link types told apart; packets of any beyond them are counted together.
const TOLD_APART_MAX: usize = 8;

/// How many packets of which link types were not read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    by_type: Vec<(u16, u64)>,
    others: u64,
}

impl Unread {
    /// Counts one packet.
    pub(super) fn count(&mut self, link_type: u16) {
        match self.by_type.iter().position(|(known, _)| *known == link_type) {
            Some(place) => self.by_type[place].1 += 1,
            None if self.by_type.len() < TOLD_APART_MAX => self.by_type.push((link_type, 1)),
            None => self.others += 1,
        }
    }

    /// Whether every packet was of a link type that is read.
    pub(super) const fn is_empty(&self) -> bool {
        self.by_type.is_empty()
    }
}

impl fmt::Display for Unread {
    /// `12 packets of link type 105 (IEEE 802.11), 1 of link type 9 (PPP)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (link_type, packets)) in self.by_type.iter().enumerate() {
            let unit = match (n, packets) {
                (0, 1) => " packet",
                (0, _) => " packets",
                _ => "",
            };
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{packets}{unit} of link type {link_type} ({})", name(*link_type))?;
        }
        if self.others > 0 { write!(f, ", {} of others", self.others) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_link_types_than_are_told_apart_are_counted_together() {
        let mut unread = Unread::default();
        assert!(unread.is_empty());
        for link_type in [105, 105, 9, 1_000, 1_001, 1_002, 1_003, 1_004, 1_005, 1_006, 1_007] {
            unread.count(link_type);
        }
        let text = unread.to_string();
        assert!(text.starts_with("2 packets of link type 105 (IEEE 802.11), 1 of link type 9 (PPP), 1 of link type 1000"), "{text}");
        assert!(text.ends_with("1 of link type 1005 (no name known), 2 of others"), "{text}");
    }
}
