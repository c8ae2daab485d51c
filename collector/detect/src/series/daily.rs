//! AZ-08 and AZ-10: a day with unusually many flows, in all, by action, direction or protocol, or over a watched port.
//!
//! AZ-08 counts rows per day for each facet: everything, each action, each direction, each protocol. AZ-10 counts them for each
//! port of its watch-list, apart by protocol, direction and action. Judged at the end of every UTC day:
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | days | 14, those without rows are 0, those before the first row too | up to 28 of those since the first row; a day on which nothing at all was seen is missing, not 0 |
//! | season | whatever is detected: in 14 points never a week | a week, from three weeks on; before that none |
//! | learnt from | all days | all days but the one that is judged |
//! | fires | AZ-08: `toint(score) >= 2 · strength`; AZ-10: `toint(score) > 2 · strength` | as exact, and only upwards of `ratio_min` times what was expected and `flows_min` more than that, after `days_min` days |
//! | counts | rows | flows (a folded row of Traffic Analytics stands for many) |
//!
//! Among days of 0 or a constant count, a last day of any other height scores 5.82 in the exact form: AZ-08 fires on every first day of
//! a log, and AZ-10, which wants 6, never fires after constant days, however much comes. Scores of 6 and above take past days
//! that rise and fall. The score is `series_decompose_anomalies(…, strength, -1, 'linefit')` of [`spanwatch_kql`].
//!
//! Innocent things that look alike: a new subnet or server, the first day of a backup, a load test, a holiday that ends.
//!
//! Memory: 48 bytes per facet and day of the look-back.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::{Action, Direction};
use spanwatch_common::text::protocol_name;
use spanwatch_common::time::Timestamp;
use spanwatch_kql::Compat;
use spanwatch_kql::decompose::{Model, Seasonality, Trend, series_decompose_anomalies};
use spanwatch_kql::outliers::Method;
use spanwatch_kql::stats::toint;

use super::bins::{self, Schedule};
use super::history::{Bins, History, series};
use super::{Tally, claim, during, flows, looked_at, looks_at};
use crate::facts::Interest;
use crate::finding::{Evidence, Finding, RuleCard, Subject, Variant, Window, service_name};
use crate::ports::PortSet;
use crate::row::Row;
use crate::rules::Exclude;
use crate::rules::watch_list::facet_words;

/// Days in a week, which is what the fixed form takes for the season.
const WEEK: usize = 7;
/// A week is a season once it was seen so often.
const WEEKS_MIN: usize = 3;

/// AZ-08 or AZ-10 in one of its forms.
pub(crate) struct Daily {
    pub(crate) card: Arc<RuleCard>,
    pub(crate) exclude: Exclude,
    /// Length of a bin.
    pub(crate) bin: Duration,
    /// Bins of the exact form's series, and at most of the fixed form's.
    pub(crate) look_back: [u32; 2],
    /// KQL's anomaly threshold; the rule fires at twice as much.
    pub(crate) strength: f64,
    /// The watched ports; without any, the rule is AZ-08.
    pub(crate) watch: Option<PortSet>,
    /// The fixed form fires from so many bins on.
    pub(crate) bins_min: usize,
    /// And from so many times the expected count on.
    pub(crate) ratio_min: f64,
    /// And from so many flows above the expected count on.
    pub(crate) flows_min: u64,
    pub(crate) compat: Compat,
}

/// What rows have in common that are counted together before facets are made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Kind {
    /// Of the responder; 0 in AZ-08, which does not tell ports apart.
    port: u16,
    protocol: u8,
    direction: u8,
    action: u8,
}

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Facet {
    All,
    Action(u8),
    Direction(u8),
    Protocol(u8),
    Watched(Kind),
}

fn direction_of(number: u8) -> Direction {
    Direction::ALL.into_iter().find(|direction| *direction as u8 == number).unwrap_or_default()
}

fn action_of(number: u8) -> Action {
    Action::ALL.into_iter().find(|action| *action as u8 == number).unwrap_or_default()
}

impl Facet {
    fn subject(self) -> Subject {
        let facet = |text: String| Subject { facet: Some(text), ..Subject::default() };
        match self {
            Self::All => facet("all".to_owned()),
            Self::Action(action) => facet(format!("action {}", action_of(action).name())),
            Self::Direction(direction) => {
                facet(format!("dir {}", facet_words(direction_of(direction), Action::Unknown).unwrap_or_default()))
            }
            Self::Protocol(protocol) => facet(format!("proto {}", protocol_name(protocol))),
            Self::Watched(Kind { port, protocol, direction, action }) => {
                let facet = facet_words(direction_of(direction), action_of(action));
                Subject { port: Some(port), protocol: Some(protocol), facet, ..Subject::default() }
            }
        }
    }

    /// As the subject of a sentence.
    fn phrase(self) -> String {
        match self {
            Self::All => "the whole network".to_owned(),
            Self::Action(action) => format!("policy decision {}", action_of(action).name()),
            Self::Direction(direction) => format!("direction {}", direction_of(direction).name()),
            Self::Protocol(protocol) => format!("protocol {}", protocol_name(protocol)),
            Self::Watched(Kind { port, protocol, .. }) => format!("watched service {}", service_name(protocol, port)),
        }
    }
}

