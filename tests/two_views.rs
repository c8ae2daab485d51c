//! The same traffic seen twice: as a sensor's records, and as the Azure flow log that they are exported to, read back. The Azure rules
//! must find the same in both.
//!
//! What a flow log cannot say is lost on the way, and shows in these places only:
//!
//! * The remains of a flow that was counted already are no row for a sensor, but a tuple (`E` with zeros) in the log: exact rules that
//!   count rows as such (AZ-08, AZ-26) see more rows.
//! * The log knows `I` and `O`, a mirror port also traffic that stays inside: the directions of AZ-08.
//! * There are no TCP flags: a refusal by RST looks like an answer. So a fixed rule that goes by what came to nothing misses ports
//!   that refuse, and hosts that do (AZ-02, 05, 16 and 22 on the port scan below; one host of forty in AZ-01 and AZ-06).
//!
//! And a third time, as two fibres of a TAP show it: each direction at a port of its own, metered by itself, and joined by the collector.

#[path = "support/azure/mod.rs"]
mod azure;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spanwatch_azure::{Format, Labels, Limits, Options, Reader, Writer};
use spanwatch_collector::ingest::join::{is_half, join};
use spanwatch_common::flow::{FORWARD, FlowEndReason, FlowRecord, FlowState, REVERSE};
use spanwatch_common::time::Timestamp;
use spanwatch_detect::{Detection, Finding, Mode, RuleFile, Sites, Variant};
use spanwatch_sensor::capture::Frame;
use spanwatch_sensor::flow_table::{KeyHasher, Observer};
use spanwatch_sensor::worker::{MeterSettings, Worker};

const SYN: u8 = 2;
const SYN_ACK: u8 = 18;
const RST_ACK: u8 = 20;
const PSH_ACK: u8 = 24;
const FIN_ACK: u8 = 17;

/// A TCP segment with `payload` octets. Checksums are left zero: the sensor does not read them.
fn tcp(from: [u8; 4], to: [u8; 4], ports: [u16; 2], flags: u8, payload: usize) -> Vec<u8> {
    let total = (40 + payload) as u16;
    let mut frame = vec![2, 0, 0, 0, to[2], to[3], 2, 0, 0, 0, from[2], from[3], 0x08, 0x00];
    frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(from.into_iter().chain(to));
    frame.extend(ports.into_iter().flat_map(u16::to_be_bytes));
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize((frame.len() + payload).max(60), 0x55);
    frame
}

/// Frames with their times in milliseconds since the beginning.
struct Wire(Vec<(i64, Vec<u8>)>);

impl Wire {
    fn send(&mut self, at: i64, from: [u8; 4], to: [u8; 4], ports: [u16; 2], flags: u8, payload: usize) {
        self.0.push((at, tcp(from, to, ports, flags, payload)));
    }

    /// Opens, speaks, closes, within 50 ms.
    fn conversation(&mut self, at: i64, from: [u8; 4], to: [u8; 4], ports: [u16; 2], payload: usize) {
        let back = [ports[1], ports[0]];
        self.send(at, from, to, ports, SYN, 0);
        self.send(at + 1, to, from, back, SYN_ACK, 0);
        self.send(at + 2, from, to, ports, PSH_ACK, payload);
        self.send(at + 30, to, from, back, PSH_ACK, 2 * payload % 1_400);
        self.send(at + 40, from, to, ports, FIN_ACK, 0);
        self.send(at + 50, to, from, back, FIN_ACK, 0);
    }
}

