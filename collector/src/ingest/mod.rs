//! Ingest: records come in from sensors, and acknowledgements go back.
//!
//! * [`settings`] — where to listen, and the limits
//! * [`tls`] — who may speak at all: the certificates
//! * [`registry`] — what is known of each sensor: how far it has come, who speaks for it, what was counted
//! * [`sensor`] — the listener and one conversation per connection
//! * [`recorded`] — recorded flows in any form: our JSON lines, Azure's flow logs
//! * [`azure`] — where Azure's flow logs come from
//!
//! A batch that is new goes to the store and to the detectors at once; ingest itself keeps nothing.

pub mod azure;
pub mod recorded;
pub mod registry;
pub mod sensor;
pub mod settings;
pub mod tls;

use std::sync::Arc;

use spanwatch_common::wire::Batch;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Rows under way between connections and store. Reaching it stops the reading, so that TCP stops the sensors.
const ROWS_UNDER_WAY_MAX: u32 = 1 << 19;
/// Batches under way, whatever their size.
const BATCHES_UNDER_WAY_MAX: usize = 1024;

/// A new batch on its way to the store.
#[derive(Debug)]
pub struct Arrival {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Room under way; given back when the store has taken the batch.
    pub room: OwnedSemaphorePermit,
}

/// "How far have you come with this sensor?"
#[derive(Debug)]
pub struct Inquiry {
    /// Name of the sensor.
    pub sensor: String,
    /// Which start of it.
    pub boot: u64,
    /// Sequence number of the last durable batch, 0 for none; nothing when the store cannot tell.
    pub reply: oneshot::Sender<Result<u64, LaterStart>>,
}

/// A later start of the sensor has been here, so the store would drop what this one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaterStart;

/// The three ways out of ingest.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// New batches, to be kept.
    pub store: mpsc::Sender<Arrival>,
    /// The same batches, to be watched.
    pub detect: mpsc::Sender<Arc<Batch>>,
    /// Questions to the store.
    pub inquiries: mpsc::Sender<Inquiry>,
    room: Arc<Semaphore>,
}

/// The other ends of [`Outlets`].
#[derive(Debug)]
pub struct Inlets {
    /// New batches, to be kept.
    pub store: mpsc::Receiver<Arrival>,
    /// The same batches, to be watched.
    pub detect: mpsc::Receiver<Arc<Batch>>,
    /// Questions to the store.
    pub inquiries: mpsc::Receiver<Inquiry>,
}

/// Makes the ways from ingest to store and detectors.
pub fn outlets() -> (Outlets, Inlets) {
    let (store, from_store) = mpsc::channel(BATCHES_UNDER_WAY_MAX);
    let (detect, from_detect) = mpsc::channel(BATCHES_UNDER_WAY_MAX);
    let (inquiries, from_inquiries) = mpsc::channel(64);
    let room = Arc::new(Semaphore::new(ROWS_UNDER_WAY_MAX as usize));
    (Outlets { store, detect, inquiries, room }, Inlets { store: from_store, detect: from_detect, inquiries: from_inquiries })
}

/// A place for one batch in every outlet, held before the batch is taken: between the decision that a batch is new and its
/// departure nothing may wait, or a connection that dies there would lose it.
pub(crate) struct Place<'a> {
    store: mpsc::Permit<'a, Arrival>,
    detect: mpsc::Permit<'a, Arc<Batch>>,
    room: OwnedSemaphorePermit,
}

impl Outlets {
    /// Waits for a place for a batch of `rows`; `None` when the collector is stopping.
    pub(crate) async fn place(&self, rows: usize) -> Option<Place<'_>> {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX).min(ROWS_UNDER_WAY_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(rows).await.ok()?;
        Some(Place { store: self.store.reserve().await.ok()?, detect: self.detect.reserve().await.ok()?, room })
    }
}

impl Place<'_> {
    pub(crate) fn send(self, batch: Batch) {
        let batch = Arc::new(batch);
        self.detect.send(Arc::clone(&batch));
        self.store.send(Arrival { batch, room: self.room });
    }
}

/// Waits until the collector stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await; // without a sender it stops as well
}
