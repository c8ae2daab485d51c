//! Every bench by name, and how to prepare it.

use std::hint::black_box;

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{self, Encoder, Head};
use spanwatch_sensor::capture::Frame;
use spanwatch_sensor::decode::{Around, Rules, decode};
use spanwatch_sensor::dedup::DedupMode;
use spanwatch_sensor::flow_settings::FlowSettings;
use spanwatch_sensor::flow_table::{FlowTableSettings, Records};
use spanwatch_sensor::worker::MeterSettings;

use crate::frames::{Choice, Frames, Side, over_ipv6, tcp};
use crate::line::{Line, Meter};
use crate::table;
use crate::wrapped::{LONGEST, Wrapping};

/// What is measured, prepared and ready to be repeated.
pub trait Work {
    /// What must be done before the next pass and is not measured.
    fn ready(&mut self) {}

    /// Does the work once and says how many packets (or records) it handled.
    fn pass(&mut self) -> usize;
}

impl<F: FnMut() -> usize> Work for F {
    fn pass(&mut self) -> usize {
        self()
    }
}

/// How large a bench is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As its name says, for timing.
    Whole,
    /// A 64th of it for counting instructions: of the packets, the flows, the table and the packets per second of packet time. Each packet then finds the
    /// table as full, and meets as much expiry, as in the whole, for a 64th of the emulation.
    Counted,
}

impl Scale {
    const fn divisor(self) -> u32 {
        match self {
            Self::Whole => 1,
            Self::Counted => 64,
        }
    }

    /// A number of flows at this scale.
    pub fn of(self, flows: u32) -> u32 {
        (flows / self.divisor()).max(1)
    }

    /// Packets (or records) in a round: as many passes as it takes. 2²⁰: enough to hit most flows, few enough to alternate.
    pub const fn packets(self) -> usize {
        (1 << 20) / self.divisor() as usize
    }

    /// The flow table's size for so many flows: the default unless they need more.
    pub fn flows_max(self, flows: u32) -> usize {
        let whole = FlowTableSettings::default().flows_max.max(flows as usize);
        whole / self.divisor() as usize
    }

    /// A million packets per second at full scale.
    fn nanos_per_packet(self) -> i64 {
        1000 * i64::from(self.divisor())
    }
}

/// A bench.
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// What one of its results is for.
    pub unit: &'static str,
    /// Makes everything that is needed before the first pass.
    pub prepare: fn(Scale) -> Box<dyn Work>,
}

const fn packet(name: &'static str, prepare: fn(Scale) -> Box<dyn Work>) -> Plan {
    Plan { name, unit: "packet", prepare }
}

const fn record(name: &'static str, prepare: fn(Scale) -> Box<dyn Work>) -> Plan {
    Plan { name, unit: "record", prepare }
}

/// All of them, in the order of the tables in README.md.
pub const PLANS: [Plan; 33] = [
    packet("line_1", |scale| Box::new(line_of(1, scale))),
    packet("line_10k", |scale| Box::new(line_of(10_000, scale))),
    packet("line_100k", |scale| Box::new(line_of(100_000, scale))),
    packet("line_1m", |scale| Box::new(line_of(1_000_000, scale))),
    packet("line_4m", |scale| Box::new(line_of(4_000_000, scale))),
    packet("line_zipf_1m", |scale| Box::new(zipf(scale))),
    packet("line_imix_10k", |scale| Box::new(imix(10_000, scale))),
    packet("line_imix_1m", |scale| Box::new(imix(1_000_000, scale))),
    packet("line_ipv6_10k", |scale| Box::new(wrapped(74, scale, ipv6_frame))),
    packet("line_vxlan_10k", |scale| Box::new(wrapped(LONGEST, scale, vxlan_frame))),
    packet("line_dedup", |scale| Box::new(dedup(scale))),
    packet("line_scan", |scale| Box::new(scan(scale, Frames::scan))),
    packet("line_scan_rst", |scale| Box::new(scan(scale, Frames::refused_scan))),
    packet("line_flood", |scale| Box::new(flood(scale))),
    packet("decode", |scale| decoder(Frames::tcp(scale.packets(), &Choice::Uniform(10_000)))),
    packet("decode_vlan", |scale| decoder_of(Wrapping::Vlan, scale)),
    packet("decode_mpls", |scale| decoder_of(Wrapping::Mpls, scale)),
    packet("decode_pppoe", |scale| decoder_of(Wrapping::Pppoe, scale)),
    packet("decode_gretap", |scale| decoder_of(Wrapping::Gretap, scale)),
    packet("decode_erspan2", |scale| decoder_of(Wrapping::Erspan2, scale)),
    packet("decode_erspan3", |scale| decoder_of(Wrapping::Erspan3, scale)),
    packet("decode_vxlan", |scale| decoder_of(Wrapping::Vxlan, scale)),
    packet("decode_geneve", |scale| decoder_of(Wrapping::Geneve, scale)),
    packet("decode_ipip", |scale| decoder_of(Wrapping::IpInIp, scale)),
    packet("decode_hsr", |scale| decoder_of(Wrapping::Hsr, scale)),
    packet("decode_prp", |scale| decoder_of(Wrapping::Prp, scale)),
    packet("decode_goose", |scale| decoder_of(Wrapping::Goose, scale)),
    packet("table_10k", |scale| Box::new(table::updates(10_000, scale))),
    packet("table_1m", |scale| Box::new(table::updates(1_000_000, scale))),
    packet("table_scan", |scale| Box::new(table::inserts(scale))),
    record("export", |_| exporter()),
    record("wire_encode", |_| encoder()),
    record("wire_decode", |_| wire_decoder()),
];

