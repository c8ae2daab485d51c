//! Tuples as Azure's files, hour by hour, and what a reader must get out of them.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::{DAY, Dice, Form, Interface, State, Tuple};

/// A file as Azure would have written it.
pub struct File {
    /// In Azure's layout, relative to the container.
    pub path: String,
    pub text: String,
    /// What it tells, in order; exact duplicates and what is cut off at the end left out.
    pub told: Vec<Told>,
    /// How many exact duplicates it holds besides.
    pub duplicates: u64,
}

/// A row that a reader must get out of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub origin: &'static str,
    pub at_ms: i64,
    pub interface: Interface,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub port: u16,
    pub protocol: u8,
    pub inbound: bool,
    pub denied: bool,
    /// None for version 1 and Traffic Analytics.
    pub state: Option<State>,
    pub packets: [u64; 2],
    pub octets: [u64; 2],
    pub events: u64,
}

/// The files of `tuples`, one for each interface and hour, handed over one after the other by hour.
pub fn render(mut tuples: Vec<Tuple>, seed: u64, mut take: impl FnMut(File)) {
    for tuple in tuples.iter_mut().filter(|tuple| tuple.interface.form().has_seconds()) {
        tuple.at_ms -= tuple.at_ms % 1_000;
    }
    let hour = |tuple: &Tuple| tuple.at_ms.div_euclid(3_600_000);
    tuples.sort_by(|a, b| (hour(a), a.interface, a).cmp(&(hour(b), b.interface, b)));
    // The same tuple twice is a duplicate, which files get below, and are known to have.
    tuples.dedup();
    for (number, file) in tuples.chunk_by(|a, b| (hour(a), a.interface) == (hour(b), b.interface)).enumerate() {
        let mut dice = Dice::new(seed ^ (number as u64) << 17);
        take(if file[0].interface.form().is_folded() { analytics(file) } else { flow_log(file, &mut dice) });
    }
}

/// `y=2026/m=11/d=01/h=00/m=00` of an hour.
fn hour_path(at_ms: i64) -> String {
    let (year, month, day) = date(at_ms / 1_000);
    format!("y={year:04}/m={month:02}/d={day:02}/h={:02}/m=00", at_ms / 3_600_000 % 24)
}

/// Civil date of a time in seconds: years begin in March, so that leap days come last (Hinnant's algorithm).
fn date(secs: i64) -> (i64, i64, i64) {
    let days = secs.div_euclid(DAY) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// RFC 3339 with the seven digits that Azure writes.
fn date_time(at_ms: i64) -> String {
    let (year, month, day) = date(at_ms / 1_000);
    let of_day = at_ms.rem_euclid(DAY * 1_000);
    let (secs, ms) = (of_day / 1_000, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}0000Z", secs / 3_600, secs / 60 % 60, secs % 60)
}

/// An hour of an interface in an NSG or VNet flow log, a record each minute.
fn flow_log(tuples: &[Tuple], dice: &mut Dice) -> File {
    let interface = tuples[0].interface;
    let mut file = File { path: blob_path(interface, tuples[0].at_ms), text: String::new(), told: Vec::new(), duplicates: 0 };
    let mut records = Vec::new();
    let mut seen = HashSet::new();
    for minute in tuples.chunk_by(|a, b| a.at_ms / 60_000 == b.at_ms / 60_000) {
        // Now and then the log's version was changed within the minute: two records of one time.
        let cut = if dice.one_in(8) { dice.below(minute.len() as u64) as usize } else { 0 };
        for part in [&minute[..cut], &minute[cut..]].into_iter().filter(|part| !part.is_empty()) {
            let at = part[0].at_ms / 60_000 * 60_000 + 60_000;
            records.push(match interface.form() {
                Form::Vnet | Form::VnetSeconds => vnet_record(part, at, dice, &mut seen, &mut file),
                _ => nsg_record(part, at, dice, &mut seen, &mut file),
            });
        }
    }
    let between = dice.pick(&[",", ",", ",\n", " ,\r\n  "]);
    let body = records.join(between);
    // Most are whole documents. Others are as a tailer meets them: without the beginning, without the end, cut in a record.
    file.text = match dice.below(8) {
        0 => format!("\u{feff}{{\"records\":[{body}]}}"),
        1 => format!("{{ \"records\" : [\n{body}\n]\n}}\n"),
        2 => format!(",{body}]}}"),
        3 => format!("{{\"records\":[{body}"),
        4 => {
            let torn = &records[0][..records[0].len() / 2];
            format!("{{\"records\":[{body},{torn}")
        }
        _ => format!("{{\"records\":[{body}]}}"),
    };
    file
}

fn blob_path(interface: Interface, at_ms: i64) -> String {
    let (id, mac) = (interface.0, interface.mac());
    let hour = hour_path(at_ms);
    let resource = if interface.form().is_nsg() {
        format!("resourceId={}", nsg_id(interface))
    } else if id % 2 == 0 {
        format!("flowLogResourceID={}", flow_log_id(interface))
    } else {
        // The newer, flat layout.
        format!("flowLogResourceID=/{SUBSCRIPTION}_NETWORKWATCHERRG/NETWORKWATCHER_WESTEUROPE_LOG-{id}")
    };
    format!("{resource}/{hour}/macAddress={mac}/PT1H.json")
}

const SUBSCRIPTION: &str = "00000000-1111-2222-3333-444444444444";

fn nsg_id(interface: Interface) -> String {
    format!(
        "/SUBSCRIPTIONS/{SUBSCRIPTION}/RESOURCEGROUPS/RG-PLANT/PROVIDERS/MICROSOFT.NETWORK/NETWORKSECURITYGROUPS/NSG-{}",
        interface.0
    )
}

fn flow_log_id(interface: Interface) -> String {
    format!(
        "/SUBSCRIPTIONS/{SUBSCRIPTION}/RESOURCEGROUPS/NETWORKWATCHERRG/PROVIDERS/MICROSOFT.NETWORK/NETWORKWATCHERS/NETWORKWATCHER_WESTEUROPE/FLOWLOGS/LOG-{}",
        interface.0
    )
}

fn vnet_id(interface: Interface) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-plant/providers/Microsoft.Network/virtualNetworks/vnet-{}",
        interface.0
    )
}

