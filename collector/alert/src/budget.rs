//! How many new alerts of one rule an hour may have. Beyond it they are in the alert file, each with the id of a storm: one alert that
//! says how many there are, and about whom.
//!
//! The hour is that of event time, and which alerts are within the budget depends on the order of the findings alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::Variant;
use spanwatch_detect::finding::{Evidence, clock_face};

use crate::alert::{Alert, AlertState, AlertWindow, Class, id};
use crate::book::half_decades;

const HOUR: Duration = Duration::from_secs(3_600);
/// Hours of rules held at once. Beyond, the earliest end.
const HOURS_MAX: usize = 1_024;
/// Alerts and hosts that a storm names.
const EXAMPLES_MAX: usize = 20;
/// Hosts that its sentence names.
const NAMED_MAX: usize = 3;

/// Counts new alerts, by rule and hour.
#[derive(Clone, Debug)]
pub struct Budget {
    per_hour: u64,
    hours: BTreeMap<(Timestamp, String, Variant), Hour>,
}

/// One rule in one hour.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Hour {
    /// New alerts.
    opened: u64,
    /// What speaks for those beyond the budget.
    storm: Option<Storm>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Storm {
    line: Alert,
    subjects: BTreeSet<Address>,
    told_value: f64,
}

/// Everything that a restart must not forget.
pub(crate) type Saved = Vec<(Timestamp, String, Variant, Vec<u8>)>;

impl Budget {
    /// Lets `per_hour` new alerts of each rule and form through.
    pub const fn new(per_hour: u64) -> Self {
        Self { per_hour, hours: BTreeMap::new() }
    }

    /// Counts the new alert `line`. If it is beyond the budget, returns the id of the storm that speaks for it, and adds to `out` what
    /// is to be told of that.
    pub fn count(&mut self, line: &Alert, now: Timestamp, out: &mut Vec<Alert>) -> Option<String> {
        let start = line.last.floor(HOUR);
        let hour = self.hours.entry((start, line.rule.clone(), line.variant)).or_default();
        hour.opened += 1;
        if hour.opened <= self.per_hour {
            return None;
        }
        let is_new = hour.storm.is_none();
        let storm = hour.storm.get_or_insert_with(|| Storm::new(line, start, now));
        storm.add(line, hour.opened, self.per_hour);
        if is_new || half_decades(storm.line.evidence.value, storm.told_value) {
            out.push(storm.tell(if is_new { AlertState::Open } else { AlertState::Updated }, now));
        }
        let id = storm.line.id.clone();
        if self.hours.len() > HOURS_MAX
            && let Some((_, earliest)) = self.hours.pop_first()
        {
            out.extend(earliest.storm.map(|mut storm| storm.tell(AlertState::Closed, now)));
        }
        Some(id)
    }

    /// Ends the hours that event time has passed by an hour: their numbers are final.
    pub fn expire(&mut self, watermark: Timestamp, now: Timestamp, out: &mut Vec<Alert>) {
        while let Some(entry) = self.hours.first_entry()
            && entry.key().0.plus(HOUR * 2) <= watermark
        {
            out.extend(entry.remove().storm.map(|mut storm| storm.tell(AlertState::Closed, now)));
        }
    }

    /// Storms that are not over.
    pub fn storms(&self) -> usize {
        self.hours.values().filter(|hour| hour.storm.is_some()).count()
    }

    /// Takes over what others have made of `line`, which was just told.
    pub(crate) fn adopt(&mut self, line: &Alert) {
        let storms = self.hours.values_mut().filter_map(|hour| hour.storm.as_mut());
        storms.filter(|storm| storm.line.id == line.id).for_each(|storm| storm.line = line.clone());
    }

    pub(crate) fn to_saved(&self) -> Result<Saved, rmp_serde::encode::Error> {
        let save = |((start, rule, variant), hour): (&(Timestamp, String, Variant), &Hour)| {
            Ok((*start, rule.clone(), *variant, rmp_serde::to_vec_named(hour)?))
        };
        self.hours.iter().map(save).collect()
    }

    pub(crate) fn resume(&mut self, saved: Saved) -> Result<(), rmp_serde::decode::Error> {
        for (start, rule, variant, hour) in saved {
            self.hours.insert((start, rule, variant), rmp_serde::from_slice(&hour)?);
        }
        Ok(())
    }
}

impl Storm {
    fn new(first: &Alert, start: Timestamp, now: Timestamp) -> Self {
        let subject = format!("the hour from {}", clock_face(start));
        let id = id(&format!("STORM {}", first.rule), first.variant, &subject, start);
        let line = Alert {
            id,
            class: Class::Storm,
            title: format!("Storm: {}", first.title),
            subject,
            source: None,
            destination: None,
            state: AlertState::Open,
            detected: now,
            window: AlertWindow { start, secs: HOUR.as_secs() },
            windows: 1,
            reopened: 0,
            advice: "Find out what they have in common: one cause, a role that is missing, or a threshold that is too low here."
                .to_owned(),
            doubts: Vec::new(),
            incident: None,
            muted: None,
            storm: None,
            spoken_for: None,
            members: Vec::new(),
            evidence: Evidence::default(),
            ..first.clone()
        };
        Self { line, subjects: BTreeSet::new(), told_value: 0.0 }
    }

    fn add(&mut self, alert: &Alert, opened: u64, budget: u64) {
        let line = &mut self.line;
        line.severity = line.severity.max(alert.severity);
        line.confidence = line.confidence.max(alert.confidence);
        (line.first, line.last) = (line.first.min(alert.first), line.last.max(alert.last));
        if line.members.len() < EXAMPLES_MAX {
            line.members.push(alert.id.clone());
        }
        self.subjects.extend(alert.source.or(alert.destination));
        if self.subjects.len() > EXAMPLES_MAX {
            self.subjects.pop_last();
        }
        line.evidence = Evidence {
            value: opened as f64,
            threshold: budget as f64,
            unit: "alerts".to_owned(),
            hosts: self.subjects.iter().copied().collect(),
            ..Evidence::default()
        };
        line.score = opened as f64 / (budget as f64).max(1.0);
        let named: Vec<String> = self.subjects.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let about = if named.is_empty() { String::new() } else { format!(", some of them about {}", named.join(", ")) };
        line.sentence = format!(
            "{} opened {opened} alerts in {}, {} beyond its budget of {budget}; those are in the alert file and were not told one by \
             one{about}.",
            line.rule,
            line.subject,
            opened - budget,
        );
    }

    fn tell(&mut self, state: AlertState, now: Timestamp) -> Alert {
        (self.line.state, self.line.told) = (state, now);
        self.told_value = self.line.evidence.value;
        self.line.clone()
    }
}
