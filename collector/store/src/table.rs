//! The Delta table: opening, committing, and the marks that a commit carries.
//!
//! A commit is one file in `_delta_log`, created under a name that must not exist yet. It names the new Parquet files and,
//! as `txn` actions, how far each sensor has come; so rows and marks appear together or not at all.
//!
//! ```text
//! txn { appId: "spanwatch/boot/NAME",     version: boot     }   the newest start of the sensor; u64 in two's complement
//! txn { appId: "spanwatch/sequence/NAME", version: sequence }   the last batch of that start that the table holds
//! txn { appId: "spanwatch/import/NAME",   version: attempt }    the last commit of an import (see [`super::imports`])
//! ```
//! Two entries per sensor for ever, however often it starts; one per import.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use deltalake::datafusion::object_store::{ObjectStoreExt, PutMode, PutOptions};
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, StructField, Transaction};
use deltalake::logstore::LogStoreRef;
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError, ObjectStore, Path};
use spanwatch_common::time::Timestamp;
use time::OffsetDateTime;

use super::durable::DurableStore;
use super::error::StoreError;
use super::schema::{self, FileBytes};

/// What the marks of sensors and of imports begin with.
pub(crate) const SEQUENCE: &str = "spanwatch/sequence/";
pub(crate) const IMPORT: &str = "spanwatch/import/";

/// Where creating and changing the table is locked, for moments.
const CHANGE_LOCK: &str = ".change.lock";

/// How far a sensor has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Name of the sensor.
    pub sensor: String,
    /// Which start of it.
    pub boot: u64,
    /// Every batch up to and including this one is durable.
    pub up_to: u64,
}

/// An hour of UTC, counted from the epoch: what the table is partitioned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Hour(i64);

const NANOS_PER_HOUR: i64 = 3_600_000_000_000;

impl Hour {
    pub(crate) const fn of(time: Timestamp) -> Self {
        Self(time.as_nanos().div_euclid(NANOS_PER_HOUR))
    }

    /// When the hour is over.
    pub(crate) const fn end(self) -> Timestamp {
        Timestamp::from_nanos((self.0 + 1).saturating_mul(NANOS_PER_HOUR))
    }

    /// `2026-11-21` and the hour of the day.
    fn in_words(self) -> (String, i64) {
        let day = OffsetDateTime::from_unix_timestamp(self.0.saturating_mul(3600)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        (format!("{:04}-{:02}-{:02}", day.year(), u8::from(day.month()), day.day()), self.0.rem_euclid(24))
    }

    /// The directory of the hour within the table.
    pub(crate) fn directory(self) -> String {
        let (date, hour) = self.in_words();
        format!("{}={date}/{}={hour}", schema::DATE, schema::HOUR)
    }

    fn values(self) -> HashMap<String, Option<String>> {
        let (date, hour) = self.in_words();
        HashMap::from([(schema::DATE.to_owned(), Some(date)), (schema::HOUR.to_owned(), Some(hour.to_string()))])
    }

    /// From the values of the partition columns; none when they are not ours.
    pub(crate) fn from_values(values: &HashMap<String, Option<String>>) -> Option<Self> {
        let date = values.get(schema::DATE)?.as_deref()?;
        let hour: i64 = values.get(schema::HOUR)?.as_deref()?.parse().ok()?;
        let mut parts = date.splitn(3, '-');
        let year = parts.next()?.parse().ok()?;
        let month = time::Month::try_from(parts.next()?.parse::<u8>().ok()?).ok()?;
        let day = time::Date::from_calendar_date(year, month, parts.next()?.parse().ok()?).ok()?;
        Some(Self(day.midnight().assume_utc().unix_timestamp().div_euclid(3600) + hour))
    }
}

/// The table in one directory, as of the last look at it.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) directory: PathBuf,
    pub(crate) log: LogStoreRef,
    pub(crate) state: DeltaTableState,
}

impl Table {
    /// Opens the table in `directory`, which is absolute and exists; creates it when there is none.
    /// One that an earlier version made gets the columns it lacks: old files read as NULL there, and nothing is rewritten.
    pub(crate) async fn open_or_create(directory: &FilePath) -> Result<Self, StoreError> {
        // Collector and imports may come at the same time: one of them creates or changes the table, the others find it done.
        let _changing = change_lock(directory).await?;
        let table = locate(directory)?;
        let failed = |error: DeltaTableError| StoreError::table("open", directory, &error);
        if !table.verify_deltatable_existence().await.map_err(failed)? {
            CreateBuilder::new()
                .with_log_store(table.log_store())
                .with_table_name("flows")
                .with_columns(schema::table_fields())
                .with_partition_columns([schema::DATE, schema::HOUR])
                .with_configuration([("delta.dataSkippingStatsColumns", Some(schema::TIME))])
                .await
                .map_err(|error| StoreError::table("create", directory, &error))?;
        }
        let table = Self::load(directory, table).await?;
        let known = table.state.schema();
        let later = schema::later_fields(|column| known.field(column).is_none());
        if later.is_empty() {
            return Ok(table);
        }
        tracing::info!("the flow records in {} get {} further columns", directory.display(), later.len());
        let current = locate(directory)?;
        Self::load(directory, add_columns(current, later).await.map_err(|error| StoreError::table("extend", directory, &error))?)
            .await
    }

