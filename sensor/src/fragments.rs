//! Ports for fragments: only the first fragment of a datagram has the transport header; the later ones borrow from it.
//!
//! A fixed number of places in sets of four. A first fragment takes the oldest place of its set; nothing grows and nothing is
//! reassembled, so overlapping or tiny fragments cost no more than others.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;

use crate::decode::{FlowKey, Kind, Packet};
use crate::flow_table::KeyHasher;

/// Settings of the fragment table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FragmentSettings {
    /// How many datagrams can be under way at once; the oldest gives way. 16 to 1048576.
    pub datagrams_max: usize,
    /// How long a later fragment finds its first one. Receivers give up after 60 s (RFC 1122 section 3.3.2, RFC 8200 section 4.5).
    pub timeout_secs: u64,
    /// How many fragmented tunnel packets (ERSPAN, VXLAN…) whose first fragment is too short to read can be put together at once, 10 KiB
    /// each at most. 0 to 65536; 0 puts nothing together.
    pub tunnel_packets_max: usize,
}

impl Default for FragmentSettings {
    fn default() -> Self {
        Self { datagrams_max: 4096, timeout_secs: 60, tunnel_packets_max: 256 }
    }
}

impl FragmentSettings {
    /// # Errors
    /// The key that is out of range, and a sentence about it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(16..=1 << 20).contains(&self.datagrams_max) {
            return Err(("datagrams_max", format!("{} is out of range; choose 16 to 1048576", self.datagrams_max)));
        }
        if !(1..=3600).contains(&self.timeout_secs) {
            return Err(("timeout_secs", format!("{} is out of range; choose 1 to 3600", self.timeout_secs)));
        }
        if self.tunnel_packets_max > 1 << 16 {
            return Err(("tunnel_packets_max", format!("{} is out of range; choose 0 to 65536", self.tunnel_packets_max)));
        }
        Ok(())
    }
}

const WAYS: usize = 4;

#[derive(Clone, Copy)]
struct Place {
    /// Key of the datagram's packets without ports, with the identification in the detail and port fields.
    datagram: FlowKey,
    seen: Timestamp,
    source_port: u16,
    destination_port: u16,
    /// What an ICMP key has beside its identifier.
    key_detail: u16,
    /// Of the transport. A later IPv6 fragment may name another extension header instead (RFC 8200 §4.5).
    protocol: u8,
}

/// The ports of recent first fragments.
pub struct FragmentTable {
    places: Vec<Option<Place>>,
    timeout: Duration,
    hasher: KeyHasher,
}

impl FragmentTable {
    /// A table for `settings.datagrams_max` datagrams, rounded up to a power of two.
    pub fn new(settings: &FragmentSettings, hasher: KeyHasher) -> Self {
        let places = settings.datagrams_max.next_power_of_two().max(WAYS);
        Self { places: vec![None; places], timeout: Duration::from_secs(settings.timeout_secs), hasher }
    }

    /// Remembers the ports of a first fragment, or puts them into a later one. Returns false for a later fragment whose first
    /// was not seen (or too long ago); the packet keeps its zero ports then.
    pub fn resolve(&mut self, packet: &mut Packet) -> bool {
        let Some(fragment) = packet.fragment else { return true };
        let datagram = datagram_key(packet, fragment.id);
        let set = (self.hasher.hash(&datagram).home as usize % (self.places.len() / WAYS)) * WAYS;
        let set = &mut self.places[set..set + WAYS];
        let known = set.iter().position(|place| place.is_some_and(|place| place.datagram == datagram));
        if fragment.first {
            let (source_port, destination_port) = match packet.way.index() {
                0 => (packet.key.a_port, packet.key.b_port),
                _ => (packet.key.b_port, packet.key.a_port),
            };
            let oldest = |set: &[Option<Place>]| (0..WAYS).min_by_key(|&i| set[i].map(|place| place.seen)).unwrap_or(0);
            let at = known.unwrap_or_else(|| oldest(set));
            let (key_detail, protocol) = (packet.key.detail, packet.key.protocol);
            set[at] = Some(Place { datagram, seen: packet.at, source_port, destination_port, key_detail, protocol });
            return true;
        }
        match known.and_then(|at| set[at]).filter(|place| packet.at.since(place.seen) <= self.timeout) {
            Some(place) => {
                (packet.key, packet.way) = packet.key.with_ports(packet.way, place.source_port, place.destination_port);
                (packet.key.detail, packet.key.protocol) = (place.key_detail, place.protocol);
                true
            }
            None => false,
        }
    }
}

/// Source, destination, identification and, in IPv4, protocol name a datagram (RFC 791 §3.2, RFC 8200 §4.5), within its VLAN.
pub(crate) fn datagram_key(packet: &Packet, id: u32) -> FlowKey {
    // Which end sent it belongs to the name: the other end counts its identifications on its own.
    let from_b = u16::from(packet.way.index() == 1);
    let protocol = if packet.key.kind == Kind::Ipv6 as u8 { 0 } else { packet.key.protocol };
    FlowKey { a_port: from_b, b_port: (id >> 16) as u16, detail: id as u16, protocol, ..packet.key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Frame;
    use crate::decode::{Around, Rules, decode};

    fn fragment(header: &str, body: &str, secs: i64) -> Packet {
        let text = format!("020000000002 020000000001 86dd {header} {body}").replace(' ', "");
        let bytes: Vec<u8> = (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex")).collect();
        decode(
            &Frame::ethernet(&bytes, bytes.len() as u32, Timestamp::from_secs(secs)),
            &Rules::default(),
            &mut Around::default(),
        )
        .expect("Ethernet")
    }

    /// 2001:db8::1 > 2001:db8::2, 24 octets, next header fragment.
    const IPV6: &str = "60000000 0018 2c 40 20010db8000000000000000000000001 20010db8000000000000000000000002";

    #[test]
    fn a_later_fragment_borrows_ports_and_protocol_from_its_first_while_it_is_fresh() {
        let mut table = FragmentTable::new(&FragmentSettings::default(), KeyHasher::fixed());
        // The fragmentable part begins with destination options (60), then UDP 5353 > 5353.
        let mut first = fragment(IPV6, "3c000001 0000002a 1100010400000000 14e914e900100000", 1);
        assert!(table.resolve(&mut first));
        let later = fragment(IPV6, "3c000008 0000002a 00000000000000000000000000000000", 2);
        let mut found = later;
        assert!(table.resolve(&mut found));
        assert_eq!(found.key, first.key);
        let mut of_another = fragment(IPV6, "3c000008 0000002b 00000000000000000000000000000000", 2);
        assert!(!table.resolve(&mut of_another));
        let mut too_late = Packet { at: Timestamp::from_secs(62), ..later };
        assert!(!table.resolve(&mut too_late));
        assert_eq!(too_late.key.a_port, 0);
    }
}
