//! What was counted in the two ten-minute bins that are open.

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::{FlowState, protocol};

use crate::row::Row;

/// Places of the sketch that tells how many hosts there were.
const PLACES: usize = 4_096;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Measure {
    /// Both ways.
    Octets,
    /// That began.
    Flows,
    /// Distinct initiators.
    Hosts,
    /// Flows that came to nothing.
    Failures,
}

impl Measure {
    pub(super) const ALL: [Self; 4] = [Self::Octets, Self::Flows, Self::Hosts, Self::Failures];

    /// Numbers below this are much alike.
    pub(super) const fn unit(self) -> f64 {
        match self {
            Self::Octets => 1e6,
            Self::Flows | Self::Failures => 20.0,
            Self::Hosts => 5.0,
        }
    }
}

/// A bin: half a KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bin {
    /// Which, since 1970.
    number: u32,
    octets: u64,
    flows: u64,
    failures: u64,
    /// One bit per place to which the hash of an initiator fell.
    hosts: Vec<u64>,
}

impl Bin {
    fn new() -> Self {
        Self { number: u32::MAX, octets: 0, flows: 0, failures: 0, hosts: vec![0; PLACES / 64] }
    }

    fn begin(&mut self, number: u32) {
        (self.number, self.octets, self.flows, self.failures) = (number, 0, 0, 0);
        self.hosts.fill(0);
    }

    fn add(&mut self, row: &Row) {
        self.octets = self.octets.saturating_add(row.octets_total());
        if row.aggregate {
            return;
        }
        let begins = row.state == FlowState::Begin || row.origin.is_folded();
        let failed = row.outcome.is_failure();
        self.flows += if begins { u64::from(row.events) } else { 0 };
        // A failure is known half a second after the beginning, of a datagram at the end.
        self.failures += u64::from(failed && (begins || row.protocol != protocol::TCP));
        let place = place(row.source.0);
        self.hosts[place / 64] |= 1 << (place % 64);
    }

    /// Linear counting: of so many places so many are still free.
    fn hosts(&self) -> f64 {
        let taken: u32 = self.hosts.iter().map(|word| word.count_ones()).sum();
        let free = (PLACES - taken as usize).max(1) as f64;
        (PLACES as f64 * (PLACES as f64 / free).ln()).round()
    }
}

/// The same in every process.
const fn place(address: u128) -> usize {
    let mut word = (address as u64) ^ (address >> 64) as u64;
    // Twice, because neighbours must not spread evenly but by chance: that is what is reckoned with.
    word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (word >> 52) as usize
}

/// The two bins that are open, by their number modulo two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Bins([Bin; 2]);

impl Bins {
    pub(super) fn new() -> Self {
        Self([Bin::new(), Bin::new()])
    }

    pub(super) fn add(&mut self, number: u32, row: &Row) {
        let bin = &mut self.0[number as usize % 2];
        if bin.number != number {
            bin.begin(number);
        }
        bin.add(row);
    }

    /// What was counted in the bin `number`.
    pub(super) fn count(&self, number: u32, measure: Measure) -> f64 {
        let bin = &self.0[number as usize % 2];
        match measure {
            _ if bin.number != number => 0.0,
            Measure::Octets => bin.octets as f64,
            Measure::Flows => bin.flows as f64,
            Measure::Hosts => bin.hosts(),
            Measure::Failures => bin.failures as f64,
        }
    }

    /// Whether anything was seen in the bin `number`.
    pub(super) fn has(&self, number: u32) -> bool {
        self.0[number as usize % 2].number == number
    }

    pub(super) fn is_sound(&self) -> bool {
        self.0.iter().all(|bin| bin.hosts.len() == PLACES / 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_counted_to_a_few_percent() {
        for hosts in [1_u32, 30, 1_000, 8_000] {
            let mut bin = Bin::new();
            for host in 0..hosts {
                let place = place(0xffff_0a00_0000 + u128::from(host));
                bin.hosts[place / 64] |= 1 << (place % 64);
            }
            let count = bin.hosts();
            assert!((count - f64::from(hosts)).abs() <= 0.06 * f64::from(hosts) + 1.0, "{hosts} counted as {count}");
        }
    }
}
