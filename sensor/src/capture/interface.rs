//! What there is to know about an interface before and while it is captured from.

use std::fs;

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
    /// RX queues in use; at least 1.
    pub rx_queues: u32,
    /// Whether both directions of a conversation come on the same RX queue.
    pub spread: Spread,
    /// Receive offloads that change packets.
    pub offloads: Offloads,
}

/// How packets are spread over RX queues. The two directions of a conversation are metered together only when they come on the
/// same queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// There is one queue.
    OneQueue,
    /// By a hash that is the same for both directions.
    Symmetric,
    /// By a hash that differs between the directions; its key has so many octets.
    Asymmetric {
        /// Length of the key.
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
        let rx_queues = rx_queues(name);
        Ok(Self {
            name: found.name.clone(),
            index: found.index,
            up: found.is_up(),
            carrier: found.is_lower_up(),
            promiscuous: found.flags & libc::IFF_PROMISC.cast_unsigned() != 0,
            addresses: found.ips.iter().map(ToString::to_string).collect(),
            mtu: syscall::mtu(name).unwrap_or(1500),
            driver: syscall::driver(name).unwrap_or_default(),
            rx_queues,
            spread: if rx_queues == 1 { Spread::OneQueue } else { Spread::of(syscall::receive_hash(name).ok()) },
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
            && let Some(command) = self.spread.command(&self.name)
        {
            warnings.push(format!(
                "{}: both directions of a conversation may come on different RX queues and be metered apart; {command}",
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

    /// Packets that the card lost for want of buffers since the interface was made (`rx_missed_errors`); 0 where the kernel does not
    /// say.
    pub(super) fn rx_missed(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(format!("/sys/class/net/{}/{file}", self.name)).ok()?.trim().parse().ok();
        // sysfs may be that of another network namespace, with another interface of the same name.
        if read("ifindex") != Some(u64::from(self.index)) {
            return 0;
        }
        read("statistics/rx_missed_errors").unwrap_or(0)
    }
}

impl Spread {
    fn of(hash: Option<syscall::ReceiveHash>) -> Self {
        let Some(hash) = hash else { return Self::Unknown };
        // A Toeplitz key that repeats every 16 bits gives the same hash when addresses and ports change places.
        let repeats = hash.key.len() >= 4 && hash.key.windows(3).all(|three| three[0] == three[2]);
        if hash.mixed || (hash.toeplitz && repeats) { Self::Symmetric } else { Self::Asymmetric { key_len: hash.key.len() } }
    }

    /// The command that brings both directions together; `None` when they are.
    pub fn command(&self, name: &str) -> Option<String> {
        match self {
            Self::OneQueue | Self::Symmetric => None,
            Self::Asymmetric { key_len } if *key_len >= 4 => {
                let key: Vec<&str> = ["6d", "5a"].into_iter().cycle().take(*key_len).collect();
                Some(format!("ethtool -X {name} hfunc toeplitz hkey {}", key.join(":")))
            }
            Self::Asymmetric { .. } | Self::Unknown => Some(format!("ethtool -L {name} combined 1")),
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

/// By ethtool, else by sysfs, else one.
fn rx_queues(name: &str) -> u32 {
    if let Ok(queues @ 1..) = syscall::rx_channels(name) {
        return queues;
    }
    let queues = fs::read_dir(format!("/sys/class/net/{name}/queues")).into_iter().flatten().flatten();
    let receive = queues.filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-")).count();
    u32::try_from(receive.max(1)).unwrap_or(1)
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

    #[test]
    fn a_key_that_repeats_every_16_bits_keeps_directions_together() {
        let hash = |key: &[u8], mixed| Some(syscall::ReceiveHash { key: key.to_vec(), toeplitz: true, mixed });
        assert_eq!(Spread::of(hash(&[0x6d, 0x5a, 0x6d, 0x5a], false)), Spread::Symmetric);
        assert_eq!(Spread::of(hash(&[0x6d, 0x5a, 0x56, 0xda], true)), Spread::Symmetric);
        let usual = Spread::of(hash(&[0x6d, 0x5a, 0x56, 0xda], false));
        assert_eq!(usual.command("eno2").as_deref(), Some("ethtool -X eno2 hfunc toeplitz hkey 6d:5a:6d:5a"));
        assert_eq!(Spread::of(None).command("eno2").as_deref(), Some("ethtool -L eno2 combined 1"));
    }

    #[test]
    fn the_loopback_interface_is_found_as_it_is() {
        let lo = Interface::find("lo").expect("every namespace has one");
        assert_eq!((lo.index, lo.rx_queues), (1, 1));
    }
}
