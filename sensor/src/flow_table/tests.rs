use std::collections::HashMap;

use proptest::prelude::*;
use spanwatch_common::flow::{BiflowDirection, FORWARD, FlowEndReason, FlowRecord, FlowState, REVERSE};

use super::*;
use crate::capture::Frame;
use crate::decode::{self, Rules};

mod fields;
mod tcp_facts;

/// Builds packets the way one says them: `tcp("10.0.0.1:40000 > 10.0.0.2:502").flags(SYN).at(1.0)`.
#[derive(Clone)]
struct Said {
    bytes: Vec<u8>,
    at: Timestamp,
}

fn said(protocol: u8, ends: &str) -> Said {
    let end = |text: &str| -> ([u8; 4], u16) {
        let (address, port) = text.trim().split_once(':').expect("address:port");
        (address.parse::<std::net::Ipv4Addr>().expect("an address").octets(), port.parse().expect("a port"))
    };
    let (from, to) = ends.split_once('>').expect("from > to");
    let ((source, source_port), (destination, destination_port)) = (end(from), end(to));
    let mut bytes = vec![2, 0, 0, 0, 0, destination[3], 2, 0, 0, 0, 0, source[3], 8, 0];
    bytes.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0x50, 0, 2, 0, 0, 0, 0, 0]);
    Said { bytes, at: Timestamp::from_secs(1) }
}

fn tcp(ends: &str) -> Said {
    said(6, ends)
}

fn udp(ends: &str) -> Said {
    said(17, ends)
}

impl Said {
    fn flags(mut self, flags: u16) -> Self {
        self.bytes[47] = flags as u8;
        self
    }

    fn at(mut self, secs: f64) -> Self {
        self.at = Timestamp::from_nanos((secs * 1e9) as i64);
        self
    }

    fn seq(mut self, number: u32) -> Self {
        self.bytes[38..42].copy_from_slice(&number.to_be_bytes());
        self
    }

    fn ack(mut self, number: u32) -> Self {
        self.bytes[42..46].copy_from_slice(&number.to_be_bytes());
        self.bytes[47] |= ACK as u8;
        self
    }

    fn window(mut self, octets: u16) -> Self {
        self.bytes[48..50].copy_from_slice(&octets.to_be_bytes());
        self
    }

    /// Octets of payload, which the mirror cut off.
    fn len(mut self, octets: u16) -> Self {
        self.bytes[16..18].copy_from_slice(&(40 + octets).to_be_bytes());
        self
    }

    fn packet(&self) -> Packet {
        let ip_octets = u16::from_be_bytes([self.bytes[16], self.bytes[17]]);
        let frame = Frame::ethernet(&self.bytes, 14 + u32::from(ip_octets), self.at);
        decode::decode(&frame, &Rules::default(), &mut Around::default()).expect("Ethernet")
    }
}

use spanwatch_common::flow::tcp::{ACK, FIN, RST, SYN};

struct Bench {
    table: FlowTable,
    records: Vec<FlowRecord>,
}

fn table(settings: &FlowTableSettings) -> Bench {
    let table = FlowTable::new(settings, KeyHasher::fixed(), Observer::default()).expect("a little memory");
    Bench { table, records: Vec::new() }
}

impl Bench {
    fn see(&mut self, said: &Said) -> &mut Self {
        self.observe(&[said.packet()]);
        self
    }

    fn observe(&mut self, packets: &[Packet]) {
        self.gather(|table, out| table.observe(packets, out));
    }

    fn expire(&mut self, now: Timestamp) {
        self.gather(|table, out| table.expire(now, out));
    }

    fn flush(&mut self, reason: FlowEndReason) {
        self.gather(|table, out| table.flush(reason, out));
    }

    fn gather(&mut self, act: impl FnOnce(&mut FlowTable, &mut Records)) {
        let mut out = Records::default();
        act(&mut self.table, &mut out);
        self.records.extend(out.iter());
    }

    fn until(&mut self, secs: f64) -> Vec<FlowRecord> {
        // In steps, as a live sensor does.
        let end = (secs * 10.0) as i64;
        for tenth in self.table.swept.as_nanos() / 100_000_000..=end {
            self.expire(Timestamp::from_nanos(tenth * 100_000_000));
        }
        std::mem::take(&mut self.records)
    }
}

fn states(records: &[FlowRecord]) -> Vec<(FlowState, FlowEndReason, [u64; 2])> {
    records.iter().map(|r| (r.state, r.end_reason, r.packets)).collect()
}

