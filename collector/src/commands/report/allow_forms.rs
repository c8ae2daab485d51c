//! Allow rules in the forms that somebody applies: a sheet to read, a network security group, nftables.

use std::fmt::Write as _;

use serde_json::{Value, json};
use spanwatch_common::flow::protocol;
use spanwatch_common::net::Prefix;
use spanwatch_common::text::protocol_name;

use super::allow::Rule;
use super::sheet::{Cell, Sheet};

/// Priorities of a network security group's rules: 100 to 4096, of which the last refuses the rest.
const PRIORITY_FIRST: usize = 100;
const PRIORITY_LAST: usize = 4_096;
/// Bits of a prefix that is one address.
const HOST_BITS: u8 = 128;

/// The rules for people and spreadsheets.
pub(super) fn sheet(rules: &[Rule]) -> Sheet {
    let rows = rules.iter().map(|rule| {
        vec![
            Cell::Text(protocol_name(rule.protocol).into_owned()),
            Cell::Text(ports(rule, " ")),
            Cell::Text(addresses(&rule.destinations, " ")),
            Cell::Text(addresses(&rule.sources, " ")),
            Cell::Count(rule.seen_sources),
            Cell::Count(u64::try_from(rule.permitted_sources()).unwrap_or(u64::MAX)),
        ]
    });
    let columns = vec!["protocol", "ports", "destinations", "sources", "seen_sources", "permitted_sources"];
    Sheet { columns, rows: rows.collect() }
}

/// The rules as `securityRules` of a network security group in an Azure Resource Manager template, and how many it cannot express:
/// those of protocols other than TCP, UDP, ICMP, ESP and AH. The last rule refuses everything else that comes in to `target`.
///
/// # Errors
/// There are more rules than a group can hold; a sentence that says what to do.
pub(super) fn network_security_group(rules: &[Rule], target: &Prefix) -> Result<(Value, usize), String> {
    let expressible: Vec<(&Rule, &str)> = rules.iter().filter_map(|rule| Some((rule, arm_protocol(rule.protocol)?))).collect();
    let room = PRIORITY_LAST - PRIORITY_FIRST;
    if expressible.len() > room {
        return Err(format!(
            "{} rules are more than the {room} priorities of a network security group; widen sources with --aggregate, or take a smaller subnet",
            expressible.len()
        ));
    }
    let left_out = rules.len() - expressible.len();
    let allow = expressible.into_iter().zip(PRIORITY_FIRST..).map(|((rule, protocol), priority)| {
        let mut properties = json!({
            "protocol": protocol,
            "access": "Allow",
            "direction": "Inbound",
            "priority": priority,
            "sourcePortRange": "*",
            "description": format!("{} sources seen", rule.seen_sources),
        });
        put(
            &mut properties,
            "sourceAddressPrefix",
            "sourceAddressPrefixes",
            rule.sources.iter().map(ToString::to_string).collect(),
        );
        put(
            &mut properties,
            "destinationAddressPrefix",
            "destinationAddressPrefixes",
            rule.destinations.iter().map(ToString::to_string).collect(),
        );
        let ports: Vec<String> = match rule.ports.as_slice() {
            [] => vec!["*".to_owned()],
            ports => ports.iter().map(range).collect(),
        };
        put(&mut properties, "destinationPortRange", "destinationPortRanges", ports);
        json!({ "name": format!("Allow-Seen-{priority}"), "properties": properties })
    });
    let deny = json!({
        "name": "Deny-Everything-Else",
        "properties": {
            "protocol": "*",
            "access": "Deny",
            "direction": "Inbound",
            "priority": PRIORITY_LAST,
            "sourcePortRange": "*",
            "sourceAddressPrefix": "*",
            "destinationAddressPrefix": target.to_string(),
            "destinationPortRange": "*",
            "description": "Everything that was not seen to work",
        }
    });
    Ok((json!({ "securityRules": allow.chain([deny]).collect::<Vec<_>>() }), left_out))
}

/// One value under its singular name, several under the plural one: Azure takes either, not both.
fn put(properties: &mut Value, one: &str, several: &str, mut values: Vec<String>) {
    match values.len() {
        1 => properties[one] = Value::from(values.remove(0)),
        _ => properties[several] = Value::from(values),
    }
}

const fn arm_protocol(number: u8) -> Option<&'static str> {
    match number {
        protocol::TCP => Some("Tcp"),
        protocol::UDP => Some("Udp"),
        protocol::ICMP => Some("Icmp"),
        50 => Some("Esp"),
        51 => Some("Ah"),
        _ => None,
    }
}

