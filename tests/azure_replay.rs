//! The same rows give the same findings: twice, in any order, killed and restored; and limits hold what they promise.

#[path = "support/azure/mod.rs"]
mod azure;

use std::path::Path;

use azure::{Dice, Traffic, render};
use spanwatch_azure::{ErrorKind, Options, Reader};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::rules::CATALOGUE;
use spanwatch_detect::{Detection, Finding, Mode, RuleFile, Variant};

const DAYS: i64 = 15;

/// The rows of generated files, in the order of the files.
fn rows(tuples: usize) -> Vec<FlowRecord> {
    let mut records = Vec::new();
    render(Traffic::new(7, DAYS, tuples).tuples, 7, |file| {
        let mut reader = Reader::new(Options::default());
        reader.push(file.text.as_bytes(), |row| records.push(row.to_record())).expect("a good file");
        reader.finish(|row| records.push(row.to_record())).expect("a good file");
    });
    records
}

fn every_form() -> RuleFile {
    let mut rules = RuleFile::shipped().expect("the rules as shipped");
    rules.set_variants(&[Variant::Exact, Variant::Fixed]);
    rules
}

/// As text, in the order in which a replay prints.
fn told(mut findings: Vec<Finding>) -> Vec<String> {
    findings.sort_by(Finding::order);
    let line = |finding: &Finding| {
        let Finding { rule, stage, subject, window, first, last, evidence, sentence, advice, score, confidence } = finding;
        format!(
            "{} {} {stage:?} {subject} {window:?} {first} {last} {evidence:?} {sentence} {advice} {score} {confidence}",
            rule.id, rule.variant
        )
    };
    findings.iter().map(line).collect()
}

fn replay<'r>(rules: &RuleFile, records: impl IntoIterator<Item = &'r FlowRecord>) -> Vec<String> {
    let mut detection = Detection::new(rules, Mode::Replay);
    let mut findings = Vec::new();
    for (number, record) in records.into_iter().enumerate() {
        detection.observe("", record);
        if number % 4_096 == 0 {
            detection.drain(&mut findings);
        }
    }
    detection.finish(&mut findings);
    for state in detection.states() {
        assert_eq!((state.late, state.evicted, state.refused), (0, 0, 0), "no limit was in the way: {state:?}");
    }
    told(findings)
}

#[track_caller]
fn assert_same(what: &str, expected: &[String], found: &[String]) {
    let first = expected.iter().zip(found).find(|(a, b)| a != b);
    assert!(
        first.is_none() && expected.len() == found.len(),
        "{what}: {} and {} findings; {first:#?}",
        expected.len(),
        found.len()
    );
}

#[test]
fn a_replay_tells_the_same_twice_shuffled_and_killed_midway() {
    let rules = every_form();
    let mut records = rows(60_000);
    let expected = replay(&rules, &records);
    let mut found: Vec<&str> = expected.iter().filter_map(|line| line.get(..5)).collect();
    found.sort_unstable();
    found.dedup();
    assert!(found.len() >= 20, "the rows give nearly every rule something to find: {found:?}");

    assert_same("once more", &expected, &replay(&rules, &records));

    // The rules that want order see nothing of a replay before its rows are sorted: such a replay is run again, and only streams are cut.
    let all = rules;
    let mut rules = all.clone();
    let public: Vec<String> = CATALOGUE.iter().map(|entry| entry.id.to_owned()).filter(|id| id.starts_with("AZ-")).collect();
    rules.keep_only(&public).expect("rules");
    let public = replay(&rules, &records);
    let cuts = [1, records.len() / 3, records.len() / 2, records.len() - 1];
    let mut findings = Vec::new();
    let mut detection = Detection::new(&rules, Mode::Replay);
    for (number, record) in records.iter().enumerate() {
        if cuts.contains(&number) {
            // Killed here: what was handed over is with the alerts, the rest in the snapshot.
            detection.drain(&mut findings);
            let saved = detection.snapshot();
            detection = Detection::new(&rules, Mode::Replay);
            assert_eq!(detection.restore(&saved).expect("what was just saved"), [""; 0], "every detector goes on");
        }
        detection.observe("", record);
    }
    detection.finish(&mut findings);
    assert_same("killed and restored", &public, &told(findings));

    // Files of many interfaces come in any order; within the lateness of ten minutes, so do rows.
    let mut dice = Dice::new(11);
    records.sort_by_cached_key(|record| record.first().as_nanos() + dice.below(600_000_000_000) as i64);
    assert_same("shuffled within the lateness", &expected, &replay(&all, &records));
}

