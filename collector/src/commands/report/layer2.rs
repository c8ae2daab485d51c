//! `report layer2`: who speaks to whom without IP, which on a plant floor is half of the conversation.

use std::collections::HashMap;
use std::sync::Arc;

use spanwatch_common::flow::{FORWARD, FlowRecord, Mac, REVERSE};
use spanwatch_common::layer2;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::sheet::{Cell, Sheet};
use super::{GROUPS_MAX, Overfull};

/// A condition for the records of such conversations, over the columns of `flows_raw`.
pub(super) const WITHOUT_IP: &str = "protocolIdentifier IS NULL AND flowOrigin IS NULL";

/// What tells conversations apart. What two sensors saw is not added up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    sensor: Arc<str>,
    ethernet_type: u16,
    llc_saps: u16,
    instance: u64,
    source: Mac,
    destination: Mac,
    arp: [Address; 2],
}

#[derive(Clone, Copy, Default)]
struct Sum {
    packets: [u64; 2],
    octets: [u64; 2],
    first: Timestamp,
    last: Timestamp,
}

impl Sum {
    const fn packets_total(&self) -> u64 {
        self.packets[FORWARD].saturating_add(self.packets[REVERSE])
    }
}

/// Conversations between stations.
#[derive(Default)]
pub(super) struct Stations {
    found: HashMap<Key, Sum>,
}

impl Stations {
    /// Counts a record of a conversation without IP that `sensor` saw.
    ///
    /// # Errors
    /// There are too many conversations.
    pub(super) fn add(&mut self, sensor: &Arc<str>, record: &FlowRecord) -> Result<(), Overfull> {
        let key = Key {
            sensor: Arc::clone(sensor),
            ethernet_type: record.ethernet_type,
            llc_saps: record.llc_saps,
            instance: record.layer2_instance,
            source: record.source_mac,
            destination: record.destination_mac,
            arp: record.arp,
        };
        if self.found.len() >= GROUPS_MAX && !self.found.contains_key(&key) {
            return Err(Overfull);
        }
        let sum = self.found.entry(key).or_default();
        for way in [FORWARD, REVERSE] {
            sum.packets[way] = sum.packets[way].saturating_add(record.packets[way]);
            sum.octets[way] = sum.octets[way].saturating_add(record.layer2_octets[way]);
        }
        let first = record.first();
        sum.first = if sum.first.is_some() { sum.first.min(first) } else { first };
        sum.last = sum.last.max(record.last()).max(first);
        Ok(())
    }

    /// The `top` conversations with most packets.
    pub(super) fn sheet(self, top: usize) -> Sheet {
        let mut found: Vec<(Key, Sum)> = self.found.into_iter().collect();
        found.sort_unstable_by(|(a, x), (b, y)| y.packets_total().cmp(&x.packets_total()).then_with(|| a.cmp(b)));
        let row = |(key, sum): (Key, Sum)| {
            let name = layer2::label(key.ethernet_type, key.llc_saps, key.instance);
            vec![
                Cell::Text(name.map_or_else(|| "unknown".to_owned(), |name| name.into_owned())),
                Cell::Text(instance(&key)),
                Cell::Text(station(key.source)),
                Cell::Text(station(key.destination)),
                Cell::Count(sum.packets[FORWARD]),
                Cell::Count(sum.packets[REVERSE]),
                Cell::Octets(sum.octets[FORWARD].saturating_add(sum.octets[REVERSE])),
                Cell::Time(sum.first),
                Cell::Time(sum.last),
                Cell::Text(key.sensor.to_string()),
            ]
        };
        let columns = vec![
            "protocol",
            "instance",
            "source",
            "destination",
            "packets_out",
            "packets_back",
            "octets",
            "first",
            "last",
            "sensor",
        ];
        Sheet { columns, rows: found.into_iter().take(top).map(row).collect() }
    }
}

/// What stands under the protocol: the addresses that ARP speaks of, else the number, as the standards write it.
fn instance(key: &Key) -> String {
    match key {
        Key { arp: [sender, target], .. } if sender.is_some() || target.is_some() => format!("{sender} > {target}"),
        Key { instance: 0, .. } => String::new(),
        Key { instance, .. } => format!("0x{instance:04x}"),
    }
}

fn station([a, b, c, d, e, f]: Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stations_are_shown_with_what_they_speak_and_the_busiest_first() {
        let sensor: Arc<str> = Arc::from("plant1");
        let goose = FlowRecord {
            ethernet_type: 0x88b8,
            layer2_instance: 0x3fff,
            source_mac: [2, 0, 0, 0, 0, 3],
            destination_mac: [1, 0x0c, 0xcd, 1, 0, 1],
            packets: [600, 0],
            layer2_octets: [90_000, 0],
            start: [Timestamp::from_secs(1_763_719_200), Timestamp::NONE],
            end: [Timestamp::from_secs(1_763_719_260), Timestamp::NONE],
            ..FlowRecord::default()
        };
        let later = FlowRecord { start: [Timestamp::from_secs(1_763_719_260), Timestamp::NONE], ..goose.clone() };
        let arp = FlowRecord {
            ethernet_type: 0x0806,
            layer2_instance: 0,
            arp: ["192.0.2.7".parse().unwrap(), "192.0.2.1".parse().unwrap()],
            packets: [1, 1],
            layer2_octets: [60, 60],
            ..goose.clone()
        };
        let stp = FlowRecord { ethernet_type: 0, llc_saps: 0x4242, layer2_instance: 0, packets: [1, 0], ..goose.clone() };
        let mut stations = Stations::default();
        for record in [&arp, &goose, &stp, &later] {
            stations.add(&sensor, record).unwrap();
        }
        let mut out = Vec::new();
        stations.sheet(3).write(super::super::SheetFormat::Csv, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "protocol,instance,source,destination,packets_out,packets_back,octets,first,last,sensor\n\
             GOOSE,0x3fff,02:00:00:00:00:03,01:0c:cd:01:00:01,1200,0,180000,2025-11-21T10:00:00.000000000Z,2025-11-21T10:01:00.000000000Z,plant1\n\
             ARP,192.0.2.7 > 192.0.2.1,02:00:00:00:00:03,01:0c:cd:01:00:01,1,1,120,2025-11-21T10:00:00.000000000Z,2025-11-21T10:01:00.000000000Z,plant1\n\
             STP,,02:00:00:00:00:03,01:0c:cd:01:00:01,1,0,90000,2025-11-21T10:00:00.000000000Z,2025-11-21T10:01:00.000000000Z,plant1\n"
        );
    }
}
