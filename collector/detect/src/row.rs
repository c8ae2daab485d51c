//! The one view of a record that every detector reads, whoever made the record.
//!
//! Who opened a conversation was decided by the sensor. What is decided here is whether the opening came to something, because
//! a scan is known by what does not answer: [`Contact`].
//!
//! Silence counts only where an answer would have been seen:
//!
//! | record | what it lets conclude |
//! | --- | --- |
//! | half of a flow that was seen [one-sided](FlowRecord::one_sided) | TCP by the initiator's own packets: whoever is answered acknowledges. Of UDP, SCTP and ICMP, and at a flow's end, nothing |
//! | [sampled](FlowRecord::sampling_population) | a refusal that was seen; nothing from what was not |
//! | [aggregate](Row::aggregate) | nothing: it stands for many flows, and is shown only to [rules that add up](crate::Detector::adds_up) |
//!
//! Counters of a sampled record are multiplied by the population: an estimate, which is right on average. The store keeps what was counted.

use std::sync::Arc;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FORWARD, FlowRecord, FlowState, Mac, REVERSE, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::roles::{RoleSet, Roles};
use crate::sites::{FlowClass, Sites};

/// What a record says about its source reaching out to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The source knocked and no conversation came of it: no answer, a refusal, or an answer that the source hung up on unused.
    Probe,
    /// Anything else: a conversation, a later slice of one, an answer to somebody else's question, or too early to say.
    Other,
}

/// What a record adds to those of the same flow before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Announces the flow; what was counted follows.
    Announcement,
    /// Carries counters.
    Slice,
    /// Counts nothing: only says that a flow, long silent and all counted, is over, at the time of its last packet; or announces the
    /// answering half of a flow that was seen one-sided, whose other half is what announces the flow.
    Tail,
}

/// What came of a row's opening (ASIM `EventResult`; detection.md names the cases).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Too early or too little to say: a lone announcement, a datagram nobody had to answer, a stream seen from the middle.
    #[default]
    Unknown,
    /// The other side answered and did not refuse.
    Success,
    /// Policy denied it.
    Denied,
    /// Nothing came back.
    NoReply,
    /// The responder refused with RST.
    Reset,
    /// A router, or the host itself, answered that nobody is there: ICMP destination unreachable (RFC 792, RFC 4443 §3.1).
    Unreachable,
}

impl Outcome {
    /// Whether it is one of the failures.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Denied | Self::NoReply | Self::Reset | Self::Unreachable)
    }
}

