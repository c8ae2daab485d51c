//! One source, and what its targets add up to.

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;

use super::case::Case;
use super::limits::{Family, PING_SHARE, SCALES, Shape, WEEK, Who, failing_share};
use super::sample::{Noted, Sample, Target};
use super::walk::Walk;
use crate::roles::RoleSet;

/// Targets kept of those that failed; more are a sample. Every threshold lies below.
pub(super) const FAILED_MAX: usize = 384;
/// The same of those that answered.
const ANSWERED_MAX: usize = 256;
/// The share of failures must also hold for the ten minutes around what looks like a scan, and nearly for the hour around what has no
/// shape: among many short stretches of a file sharer's day some are bad.
const CONTEXT: (u32, u32, f64) = (600, 3_600, 0.1);
/// A network is told of when so many addresses took part.
const HOPS_MIN: usize = 5;

/// Services of control systems (protocol, port): ISO-TSAP (S7), Modbus, Sinec/PC Worx, EtherNet/IP, OPC UA, DNP3, BACnet, PROFINET and others.
const CONTROL: [(u8, u16); 17] = [
    (protocol::TCP, 102),
    (protocol::TCP, 502),
    (protocol::TCP, 789),
    (protocol::TCP, 1_962),
    (protocol::TCP, 2_404),
    (protocol::TCP, 4_840),
    (protocol::TCP, 5_094),
    (protocol::TCP, 9_600),
    (protocol::TCP, 18_245),
    (protocol::TCP, 20_000),
    (protocol::UDP, 20_000),
    (protocol::UDP, 2_222),
    (protocol::TCP, 44_818),
    (protocol::UDP, 44_818),
    (protocol::UDP, 47_808),
    (protocol::TCP, 34_962),
    (protocol::TCP, 34_964),
];

/// Whether a service is a control system's.
pub(super) fn is_control(service: u32) -> bool {
    let (protocol, port) = ((service >> 16) as u8, service as u16);
    CONTROL.contains(&(protocol, port)) || (34_962..=34_964).contains(&port) && matches!(protocol, protocol::TCP | protocol::UDP)
}

/// Which of a source's targets are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Scope {
    /// Those on one host.
    Host(Address),
    /// Those on one service.
    Service(u32),
    /// All.
    All,
}

impl Scope {
    /// Whether `target` is meant.
    pub(super) fn has(self, target: &Target) -> bool {
        match self {
            Self::Host(host) => target.host() == host,
            Self::Service(service) => target.service() == service,
            Self::All => true,
        }
    }
}

/// What is to be told of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    pub(super) shape: Shape,
    pub(super) scope: Scope,
    /// From how many targets on.
    pub(super) threshold: u64,
    /// In how many seconds.
    pub(super) scale: u32,
    /// Time of the first target that counts.
    pub(super) since: u32,
}

/// Which rule speaks, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Kind {
    /// ND-01, ND-02 or ND-03, by shape.
    Shape,
    /// The same, about control systems.
    Control,
    /// ND-04.
    Walk,
    /// ND-05.
    Week,
}

/// Hosts and services, each with the eighths of its targets.
type Strata = (Vec<(Scope, u64)>, Vec<(Scope, u64)>);

/// What is known of a source. Addresses are kept for a week after their last failure.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) failed: Sample,
    pub(super) answered: Sample,
    /// Event time of its newest row, seconds since 1970.
    pub(super) last: u32,
    pub(super) walk: Walk,
    /// Failures that may pass before it is worth judging again.
    patience: u32,
    pub(super) external: bool,
    /// It is a network.
    pub(super) network: bool,
    pub(super) roles: RoleSet,
    /// Rows that speak against it, and what was told.
    pub(super) case: Option<Box<Case>>,
}

impl Source {
    /// Who it is, for the limits.
    pub(super) const fn who(&self) -> Who {
        Who { external: self.external, network: self.network, roles: self.roles }
    }

    /// Takes in a target that failed.
    pub(super) fn fail(&mut self, target: Target) -> Noted {
        self.last = self.last.max(target.at);
        self.failed.note(target, FAILED_MAX, self.last.saturating_sub(WEEK))
    }

    /// Takes in a target that answered. Of a source that hardly ever fails it is enough to know that most answered.
    pub(super) fn succeed(&mut self, target: Target) -> Noted {
        self.last = self.last.max(target.at);
        let room = (self.failed.targets().len() * 4).clamp(4, ANSWERED_MAX);
        self.answered.note(target, room, self.last.saturating_sub(WEEK))
    }

    /// Octets held beside itself.
    pub(super) fn octets(&self) -> usize {
        self.failed.octets() + self.answered.octets() + self.case.as_ref().map_or(0, |case| case.octets())
    }