/// An hour in a plant: people at work, a sweep, a port scan, a beacon, a wave of file sharing, and a volume out of the ordinary.
fn plant() -> Wire {
    let mut wire = Wire(Vec::new());
    let minute = 60_000;
    for n in 0..600_u16 {
        let at = i64::from(n) * 6_000 + i64::from(n % 7) * 311;
        wire.conversation(
            at,
            [10, 0, 1, (n % 20) as u8],
            [10, 0, 2, (n % 3) as u8],
            [20_000 + n, 443],
            200 + usize::from(n % 50),
        );
    }
    // Nobody there, and one host that refuses.
    for n in 0..40_u8 {
        let at = 10 * minute + i64::from(n) * 700;
        wire.send(at, [10, 0, 1, 99], [10, 0, 3, n], [40_000 + u16::from(n), 445], SYN, 0);
        if n == 39 {
            wire.send(at + 1, [10, 0, 3, n], [10, 0, 1, 99], [445, 40_039], RST_ACK, 0);
        }
    }
    for n in 0..120_u16 {
        let at = 20 * minute + i64::from(n) * 50;
        wire.send(at, [10, 0, 1, 98], [10, 0, 2, 1], [45_000, 1 + n], SYN, 0);
        wire.send(at + 1, [10, 0, 2, 1], [10, 0, 1, 98], [1 + n, 45_000], RST_ACK, 0);
    }
    for n in 0..59_u16 {
        wire.conversation(i64::from(n) * minute + 13_000, [10, 0, 1, 97], [203, 0, 113, 9], [30_000 + n, 443], 120);
    }
    for n in 0..60_u16 {
        wire.send(30 * minute + i64::from(n) * 100, [203, 0, 113, 20], [10, 0, 2, 2], [50_000, 1_000 + n], SYN, 0);
    }
    for n in 0..30_u8 {
        wire.conversation(40 * minute + i64::from(n) * 900, [10, 0, 1, 96], [10, 0, 4, n], [31_000, 139], 300);
    }
    for n in 0..400_u16 {
        wire.conversation(50 * minute + i64::from(n) * 100, [10, 0, 1, 1], [10, 0, 2, 0], [32_000 + n, 443], 1_400);
    }
    wire.0.sort();
    wire
}

/// The sensor's records of the wire.
fn metered(wire: &Wire) -> Vec<FlowRecord> {
    let mut worker = Worker::new(&MeterSettings::default(), KeyHasher::fixed(), Observer::default()).expect("memory");
    let mut records = Vec::new();
    for (ms, bytes) in &wire.0 {
        worker.take(&[Frame::ethernet(bytes, bytes.len() as u32, at(*ms))]);
        worker.settle(at(*ms));
        records.extend(worker.records().iter());
        worker.records().clear();
    }
    worker.flush(FlowEndReason::ForcedEnd);
    records.extend(worker.records().iter());
    records
}

/// The records of both fibres of a TAP, as they come to the collector in stretches of three seconds.
fn tapped(wire: &Wire) -> Vec<Vec<FlowRecord>> {
    let fibre = |observation_point| {
        let observer = Observer { observation_point, one_sided: true, ..Observer::default() };
        Worker::new(&MeterSettings::default(), KeyHasher::fixed(), observer).expect("memory")
    };
    let mut fibres = [fibre(1), fibre(2)];
    let mut stretches: Vec<Vec<FlowRecord>> = Vec::new();
    let mut now = 0;
    let mut settle = |fibres: &mut [Worker; 2], ms: i64| {
        for worker in fibres {
            worker.settle(at(ms));
            stretches.resize_with(stretches.len().max((ms / 3_000) as usize + 1), Vec::new);
            stretches[(ms / 3_000) as usize].extend(worker.records().iter());
            worker.records().clear();
        }
    };
    for (ms, bytes) in &wire.0 {
        while now + 250 < *ms {
            now += 250;
            settle(&mut fibres, now);
        }
        let ascends = bytes[26..30] < bytes[30..34];
        fibres[usize::from(ascends)].take(&[Frame::ethernet(bytes, bytes.len() as u32, at(*ms))]);
        settle(&mut fibres, *ms);
    }
    fibres.iter_mut().for_each(|worker| worker.flush(FlowEndReason::ForcedEnd));
    settle(&mut fibres, wire.0.last().map_or(0, |(ms, _)| *ms));
    stretches
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_nanos((azure::EPOCH * 1_000 + ms) * 1_000_000)
}

/// The records as a VNet flow log, read back.
fn through_azure(records: &[FlowRecord], sites: &Sites) -> Vec<FlowRecord> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut sink = |path: &str, text: &[u8]| {
        files.entry(path.to_owned()).or_default().extend_from_slice(text);
        Ok(())
    };
    let mut writer = Writer::new(Format::VnetFlowLog, &Labels::default(), Duration::from_secs(600), Limits::default());
    for record in records {
        writer.write(record, |address| sites.number(address).is_some(), &mut sink).expect("room");
    }
    let written = writer.finish(&mut sink).expect("room");
    assert_eq!((written.records, written.skipped.total()), (records.len() as u64, 0));
    let mut read = Vec::new();
    for text in files.values() {
        let mut reader = Reader::new(Options::default());
        reader.push(text, |row| read.push(row.to_record())).expect("what was just written");
        reader.finish(|row| read.push(row.to_record())).expect("what was just written");
    }
    read
}

