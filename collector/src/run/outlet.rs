//! One place where alert lines go: what it did not take yet waits here, in order.

use std::collections::VecDeque;
use std::io;

use crate::alert::{Alert, AlertSink};

/// Lines that wait for a place that takes none. Beyond, the oldest are given up and counted.
const WAITING_MAX: usize = 10_000;

/// A sink and what waits for it.
pub(super) struct Outlet {
    /// What it is, for the log: `the alert file`.
    name: &'static str,
    sink: Box<dyn AlertSink>,
    wants: fn(&Alert) -> bool,
    waiting: VecDeque<Alert>,
    failing: bool,
}

impl Outlet {
    /// Nothing waits for `sink`, which gets the lines that it `wants`.
    pub(super) fn new(name: &'static str, sink: impl AlertSink + 'static, wants: fn(&Alert) -> bool) -> Self {
        Self { name, sink: Box::new(sink), wants, waiting: VecDeque::new(), failing: false }
    }

    /// Gives it `lines` after what waits, as far as it takes them. Returns how many had to be given up.
    pub(super) fn put<'a>(&mut self, lines: impl IntoIterator<Item = &'a Alert>) -> u64 {
        self.waiting.extend(lines.into_iter().filter(|line| (self.wants)(line)).cloned());
        while let Some(line) = self.waiting.front() {
            match self.sink.put(line) {
                Ok(()) => {
                    self.waiting.pop_front();
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("{} can be written again", self.name);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!("write {}: {error}; up to {WAITING_MAX} lines wait in memory", self.name);
                    }
                    break;
                }
            }
        }
        let too_many = self.waiting.len().saturating_sub(WAITING_MAX);
        self.waiting.drain(..too_many);
        too_many as u64
    }

    /// Whether everything it was given has been taken, and would survive a power cut.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn settle(&mut self) -> io::Result<bool> {
        if !self.waiting.is_empty() {
            return Ok(false);
        }
        self.sink.sync().map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes lines while it may.
    struct Door(Arc<Mutex<(bool, Vec<String>)>>);

    impl AlertSink for Door {
        fn put(&mut self, alert: &Alert) -> io::Result<()> {
            let mut door = self.0.lock().unwrap();
            if !door.0 {
                return Err(io::Error::other("shut"));
            }
            door.1.push(alert.id.clone());
            Ok(())
        }
    }

    fn lines(ids: std::ops::Range<usize>) -> Vec<Alert> {
        let text = r#"{"id":"","rule":"AZ-01","variant":"fixed","title":"","severity":"low","state":"open","subject":"","first":"2026-11-21T10:00:01.000000000Z","last":"2026-11-21T10:00:50.000000000Z","detected":"2026-11-21T10:00:08.000000000Z","told":"2026-11-21T10:00:08.000000000Z","sentence":"","score":1.1,"window":{"start":"2026-11-21T10:00:00.000000000Z","secs":60},"windows":1,"reopened":0,"evidence":{"value":7.0,"threshold":6.0,"unit":"hosts"},"attack":[]}"#;
        let line: Alert = serde_json::from_str(text).unwrap();
        ids.map(|id| Alert { id: id.to_string(), ..line.clone() }).collect()
    }

    #[test]
    fn lines_wait_for_a_shut_door_in_order_and_the_oldest_of_too_many_are_given_up() {
        let door = Arc::new(Mutex::new((false, Vec::new())));
        let mut outlet = Outlet::new("the door", Door(Arc::clone(&door)), |line| line.id != "7");
        assert_eq!(outlet.put(&lines(0..WAITING_MAX + 1)), 0, "one of them is not wanted");
        assert!(!outlet.settle().unwrap());
        assert_eq!(outlet.put(&lines(WAITING_MAX + 1..WAITING_MAX + 4)), 3);
        door.lock().unwrap().0 = true;
        assert_eq!(outlet.put(&lines(WAITING_MAX + 4..WAITING_MAX + 5)), 0);
        assert!(outlet.settle().unwrap());
        let taken = door.lock().unwrap().1.clone();
        assert_eq!((taken.len(), taken[0].as_str(), taken[WAITING_MAX].as_str()), (WAITING_MAX + 1, "3", "10004"));
    }
}
