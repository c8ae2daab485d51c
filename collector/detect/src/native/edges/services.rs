//! ND-15: new service. A host answers on a port on which it never answered before, or answers somebody outside for the first time.
//!
//! | port | a service from |
//! | --- | --- |
//! | below 1024, or with a name (`named_ports`) | its first client |
//! | any other of TCP | its second client within a day |
//! | 32768 and above, on a host with an endpoint mapper (135); 1024 and above, on one with FTP (21) | never: they are made up as they go |
//! | any other of UDP | never: which end asked is a guess |
//!
//! One finding per host and hour, with all its new services. Memory: 11 to 22 bytes per service, 64 per port that waits for its second
//! client.
//!
//! Innocent things that look alike: a new program, a new server. Peer-to-peer hosts (the role) are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::known::Sight;
use super::{
    HOUR, Known, Learning, Recent, claim, conversed, day_of, days, few, fingerprint, graver, halves, learner_parts, opened,
    own_ends, span,
};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, service_name};
use crate::hash::Map;
use crate::native::network;
use crate::native::sightings::Sightings;
use crate::ports::PortSet;
use crate::roles::Role;
use crate::row::Row;
use crate::rules::{Common, Exclude, PortRange};
use crate::scan::is_countable;
use crate::series::history::longest_silent;
use crate::sites::FlowClass;
use crate::{Detector, State};

/// Hosts with new services in open hours that are kept; beyond, new services of further hosts are learned and not told.
const HOSTS_MAX: usize = 4_096;
/// Services of one host that are named.
const NAMED_MAX: usize = 256;
/// Where systems begin to take ports for clients and for remote procedure calls (Linux: 32768; RFC 6335: 49152).
const EPHEMERAL: u16 = 32_768;
/// So many hosts of a network that offer a service make it nothing new when the next does.
const FLEET: u16 = 3;
const FTP: u16 = 21;
const ENDPOINT_MAPPER: u16 = 135;

/// The numbers of ND-15.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(crate) memory: Duration,
    pub(crate) learn: Duration,
    /// Ports from 1024 on that are a service from the first client on.
    pub(crate) named: PortSet,
    /// Clients that any other takes.
    pub(crate) clients_min: usize,
    pub(crate) severity_exposed: Severity,
}

/// ND-15.
pub(crate) struct Services {
    numbers: Numbers,
    card: Arc<RuleCard>,
    exclude: Exclude,
    lateness: Duration,
    candidates_max: usize,
    fleets_max: usize,
    state: State,
    memory: Memory,
}

#[derive(Default, Serialize, Deserialize)]
struct Memory {
    learning: Learning,
    services: Known,
    /// Services that were met today.
    recent: Recent,
    /// How many hosts of a network are known to offer a service, by network and service; at most as many as services.
    #[serde(default)]
    fleets: Map<u64, u16>,
    /// Ports that wait for further clients, by service.
    candidates: Map<u64, Candidate>,
    /// Hosts with new services, and whether for clients outside; until their hour is over.
    hosts: BTreeMap<(Address, bool), Host>,
    minute: Timestamp,
    /// Candidates let go to make room.
    evicted: u64,
    refused: u64,
}

/// Clients of a port, by fingerprint.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Candidate {
    clients: Vec<u64>,
    day: u16,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Host {
    services: BTreeSet<(u8, u16)>,
    /// The first client of each, at most [`NAMED_MAX`].
    clients: BTreeSet<Address>,
    first: Timestamp,
    last: Timestamp,
    told: usize,
    rows: Sightings,
}

impl Services {
    /// With nothing learned.
    pub(crate) fn new(numbers: Numbers, card: RuleCard, common: &Common) -> Self {
        Self {
            memory: Memory { services: Known::new(common.keys_max), ..Memory::default() },
            state: Common::state(&card),
            exclude: common.exclude.clone(),
            lateness: common.lateness,
            candidates_max: common.keys_max / 4,
            fleets_max: common.keys_max / 4,
            card: Arc::new(card),
            numbers,
        }
    }

    /// Whether the port answers for a service, as far as its number and its host tell; none if it takes further clients.
    fn is_service(&self, row: &Row) -> Option<bool> {
        if row.port < 1_024 || self.numbers.named.contains(row.port) {
            return Some(true);
        }
        let serves = |port| self.memory.services.has(service(row.destination, protocol::TCP, port, false));
        let made_up = row.protocol != protocol::TCP || serves(FTP) || row.port >= EPHEMERAL && serves(ENDPOINT_MAPPER);
        if made_up { Some(false) } else { None }
    }

