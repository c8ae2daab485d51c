//! How far each file and each blob has been read: what is committed together with the rows, so that no row comes twice.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spanwatch_azure::Resume;

use super::hour::BlobHour;
use super::open::HEAD_LEN;

/// Files that are remembered. Beyond, those that were not asked for the longest are forgotten, and it is said.
const FILES_MAX: usize = 100_000;

/// How a file began: enough to see that another one has taken its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// So many bytes, unpacked; fewer than [`HEAD_LEN`] when the file was shorter then.
    len: usize,
    /// The first sixteen bytes of their SHA-256, in hexadecimal.
    digest: String,
}

impl Head {
    /// Of the first bytes of a file.
    pub fn of(bytes: &[u8]) -> Self {
        let bytes = bytes.get(..HEAD_LEN).unwrap_or(bytes);
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let digest = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { len: bytes.len(), digest }
    }

    /// Whether a file that begins with `bytes` may be the same, grown or not.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        bytes.get(..self.len).is_some_and(|bytes| Self::of(bytes) == *self)
    }

    /// The digest, to tell apart what has no name.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// What `import` remembers of all files it was ever given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesState {
    /// Counts imports, to know which files were not asked for the longest.
    pub import: u64,
    /// By identity.
    pub files: BTreeMap<String, FileState>,
}

/// How far one file has been read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// How it began.
    pub head: Head,
    /// Every row before this is stored, and no other.
    pub resume: Resume,
    /// Records of ours, as JSON lines or batches; else a format of Azure's.
    pub is_lines: bool,
    /// Its length when it was read to its end; none while it was not.
    pub done: Option<u64>,
    /// The last import that asked for it.
    pub import: u64,
}

impl FilesState {
    /// Makes room, and says how many files had to be forgotten.
    pub fn forget(&mut self) -> usize {
        let excess = self.files.len().saturating_sub(FILES_MAX);
        if excess == 0 {
            return 0;
        }
        let mut imports: Vec<u64> = self.files.values().map(|file| file.import).collect();
        imports.sort_unstable();
        let oldest = imports.get(excess - 1).copied().unwrap_or_default();
        // Never of the import that runs: it could meet the file again.
        let before = self.files.len();
        let (current, mut left) = (self.import, excess);
        self.files.retain(|_, file| {
            let goes = left > 0 && file.import <= oldest && file.import != current;
            left -= usize::from(goes);
            !goes
        });
        before - self.files.len()
    }
}

/// What the tail of a container remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailState {
    /// Every hour up to this one has been looked at, in hours since the epoch.
    pub looked_at: Option<i64>,
    /// What is known of blobs before this hour was forgotten: they are never looked at again, wherever the clock is set.
    pub forgotten_before: Option<i64>,
    /// By path. Only those of the hours that are still looked at.
    pub blobs: BTreeMap<String, BlobState>,
}

/// How far one blob has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobState {
    /// Every row before this is stored, and no other.
    pub resume: Resume,
    /// The last data block that was read to its end, and where it ended; none where block lists are not permitted.
    pub last_block: Option<(String, u64)>,
    /// The version of the blob that was read to its end.
    pub e_tag: Option<String>,
    /// Bytes of a record that had not ended then.
    pub held_back: u64,
    /// It holds what we cannot read, from here on; it is not tried again until it is replaced.
    pub refused: bool,
}

impl TailState {
    /// The hours to look at when it is `current`: those since the last look and `back` before, at most `catch_up_max`.
    pub fn hours(&self, current: BlobHour, back: u32, catch_up_max: u32) -> impl Iterator<Item = BlobHour> + use<> {
        let (current, back) = (current.number(), i64::from(back));
        let since = self.looked_at.unwrap_or(current).min(current) - back;
        let oldest = since.max(current - i64::from(catch_up_max)).min(current - back);
        let oldest = oldest.max(self.forgotten_before.unwrap_or(oldest));
        (oldest..=current).map(BlobHour::from_number)
    }

