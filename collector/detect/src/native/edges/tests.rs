//! What these rules find, and what they leave alone.

use spanwatch_common::flow::{FlowRecord, FlowState, protocol};

use crate::finding::{Finding, Severity, Stage};
use crate::roles::{Role, Roles};
use crate::tests::{at, host, knock, rules, stream, talk};
use crate::{Detection, Mode, RuleFile};

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;
const HOUR: f64 = 3_600.0;
const DAY: f64 = 86_400.0;

fn only(id: &str, settings: &str) -> RuleFile {
    let mut rules = rules(&format!("[{id}]\n{settings}\n"));
    rules.keep_only(&[id.to_owned()]).expect("a rule");
    rules
}

fn detection(rules: &RuleFile) -> Detection {
    Detection::new(rules, Mode::Replay)
}

/// What `detection` tells of `records`, without the reports of what was learned.
fn tells(mut detection: Detection, records: &[FlowRecord]) -> Vec<Finding> {
    records.iter().for_each(|record| detection.observe("tap", record));
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    findings.retain(|finding| finding.subject.facet.as_deref() != Some("baseline"));
    findings
}

fn sentences(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.sentence.as_str()).collect()
}

/// Somebody who is there all the time, so that time passes: from day 0 to `days`, every hour.
fn background(days: usize) -> Vec<FlowRecord> {
    (0..days * 24).map(|hour| talk("10.0.0.50", "10.0.0.60", TCP, 443, hour as f64 * HOUR, 900)).collect()
}

fn after_a_week(mut more: Vec<FlowRecord>) -> Vec<FlowRecord> {
    let mut records = background(9);
    records.append(&mut more);
    records
}

/// Runs `records` in one go, and again with a restart in the middle: the same must come out.
fn assert_survives_a_restart(rules: &RuleFile, records: &[FlowRecord]) {
    let mut sorted = records.to_vec();
    sorted.sort_by_key(FlowRecord::first);
    let findings = stream(rules, &sorted, None);
    assert!(!findings.is_empty());
    assert_eq!(findings, stream(rules, &sorted, Some(sorted.len() * 9 / 10)));
}

const WEEK: f64 = 8.0 * DAY;

#[test]
fn a_first_logon_is_told_once_and_quietly() {
    let records = after_a_week(vec![
        talk("10.0.4.7", "10.0.9.2", TCP, 3389, 2.0 * DAY, 9_000),
        // Learned on the third day, so no news on the ninth.
        talk("10.0.4.7", "10.0.9.2", TCP, 3389, WEEK, 9_000),
        talk("10.0.4.8", "10.0.9.2", TCP, 3389, WEEK + 60.0, 9_000),
        talk("10.0.4.8", "10.0.9.2", TCP, 3389, WEEK + 120.0, 9_000),
        // Nobody answers: a matter for the scan rules.
        knock("10.0.4.8", "10.0.9.3", TCP, 3389, WEEK + 180.0),
        // Not a port of administration.
        talk("10.0.4.8", "10.0.9.4", TCP, 443, WEEK + 200.0, 9_000),
    ]);
    let findings = tells(detection(&only("ND-13", "")), &records);
    assert_eq!(
        sentences(&findings),
        ["10.0.4.8 opened TCP/3389 of 10.0.9.2 for the first time in 14 days; 1 other host used it before"]
    );
    assert_eq!((findings[0].rule.severity, findings[0].evidence.rows.len()), (Severity::Informational, 1));
    assert!(findings[0].rule.attack.contains(&"T1021.001".to_owned()));
}

