//! What the rules over series, baselines and first sights find, and what they leave alone.

use std::sync::Arc;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FlowRecord, FlowState, protocol};
use spanwatch_common::time::Timestamp;

use super::*;
use crate::rules::RuleFile;
use crate::tests::{at, host, knock, replay, rules, talk};
use crate::{Detection, Mode, Stage};

const TCP: u8 = protocol::TCP;

/// Seconds after the tests' ten o'clock of hour `hour` of day `day`, which may have fractions; day 0 is that of ten o'clock.
fn hour(day: i32, hour: f64) -> f64 {
    (f64::from(day) * 24.0 + hour - 10.0) * 3_600.0
}

/// `rule variant subject value`, rounded to three digits, of one rule in one form.
fn found(id: &str, variant: &str, more: &str, records: &[FlowRecord]) -> Vec<String> {
    let mut file = rules(&format!("[{id}]\nvariants = ['{variant}']\n{more}\n"));
    file.keep_only(&[id.to_owned()]).expect("a rule");
    let (findings, detection) = replay(&file, records);
    assert!(detection.states().all(|state| state.late + state.refused + state.evicted == 0));
    let name = |finding: &Finding| {
        let value = (finding.evidence.value * 1e3).round() / 1e3;
        format!("{} {} {value}", finding.window.start.to_string().get(5..13).unwrap_or_default(), finding.subject)
    };
    findings.iter().map(name).collect()
}

/// `count` flows of a day, each of 1,000 octets.
fn day(day: i32, count: usize) -> impl Iterator<Item = FlowRecord> {
    (0..count).map(move |i| talk("10.0.0.1", "10.0.0.2", TCP, 445, hour(day, 1.0 + i as f64 / 3_600.0), 1_000))
}

fn days(counts: &[usize]) -> Vec<FlowRecord> {
    counts.iter().zip(0..).flat_map(|(&count, number)| day(number, count)).collect()
}

#[test]
fn sums_do_not_depend_on_their_order_and_give_kqls_stdev() {
    let of = |values: &[u64]| mean_and_stdev(values.iter().copied());
    assert_eq!(of(&[2, 4, 4, 4, 5, 5, 7, 9]), Some((5.0, (32.0_f64 / 7.0).sqrt())));
    assert_eq!(of(&[2, 2, 2, 3, 4, 4, 4]), Some((3.0, 1.0)));
    assert_eq!([of(&[]), of(&[7])], [None; 2]);
    let (mean, stdev) = of(&[u64::MAX, u64::MAX - 1]).expect("two");
    assert!(mean > 1.8e19 && stdev < 1.0);
}

#[test]
fn a_steady_day_is_at_no_distance_and_a_spread_has_a_floor() {
    assert_eq!(robust_z(100.0, &[100.0; 7], 1.0), Some((0.0, 100.0)));
    assert_eq!(robust_z(125.0, &[100.0; 7], 1.0), Some((5.0, 100.0)), "a twentieth of the median is the least spread");
    assert_eq!(robust_z(4.0, &[0.0; 7], 1.0), Some((4.0, 0.0)));
    assert_eq!(robust_z(1.0, &[], 1.0), None);
}

// AZ-08, AZ-10. Scores of the exact form are those of an independent evaluation of detection.md §3.4 and §3.5.

#[test]
fn ten_times_the_steady_days_is_unusual_and_a_weekly_pattern_is_not() {
    let mut counts = vec![200; 13];
    counts.push(2_000);
    let facets = |value: &str| {
        let last = "12-04T00";
        vec![format!("{last} (all) {value}"), format!("{last} (dir Local) {value}"), format!("{last} (proto TCP) {value}")]
    };
    let exact = found("AZ-08", "exact", "", &days(&counts));
    assert_eq!(exact[exact.len() - 3..], facets("5.82"));
    assert_eq!(exact.len(), 6, "and on the first day, against days before the log began");
    assert_eq!(found("AZ-08", "fixed", "", &days(&counts)), facets("1000000"), "constant days have no spread");

    let week = [1_000, 1_020, 980, 1_010, 990, 100, 120];
    let five_weeks: Vec<usize> = (0..35).map(|i| week[i % 7] + i % 3).collect();
    assert_eq!(found("AZ-08", "fixed", "", &days(&five_weeks)), Vec::<String>::new());
    let exact = found("AZ-08", "exact", "", &days(&five_weeks));
    assert!(exact.iter().all(|finding| finding.starts_with("11-21")), "{exact:?}");
}

