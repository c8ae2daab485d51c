//! How many different values were seen: exactly up to a thousand, then closely.
//!
//! KQL's `dcount` is exact up to 1,000 at its default accuracy, so every decision below that agrees with it. Beyond, the values
//! become a HyperLogLog sketch (Flajolet et al. 2007) of 2^14 registers, read with the estimator of Ertl (arXiv 1702.01284,
//! algorithm 6), which needs no correction tables; its standard error is 0.81 %. A counter holds at most 17 KiB.

use serde::{Deserialize, Serialize};

/// Up to here a count is exact.
pub const EXACT_MAX: usize = 1_000;
/// How many examples a counter can name.
pub const EXAMPLES_MAX: usize = 20;

/// Registers are chosen by this many bits of the hash.
const INDEX_BITS: u32 = 14;
/// The rest of the hash: ranks run from 0 (never hit) to `RANK_BITS + 1`.
const RANK_BITS: u32 = 64 - INDEX_BITS;

/// A counter of distinct values. What it says depends on the set of values only, never on their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    shape: Shape,
    /// Up to here the count is exact.
    exact_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Shape {
    /// All values, ascending.
    Exact(Vec<u128>),
    Sketch(Box<Sketch>),
}

impl Default for Card {
    fn default() -> Self {
        Self::exact_to(EXACT_MAX)
    }
}

impl Card {
    /// One that is exact up to `exact_max`, at 16 octets for each value, for where KQL counts a set and not a `dcount`.
    pub const fn exact_to(exact_max: usize) -> Self {
        Self { shape: Shape::Exact(Vec::new()), exact_max }
    }

    /// Counts `value`; says whether the counter changed.
    pub fn insert(&mut self, value: u128) -> bool {
        match &mut self.shape {
            Shape::Exact(values) => {
                let Err(place) = values.binary_search(&value) else { return false };
                values.insert(place, value);
                if values.len() > self.exact_max {
                    let sketch = Sketch::of(values);
                    self.shape = Shape::Sketch(Box::new(sketch));
                }
                true
            }
            Shape::Sketch(sketch) => sketch.insert(value),
        }
    }

    /// How many different values were counted.
    pub fn count(&self) -> u64 {
        match &self.shape {
            Shape::Exact(values) => values.len() as u64,
            Shape::Sketch(sketch) => sketch.estimate(),
        }
    }

    /// The smallest values counted, ascending, at most [`EXAMPLES_MAX`].
    pub fn examples(&self) -> &[u128] {
        match &self.shape {
            Shape::Exact(values) => values.get(..EXAMPLES_MAX).unwrap_or(values),
            Shape::Sketch(sketch) => sketch.least.values(),
        }
    }

    /// Takes in what `other` counted, as if its values had been counted here.
    pub fn merge(&mut self, other: &Self) {
        match &other.shape {
            Shape::Exact(values) => values.iter().for_each(|&value| {
                self.insert(value);
            }),
            Shape::Sketch(theirs) => {
                if let Shape::Exact(values) = &self.shape {
                    self.shape = Shape::Sketch(Box::new(Sketch::of(values)));
                }
                if let Shape::Sketch(ours) = &mut self.shape {
                    ours.merge(theirs);
                }
            }
        }
    }
}

/// The smallest values of a set, at most [`EXAMPLES_MAX`]: examples that do not depend on the order of events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Least(Vec<u128>);

impl Least {
    /// Considers `value`.
    pub fn insert(&mut self, value: u128) {
        if self.0.len() == EXAMPLES_MAX && self.0.last().is_some_and(|&last| value > last) {
            return;
        }
        if let Err(place) = self.0.binary_search(&value) {
            self.0.insert(place, value);
            self.0.truncate(EXAMPLES_MAX);
        }
    }

