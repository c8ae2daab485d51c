//! The plant: few hosts that say the same to each other all day.

use std::time::Duration;

use super::{ENGINEERING, HISTORIAN, HMI, Habit, Place, Rhythm, plc};
use crate::traffic::{DAY, Flow, HOUR, MINUTE, Presence, Traffic};

pub(super) fn enter(place: &Place, traffic: &mut Traffic) {
    for number in 0..place.plcs() {
        let start = place.start().plus(Duration::from_millis(number * 300));
        let whole = DAY * place.days;
        // A question of 66 octets a second, and an answer of 130.
        let seconds = whole.as_secs();
        let poll = Flow::tcp(start, HMI, plc(number), 502).with_source_port(49_000 + number as u16);
        traffic.play(vec![Flow {
            packets: [seconds * 2, seconds],
            octets: [seconds * 106, seconds * 130],
            ..poll.lasting(whole)
        }]);
        if number % 5 == 0 {
            let history = Flow::tcp(start, HISTORIAN, plc(number), 4840).with_source_port(48_000 + number as u16);
            traffic.play(vec![history.carrying(seconds * 20, seconds * 400).lasting(whole)]);
        }
    }
    let habit = Habit { name: "engineering", presence: Presence::Office(place.seed ^ 4_711), rhythm: Rhythm::Once(HOUR * 3) };
    let plcs = place.plcs();
    habit.join(place, traffic, move |now, dice, scene| {
        let session = Flow::tcp(now, ENGINEERING, plc(dice.below(plcs)), 102).carrying(dice.size(60_000.0, 3.0), 200_000);
        scene.flow(session.lasting(MINUTE * 12));
    });
}
