//! What the counts of a capture port say about the mirror behind it: what was measured, and what to do on the switch.
//!
//! Pure and without memory: two looks at the counts go in, symptoms come out. A minute between the looks suits every threshold.
//!
//! # What stays quiet
//! A cell of GOOSE, sampled values, PROFINET, EtherCAT, POWERLINK or SERCOS alone, all multicast: such frames are no
//! [group packets](Health::group_packets). HSR and PRP twins that the sensor removes: the network is meant to send them. Scans and
//! connections that nobody answers: only TCP past its handshake is judged. Anything with little evidence.

use std::fmt::Write as _;
use std::time::Duration;

use super::Health;

/// Fewer packets than this say nothing.
pub const PACKETS_MIN: u64 = 100;
/// This share of second copies, in ‰ of the packets compared, is a mirror's doing. A busy link has a few by itself: resent within
/// the window.
pub const DUPLICATES_PERMILLE: u64 = 50;
/// Fewer slices of TCP flows than this say nothing about their sides.
pub const TCP_FLOWS_MIN: u64 = 20;
/// This share of TCP flows with one side only, in ‰, is a mirror's doing. Below it are asymmetric routes and connections that die.
pub const ONE_WAY_PERMILLE: u64 = 250;
/// This share of packets cut short, in ‰, is a setting somewhere.
pub const SLICED_PERMILLE: u64 = 10;
/// This share of packets in an unknown tunnel, in ‰, is a tunnel and no damage.
pub const UNKNOWN_PERMILLE: u64 = 10;
/// This share of ERSPAN packets missing, in ‰, is a loss between switch and sensor.
pub const ERSPAN_GAPS_PERMILLE: u64 = 1;
/// This many packets lost before the sensor are worth a word once they are 1 in [`DROPPED_ONE_IN`].
pub const DROPPED_MIN: u64 = 10;
/// See [`DROPPED_MIN`].
pub const DROPPED_ONE_IN: u64 = 10_000;
/// This many TCP octets, ten full segments, must have passed unseen before they are called a loss, ...
pub const MISSED_OCTETS_MIN: u64 = 14_600;
/// ... and this share of all TCP octets, in ‰.
pub const MISSED_PERMILLE: u64 = 1;
/// A feed with at least this share of group packets, in ‰, is no mirror: any port of the VLAN gets those.
pub const GROUP_PERMILLE: u64 = 995;
/// How long a feed of group packets is watched before it is judged.
pub const GROUP_ONLY_AFTER: Duration = Duration::from_secs(30);
/// How long nothing at all may come. A switch that is alive says something more often: spanning tree every 2 s, LLDP every 30 s.
pub const NO_TRAFFIC_AFTER: Duration = Duration::from_secs(60);

/// Something is wrong with a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symptom {
    /// What.
    pub kind: SymptomKind,
    /// How many packets (flows, octets) show it.
    pub count: u64,
    /// Out of how many.
    pub of: u64,
    /// What was measured: one sentence.
    pub says: String,
    /// What to do about it: one sentence.
    pub advice: String,
}

/// What can be wrong with a mirror, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SymptomKind {
    /// Nothing comes.
    NoTraffic,
    /// Only broadcast and multicast comes.
    GroupOnly,
    /// Packets were lost between the port and the sensor.
    Dropped,
    /// The sensor looks at a sample of the packets only.
    Sampled,
    /// The flow table was full.
    TableFull,
    /// TCP flows show one side only.
    OneWay,
    /// TCP octets were acknowledged that never came by.
    MissedOctets,
    /// ERSPAN sequence numbers are missing.
    ErspanGaps,
    /// Packets come twice.
    Duplicates,
    /// Packets come cut short.
    Sliced,
    /// Packets come in a tunnel that the sensor does not understand.
    UnknownEncapsulation,
}

impl SymptomKind {
    /// Every kind, the worst first.
    pub const ALL: [Self; 11] = [
        Self::NoTraffic,
        Self::GroupOnly,
        Self::Dropped,
        Self::Sampled,
        Self::TableFull,
        Self::OneWay,
        Self::MissedOctets,
        Self::ErspanGaps,
        Self::Duplicates,
        Self::Sliced,
        Self::UnknownEncapsulation,
    ];

