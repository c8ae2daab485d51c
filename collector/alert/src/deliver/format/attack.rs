//! MITRE ATT&CK as formats want it: tactics with their identifiers, techniques with their names.
//!
//! What a technique is called and serves is said in [`crate::attack`].

use crate::Alert;
use crate::attack::{self, Tactic};

/// Release of ATT&CK whose names these are.
pub const VERSION: &str = "17";

/// Each tactic with its identifier in the Enterprise and in the ICS matrix; empty where that has none.
pub const TACTICS: [(Tactic, &str, &str); 15] = [
    (Tactic::Reconnaissance, "TA0043", ""),
    (Tactic::InitialAccess, "TA0001", "TA0108"),
    (Tactic::Execution, "TA0002", "TA0104"),
    (Tactic::Persistence, "TA0003", "TA0110"),
    (Tactic::PrivilegeEscalation, "TA0004", "TA0111"),
    (Tactic::DefenseEvasion, "TA0005", "TA0103"),
    (Tactic::CredentialAccess, "TA0006", ""),
    (Tactic::Discovery, "TA0007", "TA0102"),
    (Tactic::LateralMovement, "TA0008", "TA0109"),
    (Tactic::Collection, "TA0009", "TA0100"),
    (Tactic::CommandAndControl, "TA0011", "TA0101"),
    (Tactic::Exfiltration, "TA0010", ""),
    (Tactic::InhibitResponseFunction, "", "TA0107"),
    (Tactic::ImpairProcessControl, "", "TA0106"),
    (Tactic::Impact, "TA0040", "TA0105"),
];

/// Its own name of the technique `id`, if that is known.
pub fn name(id: &str) -> Option<&'static str> {
    attack::technique(id).filter(|technique| technique.id == id).map(|technique| technique.name)
}

/// `Network Service Discovery (T1046)`, or the identifier alone.
pub fn label(id: &str) -> String {
    name(id).map_or_else(|| id.to_owned(), |name| format!("{name} ({id})"))
}

/// The tactics of an alert in the order of an attack: those that it names, or else those of its techniques.
pub fn tactics_of(alert: &Alert) -> Vec<Tactic> {
    if alert.tactics.is_empty() {
        return attack::tactics_of(&alert.attack);
    }
    let named = |tactic: &Tactic| alert.tactics.iter().any(|name| name == tactic.name());
    TACTICS.into_iter().map(|(tactic, _, _)| tactic).filter(named).collect()
}

/// The identifier of `tactic` in the matrix that the technique `id` is of (`T0…`: ICS), or in the one that has it.
pub fn tactic_id(tactic: Tactic, id: &str) -> &'static str {
    let known = TACTICS.into_iter().find(|(known, _, _)| *known == tactic);
    match known {
        Some((_, enterprise, ics)) if enterprise.is_empty() || id.starts_with("T0") && !ics.is_empty() => ics,
        Some((_, enterprise, _)) => enterprise,
        None => "",
    }
}

/// Those of `tactics` that the technique `id` serves.
pub fn served(tactics: &[Tactic], id: &str) -> Vec<Tactic> {
    let serves = |tactic: &&Tactic| attack::technique(id).is_some_and(|technique| technique.tactics.contains(tactic));
    tactics.iter().filter(serves).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tactics_are_in_the_order_of_an_attack_and_each_has_an_identifier() {
        assert!(TACTICS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(TACTICS.iter().all(|(tactic, _, _)| tactic_id(*tactic, "T1046").starts_with("TA0")));
    }

    #[test]
    fn the_matrix_of_a_technique_decides() {
        assert_eq!(tactic_id(Tactic::Discovery, "T1046"), "TA0007");
        assert_eq!(tactic_id(Tactic::Discovery, "T0846"), "TA0102");
        assert_eq!(tactic_id(Tactic::ImpairProcessControl, "T0836"), "TA0106");
    }

    #[test]
    fn a_sub_technique_that_is_not_known_has_no_name_of_its_own() {
        assert_eq!((label("T1021.004"), label("T1021.999")), ("SSH (T1021.004)".to_owned(), "T1021.999".to_owned()));
    }
}
