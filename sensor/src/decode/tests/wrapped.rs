//! Encapsulation invariance with headers built here: whatever is around a conversation, it stays the same conversation.
//!
//! Outer IP and UDP headers are etherparse's; everything it lacks is written out, with the layout's source beside it.

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader};
use proptest::prelude::*;
use spanwatch_common::flow::segment;

use super::*;

const OUTER_MACS: [u8; 12] = [2, 0, 0x5e, 0, 0, 2, 2, 0, 0x5e, 0, 0, 1];
const SWITCH: [u8; 4] = [198, 51, 100, 1];
const SENSOR: [u8; 4] = [198, 51, 100, 2];

fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&OUTER_MACS[..], &ethertype.to_be_bytes(), body].concat()
}

fn v4(protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::new(payload.len() as u16, 64, protocol, SWITCH, SENSOR).expect("short enough");
    header.header_checksum = header.calc_header_checksum();
    let mut packet = Vec::new();
    header.write(&mut packet).expect("memory");
    [packet, payload.to_vec()].concat()
}

fn v6(protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let address =
        |last| std::array::from_fn(|i| if i == 15 { last } else { [0x20, 0x01, 0x0d, 0xb8].get(i).copied().unwrap_or(0) });
    let header = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: payload.len() as u16,
        next_header: protocol,
        hop_limit: 64,
        source: address(1),
        destination: address(2),
    };
    [&header.to_bytes()[..], payload].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader { source_port: 50_000, destination_port: port, length: 8 + payload.len() as u16, checksum: 0 };
    [&header.to_bytes()[..], payload].concat()
}

fn over_udp(port: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &v4(IpNumber::UDP, &udp(port, payload)))
}

/// RFC 2784 and RFC 2890: flags, protocol, then what the flags announce.
fn gre(flags: u16, protocol: u16, fields: &[u32], payload: &[u8]) -> Vec<u8> {
    let mut header = [flags.to_be_bytes(), protocol.to_be_bytes()].concat();
    header.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
    ethernet(0x0800, &v4(IpNumber::GRE, &[&header[..], payload].concat()))
}

fn words(words: &[u32], rest: &[u8]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).chain(rest.iter().copied()).collect()
}

fn tagged(frame: &[u8], tag: &[u8]) -> Vec<u8> {
    [&frame[..12], tag, &frame[12..]].concat()
}

