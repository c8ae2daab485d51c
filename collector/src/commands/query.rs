//! `spanwatch-collector query`: SQL over the stored records.

use std::io::{self, BufWriter, ErrorKind, Write};

use clap::{Args, ValueEnum};

use crate::config::Config;
use crate::store::{self, Format, StoreError};

/// What `query` is told.
#[derive(Clone, Debug, Args)]
pub struct QueryArgs {
    /// The query, in quotes.
    pub sql: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t = QueryFormat::Table)]
    pub format: QueryFormat,
}

/// How to print rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueryFormat {
    /// For people.
    Table,
    /// One JSON object per line.
    Json,
    /// A header and a line per row.
    Csv,
}

/// Prints the answer.
///
/// # Errors
/// The store cannot be read, the query is none, or the output cannot be written. A closed output (`| head`) is no error.
pub async fn run(args: &QueryArgs, config: &Config) -> anyhow::Result<()> {
    let format = match args.format {
        QueryFormat::Table => Format::Table,
        QueryFormat::Json => Format::Json,
        QueryFormat::Csv => Format::Csv,
    };
    let mut out = BufWriter::new(io::stdout());
    let closed = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    match store::query(&config.store, &args.sql, format, &mut out).await {
        Err(StoreError::Output(error)) if closed(&error) => return Ok(()),
        done => done?,
    }
    match out.flush() {
        Err(error) if closed(&error) => Ok(()),
        done => Ok(done?),
    }
}
