//! Flows cut in two as a TAP does it, and put together again.

use spanwatch_common::flow::{FlowEndReason, LAYER2};

use super::*;

/// 2026-11-21T10:00:00Z.
const TEN: i64 = 1_795_255_200;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_nanos(TEN * 1_000_000_000 + millis * 1_000_000)
}

/// A minute of a connection: everything that comes in pairs differs between the two.
fn connection() -> FlowRecord {
    FlowRecord {
        flow_id: 7,
        state: FlowState::Continue,
        end_reason: FlowEndReason::ActiveTimeout,
        biflow_direction: BiflowDirection::Initiator,
        observation_point: 1,
        ethernet_type: 0x0800,
        vlan: 5,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: "192.0.2.1".parse().unwrap(),
        destination: "198.51.100.7".parse().unwrap(),
        source_port: 40_000,
        destination_port: 443,
        protocol: protocol::TCP,
        class_of_service: [8, 16],
        fragment_flags: [0x40, 0x20],
        packets: [10, 20],
        octets: [1_000, 20_000],
        layer2_octets: [1_140, 20_280],
        start: [at(1), at(3)],
        end: [at(900), at(950)],
        tcp_flags: [tcp::SYN | tcp::ACK | tcp::PSH, tcp::SYN | tcp::ACK],
        initial_tcp_flags: [tcp::SYN, tcp::SYN | tcp::ACK],
        ttl_min: [64, 55],
        ttl_max: [65, 56],
        ip_len_min: [40, 52],
        ip_len_max: [1_400, 1_500],
        tcp_retransmissions: [1, 2],
        tcp_out_of_order: [3, 4],
        tcp_zero_windows: [5, 6],
        tcp_missed_octets: [7, 8],
        icmp_error: [0x0304, 0],
        answered: true,
        ..FlowRecord::default()
    }
}

/// What the fibre shows on which packets go `way`: one direction, and its own number for the flow.
fn half(whole: &FlowRecord, way: usize) -> FlowRecord {
    let empty = FlowRecord::default();
    let mut half = whole.clone();
    let silent = way ^ 1;
    macro_rules! without {
        ($($field:ident)*) => {
            $(half.$field[silent] = empty.$field[silent];)*
        };
    }
    without!(icmp_type_code class_of_service fragment_flags packets octets layer2_octets start end tcp_flags initial_tcp_flags);
    without!(ttl_min ttl_max ip_len_min ip_len_max tcp_retransmissions tcp_out_of_order tcp_zero_windows tcp_missed_octets icmp_error);
    (half.one_sided, half.answered) = (true, false);
    if way == REVERSE {
        (half.flow_id, half.observation_point) = (whole.flow_id + 1, whole.observation_point + 1);
        if half.biflow_direction == BiflowDirection::Initiator {
            half.biflow_direction = BiflowDirection::ReverseInitiator;
        }
    }
    half
}

fn halves(whole: &FlowRecord) -> [FlowRecord; 2] {
    [half(whole, FORWARD), half(whole, REVERSE)]
}

#[test]
fn two_halves_are_the_whole_whichever_comes_first() {
    let whole = connection();
    let [forward, reverse] = halves(&whole);
    for records in [[forward.clone(), reverse.clone()], [reverse, forward]] {
        assert_eq!(join(records.to_vec()), Joined { records: vec![whole.clone()], pairs: 1, lone: 0 });
    }
}