#[test]
fn the_score_is_truncated_before_it_is_compared() {
    // Alternating days of 100 and 120, then one of 289 (score 4.9913) or 290 (5.0032).
    let counts = |last: usize| -> Vec<usize> { (0..13).map(|i| 100 + 20 * (i % 2)).chain([last]).collect() };
    let last_day = |id: &str, counts: &[usize], more: &str| -> Vec<String> {
        let found = found(id, "exact", more, &days(counts));
        found.into_iter().filter(|finding| finding.starts_with("12-04T00")).collect()
    };
    assert_eq!(last_day("AZ-08", &counts(289), ""), Vec::<String>::new());
    assert_eq!(last_day("AZ-08", &counts(290), "")[0], "12-04T00 (all) 5.003");
    // AZ-10 wants more than 5 after truncation.
    assert_eq!(last_day("AZ-10", &counts(290), "ports = [445]"), Vec::<String>::new());
    assert_eq!(last_day("AZ-10", &counts(290), "ports = [445]\nstrength = 2.4"), ["12-04T00 TCP/445 (Local) 5.003"]);
    assert_eq!(last_day("AZ-10", &counts(290), "ports = [446]\nstrength = 2.4"), Vec::<String>::new());
}

#[test]
fn the_fixed_form_wants_half_as_much_again_and_enough_flows_of_it() {
    let with_last = |last: usize| -> Vec<FlowRecord> {
        let counts: Vec<usize> = (0..20).map(|i| 100 + 2 * (i % 2)).chain([last]).collect();
        days(&counts)
    };
    let fires = |last: usize, more: &str| !found("AZ-08", "fixed", more, &with_last(last)).is_empty();
    assert!(fires(300, "flows_min = 100"));
    assert!(!fires(150, "flows_min = 10"), "not half as much again as the 101 that were expected");
    assert!(fires(153, "flows_min = 10"));
    assert!(!fires(300, ""), "two hundred more are nothing to a network");
    assert!(!fires(300, "flows_min = 100\nwindows_min = 22"));
}

// AZ-13

#[test]
fn a_steady_host_fires_in_the_exact_form_only_and_a_spreading_one_in_the_fixed() {
    let last = |found: &[String]| found.last().cloned().unwrap_or_default();
    let steady = days(&[10; 14]);
    assert_eq!(last(&found("AZ-13", "exact", "", &steady)), "12-04T00 10.0.0.1 port 445 0.923");
    assert_eq!(found("AZ-13", "fixed", "", &steady), Vec::<String>::new());
    // Median 100, least spread 5: 125 flows are 5 deviations.
    let with_last = |last: usize| days(&[100, 100, 100, 100, 100, 100, last]);
    assert_eq!(found("AZ-13", "fixed", "", &with_last(124)), Vec::<String>::new());
    assert_eq!(found("AZ-13", "fixed", "", &with_last(125)), ["11-27T00 10.0.0.1 port 445 5"]);
    assert_eq!(found("AZ-13", "fixed", "flows_min = 26", &with_last(125)), Vec::<String>::new());
    let weekend = [100, 100, 100, 100, 100, 0, 0, 100, 100];
    assert_eq!(found("AZ-13", "fixed", "", &days(&weekend)), Vec::<String>::new());
}

#[test]
fn smb_counts_from_private_sources_to_others_above_half_of_what_was() {
    assert_eq!(found("AZ-13", "exact", "", &days(&[10, 15])), Vec::<String>::new(), "exactly half");
    assert_eq!(found("AZ-13", "exact", "", &days(&[10, 16])), ["11-22T00 10.0.0.1 port 445 0.6"]);
    assert_eq!(found("AZ-13", "exact", "", &days(&[10, 4])), ["11-22T00 10.0.0.1 port 445 0.6"], "fewer is odd, too");
    assert_eq!(found("AZ-13", "exact", "", &days(&[10, 0])), Vec::<String>::new(), "nothing joins with nothing");
    let from = |source: &str, destination: &str, port: u16| -> Vec<FlowRecord> {
        let records = (0..30).map(|i| talk(source, destination, TCP, port, hour(i / 10, 1.0 + f64::from(i) / 3_600.0), 1));
        records.collect()
    };
    assert_eq!(found("AZ-13", "exact", "deviation_max = 0.1", &from("10.0.0.1", "10.0.0.2", 139)).len(), 1, "10 against 20");
    for (source, destination, port) in
        [("192.0.2.1", "10.0.0.2", 445), ("10.0.0.1", "10.0.0.1", 445), ("10.0.0.1", "10.0.0.2", 4_450)]
    {
        assert_eq!(found("AZ-13", "exact", "deviation_max = 0.1", &from(source, destination, port)), Vec::<String>::new());
    }
}

