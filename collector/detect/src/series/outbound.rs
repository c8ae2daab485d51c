//! AZ-15: an hour in which unusually much left for the public Internet, and who sent it.
//!
//! Octets from source to public destinations are added up per observer and hour. Judged at the end of every UTC day:
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | hours learnt from | the 13 days before today's, 312 hours, those without rows 0 | 14 days with today's, from the first row on |
//! | hours judged | 01:00 to 23:00 of **yesterday**: the query leaves out its last day, and `>` the first hour | all hours of the day that ends |
//! | season | whatever is detected | a day, from three days on |
//! | odd hour | flagged high by `series_decompose_anomalies(sent, strength, -1, 'linefit')` | the same, and from `ratio_min` times what was expected on, after `days_min` days |
//! | public is | IPv4, not RFC 1918, not 127/8; multicast and link-local too | what belongs to no site and is no group, IPv6 too |
//! | told | of all odd hours the nine sources that sent most, each above `octets_min` | the same for each observer |
//!
//! An MB is 10⁶ octets. Innocent things that look alike: a cloud backup, a video conference with the whole company, a release.
//!
//! Memory: 40 bytes per observer and hour, and up to 500 bytes per observer, source and hour for two days; `keys_max` bounds both.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Direction;
use spanwatch_common::flow::FORWARD;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_kql::Compat;
use spanwatch_kql::decompose::{Model, Seasonality, Trend, series_decompose_anomalies};
use spanwatch_kql::outliers::Method;

use super::bins::{self, Past, Schedule};
use super::history::{Bins, History, series};
use super::{Tally, during, keep_top, looked_at, looks_at, score};
use crate::card::Least;
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window};
use crate::roles::Role;
use crate::row::Row;
use crate::rules::Exclude;
use crate::sites::FlowClass;
use crate::snapshot::Name;

const DAY: Duration = Duration::from_secs(86_400);
/// What an MB is.
const MEGA: f64 = 1e6;

/// AZ-15 in one of its forms.
pub(crate) struct Outbound {
    pub(crate) card: Arc<RuleCard>,
    pub(crate) exclude: Exclude,
    /// Length of a bin; divides a day.
    pub(crate) bin: Duration,
    /// Days looked back, today's included.
    pub(crate) look_back_days: u32,
    /// KQL's anomaly threshold.
    pub(crate) strength: f64,
    /// A source is told above this.
    pub(crate) octets_min: u64,
    /// Sources told at most.
    pub(crate) sources_max: usize,
    /// The fixed form judges after so many days.
    pub(crate) days_min: u32,
    /// And from so many times the expected volume on.
    pub(crate) ratio_min: f64,
    pub(crate) compat: Compat,
}

type Key = (Name, Address);

/// What one source sent in one hour; `tally` counts octets.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sent {
    tally: Tally,
    peers: Least,
}

/// What closed hours leave behind.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Hours {
    observers: History<Name, u64>,
    /// Per source, for the days that can still be judged.
    sources: BTreeMap<Timestamp, Vec<(Key, Sent)>>,
    held: usize,
}

impl Hours {
    fn forget_before(&mut self, horizon: Timestamp) {
        while let Some(first) = self.sources.first_entry().filter(|first| *first.key() < horizon) {
            self.held -= first.remove().len();
        }
    }
}

impl Past for Hours {
    fn trim(&mut self, horizon: Timestamp, keys_max: usize) -> u64 {
        let mut evicted = self.observers.trim(horizon, keys_max);
        while self.held > keys_max {
            let Some((_, hour)) = self.sources.pop_first() else { break };
            self.held -= hour.len();
            evicted += hour.len() as u64;
        }
        evicted
    }

    fn keys(&self) -> usize {
        self.held.max(self.observers.keys())
    }

    fn size(&self) -> usize {
        let sent = |sources: &Vec<(Key, Sent)>| {
            let peers: usize = sources.iter().map(|(_, sent)| sent.peers.size()).sum();
            sources.capacity() * size_of::<(Key, Sent)>() + peers
        };
        self.observers.size() + self.sources.values().map(sent).sum::<usize>()
    }
}

impl Outbound {
    /// The odd hours of an observer, each with what was expected.
    fn odd_hours(&self, since: Timestamp, bins: &Bins<u64>, now: Timestamp) -> Vec<(Timestamp, f64)> {
        let exact = self.card.variant == Variant::Exact;
        let whole = now.minus(DAY * self.look_back_days);
        let (from, to) = if exact { (whole, now.minus(DAY)) } else { (whole.max(since.floor(DAY)), now) };
        let sent = series(bins, from, to, self.bin, |octets: u64| octets as f64);
        let a_day = (DAY.as_nanos() / self.bin.as_nanos().max(1)) as usize;
        let days = sent.len() / a_day.max(1);
        if !exact && days < self.days_min as usize {
            return Vec::new();
        }
        let season = NonZeroUsize::new(a_day).filter(|_| days >= 3).map_or(Seasonality::None, Seasonality::Period);
        let model = if exact {
            Model { trend: Trend::Linefit, ..Model::default() }
        } else {
            Model { trend: Trend::Linefit, seasonality: season, test_points: a_day, ..Model::default() }
        };
        let found = series_decompose_anomalies(&sent, self.strength, &model, Method::CTUKEY, &self.compat);
        let judged = |at: Timestamp| if exact { at > to.minus(DAY) } else { at >= to.minus(DAY) };
        let mut at = from;
        let mut odd = Vec::new();
        for ((&flag, &expected), &octets) in found.flags.iter().zip(&found.baseline).zip(&sent) {
            let much = exact || octets >= self.ratio_min * expected.max(0.0);
            if flag > 0 && judged(at) && much {
                odd.push((at, expected));
            }
            at = at.plus(self.bin);
        }
        odd
    }

