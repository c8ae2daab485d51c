//! Settings of the rules for floods.

use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, Weakness, native_parts, native_settings, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::native::flood::{FloodSettings, Floods, Floors, Kind};
use crate::ports::PortSet;
use crate::{Detector, Mode};

/// ND-07 in the catalogue.
pub const ND_07: Entry = Entry {
    id: "ND-07",
    title: "SYN flood",
    public_id: "",
    public_name: "",
    tactics: "Impact",
    exact: "",
    fixed: "Per host and port, TCP connections asked for in a second, kept up for sustain_secs; fires above threshold_syns and above six \
            times what is usual of the service, if hardly any of what is above the usual is completed. SYNs of one flow and those in \
            aggregates of a full table count by the minute. Ports that are not busy by themselves are added up if the sources are \
            scattered. Says how scattered the sources are, and names those that send most.",
    innocent: "Clients that all come back to a service that is still down; a load test of a server that is down. Scans stay silent: they \
               try each port or host a few times.",
};

/// ND-08 in the catalogue.
pub const ND_08: Entry = Entry {
    id: "ND-08",
    title: "Amplification flood",
    public_id: "",
    public_name: "",
    tactics: "Impact",
    exact: "",
    fixed: "Per host and port of the reflectors, octets per second of UDP answers that nobody asked for, or more than ten for each \
            octet asked; fires above threshold_mbits and above six times what is usual. Whoever of the two the sensor took for the \
            initiator. Told when the minute is over, as octets are counted in slices.",
    innocent: "A resolver or a monitoring server (give it its role), memcached over UDP within a data centre (exclude it).",
};

/// ND-09 in the catalogue.
pub const ND_09: Entry = Entry {
    id: "ND-09",
    title: "Connection or packet flood",
    public_id: "",
    public_name: "",
    tactics: "Impact",
    exact: "",
    fixed: "Per host and port, TCP connections that came about in a second, UDP flows that are hardly answered, datagrams from many \
            sources, ICMP packets; fires above the rule's number of each and above six times what is usual of the service. \
            Connections from fewer than sources_min sources are taken for a load test up to few_sources_factor times that.",
    innocent: "A load test by many machines, a campaign that brings the customers all at once, many senders of one-way video.",
};

/// The parts of a [`FloodSettings`] that all three have.
macro_rules! flood_settings {
    ($rule:expr, $floors:expr, share: $share:expr, sources: $sources:expr) => {
        FloodSettings {
            floors: $floors,
            factor: $rule.factor,
            cold_factor: $rule.cold_factor,
            learning_secs: $rule.learning_secs,
            half_life_secs: $rule.half_life_secs,
            sustain_secs: $rule.sustain_secs,
            good_share_max: $share / 100.0,
            sources_min: $sources.0,
            few_sources_factor: $sources.1,
        }
    };
}

macro_rules! check_common {
    ($rule:expr) => {
        within_f64("factor", $rule.factor, 1.5, 1_000.0)?;
        within_f64("cold_factor", $rule.cold_factor, 1.0, 1_000.0)?;
        within("learning_secs", $rule.learning_secs, 0, 86_400)?;
        within("half_life_secs", $rule.half_life_secs, 60, 604_800)?;
        within("sustain_secs", $rule.sustain_secs, 1, 10)?;
    };
}

/// To know what is usual, as much of the past as counts for it.
const fn history(learning_secs: u64, half_life_secs: u64) -> Duration {
    Duration::from_secs(learning_secs.saturating_add(half_life_secs.saturating_mul(4)))
}

native_settings! {
    /// Settings of ND-07.
    SynFlood {
        enabled: true,
        window_secs: 60,
        lateness_secs: 30,
        severity: High,
        attack: ["T1498.001", "T1499.001", "T0814"],
        exclude_ports: [],
        keys_max: 16_384,
    }
    /// Fires above this many connections asked for per second. Lower finds weaker floods; a small server is down at some hundreds.
    threshold_syns: f64 = 500.0,
    /// And only if at most this many percent of what is above the usual are completed.
    completed_share_max: f64 = 20.0,
    /// And only above this many times what is usual of the service (its mean, and as many times its spread).
    factor: f64 = 6.0,
    /// While nothing is usual yet, numbers are this many times higher.
    cold_factor: f64 = 2.0,
    /// So long after the first start it is learned what is usual.
    learning_secs: u64 = 600,
    /// What is usual forgets half in this time. Longer follows the hour of the day less.
    half_life_secs: u64 = 600,
    /// A rate must be kept up for so many seconds. Longer ignores bursts.
    sustain_secs: u64 = 3,
}

impl Rule for SynFlood {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        check_common!(self);
        within_f64("threshold_syns", self.threshold_syns, 10.0, 1e9)?;
        within_f64("completed_share_max", self.completed_share_max, 0.0, 100.0)
    }

    fn history(&self) -> Duration {
        history(self.learning_secs, self.half_life_secs)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Young]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let floors = Floors { connections: self.threshold_syns, segments: self.threshold_syns, ..Floors::default() };
        let settings = flood_settings!(self, floors, share: self.completed_share_max, sources: (1.0, 1.0));
        Box::new(Floods::new(Kind::Syn, settings, card, &self.common_settings()))
    }
}

