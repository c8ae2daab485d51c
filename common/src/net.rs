//! Addresses and prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IP address in 16 bytes: IPv6 as it is, IPv4 mapped (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2), all zero for "none".
///
/// Compared and hashed as one number, in network byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u128);

/// The upper 96 bits of every mapped IPv4 address.
const V4_MAPPED: u128 = 0xffff_0000_0000;

impl Address {
    /// The address of a flow that has none (layer 2).
    pub const NONE: Self = Self(0);

    /// From the four bytes of an IPv4 header.
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self(V4_MAPPED | u32::from_be_bytes(octets) as u128)
    }

    /// From the sixteen bytes of an IPv6 header.
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(octets))
    }

    /// The IPv4 address, if this is a mapped one.
    pub const fn as_v4(self) -> Option<Ipv4Addr> {
        if self.0 >> 32 == V4_MAPPED >> 32 { Some(Ipv4Addr::from_bits(self.0 as u32)) } else { None }
    }

    /// Whether there is an address at all.
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// RFC 1918 space, as KQL's `ipv4_is_private`: 10/8, 172.16/12, 192.168/16 and nothing else; false for IPv6.
    pub fn is_private_v4(self) -> bool {
        self.as_v4().is_some_and(|v4| v4.is_private())
    }

    /// RFC 1918 or unique local (RFC 4193) space.
    pub fn is_private(self) -> bool {
        self.is_private_v4() || self.0 >> 121 == 0xfc >> 1
    }

    /// Multicast of either family, or IPv4 limited broadcast.
    pub fn is_multicast(self) -> bool {
        match self.as_v4() {
            Some(v4) => v4.is_multicast() || v4.is_broadcast(),
            None => self.0 >> 120 == 0xff,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_v4() {
            Some(v4) => v4.fmt(f),
            None => Ipv6Addr::from_bits(self.0).fmt(f),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpAddr>().map(Self::from)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A range of addresses that share their first bits, written `10.0.0.0/8` or `2001:db8::/32`; a bare address is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    first: u128,
    /// Bits that must agree, counted in the 128-bit form: 96 + n for IPv4.
    bits: u8,
}

impl Prefix {
    /// The range around `address` of all that share its first `bits` bits, counted in the 128-bit form; more than 128 is 128.
    pub const fn new(address: Address, bits: u8) -> Self {
        let bits = if bits > 128 { 128 } else { bits };
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
        Self { first: address.0 & mask, bits }
    }

    /// Whether `address` lies in the range.
    pub const fn contains(&self, address: Address) -> bool {
        match self.bits {
            0 => true,
            bits => (address.0 ^ self.first) >> (128 - bits) == 0,
        }
    }

    /// The lowest address in the range.
    pub const fn first(&self) -> Address {
        Address(self.first)
    }

    /// The highest address in the range.
    pub const fn last(&self) -> Address {
        Address(match self.bits {
            0 => u128::MAX,
            bits => self.first | !(u128::MAX << (128 - bits)),
        })
    }

    /// Bits that all addresses of the range share, counted in the 128-bit form: 96 + n for an IPv4 prefix of length n.
    pub const fn bits(&self) -> u8 {
        self.bits
    }
}

/// Why a text is no prefix.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a prefix; write an address and a length, such as 10.0.0.0/8 or 2001:db8::/32")]
pub struct PrefixError(String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let error = || PrefixError(text.to_owned());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| error())?)),
            None => (text, None),
        };
        let ip: IpAddr = address.parse().map_err(|_| error())?;
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(width);
        if length > width {
            return Err(error());
        }
        Ok(Self::new(Address::from(ip), 128 - width + length))
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = Address(self.first);
        match first.as_v4().filter(|_| self.bits >= 96) {
            Some(v4) => write!(f, "{v4}/{}", self.bits - 96),
            None => write!(f, "{}/{}", Ipv6Addr::from_bits(self.first), self.bits),
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect("a literal")
    }

    #[test]
    fn private_space_is_what_kql_says() {
        for (text, private) in [
            ("10.1.2.3", true),
            ("172.15.255.255", false),
            ("172.16.0.1", true),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("192.168.0.1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("100.64.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(address(text).is_private_v4(), private, "{text}");
        }
        assert!(address("fd00::1").is_private());
    }

    #[test]
    fn a_prefix_holds_its_own_and_nothing_else() {
        let ten: Prefix = "10.0.0.0/8".parse().expect("a literal");
        assert!(ten.contains(address("10.255.255.255")));
        assert!(!ten.contains(address("11.0.0.0")));
        assert!(!ten.contains(address("::a00:1")));
        assert!("0.0.0.0/0".parse::<Prefix>().expect("a literal").contains(address("8.8.8.8")));
        assert!(!"0.0.0.0/0".parse::<Prefix>().expect("a literal").contains(address("2001:db8::1")));
        assert_eq!(ten.to_string(), "10.0.0.0/8");
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
        assert!("ten".parse::<Prefix>().is_err());
    }
}
