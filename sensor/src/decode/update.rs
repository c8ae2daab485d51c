//! What a packet adds to its flow: all that is needed of it once the flow is open.

use spanwatch_common::time::Timestamp;

use super::{Oddity, Packet, Way};
use crate::flow_table::KeyHash;

/// One cache line of a packet. Whoever needs more of it (the first packet of a flow, or of a slice of its life) goes back to the frame.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Update {
    /// When it was captured.
    pub at: Timestamp,
    /// Of the key of its flow.
    pub hash: KeyHash,
    /// See [`Packet::frame_octets`].
    pub frame_octets: u32,
    /// See [`Packet::ip_octets`].
    pub ip_octets: u32,
    /// See [`Packet::sequence`].
    pub sequence: u32,
    /// See [`Packet::acknowledgement`].
    pub acknowledgement: u32,
    /// See [`Packet::payload_octets`].
    pub payload_octets: u32,
    /// See [`Packet::flags`].
    pub flags: u16,
    /// See [`Packet::window`].
    pub window: u16,
    /// See [`Packet::ttl`].
    pub ttl: u8,
    /// Which end sent it.
    pub way: Way,
    /// Whether TCP's sequence numbers were all there to read.
    pub has_numbers: bool,
    /// See [`Packet::class_of_service`].
    pub class_of_service: u8,
    /// Whether it has neither an ICMP type nor a tunnel, which stand only in the whole [`Packet`].
    pub is_simple: bool,
    /// Where whoever made this finds the rest of the packet again.
    pub origin: u16,
    /// Where the flow table looks for the flow next: in which bucket of the index, then on which slot.
    pub(crate) guess: u32,
}

const _: () = assert!(size_of::<Update>() == 64);

impl Update {
    /// What stands in the unused places of a batch.
    pub const NONE: Self = Self {
        at: Timestamp::NONE,
        hash: KeyHash { home: 0, tag: 0 },
        frame_octets: 0,
        ip_octets: 0,
        sequence: 0,
        acknowledgement: 0,
        payload_octets: 0,
        flags: 0,
        window: 0,
        ttl: 0,
        way: Way::FromA,
        has_numbers: false,
        class_of_service: 0,
        is_simple: false,
        origin: 0,
        guess: 0,
    };

    /// What `packet` adds to the flow whose key has this hash.
    pub fn of(packet: &Packet, hash: KeyHash, origin: u16) -> Self {
        Self {
            at: packet.at,
            hash,
            frame_octets: packet.frame_octets,
            ip_octets: packet.ip_octets,
            sequence: packet.sequence,
            acknowledgement: packet.acknowledgement,
            payload_octets: packet.payload_octets,
            flags: packet.flags,
            window: packet.window,
            ttl: packet.ttl,
            way: packet.way,
            has_numbers: packet.odd != Oddity::BadTransportHeader,
            class_of_service: packet.class_of_service,
            is_simple: packet.icmp_type_code == 0 && packet.tunnel == 0,
            origin,
            guess: 0,
        }
    }
}
