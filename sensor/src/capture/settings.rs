//! The `[capture]` table of the sensor's configuration.

use serde::{Deserialize, Serialize};

/// How packets are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The fastest that works here: AF_XDP zero-copy, AF_XDP copy, AF_XDP on generic XDP, libpcap.
    #[default]
    Auto,
    /// AF_XDP or nothing.
    AfXdp,
    /// libpcap (an AF_PACKET ring). Slower, but works on every interface and together with foreign XDP programs.
    Packet,
}

/// What the XDP program does with a packet that no socket takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoSocket {
    /// Drop it; right for a SPAN port, where the host has no business with the traffic.
    #[default]
    Drop,
    /// Leave it to the host's network stack; for an interface that the host uses itself.
    Pass,
}

/// Settings of the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The interface that the mirrored traffic arrives on, e.g. "eno2". Required, unless `interfaces` names several.
    pub interface: String,
    /// Several interfaces that feed this sensor, instead of `interface`: two SPAN ports, or the two fibres of a TAP. Each is an
    /// observation point of its own, numbered from 1 in this order. At most 16. When one of them goes away, the sensor sends what it
    /// has and ends with an error: half a view is not passed off as a whole one.
    pub interfaces: Vec<String>,
    /// Whether each interface carries one direction only, as the two fibres of a TAP do. Its records then say that they are one-sided,
    /// and the collector joins the two halves of a flow.
    pub tap: bool,
    /// "auto", "af_xdp" or "packet". "auto" takes the fastest that works and logs which one and why.
    pub mode: Mode,
    /// AF_XDP: the longest time that the sensor may be kept from reading a queue, by other programs or the kernel, without losing a
    /// packet, in milliseconds. Slots of a queue's ring = packets_per_sec_max × this, rounded up to a power of two. 1 to 1000.
    pub stall_millis: u32,
    /// AF_XDP: packets per second that a queue must expect; 0 takes what the link can carry in frames of 64 octets, divided by its
    /// queues, but at most 2,500,000, which is what one core was seen to take in copy mode. 2,500,000 for 50 ms are 125,000 slots,
    /// so 131,072, of 2 KiB each (4 KiB when the MTU is above 1700): 256 MiB per queue. When that is more than a quarter of
    /// the available memory, the sensor starts with fewer slots and says so.
    pub packets_per_sec_max: u32,
    /// AF_XDP: slots of each queue's ring, whatever the two settings above say: a power of two from 64 to 1048576; 0 leaves it to them.
    pub ring_slots: u32,
    /// AF_XDP: what happens to a packet that no socket takes: "drop" on a SPAN port, "pass" where the host uses the interface.
    pub no_socket: NoSocket,
    /// AF_XDP: look at one packet in so many, chosen at random by the XDP program; 1 is all of them. The others are counted as
    /// dropped.shed. For a link that carries more than this machine can take; flow counters are then of the sample.
    pub keep_one_in: u32,
    /// AF_XDP: frame buffers on huge pages when the kernel has some to give (vm.nr_hugepages).
    pub huge_pages: bool,
    /// AF_XDP: let the sensor's own core run the driver's receive loop for up to so many microseconds when it finds no packet, instead
    /// of waiting for an interrupt on another core (SO_PREFER_BUSY_POLL). 0 is off. Takes a whole core per queue; for cards with
    /// zero-copy, where it spares a core. The log says whether the kernel took it; `doctor` says what else it wants. 0 to 1000.
    pub busy_poll_micros: u32,
    /// libpcap: kernel buffer, in bytes. The default of 64 MiB holds 50 ms of 10 Gbit/s.
    pub buffer_bytes: u32,
    /// libpcap: octets kept of each packet. Headers alone need 256; fewer means more packets in the buffer.
    pub snap_len_bytes: u32,
    /// libpcap: how long the kernel may collect packets before it wakes the sensor, in milliseconds.
    pub wakeup_millis: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interface: String::new(),
            interfaces: Vec::new(),
            tap: false,
            mode: Mode::Auto,
            stall_millis: 50,
            packets_per_sec_max: 0,
            ring_slots: 0,
            no_socket: NoSocket::Drop,
            keep_one_in: 1,
            huge_pages: true,
            busy_poll_micros: 0,
            buffer_bytes: 64 << 20,
            snap_len_bytes: 65_535,
            wakeup_millis: 50,
        }
    }
}

