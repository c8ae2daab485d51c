//! What must hold for any bytes whatever; shared by `tests/robustness.rs` and the fuzz target in `tests/fuzz`.

use spanwatch_common::flow::{FlowEndReason, FlowRecord};
use spanwatch_common::text;
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::{Frame, Losses};
use spanwatch_sensor::decode::DecodeSettings;
use spanwatch_sensor::dedup::DedupMode;
use spanwatch_sensor::flow_settings::{FlowSettings, KeySettings};
use spanwatch_sensor::flow_table::{FlowTableSettings, KeyHasher, Observer};
use spanwatch_sensor::fragments::FragmentSettings;
use spanwatch_sensor::worker::{MeterSettings, Worker};

/// A line so small that every limit is met.
pub struct Line {
    worker: Worker,
    frames: u64,
    now: Timestamp,
    exported: u64,
}

impl Line {
    pub fn new() -> Self {
        let flow_table = FlowTableSettings { flows_max: 256, ..FlowTableSettings::default() };
        let flow_table = FlowTableSettings { tunnels_max: 4, ..flow_table };
        let fragments = FragmentSettings { datagrams_max: 16, tunnel_packets_max: 2, ..FragmentSettings::default() };
        let key = KeySettings { tunnel: true, mac: true, ..KeySettings::default() };
        let flow = FlowSettings { key, dedup: DedupMode::On, ..FlowSettings::default() };
        let decode = DecodeSettings { gtp_u: true, teredo: true, ..DecodeSettings::default() };
        let settings = MeterSettings { flow, decode, flow_table, fragments };
        let worker = Worker::new(&settings, KeyHasher::fixed(), Observer::default()).expect("a little memory");
        Self { worker, frames: 0, now: Timestamp::from_secs(1_000_000), exported: 0 }
    }

    /// Takes a frame, `longer` octets longer on the wire than captured, a millisecond after the one before.
    pub fn take(&mut self, bytes: &[u8], longer: u32) {
        self.now = Timestamp::from_nanos(self.now.as_nanos() + 1_000_000);
        self.worker.take(&[Frame::ethernet(bytes, bytes.len() as u32 + longer, self.now)]);
        self.frames += 1;
        if self.frames.is_multiple_of(50) {
            self.worker.settle(self.now);
            self.check_records();
        }
    }

    /// Every record can be written and read back; together they hold what the ledger says.
    fn check_records(&mut self) {
        let mut line = String::new();
        for record in self.worker.records().iter() {
            self.exported += FlowRecord::packets_total(&record);
            line.clear();
            text::write_json(&record, &mut line);
            let read = text::read_json(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_eq!(read.packets, record.packets, "{line}");
        }
        self.worker.records().clear();
    }

    /// No packet has vanished so far.
    pub fn check(&mut self) {
        self.worker.settle(self.now);
        self.check_records();
        let wire = Losses { wire: self.frames, ..Losses::default() };
        assert_eq!(self.worker.audited_ledger(&wire).imbalance(), None);
    }

    /// No packet has vanished, now or after everything is flushed.
    pub fn finish(mut self) {
        self.check();
        let wire = Losses { wire: self.frames, ..Losses::default() };
        self.worker.flush(FlowEndReason::ForcedEnd);
        self.check_records();
        let ledger = self.worker.audited_ledger(&wire);
        assert_eq!(ledger.imbalance(), None);
        assert_eq!((ledger.live, ledger.exported), (0, self.exported));
        assert_eq!(ledger.delivered, self.frames);
        assert_eq!(ledger.metered + ledger.ignored.total(), self.frames);
    }
}
