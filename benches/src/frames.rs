//! Frames in memory: what they say, whose they are, and where they lie.
//!
//! All are Ethernet without FCS. Clients are 10.0.0.0 + flow, the server is 192.168.0.1, port 502 (IPv6: 2001:db8::flow and
//! 2001:db8:ffff::1). Everything follows from fixed seeds: the same arguments give the same frames.

use std::ops::Range;

/// Octets of the shortest Ethernet frame: 64 on the wire with FCS.
pub const SHORTEST: usize = 60;
/// A slot of the ring-like arena: frame size of a UMEM.
const SLOT: usize = 2048;
/// A cache line.
const LINE: usize = 64;

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that opened the connection.
    Client,
    /// The other.
    Server,
}

/// Which flow the next packet belongs to.
pub enum Choice {
    /// Any of so many, equally likely.
    Uniform(u32),
    /// Any of so many, the k-th with a probability in proportion to 1/k: Zipf's law with exponent 1. Holds the sums of 1/k.
    Zipf(Vec<f64>),
}

impl Choice {
    /// Zipf's law over `flows`.
    pub fn zipf(flows: u32) -> Self {
        let mut sum = 0.0;
        let grown = |k: u32| {
            sum += 1.0 / f64::from(k);
            sum
        };
        Self::Zipf((1..=flows).map(grown).collect())
    }

    /// How many flows there are.
    pub fn flows(&self) -> u32 {
        match self {
            Self::Uniform(flows) => *flows,
            Self::Zipf(sums) => sums.len() as u32,
        }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        match self {
            Self::Uniform(flows) => random.below(*flows),
            Self::Zipf(sums) => {
                let all = sums.last().copied().unwrap_or_default();
                let point = f64::from(random.next()) / (f64::from(u32::MAX) + 1.0) * all;
                sums.partition_point(|sum| *sum <= point) as u32
            }
        }
    }
}

/// Frames, and where each lies. The list of places is read in order, as the descriptors of a ring are.
pub struct Frames {
    octets: Vec<u8>,
    places: Vec<Place>,
    /// Where the next frame lies.
    end: usize,
    stride: usize,
    /// By how much sequence and acknowledgement number of each frame grow from one pass to the next; empty where nothing grows.
    growth: Vec<[u32; 2]>,
}

#[derive(Clone, Copy)]
struct Place {
    at: u32,
    len: u16,
}

impl Frames {
    /// Room for `frames` of at most `octets` each, one after the other, each at the beginning of a cache line.
    pub fn packed(frames: usize, octets: usize) -> Self {
        Self::with_stride(frames, octets.next_multiple_of(LINE))
    }

    /// Room for `frames`, each in a slot of 2 KiB of its own, as in the memory that a card writes to. 262,144 of them are 512 MiB.
    /// When a frame's turn comes again, all others were read since: its header is in no private cache, at best in the shared
    /// one, where a card with DDIO would have put it.
    pub fn in_slots(frames: usize) -> Self {
        Self::with_stride(frames, SLOT)
    }

    fn with_stride(frames: usize, stride: usize) -> Self {
        let octets = vec![0; frames * stride + LINE];
        let end = octets.as_ptr().align_offset(LINE).min(LINE);
        Self { octets, places: Vec::with_capacity(frames), end, stride, growth: Vec::new() }
    }

    /// TCP segments without payload, both ways, of flows as `choice` has them.
    pub fn tcp(frames: usize, choice: &Choice) -> Self {
        Self::mixed(frames, SHORTEST, choice, |flow, side, number| tcp(flow, side, number).to_vec())
    }

    /// Frames that `make` makes of flow, sender and number, both ways, of flows as `choice` has them.
    pub fn mixed(frames: usize, octets: usize, choice: &Choice, make: impl Fn(u32, Side, u16) -> Vec<u8>) -> Self {
        let mut random = Random(1);
        let mut all = Self::packed(frames, octets);
        for number in 0..frames {
            let flow = choice.draw(&mut random);
            all.push(&make(flow, random.side(), number as u16));
        }
        all
    }

    /// TCP in frames of 60, 594 and 1514 octets, 7 : 4 : 1 (359 octets on average), both ways, in [slots](Self::in_slots). The longer ones
    /// carry 540 and 1460 octets of payload; sequences go on from packet to packet, and from pass to pass with [`renew`](Self::renew).
    pub fn imix(frames: usize, choice: &Choice) -> Self {
        let mut random = Random(1);
        let mut all = Self::in_slots(frames);
        let mut sent = vec![[0_u32; 2]; choice.flows() as usize];
        let mut senders = Vec::with_capacity(frames);
        for number in 0..frames {
            let flow = choice.draw(&mut random);
            let side = random.side();
            let payload: u16 = match random.below(12) {
                0..7 => 0,
                7..11 => 540,
                _ => 1460,
            };
            let mut frame = [0; 54];
            frame.copy_from_slice(&tcp(flow, side, number as u16)[..54]);
            let sent = &mut sent[flow as usize];
            let (own, other) = (side as usize, 1 - side as usize);
            frame[16..18].copy_from_slice(&(40 + payload).to_be_bytes());
            frame[38..42].copy_from_slice(&sent[own].to_be_bytes());
            frame[42..46].copy_from_slice(&sent[other].to_be_bytes());
            sent[own] += u32::from(payload);
            senders.push((flow, own));
            all.push_sized(&frame, (54 + usize::from(payload)).max(SHORTEST));
        }
        // Over a whole pass each end sends what it has sent by the end of the first.
        all.growth = senders
            .iter()
            .map(|&(flow, own)| {
                let sent = sent[flow as usize];
                [sent[own], sent[1 - own]]
            })
            .collect();
        all
    }

