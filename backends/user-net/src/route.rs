//! Where what the guest sends goes.

use crate::addresses::{Target, on_guest_network, target};
use crate::context::Context;
use smoltcp::wire::IpProtocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const DNS_PORT: u16 = 53;

/// Why something is not reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    NoNetwork,
    NoHost,
    NoPort,
    Prohibited,
}

/// What to do for a destination.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Try these addresses of the host's world, in order.
    Connect(Vec<SocketAddr>),
    /// Nobody listens there.
    Refuse,
    Unreachable(Why),
    Ignore,
}

/// Where a connection or flow to `destination` goes.
pub(crate) fn decide(context: &mut Context, destination: SocketAddr, protocol: IpProtocol) -> Decision {
    let port = destination.port();
    match target(destination.ip()) {
        Target::Gateway if context.host && !context.restrict => {
            let loopback = match destination {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            Decision::Connect(vec![SocketAddr::new(loopback, port)])
        }
        Target::Gateway => Decision::Refuse,
        // UDP goes to the relay before it comes here.
        Target::Resolver if port == DNS_PORT && protocol == IpProtocol::Tcp => {
            Decision::Connect(context.resolvers.list(context.now))
        }
        Target::Resolver => Decision::Refuse,
        Target::Outside if context.restrict => Decision::Unreachable(Why::Prohibited),
        Target::Outside => Decision::Connect(vec![destination]),
        Target::Nobody if on_guest_network(destination.ip()) => Decision::Unreachable(Why::NoHost),
        Target::Nobody => Decision::Unreachable(Why::NoNetwork),
        Target::Many => Decision::Ignore,
    }
}
