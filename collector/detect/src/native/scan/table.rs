//! All sources, in bounded memory.
//!
//! A source has a place from its first failure on while there is plenty of room. When seven sixteenths of it are taken (with one more, a
//! hash table would double), a source first waits at the gate until it has failed with a second target; and a source that only ever failed
//! with a host with which a thousand others failed in the same ten seconds is one of a flood, forged perhaps, and waits outside. When all is
//! taken, those that failed least and longest ago are let go, an eighth of all, and counted. When the targets of all together are too many,
//! those that have most keep half of them.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;

use super::sample::{Target, mixed};
use super::source::Source;
use crate::hash::{Map, table_bytes};

/// Targets of all sources together, for each source that may be held: 8 of 28 octets.
const TARGETS_PER_KEY: usize = 8;
/// Of so many sources that may be held there is one place at the gate; four for each hash.
const KEYS_PER_PLACE: usize = 4;
const WAYS: usize = 4;
/// Counters of the crowd, two rows of so many.
const CROWD: usize = 1 << 12;
/// When one of so many sources that may be held fails with one host within [`CROWD_SECS`], and is new, that is a flood.
const KEYS_PER_CROWD: usize = 256;
const CROWD_SECS: u32 = 10;
/// Lists of targets are not cut shorter than this when memory is short.
const KEPT_MIN: usize = 48;

/// Sources by address; networks by their complement, which is no address that sends.
pub(super) struct Table {
    sources: Map<u128, Box<Source>>,
    gate: Vec<Option<(u128, Target)>>,
    crowd: Vec<u16>,
    crowd_term: u32,
    keys_max: usize,
    /// Octets of all sources beside themselves.
    octets: usize,
    /// Sources let go.
    pub(super) evicted: u64,
    /// Failures of sources that had no place and got none.
    pub(super) refused: u64,
}

/// What is saved.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved {
    sources: Vec<(u128, Box<Source>)>,
    gate: Vec<(u32, u128, Target)>,
    crowd: Vec<(u32, u16)>,
    crowd_term: u32,
    evicted: u64,
    refused: u64,
}

/// The key of an address.
pub(super) const fn host_key(address: Address) -> u128 {
    address.0
}

/// The key of the network around `address` that shares its first `bits` bits of the 128-bit form, at most 120.
pub(super) const fn network_key(address: Address, bits: u8) -> u128 {
    !(address.0 & u128::MAX << (128 - bits) | bits as u128)
}

/// The first address of the network that has this key, and its bits.
pub(super) const fn network_of(key: u128) -> (Address, u8) {
    (Address(!key & !0xff), !key as u8)
}

impl Table {
    /// Empty, for so many sources.
    pub(super) fn new(keys_max: usize) -> Self {
        Self {
            sources: Map::default(),
            gate: vec![None; (keys_max / KEYS_PER_PLACE).next_power_of_two().max(WAYS)],
            crowd: vec![0; 2 * CROWD],
            crowd_term: 0,
            keys_max,
            octets: 0,
            evicted: 0,
            refused: 0,
        }
    }

    /// A source that is there.
    pub(super) fn get_mut(&mut self, key: u128) -> Option<&mut Source> {
        self.sources.get_mut(&key).map(|source| &mut **source)
    }

    /// The source that has failed with `target`, and the target that it brings along from the gate; none if it has no place yet.
    pub(super) fn admit(&mut self, key: u128, target: &Target) -> Option<(&mut Source, Option<Target>)> {
        let mut earlier = None;
        if !self.sources.contains_key(&key) {
            if self.sources.len() >= self.keys_max / 2 * 7 / 8 {
                if self.is_crowded(target) {
                    self.refused += 1;
                    return None;
                }
                earlier = Some(self.pass_gate(key, target)?);
            }
            if self.sources.len() >= self.keys_max {
                self.let_go();
            }
            if self.sources.len() >= self.keys_max {
                self.refused += 1;
                return None;
            }
        }
        Some((self.sources.entry(key).or_default(), earlier))
    }

    /// The target that the source left at the gate, if it is another one; else leaves this one there.
    fn pass_gate(&mut self, key: u128, target: &Target) -> Option<Target> {
        let first = (mixed(key, 1) as usize % (self.gate.len() / WAYS)) * WAYS;
        let ways = &mut self.gate[first..first + WAYS];
        if let Some(way) = ways.iter_mut().find(|way| way.as_ref().is_some_and(|(waiting, _)| *waiting == key)) {
            let another = |(_, left): &(u128, Target)| left.host() != target.host() || left.service() != target.service();
            return if way.as_ref().is_some_and(another) { way.take().map(|(_, left)| left) } else { None };
        }
        // The one that has waited longest makes room.
        let longest = ways.iter_mut().min_by_key(|way| way.as_ref().map_or(0, |(_, left)| left.at));
        if let Some(way) = longest {
            *way = Some((key, *target));
        }
        None
    }

