//! Findings as lines: what `detect` prints for whoever compares rules, row by row.

use std::io::{self, Write};

use serde::{Serialize, Serializer};
use spanwatch_common::time::Timestamp;

use crate::detect::finding::Subject;
use crate::detect::{Finding, Variant};

/// One rule in one form, one key, one bin.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    /// `AZ-01`.
    pub(super) rule: &'static str,
    /// Exact or fixed.
    pub(super) variant: Variant,
    /// The key: `src`, `dst`, `dport`, `proto`, `vm`, `service`, `observer`, `facet`, as far as the rule has them.
    #[serde(flatten)]
    key: Subject,
    /// Where the bin begins, RFC 3339 in UTC.
    #[serde(serialize_with = "rfc3339")]
    bin_start: Timestamp,
    #[serde(serialize_with = "number")]
    value: f64,
    #[serde(serialize_with = "number")]
    threshold: f64,
}

impl Line {
    pub(super) fn of(finding: &Finding) -> Self {
        Self {
            rule: finding.rule.id,
            variant: finding.rule.variant,
            key: finding.subject.clone(),
            bin_start: finding.window.start,
            value: finding.evidence.value,
            threshold: finding.evidence.threshold,
        }
    }

    /// By rule, form, bin and key.
    pub(super) fn order(&self, other: &Self) -> std::cmp::Ordering {
        let place = |line: &Self| (line.rule, line.variant, line.bin_start);
        place(self).cmp(&place(other)).then_with(|| self.key.cmp(&other.key))
    }
}

/// One JSON object per line.
pub(super) fn print(lines: &[Line], out: &mut impl Write) -> io::Result<()> {
    lines.iter().try_for_each(|line| {
        serde_json::to_writer(&mut *out, line)?;
        out.write_all(b"\n")
    })
}

/// `2026-11-21T10:41:00Z`; with a fraction only where there is one.
fn rfc3339<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    let text = at.to_string();
    let text = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    to.serialize_str(&format!("{text}Z"))
}

/// Counts as whole numbers, the rest with their fraction.
fn number<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT_MAX { to.serialize_i64(*value as i64) } else { to.serialize_f64(*value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_rule_key_bin_value_and_threshold() {
        let line = Line {
            rule: "AZ-02",
            variant: Variant::Exact,
            key: Subject::pair("10.0.0.9".parse().unwrap(), "10.0.0.2".parse().unwrap()),
            bin_start: Timestamp::from_secs(1_795_255_200),
            value: 4.0,
            threshold: 3.0,
        };
        let text = |line: &Line| {
            let mut out = Vec::new();
            print(std::slice::from_ref(line), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(&line),
            "{\"rule\":\"AZ-02\",\"variant\":\"exact\",\"src\":\"10.0.0.9\",\"dst\":\"10.0.0.2\",\
             \"binStart\":\"2026-11-21T10:00:00Z\",\"value\":4,\"threshold\":3}\n"
        );
        let later = Line { bin_start: Timestamp::from_nanos(1_795_255_230_500_000_000), value: 1.85, ..line };
        assert!(text(&later).contains("\"binStart\":\"2026-11-21T10:00:30.5Z\",\"value\":1.85"), "{}", text(&later));
    }
}
