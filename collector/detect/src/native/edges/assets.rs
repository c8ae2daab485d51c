//! ND-14: new asset. An address of a site speaks that never spoke before; or one that is in use moves to another device.
//!
//! To speak is to take part in an exchange, or to send to a group: a forged source does neither. Where the sensor sees the device's own
//! MAC address (see `bindings`), a known device with a new address is no new asset. Of a network that gets new addresses on several days of
//! a week (see `churn`), one line a day is told; of any other, a few a day one by one and the rest in one line.
//!
//! Memory: 11 to 22 bytes per address; about 60 per address on a tap and 80 per device, where MAC addresses are seen.
//!
//! Innocent things that look alike: a new laptop, a replaced device; for takeovers a failover, which is told once.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Origin;
use spanwatch_common::flow::{FORWARD, FlowState, Mac, protocol, tcp};
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use super::bindings::{self, Bindings, Bounds, Takeover, mac_text};
use super::churn::{Churn, Network};
use super::known::Sight;
use super::{Known, Learning, Recent, claim, day_of, days, few, fingerprint, graver, halves, learner_parts, own_ends, span};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Sighting, Stage, Subject, service_name};
use crate::row::{Outcome, Row};
use crate::rules::{Common, Exclude};
use crate::sites::FlowClass;
use crate::{Detector, State};

/// The numbers of ND-14.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(crate) memory: Duration,
    pub(crate) learn: Duration,
    pub(crate) network_new_max: u32,
    pub(crate) router_addresses: u8,
    pub(crate) takeover: Duration,
    pub(crate) severity_takeover: Severity,
}

/// ND-14.
pub(crate) struct Assets {
    numbers: Numbers,
    card: Arc<RuleCard>,
    exclude: Exclude,
    lateness: Duration,
    bounds: Bounds,
    state: State,
    memory: Memory,
}

#[derive(Default, Serialize, Deserialize)]
struct Memory {
    learning: Learning,
    addresses: Known,
    /// Addresses and devices met this minute.
    recent: Recent,
    bindings: Bindings,
    churn: Churn,
    minute: Timestamp,
    refused: u64,
}

impl Assets {
    /// With nothing learned.
    pub(crate) fn new(numbers: Numbers, card: RuleCard, common: &Common) -> Self {
        let bounds = Bounds {
            keys_max: common.keys_max,
            router_addresses: usize::from(numbers.router_addresses),
            takeover_minutes: u32::try_from(numbers.takeover.as_secs() / 60).unwrap_or(u32::MAX),
        };
        Self {
            memory: Memory { addresses: Known::new(common.keys_max), ..Memory::default() },
            state: Common::state(&card),
            exclude: common.exclude.clone(),
            lateness: common.lateness,
            card: Arc::new(card),
            bounds,
            numbers,
        }
    }

    /// `address` spoke in `row`, from the device with `mac` if that is seen.
    fn meet(&mut self, row: &Row, observer: u16, address: Address, mac: Option<u64>, findings: &mut Vec<Finding>) {
        if self.exclude.covers_host(address) {
            return;
        }
        let learned = self.memory.learning.is_over(observer, row.at, self.numbers.learn);
        // Asked before this row adds to what is known of the device.
        let own = mac.filter(|&mac| !self.memory.bindings.is_router(mac, row.at));
        let moved = own.is_some_and(|mac| self.memory.bindings.knows(mac, row.at));
        if let Some(takeover) = mac.and_then(|mac| self.memory.bindings.see(observer, address, mac, row.at, learned, self.bounds))
            && takeover.changes.is_power_of_two()
        {
            findings.push(self.taken_over(row, address, takeover));
        }
        match self.memory.addresses.see(fingerprint(&halves(address)), day_of(row.at)) {
            Sight::Again(_) => return,
            Sight::Refused => {
                self.memory.refused += 1;
                return;
            }
            Sight::New => {}
        }
        let many = self.numbers.network_new_max;
        let (prefix, network) = self.memory.churn.note(address, row.at, learned && !moved, many);
        if !learned || moved || network.is_dynamic() {
            return;
        }
        let count = network.fresh;
        if count <= many {
            findings.push(self.new_asset(row, address, own));
            return;
        }
        let stage = match network.told {
            0 => Stage::Crossed,
            told if count >= told * 2 => Stage::Grown,
            _ => return,
        };
        network.told = count;
        let network = network.clone();
        findings.push(self.many(prefix, &network, stage));
    }

    fn new_asset(&self, row: &Row, address: Address, mac: Option<u64>) -> Finding {
        let peer = if address == row.source { row.destination } else { row.source };
        let verb = if address == row.source { "spoke to" } else { "answered" };
        Finding {
            sentence: format!(
                "{address}{} {verb} {peer} ({}): an address that had not spoken for {}",
                mac.map(|mac| format!(" with MAC address {}", mac_text(mac))).unwrap_or_default(),
                service_name(row.protocol, row.port),
                span(self.numbers.memory)
            ),
            advice: format!("Find out whose device {address} is; if it is nobody's, have its switch port shut."),
            evidence: Evidence {
                value: 1.0,
                threshold: 1.0,
                unit: "addresses".to_owned(),
                rows: vec![Sighting::of(row)],
                hosts: vec![peer],
                services: vec![service_name(row.protocol, row.port)],
                observers: vec![row.observer.to_string()],
                ..Evidence::default()
            },
            confidence: 0.7,
            ..claim(self.card.clone(), Stage::Crossed, Subject::host(address), row.at)
        }
    }