    /// What `family` says of it after another failure; nothing while a closer look cannot pay.
    pub(super) fn judge(&mut self, family: &Family) -> Option<Verdict> {
        if self.patience > 0 {
            self.patience -= 1;
            return None;
        }
        let (verdict, missing) = self.look(family);
        self.patience = missing;
        verdict
    }

    /// As [`judge`](Self::judge), at once; with how many failures may pass before the next look.
    fn look(&self, family: &Family) -> (Option<Verdict>, u32) {
        let mut missing = u64::MAX;
        let spread = self.case.as_ref().is_some_and(|case| case.is_spread());
        let scales = std::iter::once((family.burst_secs(), None)).chain(SCALES.map(|scale| (scale, Some(scale))));
        // Hosts and services of the scale before, and how many targets that were: if a longer one has no more, it has the same.
        let mut strata: Option<(u64, Strata)> = None;
        for (secs, scale) in scales {
            let Some(least) = family.least(self.who(), scale) else { continue };
            let from = self.last.saturating_sub(secs - 1);
            let all = self.tally(from, Scope::All, spread);
            if all.targets() < least as f64 {
                missing = missing.min(least - all.targets() as u64);
                continue;
            }
            missing = missing.min(all.targets() as u64 / 16);
            if self.network && self.hops(from) < HOPS_MIN {
                continue;
            }
            let limit = |shape| family.limit(shape, scale, self.who());
            let found = if spread {
                self.exceeds(from, spread, &limit, (Shape::Block, Scope::All), &all)
            } else {
                let known = strata.take().filter(|(targets, _)| *targets == all.failed);
                let (_, strata) = strata.insert(known.unwrap_or_else(|| (all.failed, self.strata(from))));
                self.shape_of(from, &all, strata, &limit)
            };
            if let Some((shape, scope, threshold)) = found {
                let since = self.first(from, scope);
                return (Some(Verdict { kind: Kind::Shape, shape, scope, threshold, scale: secs, since }), 0);
            }
        }
        if spread {
            return (None, (missing / 2) as u32);
        }
        let alone = self.walks(family).or_else(|| self.crawls(family));
        // What the last two look at grows by itself as time goes by.
        (alone, (missing / 2).min(4 + self.failed.targets().len() as u64 / 32) as u32)
    }

    /// Whether what `scope` was tried since `from`, which is `tally`, is told of as `shape`, and from which number on.
    fn exceeds(
        &self,
        from: u32,
        spread: bool,
        limit: &impl Fn(Shape) -> Option<(u64, f64)>,
        (shape, scope): (Shape, Scope),
        tally: &Tally,
    ) -> Option<(Shape, Scope, u64)> {
        let (threshold, share_min) = limit(shape)?;
        let pings = matches!(scope, Scope::Service(service) if is_ping(service));
        let share_min = if pings { share_min * PING_SHARE } else { share_min };
        let share = tally.share();
        let around = |secs: u32| self.tally(from.min(self.last.saturating_sub(secs - 1)), scope, spread).share();
        let (near, far, allowance) = CONTEXT;
        let enough = share >= share_min && tally.targets() * share >= threshold as f64 - 1e-9;
        let holds = || around(near) >= share_min && (scope != Scope::All || around(far) >= share_min - allowance);
        (enough && holds()).then_some((shape, scope, threshold))
    }

    /// Which shape is told of the targets tried since `from`, and from which number on. `all` is what they add up to, by host and by
    /// service.
    fn shape_of(
        &self,
        from: u32,
        all: &Tally,
        (hosts, services): &Strata,
        limit: &impl Fn(Shape) -> Option<(u64, f64)>,
    ) -> Option<(Shape, Scope, u64)> {
        let exceeds = |shape, scope, tally: &Tally| self.exceeds(from, false, limit, (shape, scope), tally);
        let best = |scopes: Vec<Scope>| {
            let tallies = scopes.into_iter().map(|scope| (scope, self.tally(from, scope, false)));
            tallies.max_by(|(_, a), (_, b)| (a.targets() * a.share()).total_cmp(&(b.targets() * b.share())))
        };
        let few = |strata: &[(Scope, u64)], shape| {
            let threshold = limit(shape).map_or(u64::MAX, |(threshold, _)| threshold);
            let worth = |&&(_, eighths): &&(Scope, u64)| eighths >= threshold.saturating_mul(8);
            strata.iter().filter(worth).map(|&(scope, _)| scope).collect::<Vec<_>>()
        };
        let vertical = best(few(hosts, Shape::Vertical));
        let horizontal = best(few(services, Shape::Horizontal));
        // One host or one service is the story if most of it happened there.
        let mostly = |part: &Option<(Scope, Tally)>| part.filter(|(_, tally)| tally.targets() * 5.0 >= all.targets() * 4.0);
        let vertically = |part: Option<(Scope, Tally)>| part.and_then(|(scope, tally)| exceeds(Shape::Vertical, scope, &tally));
        let horizontally =
            |part: Option<(Scope, Tally)>| part.and_then(|(scope, tally)| exceeds(Shape::Horizontal, scope, &tally));
        let altogether = || match (hosts.len(), services.len()) {
            (..=2, _) => exceeds(Shape::Vertical, Scope::All, all),
            (_, ..=2) => exceeds(Shape::Horizontal, Scope::All, all),
            _ => exceeds(Shape::Block, Scope::All, all),
        };
        vertically(mostly(&vertical))
            .or_else(|| horizontally(mostly(&horizontal)))
            .or_else(altogether)
            .or_else(|| vertically(vertical))
            .or_else(|| horizontally(horizontal))
    }

