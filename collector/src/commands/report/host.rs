//! `report ports` and `report peers`: what a host serves and uses, and with whom.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

use spanwatch_common::net::{Address, Prefix};

use super::conversations::{Conversation, Tally};
use super::sheet::{Cell, Sheet};
use super::{GROUPS_MAX, Overfull};
use crate::detect::finding::service_name;

/// Services named in one cell.
const SERVICES_SHOWN: usize = 8;

/// On which side of a conversation the host was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Role {
    /// It was spoken to.
    Serves,
    /// It opened the conversation.
    Uses,
}

impl Role {
    /// The host's side, and who was on the other. A conversation inside the target is one that it serves.
    fn of(target: &Prefix, conversation: &Conversation) -> Option<(Self, Address)> {
        if target.contains(conversation.destination) {
            Some((Self::Serves, conversation.source))
        } else if target.contains(conversation.source) {
            Some((Self::Uses, conversation.destination))
        } else {
            None
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Serves => "serves",
            Self::Uses => "uses",
        }
    }

    /// What came in to the host and what went out from it.
    const fn in_and_out(self, tally: &Tally) -> [u64; 2] {
        match (self, tally.octets) {
            (Self::Serves, octets) => octets,
            (Self::Uses, [sent, received]) => [received, sent],
        }
    }
}

/// The ports of one host, or of all hosts of a subnet.
pub(super) struct Ports {
    target: Prefix,
    found: HashMap<(Role, u8, u16), (Tally, HashSet<Address>)>,
    peers: usize,
}

impl Ports {
    /// For `target`.
    pub(super) fn new(target: Prefix) -> Self {
        Self { target, found: HashMap::new(), peers: 0 }
    }

    /// Counts a conversation that touches the target.
    ///
    /// # Errors
    /// There are too many ports and peers.
    pub(super) fn add(&mut self, conversation: &Conversation, tally: &Tally) -> Result<(), Overfull> {
        let Some((role, peer)) = Role::of(&self.target, conversation) else { return Ok(()) };
        let (sum, peers) = self.found.entry((role, conversation.protocol, conversation.port)).or_default();
        sum.add(tally);
        self.peers += usize::from(peers.insert(peer));
        if self.peers > GROUPS_MAX { Err(Overfull) } else { Ok(()) }
    }

    /// What the target serves, then what it uses; of each, what really talked first, then by octets.
    pub(super) fn sheet(self) -> Sheet {
        let mut found: Vec<_> = self.found.into_iter().collect();
        found.sort_by_key(|((role, protocol, port), (tally, _))| {
            (*role, Reverse(tally.verdict), Reverse(tally.octets_total()), *protocol, *port)
        });
        let row = |((role, protocol, port), (tally, peers)): ((Role, u8, u16), (Tally, HashSet<Address>))| {
            let service = service_name(protocol, port);
            [
                vec![Cell::Text(role.name().to_owned()), Cell::Text(service), Cell::Count(peers.len() as u64)],
                measures(role, &tally),
            ]
            .concat()
        };
        Sheet { columns: [&["role", "service", "peers"], &MEASURES[..]].concat(), rows: found.into_iter().map(row).collect() }
    }
}

/// Whom one host, or any host of a subnet, spoke with.
pub(super) struct Peers {
    target: Prefix,
    found: HashMap<(Role, Address), (Tally, BTreeSet<(u8, u16)>)>,
    services: usize,
}

impl Peers {
    /// For `target`.
    pub(super) fn new(target: Prefix) -> Self {
        Self { target, found: HashMap::new(), services: 0 }
    }

    /// Counts a conversation that touches the target.
    ///
    /// # Errors
    /// There are too many peers and ports.
    pub(super) fn add(&mut self, conversation: &Conversation, tally: &Tally) -> Result<(), Overfull> {
        let Some((role, peer)) = Role::of(&self.target, conversation) else { return Ok(()) };
        let (sum, services) = self.found.entry((role, peer)).or_default();
        sum.add(tally);
        self.services += usize::from(services.insert((conversation.protocol, conversation.port)));
        if self.services > GROUPS_MAX { Err(Overfull) } else { Ok(()) }
    }

