//! Flow records read back from the table, in the order of time.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use deltalake::arrow::compute::cast;
use deltalake::arrow::datatypes::{DataType, Int32Type, Int64Type};
use deltalake::arrow::error::ArrowError;
use deltalake::datafusion::functions_aggregate::expr_fn::count;
use deltalake::datafusion::logical_expr::{Expr, ident};
use deltalake::datafusion::prelude::{DataFrame, lit};
use deltalake::datafusion::scalar::ScalarValue;
use futures::StreamExt;
use futures::future::BoxFuture;
use spanwatch_common::cloud::{Cloud, CloudAccess, CloudContext, FIELDS};
use spanwatch_common::element::{Access, Element, Shown};
use spanwatch_common::encapsulation::Encapsulations;
use spanwatch_common::flow::{FlowRecord, FlowState, LAYER2};
use spanwatch_common::time::Timestamp;

use super::error::StoreError;
use super::query::{RAW, tables};
use super::schema::{COLUMNS, Column, Content, DATE, HOUR, Kept, SENSOR, TIME, as_micros};
use super::settings::StoreSettings;

/// Hours that are read at once while they have few records: each reading costs some milliseconds.
const GROUP_HOURS_MAX: usize = 48;
/// Records of such hours together.
const GROUP_ROWS_MAX: i64 = 200_000;

/// Sets of names that are shared between records at once. Beyond it sharing begins anew: memory only.
const CONTEXTS_MAX: usize = 16_384;

/// Hands every record whose earliest time lies in `span` to `take`, with who saw it; in the order of time, and among equals of
/// sensor and flow. Reads the table as of now; others may go on writing.
///
/// `filter` is a condition in SQL over the columns of `flows_raw`, such as `sensor = 'plant1' AND sourceIPAddress = ip_bytes('10.0.0.1')`.
/// Some hours are sorted at once, in `store.query_memory_bytes_max` of memory, beyond that on disk.
///
/// # Errors
/// [`StoreError::Empty`] when nothing was ever stored; [`StoreError::Query`] when `filter` is no condition, or an hour does not fit
/// `store.query_spill_bytes_max`; [`StoreError::Output`] with what `take` returned.
pub fn records<'a>(
    settings: &'a StoreSettings,
    span: Range<Timestamp>,
    filter: Option<&'a str>,
    take: &'a mut (dyn FnMut(&str, FlowRecord) -> io::Result<()> + Send),
) -> BoxFuture<'a, Result<(), StoreError>> {
    Box::pin(read(settings, span, filter, take))
}

async fn read(
    settings: &StoreSettings,
    span: Range<Timestamp>,
    filter: Option<&str>,
    take: &mut (dyn FnMut(&str, FlowRecord) -> io::Result<()> + Send),
) -> Result<(), StoreError> {
    let context = tables(settings).await?;
    let at = |time: Timestamp| lit(ScalarValue::TimestampMicrosecond(Some(as_micros(time)), Some("UTC".into())));
    // Microseconds are rounded down: of the first and the last one, which records belong is seen when they are there.
    let within = ident(TIME).gt_eq(at(span.start)).and(ident(TIME).lt_eq(at(span.end)));
    let mut wanted = context.table(RAW).await?.filter(within)?;
    if let Some(filter) = filter {
        let condition = wanted.parse_sql_expr(filter)?;
        wanted = wanted.filter(condition)?;
    }
    let mut reader = Reader::default();
    let mut take = |sensor: &str, record: FlowRecord| if span.contains(&record.first()) { take(sensor, record) } else { Ok(()) };
    for hours in hours(wanted.clone()).await? {
        let some = wanted.clone().filter(hours)?;
        let order = [TIME, SENSOR, "flowId", "flowStartNanoseconds"].map(|column| ident(column).sort(true, true));
        let mut columns = vec![ident(SENSOR)];
        columns.extend(COLUMNS.iter().map(|column| ident(&column.name)));
        let mut stream = some.sort(order.to_vec())?.select(columns)?.execute_stream().await?;
        while let Some(batch) = stream.next().await {
            reader.read(&batch?, &mut take)?;
        }
    }
    Ok(())
}

/// Conditions that divide `wanted` into some hours at a time, in the order of time.
async fn hours(wanted: DataFrame) -> Result<Vec<Expr>, StoreError> {
    let columns = [DATE, HOUR];
    let hours = wanted.aggregate(columns.map(ident).to_vec(), vec![count(lit(1)).alias("rows")])?;
    let hours = hours.sort(columns.map(|column| ident(column).sort(true, true)).to_vec())?.collect().await?;
    let mut groups: Vec<Expr> = Vec::new();
    let (mut hours_in_group, mut rows_in_group) = (0, 0);
    for batch in &hours {
        let rows = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let value = |column: usize| ScalarValue::try_from_array(batch.column(column), row);
            let hour = ident(DATE).eq(lit(value(0)?)).and(ident(HOUR).eq(lit(value(1)?)));
            (hours_in_group, rows_in_group) = (hours_in_group + 1, rows_in_group + rows.value(row));
            match groups.last_mut() {
                Some(group) if hours_in_group <= GROUP_HOURS_MAX && rows_in_group <= GROUP_ROWS_MAX => {
                    *group = group.clone().or(hour)
                }
                _ => {
                    groups.push(hour);
                    (hours_in_group, rows_in_group) = (1, rows.value(row));
                }
            }
        }
    }
    Ok(groups)
}

