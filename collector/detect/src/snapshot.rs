//! The state of a detector as bytes (MessagePack), so that a restart forgets nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::card::EXAMPLES_MAX;

/// Why bytes are no state.
#[derive(Debug)]
pub struct RestoreError(String);

impl std::error::Error for RestoreError {}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the saved state of the detectors cannot be used: {}; they start anew", self.0)
    }
}

impl RestoreError {
    /// With what is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// `state` as bytes.
pub fn pack(state: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(state).expect("memory takes every state, which consists of numbers, texts, lists and maps")
}

/// The state that [`pack`] made into `bytes`.
///
/// # Errors
/// The bytes say something else.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RestoreError> {
    rmp_serde::from_slice(bytes).map_err(|error| RestoreError(error.to_string()))
}

/// A name that many keys share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(pub(crate) Arc<str>);

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|name| Self(Arc::from(name)))
    }
}

/// Names of observers, ascending, at most [`EXAMPLES_MAX`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    all: Vec<Arc<str>>,
    /// Where the text of the last that was found in `all`, or put there, lies: rows of one observer come in runs, and most keys have
    /// one. It lies there as long as `all` holds it.
    recent: usize,
}

/// By the names; which came last does not matter.
impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Names {
    /// Considers `name`.
    pub(crate) fn insert(&mut self, name: &Arc<str>) {
        let text = Arc::as_ptr(name).cast::<u8>().addr();
        if text == self.recent {
            return;
        }
        if self.all.iter().any(|held| Arc::ptr_eq(held, name)) {
            self.recent = text;
            return;
        }
        if self.all.is_empty() {
            // Most keys are seen by one observer only.
            self.all.reserve_exact(1);
        }
        let place = self.all.binary_search(name).unwrap_or_else(|place| {
            self.all.insert(place, name.clone());
            self.all.truncate(EXAMPLES_MAX);
            place
        });
        if self.all.get(place).is_some_and(|held| Arc::ptr_eq(held, name)) {
            self.recent = text;
        }
    }

    /// Memory that they take beside themselves, in octets.
    pub(crate) const fn size(&self) -> usize {
        self.all.capacity() * size_of::<Arc<str>>()
    }

    pub(crate) fn to_strings(&self) -> Vec<String> {
        self.all.iter().map(ToString::to_string).collect()
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.all.iter().map(|name| &**name))
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        Ok(Self { all: names.into_iter().map(Arc::from).collect(), recent: 0 })
    }
}

/// What a whole [`Detection`](crate::Detection) is packed into.
#[derive(Serialize, Deserialize)]
pub(crate) struct Whole {
    /// [`FORMAT`] of the writer.
    pub(crate) format: u32,
    /// By rule and form (`AZ-01 fixed`): the settings as text, and the state.
    pub(crate) detectors: BTreeMap<String, Saved>,
    /// The clock they share.
    #[serde(with = "serde_bytes")]
    pub(crate) clock: Vec<u8>,
    /// The roles that were learned; empty from a version that learned none.
    #[serde(with = "serde_bytes", default)]
    pub(crate) roles: Vec<u8>,
}

/// One detector.
#[derive(Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) settings: String,
    #[serde(with = "serde_bytes")]
    pub(crate) state: Vec<u8>,
}

/// Raised when the meaning of any detector's bytes changes.
pub(crate) const FORMAT: u32 = 1;