    /// More new addresses of one network in a day than are told one by one.
    fn many(&self, prefix: Prefix, network: &Network, stage: Stage) -> Finding {
        let usual = network.is_dynamic();
        let severity = if usual { Severity::Informational } else { self.card.severity };
        let many = self.numbers.network_new_max;
        Finding {
            first: network.first,
            last: network.last,
            sentence: format!(
                "{} addresses of {prefix} spoke that day that had not spoken for {}, such as {}{}",
                network.fresh,
                span(self.numbers.memory),
                few(&network.examples),
                if usual {
                    "; on several days of a week that is usual there".to_owned()
                } else {
                    format!("; more than {many} are unusual")
                }
            ),
            evidence: Evidence {
                value: f64::from(network.fresh),
                threshold: f64::from(many),
                unit: "addresses".to_owned(),
                hosts: network.examples.clone(),
                ..Evidence::default()
            },
            score: f64::from(network.fresh) / f64::from(many),
            confidence: if usual { 0.3 } else { 0.6 },
            ..claim(
                graver(&self.card, severity, &[]),
                stage,
                Subject { facet: Some(prefix.to_string()), ..Subject::default() },
                network.first,
            )
        }
    }

    fn taken_over(&self, row: &Row, address: Address, takeover: Takeover) -> Finding {
        let back_and_forth = takeover.changes > 1;
        let severity = match (self.numbers.severity_takeover, back_and_forth) {
            (severity, false) => severity,
            (Severity::Informational, _) => Severity::Low,
            (Severity::Low, _) => Severity::Medium,
            (Severity::Medium, _) => Severity::High,
            _ => Severity::Critical,
        };
        let minutes = span(self.numbers.takeover);
        let (from, to) = (mac_text(takeover.from), mac_text(takeover.to));
        let sentence = if back_and_forth {
            format!(
                "{address} changed between MAC addresses {from} and {to} {} times, each within {minutes}: ARP spoofing looks like this",
                takeover.changes
            )
        } else {
            format!("{address} moved from MAC address {from} to {to} within {minutes} of being in use")
        };
        Finding {
            sentence,
            advice: format!(
                "Look on which switch ports {from} and {to} are, and at the ARP table of a host that talks to {address}."
            ),
            evidence: Evidence {
                value: f64::from(takeover.changes),
                threshold: 1.0,
                unit: "changes of MAC address".to_owned(),
                rows: vec![Sighting::of(row)],
                hosts: vec![address],
                observers: vec![row.observer.to_string()],
                ..Evidence::default()
            },
            score: f64::from(takeover.changes),
            confidence: if back_and_forth { 0.8 } else { 0.5 },
            ..claim(
                graver(&self.card, severity, &["T1557.002", "T0830"]),
                if back_and_forth { Stage::Grown } else { Stage::Crossed },
                Subject { facet: Some("MAC address".to_owned()), ..Subject::host(address) },
                row.at,
            )
        }
    }

    /// A minute ends.
    fn turn(&mut self, before: Timestamp, minute: Timestamp, findings: &mut Vec<Finding>) {
        // What is late by the rule's lateness still belongs to yesterday.
        let today = day_of(minute.minus(self.lateness));
        if day_of(before.minus(self.lateness)) < today {
            self.memory.addresses.expire(today.saturating_sub(days(self.numbers.memory)));
            for (prefix, network) in self.memory.churn.close(today, self.numbers.network_new_max) {
                if network.is_dynamic() || network.told > 0 && network.fresh > network.told {
                    findings.push(self.many(prefix, &network, Stage::Closed));
                }
            }
        }
    }

    fn learned(&self) -> (usize, String) {
        let count = self.memory.addresses.len();
        (count, format!("{count} addresses that speak"))
    }

    fn account(&mut self) {
        let Memory { addresses, bindings, churn, refused, .. } = &self.memory;
        self.state.keys = addresses.len();
        self.state.bytes = addresses.bytes() + bindings.bytes() + churn.bytes() + 32_768;
        (self.state.evicted, self.state.refused) = (addresses.evicted() + bindings.evicted() + churn.evicted(), *refused);
    }
}

impl Detector for Assets {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let observer = self.memory.learning.meet(row);
        let multicast = row.class == FlowClass::Multicast;
        if row.platform || row.outcome != Outcome::Success && !multicast {
            return;
        }
        let [ours, theirs] = own_ends(row);
        let minute = row.at.as_nanos().cast_unsigned() / 60_000_000_000;
        for (address, mac, own) in [(row.source, row.macs[0], ours), (row.destination, row.macs[1], theirs && !multicast)] {
            if !own {
                continue;
            }
            let mac = first_frame(row).then(|| on_wire(row, address, mac)).flatten();
            let [high, low] = halves(address);
            let key = fingerprint(&[high, low, mac.unwrap_or(0), minute << 16 | u64::from(observer)]);
            if !self.memory.recent.has(key) {
                self.memory.recent.put(key);
                self.meet(row, observer, address, mac, findings);
            }
        }
    }

    fn flush(&mut self, _findings: &mut Vec<Finding>) {
        self.account();
    }

    learner_parts!();
}

/// Whether the MAC addresses of `row` are of its own time: those of a later slice are of the flow's first frame, which may be long ago.
fn first_frame(row: &Row) -> bool {
    let begins = row.protocol == protocol::TCP && row.flags[FORWARD] & tcp::SYN != 0;
    row.state == FlowState::Begin || begins
}

/// The device behind `address`, where a sensor sees one and the address is IPv4, which ARP resolves.
fn on_wire(row: &Row, address: Address, mac: Mac) -> Option<u64> {
    if row.origin == Origin::Sensor && address.as_v4().is_some() { bindings::device(mac) } else { None }
}
