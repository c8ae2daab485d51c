//! Maps for keys of a few numbers, looked up once per row and rule.
//!
//! The standard hasher costs more than the rest of a rule together. This one folds 64-bit words, of an address both at once, by wide
//! multiplication, and starts from a number that is new in each process, so that nobody can choose addresses that fall into one place.
//! What a detector says never depends on the order within a map.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// A map with the quick hasher.
pub(crate) type Map<K, V> = HashMap<K, V, Quick>;

/// Memory that the table of `map` takes, in octets, without what its values hold elsewhere.
pub(crate) fn table_bytes<K, V>(map: &Map<K, V>) -> usize {
    // Seven of eight places are used at most, and their number is a power of two; each has a control byte.
    let places = if map.capacity() == 0 { 0 } else { (map.capacity() * 8 / 7).next_power_of_two() };
    places * (size_of::<(K, V)>() + 1)
}

/// Makes [`Folded`] hashers, all of a process from the same secret.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quick(u64);

impl Default for Quick {
    fn default() -> Self {
        static SECRET: OnceLock<u64> = OnceLock::new();
        Self(*SECRET.get_or_init(|| RandomState::new().hash_one(0_u8)))
    }
}

impl BuildHasher for Quick {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// The state of one hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Folded(u64);

/// Odd, with no pattern in its bits: the golden ratio's fraction.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Folded {
    fn fold(&mut self, word: u64) {
        self.fold_two(word, 0);
    }

    fn fold_two(&mut self, low: u64, high: u64) {
        // The upper half of the product knows all bits below, the lower half all bits above.
        let wide = u128::from(self.0 ^ low) * u128::from(self.0.rotate_left(32) ^ SPREAD ^ high);
        self.0 = (wide as u64).rotate_left(23) ^ (wide >> 64) as u64;
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.fold(u64::from_le_bytes(word) ^ (part.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.fold(u64::from(n));
    }

    fn write_u16(&mut self, n: u16) {
        self.fold(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.fold(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }

    fn write_u128(&mut self, n: u128) {
        self.fold_two(n as u64, (n >> 64) as u64);
    }

    fn write_usize(&mut self, n: usize) {
        self.fold(n as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = *self;
        last.fold(SPREAD);
        last.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_fall_into_different_places() {
        let quick = Quick::default();
        // Low bits choose a map's place, the upper seven tell apart what fell there.
        for shift in [0, 8, 32, 64, 80, 120] {
            let hashes: Vec<u64> = (0..4_096_u128).map(|host| quick.hash_one((0xffff_u128 << 32) ^ (host << shift))).collect();
            let distinct =
                |cut: fn(u64) -> u64| hashes.iter().map(|&hash| cut(hash)).collect::<std::collections::HashSet<u64>>().len();
            let hosts = if shift == 120 { 256.0 } else { 4_096.0_f64 };
            // So many balls into 65,536 bins leave so many hit on average: 3,971 of 4,096.
            let expected = 65_536.0 * (1.0 - (-hosts / 65_536.0_f64).exp());
            assert!(distinct(|hash| hash & 0xffff) as f64 > expected - 120.0, "{shift}: low bits");
            assert!(distinct(|hash| hash >> 48) as f64 > expected - 120.0, "{shift}: high bits");
        }
        let pairs: std::collections::HashSet<u64> = (0..4_096_u128).map(|i| quick.hash_one((i & 63, i >> 6)) & 0xffff).collect();
        assert!(pairs.len() > 3_850, "pairs: {}", pairs.len());
    }
}
