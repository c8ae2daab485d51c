//! Flow records at rest: a Delta Lake table of Parquet files, and SQL over it.
//!
//! This is the only module that names the table format or the query engine. In the order in which you need to learn them:
//!
//! * [`settings`](StoreSettings) — what an operator may say
//! * `schema` — a record as columns, and a Parquet file made of them
//! * `durable` — files that survive a power cut once written
//! * `table` — opening the table, committing to it, and the marks that a commit carries
//! * `files` — records as Parquet files, one per hour
//! * [`Store`], here — what the collector writes with what sensors send
//! * [`Importer`] — what flow logs are imported with, beside a running collector or in it
//! * [`upkeep`] — merging small files, dropping old ones, tidying the log
//! * [`query`] — SQL for people and programs, beside a running collector
//! * [`records`] — flow records read back; [`added_since`] — those that came after a certain commit
//!
//! # A batch's life
//! [`Store::push`] takes a batch into memory, or says that it is a repeat. [`Store::commit`] sorts what has gathered by time,
//! writes one Parquet file per hour of record time, and commits them together with how far each sensor has come. Only then
//! may a batch be acknowledged. Nothing else keeps a copy: until then, the sensor does.
//!
//! # Why the futures are boxed
//! An `async fn` is compiled anew in each crate that awaits it, and here that means a good part of the query engine. Boxed,
//! it is compiled once.

#![forbid(unsafe_code)]

mod durable;
mod error;
mod files;
mod functions;
mod imports;
mod query;
mod read;
mod render;
mod schema;
mod settings;
mod since;
mod table;
mod upkeep;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use deltalake::kernel::{Action, Add};
use futures::future::BoxFuture;
use spanwatch_common::wire::Batch;

pub use error::StoreError;
pub use imports::Importer;
pub use query::query;
pub use read::records;
pub use render::Format;
pub use settings::StoreSettings;
pub use since::added_since;
pub use table::Mark;
pub use upkeep::{Upkeep, upkeep};

use files::{build_files, write_files};
use schema::Row;
use table::Table;

/// Most hours in one commit, each a file. Records of further hours, which only a wrong clock can bring, share the last one.
const HOURS_MAX: usize = 96;

/// Where the one writer of a directory holds its lock.
const LOCK: &str = ".lock";

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits in memory for the next commit.
    New,
    /// The store has it already, in memory or on disk, or the sensor has started anew since: dropped.
    Repeat,
    /// There is no room until a commit succeeds: not taken. The sensor must keep it.
    Full,
}

/// What the store has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records taken into memory.
    pub records: u64,
    /// Records made durable.
    pub committed: u64,
    /// Batches that came again and were dropped.
    pub repeats: u64,
    /// Batches that are missing: the sensor's numbers leapt over them.
    pub missing: u64,
    /// Batches that were turned away for want of room.
    pub refused: u64,
    /// Commits that succeeded.
    pub commits: u64,
    /// Commits that failed; their records waited for the next.
    pub failed_commits: u64,
}

/// The table of flow records, open for writing.
pub struct Store {
    settings: StoreSettings,
    table: Table,
    /// Held as long as the store is open; the system releases it, also when the process dies.
    _lock: File,
    /// Taken, not yet durable; in the order of arrival.
    batches: Vec<Arc<Batch>>,
    rows: usize,
    /// Per sensor; as many as there are certificates.
    progress: HashMap<String, Progress>,
    /// Whether a commit was begun whose end is not known: it may have failed late, or its caller stopped waiting.
    unsettled: bool,
    /// Marks that are durable and that nobody was told of yet.
    untold: Vec<Mark>,
    counts: Counts,
}

/// How far one sensor has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    boot: u64,
    durable: u64,
    taken: u64,
}

