//! What a detector claims, with what a person needs to check it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::text::protocol_name;
use spanwatch_common::time::Timestamp;

use crate::row::{Outcome, Row};

/// How a rule is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// As the public KQL does, to the row: for comparison with Azure.
    Exact,
    /// With the public rule's blind spots and false alarms mended: for operators.
    Fixed,
}

impl Variant {
    /// How sure a rule with a fixed threshold is: the exact forms are known for their false alarms.
    pub const fn confidence(self) -> f64 {
        match self {
            Self::Exact => 0.5,
            Self::Fixed => 0.7,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Fixed => "fixed",
        })
    }
}

/// How much an alert matters, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a line in a report.
    Informational,
    /// Look when there is time.
    Low,
    /// Look today.
    Medium,
    /// Look now.
    High,
    /// Drop everything.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        })
    }
}

/// What all findings of one rule have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleCard {
    /// `AZ-01`.
    pub id: &'static str,
    /// `Horizontal scan`.
    pub title: &'static str,
    /// Exact or fixed.
    pub variant: Variant,
    /// From the rule file.
    pub severity: Severity,
    /// MITRE ATT&CK techniques, from the rule file.
    pub attack: Vec<String>,
}

/// Whom a finding is about: the key of the rule, part by part. With rule and form, it names the alert.
///
/// As JSON it has the names of the public rules' columns (`src`, `dst`, `dport`, `proto`, `vm`, `service`, `observer`, `facet`), and
/// only the parts that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Subject {
    /// The initiator.
    #[serde(rename = "src", skip_serializing_if = "Option::is_none")]
    pub source: Option<Address>,
    /// The responder.
    #[serde(rename = "dst", skip_serializing_if = "Option::is_none")]
    pub destination: Option<Address>,
    /// Port of the responder.
    #[serde(rename = "dport", skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// IP protocol number; its name (`TCP`) in JSON.
    #[serde(rename = "proto", skip_serializing_if = "Option::is_none", serialize_with = "protocol_as_name")]
    pub protocol: Option<u8>,
    /// Virtual machine, or the address of a host that has no other name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Protocol and port in one word, as KQL's `strcat` makes it: `TCP443`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Who saw it, where what two observers saw must not be added up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<String>,
    /// What else the rule tells apart: `In Allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facet: Option<String>,
    /// Capture port of a sensor, where it is about the mirror itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

fn protocol_as_name<S: serde::Serializer>(protocol: &Option<u8>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&protocol_name(protocol.unwrap_or_default()))
}

impl Subject {
    /// A host. No address is no part of a subject: Traffic Analytics leaves some blank.
    pub fn host(source: Address) -> Self {
        Self { source: Some(source).filter(|address| address.is_some()), ..Self::default() }
    }

    /// A host against another.
    pub fn pair(source: Address, destination: Address) -> Self {
        Self { destination: Some(destination).filter(|address| address.is_some()), ..Self::host(source) }
    }

    /// The same, with a port of the responder.
    #[must_use]
    pub fn with_port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// The same, with a protocol.
    #[must_use]
    pub fn with_protocol(self, protocol: u8) -> Self {
        Self { protocol: Some(protocol), ..self }
    }
}

impl fmt::Display for Subject {
    /// `10.0.0.9`, `10.0.0.9 > 10.0.0.2`, `10.0.0.9 TCP/443 at plant1`, `port 445`, `TCP/445 (In Allow)`, `eno2 at plant1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.vm.clone());
        words.extend(self.source.map(|source| source.to_string()));
        words.extend(self.destination.map(|destination| format!("> {destination}")));
        match (self.protocol, self.port) {
            (Some(protocol), port) => words.push(service_name(protocol, port.unwrap_or(0))),
            (None, Some(port)) => words.push(format!("port {port}")),
            (None, None) => {}
        }
        words.extend(self.service.clone());
        words.extend(self.interface.clone());
        words.extend(self.facet.as_ref().map(|facet| format!("({facet})")));
        words.extend(self.observer.as_ref().map(|observer| format!("at {observer}")));
        if words.is_empty() { f.write_str("all traffic") } else { f.write_str(&words.join(" ")) }
    }
}

/// `TCP/443`, or `ICMP` for a protocol without ports.
pub fn service_name(protocol: u8, port: u16) -> String {
    match port {
        0 => protocol_name(protocol).into_owned(),
        port => format!("{}/{port}", protocol_name(protocol)),
    }
}

/// Why a finding is told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The threshold was crossed a moment ago; the window is still open.
    Crossed,
    /// The count has at least doubled since it was last told; the window is still open.
    Grown,
    /// The window is closed: these numbers are final.
    Closed,
}