// AZ-15

/// 100 MB an hour of two hosts to the Internet for so many days.
fn upload(days: i32) -> Vec<FlowRecord> {
    let hours = (0..days).flat_map(|day| (0..24).map(move |h| (day, h)));
    let sent = |(day, h): (i32, i32), source: &str, octets: u64| FlowRecord {
        octets: [octets, 0],
        ..talk(source, "203.0.113.9", TCP, 443, hour(day, f64::from(h) + 0.5), 0)
    };
    hours.flat_map(|when| [sent(when, "10.0.0.1", 95_000_000), sent(when, "10.0.0.2", 5_000_000)]).collect()
}

fn burst(day: i32, h: f64, destination: &str, octets: u64) -> FlowRecord {
    FlowRecord { octets: [octets, 0], ..talk("10.0.0.7", destination, TCP, 443, hour(day, h), 0) }
}

#[test]
fn one_hour_of_a_gigabyte_is_told_with_those_who_sent_it() {
    let with = |record: FlowRecord| upload(14).into_iter().chain([record]).collect::<Vec<_>>();
    let exact = |record| found("AZ-15", "exact", "", &with(record));
    let fixed = |record| found("AZ-15", "fixed", "", &with(record));
    let sent = "203.0.113.5";
    assert_eq!(exact(burst(12, 15.5, sent, 1_000_000_000)), ["12-03T15 10.0.0.1 at tap 95", "12-03T15 10.0.0.7 at tap 1000"]);
    assert_eq!(exact(burst(12, 0.5, sent, 1_000_000_000)), Vec::<String>::new(), "yesterday's first hour is left out");
    assert_eq!(exact(burst(13, 15.5, sent, 1_000_000_000)), Vec::<String>::new(), "and so is today");
    assert_eq!(exact(burst(12, 15.5, "10.9.9.9", 1_000_000_000)), Vec::<String>::new(), "private");
    for h in [0.5, 15.5] {
        let found = fixed(burst(13, h, sent, 1_000_000_000));
        assert_eq!(
            found,
            [format!("12-04T{:02.0} 10.0.0.1 at tap 95", h - 0.5), format!("12-04T{:02.0} 10.0.0.7 at tap 1000", h - 0.5)]
        );
    }
    assert_eq!(fixed(burst(13, 15.5, sent, 99_000_000)), Vec::<String>::new(), "not twice what was expected");
    assert_eq!(fixed(burst(13, 15.5, sent, 101_000_000)).len(), 2);
    assert_eq!(fixed(burst(13, 15.5, "2001:db8::9", 1_000_000_000)).len(), 2, "IPv6");
    assert_eq!(found("AZ-15", "fixed", "", &upload(14)), Vec::<String>::new());
    assert_eq!(
        found("AZ-15", "fixed", "octets_min = 1000000000", &with(burst(13, 15.5, sent, 1_000_000_000))),
        Vec::<String>::new()
    );
    assert_eq!(found("AZ-15", "fixed", "sources_max = 1", &with(burst(13, 15.5, sent, 1_000_000_000))).len(), 1);
}

#[test]
fn a_nightly_backup_is_known_after_three_days() {
    let mut records = upload(9);
    records.extend((0..9).map(|day| burst(day, 2.5, "203.0.113.5", 5_000_000_000)));
    let found = found("AZ-15", "fixed", "", &records);
    assert_eq!(found, Vec::<String>::new());
}

// AZ-18, AZ-19

fn denied(source: &str, destination: &str, secs: f64) -> FlowRecord {
    let context = Arc::new(CloudContext { observer: Arc::from("tap"), ..CloudContext::default() });
    let cloud =
        Cloud { origin: Origin::VnetV4, action: Action::Deny, direction: Direction::Outbound, context, ..Cloud::default() };
    FlowRecord { state: FlowState::Begin, cloud: Some(Box::new(cloud)), ..talk(source, destination, TCP, 443, secs, 0) }
}

