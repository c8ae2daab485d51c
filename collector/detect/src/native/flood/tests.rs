//! What is a flood, and what only looks like one.

use spanwatch_common::flow::{FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::time::Timestamp;

use crate::finding::Stage;
use crate::tests::{at, host, knock, rules, talk};
use crate::{Detection, Finding, Mode, RuleFile};

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;
/// Later than what is usual is learned.
const LATER: f64 = 700.0;
const SERVER: &str = "10.0.0.2";

fn floods() -> RuleFile {
    let mut only = rules("");
    only.keep_only(&["ND-07", "ND-08", "ND-09"].map(str::to_owned)).expect("they exist");
    only
}

/// What is found in `records`, and in one unremarkable flow at the very beginning.
fn found(mut records: Vec<FlowRecord>) -> Vec<Finding> {
    records.push(announced(talk("10.0.0.8", "10.0.0.9", TCP, 443, 0.0, 0)));
    records.push(announced(talk("10.0.0.8", "10.0.0.9", TCP, 443, LATER + 600.0, 0)));
    crate::tests::replay(&floods(), &records).0
}

fn told(records: Vec<FlowRecord>) -> Vec<String> {
    let name = |finding: &Finding| format!("{} {:?} {}", finding.rule.id, finding.stage, finding.subject);
    found(records).iter().map(name).collect()
}

/// As a sensor announces it, half a second after the first packet.
fn announced(record: FlowRecord) -> FlowRecord {
    FlowRecord { state: FlowState::Begin, packets: [0; 2], octets: [0; 2], ..record }
}

/// `rate` records a second for so many seconds, from `start` on.
fn stream(rate: u32, start: f64, secs: u32, make: impl Fn(u32, f64) -> FlowRecord) -> Vec<FlowRecord> {
    (0..rate * secs).map(|i| make(i, start + f64::from(i) / f64::from(rate))).collect()
}

/// An address of its own for every number, all over the place.
fn anywhere(i: u32) -> String {
    let [a, b, c, d] = i.wrapping_mul(0x9e37_79b1).to_be_bytes();
    format!("{}.{b}.{c}.{d}", 1 + a % 9)
}

fn syns(rate: u32, start: f64, secs: u32) -> Vec<FlowRecord> {
    stream(rate, start, secs, |i, secs| knock(&anywhere(i), SERVER, TCP, 80, secs))
}

#[test]
fn connections_asked_for_and_not_completed_are_a_flood_from_the_threshold_on() {
    assert_eq!(told(syns(500, LATER, 20)), Vec::<String>::new());
    assert_eq!(told(syns(501, LATER, 20)), ["ND-07 Crossed > 10.0.0.2 TCP/80", "ND-07 Closed > 10.0.0.2 TCP/80"]);
    // As long as nothing is known of the past, twice as many.
    assert_eq!(told(syns(1_000, 60.0, 5)), Vec::<String>::new());
    assert_eq!(told(syns(1_001, 60.0, 5)).len(), 2);
}

#[test]
fn a_flood_is_told_within_its_third_second_and_says_that_its_sources_are_forged() {
    let findings = found(syns(2_000, LATER, 10));
    let [crossed, grown, closed] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((crossed.stage, grown.stage, closed.stage), (Stage::Crossed, Stage::Grown, Stage::Closed));
    // More than 1,500 within three seconds.
    assert!(crossed.last <= at(LATER + 1_501.0 / 2_000.0), "{:?}", crossed.last);
    assert_eq!((closed.evidence.value, closed.evidence.threshold, closed.evidence.attempts), (2_000.0, 500.0, Some(20_000)));
    assert_eq!(closed.evidence.failures, Some(20_000));
    assert!(closed.sentence.contains("is sent 2000 SYNs a second on TCP/80"), "{}", closed.sentence);
    assert!(closed.sentence.contains("0 % of the connections are completed"), "{}", closed.sentence);
    assert!(
        closed.sentence.contains("scattered (10.0 of 10 bits") && closed.sentence.contains("probably forged"),
        "{}",
        closed.sentence
    );
    assert_eq!(closed.evidence.rows.len(), 20);
}

#[test]
fn one_source_is_named() {
    let findings = found(stream(1_000, LATER, 5, |i, secs| FlowRecord {
        source_port: 1_024 + i as u16,
        ..knock("198.51.100.7", SERVER, TCP, 80, secs)
    }));
    assert!(findings[0].sentence.ends_with("it comes from 198.51.100.7 (100 %)"), "{}", findings[0].sentence);
}

#[test]
fn a_busy_service_is_measured_by_its_own_past() {
    let usual = |secs: u32| {
        let clients = |i: u32| format!("10.3.{}.{}", i % 7, i % 200);
        stream(150, 0.0, secs, move |i, secs| announced(talk(&clients(i), SERVER, TCP, 80, secs, 0)))
    };
    // 150 a second are usual, so 900 is the limit, and a little for the spread.
    let with = |rate: u32| told([usual(1_200), syns(rate, 1_000.0, 15)].concat());
    assert_eq!(with(700), Vec::<String>::new());
    assert_eq!(with(1_500).len(), 2, "nine tenths of what is more than usual come to nothing");
}

#[test]
fn a_scan_a_load_test_and_a_rush_of_clients_are_no_flood() {
    let scan = stream(5_000, LATER, 4, |i, secs| knock("10.0.0.1", SERVER, TCP, 1 + (i % 65_000) as u16, secs));
    assert_eq!(told(scan), Vec::<String>::new(), "every port once");
    let sweep = stream(5_000, LATER, 4, |i, secs| knock("10.0.0.1", &format!("10.9.{}.{}", i / 250, i % 250), TCP, 445, secs));
    assert_eq!(told(sweep), Vec::<String>::new(), "every host once");
    let test = stream(4_000, LATER, 5, |i, secs| FlowRecord {
        source_port: i as u16,
        ..announced(talk("10.0.0.1", SERVER, TCP, 443, secs, 0))
    });
    assert_eq!(told(test), Vec::<String>::new(), "completed, and from one source");
    let rush = stream(450, LATER, 5, |i, secs| announced(talk(&anywhere(i), SERVER, TCP, 443, secs, 0)));
    assert_eq!(told(rush), Vec::<String>::new());
    let lookups = stream(5_000, LATER, 5, |i, secs| announced(talk(&anywhere(i), "10.0.0.53", UDP, 53, secs, 0)));
    assert_eq!(told(lookups), Vec::<String>::new(), "answered");
}

#[test]
fn ports_are_added_up_when_sources_are_scattered() {
    let syns = stream(2_000, LATER, 5, |i, secs| knock(&anywhere(i), SERVER, TCP, (i * 31) as u16, secs));
    assert_eq!(told(syns)[0], "ND-07 Crossed > 10.0.0.2 TCP");
    let datagrams = stream(5_000, LATER, 5, |i, secs| FlowRecord {
        state: FlowState::Begin,
        packets: [0; 2],
        ..knock(&anywhere(i), SERVER, UDP, (i * 31) as u16, secs)
    });
    assert_eq!(told(datagrams)[0], "ND-09 Crossed > 10.0.0.2 UDP");
}

#[test]
fn completed_connections_from_many_sources_are_a_flood_above_the_floor() {
    let rush = |rate| told(stream(rate, LATER, 5, |i, secs| announced(talk(&anywhere(i), SERVER, TCP, 443, secs, 0))));
    assert_eq!(rush(500), Vec::<String>::new());
    assert_eq!(rush(501)[0], "ND-09 Crossed > 10.0.0.2 TCP/443");
}

/// The slice of one minute.
fn slice(record: FlowRecord, packets: [u64; 2], octets: [u64; 2]) -> FlowRecord {
    let [start, end] = [at(720.0), at(779.999_999)];
    FlowRecord { state: FlowState::Continue, packets, octets, start: [start; 2], end: [end; 2], ..record }
}

#[test]
fn one_flow_of_syns_is_seen_in_its_slices_and_a_full_tables_aggregates_too() {
    let syns = |packets| slice(knock("198.51.100.7", SERVER, TCP, 80, 720.0), [packets, 0], [packets * 40, 0]);
    assert_eq!(told(vec![syns(29_000)]), Vec::<String>::new());
    assert_eq!(told(vec![syns(31_000)])[0], "ND-07 Crossed > 10.0.0.2 TCP/80");
    let aggregate = |sixteen: u8, packets| FlowRecord {
        source: host(&format!("198.{sixteen}.0.0")),
        source_port: 0,
        prefix_lengths: [16, 32],
        start: [at(720.0), Timestamp::NONE],
        end: [at(779.999_999), Timestamp::NONE],
        ..syns(packets)
    };
    let findings = found((0..32).map(|i| aggregate(i, 1_000_000)).collect());
    let last = findings.last().expect("found");
    assert!(last.sentence.contains("is sent 533333 SYNs a second on TCP/80 (over 60 s"), "{}", last.sentence);
    assert!(last.sentence.contains("too many for the sensor to tell them apart"), "{}", last.sentence);
}

#[test]
fn answers_that_nobody_asked_for_are_amplification_whoever_seems_to_have_asked() {
    // 20 Mbit/s are 150 million octets a minute.
    let reflector = |i: u64| format!("198.51.100.{}", 1 + i % 100);
    let seen_as_answers = |octets: u64| {
        let one = |i| slice(talk(SERVER, &reflector(i), UDP, 53, 720.0, 0), [0, octets / 140_000], [0, octets / 100]);
        told((0..100).map(|i| FlowRecord { tcp_flags: [0; 2], start: [Timestamp::NONE, at(720.0)], ..one(i) }).collect())
    };
    assert_eq!(seen_as_answers(149_000_000), Vec::<String>::new());
    assert_eq!(seen_as_answers(151_000_000)[0], "ND-08 Crossed > 10.0.0.2 UDP/53");
    let seen_as_questions = |octets: u64, back: u64| {
        let one = |i| FlowRecord {
            source_port: 11_211,
            ..slice(talk(&reflector(i), SERVER, UDP, 40_000, 720.0, 0), [1_000, 1], [octets / 100, back / 100])
        };
        told((0..100).map(one).collect())
    };
    assert_eq!(seen_as_questions(160_000_000, 0)[0], "ND-08 Crossed > 10.0.0.2 UDP/11211");
    assert_eq!(seen_as_questions(160_000_000, 17_000_000), Vec::<String>::new(), "it asked for a tenth of as much");
    let download = slice(talk(SERVER, "203.0.113.1", UDP, 443, 720.0, 0), [1_000, 900_000], [50_000, 1_000_000_000]);
    assert_eq!(told(vec![download]), Vec::<String>::new(), "QUIC");
}

#[test]
fn pings_are_counted_by_packets_and_video_of_one_sender_is_no_flood() {
    let ping = |packets| FlowRecord {
        icmp_type_code: [0x0800, 0],
        ..slice(talk("198.51.100.7", SERVER, protocol::ICMP, 0, 720.0, 0), [packets, packets], [packets * 84; 2])
    };
    assert_eq!(told(vec![ping(299_000)]), Vec::<String>::new());
    assert_eq!(told(vec![ping(301_000)])[0], "ND-09 Crossed > 10.0.0.2 ICMP");
    let video = |i: u32, packets| slice(knock(&anywhere(i), SERVER, UDP, 5_004, 720.0), [packets, 0], [packets * 1_300, 0]);
    assert_eq!(told(vec![video(0, 6_000_000)]), Vec::<String>::new());
    assert_eq!(told((0..100).map(|i| video(i, 60_000)).collect())[0], "ND-09 Crossed > 10.0.0.2 UDP/5004");
}

#[test]
fn a_flood_is_the_same_after_a_restart_in_the_midst_of_it() {
    let records = [syns(100, LATER - 100.0, 100), syns(1_500, LATER, 200)].concat();
    let all = |restart: Option<usize>| {
        let mut detection = Detection::new(&floods(), Mode::Stream);
        let mut findings = Vec::new();
        for (i, record) in records.iter().enumerate() {
            if i % 150 == 0 {
                detection.poll(record.first(), &mut findings);
            }
            if restart == Some(i) {
                detection.poll(record.first(), &mut findings);
                let bytes = detection.snapshot();
                detection = Detection::new(&floods(), Mode::Stream);
                assert_eq!(detection.restore(&bytes).expect("our own"), Vec::<String>::new());
            }
            detection.observe("tap", record);
        }
        detection.finish(&mut findings);
        findings
    };
    let whole = all(None);
    let closed = whole.iter().filter(|finding| finding.stage == Stage::Closed).count();
    // 700 to 900 s touches minutes 11 to 14.
    assert_eq!((closed, whole.len()), (4, 5), "{whole:?}");
    assert_eq!(all(Some(15_000)), whole);
    assert_eq!(all(Some(150_000)), whole);
}

#[test]
fn answers_to_forged_addresses_are_not_held_against_who_gets_them() {
    let answers = stream(5_000, LATER, 5, |i, secs| FlowRecord {
        tcp_flags: [tcp::SYN | tcp::ACK, 0],
        initial_tcp_flags: [tcp::SYN | tcp::ACK, 0],
        ..knock("198.51.100.80", SERVER, TCP, i as u16, secs)
    });
    assert_eq!(told(answers), Vec::<String>::new());
}
