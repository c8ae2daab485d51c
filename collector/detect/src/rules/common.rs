//! What the settings of all rules have in common.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize};
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use crate::catalogue::Entry;
use crate::finding::{RuleCard, Severity, Variant};
use crate::row::Row;
use crate::{Detector, Mode, State};

/// What is wrong with a setting: its key within the rule, and what to write instead.
pub type Mistake = (&'static str, String);

/// The settings of one rule, whichever it is.
pub trait Rule: fmt::Debug + Send + Sync {
    /// Those that all rules have.
    fn common(&self) -> Common;

    /// Switches forms of the rule on and off.
    fn set_variants(&mut self, variants: &[Variant]);

    /// All settings, as in a rule file.
    fn settings(&self) -> toml::Table;

    /// Whether the rule's own settings lie in their ranges.
    ///
    /// # Errors
    /// The first that does not.
    fn check(&self) -> Result<(), Mistake>;

    /// Reads the files that the settings name, if any.
    ///
    /// # Errors
    /// One cannot be read, or has a mistake.
    fn load(&mut self) -> Result<(), Mistake> {
        Ok(())
    }

    /// How far before a finding's window its evidence reaches: what `alerts explain` looks at again.
    fn history(&self) -> Duration {
        self.common().lateness
    }

    /// What about a sensor makes its findings doubtful.
    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss]
    }

    /// The family whose one detector speaks for the rule, if it has one.
    fn kin(&self) -> Option<Kin> {
        None
    }

    /// The same rule with room for one in `of` of its keys: for one shard of its detector.
    fn share(&self, of: usize) -> Box<dyn Rule>;

    /// The rule at work in one of its forms, alone.
    fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector>;
}

/// Rules that share what they know: one detector speaks for all that are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kin {
    /// ND-01 to ND-05: one table of sources.
    Scans,
}

/// What about a sensor makes findings doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weakness {
    /// It loses, sheds or samples packets: counts are too small, silence may be none.
    Loss,
    /// It sees one direction only: an answer may have been there.
    OneSided,
    /// It sees nothing, or was blind a while ago: what has stopped may only have stopped being seen.
    Blind,
    /// It started, or its clock jumped, a moment ago: rates and times are off.
    Young,
}

/// The settings that all rules have.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// Which forms run; none switches the rule off.
    pub variants: Vec<Variant>,
    /// Which time cuts the windows.
    pub time_axis: TimeAxis,
    /// Length of a window, cut on whole multiples since 1970.
    pub window: Duration,
    /// How long after its end, in event time, a window still takes records.
    pub lateness: Duration,
    /// Severity of its alerts.
    pub severity: Severity,
    /// ATT&CK techniques named in its alerts.
    pub attack: Vec<String>,
    /// What the fixed form does not count.
    pub exclude: Exclude,
    /// Keys held at once.
    pub keys_max: usize,
}

impl Common {
    /// The rule's card in one of its forms.
    pub fn card(&self, entry: &Entry, variant: Variant) -> RuleCard {
        RuleCard { id: entry.id, title: entry.title, variant, severity: self.severity, attack: self.attack.clone() }
    }

    /// An empty account for it.
    pub const fn state(card: &RuleCard) -> State {
        State { rule: card.id, variant: card.variant, keys: 0, bytes: 0, late: 0, evicted: 0, refused: 0 }
    }

    /// Whether the values lie in their ranges.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), Mistake> {
        within("window_secs", self.window.as_secs(), 1, 86_400)?;
        within("lateness_secs", self.lateness.as_secs(), 0, 86_400)?;
        within("keys_max", self.keys_max as u64, 16, 10_000_000)
    }
}

/// Which time of a row cuts the windows of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeAxis {
    /// When the flow happened.
    #[default]
    Event,
    /// When Azure took the row in, as the public rules do over Traffic Analytics; the same as `event` for all other rows.
    Ingest,
}

impl TimeAxis {
    /// The time of `row` on this axis.
    pub const fn of(self, row: &Row) -> Timestamp {
        match self {
            Self::Event => row.at,
            Self::Ingest => row.ingested,
        }
    }
}

