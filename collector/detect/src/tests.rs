//! What the rules find, and what they leave alone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FORWARD, FlowEndReason, FlowRecord, FlowState, REVERSE, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::*;

/// 2026-11-21T10:00:00Z, on every window's edge.
pub(super) const TEN: i64 = 1_795_255_200;

pub(super) fn at(secs: f64) -> Timestamp {
    Timestamp::from_nanos(TEN * 1_000_000_000 + (secs * 1e9) as i64)
}

pub(super) fn host(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

/// A whole flow with traffic both ways: a conversation.
pub(super) fn talk(source: &str, destination: &str, protocol: u8, port: u16, secs: f64, octets: u64) -> FlowRecord {
    let flags = if protocol == protocol::TCP { tcp::SYN | tcp::ACK | tcp::PSH | tcp::FIN } else { 0 };
    FlowRecord {
        state: FlowState::End,
        end_reason: FlowEndReason::EndOfFlow,
        source: host(source),
        destination: host(destination),
        source_port: 40_000,
        destination_port: port,
        protocol,
        packets: [5, 5],
        octets: [octets / 2, octets - octets / 2],
        start: [at(secs), at(secs)],
        end: [at(secs), at(secs)],
        tcp_flags: [flags; 2],
        initial_tcp_flags: [flags & tcp::SYN, flags & (tcp::SYN | tcp::ACK)],
        ..FlowRecord::default()
    }
}

/// An opening that nobody answered, as announced within a second.
pub(super) fn knock(source: &str, destination: &str, protocol: u8, port: u16, secs: f64) -> FlowRecord {
    let flags = if protocol == protocol::TCP { tcp::SYN } else { 0 };
    FlowRecord {
        state: if protocol == protocol::UDP { FlowState::End } else { FlowState::Begin },
        packets: [u64::from(protocol == protocol::UDP), 0],
        octets: [0, 0],
        start: [at(secs), Timestamp::NONE],
        tcp_flags: [flags, 0],
        initial_tcp_flags: [flags, 0],
        ..talk(source, destination, protocol, port, secs, 0)
    }
}

pub(super) fn rules(text: &str) -> RuleFile {
    RuleFile::parse("test.toml".as_ref(), text).expect("rules of a test")
}

pub(super) fn replay(rules: &RuleFile, records: &[FlowRecord]) -> (Vec<Finding>, Detection) {
    let mut detection = Detection::new(rules, Mode::Replay);
    records.iter().for_each(|record| detection.observe("tap", record));
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    (findings, detection)
}

/// Streams `records`, each after a poll at its time; goes on from a snapshot before the one with the number `restart`.
pub(super) fn stream(rules: &RuleFile, records: &[FlowRecord], restart: Option<usize>) -> Vec<Finding> {
    let mut detection = Detection::new(rules, Mode::Stream);
    let mut findings = Vec::new();
    for (number, record) in records.iter().enumerate() {
        // A stream does not believe what is minutes ahead of its last poll.
        detection.poll(record.first(), &mut findings);
        if restart == Some(number) {
            let bytes = detection.snapshot();
            detection = Detection::new(rules, Mode::Stream);
            assert_eq!(detection.restore(&bytes).expect("our own"), Vec::<String>::new());
        }
        detection.observe("tap", record);
    }
    detection.finish(&mut findings);
    findings
}

/// `rule variant subject value`, of every finding by default rules and both forms of them.
fn found(records: &[FlowRecord]) -> Vec<String> {
    let both = rules("[AZ-01]\nvariants = ['exact', 'fixed']\n[AZ-02]\nvariants = ['exact', 'fixed']\n");
    let name = |finding: &Finding| {
        format!("{} {} {} {}", finding.rule.id, finding.rule.variant, finding.subject, finding.evidence.value)
    };
    replay(&both, records).0.iter().map(name).collect()
}

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;

#[test]
fn seven_hosts_are_a_scan_and_six_are_not() {
    let sweep =
        |hosts: u8| (1..=hosts).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, f64::from(i))).collect::<Vec<_>>();
    assert_eq!(found(&sweep(6)), Vec::<String>::new());
    assert_eq!(found(&sweep(7)), ["AZ-01 exact 10.0.0.9 7", "AZ-01 fixed 10.0.0.9 7"]);
}