    /// Its word in JSON, in the store and on /metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoTraffic => "no_traffic",
            Self::GroupOnly => "group_only",
            Self::Dropped => "dropped",
            Self::Sampled => "sampled",
            Self::TableFull => "table_full",
            Self::OneWay => "one_way",
            Self::MissedOctets => "missed_octets",
            Self::ErspanGaps => "erspan_gaps",
            Self::Duplicates => "duplicates",
            Self::Sliced => "sliced",
            Self::UnknownEncapsulation => "unknown_encapsulation",
        }
    }

    /// A heading of a few words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoTraffic => "No traffic",
            Self::GroupOnly => "Broadcast and multicast only",
            Self::Dropped => "Packets lost before the sensor",
            Self::Sampled => "Only a sample is looked at",
            Self::TableFull => "The flow table is full",
            Self::OneWay => "One side of TCP only",
            Self::MissedOctets => "The mirror loses packets",
            Self::ErspanGaps => "ERSPAN loses packets",
            Self::Duplicates => "Packets come twice",
            Self::Sliced => "Packets come cut short",
            Self::UnknownEncapsulation => "Unknown encapsulation",
        }
    }
}

/// What is wrong with the mirror, judged by what was counted between two looks, `over` that long; the worst first. Nothing, when
/// it does its work or too little came to tell.
pub fn judge(before: &Health, after: &Health, over: Duration) -> Vec<Symptom> {
    let delta = after.since(before);
    let checks = [
        no_traffic(&delta, over),
        group_only(&delta, over),
        dropped(&delta),
        sampled(&delta),
        table_full(&delta),
        one_way(&delta),
        missed_octets(&delta),
        erspan_gaps(&delta),
        duplicates(&delta),
        sliced(&delta),
        unknown_encapsulation(&delta),
    ];
    let symptoms: Vec<Symptom> = checks.into_iter().flatten().collect();
    // What the missing side sent was acknowledged and never seen: the same cause need not be told twice.
    let is_one_way = symptoms.iter().any(|symptom| symptom.kind == SymptomKind::OneWay);
    symptoms.into_iter().filter(|symptom| !(is_one_way && symptom.kind == SymptomKind::MissedOctets)).collect()
}

fn no_traffic(delta: &Health, over: Duration) -> Option<Symptom> {
    (delta.packets == 0 && delta.dropped == 0 && over >= NO_TRAFFIC_AFTER).then(|| Symptom {
        kind: SymptomKind::NoTraffic,
        count: 0,
        of: 0,
        says: format!("Not one packet came in {} s.", over.as_secs()),
        advice: "See whether the mirror session is up and names this port as its destination, and whether the cable is in the right port."
            .to_owned(),
    })
}

fn group_only(delta: &Health, over: Duration) -> Option<Symptom> {
    let (count, of) = (delta.group_packets, delta.packets);
    (of >= PACKETS_MIN && over >= GROUP_ONLY_AFTER && is_share(count, of, GROUP_PERMILLE)).then(|| Symptom {
        kind: SymptomKind::GroupOnly,
        count,
        of,
        says: format!(
            "{} of {} packets were broadcast or multicast, as any port of the VLAN gets them.",
            percent(count, of),
            grouped(of)
        ),
        advice: "Make this port the destination of a mirror session; it looks like an ordinary access port.".to_owned(),
    })
}

fn dropped(delta: &Health) -> Option<Symptom> {
    // What was left out on purpose is told by itself.
    let lost = delta.dropped.saturating_sub(delta.shed);
    let (count, of) = (lost, delta.packets + lost);
    (count >= DROPPED_MIN && count.saturating_mul(DROPPED_ONE_IN) >= of).then(|| Symptom {
        kind: SymptomKind::Dropped,
        count,
        of,
        says: format!("{} packets ({} of {}) were lost between the port and the sensor.", grouped(count), percent(count, of), grouped(of)),
        advice: "Mirror less, or make the sensor faster: `spanwatch-sensor doctor` says what this machine lacks, the ledger where they went."
            .to_owned(),
    })
}

fn sampled(delta: &Health) -> Option<Symptom> {
    let (count, of) = (delta.shed, delta.packets + delta.shed);
    let left_out = format!("{} packets ({} of {}) were left out on purpose", grouped(count), percent(count, of), grouped(of));
    let says = match delta.keep_one_in {
        0 | 1 if count == 0 => return None,
        0 | 1 => format!("{left_out} for a while; all are looked at again."),
        one_in => {
            format!("One packet in {one_in} is looked at, chosen at random, and {left_out}; the counts are those of the sample.")
        }
    };
    Some(Symptom {
        kind: SymptomKind::Sampled,
        count,
        of,
        says,
        advice: "Give the sensor more receive queues and cores, raise capture.ring_slots, or mirror less; until then multiply counts by the \
                 records' sampling population."
            .to_owned(),
    })
}

