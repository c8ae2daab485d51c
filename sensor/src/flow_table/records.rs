//! Records on their way out of the flow table: copies of what the table held, put together only where somebody asks for them. The thread
//! that empties the ring copies; the one that ships does the rest.

use std::fmt;

use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState};

use super::Observer;
use super::aside::{Aside, EMPTY};
use super::hot::Hot;
use super::slot::{self, Cold, Wide};
use super::tunnels::Named;

/// Records in the order in which they were made. To be [`clear`](Self::clear)ed and used again, not dropped: then nothing allocates.
#[derive(Clone, Default)]
pub struct Records {
    observer: Observer,
    slices: Vec<Slice>,
    /// Asides and wide parts of those slices that have one.
    asides: Vec<Aside>,
    wides: Vec<(Wide, Named)>,
    /// Records that no flow of the table stands behind; the last of all.
    made: Vec<FlowRecord>,
}

impl FromIterator<FlowRecord> for Records {
    fn from_iter<I: IntoIterator<Item = FlowRecord>>(records: I) -> Self {
        Self { made: records.into_iter().collect(), ..Self::default() }
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// What the table held of a flow for one record.
#[derive(Clone, Copy)]
struct Slice {
    /// The bytes of the hot line, without its alignment.
    hot: [u8; size_of::<Hot>()],
    cold: Cold,
    sampling_population: u32,
    /// Number of the aside and of the wide part, from 1; 0 for none.
    aside: u32,
    wide: u32,
    state: FlowState,
    reason: FlowEndReason,
}

const _: () = assert!(size_of::<Slice>() <= 168);

/// Why a record is made.
#[derive(Clone, Copy)]
pub(super) struct Cause {
    pub(super) state: FlowState,
    pub(super) reason: FlowEndReason,
    /// See [`FlowRecord::sampling_population`].
    pub(super) sampling_population: u32,
}

impl Records {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.slices.len() + self.made.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.made.is_empty()
    }

    /// Takes all of them out; the memory stays.
    pub fn clear(&mut self) {
        self.slices.clear();
        self.asides.clear();
        self.wides.clear();
        self.made.clear();
    }

    /// Each record, put together as it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = FlowRecord> + '_ {
        self.slices.iter().map(|slice| self.record(slice)).chain(self.made.iter().cloned())
    }

    /// The one at `place`, put together now.
    pub fn get(&self, place: usize) -> FlowRecord {
        match self.slices.get(place) {
            Some(slice) => self.record(slice),
            None => self.made[place - self.slices.len()].clone(),
        }
    }

    /// The flow of the one at `place`.
    pub fn flow_id(&self, place: usize) -> u64 {
        match self.slices.get(place) {
            Some(slice) => slice.cold.flow_id,
            None => self.made[place - self.slices.len()].flow_id,
        }
    }

    /// Takes out all but the first `len`; gives how many these were, and the packets they stood for.
    pub fn truncate(&mut self, len: usize) -> (u64, u64) {
        let (slices, made) = (len.min(self.slices.len()), len.saturating_sub(self.slices.len()).min(self.made.len()));
        let gone = self.len() - slices - made;
        let packets = self.iter().skip(slices).take(self.slices.len() - slices).map(|record| record.packets_total()).sum::<u64>()
            + self.made[made..].iter().map(FlowRecord::packets_total).sum::<u64>();
        self.slices.truncate(slices);
        self.made.truncate(made);
        (gone as u64, packets)
    }

    /// Where records go that no flow of the table stands behind.
    pub(super) const fn made(&mut self) -> &mut Vec<FlowRecord> {
        &mut self.made
    }

    /// The records that follow are made by this observer.
    pub(super) const fn observed_by(&mut self, observer: Observer) {
        self.observer = observer;
    }

    /// Adds what the table holds of a flow.
    pub(super) fn push(&mut self, hot: &Hot, cold: &Cold, aside: Option<&Aside>, wide: Option<(&Wide, Named)>, cause: Cause) {
        let Cause { state, reason, sampling_population } = cause;
        let mut slice = Slice { hot: bytemuck::cast(*hot), cold: *cold, sampling_population, aside: 0, wide: 0, state, reason };
        if let Some(aside) = aside {
            self.asides.push(*aside);
            slice.aside = self.asides.len() as u32;
        }
        if let Some((wide, named)) = wide {
            self.wides.push((*wide, named));
            slice.wide = self.wides.len() as u32;
        }
        self.slices.push(slice);
    }

    fn record(&self, slice: &Slice) -> FlowRecord {
        let hot: Hot = bytemuck::cast(slice.hot);
        let at = |number: u32| (number as usize).checked_sub(1);
        let aside = at(slice.aside).map_or(&EMPTY, |at| &self.asides[at]);
        let wide = at(slice.wide).map(|at| &self.wides[at]);
        let named = wide.map_or_else(Named::default, |(_, named)| *named);
        let mut record = slot::record(&hot, &slice.cold, aside, wide.map(|(wide, _)| wide), &named);
        (record.state, record.end_reason) = (slice.state, slice.reason);
        record.sampling_population = slice.sampling_population;
        record.observation_point = self.observer.observation_point;
        record.one_sided = self.observer.one_sided;
        if record.ingress_interface == 0 {
            record.ingress_interface = self.observer.ingress_interface;
        }
        // What was counted so far follows in the next record.
        if slice.state == FlowState::Begin {
            (record.packets, record.octets, record.layer2_octets) = ([0; 2], [0; 2], [0; 2]);
            (record.tcp_retransmissions, record.tcp_out_of_order) = ([0; 2], [0; 2]);
            (record.tcp_zero_windows, record.tcp_missed_octets) = ([0; 2], [0; 2]);
        }
        record
    }
}