    /// ND-04: the walk has accused it, and enough of what failed was not tried again.
    fn walks(&self, family: &Family) -> Option<Verdict> {
        let rule = family.walk.as_ref().filter(|_| self.walk.accuses() && self.is_ordinary() && !self.external)?;
        if self.has_told(Kind::Walk) || self.has_told(Kind::Week) {
            return None;
        }
        let from = self.last.saturating_sub(SCALES[3]);
        let settled = self.last.saturating_sub(rule.settled_secs);
        let targets = self
            .failed
            .targets()
            .iter()
            .filter(|target| self.is_free(target, from) && target.at <= settled && !target.is_regular());
        let eighths: u64 = targets.map(Target::eighths).sum();
        let all = self.tally(from, Scope::All, false);
        (eighths >= rule.alone * 8 && all.share() >= rule.share).then(|| Verdict {
            kind: Kind::Walk,
            shape: Shape::Block,
            scope: Scope::All,
            threshold: rule.alone,
            scale: SCALES[3],
            since: self.first(from, Scope::All),
        })
    }

    /// ND-05: over days it comes together.
    fn crawls(&self, family: &Family) -> Option<Verdict> {
        let rule = family.week.as_ref().filter(|_| self.is_ordinary())?;
        if self.has_told(Kind::Week) {
            return None;
        }
        let threshold = if self.external && !self.network { rule.external } else { rule.targets };
        let from = self.last.saturating_sub(WEEK);
        let all = self.tally(from, Scope::All, false);
        let since = self.first(from, Scope::All);
        let enough = all.targets() >= threshold as f64
            && all.share() >= rule.share
            && (!self.network || self.hops(from) >= HOPS_MIN && self.is_of_one_piece(from, &all));
        // Within a day it is for the others to tell.
        (enough && self.last - since >= SCALES[3]).then_some(Verdict {
            kind: Kind::Week,
            shape: Shape::Block,
            scope: Scope::All,
            threshold,
            scale: WEEK,
            since,
        })
    }

    /// Whether it looks for control systems: `threshold` of them within an hour, of those at least half of all it tried.
    pub(super) fn seeks_control(&self, family: &Family) -> Option<Verdict> {
        if !self.is_ordinary() || self.network {
            return None;
        }
        let from = self.last.saturating_sub(SCALES[2] - 1);
        let sought = |target: &&Target| self.is_free(target, from) && is_control(target.service());
        let all = self.failed.targets().iter().filter(|target| self.is_free(target, from)).count();
        let mut hosts: Vec<Address> = self.failed.targets().iter().filter(sought).map(Target::host).collect();
        let mut services: Vec<u32> = self.failed.targets().iter().filter(sought).map(Target::service).collect();
        let tried = hosts.len() as u64 * self.failed.factor();
        hosts.dedup();
        services.sort_unstable();
        services.dedup();
        let (shape, scope) = match (&hosts[..], &services[..]) {
            (&[host], _) => (Shape::Vertical, Scope::Host(host)),
            (_, &[service]) => (Shape::Horizontal, Scope::Service(service)),
            _ => (Shape::Block, Scope::All),
        };
        let rule = family.shape(shape)?;
        (tried >= rule.control && tried as usize * 2 >= all).then(|| Verdict {
            kind: Kind::Control,
            shape,
            scope,
            threshold: rule.control,
            scale: SCALES[2],
            since: self.first(from, scope),
        })
    }

    fn has_told(&self, kind: Kind) -> bool {
        self.case.as_ref().is_some_and(|case| case.has_told(kind))
    }