#[test]
fn three_hosts_newly_opened_within_the_hour_are_grave_and_two_are_not() {
    let opens = |hosts: usize, apart: f64, known: bool| {
        let before = known.then(|| talk("10.0.4.7", "10.0.0.60", TCP, 443, 3.0 * DAY, 900));
        let moves = (0..hosts).map(|n| talk("10.0.4.7", &format!("10.0.9.{}", n + 1), TCP, 22, WEEK + n as f64 * apart, 9_000));
        let findings = tells(detection(&only("ND-13", "")), &after_a_week(before.into_iter().chain(moves).collect()));
        findings.iter().map(|finding| (finding.stage, finding.rule.severity, finding.evidence.value)).collect::<Vec<_>>()
    };
    let (low, high) = (Severity::Informational, Severity::High);
    assert_eq!(opens(2, 600.0, true), [(Stage::Crossed, low, 1.0), (Stage::Grown, low, 2.0)]);
    assert_eq!(opens(3, 600.0, true), [(Stage::Crossed, low, 1.0), (Stage::Crossed, high, 3.0), (Stage::Grown, low, 2.0)]);
    // Three in an hour and twenty minutes, never three within one hour.
    assert!(opens(3, 2_400.0, true).iter().all(|&(_, severity, _)| severity == low));
    // A laptop with a new lease meets its eight servers; nine are more than a lease.
    assert!(opens(8, 60.0, false).iter().all(|&(_, severity, _)| severity == low));
    assert!(opens(9, 60.0, false).iter().any(|&(_, severity, value)| severity == high && value == 9.0));
}

#[test]
fn a_host_that_was_opened_and_opens_the_next_within_the_hour_makes_a_chain() {
    let chain = |later: f64| {
        let moves = vec![
            talk("10.0.4.7", "10.0.4.9", TCP, 3389, WEEK, 9_000),
            talk("10.0.4.9", "10.0.9.2", TCP, 445, WEEK + later, 9_000),
        ];
        let findings = tells(detection(&only("ND-13", "")), &after_a_week(moves));
        findings.into_iter().filter(|finding| finding.rule.severity == Severity::High).collect::<Vec<_>>()
    };
    let found = chain(3_599.0);
    assert_eq!(
        sentences(&found),
        [
            "10.0.4.7 opened TCP/3389 of 10.0.4.9 at 10:00:00 UTC, and 59 min later 10.0.4.9 opened TCP/445 of 10.0.9.2: steps that \
          nobody took in 14 days"
        ]
    );
    assert_eq!(found[0].evidence.hosts, [host("10.0.4.7"), host("10.0.4.9"), host("10.0.9.2")]);
    assert!(chain(3_601.0).is_empty());
}

#[test]
fn administrators_and_servers_that_everybody_uses_are_no_news() {
    let clients = (1..=8).map(|n| talk(&format!("10.0.5.{n}"), "10.0.0.2", TCP, 445, DAY + f64::from(n), 9_000));
    let laptop = talk("10.0.5.99", "10.0.0.2", TCP, 445, WEEK, 9_000);
    let records = after_a_week(clients.chain([laptop]).collect());
    assert!(tells(detection(&only("ND-13", "")), &records).is_empty());
    // One client fewer, and it is somebody's server.
    let fewer: Vec<FlowRecord> = records.iter().filter(|record| record.source != host("10.0.5.8")).cloned().collect();
    assert_eq!(tells(detection(&only("ND-13", "")), &fewer).len(), 1);

    let known = talk("10.0.0.99", "10.0.0.60", TCP, 443, 3.0 * DAY, 900);
    let admin = (1..9).map(|n| talk("10.0.0.99", &format!("10.0.9.{n}"), TCP, 22, WEEK + f64::from(n), 9_000));
    let roles = Roles::default().with("10.0.0.99".parse().expect("a prefix"), Role::Admin, at(99.0 * DAY));
    let records = after_a_week([known].into_iter().chain(admin).collect());
    assert!(tells(detection(&only("ND-13", "")).with_roles(roles), &records).is_empty());
    assert_eq!(tells(detection(&only("ND-13", "")), &records).last().map(|finding| finding.evidence.value), Some(8.0));
}

#[test]
fn an_ipv6_host_that_changed_its_address_opens_nothing_new() {
    let logon = |source: &str, secs: f64| talk(source, "fd00::9:2", TCP, 22, secs, 9_000);
    let first = logon("fd00:0:0:4:5054:ff:fe00:1", 2.0 * DAY);
    let same_network = after_a_week(vec![first.clone(), logon("fd00:0:0:4:8d3c:51a2:9:77", WEEK)]);
    assert_eq!(sentences(&tells(detection(&only("ND-13", "")), &same_network)), Vec::<&str>::new());
    let another = after_a_week(vec![first, logon("fd00:0:0:7::1", WEEK)]);
    assert_eq!(tells(detection(&only("ND-13", "")), &another).len(), 1);
}

