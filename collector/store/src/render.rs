//! Results as text, written as they come: a table for people, CSV and JSON lines for programs.

use std::io::{self, Write};

use deltalake::arrow::array::RecordBatch;
use deltalake::arrow::csv::WriterBuilder as CsvBuilder;
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::json::WriterBuilder as JsonBuilder;
use deltalake::arrow::json::writer::LineDelimited;
use deltalake::arrow::util::display::{ArrayFormatter, FormatOptions};

use super::error::StoreError;

/// How a result is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns under a header, and the number of rows. Columns are as wide as the first rows need.
    #[default]
    Table,
    /// One JSON object per line; NULL is `null`.
    Json,
    /// A header and a line per row; NULL is empty.
    Csv,
}

/// Writes a result batch by batch.
pub(crate) struct Renderer {
    format: Format,
    schema: SchemaRef,
    /// Of the columns of a table, in characters; known with the first rows.
    widths: Option<Vec<usize>>,
    rows: usize,
}

impl Renderer {
    pub(crate) const fn new(format: Format, schema: SchemaRef) -> Self {
        Self { format, schema, widths: None, rows: 0 }
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        match self.format {
            Format::Table => self.write_table(batch, out)?,
            Format::Json => {
                let mut writer = JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut *out);
                writer.write(batch).and_then(|()| writer.finish()).map_err(trouble)?;
            }
            Format::Csv => {
                let mut writer = CsvBuilder::new().with_header(self.rows == 0).build(&mut *out);
                writer.write(batch).map_err(trouble)?;
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Writes what a result without rows still has, and flushes.
    pub(crate) fn finish(mut self, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
        match self.format {
            Format::Table => {
                if self.rows == 0 {
                    self.write_table(&RecordBatch::new_empty(self.schema.clone()), out)?;
                }
                writeln!(out, "({} {})", self.rows, if self.rows == 1 { "row" } else { "rows" })?;
            }
            Format::Csv if self.rows == 0 => {
                let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
                writeln!(out, "{}", names.join(","))?;
            }
            Format::Csv | Format::Json => {}
        }
        Ok(out.flush()?)
    }

    fn write_table(&mut self, batch: &RecordBatch, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
        let options = FormatOptions::default();
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(trouble)?;
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let rows: Vec<Vec<String>> =
            (0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect()).collect();

        let first = self.widths.is_none();
        let widths = self.widths.get_or_insert_with(|| {
            let widest = |(column, name): (usize, &&str)| {
                let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
                cells.max().unwrap_or(0).max(name.chars().count())
            };
            names.iter().enumerate().map(widest).collect()
        });
        let right: Vec<bool> = self.schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
        if first {
            write_line(out, names.iter().copied(), widths, &right)?;
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            write_line(out, rules.iter().map(String::as_str), widths, &right)?;
        }
        for row in &rows {
            write_line(out, row.iter().map(String::as_str), widths, &right)?;
        }
        Ok(())
    }
}

fn write_line<'a>(
    out: &mut (dyn Write + Send),
    cells: impl Iterator<Item = &'a str>,
    widths: &[usize],
    right: &[bool],
) -> io::Result<()> {
    let mut line = String::new();
    for ((cell, &width), &right) in cells.zip(widths).zip(right) {
        if !line.is_empty() {
            line.push_str("  ");
        }
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        match right {
            true => line.extend([padding.as_str(), cell]),
            false => line.extend([cell, padding.as_str()]),
        }
    }
    writeln!(out, "{}", line.trim_end())
}

fn trouble(error: ArrowError) -> StoreError {
    match error {
        ArrowError::IoError(_, source) => StoreError::Output(source),
        other => StoreError::Query(other.to_string()),
    }
}
