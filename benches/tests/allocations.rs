//! Once it is warm, the line allocates nothing: not for a packet, not for a flow, not for a record.

#![allow(unsafe_code, reason = "an allocator that counts can only be written so")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use spanwatch_bench::frames::{Choice, Frames, over_ipv6, tcp};
use spanwatch_bench::line::{Account, Meter};
use spanwatch_bench::wrapped::{LONGEST, Wrapping};
use spanwatch_sensor::flow_table::{FlowTableSettings, Records};
use spanwatch_sensor::worker::MeterSettings;

thread_local! {
    /// What this thread asked the allocator for.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator, as it came; the counter is a plain number of the thread, which needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: as above; `memory` came from `System`, as all memory here does.
        unsafe { System.realloc(memory, layout, len) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ASKED.get();
    work();
    ASKED.get() - before
}

/// 1000 packets per second of packet time.
const NANOS_PER_PACKET: i64 = 1_000_000;
/// A minute of packets, in which every flow that lives is cut once.
const PACKETS: usize = 60_000;

/// What the meter did after it was warm, and what it allocated meanwhile. The frames come again and again.
fn measured(flow_table: FlowTableSettings, frames: &Frames) -> (Account, u64) {
    let mut meter = Meter::new(&MeterSettings { flow_table, ..MeterSettings::default() }, NANOS_PER_PACKET);
    let mut spare = Records::default();
    let mut minute = |meter: &mut Meter, ends: bool| {
        for _ in 0..PACKETS / frames.len() {
            meter.feed(frames.range(0..frames.len()));
        }
        if ends {
            drop(meter.finish());
        }
        // As when records are handed to the export thread and the memory of earlier ones comes back.
        std::mem::swap(meter.worker().records(), &mut spare);
    };
    // Warm: each of the two buffers has held as many records as there are flows, and flows stand in the table.
    for ends in [true, true, false, false] {
        minute(&mut meter, ends);
    }
    let before = meter.account();
    let asked = allocations(|| minute(&mut meter, false));
    let after = meter.account();
    let done = Account {
        metered: after.metered - before.metered,
        records: after.records - before.records,
        opened: after.opened - before.opened,
        live: after.live,
    };
    (done, asked)
}

#[test]
fn the_counter_counts_what_this_thread_asks_for_and_nothing_else() {
    let mut numbers: Vec<u64> = Vec::new();
    assert_eq!(allocations(|| numbers.push(1)), 1, "first memory");
    assert_eq!(allocations(|| numbers.reserve_exact(1000)), 1, "more of it");
    assert_eq!(allocations(|| numbers.push(2)), 0, "there was room");
    assert_eq!(allocations(|| drop(black_box(vec![0_u8; 100]))), 1, "zeroed memory");
    let (go, gone) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            go.wait();
            drop(black_box(Vec::<u64>::with_capacity(10)));
            gone.wait();
        });
        let asked = allocations(|| {
            go.wait();
            gone.wait();
        });
        assert_eq!(asked, 0, "another thread's memory");
    });
}

#[test]
fn flows_that_stay_allocate_nothing_when_packets_come_and_when_they_are_cut() {
    let frames = Frames::tcp(20_000, &Choice::Uniform(1000));
    let (done, asked) = measured(FlowTableSettings::default(), &frames);
    assert_eq!((done.metered, done.opened, done.live), (60_000, 0, 1000));
    assert_eq!(done.records, 1000, "each was cut once");
    assert_eq!(asked, 0);
}

#[test]
fn a_scan_allocates_nothing_when_flows_begin_and_end() {
    for frames in [Frames::scan(30_000), Frames::refused_scan(30_000)] {
        let (done, asked) = measured(FlowTableSettings::default(), &frames);
        assert_eq!(done.metered, 60_000);
        assert!(done.opened >= 30_000 && done.records >= 2 * 30_000, "each flow begins and ends: {done:?}");
        assert_eq!(asked, 0);
    }
}

#[test]
fn a_table_that_is_too_small_allocates_nothing() {
    let small = FlowTableSettings { flows_max: 1024, ..FlowTableSettings::default() };
    let (done, asked) = measured(small, &Frames::scan(30_000));
    assert_eq!(done.metered, 60_000);
    assert!(done.live <= 1024, "{done:?}");
    assert_eq!(asked, 0);
}

#[test]
fn trouble_allocates_nothing() {
    // The same sequence numbers again and again: every pass begins with retransmissions.
    let frames = Frames::imix(20_000, &Choice::zipf(2000));
    let (done, asked) = measured(FlowTableSettings::default(), &frames);
    assert_eq!((done.metered, done.opened), (60_000, 0));
    assert_eq!(asked, 0);
}

#[test]
fn tunnels_and_ipv6_allocate_nothing() {
    let choice = Choice::Uniform(1000);
    let tunnelled = Frames::mixed(20_000, LONGEST, &choice, |flow, side, n| Wrapping::Vxlan.around(&tcp(flow, side, n)));
    let ipv6 = Frames::mixed(20_000, LONGEST, &choice, |flow, side, n| over_ipv6(flow, side, &tcp(flow, side, n)).into());
    for frames in [tunnelled, ipv6] {
        let (done, asked) = measured(FlowTableSettings::default(), &frames);
        assert_eq!((done.metered, done.opened), (60_000, 0));
        assert!(done.records >= 1000, "each was cut once: {done:?}");
        assert_eq!(asked, 0);
    }
}
