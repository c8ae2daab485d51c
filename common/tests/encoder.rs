//! Batches of form 2: what an encoder makes, and what a receiver makes of anything that claims to be one.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::PathBuf;

use proptest::prelude::*;
use serde::Serialize;
use spanwatch_common::element::{Access, ELEMENTS};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{self, Batch, Encoder, HEADER_LEN, Head, Message, WireError};

fn ledger() -> Ledger {
    Ledger { wire: 12, delivered: 12, metered: 12, exported: 12, queued: 12, ..Ledger::default() }
}

fn encode(encoder: &mut Encoder, records: &[FlowRecord]) -> Vec<u8> {
    records.iter().for_each(|record| encoder.push(record.clone()));
    assert_eq!(encoder.len(), records.len());
    let mut frame = Vec::new();
    encoder.encode(&Head { sensor: "plant1", boot: 7, sequence: 42, ledger: &ledger() }, &mut frame).unwrap();
    assert!(encoder.is_empty());
    frame
}

fn decode(frame: &[u8]) -> Result<Batch, WireError> {
    match wire::decode(frame)? {
        Some((Message::Data(batch), length)) if length == frame.len() => Ok(batch),
        other => panic!("a whole batch, not {other:?}"),
    }
}

/// Records in an order that depends on nothing but them.
fn sorted(mut records: Vec<FlowRecord>) -> Vec<FlowRecord> {
    let words = |record: &FlowRecord| {
        ELEMENTS.each_ref().map(|element| match element.access {
            Access::Word(get, _) => u128::from(get(record)),
            Access::Wide(get, _) => get(record),
        })
    };
    records.sort_by_key(words);
    records
}

/// Any record at all: every field set to any value that its type holds.
fn any_record() -> impl Strategy<Value = FlowRecord> {
    let words = prop::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>(), 0..1000_u64], ELEMENTS.len());
    (words, any::<u128>()).prop_map(|(words, high)| {
        let mut record = FlowRecord::default();
        for (element, word) in ELEMENTS.iter().zip(words) {
            match element.access {
                Access::Word(_, set) => set(&mut record, word),
                Access::Wide(_, set) => set(&mut record, high ^ u128::from(word)),
            }
        }
        record
    })
}

/// A conversation as most are: its times and counters fit each other.
fn ordinary_record() -> impl Strategy<Value = FlowRecord> {
    (0..1_u64 << 40, 0..1_u64 << 34, 0..3_u64, 0..2_000_u64, any::<bool>()).prop_map(|(start, lasts, kind, packets, answered)| {
        let at = |nanos: u64| Timestamp::from_nanos(1_790_000_000_000_000_000 + nanos.cast_signed());
        let back = |time| if answered { time } else { Timestamp::NONE };
        FlowRecord {
            flow_id: start ^ lasts << 40,
            protocol: [6, 17, 1][kind as usize],
            packets: [packets, u64::from(answered)],
            octets: [packets * 100, 40],
            layer2_octets: [packets * 114, if answered { 60 } else { 0 }],
            start: [at(start), back(at(start + 7_000))],
            end: [at(start + lasts), back(at(start + lasts + 9_000))],
            tcp_handshake: [if kind == 0 { 7_000 } else { 0 }, 0],
            ..FlowRecord::default()
        }
    })
}

proptest! {
    #[test]
    fn decoding_undoes_encoding_but_for_the_order(
        first in prop::collection::vec(any_record(), 0..40),
        second in prop::collection::vec(ordinary_record(), 0..300),
    ) {
        let mut encoder = Encoder::default();
        for records in [first, second] {
            let batch = decode(&encode(&mut encoder, &records)).unwrap();
            prop_assert_eq!((&*batch.sensor, batch.boot, batch.sequence, batch.ledger), ("plant1", 7, 42, ledger()));
            prop_assert_eq!(sorted(batch.records), sorted(records));
        }
    }

    #[test]
    fn a_mutated_batch_is_an_error_or_a_batch(
        records in prop::collection::vec(ordinary_record(), 1..20),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let frame = encode(&mut Encoder::default(), &records);
        let mut plain = match frame[4] {
            0 => frame[HEADER_LEN..].to_vec(),
            _ => zstd::bulk::decompress(&frame[HEADER_LEN..], wire::PLAIN_LEN_MAX).unwrap(),
        };
        for (place, byte) in changes {
            let length = plain.len();
            plain[place.index(length)] = byte;
        }
        let _ = wire::decode(&framed(&plain));
    }
}

/// `body` as an uncompressed frame.
fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&length[..], &[0], &length, &crc32c::crc32c(body).to_le_bytes(), body].concat()
}

