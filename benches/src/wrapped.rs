//! What may be around a frame; the frame inside is a TCP packet of 60 octets.

use crate::frames::SHORTEST;

/// What is around. Layouts as in `sensor/src/decode/tests/wrapped.rs`, which proves them.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names of protocols")]
pub enum Wrapping {
    Vlan,
    Mpls,
    Pppoe,
    Gretap,
    Erspan2,
    Erspan3,
    Vxlan,
    Geneve,
    IpInIp,
    Hsr,
    Prp,
    /// No IP inside: a frame of IEC 61850 with the same addresses.
    Goose,
}

/// Most octets that a wrapped frame has.
pub const LONGEST: usize = 192;

impl Wrapping {
    /// The frame with this around it.
    pub fn around(self, frame: &[u8; SHORTEST]) -> Vec<u8> {
        let outer = |ethertype: u16, body: Vec<u8>| [&frame[..12], &ethertype.to_be_bytes(), &body].concat();
        let ip = |protocol: u8, body: &[u8]| {
            let total = (20 + body.len() as u16).to_be_bytes();
            let mut header =
                vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2];
            header.extend_from_slice(body);
            outer(0x0800, header)
        };
        let udp = |port: u16, body: &[u8]| {
            let ports = [50_000_u16.to_be_bytes(), port.to_be_bytes(), (8 + body.len() as u16).to_be_bytes(), [0; 2]];
            ip(17, &[&ports.concat(), body].concat())
        };
        let words =
            |words: &[u32], body: &[u8]| [words.iter().flat_map(|word| word.to_be_bytes()).collect(), body.to_vec()].concat();
        let tagged = |tag: &[u8]| [&frame[..12], tag, &frame[12..]].concat();
        match self {
            Self::Vlan => tagged(&[0x81, 0, 0, 120]),
            Self::Mpls => outer(0x8847, words(&[1000 << 12 | 0x13f], &frame[14..])),
            Self::Pppoe => outer(0x8864, words(&[0x1100_1234, 48 << 16 | 0x0021], &frame[14..])),
            Self::Gretap => ip(47, &words(&[0x0000_6558], frame)),
            Self::Erspan2 => ip(47, &words(&[0x1000_88be, 9, 0x1064_1820, 0x12], frame)),
            Self::Erspan3 => ip(47, &words(&[0x1000_22eb, 9, 0x2064_0021, 0x1234_5678, 0x8000], frame)),
            Self::Vxlan => udp(4789, &words(&[0x0800_0000, 7777 << 8], frame)),
            Self::Geneve => udp(6081, &words(&[0x0200_6558, 99 << 8, 0x0108_0101, 5], frame)),
            Self::IpInIp => ip(4, &frame[14..]),
            Self::Hsr => tagged(&[0x89, 0x2f, 0, 52, 0, 7]),
            Self::Prp => [&frame[..], &[0, 7, 0xa0, 52, 0x88, 0xfb]].concat(),
            Self::Goose => {
                [&[1, 0x0c, 0xcd, 1, 0, 1], &frame[6..12], &[0x88, 0xb8, 0, 3, 0, 140, 0, 0, 0, 0], &[0x61; 132]].concat()
            }
        }
    }
}
