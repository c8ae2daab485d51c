//! Flow records as columns.
//!
//! One column per element of [`ELEMENTS`], named as in the CSV output, holding NULL where the element does not apply to the
//! record. Delta Lake has no unsigned types, so 64-bit words are kept in two's complement; everything narrower fits a wider
//! signed type. Then one column per field of a cloud's flow log ([`FIELDS`]), all of them NULL for what a sensor saw; `flowOrigin`
//! is NULL for a sensor too, so that files written before these columns existed say the same as those written since. Around them stand:
//!
//! | column | type | |
//! | --- | --- | --- |
//! | `time` | timestamp, microseconds, UTC | first packet of the record, either way; files are sorted by it and skipped by it |
//! | `sensor` | string | who saw it: a sensor's name, or the `observer` of a cloud's record |
//! | `date`, `hour` | date, integer | partition: the UTC hour of `time` |
//!
//! Three columns say what a row stands for; NULL in all of them, as in most rows, is one flow of which every packet was looked at:
//!
//! | column | |
//! | --- | --- |
//! | `sourcePrefixLength`, `destinationPrefixLength` | leading bits of the addresses that count, of either family, in a row that stands for many flows because the sensor's table was full; ports that differed are 0 |
//! | `samplingPopulation` | one packet in so many was looked at; counters are of those, so multiply for an estimate |
//! | `flowOneSided` | 1 where only one direction could be seen and its other half was not found: a direction without packets says nothing |
//!
//! An address that a cloud's log leaves blank (Traffic Analytics folds public ones away) is NULL. A sensor's `::` is an address.
//!
//! A table that an earlier version made lacks the columns of later elements and fields. Its next writer adds them; its files stay as
//! they are and read as NULL there.

use std::sync::{Arc, LazyLock};

use deltalake::arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondArray,
};
use deltalake::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use deltalake::arrow::error::ArrowError;
use deltalake::kernel::{DataType as DeltaType, StructField};
use deltalake::parquet::arrow::ArrowWriter;
use deltalake::parquet::basic::{Compression, Encoding, ZstdLevel};
use deltalake::parquet::errors::ParquetError;
use deltalake::parquet::file::properties::WriterProperties;
use deltalake::parquet::schema::types::ColumnPath;
use spanwatch_common::cloud::{Cloud, CloudAccess, CloudField, FIELDS};
use spanwatch_common::element::{Access, ELEMENTS, Element, Shown};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::text::csv_header;
use spanwatch_common::time::Timestamp;

/// What a table has that is ours, whichever version made it. All other columns may be missing.
pub(crate) const ALWAYS: [&str; 7] = [TIME, SENSOR, DATE, HOUR, "flowId", "flowState", "flowStartNanoseconds"];
/// Column of the earliest time in the record.
pub(crate) const TIME: &str = "time";
/// Column of the sensor's name.
pub(crate) const SENSOR: &str = "sensor";
/// Partition column: UTC date.
pub(crate) const DATE: &str = "date";
/// Partition column: UTC hour of the day.
pub(crate) const HOUR: &str = "hour";

/// Rows in a row group: what a query skips or reads as one.
const ROW_GROUP_ROWS: usize = 262_144;

/// How a column is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Int32: what has at most 16 bits.
    Int,
    /// Int64: counters, identifiers, MAC addresses (the lower 48 bits), times in nanoseconds since the epoch.
    Long,
    /// 16 bytes, as [`spanwatch_common::net::Address`].
    Bytes,
    /// A word: the state, the encapsulations, what a cloud's log says in names.
    Word,
}

impl Kept {
    fn in_table(self) -> DeltaType {
        match self {
            Self::Int => DeltaType::INTEGER,
            Self::Long => DeltaType::LONG,
            Self::Bytes => DeltaType::BINARY,
            Self::Word => DeltaType::STRING,
        }
    }

    pub(crate) fn in_file(self) -> DataType {
        match self {
            Self::Int => DataType::Int32,
            Self::Long => DataType::Int64,
            Self::Bytes => DataType::Binary,
            Self::Word => DataType::Utf8,
        }
    }
}

