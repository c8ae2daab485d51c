use super::*;

const CLIENT: &str = "10.0.0.1:40000 > 10.0.0.2:502";
const SERVER: &str = "10.0.0.2:502 > 10.0.0.1:40000";

/// A segment of the client's, in numbers relative to its SYN; the server's begin at 4000.
fn client(seq: u32, ack: u32, len: u16) -> Said {
    tcp(CLIENT).seq(seq).ack(4000 + ack).len(len)
}

fn server(seq: u32, ack: u32, len: u16) -> Said {
    tcp(SERVER).seq(4000 + seq).ack(ack).len(len)
}

/// What the records of one flow say together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    retransmissions: [u32; 2],
    out_of_order: [u32; 2],
    zero_windows: [u32; 2],
    missed: [u64; 2],
}

/// Sees the segments, so many milliseconds after the beginning, and adds up the records.
fn facts(segments: &[(f64, Said)]) -> Facts {
    let mut bench = table(&FlowTableSettings::default());
    for (millis, said) in segments {
        bench.see(&said.clone().at(1.0 + millis / 1e3));
    }
    bench.flush(FlowEndReason::ForcedEnd);
    let mut facts = Facts::default();
    for record in bench.records {
        assert_eq!(record.destination_port, 502, "the client is the initiator");
        for way in [FORWARD, REVERSE] {
            facts.retransmissions[way] += record.tcp_retransmissions[way];
            facts.out_of_order[way] += record.tcp_out_of_order[way];
            facts.zero_windows[way] += record.tcp_zero_windows[way];
            facts.missed[way] += record.tcp_missed_octets[way];
        }
    }
    facts
}

/// SYN at 0, SYN+ACK after 20 ms, its ACK 10 ms later.
fn handshake() -> Vec<(f64, Said)> {
    let syn = tcp(CLIENT).seq(0).flags(SYN);
    vec![(0.0, syn), (20.0, tcp(SERVER).seq(4000).flags(SYN).ack(1)), (30.0, client(1, 1, 0))]
}

fn after_handshake(segments: impl IntoIterator<Item = (f64, Said)>) -> Facts {
    let mut all = handshake();
    all.extend(segments);
    facts(&all)
}

#[test]
fn an_orderly_connection_has_nothing_to_tell() {
    let found = after_handshake([
        (100.0, client(1, 1, 12)),
        (101.0, server(1, 13, 200)),
        (102.0, server(201, 13, 0)), // a pure acknowledgement
        (103.0, client(13, 201, 0)),
        (104.0, tcp(CLIENT).seq(13).flags(FIN).ack(4201)),
        (105.0, tcp(SERVER).seq(4201).flags(FIN).ack(14)),
        (106.0, client(14, 202, 0)),
    ]);
    assert_eq!(found, Facts::default());
}

#[test]
fn both_halves_of_the_handshake_are_told_in_every_record_after_it() {
    let mut bench = table(&FlowTableSettings::default());
    // The second SYN is the one that was answered.
    bench.see(&tcp(CLIENT).seq(0).flags(SYN).at(59.0)).see(&tcp(CLIENT).seq(0).flags(SYN).at(59.95));
    bench.see(&tcp(SERVER).seq(4000).flags(SYN).ack(1).at(60.05)); // in the next slice
    bench.see(&client(1, 1, 0).at(60.06)).see(&client(1, 1, 10).at(60.9)).see(&client(11, 1, 10).at(121.0));
    bench.flush(FlowEndReason::ForcedEnd);
    let told: Vec<_> = bench.records.iter().map(|r| (r.state, r.tcp_handshake, r.tcp_retransmissions)).collect();
    assert_eq!(
        told,
        [
            (FlowState::Begin, [0, 0], [0, 0]),
            (FlowState::Continue, [0, 0], [1, 0]),
            (FlowState::Continue, [100_000_000, 10_000_000], [0, 0]),
            (FlowState::End, [100_000_000, 10_000_000], [0, 0]),
        ]
    );
}

#[test]
fn octets_that_were_seen_before_are_a_retransmission() {
    let again = client(1, 1, 100);
    let found = after_handshake([(100.0, again.clone()), (350.0, again), (360.0, server(1, 101, 0))]);
    assert_eq!(found, Facts { retransmissions: [1, 0], ..Facts::default() });
}