#[test]
fn peers_that_are_each_gone_from_another_port_are_no_sweep_unless_they_are_many() {
    let try_at = |host: u16, port: u16| knock("10.0.0.9", &format!("10.0.1.{host}"), UDP, 20_000 + port, f64::from(host));
    let peers = |hosts: u16| (1..=hosts).map(|host| try_at(host, host)).collect::<Vec<_>>();
    assert_eq!(found(&peers(24)), Vec::<String>::new(), "four times six");
    assert_eq!(found(&peers(25)), ["AZ-01 fixed 10.0.0.9 25"]);
    // Seven hosts on one service are a sweep, whatever else is tried.
    let with = |hosts: u16| peers(10).into_iter().chain((11..11 + hosts).map(|host| try_at(host, 5))).collect::<Vec<_>>();
    assert_eq!(found(&with(5)), Vec::<String>::new(), "with the peer that was there");
    assert_eq!(found(&with(6)), ["AZ-01 fixed 10.0.0.9 16"]);
}

#[test]
fn four_ports_are_a_scan_and_three_are_not() {
    let scan = |ports: u16| (1..=ports).map(|port| knock("10.0.0.9", "10.0.1.1", TCP, port, 1.0)).collect::<Vec<_>>();
    assert_eq!(found(&scan(3)), Vec::<String>::new());
    assert_eq!(found(&scan(4)), ["AZ-02 exact 10.0.0.9 > 10.0.1.1 4", "AZ-02 fixed 10.0.0.9 > 10.0.1.1 4"]);
}

#[test]
fn a_minute_ends_at_its_sixtieth_second() {
    let scan = |times: [f64; 4]| {
        let ports = times.into_iter().zip(1..);
        ports.map(|(secs, port)| knock("10.0.0.9", "10.0.1.1", TCP, port, secs)).collect::<Vec<_>>()
    };
    assert_eq!(found(&scan([59.0, 59.5, 60.0, 60.5])), Vec::<String>::new());
    assert_eq!(found(&scan([59.0, 59.5, 59.9, 59.999])).len(), 2);
    assert_eq!(found(&scan([60.0, 60.1, 119.0, 119.999])).len(), 2);
}

#[test]
fn the_exact_form_has_azures_blind_spots_and_the_fixed_form_has_not() {
    let scan = |source: &str, destination: &str, protocol, first: u16| {
        found(&(first..first + 4).map(|port| knock(source, destination, protocol, port, 1.0)).collect::<Vec<_>>())
    };
    assert_eq!(scan("10.0.0.9", "10.0.1.1", TCP, 9_996).len(), 2, "ports to 9999");
    assert_eq!(scan("10.0.0.9", "10.0.1.1", TCP, 9_997), ["AZ-02 fixed 10.0.0.9 > 10.0.1.1 4"], "10000 is one too many");
    assert_eq!(scan("192.0.2.9", "10.0.1.1", TCP, 1), ["AZ-02 fixed 192.0.2.9 > 10.0.1.1 4"], "from outside");
    assert_eq!(scan("10.0.0.9", "10.0.1.1", UDP, 1), ["AZ-02 fixed 10.0.0.9 > 10.0.1.1 4"], "UDP");
    assert_eq!(scan("fd00::9", "fd00::1", TCP, 1), ["AZ-02 fixed fd00::9 > fd00::1 4"], "IPv6");
    assert_eq!(scan("10.0.0.9", "239.0.0.1", UDP, 1), Vec::<String>::new(), "multicast");
    assert_eq!(scan("10.0.0.9", "10.0.1.1", UDP, 33_434), Vec::<String>::new(), "traceroute");
}