/// One record as the rules see it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who saw it: a sensor, or the network interface of an Azure flow log.
    pub observer: Arc<str>,
    /// Who made it. Rules do not ask; they may tell.
    pub origin: Origin,
    /// Event start: the earliest time in the record. Windows are cut on this time.
    pub at: Timestamp,
    /// When it was taken in where that is said (Traffic Analytics), else [`at`](Self::at).
    pub ingested: Timestamp,
    /// Latest time in the record.
    pub end: Timestamp,
    /// flowId of the record: the same in all rows of one flow of one sensor; 0 in a cloud's.
    pub flow: u64,
    /// The initiator; none where Traffic Analytics leaves it blank.
    pub source: Address,
    /// The responder; none where Traffic Analytics leaves it blank.
    pub destination: Address,
    /// Port of the initiator; 0 where the protocol has none or the log does not say.
    pub source_port: u16,
    /// Port of the responder; 0 where the protocol has none.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Packets since the previous record of the flow, `[forward, reverse]`; an estimate where packets were sampled.
    pub packets: [u64; 2],
    /// Octets since the previous record of the flow, `[forward, reverse]`; an estimate where packets were sampled.
    pub octets: [u64; 2],
    /// TCP control bits, `[forward, reverse]`: OR over the packets of this record. 0 for other protocols and for a cloud's rows.
    pub flags: [u16; 2],
    /// TCP control bits of the flow's first packet each way: what kind of probe it was.
    pub initial_flags: [u16; 2],
    /// Type · 256 + code of the initiator's first ICMP packet; 0 for other protocols.
    pub icmp: u16,
    /// Type · 256 + code of the last ICMP error that quoted what the initiator sent; 0 when there was none.
    pub icmp_error: u16,
    /// MAC addresses of initiator and responder in the first frame; zero where the log has none. That of a router, for a host behind it.
    pub macs: [Mac; 2],
    /// Where in the flow's life the record stands.
    pub state: FlowState,
    /// What it adds to earlier records of the flow.
    pub part: Part,
    /// Whether the source came away empty-handed.
    pub contact: Contact,
    /// What came of the opening.
    pub outcome: Outcome,
    /// What policy decided; unknown for a sensor.
    pub action: Action,
    /// Which way, as the log says, or by the sites.
    pub direction: Direction,
    /// Whether the initiator was heard in this record: else it only is who was answered, perhaps in somebody else's place.
    pub asked: bool,
    /// Whether the other end was heard at any time in the flow's life so far.
    pub answered: bool,
    /// Whether silence of the other end may be the tap's and not the host's: half of a flow that is seen one-sided, or sampled packets.
    pub half_heard: bool,
    /// Where the two ends belong.
    pub class: FlowClass,
    /// What the initiator is known to be: configured, or learned.
    pub source_roles: RoleSet,
    /// What the responder is known to be.
    pub destination_roles: RoleSet,
    /// How many flows it stands for: 1, or more in a folded row of a cloud. 0 for the answering half of a flow that was seen one-sided,
    /// which its other half counts, and for an aggregate, of which nobody knows.
    pub events: u32,
    /// Whether it stands for all flows between two prefixes that had no place in the sensor's table: source and destination are then the
    /// first addresses of these. A prefix may be as long as an address, and mean one host.
    pub aggregate: bool,
    /// How many leading bits of the source count, where it is a prefix and no host.
    pub source_prefix: Option<u8>,
    /// How many leading bits of the destination count, where it is a prefix and no host.
    pub destination_prefix: Option<u8>,
    /// The cloud's names around the flow; none for a sensor.
    pub context: Option<Arc<CloudContext>>,
    /// The platform's own traffic (load-balancer probes and the like): no fixed rule counts it.
    pub platform: bool,
}

impl Row {
    /// The view of `record`; none for a layer-2 flow and for one without a time or before 1970, which no rule can place.
    pub fn of(observer: &Arc<str>, record: &FlowRecord, sites: &Sites, roles: &Roles) -> Option<Self> {
        let at = record.first();
        let cloud = record.cloud.as_deref();
        if at <= Timestamp::NONE || record.is_layer2() {
            return None;
        }
        let (class, direction) = sites.place(record.source, record.destination);
        let said = cloud.map(|cloud| cloud.direction).filter(|said| *said != Direction::Unknown);
        let (contact, outcome) = judge(record);
        let population = u64::from(record.sampling_population.max(1));
        let aggregate = is_aggregate(record);
        Some(Self {
            observer: observer.clone(),
            origin: record.origin(),
            at,
            ingested: cloud.map(|cloud| cloud.ingested).filter(|ingested| ingested.is_some()).unwrap_or(at),
            end: record.last().max(at),
            flow: record.flow_id,
            source: record.source,
            destination: record.destination,
            source_port: record.source_port,
            port: record.destination_port,
            protocol: record.protocol,
            packets: record.packets.map(|packets| packets.saturating_mul(population)),
            octets: record.octets.map(|octets| octets.saturating_mul(population)),
            flags: record.tcp_flags,
            initial_flags: record.initial_tcp_flags,
            icmp: if record.is_icmp() { record.icmp_type_code[FORWARD] } else { 0 },
            icmp_error: record.icmp_error[FORWARD],
            macs: [record.source_mac, record.destination_mac],
            state: record.state,
            part: part(record),
            asked: spoke(record, FORWARD),
            answered: record.answered || spoke(record, REVERSE),
            half_heard: is_half(record) || record.sampling_population > 1,
            source_roles: roles.of(record.source, at),
            destination_roles: roles.of(record.destination, at),
            contact,
            outcome,
            action: cloud.map_or(Action::Unknown, |cloud| cloud.action),
            direction: said.unwrap_or(direction),
            class,
            events: if aggregate || is_answering_half(record) { 0 } else { cloud.map_or(1, |cloud| cloud.events.max(1)) },
            aggregate,
            source_prefix: prefix(record, FORWARD),
            destination_prefix: prefix(record, REVERSE),
            context: cloud.map(|cloud| cloud.context.clone()),
            platform: cloud.is_some_and(|cloud| cloud.context.is_platform()),
        })
    }

