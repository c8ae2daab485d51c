//! Alerts: findings merged into what a person sees, with a life cycle.
//!
//! One alert per rule, form and subject. It **opens** with the first finding; is **updated** when its score has doubled, when its
//! first window closes with other numbers, and once an hour while it lasts; and **closes** after two windows of silence in event
//! time, or, about a sensor's mirror, when that was [found to be well](AlertBook::close). Coming back within a day it re-opens under
//! its old id. Everything here is a function of findings and `now`; [`file`] and
//! [`terminal`] do the deeds.

#![forbid(unsafe_code)]

pub mod deliver;
pub mod file;
pub mod terminal;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::finding::{Evidence, RuleCard, Severity, Stage, Subject, Window};
use spanwatch_detect::{Finding, Variant};

/// A closed alert whose subject comes back within this time re-opens.
const REOPEN_WITHIN: Duration = Duration::from_secs(86_400);
/// A lasting alert is told again after this time.
const REMIND_AFTER: Duration = Duration::from_secs(3_600);

/// Where an alert is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// New, or back again.
    Open,
    /// Known, with other numbers.
    Updated,
    /// Silent for two windows.
    Closed,
}

impl std::fmt::Display for AlertState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Updated => "updated",
            Self::Closed => "closed",
        })
    }
}

/// What an alert is about, and with it how it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// What records show. It is over after two windows of silence.
    #[default]
    Detection,
    /// Alerts that belong together: one intruder's way along the tactics.
    Incident,
    /// More alerts of one rule than an hour may have: how many, and about whom. The alerts themselves are in the alert file.
    Storm,
    /// How well a sensor's mirror port does its work. It is over when the port was found to be well. A sensor that is gone says nothing:
    /// of that, an alert dies after a day.
    Health,
}

/// The window with the strongest evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertWindow {
    /// Where it begins.
    #[serde(with = "rfc3339")]
    pub start: Timestamp,
    /// How long it is.
    pub secs: u64,
}

/// An alert at one moment of its life: one line of the alert file. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The same for the whole life: a hash of rule, form, subject and first window.
    pub id: String,
    /// What it is about.
    #[serde(default)]
    pub class: Class,
    /// `AZ-01`, `SPAN-DUPLICATES`.
    pub rule: String,
    /// Exact or fixed.
    pub variant: Variant,
    /// `Horizontal scan`.
    pub title: String,
    /// How much it matters.
    pub severity: Severity,
    /// Where it is in its life.
    pub state: AlertState,
    /// Whom it is about: `10.0.0.9`, `10.0.0.9 > 10.0.0.2`, `10.0.0.9 TCP/443 at plant1`, `port 445`, `eno2 at plant1`.
    pub subject: String,
    /// The initiator, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Address>,
    /// The one responder, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Address>,
    /// Event time of the first record that speaks for it.
    #[serde(with = "rfc3339")]
    pub first: Timestamp,
    /// Event time of the last record that speaks for it.
    #[serde(with = "rfc3339")]
    pub last: Timestamp,
    /// When it was detected.
    #[serde(with = "rfc3339")]
    pub detected: Timestamp,
    /// When this line was written.
    #[serde(with = "rfc3339")]
    pub told: Timestamp,
    /// What happened, in the window with the strongest evidence.
    pub sentence: String,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// How many times the threshold was measured there.
    pub score: f64,
    /// The window with the strongest evidence.
    pub window: AlertWindow,
    /// In how many windows it was found.
    pub windows: u64,
    /// How often it came back after it had closed.
    pub reopened: u64,
    /// The numbers of that window.
    pub evidence: Evidence,
    /// MITRE ATT&CK techniques.
    pub attack: Vec<String>,
    /// MITRE ATT&CK tactics of these techniques, in the order of an attack.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tactics: Vec<String>,
    /// How sure it is, 0 to 1.
    #[serde(default = "certain")]
    pub confidence: f64,
    /// Why confidence, and with it perhaps severity, is lower than the rule's: what is wrong with the sensors that saw it. A sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
    /// Id of the incident to which it belongs, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
    /// Who wants to hear no more of it, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muted: Option<Muted>,
    /// Of an incident: the ids of its alerts, in the order in which they opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

fn certain() -> f64 {
    1.0
}

/// Somebody takes responsibility for silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muted {
    /// Who answers for it.
    pub owner: String,
    /// Until when, event time.
    #[serde(with = "rfc3339")]
    pub until: Timestamp,
    /// Why.
    pub reason: String,
}

impl Alert {
    /// Whether `other` says the same about the same, whenever it was told.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        let same_time = Self { told: other.told, ..self.clone() };
        same_time == *other
    }
}