/// Records in a batch of the wire benches.
const BATCH_RECORDS: u32 = 4096;

/// TCP without payload, all flows in the table and seen both ways before the first pass.
fn line_of(flows: u32, scale: Scale) -> Line {
    // Of more flows than a round has packets, one round must not hit the same again.
    let rounds = (flows >> 20) as usize + 1;
    let frames = Frames::tcp(rounds * scale.packets(), &Choice::Uniform(scale.of(flows)));
    steady(scale, flows, FlowSettings::default(), frames, tcp_frame)
}

fn zipf(scale: Scale) -> Line {
    let flows = 1_000_000;
    let frames = Frames::tcp(scale.packets(), &Choice::zipf(scale.of(flows)));
    steady(scale, flows, FlowSettings::default(), frames, tcp_frame)
}

fn imix(flows: u32, scale: Scale) -> Line {
    // 512 MiB of slots at full scale: a round goes over them four times.
    let frames = Frames::imix(scale.packets() / 4, &Choice::Uniform(scale.of(flows)));
    steady(scale, flows, FlowSettings::default(), frames, tcp_frame)
}

fn wrapped(octets: usize, scale: Scale, make: impl Fn(u32, Side, u16) -> Vec<u8>) -> Line {
    let flows = 10_000;
    let frames = Frames::mixed(scale.packets(), octets, &Choice::Uniform(scale.of(flows)), &make);
    steady(scale, flows, FlowSettings::default(), frames, make)
}

/// Every packet compared with those before it; the others look at a tenth.
fn dedup(scale: Scale) -> Line {
    let flows = 10_000;
    let frames = Frames::tcp(scale.packets(), &Choice::Uniform(scale.of(flows)));
    steady(scale, flows, FlowSettings { dedup: DedupMode::On, ..FlowSettings::default() }, frames, tcp_frame)
}

fn tcp_frame(flow: u32, side: Side, number: u16) -> Vec<u8> {
    tcp(flow, side, number).to_vec()
}

fn ipv6_frame(flow: u32, side: Side, number: u16) -> Vec<u8> {
    over_ipv6(flow, side, &tcp(flow, side, number)).to_vec()
}

fn vxlan_frame(flow: u32, side: Side, number: u16) -> Vec<u8> {
    Wrapping::Vxlan.around(&tcp(flow, side, number))
}

/// A line whose flows were all seen, both ways, a second ago or longer: no pass opens, begins or ends one.
fn steady(scale: Scale, flows: u32, flow: FlowSettings, frames: Frames, make: impl Fn(u32, Side, u16) -> Vec<u8>) -> Line {
    let flow_table = FlowTableSettings { flows_max: scale.flows_max(flows), ..FlowTableSettings::default() };
    let mut meter = Meter::new(&MeterSettings { flow, flow_table, ..MeterSettings::default() }, scale.nanos_per_packet());
    fill(&mut meter, scale.of(flows), make);
    meter.idle(1);
    let per_pass = scale.packets().min(frames.len());
    Line::new(meter, frames, per_pass)
}

/// Sends one packet of each flow, then one back.
fn fill(meter: &mut Meter, flows: u32, make: impl Fn(u32, Side, u16) -> Vec<u8>) {
    const AT_ONCE: u32 = 1 << 14;
    for side in [Side::Client, Side::Server] {
        for first in (0..flows).step_by(AT_ONCE as usize) {
            let frames: Vec<Vec<u8>> =
                (first..flows.min(first + AT_ONCE)).map(|flow| make(flow, side, flow as u16 ^ (side as u16) << 15)).collect();
            meter.feed(frames.iter().map(Vec::as_slice));
        }
    }
}

