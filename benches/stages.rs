//! One bench for each stage of the line, and one for the whole, over frames in memory.
//!
//! ```text
//! cargo bench --bench stages                       every bench: nanoseconds per packet (or record), median and least of 15 rounds
//! cargo bench --bench stages -- line               only those whose name contains "line"
//! stages --count NAME ROUNDS                       run one bench so many rounds and print nothing: for callgrind, see instructions.py
//! ```
//! Rounds of all benches alternate, so that a noisy neighbour hits each of them.

use std::hint::black_box;
use std::time::Instant;

use spanwatch_common::flow::{FlowEndReason, FlowRecord};
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{self, Batch, Message};
use spanwatch_sensor::capture::{BATCH, Frame};
use spanwatch_sensor::decode::{Around, Packet, Rules, decode};
use spanwatch_sensor::dedup::DedupMode;
use spanwatch_sensor::flow_settings::FlowSettings;
use spanwatch_sensor::flow_table::{FlowTable, FlowTableSettings, KeyHasher, Observer, Records};
use spanwatch_sensor::worker::{MeterSettings, Worker};

const ROUNDS: usize = 15;
/// Packets in a round: enough that every flow is hit, few enough to alternate.
const PACKETS: usize = 1 << 20;
/// A capture delivers this many at a time.
const POLL: usize = 256;

/// Work that can be repeated: `run` does one round and says how many packets (or records) it handled.
struct Bench {
    name: &'static str,
    unit: &'static str,
    run: Box<dyn FnMut() -> usize>,
}

/// Ethernet frames of 60 octets, one after the other: TCP with ACK, a uniformly random one of `flows` each, both ways.
fn frames(flows: u32, packets: usize) -> Vec<[u8; 60]> {
    let mut state = 1_u64;
    (0..packets)
        .map(|number| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let flow = (((state >> 32) * u64::from(flows)) >> 32) as u32;
            let client = (0x0a00_0000 + flow).to_be_bytes();
            let port = (1024 + (flow & 0x7fff) as u16).to_be_bytes();
            let mut frame = [0; 60];
            frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
            frame[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
            frame[18..20].copy_from_slice(&(number as u16).to_be_bytes()); // identification, so that none is another's copy
            let (there, here) = if state & 1 << 20 == 0 { (0, 4) } else { (4, 0) };
            frame[26 + there..30 + there].copy_from_slice(&client);
            frame[26 + here..30 + here].copy_from_slice(&[192, 168, 0, 1]);
            let (there, here) = (there / 2, here / 2);
            frame[34 + there..36 + there].copy_from_slice(&port);
            frame[34 + here..36 + here].copy_from_slice(&502_u16.to_be_bytes());
            (frame[46], frame[47]) = (0x50, 0x10);
            frame[48] = 0x20; // a window that is not closed
            frame
        })
        .collect()
}

const START: i64 = 1_700_000_000;

fn packets(flows: u32) -> Vec<Packet> {
    let at = Timestamp::from_secs(START);
    let rules = Rules::default();
    frames(flows, PACKETS)
        .iter()
        .map(|frame| decode(&Frame::ethernet(frame, 60, at), &rules, &mut Around::default()).expect("Ethernet"))
        .collect()
}

fn settings(flows: u32) -> FlowTableSettings {
    FlowTableSettings { flows_max: (flows as usize).max(786_432), ..FlowTableSettings::default() }
}

fn bench_decode() -> Box<dyn FnMut() -> usize> {
    let frames = frames(10_000, PACKETS);
    let rules = Rules::default();
    let mut around = Around::default();
    Box::new(move || {
        for frame in &frames {
            let frame = Frame::ethernet(black_box(frame), 60, Timestamp::from_secs(START));
            let _ = black_box(decode(&frame, &rules, &mut around));
        }
        frames.len()
    })
}

/// What is around the frame in the rows of the decode bench; the frame inside is the same TCP packet of 60 octets.
#[derive(Clone, Copy)]
enum Around60 {
    Vlan,
    Mpls,
    Pppoe,
    Gre,
    Erspan2,
    Erspan3,
    Vxlan,
    Geneve,
    IpInIp,
    Hsr,
    Prp,
    Goose,
}