/// Where alerts go.
pub trait AlertSink: Send {
    /// Delivers `alert`.
    ///
    /// # Errors
    /// What the system says; the alert was then not delivered, or in part.
    fn put(&mut self, alert: &Alert) -> io::Result<()>;
}

/// All alerts of one class that are open, or could re-open.
///
/// Holds at most `alerts_max`; beyond, the longest silent are forgotten, counted, and would come back as new ones.
pub struct AlertBook {
    class: Class,
    held: BTreeMap<String, Held>,
    alerts_max: usize,
    forgotten: u64,
    /// When alerts that the file has, but the book not yet again, were first detected: by id.
    detected: HashMap<String, Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct Held {
    alert: Alert,
    /// End of the newest window in which it was found.
    newest_end: Timestamp,
    /// Score and value when it was last told, and the event time then.
    told_score: f64,
    told_value: f64,
    told_last: Timestamp,
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
        self.told_score = self.alert.score;
        self.told_value = self.alert.evidence.value;
        self.told_last = self.alert.last;
        self.alert.clone()
    }

    fn from_line(alert: Alert) -> Self {
        let window = Duration::from_secs(alert.window.secs);
        Self {
            newest_end: alert.last.floor(window).plus(window),
            told_score: alert.score,
            told_value: alert.evidence.value,
            told_last: alert.last,
            alert,
        }
    }
}

impl AlertBook {
    /// An empty book for at most `alerts_max` alerts (at least one) of `class`.
    pub fn new(class: Class, alerts_max: usize) -> Self {
        Self { class, held: BTreeMap::new(), alerts_max: alerts_max.max(1), forgotten: 0, detected: HashMap::new() }
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

    /// Goes on from an earlier [`snapshot`](Self::snapshot). An alert that is found anew, but stands in `written` already, keeps the time
    /// of its detection.
    ///
    /// # Errors
    /// The bytes are no snapshot of this version of the collector.
    pub fn resume(&mut self, snapshot: &[u8], written: &[Alert]) -> Result<(), rmp_serde::decode::Error> {
        for held in rmp_serde::from_slice::<Vec<Held>>(snapshot)? {
            self.insert(held);
        }
        self.detected = written.iter().map(|alert| (alert.id.clone(), alert.detected)).collect();
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
        let subject = finding.subject.to_string();
        let Some(held) = self.held.get_mut(&key(finding.rule.id, finding.rule.variant, &subject)) else {
            out.push(self.open(finding, subject, now));
            return;
        };
        if finding.window.start > held.alert.last.plus(REOPEN_WITHIN) {
            if held.alert.state != AlertState::Closed {
                out.push(held.tell(AlertState::Closed, now));
            }
            out.push(self.open(finding, subject, now));
            return;
        }
        let silent = held.alert.state == AlertState::Closed || finding.window.start >= held.quiet_from();
        let anew = silent && held.alert.class == Class::Health;
        let changed = merge(held, finding, anew);
        if silent {
            held.alert.reopened += 1;
            out.push(held.tell(AlertState::Open, now));
        } else if changed && held.alert.windows == 1 && finding.stage == Stage::Closed
            || held.alert.score >= held.told_score * 2.0
            || held.alert.last >= held.told_last.plus(REMIND_AFTER)
        {
            out.push(held.tell(AlertState::Updated, now));
        }
    }

    /// Closes the alert of `rule` about `subject`, if one is open: what it tells of is over.
    pub fn close(&mut self, rule: &RuleCard, subject: &Subject, now: Timestamp, out: &mut Vec<Alert>) {
        let held = self.held.get_mut(&key(rule.id, rule.variant, &subject.to_string()));
        out.extend(held.filter(|held| held.alert.state != AlertState::Closed).map(|held| held.tell(AlertState::Closed, now)));
    }

    /// Closes what has been silent for two windows at `watermark` (event time: all windows up to there are closed), and forgets
    /// what can no longer re-open.
    pub fn expire(&mut self, watermark: Timestamp, now: Timestamp, out: &mut Vec<Alert>) {
        for held in self.held.values_mut() {
            if held.alert.state != AlertState::Closed && held.quiet_from() <= watermark {
                out.push(held.tell(AlertState::Closed, now));
            }
        }
        self.held.retain(|_, held| held.alert.state != AlertState::Closed || held.alert.last.plus(REOPEN_WITHIN) >= watermark);
    }

    /// Every alert held, as it stands.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.held.values().map(|held| &held.alert)
    }

