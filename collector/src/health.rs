//! How well the mirror ports of the sensors do their work: accounts go in, findings come out.
//!
//! A sensor sends the counts of its capture ports every few seconds. Once a minute two looks at them are compared, and what
//! [`judge`] finds wrong becomes a finding with the rule's name, the port it is about, what was measured and what to do on the
//! switch. A symptom that is gone for some minutes is reported as over; in between nothing is said, so that a port which is now good
//! and now bad is one alert and not many. What a person is told of it is decided by the [`AlertBook`](crate::alert::AlertBook).
//!
//! The same looks say what is to be thought of findings that rest on what a port saw: [`conditions`](HealthWatch::conditions).
//!
//! Nothing here is worth keeping: after a restart the first minute is lost, and the alerts go on as the alert file has them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::health::judge::{self, Symptom, SymptomKind};
use spanwatch_common::health::{Health, PortHealth};
use spanwatch_common::time::Timestamp;

use crate::alert::gate::{Condition, Conditions, ONE_SIDED_GRAVE, YOUNG_FOR};
use crate::detect::finding::{Evidence, RuleCard, Severity, Stage, Subject, Window, round2};
use crate::detect::rules::common::Weakness;
use crate::detect::{Finding, Variant};

const KINDS: usize = SymptomKind::ALL.len();
/// Two looks that are compared lie at least so far apart.
const JUDGED_AFTER: Duration = Duration::from_secs(60);
/// A connected sensor whose account does not come for so long is not well. It speaks every ten seconds.
const ACCOUNT_LATE: Duration = Duration::from_secs(120);
/// What a minute showed is taken to last until the next one is judged.
const HOLDS_FOR: Duration = Duration::from_secs(180);
/// A smaller share of packets lost makes no finding doubtful.
const LOSS_MIN: f64 = 0.001;

/// Section `[health]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    /// Whether to raise alerts of class `health` about the mirror ports of sensors. Their counts are on /metrics all the same.
    pub enabled: bool,
    /// For how many minutes in a row a port must show nothing of a symptom until its alert closes. Fewer close sooner; more keep a port
    /// that is now good, now bad from opening and closing all day. 1 to 1440.
    pub close_after_minutes: u32,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self { enabled: true, close_after_minutes: 5 }
    }
}

impl HealthSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=1440).contains(&self.close_after_minutes) {
            return Err(("close_after_minutes", format!("must be 1 to 1440, not {}", self.close_after_minutes)));
        }
        Ok(())
    }
}

/// What is known of a sensor at the moment of a look.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Which start of the sensor.
    pub boot: u64,
    /// Whether a connection speaks for it.
    pub connected: bool,
    /// How many accounts it has sent: another number means that `ports` is news.
    pub received: u64,
    /// The counts of its capture ports; none from a sensor that is older than these.
    pub ports: &'a [PortHealth],
}

/// What became of a port since the last poll.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// A minute showed a symptom.
    Found(Box<Finding>),
    /// The symptom that the rule looks for is over, or was never there.
    Over(Arc<RuleCard>, Box<Subject>),
}

/// Watches the mirror ports of all sensors. As many are held as have accounts in the registry, which has a limit.
#[derive(Debug)]
pub struct HealthWatch {
    close_after_minutes: u32,
    /// By [`SymptomKind::ALL`].
    cards: [Arc<RuleCard>; KINDS],
    silence: Arc<RuleCard>,
    sensors: BTreeMap<String, Sensor>,
    /// What nobody has been told yet of the state of the sensors.
    news: Vec<News>,
}

/// What a look says of findings that rest on what a port saw.
#[derive(Debug)]
enum News {
    Doubtful(Condition),
    /// Sensor, interface, and from when on it is not so, or no more.
    Sound(String, String, Weakness, Timestamp),
}

#[derive(Debug)]
struct Sensor {
    boot: u64,
    received: u64,
    connected: bool,
    /// When it connected, or sent an account, whichever is later.
    heard: Timestamp,
    /// When its silence was last judged.
    judged: Timestamp,
    silence: Run,
    /// By observation point.
    ports: BTreeMap<u32, Port>,
}

#[derive(Debug)]
struct Port {
    interface: String,
    judged: Look,
    latest: Look,
    /// By [`SymptomKind::ALL`].
    symptoms: [Run; KINDS],
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Timestamp,
    health: Health,
}

/// How many minutes in a row were alike.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    present: bool,
    minutes: u32,
}

impl Run {
    fn add(&mut self, present: bool) {
        self.minutes = if self.present == present { self.minutes.saturating_add(1) } else { 1 };
        self.present = present;
    }

    const fn is_over(self, after_minutes: u32) -> bool {
        !self.present && self.minutes >= after_minutes
    }
}

