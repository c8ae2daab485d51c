//! `report allow-rules`: the least set of rules that lets through what was seen to work, and nothing that was not seen.
//!
//! A rule lets every one of its sources speak to every one of its destinations on every one of its ports. So destinations share a rule
//! only if the same sources spoke to them on a port, and ports only if the same sources spoke to the same destinations. Addresses
//! become the fewest prefixes that hold them exactly; with a [`Widening`] also prefixes that hold more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use spanwatch_common::flow::protocol;
use spanwatch_common::net::{Address, Prefix};

use super::Overfull;
use super::conversations::{Conversation, Tally, Verdict};
use super::prefixes::{self, Widening, cover, cover_widened};

/// Conversations that are remembered, scans and all: about 80 octets of memory each.
const CONVERSATIONS_MAX: usize = 4_000_000;

/// What a rule lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Who may speak. All of the family of the destinations.
    pub(super) sources: Vec<Prefix>,
    /// To whom.
    pub(super) destinations: Vec<Prefix>,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// On which ports, first and last of each range, ascending; empty where the protocol has none.
    pub(super) ports: Vec<(u16, u16)>,
    /// How many different sources were seen.
    pub(super) seen_sources: u64,
}

impl Rule {
    /// How many addresses may speak, seen or not.
    pub(super) fn permitted_sources(&self) -> u128 {
        prefixes::size(&self.sources)
    }

    /// Whether the addresses are IPv4.
    pub(super) fn is_v4(&self) -> bool {
        self.destinations.first().is_some_and(|prefix| prefix.first().as_v4().is_some())
    }
}

/// What is left out of the rules, in conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Denied, refused or never answered: scans, and services that are gone.
    pub(super) failed: u64,
    /// One way only.
    pub(super) one_way: u64,
    /// Whose source Traffic Analytics left blank.
    pub(super) blank: u64,
}

/// Conversations on their way to become rules.
pub(super) struct Seen {
    target: Prefix,
    verdicts: HashMap<Conversation, Verdict>,
}

impl Seen {
    /// Of conversations whose destination lies in `target`.
    pub(super) fn new(target: Prefix) -> Self {
        Self { target, verdicts: HashMap::new() }
    }

    /// Takes a conversation in.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn add(&mut self, conversation: &Conversation, tally: &Tally) -> Result<(), Overfull> {
        if self.target.contains(conversation.destination) {
            let verdict = self.verdicts.entry(*conversation).or_default();
            *verdict = tally.verdict.max(*verdict);
        }
        if self.verdicts.len() > CONVERSATIONS_MAX { Err(Overfull) } else { Ok(()) }
    }

    /// The conversations to let through, and what is left out. `one_way` takes in those that nobody answered and nobody had to.
    pub(super) fn allowed(self, one_way: bool) -> (Vec<Conversation>, LeftOut) {
        let mut left_out = LeftOut::default();
        let mut allowed = Vec::new();
        for (conversation, verdict) in self.verdicts {
            match verdict {
                Verdict::Failed => left_out.failed += 1,
                Verdict::OneWay if !one_way => left_out.one_way += 1,
                _ if !conversation.source.is_some() => left_out.blank += 1,
                Verdict::OneWay | Verdict::Allowed | Verdict::Talked => allowed.push(conversation),
            }
        }
        (allowed, left_out)
    }
}

/// Sources as prefixes that can be compared and sorted: first address and bits.
type PrefixKey = Vec<(u128, u8)>;

/// What a port of a protocol lets through: to each destination, its sources.
type BySource = BTreeMap<PrefixKey, (Vec<Prefix>, BTreeSet<Address>, BTreeSet<Address>)>;

/// The rules that let through `allowed`; by protocol and port.
pub(super) fn rules(allowed: &[Conversation], widening: Option<Widening>) -> Vec<Rule> {
    let mut ports: BTreeMap<(u8, u16), BTreeMap<Address, BTreeSet<Address>>> = BTreeMap::new();
    for one in allowed {
        ports.entry((one.protocol, one.port)).or_default().entry(one.destination).or_default().insert(one.source);
    }
    let mut merged: BTreeMap<(u8, PrefixKey, BTreeSet<Address>), (Rule, BTreeSet<Address>)> = BTreeMap::new();
    for ((protocol, port), destinations) in ports {
        for (key, (sources, destinations, seen)) in same_sources(destinations, widening) {
            let (rule, all_seen) = merged.entry((protocol, key, destinations.clone())).or_insert_with(|| {
                let rule = Rule { sources, destinations: cover(&destinations), protocol, ports: Vec::new(), seen_sources: 0 };
                (rule, BTreeSet::new())
            });
            add_port(&mut rule.ports, protocol, port);
            all_seen.extend(seen);
        }
    }
    let mut rules: Vec<Rule> =
        merged.into_values().map(|(rule, seen)| Rule { seen_sources: seen.len() as u64, ..rule }).collect();
    let addresses = |prefixes: &[Prefix]| prefixes.first().map(|prefix| prefix.first().0);
    rules.sort_by_key(|rule| (rule.protocol, rule.ports.clone(), addresses(&rule.destinations), addresses(&rule.sources)));
    rules
}

