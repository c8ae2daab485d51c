//! One record of an NSG or VNet flow log to rows.
//!
//! Keys come in any order. Those that a list of tuples depends on (category, version, rule …) mostly precede it; where they do not,
//! the list is passed over and read when they are known, so nothing is copied either way.

use std::borrow::Cow;

use spanwatch_common::time::Timestamp;

use crate::analytics::{Column, Columns};
use crate::error::{ErrorKind, Mistake, excerpt};
use crate::field;
use crate::intern::Names;
use crate::json::{Cursor, Text};
use crate::reader::Workshop;
use crate::row::{Group, Position, Row};
use crate::seen::hash;
use crate::tuple::{Kind, Tuple};

/// Different encryption words of one rule that are known at once; there are eight.
const ENCRYPTIONS_MAX: usize = 16;

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
        let mut groups = Vec::new();
        each(cursor, |cursor| {
            let text = cursor.string().map_err(|mistake| self.in_tuple(mistake))?;
            let bytes = text.bytes().map_err(|mistake| self.in_tuple(mistake))?;
            let identity = hash(seed, &bytes);
            let glance = self.workshop.seen.glance(identity);
            let tuple = Tuple::parse(&bytes, self.kind).map_err(|kind| self.in_tuple(Mistake::new(text.at, kind)))?;
            // Tuples of one rule differ in their encryption at most.
            let known = groups.iter().position(|group: &Group| tuple.encryption.bytes().eq(group.context.encryption.bytes()));
            let place = known.unwrap_or_else(|| {
                groups.truncate(ENCRYPTIONS_MAX - 1);
                groups.push(Group {
                    context: self.workshop.interner.context(&Names { encryption: tuple.encryption, ..names }),
                    mac: field::mac(mac.as_bytes()),
                    logged,
                    version,
                    interval: [Timestamp::NONE; 2],
                    udr_hop: false,
                });
                groups.len() - 1
            });
            let group = &groups[place];
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
