//! Settings of ND-11 and ND-12: hosts that send out more than they do, and services that carry more or less than they do.

use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, Weakness, native_parts, native_settings, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::{Detector, Mode, native};

/// ND-11 in the catalogue.
pub const ND_11: Entry = Entry {
    id: "ND-11",
    title: "Exfiltration",
    public_id: "",
    public_name: "",
    tactics: "Exfiltration",
    exact: "",
    fixed: "Octets that each host sends out, against its own median for the hour of the week; against its days, if much goes where few send; \
            to one host in a new network, with little coming back; and by DNS or ICMP to one host. Told while it goes on.",
    innocent: "The first backup to a new place, a large file handed to a customer. Nightly and weekly jobs are learned, the role backup is \
               left out; a resolver with forwarders needs the role dns.",
};

/// ND-12 in the catalogue.
pub const ND_12: Entry = Entry {
    id: "ND-12",
    title: "Odd volume",
    public_id: "",
    public_name: "",
    tactics: "Impact, Exfiltration",
    exact: "",
    fixed: "Octets, flows, hosts and failures per ten minutes of each observer, in all, by direction and by service, against a forecast \
            learnt for each ten minutes of the week. More or less than that, twice in a row. Time in which the observer saw nothing is \
            left out.",
    innocent: "A holiday is no less than a Sunday; a patch day a month after the last is known. A new application, a migration.",
};

native_settings! {
    /// Settings of ND-11.
    Exfiltration {
        enabled: true,
        window_secs: 3_600,
        lateness_secs: 120,
        severity: High,
        attack: ["T1041", "T1048", "T1030", "T1567"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// An hour fires so many spreads above the median of this hour of the week. Lower finds smaller rises.
    z_hour: f64 = 6.0,
    /// And never below this many octets; ten times as many to a network that many hosts send to.
    octets_min: u64 = 10_000_000,
    /// A day fires so many spreads above the median of the host's days.
    z_day: f64 = 5.0,
    /// And never below this many octets.
    day_octets_min: u64 = 50_000_000,
    /// And only if this share of it, in percent, went to one host where few or nobody else send.
    rare_share_min: f64 = 20.0,
    /// An upload to one host in a new network fires from this many octets a day on; in the first week from ten times as many.
    upload_octets_min: u64 = 50_000_000,
    /// DNS or ICMP to one host fires from this many octets a day on.
    tunnel_octets_min: u64 = 5_000_000,
    /// Pairs of hosts followed in a day, at 100 octets each.
    pairs_max: usize = 262_144,
    /// Networks outside that are remembered, at 50 octets each.
    peers_max: usize = 131_072,
}

impl Rule for Exfiltration {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within_f64("z_hour", self.z_hour, 1.0, 1_000.0)?;
        within_f64("z_day", self.z_day, 1.0, 1_000.0)?;
        within_f64("rare_share_min", self.rare_share_min, 0.0, 100.0)?;
        for (key, octets) in [
            ("octets_min", self.octets_min),
            ("day_octets_min", self.day_octets_min),
            ("upload_octets_min", self.upload_octets_min),
            ("tunnel_octets_min", self.tunnel_octets_min),
        ] {
            within(key, octets, 1_000, 1_000_000_000_000_000)?;
        }
        within("pairs_max", self.pairs_max as u64, 16, 100_000_000)?;
        within("peers_max", self.peers_max as u64, 16, 100_000_000)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(28 * 86_400)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Blind]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        Box::new(native::exfiltration::Exfiltration::new(self, card))
    }
}

native_settings! {
    /// Settings of ND-12.
    OddVolume {
        enabled: true,
        window_secs: 3_600,
        lateness_secs: 120,
        severity: Low,
        attack: ["T1498", "T1048", "T1489"],
        exclude_ports: [],
        keys_max: 1_024,
    }
    /// Fires from this score on: how far off the forecast, on the scale of AZ-08 (5 is six standard deviations).
    threshold: f64 = 5.0,
    /// And from so many times the forecast on, or below the forecast divided by it.
    ratio_min: f64 = 3.0,
    /// And only so many bins of ten minutes in a row.
    bins_min: u32 = 2,
    /// Octets fire only this far off the forecast, in ten minutes.
    octets_min: u64 = 100_000_000,
    /// Flows fire only this far off.
    flows_min: u64 = 1_000,
    /// Hosts fire only this far off.
    hosts_min: u64 = 50,
    /// Failures fire only this far off.
    failures_min: u64 = 500,
    /// Services that are followed apart.
    ports: Vec<PortRange> = [
        22, 23, 25, 53, 80, 88, 102, 135, 139, 389, 443, 445, 465, 502, 587, 636, 993, 995, 1_433, 1_521, 1_883, 2_049, 2_404, 3_306,
        3_389, 4_840, 5_432, 5_900, 5_985, 8_080, 8_443, 20_000, 44_818,
    ]
    .map(PortRange::one)
    .to_vec(),
}

impl Rule for OddVolume {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within_f64("threshold", self.threshold, 1.5, 1_000.0)?;
        within_f64("ratio_min", self.ratio_min, 1.0, 1_000.0)?;
        within("bins_min", u64::from(self.bins_min), 1, 144)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(14 * 86_400)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Blind, Weakness::Young]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        Box::new(native::volume::OddVolume::new(self, card))
    }
}
