//! Azure's flow logs and Traffic Analytics tables. Pure: bytes to rows and records to bytes; no network, no files, no clock.
//!
//! In the order in which you need to learn them:
//!
//! * [`Row`] — what one tuple or table row says
//! * [`Reader`] — files to rows, fed in pieces
//! * [`AzureError`] — what can be wrong with a file, and where
//! * [`Writer`] — records to files
//!
//! The formats, as far as a reader must know them:
//!
//! * **NSG flow log**: `{"records":[{…,"properties":{"Version":2,"flows":[{"rule":…,"flows":[{"mac":…,"flowTuples":["…"]}]}]}}]}`.
//!   A tuple has 8 fields (v1) or 13 (v2), times in seconds; v2 leaves the counters of a beginning empty.
//! * **VNet flow log**: `{"records":[{…,"flowRecords":{"flows":[{"aclID":…,"flowGroups":[{"rule":…,"flowTuples":["…"]}]}]}}]}`.
//!   A tuple has 13 fields, times in milliseconds; a denied flow is a state, not a column.
//! * **Traffic Analytics**: one flat row for all flows of an interval that differ only in the source port; public addresses are
//!   packed into one column.
//!
//! A file named `PT1H.json` holds an hour of one network interface and is appended to each minute, so a reader meets documents
//! without their end and, going on later, without their beginning.

mod analytics;
mod error;
mod field;
mod flow_log;
mod frame;
mod intern;
mod json;
mod reader;
mod row;
mod seen;
mod tuple;
mod write;

pub use error::{AzureError, ErrorKind};
pub use reader::{Counts, Finished, Options, Origins, Reader, Resume};
pub use row::{Group, Position, Row, State};
pub use write::{Format, Labels, Limits, Sink, Skipped, WriteError, Writer, Written};
