//! Second copies of a packet: found, told apart by cause, and removed where the settings or the traffic ask for it.
//!
//! A mirror gives a packet twice when it copies both ways of a port, several ports, or both sides of a router; HSR and PRP send
//! every frame twice by design. Copies come microseconds apart. A table of recent [fingerprints](fingerprint) finds them: 65,536
//! places of 16 bytes in sets of four, one cache line each; the oldest of a set gives way. Nothing grows, and a copy whose original
//! had to give way counts as a packet.
//!
//! # What is no copy
//! The same packet again after the window: a retransmission or a poll. Cyclic traffic, whose counters lie within the fingerprint. And
//! the ninth equal packet within the window: no mirror gives more than eight of one (two VLANs, both ways, two switches), so a flood of
//! equal packets stays visible.

mod fingerprint;
mod watch;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::time::Timestamp;

use crate::decode::{Around, Packet, Redundancy};
use crate::flow_table::KeyHasher;
use fingerprint::{Secret, fingerprint};
use watch::Watch;

/// What is done about second copies of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DedupMode {
    /// They count like any packet, and nobody looks for them.
    Off,
    /// They are removed.
    On,
    /// They are counted; removed as long as they are many.
    #[default]
    Auto,
}

/// Places in the table.
const PLACES: usize = 1 << 16;
/// Places in a set.
const WAYS: usize = 4;
/// Most copies of one packet.
const COPIES_MAX: u8 = 7;
/// How long the twin of an HSR or PRP frame may take (IEC 62439-3, EntryForgetTime).
const REDUNDANCY_WINDOW: Duration = Duration::from_millis(400);

/// Why a packet came twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The mirror copied it twice.
    Copy,
    /// It was seen on both sides of a router: another TTL, or other MAC addresses.
    Routed,
    /// It is the twin that HSR or PRP sent on the other path.
    Redundant,
}

/// What was looked at and found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets looked at.
    pub examined: u64,
    /// Copies found, by [`Cause`]; removed or not.
    pub copies: [u64; 3],
}

/// Finds second copies.
pub struct Dedup {
    mode: DedupMode,
    window_micros: u32,
    /// Packets before this time are not looked at.
    wake: Timestamp,
    secret: Secret,
    sets: Vec<Set>,
    watch: Watch,
    counts: Counts,
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Set([Place; WAYS]);

/// A packet that was seen.
#[derive(Clone, Copy, Default)]
struct Place {
    /// 0 for none.
    fingerprint: u64,
    /// When, in microseconds; wraps every 71 minutes. A packet that is repeated without change after just that long counts as a copy,
    /// if it still has its place.
    seen: u32,
    ttl: u8,
    /// Of both MAC addresses: a byte that tells whether they are others.
    macs: u8,
    /// HSR path or PRP network.
    path: u8,
    copies: u8,
}

const _: () = assert!(size_of::<Set>() == 64);

impl Dedup {
    /// A table for `mode`; without memory when nobody looks.
    pub fn new(mode: DedupMode, window_micros: u32, hasher: &KeyHasher) -> Self {
        let off = mode == DedupMode::Off;
        Self {
            mode,
            window_micros,
            wake: Timestamp::from_nanos(if off { i64::MAX } else { i64::MIN }),
            secret: hasher.secret(),
            sets: vec![Set::default(); if off { 0 } else { PLACES / WAYS }],
            watch: Watch::default(),
            counts: Counts::default(),
        }
    }

    /// Packets before this time are not looked at.
    #[inline]
    pub const fn wake(&self) -> Timestamp {
        self.wake
    }

    /// Why the packet in `frame` is to be removed; none when it counts. `around` says what was around it.
    #[inline]
    pub fn removes(&mut self, frame: &[u8], packet: &Packet, around: &Around) -> Option<Cause> {
        if packet.at >= self.wake { self.look(frame, packet, around) } else { None }
    }

    /// Packet time may start anywhere after this: the clock was set.
    pub fn restart(&mut self) {
        if self.mode != DedupMode::Off {
            self.wake = Timestamp::from_nanos(i64::MIN);
        }
    }

    /// Whether copies are removed at present.
    pub fn is_removing(&self) -> bool {
        match self.mode {
            DedupMode::Off => false,
            DedupMode::On => true,
            DedupMode::Auto => self.watch.removes(),
        }
    }

    /// What was looked at and found.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    #[inline(never)]
    fn look(&mut self, frame: &[u8], packet: &Packet, around: &Around) -> Option<Cause> {
        if self.sets.is_empty() {
            return None; // off, and a packet at the end of time
        }
        let is_redundant = packet.encapsulations.has(Encapsulation::Hsr) || packet.encapsulations.has(Encapsulation::Prp);
        let redundancy = if is_redundant { around.redundancy } else { None };
        let fingerprint = fingerprint(frame, packet, redundancy, &self.secret)?;
        let cause = self.find(fingerprint, packet, redundancy);
        self.counts.examined += 1;
        if let Some(cause) = cause {
            self.counts.copies[cause as usize] += 1;
        }
        let removed = cause.filter(|_| self.is_removing());
        if self.mode == DedupMode::Auto
            && let Some(wake) = self.watch.saw(packet.at, cause.is_some())
        {
            self.wake = wake;
        }
        removed
    }

    /// The cause, if the packet is a copy of one in the table; otherwise it takes a place there.
    fn find(&mut self, fingerprint: u64, packet: &Packet, redundancy: Option<Redundancy>) -> Option<Cause> {
        let micros = packet.at.as_nanos().div_euclid(1_000) as u32;
        let window = if redundancy.is_some() { REDUNDANCY_WINDOW.as_micros() as u32 } else { self.window_micros };
        let index = (fingerprint >> 48) as usize % self.sets.len();
        let set = &mut self.sets[index].0;
        let seen = Place {
            fingerprint,
            seen: micros,
            ttl: packet.ttl,
            macs: macs(packet),
            path: redundancy.map_or(0, |r| r.path),
            copies: 0,
        };
        // Copies may come in the wrong order, too: the time between them counts, whichever came first.
        let age = |place: &Place| (micros.wrapping_sub(place.seen).cast_signed()).unsigned_abs();
        if let Some(place) = set.iter_mut().find(|place| place.fingerprint == fingerprint) {
            if age(place) > window || place.copies == COPIES_MAX {
                *place = seen;
                return None;
            }
            place.copies += 1;
            return Some(if place.path != seen.path {
                Cause::Redundant
            } else if (place.ttl, place.macs) != (seen.ttl, seen.macs) && !packet.key.is_layer2() {
                Cause::Routed
            } else {
                Cause::Copy
            });
        }
        let is_free = |place: &Place| place.fingerprint == 0;
        if let Some(oldest) = set.iter_mut().max_by_key(|place| (is_free(place), age(place))) {
            *oldest = seen;
        }
        None
    }
}

/// A byte of both MAC addresses.
fn macs(packet: &Packet) -> u8 {
    let word = |mac: [u8; 6]| mac.iter().fold(0_u64, |word, &octet| word << 8 | u64::from(octet));
    let both = word(packet.source_mac).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word(packet.destination_mac);
    (both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

#[cfg(test)]
mod tests;