    /// Whether the client of `row` is the one that makes its port a service.
    fn suffices(&mut self, row: &Row, key: u64) -> bool {
        let candidates = &mut self.memory.candidates;
        let day = day_of(row.at);
        if !candidates.contains_key(&key) && candidates.len() >= self.candidates_max {
            let old = longest_silent(candidates.iter().map(|(key, candidate)| (candidate.day, key)), self.candidates_max - 1);
            self.memory.evicted += old.len() as u64;
            old.iter().for_each(|key| _ = candidates.remove(key));
        }
        let candidate = candidates.entry(key).or_default();
        candidate.day = day;
        let client = fingerprint(&halves(row.source));
        if !candidate.clients.contains(&client) {
            candidate.clients.push(client);
        }
        let enough = candidate.clients.len() >= self.numbers.clients_min;
        if enough {
            candidates.remove(&key);
        }
        enough
    }

    /// Whether `key` was not known, and is from now on.
    fn is_new(&mut self, key: u64, day: u16) -> bool {
        match self.memory.services.see(key, day) {
            Sight::New => true,
            Sight::Again(_) => false,
            Sight::Refused => {
                self.memory.refused += 1;
                false
            }
        }
    }

    /// Whether the hosts beside it offer the same: it is one of many, and was only never asked before. Counts it as one.
    fn is_of_a_fleet(&mut self, row: &Row) -> bool {
        let network = fingerprint(&halves(Address(network(row.destination))));
        let key = fingerprint(&[network, u64::from(row.protocol) << 16 | u64::from(row.port)]);
        if self.memory.fleets.len() >= self.fleets_max && !self.memory.fleets.contains_key(&key) {
            return false;
        }
        let hosts = self.memory.fleets.entry(key).or_default();
        *hosts = hosts.saturating_add(1);
        *hosts > FLEET
    }

    /// Notes a service that is new to everybody, or to clients outside.
    fn note(&mut self, row: &Row, outside: bool, findings: &mut Vec<Finding>) {
        if self.memory.hosts.len() >= HOSTS_MAX && !self.memory.hosts.contains_key(&(row.destination, outside)) {
            self.memory.refused += 1;
            return;
        }
        let host = self.memory.hosts.entry((row.destination, outside)).or_insert(Host { first: row.at, ..Host::default() });
        if host.services.len() < NAMED_MAX {
            host.services.insert((row.protocol, row.port));
            host.clients.insert(row.source);
        }
        host.last = host.last.max(row.at);
        host.rows.insert(row);
        let count = host.services.len();
        let stage = match host.told {
            0 => Stage::Crossed,
            told if count >= told * 2 => Stage::Grown,
            _ => return,
        };
        host.told = count;
        let host = host.clone();
        findings.push(self.tell(row.destination, outside, &host, stage));
    }

    fn tell(&self, address: Address, outside: bool, host: &Host, stage: Stage) -> Finding {
        let names: Vec<String> = host.services.iter().map(|&(protocol, port)| service_name(protocol, port)).collect();
        let clients: Vec<Address> = host.clients.iter().copied().collect();
        let (card, whom, technique, facet) = if outside {
            (
                graver(&self.card, self.numbers.severity_exposed, &["T1133"]),
                "clients outside, such as",
                "reachable",
                Some("from outside".to_owned()),
            )
        } else {
            (self.card.clone(), "", "started", None)
        };
        let kinds = if names.len() == 1 { "a service".to_owned() } else { format!("{} services", names.len()) };
        Finding {
            first: host.first,
            last: host.last,
            sentence: format!(
                "{address} answered {whom}{}{} on {}: {kinds} that it had not offered {}for {}",
                if whom.is_empty() { "" } else { " " },
                few(&clients),
                few(&names),
                if outside { "outside " } else { "" },
                span(self.numbers.memory)
            ),
            advice: format!(
                "Ask who {} it; if nobody did, look at which program on {address} listens there.",
                if outside { "made it reachable" } else { technique }
            ),
            evidence: Evidence {
                value: names.len() as f64,
                threshold: 1.0,
                unit: "services".to_owned(),
                rows: host.rows.to_vec(),
                hosts: clients.into_iter().take(20).collect(),
                services: names.into_iter().take(20).collect(),
                ..Evidence::default()
            },
            score: host.services.len() as f64,
            confidence: 0.7,
            ..claim(card, stage, Subject { destination: Some(address), facet, ..Subject::default() }, host.first)
        }
    }

