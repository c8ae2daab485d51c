//! What is guessing, and what only looks like it.

use spanwatch_common::flow::{FlowRecord, FlowState, protocol};

use crate::finding::{Severity, Stage};
use crate::tests::{at, knock, rules, talk};
use crate::{Detection, Finding, Mode, RuleFile};

const DAY: f64 = 86_400.0;
const OUTSIDE: &str = "198.51.100.7";
const SERVER: &str = "10.0.0.5";

fn only() -> RuleFile {
    let mut only = rules("");
    only.keep_only(&["ND-17".to_owned()]).expect("it exists");
    only
}

fn found(records: &[FlowRecord]) -> Vec<Finding> {
    crate::tests::replay(&only(), records).0
}

fn told(records: &[FlowRecord]) -> Vec<String> {
    let name = |finding: &Finding| format!("{:?} {} {}", finding.stage, finding.subject, finding.evidence.value);
    found(records).iter().map(name).collect()
}

/// A session that is over two seconds after it began.
fn session(source: &str, destination: &str, port: u16, secs: f64, packets: u64, octets: u64) -> FlowRecord {
    let end = at(secs + 2.0);
    let half = [packets / 2, packets - packets / 2];
    FlowRecord { packets: half, end: [end; 2], ..talk(source, destination, protocol::TCP, port, secs, octets) }
}

/// What wrong passwords look like: some two seconds apart, at the server's whim.
fn guesses(source: &str, destination: &str, port: u16, start: f64, every: f64, times: u32) -> Vec<FlowRecord> {
    let whim = |i: u32| [0.0, 0.31, 0.12, 0.44, 0.23][i as usize % 5] * every;
    let guess = |i: u32| {
        let secs = start + f64::from(i) * every + whim(i);
        session(source, destination, port, secs, 22 + u64::from(i % 3), 3_200 + 100 * u64::from(i % 4))
    };
    (0..times).map(guess).collect()
}

#[test]
fn twenty_equal_sessions_within_five_minutes_are_guessing_and_nineteen_are_not() {
    assert_eq!(told(&guesses(OUTSIDE, SERVER, 22, 0.0, 2.0, 19)), Vec::<String>::new());
    let guessing = guesses(OUTSIDE, SERVER, 22, 0.0, 2.0, 20);
    assert_eq!(told(&guessing), ["Crossed 198.51.100.7 > 10.0.0.5 TCP/22 20", "Closed 198.51.100.7 > 10.0.0.5 TCP/22 20"]);
    let first = &found(&guessing)[0];
    assert!(
        first.sentence.starts_with("198.51.100.7 opened 20 short sessions to 10.0.0.5 on TCP/22 within 5 minutes, all alike")
    );
    assert_eq!((first.rule.severity, &first.rule.attack[..]), (Severity::Medium, &["T1110.001".to_owned()][..]));
    assert_eq!(first.evidence.rows.len(), 11, "from half the threshold on");
    // From inside as well, and not on a port where nobody logs on.
    assert_eq!(told(&guesses("10.0.0.9", SERVER, 3_389, 0.0, 2.0, 20)).len(), 2);
    assert_eq!(told(&guesses(OUTSIDE, SERVER, 443, 0.0, 2.0, 200)), Vec::<String>::new());
}

#[test]
fn a_larger_session_after_them_hints_at_a_password_that_was_right() {
    let mut records = guesses(OUTSIDE, SERVER, 22, 0.0, 2.0, 30);
    records.push(session(OUTSIDE, SERVER, 22, 90.0, 400, 60_000));
    let findings = found(&records);
    let stages: Vec<_> = findings.iter().map(|finding| (finding.stage, finding.rule.severity)).collect();
    assert_eq!(stages, [(Stage::Crossed, Severity::Medium), (Stage::Grown, Severity::High), (Stage::Closed, Severity::High)]);
    assert!(
        findings[1]
            .sentence
            .ends_with("at 10:01:30 UTC came a session of another kind (60000 octets): one password may have been right")
    );
}

#[test]
fn a_hundred_in_a_day_are_slow_guessing() {
    let slow = |times| told(&guesses(OUTSIDE, SERVER, 22, 0.0, 800.0, times));
    assert_eq!(slow(99), Vec::<String>::new());
    assert_eq!(slow(100)[0], "Crossed 198.51.100.7 > 10.0.0.5 TCP/22 (slow) 100");
}

#[test]
fn three_tries_on_each_of_ten_hosts_are_spraying_and_on_nine_are_not() {
    let spray = |source: &str, hosts: u32| {
        let host = |i: u32| guesses(source, &format!("10.0.7.{i}"), 445, f64::from(i) * 9.0, 3.0, 3);
        told(&(1..=hosts).flat_map(host).collect::<Vec<_>>())
    };
    assert_eq!(spray(OUTSIDE, 9), Vec::<String>::new());
    let spraying = ["Crossed 198.51.100.7 TCP/445 (password spraying) 10", "Closed 198.51.100.7 TCP/445 (password spraying) 10"];
    assert_eq!(spray(OUTSIDE, 10), spraying);
    assert_eq!((spray("10.0.0.9", 19).len(), spray("10.0.0.9", 20).len()), (0, 2), "from inside, on the first day");
}

