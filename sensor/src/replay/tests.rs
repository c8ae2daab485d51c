//! The number of jobs shows nowhere.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::health::Health;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::wire::{self, Batch, Message};

use super::{BatchWriter, Replayed, TextWriter, Wanted, replay_in_jobs};
use crate::capture::file::File;
use crate::dedup::DedupMode;
use crate::worker::MeterSettings;

/// What a replay wrote: text, batches, its account, and what was wrong with the file.
#[derive(PartialEq, Debug)]
struct Outcome {
    text: String,
    batches: Vec<u8>,
    ledger: Ledger,
    health: Health,
    damage: Option<String>,
}

fn assert_same(one: &Outcome, other: &Outcome, what: &str) {
    if let Some((one, other)) = one.text.lines().zip(other.text.lines()).find(|(one, other)| one != other) {
        panic!("{what}:\n{one}\n{other}");
    }
    assert_eq!((one.ledger, one.health, &one.damage), (other.ledger, other.health, &other.damage), "{what}");
    assert!(one == other, "{what}");
}

fn replayed(path: &Path, jobs: usize, settings: &MeterSettings) -> Outcome {
    let mut files = File::open_shared(path, jobs).unwrap();
    let (mut text, mut batches) = (Vec::new(), Vec::new());
    let (mut lines, mut frames) = (TextWriter::jsonl(&mut text), BatchWriter::new(&mut batches));
    let (mut octets, mut records) = (0, 0);
    let each = |record: FlowRecord| {
        records += 1;
        lines.write(&record)?;
        frames.write(record)
    };
    let Replayed { ledger, health, damage } =
        replay_in_jobs(&mut files, settings, Wanted::Records, each, |more| octets += more).unwrap();
    lines.finish().unwrap();
    frames.finish(&ledger, &health).unwrap();
    assert_eq!(ledger.imbalance(), None);
    assert_eq!(ledger.flows.records, records);
    assert_eq!(octets, std::fs::metadata(path).unwrap().len(), "the progress bar comes to its end");
    Outcome { text: String::from_utf8(text).unwrap(), batches, ledger, health, damage: damage.map(|damage| damage.to_string()) }
}

/// Packets between 50 hosts over four minutes: TCP and UDP, some from long ago, some twice, ICMP errors about others, fragments, VLANs.
fn traffic() -> Vec<(i64, Vec<u8>)> {
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut packets = Vec::new();
    for n in 0..40_000_i64 {
        let (one, other, port) = (random(50) as u8, random(50) as u8, random(40) as u16);
        let is_tcp = random(2) == 0;
        let mut ip = vec![0x45, 0, 0, 0, 0, random(200) as u8, 0, 0, 64, if is_tcp { 6 } else { 17 }, 0, 0];
        ip.extend_from_slice(&[192, 0, 2, one, 198, 51, 100, other]);
        if !is_tcp && random(10) == 0 {
            ip[6] = 0x20; // more fragments follow
        }
        ip.extend_from_slice(&(1024 + port).to_be_bytes());
        ip.extend_from_slice(&80_u16.to_be_bytes());
        match is_tcp {
            true => ip.extend_from_slice(&[
                0,
                0,
                0,
                random(9) as u8,
                0,
                0,
                0,
                0,
                0x50,
                [2, 0x10, 0x11, 4][random(4) as usize],
                1,
                0,
                0,
                0,
                0,
                0,
            ]),
            false => ip.extend_from_slice(&[0, 12, 0, 0, 1, 2, 3, 4]),
        }
        let length = ip.len() as u16;
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        if random(20) == 0 {
            let mut error =
                vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 198, 51, 100, other, 192, 0, 2, one, 3, 1, 0, 0, 0, 0, 0, 0];
            error.extend_from_slice(&ip[..28]);
            let length = error.len() as u16;
            error[2..4].copy_from_slice(&length.to_be_bytes());
            ip = error;
        }
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if random(3) == 0 {
            frame.extend_from_slice(&[0x81, 0, 0, random(3) as u8]);
        }
        frame.extend_from_slice(&[8, 0]);
        frame.extend_from_slice(&ip);
        // Now and then one comes minutes late, or early.
        let astray = if random(100) == 0 { random(120) as i64 - 60 } else { 0 };
        let micros = 1_700_000_000_000_000 + n * 6_000 + astray * 1_000_000;
        if random(30) == 0 {
            packets.push((micros - 5, frame.clone()));
        }
        packets.push((micros, frame));
    }
    packets
}

