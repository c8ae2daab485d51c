//! One frame of any link: the first byte chooses the link, the second how much longer the frame was on the wire.
#![no_main]

use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::{Frame, Link};
use spanwatch_sensor::decode::{Around, DecodeSettings, Rules, decode, ip_payload, quoted};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [link, longer, bytes @ ..] = bytes else { return };
    let links = [Link::Ethernet, Link::Ethernet, Link::Raw, Link::Null, Link::Sll, Link::Sll2];
    let link = links[usize::from(*link) % links.len()];
    let wire_len = bytes.len() as u32 + u32::from(*longer);
    let frame = Frame { link, ..Frame::ethernet(bytes, wire_len, Timestamp::from_secs(1)) };
    let settings = DecodeSettings { gtp_u: true, teredo: true, ..DecodeSettings::default() };
    let mut around = Around::default();
    let Ok(packet) = decode(&frame, &Rules::new(&settings, true), &mut around) else { return };
    // What others rely on without looking.
    assert!(usize::from(packet.network_at) <= bytes.len());
    assert!(packet.payload_octets <= packet.ip_octets);
    assert_eq!(packet.frame_octets, wire_len);
    if let Some((at, end)) = ip_payload(bytes, &packet) {
        assert!(at <= end && end <= bytes.len());
    }
    let _ = quoted(bytes, &packet);
});
