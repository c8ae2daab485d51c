//! What the state of the sensors takes from a finding: a blind, lossy or one-sided sensor makes it less sure, and the alert says why.
//!
//! | what was wrong | confidence times | severity |
//! | --- | --- | --- |
//! | packets lost, shed or sampled | 0.8 | |
//! | more than 1 % of them | 0.5 | informational, where failures are counted and it rests on so few that unseen answers could explain it |
//! | one direction only, of more than 20 % of TCP flows | 0.5 | informational: who seems to fail may have been answered unseen |
//! | nothing seen for a while | 0.4 | |
//! | sensor started less than ten minutes ago | 0.8 | |
//!
//! Of a loss, at most that share of the attempts was answered unseen. So many failures less, and the score must still be 1; else the severity
//! falls. Whoever counts no failures only counts too little, which takes nothing from the severity.
//!
//! Only what the rule [says](Weakness) weakens it counts, each weakness once, and only if it lasted for a twentieth of the finding's
//! window: a bad minute does not spoil a day.

use std::collections::BTreeMap;
use std::time::Duration;

use spanwatch_common::time::Timestamp;
use spanwatch_detect::Finding;
use spanwatch_detect::finding::Severity;
use spanwatch_detect::rules::common::Weakness;

/// From this share of packets on, a loss is grave.
pub const LOSS_GRAVE: f64 = 0.01;
/// From this share of TCP flows on, it is grave that one side is missing. Below it are asymmetric routes and dying connections.
pub const ONE_SIDED_GRAVE: f64 = 0.2;
/// How long a sensor is young after its start.
pub const YOUNG_FOR: Duration = Duration::from_secs(600);
/// A condition counts if it lasted for one part in so many of the window.
const WINDOW_PARTS: u32 = 20;
/// Conditions are remembered for so long after their end: no window is longer than a day.
const REMEMBERED_FOR: Duration = Duration::from_secs(90_000);
/// Conditions remembered at once. Beyond, those that ended first are forgotten.
const CONDITIONS_MAX: usize = 4_096;
/// Sentences in one alert.
const DOUBTS_MAX: usize = 5;

/// Something was wrong with what a sensor saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Name of the sensor.
    pub sensor: String,
    /// Its capture port, if only one is concerned.
    pub interface: String,
    /// What was wrong.
    pub weakness: Weakness,
    /// Which share of what should have been seen is concerned, 0 to 1.
    pub share: f64,
    /// From when on.
    pub from: Timestamp,
    /// Until when; it may last longer than is known now.
    pub until: Timestamp,
    /// What a person is told: `eno2 at plant1 lost 3 % of its packets: counts may be too small.`
    pub says: String,
}

impl Condition {
    /// Whether `finding` would stand, if what was missed were answers.
    fn leaves(&self, finding: &Finding) -> bool {
        let Some(failures) = finding.evidence.failures.filter(|_| self.weakness == Weakness::Loss) else {
            return self.weakness != Weakness::OneSided;
        };
        let attempts = finding.evidence.attempts.unwrap_or(failures).max(failures);
        finding.score * (1.0 - self.share * attempts as f64 / failures.max(1) as f64) >= 1.0
    }

    /// Whether it may take from a severity, too.
    fn is_grave(&self) -> bool {
        match self.weakness {
            Weakness::Loss => self.share > LOSS_GRAVE,
            Weakness::OneSided => self.share > ONE_SIDED_GRAVE,
            Weakness::Blind | Weakness::Young => false,
        }
    }

    fn factor(&self) -> f64 {
        match (self.weakness, self.is_grave()) {
            (Weakness::Loss, false) | (Weakness::Young, _) => 0.8,
            (Weakness::Loss, true) | (Weakness::OneSided, _) => 0.5,
            (Weakness::Blind, _) => 0.4,
        }
    }

    /// Whether it lasted for a good part of `finding`'s window, which ends for now with the last record that speaks for it.
    fn concerns(&self, finding: &Finding) -> bool {
        let (start, end) = (finding.window.start, finding.window.end.min(finding.last).max(finding.window.start));
        let overlap = self.until.min(end).since(self.from.max(start));
        let is_within = self.from <= end && self.until >= start;
        is_within && overlap >= end.since(start) / WINDOW_PARTS && finding.evidence.observers.contains(&self.sensor)
    }
}

