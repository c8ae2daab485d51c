//! What is known of a ground that many sources may search: who was there in the last hour, and what each of them tried.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;

use super::sample::mixed;
use crate::finding::Sighting;
use crate::snapshot::Names;

/// Sources kept of one ground; more are a sample.
const SOURCES_MAX: usize = 256;
/// Targets kept of one source.
const EACH_MAX: usize = 8;
/// What a new hour weighs in the usual number of sources.
const HOUR_WEIGHT: f64 = 0.3;
pub(super) const HOUR: u32 = 3_600;

/// A source on a ground.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Searcher {
    /// Hash of its address; they are sorted by it.
    id: u64,
    /// Last time, seconds since 1970.
    at: u32,
    answered: bool,
    /// Targets that it tried.
    tried: u8,
    /// Hashes of them.
    targets: [u16; EACH_MAX],
}

/// What is known of a ground.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Search {
    pub(super) searchers: Vec<Searcher>,
    /// Of the hashes of the sources kept, so many lowest bits are zero.
    pub(super) level: u8,
    /// Seconds since 1970.
    pub(super) first: u32,
    pub(super) last: u32,
    hour: u32,
    /// Sources per hour, usually.
    pub(super) usual: f64,
    pub(super) rows: Vec<Sighting>,
    pub(super) observers: Names,
    /// The window and the number that were told last.
    pub(super) told: Option<(u32, u64)>,
}

/// What the sources of a ground add up to.
pub(super) struct Tally {
    pub(super) sources: u64,
    pub(super) answered: u64,
    pub(super) first: u32,
}

impl Search {
    /// `source` tried `target`, in vain if it `failed`; says whether that is new.
    pub(super) fn note(&mut self, source: Address, target: u64, at: u32, failed: bool) -> bool {
        self.turn(at);
        let id = mixed(source.0, 3);
        if id & ((1 << self.level) - 1) != 0 {
            return false;
        }
        self.last = self.last.max(at);
        let target = (target >> 48) as u16;
        match self.searchers.binary_search_by_key(&id, |searcher| searcher.id) {
            Ok(place) => {
                let searcher = &mut self.searchers[place];
                searcher.at = searcher.at.max(at);
                searcher.answered |= !failed;
                let known = &searcher.targets[..usize::from(searcher.tried)];
                let new = failed && known.len() < EACH_MAX && !known.contains(&target);
                if new {
                    searcher.targets[usize::from(searcher.tried)] = target;
                    searcher.tried += 1;
                }
                new
            }
            Err(_) if !failed && self.searchers.is_empty() => false,
            Err(place) => {
                let mut searcher = Searcher { id, at, answered: !failed, tried: u8::from(failed), targets: [0; EACH_MAX] };
                searcher.targets[0] = target;
                self.searchers.insert(place, searcher);
                self.make_room();
                failed
            }
        }
    }

    fn make_room(&mut self) {
        while self.searchers.len() > SOURCES_MAX {
            self.level += 1;
            let mask = (1_u64 << self.level) - 1;
            self.searchers.retain(|searcher| searcher.id & mask == 0);
        }
    }

    /// The hours that have gone by become the usual, and sources of more than an hour ago are forgotten.
    fn turn(&mut self, at: u32) {
        let hour = at / HOUR;
        if self.first == 0 {
            (self.first, self.hour) = (at, hour);
        }
        if hour <= self.hour {
            return;
        }
        let kept = self.searchers.iter().filter(|searcher| searcher.at / HOUR == self.hour && searcher.tried > 0).count();
        let sources = (kept as u64) << self.level;
        self.usual += HOUR_WEIGHT * (sources as f64 - self.usual);
        self.usual *= (1.0 - HOUR_WEIGHT).powi((hour - self.hour - 1).min(1_000) as i32);
        self.hour = hour;
        self.searchers.retain(|searcher| searcher.at + HOUR > at);
        if self.searchers.is_empty() {
            (self.level, self.first) = (0, at);
        }
    }

    /// The searchers of the last hour.
    fn recent(&self) -> impl Iterator<Item = &Searcher> {
        let from = self.last.saturating_sub(HOUR - 1);
        self.searchers.iter().filter(move |searcher| searcher.at >= from)
    }

    pub(super) fn tally(&self, each: u8) -> Tally {
        let mut tally = Tally { sources: 0, answered: 0, first: self.last };
        for searcher in self.recent() {
            if searcher.answered {
                tally.answered += 1 << self.level;
            } else if searcher.tried <= each {
                tally.sources += 1 << self.level;
                tally.first = tally.first.min(searcher.at);
            }
        }
        tally
    }

    /// Distinct targets of those whom [`tally`](Self::tally) counts as sources.
    pub(super) fn targets(&self, each: u8) -> usize {
        let sources = self.recent().filter(|searcher| !searcher.answered && searcher.tried <= each);
        let mut targets: Vec<u16> = sources.flat_map(|source| &source.targets[..usize::from(source.tried)]).copied().collect();
        targets.sort_unstable();
        targets.dedup();
        targets.len()
    }
}
