//! What servers do by themselves, and what is done to them on purpose.

use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{
    APPLICATION, BACKUP, DATABASE, DOMAIN_CONTROLLER, Habit, LOGS, MAIL, MONITOR, Place, ROLLOUT, Rhythm, UPDATES, VPN,
    VULNERABILITY_SCANNER, desk, dmz, inside, internet, server,
};
use crate::traffic::{Course, DAY, Dice, Flow, HOUR, MINUTE, Presence, Traffic};

/// Hosts that the monitoring server asks for, though they were taken away long ago.
const GONE: u8 = 12;

pub(super) fn enter(place: &Place, traffic: &mut Traffic) {
    monitoring(place, traffic);
    backup(place, traffic);
    by_the_clock(place, traffic);
    databases(place, traffic);
    mail(place, traffic);
    load_tests(place, traffic);
    updates(place, traffic);
    rollouts(place, traffic);
    vpn_restarts(place, traffic);
    vulnerability_scans(place, traffic);
}

/// A monitoring server: ping and agent of every server, and every minute those that are gone.
fn monitoring(place: &Place, traffic: &mut Traffic) {
    let servers = place.servers();
    let habit = |name, rhythm| Habit { name, presence: Presence::Always, rhythm };
    habit("monitor asks", Rhythm::Every(MINUTE * 5, 0.0)).join(place, traffic, move |now, _, scene| {
        for number in 0..servers {
            let at = now.plus(Duration::from_millis(number * 150));
            scene.flow(Flow::ping(at, MONITOR, server(number)));
            scene.flow(Flow::tcp(at, MONITOR, server(number), 5666).carrying(300, 700));
            scene.flow(Flow::udp(at, MONITOR, server(number), 161).carrying(500, 1_900));
        }
    });
    habit("monitor asks the gone", Rhythm::Every(MINUTE, 0.0)).join(place, traffic, |now, _, scene| {
        for host in 0..GONE {
            let at = now.plus(Duration::from_millis(u64::from(host) * 100));
            scene.flow(Flow::tcp(at, MONITOR, inside(10, 200 + host), 5666).going(Course::Silent));
        }
    });
}

/// Every night the servers, on Saturdays all of them in full, and a copy to somewhere else.
fn backup(place: &Place, traffic: &mut Traffic) {
    let servers = place.servers();
    let habit = Habit { name: "backup", presence: Presence::Always, rhythm: Rhythm::Daily(HOUR, MINUTE) };
    habit.join(place, traffic, move |now, dice, scene| {
        let saturday = (now.as_nanos() / DAY.as_nanos() as i64 + 3) % 7 == 5;
        let scale = if saturday { 6.0 } else { 1.0 };
        for number in 0..servers {
            let octets = dice.size(3e9 * scale, 1.2);
            let at = now.plus(MINUTE * (number as u32 / 4 * 12));
            let lasts = Duration::from_secs(octets / 60_000_000);
            scene.flow(Flow::tcp(at, BACKUP, server(number), 10_000).carrying(octets / 100, octets).lasting(lasts));
        }
        let octets = dice.size(8e9 * scale, 1.1);
        let lasts = Duration::from_secs(octets / 12_000_000);
        scene.flow(Flow::tcp(now.plus(HOUR * 2), BACKUP, internet(9), 443).carrying(octets, octets / 80).lasting(lasts));
    });
}

/// Jobs at the full hour and logs that never stop.
fn by_the_clock(place: &Place, traffic: &mut Traffic) {
    for number in 0..place.servers() {
        let me = server(number);
        let habit = |name: &str, rhythm| (format!("server {number} {name}"), rhythm);
        let (name, rhythm) = habit("every hour", Rhythm::Every(HOUR, 0.0));
        Habit { name: &name, presence: Presence::Always, rhythm }.join(place, traffic, move |now, _, scene| {
            scene.flow(Flow::tcp(now.plus(Duration::from_millis(number * 37)), me, APPLICATION, 443).carrying(900, 12_000));
        });
        let (name, rhythm) = habit("looks for packages", Rhythm::Daily(HOUR * 6, HOUR));
        Habit { name: &name, presence: Presence::Always, rhythm }.join(place, traffic, move |now, dice, scene| {
            scene.flow(Flow::tcp(now, me, internet(40 + dice.below(2) as u32), 443).carrying(3_000, 9_000_000));
        });
        let (name, rhythm) = habit("asks the time", Rhythm::Every(Duration::from_secs(1_024), 0.01));
        Habit { name: &name, presence: Presence::Always, rhythm }.join(place, traffic, move |now, _, scene| {
            scene.flow(Flow::udp(now, me, DOMAIN_CONTROLLER, 123).with_source_port(123));
        });
        if number % 3 == 0 {
            let whole = DAY * place.days;
            let octets = 40_000_000 * u64::from(place.days);
            let logs = Flow::tcp(place.start().plus(Duration::from_secs(number)), me, LOGS, 514);
            traffic.play(vec![logs.carrying(octets, octets / 50).lasting(whole)]);
        }
    }
}