/// Which list and rule decided; a stand-in for policy, so that groups within a record are several.
fn decided_by(tuple: &Tuple) -> (String, &'static str) {
    let guid = format!("9a8b7c6d-0000-4000-8000-0000000000{:02x}", tuple.interface.0);
    match (tuple.platform, tuple.state, tuple.port % 3) {
        (true, ..) => ("00000000-0000-0000-0000-000000000000".to_owned(), "PlatformRule"),
        (_, State::Denied, 0) => ("unspecified".to_owned(), "unspecified"),
        (_, State::Denied, _) => (guid, "DefaultRule_DenyAllInBound"),
        (_, _, 0) => (nsg_id(tuple.interface), "UserRule_allow-plant"),
        _ => (guid, "DefaultRule_AllowVnetInBound"),
    }
}

/// By list, by rule, in the order in which they first come.
fn grouped(tuples: &[Tuple]) -> Vec<(String, Vec<(&'static str, Vec<&Tuple>)>)> {
    let mut lists: Vec<(String, Vec<(&'static str, Vec<&Tuple>)>)> = Vec::new();
    for tuple in tuples {
        let (list, rule) = decided_by(tuple);
        let place = lists.iter().position(|(name, _)| *name == list).unwrap_or_else(|| {
            lists.push((list, Vec::new()));
            lists.len() - 1
        });
        let rules = &mut lists[place].1;
        match rules.iter_mut().find(|(name, _)| *name == rule) {
            Some((_, tuples)) => tuples.push(tuple),
            None => rules.push((rule, vec![tuple])),
        }
    }
    lists
}

/// Adds the tuples of a rule to `file`, and gives their texts as `"…","…"`, an exact duplicate among them now and then.
fn texts(
    label: &str,
    tuples: &[&Tuple],
    file: &mut File,
    seen: &mut HashSet<String>,
    dice: &mut Dice,
    mut write: impl FnMut(&Tuple, &mut Dice) -> (String, Told),
) -> String {
    let mut texts = Vec::with_capacity(tuples.len());
    for tuple in tuples {
        let (text, told) = write(tuple, dice);
        // In version 1 the beginning and the end of a flow may read the same.
        if seen.insert(format!("{label} {text}")) {
            file.told.push(told);
        } else {
            file.duplicates += 1;
        }
        let text = format!("\"{text}\"");
        if dice.one_in(200) {
            file.duplicates += 1;
            texts.push(text.clone());
        }
        texts.push(text);
    }
    texts.join(",")
}

fn vnet_record(tuples: &[Tuple], at_ms: i64, dice: &mut Dice, seen: &mut HashSet<String>, file: &mut File) -> String {
    let interface = tuples[0].interface;
    let seconds = interface.form() == Form::VnetSeconds;
    let mut flows = Vec::new();
    for (list, rules) in grouped(tuples) {
        let mut groups = Vec::new();
        for (rule, tuples) in rules {
            let texts = texts(&format!("{list} {rule}"), &tuples, file, seen, dice, |tuple, dice| {
                (vnet_tuple(tuple, seconds, dice), Told { state: Some(tuple.state), ..told("VnetV4", tuple) })
            });
            groups.push(format!("{{\"rule\":\"{rule}\",\"flowTuples\":[{texts}]}}"));
        }
        flows.push(format!("{{\"aclID\":\"{list}\",\"flowGroups\":[{}]}}", groups.join(",")));
    }
    let mut keys = [
        format!("\"time\":\"{}\"", date_time(at_ms)),
        "\"flowLogVersion\":4".to_owned(),
        format!("\"flowLogGUID\":\"{SUBSCRIPTION}\""),
        format!("\"macAddress\":\"{}\"", interface.mac()),
        "\"category\":\"FlowLogFlowEvent\"".to_owned(),
        format!("\"flowLogResourceID\":\"{}\"", flow_log_id(interface)),
        format!("\"targetResourceID\":\"{}\"", vnet_id(interface)),
        "\"operationName\":\"FlowLogFlowEvent\"".to_owned(),
        format!("\"flowRecords\":{{\"flows\":[{}]}}", flows.join(",")),
    ];
    object(&mut keys, dice)
}

fn nsg_record(tuples: &[Tuple], at_ms: i64, dice: &mut Dice, seen: &mut HashSet<String>, file: &mut File) -> String {
    let interface = tuples[0].interface;
    let version = if interface.form() == Form::NsgMixed { dice.pick(&[1, 2]) } else { 2 };
    let mut flows = Vec::new();
    for (rule, tuples) in grouped(tuples).into_iter().flat_map(|(_, rules)| rules) {
        let texts = texts(rule, &tuples, file, seen, dice, |tuple, _| {
            let told = match version {
                1 => Told { packets: [0; 2], octets: [0; 2], ..told("NsgV1", tuple) },
                _ => {
                    let state = if tuple.state == State::Denied { State::Begin } else { tuple.state };
                    Told { state: Some(state), ..told("NsgV2", tuple) }
                }
            };
            (nsg_tuple(tuple, version), told)
        });
        flows.push(format!("{{\"rule\":\"{rule}\",\"flows\":[{{\"mac\":\"{}\",\"flowTuples\":[{texts}]}}]}}", interface.mac()));
    }
    let mut keys = [
        format!("\"time\":\"{}\"", date_time(at_ms)),
        format!("\"systemId\":\"{SUBSCRIPTION}\""),
        format!("\"macAddress\":\"{}\"", interface.mac()),
        "\"category\":\"NetworkSecurityGroupFlowEvent\"".to_owned(),
        format!("\"resourceId\":\"{}\"", nsg_id(interface)),
        "\"operationName\":\"NetworkSecurityGroupFlowEvents\"".to_owned(),
        format!("\"properties\":{{\"Version\":{version},\"flows\":[{}]}}", flows.join(",")),
    ];
    object(&mut keys, dice)
}

/// The keys in any order and with any space between, as it occurs.
fn object(keys: &mut [String], dice: &mut Dice) -> String {
    if dice.one_in(4) {
        let turn = dice.below(keys.len() as u64) as usize;
        keys.rotate_left(turn);
    }
    let space = dice.pick(&["", "", "", "\n    ", " \t"]);
    format!("{{{space}{}{space}}}", keys.join(&format!(",{space}")))
}

fn told(origin: &'static str, tuple: &Tuple) -> Told {
    Told {
        origin,
        at_ms: tuple.at_ms,
        interface: tuple.interface,
        source: tuple.source,
        destination: tuple.destination,
        source_port: tuple.source_port,
        port: tuple.port,
        protocol: tuple.protocol,
        inbound: tuple.inbound,
        denied: tuple.state == State::Denied,
        state: None,
        packets: tuple.packets,
        octets: tuple.octets,
        events: 1,
    }
}

fn vnet_tuple(tuple: &Tuple, seconds: bool, dice: &mut Dice) -> String {
    let Tuple { source, destination, source_port, port, protocol, packets, octets, .. } = tuple;
    let at = if seconds { tuple.at_ms / 1_000 } else { tuple.at_ms };
    let way = if tuple.inbound { 'I' } else { 'O' };
    let (state, encryption) = match tuple.state {
        State::Begin => ('B', "NX"),
        State::Continue => ('C', "X"),
        State::End => ('E', "NX_NOT_SEEN_BEFORE"),
        State::Denied => ('D', if port % 3 == 0 { "NX_NOT_ACCEPTED" } else { "NX" }),
    };
    let counters = match tuple.state {
        // Real files have zeros here, the documentation's example has nothing.
        State::Begin | State::Denied => dice.pick(&["0,0,0,0", "0,0,0,0", ",,,"]).to_owned(),
        _ => format!("{},{},{},{}", packets[0], octets[0], packets[1], octets[1]),
    };
    format!("{at},{source},{destination},{source_port},{port},{protocol},{way},{state},{encryption},{counters}")
}

fn nsg_tuple(tuple: &Tuple, version: u8) -> String {
    let Tuple { source, destination, source_port, port, packets, octets, .. } = tuple;
    let protocol = if tuple.protocol == 6 { 'T' } else { 'U' };
    let way = if tuple.inbound { 'I' } else { 'O' };
    let (decision, state) = match tuple.state {
        State::Begin => ('A', 'B'),
        State::Continue => ('A', 'C'),
        State::End => ('A', 'E'),
        State::Denied => ('D', 'B'),
    };
    let mut text = format!("{},{source},{destination},{source_port},{port},{protocol},{way},{decision}", tuple.at_ms / 1_000);
    match (version, state) {
        (1, _) => {}
        (_, 'B') => text.push_str(",B,,,,"),
        _ => {
            let _ = write!(text, ",{state},{},{},{},{}", packets[0], octets[0], packets[1], octets[1]);
        }
    }
    text
}

/// What Traffic Analytics folds into one row: everything that differs in source port and state only, in ten minutes; and of public
/// peers also what differs in their address.
type Fold = (i64, Option<IpAddr>, Option<IpAddr>, u16, u8, bool, bool);

#[derive(Default)]
struct Folded {
    at_ms: i64,
    last_ms: i64,
    peers: BTreeMap<IpAddr, Sum>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    flows: u64,
    packets: [u64; 2],
    octets: [u64; 2],
}

/// An hour of an interface as a table of Traffic Analytics.
fn analytics(tuples: &[Tuple]) -> File {
    let interface = tuples[0].interface;
    let mut rows: BTreeMap<Fold, Folded> = BTreeMap::new();
    let public = |address: IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_private(),
        IpAddr::V6(_) => true,
    };
    for tuple in tuples {
        let own = interface.address();
        // The side that is not the machine's own may be public; then its address stands in a list, and the column is blank.
        let hide = |address: IpAddr| (address == own || !public(address)).then_some(address);
        let (source, destination) = (hide(tuple.source), hide(tuple.destination));
        let peer = if source.is_none() { tuple.source } else { tuple.destination };
        let key =
            (tuple.at_ms / 600_000, source, destination, tuple.port, tuple.protocol, tuple.inbound, tuple.state == State::Denied);
        let row = rows.entry(key).or_insert_with(|| Folded { at_ms: tuple.at_ms, ..Folded::default() });
        row.at_ms = row.at_ms.min(tuple.at_ms);
        row.last_ms = row.last_ms.max(tuple.at_ms);
        let sum = row.peers.entry(peer).or_default();
        sum.flows += 1;
        for way in 0..2 {
            sum.packets[way] += tuple.packets[way];
            sum.octets[way] += tuple.octets[way];
        }
    }
    let form = interface.form();
    let extension = if form == Form::AnalyticsCsv { "csv" } else { "json" };
    let path = format!("analytics/{}/nic-{}.{extension}", hour_path(tuples[0].at_ms), interface.0);
    let mut file = File { path, text: String::new(), told: Vec::new(), duplicates: 0 };
    if form == Form::AnalyticsCsv {
        let names: Vec<&str> = COLUMNS.iter().map(|(name, ..)| *name).collect();
        file.text = names.join(",") + "\r\n";
    }
    for (key, row) in &rows {
        let values = values(interface, key, row);
        match form {
            Form::AnalyticsCsv => file.text.push_str(&(values.join(",") + "\r\n")),
            _ => json_line(&values, form == Form::AnalyticsNsg, &mut file.text),
        }
        let &(_, source, destination, port, protocol, inbound, denied) = key;
        file.told.extend(row.peers.iter().map(|(&peer, sum)| Told {
            origin: if form == Form::AnalyticsNsg { "TaNsg" } else { "TaVnet" },
            at_ms: row.at_ms,
            interface,
            source: source.unwrap_or(peer),
            destination: destination.unwrap_or(peer),
            source_port: 0,
            port,
            protocol,
            inbound,
            denied,
            state: None,
            packets: sum.packets,
            octets: sum.octets,
            events: sum.flows,
        }));
    }
    file
}

/// The peer that Azure knows to be bad.
const MALICIOUS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 13));