#[test]
fn a_connection_is_begun_within_a_second_and_ends_five_seconds_after_its_fins() {
    let mut bench = table(&FlowTableSettings::default());
    let (client, server) = ("10.0.0.1:40000 > 10.0.0.2:502", "10.0.0.2:502 > 10.0.0.1:40000");
    bench.see(&tcp(client).flags(SYN).at(1.0)).see(&tcp(server).flags(SYN | ACK).at(1.1)).see(&tcp(client).flags(ACK).at(1.2));
    let begun = bench.until(2.0);
    assert_eq!(states(&begun), [(FlowState::Begin, FlowEndReason::None, [0, 0])]);
    assert_eq!(begun[0].tcp_flags, [SYN | ACK, SYN | ACK]);
    assert_eq!(begun[0].biflow_direction, BiflowDirection::Initiator);
    bench.see(&tcp(client).flags(FIN | ACK).at(3.0)).see(&tcp(server).flags(FIN | ACK).at(3.1));
    assert_eq!(bench.until(8.0), []);
    let ended = bench.until(9.5);
    assert_eq!(states(&ended), [(FlowState::End, FlowEndReason::EndOfFlow, [3, 2])]);
    assert_eq!((ended[0].source_port, ended[0].destination_port), (40000, 502));
    assert_eq!(ended[0].octets, [120, 80]);
    assert_eq!((ended[0].start[FORWARD], ended[0].end[REVERSE]), (Timestamp::from_secs(1), Timestamp::from_nanos(3_100_000_000)));
    assert_eq!(ended[0].initial_tcp_flags, [SYN, SYN | ACK]);
    assert_eq!(ended[0].flow_id, begun[0].flow_id);
}

#[test]
fn each_kind_of_silence_has_its_own_patience() {
    for (said, idle) in [
        (tcp("10.0.0.1:40000 > 10.0.0.2:502").flags(SYN), 10.0),
        (tcp("10.0.0.1:40000 > 10.0.0.2:502").flags(ACK), 300.0),
        (udp("10.0.0.1:40000 > 10.0.0.2:9999"), 15.0),
        (said(89, "10.0.0.1:0 > 10.0.0.2:0"), 60.0),
    ] {
        let mut bench = table(&FlowTableSettings::default());
        bench.see(&said.at(1.0));
        let ended = |records: Vec<FlowRecord>| records.iter().any(|r| r.state == FlowState::End);
        assert!(!ended(bench.until(idle + 0.8)), "{idle}");
        assert!(ended(bench.until(idle + 2.2)), "{idle}");
    }
}

#[test]
fn a_long_flow_is_cut_on_the_minute_and_its_deltas_add_up() {
    let mut bench = table(&FlowTableSettings::default());
    let mut records = Vec::new();
    for second in 50..200 {
        bench.see(&udp("10.0.0.1:40000 > 10.0.0.2:9999").at(f64::from(second) + 0.5));
        records.extend(bench.until(f64::from(second) + 0.9));
    }
    records.extend(bench.until(300.0));
    let forward: Vec<_> =
        records.iter().map(|r| (r.state, r.packets[FORWARD], r.start[FORWARD].as_millis(), r.end[FORWARD].as_millis())).collect();
    assert_eq!(
        forward,
        [
            (FlowState::Begin, 0, 50_500, 51_500),
            (FlowState::Continue, 10, 50_500, 59_500),
            (FlowState::Continue, 60, 60_500, 119_500),
            (FlowState::Continue, 60, 120_500, 179_500),
            (FlowState::Continue, 20, 180_500, 199_500),
            (FlowState::End, 0, 199_500, 199_500),
        ]
    );
    assert!(records.iter().all(|r| r.flow_id == records[0].flow_id));
}

#[test]
fn a_flow_that_meets_the_minute_at_once_is_begun_before_it_is_continued() {
    let mut bench = table(&FlowTableSettings::default());
    let said = udp("10.0.0.1:40000 > 10.0.0.2:9999");
    bench.see(&said.clone().at(59.9)).see(&said.at(60.1));
    let records = bench.until(60.9);
    let forward = [[0, 0], [1, 0]];
    assert_eq!(records.iter().map(|r| r.packets).collect::<Vec<_>>(), forward);
    assert_eq!(records.iter().map(|r| r.state).collect::<Vec<_>>(), [FlowState::Begin, FlowState::Continue]);
}

