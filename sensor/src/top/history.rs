//! Looks at a sensor over the last minute, and what they say together: rates and symptoms. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use spanwatch_common::health::{Health, PortHealth, Symptom, judge};

use crate::live_view::LiveView;

/// How far back looks are kept: what symptoms are judged over.
const KEPT: Duration = Duration::from_secs(60);
/// Looks that cover at least this long are judged; before, everything since the sensor's start is.
const JUDGED_FROM: Duration = Duration::from_secs(20);
/// Points of a curve that are kept: enough for a terminal 200 columns wide.
const CURVE_POINTS: usize = 200;
/// Most looks, should somebody look more often than once a second.
const LOOKS_MAX: usize = 256;

/// What happened per second between the last two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Packets handed to the sensor.
    pub packets: f64,
    /// Bits of their frames, without preamble and FCS.
    pub bits: f64,
    /// Flows that began.
    pub flows: f64,
    /// Packets lost before the sensor.
    pub dropped: f64,
}

/// The looks.
#[derive(Debug, Default)]
pub struct History {
    looks: VecDeque<LiveView>,
    curve: VecDeque<Rates>,
}

impl History {
    /// Adds a look. One at a sensor that was restarted since begins a new history.
    pub fn add(&mut self, look: LiveView) {
        if self.latest().is_some_and(|latest| look.uptime_millis <= latest.uptime_millis) {
            *self = Self::default();
        }
        if let Some(latest) = self.latest() {
            let rates = Rates::between(latest, &look);
            self.curve.push_back(rates);
            self.curve.drain(..self.curve.len().saturating_sub(CURVE_POINTS));
        }
        let oldest_kept = look.uptime_millis.saturating_sub(KEPT.as_millis() as u64);
        self.looks.push_back(look);
        while self.looks.len() > LOOKS_MAX || self.looks.front().is_some_and(|first| first.uptime_millis < oldest_kept) {
            self.looks.pop_front();
        }
    }

    /// The last look.
    pub fn latest(&self) -> Option<&LiveView> {
        self.looks.back()
    }

    /// What the last two looks say; zero after the first.
    pub fn rates(&self) -> Rates {
        self.curve.back().copied().unwrap_or_default()
    }

    /// The rates so far, oldest first.
    pub fn curve(&self) -> impl DoubleEndedIterator<Item = &Rates> {
        self.curve.iter()
    }

    /// What the mirror is judged by, and over how long: the looks that are kept, or, until they cover enough, everything since the
    /// sensor's start.
    pub fn judged(&self) -> (Health, Duration) {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return Default::default() };
        let kept = Duration::from_millis(last.uptime_millis - first.uptime_millis);
        if kept >= JUDGED_FROM {
            (last.port.health.since(&first.port.health), kept)
        } else {
            (last.port.health, Duration::from_millis(last.uptime_millis))
        }
    }

    /// What is wrong with the mirrors: each port by itself, named where there are several.
    pub fn symptoms(&self) -> Vec<Symptom> {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return Vec::new() };
        let (_, over) = self.judged();
        let is_since_start = over >= Duration::from_millis(last.uptime_millis);
        let several = last.ports.len() > 1;
        let of_port = |(n, port): (usize, &PortHealth)| {
            let before = if is_since_start { None } else { first.judged_ports().nth(n) };
            let before = before.map_or_else(Health::default, |port| port.health);
            let name = if several { format!("{}: ", port.interface) } else { String::new() };
            let symptoms = judge(&before, &port.health, over);
            symptoms.into_iter().map(move |symptom| Symptom { says: format!("{name}{}", symptom.says), ..symptom })
        };
        last.judged_ports().enumerate().flat_map(of_port).collect()
    }
}

impl Rates {
    fn between(before: &LiveView, after: &LiveView) -> Self {
        let secs = (after.uptime_millis - before.uptime_millis) as f64 / 1000.0;
        let per_second = |before: u64, after: u64| after.saturating_sub(before) as f64 / secs;
        let (then, now) = (&before.port.health, &after.port.health);
        Self {
            packets: per_second(then.packets, now.packets),
            bits: 8.0 * per_second(then.octets, now.octets),
            flows: per_second(before.ledger.flows.observed, after.ledger.flows.observed),
            dropped: per_second(then.dropped, now.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::health::SymptomKind;

    use super::*;
    use crate::live_view::PortView;

    /// A look at a sensor that sees 1000 packets of 125 octets each second, `sliced_permille` of them cut short.
    fn look(secs: u64, sliced: u64) -> LiveView {
        let mut view = LiveView { uptime_millis: secs * 1000, ..LiveView::default() };
        view.port.health = Health { packets: secs * 1000, octets: secs * 125_000, sliced, ..Health::default() };
        view
    }

    #[test]
    fn rates_are_those_of_the_last_two_looks() {
        let mut history = History::default();
        history.add(look(100, 0));
        assert_eq!(history.rates(), Rates::default());
        history.add(look(102, 0));
        let rates = history.rates();
        assert_eq!((rates.packets, rates.bits, rates.dropped), (1000.0, 1_000_000.0, 0.0));
    }

    #[test]
    fn the_last_minute_is_judged_once_it_is_known_and_what_was_before_no_more() {
        let mut history = History::default();
        history.add(look(1_000, 500_000)); // half of them since the start
        assert_eq!(history.symptoms().first().map(|symptom| symptom.kind), Some(SymptomKind::Sliced));
        for secs in 1_001..=1_020 {
            history.add(look(secs, 500_000)); // none since
        }
        assert_eq!(history.symptoms(), []);
        assert_eq!(history.judged().1, Duration::from_secs(20));
        for secs in 1_021..=1_200 {
            history.add(look(secs, 500_000));
        }
        assert_eq!(history.judged().1, KEPT);
    }

    #[test]
    fn a_silent_port_is_named_however_much_another_brings() {
        let two = |secs: u64| {
            let port = |interface: &str, packets| PortView {
                port: PortHealth {
                    interface: interface.into(),
                    health: Health { packets, ..Health::default() },
                    ..PortHealth::default()
                },
                ..PortView::default()
            };
            LiveView { uptime_millis: secs * 1000, ..LiveView::of(vec![port("eno2", secs * 1000), port("eno3", 70)]) }
        };
        let mut history = History::default();
        (100..=160).for_each(|secs| history.add(two(secs)));
        let symptoms = history.symptoms();
        assert_eq!(symptoms.iter().map(|symptom| symptom.kind).collect::<Vec<_>>(), [SymptomKind::NoTraffic]);
        assert!(symptoms[0].says.starts_with("eno3: "), "{}", symptoms[0].says);
    }

    #[test]
    fn a_restarted_sensor_begins_a_new_history() {
        let mut history = History::default();
        history.add(look(1_000, 0));
        history.add(look(3, 0));
        assert_eq!(history.rates(), Rates::default());
        assert_eq!(history.judged().0.packets, 3_000);
    }
}