/// What a column holds.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// A field of the record.
    Element(&'static Element),
    /// A field of what only a cloud's log says.
    Cloud(&'static CloudField),
}

/// A field and the column it is kept in.
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) content: Content,
    pub(crate) kept: Kept,
}

impl Column {
    /// How the element is shown; none for a cloud's field.
    pub(crate) const fn shown(&self) -> Option<Shown> {
        match self.content {
            Content::Element(element) => Some(element.shown),
            Content::Cloud(_) => None,
        }
    }

    fn field(&self) -> StructField {
        StructField::new(&self.name, self.kept.in_table(), true)
    }
}

/// A column per element, in the order of [`ELEMENTS`], then a column per field of a cloud's log, in the order of [`FIELDS`].
pub(crate) static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
    let header = csv_header();
    let elements = ELEMENTS.iter().zip(header.trim_end().split(','));
    let elements =
        elements.map(|(element, name)| Column { name: name.to_owned(), content: Content::Element(element), kept: kept(element) });
    let fields = FIELDS.iter().map(|field| Column {
        name: field.name.to_owned(),
        content: Content::Cloud(field),
        kept: if matches!(field.access, CloudAccess::Number(..)) { Kept::Long } else { Kept::Word },
    });
    elements.chain(fields).collect()
});

/// As wide as the field's type needs. A field whose type grows from 16 bits to more would need a column of another name.
fn kept(element: &Element) -> Kept {
    match (element.shown, element.access) {
        (Shown::State | Shown::Encapsulations, _) => Kept::Word,
        (_, Access::Wide(..)) => Kept::Bytes,
        (_, Access::Word(get, set)) => {
            let mut largest = FlowRecord::default();
            set(&mut largest, u64::MAX);
            if get(&largest) <= u64::from(u16::MAX) { Kept::Int } else { Kept::Long }
        }
    }
}

/// The columns of the table, partition columns last.
pub(crate) fn table_fields() -> Vec<StructField> {
    let mut fields = vec![StructField::new(TIME, DeltaType::TIMESTAMP, true), StructField::new(SENSOR, DeltaType::STRING, true)];
    fields.extend(COLUMNS.iter().map(Column::field));
    fields.push(StructField::new(DATE, DeltaType::DATE, true));
    fields.push(StructField::new(HOUR, DeltaType::INTEGER, true));
    fields
}

/// The columns for which `lacks` is true, because an earlier version made the table.
pub(crate) fn later_fields(lacks: impl Fn(&str) -> bool) -> Vec<StructField> {
    COLUMNS.iter().filter(|column| lacks(&column.name)).map(Column::field).collect()
}

/// The columns of a file: those of the table without the partition columns.
static FILE_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields = vec![
        Field::new(TIME, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new(SENSOR, DataType::Utf8, true),
    ];
    fields.extend(COLUMNS.iter().map(|column| Field::new(&column.name, column.kept.in_file(), true)));
    Arc::new(Schema::new(fields))
});

/// A record and who saw it.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) sensor: &'a str,
    pub(crate) record: &'a FlowRecord,
}

impl Row<'_> {
    pub(crate) fn time(&self) -> Timestamp {
        self.record.first()
    }
}

/// `rows` as columns of [`FILE_SCHEMA`].
pub(crate) fn to_columns(rows: &[Row<'_>]) -> Result<RecordBatch, ArrowError> {
    let time = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| as_micros(row.time()))).with_timezone("UTC");
    let mut sensors = StringBuilder::with_capacity(rows.len(), rows.len() * 16);
    rows.iter().for_each(|row| sensors.append_value(row.sensor));
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(time), Arc::new(sensors.finish())];
    arrays.extend(COLUMNS.iter().map(|column| to_array(column, rows)));
    RecordBatch::try_new(FILE_SCHEMA.clone(), arrays)
}

