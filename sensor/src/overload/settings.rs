//! The `[overload]` table of the sensor's configuration.

use serde::{Deserialize, Serialize};

/// What the sensor may do when packets come faster than it takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OverloadSettings {
    /// AF_XDP: when a ring overflows for some seconds, the XDP program looks at one packet in 2, 4, 8… only, chosen at random, and at no
    /// fewer than one in so many. The records then say of how many packets theirs are the sample (samplingPopulation), and the rate goes
    /// down again as the load does. 1 never samples: what does not fit is lost in bursts, of which the records say nothing. 1 to 1024.
    pub keep_one_in_max: u32,
}

impl Default for OverloadSettings {
    /// Sampling is on: it begins only when packets are being lost anyway, and a loss that is even and in the records is worth more than one
    /// that hits bursts, which are what detectors look for, and is only in the ledger.
    fn default() -> Self {
        Self { keep_one_in_max: 1024 }
    }
}

impl OverloadSettings {
    /// # Errors
    /// The key that is out of range, and a sentence about it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match self.keep_one_in_max {
            1..=1024 => Ok(()),
            value => Err(("keep_one_in_max", format!("{value} is out of range; choose 1 (never sample) to 1024"))),
        }
    }
}
