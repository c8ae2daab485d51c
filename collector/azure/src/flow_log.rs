//! One record of an NSG or VNet flow log to rows.
//!
//! Keys come in any order. Those that a list of tuples depends on (category, version, rule …) mostly precede it; where they do not,
//! the list is passed over and read when they are known, so nothing is copied either way.

use std::borrow::Cow;

use spanwatch_common::cloud::{Action, Direction, Origin};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::analytics::{Column, Columns};
use crate::error::{ErrorKind, Mistake, excerpt};
use crate::field;
use crate::intern::Names;
use crate::json::{Cursor, Text};
use crate::reader::Workshop;
use crate::row::{Group, Position, Row, State};
use crate::seen::hash;

/// The category of NSG flow logs; others under the same file name are other logs.
pub(crate) const NSG_CATEGORY: &str = "NetworkSecurityGroupFlowEvent";
/// The category of VNet flow logs.
pub(crate) const VNET_CATEGORY: &str = "FlowLogFlowEvent";

/// Hands each tuple of the record to `sink`, in order. The record may turn out to be a Traffic Analytics row instead.
///
/// `place` is where the record begins, with tuple 0.
pub(crate) fn read<'a>(
    record: &'a [u8],
    place: Position,
    workshop: &mut Workshop,
    sink: &mut dyn FnMut(&Row<'_>),
) -> Result<(), Mistake> {
    let mut cursor = Cursor::new(record);
    let mut head = Head::default();
    let mut columns = Columns::default();
    let mut list: Option<(Kind, Cursor<'a>)> = None;
    let mut walk = Walk { place, workshop, sink, kind: Kind::Vnet };
    let mut done = false;
    cursor.object()?;
    let mut first = true;
    while let Some(key) = cursor.key(&mut first)? {
        let name = key.bytes()?;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("category") {
            let category = text(&mut cursor)?;
            head.category = Some(our_category(category, key.at)?);
        } else if is("flowRecords") || is("properties") {
            let kind = if is("flowRecords") { Kind::Vnet } else { Kind::Nsg };
            if !done && list.is_none() && head.suffices(kind) {
                walk.kind = kind;
                walk.list(&mut cursor, &head)?;
                done = true;
            } else {
                list.get_or_insert((kind, cursor));
                cursor.skip()?;
            }
        } else if is("time") {
            let value = text(&mut cursor)?;
            head.time = value.and_then(|value| field::date_time(&value.str("time").ok()?)).unwrap_or(Timestamp::NONE);
        } else if is("macAddress") {
            head.mac = text(&mut cursor)?;
            columns.set_text(Column::MacAddress, head.mac)?;
        } else if is("flowLogVersion") {
            head.version = Some(scalar(&mut cursor)?);
        } else if is("targetResourceID") {
            head.target = text(&mut cursor)?;
            columns.set_text(Column::TargetResourceId, head.target)?;
        } else if is("resourceId") {
            head.resource = text(&mut cursor)?;
        } else if is("flowLogResourceID") {
            head.flow_log = text(&mut cursor)?;
            columns.set_text(Column::FlowLogResourceId, head.flow_log)?;
        } else {
            columns.read_json(&name, &mut cursor)?;
        }
    }
    if done {
        return Ok(());
    }
    match (list, head.category) {
        // `flowRecords` are nobody else's; `properties` without a category could be anybody's.
        (Some((kind, mut at)), category) if category.is_some() || kind == Kind::Vnet => {
            walk.kind = kind;
            walk.list(&mut at, &head)
        }
        (_, None) if columns.is_table_row() => {
            columns.rows(walk.place, walk.workshop, walk.sink).map_err(|kind| Mistake::new(0, kind))
        }
        // A record of ours without any flows.
        (_, Some(_)) => Ok(()),
        (_, None) => Err(Mistake::new(0, ErrorKind::ForeignRecord { keys: keys(record) })),
    }
}

/// Which of the two formats a record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nsg,
    Vnet,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Nsg => "NSG flow log",
            Self::Vnet => "VNet flow log",
        }
    }
}

