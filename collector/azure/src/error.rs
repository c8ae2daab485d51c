//! What can be wrong with a file, said in one sentence that tells what to do.

use std::fmt;
use std::sync::Arc;

/// A file that cannot be read further. Every row before the mistake has been handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureError {
    /// The file's name, where the reader was told one.
    pub file: Option<Arc<str>>,
    /// Number of the record, from 0.
    pub record: u64,
    /// Number of the tuple within the record, from 0, if the mistake is in a tuple.
    pub tuple: Option<u32>,
    /// Where in the (uncompressed) file the mistake was noticed.
    pub byte_offset: u64,
    /// The mistake.
    pub kind: ErrorKind,
}

impl std::error::Error for AzureError {}

impl fmt::Display for AzureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        write!(f, "record {}", self.record)?;
        if let Some(tuple) = self.tuple {
            write!(f, ", tuple {tuple}")?;
        }
        write!(f, ", byte {}: {}", self.byte_offset, self.kind)
    }
}

/// The kinds of mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The beginning looks like nothing we read.
    #[error(
        "begins with {start:?}, which is no flow log; give a PT1H.json of NSG or VNet flow logs, or a Traffic Analytics table as JSON or CSV"
    )]
    NotAzure {
        /// The first bytes.
        start: String,
    },
    /// Compressed, by the first two bytes.
    #[error("is compressed with gzip; decompress it first")]
    Gzip,
    /// A byte order mark of UTF-16.
    #[error("is UTF-16 text; convert it to UTF-8")]
    Utf16,
    /// Not UTF-8 where text is wanted.
    #[error("{what} is not UTF-8 text; convert the file to UTF-8")]
    Utf8 {
        /// Of what.
        what: &'static str,
    },
    /// The JSON is broken.
    #[error("expected {expected}; the file is damaged here, fetch it again")]
    Json {
        /// What should stand here.
        expected: &'static str,
    },
    /// Another diagnostic log under the same file name.
    #[error(
        "category is {category:?}, the log of another service; give flow logs (NetworkSecurityGroupFlowEvent or FlowLogFlowEvent) or a Traffic Analytics table"
    )]
    ForeignCategory {
        /// What the record calls itself.
        category: String,
    },
    /// A JSON object that is neither flow log nor table row.
    #[error(
        "is no flow log record (its keys: {keys}); give a PT1H.json of flow logs, or a Traffic Analytics table with SrcIp and DestIp"
    )]
    ForeignRecord {
        /// Its first keys.
        keys: String,
    },
    /// A version whose tuples we do not know.
    #[error("version {version} of {format} is not known; versions 1 and 2 of NSG and 4 of VNet flow logs are")]
    Version {
        /// Which format.
        format: &'static str,
        /// What the record states.
        version: String,
    },
    /// A tuple with too few or too many fields.
    #[error("the tuple {tuple:?} does not have {expected} fields; the file is damaged here, fetch it again")]
    Arity {
        /// The tuple's beginning.
        tuple: String,
        /// How many fields it should have.
        expected: &'static str,
    },
    /// A field that does not say what it should.
    #[error("{field} is {value:?}, expected {expected}; the file is damaged here, fetch it again")]
    Field {
        /// Which field.
        field: &'static str,
        /// The field's beginning.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A column that a table row cannot do without.
    #[error("column {column} is missing or empty; export the table with it")]
    Missing {
        /// Which one.
        column: &'static str,
    },
    /// A CSV row with another number of fields than the header.
    #[error("has {fields} fields where the header has {columns}; export the table again")]
    CsvWidth {
        /// Fields of the row.
        fields: usize,
        /// Fields of the header.
        columns: usize,
    },
    /// A column of times in another zone.
    #[error("column {column:?} is not in UTC; export the table with times in UTC")]
    TimeZone {
        /// The column as the header names it.
        column: String,
    },
    /// One record fills more memory than allowed.
    #[error("the record is longer than {limit} bytes; raise record_len_max if the file is sound")]
    RecordTooLong {
        /// The limit.
        limit: usize,
    },
}

/// A mistake at a place relative to the record being read.
#[derive(Debug)]
pub(crate) struct Mistake {
    /// Bytes from the beginning of the record.
    pub(crate) at: usize,
    pub(crate) tuple: Option<u32>,
    pub(crate) kind: ErrorKind,
}

impl Mistake {
    pub(crate) const fn new(at: usize, kind: ErrorKind) -> Self {
        Self { at, tuple: None, kind }
    }

    pub(crate) const fn json(at: usize, expected: &'static str) -> Self {
        Self::new(at, ErrorKind::Json { expected })
    }
}

/// The beginning of what was found, short enough to print.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 60;
    let mut text = String::from_utf8_lossy(bytes.get(..SHOWN_MAX).unwrap_or(bytes)).into_owned();
    if bytes.len() > SHOWN_MAX {
        text.push('…');
    }
    text
}
