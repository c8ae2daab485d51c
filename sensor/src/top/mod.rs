//! `spanwatch-sensor top`: a running sensor in a terminal. It asks `/live` once a second and draws what it says.
//!
//! * [`client`] — one look at a sensor
//! * [`history`] — looks over a minute: rates and symptoms
//! * [`view`] — the screen: keys and looks in, a buffer out
//!
//! This file is the rind: terminal, threads and time.

pub mod client;
mod figures;
pub mod history;
mod pages;
pub mod view;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ratatui::Terminal;
use ratatui::backend::TermionBackend;
use ratatui::termion::event::Key;
use ratatui::termion::input::TermRead as _;
use ratatui::termion::raw::IntoRawMode as _;
use ratatui::termion::screen::IntoAlternateScreen as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::live_view::LiveView;
use history::History;
use view::{Asked, View};

/// Time between two looks.
const PACE: Duration = Duration::from_secs(1);
/// How long a change of the terminal's size may go unnoticed.
const REDRAW: Duration = Duration::from_millis(250);
/// Leaves the alternate screen and shows the cursor: what a panic must do before it can be read.
const RESTORE: &[u8] = b"\x1b[?1049l\x1b[?25h";

/// Shows the sensor whose `metrics.listen` is `address` until the person quits.
///
/// # Errors
/// There is no terminal, or it cannot be drawn on.
pub fn watch(address: &str) -> anyhow::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal to draw on; `spanwatch-sensor top --once` prints one snapshot as text");
    }
    let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    restore_on_panic();
    let result = run(View::new(address, has_colours), address);
    // The library shows the cursor when it lets go of the terminal, but not on every way out.
    let _ = io::stdout().write_all(RESTORE).and_then(|()| io::stdout().flush());
    result
}

/// Two looks a second apart, as plain text.
///
/// # Errors
/// The sensor cannot be reached.
pub fn once(address: &str) -> anyhow::Result<String> {
    let mut history = History::default();
    history.add(client::look(address)?);
    std::thread::sleep(PACE);
    history.add(client::look(address)?);
    Ok(pages::plain(&history))
}

enum Event {
    Look(Result<Box<LiveView>, String>),
    Press(Key),
    /// The terminal has gone away.
    Gone,
}

fn run(mut view: View, address: &str) -> anyhow::Result<()> {
    let screen = io::stdout().into_raw_mode().and_then(|raw| raw.into_alternate_screen()).context("take over the terminal")?;
    let mut terminal = Terminal::new(TermionBackend::new(screen)).context("take over the terminal")?;
    terminal.clear().context("draw on the terminal")?;
    let events = listen(address)?;
    loop {
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).context("draw on the terminal")?;
        match events.recv_timeout(REDRAW) {
            Ok(Event::Look(look)) => view.take(look.map(|look| *look)),
            Ok(Event::Press(key)) if view.press(key) == Asked::Quit => return Ok(()),
            Ok(Event::Press(_)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Three threads: one looks at the sensor, one reads the keyboard, one waits to be told to end. All end with the process.
fn listen(address: &str) -> anyhow::Result<mpsc::Receiver<Event>> {
    // A person who holds a key down waits for the screen, not the memory for the person.
    let (events, receiver) = mpsc::sync_channel(64);
    let (keys, ends, address) = (events.clone(), events.clone(), address.to_owned());
    let looking = move || {
        let mut goes_on = true;
        while goes_on {
            let look = client::look(&address).map(Box::new).map_err(|error| error.to_string());
            goes_on = events.send(Event::Look(look)).is_ok();
            std::thread::sleep(PACE);
        }
    };
    std::thread::Builder::new().name("look".to_owned()).spawn(looking).context("start a thread")?;
    let reading = move || {
        for key in io::stdin().keys().map_while(Result::ok) {
            if keys.send(Event::Press(key)).is_err() {
                return;
            }
        }
        let _ = keys.send(Event::Gone); // nobody listens any more when the view has ended anyway
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(reading).context("start a thread")?;
    let waiting = move || {
        // Without it the signals end the process at once, and the terminal stays as it is drawn on.
        if wait_for_end().is_ok() {
            let _ = ends.send(Event::Gone);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(waiting).context("start a thread")?;
    Ok(receiver)
}

/// Returns when somebody ends the process, or the connection that the terminal hangs on.
fn wait_for_end() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        Ok(())
    })
}

/// A panic is told on the screen where the person is, not on the one that vanishes.
fn restore_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = io::stdout().write_all(RESTORE).and_then(|()| io::stdout().flush());
        before(panic);
    }));
}
