//! KQL's IPv4 predicates. They take text, and say `None` (KQL's null, which `where` drops) for what is not IPv4.

use std::net::Ipv4Addr;

/// KQL's `ipv4_is_private`: whether an address or prefix lies in 10/8, 172.16/12 or 192.168/16 (RFC 1918), and nothing else.
///
/// Loopback, link-local and carrier-grade NAT (100.64/10) are not private. A prefix (`192.168.1.1/24`) is private when all of it
/// is. `None` for text that is neither, IPv6 included.
pub fn ipv4_is_private(text: &str) -> Option<bool> {
    let block = Block::parse(text)?;
    Some(PRIVATE.iter().any(|range| range.holds(block)))
}

/// KQL's `ipv4_is_in_range`: whether an address (or all of a prefix) lies in a prefix. A range without length is one address.
pub fn ipv4_is_in_range(text: &str, range: &str) -> Option<bool> {
    Some(Block::parse(range)?.holds(Block::parse(text)?))
}

/// KQL's `ipv4_is_in_any_range`. `None` when the address or any of the ranges is not IPv4.
pub fn ipv4_is_in_any_range(text: &str, ranges: &[&str]) -> Option<bool> {
    let block = Block::parse(text)?;
    let ranges = ranges.iter().map(|range| Block::parse(range)).collect::<Option<Vec<_>>>()?;
    Some(ranges.iter().any(|range| range.holds(block)))
}

/// A prefix: the addresses that agree with `address` in the first `length` bits.
#[derive(Clone, Copy)]
struct Block {
    address: u32,
    length: u32,
}

const PRIVATE: [Block; 3] = [
    Block { address: 0x0a00_0000, length: 8 },
    Block { address: 0xac10_0000, length: 12 },
    Block { address: 0xc0a8_0000, length: 16 },
];

impl Block {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) if length.bytes().all(|digit| digit.is_ascii_digit()) => (address, length.parse().ok()?),
            Some(_) => return None,
            None => (text, 32),
        };
        let address = address.parse::<Ipv4Addr>().ok()?.to_bits();
        (length <= 32).then_some(Self { address, length })
    }

    fn holds(self, other: Self) -> bool {
        let differing = self.address ^ other.address;
        other.length >= self.length && differing.checked_shr(32 - self.length).unwrap_or(0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_agrees_in_their_prefix() {
        assert_eq!(ipv4_is_in_range("127.0.0.1", "127.0.0.1"), Some(true));
        assert_eq!(ipv4_is_in_range("192.168.1.6", "192.168.1.1/24"), Some(true));
        assert_eq!(ipv4_is_in_range("192.168.1.1", "192.168.1.255/24"), Some(true));
        assert_eq!(ipv4_is_in_range("192.168.1.1", "192.168.2.1/24"), Some(false));
        assert_eq!(ipv4_is_in_range("203.0.113.9", "0.0.0.0/0"), Some(true));
        assert_eq!(ipv4_is_in_range("203.0.113.9", "nonsense"), None);
        assert_eq!(ipv4_is_in_any_range("169.254.7.7", &["169.254.0.0/16", "127.0.0.0/8"]), Some(true));
        assert_eq!(ipv4_is_in_any_range("198.51.100.1", &["169.254.0.0/16", "127.0.0.0/8"]), Some(false));
        assert_eq!(ipv4_is_in_any_range("198.51.100.1", &["169.254.0.0/16", "::/0"]), None);
    }

    #[test]
    fn the_private_ranges_end_where_rfc_1918_says() {
        for (text, expected) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("172.15.255.255", false),
            ("172.16.0.0", true),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("192.167.255.255", false),
            ("192.168.255.255", true),
            ("100.64.0.1", false),
            ("169.254.0.1", false),
            ("10.0.0.0/7", false),
        ] {
            assert_eq!(ipv4_is_private(text), Some(expected), "{text}");
        }
        for text in ["", "::1", "10.1.2", "10.1.2.3/33", "10.1.2.3/", "10.1.2.3/+8", "10.1.2.256", " 10.1.2.3"] {
            assert_eq!(ipv4_is_private(text), None, "{text:?}");
        }
    }
}
