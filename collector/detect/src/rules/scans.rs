//! Settings of the rules that look for scans.

use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, settings, shared_parts, within, within_f64};
use crate::catalogue::Entry;
use crate::counter::Counter;
use crate::fanout::{FanOut, Limits};
use crate::finding::RuleCard;
use crate::ports::PortSet;
use crate::scan::{Horizontal, Vertical};
use crate::sweep::{PortScan, PortSweep, QuickPortScan, QuickSweep, WideScan};
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
            port and family: TCP, UDP, SCTP and ping. Fires if so many hosts were tried on one service, or four times as many in all: \
            the peers of a file sharer are each gone from another port.",
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
        keys_max: 16_384,
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

/// AZ-04 in the catalogue.
pub const AZ_04: Entry = Entry {
    id: "AZ-04",
    title: "Fan-out",
    public_id: "erjosito/flowlogs-workbook",
    public_name: "Fan-out (distinct destinations per source)",
    tactics: "Discovery",
    exact: "The five sources with most different destinations overall, and how many each reached in every five minutes. A chart: \
            somebody is always first, a resolver or a proxy as a rule.",
    fixed: "Fires when a source reaches more than threshold_hosts hosts in a window and more than threshold_factor times its own \
            mean over the look-back, after three windows at least.",
    innocent: "A deployment, the first day of a new monitoring system, a file-sharing client.",
};