    /// How many alerts are not closed.
    pub fn open_count(&self) -> usize {
        self.alerts().filter(|alert| alert.state != AlertState::Closed).count()
    }

    /// How many alerts were forgotten because there were too many.
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn open(&mut self, finding: &Finding, subject: String, now: Timestamp) -> Alert {
        let Finding { rule, window, .. } = finding;
        let id = id(rule.id, rule.variant, &subject, *window);
        let alert = Alert {
            detected: self.detected.remove(&id).unwrap_or(now),
            id,
            class: self.class,
            rule: rule.id.to_owned(),
            variant: rule.variant,
            title: rule.title.to_owned(),
            severity: rule.severity,
            state: AlertState::Open,
            source: finding.subject.source,
            destination: finding.subject.destination,
            subject,
            first: finding.first,
            last: finding.last,
            told: now,
            sentence: finding.sentence.clone(),
            advice: finding.advice.clone(),
            score: finding.score,
            window: AlertWindow { start: window.start, secs: window.end.since(window.start).as_secs() },
            windows: 1,
            reopened: 0,
            evidence: finding.evidence.clone(),
            attack: rule.attack.clone(),
            tactics: Vec::new(),
            confidence: finding.confidence,
            doubts: Vec::new(),
            incident: None,
            muted: None,
            members: Vec::new(),
        };
        self.insert(Held { newest_end: window.end, ..Held::from_line(alert.clone()) });
        alert
    }

    fn insert(&mut self, held: Held) {
        let key = key(&held.alert.rule, held.alert.variant, &held.alert.subject);
        if self.held.len() >= self.alerts_max && !self.held.contains_key(&key) {
            let mut by_age: Vec<(bool, Timestamp, String)> = self
                .held
                .iter()
                .map(|(key, held)| (held.alert.state != AlertState::Closed, held.alert.last, key.clone()))
                .collect();
            by_age.sort_unstable();
            for (_, _, key) in by_age.into_iter().take(self.alerts_max.div_ceil(8)) {
                self.held.remove(&key);
                self.forgotten += 1;
            }
        }
        self.held.insert(key, held);
    }
}

/// Takes the finding's times and, when it is the stronger or what was found before is over (`anew`), its evidence. Says whether the
/// evidence is not what was last told.
fn merge(held: &mut Held, finding: &Finding, anew: bool) -> bool {
    let alert = &mut held.alert;
    alert.first = alert.first.min(finding.first);
    alert.last = alert.last.max(finding.last);
    if finding.window.end > held.newest_end {
        held.newest_end = finding.window.end;
        alert.windows += 1;
    }
    let same_window = finding.window.start == alert.window.start;
    if anew || finding.evidence.value > alert.evidence.value || same_window && finding.stage == Stage::Closed {
        alert.window.start = finding.window.start;
        alert.evidence = finding.evidence.clone();
        alert.sentence.clone_from(&finding.sentence);
        alert.advice.clone_from(&finding.advice);
        alert.score = finding.score;
    }
    alert.confidence = finding.confidence;
    alert.severity = finding.rule.severity;
    alert.attack.clone_from(&finding.rule.attack);
    alert.evidence.value != held.told_value
}

fn key(rule: &str, variant: Variant, subject: &str) -> String {
    format!("{rule} {variant} {subject}")
}

/// Sixteen hexadecimal digits: FNV-1a over what makes an alert this alert.
fn id(rule: &str, variant: Variant, subject: &str, first: Window) -> String {
    let text = format!("{} {}", key(rule, variant, subject), first.start.as_nanos());
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Times as text: written by `Timestamp`'s `Display`, read back from exactly that.
mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use spanwatch_common::time::Timestamp;
    use time::{Date, Month, Time};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(from)?;
        read(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no time; write it as 2026-11-21T10:00:00.000000000Z")))
    }

    fn read(text: &str) -> Option<Timestamp> {
        let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
        let shape = text.len() == 30 && text.ends_with('Z');
        let month = Month::try_from(u8::try_from(number(5, 7)?).ok()?).ok()?;
        let date =
            Date::from_calendar_date(i32::try_from(number(0, 4)?).ok()?, month, u8::try_from(number(8, 10)?).ok()?).ok()?;
        let part = |from: usize, to: usize| u8::try_from(number(from, to)?).ok();
        let clock = Time::from_hms_nano(part(11, 13)?, part(14, 16)?, part(17, 19)?, number(20, 29)?).ok()?;
        let nanos = date.with_time(clock).assume_utc().unix_timestamp_nanos();
        i64::try_from(nanos).ok().filter(|_| shape).map(Timestamp::from_nanos)
    }
}

#[cfg(test)]
mod tests;
