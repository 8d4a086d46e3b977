//! ICMP of both families: echo answered, and errors told.

use crate::addresses::{GATEWAY, GATEWAY6, Target, may_send, target};
use crate::context::Context;
use crate::output::{datagram, transport_checksum};
use crate::packet::Packet;
use crate::ping::Ping;
use crate::route::Why;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, checksum};
use std::net::{IpAddr, SocketAddr};

const ECHO4: u8 = 8;
const ECHO6: u8 = 128;
/// As much of the packet as an error carries: the error stays within the smallest MTU (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
const QUOTE4: usize = 576 - 20 - 8;
const QUOTE6: usize = 1280 - 40 - 8;

/// An ICMP message of the guest's; neighbour discovery was taken out before.
pub(crate) fn input(context: &mut Context, ping: &mut Ping, packet: &Packet<'_>) {
    let (request, reply) = if packet.source.is_ipv4() { (ECHO4, 0) } else { (ECHO6, 129) };
    // Type, code, checksum, identifier, sequence number, data.
    let Some(&[kind, 0, _, _, ..]) = packet.payload.first_chunk::<8>().map(|chunk| chunk.as_slice()) else {
        return;
    };
    let checked = packet.partial || sum(packet.source, packet.destination, &packet.payload) == 0;
    if kind != request || !checked {
        return;
    }
    match target(packet.destination) {
        Target::Gateway | Target::Resolver => {
            let mut answer = packet.payload.to_vec();
            answer[0] = reply;
            send(context, packet.destination, packet.source, answer);
        }
        Target::Outside if context.restrict => unreachable(context, packet, Why::Prohibited),
        Target::Outside => ping.request(context, packet),
        Target::Nobody => unreachable(context, packet, Why::NoHost),
        Target::Many => {}
    }
}

/// Sends a message of at least eight bytes, with its checksum.
pub(crate) fn send(context: &mut Context, source: IpAddr, destination: IpAddr, mut message: Vec<u8>) {
    let Some(field) = message.get_mut(2..4) else { return };
    field.fill(0);
    let sum = sum(source, destination, &message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    context.out.packet(source, destination, protocol(source), &message);
}

/// The checksum of a message; 0 if it has its right one.
pub(crate) fn sum(source: IpAddr, destination: IpAddr, message: &[u8]) -> u16 {
    match source {
        IpAddr::V4(_) => !checksum::data(message),
        IpAddr::V6(_) => transport_checksum(source, destination, IpProtocol::Icmpv6, message),
    }
}

fn protocol(address: IpAddr) -> IpProtocol {
    if address.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 }
}

/// Tells the guest that its packet leads nowhere.
pub(crate) fn unreachable(context: &mut Context, packet: &Packet<'_>, why: Why) {
    quote(context, packet.source, packet.destination, &packet.for_stack(), why);
}

/// Tells the guest that a datagram of a flow of its led nowhere, from what is known of the flow.
pub(crate) fn unreachable_flow(context: &mut Context, guest: SocketAddr, other: SocketAddr, why: Why) {
    let (source, destination) = ((guest.ip(), guest.port()), (other.ip(), other.port()));
    let Some(datagram) = datagram(source, destination, &[]) else { return };
    let header = IpRepr::new(source.0.into(), destination.0.into(), IpProtocol::Udp, datagram.len(), 64);
    let mut packet = vec![0; header.header_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    packet.extend_from_slice(&datagram);
    quote(context, guest.ip(), other.ip(), &packet, why);
}

fn quote(context: &mut Context, guest: IpAddr, other: IpAddr, packet: &[u8], why: Why) {
    if !may_send(guest) || target(other) == Target::Many {
        return;
    }
    let (kind, code, most, gateway) = match guest {
        IpAddr::V4(_) => {
            let code = match why {
                Why::NoNetwork => 0,
                Why::NoHost => 1,
                Why::NoPort => 3,
                Why::Prohibited => 13,
            };
            (3, code, QUOTE4, IpAddr::V4(GATEWAY))
        }
        IpAddr::V6(_) => {
            let code = match why {
                Why::NoNetwork => 0,
                Why::Prohibited => 1,
                Why::NoHost => 3,
                Why::NoPort => 4,
            };
            (1, code, QUOTE6, IpAddr::V6(GATEWAY6))
        }
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&packet[..packet.len().min(most)]);
    // That a port is closed only its host knows.
    let source = if why == Why::NoPort { other } else { gateway };
    send(context, source, guest, message);
}