/// What a record says about itself.
#[derive(Clone, Copy, Debug, Default)]
struct Head<'a> {
    category: Option<Kind>,
    time: Timestamp,
    mac: Option<Text<'a>>,
    version: Option<Scalar<'a>>,
    target: Option<Text<'a>>,
    resource: Option<Text<'a>>,
    flow_log: Option<Text<'a>>,
}

impl Head<'_> {
    /// Whether the tuples can be read already.
    fn suffices(&self, kind: Kind) -> bool {
        self.category == Some(kind)
            && self.time.is_some()
            && match kind {
                Kind::Nsg => self.resource.is_some(),
                Kind::Vnet => self.target.is_some() && self.flow_log.is_some() && self.mac.is_some() && self.version.is_some(),
            }
    }
}

fn our_category(category: Option<Text<'_>>, at: usize) -> Result<Kind, Mistake> {
    let category = category.map(|text| text.str("category")).transpose()?.unwrap_or_default();
    if category.eq_ignore_ascii_case(NSG_CATEGORY) {
        Ok(Kind::Nsg)
    } else if category.eq_ignore_ascii_case(VNET_CATEGORY) {
        Ok(Kind::Vnet)
    } else {
        Err(Mistake::new(at, ErrorKind::ForeignCategory { category: excerpt(category.as_bytes()) }))
    }
}

/// A string; none for anything else, which is passed over.
fn text<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Text<'a>>, Mistake> {
    if cursor.peek() == Some(b'"') { cursor.string().map(Some) } else { cursor.skip().map(|()| None) }
}

/// A version: a number, or a number in quotes.
#[derive(Clone, Copy, Debug)]
struct Scalar<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn scalar<'a>(cursor: &mut Cursor<'a>) -> Result<Scalar<'a>, Mistake> {
    let quoted = cursor.peek() == Some(b'"');
    let at = cursor.at;
    let bytes = if quoted { cursor.string()?.raw() } else { cursor.literal()? };
    Ok(Scalar { bytes, at })
}

/// The first keys of a record, for the error message.
fn keys(record: &[u8]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut cursor = Cursor::new(record);
    let mut names = Vec::new();
    let mut first = true;
    if cursor.object().is_ok() {
        while let Ok(Some(key)) = cursor.key(&mut first) {
            names.push(excerpt(&key.bytes().unwrap_or_default()));
            if names.len() == SHOWN_MAX || cursor.skip().is_err() {
                break;
            }
        }
    }
    names.join(", ")
}

/// The way down from a record to its tuples.
struct Walk<'w> {
    /// Of the next tuple.
    place: Position,
    workshop: &'w mut Workshop,
    sink: &'w mut dyn FnMut(&Row<'_>),
    kind: Kind,
}