    /// Whether it failed as ASIM's parsers say of a cloud's flow log (denied is Failure, allowed is Success), or as the sensor saw.
    pub const fn is_asim_failure(&self) -> bool {
        match self.origin {
            Origin::Sensor => self.outcome.is_failure(),
            _ => matches!(self.action, Action::Deny),
        }
    }

    /// Octets of both directions since the previous record of the flow.
    pub const fn octets_total(&self) -> u64 {
        self.octets[FORWARD].saturating_add(self.octets[REVERSE])
    }
}

/// Whether many flows are summed up in it (RFC 7015).
fn is_aggregate(record: &FlowRecord) -> bool {
    record.prefix_lengths != [0; 2]
}

/// How many bits of that end of an aggregate count; none if all do.
fn prefix(record: &FlowRecord, end: usize) -> Option<u8> {
    let all = if record.source.as_v4().is_some() { 32 } else { 128 };
    Some(record.prefix_lengths[end]).filter(|&bits| is_aggregate(record) && bits < all)
}

/// Whether the other direction may be in another record, which the collector has not found.
const fn is_half(record: &FlowRecord) -> bool {
    record.one_sided && !record.answered
}

fn is_answering_half(record: &FlowRecord) -> bool {
    is_half(record) && !spoke(record, FORWARD)
}

fn part(record: &FlowRecord) -> Part {
    match record.state {
        FlowState::Begin if is_answering_half(record) => Part::Tail,
        // In Azure's logs every tuple is a row of its own, an empty one too.
        FlowState::Continue | FlowState::End if record.cloud.is_some() => Part::Slice,
        FlowState::Begin => Part::Announcement,
        FlowState::Continue | FlowState::End if record.packets == [0, 0] && record.octets == [0, 0] => Part::Tail,
        FlowState::Continue | FlowState::End => Part::Slice,
    }
}

/// What a cloud's log lets conclude: a denial is told, an end without an answer is silence, the rest had its way or cannot be known.
fn cloud_outcome(cloud: &Cloud, record: &FlowRecord) -> Outcome {
    match (cloud.action, record.state) {
        (Action::Deny, _) => Outcome::Denied,
        _ if record.packets[REVERSE] > 0 => Outcome::Success,
        // Without a counter for the question, the answer's was not kept either (stateless rules, version 1).
        (_, FlowState::End) if record.packets[FORWARD] > 0 => Outcome::NoReply,
        _ => Outcome::Unknown,
    }
}

/// What came of the opening, for the rules that count contacts and for those that count results.
fn judge(record: &FlowRecord) -> (Contact, Outcome) {
    if let Some(cloud) = &record.cloud {
        let outcome = cloud_outcome(cloud, record);
        return (if outcome.is_failure() { Contact::Probe } else { Contact::Other }, outcome);
    }
    if is_aggregate(record) {
        return (Contact::Other, Outcome::Unknown);
    }
    let contact = contact(record);
    (contact, outcome(record, contact))
}

fn spoke(record: &FlowRecord, way: usize) -> bool {
    record.start[way].is_some() || record.packets[way] > 0
}

