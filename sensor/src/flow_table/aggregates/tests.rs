//! Floods and scans as one would make them, and what an operator wants to read of them.

use std::collections::HashSet;
use std::net::IpAddr;

use spanwatch_common::flow::{FORWARD, LAYER2, protocol, tcp};
use spanwatch_common::net::Address;

use super::*;
use crate::decode::{Kind, Speech, Way};

const MINUTE: Duration = Duration::from_secs(60);
const VICTIM: &str = "192.0.2.7";

fn aggregates(max: usize) -> Aggregates {
    Aggregates::new(max, MINUTE, Duration::from_millis(500), KeyHasher::fixed(), Observer::default())
}

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

/// A packet of 60 octets from one address and port to another; its ends are sorted as in a flow key.
fn packet(protocol: u8, speech: Speech, from: (Address, u16), to: (Address, u16), at: f64) -> Packet {
    let is_from_a = (from.0.0, from.1) <= (to.0.0, to.1);
    let (a, b) = if is_from_a { (from, to) } else { (to, from) };
    let kind = if from.0.as_v4().is_some() { Kind::Ipv4 } else { Kind::Ipv6 };
    let mut packet = Packet::blank(Timestamp::from_nanos((at * 1e9) as i64), 60);
    packet.key = FlowKey { a: a.0.0.to_be_bytes(), b: b.0.0.to_be_bytes(), a_port: a.1, b_port: b.1, ..FlowKey::NONE };
    (packet.key.protocol, packet.key.kind) = (protocol, kind as u8);
    packet.way = if is_from_a { Way::FromA } else { Way::FromB };
    packet.speech = speech;
    packet.flags = match speech {
        Speech::Request if protocol == protocol::TCP => tcp::SYN,
        Speech::Response if protocol == protocol::TCP => tcp::SYN | tcp::ACK,
        _ => 0,
    };
    (packet.ip_octets, packet.ttl) = (40, 64);
    packet
}

fn syn(from: Address, to: Address, port: u16, at: f64) -> Packet {
    packet(protocol::TCP, Speech::Request, (from, 40_000), (to, port), at)
}

/// Numbers without order, the same each time (xorshift).
fn random() -> impl FnMut() -> u32 {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    }
}

fn v4(number: u32) -> Address {
    Address::from_v4(number.to_be_bytes())
}

/// Counts packets at `per_second` from second 1200 on and asks for records every 256, as the live loop does; flushes at the end.
fn records_of(
    aggregates: &mut Aggregates,
    packets: usize,
    per_second: f64,
    mut nth: impl FnMut(usize, f64) -> Packet,
) -> Vec<FlowRecord> {
    let (mut out, mut left) = (Vec::new(), 0);
    for n in 0..packets {
        let at = 1200.0 + n as f64 / per_second;
        aggregates.count(&nth(n, at));
        if n % 256 == 255 {
            left += aggregates.expire(Timestamp::from_nanos((at * 1e9) as i64), &mut out);
            assert!(aggregates.len() <= aggregates.entries_max + LAST_MAX);
        }
    }
    let recorded = |out: &[FlowRecord]| out.iter().map(FlowRecord::packets_total).sum::<u64>();
    assert_eq!(recorded(&out), left, "what expire says has left is what the records say");
    assert_eq!(recorded(&out) + aggregates.packets_held(), packets as u64, "every packet is held or recorded");
    left += aggregates.flush(FlowEndReason::ForcedEnd, &mut out);
    assert_eq!((recorded(&out), left), (packets as u64, packets as u64));
    assert_eq!((aggregates.len(), aggregates.packets_held()), (0, 0));
    assert!(aggregates.taken.iter().all(|&taken| taken == 0) && aggregates.taken_of_host.iter().all(|taken| *taken == [0; 5]));
    out
}

/// Of all packets, how many are in records that `tells` is true of, in ‰.
fn permille(records: &[FlowRecord], tells: impl Fn(&FlowRecord) -> bool) -> u64 {
    let all: u64 = records.iter().map(FlowRecord::packets_total).sum();
    1000 * records.iter().filter(|record| tells(record)).map(FlowRecord::packets_total).sum::<u64>() / all
}

#[test]
fn a_flood_of_ten_million_random_sources_is_some_hundred_records_that_all_name_the_victim() {
    let (mut aggregates, mut random) = (aggregates(AGGREGATES_MAX), random());
    let records =
        records_of(&mut aggregates, 10_000_000, 10_000_000.0 / 59.0, |_, at| syn(v4(random()), address(VICTIM), 443, at));
    assert!(records.len() <= 300, "{} records", records.len());
    for record in &records {
        assert_eq!((record.destination, record.destination_port), (address(VICTIM), 443));
        assert_eq!(record.prefix_lengths[1], 32);
        assert_eq!((record.tcp_flags[FORWARD], record.source_port), (tcp::SYN, 0));
        assert!(record.prefix_lengths[0] >= 1);
        let bits = 96 + u32::from(record.prefix_lengths[0]);
        assert_eq!(record.source.0 & u128::MAX.checked_shr(bits).unwrap_or(0), 0, "bits beyond the prefix are zero");
    }
    assert_eq!(records.iter().map(|record| record.octets[FORWARD]).sum::<u64>(), 400_000_000);
}

