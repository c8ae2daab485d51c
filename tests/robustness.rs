//! 200,000 random and mutated frames through decode, fragments and flow table: no panic, and the ledger balances.

#[path = "support/robust.rs"]
mod robust;

use robust::Line;

/// SplitMix64: the same frames on every run, so that a failure can be looked at again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

/// Frames that reach every corner of the decoder when some of their bits are wrong.
fn seeds() -> Vec<Vec<u8>> {
    const MACS: &str = "020000000002 020000000001";
    const SYN: &str = "45000028 00014000 40060000 0a000001 0a000002 9c4001f6 00000001 00000000 5002ffff 00000000";
    const V6: &str = "60000000 0020 00 40 20010db8000000000000000000000001 20010db8000000000000000000000002";
    [
        format!("{MACS} 0800 {SYN} 000000000000"),
        format!("{MACS} 88a8 0064 8100 200a 8100 0001 9100 0002 0800 {SYN}"),
        format!("{MACS} 0800 46000024 00012000 40110000 0a000001 0a000002 94040000 0400 0035 0010 0000 abcd 0100 0001"),
        format!("{MACS} 0800 4500001c 00010003 40110000 0a000001 0a000002 0102030405060708"),
        format!("{MACS} 0800 4500001c 00010000 40010000 0a000001 0a000002 0800 0000 0007 0001"),
        format!("{MACS} 86dd {V6} 2c00010400000000 11000001 0000002a 14e9 14e9 0010 0000 0000 8400"),
        format!("{MACS} 86dd {V6} 3c00010400000000 3a00010400000000 8000 0000 0007 0001 0000000000000000"),
        format!("{MACS} 86dd {V6} 3300000000000000 06020000 00000001 00000002 01f69c40 0000000000000000 50040000"),
        format!("{MACS} 0806 0001 0800 0604 0001 020000000001 0a000001 000000000000 0a000002"),
        "0180c2000000 020000000001 0026 424203 0000000000800000".to_owned(),
    ]
    .iter()
    .map(|text| hex(text))
    .chain(wrapped())
    .collect()
}

/// The seeds of the fuzz target: frames in every kind of tunnel.
fn wrapped() -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/decode");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("committed").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    // The first two bytes choose a link and a length.
    files.iter().map(|file| std::fs::read(file).expect("readable").split_off(2)).collect()
}

#[test]
fn no_frame_breaks_the_line_or_vanishes_from_the_ledger() {
    let seeds = seeds();
    let mut dice = Dice(2026);
    let mut line = Line::new();
    for n in 0..200_000 {
        let frame = if n % 4 == 0 {
            (0..dice.below(200)).map(|_| dice.roll() as u8).collect()
        } else {
            let mut frame = seeds[dice.below(seeds.len())].clone();
            for _ in 0..dice.below(6) {
                let at = dice.below(frame.len());
                match dice.below(4) {
                    0 => frame[at] ^= 1 << dice.below(8),
                    1 => frame[at] = dice.roll() as u8,
                    2 => frame.truncate(at.max(1)),
                    _ => frame.insert(at, dice.roll() as u8),
                }
            }
            frame
        };
        let longer = if dice.below(10) == 0 { dice.roll() as u32 >> dice.below(32) } else { 0 };
        line.take(&frame, longer.min(u32::MAX - 1000));
    }
    line.finish();
}
