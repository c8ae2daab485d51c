//! Recognising exact duplicates, in bounded memory.

/// A 64-bit hash: 16 bytes at a time, mixed by folding a 128-bit product.
///
/// Two different tuples agree by accident once in 2⁶⁴ pairs.
#[inline]
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xd1b5_4a32_d192_ed03;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let mut state = seed ^ A;
    let mut rest = bytes;
    while let Some((pair, after)) = rest.split_first_chunk::<16>() {
        let pair = u128::from_le_bytes(*pair);
        state = fold(pair as u64 ^ A ^ state.rotate_left(23), (pair >> 64) as u64 ^ B ^ state);
        rest = after;
    }
    let mut tail = [0; 16];
    if let Some(start) = tail.get_mut(..rest.len()) {
        start.copy_from_slice(rest);
    }
    let tail = u128::from_le_bytes(tail);
    state = fold(tail as u64 ^ A ^ state.rotate_left(23), (tail >> 64) as u64 ^ B ^ state);
    fold(state ^ bytes.len() as u64, A)
}

/// The hashes of the tuples seen last: at least `remembered`, at most twice as many.
///
/// Two tables; when the younger one is full, the elder one is forgotten and they change places. 16 bytes per remembered tuple and
/// table, allocated as they fill.
#[derive(Debug)]
pub(crate) struct Seen {
    young: Table,
    old: Table,
    remembered: usize,
}

impl Seen {
    /// Zero turns the recognition off.
    pub(crate) const fn new(remembered: usize) -> Self {
        Self { young: Table::EMPTY, old: Table::EMPTY, remembered }
    }

    /// Looks at the first slot of `hash` in either table, so that the memory is there when [`is_new`](Self::is_new) asks.
    #[inline]
    pub(crate) fn glance(&self, hash: u64) -> Glance {
        Glance { young: self.young.first(hash), old: self.old.first(hash) }
    }

    /// Takes note of `hash`; false if it was there already.
    #[inline]
    pub(crate) fn is_new(&mut self, hash: u64, glance: Glance) -> bool {
        // Zero marks a free slot.
        let hash = hash.max(1);
        if self.remembered == 0 {
            return true;
        }
        if glance.young == hash
            || glance.old == hash
            || glance.old != 0 && self.old.contains(hash)
            || !self.young.insert(hash, self.remembered)
        {
            return false;
        }
        if self.young.filled >= self.remembered {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        true
    }
}

/// What was in the first slots: a hash, or 0.
#[derive(Clone, Copy)]
pub(crate) struct Glance {
    young: u64,
    old: u64,
}

/// Open addressing with linear probing, at most half full.
#[derive(Debug)]
struct Table {
    slots: Vec<u64>,
    filled: usize,
}

impl Table {
    const EMPTY: Self = Self { slots: Vec::new(), filled: 0 };

    #[inline]
    fn first(&self, hash: u64) -> u64 {
        self.slots.get(hash as usize & self.slots.len().wrapping_sub(1)).copied().unwrap_or(0)
    }

    #[inline]
    fn place(&self, hash: u64) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return Err(slot),
                there if there == hash => return Ok(slot),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    #[inline]
    fn contains(&self, hash: u64) -> bool {
        self.filled > 0 && self.place(hash).is_ok()
    }

    /// False if it was there. Room is made in few steps, for every step moves all that is there.
    #[inline]
    fn insert(&mut self, hash: u64, filled_max: usize) -> bool {
        const SLOTS_MIN: usize = 1 << 10;
        if self.filled * 2 >= self.slots.len() {
            let enough = filled_max.saturating_mul(2).checked_next_power_of_two().unwrap_or(usize::MAX).max(self.slots.len() * 2);
            let grown = vec![0; (self.slots.len() * 4).max(SLOTS_MIN).min(enough)];
            for there in std::mem::replace(&mut self.slots, grown).into_iter().filter(|&there| there != 0) {
                if let Err(slot) = self.place(there) {
                    self.slots[slot] = there;
                }
            }
        }
        match self.place(hash) {
            Ok(_) => false,
            Err(slot) => {
                self.slots[slot] = hash;
                self.filled += 1;
                true
            }
        }
    }

    fn clear(&mut self) {
        self.slots.fill(0);
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn duplicates_are_recognised_as_long_as_promised() {
        let mut seen = Seen::new(1000);
        let is_new = |seen: &mut Seen, value: u64| {
            let hash = hash(0, &value.to_le_bytes());
            let glance = seen.glance(hash);
            seen.is_new(hash, glance)
        };
        for value in 0..10_000_u64 {
            assert!(is_new(&mut seen, value));
            let before = value.saturating_sub(999);
            assert!(!is_new(&mut seen, before), "{before} after {value}");
        }
        assert!(seen.young.slots.len() <= 4096 && seen.old.slots.len() <= 4096, "memory is bounded");
        assert!(is_new(&mut seen, 0), "what lies far back is forgotten");
    }

    #[test]
    fn hashes_of_near_texts_differ_in_every_part() {
        let texts: Vec<String> = (0..100_000).map(|n| format!("1700000000,192.0.2.{},198.51.100.1,{n},443", n % 256)).collect();
        for shift in [0, 22, 44] {
            let parts: HashSet<u64> = texts.iter().map(|text| hash(7, text.as_bytes()) >> shift & 0xf_ffff).collect();
            // 2²⁰·(1 − e^(−100,000 / 2²⁰)) = 95,381 different values of 20 bits are expected, give or take 70.
            assert!((94_900..95_900).contains(&parts.len()), "{} at {shift}", parts.len());
        }
        assert_ne!(hash(0, b"a"), hash(0, b"a\0"));
        assert_ne!(hash(0, b"a"), hash(1, b"a"));
    }
}
