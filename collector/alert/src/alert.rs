//! An alert at one moment of its life: what a line of the alert file says.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::Variant;
use spanwatch_detect::finding::{Evidence, Severity};

/// Where an alert is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// New, or back again.
    Open,
    /// Known, with other numbers.
    Updated,
    /// Silent for two windows.
    Closed,
}

impl std::fmt::Display for AlertState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Updated => "updated",
            Self::Closed => "closed",
        })
    }
}

/// What an alert is about, and with it how it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// What records show. It is over after two windows of silence.
    #[default]
    Detection,
    /// Alerts that belong together: one intruder's way along the tactics.
    Incident,
    /// More alerts of one rule than an hour may have: how many, and about whom. The alerts themselves are in the alert file.
    Storm,
    /// How well a sensor's mirror port does its work. It is over when the port was found to be well. A sensor that is gone says nothing:
    /// of that, an alert dies after a day.
    Health,
}

/// The window with the strongest evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertWindow {
    /// Where it begins.
    #[serde(with = "crate::rfc3339")]
    pub start: Timestamp,
    /// How long it is.
    pub secs: u64,
}

/// An alert at one moment of its life: one line of the alert file. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The same for the whole life: a hash of rule, form, subject and first window.
    pub id: String,
    /// What it is about.
    #[serde(default)]
    pub class: Class,
    /// `AZ-01`, `SPAN-DUPLICATES`.
    pub rule: String,
    /// Exact or fixed.
    pub variant: Variant,
    /// `Horizontal scan`.
    pub title: String,
    /// How much it matters.
    pub severity: Severity,
    /// Where it is in its life.
    pub state: AlertState,
    /// Whom it is about: `10.0.0.9`, `10.0.0.9 > 10.0.0.2`, `10.0.0.9 TCP/443 at plant1`, `port 445`, `eno2 at plant1`.
    pub subject: String,
    /// The initiator, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Address>,
    /// The one responder, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Address>,
    /// Event time of the first record that speaks for it.
    #[serde(with = "crate::rfc3339")]
    pub first: Timestamp,
    /// Event time of the last record that speaks for it.
    #[serde(with = "crate::rfc3339")]
    pub last: Timestamp,
    /// When it was detected.
    #[serde(with = "crate::rfc3339")]
    pub detected: Timestamp,
    /// When this line was written.
    #[serde(with = "crate::rfc3339")]
    pub told: Timestamp,
    /// What happened, in the window with the strongest evidence.
    pub sentence: String,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// How many times the threshold was measured there.
    pub score: f64,
    /// The window with the strongest evidence.
    pub window: AlertWindow,
    /// In how many windows it was found.
    pub windows: u64,
    /// How often it came back after it had closed.
    pub reopened: u64,
    /// The numbers of that window.
    pub evidence: Evidence,
    /// MITRE ATT&CK techniques.
    pub attack: Vec<String>,
    /// MITRE ATT&CK tactics of these techniques, in the order of an attack.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tactics: Vec<String>,
    /// How sure it is, 0 to 1.
    #[serde(default = "certain")]
    pub confidence: f64,
    /// Why confidence, and with it perhaps severity, is lower than the rule's: what is wrong with the sensors that saw it. A sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
    /// Id of the incident to which it belongs, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
    /// Who wants to hear no more of it, and until when: this line is in the alert file and was told nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muted: Option<Muted>,
    /// Id of the storm that speaks for it, because its rule had raised too many in that hour: this line was told nobody either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<String>,
    /// Id of the open alert of a better rule that says the same about the same source: this line was told nobody either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoken_for: Option<String>,
    /// Fingerprint of the rule's settings, to tell whether they have changed since.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub settings: String,
    /// Of an incident: the ids of its alerts, in the order in which they began. Of a storm: the first of those for which it speaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

fn certain() -> f64 {
    1.0
}

/// Somebody takes responsibility for silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muted {
    /// Who answers for it.
    pub owner: String,
    /// Until when.
    #[serde(with = "crate::rfc3339")]
    pub until: Timestamp,
    /// Why.
    pub reason: String,
}

impl Alert {
    /// Whether `other` says the same about the same, whenever it was told.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        let same_time = Self { told: other.told, ..self.clone() };
        same_time == *other
    }

    /// Whether this line is for the record only: its alert is muted, or a storm or a better rule speaks for it.
    pub const fn is_quiet(&self) -> bool {
        self.muted.is_some() || self.storm.is_some() || self.spoken_for.is_some()
    }

    /// Whether it is not over.
    pub fn is_open(&self) -> bool {
        self.state != AlertState::Closed
    }
}

/// Sixteen hexadecimal digits that stand for `text`: FNV-1a.
pub(crate) fn hash(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// The id of an alert: of what makes it this alert.
pub(crate) fn id(rule: &str, variant: Variant, subject: &str, first_window: Timestamp) -> String {
    hash(&format!("{rule} {variant} {subject} {}", first_window.as_nanos()))
}
