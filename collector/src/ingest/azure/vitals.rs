//! The numbers of a container that is followed, for `/metrics` and `/healthz`.

/// What one followed container has come to since the collector started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailVitals {
    /// What is wrong at the moment, in a sentence.
    pub trouble: Option<String>,
    /// Blobs that are followed.
    pub blobs: u64,
    /// Blobs of the hours looked at that must wait because there are too many.
    pub blobs_waiting: u64,
    /// Blobs that hold what we cannot read.
    pub refused: u64,
    /// Blobs that were replaced, and read anew.
    pub replaced: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Rows stored.
    pub rows: u64,
    /// Exact duplicates left out.
    pub duplicates: u64,
    /// Bytes of records that had not ended when the round was over.
    pub held_back: u64,
    /// Seconds between the newest stored row and the end of the round that stored it; 0 before there is one.
    pub lag_secs: u64,
    /// Rounds that were completed.
    pub rounds: u64,
    /// Rounds that trouble ended.
    pub failed_rounds: u64,
}
