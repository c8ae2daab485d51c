//! The rules: which run, in which form, from which number on.
//!
//! The files in `deploy/rules/` are the commented originals, by theme, and are compiled in; a file of your own needs only the keys
//! that differ. The table at the end of this file is the list of all rules: settings, defaults, catalogue and detectors follow it.

pub mod beacons;
pub mod callbacks;
pub mod changes;
pub mod common;
pub mod firsts;
pub mod floods;
pub mod logons;
pub mod recon;
pub mod rhythm;
pub mod scans;
pub mod series;
pub mod sessions;
pub mod transfers;
pub mod volumes;
pub mod watch_list;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use spanwatch_common::settings::{self, SettingsError};

use crate::catalogue::Entry;
use crate::finding::Variant;
use crate::{Detector, Mode, SHARDS, Sharding};

pub use common::{Common, Exclude, Mistake, PortRange, Rule, TimeAxis};

/// Rule files that a directory may hold.
const FILES_MAX: usize = 256;

impl RuleFile {
    /// Reads a rule file, or all `*.toml` of a directory; rules that none of them names keep their defaults.
    ///
    /// # Errors
    /// A file cannot be read, has a mistake (as [`parse`](Self::parse)), or a rule stands in two files: with both places.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let trouble = |path: &Path, error: std::io::Error| SettingsError {
            path: path.to_owned(),
            place: None,
            message: format!("cannot be read: {error}; does it exist, and may this user read it?"),
        };
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            let entries = fs::read_dir(path).map_err(|error| trouble(path, error))?;
            let entries: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
            files = entries.map_err(|error| trouble(path, error))?;
            files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
            files.sort();
        }
        let wrong = |message: String| SettingsError { path: path.to_owned(), place: None, message };
        if files.is_empty() {
            return Err(wrong("holds no *.toml; copy the files of deploy/rules into it".to_owned()));
        }
        if files.len() > FILES_MAX {
            return Err(wrong(format!("holds {} rule files, and {FILES_MAX} are the most", files.len())));
        }
        let texts: Result<Vec<String>, _> =
            files.iter().map(|file| fs::read_to_string(file).map_err(|error| trouble(file, error))).collect();
        let texts = texts?;
        Self::merge(files.iter().map(PathBuf::as_path).zip(texts.iter().map(String::as_str)))
    }

    /// Reads `text`, the content of `path`.
    ///
    /// # Errors
    /// Syntax, an unknown key or a value out of range, with its place in the file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let mut rules: Self = settings::parse(path, text)?;
        for (entry, rule) in rules.rules_mut() {
            let checked = rule.common().check().and_then(|()| rule.check()).and_then(|()| rule.load());
            checked.map_err(|(key, sentence)| settings::mistake(path, text, &format!("{}.{key}", entry.id), sentence))?;
        }
        Ok(rules)
    }

    fn merge<'a>(files: impl Iterator<Item = (&'a Path, &'a str)>) -> Result<Self, SettingsError> {
        let mut whole = Self::default();
        let mut places: BTreeMap<String, (&Path, usize)> = BTreeMap::new();
        for (path, text) in files {
            let part = Self::parse(path, text)?;
            let written: toml::Table = settings::parse(path, text)?;
            for id in written.keys() {
                let line = text.lines().position(|line| line.trim_start().starts_with(&format!("[{id}]"))).unwrap_or(0) + 1;
                if let Some((other, place)) = places.insert(id.clone(), (path, line)) {
                    return Err(SettingsError {
                        path: path.to_owned(),
                        place: Some((line, 1)),
                        message: format!("{id} stands in {}:{place} already; keep one of the two", other.display()),
                    });
                }
            }
            whole.take_over(part, &written);
        }
        Ok(whole)
    }

    /// The rules as shipped.
    ///
    /// # Errors
    /// None: a test reads them.
    pub fn shipped() -> Result<Self, SettingsError> {
        Self::merge(SHIPPED.iter().map(|(name, text)| (Path::new(*name), *text)))
    }

    /// Switches on these forms of every rule, whatever the files say.
    pub fn set_variants(&mut self, variants: &[Variant]) {
        self.rules_mut().for_each(|(_, rule)| rule.set_variants(variants));
    }

    /// Switches off every rule but those named.
    ///
    /// # Errors
    /// A name that is no rule's.
    pub fn keep_only(&mut self, ids: &[String]) -> Result<(), String> {
        let known = |id: &String| CATALOGUE.iter().any(|entry| entry.id.eq_ignore_ascii_case(id));
        if let Some(unknown) = ids.iter().find(|id| !known(id)) {
            return Err(format!("there is no rule {unknown}; `rules list` shows them all"));
        }
        for (entry, rule) in self.rules_mut() {
            if !ids.iter().any(|id| entry.id.eq_ignore_ascii_case(id)) {
                rule.set_variants(&[]);
            }
        }
        Ok(())
    }

    /// The detectors that the rules switch on, each with its settings as text: one, or its shards where its state can be divided.
    pub(crate) fn detectors(&self, mode: Mode) -> Vec<(Vec<Box<dyn Detector>>, String)> {
        let mut detectors = Vec::new();
        // What kin are set to stands together, so that a change of one starts all of them anew.
        let mut kin = String::new();
        for variant in [Variant::Exact, Variant::Fixed] {
            for (entry, rule) in self.rules() {
                let common = rule.common();
                if common.variants.contains(&variant) {
                    // Which forms run does not change what one of them does.
                    let mut settings = rule.settings();
                    settings.remove("variants");
                    settings.remove("enabled");
                    if rule.kin().is_some() {
                        kin.push_str(&format!("[{}]\n{settings}", entry.id));
                        continue;
                    }
                    let detector = |rule: &dyn Rule| rule.detector(common.card(entry, variant), mode);
                    let share = rule.share(SHARDS);
                    let first = detector(&*share);
                    let parts = if first.sharding() == Sharding::Whole {
                        vec![detector(rule)]
                    } else {
                        std::iter::once(first).chain((1..SHARDS).map(|_| detector(&*share))).collect()
                    };
                    detectors.push((parts, settings.to_string()));
                }
            }
        }
        let scans: Vec<Box<dyn Detector>> = (0..SHARDS).filter_map(|_| recon::scans(self, SHARDS)).collect();
        if !scans.is_empty() {
            detectors.push((scans, kin));
        }
        detectors
    }
}

