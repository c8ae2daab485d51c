//! What hosts are for: roles that make innocent what would be suspicious of another host.
//!
//! A vulnerability scanner scans, a monitoring server knocks at dead hosts, a NAT gateway has the contacts of a thousand hosts. Roles
//! are given by the operator (`given`: `[[roles]]`, with an owner and a day on which they end, so that none outlives its reason), or
//! learned from what a host does all day (`learned`). A rule says what it makes of a role: mostly a higher threshold, rarely silence.
//!
//! `scanner`, `admin`, `nat` and `load_balancer` are never learned. Of the first two an intruder who goes on for a week would become
//! innocent by persistence; the others cannot be told by flows alone from a host that does too much.

mod given;
mod learned;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

pub use given::{PREFIXES_MAX, RoleSettings};
pub use learned::LearnedRole;

use crate::row::Row;
use crate::snapshot::RestoreError;
use given::Given;
use learned::Learner;

/// What a host is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum Role {
    /// Looks for weaknesses, as it is told to.
    Scanner = 1,
    /// Asks many hosts, again and again, whether they are well. A PLC poller is one.
    Monitor = 1 << 1,
    /// Takes or gives very much, at its hours.
    Backup = 1 << 2,
    /// Speaks for many hosts behind it.
    Nat = 1 << 3,
    /// Answers names, and asks many servers for them.
    Dns = 1 << 4,
    /// Fetches what others ask for.
    Proxy = 1 << 5,
    /// Spreads connections over servers, and probes them.
    LoadBalancer = 1 << 6,
    /// From here others are administered.
    Admin = 1 << 7,
    /// Domain controller: everybody logs on here.
    DomainController = 1 << 8,
    /// Speaks to many peers, of which many are gone.
    PeerToPeer = 1 << 9,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 10] = [
        Self::Scanner,
        Self::Monitor,
        Self::Backup,
        Self::Nat,
        Self::Dns,
        Self::Proxy,
        Self::LoadBalancer,
        Self::Admin,
        Self::DomainController,
        Self::PeerToPeer,
    ];

    /// The word used in settings and sentences.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scanner => "scanner",
            Self::Monitor => "monitor",
            Self::Backup => "backup",
            Self::Nat => "nat",
            Self::Dns => "dns",
            Self::Proxy => "proxy",
            Self::LoadBalancer => "load_balancer",
            Self::Admin => "admin",
            Self::DomainController => "domain_controller",
            Self::PeerToPeer => "peer_to_peer",
        }
    }
}

/// Roles of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoleSet(u16);

impl RoleSet {
    /// No role.
    pub const NONE: Self = Self(0);

    /// These roles.
    pub fn of(roles: &[Role]) -> Self {
        Self(roles.iter().fold(0, |set, &role| set | role as u16))
    }

    /// Whether `role` is one of them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & role as u16 != 0
    }

    /// Whether any of `roles` is one of them.
    pub fn has_any(self, roles: &[Role]) -> bool {
        self.0 & Self::of(roles).0 != 0
    }

    /// The roles of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The roles, in the order of [`Role::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |&role| self.has(role))
    }
}

/// Who has which role, made ready for looking up.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    given: Given,
    learner: Learner,
}

impl Roles {
    /// From the configuration.
    ///
    /// # Errors
    /// A role without addresses or owner, a day that is none, too many prefixes: a sentence that says what to write.
    pub fn new(settings: &[RoleSettings]) -> Result<Self, String> {
        Ok(Self { given: Given::new(settings)?, learner: Learner::default() })
    }

    /// The roles of `address` at the event time `at`, given or learned.
    pub fn of(&self, address: Address, at: Timestamp) -> RoleSet {
        self.given.of(address, at).with(self.learner.of(address, at))
    }

    /// The same, and `role` for the hosts of `prefix` until `end`.
    #[must_use]
    pub fn with(mut self, prefix: Prefix, role: Role, end: Timestamp) -> Self {
        self.given.add(prefix, role, end);
        self
    }

    /// Learns from `row`: once for every row, before the detectors see it.
    pub fn learn(&mut self, row: &Row) {
        self.learner.observe(row);
    }

    /// What was learned, by address and role.
    pub fn learned(&self) -> Vec<LearnedRole> {
        self.learner.learned()
    }

    /// What was learned and what is being learned, as bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        self.learner.snapshot()
    }

    /// Goes on learning where the one was that made `bytes`. What is given stays as it is.
    ///
    /// # Errors
    /// The bytes are no such state; nothing has changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.learner.restore(bytes)
    }
}