impl Store {
    /// Opens the table in `settings.directory` for writing; creates it on first use.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process has it open; [`StoreError::Directory`], [`StoreError::Foreign`],
    /// [`StoreError::Full`], [`StoreError::Table`].
    pub fn open(settings: StoreSettings) -> BoxFuture<'static, Result<Self, StoreError>> {
        Box::pin(Self::lock_and_open(settings))
    }

    async fn lock_and_open(settings: StoreSettings) -> Result<Self, StoreError> {
        let trouble = |what, path: &Path, source| StoreError::Directory { what, path: path.to_owned(), source };
        let directory = &settings.directory;
        fs::create_dir_all(directory).map_err(|source| trouble("create", directory, source))?;
        let directory = directory.canonicalize().map_err(|source| trouble("open", directory, source))?;
        let path = directory.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path).map_err(|source| trouble("write", &path, source))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => StoreError::Busy(directory.clone()),
            fs::TryLockError::Error(source) => trouble("lock", &path, source),
        })?;
        let table = Table::open_or_create(&directory).await?;
        Ok(Self {
            settings,
            table,
            _lock: lock,
            batches: Vec::new(),
            rows: 0,
            progress: HashMap::new(),
            unsettled: false,
            untold: Vec::new(),
            counts: Counts::default(),
        })
    }

    /// The last batch of `boot` that is durable, 0 for none: where `sensor` should go on.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn resume_after<'a>(&'a mut self, sensor: &'a str, boot: u64) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let progress = self.progress(sensor).await?;
            Ok(if progress.boot == boot { progress.durable } else { 0 })
        })
    }

    /// The newest start of `sensor` of which a batch was taken, 0 for none: batches of earlier starts are dropped.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn newest_boot<'a>(&'a mut self, sensor: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { Ok(self.progress(sensor).await?.boot) })
    }

    /// Takes a batch into memory, unless it is there already or there is no room.
    ///
    /// # Errors
    /// The table cannot be read to see how far the sensor had come.
    pub fn push(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Pushed, StoreError>> {
        self.push_several(batch, 1)
    }

    /// The same, of a batch that was made of `batches` consecutive ones of a sensor and has the number of the last.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_several(&mut self, batch: Arc<Batch>, batches: u64) -> BoxFuture<'_, Result<Pushed, StoreError>> {
        Box::pin(self.take(batch, batches))
    }

    async fn take(&mut self, batch: Arc<Batch>, batches: u64) -> Result<Pushed, StoreError> {
        let before = self.progress(&batch.sensor).await?;
        let taken = if batch.boot == before.boot { before.taken } else { 0 };
        if batch.boot < before.boot || batch.sequence <= taken {
            self.counts.repeats += 1;
            return Ok(Pushed::Repeat);
        }
        if self.rows > 0 && self.rows + batch.records.len() > self.settings.buffer_rows_max {
            self.counts.refused += 1;
            return Ok(Pushed::Full);
        }
        self.counts.missing += (batch.sequence - taken).saturating_sub(batches);
        self.counts.records += batch.records.len() as u64;
        let durable = if batch.boot == before.boot { before.durable } else { 0 };
        self.progress.insert(batch.sensor.clone(), Progress { boot: batch.boot, durable, taken: batch.sequence });
        self.rows += batch.records.len();
        self.batches.push(batch);
        Ok(Pushed::New)
    }

    /// The newest version of the table, whoever made it.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn version(&mut self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async {
            self.table.refresh().await?;
            Ok(self.table.state.version())
        })
    }

    /// Records that wait for a commit.
    pub const fn buffered_rows(&self) -> usize {
        self.rows
    }

    /// Whether so many records wait that a commit should not.
    pub const fn wants_commit(&self) -> bool {
        self.rows >= self.settings.commit_rows_max
    }

    /// What was counted since the store was opened.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Makes everything that waits durable, in one commit, and says how far each sensor has come by it.
    ///
    /// # Errors
    /// After any error everything that is not durable still waits in memory, and the next call tries again;
    /// [`StoreError::Full`] when the disk is. The same holds when the future is dropped before it is done.
    pub fn commit(&mut self) -> BoxFuture<'_, Result<Vec<Mark>, StoreError>> {
        Box::pin(async {
            let result = self.try_commit().await;
            match &result {
                Ok(marks) if !marks.is_empty() => self.counts.commits += 1,
                Ok(_) => {}
                Err(_) => self.counts.failed_commits += 1,
            }
            result
        })
    }

    async fn try_commit(&mut self) -> Result<Vec<Mark>, StoreError> {
        if self.batches.is_empty() {
            return Ok(std::mem::take(&mut self.untold));
        }
        // A commit that nobody waited for may still land at any moment. It is either seen here, or it makes ours fail because
        // both move the same marks. Besides, upkeep trims the log: a commit must not start from what is long gone.
        self.table.refresh().await?;
        if self.unsettled {
            self.reconcile().await?;
        }
        if !self.batches.is_empty() {
            let adds = self.write_files().await?;
            let actions = adds.iter().cloned().map(Action::Add).collect();
            let newest = newest(&marks(&self.batches));
            self.unsettled = true;
            if let Err(error) = self.table.commit(actions, table::transactions(&newest), table::append()).await {
                self.table.refresh().await?;
                self.reconcile().await?;
                if !self.batches.is_empty() {
                    self.table.discard(&adds).await;
                    return Err(error);
                }
            }
            let landed = std::mem::take(&mut self.batches);
            self.settle(&landed);
        }
        self.unsettled = false;
        Ok(std::mem::take(&mut self.untold))
    }

    /// Forgets what waits although the table has it already.
    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let mut held = HashMap::new();
        for mark in newest(&marks(&self.batches)) {
            held.insert(mark.sensor.clone(), self.table.mark(&mark.sensor).await?);
        }
        let is_held = |batch: &Arc<Batch>| held.get(&batch.sensor).copied().flatten() >= Some((batch.boot, batch.sequence));
        let (landed, waiting) = std::mem::take(&mut self.batches).into_iter().partition(is_held);
        self.batches = waiting;
        self.settle(&landed);
        Ok(())
    }

    /// Accounts for batches that are durable now, and no longer among those that wait.
    fn settle(&mut self, landed: &[Arc<Batch>]) {
        for mark in marks(landed) {
            if let Some(progress) = self.progress.get_mut(&mark.sensor).filter(|progress| progress.boot == mark.boot) {
                progress.durable = mark.up_to;
            }
            self.untold.retain(|told| (&told.sensor, told.boot) != (&mark.sensor, mark.boot));
            self.untold.push(mark);
        }
        let rows: usize = landed.iter().map(|batch| batch.records.len()).sum();
        self.counts.committed += rows as u64;
        self.rows -= rows;
    }

    /// Writes everything that waits into files that are not yet part of the table; all of them or none.
    async fn write_files(&self) -> Result<Vec<Add>, StoreError> {
        let batches = self.batches.clone();
        let build = move || {
            let rows = batches.iter().flat_map(|batch| batch.records.iter().map(|record| Row { sensor: &batch.sensor, record }));
            build_files(rows.collect(), HOURS_MAX)
        };
        write_files(&self.table, build).await
    }

    async fn progress(&mut self, sensor: &str) -> Result<Progress, StoreError> {
        if let Some(progress) = self.progress.get(sensor) {
            return Ok(*progress);
        }
        let (boot, sequence) = self.table.mark(sensor).await?.unwrap_or_default();
        let progress = Progress { boot, durable: sequence, taken: sequence };
        self.progress.insert(sensor.to_owned(), progress);
        Ok(progress)
    }
}

/// The last batch of each start of each sensor.
fn marks(batches: &[Arc<Batch>]) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    for batch in batches {
        match marks.iter_mut().find(|mark| mark.sensor == batch.sensor && mark.boot == batch.boot) {
            Some(mark) => mark.up_to = batch.sequence,
            None => marks.push(Mark { sensor: batch.sensor.clone(), boot: batch.boot, up_to: batch.sequence }),
        }
    }
    marks
}

/// Of `marks`, those of each sensor's newest start.
fn newest(marks: &[Mark]) -> Vec<Mark> {
    let superseded = |mark: &Mark| marks.iter().any(|other| other.sensor == mark.sensor && other.boot > mark.boot);
    marks.iter().filter(|mark| !superseded(mark)).cloned().collect()
}
