//! The `[flow]` table of the sensor's configuration: what makes packets one flow, and whether a second copy of a packet counts.

use bytemuck::Zeroable as _;
use serde::{Deserialize, Serialize};

use crate::decode::{Around, FlowKey, Packet};
use crate::dedup::DedupMode;
use crate::flow_table::KeyHasher;

/// What makes packets one flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowSettings {
    /// What is in the key beside addresses, ports and protocol.
    pub key: KeySettings,
    /// Second copies of a packet, as a port mirrored both ways gives them: "off", they count like any packet; "on", they are removed from the
    /// first one on; "auto", they are counted, and removed as long as they are many (from 5 % of the packets in 10 s on, until they are below
    /// 0.5 % in a minute). What is removed is in the ledger.
    pub dedup: DedupMode,
    /// How far apart copies may be, in microseconds. Longer finds copies that come by different ways; too long takes repeated packets for
    /// copies. HSR and PRP twins have 400 ms in any case. 500 to 10000.
    pub dedup_window_micros: u32,
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self { key: KeySettings::default(), dedup: DedupMode::default(), dedup_window_micros: 2000 }
    }
}

impl FlowSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The key that is out of range, and a sentence about it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(500..=10_000).contains(&self.dedup_window_micros) {
            return Err(("dedup_window_micros", format!("{} is out of range; choose 500 to 10000", self.dedup_window_micros)));
        }
        Ok(())
    }
}

/// What is in the key of a flow beside addresses, ports and protocol of the innermost conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// Whether packets of different VLANs belong to different flows: machine cells with the same addresses, each in a VLAN of its own.
    /// Turn it off when the switch tags only one direction.
    pub vlan: bool,
    /// Whether packets of different overlays (VXLAN network, GENEVE network, NVGRE subnet, GRE key) belong to different flows. Turn it on where
    /// tenants with the same addresses are told apart by nothing else.
    pub tunnel: bool,
    /// Whether packets from different interfaces of a capture file belong to different flows. Leave it off for the two fibres of a TAP.
    pub interface: bool,
    /// Whether packets between different pairs of MAC addresses belong to different flows. Splits a conversation that takes several
    /// routers.
    pub mac: bool,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self { vlan: true, tunnel: false, interface: false, mac: false }
    }
}

/// Puts into a key what stands in no field of it: one number for tunnel, interface and MAC addresses, as the settings want.
///
/// The number is 32 bits of a keyed hash. It tells apart only conversations that agree in everything else, so that two of these are taken
/// for one with a chance of 2⁻³².
pub(crate) struct KeyContext {
    settings: KeySettings,
    hasher: KeyHasher,
    is_wanted: bool,
}

impl KeyContext {
    pub(crate) fn new(settings: &KeySettings, hasher: KeyHasher) -> Self {
        let is_wanted = settings.tunnel || settings.interface || settings.mac;
        Self { settings: settings.clone(), hasher, is_wanted }
    }

    /// Whether anything but VLANs is wanted.
    #[inline]
    pub(crate) const fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// The number for a packet; `around` belongs to it when it has encapsulations.
    pub(crate) fn of(&self, packet: &Packet, around: &Around) -> u32 {
        let mut word = FlowKey::zeroed();
        if self.settings.tunnel && !packet.encapsulations.is_empty() {
            word.a[..8].copy_from_slice(&around.layer2_segment.to_be_bytes());
        }
        if self.settings.interface {
            word.context = packet.interface;
        }
        if self.settings.mac && !packet.key.is_layer2() {
            // The same both ways.
            let [least, greatest] = match packet.source_mac <= packet.destination_mac {
                true => [packet.source_mac, packet.destination_mac],
                false => [packet.destination_mac, packet.source_mac],
            };
            word.b[..6].copy_from_slice(&least);
            word.b[6..12].copy_from_slice(&greatest);
        }
        self.hasher.hash(&word).tag as u32
    }
}
