//! What there is to know about an interface before and while it is captured from.

use std::fs;
use std::path::{Path, PathBuf};

use super::af_xdp::syscall;
use super::{CaptureError, CaptureErrorKind, InForce};

/// A network interface, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number in this network namespace.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// The link has a carrier.
    pub carrier: bool,
    /// Promiscuous already, before the sensor asks for it.
    pub promiscuous: bool,
    /// Addresses of the host on it, with their prefix lengths.
    pub addresses: Vec<String>,
    /// Largest payload of a frame, in octets.
    pub mtu: u32,
    /// Name of its driver, e.g. "ixgbe"; empty when the kernel does not say.
    pub driver: String,
    /// What its link carries, in megabits per second; `None` when it does not say.
    pub speed_mbits: Option<u32>,
    /// RX queues in use; at least 1.
    pub rx_queues: u32,
    /// What ethtool calls the channels that these are: `combined` or `rx`.
    pub channels: &'static str,
    /// Whether both directions of a conversation come on the same RX queue.
    pub spread: Spread,
    /// Fragments of UDP over IPv4 come on another RX queue than whole packets between the same ports.
    pub parts_fragments: bool,
    /// Receive offloads that change packets.
    pub offloads: Offloads,
}

/// How packets are spread over RX queues. The two directions of a conversation are metered together only when they come on the
/// same queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// There is one queue, or the card sends everything to one.
    OneQueue,
    /// By a hash that is the same for both directions.
    Symmetric,
    /// By such a hash, but of packets of one kind only one end goes into it.
    OneEnd {
        /// The kind as ethtool calls it, e.g. `udp4`.
        kind: &'static str,
    },
    /// By a hash that differs between the directions; its key has so many octets.
    Asymmetric {
        /// Length of the key; 0 when the card has none or hides it.
        key_len: usize,
    },
    /// The driver does not say.
    Unknown,
}

/// Receive offloads that are switched on and show the sensor something else than what was on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The card glues segments together (lro).
    pub large_receive: bool,
    /// The kernel glues segments together (gro), after XDP but before packet sockets.
    pub generic_receive: bool,
    /// The card takes VLAN tags out of the frame (rxvlan).
    pub vlan_strip: bool,
}

impl Interface {
    /// All interfaces of this network namespace, by name.
    pub fn names() -> Vec<String> {
        pnet_datalink::interfaces().into_iter().map(|interface| interface.name).collect()
    }

    /// Looks at the interface called `name`.
    ///
    /// # Errors
    /// There is none; the sentence names the likely one or all there are.
    pub fn find(name: &str) -> Result<Self, CaptureError> {
        let all = pnet_datalink::interfaces();
        let Some(found) = all.iter().find(|interface| interface.name == name) else {
            let names: Vec<_> = all.iter().map(|interface| interface.name.as_str()).collect();
            return Err(unknown(name, &names));
        };
        let (rx_queues, channels) = rx_queues(name);
        let fields = if rx_queues == 1 { Vec::new() } else { hashed_fields(name) };
        Ok(Self {
            name: found.name.clone(),
            index: found.index,
            up: found.is_up(),
            carrier: found.is_lower_up(),
            promiscuous: found.flags & libc::IFF_PROMISC.cast_unsigned() != 0,
            addresses: found.ips.iter().map(ToString::to_string).collect(),
            mtu: syscall::mtu(name).unwrap_or(1500),
            driver: syscall::driver(name).unwrap_or_default(),
            speed_mbits: in_sysfs(name, found.index, "speed")
                .and_then(|mbits| u32::try_from(mbits).ok())
                .filter(|mbits| *mbits > 0),
            rx_queues,
            channels,
            spread: if rx_queues == 1 { Spread::OneQueue } else { Spread::of(syscall::receive_hash(name).ok(), &fields) },
            parts_fragments: fields.iter().any(|&(kind, bits)| kind == "udp4" && bits & (SOURCE_PORT | DESTINATION_PORT) != 0),
            offloads: Offloads::of(name),
        })
    }