fn padded(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// IEC 62439-3: padding first, then sequence, LAN and size, suffix.
fn prp(frame: &[u8], lan: u16) -> Vec<u8> {
    let frame = padded(frame);
    let size = (frame.len() - 14 + 6) as u16;
    [&frame[..], &7_u16.to_be_bytes(), &(lan << 12 | size).to_be_bytes(), &[0x88, 0xfb]].concat()
}

/// ERSPAN type III: version 2, VLAN 100; session 33; time; security group; P, frame type, direction, O.
fn erspan3(frame: &[u8], flags: u32, subheader: &[u32]) -> Vec<u8> {
    let header = words(&[0x2064_0021, 0x1234_5678, 0x8000 | flags], &words(subheader, frame));
    gre(0x1000, 0x22eb, &[9], &header)
}

type Wrap = (&'static str, &'static str, fn(&[u8]) -> Vec<u8>);

/// Around any Ethernet frame: name, what the decoder says it took off, how it is made.
const AROUND_FRAMES: &[Wrap] = &[
    ("802.1Q", "vlan", |f| tagged(f, &[0x81, 0, 0x60, 120])),
    ("RSPAN", "vlan", |f| tagged(&tagged(f, &[0x81, 0, 0, 10]), &[0x81, 0, 0x03, 0x85])),
    ("802.1ad", "vlan+svlan", |f| tagged(&tagged(f, &[0x81, 0, 0, 10]), &[0x88, 0xa8, 0, 200])),
    ("0x9100", "vlan+svlan", |f| tagged(&tagged(f, &[0x81, 0, 0, 10]), &[0x91, 0, 0, 200])),
    ("priority tag", "priority", |f| tagged(f, &[0x81, 0, 0xc0, 0])),
    ("VN-Tag", "vntag", |f| tagged(f, &[0x89, 0x26, 0, 1, 0, 2])),
    ("E-TAG", "etag", |f| tagged(f, &[0x89, 0x3f, 0xe0, 0, 0, 5, 0, 0])),
    ("Cisco MetaData", "cisco_metadata", |f| tagged(f, &[0x89, 0x09, 1, 1, 0, 1, 0, 77])),
    ("HSR", "hsr", |f| tagged(f, &[0x89, 0x2f, 0, 80, 0, 7])),
    ("R-TAG", "rtag", |f| tagged(f, &[0xf1, 0xc1, 0, 0, 0, 7])),
    ("PRP", "prp", |f| prp(f, 0xa)),
    ("FabricPath", "fabricpath", |f| ethernet(0x8903, &[&[0x00, 0x4f], f].concat())),
    ("TRILL", "trill", |f| ethernet(0x22f3, &[&[0, 0x3f, 0, 1, 0, 2], f].concat())),
    ("pseudowire with control word", "mpls+pseudowire", |f| {
        ethernet(0x8847, &words(&[1000 << 12 | 63, 2000 << 12 | 0x13f, 0], f))
    }),
    ("pseudowire without", "mpls+pseudowire", |f| ethernet(0x8847, &words(&[2000 << 12 | 0x13f], f))),
    ("GRETAP", "gre", |f| gre(0, 0x6558, &[], f)),
    ("GRE with checksum, key and sequence", "gre", |f| gre(0xb000, 0x6558, &[0, 9, 1], f)),
    ("NVGRE", "nvgre", |f| gre(0x2000, 0x6558, &[5001 << 8 | 7], f)),
    ("ERSPAN I", "erspan1", |f| gre(0, 0x88be, &[], f)),
    ("ERSPAN II", "erspan2", |f| gre(0x1000, 0x88be, &[9], &words(&[0x1064_1820, 0x12], f))),
    ("ERSPAN III", "erspan3", |f| erspan3(f, 0, &[])),
    ("ERSPAN III with subheader", "erspan3", |f| erspan3(f, 1, &[5 << 26, 0x1122_3344])),
    ("VXLAN", "vxlan", |f| over_udp(4789, &words(&[0x0800_0000, 7777 << 8], f))),
    ("VXLAN as Linux had it", "vxlan", |f| over_udp(8472, &words(&[0x0800_0000, 42 << 8], f))),
    ("VXLAN with group policy", "vxlan", |f| over_udp(4789, &words(&[0x8808_1234, 7778 << 8], f))),
    ("VXLAN over IPv6", "vxlan", |f| ethernet(0x86dd, &v6(IpNumber::UDP, &udp(4789, &words(&[0x0800_0000, 1 << 8], f))))),
    ("VXLAN-GPE", "vxlan_gpe", |f| over_udp(4790, &words(&[0x0c00_0003, 9 << 8], f))),
    ("VXLAN-GPE with NSH", "vxlan_gpe+nsh", |f| over_udp(4790, &words(&[0x0c00_0004, 9 << 8, 0x0fc2_0203, 0xff00_0001], f))),
    ("GENEVE", "geneve", |f| over_udp(6081, &words(&[0x0000_6558, 99 << 8], f))),
    ("GENEVE with options", "geneve", |f| over_udp(6081, &words(&[0x0200_6558, 99 << 8, 0x0108_0101, 5], f))),
    ("MPLS in UDP", "mpls+pseudowire+mpls_in_udp", |f| over_udp(6635, &words(&[2000 << 12 | 0x13f, 0], f))),
    ("an FCS behind", "", |f| [&padded(f)[..], &[0xde, 0xad, 0xbe, 0xef]].concat()),
    ("a timestamp trailer behind", "", |f| [&padded(f)[..], &[0x5a; 16]].concat()),
    ("ERSPAN of a tagged VXLAN", "vlan+erspan2+vxlan", |f| {
        let vxlan = over_udp(4789, &words(&[0x0800_0000, 7777 << 8], f));
        let inner = tagged(&vxlan, &[0x81, 0, 0, 10]);
        gre(0x1000, 0x88be, &[9], &words(&[0x1064_1820, 0x12], &inner))
    }),
];

/// Around an IPv4 packet alone.
const AROUND_PACKETS: &[Wrap] = &[
    ("MPLS", "mpls", |f| ethernet(0x8847, &words(&[1000 << 12 | 0x13f], &f[14..]))),
    ("PPPoE", "pppoe", |f| {
        let length = (f.len() - 14 + 2) as u32;
        ethernet(0x8864, &words(&[0x1100_1234, length << 16 | 0x0021], &f[14..]))
    }),
    ("IP in IP", "ip_in_ip", |f| ethernet(0x0800, &v4(IpNumber::IPV4, &f[14..]))),
    ("IPv4 in IPv6", "ip_in_ip", |f| ethernet(0x86dd, &v6(IpNumber::IPV4, &f[14..]))),
    ("GRE", "gre", |f| gre(0, 0x0800, &[], &f[14..])),
    ("PPTP", "pptp", |f| gre(0x3081, 0x880b, &[0x0028_0001, 1, 2], &words(&[0xff03_0021], &f[14..]))),
    ("ERSPAN III of IP", "erspan3", |f| erspan3(&f[14..], 2 << 10, &[])),
    ("GENEVE of a load balancer", "geneve", |f| over_udp(6081, &words(&[0x0200_0800, 0, 0x0108_0101, 5], &f[14..]))),
    ("NSH", "nsh", |f| ethernet(0x894f, &words(&[0x0fc2_0201, 0xff00_0001], &f[14..]))),
    ("SNAP", "snap", |f| {
        let body = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &f[14..]].concat();
        ethernet(body.len() as u16, &body)
    }),
    ("802.1ah", "svlan+pbb", |f| {
        let inner = [&[0, 0, 0x12, 0x34], &f[..12], &f[12..]].concat();
        tagged(&ethernet(0x88e7, &inner), &[0x88, 0xa8, 0, 77])
    }),
];