/// What the fixed form of a rule does not count.
#[derive(Clone, Debug, Default, PartialEq)]
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
            || self.ports.iter().any(|range| range.contains(port))
    }

    /// Whether `host` is left out, at whichever end: for what a host does in all.
    pub fn covers_host(&self, host: Address) -> bool {
        self.sources.iter().chain(&self.destinations).any(|prefix| prefix.contains(host))
    }
}

/// Ports from first to last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Where traceroute sends its datagrams, one port per hop.
    pub const TRACEROUTE: Self = Self { first: 33_434, last: 33_534 };

    /// One port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// All of them.
    pub fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        self.first..=self.last
    }

    /// Whether `port` is one of them.
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

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
        if self.first == self.last { to.serialize_u16(self.first) } else { to.collect_str(self) }
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
                Ok(PortRange::one(port))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Either).map_err(D::Error::custom)
    }
}

/// Whether `value` lies between `min` and `max`, both included.
///
/// # Errors
/// It does not; the sentence says what may be written.
pub fn within(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), Mistake> {
    if (min..=max).contains(&value) { Ok(()) } else { Err((key, format!("must be {min} to {max}, not {value}"))) }
}

/// As [`within`], for numbers with a fraction.
///
/// # Errors
/// As [`within`].
pub fn within_f64(key: &'static str, value: f64, min: f64, max: f64) -> Result<(), Mistake> {
    if value >= min && value <= max { Ok(()) } else { Err((key, format!("must be {min} to {max}, not {value}"))) }
}

