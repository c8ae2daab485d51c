//! A small world in every test run: what needs no past is found, and alerts depend on what happened alone. The goals of the whole suite
//! are those of `detection run --check`.

use std::time::Duration;

use spanwatch_alert::Alert;
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::RuleFile;

use crate::attacks::Plan;
use crate::ordinary::Place;
use crate::run::{self, Session};
use crate::score::Score;
use crate::traffic::Dice;
use crate::{report, world};

const SMALL: Place = Place { hosts: 60, days: 3, seed: 7 };
const SMALLEST: Place = Place { hosts: 60, days: 1, seed: 7 };
const PLAN: Plan = Plan { first_day: 1, patient: false };
const AT_ONCE: Plan = Plan { first_day: 0, patient: false };

fn rules() -> RuleFile {
    run::shipped("").expect("the shipped rules")
}

/// What of an alert must not depend on how it came about. The clock it was told by does, where records come in another order.
fn essence(alerts: &[Alert]) -> Vec<String> {
    let mut lines: Vec<String> = alerts.iter().map(|alert| serde_json::to_string(alert).expect("an alert is JSON")).collect();
    lines.sort();
    lines
}

fn assert_same(one: &[Alert], other: &[Alert]) {
    let (one, other) = (essence(one), essence(other));
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|line| !those.contains(line)).take(3).cloned().collect::<Vec<_>>()
    };
    assert!(one == other, "only the one says:\n{:#?}\nonly the other:\n{:#?}", only(&one, &other), only(&other, &one));
    assert!(one.len() > 20, "there is something to compare");
}

#[test]
fn scans_and_floods_are_found_in_a_small_world_and_nobody_else_is_blamed() {
    let (traffic, truth) = world(&SMALL, Some(PLAN));
    let outcome = run::stream(&rules(), &truth, traffic).expect("a run");
    let score = Score::of(&truth, &outcome.alerts, (SMALL.hosts * u64::from(SMALL.days)) as f64);
    let table = report::text(&score);
    for (group, goal) in [("fast scan", 0.95), ("internet sweep", 1.0), ("callback storm", 1.0), ("flood", 0.6)] {
        assert!(score.recall(group).is_some_and(|recall| recall >= goal), "{group}\n{table}");
    }
    // Scans and floods need no past to compare with.
    assert!(score.precision("ND-0").is_some_and(|precision| precision >= 0.98), "{table}");
}

#[test]
fn who_was_killed_midway_and_goes_on_tells_the_same_as_who_was_not() {
    let (traffic, truth) = world(&SMALL, Some(PLAN));
    let whole = run::stream(&rules(), &truth, traffic).expect("a run");
    let (mut traffic, truth) = world(&SMALL, Some(PLAN));
    let mut first = Session::new(&rules(), &truth).expect("the shipped rules");
    // In the middle of a port scan.
    let killed = SMALL.at(1, 9, 1);
    for (made, record) in traffic.by_ref().take_while(|(made, _)| *made < killed) {
        first.take(made, &record);
    }
    let saved = first.save().expect("a snapshot");
    drop(first);
    let (traffic, _) = world(&SMALL, Some(PLAN));
    let mut second = Session::resume(&rules(), &truth, &saved).expect("its own snapshot");
    for (made, record) in traffic.skip_while(|(made, _)| *made < killed) {
        second.take(made, &record);
    }
    assert_same(&whole.alerts, &second.end().alerts);
}

#[test]
fn a_replay_tells_the_same_twice_and_in_another_order() {
    let (traffic, _) = world(&SMALLEST, Some(AT_ONCE));
    let records: Vec<(Timestamp, FlowRecord)> = traffic.collect();
    let straight = run::replay(&rules(), records.iter().map(|(_, record)| record.clone())).expect("a replay");
    let again = run::replay(&rules(), records.iter().map(|(_, record)| record.clone())).expect("a replay");
    assert_same(&straight, &again);
    // Each record comes up to thirty seconds late.
    let mut dice = Dice::new(7, "order");
    let mut late: Vec<(Timestamp, FlowRecord)> =
        records.into_iter().map(|(made, record)| (made.plus(dice.around(Duration::from_secs(15), 1.0)), record)).collect();
    late.sort_by_key(|(made, _)| *made);
    let shuffled = run::replay(&rules(), late.into_iter().map(|(_, record)| record)).expect("a replay");
    assert_same(&straight, &shuffled);
}

#[test]
fn the_same_seed_makes_the_same_records_and_another_makes_others() {
    let digest = |seed| {
        let (traffic, truth) = world(&Place { seed, ..SMALLEST }, Some(AT_ONCE));
        let sum = traffic.fold((0_u64, 0_u64), |(count, sum), (made, record)| {
            (count + 1, sum.rotate_left(5) ^ made.as_nanos().cast_unsigned() ^ record.octets[0])
        });
        (sum, serde_json::to_string(&truth).expect("truth is JSON"))
    };
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1).0, digest(2).0);
}

#[test]
fn most_of_what_a_place_does_has_nothing_to_do_with_attacks() {
    let (traffic, truth) = world(&SMALL, Some(PLAN));
    let mut made_before = Timestamp::NONE;
    let mut guilty = 0_u64;
    let mut all = 0_u64;
    for (made, record) in traffic {
        assert!(made >= made_before && record.last() <= made, "records come in the order in which they are made, after the fact");
        made_before = made;
        all += 1;
        let first = record.first();
        let by = |attack: &crate::truth::Attack| {
            attack.start() <= first && first <= attack.end() && attack.by.iter().any(|prefix| prefix.contains(record.source))
        };
        guilty += u64::from(truth.iter().any(by));
    }
    assert!(all > 200_000 && guilty * 4 < all, "{guilty} of {all}");
}
