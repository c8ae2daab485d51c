//! ND-13: lateral movement. A host opens an administration service of another that it had not opened for two weeks.
//!
//! Edges (source, destination, port) are remembered. A new one alone is little: one line per source, of low severity. It is much when
//! one source opens new ones to several hosts within the hour, or when the host that was opened goes on to open the next (A to B, then
//! B to C). A service that many use is everybody's, and a new edge to it is nobody's news: the file server and the domain controller are
//! met by every new laptop. A source that is itself new has no past to compare with (a laptop with another lease): it takes three times
//! as many hosts for a fan-out. In IPv6 an edge belongs to the source's /64.
//!
//! Innocent things that look alike: an administrator's machine (give it the role `admin`), a deployment or inventory run (`admin` or
//! `scanner`), a new backup or monitoring server (with such a role only single edges and chains are told).
//!
//! Memory: 11 to 22 bytes per edge, 32 per service, and about 100 per hop of the last hour.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::protocol;
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use super::known::Sight;
use super::{
    HOUR, Known, Learning, Recent, claim, conversed, day_of, days, few, fingerprint, graver, halves, learner_parts, opened,
    own_ends, span,
};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, clock_face, service_name};
use crate::hash::Map;
use crate::native::sightings::Sightings;
use crate::ports::PortSet;
use crate::roles::Role;
use crate::row::Row;
use crate::rules::{Common, Exclude, PortRange};
use crate::scan::is_countable;
use crate::series::history::longest_silent;
use crate::{Detector, State};

/// Hops of one host that are kept; the earliest go.
const HOPS_MAX: usize = 256;
/// Hosts with hops that are kept; those whose last hop is oldest go.
const HOSTS_MAX: usize = 16_384;

/// So many times as many hosts make a fan-out of a source that was first seen today or yesterday: everything is new to it.
const NEWCOMER_FACTOR: usize = 3;

/// The numbers of ND-13.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(crate) ports: PortSet,
    pub(crate) memory: Duration,
    pub(crate) learn: Duration,
    /// New hosts within the hour from which on it is a fan-out.
    pub(crate) fan_out: usize,
    /// How long after having been opened itself a host's next step counts as a chain.
    pub(crate) chain: Duration,
    /// A service with so many clients is everybody's; 0 for never.
    pub(crate) clients_usual: u16,
    pub(crate) severity_movement: Severity,
}

/// ND-13.
pub(crate) struct Lateral {
    numbers: Numbers,
    card: Arc<RuleCard>,
    exclude: Exclude,
    lateness: Duration,
    services_max: usize,
    state: State,
    memory: Memory,
}

#[derive(Default, Serialize, Deserialize)]
struct Memory {
    learning: Learning,
    edges: Known,
    /// Hosts that spoke, and those of them that did so for the first time, by day.
    sources: Known,
    newcomers: Known,
    /// Hosts met today.
    recent: Recent,
    /// Clients of each service, by its fingerprint.
    clients: Map<u64, Clients>,
    /// Hosts with new edges of the last hour.
    hosts: Map<Address, Host>,
    /// The last minute that was closed.
    minute: Timestamp,
    /// Services and hosts let go to make room.
    evicted: u64,
    refused: u64,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Clients {
    count: u16,
    day: u16,
}

/// New edges of one host within the last hour.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Host {
    out: VecDeque<Hop>,
    into: VecDeque<Hop>,
    /// Hosts it had opened when it was told last; 0 for not told.
    told: usize,
    /// Whether some of them are told as a fan-out.
    fanned: bool,
    /// The most hosts within an hour, and what the finding about them said.
    most: usize,
    rows: Sightings,
}

/// A new edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hop {
    peer: Address,
    protocol: u8,
    port: u16,
    at: Timestamp,
}

impl Hop {
    fn service(&self) -> String {
        service_name(self.protocol, self.port)
    }
}

impl Lateral {
    /// With nothing learned.
    pub(crate) fn new(numbers: Numbers, card: RuleCard, common: &Common) -> Self {
        Self {
            memory: Memory {
                edges: Known::new(common.keys_max),
                sources: Known::new(common.keys_max / 4),
                newcomers: Known::new(common.keys_max / 16),
                ..Memory::default()
            },
            state: Common::state(&card),
            exclude: common.exclude.clone(),
            lateness: common.lateness,
            services_max: common.keys_max,
            card: Arc::new(card),
            numbers,
        }
    }

    /// Notes that the source of `row` was there today.
    fn attend(&mut self, row: &Row) {
        let Memory { sources, newcomers, recent, .. } = &mut self.memory;
        let day = day_of(row.at);
        let [high, low] = halves(row.source);
        let today = fingerprint(&[high, low, u64::from(day)]);
        if !recent.has(today) {
            recent.put(today);
            let source = fingerprint(&[high, low]);
            if sources.see(source, day) == Sight::New {
                newcomers.see(source, day);
            }
        }
    }

