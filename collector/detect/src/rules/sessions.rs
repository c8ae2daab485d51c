//! Settings of the rules that count sessions: failed, denied, or on ports to be watched.

use std::path::PathBuf;
use std::sync::Arc;

use super::common::{Mistake, PortRange, Rule, settings, shared_parts, within};
use super::watch_list::{self, WatchEntry, WatchList};
use crate::catalogue::Entry;
use crate::counter::Counter;
use crate::finding::{RuleCard, Severity};
use crate::indicators::Indicators;
use crate::ports::PortSet;
use crate::sessions::{Denials, Failures, Indicated, Logons, PortMisuse};
use crate::{Detector, Mode};

/// AZ-07 in the catalogue.
pub const AZ_07: Entry = Entry {
    id: "AZ-07",
    title: "Excessive failures",
    public_id: "4902eddb-34f7-44a8-ac94-8486366e9494",
    public_name: "Excessive number of failed connections from a single source",
    tactics: "Impact",
    exact: "Per source and five minutes, rows that failed: denied in Azure's logs, refused or unanswered for a sensor. One connection \
            makes several rows. The public parser for VNet flow logs never says Failure, so there the rule is silent.",
    fixed: "Counts each failed connection once, not the platform's own, not to groups.",
    innocent: "An agent whose server is down and that retries without pause, a vulnerability scanner.",
};

settings! {
    /// Settings of AZ-07.
    ExcessiveFailures {
        variants: [Fixed],
        window_secs: 300,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1499"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Fires above this many failures per source and window.
    threshold_failures: u64 = 5_000,
}

impl Rule for ExcessiveFailures {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_failures", self.threshold_failures, 1, 1_000_000_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = Failures { variant: card.variant, exclude: common.exclude.clone(), threshold: self.threshold_failures };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-09 in the catalogue.
pub const AZ_09: Entry = Entry {
    id: "AZ-09",
    title: "Port misuse",
    public_id: "156997bd-da0f-4729-b47a-0a3e02dd50c8",
    public_name: "Detect port misuse by static threshold",
    tactics: "Command and Control, Execution, Initial Access",
    exact: "Per port on the watch list, protocol, direction and decision, rows in ten minutes. The source is not in the key: the \
            clients of a busy file server are added up.",
    fixed: "Per source, connections, each counted once.",
    innocent: "A backup over SMB, a software distribution point.",
};

settings! {
    /// Settings of AZ-09.
    PortMisuseRule {
        variants: [Fixed],
        window_secs: 600,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1095", "T1059", "T1203", "T1190"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Which ports are counted, and from how many sessions on they fire. The first entry that matches decides.
    watch_list: Vec<WatchEntry> = vec![
        WatchEntry::new("Tor", vec![PortRange::one(9_150), PortRange::one(9_151)], 1_000, Severity::High),
        WatchEntry::new("SMB", vec![PortRange::one(139), PortRange::one(445)], 1_000, Severity::High),
    ],
}

impl Rule for PortMisuseRule {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        watch_list::check(&self.watch_list)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let list = WatchList::new(&self.watch_list);
        let counting = PortMisuse { variant: card.variant, exclude: common.exclude.clone(), list };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-14 in the catalogue.
pub const AZ_14: Entry = Entry {
    id: "AZ-14",
    title: "RDP brute force",
    public_id: "b7dc801e-1e79-48bb-91e8-2229a8e6d40b",
    public_name: "Potential RDP brute force",
    tactics: "Credential Access",
    exact: "Per public IPv4 source and five minutes, failed connections to port 3389 that policy did not deny. A flow log knows no \
            other failure than a denial, so over Azure's files the rule never fires.",
    fixed: "Per source and destination, connections of any outcome: guessing passwords takes many short connections that succeed as \
            connections. Any source, IPv6 too.",
    innocent: "A load balancer that probes RDP, a connection broker, monitoring. Name them in exclude_sources.",
};

settings! {
    /// Settings of AZ-14.
    LogonGuessing {
        variants: [Fixed],
        window_secs: 300,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1110"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Fires from this many connections per key and window.
    threshold_connections: u64 = 25,
    /// The ports that are looked at.
    ports: Vec<PortRange> = vec![PortRange::one(3_389)],
}

impl Rule for LogonGuessing {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_connections", self.threshold_connections, 1, 1_000_000_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = Logons {
            variant: card.variant,
            exclude: common.exclude.clone(),
            threshold: self.threshold_connections,
            ports: PortSet::of(&self.ports),
        };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-22 in the catalogue.
pub const AZ_22: Entry = Entry {
    id: "AZ-22",
    title: "Several denies",
    public_id: "f8dad4e9-3f19-4d70-ab7f-8f19ccd43a3e",
    public_name: "Several deny actions registered",
    tactics: "Discovery, Lateral Movement, Command and Control",
    exact: "Per source, destination, protocol and hour, denied rows; every triple is told as soon as the hour has two of them. On any \
            network that reaches the Internet that is every hour.",
    fixed: "Fires from threshold_denials connections that were denied, each counted once, and ports that reset: these once however \
            often they were tried, because a service that is down refuses everybody.",
    innocent: "An agent that was never given its opening in the firewall and retries for ever.",
};

settings! {
    /// Settings of AZ-22.
    SeveralDenies {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 90,
        severity: Medium,
        attack: ["T1046", "T1071", "T1210"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// The fixed form fires from this many denials per source, destination, protocol and window.
    threshold_denials: u64 = 50,
}

impl Rule for SeveralDenies {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("threshold_denials", self.threshold_denials, 1, 1_000_000_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = Denials { variant: card.variant, exclude: common.exclude.clone(), threshold: self.threshold_denials };
        Counter::boxed(counting, card, &common, mode)
    }
}

/// AZ-24 in the catalogue.
pub const AZ_24: Entry = Entry {
    id: "AZ-24",
    title: "Known bad address",
    public_id: "Traffic Analytics, FlowType MaliciousFlow",
    public_name: "Malicious flow, or a match with an indicator",
    tactics: "Command and Control",
    exact: "Per source, destination and hour, rows that Traffic Analytics calls MaliciousFlow or of which an end is in the file of \
            indicators.",
    fixed: "Leaves out knocks from outside that came to nothing: the Internet knocks all day.",
    innocent: "A content network whose address somebody else once abused.",
};

settings! {
    /// Settings of AZ-24.
    KnownBad {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 90,
        severity: High,
        attack: ["T1071"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// A file of addresses and prefixes, one per line; empty for none.
    indicators: PathBuf = PathBuf::new(),
    /// The content of that file.
    #[serde(skip)]
    set: Arc<Indicators> = Arc::default(),
}

impl Rule for KnownBad {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        Ok(())
    }

    fn load(&mut self) -> Result<(), Mistake> {
        if !self.indicators.as_os_str().is_empty() {
            self.set = Arc::new(Indicators::load(&self.indicators).map_err(|sentence| ("indicators", sentence))?);
        }
        Ok(())
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let counting = Indicated { variant: card.variant, exclude: common.exclude.clone(), indicators: self.set.clone() };
        Counter::boxed(counting, card, &common, mode)
    }
}
