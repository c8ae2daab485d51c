//! What the terminal shows: the state of `top` and how it is drawn into a buffer. Pure: looks and keys go in, a screen comes out.
//!
//! Nothing is told by colour alone, and nothing needs more than the sixteen colours of any terminal.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::termion::event::Key;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Widget};

use super::figures::{short, span, wrapped};
use super::history::History;
use super::pages::{self, Sheet};
use crate::live_view::LiveView;

/// The smallest terminal that everything fits on.
pub const SIZE_MIN: (u16, u16) = (80, 24);

/// One of the screens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Page {
    /// Rates, the account, and a word about the mirror.
    #[default]
    Overview,
    /// What is wrong with the mirror and what to do; what it is judged by; encapsulations.
    Mirror,
    /// The flows with most octets.
    Talkers,
    /// Each receive queue, and every count that is not zero.
    Queues,
}

impl Page {
    /// Every page, in the order of the keys 1 to 4.
    pub const ALL: [Self; 4] = [Self::Overview, Self::Mirror, Self::Talkers, Self::Queues];

    const fn title(self) -> &'static str {
        match self {
            Self::Overview => "1 Overview",
            Self::Mirror => "2 Mirror",
            Self::Talkers => "3 Talkers",
            Self::Queues => "4 Queues",
        }
    }
}

/// What a key press asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Another screen.
    Draw,
    /// The end.
    Quit,
}

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Styles {
    pub(super) heading: Style,
    pub(super) quiet: Style,
    pub(super) good: Style,
    pub(super) bad: Style,
    pub(super) curve: Style,
    chosen: Style,
}

impl Styles {
    fn new(has_colours: bool) -> Self {
        let plain = Style::new();
        let coloured = |colour| if has_colours { plain.fg(colour) } else { plain };
        Self {
            heading: plain.add_modifier(Modifier::BOLD),
            quiet: if has_colours { plain.fg(Color::DarkGray) } else { plain },
            good: coloured(Color::Green),
            bad: coloured(Color::Yellow).add_modifier(Modifier::BOLD),
            curve: coloured(Color::Cyan),
            chosen: plain.add_modifier(Modifier::REVERSED),
        }
    }
}

/// The state of `top`.
#[derive(Debug)]
pub struct View {
    address: String,
    history: History,
    trouble: Option<String>,
    page: Page,
    scroll: usize,
    is_paused: bool,
    shows_help: bool,
    styles: Styles,
}

impl View {
    /// A view of the sensor at `address` before the first look.
    pub fn new(address: impl Into<String>, has_colours: bool) -> Self {
        Self {
            address: address.into(),
            history: History::default(),
            trouble: None,
            page: Page::default(),
            scroll: 0,
            is_paused: false,
            shows_help: false,
            styles: Styles::new(has_colours),
        }
    }

