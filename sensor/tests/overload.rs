//! A worker that is too slow for its port, in a network namespace: the XDP program leaves packets out, and everybody says so.

#[path = "../../tests/support/netns.rs"]
mod netns;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netns::{counter, in_namespace, mirror_port, skip};
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::settings::{Mode, Settings};
use spanwatch_sensor::capture::{self, Capture, CaptureError, CaptureErrorKind, Drained, Frame, Losses};
use spanwatch_sensor::flow_table::{FlowTableSettings, KeyHasher, Observer};
use spanwatch_sensor::live::LiveWorker;
use spanwatch_sensor::overload::{Overload, OverloadSettings};
use spanwatch_sensor::worker::{MeterSettings, Worker};

/// Takes 64 frames every 20 ms, and no more: 3,200 a second.
struct Slow<C>(C);

impl<C: Capture> Capture for Slow<C> {
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        self.0.wait(timeout)
    }

    fn drain(&mut self, now: Timestamp, max: usize, each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        std::thread::sleep(Duration::from_millis(20));
        self.0.drain(now, max.min(64), each)
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        self.0.stop()
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        self.0.losses()
    }

    fn sample(&mut self, one_in: u32) -> Result<bool, CaptureError> {
        self.0.sample(one_in)
    }

    fn describe(&self) -> &str {
        self.0.describe()
    }
}

/// A UDP packet without payload between two hosts.
fn frame() -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    frame[34..42].copy_from_slice(&[0x9c, 0x40, 0x9c, 0x41, 0, 8, 0, 0]);
    frame
}

#[test]
fn a_ring_that_overflows_for_seconds_is_answered_with_sampling_that_the_records_tell() {
    in_namespace("a_ring_that_overflows_for_seconds_is_answered_with_sampling_that_the_records_tell", || {
        mirror_port(1, 1500);
        let settings = Settings { interface: "mon0".into(), mode: Mode::AfXdp, ring_slots: 64, ..Settings::default() };
        let mut opened = match capture::open(&settings) {
            Ok(opened) => opened,
            Err(error) if matches!(error.kind, CaptureErrorKind::NoPermission | CaptureErrorKind::Unsupported) => {
                return skip(&error.to_string());
            }
            Err(error) => panic!("{error}"),
        };
        let source = opened.sources.remove(0);
        let meter = MeterSettings { flow_table: FlowTableSettings { flows_max: 64, ..Default::default() }, ..Default::default() };
        let worker = Worker::new(&meter, KeyHasher::fixed(), Observer::default()).expect("a little memory");
        let (harvests, harvested) = crossbeam::channel::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let overload = Overload::new(&OverloadSettings::default(), 1);
        let live = LiveWorker::new(0, Slow(source), worker, harvests, Arc::clone(&stop)).shedding(overload);
        let running = std::thread::spawn(move || live.run());
        // 20,000 packets a second at most, for six seconds.
        let mut port = pcap::Capture::from_device("gen0").expect("gen0").open().expect("gen0 opens");
        for _ in 0..600 {
            for _ in 0..200 {
                port.sendpacket(frame()).expect("gen0 takes a packet");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        running.join().expect("no panic").expect("the capture works to its end");
        let harvests: Vec<_> = harvested.iter().collect();
        let last = harvests.last().expect("a last harvest");
        assert_eq!(last.ledger.imbalance(), None);
        assert_eq!(last.ledger.wire, counter("mon0", "rx_packets"), "the kernel's own count of the port");
        let lost = last.ledger.dropped.ring_full + last.ledger.dropped.ring_starved;
        assert!(lost > 0 && last.ledger.dropped.shed > 0, "{:?}", last.ledger.dropped);
        assert_eq!(last.health.shed, last.ledger.dropped.shed);
        assert!(last.health.keep_one_in > 1, "{:?}", last.health);
        let records: Vec<_> = harvests.iter().flat_map(|harvest| harvest.records.iter()).collect();
        assert_eq!(records.first().map(|record| record.sampling_population), Some(0), "the flow began before");
        let population = records.last().map(|record| record.sampling_population);
        assert_eq!(population.map(u64::from), Some(last.health.keep_one_in), "and its last record tells the rate");
    });
}