    /// Opens the table in `directory` for reading.
    pub(crate) async fn open(directory: &FilePath) -> Result<Self, StoreError> {
        let directory = directory.canonicalize().map_err(|_| StoreError::Empty(directory.to_owned()))?;
        let table = locate(&directory)?;
        let exists = table.verify_deltatable_existence().await;
        if !exists.map_err(|error| StoreError::table("open", &directory, &error))? {
            return Err(StoreError::Empty(directory));
        }
        Self::load(&directory, table).await
    }

    async fn load(directory: &FilePath, mut table: DeltaTable) -> Result<Self, StoreError> {
        let failed = |error: DeltaTableError| StoreError::table("open", directory, &error);
        table.load().await.map_err(failed)?;
        let state = table.snapshot().map_err(failed)?.clone();
        let known = state.schema();
        for column in schema::ALWAYS {
            if known.field(column).is_none() {
                return Err(StoreError::Foreign { path: directory.to_owned(), column: column.to_owned() });
            }
        }
        Ok(Self { directory: directory.to_owned(), log: table.log_store(), state })
    }

    /// Takes in what others have committed.
    pub(crate) async fn refresh(&mut self) -> Result<(), StoreError> {
        let updated = self.state.update(self.log.as_ref(), None).await;
        updated.map_err(|error| StoreError::table("read", &self.directory, &error))
    }

    /// How far `sensor` has come: its newest start, and the last batch of that.
    pub(crate) async fn mark(&self, sensor: &str) -> Result<Option<(u64, u64)>, StoreError> {
        let failed = |error: DeltaTableError| StoreError::table("read", &self.directory, &error);
        let boot = self.state.transaction_version(self.log.as_ref(), boot_id(sensor)).await.map_err(failed)?;
        let sequence = self.state.transaction_version(self.log.as_ref(), sequence_id(sensor)).await.map_err(failed)?;
        Ok(boot.zip(sequence).map(|(boot, sequence)| (boot.cast_unsigned(), sequence.cast_unsigned())))
    }

    /// The last commit of the import `name` that is durable.
    pub(crate) async fn import_mark(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let version = self.state.transaction_version(self.log.as_ref(), import_id(name)).await;
        version.map_err(|error| StoreError::table("read", &self.directory, &error))
    }

    /// Writes a Parquet file durably. It becomes part of the table with the commit that carries the action returned.
    pub(crate) async fn put(&self, hour: Hour, file: FileBytes, now_millis: i64, data_change: bool) -> Result<Add, StoreError> {
        let path = format!("{}/part-{}.zstd.parquet", hour.directory(), uuid::Uuid::new_v4());
        let size = i64::try_from(file.bytes.len()).unwrap_or(i64::MAX);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.objects().put_opts(&Path::from(&*path), file.bytes.into(), options).await;
        put.map_err(|error| StoreError::table("write", &self.directory, &error))?;
        Ok(Add {
            path,
            partition_values: hour.values(),
            size,
            modification_time: now_millis,
            data_change,
            stats: Some(file.stats),
            ..Add::default()
        })
    }

    /// Removes files that did not become part of the table. What cannot be removed now, upkeep removes later.
    pub(crate) async fn discard(&self, files: &[Add]) {
        for file in files {
            let _ = self.objects().delete(&Path::from(&*file.path)).await;
        }
    }

    /// Commits `actions` and `transactions` as one, on top of the table as of the last look at it: when somebody else has moved one
    /// of the same marks since, it fails; other commits it lets pass and comes after them. When it returns without error the commit is durable; after an error, whether it is
    /// must be asked of the table.
    pub(crate) async fn commit(
        &mut self,
        actions: Vec<Action>,
        transactions: Vec<Transaction>,
        operation: DeltaOperation,
    ) -> Result<(), StoreError> {
        let failed = |error: DeltaTableError| StoreError::table("commit", &self.directory, &error);
        let properties = plain_commit().with_application_transactions(transactions);
        let commit = CommitBuilder::from(properties).with_actions(actions).build(Some(&self.state), self.log.clone(), operation);
        let committed = commit.into_prepared_commit_future().await.map_err(failed)?.await.map_err(failed)?;
        match committed.await {
            Ok(finalized) => self.state = finalized.snapshot(),
            Err(error) => {
                tracing::warn!(%error, "the commit is durable, but the table could not be read again; trying once more");
                self.refresh().await?;
            }
        }
        Ok(())
    }

