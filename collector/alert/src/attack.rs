//! MITRE ATT&CK: the techniques that rules name, and the tactics which they serve.
//!
//! Names and tactics are those of ATT&CK v17, Enterprise and ICS (attack.mitre.org); a technique that serves several tactics names
//! them in the order of an attack.

/// What an adversary wants, in the order in which an attack goes on. Those of the Enterprise and of the ICS matrix that have one name
/// are one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tactic {
    /// TA0043.
    Reconnaissance,
    /// TA0001, TA0108.
    InitialAccess,
    /// TA0002, TA0104.
    Execution,
    /// TA0003, TA0110.
    Persistence,
    /// TA0004, TA0111.
    PrivilegeEscalation,
    /// TA0005; Evasion, TA0103.
    DefenseEvasion,
    /// TA0006.
    CredentialAccess,
    /// TA0007, TA0102.
    Discovery,
    /// TA0008, TA0109.
    LateralMovement,
    /// TA0009, TA0100.
    Collection,
    /// TA0011, TA0101.
    CommandAndControl,
    /// TA0010.
    Exfiltration,
    /// TA0107.
    InhibitResponseFunction,
    /// TA0106.
    ImpairProcessControl,
    /// TA0040, TA0105.
    Impact,
}

impl Tactic {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reconnaissance => "Reconnaissance",
            Self::InitialAccess => "Initial Access",
            Self::Execution => "Execution",
            Self::Persistence => "Persistence",
            Self::PrivilegeEscalation => "Privilege Escalation",
            Self::DefenseEvasion => "Defense Evasion",
            Self::CredentialAccess => "Credential Access",
            Self::Discovery => "Discovery",
            Self::LateralMovement => "Lateral Movement",
            Self::Collection => "Collection",
            Self::CommandAndControl => "Command and Control",
            Self::Exfiltration => "Exfiltration",
            Self::InhibitResponseFunction => "Inhibit Response Function",
            Self::ImpairProcessControl => "Impair Process Control",
            Self::Impact => "Impact",
        }
    }

    /// How far an intruder has come who got here.
    pub const fn stage(self) -> Progress {
        match self {
            Self::Reconnaissance | Self::Discovery => Progress::Looking,
            Self::InitialAccess
            | Self::Execution
            | Self::Persistence
            | Self::PrivilegeEscalation
            | Self::DefenseEvasion
            | Self::CredentialAccess => Progress::Entering,
            Self::LateralMovement => Progress::Spreading,
            Self::Collection
            | Self::CommandAndControl
            | Self::Exfiltration
            | Self::InhibitResponseFunction
            | Self::ImpairProcessControl
            | Self::Impact => Progress::Acting,
        }
    }
}

/// How far an intruder has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// Reconnaissance and discovery: who is there, and what is open.
    Looking,
    /// Initial access to credential access: at a first door.
    Entering,
    /// Lateral movement: through further doors.
    Spreading,
    /// Command and control, exfiltration, impact: at what the attack is for.
    Acting,
}

/// A technique or sub-technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Technique {
    /// `T1046`, `T1021.004`.
    pub id: &'static str,
    /// Its name; of a sub-technique its own only.
    pub name: &'static str,
    /// What it serves, in the order of an attack.
    pub tactics: &'static [Tactic],
}

/// What is known of the technique `id`. A sub-technique that is not in the table serves what its technique serves.
pub fn technique(id: &str) -> Option<&'static Technique> {
    let find = |id: &str| TECHNIQUES.iter().find(|technique| technique.id == id);
    find(id).or_else(|| id.split_once('.').and_then(|(whole, _)| find(whole)))
}

/// The tactics which the techniques `ids` serve, each once, in the order of an attack.
pub fn tactics_of(ids: &[String]) -> Vec<Tactic> {
    let mut tactics: Vec<Tactic> =
        ids.iter().filter_map(|id| technique(id)).flat_map(|technique| technique.tactics).copied().collect();
    tactics.sort_unstable();
    tactics.dedup();
    tactics
}

