//! Every counting rule at its threshold and one above, across the edge of a window, and on what only looks like it.

use std::sync::Arc;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FlowRecord, protocol, tcp};

use super::tests::{at, knock, replay, rules, talk};
use super::*;

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;

/// What one form of one rule says: `subject value at seconds`.
fn say(rule: &str, variant: &str, extra: &str, records: &[FlowRecord]) -> Vec<String> {
    let mut only = rules(&format!("[{rule}]\nvariants = ['{variant}']\n{extra}\n"));
    only.keep_only(&[rule.to_owned()]).expect("a rule");
    let told = |finding: &Finding| {
        let secs = (finding.window.start.as_nanos() - at(0.0).as_nanos()) / 1_000_000_000;
        format!("{} {} at {secs}", finding.subject, finding.evidence.value)
    };
    let (findings, detection) = replay(&only, records);
    assert!(detection.states().all(|state| state.late + state.evicted + state.refused == 0));
    findings.iter().map(told).collect()
}

const NOTHING: [&str; 0] = [];

/// A tuple of a VNet flow log.
fn tuple(source: &str, destination: &str, port: u16, secs: f64, action: Action, direction: Direction) -> FlowRecord {
    let cloud = Cloud {
        origin: Origin::VnetV4,
        action,
        direction,
        context: Arc::new(CloudContext { observer: Arc::from("0022481A2B3C"), ..CloudContext::default() }),
        ..Cloud::default()
    };
    let packets = if action == Action::Deny { [0, 0] } else { [4, 4] };
    FlowRecord { cloud: Some(Box::new(cloud)), packets, ..talk(source, destination, TCP, port, secs, 400) }
}

fn denied(source: &str, destination: &str, port: u16, secs: f64) -> FlowRecord {
    FlowRecord { octets: [0, 0], ..tuple(source, destination, port, secs, Action::Deny, Direction::Inbound) }
}

fn host(i: usize) -> String {
    format!("10.1.{}.{}", i / 250, i % 250)
}

/// Each from its own source port, as clients do.
fn apart(records: Vec<FlowRecord>) -> Vec<FlowRecord> {
    records.into_iter().zip(10_000_u16..).map(|(record, source_port)| FlowRecord { source_port, ..record }).collect()
}

#[test]
fn az_05_fires_above_fifty_ports() {
    let ports = |source: &str, n: u16| (1..=n).map(|port| knock(source, "10.0.1.1", TCP, port, 1.0)).collect::<Vec<_>>();
    assert_eq!(say("AZ-05", "exact", "", &ports("192.0.2.9", 50)), NOTHING);
    assert_eq!(say("AZ-05", "exact", "", &ports("192.0.2.9", 51)), ["192.0.2.9 51 at 0"]);
    for blind in ["10.0.0.9", "127.0.0.1", "2001:db8::9"] {
        assert_eq!(say("AZ-05", "exact", "", &ports(blind, 51)), NOTHING, "{blind}");
    }
    assert_eq!(say("AZ-05", "exact", "", &ports("127.0.0.2", 51)).len(), 1, "the public rule names one loopback address");
    assert_eq!(say("AZ-05", "fixed", "", &ports("10.0.0.9", 50)), NOTHING);
    assert_eq!(say("AZ-05", "fixed", "", &ports("10.0.0.9", 51)), ["10.0.0.9 > 10.0.1.1 51 at 0"]);
    let edge: Vec<_> =
        (1..=51).map(|port| knock("192.0.2.9", "10.0.1.1", TCP, port, if port == 1 { 299.0 } else { 300.0 })).collect();
    assert_eq!(say("AZ-05", "exact", "", &edge), NOTHING, "the edge of five minutes lies between");
    let spread: Vec<_> = (1..=60).map(|port| knock("192.0.2.9", &host(port.into()), TCP, port, 1.0)).collect();
    assert_eq!(say("AZ-05", "exact", "", &spread).len(), 1);
    assert_eq!(say("AZ-05", "fixed", "", &spread), NOTHING, "one port on each of many hosts");
}