    fn finding(&self, (observer, source): &Key, sent: &Sent, start: Timestamp, expected: f64) -> Finding {
        let value = sent.tally.count as f64 / MEGA;
        let threshold = self.octets_min as f64 / MEGA;
        Finding {
            sentence: format!(
                "{source} sent {value:.1} MB to the Internet {}, when {:.1} MB of all hosts at {} were expected",
                during(start, self.bin),
                expected.max(0.0) / MEGA,
                observer.0
            ),
            rule: self.card.clone(),
            stage: Stage::Closed,
            subject: Subject { observer: Some(observer.0.to_string()), ..Subject::host(*source) },
            window: Window { start, end: start.plus(self.bin) },
            first: sent.tally.first,
            last: sent.tally.last,
            evidence: Evidence {
                value,
                threshold,
                unit: "MB".to_owned(),
                octets: Some(sent.tally.count),
                hosts: sent.peers.values().iter().map(|&peer| Address(peer)).collect(),
                observers: vec![observer.0.to_string()],
                ..Evidence::default()
            },
            score: score(value, threshold),
            confidence: self.card.variant.confidence(),
            advice: String::new(),
        }
    }
}

impl bins::Rule for Outbound {
    type Key = Key;
    type Keys = Option<Key>;
    type Cell = Sent;
    type Past = Hours;

    // Judged at the end of every day.
    fn schedule(&self) -> Schedule {
        Schedule { every: DAY, look_back: DAY * self.look_back_days }
    }

    fn interest(&self) -> Interest {
        match self.card.variant {
            Variant::Exact => looked_at(Variant::Exact).but_not(Facts::TO_PRIVATE),
            Variant::Fixed => looked_at(Variant::Fixed).and(Facts::EXTERNAL),
        }
    }

    fn keys(&self, row: &Row) -> Option<Key> {
        let outside = match self.card.variant {
            Variant::Exact => row.destination.as_v4().is_some_and(|v4| !v4.is_loopback()) && !row.destination.is_private_v4(),
            // What backs up, moves very much at its hours.
            Variant::Fixed => {
                let backs_up = row.source_roles.has(Role::Backup);
                row.class == FlowClass::External && row.direction != Direction::Inbound && !backs_up
            }
        };
        let counts = outside && row.source.is_some() && looks_at(self.card.variant, &self.exclude, row);
        // A prefix adds to the hour, but is no source that could be told.
        let source = if row.source_prefix.is_some() { Address::NONE } else { row.source };
        counts.then(|| (Name(row.observer.clone()), source))
    }

    fn adds_up(&self) -> bool {
        self.card.variant == Variant::Fixed
    }

    fn fresh(&self) -> Sent {
        Sent::default()
    }

    fn add(&self, cell: &mut Sent, row: &Row) {
        cell.tally.add(row.octets[FORWARD], row.at);
        if !row.aggregate {
            cell.peers.insert(row.destination.0);
        }
    }

    fn size(cell: &Sent) -> usize {
        cell.peers.size()
    }

    fn weight(&self, cell: &Sent) -> u64 {
        1 + cell.tally.count / 1_000
    }

    fn absorb(&self, past: &mut Hours, start: Timestamp, cells: Vec<(Key, Sent)>) {
        let mut totals: BTreeMap<Name, u64> = BTreeMap::new();
        for ((observer, _), sent) in &cells {
            let total = totals.entry(observer.clone()).or_default();
            *total = total.saturating_add(sent.tally.count);
        }
        totals.into_iter().for_each(|(observer, octets)| past.observers.push(observer, start, octets));
        // A source that stays below the floor is never told.
        let loud: Vec<(Key, Sent)> = cells.into_iter().filter(|(_, sent)| sent.tally.count > self.octets_min).collect();
        past.held += loud.len();
        past.sources.insert(start, loud);
    }

    fn judge(&self, past: &mut Hours, now: Timestamp, findings: &mut Vec<Finding>) {
        let observers: BTreeSet<&Name> = past.observers.iter().map(|(observer, _)| observer).collect();
        let since = past.observers.since();
        let begin = findings.len();
        for observer in observers {
            let from = findings.len();
            let Some(bins) = past.observers.get(observer) else { continue };
            for (hour, expected) in self.odd_hours(since, bins, now) {
                let sources = past.sources.get(&hour).into_iter().flatten();
                let sources = sources.filter(|((seen_by, source), _)| seen_by == observer && source.is_some());
                findings.extend(sources.map(|(key, sent)| self.finding(key, sent, hour, expected)));
            }
            if self.card.variant == Variant::Fixed {
                keep_top(findings, from, self.sources_max);
            }
        }
        if self.card.variant == Variant::Exact {
            keep_top(findings, begin, self.sources_max);
        }
        past.forget_before(now.minus(DAY));
    }
}
