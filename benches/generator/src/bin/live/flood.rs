//! Ten million conversations of one SYN each, and one established connection that must come through exactly.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use spanwatch_common::net::Address;
use spanwatch_generator::traffic::{Order, Shape, Traffic};
use spanwatch_sensor::flow_table::FlowTableSettings;
use spanwatch_sensor::worker::MeterSettings;

use crate::round::{self, Reader, Rig};

const FLOWS: u32 = 10_000_000;
/// A hundred packets a second of the established connection when the flood brings a million.
const MARKED_ONE_IN: u32 = 10_000;
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
    let idle = resident()?;
    let (most, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut marked = [0; 2];
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        let outcome = round::run(&traffic, Reader::Line(&meter), rig, |harvest| {
            for record in harvest.records.iter() {
                if record.source == MARKED || record.destination == MARKED {
                    marked[0] += record.packets[0];
                    marked[1] += record.packets[1];
                }
            }
        });
        over.store(true, Ordering::Relaxed);
        outcome
    })?;

    let ledger = &outcome.ledger;
    println!("{}", serde_json::to_string_pretty(ledger).context("write the ledger as JSON")?);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let buffers = u64::from(rig.ring_slots) * 2 * 2048;
    let used = most.load(Ordering::Relaxed).saturating_sub(idle + buffers);
    println!(
        "sent {} in {:.2} s, arrived {}, metered {}",
        outcome.sent.frames,
        outcome.sent.took().as_secs_f64(),
        outcome.arrived,
        ledger.metered
    );
    println!("memory beyond the ring's buffers ({:.0} MiB): {:.0} MiB at the most", mib(buffers), mib(used));
    println!("the marked connection: {} packets sent, {} + {} metered", outcome.sent.marked, marked[0], marked[1]);
    ensure!(outcome.lost() == 0, "{} packets were lost before the sensor, so nothing can be exact", outcome.lost());
    ensure!(marked[0] + marked[1] == outcome.sent.marked, "the marked connection is not exact");
    println!("ledger exact, marked connection exact");
    Ok(())
}

/// Memory that this process occupies, in bytes.
fn resident() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/self/status has no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kib * 1024)
}