impl Around60 {
    /// Layouts as in `sensor/src/decode/tests/wrapped.rs`, which proves them.
    fn wrap(self, frame: &[u8; 60]) -> Vec<u8> {
        let outer = |ethertype: u16, body: Vec<u8>| [&frame[..12], &ethertype.to_be_bytes(), &body].concat();
        let ip = |protocol: u8, body: &[u8]| {
            let total = (20 + body.len() as u16).to_be_bytes();
            let mut header =
                vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2];
            header.extend_from_slice(body);
            outer(0x0800, header)
        };
        let udp = |port: u16, body: &[u8]| {
            let ports = [50_000_u16.to_be_bytes(), port.to_be_bytes(), (8 + body.len() as u16).to_be_bytes(), [0; 2]];
            ip(17, &[&ports.concat(), body].concat())
        };
        let words =
            |words: &[u32], body: &[u8]| [words.iter().flat_map(|word| word.to_be_bytes()).collect(), body.to_vec()].concat();
        let tagged = |tag: &[u8]| [&frame[..12], tag, &frame[12..]].concat();
        match self {
            Self::Vlan => tagged(&[0x81, 0, 0, 120]),
            Self::Mpls => outer(0x8847, words(&[1000 << 12 | 0x13f], &frame[14..])),
            Self::Pppoe => outer(0x8864, words(&[0x1100_1234, 48 << 16 | 0x0021], &frame[14..])),
            Self::Gre => ip(47, &words(&[0x0000_6558], frame)),
            Self::Erspan2 => ip(47, &words(&[0x1000_88be, 9, 0x1064_1820, 0x12], frame)),
            Self::Erspan3 => ip(47, &words(&[0x1000_22eb, 9, 0x2064_0021, 0x1234_5678, 0x8000], frame)),
            Self::Vxlan => udp(4789, &words(&[0x0800_0000, 7777 << 8], frame)),
            Self::Geneve => udp(6081, &words(&[0x0200_6558, 99 << 8, 0x0108_0101, 5], frame)),
            Self::IpInIp => ip(4, &frame[14..]),
            Self::Hsr => tagged(&[0x89, 0x2f, 0, 52, 0, 7]),
            Self::Prp => [&frame[..], &[0, 7, 0xa0, 52, 0x88, 0xfb]].concat(),
            Self::Goose => {
                [&[1, 0x0c, 0xcd, 1, 0, 1], &frame[6..12], &[0x88, 0xb8, 0, 3, 0, 140, 0, 0, 0, 0], &[0x61; 132]].concat()
            }
        }
    }
}

fn bench_decode_of(around: Around60) -> Box<dyn FnMut() -> usize> {
    let frames: Vec<Vec<u8>> = frames(10_000, PACKETS / 8).iter().map(|frame| around.wrap(frame)).collect();
    let rules = Rules::default();
    let mut said = Around::default();
    Box::new(move || {
        for frame in &frames {
            let frame = Frame::ethernet(black_box(frame), frame.len() as u32, Timestamp::from_secs(START));
            let _ = black_box(decode(&frame, &rules, &mut said));
        }
        frames.len()
    })
}

fn bench_table(flows: u32) -> Box<dyn FnMut() -> usize> {
    let packets = packets(flows);
    let mut table = FlowTable::new(&settings(flows), KeyHasher::fixed(), Observer::default()).expect("memory");
    let mut records = Records::default();
    table.observe(&packets, &mut records); // so that a round measures updates, not inserts
    Box::new(move || {
        table.observe(black_box(&packets), &mut records);
        records.clear();
        packets.len()
    })
}

/// Inserts only: a scan, every packet a flow of its own, ended when the round is over.
fn bench_scan() -> Box<dyn FnMut() -> usize> {
    let at = Timestamp::from_secs(START);
    let rules = Rules::default();
    let packets: Vec<Packet> = (0..500_000_u32)
        .map(|n| {
            let mut frame = frames(1, 1)[0];
            frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
            frame[30..34].copy_from_slice(&(0x0a80_0000 + n).to_be_bytes());
            frame[47] = 2;
            decode(&Frame::ethernet(&frame, 60, at), &rules, &mut Around::default()).expect("Ethernet")
        })
        .collect();
    let mut table = FlowTable::new(&settings(1), KeyHasher::fixed(), Observer::default()).expect("memory");
    let mut records = Records::default();
    Box::new(move || {
        table.observe(black_box(&packets), &mut records);
        table.flush(FlowEndReason::ForcedEnd, &mut records);
        records.clear();
        packets.len()
    })
}

/// Everything between the capture and the export queue, expiry included, at 1 million packets per second of packet time.
fn bench_line(flows: u32, dedup: DedupMode) -> Box<dyn FnMut() -> usize> {
    let frames = frames(flows, PACKETS);
    let flow = FlowSettings { dedup, ..FlowSettings::default() };
    let meter = MeterSettings { flow, flow_table: settings(flows), ..MeterSettings::default() };
    let mut worker = Worker::new(&meter, KeyHasher::fixed(), Observer::default()).expect("memory");
    let mut nanos = START * 1_000_000_000;
    let mut round = move || {
        for poll in frames.chunks(POLL) {
            nanos += 1000 * POLL as i64;
            let now = Timestamp::from_nanos(nanos);
            for bytes in poll.chunks(BATCH) {
                let mut batch = [Frame::NONE; BATCH];
                for (frame, bytes) in batch.iter_mut().zip(bytes) {
                    *frame = Frame::ethernet(black_box(bytes), 60, now);
                }
                worker.take(&batch[..bytes.len()]);
            }
            worker.settle(now);
            worker.records().clear();
        }
        frames.len()
    };
    round();
    Box::new(round)
}

