//! What was looked at a moment ago: most rows of a busy host say again what an earlier one said.

use serde::{Deserialize, Serialize};

/// Slots, 8 bytes each: stays in the processor's cache.
const SLOTS: usize = 4_096;

/// Fingerprints of what was seen last, each in its one place.
///
/// It is saved with the state, so that what is skipped is the same after a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recent(Vec<u64>);

impl Default for Recent {
    fn default() -> Self {
        Self(vec![0; SLOTS])
    }
}

impl Recent {
    /// Whether `key` was put here, and nothing in its place since.
    pub(crate) fn has(&self, key: u64) -> bool {
        self.0[key as usize % SLOTS] == key
    }

    /// Notes `key`.
    pub(crate) fn put(&mut self, key: u64) {
        self.0[key as usize % SLOTS] = key;
    }

    /// Whether the state that it was read from has the right size.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.len() == SLOTS
    }
}
