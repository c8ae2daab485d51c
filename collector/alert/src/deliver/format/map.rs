//! The field map: what each of our fields is called in each format. One table; the formats walk it, and documents print it.
//!
//! Names are those of
//! - CEF: *ArcSight Common Event Format, Implementing CEF*, version 25 (2017), "Extension Dictionary". Its `src` and `dst` are IPv4
//!   addresses; IPv6 addresses go to `c6a2` and `c6a3`.
//! - OCSF: schema 1.5.0, class Detection Finding (2004), <https://schema.ocsf.io>. What it has no place for is in `unmapped`.
//! - ECS: Elastic Common Schema 8.17. Fields of our own stand under `spanwatch`, as ECS asks of custom fields.
//! - ASIM: Microsoft Sentinel, Alert Event schema 0.1. It has columns for one host, `Dvc…`, and none for a peer, a port or counts: these
//!   are in `AdditionalFields`.

use spanwatch_common::time::Timestamp;
use spanwatch_detect::finding::Severity;

use super::attack;
use crate::{Alert, AlertState, Class};

/// A value before a format writes it in its own way.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// There is none.
    Absent,
    /// As it is.
    Text(String),
    /// As it is.
    Texts(Vec<String>),
    /// A number.
    Number(f64),
    /// A whole number.
    Count(u64),
    /// A fraction, 0 to 1; percent in some formats.
    Share(f64),
    /// RFC 3339 in some formats, milliseconds since 1970 in others.
    Time(Timestamp),
    /// By [`SEVERITIES`].
    Severity(Severity),
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        text.filter(|text| !text.is_empty()).map_or(Self::Absent, Self::Text)
    }
}

/// One of our fields.
#[derive(Clone, Copy)]
pub struct Field {
    /// Its path in our own line.
    pub ours: &'static str,
    /// Where CEF has it: `src`, or `cs1 attackTechniques` for a custom field and its label, or `(severity)` for a part of the header.
    pub cef: &'static str,
    /// Path in OCSF.
    pub ocsf: &'static str,
    /// Path in ECS.
    pub ecs: &'static str,
    /// Column of ASIM, or path within `AdditionalFields`.
    pub asim: &'static str,
    /// Its value.
    pub value: fn(&Alert) -> Value,
}

const fn field(ours: &'static str, [cef, ocsf, ecs, asim]: [&'static str; 4], value: fn(&Alert) -> Value) -> Field {
    Field { ours, cef, ocsf, ecs, asim, value }
}

