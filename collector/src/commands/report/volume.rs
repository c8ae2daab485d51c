//! `report volume` and `report deviations`: who moves how much, and who moved unlike himself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use clap::ValueEnum;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::conversations::{Conversation, Tally};
use super::sheet::{Cell, Sheet};
use super::{GROUPS_MAX, Overfull};
use crate::detect::finding::service_name;

/// What octets are added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Source, destination and service.
    Conversation,
    /// Who opened the conversations.
    Source,
    /// Who was spoken to.
    Destination,
    /// Protocol and port of the destination.
    Service,
    /// Source and service.
    SourceService,
    /// The hour, in the order of time.
    Hour,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    hour: Option<Timestamp>,
    source: Option<Address>,
    destination: Option<Address>,
    service: Option<(u8, u16)>,
}

/// Octets added up.
pub(super) struct Volume {
    by: By,
    sums: HashMap<Key, Tally>,
    total: u64,
}

impl Volume {
    /// An empty sum.
    pub(super) fn new(by: By) -> Self {
        Self { by, sums: HashMap::new(), total: 0 }
    }

    /// Adds a conversation of the hour that begins at `hour`.
    ///
    /// # Errors
    /// There are too many different ones.
    pub(super) fn add(&mut self, hour: Timestamp, conversation: &Conversation, tally: &Tally) -> Result<(), Overfull> {
        let source = Some(conversation.source);
        let destination = Some(conversation.destination);
        let service = Some((conversation.protocol, conversation.port));
        let key = match self.by {
            By::Conversation => Key { source, destination, service, ..Key::default() },
            By::Source => Key { source, ..Key::default() },
            By::Destination => Key { destination, ..Key::default() },
            By::Service => Key { service, ..Key::default() },
            By::SourceService => Key { source, service, ..Key::default() },
            By::Hour => Key { hour: Some(hour), ..Key::default() },
        };
        self.sums.entry(key).or_default().add(tally);
        self.total = self.total.saturating_add(tally.octets_total());
        if self.sums.len() > GROUPS_MAX { Err(Overfull) } else { Ok(()) }
    }

    /// The `top` largest, largest first; hours in the order of time, all of them.
    pub(super) fn sheet(self, top: usize) -> Sheet {
        let mut sums: Vec<(Key, Tally)> = self.sums.into_iter().collect();
        match self.by {
            By::Hour => sums.sort_by_key(|(key, _)| *key),
            _ => {
                sums.sort_by_key(|(key, tally)| (Reverse(tally.octets_total()), *key));
                sums.truncate(top);
            }
        }
        let mut columns: Vec<&'static str> = match self.by {
            By::Conversation => vec!["source", "destination", "service"],
            By::Source => vec!["source"],
            By::Destination => vec!["destination"],
            By::Service => vec!["service"],
            By::SourceService => vec!["source", "service"],
            By::Hour => vec!["hour"],
        };
        columns.extend(["octets", "share_percent", "octets_sent", "octets_received", "flows"]);
        let total = self.total;
        let row = |(key, tally): (Key, Tally)| {
            let mut cells: Vec<Cell> = Vec::new();
            cells.extend(key.hour.map(Cell::Time));
            cells.extend([key.source, key.destination].into_iter().flatten().map(|address| Cell::Text(address_text(address))));
            cells.extend(key.service.map(|(protocol, port)| Cell::Text(service_name(protocol, port))));
            let share = if total > 0 { tally.octets_total() as f64 / total as f64 * 100.0 } else { 0.0 };
            cells.extend([
                Cell::Octets(tally.octets_total()),
                Cell::Ratio((share * 100.0).round() / 100.0),
                Cell::Octets(tally.octets[0]),
                Cell::Octets(tally.octets[1]),
                Cell::Count(tally.flows()),
            ]);
            cells
        };
        Sheet { columns, rows: sums.into_iter().map(row).collect() }
    }
}

fn address_text(address: Address) -> String {
    if address.is_some() { address.to_string() } else { "(blank)".to_owned() }
}

/// Volumes per source and service in windows, each against the mean of all windows of the same source and service that had records:
/// `round(abs(volume - mean) / mean, 2)`, the arithmetic of AZ-03's exact form. Of each source and service the largest is told.
#[derive(Default)]
pub(super) struct Deviations {
    /// The window being added up.
    open: Option<Timestamp>,
    volumes: BTreeMap<(Address, u8, u16), u64>,
    past: HashMap<(Address, u8, u16), Past>,
}

/// The closed windows of a source and service. The largest deviation is that of the largest or of the smallest volume.
#[derive(Clone, Copy, Debug)]
struct Past {
    windows: u64,
    octets: u128,
    least: (u64, Timestamp),
    most: (u64, Timestamp),
}