#[test]
fn az_06_fires_above_twenty_hosts_and_the_fixed_form_asks_who_and_whether_they_failed() {
    let reached = |n: usize| {
        (1..=n).map(|i| tuple(&host(1_000 + i), &host(i), 53, 1.0, Action::Allow, Direction::Inbound)).collect::<Vec<_>>()
    };
    assert_eq!(say("AZ-06", "exact", "", &reached(20)), NOTHING);
    assert_eq!(say("AZ-06", "exact", "", &reached(21)), ["port 53 21 at 0"]);
    assert_eq!(say("AZ-06", "exact", "", &reached(130)), ["port 53 100 at 0"], "the set stops at 100");
    assert_eq!(say("AZ-06", "fixed", "", &reached(130)), NOTHING, "each client has one server");

    let knocks = |n: usize| (1..=n).map(|i| knock("10.0.0.9", &host(i), TCP, 445, 60.0 * i as f64)).collect::<Vec<_>>();
    assert_eq!(say("AZ-06", "fixed", "", &knocks(20)), NOTHING);
    assert_eq!(say("AZ-06", "fixed", "", &knocks(21)), ["10.0.0.9 TCP/445 21 at 0"]);
    let answered = |n: usize| (100..100 + n).map(|i| talk("10.0.0.9", &host(i), TCP, 445, 5.0, 900));
    assert_eq!(
        say("AZ-06", "fixed", "", &knocks(21).into_iter().chain(answered(21)).collect::<Vec<_>>()).len(),
        1,
        "half failed"
    );
    assert_eq!(
        say("AZ-06", "fixed", "", &knocks(21).into_iter().chain(answered(22)).collect::<Vec<_>>()),
        NOTHING,
        "most answered"
    );
    let edge: Vec<_> = (0..21).map(|i| knock("10.0.0.9", &host(i), TCP, 445, 3_590.0 + i as f64)).collect();
    assert_eq!(say("AZ-06", "fixed", "", &edge), NOTHING, "the hour ends after ten of them");
}

#[test]
fn az_07_fires_above_its_number_of_failures_and_the_fixed_form_counts_a_connection_once() {
    let extra = "threshold_failures = 50";
    let failures = |n: usize| apart((0..n).map(|_| denied("10.0.0.9", "10.0.1.1", 443, 1.0)).collect());
    for variant in ["exact", "fixed"] {
        assert_eq!(say("AZ-07", variant, extra, &failures(50)), NOTHING);
        assert_eq!(say("AZ-07", variant, extra, &failures(51)), ["10.0.0.9 51 at 0"]);
    }
    let twice: Vec<_> = failures(50).into_iter().flat_map(|record| [record.clone(), record]).collect();
    assert_eq!(say("AZ-07", "exact", extra, &twice), ["10.0.0.9 100 at 0"]);
    assert_eq!(say("AZ-07", "fixed", extra, &twice), NOTHING, "each was logged at two interfaces");
    let load: Vec<_> = (0..500).map(|i| talk("10.0.0.1", "10.0.0.2", TCP, 443, f64::from(i) / 10.0, 3_000)).collect();
    assert_eq!(say("AZ-07", "fixed", extra, &load), NOTHING);
}

#[test]
fn az_07_exact_counts_five_thousand_and_one() {
    let rows = |n: usize| (0..n).map(|i| denied("10.0.0.9", "10.0.1.1", 443, i as f64 / 100.0)).collect::<Vec<_>>();
    assert_eq!(say("AZ-07", "exact", "", &rows(5_000)), NOTHING);
    assert_eq!(say("AZ-07", "exact", "", &rows(5_001)), ["10.0.0.9 5001 at 0"]);
}