    /// The values, ascending.
    pub fn values(&self) -> &[u128] {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SavedSketch", into = "SavedSketch")]
struct Sketch {
    /// Highest rank met per register.
    ranks: Vec<u8>,
    /// How many registers stand at each rank, kept up to date so that reading is cheap.
    at_rank: [u32; RANK_BITS as usize + 2],
    least: Least,
}

/// What is saved of a sketch: how many registers stand at each rank follows from the ranks.
#[derive(Serialize, Deserialize)]
struct SavedSketch {
    #[serde(with = "serde_bytes")]
    ranks: Vec<u8>,
    least: Least,
}

impl From<Sketch> for SavedSketch {
    fn from(sketch: Sketch) -> Self {
        Self { ranks: sketch.ranks, least: sketch.least }
    }
}

impl From<SavedSketch> for Sketch {
    fn from(saved: SavedSketch) -> Self {
        let mut sketch = Self::of(&[]);
        // Bytes that somebody changed may hold anything: what is too many or too high is left out.
        for (register, rank) in saved.ranks.into_iter().take(1 << INDEX_BITS).enumerate() {
            sketch.raise(register, rank.min(RANK_BITS as u8 + 1));
        }
        sketch.least = saved.least;
        sketch
    }
}

impl Sketch {
    fn of(values: &[u128]) -> Self {
        let mut at_rank = [0; RANK_BITS as usize + 2];
        at_rank[0] = 1 << INDEX_BITS;
        let mut sketch = Self { ranks: vec![0; 1 << INDEX_BITS], at_rank, least: Least::default() };
        for &value in values {
            sketch.insert(value);
        }
        sketch
    }

    fn insert(&mut self, value: u128) -> bool {
        self.least.insert(value);
        let hash = mix(value);
        let rank = (hash << INDEX_BITS).leading_zeros().min(RANK_BITS) as u8 + 1;
        self.raise((hash >> RANK_BITS) as usize, rank)
    }

    fn raise(&mut self, register: usize, rank: u8) -> bool {
        let current = self.ranks[register];
        if rank <= current {
            return false;
        }
        self.at_rank[usize::from(current)] -= 1;
        self.at_rank[usize::from(rank)] += 1;
        self.ranks[register] = rank;
        true
    }

    fn merge(&mut self, other: &Self) {
        for (register, &rank) in other.ranks.iter().enumerate() {
            self.raise(register, rank);
        }
        for &value in other.least.values() {
            self.least.insert(value);
        }
    }

    fn estimate(&self) -> u64 {
        let m = f64::from(1_u32 << INDEX_BITS);
        let mut z = m * tau(1.0 - f64::from(self.at_rank[RANK_BITS as usize + 1]) / m);
        for rank in (1..=RANK_BITS as usize).rev() {
            z = 0.5 * (z + f64::from(self.at_rank[rank]));
        }
        z += m * sigma(f64::from(self.at_rank[0]) / m);
        (m * m / (2.0 * std::f64::consts::LN_2 * z)).round() as u64
    }
}

/// Ertl's σ: what the registers that were never hit contribute.
fn sigma(share: f64) -> f64 {
    if share >= 1.0 {
        return f64::INFINITY;
    }
    let (mut x, mut y, mut z) = (share, 1.0, share);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z <= before {
            return z;
        }
    }
}

/// Ertl's τ: what the registers that can rise no further contribute.
fn tau(share: f64) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        return 0.0;
    }
    let (mut x, mut y, mut z) = (share, 1.0, 1.0 - share);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z >= before {
            return z / 3.0;
        }
    }
}

/// Spreads a value over 64 bits (the finaliser of splitmix64 over both halves). The same in every run, so that replays agree.
fn mix(value: u128) -> u64 {
    let finish = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    finish((value as u64).wrapping_add(finish(((value >> 64) as u64).wrapping_add(0x9e37_79b9_7f4a_7c15))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(values: impl IntoIterator<Item = u128>) -> Card {
        let mut card = Card::default();
        for value in values {
            card.insert(value);
        }
        card
    }

    #[test]
    fn counts_exactly_to_a_thousand() {
        for n in [0, 1, 7, 999, 1_000] {
            let card = counted((0..n).chain(0..n).map(|i| i * 7_919));
            assert_eq!(card.count(), n as u64);
        }
    }

    #[test]
    fn stays_within_two_percent_beyond() {
        for (n, stride) in [(1_001_u128, 1_u128), (5_000, 1), (40_000, 3), (100_000, 1), (100_000, 1 << 70), (1_000_000, 256)] {
            let estimate = counted((0..n).map(|i| i * stride)).count() as f64;
            let error = (estimate - n as f64).abs() / n as f64;
            assert!(error < 0.02, "{n} values {stride} apart were counted as {estimate}");
        }
    }

    #[test]
    fn order_does_not_matter_and_merging_is_counting() {
        let forward = counted(0..3_000);
        assert_eq!(forward, counted((0..3_000).rev()));
        for split in [10, 500, 1_500, 2_995] {
            let mut merged = counted(0..split);
            merged.merge(&counted(split..3_000));
            assert_eq!(merged, forward, "split at {split}");
        }
        assert_eq!(forward.examples(), (0..20).collect::<Vec<u128>>());
    }
}