#[test]
fn what_the_network_lost_is_a_retransmission_and_not_missed() {
    // 101..201 was lost before the mirror; the server says so, and gets it after more than the round trip of 30 ms.
    let found = after_handshake([
        (100.0, client(1, 1, 100)),
        (100.1, client(201, 1, 100)),
        (101.0, server(1, 101, 0)),
        (140.0, client(101, 1, 100)),
        (141.0, server(1, 301, 0)),
    ]);
    assert_eq!(found, Facts { retransmissions: [1, 0], ..Facts::default() });
}

#[test]
fn what_comes_soon_after_its_successor_is_out_of_order() {
    let found = after_handshake([
        (100.0, client(201, 1, 100)),
        (100.5, client(1, 1, 200)),
        (101.0, server(1, 301, 0)),
        (102.0, client(301, 1, 1)),
    ]);
    assert_eq!(found, Facts { out_of_order: [1, 0], ..Facts::default() });
}

#[test]
fn what_is_acknowledged_but_never_came_by_is_missed() {
    // Three ways to notice: a gap that is acknowledged, two gaps at once, an acknowledgement of what is not there at all.
    let gap = [(100.0, client(101, 1, 100)), (101.0, server(1, 201, 0))];
    assert_eq!(after_handshake(gap), Facts { missed: [100, 0], ..Facts::default() });
    let gaps = [
        (100.0, client(101, 1, 100)), // 1..101 is missing
        (100.1, client(251, 1, 50)),  // and 201..251
        (101.0, server(1, 51, 0)),    // half of the first
        (102.0, server(1, 301, 0)),
    ];
    assert_eq!(after_handshake(gaps), Facts { missed: [150, 0], ..Facts::default() });
    let unseen = [(100.0, server(1, 1001, 0)), (101.0, client(1001, 1, 10)), (102.0, server(1, 1011, 0))];
    assert_eq!(after_handshake(unseen), Facts { missed: [1000, 0], ..Facts::default() });
}

#[test]
fn gaps_are_told_while_the_loss_goes_on() {
    // Every second segment is lost on the mirror, and acknowledged one round trip later, when there are new gaps.
    let mut segments = Vec::new();
    for n in 0..1000_u32 {
        segments.push((100.0 + f64::from(n), client(101 + 200 * n, 1, 100)));
        if n >= 10 {
            segments.push((100.5 + f64::from(n), server(1, 201 + 200 * (n - 10), 0)));
        }
    }
    let found = after_handshake(segments);
    assert_eq!((found.retransmissions, found.out_of_order), ([0, 0], [0, 0]));
    // 990 gaps of 100 were acknowledged; of those since the last look ten round trips may be untold.
    assert!((98_000..=99_000).contains(&found.missed[0]), "{found:?}");
}

#[test]
fn a_mirror_that_mixes_up_the_directions_misses_nothing() {
    let found = after_handshake([(100.0, server(1, 101, 0)), (100.2, client(1, 1, 100)), (101.0, client(101, 1, 100))]);
    assert_eq!(found, Facts::default());
    // Two segments after their acknowledgement, in the wrong order on top.
    let found = after_handshake([
        (100.0, server(1, 201, 0)),
        (100.1, client(201, 1, 100)),
        (100.2, client(101, 1, 100)),
        (100.3, client(1, 1, 100)),
    ]);
    assert_eq!(found, Facts { out_of_order: [2, 0], ..Facts::default() });
}

#[test]
fn a_direction_that_was_never_heard_misses_nothing() {
    let one_sided: Vec<_> = (0..50_u32).map(|n| (f64::from(n), client(1 + 10 * n, 1 + 100_000_000 * n, 10))).collect();
    assert_eq!(facts(&one_sided), Facts::default());
    // Heard at last, it can; and when it falls silent again, all of it.
    let mut feed = one_sided;
    feed.push((60.0, server(1_000_000, 501, 10)));
    feed.push((61.0, client(501, 1_000_010, 0)));
    feed.push((62.0, client(501, 1_002_010, 0)));
    feed.push((63.0, client(501, 1_003_010, 0)));
    assert_eq!(facts(&feed), Facts { missed: [0, 3000], ..Facts::default() });
}

