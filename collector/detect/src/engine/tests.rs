//! Threads, restarts and shards change nothing of what is told.

use std::collections::BTreeMap;

use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;

use super::*;
use crate::finding::{Evidence, RuleCard, Severity, Stage, Subject, Variant, Window};
use crate::tests::{at, knock, rules};
use crate::{Interest, Sharding};

/// Tells of every source that knocks for the twentieth time; has room for few, and lets go of the quietest.
struct Twenty {
    sharding: Sharding,
    counts: BTreeMap<Address, u64>,
    keys_max: usize,
    state: State,
    panics_at: Option<Address>,
}

impl Twenty {
    fn shards(sharding: Sharding, keys_max: usize, panics_at: Option<Address>) -> Vec<Box<dyn Detector>> {
        let variant = Variant::Fixed;
        let state = State { rule: "T-20", variant, keys: 0, bytes: 0, late: 0, evicted: 0, refused: 0 };
        let shards = if sharding == Sharding::Whole { 1 } else { SHARDS };
        (0..shards)
            .map(|_| {
                let (counts, state) = (BTreeMap::new(), state.clone());
                Box::new(Self { sharding, counts, keys_max: keys_max / shards, state, panics_at }) as Box<dyn Detector>
            })
            .collect()
    }
}

impl Detector for Twenty {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        assert_ne!(self.panics_at, Some(row.source), "as the test wants");
        if self.counts.len() >= self.keys_max && !self.counts.contains_key(&row.source) {
            let quietest = self.counts.iter().min_by_key(|(_, count)| **count).map(|(&source, _)| source);
            quietest.and_then(|source| self.counts.remove(&source));
            self.state.evicted += 1;
        }
        let count = self.counts.entry(row.source).or_default();
        *count += 1;
        if count.is_multiple_of(20) {
            let (id, variant, severity) = ("T-20", Variant::Fixed, Severity::Low);
            findings.push(Finding {
                rule: Arc::new(RuleCard { id, title: "", variant, severity, attack: Vec::new() }),
                stage: Stage::Crossed,
                subject: Subject::host(row.source),
                window: Window { start: row.at, end: row.at },
                first: row.at,
                last: row.at,
                evidence: Evidence { value: *count as f64, ..Evidence::default() },
                sentence: String::new(),
                score: 1.0,
                confidence: 1.0,
                advice: String::new(),
            });
        }
    }

    fn advance(&mut self, _newest: Timestamp, _findings: &mut Vec<Finding>) {
        self.state.keys = self.counts.len();
    }

    fn flush(&mut self, _findings: &mut Vec<Finding>) {}

    fn interest(&self) -> Interest {
        Interest::only(crate::Facts::PROBE)
    }

    fn sharding(&self) -> Sharding {
        self.sharding
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        Duration::ZERO
    }

    fn snapshot(&self) -> Vec<u8> {
        pack(&(&self.counts, self.state.evicted))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        (self.counts, self.state.evicted) = unpack(bytes)?;
        Ok(())
    }
}

/// Knocks of sources of many networks, some of them often.
fn knocks() -> Vec<FlowRecord> {
    let source = |i: usize| format!("10.{}.{}.9", i % 7 % 3, (i * i) % 61);
    (0..9_000).map(|i| knock(&source(i), "10.9.9.9", protocol::TCP, (i % 500) as u16, i as f64 / 100.0)).collect()
}

fn twenty(sharding: Sharding, mode: Mode) -> Detection {
    let shipped = rules("").detectors(mode);
    let all = shipped.into_iter().chain([(Twenty::shards(sharding, 80, None), String::new())]).collect();
    Detection::of(all, mode)
}

/// What is told, in its order, and what each detector says of itself; `restarts` begins anew from a snapshot half-way.
fn told(records: &[FlowRecord], mut detection: Detection, restarts: Option<Detection>) -> (Vec<String>, Vec<State>) {
    let mut findings = Vec::new();
    let halves = records.split_at(records.len() / 2);
    run(&mut detection, halves.0, &mut findings);
    if let Some(mut next) = restarts {
        assert_eq!(next.restore(&detection.snapshot()).expect("a state"), Vec::<String>::new());
        detection = next;
    }
    run(&mut detection, halves.1, &mut findings);
    detection.finish(&mut findings);
    // Memory is not part of what is known.
    (
        findings.iter().map(|finding| format!("{finding:?}")).collect(),
        detection.states().map(|state| State { bytes: 0, ..state.clone() }).collect(),
    )
}

