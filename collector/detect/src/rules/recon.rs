//! Settings of the rules of our own about scans: ND-01 to ND-06.

use std::sync::Arc;

use super::RuleFile;
use super::common::{Common, Kin, Mistake, PortRange, Rule, Weakness, native_parts, native_settings, within, within_f64};
use crate::catalogue::Entry;
use crate::finding::{RuleCard, Severity, Variant};
use crate::native::scan::Scans;
use crate::native::scan::limits::{Cards, Family, ShapeRule, WalkRule, WeekRule};
use crate::native::scan::spread::{Spread, SpreadRule};
use crate::{Detector, Mode};
use std::time::Duration;

/// The longest list of targets that is kept whole; see `native::scan::source`.
const TARGETS_MAX: u64 = 384;
const DAY: Duration = Duration::from_secs(86_400);

const INNOCENT: &str = "Vulnerability scanners and monitoring of many dead hosts: give them the role scanner or monitor. A load test, a \
                        backup, an update storm, a DNS server, a NAT gateway, a PLC poller, file sharing and backscatter stay silent.";

/// ND-01 in the catalogue.
pub const ND_01: Entry = Entry {
    id: "ND-01",
    title: "Vertical scan",
    public_id: "",
    public_name: "",
    tactics: "Discovery, Reconnaissance",
    exact: "",
    fixed: "Per source, distinct ports of one host that were tried in vain, in 10 s, a minute, 10 minutes, an hour and a day at once. \
            Fires at the threshold, weighted with the share of that host's ports that certainly fails; names SYN, half-open, connect, \
            NULL, FIN, XMAS, Maimon, ACK and UDP scans. The same targets tried again and again do not count.",
    innocent: INNOCENT,
};

/// ND-02 in the catalogue.
pub const ND_02: Entry = Entry {
    id: "ND-02",
    title: "Horizontal scan",
    public_id: "",
    public_name: "",
    tactics: "Discovery, Reconnaissance",
    exact: "",
    fixed: "As ND-01, of distinct hosts tried in vain on one service or two; ping counts as a service. Scans that hop over the addresses \
            of an outside /24, /64 or /48 are told of the network.",
    innocent: INNOCENT,
};

/// ND-03 in the catalogue.
pub const ND_03: Entry = Entry {
    id: "ND-03",
    title: "Block scan",
    public_id: "",
    public_name: "",
    tactics: "Discovery, Reconnaissance",
    exact: "",
    fixed: "As ND-01, of more than two hosts and two services. A source of which two hosts or two services were told is told of as a \
            whole from then on.",
    innocent: INNOCENT,
};

/// ND-04 in the catalogue.
pub const ND_04: Entry = Entry {
    id: "ND-04",
    title: "Scan by random walk",
    public_id: "",
    public_name: "",
    tactics: "Discovery",
    exact: "",
    fixed: "Threshold random walk over first contacts (Jung et al. 2004): four more failures than successes accuse. Four dead hosts are \
            four dead hosts, so the accusation alone is not told: it makes ND-01 to ND-03 surer, and without them it is told of inside \
            hosts only when many first contacts failed and were not tried again.",
    innocent: "A laptop that has moved from another network and looks for what it knew there.",
};

/// ND-05 in the catalogue.
pub const ND_05: Entry = Entry {
    id: "ND-05",
    title: "Low and slow scan",
    public_id: "",
    public_name: "",
    tactics: "Discovery, Reconnaissance",
    exact: "",
    fixed: "Distinct targets tried in vain over seven days, too few in a day for ND-01 to ND-03, with a high share of failures.",
    innocent: INNOCENT,
};

/// ND-06 in the catalogue.
pub const ND_06: Entry = Entry {
    id: "ND-06",
    title: "Distributed scan",
    public_id: "",
    public_name: "",
    tactics: "Discovery, Reconnaissance",
    exact: "",
    fixed: "Per service and destination /24 or /64, and per destination host: distinct sources within an hour that were not answered \
            there before and tried at most three targets each. Fires when they are many, nearly all fail, they are several times the \
            usual, and the targets are as scattered as the sources.",
    innocent: "The restart of a service, at which all its clients fail: its clients are known, and its targets few. A flood with forged \
               sources has many sources per target.",
};