#[test]
fn ordinary_traffic_stays_silent() {
    let silent = |what: &str, records: Vec<FlowRecord>| {
        let (findings, _) = replay(&RuleFile::default(), &records);
        assert!(findings.is_empty(), "{what}: {}", findings[0].sentence);
    };
    let client = |i: usize| format!("10.{}.{}.7", i / 250, i % 250);
    silent("load test", (0..5_000).map(|i| talk("10.0.0.1", "10.0.0.2", TCP, 443, i as f64 / 100.0, 3_000)).collect());
    silent(
        "load test against a server that refuses",
        (0..5_000).map(|i| knock("10.0.0.1", "10.0.0.2", TCP, 443, i as f64 / 100.0)).collect(),
    );
    silent(
        "steady backup, an hour long",
        (0..60).map(|i| talk("10.0.0.1", "10.0.0.2", TCP, 9_102, f64::from(i) * 60.0, 2_000_000_000)).collect(),
    );
    silent("DNS server asked by many", (0..500).map(|i| talk(&client(i), "10.0.0.53", UDP, 53, 1.0, 300)).collect());
    silent("resolver that asks many", (0..500).map(|i| talk("10.0.0.53", &client(i), UDP, 53, 1.0, 300)).collect());
    silent("browser", (0..60).map(|i| talk("10.0.0.1", &format!("203.0.113.{i}"), TCP, 443, 1.0, 90_000)).collect());
    let backscatter = |flags: u16| {
        let record = |i| FlowRecord {
            tcp_flags: [flags, 0],
            initial_tcp_flags: [flags, 0],
            ..knock("198.51.100.80", &client(i), TCP, 1_024 + i as u16, 1.0)
        };
        (0..500).map(record).collect()
    };
    silent("backscatter, SYN-ACK", backscatter(tcp::SYN | tcp::ACK));
    silent("backscatter, RST", backscatter(tcp::RST));
    silent(
        "answers seen one-sided",
        (0..500)
            .map(|i| FlowRecord { start: [Timestamp::NONE, at(1.0)], ..knock("10.0.0.53", &client(i), UDP, 5_353, 1.0) })
            .collect(),
    );
}

#[test]
fn the_hand_series_deviates_by_one_point_eight() {
    let series = |scale: u64| -> Vec<FlowRecord> {
        let volumes = [10, 10, 10, 70].into_iter().zip([0.0, 300.0, 600.0, 900.0]);
        volumes.map(|(volume, secs)| talk("10.0.0.1", "10.0.0.2", TCP, 445, secs, volume * scale)).collect()
    };
    let (findings, _) = replay(&rules("[AZ-03]\nvariants = ['exact']\n"), &series(1));
    assert_eq!(findings.len(), 1, "the largest deviation only");
    let evidence = &findings[0].evidence;
    assert_eq!((evidence.value, evidence.mean_octets, evidence.octets), (1.8, Some(25.0), Some(70)));
    assert_eq!(findings[0].window.start, at(900.0));

    let fixed = |threshold: f64| rules(&format!("[AZ-03]\nthreshold_means = {threshold}\n"));
    assert_eq!(replay(&fixed(1.8), &series(1_000_000)).0.len(), 1);
    assert_eq!(replay(&fixed(1.81), &series(1_000_000)).0.len(), 0);
    assert_eq!(replay(&fixed(1.8), &series(100_000)).0.len(), 0, "7 MB are below octets_min");
}

#[test]
fn a_mean_of_zero_has_no_deviation() {
    let empty = [talk("10.0.0.1", "10.0.0.2", TCP, 445, 0.0, 0), talk("10.0.0.1", "10.0.0.2", TCP, 445, 300.0, 0)];
    assert!(replay(&rules("[AZ-03]\nvariants = ['exact']\n"), &empty).0.is_empty());
}

#[test]
fn a_sudden_volume_is_told_with_its_numbers() {
    let mut records: Vec<FlowRecord> =
        (0..6).map(|i| talk("10.0.0.1", "203.0.113.5", TCP, 443, f64::from(i) * 300.0, 1_000_000)).collect();
    records.push(talk("10.0.0.1", "203.0.113.5", TCP, 443, 1_800.0, 64_000_000));
    let (findings, _) = replay(&RuleFile::default(), &records);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].evidence.value, 5.4, "mean 10 MB, (64 - 10) / 10");
    assert_eq!(
        findings[0].sentence,
        "10.0.0.1 exchanged 64.0 MB over TCP/443 in the 300 s from 10:30:00 UTC, 6.4 times its mean of 10.0 MB"
    );
}

/// What a full table added up of the flows from one /24 to one host.
fn aggregate(source: &str, destination: &str, port: u16, secs: f64, octets: u64) -> FlowRecord {
    FlowRecord { prefix_lengths: [24, 32], source_port: 0, ..talk(source, destination, TCP, port, secs, octets) }
}

