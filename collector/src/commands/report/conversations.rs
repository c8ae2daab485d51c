//! Rows of the store as conversations: who talked to whom about what, each counted once however many saw it.
//!
//! # What two observers both saw
//! A flow inside Azure is logged at its source's interface and at its destination's, by the network security groups of subnet and
//! interface, and a sensor may see it besides. Adding these up would double it. So of each conversation, in each window of time,
//! the rows of one observer count: one that has octets before one that has none, then one that says the flow was inbound,
//! then the one with most octets, then the first by name. Whether a conversation came about is asked of all of them.
//! An observer is a sensor, or an interface together with the flow log and the resource that logged, and the kind of log: what was
//! imported as flow log and as Traffic Analytics table counts once too.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::{Action, Direction, Origin};
use spanwatch_common::flow::FlowState;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::detect::Row;
use crate::detect::row::{Contact, Outcome};

/// Conversations held for one window. With more, the window is cut short, and what was seen twice across the cut counts twice.
pub(super) const CONVERSATIONS_MAX: usize = 2_000_000;

/// Who talked to whom about what. Source ports differ from flow to flow and say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Conversation {
    /// Who opened it.
    pub(super) source: Address,
    /// Who was spoken to.
    pub(super) destination: Address,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Port of the destination; 0 where the protocol has none.
    pub(super) port: u16,
}

/// What was counted of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Octets, `[from the source, from the destination]`.
    pub(super) octets: [u64; 2],
    /// Flows that were refused, denied or not answered.
    pub(super) failed: u64,
    /// Earliest time; none when nothing was counted.
    pub(super) first: Timestamp,
    /// Latest time.
    pub(super) last: Timestamp,
    /// What came of it, whoever saw it.
    pub(super) verdict: Verdict,
    /// Rows that begin a flow.
    pub(super) begun: u64,
    /// Rows that end one.
    pub(super) ended: u64,
    /// Whether a row says that the flow came in to who logged it.
    pub(super) inbound: bool,
}

/// What came of a conversation; the greatest that anybody saw, at any time, holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Somebody spoke, nobody answered, and nobody had to: datagrams one way, half of a conversation, Azure's first sight of a flow
    /// that nothing more was heard of and on which policy has not decided.
    #[default]
    OneWay,
    /// Policy allowed it, and the log counts no answers (NSG flow logs of version 1, stateless rules).
    Allowed,
    /// Denied, refused or met with silence, and never otherwise: what a scan leaves behind.
    Failed,
    /// The other side answered, and something was said.
    Talked,
}

impl Verdict {
    /// The word used in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OneWay => "one-way",
            Self::Allowed => "allowed",
            Self::Failed => "failed",
            Self::Talked => "talked",
        }
    }
}

impl Tally {
    /// Octets of both directions.
    pub(super) const fn octets_total(&self) -> u64 {
        self.octets[0].saturating_add(self.octets[1])
    }

    /// How many flows it was at least: those that began or those that ended in the period, whichever are more.
    pub(super) fn flows(&self) -> u64 {
        self.begun.max(self.ended).max(1)
    }

    /// Adds what was counted of the same thing elsewhere or at another time.
    pub(super) fn add(&mut self, other: &Self) {
        for way in 0..2 {
            self.octets[way] = self.octets[way].saturating_add(other.octets[way]);
        }
        self.failed += other.failed;
        self.begun += other.begun;
        self.ended += other.ended;
        self.first = if self.first.is_some() { self.first.min(other.first) } else { other.first };
        self.last = self.last.max(other.last);
        self.verdict = self.verdict.max(other.verdict);
        self.inbound |= other.inbound;
    }

    fn of(row: &Row, last: Timestamp) -> Self {
        let events = u64::from(row.events);
        let denied = row.outcome == Outcome::Denied;
        let failed = denied || row.outcome.is_failure() && row.state == FlowState::End;
        Self {
            octets: row.octets,
            failed: if failed { events } else { 0 },
            first: row.at,
            last: last.max(row.at),
            verdict: verdict(row),
            begun: if row.state == FlowState::Begin { events } else { 0 },
            ended: if row.state == FlowState::End { events } else { 0 },
            inbound: row.direction == Direction::Inbound,
        }
    }
}

fn verdict(row: &Row) -> Verdict {
    match (row.outcome, row.contact) {
        // An open port that a half-open scan found is no conversation.
        (Outcome::Success, Contact::Probe) => Verdict::Failed,
        (Outcome::Success, Contact::Other) => Verdict::Talked,
        (outcome, _) if outcome.is_failure() => Verdict::Failed,
        _ if row.action == Action::Allow => Verdict::Allowed,
        _ => Verdict::OneWay,
    }
}

