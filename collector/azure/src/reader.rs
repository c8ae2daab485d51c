//! Files of Azure to rows, fed in pieces of any size.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Origin;

use crate::analytics::{Column, Columns, column};
use crate::error::{AzureError, ErrorKind, Mistake, excerpt};
use crate::flow_log;
use crate::frame::{CsvFramer, Frame, JsonFramer, csv_fields};
use crate::intern::Interner;
use crate::row::{Position, Row};
use crate::seen::Seen;

/// What a reader may use, and how it reads Traffic Analytics.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest record, in bytes; one longer is an error. A minute of the busiest interfaces fills some megabytes. Default 64 MiB.
    ///
    /// A reader holds one record, and nothing else that grows with the file.
    pub record_len_max: usize,
    /// How many tuples back an exact duplicate is recognised, at least; twice as many at most. 16 to 64 bytes each. 0 keeps
    /// duplicates. Default 262,144.
    ///
    /// Rows of Traffic Analytics are never taken for duplicates: an export of few columns has equal rows that are different flows.
    pub duplicates_remembered: usize,
    /// Leave a blank source or destination of Traffic Analytics blank, as its own queries see it, instead of making one row of
    /// each public address. Default false.
    pub ta_parity: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { record_len_max: 64 << 20, duplicates_remembered: 1 << 18, ta_parity: false }
    }
}

/// What a reader has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes taken.
    pub bytes: u64,
    /// Records read to their end, table rows included.
    pub records: u64,
    /// Tuples (or rows of a table, one for each public address), duplicates included.
    pub tuples: u64,
    /// Exact duplicates left out.
    pub duplicates: u64,
    /// Rows of a Traffic Analytics table that are no flows (`SubType` other than `FlowLog`), left out.
    pub other_rows: u64,
}

/// Which formats have been met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origins(u8);

impl Origins {
    #[inline]
    pub(crate) const fn note(&mut self, origin: Origin) {
        self.0 |= 1 << origin as u8;
    }

    /// In the order of their age.
    pub fn iter(self) -> impl Iterator<Item = Origin> {
        Origin::ALL.into_iter().filter(move |&origin| self.0 & 1 << origin as u8 != 0)
    }
}

/// Where to go on in a file later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// First byte not read: just behind the last whole record. In a blob that grows, the closing `]}` lies behind it.
    pub byte_offset: u64,
    /// Number of the next record.
    pub record: u64,
    /// First line of a CSV file; without it the columns have no names.
    pub csv_header: Option<String>,
}

/// What the end of the input left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Bytes of a record that has not ended. Not a mistake: Azure may still be writing it.
    pub held_back: u64,
    /// Where to go on when there is more.
    pub resume: Resume,
    /// The final counts.
    pub counts: Counts,
}

/// What reading a record needs besides its bytes.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) interner: Interner,
    pub(crate) seen: Seen,
    pub(crate) counts: Counts,
    pub(crate) origins: Origins,
    pub(crate) ta_parity: bool,
}

/// Reads one file, whatever its format: NSG flow log v1 and v2 and VNet flow log v4, mixed as they come, as a whole document or
/// any fragment of it; Traffic Analytics tables as JSON (lines, array) or CSV.
///
/// ```
/// use spanwatch_azure::{Options, Reader};
///
/// let mut reader = Reader::new(Options::default());
/// let mut rows = 0;
/// for piece in [&br#"{"records":[{"category":"FlowLogFl"#[..], br#"owEvent","flowRecords":{"flows":[]}}]}"#] {
///     reader.push(piece, |_row| rows += 1)?;
/// }
/// let finished = reader.finish(|_row| rows += 1)?;
/// assert_eq!((rows, finished.counts.records, finished.held_back), (0, 1, 0));
/// # Ok::<(), spanwatch_azure::AzureError>(())
/// ```
#[derive(Debug)]
pub struct Reader {
    record_len_max: usize,
    file: Option<Arc<str>>,
    /// What has been pushed and is not done with; `base` is the place of its first byte in the file.
    text: Vec<u8>,
    base: u64,
    shape: Shape,
    resume: Resume,
    workshop: Workshop,
    failed: Option<AzureError>,
}

