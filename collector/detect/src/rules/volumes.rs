//! Settings of the rules that compare volumes and counts with what is usual.

use std::time::Duration;

use super::common::{Mistake, Rule, settings, shared_parts, within};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::volume::Volume;
use crate::{Detector, Mode};

/// AZ-03 in the catalogue.
pub const AZ_03: Entry = Entry {
    id: "AZ-03",
    title: "Volume deviation",
    public_id: "erjosito/flowlogs-workbook",
    public_name: "Bandwidth deviation",
    tactics: "Exfiltration",
    exact: "Per virtual machine (the source address where the log names none) and service, octets of both directions in windows \
            of five minutes; reports the largest deviation from the mean of each pair, however small.",
    fixed: "Fires only at threshold_means and upwards, and only from octets_min on, against the windows of the look-back. What \
            two observers saw is not added up.",
    innocent: "A nightly backup over a service that idles by day, a software update.",
};

settings! {
    /// Settings of AZ-03.
    VolumeDeviation {
        variants: [Fixed],
        window_secs: 300,
        lateness_secs: 120,
        severity: Informational,
        attack: ["T1048", "T1041"],
        exclude_ports: [],
        keys_max: 20_000,
    }
    /// The fixed form fires when a window lies this many means above the mean.
    threshold_means: f64 = 5.0,
    /// The fixed form never fires below this many octets in a window.
    octets_min: u64 = 10_000_000,
    /// How much of the past makes the mean.
    look_back_secs: u64 = 86_400,
}

impl Rule for VolumeDeviation {
    shared_parts!();

    fn history(&self) -> Duration {
        Duration::from_secs(self.look_back_secs + self.lateness_secs)
    }

    fn check(&self) -> Result<(), Mistake> {
        if !(self.threshold_means > 0.0 && self.threshold_means.is_finite()) {
            return Err(("threshold_means", "must be above 0; 5 means six times the usual volume".to_owned()));
        }
        within("look_back_secs", self.look_back_secs, self.window_secs, 31 * 86_400)?;
        if self.look_back_secs / self.window_secs > 10_000 {
            return Err(("look_back_secs", "must be at most 10000 windows; use longer windows or look back less".to_owned()));
        }
        Ok(())
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        Box::new(Volume::new(self, card, mode))
    }
}
