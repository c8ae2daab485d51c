//! What comes out of findings, in memory and on disk.

mod desk;
mod incidents;
mod life;

use std::sync::Arc;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::finding::{Evidence, RuleCard, Severity, Stage, Subject, Window};
use spanwatch_detect::{Finding, Variant};

use crate::Alert;

/// `secs` after 2026-11-21T10:00:00Z.
fn secs(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_795_255_200 + secs)
}

fn host(text: &str) -> Address {
    text.parse().expect("an address")
}

/// A finding of AZ-01 about `10.0.0.9` in the minute that begins at `start`.
fn finding(start: i64, stage: Stage, hosts: u32) -> Finding {
    let rule = RuleCard {
        id: "AZ-01",
        title: "Horizontal scan",
        variant: Variant::Fixed,
        severity: Severity::Medium,
        attack: vec!["T1046".to_owned()],
    };
    Finding {
        rule: Arc::new(rule),
        stage,
        subject: Subject::host(host("10.0.0.9")),
        window: Window { start: secs(start), end: secs(start + 60) },
        first: secs(start + 1),
        last: secs(start + 50),
        evidence: Evidence { value: f64::from(hosts), threshold: 6.0, unit: "hosts".to_owned(), ..Evidence::default() },
        sentence: format!("10.0.0.9 tried {hosts} hosts"),
        score: f64::from(hosts) / 6.0,
        confidence: 0.7,
        advice: String::new(),
    }
}

/// One of another rule, about a host or a pair.
fn other(rule: &'static str, technique: &str, source: &str, destination: Option<&str>, start: i64) -> Finding {
    let finding = finding(start, Stage::Crossed, 30);
    let card = RuleCard { id: rule, title: rule, attack: vec![technique.to_owned()], ..(*finding.rule).clone() };
    let subject = match destination {
        Some(destination) => Subject::pair(host(source), host(destination)),
        None => Subject::host(host(source)),
    };
    Finding { rule: Arc::new(card), subject, ..finding }
}

/// Rule, state and whether it is for the record only, of each line.
fn outline(lines: &[Alert]) -> Vec<String> {
    let outline = |line: &Alert| format!("{} {}{}", line.rule, line.state, if line.is_quiet() { " quietly" } else { "" });
    lines.iter().map(outline).collect()
}