/// What is left of a finding's claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// How sure it is, 0 to 1.
    pub confidence: f64,
    /// How much it matters.
    pub severity: Severity,
    /// Why these are lower than the rule's, a sentence each.
    pub doubts: Vec<String>,
}

impl Judgement {
    /// All of it.
    pub fn sound(finding: &Finding) -> Self {
        Self { confidence: finding.confidence, severity: finding.rule.severity, doubts: Vec::new() }
    }
}

/// Judges `finding`, whose rule is weakened by `weaknesses`, by the state of the sensors.
pub fn judge(finding: &Finding, weaknesses: &[Weakness], conditions: &Conditions) -> Judgement {
    let mut judgement = Judgement::sound(finding);
    let mut factors: BTreeMap<Weakness, f64> = BTreeMap::new();
    for condition in conditions.all().filter(|condition| weaknesses.contains(&condition.weakness) && condition.concerns(finding))
    {
        let factor = factors.entry(condition.weakness).or_insert(1.0);
        *factor = factor.min(condition.factor());
        if condition.is_grave() && !condition.leaves(finding) {
            judgement.severity = Severity::Informational;
        }
        if judgement.doubts.len() < DOUBTS_MAX && !judgement.doubts.contains(&condition.says) {
            judgement.doubts.push(condition.says.clone());
        }
    }
    let left = factors.values().product::<f64>() * finding.confidence;
    judgement.confidence = (left * 1_000.0).round() / 1_000.0;
    if factors.is_empty() {
        judgement.confidence = finding.confidence;
    }
    judgement
}

/// What was wrong with the sensors in the last day.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// By sensor, interface, weakness and beginning.
    held: BTreeMap<Key, Condition>,
}

type Key = (String, String, Weakness, Timestamp);

impl Conditions {
    /// Takes note of a condition. One that goes on where the same was known before prolongs it.
    pub fn note(&mut self, condition: Condition) {
        let key = |from| (condition.sensor.clone(), condition.interface.clone(), condition.weakness, from);
        let before = self.held.range_mut(key(Timestamp::NONE)..=key(condition.from)).next_back();
        match before {
            Some((_, known)) if known.until >= condition.from => {
                known.until = known.until.max(condition.until);
                if condition.share >= known.share {
                    (known.share, known.says) = (condition.share, condition.says);
                }
            }
            _ => {
                self.held.insert(key(condition.from), condition);
            }
        }
        while self.held.len() > CONDITIONS_MAX {
            let Some(first) = self.held.iter().min_by_key(|(_, condition)| condition.until).map(|(key, _)| key.clone()) else {
                return;
            };
            self.held.remove(&first);
        }
    }

    /// The condition is over: what was thought to last longer than `now` does not.
    pub fn end(&mut self, sensor: &str, interface: &str, weakness: Weakness, now: Timestamp) {
        let key = |from| (sensor.to_owned(), interface.to_owned(), weakness, from);
        for (_, condition) in self.held.range_mut(key(Timestamp::NONE)..=key(now)) {
            condition.until = condition.until.min(now);
        }
    }

    /// Forgets what no window reaches any more.
    pub fn forget(&mut self, now: Timestamp) {
        self.held.retain(|_, condition| condition.until.plus(REMEMBERED_FOR) >= now);
    }

    /// By sensor, interface, weakness and beginning.
    pub fn all(&self) -> impl Iterator<Item = &Condition> {
        self.held.values()
    }

    pub(crate) fn to_saved(&self) -> Vec<Saved> {
        let save = |condition: &Condition| {
            let Condition { sensor, interface, weakness, share, from, until, says } = condition.clone();
            (sensor, interface, WEAKNESSES.iter().position(|known| *known == weakness).unwrap_or(0), share, from, until, says)
        };
        self.all().map(save).collect()
    }

    pub(crate) fn from_saved(saved: Vec<Saved>) -> Self {
        let mut conditions = Self::default();
        for (sensor, interface, weakness, share, from, until, says) in saved {
            if let Some(&weakness) = WEAKNESSES.get(weakness) {
                conditions.note(Condition { sensor, interface, weakness, share, from, until, says });
            }
        }
        conditions
    }
}

/// Their places are written to disk.
const WEAKNESSES: [Weakness; 4] = [Weakness::Loss, Weakness::OneSided, Weakness::Blind, Weakness::Young];

/// A condition as it is written to disk.
pub(crate) type Saved = (String, String, usize, f64, Timestamp, Timestamp, String);