#[test]
fn without_a_week_to_learn_from_nothing_is_told() {
    let moves: Vec<FlowRecord> =
        (0..30).map(|n| talk("10.0.4.7", &format!("10.0.9.{n}"), TCP, 22, 100.0 + f64::from(n), 9_000)).collect();
    for id in ["ND-13", "ND-14", "ND-15", "ND-16"] {
        assert!(tells(detection(&only(id, "")), &moves).is_empty(), "{id}");
    }
}

#[test]
fn a_sensor_that_is_added_later_learns_first() {
    let mut detection = detection(&only("ND-15", ""));
    background(12).iter().for_each(|record| detection.observe("tap", record));
    for day in 9..20 {
        // A server that the new sensor has always seen, and one that is new when it has learned.
        detection.observe("second tap", &talk("10.7.0.1", "10.7.0.2", TCP, 22, f64::from(day) * DAY, 900));
        if day == 19 {
            detection.observe("second tap", &talk("10.7.0.1", "10.7.0.3", TCP, 22, f64::from(day) * DAY, 900));
        }
    }
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    let baselines: Vec<_> = findings.iter().filter(|finding| finding.subject.facet.is_some()).collect();
    assert_eq!(
        sentences(&findings.iter().filter(|finding| finding.subject.facet.is_none()).cloned().collect::<Vec<_>>()),
        ["10.7.0.3 answered 10.7.0.1 on TCP/22: a service that it had not offered for 30 days"]
    );
    assert_eq!(baselines.len(), 2);
    assert!(baselines.iter().all(|finding| finding.rule.severity == Severity::Informational));
}

#[test]
fn an_address_that_never_spoke_is_told_and_a_forged_one_is_not() {
    let records = after_a_week(vec![
        talk("10.0.0.70", "10.0.0.60", TCP, 443, WEEK, 900),
        talk("10.0.0.70", "10.0.0.60", TCP, 443, WEEK + 90.0, 900),
        // A new server that is spoken to.
        talk("10.0.0.50", "10.0.0.71", TCP, 443, WEEK + 100.0, 900),
        // Outside all sites.
        talk("10.0.0.50", "198.51.100.9", TCP, 443, WEEK + 110.0, 900),
        knock("10.0.0.72", "10.0.0.60", TCP, 80, WEEK + 120.0),
        talk("10.0.0.50", "10.0.0.60", TCP, 443, WEEK + 400.0, 900),
    ]);
    assert_eq!(
        sentences(&tells(detection(&only("ND-14", "")), &records)),
        [
            "10.0.0.70 spoke to 10.0.0.60 (TCP/443): an address that had not spoken for 30 days",
            "10.0.0.71 answered 10.0.0.50 (TCP/443): an address that had not spoken for 30 days",
        ]
    );
}

#[test]
fn many_new_addresses_are_one_line_and_in_a_pool_one_quiet_line_a_day() {
    let burst = |day: usize, of: std::ops::Range<u32>| {
        of.map(move |n| talk(&format!("10.0.20.{n}"), "10.0.0.60", TCP, 443, day as f64 * DAY + f64::from(n), 900))
    };
    let quiet = after_a_week(burst(8, 1..6).collect());
    let findings = tells(detection(&only("ND-14", "")), &quiet);
    // Four one by one, and the fifth makes a line for the network.
    assert_eq!(findings.len(), 5);
    assert!(findings.iter().any(|finding| finding.sentence.starts_with("5 addresses of 10.0.20.0/24 spoke")));

    // On its first day a network is all new; two busy days after it make it a pool.
    let pool = (1..9).flat_map(|day| burst(day, day as u32 * 10..day as u32 * 10 + 5)).collect();
    let findings = tells(detection(&only("ND-14", "")), &after_a_week(pool));
    assert!(findings.iter().all(|finding| finding.rule.severity == Severity::Informational), "{:?}", sentences(&findings));
    let told: Vec<_> = findings.iter().filter(|finding| finding.sentence.starts_with("5 addresses of 10.0.20.0/24")).collect();
    // Days 7 and 8: the week of learning ends at 10:00, just before its addresses speak.
    assert_eq!(told.len(), 2, "{:?}", sentences(&findings));
}

