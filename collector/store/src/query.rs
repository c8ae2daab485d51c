//! SQL over the flow records.
//!
//! Two tables: `flows_raw` is what is stored (see [`super::schema`]), `flows` the same for people:
//!
//! * addresses as text, MAC addresses as `aa:bb:cc:dd:ee:ff`, times as timestamps, `flowId` without a sign, `flowOrigin` of what
//!   a sensor saw as `Sensor`
//! * one column more, `layer2Protocol`: the name of a conversation that has no IP header (`GOOSE`, `ARP`, `PROFINET DCP`), else NULL
//!
//! and functions for the rest: `ip_text(bytes)`, `ip_bytes(text)`, `mac_text(number)`, `unsigned(number)`,
//! `layer2_name(ethernetType, llcServiceAccessPoints, layer2Instance)`. `encapsulations` holds words (`vlan+erspan2`), for
//! `encapsulations LIKE '%vxlan%'`. Column names are
//! those of IPFIX, in its spelling: upper and lower case matter. A query reads the table as of its start; a collector may go
//! on writing meanwhile. Conditions on `time`, `date` and `hour` leave out whole files, other comparisons parts of files.
//!
//! Besides, there are KQL's functions, so that its hunts can be restated. They are those of [`spanwatch_kql`], where each says what
//! it does; a series is a list:
//!
//! * `bin(value, width)`, `ipv4_is_private(address)`, `ipv4_is_in_range(address, prefix)`
//! * the aggregates `dcount(x)`, `percentile(x, percent)`, `stdev(x)`, `variance(x)` and
//!   `make_series(x, time, from, to, step [, aggregate [, default]])`, which gives a series
//! * of series: `series_fit_line`, `series_outliers`, `series_periods_detect`, `series_periods_validate`, `series_decompose`,
//!   `series_decompose_anomalies`, with arguments as in KQL; results of several parts are structures: `f(…)['part']`

use std::io::Write;
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::arrow::datatypes::{DataType, TimeUnit};
use deltalake::datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use deltalake::datafusion::execution::memory_pool::FairSpillPool;
use deltalake::datafusion::execution::runtime_env::RuntimeEnvBuilder;
use deltalake::datafusion::logical_expr::{Expr, cast, ident};
use deltalake::datafusion::prelude::{SQLOptions, SessionConfig, SessionContext, coalesce, lit, when};
use deltalake::datafusion::scalar::ScalarValue;
use futures::StreamExt;
use futures::future::BoxFuture;
use spanwatch_common::cloud::Origin;
use spanwatch_common::element::Shown;

use super::error::StoreError;
use super::functions::{self, ip_text, layer2_name, mac_text, unsigned};
use super::render::{Format, Renderer};
use super::schema::{COLUMNS, DATE, HOUR, SENSOR, TIME};
use super::settings::StoreSettings;
use super::table::Table;

/// The stored records as they are.
pub(crate) const RAW: &str = "flows_raw";
/// The stored records as people read them.
const VIEW: &str = "flows";
/// What a conversation without an IP header is called: a column of [`VIEW`] alone.
const LAYER2_PROTOCOL: &str = "layer2Protocol";

/// Answers `sql` from the records in `settings.directory` and writes the result to `out` as it comes.
///
/// # Errors
/// [`StoreError::Empty`] when nothing was ever stored; [`StoreError::Query`] when the text is no query, would change
/// something, names what does not exist, or needs more than it may; [`StoreError::Output`].
pub fn query<'a>(
    settings: &'a StoreSettings,
    sql: &'a str,
    format: Format,
    out: &'a mut (dyn Write + Send),
) -> BoxFuture<'a, Result<(), StoreError>> {
    Box::pin(answer(settings, sql, format, out))
}

async fn answer(settings: &StoreSettings, sql: &str, format: Format, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
    let context = tables(settings).await?;
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let mut stream = context.sql_with_options(sql, read_only).await?.execute_stream().await?;
    let mut renderer = Renderer::new(format, stream.schema());
    while let Some(batch) = stream.next().await {
        renderer.write(&batch?, out)?;
    }
    renderer.finish(out)
}

/// An engine that knows both tables as they are now.
pub(crate) async fn tables(settings: &StoreSettings) -> Result<SessionContext, StoreError> {
    let table = Table::open(&settings.directory).await?;
    let context = session(settings)?;
    let mut readable = DeltaTable::new(table.log.clone());
    readable.load().await?;
    let stored = context.read_table(readable.table_provider().with_session(Arc::new(context.state())).await?)?;
    // A table of an earlier version gets its further columns from the next writer; until then a reader makes do.
    let lacks = |name: &str| stored.schema().field_with_unqualified_name(name).is_err();
    let mut columns: Vec<Expr> = stored.schema().fields().iter().map(|field| ident(field.name())).collect();
    columns.extend(COLUMNS.iter().filter(|column| lacks(&column.name)).map(|column| {
        let nothing = cast(lit(ScalarValue::Null), column.kept.in_file());
        nothing.alias(&column.name)
    }));
    context.register_table(RAW, stored.select(columns)?.into_view())?;
    let view = context.table(RAW).await?.select(view_columns()?)?.into_view();
    context.register_table(VIEW, view)?;
    Ok(context)
}

/// An engine that keeps to its memory, then goes on on disk, then gives up.
pub(crate) fn session(settings: &StoreSettings) -> Result<SessionContext, StoreError> {
    let memory = usize::try_from(settings.query_memory_bytes_max).unwrap_or(usize::MAX);
    let mode = match settings.query_spill_directory.as_os_str().is_empty() {
        true => DiskManagerMode::OsTmpDirectory,
        false => DiskManagerMode::Directories(vec![settings.query_spill_directory.clone()]),
    };
    let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(settings.query_spill_bytes_max);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    let mut config = SessionConfig::new().with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.enable_ident_normalization = false;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.schema_force_view_types = false;
    let context = SessionContext::new_with_config_rt(config, runtime);
    functions::register(&context, &settings.kql_compat);
    Ok(context)
}

fn view_columns() -> Result<Vec<Expr>, StoreError> {
    let mut columns = vec![ident(TIME), ident(SENSOR)];
    columns.extend(COLUMNS.iter().map(|column| {
        let stored = ident(&column.name);
        let instant = |stored| cast(stored, DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())));
        let shown = match (column.shown(), &*column.name) {
            (Some(Shown::Address), _) => ip_text().call(vec![stored]),
            (Some(Shown::Mac), _) => mac_text().call(vec![stored]),
            (Some(Shown::Time), _) | (None, "ingestTimeNanoseconds") => instant(stored),
            (Some(Shown::Number), "flowId") => unsigned().call(vec![stored]),
            (None, "flowOrigin") => coalesce(vec![stored, lit(Origin::Sensor.name())]),
            _ => return stored,
        };
        shown.alias(&column.name)
    }));
    let name = layer2_name().call(["ethernetType", "llcServiceAccessPoints", "layer2Instance"].map(ident).to_vec());
    columns.push(when(ident("protocolIdentifier").is_null(), name).end()?.alias(LAYER2_PROTOCOL));
    columns.extend([ident(DATE), ident(HOUR)]);
    Ok(columns)
}