#[test]
fn an_aggregate_is_no_host_and_no_port_but_its_volume_counts() {
    let silent = |what: &str, records: &[FlowRecord]| assert_eq!(found(records), Vec::<String>::new(), "{what}");
    let unanswered = |i: u8, port| FlowRecord {
        state: FlowState::Begin,
        ..FlowRecord { prefix_lengths: [24, 32], ..knock("10.0.9.0", &format!("10.0.1.{i}"), TCP, port, 1.0) }
    };
    silent("hosts", &(1..=40).map(|i| unanswered(i, 445)).collect::<Vec<_>>());
    silent("ports", &(1..=40).map(|port| unanswered(1, port)).collect::<Vec<_>>());

    let mut records: Vec<FlowRecord> =
        (0..6).map(|i| aggregate("10.0.9.0", "203.0.113.5", 443, f64::from(i) * 300.0, 1_000_000)).collect();
    records.push(aggregate("10.0.9.0", "203.0.113.5", 443, 1_800.0, 64_000_000));
    let (findings, _) = replay(&RuleFile::default(), &records);
    let sentences: Vec<&str> = findings.iter().map(|finding| &*finding.sentence).collect();
    assert_eq!(
        sentences,
        ["10.0.9.0/24 exchanged 64.0 MB over TCP/443 in the 300 s from 10:30:00 UTC, 6.4 times its mean of 10.0 MB"]
    );
}

#[test]
fn sampled_packets_stand_for_those_that_were_left_out() {
    let sampled = |secs: f64, octets: u64| FlowRecord {
        sampling_population: 64,
        ..talk("10.0.0.1", "203.0.113.5", TCP, 443, secs, octets / 64)
    };
    let mut records: Vec<FlowRecord> =
        (0..6).map(|i| talk("10.0.0.1", "203.0.113.5", TCP, 443, f64::from(i) * 300.0, 1_000_000)).collect();
    records.push(sampled(1_800.0, 64_000_000));
    let (findings, _) = replay(&RuleFile::default(), &records);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].evidence.octets, Some(64_000_000), "a million were seen");

    let lone_syns = |i: u8| FlowRecord { sampling_population: 64, ..knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0) };
    let fixed = rules("[AZ-01]\nvariants = ['fixed']\n");
    assert!(replay(&fixed, &(1..=40).map(lone_syns).collect::<Vec<_>>()).0.is_empty(), "their answers may be left out");
}

/// The two halves of `record`, as two fibres show them: each has what its direction says, and neither knows of the other.
fn halves(record: &FlowRecord) -> [FlowRecord; 2] {
    [FORWARD, REVERSE].map(|way| {
        let mut half = FlowRecord { one_sided: true, answered: false, ..record.clone() };
        let other = way ^ 1;
        (half.packets[other], half.octets[other], half.tcp_flags[other], half.initial_tcp_flags[other]) = (0, 0, 0, 0);
        half.start[other] = Timestamp::NONE;
        half
    })
}

#[test]
fn two_fibres_that_were_not_joined_raise_no_alarm_about_ordinary_traffic_and_still_show_a_scan() {
    let fixed = rules("[AZ-01]\nvariants = ['fixed']\n[AZ-02]\nvariants = ['fixed']\n");
    let alarms = |records: &[FlowRecord]| -> Vec<String> {
        let (findings, _) = replay(&fixed, &records.iter().flat_map(halves).collect::<Vec<_>>());
        findings.iter().map(|finding| format!("{} {}", finding.rule.id, finding.subject)).collect()
    };
    let ordinary = (0..3_000_u16).flat_map(|i| {
        let (client, server) = (format!("10.0.0.{}", i % 50 + 1), format!("10.0.{}.{}", i % 7 + 1, i % 200 + 1));
        let secs = f64::from(i) / 10.0;
        let announced = |record: FlowRecord| FlowRecord { state: FlowState::Begin, packets: [0; 2], octets: [0; 2], ..record };
        let over = |record: FlowRecord| FlowRecord { tcp_flags: [0; 2], packets: [0; 2], octets: [0; 2], ..record };
        let web = talk(&client, &server, TCP, 443, secs, 3_000);
        let name = talk(&client, &server, UDP, 53, secs, 200);
        let ping = FlowRecord { icmp_type_code: [0x0800, 0], ..talk(&client, &server, protocol::ICMP, 0, secs, 84) };
        [announced(web.clone()), web.clone(), over(web), announced(name.clone()), name, ping]
    });
    assert_eq!(alarms(&ordinary.collect::<Vec<_>>()), Vec::<String>::new());
    let scan: Vec<FlowRecord> = (1..=7).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, f64::from(i))).collect();
    assert_eq!(alarms(&scan), ["AZ-01 10.0.0.9"]);
    let refused = |port: u16| FlowRecord {
        start: [at(1.0); 2],
        tcp_flags: [tcp::SYN, tcp::RST | tcp::ACK],
        ..knock("10.0.0.9", "10.0.1.1", TCP, port, 1.0)
    };
    assert_eq!(alarms(&(1..=4).map(refused).collect::<Vec<_>>()), ["AZ-02 10.0.0.9 > 10.0.1.1"]);
}