/// A scan that the table is large enough for: unanswered and closed connections are given up after one second, which the table sees within
/// another, so that at a million packets per second at most two million are live, and each packet that opens a flow sees another end.
fn scan(scale: Scale, frames: fn(u32) -> Frames) -> Line {
    let flow_table = FlowTableSettings {
        flows_max: scale.flows_max(3_000_000),
        idle_timeout_half_open_secs: 1,
        idle_timeout_closed_secs: 1,
        ..FlowTableSettings::default()
    };
    let meter = Meter::new(&MeterSettings { flow_table, ..MeterSettings::default() }, scale.nanos_per_packet());
    scanned(scale, meter, frames)
}

/// A SYN flood that the table is too small for, with the settings that the sensor starts with.
fn flood(scale: Scale) -> Line {
    let flow_table = FlowTableSettings { flows_max: scale.flows_max(1), ..FlowTableSettings::default() };
    let meter = Meter::new(&MeterSettings { flow_table, ..MeterSettings::default() }, scale.nanos_per_packet());
    scanned(scale, meter, Frames::scan)
}

/// Three seconds of a scan; no target comes again before its flow is over. They pass once before the first pass.
fn scanned(scale: Scale, meter: Meter, frames: fn(u32) -> Frames) -> Line {
    let frames = frames(3 * scale.packets() as u32);
    let mut line = Line::new(meter, frames, scale.packets());
    for _ in 0..3 {
        line.ready();
        line.pass();
    }
    line
}

fn decoder_of(wrapping: Wrapping, scale: Scale) -> Box<dyn Work> {
    let make = |flow, side, number| wrapping.around(&tcp(flow, side, number));
    decoder(Frames::mixed(scale.packets() / 8, LONGEST, &Choice::Uniform(10_000), make))
}

fn decoder(frames: Frames) -> Box<dyn Work> {
    let (rules, at) = (Rules::default(), Timestamp::from_secs(1_700_000_000));
    let mut around = Around::default();
    Box::new(move || {
        for bytes in frames.range(0..frames.len()) {
            let frame = Frame::ethernet(black_box(bytes), bytes.len() as u32, at);
            let _ = black_box(decode(&frame, &rules, &mut around));
        }
        frames.len()
    })
}

/// End records of as many TCP flows, six packets without payload each on average, within 30 ms.
fn ended() -> Records {
    let mut meter = Meter::new(&MeterSettings::default(), 1000);
    let frames = Frames::tcp(1 << 14, &Choice::Uniform(BATCH_RECORDS));
    fill(&mut meter, BATCH_RECORDS, tcp_frame);
    meter.idle(1);
    meter.feed(frames.range(0..frames.len()));
    let records = meter.finish();
    assert_eq!(records.len(), BATCH_RECORDS as usize, "one record for each flow");
    records
}

/// Makes one batch of `records`.
fn encode(encoder: &mut Encoder, records: impl Iterator<Item = FlowRecord>, frame: &mut Vec<u8>) {
    frame.clear();
    records.for_each(|record| encoder.push(record));
    let head = Head { sensor: "bench", boot: 1, sequence: 1, ledger: &Ledger::default() };
    encoder.encode(&head, frame).expect("a batch fits a frame");
}

/// What the export thread does with what a worker hands over.
fn exporter() -> Box<dyn Work> {
    let (records, mut encoder, mut frame) = (ended(), Encoder::default(), Vec::new());
    Box::new(move || {
        encode(&mut encoder, black_box(&records).iter(), &mut frame);
        records.len()
    })
}

/// The same with records that are put together already.
fn encoder() -> Box<dyn Work> {
    let (records, mut encoder, mut frame): (Vec<FlowRecord>, _, _) = (ended().iter().collect(), Encoder::default(), Vec::new());
    Box::new(move || {
        encode(&mut encoder, black_box(&records).iter().cloned(), &mut frame);
        records.len()
    })
}

fn wire_decoder() -> Box<dyn Work> {
    let mut frame = Vec::new();
    encode(&mut Encoder::default(), ended().iter(), &mut frame);
    Box::new(move || {
        black_box(wire::decode(black_box(&frame)).expect("our own frame"));
        BATCH_RECORDS as usize
    })
}

#[cfg(test)]
mod tests;
