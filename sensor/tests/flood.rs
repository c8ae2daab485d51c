//! A full table and a flood, through the whole middle of the line: nothing is lost, established flows stay exact, memory stays as it is.

use std::collections::HashMap;
use std::time::Duration;

use spanwatch_common::flow::{FORWARD, FlowEndReason, FlowRecord, FlowState, REVERSE, tcp};
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::{Frame, Losses};
use spanwatch_sensor::flow_table::{FlowTableSettings, KeyHasher, Observer};
use spanwatch_sensor::worker::{MeterSettings, Worker};

const VICTIM: [u8; 4] = [192, 0, 2, 7];
const CLIENT: [u8; 4] = [198, 51, 100, 1];
const SERVER: [u8; 4] = [198, 51, 100, 2];

/// The 60 octets of a TCP segment without payload.
fn segment(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16, flags: u16) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    frame[34..36].copy_from_slice(&source_port.to_be_bytes());
    frame[36..38].copy_from_slice(&destination_port.to_be_bytes());
    frame[46..50].copy_from_slice(&[0x50, flags as u8, 2, 0]);
    frame
}

/// A worker, the time, and what came of its records.
struct Line {
    worker: Worker,
    now: Timestamp,
    sent: u64,
    records: u64,
    exported: u64,
    aggregated: u64,
    /// Packets each way of the connections between [`CLIENT`] and [`SERVER`], by the client's port.
    established: HashMap<u16, [u64; 2]>,
    wrong: Vec<FlowRecord>,
}

impl Line {
    fn new(flows_max: usize) -> Self {
        let flow_table = FlowTableSettings { flows_max, ..FlowTableSettings::default() };
        let settings = MeterSettings { flow_table, ..MeterSettings::default() };
        let worker = Worker::new(&settings, KeyHasher::fixed(), Observer::default()).expect("a little memory");
        Self {
            worker,
            now: Timestamp::from_secs(1_200),
            sent: 0,
            records: 0,
            exported: 0,
            aggregated: 0,
            established: HashMap::new(),
            wrong: Vec::new(),
        }
    }

    fn send(&mut self, frame: &[u8; 60]) {
        self.worker.take(&[Frame::ethernet(frame, 60, self.now)]);
        self.sent += 1;
    }

    /// Lets time pass, and takes the records away.
    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.worker.settle(self.now);
        self.read();
    }

    fn read(&mut self) {
        for record in self.worker.records().iter() {
            self.records += 1;
            self.exported += record.packets_total();
            if record.prefix_lengths != [0, 0] {
                self.aggregated += record.packets_total();
                let names_victim = record.destination.to_string() == "192.0.2.7" && record.prefix_lengths[1] == 32;
                let is_flood = names_victim && record.destination_port == 80 && record.tcp_flags == [tcp::SYN, 0];
                let says_something = record.packets_total() > 0 || record.state == FlowState::Begin;
                if says_something && !is_flood && self.wrong.len() < 5 {
                    self.wrong.push(record);
                }
            } else if record.source.to_string() == "198.51.100.1" {
                let sum = self.established.entry(record.source_port).or_default();
                sum[FORWARD] += record.packets[FORWARD];
                sum[REVERSE] += record.packets[REVERSE];
                if record.state == FlowState::End && record.end_reason == FlowEndReason::LackOfResources {
                    self.wrong.push(record);
                }
            }
        }
        self.worker.records().clear();
    }

    /// The SYN, SYN+ACK and ACK of a connection.
    fn shake_hands(&mut self, port: u16) {
        self.send(&segment(CLIENT, port, SERVER, 443, tcp::SYN));
        self.send(&segment(SERVER, 443, CLIENT, port, tcp::SYN | tcp::ACK));
        self.send(&segment(CLIENT, port, SERVER, 443, tcp::ACK));
    }

    /// Ends every flow and holds the account against what was sent.
    fn close(&mut self) {
        let before = self.worker.audited_ledger(&Losses::default());
        assert_eq!(before.metered, before.exported + before.live, "live is added up flow by flow");
        self.worker.flush(FlowEndReason::ForcedEnd);
        self.read();
        let ledger = self.worker.audited_ledger(&Losses { wire: self.sent, ..Losses::default() });
        assert_eq!(ledger.imbalance(), None);
        assert_eq!((ledger.metered, ledger.exported, ledger.live), (self.sent, self.exported, 0));
        assert_eq!((ledger.flows.records, ledger.odd.in_aggregate), (self.records, self.aggregated));
        assert!(self.wrong.is_empty(), "{:?}", self.wrong);
    }
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

#[test]
fn a_table_full_of_conversations_keeps_them_all_and_describes_the_flood() {
    let (mut line, mut random) = (Line::new(1000), random());
    for port in 1..=1000 {
        line.shake_hands(port);
    }
    line.pass(Duration::from_millis(100));
    for _ in 0..100 {
        for _ in 0..1000 {
            let source = random();
            line.send(&segment(source.to_be_bytes(), source as u16, VICTIM, 80, tcp::SYN));
        }
        for port in 1..=1000 {
            line.send(&segment(SERVER, 443, CLIENT, port, tcp::ACK));
        }
        line.pass(Duration::from_secs(1));
    }
    line.close();
    assert_eq!(line.aggregated, 100_000, "no place was free at any time");
    assert_eq!(line.worker.ledger(&Losses::default()).flows.evicted, 0);
    assert_eq!(line.established.len(), 1000);
    assert!(line.established.values().all(|packets| *packets == [2, 101]), "{:?}", line.established);
}

#[test]
fn a_flood_of_ten_million_flows_takes_no_memory_and_leaves_a_conversation_exact() {
    let (mut line, mut random) = (Line::new(65_536), random());
    line.shake_hands(50_000);
    let mut resident = Vec::new();
    // 1 million packets a second for ten seconds; the connection speaks ten times a second.
    for millis in 0..10_000 {
        for _ in 0..1000 {
            let source = random();
            line.send(&segment(source.to_be_bytes(), source as u16, VICTIM, 80, tcp::SYN));
        }
        if millis % 100 == 0 {
            line.send(&segment(CLIENT, 50_000, SERVER, 443, tcp::ACK));
        }
        if millis % 1000 == 999 {
            resident.push(resident_kib());
        }
        line.pass(Duration::from_millis(1));
    }
    line.close();
    assert_eq!(line.established, HashMap::from([(50_000, [102, 1])]));
    // All that the table and the aggregates will ever use was in use after a few seconds.
    assert!(resident[9] <= resident[3] * 105 / 100, "{resident:?} KiB");
    let ledger = line.worker.ledger(&Losses::default());
    let (evicted, records) = (ledger.flows.evicted, ledger.flows.records);
    println!("{evicted} flows gave way, {} packets in aggregates, {records} records", ledger.odd.in_aggregate);
    // 100,000 a second may give way. Each flow of the table is a Begin and an End record; aggregates describe all others in a few hundred.
    assert!(evicted <= 1_000_000, "{evicted} evicted");
    assert!(records <= 2 * (65_536 + evicted) + 500, "{records} records");
}

/// Memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