/// From the table: the rule file, the catalogue, and the ways from one to the other.
macro_rules! rules {
    ($($(#[$doc:meta])* $field:ident: $settings:ty = $entry:path, $id:literal;)*) => {
        /// Every rule with its settings.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RuleFile {
            $($(#[$doc])* #[serde(rename = $id)] pub $field: $settings,)*
        }

        /// Every rule there is, in order of their numbers.
        pub const CATALOGUE: &[Entry] = &[$($entry),*];

        impl RuleFile {
            /// Every rule, with what the catalogue says about it.
            pub fn rules(&self) -> impl Iterator<Item = (&'static Entry, &dyn Rule)> {
                let rules: Vec<&dyn Rule> = vec![$(&self.$field),*];
                CATALOGUE.iter().zip(rules)
            }

            fn rules_mut(&mut self) -> impl Iterator<Item = (&'static Entry, &mut dyn Rule)> {
                let rules: Vec<&mut dyn Rule> = vec![$(&mut self.$field),*];
                CATALOGUE.iter().zip(rules)
            }

            /// Takes from `part` the rules that stand in `written`.
            fn take_over(&mut self, part: Self, written: &toml::Table) {
                $(if written.contains_key($id) {
                    self.$field = part.$field;
                })*
            }
        }
    };
}

/// The rule files as shipped: name and content.
pub const SHIPPED: &[(&str, &str)] = &[
    ("beacons.toml", include_str!("../../../../deploy/rules/beacons.toml")),
    ("callbacks.toml", include_str!("../../../../deploy/rules/callbacks.toml")),
    ("changes.toml", include_str!("../../../../deploy/rules/changes.toml")),
    ("firsts.toml", include_str!("../../../../deploy/rules/firsts.toml")),
    ("floods.toml", include_str!("../../../../deploy/rules/floods.toml")),
    ("logons.toml", include_str!("../../../../deploy/rules/logons.toml")),
    ("recon.toml", include_str!("../../../../deploy/rules/recon.toml")),
    ("scans.toml", include_str!("../../../../deploy/rules/scans.toml")),
    ("sessions.toml", include_str!("../../../../deploy/rules/sessions.toml")),
    ("volumes.toml", include_str!("../../../../deploy/rules/volumes.toml")),
];

rules! {
    /// AZ-01, horizontal scan: one source, many hosts.
    horizontal: scans::HorizontalScan = scans::AZ_01, "AZ-01";
    /// AZ-02, vertical scan: one source, one host, many ports.
    vertical: scans::VerticalScan = scans::AZ_02, "AZ-02";
    /// AZ-03, volume deviation: a source moves far more over a service than it usually does.
    volume: volumes::VolumeDeviation = volumes::AZ_03, "AZ-03";
    /// AZ-04, fan-out: a source speaks to far more hosts than it usually does.
    fan_out: scans::FanOutRise = scans::AZ_04, "AZ-04";
    /// AZ-05, port scan: one source, one host, very many ports.
    port_scan: scans::PortScanRule = scans::AZ_05, "AZ-05";
    /// AZ-06, port sweep: one source, one port, many hosts in an hour.
    port_sweep: scans::PortSweepRule = scans::AZ_06, "AZ-06";
    /// AZ-07, excessive failures: one source fails all the time.
    failures: sessions::ExcessiveFailures = sessions::AZ_07, "AZ-07";
    /// AZ-08, unusual day: far more flows than expected, in all or of one kind.
    unusual_day: series::UnusualDay = series::AZ_08, "AZ-08";
    /// AZ-09, port misuse: too many sessions on a watched port.
    port_misuse: sessions::PortMisuseRule = sessions::AZ_09, "AZ-09";
    /// AZ-10, unusual use of a watched port.
    watched_port: series::WatchedPort = series::AZ_10, "AZ-10";
    /// AZ-11, beacon: a host calls out in a steady rhythm.
    beacon: beacons::BeaconRule = beacons::AZ_11, "AZ-11";
    /// AZ-12, the same with stricter numbers.
    strict_beacon: beacons::StrictBeacon = beacons::AZ_12, "AZ-12";
    /// AZ-13, unusual SMB: a host opens far more file-sharing flows than it usually does.
    unusual_smb: series::UnusualSmb = series::AZ_13, "AZ-13";
    /// AZ-14, RDP brute force: too many connections to a remote desktop.
    logons: sessions::LogonGuessing = sessions::AZ_14, "AZ-14";
    /// AZ-15, unusual volume to the Internet, and who sent it.
    outbound_volume: series::OutboundVolume = series::AZ_15, "AZ-15";
    /// AZ-16, quick port scan: very many ports of one host within half a minute.
    quick_port_scan: scans::QuickPortScanRule = scans::AZ_16, "AZ-16";
    /// AZ-17, quick port sweep: one port of very many hosts within half a minute.
    quick_sweep: scans::QuickSweepRule = scans::AZ_17, "AZ-17";
    /// AZ-18, unusual rate of denials.
    denial_rate: series::DenialRate = series::AZ_18, "AZ-18";
    /// AZ-19, unusually many destinations.
    many_destinations: series::ManyDestinations = series::AZ_19, "AZ-19";
    /// AZ-20, new destination and port.
    new_destination: firsts::NewDestination = firsts::AZ_20, "AZ-20";
    /// AZ-21, new port.
    new_port: firsts::NewPort = firsts::AZ_21, "AZ-21";
    /// AZ-22, several denies: refused again and again.
    denials: sessions::SeveralDenies = sessions::AZ_22, "AZ-22";
    /// AZ-23, wide scan: hundreds of ports, of whatever hosts.
    wide_scan: scans::WideScanRule = scans::AZ_23, "AZ-23";
    /// AZ-24, known bad address.
    known_bad: sessions::KnownBad = sessions::AZ_24, "AZ-24";
    /// AZ-25, unusual use of a common port.
    common_ports: series::CommonPorts = series::AZ_25, "AZ-25";
    /// AZ-26, hosts that vary most: a ranking.
    variable_hosts: series::VariableHosts = series::AZ_26, "AZ-26";
    /// ND-01, vertical scan: many ports of one host in vain.
    nd_vertical: recon::Vertical = recon::ND_01, "ND-01";
    /// ND-02, horizontal scan: many hosts in vain on one service.
    nd_horizontal: recon::Horizontal = recon::ND_02, "ND-02";
    /// ND-03, block scan: many hosts and services in vain.
    nd_block: recon::Block = recon::ND_03, "ND-03";
    /// ND-04, threshold random walk.
    nd_walk: recon::RandomWalk = recon::ND_04, "ND-04";
    /// ND-05, low and slow.
    nd_slow: recon::LowAndSlow = recon::ND_05, "ND-05";
    /// ND-06, distributed scan.
    nd_spread: recon::Distributed = recon::ND_06, "ND-06";
    /// ND-07, SYN flood: connections are asked for and not completed.
    syn_flood: floods::SynFlood = floods::ND_07, "ND-07";
    /// ND-08, amplification flood: reflectors answer somebody who did not ask.
    amplification_flood: floods::AmplificationFlood = floods::ND_08, "ND-08";
    /// ND-09, connection or packet flood.
    load_flood: floods::LoadFlood = floods::ND_09, "ND-09";
    /// ND-10, beacon in a rhythm with jitter.
    rhythm: rhythm::BeaconInRhythm = rhythm::ND_10, "ND-10";
    /// ND-11, exfiltration: a host sends out more than it does.
    exfiltration: transfers::Exfiltration = transfers::ND_11, "ND-11";
    /// ND-12, odd volume: a service carries more or less than usual at this hour of the week.
    odd_volume: transfers::OddVolume = transfers::ND_12, "ND-12";
    /// ND-13, lateral movement: administration services opened for the first time.
    lateral: changes::LateralMovement = changes::ND_13, "ND-13";
    /// ND-14, new asset: an address that never spoke, or one that changed its device.
    new_asset: changes::NewAsset = changes::ND_14, "ND-14";
    /// ND-15, new service: a host answers on a port for the first time.
    new_service: changes::NewService = changes::ND_15, "ND-15";
    /// ND-16, silent asset: a host that never paused for long is silent.
    silent_asset: changes::SilentAsset = changes::ND_16, "ND-16";
    /// ND-17, password guessing: fast, slow, and on many hosts.
    password_guessing: logons::PasswordGuessing = logons::ND_17, "ND-17";
    /// ND-28, failed callbacks: one endpoint again and again, and nobody ever answers.
    failed_callbacks: callbacks::FailedCallbacks = callbacks::ND_28, "ND-28";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_tell_the_defaults_and_every_key() {
        let shipped = RuleFile::shipped().expect("our own");
        assert_eq!(shipped, RuleFile::default());
        // Equal values could also come from keys that are absent: compare the keys as well.
        let mut written = toml::Table::new();
        SHIPPED.iter().for_each(|(_, text)| written.extend(text.parse::<toml::Table>().expect("our own")));
        for (entry, rule) in shipped.rules() {
            let section =
                written.get(entry.id).and_then(toml::Value::as_table).unwrap_or_else(|| panic!("{} is missing", entry.id));
            for key in rule.settings().keys() {
                assert!(section.contains_key(key), "{}.{key} is missing", entry.id);
            }
        }
    }

    #[test]
    fn the_table_names_every_rule_by_its_own_entry_in_order() {
        let ids: Vec<&str> = CATALOGUE.iter().map(|entry| entry.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
        let written: Vec<String> =
            SHIPPED.iter().flat_map(|(_, text)| text.parse::<toml::Table>().expect("our own")).map(|(id, _)| id).collect();
        for id in ids {
            let mut renamed = toml::Table::new();
            renamed.insert(id.to_owned(), toml::Value::Table(toml::Table::new()));
            assert!(RuleFile::parse(Path::new("x"), &renamed.to_string()).is_ok(), "{id} is not the name of its settings");
            assert!(written.iter().any(|known| known == id), "{id} stands in no shipped file");
        }
    }

    #[test]
    fn a_mistake_is_shown_with_its_place_and_a_hint() {
        let error = |text| RuleFile::parse(Path::new("my.toml"), text).expect_err("wrong").to_string();
        assert_eq!(
            error("[AZ-01]\nthreshold_host = 9\n"),
            "my.toml:2:1: unknown key `threshold_host`; did you mean `threshold_hosts`?"
        );
        assert_eq!(error("[AZ-02]\n\nwindow_secs = 0\n"), "my.toml:3:1: AZ-02.window_secs: must be 1 to 86400, not 0");
        let port = error("[AZ-02]\nexclude_ports = [70000]\n");
        assert!(port.starts_with("my.toml:2:17: 70000 is no port"), "{port}");
        let prefix = error("[AZ-01]\nexclude_sources = [\"10.0.0.0/40\"]\n");
        assert!(prefix.contains("is not a prefix; write"), "{prefix}");
    }

    #[test]
    fn a_directory_is_all_its_files_and_no_rule_stands_in_two() {
        let directory = tempfile::tempdir().expect("a directory");
        let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("a file");
        put("a.toml", "[AZ-01]\nthreshold_hosts = 9\n");
        put("b.toml", "[AZ-02]\nthreshold_ports = 8\n");
        put("notes.txt", "not a rule file");
        let rules = RuleFile::load(directory.path()).expect("good");
        assert_eq!((rules.horizontal.threshold_hosts, rules.vertical.threshold_ports), (9, 8));
        put("c.toml", "# mine\n[AZ-01]\n");
        let error = RuleFile::load(directory.path()).expect_err("twice").to_string();
        assert!(error.contains("c.toml:2:1: AZ-01 stands in ") && error.contains("a.toml:1 already"), "{error}");
    }
}
