//! The flow table alone, over packets that were decoded before.

use std::hint::black_box;

use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::Frame;
use spanwatch_sensor::decode::{Around, Packet, Rules, decode};
use spanwatch_sensor::flow_table::{FlowTable, FlowTableSettings, KeyHasher, Observer, Records};

use crate::frames::{Choice, Frames};
use crate::plans::{Scale, Work};

/// Updates of flows that are all in the table.
pub fn updates(flows: u32, scale: Scale) -> impl Work {
    let packets = packets(&Frames::tcp(scale.packets(), &Choice::Uniform(scale.of(flows))));
    let mut table = table(flows, scale);
    let mut records = Records::default();
    table.observe(&packets, &mut records); // so that a pass measures updates, not inserts
    move || {
        table.observe(black_box(&packets), &mut records);
        records.clear();
        packets.len()
    }
}

/// Inserts only: every packet a flow of its own, ended when the pass is over.
pub fn inserts(scale: Scale) -> impl Work {
    let packets = packets(&Frames::scan(scale.of(1 << 19)));
    let mut table = table(1, scale);
    let mut records = Records::default();
    move || {
        table.observe(black_box(&packets), &mut records);
        table.flush(FlowEndReason::ForcedEnd, &mut records);
        records.clear();
        packets.len()
    }
}

fn table(flows: u32, scale: Scale) -> FlowTable {
    let settings = FlowTableSettings { flows_max: scale.flows_max(flows), ..FlowTableSettings::default() };
    FlowTable::new(&settings, KeyHasher::fixed(), Observer::default()).expect("memory for the flow table")
}

fn packets(frames: &Frames) -> Vec<Packet> {
    let (rules, at) = (Rules::default(), Timestamp::from_secs(1_700_000_000));
    let decoded = |bytes: &[u8]| {
        decode(&Frame::ethernet(bytes, bytes.len() as u32, at), &rules, &mut Around::default()).expect("an Ethernet frame")
    };
    frames.range(0..frames.len()).map(decoded).collect()
}
