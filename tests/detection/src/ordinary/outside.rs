//! What comes from the Internet to the DMZ: visitors, mail, echoes of attacks on others, and those who look for an open door. These
//! last are scanners, and truth.

use std::time::Duration;

use spanwatch_common::flow::tcp;

use super::{Habit, MAIL, Place, Rhythm, dmz, internet};
use crate::attacks::{ANY_SCAN, Knock, probes};
use crate::traffic::{Course, Dice, Flow, MINUTE, Presence, Traffic};
use crate::truth::Attack;

pub(super) fn enter(place: &Place, traffic: &mut Traffic) -> Vec<Attack> {
    visitors(place, traffic);
    background(place, traffic);
    backscatter(place, traffic);
    sweeps(place, traffic)
}

fn visitors(place: &Place, traffic: &mut Traffic) {
    let always = |name, mean| Habit { name, presence: Presence::Always, rhythm: Rhythm::Once(Duration::from_secs(mean)) };
    always("visitors", 25).join(place, traffic, |now, dice, scene| {
        let visitor = internet(80_000 + dice.below(20_000) as u32);
        for _ in 0..1 + dice.below(4) {
            let page = Flow::tcp(now, visitor, dmz(10), 443).with_source_port(dice.client_port());
            scene.flow(page.carrying(1_500, dice.size(40_000.0, 3.0)).lasting(Duration::from_secs(2)));
        }
    });
    always("mail comes in", 200).join(place, traffic, |now, dice, scene| {
        let sender = internet(30_000 + dice.below(400) as u32);
        scene.flow(Flow::tcp(now, sender, dmz(25), 25).carrying(dice.size(20_000.0, 4.0), 900));
    });
    always("relay", 200).join(place, traffic, |now, dice, scene| {
        scene.flow(Flow::tcp(now, dmz(25), MAIL, 25).carrying(dice.size(20_000.0, 4.0), 900));
    });
}

/// A knock every half minute, each from somebody else.
fn background(place: &Place, traffic: &mut Traffic) {
    let habit = Habit { name: "background", presence: Presence::Always, rhythm: Rhythm::Once(Duration::from_secs(30)) };
    let ports = [22, 23, 80, 443, 445, 1433, 2323, 3389, 5060, 6379, 8080, 8443];
    habit.join(place, traffic, move |now, dice, scene| {
        let knocker = internet(100_000 + dice.below(30_000) as u32);
        let port = ports[dice.below(ports.len() as u64) as usize];
        scene.flow(
            Flow::tcp(now, knocker, dmz(dice.below(256) as u8), port)
                .with_source_port(dice.client_port())
                .going(Course::Silent)
                .once(),
        );
    });
}

/// Somebody is attacked with forged addresses, and answers to them; some are ours.
fn backscatter(place: &Place, traffic: &mut Traffic) {
    let habit =
        Habit { name: "backscatter", presence: Presence::Always, rhythm: Rhythm::Every(Duration::from_secs(40_000), 0.2) };
    habit.join(place, traffic, |now, dice, scene| {
        let victim = internet(70_000 + dice.below(100) as u32);
        let bits = if dice.chance(0.5) { tcp::SYN | tcp::ACK } else { tcp::RST | tcp::ACK };
        let mut at = now;
        while at < now.plus(MINUTE * 8) {
            let answer = Flow::tcp(at, dmz(dice.below(256) as u8), victim, 80).with_source_port(dice.client_port());
            scene.flow(answer.going(Course::Backscatter(bits)));
            at = at.plus(dice.wait(Duration::from_millis(300)));
        }
    });
}

/// Twice a day somebody looks at all of the DMZ.
fn sweeps(place: &Place, traffic: &mut Traffic) -> Vec<Attack> {
    let mut truth = Vec::new();
    for number in 0..place.days * 2 {
        let mut dice = Dice::new(place.seed, &format!("sweep {number}"));
        let start = place.at(number / 2, number % 2 * 12, 0).plus(dice.around(Duration::from_secs(21_000), 1.0));
        let port = [22, 23, 445, 3389, 8080][dice.below(5) as usize];
        let scanner = internet(131_000 - number);
        let mut hosts: Vec<u8> = (0..=255).collect();
        dice.shuffle(&mut hosts);
        let knocks = hosts.into_iter().map(|host| Knock { host: dmz(host), port, course: Course::Silent });
        let gap = dice.around(Duration::from_millis(400), 0.8);
        let name = format!("sweep from the Internet {number}");
        let (flows, due) = probes(&mut dice, scanner, start, gap, 0.2, knocks);
        truth.push(Attack::new(&name, "internet sweep", &["ND-02"], start, &flows).fair(&ANY_SCAN).by(&[scanner]).due(due, None));
        traffic.play(flows);
    }
    truth
}