    /// Whether too many new sources failed with the host of `target` of late; counts this one.
    fn is_crowded(&mut self, target: &Target) -> bool {
        let term = target.at / CROWD_SECS;
        if term > self.crowd_term {
            self.crowd_term = term;
            self.crowd.fill(0);
        }
        let hash = mixed(target.host().0, 2);
        let places = [hash as usize % CROWD, CROWD + (hash >> 32) as usize % CROWD];
        for place in places {
            self.crowd[place] = self.crowd[place].saturating_add(1);
        }
        places.iter().all(|&place| usize::from(self.crowd[place]) > (self.keys_max / KEYS_PER_CROWD).clamp(64, 10_000))
    }

    /// Lets go of the eighth that failed least and longest ago; nobody who was told of.
    fn let_go(&mut self) {
        let standing = |source: &Source| {
            let told = source.case.as_ref().is_some_and(|case| !case.told.is_empty());
            (!told).then(|| (source.failed.targets().len(), source.last))
        };
        let mut all: Vec<(usize, u32, u128)> =
            self.sources.iter().filter_map(|(&key, source)| standing(source).map(|(failed, last)| (failed, last, key))).collect();
        let surplus = (self.keys_max / 8).max(1);
        if all.len() > surplus {
            all.select_nth_unstable(surplus);
            all.truncate(surplus);
        }
        for (_, _, key) in all {
            if let Some(source) = self.sources.remove(&key) {
                self.octets -= source.octets();
                self.evicted += 1;
            }
        }
    }

    /// Tells the table that a source takes so many octets and took so many before.
    pub(super) fn account(&mut self, before: usize, after: usize) {
        self.octets = self.octets + after - before;
        if self.octets > self.octets_max() {
            self.shrink();
        }
    }

    const fn octets_max(&self) -> usize {
        self.keys_max * TARGETS_PER_KEY * size_of::<Target>()
    }

    /// Halves the longest lists of targets, and if that is not enough lets go of sources, until a quarter of the room is free.
    fn shrink(&mut self) {
        let enough = self.octets_max() / 4 * 3;
        let mut longest = super::source::FAILED_MAX / 2;
        while self.octets > enough && longest >= KEPT_MIN {
            for source in self.sources.values_mut() {
                let before = source.octets();
                for sample in [&mut source.failed, &mut source.answered] {
                    if sample.targets().len() > longest {
                        sample.halve();
                        self.evicted += 1;
                    }
                }
                self.octets = self.octets + source.octets() - before;
            }
            longest /= 2;
        }
        let mut held = usize::MAX;
        while self.octets > enough && self.sources.len() < held {
            held = self.sources.len();
            self.let_go();
        }
    }

    /// Forgets what is older than `horizon`, and sources of which nothing is left.
    pub(super) fn forget_before(&mut self, horizon: u32) {
        self.sources.retain(|_, source| {
            source.failed.forget_before(horizon);
            source.answered.forget_before(horizon);
            !source.failed.targets().is_empty()
        });
        self.octets = self.sources.values().map(|source| source.octets()).sum();
    }

    /// Sources held.
    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }

    /// Octets held, about.
    pub(super) fn octets(&self) -> usize {
        table_bytes(&self.sources)
            + self.sources.len() * size_of::<Source>()
            + self.octets
            + self.gate.len() * size_of::<Option<(u128, Target)>>()
            + 4 * CROWD
    }

    /// Everything, for [`restore`](Self::restore).
    pub(super) fn save(&self) -> Saved {
        let mut sources: Vec<(u128, Box<Source>)> = self.sources.iter().map(|(&key, source)| (key, source.clone())).collect();
        sources.sort_unstable_by_key(|(key, _)| *key);
        let numbered = |(place, way): (usize, &Option<(u128, Target)>)| way.map(|(key, target)| (place as u32, key, target));
        Saved {
            sources,
            gate: self.gate.iter().enumerate().filter_map(numbered).collect(),
            crowd: (0..).zip(self.crowd.iter().copied()).filter(|&(_, count)| count > 0).collect(),
            crowd_term: self.crowd_term,
            evicted: self.evicted,
            refused: self.refused,
        }
    }

    /// Goes on from there.
    pub(super) fn restore(&mut self, saved: Saved) {
        let mut fresh = Self::new(self.keys_max);
        fresh.sources = saved.sources.into_iter().collect();
        fresh.octets = fresh.sources.values().map(|source| source.octets()).sum();
        for (place, key, target) in saved.gate {
            if let Some(way) = fresh.gate.get_mut(place as usize) {
                *way = Some((key, target));
            }
        }
        for (place, count) in saved.crowd {
            if let Some(counter) = fresh.crowd.get_mut(place as usize) {
                *counter = count;
            }
        }
        (fresh.crowd_term, fresh.evicted, fresh.refused) = (saved.crowd_term, saved.evicted, saved.refused);
        *self = fresh;
    }
}