impl HealthWatch {
    /// Knows no sensor yet.
    pub fn new(settings: &HealthSettings) -> Self {
        Self {
            close_after_minutes: settings.close_after_minutes,
            cards: SymptomKind::ALL.map(|kind| card(rule_id(kind), kind.title(), severity(kind))),
            silence: card("SPAN-NO-ACCOUNT", "A sensor says nothing of its mirror", Severity::Low),
            sensors: BTreeMap::new(),
            news: Vec::new(),
        }
    }

    /// Looks at what `sensor` says of itself.
    pub fn take(&mut self, sensor: &str, account: Account<'_>, now: Timestamp) {
        if !self.sensors.contains_key(sensor) {
            self.sensors.insert(sensor.to_owned(), Sensor::new(&account, now));
            self.news.extend(young(sensor, account.boot, now));
        }
        let Some(known) = self.sensors.get_mut(sensor) else { return };
        if known.boot != account.boot {
            self.news.extend(young(sensor, account.boot, now));
            *known = Sensor::new(&account, now);
        }
        if account.connected && !known.connected {
            (known.heard, known.judged) = (now, now);
        }
        known.connected = account.connected;
        // The clock may have been set back.
        (known.heard, known.judged) = (known.heard.min(now), known.judged.min(now));
        if known.received != account.received {
            (known.received, known.heard) = (account.received, now);
            known.take(account.ports, now);
        }
    }

    /// Judges every port that has news and was not judged for a minute, and whether each connected sensor has any.
    pub fn poll(&mut self, now: Timestamp) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (name, sensor) in &mut self.sensors {
            for port in sensor.ports.values_mut().filter(|port| port.latest.at.since(port.judged.at) >= JUDGED_AFTER) {
                port.judge(name, &self.cards, self.close_after_minutes, &mut verdicts, &mut self.news);
            }
            if sensor.connected && now.since(sensor.judged) >= JUDGED_AFTER {
                sensor.judge_silence(name, &self.silence, self.close_after_minutes, now, &mut verdicts);
            }
        }
        verdicts
    }

    /// Brings `conditions` up to date.
    pub fn conditions(&mut self, conditions: &mut Conditions) {
        for news in self.news.drain(..) {
            match news {
                News::Doubtful(condition) => conditions.note(condition),
                News::Sound(sensor, interface, weakness, from) => conditions.end(&sensor, &interface, weakness, from),
            }
        }
    }

    /// Which symptoms each port showed in its last minute: sensor, interface, and a mark for each of [`SymptomKind::ALL`].
    pub fn symptoms(&self) -> impl Iterator<Item = (&str, &str, [bool; KINDS])> {
        let ports = self.sensors.iter().flat_map(|(name, sensor)| sensor.ports.values().map(move |port| (name, port)));
        ports.map(|(name, port)| (&**name, &*port.interface, port.symptoms.map(|run| run.present)))
    }
}

impl Sensor {
    fn new(account: &Account<'_>, now: Timestamp) -> Self {
        let mut sensor = Self {
            boot: account.boot,
            connected: account.connected,
            received: account.received,
            heard: now,
            judged: now,
            silence: Run::default(),
            ports: BTreeMap::new(),
        };
        sensor.take(account.ports, now);
        sensor
    }

    fn take(&mut self, ports: &[PortHealth], now: Timestamp) {
        self.ports.retain(|number, _| ports.iter().any(|port| port.observation_point == *number));
        for port in ports {
            let latest = Look { at: now, health: port.health };
            let known = self.ports.entry(port.observation_point).or_insert_with(|| Port::new(port, latest));
            let is_set_back = port.health.packets < known.latest.health.packets || now < known.latest.at;
            if is_set_back || known.interface != interface(port) {
                *known = Port::new(port, latest);
            }
            known.latest = latest;
        }
    }

    fn judge_silence(&mut self, name: &str, card: &Arc<RuleCard>, after: u32, now: Timestamp, out: &mut Vec<Verdict>) {
        let window = Window { start: self.judged, end: now };
        self.judged = now;
        let silent = now.since(self.heard);
        let subject = Subject { observer: Some(name.to_owned()), ..Subject::default() };
        let (says, advice, value, threshold, unit) = if silent >= ACCOUNT_LATE {
            (
                format!("{name} is connected, but has not said for {} s how its mirror does.", silent.as_secs()),
                "Look into the sensor's log and at its load; it should speak every ten seconds.",
                silent.as_secs_f64().round(),
                ACCOUNT_LATE.as_secs_f64(),
                "s without an account",
            )
        } else if self.ports.is_empty() {
            (
                format!("{name} does not say how its mirror does: its version is older than this collector's."),
                "Upgrade the sensor; its records are taken all the same.",
                1.0,
                1.0,
                "sensor without counts",
            )
        } else {
            self.silence.add(false);
            if self.silence.is_over(after) {
                out.push(Verdict::Over(Arc::clone(card), Box::new(subject)));
            }
            return;
        };
        self.silence.add(true);
        let observers = vec![name.to_owned()];
        let evidence = Evidence { value, threshold, unit: unit.to_owned(), observers, ..Evidence::default() };
        out.push(found(card, subject, window, evidence, says, advice.to_owned()));
    }
}