fn table_full(delta: &Health) -> Option<Symptom> {
    // Each of them is a packet that found every place taken.
    let (count, of) = (delta.evicted + delta.in_aggregate, delta.packets);
    (count > 0).then(|| Symptom {
        kind: SymptomKind::TableFull,
        count,
        of,
        says: format!(
            "The flow table was full: {} flows ended early, and {} packets ({} of {}) were metered by prefixes only.",
            grouped(delta.evicted),
            grouped(delta.in_aggregate),
            percent(delta.in_aggregate, of),
            grouped(of)
        ),
        advice: "If a scan or flood fills it, the records with prefix lengths name its source or victim; if not, raise flow_table.flows_max."
            .to_owned(),
    })
}

fn one_way(delta: &Health) -> Option<Symptom> {
    let (count, of) = (delta.tcp_flows_one_way, delta.tcp_flows);
    (of >= TCP_FLOWS_MIN && is_share(count, of, ONE_WAY_PERMILLE)).then(|| Symptom {
        kind: SymptomKind::OneWay,
        count,
        of,
        says: format!("{} of {} TCP flows showed one side only.", percent(count, of), grouped(of)),
        advice:
            "Mirror both directions of the port (`both` instead of `rx`), every link of a port channel, and both fibres of a TAP."
                .to_owned(),
    })
}

fn missed_octets(delta: &Health) -> Option<Symptom> {
    let (count, of) = (delta.missed_octets, delta.tcp_octets + delta.missed_octets);
    (count >= MISSED_OCTETS_MIN && is_share(count, of, MISSED_PERMILLE)).then(|| Symptom {
        kind: SymptomKind::MissedOctets,
        count,
        of,
        says: format!(
            "{} TCP octets ({} of {}) were acknowledged by their receivers, but never came by here.",
            grouped(count),
            percent(count, of),
            grouped(of)
        ),
        advice:
            "Mirror fewer ports into this one, or give it a faster link: the switch drops what does not fit, often in bursts."
                .to_owned(),
    })
}

fn erspan_gaps(delta: &Health) -> Option<Symptom> {
    let (count, of) = (delta.erspan_gaps, delta.erspan_packets + delta.erspan_gaps);
    (of >= PACKETS_MIN && is_share(count, of, ERSPAN_GAPS_PERMILLE)).then(|| Symptom {
        kind: SymptomKind::ErspanGaps,
        count,
        of,
        says: format!("{} ERSPAN packets ({} of {}) are missing from their sequence.", grouped(count), percent(count, of), grouped(of)),
        advice: "Raise the MTU between switch and sensor by 50 octets and more, and give ERSPAN a place in the quality of service there."
            .to_owned(),
    })
}

fn duplicates(delta: &Health) -> Option<Symptom> {
    let removed = delta.deduplicating != 0;
    // Twins are the network's design, and harm only while they are counted.
    let causes = [delta.duplicate_copy, delta.duplicate_routed, if removed { 0 } else { delta.duplicate_redundant }];
    let (count, of) = (causes.iter().sum(), delta.examined);
    if of < PACKETS_MIN || !is_share(count, of, DUPLICATES_PERMILLE) {
        return None;
    }
    let mut says = format!("{} of {} packets compared came twice (", percent(count, of), grouped(of));
    let names = ["identical", "from both sides of a router", "HSR or PRP twins"];
    for (n, (name, count)) in names.iter().zip(causes).filter(|(_, count)| *count > 0).enumerate() {
        let joint = if n > 0 { ", " } else { "" };
        let _ = write!(says, "{joint}{} {name}", grouped(count));
    }
    says.push_str(if removed { "); the second copies are removed." } else { "); flows count both copies." });
    let on_the_switch = match causes {
        [copy, routed, twins] if copy >= routed && copy >= twins => {
            "Mirror one direction only (`rx`) of the VLAN or of its ports"
        }
        [_, routed, twins] if routed >= twins => "Mirror one side of the router only, its VLANs or its uplink",
        _ => "Mirror one of the two networks or directions only",
    };
    let meanwhile =
        if removed { ": the mirror port carries everything twice" } else { ", or set flow.dedup = \"on\" at the sensor" };
    Some(Symptom { kind: SymptomKind::Duplicates, count, of, says, advice: format!("{on_the_switch}{meanwhile}.") })
}