impl Walk<'_> {
    /// `flowRecords` of a VNet record, `properties` of an NSG record.
    fn list<'a>(&mut self, cursor: &mut Cursor<'a>, head: &Head<'a>) -> Result<(), Mistake> {
        match self.kind {
            Kind::Vnet => self.vnet(cursor, head),
            Kind::Nsg => self.nsg(cursor, head),
        }
    }

    fn vnet<'a>(&mut self, cursor: &mut Cursor<'a>, head: &Head<'a>) -> Result<(), Mistake> {
        let version = self.version(head.version, &[4])?;
        let resource = str(head.target.or(head.resource), "targetResourceID")?;
        let flow_log = str(head.flow_log, "flowLogResourceID")?;
        let mac = str(head.mac, "macAddress")?;
        members(cursor, "flows", |cursor| {
            each(cursor, |cursor| {
                labelled(cursor, "aclID", "flowGroups", text, |cursor, acl| {
                    let acl = str(acl.flatten(), "aclID")?;
                    each(cursor, |cursor| {
                        labelled(cursor, "rule", "flowTuples", text, |cursor, rule| {
                            let rule = str(rule.flatten(), "rule")?;
                            let names =
                                Names { resource: &resource, flow_log: &flow_log, acl: &acl, rule: &rule, ..Names::default() };
                            self.tuples(cursor, &mac, names, head.time, version)
                        })
                    })
                })
            })
        })
    }

    fn nsg<'a>(&mut self, cursor: &mut Cursor<'a>, head: &Head<'a>) -> Result<(), Mistake> {
        let nsg = str(head.resource, "resourceId")?;
        let flow_log = str(head.flow_log, "flowLogResourceID")?;
        labelled(cursor, "Version", "flows", scalar, |cursor, version| {
            let version = self.version(version, &[1, 2])?;
            each(cursor, |cursor| {
                labelled(cursor, "rule", "flows", text, |cursor, rule| {
                    let rule = str(rule.flatten(), "rule")?;
                    each(cursor, |cursor| {
                        labelled(cursor, "mac", "flowTuples", text, |cursor, inner| {
                            let mac = str(inner.flatten().or(head.mac), "mac")?;
                            let names = Names { resource: &nsg, flow_log: &flow_log, acl: &nsg, rule: &rule, ..Names::default() };
                            self.tuples(cursor, &mac, names, head.time, version)
                        })
                    })
                })
            })
        })
    }

    /// The stated version, if it is a known one; 0 if none is stated.
    fn version(&self, stated: Option<Scalar<'_>>, known: &[u8]) -> Result<u8, Mistake> {
        let Some(stated) = stated else { return Ok(0) };
        let number = field::count(stated.bytes).and_then(|number| u8::try_from(number).ok());
        number.filter(|number| known.contains(number)).ok_or_else(|| {
            Mistake::new(stated.at, ErrorKind::Version { format: self.kind.name(), version: excerpt(stated.bytes) })
        })
    }

    fn tuples(
        &mut self,
        cursor: &mut Cursor<'_>,
        mac: &str,
        names: Names<'_>,
        logged: Timestamp,
        version: u8,
    ) -> Result<(), Mistake> {
        let names = Names { observer: if mac.is_empty() { names.resource } else { mac }, ..names };
        let seed = names.identity();
        let mut group: Option<Group> = None;
        each(cursor, |cursor| {
            let text = cursor.string().map_err(|mistake| self.in_tuple(mistake))?;
            let bytes = text.bytes().map_err(|mistake| self.in_tuple(mistake))?;
            let identity = hash(seed, &bytes);
            let glance = self.workshop.seen.glance(identity);
            let tuple = Tuple::parse(&bytes, self.kind).map_err(|kind| self.in_tuple(Mistake::new(text.at, kind)))?;
            let group = match &mut group {
                // Two bytes at most times: not worth a call of memcmp.
                Some(group) if tuple.encryption.bytes().eq(group.context.encryption.bytes()) => group,
                slot => slot.insert(Group {
                    context: self.workshop.interner.context(&Names { encryption: tuple.encryption, ..names }),
                    mac: field::mac(mac.as_bytes()),
                    logged,
                    version,
                    interval: [Timestamp::NONE; 2],
                    udr_hop: false,
                }),
            };
            let row = tuple.row(self.place, group, identity);
            self.place.tuple = self.place.tuple.saturating_add(1);
            self.workshop.counts.tuples += 1;
            if self.workshop.seen.is_new(identity, glance) {
                self.workshop.origins.note(row.origin);
                (self.sink)(&row);
            } else {
                self.workshop.counts.duplicates += 1;
            }
            Ok(())
        })
    }

    fn in_tuple(&self, mistake: Mistake) -> Mistake {
        Mistake { tuple: Some(self.place.tuple), ..mistake }
    }
}

/// The text of a member; empty if it is absent.
fn str<'a>(text: Option<Text<'a>>, what: &'static str) -> Result<Cow<'a, str>, Mistake> {
    Ok(text.map(|text| text.str(what)).transpose()?.unwrap_or_default())
}

/// Calls `visit` at each value of the object that has the key `wanted`; passes over the others.
fn members<'a>(
    cursor: &mut Cursor<'a>,
    wanted: &str,
    mut visit: impl FnMut(&mut Cursor<'a>) -> Result<(), Mistake>,
) -> Result<(), Mistake> {
    cursor.object()?;
    let mut first = true;
    while let Some(key) = cursor.key(&mut first)? {
        if key.bytes()?.eq_ignore_ascii_case(wanted.as_bytes()) {
            visit(cursor)?;
        } else {
            cursor.skip()?;
        }
    }
    Ok(())
}

