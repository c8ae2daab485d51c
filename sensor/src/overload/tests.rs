//! Loads second by second, through a ring that holds nothing and a worker that takes a million packets a second.

use super::*;

/// A port, its ring and its worker.
struct Port {
    overload: Overload,
    look: Look,
    takes: u64,
    said: Vec<(i64, Change)>,
}

impl Port {
    fn new(keep_one_in_max: u32, keep_one_in: u32) -> Self {
        let settings = OverloadSettings { keep_one_in_max };
        let mut overload = Overload::new(&settings, keep_one_in);
        let look = Look { at: Timestamp::from_secs(1000), ..Look::default() };
        assert_eq!(overload.judge(look), None);
        Self { overload, look, takes: 1_000_000, said: Vec::new() }
    }

    /// So many seconds of so many packets, of which each second so many evict a flow and so many are aggregated.
    fn run(&mut self, secs: u32, packets: u64, evicted: u64, in_aggregate: u64) -> &mut Self {
        for _ in 0..secs {
            let kept = packets / u64::from(self.overload.keep_one_in());
            self.look.at = self.look.at.plus(Duration::from_secs(1));
            self.look.delivered += kept.min(self.takes);
            self.look.ring_drops += kept.saturating_sub(self.takes);
            self.look.evicted += evicted;
            self.look.in_aggregate += in_aggregate;
            let at = self.look.at.as_nanos() / 1_000_000_000 - 1000;
            self.said.extend(self.overload.judge(self.look).map(|change| (at, change)));
        }
        self
    }

    /// Second, state and rate of each change.
    fn changes(&self) -> Vec<(i64, State, u32)> {
        self.said.iter().map(|(at, change)| (*at, change.state, change.keep_one_in)).collect()
    }
}

#[test]
fn a_stall_and_a_loss_below_one_percent_change_nothing() {
    let mut port = Port::new(1024, 1);
    port.run(10, 900_000, 0, 0).run(2, 3_000_000, 0, 0).run(1, 900_000, 0, 0).run(2, 3_000_000, 0, 0).run(60, 1_009_000, 0, 0);
    assert_eq!(port.changes(), []);
}

#[test]
fn sampling_begins_in_the_third_second_of_loss_at_the_rate_that_fits() {
    let mut port = Port::new(1024, 1);
    // 3.5 million: every second packet is too many, every fourth fits.
    port.run(5, 500_000, 0, 0).run(20, 3_500_000, 0, 0);
    assert_eq!(port.changes(), [(8, State::Sampling, 4)]);
    assert_eq!(
        port.said[0].1.says,
        "overload: the ring lost 2,500,000 of 3,500,000 packets in the last second; from now on one packet in 4 is looked at, chosen at \
         random, and the records say so"
    );
    // More yet: from the present rate on, eight times at most at once, and what is missing three seconds later.
    port.run(10, 40_000_000, 0, 0);
    assert_eq!(port.changes()[1..], [(28, State::Sampling, 32), (31, State::Sampling, 64)]);
}

#[test]
fn the_rate_goes_down_step_by_step_and_only_with_margin() {
    let mut port = Port::new(1024, 1);
    port.run(3, 3_500_000, 0, 0);
    // 4 × 0.45 million would fit twice, but with 90 % of what the worker takes: no margin.
    port.run(100, 1_800_000, 0, 0);
    assert_eq!(port.changes(), [(3, State::Sampling, 4)]);
    // 0.39 million at 1 in 4: half the rate has margin, all packets would not.
    port.run(100, 1_560_000, 0, 0);
    assert_eq!(port.changes()[1..], [(133, State::Sampling, 2)]);
    port.run(100, 790_000, 0, 0);
    assert_eq!(port.changes()[2..], [(233, State::Normal, 1)]);
    assert_eq!(port.said[2].1.says, "the overload is over: every packet is looked at again");
}

#[test]
fn a_load_that_swings_does_not_make_the_rate_swing() {
    let mut port = Port::new(1024, 1);
    for _ in 0..19 {
        port.run(10, 3_500_000, 0, 0).run(20, 100_000, 0, 0);
    }
    assert_eq!(port.changes(), [(3, State::Sampling, 4)]);
}

#[test]
fn a_worker_that_was_slow_once_is_tried_again_after_ten_minutes() {
    let mut port = Port::new(1024, 1);
    port.takes = 200_000;
    port.run(10, 350_000, 0, 0);
    assert_eq!(port.changes(), [(3, State::Sampling, 2)]);
    port.takes = 1_000_000;
    port.run(700, 350_000, 0, 0);
    assert_eq!(port.changes()[1..], [(603, State::Normal, 1)]);
}

#[test]
fn the_operators_rate_is_the_least_and_the_limit_the_most() {
    let mut port = Port::new(20, 3);
    port.run(20, 400_000_000, 0, 0);
    assert_eq!(port.changes(), [(3, State::Sampling, 12)]);
    port.run(200, 3_000, 0, 0);
    assert_eq!(port.changes()[1..], [(50, State::Sampling, 6), (80, State::Normal, 3)]);
    let mut never = Port::new(1, 1);
    never.run(100, 400_000_000, 0, 0);
    assert_eq!(never.changes(), []);
    let mut cannot = Port::new(1024, 4);
    cannot.overload = cannot.overload.without_sampling();
    cannot.run(100, 400_000_000, 0, 0);
    assert_eq!((cannot.changes(), cannot.overload.keep_one_in()), (vec![], 1));
}

#[test]
fn a_full_table_is_said_at_once_and_that_it_is_over_after_half_a_minute() {
    let mut port = Port::new(1024, 1);
    port.run(10, 500_000, 0, 0).run(1, 500_000, 1_200, 0).run(20, 500_000, 0, 0).run(20, 500_000, 10, 3_000);
    port.run(50, 500_000, 10, 0).run(50, 500_000, 0, 0);
    let expected = [(11, State::Evicting, 1), (32, State::Aggregating, 1), (81, State::Evicting, 1), (131, State::Normal, 1)];
    assert_eq!(port.changes(), expected);
    let said: Vec<_> = port.said.iter().map(|(_, change)| change.says.as_str()).collect();
    assert_eq!(
        said,
        [
            "the flow table is full: flows that are over, half-open or of a single packet end early first (1,200 in the last second)",
            "the flow table is full of flows worth keeping: packets of new ones are metered by prefixes (3,000 in the last second)",
            "every packet finds its flow again; the flow table is still full, and flows end early",
            "the flow table has room again",
        ]
    );
}

#[test]
fn a_clock_that_was_set_back_starts_anew() {
    let mut port = Port::new(1024, 1);
    port.run(3, 3_500_000, 0, 0);
    port.look.at = Timestamp::from_secs(500);
    port.run(1, 100_000, 0, 0).run(40, 100_000, 0, 0);
    // The look after the step only says where it starts; half a minute later the rate goes down.
    let states: Vec<_> = port.changes().iter().map(|&(_, state, rate)| (state, rate)).collect();
    assert_eq!(states, [(State::Sampling, 4), (State::Sampling, 2)]);
}
