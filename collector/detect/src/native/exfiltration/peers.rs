//! The networks outside that are sent to: since when, and by how many hosts. What few hosts send to, or nobody sent to before, is where
//! stolen data goes.

use serde::{Deserialize, Serialize};

use crate::hash::Map;

/// A network is new for so many hours, where it was watched for as long before.
const NEW: u32 = 7 * 24;
/// Hosts that are told apart; more are many.
const SOURCES_MAX: usize = 3;

/// What is known of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Peer {
    first: u32,
    last: u32,
    /// A hash of each of the first hosts; 0 for none.
    sources: [u32; SOURCES_MAX],
}

/// How common a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Nobody sent to it until a few days ago.
    pub(super) new: bool,
    /// One or two hosts send to it.
    pub(super) few: bool,
    /// How many hours ago it was first sent to.
    pub(super) age_hours: u32,
}

/// Networks by their first address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Peers(Map<u128, Peer>);

impl Peers {
    /// `source` sends to `network` in `hour`, and was watched since the hour `began`. Returns how common the network is, and how many were
    /// forgotten to make room: an eighth, those silent for longest.
    pub(super) fn meet(&mut self, network: u128, source: u128, hour: u32, began: u32, peers_max: usize) -> (Standing, u64) {
        let mut forgotten = 0;
        if self.0.len() >= peers_max && !self.0.contains_key(&network) {
            let mut by_age: Vec<(u32, u128)> = self.0.iter().map(|(&network, peer)| (peer.last, network)).collect();
            by_age.sort_unstable();
            for (_, network) in by_age.into_iter().take(peers_max.div_ceil(8)) {
                self.0.remove(&network);
                forgotten += 1;
            }
        }
        let peer = self.0.entry(network).or_insert(Peer { first: hour, last: hour, sources: [0; SOURCES_MAX] });
        (peer.first, peer.last) = (peer.first.min(hour), peer.last.max(hour));
        let source = hashed(source);
        if !peer.sources.contains(&source)
            && let Some(free) = peer.sources.iter_mut().find(|free| **free == 0)
        {
            *free = source;
        }
        let age_hours = hour.saturating_sub(peer.first);
        let new = age_hours < NEW && peer.first >= began + NEW;
        (Standing { new, few: peer.sources[SOURCES_MAX - 1] == 0, age_hours }, forgotten)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.len() * size_of::<(u128, Peer)>()
    }
}

/// The same in every process; never 0. Of IPv4 addresses no two have the same.
fn hashed(address: u128) -> u32 {
    let folded = (address as u32) ^ (address >> 32) as u32 ^ (address >> 64) as u32 ^ (address >> 96) as u32;
    folded.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_few_hosts_with_two_and_new_for_a_week_once_a_week_was_watched() {
        let mut peers = Peers::default();
        let mut meet = |source, hour| peers.meet(1, source, hour, 0, 16).0;
        assert_eq!(meet(7, 300), Standing { new: true, few: true, age_hours: 0 });
        assert_eq!(meet(8, 467), Standing { new: true, few: true, age_hours: 167 });
        assert_eq!(meet(9, 468), Standing { new: false, few: false, age_hours: 168 });
        assert!(!peers.meet(2, 7, 167, 0, 16).0.new, "nobody knows what was before");
    }

    #[test]
    fn a_full_table_forgets_those_silent_for_longest() {
        let mut peers = Peers::default();
        (0..16).for_each(|network| assert_eq!(peers.meet(network, 7, network as u32, 0, 16).1, 0));
        assert_eq!(peers.meet(99, 7, 20, 0, 16).1, 2);
        assert!(!peers.0.contains_key(&0) && !peers.0.contains_key(&1) && peers.0.contains_key(&2));
    }
}
