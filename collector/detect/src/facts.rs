//! What can be said of a row in a few bits, once for all detectors: most rows concern few of them, and a detector that says which
//! ([`Interest`]) is not even asked about the others.

use spanwatch_common::cloud::Action;
use spanwatch_common::flow::protocol;

use crate::row::{Contact, Outcome, Part, Row};
use crate::sites::FlowClass;

/// A set of facts about a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts(u32);

impl Facts {
    /// No fact.
    pub const NONE: Self = Self(0);
    /// The protocol is TCP.
    pub const TCP: Self = Self(1);
    /// The protocol is UDP.
    pub const UDP: Self = Self(1 << 1);
    /// The protocol is neither ICMP nor ICMPv6.
    pub const PORTS: Self = Self(1 << 2);
    /// [`Contact::Probe`].
    pub const PROBE: Self = Self(1 << 3);
    /// [`Outcome::is_failure`].
    pub const FAILED: Self = Self(1 << 4);
    /// [`Outcome::Denied`] or [`Outcome::Reset`].
    pub const REFUSED: Self = Self(1 << 5);
    /// [`Outcome::Success`].
    pub const SUCCESS: Self = Self(1 << 6);
    /// [`Part::Announcement`].
    pub const ANNOUNCEMENT: Self = Self(1 << 7);
    /// [`Part::Slice`].
    pub const SLICE: Self = Self(1 << 8);
    /// [`Part::Tail`].
    pub const TAIL: Self = Self(1 << 9);
    /// Both ends are known and differ, the destination is no group, and it is not the platform's own: what a fixed form may count, if
    /// nobody excluded it.
    pub const COUNTABLE: Self = Self(1 << 10);
    /// [`Row::aggregate`].
    pub const AGGREGATE: Self = Self(1 << 11);
    /// [`FlowClass::External`].
    pub const EXTERNAL: Self = Self(1 << 12);
    /// Policy denied it.
    pub const DENY: Self = Self(1 << 13);
    /// A cloud's.
    pub const CLOUD: Self = Self(1 << 14);
    /// Of Traffic Analytics, in which many flows are folded into a row.
    pub const FOLDED: Self = Self(1 << 15);
    /// The initiator's address is private, of either family.
    pub const FROM_PRIVATE: Self = Self(1 << 16);
    /// The responder's address is private, of either family.
    pub const TO_PRIVATE: Self = Self(1 << 17);

    /// Those of `row`.
    pub fn of(row: &Row) -> Self {
        let part = match row.part {
            Part::Announcement => Self::ANNOUNCEMENT,
            Part::Slice => Self::SLICE,
            Part::Tail => Self::TAIL,
        };
        let outcome = match row.outcome {
            Outcome::Unknown => Self::NONE,
            Outcome::Success => Self::SUCCESS,
            Outcome::Denied | Outcome::Reset => Self::FAILED.and(Self::REFUSED),
            Outcome::NoReply | Outcome::Unreachable => Self::FAILED,
        };
        let transport = match row.protocol {
            protocol::TCP => Self::TCP.and(Self::PORTS),
            protocol::UDP => Self::UDP.and(Self::PORTS),
            protocol::ICMP | protocol::ICMPV6 => Self::NONE,
            _ => Self::PORTS,
        };
        let hosts = row.source.is_some() && row.destination.is_some() && row.source != row.destination;
        part.and(outcome)
            .and(transport)
            .and(Self::PROBE.when(row.contact == Contact::Probe))
            .and(Self::COUNTABLE.when(hosts && !row.platform && row.class != FlowClass::Multicast))
            .and(Self::AGGREGATE.when(row.aggregate))
            .and(Self::EXTERNAL.when(row.class == FlowClass::External))
            .and(Self::DENY.when(row.action == Action::Deny))
            .and(Self::CLOUD.when(row.context.is_some()))
            .and(Self::FOLDED.when(row.origin.is_folded()))
            .and(Self::FROM_PRIVATE.when(row.source.is_private()))
            .and(Self::TO_PRIVATE.when(row.destination.is_private()))
    }

    /// These and those.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    const fn when(self, holds: bool) -> Self {
        if holds { self } else { Self::NONE }
    }
}

/// Which rows a detector looks at. It may be shown others than these all the same, and ignores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    all: Facts,
    none: Facts,
}

impl Interest {
    /// Every row.
    pub const EVERYTHING: Self = Self { all: Facts::NONE, none: Facts::NONE };

    /// Rows of which all of `facts` are true.
    pub const fn only(facts: Facts) -> Self {
        Self { all: facts, none: Facts::NONE }
    }

    /// Of these, rows of which all of `facts` are true.
    #[must_use]
    pub const fn and(self, facts: Facts) -> Self {
        Self { all: self.all.and(facts), ..self }
    }

    /// Of these, rows of which none of `facts` is true.
    #[must_use]
    pub const fn but_not(self, facts: Facts) -> Self {
        Self { none: self.none.and(facts), ..self }
    }

    /// Whether any of some rows may be one of them, when `seen` are the facts that are true of at least one.
    pub const fn may_take(self, seen: Facts) -> bool {
        seen.0 & self.all.0 == self.all.0
    }

    /// Whether a row of which `facts` are true is one of them.
    pub const fn takes(self, facts: Facts) -> bool {
        facts.0 & (self.all.0 | self.none.0) == self.all.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interest_takes_what_has_all_of_one_and_none_of_the_other() {
        let interest = Interest::only(Facts::TCP.and(Facts::PROBE)).but_not(Facts::TAIL);
        for (facts, taken) in [
            (Facts::TCP.and(Facts::PROBE), true),
            (Facts::TCP.and(Facts::PROBE).and(Facts::SLICE), true),
            (Facts::TCP, false),
            (Facts::TCP.and(Facts::PROBE).and(Facts::TAIL), false),
        ] {
            assert_eq!(interest.takes(facts), taken, "{facts:?}");
        }
        assert!(interest.may_take(Facts::TCP.and(Facts::PROBE).and(Facts::TAIL)) && !interest.may_take(Facts::TCP));
        assert!(Interest::EVERYTHING.takes(Facts::NONE));
    }
}
