//! The rule file: which rules run, in which form, from which number on.
//!
//! `deploy/rules/az.toml` is the commented original and is compiled in; a file of your own needs only the keys that differ.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize};
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::settings::{self, SettingsError};

use super::finding::{Severity, Variant};

/// The rule file as shipped.
pub const SHIPPED: &str = include_str!("../../../deploy/rules/az.toml");

/// Every rule with its settings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleFile {
    /// AZ-01, horizontal scan: one source, many hosts.
    #[serde(rename = "AZ-01")]
    pub horizontal: HorizontalScan,
    /// AZ-02, vertical scan: one source, one host, many ports.
    #[serde(rename = "AZ-02")]
    pub vertical: VerticalScan,
    /// AZ-03, volume deviation: a source moves far more over a service than it usually does.
    #[serde(rename = "AZ-03")]
    pub volume: VolumeDeviation,
}

/// Settings of AZ-01.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HorizontalScan {
    /// Which forms run; none switches the rule off.
    pub variants: Vec<Variant>,
    /// Fires above this many different hosts per source and window.
    pub threshold_hosts: u64,
    /// Length of a window, cut on whole multiples since 1970.
    pub window_secs: u64,
    /// How long after its end, in event time, a window still takes records.
    pub lateness_secs: u64,
    /// Severity of its alerts.
    pub severity: Severity,
    /// ATT&CK techniques named in its alerts.
    pub attack: Vec<String>,
    /// Sources that the fixed form does not count: vulnerability scanners, monitoring, load balancers that probe their members.
    pub exclude_sources: Vec<Prefix>,
    /// Destinations that the fixed form does not count.
    pub exclude_destinations: Vec<Prefix>,
    /// Ports of the destination that the fixed form does not count.
    pub exclude_ports: Vec<PortRange>,
    /// Source-and-window pairs held at once.
    pub keys_max: usize,
}

impl Default for HorizontalScan {
    fn default() -> Self {
        Self {
            variants: vec![Variant::Fixed],
            threshold_hosts: 6,
            window_secs: 60,
            lateness_secs: 90,
            severity: Severity::Medium,
            attack: vec!["T1046".to_owned(), "T1018".to_owned()],
            exclude_sources: Vec::new(),
            exclude_destinations: Vec::new(),
            exclude_ports: vec![TRACEROUTE],
            keys_max: 65_536,
        }
    }
}

/// Settings of AZ-02.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerticalScan {
    /// Which forms run; none switches the rule off.
    pub variants: Vec<Variant>,
    /// Fires above this many different ports per source, destination and window.
    pub threshold_ports: u64,
    /// Length of a window, cut on whole multiples since 1970.
    pub window_secs: u64,
    /// How long after its end, in event time, a window still takes records.
    pub lateness_secs: u64,
    /// Severity of its alerts.
    pub severity: Severity,
    /// ATT&CK techniques named in its alerts.
    pub attack: Vec<String>,
    /// Sources that the fixed form does not count: vulnerability scanners, monitoring, load balancers that probe their members.
    pub exclude_sources: Vec<Prefix>,
    /// Destinations that the fixed form does not count.
    pub exclude_destinations: Vec<Prefix>,
    /// Ports of the destination that the fixed form does not count.
    pub exclude_ports: Vec<PortRange>,
    /// Source, destination and window triples held at once.
    pub keys_max: usize,
}

impl Default for VerticalScan {
    fn default() -> Self {
        Self {
            variants: vec![Variant::Fixed],
            threshold_ports: 3,
            window_secs: 60,
            lateness_secs: 90,
            severity: Severity::Medium,
            attack: vec!["T1046".to_owned()],
            exclude_sources: Vec::new(),
            exclude_destinations: Vec::new(),
            exclude_ports: vec![TRACEROUTE],
            keys_max: 65_536,
        }
    }
}

/// Settings of AZ-03.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeDeviation {
    /// Which forms run; none switches the rule off.
    pub variants: Vec<Variant>,
    /// The fixed form fires when a window lies this many means above the mean.
    pub threshold_means: f64,
    /// The fixed form never fires below this many octets in a window.
    pub octets_min: u64,
    /// Length of a window, cut on whole multiples since 1970.
    pub window_secs: u64,
    /// How much of the past makes the mean.
    pub look_back_secs: u64,
    /// How long after its end, in event time, a window still takes records.
    pub lateness_secs: u64,
    /// Severity of its alerts.
    pub severity: Severity,
    /// ATT&CK techniques named in its alerts.
    pub attack: Vec<String>,
    /// Sources that the fixed form does not count: vulnerability scanners, monitoring, load balancers that probe their members.
    pub exclude_sources: Vec<Prefix>,
    /// Destinations that the fixed form does not count.
    pub exclude_destinations: Vec<Prefix>,
    /// Ports of the destination that the fixed form does not count.
    pub exclude_ports: Vec<PortRange>,
    /// Pairs of source and service held at once.
    pub keys_max: usize,
}

impl Default for VolumeDeviation {
    fn default() -> Self {
        Self {
            variants: vec![Variant::Fixed],
            threshold_means: 5.0,
            octets_min: 10_000_000,
            window_secs: 300,
            look_back_secs: 86_400,
            lateness_secs: 120,
            severity: Severity::Low,
            attack: vec!["T1048".to_owned(), "T1041".to_owned()],
            exclude_sources: Vec::new(),
            exclude_destinations: Vec::new(),
            exclude_ports: Vec::new(),
            keys_max: 20_000,
        }
    }
}

