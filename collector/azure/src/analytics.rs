//! One row of a Traffic Analytics table to rows.
//!
//! `NTANetAnalytics` and `AzureNetworkAnalytics_CL` name the same things; the latter adds `_s`, `_d`, `_t`, `_g` or `_b` by type.

use std::borrow::Cow;

use spanwatch_common::cloud::{Action, Direction, Origin};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::error::{ErrorKind, Mistake, excerpt};
use crate::field;
use crate::intern::Names;
use crate::json::{Cursor, Text};
use crate::reader::Workshop;
use crate::row::{Group, Position, Row};
use crate::seen::hash;

/// The columns that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    SubType,
    TimeGenerated,
    IntervalStart,
    IntervalEnd,
    FlowStart,
    FlowEnd,
    FlowType,
    SrcIp,
    DestIp,
    DestPort,
    L4Protocol,
    FlowDirection,
    FlowStatus,
    AclGroup,
    AclRule,
    /// Older names of the former two, in `NTANetAnalytics` beside them.
    NsgList,
    NsgRule,
    MacAddress,
    SrcVm,
    DestVm,
    TargetResourceId,
    FlowLogResourceId,
    AllowedInFlows,
    DeniedInFlows,
    AllowedOutFlows,
    DeniedOutFlows,
    /// Schema of before August 2019.
    FlowCount,
    /// From source to destination, as `OutboundPackets`.
    PacketsForward,
    PacketsReverse,
    BytesForward,
    BytesReverse,
    SrcPublicIps,
    DestPublicIps,
    /// Schema of before August 2019: of whichever side is blank.
    PublicIps,
    FlowEncryption,
    UdrHop,
}

/// How many columns there are.
const COLUMNS: usize = Column::UdrHop as usize + 1;

/// Finds a column by its name in either table, in any case. The flag says whether the name had a type's suffix.
pub(crate) fn column(name: &[u8]) -> Option<(Column, bool)> {
    const NAME_MAX: usize = 40;
    let (name, suffixed) = match name {
        [stem @ .., b'_', b's' | b'd' | b't' | b'g' | b'b'] => (stem, true),
        _ => (name, false),
    };
    let mut lower = [0; NAME_MAX];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let column = match &*lower {
        b"subtype" => Column::SubType,
        b"timegenerated" => Column::TimeGenerated,
        b"flowintervalstarttime" => Column::IntervalStart,
        b"flowintervalendtime" => Column::IntervalEnd,
        b"flowstarttime" => Column::FlowStart,
        b"flowendtime" => Column::FlowEnd,
        b"flowtype" => Column::FlowType,
        b"srcip" => Column::SrcIp,
        b"destip" => Column::DestIp,
        b"destport" => Column::DestPort,
        b"l4protocol" => Column::L4Protocol,
        b"flowdirection" => Column::FlowDirection,
        b"flowstatus" => Column::FlowStatus,
        b"aclgroup" => Column::AclGroup,
        b"aclrule" => Column::AclRule,
        b"nsglist" => Column::NsgList,
        b"nsgrule" => Column::NsgRule,
        b"macaddress" => Column::MacAddress,
        b"srcvm" | b"vm1" => Column::SrcVm,
        b"destvm" | b"vm2" => Column::DestVm,
        b"targetresourceid" => Column::TargetResourceId,
        b"flowlogresourceid" => Column::FlowLogResourceId,
        b"allowedinflows" => Column::AllowedInFlows,
        b"deniedinflows" => Column::DeniedInFlows,
        b"allowedoutflows" => Column::AllowedOutFlows,
        b"deniedoutflows" => Column::DeniedOutFlows,
        b"flowcount" => Column::FlowCount,
        b"packetssrctodest" | b"outboundpackets" => Column::PacketsForward,
        b"packetsdesttosrc" | b"inboundpackets" => Column::PacketsReverse,
        b"bytessrctodest" | b"outboundbytes" => Column::BytesForward,
        b"bytesdesttosrc" | b"inboundbytes" => Column::BytesReverse,
        b"srcpublicips" => Column::SrcPublicIps,
        b"destpublicips" => Column::DestPublicIps,
        b"publicips" => Column::PublicIps,
        b"flowencryption" => Column::FlowEncryption,
        b"isflowcapturedatudrhop" => Column::UdrHop,
        _ => return None,
    };
    Some((column, suffixed))
}

/// The values of one table row, as text; blank is absent.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    values: [Option<Cow<'a, str>>; COLUMNS],
    /// Whether a column of the flow was seen, blank or not.
    of_a_flow: bool,
    /// Whether it had a suffix.
    suffixed: bool,
}

impl Default for Columns<'_> {
    fn default() -> Self {
        Self { values: [const { None }; COLUMNS], of_a_flow: false, suffixed: false }
    }
}

