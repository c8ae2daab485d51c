//! Conversations without IP: two MAC addresses, what the frame says it carries, and which of several such conversations it is.

use spanwatch_common::flow::{LAYER2, Mac};
use spanwatch_common::layer2::{ethertype, profinet_class};

use super::key::Endpoint;
use super::{FlowKey, Kind, Packet};

/// Ethertypes below this are lengths of 802.3 frames (IEEE 802.3 clause 3.2.6).
pub(super) const ETHERTYPE_MIN: u16 = 0x0600;

/// How many octets of a frame's body are looked at: an ARP packet has the most to say.
pub(super) const BODY_READ: usize = 28;

/// Where a layer-2 key keeps what is not a MAC address; see [`FlowKey::a`].
const OUI_AT: usize = 0;
const ARP_AT: usize = 6;
const MAC_AT: usize = 10;

/// Completes `packet` as a conversation of its two MAC addresses. `body` is what follows the ethertype (or length).
pub(super) fn complete(packet: &mut Packet, ethernet_type: u16, body: &[u8]) {
    let end = |mac: Mac, instance: u16| {
        let mut address = [0; 16];
        address[MAC_AT..].copy_from_slice(&mac);
        Endpoint { address, port: instance }
    };
    let (kind, detail, instance) = match body {
        [dsap, ssap, ..] if ethernet_type < ETHERTYPE_MIN => (Kind::Llc, u16::from_be_bytes([*dsap, *ssap]), 0),
        _ if ethernet_type < ETHERTYPE_MIN => (Kind::Llc, 0, 0),
        _ => (Kind::Layer2, ethernet_type, instance(ethernet_type, body)),
    };
    let (mut source, mut destination) = (end(packet.source_mac, instance), end(packet.destination_mac, instance));
    if let Some((oui, protocol)) = snap(body).filter(|_| kind == Kind::Llc) {
        for end in [&mut source, &mut destination] {
            end.address[OUI_AT..OUI_AT + 3].copy_from_slice(&oui);
            end.port = protocol;
        }
    }
    if let Some((sender, target)) = arp(body).filter(|_| detail == ethertype::ARP && kind == Kind::Layer2) {
        source.address[ARP_AT..MAC_AT].copy_from_slice(&sender);
        destination.address[ARP_AT..MAC_AT].copy_from_slice(&target);
    }
    (packet.key, packet.way) = FlowKey::between(source, destination, kind, LAYER2);
    packet.key.detail = detail;
}

/// OUI and protocol identifier of a SNAP header (IEEE 802 clause 9.5; RFC 1042).
pub(super) fn snap(body: &[u8]) -> Option<([u8; 3], u16)> {
    match body {
        [0xaa, 0xaa, 0x03, a, b, c, high, low, ..] => Some(([*a, *b, *c], u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// Sender's and target's IPv4 address of an ARP packet over Ethernet (RFC 826).
fn arp(body: &[u8]) -> Option<([u8; 4], [u8; 4])> {
    let body: &[u8; 28] = body.first_chunk()?;
    let [0, 1, 0x08, 0, 6, 4, ..] = body else { return None };
    Some(([body[14], body[15], body[16], body[17]], [body[24], body[25], body[26], body[27]]))
}

/// What tells apart the conversations of one protocol; see [`spanwatch_common::layer2`].
fn instance(ethernet_type: u16, body: &[u8]) -> u16 {
    let &[first, second, ..] = body else { return 0 };
    let word = u16::from_be_bytes([first, second]);
    match ethernet_type {
        ethertype::GOOSE | ethertype::GSE_MANAGEMENT | ethertype::SAMPLED_VALUES => word,
        ethertype::PROFINET => profinet_class(word),
        // IEC 61158-4-12: eleven bits of length, one reserved, four of type, little endian.
        ethertype::ETHERCAT => u16::from(second >> 4),
        ethertype::POWERLINK => u16::from(first & 0x7f),
        ethertype::SERCOS => u16::from(first & 0x43),
        // IEEE 1588 table 18: domainNumber is the fifth octet of every message.
        ethertype::PTP => body.get(4).map_or(0, |&domain| u16::from(domain)),
        _ => 0,
    }
}
