//! Importing flow logs: rows and how far the import has come, in one commit.
//!
//! Whoever imports knows where it stands in its sources: an offset in each blob, a hash of each file. That is its *state*, bytes
//! that mean nothing here. The table must never hold rows beyond the state, nor the state promise rows that the table lacks,
//! also when the process is killed at any point. So, for the n-th attempt to commit:
//!
//! ```text
//! 1. date=…/hour=…/part-….parquet        the rows; part of nothing yet
//! 2. _imports/NAME/00000000000000000n    the state that belongs to them; n was never used before
//! 3. _delta_log/….json                   add the files, and txn { "spanwatch/import/NAME", version: n }
//! ```
//! Each is durable before the next begins. When an import is opened, the mark in the table says which state is true; what other
//! attempts left behind is removed. Step 3 runs to its end even when nobody waits for it any more, and holds the import's lock
//! until then: nobody goes on from a mark that is about to move.
//!
//! A collector and imports of different names may append at the same time: the log takes commits in any order, and refuses one
//! that moves a mark that somebody else has moved.

use std::fs::{self, File};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use deltalake::Path;
use deltalake::datafusion::object_store::{ObjectStoreExt, PutPayload};
use deltalake::kernel::Action;
use futures::future::BoxFuture;
use spanwatch_common::flow::FlowRecord;
use tokio::task::JoinHandle;

use super::error::StoreError;
use super::files::{build_files, write_files};
use super::schema::Row;
use super::settings::StoreSettings;
use super::table::{self, Table};

/// Where the states are, below the table. Engines that tidy a Delta table leave names alone that begin like this.
const IMPORTS: &str = "_imports";
/// Beside the states: held while an import of the name runs.
const LOCK: &str = ".lock";
/// Most hours in one commit: a leap year's. Records of further hours share the last file.
const HOURS_MAX: usize = 366 * 24;
/// Longest name of an import, in bytes.
const NAME_LEN_MAX: usize = 100;

/// An import of one name, open for writing. One at a time, whatever the number of processes.
pub struct Importer {
    settings: StoreSettings,
    table: Table,
    name: Arc<str>,
    states: PathBuf,
    /// Held as long as the import is open or a commit of it under way; the system releases it, also when the process dies.
    lock: Arc<File>,
    /// Taken, not yet durable; in the order of arrival.
    waiting: Vec<Arc<Vec<FlowRecord>>>,
    rows: usize,
    /// A commit under way.
    running: Option<JoinHandle<(Table, Result<(), StoreError>)>>,
    /// The attempt of which is not known whether it is durable, and how many of the first of `waiting` it carries.
    begun: Option<(i64, usize)>,
    /// The last attempt's number, never used twice.
    attempt: i64,
    /// The last attempt that is durable.
    durable: i64,
    /// The state that is known to be durable.
    state: Option<Vec<u8>>,
}

