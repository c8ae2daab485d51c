//! Azure's flow logs: from files, web servers and Blob Storage to records.
//!
//! What the bytes mean is the business of the crate `spanwatch-azure`; here is where they come from, and how no row comes twice.
//!
//! * [`hour`] — the hour that a blob's path names
//! * [`secret`] — credentials, and keeping them out of logs
//! * [`source`] — what was typed, as a list of things to read
//! * [`open`] — a source's bytes, unpacked, from any offset
//! * [`blob`] — a container of Blob Storage
//! * [`settings`] — the containers that a running collector follows
//! * [`state`] — how far each blob has been read
//! * [`tail`] — the loop that follows a container; [`vitals`] — its numbers

pub mod blob;
pub mod hour;
pub mod open;
pub mod secret;
pub mod settings;
pub mod source;
pub mod state;
pub mod tail;
pub mod vitals;

/// The error with its causes, each once, and without secrets.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    secret::redact(&text)
}