#[test]
fn sequence_numbers_may_wrap() {
    let start = u32::MAX - 150;
    let segment = |n: u32, len| tcp(CLIENT).seq(start.wrapping_add(n)).ack(7).len(len);
    let acknowledged = |n: u32| tcp(SERVER).seq(7).ack(start.wrapping_add(n));
    let found = facts(&[
        (0.0, segment(0, 100)),
        (1.0, acknowledged(100)),
        (2.0, segment(100, 100)), // over the end
        (3.0, segment(300, 100)), // 200..300 is missing
        (4.0, acknowledged(400)),
        (500.0, segment(100, 100)),
    ]);
    assert_eq!(found, Facts { retransmissions: [1, 0], missed: [100, 0], ..Facts::default() });
}

#[test]
fn keep_alives_and_window_probes_are_no_retransmissions() {
    let found = after_handshake([
        (100.0, client(1, 1, 100)),
        (101.0, server(1, 101, 0)),
        (1000.0, client(100, 1, 0)),
        (1001.0, server(1, 101, 0)),
        (2000.0, client(100, 1, 1)),
        (2001.0, server(1, 101, 0).window(0)),
        (3000.0, client(101, 1, 1)), // a probe beyond the closed window
        (3001.0, server(1, 101, 0).window(0)),
        (4000.0, client(101, 1, 1)),
        (4001.0, server(1, 101, 0)),
        (4002.0, client(101, 1, 50)), // the window opened: the octet of the probe goes again with others
        (4003.0, server(1, 151, 0)),
    ]);
    assert_eq!(found, Facts { zero_windows: [0, 2], ..Facts::default() });
}

#[test]
fn a_reset_closes_no_window_and_its_numbers_mean_nothing() {
    let reset = tcp(CLIENT).seq(77_777).flags(RST).window(0);
    assert_eq!(after_handshake([(100.0, client(1, 1, 10)), (101.0, reset), (102.0, client(11, 1, 10))]), Facts::default());
}

#[test]
fn a_jump_that_no_window_allows_is_not_a_gap() {
    let found = after_handshake([
        (100.0, client(2_000_000_000, 1, 10)), // injected
        (101.0, client(1, 1, 10)),
        (102.0, server(1, 11, 0)),
    ]);
    assert_eq!(found, Facts::default());
}

#[test]
fn the_account_of_connections_tells_scans_from_one_sided_feeds() {
    let mut bench = table(&FlowTableSettings::default());
    for (_, said) in handshake() {
        bench.see(&said);
    }
    for port in 1000..1100 {
        bench.see(&tcp(&format!("10.0.0.9:{port} > 10.0.0.2:80")).flags(SYN));
        bench.see(&tcp(&format!("10.0.0.2:80 > 10.0.0.9:{port}")).flags(RST | ACK));
        bench.see(&tcp(&format!("10.0.0.9:{port} > 10.0.0.3:80")).flags(SYN));
    }
    bench.see(&tcp("10.0.0.7:50000 > 10.0.0.2:443").seq(5).ack(9).len(100));
    bench.see(&tcp("10.0.0.7:50000 > 10.0.0.2:443").seq(305).ack(9).len(100));
    bench.flush(FlowEndReason::ForcedEnd);
    let health = bench.table.health();
    assert_eq!((health.tcp_flows, health.tcp_flows_one_way), (2, 1));
    assert_eq!((health.tcp_octets, health.missed_octets), (200, 0));
}

#[test]
fn a_fibre_of_a_tap_is_not_blamed_for_its_one_side() {
    let mut bench = table(&FlowTableSettings::default());
    let fibre = Observer { one_sided: true, ..Observer::default() };
    bench.table = FlowTable::new(&FlowTableSettings::default(), KeyHasher::fixed(), fibre).expect("a little memory");
    // The client's side of a conversation in which the server says much.
    for n in 0..10 {
        bench.see(&client(1 + 100 * n, 1 + 50_000 * n, 100));
    }
    bench.flush(FlowEndReason::ForcedEnd);
    let health = bench.table.health();
    assert_eq!((health.tcp_flows, health.tcp_flows_one_way, health.missed_octets), (1, 0, 0));
    assert!(bench.records.iter().all(|record| record.one_sided));
}
