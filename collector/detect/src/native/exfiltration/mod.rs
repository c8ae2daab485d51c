//! ND-11: a host sends out far more than it usually does, or where nobody sends.
//!
//! Counted are octets that hosts of the operator's sites send in connections they open to the outside, in each UTC hour and day.
//!
//! | facet | fires when | window |
//! | --- | --- | --- |
//! | hour | the hour is `z_hour` spreads above what is usual for this hour of the week, and above `octets_min` | hour |
//! | upload | `upload_octets_min` went to one host, ten times what came back, in a network that is new and that one or two hosts send to | day |
//! | day | the day is `z_day` spreads above what is usual, and a fifth of it went to a network that is new or that few send to | day |
//! | tunnel | `tunnel_octets_min` went to one host by DNS or by ICMP | day |
//!
//! What is usual is a median, and a spread its median deviation, at least a twentieth of it and 1 MB ([`past`]). It is told as soon as the
//! running hour or day is over the bar, again when it has doubled, and at its end if it has grown.
//!
//! Hour and day begin when three days of the host are known. An upload in the first week, when every network is new, needs ten times as
//! much, is told with low confidence, and not on the first day, which shows who sends where. To a network that many hosts send to, the
//! hour's `octets_min` is ten times as high; to one to which the host itself sent most on three earlier days, the whole bar is.
//!
//! Innocent things that look alike: a nightly backup is usual after three days, a weekly one after two weeks, servers with the role
//! `backup` are not looked at; a video call receives as much as it sends; the first synchronisation of a new computer goes where others
//! send too. A resolver with forwarders needs the role `dns`.
//!
//! Memory: 300 octets per host that sends anything, 1.4 KiB more for one that ever sent [`REMEMBERED_MIN`] in an hour; 100 per pair of
//! hosts and day; 50 per network. When full, an eighth goes: hosts silent for longest, those without a past first; pairs with the
//! fewest octets; networks silent for longest.

mod case;
mod past;
mod peers;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::Direction;
use spanwatch_common::flow::{FORWARD, REVERSE, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use self::case::{Case, CaseKey, Facet, Measure, Told, confidence};
use self::past::{Basis, HOURS, Watched, usual_day, usual_hour};
use self::peers::{Peers, Standing};
use self::sums::{Host, Pair, PairKey, Traffic};
use crate::facts::{Facts, Interest};
use crate::finding::{Finding, RuleCard, Sighting, Stage};
use crate::hash::Map;
use crate::native::network;
use crate::roles::Role;
use crate::row::{Part, Row};
use crate::rules::transfers::Exfiltration as Settings;
use crate::rules::{Common, Exclude, Rule};
use crate::scan::is_countable;
use crate::sites::FlowClass;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, State};

const HOUR: Duration = Duration::from_secs(3_600);
/// Hours are remembered of a host that ever sent so many octets in one: the spread is never smaller.
const REMEMBERED_MIN: u64 = past::SPREAD_MIN as u64;
/// Bars are so many times as high where an innocent reason is likely.
const CAUTION: f64 = 10.0;
/// Earlier days on which a network got most of what the host sent, after which it is no stranger.
const ESTABLISHED_DAYS: u32 = 3;
/// What went to the peer that got most is at least so many times what came from it, in an hour and a day; in an upload.
const ONE_WAY: u64 = 2;
const UPLOAD: u64 = 10;
/// A host without a past is forgotten after so many hours of silence, one with after four weeks.
const FORGOTTEN_AFTER: [u32; 2] = [14 * 24, HOURS as u32];

/// ND-11.
pub(crate) struct Exfiltration {
    rule: Arc<RuleCard>,
    exclude: Exclude,
    settings: Settings,
    lateness: Duration,
    hosts: Map<u128, Host>,
    pairs: Map<PairKey, Pair>,
    peers: Peers,
    cases: BTreeMap<CaseKey, Case>,
    /// By hour modulo those remembered: whether anything was seen.
    seen: Vec<bool>,
    /// First hour that was seen, since 1970; 0 before.
    began: u32,
    /// The oldest hour that is open.
    hour: u32,
    state: State,
}

impl Exfiltration {
    pub(crate) fn new(settings: &Settings, card: RuleCard) -> Self {
        let common = settings.common();
        Self {
            exclude: common.exclude,
            settings: settings.clone(),
            lateness: common.lateness,
            hosts: Map::default(),
            pairs: Map::default(),
            peers: Peers::default(),
            cases: BTreeMap::new(),
            seen: vec![false; HOURS],
            began: 0,
            hour: 0,
            state: Common::state(&card),
            rule: Arc::new(card),
        }
    }

    fn is_candidate(&self, row: &Row) -> bool {
        row.part == Part::Slice
            && row.direction == Direction::Outbound
            && row.class == FlowClass::External
            && !row.source_roles.has(Role::Backup)
            && !row.destination_roles.has(Role::Backup)
            && is_countable(row, &self.exclude)
    }