    /// Notes the edge of `row`; says how many clients its service had before when it is new and worth a thought.
    fn note(&mut self, row: &Row, observer: u16) -> Option<u16> {
        let Memory { learning, edges, clients, refused, .. } = &mut self.memory;
        let day = day_of(row.at);
        let learned = learning.is_over(observer, row.at, self.numbers.learn);
        let [high, low] = halves(row.destination);
        let service = fingerprint(&[high, low, u64::from(row.protocol) << 16 | u64::from(row.port)]);
        let [high, low] = halves(origin(row.source));
        match edges.see(fingerprint(&[high, low, service]), day) {
            Sight::Refused => {
                *refused += 1;
                return None;
            }
            Sight::Again(last) => {
                if last < day {
                    clients.entry(service).and_modify(|clients| clients.day = day);
                }
                return None;
            }
            Sight::New => {}
        }
        let clients = clients.entry(service).or_default();
        let before = clients.count;
        *clients = Clients { count: before.saturating_add(1), day };
        let trusted = row.source_roles.has_any(&[Role::Admin, Role::Scanner]);
        let usual = self.numbers.clients_usual > 0 && before >= self.numbers.clients_usual;
        (learned && !trusted && !usual && opened(row)).then_some(before)
    }

    /// Chains that the new edge `source` to `hop.peer` closes: as their second step, or, when it comes late, as their first.
    fn chains(&self, source: Address, hop: Hop, findings: &mut Vec<Finding>) {
        let chain = self.numbers.chain;
        let hosts = &self.memory.hosts;
        let arrivals = hosts.get(&source).map(|host| &host.into).into_iter().flatten();
        let first = arrivals
            .filter(|into| into.at <= hop.at && hop.at.since(into.at) <= chain && into.peer != hop.peer)
            .max_by_key(|into| (into.at, into.peer));
        if let Some(into) = first {
            findings.push(self.chain(*into, source, hop));
        }
        let departures = hosts.get(&hop.peer).map(|host| &host.out).into_iter().flatten();
        for next in departures.filter(|next| next.at > hop.at && next.at.since(hop.at) <= chain && next.peer != source) {
            findings.push(self.chain(Hop { peer: source, ..hop }, hop.peer, *next));
        }
    }

    /// `into.peer` opened `middle`, which then opened `next.peer`.
    fn chain(&self, into: Hop, middle: Address, next: Hop) -> Finding {
        let Numbers { memory, severity_movement, .. } = &self.numbers;
        let subject = Subject { facet: Some(format!("from {}", into.peer)), ..Subject::pair(middle, next.peer) };
        let techniques: BTreeSet<&str> = [into.port, next.port].into_iter().filter_map(technique).collect();
        let card = graver(&self.card, *severity_movement, &Vec::from_iter(techniques));
        let rows = self.memory.hosts.get(&middle).map(|host| host.rows.to_vec()).unwrap_or_default();
        Finding {
            first: into.at.max(next.at.floor(HOUR)),
            sentence: format!(
                "{} opened {} of {middle} at {}, and {} later {middle} opened {} of {}: steps that nobody took in {}",
                into.peer,
                into.service(),
                clock_face(into.at),
                span(next.at.since(into.at)),
                next.service(),
                next.peer,
                span(*memory)
            ),
            advice: format!("Ask who worked on {middle} at that time; if nobody did, isolate it and look at both logons."),
            evidence: Evidence {
                value: 2.0,
                threshold: 2.0,
                unit: "steps".to_owned(),
                rows,
                hosts: vec![into.peer, middle, next.peer],
                services: vec![into.service(), next.service()],
                ..Evidence::default()
            },
            score: 2.0,
            confidence: 0.8,
            ..claim(card, Stage::Crossed, subject.with_protocol(next.protocol).with_port(next.port), next.at)
        }
    }

    /// What `source` opened within the last hour, if that is to be told now.
    fn fan_out(&mut self, source: Address, row: &Row, clients: u16) -> Option<Finding> {
        let limited = row.source_roles.has_any(&[Role::Monitor, Role::Backup]);
        let threshold = self.threshold(source);
        let host = self.memory.hosts.get_mut(&source)?;
        let count = host.out.iter().filter(|hop| row.at.since(hop.at) < HOUR).map(|hop| hop.peer).collect::<BTreeSet<_>>().len();
        host.most = host.most.max(count);
        let fans = !limited && count >= threshold;
        let stage = match host.told {
            0 => Stage::Crossed,
            _ if fans && !host.fanned => Stage::Crossed,
            told if count >= told * 2 => Stage::Grown,
            _ => return None,
        };
        host.told = count;
        host.fanned |= fans;
        let host = host.clone();
        Some(self.tell(source, &host, stage, Some(clients)))
    }

