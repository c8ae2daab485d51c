//! The life of an alert.
//!
//! One alert per rule, form and subject. It **opens** with the first finding; is **updated** when its value has grown by half a decade
//! (√10, about three times) or its severity has risen since it was last told, when its first window closes with other numbers, and
//! once an hour while it lasts; and **closes** after two windows of silence in event time, or, about a sensor's mirror, when that was
//! [found to be well](AlertBook::close). Coming back within a day it re-opens under its old id.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;
use spanwatch_detect::finding::{RuleCard, Severity, Stage, Subject};
use spanwatch_detect::{Finding, Variant};

use crate::alert::{Alert, AlertState, AlertWindow, Class, id};
use crate::attack;
use crate::gate::Judgement;

/// A closed alert whose subject comes back within this time re-opens.
const REOPEN_WITHIN: Duration = Duration::from_secs(86_400);
/// A lasting alert is told again after this time.
const REMIND_AFTER: Duration = Duration::from_secs(3_600);

/// All alerts of one class that are open, or could re-open.
///
/// Holds at most `alerts_max`; beyond, the longest silent are forgotten, counted, and would come back as new ones.
pub struct AlertBook {
    class: Class,
    held: BTreeMap<String, Held>,
    alerts_max: usize,
    forgotten: u64,
}

#[derive(Serialize, Deserialize)]
struct Held {
    alert: Alert,
    /// End of the newest window in which it was found.
    newest_end: Timestamp,
    /// Value and severity when it was last told, and the event time then.
    told_value: f64,
    told_severity: Severity,
    told_last: Timestamp,
    /// Somebody was told that it is open, and not yet that it is closed.
    aloud: bool,
}

impl Held {
    /// From when on silence means that it is over.
    fn quiet_from(&self) -> Timestamp {
        self.newest_end.plus(match self.alert.class {
            Class::Detection | Class::Incident | Class::Storm => Duration::from_secs(self.alert.window.secs.saturating_mul(2)),
            Class::Health => REOPEN_WITHIN,
        })
    }

    /// Marks the alert as told in `state` and returns what to tell.
    fn tell(&mut self, state: AlertState, now: Timestamp) -> Alert {
        self.alert.state = state;
        self.alert.told = now;
        self.told_value = self.alert.evidence.value;
        self.told_severity = self.alert.severity;
        self.told_last = self.alert.last;
        self.alert.clone()
    }

    /// Whether it has changed so much that it is worth telling again.
    fn has_grown(&self) -> bool {
        half_decades(self.alert.evidence.value, self.told_value) || self.alert.severity > self.told_severity
    }

    fn from_line(alert: Alert) -> Self {
        let window = Duration::from_secs(alert.window.secs);
        Self {
            newest_end: alert.last.floor(window).plus(window),
            told_value: alert.evidence.value,
            told_severity: alert.severity,
            told_last: alert.last,
            aloud: alert.is_open() && !alert.is_quiet(),
            alert,
        }
    }
}

impl AlertBook {
    /// An empty book for at most `alerts_max` alerts (at least one) of `class`.
    pub fn new(class: Class, alerts_max: usize) -> Self {
        Self { class, held: BTreeMap::new(), alerts_max: alerts_max.max(1), forgotten: 0 }
    }

    /// How many alerts it may hold.
    pub const fn alerts_max(&self) -> usize {
        self.alerts_max
    }

    /// Everything held, for [`resume`](Self::resume).
    ///
    /// # Errors
    /// None that a book can bring about; the encoder has a right to some.
    pub fn snapshot(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec_named(&self.held.values().collect::<Vec<_>>())
    }

    /// Goes on from an earlier [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// The bytes are no snapshot of this version of the collector.
    pub fn resume(&mut self, snapshot: &[u8]) -> Result<(), rmp_serde::decode::Error> {
        for held in rmp_serde::from_slice::<Vec<Held>>(snapshot)? {
            self.insert(held);
        }
        Ok(())
    }