/// A TCP SYN, an IPv6 DNS query, GOOSE, ARP, spanning tree, PROFINET with a priority tag.
fn conversations() -> Vec<Vec<u8>> {
    let syn = "45000028 00014000 40060000 0a000001 0a000002 9c4001f6 00000001 00000000 5002ffff 00000000";
    let query = "60000000 0014 11 40 20010db8000000000000000000000001 20010db8000000000000000000000002 \
                 9c40 0035 0014 0000 1234 0100 0001 0000 0000 0000";
    [
        format!("020000000002 020000000001 0800 {syn}"),
        format!("020000000002 020000000001 86dd {query}"),
        "010ccd010001 020000000001 88b8 0003 0010 0000 0000 6106 8004 31323334".to_owned(),
        "ffffffffffff 020000000001 0806 0001 0800 0604 0001 020000000001 0a000001 000000000000 0a000002".to_owned(),
        "0180c2000000 020000000001 0026 424203 0000000000 8000000000000000 00000000 8000000000000000 8001 0000 1400 0200 0f00"
            .to_owned(),
        "020000000002 020000000001 8100 c000 8892 8001 00112233445566778899 0001 3500".to_owned(),
    ]
    .iter()
    .map(|text| hex(text))
    .collect()
}

fn decoded(frame: &[u8]) -> (Packet, Around) {
    let mut around = Around::default();
    let frame = Frame::ethernet(frame, frame.len() as u32, Timestamp::from_secs(1));
    (decode(&frame, &Rules::new(&DecodeSettings::default(), false), &mut around).expect("an Ethernet frame"), around)
}