/// `record` as first seen with these MAC addresses, by their last bytes.
fn from_mac(record: FlowRecord, source: u8, destination: u8) -> FlowRecord {
    let mac = |last| [0x00, 0x53, 0, 0, 0, last];
    FlowRecord { source_mac: mac(source), destination_mac: mac(destination), ..record }
}

#[test]
fn an_address_that_goes_back_and_forth_between_devices_is_taken_over() {
    let with = |mac: u8, secs: f64| from_mac(talk("10.0.0.50", "10.0.0.60", TCP, 443, secs, 900), mac, 60);
    let records = |at: &[(u8, f64)]| -> Vec<FlowRecord> {
        let learned = (0..8 * 24).map(|hour| with(50, f64::from(hour) * HOUR));
        learned.chain(at.iter().map(|&(mac, secs)| with(mac, WEEK + secs))).collect()
    };
    let told = |at: &[(u8, f64)]| {
        let findings = tells(detection(&only("ND-14", "")), &records(at));
        findings.iter().map(|finding| (finding.rule.severity, finding.evidence.value)).collect::<Vec<_>>()
    };
    // A failover, within ten minutes of having spoken; after eleven minutes of silence it is another lease.
    assert_eq!(told(&[(50, 0.0), (66, 540.0)]), [(Severity::Medium, 1.0)]);
    assert_eq!(told(&[(50, 0.0), (66, 660.0)]), []);
    assert_eq!(told(&[(50, 0.0), (66, 60.0), (50, 120.0)]), [(Severity::Medium, 1.0), (Severity::High, 2.0)]);
    let findings = tells(detection(&only("ND-14", "")), &records(&[(50, 0.0), (66, 60.0), (50, 120.0)]));
    assert!(
        findings[1].sentence.contains("between MAC addresses 00:53:00:00:00:42 and 00:53:00:00:00:32 2 times"),
        "{}",
        findings[1].sentence
    );
    assert!(findings[1].rule.attack.contains(&"T1557.002".to_owned()));
    // A later slice has the MAC address of the flow's first frame, which may be of before the change.
    let mut slice = with(50, WEEK + 120.0);
    slice.state = FlowState::Continue;
    slice.tcp_flags = [0x10; 2];
    let mut records = records(&[(50, 0.0), (66, 60.0)]);
    records.push(slice);
    assert_eq!(tells(detection(&only("ND-14", "")), &records).len(), 1);
}

#[test]
fn hosts_behind_routers_and_teams_of_interfaces_change_their_mac_addresses_innocently() {
    let mut records = Vec::new();
    for hour in 0..8 * 24 + 2 {
        let secs = f64::from(hour) * HOUR;
        // Four hosts of another network, behind a router that is 1 and, in the last hours, 2.
        for n in 1..5 {
            let router = if hour > 8 * 24 { 2 } else { 1 };
            records.push(from_mac(talk(&format!("10.9.0.{n}"), "10.0.0.60", TCP, 443, secs + f64::from(n), 900), router, 60));
        }
        // A team that sends on both interfaces.
        records.push(from_mac(talk("10.0.0.51", "10.0.0.60", TCP, 443, secs + 10.0, 900), 51, 60));
        records.push(from_mac(talk("10.0.0.51", "10.0.0.60", TCP, 443, secs + 90.0, 900), 52, 60));
    }
    assert_eq!(sentences(&tells(detection(&only("ND-14", "")), &records)), Vec::<&str>::new());
    // And a known device with a new address is no new asset.
    records.push(from_mac(talk("10.0.0.77", "10.0.0.60", TCP, 443, WEEK + HOUR + 200.0, 900), 51, 60));
    assert_eq!(sentences(&tells(detection(&only("ND-14", "")), &records)), Vec::<&str>::new());
}

