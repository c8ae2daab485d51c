//! Names of MITRE ATT&CK techniques and tactics, for formats that want more than an identifier.
//!
//! Names and tactics as in ATT&CK for Enterprise v17. A technique that is not here travels with its identifier alone.

use crate::Alert;

/// Release of ATT&CK whose names these are.
pub const VERSION: &str = "17";

/// A tactic: what an adversary wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tactic {
    /// `TA0007`.
    pub id: &'static str,
    /// `Discovery`.
    pub name: &'static str,
}

/// A technique or sub-technique: how it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Technique {
    /// `T1046`, `T1021.002`.
    pub id: &'static str,
    /// `Network Service Discovery`.
    pub name: &'static str,
    /// Identifiers of the tactics it serves.
    pub tactics: &'static [&'static str],
}

/// All tactics, in the order of an attack.
pub static TACTICS: [Tactic; 14] = [
    Tactic { id: "TA0043", name: "Reconnaissance" },
    Tactic { id: "TA0042", name: "Resource Development" },
    Tactic { id: "TA0001", name: "Initial Access" },
    Tactic { id: "TA0002", name: "Execution" },
    Tactic { id: "TA0003", name: "Persistence" },
    Tactic { id: "TA0004", name: "Privilege Escalation" },
    Tactic { id: "TA0005", name: "Defense Evasion" },
    Tactic { id: "TA0006", name: "Credential Access" },
    Tactic { id: "TA0007", name: "Discovery" },
    Tactic { id: "TA0008", name: "Lateral Movement" },
    Tactic { id: "TA0009", name: "Collection" },
    Tactic { id: "TA0011", name: "Command and Control" },
    Tactic { id: "TA0010", name: "Exfiltration" },
    Tactic { id: "TA0040", name: "Impact" },
];

/// Techniques that rules of ours or of Azure's pack name, by identifier.
pub static TECHNIQUES: [Technique; 37] = [
    Technique { id: "T1018", name: "Remote System Discovery", tactics: &["TA0007"] },
    Technique { id: "T1021", name: "Remote Services", tactics: &["TA0008"] },
    Technique { id: "T1021.001", name: "Remote Desktop Protocol", tactics: &["TA0008"] },
    Technique { id: "T1021.002", name: "SMB/Windows Admin Shares", tactics: &["TA0008"] },
    Technique { id: "T1021.004", name: "SSH", tactics: &["TA0008"] },
    Technique { id: "T1021.006", name: "Windows Remote Management", tactics: &["TA0008"] },
    Technique { id: "T1030", name: "Data Transfer Size Limits", tactics: &["TA0010"] },
    Technique { id: "T1041", name: "Exfiltration Over C2 Channel", tactics: &["TA0010"] },
    Technique { id: "T1046", name: "Network Service Discovery", tactics: &["TA0007"] },
    Technique { id: "T1048", name: "Exfiltration Over Alternative Protocol", tactics: &["TA0010"] },
    Technique { id: "T1059", name: "Command and Scripting Interpreter", tactics: &["TA0002"] },
    Technique { id: "T1071", name: "Application Layer Protocol", tactics: &["TA0011"] },
    Technique { id: "T1071.001", name: "Web Protocols", tactics: &["TA0011"] },
    Technique { id: "T1071.004", name: "DNS", tactics: &["TA0011"] },
    Technique { id: "T1090", name: "Proxy", tactics: &["TA0011"] },
    Technique { id: "T1095", name: "Non-Application Layer Protocol", tactics: &["TA0011"] },
    Technique { id: "T1110", name: "Brute Force", tactics: &["TA0006"] },
    Technique { id: "T1110.001", name: "Password Guessing", tactics: &["TA0006"] },
    Technique { id: "T1110.003", name: "Password Spraying", tactics: &["TA0006"] },
    Technique { id: "T1133", name: "External Remote Services", tactics: &["TA0001", "TA0003"] },
    Technique { id: "T1190", name: "Exploit Public-Facing Application", tactics: &["TA0001"] },
    Technique { id: "T1203", name: "Exploitation for Client Execution", tactics: &["TA0002"] },
    Technique { id: "T1210", name: "Exploitation of Remote Services", tactics: &["TA0008"] },
    Technique { id: "T1498", name: "Network Denial of Service", tactics: &["TA0040"] },
    Technique { id: "T1498.001", name: "Direct Network Flood", tactics: &["TA0040"] },
    Technique { id: "T1498.002", name: "Reflection Amplification", tactics: &["TA0040"] },
    Technique { id: "T1499", name: "Endpoint Denial of Service", tactics: &["TA0040"] },
    Technique { id: "T1499.001", name: "OS Exhaustion Flood", tactics: &["TA0040"] },
    Technique { id: "T1499.002", name: "Service Exhaustion Flood", tactics: &["TA0040"] },
    Technique { id: "T1567", name: "Exfiltration Over Web Service", tactics: &["TA0010"] },
    Technique { id: "T1568", name: "Dynamic Resolution", tactics: &["TA0011"] },
    Technique { id: "T1570", name: "Lateral Tool Transfer", tactics: &["TA0008"] },
    Technique { id: "T1571", name: "Non-Standard Port", tactics: &["TA0011"] },
    Technique { id: "T1572", name: "Protocol Tunneling", tactics: &["TA0011"] },
    Technique { id: "T1595", name: "Active Scanning", tactics: &["TA0043"] },
    Technique { id: "T1595.001", name: "Scanning IP Blocks", tactics: &["TA0043"] },
    Technique { id: "T1595.002", name: "Vulnerability Scanning", tactics: &["TA0043"] },
];

