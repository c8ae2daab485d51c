//! What a flood is called, in words and numbers.

use std::sync::Arc;

use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::Floods;
use super::measure::{Key, Kind};
use super::sources::Sources;
use super::watched::{Flood, Minute, Peak, Watched};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, Window, clock_face, round2, service_name};

/// From so many bits on (of ten) no network of real clients looks like it: addresses are made up.
const FORGED_ENTROPY: f64 = 8.5;

impl Floods {
    /// That `peak` is a flood of `key`.
    pub(super) fn finding(
        &self,
        key: &Key,
        watched: &Watched,
        flood: &Flood,
        minute: &Minute,
        peak: &Peak,
        stage: Stage,
    ) -> Finding {
        let sources = &flood.sources;
        let victim = Address(key.victim);
        let service = if key.port == 0 && key.protocol != protocol::ICMP && key.protocol != protocol::ICMPV6 {
            format!("{} ports of all kinds", service_name(key.protocol, 0))
        } else {
            service_name(key.protocol, key.port)
        };
        let subject = Subject { destination: Some(victim), protocol: Some(key.protocol), ..Subject::default() };
        let unit = self.unit(key, peak);
        let at = clock_face(Timestamp::from_secs(peak.second));
        let usual = match peak.usual {
            Some(usual) => format!("{} are usual", self.rate(usual, peak)),
            None => "what is usual is still being learned".to_owned(),
        };
        let evidence = Evidence {
            value: round2(peak.rate),
            threshold: round2(peak.limit),
            unit: format!("{unit} per second"),
            octets: matches!(self.kind, Kind::Reflection(_)).then_some(minute.bulk),
            attempts: (minute.count > 0).then_some(minute.count),
            failures: (minute.count > 0).then_some(minute.count - minute.good.min(minute.count)),
            baseline: peak.usual.map(round2),
            series: if peak.is_bulk { Vec::new() } else { watched.course() },
            rows: flood.sightings.to_vec(),
            hosts: vec![victim],
            services: vec![service_name(key.protocol, key.port)],
            observers: flood.observers.to_strings(),
            ..Evidence::default()
        };
        Finding {
            rule: self.card(sources),
            stage,
            subject: if key.port == 0 { subject } else { subject.with_port(key.port) },
            window: Window {
                start: Timestamp::from_secs(minute.number * 60),
                end: Timestamp::from_secs(minute.number * 60 + 60),
            },
            first: minute.first,
            last: minute.last,
            sentence: format!(
                "{victim} is sent {} {unit} a second on {service} (over {} s at {at}){}; {usual}; {}",
                self.rate(peak.rate, peak),
                peak.over_secs,
                self.outcome(key, peak),
                whence(sources),
            ),
            advice: self.advice(sources).to_owned(),
            score: round2(peak.rate / peak.limit.max(1.0)),
            confidence: if peak.usual.is_some() { 0.9 } else { 0.7 },
            evidence,
        }
    }

    fn unit(&self, key: &Key, peak: &Peak) -> &'static str {
        match (&self.kind, key.protocol, peak.is_bulk) {
            (Kind::Syn, ..) => "SYNs",
            (Kind::Reflection(_), ..) => "octets of answers",
            (Kind::Load, protocol::TCP, _) => "connections",
            (Kind::Load, protocol::UDP, false) => "UDP flows",
            (Kind::Load, protocol::UDP, true) => "datagrams",
            (Kind::Load, ..) => "ICMP packets",
        }
    }

    /// `rate` as a person reads it.
    fn rate(&self, rate: f64, peak: &Peak) -> String {
        if peak.is_bulk && matches!(self.kind, Kind::Reflection(_)) {
            format!("{:.1} million", rate / 1e6)
        } else {
            format!("{rate:.0}")
        }
    }

    fn outcome(&self, key: &Key, peak: &Peak) -> String {
        let percent = peak.good_share * 100.0;
        match (&self.kind, key.protocol) {
            (Kind::Syn, _) if peak.is_bulk => ", again and again without going on".to_owned(),
            (Kind::Syn, _) => format!(", and {percent:.0} % of the connections are completed"),
            (Kind::Reflection(_), _) if peak.good_share == 0.0 => ", and asked for nothing".to_owned(),
            (Kind::Reflection(_), _) => format!(", and asked for {percent:.1} % of as much"),
            (Kind::Load, protocol::UDP) => format!(", and answers {percent:.0} %"),
            _ => String::new(),
        }
    }

    fn advice(&self, sources: &Sources) -> &'static str {
        match &self.kind {
            Kind::Reflection(_) => {
                "Have the provider filter UDP from these ports towards the victim; if the reflectors are yours, close the service to \
                 the outside."
            }
            Kind::Syn | Kind::Load if sources.busiest().is_empty() => {
                "Filtering single sources does not help: limit new connections at the firewall (SYN cookies, rate limits), or have \
                 the provider scrub the traffic."
            }
            Kind::Syn | Kind::Load => "Find out whether the named sources test the service on purpose; otherwise block them.",
        }
    }

    /// Few sources of completed connections may as well be a test.
    fn card(&self, sources: &Sources) -> Arc<RuleCard> {
        let may_be_test = matches!(self.kind, Kind::Load)
            && !sources.has_prefixes
            && sources.scatter() < self.settings.sources_min
            && self.rule.severity > Severity::Low;
        if may_be_test { Arc::new(RuleCard { severity: Severity::Low, ..(*self.rule).clone() }) } else { self.rule.clone() }
    }
}

/// Where it comes from.
fn whence(sources: &Sources) -> String {
    let entropy = sources.entropy();
    let named: Vec<String> =
        sources.busiest().into_iter().take(3).map(|(host, share)| format!("{host} ({:.0} %)", share * 100.0)).collect();
    match (named.is_empty(), sources.has_prefixes) {
        (_, true) => "its sources are too many for the sensor to tell them apart, so probably forged".to_owned(),
        (false, _) => format!("it comes from {}", named.join(", ")),
        (true, _) if entropy >= FORGED_ENTROPY => {
            format!("its sources are scattered ({entropy:.1} of 10 bits of entropy), so probably forged")
        }
        (true, _) => format!("it comes from some {:.0} sources, none of which stands out", sources.effective()),
    }
}
