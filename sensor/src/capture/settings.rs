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
    /// The interface that the mirrored traffic arrives on, e.g. "eno2". Required.
    pub interface: String,
    /// "auto", "af_xdp" or "packet". "auto" takes the fastest that works and logs which one and why.
    pub mode: Mode,
    /// AF_XDP: packets that can wait per RX queue while the sensor is busy elsewhere; a power of two.
    /// Slots = packets per second and queue × the longest stall to survive. The default of 32768 holds 50 ms at 655,000 packets/s
    /// and takes 64 MiB per queue (128 MiB when the MTU is above 1700). When memory does not allow that, the sensor starts
    /// with fewer and says so.
    pub ring_slots: u32,
    /// AF_XDP: what happens to a packet that no socket takes: "drop" on a SPAN port, "pass" where the host uses the interface.
    pub no_socket: NoSocket,
    /// AF_XDP: look at one packet in so many, chosen at random by the XDP program; 1 is all of them. The others are counted as
    /// dropped.shed. For a link that carries more than this machine can take; flow counters are then of the sample.
    pub keep_one_in: u32,
    /// AF_XDP: frame buffers on huge pages when the kernel has some to give (vm.nr_hugepages).
    pub huge_pages: bool,
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
            mode: Mode::Auto,
            ring_slots: 32_768,
            no_socket: NoSocket::Drop,
            keep_one_in: 1,
            huge_pages: true,
            buffer_bytes: 64 << 20,
            snap_len_bytes: 65_535,
            wakeup_millis: 50,
        }
    }
}

impl Settings {
    /// Refuses values out of range, with the key and a sentence that says what to write.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.interface.is_empty() {
            return Err(("interface", "say on which interface the mirrored traffic arrives, e.g. interface = \"eno2\"".into()));
        }
        // IFNAMSIZ is 16 with the closing zero; the kernel refuses white space and '/'.
        if self.interface.len() > 15 || self.interface.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0') {
            let sentence =
                format!("`{}` cannot be the name of an interface (1 to 15 octets, no space, no slash)", self.interface);
            return Err(("interface", sentence));
        }
        if !self.ring_slots.is_power_of_two() || !(64..=1 << 20).contains(&self.ring_slots) {
            return Err(("ring_slots", format!("{} is not a power of two from 64 to 1048576", self.ring_slots)));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_lacks_nothing_but_the_interface() {
        assert_eq!(Settings::default().check().expect_err("no interface").0, "interface");
        assert_eq!(Settings { interface: "eno2".into(), ..Settings::default() }.check(), Ok(()));
    }

    #[test]
    fn each_value_out_of_range_is_named() {
        let good = Settings { interface: "eno2".into(), ..Settings::default() };
        let bad = [
            ("interface", Settings { interface: "en o2".into(), ..good.clone() }),
            ("ring_slots", Settings { ring_slots: 1000, ..good.clone() }),
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
