//! Incidents: alerts that belong together, one intruder's way along the tactics.
//!
//! Every alert is a **trace**: who acted (the initiator), on whom (the one responder, if it is about one), with which tactics. Two
//! traces within six hours are **linked** when
//!
//! * the same host acted in both, or
//! * the host on which the one acted itself acted later: the victim becomes a source. Of flooding, calling or sending nobody becomes one.
//!
//! That two hosts did something to the same third one links nothing: a server on the Internet would glue everybody together. An incident
//! **opens** when linked traces have no tactic in common, or form a chain; whatever is linked to a member joins it, and two incidents
//! that a trace links become one, the older.
//!
//! **Against glue:** a host that was acted on by more than [`HUB_MAX`] others, or acted on more than that many, is a hub, over which no
//! chain leads (a busy server is always somebody's victim, a scanner has always many). Traces that are informational, muted, part of a
//! storm, or of a rule's exact form do not take part. An incident names at most [`MEMBERS_MAX`] alerts.
//!
//! Its **severity** is that of its worst alert, at least medium, and rises with the [progress](attack::Progress): two of looking,
//! entering, spreading and acting are high if the last is one of them, three are high, four are critical. It **closes** after six hours in which
//! no member had news.

mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::Variant;
use spanwatch_detect::finding::{Evidence, Severity};

use self::traces::{Trace, Traces};
use crate::alert::{Alert, AlertState, AlertWindow, Class, id};
use crate::attack::{self, Progress};
use crate::story;

/// The rule that incidents say they are of.
pub const RULE: &str = "INCIDENT";
/// A host with more peers than this in alerts of six hours carries no chain.
pub const HUB_MAX: usize = 16;
/// Alerts that an incident names. Further ones belong to it and are counted.
pub const MEMBERS_MAX: usize = 32;
/// Linked traces lie at most so far apart; an incident closes after as much silence.
const REACH: Duration = Duration::from_secs(6 * 3_600);
/// A lasting incident is told again after this time.
const REMIND_AFTER: Duration = Duration::from_secs(3_600);

/// The alerts of the last hours, and what joins them.
#[derive(Debug, Default)]
pub struct Incidents {
    traces: Traces,
    incidents: BTreeMap<String, Incident>,
    /// How far event time had come when they were last asked what is over.
    reached: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Incident {
    line: Alert,
    /// Ids of all its alerts.
    members: BTreeSet<String>,
    /// What it had to say when it was last told.
    told: Told,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Told {
    severity: Severity,
    tactics: usize,
    deeds: usize,
    last: Timestamp,
}

impl Told {
    fn of(line: &Alert, deeds: usize) -> Self {
        Self { severity: line.severity, tactics: line.tactics.len(), deeds, last: line.last }
    }

    /// Whether `new` is worth telling after it.
    fn is_outdone_by(&self, new: &Self) -> bool {
        new.severity > self.severity
            || new.tactics > self.tactics
            || new.deeds > self.deeds
            || new.last >= self.last.plus(REMIND_AFTER)
    }
}

/// Everything that a restart must not forget.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Saved {
    traces: Vec<Trace>,
    incidents: Vec<Incident>,
    reached: Timestamp,
}

impl Incidents {
    /// Takes note of `alert` as it stands, and adds to `out` what is to be told of the incident that it opens or joins. Returns the id of
    /// that, if any.
    pub fn see(&mut self, alert: &Alert, now: Timestamp, out: &mut Vec<Alert>) -> Option<String> {
        let takes_part = alert.class == Class::Detection
            && alert.variant == Variant::Fixed
            && alert.severity > Severity::Informational
            && alert.muted.is_none()
            && alert.storm.is_none()
            && !alert.attack.is_empty();
        if !takes_part {
            return self.of(&alert.id).cloned();
        }
        let before = self.traces.get(&alert.id);
        let incident = before.and_then(|trace| trace.incident.clone());
        let is_news = before.is_none_or(|trace| trace.alert.attack != alert.attack || trace.alert.first > alert.first);
        // The evidence stays in the book.
        let evidence = Evidence { rows: Vec::new(), series: Vec::new(), ..alert.evidence.clone() };
        self.traces.hold(Trace { alert: Alert { evidence, ..alert.clone() }, incident });
        if is_news {
            self.link(&alert.id, now, out);
        }
        let id = self.traces.get(&alert.id)?.incident.clone()?;
        self.retell(&id, now, out);
        Some(id)
    }

