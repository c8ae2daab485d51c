//! Scans that must be told, and innocent traffic that must not.

use spanwatch_common::flow::{FORWARD, FlowEndReason, FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::time::Timestamp;

use crate::roles::Role;
use crate::rules::RuleFile;
use crate::tests::{at, host, knock, stream, talk};
use crate::{Detection, Finding, Mode, Roles, Stage};

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3_600.0;
const DAY: f64 = 86_400.0;

fn rules() -> RuleFile {
    let mut rules = RuleFile::default();
    let ids: Vec<String> = (1..=6).map(|number| format!("ND-{number:02}")).collect();
    rules.keep_only(&ids).expect("our own");
    rules
}

fn findings(records: &[FlowRecord], roles: Roles) -> Vec<Finding> {
    let mut detection = Detection::new(&rules(), Mode::Replay).with_roles(roles);
    records.iter().for_each(|record| detection.observe("tap", record));
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    findings
}

/// `rule subject value` of each first finding.
fn told(records: &[FlowRecord]) -> Vec<String> {
    told_with(records, Roles::default())
}

fn told_with(records: &[FlowRecord], roles: Roles) -> Vec<String> {
    let mut findings = findings(records, roles);
    findings.retain(|finding| finding.stage == Stage::Crossed);
    findings.iter().map(|finding| format!("{} {} {}", finding.rule.id, finding.subject, finding.evidence.value)).collect()
}

fn silent(what: &str, records: &[FlowRecord]) {
    let findings = findings(records, Roles::default());
    assert!(findings.is_empty(), "{what}: {}", findings[0].sentence);
}

/// A source of `role` until long after the tests.
fn role(source: &str, role: Role) -> Roles {
    Roles::default().with(source.parse().expect("a prefix"), role, at(1_000.0 * DAY))
}

/// Refused with RST.
fn refused(source: &str, destination: &str, port: u16, secs: f64) -> FlowRecord {
    FlowRecord { start: [at(secs); 2], tcp_flags: [tcp::SYN, tcp::RST | tcp::ACK], ..knock(source, destination, TCP, port, secs) }
}

/// The `i`th host of a rack, or of many racks.
fn rack(i: usize) -> String {
    format!("10.1.{}.{}", i / 250, i % 250 + 1)
}

fn ports(source: &str, count: u16, gap: f64) -> Vec<FlowRecord> {
    (0..count).map(|i| knock(source, "10.0.1.1", TCP, 1_000 + i, f64::from(i) * gap)).collect()
}

fn hosts(source: &str, count: usize, gap: f64) -> Vec<FlowRecord> {
    (0..count).map(|i| knock(source, &rack(i), TCP, 445, i as f64 * gap)).collect()
}

fn blocks(source: &str, count: usize, gap: f64) -> Vec<FlowRecord> {
    (0..count).map(|i| knock(source, &rack(i % 7), TCP, 1_000 + i as u16, i as f64 * gap)).collect()
}

#[test]
fn twenty_five_failed_targets_in_a_burst_are_told_and_twenty_four_are_not() {
    type Scan = fn(&str, usize) -> Vec<FlowRecord>;
    let scans: [(&str, Scan); 3] = [
        ("ND-01 10.0.0.9 > 10.0.1.1 25", |source, count| ports(source, count as u16, 0.1)),
        ("ND-02 10.0.0.9 TCP/445 25", |source, count| hosts(source, count, 0.1)),
        ("ND-03 10.0.0.9 25", |source, count| blocks(source, count, 0.1)),
    ];
    for (expected, scan) in scans {
        assert_eq!(told(&scan("10.0.0.9", 24)), Vec::<String>::new(), "{expected}");
        assert_eq!(told(&scan("10.0.0.9", 25)), [expected]);
        assert_eq!(told(&scan("10.0.0.9", 300)).len(), 1, "one alert for one scan");
    }
}

#[test]
fn a_fast_scan_is_told_with_the_record_of_the_twenty_fifth_failure() {
    let mut detection = Detection::new(&rules(), Mode::Stream);
    let mut found = Vec::new();
    for record in ports("10.0.0.9", 25, 0.1) {
        assert!(found.is_empty());
        detection.observe("tap", &record);
        detection.poll(record.start[FORWARD], &mut found);
    }
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        finding.sentence,
        "10.0.0.9 tried 25 ports of 10.0.1.1 in 3 s from 10:00:00 UTC (SYN scan): 25 never answered; 25 in 10 s are told; TCP/1000, \
         TCP/1001, TCP/1002, TCP/1003, TCP/1004, …"
    );
    assert_eq!(finding.evidence.rows.len(), 20);
    assert_eq!((finding.evidence.attempts, finding.evidence.failures), (Some(25), Some(25)));
    assert_eq!(finding.evidence.series.last(), Some(&25.0));
}

