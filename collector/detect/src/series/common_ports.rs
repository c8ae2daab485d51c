//! AZ-25: unusual use of a common port.
//!
//! Of each common port, three measures a day: rows, octets of both directions, different sources. Judged at the end of every UTC
//! day against the seven days before it.
//!
//! | | exact | fixed |
//! | --- | --- | --- |
//! | usual | mean and sample standard deviation of those days that have rows, two at least | median and median deviation of them, `days_min` at least |
//! | fires | above `mean + sigmas · sd` | `sigmas` deviations above the median, and from `ratio_min` times the median on |
//!
//! Azure's rule is machine learning without a public query: the exact form is detection.md's reading of its description. Each
//! measure is a finding of its own (`facet` says which). Innocent things that look alike: patch day, a backup that moved to
//! HTTPS, a new office.
//!
//! Memory: 64 bytes per port and day, and a counter of at most 20 KiB per port for the open days.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;
use spanwatch_kql::stats;

use super::bins::{self, Schedule};
use super::history::{Bins, History};
use super::{Tally, claim, during, flows, looked_at, looks_at, mean_and_stdev, robust_z};
use crate::card::Card;
use crate::facts::Interest;
use crate::finding::{Evidence, Finding, RuleCard, Subject, Variant, Window};
use crate::ports::PortSet;
use crate::row::Row;
use crate::rules::Exclude;

/// AZ-25 in one of its forms.
pub(crate) struct CommonPort {
    pub(crate) card: Arc<RuleCard>,
    pub(crate) exclude: Exclude,
    pub(crate) ports: PortSet,
    /// Length of a bin.
    pub(crate) bin: Duration,
    /// Bins learnt from, before the judged one.
    pub(crate) learn_bins: u32,
    /// Deviations above what is usual.
    pub(crate) sigmas: f64,
    /// The fixed form judges after so many bins with rows.
    pub(crate) bins_min: usize,
    /// And fires from so many times the median on.
    pub(crate) ratio_min: f64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Cell {
    tally: Tally,
    octets: u64,
    sources: Card,
}

/// A port's day.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Day {
    tally: Tally,
    octets: u64,
    sources: u64,
}

/// Reads one measure of a day.
type Measure = fn(&Day) -> u64;

/// What is measured, by its name in `facet`.
const MEASURES: [(&str, Measure); 3] =
    [("events", |day| day.tally.count), ("bytes", |day| day.octets), ("sources", |day| day.sources)];

/// What fired, and against what.
struct Verdict {
    value: f64,
    threshold: f64,
    usual: f64,
}

impl CommonPort {
    fn verdict(&self, bins: &Bins<Day>, measure: Measure, now: Timestamp) -> Option<Verdict> {
        let judged = now.minus(self.bin);
        let from = judged.minus(self.bin * self.learn_bins);
        let value = bins.back().map(|(_, day)| measure(day))? as f64;
        let before = bins.iter().filter(|(start, _)| (from..judged).contains(start)).map(|(_, day)| measure(day));
        match self.card.variant {
            Variant::Exact => {
                let (mean, stdev) = mean_and_stdev(before)?;
                let threshold = mean + self.sigmas * stdev;
                (value > threshold).then_some(Verdict { value, threshold, usual: mean })
            }
            Variant::Fixed => {
                let usual: Vec<f64> = before.map(|measured| measured as f64).collect();
                let (z, median) = robust_z(value, &usual, 1.0)?;
                let threshold = if z > 0.0 { median + self.sigmas * (value - median) / z } else { f64::INFINITY };
                let fires = usual.len() >= self.bins_min && value > threshold && value >= self.ratio_min * median;
                fires.then_some(Verdict { value, threshold: stats::round_half_away(threshold, 2), usual: median })
            }
        }
    }

    fn finding(&self, port: u16, day: &Day, measure: &'static str, verdict: &Verdict, now: Timestamp) -> Finding {
        let start = now.minus(self.bin);
        let Verdict { value, threshold, usual } = *verdict;
        let subject = Subject { port: Some(port), facet: Some(measure.to_owned()), ..Subject::default() };
        let evidence = Evidence { value, threshold, unit: measure.to_owned(), ..Evidence::default() };
        let sentence = format!("port {port} had {value} {measure} {}, where {usual:.0} are usual", during(start, self.bin));
        claim(&self.card, subject, Window { start, end: now }, &day.tally, evidence, sentence)
    }
}

impl bins::Rule for CommonPort {
    type Key = u16;
    type Keys = Option<u16>;
    type Cell = Cell;
    type Past = History<u16, Day>;

    // Judged at the end of every bin.
    fn schedule(&self) -> Schedule {
        Schedule { every: self.bin, look_back: self.bin * (self.learn_bins + 1) }
    }

    fn interest(&self) -> Interest {
        looked_at(self.card.variant)
    }

    fn keys(&self, row: &Row) -> Option<u16> {
        let counts = self.ports.contains(row.port) && looks_at(self.card.variant, &self.exclude, row);
        counts.then_some(row.port)
    }

    fn adds_up(&self) -> bool {
        self.card.variant == Variant::Fixed
    }

    fn fresh(&self) -> Cell {
        Cell { tally: Tally::default(), octets: 0, sources: Card::default() }
    }

    fn add(&self, cell: &mut Cell, row: &Row) {
        let count = flows(self.card.variant, row);
        cell.tally.add(count, row.at);
        cell.octets = cell.octets.saturating_add(row.octets_total());
        if row.source.is_some() && !row.aggregate {
            cell.sources.insert(row.source.0);
        }
    }

    fn size(cell: &Cell) -> usize {
        cell.sources.size()
    }

    fn weight(&self, cell: &Cell) -> u64 {
        cell.tally.count
    }

    fn absorb(&self, past: &mut History<u16, Day>, start: Timestamp, cells: Vec<(u16, Cell)>) {
        for (port, Cell { tally, octets, sources }) in cells {
            past.push(port, start, Day { tally, octets, sources: sources.count() });
        }
    }

    fn judge(&self, past: &mut History<u16, Day>, now: Timestamp, findings: &mut Vec<Finding>) {
        for (&port, day, bins) in past.in_bin(now.minus(self.bin)) {
            for (name, measure) in MEASURES {
                if let Some(verdict) = self.verdict(bins, measure, now) {
                    findings.push(self.finding(port, &day, name, &verdict, now));
                }
            }
        }
    }
}
