//! What can go wrong with the store, each in a sentence that says what to do.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use deltalake::DeltaTableError;
use deltalake::datafusion::error::DataFusionError;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the lock of the directory.
    #[error("another collector writes to {}; stop it, or give this one another `store.directory`", .0.display())]
    Busy(PathBuf),
    /// The directory cannot be created, read or written.
    #[error("cannot {what} {}: {source}; is `store.directory` right, and may this user write there?", .path.display())]
    Directory {
        /// What was tried: `create`, `lock`, `write`…
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing was ever stored there.
    #[error("there are no flow records in {}; is `store.directory` right, and has a collector run with it?", .0.display())]
    Empty(PathBuf),
    /// A table, but not one that this version writes.
    #[error("the table in {} has no column {column}; it was written by something else: give the collector another `store.directory`", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The first column that is missing.
        column: String,
    },
    /// Another process runs the import of that name.
    #[error("an import named {0} is running already; wait for it to end, or stop it")]
    ImportBusy(String),
    /// Not a name for an import.
    #[error("{0:?} cannot name an import; use 1 to 100 letters, digits, `-`, `_` and `.`, and begin with a letter or digit")]
    ImportName(String),
    /// The table says how far an import has come, but the file that says where that was cannot be read.
    #[error("cannot read {}, where the import {name} stopped: {source}; restore that file, or import under another name, which begins anew", .path.display())]
    ImportState {
        /// The import.
        name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk under {} is full; free some space there, and lower `store.retention_days` or `store.retention_bytes_max`, which acts \
         only after a restart and `store.reader_grace_secs`",
        .0.display()
    )]
    Full(PathBuf),
    /// Anything else that the table says.
    #[error("cannot {what} the flow records in {}: {message}", .path.display())]
    Table {
        /// What was tried: `commit`, `merge`…
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the library says.
        message: String,
    },
    /// The query is not one that can be answered.
    #[error("{0}")]
    Query(String),
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
}

impl StoreError {
    /// An error of the Delta library, met while doing `what` in `path`.
    pub(crate) fn table(what: &'static str, path: &std::path::Path, error: &(dyn Error + 'static)) -> Self {
        if is_disk_full(error) {
            return Self::Full(path.to_owned());
        }
        Self::Table { what, path: path.to_owned(), message: one_line(&error.to_string()) }
    }

    /// Whether space on the disk is all that is missing.
    pub const fn is_disk_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

impl From<DataFusionError> for StoreError {
    fn from(error: DataFusionError) -> Self {
        let text = one_line(&error.strip_backtrace());
        Self::Query(match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => {
                format!("the query needs more than `store.query_memory_bytes_max` or `store.query_spill_bytes_max`: {text}")
            }
            _ => plain(&text),
        })
    }
}

impl From<DeltaTableError> for StoreError {
    fn from(error: DeltaTableError) -> Self {
        Self::Query(one_line(&error.to_string()))
    }
}

/// A longer list of columns hides the sentence before it.
const FIELDS_LEN_MAX: usize = 300;

/// The engine's sentence about a query for somebody who does not know the engine.
fn plain(text: &str) -> String {
    let kinds = ["Error during planning: ", "Schema error: ", "This feature is not implemented: "];
    let text = kinds.into_iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text).replace("datafusion.public.", "");
    if ["DDL not supported", "DML not supported", "Statement not supported"].iter().any(|refusal| text.starts_with(refusal)) {
        return format!("a query can only read: {text}");
    }
    if text.starts_with("table ") && text.ends_with(" not found") {
        return format!("{text}; there are `flows` and `flows_raw`");
    }
    if let Some(what) = text.strip_prefix("SQL error: ParserError(\"").and_then(|rest| rest.strip_suffix("\")")) {
        return format!("not SQL: {what}");
    }
    match text.split_once(" Valid fields are ") {
        Some((what, fields)) if fields.len() > FIELDS_LEN_MAX => format!("{what} `DESCRIBE flows` lists the columns."),
        _ => text,
    }
}

/// The libraries wrap the system's error several times, not always keeping it as a source.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut link = Some(error);
    while let Some(error) = link {
        let kind = error.downcast_ref().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        link = error.source();
    }
    error.to_string().contains("os error 28")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_translated() {
        assert_eq!(plain("SQL error: ParserError(\"Expected: x, found: SELEC\")"), "not SQL: Expected: x, found: SELEC");
        assert_eq!(
            plain("Error during planning: DDL not supported: DropTable"),
            "a query can only read: DDL not supported: DropTable"
        );
        assert_eq!(
            plain("Error during planning: table 'datafusion.public.flow' not found"),
            "table 'flow' not found; there are `flows` and `flows_raw`"
        );
        let columns = "flows.x, ".repeat(50);
        let missing = format!("Schema error: No field named y. Valid fields are {columns}.");
        assert_eq!(plain(&missing), "No field named y. `DESCRIBE flows` lists the columns.");
    }
}
