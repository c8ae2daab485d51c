//! Mutes, budget and the state of the sensors.

use std::time::Duration;

use spanwatch_detect::RuleFile;
use spanwatch_detect::rules::common::Weakness;

use super::*;
use crate::gate::{self, Condition, Conditions};
use crate::mute::{self, Mute, MuteFile, Mutes, Target};
use crate::{Class, Desk, Muted};

fn new_desk(per_hour: u64) -> Desk {
    Desk::new(&RuleFile::default(), 1_000, per_hour)
}

/// What the desk says to `findings`, and to the time `until` of both clocks.
fn told(desk: &mut Desk, findings: &[Finding], until: i64) -> Vec<Alert> {
    let mut out = Vec::new();
    findings.iter().for_each(|finding| desk.take(finding, finding.last, &mut out));
    desk.expire(secs(until), secs(until), &mut out);
    out
}

fn muted(until: i64) -> Muted {
    Muted { owner: "Kim".to_owned(), until: secs(until), reason: "our own scanner".to_owned() }
}

fn about_the_scanner() -> Target {
    Target::Subject { rule: "az-01".to_owned(), subject: "10.0.0.8/30".to_owned() }
}

#[test]
fn a_mute_without_owner_reason_or_end_is_refused() {
    let refused = |terms: Muted| Mute::new(about_the_scanner(), terms, secs(0)).unwrap_err();
    assert!(refused(Muted { owner: " ".to_owned(), ..muted(60) }).starts_with("a mute needs an owner: --owner NAME"));
    assert!(refused(Muted { reason: String::new(), ..muted(60) }).starts_with("a mute needs a reason: --reason TEXT"));
    assert!(refused(muted(0)).starts_with("a mute needs an end that is still to come"));
    assert!(refused(muted(400 * 86_400)).starts_with("a mute lasts a year at most"));
    assert!(Mute::new(about_the_scanner(), muted(60), secs(0)).is_ok());
}

#[test]
fn a_muted_alert_is_recorded_told_nobody_and_comes_back_when_the_mute_ends() {
    let mut desk = new_desk(50);
    let mut mutes = Mutes::default();
    mutes.add(Mute::new(about_the_scanner(), muted(300), secs(0)).unwrap(), secs(0)).unwrap();
    desk.set_mutes(mutes, secs(0), &mut Vec::new());
    let minutes: Vec<Finding> = (0..6).map(|minute| finding(minute * 60, Stage::Closed, 9)).collect();
    let lines = told(&mut desk, &minutes[..4], 230);
    assert_eq!(outline(&lines), ["AZ-01 open quietly"]);
    assert_eq!(lines[0].muted, Some(muted(300)));
    assert_eq!(outline(&told(&mut desk, &minutes[4..], 299)), [""; 0]);
    assert_eq!(outline(&told(&mut desk, &[], 300)), ["AZ-01 open"], "nobody heard of it before");
    assert_eq!(outline(&told(&mut desk, &[], 480)), ["AZ-01 closed"]);
}

#[test]
fn an_alert_that_is_muted_while_open_is_closed_aloud_so_that_nothing_stays_open_elsewhere() {
    let mut desk = new_desk(50);
    assert_eq!(outline(&told(&mut desk, &[finding(0, Stage::Closed, 9)], 60)), ["AZ-01 open"]);
    let id = desk.alerts().next().unwrap().id.clone();
    let mut mutes = Mutes::default();
    mutes.add(Mute::new(Target::Alert { id }, muted(3_600), secs(60)).unwrap(), secs(60)).unwrap();
    let mut out = Vec::new();
    desk.set_mutes(mutes, secs(60), &mut out);
    assert_eq!(outline(&out), ["AZ-01 updated quietly"], "the file says who muted it");
    assert_eq!(outline(&told(&mut desk, &[finding(60, Stage::Closed, 900)], 120)), ["AZ-01 updated quietly"]);
    assert_eq!(outline(&told(&mut desk, &[], 240)), ["AZ-01 closed"]);
    assert_eq!(outline(&told(&mut desk, &[finding(300, Stage::Closed, 9)], 600)), ["AZ-01 open quietly", "AZ-01 closed quietly"]);
}

#[test]
fn mutes_in_the_file_are_seen_once_each_time_they_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = mute::path_beside(&directory.path().join("alerts.ndjson"));
    let mut watched = MuteFile::new(path.clone());
    assert_eq!(watched.changed().unwrap(), Some(Mutes::default()), "no file is no mutes");
    assert_eq!(watched.changed().unwrap(), None);
    let set = |mutes: &mut Mutes| mutes.add(Mute::new(about_the_scanner(), muted(60), secs(0)).unwrap(), secs(0));
    mute::change(&path, |mutes| set(mutes).map_err(std::io::Error::other)).unwrap();
    let alert = told(&mut new_desk(50), &[finding(0, Stage::Closed, 9)], 0).remove(0);
    let seen = watched.changed().unwrap().unwrap();
    assert_eq!((seen.of(&alert, secs(59)), seen.of(&alert, secs(60))), (Some(&muted(60)), None));
    mute::change(&path, |mutes| -> std::io::Result<()> {
        assert!(mutes.remove(&about_the_scanner(), secs(30)) && !mutes.remove(&about_the_scanner(), secs(30)));
        Ok(())
    })
    .unwrap();
    assert_eq!(watched.changed().unwrap().unwrap().of(&alert, secs(31)), None);
    std::fs::write(&path, "[{]").unwrap();
    assert!(watched.changed().is_err());
}