#[test]
fn what_a_scan_has_come_to_is_told_when_it_pauses_for_ten_seconds() {
    let mut detection = Detection::new(&rules(), Mode::Stream);
    let mut found = Vec::new();
    // 40 within 4 s, 8 more a little later; beside them somebody who keeps time going.
    let scan = ports("10.0.0.9", 48, 0.1).into_iter().enumerate();
    let scan = scan.map(|(i, record)| {
        knock("10.0.0.9", "10.0.1.1", TCP, record.destination_port, i as f64 / 10.0 + if i < 40 { 0.0 } else { 20.0 })
    });
    let clock = (0..100).map(|i| talk("10.0.0.1", "10.0.0.2", TCP, 443, f64::from(i), 900));
    let mut records: Vec<FlowRecord> = scan.chain(clock).collect();
    records.sort_by_key(|record| record.start[FORWARD]);
    for record in records {
        detection.observe("tap", &record);
        detection.poll(record.start[FORWARD], &mut found);
    }
    let told: Vec<(Stage, f64)> = found.iter().map(|finding| (finding.stage, finding.evidence.value)).collect();
    assert_eq!(told, [(Stage::Crossed, 25.0), (Stage::Closed, 40.0), (Stage::Closed, 48.0)]);
}

#[test]
fn slow_scans_are_told_within_a_day() {
    let first = |rule: &str, records: &[FlowRecord]| {
        let findings = findings(records, Roles::default());
        findings.iter().find(|finding| finding.rule.id == rule).map(|finding| finding.last)
    };
    for (what, gap, count, expected) in
        [("one probe per 15 s", 15.0, 200, 39.0 * 15.0), ("one probe per 10 min", 600.0, 144, 39.0 * 600.0)]
    {
        assert_eq!(first("ND-01", &ports("10.0.0.9", count, gap)), Some(at(expected)), "{what}, ports: with the 40th");
        assert_eq!(first("ND-02", &hosts("10.0.0.9", usize::from(count), gap)), Some(at(expected)), "{what}, hosts");
    }
    assert_eq!(first("ND-01", &ports("192.0.2.9", 10, 8_640.0)), Some(at(9.0 * 8_640.0)), "from outside the tenth within a day");
    silent("nine from outside", &ports("192.0.2.9", 9, 600.0));
    silent("thirty-nine from inside", &ports("10.0.0.9", 24, 1.0));
}

#[test]
fn what_is_too_slow_for_a_day_comes_together_in_a_week() {
    let crawl = |count: u16| ports("10.0.0.9", count, 2.7 * HOUR);
    assert_eq!(told(&crawl(59)), Vec::<String>::new());
    assert_eq!(told(&crawl(60)), ["ND-05 10.0.0.9 60"]);
}

#[test]
fn the_random_walk_tells_of_first_contacts_to_which_nobody_comes_back() {
    let strays =
        |count: usize| (0..=count).map(|i| knock("10.0.0.9", &rack(i), TCP, 445, i as f64 * 20.0 * MINUTE)).collect::<Vec<_>>();
    assert_eq!(told(&strays(24)), Vec::<String>::new());
    let findings = findings(&strays(25), Roles::default());
    assert_eq!(findings[0].rule.id, "ND-04");
    assert!(
        findings[0].sentence.starts_with("10.0.0.9 tried 26 targets (26 hosts, 1 services) in 8 h"),
        "{}",
        findings[0].sentence
    );
}