/// So many denials in each hour from the first on.
fn denials(counts: &[usize]) -> Vec<FlowRecord> {
    let hours = counts.iter().zip(0..);
    hours.flat_map(|(&n, h)| (0..n).map(move |i| denied("10.0.0.1", "10.0.0.2", hour(0, f64::from(h)) + i as f64))).collect()
}

#[test]
fn a_rate_of_denials_is_unusual_above_mean_and_three_deviations_and_five() {
    for form in ["exact", "fixed"] {
        let found = |counts: &[usize]| found("AZ-18", form, "", &denials(counts)).len();
        assert_eq!(found(&[2, 2, 2, 2, 2, 2, 5]), 0, "{form}: never up to five");
        assert_eq!(found(&[2, 2, 2, 2, 2, 2, 6]), 1, "{form}");
        assert_eq!(found(&[2, 2, 2, 2, 2, 6]), 0, "{form}: five hours are not enough to know");
        // Mean 12, deviation 2: the threshold is 18.
        let spread = [10, 10, 10, 12, 14, 14, 14];
        assert_eq!(found(&[&spread[..], &[18]].concat()), 0, "{form}");
        assert_eq!(found(&[&spread[..], &[19]].concat()), usize::from(form == "exact"), "fixed wants twice the mean");
        assert_eq!(found(&[&spread[..], &[24]].concat()), 1, "{form}");
    }
    assert_eq!(found("AZ-18", "exact", "", &denials(&[2, 2, 2, 2, 2, 2, 6])), ["11-21T06 10.0.0.1 > 10.0.0.2 6"]);
    assert_eq!(found("AZ-18", "fixed", "", &denials(&[2, 2, 2, 2, 2, 2, 6])), ["11-21T06 10.0.0.1 6"]);
}

#[test]
fn a_mirror_port_sees_denials_as_silence() {
    let mut records: Vec<FlowRecord> = (0..6).map(|h| knock("10.0.0.1", "10.0.0.2", TCP, 443, hour(0, f64::from(h)))).collect();
    assert_eq!(
        found("AZ-18", "fixed", "", &records),
        Vec::<String>::new(),
        "one denial an hour has no deviation, and one is not above five"
    );
    records.extend((0..6).map(|i| knock("10.0.0.1", "10.0.0.2", TCP, 443, hour(0, 6.0) + f64::from(i))));
    assert_eq!(found("AZ-18", "fixed", "", &records), ["11-21T06 10.0.0.1 6"]);
    assert_eq!(found("AZ-18", "exact", "", &records), Vec::<String>::new(), "nobody denied anything");
}

#[test]
fn twenty_destinations_are_unusual_where_three_are_usual() {
    let reach = |counts: &[usize]| -> Vec<FlowRecord> {
        let hours = counts.iter().zip(0..);
        let one = |h: i32, i: usize| talk("10.0.0.1", &format!("10.0.1.{i}"), TCP, 445, hour(0, f64::from(h)) + i as f64, 10);
        hours.flat_map(|(&n, h)| (0..n).map(move |i| one(h, i))).collect()
    };
    let usual = [2, 2, 2, 3, 4, 4, 4];
    for (hosts, fires) in [(10, false), (11, true), (20, true)] {
        let found = found("AZ-19", "fixed", "", &reach(&[&usual[..], &[hosts]].concat()));
        assert_eq!(!found.is_empty(), fires, "{hosts}");
    }
    assert_eq!(found("AZ-19", "fixed", "", &reach(&[&usual[..], &[20]].concat())), ["11-21T07 10.0.0.1 20"]);
    assert_eq!(found("AZ-19", "exact", "", &reach(&[&usual[..], &[200]].concat())), Vec::<String>::new(), "dead as published");
}

// AZ-20, AZ-21

fn visit(day: i32, h: f64, destination: &str, port: u16) -> FlowRecord {
    talk("10.0.0.1", destination, TCP, port, hour(day, h), 100)
}