impl Port {
    fn new(port: &PortHealth, latest: Look) -> Self {
        Self { interface: interface(port), judged: latest, latest, symptoms: [Run::default(); KINDS] }
    }

    /// Compares the latest look with the one that was judged last.
    fn judge(&mut self, sensor: &str, cards: &[Arc<RuleCard>; KINDS], after: u32, out: &mut Vec<Verdict>, news: &mut Vec<News>) {
        let (before, now) = (self.judged, self.latest);
        self.judged = now;
        let over = now.at.since(before.at);
        let symptoms = judge::judge(&before.health, &now.health, over);
        let delta = now.health.since(&before.health);
        for (weakness, doubt) in doubts(&delta, &symptoms) {
            let (sensor, interface) = (sensor.to_owned(), self.interface.clone());
            news.push(match doubt {
                Some((share, says)) => News::Doubtful(Condition {
                    says: format!("{interface} at {sensor} {says}"),
                    sensor,
                    interface,
                    weakness,
                    share,
                    from: before.at,
                    until: now.at.plus(HOLDS_FOR),
                }),
                None => News::Sound(sensor, interface, weakness, before.at),
            });
        }
        for ((kind, card), run) in SymptomKind::ALL.iter().zip(cards).zip(&mut self.symptoms) {
            let subject =
                Subject { interface: Some(self.interface.clone()), observer: Some(sensor.to_owned()), ..Subject::default() };
            let symptom = symptoms.iter().find(|symptom| symptom.kind == *kind);
            run.add(symptom.is_some());
            if let Some(symptom) = symptom {
                let evidence = Evidence { observers: vec![sensor.to_owned()], ..evidence(symptom, over) };
                let says = format!("{subject}: {}", symptom.says);
                let window = Window { start: before.at, end: now.at };
                out.push(found(card, subject, window, evidence, says, symptom.advice.clone()));
            } else if run.is_over(after) {
                out.push(Verdict::Over(Arc::clone(card), Box::new(subject)));
            }
        }
    }
}

/// For each weakness that the counts of a minute can show: the share that is concerned, and what to say of it.
fn doubts(delta: &Health, symptoms: &[Symptom]) -> [(Weakness, Option<(f64, String)>); 3] {
    let share = |count: u64, of: u64| if of == 0 { 0.0 } else { count as f64 / of as f64 };
    let missed = if delta.missed_octets >= judge::MISSED_OCTETS_MIN { delta.missed_octets } else { 0 };
    let sampled = if delta.keep_one_in > 1 { 1.0 - 1.0 / delta.keep_one_in as f64 } else { 0.0 };
    let lost = share(delta.dropped, delta.packets + delta.dropped)
        .max(share(missed, delta.tcp_octets + missed))
        .max(share(delta.erspan_gaps, delta.erspan_packets + delta.erspan_gaps))
        .max(share(delta.in_aggregate, delta.packets))
        .max(sampled);
    let one_sided = share(delta.tcp_flows_one_way, delta.tcp_flows);
    let is_enough = delta.packets + delta.dropped >= judge::PACKETS_MIN;
    let loss = (is_enough && lost >= LOSS_MIN).then(|| {
        let says = format!(
            "did not see {} % of its packets: counts may be too small, and what was answered may look unanswered.",
            round2(100.0 * lost)
        );
        (lost, says)
    });
    let one_way = (delta.tcp_flows >= judge::TCP_FLOWS_MIN && one_sided > ONE_SIDED_GRAVE).then(|| {
        let says =
            format!("saw one side only of {} % of TCP flows: what was answered may look unanswered.", round2(100.0 * one_sided));
        (one_sided, says)
    });
    let is_blind = |symptom: &Symptom| matches!(symptom.kind, SymptomKind::NoTraffic | SymptomKind::GroupOnly);
    let blind = symptoms
        .iter()
        .any(is_blind)
        .then(|| (1.0, "saw no traffic for a while: what has stopped may only have stopped being seen.".to_owned()));
    [(Weakness::Loss, loss), (Weakness::OneSided, one_way), (Weakness::Blind, blind)]
}