impl<'a> Columns<'a> {
    /// Takes the value of a JSON member, or passes over it.
    pub(crate) fn read_json(&mut self, name: &[u8], cursor: &mut Cursor<'a>) -> Result<(), Mistake> {
        let Some((column, suffixed)) = column(name) else { return cursor.skip() };
        match cursor.peek() {
            Some(b'"') => {
                let text = cursor.string()?;
                self.set(column, suffixed, text.str("a column")?);
            }
            Some(b'{' | b'[') => cursor.skip()?,
            _ => {
                let at = cursor.at;
                let literal = cursor.literal()?;
                let literal = if literal == b"null" { b"" } else { literal };
                let literal = std::str::from_utf8(literal).map_err(|_| Mistake::json(at, "a value"))?;
                self.set(column, suffixed, Cow::Borrowed(literal));
            }
        }
        Ok(())
    }

    /// Takes a value that was read for another reason as well.
    pub(crate) fn set_text(&mut self, column: Column, text: Option<Text<'a>>) -> Result<(), Mistake> {
        if let Some(text) = text {
            self.set(column, false, text.str("a column")?);
        }
        Ok(())
    }

    /// Takes the value of a CSV field.
    pub(crate) fn set(&mut self, column: Column, suffixed: bool, value: Cow<'a, str>) {
        if matches!(column, Column::SrcIp | Column::DestIp | Column::SubType) {
            self.of_a_flow = true;
            self.suffixed |= suffixed;
        }
        if !value.is_empty() {
            self.values[column as usize] = Some(value);
        }
    }

    /// Whether this is a row of one of our tables.
    pub(crate) const fn is_table_row(&self) -> bool {
        self.of_a_flow
    }

    /// Hands over the row: once, or once for each public address.
    pub(crate) fn rows(&self, place: Position, workshop: &mut Workshop, sink: &mut dyn FnMut(&Row<'_>)) -> Result<(), ErrorKind> {
        if self.get(Column::SubType).is_some_and(|sub_type| !sub_type.eq_ignore_ascii_case("FlowLog")) {
            workshop.counts.other_rows += 1;
            return Ok(());
        }
        let group = self.group(workshop)?;
        let row = self.row(place, &group)?;
        let mut hand_over = |row: &Row<'_>| {
            workshop.counts.tuples += 1;
            workshop.origins.note(row.origin);
            sink(row);
        };
        let blank = if row.source.is_some() { row.destination } else { row.source };
        let (column, other) = if row.source.is_some() {
            (Column::DestPublicIps, Column::PublicIps)
        } else {
            (Column::SrcPublicIps, Column::PublicIps)
        };
        let list = self.get(column).or_else(|| self.get(other)).unwrap_or_default();
        if blank.is_some() || workshop.ta_parity || list.trim().is_empty() {
            hand_over(&row);
            return Ok(());
        }
        // Where both sides are blank, a single public destination still has a name.
        let destination = match self.get(Column::DestPublicIps).filter(|_| !row.source.is_some() && !row.destination.is_some()) {
            Some(only) if only.split_whitespace().count() == 1 => public(only.trim(), &row)?.address,
            _ => row.destination,
        };
        for (number, entry) in list.split_whitespace().enumerate() {
            let public = public(entry, &row)?;
            let (source, destination) =
                if row.source.is_some() { (row.source, public.address) } else { (public.address, destination) };
            hand_over(&Row {
                position: Position { tuple: u32::try_from(number).unwrap_or(u32::MAX), ..place },
                source,
                destination,
                packets: public.packets,
                octets: public.octets,
                event_count: public.flows,
                identity: hash(row.identity, entry.as_bytes()),
                ..row
            });
        }
        Ok(())
    }

    fn get(&self, column: Column) -> Option<&str> {
        self.values[column as usize].as_deref()
    }

    fn group(&self, workshop: &mut Workshop) -> Result<Group, ErrorKind> {
        let name = |column| self.get(column).unwrap_or_default();
        let either = |column, older| self.get(column).or_else(|| self.get(older)).unwrap_or_default();
        let resource = name(Column::TargetResourceId);
        let names = Names {
            observer: self.get(Column::MacAddress).unwrap_or(resource),
            resource,
            flow_log: name(Column::FlowLogResourceId),
            acl: either(Column::AclGroup, Column::NsgList),
            rule: either(Column::AclRule, Column::NsgRule),
            encryption: name(Column::FlowEncryption),
            source_vm: name(Column::SrcVm),
            destination_vm: name(Column::DestVm),
            flow_type: name(Column::FlowType),
        };
        Ok(Group {
            context: workshop.interner.context(&names),
            mac: self.get(Column::MacAddress).and_then(|text| field::mac(text.as_bytes())),
            logged: self.time(Column::TimeGenerated)?,
            version: 0,
            interval: [self.time(Column::IntervalStart)?, self.time(Column::IntervalEnd)?],
            udr_hop: self.get(Column::UdrHop).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1"),
        })
    }

