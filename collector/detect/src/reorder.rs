//! A replay in the order of time: files go back in time from one interface to the next, a sensor's records come as flows end.
//!
//! Rows wait here, as many as there is room for, and leave in the order of their time, those of the same time in an order of their own:
//! what a detector says then does not depend on the order in which the rows came. When there is no more room the earliest leaves; what
//! comes later and is earlier still goes on at once, and is counted as late by whoever minds.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use spanwatch_common::time::Timestamp;

use crate::row::Row;

/// Rows that wait, each about 400 bytes.
const ROWS_MAX: usize = 1 << 20;
/// How often, in event time, detectors are told how far it has come.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What comes out, in order.
pub(crate) enum Step {
    /// A row.
    Row(Row),
    /// Event time has come so far; no earlier row follows, unless there was no room.
    Time(Timestamp),
}

/// Rows on their way.
#[derive(Default)]
pub(crate) struct Reorder {
    waiting: BinaryHeap<Reverse<Ordered>>,
    told: Timestamp,
}

struct Ordered(Row);

impl Ordered {
    fn order(&self, other: &Self) -> Ordering {
        let Self(a) = self;
        let Self(b) = other;
        let key = |row: &Row| (row.at, row.source, row.destination, row.protocol, row.port, row.source_port, row.flow);
        let rest = |row: &Row| (row.state, row.end, row.packets, row.octets, row.outcome);
        key(a).cmp(&key(b)).then_with(|| rest(a).cmp(&rest(b))).then_with(|| a.observer.cmp(&b.observer))
    }
}

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.order(other) == Ordering::Equal
    }
}

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order(other)
    }
}

impl Reorder {
    /// Takes the rows of `rows`; for each for which there is no room, the earliest of all goes to `out`.
    pub(crate) fn take(&mut self, rows: Vec<Row>, out: &mut impl FnMut(Step)) {
        for row in rows {
            self.waiting.push(Reverse(Ordered(row)));
            if self.waiting.len() > ROWS_MAX {
                self.release(out);
            }
        }
    }

    /// Lets everything go.
    pub(crate) fn finish(&mut self, out: &mut impl FnMut(Step)) {
        while !self.waiting.is_empty() {
            self.release(out);
        }
    }

    fn release(&mut self, out: &mut impl FnMut(Step)) {
        let Some(Reverse(Ordered(row))) = self.waiting.pop() else { return };
        let reached = row.at.floor(TOLD_EVERY);
        if reached > self.told {
            self.told = reached;
            out(Step::Time(reached));
        }
        out(Step::Row(row));
    }
}