#[test]
fn a_stream_tells_when_the_threshold_is_crossed_then_on_doubling_then_at_the_end() {
    let mut detection = Detection::new(&RuleFile::default(), Mode::Stream);
    let mut told = Vec::new();
    let mut poll = |detection: &mut Detection, now| {
        let mut findings = Vec::new();
        detection.poll(at(now), &mut findings);
        told.extend(findings.into_iter().map(|finding| (finding.stage, finding.evidence.value)));
        std::mem::take(&mut told)
    };
    let knock = |i: u8| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, f64::from(i) / 10.0);
    (1..=6).for_each(|i| detection.observe("tap", &knock(i)));
    assert_eq!(poll(&mut detection, 1.0), []);
    detection.observe("tap", &knock(7));
    assert_eq!(poll(&mut detection, 1.2), [(Stage::Crossed, 7.0)]);
    (1..=13).for_each(|i| detection.observe("tap", &knock(i)));
    assert_eq!(poll(&mut detection, 1.4), []);
    (14..=20).for_each(|i| detection.observe("tap", &knock(i)));
    assert_eq!(poll(&mut detection, 2.2), [(Stage::Grown, 14.0)]);
    assert_eq!(poll(&mut detection, 200.0), [], "the observer may only be quiet");
    assert_eq!(poll(&mut detection, 500.0), [(Stage::Closed, 20.0)], "it is silent for good");
    assert_eq!(detection.watermark(), at(500.0));
}

#[test]
fn a_stream_does_not_close_a_window_that_a_slower_observer_still_fills() {
    let mut detection = Detection::new(&RuleFile::default(), Mode::Stream);
    let mut findings = Vec::new();
    (1..=4).for_each(|i| detection.observe("fast", &knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0)));
    detection.observe("slow", &knock("10.0.0.8", "10.0.1.1", TCP, 445, 0.0));
    detection.observe("fast", &talk("10.0.0.1", "10.0.0.2", TCP, 80, 299.0, 1));
    detection.poll(at(299.0), &mut findings);
    (4..=7).for_each(|i| detection.observe("slow", &knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 2.0)));
    detection.poll(at(299.2), &mut findings);
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].evidence.value, findings[0].evidence.observers.join(" ")), (7.0, "fast slow".to_owned()));
    detection.observe("fast", &knock("10.0.0.9", "10.0.1.1", TCP, 445, 700.0));
    assert_eq!(detection.counters().future, 1, "more than five minutes ahead of the clock");
}

#[test]
fn late_records_and_full_tables_are_counted_and_a_scanner_outlives_the_flood() {
    let few = rules("[AZ-01]\nkeys_max = 16\n[AZ-02]\nvariants = []\n[AZ-03]\nvariants = []\n");
    let mut records: Vec<FlowRecord> = (1..=7).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0)).collect();
    records.extend((0..100).map(|i| knock(&format!("192.0.2.{i}"), "10.0.1.1", TCP, 445, 2.0)));
    records.extend((8..=9).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 3.0)));
    let mut detection = Detection::new(&few, Mode::Stream);
    let mut findings = Vec::new();
    records.iter().for_each(|record| detection.observe("tap", record));
    detection.observe("tap", &knock("10.0.0.9", "10.0.1.1", TCP, 445, 151.0)); // 10:01:00 is 91 s ago
    detection.poll(at(151.0), &mut findings);
    detection.observe("tap", &knock("10.0.0.9", "10.0.1.10", TCP, 445, 59.0));
    detection.poll(at(151.2), &mut findings);
    assert_eq!(findings.last().map(|finding| (finding.stage, finding.evidence.value)), Some((Stage::Closed, 9.0)));
    let state = detection.states().next().expect("one rule");
    assert_eq!((state.late, state.refused, state.keys), (1, 0, 1));
    assert!(state.evicted >= 100 - 16, "{state:?}");

    let scanners =
        |i: u16| (1..=7).map(move |j| knock(&format!("192.0.{}.{}", i / 200, i % 200), &format!("10.0.1.{j}"), TCP, 445, 1.0));
    let (findings, detection) = replay(&few, &(0..257).flat_map(scanners).collect::<Vec<_>>());
    assert_eq!(findings.len(), 256, "sixteen times the keys of a stream");
    assert_eq!(detection.states().next().expect("one rule").refused, 7, "no one that is over the threshold is let go");
}

