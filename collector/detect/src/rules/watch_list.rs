//! The watch list of ports: which services are counted, and how many sessions are too many.

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::{Action, Direction};
use spanwatch_common::flow::protocol;

use super::common::{Mistake, PortRange};
use crate::finding::Severity;
use crate::ports::PortSet;
use crate::row::Row;

/// A facet is one octet: entry, direction and action share it.
const ENTRIES_MAX: usize = 21;

/// One entry of the watch list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchEntry {
    /// What the ports stand for.
    pub name: String,
    /// Ports of the responder.
    pub ports: Vec<PortRange>,
    /// Which protocol.
    #[serde(default)]
    pub protocol: WatchProtocol,
    /// Which decisions of policy; a sensor knows none, and its rows count for `any` and `allow`.
    #[serde(default)]
    pub action: WatchAction,
    /// Fires above this many sessions in a window.
    pub threshold: u64,
    /// Severity of its alerts.
    pub severity: Severity,
}

/// Protocols of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchProtocol {
    /// All.
    #[default]
    Any,
    /// TCP only.
    Tcp,
    /// UDP only.
    Udp,
}

/// Decisions of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchAction {
    /// All.
    #[default]
    Any,
    /// What was let through.
    Allow,
    /// What was denied.
    Deny,
}

impl WatchEntry {
    pub(super) fn new(name: &str, ports: Vec<PortRange>, threshold: u64, severity: Severity) -> Self {
        let (protocol, action) = (WatchProtocol::Any, WatchAction::Any);
        Self { name: name.to_owned(), ports, protocol, action, threshold, severity }
    }

    fn matches(&self, row: &Row) -> bool {
        let protocol = match self.protocol {
            WatchProtocol::Any => true,
            WatchProtocol::Tcp => row.protocol == protocol::TCP,
            WatchProtocol::Udp => row.protocol == protocol::UDP,
        };
        let action = match self.action {
            WatchAction::Any => true,
            WatchAction::Allow => row.action != Action::Deny,
            WatchAction::Deny => row.action == Action::Deny,
        };
        protocol && action && self.ports.iter().any(|range| range.contains(row.port))
    }
}

/// Whether a watch list can be used.
///
/// # Errors
/// Too long, or an entry without a name or ports.
pub(super) fn check(entries: &[WatchEntry]) -> Result<(), Mistake> {
    if entries.len() > ENTRIES_MAX {
        return Err(("watch_list", format!("has {} entries, and {ENTRIES_MAX} are the most; put ports together", entries.len())));
    }
    match entries.iter().find(|entry| entry.name.is_empty() || entry.ports.is_empty()) {
        Some(entry) => Err(("watch_list", format!("entry {:?} needs a name and at least one port", entry.name))),
        None => Ok(()),
    }
}

/// The list made ready for looking up.
pub(crate) struct WatchList {
    entries: Vec<WatchEntry>,
    /// All ports of all entries: most rows end here.
    ports: PortSet,
}

impl WatchList {
    pub(crate) fn new(entries: &[WatchEntry]) -> Self {
        let ranges: Vec<PortRange> = entries.iter().flat_map(|entry| entry.ports.clone()).collect();
        Self { ports: PortSet::of(&ranges), entries: entries.to_vec() }
    }

    /// The number of the first entry that names the row's service.
    pub(crate) fn find(&self, row: &Row) -> Option<usize> {
        if !self.ports.contains(row.port) {
            return None;
        }
        self.entries.iter().position(|entry| entry.matches(row))
    }

    /// Entry, direction and action of a row as one number.
    pub(crate) fn facet(&self, row: &Row, entry: usize) -> u8 {
        ((entry * Direction::ALL.len() + row.direction as usize) * Action::ALL.len() + row.action as usize) as u8
    }

    pub(crate) fn entry(&self, facet: u8) -> Option<&WatchEntry> {
        self.entries.get(usize::from(facet) / (Direction::ALL.len() * Action::ALL.len()))
    }

    /// Direction and action of a facet.
    pub(crate) fn words(&self, facet: u8) -> (Direction, Action) {
        let (direction, action) =
            (usize::from(facet) / Action::ALL.len() % Direction::ALL.len(), usize::from(facet) % Action::ALL.len());
        (Direction::ALL[direction], Action::ALL[action])
    }

    /// The smallest threshold of all entries.
    pub(crate) fn threshold_min(&self) -> u64 {
        self.entries.iter().map(|entry| entry.threshold).min().unwrap_or(0)
    }
}

/// Direction and decision in the public rules' words: `In Allow`; of what nobody said, nothing.
pub(crate) fn facet_words(direction: Direction, action: Action) -> Option<String> {
    let direction = match direction {
        Direction::Inbound => Some("In"),
        Direction::Outbound => Some("Out"),
        Direction::Local => Some("Local"),
        Direction::Unknown => None,
    };
    let words: Vec<&str> = direction.into_iter().chain((action != Action::Unknown).then(|| action.name())).collect();
    (!words.is_empty()).then(|| words.join(" "))
}
