//! What is given, and what is learned.

use std::sync::Arc;

use spanwatch_common::flow::{FlowRecord, protocol};

use super::*;
use crate::Sites;
use crate::tests::{at, host, knock, talk};

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;
const DAY: f64 = 86_400.0;
/// The tests' clock begins at 10:00; days of roles begin at midnight.
const MIDNIGHT: f64 = -36_000.0;

fn given(text: &str) -> Result<Roles, String> {
    #[derive(Deserialize)]
    struct File {
        roles: Vec<RoleSettings>,
    }
    Roles::new(&toml::from_str::<File>(text).expect("well formed").roles)
}

#[test]
fn a_given_role_holds_to_the_end_of_its_last_day() {
    let roles = given(
        "[[roles]]\nrole = 'scanner'\ncidrs = ['10.1.0.7', '10.1.7.0/28']\nowner = 'security'\nuntil = '2026-11-21'\n\
         [[roles]]\nrole = 'monitor'\ncidrs = ['10.1.0.0/16']\nowner = 'network'\nuntil = '2028-02-29'\n",
    )
    .expect("good");
    // The tests' clock begins on 2026-11-21 at 10:00.
    let last = at(14.0 * 3_600.0 - 1.0);
    let both = RoleSet::of(&[Role::Scanner, Role::Monitor]);
    assert_eq!(roles.of(host("10.1.0.7"), last), both);
    assert_eq!(roles.of(host("10.1.7.15"), last), both);
    assert_eq!(roles.of(host("10.1.7.16"), last), RoleSet::of(&[Role::Monitor]));
    assert_eq!(roles.of(host("10.1.0.7"), at(14.0 * 3_600.0)), RoleSet::of(&[Role::Monitor]));
    assert_eq!(roles.of(host("10.2.0.7"), last), RoleSet::NONE);
    // 2028-03-01T00:00:00Z is 1835481600.
    assert_eq!(roles.of(host("10.1.0.8"), Timestamp::from_secs(1_835_481_599)), RoleSet::of(&[Role::Monitor]));
    assert_eq!(roles.of(host("10.1.0.8"), Timestamp::from_secs(1_835_481_600)), RoleSet::NONE);
}

#[test]
fn a_role_that_nobody_answers_for_is_a_mistake_and_one_that_ended_is_a_reminder() {
    let with = |cidrs: &str, owner: &str, until: &str| {
        format!("[[roles]]\nrole = 'admin'\ncidrs = [{cidrs}]\nowner = '{owner}'\nuntil = '{until}'\n")
    };
    for (text, sentence) in [
        (with("", "it", "2027-06-30"), "role admin needs at least one address or prefix, such as cidrs = [\"10.1.0.7\"]"),
        (with("'10.1.0.7'", " ", "2027-06-30"), "role admin needs an owner who answers for it, such as owner = \"it-security\""),
        (with("'10.1.0.7'", "it", "2027-02-29"), "role admin: until = \"2027-02-29\" is no day; write it such as \"2027-06-30\""),
        (with("'10.1.0.7'", "it", "30.6.2027"), "role admin: until = \"30.6.2027\" is no day; write it such as \"2027-06-30\""),
    ] {
        assert_eq!(given(&text).map(|_| ()), Err(sentence.to_owned()));
    }
    let settings = RoleSettings {
        role: Role::Admin,
        cidrs: vec!["10.1.0.7".parse().expect("an address")],
        owner: "it".to_owned(),
        until: "2026-11-30".to_owned(),
    };
    assert_eq!(settings.reminder(at(-10.0 * DAY)), None);
    assert!(settings.reminder(at(0.0)).is_some_and(|text| text.contains("ends on 2026-11-30: ask it")));
    assert!(settings.reminder(at(10.0 * DAY)).is_some_and(|text| text.contains("ended on 2026-11-30")));
}

/// What is learned when each day is like `day`, from day 0 to day `days`, and then it is the next day.
fn learned(days: usize, day: impl Fn(usize) -> Vec<FlowRecord>) -> Roles {
    let mut roles = Roles::default();
    for number in 0..days {
        show(&mut roles, &day(number));
    }
    show(&mut roles, &[talk("10.0.0.1", "10.0.0.2", TCP, 443, MIDNIGHT + days as f64 * DAY + 60.0, 900)]);
    roles
}

fn show(roles: &mut Roles, records: &[FlowRecord]) {
    let (tap, sites) = (Arc::from("tap"), Sites::default());
    for record in records {
        let row = Row::of(&tap, record, &sites, roles).expect("a row");
        roles.learn(&row);
    }
}

fn names(roles: &Roles) -> Vec<String> {
    roles.learned().iter().map(|learned| format!("{} {}", learned.address, learned.role.name())).collect()
}

/// Every hour of day `day`, from its midnight.
fn hourly(day: usize) -> impl Iterator<Item = f64> {
    (0..24).map(move |hour| MIDNIGHT + day as f64 * DAY + f64::from(hour) * 3_600.0 + 60.0)
}

fn polls(day: usize, hosts: std::ops::Range<usize>) -> Vec<FlowRecord> {
    let hosts: Vec<usize> = hosts.collect();
    hourly(day)
        .flat_map(|secs| hosts.iter().map(move |n| talk("10.1.0.1", &format!("10.1.1.{n}"), TCP, 502, secs + *n as f64, 200)))
        .collect()
}

