//! Settings of the rules that compare days and hours with those before them.

use std::sync::Arc;
use std::time::Duration;

use spanwatch_kql::Compat;

use super::common::{Mistake, PortRange, Rule, settings, shared_parts, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::{RuleCard, Variant};
use crate::ports::PortSet;
use crate::series::bins::Binned;
use crate::series::common_ports::CommonPort;
use crate::series::daily::Daily;
use crate::series::outbound::Outbound;
use crate::series::ranking::Ranking;
use crate::series::rates::{Rates, What};
use crate::series::smb::Smb;
use crate::{Detector, Mode};

/// Windows that a rule may look back.
const WINDOWS_MAX: u64 = 1_000;

/// AZ-08 in the catalogue.
pub const AZ_08: Entry = Entry {
    id: "AZ-08",
    title: "Unusual day",
    public_id: "cd6def0d-3ef0-4d55-a7e3-faa96c46ba12",
    public_name: "Anomaly found in Network Session Traffic",
    tactics: "Command and Control, Discovery, Exfiltration, Lateral Movement",
    exact: "Rows per UTC day: all, by action, by direction, by protocol. Fires when series_decompose_anomalies over 14 days scores \
            the last one 5 or more after truncation. Days before the log began are zero, so its first day fires; in 14 points no \
            week can be told from noise, and the judged day is part of what it is judged by.",
    fixed: "Up to 28 days, a season of 7 from the third week on, the judged day not learnt from, days on which nothing at all was \
            seen left out. Fires upwards only, and only from ratio_min and flows_min on.",
    innocent: "A new subnet or server, a load test, the first day of a backup, the end of a holiday.",
};

/// AZ-10 in the catalogue.
pub const AZ_10: Entry = Entry {
    id: "AZ-10",
    title: "Unusual use of a watched port",
    public_id: "cbf07406-fa2a-48b0-82b8-efad58db14ec",
    public_name: "Detect port misuse by anomaly based detection",
    tactics: "Command and Control, Lateral Movement, Execution, Initial Access",
    exact: "Rows per UTC day for each watched port, protocol, direction and action; scored as AZ-08, and fires above 5 after \
            truncation, which is 6. A port that was used the same on every day before can never score that much.",
    fixed: "As the fixed form of AZ-08, for each watched port, protocol, direction and action.",
    innocent: "A new domain controller, a script that asks the directory in a loop, patch day over remote desktop.",
};

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

/// AZ-15 in the catalogue.
pub const AZ_15: Entry = Entry {
    id: "AZ-15",
    title: "Unusual volume to the Internet",
    public_id: "b49a1093-cbf6-4973-89ac-2eef98f533c6",
    public_name: "Time series anomaly for data size transferred to public internet",
    tactics: "Exfiltration",
    exact: "Octets per observer and hour to public IPv4 destinations, 13 days up to yesterday's end. Of yesterday's hours that are \
            flagged high, the nine sources that sent most, each above 10 MB. Today is never looked at, nor yesterday's first hour.",
    fixed: "The day that ends, all 24 hours of it, IPv6 too, with a daily season from three days on; only hours of ratio_min times \
            what was expected.",
    innocent: "A cloud backup, a video conference of the whole company, the upload of a release.",
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
    /// Settings of AZ-08.
    UnusualDay {
        variants: [Fixed],
        window_secs: 86_400,
        lateness_secs: 120,
        severity: Medium,
        attack: ["T1095", "T1071", "T1046", "T1030", "T1210"],
        exclude_ports: [],
        keys_max: 4_096,
    }
    /// KQL's anomaly threshold; the rule fires at twice as much.
    strength: f64 = 2.5,
    /// Windows of the exact form's series.
    look_back_windows: u64 = 14,
    /// Windows that the fixed form looks back at most.
    learn_windows: u64 = 28,
    /// The fixed form judges from so many windows with traffic on.
    windows_min: u64 = 14,
    /// The fixed form fires from so many times the expected count on.
    ratio_min: f64 = 1.5,
    /// The fixed form fires from so many flows above the expected count on.
    flows_min: u64 = 1_000,
    /// From which score on a detected period is a season.
    seasonality_threshold: f64 = 0.6,
    /// The factor of the anomaly score; without it 2.7144, which is inferred.
    kappa: Option<f64> = None,
}

settings! {
    /// Settings of AZ-10.
    WatchedPort {
        variants: [Fixed],
        window_secs: 86_400,
        lateness_secs: 120,
        severity: High,
        attack: ["T1095", "T1059", "T1203", "T1190"],
        exclude_ports: [],
        keys_max: 4_096,
    }
    /// The watched ports.
    ports: Vec<PortRange> = [389, 636, 3389].map(PortRange::one).to_vec(),
    /// KQL's anomaly threshold; the rule fires above twice as much.
    strength: f64 = 2.5,
    /// Windows of the exact form's series.
    look_back_windows: u64 = 14,
    /// Windows that the fixed form looks back at most.
    learn_windows: u64 = 28,
    /// The fixed form judges from so many windows with traffic on.
    windows_min: u64 = 14,
    /// The fixed form fires from so many times the expected count on.
    ratio_min: f64 = 1.5,
    /// The fixed form fires from so many flows above the expected count on.
    flows_min: u64 = 100,
    /// From which score on a detected period is a season.
    seasonality_threshold: f64 = 0.6,
    /// The factor of the anomaly score; without it 2.7144, which is inferred.
    kappa: Option<f64> = None,
}

/// What AZ-08 and AZ-10 share.
macro_rules! sessions_rule {
    ($name:ident, $watch:expr) => {
        impl Rule for $name {
            shared_parts!();

            fn history(&self) -> Duration {
                windows(self.window_secs, self.look_back_windows.max(self.learn_windows))
            }

            fn check(&self) -> Result<(), Mistake> {
                within("look_back_windows", self.look_back_windows, 3, WINDOWS_MAX)?;
                within("learn_windows", self.learn_windows, 3, WINDOWS_MAX)?;
                within("windows_min", self.windows_min, 3, self.learn_windows)?;
                within_f64("ratio_min", self.ratio_min, 1.0, 1e6)?;
                anomaly(self.strength, self.seasonality_threshold, self.kappa)
            }

            fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
                let common = self.common_settings();
                let watch: fn(&Self) -> Option<PortSet> = $watch;
                let rule = Daily {
                    card: Arc::new(card.clone()),
                    exclude: common.exclude.clone(),
                    bin: common.window,
                    look_back: [self.look_back_windows as u32, self.learn_windows as u32],
                    strength: self.strength,
                    watch: watch(self),
                    bins_min: self.windows_min as usize,
                    ratio_min: self.ratio_min,
                    flows_min: self.flows_min,
                    compat: compat(self.seasonality_threshold, self.kappa),
                };
                Binned::boxed(rule, &card, &common, mode)
            }
        }
    };
}

