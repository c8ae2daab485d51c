//! Networks where new addresses are nothing new: pools of a DHCP server, guests, IPv6 hosts that change their addresses daily (RFC 8981).

use serde::{Deserialize, Serialize};
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use super::day_of;
use crate::card::EXAMPLES_MAX;
use crate::hash::Map;
use crate::series::history::longest_silent;

/// Networks remembered: /24 of IPv4, /64 of IPv6; about 100 bytes each.
const NETWORKS_MAX: usize = 16_384;
/// Busy days of the last seven that make a network dynamic.
const BUSY_DAYS: u32 = 2;

/// New addresses per network and day.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Churn {
    networks: Map<Address, Network>,
    evicted: u64,
}

/// A network and its new addresses of today.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Network {
    /// Its first day: everything is new then, which says nothing.
    since: u16,
    pub(crate) day: u16,
    /// New addresses of that day.
    pub(crate) today: u32,
    /// Those of them to be told, which is none while learning.
    pub(crate) fresh: u32,
    /// A bit for each of the seven days before, yesterday lowest: whether there were many.
    busy: u8,
    /// What was told of `fresh`.
    pub(crate) told: u32,
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
    pub(crate) examples: Vec<Address>,
}

impl Network {
    /// Whether new addresses are usual here.
    pub(crate) const fn is_dynamic(&self) -> bool {
        (self.busy & 0x7f).count_ones() >= BUSY_DAYS
    }

    fn roll(&mut self, day: u16, many: u32) {
        if day > self.day {
            let busy = self.today > many && self.day > self.since;
            self.busy =
                (u32::from(self.busy) << 1 | u32::from(busy)).checked_shl(u32::from(day - self.day - 1)).unwrap_or(0) as u8;
            *self = Self { since: self.since, day, busy: self.busy, ..Self::default() };
        }
    }
}

impl Churn {
    /// A new address; `fresh` if it is to be told. More than `many` on a day make it busy.
    pub(crate) fn note(&mut self, address: Address, at: Timestamp, fresh: bool, many: u32) -> (Prefix, &mut Network) {
        let prefix = network_of(address);
        let day = day_of(at);
        if self.networks.len() >= NETWORKS_MAX && !self.networks.contains_key(&prefix.first()) {
            let old = longest_silent(self.networks.iter().map(|(key, network)| (network.day, key)), NETWORKS_MAX - 1);
            self.evicted += old.len() as u64;
            old.iter().for_each(|key| _ = self.networks.remove(key));
        }
        let network = self.networks.entry(prefix.first()).or_insert(Network { since: day, day, ..Network::default() });
        network.roll(day, many);
        network.today += 1;
        if fresh {
            network.fresh += 1;
            network.first = if network.first.is_some() { network.first.min(at) } else { at };
            network.last = network.last.max(at);
            if network.examples.len() < EXAMPLES_MAX {
                network.examples.push(address);
            }
        }
        (prefix, network)
    }

    /// The day before `day` is over: the networks with something to tell of it, in order.
    pub(crate) fn close(&mut self, day: u16, many: u32) -> Vec<(Prefix, Network)> {
        let mut over: Vec<(Prefix, Network)> = Vec::new();
        for (&first, network) in self.networks.iter_mut().filter(|(_, network)| network.day < day) {
            if network.fresh > 0 {
                over.push((network_of(first), network.clone()));
            }
            network.roll(day, many);
        }
        over.sort_by_key(|(prefix, _)| prefix.first());
        over
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(crate) fn bytes(&self) -> usize {
        self.networks.len() * (size_of::<Network>() + 17)
    }
}

/// /24 of IPv4, /64 of IPv6.
fn network_of(address: Address) -> Prefix {
    Prefix::new(address, if address.as_v4().is_some() { 96 + 24 } else { 64 })
}
