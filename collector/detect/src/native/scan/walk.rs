//! Threshold random walk (Jung, Paxson, Berger, Balakrishnan: "Fast Portscan Detection Using Sequential Hypothesis Testing", IEEE
//! S&P 2004): each first contact with a target moves the likelihood that its source scans, up if it fails and down if not.

use serde::{Deserialize, Serialize};

/// The numbers of the test, ready for use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hypotheses {
    failure: f32,
    success: f32,
    upper: f32,
    lower: f32,
}

impl Hypotheses {
    /// An honest source's first contact succeeds with probability `honest`, a scanner's with `scanner`; of scanners the test finds the
    /// share `found`, of honest sources it accuses at most the share `accused`.
    pub(super) fn new(honest: f64, scanner: f64, found: f64, accused: f64) -> Self {
        Self {
            failure: ((1.0 - scanner) / (1.0 - honest)).ln() as f32,
            success: (scanner / honest).ln() as f32,
            upper: (found / accused).ln() as f32,
            lower: ((1.0 - found) / (1.0 - accused)).ln() as f32,
        }
    }
}

/// Where a source stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Walk {
    /// Logarithm of the likelihood ratio.
    likelihood: f32,
    accused: bool,
}

impl Walk {
    /// A first contact.
    pub(super) fn step(&mut self, hypotheses: &Hypotheses, failed: bool) {
        self.likelihood += if failed { hypotheses.failure } else { hypotheses.success };
        if self.likelihood >= hypotheses.upper {
            self.accused = true;
            self.likelihood = hypotheses.upper;
        } else if self.likelihood <= hypotheses.lower {
            // Not honest for ever: the next test begins.
            *self = Self::default();
        }
    }

    /// Whether the last test that ended says that the source scans.
    pub(super) const fn accuses(self) -> bool {
        self.accused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_failures_more_than_successes_decide() {
        let steps = |text: &str| {
            let hypotheses = Hypotheses::new(0.8, 0.2, 0.99, 0.01);
            let mut walk = Walk::default();
            text.chars().map(|step| (walk.step(&hypotheses, step == 'f'), walk.accuses()).1).collect::<Vec<bool>>()
        };
        assert_eq!(steps("ffff"), [false, false, false, true]);
        assert_eq!(steps("fffsff"), [false, false, false, false, false, true]);
        assert_eq!(steps("sfsfsf"), [false; 6]);
        assert_eq!(steps("ssssffff"), [false, false, false, false, false, false, false, true], "honest is not for ever");
    }
}
