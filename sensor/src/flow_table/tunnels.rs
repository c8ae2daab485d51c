//! The tunnels that mirrored traffic comes in: a bounded list, so that a flow needs a number only.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::hash::KeyHasher;
use crate::decode::Around;

/// Entries that are looked at for one that nobody uses any more, when the list is full.
const LOOK_MAX: usize = 16;
/// A number that is no farther behind than this came late; farther, the switch began anew.
const LATE_MAX: u32 = 64;
/// A number that is farther ahead than this: the switch began anew.
const AHEAD_MAX: u32 = 1 << 16;

/// What one number stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) layer2_segment: u64,
    pub(super) mpls_top_label: u32,
    pub(super) erspan_session: u16,
    pub(super) erspan_vlan: u16,
    /// Source and destination of the tunnel's packet.
    pub(super) ends: [Address; 2],
}

/// The list.
pub(super) struct Tunnels {
    entries: Vec<Entry>,
    by_hash: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    hasher: KeyHasher,
    entries_max: usize,
    /// How long an entry is kept for flows that were seen in it.
    kept: Duration,
    /// The entry of the last packet: packets come in bursts of one tunnel.
    latest: usize,
    /// Where the search for an unused entry goes on.
    hand: usize,
    /// Packets with an ERSPAN sequence number.
    pub(super) erspan_packets: u64,
    /// Numbers missing from those sequences.
    pub(super) erspan_gaps: u64,
}

struct Entry {
    ends: Ends,
    hash: u64,
    used: Timestamp,
    /// Tells this use of the entry from earlier ones.
    generation: u32,
    /// The next ERSPAN sequence number, for each direction.
    next: [Option<u32>; 2],
}

/// The same whichever end sent the packet. As large as a flow's key, and hashed like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Ends {
    /// The smaller address.
    a: [u8; 16],
    b: [u8; 16],
    layer2_segment: u64,
    mpls_top_label: u32,
    /// VLAN · 65536 + session.
    erspan: u32,
}

/// In the number of a tunnel: the packet went from the larger address to the smaller one.
const FROM_B: u32 = 1 << 31;
/// In the number of a tunnel: its place in the list, from 1.
const PLACE: u32 = 0xffff;
const GENERATION_SHIFT: u32 = 16;
const GENERATION_MAX: u32 = 0x7fff;

/// Most entries that numbers have room for.
pub(super) const ENTRIES_MAX: usize = PLACE as usize;

impl Tunnels {
    pub(super) fn new(entries_max: usize, kept: Duration, hasher: KeyHasher) -> Self {
        Self {
            entries: Vec::with_capacity(entries_max),
            by_hash: HashMap::with_capacity_and_hasher(entries_max, BuildHasherDefault::default()),
            hasher,
            entries_max,
            kept,
            latest: 0,
            hand: 0,
            erspan_packets: 0,
            erspan_gaps: 0,
        }
    }

    /// The number of what is around a packet, and its direction; 0 when the list has no place for it. Counts ERSPAN's sequence.
    pub(super) fn number(&mut self, around: &Around, at: Timestamp) -> u32 {
        let (ends, from_b) = Ends::of(around);
        let direction = usize::from(from_b);
        if let Some(sequence) = around.erspan_sequence {
            // A session is one sequence, whatever is inside.
            let session = Ends { layer2_segment: 0, mpls_top_label: 0, erspan: ends.erspan & 0xffff, ..ends };
            self.erspan_packets += 1;
            if let Some(place) = self.place(session, at) {
                self.follow(place, direction, sequence);
            }
        }
        self.place(ends, at).map_or(0, |place| number(place, self.entries[place].generation, from_b))
    }

    /// What a number stands for; nothing, if its place was given to another tunnel meanwhile.
    pub(super) fn named(&self, number: u32) -> Named {
        let entry = (number & PLACE).checked_sub(1).and_then(|place| self.entries.get(place as usize));
        let Some(entry) = entry.filter(|entry| entry.generation == number >> GENERATION_SHIFT & GENERATION_MAX) else {
            return Named::default();
        };
        let Ends { a, b, layer2_segment, mpls_top_label, erspan } = entry.ends;
        let (a, b) = (Address::from_v6(a), Address::from_v6(b));
        Named {
            layer2_segment,
            mpls_top_label,
            erspan_session: erspan as u16,
            erspan_vlan: (erspan >> 16) as u16,
            ends: if number & FROM_B == 0 { [a, b] } else { [b, a] },
        }
    }

    fn place(&mut self, ends: Ends, at: Timestamp) -> Option<usize> {
        if let Some(entry) = self.entries.get_mut(self.latest)
            && entry.ends == ends
        {
            entry.used = entry.used.max(at);
            return Some(self.latest);
        }
        let hash = self.hasher.hash(bytemuck::cast_ref(&ends)).tag;
        let place = match self.by_hash.get(&hash) {
            Some(&place) => place as usize,
            None => self.add(ends, hash, at)?,
        };
        let entry = &mut self.entries[place];
        if entry.ends != ends {
            return None; // two tunnels of one hash: less likely than a broken machine
        }
        entry.used = entry.used.max(at);
        self.latest = place;
        Some(place)
    }

    fn add(&mut self, ends: Ends, hash: u64, at: Timestamp) -> Option<usize> {
        let mut entry = Entry { ends, hash, used: at, generation: 0, next: [None; 2] };
        let place = if self.entries.len() < self.entries_max {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let len = self.entries.len();
            let unused = (0..LOOK_MAX.min(len))
                .map(|step| (self.hand + step) % len)
                .find(|&place| at.since(self.entries[place].used) > self.kept);
            self.hand = unused.map_or(self.hand + LOOK_MAX, |place| place + 1) % len;
            let place = unused?;
            self.by_hash.remove(&self.entries[place].hash);
            entry.generation = (self.entries[place].generation + 1) & GENERATION_MAX;
            self.entries[place] = entry;
            place
        };
        self.by_hash.insert(hash, place as u32);
        Some(place)
    }

    fn follow(&mut self, place: usize, direction: usize, sequence: u32) {
        let next = &mut self.entries[place].next[direction];
        let Some(expected) = *next else {
            *next = Some(sequence.wrapping_add(1));
            return;
        };
        let (ahead, behind) = (sequence.wrapping_sub(expected), expected.wrapping_sub(sequence));
        if ahead == 0 || behind > LATE_MAX {
            if ahead <= AHEAD_MAX {
                self.erspan_gaps += u64::from(ahead);
            }
            *next = Some(sequence.wrapping_add(1));
        } else {
            self.erspan_gaps = self.erspan_gaps.saturating_sub(1);
        }
    }
}

impl Ends {
    fn of(around: &Around) -> (Self, bool) {
        let [source, destination] = around.tunnel;
        let from_b = source > destination;
        let (a, b) = if from_b { (destination, source) } else { (source, destination) };
        let ends = Self {
            a: a.0.to_be_bytes(),
            b: b.0.to_be_bytes(),
            layer2_segment: around.layer2_segment,
            mpls_top_label: around.mpls_top_label,
            erspan: u32::from(around.erspan_vlan) << 16 | u32::from(around.erspan_session),
        };
        (ends, from_b)
    }
}

const fn number(place: usize, generation: u32, from_b: bool) -> u32 {
    (place as u32 + 1) | generation << GENERATION_SHIFT | if from_b { FROM_B } else { 0 }
}

/// The number of the same tunnel for a packet that goes the other way.
pub(super) const fn turned(number: u32) -> u32 {
    if number == 0 { 0 } else { number ^ FROM_B }
}

/// The keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