/// Defines the settings of a rule: first the defaults of what all rules have, then what is its own.
macro_rules! settings {
    (
        $(#[$doc:meta])*
        $name:ident {
            variants: [$($variant:ident),*],
            window_secs: $window:expr,
            lateness_secs: $lateness:expr,
            severity: $severity:ident,
            attack: $attack:tt,
            exclude_ports: $ports:tt,
            keys_max: $keys_max:expr,
        }
        $($(#[$own_doc:meta])* $own:ident: $kind:ty = $default:expr,)*
    ) => {
        $crate::rules::common::settings_of_all! {
            $(#[$doc])*
            $name { severity: $severity, attack: $attack, exclude_ports: $ports, keys_max: $keys_max }
            /// Which forms run; none switches the rule off.
            variants: Vec<$crate::finding::Variant> = vec![$($crate::finding::Variant::$variant),*],
            $($(#[$own_doc])* $own: $kind = $default,)*
            /// Which time cuts the windows: `event`, when the flow happened, or `ingest`, when Azure took the row in.
            time_axis: $crate::rules::common::TimeAxis = $crate::rules::common::TimeAxis::Event,
            /// Length of a window, cut on whole multiples since 1970.
            window_secs: u64 = $window,
            /// How long after its end, in event time, a window still takes records.
            lateness_secs: u64 = $lateness,
        }

        impl $name {
            /// The settings that all rules have.
            pub fn common_settings(&self) -> $crate::rules::common::Common {
                self.common_of(self.variants.clone(), self.time_axis, self.window_secs, self.lateness_secs)
            }
        }
    };
}

/// Defines the settings of a rule of our own, which has one form. `window_secs` and `lateness_secs` say what the alert book and the
/// engine need to know, and are no settings.
macro_rules! native_settings {
    (
        $(#[$doc:meta])*
        $name:ident {
            enabled: $enabled:literal,
            window_secs: $window:expr,
            lateness_secs: $lateness:expr,
            severity: $severity:ident,
            attack: $attack:tt,
            exclude_ports: $ports:tt,
            keys_max: $keys_max:expr,
        }
        $($(#[$own_doc:meta])* $own:ident: $kind:ty = $default:expr,)*
    ) => {
        $crate::rules::common::settings_of_all! {
            $(#[$doc])*
            $name { severity: $severity, attack: $attack, exclude_ports: $ports, keys_max: $keys_max }
            /// Whether the rule runs.
            enabled: bool = $enabled,
            $($(#[$own_doc])* $own: $kind = $default,)*
        }

        impl $name {
            /// The settings that all rules have.
            pub fn common_settings(&self) -> $crate::rules::common::Common {
                let variants = if self.enabled { vec![$crate::finding::Variant::Fixed] } else { Vec::new() };
                self.common_of(variants, $crate::rules::common::TimeAxis::Event, $window, $lateness)
            }
        }
    };
}

/// Defines the settings of a rule with those that all rules end with.
macro_rules! settings_of_all {
    (
        $(#[$doc:meta])*
        $name:ident {
            severity: $severity:ident,
            attack: [$($attack:literal),*],
            exclude_ports: [$($ports:expr),*],
            keys_max: $keys_max:expr
        }
        $($(#[$own_doc:meta])* $own:ident: $kind:ty = $default:expr,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$own_doc])* pub $own: $kind,)*
            /// Severity of its alerts.
            pub severity: $crate::finding::Severity,
            /// ATT&CK techniques named in its alerts.
            pub attack: Vec<String>,
            /// Sources that are not counted, except by an exact form.
            pub exclude_sources: Vec<spanwatch_common::net::Prefix>,
            /// Destinations that are not counted, except by an exact form.
            pub exclude_destinations: Vec<spanwatch_common::net::Prefix>,
            /// Ports of the destination that are not counted, except by an exact form.
            pub exclude_ports: Vec<$crate::rules::common::PortRange>,
            /// Keys held at once; a replay of a public rule may hold sixteen times as many.
            pub keys_max: usize,
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($own: $default,)*
                    severity: $crate::finding::Severity::$severity,
                    attack: vec![$($attack.to_owned()),*],
                    exclude_sources: Vec::new(),
                    exclude_destinations: Vec::new(),
                    exclude_ports: vec![$($ports),*],
                    keys_max: $keys_max,
                }
            }
        }

        impl $name {
            fn common_of(
                &self,
                variants: Vec<$crate::finding::Variant>,
                time_axis: $crate::rules::common::TimeAxis,
                window_secs: u64,
                lateness_secs: u64,
            ) -> $crate::rules::common::Common {
                $crate::rules::common::Common {
                    variants,
                    time_axis,
                    window: std::time::Duration::from_secs(window_secs),
                    lateness: std::time::Duration::from_secs(lateness_secs),
                    severity: self.severity,
                    attack: self.attack.clone(),
                    exclude: $crate::rules::common::Exclude {
                        sources: self.exclude_sources.clone(),
                        destinations: self.exclude_destinations.clone(),
                        ports: self.exclude_ports.clone(),
                    },
                    keys_max: self.keys_max,
                }
            }
        }
    };
}

/// The parts of [`Rule`] that are the same for every rule with [`settings!`].
macro_rules! shared_parts {
    () => {
        $crate::rules::common::parts_of_all!();

        fn set_variants(&mut self, variants: &[$crate::finding::Variant]) {
            self.variants = variants.to_vec();
        }
    };
}

/// The parts of [`Rule`] that are the same for every rule of our own.
macro_rules! native_parts {
    () => {
        $crate::rules::common::parts_of_all!();

        fn set_variants(&mut self, variants: &[$crate::finding::Variant]) {
            self.enabled = variants.contains(&$crate::finding::Variant::Fixed);
        }
    };
}

/// The parts of [`Rule`] that are the same for every rule.
macro_rules! parts_of_all {
    () => {
        fn common(&self) -> $crate::rules::common::Common {
            self.common_settings()
        }

        fn settings(&self) -> toml::Table {
            toml::Table::try_from(self).unwrap_or_default()
        }

        fn share(&self, of: usize) -> Box<dyn $crate::rules::common::Rule> {
            Box::new(Self { keys_max: self.keys_max.div_ceil(of), ..self.clone() })
        }
    };
}

pub(crate) use {native_parts, native_settings, parts_of_all, settings, settings_of_all, shared_parts};
