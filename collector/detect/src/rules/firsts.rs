//! Settings of the rules that know what was there before.

use std::sync::Arc;
use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, settings, shared_parts, within};
use crate::catalogue::Entry;
use crate::finding::{RuleCard, Variant};
use crate::ports::PortSet;
use crate::series::bins::Binned;
use crate::series::firsts::Firsts;
use crate::{Detector, Mode};

/// AZ-20 in the catalogue.
pub const AZ_20: Entry = Entry {
    id: "AZ-20",
    title: "New destination and port",
    public_id: "932fe71a-7a8c-4f35-bf88-321ab68ff562",
    public_name: "First Time Source IP to Destination Using Port",
    tactics: "Exfiltration, Command and Control",
    exact: "Each source, port and destination of the last hour, unless that destination is the only one that source and port had in \
            the seven days before: whoever has two regular destinations is reported every hour.",
    fixed: "Those of the last hour that were not seen in the memory, one finding per source; flows that came to nothing are left \
            to the scan rules. Silent while it learns.",
    innocent: "A new server, a new version of a program, a colleague back from holidays.",
};

/// AZ-21 in the catalogue.
pub const AZ_21: Entry = Entry {
    id: "AZ-21",
    title: "New port",
    public_id: "3d93fa57-53e5-4d5e-96d4-ad734a8df3a4",
    public_name: "Uncommon Port to IP",
    tactics: "Exfiltration, Command and Control",
    exact: "Each source and port of the last day, common ports left out, that was not seen in the seven days before.",
    fixed: "The same, one finding per source; flows that came to nothing are left to the scan rules. Silent while it learns.",
    innocent: "A new program or a new version of one, passive FTP, remote procedure calls with changing ports.",
};

settings! {
    /// Settings of AZ-20.
    NewDestination {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 120,
        severity: Informational,
        attack: ["T1071", "T1041"],
        exclude_ports: [PortRange::one(53), PortRange::one(80), PortRange::one(123), PortRange::one(443)],
        keys_max: 131_072,
    }
    /// How long a sighting is remembered.
    memory_secs: u64 = 604_800,
    /// How long the fixed form only learns.
    learn_secs: u64 = 604_800,
}

settings! {
    /// Settings of AZ-21.
    NewPort {
        variants: [Fixed],
        window_secs: 86_400,
        lateness_secs: 120,
        severity: Informational,
        attack: ["T1571", "T1048"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Ports that neither form reports.
    common_ports: Vec<PortRange> = [80, 443].map(PortRange::one).to_vec(),
    /// How long a sighting is remembered.
    memory_secs: u64 = 604_800,
    /// How long the fixed form only learns.
    learn_secs: u64 = 604_800,
}

/// What AZ-20 and AZ-21 share.
macro_rules! firsts_rule {
    ($name:ident, $destinations:literal, $common_ports:expr) => {
        impl Rule for $name {
            shared_parts!();

            fn history(&self) -> Duration {
                Duration::from_secs(self.memory_secs + self.learn_secs + self.lateness_secs)
            }

            fn check(&self) -> Result<(), Mistake> {
                within("memory_secs", self.memory_secs, self.window_secs, 62 * 86_400)?;
                within("learn_secs", self.learn_secs, 0, 62 * 86_400)
            }

            fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
                let common = self.common_settings();
                let common_ports: fn(&Self) -> PortSet = $common_ports;
                let rule = Firsts {
                    card: Arc::new(card.clone()),
                    destinations: $destinations,
                    exclude: common.exclude.clone(),
                    common_ports: common_ports(self),
                    bin: common.window,
                    memory: Duration::from_secs(self.memory_secs),
                    learn: if card.variant == Variant::Exact { Duration::ZERO } else { Duration::from_secs(self.learn_secs) },
                };
                Binned::boxed(rule, &card, &common, mode)
            }
        }
    };
}

firsts_rule!(NewDestination, true, |_| PortSet::default());
firsts_rule!(NewPort, false, |rule| PortSet::of(&rule.common_ports));