impl Importer {
    /// Opens the import `name` into the table in `settings.directory`, which is created on first use, and says the state of its last
    /// durable commit; none when there was none.
    ///
    /// A name has 1 to 100 letters, digits, `-`, `_` and `.`, and begins with none of the last two.
    ///
    /// # Errors
    /// [`StoreError::ImportBusy`] while another import of that name runs, or a commit is under way of one that was dropped;
    /// [`StoreError::ImportName`];
    /// [`StoreError::ImportState`] when the state file is gone; else as for [`Store::open`](super::Store::open).
    pub fn open(settings: StoreSettings, name: &str) -> BoxFuture<'static, Result<(Self, Option<Vec<u8>>), StoreError>> {
        let name = Arc::from(name);
        Box::pin(Self::lock_and_open(settings, name))
    }

    async fn lock_and_open(settings: StoreSettings, name: Arc<str>) -> Result<(Self, Option<Vec<u8>>), StoreError> {
        if !is_name(&name) {
            return Err(StoreError::ImportName(name.to_string()));
        }
        let trouble = |what, path: &FilePath, source| StoreError::Directory { what, path: path.to_owned(), source };
        let directory = &settings.directory;
        fs::create_dir_all(directory).map_err(|source| trouble("create", directory, source))?;
        let directory = directory.canonicalize().map_err(|source| trouble("open", directory, source))?;
        let states = directory.join(IMPORTS).join(&*name);
        fs::create_dir_all(&states).map_err(|source| trouble("create", &states, source))?;
        let path = states.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path).map_err(|source| trouble("write", &path, source))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => StoreError::ImportBusy(name.to_string()),
            fs::TryLockError::Error(source) => trouble("lock", &path, source),
        })?;
        let table = Table::open_or_create(&directory).await?;
        let mark = table.import_mark(&name).await?;
        let state = match mark {
            None => None,
            Some(attempt) => Some(fs::read(states.join(file_name(attempt))).map_err(|source| StoreError::ImportState {
                name: name.to_string(),
                path: states.join(file_name(attempt)),
                source,
            })?),
        };
        let importer = Self {
            settings,
            table,
            name,
            states,
            lock: Arc::new(lock),
            waiting: Vec::new(),
            rows: 0,
            running: None,
            begun: None,
            attempt: mark.unwrap_or(0),
            durable: mark.unwrap_or(0),
            state: state.clone(),
        };
        importer.keep_only(importer.attempt);
        Ok((importer, state))
    }

    /// Takes records into memory until [`commit`](Self::commit).
    ///
    /// # Errors
    /// `store.buffer_rows_max` records wait already: these come back, to be pushed again once a commit has succeeded.
    pub fn push(&mut self, records: Vec<FlowRecord>) -> Result<(), Vec<FlowRecord>> {
        if self.rows > 0 && self.rows + records.len() > self.settings.buffer_rows_max {
            return Err(records);
        }
        self.rows += records.len();
        self.waiting.push(Arc::new(records));
        Ok(())
    }

    /// Records that wait for a commit.
    pub const fn buffered_rows(&self) -> usize {
        self.rows
    }

    /// Whether so many records wait that a commit should not.
    pub const fn wants_commit(&self) -> bool {
        self.rows >= self.settings.commit_rows_max
    }

    /// Makes everything that waits durable, and with it `state`, which says that all of it was taken in.
    ///
    /// # Errors
    /// After any error what is not durable still waits in memory, and the next call tries again, with the state of that time;
    /// [`StoreError::Full`] when the disk is. The same holds when the future is dropped before it is done.
    pub fn commit<'a>(&'a mut self, state: &'a [u8]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.try_commit(state))
    }

    async fn try_commit(&mut self, state: &[u8]) -> Result<(), StoreError> {
        if let Some(running) = &mut self.running {
            // What became of it, the table knows.
            let _ = running.await;
            self.running = None;
        }
        self.look_again().await?;
        if self.waiting.is_empty() && self.state.as_deref() == Some(state) {
            return Ok(());
        }
        let (chunks, name) = (self.waiting.clone(), Arc::clone(&self.name));
        let adds = write_files(&self.table, move || {
            let rows = chunks.iter().flat_map(|chunk| chunk.iter()).map(|record| row(record, &name));
            build_files(rows.collect(), HOURS_MAX)
        });
        let adds = adds.await?;
        self.attempt += 1;
        let path = Path::from_iter([IMPORTS, &*self.name, &*file_name(self.attempt)]);
        if let Err(error) = self.table.objects().put(&path, PutPayload::from(state.to_vec())).await {
            self.table.discard(&adds).await;
            return Err(StoreError::table("write", &self.table.directory, &error));
        }
        self.begun = Some((self.attempt, self.waiting.len()));
        let actions = adds.iter().cloned().map(Action::Add).collect();
        let mark = vec![table::import_transaction(&self.name, self.attempt)];
        let (mut table, lock) = (self.table.clone(), Arc::clone(&self.lock));
        let running = self.running.insert(tokio::spawn(async move {
            let result = table.commit(actions, mark, table::append()).await;
            drop(lock);
            (table, result)
        }));
        let done = running.await;
        self.running = None;
        match done {
            Ok((table, Ok(()))) => {
                self.table = table;
                self.settle(self.attempt);
            }
            Ok((_, Err(error))) => {
                self.look_again().await?;
                if self.attempt != self.durable {
                    self.table.discard(&adds).await;
                    return Err(error);
                }
            }
            Err(error) => return Err(StoreError::table("commit", &self.table.directory, &error)),
        }
        self.state = Some(state.to_vec());
        Ok(())
    }

    /// Takes in what others have committed, and whether the attempt that was begun, which runs no longer, is durable.
    async fn look_again(&mut self) -> Result<(), StoreError> {
        self.table.refresh().await?;
        if self.begun.is_some() {
            let mark = self.table.import_mark(&self.name).await?;
            self.settle(mark.unwrap_or(0));
        }
        Ok(())
    }

    /// Forgets what waits as far as the attempt that was begun has made it durable, given the mark in the table.
    fn settle(&mut self, mark: i64) {
        if let Some((attempt, chunks)) = self.begun.take()
            && attempt == mark
        {
            let durable = self.waiting.drain(..chunks);
            self.rows -= durable.map(|chunk| chunk.len()).sum::<usize>();
            self.durable = attempt;
            self.state = None;
            self.keep_only(attempt);
        }
    }

    /// Removes the states of all other attempts. What cannot be removed is removed the next time.
    fn keep_only(&self, attempt: i64) {
        let kept = file_name(attempt);
        for entry in fs::read_dir(&self.states).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name != LOCK && name != *kept {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The name of a state's file.
fn file_name(attempt: i64) -> String {
    format!("{attempt:020}")
}

/// A cloud's record was seen by its observer; anything else is said to come from the import.
fn row<'a>(record: &'a FlowRecord, import: &'a str) -> Row<'a> {
    let observer = record.cloud.as_ref().map(|cloud| &*cloud.context.observer).filter(|observer| !observer.is_empty());
    Row { sensor: observer.unwrap_or(import), record }
}

fn is_name(name: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(ok) && !name.starts_with(['_', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_directory_and_nothing_else() {
        for name in ["azure", "account.container-1_x", &"x".repeat(100)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/b", "_x", "a b", "ä", &"x".repeat(101)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