native_settings! {
    /// Settings of ND-08.
    AmplificationFlood {
        enabled: true,
        window_secs: 60,
        lateness_secs: 30,
        severity: High,
        attack: ["T1498.002", "T0814"],
        exclude_ports: [],
        keys_max: 16_384,
    }
    /// Fires above this many million bits per second.
    threshold_mbits: f64 = 20.0,
    /// Ports of services that give long answers to short questions over UDP: qotd, chargen, DNS, TFTP, portmapper, NTP, NetBIOS, SNMP, CLDAP,
    /// RIP, SSDP, Apple Remote Management, WS-Discovery, mDNS, CoAP, memcached.
    reflectors: Vec<PortRange> = REFLECTORS.map(PortRange::one).to_vec(),
    /// And only above this many times what is usual of the host (its mean, and as many times its spread).
    factor: f64 = 6.0,
    /// While nothing is usual yet, numbers are this many times higher.
    cold_factor: f64 = 2.0,
    /// So long after the first start it is learned what is usual.
    learning_secs: u64 = 600,
    /// What is usual forgets half in this time. Longer follows the hour of the day less.
    half_life_secs: u64 = 600,
    /// A rate must be kept up for so many seconds; what slices carry is taken for ten seconds at least.
    sustain_secs: u64 = 3,
}

const REFLECTORS: [u16; 16] = [17, 19, 53, 69, 111, 123, 137, 161, 389, 520, 1_900, 3_283, 3_702, 5_353, 5_683, 11_211];

impl Rule for AmplificationFlood {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        check_common!(self);
        within("reflectors", self.reflectors.len() as u64, 1, 1_000)?;
        within_f64("threshold_mbits", self.threshold_mbits, 0.1, 1e6)
    }

    fn history(&self) -> Duration {
        history(self.learning_secs, self.half_life_secs)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Young]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let floors = Floors { datagram_flows: f64::MAX, datagrams: self.threshold_mbits * 125_000.0, ..Floors::default() };
        let settings = flood_settings!(self, floors, share: 100.0, sources: (1.0, 1.0));
        Box::new(Floods::new(Kind::Reflection(PortSet::of(&self.reflectors)), settings, card, &self.common_settings()))
    }
}

native_settings! {
    /// Settings of ND-09.
    LoadFlood {
        enabled: true,
        window_secs: 60,
        lateness_secs: 30,
        severity: Medium,
        attack: ["T1498.001", "T1499.002", "T0814"],
        exclude_ports: [],
        keys_max: 16_384,
    }
    /// Fires above this many TCP connections per second to one port of a host.
    threshold_connections: f64 = 500.0,
    /// Fires above this many UDP flows per second to a host that are not answered.
    threshold_datagram_flows: f64 = 2_000.0,
    /// Fires above this many datagrams per second from many sources to a host that hardly answers.
    threshold_datagrams: f64 = 20_000.0,
    /// Fires above this many ICMP packets per second to a host.
    threshold_pings: f64 = 5_000.0,
    /// Datagrams are a flood only if at most this many percent of what is above the usual are answered.
    answered_share_max: f64 = 20.0,
    /// Fewer sources make a load test. 1 takes every one of them for a flood.
    sources_min: f64 = 20.0,
    /// Connections of fewer sources are told, at low severity, from this many times the limit on.
    few_sources_factor: f64 = 10.0,
    /// And only above this many times what is usual of the service (its mean, and as many times its spread).
    factor: f64 = 6.0,
    /// While nothing is usual yet, numbers are this many times higher.
    cold_factor: f64 = 2.0,
    /// So long after the first start it is learned what is usual.
    learning_secs: u64 = 600,
    /// What is usual forgets half in this time. Longer follows the hour of the day less.
    half_life_secs: u64 = 600,
    /// A rate must be kept up for so many seconds. Longer ignores bursts.
    sustain_secs: u64 = 3,
}

impl Rule for LoadFlood {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        check_common!(self);
        within_f64("threshold_connections", self.threshold_connections, 10.0, 1e9)?;
        within_f64("threshold_datagram_flows", self.threshold_datagram_flows, 10.0, 1e9)?;
        within_f64("threshold_datagrams", self.threshold_datagrams, 10.0, 1e9)?;
        within_f64("threshold_pings", self.threshold_pings, 10.0, 1e9)?;
        within_f64("answered_share_max", self.answered_share_max, 0.0, 100.0)?;
        within_f64("sources_min", self.sources_min, 1.0, 500.0)?;
        within_f64("few_sources_factor", self.few_sources_factor, 1.0, 1e6)
    }

    fn history(&self) -> Duration {
        history(self.learning_secs, self.half_life_secs)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Young]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let floors = Floors {
            connections: self.threshold_connections,
            segments: f64::MAX,
            datagram_flows: self.threshold_datagram_flows,
            datagrams: self.threshold_datagrams,
            pings: self.threshold_pings,
        };
        let sources = (self.sources_min, self.few_sources_factor);
        let settings = flood_settings!(self, floors, share: self.answered_share_max, sources: sources);
        Box::new(Floods::new(Kind::Load, settings, card, &self.common_settings()))
    }
}
