//! What ND-11 tells and what it leaves alone.

use spanwatch_common::flow::{FlowRecord, protocol};
use spanwatch_common::net::Prefix;

use crate::roles::Role;
use crate::tests::{at, stream, talk};
use crate::{Detection, Finding, Mode, Roles, RuleFile, Stage};

const HOUR: f64 = 3_600.0;
const DAY: f64 = 24.0 * HOUR;
const MB: u64 = 1_000_000;

fn rules() -> RuleFile {
    let mut rules = RuleFile::default();
    rules.keep_only(&["ND-11".to_owned()]).expect("a rule");
    rules
}

/// `out` octets from `source` to `destination`, `back` octets back.
fn transfer(source: &str, destination: &str, secs: f64, out: u64, back: u64) -> FlowRecord {
    FlowRecord { octets: [out, back], ..talk(source, destination, protocol::TCP, 443, secs, 0) }
}

/// Two hosts that send 2 to 4 MB each hour, for so many days from 10:00 on a Saturday: nobody is alone on the network, and it is watched.
fn ordinary(days: f64) -> Vec<FlowRecord> {
    let hours = (days * 24.0) as usize;
    let hour = |hour: usize| {
        let secs = hour as f64 * HOUR + 60.0;
        let out = 2 * MB + (hour as u64 * 7_919) % 2 * MB;
        [transfer("10.0.0.7", "198.51.100.1", secs, out, 20 * MB), transfer("10.0.0.8", "198.51.100.1", secs, out, 30 * MB)]
    };
    (0..hours).flat_map(hour).collect()
}

fn run(records: &[FlowRecord], roles: Roles) -> Vec<Finding> {
    let mut detection = Detection::new(&rules(), Mode::Replay).with_roles(roles);
    records.iter().for_each(|record| detection.observe("tap", record));
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    findings
}

fn told(records: &[FlowRecord]) -> Vec<String> {
    let line = |finding: &Finding| format!("{:?} {}", finding.stage, finding.subject);
    run(records, Roles::default()).iter().map(line).collect()
}

fn with(mut records: Vec<FlowRecord>, more: impl IntoIterator<Item = FlowRecord>) -> Vec<FlowRecord> {
    records.extend(more);
    records
}

#[test]
fn an_hour_above_the_bar_is_told_and_one_below_is_not() {
    // 2 and 3 MB by turns: 1 MB of spread, so octets_min is the bar. Of an hour and its neighbours the one with most is usual.
    let hour = |out: u64| with(ordinary(10.0), [transfer("10.0.0.7", "203.0.113.9", 9.0 * DAY + 300.0, out, 1_000)]);
    // The ordinary part of that hour, 2 or 3 MB, counts as well; the new host gets most.
    assert_eq!(told(&hour(6 * MB)), Vec::<String>::new());
    let findings = run(&hour(20 * MB), Roles::default());
    let subjects: Vec<String> = findings.iter().map(|finding| finding.subject.to_string()).collect();
    assert_eq!(subjects, ["10.0.0.7 (hour)"]);
    let finding = &findings[0];
    assert_eq!((finding.stage, finding.window.start), (Stage::Crossed, at(9.0 * DAY)));
    assert!(
        finding.sentence.contains("to 203.0.113.9; usual for this hour is 3.0 MB (median of 7 days)"),
        "{}",
        finding.sentence
    );
    assert_eq!(finding.evidence.threshold, 1e7);
    assert!((finding.evidence.baseline.unwrap() - 3e6).abs() < 3e4);
    assert_eq!(finding.evidence.series.len(), 25);
    assert!(finding.evidence.rows.iter().any(|row| row.octets == [20 * MB, 1_000]));
}

#[test]
fn it_is_told_while_the_hour_runs_and_again_when_it_has_doubled() {
    let mut detection = Detection::new(&rules(), Mode::Stream);
    let mut findings = Vec::new();
    for record in ordinary(5.0) {
        detection.poll(record.start[0], &mut findings);
        detection.observe("tap", &record);
    }
    assert!(findings.is_empty(), "{}", findings[0].sentence);
    let mut stages = Vec::new();
    for minute in 0..10 {
        let record = transfer("10.0.0.7", "203.0.113.9", 5.0 * DAY + f64::from(minute) * 60.0, 4 * MB, 1_000);
        detection.poll(record.start[0], &mut findings);
        detection.observe("tap", &record);
        detection.poll(record.start[0], &mut findings);
        let hour = |finding: &Finding| finding.subject.facet.as_deref() == Some("hour");
        stages.extend(findings.drain(..).filter(hour).map(|finding| (minute, finding.stage, finding.evidence.value / 1e6)));
    }
    // 4 MB a minute: over 10 MB with the third, doubled with the sixth; 48 MB would be the next.
    assert_eq!(stages, [(2, Stage::Crossed, 12.0), (5, Stage::Grown, 24.0)]);
}

#[test]
fn a_weekly_backup_is_told_twice_and_from_the_third_week_on_not() {
    let weeks = (0..5).map(|week| transfer("10.0.0.7", "203.0.113.9", (7.0 * f64::from(week) + 4.5) * DAY, 800 * MB, MB));
    let mut windows: Vec<i64> = run(&with(ordinary(35.0), weeks), Roles::default())
        .iter()
        .map(|finding| (finding.window.start.as_nanos() - at(0.0).as_nanos()).div_euclid(7 * 86_400_000_000_000))
        .collect();
    windows.dedup();
    assert_eq!(windows, [0, 1]);
}

