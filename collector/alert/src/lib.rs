//! Alerts: findings merged into what a person sees, with a life cycle.
//!
//! Findings go in at one end of a [`Desk`], lines come out at the other: for the alert file all of them, for people those that are not
//! [quiet](Alert::is_quiet). Everything between is a function of findings and `now`. In the order in which a finding meets them:
//!
//! * [`gate`] — what the state of the sensors takes from its confidence
//! * [`book`] — the life of an alert: open, updated, closed
//! * [`mute`] — who wants to hear no more of it, and until when
//! * [`budget`] — how many new alerts of one rule an hour may have; beyond, one summary
//! * [`incident`] — alerts that belong together, along the tactics of [`attack`]; [`story`] tells it in a sentence
//! * [`desk`] — all of these joined
//! * [`mod@file`], [`terminal`] — where lines go
//! * [`deliver`] — and where else, in the words of others

#![forbid(unsafe_code)]

pub mod alert;
pub mod attack;
pub mod book;
pub mod budget;
pub mod deliver;
pub mod desk;
pub mod file;
pub mod gate;
pub mod incident;
pub mod mute;
mod rfc3339;
pub mod story;
pub mod terminal;

use std::io;

pub use alert::{Alert, AlertState, AlertWindow, Class, Muted};
pub use book::AlertBook;
pub use desk::Desk;

/// Where alerts go.
pub trait AlertSink: Send {
    /// Delivers `alert`, or takes it over for delivery.
    ///
    /// # Errors
    /// What the system says; the alert was then not taken, or in part, and is to be given again.
    fn put(&mut self, alert: &Alert) -> io::Result<()>;

    /// Waits until everything that was put would survive a power cut.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