/// Destinations that the same sources spoke to, together.
fn same_sources(destinations: BTreeMap<Address, BTreeSet<Address>>, widening: Option<Widening>) -> BySource {
    let mut groups = BySource::new();
    for (destination, seen) in destinations {
        // A rule speaks of one family; a flow has one anyhow.
        let sources = match widening {
            None => cover(&seen),
            Some(widening) => cover_widened(&seen, widening),
        };
        let key = sources.iter().map(|prefix| (prefix.first().0, prefix.bits())).collect();
        let (_, destinations, all_seen) = groups.entry(key).or_insert_with(|| (sources, BTreeSet::new(), BTreeSet::new()));
        destinations.insert(destination);
        all_seen.extend(seen);
    }
    groups
}

/// Ports come ascending.
fn add_port(ports: &mut Vec<(u16, u16)>, of: u8, port: u16) {
    if !matches!(of, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return;
    }
    match ports.last_mut() {
        Some((_, last)) if port.checked_sub(1) == Some(*last) => *last = port,
        _ => ports.push((port, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(source: &str, destination: &str, port: u16) -> Conversation {
        let address = |text: &str| text.parse().expect("a literal");
        Conversation { source: address(source), destination: address(destination), protocol: protocol::TCP, port }
    }

    fn texts(prefixes: &[Prefix]) -> Vec<String> {
        prefixes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_and_destinations_share_a_rule_when_their_sources_are_the_same() {
        let mut allowed = Vec::new();
        for source in ["192.0.2.4", "192.0.2.5"] {
            for destination in ["198.51.100.8", "198.51.100.9"] {
                allowed.extend([80, 443, 8000, 8001].map(|port| conversation(source, destination, port)));
            }
        }
        allowed.push(conversation("203.0.113.1", "198.51.100.8", 22));
        let rules = rules(&allowed, None);
        assert_eq!(rules.len(), 2);
        assert_eq!((texts(&rules[0].sources), rules[0].ports.clone()), (vec!["203.0.113.1/32".to_owned()], vec![(22, 22)]));
        assert_eq!(texts(&rules[1].sources), ["192.0.2.4/31"]);
        assert_eq!(texts(&rules[1].destinations), ["198.51.100.8/31"]);
        assert_eq!(rules[1].ports, [(80, 80), (443, 443), (8000, 8001)]);
        assert_eq!((rules[1].seen_sources, rules[1].permitted_sources()), (2, 2));
    }

    #[test]
    fn any_conversations_are_let_through_exactly_and_each_by_one_rule() {
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let base: Address = "192.0.2.0".parse().expect("a literal");
        for _ in 0..300 {
            let mut allowed = BTreeSet::new();
            for _ in 0..random(120) {
                let (source, destination) = (base.0 + u128::from(random(12)), base.0 + 64 + u128::from(random(4)));
                allowed.insert((source, destination, 440 + random(5) as u16));
            }
            let conversations: Vec<Conversation> = allowed
                .iter()
                .map(|&(source, destination, port)| Conversation {
                    source: Address(source),
                    destination: Address(destination),
                    protocol: protocol::TCP,
                    port,
                })
                .collect();
            let mut let_through = Vec::new();
            for rule in rules(&conversations, None) {
                let range = |prefix: &Prefix| prefix.first().0..=prefix.last().0;
                for source in rule.sources.iter().flat_map(range) {
                    for destination in rule.destinations.iter().flat_map(range) {
                        let ports = rule.ports.iter().flat_map(|&(first, last)| first..=last);
                        let_through.extend(ports.map(|port| (source, destination, port)));
                    }
                }
            }
            let_through.sort_unstable();
            assert_eq!(let_through, allowed.iter().copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn scans_one_way_traffic_and_blank_addresses_are_left_out_and_counted() {
        let mut seen = Seen::new("198.51.100.0/24".parse().expect("a literal"));
        let with = |verdict| Tally { verdict, ..Tally::default() };
        let once = conversation("192.0.2.1", "198.51.100.1", 443);
        for (conversation, verdict) in [
            (once, Verdict::Failed),
            (once, Verdict::Talked),
            (conversation("192.0.2.1", "198.51.100.1", 23), Verdict::Failed),
            (conversation("192.0.2.1", "198.51.100.1", 514), Verdict::OneWay),
            (Conversation { source: Address::NONE, ..once }, Verdict::Allowed),
            (conversation("192.0.2.1", "203.0.113.1", 80), Verdict::Talked),
        ] {
            seen.add(&conversation, &with(verdict)).expect("room");
        }
        let (allowed, left_out) = seen.allowed(false);
        assert_eq!(allowed, [once]);
        assert_eq!(left_out, LeftOut { failed: 1, one_way: 1, blank: 1 });
    }

    #[test]
    fn widening_says_how_many_addresses_it_lets_in() {
        let allowed = ["192.0.2.1", "192.0.2.9", "203.0.113.1"].map(|source| conversation(source, "198.51.100.1", 443));
        let wide = rules(&allowed, Some(Widening { v4: 24, v6: 64 }));
        assert_eq!(wide.len(), 1);
        assert_eq!(texts(&wide[0].sources), ["192.0.2.0/24", "203.0.113.1/32"]);
        assert_eq!((wide[0].seen_sources, wide[0].permitted_sources()), (3, 257));
    }
}
