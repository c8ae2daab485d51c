//! Where addresses belong: the operator's sites, and the class of a flow between them.
//!
//! East-west traffic stays inside a site, north-south traffic crosses to the outside. Which is which only the operator knows, so
//! the configuration lists `[[sites]]`; without any, all private space (RFC 1918, RFC 4193) is one site.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Direction;
use spanwatch_common::net::{Address, Prefix};

/// Most prefixes in all sites together.
pub const PREFIXES_MAX: usize = 4_096;

/// A place of the operator's own: `[[sites]]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSettings {
    /// What it is called.
    pub name: String,
    /// Its addresses, such as "10.1.0.0/16" or "2001:db8:1::/48". Where prefixes overlap, the longest decides.
    pub cidrs: Vec<Prefix>,
}

/// The class of a flow, from where its two ends belong (as FlowType of Traffic Analytics).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowClass {
    /// An end is not known (a blank address of Traffic Analytics).
    #[default]
    Unknown,
    /// Both ends in the same site: east-west.
    IntraSite,
    /// Both ends in sites, but not the same.
    InterSite,
    /// One end is in no site and public: north-south.
    External,
    /// One end is private space that no site claims.
    UnknownPrivate,
    /// To a group or to everyone. Never counted as a scan.
    Multicast,
}

impl FlowClass {
    /// The word used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::IntraSite => "intra_site",
            Self::InterSite => "inter_site",
            Self::External => "external",
            Self::UnknownPrivate => "unknown_private",
            Self::Multicast => "multicast",
        }
    }
}

/// The sites, made ready for looking up.
#[derive(Clone, Debug)]
pub struct Sites {
    names: Vec<String>,
    /// Where the answer changes, ascending: from this address on, the site of that number, or none.
    steps: Vec<(u128, Option<u16>)>,
}

impl Default for Sites {
    /// All private space is one site.
    fn default() -> Self {
        let cidrs = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        let cidrs = cidrs.iter().filter_map(|text| text.parse().ok()).collect();
        Self::build(&[SiteSettings { name: "private".to_owned(), cidrs }])
    }
}

impl Sites {
    /// From the configuration; without any site, the default.
    ///
    /// # Errors
    /// A site without a name or addresses, a name twice, too many prefixes: a sentence that says which.
    pub fn new(settings: &[SiteSettings]) -> Result<Self, String> {
        let mut names = BTreeSet::new();
        for site in settings {
            if site.name.is_empty() || site.cidrs.is_empty() {
                return Err(format!("site {:?} needs a name and at least one prefix, such as \"10.1.0.0/16\"", site.name));
            }
            if !names.insert(&site.name) {
                return Err(format!(
                    "there are two sites named {:?}; give one another name, or put their cidrs together",
                    site.name
                ));
            }
        }
        let prefixes: usize = settings.iter().map(|site| site.cidrs.len()).sum();
        if prefixes > PREFIXES_MAX || settings.len() > PREFIXES_MAX {
            return Err(format!("{prefixes} prefixes are more than {PREFIXES_MAX}; put neighbours together"));
        }
        Ok(if settings.is_empty() { Self::default() } else { Self::build(settings) })
    }

