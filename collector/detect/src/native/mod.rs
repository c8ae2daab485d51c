//! The ND rules: detectors of our own, beyond what the public rules for Azure see.
//!
//! They are online: each row changes what is known of its hosts at once, and a finding is told as soon as it is one, in a stream and
//! in a replay alike. They want rows in the order of time ([`Detector::wants_order`](crate::Detector::wants_order)); what time does by
//! itself (a window slides, a baseline takes in an hour) happens on edges of event time, so that it does not matter how often
//! [`advance`](crate::Detector::advance) is called.
//!
//! [`scan`] ND-01 to ND-06 · `sightings` the rows that become evidence.

pub(crate) mod scan;
pub(crate) mod sightings;