settings! {
    /// Settings of AZ-04.
    FanOutRise {
        variants: [Fixed],
        window_secs: 300,
        lateness_secs: 120,
        severity: Low,
        attack: ["T1046"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// The fixed form fires above this many different hosts per source and window.
    threshold_hosts: u64 = 100,
    /// And only above so many times the source's own mean.
    threshold_factor: f64 = 5.0,
    /// How much of the past makes the mean; in a stream the exact form's chart covers as much.
    look_back_secs: u64 = 86_400,
}

impl Rule for FanOutRise {
    shared_parts!();

    fn history(&self) -> Duration {
        Duration::from_secs(self.look_back_secs + self.lateness_secs)
    }

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_hosts", self.threshold_hosts, 1, 1_000_000)?;
        within_f64("threshold_factor", self.threshold_factor, 1.0, 1_000.0)?;
        within("look_back_secs", self.look_back_secs, self.window_secs, 31 * 86_400)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let limits = Limits {
            threshold_hosts: self.threshold_hosts,
            threshold_factor: self.threshold_factor,
            look_back: Duration::from_secs(self.look_back_secs),
        };
        Box::new(FanOut::new(limits, card, &self.common_settings(), mode))
    }
}

/// AZ-05 in the catalogue.
pub const AZ_05: Entry = Entry {
    id: "AZ-05",
    title: "Port scan",
    public_id: "1da9853f-3dea-4ea9-b7e5-26730da3d537",
    public_name: "Port scan detected",
    tactics: "Discovery",
    exact: "Per public IPv4 source and five minutes, different ports, whatever the destinations and answered or not. Private \
            sources are not looked at, so a scan from inside is missed, and ports of many hosts are added up.",
    fixed: "Per source and destination, ports on which no conversation came about, of any source and family.",
    innocent: "A vulnerability scanner.",
};

settings! {
    /// Settings of AZ-05.
    PortScanRule {
        variants: [Fixed],
        window_secs: 300,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 16_384,
    }
    /// Fires above this many different ports per key and window.
    threshold_ports: u64 = 50,
}

impl Rule for PortScanRule {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_ports", self.threshold_ports, 1, 1_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = PortScan { variant: card.variant, exclude: common.exclude.clone(), threshold: self.threshold_ports };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-06 in the catalogue.
pub const AZ_06: Entry = Entry {
    id: "AZ-06",
    title: "Port sweep",
    public_id: "cd8faa84-4464-4b4e-96dc-b22f50c27541",
    public_name: "Network port sweep from external network",
    tactics: "Discovery",
    exact: "Per port and hour, different hosts reached inbound, counted up to 100. The source is not in the key: any service on \
            more than twenty hosts is a sweep, whoever asks for it.",
    fixed: "Per source and port, hosts with which no conversation came about, if they are most of the hosts that the source tried.",
    innocent: "A vulnerability scanner, monitoring of a service that is down on many hosts.",
};

settings! {
    /// Settings of AZ-06.
    PortSweepRule {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 90,
        severity: High,
        attack: ["T1046"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 65_536,
    }
    /// Fires above this many different hosts per key and window.
    threshold_hosts: u64 = 20,
    /// The fixed form fires only if at least this share of the hosts tried did not answer.
    failure_ratio_min: f64 = 0.5,
}

impl Rule for PortSweepRule {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_hosts", self.threshold_hosts, 1, 100)?;
        within_f64("failure_ratio_min", self.failure_ratio_min, 0.0, 1.0)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = PortSweep {
            variant: card.variant,
            exclude: common.exclude.clone(),
            threshold: self.threshold_hosts,
            failure_ratio_min: self.failure_ratio_min,
        };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-16 in the catalogue.
pub const AZ_16: Entry = Entry {
    id: "AZ-16",
    title: "Quick port scan",
    public_id: "b2c5907b-1040-4692-9802-9946031017e8",
    public_name: "Port Scan (Azure Firewall)",
    tactics: "Discovery, Reconnaissance",
    exact: "Per source, destination and half a minute, different ports, answered or not. Sources in exclude_sources are the known \
            scanners of the public rule and are not counted in this form either.",
    fixed: "Counts only ports on which no conversation came about.",
    innocent: "A vulnerability scanner.",
};

settings! {
    /// Settings of AZ-16.
    QuickPortScanRule {
        variants: [Fixed],
        window_secs: 30,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046", "T1595.001"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 16_384,
    }
    /// Fires above this many different ports per source, destination and window.
    threshold_ports: u64 = 100,
}

impl Rule for QuickPortScanRule {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_ports", self.threshold_ports, 1, 1_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = QuickPortScan { variant: card.variant, exclude: common.exclude.clone(), threshold: self.threshold_ports };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-17 in the catalogue.
pub const AZ_17: Entry = Entry {
    id: "AZ-17",
    title: "Quick port sweep",
    public_id: "720335f4-ee8c-4270-9424-d0859222168c",
    public_name: "Port Sweep (Azure Firewall)",
    tactics: "Discovery",
    exact: "Per source, port other than 80 and 443, and half a minute, different hosts, answered or not. The public rule looks only \
            at the hour between 24 and 23 hours ago; here every half minute is judged.",
    fixed: "Counts only hosts with which no conversation came about.",
    innocent: "A vulnerability scanner, a discovery run of an inventory system.",
};

settings! {
    /// Settings of AZ-17.
    QuickSweepRule {
        variants: [Fixed],
        window_secs: 30,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 65_536,
    }
    /// Fires above this many different hosts per source, port and window.
    threshold_hosts: u64 = 200,
    /// Ports that neither form looks at.
    ports_ignored: Vec<PortRange> = vec![PortRange::one(80), PortRange::one(443)],
}

impl Rule for QuickSweepRule {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_hosts", self.threshold_hosts, 1, 60_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = QuickSweep {
            variant: card.variant,
            exclude: common.exclude.clone(),
            threshold: self.threshold_hosts,
            ignored: PortSet::of(&self.ports_ignored),
        };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-23 in the catalogue.
pub const AZ_23: Entry = Entry {
    id: "AZ-23",
    title: "Wide scan",
    public_id: "Sentinel machine learning, Anomalous scanning activity",
    public_name: "Anomalous scanning activity",
    tactics: "Discovery",
    exact: "Per source and hour, different ports of others on rows that were not denied, between private and public IPv4 addresses, \
            ten common ports left out; fires at 600 if the source used at least 600 ports of its own and ports tried ÷ own ports \
            is at least 99.99 % (our reading of the public description). Blind to scanners that keep one source port, as most do.",
    fixed: "Counts ports on which no conversation came about, of any address and family, from whatever source port.",
    innocent: "A vulnerability scanner.",
};

settings! {
    /// Settings of AZ-23.
    WideScanRule {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 16_384,
    }
    /// Fires from this many different ports per source and window.
    threshold_ports: u64 = 600,
    /// The exact form wants so many different ports of the source.
    source_ports_min: u64 = 600,
    /// The exact form wants ports tried ÷ ports of the source to be at least this.
    port_ratio_min: f64 = 0.9999,
    /// Ports that neither form looks at.
    ports_ignored: Vec<PortRange> =
        [53, 67, 80, 123, 137, 138, 443, 445, 3_389, 8_080].into_iter().map(PortRange::one).collect(),
}

impl Rule for WideScanRule {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_ports", self.threshold_ports, 1, 65_536)?;
        within("source_ports_min", self.source_ports_min, 0, 65_536)?;
        within_f64("port_ratio_min", self.port_ratio_min, 0.0, 1_000.0)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = WideScan {
            variant: card.variant,
            exclude: common.exclude.clone(),
            threshold: self.threshold_ports,
            source_ports_min: self.source_ports_min,
            port_ratio_min: self.port_ratio_min,
            ignored: PortSet::of(&self.ports_ignored),
        };
        Counter::boxed(counting, card, &common, mode)
    }
}
