//! Two weeks of a plant with its office: nothing here is an attack, and much of it looks like one.
//!
//! `people` browsing, mail, files, calls, laptops that come and go · `servers` names, time, backup, monitoring, databases, updates,
//! load tests, rollouts · `plant` PLCs and who polls them · `outside` the DMZ and what the Internet sends to it.

mod outside;
mod people;
mod plant;
mod servers;

use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::roles::Role;
use spanwatch_detect::{Roles, SiteSettings, Sites};

use crate::traffic::{DAY, Dice, Presence, Scene, Traffic};
use crate::truth::Attack;

/// Monday, 2 November 2026.
pub(crate) const MONDAY: i64 = 1_793_577_600;

/// How large the place is, and how long it is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Hosts inside.
    pub(crate) hosts: u64,
    pub(crate) days: u32,
    pub(crate) seed: u64,
}

impl Place {
    pub(crate) const fn start(&self) -> Timestamp {
        Timestamp::from_secs(MONDAY)
    }

    /// A time on a day, counted from 0.
    pub(crate) fn at(&self, day: u32, hour: u32, minute: u32) -> Timestamp {
        self.start().plus(DAY * day + Duration::from_secs(u64::from(hour * 3_600 + minute * 60)))
    }

    /// Desks with a PC.
    pub(crate) const fn desks(&self) -> u64 {
        self.hosts * 6 / 10
    }

    pub(crate) const fn laptops(&self) -> u64 {
        self.hosts / 10
    }

    pub(crate) const fn servers(&self) -> u64 {
        self.hosts / 10
    }

    pub(crate) const fn plcs(&self) -> u64 {
        self.hosts / 10
    }
}

const fn inside(net: u8, host: u8) -> Address {
    Address::from_v4([10, 0, net, host])
}

/// A desk's PC.
pub(crate) const fn desk(number: u64) -> Address {
    inside(1 + (number / 200) as u8, 20 + (number % 200) as u8)
}

/// One of the ordinary servers.
pub(crate) const fn server(number: u64) -> Address {
    inside(10, 100 + number as u8)
}

/// A PLC in the plant.
pub(crate) const fn plc(number: u64) -> Address {
    inside(20, 20 + number as u8)
}

/// In the DMZ, which has public addresses.
pub(crate) const fn dmz(host: u8) -> Address {
    Address::from_v4([203, 0, 113, host])
}

/// Somewhere in the Internet: RFC 2544's range stands for it.
pub(crate) const fn internet(number: u32) -> Address {
    Address::from_v4([198, 18 + (number >> 16) as u8 % 2, (number >> 8) as u8, number as u8])
}

pub(crate) const DOMAIN_CONTROLLER: Address = inside(10, 1);
pub(crate) const RESOLVER: Address = inside(10, 2);
pub(crate) const FILES: Address = inside(10, 5);
pub(crate) const MAIL: Address = inside(10, 7);
pub(crate) const UPDATES: Address = inside(10, 8);
pub(crate) const APPLICATION: Address = inside(10, 9);
pub(crate) const MONITOR: Address = inside(10, 20);
pub(crate) const DATABASE: Address = inside(10, 30);
pub(crate) const BACKUP: Address = inside(10, 40);
pub(crate) const LOGS: Address = inside(10, 50);
pub(crate) const PROXY: Address = inside(10, 60);
pub(crate) const ROLLOUT: Address = inside(10, 70);
pub(crate) const VPN: Address = inside(10, 80);
pub(crate) const VULNERABILITY_SCANNER: Address = inside(10, 90);
pub(crate) const GUESTS: Address = inside(30, 1);
pub(crate) const HMI: Address = inside(20, 10);
pub(crate) const HISTORIAN: Address = inside(20, 11);
pub(crate) const ENGINEERING: Address = inside(20, 12);

/// The operator's sites.
pub(crate) fn sites() -> Result<Sites, String> {
    let site = |name: &str, cidr: &str| {
        cidr.parse().map(|cidr| SiteSettings { name: name.to_owned(), cidrs: vec![cidr] }).map_err(|error| format!("{error}"))
    };
    Sites::new(&[site("plant", "10.0.0.0/8")?, site("dmz", "203.0.113.0/24")?])
}

/// What an operator has to say of hosts: who scans because it is told to, and who administers. The rest is to be learned.
pub(crate) fn roles() -> Result<Roles, String> {
    let only = |host: Address| format!("{host}").parse().map_err(|error| format!("{error}"));
    let end = Timestamp::from_secs(MONDAY + 365 * 86_400);
    Ok(Roles::default().with(only(VULNERABILITY_SCANNER)?, Role::Scanner, end).with(only(ROLLOUT)?, Role::Admin, end))
}

/// How often something is done.
#[derive(Clone, Copy, Debug)]
enum Rhythm {
    /// By chance, once in so long.
    Once(Duration),
    /// Every so long, off by at most this part of it.
    Every(Duration, f64),
    /// Each day at this time of the day, up to so much later.
    Daily(Duration, Duration),
}

/// Who does something: a name for its dice, when it is there, and how often it does it.
struct Habit<'a> {
    name: &'a str,
    presence: Presence,
    rhythm: Rhythm,
}

impl Habit<'_> {
    /// It does `deed` from the start of `traffic` on.
    fn join(&self, place: &Place, traffic: &mut Traffic, mut deed: impl FnMut(Timestamp, &mut Dice, &mut Scene) + 'static) {
        let Self { presence, rhythm, .. } = *self;
        let mut dice = Dice::new(place.seed, self.name);
        let first = next(presence, rhythm, place.start(), &mut dice);
        traffic.enter(
            first,
            Box::new(move |now, scene| {
                deed(now, &mut dice, scene);
                Some(next(presence, rhythm, now, &mut dice))
            }),
        );
    }
}

fn next(presence: Presence, rhythm: Rhythm, now: Timestamp, dice: &mut Dice) -> Timestamp {
    let ahead = match rhythm {
        Rhythm::Once(mean) => dice.wait(mean),
        Rhythm::Every(period, part) => dice.around(period, part),
        Rhythm::Daily(from, spread) => {
            let today = now.floor(DAY).plus(from);
            let day = if today > now { today } else { today.plus(DAY) };
            return day.plus(dice.around(spread / 2, 1.0));
        }
    };
    let wanted = now.plus(ahead);
    match presence.next(wanted) {
        at if at == wanted => at,
        // Nobody starts at the stroke.
        morning => morning.plus(dice.wait(ahead.min(Duration::from_secs(900)))),
    }
}

/// All of it. Scanners of the Internet are scanners: what they do is truth.
pub(crate) fn enter(place: &Place, traffic: &mut Traffic) -> Vec<Attack> {
    people::enter(place, traffic);
    servers::enter(place, traffic);
    plant::enter(place, traffic);
    outside::enter(place, traffic)
}