    /// Closes incidents whose members had no news for six hours of event time, and forgets traces that can link nothing any more.
    pub fn expire(&mut self, watermark: Timestamp, now: Timestamp, out: &mut Vec<Alert>) {
        self.reached = self.reached.max(watermark);
        let over: Vec<String> = self
            .incidents
            .iter()
            .filter(|(_, incident)| incident.line.last.plus(REACH) <= watermark)
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            if let Some(Incident { mut line, members, .. }) = self.incidents.remove(&id) {
                (line.state, line.told) = (AlertState::Closed, now);
                out.push(line);
                members.iter().for_each(|member| self.traces.forget(member));
            }
        }
        self.traces.forget_if(|trace| trace.incident.is_none() && trace.alert.last.plus(REACH) < watermark);
    }

    /// Incidents that are not over, as they stand.
    pub fn open(&self) -> impl Iterator<Item = &Alert> {
        self.incidents.values().map(|incident| &incident.line)
    }

    /// The incident to which the alert `id` belongs.
    pub fn of(&self, id: &str) -> Option<&String> {
        self.traces.get(id).and_then(|trace| trace.incident.as_ref())
    }

    /// Traces that were forgotten because there were too many.
    pub const fn forgotten(&self) -> u64 {
        self.traces.forgotten()
    }

