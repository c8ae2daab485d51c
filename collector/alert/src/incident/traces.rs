//! What alerts mean for one another: who acted, on whom, and which of them are linked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{HUB_MAX, REACH};
use crate::alert::Alert;
use crate::attack::{self, Progress, Tactic};

/// Traces held at once. Beyond, those silent longest are forgotten and counted.
const TRACES_MAX: usize = 20_000;

/// What an alert means for others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Trace {
    pub(super) alert: Alert,
    /// Id of the incident to which it belongs.
    pub(super) incident: Option<String>,
}

impl Trace {
    pub(super) fn actor(&self) -> Option<Address> {
        self.alert.source
    }

    pub(super) fn tactics(&self) -> Vec<Tactic> {
        attack::tactics_of(&self.alert.attack)
    }

    /// The least that the alert can mean: a rule may name several tactics.
    pub(super) fn stage(&self) -> Option<Progress> {
        self.tactics().into_iter().map(Tactic::stage).min()
    }

    /// Whether it may have given the one who acted a foothold on whom he acted: who is flooded, or is sent data, is not taken over.
    fn may_take_over(&self) -> bool {
        self.stage().is_some_and(|stage| stage < Progress::Acting)
    }

    pub(super) fn is_within_reach(&self, other: &Self) -> bool {
        let gap = self.alert.first.max(other.alert.first).since(self.alert.last.min(other.alert.last));
        gap <= REACH
    }
}

/// Ids of traces by a host.
type Index = BTreeMap<Address, BTreeSet<String>>;

/// The traces of the last hours, at most [`TRACES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Traces {
    all: BTreeMap<String, Trace>,
    by_actor: Index,
    by_victim: Index,
    forgotten: u64,
}

impl Traces {
    pub(super) fn get(&self, id: &str) -> Option<&Trace> {
        self.all.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Trace> {
        self.all.get_mut(id)
    }

    /// All of them, by their ids.
    pub(super) fn all(&self) -> impl Iterator<Item = &Trace> {
        self.all.values()
    }

    /// How many were forgotten because there were too many.
    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Takes in `trace`, or what has become of it; makes room when there are too many.
    pub(super) fn hold(&mut self, trace: Trace) {
        let id = trace.alert.id.clone();
        if !self.all.contains_key(&id) && self.all.len() >= TRACES_MAX {
            let mut by_age: Vec<(Timestamp, String)> =
                self.all.iter().map(|(id, trace)| (trace.alert.last, id.clone())).collect();
            by_age.sort_unstable();
            for (_, id) in by_age.into_iter().take(TRACES_MAX / 8) {
                self.forget(&id);
                self.forgotten += 1;
            }
        }
        if let Some(actor) = trace.actor() {
            self.by_actor.entry(actor).or_default().insert(id.clone());
        }
        if let Some(victim) = trace.alert.destination {
            self.by_victim.entry(victim).or_default().insert(id.clone());
        }
        self.all.insert(id, trace);
    }

    /// Forgets the trace `id`.
    pub(super) fn forget(&mut self, id: &str) {
        let Some(trace) = self.all.remove(id) else { return };
        for (index, host) in [(&mut self.by_actor, trace.actor()), (&mut self.by_victim, trace.alert.destination)] {
            if let Some(host) = host
                && let Some(ids) = index.get_mut(&host)
            {
                ids.remove(id);
                if ids.is_empty() {
                    index.remove(&host);
                }
            }
        }
    }

    /// Forgets all of which `is_over` is true.
    pub(super) fn forget_if(&mut self, is_over: impl Fn(&Trace) -> bool) {
        let over: Vec<String> = self.all.iter().filter(|(_, trace)| is_over(trace)).map(|(id, _)| id.clone()).collect();
        over.iter().for_each(|id| self.forget(id));
    }

    /// All that `actor` did.
    pub(super) fn of(&self, actor: Option<Address>) -> impl Iterator<Item = &Trace> {
        self.at(&self.by_actor, actor)
    }

    /// All that was done to `victim`.
    fn against(&self, victim: Option<Address>) -> impl Iterator<Item = &Trace> {
        self.at(&self.by_victim, victim)
    }

    fn at<'a>(&'a self, index: &'a Index, host: Option<Address>) -> impl Iterator<Item = &'a Trace> {
        host.and_then(|host| index.get(&host)).into_iter().flatten().filter_map(|id| self.all.get(id))
    }

    /// Traces that are linked to `trace`, and whether by a chain.
    pub(super) fn linked(&self, trace: &Trace) -> Vec<(String, bool)> {
        let others = |other: &&Trace| other.alert.id != trace.alert.id;
        let mut linked = Vec::new();
        for other in self.of(trace.actor()).filter(others) {
            linked.push((other, false));
        }
        for earlier in self.against(trace.actor()).filter(others) {
            if earlier.alert.first <= trace.alert.first && earlier.may_take_over() && !self.is_hub(earlier) {
                linked.push((earlier, true));
            }
        }
        for later in self.of(trace.alert.destination).filter(others) {
            if later.alert.first >= trace.alert.first && trace.may_take_over() && !self.is_hub(trace) {
                linked.push((later, true));
            }
        }
        linked
            .into_iter()
            .filter(|(other, _)| other.is_within_reach(trace))
            .map(|(other, chain)| (other.alert.id.clone(), chain))
            .collect()
    }

    /// Whether one of the two hosts of `trace` has too many peers for a chain.
    fn is_hub(&self, trace: &Trace) -> bool {
        let near = |other: &&Trace| other.is_within_reach(trace);
        let actors: BTreeSet<Address> = self.against(trace.alert.destination).filter(near).filter_map(Trace::actor).collect();
        let victims: BTreeSet<Address> =
            self.of(trace.actor()).filter(near).filter_map(|other| other.alert.destination).collect();
        actors.len() > HUB_MAX || victims.len() > HUB_MAX
    }

    /// The traces `members` in the order in which they began; of those that began together, looking comes before acting.
    pub(super) fn in_order(&self, members: &BTreeSet<String>) -> Vec<&Trace> {
        let mut traces: Vec<&Trace> = members.iter().filter_map(|id| self.all.get(id)).collect();
        traces.sort_by_cached_key(|trace| (trace.alert.first, trace.stage(), trace.alert.id.clone()));
        traces
    }
}