    fn watched(&self, since: u32) -> Watched<'_> {
        // The first hour was not seen whole.
        Watched { since: since.max(self.began) + 1, seen: &self.seen }
    }

    /// Lets an eighth of the hosts go.
    fn forget_hosts(&mut self) {
        let mut by_age: Vec<(bool, u32, u128)> =
            self.hosts.iter().map(|(&host, known)| (known.past.is_some(), known.last, host)).collect();
        by_age.sort_unstable();
        for (_, _, host) in by_age.into_iter().take(self.settings.keys_max.div_ceil(8)) {
            self.hosts.remove(&host);
            self.state.evicted += 1;
        }
    }

    /// Lets an eighth of the pairs go.
    fn forget_pairs(&mut self) {
        let mut by_size: Vec<(u64, PairKey)> = self.pairs.iter().map(|(key, pair)| (pair.traffic.out, *key)).collect();
        by_size.sort_unstable();
        for (_, key) in by_size.into_iter().take(self.settings.pairs_max.div_ceil(8)) {
            self.pairs.remove(&key);
            self.state.evicted += 1;
        }
    }

    fn test_hour(&mut self, row: &Row, hour: u32, standing: Standing) -> Option<Finding> {
        let host = self.hosts.get(&row.source.0)?;
        let sum = host.hours.get(hour)?;
        if (sum.traffic.out as f64) < sum.bar {
            return None;
        }
        let traffic = sum.traffic;
        let usual = usual_hour(host.past.as_deref(), &self.watched(host.since), hour, self.settings.z_hour);
        let to_few = sum.top.0 == row.destination.0 && (standing.few || standing.new);
        let established = host.days_to(network(Address(sum.top.0))) >= ESTABLISHED_DAYS;
        let least = self.settings.octets_min as f64 * if to_few { 1.0 } else { CAUTION };
        let bar = usual.bar.max(least) * if established { CAUTION } else { 1.0 };
        let fires = usual.basis != Basis::Nothing && traffic.out as f64 >= bar && sum.top.1.is_one_way(ONE_WAY);
        let top = sum.top;
        let confidence = confidence(usual.basis, to_few);
        self.hosts.get_mut(&row.source.0)?.hours.get_mut(hour)?.bar =
            if fires { 2.0 * traffic.out as f64 } else { 1.1 * traffic.out as f64 };
        if !fires {
            return None;
        }
        let key = (Facet::Hour, row.source.0, 0, start_of_hour(hour));
        Some(self.tell(
            key,
            row,
            traffic,
            Measure { bar, usual: Some(usual), confidence, service: None, towards: top.0, new: standing.new },
        ))
    }

    fn test_day(&mut self, row: &Row, day: u32, standing: Standing, there: Traffic) -> Option<Finding> {
        let host = self.hosts.get(&row.source.0)?;
        let sum = host.days.get(day)?;
        let established = host.days_to(network(row.destination)) >= ESTABLISHED_DAYS;
        let rare = (standing.few || standing.new) && !established;
        if (sum.traffic.out as f64) < sum.bar || !rare {
            return None;
        }
        let traffic = sum.traffic;
        let usual = usual_day(host.past.as_deref(), &self.watched(host.since), day, self.settings.z_day);
        let bar = usual.bar.max(self.settings.day_octets_min as f64);
        let fires = usual.basis != Basis::Nothing
            && traffic.out as f64 >= bar
            && there.is_one_way(ONE_WAY)
            && there.out as f64 * 100.0 >= traffic.out as f64 * self.settings.rare_share_min;
        let next = if fires { 2.0 } else { 1.1 };
        self.hosts.get_mut(&row.source.0)?.days.get_mut(day)?.bar = next * traffic.out as f64;
        let key = (Facet::Day, row.source.0, 0, start_of_hour(day * 24));
        let measure = Measure {
            bar,
            usual: Some(usual),
            confidence: confidence(usual.basis, true),
            service: None,
            towards: row.destination.0,
            new: standing.new,
        };
        fires.then(|| self.tell(key, row, traffic, measure))
    }

    /// By one pair of hosts: an upload, or a tunnel.
    fn test_pair(&mut self, row: &Row, key: PairKey, standing: Standing) -> Option<Finding> {
        let pair = self.pairs.get(&key)?;
        let traffic = pair.traffic;
        if (traffic.out as f64) < pair.bar {
            return None;
        }
        let day = start_of_hour(key.day * 24);
        let (facet, bar, fires, confidence) = if key.tunnel {
            (Facet::Tunnel, self.settings.tunnel_octets_min as f64, true, 0.6)
        } else {
            // In its first week nobody knows what is new: what few send to will do, if it is much. The first day only shows who is who.
            let learning = key.day * 24 < self.began + 7 * 24;
            let bar = self.settings.upload_octets_min as f64 * if learning { CAUTION } else { 1.0 };
            let first_day = hour_of(row.at) < self.began + 24;
            let before = self.hosts.get(&key.source).map_or(0, |host| host.days_to(network(row.destination)));
            let there = standing.few && (standing.new || learning && !first_day && before == 0);
            let fires = there && traffic.out as f64 >= bar && traffic.is_one_way(UPLOAD);
            (Facet::Upload, bar, fires, if learning { 0.3 } else { 0.7 })
        };
        self.pairs.get_mut(&key)?.bar = if fires { 2.0 } else { 1.1 } * traffic.out as f64;
        let service = key.tunnel.then_some((row.protocol, row.port));
        let measure = Measure { bar, usual: None, confidence, service, towards: row.destination.0, new: standing.new };
        fires.then(|| self.tell((facet, row.source.0, row.destination.0, day), row, traffic, measure))
    }

    fn tell(&mut self, key: CaseKey, row: &Row, traffic: Traffic, measure: Measure) -> Finding {
        let (facet, source, peer, start) = key;
        let stage = if self.cases.contains_key(&key) { Stage::Grown } else { Stage::Crossed };
        let host = self.hosts.get(&source);
        let rows = host.and_then(|host| host.rows.as_ref()).map(|rows| rows.to_vec()).unwrap_or_default();
        let rows: Vec<Sighting> = rows.into_iter().filter(|seen| peer == 0 || seen.destination.0 == peer).collect();
        let first = rows.first().map_or(row.at, |seen| Timestamp::from_nanos(seen.at)).max(start);
        let mut series: Vec<f64> = Vec::new();
        if facet == Facet::Hour {
            let hour = hour_of(start);
            series.extend(host.and_then(|host| host.past.as_ref()).map(|past| past.last_hours(hour, 24)).unwrap_or_default());
            series.push(traffic.out as f64);
        }
        let told = Told::of(facet, (first, row.at), &measure, rows, series);
        let finding = told.finding(&self.rule, key, traffic, stage);
        self.cases.insert(key, Case { told: traffic.out, finding: told });
        finding
    }

    /// Closes the oldest open hour, and the day with its last.
    fn close_hour(&mut self, findings: &mut Vec<Finding>) {
        let (hour, day) = (self.hour, self.hour / 24);
        let day_ends = hour % 24 == 23;
        let from = findings.len();
        let closing: Vec<CaseKey> = self
            .cases
            .keys()
            .filter(|(facet, .., start)| match facet {
                Facet::Hour => hour_of(*start) <= hour,
                _ => day_ends && hour_of(*start) / 24 <= day,
            })
            .copied()
            .collect();
        for key in closing {
            let Some(case) = self.cases.remove(&key) else { continue };
            let traffic = self.traffic(key, hour, day, &case);
            if traffic.out > case.told {
                findings.push(case.finding.finding(&self.rule, key, traffic, Stage::Closed));
            }
        }
        let (mut bytes, mut anything) = (0, false);
        self.hosts.retain(|_, host| {
            anything |= host.close_hour(hour, REMEMBERED_MIN);
            if day_ends {
                host.close_day(day, REMEMBERED_MIN);
            }
            let kept = hour.saturating_sub(host.last) <= FORGOTTEN_AFTER[usize::from(host.past.is_some())];
            bytes += if kept { host.bytes() } else { 0 };
            kept
        });
        if day_ends {
            self.pairs.retain(|key, _| key.day > day);
        }
        self.seen[hour as usize % HOURS] = anything;
        self.state.keys = self.hosts.len();
        self.state.bytes = bytes + self.pairs.len() * size_of::<(PairKey, Pair)>() + self.peers.bytes();
        self.hour = hour + 1;
        findings[from..].sort_by(Finding::order);
    }

    /// What a case has come to.
    fn traffic(&self, (facet, source, peer, _): CaseKey, hour: u32, day: u32, case: &Case) -> Traffic {
        let host = self.hosts.get(&source);
        let pair = |tunnel| self.pairs.get(&PairKey { source, destination: peer, day, tunnel }).map(|pair| pair.traffic);
        let traffic = match facet {
            Facet::Hour => host.and_then(|host| host.hours.get(hour)).map(|sum| sum.traffic),
            Facet::Day => host.and_then(|host| host.days.get(day)).map(|sum| sum.traffic),
            Facet::Upload => pair(false),
            Facet::Tunnel => pair(true),
        };
        traffic.unwrap_or(Traffic { out: case.told, back: 0 })
    }

    /// Closes hours until `hour` is one of the two that are open.
    fn open(&mut self, hour: u32, findings: &mut Vec<Finding>) {
        // Hours of which everything is forgotten need not be closed one by one.
        if hour > self.hour + 2 * HOURS as u32 {
            (self.hosts, self.pairs) = (Map::default(), Map::default());
            self.seen.fill(false);
            self.cases.clear();
            self.hour = hour;
        }
        while self.hour + 1 < hour {
            self.close_hour(findings);
        }
    }
}

