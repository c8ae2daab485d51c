//! How well alerts tell the truth: truth and alerts in, a table out. Who made either does not matter here.
//!
//! Scored is the alert, once for its whole life, however often it was updated. For each rule:
//!
//! | column | counts |
//! | --- | --- |
//! | true | alerts about somebody who attacked at the time, by a rule that is right to tell of that attack |
//! | false | alerts about nobody who attacked |
//! | beside | alerts about an attacker, by a rule for something else: neither true nor false |
//! | reports | alerts of severity informational, of which nobody is called: neither true nor false, and they find nothing |
//! | expected, found | attacks that the rule should find, and those of them that it told of in time |

use std::collections::BTreeMap;

use serde::Serialize;
use spanwatch_alert::{Alert, Class};
use spanwatch_detect::finding::Severity;

use crate::run::Caller;
use crate::truth::Attack;

/// The table.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Score {
    pub(crate) rules: BTreeMap<String, RuleScore>,
    pub(crate) groups: BTreeMap<String, GroupScore>,
    /// Hosts × days.
    pub(crate) host_days: f64,
    /// Attacks that no rule told of in time.
    pub(crate) missed: Vec<String>,
    /// Alerts about nobody who attacked.
    pub(crate) false_alerts: Vec<String>,
    pub(crate) beside: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct RuleScore {
    pub(crate) true_alerts: u64,
    pub(crate) false_alerts: u64,
    pub(crate) beside: u64,
    pub(crate) reports: u64,
    pub(crate) expected: u64,
    pub(crate) found: u64,
    /// Seconds from when the alert was due until it was told, of what was found; below zero if it was told before.
    pub(crate) waits: Vec<f64>,
    /// What it should have found and did not.
    pub(crate) missed: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct GroupScore {
    pub(crate) attacks: u64,
    pub(crate) found: u64,
    pub(crate) waits: Vec<f64>,
}

/// `part ÷ whole`; none of nothing.
pub(crate) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The middle and the largest of `waits`.
pub(crate) fn middle_and_worst(waits: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = waits.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some((*sorted.get(sorted.len() / 2)?, *sorted.last()?))
}

impl Score {
    pub(crate) fn of(truth: &[Attack], alerts: &[Alert], host_days: f64) -> Self {
        let mut score = Self { host_days, ..Self::default() };
        // By attack and rule: when it was first told of.
        let mut told: BTreeMap<(usize, &str), f64> = BTreeMap::new();
        for alert in alerts.iter().filter(|alert| alert.class == Class::Detection) {
            score.judge(alert, truth, &mut told);
        }
        for (number, attack) in truth.iter().enumerate() {
            let in_time = |wait: f64| attack.within_secs.is_none_or(|within| wait <= within);
            let of_attack = || told.iter().filter(|((of, _), _)| *of == number);
            let best = of_attack().map(|(_, &wait)| wait).fold(f64::INFINITY, f64::min);
            let group = score.groups.entry(attack.group.clone()).or_default();
            group.attacks += 1;
            if best.is_finite() && in_time(best) {
                group.found += 1;
                group.waits.push(best);
            } else {
                let late = if best.is_finite() { format!(": told after {best:.1} s") } else { String::new() };
                score.missed.push(format!("{}: {}{late}", attack.group, attack.name));
            }
            for rule in &attack.expected {
                let own = score.rules.entry(rule.clone()).or_default();
                own.expected += 1;
                match told.get(&(number, rule.as_str())) {
                    Some(&wait) if in_time(wait) => {
                        own.found += 1;
                        own.waits.push(wait);
                    }
                    Some(wait) => own.missed.push(format!("{} (after {wait:.1} s)", attack.name)),
                    None => own.missed.push(attack.name.clone()),
                }
            }
        }
        score
    }

    fn judge<'a>(&mut self, alert: &'a Alert, truth: &[Attack], told: &mut BTreeMap<(usize, &'a str), f64>) {
        let own = self.rules.entry(alert.rule.clone()).or_default();
        if alert.severity == Severity::Informational {
            own.reports += 1;
            return;
        }
        let met: Vec<usize> = (0..truth.len()).filter(|&number| truth[number].is_met_by(alert)).collect();
        let named: Vec<usize> = met.iter().copied().filter(|&number| truth[number].is_named_by(&alert.rule)).collect();
        let line = || format!("{} {} {}: {}", alert.first, alert.rule, alert.severity, alert.sentence);
        if met.is_empty() {
            own.false_alerts += 1;
            self.false_alerts.push(line());
        } else if named.is_empty() {
            own.beside += 1;
            self.beside.push(line());
        } else {
            own.true_alerts += 1;
        }
        for number in named {
            let wait = (alert.detected.as_nanos() - truth[number].due) as f64 / 1e9;
            let first = told.entry((number, &alert.rule)).or_insert(wait);
            *first = first.min(wait);
        }
    }

    /// True and false alerts of the rules whose id begins with `family`.
    pub(crate) fn alerts(&self, family: &str) -> (u64, u64) {
        let of_family = self.rules.iter().filter(|(rule, _)| rule.starts_with(family));
        of_family.fold((0, 0), |(true_, false_), (_, own)| (true_ + own.true_alerts, false_ + own.false_alerts))
    }

    pub(crate) fn precision(&self, family: &str) -> Option<f64> {
        let (true_, false_) = self.alerts(family);
        ratio(true_, true_ + false_)
    }

    /// Share of a group's attacks that some rule told of in time.
    pub(crate) fn recall(&self, group: &str) -> Option<f64> {
        self.groups.get(group).and_then(|group| ratio(group.found, group.attacks))
    }

    pub(crate) fn false_per_1000_host_days(&self, family: &str) -> f64 {
        self.alerts(family).1 as f64 * 1_000.0 / self.host_days
    }
}

/// The area under the ROC curve of `rule` as a judge of rhythms: the chance that a beacon has a higher score than somebody innocent who
/// calls out as often. Who has no alert has score 0; equal scores count half.
pub(crate) fn area_under_curve(rule: &str, truth: &[Attack], alerts: &[Alert], callers: &[Caller]) -> Option<f64> {
    let beacons: Vec<&Attack> = truth.iter().filter(|attack| attack.group == "beacon").collect();
    let is_beacon = |caller: &Caller| {
        beacons.iter().any(|attack| {
            let named = |host| attack.by.iter().any(|prefix| prefix.contains(host));
            let victim = |host| attack.to.iter().any(|prefix| prefix.contains(host));
            named(caller.0) && victim(caller.1)
        })
    };
    let mut scores: BTreeMap<Caller, f64> = callers.iter().map(|&caller| (caller, 0.0)).collect();
    for alert in alerts.iter().filter(|alert| alert.rule == rule) {
        let (Some(source), Some(destination)) = (alert.source, alert.destination) else { continue };
        for (_, score) in scores.iter_mut().filter(|((from, to, _), _)| *from == source && *to == destination) {
            *score = score.max(alert.score);
        }
    }
    let (guilty, innocent): (Vec<_>, Vec<_>) = scores.into_iter().partition(|(caller, _)| is_beacon(caller));
    let mut innocent: Vec<f64> = innocent.into_iter().map(|(_, score)| score).collect();
    innocent.sort_by(f64::total_cmp);
    let above = |score: f64| {
        let below = innocent.partition_point(|&other| other < score);
        let equal = innocent.partition_point(|&other| other <= score) - below;
        below as f64 + equal as f64 / 2.0
    };
    let sum: f64 = guilty.iter().map(|&(_, score)| above(score)).sum();
    (!guilty.is_empty() && !innocent.is_empty()).then(|| sum / (guilty.len() * innocent.len()) as f64)
}
