//! Ten million conversations of one SYN each, and one established connection that must come through exactly.

use anyhow::{Context as _, ensure};
use spanwatch_common::net::Address;
use spanwatch_generator::traffic::{Order, Shape, Traffic};
use spanwatch_sensor::flow_table::FlowTableSettings;
use spanwatch_sensor::worker::MeterSettings;

use crate::round::{self, Reader, Rig};

const FLOWS: u32 = 10_000_000;
/// A hundred packets a second of the established connection when the flood brings a million.
const MARKED_ONE_IN: u32 = 10_000;
/// Memory for a flow, all tables included: the milestone's goal.
const FLOW_BYTES_MAX: usize = 160;
/// Memory for records on their way: what the loop may hold back, and the harvests that wait, at some 300 octets each.
const RECORDS_BYTES_MAX: usize = 32 << 20;
/// Its client, as in `bpf/generator.bpf.c`.
const MARKED: Address = Address::from_v4([203, 0, 113, 7]);

/// Sends the flood and judges the result: memory, ledger, the established connection.
///
/// # Errors
/// One of the three is not as it must be.
pub(crate) fn run(packets_per_sec: u64, flows_max: usize, rig: Rig) -> anyhow::Result<()> {
    // As many frames as make every conversation of the flood, and the marked ones among them.
    let count = u64::from(FLOWS) * u64::from(MARKED_ONE_IN) / u64::from(MARKED_ONE_IN - 1) + 1;
    let traffic = Traffic {
        count,
        packets_per_sec,
        flows: FLOWS,
        order: Order::InOrder,
        shape: Shape::Flood,
        marked_one_in: MARKED_ONE_IN,
        ..Traffic::default()
    };
    let flow_table = FlowTableSettings { flows_max, ..FlowTableSettings::default() };
    let meter = MeterSettings { flow_table, ..MeterSettings::default() };
    let mut marked = [0; 2];
    let outcome = round::run(&traffic, Reader::Line(&meter), rig, |harvest| {
        for record in harvest.records.iter() {
            if record.source == MARKED || record.destination == MARKED {
                marked[0] += record.packets[0];
                marked[1] += record.packets[1];
            }
        }
    })?;

    let ledger = &outcome.ledger;
    println!("{}", serde_json::to_string_pretty(ledger).context("write the ledger as JSON")?);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let used = outcome.resident_after.saturating_sub(outcome.resident_before);
    let cap = (flows_max * FLOW_BYTES_MAX + RECORDS_BYTES_MAX) as u64;
    println!(
        "sent {} in {:.2} s, arrived {}, metered {}",
        outcome.sent.frames,
        outcome.sent.took().as_secs_f64(),
        outcome.arrived,
        ledger.metered
    );
    println!("memory beside the ring: {:.1} MiB when the flood ended, of {:.1} MiB", mib(used), mib(cap));
    println!("the marked connection: {} packets sent, {} + {} metered", outcome.sent.marked, marked[0], marked[1]);
    ensure!(outcome.lost() == 0, "{} packets were lost before the sensor, so nothing can be exact", outcome.lost());
    ensure!(used as f64 <= 1.05 * cap as f64, "more memory than was configured");
    ensure!(ledger.not_sent == 0, "records of {} packets were thrown away: the harvest was too slow", ledger.not_sent);
    ensure!(marked[0] + marked[1] == outcome.sent.marked, "the marked connection is not exact");
    println!("ledger exact, marked connection exact");
    Ok(())
}
