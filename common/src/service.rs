//! Which ports are services: the last hint for who opened a conversation that we did not see begin.

/// Ports on which a server listens, by IP protocol (6 TCP, 17 UDP, 132 SCTP), beyond the system ports below 1024.
///
/// IT services from the IANA registry that scans and plants meet every day, and the OT services of `otics` feeds.
const TCP: [u16; 47] = [
    1433, 1521, 1723, 1883, 1962, 2049, 2181, 2222, 2379, 2404, 3128, 3268, 3306, 3389, 4222, 4712, 4840, 5000, 5007, 5060, 5094,
    5432, 5671, 5672, 5900, 5938, 5985, 5986, 6379, 7443, 8000, 8080, 8086, 8443, 8883, 8888, 9090, 9092, 9200, 9300, 9600,
    11211, 18245, 20000, 27017, 44818, 48898,
];
const UDP: [u16; 28] = [
    1194, 1434, 1645, 1646, 1701, 1812, 1813, 1900, 2055, 2152, 2222, 3478, 3702, 3784, 4500, 4739, 4789, 5060, 5094, 5353, 5355,
    6081, 6343, 9600, 20000, 34964, 44818, 47808,
];

/// How much a port looks like the serving end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing speaks for a service.
    Ephemeral,
    /// A system port, below 1024 (RFC 6335 §6).
    System,
    /// Registered and known to us.
    Known,
}

/// What the port number alone says about `port` of IP protocol `protocol`.
pub fn standing(protocol: u8, port: u16) -> Standing {
    let known = match protocol {
        6 => TCP.binary_search(&port).is_ok(),
        17 => UDP.binary_search(&port).is_ok(),
        _ => false,
    };
    match port {
        0 => Standing::Ephemeral,
        _ if known => Standing::Known,
        1..1024 => Standing::System,
        _ => Standing::Ephemeral,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_so_that_they_can_be_searched() {
        assert!(TCP.is_sorted());
        assert!(UDP.is_sorted());
    }

    #[test]
    fn modbus_is_a_system_port_and_opc_ua_a_known_one() {
        assert_eq!(standing(6, 502), Standing::System);
        assert_eq!(standing(6, 4840), Standing::Known);
        assert_eq!(standing(17, 4840), Standing::Ephemeral);
        assert_eq!(standing(6, 51234), Standing::Ephemeral);
    }
}
