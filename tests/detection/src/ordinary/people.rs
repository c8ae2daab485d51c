//! What people's machines do.

use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{DOMAIN_CONTROLLER, FILES, GUESTS, Habit, MAIL, PROXY, Place, RESOLVER, Rhythm, UPDATES, desk, inside, internet};
use crate::traffic::{Course, DAY, Dice, Flow, HOUR, MINUTE, Presence, Scene, Traffic, mac};

/// Web servers of the Internet that somebody here knows.
const WEB: u64 = 3_000;
/// Of these, so many do not answer any more: advertisers that are gone.
const WEB_DEAD: u64 = 60;
/// Every so many desks use the proxy.
const PROXY_SHARE: u64 = 8;

/// What a machine with this address does now: the flows that it begins.
type Deed = Box<dyn FnMut(Timestamp, Address, &mut Dice, &mut dyn FnMut(Flow))>;

pub(super) fn enter(place: &Place, traffic: &mut Traffic) {
    for number in 0..place.desks() {
        let via_proxy = number % PROXY_SHARE == 0;
        person(place, traffic, &format!("desk {number}"), number, via_proxy, move |_| desk(number));
    }
    // A laptop gets another address each day.
    for number in 0..place.laptops() {
        let seed = place.seed;
        person(place, traffic, &format!("laptop {number}"), 1_000 + number, false, move |now| {
            let day = now.floor(DAY).as_nanos();
            inside(3, 20 + ((number + Dice::new(seed, &day.to_string()).below(200)) % 200) as u8)
        });
    }
    guests(place, traffic);
    peer_to_peer(place, traffic);
}

fn person(
    place: &Place,
    traffic: &mut Traffic,
    name: &str,
    who: u64,
    via_proxy: bool,
    address: impl Fn(Timestamp) -> Address + Clone + 'static,
) {
    let presence = Presence::Office(place.seed ^ who);
    // A laptop keeps its MAC address, whatever address it gets.
    let own_mac = [0x02, 1, 0, 0, (who >> 8) as u8, who as u8];
    let mut does = |what: &str, rhythm, mut deed: Deed| {
        let address = address.clone();
        let laptop = who >= 1_000;
        Habit { name: &format!("{name} {what}"), presence, rhythm }.join(place, traffic, move |now, dice, scene| {
            deed(now, address(now), dice, &mut |flow| scene.flow(if laptop { flow.with_source_mac(own_mac) } else { flow }));
        });
    };
    does("browses", Rhythm::Once(MINUTE * 9), Box::new(move |now, me, dice, flow| page(now, me, via_proxy, dice, flow)));
    does(
        "reads mail",
        Rhythm::Every(MINUTE * 5, 0.02),
        Box::new(|now, me, dice, flow| {
            flow(Flow::tcp(now, me, MAIL, 993).carrying(1_500, dice.size(4_000.0, 3.0)).lasting(Duration::from_millis(400)));
        }),
    );
    does(
        "asks the time",
        Rhythm::Every(Duration::from_secs(1_024), 0.01),
        Box::new(|now, me, _, flow| {
            flow(Flow::udp(now, me, DOMAIN_CONTROLLER, 123).with_source_port(123));
        }),
    );
    does(
        "reports home",
        Rhythm::Every(HOUR, 0.02),
        Box::new(|now, me, dice, flow| {
            flow(Flow::tcp(now, me, internet(10), 443).carrying(4_000 + dice.below(2_000), 900));
        }),
    );
    does(
        "looks for updates",
        Rhythm::Every(HOUR * 4, 0.3),
        Box::new(|now, me, _, flow| {
            flow(Flow::tcp(now, me, UPDATES, 8530).carrying(2_000, 60_000));
        }),
    );
    does(
        "prints",
        Rhythm::Once(HOUR * 3),
        Box::new(|now, me, dice, flow| {
            let printer = inside(5, 10 + (me.0 % 8) as u8);
            flow(Flow::tcp(now, me, printer, 9100).carrying(dice.size(400_000.0, 3.0), 400).lasting(Duration::from_secs(20)));
        }),
    );
    does(
        "sends a file",
        Rhythm::Once(HOUR * 2),
        Box::new(|now, me, dice, flow| {
            let cloud = internet(300 + dice.below(3) as u32);
            flow(
                Flow::tcp(now, me, cloud, 443).carrying(dice.size(2_000_000.0, 3.0).min(60_000_000), 20_000).lasting(MINUTE / 2),
            );
        }),
    );
    does(
        "calls",
        Rhythm::Once(HOUR * 7),
        Box::new(|now, me, dice, flow| {
            let relay = internet(500 + dice.below(20) as u32);
            let lasts = dice.around(MINUTE * 30, 0.6);
            let octets = lasts.as_secs() * 190_000;
            flow(Flow::udp(now, me, relay, 3478).carrying(octets, octets).lasting(lasts));
        }),
    );
    does(
        "logs on",
        Rhythm::Daily(HOUR * 8, MINUTE * 40),
        Box::new(move |now, me, dice, flow| {
            if presence.on(now.as_nanos() / DAY.as_nanos() as i64).is_some() {
                log_on(now, me, presence, dice, flow);
            }
        }),
    );
}