    /// The files of the table's directory.
    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        self.log.object_store(None)
    }
}

/// What a commit of new rows says about itself.
pub(crate) fn append() -> DeltaOperation {
    DeltaOperation::Write {
        mode: SaveMode::Append,
        partition_by: Some(vec![schema::DATE.to_owned(), schema::HOUR.to_owned()]),
        predicate: None,
    }
}

/// Marks as a commit carries them.
pub(crate) fn transactions(marks: &[Mark]) -> Vec<Transaction> {
    let of = |mark: &Mark| {
        [
            Transaction::new(boot_id(&mark.sensor), mark.boot.cast_signed()),
            Transaction::new(sequence_id(&mark.sensor), mark.up_to.cast_signed()),
        ]
    };
    marks.iter().flat_map(of).collect()
}

/// The mark of an import's commit.
pub(crate) fn import_transaction(name: &str, attempt: i64) -> Transaction {
    Transaction::new(import_id(name), attempt)
}

/// Checkpoints and tidying are upkeep's: here their failure would look like that of the commit.
fn plain_commit() -> CommitProperties {
    CommitProperties::default().with_create_checkpoint(false).with_cleanup_expired_logs(Some(false))
}

async fn add_columns(mut table: DeltaTable, fields: Vec<StructField>) -> Result<DeltaTable, DeltaTableError> {
    table.load().await?;
    table.add_columns().with_fields(fields).with_commit_properties(plain_commit()).await
}

/// Waits until nobody else creates or changes the table; the file returned holds the lock.
async fn change_lock(directory: &FilePath) -> Result<File, StoreError> {
    let path = directory.join(CHANGE_LOCK);
    let locked = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            let file = File::options().create(true).append(true).open(path)?;
            file.lock().map(|()| file)
        }
    });
    let trouble = |source| StoreError::Directory { what: "lock", path: path.clone(), source };
    locked.await.map_err(|error| trouble(error.into()))?.map_err(trouble)
}

fn locate(directory: &FilePath) -> Result<DeltaTable, StoreError> {
    let failed = |error: DeltaTableError| StoreError::table("open", directory, &error);
    let url = deltalake::table::builder::parse_table_uri(directory.to_string_lossy()).map_err(failed)?;
    let builder = DeltaTableBuilder::from_url(url.clone()).map_err(failed)?;
    builder.with_storage_backend(Arc::new(DurableStore::new()), url).build().map_err(failed)
}

fn boot_id(sensor: &str) -> String {
    format!("spanwatch/boot/{sensor}")
}

fn sequence_id(sensor: &str) -> String {
    format!("{SEQUENCE}{sensor}")
}

fn import_id(name: &str) -> String {
    format!("{IMPORT}{name}")
}

#[cfg(test)]
mod tests {
    use deltalake::parquet::arrow::ArrowWriter;
    use spanwatch_common::cloud::FIELDS;
    use spanwatch_common::encapsulation::{Encapsulation, Encapsulations};
    use spanwatch_common::flow::{FlowRecord, LAYER2};
    use spanwatch_common::wire::Batch;

    use super::*;
    use crate::schema::{COLUMNS, Row, to_columns};
    use crate::{Format, Store, StoreSettings, query, records, upkeep};

    #[test]
    fn an_hour_survives_its_partition_values() {
        for secs in [0, 1_763_722_800, 1_763_722_799, -1] {
            let hour = Hour::of(Timestamp::from_secs(secs));
            assert_eq!(Hour::from_values(&hour.values()), Some(hour), "{secs}");
        }
        assert_eq!(Hour::of(Timestamp::from_secs(1_763_722_800)).directory(), "date=2025-11-21/hour=11");
    }

    fn record(number: u64) -> FlowRecord {
        let start = [Timestamp::from_secs(1_763_719_200); 2];
        FlowRecord { flow_id: number, start, ethernet_type: 0x88cc, protocol: LAYER2, ..FlowRecord::default() }
    }

    /// The columns that the first release had; the second added those of clouds.
    fn is_of_the_first_release(name: &str) -> bool {
        [schema::TIME, schema::SENSOR, schema::DATE, schema::HOUR].contains(&name)
            || COLUMNS.iter().take(46).any(|column| column.name == name)
    }

    fn is_of_the_second_release(name: &str) -> bool {
        is_of_the_first_release(name) || FIELDS.iter().any(|field| field.name == name)
    }

    fn is_of_the_third_release(name: &str) -> bool {
        is_of_the_second_release(name) || COLUMNS.iter().take(69).any(|column| column.name == name)
    }

