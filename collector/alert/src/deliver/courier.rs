//! How one output goes on after success and trouble: how many alerts to try at once, and how long to wait.
//!
//! A function of outcomes and a seed; the deeds are done elsewhere.

use std::time::Duration;

use spanwatch_common::time::Timestamp;

/// Wait after the first failure; each further one doubles it.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// A receiver may ask for patience, but not for ever.
const WAIT_ASKED_MAX: Duration = Duration::from_secs(3_600);

/// What came of an attempt to deliver a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it arrived.
    Delivered,
    /// The receiver takes none of it, and never will: something in it is not to its liking, or it is too long.
    Refused(String),
    /// Nothing can be said about the alerts: the receiver is out of reach, busy, or does not know us. It may have asked for patience.
    Failed(String, Option<Duration>),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The batch is done with.
    Next,
    /// Try again with fewer alerts at once: one of them is the culprit.
    Fewer,
    /// The one alert of the batch is refused: park it, and go on.
    Park,
    /// Try the same again after this time.
    Wait(Duration),
}

/// The state of one output between two attempts.
#[derive(Clone, Debug)]
pub struct Courier {
    batch_max: usize,
    batch: usize,
    wait_max: Duration,
    failures: u32,
    random: u64,
    failing_since: Option<Timestamp>,
    last_error: Option<String>,
}

impl Courier {
    /// For batches of at most `batch_max` alerts (at least one); waits at most `wait_max` between two attempts. `seed` spreads the attempts
    /// of several collectors.
    pub fn new(batch_max: usize, wait_max: Duration, seed: u64) -> Self {
        let batch_max = batch_max.max(1);
        let wait_max = wait_max.max(WAIT_MIN);
        Self { batch_max, batch: batch_max, wait_max, failures: 0, random: seed, failing_since: None, last_error: None }
    }

    /// How many alerts to try at once.
    pub const fn batch(&self) -> usize {
        self.batch
    }

    /// Since when nothing gets through; None while all is well.
    pub const fn failing_since(&self) -> Option<Timestamp> {
        self.failing_since
    }

    /// What was last wrong, also if all is well since.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// What follows from the `outcome` of trying `alerts` at once.
    pub fn settle(&mut self, alerts: usize, outcome: Outcome, now: Timestamp) -> Step {
        match outcome {
            Outcome::Delivered => {
                self.batch = self.batch.saturating_mul(2).min(self.batch_max);
                self.well();
                Step::Next
            }
            Outcome::Refused(why) => {
                self.well();
                self.last_error = Some(why);
                // Larger batches again only after a success.
                self.batch = alerts.div_ceil(2).max(1);
                if alerts > 1 { Step::Fewer } else { Step::Park }
            }
            Outcome::Failed(why, asked) => {
                self.last_error = Some(why);
                self.failing_since = self.failing_since.or(Some(now));
                let doubled = WAIT_MIN.saturating_mul(1_u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX));
                self.failures += 1;
                // Half of it for certain, half by lot.
                let wait = doubled.min(self.wait_max);
                let wait = wait / 2 + wait.mul_f64(self.lot() / 2.0);
                Step::Wait(asked.map_or(wait, |asked| asked.min(WAIT_ASKED_MAX).max(wait / 2)))
            }
        }
    }

    /// It got through to the receiver.
    const fn well(&mut self) {
        self.failures = 0;
        self.failing_since = None;
    }

    /// 0 to 1 (SplitMix64).
    fn lot(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(asked: Option<u64>) -> Outcome {
        Outcome::Failed("out of reach".to_owned(), asked.map(Duration::from_secs))
    }

    #[test]
    fn waits_double_up_to_the_most_and_half_of_each_is_by_lot() {
        let now = Timestamp::from_secs(1_000);
        let mut courier = Courier::new(100, Duration::from_secs(60), 7);
        let waits: Vec<f64> = (0..10)
            .map(|_| match courier.settle(1, failed(None), now) {
                Step::Wait(wait) => wait.as_secs_f64(),
                other => panic!("{other:?}"),
            })
            .collect();
        for (wait, most) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]) {
            assert!((most / 2.0..=most).contains(wait), "{waits:?}");
        }
        assert!(waits[7] != waits[8] && waits[8] != waits[9], "{waits:?}");
        assert_eq!(courier.failing_since(), Some(now));
        assert_eq!(courier.settle(1, Outcome::Delivered, now), Step::Next);
        assert_eq!((courier.failing_since(), courier.last_error()), (None, Some("out of reach")));
    }

    #[test]
    fn who_asks_for_patience_gets_it_within_reason() {
        let now = Timestamp::from_secs(1_000);
        let mut courier = Courier::new(100, Duration::from_secs(60), 7);
        assert_eq!(courier.settle(1, failed(Some(30)), now), Step::Wait(Duration::from_secs(30)));
        assert_eq!(courier.settle(1, failed(Some(1_000_000)), now), Step::Wait(Duration::from_secs(3_600)));
    }

    #[test]
    fn one_refused_alert_is_found_by_halving_and_parked_alone() {
        let now = Timestamp::from_secs(1_000);
        let mut courier = Courier::new(8, Duration::from_secs(60), 7);
        // Twenty alerts; the receiver takes no batch with the thirteenth in it.
        let (mut at, mut parked, mut attempts) = (0, Vec::new(), 0);
        while at < 20 {
            let alerts = courier.batch().min(20 - at);
            let poisoned = (at..at + alerts).contains(&13);
            let outcome = if poisoned { Outcome::Refused("400".to_owned()) } else { Outcome::Delivered };
            attempts += 1;
            match courier.settle(alerts, outcome, now) {
                Step::Next => at += alerts,
                Step::Park => {
                    parked.push(at);
                    at += 1;
                }
                Step::Fewer => {}
                Step::Wait(wait) => panic!("{wait:?}"),
            }
        }
        assert_eq!(parked, [13]);
        assert!(attempts < 16, "{attempts}");
    }
}