/// The rules as a table of nftables: for a host to apply to itself, for a subnet to apply on the router before it. Nothing but what
/// is addressed to `target` is touched.
pub(super) fn nftables(rules: &[Rule], target: &Prefix) -> String {
    let is_host = target.bits() == HOST_BITS;
    let (hook, place) = if is_host { ("input", "the host itself") } else { ("forward", "the router before the subnet") };
    let family = if target.first().as_v4().is_some() { "ip" } else { "ip6" };
    let to = address(target);
    let mut text = format!(
        "#!/usr/sbin/nft -f\n# What was seen to work with {to}, and nothing else. For {place}; check with `nft -c -f FILE`.\n\
         table inet spanwatch\ndelete table inet spanwatch\ntable inet spanwatch {{\n\tchain allow {{\n\
         \t\ttype filter hook {hook} priority filter; policy accept;\n\t\tct state established,related accept\n"
    );
    if is_host {
        text.push_str("\t\tiif lo accept\n");
        if family == "ip6" {
            text.push_str(
                "\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert } accept\n",
            );
        }
    }
    for rule in rules {
        let family = if rule.is_v4() { "ip" } else { "ip6" };
        let (to, from) = (set(rule.destinations.iter().map(address)), set(rule.sources.iter().map(address)));
        let service = match (protocol_word(rule.protocol), rule.ports.as_slice()) {
            (Some(word), ports @ [_, ..]) => format!("{word} dport {}", set(ports.iter().map(range))),
            _ => format!("meta l4proto {}", rule.protocol),
        };
        let _ = writeln!(text, "\t\t{family} daddr {to} {family} saddr {from} {service} accept"); // a String takes everything
    }
    let _ = writeln!(text, "\t\t{family} daddr {to} counter drop\n\t}}\n}}");
    text
}

const fn protocol_word(number: u8) -> Option<&'static str> {
    match number {
        protocol::TCP => Some("tcp"),
        protocol::UDP => Some("udp"),
        protocol::SCTP => Some("sctp"),
        _ => None,
    }
}

fn set(mut items: impl ExactSizeIterator<Item = String>) -> String {
    match items.len() {
        1 => items.next().unwrap_or_default(),
        _ => format!("{{ {} }}", items.collect::<Vec<_>>().join(", ")),
    }
}

fn ports(rule: &Rule, between: &str) -> String {
    rule.ports.iter().map(range).collect::<Vec<_>>().join(between)
}

fn addresses(prefixes: &[Prefix], between: &str) -> String {
    prefixes.iter().map(address).collect::<Vec<_>>().join(between)
}

fn range(&(first, last): &(u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// A prefix; of a single address without its length.
fn address(prefix: &Prefix) -> String {
    if prefix.bits() == HOST_BITS { prefix.first().to_string() } else { prefix.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a literal")
    }

    fn rules() -> Vec<Rule> {
        let rule = |sources: &[&str], protocol, ports: &[(u16, u16)]| Rule {
            sources: sources.iter().map(|text| prefix(text)).collect(),
            destinations: vec![prefix("198.51.100.7")],
            protocol,
            ports: ports.to_vec(),
            seen_sources: 2,
        };
        vec![
            rule(&["192.0.2.4/31", "203.0.113.9"], protocol::TCP, &[(80, 80), (8000, 8003)]),
            rule(&["192.0.2.4/31"], protocol::ICMP, &[]),
            rule(&["192.0.2.4/31"], 47, &[]),
        ]
    }

    #[test]
    fn a_network_security_group_has_its_rules_in_order_and_refuses_the_rest() {
        let (group, left_out) = network_security_group(&rules(), &prefix("198.51.100.7")).expect("few rules");
        assert_eq!(left_out, 1, "GRE");
        let rules = group["securityRules"].as_array().expect("rules");
        assert_eq!(rules.len(), 3);
        let first = &rules[0]["properties"];
        assert_eq!(first["sourceAddressPrefixes"], json!(["192.0.2.4/31", "203.0.113.9/32"]));
        assert_eq!(first["destinationAddressPrefix"], "198.51.100.7/32");
        assert_eq!(first["destinationPortRanges"], json!(["80", "8000-8003"]));
        assert!(first.get("sourceAddressPrefix").is_none() && first.get("destinationPortRange").is_none());
        assert_eq!((&first["protocol"], &first["priority"]), (&json!("Tcp"), &json!(100)));
        assert_eq!(
            (&rules[1]["properties"]["protocol"], &rules[1]["properties"]["destinationPortRange"]),
            (&json!("Icmp"), &json!("*"))
        );
        assert_eq!((&rules[2]["properties"]["access"], &rules[2]["properties"]["priority"]), (&json!("Deny"), &json!(4096)));
        let many: Vec<Rule> = std::iter::repeat_n(rules_of_one(), 3_997).collect();
        assert!(network_security_group(&many, &prefix("198.51.100.7")).expect_err("too many").contains("--aggregate"));
    }

    fn rules_of_one() -> Rule {
        rules().remove(0)
    }

    #[test]
    fn nftables_let_in_what_was_seen_and_drop_the_rest_of_what_is_addressed_to_the_target() {
        let text = nftables(&rules(), &prefix("198.51.100.7"));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for line in [
            "type filter hook input priority filter; policy accept;",
            "ct state established,related accept",
            "ip daddr 198.51.100.7 ip saddr { 192.0.2.4/31, 203.0.113.9 } tcp dport { 80, 8000-8003 } accept",
            "ip daddr 198.51.100.7 ip saddr 192.0.2.4/31 meta l4proto 1 accept",
            "ip daddr 198.51.100.7 ip saddr 192.0.2.4/31 meta l4proto 47 accept",
        ] {
            assert!(lines.contains(&line), "{line}\n{text}");
        }
        assert_eq!(lines[lines.len() - 3], "ip daddr 198.51.100.7 counter drop");
        assert!(nftables(&[], &prefix("198.51.100.0/24")).contains("hook forward"));
    }
}
