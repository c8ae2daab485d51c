//! The gate in front of the table: only what is busy becomes an entry.
//!
//! A count-min sketch of one second (Cormode and Muthukrishnan, 2005; with conservative update): two rows of counters, of which a key
//! raises the smaller. What it says is never too small, and too large only where two keys share both counters. A scan of a million
//! hosts passes it without leaving a trace; a service that is asked often enters the table within the second.
//!
//! The hash has no secret, so that a replay says the same each time. Who makes keys meet on purpose lets a quiet service into the
//! table, where it is judged by its own numbers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::measure::Key;

/// Counters of a row; there are two rows, 256 KiB in all.
const COUNTERS: usize = 1 << 15;
/// Odd, with no pattern in their bits: fractions of the golden ratio and of the square root of 3.
const SPREADS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbb67_ae85_84ca_a73b];

/// From so many counters on that were raised in a second, it is quicker to clear all of them.
const RAISED_MAX: usize = 1 << 12;

/// How much came for each key in this second.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    second: i64,
    counters: Vec<u32>,
    /// Places of the counters that are not zero, while they are fewer than [`RAISED_MAX`].
    raised: Vec<u32>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { second: 0, counters: vec![0; 2 * COUNTERS], raised: Vec::new() }
    }
}

impl Gate {
    /// Counts `amount` for `key` in `second`; what comes of earlier seconds counts with the newest. Returns how much came for the key in
    /// it so far.
    pub(super) fn add(&mut self, key: &Key, amount: u32, second: i64) -> u32 {
        if second > self.second {
            self.second = second;
            self.clear();
        }
        let places = [place(key, SPREADS[0]), COUNTERS + place(key, SPREADS[1])];
        let total = places.map(|place| self.counters[place]).into_iter().min().unwrap_or(0).saturating_add(amount);
        for place in places {
            self.raise(place, total);
        }
        total
    }

    fn raise(&mut self, place: usize, total: u32) {
        let counter = &mut self.counters[place];
        if *counter == 0 && total > 0 && self.raised.len() < RAISED_MAX {
            self.raised.push(place as u32);
        }
        *counter = total.max(*counter);
    }

    fn clear(&mut self) {
        if self.raised.len() < RAISED_MAX {
            self.raised.iter().for_each(|&place| self.counters[place as usize] = 0);
        } else {
            self.counters.fill(0);
        }
        self.raised.clear();
    }

    /// Memory that it holds, in octets.
    pub(super) const fn bytes() -> usize {
        (2 * COUNTERS + RAISED_MAX) * size_of::<u32>()
    }
}

fn place(key: &Key, spread: u64) -> usize {
    let service = u64::from(key.protocol) << 16 | u64::from(key.port);
    let words = [key.victim as u64, (key.victim >> 64) as u64, service];
    let folded = words.into_iter().fold(spread, |folded, word| {
        let wide = u128::from(folded ^ word) * u128::from(spread);
        (wide as u64).rotate_left(23) ^ (wide >> 64) as u64
    });
    (folded.wrapping_mul(spread) >> (64 - COUNTERS.trailing_zeros())) as usize
}

impl Serialize for Gate {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let taken: Vec<(usize, u32)> = self.counters.iter().copied().enumerate().filter(|&(_, count)| count > 0).collect();
        (self.second, taken).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Gate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (second, taken) = <(i64, Vec<(usize, u32)>)>::deserialize(from)?;
        let mut gate = Self { second, ..Self::default() };
        for (place, count) in taken {
            if place >= gate.counters.len() {
                return Err(serde::de::Error::custom("a counter that there is not"));
            }
            gate.raise(place, count);
        }
        Ok(gate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_of_a_hundred_thousand_hosts_hides_no_busy_service_and_makes_none() {
        let mut gate = Gate::default();
        let key = |victim: u128| Key { victim, port: 80, protocol: 6 };
        let mut seeming = 0;
        for host in 0..100_000_u128 {
            seeming += usize::from(gate.add(&key(host << 8 | 7), 1, 5) >= 50);
        }
        assert_eq!(seeming, 0, "100,000 over 32,768 counters are 3 each");
        let busy = (0..100).map(|_| gate.add(&key(1), 1, 5)).last();
        assert!(busy.is_some_and(|count| (100..110).contains(&count)), "{busy:?}");
        assert_eq!(gate.add(&key(1), 1, 6), 1, "a second later");
        assert!(gate.counters.iter().sum::<u32>() == 2, "many counters were cleared");
        (2..9).for_each(|second| _ = gate.add(&key(2), 1, 5 + second));
        assert!(gate.counters.iter().sum::<u32>() == 2, "few counters were cleared");
    }
}