#[test]
fn silence_ends_a_flow_also_when_nobody_looked_in_between() {
    let mut bench = table(&FlowTableSettings::default());
    let said = udp("10.0.0.1:40000 > 10.0.0.2:9999");
    let packets = [said.clone().at(1.0).packet(), said.clone().at(2.0).packet(), said.at(62.0).packet()];
    bench.observe(&packets);
    assert_eq!(states(&bench.records), [(FlowState::End, FlowEndReason::IdleTimeout, [2, 0])]);
    assert_eq!(bench.table.counts().flows.live, 1);
}

#[test]
fn two_connections_within_one_tick_of_the_clock_have_their_own_names() {
    let mut bench = table(&FlowTableSettings::default());
    let syn = tcp("10.0.0.1:40000 > 10.0.0.2:502").flags(SYN);
    bench.see(&syn).see(&tcp("10.0.0.2:502 > 10.0.0.1:40000").flags(RST | ACK)).see(&syn);
    bench.flush(FlowEndReason::ForcedEnd);
    assert_eq!(bench.records.len(), 2);
    assert_ne!(bench.records[0].flow_id, bench.records[1].flow_id);
}

#[test]
fn nobody_is_asked_by_a_group() {
    // An mDNS answer, sent to everybody without a question.
    let mut announced = udp("10.0.0.1:5353 > 224.0.0.251:5353");
    announced.bytes[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 251]);
    announced.bytes[44] = 0x84;
    let mut bench = table(&FlowTableSettings::default());
    let record = bench.see(&announced).until(2.0).remove(0);
    assert_eq!((record.source.to_string(), record.biflow_direction), ("10.0.0.1".to_owned(), BiflowDirection::Arbitrary));
}

#[test]
fn who_opened_is_judged_by_what_was_said_then_by_ports() {
    let initiator = |said: Said| {
        let mut bench = table(&FlowTableSettings::default());
        let record = bench.see(&said).until(2.0).remove(0);
        (record.source.to_string(), record.biflow_direction)
    };
    let first = |direction| ("10.0.0.1".to_owned(), direction);
    assert_eq!(initiator(tcp("10.0.0.1:502 > 10.0.0.2:40000").flags(SYN)), first(BiflowDirection::Initiator));
    assert_eq!(initiator(tcp("10.0.0.2:40000 > 10.0.0.1:502").flags(SYN | ACK)), first(BiflowDirection::ReverseInitiator));
    assert_eq!(initiator(tcp("10.0.0.2:502 > 10.0.0.1:40000").flags(ACK)), first(BiflowDirection::ReverseInitiator));
    assert_eq!(initiator(udp("10.0.0.1:40000 > 10.0.0.2:502")), first(BiflowDirection::Initiator));
    assert_eq!(initiator(udp("10.0.0.1:40000 > 10.0.0.2:50000")), first(BiflowDirection::Arbitrary));
}

#[test]
fn a_syn_ack_that_is_answered_with_rst_was_a_probe_by_its_sender() {
    let mut bench = table(&FlowTableSettings::default());
    bench.see(&tcp("10.0.0.9:40000 > 10.0.0.2:502").flags(SYN | ACK).at(1.0));
    let record = bench.see(&tcp("10.0.0.2:502 > 10.0.0.9:40000").flags(RST).at(1.1)).until(2.0).remove(0);
    assert_eq!((record.source.to_string(), record.destination_port), ("10.0.0.9".to_owned(), 502));
    assert_eq!(record.initial_tcp_flags, [SYN | ACK, RST]);
}

#[test]
fn a_new_syn_on_a_closed_connection_is_a_new_flow() {
    let mut bench = table(&FlowTableSettings::default());
    let syn = tcp("10.0.0.1:40000 > 10.0.0.2:502").flags(SYN);
    bench.see(&syn.clone().at(1.0)).see(&tcp("10.0.0.2:502 > 10.0.0.1:40000").flags(RST | ACK).at(1.1)).see(&syn.at(1.2));
    let records = bench.until(20.0);
    let ends: Vec<_> = records.iter().filter(|r| r.state == FlowState::End).map(|r| (r.packets, r.end_reason)).collect();
    assert_eq!(ends, [([1, 1], FlowEndReason::EndOfFlow), ([1, 0], FlowEndReason::IdleTimeout)]);
    assert_ne!(records[0].flow_id, records[records.len() - 1].flow_id);
}

