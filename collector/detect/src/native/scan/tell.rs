//! What is told of a source: the finding, with its numbers and its sentence.

use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::case::Told;
use super::limits::{Cards, Family};
use super::reading::{Came, Technique};
use super::sample::Target;
use super::source::{Kind, Scope, Source};
use super::table::network_of;
use crate::card::EXAMPLES_MAX;
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Window, clock_face, round2, service_name};
use crate::native::span;

/// Points of the sparkline.
const POINTS: usize = 20;
/// Services or hosts named in a sentence.
const NAMED_MAX: usize = 5;
/// How sure a rule is by itself, and when the random walk agrees.
const CONFIDENCE: (f64, f64) = (0.8, 0.95);
/// How sure ND-04 is without another rule, and ND-05.
const CONFIDENCE_ALONE: f64 = 0.6;

/// The finding that says of the source at `key` what stands in `told`, which adds up to `value`.
pub(super) fn finding(family: &Family, key: u128, source: &Source, told: &Told, stage: Stage, value: f64) -> Option<Finding> {
    let rule = card(family, source, told)?;
    let all: Vec<&Target> = source.failed.targets().iter().filter(|target| told.has(target)).collect();
    let tally = source.tally(told.since, told.scope, true);
    let mut hosts: Vec<Address> = all.iter().map(|target| target.host()).collect();
    let mut services: Vec<u32> = all.iter().map(|target| target.service()).collect();
    hosts.dedup();
    services.sort_unstable();
    services.dedup();
    let factor = source.failed.factor();
    let attempts = tally.failed() + tally.answered();
    let story = Story {
        who: who(key, source),
        tried: tried(told, tally.failed(), (&hosts, &services), factor),
        technique: technique(&all),
        came: came(&all, factor, tally.answered()),
    };
    let names: Vec<String> = services.iter().map(|&service| named(service)).collect();
    let evidence = Evidence {
        value: round2(value),
        threshold: told.threshold as f64,
        unit: "failed targets".to_owned(),
        attempts: Some(attempts),
        failures: Some(tally.failed()),
        series: series(&all, told),
        rows: told.rows(),
        hosts: hosts.iter().copied().take(EXAMPLES_MAX).collect(),
        services: names.iter().take(EXAMPLES_MAX).cloned().collect(),
        observers: source.case.as_ref().map(|case| case.observers.to_strings()).unwrap_or_default(),
        ..Evidence::default()
    };
    let start = Timestamp::from_secs(i64::from(told.window));
    let window = Window { start, end: start.plus(long(told.window_secs())) };
    // A second that has begun, and within the window.
    let within = |secs: u32| window.nearest(Timestamp::from_secs(i64::from(secs)));
    Some(Finding {
        sentence: story.sentence(told, &names, &hosts),
        advice: advice(source, told, &story.who),
        rule,
        stage,
        subject: subject(key, source, told),
        first: within(told.since),
        last: within(told.last),
        window,
        score: round2(value / (told.threshold as f64).max(1.0)),
        confidence: match told.kind {
            Kind::Shape | Kind::Control if source.walk.accuses() => CONFIDENCE.1,
            Kind::Shape | Kind::Control => CONFIDENCE.0,
            Kind::Walk | Kind::Week => CONFIDENCE_ALONE,
        },
        evidence,
    })
}

/// In which face the rule speaks.
fn card(family: &Family, source: &Source, told: &Told) -> Option<Arc<RuleCard>> {
    let face = |cards: &Cards| if source.external { cards.external.clone() } else { cards.internal.clone() };
    match told.kind {
        Kind::Shape => family.shape(told.shape).map(|rule| face(&rule.cards)),
        Kind::Control => family.shape(told.shape).map(|rule| rule.cards.control.clone()),
        Kind::Walk => family.walk.as_ref().map(|rule| rule.card.clone()),
        Kind::Week => family.week.as_ref().map(|rule| face(&rule.cards)),
    }
}

fn subject(key: u128, source: &Source, told: &Told) -> Subject {
    let host =
        if source.network { Subject { vm: Some(who(key, source)), ..Subject::default() } } else { Subject::host(Address(key)) };
    match told.scope {
        Scope::Host(destination) => Subject { destination: Some(destination), ..host },
        Scope::Service(service) => Subject { service: Some(named(service)), ..host },
        Scope::All => host,
    }
}

/// `10.0.4.7`, or `198.51.100.0/24` for a network.
fn who(key: u128, source: &Source) -> String {
    if !source.network {
        return Address(key).to_string();
    }
    let (first, bits) = network_of(key);
    let length = if first.as_v4().is_some() { bits.saturating_sub(96) } else { bits };
    format!("{first}/{length}")
}

