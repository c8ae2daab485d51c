//! Where flows stand: side by side, each on a slot that it keeps as long as it lives, found through the [`Index`].
//!
//! Knows nothing of time or records.

use super::hash::{KeyHash, KeyHasher};
use super::hot::Hot;
use super::index::Index;
use super::memory::Slots;
use super::pool::Pool;
use super::slot::{Cold, Wide};
use crate::decode::Update;
use crate::machine::prefetch;

/// Hot lines, cold parts, and a bit for each slot that is taken.
pub(super) struct Slab {
    index: Index,
    hot: Slots<Hot>,
    cold: Slots<Cold>,
    wide: Pool<Wide>,
    taken: Vec<u64>,
    /// The slot freed last, and one; its hot line's tag has the one freed before it. 0 for none.
    free: u64,
    /// Slots that were ever taken: all taken ones lie before this.
    touched: usize,
    pub(super) len: usize,
}

impl Slab {
    /// A slab for `flows`, at most 2³² − 1.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub(super) fn new(flows: usize) -> std::io::Result<Self> {
        Ok(Self {
            index: Index::new(flows)?,
            hot: Slots::new(flows)?,
            cold: Slots::new(flows)?,
            wide: Pool::new(flows)?,
            taken: vec![0; flows.div_ceil(64)],
            free: 0,
            touched: 0,
            len: 0,
        })
    }

    /// All taken slots lie before this.
    pub(super) const fn touched(&self) -> usize {
        self.touched
    }

    /// Whether every slot is taken.
    pub(super) const fn is_full(&self) -> bool {
        self.len == self.capacity()
    }

    /// How many flows there is room for.
    pub(super) const fn capacity(&self) -> usize {
        self.hot.as_slice().len()
    }

    /// First step of a look-up: the bucket of the index, which is being fetched from now on.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: KeyHash) -> u32 {
        self.index.prefetch(hash)
    }

    /// Second step: the slot where the flow probably stands, whose line is being fetched from now on.
    #[inline(always)]
    pub(super) fn guess(&self, hash: KeyHash, bucket: u32) -> u32 {
        let slot = self.index.guess(hash, bucket);
        prefetch(&self.hot.as_slice()[slot as usize]);
        slot
    }

    /// Third step: the slot where it does stand, if it does.
    #[inline]
    pub(super) fn settle(&self, hash: KeyHash, guess: u32) -> Option<usize> {
        let hot = self.hot.as_slice();
        if hot[guess as usize].tag == hash.tag { Some(guess as usize) } else { self.find(hash) }
    }

    /// All steps in one.
    pub(super) fn find(&self, hash: KeyHash) -> Option<usize> {
        let hot = self.hot.as_slice();
        self.index.find(hash, |slot| hot[slot as usize].tag == hash.tag).map(|slot| slot as usize)
    }

    /// Puts a flow that does not stand anywhere yet on a free slot, of which there must be one. Gives the slot.
    pub(super) fn put(&mut self, hash: KeyHash, cold: Cold, wide: Option<Wide>) -> usize {
        assert!(!self.is_full(), "whoever puts a flow has made room for it");
        let hot = self.hot.as_mut_slice();
        let at = if self.free == 0 {
            self.touched += 1;
            self.touched - 1
        } else {
            let at = self.free as usize - 1;
            self.free = hot[at].tag;
            at
        };
        hot[at] = Hot::new(hash.tag);
        self.cold.as_mut_slice()[at] = match wide {
            Some(wide) => cold.with_wide(self.wide.put(wide)),
            None => cold,
        };
        self.taken[at / 64] |= 1 << (at % 64);
        self.len += 1;
        self.index.add(hash, at as u32);
        at
    }

    /// Frees a slot.
    pub(super) fn remove(&mut self, at: usize, hasher: &KeyHasher) {
        let hash = self.hash(at, hasher);
        self.index.remove(hash, at as u32);
        if let Some(number) = self.cold.as_slice()[at].wide() {
            self.wide.give_back(number);
        }
        self.hot.as_mut_slice()[at].tag = self.free;
        self.free = at as u64 + 1;
        self.taken[at / 64] &= !(1 << (at % 64));
        self.len -= 1;
    }

    /// Starts fetching what [`remove`](Self::remove) of this slot will need.
    pub(super) fn prefetch_removal(&self, at: usize, hasher: &KeyHasher) {
        self.index.prefetch(self.hash(at, hasher));
    }

    fn hash(&self, at: usize, hasher: &KeyHasher) -> KeyHash {
        let cold = &self.cold.as_slice()[at];
        match cold.short_key() {
            Some(key) => hasher.hash_short(key),
            None => hasher.hash(&cold.key(self.wide_of(cold))),
        }
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

    /// The wide part of a flow, if it has one.
    pub(super) fn wide_of(&self, cold: &Cold) -> Option<&Wide> {
        cold.wide().map(|number| self.wide.get(number))
    }

    /// The first packet of a flow in its direction.
    pub(super) fn hear(&mut self, at: usize, packet: &Update, icmp_type_code: u16, tunnel: u32) {
        let cold = &mut self.cold.as_mut_slice()[at];
        let wide = cold.wide().map(|number| self.wide.get_mut(number));
        cold.hear(packet, icmp_type_code, tunnel, wide);
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
}
