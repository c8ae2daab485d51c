//! Settings of the rules that ask how far a count lies from the usual one: AZ-13, AZ-18, AZ-19, AZ-25 and AZ-26.

use std::sync::Arc;
use std::time::Duration;

use super::{WINDOWS_MAX, windows};
use crate::catalogue::Entry;
use crate::finding::{RuleCard, Variant};
use crate::ports::PortSet;
use crate::rules::common::{Mistake, PortRange, Rule, settings, shared_parts, within, within_f64};
use crate::series::bins::Binned;
use crate::series::common_ports::CommonPort;
use crate::series::ranking::Ranking;
use crate::series::rates::{Rates, What};
use crate::series::smb::Smb;
use crate::{Detector, Mode};

/// AZ-13 in the catalogue.
pub const AZ_13: Entry = Entry {
    id: "AZ-13",
    title: "Unusual SMB",
    public_id: "8717e498-7b5d-4e23-9e7c-fa4913dbfd79",
    public_name: "Anomaly in SMB Traffic",
    tactics: "Lateral Movement",
    exact: "SMB rows of a private source and port in the last day against all of the 13 days before, added up: the query averages \
            a single number. A host that does the same every day deviates by 0.923 and fires, every day.",
    fixed: "The day's flows against the median of the days before, in median deviations; from flows_min above the median on.",
    innocent: "A file server that moves, a new drive in the login script, an inventory or backup that runs for the first time.",
};

/// AZ-18 in the catalogue.
pub const AZ_18: Entry = Entry {
    id: "AZ-18",
    title: "Unusual rate of denials",
    public_id: "d36bb1e3-5abc-4037-ad9a-24ba3469819e",
    public_name: "Abnormal Deny Rate for Source IP",
    tactics: "Initial Access, Exfiltration, Command and Control",
    exact: "Denials of a source in the last hour against mean and deviation of its denials at each destination in the 24 hours \
            before (its text says 5 days), where at least six of them had any. The whole is compared with a part.",
    fixed: "Denials of a source against its own, over 5 days; what was refused or not answered counts as denied, because a mirror \
            port sees no policy. From ratio_min times the mean on.",
    innocent: "A firewall rule that changed, a server that moved and leaves its clients knocking.",
};

/// AZ-19 in the catalogue.
pub const AZ_19: Entry = Entry {
    id: "AZ-19",
    title: "Unusually many destinations",
    public_id: "d006f4f8-86bb-4c9d-9826-837762ddad6b",
    public_name: "Source IP Abnormally Connects to Multiple Destinations",
    tactics: "Execution, Lateral Movement",
    exact: "Counts the different destinations of each source and destination, which is 1, and compares it with 10 or more: as \
            published, the query cannot report anything. Neither does this form.",
    fixed: "Different destinations of a source in the last hour against mean and deviation of its hours in 5 days, at least six \
            with traffic; from ratio_min times the mean on.",
    innocent: "An update server at its hour, a monitoring system that got more to watch, a crawler.",
};

/// AZ-25 in the catalogue.
pub const AZ_25: Entry = Entry {
    id: "AZ-25",
    title: "Unusual use of a common port",
    public_id: "Sentinel anomaly (machine learning, no public query)",
    public_name: "Unusual communication on common ports",
    tactics: "Command and Control, Exfiltration",
    exact: "Rows, octets and different sources of a common port in a day above mean and three deviations of the seven days before.",
    fixed: "Above the median and three median deviations, from ratio_min times the median on, after days_min days.",
    innocent: "Patch day, a backup that moved to HTTPS, a new office.",
};

/// AZ-26 in the catalogue.
pub const AZ_26: Entry = Entry {
    id: "AZ-26",
    title: "Hosts that vary most",
    public_id: "Traffic Analytics FAQ",
    public_name: "Standard deviation in traffic received or sent",
    tactics: "",
    exact: "Addresses at either end, ranked by the standard deviation of flows and of octets per row. How a log cuts flows into \
            rows decides much of it.",
    fixed: "Private addresses, ranked each day by the standard deviation of their octets per hour.",
    innocent: "Everything: it is a ranking to look through, not an alarm, and off as shipped.",
};

settings! {
    /// Settings of AZ-13.
    UnusualSmb {
        variants: [Fixed],
        window_secs: 86_400,
        lateness_secs: 120,
        severity: Medium,
        attack: ["T1021.002"],
        exclude_ports: [],
        keys_max: 20_000,
    }
    /// The ports of SMB.
    ports: Vec<PortRange> = [139, 445].map(PortRange::one).to_vec(),
    /// Windows looked back, the judged one included.
    look_back_windows: u64 = 14,
    /// The exact form fires above this share of the sum of the windows before.
    deviation_max: f64 = 0.5,
    /// The fixed form fires from so many median deviations above the median on.
    z_min: f64 = 5.0,
    /// The fixed form fires from so many flows above the median on.
    flows_min: u64 = 20,
    /// The fixed form judges after so many windows with SMB of anybody.
    windows_min: u64 = 5,
}

impl Rule for UnusualSmb {
    shared_parts!();

    fn history(&self) -> Duration {
        windows(self.window_secs, self.look_back_windows)
    }

    fn check(&self) -> Result<(), Mistake> {
        within("look_back_windows", self.look_back_windows, 2, WINDOWS_MAX)?;
        within_f64("deviation_max", self.deviation_max, 0.0, 1e6)?;
        within_f64("z_min", self.z_min, 0.1, 1e6)?;
        within("windows_min", self.windows_min, 1, self.look_back_windows - 1)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let rule = Smb {
            card: Arc::new(card.clone()),
            exclude: common.exclude.clone(),
            bin: common.window,
            look_back: self.look_back_windows as u32,
            ports: PortSet::of(&self.ports),
            deviation_max: self.deviation_max,
            z_min: self.z_min,
            flows_min: self.flows_min,
            bins_min: self.windows_min as usize,
        };
        Binned::boxed(rule, &card, &common, mode)
    }
}

