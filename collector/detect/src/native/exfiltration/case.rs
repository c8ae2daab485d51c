//! Something that was told and goes on, and how it is told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::HOUR;
use super::past::{Basis, Usual};
use super::sums::Traffic;
use crate::finding::{Evidence, Finding, RuleCard, Sighting, Stage, Subject, Window, clock_face, round2, service_name};
use crate::native::in_bytes;

/// Which of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Facet {
    Hour,
    Upload,
    Day,
    Tunnel,
}

/// Something that was told and goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Case {
    /// Octets when it was last told.
    pub(super) told: u64,
    pub(super) finding: Told,
}

/// As much of a finding as its last word needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    first: Timestamp,
    last: Timestamp,
    bar: f64,
    median: Option<f64>,
    basis: String,
    confidence: f64,
    service: Option<(u8, u16)>,
    towards: u128,
    rows: Vec<Sighting>,
    series: Vec<f64>,
}

/// What a case is about: which test, the host, the peer (0 for all), the start of the hour or day.
pub(super) type CaseKey = (Facet, u128, u128, Timestamp);

/// What was measured against what.
pub(super) struct Measure {
    pub(super) bar: f64,
    pub(super) usual: Option<Usual>,
    pub(super) confidence: f64,
    pub(super) service: Option<(u8, u16)>,
    pub(super) towards: u128,
    /// Whether nobody sent there a week ago.
    pub(super) new: bool,
}

impl Told {
    /// What `measure` says of the case `facet`, between the two times.
    pub(super) fn of(
        facet: Facet,
        (first, last): (Timestamp, Timestamp),
        measure: &Measure,
        rows: Vec<Sighting>,
        series: Vec<f64>,
    ) -> Self {
        Self {
            first,
            last,
            bar: measure.bar,
            median: measure.usual.filter(|usual| usual.basis != Basis::Nothing).map(|usual| usual.median),
            basis: match measure.usual {
                Some(usual) => basis(usual, facet),
                None if measure.new => "and nobody did a week ago".to_owned(),
                None => "but all has been watched for less than a week, so what is new is not known".to_owned(),
            },
            confidence: measure.confidence,
            service: measure.service,
            towards: measure.towards,
            rows,
            series,
        }
    }

    /// The finding about the case when it has come to `traffic`.
    pub(super) fn finding(
        &self,
        rule: &Arc<RuleCard>,
        (facet, source, peer, start): CaseKey,
        traffic: Traffic,
        stage: Stage,
    ) -> Finding {
        let (source, towards) = (Address(source), Address(self.towards));
        let (out, back) = (in_bytes(traffic.out as f64), in_bytes(traffic.back as f64));
        let end = start.plus(if facet == Facet::Hour { HOUR } else { HOUR * 24 });
        let since = match facet {
            Facet::Hour => format!("in the hour from {}", clock_face(start)),
            _ => "since midnight UTC".to_owned(),
        };
        let sentence = match facet {
            Facet::Hour => format!("{source} sent out {out} {since}, most to {towards}; {}", self.basis),
            Facet::Day => {
                format!(
                    "{source} sent out {out} {since}, much of it to {towards}, where hardly any other host sends; {}",
                    self.basis
                )
            }
            Facet::Upload => {
                format!(
                    "{source} sent {out} to {towards} {since} and got {back} back; hardly any other host sends to that network, {}",
                    self.basis
                )
            }
            Facet::Tunnel => {
                let service = self.service.map(|(protocol, port)| service_name(protocol, port)).unwrap_or_default();
                format!("{source} sent {out} to {towards} over {service} {since}, which is more than such messages need")
            }
        };
        let advice = match facet {
            Facet::Tunnel => format!("Find out what {source} sends there; if it resolves names for others, give it the role dns"),
            _ => format!(
                "Ask the owner of {source} what was sent to {towards}; if it is a backup, give one of them the role backup"
            ),
        };
        let subject = match peer {
            0 => Subject::host(source),
            peer => Subject::pair(source, Address(peer)),
        };
        let facet = match facet {
            Facet::Hour => "hour",
            Facet::Upload => "upload",
            Facet::Day => "day",
            Facet::Tunnel => "tunnel",
        };
        let mut observers: Vec<String> = self.rows.iter().map(|row| row.observer.clone()).collect();
        observers.sort_unstable();
        observers.dedup();
        Finding {
            rule: rule.clone(),
            stage,
            subject: Subject {
                facet: Some(facet.to_owned()),
                protocol: self.service.map(|(protocol, _)| protocol),
                port: self.service.map(|(_, port)| port).filter(|&port| port > 0),
                ..subject
            },
            window: Window { start, end },
            first: self.first,
            last: self.last,
            sentence,
            advice,
            score: round2(traffic.out as f64 / self.bar.max(1.0)),
            confidence: self.confidence,
            evidence: Evidence {
                value: traffic.out as f64,
                threshold: self.bar.round(),
                unit: "octets sent out".to_owned(),
                octets: Some(traffic.out.saturating_add(traffic.back)),
                baseline: self.median.map(f64::round),
                series: self.series.clone(),
                rows: self.rows.clone(),
                hosts: vec![towards],
                observers,
                ..Evidence::default()
            },
        }
    }
}

pub(super) fn confidence(basis: Basis, to_few: bool) -> f64 {
    let by_basis = match basis {
        Basis::Nothing => 0.3,
        Basis::Days(_) => 0.6,
        Basis::Weeks(_) => 0.75,
    };
    if to_few { by_basis + 0.1 } else { by_basis }
}

/// `usual for this hour of the week are 12.0 MB (median of 3 weeks)`.
fn basis(usual: Usual, facet: Facet) -> String {
    let median = in_bytes(usual.median);
    match (facet, usual.basis) {
        (_, Basis::Nothing) => "nothing is usual yet".to_owned(),
        (Facet::Day, Basis::Days(days)) => format!("usual in a day is {median} (median of {days} days)"),
        (Facet::Day, Basis::Weeks(weeks)) => format!("usual for this day of the week is {median} (median of {weeks} weeks)"),
        (_, Basis::Days(days)) => format!("usual for this hour is {median} (median of {days} days)"),
        (_, Basis::Weeks(weeks)) => format!("usual for this hour of the week is {median} (median of {weeks} weeks)"),
    }
}