/// What is known of the technique `id`.
pub fn technique(id: &str) -> Option<&'static Technique> {
    TECHNIQUES.binary_search_by(|technique| technique.id.cmp(id)).ok().map(|place| &TECHNIQUES[place])
}

/// The tactic that `word` means, by identifier or by name, whatever its case; `-` and `_` count as blanks.
pub fn tactic(word: &str) -> Option<&'static Tactic> {
    let word = word.replace(['-', '_'], " ");
    TACTICS.iter().find(|tactic| tactic.id.eq_ignore_ascii_case(&word) || tactic.name.eq_ignore_ascii_case(&word))
}

/// The tactics of an alert in the order of an attack: those that it names, or else those of its techniques.
pub fn tactics_of(alert: &Alert) -> Vec<&'static Tactic> {
    let named: Vec<_> = alert.tactics.iter().filter_map(|word| tactic(word)).collect();
    let served: Vec<&str> = alert.attack.iter().filter_map(|id| technique(id)).flat_map(|known| known.tactics).copied().collect();
    let belongs = |tactic: &Tactic| if named.is_empty() { served.contains(&tactic.id) } else { named.contains(&tactic) };
    TACTICS.iter().filter(|tactic| belongs(tactic)).collect()
}

/// `Network Service Discovery (T1046)`, or the identifier alone.
pub fn label(id: &str) -> String {
    technique(id).map_or_else(|| id.to_owned(), |known| format!("{} ({id})", known.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn techniques_are_in_order_and_serve_tactics_that_exist() {
        assert!(TECHNIQUES.is_sorted_by(|a, b| a.id < b.id));
        for technique in TECHNIQUES {
            assert!(!technique.tactics.is_empty() && technique.tactics.iter().all(|id| tactic(id).is_some()), "{technique:?}");
        }
    }

    #[test]
    fn a_tactic_is_known_by_identifier_and_by_name() {
        let command = tactic("TA0011");
        assert_eq!(command.map(|tactic| tactic.name), Some("Command and Control"));
        assert_eq!((tactic("command-and-control"), tactic("Command and Control")), (command, command));
    }
}