/// That a sensor has just started, if it has: the number of a start is its time.
fn young(sensor: &str, boot: u64, now: Timestamp) -> Option<News> {
    let started = Timestamp::from_nanos(boot.cast_signed());
    (started <= now && now.since(started) < YOUNG_FOR).then(|| {
        News::Doubtful(Condition {
            sensor: sensor.to_owned(),
            interface: String::new(),
            weakness: Weakness::Young,
            share: 1.0,
            from: started,
            until: started.plus(YOUNG_FOR),
            says: format!("{sensor} had started less than ten minutes before: it did not see how what it saw began."),
        })
    })
}

fn interface(port: &PortHealth) -> String {
    if port.interface.is_empty() { format!("port {}", port.observation_point) } else { port.interface.clone() }
}

fn found(
    card: &Arc<RuleCard>,
    subject: Subject,
    window: Window,
    evidence: Evidence,
    sentence: String,
    advice: String,
) -> Verdict {
    Verdict::Found(Box::new(Finding {
        rule: Arc::clone(card),
        stage: Stage::Closed,
        subject,
        window,
        first: window.start,
        last: window.end,
        // Where anything at all is too much, the measure speaks for itself.
        confidence: 1.0,
        score: round2(if evidence.threshold > 0.0 { evidence.value / evidence.threshold } else { evidence.value }),
        evidence,
        sentence,
        advice,
    }))
}

/// The share that shows the symptom, in %, and that from which on it is one.
fn evidence(symptom: &Symptom, over: Duration) -> Evidence {
    let permille = |permille: u64| permille as f64 / 10.0;
    let (threshold, unit) = match symptom.kind {
        SymptomKind::NoTraffic => {
            let (value, threshold) = (over.as_secs_f64().round(), judge::NO_TRAFFIC_AFTER.as_secs_f64());
            return Evidence { value, threshold, unit: "s without a packet".to_owned(), ..Evidence::default() };
        }
        SymptomKind::GroupOnly => (permille(judge::GROUP_PERMILLE), "% of packets"),
        SymptomKind::Dropped => (100.0 / judge::DROPPED_ONE_IN as f64, "% of packets"),
        SymptomKind::Sampled => (0.0, "% of packets left out"),
        SymptomKind::TableFull => (0.0, "% of packets without a place"),
        SymptomKind::OneWay => (permille(judge::ONE_WAY_PERMILLE), "% of TCP flows"),
        SymptomKind::MissedOctets => (permille(judge::MISSED_PERMILLE), "% of TCP octets"),
        SymptomKind::ErspanGaps => (permille(judge::ERSPAN_GAPS_PERMILLE), "% of ERSPAN packets"),
        SymptomKind::Duplicates => (permille(judge::DUPLICATES_PERMILLE), "% of packets compared"),
        SymptomKind::Sliced => (permille(judge::SLICED_PERMILLE), "% of packets"),
        SymptomKind::UnknownEncapsulation => (permille(judge::UNKNOWN_PERMILLE), "% of packets"),
    };
    let value = round2(100.0 * symptom.count as f64 / symptom.of.max(1) as f64);
    Evidence { value, threshold, unit: unit.to_owned(), ..Evidence::default() }
}

fn card(id: &'static str, title: &'static str, severity: Severity) -> Arc<RuleCard> {
    Arc::new(RuleCard { id, title, variant: Variant::Fixed, severity, attack: Vec::new() })
}

const fn rule_id(kind: SymptomKind) -> &'static str {
    match kind {
        SymptomKind::NoTraffic => "SPAN-NO-TRAFFIC",
        SymptomKind::GroupOnly => "SPAN-GROUP-ONLY",
        SymptomKind::Dropped => "SPAN-DROPPED",
        SymptomKind::Sampled => "SPAN-SAMPLED",
        SymptomKind::TableFull => "SPAN-TABLE-FULL",
        SymptomKind::OneWay => "SPAN-ONE-WAY",
        SymptomKind::MissedOctets => "SPAN-MISSED-OCTETS",
        SymptomKind::ErspanGaps => "SPAN-ERSPAN-GAPS",
        SymptomKind::Duplicates => "SPAN-DUPLICATES",
        SymptomKind::Sliced => "SPAN-SLICED",
        SymptomKind::UnknownEncapsulation => "SPAN-UNKNOWN-ENCAPSULATION",
    }
}

/// Whoever sees nothing must know at once; whoever sees part of it, today.
const fn severity(kind: SymptomKind) -> Severity {
    match kind {
        SymptomKind::NoTraffic | SymptomKind::GroupOnly => Severity::High,
        SymptomKind::Dropped | SymptomKind::OneWay | SymptomKind::MissedOctets | SymptomKind::ErspanGaps => Severity::Medium,
        SymptomKind::Sampled | SymptomKind::TableFull => Severity::Medium,
        SymptomKind::Duplicates | SymptomKind::Sliced | SymptomKind::UnknownEncapsulation => Severity::Low,
    }
}

#[cfg(test)]
mod tests;