#[test]
fn a_second_sighting_is_silent_and_one_after_eight_days_is_a_first_again() {
    let pair = "10.0.0.1 > 192.0.2.7 port 4444";
    let records = [visit(0, 1.5, "192.0.2.7", 4_444), visit(1, 5.5, "192.0.2.7", 4_444), visit(9, 6.5, "192.0.2.7", 4_444)];
    assert_eq!(found("AZ-20", "exact", "", &records), [format!("11-21T01 {pair} 1"), format!("11-30T06 {pair} 1")]);
    assert_eq!(found("AZ-21", "exact", "", &records), ["11-21T00 10.0.0.1 port 4444 1", "11-30T00 10.0.0.1 port 4444 1"]);
    assert_eq!(found("AZ-20", "fixed", "", &records), ["11-30T06 10.0.0.1 1"], "it learns for a week");
    assert_eq!(found("AZ-21", "fixed", "", &records), ["11-30T00 10.0.0.1 1"]);
    // Remembered to the hour: seven days later it is known, an hour after that it is not.
    let after = |h: f64| [visit(0, 1.5, "192.0.2.7", 4_444), visit(7, h, "192.0.2.7", 4_444)];
    assert_eq!(found("AZ-20", "exact", "", &after(1.2)).len(), 1);
    assert_eq!(found("AZ-20", "exact", "", &after(2.2)).len(), 2);
}

#[test]
fn the_public_query_reports_those_who_have_two_regular_destinations() {
    let two = |h: f64| [visit(0, h, "192.0.2.7", 4_444), visit(0, h, "192.0.2.8", 4_444)];
    let records: Vec<FlowRecord> = [1.1, 2.1, 3.1].into_iter().flat_map(two).collect();
    assert_eq!(found("AZ-20", "exact", "", &records).len(), 6);
    assert_eq!(found("AZ-20", "fixed", "learn_secs = 0", &records), ["11-21T01 10.0.0.1 2"]);
    assert_eq!(found("AZ-20", "fixed", "", &records), Vec::<String>::new());
}

#[test]
fn attempts_and_common_ports_are_no_first_sights() {
    let records = [visit(0, 1.5, "192.0.2.7", 443), knock("10.0.0.1", "192.0.2.7", TCP, 23, hour(0, 2.0))];
    assert_eq!(found("AZ-20", "exact", "", &records).len(), 2);
    assert_eq!(found("AZ-21", "exact", "", &records), ["11-21T00 10.0.0.1 port 23 1"]);
    assert_eq!(found("AZ-20", "fixed", "learn_secs = 0", &records), Vec::<String>::new());
    assert_eq!(found("AZ-21", "fixed", "learn_secs = 0", &records), Vec::<String>::new());
}

#[test]
fn a_full_memory_forgets_what_was_not_seen_for_longest_and_counts_it() {
    let mut file = rules("[AZ-20]\nlearn_secs = 0\nkeys_max = 16\n");
    file.keep_only(&["AZ-20".to_owned()]).expect("a rule");
    let mut detection = Detection::new(&file, Mode::Stream);
    let mut findings = Vec::new();
    for h in 0..20 {
        detection.poll(at(hour(0, f64::from(h))), &mut findings);
        // The first destination comes every hour, the others once.
        detection.observe("tap", &visit(0, f64::from(h), "192.0.2.1", 4_444));
        (2..4).for_each(|i| detection.observe("tap", &visit(0, f64::from(h), &format!("198.51.{h}.{i}"), 4_444)));
        detection.poll(at(hour(0, f64::from(h))), &mut findings);
    }
    let state = detection.states().next().expect("one rule");
    assert!(state.evicted > 20 && state.refused == 0, "{state:?}");
    assert!(findings[1..].iter().all(|finding| !finding.evidence.hosts.contains(&host("192.0.2.1"))), "seen an hour ago");
}

// AZ-25, AZ-26

#[test]
fn a_common_port_is_unusual_above_mean_and_three_deviations() {
    let records = |counts: &[usize]| -> Vec<FlowRecord> {
        days(counts).into_iter().map(|record| FlowRecord { destination_port: 22, ..record }).collect()
    };
    // Mean 12, deviation 2: the threshold is 18. Sources do not change, octets go with rows.
    let spread = [10, 10, 10, 12, 14, 14, 14];
    let last = |found: Vec<String>| -> Vec<String> { found.into_iter().filter(|finding| finding.starts_with("11-28")).collect() };
    let exact = |n: usize| last(found("AZ-25", "exact", "", &records(&[&spread[..], &[n]].concat())));
    assert_eq!(exact(18), Vec::<String>::new());
    assert_eq!(exact(19), ["11-28T00 port 22 (bytes) 19000", "11-28T00 port 22 (events) 19"]);
    let fixed = |n: usize| last(found("AZ-25", "fixed", "", &records(&[&spread[..], &[n]].concat())));
    assert_eq!(fixed(23), Vec::<String>::new(), "not twice the median");
    assert_eq!(fixed(24), ["11-28T00 port 22 (bytes) 24000", "11-28T00 port 22 (events) 24"]);
    assert_eq!(found("AZ-25", "exact", "", &days(&[1, 2, 1, 2, 900])), Vec::<String>::new(), "445 is no common port");
}