/// Makes records of columns: the sensor's name, then [`COLUMNS`].
#[derive(Default)]
pub(crate) struct Reader {
    /// Names that were read before.
    contexts: HashMap<CloudContext, Arc<CloudContext>>,
}

impl Reader {
    pub(crate) fn read(
        &mut self,
        batch: &RecordBatch,
        take: &mut dyn FnMut(&str, FlowRecord) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let trouble = |error: ArrowError| StoreError::Query(error.to_string());
        let mut records: Vec<FlowRecord> = vec![FlowRecord { protocol: LAYER2, ..FlowRecord::default() }; batch.num_rows()];
        let mut clouds: Vec<Option<(Cloud, CloudContext)>> = vec![None; batch.num_rows()];
        for (column, array) in COLUMNS.iter().zip(batch.columns().iter().skip(1)) {
            let array = cast(array, &column.kept.in_file()).map_err(trouble)?;
            match column.content {
                Content::Element(element) => read_element(element, column.kept, &array, &mut records),
                Content::Cloud(field) => read_cloud(field.access, column, &array, &mut clouds),
            }
        }
        let sensors = cast(batch.column(0), &DataType::Utf8).map_err(trouble)?;
        let sensors = sensors.as_string::<i32>();
        for (row, (mut record, cloud)) in records.into_iter().zip(clouds).enumerate() {
            record.cloud = cloud.map(|(cloud, context)| Box::new(Cloud { context: self.shared(context), ..cloud }));
            let sensor = if sensors.is_null(row) { "" } else { sensors.value(row) };
            take(sensor, record)?;
        }
        Ok(())
    }

    fn shared(&mut self, context: CloudContext) -> Arc<CloudContext> {
        if self.contexts.len() >= CONTEXTS_MAX {
            self.contexts.clear();
        }
        if let Some(known) = self.contexts.get(&context) {
            return Arc::clone(known);
        }
        let shared = Arc::new(context.clone());
        self.contexts.insert(context, Arc::clone(&shared));
        shared
    }
}

fn read_element(element: &Element, kept: Kept, array: &ArrayRef, records: &mut [FlowRecord]) {
    let present = (0..array.len()).filter(|&row| !array.is_null(row));
    match (kept, element.access) {
        (Kept::Word, Access::Word(_, set)) if element.shown == Shown::Encapsulations => {
            let words = array.as_string::<i32>();
            for row in present {
                let kinds = Encapsulations::from_names(words.value(row)).unwrap_or_default();
                set(&mut records[row], u64::from(kinds.0));
            }
        }
        (Kept::Word, Access::Word(_, set)) => {
            let words = array.as_string::<i32>();
            for row in present {
                let state = FlowState::ALL.into_iter().find(|state| state.name() == words.value(row)).unwrap_or_default();
                set(&mut records[row], state as u64);
            }
        }
        (Kept::Int, Access::Word(_, set)) => {
            let numbers = array.as_primitive::<Int32Type>();
            present.for_each(|row| set(&mut records[row], i64::from(numbers.value(row)).cast_unsigned()));
        }
        (_, Access::Word(_, set)) => {
            let numbers = array.as_primitive::<Int64Type>();
            present.for_each(|row| set(&mut records[row], numbers.value(row).cast_unsigned()));
        }
        (_, Access::Wide(_, set)) => {
            let bytes = array.as_binary::<i32>();
            for row in present {
                if let Ok(bytes) = bytes.value(row).try_into() {
                    set(&mut records[row], u128::from_be_bytes(bytes));
                }
            }
        }
    }
}

/// The first of the columns, `flowOrigin`, says which rows came from a cloud; the others add to those.
fn read_cloud(access: CloudAccess, column: &Column, array: &ArrayRef, clouds: &mut [Option<(Cloud, CloudContext)>]) {
    let is_first = column.name == FIELDS[0].name;
    let present = (0..array.len()).filter(|&row| !array.is_null(row));
    match access {
        CloudAccess::Number(_, set) => {
            let numbers = array.as_primitive::<Int64Type>();
            for row in present {
                if let Some((cloud, _)) = &mut clouds[row] {
                    set(cloud, numbers.value(row));
                }
            }
        }
        CloudAccess::Word(_, set) => {
            let words = array.as_string::<i32>();
            for row in present {
                if is_first {
                    clouds[row] = Some(Default::default());
                }
                if let Some((cloud, _)) = &mut clouds[row] {
                    set(cloud, words.value(row));
                }
            }
        }
        CloudAccess::Name(_, set) => {
            let words = array.as_string::<i32>();
            // The same name mostly stands in row after row.
            let mut last: Arc<str> = Arc::default();
            for row in present {
                if &*last != words.value(row) {
                    last = Arc::from(words.value(row));
                }
                if let Some((_, context)) = &mut clouds[row] {
                    set(context, Arc::clone(&last));
                }
            }
        }
    }
}
