//! What guessing is called, in words and numbers.

use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::pair::{Pair, STRETCH, STRETCHES};
use super::spray::Spray;
use super::{Logons, Target};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, Window, clock_face, round2, service_name};
use crate::native::lasting::{Lasting, OpenWindow};

/// Hosts that a finding names.
const NAMED_MAX: usize = 20;

/// What is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Guessing,
    SlowGuessing,
    Spraying,
}

impl Claim {
    /// Seconds of its windows.
    const fn window_secs(self) -> i64 {
        match self {
            Self::Guessing => STRETCH * STRETCHES,
            Self::SlowGuessing => 3_600,
            Self::Spraying => 1_800,
        }
    }

    /// The number of the window in which `at` lies.
    pub(super) const fn window_of(self, at: Timestamp) -> i64 {
        at.as_nanos().div_euclid(self.window_secs() * 1_000_000_000)
    }

    /// When the window is.
    fn window(self, number: i64) -> Window {
        let start = Timestamp::from_secs(number * self.window_secs());
        Window { start, end: start.plus(Duration::from_secs(self.window_secs().cast_unsigned())) }
    }

    /// Of `pair`.
    pub(super) const fn of(self, pair: &mut Pair) -> &mut Lasting {
        if matches!(self, Self::SlowGuessing) { &mut pair.slow } else { &mut pair.fast }
    }
}

impl Logons {
    /// That a password of `target` is guessed.
    pub(super) fn about_pair(&self, target: &Target, pair: &Pair, claim: Claim, window: &OpenWindow, stage: Stage) -> Finding {
        let Target { port, .. } = *target;
        let [source, destination] = [target.source, target.destination].map(Address);
        let service = service_name(protocol::TCP, port);
        let is_slow = claim == Claim::SlowGuessing;
        let settings = &self.settings;
        let (threshold, within) = match is_slow {
            true => (settings.slow_attempts, "a day"),
            false if settings.everyday_ports.contains(port) => {
                (settings.threshold_attempts * settings.everyday_factor, "5 minutes")
            }
            false => (settings.threshold_attempts, "5 minutes"),
        };
        let subject = Subject::pair(source, destination).with_port(port).with_protocol(protocol::TCP);
        let outcome = match pair.came_in {
            Some((at, octets)) => {
                format!(
                    "; at {} came a session of another kind ({octets} octets): one password may have been right",
                    clock_face(at)
                )
            }
            None => String::new(),
        };
        let severity = if pair.came_in.is_some() { self.rules[0].severity.max(Severity::High) } else { self.rules[0].severity };
        let proof = pair.proof.as_deref();
        Finding {
            rule: with_severity(&self.rules[0], severity),
            stage,
            subject: if is_slow { Subject { facet: Some("slow".to_owned()), ..subject } } else { subject },
            window: claim.window(window.number),
            first: window.first,
            last: window.last,
            sentence: format!(
                "{source} opened {} short sessions to {destination} on {service} within {within}, all alike ({:.0} octets each; {} since \
                 {}), as somebody who guesses passwords does{outcome}",
                window.peak,
                pair.attempts.octets_mean(),
                pair.total,
                clock_face(pair.since),
            ),
            advice: if pair.came_in.is_some() {
                format!(
                    "Look up in the log of {destination} who logged on from {source}, end that session and change the password."
                )
            } else {
                format!(
                    "Look for failed logons from {source} in the log of {destination}; block the source, or allow fewer tries."
                )
            },
            score: round2(window.peak / threshold.max(1) as f64),
            confidence: if is_slow { 0.6 } else { 0.8 },
            evidence: Evidence {
                value: window.peak,
                threshold: threshold as f64,
                unit: "attempts".to_owned(),
                attempts: Some(pair.total),
                series: pair.course(is_slow),
                rows: proof.map(|proof| proof.sightings.to_vec()).unwrap_or_default(),
                hosts: vec![destination],
                services: vec![service],
                observers: proof.map(|proof| proof.observers.to_strings()).unwrap_or_default(),
                ..Evidence::default()
            },
        }
    }

    /// That a source tries passwords on many hosts.
    pub(super) fn about_spray(&self, (source, port): (u128, u16), spray: &Spray, window: &OpenWindow, stage: Stage) -> Finding {
        let (source, service) = (Address(source), service_name(protocol::TCP, port));
        let threshold = self.settings.spray_hosts as f64;
        let tries = self.settings.spray_tries;
        let subject = Subject::host(source).with_port(port).with_protocol(protocol::TCP);
        Finding {
            rule: self.rules[1].clone(),
            stage,
            subject: Subject { facet: Some("password spraying".to_owned()), ..subject },
            window: Claim::Spraying.window(window.number),
            first: window.first,
            last: window.last,
            sentence: format!(
                "{source} opened short sessions on {service} to {} hosts within 30 minutes, {tries} and more to each and all alike ({} in \
                 all, {:.0} octets each), as somebody who tries a few passwords everywhere does",
                window.peak,
                spray.attempts,
                spray.sample.octets_mean(),
            ),
            advice: format!(
                "Look for failed logons from {source} in the logs of these hosts and of the directory; block the source."
            ),
            score: round2(window.peak / threshold.max(1.0)),
            confidence: 0.7,
            evidence: Evidence {
                value: window.peak,
                threshold,
                unit: "hosts".to_owned(),
                attempts: Some(spray.attempts),
                rows: spray.proof.sightings.to_vec(),
                hosts: spray.hosts(tries).take(NAMED_MAX).map(Address).collect(),
                services: vec![service],
                observers: spray.proof.observers.to_strings(),
                ..Evidence::default()
            },
        }
    }
}

fn with_severity(rule: &Arc<RuleCard>, severity: Severity) -> Arc<RuleCard> {
    if rule.severity == severity { rule.clone() } else { Arc::new(RuleCard { severity, ..(**rule).clone() }) }
}