    /// How many hosts are a fan-out of `source`.
    fn threshold(&self, source: Address) -> usize {
        let newcomer = self.memory.newcomers.has(fingerprint(&halves(source)));
        self.numbers.fan_out * if newcomer { NEWCOMER_FACTOR } else { 1 }
    }

    fn tell(&self, source: Address, host: &Host, stage: Stage, clients: Option<u16>) -> Finding {
        let Numbers { memory, severity_movement, .. } = &self.numbers;
        let threshold = self.threshold(source);
        let (first, last) =
            (host.out.front().map_or(Timestamp::NONE, |hop| hop.at), host.out.back().map_or(Timestamp::NONE, |hop| hop.at));
        let peers: Vec<Address> = host.out.iter().map(|hop| hop.peer).collect::<BTreeSet<_>>().into_iter().collect();
        let services: BTreeSet<(u8, u16)> = host.out.iter().map(|hop| (hop.protocol, hop.port)).collect();
        let names: Vec<String> = services.iter().map(|&(protocol, port)| service_name(protocol, port)).collect();
        let techniques: BTreeSet<&str> = services.iter().filter_map(|&(_, port)| technique(port)).collect();
        let severity = if host.fanned { *severity_movement } else { self.card.severity };
        let sentence = match (clients, peers.as_slice()) {
            (Some(clients), [peer]) if host.most == 1 => format!(
                "{source} opened {} of {peer} for the first time in {}; {} used it before",
                few(&names),
                span(*memory),
                match clients {
                    0 => "nobody else".to_owned(),
                    1 => "1 other host".to_owned(),
                    clients => format!("{clients} other hosts"),
                }
            ),
            _ => format!(
                "{source} opened {} of {} within {} that it had not opened for {}: {}; {threshold} an hour are unusual",
                few(&names),
                if host.most == 1 { "1 host".to_owned() } else { format!("{} hosts", host.most) },
                span(last.since(first).max(Duration::from_secs(1))),
                span(*memory),
                few(&peers),
            ),
        };
        Finding {
            first: first.max(last.floor(HOUR)),
            sentence,
            advice: if host.fanned {
                format!("Ask who worked from {source}; if nobody did, isolate it and look at its logons on the others.")
            } else {
                String::new()
            },
            evidence: Evidence {
                value: host.most as f64,
                threshold: threshold as f64,
                unit: "hosts".to_owned(),
                rows: host.rows.to_vec(),
                hosts: peers.into_iter().take(20).collect(),
                services: names.into_iter().take(20).collect(),
                ..Evidence::default()
            },
            score: host.most as f64 / threshold as f64,
            confidence: if host.fanned { 0.8 } else { 0.4 },
            ..claim(graver(&self.card, severity, &Vec::from_iter(techniques)), stage, Subject::host(source), last)
        }
    }

    /// Lets go hops of more than an hour ago, and closes what was told of hosts that have none left.
    fn prune(&mut self, now: Timestamp, findings: &mut Vec<Finding>) {
        let horizon = now.minus(HOUR.max(self.numbers.chain).saturating_add(self.lateness));
        let mut over: BTreeMap<Address, Host> = BTreeMap::new();
        self.memory.hosts.retain(|&address, host| {
            let quiet = host.out.back().is_none_or(|hop| hop.at < horizon);
            if quiet && host.told > 0 {
                over.insert(address, std::mem::take(host));
            }
            host.into.retain(|hop| hop.at >= horizon);
            host.rows.forget_before(horizon.as_nanos());
            if !quiet {
                host.out.retain(|hop| hop.at >= horizon);
            }
            !(quiet && host.into.is_empty())
        });
        for (source, host) in over.iter().filter(|(_, host)| host.most > host.told) {
            findings.push(self.tell(*source, host, Stage::Closed, None));
        }
        let old = longest_silent(
            self.memory
                .hosts
                .iter()
                .map(|(address, host)| (host.out.back().map(|hop| hop.at).max(host.into.back().map(|hop| hop.at)), address)),
            HOSTS_MAX,
        );
        self.memory.evicted += old.len() as u64;
        for address in &old {
            self.memory.hosts.remove(address);
        }
        let old = longest_silent(self.memory.clients.iter().map(|(service, clients)| (clients.day, service)), self.services_max);
        self.memory.evicted += old.len() as u64;
        for service in &old {
            self.memory.clients.remove(service);
        }
    }