    /// A table with one row, as an earlier version made it: neither the table nor its file has other columns than `is_old` ones.
    async fn make_old_table(directory: &FilePath, is_old: fn(&str) -> bool) {
        let table = locate(directory).unwrap();
        CreateBuilder::new()
            .with_log_store(table.log_store())
            .with_columns(schema::table_fields().into_iter().filter(|field| is_old(field.name())))
            .with_partition_columns([schema::DATE, schema::HOUR])
            .await
            .unwrap();
        let rows = to_columns(&[Row { sensor: "a", record: &record(1) }]).unwrap();
        let kept: Vec<usize> = (0..rows.num_columns()).filter(|&column| is_old(rows.schema().field(column).name())).collect();
        let rows = rows.project(&kept).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        let file = FileBytes { bytes: writer.into_inner().unwrap(), stats: r#"{"numRecords":1}"#.to_owned() };
        let mut table = Table::load(directory, table).await.unwrap();
        let add = table.put(Hour::of(record(1).first()), file, 0, true).await.unwrap();
        table.commit(vec![Action::Add(add)], Vec::new(), append()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_of_an_earlier_version_is_read_as_it_is_and_gets_its_columns_from_the_next_writer() {
        for (is_old, columns) in [
            (is_of_the_first_release as fn(&str) -> bool, 50),
            (is_of_the_second_release, 50 + FIELDS.len()),
            (is_of_the_third_release, 73 + FIELDS.len()),
        ] {
            let home = tempfile::tempdir().unwrap();
            let directory = home.path().canonicalize().unwrap();
            make_old_table(&directory, is_old).await;
            assert_eq!(Table::open(&directory).await.unwrap().state.schema().fields().len(), columns);
            let settings = StoreSettings { directory: directory.clone(), retention_days: 0, ..StoreSettings::default() };
            let told = async || {
                let mut out = Vec::new();
                let sql = "SELECT f.flowId, f.flowOrigin, r.ruleName, f.encapsulations, f.tcpMissedOctetDeltaCount AS missed, \
                           f.layer2Protocol FROM flows f JOIN flows_raw r ON unsigned(r.flowId) = f.flowId ORDER BY 1";
                query(&settings, sql, Format::Csv, &mut out).await.unwrap();
                String::from_utf8(out).unwrap().split_once('\n').unwrap().1.to_owned()
            };
            let restored = async || {
                let mut found = Vec::new();
                let span = Timestamp::from_secs(0)..Timestamp::from_secs(1 << 32);
                let mut take = |_: &str, record: FlowRecord| {
                    found.push(record);
                    Ok(())
                };
                records(&settings, span, None, &mut take).await.unwrap();
                found
            };
            assert_eq!(told().await, "1,Sensor,,,,LLDP\n");
            assert_eq!(restored().await, [record(1)]);

            let mut store = Store::open(settings.clone()).await.unwrap();
            let new = FlowRecord {
                encapsulations: Encapsulations::NONE.with(Encapsulation::Vlan).with(Encapsulation::Erspan2),
                tcp_missed_octets: [u64::MAX, 1 << 40],
                tunnel: ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
                answered: true,
                prefix_lengths: [24, 32],
                sampling_population: 64,
                one_sided: true,
                ..record(2)
            };
            let batch = Batch { sensor: "a".to_owned(), boot: 1, sequence: 1, records: vec![new.clone()], ..Batch::default() };
            store.push(Arc::new(batch)).await.unwrap();
            store.commit().await.unwrap();
            let both = "1,Sensor,,,,LLDP\n2,Sensor,,vlan+erspan2,-1,LLDP\n";
            assert_eq!(told().await, both);
            let merged = upkeep(&settings, Timestamp::from_secs(1_763_819_200)).await.unwrap();
            assert_eq!((merged.merged_files, merged.files), (2, 1));
            assert_eq!(told().await, both);
            assert_eq!(restored().await, [record(1), new]);
            let version = Table::open(&directory).await.unwrap().state.version();
            drop(store);
            Store::open(settings.clone()).await.unwrap();
            assert_eq!(Table::open(&directory).await.unwrap().state.version(), version, "the columns are added once");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_of_somebody_else_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().canonicalize().unwrap();
        let strange = |field: &StructField| field.name() != "flowState";
        CreateBuilder::new()
            .with_log_store(locate(&directory).unwrap().log_store())
            .with_columns(schema::table_fields().into_iter().filter(strange))
            .with_partition_columns([schema::DATE, schema::HOUR])
            .await
            .unwrap();
        let settings = StoreSettings { directory, ..StoreSettings::default() };
        let refused = Store::open(settings).await.err().unwrap();
        assert!(matches!(&refused, StoreError::Foreign { column, .. } if column == "flowState"), "{refused}");
    }
}
