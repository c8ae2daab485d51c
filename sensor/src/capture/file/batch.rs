//! The frames of a batch, as long as they are lent from the input, and while more of it has to be read.

use crate::capture::{BATCH, Frame};

/// Frames found one after another at the beginning of the input.
pub(super) struct Batch<'m, 'a> {
    frames: &'m mut [Frame<'a>; BATCH],
    len: usize,
    /// At most so many.
    room: usize,
    /// Octets of the input that were gone through.
    pub(super) passed: usize,
}

impl<'m, 'a> Batch<'m, 'a> {
    /// None yet, of at most `room`, in this memory.
    #[inline]
    pub(super) fn new(frames: &'m mut [Frame<'a>; BATCH], room: usize) -> Self {
        Self { frames, len: 0, room: room.min(BATCH), passed: 0 }
    }

    /// The frames.
    #[inline]
    pub(super) fn frames(&self) -> &[Frame<'a>] {
        &self.frames[..self.len]
    }

    /// Whether no more are wanted.
    #[inline]
    pub(super) const fn is_full(&self) -> bool {
        self.len == self.room
    }

    /// Adds a frame; it must not be full.
    #[inline]
    pub(super) fn push(&mut self, frame: Frame<'a>) {
        self.frames[self.len] = frame;
        self.len += 1;
    }

    /// Adds the frames that `next` gives until it is full or there are no more.
    #[inline]
    pub(super) fn extend(&mut self, mut next: impl FnMut() -> Option<Frame<'a>>) {
        let mut added = 0;
        for place in &mut self.frames[self.len..self.room] {
            let Some(frame) = next() else { break };
            *place = frame;
            added += 1;
        }
        self.len += added;
    }
}

/// A batch that is not complete, without the input that it is lent from: that has to be moved to make room for more.
pub(super) struct Kept {
    frames: [Frame<'static>; BATCH],
    /// Where the octets of each frame begin, and how many they are.
    places: [(usize, usize); BATCH],
    len: usize,
    passed: usize,
}

impl Kept {
    /// Nothing yet.
    pub(super) const NONE: Self = Self { frames: [Frame::NONE; BATCH], places: [(0, 0); BATCH], len: 0, passed: 0 };

    /// Forgets it: it was handed out.
    #[inline]
    pub(super) const fn clear(&mut self) {
        (self.len, self.passed) = (0, 0);
    }

    /// Puts the frames into an empty batch, lent from `input` again, which begins where it began before.
    #[inline]
    pub(super) fn lend<'a>(&self, input: &'a [u8], batch: &mut Batch<'_, 'a>) {
        (batch.len, batch.passed) = (self.len, self.passed);
        batch.room = batch.room.max(self.len);
        for (n, frame) in batch.frames[..self.len].iter_mut().enumerate() {
            let (start, octets) = self.places[n];
            *frame = Frame { bytes: &input[start..start + octets], ..self.frames[n] };
        }
    }

    /// Keeps a batch lent from `input`.
    pub(super) fn keep(batch: &Batch<'_, '_>, input: &[u8]) -> Self {
        let mut kept = Self { len: batch.len, passed: batch.passed, ..Self::NONE };
        for (n, frame) in batch.frames().iter().enumerate() {
            kept.frames[n] = Frame { bytes: &[], ..*frame };
            kept.places[n] = (frame.bytes.as_ptr().addr() - input.as_ptr().addr(), frame.bytes.len());
        }
        kept
    }
}
