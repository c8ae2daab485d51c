//! What one source did on one port of many hosts.

use serde::{Deserialize, Serialize};

use super::attempt::{Attempt, Attempts};
use super::pair::Proof;
use crate::native::lasting::Lasting;
use crate::row::Row;

/// Hosts followed of one source in one window; more make it no less a spray.
const HOSTS_MAX: usize = 256;

/// One source on one port: about 800 bytes, and 24 for each host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Spray {
    /// Number of the window.
    window: i64,
    /// How often each host was tried in it; by address, ascending.
    hosts: Vec<(u128, u16)>,
    /// Hosts that were tried often enough.
    pub(super) tried: usize,
    /// Attempts in the window.
    pub(super) attempts: u64,
    /// The latest.
    pub(super) sample: Attempts,
    pub(super) claim: Lasting,
    pub(super) proof: Proof,
}

impl Spray {
    /// Takes in an attempt in the window of `window`; false if that is over. From `tries` attempts on a host counts.
    pub(super) fn add(&mut self, row: &Row, attempt: Attempt, window: i64, tries: u64) -> bool {
        if window < self.window {
            return false;
        }
        if window > self.window {
            *self = Self { window, claim: std::mem::take(&mut self.claim), ..Self::default() };
        }
        self.attempts += 1;
        self.sample.push(attempt);
        let host = row.destination.0;
        match self.hosts.binary_search_by_key(&host, |&(host, _)| host) {
            Ok(place) => {
                let count = &mut self.hosts[place].1;
                *count = count.saturating_add(1);
                self.tried += usize::from(u64::from(*count) == tries);
            }
            Err(place) if self.hosts.len() < HOSTS_MAX => {
                self.hosts.insert(place, (host, 1));
                self.tried += usize::from(tries <= 1);
            }
            Err(_) => {}
        }
        self.proof.sightings.insert(row);
        self.proof.observers.insert(&row.observer);
        true
    }

    /// The hosts that were tried at least so often, ascending.
    pub(super) fn hosts(&self, tries: u64) -> impl Iterator<Item = u128> {
        self.hosts.iter().filter(move |&&(_, count)| u64::from(count) >= tries).map(|&(host, _)| host)
    }

    /// What is let go first.
    pub(super) fn weight(&self) -> u64 {
        self.attempts
    }
}
