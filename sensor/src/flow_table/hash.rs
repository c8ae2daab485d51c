//! A keyed hash of flow keys, so that nobody outside can aim packets at one place of the table.
//!
//! NH, the universal hash inside UMAC (RFC 4418 §5.2, with words of 64 bits instead of 32): for keys of fixed length two different
//! inputs collide with probability 2⁻⁶⁴ over the random secret. Two independent halves give the place in the table and the tag
//! that stands there for the key: three multiplications each, about as cheap as hashing without a secret.

use crate::decode::FlowKey;

/// Words in a flow key.
const WORDS: usize = 6;

/// Hashes flow keys with a secret.
#[derive(Clone, Copy)]
pub struct KeyHasher {
    home: [u64; WORDS],
    tag: [u64; WORDS],
    /// For flow ids, so that these, which leave the machine, say nothing about the other two.
    id: [u64; WORDS],
}

/// Where a key belongs, and what stands for it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyHash {
    /// Evenly spread; take the upper bits.
    pub home: u64,
    /// Never 0.
    pub tag: u64,
}

impl KeyHasher {
    /// A hasher with a secret from the operating system.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 3 * WORDS * 8];
        getrandom::fill(&mut bytes)?;
        let mut words = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word));
        Ok(Self::from_words(|| words.next().unwrap_or(0)))
    }

    /// A hasher whose secret anyone can know: the same capture file then gives the same bytes each time.
    pub fn fixed() -> Self {
        let mut state = 0_u64;
        Self::from_words(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        })
    }

    fn from_words(mut next: impl FnMut() -> u64) -> Self {
        let mut six = || std::array::from_fn(|_| next());
        Self { home: six(), tag: six(), id: six() }
    }

    /// Hashes `key`.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> KeyHash {
        let words = words(key);
        KeyHash { home: nh(&words, &self.home), tag: nh(&words, &self.tag).max(1) }
    }

    /// Another secret, made of this one, for hashing something else.
    pub fn secret(&self) -> [u64; 2] {
        [mix(self.id[0] ^ self.home[1]), mix(self.id[1] ^ self.tag[0])]
    }

    /// flowId (element 148) of a flow of `key`; `opened` tells it from the others of that key.
    pub fn flow_id(&self, key: &FlowKey, opened: i64) -> u64 {
        mix(nh(&words(key), &self.id) ^ mix(opened.cast_unsigned()))
    }
}

#[inline]
fn words(key: &FlowKey) -> [u64; WORDS] {
    let bytes: &[u8; size_of::<FlowKey>()] = bytemuck::cast_ref(key);
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Σ (m₂ᵢ + k₂ᵢ)·(m₂ᵢ₊₁ + k₂ᵢ₊₁) modulo 2¹²⁸, folded to 64 bits.
#[inline]
fn nh(words: &[u64; WORDS], secret: &[u64; WORDS]) -> u64 {
    let mut sum = 0_u128;
    for i in [0, 2, 4] {
        let left = u128::from(words[i].wrapping_add(secret[i]));
        let right = u128::from(words[i + 1].wrapping_add(secret[i + 1]));
        sum = sum.wrapping_add(left.wrapping_mul(right));
    }
    mix((sum >> 64) as u64 ^ sum as u64)
}

/// A bijection of 64 bits that spreads every input bit over all output bits (the finaliser of SplitMix64).
#[inline]
const fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    #[test]
    fn a_million_scan_probes_spread_evenly_and_never_share_a_tag() {
        let hasher = KeyHasher::fixed();
        let mut tags = std::collections::HashSet::new();
        let mut buckets = vec![0_u32; 1024];
        for n in 0..1_000_000_u32 {
            let key = FlowKey { b_port: n as u16, detail: (n >> 16) as u16, ..FlowKey::zeroed() };
            let hash = hasher.hash(&key);
            tags.insert(hash.tag);
            buckets[(hash.home >> 54) as usize] += 1;
        }
        assert_eq!(tags.len(), 1_000_000);
        // 976.6 expected per bucket, σ = 31.2; six σ either way.
        assert!(buckets.iter().all(|&n| (789..=1164).contains(&n)), "{:?}", (buckets.iter().min(), buckets.iter().max()));
    }

    #[test]
    fn every_byte_of_the_key_matters() {
        let hasher = KeyHasher::fixed();
        let zero = hasher.hash(&FlowKey::zeroed());
        for byte in 0..48 {
            let mut bytes = [0_u8; 48];
            bytes[byte] = 1;
            let hash = hasher.hash(&bytemuck::pod_read_unaligned(&bytes));
            assert!(hash.tag != zero.tag && hash.home != zero.home, "byte {byte}");
        }
    }
}