impl Deviations {
    /// Adds a conversation in the window that begins at `window`; windows come one after the other.
    ///
    /// # Errors
    /// There are too many sources and services.
    pub(super) fn add(&mut self, window: Timestamp, conversation: &Conversation, tally: &Tally) -> Result<(), Overfull> {
        if self.open.is_some_and(|open| open != window) {
            self.close();
        }
        self.open = Some(window);
        if conversation.source.is_some() {
            let key = (conversation.source, conversation.protocol, conversation.port);
            *self.volumes.entry(key).or_default() += tally.octets_total();
        }
        if self.past.len() + self.volumes.len() > GROUPS_MAX { Err(Overfull) } else { Ok(()) }
    }

    fn close(&mut self) {
        let Some(window) = self.open.take() else { return };
        for (key, octets) in std::mem::take(&mut self.volumes) {
            let now = (octets, window);
            let past = self.past.entry(key).or_insert(Past { windows: 0, octets: 0, least: now, most: now });
            past.windows += 1;
            past.octets += u128::from(octets);
            // Of equal ones the first is kept.
            if octets < past.least.0 {
                past.least = now;
            }
            if octets > past.most.0 {
                past.most = now;
            }
        }
    }

    /// The `top` largest deviations, largest first.
    pub(super) fn sheet(mut self, top: usize, window: Duration) -> Sheet {
        self.close();
        let mut ranked = Vec::new();
        for (key, past) in self.past {
            let mean = past.octets as f64 / past.windows as f64;
            let deviation = |(octets, _): (u64, Timestamp)| ((octets as f64 - mean).abs() / mean * 100.0).round() / 100.0;
            let worst = if deviation(past.most) >= deviation(past.least) { past.most } else { past.least };
            // A mean of zero gives no number, and passes no comparison.
            if deviation(worst) > 0.0 {
                ranked.push((deviation(worst), key, worst, mean, past.windows));
            }
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.2.0.cmp(&a.2.0)).then(a.1.cmp(&b.1)));
        ranked.truncate(top);
        let rows = ranked.into_iter().map(|(deviation, (source, protocol, port), (octets, at), mean, windows)| {
            vec![
                Cell::Text(source.to_string()),
                Cell::Text(service_name(protocol, port)),
                Cell::Ratio(deviation),
                Cell::Octets(octets),
                Cell::Octets(mean.round() as u64),
                Cell::Time(at),
                Cell::Time(at.plus(window)),
                Cell::Count(windows),
            ]
        });
        let columns = vec!["source", "service", "deviation", "octets", "mean_octets", "from", "to", "windows"];
        Sheet { columns, rows: rows.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(source: &str, port: u16) -> Conversation {
        let address = |text: &str| text.parse().expect("a literal");
        Conversation { source: address(source), destination: address("198.51.100.7"), protocol: 6, port }
    }

    #[test]
    fn the_hand_series_deviates_by_1_8_and_a_fall_counts_as_a_rise_does() {
        let mut deviations = Deviations::default();
        // 10, 10, 10, 70: mean 25, |70 - 25| / 25 = 1.8. And 30, 30, 0: mean 20, |0 - 20| / 20 = 1. A steady one has none.
        for (window, [a, b, c]) in [[10, 30, 5], [10, 30, 5], [10, 0, 5], [70, 20, 5]].into_iter().enumerate() {
            let at = Timestamp::from_secs(window as i64 * 300 + 300);
            let tally = |octets| Tally { octets: [octets, 0], ..Tally::default() };
            deviations.add(at, &conversation("192.0.2.1", 443), &tally(a)).expect("room");
            if window < 3 {
                deviations.add(at, &conversation("192.0.2.2", 443), &tally(b)).expect("room");
            }
            deviations.add(at, &conversation("192.0.2.3", 443), &tally(c)).expect("room");
            deviations.add(at, &conversation("192.0.2.4", 443), &tally(0)).expect("room");
        }
        let sheet = deviations.sheet(10, Duration::from_secs(300));
        let told: Vec<_> =
            sheet.rows.iter().map(|row| (row[0].clone(), row[2].clone(), row[5].clone(), row[7].clone())).collect();
        let text = |text: &str| Cell::Text(text.to_owned());
        assert_eq!(
            told,
            [
                (text("192.0.2.1"), Cell::Ratio(1.8), Cell::Time(Timestamp::from_secs(1_200)), Cell::Count(4)),
                (text("192.0.2.2"), Cell::Ratio(1.0), Cell::Time(Timestamp::from_secs(900)), Cell::Count(3)),
            ]
        );
    }

    #[test]
    fn shares_are_of_everything_also_of_what_is_not_shown() {
        let mut volume = Volume::new(By::Source);
        let hour = Timestamp::from_secs(3_600);
        for (source, octets) in [("192.0.2.1", 600), ("192.0.2.2", 300), ("192.0.2.3", 100)] {
            volume.add(hour, &conversation(source, 443), &Tally { octets: [octets, 0], ..Tally::default() }).expect("room");
        }
        let sheet = volume.sheet(1);
        assert_eq!(sheet.rows.len(), 1);
        assert_eq!(sheet.rows[0][..3], [Cell::Text("192.0.2.1".to_owned()), Cell::Octets(600), Cell::Ratio(60.0)]);
    }
}