#[test]
fn a_full_volume_table_lets_the_smallest_go_and_keeps_what_could_fire() {
    let records = |loud: u64| -> Vec<FlowRecord> {
        let quiet = (0..400).map(|port| talk("10.0.0.1", "10.0.0.2", TCP, port, 1.0, 500));
        let loud =
            (0..7).map(|i| talk("10.0.0.1", "10.0.0.2", TCP, 445, i as f64 * 300.0, if i == 6 { loud } else { 1_000_000 }));
        loud.clone().take(1).chain(quiet).chain(loud.skip(1)).collect()
    };
    let few = |variant: &str| {
        rules(&format!("[AZ-03]\nvariants = ['{variant}']\nkeys_max = 16\n[AZ-01]\nvariants = []\n[AZ-02]\nvariants = []\n"))
    };
    let (findings, detection) = replay(&few("fixed"), &records(64_000_000));
    assert_eq!(findings.len(), 1);
    let state = detection.states().next().expect("one rule");
    assert!(state.evicted >= 400 - 256 && state.refused == 0, "{state:?}");
    let (_, detection) = replay(&few("exact"), &records(64_000_000));
    let state = detection.states().next().expect("one rule");
    assert_eq!((state.evicted, state.refused > 0), (0, true), "exact sums let nothing go, so the newest is refused");
}

#[test]
fn a_replay_takes_what_a_sensor_puts_out_only_after_a_pause_of_the_file() {
    let mut records = vec![talk("10.0.0.1", "10.0.0.2", TCP, 443, 10_000.0, 100)];
    records.extend((1..=7).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0)));
    assert_eq!(replay(&RuleFile::default(), &records).0.len(), 1);
}

#[test]
fn excluded_sources_destinations_and_ports_do_not_count() {
    let sweep: Vec<_> = (1..=9).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0)).collect();
    for (exclusion, findings) in [
        ("exclude_sources = ['10.0.0.0/24']", 0),
        ("exclude_destinations = ['10.0.1.8/30']", 1),
        ("exclude_destinations = ['10.0.1.0/29']", 0),
        ("exclude_ports = ['440-450']", 0),
        ("exclude_ports = [446]", 1),
    ] {
        assert_eq!(replay(&rules(&format!("[AZ-01]\n{exclusion}\n")), &sweep).0.len(), findings, "{exclusion}");
    }
}

/// Rows of every kind: a sensor's and a cloud's, on the ports that rules look at, from many source ports.
pub(super) fn mixture(seed: u64, rows: usize) -> Vec<FlowRecord> {
    let mut records = parity::random_rows(seed, rows);
    for (i, record) in records.iter_mut().enumerate() {
        record.source_port = 1_024 + (i * 7_919 % 60_000) as u16;
        match i % 7 {
            0 => record.destination_port = [445, 3_389, 9_150][i / 7 % 3],
            1 => record.destination = host("203.0.113.7"),
            _ => {}
        }
        if i % 3 == 0 {
            let action = if i % 5 == 0 { Action::Deny } else { Action::Allow };
            let direction = if i % 2 == 0 { Direction::Inbound } else { Direction::Outbound };
            let context = Arc::new(CloudContext { observer: Arc::from("0022481A2B3C"), ..CloudContext::default() });
            record.cloud = Some(Box::new(Cloud { origin: Origin::VnetV4, action, direction, context, ..Cloud::default() }));
        }
    }
    records
}

