//! Settings of the rules about what was not there before, and what is there no more.

use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, Weakness, native_parts, native_settings, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::{RuleCard, Severity};
use crate::native::edges::{Assets, Lateral, Services, Silence, assets, lateral, services, silence};
use crate::ports::PortSet;
use crate::{Detector, Mode};

/// ND-13 in the catalogue.
pub const ND_13: Entry = Entry {
    id: "ND-13",
    title: "Lateral movement",
    public_id: "",
    public_name: "",
    tactics: "Lateral Movement",
    exact: "",
    fixed: "A host opens an administration service (SSH, SMB, RDP, WinRM, VNC, a controller's engineering port) of another that it had \
            not opened in two weeks. One is told with low severity; several hosts within the hour, or a host that was opened and opens \
            the next within the hour, with high severity. Services that many use are left out. Silent while it learns.",
    innocent: "An administrator's machine, a deployment or an inventory: give it the role admin or scanner. A new backup or monitoring \
               server: with such a role only single steps and chains are told.",
};

/// ND-14 in the catalogue.
pub const ND_14: Entry = Entry {
    id: "ND-14",
    title: "New asset",
    public_id: "",
    public_name: "",
    tactics: "Initial Access, Lateral Movement, Credential Access",
    exact: "",
    fixed: "An address of a site speaks that never spoke before, unless its MAC address is that of a known device. A network that gets \
            new addresses every few days (DHCP, guests) is learned, and gets one line a day. And: an address in use moves to another \
            MAC address within minutes, or back and forth, which is what ARP spoofing looks like. Silent while it learns.",
    innocent: "A new laptop, a replaced device, a failover without a virtual MAC address (told once). Routers, first-hop redundancy and \
               teams of interfaces are learned.",
};

/// ND-15 in the catalogue.
pub const ND_15: Entry = Entry {
    id: "ND-15",
    title: "New service",
    public_id: "",
    public_name: "",
    tactics: "Persistence, Command and Control, Lateral Movement",
    exact: "",
    fixed: "A host of a site answers on a port on which it never answered before; graver when the first who is answered is outside. \
            Ports without a name need a second client, and ports that FTP and remote procedure calls make up as they go are left out. \
            Silent while it learns.",
    innocent: "A new program or a new server. Passive FTP, remote procedure calls, peer-to-peer programs: left out.",
};

/// ND-16 in the catalogue.
pub const ND_16: Entry = Entry {
    id: "ND-16",
    title: "Silent asset",
    public_id: "",
    public_name: "",
    tactics: "Impact, Inhibit Response Function",
    exact: "",
    fixed: "A host that was never quiet for long is silent for three times its longest pause of two weeks, while the sensor that saw it \
            still sees others. When most hosts of a sensor fall silent at once, that is told instead. Silent while it learns.",
    innocent: "Office machines at night and at weekends pause for hours and are left out; maintenance; a sensor that is blind for a while.",
};

native_settings! {
    /// Settings of ND-13.
    LateralMovement {
        enabled: true,
        window_secs: 3_600,
        lateness_secs: 60,
        severity: Informational,
        attack: ["T1021", "T1210", "T1570"],
        exclude_ports: [],
        keys_max: 1_000_000,
    }
    /// Ports by which hosts are administered.
    admin_ports: Vec<PortRange> = lateral::admin_ports(),
    /// How long an edge is remembered.
    memory_secs: u64 = 1_209_600,
    /// How long it only learns.
    learn_secs: u64 = 604_800,
    /// So many hosts newly opened by one source within an hour are a fan-out.
    fan_out_hosts: usize = 3,
    /// How long after it was opened a host's own next step makes a chain.
    chain_secs: u64 = 3_600,
    /// A service with so many clients is everybody's, and a new client no news; 0 for never.
    clients_usual: u16 = 8,
    /// Severity of chains and fan-outs.
    severity_movement: Severity = Severity::High,
}

native_settings! {
    /// Settings of ND-14.
    NewAsset {
        enabled: true,
        window_secs: 3_600,
        lateness_secs: 60,
        severity: Low,
        attack: ["T1200", "T0864"],
        exclude_ports: [],
        keys_max: 500_000,
    }
    /// How long an asset is remembered.
    memory_secs: u64 = 2_592_000,
    /// How long it only learns.
    learn_secs: u64 = 604_800,
    /// So many new addresses of one network in a day are told one by one; the rest in one line.
    network_new_max: u32 = 4,
    /// So many addresses behind one MAC address make it a router's.
    router_addresses: u8 = 4,
    /// An address that was in use so recently and now has another MAC address was taken over.
    takeover_secs: u64 = 600,
    /// Severity of an address that was taken over; one degree more when it goes back and forth.
    severity_takeover: Severity = Severity::Medium,
}