    /// Refuses an interface that is down.
    ///
    /// # Errors
    /// It is down; says how to bring it up.
    pub fn require_up(&self) -> Result<(), CaptureError> {
        if self.up {
            return Ok(());
        }
        Err(CaptureError {
            kind: CaptureErrorKind::Unsupported,
            doing: format!("capture from {}", self.name),
            cause: "the interface is down".into(),
            remedy: format!("bring it up without an address: ip link set {0} up", self.name),
        })
    }

    /// What distorts or endangers a capture that is in force, each as a sentence with its remedy.
    pub fn warnings(&self, in_force: InForce) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.carrier {
            warnings.push(format!("{} has no carrier: check the cable and the mirror session of the switch", self.name));
        }
        if !self.addresses.is_empty() {
            warnings.push(format!(
                "{} has the address {}: a SPAN port should have none, or the host answers on it; ip addr flush dev {}",
                self.name,
                self.addresses.join(", "),
                self.name
            ));
        }
        if in_force != InForce::Packet
            && let Some(command) = self.spread.command(&self.name, self.channels)
        {
            warnings.push(format!(
                "{}: both directions of a conversation may come on different RX queues; the records say so, and the collector joins \
                 them. Better where the card can do it: {command}",
                self.name
            ));
        }
        if let Some(command) = self.offloads.command(&self.name, in_force) {
            warnings.push(format!(
                "{}: {}; switch off: {command}",
                self.name, "offloads show the sensor packets that were not on the wire (glued together, or without VLAN tag)"
            ));
        }
        warnings
    }

    /// Its directory in sysfs; `None` where sysfs is that of another network namespace, or there is none.
    pub(crate) fn sysfs(&self) -> Option<PathBuf> {
        in_sysfs(&self.name, self.index, "ifindex").map(|_| Path::new("/sys/class/net").join(&self.name))
    }

    /// What busy polling wants of the driver: for how many rounds it leaves interrupts off, and for how many nanoseconds at most.
    pub(crate) fn busy_poll_help(&self) -> (u64, u64) {
        let read = |file| in_sysfs(&self.name, self.index, file).and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        (read("napi_defer_hard_irqs"), read("gro_flush_timeout"))
    }

    /// Packets that the card lost for want of buffers since the interface was made (`rx_missed_errors`); 0 where the kernel does not
    /// say.
    pub(super) fn rx_missed(&self) -> u64 {
        let count = in_sysfs(&self.name, self.index, "statistics/rx_missed_errors");
        count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
    }
}

/// What of a packet goes into the hash (`RXH_*` in linux/ethtool.h).
const SOURCE_ADDRESS: u64 = 1 << 4;
const DESTINATION_ADDRESS: u64 = 1 << 5;
const SOURCE_PORT: u64 = 1 << 6;
const DESTINATION_PORT: u64 = 1 << 7;

impl Spread {
    /// Whether both directions of a conversation come on the same queue.
    pub fn keeps_together(&self) -> bool {
        matches!(self, Self::OneQueue | Self::Symmetric)
    }