/// What must not change. Of a frame's own priority tag the names of what was taken off tell as well.
fn inner(packet: &Packet) -> impl PartialEq + std::fmt::Debug + use<> {
    let Packet { key, way, speech, ip_octets, flags, ttl, odd, sequence, payload_octets, .. } = *packet;
    (key, way, speech, ip_octets, flags, ttl, odd, sequence, payload_octets)
}

#[test]
fn a_conversation_is_the_same_whatever_is_around_its_frame() {
    for bare in conversations() {
        let (expected, _) = decoded(&bare);
        for (name, taken_off, wrap) in AROUND_FRAMES {
            let (found, _) = decoded(&wrap(&bare));
            assert_eq!(inner(&found), inner(&expected), "{name}");
            let own = expected.encapsulations.0;
            let told = Encapsulations::from_names(taken_off).map(|set| Encapsulations(set.0 | own));
            assert_eq!(Some(found.encapsulations), told, "{name}");
        }
    }
}

#[test]
fn an_ip_packet_is_the_same_whatever_is_around_it() {
    let bare = &conversations()[0];
    let (expected, _) = decoded(bare);
    for (name, taken_off, wrap) in AROUND_PACKETS {
        let (found, _) = decoded(&wrap(bare));
        assert_eq!(inner(&found), inner(&expected), "{name}");
        assert_eq!(found.encapsulations.to_string(), *taken_off, "{name}");
    }
}

#[test]
fn what_was_around_is_told() {
    let bare = &conversations()[0];
    let around = |wanted: &str| {
        let all = AROUND_FRAMES.iter().chain(AROUND_PACKETS);
        let wrap = all.into_iter().find(|(name, ..)| *name == wanted).expect("a wrap of that name").2;
        decoded(&wrap(bare)).1
    };
    let switch = Address::from_v4(SWITCH);
    assert_eq!(around("VXLAN").layer2_segment, segment::id(segment::VXLAN, 7777));
    assert_eq!(around("VXLAN").tunnel, [switch, Address::from_v4(SENSOR)]);
    assert_eq!(around("NVGRE").layer2_segment, segment::id(segment::NVGRE, 5001));
    assert_eq!(around("GENEVE").layer2_segment, segment::id(segment::GENEVE, 99));
    assert_eq!(around("GRE with checksum, key and sequence").layer2_segment, segment::id(segment::GRE_KEY, 9));
    assert_eq!(around("802.1ah").layer2_segment, segment::id(segment::PBB, 0x1234));
    assert_eq!(around("PPPoE").layer2_segment, segment::id(segment::PPPOE, 0x1234));
    // The outermost label: 1000, neither class nor bottom.
    assert_eq!(around("pseudowire with control word").mpls_top_label, 1000 << 4);
    let two = around("ERSPAN II");
    assert_eq!((two.erspan_session, two.erspan_vlan, two.erspan_sequence), (32, 100, Some(9)));
    let three = around("ERSPAN III");
    assert_eq!((three.erspan_session, three.erspan_vlan, three.tunnel[0]), (33, 100, switch));
    assert_eq!(around("HSR").redundancy, Some(Redundancy { sequence: 7, path: 0 }));
    assert_eq!(around("PRP").redundancy, Some(Redundancy { sequence: 7, path: 0xa }));
    // The endpoints are those of the outermost tunnel, the network that of the innermost.
    let nested = around("ERSPAN of a tagged VXLAN");
    assert_eq!((nested.tunnel[0], nested.erspan_session, nested.layer2_segment), (switch, 32, segment::id(segment::VXLAN, 7777)));
}

