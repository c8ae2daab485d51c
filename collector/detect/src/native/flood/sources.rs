//! Who sends a flood: how scattered its sources are, and who among them sends most.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;

/// Places that sources are spread over; ten bits of entropy are the most.
const BUCKETS: usize = 1 << 10;
/// Sources kept by name. Whoever sends more than a ninth of it all is among them.
const NAMED_MAX: usize = 8;
/// After so many rows it is looked anew how scattered they are; before, at each.
const SCATTER_EVERY: u64 = 256;
/// Odd, with no pattern in its bits: the golden ratio's fraction.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The sources of one flood: 2 KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sources {
    buckets: Vec<u16>,
    total: u64,
    rows: u64,
    /// What [`effective`](Self::effective) said lately.
    scatter: f64,
    /// Heavy hitters (Misra and Gries, 1982): counts are too small by at most a ninth of the total.
    named: Vec<(u128, u64)>,
    /// Some came in aggregates, whose sources are whole prefixes.
    pub(super) has_prefixes: bool,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            total: 0,
            rows: 0,
            scatter: 0.0,
            named: Vec::with_capacity(NAMED_MAX),
            has_prefixes: false,
        }
    }
}

impl Sources {
    /// Counts `times` for `source`.
    pub(super) fn insert(&mut self, source: Address, times: u64) {
        let folded = (source.0 as u64 ^ (source.0 >> 64) as u64).wrapping_mul(SPREAD);
        let bucket = (folded >> (64 - BUCKETS.trailing_zeros())) as usize;
        if self.buckets[bucket] == u16::MAX {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
        }
        self.buckets[bucket] += 1;
        self.total += times;
        self.rows += 1;
        if self.rows < SCATTER_EVERY || self.rows.is_multiple_of(SCATTER_EVERY) {
            self.scatter = self.effective();
        }
        if let Some((_, count)) = self.named.iter_mut().find(|(known, _)| *known == source.0) {
            *count += times;
        } else if self.named.len() < NAMED_MAX {
            self.named.push((source.0, times));
        } else {
            let least = self.named.iter().map(|&(_, count)| count).min().unwrap_or(0).min(times);
            self.named.iter_mut().for_each(|(_, count)| *count -= least);
            self.named.retain(|&(_, count)| count > 0);
            if times > least {
                self.named.push((source.0, times - least));
            }
        }
    }

    /// Shannon entropy of the source addresses over 2^10 buckets, in bits: 0 from one source, near 10 from everywhere.
    pub(super) fn entropy(&self) -> f64 {
        let total: f64 = self.buckets.iter().map(|&count| f64::from(count)).sum();
        let share = |&count: &u16| f64::from(count) / total;
        self.buckets.iter().filter(|&&count| count > 0).map(share).map(|share| -share * share.log2()).sum()
    }

    /// How many equally busy sources would be as scattered; up to 1,024.
    pub(super) fn effective(&self) -> f64 {
        self.entropy().exp2()
    }

    /// [`effective`](Self::effective) as of at most [`SCATTER_EVERY`] rows ago.
    pub(super) const fn scatter(&self) -> f64 {
        self.scatter
    }

    /// Those who sent a tenth of it and more, the busiest first, each with its share.
    pub(super) fn busiest(&self) -> Vec<(Address, f64)> {
        let mut named: Vec<(u128, f64)> =
            self.named.iter().map(|&(host, count)| (host, count as f64 / self.total as f64)).collect();
        named.retain(|&(_, share)| share >= 0.1);
        named.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        named.into_iter().map(|(host, share)| (Address(host), share)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_tells_one_source_from_four_and_from_everywhere() {
        let spread = |hosts: u128| {
            let mut sources = Sources::default();
            (0..20_000).for_each(|i| sources.insert(Address(i % hosts + 1), 1));
            sources
        };
        assert_eq!(spread(1).entropy(), 0.0);
        assert!((spread(4).effective() - 4.0).abs() < 1e-9);
        assert_eq!(spread(4).busiest().len(), 4);
        assert!(spread(20_000).entropy() > 9.8 && spread(20_000).busiest().is_empty());
        // Half of it all by one, the rest by everybody.
        let mut mixed = spread(10_000);
        (0..20_000).for_each(|_| mixed.insert(Address(7), 1));
        let [(host, share)] = mixed.busiest()[..] else { panic!("{:?}", mixed.busiest()) };
        assert!(host == Address(7) && (0.38..0.51).contains(&share), "{share}");
    }
}
