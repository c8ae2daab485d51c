//! The ND rules: detectors of our own, beyond what the public rules for Azure see.
//!
//! They are online: each row changes what is known of its hosts at once, and a finding is told as soon as it is one, in a stream and
//! in a replay alike. They want rows in the order of time ([`Detector::wants_order`](crate::Detector::wants_order)); what time does by
//! itself (a window slides, a baseline takes in an hour) happens on edges of event time, so that it does not matter how often
//! [`advance`](crate::Detector::advance) is called.
//!
//! `sightings` the rows that become evidence · `table` what is known of each key, of bounded size · `lasting` when a claim is told · `flood` ND-07 to ND-09 · `logons`
//! ND-17 · `callbacks` ND-28.

pub(crate) mod callbacks;
pub(crate) mod flood;
mod lasting;
pub(crate) mod logons;
pub(crate) mod sightings;
pub(crate) mod table;