#[test]
fn every_kind_of_probe_is_named() {
    let probe = |initial: u16, forward: u16, reverse: Option<u16>| {
        (0..30_u16)
            .map(|i| FlowRecord {
                start: [at(f64::from(i) / 10.0), if reverse.is_some() { at(f64::from(i) / 10.0) } else { Timestamp::NONE }],
                initial_tcp_flags: [initial, 0],
                tcp_flags: [forward, reverse.unwrap_or(0)],
                ..knock("10.0.0.9", "10.0.1.1", TCP, 1 + i, 0.0)
            })
            .collect::<Vec<_>>()
    };
    let name = |records: &[FlowRecord]| {
        let findings = findings(records, Roles::default());
        findings.first().map_or_else(String::new, |finding| {
            finding.sentence.split_once('(').and_then(|(_, rest)| rest.split_once(" scan)")).unwrap_or_default().0.to_owned()
        })
    };
    const XMAS: u16 = tcp::FIN | tcp::PSH | tcp::URG;
    for (expected, records) in [
        ("SYN", probe(tcp::SYN, tcp::SYN, Some(tcp::RST | tcp::ACK))),
        ("half-open SYN", probe(tcp::SYN, tcp::SYN | tcp::RST, Some(tcp::SYN | tcp::ACK))),
        ("connect", probe(tcp::SYN, tcp::SYN | tcp::ACK | tcp::RST, Some(tcp::SYN | tcp::ACK))),
        ("NULL (no flags)", probe(0, 0, None)),
        ("FIN", probe(tcp::FIN, tcp::FIN, Some(tcp::RST | tcp::ACK))),
        ("XMAS (FIN, PSH, URG)", probe(XMAS, XMAS, None)),
        ("ACK", probe(tcp::ACK, tcp::ACK, Some(tcp::RST))),
        ("FIN+ACK (Maimon)", probe(tcp::FIN | tcp::ACK, tcp::FIN | tcp::ACK, Some(tcp::RST))),
    ] {
        assert_eq!(name(&records), expected);
    }
    let unreachable: Vec<FlowRecord> = (0..30_u16)
        .map(|i| FlowRecord { icmp_error: [0x0303, 0], ..knock("10.0.0.9", "10.0.1.1", UDP, 1 + i, f64::from(i) / 10.0) })
        .collect();
    assert_eq!(name(&unreachable), "UDP");
    let mute =
        |count: u16| (0..count).map(|i| knock("10.0.0.9", "10.0.1.1", UDP, 1 + i, f64::from(i) / 10.0)).collect::<Vec<_>>();
    assert_eq!(told(&mute(49)), Vec::<String>::new(), "a datagram need not be answered");
    assert_eq!(told(&mute(50)), ["ND-01 10.0.0.9 > 10.0.1.1 25"]);
    let ping =
        |i: usize| FlowRecord { icmp_type_code: [0x0800, 0], ..knock("10.0.0.9", &rack(i), protocol::ICMP, 0, i as f64 / 10.0) };
    let pings: Vec<FlowRecord> = (0..30).map(ping).collect();
    assert_eq!((name(&pings), told(&pings)), ("ping".to_owned(), vec!["ND-02 10.0.0.9 ICMP 25".to_owned()]));
}

/// An ACK-first flow that ended without an answer, as [`knock`] but with what was counted.
fn lone_ack(destination: &str, port: u16, packets: u64, secs: f64) -> FlowRecord {
    FlowRecord {
        state: FlowState::End,
        end_reason: FlowEndReason::IdleTimeout,
        packets: [packets, 0],
        octets: [40 * packets, 0],
        initial_tcp_flags: [tcp::ACK, 0],
        tcp_flags: [tcp::ACK, 0],
        ..knock("10.0.0.9", destination, TCP, port, secs)
    }
}

#[test]
fn what_was_under_way_when_the_sensor_began_is_no_ack_scan() {
    let acks = |packets: u64| (0..60).map(|i| lone_ack(&rack(i), 443, packets, i as f64 / 10.0)).collect::<Vec<_>>();
    assert_eq!(told(&acks(1)), ["ND-02 10.0.0.9 TCP/443 25"], "a lone ACK into silence counts half");
    silent("one direction of long transfers", &acks(900));
    let under_way = |i: usize| FlowRecord {
        start: [at(1.0); 2],
        tcp_flags: [tcp::ACK | tcp::PSH, tcp::ACK | tcp::PSH],
        initial_tcp_flags: [tcp::ACK, tcp::ACK],
        ..talk("10.0.0.9", &rack(i), TCP, 443, 1.0, 5_000)
    };
    silent("connections seen from the middle", &(0..60).map(under_way).collect::<Vec<_>>());
}

