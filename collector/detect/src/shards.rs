//! How rows and detectors are divided.
//!
//! Rows wait in a [`Batch`], sorted by shard. A [`Unit`] is a detector that sees every row, or one shard of a detector whose state can be
//! divided ([`Sharding`]). The number of shards is fixed, whatever the number of threads: each holds its part of the room and of a
//! snapshot, so that neither what is found nor what is saved depends on how many threads there are.

use std::ops::Range;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::facts::{Facts, Interest};
use crate::finding::Finding;
use crate::row::Row;
use crate::snapshot::Saved;
use crate::{Detector, Sharding, State};

/// Parts of a detector whose state can be divided. Saved states depend on it.
pub const SHARDS: usize = 8;

/// The shard of the network of `address`: the same in every process, for snapshots.
fn shard_of(address: Address) -> usize {
    // A /24 of IPv4 is a /120 here.
    let network = if address.as_v4().is_some() { address.0 >> 8 } else { address.0 >> 80 };
    let spread = (network as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((spread ^ spread >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as usize
}

/// Rows on their way to the detectors, and what is known of all of them beforehand.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) rows: Vec<Row>,
    facts: Vec<Facts>,
    /// What is true of at least one of them.
    seen: Facts,
    /// Places of rows by shard of their source.
    by_source: [Vec<u32>; SHARDS],
    /// The same by shard of their destination.
    by_destination: [Vec<u32>; SHARDS],
    /// How far event time had come before the row at a place; ascending.
    times: Vec<(usize, Timestamp)>,
}

impl Batch {
    /// Appends a row.
    pub(crate) fn push(&mut self, row: Row) {
        let place = self.rows.len() as u32;
        let facts = Facts::of(&row);
        self.seen = self.seen.and(facts);
        self.facts.push(facts);
        self.by_source[shard_of(row.source)].push(place);
        self.by_destination[shard_of(row.destination)].push(place);
        self.rows.push(row);
    }

    /// Appends the news that event time has come so far.
    pub(crate) fn push_time(&mut self, now: Timestamp) {
        self.times.push((self.rows.len(), now));
    }

    /// Whether there is neither row nor time.
    pub(crate) const fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.times.is_empty()
    }

    /// Forgets all, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.facts.clear();
        self.seen = Facts::NONE;
        self.by_source.iter_mut().chain(&mut self.by_destination).for_each(Vec::clear);
        self.times.clear();
    }
}

/// A detector, or one shard of one, at its place in the order of all.
pub(crate) struct Unit {
    /// `AZ-01 fixed`; several shards have the same.
    pub(crate) name: String,
    /// Which shard; none of a detector that is not divided.
    shard: Option<usize>,
    /// The settings, as text.
    settings: String,
    pub(crate) detector: Box<dyn Detector>,
    pub(crate) wants_order: bool,
    sharding: Sharding,
    interest: Interest,
    /// What it told and nobody has fetched.
    findings: Vec<Finding>,
    /// Its state before an attempt to restore it.
    before: Vec<u8>,
}

impl Unit {
    /// The units of one detector: itself, or its shards.
    pub(crate) fn of(parts: Vec<Box<dyn Detector>>, settings: String) -> impl Iterator<Item = Self> {
        parts.into_iter().enumerate().map(move |(number, detector)| {
            let sharding = detector.sharding();
            let interest = detector.interest();
            Self {
                name: format!("{} {}", detector.state().rule, detector.state().variant),
                shard: (sharding != Sharding::Whole).then_some(number),
                settings: settings.clone(),
                wants_order: detector.wants_order(),
                sharding,
                interest: if detector.adds_up() { interest } else { interest.but_not(Facts::AGGREGATE) },
                detector,
                findings: Vec::new(),
                before: Vec::new(),
            }
        })
    }

