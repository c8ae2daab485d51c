//! The program as a function: packets in, verdicts and counts out, run by the kernel without a network card.

use super::*;
use libbpf_rs::ProgramInput;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const ALL: Config = Config { queues: 1, keep_one_in: 1, pass_unclaimed: false };

/// Runs the program `repeat` times over a frame of `length` octets, on queue 0, where no socket listens.
fn run(config: Config, length: usize, repeat: u32) -> Option<(u32, Counters)> {
    let mut storage = MaybeUninit::uninit();
    let skeleton = match load_skeleton(&config, true, &mut storage) {
        Ok(skeleton) => skeleton,
        Err(error) if std::env::var_os("REQUIRE_PRIVILEGED").is_none_or(|value| value != "1") => {
            println!("skipped: the XDP program cannot be loaded here: {error}");
            return None;
        }
        Err(error) => panic!("REQUIRE_PRIVILEGED=1, and the XDP program cannot be loaded: {error}"),
    };
    let frame = vec![0x5a; length];
    let input = ProgramInput { data_in: Some(&frame), repeat, ..Default::default() };
    let output = skeleton.progs.capture_frags.test_run(input).expect("test_run");
    Some((output.return_value, read_counters(&skeleton.maps.counters, 0).expect("counters")))
}

#[test]
fn a_packet_without_a_socket_is_counted_and_dropped_on_a_span_port() {
    for length in [14, 60, 1514, 3000] {
        let Some((verdict, counters)) = run(ALL, length, 1) else { return };
        assert_eq!(verdict, XDP_DROP, "{length} octets");
        assert_eq!(counters, Counters { packets: 1, bytes: length as u64, no_socket: 1, ..Counters::default() });
    }
}

#[test]
fn a_packet_without_a_socket_passes_where_the_host_uses_the_interface() {
    let Some((verdict, counters)) = run(Config { pass_unclaimed: true, ..ALL }, 60, 1) else { return };
    assert_eq!(verdict, XDP_PASS);
    assert_eq!((counters.packets, counters.no_socket), (1, 1));
}

#[test]
fn shedding_keeps_about_one_in_n_and_counts_the_others() {
    let Some((_, counters)) = run(Config { keep_one_in: 4, ..ALL }, 60, 40_000) else { return };
    assert_eq!(counters.packets, 40_000);
    assert_eq!(counters.packets, counters.shed + counters.no_socket + counters.redirected);
    // 10,000 expected; the standard deviation of the binomial is 87, so this fails once in a billion runs at most.
    assert!((9_400..=10_600).contains(&counters.no_socket), "{counters:?}");
}

#[test]
fn the_rate_changes_while_the_program_runs_and_never_goes_below_the_settings() {
    let mut storage = MaybeUninit::uninit();
    let config = Config { keep_one_in: 2, ..ALL };
    let Ok(skeleton) = load_skeleton(&config, true, &mut storage) else {
        assert!(std::env::var_os("REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"), "the XDP program cannot be loaded");
        return println!("skipped: the XDP program cannot be loaded here");
    };
    let mut before = Counters::default();
    let mut kept_of_40_000 = |wish: Option<u32>| {
        if let Some(one_in) = wish {
            set_sampling(&skeleton.maps.sampling, 0, one_in).expect("queue 0 is there");
        }
        let input = ProgramInput { data_in: Some(&[0x5a; 60]), repeat: 40_000, ..Default::default() };
        skeleton.progs.capture_frags.test_run(input).expect("test_run");
        let after = read_counters(&skeleton.maps.counters, 0).expect("counters");
        let kept = after.no_socket - before.no_socket;
        assert_eq!(after.shed - before.shed, 40_000 - kept, "what is not kept is counted as shed");
        before = after;
        kept
    };
    // Six standard deviations of the binomial either way: √(40,000 p (1 − p)) is 100, 48.4 and 6.2.
    let cases =
        [(None, 20_000, 600), (Some(16), 2_500, 291), (Some(1024), 39, 38), (Some(1), 20_000, 600), (Some(0), 20_000, 600)];
    for (wish, expected, margin) in cases {
        let kept = kept_of_40_000(wish);
        assert!(kept.abs_diff(expected) <= margin, "{kept} kept instead of {expected} after {wish:?}");
    }
    assert!(set_sampling(&skeleton.maps.sampling, 1, 4).is_ok(), "the entry for queues beyond");
    assert!(set_sampling(&skeleton.maps.sampling, 2, 4).is_err());
}

#[test]
fn a_keep_of_zero_is_not_a_division_by_zero() {
    let Some((_, counters)) = run(Config { keep_one_in: 0, ..ALL }, 60, 10) else { return };
    assert_eq!((counters.packets, counters.shed), (10, 0));
}

#[test]
fn a_loaded_program_tells_its_queues_apart() {
    let Ok(program) = Program::load(&Config { queues: 4, ..ALL }) else {
        println!("skipped: the XDP program cannot be loaded here");
        return;
    };
    assert_eq!(program.counters(4).expect("the entry for queues beyond"), Counters::default());
    assert!(program.counters(5).is_err());
}