#[test]
fn a_few_open_ports_do_not_hide_the_rest() {
    let mut scan = ports("10.0.0.9", 200, 0.1);
    for (i, record) in scan.iter_mut().enumerate().filter(|(i, _)| i % 10 == 0) {
        *record = talk("10.0.0.9", "10.0.1.1", TCP, 1_000 + i as u16, i as f64 / 10.0, 900);
    }
    assert_eq!(told(&scan).len(), 1);
    let browsing = (0..400).map(|i| talk("10.0.0.9", &format!("203.0.113.{}", i % 200), TCP, 443, f64::from(i) / 20.0, 90_000));
    scan.extend(browsing);
    assert_eq!(told(&scan).len(), 1, "nor does what the host does besides");
}

#[test]
fn a_source_that_goes_from_host_to_host_is_told_as_a_whole_after_two() {
    let scan: Vec<FlowRecord> =
        (0..400_u16).map(|i| knock("10.0.0.9", &rack(usize::from(i / 40)), TCP, 1_000 + i % 40, f64::from(i) / 100.0)).collect();
    let told = told(&scan);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].starts_with("ND-01") && told[1].starts_with("ND-01") && told[2].starts_with("ND-03"), "{told:?}");
}

#[test]
fn a_scanner_that_hops_over_addresses_is_told_as_a_network() {
    let hop =
        |i: u16, sources: u16| knock(&format!("198.51.100.{}", i % sources + 1), "10.0.1.1", TCP, 1_000 + i, f64::from(i) / 10.0);
    assert_eq!(told(&(0..25).map(|i| hop(i, 13)).collect::<Vec<_>>()), ["ND-01 198.51.100.0/24 > 10.0.1.1 25"]);
    silent("one less", &(0..24).map(|i| hop(i, 13)).collect::<Vec<_>>());
    let v6 = |i: u16| knock(&format!("2001:db8:1:2::{:x}", i % 13 + 1), "10.0.1.1", TCP, 1_000 + i, f64::from(i) / 10.0);
    assert_eq!(told(&(0..25).map(v6).collect::<Vec<_>>())[0], "ND-01 2001:db8:1:2::/64 > 10.0.1.1 25");
}

#[test]
fn three_controllers_are_enough_from_a_host_that_polls_none() {
    let sweep = |count: usize| (0..count).map(|i| knock("10.0.0.9", &rack(i), TCP, 502, i as f64)).collect::<Vec<_>>();
    silent("two", &sweep(2));
    let findings = findings(&sweep(3), Roles::default());
    assert_eq!(findings[0].rule.severity, crate::finding::Severity::High);
    assert_eq!(findings[0].rule.attack, ["T0846", "T0840"]);
    let mut master = vec![talk("10.0.0.9", "10.1.9.9", TCP, 502, -5.0, 300)];
    master.extend(sweep(8));
    silent("a master some of whose rack is off", &master);
}

