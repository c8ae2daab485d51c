//! A keyed hash of flow keys, so that nobody outside can aim packets at one place of the table.
//!
//! NH, the universal hash inside UMAC (RFC 4418 §5.2, with words of 64 bits instead of 32): for keys of fixed length two different
//! inputs collide with probability 2⁻⁶⁴ over the random secret. Two independent halves give the place in the table and the tag
//! that stands there for the key.
//!
//! Nearly every key is IPv4 and says no more than addresses, ports, protocol and VLAN. Such a [`ShortKey`] fills two words, and one
//! multiplication hashes it, with secrets of its own; all others take three. Each half is as cheap as hashing without a secret.

use crate::decode::{FlowKey, ShortKey};

/// Words in a flow key.
const WORDS: usize = 6;

/// Hashes flow keys with a secret.
#[derive(Clone, Copy)]
pub struct KeyHasher {
    short: [u64; 4],
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
    /// The uppermost bit is set.
    pub tag: u64,
}

impl KeyHasher {
    /// A hasher with a secret from the operating system.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; (3 * WORDS + 4) * 8];
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
        let (home, tag, id) = (six(), six(), six());
        Self { short: std::array::from_fn(|_| next()), home, tag, id }
    }

    /// Hashes `key`.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> KeyHash {
        match ShortKey::of(key) {
            Some(short) => self.hash_short(short),
            None => {
                let words = words(key);
                KeyHash { home: mix(nh(&words, &self.home)), tag: nh(&words, &self.tag) | TAG }
            }
        }
    }

    /// The same for a key that is short.
    #[inline(always)]
    pub const fn hash_short(&self, key: ShortKey) -> KeyHash {
        let [a, b, c, d] = self.short;
        let home = fold(key.addresses.wrapping_add(a), key.rest.wrapping_add(b));
        KeyHash { home: home.wrapping_mul(SPREAD), tag: fold(key.addresses.wrapping_add(c), key.rest.wrapping_add(d)) | TAG }
    }

    /// Another secret, made of this one, for hashing something else.
    pub fn secret(&self) -> [u64; 2] {
        [mix(self.id[0] ^ self.home[1]), mix(self.id[1] ^ self.tag[0])]
    }

    /// flowId (element 148) of a flow of `key`; `opened` tells it from the others of that key.
    ///
    /// The time at which the flow opened, with a hash of the key added to its upper 40 bits: of two flows that opened at the same nanosecond
    /// (or whole multiples of 16.8 ms apart) one pair in 2⁴⁰ has the same id, and no other. In a batch an id then takes five octets
    /// beside the time, where a hash of everything took eight.
    pub fn flow_id(&self, key: &FlowKey, opened: i64) -> u64 {
        opened.cast_unsigned().wrapping_add(mix(nh(&words(key), &self.id)) << 24)
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
    (sum >> 64) as u64 ^ sum as u64
}

/// NH of two words, folded.
#[inline]
const fn fold(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    (product >> 64) as u64 ^ product as u64
}

/// Set in every tag, so that none can be taken for what stands in a free slot.
const TAG: u64 = 1 << 63;
/// 2⁶⁴ divided by the golden ratio: carries what tells short keys apart up into the bits that choose the place.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

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
    use crate::decode::Kind;

    #[test]
    fn a_million_scan_probes_spread_evenly_and_never_share_a_tag() {
        let hasher = KeyHasher::fixed();
        // Short keys and long ones; ports that count up, as in a scan of ports, and addresses, as in a sweep.
        let scans: [fn(u32) -> FlowKey; 4] = [
            |n| FlowKey { b_port: n as u16, detail: (n >> 16) as u16, ..FlowKey::NONE },
            |n| FlowKey { a_port: (n >> 16) as u16, b_port: n as u16, kind: Kind::Ipv4 as u8, protocol: 6, ..FlowKey::NONE },
            |n| FlowKey { b: mapped(0x0a00_0000 + n), b_port: 80, kind: Kind::Ipv4 as u8, protocol: 6, ..FlowKey::NONE },
            |n| FlowKey { a: mapped(n << 12), b: mapped(!n), kind: Kind::Ipv4 as u8, protocol: 6, ..FlowKey::NONE },
        ];
        for scan in scans {
            let mut tags = std::collections::HashSet::new();
            let mut buckets = vec![0_u32; 1024];
            for n in 0..1_000_000 {
                let hash = hasher.hash(&scan(n));
                tags.insert(hash.tag);
                buckets[(hash.home >> 54) as usize] += 1;
            }
            assert_eq!(tags.len(), 1_000_000);
            // 976.6 expected per bucket, σ = 31.2; six σ either way.
            assert!(buckets.iter().all(|&n| (789..=1164).contains(&n)), "{:?}", (buckets.iter().min(), buckets.iter().max()));
        }
    }

    fn mapped(address: u32) -> [u8; 16] {
        (0xffff_0000_0000 | u128::from(address)).to_be_bytes()
    }

    #[test]
    fn every_byte_of_the_key_matters() {
        let hasher = KeyHasher::fixed();
        for base in [FlowKey::NONE, FlowKey { a: mapped(0), b: mapped(0), kind: Kind::Ipv4 as u8, ..FlowKey::NONE }] {
            let zero = hasher.hash(&base);
            for byte in 0..48 {
                let mut bytes: [u8; 48] = bytemuck::cast(base);
                bytes[byte] ^= 1;
                let hash = hasher.hash(&bytemuck::pod_read_unaligned(&bytes));
                assert!(hash.tag != zero.tag && hash.home != zero.home, "byte {byte}");
            }
        }
    }
}
