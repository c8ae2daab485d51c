//! What the detectors say they hold is what they hold.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use spanwatch_common::flow::{FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::{Detection, Mode, RuleFile};

/// The system's allocator, and how many octets of it are in use.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator cannot be written otherwise")]
// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// 2026-11-21T10:00:00Z.
const TEN: i64 = 1_795_255_200;

/// Every source knocks at twenty ports and speaks to forty hosts, within two minutes.
fn record(i: usize) -> FlowRecord {
    let at = Timestamp::from_nanos((TEN * 1_000 + i as i64 * 2) * 1_000_000);
    let failed = i.is_multiple_of(3);
    let (host, round) = ((i % 500) as u16, (i / 500) as u16);
    let [high, low] = host.to_be_bytes();
    FlowRecord {
        state: if failed { FlowState::Begin } else { FlowState::End },
        source: Address::from_v4([10, 0, high, low]),
        destination: Address::from_v4([203, 0, 113, (round % 40) as u8]),
        source_port: round,
        destination_port: 1 + round % 20,
        protocol: protocol::TCP,
        packets: if failed { [0; 2] } else { [3; 2] },
        octets: if failed { [0; 2] } else { [300; 2] },
        start: [at, if failed { Timestamp::NONE } else { at }],
        end: [at; 2],
        tcp_flags: if failed { [tcp::SYN, 0] } else { [tcp::SYN | tcp::ACK | tcp::PSH; 2] },
        initial_tcp_flags: [tcp::SYN, if failed { 0 } else { tcp::SYN | tcp::ACK }],
        ..FlowRecord::default()
    }
}

#[test]
fn the_account_of_memory_is_within_a_third_of_the_truth() {
    let rules = RuleFile::shipped().expect("the rules as shipped");
    for id in ["AZ-02", "AZ-03", "AZ-04", "AZ-06", "AZ-11", "AZ-19", "AZ-20", "AZ-21", "ND-01", "ND-14", "ND-16"] {
        let mut only = rules.clone();
        only.keep_only(&[id.to_owned()]).expect("a rule");
        let mut detection = Detection::new(&only, Mode::Stream);
        let (mut findings, mut before) = (Vec::new(), HELD.load(Ordering::Relaxed));
        for i in 0..=61_000_usize {
            if i.is_multiple_of(1_000) {
                detection.poll(record(i).first(), &mut findings);
            }
            // What the engine itself needs is there from the second batch on.
            if i == 2_000 {
                before = HELD.load(Ordering::Relaxed) - detection.bytes();
            }
            detection.observe("tap", &record(i));
        }
        drop(findings);
        let (said, held) = (detection.bytes() as f64, (HELD.load(Ordering::Relaxed) - before) as f64);
        assert!(held > 20_000.0, "{id} holds {held}");
        assert!((said / held - 1.0).abs() < 0.33, "{id} says {said} and holds {held}");
    }
}