    /// By the card's hash, and by what of each kind of packet goes into it, as far as the driver says.
    fn of(hash: Option<syscall::ReceiveHash>, fields: &[(&'static str, u64)]) -> Self {
        let Some(hash) = hash else { return Self::Unknown };
        if hash.table.windows(2).all(|two| two[0] == two[1]) && !hash.table.is_empty() {
            return Self::OneQueue;
        }
        // A Toeplitz key that repeats every 16 bits gives the same hash when addresses and ports change places.
        let repeats = hash.key.len() >= 4 && hash.key.windows(3).all(|three| three[0] == three[2]);
        if !(hash.mixed || hash.toeplitz && repeats) {
            return Self::Asymmetric { key_len: hash.key.len() };
        }
        let has_one_end = |bits: u64| {
            [(SOURCE_ADDRESS, DESTINATION_ADDRESS), (SOURCE_PORT, DESTINATION_PORT)]
                .into_iter()
                .any(|(source, destination)| (bits & source != 0) != (bits & destination != 0))
        };
        match fields.iter().find(|(_, bits)| has_one_end(*bits)) {
            Some(&(kind, _)) => Self::OneEnd { kind },
            None => Self::Symmetric,
        }
    }

    /// The command that brings both directions together; `None` when they are.
    pub fn command(&self, name: &str, channels: &str) -> Option<String> {
        match self {
            Self::OneQueue | Self::Symmetric => None,
            Self::OneEnd { kind } => Some(format!("ethtool -N {name} rx-flow-hash {kind} sdfn")),
            Self::Asymmetric { key_len } if *key_len >= 4 => {
                let key: Vec<&str> = ["6d", "5a"].into_iter().cycle().take(*key_len).collect();
                Some(format!("ethtool -X {name} hfunc toeplitz hkey {}", key.join(":")))
            }
            Self::Asymmetric { .. } => Some(format!("ethtool -X {name} xfrm symmetric-xor")),
            Self::Unknown => Some(format!("ethtool -L {name} {channels} 1")),
        }
    }
}

impl Offloads {
    fn of(name: &str) -> Self {
        const GET_FLAGS: u32 = 0x25;
        const GET_GRO: u32 = 0x2b;
        const FLAG_RXVLAN: u32 = 1 << 8;
        const FLAG_LRO: u32 = 1 << 15;
        // An interface without ethtool, such as a tunnel, has no such offloads.
        let flags = syscall::ethtool_value(name, GET_FLAGS).unwrap_or(0);
        Self {
            large_receive: flags & FLAG_LRO != 0,
            generic_receive: syscall::ethtool_value(name, GET_GRO).unwrap_or(0) != 0,
            vlan_strip: flags & FLAG_RXVLAN != 0,
        }
    }

    /// The command that switches off what distorts a capture of this kind; `None` when nothing does.
    ///
    /// XDP sees packets before GRO: native because it comes first, generic because the kernel leaves GRO out where it runs. libpcap
    /// puts stripped VLAN tags back.
    pub fn command(&self, name: &str, in_force: InForce) -> Option<String> {
        let harmful = [
            (self.large_receive, "lro"),
            (self.generic_receive && in_force == InForce::Packet, "gro"),
            (self.vlan_strip && in_force != InForce::Packet, "rxvlan"),
        ];
        let words: Vec<String> = harmful.iter().filter(|(on, _)| *on).map(|(_, word)| format!("{word} off")).collect();
        if words.is_empty() { None } else { Some(format!("ethtool -K {name} {}", words.join(" "))) }
    }
}

fn unknown(name: &str, names: &[&str]) -> CaptureError {
    let likely = names
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), *known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    CaptureError {
        kind: CaptureErrorKind::UnknownInterface,
        doing: format!("capture from {name}"),
        cause: "there is no such interface".into(),
        remedy: match likely {
            Some((_, known)) => format!("did you mean `{known}`?"),
            None => format!("there are: {}", names.join(", ")),
        },
    }
}

/// A number that sysfs has for the interface. sysfs may be that of another network namespace, with another interface of the same name:
/// then there is none.
fn in_sysfs(name: &str, index: u32, file: &str) -> Option<i64> {
    let read = |file: &str| fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?.trim().parse().ok();
    if read("ifindex") == Some(i64::from(index)) { read(file) } else { None }
}

/// What of each kind of packet goes into the receive hash, for the kinds that the driver tells of.
fn hashed_fields(name: &str) -> Vec<(&'static str, u64)> {
    // By their numbers in linux/ethtool.h: TCP_V4_FLOW and so on.
    let kinds = [("tcp4", 1), ("udp4", 2), ("tcp6", 5), ("udp6", 6)];
    kinds.into_iter().filter_map(|(kind, number)| Some((kind, syscall::hashed_fields(name, number).ok()?))).collect()
}

/// How many there are, and what ethtool calls them: by ethtool, else by sysfs, else one.
fn rx_queues(name: &str) -> (u32, &'static str) {
    match syscall::rx_channels(name) {
        Ok((rx @ 1.., 0)) => return (rx, "rx"),
        Ok((rx, combined)) if combined > 0 => return (rx + combined, "combined"),
        Ok(_) | Err(_) => {}
    }
    let queues = fs::read_dir(format!("/sys/class/net/{name}/queues")).into_iter().flatten().flatten();
    let receive = queues.filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-")).count();
    (u32::try_from(receive.max(1)).unwrap_or(1), "combined")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_interface_is_answered_with_the_likely_one_or_with_all() {
        assert_eq!(
            unknown("en02", &["lo", "eno2"]).to_string(),
            "capture from en02: there is no such interface; did you mean `eno2`?"
        );
        assert_eq!(
            unknown("span", &["lo", "eno2"]).to_string(),
            "capture from span: there is no such interface; there are: lo, eno2"
        );
    }

    #[test]
    fn only_the_offloads_that_distort_this_kind_of_capture_are_named() {
        let all = Offloads { large_receive: true, generic_receive: true, vlan_strip: true };
        assert_eq!(all.command("eno2", InForce::AfXdpCopy).as_deref(), Some("ethtool -K eno2 lro off rxvlan off"));
        assert_eq!(all.command("eno2", InForce::Packet).as_deref(), Some("ethtool -K eno2 lro off gro off"));
        let usual = Offloads { generic_receive: true, ..Offloads::default() };
        assert_eq!(usual.command("eno2", InForce::AfXdpCopy), None);
    }

    fn hash(key: &[u8]) -> syscall::ReceiveHash {
        syscall::ReceiveHash { key: key.to_vec(), toeplitz: true, ..syscall::ReceiveHash::default() }
    }

    #[test]
    fn a_key_that_repeats_every_16_bits_keeps_directions_together() {
        assert_eq!(Spread::of(Some(hash(&[0x6d, 0x5a, 0x6d, 0x5a])), &[]), Spread::Symmetric);
        let usual = hash(&[0x6d, 0x5a, 0x56, 0xda]);
        let spread = Spread::of(Some(usual.clone()), &[]);
        assert_eq!(spread.command("eno2", "combined").as_deref(), Some("ethtool -X eno2 hfunc toeplitz hkey 6d:5a:6d:5a"));
        let mixed = syscall::ReceiveHash { mixed: true, ..usual.clone() };
        assert_eq!(Spread::of(Some(mixed), &[]), Spread::Symmetric);
        let hidden = Spread::of(Some(hash(&[])), &[]);
        assert_eq!(hidden.command("eno2", "combined").as_deref(), Some("ethtool -X eno2 xfrm symmetric-xor"));
        assert_eq!(Spread::of(None, &[]).command("eno2", "combined").as_deref(), Some("ethtool -L eno2 combined 1"));
        assert!(!spread.keeps_together());
    }

    #[test]
    fn a_table_that_names_one_queue_keeps_directions_together_whatever_the_key() {
        let usual = hash(&[0x6d, 0x5a, 0x56, 0xda]);
        let all_to = |table: &[u32]| Spread::of(Some(syscall::ReceiveHash { table: table.to_vec(), ..usual.clone() }), &[]);
        assert_eq!(all_to(&[3, 3, 3, 3]), Spread::OneQueue);
        assert_eq!(all_to(&[0, 1, 0, 1]), Spread::Asymmetric { key_len: 4 });
    }

    #[test]
    fn one_end_in_the_hash_parts_the_directions_of_that_kind() {
        const BOTH: u64 = SOURCE_ADDRESS | DESTINATION_ADDRESS;
        let of = |udp4: u64| Spread::of(Some(hash(&[0x6d, 0x5a, 0x6d, 0x5a])), &[("tcp4", BOTH), ("udp4", udp4)]);
        assert_eq!(of(BOTH), Spread::Symmetric, "TCP with ports or UDP without: each is symmetric in itself");
        assert_eq!(of(BOTH | SOURCE_PORT | DESTINATION_PORT), Spread::Symmetric);
        for one_end in [SOURCE_ADDRESS, BOTH | DESTINATION_PORT] {
            assert_eq!(of(one_end).command("eno2", "combined").as_deref(), Some("ethtool -N eno2 rx-flow-hash udp4 sdfn"));
        }
    }

    #[test]
    fn the_loopback_interface_is_found_as_it_is() {
        let lo = Interface::find("lo").expect("every namespace has one");
        assert_eq!((lo.index, lo.rx_queues), (1, 1));
    }
}
