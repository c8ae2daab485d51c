//! Which MAC address an IPv4 address has on each tap: to tell a known device with a new address from a new device, and to see an
//! address that is taken over, as ARP spoofing does (ATT&CK T1557.002).
//!
//! A MAC address with several addresses behind it in a day is a router's and says nothing about hosts; so do those of first-hop
//! redundancy. An address that was quiet before it changed was leased anew. One that goes back and forth while its tap learns belongs to a
//! team of interfaces. An address that a live host loses to another device does not make that device a router: the man in the middle has
//! many addresses, too.

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::Mac;
use spanwatch_common::net::Address;

use super::{day_of, fingerprint, halves};
use crate::hash::Map;
use crate::series::history::longest_silent;
use spanwatch_common::time::Timestamp;

/// Days for which a router stays one.
const ROUTER_DAYS: u16 = 30;

/// Devices and addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Bindings {
    devices: Map<u64, Device>,
    /// By tap and address.
    hosts: Map<(u16, Address), Binding>,
    evicted: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Device {
    first: u16,
    /// Day of `addresses`.
    day: u16,
    /// Fingerprints of the addresses of that day, up to what makes a router.
    addresses: Vec<u32>,
    /// Until this day it is a router.
    router: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Binding {
    mac: u64,
    /// Minutes since 1970.
    seen: u32,
    /// Minute of the last change.
    changed: u32,
    /// Changes, each within the takeover time of the one before.
    changes: u32,
    /// It goes back and forth by nature.
    shared: bool,
}

/// An address in use has another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// The device before.
    pub(crate) from: u64,
    /// The device now.
    pub(crate) to: u64,
    /// How often it changed in a row.
    pub(crate) changes: u32,
}

/// What bounds the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) keys_max: usize,
    pub(crate) router_addresses: usize,
    pub(crate) takeover_minutes: u32,
}

impl Bindings {
    /// `address` was seen with `mac` by tap number `tap`.
    pub(crate) fn see(
        &mut self,
        tap: u16,
        address: Address,
        mac: u64,
        at: Timestamp,
        learned: bool,
        bounds: Bounds,
    ) -> Option<Takeover> {
        let minute = u32::try_from(at.as_nanos() / 60_000_000_000).unwrap_or(0);
        let day = day_of(at);
        let Some(binding) = self.hosts.get_mut(&(tap, address)) else {
            self.make_room(bounds.keys_max);
            self.hosts.insert((tap, address), Binding { mac, seen: minute, changed: 0, changes: 0, shared: false });
            self.lend(mac, address, day, bounds);
            return None;
        };
        let quiet = minute.saturating_sub(binding.seen);
        if binding.mac == mac {
            let new_day = binding.seen / 1_440 < minute / 1_440;
            binding.seen = binding.seen.max(minute);
            if new_day {
                self.lend(mac, address, day, bounds);
            }
            return None;
        }
        let router = |mac: u64| self.devices.get(&mac).is_some_and(|device| device.router >= day);
        if router(mac) {
            return None;
        }
        let from = std::mem::replace(&mut binding.mac, mac);
        binding.seen = binding.seen.max(minute);
        if router(from) || quiet > bounds.takeover_minutes {
            binding.changes *= u32::from(!learned);
            self.lend(mac, address, day, bounds);
            return None;
        }
        // While it learns, any second change is a habit.
        let anew = learned && minute.saturating_sub(binding.changed) > bounds.takeover_minutes;
        binding.changes = if anew { 1 } else { binding.changes + 1 };
        binding.changed = minute;
        binding.shared |= !learned && binding.changes > 1;
        let told = learned && !binding.shared;
        let takeover = Takeover { from, to: mac, changes: binding.changes };
        self.devices.entry(mac).or_insert(Device { first: day, day, ..Device::default() });
        told.then_some(takeover)
    }

    /// Whether the device with `mac` was known before the day of `at`.
    pub(crate) fn knows(&self, mac: u64, at: Timestamp) -> bool {
        self.devices.get(&mac).is_some_and(|device| device.first < day_of(at))
    }

    /// Whether `mac` is a router's.
    pub(crate) fn is_router(&self, mac: u64, at: Timestamp) -> bool {
        self.devices.get(&mac).is_some_and(|device| device.router >= day_of(at))
    }

    /// The device has this address, too.
    fn lend(&mut self, mac: u64, address: Address, day: u16, bounds: Bounds) {
        let device = self.devices.entry(mac).or_insert(Device { first: day, day, ..Device::default() });
        if device.day < day {
            device.day = day;
            device.addresses.clear();
        }
        let tag = fingerprint(&halves(address)) as u32;
        if !device.addresses.contains(&tag) && device.addresses.len() < bounds.router_addresses {
            device.addresses.push(tag);
        }
        if device.addresses.len() >= bounds.router_addresses {
            device.router = day.saturating_add(ROUTER_DAYS);
        }
    }

    fn make_room(&mut self, keys_max: usize) {
        if self.hosts.len() >= keys_max {
            let old = longest_silent(self.hosts.iter().map(|(key, binding)| (binding.seen, key)), keys_max - 1);
            self.evicted += old.len() as u64;
            old.iter().for_each(|key| _ = self.hosts.remove(key));
        }
        if self.devices.len() >= keys_max {
            let old = longest_silent(self.devices.iter().map(|(mac, device)| (device.day, mac)), keys_max - 1);
            self.evicted += old.len() as u64;
            old.iter().for_each(|mac| _ = self.devices.remove(mac));
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(crate) fn bytes(&self) -> usize {
        self.hosts.len() * (size_of::<Binding>() + 33) + self.devices.len() * (size_of::<Device>() + 25)
    }
}

/// `mac` as a number; none for no address, for groups, and for the virtual ones of VRRP (RFC 9568 §7.3), HSRP and GLBP.
pub(crate) fn device(mac: Mac) -> Option<u64> {
    let [a, b, c, d, e, _] = mac;
    let virtual_router = matches!((a, b, c, d, e), (0, 0, 0x5e, 0, 1 | 2) | (0, 0, 0x0c, 0x07, 0xac) | (0, 0x07, 0xb4, ..))
        || (a, b, c) == (0, 0, 0x0c) && d == 0x9f && e >> 4 == 0xf;
    let none = mac == [0; 6] || a & 1 == 1;
    (!none && !virtual_router).then(|| mac.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// `00:53:00:00:00:07`.
pub(crate) fn mac_text(device: u64) -> String {
    let bytes = device.to_be_bytes();
    let words: Vec<String> = bytes[2..].iter().map(|byte| format!("{byte:02x}")).collect();
    words.join(":")
}