fn batch() -> Batch {
    let mut table = FlowTable::new(&settings(4096), KeyHasher::fixed(), Observer::default()).expect("memory");
    let mut out = Records::default();
    table.observe(&packets(4096), &mut out);
    table.flush(FlowEndReason::ForcedEnd, &mut out);
    let records: Vec<FlowRecord> = out.iter().take(4096).collect();
    Batch { sensor: "bench".into(), boot: 1, sequence: 1, records, ..Batch::default() }
}

fn bench_encode() -> Box<dyn FnMut() -> usize> {
    let message = Message::Data(batch());
    let mut frame = Vec::new();
    Box::new(move || {
        for _ in 0..16 {
            frame.clear();
            wire::encode(black_box(&message), &mut frame).expect("a batch fits a frame");
        }
        16 * 4096
    })
}

fn bench_wire_decode() -> Box<dyn FnMut() -> usize> {
    let mut frame = Vec::new();
    wire::encode(&Message::Data(batch()), &mut frame).expect("a batch fits a frame");
    Box::new(move || {
        for _ in 0..16 {
            black_box(wire::decode(black_box(&frame)).expect("our own frame"));
        }
        16 * 4096
    })
}

/// Name, unit, and how to prepare it.
type Plan = (&'static str, &'static str, fn() -> Box<dyn FnMut() -> usize>);

const PLANS: [Plan; 21] = [
    ("decode", "packet", bench_decode),
    ("decode_vlan", "packet", || bench_decode_of(Around60::Vlan)),
    ("decode_mpls", "packet", || bench_decode_of(Around60::Mpls)),
    ("decode_pppoe", "packet", || bench_decode_of(Around60::Pppoe)),
    ("decode_gretap", "packet", || bench_decode_of(Around60::Gre)),
    ("decode_erspan2", "packet", || bench_decode_of(Around60::Erspan2)),
    ("decode_erspan3", "packet", || bench_decode_of(Around60::Erspan3)),
    ("decode_vxlan", "packet", || bench_decode_of(Around60::Vxlan)),
    ("decode_geneve", "packet", || bench_decode_of(Around60::Geneve)),
    ("decode_ipip", "packet", || bench_decode_of(Around60::IpInIp)),
    ("decode_hsr", "packet", || bench_decode_of(Around60::Hsr)),
    ("decode_prp", "packet", || bench_decode_of(Around60::Prp)),
    ("decode_goose", "packet", || bench_decode_of(Around60::Goose)),
    ("line_dedup", "packet", || bench_line(10_000, DedupMode::On)),
    ("table_10k", "packet", || bench_table(10_000)),
    ("table_1m", "packet", || bench_table(1_000_000)),
    ("table_scan", "packet", bench_scan),
    ("line_10k", "packet", || bench_line(10_000, DedupMode::Auto)),
    ("line_1m", "packet", || bench_line(1_000_000, DedupMode::Auto)),
    ("wire_encode", "record", bench_encode),
    ("wire_decode", "record", bench_wire_decode),
];

#[expect(clippy::disallowed_methods, reason = "a bench is a clock")]
fn clock() -> Instant {
    Instant::now()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, name, rounds] = arguments.as_slice()
        && flag == "--count"
    {
        let plan = PLANS.iter().find(|plan| plan.0 == name).expect("the name of a bench");
        let mut run = plan.2();
        for _ in 0..rounds.parse::<usize>().expect("a number of rounds") {
            black_box(run());
        }
        return;
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| name.contains(argument.as_str()));
    let mut benches: Vec<Bench> =
        PLANS.iter().filter(|plan| wanted(plan.0)).map(|&(name, unit, prepare)| Bench { name, unit, run: prepare() }).collect();
    let mut figures = vec![Vec::new(); benches.len()];
    for _ in 0..ROUNDS {
        for (bench, figures) in benches.iter_mut().zip(&mut figures) {
            let start = clock();
            let handled = black_box((bench.run)());
            figures.push(start.elapsed().as_secs_f64() * 1e9 / handled as f64);
        }
    }
    for (bench, figures) in benches.iter().zip(&mut figures) {
        figures.sort_by(f64::total_cmp);
        println!("{:<14} median {:7.1} ns/{}   least {:7.1}", bench.name, figures[ROUNDS / 2], bench.unit, figures[0]);
    }
}
