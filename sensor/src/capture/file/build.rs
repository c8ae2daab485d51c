//! Builds capture files of both formats, for tests.

use super::parser::ByteOrder;

/// A packet to be put into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) nanos: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) wire_len: u32,
}

/// A file in the making.
pub(super) struct Build {
    pub(super) out: Vec<u8>,
    /// Where the file may end without being damaged, and how many packets it has then.
    pub(super) ends: Vec<(usize, usize)>,
    pub(super) order: ByteOrder,
    packets: usize,
}

impl Build {
    pub(super) fn new(order: ByteOrder) -> Self {
        Self { out: Vec::new(), ends: Vec::new(), order, packets: 0 }
    }

    fn u16(&mut self, number: u16) -> &mut Self {
        let octets = if self.order == ByteOrder::Little { number.to_le_bytes() } else { number.to_be_bytes() };
        self.bytes(&octets)
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Self {
        let octets = if self.order == ByteOrder::Little { number.to_le_bytes() } else { number.to_be_bytes() };
        self.bytes(&octets)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn end(&mut self, packets: usize) -> &mut Self {
        self.packets += packets;
        self.ends.push((self.out.len(), self.packets));
        self
    }

    /// The file header of the classic format.
    pub(super) fn pcap(order: ByteOrder, magic: u32, minor: u16, network: u32) -> Self {
        let mut file = Self::new(order);
        file.u32(magic).u16(2).u16(minor).u32(0).u32(0).u32(65_535).u32(network).end(0);
        file
    }

    /// A packet of the classic format; `more` follows its header.
    pub(super) fn record(&mut self, units_per_sec: u64, sent: &Sent, more: &[u8]) -> &mut Self {
        let (secs, fraction) = (sent.nanos / 1_000_000_000, sent.nanos % 1_000_000_000 / (1_000_000_000 / units_per_sec));
        self.u32(secs as u32).u32(fraction as u32).u32(sent.bytes.len() as u32).u32(sent.wire_len);
        self.bytes(more).bytes(&sent.bytes).end(1)
    }

    /// A block of the other format.
    pub(super) fn block(&mut self, kind: u32, packets: usize, body: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let start = self.out.len();
        self.u32(kind).u32(0);
        body(self);
        self.pad();
        let length = (self.out.len() + 4 - start) as u32;
        self.u32(length);
        let octets = if self.order == ByteOrder::Little { length.to_le_bytes() } else { length.to_be_bytes() };
        self.out[start + 4..start + 8].copy_from_slice(&octets);
        self.end(packets)
    }

    fn pad(&mut self) -> &mut Self {
        // Every block is a multiple of four long, so this is also the place within the block.
        self.out.resize(self.out.len().next_multiple_of(4), 0);
        self
    }

    fn options(&mut self, options: &[(u16, &[u8])]) -> &mut Self {
        for (code, value) in options {
            self.u16(*code).u16(value.len() as u16).bytes(value).pad();
        }
        if options.is_empty() { self } else { self.u32(0) }
    }

    /// A number of 64 bits as the value of an option.
    pub(super) fn long(&self, number: u64) -> [u8; 8] {
        if self.order == ByteOrder::Little { number.to_le_bytes() } else { number.to_be_bytes() }
    }

    pub(super) fn section(&mut self, order: ByteOrder) -> &mut Self {
        self.order = order;
        self.block(0x0a0d_0d0a, 0, |file| file.u32(0x1a2b_3c4d).u16(1).u16(0).bytes(&[0xff; 8]).options(&[(4, b"spanwatch")]))
    }

    pub(super) fn interface(&mut self, link_type: u16, snap_len: u32, options: &[(u16, &[u8])]) -> &mut Self {
        self.block(1, 0, |file| file.u16(link_type).u16(0).u32(snap_len).options(options))
    }

    pub(super) fn enhanced(&mut self, interface: u32, ticks: u64, sent: &Sent, options: &[(u16, &[u8])]) -> &mut Self {
        self.block(6, 1, |file| {
            file.u32(interface).u32((ticks >> 32) as u32).u32(ticks as u32);
            file.u32(sent.bytes.len() as u32).u32(sent.wire_len).bytes(&sent.bytes).pad().options(options)
        })
    }

    pub(super) fn obsolete(&mut self, interface: u16, ticks: u64, sent: &Sent) -> &mut Self {
        self.block(2, 1, |file| {
            file.u16(interface).u16(0xffff).u32((ticks >> 32) as u32).u32(ticks as u32);
            file.u32(sent.bytes.len() as u32).u32(sent.wire_len).bytes(&sent.bytes)
        })
    }

    pub(super) fn simple(&mut self, sent: &Sent) -> &mut Self {
        self.block(3, 1, |file| file.u32(sent.wire_len).bytes(&sent.bytes))
    }

    pub(super) fn statistics(&mut self, interface: u32, counts: &[(u16, u64)]) -> &mut Self {
        let values: Vec<_> = counts.iter().map(|(code, count)| (*code, self.long(*count))).collect();
        let options: Vec<(u16, &[u8])> = values.iter().map(|(code, value)| (*code, value.as_slice())).collect();
        self.block(5, 0, |file| file.u32(interface).u32(0).u32(0).options(&options))
    }
}