fn sliced(delta: &Health) -> Option<Symptom> {
    let (count, of) = (delta.sliced, delta.packets);
    (of >= PACKETS_MIN && is_share(count, of, SLICED_PERMILLE)).then(|| Symptom {
        kind: SymptomKind::Sliced,
        count,
        of,
        says: format!(
            "{} of {} packets came cut short; octets are counted right, but content cannot be read.",
            percent(count, of),
            grouped(of)
        ),
        advice:
            "Turn truncation (slicing, packet length, header-only) off in the mirror session, or raise it to 256 octets and more."
                .to_owned(),
    })
}

fn unknown_encapsulation(delta: &Health) -> Option<Symptom> {
    let (count, of) = (delta.unknown_encapsulation, delta.packets);
    (of >= PACKETS_MIN && is_share(count, of, UNKNOWN_PERMILLE)).then(|| Symptom {
        kind: SymptomKind::UnknownEncapsulation,
        count,
        of,
        says: format!(
            "{} of {} packets came in a tunnel or tag that is unknown or damaged; they are metered by what is outside.",
            percent(count, of),
            grouped(of)
        ),
        advice: "Mirror before the tunnel or without the vendor's tag; for a tunnel on a UDP port of its own, name the port in the settings."
            .to_owned(),
    })
}

/// Whether `count` is at least so many ‰ of `of`, and anything at all.
const fn is_share(count: u64, of: u64, permille: u64) -> bool {
    count > 0 && count.saturating_mul(1000) >= of.saturating_mul(permille)
}

/// A share with as many digits as it needs: `38 %`, `4.2 %`, `0.03 %`.
fn percent(count: u64, of: u64) -> String {
    let share = 100.0 * count as f64 / of.max(1) as f64;
    match share {
        _ if count == of => "100 %".to_owned(),
        10.0.. => format!("{:.0} %", share.min(99.0)),
        1.0.. => format!("{share:.1} %"),
        _ => format!("{share:.2} %"),
    }
}

