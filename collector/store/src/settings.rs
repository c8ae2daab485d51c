//! What an operator may say about the store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spanwatch_kql::Compat;

/// Section `[store]` of the collector's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Where the flow records are kept: a Delta Lake table of Parquet files, which other engines may read as well.
    /// Only one collector may write to it; imports may beside it.
    pub directory: PathBuf,
    /// How often received records are made durable and acknowledged. Longer means fewer, larger files and later acknowledgements.
    /// 1 to 60.
    pub commit_interval_secs: u64,
    /// Records that make a commit happen before its time. 1,000 to 2,000,000; about 400 bytes of memory each.
    pub commit_rows_max: usize,
    /// Records that may wait in memory while the disk cannot take them. When they are this many, sensors are told to keep theirs.
    /// At least `commit_rows_max`, at most 20,000,000.
    pub buffer_rows_max: usize,
    /// How often small files are merged, old ones dropped and the log tidied. 10 to 86,400.
    pub compact_interval_secs: u64,
    /// Size up to which files of one hour are merged: larger files are faster to scan, and take longer to merge.
    /// 1 MiB to 1 GiB (1,048,576 to 1,073,741,824).
    pub file_bytes_max: u64,
    /// Records older than this are dropped, an hour at a time. 0 keeps them for ever.
    pub retention_days: u32,
    /// When the records take more than this on disk, the oldest hours are dropped. 0 for no limit.
    pub retention_bytes_max: u64,
    /// How long files that are no longer needed stay, for queries that still read them. 60 to 604,800.
    pub reader_grace_secs: u64,
    /// Memory for one query, or for merging the files of one hour; beyond it they go on on disk. At least 64 MiB (67,108,864).
    pub query_memory_bytes_max: u64,
    /// Where a query goes on when memory does not suffice; empty for the system's directory for temporary files.
    pub query_spill_directory: PathBuf,
    /// How much a query may write there. At least 1 MiB (1,048,576).
    pub query_spill_bytes_max: u64,
    /// How queries read KQL where Kusto is silent. It has a section of its own, `[kql_compat]`.
    #[serde(skip)]
    pub kql_compat: Compat,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/spanwatch/flows"),
            commit_interval_secs: 2,
            commit_rows_max: 500_000,
            buffer_rows_max: 2_000_000,
            compact_interval_secs: 300,
            file_bytes_max: 128 << 20,
            retention_days: 90,
            retention_bytes_max: 100 << 30,
            reader_grace_secs: 3600,
            query_memory_bytes_max: 1 << 30,
            query_spill_directory: PathBuf::new(),
            query_spill_bytes_max: 20 << 30,
            kql_compat: Compat::default(),
        }
    }
}

impl StoreSettings {
    /// Whether every value is one that the store can work with.
    ///
    /// # Errors
    /// The key that is not, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        fn within<T: PartialOrd + std::fmt::Display>(
            key: &'static str,
            value: T,
            low: T,
            high: T,
        ) -> Result<(), (&'static str, String)> {
            if value < low || value > high {
                return Err((key, format!("must be between {low} and {high}, not {value}")));
            }
            Ok(())
        }
        if self.directory.as_os_str().is_empty() {
            return Err(("directory", "must name a directory on a local disk, such as /var/lib/spanwatch/flows".to_owned()));
        }
        within("commit_interval_secs", self.commit_interval_secs, 1, 60)?;
        within("commit_rows_max", self.commit_rows_max, 1_000, 2_000_000)?;
        within("buffer_rows_max", self.buffer_rows_max, self.commit_rows_max, 20_000_000)?;
        within("compact_interval_secs", self.compact_interval_secs, 10, 86_400)?;
        within("file_bytes_max", self.file_bytes_max, 1 << 20, 1 << 30)?;
        within("retention_days", self.retention_days, 0, 36_500)?;
        within("reader_grace_secs", self.reader_grace_secs, 60, 604_800)?;
        within("query_memory_bytes_max", self.query_memory_bytes_max, 64 << 20, 1 << 50)?;
        within("query_spill_bytes_max", self.query_spill_bytes_max, 1 << 20, 1 << 50)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_a_buffer_smaller_than_a_commit_is_not() {
        assert_eq!(StoreSettings::default().check(), Ok(()));
        let settings = StoreSettings { buffer_rows_max: 10_000, ..StoreSettings::default() };
        let (key, sentence) = settings.check().expect_err("smaller than commit_rows_max");
        assert_eq!((key, &*sentence), ("buffer_rows_max", "must be between 500000 and 20000000, not 10000"));
    }
}
