//! What makes two frames copies of one packet: 64 bits of keyed hash over what no switch and no router changes.
//!
//! | packet | fingerprint over |
//! | --- | --- |
//! | IP | the innermost IP header without TTL (hop limit), header checksum, DSCP and ECN; up to 64 octets behind it, within the IP length |
//! | layer 2 | both MAC addresses, ethertype or SAPs, and everything behind them up to trailing zeros |
//! | HSR, PRP | the same and the sequence number, but at layer 2 no more than 64 octets and nothing from the end of the frame |
//!
//! Whatever is outside (MAC addresses of an IP packet, tags, tunnels) and behind (padding, FCS, trailers) may differ between copies.
//!
//! A packet of which the mirror cut off too much to be sure has no fingerprint: it counts.

use spanwatch_common::flow::protocol;

use crate::decode::{Kind, Packet, Redundancy};

/// Octets behind the IP header that are compared. The checksums of TCP, UDP and ICMP are among them, and these cover the rest.
const BEHIND_HEADER: usize = 64;
/// Longest IPv4 header (RFC 791 §3.1).
const HEADER_MAX: usize = 60;
/// Octets of a PRP trailer (IEC 62439-3) and an FCS behind it, which differ between twins.
const TRAILER: usize = 6 + 4;

/// The secret of the hash.
pub(super) type Secret = [u64; 2];

/// The fingerprint of the packet in `frame`; never 0, and none where too little of it is there. `redundancy` is what HSR or PRP said
/// around it.
pub(super) fn fingerprint(frame: &[u8], packet: &Packet, redundancy: Option<Redundancy>, secret: &Secret) -> Option<u64> {
    if packet.is_cut && redundancy.is_none() && !has_checksum(frame, packet) {
        return None;
    }
    let network = frame.get(usize::from(packet.network_at)..).unwrap_or_default();
    let hash = match network {
        [first, ..] if packet.key.kind == Kind::Ipv4 as u8 && first >> 4 == 4 => ipv4(network, packet, secret),
        [first, ..] if packet.key.kind == Kind::Ipv6 as u8 && first >> 4 == 6 => ipv6(network, packet, secret),
        _ => layer2(network, packet, redundancy, secret),
    };
    let hash = match redundancy {
        Some(Redundancy { sequence, .. }) => fold(hash ^ secret[0], u64::from(sequence) ^ secret[1]),
        None => hash,
    };
    Some(hash.max(1))
}

/// Whether the part of a cut packet that is there has the checksum of TCP, UDP or ICMP, which covers the rest.
fn has_checksum(frame: &[u8], packet: &Packet) -> bool {
    let network = frame.get(usize::from(packet.network_at)..).unwrap_or_default();
    let (header_len, protocol) = match network {
        [first, ..] if first >> 4 == 4 => (usize::from(first & 0x0f) * 4, network.get(9).copied().unwrap_or(0)),
        // Extension headers stand between; what is behind them is not looked for.
        [first, ..] if first >> 4 == 6 => (40, network.get(6).copied().unwrap_or(0)),
        _ => return false,
    };
    if packet.key.is_layer2() || protocol != packet.key.protocol {
        return false;
    }
    let there = network.get(header_len..).unwrap_or_default();
    match protocol {
        protocol::TCP => there.len() >= 20,
        protocol::UDP => matches!(there, [_, _, _, _, _, _, high, low, ..] if (*high, *low) != (0, 0)),
        protocol::ICMP | protocol::ICMPV6 => there.len() >= 8,
        _ => packet.ip_octets as usize <= network.len(),
    }
}

fn ipv4(network: &[u8], packet: &Packet, secret: &Secret) -> u64 {
    let header_len = usize::from(network[0] & 0x0f) * 4;
    let mut compared = [0; HEADER_MAX + BEHIND_HEADER + 4];
    let len = copy_head(network, packet, header_len, &mut compared);
    compared[1] = 0; // DSCP and ECN (RFC 2474 §3, RFC 3168 §5)
    compared[8] = 0; // TTL
    compared[10..12].fill(0); // header checksum
    hash(&compared[..len], secret)
}

fn ipv6(network: &[u8], packet: &Packet, secret: &Secret) -> u64 {
    let mut compared = [0; HEADER_MAX + BEHIND_HEADER + 4];
    let len = copy_head(network, packet, 40, &mut compared);
    compared[0] &= 0xf0; // the traffic class lies across the first two octets (RFC 8200 §3)
    compared[1] &= 0x0f;
    compared[7] = 0; // hop limit
    hash(&compared[..len], secret)
}

/// Copies the IP header and what is compared behind it, as far as it was captured and belongs to the packet.
fn copy_head(network: &[u8], packet: &Packet, header_len: usize, to: &mut [u8; HEADER_MAX + BEHIND_HEADER + 4]) -> usize {
    let len = (header_len + BEHIND_HEADER).min(network.len()).min(packet.ip_octets as usize);
    to[..len].copy_from_slice(&network[..len]);
    len
}

fn layer2(network: &[u8], packet: &Packet, redundancy: Option<Redundancy>, secret: &Secret) -> u64 {
    let key = &packet.key;
    let word = |bytes: &[u8; 16]| u64::from_be_bytes(*bytes.last_chunk().unwrap_or(&[0; 8]));
    let ends = [word(&key.a), word(&key.b)];
    let from = packet.way.index();
    let conversation = fold(ends[from] ^ secret[1], ends[1 - from] ^ secret[0].rotate_left(32));
    let protocol = u64::from(key.detail) << 8 | u64::from(key.kind);
    let payload = match redundancy {
        Some(_) => &network[..network.len().saturating_sub(TRAILER).min(BEHIND_HEADER)],
        // A switch that takes a tag off a short frame pads it anew.
        None => &network[..network.iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1)],
    };
    hash(payload, secret) ^ fold(conversation, protocol ^ secret[1])
}

/// Sixteen octets for each multiplication; the length is part of it.
fn hash(bytes: &[u8], secret: &Secret) -> u64 {
    let mut state = fold(secret[0] ^ bytes.len() as u64, secret[1]);
    let mut add = |chunk: &[u8; 16]| {
        let both = u128::from_le_bytes(*chunk);
        state = fold(both as u64 ^ state, (both >> 64) as u64 ^ secret[1]);
    };
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().for_each(&mut add);
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    add(&last);
    state
}

/// Both halves of the product: each bit of either factor reaches most bits of it.
#[inline]
const fn fold(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    (product >> 64) as u64 ^ product as u64
}