#[test]
fn innocent_traffic_stays_silent() {
    let spread = |i: usize| format!("10.{}.{}.7", i / 250, i % 250);
    silent(
        "load test that is refused",
        &(0..4_000).map(|i| refused("10.0.0.1", "10.0.0.2", 443, f64::from(i) / 100.0)).collect::<Vec<_>>(),
    );
    silent("update storm", &(0..2_000).map(|i| knock(&spread(i), &rack(i % 3), TCP, 8_530, i as f64 / 50.0)).collect::<Vec<_>>());
    let resolver = (0..3_000).map(|i| match i % 12 {
        0 => knock("10.0.0.53", &format!("203.0.{}.{}", i / 250, i % 250), UDP, 53, f64::from(i)),
        _ => talk("10.0.0.53", &format!("203.0.{}.{}", i / 250, i % 250), UDP, 53, f64::from(i), 300),
    });
    silent("resolver, some of whose servers are dead", &resolver.collect::<Vec<_>>());
    let dead_poll = |i: usize| knock("10.0.0.7", &rack(i % 30), TCP, 22, (i / 30) as f64 * MINUTE + (i % 30) as f64 * 2.0);
    silent("poller of thirty dead hosts for two days", &(0..30 * 2_880).map(dead_poll).collect::<Vec<_>>());
    let shared = (0..6_000_usize).map(|i| {
        let (peer, port) = (format!("203.{}.{}.{}", i % 7, i / 250, i % 250), if i % 5 == 0 { 6_881 } else { 10_000 + i as u16 });
        if i * 7_919 % 101 < 55 {
            knock("10.0.0.8", &peer, TCP, port, i as f64)
        } else {
            talk("10.0.0.8", &peer, TCP, port, i as f64, 40_000)
        }
    });
    silent("file sharing, 55 % of the peers gone", &shared.collect::<Vec<_>>());
    let ads = (0..400).map(|i| match i % 40 {
        0 => knock("10.0.0.5", &format!("198.51.100.{}", i / 40), TCP, 443, f64::from(i)),
        _ => talk("10.0.0.5", &format!("203.0.113.{}", i % 200), TCP, 443, f64::from(i), 60_000),
    });
    silent("browser with dead servers of advertisements", &ads.collect::<Vec<_>>());
    let mixed = (0..36).map(|i| match i {
        0..26 => talk("10.0.0.5", &rack(i), TCP, 445, i as f64 * 0.8, 2_000),
        _ => knock("10.0.0.5", &rack(i), TCP, 445, i as f64 * 0.8),
    });
    silent("ten dead hosts beside 26 live ones in half a minute", &mixed.collect::<Vec<_>>());
    for flags in [tcp::SYN | tcp::ACK, tcp::RST, tcp::RST | tcp::ACK] {
        let scattered = |i: usize| FlowRecord {
            tcp_flags: [flags, 0],
            initial_tcp_flags: [flags, 0],
            ..knock("198.51.100.80", &spread(i), TCP, 1_024 + i as u16, i as f64 / 100.0)
        };
        silent("backscatter", &(0..3_000).map(scattered).collect::<Vec<_>>());
    }
    let answers =
        |i: usize| FlowRecord { source_port: 53, ..knock("198.51.100.53", &spread(i), UDP, 1_024 + i as u16, i as f64) };
    silent("backscatter of forged questions", &(0..300).map(answers).collect::<Vec<_>>());
    silent("traceroute", &(0..90).map(|i| knock("10.0.0.5", "203.0.113.9", UDP, 33_434 + i, f64::from(i))).collect::<Vec<_>>());
}

#[test]
fn what_answered_yesterday_and_fails_today_is_an_outage() {
    let before = (0..300).map(|i| talk("10.0.0.9", &rack(i), TCP, 502, i as f64 / 10.0, 300));
    let off = (0..300).map(|i| knock("10.0.0.9", &rack(i), TCP, 502, HOUR + i as f64 / 10.0));
    silent("a rack is switched off", &before.chain(off).collect::<Vec<_>>());
}

#[test]
fn roles_explain_what_would_be_a_scan_of_another_host() {
    let sweep = |count| hosts("10.0.0.9", count, 0.02);
    assert_eq!(told_with(&sweep(384), role("10.0.0.9", Role::Scanner)), Vec::<String>::new());
    for busy in [Role::Monitor, Role::Admin, Role::Nat, Role::Proxy, Role::Dns, Role::LoadBalancer] {
        assert_eq!(told_with(&sweep(249), role("10.0.0.9", busy)), Vec::<String>::new(), "{busy:?}");
        assert_eq!(told_with(&sweep(250), role("10.0.0.9", busy)), ["ND-02 10.0.0.9 TCP/445 250"], "{busy:?}");
    }
    assert_eq!(told_with(&sweep(2_000), role("10.0.0.9", Role::PeerToPeer)), Vec::<String>::new());
}

/// `sources` of one visit each to hosts of a /24.
fn team(sources: usize, targets: usize) -> Vec<FlowRecord> {
    (0..sources).map(|i| knock(&format!("203.{}.0.{}", i / 200, i % 200 + 1), &rack(i % targets), TCP, 23, i as f64)).collect()
}

