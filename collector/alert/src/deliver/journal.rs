//! The journal: alerts on their way out, on disk, until every output has them.
//!
//! A directory of segments. Constraints: an entry that [`Journal::sync`] has confirmed survives a power cut; a crash in the middle of
//! a write costs that entry only; space is bounded.
//!
//! ```text
//! 00000000000000000042.alerts     segment: "SPWALRT1", then entries; its name is the sequence number of its first entry
//! entry                           u32 length of payload, u32 CRC-32C of payload (both little endian), payload
//! ```
//!
//! - **Opening** reads all segments. In the last one, whatever follows the last whole entry is cut off. Damage elsewhere ends the
//!   segment it is in; reading goes on with the next one.
//! - **Appending** writes to the last segment, or begins a new one when that is full. What a full disk let through only in part is
//!   taken back.
//! - **Releasing** removes segments that lie before a sequence number.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"SPWALRT1";
/// Length and checksum.
const HEAD_LEN: u64 = 8;
/// Longer payloads are none of ours.
pub const PAYLOAD_LEN_MAX: usize = 1 << 20;
const SUFFIX: &str = "alerts";

/// One alert as it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number; each is one more than the one before, across restarts.
    pub sequence: u64,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// How far somebody has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The entry that comes next.
    pub sequence: u64,
    /// The segment in which the one before it is, and where that ends there; zeros if that is not known.
    segment: u64,
    offset: u64,
}

impl Place {
    /// Before the entry `sequence`.
    pub const fn before(sequence: u64) -> Self {
        Self { sequence, segment: 0, offset: 0 }
    }
}

struct Segment {
    first: u64,
    bytes: u64,
}

/// The journal, open for appending. One process may have it open.
pub struct Journal {
    directory: PathBuf,
    /// Oldest first; never empty once something was appended.
    segments: VecDeque<Segment>,
    /// The last segment, once something was appended since opening: an opened journal begins a new one, because numbers may be missing.
    file: Option<File>,
    next: u64,
    segment_bytes_max: u64,
}