/// What the file turned out to be.
#[derive(Debug)]
enum Shape {
    Unknown,
    Json(JsonFramer),
    Csv(CsvFramer, Header),
}

/// The columns of a CSV file that we read, by place.
#[derive(Debug)]
struct Header {
    columns: Vec<Option<(Column, bool)>>,
}

impl Reader {
    /// For a file from its beginning.
    pub fn new(options: Options) -> Self {
        Self {
            record_len_max: options.record_len_max,
            file: None,
            text: Vec::new(),
            base: 0,
            shape: Shape::Unknown,
            resume: Resume::default(),
            workshop: Workshop {
                interner: Interner::default(),
                seen: Seen::new(options.duplicates_remembered),
                counts: Counts::default(),
                origins: Origins::default(),
                ta_parity: options.ta_parity,
            },
            failed: None,
        }
    }

    /// For a file from where another reader stopped: the first byte pushed is that at `resume.byte_offset`.
    ///
    /// Duplicates of what the other reader saw are not recognised; keep the reader for that.
    pub fn resume(options: Options, resume: Resume) -> Self {
        let mut reader = Self::new(options);
        reader.base = resume.byte_offset;
        reader.shape = match &resume.csv_header {
            Some(header) => Shape::Csv(CsvFramer::default(), Header::tolerant(header)),
            None if resume.byte_offset > 0 => Shape::Json(JsonFramer::default()),
            None => Shape::Unknown,
        };
        reader.resume = resume;
        reader
    }

    /// Names the file in errors.
    #[must_use]
    pub fn named(mut self, file: &str) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Takes the next bytes of the file; hands over the rows of every record that they complete.
    ///
    /// # Errors
    /// The file cannot be read further; rows before the mistake have been handed over. The reader says the same ever after.
    pub fn push(&mut self, bytes: &[u8], mut sink: impl FnMut(&Row<'_>)) -> Result<(), AzureError> {
        /// What is looked at in one go: still in the cache when it is read a second time.
        const PIECE: usize = 128 << 10;
        self.still_good()?;
        for piece in bytes.chunks(PIECE) {
            self.workshop.counts.bytes += piece.len() as u64;
            self.text.extend_from_slice(piece);
            self.take(false, &mut sink)?;
        }
        Ok(())
    }

    /// The file ends here, for now. A CSV file's last line may lack its line end; any other record that has not ended is held back.
    ///
    /// When the file has grown, [`rewind`](Self::rewind) and push what follows the resume point.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self, mut sink: impl FnMut(&Row<'_>)) -> Result<Finished, AzureError> {
        self.still_good()?;
        self.take(true, &mut sink)?;
        Ok(Finished { held_back: self.text.len() as u64, resume: self.resume_point(), counts: self.workshop.counts })
    }

    /// Where another reader could go on: behind the last record that was read to its end.
    pub fn resume_point(&self) -> Resume {
        self.resume.clone()
    }

    /// Forgets what follows the last whole record: the next byte pushed is that at the [resume point](Self::resume_point).
    ///
    /// For a blob that has grown: Azure puts new records before the closing `]}` that was read already. Duplicates of earlier records
    /// are still recognised.
    pub fn rewind(&mut self) {
        self.text.clear();
        self.base = self.resume.byte_offset;
        match &mut self.shape {
            shape if self.base == 0 => *shape = Shape::Unknown,
            Shape::Unknown => {}
            Shape::Json(framer) => *framer = JsonFramer::default(),
            Shape::Csv(framer, _) => *framer = CsvFramer::default(),
        }
    }

    /// What has been counted so far.
    pub const fn counts(&self) -> Counts {
        self.workshop.counts
    }