/// Name, flow log, resource, kind of log.
type Observer = (Arc<str>, Arc<str>, Arc<str>, Origin);

/// Gathers rows, in the order of time, into conversations per window.
pub(super) struct Gathering {
    window: Duration,
    open: Option<Timestamp>,
    seen: HashMap<Conversation, Vec<(u32, Tally)>>,
    /// As many as there are sensors and logging interfaces.
    observers: HashMap<Observer, u32>,
    names: Vec<Observer>,
    cut: u64,
}

impl Gathering {
    /// For windows of this length, on the grid of the epoch.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, open: None, seen: HashMap::new(), observers: HashMap::new(), names: Vec::new(), cut: 0 }
    }

    /// Counts `row`, whose flow was last seen at `last`. Hands conversations of the window before to `close` when it is over.
    pub(super) fn observe(&mut self, row: &Row, last: Timestamp, close: &mut impl FnMut(Timestamp, Conversation, Tally)) {
        let window = row.at.floor(self.window);
        if self.open.is_some_and(|open| open != window) {
            self.finish(close);
        } else if self.seen.len() >= CONVERSATIONS_MAX {
            self.cut += 1;
            self.finish(close);
        }
        self.open = Some(window);
        let observer = self.observer(row);
        let conversation =
            Conversation { source: row.source, destination: row.destination, protocol: row.protocol, port: row.port };
        let tally = Tally::of(row, last);
        let seen = self.seen.entry(conversation).or_default();
        match seen.iter_mut().find(|(by, _)| *by == observer) {
            Some((_, sum)) => sum.add(&tally),
            None => seen.push((observer, tally)),
        }
    }

    /// Hands over what is left.
    pub(super) fn finish(&mut self, close: &mut impl FnMut(Timestamp, Conversation, Tally)) {
        let Some(window) = self.open.take() else { return };
        for (conversation, seen) in self.seen.drain() {
            let verdict = seen.iter().map(|(_, tally)| tally.verdict).max().unwrap_or_default();
            let rank = |(by, tally): &&(u32, Tally)| {
                let name = self.names.get(*by as usize);
                (tally.octets_total() > 0, tally.inbound, tally.octets_total(), Reverse(name))
            };
            if let Some((_, tally)) = seen.iter().max_by_key(rank) {
                close(window, conversation, Tally { verdict, ..*tally });
            }
        }
    }

    /// Windows that were cut short because they held too many conversations.
    pub(super) const fn cut(&self) -> u64 {
        self.cut
    }

    fn observer(&mut self, row: &Row) -> u32 {
        let (flow_log, resource) = match &row.context {
            Some(context) => (context.flow_log.clone(), context.resource.clone()),
            None => Default::default(),
        };
        let name = (row.observer.clone(), flow_log, resource, row.origin);
        if let Some(&known) = self.observers.get(&name) {
            return known;
        }
        let new = self.names.len() as u32;
        self.names.push(name.clone());
        self.observers.insert(name, new);
        new
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::cloud::{Cloud, CloudContext};
    use spanwatch_common::flow::{FlowRecord, protocol, tcp};

    use super::*;
    use crate::detect::Sites;

    const AT: i64 = 1_763_719_200;

    /// A TCP conversation that ended, as Azure tells it.
    fn azure(observer: &str, direction: Direction, secs: i64, octets: [u64; 2]) -> FlowRecord {
        let context = CloudContext { observer: observer.into(), ..CloudContext::default() };
        let action = Action::Allow;
        FlowRecord {
            cloud: Some(Box::new(Cloud {
                origin: Origin::VnetV4,
                action,
                direction,
                context: context.into(),
                ..Cloud::default()
            })),
            octets,
            packets: octets.map(|octets| octets.div_ceil(100)),
            start: [Timestamp::from_secs(AT + secs); 2],
            end: [Timestamp::from_secs(AT + secs + 5); 2],
            ..flow("192.0.2.1", "198.51.100.7", 443)
        }
    }

    fn flow(source: &str, destination: &str, port: u16) -> FlowRecord {
        FlowRecord {
            source: source.parse().expect("a literal"),
            destination: destination.parse().expect("a literal"),
            destination_port: port,
            protocol: protocol::TCP,
            start: [Timestamp::from_secs(AT); 2],
            ..FlowRecord::default()
        }
    }

    fn gather(rows: &[(&str, FlowRecord)]) -> Vec<(Timestamp, Conversation, Tally)> {
        let mut gathering = Gathering::new(Duration::from_secs(3_600));
        let mut found = Vec::new();
        let mut close = |window, conversation, tally| found.push((window, conversation, tally));
        for (observer, record) in rows {
            let row = Row::of(&Arc::from(*observer), record, &Sites::default(), &crate::detect::Roles::default()).expect("a row");
            gathering.observe(&row, record.last(), &mut close);
        }
        gathering.finish(&mut close);
        found.sort_by_key(|(window, conversation, _)| (*window, *conversation));
        found
    }

    #[test]
    fn what_both_ends_saw_counts_once_as_the_inbound_side_saw_it() {
        let found = gather(&[
            ("nic-a", azure("nic-a", Direction::Outbound, 0, [1_000, 9_001])),
            ("nic-b", azure("nic-b", Direction::Inbound, 0, [1_000, 9_000])),
            ("nic-b", azure("nic-b", Direction::Inbound, 60, [500, 100])),
        ]);
        assert_eq!(found.len(), 1);
        let tally = found[0].2;
        assert_eq!((tally.octets, tally.flows()), ([1_500, 9_100], 2));
        assert_eq!((tally.first, tally.last), (Timestamp::from_secs(AT), Timestamp::from_secs(AT + 65)));
    }

    #[test]
    fn the_side_that_counted_goes_before_the_inbound_side_that_did_not() {
        let found = gather(&[
            ("nic-a", azure("nic-a", Direction::Outbound, 0, [1_000, 9_000])),
            ("nic-b", azure("nic-b", Direction::Inbound, 0, [0, 0])),
        ]);
        assert_eq!(found[0].2.octets, [1_000, 9_000]);
        let hours = gather(&[
            ("nic-a", azure("nic-a", Direction::Outbound, 0, [1_000, 0])),
            ("nic-b", azure("nic-b", Direction::Inbound, 3_600, [7, 7])),
        ]);
        assert_eq!(
            hours.iter().map(|(_, _, tally)| tally.octets_total()).collect::<Vec<_>>(),
            [1_000, 14],
            "each hour by itself"
        );
    }

    #[test]
    fn what_came_of_a_conversation_is_told_from_scans() {
        let sensor = |forward, reverse: Option<u16>| FlowRecord {
            start: [Timestamp::from_secs(AT), if reverse.is_some() { Timestamp::from_secs(AT) } else { Timestamp::NONE }],
            initial_tcp_flags: [tcp::SYN, reverse.unwrap_or(0)],
            tcp_flags: [forward, reverse.unwrap_or(0)],
            packets: [3, u64::from(reverse.is_some()) * 2],
            ..flow("192.0.2.1", "198.51.100.7", 22)
        };
        let denied = || {
            let mut record = azure("nic-b", Direction::Inbound, 0, [0, 0]);
            record.cloud.as_mut().expect("azure").action = Action::Deny;
            record
        };
        let (syn, ack, psh, rst) = (tcp::SYN, tcp::ACK, tcp::PSH, tcp::RST);
        let udp = FlowRecord {
            protocol: protocol::UDP,
            start: [Timestamp::from_secs(AT), Timestamp::NONE],
            packets: [1, 0],
            ..flow("192.0.2.1", "198.51.100.7", 514)
        };
        for (what, record, expected) in [
            ("a conversation", sensor(syn | ack | psh, Some(syn | ack | psh)), Verdict::Talked),
            ("a closed port", sensor(syn, Some(rst | ack)), Verdict::Failed),
            ("a half-open scan of an open port", sensor(syn | rst, Some(syn | ack)), Verdict::Failed),
            ("silence", sensor(syn, None), Verdict::Failed),
            ("denied", denied(), Verdict::Failed),
            ("answered in Azure", azure("nic-b", Direction::Inbound, 0, [100, 100]), Verdict::Talked),
            ("allowed without counters", azure("nic-b", Direction::Inbound, 0, [0, 0]), Verdict::Allowed),
            ("a datagram", udp, Verdict::OneWay),
        ] {
            assert_eq!(gather(&[("x", record)])[0].2.verdict, expected, "{what}");
        }
        let both = gather(&[("nic-a", azure("nic-a", Direction::Outbound, 0, [0, 0])), ("nic-b", denied())]);
        assert_eq!(both[0].2.verdict, Verdict::Failed, "allowed at one end, denied at the other");
    }
}
