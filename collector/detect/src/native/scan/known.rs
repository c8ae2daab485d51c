//! Whom a source has spoken to: a contact that fails where one succeeded yesterday is an outage, not a search.
//!
//! Two Bloom filters of one word per entry, the older let go every half day, so that something is remembered for half a day to a day.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;

use super::sample::mixed;

/// Words of a filter that are enough for anybody.
const WORDS_MAX: usize = 1 << 20;
/// How long a filter takes in, in seconds.
const TERM_SECS: u32 = 43_200;

/// What has been answered.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Known {
    newer: Vec<u64>,
    older: Vec<u64>,
    term: u32,
}

impl Known {
    /// Two filters of so many words or a little more, each good for four conversations per half day at a few percent of mistakes.
    pub(super) fn new(words: usize) -> Self {
        let words = words.clamp(1, WORDS_MAX).next_power_of_two();
        Self { newer: vec![0; words], older: vec![0; words], term: 0 }
    }

    /// Remembers that at `now` `source` was answered by `target` on `service`.
    pub(super) fn insert(&mut self, now: u32, source: Address, target: Address, service: u32) {
        let term = now / TERM_SECS;
        if term > self.term {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.fill(0);
            if term > self.term + 1 {
                self.older.fill(0);
            }
            self.term = term;
        }
        let (word, bits) = self.place(source, target, service);
        self.newer[word] |= bits;
    }

    /// Whether it was, probably.
    pub(super) fn contains(&self, source: Address, target: Address, service: u32) -> bool {
        let (word, bits) = self.place(source, target, service);
        self.newer[word] & bits == bits || self.older[word] & bits == bits
    }

    /// Octets held.
    pub(super) const fn octets(&self) -> usize {
        (self.newer.len() + self.older.len()) * size_of::<u64>()
    }

    fn place(&self, source: Address, target: Address, service: u32) -> (usize, u64) {
        let hash = mixed(target.0, mixed(source.0, u64::from(service)));
        let bits = 1 << (hash >> 58) | 1 << (hash >> 52 & 63) | 1 << (hash >> 46 & 63);
        (hash as usize & (self.newer.len() - 1), bits)
    }
}
