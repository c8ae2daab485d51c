//! Settings of the rule for guessed passwords.

use std::time::Duration;

use super::common::{Mistake, PortRange, Rule, Weakness, native_parts, native_settings, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::native::logons::{GuessSettings, Likeness, Logons};
use crate::ports::PortSet;
use crate::{Detector, Mode};

/// ND-17 in the catalogue.
pub const ND_17: Entry = Entry {
    id: "ND-17",
    title: "Password guessing",
    public_id: "",
    public_name: "",
    tactics: "Credential Access",
    exact: "",
    fixed: "Per source, host and port where people log on, short sessions that are alike in packets and octets; fires from \
            threshold_attempts within five minutes on, from slow_attempts within a day on, and as password spraying from spray_tries on each \
            of spray_hosts hosts within half an hour on. Severity rises when a session of another kind follows: one password may have \
            been right. Each pair is compared with its earlier days.",
    innocent: "Monitoring that logs on at no steady rhythm, automation and version control over SSH on its first day, tests of a \
               logon service. Monitoring, load balancers and backups by their role.",
};

native_settings! {
    /// Settings of ND-17.
    PasswordGuessing {
        enabled: true,
        window_secs: 300,
        lateness_secs: 30,
        severity: Medium,
        attack: ["T1110.001", "T1110.003"],
        exclude_ports: [],
        keys_max: 65_536,
    }
    /// Ports where people log on: FTP, SSH, Telnet, POP3, IMAP, LDAP, SMB, SQL Server, Oracle, MySQL, RDP, PostgreSQL, VNC, WinRM, WinBox.
    ports: Vec<PortRange> = PORTS.map(PortRange::one).to_vec(),
    /// Those of them on which programs have many short sessions all day: mail, directories, databases, remote management.
    everyday_ports: Vec<PortRange> = EVERYDAY_PORTS.map(PortRange::one).to_vec(),
    /// On these it takes this many times as many attempts; from inside also a day of watching.
    everyday_factor: u64 = 10,
    /// Fires from this many attempts within five minutes on. Lower finds more careful guessers, and more automation.
    threshold_attempts: u64 = 20,
    /// Fires from this many attempts within a day on; from inside only for pairs that were not there on the first day.
    slow_attempts: u64 = 100,
    /// Fires from this many hosts within half an hour on; twice as many from inside on the first day.
    spray_hosts: u64 = 10,
    /// A host counts towards these from this many attempts on.
    spray_tries: u64 = 3,
    /// The middle half of the attempts differ by at most this many packets. Higher takes sessions for alike that are less so.
    packets_spread_max: u64 = 4,
    /// The octets of attempts deviate from their mean by at most this part of it.
    octets_variation_max: f64 = 0.3,
    /// Sessions of more octets, on average, are no attempts.
    octets_max: u64 = 20_000,
}

const PORTS: [u16; 19] =
    [21, 22, 23, 110, 143, 389, 445, 636, 993, 995, 1_433, 1_521, 3_306, 3_389, 5_432, 5_900, 5_985, 5_986, 8_291];
const EVERYDAY_PORTS: [u16; 11] = [110, 143, 389, 636, 993, 995, 1_433, 1_521, 3_306, 5_432, 5_985];

impl Rule for PasswordGuessing {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("ports", self.ports.len() as u64, 1, 1_000)?;
        within("everyday_ports", self.everyday_ports.len() as u64, 0, 1_000)?;
        within("everyday_factor", self.everyday_factor, 1, 1_000)?;
        within("threshold_attempts", self.threshold_attempts, 4, 1_000_000)?;
        within("slow_attempts", self.slow_attempts, 4, 1_000_000)?;
        within("spray_hosts", self.spray_hosts, 2, 128)?;
        within("spray_tries", self.spray_tries, 1, 1_000)?;
        within("packets_spread_max", self.packets_spread_max, 0, 1_000)?;
        within_f64("octets_variation_max", self.octets_variation_max, 0.0, 10.0)?;
        within("octets_max", self.octets_max, 100, 1_000_000_000)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(2 * 86_400)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let settings = GuessSettings {
            ports: PortSet::of(&self.ports),
            everyday_ports: PortSet::of(&self.everyday_ports),
            everyday_factor: self.everyday_factor,
            threshold_attempts: self.threshold_attempts,
            slow_attempts: self.slow_attempts,
            spray_hosts: self.spray_hosts,
            spray_tries: self.spray_tries,
            likeness: Likeness {
                packets_spread_max: self.packets_spread_max,
                octets_variation_max: self.octets_variation_max,
                octets_max: self.octets_max,
            },
        };
        Box::new(Logons::new(settings, card, &self.common_settings()))
    }
}