/// Calls `visit` at each element of an array; `null` is an empty one.
fn each<'a>(cursor: &mut Cursor<'a>, mut visit: impl FnMut(&mut Cursor<'a>) -> Result<(), Mistake>) -> Result<(), Mistake> {
    if cursor.peek() == Some(b'n') {
        return cursor.skip();
    }
    cursor.array()?;
    let mut first = true;
    while cursor.element(&mut first)? {
        visit(cursor)?;
    }
    Ok(())
}

/// An object with a label and a body that the label governs, in either order: calls `visit` at the body.
fn labelled<'a, L: Copy>(
    cursor: &mut Cursor<'a>,
    label_key: &str,
    body_key: &str,
    read_label: impl Fn(&mut Cursor<'a>) -> Result<L, Mistake>,
    mut visit: impl FnMut(&mut Cursor<'a>, Option<L>) -> Result<(), Mistake>,
) -> Result<(), Mistake> {
    cursor.object()?;
    let mut label = None;
    let mut waiting = None;
    let mut first = true;
    while let Some(key) = cursor.key(&mut first)? {
        let name = key.bytes()?;
        if name.eq_ignore_ascii_case(label_key.as_bytes()) {
            label = Some(read_label(cursor)?);
        } else if !name.eq_ignore_ascii_case(body_key.as_bytes()) {
            cursor.skip()?;
        } else if label.is_some() {
            visit(cursor, label)?;
        } else {
            waiting = Some(*cursor);
            cursor.skip()?;
        }
    }
    match waiting {
        Some(mut body) => visit(&mut body, label),
        None => Ok(()),
    }
}

/// What the fields of a tuple say.
#[derive(Clone, Copy)]
struct Tuple<'t> {
    origin: Origin,
    at: Timestamp,
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    direction: Direction,
    action: Action,
    state: Option<State>,
    encryption: &'t str,
    packets: [u64; 2],
    octets: [u64; 2],
}

impl<'t> Tuple<'t> {
    /// The number of fields tells v1 and v2 of NSG flow logs apart, whatever the record says.
    #[inline]
    fn parse(text: &'t [u8], kind: Kind) -> Result<Self, ErrorKind> {
        let expected = match kind {
            Kind::Nsg => "8 or 13",
            Kind::Vnet => "13",
        };
        let mut fields = Fields { text, rest: Some(text), expected };
        let mut tuple = Self {
            origin: Origin::VnetV4,
            at: fields.time()?,
            source: fields.address("the source address")?,
            destination: fields.address("the destination address")?,
            source_port: fields.port("the source port")?,
            destination_port: fields.port("the destination port")?,
            protocol: fields.read(field::protocol_number, "the protocol", "T, U or a number up to 255")?,
            direction: fields.read(field::direction, "the direction", "I or O")?,
            action: Action::Allow,
            state: None,
            encryption: "",
            packets: [0; 2],
            octets: [0; 2],
        };
        match kind {
            Kind::Nsg => {
                tuple.action = fields.read(field::action, "the decision", "A or D")?;
                if fields.rest.is_none() {
                    tuple.origin = Origin::NsgV1;
                    return Ok(tuple);
                }
                tuple.origin = Origin::NsgV2;
                tuple.state = Some(fields.read(nsg_state, "the state", "B, C or E")?);
            }
            Kind::Vnet => {
                let state = fields.read(vnet_state, "the state", "B, C, E or D")?;
                tuple.state = Some(state);
                if state == State::Deny {
                    tuple.action = Action::Deny;
                }
                tuple.encryption = fields.read(encryption, "the encryption", "X, NX, NX_ and a reason, or nothing")?;
            }
        }
        tuple.packets[0] = fields.counter()?;
        tuple.octets[0] = fields.counter()?;
        tuple.packets[1] = fields.counter()?;
        tuple.octets[1] = fields.counter()?;
        if fields.rest.is_some() { Err(fields.arity()) } else { Ok(tuple) }
    }

    #[inline]
    const fn row<'g>(&self, position: Position, group: &'g Group, identity: u64) -> Row<'g> {
        Row {
            position,
            origin: self.origin,
            group,
            start: self.at,
            end: self.at,
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            direction: self.direction,
            action: self.action,
            state: self.state,
            packets: self.packets,
            octets: self.octets,
            event_count: 1,
            identity,
        }
    }
}