#[test]
fn hosts_are_ranked_by_how_much_they_vary() {
    let records = [
        talk("10.0.0.1", "192.0.2.5", TCP, 445, hour(0, 1.0), 100),
        talk("10.0.0.1", "192.0.2.5", TCP, 445, hour(1, 2.0), 300),
        talk("10.0.0.2", "192.0.2.6", TCP, 445, hour(0, 1.0), 500),
        talk("10.0.0.2", "192.0.2.6", TCP, 445, hour(0, 2.0), 500),
    ];
    // Half the distance times the root of two; those that are always the same are no part of the ranking.
    let both = ["11-21T00 10.0.0.1 (bytes) 141.421", "11-21T00 192.0.2.5 (bytes) 141.421"];
    assert_eq!(found("AZ-26", "exact", "", &records), both);
    // 22 hours of nothing and two of 500: the mean is 1000/24.
    let stdev = ((2.0 * 250_000.0 - 1_000_000.0 / 24.0) / 23.0_f64).sqrt();
    let fixed = found("AZ-26", "fixed", "hosts_max = 1", &records);
    assert_eq!(
        fixed,
        [format!("11-21T00 10.0.0.2 (bytes) {}", (stdev * 1e3).round() / 1e3), {
            let one = (300.0_f64.powi(2) - 300.0_f64.powi(2) / 24.0) / 23.0;
            format!("11-22T00 10.0.0.1 (bytes) {}", (one.sqrt() * 1e3).round() / 1e3)
        }]
    );
}

// The schedule

#[test]
fn a_stream_judges_a_day_when_it_is_over_and_a_silence_is_no_end_of_it() {
    let mut file = rules("[AZ-13]\nwindows_min = 1\n");
    file.keep_only(&["AZ-13".to_owned()]).expect("a rule");
    let mut detection = Detection::new(&file, Mode::Stream);
    let mut findings = Vec::new();
    days(&[10, 10]).iter().for_each(|record| detection.observe("tap", record));
    detection.poll(at(hour(1, 2.0)), &mut findings);
    detection.poll(at(hour(1, 20.0)), &mut findings);
    assert_eq!(findings.len(), 0, "nobody spoke for hours");
    (0..90).for_each(|i| detection.observe("tap", &talk("10.0.0.1", "10.0.0.2", TCP, 445, hour(1, 20.0) + f64::from(i), 1)));
    detection.poll(at(hour(1, 20.1)), &mut findings);
    assert_eq!(findings.len(), 0, "the day is not over");
    detection.poll(at(hour(2, 0.1)), &mut findings);
    assert_eq!(findings.len(), 0, "the clock on the wall does not end it");
    detection.observe("tap", &talk("10.0.0.1", "10.0.0.2", TCP, 80, hour(2, 0.1), 1));
    detection.poll(at(hour(2, 0.1)), &mut findings);
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].stage, findings[0].window.start), (Stage::Closed, at(hour(1, 0.0))));
    assert_eq!(findings[0].sentence, "10.0.0.1 opened 100 SMB flows to port 445 on 2026-11-22, where 10 are usual");
    assert!(detection.states().all(|state| state.late == 0));
}

#[test]
fn what_every_rule_says_does_not_depend_on_the_order_of_rows_in_a_replay() {
    let mut records = upload(9);
    records.extend(days(&[30, 31, 29, 30, 33, 30, 30, 100, 30]));
    records.extend(denials(&[3, 2, 3, 2, 3, 2, 30]));
    records.extend(
        (0..9).flat_map(|d| (1..4).map(move |i| visit(d, 3.0 + f64::from(i), &format!("192.0.2.{}", i * d), 4_000 + i as u16))),
    );
    let mut file = RuleFile::default();
    file.set_variants(&[Variant::Exact, Variant::Fixed]);
    let forward = replay(&file, &records).0;
    assert!(forward.len() > 50);
    records.reverse();
    assert_eq!(replay(&file, &records).0, forward);
    let middle = records.len() / 2;
    records.rotate_left(middle);
    assert_eq!(replay(&file, &records).0, forward);
    assert!(forward.iter().all(|finding| finding.window.start > Timestamp::NONE));
}