    /// A scan: SYN after SYN, each to another address, from one host.
    pub fn scan(frames: u32) -> Self {
        let mut all = Self::packed(frames as usize, SHORTEST);
        for target in 0..frames {
            all.push(&probe(target));
        }
        all
    }

    /// The same where every target refuses at once: SYN, RST, SYN, RST. `frames` is even.
    pub fn refused_scan(frames: u32) -> Self {
        let mut all = Self::packed(frames as usize, SHORTEST);
        for target in 0..frames / 2 {
            all.push(&probe(target));
            all.push(&refusal(target));
        }
        all
    }

    /// Adds a frame behind the others. There is room for as many as the arena was made for.
    pub fn push(&mut self, frame: &[u8]) {
        self.push_sized(frame, frame.len());
    }

    /// The same for a frame of `len` octets of which all behind `head` are zero.
    fn push_sized(&mut self, head: &[u8], len: usize) {
        assert!(len <= self.stride, "a frame fits its place");
        self.octets[self.end..self.end + head.len()].copy_from_slice(head);
        self.places.push(Place { at: self.end as u32, len: len as u16 });
        self.end += self.stride;
    }

    /// Forgets all frames; the memory stays.
    pub fn clear(&mut self) {
        self.end -= self.places.len() * self.stride;
        self.places.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The frames of a range of numbers, in order.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        self.places[range].iter().map(|place| &self.octets[place.at as usize..][..usize::from(place.len)])
    }

    /// Readies the frames for their next pass: TCP's sequences go on where the last pass ended.
    pub fn renew(&mut self) {
        for (place, growth) in self.places.iter().zip(&self.growth) {
            let numbers = &mut self.octets[place.at as usize + 38..][..8];
            for (number, by) in numbers.as_chunks_mut().0.iter_mut().zip(growth) {
                *number = u32::from_be_bytes(*number).wrapping_add(*by).to_be_bytes();
            }
        }
    }
}

/// TCP over IPv4, ACK, no payload. `number` becomes the identification, so that no packet is another's copy.
pub fn tcp(flow: u32, side: Side, number: u16) -> [u8; SHORTEST] {
    let mut frame = [0; SHORTEST];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame[18..20].copy_from_slice(&number.to_be_bytes());
    let [there, here] = places(side);
    frame[26 + 4 * there..][..4].copy_from_slice(&(0x0a00_0000 + flow).to_be_bytes());
    frame[26 + 4 * here..][..4].copy_from_slice(&[192, 168, 0, 1]);
    frame[34 + 2 * there..][..2].copy_from_slice(&port(flow));
    frame[34 + 2 * here..][..2].copy_from_slice(&502_u16.to_be_bytes());
    (frame[46], frame[47]) = (0x50, 0x10);
    frame[48] = 0x20; // a window that is not closed
    frame
}

/// UDP over IPv4, no payload.
pub fn udp(flow: u32, side: Side, number: u16) -> [u8; SHORTEST] {
    let mut frame = tcp(flow, side, number);
    (frame[17], frame[23]) = (28, 17);
    frame[38..].fill(0);
    frame[39] = 8;
    frame
}

/// TCP or UDP over IPv6 (RFC 8200 §3): the transport header of an IPv4 frame of ours, in 74 octets.
pub fn over_ipv6(flow: u32, side: Side, ipv4: &[u8; SHORTEST]) -> [u8; 74] {
    let (protocol, transport_octets) = (ipv4[23], if ipv4[23] == 6 { 20 } else { 8 });
    let mut frame = [0; 74];
    frame[..12].copy_from_slice(&ipv4[..12]);
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, ipv4[18], ipv4[19], 0, transport_octets, protocol, 64]);
    let [there, here] = places(side);
    for place in [there, here] {
        frame[22 + 16 * place..][..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    }
    frame[34 + 16 * there..][..4].copy_from_slice(&flow.to_be_bytes());
    frame[26 + 16 * here..][..2].fill(0xff);
    frame[37 + 16 * here] = 1;
    frame[54..74].copy_from_slice(&ipv4[34..54]);
    frame
}

/// SYN to 10.128.0.0 + target.
fn probe(target: u32) -> [u8; SHORTEST] {
    let mut frame = tcp(0, Side::Client, target as u16);
    frame[30..34].copy_from_slice(&(0x0a80_0000 + target).to_be_bytes());
    frame[47] = 0x02;
    frame
}

/// The answer to it: RST, ACK of the SYN (RFC 9293 §3.5.2).
fn refusal(target: u32) -> [u8; SHORTEST] {
    let mut frame = tcp(0, Side::Server, target as u16);
    frame[26..30].copy_from_slice(&(0x0a80_0000 + target).to_be_bytes());
    (frame[45], frame[47], frame[48]) = (1, 0x14, 0);
    frame
}

/// In which of the two places of a header (source, destination) client and server stand.
fn places(side: Side) -> [usize; 2] {
    match side {
        Side::Client => [0, 1],
        Side::Server => [1, 0],
    }
}

fn port(flow: u32) -> [u8; 2] {
    (1024 + (flow & 0x7fff) as u16).to_be_bytes()
}

/// A linear congruential generator (Knuth's MMIX), of which the upper half is used.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(bound)) >> 32) as u32
    }

    fn side(&mut self) -> Side {
        if self.below(2) == 0 { Side::Client } else { Side::Server }
    }
}
