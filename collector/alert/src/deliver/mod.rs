//! Delivery: alerts to files, syslog, webhooks and Microsoft Sentinel, each at least once and in order.
//!
//! The life of an alert on its way out: [`Outbox::put`] appends it to the [`journal`] if any output [wants](OutputSettings::wants) it.
//! Each output has a task that reads the journal from its own cursor, takes what it wants, writes it in its [format](mod@format), and
//! tries to deliver it; its [`courier`] says what follows from success and trouble. The cursor moves when a batch is delivered, and
//! stands in a file of its own, so that a restart goes on there. Segments that all cursors have passed are removed.
//!
//! An alert that a receiver will never take is parked in `NAME.refused.ndjson` beside the journal. When the journal is full, its oldest
//! alerts are given up for the outputs that still lack them. Both are counted, per output: since the collector started,
//! `wanted = delivered + refused + dropped + waiting`.
//!
//! A batch may arrive twice: after a restart, or when an answer was lost. Alerts with the same `id` and `told` are the same.

pub mod courier;
mod cursor;
pub mod format;
pub mod journal;
mod out;
pub mod settings;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use spanwatch_common::time::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::courier::{Courier, Outcome, Step};
use self::journal::{Journal, Place};
use self::out::{Out, Sent};
pub use self::settings::{DeliverySettings, OutputSettings};
use crate::file::{self, AlertFile};
use crate::{Alert, AlertSink};

/// What is read of the journal at once, past the first alert.
const READ_BYTES_MAX: usize = 4 << 20;
/// Wait after trouble with our own disk.
const DISK_WAIT: Duration = Duration::from_secs(5);
/// What was put becomes durable within this time while the outbox runs, whether or not anybody asks for it.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Size of the file with refused alerts; with its predecessor, twice that.
const REFUSED_BYTES_MAX: u64 = 16 << 20;

/// How an output is doing, for metrics and health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputStatus {
    /// From the settings.
    pub name: String,
    /// Alerts that it wants and has not got yet.
    pub waiting: u64,
    /// Alerts that were delivered since the collector started.
    pub delivered: u64,
    /// Alerts that the receiver will never take, since the collector started. They are in `NAME.refused.ndjson`.
    pub refused: u64,
    /// Alerts that were given up because the journal was full, since the collector started. They are in the alert file.
    pub dropped: u64,
    /// Alerts that were delivered without part of their evidence, because messages may only be so long.
    pub shortened: u64,
    /// Since when nothing gets through; None while all is well.
    pub failing_since: Option<Timestamp>,
    /// What was last wrong.
    pub last_error: Option<String>,
}

/// The journal and the state of all outputs.
pub struct Outbox {
    outputs: Vec<OutputSettings>,
    directory: PathBuf,
    journal_bytes_max: u64,
    retry_wait_max: Duration,
    shared: Mutex<Shared>,
    /// Tells the tasks that something was appended.
    news: watch::Sender<()>,
}

struct Shared {
    /// None without outputs.
    journal: Option<Journal>,
    accounts: Vec<Account>,
}

struct Account {
    /// The first entry that it may still lack.
    cursor: u64,
    status: OutputStatus,
}

/// Alerts that one output wants next.
struct Batch {
    alerts: Vec<Alert>,
    /// Number of each.
    sequences: Vec<u64>,
    /// After all that was looked at.
    end: Place,
}

impl Outbox {
    /// Opens the journal, and each output's cursor. An output without one is new: it gets what comes from now on.
    ///
    /// # Errors
    /// What the system says about the directory.
    pub fn open(delivery: &DeliverySettings, outputs: &[OutputSettings]) -> io::Result<Arc<Self>> {
        let directory = delivery.directory.clone();
        let mut shared = Shared { journal: None, accounts: Vec::new() };
        if !outputs.is_empty() {
            std::fs::create_dir_all(&directory)?;
            let cursors: Vec<Option<u64>> =
                outputs.iter().map(|output| cursor::read(&directory, &output.name)).collect::<io::Result<_>>()?;
            let seen = cursors.iter().flatten().copied().max().unwrap_or(0);
            let segment_bytes_max = (delivery.journal_bytes_max / 16).clamp(1 << 16, 8 << 20);
            let journal = Journal::open(&directory, segment_bytes_max, seen)?;
            for (output, known) in outputs.iter().zip(cursors) {
                let cursor = known.unwrap_or(journal.next()).max(journal.oldest());
                if known.is_none() {
                    cursor::write(&directory, &output.name, cursor)?;
                }
                let waiting = count(&journal, output, cursor, journal.next())?;
                let status = OutputStatus { name: output.name.clone(), waiting, ..OutputStatus::default() };
                shared.accounts.push(Account { cursor, status });
            }
            shared.journal = Some(journal);
        }
        Ok(Arc::new(Self {
            outputs: outputs.to_vec(),
            directory,
            journal_bytes_max: delivery.journal_bytes_max,
            retry_wait_max: Duration::from_secs(delivery.retry_wait_max_secs),
            shared: Mutex::new(shared),
            news: watch::Sender::new(()),
        }))
    }

