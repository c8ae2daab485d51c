//! Puts the packets of a tunnel together where the mirror's path has too small an MTU for them (1500 octets mirrored, 50 more around them).
//!
//! Most such packets need none of this: the first fragment has the inner headers, and these know all lengths. Only where the first one is
//! too short is it kept until the others have come. Nothing waits meanwhile: each part is metered at once as a packet of the tunnel, save the
//! one that completes the whole, in whose place the inner packet is metered. A fixed number of buffers of bounded size; parts
//! that overlap end the attempt (RFC 5722 has receivers do so), since one of them lies.

use std::time::Duration;

use spanwatch_common::time::Timestamp;

use crate::decode::{self, FlowKey, Packet};
use crate::fragments::datagram_key;

/// How long the parts of a packet are waited for: they leave the switch back to back.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest packet that is put together: a jumbo frame with what is around it.
const OCTETS_MAX: usize = 10_240;
/// Most parts besides the first.
const PARTS_MAX: usize = 16;
/// An IP header of ours, without options, goes before the parts.
const HEADER_MAX: usize = 40;

struct Place {
    datagram: FlowKey,
    began: Timestamp,
    /// Our IP header, then the parts at their offsets.
    bytes: Vec<u8>,
    header_len: usize,
    /// Which octets of the datagram are there, from and to; never overlapping.
    parts: Vec<(usize, usize)>,
    /// Length of the datagram, once its last part has come.
    len: Option<usize>,
}

/// Tunnel packets whose parts are under way.
pub struct Reassembly {
    places: Vec<Place>,
    places_max: usize,
    lost: u64,
}

impl Reassembly {
    /// Room for `places_max` packets at once.
    pub const fn new(places_max: usize) -> Self {
        Self { places: Vec::new(), places_max, lost: 0 }
    }

    /// Packets whose parts did not all come, or for which there was no room.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Keeps the first part of a tunnel's packet that is too short to be read ([`decode::Fragment::hides_tunnel`]).
    pub fn begin(&mut self, packet: &Packet, frame: &[u8]) {
        let Some((fragment, (at, end))) = packet.fragment.zip(decode::ip_payload(frame, packet)) else { return };
        let datagram = datagram_key(packet, fragment.id);
        if self.places.iter().any(|place| place.datagram == datagram) {
            return; // a second copy of the first part
        }
        if self.places.len() >= self.places_max {
            self.lost += 1;
            return;
        }
        let mut bytes = Vec::with_capacity(2048);
        decode::ip_header(packet, &mut bytes);
        let header_len = bytes.len();
        let mut place = Place { datagram, began: packet.at, bytes, header_len, parts: Vec::new(), len: None };
        if place.add(fragment.offset as usize, &frame[at..end], fragment.more) {
            self.places.push(place);
        } else {
            self.lost += 1;
        }
    }

    /// Takes a later part. When it completes a packet, gives that, as an IP packet without a link.
    pub fn add(&mut self, packet: &Packet, frame: &[u8]) -> Option<Vec<u8>> {
        if self.places.is_empty() {
            return None;
        }
        let (fragment, (at, end)) = packet.fragment.zip(decode::ip_payload(frame, packet))?;
        let datagram = datagram_key(packet, fragment.id);
        let found = self.places.iter().position(|place| place.datagram == datagram)?;
        let place = &mut self.places[found];
        if !place.add(fragment.offset as usize, &frame[at..end], fragment.more) {
            self.places.swap_remove(found);
            self.lost += 1;
            return None;
        }
        if !place.is_whole() {
            return None;
        }
        Some(self.places.swap_remove(found).into_packet())
    }

    /// Gives up everything: nothing more will come, or time begins anew.
    pub fn give_up(&mut self) {
        self.lost += self.places.len() as u64;
        self.places.clear();
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Timestamp) {
        if self.places.is_empty() {
            return;
        }
        let before = self.places.len();
        self.places.retain(|place| now.since(place.began) <= PATIENCE);
        self.lost += (before - self.places.len()) as u64;
    }
}

impl Place {
    /// False when the part cannot belong there.
    fn add(&mut self, offset: usize, part: &[u8], more: bool) -> bool {
        let end = offset + part.len();
        let overlaps = self.parts.iter().any(|&(from, to)| offset < to && from < end);
        let is_beyond = self.len.is_some_and(|len| end > len) || end + HEADER_MAX > OCTETS_MAX;
        if overlaps || is_beyond || self.parts.len() > PARTS_MAX || part.is_empty() {
            return false;
        }
        if !more {
            self.len = Some(end);
        }
        let (from, to) = (self.header_len + offset, self.header_len + end);
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(part);
        self.parts.push((offset, end));
        true
    }

