//! The line of a flow that every packet touches, and what a packet does to it.

use bytemuck::{Pod, Zeroable};
use spanwatch_common::flow::tcp;
use spanwatch_common::time::Timestamp;

use super::tcp::SPECIAL;
use crate::decode::{TCP_FLAGS, Update, Way};

/// One cache line. Pairs are indexed by [`Way`]: what endpoint a sent, what endpoint b sent. Counters are those of the current
/// slice of the flow's life, since its last record.
///
/// The tag stands for the key: 63 bits of a keyed universal hash, while the bucket of the index comes from another one. That a new
/// flow finds its tag taken in its bucket, and is counted with another flow, has a chance below 10⁻¹⁷; see ARCHITECTURE.md.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Hot {
    /// The tag of the key. In a free slot, where another is free: see [`Slab`](super::slab::Slab).
    pub(super) tag: u64,
    pub(super) last: [Timestamp; 2],
    pub(super) half: [Half; 2],
}

/// What one end sent.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Half {
    pub(super) ip_octets: u32,
    /// TCP: the sequence number that comes next.
    pub(super) next_seq: u32,
    /// 0 until a packet of the slice went that way. Like the octets, it overflows into the flow's [`Aside`].
    pub(super) packets: u16,
    /// Octets of frames beyond those of IP.
    pub(super) overhead: u16,
    /// OR of [`Packet::flags`], and [`FIN_SEEN`] and [`EXPECTS_ACK`], which outlive the slice.
    pub(super) flags: u16,
    pub(super) ip_len_min: u16,
    pub(super) ip_len_max: u16,
    pub(super) ttl_min: u8,
    pub(super) ttl_max: u8,
}

const _: () = assert!(size_of::<Hot>() == 64);

impl Half {
    /// Whether the counters of a slice that has begun take a packet without overflow.
    #[inline(always)]
    pub(super) const fn has_room(&self, update: &Update, overhead: u32) -> bool {
        // 0 wraps, and is no more than the largest.
        self.packets.wrapping_sub(1) < u16::MAX - 1
            && self.ip_octets.checked_add(update.ip_octets).is_some()
            && (self.overhead as u32).wrapping_add(overhead) <= u16::MAX as u32
    }

    /// See [`Hot::is_next`]; `other` is the other end's half.
    #[inline(always)]
    fn is_next(&self, other: &Self, update: &Update) -> bool {
        update.sequence == self.next_seq
            && update.flags & SPECIAL == tcp::ACK
            && update.window != 0
            && other.flags & EXPECTS_ACK == 0
            && other.next_seq.wrapping_sub(update.acknowledgement) <= u32::MAX / 2
    }

    /// See [`Hot::count`].
    #[inline(always)]
    fn count(&mut self, update: &Update, overhead: u32) {
        self.packets += 1;
        self.overhead = self.overhead.wrapping_add(overhead as u16);
        self.ip_octets = self.ip_octets.wrapping_add(update.ip_octets);
        self.flags |= update.flags;
        // Rarely new, so that a jump costs less than writing the old ones again.
        if [self.ttl_min, self.ttl_max] != [update.ttl; 2] {
            self.ttl_min = self.ttl_min.min(update.ttl);
            self.ttl_max = self.ttl_max.max(update.ttl);
        }
        let ip_len = update.ip_octets.min(u32::from(u16::MAX)) as u16;
        if ip_len < self.ip_len_min {
            self.ip_len_min = ip_len;
        }
        if ip_len > self.ip_len_max {
            self.ip_len_max = ip_len;
        }
    }
}

impl Hot {
    /// A flow of which no packet was counted yet.
    pub(super) fn new(tag: u64) -> Self {
        Self { tag, ..Self::zeroed() }
    }

    /// When the newest packet came.
    #[inline]
    pub(super) fn newest(&self) -> Timestamp {
        self.last[0].max(self.last[1])
    }

    /// Whether no packet of the slice was counted.
    pub(super) const fn is_empty(&self) -> bool {
        self.half[0].packets | self.half[1].packets == 0
    }

    /// Whether TCP has closed both halves, or reset the connection.
    #[inline]
    pub(super) const fn is_closed(&self) -> bool {
        self.half[0].flags & self.half[1].flags & FIN_SEEN != 0
    }

    /// Whether a flow that is there neither fell silent nor needs its slice cut nor may be over before the packet.
    #[inline(always)]
    pub(super) fn is_awake(&self, update: &Update, slice_start: Timestamp, silence_nanos: u64) -> bool {
        let newest = self.newest();
        // Of a packet that is older than the flow's newest the difference is huge as well.
        let silent_nanos = update.at.as_nanos().wrapping_sub(newest.as_nanos()).cast_unsigned();
        newest >= slice_start && silent_nanos < silence_nanos && !self.is_closed()
    }

    /// Whether a packet is a TCP segment that simply follows the one before it, and tells the other side nothing new.
    #[inline(always)]
    pub(super) fn is_next(&self, update: &Update) -> bool {
        self.half[update.way.index()].is_next(&self.half[update.way.index() ^ 1], update)
    }

    /// Counts a packet of this flow, if it is one, and the next one in every respect. Nearly every packet is, and is done with here; false,
    /// and nothing done, for all others.
    #[inline(always)]
    pub(super) fn take(&mut self, update: &Update, slice_start: Timestamp, silence_nanos: u64) -> bool {
        if self.tag != update.hash.tag || !self.is_awake(update, slice_start, silence_nanos) {
            return false;
        }
        let overhead = update.frame_octets.wrapping_sub(update.ip_octets);
        let last = &mut self.last[update.way.index()];
        let [a, b] = &mut self.half;
        let (own, other) = if update.way == Way::FromA { (a, b) } else { (b, a) };
        if !own.has_room(update, overhead) || update.at < *last {
            return false;
        }
        if update.flags & TCP_FLAGS != 0 {
            if !own.is_next(other, update) {
                return false;
            }
            own.next_seq = update.sequence.wrapping_add(update.payload_octets);
        }
        *last = update.at;
        own.count(update, overhead);
        true
    }

    /// Counts a packet, for which there is room.
    #[inline(always)]
    pub(super) fn count(&mut self, update: &Update, overhead: u32) {
        let way = update.way.index();
        self.last[way] = self.last[way].max(update.at);
        self.half[way].count(update, overhead);
    }

    /// Begins the next slice.
    pub(super) fn next_slice(&mut self) {
        for half in &mut self.half {
            *half = Half { next_seq: half.next_seq, flags: half.flags & (FIN_SEEN | EXPECTS_ACK), ..Half::zeroed() };
        }
    }
}

/// In [`Half::flags`]: this end has closed its half with FIN, or either end has reset the connection.
pub(super) const FIN_SEEN: u16 = 0x8000;
/// In [`Half::flags`]: acknowledgements of what this end sent have something to tell, as its SYN+ACK waits for one or a gap is open.
pub(super) const EXPECTS_ACK: u16 = 0x4000;