#[test]
fn az_09_counts_what_the_watch_list_names() {
    let sessions = |n: usize, port: u16| {
        let row = |i: usize| tuple(&host(i % 50), "10.0.0.2", port, 1.0, Action::Allow, Direction::Inbound);
        apart((0..n).map(row).collect())
    };
    assert_eq!(say("AZ-09", "exact", "", &sessions(1_000, 445)), NOTHING);
    assert_eq!(say("AZ-09", "exact", "", &sessions(1_001, 445)), ["TCP/445 (In Allow) 1001 at 0"]);
    assert_eq!(say("AZ-09", "exact", "", &sessions(1_001, 446)), NOTHING);
    assert_eq!(say("AZ-09", "fixed", "", &sessions(1_001, 445)), NOTHING, "a file server and fifty clients");
    let list =
        "watch_list = [{ name = 'Telnet', ports = [23], protocol = 'tcp', action = 'deny', threshold = 2, severity = 'low' }]";
    let one = |n: usize, action: Action| {
        apart((0..n).map(|_| tuple("10.0.0.9", "10.0.0.2", 23, 1.0, action, Direction::Outbound)).collect())
    };
    assert_eq!(say("AZ-09", "fixed", list, &one(2, Action::Deny)), NOTHING);
    assert_eq!(say("AZ-09", "fixed", list, &one(3, Action::Deny)), ["10.0.0.9 TCP/23 (Out Deny) 3 at 0"]);
    assert_eq!(say("AZ-09", "fixed", list, &one(3, Action::Allow)), NOTHING);
}

#[test]
fn az_14_exact_is_silent_on_flow_logs_and_fixed_counts_connections() {
    let refused = |source: &str, n: usize| apart((0..n).map(|_| knock(source, "10.0.0.2", TCP, 3_389, 1.0)).collect());
    assert_eq!(say("AZ-14", "exact", "", &refused("192.0.2.9", 24)), NOTHING);
    assert_eq!(say("AZ-14", "exact", "", &refused("192.0.2.9", 25)), ["192.0.2.9 port 3389 25 at 0"]);
    assert_eq!(say("AZ-14", "exact", "", &refused("10.0.0.9", 25)), NOTHING, "private sources are not looked at");
    let azure: Vec<_> = (0..99).map(|_| denied("192.0.2.9", "10.0.0.2", 3_389, 1.0)).collect();
    assert_eq!(say("AZ-14", "exact", "", &azure), NOTHING, "what policy denied is not counted, and nothing else fails");
    let guesses = |n: usize| apart((0..n).map(|i| talk("10.0.0.9", "10.0.0.2", TCP, 3_389, i as f64, 5_000)).collect());
    assert_eq!(say("AZ-14", "fixed", "", &guesses(24)), NOTHING);
    assert_eq!(say("AZ-14", "fixed", "", &guesses(25)), ["10.0.0.9 > 10.0.0.2 port 3389 25 at 0"]);
    let session: Vec<_> = (0..60).map(|i| talk("10.0.0.9", "10.0.0.2", TCP, 3_389, f64::from(i), 5_000)).collect();
    assert_eq!(say("AZ-14", "fixed", "", &session), NOTHING, "sixty slices of one connection");
}

