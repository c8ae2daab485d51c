use std::fmt::Write as _;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::health::Health;
use spanwatch_common::ledger::{Dropped, Flows, Ignored, Ledger};

use super::*;
use crate::live_view::Talker;
use crate::uplink::Link;

/// A look, so many seconds after the start, at a port that sees 12,000 packets of 500 octets a second, a third of them twice.
fn look(secs: u64) -> LiveView {
    let packets = secs * 12_000;
    let queue = Ledger { delivered: packets, flows: Flows { live: 4_321, evicted: 0, ..Flows::default() }, ..Ledger::default() };
    let mut view = LiveView {
        mode: "af_xdp_zero_copy".into(),
        uptime_millis: secs * 1000,
        ledger: Ledger {
            wire: packets + 12,
            delivered: packets,
            dropped: Dropped { ring_full: 12, ..Dropped::default() },
            metered: packets - packets / 3,
            ignored: Ignored { duplicate_copy: packets / 3, ..Ignored::default() },
            exported: packets / 2,
            live: packets - packets / 3 - packets / 2,
            acknowledged: packets / 2,
            flows: Flows { observed: secs * 40, live: 4_321, ..Flows::default() },
            ..Ledger::default()
        },
        queues: vec![queue],
        link: Link { connected: true, connects: 1, queue_bytes: 2048, ..Link::default() },
        talkers: (1..=40)
            .map(|n| Talker {
                source: format!("192.0.2.{n}:40000"),
                destination: "198.51.100.7:502".into(),
                protocol: "TCP".into(),
                octets_per_sec: 1e6 / f64::from(n),
                packets_per_sec: 2e3 / f64::from(n),
                ..Talker::default()
            })
            .collect(),
        ..LiveView::default()
    };
    view.port.interface = "eno2".into();
    view.port.health = Health {
        packets,
        octets: packets * 500,
        group_packets: packets / 50,
        sliced: packets / 20,
        examined: packets,
        duplicate_copy: packets / 3,
        deduplicating: 1,
        tcp_flows: secs * 10,
        tcp_flows_one_way: secs * 4,
        tcp_octets: packets * 300,
        dropped: 12,
        ..Health::default()
    };
    view.port.health.encapsulations[Encapsulation::Vlan as usize] = packets;
    view.port.health.encapsulations[Encapsulation::Erspan2 as usize] = packets / 2;
    view.encapsulations = LiveView::named(&view.port.health.encapsulations);
    view
}

fn after_a_minute() -> View {
    let mut view = View::new("127.0.0.1:9477", true);
    for secs in 3_600..=3_660 {
        view.take(Ok(look(secs)));
    }
    view
}

fn screen_of(view: &mut View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
    terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).expect("a screen");
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if std::env::var_os("SHOW_SCREENS").is_some() {
        println!("{text}");
    }
    text
}

fn screen(view: &mut View) -> String {
    screen_of(view, 80, 24)
}

#[test]
fn the_overview_has_rates_account_symptoms_and_encapsulations() {
    let text = screen(&mut after_a_minute());
    let rows = [
        "eno2  af_xdp_zero_copy  up 1 h 1 min",
        "packets        12.0 k",
        "bits           48.0 M",
        "new flows          40",
        "on the wire               43,920,012",
        "in the table               7,320,000",
        "ended early                        0",
        "- dropped                         12",
        "! Packets come twice",
        "! Packets come cut short",
        "came twice    33.3 %, removed",
        "vlan 100.0 %, erspan2 50.0 %",
        "collector: connected, 2.05 k bytes wait",
    ];
    for row in rows {
        assert!(text.contains(row), "{row} is missing:\n{text}");
    }
}

#[test]
fn the_mirror_page_says_what_was_measured_and_what_to_do() {
    let mut view = after_a_minute();
    view.press(Key::Char('2'));
    let text = screen(&mut view);
    assert!(text.contains("3 things are wrong, judged by the last 1 min 0 s."), "{text}");
    assert!(
        text.contains("33 % of 720,000 packets compared came twice (240,000 identical); the\n   second copies are removed."),
        "{text}"
    );
    assert!(text.contains("-> Mirror one direction only (`rx`) of the VLAN or of its ports"), "{text}");
    view.press(Key::End);
    let end = screen(&mut view);
    assert!(end.contains("erspan2") && end.contains("21,960,000"), "the last lines can be reached:\n{end}");
}

#[test]
fn talkers_scroll_to_the_last_and_no_further() {
    let mut view = after_a_minute();
    view.press(Key::Char('3'));
    assert!(screen(&mut view).contains("192.0.2.1:40000 > 198.51.100.7:502"));
    for _ in 0..1_000 {
        view.press(Key::Down);
    }
    let text = screen(&mut view);
    assert!(text.contains("192.0.2.40:40000") && text.contains("192.0.2.22:40000"), "a full page:\n{text}");
    view.press(Key::Up);
    assert!(screen(&mut view).contains("192.0.2.21:40000"), "one line up at once");
}

#[test]
fn queues_and_every_count_that_is_not_zero_have_a_page() {
    let mut view = after_a_minute();
    view.press(Key::BackTab);
    let text = screen(&mut view);
    assert!(text.contains(" 0                           43,920,000           0           0    4,321       0"), "{text}");
    assert!(text.contains("dropped.ring_full                                 12"), "{text}");
    assert!(!text.contains("dropped.shed"), "{text}");
}

#[test]
fn a_sensor_that_goes_away_leaves_its_last_screen_and_the_reason() {
    let mut view = View::new("127.0.0.1:9477", true);
    assert!(screen(&mut view).contains("Asking the sensor at 127.0.0.1:9477"));
    view.take(Err("no sensor answers at 127.0.0.1:9477: Connection refused; is it running?".into()));
    assert!(screen(&mut view).contains("Connection refused; is it running?"));
    view.take(Ok(look(3_600)));
    view.take(Err("no sensor answers".into()));
    let text = screen(&mut view);
    assert!(text.contains("Frozen: no sensor answers") && text.contains("on the wire"), "{text}");
}

#[test]
fn a_pause_holds_the_screen_and_help_covers_it_until_a_key() {
    let mut view = after_a_minute();
    view.press(Key::Char('p'));
    let before = screen(&mut view);
    view.take(Ok(look(9_999)));
    assert_eq!(screen(&mut view), before);
    assert!(before.contains("Paused. p goes on."));
    view.press(Key::Char('?'));
    assert!(screen(&mut view).contains("another page"));
    assert_eq!(view.press(Key::Char('q')), Asked::Draw, "closes the help only");
    assert_eq!(view.press(Key::Char('q')), Asked::Quit);
    assert_eq!(view.press(Key::Ctrl('c')), Asked::Quit);
}

#[test]
fn without_colours_no_cell_has_one() {
    let mut view = View::new("127.0.0.1:9477", false);
    view.take(Ok(look(3_600)));
    for page in '1'..='4' {
        view.press(Key::Char(page));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal in memory");
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).expect("a screen");
        assert!(terminal.backend().buffer().content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    }
}

#[test]
fn every_page_fits_every_size_without_a_panic() {
    let mut view = after_a_minute();
    for page in '1'..='4' {
        view.press(Key::Char(page));
        screen_of(&mut view, 1, 1);
        for (width, height) in [(20, 5), (79, 24), (80, 23), (80, 24), (132, 43), (250, 70)] {
            let text = screen_of(&mut view, width, height);
            assert_eq!(text.contains("too small"), width < 80 || height < 24, "{width} x {height}\n{text}");
        }
    }
}