#[test]
fn a_detection_cut_anywhere_and_restored_finds_the_same() {
    // Low thresholds, so that as many rules as possible have something to say about few rows.
    let mut everything = rules(
        "[AZ-04]\nthreshold_hosts = 2\nthreshold_factor = 1.0\n[AZ-05]\nthreshold_ports = 2\n[AZ-06]\nthreshold_hosts = 1\n\
         [AZ-07]\nthreshold_failures = 3\n[AZ-14]\nthreshold_connections = 2\n[AZ-16]\nthreshold_ports = 1\n[AZ-17]\n\
         threshold_hosts = 1\n[AZ-22]\nthreshold_denials = 2\n[AZ-23]\nthreshold_ports = 3\nsource_ports_min = 1\nport_ratio_min = 0.0\n\
         [AZ-11]\nthreshold_events = 2\ngap_secs_ignored = 0\nthreshold_share = 20.0\nspan_secs_min = 0\n",
    );
    everything.set_variants(&[Variant::Exact, Variant::Fixed]);
    for mode in [Mode::Stream, Mode::Replay] {
        for seed in 1..=3 {
            let records = mixture(seed, 900);
            let run = |cut: usize| {
                let mut detection = Detection::new(&everything, mode);
                let mut findings = Vec::new();
                for (number, record) in records.iter().enumerate() {
                    detection.observe("tap", record);
                    if mode == Mode::Stream && number % 50 == 0 {
                        detection.poll(record.start[0].plus(Duration::from_secs(90)), &mut findings);
                    }
                    if number == cut {
                        detection.drain(&mut findings);
                        let state = detection.snapshot();
                        detection = Detection::new(&everything, mode);
                        assert_eq!(detection.restore(&state).expect("our own"), Vec::<String>::new());
                    }
                }
                detection.finish(&mut findings);
                // They are put in order whenever they are handed over, which the cut does once more.
                findings.sort_by(Finding::order);
                // Memory is not part of what is known: a table that was restored has grown less.
                let states: Vec<State> = detection.states().map(|state| State { bytes: 0, ..state.clone() }).collect();
                (findings, states, detection.counters())
            };
            let whole = run(usize::MAX);
            let fired: BTreeSet<&str> = whole.0.iter().map(|finding| finding.rule.id).collect();
            assert!(fired.len() > 3, "{fired:?}");
            // Of a replay the rows that still wait for their turn are not in a snapshot: it is not saved, it is run again.
            let cuts: &[usize] = if mode == Mode::Stream { &[0, 17, 450, 899] } else { &[] };
            for &cut in cuts {
                assert!(run(cut) == whole, "{mode:?} {seed} cut at {cut}");
            }
        }
    }
}

#[test]
fn a_detector_whose_settings_changed_starts_anew_and_the_others_go_on() {
    let knocks = |detection: &mut Detection, hosts: std::ops::RangeInclusive<u8>| {
        hosts.for_each(|i| detection.observe("tap", &knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0)));
    };
    let mut detection = Detection::new(&RuleFile::default(), Mode::Stream);
    knocks(&mut detection, 1..=4);
    let state = detection.snapshot();
    let mut detection = Detection::new(&rules("[AZ-02]\nthreshold_ports = 4\n"), Mode::Stream);
    assert_eq!(detection.restore(&state).expect("our own"), ["AZ-02 fixed"]);
    knocks(&mut detection, 5..=7);
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    assert_eq!(findings.iter().map(|finding| finding.rule.id).collect::<Vec<_>>(), ["AZ-01", "AZ-01"], "crossed, then closed");

    let mut broken = state;
    broken.truncate(9);
    assert!(Detection::new(&RuleFile::default(), Mode::Stream).restore(&broken).is_err());
}

#[test]
fn a_replay_does_not_mind_files_that_go_back_by_hours() {
    let mut records: Vec<FlowRecord> = (1..=4).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 1.0)).collect();
    records.extend((0..20_000).map(|i| talk("10.0.0.1", "10.0.0.2", TCP, 443, f64::from(i), 100)));
    records.extend((5..=7).map(|i| knock("10.0.0.9", &format!("10.0.1.{i}"), TCP, 445, 2.0)));
    assert_eq!(replay(&RuleFile::default(), &records).0.len(), 1);
}