    /// Every hour up to `current` was looked at: forgets the blobs that are `back` hours older than the newest.
    pub fn looked_at(&mut self, current: BlobHour, back: u32) {
        self.looked_at = Some(current.number());
        // Going by the blobs and not by the clock alone: one that is set wrong for a while must not make us forget.
        let hour = |path: &String| BlobHour::in_path(path).map(BlobHour::number);
        let Some(newest) = self.blobs.keys().filter_map(hour).max() else { return };
        let oldest = newest.min(current.number()) - i64::from(back);
        let before = self.blobs.len();
        self.blobs.retain(|path, _| hour(path).is_none_or(|hour| hour >= oldest));
        if self.blobs.len() < before {
            self.forgotten_before = self.forgotten_before.max(Some(oldest));
        }
    }
}

/// The bytes that are committed.
pub fn to_bytes(state: &impl Serialize) -> Vec<u8> {
    // Maps with text keys and plain values: this cannot fail.
    serde_json::to_vec(state).unwrap_or_default()
}

/// From the bytes that were committed.
///
/// # Errors
/// They are not what we wrote; a sentence that says what to do.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        anyhow::anyhow!(
            "the import's state cannot be read ({error}); it was written by another version: use that one, or another store"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grew_is_the_same_and_one_that_was_replaced_is_not() {
        let head = Head::of(b"{\"records\":[");
        assert!(head.is_of(b"{\"records\":[{}]}"));
        assert!(!head.is_of(b"{\"records\""));
        assert!(!head.is_of(b"{\"recordz\":[{}]}"));
        let long = vec![b'x'; HEAD_LEN + 1];
        assert_eq!(Head::of(&long), Head::of(&long[..HEAD_LEN]));
    }

    #[test]
    fn the_files_of_the_oldest_imports_are_forgotten_first() {
        let file = |import| FileState { head: Head::default(), resume: Resume::default(), is_lines: false, done: None, import };
        let mut state = FilesState { import: 3, ..FilesState::default() };
        for n in 0..FILES_MAX as u64 + 10 {
            state.files.insert(format!("{n:06}"), file(if n < 6 { 1 } else { 2 + n % 2 }));
        }
        assert_eq!(state.forget(), 10);
        assert_eq!(state.files.len(), FILES_MAX);
        assert!(!state.files.values().any(|file| file.import == 1));
        assert_eq!(state.forget(), 0);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut state = TailState { looked_at: Some(498_682), ..TailState::default() };
        let blob = BlobState {
            resume: Resume { byte_offset: 12, record: 3, csv_header: None },
            last_block: Some(("RDE=".to_owned(), 112)),
            e_tag: Some("\"0x8D\"".to_owned()),
            held_back: 0,
            refused: false,
        };
        state.blobs.insert("a/y=2026/m=11/d=21/h=10/m=00/macAddress=00224800000A/PT1H.json".to_owned(), blob);
        assert_eq!(from_bytes::<TailState>(&to_bytes(&state)).unwrap(), state);
        assert!(from_bytes::<TailState>(b"x").unwrap_err().to_string().contains("another version"));
    }

    #[test]
    fn no_hour_is_missed_after_a_standstill_and_none_is_read_again_after_it_was_forgotten() {
        let path = |hour| format!("a/{}/m=00/macAddress=00224800000A/PT1H.json", BlobHour::from_number(hour));
        let hours = |state: &TailState, current| {
            let hours: Vec<i64> = state.hours(BlobHour::from_number(current), 2, 10).map(BlobHour::number).collect();
            (hours.first().copied().unwrap_or_default(), hours.len())
        };
        let mut state = TailState::default();
        assert_eq!(hours(&state, 1_000), (998, 3));
        for hour in 995..=1_000 {
            state.blobs.insert(path(hour), BlobState::default());
        }
        state.looked_at(BlobHour::from_number(1_000), 2);
        assert_eq!((state.blobs.len(), state.forgotten_before), (3, Some(998)));
        assert_eq!(hours(&state, 1_005), (998, 8));
        assert_eq!(hours(&state, 1_050), (1_040, 11), "no more than ten hours are caught up with");
        // The clock is an age ahead for a while, then right again, then behind.
        state.looked_at(BlobHour::from_number(9_000), 2);
        assert_eq!((hours(&state, 1_001), state.blobs.len()), ((999, 3), 3));
        assert_eq!(hours(&state, 997), (0, 0));
    }
}