fn to_array(column: &Column, rows: &[Row<'_>]) -> ArrayRef {
    match column.content {
        Content::Element(element) => element_to_array(element, column.kept, rows),
        Content::Cloud(field) => cloud_to_array(field, rows),
    }
}

fn element_to_array(element: &Element, kept: Kept, rows: &[Row<'_>]) -> ArrayRef {
    let applying = || rows.iter().map(|row| element.applies_to(row.record).then_some(row.record));
    match (kept, element.access) {
        (Kept::Word, _) => {
            let mut out = StringBuilder::with_capacity(rows.len(), rows.len() * 8);
            match element.shown {
                Shown::Encapsulations => {
                    applying().for_each(|record| out.append_option(record.map(|record| record.encapsulations.to_string())));
                }
                _ => applying().for_each(|record| out.append_option(record.map(|record| record.state.name()))),
            }
            Arc::new(out.finish())
        }
        (Kept::Int, Access::Word(get, _)) => {
            let mut out = Int32Builder::with_capacity(rows.len());
            applying().for_each(|record| out.append_option(record.map(|record| get(record) as i32)));
            Arc::new(out.finish())
        }
        (_, Access::Word(get, _)) => {
            let mut out = Int64Builder::with_capacity(rows.len());
            applying().for_each(|record| out.append_option(record.map(|record| get(record).cast_signed())));
            Arc::new(out.finish())
        }
        (_, Access::Wide(get, _)) => {
            let mut out = BinaryBuilder::with_capacity(rows.len(), rows.len() * 16);
            let is_blank = |record: &FlowRecord| record.cloud.is_some() && get(record) == 0;
            let told = applying().map(|record| record.filter(|record| !is_blank(record)));
            told.for_each(|record| out.append_option(record.map(|record| get(record).to_be_bytes())));
            Arc::new(out.finish())
        }
    }
}

fn cloud_to_array(field: &CloudField, rows: &[Row<'_>]) -> ArrayRef {
    let clouds = || rows.iter().map(|row| row.record.cloud.as_deref());
    let words = |word: &dyn Fn(&'_ Cloud) -> &'_ str| -> ArrayRef {
        let mut out = StringBuilder::with_capacity(rows.len(), 0);
        clouds().for_each(|cloud| out.append_option(cloud.map(word).filter(|word| !word.is_empty())));
        Arc::new(out.finish())
    };
    match field.access {
        CloudAccess::Name(get, _) => words(&|cloud| &**get(&cloud.context)),
        CloudAccess::Word(get, _) => words(&|cloud| get(cloud)),
        CloudAccess::Number(get, _) => {
            let mut out = Int64Builder::with_capacity(rows.len());
            clouds().for_each(|cloud| out.append_option(cloud.map(get).filter(|&number| number != 0)));
            Arc::new(out.finish())
        }
    }
}

/// Microseconds since the epoch, rounded down.
pub(crate) const fn as_micros(time: Timestamp) -> i64 {
    time.as_nanos().div_euclid(1000)
}

/// A Parquet file in the making, in memory.
pub(crate) struct FileBuilder {
    writer: ArrowWriter<Vec<u8>>,
    rows: usize,
    /// Least and greatest `time`, in microseconds.
    span: Option<(i64, i64)>,
}

/// A finished Parquet file.
pub(crate) struct FileBytes {
    pub(crate) bytes: Vec<u8>,
    /// What Delta's log says about the file (JSON), so that queries can pass it over.
    pub(crate) stats: String,
}

impl FileBuilder {
    pub(crate) fn new() -> Result<Self, ParquetError> {
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS));
        // Times and identifiers hardly repeat: a dictionary would only be thrown away.
        let times = COLUMNS.iter().filter(|column| column.shown() == Some(Shown::Time)).map(|column| &*column.name);
        for name in times.chain([TIME]) {
            let path = ColumnPath::from(name);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        let properties = properties.set_column_dictionary_enabled(ColumnPath::from("flowId"), false).build();
        let writer = ArrowWriter::try_new(Vec::new(), FILE_SCHEMA.clone(), Some(properties))?;
        Ok(Self { writer, rows: 0, span: None })
    }

    /// Appends `batch`, whose columns are those of [`FILE_SCHEMA`] and whose rows are in the order of time.
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        self.writer.write(batch)?;
        self.rows += batch.num_rows();
        let times = batch.column(0).as_any().downcast_ref::<TimestampMicrosecondArray>();
        for &time in times.into_iter().flat_map(|times| times.values()) {
            let (least, greatest) = self.span.unwrap_or((time, time));
            self.span = Some((least.min(time), greatest.max(time)));
        }
        Ok(())
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn finish(self) -> Result<FileBytes, ParquetError> {
        let (rows, span) = (self.rows, self.span);
        let bytes = self.writer.into_inner()?;
        let stats = match span {
            None => serde_json::json!({ "numRecords": rows }),
            Some((least, greatest)) => serde_json::json!({
                "numRecords": rows,
                "minValues": { TIME: in_words(least) },
                "maxValues": { TIME: in_words(greatest) },
                "nullCount": { TIME: 0 },
            }),
        };
        Ok(FileBytes { bytes, stats: stats.to_string() })
    }
}

/// A time as Delta's statistics spell it: `2026-11-21T10:00:00.000000Z`.
fn in_words(micros: i64) -> String {
    let nanos = Timestamp::from_nanos(micros.saturating_mul(1000)).to_string();
    format!("{}Z", nanos.get(..nanos.len() - 4).unwrap_or(&nanos))
}

/// The columns of a file, for whoever reads one back.
pub(crate) fn file_schema() -> SchemaRef {
    FILE_SCHEMA.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_field_has_a_column_of_its_own_name() {
        let names: HashSet<&str> = COLUMNS.iter().map(|column| &*column.name).collect();
        assert_eq!(names.len(), ELEMENTS.len() + FIELDS.len());
        for name in
            ["flowStartNanoseconds", "reverseFlowStartNanoseconds", "sourceIPAddress", "destinationTransportPort", "flowId"]
        {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn every_column_is_wide_enough_for_the_largest_value_of_its_field() {
        for column in COLUMNS.iter() {
            let Content::Element(element) = column.content else { continue };
            let mut record = FlowRecord::default();
            if let Access::Word(get, set) = element.access {
                set(&mut record, u64::MAX);
                let largest = get(&record);
                assert!(column.kept != Kept::Int || i32::try_from(largest).is_ok(), "{} does not fit {largest}", column.name);
            }
        }
    }

    #[test]
    fn a_column_keeps_the_type_that_it_has_in_tables_of_earlier_versions() {
        let of = |kept| -> Vec<&str> {
            let elements = COLUMNS.iter().filter(|column| column.shown().is_some() && column.kept == kept);
            elements.map(|column| &*column.name).collect()
        };
        assert_eq!(of(Kept::Word), ["flowState", "encapsulations"]);
        assert_eq!(
            of(Kept::Long).join(" "),
            concat!(
                "flowStartNanoseconds flowEndNanoseconds flowId observationPointId ingressInterface sourceMacAddress ",
                "destinationMacAddress packetDeltaCount octetDeltaCount layer2OctetDeltaCount reversePacketDeltaCount ",
                "reverseOctetDeltaCount reverseLayer2OctetDeltaCount reverseFlowStartNanoseconds reverseFlowEndNanoseconds ",
                "layer2SegmentId mplsTopLabelStackSection layer2Instance tcpHandshakeRttNanoseconds tcpHandshakeClientRttNanoseconds ",
                "tcpRetransmissionDeltaCount reverseTcpRetransmissionDeltaCount tcpOutOfOrderDeltaCount reverseTcpOutOfOrderDeltaCount ",
                "tcpZeroWindowDeltaCount reverseTcpZeroWindowDeltaCount tcpMissedOctetDeltaCount reverseTcpMissedOctetDeltaCount ",
                "samplingPopulation",
            )
        );
        assert_eq!(of(Kept::Bytes).len(), 6, "two ends of the flow, of the tunnel, of ARP");
    }

    #[test]
    fn statistics_spell_times_in_microseconds() {
        assert_eq!(in_words(1_400_547_199_329_569), "2014-05-20T00:53:19.329569Z");
    }
}