#[test]
fn a_full_table_gives_up_half_open_flows_before_established_ones_and_counts_them() {
    let settings = FlowTableSettings { flows_max: 64, ..FlowTableSettings::default() };
    let mut bench = table(&settings);
    for client in 0..16 {
        let (there, back) = (format!("10.1.0.{client}:40000 > 10.0.0.2:502"), format!("10.0.0.2:502 > 10.1.0.{client}:40000"));
        bench.see(&tcp(&there).flags(SYN)).see(&tcp(&back).flags(SYN | ACK)).see(&tcp(&there).flags(ACK));
    }
    for n in 0..10_000_u32 {
        let [_, _, c, d] = n.to_be_bytes();
        bench.see(&tcp(&format!("10.9.{c}.{d}:1024 > 10.0.0.3:80")).flags(SYN).at(1.0 + f64::from(n) * 1e-5));
        assert!(bench.table.counts().flows.live <= 64);
    }
    let counts = bench.table.counts();
    assert_eq!(counts.flows.evicted, 10_000 + 16 - 64);
    let evicted: Vec<_> = bench.records.iter().filter(|r| r.end_reason == FlowEndReason::LackOfResources).collect();
    assert_eq!(evicted.len() as u64, counts.flows.evicted);
    assert!(evicted.iter().all(|r| r.packets == [1, 0]), "an established connection was given up");
    assert_eq!(counts.metered, counts.exported + bench.table.packets_held());
}

#[test]
fn counters_that_outgrow_their_line_go_on_beside_it() {
    let mut bench = table(&FlowTableSettings::default());
    let packet = Packet { frame_octets: u32::MAX - 10, ip_octets: u32::MAX - 20, ..udp("10.0.0.1:1 > 10.0.0.2:2").packet() };
    // The IP header may claim more than the frame had.
    let boastful = Packet { frame_octets: 60, ip_octets: 100, ..packet };
    for n in 0..200_000 {
        let packet = if n % 2 == 0 { packet } else { boastful };
        bench.observe(&[packet]);
    }
    assert_eq!(bench.table.packets_held(), 200_000);
    bench.flush(FlowEndReason::ForcedEnd);
    assert_eq!(states(&bench.records), [(FlowState::End, FlowEndReason::ForcedEnd, [200_000, 0])]);
    assert_eq!(bench.records[0].octets[0], 100_000 * (u64::from(u32::MAX - 20) + 100));
    assert_eq!(bench.records[0].layer2_octets[0], 100_000 * (u64::from(u32::MAX - 10) + 60));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever arrives, in whatever order and however small the table: every packet leaves in exactly one record of its flow.
    #[test]
    fn what_went_in_comes_out(
        packets in prop::collection::vec((0_u8..40, 0_u8..3, any::<bool>(), 0_u16..64, 0_i64..400_000, any::<[u8; 5]>()), 1..600),
        flows_max in 64_usize..200,
    ) {
        let mut bench = table(&FlowTableSettings { flows_max, ..FlowTableSettings::default() });
        let mut expected: HashMap<(u8, u8), [u64; 2]> = HashMap::new();
        let mut now = 0;
        for (host, port, back, flags, millis, [seq, ack, len, window, far]) in packets {
            // Mostly forwards in time, now and then a little back.
            now = if millis % 7 == 0 { now } else { now.max(millis) };
            let ends = if back { format!("10.0.0.2:{} > 10.1.0.{host}:1000", 500 + u16::from(port)) }
                       else { format!("10.1.0.{host}:1000 > 10.0.0.2:{}", 500 + u16::from(port)) };
            let mut said = tcp(&ends).flags(flags).at(millis.min(now) as f64 / 1e3).len(u16::from(len)).window(u16::from(window % 4));
            // Mostly near each other, so that there are gaps, now and then anywhere.
            let numbers = [(38, seq), (42, ack)].map(|(at, number)| (at, u32::from(number) << if far % 8 == 0 { 24 } else { 2 }));
            for (at, number) in numbers {
                said.bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
            bench.see(&said);
            expected.entry((host, port)).or_default()[usize::from(back)] += 1;
            if millis % 5 == 0 {
                bench.expire(Timestamp::from_nanos(now * 1_000_000));
            }
            let counts = bench.table.counts();
            prop_assert_eq!(counts.metered, counts.exported + bench.table.packets_held());
        }
        bench.flush(FlowEndReason::ForcedEnd);
        prop_assert_eq!(bench.table.counts().flows.live, 0);
        let mut found: HashMap<(u8, u8), [u64; 2]> = HashMap::new();
        for record in &bench.records {
            let (host, port, forward) = if record.destination_port == 1000 {
                (record.destination, record.source_port, 1)
            } else {
                (record.source, record.destination_port, 0)
            };
            let sums = found.entry((host.0 as u8, (port - 500) as u8)).or_default();
            sums[forward] += record.packets[FORWARD];
            sums[forward ^ 1] += record.packets[REVERSE];
        }
        prop_assert_eq!(found, expected);
    }
}