#[test]
fn az_16_and_az_17_judge_half_minutes() {
    let ports = |n: u16, secs: f64| {
        (0..n).map(|i| knock("10.0.0.9", "10.0.1.1", TCP, i + 1, secs + f64::from(i) / 1_000.0)).collect::<Vec<_>>()
    };
    for variant in ["exact", "fixed"] {
        assert_eq!(say("AZ-16", variant, "", &ports(100, 30.0)), NOTHING);
        assert_eq!(say("AZ-16", variant, "", &ports(101, 30.0)), ["10.0.0.9 > 10.0.1.1 101 at 30"]);
        assert_eq!(say("AZ-16", variant, "", &ports(101, 29.95)), NOTHING, "fifty on one side of the edge");
        assert_eq!(say("AZ-16", variant, "exclude_sources = ['10.0.0.9']", &ports(101, 30.0)), NOTHING, "a known scanner");
    }
    let hosts = |n: usize, port: u16| (0..n).map(|i| knock("10.0.0.9", &host(i), TCP, port, 1.0)).collect::<Vec<_>>();
    for (variant, subject) in [("exact", "10.0.0.9 port 22 201 at 0"), ("fixed", "10.0.0.9 TCP/22 201 at 0")] {
        assert_eq!(say("AZ-17", variant, "", &hosts(200, 22)), NOTHING);
        assert_eq!(say("AZ-17", variant, "", &hosts(201, 22)), [subject]);
        assert_eq!(say("AZ-17", variant, "", &hosts(201, 443)), NOTHING);
    }
    assert_eq!(say("AZ-17", "exact", "", &hosts(3_000, 22)), ["10.0.0.9 port 22 3000 at 0"], "a set is counted exactly");
    let poller: Vec<_> = (0..300).map(|i| talk("10.0.0.9", &host(i), UDP, 161, 1.0, 200)).collect();
    assert_eq!(say("AZ-17", "fixed", "", &poller), NOTHING, "a poller that is answered");
}

#[test]
fn az_22_exact_wants_two_triples_and_fixed_wants_many_denials() {
    let one: Vec<_> = (0..9).map(|_| denied("192.0.2.9", "10.0.0.2", 22, 1.0)).collect();
    assert_eq!(say("AZ-22", "exact", "", &one), NOTHING, "one result is not more than one");
    let two: Vec<_> = one.iter().cloned().chain([denied("192.0.2.8", "10.0.0.2", 22, 3_599.0)]).collect();
    assert_eq!(say("AZ-22", "exact", "", &two), ["192.0.2.8 > 10.0.0.2 TCP 1 at 0", "192.0.2.9 > 10.0.0.2 TCP 9 at 0"]);
    let next: Vec<_> = one.iter().cloned().chain([denied("192.0.2.8", "10.0.0.2", 22, 3_600.0)]).collect();
    assert_eq!(say("AZ-22", "exact", "", &next), NOTHING, "the other one is in another hour");
    let many = |n: usize| apart((0..n).map(|_| denied("192.0.2.9", "10.0.0.2", 22, 1.0)).collect());
    assert_eq!(say("AZ-22", "fixed", "", &many(49)), NOTHING);
    assert_eq!(say("AZ-22", "fixed", "", &many(50)), ["192.0.2.9 > 10.0.0.2 TCP 50 at 0"]);
    let refused = |port: u16| FlowRecord {
        start: [at(1.0); 2],
        tcp_flags: [tcp::SYN, tcp::RST | tcp::ACK],
        ..knock("10.0.0.9", "10.0.0.2", TCP, port, 1.0)
    };
    let down = apart((0..400).map(|_| refused(8_080)).collect());
    assert_eq!(say("AZ-22", "fixed", "", &down), NOTHING, "a service that is down refuses everybody");
    let closed = |ports: u16| apart((1..=ports).map(refused).collect());
    assert_eq!(say("AZ-22", "fixed", "", &closed(49)), NOTHING);
    assert_eq!(say("AZ-22", "fixed", "", &closed(50)), ["10.0.0.9 > 10.0.0.2 TCP 50 at 0"]);
}

#[test]
fn az_23_fires_from_six_hundred_ports_and_the_exact_form_wants_as_many_of_its_own() {
    let scan = |n: u16, own: u16| {
        let row = |i: u16| FlowRecord { source_port: 20_000 + i % own, ..knock("192.0.2.9", "10.0.1.1", TCP, 10_000 + i, 1.0) };
        (0..n).map(row).collect::<Vec<_>>()
    };
    assert_eq!(say("AZ-23", "exact", "", &scan(599, 599)), NOTHING);
    assert_eq!(say("AZ-23", "exact", "", &scan(600, 600)), ["192.0.2.9 600 at 0"]);
    assert_eq!(say("AZ-23", "exact", "", &scan(600, 599)), NOTHING, "too few source ports");
    assert_eq!(say("AZ-23", "fixed", "", &scan(599, 1)), NOTHING);
    assert_eq!(say("AZ-23", "fixed", "", &scan(600, 1)), ["192.0.2.9 600 at 0"]);
}

