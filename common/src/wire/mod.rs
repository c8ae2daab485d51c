//! The wire format between sensor and collector, version 1.
//!
//! # Constraints
//! A frame is checked before anything is allocated for it; a batch can be understood without any other batch; what is
//! acknowledged is durable; the format only grows: receivers pass over keys and columns that they do not know.
//!
//! # A frame
//! ```text
//! offset  size  field                                  (integers little-endian)
//!      0     4  length        of the body, at most FRAME_LEN_MAX
//!      4     1  codec         0 as it is, 1 zstd
//!      5     4  plain_length  of the body once decompressed, at most PLAIN_LEN_MAX and PLAIN_RATIO_MAX × length
//!      9     4  crc32c        of the body as sent (RFC 9260 appendix A)
//!     13     …  body          one message
//! ```
//!
//! # A message
//! MessagePack: `[kind, map]`, the map keyed by short names ([`Message`]). The conversation:
//! ```text
//! sensor                                   collector
//!   hello {version, sensor, boot, next…} →
//!                                        ←  welcome {version, resume_after, credit…}  or reject {code, reason}
//!   data {boot, sequence, ledger, rows…} →  (at most `credit` batches without acknowledgement)
//!   stats {ledger}                       →  (every ten seconds)
//!                                        ←  ack {boot, up_to}       after the commit that holds these batches is durable
//! ```
//! Hello and welcome also name the newest form of [batches](batch) that sensor and collector know; the sensor writes the older of the
//! two. Who names none knows the first.
//!
//! A sensor numbers its batches from 1 for each boot, without gaps. After a reconnect it goes on after `resume_after`; the
//! collector drops whatever it has already, so that each batch counts once. The collector repeats its last acknowledgement
//! every ten seconds as a sign of life. A hello with boot 0 only asks: it is welcomed or rejected like any other, but takes
//! over no running sensor's place, and the conversation ends there (`doctor`).
//!
//! # A batch
//! Columns of fixed-width little-endian integers, each relative to its smallest value, in form 2 also to other columns ([`batch`]).

pub mod batch;
mod column;
mod columns;
mod encoder;
mod frame;
mod layout;
mod message;
mod packer;

pub use batch::Batch;
pub use encoder::{Encoder, Head};
pub use frame::{FRAME_LEN_MAX, HEADER_LEN, Header, PLAIN_LEN_MAX, PLAIN_RATIO_MAX, WireError, decode, encode};
pub use message::{Ack, Hello, Message, Reject, RejectCode, Stats, VERSION, Welcome};

/// ALPN protocol name (RFC 7301) that both ends insist on.
pub const ALPN: &[u8] = b"spanwatch/1";
