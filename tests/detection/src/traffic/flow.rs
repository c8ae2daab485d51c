//! A conversation said in a line, and the records that a sensor makes of it: Begin half a second after its first packet, Continue at
//! each full minute, End when its timeout has passed (the sensor's defaults).

use std::time::Duration;

use spanwatch_common::flow::{BiflowDirection, FlowEndReason, FlowRecord, FlowState, Mac, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

const BEGIN_AFTER: Duration = Duration::from_millis(500);
const SLICE: Duration = Duration::from_secs(60);
const ROUND_TRIP: Duration = Duration::from_millis(2);
const TALK: u16 = tcp::SYN | tcp::ACK | tcp::PSH;

/// How a conversation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Both speak; TCP is opened and closed as it should be.
    Talk,
    /// Nobody answers.
    Silent,
    /// TCP is reset; of the others, ICMP says that nobody is there.
    Refused,
    /// SYN, SYN and ACK, RST: a port that is found open, and left.
    HungUp,
    /// One TCP packet with these control bits, reset.
    BareReset(u16),
    /// One TCP packet with these control bits, unanswered.
    Bare(u16),
    /// Answers to what somebody else asked in the initiator's name; with these control bits in TCP.
    Backscatter(u16),
}

/// A conversation.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// Its first packet.
    pub(crate) at: Timestamp,
    pub(crate) source: Address,
    pub(crate) source_port: u16,
    pub(crate) destination: Address,
    pub(crate) port: u16,
    pub(crate) protocol: u8,
    pub(crate) course: Course,
    /// From the first packet to the last.
    pub(crate) lasts: Duration,
    /// By both, over all its life.
    pub(crate) packets: [u64; 2],
    pub(crate) octets: [u64; 2],
    pub(crate) macs: [Mac; 2],
}

impl Flow {
    fn new(at: Timestamp, from: Address, to: Address, protocol: u8, port: u16) -> Self {
        // A port that follows from the time is another one for each conversation, and the same in each run.
        let source_port = 32_768 + ((at.as_nanos() / 1_000_000).cast_unsigned() % 28_232) as u16;
        Self {
            at,
            source: from,
            source_port,
            destination: to,
            port,
            protocol,
            course: Course::Talk,
            lasts: Duration::from_millis(120),
            packets: [6, 5],
            octets: [900, 2_400],
            macs: [mac(from), mac(to)],
        }
    }

    /// A TCP conversation of a tenth of a second.
    pub(crate) fn tcp(at: Timestamp, from: Address, to: Address, port: u16) -> Self {
        Self::new(at, from, to, protocol::TCP, port)
    }

    /// A datagram and its answer.
    pub(crate) fn udp(at: Timestamp, from: Address, to: Address, port: u16) -> Self {
        let question = Self::new(at, from, to, protocol::UDP, port);
        Self { packets: [1, 1], octets: [72, 140], lasts: ROUND_TRIP, ..question }
    }

    /// An echo request and its reply.
    pub(crate) fn ping(at: Timestamp, from: Address, to: Address) -> Self {
        let question = Self::new(at, from, to, protocol::ICMP, 0);
        Self { source_port: 0, packets: [1, 1], octets: [84, 84], lasts: ROUND_TRIP, ..question }
    }

    /// The same with so many octets each way, in packets of common size.
    #[must_use]
    pub(crate) fn carrying(self, forward: u64, reverse: u64) -> Self {
        let packets = |own: u64, other: u64| 3 + own / 1_200 + other / 2_800;
        let packets = [packets(forward, reverse), packets(reverse, forward)];
        Self { octets: [forward + 120, reverse + 120], packets, ..self }
    }

    /// The same, over `lasts`.
    #[must_use]
    pub(crate) fn lasting(self, lasts: Duration) -> Self {
        Self { lasts, ..self }
    }

    /// The same with another course.
    #[must_use]
    pub(crate) fn going(self, course: Course) -> Self {
        let whole = Self { course, ..self };
        let (forward, reverse, lasts) = match course {
            Course::Talk => return whole,
            // A system tries thrice: after one second and after three.
            Course::Silent if whole.protocol == protocol::TCP => ((3, 180), (0, 0), Duration::from_secs(3)),
            Course::Silent => ((1, whole.octets[0].min(600)), (0, 0), Duration::ZERO),
            Course::Refused if whole.protocol == protocol::TCP => ((1, 60), (1, 40), ROUND_TRIP),
            Course::Refused => ((1, whole.octets[0].min(600)), (0, 0), Duration::ZERO),
            Course::HungUp => ((2, 84), (1, 44), ROUND_TRIP),
            Course::BareReset(_) => ((1, 40), (1, 40), ROUND_TRIP),
            Course::Bare(_) => ((1, 40), (0, 0), Duration::ZERO),
            Course::Backscatter(_) => ((0, 0), whole.backscatter(), Duration::ZERO),
        };
        Self { packets: [forward.0, reverse.0], octets: [forward.1, reverse.1], lasts, ..whole }
    }