#[test]
fn what_is_not_understood_stays_outside_and_is_counted() {
    let bare = &conversations()[0];
    let outside = |frame: Vec<u8>| {
        let (packet, _) = decoded(&frame);
        assert_eq!(packet.encapsulations, Encapsulations::NONE);
        (packet.key.protocol, packet.odd)
    };
    // ERSPAN III with a frame type that is not Ethernet; GRE around nobody knows what; VXLAN without a network.
    assert_eq!(outside(erspan3(bare, 7 << 10, &[])), (47, Oddity::UnknownEncapsulation));
    assert_eq!(outside(gre(0, 0x1234, &[], bare)), (47, Oddity::UnknownEncapsulation));
    assert_eq!(outside(over_udp(4789, &words(&[0, 7 << 8], bare))), (17, Oddity::UnknownEncapsulation));
    // Source routing was dropped from GRE: where the header ends cannot be known.
    assert_eq!(outside(gre(0x4000, 0x6558, &[], bare)), (47, Oddity::UnknownEncapsulation));
    // Half a MAC header inside.
    assert_eq!(outside(gre(0, 0x6558, &[], &bare[..7])), (47, Oddity::BadEncapsulation));
    // GTP-U and Teredo are not looked for unless asked.
    assert_eq!(outside(over_udp(2152, &words(&[0x30ff_0028, 5], &bare[14..]))), (17, Oddity::None));
}

#[test]
fn gtp_u_and_teredo_are_read_where_they_are_asked_for() {
    let settings = DecodeSettings { gtp_u: true, teredo: true, ..DecodeSettings::default() };
    let rules = Rules::new(&settings, false);
    let read = |frame: Vec<u8>| {
        let mut around = Around::default();
        let packet = decode(&Frame::ethernet(&frame, frame.len() as u32, Timestamp::from_secs(1)), &rules, &mut around);
        (packet.expect("an Ethernet frame"), around)
    };
    let bare = &conversations()[0];
    // With a sequence number and one extension header of four octets.
    let (packet, around) = read(over_udp(2152, &words(&[0x36ff_0030, 5, 0x0001_0085, 0x0100_0000], &bare[14..])));
    assert_eq!((packet.key.protocol, packet.encapsulations.to_string().as_str()), (6, "gtp_u"));
    assert_eq!(around.layer2_segment, segment::id(segment::GTP_U, 5));
    // Origin indication, then IPv6.
    let (packet, _) = read(over_udp(3544, &words(&[0x0000_1234, 0x5678_9abc], &conversations()[1][14..])));
    assert_eq!((packet.key.kind, packet.encapsulations.to_string().as_str()), (Kind::Ipv6 as u8, "teredo"));
}

#[test]
fn nesting_ends_somewhere() {
    // 4 + 20·30 octets of IP in IP: deeper than anybody builds.
    let mut packet = conversations()[0][14..].to_vec();
    for _ in 0..30 {
        packet = v4(IpNumber::IPV4, &packet);
    }
    let (found, _) = decoded(&ethernet(0x0800, &packet));
    assert_eq!((found.odd, found.key.kind), (Oddity::TooDeep, Kind::Ipv4 as u8));
}

#[test]
fn an_icmp_error_names_the_flow_that_it_is_about() {
    let quoted_packet = &conversations()[0][14..14 + 28];
    let icmp = [&[3, 1, 0, 0, 0, 0, 0, 0], quoted_packet].concat();
    let mut frame = ethernet(0x0800, &v4(IpNumber::ICMP, &icmp));
    let (error, _) = decoded(&frame);
    let (about, _) = decoded(&conversations()[0]);
    assert_eq!(quoted(&frame, &error), Some((about.key, about.way)));
    // An echo request that carries the same bytes is about nothing.
    frame[34] = 8;
    let (echo, _) = decoded(&frame);
    assert_eq!(quoted(&frame, &echo), None);
}

