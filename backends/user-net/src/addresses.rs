//! Who is who on the guest's network. The addresses are those users know from QEMU's `-net user`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The guest's address, which DHCP leases first.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway; with `host=on` the host's loopback.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The DNS relay.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The netmask of the guest's network.
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The gateway's IPv6 address in the prefix that router advertisements announce, `fec0::/64`.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The DNS relay's IPv6 address.
pub const RESOLVER6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
/// The gateway's link-local address, from which router advertisements come.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// The MAC address of everything that is not the guest.
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
pub(crate) const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// What a destination of the guest's stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The gateway itself.
    Gateway,
    /// The DNS relay.
    Resolver,
    /// An address that the host may have a route to.
    Outside,
    /// One that nobody here has: absent from the guest's network, or not to be reached through a router.
    Nobody,
    /// A group or everybody: nothing is forwarded, and nothing is answered.
    Many,
}

/// Sorts a destination. Everything that the host's kernel would take for its own loopback (127/8, 0/8, the IPv6 forms
/// that embed an IPv4 address) is nobody: the host's loopback is reached at the gateway's address or not at all.
/// Link-local addresses are too, since routers do not forward them (RFC 3927, 7; RFC 4291, 2.5.6): the guest is not on
/// the host's link, and must not reach what a cloud tells its hosts at 169.254.169.254.
pub(crate) fn target(destination: IpAddr) -> Target {
    match destination {
        IpAddr::V4(GATEWAY) => Target::Gateway,
        IpAddr::V4(RESOLVER) => Target::Resolver,
        IpAddr::V4(a) if a.is_multicast() || a.is_broadcast() || a == network(255) => Target::Many,
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            let nobody = on_guest_network(destination)
                || a.is_loopback()
                || a.is_link_local()
                || first == 0
                || first >= 240;
            if nobody { Target::Nobody } else { Target::Outside }
        }
        IpAddr::V6(GATEWAY6 | GATEWAY_LINK_LOCAL) => Target::Gateway,
        IpAddr::V6(RESOLVER6) => Target::Resolver,
        IpAddr::V6(a) if a.is_multicast() => Target::Many,
        IpAddr::V6(a) => {
            let segments = a.segments();
            let embeds_ipv4 = segments[..5] == [0; 5] && matches!(segments[5], 0 | 0xffff);
            let nobody = on_guest_network(destination) || embeds_ipv4 || a.is_unicast_link_local();
            if nobody { Target::Nobody } else { Target::Outside }
        }
    }
}

const fn network(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, host)
}

/// Whether the address lies in one of the guest's networks.
pub(crate) fn on_guest_network(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[..3] == network(0).octets()[..3],
        IpAddr::V6(a) => a.segments()[..4] == GATEWAY6.segments()[..4],
    }
}

/// Whether a packet of the guest's may come from there. DHCP, whose clients have no address yet, is looked at before.
pub(crate) fn may_send(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(a) => on_guest_network(source) && !matches!(a.octets()[3], 0 | 2 | 3 | 255),
        IpAddr::V6(GATEWAY6 | RESOLVER6 | GATEWAY_LINK_LOCAL) => false,
        IpAddr::V6(a) => {
            (on_guest_network(source) && a.segments()[4..] != [0; 4]) || a.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_means_the_hosts_loopback_is_outside() {
        for nobody in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "240.0.0.1",
            "10.0.2.4",
            "10.0.2.15",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "fe80::1",
            "fec0::9",
        ] {
            assert_eq!(target(nobody.parse().unwrap()), Target::Nobody, "{nobody}");
        }
    }

    #[test]
    fn others_are_what_they_are() {
        for (address, expected) in [
            ("10.0.2.2", Target::Gateway),
            ("fec0::2", Target::Gateway),
            ("fe80::2", Target::Gateway),
            ("10.0.2.3", Target::Resolver),
            ("fec0::3", Target::Resolver),
            ("192.168.0.1", Target::Outside),
            ("10.0.3.15", Target::Outside),
            ("2001:db8::1", Target::Outside),
            ("10.0.2.255", Target::Many),
            ("255.255.255.255", Target::Many),
            ("224.0.0.251", Target::Many),
            ("ff02::1", Target::Many),
        ] {
            assert_eq!(target(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn the_guest_sends_from_its_networks_and_not_as_us() {
        for (address, expected) in [
            ("10.0.2.15", true),
            ("10.0.2.200", true),
            ("10.0.2.2", false),
            ("10.0.2.3", false),
            ("10.0.2.255", false),
            ("10.0.2.0", false),
            ("8.8.8.8", false),
            ("127.0.0.1", false),
            ("fec0::5054:ff:fe12:3456", true),
            ("fe80::5054:ff:fe12:3456", true),
            ("fec0::2", false),
            ("fec0::", false),
            ("fe80::2", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(may_send(address.parse().unwrap()), expected, "{address}");
        }
    }
}