/// Most interfaces of one sensor.
const INTERFACES_MAX: usize = 16;
/// Most slots of a ring.
const SLOTS_MAX: u32 = 1 << 20;
/// Packets per second that one core was measured to take from AF_XDP in copy mode.
const PER_CORE_MAX: u64 = 2_500_000;
/// Packets per second of a queue whose link does not tell its speed.
const SPEED_UNKNOWN: u64 = 1_000_000;
/// Bits that a frame of 64 octets takes on the wire, with preamble and gap.
const BITS_MIN: u64 = (64 + 20) * 8;

impl Settings {
    /// The interfaces that feed the sensor, in the order of their observation points.
    pub fn ports(&self) -> Vec<&str> {
        if self.interfaces.is_empty() { vec![&self.interface] } else { self.interfaces.iter().map(String::as_str).collect() }
    }

    /// Slots of each queue's ring for an interface with so many queues, whose link carries so many megabits per second if it says so:
    /// the packets of the longest stall, rounded up to a power of two.
    pub(crate) fn slots(&self, speed_mbits: Option<u32>, queues: u32) -> u32 {
        if self.ring_slots != 0 {
            return self.ring_slots;
        }
        let packets = self.packets_per_sec(speed_mbits, queues) * u64::from(self.stall_millis);
        u32::try_from(packets.div_ceil(1000)).unwrap_or(SLOTS_MAX).clamp(64, SLOTS_MAX).next_power_of_two()
    }

    fn packets_per_sec(&self, speed_mbits: Option<u32>, queues: u32) -> u64 {
        match (self.packets_per_sec_max, speed_mbits) {
            (0, None) => SPEED_UNKNOWN,
            (0, Some(speed)) => (u64::from(speed) * 1_000_000 / BITS_MIN / u64::from(queues.max(1))).min(PER_CORE_MAX),
            (set, _) => u64::from(set),
        }
    }

