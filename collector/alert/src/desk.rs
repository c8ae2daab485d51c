//! Where findings become lines: the gate, the book, mutes, budget and incidents, in this order.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;
use spanwatch_detect::rules::common::Weakness;
use spanwatch_detect::{Finding, RuleFile};

use crate::alert::{Alert, AlertState, Class, Muted, hash};
use crate::book::AlertBook;
use crate::budget::{self, Budget};
use crate::gate::{self, Conditions, Judgement};
use crate::incident::{self, Incidents};
use crate::mute::Mutes;

/// Everything between findings and lines about what records show. Every line it adds to an `out` belongs into the alert file; those
/// that are not [quiet](Alert::is_quiet) are for people.
pub struct Desk {
    book: AlertBook,
    budget: Budget,
    incidents: Incidents,
    conditions: Conditions,
    mutes: Mutes,
    rules: BTreeMap<&'static str, RuleFacts>,
    /// When alerts that the file has, but the book not yet again, were first detected: by id.
    detected: HashMap<String, Timestamp>,
}

/// What the desk needs to know of a rule.
struct RuleFacts {
    weakened_by: &'static [Weakness],
    /// See [`fingerprints`].
    settings: String,
}

/// The rules that see a scan as well as the public rule `rule` does, and sooner: one scan need not be told six times.
fn better_than(rule: &str) -> Option<&'static [&'static str]> {
    match rule {
        "AZ-01" | "AZ-06" | "AZ-17" => Some(&["ND-02", "ND-03"]),
        "AZ-02" | "AZ-05" | "AZ-16" => Some(&["ND-01", "ND-03"]),
        "AZ-22" | "AZ-23" => Some(&["ND-01", "ND-02", "ND-03"]),
        _ => None,
    }
}

/// What a restart must not forget.
#[derive(Serialize, Deserialize)]
struct Memory {
    #[serde(with = "serde_bytes")]
    book: Vec<u8>,
    budget: budget::Saved,
    incidents: incident::Saved,
    conditions: Vec<gate::Saved>,
}

/// By rule, a short text that changes when one of its settings does that can change what it finds.
pub fn fingerprints(rules: &RuleFile) -> BTreeMap<&'static str, String> {
    rules.rules().map(|(entry, rule)| (entry.id, fingerprint(rule.settings()))).collect()
}

fn fingerprint(mut settings: toml::Table) -> String {
    for key in ["variants", "enabled", "severity", "attack", "keys_max"] {
        settings.remove(key);
    }
    hash(&settings.to_string()).chars().take(8).collect()
}

impl Desk {
    /// An empty desk for at most `alerts_max` alerts of which each rule may open `per_hour` in an hour.
    pub fn new(rules: &RuleFile, alerts_max: usize, per_hour: u64) -> Self {
        let mut desk = Self {
            book: AlertBook::new(Class::Detection, alerts_max),
            budget: Budget::new(per_hour),
            incidents: Incidents::default(),
            conditions: Conditions::default(),
            mutes: Mutes::default(),
            rules: BTreeMap::new(),
            detected: HashMap::new(),
        };
        desk.set_rules(rules);
        desk
    }

    /// New rules are in force.
    pub fn set_rules(&mut self, rules: &RuleFile) {
        let facts = |rule: &dyn spanwatch_detect::rules::Rule| RuleFacts {
            weakened_by: rule.weakened_by(),
            settings: fingerprint(rule.settings()),
        };
        self.rules = rules.rules().map(|(entry, rule)| (entry.id, facts(rule))).collect();
    }

    /// Takes over what an earlier run wrote into the alert file: the newest line of each id, in the order in which they first appear.
    pub fn restore(&mut self, lines: &[Alert]) {
        self.book.restore(lines.iter().cloned());
        self.incidents.restore(lines);
    }

    /// Everything known, for [`resume`](Self::resume). The mutes are not in it: they have a file of their own.
    ///
    /// # Errors
    /// None that a desk can bring about; the encoder has a right to some.
    pub fn snapshot(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec_named(&Memory {
            book: self.book.snapshot()?,
            budget: self.budget.to_saved()?,
            incidents: self.incidents.to_saved(),
            conditions: self.conditions.to_saved(),
        })
    }

