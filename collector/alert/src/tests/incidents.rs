//! What belongs together, and what does not.

use std::collections::BTreeMap;

use spanwatch_detect::RuleFile;

use super::*;
use crate::{AlertState, Class, Desk};

/// All lines about incidents that `findings`, in their order, bring about.
fn incidents(findings: &[Finding]) -> Vec<Alert> {
    let mut desk = Desk::new(&RuleFile::default(), 10_000, 1_000);
    let mut out = Vec::new();
    for finding in findings {
        desk.take(finding, finding.last, &mut out);
        desk.expire(finding.window.start, finding.last, &mut out);
    }
    out.retain(|line| line.class == Class::Incident);
    out
}

/// The last line of each.
fn at_the_end(findings: &[Finding]) -> Vec<Alert> {
    let last: BTreeMap<String, Alert> = incidents(findings).into_iter().map(|line| (line.id.clone(), line)).collect();
    last.into_values().filter(Alert::is_open).collect()
}

/// A way in, hop by hop.
fn intrusion() -> Vec<Finding> {
    let mut sent = other("ND-11", "T1041", "10.0.0.5", Some("203.0.113.9"), 2_400);
    sent.evidence.octets = Some(812_000_000);
    let mut guesses = other("ND-17", "T1110", "10.0.0.9", Some("10.0.0.5"), 600);
    guesses.window.end = secs(900);
    guesses.last = secs(899);
    vec![finding(120, Stage::Crossed, 254), guesses, sent]
}

#[test]
fn an_intruder_is_one_story_that_grows_graver_with_every_step() {
    let lines = incidents(&intrusion());
    let steps: Vec<(AlertState, Severity, f64)> =
        lines.iter().map(|line| (line.state, line.severity, line.evidence.value)).collect();
    assert_eq!(steps, [(AlertState::Open, Severity::Medium, 2.0), (AlertState::Updated, Severity::High, 3.0)]);
    assert_eq!(
        lines[1].sentence,
        "10.0.0.9 scanned 254 hosts at 10:02, guessed passwords on 10.0.0.5 from 10:10; 10.0.0.5 sent 812 MB to 203.0.113.9 at 10:40 (UTC)."
    );
    assert_eq!(lines[1].tactics, ["Credential Access", "Discovery", "Exfiltration"]);
    assert_eq!((lines[1].subject.as_str(), lines[1].members.len()), ("10.0.0.9", 3));
    // Three witnesses of 0.7 each: 1 - 0.3³.
    assert_eq!(lines[1].confidence, 0.973);
    assert_eq!(lines[0].id, lines[1].id);
}

#[test]
fn members_know_their_incident_and_it_closes_after_six_silent_hours() {
    let mut desk = Desk::new(&RuleFile::default(), 1_000, 50);
    let mut out = Vec::new();
    intrusion().iter().for_each(|finding| desk.take(finding, finding.last, &mut out));
    let incident = out.iter().find(|line| line.class == Class::Incident).unwrap().id.clone();
    desk.expire(secs(2_449 + 21_600), secs(30_000), &mut out);
    let closed = |out: &[Alert]| out.iter().any(|line| line.id == incident && line.state == AlertState::Closed);
    assert!(!closed(&out), "its last member was last seen at 2450 s");
    let members: Vec<&Alert> = out.iter().filter(|line| line.state == AlertState::Closed).collect();
    assert_eq!(members.len(), 3);
    assert!(members.iter().all(|line| line.incident.as_ref() == Some(&incident)));
    desk.expire(secs(2_450 + 21_600), secs(30_000), &mut out);
    assert!(closed(&out));
}

#[test]
fn one_tactic_alone_is_no_incident_and_neither_is_what_lies_seven_hours_apart() {
    let scans = [finding(0, Stage::Crossed, 9), other("AZ-02", "T1046", "10.0.0.9", Some("10.0.0.5"), 60)];
    assert_eq!(incidents(&scans), []);
    let late = [finding(0, Stage::Crossed, 9), other("ND-17", "T1110", "10.0.0.9", Some("10.0.0.5"), 7 * 3_600)];
    assert_eq!(incidents(&late), []);
}

#[test]
fn a_busy_server_glues_nobody_together() {
    // Sixty strangers try its doors, each for itself; then it makes its nightly copy, which looks like an exfiltration.
    let stranger = |n: u8| other("ND-17", "T1110", &format!("198.51.100.{n}"), Some("10.0.0.80"), i64::from(n) * 60);
    let mut findings: Vec<Finding> = (1..=60).map(stranger).collect();
    findings.push(other("ND-11", "T1041", "10.0.0.80", Some("203.0.113.7"), 3_700));
    assert_eq!(incidents(&findings), []);
    // Had it been one who tried, it would have been him.
    assert_eq!(at_the_end(&[stranger(1), findings[60].clone()]).len(), 1);
}

