//! AZ-26: the hosts whose traffic varies most. A ranking to look through, not an alarm, and therefore off as shipped.
//!
//! | | exact (a query of the Traffic Analytics FAQ) | fixed |
//! | --- | --- | --- |
//! | of | each address at either end | each private address at either end |
//! | varies | flows per row (`facet` flows) and octets per row, both directions (`facet` bytes), over all rows: sample standard deviation | octets per hour, over the 24 hours of a day: how a log cuts flows into rows does not matter |
//! | range | all data in a replay, each UTC day in a stream | each UTC day |
//! | told | every address that varies at all, in order | the `hosts_max` that vary most |
//!
//! Memory: 250 bytes per address and day.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::bins::{self, Past, Schedule};
use super::history::longest_silent;
use super::{Sums, Tally, claim, during, keep_top, looked_at, looks_at};
use crate::Mode;
use crate::facts::Interest;
use crate::finding::{Evidence, Finding, RuleCard, Subject, Variant, Window};
use crate::hash::{Map, table_bytes};
use crate::row::Row;
use crate::rules::Exclude;

/// Parts of a bin whose volumes the fixed form compares: the hours of a day.
const PARTS: u32 = 24;

/// AZ-26 in one of its forms.
pub(crate) struct Ranking {
    pub(crate) card: Arc<RuleCard>,
    pub(crate) exclude: Exclude,
    /// Length of a bin.
    pub(crate) bin: Duration,
    /// Hosts that the fixed form tells per bin.
    pub(crate) hosts_max: usize,
    pub(crate) mode: Mode,
}

/// What an address had.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Traffic {
    tally: Tally,
    flows: Sums,
    octets: Sums,
    /// Octets per part of the bin, for the fixed form.
    parts: Vec<u64>,
}

/// The range that is not told yet.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Range {
    hosts: Map<Address, Traffic>,
    /// Its first bin.
    start: Timestamp,
    /// Where its last bin ends.
    end: Timestamp,
}

impl Past for Range {
    fn trim(&mut self, _horizon: Timestamp, keys_max: usize) -> u64 {
        let old = longest_silent(self.hosts.iter().map(|(host, traffic)| (traffic.tally.last, host)), keys_max);
        for host in &old {
            self.hosts.remove(host);
        }
        old.len() as u64
    }

    fn keys(&self) -> usize {
        self.hosts.len()
    }

    fn size(&self) -> usize {
        let parts: usize = self.hosts.values().map(|traffic| traffic.parts.capacity() * size_of::<u64>()).sum();
        table_bytes(&self.hosts) + parts
    }
}

impl Ranking {
    fn tell(&self, past: &mut Range, findings: &mut Vec<Finding>) {
        let from = findings.len();
        let window = Window { start: past.start, end: past.end };
        for (host, traffic) in std::mem::take(&mut past.hosts) {
            let measured = match self.card.variant {
                Variant::Exact => [Some(("flows", traffic.flows)), Some(("bytes", traffic.octets))],
                Variant::Fixed => {
                    let mut hourly = Sums::default();
                    traffic.parts.iter().for_each(|&octets| hourly.add(octets));
                    [Some(("bytes", hourly)), None]
                }
            };
            for (facet, sums) in measured.into_iter().flatten() {
                let Some(value) = sums.stdev().filter(|value| *value > 0.0) else { continue };
                findings.push(self.finding(host, facet, value, &traffic.tally, window));
            }
        }
        past.start = Timestamp::NONE;
        let most = if self.card.variant == Variant::Exact { usize::MAX } else { self.hosts_max };
        keep_top(findings, from, most);
    }

    fn finding(&self, host: Address, facet: &str, value: f64, tally: &Tally, window: Window) -> Finding {
        let per = if self.card.variant == Variant::Exact { "row" } else { "hour" };
        let sentence = format!(
            "the {facet} of {host} per {per} varied by {value:.1} (standard deviation) {}",
            during(window.start, window.end.since(window.start))
        );
        let subject = Subject { facet: Some(facet.to_owned()), ..Subject::host(host) };
        let unit = format!("{facet} per {per}, standard deviation");
        claim(&self.card, subject, window, tally, Evidence { value, threshold: 0.0, unit, ..Evidence::default() }, sentence)
    }
}

impl bins::Rule for Ranking {
    type Key = Address;
    type Keys = std::iter::Flatten<std::array::IntoIter<Option<Address>, 2>>;
    type Cell = Traffic;
    type Past = Range;

    // Judged at the end of every bin.
    fn schedule(&self) -> Schedule {
        Schedule { every: self.bin, look_back: self.bin }
    }

    fn interest(&self) -> Interest {
        looked_at(self.card.variant)
    }

    fn keys(&self, row: &Row) -> Self::Keys {
        let looks = looks_at(self.card.variant, &self.exclude, row);
        let end = |address: Address| {
            let counts = looks && address.is_some() && (self.card.variant == Variant::Exact || address.is_private());
            counts.then_some(address)
        };
        let destination = end(row.destination).filter(|_| row.destination != row.source);
        [end(row.source), destination].into_iter().flatten()
    }

    fn fresh(&self) -> Traffic {
        let parts = if self.card.variant == Variant::Fixed { vec![0; PARTS as usize] } else { Vec::new() };
        Traffic { parts, ..Traffic::default() }
    }

    fn add(&self, cell: &mut Traffic, row: &Row) {
        cell.tally.add(1, row.at);
        cell.flows.add(u64::from(row.events));
        cell.octets.add(row.octets_total());
        let within = row.at.since(row.at.floor(self.bin));
        let part = (within.as_nanos() / (self.bin / PARTS).as_nanos().max(1)) as usize;
        if let Some(octets) = cell.parts.get_mut(part) {
            *octets = octets.saturating_add(row.octets_total());
        }
    }

    fn size(cell: &Traffic) -> usize {
        cell.parts.capacity() * size_of::<u64>()
    }

    fn weight(&self, cell: &Traffic) -> u64 {
        cell.tally.count
    }

    fn absorb(&self, past: &mut Range, start: Timestamp, cells: Vec<(Address, Traffic)>) {
        if !past.start.is_some() {
            past.start = start;
        }
        past.end = start.plus(self.bin);
        for (host, traffic) in cells {
            let whole = past.hosts.entry(host).or_default();
            whole.tally.merge(&traffic.tally);
            whole.flows.merge(&traffic.flows);
            whole.octets.merge(&traffic.octets);
            whole.parts = traffic.parts;
        }
    }

    fn judge(&self, past: &mut Range, _now: Timestamp, findings: &mut Vec<Finding>) {
        if self.card.variant == Variant::Fixed || self.mode == Mode::Stream {
            self.tell(past, findings);
        }
    }

    fn conclude(&self, past: &mut Range, findings: &mut Vec<Finding>) {
        self.tell(past, findings);
    }
}
