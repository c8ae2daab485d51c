//! Ingest: records come in from sensors, and acknowledgements go back.
//!
//! * [`settings`] — where to listen, and the limits
//! * [`tls`] — who may speak at all: the certificates
//! * [`registry`] — what is known of each sensor: how far it has come, who speaks for it, what was counted
//! * [`join`](mod@join), `hold` — the two halves of a flow that a sensor saw one-sided, put together
//! * [`sensor`] — the listener and one conversation per connection
//! * [`recorded`] — recorded flows in any form: our JSON lines, Azure's flow logs
//! * [`azure`] — where Azure's flow logs come from
//!
//! A batch that is new goes to the store and to the detectors at once, or after a moment if halves of flows are in it; ingest itself
//! keeps nothing that is acknowledged.
//!
//! **Both see the same, in the same order**, sensors' batches and [cuts](Outlets::cut) alike. That is what makes a restart exact:
//! at a cut the store has committed precisely what the detectors have seen.

pub mod azure;
mod hold;
pub mod join;
pub mod recorded;
pub mod registry;
pub mod sensor;
pub mod settings;
pub mod tls;

use std::sync::{Arc, Mutex, PoisonError};

use spanwatch_common::wire::Batch;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub use hold::Shipment;
use registry::Admission;

/// Rows under way between connections and store. Reaching it stops the reading, so that TCP stops the sensors.
const ROWS_UNDER_WAY_MAX: u32 = 1 << 19;
/// Batches under way, whatever their size.
const BATCHES_UNDER_WAY_MAX: usize = 1024;

/// A new batch on its way to the store.
#[derive(Debug)]
pub struct Arrival {
    /// The batch.
    pub batch: Arc<Batch>,
    /// How many of the sensor's batches it is made of.
    pub batches: u64,
    /// Room under way; given back when the store has taken the batch.
    pub room: OwnedSemaphorePermit,
}

/// What the store is handed, in order.
#[derive(Debug)]
pub enum ToStore {
    /// Keep this.
    Batch(Arrival),
    /// Commit what came before and nothing else, and answer with the version of the table that holds it. No answer when the
    /// commit fails.
    Cut(oneshot::Sender<u64>),
}

/// What the detectors are handed, in order.
#[derive(Debug)]
pub enum ToDetect {
    /// Look at this.
    Batch(Arc<Batch>),
    /// Answer with a snapshot of all that was learned from what came before. No answer when that is not to be had.
    Cut(oneshot::Sender<Vec<u8>>),
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
    store: mpsc::Sender<ToStore>,
    detect: mpsc::Sender<ToDetect>,
    /// Questions to the store.
    pub inquiries: mpsc::Sender<Inquiry>,
    room: Arc<Semaphore>,
    /// Held while something is sent to both, so that nothing else comes between.
    order: Arc<Mutex<()>>,
    /// Held by an import from before its commit until its rows are on their way to the detectors, and by a cut until both have answered.
    imports: Arc<tokio::sync::Mutex<()>>,
}

/// The other ends of [`Outlets`].
#[derive(Debug)]
pub struct Inlets {
    /// New batches, to be kept.
    pub store: mpsc::Receiver<ToStore>,
    /// The same batches, to be watched.
    pub detect: mpsc::Receiver<ToDetect>,
    /// Questions to the store.
    pub inquiries: mpsc::Receiver<Inquiry>,
}

/// Makes the ways from ingest to store and detectors.
pub fn outlets() -> (Outlets, Inlets) {
    let (store, from_store) = mpsc::channel(BATCHES_UNDER_WAY_MAX);
    let (detect, from_detect) = mpsc::channel(BATCHES_UNDER_WAY_MAX);
    let (inquiries, from_inquiries) = mpsc::channel(64);
    let room = Arc::new(Semaphore::new(ROWS_UNDER_WAY_MAX as usize));
    let outlets = Outlets { store, detect, inquiries, room, order: Arc::default(), imports: Arc::default() };
    (outlets, Inlets { store: from_store, detect: from_detect, inquiries: from_inquiries })
}

/// A place for one batch in every outlet, held before the batch is taken: between the decision that a batch is new and its
/// departure nothing may wait, or a connection that dies there would lose it.
pub(crate) struct Place<'a> {
    store: mpsc::Permit<'a, ToStore>,
    detect: mpsc::Permit<'a, ToDetect>,
    room: OwnedSemaphorePermit,
    order: &'a Mutex<()>,
}

impl Outlets {
    /// Waits for a place for a batch of `rows`; `None` when the collector is stopping.
    pub(crate) async fn place(&self, rows: usize) -> Option<Place<'_>> {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX).min(ROWS_UNDER_WAY_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(rows).await.ok()?;
        let (store, detect) = (self.store.reserve().await.ok()?, self.detect.reserve().await.ok()?);
        Some(Place { store, detect, room, order: &self.order })
    }

    /// Asks store and detectors what they have at one and the same point of the stream; `None` when the collector is stopping.
    pub async fn cut(&self) -> Option<Cut> {
        let imports = Arc::clone(&self.imports).lock_owned().await;
        let (to_store, to_detect) = (self.store.reserve().await.ok()?, self.detect.reserve().await.ok()?);
        let ((reply_version, version), (reply_snapshot, snapshot)) = (oneshot::channel(), oneshot::channel());
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        to_store.send(ToStore::Cut(reply_version));
        to_detect.send(ToDetect::Cut(reply_snapshot));
        drop(order);
        Some(Cut { version, snapshot, _imports: imports })
    }

    /// For whoever commits rows beside the store's own loop (an import that goes on for ever): hold this from before the commit until
    /// the rows were [handed to the detectors](ImportTurn::watch), so that no cut falls in between.
    pub async fn import_turn(&self) -> ImportTurn {
        ImportTurn { detect: self.detect.clone(), _turn: Arc::clone(&self.imports).lock_owned().await }
    }
}

impl Place<'_> {
    /// Sends `shipment` both ways if `judge` finds it new. Judging and sending are one step: of two connections of one sensor the one
    /// that is judged first is also first in the stream.
    pub(crate) fn send_if_new(self, shipment: Shipment, judge: impl FnOnce(&Shipment) -> Admission) -> Admission {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = judge(&shipment);
        if admission == Admission::New {
            let (batch, batches) = (Arc::new(shipment.batch), shipment.batches);
            self.detect.send(ToDetect::Batch(Arc::clone(&batch)));
            self.store.send(ToStore::Batch(Arrival { batch, batches, room: self.room }));
        }
        admission
    }
}

/// Two answers that describe the same point of the stream.
#[derive(Debug)]
pub struct Cut {
    /// From the store.
    pub version: oneshot::Receiver<u64>,
    /// From the detectors.
    pub snapshot: oneshot::Receiver<Vec<u8>>,
    _imports: OwnedMutexGuard<()>,
}

/// The right to commit rows beside the store's own loop.
#[derive(Debug)]
pub struct ImportTurn {
    detect: mpsc::Sender<ToDetect>,
    _turn: OwnedMutexGuard<()>,
}

impl ImportTurn {
    /// Shows committed rows to the detectors. Nothing happens when the collector is stopping: the next start shows them.
    pub async fn watch(&self, batch: Arc<Batch>) {
        let _ = self.detect.send(ToDetect::Batch(batch)).await;
    }
}

/// Waits until the collector stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await; // without a sender it stops as well
}