#[test]
fn a_scanner_is_not_the_cause_of_what_its_many_targets_do() {
    let mut findings: Vec<Finding> =
        (1..=17).map(|n| other("AZ-02", "T1046", "10.0.0.9", Some(&format!("10.0.1.{n}")), i64::from(n))).collect();
    findings.push(other("ND-11", "T1041", "10.0.1.5", Some("203.0.113.7"), 600));
    assert_eq!(incidents(&findings), []);
}

#[test]
fn who_is_flooded_or_sent_data_is_not_thereby_taken_over() {
    let sent = other("ND-11", "T1041", "10.0.0.80", Some("203.0.113.7"), 600);
    assert_eq!(incidents(&[other("ND-07", "T1498.001", "198.51.100.1", Some("10.0.0.80"), 0), sent.clone()]), []);
    assert_eq!(incidents(&[sent, other("AZ-02", "T1046", "203.0.113.7", Some("10.0.0.9"), 900)]), []);
}

#[test]
fn two_incidents_become_the_older_one_when_something_joins_them() {
    let findings = [
        other("AZ-02", "T1046", "10.0.0.9", Some("10.0.0.5"), 0),
        other("ND-17", "T1110", "10.0.0.9", Some("10.0.0.5"), 60),
        other("AZ-02", "T1046", "10.0.0.7", Some("10.0.0.6"), 600),
        other("ND-17", "T1110", "10.0.0.7", Some("10.0.0.6"), 660),
        other("ND-13", "T1021.004", "10.0.0.5", Some("10.0.0.7"), 300),
    ];
    let lines = incidents(&findings);
    let open = at_the_end(&findings);
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].members.len(), open[0].severity), (5, Severity::High));
    let absorbed = lines.iter().find(|line| line.state == AlertState::Closed).unwrap();
    assert_eq!(absorbed.incident.as_ref(), Some(&open[0].id));
    assert!(absorbed.sentence.ends_with(&format!("It is part of incident {} now.", open[0].id)));
}

#[test]
fn in_whatever_order_alerts_come_their_incident_is_the_same_but_for_its_name() {
    // The scan and the guesses begin in the same second: looking comes first.
    let mut guesses = other("ND-17", "T1110", "10.0.0.9", Some("10.0.0.5"), 120);
    guesses.window.end = secs(900);
    let [scan, _, sent] = intrusion().try_into().unwrap();
    let taken = other("ND-13", "T1021.004", "10.0.0.5", Some("10.0.0.7"), 120);
    let findings = [scan, guesses, sent, taken];
    let timeless = |mut found: Vec<Alert>| {
        for line in &mut found {
            (line.id, line.state, line.detected, line.told) = (String::new(), AlertState::Open, Timestamp::NONE, Timestamp::NONE);
        }
        found
    };
    let expected = timeless(at_the_end(&findings));
    assert_eq!((expected.len(), expected[0].subject.as_str(), expected[0].members.len()), (1, "10.0.0.9", 4));
    for order in 0..24 {
        // The order of this number in the factorial number system.
        let mut left: Vec<&Finding> = findings.iter().collect();
        let turned: Vec<Finding> =
            [order / 6, order / 2 % 3, order % 2, 0].into_iter().map(|place| left.remove(place).clone()).collect();
        assert_eq!(timeless(at_the_end(&turned)), expected, "order {order}");
    }
}

#[test]
fn an_incident_told_after_the_last_checkpoint_keeps_its_name_when_it_is_found_again() {
    let findings = intrusion();
    let mut desk = Desk::new(&RuleFile::default(), 1_000, 50);
    let checkpoint = desk.snapshot().unwrap();
    let mut written = Vec::new();
    findings.iter().for_each(|finding| desk.take(finding, finding.last, &mut written));
    let name = |lines: &[Alert]| lines.iter().find(|line| line.class == Class::Incident).unwrap().id.clone();
    // Found again the other way round, it would be named after what came last.
    let again = |written: &[Alert]| {
        let mut desk = Desk::new(&RuleFile::default(), 1_000, 50);
        desk.resume(&checkpoint, written).unwrap();
        let mut out = Vec::new();
        findings.iter().rev().for_each(|finding| desk.take(finding, finding.last, &mut out));
        assert_eq!(desk.incident_count(), 1);
        desk.expire(secs(90_000), secs(90_000), &mut out);
        assert_eq!(desk.incident_count(), 0);
        out
    };
    assert_ne!(name(&again(&[])), name(&written));
    assert_eq!(name(&again(&written)), name(&written));
}

#[test]
fn what_is_only_informational_joins_nothing() {
    let mut findings = intrusion();
    for finding in &mut findings {
        finding.rule = Arc::new(RuleCard { severity: Severity::Informational, ..(*finding.rule).clone() });
    }
    assert_eq!(incidents(&findings), []);
}