#[test]
fn az_24_tells_contacts_with_known_bad_addresses() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("bad.txt");
    std::fs::write(&path, "# bad\n198.51.100.0/24\n").expect("a file");
    let extra = format!("indicators = '{}'", path.display());
    let records = [
        talk("10.0.0.1", "198.51.100.7", TCP, 443, 1.0, 900),
        talk("10.0.0.1", "203.0.113.7", TCP, 443, 1.0, 900),
        knock("198.51.100.9", "10.0.0.1", TCP, 22, 1.0),
    ];
    assert_eq!(say("AZ-24", "exact", &extra, &records), ["10.0.0.1 > 198.51.100.7 1 at 0", "198.51.100.9 > 10.0.0.1 1 at 0"]);
    assert_eq!(say("AZ-24", "fixed", &extra, &records), ["10.0.0.1 > 198.51.100.7 1 at 0"]);
    assert_eq!(say("AZ-24", "exact", "", &records), NOTHING);
    let error = RuleFile::parse("r.toml".as_ref(), "[AZ-24]\nindicators = '/nowhere/at/all'\n").expect_err("no file");
    assert!(error.to_string().starts_with("r.toml:2:1: AZ-24.indicators: cannot read /nowhere/at/all"), "{error}");
}

#[test]
fn az_04_exact_draws_the_five_widest_and_fixed_tells_a_rise() {
    let mut records = Vec::new();
    for source in 1..=7_usize {
        // Source 1 reaches one host, source 7 seven, all within the first five minutes; the first again in the second.
        records.extend((1..=source).map(|i| talk(&format!("10.0.0.{source}"), &host(i), TCP, 443, 1.0, 900)));
        records.push(talk(&format!("10.0.0.{source}"), &host(1), TCP, 443, 301.0, 900));
    }
    let drawn: Vec<String> =
        (3..=7).map(|i| format!("10.0.0.{i} {i} at 0")).chain((3..=7).map(|i| format!("10.0.0.{i} 1 at 300"))).collect();
    assert_eq!(say("AZ-04", "exact", "", &records), drawn);

    let rise = |usual: usize, last: usize| {
        let mut records: Vec<FlowRecord> = Vec::new();
        for window in 0..4 {
            let hosts = if window == 3 { last } else { usual };
            records.extend((0..hosts).map(|i| talk("10.0.0.9", &host(i), TCP, 443, f64::from(window) * 300.0, 900)));
        }
        records
    };
    assert_eq!(say("AZ-04", "fixed", "", &rise(10, 100)), NOTHING);
    assert_eq!(say("AZ-04", "fixed", "", &rise(10, 101)), ["10.0.0.9 101 at 900"]);
    assert_eq!(say("AZ-04", "fixed", "", &rise(300, 400)), NOTHING, "a resolver always speaks to many");
}

/// Connections of `source` to one public host, at `times`, each in a beginning and an end.
fn calls(source: &str, times: impl IntoIterator<Item = f64>) -> Vec<FlowRecord> {
    let mut records = Vec::new();
    for (i, secs) in times.into_iter().enumerate() {
        let whole = FlowRecord { source_port: 10_000 + i as u16, ..talk(source, "198.51.100.7", TCP, 443, secs, 900) };
        records.push(whole);
    }
    records
}

