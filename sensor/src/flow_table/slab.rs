//! Where flows stand: open addressing with linear probing, at most [`PROBE_MAX`] slots from home, deletion by shifting back.
//!
//! Knows nothing of time or records.

use super::hash::KeyHash;
use super::memory::{Slots, prefetch};
use super::slot::{Cold, Hot};

/// Farthest from home that a flow may stand, in slots.
pub(super) const PROBE_MAX: usize = 64;
/// The bits of [`Hot::tag`] that say how far from home the flow stands.
const DISTANCE: u64 = PROBE_MAX as u64 - 1;

/// Hot lines, cold parts, and a bit for each slot that is taken.
pub(super) struct Slab {
    hot: Slots<Hot>,
    cold: Slots<Cold>,
    taken: Vec<u64>,
    mask: usize,
    shift: u32,
    pub(super) len: usize,
}

/// Where a key is, or could go.
pub(super) enum Place {
    /// It stands there.
    Found(usize),
    /// It does not stand anywhere; this slot is free.
    Free(usize),
    /// It does not stand anywhere, and no slot near its home is free.
    Crowded,
}

impl Slab {
    /// `slots` is a power of two and at least [`PROBE_MAX`].
    pub(super) fn new(slots: usize) -> std::io::Result<Self> {
        assert!(slots.is_power_of_two() && slots >= PROBE_MAX, "the settings were checked");
        Ok(Self {
            hot: Slots::new(slots)?,
            cold: Slots::new(slots)?,
            taken: vec![0; slots / 64],
            mask: slots - 1,
            shift: 64 - slots.trailing_zeros(),
            len: 0,
        })
    }

    pub(super) fn slots(&self) -> usize {
        self.mask + 1
    }

    #[inline]
    pub(super) fn home(&self, hash: KeyHash) -> usize {
        (hash.home >> self.shift) as usize
    }

    /// Starts fetching the line where `hash` is at home.
    #[inline]
    pub(super) fn prefetch(&self, hash: KeyHash) {
        prefetch(&self.hot.as_slice()[self.home(hash)]);
    }

    #[inline]
    pub(super) fn find(&self, hash: KeyHash) -> Place {
        let hot = self.hot.as_slice();
        let (home, tag) = (self.home(hash), tag(hash));
        for distance in 0..PROBE_MAX {
            let at = (home + distance) & self.mask;
            let found = hot[at].tag;
            if found == tag | distance as u64 {
                return Place::Found(at);
            }
            if found == 0 {
                return Place::Free(at);
            }
        }
        Place::Crowded
    }

    /// Puts a flow on a slot that [`find`](Self::find) called free, or that was just [`take`](Self::take)n over.
    pub(super) fn put(&mut self, at: usize, hash: KeyHash, cold: Cold) {
        let distance = at.wrapping_sub(self.home(hash)) & self.mask;
        assert!(distance < PROBE_MAX, "find() offers slots near home only");
        self.hot.as_mut_slice()[at] = Hot { tag: tag(hash) | distance as u64, ..bytemuck::Zeroable::zeroed() };
        self.cold.as_mut_slice()[at] = cold;
        self.taken[at / 64] |= 1 << (at % 64);
        self.len += 1;
    }

    /// Frees a slot, moving flows that stand behind it closer to their homes, so that no free slot lies between a flow and its
    /// home. Flows of different homes stand mixed, so every one up to the next free slot is looked at.
    pub(super) fn remove(&mut self, at: usize) {
        let (hot, cold) = (self.hot.as_mut_slice(), self.cold.as_mut_slice());
        let (mut gap, mut next) = (at, at);
        loop {
            next = (next + 1) & self.mask;
            if hot[next].tag == 0 {
                break;
            }
            let back = (next.wrapping_sub(gap) & self.mask) as u64;
            // Nobody moves to a place before home.
            if hot[next].tag & DISTANCE >= back {
                hot[gap] = hot[next];
                hot[gap].tag -= back;
                cold[gap] = cold[next];
                gap = next;
            }
        }
        hot[gap].tag = 0;
        self.taken[gap / 64] &= !(1 << (gap % 64));
        self.len -= 1;
    }

    #[inline]
    pub(super) fn hot(&self, at: usize) -> &Hot {
        &self.hot.as_slice()[at]
    }

    #[inline]
    pub(super) fn hot_mut(&mut self, at: usize) -> &mut Hot {
        &mut self.hot.as_mut_slice()[at]
    }

    #[inline]
    pub(super) fn both(&self, at: usize) -> (&Hot, &Cold) {
        (&self.hot.as_slice()[at], &self.cold.as_slice()[at])
    }

    #[inline]
    pub(super) fn both_mut(&mut self, at: usize) -> (&mut Hot, &mut Cold) {
        (&mut self.hot.as_mut_slice()[at], &mut self.cold.as_mut_slice()[at])
    }

    /// The first taken slot in `from..to`.
    pub(super) fn next_taken(&self, from: usize, to: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = *self.taken.get(word)? & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                let at = word * 64 + bits.trailing_zeros() as usize;
                return (at < to).then_some(at);
            }
            word += 1;
            if word * 64 >= to {
                return None;
            }
            bits = *self.taken.get(word)?;
        }
    }

    /// Up to [`PROBE_MAX`] taken slots at and after the home of `hash`, going round.
    pub(super) fn neighbours(&self, hash: KeyHash) -> impl Iterator<Item = usize> {
        let home = self.home(hash);
        (0..self.slots())
            .map(move |distance| (home + distance) & self.mask)
            .filter(|&at| self.taken[at / 64] & 1 << (at % 64) != 0)
            .take(PROBE_MAX)
    }
}

/// The bits of a hash that stand in the slot; never zero.
#[inline]
const fn tag(hash: KeyHash) -> u64 {
    match hash.tag & !DISTANCE {
        0 => DISTANCE + 1,
        tag => tag,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_stands_is_found_whatever_came_and_went_around() {
        let mut slab = Slab::new(128).expect("a little memory");
        let mut random = 1_u64;
        let mut standing: Vec<KeyHash> = Vec::new();
        for _ in 0..20_000 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if standing.len() < 96 && random >> 63 == 0 {
                // Eight homes, so that neighbours of different homes mix, also over the end.
                let hash = KeyHash { home: (124 + (random >> 40) % 8) << 57, tag: random << 6 };
                if let Place::Free(at) = slab.find(hash) {
                    slab.put(at, hash, bytemuck::Zeroable::zeroed());
                    standing.push(hash);
                }
            } else if !standing.is_empty() {
                let gone = standing.swap_remove((random >> 33) as usize % standing.len());
                let Place::Found(at) = slab.find(gone) else { panic!("{gone:?} is lost") };
                slab.remove(at);
            }
            assert!(standing.iter().all(|&hash| matches!(slab.find(hash), Place::Found(_))));
            assert_eq!(slab.len, standing.len());
        }
    }
}