/// Of a sensor's record.
fn outcome(record: &FlowRecord, contact: Contact) -> Outcome {
    let answered = spoke(record, REVERSE);
    let [forward, reverse] = record.tcp_flags;
    match (record.protocol, contact) {
        _ if !spoke(record, FORWARD) => Outcome::Unknown,
        _ if is_unreachable(record) => Outcome::Unreachable,
        (protocol::TCP, _) if reverse & tcp::SYN != 0 => Outcome::Success,
        (protocol::TCP, Contact::Probe) if answered => Outcome::Reset,
        (protocol::TCP, Contact::Probe) => Outcome::NoReply,
        // A half-seen connection: the initiator speaks on, so somebody answers it elsewhere.
        (protocol::TCP, Contact::Other) if forward & reverse & tcp::ACK != 0 => Outcome::Success,
        // The initiator acknowledges what it was answered in the other half.
        (protocol::TCP, Contact::Other) if is_half(record) && opened(record) && forward & tcp::ACK != 0 => Outcome::Success,
        (protocol::TCP, Contact::Other) => Outcome::Unknown,
        _ if answered => Outcome::Success,
        // A datagram need not be answered.
        (protocol::UDP, _) | (_, Contact::Other) => Outcome::Unknown,
        (_, Contact::Probe) => Outcome::NoReply,
    }
}

/// Of a sensor's record.
fn contact(record: &FlowRecord) -> Contact {
    // A source from which nothing came did nothing: the answers to a forged address (backscatter) end here.
    if !spoke(record, FORWARD) {
        return Contact::Other;
    }
    // Silence is judged when the sensor has waited: half a second for an announcement, the idle timeout at the end. A slice may
    // be cut anywhere, even between a question and its answer.
    let silence = !spoke(record, REVERSE) && record.state != FlowState::Continue && hears_answers(record);
    let kind = record.icmp_type_code[FORWARD] >> 8;
    let knocked = match record.protocol {
        protocol::TCP => knocked_tcp(record, spoke(record, REVERSE), silence),
        _ if is_unreachable(record) => true,
        // An honest datagram may be answered late, so an announcement is too early.
        protocol::UDP | protocol::SCTP => silence && record.state == FlowState::End,
        // Echo, timestamp and mask requests (RFC 792, RFC 950); echo requests (RFC 4443).
        protocol::ICMP => silence && matches!(kind, 8 | 13 | 17),
        protocol::ICMPV6 => silence && kind == 128,
        _ => false,
    };
    if knocked { Contact::Probe } else { Contact::Other }
}

/// Whether somebody answered, in the other end's place, that it cannot be reached.
fn is_unreachable(record: &FlowRecord) -> bool {
    let kind = if record.source.as_v4().is_some() { 3 } else { 1 };
    record.icmp_error[FORWARD] >> 8 == kind && !record.answered && !spoke(record, REVERSE)
}

/// Whether an answer would have been seen, or in TCP at least what its initiator made of it.
fn hears_answers(record: &FlowRecord) -> bool {
    let half = is_half(record) && (record.protocol != protocol::TCP || part(record) == Part::Tail);
    !half && record.sampling_population <= 1
}

