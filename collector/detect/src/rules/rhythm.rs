//! Settings of ND-10: beacons with jitter and missed calls.

use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, Weakness, native_parts, native_settings, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::native::beacon::Beacons;
use crate::{Detector, Mode};

/// ND-10 in the catalogue.
pub const ND_10: Entry = Entry {
    id: "ND-10",
    title: "Beacon with jitter",
    public_id: "",
    public_name: "",
    tactics: "Command and Control",
    exact: "",
    fixed: "Per source, destination outside, port and protocol, judged every hour over the last day: how regular the intervals are (jitter \
            and missed calls allowed), how alike the sizes, how much of the day is covered and how evenly; less what many hosts call and \
            what has been called for a month, more what hardly any other host calls and what is new.",
    innocent: "Agents and telemetry that few hosts have. What most hosts call, monitoring and backup servers stay silent.",
};

native_settings! {
    /// Settings of ND-10.
    BeaconInRhythm {
        enabled: true,
        window_secs: 86_400,
        lateness_secs: 120,
        severity: Medium,
        attack: ["T1071", "T1571"],
        exclude_ports: [PortRange::one(123)],
        keys_max: 131_072,
    }
    /// Fires from this likeness to a beacon on, 0 to 1. Lower finds beacons that vary their size and pause; below 0.7 busy hosts are
    /// found too.
    threshold: f64 = 0.8,
    /// How much each part of the likeness counts: interval, size, coverage of the day, flatness over its hours.
    weights: [f64; 4] = [0.25; 4],
    /// Contacts held at once, at 12 octets each.
    contacts_max: usize = 2_000_000,
}

impl Rule for BeaconInRhythm {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within_f64("threshold", self.threshold, 0.3, 1.0)?;
        self.weights.iter().try_for_each(|&weight| within_f64("weights", weight, 0.0, 1.0))?;
        if self.weights.iter().sum::<f64>() <= 0.0 {
            return Err(("weights", "must not all be 0; write [0.25, 0.25, 0.25, 0.25] if all parts count the same".to_owned()));
        }
        within("contacts_max", self.contacts_max as u64, 1_000, 1_000_000_000)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(86_400)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::Young]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        Box::new(Beacons::new(self, card))
    }
}