settings! {
    /// Settings of AZ-18.
    DenialRate {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 120,
        severity: Informational,
        attack: ["T1190", "T1041", "T1568"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 65_536,
    }
    /// Standard deviations above the mean.
    sigmas: f64 = 3.0,
    /// Never fires up to this many denials in a window.
    count_min: u64 = 5,
    /// Windows with denials that it takes to know what is usual.
    buckets_min: u64 = 6,
    /// Windows that the exact form learns from.
    look_back_windows: u64 = 24,
    /// Windows that the fixed form learns from.
    learn_windows: u64 = 120,
    /// The fixed form fires from so many times the mean on.
    ratio_min: f64 = 2.0,
}

settings! {
    /// Settings of AZ-19.
    ManyDestinations {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 120,
        severity: Informational,
        attack: ["T1046", "T1021"],
        exclude_ports: [],
        keys_max: 20_000,
    }
    /// Standard deviations above the mean.
    sigmas: f64 = 3.0,
    /// Never fires up to this many destinations in a window.
    count_min: u64 = 10,
    /// Windows with traffic that it takes to know what is usual.
    buckets_min: u64 = 6,
    /// Windows that the exact form learns from.
    look_back_windows: u64 = 120,
    /// Windows that the fixed form learns from.
    learn_windows: u64 = 120,
    /// The fixed form fires from so many times the mean on.
    ratio_min: f64 = 2.0,
}

/// What AZ-18 and AZ-19 share.
macro_rules! rates_rule {
    ($name:ident, $what:expr) => {
        impl Rule for $name {
            shared_parts!();

            fn history(&self) -> Duration {
                windows(self.window_secs, self.look_back_windows.max(self.learn_windows))
            }

            fn check(&self) -> Result<(), Mistake> {
                within_f64("sigmas", self.sigmas, 0.0, 1e6)?;
                within("count_min", self.count_min, 1, 1_000_000_000)?;
                within("look_back_windows", self.look_back_windows, 2, WINDOWS_MAX)?;
                within("learn_windows", self.learn_windows, 2, WINDOWS_MAX)?;
                within("buckets_min", self.buckets_min, 2, self.look_back_windows.min(self.learn_windows))?;
                within_f64("ratio_min", self.ratio_min, 1.0, 1e6)
            }

            fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
                let common = self.common_settings();
                let windows = if card.variant == Variant::Exact { self.look_back_windows } else { self.learn_windows };
                let rule = Rates {
                    card: Arc::new(card.clone()),
                    what: $what,
                    exclude: common.exclude.clone(),
                    bin: common.window,
                    learn_bins: windows as u32,
                    sigmas: self.sigmas,
                    count_min: self.count_min as f64,
                    buckets_min: self.buckets_min as usize,
                    ratio_min: self.ratio_min,
                };
                Binned::boxed(rule, &card, &common, mode)
            }
        }
    };
}

rates_rule!(DenialRate, What::Denials);
rates_rule!(ManyDestinations, What::Destinations);

settings! {
    /// Settings of AZ-25.
    CommonPorts {
        variants: [Fixed],
        window_secs: 86_400,
        lateness_secs: 120,
        severity: Informational,
        attack: ["T1071", "T1030"],
        exclude_ports: [],
        keys_max: 1_024,
    }
    /// The common ports.
    ports: Vec<PortRange> = [22, 53, 80, 443, 8_080, 8_888].map(PortRange::one).to_vec(),
    /// Deviations above what is usual.
    sigmas: f64 = 3.0,
    /// Windows learnt from.
    learn_windows: u64 = 7,
    /// The fixed form judges after so many windows with traffic on the port.
    windows_min: u64 = 5,
    /// The fixed form fires from so many times the median on.
    ratio_min: f64 = 2.0,
}

impl Rule for CommonPorts {
    shared_parts!();

    fn history(&self) -> Duration {
        windows(self.window_secs, self.learn_windows)
    }

    fn check(&self) -> Result<(), Mistake> {
        within_f64("sigmas", self.sigmas, 0.0, 1e6)?;
        within("learn_windows", self.learn_windows, 2, WINDOWS_MAX)?;
        within("windows_min", self.windows_min, 1, self.learn_windows)?;
        within_f64("ratio_min", self.ratio_min, 1.0, 1e6)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let rule = CommonPort {
            card: Arc::new(card.clone()),
            exclude: common.exclude.clone(),
            ports: PortSet::of(&self.ports),
            bin: common.window,
            learn_bins: self.learn_windows as u32,
            sigmas: self.sigmas,
            bins_min: self.windows_min as usize,
            ratio_min: self.ratio_min,
        };
        Binned::boxed(rule, &card, &common, mode)
    }
}

settings! {
    /// Settings of AZ-26.
    VariableHosts {
        variants: [],
        window_secs: 86_400,
        lateness_secs: 120,
        severity: Informational,
        attack: [],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Hosts that the fixed form tells per window.
    hosts_max: u64 = 10,
}

impl Rule for VariableHosts {
    shared_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("hosts_max", self.hosts_max, 1, 1_000)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let rule = Ranking {
            card: Arc::new(card.clone()),
            exclude: common.exclude.clone(),
            bin: common.window,
            hosts_max: self.hosts_max as usize,
            mode,
        };
        Binned::boxed(rule, &card, &common, mode)
    }
}
