//! What is a storm of failed callbacks, and what is only a server that is down.

use spanwatch_common::flow::{FlowRecord, FlowState, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::roles::{Role, Roles};
use crate::tests::{at, knock, rules, talk};
use crate::{Detection, Finding, Mode, RuleFile};

const TCP: u8 = protocol::TCP;
const OUTSIDE: &str = "203.0.113.9";

fn only() -> RuleFile {
    let mut only = rules("");
    only.keep_only(&["ND-28".to_owned()]).expect("it exists");
    only
}

fn told(records: &[FlowRecord]) -> Vec<String> {
    let name = |finding: &Finding| format!("{:?} {} {}", finding.stage, finding.subject, finding.evidence.value);
    crate::tests::replay(&only(), records).0.iter().map(name).collect()
}

/// One failed call every `every` seconds.
fn calls(source: &str, destination: &str, start: f64, every: f64, times: u32) -> Vec<FlowRecord> {
    (0..times).map(|i| knock(source, destination, TCP, 4_444, start + f64::from(i) * every)).collect()
}

#[test]
fn thirty_failures_in_ten_minutes_are_a_storm_and_twenty_nine_are_not() {
    assert_eq!(told(&calls("10.0.4.7", OUTSIDE, 0.0, 20.0, 29)), Vec::<String>::new());
    let storm = calls("10.0.4.7", OUTSIDE, 0.0, 20.0, 30);
    assert_eq!(told(&storm), ["Crossed 10.0.4.7 > 203.0.113.9 TCP/4444 30", "Closed 10.0.4.7 > 203.0.113.9 TCP/4444 30"]);
    let findings = crate::tests::replay(&only(), &storm).0;
    assert!(
        findings[0]
            .sentence
            .starts_with("10.0.4.7 tried 30 times within 10 minutes to reach 203.0.113.9 on TCP/4444, and nobody")
    );
    // Every half minute are twenty in ten minutes, however long.
    assert_eq!(told(&calls("10.0.4.7", OUTSIDE, 0.0, 30.0, 1_000)), Vec::<String>::new());
}

#[test]
fn what_answered_within_the_day_is_a_server_that_is_down() {
    let day = 86_400.0;
    let answered = FlowRecord { state: FlowState::Begin, ..talk("10.0.4.7", OUTSIDE, TCP, 4_444, 0.0, 0) };
    let later = |secs| [vec![answered.clone()], calls("10.0.4.7", OUTSIDE, secs, 5.0, 200)].concat();
    assert_eq!(told(&later(0.9 * day)), Vec::<String>::new());
    assert_eq!(told(&later(1.6 * day)).len(), 6, "crossed, doubled twice, and the three windows that it touches");
}

#[test]
fn inside_it_takes_a_day_to_know_what_is_new() {
    let day = 86_400.0;
    let first = || knock("10.0.9.1", "10.0.9.2", TCP, 1, 0.0);
    let inside = |secs: f64| told(&[vec![first()], calls("10.0.4.7", "10.0.0.2", secs, 5.0, 40)].concat());
    assert_eq!(inside(0.5 * day), Vec::<String>::new());
    assert_eq!(inside(1.1 * day).len(), 2);
}

#[test]
fn a_scan_a_crowd_and_a_monitoring_server_are_no_storm() {
    let scan: Vec<FlowRecord> =
        (0..5_000).map(|i| knock("10.0.4.7", &format!("203.0.{}.{}", i / 250, i % 250), TCP, 445, f64::from(i) / 10.0)).collect();
    assert_eq!(told(&scan), Vec::<String>::new());
    let outside_in = calls("198.51.100.7", "10.0.0.2", 0.0, 1.0, 500);
    assert_eq!(told(&outside_in), Vec::<String>::new(), "that is guessing or scattering, no callback");
    let crowd: Vec<FlowRecord> =
        (0..600).map(|i| knock(&format!("10.0.4.{}", i % 20), OUTSIDE, TCP, 443, f64::from(i))).collect();
    assert_eq!(told(&crowd), Vec::<String>::new(), "a firewall forbids it, or the service is down for all");
    let prefix = "10.0.4.7/32".parse().expect("a prefix");
    let mut detection = Detection::new(&only(), Mode::Replay).with_roles(Roles::default().with(prefix, Role::Monitor, at(1e6)));
    let mut findings = Vec::new();
    calls("10.0.4.7", OUTSIDE, 0.0, 1.0, 500).iter().for_each(|record| detection.observe("tap", record));
    detection.finish(&mut findings);
    assert_eq!(findings, []);
}

#[test]
fn a_storm_is_the_same_after_a_restart_in_the_midst_of_it() {
    let records = calls("10.0.4.7", OUTSIDE, 0.0, 7.0, 600);
    let all = |restart: usize| {
        let mut detection = Detection::new(&only(), Mode::Stream);
        let mut findings = Vec::new();
        for (i, record) in records.iter().enumerate() {
            detection.poll(record.first(), &mut findings);
            if restart == i {
                let bytes = detection.snapshot();
                detection = Detection::new(&only(), Mode::Stream);
                assert_eq!(detection.restore(&bytes).expect("our own"), Vec::<String>::new());
            }
            detection.observe("tap", record);
        }
        detection.finish(&mut findings);
        findings
    };
    let whole = all(usize::MAX);
    // 30 and 60 failures (86 in ten minutes are the most), and seven windows.
    assert_eq!(whole.len(), 9, "{whole:?}");
    assert_eq!(all(3), whole);
    assert_eq!(all(300), whole);
    assert!(
        whole.iter().all(|finding| finding.first > Timestamp::NONE
            && finding.evidence.hosts == [OUTSIDE.parse::<Address>().expect("an address")])
    );
}