    fn row<'s>(&'s self, position: Position, group: &'s Group) -> Result<Row<'s>, ErrorKind> {
        let start = [self.time(Column::FlowStart)?, group.interval[0], group.logged].into_iter().find(|time| time.is_some());
        let start = start.ok_or(ErrorKind::Missing { column: "FlowStartTime" })?;
        let end = Some(self.time(Column::FlowEnd)?).filter(|time| time.is_some()).unwrap_or(start);
        let allowed = self.count(Column::AllowedInFlows)?.saturating_add(self.count(Column::AllowedOutFlows)?);
        let denied = self.count(Column::DeniedInFlows)?.saturating_add(self.count(Column::DeniedOutFlows)?);
        let action = self.value(Column::FlowStatus, field::action, "A, D, Allowed or Denied")?;
        let direction = self.value(Column::FlowDirection, field::direction, "I, O, Inbound or Outbound")?;
        let flows = [allowed.saturating_add(denied), self.count(Column::FlowCount)?].into_iter().find(|&flows| flows > 0);
        Ok(Row {
            position,
            origin: if self.suffixed { Origin::TaNsg } else { Origin::TaVnet },
            group,
            start,
            end,
            source: self.value(Column::SrcIp, field::address, "an IP address")?.unwrap_or(Address::NONE),
            destination: self.value(Column::DestIp, field::address, "an IP address")?.unwrap_or(Address::NONE),
            source_port: 0,
            destination_port: self.port()?,
            protocol: self.value(Column::L4Protocol, field::protocol_number, "T, U, TCP, UDP, ICMP or a number")?.unwrap_or(0),
            direction: direction.unwrap_or(Direction::Unknown),
            action: action.unwrap_or(match (allowed, denied) {
                (0, 0) => Action::Unknown,
                (0, _) => Action::Deny,
                _ => Action::Allow,
            }),
            state: None,
            packets: [self.count(Column::PacketsForward)?, self.count(Column::PacketsReverse)?],
            octets: [self.count(Column::BytesForward)?, self.count(Column::BytesReverse)?],
            event_count: flows.unwrap_or(1),
            identity: self.values.iter().fold(0, |seed, value| hash(seed, value.as_deref().unwrap_or_default().as_bytes())),
        })
    }

    fn value<T>(
        &self,
        column: Column,
        read: impl FnOnce(&[u8]) -> Option<T>,
        expected: &'static str,
    ) -> Result<Option<T>, ErrorKind> {
        let Some(text) = self.get(column).map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
        let wrong = || ErrorKind::Field { field: name(column), value: excerpt(text.as_bytes()), expected };
        read(text.as_bytes()).map(Some).ok_or_else(wrong)
    }

    fn count(&self, column: Column) -> Result<u64, ErrorKind> {
        Ok(self.value(column, field::count, "a whole number")?.unwrap_or(0))
    }

    fn port(&self) -> Result<u16, ErrorKind> {
        let read = |text: &[u8]| field::count(text).and_then(|port| u16::try_from(port).ok());
        Ok(self.value(Column::DestPort, read, "a number up to 65535")?.unwrap_or(0))
    }

    fn time(&self, column: Column) -> Result<Timestamp, ErrorKind> {
        let read = |text: &[u8]| std::str::from_utf8(text).ok().and_then(field::date_time);
        Ok(self.value(column, read, "a date and time in UTC")?.unwrap_or(Timestamp::NONE))
    }
}

/// One entry of `SrcPublicIps` or `DestPublicIps`.
struct Public {
    address: Address,
    flows: u64,
    packets: [u64; 2],
    octets: [u64; 2],
}

/// `ip|flowsStarted|flowsEnded|outPackets|inPackets|outBytes|inBytes`; out is from source to destination. An address without
/// counters has those of the row.
fn public(entry: &str, row: &Row<'_>) -> Result<Public, ErrorKind> {
    let wrong = |expected| ErrorKind::Field { field: "a public address", value: excerpt(entry.as_bytes()), expected };
    let mut parts = entry.split('|');
    let address = parts.next().and_then(|text| field::address(text.as_bytes())).ok_or_else(|| wrong("an IP address"))?;
    let rest: Vec<u64> = parts
        .map(|text| if text.is_empty() { Some(0) } else { field::count(text.as_bytes()) })
        .collect::<Option<_>>()
        .ok_or_else(|| wrong("whole numbers behind the address"))?;
    match *rest {
        [] => Ok(Public { address, flows: row.event_count, packets: row.packets, octets: row.octets }),
        [started, _ended, packets_out, packets_in, octets_out, octets_in, ..] => {
            Ok(Public { address, flows: started, packets: [packets_out, packets_in], octets: [octets_out, octets_in] })
        }
        _ => Err(wrong("ip|started|ended|packets out|packets in|bytes out|bytes in")),
    }
}

/// The column's name in error messages.
const fn name(column: Column) -> &'static str {
    match column {
        Column::TimeGenerated => "TimeGenerated",
        Column::IntervalStart => "FlowIntervalStartTime",
        Column::IntervalEnd => "FlowIntervalEndTime",
        Column::FlowStart => "FlowStartTime",
        Column::FlowEnd => "FlowEndTime",
        Column::SrcIp => "SrcIp",
        Column::DestIp => "DestIp",
        Column::DestPort => "DestPort",
        Column::L4Protocol => "L4Protocol",
        Column::FlowDirection => "FlowDirection",
        Column::FlowStatus => "FlowStatus",
        Column::PacketsForward | Column::PacketsReverse => "a packet count",
        Column::BytesForward | Column::BytesReverse => "a byte count",
        _ => "a flow count",
    }
}