    /// Whether nothing is known that would explain its failures.
    fn is_ordinary(&self) -> bool {
        self.roles == RoleSet::NONE
    }

    /// Whether a target tried at `from` or later belongs to nothing that was told.
    fn is_free(&self, target: &Target, from: u32) -> bool {
        target.at >= from && target.eighths() > 0 && !self.case.as_ref().is_some_and(|case| case.claims(target))
    }

    /// What the targets of `scope` tried since `from` add up to; those that were told of count only `with_told`.
    pub(super) fn tally(&self, from: u32, scope: Scope, with_told: bool) -> Tally {
        let mut tally = Tally { factors: (self.failed.factor(), self.answered.factor()), ..Tally::default() };
        let failed = self.failed.targets().iter().filter(|target| scope.has(target));
        for target in failed.filter(|target| if with_told { target.at >= from } else { self.is_free(target, from) }) {
            tally.eighths += target.eighths();
            tally.failed += 1;
        }
        let answered = self.answered.targets().iter().filter(|target| target.at >= from && scope.has(target));
        tally.answered = answered.count() as u64;
        tally
    }

    /// Hosts and services of the free targets tried since `from`, with their eighths.
    fn strata(&self, from: u32) -> Strata {
        let most = self.failed.targets().len();
        let mut hosts: Vec<(Scope, u64)> = Vec::with_capacity(most);
        // The service, and in the lowest four bits the eighths of one target, at most eight: one number is quick to sort.
        let mut by_service: Vec<u32> = Vec::with_capacity(most);
        for target in self.failed.targets().iter().filter(|target| self.is_free(target, from)) {
            let (scope, eighths) = (Scope::Host(target.host()), target.eighths());
            match hosts.last_mut() {
                Some((last, sum)) if *last == scope => *sum += eighths,
                _ => hosts.push((scope, eighths)),
            }
            by_service.push(target.service() << 4 | eighths as u32);
        }
        by_service.sort_unstable();
        let mut services: Vec<(Scope, u64)> = Vec::with_capacity(by_service.len());
        for both in by_service {
            let (service, eighths) = (both >> 4, u64::from(both & 15));
            match services.last_mut() {
                Some((Scope::Service(last), sum)) if *last == service => *sum += eighths,
                _ => services.push((Scope::Service(service), eighths)),
            }
        }
        (hosts, services)
    }

    /// Whether most of what was tried since `from` was on one host or on one service.
    fn is_of_one_piece(&self, from: u32, all: &Tally) -> bool {
        let (hosts, services) = self.strata(from);
        hosts.iter().chain(&services).any(|&(_, eighths)| eighths * 5 >= all.eighths * 4)
    }

    /// Addresses that took part in a network's failures since `from`, none counted that did most of it.
    fn hops(&self, from: u32) -> usize {
        let mut by: Vec<u16> = self.failed.targets().iter().filter(|target| target.at >= from).map(|target| target.by).collect();
        by.sort_unstable();
        let busiest = by.chunk_by(|a, b| a == b).map(<[u16]>::len).max().unwrap_or(0);
        if busiest * 2 > by.len() {
            return 0;
        }
        by.dedup();
        by.len()
    }

    fn first(&self, from: u32, scope: Scope) -> u32 {
        let targets = self.failed.targets().iter().filter(|target| scope.has(target) && self.is_free(target, from));
        targets.map(|target| target.at).min().unwrap_or(self.last)
    }
}

fn is_ping(service: u32) -> bool {
    matches!((service >> 16) as u8, protocol::ICMP | protocol::ICMPV6)
}

/// What the targets that are kept add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// See [`Target::eighths`].
    eighths: u64,
    failed: u64,
    answered: u64,
    /// How many each of those that failed, and each of those that answered, stands for.
    factors: (u64, u64),
}

impl Tally {
    /// Targets kept that count. A threshold is never passed by what they stand for: a few that were drawn by chance prove little.
    pub(super) fn targets(&self) -> f64 {
        self.eighths as f64 / 8.0
    }

    /// Targets that failed, with those that the kept ones stand for.
    pub(super) const fn failed(&self) -> u64 {
        self.failed * self.factors.0
    }

    /// Targets that answered, with those that the kept ones stand for.
    pub(super) const fn answered(&self) -> u64 {
        self.answered * self.factors.1
    }

    /// The share of failures that is certain.
    pub(super) fn share(&self) -> f64 {
        let drawn = (self.failed + self.answered) as f64;
        let all = (self.failed() + self.answered()).max(1) as f64;
        failing_share(drawn * self.failed() as f64 / all, drawn)
    }
}