/// `NTANetAnalytics`, `AzureNetworkAnalytics_CL`, and whether the value is a number.
const COLUMNS: [(&str, &str, bool); 26] = [
    ("TimeGenerated", "TimeGenerated", false),
    ("SubType", "SubType_s", false),
    ("FlowIntervalStartTime", "FlowIntervalStartTime_t", false),
    ("FlowStartTime", "FlowStartTime_t", false),
    ("FlowEndTime", "FlowEndTime_t", false),
    ("FlowType", "FlowType_s", false),
    ("SrcIp", "SrcIP_s", false),
    ("DestIp", "DestIP_s", false),
    ("DestPort", "DestPort_d", true),
    ("L4Protocol", "L4Protocol_s", false),
    ("FlowDirection", "FlowDirection_s", false),
    ("FlowStatus", "FlowStatus_s", false),
    ("AclRule", "NSGRule_s", false),
    ("MacAddress", "MACAddress_s", false),
    ("SrcVm", "VM1_s", false),
    ("DestVm", "VM2_s", false),
    ("AllowedInFlows", "AllowedInFlows_d", true),
    ("DeniedInFlows", "DeniedInFlows_d", true),
    ("AllowedOutFlows", "AllowedOutFlows_d", true),
    ("DeniedOutFlows", "DeniedOutFlows_d", true),
    ("PacketsSrcToDest", "OutboundPackets_d", true),
    ("PacketsDestToSrc", "InboundPackets_d", true),
    ("BytesSrcToDest", "OutboundBytes_d", true),
    ("BytesDestToSrc", "InboundBytes_d", true),
    ("SrcPublicIps", "SrcPublicIPs_s", false),
    ("DestPublicIps", "DestPublicIPs_s", false),
];