/// A stretch of event time on the epoch grid, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// Belongs to it.
    pub start: Timestamp,
    /// Does not.
    pub end: Timestamp,
}

impl Window {
    /// `at`, or the moment of the window that is nearest to it.
    pub(crate) fn nearest(self, at: Timestamp) -> Timestamp {
        at.max(self.start).min(self.end.minus(Duration::from_nanos(1)))
    }
}

/// The numbers behind a finding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// What was measured: distinct hosts, distinct ports, or deviation in units of the mean.
    pub value: f64,
    /// What `value` exceeds, or for a deviation at least equals.
    pub threshold: f64,
    /// What is counted: `hosts`, `ports`, `means off the mean`.
    pub unit: String,
    /// Octets of the window, for a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub octets: Option<u64>,
    /// Mean octets per window of the same source and service, for a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_octets: Option<f64>,
    /// Contacts that were attempted, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u64>,
    /// Contacts that failed, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u64>,
    /// What is usual, in the unit of `value`, where that was learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// The course of what was measured up to `value`, oldest first, at most [`SERIES_POINTS_MAX`] points: for a sparkline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<f64>,
    /// Rows that speak for it, at most [`EVIDENCE_ROWS_MAX`], the earliest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Sighting>,
    /// Hosts that were tried, at most 20, the numerically smallest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Address>,
    /// Services that were tried (`TCP/445`), at most 20, the numerically smallest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Who saw it, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observers: Vec<String>,
}

/// A row that speaks for a finding, word for word: what a person looks up to check it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sighting {
    /// Event start, nanoseconds since 1970.
    pub at: i64,
    /// Who saw it: with flowId, where the record is found.
    pub observer: String,
    /// flowId of the record; 0 in a cloud's.
    #[serde(default)]
    pub flow_id: u64,
    /// The initiator.
    pub source: Address,
    /// Its port.
    pub source_port: u16,
    /// The responder.
    pub destination: Address,
    /// Its port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Packets, `[forward, reverse]`.
    pub packets: [u64; 2],
    /// Octets, `[forward, reverse]`.
    pub octets: [u64; 2],
    /// TCP control bits, `[forward, reverse]`.
    pub flags: [u16; 2],
    /// What came of it.
    pub outcome: Outcome,
}

impl Sighting {
    /// What `row` says.
    pub fn of(row: &Row) -> Self {
        Self {
            at: row.at.as_nanos(),
            observer: row.observer.to_string(),
            flow_id: row.flow,
            source: row.source,
            source_port: row.source_port,
            destination: row.destination,
            port: row.port,
            protocol: row.protocol,
            packets: row.packets,
            octets: row.octets,
            flags: row.flags,
            outcome: row.outcome,
        }
    }
}

/// Rows and points of a series that evidence may hold.
pub const EVIDENCE_ROWS_MAX: usize = 20;
/// See [`Evidence::series`].
pub const SERIES_POINTS_MAX: usize = 168;

/// A detector's claim about one subject in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Which rule, how serious.
    pub rule: std::sync::Arc<RuleCard>,
    /// Why now.
    pub stage: Stage,
    /// About whom.
    pub subject: Subject,
    /// When.
    pub window: Window,
    /// Event time of the first record that speaks for it, within the window.
    pub first: Timestamp,
    /// Event time of the last record that speaks for it, within the window.
    pub last: Timestamp,
    /// The numbers.
    pub evidence: Evidence,
    /// What happened, for a person.
    pub sentence: String,
    /// What to do about it; empty where that depends on whether it is innocent.
    pub advice: String,
    /// How many times the threshold was measured; for sorting.
    pub score: f64,
    /// How sure the rule is that this is what it says it is, 0 to 1, if the records are whole. What the state of the sensors takes from
    /// it is the alert's business.
    pub confidence: f64,
}

impl Finding {
    /// The order in which a replay prints: by window, rule and subject.
    pub fn order(&self, other: &Self) -> std::cmp::Ordering {
        let key = |finding: &Self| (finding.window, finding.rule.id, finding.rule.variant, finding.stage);
        key(self).cmp(&key(other)).then_with(|| self.subject.cmp(&other.subject))
    }
}

/// `value` to two decimals, half away from zero, as KQL's `round(x, 2)`.
pub fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `10:41:00 UTC`, from a window's start.
pub fn clock_face(at: Timestamp) -> String {
    let second = at.as_nanos().div_euclid(1_000_000_000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02} UTC", second / 3_600, second / 60 % 60, second % 60)
}
