//! Settings of the rules that look for scans.

use super::common::{Mistake, PortRange, Rule, settings, shared_parts, within};
use crate::catalogue::Entry;
use crate::counter::Counter;
use crate::finding::RuleCard;
use crate::scan::{Horizontal, Vertical};
use crate::{Detector, Mode};

/// AZ-01 in the catalogue.
pub const AZ_01: Entry = Entry {
    id: "AZ-01",
    title: "Horizontal scan",
    public_id: "giomke.github.io, Azure Network Security Monitoring, rule 1",
    public_name: "Horizontal port scan",
    tactics: "Discovery",
    exact: "Per source and minute, different destinations of TCP rows to ports below 10000 between private IPv4 addresses, \
            answered or not. Blind to public sources, UDP, high ports and IPv6; a browser of internal sites looks like a scan.",
    fixed: "Counts only contacts that came to nothing (no answer, refused, denied, or hung up on without a word), of any address, \
            port and family: TCP, UDP, SCTP and ping.",
    innocent: "A vulnerability scanner, monitoring of many dead hosts, a load balancer that probes its members by connecting and \
               hanging up.",
};

/// AZ-02 in the catalogue.
pub const AZ_02: Entry = Entry {
    id: "AZ-02",
    title: "Vertical scan",
    public_id: "giomke.github.io, Azure Network Security Monitoring, rule 2",
    public_name: "Vertical port scan",
    tactics: "Discovery",
    exact: "Per source, destination and minute, different ports of TCP rows to ports below 10000 between private IPv4 addresses, \
            answered or not. Blind to public sources, UDP, high ports and IPv6.",
    fixed: "Counts only contacts that came to nothing, of any address, port and family: TCP, UDP and SCTP.",
    innocent: "A vulnerability scanner, a client that looks for a service on several ports of a dead host.",
};

settings! {
    /// Settings of AZ-01.
    HorizontalScan {
        variants: [Fixed],
        window_secs: 60,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046", "T1018"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 65_536,
    }
    /// Fires above this many different hosts per source and window.
    threshold_hosts: u64 = 6,
}

impl Rule for HorizontalScan {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_hosts", self.threshold_hosts, 1, 1_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        Counter::boxed(Horizontal::new(card.variant, &common, self.threshold_hosts), card, &common, mode)
    }
}

settings! {
    /// Settings of AZ-02.
    VerticalScan {
        variants: [Fixed],
        window_secs: 60,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 65_536,
    }
    /// Fires above this many different ports per source, destination and window.
    threshold_ports: u64 = 3,
}

impl Rule for VerticalScan {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_ports", self.threshold_ports, 1, 1_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        Counter::boxed(Vertical::new(card.variant, &common, self.threshold_ports), card, &common, mode)
    }
}