#[test]
fn a_nightly_backup_a_video_call_a_new_laptop_and_a_backup_server_stay_silent() {
    let silent = |what: &str, more: Vec<FlowRecord>, roles: Roles| {
        let findings = run(&with(ordinary(12.0), more), roles);
        assert!(findings.is_empty(), "{what}: {}", findings[0].sentence);
    };
    // Its first nights fall into those in which nothing is usual, and it goes where others send too.
    let sync = |host: usize| format!("10.0.1.{host}");
    let common: Vec<FlowRecord> = (1..=4).map(|host| transfer(&sync(host), "198.51.100.200", 60.0, MB, MB)).collect();
    let nightly = (0..12).map(|night| transfer("10.0.0.7", "198.51.100.200", (f64::from(night) + 0.7) * DAY, 60 * MB, 1_000));
    silent("nightly backup", with(common.clone(), nightly), Roles::default());
    let call: Vec<FlowRecord> = (0..60)
        .map(|minute| transfer("10.0.0.8", "203.0.113.50", 10.0 * DAY + f64::from(minute) * 60.0, 12 * MB, 15 * MB))
        .collect();
    silent("video call", call, Roles::default());
    let laptop = (0..50).map(|minute| transfer("10.0.0.66", "198.51.100.200", 8.0 * DAY + f64::from(minute) * 60.0, 90 * MB, MB));
    silent("first synchronisation of a new laptop", with(common, laptop), Roles::default());
    let prefix: Prefix = "10.0.0.9/32".parse().expect("a prefix");
    let backup = vec![transfer("10.0.0.9", "203.0.113.77", 9.0 * DAY, 50_000 * MB, MB)];
    silent("backup server", backup, Roles::default().with(prefix, Role::Backup, at(99.0 * DAY)));
}

#[test]
fn an_upload_to_a_new_network_and_many_small_hours_and_a_tunnel_are_told() {
    // 6.5 MB an hour, with 2 or 3 MB of ordinary traffic: below the bar of every hour.
    let drops = |hours: usize| {
        (0..hours).map(|hour| transfer("10.0.0.8", "203.0.113.9", 9.0 * DAY + hour as f64 * HOUR + 300.0, 6_500_000, 10_000))
    };
    assert_eq!(told(&with(ordinary(12.0), drops(2))), Vec::<String>::new());
    let found = told(&with(ordinary(12.0), drops(10)));
    assert!(found.contains(&"Crossed 10.0.0.8 > 203.0.113.9 (upload)".to_owned()), "{found:?}");
    assert!(found.contains(&"Crossed 10.0.0.8 (day)".to_owned()), "{found:?}");

    let questions = |octets: u64| {
        let question = move |minute| FlowRecord {
            octets: [octets / 100, octets / 100],
            ..talk("10.0.0.8", "203.0.113.53", protocol::UDP, 53, 3.0 * DAY + f64::from(minute) * 60.0, 0)
        };
        with(ordinary(4.0), (0..100).map(question))
    };
    assert_eq!(told(&questions(4_900_000)), Vec::<String>::new());
    assert_eq!(told(&questions(5_000_000)), ["Crossed 10.0.0.8 > 203.0.113.53 UDP/53 (tunnel)"]);
}

#[test]
fn in_the_first_week_uploads_need_more_and_on_the_first_day_nothing_is_told() {
    let told_at = |hours: f64, out: u64| {
        run(&with(ordinary(6.0), [transfer("10.0.0.7", "203.0.113.9", hours * HOUR + 300.0, out, 1_000)]), Roles::default())
    };
    assert!(told_at(20.0, 5_000 * MB).is_empty(), "the first day");
    assert!(told_at(30.0, 490 * MB).is_empty());
    let findings = told_at(30.0, 500 * MB);
    assert_eq!(findings.len(), 1);
    let finding = &findings[0];
    assert!(finding.confidence <= 0.3 && finding.sentence.ends_with("so what is new is not known"), "{}", finding.sentence);
    let hour = |finding: &Finding| finding.subject.to_string() == "10.0.0.7 (hour)";
    assert!(told_at(100.0, 40 * MB).iter().any(hour), "three days are enough for an hour");
}

#[test]
fn the_full_backup_after_a_week_of_small_ones_goes_where_it_always_goes() {
    let nightly = (0..12).map(|night| {
        let out = if night % 7 == 5 { 43_000 * MB } else { 7_700 * MB };
        transfer("10.0.0.40", "198.51.100.200", (f64::from(night) + 0.7) * DAY, out, 100 * MB)
    });
    assert_eq!(told(&with(ordinary(12.0), nightly)), Vec::<String>::new());
}

#[test]
fn killed_and_restored_midway_it_tells_the_same() {
    let mut records = with(
        ordinary(9.0),
        (0..30).map(|i| transfer("10.0.0.7", "203.0.113.9", 8.0 * DAY + f64::from(i) * 400.0, 5 * MB, 1_000)),
    );
    records.sort_by_key(|record| record.start[0]);
    let whole = stream(&rules(), &records, None);
    assert!(whole.len() >= 3, "{}", whole.len());
    assert_eq!(stream(&rules(), &records, Some(records.len() - 15)), whole);
}