fn hour_of(at: Timestamp) -> u32 {
    u32::try_from(at.as_nanos().div_euclid(3_600_000_000_000)).unwrap_or(0)
}

fn start_of_hour(hour: u32) -> Timestamp {
    Timestamp::from_secs(i64::from(hour) * 3_600)
}

/// Whether it is a message that carries little by nature: a name, or a control message.
fn may_tunnel(row: &Row) -> bool {
    match row.protocol {
        protocol::ICMP | protocol::ICMPV6 => true,
        _ => row.port == 53 && !row.source_roles.has(Role::Dns),
    }
}

impl Detector for Exfiltration {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE.and(Facts::EXTERNAL))
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        if !self.is_candidate(row) {
            return;
        }
        let hour = hour_of(row.at);
        if self.began == 0 {
            (self.began, self.hour) = (hour, hour);
        }
        if hour < self.hour {
            self.state.late += 1;
            return;
        }
        self.open(hour, findings);
        let traffic = Traffic { out: row.octets[FORWARD], back: row.octets[REVERSE] };
        let (source, destination, day) = (row.source.0, row.destination.0, hour / 24);
        let network = network(row.destination);
        let (standing, forgotten) = self.peers.meet(network, source, hour, self.began, self.settings.peers_max);
        self.state.evicted += forgotten;

        let key = PairKey { source, destination, day, tunnel: false };
        if self.pairs.len() >= self.settings.pairs_max && !self.pairs.contains_key(&key) {
            self.forget_pairs();
        }
        let pair = self.pairs.entry(key).or_insert_with(|| Pair::new(self.settings.upload_octets_min));
        let in_hour = pair.add(hour, traffic);
        let there = pair.traffic;

        if self.hosts.len() >= self.settings.keys_max && !self.hosts.contains_key(&source) {
            self.forget_hosts();
        }
        let bars = (self.settings.octets_min, self.settings.day_octets_min);
        let host = self.hosts.entry(source).or_insert_with(|| Host::new(hour));
        host.add(hour, traffic, (destination, in_hour), bars);
        if host.hours.get(hour).is_some_and(|sum| sum.traffic.out >= REMEMBERED_MIN) {
            host.rows.get_or_insert_default().insert(row);
        }
        findings.extend(self.test_hour(row, hour, standing));
        findings.extend(self.test_day(row, day, standing, there));
        findings.extend(self.test_pair(row, key, standing));
        if may_tunnel(row) {
            let key = PairKey { tunnel: true, ..key };
            let pair = self.pairs.entry(key).or_insert_with(|| Pair::new(self.settings.tunnel_octets_min));
            pair.add(hour, traffic);
            findings.extend(self.test_pair(row, key, standing));
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        if self.began == 0 {
            return;
        }
        // The hour that `newest` lies in is open, and so is the one before it as long as it may get late rows.
        let open = hour_of(newest.minus(self.lateness));
        self.open(open, findings);
        while self.hour < open {
            self.close_hour(findings);
        }
    }

    fn flush(&mut self, _findings: &mut Vec<Finding>) {
        // Silence for a while does not end an hour.
    }

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        if self.began == 0 {
            return;
        }
        // The last hours, and then the rest of the day.
        let end = (self.hour + 1) / 24 * 24 + 23;
        while self.hour <= end {
            self.close_hour(findings);
        }
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }

    fn snapshot(&self) -> Vec<u8> {
        let State { keys, bytes, late, evicted, .. } = self.state;
        let cases: Vec<(&CaseKey, &Case)> = self.cases.iter().collect();
        pack(&(&self.hosts, &self.pairs, &self.peers, cases, &self.seen, (self.began, self.hour), (keys, bytes, late, evicted)))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Held =
            (Map<u128, Host>, Map<PairKey, Pair>, Peers, Vec<(CaseKey, Case)>, Vec<bool>, (u32, u32), (usize, usize, u64, u64));
        let (hosts, pairs, peers, cases, seen, (began, hour), (keys, size, late, evicted)) = unpack::<Held>(bytes)?;
        if seen.len() != HOURS || hosts.values().any(|host| !host.is_sound()) {
            return Err(RestoreError::new("it does not hold four weeks of hours"));
        }
        self.state = State { keys, bytes: size, late, evicted, ..self.state };
        (self.hosts, self.pairs, self.peers, self.cases) = (hosts, pairs, peers, cases.into_iter().collect());
        (self.seen, self.began, self.hour) = (seen, began, hour);
        Ok(())
    }
}
