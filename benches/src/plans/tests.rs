//! The benches do what their names say, at the scale at which instructions are counted.

use spanwatch_common::ledger::{Ignored, Odd};
use spanwatch_sensor::capture::Losses;

use super::*;
use crate::line::Account;

const SCALE: Scale = Scale::Counted;

/// A pass of a line: what it did, and how many packets it said it handled.
fn pass(line: &mut Line) -> (Account, usize) {
    line.ready();
    let before = line.meter.account();
    let handled = line.pass();
    let after = line.meter.account();
    let (metered, records, opened) =
        (after.metered - before.metered, after.records - before.records, after.opened - before.opened);
    (Account { metered, records, opened, live: after.live }, handled)
}

fn assert_nothing_odd(line: &mut Line) {
    let ledger = line.meter.worker().ledger(&Losses::default());
    assert_eq!((ledger.odd, ledger.ignored), (Odd::default(), Ignored::default()));
}

#[test]
fn steady_lines_open_and_end_no_flow() {
    let lines = [
        (line_of(1, SCALE), 1),
        (line_of(1_000_000, SCALE), 15_625),
        (zipf(SCALE), 15_625),
        (imix(10_000, SCALE), 156),
        (wrapped(74, SCALE, ipv6_frame), 156),
        (wrapped(LONGEST, SCALE, vxlan_frame), 156),
        (dedup(SCALE), 156),
    ];
    for (mut line, flows) in lines {
        for _ in 0..3 {
            let (done, handled) = pass(&mut line);
            assert_eq!(done, Account { metered: handled as u64, records: 0, opened: 0, live: flows });
        }
        assert_nothing_odd(&mut line);
        let both_ways = line.meter.finish().iter().filter(|record| record.packets.iter().all(|&packets| packets > 0)).count();
        assert_eq!(both_ways as u64, flows);
    }
}

#[test]
fn a_scan_is_as_many_flows_as_it_should_be_and_they_end_as_fast_as_they_open() {
    for (frames, packets_per_flow) in [(Frames::scan as fn(u32) -> Frames, 1), (Frames::refused_scan, 2)] {
        let mut line = scan(SCALE, frames);
        let (mut flows, mut records) = (0, 0);
        for _ in 0..6 {
            let (done, handled) = pass(&mut line);
            assert_eq!((done.metered, done.opened), (handled as u64, handled as u64 / packets_per_flow));
            assert!(done.live < 3_000_000 / 64 * 9 / 10, "{done:?}: the table is large enough");
            flows += done.opened;
            records += done.records;
        }
        // One Begin and one End for each, in the long run.
        assert!((2 * flows * 9 / 10..=2 * flows * 11 / 10).contains(&records), "{records} records of {flows} flows");
        assert_nothing_odd(&mut line);
    }
}

#[test]
fn sequences_of_mixed_sizes_go_on_from_pass_to_pass() {
    let troubles = |between: fn(&mut Frames)| {
        let mut frames = Frames::imix(4096, &Choice::Uniform(100));
        let mut meter = Meter::new(&MeterSettings::default(), 64_000);
        for _ in 0..3 {
            meter.feed(frames.range(0..frames.len()));
            between(&mut frames);
        }
        let records = meter.finish();
        assert_eq!(records.len(), 100);
        let in_record = |record: FlowRecord| {
            let of = [record.tcp_retransmissions, record.tcp_out_of_order];
            of.as_flattened().iter().map(|&packets| u64::from(packets)).sum::<u64>()
                + record.tcp_missed_octets.iter().sum::<u64>()
        };
        records.iter().map(in_record).sum::<u64>()
    };
    assert_eq!(troubles(Frames::renew), 0);
    // The same numbers again: two thirds of five in twelve packets were there before.
    assert!(troubles(|_| ()) > 1000);
}

#[test]
fn frames_of_7_4_1_have_359_octets_on_average() {
    let frames = Frames::imix(1 << 14, &Choice::Uniform(100));
    let count = |octets| frames.range(0..frames.len()).filter(|frame| frame.len() == octets).count() * 12;
    let near = |count: usize, share: usize| count.abs_diff(share << 14) < 4000;
    assert!(near(count(60), 7) && near(count(594), 4) && near(count(1514), 1));
    let octets: usize = frames.range(0..frames.len()).map(<[u8]>::len).sum();
    // (7 × 60 + 4 × 594 + 1514) / 12
    assert!((octets >> 14).abs_diff(359) < 10, "{}", octets >> 14);
}

#[test]
fn the_first_flow_of_zipf_has_twice_the_packets_of_the_second() {
    // The sum of 1/k to 1000 is 7.4855: 13.36 %, 6.68 %, … of 100,000.
    let frames = Frames::tcp(100_000, &Choice::zipf(1000));
    let packets = |flow: u8| {
        let address = [10, 0, 0, flow];
        frames.range(0..frames.len()).filter(|frame| frame[26..30] == address || frame[30..34] == address).count()
    };
    assert!(packets(0).abs_diff(13_360) < 400, "{}", packets(0));
    assert!(packets(1).abs_diff(6680) < 300, "{}", packets(1));
    assert!(packets(99).abs_diff(134) < 50, "{}", packets(99));
}
