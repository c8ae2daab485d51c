//! The exact forms against a second implementation: straight from the KQL, over all rows at once.

use std::collections::{BTreeMap, BTreeSet};

use spanwatch_common::flow::{FlowRecord, FlowState, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::text::protocol_name;
use spanwatch_common::time::Timestamp;

use super::tests::{TEN, host, replay, rules, talk};
use super::*;
use crate::finding::Subject;

/// A reproducible stream of numbers (Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub(super) fn random_rows(seed: u64, rows: usize) -> Vec<FlowRecord> {
    let mut dice = Dice(seed);
    let sources = ["10.0.0.1", "10.0.0.2", "172.31.0.3", "172.32.0.4", "192.168.0.5", "8.8.8.8", "fd00::7"];
    let mut records: Vec<FlowRecord> = (0..rows)
        .map(|_| {
            let destination = match dice.below(10) {
                0 => "203.0.113.1".to_owned(),
                1 => "fd00::1".to_owned(),
                _ => format!("10.1.0.{}", dice.below(12)),
            };
            let transport = dice.pick(&[protocol::TCP, protocol::TCP, protocol::TCP, protocol::UDP, protocol::ICMP]);
            let port = if transport == protocol::ICMP { 0 } else { dice.pick(&[1, 22, 80, 443, 9_999, 10_000, 50_000]) };
            let octets = if dice.below(4) == 0 { 0 } else { dice.below(100_000) };
            let secs = dice.below(1_800_000) as f64 / 1_000.0;
            let record = talk(dice.pick(&sources), &destination, transport, port, secs, octets);
            FlowRecord { state: dice.pick(&[FlowState::Begin, FlowState::Continue, FlowState::End]), ..record }
        })
        .collect();
    // By time, but out of order by less than the lateness.
    let mut order: Vec<(i64, usize)> = Vec::new();
    for (place, record) in records.iter().enumerate() {
        order.push((record.start[0].as_nanos() + dice.below(80_000_000_000).cast_signed(), place));
    }
    order.sort_unstable();
    records = order.into_iter().map(|(_, place)| records[place].clone()).collect();
    records
}

/// `(rule, key, bin, value in hundredths)`.
type Answer = (String, String, Timestamp, i64);

fn answers(findings: &[Finding]) -> BTreeSet<Answer> {
    let answer = |finding: &Finding| {
        let Finding { rule, subject, window, evidence, .. } = finding;
        (rule.id.to_owned(), subject.to_string(), window.start, (evidence.value * 100.0).round() as i64)
    };
    findings.iter().map(answer).collect()
}

/// The three restatements in `design/kql`, by brute force.
fn kql(records: &[FlowRecord]) -> BTreeSet<Answer> {
    let bin = |at: Timestamp, secs: i64| Timestamp::from_nanos(at.as_nanos() - at.as_nanos() % (secs * 1_000_000_000));
    let mut hosts: BTreeMap<(Address, Timestamp), BTreeSet<Address>> = BTreeMap::new();
    let mut ports: BTreeMap<(Address, Address, Timestamp), BTreeSet<u16>> = BTreeMap::new();
    let mut volumes: BTreeMap<(Address, u8, u16), BTreeMap<Timestamp, u64>> = BTreeMap::new();
    let private = |address: Address| {
        address.as_v4().is_some_and(|v4| match v4.octets() {
            [10, ..] | [192, 168, ..] => true,
            [172, second, ..] => (16..32).contains(&second),
            _ => false,
        })
    };
    for record in records {
        let at = record.start[0];
        let FlowRecord { source, destination, destination_port: port, protocol, octets, .. } = *record;
        if protocol == 6 && port < 10_000 && private(source) && private(destination) {
            hosts.entry((source, bin(at, 60))).or_default().insert(destination);
            ports.entry((source, destination, bin(at, 60))).or_default().insert(port);
        }
        *volumes.entry((source, protocol, port)).or_default().entry(bin(at, 300)).or_default() += octets[0] + octets[1];
    }
    let mut answers = BTreeSet::new();
    for ((source, at), hosts) in hosts {
        if hosts.len() > 6 {
            answers.insert(("AZ-01".to_owned(), Subject::host(source).to_string(), at, hosts.len() as i64 * 100));
        }
    }
    for ((source, destination, at), ports) in ports {
        if ports.len() > 3 {
            answers.insert(("AZ-02".to_owned(), Subject::pair(source, destination).to_string(), at, ports.len() as i64 * 100));
        }
    }
    for ((host, protocol, port), bins) in volumes {
        let mean = bins.values().sum::<u64>() as f64 / bins.len() as f64;
        let deviation = |volume: u64| ((volume as f64 - mean).abs() / mean * 100.0).round() as i64;
        // The first of equal maxima, as ours.
        if let Some((at, &volume)) = bins.iter().rev().max_by_key(|(_, volume)| deviation(**volume))
            && mean > 0.0
            && deviation(volume) > 0
        {
            let service = format!("{}{port}", protocol_name(protocol));
            let subject = Subject { vm: Some(host.to_string()), service: Some(service), ..Subject::default() };
            answers.insert(("AZ-03".to_owned(), subject.to_string(), *at, deviation(volume)));
        }
    }
    answers
}

#[test]
fn exact_forms_answer_as_the_kql_does() {
    let exact = rules(
        "[AZ-01]\nvariants = ['exact']\nlateness_secs = 90\n[AZ-02]\nvariants = ['exact']\n[AZ-03]\nvariants = ['exact']\nlateness_secs = 90\n",
    );
    assert_eq!(TEN % 300, 0);
    assert!(host("10.0.0.1").is_private());
    let mut scans = 0;
    for seed in 1..=20 {
        // From sparse, where bins are missing, to dense, where every threshold is passed.
        let records = random_rows(seed, 200 << (seed % 7));
        let (findings, detection) = replay(&exact, &records);
        assert!(detection.states().all(|state| state.late + state.refused + state.evicted == 0));
        assert_eq!(answers(&findings), kql(&records), "seed {seed}");
        scans += findings.iter().filter(|finding| finding.rule.id != "AZ-03").count();
    }
    assert!(scans > 100, "the rows must give the rules something to find");
}
