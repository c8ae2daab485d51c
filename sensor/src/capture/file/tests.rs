use std::io::{Cursor, Read, Write as _};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use spanwatch_common::time::Timestamp;

use super::File;
use super::build::{Build, Sent};
use super::parser::ByteOrder::{self, Big, Little};
use crate::capture::{Capture, CaptureError, CaptureErrorKind, Drained, Link, Losses};

/// A frame as it was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    interface: u32,
    link: Link,
    nanos: i64,
    bytes: Vec<u8>,
    wire_len: u32,
}

/// Gives at most so many octets per call, as a pipe may.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let octets = buffer.len().min(self.1);
        self.0.read(&mut buffer[..octets])
    }
}

/// Everything that comes out of a file: frames, then at most one error, then the end.
type Outcome = (Vec<Got>, Option<CaptureError>, Losses);

fn read(bytes: &[u8]) -> Outcome {
    read_in_pieces(bytes, usize::MAX)
}

fn read_in_pieces(bytes: &[u8], piece: usize) -> Outcome {
    outcome(File::from_reader("test.pcap", Trickle(Cursor::new(bytes.to_vec()), piece)))
}

/// The same from a file on disk: mapped, unless it is packed.
fn read_from_disk(bytes: &[u8]) -> Outcome {
    let mut on_disk = tempfile::NamedTempFile::new().expect("a file");
    on_disk.write_all(bytes).expect("room on the disk");
    let (frames, mut trouble, losses) = outcome(File::open(on_disk.path()));
    if let Some(trouble) = &mut trouble {
        trouble.doing = trouble.doing.replace(&on_disk.path().display().to_string(), "test.pcap");
    }
    (frames, trouble, losses)
}

fn outcome(file: Result<File, CaptureError>) -> Outcome {
    let mut file = match file {
        Ok(file) => file,
        Err(error) => return (Vec::new(), Some(error), Losses::default()),
    };
    let (mut frames, mut trouble) = (Vec::new(), None);
    loop {
        let before = frames.len();
        let drained = file.drain(Timestamp::NONE, 3, |lent| {
            lent.iter().for_each(|frame| {
                let (bytes, nanos) = (frame.bytes.to_vec(), frame.at.as_nanos());
                frames.push(Got { interface: frame.interface, link: frame.link, nanos, bytes, wire_len: frame.wire_len });
            })
        });
        match drained {
            Ok(Drained::Frames(handed)) => assert_eq!(handed, frames.len() - before),
            Ok(Drained::Ended) => break,
            Err(error) => assert_eq!(trouble.replace(error), None, "an error is said once"),
        }
    }
    let losses = file.losses().unwrap();
    assert_eq!(losses.wire, frames.len() as u64 + losses.dropped.total());
    (frames, trouble, losses)
}

/// Packets of different lengths, one of them sliced, at times of whole microseconds.
fn packets() -> Vec<Sent> {
    [
        (1, 60, 60),
        (1_700_000_000_123_456_000, 61, 61),
        (1_700_000_000_123_457_000, 0, 1_500),
        (1_700_000_001_000_000_000, 96, 1_514),
    ]
    .iter()
    .map(|&(nanos, length, wire_len)| Sent { nanos, bytes: (0..length).collect(), wire_len })
    .collect()
}

fn expected(packets: &[Sent]) -> Vec<Got> {
    let got = |sent: &Sent| Got {
        interface: 0,
        link: Link::Ethernet,
        nanos: sent.nanos.cast_signed(),
        bytes: sent.bytes.clone(),
        wire_len: sent.wire_len,
    };
    packets.iter().map(got).collect()
}

fn classic(order: ByteOrder, magic: u32, units_per_sec: u64, more: &[u8]) -> Build {
    let mut file = Build::pcap(order, magic, 4, 1);
    packets().iter().for_each(|sent| {
        file.record(units_per_sec, sent, more);
    });
    file
}

