//! Sets of addresses as the fewest prefixes.

use std::collections::BTreeSet;

use spanwatch_common::net::{Address, Prefix};

/// The bits of an IPv4 prefix of length 0, in the 128-bit form.
const V4_BITS: u8 = 96;

/// The fewest prefixes that together hold all of `addresses` and nothing else, ascending.
pub(super) fn cover(addresses: &BTreeSet<Address>) -> Vec<Prefix> {
    join(addresses.iter().map(|&address| Prefix::new(address, 128)))
}

/// `prefixes`, ascending and without overlap, with neighbours joined that fill a larger prefix.
fn join(prefixes: impl Iterator<Item = Prefix>) -> Vec<Prefix> {
    let mut joined: Vec<Prefix> = Vec::new();
    for mut prefix in prefixes {
        // The last one and this one fill their common parent when they have the same length and only the last bit differs.
        while let Some(&last) = joined.last() {
            let parent = Prefix::new(prefix.first(), prefix.bits().saturating_sub(1));
            let fill = last.bits() == prefix.bits() && prefix.bits() > 0 && last != prefix && parent.contains(last.first());
            if !fill || (parent.bits() < V4_BITS && prefix.first().as_v4().is_some()) {
                break;
            }
            joined.pop();
            prefix = parent;
        }
        joined.push(prefix);
    }
    joined
}

/// How far sources may be widened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Widening {
    /// Length of IPv4 prefixes, 0 to 32.
    pub(super) v4: u8,
    /// Length of IPv6 prefixes, 0 to 128.
    pub(super) v6: u8,
}

/// As [`cover`], but two or more addresses that share a prefix of the length in `widening` stand for all of it.
pub(super) fn cover_widened(addresses: &BTreeSet<Address>, widening: Widening) -> Vec<Prefix> {
    let mut wide: Vec<Prefix> = Vec::new();
    let mut rest = addresses.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let bits = if first.as_v4().is_some() { V4_BITS + widening.v4 } else { widening.v6 };
        let parent = Prefix::new(first, bits);
        let mut count = 1;
        while rest.next_if(|&next| parent.contains(next)).is_some() {
            count += 1;
        }
        wide.push(if count > 1 { parent } else { Prefix::new(first, 128) });
    }
    join(wide.into_iter())
}

/// How many addresses `prefixes`, which do not overlap, hold together; capped at the largest number there is.
pub(super) fn size(prefixes: &[Prefix]) -> u128 {
    let size = |prefix: &Prefix| (prefix.last().0 - prefix.first().0).saturating_add(1);
    prefixes.iter().map(size).fold(0, u128::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> BTreeSet<Address> {
        texts.iter().map(|text| text.parse().expect("a literal")).collect()
    }

    fn texts(prefixes: &[Prefix]) -> Vec<String> {
        prefixes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn neighbours_are_joined_and_strangers_are_not() {
        let seen =
            set(&["192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.5", "192.0.2.6", "2001:db8::2", "2001:db8::3"]);
        assert_eq!(texts(&cover(&seen)), ["192.0.2.0/30", "192.0.2.5/32", "192.0.2.6/32", "2001:db8::2/127"]);
        assert!(cover(&BTreeSet::new()).is_empty());
    }

    /// All subsets' worth of shapes: 3,000 sets of neighbours, dense and sparse, from a fixed sequence of numbers.
    #[test]
    fn any_set_is_covered_exactly_and_by_prefixes_none_of_which_could_be_joined() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let bases: [Address; 3] = ["192.0.2.0", "255.255.255.128", "2001:db8::ffc0"].map(|text| text.parse().expect("a literal"));
        for round in 0..3_000 {
            let base = bases[round % 3];
            let density = random() % 100;
            let seen: BTreeSet<Address> =
                (0..64).filter(|_| random() % 100 < density).map(|offset| Address(base.0 + offset)).collect();
            let prefixes = cover(&seen);
            let covered: Vec<u128> = prefixes.iter().flat_map(|prefix| prefix.first().0..=prefix.last().0).collect();
            assert_eq!(covered, seen.iter().map(|address| address.0).collect::<Vec<_>>(), "exactly, ascending, none twice");
            assert_eq!(size(&prefixes), seen.len() as u128);
            for pair in prefixes.windows(2) {
                let parent = Prefix::new(pair[0].first(), pair[0].bits() - 1);
                assert!(pair[0].bits() != pair[1].bits() || !parent.contains(pair[1].first()), "{pair:?} could be one");
            }
        }
    }

    #[test]
    fn widening_takes_in_whole_prefixes_that_two_addresses_share_and_leaves_loners_alone() {
        let seen =
            set(&["192.0.2.1", "192.0.2.200", "198.51.100.7", "203.0.113.5", "203.0.113.6", "2001:db8::1", "2001:db8::2:1"]);
        let wide = cover_widened(&seen, Widening { v4: 24, v6: 64 });
        assert_eq!(texts(&wide), ["192.0.2.0/24", "198.51.100.7/32", "203.0.113.0/24", "2001:db8::/64"]);
        assert_eq!(size(&wide[..3]), 513);
        assert_eq!(cover_widened(&seen, Widening { v4: 32, v6: 128 }), cover(&seen));
    }
}
