//! Looks ahead in a mapped file, so that the headers of its packets are in the processor's cache when the walk comes to them.
//!
//! Each record says where the next one begins, so a walk through large packets waits for memory once for each of them: some 80 ns. A scout
//! looks for a record in each of several pieces of what comes next, and walks all pieces at once; their waits overlap. What it finds is
//! not used for anything but fetching, so that a wrong guess costs time and nothing else.

use spanwatch_common::time::Timestamp;

use super::mapped::prefetch;
use super::parser::Parser;

/// Pieces walked at once: as many waits as a core has room for.
const PIECES: usize = 8;
/// Octets of a piece. The headers in all pieces take a small part of the second-level cache.
const PIECE_OCTETS: usize = 64 << 10;
/// A piece in which no record is found within so many octets is left alone.
const SEARCH_OCTETS: usize = 4 << 10;
/// Octets of records below which the processor fetches ahead well enough by itself.
const RECORD_OCTETS_MIN: usize = 192;
/// Headers of a frame that are of interest, behind that of its record.
const HEADERS_OCTETS: usize = 64;
/// How long nothing is tried where too little was found, in octets.
const REST_OCTETS: usize = 16 << 20;

/// How far the input has been looked at.
#[derive(Default)]
pub(super) struct Scout {
    ahead: usize,
}

impl Scout {
    /// The input goes on behind its first `octets`, which held so many `records`, the last of them at `near`.
    #[inline]
    pub(super) fn pass(&mut self, octets: usize, records: usize) {
        self.ahead = self.ahead.saturating_sub(octets);
        if octets < records * RECORD_OCTETS_MIN {
            self.ahead = self.ahead.max(PIECE_OCTETS);
        }
    }

    /// Looks further ahead in `input` if the walk comes near to what was not looked at; `near` is the time of a packet there.
    #[inline]
    pub(super) fn look(&mut self, input: &[u8], parser: &Parser, near: Timestamp) {
        if self.ahead < PIECE_OCTETS / 2 && input.len() >= self.ahead + PIECES * PIECE_OCTETS && near.is_some() {
            self.look_on(input, parser, near);
        }
    }

    #[inline(never)]
    fn look_on(&mut self, input: &[u8], parser: &Parser, near: Timestamp) {
        let begin = self.ahead;
        let mut places = [0; PIECES];
        let mut found = 0;
        for (n, place) in places.iter_mut().enumerate() {
            let piece = begin + n * PIECE_OCTETS;
            *place =
                (piece..piece + SEARCH_OCTETS).find(|&place| parser.guess(&input[place..], near).is_some()).unwrap_or(usize::MAX);
            found += usize::from(*place != usize::MAX);
        }
        let mut walking = found;
        while walking > 0 {
            walking = 0;
            for (n, place) in places.iter_mut().enumerate() {
                if *place < begin + (n + 1) * PIECE_OCTETS {
                    *place = match parser.guess(&input[*place..], near) {
                        Some(octets) => *place + octets,
                        None => usize::MAX,
                    };
                    prefetch(input, place.wrapping_add(HEADERS_OCTETS));
                    walking += 1;
                }
            }
        }
        self.ahead = begin + if found >= PIECES / 2 { PIECES * PIECE_OCTETS } else { REST_OCTETS };
    }
}