/// What the fixed form of a rule does not count.
#[derive(Clone, Debug, Default)]
pub struct Exclude {
    /// By initiator.
    pub sources: Vec<Prefix>,
    /// By responder.
    pub destinations: Vec<Prefix>,
    /// By port of the responder.
    pub ports: Vec<PortRange>,
}

impl Exclude {
    /// Whether a contact is left out.
    pub fn covers(&self, source: Address, destination: Address, port: u16) -> bool {
        self.sources.iter().any(|prefix| prefix.contains(source))
            || self.destinations.iter().any(|prefix| prefix.contains(destination))
            || self.ports.iter().any(|range| (range.first..=range.last).contains(&port))
    }
}

/// Ports from first to last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Where traceroute sends its datagrams, one port per hop.
const TRACEROUTE: PortRange = PortRange { first: 33_434, last: 33_534 };

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is no range of ports; write 445 or \"33434-33534\"")),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for PortRange {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = PortRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 445 or a range such as \"33434-33534\"")
            }

            fn visit_i64<E: serde::de::Error>(self, port: i64) -> Result<PortRange, E> {
                let port = u16::try_from(port).map_err(|_| E::custom(format!("{port} is no port; ports end at 65535")))?;
                Ok(PortRange { first: port, last: port })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Either).map_err(D::Error::custom)
    }
}

impl RuleFile {
    /// Reads `text`, the content of `path`.
    ///
    /// # Errors
    /// Syntax, an unknown key or a value out of range, with its place in the file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let rules: Self = settings::parse(path, text)?;
        rules.check().map_err(|(key, sentence)| settings::mistake(path, text, key, sentence))?;
        Ok(rules)
    }

    /// Whether every value lies in its range.
    ///
    /// # Errors
    /// The first that does not: its dotted key, and what to write instead.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { horizontal, vertical, volume } = self;
        within("AZ-01.threshold_hosts", horizontal.threshold_hosts, 1, 1_000)?;
        within("AZ-01.window_secs", horizontal.window_secs, 1, 86_400)?;
        within("AZ-01.lateness_secs", horizontal.lateness_secs, 0, 86_400)?;
        within("AZ-01.keys_max", horizontal.keys_max as u64, 16, 10_000_000)?;
        within("AZ-02.threshold_ports", vertical.threshold_ports, 1, 1_000)?;
        within("AZ-02.window_secs", vertical.window_secs, 1, 86_400)?;
        within("AZ-02.lateness_secs", vertical.lateness_secs, 0, 86_400)?;
        within("AZ-02.keys_max", vertical.keys_max as u64, 16, 10_000_000)?;
        if !(volume.threshold_means > 0.0 && volume.threshold_means.is_finite()) {
            return Err(("AZ-03.threshold_means", "must be above 0; 5 means six times the usual volume".to_owned()));
        }
        within("AZ-03.window_secs", volume.window_secs, 1, 86_400)?;
        within("AZ-03.look_back_secs", volume.look_back_secs, volume.window_secs, 31 * 86_400)?;
        if volume.look_back_secs / volume.window_secs > 10_000 {
            return Err((
                "AZ-03.look_back_secs",
                "must be at most 10000 windows; use longer windows or look back less".to_owned(),
            ));
        }
        within("AZ-03.lateness_secs", volume.lateness_secs, 0, 86_400)?;
        within("AZ-03.keys_max", volume.keys_max as u64, 16, 10_000_000)
    }
}

fn within(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), (&'static str, String)> {
    if (min..=max).contains(&value) { Ok(()) } else { Err((key, format!("must be {min} to {max}, not {value}"))) }
}

/// Seconds of a rule file as a duration.
pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_tells_the_defaults_and_every_key() {
        assert_eq!(RuleFile::parse(Path::new("az.toml"), SHIPPED).expect("our own"), RuleFile::default());
        let keys: Vec<&str> = SHIPPED.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
        for (key, times) in [
            ("variants", 3),
            ("threshold_hosts", 1),
            ("threshold_ports", 1),
            ("threshold_means", 1),
            ("octets_min", 1),
            ("window_secs", 3),
            ("look_back_secs", 1),
            ("lateness_secs", 3),
            ("severity", 3),
            ("attack", 3),
            ("exclude_sources", 3),
            ("exclude_destinations", 3),
            ("exclude_ports", 3),
            ("keys_max", 3),
        ] {
            assert_eq!(keys.iter().filter(|&&found| found == key).count(), times, "{key}");
        }
    }

    #[test]
    fn a_mistake_is_shown_with_its_place_and_a_hint() {
        let error = |text| RuleFile::parse(Path::new("my.toml"), text).expect_err("wrong").to_string();
        assert_eq!(
            error("[AZ-01]\nthreshold_host = 9\n"),
            "my.toml:2:1: unknown key `threshold_host`; did you mean `threshold_hosts`?"
        );
        assert_eq!(error("[AZ-02]\n\nwindow_secs = 0\n"), "my.toml:3:1: AZ-02.window_secs: must be 1 to 86400, not 0");
        let port = error("[AZ-02]\nexclude_ports = [70000]\n");
        assert!(port.starts_with("my.toml:2:17: 70000 is no port"), "{port}");
        let prefix = error("[AZ-01]\nexclude_sources = [\"10.0.0.0/40\"]\n");
        assert!(prefix.contains("is not a prefix; write"), "{prefix}");
    }
}