    /// Takes over what an earlier run told: `lines` in the order in which they were written. Those of another class are passed over.
    pub fn restore(&mut self, lines: impl IntoIterator<Item = Alert>) {
        let class = self.class;
        for alert in lines.into_iter().filter(|alert| alert.class == class) {
            self.insert(Held::from_line(alert));
        }
    }

    /// Merges `finding` into its alert, and adds to `out` what is worth telling.
    pub fn take(&mut self, finding: &Finding, now: Timestamp, out: &mut Vec<Alert>) {
        self.take_judged(finding, &Judgement::sound(finding), now, out);
    }

    /// The same, of a finding of which the state of the sensors makes something else.
    pub fn take_judged(&mut self, finding: &Finding, judgement: &Judgement, now: Timestamp, out: &mut Vec<Alert>) {
        let subject = finding.subject.to_string();
        let Some(held) = self.held.get_mut(&key(finding.rule.id, finding.rule.variant, &subject)) else {
            out.push(self.open(finding, judgement, subject, now));
            return;
        };
        if finding.window.start > held.alert.last.plus(REOPEN_WITHIN) {
            if held.alert.is_open() {
                out.push(held.tell(AlertState::Closed, now));
            }
            out.push(self.open(finding, judgement, subject, now));
            return;
        }
        let silent = !held.alert.is_open() || finding.window.start >= held.quiet_from();
        let anew = silent && held.alert.class == Class::Health;
        let changed = merge(held, finding, judgement, silent, anew);
        if silent {
            held.alert.reopened += 1;
            out.push(held.tell(AlertState::Open, now));
        } else if changed && held.alert.windows == 1 && finding.stage == Stage::Closed
            || held.has_grown()
            || held.alert.last >= held.told_last.plus(REMIND_AFTER)
        {
            out.push(held.tell(AlertState::Updated, now));
        }
    }

    /// The alert of `finding`, if it is held.
    pub fn alert_of(&self, finding: &Finding) -> Option<&Alert> {
        let held = self.held.get(&key(finding.rule.id, finding.rule.variant, &finding.subject.to_string()));
        held.map(|held| &held.alert)
    }

    /// Whether somebody was told that the alert of `line` is open, and not yet that it is closed.
    pub(crate) fn is_aloud(&self, line: &Alert) -> bool {
        self.held.get(&key(&line.rule, line.variant, &line.subject)).is_some_and(|held| held.aloud)
    }

    /// Takes over from `line`, which it has just told, what others have made of it.
    pub(crate) fn adopt(&mut self, line: &Alert) {
        let Some(held) = self.held.get_mut(&key(&line.rule, line.variant, &line.subject)) else { return };
        if held.alert.id == line.id {
            held.aloud = if line.is_quiet() { held.aloud } else { line.is_open() };
            held.alert = line.clone();
        }
    }

    /// Tells the open alerts that `wanted` picks once more, as they stand.
    pub(crate) fn tell_again(&mut self, wanted: impl Fn(&Alert) -> bool, now: Timestamp, out: &mut Vec<Alert>) {
        for held in self.held.values_mut().filter(|held| held.alert.is_open() && wanted(&held.alert)) {
            out.push(held.tell(AlertState::Updated, now));
        }
    }

    /// Closes the alert of `rule` about `subject`, if one is open: what it tells of is over.
    pub fn close(&mut self, rule: &RuleCard, subject: &Subject, now: Timestamp, out: &mut Vec<Alert>) {
        let held = self.held.get_mut(&key(rule.id, rule.variant, &subject.to_string()));
        out.extend(held.filter(|held| held.alert.is_open()).map(|held| held.tell(AlertState::Closed, now)));
    }

    /// Closes what has been silent for two windows at `watermark` (event time: all windows up to there are closed), and forgets
    /// what can no longer re-open.
    pub fn expire(&mut self, watermark: Timestamp, now: Timestamp, out: &mut Vec<Alert>) {
        for held in self.held.values_mut() {
            if held.alert.is_open() && held.quiet_from() <= watermark {
                out.push(held.tell(AlertState::Closed, now));
            }
        }
        self.held.retain(|_, held| held.alert.is_open() || held.alert.last.plus(REOPEN_WITHIN) >= watermark);
    }

