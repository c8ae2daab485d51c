//! Roles that the operator gives: `[[roles]]`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use super::{Role, RoleSet};

/// Most prefixes in all roles together.
pub const PREFIXES_MAX: usize = 4_096;

/// Hosts that the operator vouches for: `[[roles]]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSettings {
    /// What they are for.
    pub role: Role,
    /// Their addresses, such as "10.1.0.7" or "10.1.7.0/28".
    pub cidrs: Vec<Prefix>,
    /// Who answers for it.
    pub owner: String,
    /// The last day on which it holds, such as "2027-06-30" (UTC).
    pub until: String,
}

impl RoleSettings {
    /// The first moment at which it does not hold any more.
    ///
    /// # Errors
    /// `until` is no day.
    fn end(&self) -> Result<Timestamp, String> {
        let wrong = || format!("role {}: until = {:?} is no day; write it such as \"2027-06-30\"", self.role.name(), self.until);
        day_number(&self.until).map(|day| Timestamp::from_secs((day + 1) * 86_400)).ok_or_else(wrong)
    }

    /// What to tell the operator at `now` of a role that has ended or ends within two weeks; none of others.
    pub fn reminder(&self, now: Timestamp) -> Option<String> {
        const SOON: std::time::Duration = std::time::Duration::from_secs(14 * 86_400);
        let end = self.end().ok()?;
        let Self { owner, until, .. } = self;
        let (role, first) = (self.role.name(), self.cidrs.first().map(ToString::to_string).unwrap_or_default());
        if end <= now {
            Some(format!(
                "the role {role} of {first} ended on {until} and does not hold any more: ask {owner}, then renew or remove it"
            ))
        } else if end <= now.plus(SOON) {
            Some(format!("the role {role} of {first} ends on {until}: ask {owner} whether to renew it"))
        } else {
            None
        }
    }
}

/// Who was given which role.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    entries: Vec<Entry>,
    /// Where the answer changes, ascending: from this address on, these of the entries.
    steps: Vec<(u128, Vec<u16>)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    prefix: Prefix,
    roles: RoleSet,
    /// From then on it does not hold.
    end: Timestamp,
}

impl Given {
    pub(super) fn new(settings: &[RoleSettings]) -> Result<Self, String> {
        let mut entries = Vec::new();
        for given in settings {
            let role = given.role.name();
            if given.cidrs.is_empty() {
                return Err(format!("role {role} needs at least one address or prefix, such as cidrs = [\"10.1.0.7\"]"));
            }
            if given.owner.trim().is_empty() {
                return Err(format!("role {role} needs an owner who answers for it, such as owner = \"it-security\""));
            }
            let (roles, end) = (RoleSet::of(&[given.role]), given.end()?);
            entries.extend(given.cidrs.iter().map(|&prefix| Entry { prefix, roles, end }));
        }
        if entries.len() > PREFIXES_MAX {
            return Err(format!(
                "roles name {} prefixes, and {PREFIXES_MAX} are the most; put neighbours together",
                entries.len()
            ));
        }
        Ok(Self::build(entries))
    }

    pub(super) fn add(&mut self, prefix: Prefix, role: Role, end: Timestamp) {
        self.entries.push(Entry { prefix, roles: RoleSet::of(&[role]), end });
        *self = Self::build(std::mem::take(&mut self.entries));
    }

    fn build(entries: Vec<Entry>) -> Self {
        let mut starts: BTreeSet<u128> = BTreeSet::new();
        for Entry { prefix, .. } in &entries {
            starts.insert(prefix.first().0);
            starts.extend(prefix.last().0.checked_add(1));
        }
        let numbers = |start| {
            let of_start = |(_, entry): &(u16, &Entry)| entry.prefix.contains(Address(start));
            (0_u16..).zip(&entries).filter(of_start).map(|(number, _)| number).collect()
        };
        let steps = starts.iter().map(|&start| (start, numbers(start))).collect();
        Self { steps, entries }
    }

    pub(super) fn of(&self, address: Address, at: Timestamp) -> RoleSet {
        let after = self.steps.partition_point(|(start, _)| *start <= address.0);
        let Some((_, numbers)) = after.checked_sub(1).and_then(|place| self.steps.get(place)) else { return RoleSet::NONE };
        let entries = numbers.iter().filter_map(|&number| self.entries.get(usize::from(number)));
        entries.filter(|entry| at < entry.end).fold(RoleSet::NONE, |set, entry| set.with(entry.roles))
    }
}

/// Days from 1970-01-01 to a day written as 2027-06-30; none if there is no such day.
fn day_number(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return None;
    }
    let (year, month, day): (i64, i64, i64) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
    if !(1970..=2200).contains(&year) || !(1..=length).contains(&day) {
        return None;
    }
    let months: i64 = lengths.iter().take(usize::try_from(month - 1).ok()?).sum();
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    Some((year - 1970) * 365 + leaps(year - 1) - leaps(1969) + months + day - 1)
}