/// What the series says of its last day.
struct Verdict {
    score: f64,
    expected: f64,
    fires: bool,
}

impl Daily {
    fn exact(&self, bins: &Bins<Tally>, now: Timestamp) -> Verdict {
        let from = now.minus(self.bin * self.look_back[0]);
        let counts = series(bins, from, now, self.bin, |tally: Tally| tally.count as f64);
        let model = Model { trend: Trend::Linefit, ..Model::default() };
        let found = series_decompose_anomalies(&counts, self.strength, &model, Method::CTUKEY, &self.compat);
        let score = found.scores.last().copied().unwrap_or(0.0);
        let whole = toint(score).map_or(0.0, f64::from);
        let limit = 2.0 * self.strength;
        let fires = if self.watch.is_some() { whole > limit } else { whole >= limit };
        Verdict { score, expected: found.baseline.last().copied().unwrap_or(0.0), fires }
    }

    fn fixed(&self, past: &History<Facet, Tally>, bins: &Bins<Tally>, now: Timestamp) -> Verdict {
        let from = past.since().max(now.minus(self.bin * self.look_back[1]));
        let mut counts = series(bins, from, now, self.bin, |tally: Tally| tally.count as f64);
        let mut at = from;
        for count in &mut counts {
            if !past.has_seen(at) {
                *count = f64::NAN;
            }
            at = at.plus(self.bin);
        }
        let week = NonZeroUsize::new(WEEK).filter(|_| counts.len() >= WEEKS_MIN * WEEK);
        let seasonality = week.map_or(Seasonality::None, Seasonality::Period);
        let model = Model { seasonality, trend: Trend::Linefit, test_points: 1, ..Model::default() };
        let found = series_decompose_anomalies(&counts, self.strength, &model, Method::CTUKEY, &self.compat);
        let score = found.scores.last().copied().unwrap_or(0.0);
        let expected = found.baseline.last().copied().unwrap_or(0.0).max(0.0);
        let count = counts.last().copied().unwrap_or(0.0);
        let fires = past.seen(from, now) >= self.bins_min
            && score >= 2.0 * self.strength
            && count >= self.ratio_min * expected
            && count - expected >= self.flows_min as f64;
        Verdict { score, expected, fires }
    }

    fn finding(&self, facet: Facet, tally: Tally, verdict: &Verdict, now: Timestamp) -> Finding {
        let start = now.minus(self.bin);
        let threshold = 2.0 * self.strength;
        let sentence = format!(
            "{} had {} flows {}, where {:.0} were expected",
            facet.phrase(),
            tally.count,
            during(start, self.bin),
            verdict.expected.max(0.0)
        );
        let evidence = Evidence { value: verdict.score, threshold, unit: "anomaly score".to_owned(), ..Evidence::default() };
        claim(&self.card, facet.subject(), Window { start, end: now }, &tally, evidence, sentence)
    }
}

impl bins::Rule for Daily {
    type Key = Kind;
    type Keys = Option<Kind>;
    type Cell = Tally;
    type Past = History<Facet, Tally>;

    // Judged at the end of every bin.
    fn schedule(&self) -> Schedule {
        let bins = match self.card.variant {
            Variant::Exact => self.look_back[0],
            Variant::Fixed => self.look_back[1],
        };
        Schedule { every: self.bin, look_back: self.bin * bins }
    }

    fn interest(&self) -> Interest {
        looked_at(self.card.variant)
    }

    fn keys(&self, row: &Row) -> Option<Kind> {
        let Row { port, protocol, direction, action, .. } = *row;
        let port = match &self.watch {
            Some(watched) if !watched.contains(port) => return None,
            Some(_) => port,
            None => 0,
        };
        looks_at(self.card.variant, &self.exclude, row).then_some(Kind {
            port,
            protocol,
            direction: direction as u8,
            action: action as u8,
        })
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

    fn absorb(&self, past: &mut History<Facet, Tally>, start: Timestamp, cells: Vec<(Kind, Tally)>) {
        let mut facets: BTreeMap<Facet, Tally> = BTreeMap::new();
        for (kind, tally) in cells {
            if self.watch.is_some() {
                facets.entry(Facet::Watched(kind)).or_default().merge(&tally);
                continue;
            }
            facets.entry(Facet::All).or_default().merge(&tally);
            facets.entry(Facet::Protocol(kind.protocol)).or_default().merge(&tally);
            if kind.action != Action::Unknown as u8 {
                facets.entry(Facet::Action(kind.action)).or_default().merge(&tally);
            }
            if kind.direction != Direction::Unknown as u8 {
                facets.entry(Facet::Direction(kind.direction)).or_default().merge(&tally);
            }
        }
        facets.into_iter().for_each(|(facet, tally)| past.push(facet, start, tally));
    }

    fn judge(&self, past: &mut History<Facet, Tally>, now: Timestamp, findings: &mut Vec<Finding>) {
        for (facet, tally, bins) in past.in_bin(now.minus(self.bin)) {
            let verdict = match self.card.variant {
                Variant::Exact => self.exact(bins, now),
                Variant::Fixed => self.fixed(past, bins, now),
            };
            if verdict.fires {
                findings.push(self.finding(*facet, tally, &verdict, now));
            }
        }
    }
}
