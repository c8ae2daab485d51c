use spanwatch_common::encapsulation::{Encapsulation, Encapsulations};
use spanwatch_common::flow::segment;
use spanwatch_common::net::Address;

use super::*;

fn address(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().expect("an address").into()
}

fn erspan(from: &str, to: &str, sequence: u32) -> Around {
    Around { tunnel: [address(from), address(to)], erspan_session: 5, erspan_sequence: Some(sequence), ..Around::default() }
}

fn vxlan(network: u32) -> Around {
    Around {
        tunnel: [address("192.0.2.1"), address("192.0.2.2")],
        layer2_segment: segment::id(segment::VXLAN, network),
        ..Around::default()
    }
}

fn flushed(bench: &mut Bench) -> Vec<FlowRecord> {
    bench.flush(FlowEndReason::ForcedEnd);
    std::mem::take(&mut bench.records)
}

#[test]
fn a_record_names_the_tunnel_as_the_initiators_packets_went_through_it() {
    let ask = udp("10.0.0.1:40000 > 10.0.0.2:502").packet();
    let answer = udp("10.0.0.2:502 > 10.0.0.1:40000").packet();
    let (there, back) = (vxlan(7), Around { tunnel: [address("192.0.2.2"), address("192.0.2.1")], ..vxlan(7) });
    let seen = |packets: &[(Packet, Around)]| {
        let mut bench = table(&FlowTableSettings::default());
        for (packet, around) in packets {
            let tunnel = bench.table.tunnel(around, packet.at);
            let encapsulations = Encapsulations::NONE.with(Encapsulation::Vxlan);
            bench.observe(&[Packet { tunnel, encapsulations, ..*packet }]);
        }
        let record = flushed(&mut bench).remove(0);
        assert_eq!(record.destination_port, 502);
        assert_eq!(record.layer2_segment, 7 | 1 << 56);
        assert_eq!(record.encapsulations.to_string(), "vxlan");
        record.tunnel.map(|end| end.to_string())
    };
    assert_eq!(seen(&[(ask, there)]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(seen(&[(answer, back)]), ["192.0.2.1", "192.0.2.2"]);
    // One switch mirrors both directions to one collector: as long as only the answer was seen, its packet turned round.
    assert_eq!(seen(&[(answer, there)]), ["192.0.2.2", "192.0.2.1"]);
    assert_eq!(seen(&[(answer, there), (ask, there)]), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn tunnels_beyond_the_limit_have_no_number_until_one_falls_silent() {
    let mut bench = table(&FlowTableSettings { tunnels_max: 2, ..FlowTableSettings::default() });
    let at = Timestamp::from_secs;
    let (one, two) = (bench.table.tunnel(&vxlan(1), at(1)), bench.table.tunnel(&vxlan(2), at(1)));
    assert!(one != 0 && two != 0 && one != two);
    assert_eq!(bench.table.tunnel(&vxlan(1), at(300)), one);
    assert_eq!(bench.table.tunnel(&vxlan(3), at(361)), 0);
    // 300 s of silence in a flow and 60 s until its slice is told: then nobody speaks of the second any more.
    let packet = Packet { tunnel: two, ..udp("10.0.0.1:1 > 10.0.0.2:2").at(360.0).packet() };
    bench.observe(&[packet]);
    let three = bench.table.tunnel(&vxlan(3), at(362));
    assert!(three != 0 && three != one && three != two);
    assert_eq!(bench.table.tunnel(&vxlan(1), at(362)), one);
    // A flow that outlived its tunnel does not name another one.
    assert_eq!(flushed(&mut bench)[0].layer2_segment, 0);
}

#[test]
fn what_is_missing_from_an_erspan_sequence_is_counted_for_each_session_and_direction() {
    let mut bench = table(&FlowTableSettings::default());
    let mut see = |sequence: u32, from: &str, to: &str, inside: u64| {
        let around = Around { layer2_segment: inside, ..erspan(from, to, sequence) };
        bench.table.tunnel(&around, Timestamp::from_secs(1));
        let health = bench.table.health();
        (health.erspan_packets, health.erspan_gaps)
    };
    let (switch, sensor) = ("192.0.2.1", "192.0.2.9");
    assert_eq!(see(u32::MAX, switch, sensor, 0), (1, 0));
    assert_eq!(see(0, switch, sensor, 0), (2, 0));
    assert_eq!(see(77, sensor, switch, 0), (3, 0), "the other direction counts for itself");
    assert_eq!(see(1, switch, sensor, 42), (4, 0), "and what is inside makes no difference");
    assert_eq!(see(5, switch, sensor, 0), (5, 3));
    assert_eq!(see(3, switch, sensor, 0), (6, 2), "one of the three came late");
    assert_eq!(see(6, switch, sensor, 0), (7, 2));
    assert_eq!(see(1_000_000, switch, sensor, 0), (8, 2), "a restart");
    assert_eq!(see(0, switch, sensor, 0), (9, 2), "another one");
    assert_eq!(see(2, switch, sensor, 0), (10, 3));
}

#[test]
fn layer_2_conversations_have_an_instance_and_no_ports() {
    let frame = |ethertype: u16| {
        let mut bytes = vec![1, 0x0c, 0xcd, 1, 0, 1, 2, 0, 0, 0, 0, 1];
        bytes.extend(ethertype.to_be_bytes());
        bytes.resize(60, 0);
        Said { bytes, at: Timestamp::from_secs(1) }.packet()
    };
    let record = |packet: Packet| {
        let mut bench = table(&FlowTableSettings::default());
        bench.observe(&[packet]);
        let record = flushed(&mut bench).remove(0);
        assert_eq!((record.source_port, record.destination_port), (0, 0));
        record
    };
    let mut goose = frame(0x88b8);
    (goose.key.a_port, goose.key.b_port) = (0x3001, 0x3001);
    assert_eq!(record(goose).layer2_instance, 0x3001);
    let mut cdp = frame(100);
    cdp.key.detail = 0xaaaa;
    (cdp.key.a_port, cdp.key.b_port) = (0x2000, 0x2000);
    cdp.key.a[..3].copy_from_slice(&[0, 0, 0x0c]);
    cdp.key.b[..3].copy_from_slice(&[0, 0, 0x0c]);
    let cdp = record(cdp);
    assert_eq!((cdp.layer2_instance, cdp.llc_saps), (0x0c_2000, 0xaaaa));
    assert_eq!(spanwatch_common::layer2::name(cdp.ethernet_type, cdp.llc_saps, cdp.layer2_instance), Some("CDP"));
    let mut arp = frame(0x0806);
    assert_eq!(record(arp).arp, [Address::NONE; 2], "cut short");
    let (sender, target) = match arp.way {
        Way::FromA => (&mut arp.key.a, &mut arp.key.b),
        Way::FromB => (&mut arp.key.b, &mut arp.key.a),
    };
    sender[6..10].copy_from_slice(&[192, 0, 2, 1]);
    target[6..10].copy_from_slice(&[192, 0, 2, 2]);
    assert_eq!(record(arp).arp.map(|end| end.to_string()), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn an_answer_and_the_interface_are_told_in_every_later_record() {
    let observer = Observer { observation_point: 1, ingress_interface: 9, ..Observer::default() };
    let mut bench = table(&FlowTableSettings::default());
    bench.table = FlowTable::new(&FlowTableSettings::default(), KeyHasher::fixed(), observer).expect("a little memory");
    let (ask, answer) = ("10.0.0.1:40000 > 10.0.0.2:53", "10.0.0.2:53 > 10.0.0.1:40000");
    bench.see(&udp(ask).at(50.0)).see(&udp(ask).at(61.0)).see(&udp(answer).at(61.1)).see(&udp(ask).at(121.0));
    let told: Vec<_> = flushed(&mut bench).iter().map(|r| (r.state, r.answered, r.packets, r.ingress_interface)).collect();
    assert_eq!(
        told,
        [
            (FlowState::Begin, false, [0, 0], 9),
            (FlowState::Continue, false, [1, 0], 9),
            (FlowState::Continue, true, [1, 1], 9),
            (FlowState::End, true, [1, 0], 9),
        ]
    );
    let second = Packet { interface: 2, ..udp(ask).packet() };
    bench.observe(&[second]);
    assert_eq!(flushed(&mut bench)[0].ingress_interface, 2);
}

#[test]
fn an_icmp_error_marks_the_flow_that_it_names_also_within_one_batch() {
    let mut bench = table(&FlowTableSettings::default());
    let packet = udp("10.0.0.1:40000 > 10.0.0.2:161").at(50.0).packet();
    let stranger = udp("10.0.0.1:40000 > 10.0.0.3:161").packet();
    bench.table.icmp_error(&packet.key, packet.way, 0x0303);
    bench.table.icmp_error(&stranger.key, stranger.way, 0x0301);
    bench.observe(&[packet]);
    bench.observe(&[Packet { at: Timestamp::from_secs(61), ..packet }]);
    let told: Vec<_> = flushed(&mut bench).iter().map(|r| (r.state, r.icmp_error)).collect();
    let port_unreachable = [0x0303, 0];
    assert_eq!(told, [(FlowState::Begin, port_unreachable), (FlowState::Continue, port_unreachable), (FlowState::End, [0, 0])]);
}

#[test]
fn who_talks_most_is_known_a_round_after_somebody_watches() {
    let mut bench = table(&FlowTableSettings::default());
    for host in 1..=100_u32 {
        for n in 0..host {
            let said = udp(&format!("10.0.0.{host}:40000 > 10.1.0.1:502")).len(960);
            bench.see(&said.at(5.0 + f64::from(n) / 10.0));
        }
    }
    bench.until(16.0);
    assert_eq!(bench.table.talkers(), []);
    bench.table.watch(true);
    bench.until(18.0);
    let talkers = bench.table.talkers().to_vec();
    assert_eq!(talkers.len(), TALKERS_MAX);
    let first = talkers[0];
    assert_eq!((first.source.to_string(), first.destination_port), ("10.0.0.100".to_owned(), 502));
    assert_eq!((first.packets, first.octets), (100, 100_000));
    // Since 5.0, seen at some time in the round until 18.0.
    assert!((100_000.0 / 13.1..100_000.0 / 10.9).contains(&first.octets_per_sec), "{first:?}");
    assert!(talkers.is_sorted_by_key(|talker| std::cmp::Reverse(talker.octets)));
    assert_eq!(talkers[TALKERS_MAX - 1].packets, 69);
    bench.table.watch(false);
    assert_eq!(bench.table.talkers(), []);
}
