//! One receive queue: decode, fragments and flow table together. Pure; the loop that feeds it owns the capture and the clock.

use serde::{Deserialize, Serialize};
use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::health::Health;
use spanwatch_common::layer2::is_process_data;
use spanwatch_common::ledger::{Ignored, Ledger, Odd};
use spanwatch_common::time::Timestamp;

use crate::capture::{BATCH, Frame, Link, Losses};
use crate::decode::{self, Around, DecodeSettings, Found, Kind, Packet, Rules, Undecodable, Update};
use crate::dedup::{Cause, Dedup};
use crate::flow_settings::{FlowSettings, KeyContext};
use crate::flow_table::{FlowTable, FlowTableSettings, KeyHasher, Observer, Records, Talker};
use crate::fragments::{FragmentSettings, FragmentTable};
use crate::machine::prefetch;
use crate::reassembly::Reassembly;

/// Settings of the middle of the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterSettings {
    /// What makes packets one flow, and whether second copies of a packet count.
    pub flow: FlowSettings,
    /// What is taken off frames.
    pub decode: DecodeSettings,
    /// Size and timeouts of the flow table.
    pub flow_table: FlowTableSettings,
    /// Size and timeout of the fragment table.
    pub fragments: FragmentSettings,
}

/// Origin of the first of [`Batch::packets`]; below it are frames.
const WHOLE: u16 = BATCH as u16;

/// Packets that wait for the flow table.
struct Batch {
    /// The first `len` of these.
    updates: [Update; BATCH],
    len: usize,
    /// Those that were read as a whole.
    packets: Vec<Packet>,
}

/// Turns frames into records, and accounts for every one.
pub struct Worker {
    table: FlowTable,
    dedup: Dedup,
    fragments: FragmentTable,
    reassembly: Reassembly,
    rules: Rules,
    context: KeyContext,
    hasher: KeyHasher,
    /// Of packets from this time on everything is read: somebody asks for more than most flows need.
    all_from: Timestamp,
    around: Around,
    batch: Batch,
    records: Records,
    delivered: u64,
    ignored: Ignored,
    odd: Odd,
    health: Health,
    /// Others count what all of them see.
    is_second: bool,
}

