//! Keeping the table small and quick: old hours dropped, small files merged, unneeded files removed, the log kept short.
//!
//! Upkeep is a second writer of the table, beside the [`Store`](super::Store): the log lets only one of two commits have a
//! number, and the other one looks again. Run one at a time. It drops and merges in the log first; files stay until no query
//! that began before can still be reading them. Each round begins with removing those: on a full disk that alone succeeds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use deltalake::checkpoints::{cleanup_expired_logs_for, create_checkpoint};
use deltalake::datafusion::logical_expr::ident;
use deltalake::datafusion::object_store::ObjectStoreExt;
use deltalake::datafusion::prelude::ParquetReadOptions;
use deltalake::kernel::{Action, Remove};
use deltalake::protocol::DeltaOperation;
use deltalake::{DeltaTable, Path};
use futures::TryStreamExt;
use futures::future::BoxFuture;
use spanwatch_common::time::Timestamp;

use super::durable::STAGED;
use super::error::StoreError;
use super::query::session;
use super::schema::{self, FileBuilder};
use super::settings::StoreSettings;
use super::table::{Hour, Table};

/// Small files of an hour that are merged even while more are coming.
const SMALL_FILES_MAX: usize = 8;
/// After its end, an hour rests so long before its last small files are merged.
const HOUR_REST: Duration = Duration::from_secs(600);
/// Commits after which a checkpoint sums up the log.
const CHECKPOINT_COMMITS: u64 = 100;
/// A file that is in no commit is a commit's that is under way, or one that a crash left behind: after this long, the latter.
const ORPHAN_GRACE: Duration = Duration::from_secs(3600);

const LOG: &str = "_delta_log/";

/// What one round of upkeep did, and what it left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Files that left the table because of age or total size.
    pub dropped_files: usize,
    /// Bytes in them.
    pub dropped_bytes: u64,
    /// Small files that were merged.
    pub merged_files: usize,
    /// Files that they became.
    pub merged_into: usize,
    /// Files removed from the disk that no query can still need.
    pub removed_files: usize,
    /// Whether the log was summed up in a checkpoint.
    pub checkpoint: bool,
    /// Entries of the log that were removed.
    pub removed_log_entries: usize,
    /// Files in the table.
    pub files: usize,
    /// Bytes in them.
    pub bytes: u64,
}

/// Does one round of upkeep on the table in `settings.directory`, as of the wall-clock time `now`.
///
/// # Errors
/// As for [`Store::commit`](super::Store::commit); what was done before is done, and the next round goes on.
pub fn upkeep(settings: &StoreSettings, now: Timestamp) -> BoxFuture<'_, Result<Upkeep, StoreError>> {
    Box::pin(one_round(settings, now))
}

async fn one_round(settings: &StoreSettings, now: Timestamp) -> Result<Upkeep, StoreError> {
    let mut table = Table::open(&settings.directory).await?;
    let mut done = Upkeep { removed_files: sweep(&table, settings, now).await?, ..Upkeep::default() };
    drop_old(&mut table, settings, now, &mut done).await?;
    for group in to_merge(live_files(&table), settings, now) {
        merge(&mut table, settings, now, &group).await?;
        done.merged_files += group.len();
        done.merged_into += 1;
    }
    done.checkpoint = checkpoint(&table).await?;
    done.removed_log_entries = trim_log(&table, settings, now).await?;
    let files = live_files(&table);
    done.files = files.len();
    done.bytes = files.iter().map(|file| file.size).sum();
    Ok(done)
}

/// A file of the table.
#[derive(Clone)]
struct Live {
    hour: Hour,
    size: u64,
    rows: usize,
    made_millis: i64,
    remove: Remove,
}

fn live_files(table: &Table) -> Vec<Live> {
    let files = table.state.log_data();
    let live = files.iter().filter_map(|file| {
        Some(Live {
            hour: Hour::from_values(&file.partition_values_map())?,
            size: file.size().try_into().unwrap_or(0),
            rows: file.num_records()?,
            made_millis: file.modification_time(),
            remove: file.remove_action(true),
        })
    });
    live.collect()
}

