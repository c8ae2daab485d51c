//! Azure's files with known contents: every version and quirk of the formats, and traffic planted around every threshold.
//!
//! Everything follows from a seed. Addresses are of the documentation ranges (RFC 5737, RFC 3849) and RFC 1918; days count from
//! 2026-11-01 UTC, a Sunday. In the order of reading: [`Interface`] who logs, in which form · [`Tuple`] what happened · [`traffic`] makes tuples,
//! ordinary and planted · [`render`] makes files of them, and says what a reader must get out of each.

#![allow(dead_code, unused_imports, reason = "each user takes a part")]

pub mod render;
pub mod traffic;

use std::net::IpAddr;
use std::path::Path;

pub use render::{File, Told, render};
pub use traffic::{Traffic, Verdict};

/// 2026-11-01T00:00:00Z in seconds.
pub const EPOCH: i64 = 1_793_491_200;
/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// How a network interface is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// VNet flow log v4, milliseconds.
    Vnet,
    /// VNet flow log v4 with times in seconds, as the documentation's example.
    VnetSeconds,
    /// NSG flow log v2.
    NsgV2,
    /// NSG flow log whose version was changed again and again: records of v1 and v2 in one file.
    NsgMixed,
    /// Traffic Analytics, `NTANetAnalytics` as JSON lines.
    AnalyticsLines,
    /// The same as CSV.
    AnalyticsCsv,
    /// Traffic Analytics, `AzureNetworkAnalytics_CL` as JSON lines.
    AnalyticsNsg,
}

impl Form {
    /// Whether the form is a table of Traffic Analytics.
    pub fn is_folded(self) -> bool {
        matches!(self, Self::AnalyticsLines | Self::AnalyticsCsv | Self::AnalyticsNsg)
    }

    /// Whether times have no fractions of a second.
    pub fn has_seconds(self) -> bool {
        matches!(self, Self::VnetSeconds | Self::NsgV2 | Self::NsgMixed)
    }

    /// Whether it is an NSG's log, which knows TCP and UDP only.
    pub fn is_nsg(self) -> bool {
        matches!(self, Self::NsgV2 | Self::NsgMixed | Self::AnalyticsNsg)
    }
}

/// The interfaces, by number.
pub const INTERFACES: [Form; 11] = [
    Form::Vnet,
    Form::Vnet,
    Form::Vnet,
    Form::Vnet,
    Form::VnetSeconds,
    Form::NsgV2,
    Form::NsgV2,
    Form::NsgMixed,
    Form::AnalyticsLines,
    Form::AnalyticsCsv,
    Form::AnalyticsNsg,
];

/// A network interface that logs, by its number in [`INTERFACES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface(pub u8);

impl Interface {
    /// How it is logged.
    pub fn form(self) -> Form {
        INTERFACES[usize::from(self.0)]
    }

    /// Its MAC address as Azure writes it.
    pub fn mac(self) -> String {
        format!("0022480000{:02X}", self.0)
    }

    /// The address of its machine.
    pub fn address(self) -> IpAddr {
        IpAddr::from([10, 20, self.0, 4])
    }

    /// The machine, as Traffic Analytics names it.
    pub fn machine(self) -> String {
        format!("rg-plant/vm-{}", self.0)
    }
}

/// Where in its life a flow was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Begin,
    Continue,
    End,
    Denied,
}

/// What happened at an interface, before it is written in the interface's form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub at_ms: i64,
    pub interface: Interface,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub port: u16,
    pub protocol: u8,
    pub inbound: bool,
    pub state: State,
    /// `[forward, reverse]`; zero for Begin and Denied.
    pub packets: [u64; 2],
    pub octets: [u64; 2],
    /// The platform's own traffic, not a tenant's.
    pub platform: bool,
}

/// A reproducible stream of numbers (Knuth's MMIX constants).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed);
        dice.below(2);
        dice
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Writes `files` below `directory`, each under the path that Azure gives it.
pub fn write_below(directory: &Path, file: &File) {
    let path = directory.join(&file.path);
    std::fs::create_dir_all(path.parent().expect("a file stands in a directory")).expect("room on the disk");
    std::fs::write(path, &file.text).expect("room on the disk");
}
