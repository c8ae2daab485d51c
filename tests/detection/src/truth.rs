//! What really happened: who did what to whom and when, and which rules should say so.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_alert::Alert;
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use crate::traffic::Flow;

/// So long after an attack an alert may still be about it: a rule that judges whole days speaks on the day after.
const GRACE: Duration = Duration::from_secs(26 * 3_600);
/// So long after an attack what it did to a whole site may still show.
const AFTERMATH: Duration = Duration::from_secs(1_800);
/// Clocks of tools and sensors may differ.
const SLACK: Duration = Duration::from_secs(2);

/// An attack, as whoever made it knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attack {
    pub(crate) name: String,
    /// Attacks of one group are summed up in one line: `fast scan`.
    pub(crate) group: String,
    /// Each of these rules should find it: it counts in their recall.
    #[serde(default)]
    pub(crate) expected: Vec<String>,
    /// These are right to tell of it, but need not.
    #[serde(default)]
    pub(crate) fair: Vec<String>,
    /// Who did it. An alert about one of them while it lasted is about it.
    pub(crate) by: Vec<Prefix>,
    /// To whom, where an alert may name the victim alone.
    #[serde(default)]
    pub(crate) to: Vec<Prefix>,
    /// Its first packet, in nanoseconds since 1970.
    pub(crate) start: i64,
    /// Its last.
    pub(crate) end: i64,
    /// From when on the time to the alert counts: of a scan, its 25th failed probe.
    pub(crate) due: i64,
    /// How many seconds the alert may take from then on for the attack to be found; none: until it has been over for a day.
    #[serde(default)]
    pub(crate) within_secs: Option<f64>,
}

impl Attack {
    /// An attack made of `flows`, which are in the order of time; the alert is due from the start on.
    pub(crate) fn new(name: &str, group: &str, expected: &[&str], start: Timestamp, flows: &[Flow]) -> Self {
        let end = flows.iter().map(|flow| flow.at.plus(flow.lasts)).max().unwrap_or(start);
        let texts = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect();
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            expected: texts(expected),
            fair: Vec::new(),
            by: Vec::new(),
            to: Vec::new(),
            start: start.as_nanos(),
            end: end.as_nanos(),
            due: start.as_nanos(),
            within_secs: None,
        }
    }

    #[must_use]
    pub(crate) fn fair(mut self, rules: &[&str]) -> Self {
        self.fair.extend(rules.iter().map(|&rule| rule.to_owned()));
        self
    }

    #[must_use]
    pub(crate) fn by(mut self, hosts: &[Address]) -> Self {
        self.by.extend(hosts.iter().map(|&host| Prefix::new(host, 128)));
        self
    }

    #[must_use]
    pub(crate) fn to(mut self, hosts: &[Address]) -> Self {
        self.to.extend(hosts.iter().map(|&host| Prefix::new(host, 128)));
        self
    }

    #[must_use]
    pub(crate) fn due(mut self, due: Timestamp, within: Option<Duration>) -> Self {
        self.due = due.as_nanos();
        self.within_secs = within.map(|within| within.as_secs_f64());
        self
    }

    pub(crate) const fn start(&self) -> Timestamp {
        Timestamp::from_nanos(self.start)
    }

    pub(crate) const fn end(&self) -> Timestamp {
        Timestamp::from_nanos(self.end)
    }

    /// Whether `alert` speaks of somebody who had to do with it, at a time at which that is no accident.
    pub(crate) fn is_met_by(&self, alert: &Alert) -> bool {
        let meant = |wanted: &[Prefix], host: Address| wanted.iter().any(|prefix| prefix.contains(host));
        let named = |host: Option<Address>| host.is_some_and(|host| meant(&self.by, host) || meant(&self.to, host));
        let early = alert.last.plus(SLACK) < self.start();
        let late = alert.detected > self.end().plus(GRACE) || alert.first > self.end().plus(GRACE);
        if early || late {
            return false;
        }
        if alert.source.is_some() || alert.destination.is_some() {
            // One that names both ends speaks of the attacker if it is about him; of the victim only where he may be named alone.
            return named(alert.source) || named(alert.destination);
        }
        let networks: Vec<Prefix> = alert.subject.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if networks.is_empty() && alert.evidence.hosts.is_empty() && alert.evidence.rows.is_empty() {
            // It speaks of a service or a whole site: what happened there at the time is what it means.
            return alert.first <= self.end().plus(AFTERMATH);
        }
        networks.iter().any(|network| self.by.iter().chain(&self.to).any(|own| network.contains(own.first())))
            || alert.evidence.hosts.iter().any(|&host| meant(&self.by, host) || meant(&self.to, host))
            || alert.evidence.rows.iter().any(|row| meant(&self.by, row.source))
    }

    /// Whether it is right that `rule` tells of it.
    pub(crate) fn is_named_by(&self, rule: &str) -> bool {
        self.expected.iter().chain(&self.fair).any(|known| known == rule)
    }
}