    /// Refuses values out of range, with the key and a sentence that says what to write.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        self.check_ports()?;
        if !(1..=1000).contains(&self.stall_millis) {
            return Err(("stall_millis", format!("{} is not from 1 to 1000", self.stall_millis)));
        }
        if self.ring_slots != 0 && (!self.ring_slots.is_power_of_two() || !(64..=SLOTS_MAX).contains(&self.ring_slots)) {
            let sentence = format!("{} is neither 0 nor a power of two from 64 to 1048576", self.ring_slots);
            return Err(("ring_slots", sentence));
        }
        if self.busy_poll_micros > 1000 {
            return Err(("busy_poll_micros", format!("{} is not from 0 to 1000", self.busy_poll_micros)));
        }
        if self.keep_one_in == 0 {
            return Err(("keep_one_in", "0 keeps nothing; write 1 for every packet".into()));
        }
        if !(1 << 20..=1 << 30).contains(&self.buffer_bytes) {
            return Err(("buffer_bytes", format!("{} is not from 1048576 (1 MiB) to 1073741824 (1 GiB)", self.buffer_bytes)));
        }
        if !(64..=262_144).contains(&self.snap_len_bytes) {
            return Err(("snap_len_bytes", format!("{} is not from 64 to 262144", self.snap_len_bytes)));
        }
        if !(1..=1000).contains(&self.wakeup_millis) {
            return Err(("wakeup_millis", format!("{} is not from 1 to 1000", self.wakeup_millis)));
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), (&'static str, String)> {
        let key = match (self.interface.is_empty(), self.interfaces.is_empty()) {
            (true, true) => {
                let sentence = "say on which interface the mirrored traffic arrives, e.g. interface = \"eno2\"";
                return Err(("interface", sentence.into()));
            }
            (false, false) => {
                let sentence = "name all interfaces here and leave `interface` away, or name one as `interface`";
                return Err(("interfaces", sentence.into()));
            }
            (false, true) => "interface",
            (true, false) => "interfaces",
        };
        let ports = self.ports();
        if ports.len() > INTERFACES_MAX {
            return Err((key, format!("{} interfaces are more than the {INTERFACES_MAX} that one sensor takes", ports.len())));
        }
        for (n, port) in ports.iter().enumerate() {
            // IFNAMSIZ is 16 with the closing zero; the kernel refuses white space and '/'.
            if port.is_empty() || port.len() > 15 || port.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0') {
                let sentence = format!("`{port}` cannot be the name of an interface (1 to 15 octets, no space, no slash)");
                return Err((key, sentence));
            }
            if ports[..n].contains(port) {
                return Err((key, format!("`{port}` is named twice; an interface is captured from once")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_lacks_nothing_but_the_interface() {
        assert_eq!(Settings::default().check().expect_err("no interface").0, "interface");
        assert_eq!(Settings { interface: "eno2".into(), ..Settings::default() }.check(), Ok(()));
    }

    fn taps(names: &[&str]) -> Settings {
        Settings { interfaces: names.iter().map(|&name| name.to_owned()).collect(), ..Settings::default() }
    }

    #[test]
    fn ports_keep_the_order_of_the_settings() {
        let two = taps(&["eno3", "eno2"]);
        assert_eq!((two.check(), two.ports()), (Ok(()), vec!["eno3", "eno2"]));
        assert_eq!(Settings { interface: "eno2".into(), ..Settings::default() }.ports(), ["eno2"]);
    }

    #[test]
    fn a_ring_holds_the_packets_of_the_longest_stall() {
        let auto = Settings::default();
        // 1 Gbit/s: 1,488,095 packets/s × 50 ms = 74,405.
        assert_eq!(auto.slots(Some(1_000), 1), 131_072);
        // 10 Gbit/s over 16 queues: 930,059 × 50 ms = 46,503.
        assert_eq!(auto.slots(Some(10_000), 16), 65_536);
        // 10 Gbit/s on one queue: one core takes 2,500,000, × 50 ms = 125,000.
        assert_eq!(auto.slots(Some(10_000), 1), 131_072);
        // Unknown: 1,000,000 × 50 ms.
        assert_eq!(auto.slots(None, 1), 65_536);
        let said = Settings { packets_per_sec_max: 655_360, ..Settings::default() };
        assert_eq!(said.slots(Some(10_000), 1), 32_768);
        let most = Settings { packets_per_sec_max: u32::MAX, stall_millis: 1000, ..Settings::default() };
        assert_eq!(most.slots(None, 1), 1 << 20);
        assert_eq!(Settings { ring_slots: 64, ..most }.slots(None, 1), 64);
    }

    #[test]
    fn each_value_out_of_range_is_named() {
        let good = Settings { interface: "eno2".into(), ..Settings::default() };
        let bad = [
            ("interface", Settings { interface: "en o2".into(), ..good.clone() }),
            ("interfaces", Settings { interfaces: vec!["eno3".into()], ..good.clone() }),
            ("interfaces", taps(&["eno2", "eno2"])),
            ("interfaces", taps(&["eno2", ""])),
            ("stall_millis", Settings { stall_millis: 0, ..good.clone() }),
            ("ring_slots", Settings { ring_slots: 1000, ..good.clone() }),
            ("busy_poll_micros", Settings { busy_poll_micros: 1001, ..good.clone() }),
            ("keep_one_in", Settings { keep_one_in: 0, ..good.clone() }),
            ("buffer_bytes", Settings { buffer_bytes: 0, ..good.clone() }),
            ("snap_len_bytes", Settings { snap_len_bytes: 14, ..good.clone() }),
            ("wakeup_millis", Settings { wakeup_millis: 0, ..good }),
        ];
        for (key, settings) in bad {
            assert_eq!(settings.check().expect_err(key).0, key);
        }
    }
}
