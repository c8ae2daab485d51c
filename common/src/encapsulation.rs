//! What a decoder takes off a frame on the way to the innermost conversation.

/// One kind of header (or trailer) around a conversation. The number is its bit in [`Encapsulations`], on the wire for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the field's; the table beside has their sources")]
pub enum Encapsulation {
    /// 802.1Q C-tag, TPID 0x8100.
    Vlan = 0,
    /// 802.1ad S-tag 0x88a8 and its forerunners 0x9100, 0x9200.
    ServiceVlan = 1,
    /// A tag with VID 0.
    PriorityTag = 2,
    Mpls = 3,
    /// Ethernet inside MPLS (RFC 4448).
    Pseudowire = 4,
    Pppoe = 5,
    Gre = 6,
    Nvgre = 7,
    Erspan1 = 8,
    Erspan2 = 9,
    Erspan3 = 10,
    Vxlan = 11,
    VxlanGpe = 12,
    Geneve = 13,
    /// IP inside IP: RFC 2003, 6in4 (RFC 4213), RFC 2473.
    IpInIp = 14,
    GtpU = 15,
    Teredo = 16,
    /// Cisco VN-Tag 0x8926.
    VnTag = 17,
    /// 802.1BR E-TAG 0x893f.
    ETag = 18,
    /// Cisco MetaData 0x8909.
    CiscoMetaData = 19,
    FabricPath = 20,
    /// IEC 62439-3 HSR tag 0x892f.
    Hsr = 21,
    /// IEC 62439-3 PRP redundancy control trailer.
    Prp = 22,
    /// LLC/SNAP around an ethertype (RFC 1042).
    Snap = 23,
    /// 802.1ah I-tag 0x88e7.
    Pbb = 24,
    /// Network service header (RFC 8300).
    Nsh = 25,
    /// 802.1CB R-TAG 0xf1c1.
    RTag = 26,
    /// MPLS in UDP (RFC 7510).
    MplsInUdp = 27,
    Trill = 28,
    /// PPP inside GRE version 1 (PPTP, RFC 2637).
    Pptp = 29,
}

impl Encapsulation {
    /// Every kind, in the order of its bit.
    pub const ALL: [Self; COUNT] = [
        Self::Vlan,
        Self::ServiceVlan,
        Self::PriorityTag,
        Self::Mpls,
        Self::Pseudowire,
        Self::Pppoe,
        Self::Gre,
        Self::Nvgre,
        Self::Erspan1,
        Self::Erspan2,
        Self::Erspan3,
        Self::Vxlan,
        Self::VxlanGpe,
        Self::Geneve,
        Self::IpInIp,
        Self::GtpU,
        Self::Teredo,
        Self::VnTag,
        Self::ETag,
        Self::CiscoMetaData,
        Self::FabricPath,
        Self::Hsr,
        Self::Prp,
        Self::Snap,
        Self::Pbb,
        Self::Nsh,
        Self::RTag,
        Self::MplsInUdp,
        Self::Trill,
        Self::Pptp,
    ];

    /// Its word in JSON, in the store and on /metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vlan => "vlan",
            Self::ServiceVlan => "svlan",
            Self::PriorityTag => "priority",
            Self::Mpls => "mpls",
            Self::Pseudowire => "pseudowire",
            Self::Pppoe => "pppoe",
            Self::Gre => "gre",
            Self::Nvgre => "nvgre",
            Self::Erspan1 => "erspan1",
            Self::Erspan2 => "erspan2",
            Self::Erspan3 => "erspan3",
            Self::Vxlan => "vxlan",
            Self::VxlanGpe => "vxlan_gpe",
            Self::Geneve => "geneve",
            Self::IpInIp => "ip_in_ip",
            Self::GtpU => "gtp_u",
            Self::Teredo => "teredo",
            Self::VnTag => "vntag",
            Self::ETag => "etag",
            Self::CiscoMetaData => "cisco_metadata",
            Self::FabricPath => "fabricpath",
            Self::Hsr => "hsr",
            Self::Prp => "prp",
            Self::Snap => "snap",
            Self::Pbb => "pbb",
            Self::Nsh => "nsh",
            Self::RTag => "rtag",
            Self::MplsInUdp => "mpls_in_udp",
            Self::Trill => "trill",
            Self::Pptp => "pptp",
        }
    }
}

/// How many kinds there are.
pub const COUNT: usize = 30;

/// A set of [`Encapsulation`]s: what was around a conversation, whatever the order and however often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Encapsulations(pub u32);

impl Encapsulations {
    /// Nothing around it.
    pub const NONE: Self = Self(0);

    /// This set with `kind` in it.
    #[must_use]
    pub const fn with(self, kind: Encapsulation) -> Self {
        Self(self.0 | 1 << kind as u32)
    }

    /// Whether `kind` is in it.
    pub const fn has(self, kind: Encapsulation) -> bool {
        self.0 >> kind as u32 & 1 != 0
    }

    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds in it, in the order of their bits.
    pub fn iter(self) -> impl Iterator<Item = Encapsulation> {
        Encapsulation::ALL.into_iter().filter(move |&kind| self.has(kind))
    }

    /// Reads what [`fmt::Display`](std::fmt::Display) wrote: names joined by `+`. None for an unknown name.
    pub fn from_names(text: &str) -> Option<Self> {
        text.split('+').filter(|name| !name.is_empty()).try_fold(Self::NONE, |set, name| {
            Encapsulation::ALL.into_iter().find(|kind| kind.name() == name).map(|kind| set.with(kind))
        })
    }
}

impl std::fmt::Display for Encapsulations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, kind) in self.iter().enumerate() {
            let joint = if n > 0 { "+" } else { "" };
            write!(f, "{joint}{}", kind.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_bit_and_its_name_and_both_read_back() {
        for (bit, kind) in Encapsulation::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, bit);
            assert_eq!(Encapsulations::from_names(kind.name()), Some(Encapsulations(1 << bit)));
        }
        let all = Encapsulations((1 << COUNT) - 1);
        assert_eq!(Encapsulations::from_names(&all.to_string()), Some(all));
        assert_eq!(Encapsulations::from_names("vlan+quic"), None);
    }
}
