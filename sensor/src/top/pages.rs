//! The pages of [`view`](super::view), drawn or written line by line.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, Widget};
use spanwatch_common::health::judge::grouped;
use spanwatch_common::health::{Health, Symptom};
use spanwatch_common::ledger::Ledger;

use super::figures::{share, short, span, wrapped};
use super::history::{History, Rates};
use super::view::Styles;
use crate::live_view::{LiveView, PortView};

/// A page that can be scrolled.
pub(super) struct Sheet {
    /// Lines that always stand at the top.
    pub(super) heads: Vec<Line<'static>>,
    /// All others.
    pub(super) lines: Vec<Line<'static>>,
}

/// Kinds of encapsulation that have a place on the overview.
const KINDS_MAX: usize = 5;

/// Rates with their curves, the account, a word about the mirror, what was around the packets.
pub(super) fn overview(history: &History, look: &LiveView, styles: &Styles, area: Rect, buffer: &mut Buffer) {
    let [rates, middle, kinds] =
        Layout::vertical([Constraint::Length(6), Constraint::Fill(1), Constraint::Length(3)]).areas(area);
    draw_rates(history, styles, rates, buffer);
    let [account, mirror] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(middle);
    Paragraph::new(account_lines(look, styles))
        .block(Block::bordered().title(" Packets since the start "))
        .render(account, buffer);
    let (judged, over) = history.judged();
    let title = format!(" Mirror, last {} ", span(over));
    Paragraph::new(mirror_summary(&judged, &history.symptoms(), styles))
        .block(Block::bordered().title(title))
        .render(mirror, buffer);
    Paragraph::new(kinds_line(look)).block(Block::bordered().title(" Around the packets ")).render(kinds, buffer);
}

fn draw_rates(history: &History, styles: &Styles, area: Rect, buffer: &mut Buffer) {
    let block = Block::bordered().title(" Per second ");
    let inner = block.inner(area);
    block.render(area, buffer);
    let rates = history.rates();
    let rows: [(&str, String, fn(&Rates) -> f64); 4] = [
        ("packets", short(rates.packets), |rates| rates.packets),
        ("bits", short(rates.bits), |rates| rates.bits),
        ("new flows", short(rates.flows), |rates| rates.flows),
        ("lost packets", short(rates.dropped), |rates| rates.dropped),
    ];
    let lines = Layout::vertical([Constraint::Length(1); 4]).split(inner);
    for ((name, value, pick), line) in rows.into_iter().zip(lines.iter()) {
        let [figures, curve] = Layout::horizontal([Constraint::Length(25), Constraint::Fill(1)]).areas(*line);
        let style = if name == "lost packets" && rates.dropped > 0.0 { styles.bad } else { styles.heading };
        Line::from(vec![Span::raw(format!(" {name:<13}")), Span::styled(format!("{value:>8}"), style)]).render(figures, buffer);
        // The newest stands at the right edge.
        let width = usize::from(curve.width);
        let mut points: Vec<u64> = history.curve().rev().take(width).map(|rates| pick(rates).round() as u64).collect();
        points.resize(width, 0);
        points.reverse();
        Sparkline::default().data(points).style(styles.curve).render(curve, buffer);
    }
}

fn account_lines(look: &LiveView, styles: &Styles) -> Vec<Line<'static>> {
    let ledger = &look.ledger;
    let (dropped, ignored) = (ledger.dropped.total(), ledger.ignored.total());
    let row = |name: &str, value: u64, is_bad: bool| {
        let style = if is_bad { styles.bad } else { ratatui::style::Style::new() };
        Line::styled(format!(" {name:<16}{:>20}", grouped(value)), style)
    };
    vec![
        row("on the wire", ledger.wire, false),
        row("- dropped", dropped, dropped > 0),
        row("- ignored", ignored, false),
        row("= metered", ledger.metered, false),
        row("in the table", ledger.live, false),
        row("waiting", ledger.queued, false),
        row("acknowledged", ledger.acknowledged, false),
        row("not sent", ledger.not_sent, ledger.not_sent > 0),
        row("live flows", ledger.flows.live, false),
        row("ended early", ledger.flows.evicted, ledger.flows.evicted > 0),
    ]
}

fn mirror_summary(judged: &Health, symptoms: &[Symptom], styles: &Styles) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = match symptoms {
        [] => vec![Line::styled(" fine, as far as can be told", styles.good)],
        symptoms => {
            symptoms.iter().take(4).map(|symptom| Line::styled(format!(" ! {}", symptom.kind.title()), styles.bad)).collect()
        }
    };
    if !symptoms.is_empty() {
        lines.push(Line::styled("   what to do: press 2", styles.quiet));
    }
    lines.push(Line::default());
    let removed = if judged.deduplicating > 0 { ", removed" } else { "" };
    lines.extend(
        [
            ("came twice", share(judged.duplicates(), judged.examined) + removed),
            ("TCP one-way", share(judged.tcp_flows_one_way, judged.tcp_flows)),
            ("TCP missed", share(judged.missed_octets, judged.tcp_octets + judged.missed_octets)),
            ("cut short", share(judged.sliced, judged.packets)),
            ("to groups", share(judged.group_packets, judged.packets)),
        ]
        .into_iter()
        .map(|(name, value)| Line::from(format!(" {name:<14}{value}"))),
    );
    lines
}

