//! Capture from a real interface: frames sent into one end of a veth pair, taken from the other.

#[path = "support/netns.rs"]
mod netns;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netns::{counter, in_namespace, mirror_port, run, skip};
use spanwatch_common::checkup::Verdict;
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::settings::{Mode, Settings};
use spanwatch_sensor::capture::{Capture, CaptureErrorKind, Drained, Frame, InForce, Losses, Opened, Source, open};
use spanwatch_sensor::doctor::checks;

const PATIENCE: Duration = Duration::from_secs(5);

fn settings(mode: Mode) -> Settings {
    Settings { interface: "mon0".into(), mode, ring_slots: 4096, ..Settings::default() }
}

/// `count` frames of many lengths, each different: its number follows the Ethernet header. Every fifth carries a VLAN tag.
fn frames(count: u32, len_max: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
            if n % 5 == 0 {
                frame.extend([0x81, 0x00, 0x00, 0x2a]);
            }
            frame.extend([0x88, 0xb5]);
            frame.extend(n.to_be_bytes());
            let len = 60 + (n as usize * 37) % (len_max - 59);
            frame.resize(len, n as u8);
            frame
        })
        .collect()
}

/// Sends frames on an interface; its peer receives them.
fn send(interface: &str, frames: &[Vec<u8>]) {
    let mut port = pcap::Capture::from_device(interface).expect("a name").open().expect("a sender");
    for frame in frames {
        port.sendpacket(frame.as_slice()).expect("room to send");
    }
}

#[expect(clippy::disallowed_methods, reason = "a test of real interfaces is the loop that owns the I/O")]
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp::from_nanos(i64::try_from(since.as_nanos()).expect("before 2262"))
}

/// A captured frame: its octets and its length on the wire.
type Seen = (Vec<u8>, u32);

