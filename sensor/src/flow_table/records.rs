//! Records on their way out of the flow table.

use spanwatch_common::flow::FlowRecord;

/// Records in the order in which they were made. Reused: to be [`clear`](Self::clear)ed, not dropped.
#[derive(Clone, Debug, Default)]
pub struct Records(Vec<FlowRecord>);

impl Records {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all of them out; the memory stays.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Each record, put together as it is asked for: not on the thread that empties the ring.
    pub fn iter(&self) -> impl Iterator<Item = FlowRecord> + '_ {
        self.0.iter().cloned()
    }

    /// Takes out all but the first `len`; gives how many these were, and the packets they stood for.
    pub fn truncate(&mut self, len: usize) -> (u64, u64) {
        let gone = self.0.drain(len.min(self.0.len())..);
        gone.fold((0, 0), |(records, packets), record| (records + 1, packets + record.packets_total()))
    }

    pub(crate) const fn as_vec(&mut self) -> &mut Vec<FlowRecord> {
        &mut self.0
    }
}

impl FromIterator<FlowRecord> for Records {
    fn from_iter<I: IntoIterator<Item = FlowRecord>>(records: I) -> Self {
        Self(records.into_iter().collect())
    }
}