/// The golden files of form 1 and of form 2 hold the same records. `WRITE_GOLDEN=1` writes what is missing of the latter.
#[test]
fn what_any_release_wrote_is_read_for_ever() {
    for name in ["kinds", "empty", "many", "encapsulated"] {
        let path =
            |form| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/wire_v1_data_{name}{form}.bin"));
        let read = |path: PathBuf| std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let first = decode(&read(path(""))).unwrap();
        if std::env::var_os("WRITE_GOLDEN").is_some() && !path("_form2").exists() {
            std::fs::write(path("_form2"), encode(&mut Encoder::default(), &first.records)).unwrap();
        }
        let second = decode(&read(path("_form2"))).unwrap();
        assert_eq!(sorted(second.records), sorted(first.records), "{name}");
        assert_eq!(second.sequence, 42);
    }
}

#[derive(Serialize)]
struct Column {
    e: u64,
    w: u8,
    b: u64,
    p: bool,
    r: Vec<(u64, u64)>,
    #[serde(with = "serde_bytes")]
    v: Vec<u8>,
}

/// As it is, with a base.
fn plain(e: u64, w: u8, b: u64, v: &[u8]) -> Column {
    Column { e, w, b, p: false, r: Vec::new(), v: v.to_vec() }
}

/// A batch of three rows, made by hand.
fn batch_of(columns: Vec<Column>) -> Result<Vec<FlowRecord>, WireError> {
    #[derive(Serialize)]
    struct Body {
        sensor: &'static str,
        boot: u64,
        seq: u64,
        rows: u32,
        columns: Vec<Column>,
    }
    let body = rmp_serde::to_vec_named(&Body { sensor: "p1", boot: 1, seq: 1, rows: 3, columns }).unwrap();
    Ok(decode(&framed(&[&[0x92, 3], &body[..]].concat()))?.records)
}

const START: u64 = 156;
const END: u64 = 157;
const OCTETS: u64 = 1;
const PACKETS: u64 = 2;
const LAYER2_OCTETS: u64 = 352;

#[test]
fn planes_and_what_foretells_a_column_mean_what_the_format_says() {
    let records = batch_of(vec![
        plain(START, 1, 1000, &[0, 5, 9]),
        // Codes 1, 0 and 0x0102: the low bytes, then the high bytes.
        Column { p: true, r: vec![(START, 1)], ..plain(END, 2, 10, &[1, 0, 2, 0, 0, 1]) },
        plain(OCTETS, 0, 100, &[]),
        Column { p: true, ..plain(PACKETS, 3, 1, &[0, 1, 2, 0, 0, 0, 0, 0, 1]) },
        // A base of −1.
        Column { r: vec![(OCTETS, 1), (PACKETS, 14)], ..plain(LAYER2_OCTETS, 1, u64::MAX, &[1, 3, 0]) },
    ])
    .unwrap();
    let seen: Vec<_> =
        records.iter().map(|record| (record.end[0].as_nanos(), record.packets[0], record.layer2_octets[0])).collect();
    let third = (1009 + 10 + 0x0102 - 1, 1 + 0x01_0002, 0);
    assert_eq!(seen, [(1000 + 10, 1, 100 + 14 - 1), (0, 2, 100 + 28 - 1 + 2), third]);
}

#[test]
fn columns_that_make_no_sense_are_refused() {
    let address = 28;
    let foretold = |r: Vec<(u64, u64)>| Column { r, ..plain(END, 1, 0, &[1, 1, 1]) };
    for (why, column) in [
        ("shorter than three rows", plain(START, 1, 0, &[0, 0])),
        ("a width that only planes may have", plain(START, 3, 0, &[0; 9])),
        ("planes beyond 64 bits", Column { p: true, ..plain(START, 9, 0, &[0; 27]) }),
        ("addresses in planes", Column { p: true, ..plain(address, 4, 0, &[0; 12]) }),
        ("addresses foretold", Column { r: vec![(START, 1)], ..plain(address, 4, 0, &[0; 12]) }),
        ("codes of 128 bits", Column { r: vec![(START, 1)], ..plain(END, 16, 0, &[0; 48]) }),
        ("foretold by addresses", foretold(vec![(address, 1)])),
        ("foretold by what nobody knows", foretold(vec![(0x7fff_ffff_ffff, 1)])),
        ("foretold by five", foretold(vec![(START, 1); 5])),
    ] {
        assert!(matches!(batch_of(vec![column]), Err(WireError::Malformed(_))), "{why}");
    }
    // Unknown, so passed over, whatever it refers to.
    assert!(batch_of(vec![Column { r: vec![(5, 5); 9], ..plain(0x7fff_ffff_ffff, 1, 0, &[0; 3]) }]).is_ok());
}
