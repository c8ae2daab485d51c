//! An encoder that has seen a batch allocates nothing for the next.

#![expect(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{Encoder, Head};

thread_local! {
    /// What this thread asked the allocator for.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, length: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as promised to us.
        unsafe { System.realloc(memory, layout, length) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as promised to us.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn record(n: u64) -> FlowRecord {
    let start = Timestamp::from_nanos(1_790_000_000_000_000_000 + (n * 7919).cast_signed());
    FlowRecord {
        flow_id: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        source: Address::from_v4([10, 77, (n >> 8) as u8, n as u8]),
        destination: Address::from_v4([192, 0, 2, n as u8]),
        source_port: n as u16,
        protocol: 6,
        packets: [n % 97, n % 89],
        octets: [n % 97 * 100, n % 89 * 1000],
        start: [start; 2],
        end: [start; 2],
        ..FlowRecord::default()
    }
}

#[test]
fn a_warm_encoder_allocates_nothing() {
    const BATCHES: u64 = 5;
    const ROWS: u64 = 4096;
    let mut encoder = Encoder::default();
    let mut frame = Vec::with_capacity(1 << 20);
    let ledger = Ledger::default();
    let mut counts = Vec::with_capacity(BATCHES as usize);
    for sequence in 1..=BATCHES {
        let before = ALLOCATIONS.get();
        (0..ROWS).for_each(|n| encoder.push(record(sequence * ROWS + n)));
        frame.clear();
        encoder.encode(&Head { sensor: "plant1", boot: 7, sequence, ledger: &ledger }, &mut frame).unwrap();
        counts.push(ALLOCATIONS.get() - before);
    }
    assert!(counts[0] > 0, "the first batch needs memory, or nothing is counted");
    // The second may still find room for a column that had none before.
    assert_eq!(counts[2..], [0; 3], "allocations for each batch: {counts:?}");
}