    /// Those that the target serves, then those that it uses; of each, who really talked first, then by octets.
    pub(super) fn sheet(self) -> Sheet {
        let mut found: Vec<_> = self.found.into_iter().collect();
        found.sort_by_key(|((role, peer), (tally, _))| (*role, Reverse(tally.verdict), Reverse(tally.octets_total()), *peer));
        let row = |((role, peer), (tally, services)): ((Role, Address), (Tally, BTreeSet<(u8, u16)>))| {
            let peer = if peer.is_some() { peer.to_string() } else { "(blank)".to_owned() };
            [vec![Cell::Text(role.name().to_owned()), Cell::Text(peer), Cell::Text(in_short(&services))], measures(role, &tally)]
                .concat()
        };
        Sheet { columns: [&["role", "peer", "services"], &MEASURES[..]].concat(), rows: found.into_iter().map(row).collect() }
    }
}

const MEASURES: [&str; 7] = ["verdict", "flows", "failed", "octets_in", "octets_out", "first", "last"];

fn measures(role: Role, tally: &Tally) -> Vec<Cell> {
    let [octets_in, octets_out] = role.in_and_out(tally);
    vec![
        Cell::Text(tally.verdict.name().to_owned()),
        Cell::Count(tally.flows()),
        Cell::Count(tally.failed),
        Cell::Octets(octets_in),
        Cell::Octets(octets_out),
        Cell::Time(tally.first),
        Cell::Time(tally.last),
    ]
}

fn in_short(services: &BTreeSet<(u8, u16)>) -> String {
    let shown = services.iter().take(SERVICES_SHOWN).map(|&(protocol, port)| service_name(protocol, port));
    let mut text = shown.collect::<Vec<_>>().join(" ");
    if services.len() > SERVICES_SHOWN {
        text.push_str(&format!(" and {} more", services.len() - SERVICES_SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(source: &str, destination: &str, port: u16) -> Conversation {
        let address = |text: &str| text.parse().expect("a literal");
        Conversation { source: address(source), destination: address(destination), protocol: 6, port }
    }

    #[test]
    fn in_and_out_are_seen_from_the_host_and_a_peer_counts_once() {
        let tally = Tally { octets: [100, 7], ..Tally::default() };
        let mut ports = Ports::new("192.0.2.1".parse().expect("a literal"));
        let mut peers = Peers::new("192.0.2.1".parse().expect("a literal"));
        for conversation in [
            conversation("198.51.100.1", "192.0.2.1", 443),
            conversation("198.51.100.1", "192.0.2.1", 443),
            conversation("198.51.100.2", "192.0.2.1", 443),
            conversation("192.0.2.1", "198.51.100.1", 53),
            conversation("198.51.100.1", "198.51.100.2", 9),
        ] {
            ports.add(&conversation, &tally).expect("room");
            peers.add(&conversation, &tally).expect("room");
        }
        let mut out = Vec::new();
        ports.sheet().write(super::super::sheet::SheetFormat::Csv, &mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "role,service,peers,verdict,flows,failed,octets_in,octets_out,first,last\n\
             serves,TCP/443,2,one-way,1,0,300,21,,\nuses,TCP/53,1,one-way,1,0,7,100,,\n"
        );
        let mut out = Vec::new();
        peers.sheet().write(super::super::sheet::SheetFormat::Csv, &mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "role,peer,services,verdict,flows,failed,octets_in,octets_out,first,last\n\
             serves,198.51.100.1,TCP/443,one-way,1,0,200,14,,\nserves,198.51.100.2,TCP/443,one-way,1,0,100,7,,\n\
             uses,198.51.100.1,TCP/53,one-way,1,0,7,100,,\n"
        );
    }
}
