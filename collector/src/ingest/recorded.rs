//! Recorded flows, in whatever form: bytes to records. `detect` and `import` read through this.
//!
//! What comes in may be our own JSON lines or batches, or any of Azure's formats, mixed as the files come; each file is recognised by
//! its beginning: a frame of batches has a zero byte there, which no text has. [`read_all`] reads a list of sources from end to end, [`Decoder`] one source in pieces.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use clap::Args;
use spanwatch_azure::{AzureError, Options, Reader, Resume};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::text;
use spanwatch_common::wire::{HEADER_LEN, Header, Message, WireError};

use super::azure::open::{Network, open};
use super::azure::source::{self, Source};

/// What records that name no observer are said to be seen by.
pub const OBSERVER: &str = "replay";
/// Longest line of JSON.
const LINE_LEN_MAX: usize = 1 << 20;
/// A file that is not recognised by so many bytes is left to the reader of Azure's formats, which says what it misses.
const RECOGNISE_MAX: usize = 1 << 16;
/// Bytes read at once.
const PIECE: usize = 1 << 18;
/// Files that are named when they could not be read; of further ones the number.
const FAILURES_MAX: usize = 1_000;

/// What to read, as an operator types it.
#[derive(Clone, Debug, Args)]
pub struct InputArgs {
    /// Files, directories, patterns, - for standard input, http(s) URLs (with their SAS), az://ACCOUNT/CONTAINER/PREFIX.
    ///
    /// Read are Azure's NSG and VNet flow logs (PT1H.json), Traffic Analytics tables as JSON or CSV, and what `spanwatch-sensor
    /// replay` writes as jsonl or batch; each may be compressed with gzip or zstd. Containers are opened with AZURE_STORAGE_SAS_TOKEN,
    /// AZURE_STORAGE_ACCOUNT_KEY or the identity of this machine; AZURE_STORAGE_ENDPOINT names another endpoint.
    #[arg(required = true, value_name = "PATH|URL")]
    pub inputs: Vec<String>,
    /// Leave a blank source or destination of Traffic Analytics blank, as its own queries see it, instead of making one row of
    /// each public address.
    #[arg(long)]
    pub ta_parity: bool,
}

/// What became of what was read. `total.tuples = total.rows + total.duplicates`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Sources read to their end.
    pub files: u64,
    /// All sources together.
    pub total: Part,
    /// Sources whose last record had not ended.
    pub files_held_back: u64,
    /// Sources that could not be read to their end, each with the reason; at most a thousand.
    pub failures: Vec<String>,
    /// How many those are.
    pub files_failed: u64,
}

impl Account {
    /// Adds what one source came to.
    pub fn add(&mut self, part: &Part) {
        let Part { bytes, records, tuples, duplicates, other_rows, rows, held_back } = *part;
        self.total.bytes += bytes;
        self.total.records += records;
        self.total.tuples += tuples;
        self.total.duplicates += duplicates;
        self.total.other_rows += other_rows;
        self.total.rows += rows;
        self.total.held_back += held_back;
        self.files_held_back += u64::from(held_back > 0);
    }

    /// Takes note of a source that could not be read to its end.
    pub fn fail(&mut self, sentence: String) {
        self.files_failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(sentence);
        }
    }

    /// What was left out and why, one line each; empty when nothing was.
    pub fn losses(&self) -> String {
        let mut text = String::new();
        let mut line = |count: u64, sentence: &str| {
            if count > 0 {
                let _ = writeln!(text, "{count} {sentence}"); // writing to a String cannot fail
            }
        };
        line(self.total.duplicates, "exact duplicates left out");
        line(self.total.other_rows, "table rows are no flows (SubType other than FlowLog) and were left out");
        line(self.total.held_back, "bytes held back: the last record of a file has not ended; read it again when it is complete");
        for failure in &self.failures {
            let _ = writeln!(text, "{failure}");
        }
        let unnamed = self.files_failed - self.failures.len() as u64;
        if unnamed > 0 {
            let _ = writeln!(text, "{unnamed} further files could not be read");
        }
        text
    }
}

/// What one source came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Bytes, unpacked.
    pub bytes: u64,
    /// Azure's records (one per minute and interface, or table rows), and JSON lines of ours.
    pub records: u64,
    /// Tuples, public addresses of table rows, or JSON lines.
    pub tuples: u64,
    /// Exact duplicates, left out.
    pub duplicates: u64,
    /// Rows of a table that are no flows, left out.
    pub other_rows: u64,
    /// Flow records handed over.
    pub rows: u64,
    /// Bytes of records that had not ended where the file did.
    pub held_back: u64,
}