    /// A minute ends.
    fn turn(&mut self, before: Timestamp, minute: Timestamp, findings: &mut Vec<Finding>) {
        self.prune(minute, findings);
        if day_of(before) < day_of(minute) {
            let Memory { edges, clients, sources, newcomers, .. } = &mut self.memory;
            let horizon = day_of(minute).saturating_sub(days(self.numbers.memory));
            edges.expire(horizon);
            sources.expire(horizon);
            newcomers.expire(day_of(minute).saturating_sub(1));
            clients.retain(|_, clients| clients.day >= horizon);
        }
    }

    fn learned(&self) -> (usize, String) {
        let Memory { edges, clients, .. } = &self.memory;
        (edges.len(), format!("{} ways to {} administration services", edges.len(), clients.len()))
    }

    fn account(&mut self) {
        let Memory { edges, sources, newcomers, clients, hosts, evicted, refused, .. } = &self.memory;
        let hops: usize = hosts.values().map(|host| host.out.len() + host.into.len()).sum();
        (self.state.evicted, self.state.refused) = (evicted + edges.evicted() + sources.evicted(), *refused);
        self.state.keys = edges.len();
        let sets = edges.bytes() + sources.bytes() + newcomers.bytes() + 32_768;
        self.state.bytes = sets + clients.len() * 13 + hosts.len() * 160 + hops * 32;
    }
}

impl Detector for Lateral {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let observer = self.memory.learning.meet(row);
        if !conversed(row) {
            return;
        }
        let [ours, theirs] = own_ends(row);
        if ours {
            self.attend(row);
        }
        let concerns = self.numbers.ports.contains(row.port) && matches!(row.protocol, protocol::TCP | protocol::UDP);
        if !concerns || !ours || !theirs || !is_countable(row, &self.exclude) {
            return;
        }
        let Some(clients) = self.note(row, observer) else { return };
        let hop = Hop { peer: row.destination, protocol: row.protocol, port: row.port, at: row.at };
        let host = self.memory.hosts.entry(row.source).or_default();
        insert(&mut host.out, hop);
        host.rows.insert(row);
        let responder = self.memory.hosts.entry(row.destination).or_default();
        insert(&mut responder.into, Hop { peer: row.source, ..hop });
        responder.rows.insert(row);
        self.chains(row.source, hop, findings);
        findings.extend(self.fan_out(row.source, row, clients));
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        let end = self
            .memory
            .minute
            .max(self.memory.hosts.values().filter_map(|host| host.out.back()).map(|hop| hop.at).max().unwrap_or_default());
        self.prune(end.plus(HOUR.saturating_mul(48)), findings);
        self.account();
    }

    learner_parts!();
}

/// Whom an edge belongs to: a host, and in IPv6 its network, because hosts there change their addresses daily (RFC 8981).
fn origin(source: Address) -> Address {
    if source.as_v4().is_some() { source } else { Prefix::new(source, 64).first() }
}

/// Puts `hop` in its place in time.
fn insert(hops: &mut VecDeque<Hop>, hop: Hop) {
    if hops.len() >= HOPS_MAX {
        hops.pop_front();
    }
    let place = hops.partition_point(|other| other.at <= hop.at);
    hops.insert(place, hop);
}

/// What ATT&CK calls moving by the service on `port`.
const fn technique(port: u16) -> Option<&'static str> {
    match port {
        3389 => Some("T1021.001"),
        139 | 445 => Some("T1021.002"),
        135 => Some("T1021.003"),
        22 => Some("T1021.004"),
        5900..=5910 => Some("T1021.005"),
        5985 | 5986 => Some("T1021.006"),
        102 | 502 | 789 | 1962 | 2222 | 2404 | 4840 | 5007 | 9600 | 18245 | 20000 | 44818 | 47808 => Some("T0886"),
        _ => None,
    }
}

/// Ports by which hosts and controllers are administered.
pub(crate) fn admin_ports() -> Vec<PortRange> {
    // SSH, Telnet, RPC, NetBIOS, SMB, Hyper-V, RDP, VNC, WinRM, Winbox.
    let hosts = ["22", "23", "135", "139", "445", "2179", "3389", "5900-5910", "5985-5986", "8291"];
    // S7, Modbus, CODESYS, PCWorx, EtherNet/IP, IEC 104, OPC UA, Melsec, Omron FINS, GE-SRTP, DNP3, BACnet.
    let controllers = ["102", "502", "789", "1962", "2222", "2404", "4840", "5007", "9600", "18245", "20000", "44818", "47808"];
    hosts.iter().chain(&controllers).filter_map(|text| text.parse().ok()).collect()
}