    fn build(settings: &[SiteSettings]) -> Self {
        let mut prefixes: Vec<(Prefix, u16)> = Vec::new();
        for (site, number) in settings.iter().zip(0_u16..) {
            prefixes.extend(site.cidrs.iter().map(|&prefix| (prefix, number)));
        }
        // Longest first: the first that contains an address decides.
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.bits()));
        let mut starts: BTreeSet<u128> = BTreeSet::from([0]);
        for (prefix, _) in &prefixes {
            starts.insert(prefix.first().0);
            starts.extend(prefix.last().0.checked_add(1));
        }
        let site_at = |address| prefixes.iter().find(|(prefix, _)| prefix.contains(Address(address))).map(|&(_, site)| site);
        let steps = starts.into_iter().map(|start| (start, site_at(start))).collect();
        Self { names: settings.iter().map(|site| site.name.clone()).collect(), steps }
    }

    /// The number of the site to which `address` belongs.
    pub fn number(&self, address: Address) -> Option<u16> {
        let after = self.steps.partition_point(|&(start, _)| start <= address.0);
        self.steps.get(after.checked_sub(1)?).and_then(|&(_, site)| site)
    }

    /// The name of the site to which `address` belongs.
    pub fn name(&self, address: Address) -> Option<&str> {
        self.names.get(usize::from(self.number(address)?)).map(String::as_str)
    }

    /// The class of a flow between two addresses, and which way it crosses the border of all sites.
    pub fn place(&self, source: Address, destination: Address) -> (FlowClass, Direction) {
        if !source.is_some() || !destination.is_some() {
            return (FlowClass::Unknown, Direction::Unknown);
        }
        let (from, to) = (self.number(source), self.number(destination));
        let direction = match (from.is_some(), to.is_some()) {
            (true, true) => Direction::Local,
            (true, false) => Direction::Outbound,
            (false, true) => Direction::Inbound,
            (false, false) => Direction::Unknown,
        };
        let class = match (from, to) {
            _ if destination.is_multicast() => FlowClass::Multicast,
            (Some(a), Some(b)) if a == b => FlowClass::IntraSite,
            (Some(_), Some(_)) => FlowClass::InterSite,
            (from, to) if from.is_none() && source.is_private() || to.is_none() && destination.is_private() => {
                FlowClass::UnknownPrivate
            }
            _ => FlowClass::External,
        };
        (class, direction)
    }

    /// The class of a flow between two addresses.
    pub fn class(&self, source: Address, destination: Address) -> FlowClass {
        self.place(source, destination).0
    }

    /// Which way a flow between two addresses crosses the border of all sites.
    pub fn direction(&self, source: Address, destination: Address) -> Direction {
        self.place(source, destination).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Address {
        text.parse().expect("a literal")
    }

    fn site(name: &str, cidrs: &[&str]) -> SiteSettings {
        SiteSettings { name: name.to_owned(), cidrs: cidrs.iter().map(|text| text.parse().expect("a literal")).collect() }
    }

    #[test]
    fn the_longest_prefix_decides_and_every_class_is_met() {
        let sites =
            Sites::new(&[site("plant", &["10.0.0.0/8", "2001:db8:1::/48"]), site("cell 7", &["10.7.0.0/16", "203.0.113.0/24"])])
                .expect("well formed");
        assert_eq!(sites.name(host("10.7.255.255")), Some("cell 7"));
        assert_eq!(sites.name(host("10.8.0.0")), Some("plant"));
        assert_eq!(sites.name(host("11.0.0.0")), None);
        for (source, destination, class, direction) in [
            ("10.1.0.1", "10.2.0.1", FlowClass::IntraSite, Direction::Local),
            ("10.1.0.1", "10.7.0.1", FlowClass::InterSite, Direction::Local),
            ("2001:db8:1::1", "10.1.0.1", FlowClass::IntraSite, Direction::Local),
            ("10.1.0.1", "198.51.100.1", FlowClass::External, Direction::Outbound),
            ("198.51.100.1", "203.0.113.9", FlowClass::External, Direction::Inbound),
            ("192.168.0.1", "10.1.0.1", FlowClass::UnknownPrivate, Direction::Inbound),
            ("10.1.0.1", "224.0.0.251", FlowClass::Multicast, Direction::Outbound),
        ] {
            assert_eq!(sites.class(host(source), host(destination)), class, "{source} > {destination}");
            assert_eq!(sites.direction(host(source), host(destination)), direction, "{source} > {destination}");
        }
        assert_eq!(sites.class(Address::NONE, host("10.1.0.1")), FlowClass::Unknown);
    }

    #[test]
    fn without_sites_private_space_is_one() {
        let sites = Sites::new(&[]).expect("the default");
        assert_eq!(sites.class(host("10.0.0.1"), host("192.168.0.1")), FlowClass::IntraSite);
        assert_eq!(sites.direction(host("fd00::1"), host("2001:db8::1")), Direction::Outbound);
    }

    #[test]
    fn a_site_without_addresses_or_with_a_name_twice_is_refused() {
        assert!(Sites::new(&[site("a", &[])]).expect_err("empty").contains("at least one prefix"));
        assert!(Sites::new(&[site("a", &["10.0.0.0/8"]), site("a", &["11.0.0.0/8"])]).expect_err("twice").contains("two sites"));
    }
}
