//! What is remembered of very many keys in little room: that they were once, or that they came about.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Endpoint;

/// Words of one generation: 512 KiB, and there are as many such sets as shards.
const WORDS: usize = 1 << 16;
/// Half a day: with three generations, what was 24 to 36 hours ago is still known.
const GENERATION_SECS: i64 = 43_200;
const GENERATIONS: usize = 3;
/// Odd, with no pattern in its bits: the golden ratio's fraction.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number that stands for the endpoint, by a hash without a secret: a replay says the same each time.
pub(super) fn number(endpoint: &Endpoint) -> u64 {
    let service = u64::from(endpoint.protocol) << 16 | u64::from(endpoint.port);
    let [source, destination] = [endpoint.source, endpoint.destination].map(|host| [host as u64, (host >> 64) as u64]);
    [source[0], source[1], destination[0], destination[1], service].into_iter().fold(SPREAD, |folded, word| {
        let wide = u128::from(folded ^ word) * u128::from(SPREAD);
        (wide as u64).rotate_left(23) ^ (wide >> 64) as u64
    })
}

/// The endpoints of the last day with which a conversation came about: three Bloom filters of half a day each, four bits in one word
/// for each endpoint. With 250,000 endpoints in half a day, one in some hundred seems known that is not, and no storm of it is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversations {
    /// Half-days since 1970, of the newest generation.
    newest: i64,
    /// Each without words until the first endpoint comes.
    generations: [Vec<u64>; GENERATIONS],
}

fn word_and_bits(number: u64) -> (usize, u64) {
    let bits = (0..4).fold(0, |bits, part| bits | 1 << (number >> (6 * part) & 63));
    ((number >> 32) as usize % WORDS, bits)
}

impl Conversations {
    /// A conversation with it came about at `second`.
    pub(super) fn insert(&mut self, number: u64, second: i64) {
        self.turn(second);
        let (word, bits) = word_and_bits(number);
        let generation = &mut self.generations[self.newest.rem_euclid(GENERATIONS as i64) as usize];
        if generation.is_empty() {
            *generation = vec![0; WORDS];
        }
        generation[word] |= bits;
    }

    /// Whether one did within the last day.
    pub(super) fn has(&mut self, number: u64, second: i64) -> bool {
        self.turn(second);
        let (word, bits) = word_and_bits(number);
        self.generations.iter().any(|generation| generation.get(word).is_some_and(|known| known & bits == bits))
    }

    fn turn(&mut self, second: i64) {
        let half_day = second.div_euclid(GENERATION_SECS);
        if half_day <= self.newest {
            return;
        }
        let from = (self.newest + 1).max(half_day - GENERATIONS as i64 + 1);
        (from..=half_day).for_each(|old| self.generations[old.rem_euclid(GENERATIONS as i64) as usize] = Vec::new());
        self.newest = half_day;
    }

    /// Memory that it holds, in octets.
    pub(super) fn bytes(&self) -> usize {
        self.generations.iter().map(|generation| generation.len() * 8).sum()
    }
}

impl Serialize for Conversations {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let taken = |words: &Vec<u64>| words.iter().copied().enumerate().filter(|&(_, word)| word != 0).collect::<Vec<_>>();
        let generations: Vec<Vec<(usize, u64)>> = self.generations.iter().map(taken).collect();
        (self.newest, generations).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Conversations {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (newest, generations) = <(i64, Vec<Vec<(usize, u64)>>)>::deserialize(from)?;
        let mut conversations = Self { newest, ..Self::default() };
        for (words, taken) in conversations.generations.iter_mut().zip(generations) {
            if !taken.is_empty() {
                *words = vec![0; WORDS];
            }
            for (place, word) in taken {
                // A generation of twice as many words, as there were once, is folded: an endpoint keeps its bits.
                words[place % WORDS] |= word;
            }
        }
        Ok(conversations)
    }
}

/// Places of the doorkeeper: 256 KiB.
const PLACES: usize = 1 << 16;

/// Who knocked once: only the second failure makes an entry of an endpoint, so that a scan, which tries each once, makes none.
#[derive(Clone, Debug)]
pub(super) struct Doorkeeper(Vec<u32>);

impl Default for Doorkeeper {
    fn default() -> Self {
        Self(vec![0; PLACES])
    }
}

impl Doorkeeper {
    /// Whether it was here before, as far as is known.
    pub(super) fn knows(&mut self, number: u64) -> bool {
        let tag = (number as u32).max(1);
        std::mem::replace(&mut self.0[(number >> 32) as usize % PLACES], tag) == tag
    }

    /// Memory that it holds, in octets.
    pub(super) const fn bytes() -> usize {
        PLACES * 4
    }
}

impl Serialize for Doorkeeper {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.iter().copied().enumerate().filter(|&(_, tag)| tag != 0).collect::<Vec<(usize, u32)>>().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Doorkeeper {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut doorkeeper = Self::default();
        for (place, tag) in Vec::<(usize, u32)>::deserialize(from)? {
            *doorkeeper.0.get_mut(place).ok_or_else(|| serde::de::Error::custom("a place that there is not"))? = tag;
        }
        Ok(doorkeeper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{pack, unpack};

    #[test]
    fn a_conversation_is_known_for_a_day_and_forgotten_after_a_day_and_a_half() {
        let endpoint = |source: u128| number(&Endpoint { source, destination: 2, port: 443, protocol: 6 });
        let mut known = Conversations::default();
        let day = 86_400;
        known.insert(endpoint(1), 10 * day);
        assert!(known.has(endpoint(1), 11 * day));
        assert!(!known.has(endpoint(1), 11 * day + day / 2));
        (0..250_000).for_each(|source| known.insert(endpoint(source << 8), 20 * day));
        let wrong = (0..10_000).filter(|&source| known.has(endpoint(source << 8 | 1), 20 * day)).count();
        assert!(wrong < 200, "{wrong} of 10,000");
    }

    #[test]
    fn what_was_saved_with_twice_as_many_words_is_still_known() {
        let number = number(&Endpoint { source: 1, destination: 2, port: 443, protocol: 6 });
        let (_, bits) = word_and_bits(number);
        let place = (number >> 32) as usize % (2 * WORDS);
        // Half-day 20 is in generation 20 modulo 3.
        let saved = pack(&(20_i64, [vec![], vec![], vec![(place, bits), (2 * WORDS - 1, 1)]]));
        let mut known: Conversations = unpack(&saved).expect("ours");
        assert!(known.has(number, 20 * GENERATION_SECS));
    }
}
