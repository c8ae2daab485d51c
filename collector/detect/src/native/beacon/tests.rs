//! What ND-10 tells, what it leaves alone, and how well its score parts beacons from other regular things.

use spanwatch_common::flow::{FlowRecord, protocol};
use spanwatch_common::net::Prefix;

use super::rhythm::{Age, Contacts, Standing, Weights, score};
use crate::roles::Role;
use crate::tests::{at, host, replay, rules, stream, talk};
use crate::{Detection, Mode, Roles, RuleFile, Variant};

const ONLY: &[&str] = &["ND-10"];
const HOUR: f64 = 3_600.0;
const DAY: f64 = 24.0 * HOUR;

fn only(ids: &[&str]) -> RuleFile {
    let mut rules = RuleFile::default();
    rules.keep_only(&ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>()).expect("rules");
    rules
}

/// Numbers by chance, the same in every run.
struct Chance(u64);

impl Chance {
    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Intervals of contacts that come by chance.
    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// Calls from `from` to `to` (seconds), `period` apart, each interval up to `jitter` of it off, `missed` of them left out.
fn calls(chance: &mut Chance, (from, to): (f64, f64), period: f64, jitter: f64, missed: f64) -> Vec<f64> {
    let mut calls = Vec::new();
    let mut now = from + chance.between(0.0, period);
    while now < to {
        if chance.unit() >= missed {
            calls.push(now);
        }
        now += period * (1.0 + chance.between(-jitter, jitter));
    }
    calls
}

/// One connection per call, each from a port of its own.
fn flows(source: &str, destination: &str, port: u16, calls: &[f64], octets: impl Fn(usize) -> u64) -> Vec<FlowRecord> {
    let flow = |(i, &secs): (usize, &f64)| FlowRecord {
        source_port: 10_000 + (i % 50_000) as u16,
        ..talk(source, destination, protocol::TCP, port, secs, 2 * octets(i))
    };
    calls.iter().enumerate().map(flow).collect()
}

/// Pages read now and then between `from` and `to`, each a burst of connections to the same server.
fn browsing(chance: &mut Chance, (from, to): (f64, f64), pause: f64) -> Vec<f64> {
    let mut calls = Vec::new();
    let mut now = from + chance.exponential(pause);
    while now < to {
        let connections = 1 + (chance.unit() * 8.0) as usize;
        calls.extend((0..connections).map(|_| now + chance.between(0.0, 4.0)));
        // Most pauses are short, some are lunch.
        now += if chance.unit() < 0.1 { chance.exponential(10.0 * pause) } else { chance.exponential(pause) };
    }
    calls.sort_unstable_by(f64::total_cmp);
    calls
}

#[test]
fn five_minute_calls_with_jitter_and_gaps_are_told_the_same_day_with_their_numbers() {
    let mut chance = Chance(7);
    let beacon = calls(&mut chance, (0.0, 14.0 * HOUR), 300.0, 0.3, 0.2);
    let (findings, _) = replay(&only(ONLY), &flows("10.0.0.7", "203.0.113.9", 443, &beacon, |i| 480 + i as u64 % 7));
    let first = &findings[0];
    // 10:00 to midnight is the first window: fourteen hours, of which it takes some ten until the day is covered well enough.
    assert_eq!(first.window.start, at(-10.0 * HOUR));
    let period: f64 = first.sentence.split("every ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert!((4.5..=5.5).contains(&period), "{}", first.sentence);
    assert!(first.sentence.starts_with("10.0.0.7 called 203.0.113.9 TCP/443 ") && first.sentence.contains("min give or take"));
    assert!(!first.evidence.rows.is_empty() && first.evidence.rows.len() <= 20);
    assert_eq!(first.evidence.hosts, [host("203.0.113.9")]);
    assert!((0.5..=0.9).contains(&first.confidence), "{}", first.confidence);
}

#[test]
fn the_threshold_decides() {
    // Calls at equal distances and of equal size for nine hours: interval, size and flatness are 1, coverage is 9/12.
    let beacon: Vec<f64> = (0..9 * 12).map(|i| f64::from(i) * 300.0).collect();
    let found = |threshold: f64| {
        let mut rules = rules(&format!("[ND-10]\nthreshold = {threshold}\n"));
        rules.keep_only(&["ND-10".to_owned()]).expect("a rule");
        replay(&rules, &flows("10.0.0.7", "203.0.113.9", 443, &beacon, |_| 500)).0
    };
    assert_eq!(found(0.9375).len(), 1);
    assert_eq!(found(0.9375)[0].evidence.value, 0.94);
    assert_eq!(found(0.9376).len(), 0);
}

#[test]
fn what_everybody_calls_and_what_is_for_calling_stays_silent() {
    let mut chance = Chance(1);
    let whole_day = (0.0, 1.5 * DAY);
    // A telemetry service that all hosts call every five minutes, and a mail server that is polled.
    let mut records = Vec::new();
    for i in 1..=12 {
        let source = format!("10.0.0.{i}");
        for (server, port, period) in [("198.51.100.7", 443, 300.0), ("198.51.101.25", 993, 600.0)] {
            records.extend(flows(&source, server, port, &calls(&mut chance, whole_day, period, 0.02, 0.0), |_| 900));
        }
        // Time servers, whatever one may think of their prevalence.
        records.extend(flows(&source, &format!("192.0.2.{i}"), 123, &calls(&mut chance, whole_day, 1_024.0, 0.0, 0.0), |_| 76));
        let pages = browsing(&mut chance, (0.0, 9.0 * HOUR), 240.0);
        records.extend(flows(&source, &format!("198.51.100.{}", 20 + i), 443, &pages, |i| 500 + (i as u64 * 7_919) % 4_000));
    }
    // A resolver asks hundreds of servers; one of them has the misfortune to be asked every ten minutes.
    for server in 0..40 {
        let questions = calls(&mut chance, whole_day, if server == 0 { 600.0 } else { 5_000.0 }, 0.2, 0.0);
        records.extend(flows("10.0.0.53", &format!("198.51.{server}.53"), 53, &questions, |_| 72));
    }
    // The monitoring server asks a service outside, all alone.
    let probes = calls(&mut chance, whole_day, 60.0, 0.0, 0.0);
    records.extend(flows("10.0.0.99", "203.0.113.80", 443, &probes, |_| 700));
    let tell = |roles: Roles| -> Vec<String> {
        let mut detection = Detection::new(&only(ONLY), Mode::Replay).with_roles(roles);
        records.iter().for_each(|record| detection.observe("tap", record));
        let mut findings = Vec::new();
        detection.finish(&mut findings);
        findings.iter().map(|finding| finding.subject.to_string()).collect()
    };
    let prefix: Prefix = "10.0.0.99/32".parse().expect("a prefix");
    assert_eq!(tell(Roles::default().with(prefix, Role::Monitor, at(30.0 * DAY))), Vec::<String>::new());
    let without_the_role = tell(Roles::default());
    assert!(!without_the_role.is_empty());
    assert!(without_the_role.iter().all(|subject| subject == "10.0.0.99 > 203.0.113.80 TCP/443"), "{without_the_role:?}");
}

#[test]
fn killed_and_restored_midway_it_tells_the_same() {
    let mut chance = Chance(3);
    let mut records = Vec::new();
    for (i, (period, jitter)) in [(60.0, 0.1), (300.0, 0.3), (1_800.0, 0.2)].into_iter().enumerate() {
        let source = format!("10.0.0.{}", 7 + i);
        records.extend(flows(&source, "203.0.113.9", 443, &calls(&mut chance, (0.0, 40.0 * HOUR), period, jitter, 0.1), |_| 600));
    }
    records.sort_by_key(|record| record.start[0]);
    let whole = stream(&only(ONLY), &records, None);
    assert!(whole.len() >= 3, "{}", whole.len());
    assert_eq!(stream(&only(ONLY), &records, Some(records.len() / 3)), whole);
}

/// One series of calls as the score wants it: the last day before `edge`.
fn likeness(calls: &[f64], sizes: &[f64], standing: Standing) -> f64 {
    let from = calls.len().saturating_sub(512);
    let starts: Vec<u32> = calls[from..].iter().map(|secs| (secs * 10.0) as u32).collect();
    let octets: Vec<u32> = sizes[from..].iter().map(|&size| size as u32).collect();
    let mut hours = [0; 24];
    calls.iter().for_each(|secs| hours[((secs / HOUR) as usize).min(23)] += 1);
    score(Contacts { starts: &starts, sizes: &octets, hours: &hours }, standing, Weights::default()).total
}

/// How likely a beacon scores above a benign one, by rank; ties count half.
fn area_under_curve(beacons: &[f64], benign: &[f64]) -> f64 {
    let wins: f64 = beacons
        .iter()
        .flat_map(|beacon| {
            benign.iter().map(move |other| {
                if beacon > other {
                    1.0
                } else if beacon == other {
                    0.5
                } else {
                    0.0
                }
            })
        })
        .sum();
    wins / (beacons.len() * benign.len()) as f64
}

const PERIODS: [f64; 6] = [30.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0];
const JITTERS: [f64; 4] = [0.0, 0.1, 0.2, 0.3];

/// A day of a network of 200 hosts. Of what is called by many, prevalence takes the score; of what few have nothing does, and these are
/// here as well.
#[test]
fn beacons_score_above_regular_and_irregular_benign_traffic() {
    let mut chance = Chance(42);
    let day = (0.0, DAY);
    let standing = |prevalence: f64| Standing { prevalence: Some(prevalence), age: Age::Unknown };
    let mut beacons = Vec::new();
    for period in PERIODS {
        for jitter in JITTERS {
            for missed in [0.0, 0.1] {
                for _ in 0..5 {
                    let calls = calls(&mut chance, day, period, jitter, missed);
                    // Mostly nothing to report, now and then a result.
                    let sizes: Vec<f64> = calls
                        .iter()
                        .map(|_| if chance.unit() < 0.05 { chance.between(2e3, 5e4) } else { chance.between(400.0, 500.0) })
                        .collect();
                    beacons.push((period, jitter, likeness(&calls, &sizes, standing(0.005))));
                }
            }
        }
    }
    let mut benign: Vec<(&str, f64)> = Vec::new();
    // (name, period, jitter, sizes from and to, prevalence, how many pairs): machines that call by the clock.
    let clocks: [(&str, f64, f64, [f64; 2], f64, usize); 9] = [
        ("time", 1_024.0, 0.0, [76.0, 76.0], 0.95, 40),
        ("update check", 3_600.0, 0.1, [800.0, 1_200.0], 0.9, 40),
        ("telemetry", 300.0, 0.05, [700.0, 2_500.0], 0.8, 40),
        ("endpoint agent", 60.0, 0.02, [300.0, 320.0], 0.98, 40),
        ("mail polling", 600.0, 0.02, [400.0, 3_000.0], 0.6, 40),
        ("cloud sync", 120.0, 0.1, [500.0, 40_000.0], 0.35, 30),
        ("chat client", 30.0, 0.05, [200.0, 1_500.0], 0.4, 30),
        ("certificate check", 1_800.0, 0.3, [300.0, 400.0], 0.7, 30),
        ("agent that few have", 900.0, 0.02, [500.0, 520.0], 0.04, 6),
    ];
    for (name, period, jitter, [low, high], prevalence, pairs) in clocks {
        for _ in 0..pairs {
            let calls = calls(&mut chance, day, period, jitter, 0.0);
            let sizes: Vec<f64> = calls.iter().map(|_| chance.between(low, high)).collect();
            benign.push((name, likeness(&calls, &sizes, standing(prevalence))));
        }
    }
    // People: pages in bursts, at work, to servers that few others use too.
    for pause in [60.0, 240.0, 900.0] {
        for _ in 0..60 {
            let calls = browsing(&mut chance, (8.0 * HOUR, 18.0 * HOUR), pause);
            let sizes: Vec<f64> = calls.iter().map(|_| 300.0 + chance.exponential(2_000.0)).collect();
            benign.push(("browsing", likeness(&calls, &sizes, standing(chance.between(0.005, 0.2)))));
        }
    }
    // Names and small requests, by chance, all day.
    for _ in 0..60 {
        let (mut calls, mut now) = (Vec::new(), 0.0);
        while now < DAY {
            calls.push(now);
            now += chance.exponential(200.0);
        }
        let sizes: Vec<f64> = calls.iter().map(|_| chance.between(60.0, 90.0)).collect();
        benign.push(("by chance", likeness(&calls, &sizes, standing(chance.between(0.01, 0.9)))));
    }
    let totals = |jitter: f64| beacons.iter().filter(|beacon| beacon.1 == jitter).map(|beacon| beacon.2).collect::<Vec<_>>();
    let others: Vec<f64> = benign.iter().map(|&(_, total)| total).collect();
    for jitter in JITTERS {
        let area = area_under_curve(&totals(jitter), &others);
        println!("jitter {jitter}: area under the curve {area:.4}");
        assert!(area >= 0.95, "jitter {jitter}: {area}");
    }
    let all: Vec<f64> = beacons.iter().map(|beacon| beacon.2).collect();
    let found = all.iter().filter(|&&total| total >= 0.8).count();
    let false_ones: Vec<&str> = benign.iter().filter(|(_, total)| *total >= 0.8).map(|(name, _)| *name).collect();
    println!(
        "all: {:.4}; at 0.8: {found} of {} beacons, {false_ones:?} of {}",
        area_under_curve(&all, &others),
        all.len(),
        benign.len()
    );
    for period in PERIODS {
        let worst = beacons.iter().filter(|beacon| beacon.0 == period).map(|beacon| beacon.2).fold(1.0, f64::min);
        println!("period {period}: worst {worst:.2}");
    }
    assert!(area_under_curve(&all, &others) >= 0.95);
    assert!(found as f64 >= 0.95 * all.len() as f64, "{found} of {}", all.len());
    assert!(false_ones.iter().all(|name| *name == "agent that few have"), "{false_ones:?}");
}

/// The yardstick: the public rule on the same beacons, each alone on its host.
#[test]
fn the_public_rule_finds_no_jittered_beacon_and_this_one_finds_all() {
    let (mut public, mut ours) = (Vec::new(), Vec::new());
    let exact = rules("[AZ-11]\nvariants = ['exact']\n");
    for period in PERIODS {
        for jitter in JITTERS {
            let mut chance = Chance((period + 100.0 * jitter) as u64);
            let beacon = calls(&mut chance, (0.0, DAY), period, jitter, 0.0);
            let records = flows("10.0.0.7", "203.0.113.9", 443, &beacon, |_| 450);
            let told = |rules: &RuleFile, id: &str| replay(rules, &records).0.iter().any(|finding| finding.rule.id == id);
            let mut az = exact.clone();
            az.keep_only(&["AZ-11".to_owned()]).expect("a rule");
            az.beacon.variants = vec![Variant::Exact];
            if told(&az, "AZ-11") {
                public.push((period, jitter));
            }
            if told(&only(ONLY), "ND-10") {
                ours.push((period, jitter));
            }
        }
    }
    println!("AZ-11 exact: {public:?}");
    // More than 15 calls per hour, more than 10 s apart, equal to the second: 30 and 60 s without jitter.
    assert_eq!(public, [(30.0, 0.0), (60.0, 0.0)]);
    assert_eq!(ours.len(), PERIODS.len() * JITTERS.len(), "{ours:?}");
}
