//! Batches that wait a moment for the other halves of their flows.
//!
//! The two halves of a flow come from two worker threads of the sensor and may travel in different batches. Batches with halves are
//! therefore held for a moment, and then go on as **one**: [joined](super::join), under the number of the last of them. Store and
//! detectors see only that one, the store commits it as a whole, and until then nothing in it is acknowledged. So whenever collector or
//! connection die, either all of it is there or none, and the sensor sends what is not.
//!
//! Each full minute every flow is cut, within about a second. Where that begins the wait begins anew, once, so that it is not torn apart.
//!
//! Sensors that see both directions are not held up.

use std::time::Duration;

use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::wire::Batch;
use tokio::time::Instant;

use super::join::{Joined, is_half, join};

/// Records that are held at most, some 80 MB of memory for a connection; reaching it, they go on.
const ROWS_MAX: usize = 1 << 17;

/// Consecutive batches of one start of a sensor, as one. At least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Shipment {
    /// All records; the sequence number and the account of the last.
    pub batch: Batch,
    /// How many batches it is made of.
    pub batches: u64,
    /// Records as they came.
    pub received: u64,
    /// Records that were put together of two halves.
    pub pairs: u64,
    /// Halves without a partner.
    pub lone: u64,
}

impl From<Batch> for Shipment {
    fn from(batch: Batch) -> Self {
        let received = batch.records.len() as u64;
        Self { batch, batches: 1, received, pairs: 0, lone: 0 }
    }
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Hold {
    wait: Duration,
    batches_max: u64,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    shipment: Shipment,
    due: Instant,
    /// Whether the wait has begun anew.
    renewed: bool,
}

impl Hold {
    /// Holds batches with halves for `wait`, and not more than half of those that the sensor may have under way: it could not send more.
    pub(super) fn new(wait: Duration, credit_batches: u32) -> Self {
        Self { wait, batches_max: u64::from(credit_batches / 2), held: None }
    }

    /// Takes the next batch of the sensor; gives back what goes on at once.
    pub(super) fn take(&mut self, batch: Batch, now: Instant) -> Option<Shipment> {
        let halves = batch.records.iter().any(|record| record.one_sided);
        if !halves && self.held.is_none() {
            return Some(Shipment::from(batch));
        }
        let cuts = batch.records.iter().any(|record| is_half(record) && record.end_reason == FlowEndReason::ActiveTimeout);
        let held = match self.held.take() {
            None => Held { shipment: Shipment::from(batch), due: now + self.wait, renewed: cuts },
            Some(Held { mut shipment, due, renewed }) => {
                shipment.add(batch);
                if cuts && !renewed {
                    Held { shipment, due: now + self.wait, renewed: true }
                } else {
                    Held { shipment, due, renewed }
                }
            }
        };
        let full = held.shipment.batches >= self.batches_max || held.shipment.received >= ROWS_MAX as u64;
        self.held = Some(held);
        if full || self.wait.is_zero() { self.release() } else { None }
    }

    /// Sequence number of the last batch held.
    pub(super) fn last(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.shipment.batch.sequence)
    }

    /// When what is held goes on.
    pub(super) fn due(&self) -> Option<Instant> {
        self.held.as_ref().map(|held| held.due)
    }

    /// What is held, joined.
    pub(super) fn release(&mut self) -> Option<Shipment> {
        let mut shipment = self.held.take()?.shipment;
        let Joined { records, pairs, lone } = join(std::mem::take(&mut shipment.batch.records));
        shipment.batch.records = records;
        Some(Shipment { pairs, lone, ..shipment })
    }
}

impl Shipment {
    fn add(&mut self, later: Batch) {
        self.batches += 1;
        self.received += later.records.len() as u64;
        let mut records = std::mem::take(&mut self.batch.records);
        records.extend(later.records);
        self.batch = Batch { records, ..later };
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a tokio Instant has no other origin")]
mod tests {
    use spanwatch_common::flow::{FlowRecord, FlowState};
    use spanwatch_common::time::Timestamp;

    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    /// A batch with one half of a flow, there or back.
    fn half(sequence: u64, way: usize, end_reason: FlowEndReason) -> Batch {
        let mut record = FlowRecord {
            one_sided: true,
            state: FlowState::Continue,
            end_reason,
            source: "192.0.2.1".parse().unwrap(),
            destination: "192.0.2.2".parse().unwrap(),
            ..FlowRecord::default()
        };
        (record.start[way], record.packets[way]) = (Timestamp::from_secs(30), 1);
        Batch { sequence, records: vec![record], ..Batch::default() }
    }

    #[test]
    fn a_batch_without_halves_goes_on_at_once_unless_earlier_ones_wait() {
        let now = Instant::now();
        let mut hold = Hold::new(WAIT, 256);
        let plain = |sequence| Batch { sequence, records: vec![FlowRecord::default()], ..Batch::default() };
        assert_eq!(hold.take(plain(1), now), Some(Shipment::from(plain(1))));
        assert_eq!(hold.take(half(2, 0, FlowEndReason::IdleTimeout), now), None);
        assert_eq!(hold.take(plain(3), now), None, "batches keep their order");
        assert_eq!((hold.due(), hold.last()), (Some(now + WAIT), Some(3)));
        let shipment = hold.release().unwrap();
        assert_eq!((shipment.batch.sequence, shipment.batches, shipment.received), (3, 2, 2));
        assert_eq!((shipment.pairs, shipment.lone), (0, 1));
        assert_eq!((hold.due(), hold.release()), (None, None));
    }

    #[test]
    fn the_cut_of_a_minute_is_waited_for_from_where_it_begins_once() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut hold = Hold::new(WAIT, 256);
        hold.take(half(1, 0, FlowEndReason::IdleTimeout), start);
        hold.take(half(2, 0, FlowEndReason::ActiveTimeout), second(2));
        assert_eq!(hold.due(), Some(second(5)));
        hold.take(half(3, 1, FlowEndReason::ActiveTimeout), second(4));
        assert_eq!(hold.due(), Some(second(5)));
        let shipment = hold.release().unwrap();
        assert_eq!((shipment.batches, shipment.received, shipment.pairs, shipment.lone), (3, 3, 1, 1));
        assert_eq!(shipment.batch.records.iter().map(FlowRecord::packets_total).sum::<u64>(), 3);
    }

    #[test]
    fn what_is_held_stays_within_the_sensors_credit_and_nothing_waits_where_nothing_should() {
        let now = Instant::now();
        let mut hold = Hold::new(WAIT, 4);
        assert_eq!(hold.take(half(1, 0, FlowEndReason::IdleTimeout), now), None);
        assert_eq!(hold.take(half(2, 1, FlowEndReason::IdleTimeout), now).map(|shipment| shipment.pairs), Some(1));
        let mut at_once = Hold::new(Duration::ZERO, 256);
        assert_eq!(at_once.take(half(1, 0, FlowEndReason::IdleTimeout), now).map(|shipment| shipment.lone), Some(1));
    }
}