/// Rule, subject without the observer, beginning of the window, value.
fn found(records: &[FlowRecord], variant: Variant, sites: &Sites) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut rules = RuleFile::shipped().expect("the rules as shipped");
    rules.set_variants(&[variant]);
    let mut detection = Detection::new(&rules, Mode::Replay).with_sites(sites.clone());
    let mut findings: Vec<Finding> = Vec::new();
    records.iter().for_each(|record| detection.observe("plant", record));
    detection.finish(&mut findings);
    let mut found: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for mut finding in findings {
        finding.subject.observer = None;
        let line = format!("{} {} {}", finding.subject, finding.window.start, finding.evidence.value);
        found.entry(finding.rule.id).or_default().insert(line);
    }
    found
}

#[test]
fn a_mirror_port_and_its_export_as_flow_log_give_the_same_findings() {
    let sites = Sites::default();
    let records = metered(&plant());
    let imported = through_azure(&records, &sites);

    let (sensor, cloud) = (found(&records, Variant::Exact, &sites), found(&imported, Variant::Exact, &sites));
    for rule in ["AZ-01", "AZ-02", "AZ-03", "AZ-04", "AZ-05", "AZ-11", "AZ-12", "AZ-16", "AZ-20", "AZ-21"] {
        assert!(sensor.contains_key(rule), "the traffic gives {rule} something to find");
        assert_eq!(sensor.get(rule), cloud.get(rule), "{rule}");
    }
    let rules = |found: &BTreeMap<&'static str, BTreeSet<String>>| found.keys().copied().collect::<Vec<_>>();
    assert_eq!(rules(&sensor), rules(&cloud), "AZ-08 and AZ-26 find something in both, if not the same numbers");

    let (sensor, cloud) = (found(&records, Variant::Fixed, &sites), found(&imported, Variant::Fixed, &sites));
    let only_sensor: Vec<&str> = rules(&sensor).into_iter().filter(|rule| !cloud.contains_key(rule)).collect();
    assert_eq!(
        only_sensor,
        ["AZ-16", "AZ-22", "ND-02"],
        "a flow log does not know which ports refused: ND-02 lacks its fortieth host"
    );
    assert_eq!(sensor["AZ-26"], cloud["AZ-26"]);
    // The sweep of forty silent hosts is seen by both, but for the host that refused.
    let sweep = |hosts: u32| BTreeSet::from([format!("10.0.1.99 2026-11-01T00:10:00.000000000Z {hosts}")]);
    assert_eq!((&sensor["AZ-01"], &cloud["AZ-01"]), (&sweep(40), &sweep(39)));
    // The scan from outside meets silence, so both see it; the one from inside meets refusals.
    let missing: Vec<&String> = ["AZ-02", "AZ-05"].iter().flat_map(|rule| sensor[rule].difference(&cloud[rule])).collect();
    assert!(missing.len() == 2 && missing.iter().all(|line| line.starts_with("10.0.1.98 > 10.0.2.1 ")), "{missing:?}");
    let added: Vec<&String> = ["AZ-02", "AZ-05"].iter().flat_map(|rule| cloud[rule].difference(&sensor[rule])).collect();
    assert!(added.is_empty(), "{added:?}");
}

#[test]
fn two_fibres_of_a_tap_give_the_scans_of_one_mirror_port_and_no_others() {
    let (sites, wire) = (Sites::default(), plant());
    let whole = metered(&wire);
    let stretches = tapped(&wire);
    let apart: Vec<FlowRecord> = stretches.iter().flatten().cloned().collect();
    let joined: Vec<FlowRecord> = stretches.into_iter().flat_map(|records| join(records).records).collect();

    let counted = |records: &[FlowRecord]| -> [u64; 2] {
        [FORWARD, REVERSE].map(|way| records.iter().map(|record| record.packets[way]).sum())
    };
    assert_eq!(counted(&joined), counted(&whole), "each packet once, and in its direction");
    let is_conversation = |record: &&FlowRecord| record.state != FlowState::End && record.destination_port == 443;
    let (lone, paired): (Vec<_>, Vec<_>) = joined.iter().filter(is_conversation).partition(|record| is_half(record));
    assert!(lone.len() * 100 <= paired.len(), "{} lone halves of conversations, {} whole", lone.len(), paired.len());

    // Joined or not, who scanned what is seen as at a mirror port.
    let mirror = found(&whole, Variant::Fixed, &sites);
    for (what, records) in [("joined", joined), ("apart", apart)] {
        let fibres = found(&records, Variant::Fixed, &sites);
        for rule in ["AZ-01", "AZ-02", "AZ-05", "AZ-06", "AZ-16", "AZ-17"] {
            assert_eq!(fibres.get(rule), mirror.get(rule), "{rule}, {what}");
        }
    }
}