/// The removal of `file` as of `now`.
fn removal(file: &Live, now: Timestamp, data_change: bool) -> Action {
    Action::Remove(Remove { deletion_timestamp: Some(now.as_millis()), data_change, ..file.remove.clone() })
}

async fn drop_old(table: &mut Table, settings: &StoreSettings, now: Timestamp, done: &mut Upkeep) -> Result<(), StoreError> {
    let old = expired(live_files(table), settings, now);
    if old.is_empty() {
        return Ok(());
    }
    let actions = old.iter().map(|file| removal(file, now, true)).collect();
    table.commit(actions, Vec::new(), DeltaOperation::Delete { predicate: None }).await?;
    done.dropped_files = old.len();
    done.dropped_bytes = old.iter().map(|file| file.size).sum();
    Ok(())
}

/// The files of hours that are too old, and of the oldest ones while all together are too large. The newest hour stays.
fn expired(files: Vec<Live>, settings: &StoreSettings, now: Timestamp) -> Vec<Live> {
    let mut hours: BTreeMap<Hour, u64> = BTreeMap::new();
    files.iter().for_each(|file| *hours.entry(file.hour).or_default() += file.size);
    let mut total: u64 = hours.values().sum();
    let age_max = Duration::from_secs(u64::from(settings.retention_days) * 86_400);
    let newest = hours.keys().next_back().copied();
    let mut old = HashSet::new();
    for (&hour, &size) in &hours {
        let too_old = settings.retention_days > 0 && now.since(hour.end()) > age_max;
        let too_much = settings.retention_bytes_max > 0 && total > settings.retention_bytes_max && Some(hour) != newest;
        if too_old || too_much {
            old.insert(hour);
            total -= size;
        }
    }
    files.into_iter().filter(|file| old.contains(&file.hour)).collect()
}