#[test]
fn links_without_a_mac_header_give_the_same_flows() {
    let bare = &conversations()[0];
    let (expected, _) = decoded(bare);
    let sll = [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0], &bare[14..]].concat();
    let sll2 = [&[8, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], &bare[14..]].concat();
    let links = [
        (Link::Raw, bare[14..].to_vec()),
        (Link::Null, [&[2, 0, 0, 0], &bare[14..]].concat()),
        (Link::Null, [&[0, 0, 0, 2], &bare[14..]].concat()),
        (Link::Sll, sll),
        (Link::Sll2, sll2),
    ];
    for (link, bytes) in links {
        let frame = Frame { link, ..Frame::ethernet(&bytes, bytes.len() as u32, Timestamp::from_secs(1)) };
        let packet = decode(&frame, &Rules::default(), &mut Around::default()).expect("a packet");
        assert_eq!((packet.key, packet.flags, packet.ip_octets), (expected.key, expected.flags, expected.ip_octets), "{link:?}");
        let has_mac = matches!(link, Link::Sll | Link::Sll2);
        assert_eq!(packet.source_mac, if has_mac { [2, 0, 0, 0, 0, 1] } else { [0; 6] });
    }
    let refused = |link, bytes: &[u8]| {
        let frame = Frame { link, ..Frame::ethernet(bytes, bytes.len() as u32, Timestamp::from_secs(1)) };
        decode(&frame, &Rules::default(), &mut Around::default()).expect_err("nobody to meter it for")
    };
    assert_eq!(refused(Link::Raw, &[0x12; 40]), Undecodable::NotIp);
    assert_eq!(refused(Link::Null, &[9, 9, 9, 9, 0x45]), Undecodable::NotIp);
    assert_eq!(refused(Link::Null, &[2, 0]), Undecodable::Runt);
    assert_eq!(refused(Link::Unread, bare), Undecodable::LinkType);
}

proptest! {
    /// Wherever a mirror cuts a frame: no panic, and never a conversation that is not in the whole frame, from the outside in.
    #[test]
    fn a_slice_is_the_frame_or_one_of_its_outer_levels(
        conversation in 0..6_usize, wrap in 0..AROUND_FRAMES.len(), cut in 14..200_usize, link in 0..5_u8,
    ) {
        let whole = AROUND_FRAMES[wrap].2(&conversations()[conversation]);
        let cut = cut.min(whole.len());
        let read = |bytes: &[u8]| {
            let frame = Frame::ethernet(bytes, whole.len() as u32, Timestamp::from_secs(1));
            decode(&frame, &Rules::new(&DecodeSettings::default(), false), &mut Around::default()).expect("14 octets are there")
        };
        let (full, sliced) = (read(&whole), read(&whole[..cut]));
        // Only what is outside can be named instead: the tunnel's own ends, or MAC addresses; never other IP ends or ports.
        let switch = Address::from_v4(SWITCH).0.to_be_bytes();
        let is_tunnel = sliced.key.a == switch || sliced.key.b == switch || sliced.key.a[..4] == [0x20, 0x01, 0x0d, 0xb8];
        let is_full = sliced.key.a == full.key.a && sliced.key.b == full.key.b;
        prop_assert!(is_full || is_tunnel || sliced.key.is_layer2(), "{sliced:?}");
        // And no bytes at all can do harm.
        let links = [Link::Ethernet, Link::Raw, Link::Null, Link::Sll, Link::Sll2];
        let frame = Frame { link: links[usize::from(link)], ..Frame::ethernet(&whole[..cut], cut as u32, Timestamp::from_secs(1)) };
        let _ = decode(&frame, &Rules::default(), &mut Around::default());
    }

    #[test]
    fn any_bytes_behind_any_header_are_survived(
        wrap in 0..AROUND_FRAMES.len(), noise in prop::collection::vec(any::<u8>(), 0..120), at in 0..120_usize, longer in 0..2000_u32,
    ) {
        let mut frame = AROUND_FRAMES[wrap].2(&conversations()[0]);
        for (byte, noise) in frame.iter_mut().skip(at).zip(noise) {
            *byte ^= noise;
        }
        let mut around = Around::default();
        let lent = Frame::ethernet(&frame, frame.len() as u32 + longer, Timestamp::from_secs(1));
        if let Ok(packet) = decode(&lent, &Rules::default(), &mut around) {
            let _ = quoted(&frame, &packet);
            let _ = ip_payload(&frame, &packet);
        }
    }
}
