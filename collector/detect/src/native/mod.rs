//! The ND rules: detectors of our own, beyond what the public rules for Azure see.
//!
//! They are online: each row changes what is known of its hosts at once, and a finding is told as soon as it is one, in a stream and
//! in a replay alike. They want rows in the order of time ([`Detector::wants_order`](crate::Detector::wants_order)); what time does by
//! itself (a window slides, a baseline takes in an hour) happens on edges of event time, so that it does not matter how often
//! [`advance`](crate::Detector::advance) is called.
//!
//! What they share: `table` what is known of each key, of bounded size · `lasting` when a claim is told · `sightings` the rows that become
//! evidence.
//!
//! The families: [`scan`] ND-01 to ND-06, searches · [`flood`] ND-07 to ND-09 · [`beacon`] ND-10, hosts that call out in a rhythm ·
//! [`exfiltration`] ND-11 · [`volume`] ND-12, services that carry more or less than at that hour of the week · [`edges`] ND-13 to ND-16,
//! what was not there before, and what is there no more · [`logons`] ND-17, password guessing · [`callbacks`] ND-28.

pub(crate) mod beacon;
pub(crate) mod callbacks;
pub(crate) mod edges;
pub(crate) mod exfiltration;
pub(crate) mod flood;
mod lasting;
pub(crate) mod logons;
pub(crate) mod scan;
pub(crate) mod sightings;
pub(crate) mod table;
pub(crate) mod volume;

use std::time::Duration;

use spanwatch_common::net::Address;

/// The network to which an address belongs, by its first address: /24 of IPv4, /48 of IPv6.
pub(crate) fn network(address: Address) -> u128 {
    let host_bits = if address.as_v4().is_some() { 8 } else { 80 };
    address.0 >> host_bits << host_bits
}

/// `812.4 MB`.
pub(crate) fn in_bytes(octets: f64) -> String {
    let (unit, name) = match octets {
        octets if octets >= 1e9 => (1e9, "GB"),
        octets if octets >= 1e6 => (1e6, "MB"),
        octets if octets >= 1e3 => (1e3, "kB"),
        _ => return format!("{octets:.0} bytes"),
    };
    format!("{:.1} {name}", octets / unit)
}

/// `45 s`, `12 min`, `3 h`, `14 days`.
pub(crate) fn span(span: Duration) -> String {
    match span.as_secs() {
        secs @ 0..=180 => format!("{secs} s"),
        secs @ 181..7_200 => format!("{} min", secs / 60),
        secs @ 7_200..172_800 => format!("{} h", secs / 3_600),
        secs => format!("{} days", secs / 86_400),
    }
}