#[test]
fn a_port_without_a_name_is_a_service_from_its_second_client_on() {
    let told = |records: Vec<FlowRecord>| {
        let findings = tells(detection(&only("ND-15", "")), &after_a_week(records));
        findings.iter().map(|finding| finding.evidence.services.join(" ")).collect::<Vec<_>>()
    };
    let one = || talk("10.0.0.50", "10.0.0.60", TCP, 8999, WEEK, 900);
    assert_eq!(told(vec![one(), one()]), Vec::<String>::new());
    assert_eq!(told(vec![one(), talk("10.0.0.51", "10.0.0.60", TCP, 8999, WEEK + 9.0, 900)]), ["TCP/8999"]);
    assert_eq!(told(vec![talk("10.0.0.50", "10.0.0.60", TCP, 23, WEEK, 900)]), ["TCP/23"]);
    assert_eq!(told(vec![talk("10.0.0.50", "10.0.0.60", UDP, 161, WEEK, 900)]), ["UDP/161"]);
    // What nobody answers is no service.
    assert_eq!(told(vec![knock("10.0.0.50", "10.0.0.60", TCP, 23, WEEK)]), Vec::<String>::new());
}

#[test]
fn ports_that_programs_make_up_as_they_go_are_no_services() {
    let two = |server: &str, protocol: u8, port: u16| {
        ["10.0.0.50", "10.0.0.51"].map(|client| talk(client, server, protocol, port, WEEK + f64::from(port), 900)).to_vec()
    };
    let servers = vec![talk("10.0.0.50", "10.0.0.2", TCP, 135, DAY, 900), talk("10.0.0.50", "10.0.0.3", TCP, 21, DAY, 900)];
    let made_up = [two("10.0.0.2", TCP, 49_700), two("10.0.0.3", TCP, 10_100), two("10.0.0.4", UDP, 51_000)].concat();
    let records = after_a_week([servers.clone(), made_up].concat());
    assert_eq!(sentences(&tells(detection(&only("ND-15", "")), &records)), Vec::<&str>::new());
    // Without an endpoint mapper the same port is one.
    let records = after_a_week([servers, two("10.0.0.5", TCP, 49_700)].concat());
    assert_eq!(tells(detection(&only("ND-15", "")), &records).len(), 1);
}

#[test]
fn a_known_service_that_answers_somebody_outside_is_graver() {
    let records = after_a_week(vec![
        talk("10.0.0.50", "10.0.0.61", TCP, 3389, DAY, 900),
        talk("198.51.100.9", "10.0.0.61", TCP, 3389, WEEK, 900),
        talk("198.51.100.8", "10.0.0.61", TCP, 3389, WEEK + 60.0, 900),
    ]);
    let findings = tells(detection(&only("ND-15", "")), &records);
    assert_eq!(
        sentences(&findings),
        [
            "10.0.0.61 answered clients outside, such as 198.51.100.9 on TCP/3389: a service that it had not offered outside for 30 days"
        ]
    );
    assert_eq!(findings[0].rule.severity, Severity::Medium);
    assert!(findings[0].rule.attack.contains(&"T1133".to_owned()));
}

/// Every `every` seconds from `from` to `until`.
fn polls(source: &str, destination: &str, every: usize, (from, until): (f64, f64)) -> Vec<FlowRecord> {
    (0..((until - from) / every as f64) as usize)
        .map(|n| talk(source, destination, UDP, 502, from + (n * every) as f64, 200))
        .collect()
}

#[test]
fn a_controller_that_spoke_all_the_time_is_missed_within_minutes() {
    let told = |pause: f64| {
        let stops = 3.0 * HOUR;
        let mut records = polls("10.1.0.1", "10.1.0.10", 10, (0.0, stops + 2.0 * HOUR));
        records.extend(polls("10.1.0.1", "10.1.0.11", 10, (0.0, stops)));
        records.extend(polls("10.1.0.1", "10.1.0.11", 10, (stops + pause, stops + 2.0 * HOUR)));
        let findings = tells(detection(&only("ND-16", "learn_secs = 3600")), &records);
        findings
            .into_iter()
            .map(|finding| (finding.stage, finding.subject.to_string(), finding.window, finding.last, finding.sentence))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(240.0), []);
    let found = told(1_500.0);
    let (stage, subject, _, last, sentence) = &found[0];
    assert_eq!((*stage, subject.as_str()), (Stage::Crossed, "10.1.0.11"));
    // 300 s, steps of 16 s and full minutes: within seven minutes.
    assert!(last.since(at(3.0 * HOUR)).as_secs() <= 420, "{sentence}");
    assert!(sentence.contains("is silent for") && sentence.ends_with("and tap still hears others"), "{sentence}");
    assert!(
        found.iter().any(|(stage, _, _, _, sentence)| *stage == Stage::Closed && sentence.contains("spoke again")),
        "{found:?}"
    );
}

