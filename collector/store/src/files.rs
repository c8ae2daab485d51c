//! Records as Parquet files, one for each hour, that wait to become part of the table.

use deltalake::kernel::Add;
use deltalake::parquet::errors::ParquetError;

use super::error::StoreError;
use super::schema::{self, FileBuilder, FileBytes, Row};
use super::table::{Hour, Table};

/// Rows that become columns at once.
const CHUNK_ROWS: usize = 65_536;

/// One Parquet file per hour, rows sorted by time. Records of hours beyond the first `hours_max` share the last file.
pub(crate) fn build_files(mut rows: Vec<Row<'_>>, hours_max: usize) -> Result<Vec<(Hour, FileBytes)>, ParquetError> {
    rows.sort_by_key(Row::time);
    let mut files = Vec::new();
    let mut rest = &*rows;
    while let Some(first) = rest.first() {
        let hour = Hour::of(first.time());
        let len = match files.len() + 1 == hours_max {
            true => rest.len(),
            false => rest.partition_point(|row| Hour::of(row.time()) == hour),
        };
        let (these, others) = rest.split_at(len);
        let mut builder = FileBuilder::new()?;
        for chunk in these.chunks(CHUNK_ROWS) {
            builder.push(&schema::to_columns(chunk)?)?;
        }
        files.push((hour, builder.finish()?));
        rest = others;
    }
    Ok(files)
}

/// Writes what `build` makes, durably; all of it or nothing. The files become part of the table with a commit of the result.
pub(crate) async fn write_files(
    table: &Table,
    build: impl FnOnce() -> Result<Vec<(Hour, FileBytes)>, ParquetError> + Send + 'static,
) -> Result<Vec<Add>, StoreError> {
    let failed = |error: &(dyn std::error::Error + 'static)| StoreError::table("encode", &table.directory, error);
    let built = tokio::task::spawn_blocking(build).await;
    let files = built.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    let mut adds = Vec::with_capacity(files.len());
    for (hour, file) in files {
        match table.put(hour, file, wall_clock_millis(), true).await {
            Ok(add) => adds.push(add),
            Err(error) => {
                table.discard(&adds).await;
                return Err(error);
            }
        }
    }
    Ok(adds)
}

/// When a file was made, for the log.
#[expect(clippy::disallowed_methods, reason = "the table's log wants the wall clock; no record depends on it")]
fn wall_clock_millis() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