impl Journal {
    /// Opens the journal in `directory`, making that if need be. Its next number is at least `next_min`: what readers have seen is not
    /// numbered again, even if it was lost here.
    ///
    /// # Errors
    /// What the system says about the directory or a segment.
    pub fn open(directory: &Path, segment_bytes_max: u64, next_min: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut firsts = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let is_segment = path.extension().is_some_and(|suffix| suffix == SUFFIX);
            let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
            firsts.extend(stem.filter(|_| is_segment));
        }
        firsts.sort_unstable();
        let mut journal = Self {
            directory: directory.to_owned(),
            segments: VecDeque::new(),
            file: None,
            next: next_min.max(1),
            segment_bytes_max: segment_bytes_max.max(1 << 12),
        };
        let last = firsts.last().copied();
        for first in firsts {
            let (count, whole) = measure(&journal.path(first))?;
            if Some(first) == last {
                cut(&journal.path(first), whole)?;
            }
            let bytes = fs::metadata(journal.path(first))?.len();
            journal.segments.push_back(Segment { first, bytes });
            journal.next = journal.next.max(first + count);
        }
        Ok(journal)
    }

    /// The number that the next entry gets.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// The number of the oldest entry that may still be here.
    pub fn oldest(&self) -> u64 {
        self.segments.front().map_or(self.next, |segment| segment.first)
    }

    /// What the segments take on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Adds an entry and returns its number. It is durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// What the system says, or that `payload` is too long; nothing was added then.
    pub fn append(&mut self, payload: &[u8]) -> io::Result<u64> {
        if payload.is_empty() || payload.len() > PAYLOAD_LEN_MAX {
            let sentence = format!("an entry of {} bytes; the journal takes 1 to {PAYLOAD_LEN_MAX}", payload.len());
            return Err(io::Error::new(ErrorKind::InvalidInput, sentence));
        }
        let full = self.segments.back().is_none_or(|segment| segment.bytes >= self.segment_bytes_max);
        if self.file.is_none() || full {
            self.begin_segment()?;
        }
        let (Some(file), Some(segment)) = (&mut self.file, self.segments.back_mut()) else {
            return Err(io::Error::other("the journal has no segment"));
        };
        // No more than PAYLOAD_LEN_MAX.
        let mut bytes = Vec::with_capacity(payload.len() + 8);
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        if let Err(error) = file.write_all(&bytes) {
            // If not even this works, the next opening cuts it off; meanwhile nothing more goes into this segment.
            if file.set_len(segment.bytes).and_then(|()| file.seek(SeekFrom::End(0))).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        segment.bytes += bytes.len() as u64;
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Waits until everything that was appended would survive a power cut.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// The file that [`sync`](Self::sync) would wait for, to wait for it elsewhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn newest(&self) -> io::Result<Option<File>> {
        self.file.as_ref().map(File::try_clone).transpose()
    }

    /// The entries from `place` on, at most `entries_max` and, past the first, `bytes_max`; and where the next one is.
    ///
    /// Numbers may be missing where segments were removed or damaged.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, place: Place, entries_max: usize, bytes_max: usize) -> io::Result<(Vec<Entry>, Place)> {
        let mut place = place;
        let mut entries = Vec::new();
        let mut bytes = 0;
        while place.sequence < self.next && entries.len() < entries_max {
            // The last segment that begins at or before the place; or the oldest, if all begin after it.
            let at = self.segments.partition_point(|segment| segment.first <= place.sequence).saturating_sub(1);
            let Some(segment) = self.segments.get(at) else { break };
            if place.sequence < segment.first {
                place = Place::before(segment.first);
            }
            let mut reader = SegmentReader::open(&self.path(segment.first), segment.first, segment.bytes)?;
            if place.segment == segment.first {
                reader.go_to(place)?;
            }
            let mut full = false;
            while let Some(payload) = reader.next()? {
                let (sequence, end) = (reader.sequence - 1, reader.offset);
                if sequence < place.sequence {
                    continue;
                }
                full = !entries.is_empty() && bytes + payload.len() > bytes_max || entries.len() >= entries_max;
                if full {
                    break;
                }
                bytes += payload.len();
                entries.push(Entry { sequence, payload });
                place = Place { sequence: sequence + 1, segment: segment.first, offset: end };
            }
            if full {
                break;
            }
            match self.segments.get(at + 1) {
                // At the end of a segment, or where it is damaged.
                Some(next) => place = Place::before(next.first.max(place.sequence)),
                None => break,
            }
        }
        Ok((entries, place))
    }

    /// Removes the segments of which all entries lie before `sequence`, but not the last one.
    ///
    /// # Errors
    /// What the system says; removal is tried again with the next call.
    pub fn release(&mut self, sequence: u64) -> io::Result<()> {
        while self.segments.get(1).is_some_and(|next| next.first <= sequence) {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// The first number after the oldest segment, if that is not the last one.
    pub fn end_of_oldest(&self) -> Option<u64> {
        self.segments.get(1).map(|next| next.first)
    }

    /// Removes the oldest segment, whoever still wants it.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.segments.front() else { return Ok(()) };
        match fs::remove_file(self.path(oldest.first)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.pop_front();
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        // What has the number already holds no whole entry.
        if self.segments.back().is_some_and(|segment| segment.first == self.next) {
            self.segments.pop_back();
        }
        let path = self.path(self.next);
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
        if let Err(error) = file.write_all(MAGIC) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.sync()?;
        File::open(&self.directory)?.sync_all()?;
        self.segments.push_back(Segment { first: self.next, bytes: MAGIC.len() as u64 });
        self.file = Some(file);
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        self.directory.join(format!("{first:020}.{SUFFIX}"))
    }
}

/// How many whole entries a segment has, and where the last one ends.
fn measure(path: &Path) -> io::Result<(u64, u64)> {
    let mut reader = SegmentReader::open(path, 0, fs::metadata(path)?.len())?;
    while reader.next()?.is_some() {}
    Ok((reader.sequence, reader.offset))
}

fn cut(path: &Path, whole: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() > whole {
        file.set_len(whole)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Entries of one segment, up to its end or the first that is damaged.
struct SegmentReader {
    file: io::BufReader<File>,
    /// Number of the entry that comes next.
    sequence: u64,
    offset: u64,
    len: u64,
}

impl SegmentReader {
    fn open(path: &Path, first: u64, len: u64) -> io::Result<Self> {
        let mut file = io::BufReader::new(File::open(path)?);
        let mut magic = [0; 8];
        let ours = len >= 8 && file.read_exact(&mut magic).is_ok() && magic == *MAGIC;
        // A segment without its beginning has no entries.
        let len = if ours { len } else { 0 };
        Ok(Self { file, sequence: first, offset: if ours { 8 } else { 0 }, len })
    }

    fn go_to(&mut self, place: Place) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(place.offset))?;
        (self.sequence, self.offset) = (place.sequence, place.offset);
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.offset + HEAD_LEN > self.len {
            return Ok(None);
        }
        let mut head = [0; 8];
        self.file.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let (len, checksum) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let end = self.offset + HEAD_LEN + u64::from(len);
        if len == 0 || len as usize > PAYLOAD_LEN_MAX || end > self.len {
            return Ok(None);
        }
        let mut payload = vec![0; len as usize];
        self.file.read_exact(&mut payload)?;
        if crc32c::crc32c(&payload) != checksum {
            return Ok(None);
        }
        self.offset = end;
        self.sequence += 1;
        Ok(Some(payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> Journal {
        Journal::open(directory, 1 << 12, 1).unwrap()
    }

    fn fill(journal: &mut Journal, numbers: std::ops::Range<u64>) {
        for number in numbers {
            assert_eq!(journal.append(format!("{number} {}", "x".repeat(500)).as_bytes()).unwrap(), number);
        }
    }

    /// The numbers that reading from `from` in steps of three gives.
    fn numbers(journal: &Journal, from: u64) -> Vec<u64> {
        let (mut place, mut all) = (Place::before(from), Vec::new());
        loop {
            let (entries, next) = journal.read(place, 3, 1_200).unwrap();
            if entries.is_empty() {
                return all;
            }
            for entry in &entries {
                assert!(entry.payload.starts_with(format!("{} ", entry.sequence).as_bytes()));
            }
            all.extend(entries.iter().map(|entry| entry.sequence));
            place = next;
        }
    }

    #[test]
    fn what_was_appended_is_read_in_order_over_segments_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(directory.path());
        fill(&mut journal, 1..21);
        drop(journal);
        let mut journal = open(directory.path());
        fill(&mut journal, 21..31);
        assert_eq!(numbers(&journal, 1), (1..31).collect::<Vec<_>>());
        assert_eq!(numbers(&journal, 17), (17..31).collect::<Vec<_>>());
        assert!(numbers(&journal, 31).is_empty());
        journal.release(15).unwrap();
        assert!((10..=15).contains(&journal.oldest()), "{}", journal.oldest());
        assert_eq!(numbers(&journal, 1).first(), Some(&journal.oldest()));
    }

    #[test]
    fn a_torn_tail_costs_one_entry_at_every_length() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(directory.path());
        fill(&mut journal, 1..4);
        let path = journal.path(1);
        drop(journal);
        let whole = fs::read(&path).unwrap();
        // Every length in the segment's head, in the head of the last entry and at its end; some between.
        for len in (0..9).chain((16..1_020).step_by(200)).chain(1_020..1_040).chain(whole.len() - 5..whole.len()) {
            fs::write(&path, &whole[..len]).unwrap();
            let mut journal = open(directory.path());
            let kept = (len.saturating_sub(8) / 510) as u64;
            assert_eq!(numbers(&journal, 1), (1..=kept).collect::<Vec<_>>(), "{len} bytes");
            fill(&mut journal, kept + 1..kept + 3);
            assert_eq!(numbers(&journal, 1), (1..kept + 3).collect::<Vec<_>>(), "{len} bytes");
            for entry in fs::read_dir(directory.path()).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }

    #[test]
    fn a_damaged_entry_ends_its_segment_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(directory.path());
        fill(&mut journal, 1..21);
        let second = journal.end_of_oldest().unwrap();
        let path = journal.path(1);
        drop(journal);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8 + 2 * 510 + 100] ^= 1;
        fs::write(&path, bytes).unwrap();
        let journal = open(directory.path());
        assert_eq!(numbers(&journal, 1), (1..3).chain(second..21).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_that_a_reader_has_seen_are_not_given_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(directory.path());
        fill(&mut journal, 1..4);
        drop(journal);
        let mut journal = Journal::open(directory.path(), 1 << 12, 10).unwrap();
        fill(&mut journal, 10..12);
        assert_eq!(numbers(&journal, 2), [2, 3, 10, 11]);
    }
}
