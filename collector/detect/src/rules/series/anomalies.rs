//! Settings of the rules that take a series apart into season, trend and rest, and score the rest: AZ-08, AZ-10 and AZ-15.

use std::sync::Arc;
use std::time::Duration;

use spanwatch_kql::Compat;

use super::{WINDOWS_MAX, windows};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::ports::PortSet;
use crate::rules::common::{Mistake, PortRange, Rule, settings, shared_parts, within, within_f64};
use crate::series::bins::Binned;
use crate::series::daily::Daily;
use crate::series::outbound::Outbound;
use crate::{Detector, Mode};

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

fn compat(seasonality_threshold: f64, kappa: Option<f64>) -> Compat {
    Compat { kappa, seasonality_threshold, ..Compat::default() }
}

fn anomaly(strength: f64, seasonality_threshold: f64, kappa: Option<f64>) -> Result<(), Mistake> {
    within_f64("strength", strength, 0.1, 1e6)?;
    compat(seasonality_threshold, kappa).check()
}