#[test]
fn office_machines_blind_sensors_and_dead_taps_are_nobodys_silence() {
    // A machine that sleeps at night, seen for three days.
    let server = polls("10.1.0.1", "10.1.0.10", 60, (0.0, 4.0 * DAY));
    let office =
        (0..4).flat_map(|day| polls("10.1.0.30", "10.1.0.10", 60, (f64::from(day) * DAY, f64::from(day) * DAY + 8.0 * HOUR)));
    let records: Vec<FlowRecord> = server.into_iter().chain(office).collect();
    assert_eq!(sentences(&tells(detection(&only("ND-16", "learn_secs = 86400")), &records)), Vec::<&str>::new());

    // A sensor that sees nobody for an hour.
    let all = |span| [polls("10.1.0.1", "10.1.0.10", 10, span), polls("10.1.0.2", "10.1.0.11", 10, span)].concat();
    let records = [all((0.0, 3.0 * HOUR)), all((4.0 * HOUR, 5.0 * HOUR))].concat();
    assert_eq!(sentences(&tells(detection(&only("ND-16", "learn_secs = 3600")), &records)), Vec::<&str>::new());

    // Four of five pairs are gone at once.
    let pair = |n: u32, until: f64| polls(&format!("10.1.0.{n}"), &format!("10.1.1.{n}"), 10, (0.0, until));
    let records: Vec<FlowRecord> = (1..=5).flat_map(|n| pair(n, if n == 1 { 4.0 * HOUR } else { 3.0 * HOUR })).collect();
    let findings = tells(detection(&only("ND-16", "learn_secs = 3600")), &records);
    assert_eq!(sentences(&findings), ["8 of the 10 hosts that tap hears all the time are silent at once"]);

    // When they are back but for one, that one is told.
    let mut records: Vec<FlowRecord> = records;
    for n in 2..=5 {
        let (source, destination) = (format!("10.1.0.{n}"), format!("10.1.1.{}", if n == 5 { 4 } else { n }));
        records.extend(polls(&source, &destination, 10, (3.2 * HOUR, 4.0 * HOUR)));
    }
    let findings = tells(detection(&only("ND-16", "learn_secs = 3600")), &records);
    assert!(findings.iter().any(|finding| finding.sentence.starts_with("10.1.1.5 is silent")), "{:?}", sentences(&findings));
    assert!(findings.iter().all(|finding| finding.stage != Stage::Closed), "{:?}", sentences(&findings));
}

#[test]
fn a_restart_forgets_nothing() {
    let moves = (0..20).map(|n| talk("10.0.4.7", &format!("10.0.9.{n}"), TCP, 22, WEEK + f64::from(n) * 30.0, 9_000));
    let changing = (0..20).map(|n| {
        let mac = if n % 2 == 0 { 50 } else { 66 };
        from_mac(talk("10.0.0.50", "10.0.0.60", TCP, 443, WEEK + 700.0 + f64::from(n) * 70.0, 900), mac, 60)
    });
    let records = after_a_week(moves.chain(changing).collect());
    for id in ["ND-13", "ND-14", "ND-15"] {
        assert_survives_a_restart(&only(id, ""), &records);
    }
    let mut records = polls("10.1.0.1", "10.1.0.10", 10, (0.0, 5.0 * HOUR));
    records.extend(polls("10.1.0.2", "10.1.0.11", 10, (0.0, 4.4 * HOUR)));
    assert_survives_a_restart(&only("ND-16", "learn_secs = 3600"), &records);
}