    /// Goes on from an earlier [`snapshot`](Self::snapshot) instead of what it knows. What is found anew, but stands in `written` already,
    /// keeps the time of its detection.
    ///
    /// # Errors
    /// The bytes are no snapshot of this version of the collector; nothing has changed then.
    pub fn resume<'a>(
        &mut self,
        snapshot: &[u8],
        written: impl IntoIterator<Item = &'a Alert>,
    ) -> Result<(), rmp_serde::decode::Error> {
        let memory: Memory = rmp_serde::from_slice(snapshot)?;
        let mut book = AlertBook::new(Class::Detection, self.book.alerts_max());
        book.resume(&memory.book)?;
        let mut budget = self.budget.clone();
        budget.resume(memory.budget)?;
        (self.book, self.budget) = (book, budget);
        self.incidents = Incidents::from_saved(memory.incidents);
        self.conditions = Conditions::from_saved(memory.conditions);
        let written: Vec<&Alert> = written.into_iter().collect();
        self.incidents.recall(written.iter().copied());
        self.detected = written.into_iter().map(|alert| (alert.id.clone(), alert.detected)).collect();
        Ok(())
    }

    /// The state of the sensors, for findings to come.
    pub const fn conditions(&mut self) -> &mut Conditions {
        &mut self.conditions
    }

    /// [Takes](Self::take) what was found in one moment: first what our own rules found, which may make other findings ones for the record.
    pub fn take_all(&mut self, findings: &mut Vec<Finding>, now: Timestamp, out: &mut Vec<Alert>) {
        findings.sort_by_key(|finding| better_than(finding.rule.id).is_some());
        for finding in findings.drain(..) {
            self.take(&finding, now, out);
        }
    }

    /// Merges `finding` into its alert, and adds to `out` what is worth telling of it, of its incident and of the storm to which it belongs.
    pub fn take(&mut self, finding: &Finding, now: Timestamp, out: &mut Vec<Alert>) {
        let judgement = match self.rules.get(finding.rule.id) {
            Some(facts) => gate::judge(finding, facts.weakened_by, &self.conditions),
            None => Judgement::sound(finding),
        };
        let mut lines = Vec::new();
        self.book.take_judged(finding, &judgement, now, &mut lines);
        let mut others = Vec::new();
        for line in &mut lines {
            self.finish(line, now, &mut others);
        }
        let incident = match self.book.alert_of(finding) {
            Some(alert) => self.incidents.see(alert, now, &mut others),
            None => None,
        };
        for line in lines.iter_mut().filter(|line| line.is_open() && line.incident != incident) {
            line.incident.clone_from(&incident);
            self.book.adopt(line);
        }
        out.append(&mut lines);
        self.finish_others(others, now, out);
    }

    /// Closes what is over at `watermark` (event time), and lets those speak again whose mute has ended at `now`.
    pub fn expire(&mut self, watermark: Timestamp, now: Timestamp, out: &mut Vec<Alert>) {
        let (mut lines, mut others) = (Vec::new(), Vec::new());
        self.book.expire(watermark, now, &mut lines);
        self.book.tell_again(|alert| alert.muted.as_ref().is_some_and(|muted| muted.until <= now), now, &mut lines);
        for line in &mut lines {
            self.finish(line, now, &mut others);
        }
        self.incidents.expire(watermark, now, &mut others);
        self.budget.expire(watermark, now, &mut others);
        self.conditions.forget(now);
        out.append(&mut lines);
        self.finish_others(others, now, out);
    }

    /// Puts other mutes into force, and tells the alerts for which that makes a difference.
    pub fn set_mutes(&mut self, mutes: Mutes, now: Timestamp, out: &mut Vec<Alert>) {
        self.mutes = mutes;
        let (mut lines, mut others) = (Vec::new(), Vec::new());
        self.book.tell_again(|alert| self.mutes.of(alert, now) != alert.muted.as_ref(), now, &mut lines);
        for line in &mut lines {
            self.finish(line, now, &mut others);
        }
        out.append(&mut lines);
        self.finish_others(others, now, out);
    }

    /// Every alert held, as it stands.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.book.alerts()
    }

    /// How many alerts, incidents and storms are not closed.
    pub fn open_count(&self) -> usize {
        self.book.open_count() + self.incidents.open().count() + self.budget.storms()
    }

    /// How many open alerts are muted.
    pub fn muted_count(&self) -> usize {
        self.book.alerts().filter(|alert| alert.is_open() && alert.muted.is_some()).count()
    }

    /// How many incidents are not closed.
    pub fn incident_count(&self) -> usize {
        self.incidents.open().count()
    }

    /// How many alerts were forgotten because there were too many.
    pub const fn forgotten(&self) -> u64 {
        self.book.forgotten()
    }

    /// Adds to a line that the book has told what it does not know: mute, budget, settings.
    fn finish(&mut self, line: &mut Alert, now: Timestamp, others: &mut Vec<Alert>) {
        if let Some(facts) = self.rules.get(&*line.rule) {
            line.settings.clone_from(&facts.settings);
        }
        line.incident = self.incidents.of(&line.id).cloned();
        self.keep_detected(line);
        let was_aloud = self.book.is_aloud(line);
        match line.state {
            AlertState::Closed if was_aloud => (line.muted, line.storm, line.spoken_for) = (None, None, None),
            AlertState::Closed => {}
            AlertState::Open => {
                line.muted = self.muted(line, now);
                line.spoken_for = self.speaker(line);
                line.storm = if line.is_quiet() { None } else { self.budget.count(line, now, others) };
            }
            AlertState::Updated => {
                line.muted = self.muted(line, now);
                line.spoken_for = self.speaker(line);
                // Nobody was told that it is open; the one who reads this learns it now.
                if !line.is_quiet() && !was_aloud {
                    line.state = AlertState::Open;
                }
            }
        }
        self.book.adopt(line);
    }

    /// The same for lines of incidents and storms.
    fn finish_others(&mut self, others: Vec<Alert>, now: Timestamp, out: &mut Vec<Alert>) {
        for mut line in others {
            self.keep_detected(&mut line);
            if line.is_open() {
                line.muted = self.muted(&line, now);
            }
            match line.class {
                Class::Incident => self.incidents.adopt(&line),
                _ => self.budget.adopt(&line),
            }
            out.push(line);
        }
    }

    fn keep_detected(&mut self, line: &mut Alert) {
        if let Some(at) = self.detected.remove(&line.id) {
            line.detected = at;
        }
    }

    /// The open alert of a better rule about the same source, which makes `line` one for the record.
    fn speaker(&self, line: &Alert) -> Option<String> {
        let better = better_than(&line.rule)?;
        let about = |alert: &&Alert| {
            alert.is_open() && alert.source.is_some() && alert.source == line.source && better.contains(&&*alert.rule)
        };
        self.book.alerts().filter(about).map(|alert| &alert.id).min().cloned()
    }

    /// Who mutes `line`, if anybody does.
    pub fn muted(&self, line: &Alert, now: Timestamp) -> Option<Muted> {
        self.mutes.of(line, now).cloned()
    }
}