    /// Shows it its rows of `batch`, and the times between them.
    pub(crate) fn walk(&mut self, batch: &Batch) {
        let mut from = 0;
        for &(to, now) in &batch.times {
            self.walk_some(batch, from..to);
            self.detector.advance(now, &mut self.findings);
            from = to;
        }
        self.walk_some(batch, from..batch.rows.len());
    }

    fn walk_some(&mut self, batch: &Batch, places: Range<usize>) {
        let Self { detector, findings, interest, .. } = self;
        if !interest.may_take(batch.seen) {
            return;
        }
        let lists = match self.sharding {
            Sharding::Source => &batch.by_source,
            Sharding::Destination => &batch.by_destination,
            Sharding::Whole => {
                for (place, facts) in places.clone().zip(&batch.facts[places]) {
                    if interest.takes(*facts) {
                        detector.observe(&batch.rows[place], findings);
                    }
                }
                return;
            }
        };
        let list = self.shard.map_or(&[][..], |shard| &lists[shard]);
        let after = list.partition_point(|&place| (place as usize) < places.start);
        for place in list[after..].iter().map(|&place| place as usize).take_while(|&place| place < places.end) {
            if interest.takes(batch.facts[place]) {
                detector.observe(&batch.rows[place], findings);
            }
        }
    }

    /// Event time has reached `newest`.
    pub(crate) fn advance(&mut self, newest: Timestamp) {
        self.detector.advance(newest, &mut self.findings);
    }

    /// Nothing comes any more for now.
    pub(crate) fn flush(&mut self) {
        self.detector.flush(&mut self.findings);
    }

    /// The end of the data.
    pub(crate) fn finish(&mut self) {
        self.detector.finish(&mut self.findings);
    }

    /// What it told since the last call, and its account of itself.
    pub(crate) fn report(&mut self) -> (Vec<Finding>, State) {
        (std::mem::take(&mut self.findings), self.detector.state().clone())
    }

    /// The name under which its state is saved: `AZ-01 fixed`, or `ND-01 fixed, part 3`.
    fn saved_name(&self) -> String {
        self.shard.map_or_else(|| self.name.clone(), |shard| format!("{}, part {shard}", self.name))
    }

    /// Its state, and under which name.
    pub(crate) fn save(&self) -> (String, Saved) {
        (self.saved_name(), Saved { settings: self.settings.clone(), state: self.detector.snapshot() })
    }

    /// Takes over what was saved under its name; says whether it could.
    pub(crate) fn restore<'a>(&mut self, saved: impl FnOnce(&str) -> Option<&'a Saved>) -> bool {
        self.before = if self.shard.is_some() { self.detector.snapshot() } else { Vec::new() };
        let saved = saved(&self.saved_name()).filter(|saved| saved.settings == self.settings);
        saved.is_some_and(|saved| self.detector.restore(&saved.state).is_ok())
    }

    /// After [`restore`](Self::restore): if any shard of this detector could not, none has.
    pub(crate) fn settle(&mut self, anew: &[String]) {
        let before = std::mem::take(&mut self.before);
        if self.shard.is_some() && anew.contains(&self.name) {
            // What a detector has just said of itself it understands; one that does not is as it was before.
            let _ = self.detector.restore(&before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_network_stay_together_and_networks_spread() {
        let shard = |text: &str| shard_of(text.parse().expect("a literal"));
        assert_eq!(shard("10.1.2.3"), shard("10.1.2.250"));
        assert_eq!(shard("2001:db8:7:1::1"), shard("2001:db8:7:ffff::9"));
        let mut hits = [0; SHARDS];
        for network in 0..=255_u8 {
            hits[shard_of(Address::from_v4([10, 0, network, 1]))] += 1;
            hits[shard_of(Address(0x2001_0db8 << 96 | u128::from(network) << 80))] += 1;
        }
        // 512 networks, 64 for each shard on average, give or take three standard deviations of 7.5.
        assert!(hits.iter().all(|hits| (42..=86).contains(hits)), "{hits:?}");
    }
}
