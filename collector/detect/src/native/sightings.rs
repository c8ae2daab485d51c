//! The rows that become evidence: the earliest few of those that speak for a finding.

use serde::{Deserialize, Serialize};

use crate::finding::{EVIDENCE_ROWS_MAX, Sighting};
use crate::row::Row;

/// At most [`EVIDENCE_ROWS_MAX`] rows, the earliest; about 200 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sightings(Vec<Sighting>);

impl Sightings {
    /// Considers `row`.
    pub(crate) fn insert(&mut self, row: &Row) {
        let key = |seen: &Sighting| (seen.at, seen.source, seen.destination, seen.port, seen.source_port, seen.flow_id);
        let at = row.at.as_nanos();
        if self.0.len() >= EVIDENCE_ROWS_MAX && self.0.last().is_some_and(|last| last.at < at) {
            return;
        }
        let seen = Sighting::of(row);
        let place = self.0.partition_point(|other| key(other) <= key(&seen));
        self.0.insert(place, seen);
        self.0.truncate(EVIDENCE_ROWS_MAX);
    }

    /// The rows, earliest first.
    pub(crate) fn to_vec(&self) -> Vec<Sighting> {
        self.0.clone()
    }

    /// Forgets those that are earlier than `at` (nanoseconds since 1970).
    pub(crate) fn forget_before(&mut self, at: i64) {
        self.0.retain(|seen| seen.at >= at);
    }
}