/// Every field, in the order of the alert file. An empty name: the format has no place for it.
#[rustfmt::skip]
pub static MAP: [Field; 33] = [
    //     ours                   CEF                           OCSF                            ECS                             ASIM
    field("id",                  ["externalId",                 "finding_info.uid",             "event.id",                     "EventUid"],                           |a| Value::Text(a.id.clone())),
    field("class",               ["cat",                        "finding_info.types",           "event.dataset",                "EventOriginalType"],                  |a| Value::Text(class(a.class).to_owned())),
    field("rule",                ["(signature id)",             "finding_info.analytic.uid",    "rule.id",                      "RuleName"],                           |a| Value::Text(a.rule.clone())),
    field("variant",             ["cs6 ruleVariant",            "finding_info.analytic.category", "rule.ruleset",               "AdditionalFields.Variant"],           |a| Value::Text(a.variant.to_string())),
    field("title",               ["(name)",                     "finding_info.title",           "rule.name",                    "AlertName"],                          |a| Value::Text(a.title.clone())),
    field("severity",            ["(severity)",                 "severity_id",                  "event.severity",               "EventSeverity"],                      |a| Value::Severity(a.severity)),
    field("severity",            ["",                           "",                             "",                             "EventOriginalSeverity"],              |a| Value::Text(a.severity.to_string())),
    field("state",               ["act",                        "unmapped.state",               "event.action",                 "AlertOriginalStatus"],                |a| Value::Text(a.state.to_string())),
    field("state",               ["",                           "",                             "",                             "AlertStatus"],                        |a| Value::Text(if a.state == AlertState::Closed { "Closed" } else { "Active" }.to_owned())),
    field("subject",             ["cs4 subject",                "unmapped.subject",             "spanwatch.subject",            "AdditionalFields.Subject"],           |a| Value::Text(a.subject.clone())),
    field("source",              ["src c6a2",                   "evidences.src_endpoint.ip",    "source.ip",                    "DvcIpAddr"],                          |a| a.source.map(|ip| ip.to_string()).into()),
    field("destination",         ["dst c6a3",                   "evidences.dst_endpoint.ip",    "destination.ip",               "AdditionalFields.DstIpAddr"],         |a| a.destination.map(|ip| ip.to_string()).into()),
    field("evidence.services[0]", ["dpt",                       "evidences.dst_endpoint.port",  "destination.port",             "AdditionalFields.DstPortNumber"],     |a| service(a).and_then(|(_, port)| port).map_or(Value::Absent, Value::Count)),
    field("evidence.services[0]", ["proto",                     "evidences.connection_info.protocol_name", "network.transport", "AdditionalFields.NetworkProtocol"],   |a| service(a).map(|(protocol, _)| protocol).into()),
    field("first",               ["start",                      "finding_info.first_seen_time", "event.start",                  "EventStartTime"],                     |a| Value::Time(a.first)),
    field("last",                ["end",                        "finding_info.last_seen_time",  "event.end",                    "EventEndTime"],                       |a| Value::Time(a.last)),
    field("detected",            ["deviceCustomDate1 detected", "finding_info.created_time",    "event.created",                "AdditionalFields.DetectedTime"],      |a| Value::Time(a.detected)),
    field("told",                ["rt",                         "time",                         "@timestamp",                   "TimeGenerated"],                      |a| Value::Time(a.told)),
    field("sentence",            ["msg",                        "message",                      "message",                      "EventMessage"],                       |a| Value::Text(a.sentence.clone())),
    field("advice",              ["cs5 advice",                 "remediation.desc",             "spanwatch.advice",             "AttackRemediationSteps"],             |a| Some(a.advice.clone()).into()),
    field("score",               ["cfp1 score",                 "unmapped.score",               "spanwatch.score",              "AdditionalFields.Score"],             |a| Value::Number(a.score)),
    field("confidence",          ["cfp2 confidence",            "confidence_score",             "spanwatch.confidence",         "ThreatConfidence"],                   |a| Value::Share(a.confidence)),
    field("doubts",              ["",                           "unmapped.doubts",              "spanwatch.doubts",             "AdditionalFields.Doubts"],            |a| texts(&a.doubts)),
    field("evidence.value",      ["cfp3 measured",              "unmapped.value",               "spanwatch.evidence.value",     "AdditionalFields.Value"],             |a| Value::Number(a.evidence.value)),
    field("evidence.threshold",  ["cfp4 threshold",             "unmapped.threshold",           "spanwatch.evidence.threshold", "AdditionalFields.Threshold"],         |a| Value::Number(a.evidence.threshold)),
    field("evidence.unit",       ["flexString1 unit",           "unmapped.unit",                "spanwatch.evidence.unit",      "AdditionalFields.Unit"],              |a| Some(a.evidence.unit.clone()).into()),
    field("evidence.baseline",   ["",                           "unmapped.baseline",            "spanwatch.evidence.baseline",  "AdditionalFields.Baseline"],          |a| a.evidence.baseline.map_or(Value::Absent, Value::Number)),
    field("evidence.attempts",   ["cnt",                        "count",                        "spanwatch.evidence.attempts",  "AdditionalFields.Attempts"],          |a| a.evidence.attempts.map_or(Value::Absent, Value::Count)),
    field("evidence.failures",   ["cn1 failures",               "unmapped.failures",            "spanwatch.evidence.failures",  "AdditionalFields.Failures"],          |a| a.evidence.failures.map_or(Value::Absent, Value::Count)),
    field("evidence.observers",  ["dvchost",                    "metadata.loggers",             "observer.name",                "DvcHostname"],                        |a| a.evidence.observers.first().cloned().into()),
    field("attack",              ["cs1 attackTechniques",       "finding_info.attacks",         "threat.technique",             "AttackTechniques"],                   |a| joined(a.attack.iter().map(|id| attack::label(id)))),
    field("tactics",             ["cs2 attackTactics",          "finding_info.attacks",         "threat.tactic",                "AttackTactics"],                      |a| joined(attack::tactics_of(a).iter().map(|tactic| tactic.name().to_owned()))),
    field("incident",            ["cs3 incident",               "metadata.correlation_uid",     "spanwatch.incident",           "AdditionalFields.Incident"],          |a| a.incident.clone().into()),
];

