//! From the hash of a key to the slot of its flow: buckets of one cache line, twelve flows each.
//!
//! A bucket has a byte of each flow's tag, all compared in one instruction, and the flows' slots. A flow whose home is full stands in the
//! next bucket with room, and every bucket that it passed counts it, so that a search knows when to stop, and flows never move.

use bytemuck::{Pod, Zeroable};

use super::hash::KeyHash;
use super::memory::Slots;
use crate::machine::{equal_bytes, prefetch};

/// Flows in a bucket.
const WAYS: usize = 12;
/// The bits of [`Bucket::head`] that hold the tags.
const TAGS: u32 = (1 << WAYS) - 1;

/// One cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    /// A byte for each flow, 0 where there is none; then [`passed`](Self::passed).
    head: [u8; 16],
    slots: [u32; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// The places whose tag is `tag`, a bit for each.
    #[inline]
    fn matches(&self, tag: u8) -> u32 {
        equal_bytes(self.head, tag) & TAGS
    }

    /// How many flows stand farther on because this bucket was full when they came.
    #[inline]
    const fn passed(&self) -> u32 {
        let [.., a, b, c, d] = self.head;
        u32::from_le_bytes([a, b, c, d])
    }

    fn set_passed(&mut self, passed: u32) {
        self.head[WAYS..].copy_from_slice(&passed.to_le_bytes());
    }
}

/// The index of a table.
pub(super) struct Index {
    buckets: Slots<Bucket>,
}

impl Index {
    /// Room for `flows` at four fifths full: 6.7 bytes for each.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub(super) fn new(flows: usize) -> std::io::Result<Self> {
        Ok(Self { buckets: Slots::new((flows + flows / 4) / WAYS + 2)? })
    }

    #[inline]
    fn home(&self, hash: KeyHash) -> usize {
        ((u128::from(hash.home) * self.buckets.as_slice().len() as u128) >> 64) as usize
    }

    /// The bucket where `hash` is at home, which is being fetched from now on.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: KeyHash) -> u32 {
        let home = self.home(hash);
        prefetch(&self.buckets.as_slice()[home]);
        home as u32
    }

    /// The slot where a flow of `hash` probably stands; any, if there is none. Looks at `bucket` only, its home.
    #[inline(always)]
    pub(super) fn guess(&self, hash: KeyHash, bucket: u32) -> u32 {
        let bucket = &self.buckets.as_slice()[bucket as usize];
        let matches = bucket.matches(tag(hash));
        bucket.slots[(matches.trailing_zeros() as usize).min(WAYS - 1)]
    }

    /// The slot of the flow of `hash`, for which `is_it` is true.
    pub(super) fn find(&self, hash: KeyHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let buckets = self.buckets.as_slice();
        let mut at = self.home(hash);
        loop {
            let bucket = &buckets[at];
            let mut matches = bucket.matches(tag(hash));
            while matches != 0 {
                let slot = bucket.slots[matches.trailing_zeros() as usize];
                if is_it(slot) {
                    return Some(slot);
                }
                matches &= matches - 1;
            }
            if bucket.passed() == 0 {
                return None;
            }
            at = next(at, buckets.len());
        }
    }

    /// Adds a flow that is not there yet. There must be fewer than the index was made for.
    pub(super) fn add(&mut self, hash: KeyHash, slot: u32) {
        let mut at = self.home(hash);
        let buckets = self.buckets.as_mut_slice();
        loop {
            let bucket = &mut buckets[at];
            let free = bucket.matches(0);
            if free != 0 {
                let place = free.trailing_zeros() as usize;
                (bucket.head[place], bucket.slots[place]) = (tag(hash), slot);
                return;
            }
            bucket.set_passed(bucket.passed() + 1);
            at = next(at, buckets.len());
        }
    }

    /// Takes out a flow that is there.
    pub(super) fn remove(&mut self, hash: KeyHash, slot: u32) {
        let mut at = self.home(hash);
        let buckets = self.buckets.as_mut_slice();
        loop {
            let bucket = &mut buckets[at];
            let mut matches = bucket.matches(tag(hash));
            while matches != 0 {
                let place = matches.trailing_zeros() as usize;
                if bucket.slots[place] == slot {
                    bucket.head[place] = 0;
                    return;
                }
                matches &= matches - 1;
            }
            // Those that passed here are on the other side of it.
            let passed = bucket.passed();
            assert!(passed > 0, "a flow of the table is in its index");
            bucket.set_passed(passed - 1);
            at = next(at, buckets.len());
        }
    }
}

#[inline]
const fn next(at: usize, buckets: usize) -> usize {
    if at + 1 == buckets { 0 } else { at + 1 }
}

/// The byte that stands for a flow in its bucket: never 0.
#[inline]
const fn tag(hash: KeyHash) -> u8 {
    match hash.tag as u8 {
        0 => 1,
        tag => tag,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_stands_is_found_whatever_came_and_went_around() {
        let mut index = Index::new(96).expect("a little memory");
        let mut random = 1_u64;
        let mut standing: Vec<(KeyHash, u32)> = Vec::new();
        for step in 0..20_000 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if standing.len() < 96 && random >> 63 == 0 {
                // Three homes, the last among them, so that flows stand far from home and go round; seven tags, so that many are alike.
                let hash = KeyHash { home: u64::MAX - (random >> 40) % 3 * (u64::MAX / 10), tag: (random >> 20) % 7 };
                index.add(hash, step);
                standing.push((hash, step));
            } else if !standing.is_empty() {
                let (hash, slot) = standing.swap_remove((random >> 33) as usize % standing.len());
                index.remove(hash, slot);
                assert_eq!(index.find(hash, |other| other == slot), None);
            }
            for &(hash, slot) in &standing {
                assert_eq!(index.find(hash, |other| other == slot), Some(slot));
            }
        }
        for (hash, slot) in standing.drain(..) {
            index.remove(hash, slot);
        }
        assert!(index.buckets.as_slice().iter().all(|bucket| bucket.head == [0; 16]), "nothing is left");
    }
}
