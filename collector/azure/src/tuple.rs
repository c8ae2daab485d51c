//! One tuple of a flow log: a comma-separated line to a row.
//!
//! | format | fields |
//! | --- | --- |
//! | NSG v1 | seconds, source, destination, source port, destination port, `T` or `U`, `I` or `O`, `A` or `D` |
//! | NSG v2 | the same, then `B`, `C` or `E`, packets and bytes from source to destination, packets and bytes back |
//! | VNet v4 | milliseconds … `I` or `O`, then `B`, `C`, `E` or `D`, encryption, packets and bytes as above |

use spanwatch_common::cloud::{Action, Direction, Origin};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::error::{ErrorKind, excerpt};
use crate::field;
use crate::row::{Group, Position, Row, State};

/// Which of the two formats a record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nsg,
    Vnet,
}

impl Kind {
    /// The name in error messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nsg => "NSG flow log",
            Self::Vnet => "VNet flow log",
        }
    }
}

/// What the fields of a tuple say.
#[derive(Clone, Copy)]
pub(crate) struct Tuple<'t> {
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
    /// `X`, `NX` or `NX_…`; empty in NSG flow logs.
    pub(crate) encryption: &'t str,
    packets: [u64; 2],
    octets: [u64; 2],
}

impl<'t> Tuple<'t> {
    /// The number of fields tells v1 and v2 of NSG flow logs apart, whatever the record says.
    #[inline]
    pub(crate) fn parse(text: &'t [u8], kind: Kind) -> Result<Self, ErrorKind> {
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

    /// The tuple with what its surroundings say.
    #[inline]
    pub(crate) const fn row<'g>(&self, position: Position, group: &'g Group, identity: u64) -> Row<'g> {
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