#[test]
fn a_flood_on_random_ports_names_the_victim_too() {
    let (mut aggregates, mut random) = (aggregates(AGGREGATES_MAX), random());
    let records = records_of(&mut aggregates, 200_000, 10_000.0, |_, at| syn(v4(random()), address(VICTIM), random() as u16, at));
    assert!(records.iter().all(|record| record.destination == address(VICTIM) && record.prefix_lengths[1] == 32));
    assert!(records.len() <= 400, "{} records", records.len());
}

#[test]
fn a_sweep_names_the_sweeper_and_its_port() {
    let (mut aggregates, mut random) = (aggregates(AGGREGATES_MAX), random());
    let sweeper = address("198.51.100.9");
    let records = records_of(&mut aggregates, 500_000, 10_000.0, |_, at| syn(sweeper, v4(10 << 24 | random() >> 8), 502, at));
    assert!(records.len() <= 200, "{} records", records.len());
    for record in &records {
        assert_eq!((record.source, record.prefix_lengths[0], record.destination_port), (sweeper, 32, 502));
    }
}

#[test]
fn a_scan_of_all_ports_of_one_host_names_both() {
    let mut aggregates = aggregates(AGGREGATES_MAX);
    let scanner = address("198.51.100.9");
    let records = records_of(&mut aggregates, 65_535, 10_000.0, |n, at| syn(scanner, address(VICTIM), n as u16 + 1, at));
    assert!(records.len() <= 150, "{} records", records.len());
    assert!(records.iter().all(|record| (record.source, record.destination) == (scanner, address(VICTIM))));
    assert!(records.iter().all(|record| record.prefix_lengths == [32, 32]));
}

#[test]
fn a_reflection_names_the_victim_and_the_service_that_reflects() {
    let (mut aggregates, mut random) = (aggregates(AGGREGATES_MAX), random());
    let records = records_of(&mut aggregates, 200_000, 50_000.0, |_, at| {
        packet(protocol::UDP, Speech::Response, (v4(random()), 53), (address(VICTIM), random() as u16), at)
    });
    for record in &records {
        assert_eq!((record.source_port, record.destination, record.destination_port), (53, address(VICTIM), 0));
    }
    assert!(records.len() <= 300, "{} records", records.len());
}

#[test]
fn attackers_of_a_few_networks_are_told_by_these() {
    let (mut aggregates, mut random) = (aggregates(AGGREGATES_MAX), random());
    let records = records_of(&mut aggregates, 400_000, 40_000.0, |n, at| {
        let network = [0x0a01_0000, 0xac10_0000, 0xc633_0000][n % 3];
        syn(v4(network | random() >> 16), address(VICTIM), 443, at)
    });
    let networks: HashSet<_> =
        records.iter().filter(|record| record.prefix_lengths == [16, 32]).map(|record| record.source.to_string()).collect();
    assert_eq!(networks, ["10.1.0.0", "172.16.0.0", "198.51.0.0"].map(String::from).into());
    assert!(permille(&records, |record| record.prefix_lengths == [16, 32]) >= 998);
}

#[test]
fn noise_that_came_first_leaves_room_to_describe_a_flood_and_a_sweep() {
    let (mut aggregates, mut random) = (aggregates(64), random());
    let sweeper = address("198.51.100.9");
    let mut said = [0_u64; 3];
    let records = records_of(&mut aggregates, 600_000, 20_000.0, |n, at| {
        let about = if n < 100_000 { 2 } else { n % 3 };
        said[about] += 1;
        match about {
            0 => syn(v4(random()), address(VICTIM), 443, at),
            1 => syn(sweeper, v4(random()), 502, at),
            _ => syn(v4(random()), v4(random()), random() as u16, at),
        }
    });
    let told = |tells: &dyn Fn(&FlowRecord) -> bool| {
        records.iter().filter(|record| tells(record)).map(FlowRecord::packets_total).sum::<u64>()
    };
    let flood = told(&|record| record.destination == address(VICTIM) && record.prefix_lengths[1] == 32);
    let sweep = told(&|record| record.source == sweeper && record.prefix_lengths[0] == 32);
    assert!(flood >= said[0] * 95 / 100 && flood <= said[0], "{flood} of {said:?}");
    assert!(sweep >= said[1] * 95 / 100 && sweep <= said[1], "{sweep} of {said:?}");
}