    /// Closes the hours that ended before `horizon`.
    fn close(&mut self, horizon: Timestamp, findings: &mut Vec<Finding>) {
        let over: Vec<(Address, bool)> = self
            .memory
            .hosts
            .iter()
            .filter(|(_, host)| host.first.floor(HOUR).plus(HOUR) <= horizon)
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            if let Some(host) = self.memory.hosts.remove(&key).filter(|host| host.services.len() > host.told) {
                findings.push(self.tell(key.0, key.1, &host, Stage::Closed));
            }
        }
    }

    /// A minute ends.
    fn turn(&mut self, before: Timestamp, minute: Timestamp, findings: &mut Vec<Finding>) {
        self.close(minute.minus(self.lateness), findings);
        let today = day_of(minute);
        if day_of(before) < today {
            self.memory.services.expire(today.saturating_sub(days(self.numbers.memory)));
            self.memory.candidates.retain(|_, candidate| candidate.day + 1 >= today);
        }
    }

    fn learned(&self) -> (usize, String) {
        let count = self.memory.services.len();
        (count, format!("{count} services"))
    }

    fn account(&mut self) {
        let Memory { services, candidates, fleets, hosts, evicted, refused, .. } = &self.memory;
        self.state.keys = services.len();
        self.state.bytes = services.bytes() + candidates.len() * 72 + fleets.len() * 16 + hosts.len() * 1_024 + 32_768;
        (self.state.evicted, self.state.refused) = (evicted + services.evicted(), *refused);
    }
}

impl Detector for Services {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let observer = self.memory.learning.meet(row);
        let concerns = row.port != 0 && (row.protocol == protocol::TCP || row.protocol == protocol::UDP) && conversed(row);
        if !concerns {
            return;
        }
        let [ours, theirs] = own_ends(row);
        let outside = !ours && row.class == FlowClass::External;
        if !theirs {
            return;
        }
        let day = day_of(row.at);
        let key = service(row.destination, row.protocol, row.port, outside);
        let met = fingerprint(&[key, u64::from(day)]);
        if self.memory.recent.has(met) {
            return;
        }
        if !is_countable(row, &self.exclude) || !opened(row) || row.destination_roles.has(Role::PeerToPeer) {
            return;
        }
        let inside = service(row.destination, row.protocol, row.port, false);
        let known = self.memory.services.has(inside);
        if !known {
            match self.is_service(row) {
                Some(false) => return,
                None if !self.suffices(row, inside) => return,
                _ => {}
            }
        }
        self.memory.recent.put(met);
        let new = self.is_new(inside, day);
        let exposed = outside && self.is_new(key, day);
        let expected = new && self.is_of_a_fleet(row) || row.source_roles.has_any(&[Role::Admin, Role::Scanner, Role::Monitor]);
        if (exposed || new && !expected) && self.memory.learning.is_over(observer, row.at, self.numbers.learn) {
            self.note(row, exposed, findings);
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        let end = self.memory.hosts.values().map(|host| host.last).max().unwrap_or_default();
        self.close(end.plus(HOUR), findings);
        self.account();
    }

    learner_parts!();
}

fn service(address: Address, protocol: u8, port: u16, outside: bool) -> u64 {
    let [high, low] = halves(address);
    fingerprint(&[high, low, u64::from(outside) << 24 | u64::from(protocol) << 16 | u64::from(port)])
}

/// Ports from 1024 on by which servers are known.
pub(crate) fn named_ports() -> Vec<PortRange> {
    // Proxies, databases, remote desktops, web consoles, message queues, search, and mining pools' usual backdoors have none here.
    let servers = [
        "1080",
        "1194",
        "1433",
        "1521",
        "1723",
        "1883",
        "2049",
        "2179",
        "2375-2376",
        "3128",
        "3268-3269",
        "3306",
        "3389",
        "5060-5061",
        "5432",
        "5671-5672",
        "5900-5910",
        "5985-5986",
        "6379",
        "6443",
        "8000",
        "8080",
        "8291",
        "8443",
        "8883",
        "9000",
        "9090",
        "9200",
        "10250",
        "11211",
        "27017",
    ];
    let controllers = ["1962", "2222", "2404", "4840", "5007", "5094", "9600", "18245", "20000", "34962-34964", "44818", "47808"];
    servers.iter().chain(&controllers).filter_map(|text| text.parse().ok()).collect()
}