    fn is_whole(&self) -> bool {
        let there: usize = self.parts.iter().map(|(from, to)| to - from).sum();
        self.len == Some(there)
    }

    fn into_packet(mut self) -> Vec<u8> {
        let total = self.bytes.len();
        // Each header has its length at its own place; both were checked to be far below 65,536.
        let (at, len) = if self.header_len == HEADER_MAX { (4, total - HEADER_MAX) } else { (2, total) };
        self.bytes[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Frame, Link};
    use crate::decode::{Around, Rules};

    fn decoded(bytes: &[u8], link: Link, at: Timestamp) -> (Packet, Around) {
        let mut around = Around::default();
        let frame = Frame { link, ..Frame::ethernet(bytes, bytes.len() as u32, at) };
        (decode::decode(&frame, &Rules::default(), &mut around).expect("a frame"), around)
    }

    /// GRE (ERSPAN I) from 192.0.2.1 to 192.0.2.2 around an Ethernet frame with a TCP SYN, cut after `first` octets of GRE.
    fn parts(first: usize) -> [Vec<u8>; 2] {
        let inner = "020000000002 020000000001 0800 45000038 00014000 40060000 0a000001 0a000002 \
                     9c4001f6 00000001 00000000 5002ffff 00000000 00112233445566778899aabbccddeeff";
        let gre: Vec<u8> = [0, 0, 0x88, 0xbe].into_iter().chain(hex(inner)).collect();
        let part = |offset: usize, bytes: &[u8], more: u16| {
            let mut frame = hex("020000000004 020000000003 0800 4500 0000 0007 0000 40 2f 0000 c0000201 c0000202");
            frame[16..18].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
            frame[20..22].copy_from_slice(&(more << 13 | (offset / 8) as u16).to_be_bytes());
            frame.extend_from_slice(bytes);
            frame
        };
        [part(0, &gre[..first], 1), part(first, &gre[first..], 0)]
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).expect("ASCII"), 16).expect("hex")).collect()
    }

    #[test]
    fn a_first_part_with_all_headers_is_read_at_once_and_a_shorter_one_when_the_rest_has_come() {
        let at = Timestamp::from_secs(1);
        let [long, _] = parts(64); // 4 of GRE and 54 of headers are whole within
        let (packet, around) = decoded(&long, Link::Ethernet, at);
        assert_eq!((packet.key.protocol, packet.key.b_port, packet.ip_octets), (6, 502, 56));
        assert_eq!(around.tunnel[0].to_string(), "192.0.2.1");

        let [short, rest] = parts(32);
        let (first, _) = decoded(&short, Link::Ethernet, at);
        assert_eq!(first.key.protocol, 47);
        assert!(first.fragment.expect("a fragment").hides_tunnel);
        let mut reassembly = Reassembly::new(4);
        reassembly.begin(&first, &short);
        let (later, _) = decoded(&rest, Link::Ethernet, at);
        let whole = reassembly.add(&later, &rest).expect("both parts are there");
        let (inner, around) = decoded(&whole, Link::Raw, at);
        assert_eq!((inner.key.protocol, inner.key.b_port, inner.ip_octets), (6, 502, 56));
        assert_eq!(around.tunnel[1].to_string(), "192.0.2.2");
        assert_eq!(reassembly.lost(), 0);
    }

    #[test]
    fn parts_that_overlap_come_late_or_find_no_room_are_counted_as_lost() {
        let at = Timestamp::from_secs(1);
        let [short, _] = parts(32);
        let [_, overlapping] = parts(24);
        let (first, _) = decoded(&short, Link::Ethernet, at);
        let mut reassembly = Reassembly::new(1);
        reassembly.begin(&first, &short);
        assert!(reassembly.add(&decoded(&overlapping, Link::Ethernet, at).0, &overlapping).is_none());
        assert_eq!(reassembly.lost(), 1);

        reassembly.begin(&first, &short);
        let another = Packet { fragment: first.fragment.map(|fragment| decode::Fragment { id: 8, ..fragment }), ..first };
        reassembly.begin(&another, &short);
        assert_eq!(reassembly.lost(), 2);
        reassembly.expire(Timestamp::from_secs(4));
        assert_eq!(reassembly.lost(), 3);
    }
}