fn kinds_line(look: &LiveView) -> Line<'static> {
    if look.encapsulations.is_empty() {
        return Line::from(" nothing: every packet came plain");
    }
    let mut kinds: Vec<_> = look.encapsulations.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown: Vec<String> = kinds
        .iter()
        .take(KINDS_MAX)
        .map(|(name, count)| format!("{name} {}", share(**count, look.port.health.packets)))
        .collect();
    let rest = if kinds.len() > KINDS_MAX { ", ..." } else { "" };
    Line::from(format!(" {}{rest}", shown.join(", ")))
}

/// Each symptom with what was measured and what to do, then every figure.
pub(super) fn mirror(history: &History, look: &LiveView, styles: &Styles, width: u16) -> Sheet {
    let (judged, over) = history.judged();
    let symptoms = history.symptoms();
    let heads = vec![
        Line::default(),
        match symptoms.len() {
            0 => Line::styled(format!(" Nothing is wrong with the mirror, judged by the last {}.", span(over)), styles.good),
            1 => Line::styled(format!(" One thing is wrong, judged by the last {}.", span(over)), styles.bad),
            n => Line::styled(format!(" {n} things are wrong, judged by the last {}.", span(over)), styles.bad),
        },
        Line::default(),
    ];
    let room = usize::from(width).saturating_sub(6);
    let mut lines = Vec::new();
    for symptom in &symptoms {
        lines.push(Line::styled(format!(" ! {}", symptom.kind.title()), styles.bad));
        lines.extend(wrapped(&symptom.says, room).into_iter().map(|line| Line::from(format!("   {line}"))));
        for (n, line) in wrapped(&symptom.advice, room - 3).into_iter().enumerate() {
            lines.push(Line::styled(format!("   {} {line}", if n == 0 { "->" } else { "  " }), styles.heading));
        }
        lines.push(Line::default());
    }
    lines.extend(figures(&judged, styles));
    if !look.encapsulations.is_empty() {
        lines.push(Line::default());
        lines.push(Line::styled(" Around the packets, since the start", styles.heading));
        let packets = look.port.health.packets;
        let row = |(name, count): (&String, &u64)| {
            Line::from(format!(" {name:<28}{:>16}{:>10}", grouped(*count), share(*count, packets)))
        };
        lines.extend(look.encapsulations.iter().map(row));
    }
    Sheet { heads, lines }
}

/// What the mirror is judged by: a line each.
fn figures(judged: &Health, styles: &Styles) -> Vec<Line<'static>> {
    let row = |name: &str, count: u64, of: u64| Line::from(format!(" {name:<28}{:>16}{:>10}", grouped(count), share(count, of)));
    let judged_tcp = judged.tcp_octets + judged.missed_octets;
    vec![
        Line::styled(format!(" {:<28}{:>16}{:>10}", "Judged by", "count", "share"), styles.heading),
        row("packets", judged.packets, judged.packets),
        row("to group addresses", judged.group_packets, judged.packets),
        row("cut short", judged.sliced, judged.packets),
        row("in unknown encapsulation", judged.unknown_encapsulation, judged.packets),
        row("lost before the sensor", judged.dropped, judged.packets + judged.dropped),
        row("compared with the last ones", judged.examined, judged.packets),
        row("- identical copies", judged.duplicate_copy, judged.examined),
        row("- copies behind a router", judged.duplicate_routed, judged.examined),
        row("- HSR and PRP twins", judged.duplicate_redundant, judged.examined),
        row("TCP flows", judged.tcp_flows, judged.tcp_flows),
        row("- that showed one side only", judged.tcp_flows_one_way, judged.tcp_flows),
        row("TCP octets", judged.tcp_octets, judged_tcp),
        row("- acknowledged, never seen", judged.missed_octets, judged_tcp),
        row("ERSPAN packets", judged.erspan_packets, judged.erspan_packets + judged.erspan_gaps),
        row("- missing from the sequence", judged.erspan_gaps, judged.erspan_packets + judged.erspan_gaps),
    ]
}

/// The flows with most octets.
pub(super) fn talkers(look: &LiveView, styles: &Styles, width: u16) -> Sheet {
    let ends = usize::from(width).saturating_sub(34);
    let head = format!(" {:<ends$} {:<10} {:>9} {:>10}", "flow", "protocol", "bits/s", "packets/s");
    let lines = look
        .talkers
        .iter()
        .map(|talker| {
            let flow = cut(&format!("{} > {}", talker.source, talker.destination), ends);
            let (bits, packets) = (short(8.0 * talker.octets_per_sec), short(talker.packets_per_sec));
            Line::from(format!(" {flow:<ends$} {:<10} {bits:>9} {packets:>10}", cut(&talker.protocol, 10)))
        })
        .collect();
    let mut heads = vec![Line::default(), Line::styled(head, styles.heading)];
    if look.talkers.is_empty() {
        heads.push(Line::styled(" None yet; the flows are gathered within two seconds of being watched.", styles.quiet));
    }
    Sheet { heads, lines }
}

