//! What every rule is, for people: which public rule it restates, what it counts, what was wrong with it, what is mended.

/// One rule of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `AZ-01`.
    pub id: &'static str,
    /// `Horizontal scan`.
    pub title: &'static str,
    /// Where the public rule is found; empty for a rule of our own (ND): its GUID in Azure/Azure-Sentinel, or the name of the post or workbook.
    pub public_id: &'static str,
    /// What the public rule is called.
    pub public_name: &'static str,
    /// MITRE ATT&CK tactics.
    pub tactics: &'static str,
    /// Empty for a rule of our own, which has one form. What the exact form computes, which is what the public rule computes, its measured defects included.
    pub exact: &'static str,
    /// What the fixed form does instead, and why; of a rule of our own, what it does.
    pub fixed: &'static str,
    /// Innocent things that look like it.
    pub innocent: &'static str,
}