/// A scan by each of `hosts` hosts in the same minute.
fn scans(hosts: u8) -> Vec<Finding> {
    let by = |n: u8| Finding { subject: Subject::host(Address::from_v4([10, 0, 7, n])), ..finding(0, Stage::Closed, 9) };
    (0..hosts).map(by).collect()
}

#[test]
fn beyond_its_budget_a_rule_is_recorded_and_one_storm_speaks_for_the_rest() {
    let mut desk = new_desk(5);
    assert_eq!(outline(&told(&mut desk, &scans(5), 60)), ["AZ-01 open"; 5], "just within it");
    let lines = told(&mut desk, &scans(20)[5..], 60);
    let quiet: Vec<&Alert> = lines.iter().filter(|line| line.is_quiet()).collect();
    let storms: Vec<&Alert> = lines.iter().filter(|line| line.class == Class::Storm).collect();
    assert_eq!((quiet.len(), lines.len()), (15, 15 + storms.len()), "nothing is lost");
    assert!(quiet.iter().all(|line| line.storm.as_ref() == Some(&storms[0].id)));
    // The sixth opens it; √10 times six is 18.97.
    assert_eq!(storms.iter().map(|storm| storm.evidence.value).collect::<Vec<_>>(), [6.0, 19.0]);
    let over = told(&mut desk, &[], 7_200);
    let last = over.iter().find(|line| line.class == Class::Storm).unwrap();
    assert_eq!(
        last.sentence,
        "AZ-01 opened 20 alerts in the hour from 10:00:00 UTC, 15 beyond its budget of 5; those are in the alert file and were not told \
         one by one, some of them about 10.0.7.5, 10.0.7.6, 10.0.7.7."
    );
    assert_eq!((last.state.to_string().as_str(), last.members.len()), ("closed", 15));
    assert_eq!(outline(&over).iter().filter(|line| *line == "AZ-01 closed").count(), 6, "five alerts and the storm");
    let next_hour = Finding { subject: Subject::host(host("10.0.7.99")), ..finding(7_200, Stage::Closed, 9) };
    assert_eq!(outline(&told(&mut desk, &[next_hour], 7_260)), ["AZ-01 open"], "every hour has a budget of its own");
}

/// What is left of a finding with 20 times its threshold, of which `failures` of 1,000 attempts speak, if its sensor was in `weakness` for
/// `minutes` minutes of its hour.
fn judged(weakness: Weakness, share: f64, minutes: i64, failures: Option<u64>) -> gate::Judgement {
    let mut conditions = Conditions::default();
    conditions.note(Condition {
        sensor: "plant1".to_owned(),
        interface: "eno2".to_owned(),
        weakness,
        share,
        from: secs(0),
        until: secs(minutes * 60),
        says: "eno2 at plant1: not well.".to_owned(),
    });
    let finding = finding(0, Stage::Closed, 9);
    let evidence = Evidence { observers: vec!["plant1".to_owned()], attempts: Some(1_000), failures, ..finding.evidence.clone() };
    let window = Window { start: secs(0), end: secs(3_600) };
    let finding = Finding { evidence, window, last: secs(3_600), score: 20.0, confidence: 0.8, ..finding };
    gate::judge(&finding, &[Weakness::Loss, Weakness::OneSided], &conditions)
}

#[test]
fn a_weak_sensor_takes_from_confidence_and_severity_and_the_alert_says_why() {
    let lossy = judged(Weakness::Loss, 0.009, 60, Some(10));
    assert_eq!((lossy.confidence, lossy.severity), (0.64, Severity::Medium));
    assert_eq!(lossy.doubts, ["eno2 at plant1: not well."]);
    // 20 of 1,000 may have been answered unseen: of 21 failures one is left, a twentieth of what was 20 times the threshold, or 0.95.
    let grave = judged(Weakness::Loss, 0.02, 60, Some(21));
    assert_eq!((grave.confidence, grave.severity), (0.4, Severity::Informational));
    assert_eq!(judged(Weakness::Loss, 0.02, 60, Some(22)).severity, Severity::Medium, "1.8 times the threshold is left");
    assert_eq!(
        judged(Weakness::Loss, 0.5, 60, None).severity,
        Severity::Medium,
        "who counts no failures counts too little at most"
    );
    assert_eq!(judged(Weakness::OneSided, 0.3, 60, Some(999)).severity, Severity::Informational, "all may have been answered");
    assert_eq!(judged(Weakness::Loss, 0.5, 2, Some(9)).doubts, [""; 0], "two minutes of an hour are less than a twentieth");
    assert_eq!(judged(Weakness::Loss, 0.5, 3, Some(9)).doubts.len(), 1);
    assert_eq!(judged(Weakness::Blind, 1.0, 60, Some(9)).doubts, [""; 0], "not what this rule suffers from");
}

