//! What was looked at a moment ago: most rows of a busy host say again what an earlier one said.

use serde::{Deserialize, Serialize};

/// Slots, 8 bytes each: stays in the processor's cache.
const SLOTS: usize = 4_096;

/// Fingerprints of what was seen last, each in its one place.
///
/// It is saved with the state, so that what is skipped is the same after a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>")]
pub(crate) struct Recent(Vec<u64>);

impl Default for Recent {
    fn default() -> Self {
        Self(vec![0; SLOTS])
    }
}

impl TryFrom<Vec<u64>> for Recent {
    type Error = &'static str;

    fn try_from(slots: Vec<u64>) -> Result<Self, &'static str> {
        if slots.len() == SLOTS { Ok(Self(slots)) } else { Err("a table has another size") }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{pack, unpack};

    #[test]
    fn what_was_saved_is_read_again_and_a_table_of_another_size_is_refused() {
        let mut recent = Recent::default();
        recent.put(7);
        assert!(unpack::<Recent>(&pack(&recent)).is_ok_and(|read| read.has(7)));
        let error = unpack::<Recent>(&pack(&vec![0_u64; SLOTS - 1])).expect_err("too small").to_string();
        assert!(error.contains("a table has another size"), "{error}");
    }
}