#[test]
fn monitoring_pools_mail_backups_and_scans_are_no_guessing() {
    let silent = |what: &str, records: Vec<FlowRecord>| assert_eq!(told(&records), Vec::<String>::new(), "{what}");
    let minute = |i: u32, host: u32| {
        session("10.0.0.9", &format!("10.0.7.{host}"), 22, f64::from(i) * 60.0 + f64::from(host) / 10.0, 24, 4_000)
    };
    silent("monitoring over SSH, once a minute", (0..3_000).map(|i| minute(i, 1)).collect());
    silent("the same of fifty hosts", (0..120).flat_map(|i| (1..=50).map(move |host| minute(i, host))).collect());
    let check = |i: u32| session("10.0.0.9", SERVER, 22, f64::from(i), 12, 1_500);
    silent("a health check each second", (0..3_000).map(check).collect());
    let pool = |i: u32| session("10.0.0.8", SERVER, 5_432, f64::from(i) * 0.7 + f64::from(i % 5) / 9.0, 16, 2_500);
    silent("a web server's database, busy all day", (0..4_000).map(pool).collect());
    let days = |i: u32| FlowRecord { destination_port: 22, ..pool(i) };
    let steady: Vec<FlowRecord> = (0..3 * 24)
        .flat_map(|hour| (0..15).map(move |i| (hour, i)))
        .map(|(hour, i)| {
            session("10.0.0.8", SERVER, 22, f64::from(hour) * 3_600.0 + f64::from(i * i), days(i).packets[0] * 2, 2_500)
        })
        .collect();
    silent("automation below the threshold, for days", steady);
    let mail = |i: u32| session(OUTSIDE, SERVER, 993, f64::from(i) * 4.0 + f64::from(i % 3), 24, 5_000);
    silent("an office's mail programs behind one address", (0..2_000).map(mail).collect());
    let copy = |i: u32| {
        session("10.0.0.9", SERVER, 22, f64::from(i) * 3.0, 40 + u64::from(i * i % 977), 9_000 + u64::from(i * i % 977) * 900)
    };
    silent("rsync of one thing after another", (0..500).map(copy).collect());
    silent("a scan", (0..500).map(|i| knock(OUTSIDE, SERVER, protocol::TCP, 22, f64::from(i))).collect());
}

#[test]
fn a_rhythm_that_begins_later_than_the_first_day_excuses_nobody() {
    // Somebody else's session makes the detector know when it began.
    let others: Vec<FlowRecord> =
        (0..30).map(|hour| session("10.0.0.8", SERVER, 22, f64::from(hour) * 3_600.0, 40, 9_000)).collect();
    let later = |secs: f64| DAY + 7_200.0 + secs;
    let tool = (0..30).map(|i| session("10.0.0.9", SERVER, 22, later(f64::from(i)), 24, 3_200)).collect();
    let spray =
        (0..60).map(|i| session("10.0.0.9", &format!("10.0.7.{}", i % 20), 445, later(f64::from(i) * 20.0), 24, 3_200)).collect();
    let found = |more: Vec<FlowRecord>| told(&[others.clone(), more].concat());
    assert_eq!(found(tool)[0], "Crossed 10.0.0.9 > 10.0.0.5 TCP/22 20");
    assert_eq!(found(spray)[0], "Crossed 10.0.0.9 TCP/445 (password spraying) 10");
}

#[test]
fn what_was_there_on_earlier_days_is_usual() {
    // Twenty-five sessions each morning: told on the first day, and then never again unless there are far more.
    let morning = |day: u32, times: u32| guesses("10.0.0.8", SERVER, 22, f64::from(day) * DAY, 3.0, times);
    let first = told(&morning(0, 25));
    assert_eq!(first.len(), 2);
    // Fifteen each morning are never told; on the fourth day forty are three times as much as is left of fifteen, seventy are more.
    let days = |last: u32| told(&[morning(0, 15), morning(1, 15), morning(2, 15), morning(3, last)].concat());
    assert_eq!(days(40), Vec::<String>::new());
    assert!(!days(70).is_empty());
}

#[test]
fn guessing_is_the_same_after_a_restart_in_the_midst_of_it() {
    let mut records = guesses(OUTSIDE, SERVER, 22, 0.0, 2.0, 400);
    records.push(FlowRecord { state: FlowState::End, ..session(OUTSIDE, SERVER, 22, 810.0, 400, 60_000) });
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
    assert!(whole.len() > 5, "{whole:?}");
    assert_eq!(all(7), whole);
    assert_eq!(all(200), whole);
}