/// The same, by name.
pub fn tactics(ids: &[String]) -> Vec<String> {
    tactics_of(ids).into_iter().map(|tactic| tactic.name().to_owned()).collect()
}

const fn technique_of(id: &'static str, name: &'static str, tactics: &'static [Tactic]) -> Technique {
    Technique { id, name, tactics }
}

use Tactic::{
    Collection, CommandAndControl, CredentialAccess, DefenseEvasion, Discovery, Execution, Exfiltration, Impact,
    ImpairProcessControl, InhibitResponseFunction, InitialAccess, LateralMovement, Persistence, PrivilegeEscalation,
    Reconnaissance,
};

/// Enterprise, then ICS, by number.
pub const TECHNIQUES: &[Technique] = &[
    technique_of("T1008", "Fallback Channels", &[CommandAndControl]),
    technique_of("T1018", "Remote System Discovery", &[Discovery]),
    technique_of("T1020", "Automated Exfiltration", &[Exfiltration]),
    technique_of("T1021", "Remote Services", &[LateralMovement]),
    technique_of("T1021.001", "Remote Desktop Protocol", &[LateralMovement]),
    technique_of("T1021.002", "SMB/Windows Admin Shares", &[LateralMovement]),
    technique_of("T1021.003", "Distributed Component Object Model", &[LateralMovement]),
    technique_of("T1021.004", "SSH", &[LateralMovement]),
    technique_of("T1021.005", "VNC", &[LateralMovement]),
    technique_of("T1021.006", "Windows Remote Management", &[LateralMovement]),
    technique_of("T1029", "Scheduled Transfer", &[Exfiltration]),
    technique_of("T1030", "Data Transfer Size Limits", &[Exfiltration]),
    technique_of("T1040", "Network Sniffing", &[CredentialAccess, Discovery]),
    technique_of("T1041", "Exfiltration Over C2 Channel", &[Exfiltration]),
    technique_of("T1046", "Network Service Discovery", &[Discovery]),
    technique_of("T1048", "Exfiltration Over Alternative Protocol", &[Exfiltration]),
    technique_of("T1048.003", "Exfiltration Over Unencrypted Non-C2 Protocol", &[Exfiltration]),
    technique_of("T1059", "Command and Scripting Interpreter", &[Execution]),
    technique_of("T1071", "Application Layer Protocol", &[CommandAndControl]),
    technique_of("T1071.001", "Web Protocols", &[CommandAndControl]),
    technique_of("T1071.004", "DNS", &[CommandAndControl]),
    technique_of("T1078", "Valid Accounts", &[InitialAccess, Persistence, PrivilegeEscalation, DefenseEvasion]),
    technique_of("T1090", "Proxy", &[CommandAndControl]),
    technique_of("T1095", "Non-Application Layer Protocol", &[CommandAndControl]),
    technique_of("T1110", "Brute Force", &[CredentialAccess]),
    technique_of("T1110.001", "Password Guessing", &[CredentialAccess]),
    technique_of("T1110.003", "Password Spraying", &[CredentialAccess]),
    technique_of("T1110.004", "Credential Stuffing", &[CredentialAccess]),
    technique_of("T1133", "External Remote Services", &[InitialAccess, Persistence]),
    technique_of("T1135", "Network Share Discovery", &[Discovery]),
    technique_of("T1190", "Exploit Public-Facing Application", &[InitialAccess]),
    technique_of("T1200", "Hardware Additions", &[InitialAccess]),
    technique_of("T1203", "Exploitation for Client Execution", &[Execution]),
    technique_of("T1210", "Exploitation of Remote Services", &[LateralMovement]),
    technique_of("T1219", "Remote Access Tools", &[CommandAndControl]),
    technique_of("T1489", "Service Stop", &[Impact]),
    technique_of("T1498", "Network Denial of Service", &[Impact]),
    technique_of("T1498.001", "Direct Network Flood", &[Impact]),
    technique_of("T1498.002", "Reflection Amplification", &[Impact]),
    technique_of("T1499", "Endpoint Denial of Service", &[Impact]),
    technique_of("T1499.001", "OS Exhaustion Flood", &[Impact]),
    technique_of("T1499.002", "Service Exhaustion Flood", &[Impact]),
    technique_of("T1557", "Adversary-in-the-Middle", &[CredentialAccess, Collection]),
    technique_of("T1557.002", "ARP Cache Poisoning", &[CredentialAccess, Collection]),
    technique_of("T1567", "Exfiltration Over Web Service", &[Exfiltration]),
    technique_of("T1568", "Dynamic Resolution", &[CommandAndControl]),
    technique_of("T1570", "Lateral Tool Transfer", &[LateralMovement]),
    technique_of("T1571", "Non-Standard Port", &[CommandAndControl]),
    technique_of("T1572", "Protocol Tunneling", &[CommandAndControl]),
    technique_of("T1595", "Active Scanning", &[Reconnaissance]),
    technique_of("T1595.001", "Scanning IP Blocks", &[Reconnaissance]),
    technique_of("T1595.002", "Vulnerability Scanning", &[Reconnaissance]),
    technique_of("T0801", "Monitor Process State", &[Collection]),
    technique_of("T0804", "Block Reporting Message", &[InhibitResponseFunction]),
    technique_of("T0814", "Denial of Service", &[InhibitResponseFunction]),
    technique_of("T0822", "External Remote Services", &[InitialAccess]),
    technique_of("T0830", "Adversary-in-the-Middle", &[Collection]),
    technique_of("T0836", "Modify Parameter", &[ImpairProcessControl]),
    technique_of("T0840", "Network Connection Enumeration", &[Discovery]),
    technique_of("T0842", "Network Sniffing", &[Discovery]),
    technique_of("T0843", "Program Download", &[LateralMovement]),
    technique_of("T0846", "Remote System Discovery", &[Discovery]),
    technique_of("T0848", "Rogue Master", &[InitialAccess]),
    technique_of("T0855", "Unauthorized Command Message", &[ImpairProcessControl]),
    technique_of("T0857", "System Firmware", &[Persistence, InhibitResponseFunction]),
    technique_of("T0858", "Change Operating Mode", &[Execution, DefenseEvasion]),
    technique_of("T0859", "Valid Accounts", &[Persistence, LateralMovement]),
    technique_of("T0864", "Transient Cyber Asset", &[InitialAccess]),
    technique_of("T0866", "Exploitation of Remote Services", &[InitialAccess, LateralMovement]),
    technique_of("T0867", "Lateral Tool Transfer", &[LateralMovement]),
    technique_of("T0869", "Standard Application Layer Protocol", &[CommandAndControl]),
    technique_of("T0881", "Service Stop", &[InhibitResponseFunction]),
    technique_of("T0883", "Internet Accessible Device", &[InitialAccess]),
    technique_of("T0885", "Commonly Used Port", &[CommandAndControl]),
    technique_of("T0886", "Remote Services", &[InitialAccess, LateralMovement]),
    technique_of("T0888", "Remote System Information Discovery", &[Discovery]),
];

#[cfg(test)]
mod tests {
    use spanwatch_detect::RuleFile;

    use super::*;

    #[test]
    fn every_technique_that_a_rule_names_is_known_by_its_own_name() {
        for (entry, rule) in RuleFile::default().rules() {
            for id in rule.common().attack {
                assert!(TECHNIQUES.iter().any(|technique| technique.id == id), "{} names {id}", entry.id);
            }
        }
        assert!(TECHNIQUES.iter().all(|technique| technique.tactics.is_sorted() && !technique.tactics.is_empty()));
    }

    #[test]
    fn tactics_come_once_and_in_the_order_of_an_attack() {
        let ids = ["T1041", "T1046", "T1018", "T1595.001", "T1021.999", "T9999"].map(str::to_owned);
        assert_eq!(tactics(&ids), ["Reconnaissance", "Discovery", "Lateral Movement", "Exfiltration"]);
    }
}