/// Reads everything that `args` names, in order, and hands each record to `each` with the name of who saw it.
///
/// A file that cannot be read to its end does not keep the others from being read: it is named in the account, and the records
/// before the mistake have been handed over.
///
/// # Errors
/// What was typed names nothing that could be read at all.
pub fn read_all(args: &InputArgs, each: &mut dyn FnMut(&str, FlowRecord)) -> anyhow::Result<Account> {
    let network = Arc::new(Network::new()?);
    let sources = source::find(&args.inputs, &network)?;
    let options = Options { ta_parity: args.ta_parity, ..Options::default() };
    let mut account = Account::default();
    for source in &sources {
        let mut decoder = Decoder::new(&source.name, options.clone());
        match read_one(source, &network, &mut decoder, each) {
            Ok(()) => account.files += 1,
            Err(sentence) => account.fail(sentence),
        }
        account.add(&decoder.part());
    }
    Ok(account)
}

fn read_one(
    source: &Source,
    network: &Arc<Network>,
    decoder: &mut Decoder,
    each: &mut dyn FnMut(&str, FlowRecord),
) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("{}: {}", source.name, readable(&error));
    let opened = open(source, network, &Arc::new(AtomicU64::new(0))).map_err(unreadable)?;
    let mut body = opened.from(0).map_err(unreadable)?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = match body.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        decoder.push(&piece[..count], each).map_err(|error| error.to_string())?;
    }
    decoder.finish(each).map_err(|error| error.to_string())
}

/// The reason why bytes do not come, and what to do about the usual ones.
pub fn readable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            format!("the compressed data is damaged or cut short ({error}); fetch the file again")
        }
        _ => error.to_string(),
    }
}