/// A number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn kinds(health: &Health, over: Duration) -> Vec<SymptomKind> {
        judge(&Health::default(), health, over).into_iter().map(|symptom| symptom.kind).collect()
    }

    /// A minute of a plant's uplink: some broadcast, a handful of copies, a few connections that died.
    fn healthy() -> Health {
        Health {
            packets: 100_000,
            group_packets: 2_000,
            sliced: 3,
            dropped: 5,
            examined: 10_000,
            duplicate_copy: 40,
            tcp_flows: 400,
            tcp_flows_one_way: 20,
            tcp_octets: 50_000_000,
            missed_octets: 2_920,
            unknown_encapsulation: 10,
            ..Health::default()
        }
    }

    #[test]
    fn a_healthy_port_and_a_cell_of_multicast_process_data_say_nothing() {
        assert_eq!(kinds(&healthy(), MINUTE), []);
        let cell = Health { packets: 240_000, group_packets: 150, ..Health::default() };
        assert_eq!(kinds(&cell, MINUTE), []);
    }

    #[test]
    fn each_symptom_is_found_at_its_threshold_and_not_below() {
        use SymptomKind::*;
        let h = healthy;
        let cases: [(SymptomKind, Health, Health); 11] = [
            (GroupOnly, Health { group_packets: 99_499, ..h() }, Health { group_packets: 99_500, ..h() }),
            (Dropped, Health { dropped: 9, packets: 1000, ..h() }, Health { dropped: 10, packets: 1000, sliced: 0, ..h() }),
            (Dropped, Health { dropped: 5_009, shed: 5_000, ..h() }, Health { dropped: 5_015, shed: 5_000, ..h() }),
            (Sampled, Health { keep_one_in: 1, ..h() }, Health { keep_one_in: 2, ..h() }),
            (TableFull, h(), Health { evicted: 1, ..h() }),
            (OneWay, Health { tcp_flows_one_way: 99, ..h() }, Health { tcp_flows_one_way: 100, ..h() }),
            (MissedOctets, Health { missed_octets: 50_000, ..h() }, Health { missed_octets: 50_051, ..h() }),
            (
                ErspanGaps,
                Health { erspan_packets: 9_991, erspan_gaps: 9, ..h() },
                Health { erspan_packets: 9_990, erspan_gaps: 10, ..h() },
            ),
            (Duplicates, Health { duplicate_copy: 499, ..h() }, Health { duplicate_copy: 499, duplicate_routed: 1, ..h() }),
            (Sliced, Health { sliced: 999, ..h() }, Health { sliced: 1_000, ..h() }),
            (UnknownEncapsulation, Health { unknown_encapsulation: 999, ..h() }, Health { unknown_encapsulation: 1_000, ..h() }),
        ];
        for (kind, below, at) in cases {
            assert!(!kinds(&below, MINUTE).contains(&kind), "{kind:?} too early");
            assert!(kinds(&at, MINUTE).contains(&kind), "{kind:?} not found");
        }
        assert_eq!(kinds(&Health::default(), MINUTE), [NoTraffic]);
        assert_eq!(kinds(&Health::default(), Duration::from_secs(59)), []);
    }

    #[test]
    fn only_the_time_between_the_looks_is_judged() {
        let before = Health { packets: 1_000_000, sliced: 1_000_000, ..Health::default() };
        let mut after = before;
        after.add(&healthy());
        assert_eq!(judge(&before, &after, MINUTE), []);
    }

    #[test]
    fn little_evidence_is_none() {
        let few = Health {
            packets: 99,
            group_packets: 99,
            sliced: 99,
            dropped: 9,
            examined: 99,
            duplicate_copy: 49,
            tcp_flows: 19,
            tcp_flows_one_way: 19,
            tcp_octets: 0,
            missed_octets: 14_599,
            unknown_encapsulation: 99,
            erspan_packets: 49,
            erspan_gaps: 50,
            ..Health::default()
        };
        assert_eq!(kinds(&few, MINUTE), []);
    }

    #[test]
    fn one_way_tcp_is_not_told_a_second_time_as_missed_octets() {
        let one_way = Health { tcp_flows_one_way: 400, missed_octets: 50_000_000, ..healthy() };
        assert_eq!(kinds(&one_way, MINUTE), [SymptomKind::OneWay]);
    }

    #[test]
    fn twins_of_a_redundant_network_are_news_only_while_they_are_counted() {
        let counted = Health { examined: 10_000, duplicate_redundant: 5_000, ..Health::default() };
        let found = judge(&Health::default(), &counted, Duration::ZERO);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].says,
            "50 % of 10,000 packets compared came twice (5,000 HSR or PRP twins); flows count both copies."
        );
        let removed = Health { deduplicating: 1, ..counted };
        assert_eq!(kinds(&removed, Duration::ZERO), []);
    }

    #[test]
    fn a_symptom_says_what_was_measured_and_what_to_do() {
        let both_ways = Health { examined: 12_034, duplicate_copy: 4_310, duplicate_routed: 290, ..Health::default() };
        let found = &judge(&Health::default(), &both_ways, Duration::ZERO)[0];
        assert_eq!((found.count, found.of), (4_600, 12_034));
        assert_eq!(
            found.says,
            "38 % of 12,034 packets compared came twice (4,310 identical, 290 from both sides of a router); flows count both copies."
        );
        assert_eq!(
            found.advice,
            "Mirror one direction only (`rx`) of the VLAN or of its ports, or set flow.dedup = \"on\" at the sensor."
        );
    }

    #[test]
    fn overload_says_what_it_did_to_the_records() {
        let full = Health { evicted: 12_034, in_aggregate: 25_000, ..healthy() };
        let found = judge(&Health::default(), &full, MINUTE);
        assert_eq!(found.iter().map(|symptom| symptom.kind).collect::<Vec<_>>(), [SymptomKind::TableFull]);
        assert_eq!((found[0].count, found[0].of), (37_034, 100_000));
        assert_eq!(
            found[0].says,
            "The flow table was full: 12,034 flows ended early, and 25,000 packets (25 % of 100,000) were metered by prefixes only."
        );
        let sampling = Health { keep_one_in: 4, shed: 300_000, dropped: 300_005, ..healthy() };
        let found = judge(&Health::default(), &sampling, MINUTE);
        assert_eq!(found.iter().map(|symptom| symptom.kind).collect::<Vec<_>>(), [SymptomKind::Sampled]);
        assert_eq!(
            found[0].says,
            "One packet in 4 is looked at, chosen at random, and 300,000 packets (75 % of 400,000) were left out on purpose; \
             the counts are those of the sample."
        );
        let over = Health { keep_one_in: 1, ..sampling };
        assert_eq!(
            judge(&Health::default(), &over, MINUTE)[0].says,
            "300,000 packets (75 % of 400,000) were left out on purpose for a while; all are looked at again."
        );
    }

    #[test]
    fn numbers_are_shown_as_people_write_them() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [(1, 3), (1, 50), (3, 10_000), (9_999, 10_000), (4, 4)].map(|(a, b)| percent(a, b)),
            ["33 %", "2.0 %", "0.03 %", "99 %", "100 %"]
        );
    }
}