#[test]
fn fifty_strangers_that_search_one_network_are_a_distributed_scan() {
    assert_eq!(told(&team(49, 20)), Vec::<String>::new());
    assert_eq!(told(&team(50, 20)), ["ND-06 TCP/23 (10.1.0.0/24) 50"]);
    let one_host = (0..60).map(|i| knock(&format!("203.0.{i}.9"), "10.0.1.1", TCP, 1_000 + i, f64::from(i)));
    assert_eq!(told(&one_host.collect::<Vec<_>>()), ["ND-06 > 10.0.1.1 50"]);
    silent("clients of a service that restarts", &team(1_000, 1));
    let flood = (0..30_000_u32).map(|i| FlowRecord {
        source: host(&format!("203.{}.{}.9", i / 250, i % 250)),
        destination_port: 1 + (i % 60_000) as u16,
        ..knock("192.0.2.1", "10.1.0.1", TCP, 1, f64::from(i) / 3e3)
    });
    silent("flood with forged sources on all ports", &flood.collect::<Vec<_>>());
    let mut outage: Vec<FlowRecord> = (0..20).map(|i| talk("192.0.2.1", &rack(i), TCP, 23, -60.0, 500)).collect();
    outage.extend(team(500, 20));
    silent("strangers at services that answered an hour ago", &outage);
}

#[test]
fn a_restart_in_the_middle_changes_nothing() {
    let mut records = ports("10.0.0.9", 300, 0.3);
    records.extend(hosts("192.0.2.9", 40, 7.0));
    records.extend(blocks("10.0.0.8", 120, 1.0));
    records.extend(team(80, 20));
    records.sort_by_key(|record| record.first());
    let whole = stream(&rules(), &records, None);
    assert!(whole.len() >= 8, "{}", whole.len());
    for half in [40, records.len() / 2, records.len() - 20] {
        assert_eq!(stream(&rules(), &records, Some(half)), whole);
    }
}

#[test]
fn the_order_in_which_files_come_does_not_matter() {
    let mut records = ports("10.0.0.9", 300, 0.3);
    records.extend(hosts("192.0.2.9", 40, 7.0));
    let straight = findings(&records, Roles::default());
    records.reverse();
    assert_eq!(findings(&records, Roles::default()), straight);
}

#[test]
fn a_flood_of_sources_stays_within_its_room_and_hides_no_scanner() {
    let mut rules = rules();
    (rules.nd_vertical.keys_max, rules.nd_horizontal.keys_max, rules.nd_block.keys_max) = (4_096, 4_096, 4_096);
    (rules.nd_walk.keys_max, rules.nd_slow.keys_max) = (4_096, 4_096);
    rules.keep_only(&["ND-01", "ND-02", "ND-03", "ND-04", "ND-05"].map(str::to_owned)).expect("our own");
    let mut detection = Detection::new(&rules, Mode::Stream);
    let mut found = Vec::new();
    for i in 0..60_000_u32 {
        let secs = f64::from(i) / 2_000.0;
        let source = format!("{}.{}.{}.{}", 11 + i % 89, i / 250 % 250, i % 250, i % 13 + 1);
        detection.observe("tap", &knock(&source, "10.0.1.1", TCP, 80, secs));
        if i % 400 == 0 {
            detection.observe("tap", &knock("10.0.0.9", &rack(i as usize / 400), TCP, 445, secs));
            detection.poll(at(secs), &mut found);
        }
    }
    let subjects: Vec<String> =
        found.iter().filter(|finding| finding.stage == Stage::Crossed).map(|finding| finding.subject.to_string()).collect();
    assert_eq!(subjects, ["10.0.0.9 TCP/445"]);
    let state = detection.states().next().expect("the family");
    assert!(state.keys <= 4_096 && state.refused > 30_000, "{state:?}");
    // 105 MB for 262,144 sources.
    assert!(state.bytes <= 105_000_000 / 64, "{state:?}");
}

#[test]
fn only_one_direction_of_datagrams_proves_nothing() {
    let half = |i: u16| FlowRecord { one_sided: true, ..knock("10.0.0.9", "10.0.1.1", UDP, 1 + i, f64::from(i) / 10.0) };
    silent("one fibre", &(0..300).map(half).collect::<Vec<_>>());
}
