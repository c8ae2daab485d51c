//! Settings of the decoder, and the same ready for use.

use serde::{Deserialize, Serialize};

/// Most ports for one kind of tunnel.
const PORTS_MAX: usize = 8;

/// What is recognised by a UDP port. Everything else (tags, MPLS, GRE, ERSPAN, IP in IP…) names itself and needs no setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeSettings {
    /// UDP destination ports of VXLAN: IANA's, and the one that Linux took before there was one. At most 8.
    pub vxlan_ports: Vec<u16>,
    /// The same of GENEVE.
    pub geneve_ports: Vec<u16>,
    /// Whether UDP port 2152 is GTP-U (mobile networks). Off: a port alone proves nothing, and other traffic on it would be misread.
    pub gtp_u: bool,
    /// Whether UDP port 3544 is Teredo. Off for the same reason.
    pub teredo: bool,
}

impl Default for DecodeSettings {
    fn default() -> Self {
        Self { vxlan_ports: vec![4789, 8472], geneve_ports: vec![6081], gtp_u: false, teredo: false }
    }
}

impl DecodeSettings {
    /// # Errors
    /// The key that is out of range, and a sentence about it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, ports) in [("vxlan_ports", &self.vxlan_ports), ("geneve_ports", &self.geneve_ports)] {
            if ports.len() > PORTS_MAX {
                return Err((key, format!("has {} ports; give at most {PORTS_MAX}", ports.len())));
            }
            if ports.contains(&0) {
                return Err((key, "0 is no port; leave it out".to_owned()));
            }
        }
        Ok(())
    }
}

/// A tunnel that is known by its UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UdpTunnel {
    Vxlan,
    VxlanGpe,
    Geneve,
    GtpU,
    Teredo,
    Mpls,
}

/// What the decoder may be told.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether VLAN identifiers are part of the key.
    pub vlan_in_key: bool,
    /// A bit for each residue modulo 64 of a tunnel's port: most packets are told apart by one look.
    sieve: u64,
    ports: [(u16, UdpTunnel); 2 * PORTS_MAX + 4],
}

impl Rules {
    /// The rules that the settings ask for.
    pub fn new(settings: &DecodeSettings, vlan_in_key: bool) -> Self {
        let mut rules = Self { vlan_in_key, sieve: 0, ports: [(0, UdpTunnel::Vxlan); 2 * PORTS_MAX + 4] };
        let own = [
            // Registered for these two and nothing else: draft-ietf-nvo3-vxlan-gpe, RFC 7510 §3.
            Some((4790, UdpTunnel::VxlanGpe)),
            Some((6635, UdpTunnel::Mpls)),
            settings.gtp_u.then_some((2152, UdpTunnel::GtpU)),
            settings.teredo.then_some((3544, UdpTunnel::Teredo)),
        ];
        let vxlan = settings.vxlan_ports.iter().map(|&port| (port, UdpTunnel::Vxlan));
        let geneve = settings.geneve_ports.iter().map(|&port| (port, UdpTunnel::Geneve));
        for (slot, tunnel) in rules.ports.iter_mut().zip(vxlan.chain(geneve).chain(own.into_iter().flatten())) {
            *slot = tunnel;
            rules.sieve |= 1 << (tunnel.0 % 64);
        }
        rules
    }

    /// Whether a UDP datagram to `port` may be a tunnel's; if so, [`tunnel`](Self::tunnel) knows.
    #[inline]
    pub(super) const fn may_be_tunnel(&self, port: u16) -> bool {
        self.sieve >> (port % 64) & 1 != 0
    }

    /// The tunnel that datagrams to `port` belong to.
    pub(super) fn tunnel(&self, port: u16) -> Option<UdpTunnel> {
        self.ports.iter().find(|(known, _)| *known == port && port != 0).map(|&(_, tunnel)| tunnel)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::new(&DecodeSettings::default(), true)
    }
}