// AZ-03 by virtual machine

#[test]
fn volumes_belong_to_virtual_machines_where_the_log_names_them() {
    let record = |source: &str, vm: &str, origin: Origin, secs: f64, octets: u64| {
        let context = Arc::new(CloudContext { observer: Arc::from("nic"), source_vm: Arc::from(vm), ..CloudContext::default() });
        let cloud = Cloud { origin, context, ..Cloud::default() };
        FlowRecord { cloud: Some(Box::new(cloud)), ..talk(source, "10.0.0.2", TCP, 443, secs, octets) }
    };
    let ta = |source, vm, secs, octets| record(source, vm, Origin::TaVnet, secs, octets);
    let volumes = [ta("10.0.0.1", "rg/web1", 0.0, 10), ta("10.0.0.1", "rg/web1", 300.0, 30)];
    assert_eq!(found("AZ-03", "exact", "", &volumes), ["11-21T10 web1 TCP443 0.5"]);
    // Two addresses and two resource groups, one name: 10 and 30 + 20, the mean is 30.
    let same = [&volumes[..], &[ta("10.0.0.9", "other/web1", 301.0, 20)]].concat();
    assert_eq!(found("AZ-03", "exact", "", &same), ["11-21T10 web1 TCP443 0.67"]);
    let unnamed = [ta("10.0.0.1", "", 0.0, 10), ta("10.0.0.1", "", 300.0, 30)];
    assert_eq!(found("AZ-03", "exact", "", &unnamed), Vec::<String>::new());
    let logged = [record("10.0.0.1", "", Origin::VnetV4, 0.0, 10), record("10.0.0.1", "", Origin::VnetV4, 300.0, 30)];
    assert_eq!(found("AZ-03", "exact", "", &logged), ["11-21T10 10.0.0.1 TCP443 0.5"]);
    let fixed = found("AZ-03", "fixed", "threshold_means = 0.5\noctets_min = 0", &volumes);
    assert_eq!(fixed, ["11-21T10 10.0.0.1 TCP/443 at nic 0.5"], "the fixed form goes by address");
}

#[test]
fn findings_are_told_in_words() {
    let sentence = |id: &str, more: &str, records: &[FlowRecord]| {
        let mut file = rules(&format!("[{id}]\n{more}\n"));
        file.keep_only(&[id.to_owned()]).expect("a rule");
        replay(&file, records).0.last().map(|finding| finding.sentence.clone()).unwrap_or_default()
    };
    let mut counts = vec![200; 13];
    counts.push(2_000);
    assert_eq!(sentence("AZ-08", "", &days(&counts)), "protocol TCP had 2000 flows on 2026-12-04, where 200 were expected");
    let uploads: Vec<FlowRecord> = upload(8).into_iter().chain([burst(7, 15.5, "203.0.113.5", 1_000_000_000)]).collect();
    assert_eq!(
        sentence("AZ-15", "", &uploads),
        "10.0.0.7 sent 1000.0 MB to the Internet in the hour from 2026-11-28 15:00, when 100.0 MB of all hosts at tap were expected"
    );
    assert_eq!(
        sentence("AZ-18", "", &denials(&[2, 2, 2, 2, 2, 2, 6])),
        "10.0.0.1 was denied 6 times in the hour from 2026-11-21 06:00, where 2.0 are usual"
    );
    let visits: Vec<FlowRecord> = (1..6).map(|i| visit(0, 1.5, &format!("192.0.2.{i}"), 4_000 + i)).collect();
    assert_eq!(
        sentence("AZ-20", "learn_secs = 0", &visits),
        "10.0.0.1 used 5 destinations and ports in the hour from 2026-11-21 01:00 that it had not used for 7 days: \
         TCP/4001, TCP/4002, TCP/4003, … of 192.0.2.1, 192.0.2.2, 192.0.2.3, …"
    );
    assert_eq!(
        sentence("AZ-21", "learn_secs = 0", &visits[..1]),
        "10.0.0.1 used a port on 2026-11-21 that it had not used for 7 days: TCP/4001 of 192.0.2.1"
    );
}