/// Groups of small files, each of one hour, that are worth merging.
fn to_merge(files: Vec<Live>, settings: &StoreSettings, now: Timestamp) -> Vec<Vec<Live>> {
    let mut hours: BTreeMap<Hour, Vec<Live>> = BTreeMap::new();
    for file in files.into_iter().filter(|file| file.size < settings.file_bytes_max / 2) {
        hours.entry(file.hour).or_default().push(file);
    }
    let mut groups = Vec::new();
    for (hour, mut files) in hours {
        let over = now.since(hour.end()) > HOUR_REST;
        if files.len() < if over { 2 } else { SMALL_FILES_MAX } {
            continue;
        }
        files.sort_by_key(|file| file.made_millis);
        let mut group: Vec<Live> = Vec::new();
        let mut size = 0;
        for file in files {
            if size + file.size > settings.file_bytes_max {
                groups.push(std::mem::take(&mut group));
                size = 0;
            }
            size += file.size;
            group.push(file);
        }
        groups.push(group);
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// Replaces the files of `group` by one with the same rows, sorted by time.
async fn merge(table: &mut Table, settings: &StoreSettings, now: Timestamp, group: &[Live]) -> Result<(), StoreError> {
    let Some(hour) = group.first().map(|file| file.hour) else { return Ok(()) };
    let root = table.log.root_url().to_string();
    let paths: Vec<String> = group.iter().map(|file| format!("{}/{}", root.trim_end_matches('/'), file.remove.path)).collect();
    let schema = schema::file_schema();
    let options = ParquetReadOptions::default().schema(&schema);
    let rows = session(settings)?.read_parquet(paths, options).await?.sort(vec![ident(schema::TIME).sort(true, false)])?;
    let mut stream = rows.execute_stream().await?;

    let failed =
        |directory: &std::path::Path, error: &(dyn std::error::Error + 'static)| StoreError::table("merge", directory, error);
    let mut builder = FileBuilder::new().map_err(|error| failed(&table.directory, &error))?;
    while let Some(batch) = stream.try_next().await? {
        builder.push(&batch).map_err(|error| failed(&table.directory, &error))?;
    }
    let expected: usize = group.iter().map(|file| file.rows).sum();
    if builder.rows() != expected {
        let message = format!("the small files of {} hold {} rows, the log says {expected}", hour.directory(), builder.rows());
        return Err(StoreError::Table { what: "merge", path: table.directory.clone(), message });
    }
    let file = builder.finish().map_err(|error| failed(&table.directory, &error))?;
    let add = table.put(hour, file, now.as_millis(), false).await?;
    let mut actions: Vec<Action> = group.iter().map(|file| removal(file, now, false)).collect();
    actions.push(Action::Add(add));
    let target_size = i64::try_from(settings.file_bytes_max).unwrap_or(i64::MAX);
    table.commit(actions, Vec::new(), DeltaOperation::Optimize { predicate: None, target_size }).await
}

/// Sums up the log when it has grown long since the last time.
async fn checkpoint(table: &Table) -> Result<bool, StoreError> {
    let last = match table.objects().get(&Path::from("_delta_log/_last_checkpoint")).await {
        Ok(hint) => hint.bytes().await.ok(),
        Err(_) => None,
    };
    let last = last.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let last = last.and_then(|hint| hint.get("version")?.as_u64()).unwrap_or(0);
    if table.state.version() < last + CHECKPOINT_COMMITS {
        return Ok(false);
    }
    let failed = |error: deltalake::DeltaTableError| StoreError::table("sum up the log of", &table.directory, &error);
    let mut current = DeltaTable::new(table.log.clone());
    current.load().await.map_err(failed)?;
    create_checkpoint(&current, None).await.map_err(failed)?;
    Ok(true)
}

/// Removes entries of the log that a checkpoint has summed up and that no query can still be reading.
async fn trim_log(table: &Table, settings: &StoreSettings, now: Timestamp) -> Result<usize, StoreError> {
    let cutoff = now.minus(Duration::from_secs(settings.reader_grace_secs)).as_millis();
    let removed = cleanup_expired_logs_for(table.state.version(), table.log.as_ref(), cutoff, None).await;
    removed.map_err(|error| StoreError::table("trim the log of", &table.directory, &error))
}

/// Removes files that left the table long enough ago, and those that never became part of it.
async fn sweep(table: &Table, settings: &StoreSettings, now: Timestamp) -> Result<usize, StoreError> {
    let failed = |error: deltalake::DeltaTableError| StoreError::table("tidy", &table.directory, &error);
    let unlisted = |error: deltalake::ObjectStoreError| StoreError::table("tidy", &table.directory, &error);
    // The list before the look at the log: what is committed in between is then not on the list.
    let objects = table.objects();
    let listed: Vec<_> = objects.list(None).try_collect().await.map_err(unlisted)?;
    let mut current = DeltaTable::new(table.log.clone());
    current.load().await.map_err(failed)?;
    let state = current.snapshot().map_err(failed)?;
    let live: HashSet<String> = state.log_data().iter().map(|file| file.path().into_owned()).collect();
    let tombstones: Vec<_> = state.all_tombstones(table.log.as_ref()).try_collect().await.map_err(failed)?;
    let left: HashMap<String, i64> =
        tombstones.iter().filter_map(|file| Some((file.path().into_owned(), file.deletion_timestamp()?))).collect();

    let reader_grace = Duration::from_secs(settings.reader_grace_secs);
    let (left_before, made_before) = (now.minus(reader_grace).as_millis(), now.minus(reader_grace.max(ORPHAN_GRACE)).as_millis());
    let mut removed = 0;
    for object in listed {
        let path = object.location.as_ref();
        let ours = path.ends_with(STAGED) || (path.ends_with(".parquet") && !path.starts_with(LOG));
        let unneeded = match left.get(path) {
            Some(&millis) => millis < left_before,
            None => object.last_modified.timestamp_millis() < made_before,
        };
        if ours && unneeded && !live.contains(path) {
            objects.delete(&object.location).await.map_err(unlisted)?;
            removed += 1;
            remove_empty_directories(table, path);
        }
    }
    Ok(removed)
}

/// Removes the directories of an hour and of a day once nothing is in them; the system refuses while something is.
fn remove_empty_directories(table: &Table, path: &str) {
    for directory in std::path::Path::new(path).ancestors().skip(1).take_while(|directory| !directory.as_os_str().is_empty()) {
        if directory.starts_with("_delta_log") || std::fs::remove_dir(table.directory.join(directory)).is_err() {
            return;
        }
    }
}