sessions_rule!(UnusualDay, |_| None);
sessions_rule!(WatchedPort, |rule| Some(PortSet::of(&rule.ports)));

/// So many windows, and one more: the first may have begun before them.
const fn windows(window_secs: u64, number: u64) -> Duration {
    Duration::from_secs(window_secs * (number + 1))
}

fn compat(seasonality_threshold: f64, kappa: Option<f64>) -> Compat {
    Compat { kappa, seasonality_threshold, ..Compat::default() }
}

fn anomaly(strength: f64, seasonality_threshold: f64, kappa: Option<f64>) -> Result<(), Mistake> {
    within_f64("strength", strength, 0.1, 1e6)?;
    compat(seasonality_threshold, kappa).check()
}

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
    /// Settings of AZ-15.
    OutboundVolume {
        variants: [Fixed],
        window_secs: 3_600,
        lateness_secs: 120,
        severity: Medium,
        attack: ["T1030"],
        exclude_ports: [],
        keys_max: 20_000,
    }
    /// KQL's anomaly threshold for an hour.
    strength: f64 = 5.0,
    /// A source is told above this many octets in an odd hour.
    octets_min: u64 = 10_000_000,
    /// Sources told at most.
    sources_max: u64 = 9,
    /// Days looked back, the one that ends included.
    look_back_days: u64 = 14,
    /// The fixed form judges from so many days on, the judged one included. In fewer than eight it knows no weekends.
    days_min: u64 = 8,
    /// The fixed form fires from so many times the expected volume on.
    ratio_min: f64 = 2.0,
    /// From which score on a detected period is a season.
    seasonality_threshold: f64 = 0.6,
    /// The factor of the anomaly score; without it 2.7144, which is inferred.
    kappa: Option<f64> = None,
}

impl Rule for OutboundVolume {
    shared_parts!();

    fn history(&self) -> Duration {
        windows(86_400, self.look_back_days)
    }

    fn check(&self) -> Result<(), Mistake> {
        if self.window_secs == 0 || 86_400 % self.window_secs != 0 || self.window_secs < 300 {
            return Err(("window_secs", "must divide a day and be at least 300; 3600 is Azure's hour".to_owned()));
        }
        within("sources_max", self.sources_max, 1, 1_000)?;
        within("look_back_days", self.look_back_days, 3, 62)?;
        within("days_min", self.days_min, 2, self.look_back_days)?;
        within_f64("ratio_min", self.ratio_min, 1.0, 1e6)?;
        anomaly(self.strength, self.seasonality_threshold, self.kappa)
    }

    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let rule = Outbound {
            card: Arc::new(card.clone()),
            exclude: common.exclude.clone(),
            bin: common.window,
            look_back_days: self.look_back_days as u32,
            strength: self.strength,
            octets_min: self.octets_min,
            sources_max: self.sources_max as usize,
            days_min: self.days_min as u32,
            ratio_min: self.ratio_min,
            compat: compat(self.seasonality_threshold, self.kappa),
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
