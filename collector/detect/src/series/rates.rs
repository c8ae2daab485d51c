//! AZ-18 and AZ-19: a source is denied, or reaches different hosts, far more often in an hour than it usually does.
//!
//! AZ-18 counts denials, AZ-19 different destinations. Judged at every full hour: the hour that ends, against the mean and sample
//! standard deviation of the hours before in which there was anything to count, of which there must be `buckets_min`.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | AZ-18 learns | denials per source **and destination**, 24 hours | denials per source, 5 days |
//! | AZ-18 counts | all denials of the source; one row for each destination learnt | all denials of the source |
//! | denied is | what policy denied | also what was refused or not answered: a mirror port sees no policy |
//! | AZ-19 learns | destinations per source and hour, 5 days | the same |
//! | AZ-19 counts | destinations per source **and destination**: always 1, so that nothing can ever fire | destinations per source |
//! | fires | above `max(mean + 3 sd, count_min)` | the same, and only from `ratio_min` times the mean on |
//!
//! A source that was never denied before has no mean: AZ-07 and AZ-22 are for those. (As written, the public AZ-18 joins such
//! sources with nothing and compares them with `count_min` alone; the condition on buckets, which its text and detection.md
//! state, would have no effect. We keep the condition.)
//!
//! Innocent things that look alike: a firewall rule that changed, a client whose server moved; an update server at its hour.
//!
//! Memory: 16 bytes per key and hour; AZ-19 holds up to 20 KiB for each source in an open hour.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Action;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::bins::{self, Schedule};
use super::history::History;
use super::{Tally, claim, during, flows, looked_at, looks_at, mean_and_stdev};
use crate::card::Card;
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Subject, Variant, Window};
use crate::row::Row;
use crate::rules::Exclude;

/// What is counted per hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// AZ-18.
    Denials,
    /// AZ-19.
    Destinations,
}

/// AZ-18 or AZ-19 in one of its forms.
pub(crate) struct Rates {
    pub(crate) card: Arc<RuleCard>,
    pub(crate) what: What,
    pub(crate) exclude: Exclude,
    /// Length of a bin.
    pub(crate) bin: Duration,
    /// Bins that are learnt from, before the judged one.
    pub(crate) learn_bins: u32,
    /// Standard deviations above the mean.
    pub(crate) sigmas: f64,
    /// Never fires up to this.
    pub(crate) count_min: f64,
    /// Bins with anything to count, of those learnt from.
    pub(crate) buckets_min: usize,
    /// The fixed form fires from so many times the mean on.
    pub(crate) ratio_min: f64,
}

/// Source, and destination where denials are learnt for each.
type Key = (Address, Address);

#[derive(Serialize, Deserialize)]
pub(crate) struct Cell {
    tally: Tally,
    /// Destinations; not counted for denials.
    hosts: Card,
}

/// The mean and the threshold of one source; with the destination for which they were learnt.
struct Usual {
    destination: Address,
    mean: f64,
    threshold: f64,
}

impl Rates {
    /// What was learnt under each of `sources`, where it was enough.
    fn usual(&self, past: &History<Key, Tally>, day: Timestamp, sources: &BTreeMap<Address, Tally>) -> BTreeMap<Key, Usual> {
        let from = day.minus(self.bin * self.learn_bins);
        let learnt = past.iter().filter(|((source, _), _)| sources.contains_key(source)).filter_map(|(&key, bins)| {
            let counts = bins.iter().filter(|(start, _)| (from..day).contains(start)).map(|(_, tally)| tally.count);
            let (mean, stdev) = mean_and_stdev(counts.clone()).filter(|_| counts.count() >= self.buckets_min)?;
            let threshold = (mean + self.sigmas * stdev).max(self.count_min);
            Some((key, Usual { destination: key.1, mean, threshold }))
        });
        learnt.collect()
    }

    fn finding(&self, source: Address, tally: Tally, value: f64, usual: &Usual, now: Timestamp) -> Finding {
        let start = now.minus(self.bin);
        let (did, unit) = match self.what {
            What::Denials => ("was denied", "denials"),
            What::Destinations => ("reached", "hosts"),
        };
        let times = if self.what == What::Denials { " times" } else { " hosts" };
        let sentence = format!("{source} {did} {value}{times} {}, where {:.1} are usual", during(start, self.bin), usual.mean);
        let evidence = Evidence { value, threshold: usual.threshold, unit: unit.to_owned(), ..Evidence::default() };
        claim(&self.card, Subject::pair(source, usual.destination), Window { start, end: now }, &tally, evidence, sentence)
    }
}

impl bins::Rule for Rates {
    type Key = Key;
    type Keys = Option<Key>;
    type Cell = Cell;
    type Past = History<Key, Tally>;

    // Judged at the end of every bin.
    fn schedule(&self) -> Schedule {
        Schedule { every: self.bin, look_back: self.bin * (self.learn_bins + 1) }
    }

    fn interest(&self) -> Interest {
        match (self.what, self.card.variant) {
            (What::Denials, Variant::Exact) => looked_at(Variant::Exact).and(Facts::DENY),
            (What::Denials, Variant::Fixed) => looked_at(Variant::Fixed).and(Facts::FAILED),
            (What::Destinations, variant) => looked_at(variant),
        }
    }

    fn keys(&self, row: &Row) -> Option<Key> {
        let exact = self.card.variant == Variant::Exact;
        let counts = match self.what {
            What::Denials if exact => row.action == Action::Deny,
            What::Denials => row.outcome.is_failure(),
            What::Destinations => true,
        };
        if !counts || !row.source.is_some() || !row.destination.is_some() || !looks_at(self.card.variant, &self.exclude, row) {
            return None;
        }
        let per_destination = exact && self.what == What::Denials;
        Some((row.source, if per_destination { row.destination } else { Address::NONE }))
    }

    fn fresh(&self) -> Cell {
        Cell { tally: Tally::default(), hosts: Card::default() }
    }

    fn add(&self, cell: &mut Cell, row: &Row) {
        let count = flows(self.card.variant, row);
        cell.tally.add(count, row.at);
        if self.what == What::Destinations {
            cell.hosts.insert(row.destination.0);
        }
    }

    fn size(cell: &Cell) -> usize {
        cell.hosts.size()
    }

    fn weight(&self, cell: &Cell) -> u64 {
        match self.what {
            What::Denials => cell.tally.count,
            What::Destinations => cell.hosts.count(),
        }
    }

    fn absorb(&self, past: &mut History<Key, Tally>, start: Timestamp, cells: Vec<(Key, Cell)>) {
        for (key, cell) in cells {
            let count = self.weight(&cell);
            past.push(key, start, Tally { count, ..cell.tally });
        }
    }

    fn judge(&self, past: &mut History<Key, Tally>, now: Timestamp, findings: &mut Vec<Finding>) {
        let day = now.minus(self.bin);
        let mut sources: BTreeMap<Address, Tally> = BTreeMap::new();
        for (&(source, _), tally, _) in past.in_bin(day) {
            sources.entry(source).or_default().merge(&tally);
        }
        for ((source, _), usual) in self.usual(past, day, &sources) {
            let Some(&tally) = sources.get(&source) else { continue };
            let value = match (self.card.variant, self.what) {
                // The public rule counts the destinations of a source and one destination.
                (Variant::Exact, What::Destinations) => 1.0,
                _ => tally.count as f64,
            };
            let doubled = self.card.variant == Variant::Exact || value >= self.ratio_min * usual.mean;
            if value > usual.threshold && doubled {
                findings.push(self.finding(source, tally, value, &usual, now));
            }
        }
    }
}