    /// Takes `alert` on for all outputs that want it. It is durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// What the system says; nobody gets it then, and the caller may try again.
    pub fn put(&self, alert: &Alert) -> io::Result<()> {
        if !self.outputs.iter().any(|output| output.wants(alert)) {
            return Ok(());
        }
        let line = serde_json::to_vec(alert)?;
        // As it is read back, so that what waits is counted by what will be found: JSON may take the last digit of a number.
        let Ok(alert) = &serde_json::from_slice::<Alert>(&line) else {
            tracing::error!("alert {} cannot be read back and is not sent; it stands in the alert file", alert.id);
            return Ok(());
        };
        let mut shared = self.shared();
        self.make_room(&mut shared, line.len() as u64)?;
        let Shared { journal: Some(journal), accounts } = &mut *shared else { return Ok(()) };
        journal.append(&line)?;
        for (account, _) in accounts.iter_mut().zip(&self.outputs).filter(|(_, output)| output.wants(alert)) {
            account.status.waiting += 1;
        }
        drop(shared);
        self.news.send_replace(());
        Ok(())
    }

    /// Waits until everything that was put would survive a power cut.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.shared().journal.as_ref().map_or(Ok(()), Journal::sync)
    }

    /// How each output is doing, in the order of the settings.
    pub fn status(&self) -> Vec<OutputStatus> {
        self.shared().accounts.iter().map(|account| account.status.clone()).collect()
    }

    /// What the journal takes on disk, in bytes.
    pub fn journal_bytes(&self) -> u64 {
        self.shared().journal.as_ref().map_or(0, Journal::bytes)
    }

    /// Delivers until `shutdown` becomes true or its sender is gone; without outputs, returns at once. `seed` spreads the attempts of several collectors.
    pub async fn run(self: Arc<Self>, seed: u64, shutdown: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        for index in 0..self.outputs.len() {
            let (outbox, mut shutdown) = (Arc::clone(&self), shutdown.clone());
            tasks.spawn(async move {
                let mut out = Out::new(&outbox.outputs[index]);
                tokio::select! {
                    () = outbox.serve(index, &mut out, seed.wrapping_add(index as u64)) => {}
                    _ = shutdown.wait_for(|over| *over) => {}
                }
                out.close().await;
            });
        }
        let (outbox, mut shutdown) = (Arc::clone(&self), shutdown);
        if !self.outputs.is_empty() {
            tasks.spawn(async move {
                tokio::select! {
                    () = outbox.keep_durable() => {}
                    _ = shutdown.wait_for(|over| *over) => {}
                }
            });
        }
        tasks.join_all().await;
    }

    /// Syncs a moment after something was put, beside the lock: nobody waits for the disk.
    async fn keep_durable(&self) {
        let mut news = self.news.subscribe();
        while news.changed().await.is_ok() {
            tokio::time::sleep(SYNC_INTERVAL).await;
            news.mark_unchanged();
            let newest = self.shared().journal.as_ref().map_or(Ok(None), Journal::newest);
            let sync = move || newest.and_then(|file| file.map_or(Ok(()), |file| file.sync_data()));
            match tokio::task::spawn_blocking(sync).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("sync the journal in {}: {error}", self.directory.display()),
                Err(error) => tracing::error!("sync the journal in {}: {error}", self.directory.display()),
            }
        }
    }

    /// The task of one output. Wherever it is stopped, what was not settled is sent again.
    async fn serve(&self, index: usize, out: &mut Out, seed: u64) {
        let output = &self.outputs[index];
        let mut news = self.news.subscribe();
        let mut courier = Courier::new(Out::batch_max(output), self.retry_wait_max, seed);
        let mut place = Place::before(self.shared().accounts[index].cursor);
        loop {
            news.mark_unchanged();
            let batch = match self.next_batch(index, &mut place, courier.batch()) {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!("output {}: cannot read the journal in {}: {error}", output.name, self.directory.display());
                    tokio::time::sleep(DISK_WAIT).await;
                    continue;
                }
            };
            let Some(first) = batch.sequences.first() else {
                if self.pass(index, batch.end.sequence) && news.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let now = now();
            let Sent { tried, shortened, outcome } = out.send(&batch.alerts, &format!("{}-{first}", output.name), now).await;
            let step = self.settle(index, &mut courier, tried, outcome, now);
            match step {
                Step::Next => {
                    place = batch.after(tried);
                    self.done(index, &batch, tried, |status, number| {
                        status.delivered += number;
                        status.shortened += shortened;
                    });
                }
                Step::Fewer => {}
                Step::Park => match self.park(output, &batch) {
                    Ok(()) => {
                        place = batch.after(1);
                        self.done(index, &batch, 1, |status, number| status.refused += number);
                    }
                    Err(error) => {
                        tracing::error!("output {}: cannot park a refused alert: {error}", output.name);
                        tokio::time::sleep(DISK_WAIT).await;
                    }
                },
                Step::Wait(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// The next alerts that the output wants, at most `alerts_max`. Where there is none, `place` moves on to the end of what was looked at.
    fn next_batch(&self, index: usize, place: &mut Place, alerts_max: usize) -> io::Result<Batch> {
        let shared = self.shared();
        // The journal may have given up what comes next.
        if shared.accounts[index].cursor > place.sequence {
            *place = Place::before(shared.accounts[index].cursor);
        }
        let mut batch = Batch { alerts: Vec::new(), sequences: Vec::new(), end: *place };
        let Some(journal) = &shared.journal else { return Ok(batch) };
        let (entries, end) = journal.read(*place, alerts_max, READ_BYTES_MAX)?;
        drop(shared);
        batch.end = end;
        for entry in entries {
            if let Some(alert) = wanted(&self.outputs[index], &entry.payload) {
                batch.alerts.push(alert);
                batch.sequences.push(entry.sequence);
            }
        }
        if batch.alerts.is_empty() {
            *place = end;
        }
        Ok(batch)
    }

    /// Notes the outcome, says it where it is new, and returns what follows.
    fn settle(&self, index: usize, courier: &mut Courier, tried: usize, outcome: Outcome, now: Timestamp) -> Step {
        let name = &self.outputs[index].name;
        let was_failing = courier.failing_since().is_some();
        let step = courier.settle(tried, outcome, now);
        let error = courier.last_error().unwrap_or_default();
        match (&step, was_failing) {
            (Step::Wait(_), false) => tracing::warn!("output {name}: {error}; alerts wait in the journal until it works"),
            (Step::Next, true) => tracing::info!("output {name}: works again"),
            (Step::Park, _) => tracing::warn!("output {name}: an alert is refused and parked in {name}.refused.ndjson: {error}"),
            _ => {}
        }
        let status = &mut self.shared().accounts[index].status;
        status.failing_since = courier.failing_since();
        status.last_error = courier.last_error().map(str::to_owned);
        step
    }

    fn park(&self, output: &OutputSettings, batch: &Batch) -> io::Result<()> {
        let settings = file::Settings {
            file: self.directory.join(format!("{}.refused.ndjson", output.name)),
            file_bytes_max: REFUSED_BYTES_MAX,
            ..file::Settings::default()
        };
        let mut refused = AlertFile::open(&settings)?;
        batch.alerts.first().map_or(Ok(()), |alert| refused.put(alert))?;
        refused.sync()
    }

    /// Moves the cursor past the first `number` alerts of `batch` and counts them, but for those that the journal gave up meanwhile.
    fn done(&self, index: usize, batch: &Batch, number: usize, note: impl FnOnce(&mut OutputStatus, u64)) {
        let mut shared = self.shared();
        let account = &mut shared.accounts[index];
        let fresh = batch.sequences.iter().take(number).filter(|sequence| **sequence >= account.cursor).count() as u64;
        account.status.waiting -= fresh;
        note(&mut account.status, fresh);
        self.advance(&mut shared, index, batch.after(number).sequence);
    }

    /// Moves the cursor past what the output does not want. Says whether there was nothing new.
    fn pass(&self, index: usize, end: u64) -> bool {
        let mut shared = self.shared();
        let idle = shared.accounts[index].cursor >= end;
        if !idle {
            self.advance(&mut shared, index, end);
        }
        idle
    }

    fn advance(&self, shared: &mut Shared, index: usize, cursor: u64) {
        let Some(account) = shared.accounts.get_mut(index).filter(|account| account.cursor < cursor) else { return };
        account.cursor = cursor;
        // If this fails, a restart sends again what it has sent.
        if let Err(error) = cursor::write(&self.directory, &account.status.name, cursor) {
            tracing::error!("output {}: cannot write its cursor in {}: {error}", account.status.name, self.directory.display());
        }
        let passed = shared.accounts.iter().map(|account| account.cursor).min();
        if let (Some(journal), Some(passed)) = (&mut shared.journal, passed)
            && let Err(error) = journal.release(passed)
        {
            tracing::error!("cannot tidy the journal in {}: {error}", self.directory.display());
        }
    }

    /// Removes the oldest segments until `len` bytes fit, and counts what outputs lose by it.
    fn make_room(&self, shared: &mut Shared, len: u64) -> io::Result<()> {
        let Shared { journal: Some(journal), accounts } = shared else { return Ok(()) };
        while journal.bytes() + len > self.journal_bytes_max
            && let Some(end) = journal.end_of_oldest()
        {
            for (account, output) in accounts.iter_mut().zip(&self.outputs).filter(|(account, _)| account.cursor < end) {
                let lost = count(journal, output, account.cursor, end)?;
                account.status.dropped += lost;
                account.status.waiting -= lost;
                account.cursor = end;
                cursor::write(&self.directory, &output.name, end)?;
                tracing::error!(
                    "output {}: the journal is full; {lost} alerts are given up (they stand in the alert file)",
                    output.name
                );
            }
            journal.remove_oldest()?;
        }
        Ok(())
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Each change leaves the accounts whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("directory", &self.directory).field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Batch {
    /// The place after its first `number` alerts.
    fn after(&self, number: usize) -> Place {
        self.sequences.get(number).map_or(self.end, |next| Place::before(*next))
    }
}

impl AlertSink for Arc<Outbox> {
    fn put(&mut self, alert: &Alert) -> io::Result<()> {
        Outbox::put(self, alert)
    }

    fn sync(&mut self) -> io::Result<()> {
        Outbox::sync(self)
    }
}

/// Sends a test alert to `output`, past the journal and its filters.
///
/// # Errors
/// What the receiver said, or why it was not reached.
pub async fn test(output: &OutputSettings) -> Result<(), String> {
    let now = now();
    let mut out = Out::new(output);
    let sent = out.send(&[test_alert(&output.name, now)], &format!("{}-test-{}", output.name, now.as_nanos()), now).await;
    out.close().await;
    match sent.outcome {
        Outcome::Delivered => Ok(()),
        Outcome::Refused(why) | Outcome::Failed(why, _) => Err(why),
    }
}

/// An alert that says that it is a test: rule `TEST`, informational.
pub fn test_alert(output: &str, now: Timestamp) -> Alert {
    let line = serde_json::json!({
        "id": format!("test-{}", now.as_nanos()),
        "rule": "TEST",
        "variant": "fixed",
        "title": "Test of an output",
        "severity": "informational",
        "state": "open",
        "subject": format!("output {output}"),
        "first": now.to_string(),
        "last": now.to_string(),
        "detected": now.to_string(),
        "told": now.to_string(),
        "sentence": format!("This is a test of the output {output}; nothing has happened."),
        "score": 1.0,
        "window": { "start": now.to_string(), "secs": 60 },
        "windows": 1,
        "reopened": 0,
        "evidence": { "value": 1.0, "threshold": 1.0, "unit": "tests" },
        "attack": [],
    });
    serde_json::from_value(line).expect("a line of our own")
}

/// The alert in `payload`, if it is one, and `output` wants it.
fn wanted(output: &OutputSettings, payload: &[u8]) -> Option<Alert> {
    serde_json::from_slice(payload).ok().filter(|alert| output.wants(alert))
}

/// How many alerts from `from` up to `end` `output` wants.
fn count(journal: &Journal, output: &OutputSettings, from: u64, end: u64) -> io::Result<u64> {
    let (mut place, mut number) = (Place::before(from), 0);
    loop {
        let (entries, next) = journal.read(place, 1_000, READ_BYTES_MAX)?;
        if entries.is_empty() {
            return Ok(number);
        }
        for entry in entries {
            if entry.sequence >= end {
                return Ok(number);
            }
            number += u64::from(wanted(output, &entry.payload).is_some());
        }
        place = next;
    }
}

#[expect(clippy::disallowed_methods, reason = "tokens end, and signatures carry the time; the courier is handed it")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