fn log_on(now: Timestamp, me: Address, presence: Presence, dice: &mut Dice, flow: &mut dyn FnMut(Flow)) {
    let day = presence.leaves(now).since(now);
    for (second, port) in [(0, 88), (1, 88), (2, 389), (3, 445)] {
        flow(Flow::tcp(now.plus(Duration::from_secs(second)), me, DOMAIN_CONTROLLER, port).carrying(3_000, 6_000));
    }
    let files = [dice.size(20_000_000.0, 2.0), dice.size(80_000_000.0, 2.0)];
    flow(Flow::tcp(now.plus(MINUTE), me, FILES, 445).carrying(files[0], files[1]).lasting(day));
    // A chat program that stays connected; not everybody has it.
    if mac(me)[5].is_multiple_of(3) {
        let chat = internet(200 + dice.below(4) as u32);
        flow(Flow::tcp(now.plus(MINUTE * 2), me, chat, 443).carrying(400_000, 900_000).lasting(day));
    }
}

/// A page: some names, some servers, one or the other of them gone.
fn page(now: Timestamp, me: Address, via_proxy: bool, dice: &mut Dice, flow: &mut dyn FnMut(Flow)) {
    let mut at = now;
    for _ in 0..3 + dice.below(8) {
        at = at.plus(dice.wait(Duration::from_millis(250)));
        let server = dice.favourite(WEB) as u32;
        let fetch = |from: Address, port: u16, to: Address, dice: &mut Dice| {
            let octets = (dice.size(2_500.0, 2.0), dice.size(25_000.0, 4.0).min(80_000_000));
            let lasts = Duration::from_millis(200 + octets.1 / 1_000).min(MINUTE);
            Flow::tcp(at, from, to, port).carrying(octets.0, octets.1).lasting(lasts)
        };
        let web = internet(1_000 + server);
        if via_proxy {
            flow(fetch(me, 3128, PROXY, dice).with_source_port(dice.client_port()));
            flow(fetch(PROXY, 443, web, dice).with_source_port(dice.client_port()));
            continue;
        }
        if dice.chance(0.4) {
            look_up(at, me, dice, flow);
        }
        let fetched = fetch(me, 443, web, dice).with_source_port(dice.client_port());
        let dead = u64::from(server) >= WEB - WEB_DEAD || dice.chance(0.002);
        flow(if dead { fetched.going(Course::Silent) } else { fetched });
    }
}

/// A name, through the resolver, which asks outside what it does not know.
fn look_up(at: Timestamp, me: Address, dice: &mut Dice, flow: &mut dyn FnMut(Flow)) {
    flow(Flow::udp(at, me, RESOLVER, 53).with_source_port(dice.client_port()));
    if dice.chance(0.3) {
        let server = internet(20_000 + dice.favourite(900) as u32);
        let question = Flow::udp(at, RESOLVER, server, 53).with_source_port(dice.client_port());
        flow(if dice.chance(0.03) { question.going(Course::Silent) } else { question });
    }
}

/// Visitors' phones behind one address.
fn guests(place: &Place, traffic: &mut Traffic) {
    let presence = Presence::Office(place.seed ^ 77_777);
    Habit { name: "guests", presence, rhythm: Rhythm::Once(Duration::from_secs(40)) }.join(place, traffic, |now, dice, scene| {
        page(now, GUESTS, false, dice, &mut |flow| scene.flow(flow));
    });
}

/// Somebody shares files in the evening: hundreds of peers, half of them gone.
fn peer_to_peer(place: &Place, traffic: &mut Traffic) {
    let me = inside(1, 250);
    let rhythm = Rhythm::Once(Duration::from_secs(20));
    let share = move |now: Timestamp, dice: &mut Dice, scene: &mut Scene| {
        let peer = internet(60_000 + dice.below(5_000) as u32);
        let port = 10_000 + (peer.0 % 50_000) as u16;
        let contact = if dice.chance(0.6) {
            Flow::udp(now, me, peer, port).with_source_port(51_413)
        } else {
            Flow::tcp(now, me, peer, port)
        };
        scene.flow(match dice.below(10) {
            0..=3 => contact.going(Course::Silent),
            4 => contact.going(Course::Refused),
            _ => contact.carrying(dice.size(50_000.0, 4.0), dice.size(400_000.0, 4.0)).lasting(MINUTE),
        });
    };
    Habit { name: "peer to peer", presence: Presence::Evening, rhythm }.join(place, traffic, share);
}