#[test]
fn a_half_that_mistook_the_initiator_is_turned() {
    // Seen from the middle, between ports that say nothing: each half takes its sender for the initiator.
    let whole = FlowRecord {
        biflow_direction: BiflowDirection::Arbitrary,
        destination_port: 50_000,
        initial_tcp_flags: [tcp::ACK, tcp::ACK],
        tunnel: ["203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap()],
        ..connection()
    };
    let [forward, mut reverse] = halves(&whole);
    turn(&mut reverse);
    assert_eq!(reverse.source, whole.destination);
    assert_eq!(reverse.packets, [20, 0]);
    for records in [[forward.clone(), reverse.clone()], [reverse.clone(), forward.clone()]] {
        assert_eq!(join(records.to_vec()).records, std::slice::from_ref(&whole), "192.0.2.1 is the lower end");
    }
    // A SYN on one fibre knows better.
    let sure = FlowRecord { initial_tcp_flags: [tcp::SYN, 0], biflow_direction: BiflowDirection::Initiator, ..reverse };
    for records in [[forward.clone(), sure.clone()], [sure, forward]] {
        let joined = join(records.to_vec()).records;
        assert_eq!((joined.len(), joined[0].source, joined[0].packets), (1, whole.destination, [20, 10]));
        assert_eq!((joined[0].biflow_direction, joined[0].tunnel[0]), (BiflowDirection::Initiator, whole.tunnel[1]));
    }
}

#[test]
fn only_what_belongs_together_is_joined() {
    let whole = connection();
    let [forward, reverse] = halves(&whole);
    let later = |record: &FlowRecord| FlowRecord {
        start: record.start.map(|start| if start.is_some() { at(60_001) } else { start }),
        ..record.clone()
    };
    for (what, other) in [
        ("another minute", later(&reverse)),
        ("another VLAN", FlowRecord { vlan: 6, ..reverse.clone() }),
        ("another port", FlowRecord { source_port: 40_001, ..reverse.clone() }),
        ("another overlay", FlowRecord { layer2_segment: 9, ..reverse.clone() }),
        ("the same direction", FlowRecord { flow_id: 9, ..forward.clone() }),
        ("an announcement", FlowRecord { state: FlowState::Begin, packets: [0; 2], ..reverse.clone() }),
        ("the end of a silence", FlowRecord { state: FlowState::End, packets: [0; 2], ..reverse.clone() }),
        ("a flow seen from both sides", FlowRecord { one_sided: false, ..reverse.clone() }),
        ("a sum over many flows", FlowRecord { prefix_lengths: [24, 32], ..reverse.clone() }),
    ] {
        let records = vec![forward.clone(), other];
        let joined = join(records.clone());
        assert_eq!((&joined.records, joined.pairs), (&records, 0), "{what}");
    }
}

#[test]
fn an_answer_goes_with_its_question_and_an_error_with_none() {
    let ping = |type_code: [u16; 2], protocol| FlowRecord {
        protocol,
        source_port: 0,
        destination_port: 0,
        icmp_type_code: type_code,
        ..connection()
    };
    let pairs = |whole: FlowRecord| join(halves(&whole).to_vec()).pairs;
    assert_eq!(pairs(ping([0x0800, 0x0000], protocol::ICMP)), 1, "echo");
    assert_eq!(pairs(ping([0x0d00, 0x0e00], protocol::ICMP)), 1, "timestamp");
    assert_eq!(pairs(ping([0x8000, 0x8100], protocol::ICMPV6)), 1, "echo of version 6");
    assert_eq!(pairs(ping([0x0800, 0x0301], protocol::ICMP)), 0, "the other end says that a host is unreachable");
    assert_eq!(pairs(ping([0x0301, 0x0301], protocol::ICMP)), 0, "and so do both");
}

#[test]
fn a_flow_ends_when_both_halves_do() {
    let state = |forward, reverse| {
        let [mut one, mut other] = halves(&connection());
        (one.state, one.end_reason) = forward;
        (other.state, other.end_reason) = reverse;
        let joined = join(vec![one, other]).records;
        assert_eq!(joined.len(), 1);
        (joined[0].state, joined[0].end_reason)
    };
    let cut = (FlowState::Continue, FlowEndReason::ActiveTimeout);
    let reset = (FlowState::End, FlowEndReason::EndOfFlow);
    let idle = (FlowState::End, FlowEndReason::IdleTimeout);
    assert_eq!(state(cut, cut), cut);
    assert_eq!(state(reset, cut), cut, "the fibre without the RST knows nothing of it");
    assert_eq!(state(cut, reset), cut);
    assert_eq!(state(reset, idle), idle, "what was heard last");
    assert_eq!(state((FlowState::Begin, FlowEndReason::None), (FlowState::Begin, FlowEndReason::None)).0, FlowState::Begin);
}

#[test]
fn stations_without_ip_are_joined_by_their_addresses() {
    let whole = FlowRecord {
        protocol: LAYER2,
        ethernet_type: 0x88b8,
        source: Address::NONE,
        destination: Address::NONE,
        source_port: 0,
        destination_port: 0,
        biflow_direction: BiflowDirection::Arbitrary,
        tcp_flags: [0; 2],
        initial_tcp_flags: [0; 2],
        ..connection()
    };
    let [forward, mut reverse] = halves(&whole);
    turn(&mut reverse);
    assert_eq!(join(vec![forward, reverse]).records, [whole]);
}

#[test]
fn a_flow_that_came_to_one_queue_loses_its_mark_and_joining_twice_changes_nothing() {
    let marked = FlowRecord { one_sided: true, ..connection() };
    assert_eq!(join(vec![marked]).records, [connection()]);

    // A thousand halves of flows of which every third has lost one: no packet is lost or counted twice.
    let whole = |i: u16| FlowRecord { source_port: i % 50, vlan: i % 7, start: [at(i64::from(i) * 500); 2], ..connection() };
    let records: Vec<FlowRecord> =
        (0..700).flat_map(|i| halves(&whole(i)).into_iter().take(if i % 3 == 0 { 1 } else { 2 })).collect();
    let packets = |records: &[FlowRecord]| records.iter().map(FlowRecord::packets_total).sum::<u64>();
    let once = join(records.clone());
    assert_eq!(packets(&once.records), packets(&records));
    assert_eq!(once.records.len() as u64 + once.pairs, records.len() as u64);
    assert_eq!(once.lone, once.records.iter().filter(|record| is_half(record)).count() as u64);
    assert!(once.pairs >= 466, "all that lost no half, at the least: {}", once.pairs);
    let twice = join(once.records.clone());
    assert_eq!((twice.records, twice.pairs), (once.records, 0));
}
