//! Settings of the rules that look for a rhythm.

use super::common::{Mistake, PortRange, Rule, settings, shared_parts, within, within_f64};
use crate::beacon::{Beacon, Rhythm};
use crate::catalogue::Entry;
use crate::finding::RuleCard;
use crate::{Detector, Mode};

/// AZ-11 in the catalogue.
pub const AZ_11: Entry = Entry {
    id: "AZ-11",
    title: "Beacon",
    public_id: "fcb9d75c-c3c1-4910-8697-f136bfef2363",
    public_name: "Potential beaconing activity",
    tactics: "Command and Control",
    exact: "Per source, destination, port and hour, the commonest time in whole seconds to the source's next contact, to whatever \
            destination; fires above 15 such times longer than 10 s of which more than 80 % are equal. Sees periods of 11 to 225 s \
            only, none with jitter, and none of a host that does anything else meanwhile.",
    fixed: "Per source, destination, port and protocol, times between its connections over the day; those within jitter_max of the \
            median must be more than the share. Any period that fits often enough into a day; other traffic does not disturb it.",
    innocent: "Time servers, update checks, monitoring agents, telemetry. Exclude their destinations or ports.",
};

/// AZ-12 in the catalogue.
pub const AZ_12: Entry = Entry {
    id: "AZ-12",
    title: "Strict beacon",
    public_id: "f0be259a-34ac-4946-aa15-ca2b115d5feb",
    public_name: "Palo Alto - potential beaconing detected",
    tactics: "Command and Control",
    exact: "As AZ-11, with stricter numbers: more than 30 times longer than 25 s in the hour, more than 25 of them equal. Sees periods \
            of 26 to 116 s only.",
    fixed: "As AZ-11 with these numbers. Off by default, because AZ-11 finds all that it finds.",
    innocent: "As for AZ-11.",
};

macro_rules! beacon {
    ($($(#[$doc:meta])* $name:ident, $variants:tt, gap: $gap:literal, events: $events:literal, modal: $modal:literal;)*) => {$(
        beacon!(@ $(#[$doc])* $name, $variants, $gap, $events, $modal);
    )*};
    (@ $(#[$doc:meta])* $name:ident, [$($variant:ident),*], $gap:literal, $events:literal, $modal:literal) => {
        settings! {
            $(#[$doc])*
            $name {
                variants: [$($variant),*],
                window_secs: 86_400,
                lateness_secs: 120,
                severity: Low,
                attack: ["T1071", "T1571"],
                exclude_ports: [PortRange::one(123)],
                keys_max: 262_144,
            }
            /// Times between contacts up to this many seconds do not count.
            gap_secs_ignored: u64 = $gap,
            /// Fires above this many times between contacts.
            threshold_events: u64 = $events,
            /// The exact form fires above this many equal times.
            threshold_modal: u64 = $modal,
            /// Fires above this share of equal times, in percent.
            threshold_share: f64 = 80.0,
            /// The fixed form takes times for equal that are off the median by at most this part of it.
            jitter_max: f64 = 0.4,
            /// The fixed form wants a rhythm that lasts at least so long.
            span_secs_min: u64 = 3_600,
            /// Contacts held at once; a replay may hold sixteen times as many.
            contacts_max: usize = 2_000_000,
        }

        impl Rule for $name {
            shared_parts!();

            fn check(&self) -> Result<(), Mistake> {
                within("gap_secs_ignored", self.gap_secs_ignored, 0, 86_400)?;
                within("threshold_events", self.threshold_events, 2, 1_000_000)?;
                within("threshold_modal", self.threshold_modal, 0, 1_000_000)?;
                within_f64("threshold_share", self.threshold_share, 1.0, 100.0)?;
                within_f64("jitter_max", self.jitter_max, 0.0, 1.0)?;
                within("span_secs_min", self.span_secs_min, 0, 86_400)?;
                within("contacts_max", self.contacts_max as u64, 1_000, 1_000_000_000)
            }

            fn detector(&self, card: RuleCard, mode: Mode) -> Box<dyn Detector> {
                let rhythm = Rhythm {
                    gap_secs_ignored: self.gap_secs_ignored,
                    threshold_events: self.threshold_events,
                    threshold_modal: self.threshold_modal,
                    threshold_share: self.threshold_share,
                    jitter_max: self.jitter_max,
                    span_secs_min: self.span_secs_min,
                    contacts_max: self.contacts_max,
                };
                Box::new(Beacon::new(rhythm, card, &self.common_settings(), mode))
            }
        }
    };
}

beacon! {
    /// Settings of AZ-11.
    BeaconRule, [Fixed], gap: 10, events: 15, modal: 0;
    /// Settings of AZ-12.
    StrictBeacon, [], gap: 25, events: 30, modal: 25;
}
