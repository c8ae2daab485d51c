//! When there is more than the sensor can take: what it does about it, in which order, and how it says so. Pure: looks at the counts go in, once
//! a second; a change of mind comes out.
//!
//! # The order of shedding
//! What costs the least truth goes first. (1) to (5) are the [flow table's](crate::flow_table), packet by packet; (6) is decided here.
//!
//! 1. The table is full: the newcomer takes the place of a flow that is over,
//! 2. else of a TCP connection that is only a SYN without an answer,
//! 3. else of a flow of a single packet,
//! 4. else of a flow that has been silent for long. A flow that gives way becomes a record like any other, with flowEndReason 5.
//! 5. Else the packet is metered in a flow of prefixes ([`Aggregates`](crate::flow_table::Aggregates)): established flows keep their places and
//!    counters, and a flood is described by its victim or its source.
//! 6. Packets come faster than the worker takes them, and the ring overflows: the XDP program leaves packets out at random, and every record
//!    says of how many its packets are the sample.
//!
//! Nothing of it is silent: `flows.evicted`, `odd.in_aggregate` and `dropped.shed` in the ledger, one line in the log for each change, and
//! the symptoms *table full* and *sampled* ([`spanwatch_common::health::judge`]) for `top` and the collector.
//!
//! # Up at once, down slowly
//! A table that is full is said at once, and that it no longer is after [`CALM`]. Sampling begins when the ring overflowed in
//! [`RAISE_AFTER`] looks in a row: a stall of half a second passes by itself. It takes the rate that the load then asks for. It goes down
//! by half each time that, for [`CALM`], nothing was lost and twice the present load would have been at most 80 % of what this worker took
//! when it last lost packets, or has taken since. That figure may be too low (something else used the core at the time), so after
//! [`TRY_AFTER`] without loss a lower rate is tried in any case.

mod settings;

use std::time::Duration;

use spanwatch_common::health::judge::grouped;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;

pub use settings::OverloadSettings;

/// How long there must be no more sign of an overload before it is called over.
pub const CALM: Duration = Duration::from_secs(30);
/// So many looks in a row must show losses before packets are sampled.
pub const RAISE_AFTER: u32 = 3;
/// After this long without loss a lower rate is tried, whatever the load.
pub const TRY_AFTER: Duration = Duration::from_secs(600);
/// A look shows losses if the ring lost this share of its packets, in ‰.
pub const LOST_PERMILLE: u64 = 10;
/// This share of what the worker can take, in %, is thought to fit for long.
const FITS_PERCENT: u64 = 80;
/// Most doublings of the rate at one look: one bad second should not leave hardly anything.
const DOUBLINGS_MAX: u32 = 3;
/// Looks closer together than this are not told apart from noise.
const LOOK_MIN: Duration = Duration::from_millis(500);

/// What was counted on one receive queue since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// When.
    pub at: Timestamp,
    /// Packets that the worker took.
    pub delivered: u64,
    /// Packets that the queue's ring had no room for.
    pub ring_drops: u64,
    /// Flows that ended early because the table was full.
    pub evicted: u64,
    /// Packets that were metered in aggregates.
    pub in_aggregate: u64,
}

/// How much is being shed; the mildest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing.
    #[default]
    Normal,
    /// The table is full; flows end early.
    Evicting,
    /// The table is full of flows worth keeping; newcomers are metered by prefixes.
    Aggregating,
    /// Packets are left out at random.
    Sampling,
}

/// What a look has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What holds from now on.
    pub state: State,
    /// From now on one packet in so many is to be looked at; 1 for all.
    pub keep_one_in: u32,
    /// One line for the log.
    pub says: String,
}

/// Judges one receive queue.
#[derive(Clone, Debug)]
pub struct Overload {
    keep_one_in: u32,
    keep_one_in_min: u32,
    keep_one_in_max: u32,
    state: State,
    before: Option<Look>,
    /// Looks in a row that showed losses.
    losing: u32,
    /// Packets per second that the worker took when it last lost some, or has taken since.
    takes_per_sec: u64,
    /// Since when nothing was lost and half the rate would do.
    fits_since: Timestamp,
    /// The last look at which a packet was lost, or at which the rate was changed.
    disturbed: Timestamp,
    evicted: Timestamp,
    aggregated: Timestamp,
}

impl Overload {
    /// `keep_one_in` is what the operator wants at any time (`capture.keep_one_in`). A capture that cannot sample is told to be one with
    /// [`without_sampling`](Self::without_sampling).
    pub fn new(settings: &OverloadSettings, keep_one_in: u32) -> Self {
        let keep_one_in = keep_one_in.max(1);
        Self {
            keep_one_in,
            keep_one_in_min: keep_one_in,
            keep_one_in_max: settings.keep_one_in_max.max(keep_one_in),
            state: State::Normal,
            before: None,
            losing: 0,
            takes_per_sec: 0,
            fits_since: Timestamp::NONE,
            disturbed: Timestamp::NONE,
            evicted: Timestamp::NONE,
            aggregated: Timestamp::NONE,
        }
    }

    /// The same, for a capture that takes every packet or none.
    #[must_use]
    pub fn without_sampling(self) -> Self {
        Self { keep_one_in: 1, keep_one_in_min: 1, keep_one_in_max: 1, ..self }
    }

    /// One packet in so many is looked at; 1 for all.
    pub const fn keep_one_in(&self) -> u32 {
        self.keep_one_in
    }