/// Why a source cannot be read further. Everything before has been handed over.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A mistake in a file of Azure's.
    #[error(transparent)]
    Azure(#[from] AzureError),
    /// A mistake in a line of ours.
    #[error("{name}:{line}: {why}")]
    Line {
        /// The source.
        name: String,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A damaged batch of ours.
    #[error("{name}: batch {number} at byte {offset}: {error}")]
    Frame {
        /// The source.
        name: String,
        /// Number of the frame, from 1.
        number: u64,
        /// Where it begins.
        offset: u64,
        /// What is wrong with it.
        error: WireError,
    },
}

/// Recognises what a source holds and turns its bytes into records.
pub struct Decoder {
    name: String,
    options: Options,
    shape: Shape,
    rows: u64,
    held_back: u64,
}

enum Shape {
    /// Not recognised yet: everything so far. With a place to go on from, it is of ours.
    Unknown(Vec<u8>, Option<Resume>),
    Azure(Box<Reader>),
    Lines(Lines),
    Frames(Frames),
}

/// JSON lines of ours.
#[derive(Default)]
struct Lines {
    /// The line that has not ended.
    rest: Vec<u8>,
    number: u64,
    bytes: u64,
    records: u64,
    /// Behind the last whole line.
    offset: u64,
}

/// Batches of ours, one frame of the wire after the other.
#[derive(Default)]
struct Frames {
    /// The frame that has not ended.
    rest: Vec<u8>,
    number: u64,
    bytes: u64,
    records: u64,
    /// Behind the last whole frame.
    offset: u64,
}

impl Decoder {
    /// For a source from its beginning; `name` stands in errors.
    pub fn new(name: &str, options: Options) -> Self {
        Self { name: name.to_owned(), options, shape: Shape::Unknown(Vec::new(), None), rows: 0, held_back: 0 }
    }

    /// For a source of Azure's from where another decoder stopped.
    pub fn resume(name: &str, options: Options, resume: Resume) -> Self {
        if resume.byte_offset == 0 {
            return Self::new(name, options);
        }
        let reader = Reader::resume(options.clone(), resume).named(name);
        Self { shape: Shape::Azure(Box::new(reader)), ..Self::new(name, options) }
    }

    /// For a source of ours from where another decoder stopped.
    pub fn resume_ours(name: &str, resume: Resume) -> Self {
        Self { shape: Shape::Unknown(Vec::new(), Some(resume)), ..Self::new(name, Options::default()) }
    }

    /// The next byte pushed will be that at the resume point: forgets the bytes of a record that has not ended. What is remembered
    /// to recognise duplicates stays.
    pub fn rewind(&mut self) {
        self.held_back = 0;
        match &mut self.shape {
            Shape::Unknown(head, _) => head.clear(),
            Shape::Azure(reader) => reader.rewind(),
            Shape::Lines(lines) => lines.rest.clear(),
            Shape::Frames(frames) => frames.rest.clear(),
        }
    }

    /// Whether the source holds records of ours; false as long as that is not known.
    pub const fn is_ours(&self) -> bool {
        matches!(self.shape, Shape::Lines(_) | Shape::Frames(_) | Shape::Unknown(_, Some(_)))
    }

    /// Takes the next bytes; hands over the records that they complete.
    ///
    /// # Errors
    /// The source cannot be read further.
    pub fn push(&mut self, bytes: &[u8], each: &mut dyn FnMut(&str, FlowRecord)) -> Result<(), DecodeError> {
        if let Shape::Unknown(head, resume) = &mut self.shape {
            head.extend_from_slice(bytes);
            let whole = head.len() >= RECOGNISE_MAX;
            let Some(shape) = recognise(head, whole, resume.as_ref(), &self.name, &self.options) else { return Ok(()) };
            let head = std::mem::take(head);
            self.shape = shape;
            return self.take(&head, each);
        }
        self.take(bytes, each)
    }

    /// The source ends here.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self, each: &mut dyn FnMut(&str, FlowRecord)) -> Result<(), DecodeError> {
        if let Shape::Unknown(head, resume) = &mut self.shape {
            let head = std::mem::take(head);
            if let Some(shape) = recognise(&head, true, resume.as_ref(), &self.name, &self.options) {
                self.shape = shape;
                self.take(&head, each)?;
            }
        }
        match &mut self.shape {
            Shape::Unknown(..) => {}
            Shape::Azure(reader) => {
                let rows = &mut self.rows;
                let finished = reader.finish(|row| {
                    *rows += 1;
                    each(&row.group.context.observer, row.to_record());
                })?;
                self.held_back = finished.held_back;
            }
            Shape::Lines(lines) => lines.end(&self.name, &mut self.rows, each)?,
            Shape::Frames(frames) => self.held_back = frames.rest.len() as u64,
        }
        Ok(())
    }

    /// What was read so far.
    pub fn part(&self) -> Part {
        match &self.shape {
            Shape::Unknown(head, _) => Part { bytes: head.len() as u64, ..Part::default() },
            Shape::Azure(reader) => {
                let counts = reader.counts();
                Part {
                    bytes: counts.bytes,
                    records: counts.records,
                    tuples: counts.tuples,
                    duplicates: counts.duplicates,
                    other_rows: counts.other_rows,
                    rows: self.rows,
                    held_back: self.held_back,
                }
            }
            Shape::Frames(frames) => Part {
                bytes: frames.bytes,
                records: frames.records,
                tuples: frames.records,
                rows: self.rows,
                held_back: self.held_back,
                ..Part::default()
            },
            Shape::Lines(lines) => {
                Part { bytes: lines.bytes, records: lines.records, tuples: lines.records, rows: self.rows, ..Part::default() }
            }
        }
    }

    /// Where another decoder could go on, so that every record handed over lies before it and no other.
    pub fn resume_point(&self) -> Resume {
        match &self.shape {
            Shape::Unknown(_, resume) => resume.clone().unwrap_or_default(),
            Shape::Azure(reader) => reader.resume_point(),
            Shape::Lines(lines) => Resume { byte_offset: lines.offset, record: lines.number, csv_header: None },
            Shape::Frames(frames) => Resume { byte_offset: frames.offset, record: frames.number, csv_header: None },
        }
    }

    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&str, FlowRecord)) -> Result<(), DecodeError> {
        match &mut self.shape {
            Shape::Unknown(..) => Ok(()),
            Shape::Azure(reader) => {
                let rows = &mut self.rows;
                let taken = reader.push(bytes, |row| {
                    *rows += 1;
                    each(&row.group.context.observer, row.to_record());
                });
                Ok(taken?)
            }
            Shape::Lines(lines) => lines.push(bytes, &self.name, &mut self.rows, each),
            Shape::Frames(frames) => frames.push(bytes, &self.name, &mut self.rows, each),
        }
    }
}