fn capture(packets: &[(i64, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 1 << 18, 1].iter().for_each(|word| file.extend_from_slice(&word.to_le_bytes()));
    for (micros, frame) in packets {
        let words = [(micros / 1_000_000) as u32, (micros % 1_000_000) as u32, frame.len() as u32, frame.len() as u32];
        words.iter().for_each(|word| file.extend_from_slice(&word.to_le_bytes()));
        file.extend_from_slice(frame);
    }
    file
}

fn on_disk(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn however_many_jobs_share_a_file_and_however_it_is_packed_the_same_comes_out() {
    let plain = capture(&traffic());
    let cut = on_disk(&plain[..plain.len() - 5]);
    let packed = on_disk(&zstd::encode_all(plain.as_slice(), 1).unwrap());
    let plain = on_disk(&plain);
    for dedup in [DedupMode::Off, DedupMode::On] {
        let mut settings = MeterSettings::default();
        settings.flow.dedup = dedup;
        let expected = replayed(plain.path(), 1, &settings);
        assert!(expected.ledger.flows.records > 10_000 && expected.damage.is_none(), "{:?}", expected.ledger);
        assert_eq!(expected.ledger.ignored.duplicate_copy > 0, dedup == DedupMode::On);
        for jobs in [1, 2, 3, 7] {
            assert_same(&replayed(plain.path(), jobs, &settings), &expected, &format!("{jobs} jobs"));
            assert_same(&replayed(packed.path(), jobs, &settings), &expected, &format!("{jobs} jobs, packed"));
        }
        let expected = replayed(cut.path(), 1, &settings);
        assert!(
            expected.damage.as_ref().is_some_and(|damage| damage.contains("the file ends in the middle of a packet")),
            "{:?}",
            expected.damage
        );
        assert_same(&replayed(cut.path(), 2, &settings), &expected, "cut off");
    }
}

#[test]
fn the_account_alone_is_that_of_the_records() {
    let file = on_disk(&capture(&traffic()));
    let settings = MeterSettings::default();
    let expected = replayed(file.path(), 1, &settings);
    for jobs in [1, 2] {
        let mut files = File::open_shared(file.path(), jobs).unwrap();
        let each = |_| panic!("no record is wanted");
        let Replayed { ledger, health, .. } = replay_in_jobs(&mut files, &settings, Wanted::Account, each, |_| {}).unwrap();
        assert_eq!((ledger, health), (expected.ledger, expected.health));
    }
}

#[test]
fn batches_hold_the_records_one_batch_after_the_other_numbered_from_1_and_the_account_comes_last() {
    let file = on_disk(&capture(&traffic()));
    let mut files = File::open_shared(file.path(), 1).unwrap();
    let (mut expected, mut bytes) = (Vec::new(), Vec::new());
    let mut writer = BatchWriter::new(&mut bytes);
    let each = |record: FlowRecord| {
        expected.push(record.clone());
        writer.write(record)
    };
    let Replayed { ledger, health, .. } =
        replay_in_jobs(&mut files, &MeterSettings::default(), Wanted::Records, each, |_| {}).unwrap();
    writer.finish(&ledger, &health).unwrap();
    let in_order = |records: &mut [FlowRecord]| records.sort_by_key(|record| (record.flow_id, record.state, record.first()));
    let (mut records, mut rest, mut sequence) = (0, bytes.as_slice(), 0);
    while let Some((message, used)) = wire::decode(rest).unwrap() {
        rest = &rest[used..];
        match message {
            Message::Data(Batch { sensor, boot, sequence: number, records: mut more, .. }) => {
                sequence += 1;
                assert_eq!((sensor.as_str(), boot, number), ("replay", 1, sequence));
                let these = &mut expected[records..records + more.len()];
                records += more.len();
                in_order(these);
                in_order(&mut more);
                assert!(more == these, "batch {sequence}");
            }
            Message::Stats(stats) => {
                assert_eq!((stats.ledger, stats.ports[0].health), (ledger, health));
                assert!(rest.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(sequence > 2 && records == expected.len());
}

#[test]
fn captures_of_the_corpus_come_out_alike_from_any_number_of_jobs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/dev");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: the shared corpus is not there");
        return;
    };
    let is_capture =
        |path: &PathBuf| path.extension().is_some_and(|ending| ["pcap", "pcapng", "gz"].iter().any(|known| ending == *known));
    let mut captures = 0;
    for path in entries.map(|entry| entry.unwrap().path()).filter(is_capture) {
        let expected = replayed(&path, 1, &MeterSettings::default());
        for jobs in [2, 3] {
            assert_same(
                &replayed(&path, jobs, &MeterSettings::default()),
                &expected,
                &format!("{}, {jobs} jobs", path.display()),
            );
        }
        captures += 1;
    }
    assert!(captures >= 100, "the corpus has shrunk to {captures} captures");
}
