//! What the detectors hold under stress, by their own account and by the allocator's.

#![allow(unsafe_code, reason = "an allocator that counts can only be written so")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use spanwatch_common::flow::{BiflowDirection, FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::{Detection, Mode};

use crate::ordinary::{self, MONDAY};
use crate::run;

/// Octets that are taken now, and the most that were since [`reset`].
static TAKEN: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

struct Counting;

impl Counting {
    fn grow(octets: i64) {
        let taken = TAKEN.fetch_add(octets, Ordering::Relaxed) + octets;
        if octets > 0 {
            PEAK.fetch_max(taken, Ordering::Relaxed);
        }
    }
}

// SAFETY: hands everything to the system's allocator, as it came; the counters are plain numbers, which need no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size() as i64);
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        Self::grow(len as i64 - layout.size() as i64);
        // SAFETY: as above; `memory` came from `System`, as all memory here does.
        unsafe { System.realloc(memory, layout, len) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        Self::grow(-(layout.size() as i64));
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const QUIET: u32 = 200_000;
const SCANNERS: u32 = 2_000;
/// What each scanner tries.
const TARGETS: u32 = 1_500;
const FORGED: u32 = 10_000_000;
const POLL: Duration = Duration::from_millis(200);

/// Prints both figures for the rules whose ids begin with `family`, in all and rule by rule.
pub(crate) fn measure(family: &str) -> anyhow::Result<()> {
    let rules = run::shipped(family)?;
    let before = TAKEN.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let sites = ordinary::sites().map_err(anyhow::Error::msg)?;
    let mut stress = Stress {
        detection: Detection::new(&rules, Mode::Stream).with_sites(sites),
        polled: Timestamp::from_secs(MONDAY),
        flows: 0,
        findings: 0,
        most: Vec::new(),
    };
    stress.quiet_and_scanners();
    stress.tell(before, &format!("{QUIET} quiet sources and {SCANNERS} scanners"));
    stress.flood();
    stress.tell(before, &format!("and then a flood from {FORGED} forged sources"));
    Ok(())
}

struct Stress {
    detection: Detection,
    polled: Timestamp,
    flows: u64,
    findings: u64,
    /// The most that each rule said it held: id, octets, keys, keys let go or refused.
    most: Vec<(&'static str, usize, usize, u64)>,
}

impl Stress {
    /// Over ten minutes: sources that speak to two servers each, among scanners that try 1,500 hosts each.
    fn quiet_and_scanners(&mut self) {
        let start = self.polled;
        let steps = u64::from(SCANNERS * TARGETS);
        for step in 0..steps {
            let at = start.plus(Duration::from_nanos(600_000_000_000 / steps * step));
            let (scanner, target) = (step as u32 % SCANNERS, step as u32 / SCANNERS);
            let knock =
                record(at, Address::from_v4((0x64_40_00_00 + scanner * 256).to_be_bytes()), 0xcb00_7100 + target, 22, false);
            self.observe(&knock, FlowState::Begin);
            self.observe(&knock, FlowState::End);
            if step % 7 == 0 {
                let source = (step / 7) as u32 % QUIET;
                let talk =
                    record(at, Address::from_v4((0x0a10_0000 + source).to_be_bytes()), 0x0a00_0a01 + source % 2, 443, true);
                self.observe(&talk, FlowState::Begin);
                self.observe(&talk, FlowState::End);
            }
        }
    }

    /// Over a minute, a SYN from each.
    fn flood(&mut self) {
        let start = self.polled;
        for number in 0..FORGED {
            let at = start.plus(Duration::from_nanos(6_000 * u64::from(number)));
            // Every source once, in no order: a multiplication by an odd number.
            let source = number.wrapping_mul(2_654_435_761) | 1;
            let knock = record(at, Address::from_v4(source.to_be_bytes()), 0xcb00_710a, 443, false);
            self.observe(&knock, FlowState::Begin);
            self.observe(&knock, FlowState::End);
        }
    }

    fn observe(&mut self, record: &FlowRecord, state: FlowState) {
        self.flows += u64::from(state == FlowState::Begin);
        let mut record = FlowRecord { state, flow_id: self.flows, ..record.clone() };
        if state == FlowState::Begin {
            (record.packets, record.octets) = ([0; 2], [0; 2]);
        }
        self.detection.observe("plant1", &record);
        let now = record.first().plus(Duration::from_millis(600));
        if now > self.polled.plus(POLL) {
            self.polled = now;
            let mut findings = Vec::new();
            self.detection.poll(now, &mut findings);
            self.findings += findings.len() as u64;
            self.note();
        }
    }

    fn note(&mut self) {
        let now: Vec<_> =
            self.detection.states().map(|state| (state.rule, state.bytes, state.keys, state.evicted + state.refused)).collect();
        if self.most.is_empty() {
            self.most = now;
            return;
        }
        for (most, now) in self.most.iter_mut().zip(now) {
            *most = (most.0, most.1.max(now.1), most.2.max(now.2), now.3);
        }
    }

    fn tell(&mut self, before: i64, what: &str) {
        let peak = PEAK.swap(TAKEN.load(Ordering::Relaxed), Ordering::Relaxed) - before;
        let taken = TAKEN.load(Ordering::Relaxed) - before;
        println!("{what}: {} flows, {} findings", self.flows, self.findings);
        println!(
            "  all detectors, by the allocator: {:.1} MB at most, {:.1} MB at the end",
            peak as f64 / 1e6,
            taken as f64 / 1e6
        );
        println!("  by their own account, at most:");
        for (rule, octets, keys, gone) in self.most.drain(..) {
            println!("  {rule:<7} {:>8.1} MB {keys:>9} keys, {gone} let go or refused", octets as f64 / 1e6);
        }
    }
}

fn record(at: Timestamp, source: Address, destination: u32, port: u16, answered: bool) -> FlowRecord {
    let reverse = |value: u16| if answered { value } else { 0 };
    let answer = if answered { at.plus(Duration::from_millis(1)) } else { Timestamp::NONE };
    let talk = if answered { tcp::SYN | tcp::ACK | tcp::PSH | tcp::FIN } else { tcp::SYN };
    FlowRecord {
        biflow_direction: BiflowDirection::Initiator,
        observation_point: 1,
        ethernet_type: 0x0800,
        source,
        destination: Address::from_v4(destination.to_be_bytes()),
        source_port: 40_000 + (at.as_nanos() / 1_000 % 20_000) as u16,
        destination_port: port,
        protocol: protocol::TCP,
        start: [at, answer],
        end: [at, answer],
        packets: if answered { [6, 5] } else { [1, 0] },
        octets: if answered { [900, 4_000] } else { [60, 0] },
        initial_tcp_flags: [tcp::SYN, reverse(tcp::SYN | tcp::ACK)],
        tcp_flags: [talk, reverse(talk)],
        answered,
        ..FlowRecord::default()
    }
}
