//! Rows and columns as text: a table for people, CSV and JSON lines for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Map, Value};
use spanwatch_common::time::Timestamp;

use crate::alert::terminal::{printable, to_the_second};

/// How to print a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SheetFormat {
    /// For people: aligned, octets in units.
    Table,
    /// A header and a line per row; octets as numbers, times in RFC 3339.
    Csv,
    /// One JSON object per line; octets as numbers, times in RFC 3339.
    Json,
}

/// What stands in one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    /// Words.
    Text(String),
    /// A number.
    Count(u64),
    /// A number of octets.
    Octets(u64),
    /// A number with two decimals.
    Ratio(f64),
    /// A time.
    Time(Timestamp),
}

/// Rows under named columns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sheet {
    /// One name for each column, lower case, words joined by `_`.
    pub(super) columns: Vec<&'static str>,
    /// As many cells in each as there are columns.
    pub(super) rows: Vec<Vec<Cell>>,
}

impl Sheet {
    /// Writes the sheet as `format` says.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, format: SheetFormat, out: &mut impl Write) -> io::Result<()> {
        match format {
            SheetFormat::Table => self.write_table(out),
            SheetFormat::Csv => self.write_csv(out),
            SheetFormat::Json => self.write_json(out),
        }
    }

    fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(Cell::for_people).collect()).collect();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(column, name)| {
                let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
                cells.chain([name.len()]).max().unwrap_or(0)
            })
            .collect();
        let is_number: Vec<bool> = (0..self.columns.len())
            .map(|column| {
                self.rows
                    .first()
                    .and_then(|row| row.get(column))
                    .is_some_and(|cell| matches!(cell, Cell::Count(_) | Cell::Octets(_) | Cell::Ratio(_)))
            })
            .collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for ((cell, &width), &right) in cells.zip(&widths).zip(&is_number) {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                text.extend(if right { [&*padding, cell, "  "] } else { [cell, &*padding, "  "] });
            }
            writeln!(out, "{}", text.trim_end())
        };
        let headings: Vec<String> = self.columns.iter().map(|name| name.replace('_', " ")).collect();
        line(&mut headings.iter().map(String::as_str))?;
        rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))?;
        if rows.is_empty() { writeln!(out, "(nothing)") } else { Ok(()) }
    }

    fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.columns.join(","))?;
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|cell| quoted(cell.for_programs())).collect();
            writeln!(out, "{}", cells.join(","))?;
        }
        Ok(())
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        for row in &self.rows {
            let cells = self.columns.iter().zip(row).map(|(name, cell)| ((*name).to_owned(), cell.value()));
            writeln!(out, "{}", Value::Object(cells.collect::<Map<_, _>>()))?;
        }
        Ok(())
    }
}

impl Cell {
    fn for_people(&self) -> String {
        match self {
            Self::Text(text) => printable(text),
            Self::Octets(octets) => in_units(*octets),
            Self::Time(at) if at.is_some() => to_the_second(*at),
            Self::Time(_) => String::new(),
            Self::Count(_) | Self::Ratio(_) => self.for_programs(),
        }
    }

    fn for_programs(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(number) | Self::Octets(number) => number.to_string(),
            Self::Ratio(ratio) => format!("{ratio:.2}"),
            Self::Time(at) if at.is_some() => at.to_string(),
            Self::Time(_) => String::new(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(&**text),
            Self::Count(number) | Self::Octets(number) => Value::from(*number),
            Self::Ratio(ratio) => Value::from(*ratio),
            Self::Time(at) if at.is_some() => Value::from(at.to_string()),
            Self::Time(_) => Value::Null,
        }
    }
}

/// A number of octets in decimal units, to three digits or so.
pub(super) fn in_units(octets: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(size, _)| octets >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", octets as f64 / size as f64),
        None => format!("{octets} B"),
    }
}

/// RFC 4180: a cell with a comma, a quote or a line end in it is quoted.
fn quoted(cell: String) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_a_table_csv_or_json() {
        let row = vec![
            Cell::Text("a, \"b\"".to_owned()),
            Cell::Octets(1_500_000),
            Cell::Ratio(5.0),
            Cell::Time(Timestamp::from_secs(0).plus(std::time::Duration::from_secs(1))),
        ];
        let sheet = Sheet { columns: vec!["name", "octets_in", "ratio", "at"], rows: vec![row] };
        let text = |format| {
            let mut out = Vec::new();
            sheet.write(format, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(SheetFormat::Table), "name    octets in  ratio  at\na, \"b\"     1.5 MB   5.00  1970-01-01 00:00:01\n");
        assert_eq!(
            text(SheetFormat::Csv),
            "name,octets_in,ratio,at\n\"a, \"\"b\"\"\",1500000,5.00,1970-01-01T00:00:01.000000000Z\n"
        );
        assert_eq!(
            text(SheetFormat::Json),
            "{\"at\":\"1970-01-01T00:00:01.000000000Z\",\"name\":\"a, \\\"b\\\"\",\"octets_in\":1500000,\"ratio\":5.0}\n"
        );
    }
}
