//! Settings of the rule for callbacks that fail.

use std::time::Duration;

use super::common::{Mistake, Rule, Weakness, native_parts, native_settings, within};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::native::callbacks::{Callbacks, StormSettings};
use crate::{Detector, Mode};

/// ND-28 in the catalogue.
pub const ND_28: Entry = Entry {
    id: "ND-28",
    title: "Failed callbacks",
    public_id: "",
    public_name: "",
    tactics: "Command and Control",
    exact: "",
    fixed: "Per source, destination and port, connections that came to nothing within ten minutes; fires from threshold_failures on, if \
            no conversation came about within a day, and if fewer than sources_max hosts have the same trouble. For destinations \
            inside only after a day of watching, and only if they have not failed for longer. No scan rule counts it: one endpoint is \
            no scan.",
    innocent: "A wrong setting, a licence server that is gone, a program that a firewall keeps from calling home: exclude the destination. \
               Monitoring servers and P2P hosts by their role.",
};

native_settings! {
    /// Settings of ND-28.
    FailedCallbacks {
        enabled: true,
        window_secs: 600,
        lateness_secs: 30,
        severity: Medium,
        attack: ["T1071", "T1571"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Fires from this many failed connections within ten minutes on. Lower finds malware that tries less often, and more wrong settings.
    threshold_failures: u64 = 30,
    /// From more hosts than this with the same trouble on, the trouble is the destination's.
    sources_max: u64 = 5,
}

impl Rule for FailedCallbacks {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_failures", self.threshold_failures, 3, 1_000_000)?;
        within("sources_max", self.sources_max, 1, 1_000)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(36 * 3_600)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Blind]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let settings = StormSettings { threshold_failures: self.threshold_failures, sources_max: self.sources_max as usize };
        Box::new(Callbacks::new(settings, card, &self.common_settings()))
    }
}