    /// The formats of the rows handed over so far.
    pub const fn origins(&self) -> Origins {
        self.workshop.origins
    }

    fn still_good(&self) -> Result<(), AzureError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Reads what can be read of `text`, and drops it.
    fn take(&mut self, end: bool, sink: &mut dyn FnMut(&Row<'_>)) -> Result<(), AzureError> {
        let taken = self.recognise(end).and_then(|()| match self.shape {
            Shape::Unknown => Ok(()),
            Shape::Json(_) => self.take_json(sink),
            Shape::Csv(..) => self.take_csv(end, sink),
        });
        taken.map_err(|mistake| {
            let error = AzureError {
                file: self.file.clone(),
                record: self.resume.record,
                tuple: mistake.tuple,
                byte_offset: self.base + mistake.at as u64,
                kind: mistake.kind,
            };
            self.text = Vec::new();
            self.failed = Some(error.clone());
            error
        })
    }

    fn drop_front(&mut self, length: usize) {
        self.text.drain(..length);
        self.base += length as u64;
    }

    /// Finds out what the file is, from its first bytes.
    fn recognise(&mut self, end: bool) -> Result<(), Mistake> {
        /// A header longer than this is none.
        const HEADER_MAX: usize = 64 << 10;
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        if !matches!(self.shape, Shape::Unknown) {
            return Ok(());
        }
        if self.base == 0 && !end && self.text.len() < BYTE_ORDER_MARK.len() {
            return Ok(());
        }
        if self.base == 0 && self.text.starts_with(BYTE_ORDER_MARK) {
            self.drop_front(BYTE_ORDER_MARK.len());
        }
        let blank = self.text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.drop_front(blank);
        match *self.text.as_slice() {
            [] => {}
            [b'{' | b'[' | b',' | b']' | b'}', ..] => self.shape = Shape::Json(JsonFramer::default()),
            [0x1f, 0x8b, ..] => return Err(Mistake::new(0, ErrorKind::Gzip)),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(Mistake::new(0, ErrorKind::Utf16)),
            _ => {
                let mut framer = CsvFramer::default();
                let line = match framer.next(&self.text) {
                    Frame::Record(line) => line,
                    Frame::More if self.text.len() > HEADER_MAX => 0..HEADER_MAX,
                    Frame::More if end => 0..self.text.len(),
                    Frame::More => return Ok(()),
                };
                let line = self.text.get(line).unwrap_or_default();
                let not_azure = || Mistake::new(0, ErrorKind::NotAzure { start: excerpt(line) });
                let text = std::str::from_utf8(line).map_err(|_| not_azure())?.to_owned();
                let header = Header::new(&text).map_err(|kind| Mistake::new(0, kind))?.ok_or_else(not_azure)?;
                self.drop_front(framer.done().max(if end { text.len() } else { 0 }));
                self.resume = Resume { byte_offset: self.base, record: 0, csv_header: Some(text) };
                self.shape = Shape::Csv(CsvFramer::default(), header);
            }
        }
        Ok(())
    }

    fn take_json(&mut self, sink: &mut dyn FnMut(&Row<'_>)) -> Result<(), Mistake> {
        let Shape::Json(framer) = &mut self.shape else { return Ok(()) };
        while let Frame::Record(range) = framer.next(&self.text)? {
            if range.len() > self.record_len_max {
                return Err(Mistake::new(range.start, ErrorKind::RecordTooLong { limit: self.record_len_max }));
            }
            let (start, end) = (range.start, range.end);
            let place = Position { byte_offset: self.base + start as u64, record: self.resume.record, tuple: 0 };
            let record = self.text.get(range).unwrap_or_default();
            flow_log::read(record, place, &mut self.workshop, sink)
                .map_err(|mistake| Mistake { at: start + mistake.at, ..mistake })?;
            self.workshop.counts.records += 1;
            self.resume.record += 1;
            self.resume.byte_offset = self.base + end as u64;
        }
        let done = framer.done();
        framer.drop_front();
        self.drop_front(done);
        self.check_length()
    }

    fn take_csv(&mut self, end: bool, sink: &mut dyn FnMut(&Row<'_>)) -> Result<(), Mistake> {
        let Shape::Csv(framer, header) = &mut self.shape else { return Ok(()) };
        loop {
            let (line, complete) = match framer.next(&self.text) {
                Frame::Record(line) => (line, true),
                Frame::More if end => match framer.last(&self.text) {
                    Some(line) => (line, false),
                    None => break,
                },
                Frame::More => break,
            };
            let start = line.start;
            let place = Position { byte_offset: self.base + start as u64, record: self.resume.record, tuple: 0 };
            let line = self.text.get(line).unwrap_or_default();
            if line.len() > self.record_len_max {
                return Err(Mistake::new(start, ErrorKind::RecordTooLong { limit: self.record_len_max }));
            }
            if !line.trim_ascii().is_empty() {
                let fields = csv_fields(line);
                // A last line without an end may be half a line: with all its fields it is taken, with fewer it is held back.
                if !complete && fields.len() < header.columns.len() {
                    framer.hold_back(start);
                    break;
                }
                header.row(fields, place, &mut self.workshop, sink).map_err(|kind| Mistake::new(start, kind))?;
                self.workshop.counts.records += 1;
                self.resume.record += 1;
            }
            self.resume.byte_offset = self.base + framer.done() as u64;
        }
        let done = framer.done();
        framer.drop_front();
        self.drop_front(done);
        self.check_length()
    }

    /// Whether the record that has not ended may still grow.
    fn check_length(&self) -> Result<(), Mistake> {
        if self.text.len() > self.record_len_max {
            Err(Mistake::new(0, ErrorKind::RecordTooLong { limit: self.record_len_max }))
        } else {
            Ok(())
        }
    }
}

impl Header {
    /// The columns that `line` names; none if they are not those of a flow table.
    fn new(line: &str) -> Result<Option<Self>, ErrorKind> {
        let mut columns = Vec::new();
        for field in csv_fields(line.as_bytes()) {
            let name = String::from_utf8_lossy(&field);
            // The portal adds the time zone: `FlowStartTime [UTC]`.
            let (name, zone) = match name.trim().split_once('[') {
                Some((name, zone)) => (name.trim().to_owned(), Some(zone.trim_end_matches(']').trim().to_owned())),
                None => (name.trim().to_owned(), None),
            };
            let found = column(name.as_bytes());
            if found.is_some() && zone.is_some_and(|zone| !zone.eq_ignore_ascii_case("UTC")) {
                return Err(ErrorKind::TimeZone { column: excerpt(&field) });
            }
            columns.push(found);
        }
        let names = |wanted| columns.iter().flatten().any(|&(column, _)| column == wanted);
        Ok((names(Column::SrcIp) && names(Column::DestIp)).then_some(Self { columns }))
    }

    /// From a header that was accepted before.
    fn tolerant(line: &str) -> Self {
        Self::new(line).ok().flatten().unwrap_or(Self { columns: Vec::new() })
    }

    fn row(
        &self,
        fields: Vec<Vec<u8>>,
        place: Position,
        workshop: &mut Workshop,
        sink: &mut dyn FnMut(&Row<'_>),
    ) -> Result<(), ErrorKind> {
        if fields.len() != self.columns.len() {
            return Err(ErrorKind::CsvWidth { fields: fields.len(), columns: self.columns.len() });
        }
        let mut row = Columns::default();
        for (&column, field) in self.columns.iter().zip(fields) {
            if let Some((column, suffixed)) = column {
                let text = String::from_utf8(field).map_err(|_| ErrorKind::Utf8 { what: "a column" })?;
                row.set(column, suffixed, Cow::Owned(text));
            }
        }
        row.rows(place, workshop, sink)
    }
}