#[test]
fn a_condition_that_goes_on_is_one_and_ends_when_it_is_refuted() {
    let lossy = |from: i64, share: f64| Condition {
        sensor: "plant1".to_owned(),
        interface: "eno2".to_owned(),
        weakness: Weakness::Loss,
        share,
        from: secs(from),
        until: secs(from + 180),
        says: format!("{share}"),
    };
    let mut conditions = Conditions::default();
    [(0, 0.01), (60, 0.05), (120, 0.02)].into_iter().for_each(|(from, share)| conditions.note(lossy(from, share)));
    conditions.end("plant1", "eno2", Weakness::Loss, secs(240));
    conditions.note(lossy(600, 0.01));
    let held: Vec<(Timestamp, Timestamp, f64)> = conditions.all().map(|held| (held.from, held.until, held.share)).collect();
    assert_eq!(held, [(secs(0), secs(240), 0.05), (secs(600), secs(780), 0.01)]);
    conditions.forget(secs(240).plus(Duration::from_secs(90_001)));
    assert_eq!(conditions.all().count(), 1);
}

#[test]
fn a_desk_that_was_saved_and_taken_up_again_says_what_it_would_have_said() {
    let mut all = scans(12);
    all.push(other("ND-17", "T1110", "10.0.7.3", Some("10.0.7.200"), 120));
    all.push(other("ND-11", "T1041", "10.0.7.200", Some("203.0.113.9"), 600));
    all.extend((0..80).map(|minute| finding(660 + minute * 60, Stage::Closed, 9)));
    let run = |cut: Option<usize>| {
        let mut desk = new_desk(5);
        let mut out = Vec::new();
        for (n, finding) in all.iter().enumerate() {
            if cut == Some(n) {
                let snapshot = desk.snapshot().unwrap();
                desk = new_desk(5);
                desk.resume(&snapshot, []).unwrap();
            }
            desk.take(finding, finding.last, &mut out);
            desk.expire(finding.window.start, finding.last, &mut out);
        }
        desk.expire(secs(90_000), secs(90_000), &mut out);
        out
    };
    let undisturbed = run(None);
    assert!(
        undisturbed.iter().any(|line| line.class == Class::Incident) && undisturbed.iter().any(|line| line.class == Class::Storm)
    );
    for cut in 0..all.len() {
        assert_eq!(run(Some(cut)), undisturbed, "cut before finding {cut}");
    }
}

#[test]
fn a_public_rule_that_says_what_a_better_one_has_said_is_for_the_record() {
    let better = |at: i64, source: [u8; 4]| Finding {
        rule: Arc::new(RuleCard { id: "ND-02", ..(*finding(at, Stage::Crossed, 25).rule).clone() }),
        subject: Subject::host(Address::from_v4(source)),
        ..finding(at, Stage::Crossed, 25)
    };
    let scanner = [10, 0, 0, 9];
    let mut desk = new_desk(50);
    let public = Finding { subject: Subject::host(Address::from_v4(scanner)), ..finding(0, Stage::Crossed, 9) };
    let lines = told(&mut desk, &[better(0, scanner), public.clone()], 1);
    assert_eq!(outline(&lines), ["ND-02 open", "AZ-01 open quietly"]);
    assert_eq!(lines[1].spoken_for.as_ref(), Some(&lines[0].id));
    // Of another source, and before the better one, it speaks for itself.
    let mut desk = new_desk(50);
    let lines = told(&mut desk, &[better(0, [10, 0, 0, 8]), public.clone(), better(0, scanner)], 1);
    assert_eq!(outline(&lines), ["ND-02 open", "AZ-01 open", "ND-02 open"]);
    // Found in one moment, the better one has the word.
    let mut desk = new_desk(50);
    let (mut both, mut lines) = (vec![public.clone(), better(0, scanner)], Vec::new());
    desk.take_all(&mut both, secs(1), &mut lines);
    assert_eq!(outline(&lines), ["ND-02 open", "AZ-01 open quietly"]);
    // When the better one is over, it speaks again.
    let later = Finding { subject: public.subject.clone(), ..finding(600, Stage::Crossed, 9) };
    assert!(outline(&told(&mut desk, &[], 500)).contains(&"ND-02 closed".to_owned()));
    assert_eq!(outline(&told(&mut desk, &[later], 601)), ["AZ-01 open"]);
}