fn blocks(order: ByteOrder) -> Build {
    let mut file = Build::new(order);
    file.section(order)
        .interface(1, 0, &[(2, b"eth0"), (9, &[9])])
        .block(0x0bad, 0, |file| file.bytes(b"nobody knows this block"));
    for (n, sent) in packets().iter().enumerate() {
        match n % 2 {
            0 => file.enhanced(0, sent.nanos, sent, &[(1, b"a comment")]),
            _ => file.obsolete(0, sent.nanos, sent),
        };
    }
    file.statistics(0, &[(4, 4)]);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

#[test]
fn the_same_packets_in_every_format_and_packing_are_the_same_frames() {
    // A clock that counts microseconds says zero for the first one, which becomes one nanosecond again.
    let files = [
        classic(Little, 0xa1b2_c3d4, 1_000_000, &[]),
        classic(Big, 0xa1b2_c3d4, 1_000_000, &[]),
        classic(Little, 0xa1b2_3c4d, 1_000_000_000, &[]),
        classic(Big, 0xa1b2_3c4d, 1_000_000_000, &[]),
        classic(Little, 0xa1b2_cd34, 1_000_000, &[7; 8]),
        classic(Big, 0xa1b2_cd34, 1_000_000, &[7; 8]),
        blocks(Little),
        blocks(Big),
    ];
    for (n, file) in files.into_iter().enumerate() {
        let plain = file.out;
        let (first, second) = plain.split_at(plain.len() / 2);
        let packings = [
            ("plain", plain.clone()),
            ("gzip", gzip(&plain)),
            ("zstd", zstandard(&plain)),
            ("two gzip members", [gzip(first), gzip(second)].concat()),
            (
                "two zstd frames after one to skip",
                [b"\x52\x2a\x4d\x18\x01\0\0\0!", &*zstandard(first), &*zstandard(second)].concat(),
            ),
        ];
        for (packing, bytes) in packings {
            for piece in [1, 7, usize::MAX] {
                let (frames, trouble, _) = read_in_pieces(&bytes, piece);
                assert_eq!(trouble, None, "file {n}, {packing}");
                assert_eq!(frames, expected(&packets()), "file {n}, {packing}");
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_gives_the_whole_packets_before_the_cut_and_one_error() {
    for file in
        [classic(Little, 0xa1b2_c3d4, 1_000_000, &[]), classic(Big, 0xa1b2_cd34, 1_000_000, &[0; 8]), blocks(Little), blocks(Big)]
    {
        for cut in 0..=file.out.len() {
            let (frames, trouble, _) = read(&file.out[..cut]);
            let whole = file.ends.iter().filter(|(end, _)| *end <= cut).map(|(_, packets)| *packets).max().unwrap_or(0);
            assert_eq!(frames, expected(&packets()[..whole]), "cut at {cut}");
            let is_clean = file.ends.iter().any(|(end, _)| *end == cut);
            assert_eq!(trouble.is_none(), is_clean, "cut at {cut}: {trouble:?}");
            if let Some(trouble) = trouble.filter(|error| error.kind == CaptureErrorKind::Failed) {
                let start = file.ends.iter().map(|(end, _)| *end).filter(|end| *end < cut).max().unwrap_or(0);
                let place = format!("begins at byte {start}, after {whole} whole packets");
                assert!(trouble.to_string().starts_with("read test.pcap: the file ends in the middle of a "), "{trouble}");
                assert!(trouble.to_string().contains(&place), "{trouble}, not {place}");
            }
        }
    }
}

#[test]
fn a_compressed_file_cut_or_damaged_gives_a_beginning_and_one_error() {
    let plain = classic(Little, 0xa1b2_c3d4, 1_000_000, &[]).out;
    for packed in [gzip(&plain), zstandard(&plain)] {
        for cut in 0..packed.len() {
            let (frames, trouble, _) = read(&packed[..cut]);
            assert!(expected(&packets()).starts_with(&frames), "cut at {cut}");
            assert!(trouble.is_some(), "cut at {cut}");
        }
    }
    let mut wrong_sum = gzip(&plain);
    let checksum = wrong_sum.len() - 8;
    wrong_sum[checksum] ^= 1;
    let (frames, trouble, _) = read(&wrong_sum);
    assert_eq!(frames, expected(&packets()));
    let text = trouble.expect("the checksum is wrong").to_string();
    assert!(text.contains("gzip stream is damaged") && text.contains("after 4 whole packets"), "{text}");
}

#[test]
fn times_of_any_resolution_become_nanoseconds() {
    let table: [(Option<u8>, i64, u64, i64); 12] = [
        // resolution, offset in seconds, ticks, nanoseconds
        (None, 0, 1_500_000, 1_500_000_000),
        (Some(0), 0, 3, 3_000_000_000),
        (Some(3), 10, 1_500, 11_500_000_000),
        (Some(9), 0, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (Some(12), 0, 1_999, 1),
        (Some(127), 0, u64::MAX, 1),
        (Some(0x80 | 1), 0, 3, 1_500_000_000),
        (Some(0x80 | 32), 0, (5 << 32) + (1 << 30), 5_250_000_000),
        (Some(0x80 | 127), 0, u64::MAX, 1),
        (Some(6), -2, 1_000_000, 1),
        (Some(0), 0, u64::MAX, i64::MAX),
        (Some(6), i64::MIN, 5, 1),
    ];
    for order in [Little, Big] {
        for (resolution, offset, ticks, nanos) in table {
            let mut file = Build::new(order);
            file.section(order);
            let offset = file.long(offset.cast_unsigned());
            let resolution = resolution.map(|resolution| [resolution]);
            let mut options: Vec<(u16, &[u8])> = vec![(14, &offset)];
            options.extend(resolution.as_ref().map(|octet| (9, octet.as_slice())));
            file.interface(1, 0, &options).enhanced(0, ticks, &packets()[0], &[]);
            let (frames, trouble, _) = read(&file.out);
            assert_eq!((frames[0].nanos, trouble), (nanos, None), "{resolution:?} {offset:?} {ticks}");
        }
    }
}

#[test]
fn each_section_has_its_own_byte_order_and_interfaces() {
    let sent = &packets()[0];
    let mut file = Build::new(Little);
    file.section(Little).interface(1, 0, &[]).enhanced(0, 5, sent, &[]);
    file.section(Big).interface(101, 0, &[(9, &[3])]).interface(113, 0, &[]).interface(276, 0, &[]).interface(108, 0, &[]);
    file.enhanced(2, 5, sent, &[]).obsolete(3, 5, sent).enhanced(0, 5, sent, &[]).enhanced(1, 5, sent, &[]);
    let (frames, trouble, _) = read(&file.out);
    assert_eq!(trouble, None);
    let got: Vec<_> = frames.iter().map(|frame| (frame.interface, frame.link, frame.nanos)).collect();
    let expected = [
        (0, Link::Ethernet, 5_000),
        (3, Link::Sll2, 5_000),
        (4, Link::Null, 5_000),
        (1, Link::Raw, 5_000_000),
        (2, Link::Sll, 5_000),
    ];
    assert_eq!(got, expected);
}

#[test]
fn a_simple_packet_is_cut_as_its_interface_says_and_takes_the_time_of_the_packet_before() {
    let long = Sent { nanos: 0, bytes: (0..50).collect(), wire_len: 1_000 };
    let mut file = Build::new(Big);
    file.section(Big).interface(1, 50, &[]).simple(&long).enhanced(0, 7, &packets()[0], &[]).simple(&long);
    let (frames, trouble, _) = read(&file.out);
    assert_eq!(trouble, None);
    assert_eq!(frames.iter().map(|frame| frame.nanos).collect::<Vec<_>>(), [1, 7_000, 7_000]);
    assert_eq!((&frames[2].bytes, frames[2].wire_len), (&long.bytes, 1_000));
}

#[test]
fn a_frame_check_sequence_is_taken_off_where_the_file_says_there_is_one() {
    let whole = Sent { nanos: 1_000, bytes: vec![1; 64], wire_len: 64 };
    let sliced_within = Sent { bytes: vec![1; 62], ..whole.clone() };
    let sliced_before = Sent { bytes: vec![1; 40], ..whole.clone() };
    let all = [whole, sliced_within, sliced_before];
    // Two units of 16 bits, and the bit that says that this is known; without that bit the units mean nothing.
    for (network, off) in [(0x2400_0001, 4), (0x1400_0001, 2), (0x2000_0001, 0), (0x0400_0001, 0)] {
        let mut file = Build::pcap(Little, 0xa1b2_c3d4, 4, network);
        all.iter().for_each(|sent| {
            file.record(1_000_000, sent, &[]);
        });
        let (frames, ..) = read(&file.out);
        let got: Vec<_> = frames.iter().map(|frame| (frame.link, frame.bytes.len(), frame.wire_len as usize)).collect();
        let expected = [64, 62, 40].map(|length: usize| (Link::Ethernet, length.min(64 - off), 64 - off));
        assert_eq!(got, expected, "{network:#x}");
    }
    // In bits as the format has it, or in octets as many writers have it; the flags of a packet have the last word.
    for (length, flags, off) in [(32, 0, 4), (4, 0, 4), (0, 0, 0), (32, 2 << 5, 2), (0, 4 << 5, 4)] {
        let mut file = Build::new(Big);
        file.section(Big).interface(1, 0, &[(13, &[length])]);
        for sent in &all {
            file.enhanced(0, 1, sent, &[(2, &u32::to_be_bytes(flags))]);
        }
        let (frames, ..) = read(&file.out);
        let got: Vec<_> = frames.iter().map(|frame| (frame.bytes.len(), frame.wire_len as usize)).collect();
        assert_eq!(got, [64, 62, 40].map(|length: usize| (length.min(64 - off), 64 - off)), "{length} {flags}");
    }
}

#[test]
fn lengths_of_old_files_stand_the_other_way_round() {
    let sent = Sent { nanos: 1_000, bytes: vec![1; 40], wire_len: 64 };
    for (minor, first, second) in [(4, 40, 64), (2, 64, 40), (3, 64, 40), (3, 40, 64)] {
        let mut file = Build::pcap(Big, 0xa1b2_c3d4, minor, 1);
        file.u32(0).u32(1).u32(first).u32(second).bytes(&sent.bytes);
        assert_eq!(read(&file.out).0, expected(std::slice::from_ref(&sent)), "2.{minor}");
    }
}

#[test]
fn what_the_capturing_machine_lost_is_on_the_wire() {
    let sent = &packets()[0];
    let mut file = Build::new(Little);
    file.section(Little).interface(1, 0, &[]).interface(1, 0, &[]).enhanced(0, 1, sent, &[]);
    // Counts run from the beginning of the capture: 10, then 25 are 25. Who does not know writes all ones.
    file.statistics(0, &[(5, 10), (7, 3)]).statistics(0, &[(5, 25), (7, u64::MAX)]).statistics(1, &[(5, 1), (4, 1_000)]);
    file.section(Big).interface(1, 0, &[]).enhanced(0, 1, sent, &[]).statistics(0, &[(7, 40)]);
    let (_, trouble, losses) = read(&file.out);
    assert_eq!(trouble, None);
    assert_eq!((losses.dropped.interface, losses.dropped.buffer_full, losses.wire), (26, 43, 71));
}

#[test]
fn packets_of_a_link_type_that_is_not_read_are_handed_out_and_named_at_the_end() {
    let sent = &packets()[0];
    let mut file = Build::new(Little);
    file.section(Little).interface(1, 0, &[]).interface(105, 0, &[]).interface(9, 0, &[]);
    file.enhanced(1, 1, sent, &[]).enhanced(0, 1, sent, &[]).enhanced(1, 1, sent, &[]).enhanced(2, 1, sent, &[]);
    let (frames, trouble, _) = read(&file.out);
    let links: Vec<_> = frames.iter().map(|frame| frame.link).collect();
    assert_eq!(links, [Link::Unread, Link::Ethernet, Link::Unread, Link::Unread]);
    let trouble = trouble.expect("three packets could not be read");
    assert_eq!(trouble.kind, CaptureErrorKind::Unsupported);
    assert_eq!(
        trouble.cause,
        "3 of 4 packets cannot be read and count as ignored: 2 of link type 105 (IEEE 802.11), 1 of link type 9 (PPP)"
    );
    // Damage comes with it in one sentence.
    file.out.extend_from_slice(&[0; 12]);
    let text = read(&file.out).1.expect("damage").cause;
    assert!(text.starts_with("a block claims a length of 0 octets at byte") && text.contains("link type 105"), "{text}");
}

#[test]
fn damage_is_named_with_its_place_after_the_packets_before_it() {
    let sent = &packets()[0];
    let broken: [(&str, fn(&mut Build) -> &mut Build); 12] = [
        ("a block claims a length of 8 octets", |file| file.u32(6).u32(8).u32(0).u32(8)),
        ("a block claims a length of 30 octets", |file| file.u32(6).u32(30).bytes(&[0; 30])),
        ("a block claims a length of 16777220 octets", |file| file.u32(6).u32((16 << 20) + 4).u32(0)),
        ("different lengths at its beginning and at its end", |file| file.u32(99).u32(16).u32(0).u32(20)),
        ("a section header does not say its byte order", |file| file.u32(0x0a0d_0d0a).u32(28).bytes(&[0; 20])),
        ("version 2.0 of the pcapng format", |file| {
            file.block(0x0a0d_0d0a, 0, |file| file.u32(0x1a2b_3c4d).u32(2).bytes(&[0; 8]))
        }),
        ("an interface that was not described", |file| file.enhanced(1, 0, &packets()[0], &[])),
        ("an interface that was not described", |file| file.statistics(7, &[])),
        ("too short for what it should hold", |file| file.block(6, 0, |file| file.u32(0))),
        ("too short for what it should hold", |file| {
            file.block(6, 0, |file| file.u32(0).u32(0).u32(0).u32(100).u32(100).bytes(&[0; 96]))
        }),
        ("a packet claims 262145 captured octets", |file| {
            file.block(6, 0, |file| file.u32(0).u32(0).u32(0).u32(262_145).u32(262_145).bytes(&[0; 262_145]))
        }),
        ("too short for what it should hold", |file| file.block(1, 0, |file| file.u32(1).u32(0).u32(0x0009_0009).u32(9))),
    ];
    for (what, damage) in broken {
        let mut file = Build::new(Little);
        file.section(Little).interface(1, 0, &[]).enhanced(0, 1, sent, &[]);
        let place = file.out.len();
        damage(&mut file);
        file.out.extend_from_slice(&[0; 40]);
        let (frames, trouble, _) = read(&file.out);
        let text = trouble.expect(what).to_string();
        assert_eq!(frames.len(), 1, "{text}");
        assert!(text.contains(what) && text.contains(&format!("at byte {place}, after 1 whole packets")), "{text}");
    }
    let mut file = classic(Big, 0xa1b2_c3d4, 1_000_000, &[]);
    file.u32(0).u32(0).u32(1 << 20).u32(1 << 20);
    let (frames, trouble, _) = read(&file.out);
    assert_eq!(frames.len(), 4);
    assert!(trouble.expect("damage").cause.starts_with("a packet claims 1048576 captured octets"));
}

#[test]
fn a_file_that_is_no_capture_is_refused_with_what_it_is() {
    let long = |magic: &[u8]| [magic, &[0; 40]].concat();
    let table = [
        (Vec::new(), "it is empty"),
        (b"\xd4\xc3\xb2\xa1".to_vec(), "it has only 4 octets"),
        (long(b"#!/bin/sh"), "it begins like no capture file: 23212f62"),
        (long(b"\xfd7zXZ\0"), "it is compressed with xz"),
        (gzip(&gzip(&[1; 90])), "it is compressed twice"),
        (long(b"\x1f\x8b"), "its gzip stream is damaged"),
        (long(b"\x28\xb5\x2f\xfd\xff"), "its zstd stream is damaged"),
        (
            Build::pcap(Little, 0xa1b2_c3d4, 4, 1).out.iter().map(|octet| if *octet == 2 { 9 } else { *octet }).collect(),
            "version 9.4",
        ),
    ];
    for (bytes, what) in table {
        let (frames, error, _) = read(&bytes);
        let text = error.expect(what).to_string();
        assert!(frames.is_empty() && text.starts_with("open test.pcap: ") && text.contains(what), "{text}");
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_read_to_its_new_end_and_one_that_is_cut_off_ends_there() {
    let sent = Sent { nanos: 1_000, bytes: vec![1; 60_000], wire_len: 60_000 };
    let mut file = Build::pcap(Little, 0xa1b2_c3d4, 4, 1);
    for _ in 0..300 {
        file.record(1_000_000, &sent, &[]);
    }
    let (first, second) = file.out.split_at(file.out.len() / 2);
    let mut on_disk = tempfile::NamedTempFile::new().expect("a file");
    on_disk.write_all(first).expect("room on the disk");
    let read_on = |file: &mut File| {
        let (mut packets, mut trouble) = (0, None);
        loop {
            match file.drain(Timestamp::NONE, 64, |frames| frames.iter().for_each(|frame| assert_eq!(frame.bytes, sent.bytes))) {
                Ok(Drained::Frames(frames)) => packets += frames,
                Ok(Drained::Ended) => return (packets, trouble),
                Err(error) => trouble = Some(error.to_string()),
            }
        }
    };
    let mut growing = File::open(on_disk.path()).expect("a capture");
    on_disk.write_all(second).expect("room on the disk");
    assert_eq!(read_on(&mut growing), (300, None));
    let mut shrinking = File::open(on_disk.path()).expect("a capture");
    on_disk.as_file().set_len(6 << 20).expect("a shorter file");
    let (packets, trouble) = read_on(&mut shrinking);
    // Of 6 MiB a hundred packets are whole; the batch in which they end is given up.
    assert!(packets == 64 && trouble.as_ref().is_some_and(|trouble| trouble.contains("was cut off")), "{packets} {trouble:?}");
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader_or_give_more_than_was_there(
        kind in 0..4,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        piece in 1..200usize,
    ) {
        let mut bytes = match kind {
            0 => Vec::new(),
            1 => classic(Little, 0xa1b2_3c4d, 1_000_000_000, &[]).out,
            2 => blocks(Big).out,
            _ => blocks(Little).out,
        };
        for (place, octet) in damage {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = octet;
            }
        }
        bytes.extend_from_slice(&noise);
        let (frames, trouble, losses) = read(&bytes);
        prop_assert!(frames.iter().map(|frame| frame.bytes.len()).sum::<usize>() <= bytes.len());
        prop_assert!(frames.iter().all(|frame| frame.bytes.len() <= frame.wire_len as usize && frame.nanos > 0));
        prop_assert_eq!(read_in_pieces(&bytes, piece), (frames.clone(), trouble.clone(), losses));
        prop_assert_eq!(read_from_disk(&bytes), (frames, trouble, losses));
    }
}

/// Nanoseconds since the epoch, length on the wire and captured length of each packet as tshark reads them; `None` without tshark.
fn tshark(path: &Path) -> Option<Vec<(i64, u32, usize)>> {
    let fields = ["-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len", "-e", "frame.cap_len"];
    let output = Command::new("tshark").arg("-n").arg("-r").arg(path).args(fields).output().ok()?.stdout;
    let line = |line: &str| {
        let fields: Vec<i64> = line.split(['\t', '.']).map(|field| field.parse().expect("a number")).collect();
        // A fraction of a whole second, which some files have, is printed with ten digits.
        (fields[0] * 1_000_000_000 + fields[1], fields[2] as u32, fields[3] as usize)
    };
    // Blocks that it does not know are shown as records without a time.
    let is_packet = |line: &&str| !line.starts_with('\t');
    Some(String::from_utf8(output).expect("text").lines().filter(is_packet).map(line).collect())
}

/// The first packet that tshark reads otherwise.
fn difference(frames: &[Got], truth: &[(i64, u32, usize)]) -> Option<String> {
    let ours: Vec<_> = frames.iter().map(|frame| (frame.nanos, frame.wire_len, frame.bytes.len())).collect();
    let place = (0..ours.len().max(truth.len())).find(|place| ours.get(*place) != truth.get(*place))?;
    Some(format!("packet {place}: tshark {:?}, we {:?}", truth.get(place), ours.get(place)))
}

#[test]
fn tshark_reads_the_same_out_of_the_files_built_here() {
    let mut sections = blocks(Little);
    sections.section(Big).interface(1, 0, &[(9, &[0x80 | 20])]).interface(101, 0, &[(14, &5u64.to_be_bytes())]);
    sections.enhanced(1, 7_000_000, &packets()[1], &[]).enhanced(0, 3 << 19, &packets()[3], &[]);
    for file in [classic(Big, 0xa1b2_3c4d, 1_000_000_000, &[]), classic(Little, 0xa1b2_cd34, 1_000_000, &[0; 8]), sections] {
        let mut on_disk = tempfile::NamedTempFile::new().expect("a file");
        on_disk.write_all(&file.out).expect("room on the disk");
        let Some(truth) = tshark(on_disk.path()) else {
            println!("skipped: tshark is not installed");
            return;
        };
        let (mut frames, trouble, _) = read(&file.out);
        assert_eq!(trouble, None);
        if truth.first().is_some_and(|first| first.0 == 0) {
            // Zero is "never" to us.
            frames[0].nanos -= 1;
        }
        assert_eq!(difference(&frames, &truth), None);
    }
}

#[test]
fn every_capture_of_the_corpus_is_read_as_tshark_reads_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/dev");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: the shared corpus is not there");
        return;
    };
    let is_capture =
        |path: &Path| path.extension().is_some_and(|ending| ["pcap", "pcapng", "gz"].iter().any(|known| ending == *known));
    let (mut captures, mut packets) = (0, 0);
    for path in entries.map(|entry| entry.expect("an entry").path()).filter(|path| is_capture(path)) {
        let Some(truth) = tshark(&path) else {
            println!("skipped: tshark is not installed");
            return;
        };
        let (frames, trouble, _) = read(&std::fs::read(&path).expect("a file"));
        assert_eq!(trouble, None, "{}", path.display());
        assert_eq!(difference(&frames, &truth), None, "{}", path.display());
        captures += 1;
        packets += frames.len();
    }
    println!("{captures} captures, {packets} packets compared");
    assert!(captures >= 100, "the corpus has shrunk to {captures} captures");
}
