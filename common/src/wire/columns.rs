//! Records turned into columns as they come: one buffer for each element, all used again for the next batch.
//!
//! Records are gathered in blocks that fit the processor's nearest cache; then each element is read out of a whole block in one loop.
//! A column whose rows are all alike so far, as most are, is one number and touches no more memory.

use std::ops::{BitOr, BitXor};

use crate::element::{ELEMENTS, Gather};
use crate::flow::FlowRecord;

/// Records gathered before they are turned.
const BLOCK: usize = 64;

/// The columns of the records of one batch, in the order of [`ELEMENTS`].
pub(super) struct Columns {
    values: Vec<Values>,
    rows: usize,
    /// Records that are in no column yet.
    block: Vec<FlowRecord>,
}

pub(super) enum Values {
    Words(Buffer<u64>),
    Wides(Buffer<u128>),
}

/// The values of one column.
#[derive(Default)]
pub(super) struct Buffer<T> {
    /// The value of every row, as long as `values` is empty.
    pub(super) same: T,
    /// The value of each row, once they differ.
    pub(super) values: Vec<T>,
}

impl Columns {
    pub(super) fn new() -> Self {
        let empty = |gather| match gather {
            Gather::Word(_) => Values::Words(Buffer::default()),
            Gather::Wide(_) => Values::Wides(Buffer::default()),
        };
        let values = ELEMENTS.iter().map(|element| empty(element.gather)).collect();
        Self { values, rows: 0, block: Vec::with_capacity(BLOCK) }
    }

    pub(super) fn len(&self) -> usize {
        self.rows + self.block.len()
    }

    /// Adds a row.
    #[inline]
    pub(super) fn push(&mut self, record: FlowRecord) {
        self.block.push(record);
        if self.block.len() == BLOCK {
            self.turn();
        }
    }

    /// Moves the block into the columns; to be called before they are read.
    pub(super) fn turn(&mut self) {
        let (mut words, mut wides) = ([0; BLOCK], [0; BLOCK]);
        let block = &*self.block;
        for (element, values) in ELEMENTS.iter().zip(&mut self.values) {
            match (element.gather, values) {
                (Gather::Word(gather), Values::Words(buffer)) => {
                    gather(block, &mut words);
                    buffer.extend(self.rows, &words[..block.len()]);
                }
                (Gather::Wide(gather), Values::Wides(buffer)) => {
                    gather(block, &mut wides);
                    buffer.extend(self.rows, &wides[..block.len()]);
                }
                _ => debug_assert!(false, "each buffer was made for its element"),
            }
        }
        self.rows += block.len();
        self.block.clear();
    }

    /// Takes all rows out; the memory stays.
    pub(super) fn clear(&mut self) {
        self.block.clear();
        self.rows = 0;
        for values in &mut self.values {
            match values {
                Values::Words(buffer) => buffer.values.clear(),
                Values::Wides(buffer) => buffer.values.clear(),
            }
        }
    }

    /// The column of the element at `place` of [`ELEMENTS`].
    pub(super) fn at(&self, place: usize) -> &Values {
        &self.values[place]
    }
}

impl<T: Copy + Default + PartialEq + BitXor<Output = T> + BitOr<Output = T>> Buffer<T> {
    /// Adds `block` after the `rows` that there are.
    fn extend(&mut self, rows: usize, block: &[T]) {
        if rows == 0 {
            self.same = block.first().copied().unwrap_or_default();
        }
        if self.values.is_empty() {
            let same = self.same;
            let differences = block.iter().fold(T::default(), |all, value| all | (*value ^ same));
            if differences == T::default() {
                return;
            }
            self.values.resize(rows, same);
        }
        self.values.extend_from_slice(block);
    }

    /// Calls `each` with every one of `targets` and the value of its row.
    pub(super) fn zip<U>(&self, targets: &mut [U], mut each: impl FnMut(&mut U, T)) {
        if self.values.is_empty() {
            targets.iter_mut().for_each(|target| each(target, self.same));
        } else {
            targets.iter_mut().zip(&self.values).for_each(|(target, value)| each(target, *value));
        }
    }
}