    const fn backscatter(&self) -> (u64, u64) {
        if self.protocol == protocol::TCP { (1, 44) } else { (self.packets[1], self.octets[1]) }
    }

    /// The same with a single packet where a system would have tried again: as scanners knock.
    #[must_use]
    pub(crate) fn once(self) -> Self {
        let packets = self.packets.map(|packets| packets.min(2));
        Self {
            packets: [packets[0].min(1), packets[1]],
            octets: [self.octets[0].min(60), self.octets[1]],
            lasts: Duration::ZERO,
            ..self
        }
    }

    /// The same from this port.
    #[must_use]
    pub(crate) fn with_source_port(self, source_port: u16) -> Self {
        Self { source_port, ..self }
    }

    /// The same from a host with this address on the wire.
    #[must_use]
    pub(crate) fn with_source_mac(self, mac: Mac) -> Self {
        Self { macs: [mac, self.macs[1]], ..self }
    }

    const fn answered(&self) -> bool {
        match self.course {
            Course::Silent | Course::Bare(_) => false,
            Course::Refused => self.protocol == protocol::TCP,
            _ => true,
        }
    }

    fn last(&self) -> Timestamp {
        self.at.plus(self.lasts)
    }

    /// How long the sensor waits after the last packet before it takes the flow for ended.
    const fn timeout(&self) -> Duration {
        Duration::from_secs(match (self.protocol, self.course) {
            (protocol::TCP, Course::Silent | Course::Bare(_) | Course::Backscatter(_)) => 10,
            (protocol::TCP, _) => 5,
            (protocol::UDP, Course::Silent | Course::Refused) => 15,
            _ => 60,
        })
    }

    /// TCP control bits: of each side's first packet, and of all packets from the first to `until`.
    fn flags(&self, begins: bool, ends: bool) -> ([u16; 2], [u16; 2]) {
        if self.protocol != protocol::TCP {
            return ([0; 2], [0; 2]);
        }
        let opened = [tcp::SYN, tcp::SYN | tcp::ACK];
        let fin = if ends { tcp::FIN } else { 0 };
        match self.course {
            Course::Talk => (opened, if begins { [TALK | fin; 2] } else { [tcp::ACK | tcp::PSH | fin; 2] }),
            Course::Silent => ([tcp::SYN, 0], [tcp::SYN, 0]),
            Course::Refused => ([tcp::SYN, tcp::RST | tcp::ACK], [tcp::SYN, tcp::RST | tcp::ACK]),
            Course::HungUp => (opened, [tcp::SYN | tcp::RST, tcp::SYN | tcp::ACK]),
            // A segment with ACK is reset without one (RFC 9293 §3.10.7.1).
            Course::BareReset(bits) if bits & tcp::ACK != 0 => ([bits, tcp::RST], [bits, tcp::RST]),
            Course::BareReset(bits) => ([bits, tcp::RST | tcp::ACK], [bits, tcp::RST | tcp::ACK]),
            Course::Bare(bits) => ([bits, 0], [bits, 0]),
            Course::Backscatter(bits) => ([0, bits], [0, bits]),
        }
    }
}

/// The MAC address of an inside host, which follows from its address; outside is behind the router.
pub(crate) fn mac(address: Address) -> Mac {
    match address.as_v4().map(|v4| v4.octets()) {
        Some([10, b, c, d]) => [0x02, 0, 10, b, c, d],
        _ => [0x02, 0, 0, 0, 0, 1],
    }
}

/// A flow on its way through the sensor's table.
pub(crate) struct Life {
    flow: Flow,
    id: u64,
    /// What is made next, and of packets from when on.
    next: FlowState,
    from: Timestamp,
    /// Counted in records before.
    packets: [u64; 2],
    octets: [u64; 2],
}

impl Life {
    /// A flow that the sensor numbers `id`.
    pub(crate) const fn new(flow: Flow, id: u64) -> Self {
        let from = flow.at;
        Self { flow, id, next: FlowState::Begin, from, packets: [0; 2], octets: [0; 2] }
    }

    /// When the next record is made.
    pub(crate) fn due(&self) -> Timestamp {
        match self.next {
            FlowState::Begin => self.flow.at.plus(BEGIN_AFTER),
            FlowState::Continue => self.from.floor(SLICE).plus(SLICE).max(self.flow.at.plus(BEGIN_AFTER)),
            FlowState::End => self.flow.last().plus(self.flow.timeout()),
        }
    }