/// What `head`, the beginning of a source or of the rest of one, is the beginning of; none if more of it is needed.
fn recognise(head: &[u8], whole: bool, resume: Option<&Resume>, name: &str, options: &Options) -> Option<Shape> {
    let (number, offset) = resume.map_or((0, 0), |resume| (resume.record, resume.byte_offset));
    match head.first_chunk::<HEADER_LEN>() {
        // Long frames have their length in the first three bytes, as they are limited.
        Some(first @ &[_, _, _, 0, ..]) if Header::parse(first).is_ok() => {
            return Some(Shape::Frames(Frames { number, offset, ..Frames::default() }));
        }
        None if !whole => return None,
        _ if resume.is_some() => return Some(Shape::Lines(Lines { number, offset, ..Lines::default() })),
        _ => {}
    }
    let trimmed = head.trim_ascii_start();
    let end = trimmed.iter().position(|&byte| byte == b'\n');
    if (end.is_none() && !whole) || trimmed.is_empty() {
        return None;
    }
    let line = end.and_then(|end| trimmed.get(..end)).unwrap_or(trimmed);
    // A key that each line of ours has, and nothing of Azure's.
    let ours = line.starts_with(b"{") && line.windows(11).any(|key| key == b"\"flowState\"");
    let azure = || Shape::Azure(Box::new(Reader::new(options.clone()).named(name)));
    Some(if ours { Shape::Lines(Lines::default()) } else { azure() })
}

impl Frames {
    fn push(
        &mut self,
        bytes: &[u8],
        name: &str,
        rows: &mut u64,
        each: &mut dyn FnMut(&str, FlowRecord),
    ) -> Result<(), DecodeError> {
        self.bytes += bytes.len() as u64;
        let mut held = std::mem::take(&mut self.rest);
        held.extend_from_slice(bytes);
        let mut rest = held.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
            let mistake =
                |error| DecodeError::Frame { name: name.to_owned(), number: self.number + 1, offset: self.offset, error };
            let header = Header::parse(head).map_err(mistake)?;
            let Some((body, behind)) = behind.split_at_checked(header.body_len()) else { break };
            let message = header.message(body).map_err(mistake)?;
            self.number += 1;
            self.offset += (HEADER_LEN + body.len()) as u64;
            rest = behind;
            // The account that a sensor adds is no record.
            let Message::Data(batch) = message else { continue };
            self.records += batch.records.len() as u64;
            *rows += batch.records.len() as u64;
            batch.records.into_iter().for_each(|record| each(&batch.sensor, record));
        }
        self.rest = rest.to_vec();
        Ok(())
    }
}