native_settings! {
    /// Settings of ND-15.
    NewService {
        enabled: true,
        window_secs: 3_600,
        lateness_secs: 60,
        severity: Low,
        attack: ["T1571", "T0867"],
        exclude_ports: [],
        keys_max: 500_000,
    }
    /// How long a service is remembered.
    memory_secs: u64 = 2_592_000,
    /// How long it only learns.
    learn_secs: u64 = 604_800,
    /// Ports from 1024 on that are a service from the first client on.
    named_ports: Vec<PortRange> = services::named_ports(),
    /// Any other port from 1024 on takes so many clients within a day to be one.
    clients_min: u8 = 2,
    /// Severity when a client outside is answered for the first time.
    severity_exposed: Severity = Severity::Medium,
}

native_settings! {
    /// Settings of ND-16.
    SilentAsset {
        enabled: true,
        window_secs: 86_400,
        lateness_secs: 60,
        severity: Low,
        attack: ["T0814", "T0881"],
        exclude_ports: [],
        keys_max: 200_000,
    }
    /// How long a host is watched before its silence means anything.
    learn_secs: u64 = 604_800,
    /// Silent is who is silent for more than so many times its longest pause.
    pauses: f64 = 3.0,
    /// And for at least so long.
    silence_secs_min: u64 = 300,
    /// Hosts that pause for longer are not watched.
    pause_secs_max: u64 = 21_600,
}

/// Whether a rule may remember and learn for so long.
fn memory(memory_secs: u64, learn_secs: u64) -> Result<(), Mistake> {
    const DAYS_MAX: u64 = 62 * 86_400;
    within("memory_secs", memory_secs, 86_400, DAYS_MAX)?;
    within("learn_secs", learn_secs, 0, DAYS_MAX)
}

impl Rule for LateralMovement {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        memory(self.memory_secs, self.learn_secs)?;
        within("fan_out_hosts", self.fan_out_hosts as u64, 2, 200)?;
        within("chain_secs", self.chain_secs, 60, 86_400)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(self.memory_secs)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Blind, Weakness::OneSided]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let numbers = lateral::Numbers {
            ports: PortSet::of(&self.admin_ports),
            memory: Duration::from_secs(self.memory_secs),
            learn: Duration::from_secs(self.learn_secs),
            fan_out: self.fan_out_hosts,
            chain: Duration::from_secs(self.chain_secs),
            clients_usual: self.clients_usual,
            severity_movement: self.severity_movement,
        };
        Box::new(Lateral::new(numbers, card, &self.common_settings()))
    }
}

impl Rule for NewAsset {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        memory(self.memory_secs, self.learn_secs)?;
        within("network_new_max", u64::from(self.network_new_max), 1, 65_536)?;
        within("router_addresses", u64::from(self.router_addresses), 2, 4)?;
        within("takeover_secs", self.takeover_secs, 60, 86_400)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(self.memory_secs)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Blind]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let numbers = assets::Numbers {
            memory: Duration::from_secs(self.memory_secs),
            learn: Duration::from_secs(self.learn_secs),
            network_new_max: self.network_new_max,
            router_addresses: self.router_addresses,
            takeover: Duration::from_secs(self.takeover_secs),
            severity_takeover: self.severity_takeover,
        };
        Box::new(Assets::new(numbers, card, &self.common_settings()))
    }
}

impl Rule for NewService {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        memory(self.memory_secs, self.learn_secs)?;
        within("clients_min", u64::from(self.clients_min), 1, 8)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(self.memory_secs)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Blind, Weakness::OneSided]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let numbers = services::Numbers {
            memory: Duration::from_secs(self.memory_secs),
            learn: Duration::from_secs(self.learn_secs),
            named: PortSet::of(&self.named_ports),
            clients_min: usize::from(self.clients_min),
            severity_exposed: self.severity_exposed,
        };
        Box::new(Services::new(numbers, card, &self.common_settings()))
    }
}

impl Rule for SilentAsset {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("learn_secs", self.learn_secs, 3_600, 14 * 86_400)?;
        within_f64("pauses", self.pauses, 1.5, 100.0)?;
        within("silence_secs_min", self.silence_secs_min, 180, 86_400)?;
        within("pause_secs_max", self.pause_secs_max, 60, 7 * 86_400)
    }

    fn history(&self) -> Duration {
        // The silence itself comes after the learning.
        Duration::from_secs(self.learn_secs + 2 * 86_400)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Blind, Weakness::Loss]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let numbers = silence::Numbers {
            learn: Duration::from_secs(self.learn_secs),
            pauses: self.pauses,
            silence_min: Duration::from_secs(self.silence_secs_min),
            pause_max: Duration::from_secs(self.pause_secs_max),
        };
        Box::new(Silence::new(numbers, card, &self.common_settings()))
    }
}