fn nsg_state(text: &[u8]) -> Option<State> {
    vnet_state(text).filter(|&state| state != State::Deny)
}

#[inline]
fn vnet_state(text: &[u8]) -> Option<State> {
    match text {
        [b'B'] => Some(State::Begin),
        [b'C'] => Some(State::Continue),
        [b'E'] => Some(State::End),
        [b'D'] => Some(State::Deny),
        _ => None,
    }
}

/// Encrypted or not, and why not: reasons unknown to us pass through.
#[inline]
fn encryption(text: &[u8]) -> Option<&str> {
    match text {
        [b'X'] => Some("X"),
        [b'N', b'X'] => Some("NX"),
        _ => std::str::from_utf8(text).ok().filter(|text| text.is_empty() || text.starts_with("NX_") || text.starts_with("X_")),
    }
}

/// The fields of a tuple, from left to right.
///
/// What is usual is read in one pass over its bytes; whatever is not goes through [`read`](Self::read), which finds the field's end
/// first and can say what is wrong with it.
struct Fields<'t> {
    text: &'t [u8],
    /// None behind the last field.
    rest: Option<&'t [u8]>,
    /// How many fields there should be.
    expected: &'static str,
}

impl<'t> Fields<'t> {
    /// The next field, by a function of its text.
    #[inline]
    fn read<T>(
        &mut self,
        read: impl FnOnce(&'t [u8]) -> Option<T>,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, ErrorKind> {
        let Some(rest) = self.rest else { return Err(self.arity()) };
        let text = match rest.iter().position(|&byte| byte == b',') {
            Some(comma) => {
                let (text, after) = rest.split_at(comma);
                self.rest = after.get(1..);
                text
            }
            None => {
                self.rest = None;
                rest
            }
        };
        read(text).ok_or_else(|| ErrorKind::Field { field, value: excerpt(text), expected })
    }

    /// Goes on behind a field of which `value` was read and `after` follows; none if that does not end the field.
    #[inline]
    fn past<T>(&mut self, value: T, after: &'t [u8]) -> Option<T> {
        self.rest = match after {
            [] => None,
            [b',', rest @ ..] => Some(rest),
            _ => return None,
        };
        Some(value)
    }

    #[inline]
    fn number(&mut self) -> Option<u64> {
        let (value, after) = field::leading_number(self.rest?)?;
        self.past(value, after)
    }

    #[inline]
    fn time(&mut self) -> Result<Timestamp, ErrorKind> {
        let here = self.rest;
        if let Some(time) = self.number().and_then(field::tuple_time) {
            return Ok(time);
        }
        self.rest = here;
        self.read(|text| field::number(text).and_then(field::tuple_time), "the time", "seconds or milliseconds since 1970")
    }

    #[inline]
    fn address(&mut self, field: &'static str) -> Result<Address, ErrorKind> {
        let usual = self.rest.and_then(field::leading_v4).and_then(|(address, after)| self.past(address, after));
        usual.map_or_else(|| self.read(field::address, field, "an IP address"), Ok)
    }

    /// Blank where the protocol has no ports.
    #[inline]
    fn port(&mut self, field: &'static str) -> Result<u16, ErrorKind> {
        let here = self.rest;
        if let Some(port) = self.number().and_then(|port| u16::try_from(port).ok()) {
            return Ok(port);
        }
        self.rest = here;
        let read =
            |text: &[u8]| if text.is_empty() { Some(0) } else { field::number(text).and_then(|port| u16::try_from(port).ok()) };
        self.read(read, field, "a number up to 65535")
    }

    /// Blank in the tuples that begin or deny a flow.
    #[inline]
    fn counter(&mut self) -> Result<u64, ErrorKind> {
        if let Some([b',', rest @ ..]) = self.rest {
            self.rest = Some(rest);
            return Ok(0);
        }
        if let Some(counter) = self.number() {
            return Ok(counter);
        }
        let read = |text: &[u8]| if text.is_empty() { Some(0) } else { field::number(text) };
        self.read(read, "a counter", "a whole number or nothing")
    }

    #[cold]
    fn arity(&self) -> ErrorKind {
        ErrorKind::Arity { tuple: excerpt(self.text), expected: self.expected }
    }
}