/// The parts of a sentence.
struct Story {
    who: String,
    tried: String,
    technique: &'static str,
    came: String,
}

impl Story {
    fn sentence(&self, told: &Told, services: &[String], hosts: &[Address]) -> String {
        let Self { who, tried, technique, came } = self;
        let since = clock_face(Timestamp::from_secs(i64::from(told.since)));
        let time = span(long(told.last.saturating_sub(told.since) + 1));
        let whom = match told.scope {
            Scope::Service(_) => list(hosts.iter().map(ToString::to_string)),
            _ => list(services.iter().cloned()),
        };
        let sort = match told.kind {
            Kind::Control => "looking for control systems: ",
            _ => "",
        };
        let how = if technique.is_empty() { String::new() } else { format!(" ({technique} scan)") };
        let usual = match told.kind {
            Kind::Walk => "and it did not come back to them, which honest hosts do".to_owned(),
            _ => format!("{} in {} are told", told.threshold, span(long(told.scale))),
        };
        format!("{sort}{who} tried {tried} in {time} from {since}{how}: {came}; {usual}; {whom}")
    }
}

fn tried(told: &Told, failed: u64, (hosts, services): (&[Address], &[u32]), factor: u64) -> String {
    let about = if factor > 1 { "about " } else { "" };
    match told.scope {
        Scope::Host(host) => format!("{about}{failed} ports of {host}"),
        Scope::Service(service) if service as u16 == 0 => format!("{about}{failed} hosts by {}", named(service)),
        Scope::Service(service) => format!("{about}{failed} hosts on {}", named(service)),
        Scope::All => format!("{about}{failed} targets ({} hosts, {} services)", hosts.len(), services.len()),
    }
}

/// How most of the targets were tried.
fn technique(targets: &[&Target]) -> &'static str {
    let mut techniques: Vec<Technique> = targets.iter().map(|target| target.technique).collect();
    techniques.sort_unstable();
    let most = techniques.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).and_then(|same| same.first().copied());
    // A few open ports tell a half-open scan from a connecting one; the closed ones all look the same.
    let telling = [Technique::HalfOpen, Technique::Connect].into_iter().find(|kind| techniques.contains(kind));
    match most {
        Some(Technique::Syn) => telling.unwrap_or(Technique::Syn).name(),
        Some(most) => most.name(),
        None => "",
    }
}

/// `409 never answered, 3 refused, 2 others answered`.
fn came(targets: &[&Target], factor: u64, answered: u64) -> String {
    let words = [
        (Came::Nothing, "never answered"),
        (Came::Refusal, "refused"),
        (Came::Unreachable, "were unreachable"),
        (Came::Denial, "were denied"),
        (Came::Welcome, "answered and were left at once"),
    ];
    let count = |came| targets.iter().filter(|target| target.came == came).count() as u64 * factor;
    let mut parts: Vec<String> = words
        .into_iter()
        .map(|(came, words)| (count(came), words))
        .filter(|&(count, _)| count > 0)
        .map(|(count, words)| format!("{count} {words}"))
        .collect();
    if answered > 0 {
        parts.push(format!("{answered} others were spoken with"));
    }
    parts.join(", ")
}

fn advice(source: &Source, told: &Told, who: &str) -> String {
    match (source.external, told.kind) {
        (true, _) => {
            format!("Check that what {who} tried need not be reached from outside, and block {who} if it does not stop.")
        }
        (false, Kind::Control) => {
            format!(
                "Find out at once who works on {who}: only engineering stations and masters have a reason to look for controllers."
            )
        }
        (false, _) => {
            format!("Find out what runs on {who}; if it scans or monitors by order, give it the role scanner or monitor.")
        }
    }
}

/// How many targets had been tried after each twentieth of the time.
fn series(targets: &[&Target], told: &Told) -> Vec<f64> {
    let length = u64::from(told.last.saturating_sub(told.since)) + 1;
    let mut points = [0.0; POINTS];
    for target in targets {
        let place = u64::from(target.at.saturating_sub(told.since)) * POINTS as u64 / length;
        points[(place as usize).min(POINTS - 1)] += 1.0;
    }
    let mut sum = 0.0;
    points.iter().map(|point| (sum += point, sum).1).collect()
}

/// So many seconds.
pub(super) fn long(secs: u32) -> Duration {
    Duration::from_secs(u64::from(secs))
}

/// The name of a service as a number: protocol · 65536 + port.
pub(super) fn named(service: u32) -> String {
    service_name((service >> 16) as u8, service as u16)
}

/// `TCP/22, TCP/23, …`.
fn list(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.take(NAMED_MAX + 1).collect();
    if names.len() > NAMED_MAX {
        names.truncate(NAMED_MAX);
        names.push("…".to_owned());
    }
    names.join(", ")
}
