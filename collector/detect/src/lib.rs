//! Detection: folds over records in event time.
//!
//! A detector observes rows, closes windows when the records' own time has passed them, and says what it found. It asks no
//! database, reads no clock, holds bounded memory and does not know who made a record. Live stream and replay are the same code.
//!
//! In the order you need them: [`row`] what a detector sees · [`facts`] what is said of a row beforehand · `engine` all detectors together ·
//! `shards` how rows and detectors are divided · `crew` among which threads · [`sites`] where addresses belong · [`finding`] what it says ·
//! [`rules`] the rule files and the table of all rules · [`catalogue`] what each rule is, for people · [`card`] counting distinct
//! values · `windows` the windows of event time · `counter` rules that count per window, which are in `scan`, `sweep` and `sessions` ·
//! `fanout`, `beacon`, [`volume`] rules of another kind · `series` rules over days and hours that have closed · [`snapshot`] state as
//! bytes.

#![forbid(unsafe_code)]

mod beacon;
pub mod catalogue;
mod counter;
mod crew;
mod engine;
pub mod facts;
mod fanout;
pub mod finding;
mod hash;
pub mod indicators;
mod native;
#[cfg(test)]
mod parity;
mod ports;
mod reorder;
pub mod roles;
pub mod row;
pub mod rules;
mod scan;
mod series;
mod sessions;
mod shards;
pub mod sites;
pub mod snapshot;
mod sweep;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thresholds;
pub mod volume;
mod windows;

pub use spanwatch_kql::dcount as card;

use std::time::Duration;

use spanwatch_common::time::Timestamp;

pub use engine::{Counters, Detection};
pub use facts::{Facts, Interest};
pub use finding::{Finding, Stage, Variant};
pub use native::beacon::rhythm;
pub use roles::{LearnedRole, RoleSettings, Roles};
pub use row::Row;
pub use rules::RuleFile;
pub use shards::SHARDS;
pub use sites::{SiteSettings, Sites};

use snapshot::RestoreError;

/// When findings are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As soon as a threshold is crossed, then as the count grows, then when the window closes.
    Stream,
    /// When the window closes, and only then. Windows stay open to the end of the data, so that the answer does not depend on the
    /// order of records, unless there is no room for all of them.
    Replay,
}

/// One rule in one form.
pub trait Detector: Send {
    /// Takes in a row; may already tell something.
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>);

    /// Event time has reached `newest`: closes the windows that ended longer than the lateness before.
    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>);

    /// Closes all windows, because nothing comes any more for now.
    fn flush(&mut self, findings: &mut Vec<Finding>);

    /// The end of the data.
    fn finish(&mut self, findings: &mut Vec<Finding>) {
        self.flush(findings);
    }

    /// Whether it adds up what moved, rather than who met whom: only then is it shown [aggregates](Row::aggregate), which name no hosts.
    fn adds_up(&self) -> bool {
        false
    }

    /// Whether it must see rows in the order of their time. A stream is nearly in order and is shown as it comes; a replay is sorted
    /// first, as far as there is room.
    fn wants_order(&self) -> bool {
        false
    }

    /// Which rows it looks at. Others are not shown to it, which costs less than a look.
    fn interest(&self) -> Interest {
        Interest::EVERYTHING
    }

    /// By what its state can be divided among threads without changing what it says.
    fn sharding(&self) -> Sharding {
        Sharding::Whole
    }

    /// Account of itself.
    fn state(&self) -> &State;

    /// Brings [`State::bytes`] up to date, if it is not kept so: may look at everything it holds. Called at full minutes of event time.
    fn weigh(&mut self) {}

    /// How long windows stay open after their end.
    fn lateness(&self) -> Duration;

    /// Everything that it knows, as bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Goes on exactly as the detector with the same settings would have that made `bytes`.
    ///
    /// # Errors
    /// The bytes are not the state of such a detector. It is then as it was before.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;
}

/// By what the state of a detector can be divided: rows with the same key go to the same one of [`SHARDS`] shards, each of which is a
/// detector of its own with that part of `keys_max`. Other limits hold for each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// By the network of the initiator: /24 of IPv4, /48 of IPv6.
    Source,
    /// By the network of the responder: /24 of IPv4, /48 of IPv6.
    Destination,
    /// Not at all: one shard sees every row.
    Whole,
}

/// A detector's account of itself, for /metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// `AZ-01`.
    pub rule: &'static str,
    /// Exact or fixed.
    pub variant: Variant,
    /// Keys held now, over all open windows.
    pub keys: usize,
    /// Memory that it holds, in octets, about, as of the last full minute; 0 from a rule that does not say.
    pub bytes: usize,
    /// Rows that came after their window had closed.
    pub late: u64,
    /// Keys let go to make room. What they did is forgotten: raise `keys_max` if this grows.
    pub evicted: u64,
    /// Rows not counted because there was no room and nothing to let go.
    pub refused: u64,
}

impl State {
    /// Takes in the account of another shard.
    fn add(&mut self, other: &Self) {
        self.keys += other.keys;
        self.bytes += other.bytes;
        self.late += other.late;
        self.evicted += other.evicted;
        self.refused += other.refused;
    }
}