fn values(interface: Interface, key: &Fold, row: &Folded) -> Vec<String> {
    let &(slot, source, destination, port, protocol, inbound, denied) = key;
    let mut all = Sum::default();
    let mut peers = Vec::new();
    for (peer, sum) in &row.peers {
        all.flows += sum.flows;
        for way in 0..2 {
            all.packets[way] += sum.packets[way];
            all.octets[way] += sum.octets[way];
        }
        let Sum { flows, packets, octets } = sum;
        peers.push(format!("{peer}|{flows}|{flows}|{}|{}|{}|{}", packets[0], packets[1], octets[0], octets[1]));
    }
    let peers = peers.join(" ");
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let is_own = |address: Option<IpAddr>| address == Some(interface.address());
    let machine = |own: bool| if own { interface.machine() } else { String::new() };
    let flows = |inward: bool, refused: bool| if (inbound, denied) == (inward, refused) { all.flows } else { 0 }.to_string();
    let class = match (source, destination) {
        _ if row.peers.contains_key(&MALICIOUS) => "MaliciousFlow",
        (Some(_), Some(_)) => "IntraVNet",
        _ => "ExternalPublic",
    };
    // The spellings that tables of different age have.
    let old = slot % 2 == 0;
    let word = |short: &str, long: &str| if old { short } else { long }.to_owned();
    vec![
        date_time((slot + 2) * 600_000 + 123),
        "FlowLog".to_owned(),
        date_time(slot * 600_000),
        date_time(row.at_ms),
        date_time(row.last_ms),
        class.to_owned(),
        text(source),
        text(destination),
        port.to_string(),
        match protocol {
            6 => word("T", "TCP"),
            17 => word("U", "UDP"),
            _ => "ICMP".to_owned(),
        },
        if inbound { word("I", "Inbound") } else { word("O", "Outbound") },
        if denied { word("D", "Denied") } else { word("A", "Allowed") },
        if denied { "DefaultRule_DenyAllInBound" } else { "UserRule_allow-plant" }.to_owned(),
        interface.mac(),
        machine(is_own(source)),
        machine(is_own(destination)),
        flows(true, false),
        flows(true, true),
        flows(false, false),
        flows(false, true),
        all.packets[0].to_string(),
        all.packets[1].to_string(),
        all.octets[0].to_string(),
        all.octets[1].to_string(),
        if source.is_none() { peers.clone() } else { String::new() },
        if source.is_some() && destination.is_none() { peers } else { String::new() },
    ]
}

fn json_line(values: &[String], nsg: bool, out: &mut String) {
    out.push('{');
    for (n, (value, (vnet_name, nsg_name, number))) in values.iter().zip(&COLUMNS).enumerate() {
        let name = if nsg { nsg_name } else { vnet_name };
        let quote = if *number { "" } else { "\"" };
        let _ = write!(out, "{}\"{name}\":{quote}{value}{quote}", if n == 0 { "" } else { "," });
    }
    out.push_str("}\n");
}
