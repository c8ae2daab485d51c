//! Sets of ports.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rules::PortRange;

/// Any set of ports, in 8 KiB; an empty one takes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortSet {
    /// A bit for each port, or nothing yet.
    words: Vec<u64>,
    count: u32,
}

const WORDS: usize = 65_536 / 64;

impl PortSet {
    /// All ports of `ranges`.
    pub(crate) fn of(ranges: &[PortRange]) -> Self {
        let mut set = Self::default();
        ranges.iter().flat_map(PortRange::ports).for_each(|port| {
            set.insert(port);
        });
        set
    }

    /// Adds `port`; says whether it is new.
    pub(crate) fn insert(&mut self, port: u16) -> bool {
        if self.words.is_empty() {
            self.words = vec![0; WORDS];
        }
        let word = &mut self.words[usize::from(port / 64)];
        let new = *word & 1 << (port % 64) == 0;
        *word |= 1 << (port % 64);
        self.count += u32::from(new);
        new
    }

    /// Whether `port` is in it.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.words.get(usize::from(port / 64)).is_some_and(|word| word & 1 << (port % 64) != 0)
    }

    /// Memory that it takes beside itself, in octets.
    pub(crate) const fn size(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// How many ports it has.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|&port| self.contains(port))
    }
}

impl Serialize for PortSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.ports().collect::<Vec<u16>>().serialize(to)
    }
}

impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut set = Self::default();
        Vec::<u16>::deserialize(from)?.into_iter().for_each(|port| {
            set.insert(port);
        });
        Ok(set)
    }
}
