//! From which number on searching is told: the settings of the family, ready for use.

use std::sync::Arc;

use super::walk::Hypotheses;
use crate::finding::RuleCard;
use crate::roles::{Role, RoleSet};
use crate::rules::Exclude;

/// The stretches of time that are looked at, in seconds, beside the burst.
pub(super) const SCALES: [u32; 4] = [60, 600, 3_600, 86_400];
/// How long targets are remembered, in seconds: the stretch of ND-05.
pub(super) const WEEK: u32 = 604_800;
/// Of pings, whose answers are no conversations, this part of the least share of failures is asked for.
pub(super) const PING_SHARE: f64 = 0.5;

/// Hosts that have contacts for many others, or look after many: what would be a scan of another host is a day's work for them.
const BUSY: [Role; 7] = [Role::Monitor, Role::Admin, Role::Nat, Role::Proxy, Role::Dns, Role::LoadBalancer, Role::PeerToPeer];

/// What a source's targets look like together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) enum Shape {
    /// Services of one host, or of two.
    Vertical,
    /// Hosts, on one service or on two.
    Horizontal,
    /// Hosts and services.
    Block,
}

/// Who searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// From outside.
    pub(super) external: bool,
    /// A network, for sources that change their address.
    pub(super) network: bool,
    /// What the host is for.
    pub(super) roles: RoleSet,
}

/// ND-01, ND-02 or ND-03.
#[derive(Clone, Debug)]
pub(crate) struct ShapeRule {
    /// How the rule speaks of inside sources, of outside ones, and of searches for control systems.
    pub(crate) cards: Cards,
    /// Targets within [`burst_secs`](Self::burst_secs).
    pub(crate) burst: u64,
    /// Length of a burst.
    pub(crate) burst_secs: u32,
    /// Targets within any of [`SCALES`], of an inside source.
    pub(crate) slow: u64,
    /// Targets within any of [`SCALES`], of an outside source.
    pub(crate) external: u64,
    /// Targets within any of [`SCALES`], of a busy host.
    pub(crate) busy: u64,
    /// Control-system targets within an hour.
    pub(crate) control: u64,
    /// Least share of failures, 0 to 1.
    pub(crate) share: f64,
}

/// The faces of one rule.
#[derive(Clone, Debug)]
pub(crate) struct Cards {
    /// For a source inside.
    pub(crate) internal: Arc<RuleCard>,
    /// For a source outside: the Internet is searched all the time.
    pub(crate) external: Arc<RuleCard>,
    /// For whoever looks for control systems.
    pub(crate) control: Arc<RuleCard>,
}

/// ND-04.
#[derive(Clone, Debug)]
pub(crate) struct WalkRule {
    /// How it speaks.
    pub(crate) card: Arc<RuleCard>,
    /// The test.
    pub(super) hypotheses: Hypotheses,
    /// Settled targets that it takes to tell without another rule.
    pub(crate) alone: u64,
    /// A target is settled when it was not tried again for so long.
    pub(crate) settled_secs: u32,
    /// Least share of failures, 0 to 1.
    pub(crate) share: f64,
}

impl WalkRule {
    /// With the probabilities of the test: see [`Hypotheses::new`].
    pub(crate) fn new(card: RuleCard, (honest, scanner): (f64, f64), alone: u64, settled_secs: u32, share: f64) -> Self {
        Self { card: Arc::new(card), hypotheses: Hypotheses::new(honest, scanner, 0.99, 0.01), alone, settled_secs, share }
    }
}

/// ND-05.
#[derive(Clone, Debug)]
pub(crate) struct WeekRule {
    /// How it speaks.
    pub(crate) cards: Cards,
    /// Targets within seven days, of an inside source.
    pub(crate) targets: u64,
    /// The same, of an outside source.
    pub(crate) external: u64,
    /// Least share of failures, 0 to 1.
    pub(crate) share: f64,
}

/// The rules that share the table of sources; those that are off are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Family {
    /// ND-01.
    pub(crate) vertical: Option<ShapeRule>,
    /// ND-02.
    pub(crate) horizontal: Option<ShapeRule>,
    /// ND-03.
    pub(crate) block: Option<ShapeRule>,
    /// ND-04.
    pub(crate) walk: Option<WalkRule>,
    /// ND-05.
    pub(crate) week: Option<WeekRule>,
    /// What none of them counts.
    pub(crate) exclude: Exclude,
    /// Sources held.
    pub(crate) keys_max: usize,
}

impl Family {
    /// The rule about `shape`.
    pub(super) fn shape(&self, shape: Shape) -> Option<&ShapeRule> {
        match shape {
            Shape::Vertical => self.vertical.as_ref(),
            Shape::Horizontal => self.horizontal.as_ref(),
            Shape::Block => self.block.as_ref(),
        }
    }

    /// From how many targets in `scale` seconds on, or within a burst (none), `who` is told of for `shape`, and the least share of
    /// failures.
    pub(super) fn limit(&self, shape: Shape, scale: Option<u32>, who: Who) -> Option<(u64, f64)> {
        let rule = self.shape(shape)?;
        // A file sharer's peers are many and half of them are gone; on one host it has no business with many ports.
        if who.roles.has(Role::PeerToPeer) && shape != Shape::Vertical {
            return None;
        }
        // The Internet's strays of a day, from one network and to whatever, are no search of that network's.
        if who.network && shape == Shape::Block && scale == Some(SCALES[3]) {
            return None;
        }
        let targets = match scale {
            _ if who.roles.has_any(&BUSY) => rule.busy,
            Some(secs) if who.network && secs == SCALES[3] => rule.slow,
            _ if who.network => rule.burst,
            _ if who.external => rule.external,
            None => rule.burst,
            Some(_) => rule.slow,
        };
        Some((targets, rule.share))
    }

    /// The smallest number that any limit asks for.
    pub(super) fn least(&self, who: Who, scale: Option<u32>) -> Option<u64> {
        let shapes = [Shape::Vertical, Shape::Horizontal, Shape::Block];
        shapes.into_iter().filter_map(|shape| self.limit(shape, scale, who)).map(|(targets, _)| targets).min()
    }

    /// Length of a burst in seconds: that of the first rule that is on.
    pub(super) fn burst_secs(&self) -> u32 {
        [&self.vertical, &self.horizontal, &self.block].into_iter().flatten().map(|rule| rule.burst_secs).next().unwrap_or(10)
    }
}

/// The part of `all` contacts that certainly fails of the `failed`, compared with what the same number proves if all fail: 1 when all
/// failed, however few; less when some did not, and the less the fewer there are (Wilson's score interval at 95 %, lower limit).
pub(super) fn failing_share(failed: f64, all: f64) -> f64 {
    const Z2: f64 = 1.96 * 1.96;
    if failed <= 0.0 {
        return 0.0;
    }
    let lower = |part: f64| {
        let spread = (Z2 * (part * (1.0 - part) / all + Z2 / (4.0 * all * all))).sqrt();
        (part + Z2 / (2.0 * all) - spread) / (1.0 + Z2 / all)
    };
    lower((failed / all).min(1.0)) / lower(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_wilson_over_its_best() {
        // By hand: 10 of 36 has the Wilson interval 0.158 to 0.440; 36 of 36 begins at 36 / 39.84 = 0.904.
        assert!((failing_share(10.0, 36.0) - 0.158 / 0.904).abs() < 0.001);
        assert!((failing_share(25.0, 25.0) - 1.0).abs() < 1e-9);
        assert!(failing_share(0.0, 5.0) == 0.0);
    }
}