/// The first characters of a text, with a sign that there are more.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Each receive queue of each port, then every count of the ledger that is not zero.
pub(super) fn queues(look: &LiveView, styles: &Styles) -> Sheet {
    let head = format!(" {:<22}{:>16}{:>12}{:>12}{:>9}{:>8}", "queue", "delivered", "starved", "ring full", "flows", "ended");
    let heads = vec![Line::default(), Line::styled(head, styles.heading)];
    let several = look.ports.len() > 1;
    let names = look.ports.iter().flat_map(|view| (0..view.queues).map(|queue| format!("{} {queue}", view.port.interface)));
    let mut names = names.filter(|_| several);
    let line = |(number, queue): (usize, &Ledger)| queue_line(&names.next().unwrap_or_else(|| number.to_string()), queue);
    let mut lines: Vec<Line<'static>> = look.queues.iter().enumerate().map(line).collect();
    if several {
        lines.push(Line::default());
        let port = |view: &PortView| {
            let packets = grouped(view.port.health.packets);
            Line::from(format!(" {:<16}{:<18}{packets:>20} packets", view.port.interface, view.mode))
        };
        lines.extend(look.ports.iter().map(port));
    }
    lines.push(Line::default());
    lines.push(Line::styled(" Every count that is not zero, all queues", styles.heading));
    let counts = look.ledger.counts();
    let counted = counts.iter().filter(|(_, count)| *count > 0);
    lines.extend(counted.map(|(name, count)| Line::from(format!(" {name:<32}{:>20}", grouped(*count)))));
    Sheet { heads, lines }
}

fn queue_line(name: &str, queue: &Ledger) -> Line<'static> {
    let Ledger { delivered, dropped, flows, .. } = queue;
    let [starved, full] = [dropped.ring_starved, dropped.ring_full].map(grouped);
    let (live, ended) = (grouped(flows.live), grouped(flows.evicted));
    Line::from(format!(" {name:<22}{:>16}{starved:>12}{full:>12}{live:>9}{ended:>8}", grouped(*delivered)))
}

/// One snapshot as plain text, for scripts and for terminals that cannot be drawn on.
pub(super) fn plain(history: &History) -> String {
    use std::fmt::Write as _;
    let Some(look) = history.latest() else { return String::new() };
    let mut text = String::new();
    let rates = history.rates();
    let ledger = &look.ledger;
    let (judged, over) = history.judged();
    let up = span(Duration::from_millis(look.uptime_millis));
    let _ = writeln!(text, "{} with {}, up {up}", look.port.interface, look.mode);
    for PortView { mode, queues, port, .. } in look.ports.iter().filter(|_| look.ports.len() > 1) {
        let packets = port.health.packets;
        let _ =
            writeln!(text, "port {}: {} with {mode}, {queues} queues, {packets} packets", port.observation_point, port.interface);
    }
    let _ = writeln!(
        text,
        "per second: {} packets, {} bits, {} new flows, {} lost packets",
        short(rates.packets),
        short(rates.bits),
        short(rates.flows),
        short(rates.dropped)
    );
    let _ = writeln!(
        text,
        "packets: {} on the wire, {} dropped, {} ignored, {} metered, {} acknowledged, {} waiting, {} not sent",
        ledger.wire,
        ledger.dropped.total(),
        ledger.ignored.total(),
        ledger.metered,
        ledger.acknowledged,
        ledger.queued,
        ledger.not_sent
    );
    let _ = writeln!(text, "flows: {} live, {} ended early", ledger.flows.live, ledger.flows.evicted);
    let link = match (&look.link.trouble, look.link.connected) {
        (_, true) => "connected".to_owned(),
        (Some(trouble), false) => trouble.clone(),
        (None, false) => "connecting".to_owned(),
    };
    let _ = writeln!(text, "collector: {link}");
    for (name, count) in &look.encapsulations {
        let _ = writeln!(text, "around: {name} {count} packets, {}", share(*count, look.port.health.packets));
    }
    for talker in &look.talkers {
        let (bits, packets) = (short(8.0 * talker.octets_per_sec), short(talker.packets_per_sec));
        let _ = writeln!(
            text,
            "talker: {} > {} {}, {bits} bits/s, {packets} packets/s",
            talker.source, talker.destination, talker.protocol
        );
    }
    let symptoms = history.symptoms();
    if symptoms.is_empty() {
        let _ = writeln!(text, "mirror: fine, judged by {} packets in {}", judged.packets, span(over));
    }
    for Symptom { kind, says, advice, .. } in symptoms {
        let _ = writeln!(text, "mirror: {}: {says}\n        -> {advice}", kind.name());
    }
    // What a sensor says of itself must not steer the terminal.
    text.retain(|character| character == '\n' || !character.is_control());
    text
}