fn take(source: &mut Source, seen: &mut Vec<Seen>) -> Drained {
    let add = |frames: &[Frame<'_>]| seen.extend(frames.iter().map(|frame| (frame.bytes.to_vec(), frame.wire_len)));
    source.drain(now(), 64, add).expect("drain")
}

/// Takes frames until `expected` are there or patience ends.
fn collect(sources: &mut [Source], expected: usize, seen: &mut Vec<Seen>) {
    let start = now();
    while seen.len() < expected && now().since(start) < PATIENCE {
        for source in &mut *sources {
            source.wait(Duration::from_millis(5)).expect("wait");
            while take(source, seen) != Drained::Frames(0) {}
        }
    }
}

/// Stops all sources, takes the rest, and gives the sum of their accounts.
fn finish(sources: &mut [Source], seen: &mut Vec<Seen>) -> Losses {
    let mut sum = Losses::default();
    for source in &mut *sources {
        source.stop().expect("stop");
    }
    for source in sources {
        let start = now();
        while take(source, seen) != Drained::Ended {
            assert!(now().since(start) < PATIENCE, "a stopped capture must end");
            source.wait(Duration::from_millis(5)).expect("wait");
        }
        let losses = source.losses().expect("losses");
        println!("{}: {losses:?}", source.describe());
        sum.wire += losses.wire;
        sum.dropped.ring_starved += losses.dropped.ring_starved;
        sum.dropped.ring_full += losses.dropped.ring_full;
        sum.dropped.no_socket += losses.dropped.no_socket;
        sum.dropped.shed += losses.dropped.shed;
        sum.dropped.buffer_full += losses.dropped.buffer_full;
        sum.dropped.interface += losses.dropped.interface;
    }
    assert_eq!(sum.wire, seen.len() as u64 + sum.dropped.total(), "wire = delivered + dropped: {sum:?}");
    sum
}

/// Opens, or skips the test where the kernel has no AF_XDP.
fn open_or_skip(settings: &Settings) -> Option<Opened> {
    match open(settings) {
        Ok(opened) => {
            println!("{}: {}", opened.in_force.name(), opened.why);
            Some(opened)
        }
        Err(error) if matches!(error.kind, CaptureErrorKind::NoPermission | CaptureErrorKind::Unsupported) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn whole(frames: &[Vec<u8>]) -> Vec<Seen> {
    frames.iter().map(|frame| (frame.clone(), frame.len() as u32)).collect()
}

#[test]
fn af_xdp_delivers_every_frame_byte_for_byte_and_never_transmits() {
    in_namespace("af_xdp_delivers_every_frame_byte_for_byte_and_never_transmits", || {
        mirror_port(1, 1500);
        let Some(mut opened) = open_or_skip(&settings(Mode::Auto)) else { return };
        assert_eq!(opened.in_force, InForce::AfXdpCopy, "veth has native XDP and no zero-copy: {}", opened.why);
        let sent = frames(3_000, 1514);
        let mut seen = Vec::new();
        for part in sent.chunks(200) {
            send("gen0", part);
            let so_far = seen.len() + part.len();
            collect(&mut opened.sources, so_far, &mut seen);
        }
        let losses = finish(&mut opened.sources, &mut seen);
        assert_eq!(seen.len(), 3_000);
        assert!(seen == whole(&sent), "every frame, in order, octet by octet");
        assert_eq!((losses.wire, losses.dropped.total()), (3_000, 0));
        assert_eq!(counter("mon0", "rx_packets"), losses.wire, "the kernel's own count of the port");
        assert_eq!(counter("mon0", "tx_packets"), 0, "a sensor sends nothing");
    });
}

#[test]
fn a_stalled_af_xdp_reader_loses_packets_but_no_count() {
    in_namespace("a_stalled_af_xdp_reader_loses_packets_but_no_count", || {
        mirror_port(1, 1500);
        let small = Settings { ring_slots: 64, ..settings(Mode::AfXdp) };
        let Some(mut opened) = open_or_skip(&small) else { return };
        send("gen0", &frames(1_000, 200));
        let mut seen = Vec::new();
        let losses = finish(&mut opened.sources, &mut seen);
        assert_eq!((seen.len(), losses.wire), (64, counter("mon0", "rx_packets")));
        assert_eq!(losses.dropped.ring_starved + losses.dropped.ring_full, losses.wire - 64);
    });
}

#[test]
fn every_queue_of_a_port_is_listened_to() {
    in_namespace("every_queue_of_a_port_is_listened_to", || {
        mirror_port(4, 1500);
        let Some(mut opened) = open_or_skip(&settings(Mode::AfXdp)) else { return };
        assert_eq!(opened.sources.len(), 4);
        let sent = frames(1_000, 200);
        send("gen0", &sent);
        let mut seen = Vec::new();
        collect(&mut opened.sources, sent.len(), &mut seen);
        let losses = finish(&mut opened.sources, &mut seen);
        assert_eq!((losses.wire, losses.dropped.total()), (1_000, 0));
        let mut expected = whole(&sent);
        seen.sort();
        expected.sort();
        assert!(seen == expected, "the same frames, in whatever order the queues gave them");
    });
}

#[test]
fn a_jumbo_port_attaches_and_its_long_frames_count_in_full() {
    in_namespace("a_jumbo_port_attaches_and_its_long_frames_count_in_full", || {
        mirror_port(1, 9000);
        let Some(mut opened) = open_or_skip(&settings(Mode::AfXdp)) else { return };
        let sent = frames(300, 9014);
        let mut seen = Vec::new();
        for part in sent.chunks(50) {
            send("gen0", part);
            let so_far = seen.len() + part.len();
            collect(&mut opened.sources, so_far, &mut seen);
        }
        finish(&mut opened.sources, &mut seen);
        assert_eq!(seen.len(), 300);
        for (sent, (bytes, wire_len)) in sent.iter().zip(&seen) {
            assert_eq!(sent.len(), *wire_len as usize);
            assert!(sent.starts_with(bytes) && bytes.len() >= sent.len().min(3_000), "{} of {}", bytes.len(), sent.len());
        }
    });
}

#[test]
fn a_driver_without_xdp_is_captured_through_generic_xdp() {
    in_namespace("a_driver_without_xdp_is_captured_through_generic_xdp", || {
        run("ip link set lo up");
        let loopback = Settings { interface: "lo".into(), ..settings(Mode::AfXdp) };
        let Some(mut opened) = open_or_skip(&loopback) else { return };
        assert_eq!(opened.in_force, InForce::AfXdpGeneric, "{}", opened.why);
        let sent = frames(500, 1514);
        send("lo", &sent);
        let mut seen = Vec::new();
        collect(&mut opened.sources, sent.len(), &mut seen);
        let losses = finish(&mut opened.sources, &mut seen);
        assert_eq!((losses.wire, losses.dropped.total()), (500, 0));
        assert!(seen == whole(&sent));
    });
}

#[test]
fn libpcap_delivers_every_frame_byte_for_byte_and_never_transmits() {
    in_namespace("libpcap_delivers_every_frame_byte_for_byte_and_never_transmits", || {
        mirror_port(1, 1500);
        let Some(mut opened) = open_or_skip(&settings(Mode::Packet)) else { return };
        assert_eq!((opened.in_force, opened.sources.len()), (InForce::Packet, 1));
        let sent = frames(3_000, 1514);
        let start = now();
        send("gen0", &sent);
        let mut seen = Vec::new();
        let source = &mut opened.sources[0];
        let stamps_are_of_now = |at: Timestamp| at >= start && at <= now();
        source.wait(Duration::from_secs(1)).expect("wait");
        source
            .drain(Timestamp::NONE, 1, |frames| {
                let [frame] = frames else { panic!("one was asked for") };
                assert!(stamps_are_of_now(frame.at), "{} by the kernel's clock", frame.at);
                seen.push((frame.bytes.to_vec(), frame.wire_len));
            })
            .expect("drain");
        collect(&mut opened.sources, sent.len(), &mut seen);
        let losses = finish(&mut opened.sources, &mut seen);
        assert!(seen == whole(&sent), "{} of 3000", seen.len());
        assert_eq!((losses.wire, losses.dropped.total()), (3_000, 0));
        assert_eq!(counter("mon0", "rx_packets"), losses.wire);
        assert_eq!(counter("mon0", "tx_packets"), 0, "a sensor sends nothing");
    });
}

#[test]
fn a_stalled_libpcap_reader_loses_packets_but_no_count() {
    in_namespace("a_stalled_libpcap_reader_loses_packets_but_no_count", || {
        mirror_port(1, 1500);
        let small = Settings { buffer_bytes: 1 << 20, ..settings(Mode::Packet) };
        let Some(mut opened) = open_or_skip(&small) else { return };
        send("gen0", &frames(5_000, 1514));
        let mut seen = Vec::new();
        let losses = finish(&mut opened.sources, &mut seen);
        assert_eq!(losses.wire, 5_000);
        assert!(losses.dropped.buffer_full > 0, "5,000 frames of 787 octets do not fit into 1 MiB: {losses:?}");
    });
}

#[test]
fn a_capture_that_is_stopped_in_full_flow_still_balances() {
    in_namespace("a_capture_that_is_stopped_in_full_flow_still_balances", || {
        mirror_port(1, 1500);
        for mode in [Mode::AfXdp, Mode::Packet] {
            let Some(mut opened) = open_or_skip(&settings(mode)) else { return };
            let sender = std::thread::spawn(|| send("gen0", &frames(60_000, 200)));
            let mut seen = Vec::new();
            collect(&mut opened.sources, 10_000, &mut seen);
            assert!(!sender.is_finished(), "the stop shall fall into the traffic");
            let losses = finish(&mut opened.sources, &mut seen);
            assert!((10_000..60_000).contains(&losses.wire), "{losses:?}");
            sender.join().expect("sender");
        }
    });
}

#[test]
fn an_interface_that_goes_away_ends_the_capture_and_one_that_goes_down_does_not() {
    in_namespace("an_interface_that_goes_away_ends_the_capture_and_one_that_goes_down_does_not", || {
        for mode in [Mode::AfXdp, Mode::Packet] {
            mirror_port(1, 1500);
            let Some(mut opened) = open_or_skip(&settings(mode)) else { return };
            run("ip link set mon0 down");
            let source = &mut opened.sources[0];
            source.wait(Duration::from_millis(10)).expect("down is not gone");
            run("ip link set mon0 up");
            let mut seen = Vec::new();
            let sent = frames(100, 200);
            send("gen0", &sent);
            collect(&mut opened.sources, 100, &mut seen);
            assert!(seen == whole(&sent), "{} of 100 after the link came back", seen.len());
            run("ip link del gen0");
            let gone = (0..100).find_map(|_| opened.sources[0].wait(Duration::from_millis(10)).err());
            assert_eq!(gone.expect("it is gone").kind, CaptureErrorKind::Gone);
        }
    });
}

#[test]
fn auto_falls_back_to_libpcap_and_says_why() {
    in_namespace("auto_falls_back_to_libpcap_and_says_why", || {
        mirror_port(1, 1500);
        let Some(_holder) = open_or_skip(&settings(Mode::AfXdp)) else { return };
        let error = open(&settings(Mode::AfXdp)).expect_err("the queue is taken");
        assert_eq!(error.kind, CaptureErrorKind::Busy, "{error}");
        let second = open(&settings(Mode::Auto)).expect("libpcap needs no queue");
        assert_eq!(second.in_force, InForce::Packet);
        assert!(second.why.starts_with("AF_XDP does not work here: "), "{}", second.why);
    });
}

#[test]
fn a_sensor_that_starts_again_at_once_gets_its_queues_back() {
    in_namespace("a_sensor_that_starts_again_at_once_gets_its_queues_back", || {
        mirror_port(1, 1500);
        for _ in 0..10 {
            let Some(opened) = open_or_skip(&settings(Mode::AfXdp)) else { return };
            drop(opened);
        }
    });
}

#[test]
fn what_cannot_be_captured_from_is_answered_with_one_sentence() {
    in_namespace("what_cannot_be_captured_from_is_answered_with_one_sentence", || {
        mirror_port(1, 1500);
        let error = open(&Settings { interface: "mon1".into(), ..Settings::default() }).expect_err("no such interface");
        assert_eq!(error.kind, CaptureErrorKind::UnknownInterface);
        assert_eq!(error.to_string(), "capture from mon1: there is no such interface; did you mean `mon0`?");
        run("ip link set mon0 down");
        let error = open(&settings(Mode::Auto)).expect_err("it is down");
        assert!(error.to_string().ends_with("ip link set mon0 up"), "{error}");
    });
}

#[test]
fn missing_capabilities_are_named() {
    const TEST: &str = "missing_capabilities_are_named";
    const WITHOUT: &str = "SPANWATCH_TEST_WITHOUT_CAPABILITIES";
    in_namespace(TEST, || {
        if std::env::var_os(WITHOUT).is_some() {
            for mode in [Mode::Auto, Mode::AfXdp, Mode::Packet] {
                let error = open(&settings(mode)).expect_err("no capabilities");
                assert_eq!(error.kind, CaptureErrorKind::NoPermission, "{error}");
                assert!(error.to_string().contains("NET_RAW"), "{error}");
            }
            return;
        }
        mirror_port(1, 1500);
        again_with(TEST, "-all", WITHOUT);
    });
}

#[test]
fn one_capability_is_enough_for_libpcap() {
    const TEST: &str = "one_capability_is_enough_for_libpcap";
    const WITH_ONE: &str = "SPANWATCH_TEST_WITH_ONE_CAPABILITY";
    in_namespace(TEST, || {
        if std::env::var_os(WITH_ONE).is_some() {
            let opened = open(&settings(Mode::Auto)).expect("NET_RAW suffices");
            assert_eq!(opened.in_force, InForce::Packet);
            assert!(opened.why.contains("grant the capabilities"), "{}", opened.why);
            return;
        }
        mirror_port(1, 1500);
        again_with(TEST, "-all,+net_raw", WITH_ONE);
    });
}

#[test]
fn four_capabilities_are_enough() {
    const TEST: &str = "four_capabilities_are_enough";
    const WITH_FOUR: &str = "SPANWATCH_TEST_WITH_FOUR_CAPABILITIES";
    in_namespace(TEST, || {
        if std::env::var_os(WITH_FOUR).is_some() {
            let opened = open(&settings(Mode::AfXdp)).expect("NET_ADMIN, NET_RAW, IPC_LOCK and BPF suffice");
            assert_eq!(opened.in_force, InForce::AfXdpCopy);
            return;
        }
        mirror_port(1, 1500);
        again_with(TEST, "-all,+net_admin,+net_raw,+ipc_lock,+bpf", WITH_FOUR);
    });
}

#[test]
fn a_low_limit_of_locked_memory_makes_smaller_rings_and_is_told() {
    const TEST: &str = "a_low_limit_of_locked_memory_makes_smaller_rings_and_is_told";
    const LIMITED: &str = "SPANWATCH_TEST_WITH_LITTLE_LOCKED_MEMORY";
    in_namespace(TEST, || {
        if std::env::var_os(LIMITED).is_some() {
            // again_with leaves 3 MiB; 1024 slots of 2048 octets are 2 MiB, 2048 would be 4.
            let opened = open(&settings(Mode::AfXdp)).expect("1024 slots fit");
            let says = opened.sources[0].describe();
            assert!(says.contains("1024 slots (of 4096 asked for; memory allows no more)"), "{says}");
            return;
        }
        mirror_port(1, 1500);
        again_with(TEST, "-all,+net_admin,+net_raw,+bpf", LIMITED);
    });
}

#[test]
fn packets_on_a_queue_that_came_later_are_counted_as_lost() {
    in_namespace("packets_on_a_queue_that_came_later_are_counted_as_lost", || {
        mirror_port(4, 1500);
        run("ethtool -L mon0 rx 1");
        let Some(mut opened) = open_or_skip(&settings(Mode::AfXdp)) else { return };
        assert_eq!(opened.sources.len(), 1);
        run("ethtool -L mon0 rx 4");
        send("gen0", &frames(1_000, 200));
        let mut seen = Vec::new();
        let losses = finish(&mut opened.sources, &mut seen);
        assert_eq!((losses.wire, losses.dropped.total()), (1_000, losses.dropped.no_socket));
        assert!(losses.dropped.no_socket > 0, "the sender's hash uses all queues: {losses:?}");
    });
}

/// Runs `test` once more in a process with these capabilities (as setpriv writes them), 3 MiB of lockable memory, and `mark` in
/// its environment.
fn again_with(test: &str, capabilities: &str, mark: &str) {
    let program = std::env::current_exe().expect("own path");
    let status = std::process::Command::new("prlimit")
        .args(["--memlock=3145728", "setpriv", &format!("--bounding-set={capabilities}"), "--inh-caps=-all"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(mark, "1")
        .status();
    match status {
        Ok(status) => assert!(status.success(), "see above"),
        Err(error) => skip(&format!("prlimit: {error}")),
    }
}

#[test]
fn the_remedies_of_the_doctor_make_a_port_healthy() {
    in_namespace("the_remedies_of_the_doctor_make_a_port_healthy", || {
        mirror_port(1, 1500);
        let Some(opened) = open_or_skip(&settings(Mode::Auto)) else { return };
        drop(opened);
        let find = |name| checks(&settings(Mode::Auto)).into_iter().find(|check| check.name == name).expect("a check");
        let offloads = find("offloads");
        assert_eq!((offloads.verdict, offloads.remedy.as_str()), (Verdict::Warn, "ethtool -K mon0 rxvlan off"));
        run(&offloads.remedy);
        for check in checks(&settings(Mode::Auto)) {
            // Whether the clock is synchronised is a matter of the machine.
            assert!(check.verdict == Verdict::Ok || check.name == "clock", "{}: {}; {}", check.name, check.says, check.remedy);
        }
        run("ip addr add 192.0.2.1/24 dev mon0");
        let state = find("interface");
        assert_eq!(state.verdict, Verdict::Warn);
        assert_eq!(state.remedy, "on a port that only receives mirrored traffic: ip addr flush dev mon0");
    });
}