/// The parts of [`Rule`] that are the same for ND-01 to ND-05: `$build` makes what stands in `$slot` of the family, and its evidence
/// reaches `$history` back.
macro_rules! scan_parts {
    ($slot:ident: $build:ident, $history:expr) => {
        native_parts!();

        fn history(&self) -> Duration {
            $history
        }

        fn weakened_by(&self) -> &'static [Weakness] {
            &[Weakness::Loss, Weakness::OneSided]
        }

        fn kin(&self) -> Option<Kin> {
            Some(Kin::Scans)
        }

        fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
            let state = Common::state(&card);
            Scans::boxed(Family { $slot: Some(self.$build(card)), ..plain(&self.common_settings()) }, state)
        }
    };
}

macro_rules! shape_rule {
    ($($(#[$doc:meta])* $name:ident, attack: $attack:tt, external: $external:literal, $slot:ident;)*) => {$(
        shape_rule!(@ $(#[$doc])* $name, $attack, $external, $slot);
    )*};
    (@ $(#[$doc:meta])* $name:ident, [$($attack:literal),*], $external:literal, $slot:ident) => {
        native_settings! {
            $(#[$doc])*
            $name {
                enabled: true,
                window_secs: 60,
                lateness_secs: 30,
                severity: Medium,
                attack: [$($attack),*],
                exclude_ports: [PortRange::TRACEROUTE],
                keys_max: 262_144,
            }
            /// Fires at so many failed targets within `burst_secs`. Lower finds more, and more mishaps.
            targets_burst: u64 = 25,
            /// Length of a burst: a scan of `targets_burst` / `burst_secs` per second or more is found at that target.
            burst_secs: u64 = 10,
            /// Fires at so many failed targets of an inside source within 60 s, 10 min, 1 h or 24 h. One probe in ten minutes makes 144 a day.
            targets_slow: u64 = 40,
            /// The same of an outside source: nobody from outside has ten mishaps a day.
            targets_external: u64 = 10,
            /// The same of hosts with the roles monitor, admin, nat, proxy, dns, load_balancer and peer_to_peer.
            targets_busy: u64 = 250,
            /// Fires at so many services of control systems (Modbus, S7, EtherNet/IP and others) within an hour, from a host that no such service has answered.
            targets_control: u64 = 3,
            /// At least this share of the contacts must certainly have failed. File sharers lie at 0.4 to 0.6.
            failed_share_min: f64 = 0.7,
            /// Severity of a scan from outside.
            severity_external: Severity = Severity::Low,
            /// ATT&CK techniques of a scan from outside.
            attack_external: Vec<String> = vec![$external.to_owned()],
            /// Severity of a search for control systems.
            severity_control: Severity = Severity::High,
            /// ATT&CK for ICS techniques of a search for control systems.
            attack_control: Vec<String> = vec!["T0846".to_owned(), "T0840".to_owned()],
        }

        impl $name {
            fn shape_rule(&self, card: RuleCard) -> ShapeRule {
                ShapeRule {
                    burst: self.targets_burst,
                    burst_secs: self.burst_secs as u32,
                    slow: self.targets_slow,
                    external: self.targets_external,
                    busy: self.targets_busy,
                    control: self.targets_control,
                    share: self.failed_share_min,
                    cards: Cards {
                        external: face(&card, self.severity_external, &self.attack_external),
                        control: face(&card, self.severity_control, &self.attack_control),
                        internal: Arc::new(card),
                    },
                }
            }
        }

        impl Rule for $name {
            scan_parts!($slot: shape_rule, DAY);

            fn check(&self) -> Result<(), Mistake> {
                within("targets_burst", self.targets_burst, 2, TARGETS_MAX)?;
                within("burst_secs", self.burst_secs, 1, 60)?;
                within("targets_slow", self.targets_slow, 2, TARGETS_MAX)?;
                within("targets_external", self.targets_external, 2, TARGETS_MAX)?;
                within("targets_busy", self.targets_busy, 2, TARGETS_MAX)?;
                within("targets_control", self.targets_control, 2, TARGETS_MAX)?;
                within_f64("failed_share_min", self.failed_share_min, 0.0, 1.0)
            }
        }
    };
}

shape_rule! {
    /// Settings of ND-01.
    Vertical, attack: ["T1046"], external: "T1595", vertical;
    /// Settings of ND-02.
    Horizontal, attack: ["T1046", "T1018"], external: "T1595.001", horizontal;
    /// Settings of ND-03.
    Block, attack: ["T1046", "T1018"], external: "T1595.001", block;
}

native_settings! {
    /// Settings of ND-04.
    RandomWalk {
        enabled: true,
        window_secs: 21_600,
        lateness_secs: 30,
        severity: Low,
        attack: ["T1046", "T1018"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 262_144,
    }
    /// How often an honest host's first contact succeeds. Higher accuses sooner.
    honest_success: f64 = 0.8,
    /// How often a scanner's first contact succeeds. Lower accuses later.
    scanner_success: f64 = 0.2,
    /// Told without another rule at so many failed first contacts within a day that were not tried again.
    targets_alone: u64 = 25,
    /// A contact that was not tried again for so long is not going to be: pollers come back sooner.
    settled_secs: u64 = 900,
    /// At least this share of the contacts must certainly have failed.
    failed_share_min: f64 = 0.7,
}

impl RandomWalk {
    fn walk_rule(&self, card: RuleCard) -> WalkRule {
        let success = (self.honest_success, self.scanner_success);
        WalkRule::new(card, success, self.targets_alone, self.settled_secs as u32, self.failed_share_min)
    }
}

impl Rule for RandomWalk {
    scan_parts!(walk: walk_rule, DAY);

    fn check(&self) -> Result<(), Mistake> {
        within_f64("honest_success", self.honest_success, 0.5, 0.99)?;
        within_f64("scanner_success", self.scanner_success, 0.01, 0.49)?;
        within("targets_alone", self.targets_alone, 4, TARGETS_MAX)?;
        within("settled_secs", self.settled_secs, 0, 43_200)?;
        within_f64("failed_share_min", self.failed_share_min, 0.0, 1.0)
    }
}

native_settings! {
    /// Settings of ND-05.
    LowAndSlow {
        enabled: true,
        window_secs: 86_400,
        lateness_secs: 30,
        severity: Medium,
        attack: ["T1046", "T1018"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 262_144,
    }
    /// Fires at so many failed targets of an inside source, or of an outside network, within seven days.
    targets: u64 = 60,
    /// The same of an outside host.
    targets_external: u64 = 30,
    /// At least this share of the contacts must certainly have failed.
    failed_share_min: f64 = 0.7,
    /// Severity of a scan from outside.
    severity_external: Severity = Severity::Low,
    /// ATT&CK techniques of a scan from outside.
    attack_external: Vec<String> = vec!["T1595.001".to_owned()],
}

impl LowAndSlow {
    fn week_rule(&self, card: RuleCard) -> WeekRule {
        WeekRule {
            targets: self.targets,
            external: self.targets_external,
            share: self.failed_share_min,
            cards: Cards {
                external: face(&card, self.severity_external, &self.attack_external),
                control: Arc::new(card.clone()),
                internal: Arc::new(card),
            },
        }
    }
}

impl Rule for LowAndSlow {
    scan_parts!(week: week_rule, DAY * 7);

    fn check(&self) -> Result<(), Mistake> {
        within("targets", self.targets, 2, TARGETS_MAX)?;
        within("targets_external", self.targets_external, 2, TARGETS_MAX)?;
        within_f64("failed_share_min", self.failed_share_min, 0.0, 1.0)
    }
}

native_settings! {
    /// Settings of ND-06.
    Distributed {
        enabled: true,
        window_secs: 3_600,
        lateness_secs: 30,
        severity: Medium,
        attack: ["T1046", "T1595.001"],
        exclude_ports: [PortRange::TRACEROUTE],
        keys_max: 8_192,
    }
    /// Fires at so many sources within an hour. Lower finds smaller teams, and more chance meetings of strangers.
    sources_min: u64 = 50,
    /// A source that tried more targets than this is told of by itself and does not count.
    targets_each_max: u64 = 3,
    /// At least this share of the sources must certainly have failed.
    failed_share_min: f64 = 0.8,
    /// Fires only at so many times the usual number of such sources per hour: the Internet always knocks.
    baseline_times: f64 = 5.0,
}

impl Rule for Distributed {
    native_parts!();

    fn check(&self) -> Result<(), Mistake> {
        within("sources_min", self.sources_min, 5, 200)?;
        within("targets_each_max", self.targets_each_max, 1, 7)?;
        within_f64("failed_share_min", self.failed_share_min, 0.0, 1.0)?;
        within_f64("baseline_times", self.baseline_times, 1.0, 1_000.0)
    }

    fn history(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    fn weakened_by(&self) -> &'static [Weakness] {
        &[Weakness::Loss, Weakness::OneSided, Weakness::Young]
    }

    fn detector(&self, card: RuleCard, _mode: Mode) -> Box<dyn Detector> {
        let common = self.common_settings();
        let state = Common::state(&card);
        let rule = SpreadRule {
            card: Arc::new(card),
            sources: self.sources_min,
            each: self.targets_each_max as u8,
            share: self.failed_share_min,
            times: self.baseline_times,
            exclude: common.exclude,
            keys_max: common.keys_max,
        };
        Box::new(Spread::new(rule, state))
    }
}

/// The rule with another severity and other techniques.
fn face(card: &RuleCard, severity: Severity, attack: &[String]) -> Arc<RuleCard> {
    Arc::new(RuleCard { severity, attack: attack.to_vec(), ..card.clone() })
}

/// A family of no rules with the settings that all have.
fn plain(common: &Common) -> Family {
    Family { exclude: common.exclude.clone(), keys_max: common.keys_max, ..Family::default() }
}

/// The one detector that speaks for those of ND-01 to ND-05 that are on, if any is. They count together: what one of them excludes none
/// counts, and they share as many sources as the one that asks for most. With room for one in `of` of them: for one shard.
pub(super) fn scans(rules: &RuleFile, of: usize) -> Option<Box<dyn Detector>> {
    let kin: Vec<(&Entry, &dyn Rule)> = rules
        .rules()
        .filter(|(_, rule)| rule.kin() == Some(Kin::Scans) && rule.common().variants.contains(&Variant::Fixed))
        .collect();
    let &(first, rule) = kin.first()?;
    let state = Common::state(&rule.common().card(first, Variant::Fixed));
    let mut family = Family::default();
    for (_, rule) in &kin {
        let Common { exclude, keys_max, .. } = rule.common();
        family.exclude.sources.extend(exclude.sources);
        family.exclude.destinations.extend(exclude.destinations);
        family
            .exclude
            .ports
            .extend(exclude.ports.into_iter().filter(|range| !family.exclude.ports.contains(range)).collect::<Vec<_>>());
        family.keys_max = family.keys_max.max(keys_max);
    }
    fn on<R: Rule, T>(entry: &Entry, rule: &R, build: impl Fn(&R, RuleCard) -> T) -> Option<T> {
        let common = rule.common();
        common.variants.contains(&Variant::Fixed).then(|| build(rule, common.card(entry, Variant::Fixed)))
    }
    family.keys_max = family.keys_max.div_ceil(of);
    family.vertical = on(&ND_01, &rules.nd_vertical, Vertical::shape_rule);
    family.horizontal = on(&ND_02, &rules.nd_horizontal, Horizontal::shape_rule);
    family.block = on(&ND_03, &rules.nd_block, Block::shape_rule);
    family.walk = on(&ND_04, &rules.nd_walk, RandomWalk::walk_rule);
    family.week = on(&ND_05, &rules.nd_slow, LowAndSlow::week_rule);
    Some(Scans::boxed(family, state))
}