    /// Takes over what an earlier run told: `lines`, alerts and incidents, one of each id.
    pub fn restore<'a>(&mut self, lines: impl IntoIterator<Item = &'a Alert>) {
        self.take_over(lines, |_, line| line.is_open());
    }

    /// After [`from_saved`](Self::from_saved): of the `lines` that were told since, what is found once more keeps the name it had.
    pub(crate) fn recall<'a>(&mut self, lines: impl IntoIterator<Item = &'a Alert>) {
        let since = |incidents: &Self, line: &Alert| {
            line.last.plus(REACH) > incidents.reached && line.incident.is_none() && !incidents.incidents.contains_key(&line.id)
        };
        self.take_over(lines, since);
    }

    fn take_over<'a>(&mut self, lines: impl IntoIterator<Item = &'a Alert>, wanted: impl Fn(&Self, &Alert) -> bool) {
        let by_id: BTreeMap<&str, &Alert> = lines.into_iter().map(|line| (&*line.id, line)).collect();
        for line in by_id.values().filter(|line| line.class == Class::Incident) {
            if !wanted(self, line) {
                continue;
            }
            let members: BTreeSet<String> = line.members.iter().filter(|id| by_id.contains_key(&***id)).cloned().collect();
            for member in members.iter().filter_map(|id| by_id.get(&**id)) {
                self.traces.hold(Trace { alert: (*member).clone(), incident: Some(line.id.clone()) });
            }
            let told = Told::of(line, self.deeds(&members));
            self.incidents.insert(line.id.clone(), Incident { line: (*line).clone(), members, told });
        }
    }

    /// Takes over what others have made of `line`, which was just told.
    pub(crate) fn adopt(&mut self, line: &Alert) {
        if let Some(incident) = self.incidents.get_mut(&line.id) {
            incident.line = line.clone();
        }
    }

    pub(crate) fn to_saved(&self) -> Saved {
        Saved {
            traces: self.traces.all().cloned().collect(),
            incidents: self.incidents.values().cloned().collect(),
            reached: self.reached,
        }
    }

    pub(crate) fn from_saved(saved: Saved) -> Self {
        let mut incidents = Self { reached: saved.reached, ..Self::default() };
        saved.traces.into_iter().for_each(|trace| incidents.traces.hold(trace));
        incidents.incidents = saved.incidents.into_iter().map(|incident| (incident.line.id.clone(), incident)).collect();
        incidents
    }

    /// Finds what is linked to the trace `id`, and joins it.
    fn link(&mut self, id: &str, now: Timestamp, out: &mut Vec<Alert>) {
        let Some(trace) = self.traces.get(id) else { return };
        let mut joined: BTreeSet<String> = BTreeSet::new();
        for (other, is_chain) in self.traces.linked(trace) {
            let Some(of) = self.traces.get(&other) else { continue };
            let of_incident = of.incident.is_some() || trace.incident.is_some();
            let apart = || !of.tactics().iter().any(|tactic| trace.tactics().contains(tactic));
            if is_chain || of_incident || apart() {
                joined.insert(other);
            }
        }
        if joined.is_empty() {
            return;
        }
        joined.insert(id.to_owned());
        // What the same hosts did in the same way belongs to it as well.
        let actors: BTreeSet<Address> = joined.iter().filter_map(|id| self.traces.get(id)).filter_map(Trace::actor).collect();
        let theirs = actors.iter().flat_map(|&actor| self.traces.of(Some(actor)));
        let same_hosts: Vec<String> =
            theirs.filter(|other| other.is_within_reach(trace)).map(|other| other.alert.id.clone()).collect();
        joined.extend(same_hosts);
        self.join(&joined, now, out);
    }

    /// Makes one incident of the traces `ids` and of those to which they belong.
    fn join(&mut self, ids: &BTreeSet<String>, now: Timestamp, out: &mut Vec<Alert>) {
        let mut members = ids.clone();
        let mut known: Vec<(Timestamp, String)> = Vec::new();
        for id in ids.iter().filter_map(|id| self.traces.get(id)).filter_map(|trace| trace.incident.clone()) {
            if let Some(incident) = self.incidents.get(&id) {
                members.extend(incident.members.iter().cloned());
                known.push((incident.line.first, id));
            }
        }
        known.sort_unstable();
        known.dedup();
        let mut known = known.into_iter().map(|(_, id)| id);
        let oldest = known.next();
        let id = oldest.clone().unwrap_or_else(|| self.id_of(&members));
        for absorbed in known {
            if let Some(Incident { mut line, .. }) = self.incidents.remove(&absorbed) {
                (line.state, line.told, line.incident) = (AlertState::Closed, now, Some(id.clone()));
                line.sentence = format!("{} It is part of incident {id} now.", line.sentence);
                out.push(line);
            }
        }
        for member in &members {
            if let Some(trace) = self.traces.get_mut(member) {
                trace.incident = Some(id.clone());
            }
        }
        if let Some(incident) = self.incidents.get_mut(&id) {
            incident.members = members;
            return; // whoever saw the trace tells it
        }
        let Some(line) = self.line(&id, &members, None, now) else { return };
        let told = Told::of(&line, self.deeds(&members));
        out.push(line.clone());
        self.incidents.insert(id, Incident { line, members, told });
    }

    /// The id of a new incident: of the alert that began it, as far as is known. It keeps it whatever comes to light.
    fn id_of(&self, members: &BTreeSet<String>) -> String {
        let first = self.traces.in_order(members).into_iter().next();
        let (subject, start) = first.map(|trace| (trace.alert.id.clone(), trace.alert.window.start)).unwrap_or_default();
        id(RULE, Variant::Fixed, &subject, start)
    }

    /// Brings the incident `id` up to date, and tells it when it has more to say than last time.
    fn retell(&mut self, id: &str, now: Timestamp, out: &mut Vec<Alert>) {
        let Some(incident) = self.incidents.get(id) else { return };
        let Some(mut line) = self.line(id, &incident.members, Some(&incident.line), now) else { return };
        let new = Told::of(&line, self.deeds(&incident.members));
        let Some(incident) = self.incidents.get_mut(id) else { return };
        if incident.told.is_outdone_by(&new) {
            (line.state, line.told, incident.told) = (AlertState::Updated, now, new);
            out.push(line.clone());
        }
        incident.line = line;
    }

    /// How many deeds the story of `members` tells.
    fn deeds(&self, members: &BTreeSet<String>) -> usize {
        let alerts: Vec<&Alert> = self.traces.in_order(members).into_iter().map(|trace| &trace.alert).collect();
        story::deeds(&alerts).len().min(story::DEEDS_MAX)
    }

    /// The incident `id` with these members as an alert; `before` is what it was.
    fn line(&self, id: &str, members: &BTreeSet<String>, before: Option<&Alert>, now: Timestamp) -> Option<Alert> {
        let traces = self.traces.in_order(members);
        let first = traces.first()?;
        let mut attack: Vec<String> = Vec::new();
        for technique in traces.iter().flat_map(|trace| &trace.alert.attack) {
            if !attack.contains(technique) {
                attack.push(technique.clone());
            }
        }
        let actors: BTreeSet<Address> = traces.iter().filter_map(|trace| trace.actor()).collect();
        let tactics = attack::tactics_of(&attack);
        let worst = traces.iter().map(|trace| trace.alert.severity).max()?;
        let last = traces.iter().map(|trace| trace.alert.last).max()?;
        Some(Alert {
            id: id.to_owned(),
            class: Class::Incident,
            rule: RULE.to_owned(),
            variant: Variant::Fixed,
            title: "Incident".to_owned(),
            severity: severity(worst, &traces),
            state: before.map_or(AlertState::Open, |before| before.state),
            subject: principal(first),
            source: first.actor(),
            destination: None,
            first: first.alert.first,
            last,
            detected: before.map_or(now, |before| before.detected),
            told: before.map_or(now, |before| before.told),
            sentence: story::tell(&traces.iter().map(|trace| &trace.alert).collect::<Vec<_>>()),
            advice: "Look at its hosts together, in the order of the story; `alerts explain` shows the evidence of each alert."
                .to_owned(),
            score: tactics.len() as f64 / 2.0,
            window: AlertWindow { start: first.alert.window.start, secs: (REACH / 2).as_secs() },
            windows: 1,
            reopened: 0,
            evidence: Evidence {
                value: tactics.len() as f64,
                threshold: 2.0,
                unit: "tactics".to_owned(),
                attempts: Some(members.len() as u64),
                hosts: actors.into_iter().take(20).collect(),
                ..Evidence::default()
            },
            tactics: tactics.iter().map(|tactic| tactic.name().to_owned()).collect(),
            attack,
            confidence: confidence(&traces),
            doubts: Vec::new(),
            incident: None,
            muted: before.and_then(|before| before.muted.clone()),
            storm: None,
            spoken_for: None,
            settings: String::new(),
            members: traces.iter().take(MEMBERS_MAX).map(|trace| trace.alert.id.clone()).collect(),
        })
    }
}

/// Who began it.
fn principal(first: &Trace) -> String {
    first.actor().map_or_else(|| first.alert.subject.clone(), |actor| actor.to_string())
}

fn stages(traces: &[&Trace]) -> BTreeSet<Progress> {
    traces.iter().filter_map(|trace| trace.stage()).collect()
}

fn severity(worst: Severity, traces: &[&Trace]) -> Severity {
    let stages = stages(traces);
    let least = match (stages.len(), stages.contains(&Progress::Acting)) {
        (4.., _) => Severity::Critical,
        (3, _) | (2, true) => Severity::High,
        _ => Severity::Medium,
    };
    worst.max(least)
}

/// That not everything is a mistake: the surest of each stage count as independent witnesses.
fn confidence(traces: &[&Trace]) -> f64 {
    let mut surest: BTreeMap<Progress, f64> = BTreeMap::new();
    for trace in traces {
        if let Some(stage) = trace.stage() {
            let best = surest.entry(stage).or_default();
            *best = best.max(trace.alert.confidence);
        }
    }
    let wrong: f64 = surest.values().map(|confidence| 1.0 - confidence).product();
    ((1.0 - wrong) * 1_000.0).round() / 1_000.0
}