#[test]
fn whatever_comes_has_a_place_and_a_prefix_in_a_table_of_hardly_any() {
    let (mut aggregates, mut random) = (aggregates(4), random());
    let records = records_of(&mut aggregates, 300_000, 1_000.0, |n, at| {
        let protocol = random() as u8;
        let speech = [Speech::Request, Speech::Response, Speech::Silent][n % 3];
        let mut packet = match random() % 3 {
            0 => packet(protocol, speech, (v4(random()), random() as u16), (v4(random()), random() as u16), at),
            1 => {
                let v6 =
                    |random: &mut dyn FnMut() -> u32| Address(u128::from(random() | 0x2000_0000) << 96 | u128::from(random()));
                packet(protocol, speech, (v6(&mut random), random() as u16), (v6(&mut random), random() as u16), at)
            }
            _ => {
                let mut packet = Packet::blank(Timestamp::from_nanos((at * 1e9) as i64), 60);
                packet.key = FlowKey { detail: random() as u16, protocol: LAYER2, ..FlowKey::NONE };
                packet.key.kind = if random() % 2 == 0 { Kind::Layer2 } else { Kind::Llc } as u8;
                packet
            }
        };
        packet.key.vlan = (random() % 4096) as u16;
        packet
    });
    assert!(records.iter().all(|record| record.prefix_lengths[0] > 0 && record.prefix_lengths[1] > 0));
    // Octets of IP are counted where there is IP.
    assert!(
        records.iter().all(|record| record.octets[FORWARD] == if record.is_layer2() { 0 } else { 40 * record.packets[FORWARD] })
    );
}

#[test]
fn ipv6_and_icmp_are_described_in_the_same_spirit() {
    let (mut aggregates, mut random) = (aggregates(AGGREGATES_MAX), random());
    let victim: IpAddr = "2001:db8::7".parse().expect("an address");
    let records = records_of(&mut aggregates, 100_000, 10_000.0, |_, at| {
        let source = Address(0x2001_0db8 << 96 | u128::from(random()) << 64 | u128::from(random()));
        let mut echo = packet(protocol::ICMPV6, Speech::Request, (source, 7), (victim.into(), 7), at);
        echo.icmp_type_code = 128 << 8;
        echo
    });
    for record in &records {
        assert_eq!((record.destination, record.prefix_lengths[1]), (victim.into(), 128));
        assert_eq!((record.icmp_type_code[FORWARD], record.destination_port, record.ethernet_type), (128 << 8, 0, 0x86dd));
        assert!([128, 48, 12].contains(&record.prefix_lengths[0]), "{:?}", record.prefix_lengths);
    }
    assert!(records.len() <= 200, "{} records", records.len());
}

#[test]
fn an_aggregate_begins_is_cut_at_the_minute_and_ends_like_any_flow() {
    let mut aggregates = aggregates(AGGREGATES_MAX);
    let mut out = Vec::new();
    let at = |secs: f64| Timestamp::from_nanos((secs * 1e9) as i64);
    let probe = |secs: f64| syn(address("203.0.113.5"), address(VICTIM), 80, secs);
    aggregates.count(&probe(1250.0));
    aggregates.expire(at(1250.4), &mut out);
    assert_eq!(out.len(), 0);
    aggregates.expire(at(1250.5), &mut out);
    aggregates.count(&probe(1259.9));
    // The packet of the next minute is counted before anybody says that the minute is over, as a batch may have both.
    aggregates.count(&probe(1260.0));
    aggregates.expire(at(1260.01), &mut out);
    aggregates.expire(at(1319.9), &mut out);
    aggregates.expire(at(1320.0), &mut out);
    let facts = |record: &FlowRecord| (record.state, record.end_reason, record.packets[0], record.start[0], record.end[0]);
    let expected = [
        (FlowState::Begin, FlowEndReason::None, 0, at(1250.0), at(1250.0)),
        (FlowState::Continue, FlowEndReason::ActiveTimeout, 2, at(1250.0), at(1259.9)),
        (FlowState::End, FlowEndReason::IdleTimeout, 1, at(1260.0), at(1260.0)),
    ];
    assert_eq!(out.iter().map(facts).collect::<Vec<_>>(), expected);
    assert!(out.iter().all(|record| record.flow_id == out[0].flow_id && record.prefix_lengths == [32, 32]));
}

#[test]
fn a_record_is_of_one_sampling_rate() {
    let mut aggregates = aggregates(AGGREGATES_MAX);
    let mut out = Vec::new();
    for n in 0..100 {
        if n == 60 {
            aggregates.sample(4);
        }
        aggregates.count(&syn(address("203.0.113.5"), address(VICTIM), 80, 1200.0));
    }
    aggregates.flush(FlowEndReason::ForcedEnd, &mut out);
    let facts: Vec<_> = out.iter().map(|record| (record.state, record.sampling_population, record.packets[FORWARD])).collect();
    assert_eq!(facts, [(FlowState::Begin, 0, 0), (FlowState::Continue, 0, 60), (FlowState::End, 4, 40)]);
}
