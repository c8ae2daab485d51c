//! The loop that owns the store: takes batches, commits, and lets acknowledgements go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::ingest::{Arrival, Inquiry, LaterStart, ToStore, stopped};
use crate::metrics::Vitals;
use crate::store::{Pushed, Store, StoreError};

/// Most commit intervals that are skipped after failures.
const SKIP_MAX: u32 = 15;

struct Keeper {
    store: Store,
    vitals: Arc<Vitals>,
    /// A batch for which there is no room. No other is taken before it.
    held: Option<Arrival>,
    /// Failures in a row, and how many ticks to let pass before the next attempt.
    failures: u32,
    skip: u32,
}

/// Takes arrivals and answers inquiries until `stopping` turns true; then commits what has arrived.
pub(super) async fn keep(
    store: Store,
    interval: Duration,
    mut arrivals: mpsc::Receiver<ToStore>,
    mut inquiries: mpsc::Receiver<Inquiry>,
    vitals: Arc<Vitals>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut keeper = Keeper { store, vitals, held: None, failures: 0, skip: 0 };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(next) = arrivals.recv(), if keeper.held.is_none() => keeper.next(next).await,
            Some(inquiry) = inquiries.recv() => keeper.answer(inquiry).await,
            _ = ticks.tick() => keeper.tick().await,
            () = stopped(&mut stopping) => break,
        }
        keeper.report();
    }
    while keeper.held.is_none() {
        let Ok(next) = arrivals.try_recv() else { break };
        keeper.next(next).await;
    }
    keeper.commit().await;
    if keeper.store.buffered_rows() > 0 {
        let rows = keeper.store.buffered_rows();
        tracing::warn!("{rows} records could not be stored; they were not acknowledged, so the sensors still have them");
    }
    keeper.report();
}

impl Keeper {
    async fn next(&mut self, next: ToStore) {
        match next {
            ToStore::Batch(arrival) => self.take(arrival).await,
            ToStore::Cut(reply) => self.cut(reply).await,
        }
    }

    /// Commits everything that came before. When that fails the cut is void: what comes next would be in the same commit.
    async fn cut(&mut self, reply: oneshot::Sender<u64>) {
        self.commit().await;
        if self.store.buffered_rows() > 0 || self.failures > 0 {
            return;
        }
        match self.store.version().await {
            Ok(version) => drop(reply.send(version)), // whoever asked may have stopped waiting
            Err(error) => self.failed(&error),
        }
    }

    async fn take(&mut self, arrival: Arrival) {
        match self.store.push_several(Arc::clone(&arrival.batch), arrival.batches).await {
            Ok(Pushed::New) => {
                drop(arrival);
                if self.store.wants_commit() && self.failures == 0 {
                    self.commit().await;
                }
            }
            Ok(Pushed::Repeat) => self.remind(&arrival).await,
            Ok(Pushed::Full) => self.held = Some(arrival),
            Err(error) => {
                self.failed(&error);
                self.held = Some(arrival);
            }
        }
    }

    /// A sensor sent what is here already: it may have missed the acknowledgement.
    async fn remind(&mut self, arrival: &Arrival) {
        let batch = &arrival.batch;
        if let Ok(durable) = self.store.resume_after(&batch.sensor, batch.boot).await {
            self.vitals.registry.acknowledge(&batch.sensor, batch.boot, durable);
        }
    }

    async fn answer(&mut self, inquiry: Inquiry) {
        match self.resume_after(&inquiry.sensor, inquiry.boot).await {
            Ok(answer) => drop(inquiry.reply.send(answer)), // the sensor may have gone meanwhile
            Err(error) => self.failed(&error),
        }
    }

    async fn resume_after(&mut self, sensor: &str, boot: u64) -> Result<Result<u64, LaterStart>, StoreError> {
        if boot < self.store.newest_boot(sensor).await? {
            return Ok(Err(LaterStart));
        }
        self.store.resume_after(sensor, boot).await.map(Ok)
    }

    async fn tick(&mut self) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.commit().await;
    }

    async fn commit(&mut self) {
        match self.store.commit().await {
            Ok(marks) => {
                for mark in marks {
                    self.vitals.registry.acknowledge(&mark.sensor, mark.boot, mark.up_to);
                }
                self.succeeded();
                if let Some(arrival) = self.held.take() {
                    Box::pin(self.take(arrival)).await;
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn succeeded(&mut self) {
        if self.failures > 0 {
            tracing::info!("the store works again");
        }
        (self.failures, self.skip) = (0, 0);
        self.vitals.store().trouble = None;
    }

    /// Says what is wrong when it is news, and makes the next attempt wait longer.
    fn failed(&mut self, error: &StoreError) {
        let sentence = error.to_string();
        let mut vitals = self.vitals.store();
        if vitals.trouble.as_ref() != Some(&sentence) {
            tracing::error!("{sentence}; records wait in memory and at the sensors, nothing acknowledged is lost");
        }
        vitals.trouble = Some(sentence);
        drop(vitals);
        self.skip = ((1 << self.failures.min(4)) - 1).min(SKIP_MAX);
        self.failures += 1;
    }

    fn report(&self) {
        let mut vitals = self.vitals.store();
        vitals.counts = self.store.counts();
        vitals.buffered_rows = self.store.buffered_rows();
    }
}