fn run(detection: &mut Detection, records: &[FlowRecord], findings: &mut Vec<Finding>) {
    for some in records.chunks(700) {
        some.iter().for_each(|record| detection.observe("tap", record));
        match detection.mode {
            Mode::Stream => detection.poll(some.last().map(FlowRecord::first).unwrap_or_default(), findings),
            Mode::Replay => detection.drain(findings),
        }
    }
}

#[test]
fn threads_and_a_restart_on_another_number_of_them_change_nothing() {
    let records = knocks();
    for (sharding, mode) in [
        (Sharding::Source, Mode::Stream),
        (Sharding::Destination, Mode::Stream),
        (Sharding::Whole, Mode::Stream),
        (Sharding::Source, Mode::Replay),
    ] {
        let alone = told(&records, twenty(sharding, mode), None);
        assert!(alone.0.iter().any(|finding| finding.contains("T-20")), "something to find");
        let evicted = |(_, states): &(_, Vec<State>)| states.last().map_or(0, |state| state.evicted);
        assert!(evicted(&alone) > 0, "something to let go of");
        for threads in [2, 4, 99] {
            assert_eq!(told(&records, twenty(sharding, mode).with_threads(threads), None), alone, "{sharding:?} {threads}");
        }
        // Rows of a replay that wait to be sorted are in no snapshot, and no replay is ever saved.
        if mode == Mode::Stream {
            let restarted = told(&records, twenty(sharding, mode).with_threads(4), Some(twenty(sharding, mode).with_threads(3)));
            assert_eq!(restarted, alone, "{sharding:?}, restarted");
        }
    }
}

#[test]
fn a_detector_is_restored_as_a_whole_or_not_at_all() {
    let (records, mode) = (knocks(), Mode::Stream);
    let mut whole = twenty(Sharding::Source, mode);
    run(&mut whole, &records[..3_000], &mut Vec::new());
    let mut saved: Whole = unpack(&whole.snapshot()).expect("our own");
    saved.detectors.get_mut("T-20 fixed, part 5").expect("a shard").state = vec![0xc1];
    let mut anew = twenty(Sharding::Source, mode);
    assert_eq!(anew.restore(&pack(&saved)).expect("a state"), ["T-20 fixed"]);
    let mut seen = Vec::new();
    anew.poll(at(0.0), &mut seen);
    assert_eq!(anew.states().last().map(|state| state.keys), Some(0), "no shard has kept what it was given");
}

#[test]
#[should_panic(expected = "as the test wants")]
fn a_panic_on_a_thread_is_one_of_the_caller() {
    let bad = Twenty::shards(Sharding::Source, 80, Some(crate::tests::host("10.1.1.9")));
    let mut detection = Detection::of(vec![(bad, String::new())], Mode::Stream).with_threads(2);
    run(&mut detection, &knocks(), &mut Vec::new());
}

#[test]
fn in_a_quiet_network_the_slices_of_what_lasts_move_time_and_a_mad_clock_does_not() {
    let mut detection = twenty(Sharding::Source, Mode::Stream);
    let slice = |minute: f64, end: f64| {
        let start = at(minute * 60.0);
        FlowRecord { start: [start; 2], end: [at(end); 2], ..knock("10.0.0.9", "10.9.9.9", protocol::TCP, 502, minute * 60.0) }
    };
    let mut reached = |record: FlowRecord, now: f64| {
        detection.poll(at(now), &mut Vec::new());
        detection.observe("tap", &record);
        detection.poll(at(now), &mut Vec::new());
        detection.watermark().plus(detection.lateness_max)
    };
    assert_eq!(reached(slice(1.0, 119.0), 120.0), at(119.0));
    assert_eq!(reached(slice(2.0, 179.0), 180.0), at(179.0));
    assert_eq!(reached(slice(3.0, 9e6), 240.0), at(180.0), "an end that nobody can have seen");
}