impl Lines {
    fn push(
        &mut self,
        bytes: &[u8],
        name: &str,
        rows: &mut u64,
        each: &mut dyn FnMut(&str, FlowRecord),
    ) -> Result<(), DecodeError> {
        self.bytes += bytes.len() as u64;
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = &after[1..];
            self.offset += (self.rest.len() + end + 1) as u64;
            if self.rest.is_empty() {
                self.line(line, name, rows, each)?;
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole, name, rows, each)?;
            }
        }
        self.rest.extend_from_slice(rest);
        if self.rest.len() > LINE_LEN_MAX {
            let why = format!("longer than {LINE_LEN_MAX} bytes; records are JSON objects, one on each line");
            return Err(DecodeError::Line { name: name.to_owned(), line: self.number + 1, why });
        }
        Ok(())
    }

    fn end(&mut self, name: &str, rows: &mut u64, each: &mut dyn FnMut(&str, FlowRecord)) -> Result<(), DecodeError> {
        let line = std::mem::take(&mut self.rest);
        if !line.is_empty() {
            self.line(&line, name, rows, each)?;
            self.offset += line.len() as u64;
        }
        Ok(())
    }

    fn line(
        &mut self,
        line: &[u8],
        name: &str,
        rows: &mut u64,
        each: &mut dyn FnMut(&str, FlowRecord),
    ) -> Result<(), DecodeError> {
        self.number += 1;
        let mistake = |why| DecodeError::Line { name: name.to_owned(), line: self.number, why };
        let not_text = || mistake("not text; make records of a capture with `spanwatch-sensor replay`".to_owned());
        let text = std::str::from_utf8(line).map_err(|_| not_text())?.trim();
        if text.is_empty() {
            return Ok(());
        }
        let record = text::read_json(text).map_err(|error| mistake(error.to_string()))?;
        self.records += 1;
        *rows += 1;
        each(OBSERVER, record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::flow::{FlowState, protocol};
    use spanwatch_common::net::Address;
    use spanwatch_common::time::Timestamp;
    use spanwatch_common::wire::{self, Batch, Stats};

    use super::*;

    const AZURE: &str = concat!(
        r#"{"records":[{"time":"2026-11-21T10:00:00Z","flowLogVersion":4,"macAddress":"00224800000A","category":"FlowLogFlowEvent","#,
        r#""flowRecords":{"flows":[{"aclID":"a","flowGroups":[{"rule":"r","flowTuples":["#,
        r#""1795255200000,10.0.0.4,10.0.1.1,40001,443,6,O,B,NX,0,0,0,0","1795255200000,10.0.0.4,10.0.1.2,40002,443,6,O,B,NX,0,0,0,0""#,
        r#"]}]}]}},{"time":"2026-11-21T10:01:00Z","flowLogVersion":4,"macAddress":"00224800000A","category":"FlowLogFlowEvent","#,
        r#""flowRecords":{"flows":[{"aclID":"a","flowGroups":[{"rule":"r","flowTuples":["#,
        r#""1795255260000,10.0.0.4,10.0.1.3,40003,443,6,O,B,NX,0,0,0,0"]}]}]}}]}"#
    );

    /// Three lines, the last without its line feed.
    fn lines() -> String {
        let mut text = String::new();
        for port in 40_001..=40_003 {
            let start = [Timestamp::from_secs(1_795_255_200), Timestamp::NONE];
            let record = FlowRecord {
                state: FlowState::Begin,
                source: Address::from_v4([10, 0, 0, 4]),
                destination: Address::from_v4([10, 0, 1, 1]),
                protocol: protocol::TCP,
                source_port: port,
                start,
                ..FlowRecord::default()
            };
            text::write_json(&record, &mut text);
        }
        text.trim_end().to_owned()
    }

    /// The same records in three frames, and an account between.
    fn frames() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (line, sequence) in lines().lines().zip(1..) {
            let records = vec![text::read_json(line).unwrap()];
            let batch = Batch { sensor: OBSERVER.to_owned(), boot: 1, sequence, records, ..Batch::default() };
            wire::encode(&Message::Data(batch), &mut bytes).unwrap();
            wire::encode(&Message::Stats(Stats { boot: 1, ..Stats::default() }), &mut bytes).unwrap();
        }
        bytes
    }

    fn ports(decoder: &mut Decoder, bytes: &[u8], finish: bool) -> Vec<u16> {
        let mut ports = Vec::new();
        let mut each = |_: &str, record: FlowRecord| ports.push(record.source_port);
        decoder.push(bytes, &mut each).unwrap();
        if finish {
            decoder.finish(&mut each).unwrap();
        }
        ports
    }

    #[test]
    fn whoever_goes_on_at_the_resume_point_gets_the_rest_and_nothing_twice() {
        for bytes in [AZURE.as_bytes().to_vec(), lines().into_bytes(), frames()] {
            for cut in 0..=bytes.len() {
                let mut decoder = Decoder::new("x", Options::default());
                let mut all = ports(&mut decoder, &bytes[..cut], false);
                let resume = decoder.resume_point();
                let mut next = match decoder.is_ours() {
                    true => Decoder::resume_ours("x", resume.clone()),
                    false => Decoder::resume("x", Options::default(), resume.clone()),
                };
                let offset = usize::try_from(resume.byte_offset).unwrap();
                all.extend(ports(&mut next, &bytes[offset..], true));
                assert_eq!(all, [40_001, 40_002, 40_003], "cut at {cut} of {}", String::from_utf8_lossy(&bytes));
            }
        }
    }

    #[test]
    fn a_file_of_batches_says_who_saw_them_what_is_damaged_and_what_is_missing() {
        let whole = frames();
        let mut decoder = Decoder::new("x", Options::default());
        let mut seen_by = Vec::new();
        decoder.push(&whole[..whole.len() - 1], &mut |sensor, _| seen_by.push(sensor.to_owned())).unwrap();
        decoder.finish(&mut |_, _| panic!("the last frame has not ended")).unwrap();
        assert_eq!(seen_by, [OBSERVER; 3]);
        let part = decoder.part();
        assert_eq!((part.rows, part.tuples, part.bytes), (3, 3, whole.len() as u64 - 1));
        assert!(part.held_back > 0, "an account was cut short");

        let mut damaged = whole;
        damaged[HEADER_LEN + 5] ^= 1;
        let error = Decoder::new("x", Options::default()).push(&damaged, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.starts_with("x: batch 1 at byte 0: checksum"), "{error}");
    }

    #[test]
    fn what_is_neither_ours_nor_azures_is_said_to_be_so() {
        for (text, sentence) in [
            ("{\"category\":\"AuditEvent\"}", "AuditEvent"),
            ("PAR1", "no flow log"),
            ("{\"flowState\":\"Begin\"}", "flowStartNanoseconds is missing"),
        ] {
            let mut decoder = Decoder::new("x", Options::default());
            let error = decoder.push(text.as_bytes(), &mut |_, _| {}).and_then(|()| decoder.finish(&mut |_, _| {})).unwrap_err();
            assert!(error.to_string().starts_with("x:") && error.to_string().contains(sentence), "{error}");
        }
    }
}
