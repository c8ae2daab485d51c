//! Any bytes as a capture file. It is read or refused; the frames are parts of it, however it comes in pieces; it ends, with one error
//! at most.
#![no_main]

use std::io::{Cursor, Read};

use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::file::File;
use spanwatch_sensor::capture::{Capture, CaptureError, Drained, Losses};

/// Gives at most so many octets per call, as a pipe may.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let octets = buffer.len().min(self.1);
        self.0.read(&mut buffer[..octets])
    }
}

/// What a file amounts to: packets, their octets, a sum over all that was handed out, the error, the losses.
type Outcome = (u64, u64, u64, Option<CaptureError>, Losses);

fn read(bytes: &[u8], piece: usize) -> Result<Outcome, CaptureError> {
    let mut file = File::from_reader("fuzz", Trickle(Cursor::new(bytes.to_vec()), piece))?;
    let (mut packets, mut octets, mut sum, mut trouble) = (0u64, 0u64, 0u64, None);
    loop {
        let drained = file.drain(Timestamp::NONE, 64, |frames| frames.iter().for_each(|frame| {
            assert!(frame.bytes.len() <= frame.wire_len as usize && frame.at.is_some());
            packets += 1;
            octets += frame.bytes.len() as u64;
            let head = [frame.at.as_nanos() as u64, u64::from(frame.wire_len), u64::from(frame.interface), frame.link as u64];
            for word in head.into_iter().chain(frame.bytes.iter().map(|octet| u64::from(*octet))) {
                sum = sum.wrapping_mul(0x0000_0100_0000_01b3).wrapping_add(word);
            }
        }));
        match drained {
            Ok(Drained::Frames(_)) => {}
            Ok(Drained::Ended) => break,
            Err(error) => assert!(trouble.replace(error).is_none(), "an error is said once"),
        }
    }
    let losses = file.losses().expect("counts of a file");
    assert_eq!(losses.wire, packets + losses.dropped.total());
    Ok((packets, octets, sum, trouble, losses))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, usize::MAX);
    let is_packed = bytes.starts_with(&[0x1f, 0x8b]) || bytes.get(1..4).is_some_and(|rest| matches!(rest, [0xb5, 0x2f, 0xfd] | [0x2a, 0x4d, 0x18]));
    if is_packed {
        // A decompressor that meets damage loses what it was about to give, which depends on the pieces.
        return;
    }
    if let Ok((packets, octets, ..)) = &whole {
        assert!(*octets <= bytes.len() as u64 && *packets <= bytes.len() as u64 / 12);
    }
    assert_eq!(whole, read(bytes, 1 + bytes.len() % 61));
});
