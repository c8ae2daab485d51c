//! Chance that comes out the same each time: every actor has dice of its own, so that one more actor changes nothing for the others.

use std::time::Duration;

/// Numbers by SplitMix64 (Steele, Lea, Flood 2014), from a seed and a name.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of `name` in the world of `seed`.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut dice = Self(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.number();
        dice
    }

    /// Any number.
    pub(crate) const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end`, without it; 0 if that is 0.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        ((self.number() as u128 * end as u128) >> 64) as u64
    }

    /// 0 to 1, without 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether what happens with `probability` happens.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// A time about `middle`, evenly spread up to `part` of it to either side.
    pub(crate) fn around(&mut self, middle: Duration, part: f64) -> Duration {
        middle.mul_f64(1.0 + part * (self.share() * 2.0 - 1.0))
    }

    /// The time to an event that comes by chance, once in `mean`.
    pub(crate) fn wait(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.share()).ln())
    }

    /// A size of which half are below `median`, and one in forty above `spread` squared times that: log-normal.
    pub(crate) fn size(&mut self, median: f64, spread: f64) -> u64 {
        let normal = (-2.0 * (1.0 - self.share()).ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos();
        (median * spread.powf(normal)) as u64
    }

    /// One of `many`, the first ones far more often than the last (Zipf's law, about).
    pub(crate) fn favourite(&mut self, many: u64) -> u64 {
        ((many as f64).powf(self.share()) as u64 - 1).min(many - 1)
    }

    /// In any order.
    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// A port that a client takes.
    pub(crate) const fn client_port(&mut self) -> u16 {
        32_768 + self.below(28_232) as u16
    }
}