    /// Judges what was counted since the last look; to be called once a second. `Some` when something is to be done or said.
    pub fn judge(&mut self, look: Look) -> Option<Change> {
        let Some(before) = self.before.filter(|before| look.at >= before.at) else {
            // The first look, or the clock was set back: what was timed until now says nothing any more.
            *self = Self { before: Some(look), losing: 0, fits_since: look.at, disturbed: look.at, ..*self };
            self.evicted = self.evicted.min(look.at);
            self.aggregated = self.aggregated.min(look.at);
            return None;
        };
        let elapsed = look.at.since(before.at);
        if elapsed < LOOK_MIN {
            return None;
        }
        self.before = Some(look);
        let since = Since::of(&before, &look);
        if since.evicted > 0 {
            self.evicted = look.at;
        }
        if since.in_aggregate > 0 {
            self.aggregated = look.at;
        }
        let rate_before = self.keep_one_in;
        let per_sec = (u128::from(since.delivered) * 1_000_000_000 / elapsed.as_nanos()) as u64;
        if since.is_losing() {
            self.losing += 1;
            self.takes_per_sec = per_sec;
            if self.losing >= RAISE_AFTER {
                self.keep_one_in = self.raised(&since);
            }
        } else {
            self.losing = 0;
            self.takes_per_sec = self.takes_per_sec.max(per_sec);
            if since.ring_drops > 0 || per_sec * 2 * 100 > self.takes_per_sec * FITS_PERCENT {
                self.fits_since = look.at;
            }
            let fits = look.at.since(self.fits_since) >= CALM;
            if fits || look.at.since(self.disturbed) >= TRY_AFTER {
                self.keep_one_in = (self.keep_one_in / 2).max(self.keep_one_in_min);
            }
        }
        if since.ring_drops > 0 || self.keep_one_in != rate_before {
            (self.disturbed, self.fits_since) = (look.at, look.at);
        }
        if self.keep_one_in != rate_before {
            self.losing = 0;
        }
        let state = self.state_at(look.at);
        let state_before = std::mem::replace(&mut self.state, state);
        (state != state_before || self.keep_one_in != rate_before).then(|| Change {
            state,
            keep_one_in: self.keep_one_in,
            says: self.says(state_before, rate_before, &since),
        })
    }

    /// The rate at which what came would have been taken: the present one, doubled until it is.
    fn raised(&self, since: &Since) -> u32 {
        let mut one_in = self.keep_one_in;
        let mut offered = since.delivered + since.ring_drops;
        for _ in 0..DOUBLINGS_MAX {
            if one_in > self.keep_one_in_max / 2 {
                break;
            }
            one_in *= 2;
            offered /= 2;
            if offered <= since.delivered {
                break;
            }
        }
        one_in
    }

    fn state_at(&self, now: Timestamp) -> State {
        let is_recent = |at: Timestamp| at.is_some() && now.since(at) < CALM;
        if self.keep_one_in > self.keep_one_in_min {
            State::Sampling
        } else if is_recent(self.aggregated) {
            State::Aggregating
        } else if is_recent(self.evicted) {
            State::Evicting
        } else {
            State::Normal
        }
    }

    fn says(&self, before: State, rate_before: u32, since: &Since) -> String {
        let (lost, came) = (grouped(since.ring_drops), grouped(since.ring_drops + since.delivered));
        let one_in = self.keep_one_in;
        let table = match self.state {
            State::Aggregating => "; the flow table is full, and new flows are metered by prefixes",
            State::Evicting => "; the flow table is full, and flows end early",
            State::Normal | State::Sampling => "",
        };
        match (before, self.state) {
            _ if one_in > rate_before => format!(
                "overload: the ring lost {lost} of {came} packets in the last second; from now on one packet in {one_in} is looked at, \
                 chosen at random, and the records say so"
            ),
            (_, State::Sampling) => format!("the load is lower: from now on one packet in {one_in} is looked at"),
            (State::Sampling, _) => format!("the overload is over: {} looked at again{table}", self.again()),
            (State::Aggregating, State::Evicting) => {
                "every packet finds its flow again; the flow table is still full, and flows end early".to_owned()
            }
            (_, State::Evicting) => format!(
                "the flow table is full: flows that are over, half-open or of a single packet end early first ({} in the last second)",
                grouped(since.evicted)
            ),
            (_, State::Aggregating) => format!(
                "the flow table is full of flows worth keeping: packets of new ones are metered by prefixes ({} in the last second)",
                grouped(since.in_aggregate)
            ),
            (_, State::Normal) => "the flow table has room again".to_owned(),
        }
    }

    fn again(&self) -> String {
        match self.keep_one_in {
            1 => "every packet is".to_owned(),
            one_in => format!("one packet in {one_in}, as capture.keep_one_in says, is"),
        }
    }
}

/// What was counted between two looks.
struct Since {
    delivered: u64,
    ring_drops: u64,
    evicted: u64,
    in_aggregate: u64,
}

impl Since {
    const fn of(before: &Look, after: &Look) -> Self {
        Self {
            delivered: after.delivered.saturating_sub(before.delivered),
            ring_drops: after.ring_drops.saturating_sub(before.ring_drops),
            evicted: after.evicted.saturating_sub(before.evicted),
            in_aggregate: after.in_aggregate.saturating_sub(before.in_aggregate),
        }
    }

    const fn is_losing(&self) -> bool {
        let came = self.delivered.saturating_add(self.ring_drops);
        self.ring_drops > 0 && self.ring_drops.saturating_mul(1000) >= came.saturating_mul(LOST_PERMILLE)
    }
}

impl Look {
    /// What a worker's ledger says at `at`.
    pub const fn of(ledger: &Ledger, at: Timestamp) -> Self {
        Self {
            at,
            delivered: ledger.delivered,
            ring_drops: ledger.dropped.ring_starved + ledger.dropped.ring_full,
            evicted: ledger.flows.evicted,
            in_aggregate: ledger.odd.in_aggregate,
        }
    }
}

#[cfg(test)]
mod tests;
