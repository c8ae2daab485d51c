//! Rules over time series, baselines and first sights: what is unusual for a host, a port or the whole network.
//!
//! In the order you need them: [`bins`] the schedule that all of them share · [`history`] what closed bins leave behind ·
//! [`daily`] AZ-08, AZ-10 · [`smb`] AZ-13 · [`outbound`] AZ-15 · [`rates`] AZ-18, AZ-19 · [`firsts`] AZ-20, AZ-21 · [`common_ports`]
//! AZ-25 · [`ranking`] AZ-26.

pub(crate) mod bins;
pub(crate) mod common_ports;
pub(crate) mod daily;
pub(crate) mod firsts;
pub(crate) mod history;
pub(crate) mod outbound;
pub(crate) mod ranking;
pub(crate) mod rates;
pub(crate) mod smb;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Origin;
use spanwatch_common::flow::FlowState;
use spanwatch_common::time::Timestamp;
use spanwatch_kql::stats;

use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window};
use crate::row::{Part, Row};
use crate::rules::Exclude;
use crate::scan::{ALL_BUT_TAILS, is_countable};

/// Rows counted, and when.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
}

impl Tally {
    /// Counts `count` more, from a row at `at`.
    pub(crate) fn add(&mut self, count: u64, at: Timestamp) {
        self.merge(&Self { count, first: at, last: at });
    }

    /// Counts what `other` counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.first = if self.first.is_some() { self.first.min(other.first) } else { other.first };
        self.last = self.last.max(other.last);
        self.count = self.count.saturating_add(other.count);
    }
}

/// Whether a rule of this form looks at `row` at all. An exact form reads every row of a log; the tail of a sensor's flow, which
/// counts nothing, is no row. A fixed form leaves out what [`is_countable`] does.
pub(crate) fn looks_at(variant: Variant, exclude: &Exclude, row: &Row) -> bool {
    row.part != Part::Tail && (variant == Variant::Exact || is_countable(row, exclude))
}

/// The rows of which [`looks_at`] may be true.
pub(crate) fn looked_at(variant: Variant) -> Interest {
    match variant {
        Variant::Exact => ALL_BUT_TAILS,
        Variant::Fixed => Interest::only(Facts::COUNTABLE).but_not(Facts::TAIL),
    }
}

/// How many flows `row` counts for: an exact form counts rows, as the public rules do. A fixed form counts a flow once: a later slice is
/// no other flow, and a sensor has announced each flow that it says is over.
pub(crate) fn flows(variant: Variant, row: &Row) -> u64 {
    match variant {
        Variant::Exact => 1,
        Variant::Fixed if row.state == FlowState::Continue && row.origin == Origin::Sensor => 0,
        Variant::Fixed if row.state == FlowState::End && row.origin == Origin::Sensor && row.flow != 0 => 0,
        Variant::Fixed => u64::from(row.events),
    }
}

/// How many median deviations `value` lies above the median of `usual`, and that median. A spread below a twentieth of the median
/// counts as that, and below `least` as `least`: a host that does the same every day may vary a little without being odd.
pub(crate) fn robust_z(value: f64, usual: &[f64], least: f64) -> Option<(f64, f64)> {
    let median = stats::median(usual)?;
    let distances: Vec<f64> = usual.iter().map(|x| (x - median).abs()).collect();
    // 1.4826 turns the median deviation of normally distributed values into their standard deviation.
    let spread = (1.4826 * stats::median(&distances)?).max(0.05 * median).max(least);
    Some(((value - median) / spread, median))
}

/// Mean and sample standard deviation of whole numbers, from sums that no order of adding can change; none for fewer than two.
pub(crate) fn mean_and_stdev(values: impl Iterator<Item = u64>) -> Option<(f64, f64)> {
    let mut sums = Sums::default();
    values.for_each(|value| sums.add(value));
    Some((sums.mean()?, sums.stdev()?))
}

/// Count, sum and sum of squares of whole numbers.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) count: u64,
    sum: u128,
    squares: u128,
}

impl Sums {
    /// Takes in `value`.
    pub(crate) fn add(&mut self, value: u64) {
        self.merge(&Self { count: 1, sum: u128::from(value), squares: u128::from(value) * u128::from(value) });
    }

    /// Takes in what `other` has.
    pub(crate) const fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
        self.squares = self.squares.saturating_add(other.squares);
    }

    /// The mean; none of nothing.
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// KQL's `stdev`: of a sample; none for fewer than two values.
    pub(crate) fn stdev(&self) -> Option<f64> {
        let n = u128::from(self.count);
        if n < 2 {
            return None;
        }
        let variance = match n.checked_mul(self.squares).zip(self.sum.checked_mul(self.sum)) {
            Some((above, below)) => above.saturating_sub(below) as f64 / (n * (n - 1)) as f64,
            None => (self.squares as f64 - self.sum as f64 / n as f64 * self.sum as f64).max(0.0) / (n - 1) as f64,
        };
        Some(variance.sqrt())
    }
}

/// `on 2026-11-21`, `in the hour from 2026-11-21 10:00`, `in the 7200 s from 2026-11-21 10:00`; always UTC.
pub(crate) fn during(start: Timestamp, length: Duration) -> String {
    let text = start.to_string().replace('T', " ");
    let (day, minute) = (text.get(..10).unwrap_or(&text), text.get(..16).unwrap_or(&text));
    match length.as_secs() {
        86_400 => format!("on {day}"),
        3_600 => format!("in the hour from {minute}"),
        secs => format!("in the {secs} s from {minute}"),
    }
}

/// `value` over `threshold` for sorting, or `value` where the threshold is zero.
pub(crate) fn score(value: f64, threshold: f64) -> f64 {
    crate::finding::round2(if threshold > 0.0 { value / threshold } else { value })
}

/// What the rule with `card` says of `tally`, which belongs to `window`; as heavy as the value of `evidence` is over its threshold.
pub(crate) fn claim(
    card: &Arc<RuleCard>,
    subject: Subject,
    window: Window,
    tally: &Tally,
    evidence: Evidence,
    sentence: String,
) -> Finding {
    Finding {
        rule: card.clone(),
        stage: Stage::Closed,
        subject,
        window,
        first: tally.first,
        last: tally.last,
        sentence,
        advice: String::new(),
        score: score(evidence.value, evidence.threshold),
        confidence: card.variant.confidence(),
        evidence,
    }
}

/// Puts what was found since `from` in order of weight, heaviest first, and keeps `most`.
pub(crate) fn keep_top(findings: &mut Vec<Finding>, from: usize, most: usize) {
    findings[from..].sort_by(|a, b| b.evidence.value.total_cmp(&a.evidence.value).then_with(|| a.subject.cmp(&b.subject)));
    findings.truncate(from.saturating_add(most));
}
