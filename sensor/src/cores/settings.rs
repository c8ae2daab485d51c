//! The `[workers]` table of the sensor's configuration.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

/// Most cores that a list may name.
const CORES_MAX: usize = 1024;

/// Settings of the threads that read the queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// Which core each worker thread runs on. There is one worker for each receive queue of each interface, in their order.
    ///   "auto"     near the core that takes the queue's interrupts (same NUMA node, same cache), but never on that core unless the machine
    ///              has no other: the kernel's receive loop would leave the worker no time. Workers do not share cores as long as there are
    ///              enough, and everything else that the sensor does runs on other cores.
    ///   [2, 3]     these, in turn. Also for cores that `isolcpus=` keeps from everybody else.
    ///   "any"      wherever the kernel puts them.
    /// `doctor` shows the plan, and the command that moves an interrupt which is in the way.
    pub cores: Cores,
}

/// Which core each worker runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// By the machine's topology.
    #[default]
    Auto,
    /// Wherever the kernel puts it.
    Any,
    /// These, in turn.
    These(Vec<usize>),
}

impl WorkerSettings {
    /// Refuses an empty list, and one that is too long.
    ///
    /// # Errors
    /// The key, and a sentence that says what to write.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match &self.cores {
            Cores::These(cores) if cores.is_empty() || cores.len() > CORES_MAX => {
                Err(("cores", format!("name 1 to {CORES_MAX} cores, e.g. [2, 3], or write \"auto\"")))
            }
            _ => Ok(()),
        }
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Any => to.serialize_str("any"),
            Self::These(cores) => cores.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Word;
        impl<'de> Visitor<'de> for Word {
            type Value = Cores;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"any\" or a list of cores such as [2, 3]")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Cores, E> {
                match word {
                    "auto" => Ok(Cores::Auto),
                    "any" => Ok(Cores::Any),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Cores, A::Error> {
                let mut cores = Vec::new();
                while let Some(core) = list.next_element()? {
                    cores.push(core);
                }
                Ok(Cores::These(cores))
            }
        }
        from.deserialize_any(Word)
    }
}
