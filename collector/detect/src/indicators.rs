//! Addresses that are known to be bad, from a file: one address or prefix per line, `#` begins a comment.

use std::path::Path;

use spanwatch_common::net::{Address, Prefix};

/// Most lines with a prefix: 32 MiB in memory.
const PREFIXES_MAX: usize = 1_000_000;
/// A larger file is no list of addresses.
const BYTES_MAX: u64 = 256 << 20;

/// Ranges of addresses, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indicators(Vec<(u128, u128)>);

impl Indicators {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is too large, or has a line that is no address: a sentence with the line.
    pub fn load(path: &Path) -> Result<Self, String> {
        let trouble = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        if std::fs::metadata(path).map_err(trouble)?.len() > BYTES_MAX {
            return Err(format!("{} is larger than 256 MiB; is it a list of addresses?", path.display()));
        }
        let text = std::fs::read_to_string(path).map_err(trouble)?;
        Self::parse(&text).map_err(|(line, what)| format!("{}:{line}: {what}", path.display()))
    }

    /// Reads the content of such a file.
    ///
    /// # Errors
    /// The line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut ranges = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let prefix: Prefix = line.parse().map_err(|error| (number + 1, format!("{error}")))?;
            if ranges.len() == PREFIXES_MAX {
                return Err((number + 1, format!("more than {PREFIXES_MAX} addresses and prefixes; put neighbours together")));
            }
            ranges.push((prefix.first().0, prefix.last().0));
        }
        ranges.sort_unstable();
        let mut apart: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match apart.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => apart.push((first, last)),
            }
        }
        Ok(Self(apart))
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: Address) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= address.0);
        after.checked_sub(1).and_then(|before| self.0.get(before)).is_some_and(|&(_, last)| address.0 <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_addresses_are_found_and_a_wrong_line_is_named() {
        let set = Indicators::parse("# bad\n198.51.100.0/25\n198.51.100.7\n2001:db8::/32 # net\n\n203.0.113.9\n").expect("good");
        for (address, known) in [
            ("198.51.100.0", true),
            ("198.51.100.127", true),
            ("198.51.100.128", false),
            ("203.0.113.9", true),
            ("203.0.113.10", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
        ] {
            assert_eq!(set.contains(address.parse().expect("a literal")), known, "{address}");
        }
        assert_eq!(Indicators::parse("10.0.0.1\nexample.org\n").expect_err("no address").0, 2);
    }
}