#[test]
fn every_detector_keeps_to_its_keys_and_counts_what_it_lets_go() {
    const KEYS_MAX: usize = 16;
    // A replay holds all windows at once and so many times the keys of a stream.
    const REPLAY_ROOM: usize = 16;
    let mut text = String::new();
    for entry in CATALOGUE {
        text += &format!("[{}]\nkeys_max = {KEYS_MAX}\n", entry.id);
    }
    let mut rules = RuleFile::parse(Path::new("small.toml"), &text).expect("keys");
    rules.set_variants(&[Variant::Exact, Variant::Fixed]);
    let mut records = rows(60_000);
    records.sort_by_key(FlowRecord::first);
    for mode in [Mode::Stream, Mode::Replay] {
        let mut detection = Detection::new(&rules, mode);
        let mut findings = Vec::new();
        let limit = if mode == Mode::Replay { KEYS_MAX * REPLAY_ROOM } else { KEYS_MAX };
        let mut most = 0;
        let (mut snapshot_max, mut findings_max) = (0, 0);
        for (number, record) in records.iter().enumerate() {
            detection.observe("", record);
            if number % 64 == 0 && mode == Mode::Stream {
                detection.poll(record.first(), &mut findings);
            } else if number % 64 == 0 {
                detection.drain(&mut findings);
            }
            findings_max = findings_max.max(findings.len());
            findings.clear();
            if number % 4_096 == 0 {
                snapshot_max = snapshot_max.max(detection.snapshot().len());
            }
            for state in detection.states() {
                most = most.max(state.keys);
                assert!(state.keys <= limit, "{mode:?}, after {number} rows: {state:?}");
            }
        }
        detection.finish(&mut findings);
        let lossless: Vec<String> = detection
            .states()
            .filter(|state| state.evicted + state.refused + state.late == 0)
            .map(|state| format!("{} {}", state.rule, state.variant))
            .collect();
        println!("{mode:?}: at most {most} keys; state of at most {snapshot_max} bytes; nothing lost: {lossless:?}");
        // In these rows a key has few distinct values; with many it would take up to 17 KiB.
        let detectors = detection.states().count();
        assert!(snapshot_max < detectors * limit * 1_024, "{snapshot_max} bytes of {detectors} detectors");
    }
}

#[test]
fn a_reader_keeps_to_its_record_and_its_duplicates() {
    let tuple = |n: u32| format!("\"1793491200000,10.0.0.1,10.0.0.2,{n},443,6,O,B,NX,0,0,0,0\"");
    let record = |tuples: &[String]| {
        format!(
            r#"{{"time":"2026-11-01T00:01:00.0000000Z","category":"FlowLogFlowEvent","flowRecords":{{"flows":[{{"aclID":"a","flowGroups":[{{"rule":"r","flowTuples":[{}]}}]}}]}}}}"#,
            tuples.join(",")
        )
    };
    // A record longer than allowed is an error with its place; what stood before it was told.
    let small: Vec<String> = (0..10).map(tuple).collect();
    let large: Vec<String> = (0..10_000).map(|n| tuple(n + 10)).collect();
    let text = format!("{{\"records\":[{},{}", record(&small), record(&large));
    let mut reader = Reader::new(Options { record_len_max: 100_000, ..Options::default() });
    let mut told = 0;
    let error = reader.push(text.as_bytes(), |_| told += 1).expect_err("a record of 600 KB");
    assert_eq!(told, 10);
    assert!(matches!(error.kind, ErrorKind::RecordTooLong { .. }), "{error}");

    // Duplicates are told apart as far back as promised; further back they pass, and are rows.
    let many: Vec<String> = (0..5_000).chain(0..5_000).map(tuple).collect();
    let count = |duplicates_remembered: usize| {
        let mut reader = Reader::new(Options { duplicates_remembered, ..Options::default() });
        reader.push(record(&many).as_bytes(), |_| ()).expect("a good record");
        reader.finish(|_| ()).expect("a good record").counts.duplicates
    };
    assert_eq!(count(5_000), 5_000);
    assert_eq!(count(100), 0);
}

#[test]
fn observers_beyond_the_limit_share_a_name() {
    let mut rules = every_form();
    rules.keep_only(&["AZ-15".to_owned()]).expect("a rule");
    let mut detection = Detection::new(&rules, Mode::Stream);
    let mut findings = Vec::new();
    let record = FlowRecord {
        source: "10.0.0.1".parse().expect("an address"),
        destination: "203.0.113.1".parse().expect("an address"),
        protocol: 6,
        octets: [1, 0],
        packets: [1, 0],
        start: [Timestamp::from_secs(azure::EPOCH), Timestamp::NONE],
        end: [Timestamp::from_secs(azure::EPOCH), Timestamp::NONE],
        ..FlowRecord::default()
    };
    for n in 0..10_000 {
        detection.observe(&format!("sensor{n}"), &record);
    }
    detection.poll(Timestamp::from_secs(azure::EPOCH), &mut findings);
    let keys = detection.states().map(|state| state.keys).max();
    assert!(keys <= Some(4_097), "4,096 observers and the others, not {keys:?}");
}