    /// Makes the record that is due; whether that was the last.
    pub(crate) fn make(&mut self) -> (FlowRecord, bool) {
        let made = self.next;
        let whole_end = self.flow.last();
        let until = match made {
            FlowState::Begin => whole_end.min(self.flow.at.plus(BEGIN_AFTER)),
            FlowState::Continue => self.from.floor(SLICE).plus(SLICE),
            FlowState::End => whole_end,
        };
        let mut record = self.record(made, until);
        if made != FlowState::Begin {
            (record.packets, record.octets) = self.count(until, made == FlowState::End);
            record.layer2_octets = [0, 1].map(|way| record.octets[way] + 14 * record.packets[way]);
            self.from = until;
        }
        self.next = if whole_end >= self.from.floor(SLICE).plus(SLICE) { FlowState::Continue } else { FlowState::End };
        (record, made == FlowState::End)
    }

    /// Packets and octets between what was counted before and `until`.
    fn count(&mut self, until: Timestamp, all: bool) -> ([u64; 2], [u64; 2]) {
        let flow = &self.flow;
        let part = until.since(flow.at).as_secs_f64() / flow.lasts.as_secs_f64().max(1e-9);
        let so_far = |whole: u64| if all { whole } else { (whole as f64 * part.min(1.0)) as u64 };
        let (packets, octets) = (flow.packets.map(so_far), flow.octets.map(so_far));
        let new = |now: [u64; 2], before: [u64; 2]| [now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1])];
        let counted = (new(packets, self.packets), new(octets, self.octets));
        (self.packets, self.octets) = (packets, octets);
        counted
    }

    fn record(&self, state: FlowState, until: Timestamp) -> FlowRecord {
        let flow = &self.flow;
        let forward = !matches!(flow.course, Course::Backscatter(_));
        let ends = state == FlowState::End || until >= flow.last();
        let (initial_tcp_flags, tcp_flags) = flow.flags(self.from == flow.at, ends);
        let spoke = [forward, flow.answered()];
        let start = [self.from, self.from.plus(ROUND_TRIP / 2)];
        let last = [until, until.max(start[1])];
        let when = |times: [Timestamp; 2]| [0, 1].map(|way| if spoke[way] { times[way] } else { Timestamp::NONE });
        let unreachable = flow.course == Course::Refused && flow.protocol != protocol::TCP;
        FlowRecord {
            flow_id: self.id,
            state,
            end_reason: match state {
                FlowState::Begin => FlowEndReason::None,
                FlowState::Continue => FlowEndReason::ActiveTimeout,
                FlowState::End if flow.protocol == protocol::TCP && flow.answered() => FlowEndReason::EndOfFlow,
                FlowState::End => FlowEndReason::IdleTimeout,
            },
            biflow_direction: if forward { BiflowDirection::Initiator } else { BiflowDirection::ReverseInitiator },
            observation_point: 1,
            ethernet_type: 0x0800,
            source_mac: flow.macs[0],
            destination_mac: flow.macs[1],
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.port,
            protocol: flow.protocol,
            icmp_type_code: if flow.protocol == protocol::ICMP { [8 << 8, 0] } else { [0; 2] },
            start: when(start),
            end: when(last),
            initial_tcp_flags,
            tcp_flags,
            ttl_min: [64, 64],
            ttl_max: [64, 64],
            answered: spoke[0] && spoke[1],
            icmp_error: if unreachable { [3 << 8 | 3, 0] } else { [0; 2] },
            ..FlowRecord::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_794_000_030;

    fn records(flow: Flow) -> Vec<(Timestamp, FlowRecord)> {
        let mut life = Life::new(flow, 7);
        let mut records = Vec::new();
        loop {
            let due = life.due();
            let (record, last) = life.make();
            records.push((due, record));
            if last {
                return records;
            }
        }
    }

    fn host(last: u8) -> Address {
        Address::from_v4([10, 0, 0, last])
    }

    #[test]
    fn a_long_conversation_is_told_by_the_minute_and_adds_up() {
        let at = Timestamp::from_secs(AT);
        let records = records(Flow::tcp(at, host(1), host(2), 445).carrying(10_000_000, 5_000).lasting(Duration::from_secs(150)));
        let states: Vec<FlowState> = records.iter().map(|(_, record)| record.state).collect();
        assert_eq!(states, [FlowState::Begin, FlowState::Continue, FlowState::Continue, FlowState::Continue, FlowState::End]);
        assert_eq!(records[0].1.packets, [0, 0]);
        assert_eq!(records.iter().map(|(_, record)| record.octets[0]).sum::<u64>(), 10_000_120);
        assert_eq!(records[0].0, at.plus(BEGIN_AFTER));
        assert!(records.is_sorted_by_key(|(due, _)| *due), "records are made in the order of time");
    }

    #[test]
    fn a_knock_at_a_dead_host_is_a_begin_and_an_end_without_an_answer() {
        let at = Timestamp::from_secs(AT);
        let records = records(Flow::tcp(at, host(1), host(2), 445).going(Course::Silent).once());
        assert_eq!(records.len(), 2);
        for (_, record) in &records {
            assert_eq!((record.tcp_flags, record.answered, record.start[1]), ([tcp::SYN, 0], false, Timestamp::NONE));
        }
        assert_eq!(records[1].0, at.plus(Duration::from_secs(10)));
    }
}