    /// Every alert held, as it stands.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.held.values().map(|held| &held.alert)
    }

    /// How many alerts are not closed.
    pub fn open_count(&self) -> usize {
        self.alerts().filter(|alert| alert.is_open()).count()
    }

    /// How many alerts were forgotten because there were too many.
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn open(&mut self, finding: &Finding, judgement: &Judgement, subject: String, now: Timestamp) -> Alert {
        let Finding { rule, window, .. } = finding;
        let alert = Alert {
            id: id(rule.id, rule.variant, &subject, window.start),
            class: self.class,
            rule: rule.id.to_owned(),
            variant: rule.variant,
            title: rule.title.to_owned(),
            severity: judgement.severity,
            state: AlertState::Open,
            source: finding.subject.source,
            destination: finding.subject.destination,
            subject,
            first: finding.first,
            last: finding.last,
            detected: now,
            told: now,
            sentence: finding.sentence.clone(),
            advice: finding.advice.clone(),
            score: finding.score,
            window: AlertWindow { start: window.start, secs: window.end.since(window.start).as_secs() },
            windows: 1,
            reopened: 0,
            evidence: finding.evidence.clone(),
            attack: rule.attack.clone(),
            tactics: attack::tactics(&rule.attack),
            confidence: judgement.confidence,
            doubts: judgement.doubts.clone(),
            incident: None,
            muted: None,
            storm: None,
            spoken_for: None,
            settings: String::new(),
            members: Vec::new(),
        };
        self.insert(Held { newest_end: window.end, aloud: false, ..Held::from_line(alert.clone()) });
        alert
    }

    fn insert(&mut self, held: Held) {
        let key = key(&held.alert.rule, held.alert.variant, &held.alert.subject);
        if self.held.len() >= self.alerts_max && !self.held.contains_key(&key) {
            let mut by_age: Vec<(bool, Timestamp, String)> =
                self.held.iter().map(|(key, held)| (held.alert.is_open(), held.alert.last, key.clone())).collect();
            by_age.sort_unstable();
            for (_, _, key) in by_age.into_iter().take(self.alerts_max.div_ceil(8)) {
                self.held.remove(&key);
                self.forgotten += 1;
            }
        }
        self.held.insert(key, held);
    }
}

/// Takes the finding's times and, when it is the stronger or what was found before is over (`anew`), its evidence; of severities the
/// higher, unless it was closed meanwhile (`silent`). Says whether the evidence is not what was last told.
fn merge(held: &mut Held, finding: &Finding, judgement: &Judgement, silent: bool, anew: bool) -> bool {
    let alert = &mut held.alert;
    alert.first = alert.first.min(finding.first);
    alert.last = alert.last.max(finding.last);
    if finding.window.end > held.newest_end {
        held.newest_end = finding.window.end;
        alert.windows += 1;
    }
    let same_window = finding.window.start == alert.window.start;
    let stronger = anew || finding.evidence.value > alert.evidence.value || same_window && finding.stage == Stage::Closed;
    if stronger {
        alert.window =
            AlertWindow { start: finding.window.start, secs: finding.window.end.since(finding.window.start).as_secs() };
        alert.evidence = finding.evidence.clone();
        alert.sentence.clone_from(&finding.sentence);
        alert.advice.clone_from(&finding.advice);
        alert.score = finding.score;
    }
    if stronger || silent || judgement.confidence > alert.confidence {
        alert.confidence = judgement.confidence;
        alert.doubts.clone_from(&judgement.doubts);
    }
    alert.severity = if silent { judgement.severity } else { alert.severity.max(judgement.severity) };
    alert.attack.clone_from(&finding.rule.attack);
    alert.tactics = attack::tactics(&alert.attack);
    alert.evidence.value != held.told_value
}

/// Whether `value` is at least half a decade, √10 times, above `told`.
pub(crate) fn half_decades(value: f64, told: f64) -> bool {
    value > told && value >= told * 10_f64.sqrt()
}

fn key(rule: &str, variant: Variant, subject: &str) -> String {
    format!("{rule} {variant} {subject}")
}