    /// Takes a look, or why there is none. Nothing changes while the view is paused.
    pub fn take(&mut self, look: Result<LiveView, String>) {
        if self.is_paused {
            return;
        }
        match look {
            Ok(look) => {
                self.trouble = None;
                self.history.add(look);
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Takes a key press.
    pub fn press(&mut self, key: Key) -> Asked {
        if self.shows_help && !matches!(key, Key::Ctrl('c')) {
            self.shows_help = false; // any key closes it
            return Asked::Draw;
        }
        let number = Page::ALL.iter().position(|page| *page == self.page).unwrap_or(0);
        match key {
            Key::Char('q') | Key::Ctrl('c') | Key::Esc => return Asked::Quit,
            Key::Char('?' | 'h') => self.shows_help = true,
            Key::Char('p' | ' ') => self.is_paused = !self.is_paused,
            Key::Char('\t') | Key::Right => self.turn_to(number + 1),
            Key::BackTab | Key::Left => self.turn_to(number + Page::ALL.len() - 1),
            Key::Char(digit @ '1'..='4') => self.turn_to(digit as usize - '1' as usize),
            Key::Char('j') | Key::Down => self.scroll += 1,
            Key::Char('k') | Key::Up => self.scroll = self.scroll.saturating_sub(1),
            Key::PageDown => self.scroll += 10,
            Key::PageUp => self.scroll = self.scroll.saturating_sub(10),
            Key::Home | Key::Char('g') => self.scroll = 0,
            Key::End | Key::Char('G') => self.scroll = usize::MAX,
            _ => {}
        }
        Asked::Draw
    }

    fn turn_to(&mut self, page: usize) {
        self.page = Page::ALL[page % Page::ALL.len()];
        self.scroll = 0;
    }

    /// Draws the screen.
    pub fn draw(&mut self, area: Rect, buffer: &mut Buffer) {
        if area.width < SIZE_MIN.0 || area.height < SIZE_MIN.1 {
            let text = format!("{} x {} is too small; 80 x 24 shows all.", area.width, area.height);
            let lines: Vec<Line<'_>> = wrapped(&text, usize::from(area.width)).into_iter().map(Line::from).collect();
            return Paragraph::new(lines).render(area, buffer);
        }
        let [title, tabs, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
                .areas(area);
        self.title().render(title, buffer);
        self.tabs().render(tabs, buffer);
        match self.history.latest() {
            None => {
                let text = self.trouble.clone().unwrap_or_else(|| format!("Asking the sensor at {} ...", self.address));
                let lines: Vec<_> =
                    wrapped(&text, usize::from(body.width) - 4).into_iter().map(|line| Line::from(format!("  {line}"))).collect();
                Paragraph::new([vec![Line::default()], lines].concat()).render(body, buffer);
            }
            Some(look) => match self.page {
                Page::Overview => pages::overview(&self.history, look, &self.styles, body, buffer),
                Page::Mirror => self.scrolled(pages::mirror(&self.history, look, &self.styles, body.width), body, buffer),
                Page::Talkers => self.scrolled(pages::talkers(look, &self.styles, body.width), body, buffer),
                Page::Queues => self.scrolled(pages::queues(look, &self.styles), body, buffer),
            },
        }
        self.foot().render(foot, buffer);
        if self.shows_help {
            help(area, buffer);
        }
    }

    /// Draws the heads of a sheet, and as many of its lines as fit, from where the person has scrolled to.
    fn scrolled(&mut self, sheet: Sheet, area: Rect, buffer: &mut Buffer) {
        let Sheet { heads, lines } = sheet;
        let [top, rest] = Layout::vertical([Constraint::Length(heads.len() as u16), Constraint::Fill(1)]).areas(area);
        Paragraph::new(heads).render(top, buffer);
        let room = usize::from(rest.height);
        let hidden = lines.len().saturating_sub(room);
        self.scroll = self.scroll.min(hidden);
        let more = hidden - self.scroll;
        let mut shown: Vec<Line<'_>> = lines.into_iter().skip(self.scroll).take(room).collect();
        if more > 0
            && let Some(last) = shown.last_mut()
        {
            *last = Line::styled(format!(" ... {} more lines: arrow down", more + 1), self.styles.quiet);
        }
        Paragraph::new(shown).render(rest, buffer);
    }

    fn title(&self) -> Line<'_> {
        let name = Span::styled(" spanwatch-sensor ", self.styles.heading);
        match self.history.latest() {
            Some(look) => {
                let up = span(Duration::from_millis(look.uptime_millis));
                Line::from(vec![name, Span::raw(format!(" {}  {}  up {up}", look.port.interface, look.mode))])
            }
            None => Line::from(vec![name, Span::raw(format!(" {}", self.address))]),
        }
    }

    fn tabs(&self) -> Line<'_> {
        let mut spans = vec![Span::raw(" ")];
        for page in Page::ALL {
            let style = if page == self.page { self.styles.chosen } else { Style::new() };
            spans.push(Span::styled(format!(" {} ", page.title()), style));
            spans.push(Span::raw(" "));
        }
        spans.push(Span::styled("     ? help   p pause   q quit", self.styles.quiet));
        Line::from(spans)
    }

    fn foot(&self) -> Line<'_> {
        if self.is_paused {
            return Line::styled(" Paused. p goes on.", self.styles.bad);
        }
        let Some(look) = self.history.latest() else { return Line::default() };
        match (&self.trouble, &look.link) {
            (Some(trouble), _) => Line::styled(format!(" Frozen: {trouble}"), self.styles.bad),
            (None, link) if link.connected => {
                Line::styled(format!(" collector: connected, {} bytes wait", short(link.queue_bytes as f64)), self.styles.good)
            }
            (None, link) => {
                let trouble = link.trouble.as_deref().unwrap_or("connecting");
                let waits = short(link.queue_bytes as f64);
                Line::styled(format!(" collector: {waits} bytes wait; {trouble}"), self.styles.bad)
            }
        }
    }
}

const HELP: [(&str, &str); 8] = [
    ("1 2 3 4, tab, arrows", "another page"),
    ("j k, arrows, page keys", "scroll"),
    ("g G, home end", "to the first, to the last line"),
    ("p, space", "pause; the screen stands still"),
    ("? h", "this help; any key closes it"),
    ("q, escape, Ctrl-C", "quit"),
    ("", ""),
    ("NO_COLOR=1", "in the environment: no colours"),
];

fn help(area: Rect, buffer: &mut Buffer) {
    let lines: Vec<Line<'_>> = HELP.iter().map(|(keys, does)| Line::from(format!(" {keys:<24}{does}"))).collect();
    let [middle] = Layout::horizontal([Constraint::Length(60)]).flex(Flex::Center).areas(area);
    let [middle] = Layout::vertical([Constraint::Length(HELP.len() as u16 + 2)]).flex(Flex::Center).areas(middle);
    Clear.render(middle, buffer);
    Paragraph::new(lines).block(Block::bordered().title(" Keys ")).render(middle, buffer);
}

#[cfg(test)]
mod tests;