/// A pool that opens a new connection now and then, and a cache that asks all day.
fn databases(place: &Place, traffic: &mut Traffic) {
    let habit = |name| Habit { name, presence: Presence::Always, rhythm: Rhythm::Every(Duration::from_secs(12), 0.3) };
    habit("pool").join(place, traffic, |now, dice, scene| {
        let rows = dice.size(9_000.0, 2.0);
        scene.flow(Flow::tcp(now, APPLICATION, DATABASE, 5432).carrying(1_800, rows).lasting(Duration::from_millis(900)));
    });
    habit("cache").join(place, traffic, |now, dice, scene| {
        scene.flow(Flow::tcp(now, dmz(10), DATABASE, 3306).carrying(700, dice.size(2_000.0, 1.3)));
    });
}

/// Mail goes out to the mail servers of the world, some of which do not answer.
fn mail(place: &Place, traffic: &mut Traffic) {
    let habit = Habit { name: "mail goes out", presence: Presence::Always, rhythm: Rhythm::Once(MINUTE * 4) };
    habit.join(place, traffic, |now, dice, scene| {
        let letter =
            Flow::tcp(now, MAIL, internet(30_000 + dice.favourite(400) as u32), 25).carrying(dice.size(20_000.0, 4.0), 900);
        scene.flow(if dice.chance(0.06) { letter.going(Course::Silent) } else { letter });
    });
}

/// Thousands of connections from one client to one port of one server; a few are refused towards the end.
fn load_tests(place: &Place, traffic: &mut Traffic) {
    for (day, hour) in [(2, 14), (9, 15)] {
        let start = place.at(day, hour, 10);
        let mut flows = Vec::new();
        for number in 0..20_000_u64 {
            let at = start.plus(Duration::from_millis(number * 10));
            let request = Flow::tcp(at, desk(5), APPLICATION, 8080)
                .with_source_port(10_000 + (number % 50_000) as u16)
                .carrying(400, 3_000);
            flows.push(if number > 18_000 && number % 5 == 0 { request.going(Course::Refused) } else { request });
        }
        traffic.play(flows);
    }
}

/// Patch Tuesday: everybody fetches the same within half an hour.
fn updates(place: &Place, traffic: &mut Traffic) {
    let mut dice = Dice::new(place.seed, "patch Tuesday");
    let mut flows = Vec::new();
    for number in 0..place.desks() {
        let mut at = place.at(8, 10, 0).plus(dice.around(MINUTE * 15, 1.0));
        let package = Flow::tcp(at, desk(number), UPDATES, 8530).carrying(400_000, 300_000_000).lasting(MINUTE * 4);
        flows.push(package);
        for _ in 0..15 {
            at = at.plus(dice.wait(Duration::from_secs(6)));
            let mirror = internet(600 + dice.below(40) as u32);
            let part = Flow::tcp(at, desk(number), mirror, 443).with_source_port(dice.client_port());
            flows.push(part.carrying(4_000, 2_000_000).lasting(Duration::from_secs(8)));
        }
    }
    flows.sort_by_key(|flow| flow.at);
    traffic.play(flows);
}

/// A new program for every desk: the rollout server goes to each of them; some are off.
fn rollouts(place: &Place, traffic: &mut Traffic) {
    let mut dice = Dice::new(place.seed, "rollout");
    for day in [3, 11] {
        let mut flows = Vec::new();
        for number in 0..place.desks() {
            let at = place.at(day, 11, 0).plus(Duration::from_secs(number * 4));
            let off = dice.chance(0.12);
            for (port, octets) in [(445, 30_000_000), (5985, 20_000)] {
                let push = Flow::tcp(at, ROLLOUT, desk(number), port).carrying(octets, 40_000).lasting(Duration::from_secs(9));
                flows.push(if off { push.going(Course::Silent) } else { push });
            }
        }
        traffic.play(flows);
    }
}

/// The VPN gateway restarts: forty people at home try again and again, and come back all at once.
fn vpn_restarts(place: &Place, traffic: &mut Traffic) {
    let mut dice = Dice::new(place.seed, "VPN restart");
    let (down, up) = (place.at(4, 15, 0), place.at(4, 15, 2));
    let mut flows = Vec::new();
    for person in 0..40 {
        let home = internet(45_000 + person);
        let mut at = down.plus(dice.around(Duration::from_secs(3), 1.0));
        while at < up {
            flows.push(Flow::tcp(at, home, VPN, 443).going(Course::Silent));
            at = at.plus(dice.around(Duration::from_secs(8), 0.3));
        }
        flows.push(Flow::tcp(at, home, VPN, 443).carrying(9_000_000, 60_000_000).lasting(HOUR * 2));
    }
    flows.sort_by_key(|flow| flow.at);
    traffic.play(flows);
}

/// Sundays at three, by a host that is vouched for as a scanner.
fn vulnerability_scans(place: &Place, traffic: &mut Traffic) {
    let ports = [21, 22, 23, 25, 80, 110, 135, 139, 143, 443, 445, 993, 1433, 3306, 3389, 5432, 5900, 8080, 8443, 9100];
    for day in [6, 13] {
        let targets: Vec<Address> = (0..place.servers()).map(server).chain((0..place.desks()).map(desk)).collect();
        let knock = |(number, (host, port)): (u64, (Address, u16))| {
            let at: Timestamp = place.at(day, 3, 0).plus(Duration::from_millis(number * 50));
            // Desks are off on Sundays.
            let course = if number % 200 < 40 { Course::Refused } else { Course::Silent };
            Flow::tcp(at, VULNERABILITY_SCANNER, host, port).going(course).once()
        };
        let pairs = targets.into_iter().flat_map(|host| ports.map(|port| (host, port)));
        traffic.play((0..).zip(pairs).map(knock).collect());
    }
}