/// Whether the initiator's first packet was the SYN of a TCP connection.
const fn opened(record: &FlowRecord) -> bool {
    record.initial_tcp_flags[FORWARD] & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Whether a TCP opening came to nothing, from the flags of both sides (RFC 9293 §3.10).
///
/// Flags, not counters: an announcement has no counters yet, and a scan should be seen in its first second.
fn knocked_tcp(record: &FlowRecord, answered: bool, silence: bool) -> bool {
    let opening = record.initial_tcp_flags[FORWARD];
    let [forward, reverse] = record.tcp_flags;
    // A stream that begins with RST or SYN-ACK answers somebody else; one that begins with ACK was under way before we looked.
    if opening & (tcp::RST | tcp::ACK) != 0 {
        return false;
    }
    let refused = reverse & tcp::RST != 0 && reverse & tcp::SYN == 0;
    if opening & tcp::SYN == 0 {
        // FIN, NULL and XMAS probes: nothing honest begins like this.
        return silence || refused;
    }
    if forward & tcp::SYN == 0 {
        // A later slice of a flow that was judged when it began; but a tail tells the answer for the whole flow.
        return silence && part(record) == Part::Tail;
    }
    if !answered {
        // An initiator that goes on to acknowledge was answered on a path that this tap does not see.
        return silence && forward & (tcp::ACK | tcp::PSH) == 0;
    }
    let hung_up = forward & (tcp::RST | tcp::FIN) != 0 && (forward | reverse) & tcp::PSH == 0 && record.sampling_population <= 1;
    refused || hung_up
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u16 = tcp::SYN;
    const ACK: u16 = tcp::ACK;
    const RST: u16 = tcp::RST;
    const PSH: u16 = tcp::PSH;
    const FIN: u16 = tcp::FIN;

    fn tcp_contact(initial: u16, forward: u16, reverse: Option<u16>) -> Contact {
        let at = Timestamp::from_secs(1);
        contact(&FlowRecord {
            protocol: protocol::TCP,
            state: FlowState::Begin,
            start: [at, if reverse.is_some() { at } else { Timestamp::NONE }],
            initial_tcp_flags: [initial, reverse.unwrap_or(0)],
            tcp_flags: [forward, reverse.unwrap_or(0)],
            ..FlowRecord::default()
        })
    }

    #[test]
    fn a_tcp_opening_is_judged_by_its_flags() {
        for (what, initial, forward, reverse, expected) in [
            ("no answer", SYN, SYN, None, Contact::Probe),
            ("closed port", SYN, SYN, Some(RST | ACK), Contact::Probe),
            ("half-open scan of an open port", SYN, SYN | RST, Some(SYN | ACK), Contact::Probe),
            ("connect scan of an open port", SYN, SYN | ACK | FIN, Some(SYN | ACK | FIN), Contact::Probe),
            ("XMAS at a silent port", FIN | PSH | tcp::URG, FIN | PSH | tcp::URG, None, Contact::Probe),
            ("NULL at a closed port", 0, 0, Some(RST | ACK), Contact::Probe),
            ("just connected", SYN, SYN | ACK, Some(SYN | ACK), Contact::Other),
            ("a conversation", SYN, SYN | ACK | PSH | FIN, Some(SYN | ACK | PSH | FIN), Contact::Other),
            ("server closes without a word", SYN, SYN | ACK, Some(SYN | ACK | RST), Contact::Other),
            ("only one side of a conversation seen", SYN, SYN | ACK | PSH, None, Contact::Other),
            ("the last slice of an old connection", SYN, ACK | RST, Some(ACK), Contact::Other),
            ("seen from the middle", ACK, ACK | PSH, Some(ACK), Contact::Other),
            ("backscatter, SYN-ACK", SYN | ACK, SYN | ACK, None, Contact::Other),
            ("backscatter, RST", RST, RST, None, Contact::Other),
        ] {
            assert_eq!(tcp_contact(initial, forward, reverse), expected, "{what}");
        }
    }

    #[test]
    fn silence_counts_once_the_sensor_has_waited_for_an_answer() {
        let at = Timestamp::from_secs(59);
        let record = |protocol, state, packets| FlowRecord {
            protocol,
            state,
            packets: [packets, 0],
            start: [at, Timestamp::NONE],
            initial_tcp_flags: [SYN, 0],
            tcp_flags: [if packets > 0 || state == FlowState::Begin { SYN } else { 0 }, 0],
            icmp_type_code: [0x0800, 0],
            ..FlowRecord::default()
        };
        for (what, protocol, state, packets, expected) in [
            ("half a second after the SYN", protocol::TCP, FlowState::Begin, 0, Contact::Probe),
            ("a slice cut at the full minute", protocol::TCP, FlowState::Continue, 1, Contact::Other),
            ("the tail after that slice", protocol::TCP, FlowState::End, 0, Contact::Probe),
            ("half a second after a datagram", protocol::UDP, FlowState::Begin, 0, Contact::Other),
            ("the end of its flow", protocol::UDP, FlowState::End, 1, Contact::Probe),
            ("half a second after a ping", protocol::ICMP, FlowState::Begin, 0, Contact::Probe),
        ] {
            assert_eq!(contact(&record(protocol, state, packets)), expected, "{what}");
        }
    }

    /// The initiator's half, with no other.
    fn half(protocol: u8, state: FlowState, flags: u16, packets: u64) -> FlowRecord {
        FlowRecord {
            protocol,
            state,
            one_sided: true,
            packets: [packets, 0],
            start: [Timestamp::from_secs(1), Timestamp::NONE],
            initial_tcp_flags: [if protocol == protocol::TCP { SYN } else { 0 }, 0],
            tcp_flags: [flags, 0],
            icmp_type_code: [0x0800, 0],
            ..FlowRecord::default()
        }
    }

    #[test]
    fn of_half_a_flow_only_what_its_initiator_did_is_held_against_it() {
        use Outcome::{NoReply, Success, Unknown};
        for (what, record, expected) in [
            ("SYN, and no acknowledgement", half(protocol::TCP, FlowState::Begin, SYN, 0), (Contact::Probe, NoReply)),
            ("half-open scan of an open port", half(protocol::TCP, FlowState::End, SYN | RST, 2), (Contact::Probe, NoReply)),
            ("a conversation", half(protocol::TCP, FlowState::Begin, SYN | ACK | PSH, 0), (Contact::Other, Success)),
            ("its last slice", half(protocol::TCP, FlowState::End, ACK | FIN, 2), (Contact::Other, Success)),
            ("the end of a long silence", half(protocol::TCP, FlowState::End, 0, 0), (Contact::Other, Unknown)),
            ("a question by datagram", half(protocol::UDP, FlowState::End, 0, 1), (Contact::Other, Unknown)),
            ("a ping", half(protocol::ICMP, FlowState::Begin, 0, 0), (Contact::Other, Unknown)),
        ] {
            assert_eq!(judge(&record), expected, "{what}");
            let both = FlowRecord { one_sided: false, ..record.clone() };
            if record.protocol != protocol::TCP {
                assert_eq!(judge(&both).0, Contact::Probe, "{what}, where an answer would have been seen");
            }
        }
    }

    #[test]
    fn the_answering_half_is_no_flow_of_its_own_but_its_octets_count() {
        let answer = FlowRecord {
            start: [Timestamp::NONE, Timestamp::from_secs(1)],
            source: Address::from_v4([192, 0, 2, 1]),
            destination: Address::from_v4([192, 0, 2, 2]),
            octets: [0, 700],
            packets: [0, 1],
            ..half(protocol::TCP, FlowState::Continue, 0, 0)
        };
        let row = |record: &FlowRecord| Row::of(&Arc::from("tap"), record, &Sites::default(), &Roles::default()).unwrap();
        let slice = row(&answer);
        assert_eq!((slice.part, slice.events, slice.octets), (Part::Slice, 0, [0, 700]));
        let announced = FlowRecord { state: FlowState::Begin, packets: [0; 2], octets: [0; 2], ..answer };
        assert_eq!(row(&announced).part, Part::Tail);
        assert_eq!(row(&FlowRecord { answered: true, ..announced }).part, Part::Announcement);
    }

    #[test]
    fn what_sampling_left_out_is_held_against_nobody_and_its_volume_is_estimated() {
        let at = Timestamp::from_secs(1);
        let sampled = |flags: [u16; 2]| FlowRecord {
            sampling_population: 16,
            one_sided: false,
            start: [at, if flags[1] == 0 { Timestamp::NONE } else { at }],
            tcp_flags: flags,
            octets: [100, 0],
            source: Address::from_v4([192, 0, 2, 1]),
            destination: Address::from_v4([192, 0, 2, 2]),
            ..half(protocol::TCP, FlowState::End, 0, 3)
        };
        assert_eq!(contact(&sampled([SYN, 0])), Contact::Other, "the answer may be among those left out");
        assert_eq!(contact(&sampled([SYN | FIN | ACK, SYN | ACK])), Contact::Other, "and so may the data");
        assert_eq!(contact(&sampled([SYN, RST | ACK])), Contact::Probe, "a refusal was seen");
        let row = Row::of(&Arc::from("tap"), &sampled([SYN, 0]), &Sites::default(), &Roles::default()).unwrap();
        assert_eq!((row.packets, row.octets), ([48, 0], [1600, 0]));
    }

    #[test]
    fn a_source_from_which_nothing_came_is_not_blamed() {
        let at = Timestamp::from_secs(1);
        let record = FlowRecord {
            protocol: protocol::UDP,
            start: [Timestamp::NONE, at],
            packets: [0, 1],
            source_port: 5353,
            ..FlowRecord::default()
        };
        assert_eq!(contact(&record), Contact::Other);
    }
}