/// What a severity is called elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeverityNames {
    /// Ours.
    pub ours: Severity,
    /// Numerical severity of RFC 5424 §6.2.1: 0 emergency to 7 debug.
    pub syslog: u8,
    /// Of the CEF header, 0 to 10: 0–3 low, 4–6 medium, 7–8 high, 9–10 very high.
    pub cef: u8,
    /// `severity_id` of OCSF.
    pub ocsf: u8,
    /// `severity` of OCSF.
    pub ocsf_caption: &'static str,
    /// `event.severity` of ECS, which leaves the scale to us: the one that Elastic's own rules use as risk.
    pub ecs: u8,
    /// `EventSeverity` of ASIM, which has no critical.
    pub asim: &'static str,
}

/// Ascending.
#[rustfmt::skip]
pub static SEVERITIES: [SeverityNames; 5] = [
    SeverityNames { ours: Severity::Informational, syslog: 6, cef: 1,  ocsf: 1, ocsf_caption: "Informational", ecs: 1,  asim: "Informational" },
    SeverityNames { ours: Severity::Low,           syslog: 5, cef: 3,  ocsf: 2, ocsf_caption: "Low",           ecs: 21, asim: "Low" },
    SeverityNames { ours: Severity::Medium,        syslog: 4, cef: 5,  ocsf: 3, ocsf_caption: "Medium",        ecs: 47, asim: "Medium" },
    SeverityNames { ours: Severity::High,          syslog: 2, cef: 8,  ocsf: 4, ocsf_caption: "High",          ecs: 73, asim: "High" },
    SeverityNames { ours: Severity::Critical,      syslog: 1, cef: 10, ocsf: 5, ocsf_caption: "Critical",      ecs: 99, asim: "High" },
];

/// The names of `severity`.
pub const fn severity(severity: Severity) -> &'static SeverityNames {
    &SEVERITIES[severity as usize]
}

/// The word of our own line for `class`.
pub const fn class(class: Class) -> &'static str {
    match class {
        Class::Detection => "detection",
        Class::Incident => "incident",
        Class::Storm => "storm",
        Class::Health => "health",
    }
}

/// The map as a table in Markdown, for documents.
pub fn markdown() -> String {
    let mut table =
        "| ours | CEF | OCSF 1.5 Detection Finding | ECS 8.17 | ASIM AlertEvent 0.1 |\n|---|---|---|---|---|\n".to_owned();
    for field in &MAP {
        let names = [field.ours, field.cef, field.ocsf, field.ecs, field.asim];
        table.extend(names.iter().map(|name| if name.is_empty() { "| – ".to_owned() } else { format!("| `{name}` ") }));
        table.push_str("|\n");
    }
    table
}

/// Protocol in lower case and port, if the alert is about one service.
fn service(alert: &Alert) -> Option<(String, Option<u64>)> {
    let [service] = &*alert.evidence.services else { return None };
    let (protocol, port) = service.split_once('/').map_or((&**service, None), |(protocol, port)| (protocol, port.parse().ok()));
    Some((protocol.to_ascii_lowercase(), port))
}

fn texts(texts: &[String]) -> Value {
    if texts.is_empty() { Value::Absent } else { Value::Texts(texts.to_vec()) }
}

fn joined(words: impl Iterator<Item = String>) -> Value {
    Some(words.collect::<Vec<_>>().join(", ")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_stand_at_their_own_place() {
        for names in &SEVERITIES {
            assert_eq!(severity(names.ours), names);
        }
        assert!(SEVERITIES.is_sorted_by(|a, b| a.syslog > b.syslog && a.cef < b.cef && a.ocsf < b.ocsf && a.ecs < b.ecs));
    }

    #[test]
    fn no_two_fields_share_a_place_but_attacks() {
        let columns: [fn(&Field) -> &'static str; 4] = [|f| f.cef, |f| f.ocsf, |f| f.ecs, |f| f.asim];
        for column in columns {
            let mut names: Vec<_> =
                MAP.iter().map(column).filter(|name| !name.is_empty() && *name != "finding_info.attacks").collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
