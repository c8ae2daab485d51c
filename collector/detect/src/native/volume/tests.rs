//! What ND-12 tells and what it leaves alone.

use spanwatch_common::flow::{FlowRecord, protocol};

use crate::tests::{at, talk};
use crate::{Detection, Finding, Mode, RuleFile};

const BIN: f64 = 600.0;
const BINS: usize = 144;
const MB: u64 = 1_000_000;

fn rules() -> RuleFile {
    let mut rules = RuleFile::default();
    rules.keep_only(&["ND-12".to_owned()]).expect("a rule");
    rules
}

/// Megabytes of file sharing in the bin `bin` from Saturday, 10:00 on: from 8 to 18 o'clock 500 on weekdays, otherwise 50; with noise.
fn office(bin: usize) -> u64 {
    let (day, hour) = ((bin + 60) / BINS % 7, (bin + 60) % BINS / 6);
    let noise = (bin * 7_919) % 11;
    if (2..7).contains(&day) && (8..18).contains(&hour) { 480 + 4 * noise as u64 } else { 48 + noise as u64 / 2 }
}

/// The traffic of so many bins, where `megabytes` says how much of it there is; none where it says none.
fn traffic(bins: usize, megabytes: impl Fn(usize) -> Option<u64>) -> Vec<FlowRecord> {
    let record = |bin: usize| {
        let share = megabytes(bin)?;
        Some(talk("10.0.0.7", "10.0.0.2", protocol::TCP, 445, bin as f64 * BIN + 60.0, share * MB))
    };
    (0..bins).filter_map(record).collect()
}

fn run(records: &[FlowRecord]) -> Vec<Finding> {
    let mut detection = Detection::new(&rules(), Mode::Replay);
    records.iter().for_each(|record| detection.observe("tap", record));
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    findings
}

fn subjects(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| finding.subject.to_string()).collect()
}

/// The bin at `hour` o'clock of the day `day` after that Saturday.
const fn bin_of(day: usize, hour: usize) -> usize {
    day * BINS + hour * 6 - 60
}

#[test]
fn ten_times_as_much_by_night_is_told_with_what_is_usual_and_a_third_more_is_not() {
    let night = bin_of(16, 3);
    let surge = |megabytes: u64, bins: usize| {
        traffic(night + 20, move |bin| Some(if (night..night + bins).contains(&bin) { megabytes } else { office(bin) }))
    };
    assert_eq!(subjects(&run(&surge(66, 3))), Vec::<String>::new());
    assert_eq!(subjects(&run(&surge(500, 1))), Vec::<String>::new(), "one bin is not enough");
    let findings = run(&surge(500, 2));
    // The same traffic in all, inside, and over the service is one thing.
    assert_eq!(subjects(&findings), ["(octets) at tap"]);
    let finding = &findings[0];
    assert_eq!(finding.window.start, at(night as f64 * BIN));
    assert!(finding.sentence.starts_with("At tap, there were 500.0 MB in the 10 min from 03:10:00 UTC, against "));
    let expected = finding.evidence.baseline.expect("learnt");
    assert!((expected - 50e6).abs() < 5e6, "{expected}");
    let said = "usual for this hour of the week; 2 times in a row too many; at the same time inside, over TCP/445";
    assert!(finding.sentence.ends_with(said), "{}", finding.sentence);
}

#[test]
fn a_service_that_stops_is_told_and_a_holiday_a_weekend_and_a_blind_sensor_are_not() {
    let noon = bin_of(17, 12);
    let other = |bins: usize| {
        (0..bins).map(|bin| talk("10.0.0.7", "10.0.0.3", protocol::TCP, 22, bin as f64 * BIN + 90.0, MB)).collect::<Vec<_>>()
    };
    let mut stops = traffic(noon, |bin| Some(office(bin)));
    stops.extend(other(noon + 6));
    let found = subjects(&run(&stops));
    assert!(found.contains(&"TCP/445 (octets) at tap".to_owned()), "{found:?}");
    let findings = run(&traffic(bin_of(22, 0), |bin| {
        let holiday = bin / BINS == (bin_of(17, 12)) / BINS;
        Some(if holiday { 50 } else { office(bin) })
    }));
    assert_eq!(subjects(&findings), Vec::<String>::new(), "holiday, and all weekends");
    let blind = run(&traffic(noon + 100, |bin| Some(office(bin)).filter(|_| !(noon..noon + 30).contains(&bin))));
    assert_eq!(subjects(&blind), Vec::<String>::new(), "a sensor that is down sees no drop");
}

#[test]
fn before_three_days_it_is_silent_and_a_patch_day_is_told_once() {
    let early = run(&traffic(3 * BINS, |bin| Some(if bin > 2 * BINS { 20 * office(bin) } else { office(bin) })));
    assert_eq!(subjects(&early), Vec::<String>::new());
    // Four weeks apart, at three in the morning.
    let patch = |bin: usize| [bin_of(17, 3), bin_of(45, 3)].iter().any(|&start| (start..start + 6).contains(&bin));
    let days: Vec<i64> = run(&traffic(bin_of(50, 0), |bin| Some(if patch(bin) { 900 } else { office(bin) })))
        .iter()
        .map(|finding| finding.window.start.since(at(-36_000.0)).as_secs() as i64 / 86_400)
        .collect();
    assert!(!days.is_empty() && days.iter().all(|&day| day == 17), "{days:?}");
}

#[test]
fn killed_and_restored_midway_it_tells_the_same() {
    let surge = bin_of(9, 3);
    let records = traffic(surge + 12, |bin| Some(if bin >= surge { 700 } else { office(bin) }));
    let run = |kill_at: Option<usize>| -> Vec<Finding> {
        let mut detection = Detection::new(&rules(), Mode::Stream);
        let mut findings = Vec::new();
        for (i, record) in records.iter().enumerate() {
            if kill_at == Some(i) {
                let state = detection.snapshot();
                detection = Detection::new(&rules(), Mode::Stream);
                assert!(detection.restore(&state).expect("our own").is_empty());
            }
            detection.poll(record.start[0], &mut findings);
            detection.observe("tap", record);
        }
        detection.finish(&mut findings);
        findings
    };
    let whole = run(None);
    assert!(whole.len() >= 2, "{}", whole.len());
    assert_eq!(run(Some(surge + 1)), whole);
}
