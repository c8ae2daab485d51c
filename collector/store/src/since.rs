//! What was added to the table after a certain version: for whoever has seen everything before.

use std::io;

use deltalake::Path;
use deltalake::datafusion::logical_expr::ident;
use deltalake::datafusion::object_store::ObjectStoreExt;
use deltalake::datafusion::prelude::ParquetReadOptions;
use futures::StreamExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use spanwatch_common::flow::FlowRecord;

use super::error::StoreError;
use super::query::session;
use super::read::Reader;
use super::schema::{self, COLUMNS, SENSOR, TIME};
use super::settings::StoreSettings;
use super::table::{IMPORT, SEQUENCE, Table};

/// Hands every record that was committed after `version` to `take`, with who saw it: commit after commit, within one by hour and
/// time. What sensors sent counts, and imports whose name `import` wants. Merging files and dropping old ones adds nothing.
///
/// # Errors
/// [`StoreError::Table`] when the table never had that version, or what came after it has been tidied away, which upkeep does
/// `store.reader_grace_secs` later; [`StoreError::Output`] with what `take` returned.
pub fn added_since<'a>(
    settings: &'a StoreSettings,
    version: u64,
    import: &'a (dyn Fn(&str) -> bool + Sync),
    take: &'a mut (dyn FnMut(&str, FlowRecord) -> io::Result<()> + Send),
) -> BoxFuture<'a, Result<(), StoreError>> {
    Box::pin(async move {
        let table = Table::open(&settings.directory).await?;
        let newest = table.state.version();
        if version > newest {
            let message = format!("version {version} was asked for, but {newest} is the newest: the table was made anew");
            return Err(StoreError::Table { what: "go through", path: table.directory.clone(), message });
        }
        let mut reader = Reader::default();
        for number in version + 1..=newest {
            for file in added_by(&table, number, import).await? {
                read_file(&table, settings, &file, &mut reader, take).await?;
            }
        }
        Ok(())
    })
}

/// One line of the log, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    add: Option<Added>,
    txn: Option<Moved>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Added {
    path: String,
    data_change: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Moved {
    app_id: String,
}

/// The files of new records in commit `number`, in the order of the hours.
async fn added_by(table: &Table, number: u64, import: &(dyn Fn(&str) -> bool + Sync)) -> Result<Vec<String>, StoreError> {
    let failed = |error: &(dyn std::error::Error + 'static)| StoreError::table("read the log of", &table.directory, error);
    let entry =
        table.objects().get(&Path::from(format!("_delta_log/{number:020}.json"))).await.map_err(|error| failed(&error))?;
    let entry = entry.bytes().await.map_err(|error| failed(&error))?;
    let lines = serde_json::Deserializer::from_slice(&entry).into_iter::<Line>();
    let lines: Vec<Line> = lines.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    let moves = |app_id: &str| app_id.starts_with(SEQUENCE) || app_id.strip_prefix(IMPORT).is_some_and(import);
    if !lines.iter().filter_map(|line| line.txn.as_ref()).any(|txn| moves(&txn.app_id)) {
        return Ok(Vec::new());
    }
    let mut files: Vec<String> =
        lines.into_iter().filter_map(|line| line.add).filter(|add| add.data_change).map(|add| add.path).collect();
    files.sort_unstable();
    Ok(files)
}

async fn read_file(
    table: &Table,
    settings: &StoreSettings,
    file: &str,
    reader: &mut Reader,
    take: &mut (dyn FnMut(&str, FlowRecord) -> io::Result<()> + Send),
) -> Result<(), StoreError> {
    let root = table.log.root_url().to_string();
    let schema = schema::file_schema();
    let options = ParquetReadOptions::default().schema(&schema);
    let rows = session(settings)?.read_parquet(vec![format!("{}/{file}", root.trim_end_matches('/'))], options).await?;
    let mut columns = vec![ident(SENSOR)];
    columns.extend(COLUMNS.iter().map(|column| ident(&column.name)));
    let mut stream = rows.sort(vec![ident(TIME).sort(true, false)])?.select(columns)?.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        reader.read(&batch?, take)?;
    }
    Ok(())
}