#[test]
fn a_poller_of_the_same_hosts_is_a_monitor_after_five_such_days() {
    let poller = |days| names(&learned(days, |day| polls(day, 0..25)));
    // The first day has none before it to be the same as.
    assert_eq!(poller(5), Vec::<String>::new());
    assert_eq!(poller(6), ["10.1.0.1 monitor"]);
    let roles = learned(6, |day| polls(day, 0..25));
    let since = MIDNIGHT + 6.0 * DAY + 600.0;
    assert!(roles.of(host("10.1.0.1"), at(since)).has(Role::Monitor));
    assert!(!roles.of(host("10.1.0.1"), at(since - 1.0)).has(Role::Monitor), "nothing is innocent afterwards");
    // Fifteen hosts are too few, and others every day are no habit.
    assert_eq!(names(&learned(9, |day| polls(day, 0..15))), Vec::<String>::new());
    assert_eq!(names(&learned(9, |day| polls(day, day * 25..day * 25 + 25))), Vec::<String>::new());
}

#[test]
fn a_scan_teaches_nobody_however_long_it_lasts() {
    let scan = |day: usize| {
        let targets =
            move |secs: f64| (0..100).map(move |n| knock("10.1.0.66", &format!("10.1.1.{n}"), TCP, 445, secs + f64::from(n)));
        let mut records: Vec<FlowRecord> = hourly(day).flat_map(targets).collect();
        records.push(talk("10.1.0.66", "10.1.0.2", TCP, 443, MIDNIGHT + day as f64 * DAY + 5.0, 900));
        records
    };
    assert_eq!(names(&learned(14, scan)), Vec::<String>::new());
}

#[test]
fn servers_are_known_by_whom_they_answer_and_ask() {
    let day = |day: usize| {
        let noon = MIDNIGHT + day as f64 * DAY + 43_200.0;
        let mut records = Vec::new();
        for n in 0..40 {
            let (client, outside) = (format!("10.2.0.{n}"), format!("198.51.100.{n}"));
            let far = format!("203.0.113.{n}");
            records.push(talk(&client, "10.2.9.53", UDP, 53, noon, 200));
            records.push(talk("10.2.9.53", &outside, UDP, 53, noon, 200));
            records.push(talk(&client, "10.2.9.80", TCP, 3128, noon, 900));
            records.push(talk("10.2.9.80", &outside, TCP, 443, noon, 900));
            records.push(talk("10.2.9.80", &far, TCP, 443, noon, 900));
            for port in [88, 389, 445] {
                records.push(talk(&client, "10.2.9.10", TCP, port, noon, 900));
            }
        }
        // A web server answers as many, and asks nobody.
        records.extend((0..40).map(|n| talk(&format!("10.2.0.{n}"), "10.2.9.99", TCP, 443, noon, 900)));
        // A gigabyte from each of three to a store, always at noon; as much to the outside, which is no backup, and neither are the three.
        for n in 1..=3 {
            records.push(talk(&format!("10.2.0.{n}"), "10.2.9.70", TCP, 445, noon, 1_200_000_000));
        }
        records.push(talk("10.2.0.3", "198.51.100.1", TCP, 443, noon, 2_000_000_000));
        // Many strangers on as many ports, every other of whom is gone.
        for n in 0..160_u16 {
            let stranger = format!("198.18.{}.{}", n / 100, n % 100);
            let port = 20_000 + n * 61;
            records.push(talk("10.2.0.9", &stranger, UDP, port, noon, 900));
            records.push(knock("10.2.0.9", &format!("198.19.{}.{}", n / 100, n % 100), UDP, port, noon));
        }
        records
    };
    let expected =
        ["10.2.0.9 peer_to_peer", "10.2.9.10 domain_controller", "10.2.9.53 dns", "10.2.9.70 backup", "10.2.9.80 proxy"];
    let mut found = names(&learned(6, day));
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn what_is_learned_does_not_depend_on_how_late_a_row_comes() {
    let mut days: Vec<FlowRecord> = (0..7).flat_map(|day| polls(day, 0..25)).collect();
    let mut roles = Roles::default();
    show(&mut roles, &days);
    // Each row up to ten minutes later than another, by a rule that mixes them.
    let late = |record: &FlowRecord| {
        record.first().plus(std::time::Duration::from_secs(u64::from(record.destination.0 as u8) * 7_919 % 600))
    };
    days.sort_by_key(late);
    let mut shuffled = Roles::default();
    show(&mut shuffled, &days);
    assert_eq!(shuffled.learned(), roles.learned());
    assert_eq!(roles.learned().len(), 1);
}

#[test]
fn a_role_is_lost_after_a_week_without_it_and_survives_a_restart() {
    let mut roles = learned(6, |day| polls(day, 0..25));
    let bytes = roles.snapshot();
    let mut restored = Roles::default();
    restored.restore(&bytes).expect("our own");
    assert_eq!(restored.learned(), roles.learned());
    let later = |roles: &mut Roles, day: usize| {
        show(roles, &[talk("10.1.0.1", "10.0.0.2", TCP, 443, MIDNIGHT + day as f64 * DAY + 90.0, 900)]);
        names(roles)
    };
    // The last such day was day 5; day 12 is the seventh without.
    for roles in [&mut roles, &mut restored] {
        assert_eq!(later(roles, 12), ["10.1.0.1 monitor"]);
        assert_eq!(later(roles, 13), Vec::<String>::new());
    }
}