impl Worker {
    /// A worker with memory for as much as the settings say.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub fn new(settings: &MeterSettings, hasher: KeyHasher, observer: Observer) -> std::io::Result<Self> {
        let mut worker = Self {
            table: FlowTable::new(&settings.flow_table, hasher, observer)?,
            dedup: Dedup::new(settings.flow.dedup, settings.flow.dedup_window_micros, &hasher),
            fragments: FragmentTable::new(&settings.fragments, hasher),
            reassembly: Reassembly::new(settings.fragments.tunnel_packets_max),
            rules: Rules::new(&settings.decode, settings.flow.key.vlan),
            context: KeyContext::new(&settings.flow.key, hasher),
            hasher,
            all_from: Timestamp::NONE,
            around: Around::default(),
            batch: Batch { updates: [Update::NONE; BATCH], len: 0, packets: Vec::with_capacity(BATCH) },
            records: Records::default(),
            delivered: 0,
            ignored: Ignored::default(),
            odd: Odd::default(),
            health: Health::default(),
            is_second: false,
        };
        worker.look_again();
        Ok(worker)
    }

    /// From now on this is worker `number` of `of`, counted from 0, each of which is given all frames and meters its share of the flows. The
    /// accounts of all of them add up to that of one; but for that, they differ only when the flow table is full.
    pub fn share(&mut self, number: usize, of: usize) {
        self.table.share(number, of);
        self.is_second = number > 0;
    }

    /// Takes frames and puts them into their flows.
    pub fn take(&mut self, frames: &[Frame<'_>]) {
        for batch in frames.chunks(BATCH) {
            self.take_batch(batch);
        }
    }

    /// Nearly every packet is read for what its flow needs of it and no more; where a flow wants all of it, the frame is read again.
    #[inline]
    fn take_batch(&mut self, frames: &[Frame<'_>]) {
        self.delivered += frames.len() as u64;
        let (mut octets, mut len) = (0, 0);
        for frame in frames {
            prefetch(frame.bytes);
        }
        let is_all_asked = frames.iter().any(|frame| frame.at >= self.all_from);
        for (origin, frame) in (0..).zip(frames) {
            let update = &mut self.batch.updates[len];
            let found = match frame.interface == 0 && !is_all_asked {
                true => decode::update_plain(frame, &self.rules, &self.hasher, origin, update),
                false => Found::Other,
            };
            if found == Found::Other {
                self.batch.len = len;
                self.take_any(frame);
                len = self.batch.len;
                continue;
            }
            self.table.prefetch(update);
            octets += u64::from(update.frame_octets);
            let is_usual =
                found == Found::Untagged && frame.bytes[0] & 1 == 0 && frame.bytes.len() >= update.frame_octets as usize;
            if !is_usual {
                self.count_unusual(frame, found);
            }
            len += 1;
        }
        self.batch.len = len;
        self.health.octets += octets;
        let (rules, Batch { updates, len, packets }) = (&self.rules, &mut self.batch);
        let packet = |update: &Update| match update.origin.checked_sub(WHOLE) {
            Some(place) => packets[usize::from(place)],
            None => {
                let frame = &frames[usize::from(update.origin)];
                let whole = decode::decode(frame, rules, &mut Around::default());
                whole.unwrap_or_else(|_| Packet::blank(frame.at, frame.octets()))
            }
        };
        self.table.update(&mut updates[..*len], packet, &mut self.records);
        self.batch.len = 0;
        self.batch.packets.clear();
    }

    /// Counts what is worth counting of a plain packet beside its octets.
    #[cold]
    fn count_unusual(&mut self, frame: &Frame<'_>, found: Found) {
        self.health.group_packets += u64::from(frame.bytes[0] & 1);
        self.odd.sliced += u64::from(frame.bytes.len() < frame.octets() as usize);
        match found {
            Found::Tagged => self.health.encapsulations[Encapsulation::Vlan as usize] += 1,
            Found::PriorityTagged => self.health.encapsulations[Encapsulation::PriorityTag as usize] += 1,
            Found::Untagged | Found::Other => {}
        }
    }

    /// Takes a frame of which everything is asked.
    #[inline(never)]
    fn take_any(&mut self, frame: &Frame<'_>) {
        match decode::decode(frame, &self.rules, &mut self.around) {
            Ok(mut packet) => {
                self.odd.sliced += u64::from(frame.bytes.len() < frame.octets() as usize);
                packet.odd.count(&mut self.odd);
                count_health(&packet, &mut self.health);
                if self.is_removed(frame.bytes, &packet) {
                    return;
                }
                if packet.fragment.is_none() || self.take_fragment(frame, &mut packet) {
                    let packet = self.completed(packet, frame);
                    self.keep(packet);
                }
            }
            Err(Undecodable::Runt) => self.ignored.runt += 1,
            Err(Undecodable::LinkType) => self.ignored.link_type += 1,
            Err(Undecodable::NotIp) => self.ignored.not_ip += 1,
        }
    }

    /// Decides from when on everything is read of a packet.
    fn look_again(&mut self) {
        self.all_from = if self.context.is_wanted() { Timestamp::from_nanos(i64::MIN) } else { self.dedup.wake() };
    }

    /// The packet counts.
    fn keep(&mut self, packet: Packet) {
        let hash = self.hasher.hash(&packet.key);
        let Batch { updates, len, packets } = &mut self.batch;
        updates[*len] = Update::of(&packet, hash, WHOLE + packets.len() as u16);
        self.table.prefetch(&mut updates[*len]);
        *len += 1;
        packets.push(packet);
    }

    /// Whether the packet is a second copy that does not count; if so, it is accounted for.
    #[inline]
    fn is_removed(&mut self, bytes: &[u8], packet: &Packet) -> bool {
        let cause = self.dedup.removes(bytes, packet, &self.around);
        self.look_again();
        let Some(cause) = cause else { return false };
        *match cause {
            Cause::Copy => &mut self.ignored.duplicate_copy,
            Cause::Routed => &mut self.ignored.duplicate_routed,
            Cause::Redundant => &mut self.ignored.duplicate_redundant,
        } += 1;
        true
    }

    /// Gives a later fragment its ports; where it completes a tunnel's packet, what is inside takes its place. False when that is a second
    /// copy that does not count.
    #[cold]
    fn take_fragment(&mut self, frame: &Frame<'_>, packet: &mut Packet) -> bool {
        let Some(fragment) = packet.fragment else { return true };
        if fragment.hides_tunnel {
            self.reassembly.begin(packet, frame.bytes);
        } else if !fragment.first
            && let Some(whole) = self.reassembly.add(packet, frame.bytes)
        {
            let whole = Frame { bytes: &whole, wire_len: whole.len() as u32, link: Link::Raw, ..*frame };
            if let Ok(inner) = decode::decode(&whole, &self.rules, &mut self.around)
                && !inner.encapsulations.is_empty()
            {
                *packet = Packet { frame_octets: packet.frame_octets, ..inner };
                if self.is_removed(whole.bytes, packet) {
                    return false;
                }
            }
        }
        let is_later = packet.fragment.is_some_and(|fragment| !fragment.first);
        self.odd.tunnel_fragment += u64::from(is_later && is_tunnel(packet.key.protocol));
        if !self.fragments.resolve(packet) {
            self.odd.fragment_without_first += 1;
        }
        true
    }

    /// The packet with what only the worker knows.
    fn completed(&mut self, packet: Packet, frame: &Frame<'_>) -> Packet {
        let mut packet = Packet { interface: frame.interface, ..packet };
        if !packet.encapsulations.is_empty() && self.around.names_tunnel() {
            packet.tunnel = self.table.tunnel(&self.around, packet.at);
            self.odd.tunnel_not_named += u64::from(packet.tunnel == 0);
        }
        if self.context.is_wanted() {
            packet.key.context = self.context.of(&packet, &self.around);
        }
        if let Some((key, way)) = decode::quoted(frame.bytes, &packet) {
            self.table.icmp_error(&key, way, packet.icmp_type_code);
        }
        packet
    }

    /// Makes the records that are due at `now`. Looks at a share of the flows that grows with the time since the last call.
    pub fn settle(&mut self, now: Timestamp) {
        self.reassembly.expire(now);
        self.table.expire(now, &mut self.records);
    }

    /// The same, but of the flows only at those that wait for their Begin record.
    pub fn begin(&mut self, now: Timestamp) {
        self.reassembly.expire(now);
        self.table.begin_due(now, &mut self.records);
    }

    /// The same, and looks at every flow: what comes out then depends on the frames and `now` alone.
    pub fn settle_fully(&mut self, now: Timestamp) {
        self.reassembly.expire(now);
        self.table.expire_all(now, &mut self.records);
    }

    /// Ends every flow, e.g. because the sensor stops or the clock was set. Packet time may start anywhere after this.
    pub fn flush(&mut self, reason: FlowEndReason) {
        self.flush_some(reason, usize::MAX);
    }

    /// The same for at most so many flows, so that their records need not all be held at once. Whether none is left.
    pub fn flush_some(&mut self, reason: FlowEndReason, flows_max: usize) -> bool {
        self.dedup.restart();
        self.look_again();
        self.reassembly.give_up();
        self.table.flush_some(reason, flows_max, &mut self.records)
    }

    /// The records made since they were last taken away.
    pub const fn records(&mut self) -> &mut Records {
        &mut self.records
    }

    /// The account so far, with the capture's side of it. Records count as queued from the moment they are made.
    pub fn ledger(&self, losses: &Losses) -> Ledger {
        let counts = self.table.counts();
        if self.is_second {
            return Ledger {
                metered: counts.metered,
                exported: counts.exported,
                live: counts.metered - counts.exported,
                queued: counts.exported,
                flows: spanwatch_common::ledger::Flows { records_queued: counts.flows.records, ..counts.flows },
                ..Ledger::default()
            };
        }
        Ledger {
            wire: losses.wire,
            delivered: self.delivered,
            dropped: losses.dropped,
            metered: counts.metered,
            ignored: self.ignored,
            exported: counts.exported,
            live: counts.metered - counts.exported,
            acknowledged: 0,
            queued: counts.exported,
            not_sent: 0,
            flows: spanwatch_common::ledger::Flows { records_queued: counts.flows.records, ..counts.flows },
            odd: Odd {
                late: counts.late,
                in_aggregate: counts.in_aggregate,
                tunnel_fragment_lost: self.reassembly.lost(),
                ..self.odd
            },
        }
    }

    /// How well the mirror does its work so far.
    pub fn health(&self, losses: &Losses) -> Health {
        if self.is_second {
            return Health { erspan_packets: 0, erspan_gaps: 0, ..self.table.health() };
        }
        let found = self.dedup.counts();
        let mut health = Health {
            packets: self.delivered,
            sliced: self.odd.sliced,
            dropped: losses.dropped.total(),
            shed: losses.dropped.shed,
            examined: found.examined,
            duplicate_copy: found.copies[Cause::Copy as usize],
            duplicate_routed: found.copies[Cause::Routed as usize],
            duplicate_redundant: found.copies[Cause::Redundant as usize],
            deduplicating: u64::from(self.is_deduplicating()),
            unknown_encapsulation: self.odd.unknown_encapsulation + self.odd.bad_encapsulation,
            ..self.health
        };
        health.add(&self.table.health());
        health
    }

    /// Flows in the table.
    pub const fn flows_live(&self) -> u64 {
        self.table.flows_live()
    }

    /// From now on the frames are one in so many, chosen at random; 0 or 1 when they are all.
    pub fn sample(&mut self, one_in: u32) {
        self.table.sample(one_in);
    }

    /// Starts or stops looking for the flows with most octets.
    pub fn watch(&mut self, is_watched: bool) {
        self.table.watch(is_watched);
    }

    /// The flows with most octets, most first; empty while nobody watches.
    pub fn talkers(&self) -> &[Talker] {
        self.table.talkers()
    }

    /// Whether second copies are removed at present.
    pub fn is_deduplicating(&self) -> bool {
        self.dedup.is_removing()
    }

    /// The same, with the packets in the table added up flow by flow: exact, and as slow as the table is large.
    pub fn audited_ledger(&self, losses: &Losses) -> Ledger {
        Ledger { live: self.table.packets_held(), ..self.ledger(losses) }
    }
}

/// Counts what a mirror is judged by, whether or not the packet is a copy.
#[inline]
fn count_health(packet: &Packet, health: &mut Health) {
    health.octets += u64::from(packet.frame_octets);
    if packet.destination_mac[0] & 1 != 0 {
        let is_process_data = packet.key.kind == Kind::Layer2 as u8 && is_process_data(packet.key.detail);
        health.group_packets += u64::from(!is_process_data);
    }
    let mut kinds = packet.encapsulations.0;
    while kinds != 0 {
        if let Some(count) = health.encapsulations.get_mut(kinds.trailing_zeros() as usize) {
            *count += 1;
        }
        kinds &= kinds - 1;
    }
}

/// Whether packets of this IP protocol carry others.
const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, 4 | 41 | 47 | 137)
}