#[test]
fn az_11_exact_fires_on_a_lone_beacon_and_not_beside_other_traffic_but_fixed_does() {
    // 61 calls from 10:00:00 to 11:00:00: 60 times of 60 s, all of them begun in the hour.
    let beacon = calls("10.0.0.9", (0..=60).map(|i| f64::from(i) * 60.0));
    assert_eq!(say("AZ-11", "exact", "", &beacon), ["10.0.0.9 > 198.51.100.7 port 443 100 at 0"]);
    assert_eq!(say("AZ-12", "exact", "", &beacon).len(), 1);
    let day = -36_000; // ten o'clock is ten hours into the day
    assert_eq!(say("AZ-11", "fixed", "", &beacon), [format!("10.0.0.9 > 198.51.100.7 TCP/443 100 at {day}")]);

    let mut busy = beacon.clone();
    busy.extend(
        (0..60).map(|i| talk("10.0.0.9", "203.0.113.5", TCP, 443, f64::from(i) * 60.0 + f64::from(i * 7 % 50) + 5.0, 900)),
    );
    assert_eq!(say("AZ-11", "exact", "", &busy), NOTHING, "the host does something else, and the rhythm is gone");
    assert_eq!(say("AZ-11", "fixed", "", &busy).len(), 1);
    busy.reverse();
    assert_eq!(say("AZ-11", "fixed", "", &busy).len(), 1, "in whatever order");
}

#[test]
fn az_11_counts_sixteen_equal_times_and_az_12_thirty_one() {
    let beacon = |n: u32, period: f64| calls("10.0.0.9", (0..=n).map(|i| f64::from(i) * period));
    assert_eq!(say("AZ-11", "exact", "", &beacon(15, 100.0)), NOTHING);
    assert_eq!(say("AZ-11", "exact", "", &beacon(16, 100.0)).len(), 1);
    assert_eq!(say("AZ-11", "exact", "", &beacon(40, 10.0)), NOTHING, "ten seconds are too short");
    assert_eq!(say("AZ-11", "exact", "", &beacon(40, 11.0)).len(), 1);
    assert_eq!(say("AZ-12", "exact", "", &beacon(30, 60.0)), NOTHING);
    assert_eq!(say("AZ-12", "exact", "", &beacon(31, 60.0)).len(), 1);
    // 20 times, 16 of them equal: exactly 80 % is not above it.
    let share = |odd: usize| {
        let mut secs = 0.0;
        let times = (0..=20).map(move |i| {
            let now = secs;
            secs += if i < odd { 20.0 + i as f64 } else { 60.0 };
            now
        });
        calls("10.0.0.9", times)
    };
    assert_eq!(say("AZ-11", "exact", "", &share(4)), NOTHING);
    assert_eq!(say("AZ-11", "exact", "", &share(3)), ["10.0.0.9 > 198.51.100.7 port 443 85 at 0"]);
}

#[test]
fn az_11_fixed_finds_jitter_and_long_periods_and_leaves_chance_alone() {
    // A reproducible number from 0 to 1 for each call.
    let chance = |i: u32| f64::from(i.wrapping_mul(2_654_435_761) >> 16 & 0xffff) / 65_536.0;
    let walk = |n: u32, gap: &dyn Fn(u32) -> f64| {
        let mut secs = -36_000.0;
        let times: Vec<f64> = (0..n)
            .map(|i| {
                secs += gap(i);
                secs
            })
            .collect();
        calls("10.0.0.9", times)
    };
    let fires = |records: &[FlowRecord]| !say("AZ-11", "fixed", "", records).is_empty();
    assert!(fires(&walk(60, &|i| 300.0 * (0.7 + 0.6 * chance(i)))), "five minutes with 30 % of jitter");
    assert!(fires(&walk(20, &|_| 3_600.0)), "once an hour");
    assert!(!fires(&walk(400, &|i| -120.0 * (1.0 - chance(i)).ln())), "calls by chance, every two minutes on average");
    assert!(!fires(&walk(60, &|i| if i % 6 == 0 { 900.0 } else { 1.0 })), "pages of a browser");
    assert!(!fires(&walk(100, &|_| 20.0)), "half an hour of a steady test");
}
