//! AZ-13: a host opens far more, or fewer, SMB flows in a day than it usually does.
//!
//! Per private source and SMB port, judged at the end of every UTC day over 14 days:
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | usual | all flows of the 13 days before, **added up**: the query takes the mean of one number | the median of those days, a day without SMB of this host being 0 and one without any SMB missing |
//! | fires | `abs(day - usual) / usual > 0.5`: on every host that does the same each day, with 0.923 | `z_min` robust deviations above the median, and `flows_min` flows above it, after `days_min` days |
//! | hosts | with flows in both, RFC 1918 | private, IPv6 too |
//!
//! A steady host stays silent in the fixed form: its deviation is 0. Innocent things that look alike: a file server that moves, a
//! new drive letter in a login script, an inventory or backup that runs for the first time.
//!
//! Memory: 40 bytes per source, port and day.

use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::bins::{self, Schedule};
use super::history::{Bins, History, series};
use super::{Tally, claim, during, flows, looked_at, looks_at, robust_z};
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Subject, Variant, Window};
use crate::ports::PortSet;
use crate::roles::Role;
use crate::row::Row;
use crate::rules::Exclude;

/// Hosts that speak SMB to all others once in a while, as it is their work.
const INNOCENT: [Role; 3] = [Role::Scanner, Role::Admin, Role::Backup];

/// AZ-13 in one of its forms.
pub(crate) struct Smb {
    pub(crate) card: Arc<RuleCard>,
    pub(crate) exclude: Exclude,
    /// Length of a bin.
    pub(crate) bin: Duration,
    /// Bins looked at, the judged one included.
    pub(crate) look_back: u32,
    pub(crate) ports: PortSet,
    /// The exact form fires above this share of the sum of the bins before.
    pub(crate) deviation_max: f64,
    /// The fixed form fires from so many deviations above the median on.
    pub(crate) z_min: f64,
    /// And from so many flows above the median on.
    pub(crate) flows_min: u64,
    /// And after so many bins.
    pub(crate) bins_min: usize,
}

type Key = (Address, u16);

impl Smb {
    /// `(value, usual)` if it fires.
    fn verdict(&self, past: &History<Key, Tally>, bins: &Bins<Tally>, now: Timestamp) -> Option<(f64, f64)> {
        let day = now.minus(self.bin);
        let from = now.minus(self.bin * self.look_back);
        let count = |tally: Tally| tally.count as f64;
        let recent = bins.back().map_or(0.0, |(_, tally)| count(*tally));
        match self.card.variant {
            Variant::Exact => {
                let usual: f64 =
                    bins.iter().filter(|(start, _)| (from..day).contains(start)).map(|(_, tally)| count(*tally)).sum();
                let value = (recent - usual).abs() / usual;
                (usual > 0.0 && value > self.deviation_max).then_some((value, usual))
            }
            Variant::Fixed => {
                let from = from.max(past.since());
                let mut at = from;
                let mut usual = series(bins, from, day, self.bin, count);
                usual.retain(|_| {
                    let seen = past.has_seen(at);
                    at = at.plus(self.bin);
                    seen
                });
                let (z, median) = robust_z(recent, &usual, 1.0)?;
                let fires = usual.len() >= self.bins_min && z >= self.z_min && recent - median >= self.flows_min as f64;
                fires.then_some((z, median))
            }
        }
    }

    fn finding(&self, &(source, port): &Key, tally: Tally, value: f64, usual: f64, now: Timestamp) -> Finding {
        let start = now.minus(self.bin);
        let (threshold, unit, before) = match self.card.variant {
            Variant::Exact => (self.deviation_max, "of the days before", format!("and {usual:.0} in all the days before")),
            Variant::Fixed => (self.z_min, "deviations above the median", format!("where {usual:.0} are usual")),
        };
        let sentence = format!("{source} opened {} SMB flows to port {port} {}, {before}", tally.count, during(start, self.bin));
        let evidence = Evidence { value, threshold, unit: unit.to_owned(), ..Evidence::default() };
        claim(&self.card, Subject::host(source).with_port(port), Window { start, end: now }, &tally, evidence, sentence)
    }
}

impl bins::Rule for Smb {
    type Key = Key;
    type Keys = Option<Key>;
    type Cell = Tally;
    type Past = History<Key, Tally>;

    // Judged at the end of every bin.
    fn schedule(&self) -> Schedule {
        Schedule { every: self.bin, look_back: self.bin * self.look_back }
    }

    fn interest(&self) -> Interest {
        match self.card.variant {
            Variant::Exact => looked_at(Variant::Exact),
            Variant::Fixed => looked_at(Variant::Fixed).and(Facts::FROM_PRIVATE),
        }
    }

    fn keys(&self, row: &Row) -> Option<Key> {
        let private = match self.card.variant {
            Variant::Exact => row.source.is_private_v4(),
            Variant::Fixed => row.source.is_private() && !row.source_roles.has_any(&INNOCENT),
        };
        let counts = self.ports.contains(row.port)
            && private
            && row.source != row.destination
            && looks_at(self.card.variant, &self.exclude, row);
        counts.then_some((row.source, row.port))
    }

    fn fresh(&self) -> Tally {
        Tally::default()
    }

    fn add(&self, cell: &mut Tally, row: &Row) {
        cell.add(flows(self.card.variant, row), row.at);
    }

    fn weight(&self, cell: &Tally) -> u64 {
        cell.count
    }

    fn absorb(&self, past: &mut History<Key, Tally>, start: Timestamp, cells: Vec<(Key, Tally)>) {
        cells.into_iter().for_each(|(key, tally)| past.push(key, start, tally));
    }

    fn judge(&self, past: &mut History<Key, Tally>, now: Timestamp, findings: &mut Vec<Finding>) {
        for (key, tally, bins) in past.in_bin(now.minus(self.bin)) {
            if let Some((value, usual)) = self.verdict(past, bins, now) {
                findings.push(self.finding(key, tally, value, usual, now));
            }
        }
    }
}
