//! Who has which MAC address: ARP, and IPv6's neighbour discovery with router advertisements (RFC 826, RFC 4861).

use crate::addresses::{GATEWAY, GATEWAY_LINK_LOCAL, GATEWAY_MAC, GATEWAY6, RESOLVER, RESOLVER6, may_send};
use crate::context::Context;
use crate::icmp::sum;
use crate::packet::Packet;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, IpProtocol};
use std::net::{IpAddr, Ipv6Addr};

const ARP: u16 = 0x0806;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Neighbour discovery takes nothing that a router has forwarded (RFC 4861, 7.1).
const HOPS: u8 = 255;
const ROUTER_LIFETIME: u16 = 1800;
const PREFIX_VALID: u32 = 86400;
const PREFIX_PREFERRED: u32 = 14400;

/// An ARP packet of the guest's. Only the gateway's and the relay's addresses are answered for: whether others are free
/// is what guests find out by asking.
pub(crate) fn arp(context: &mut Context, payload: &[u8]) {
    let Ok(packet) = ArpPacket::new_checked(payload) else { return };
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return;
    };
    let source = IpAddr::V4(source_protocol_addr);
    if may_send(source) {
        context.out.learn(source, source_hardware_addr.0);
    }
    if operation != ArpOperation::Request
        || !matches!(target_protocol_addr, GATEWAY | RESOLVER)
        || !source_hardware_addr.is_unicast()
    {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    context.out.ethernet(source_hardware_addr.0, ARP, &bytes);
}

/// An ICMPv6 message, if it is neighbour discovery's; says whether it was.
pub(crate) fn discovery(context: &mut Context, packet: &Packet<'_>, mac: [u8; 6]) -> bool {
    let Some(&kind) = packet.payload.first() else { return false };
    if !(133..=137).contains(&kind) {
        return false;
    }
    let IpAddr::V6(source) = packet.source else { return true };
    let sound = packet.hops == HOPS
        && (packet.partial || sum(packet.source, packet.destination, &packet.payload) == 0)
        && (source.is_unspecified() || may_send(packet.source))
        && mac[0] & 1 == 0;
    if !sound {
        return true;
    }
    if !source.is_unspecified() {
        context.out.learn(packet.source, mac);
    }
    match kind {
        ROUTER_SOLICITATION => advertise_router(context, source, mac),
        NEIGHBOUR_SOLICITATION => {
            let target: Option<[u8; 16]> = packet.payload.get(8..24).and_then(|bytes| bytes.try_into().ok());
            if let Some(target) = target.map(Ipv6Addr::from)
                && matches!(target, GATEWAY6 | RESOLVER6 | GATEWAY_LINK_LOCAL)
            {
                advertise_neighbour(context, target, source, mac);
            }
        }
        _ => {}
    }
    true
}

/// RFC 4861, 4.2, with the prefix (4.6.2), the MTU (4.6.4) and the DNS relay (RFC 8106, 5.1).
fn advertise_router(context: &mut Context, solicitor: Ipv6Addr, mac: [u8; 6]) {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend_from_slice(&ROUTER_LIFETIME.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&GATEWAY_MAC);
    message.extend_from_slice(&[5, 1, 0, 0]);
    message.extend_from_slice(&(context.out.mtu as u32).to_be_bytes());
    // On link, and for addresses of the guest's own making.
    message.extend_from_slice(&[3, 4, 64, 0xc0]);
    message.extend_from_slice(&PREFIX_VALID.to_be_bytes());
    message.extend_from_slice(&PREFIX_PREFERRED.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&GATEWAY6.octets()[..8]);
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[25, 3, 0, 0]);
    message.extend_from_slice(&u32::from(ROUTER_LIFETIME).to_be_bytes());
    message.extend_from_slice(&RESOLVER6.octets());
    let to = if solicitor.is_unspecified() { ALL_NODES } else { solicitor };
    send(context, GATEWAY_LINK_LOCAL, to, mac, message);
}

/// RFC 4861, 4.4.
fn advertise_neighbour(context: &mut Context, target: Ipv6Addr, solicitor: Ipv6Addr, mac: [u8; 6]) {
    const ROUTER: u8 = 0x80;
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    // Who asks whether the address is free has none, so all are told.
    let (to, flags) = if solicitor.is_unspecified() {
        (ALL_NODES, ROUTER | OVERRIDE)
    } else {
        (solicitor, ROUTER | SOLICITED | OVERRIDE)
    };
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&GATEWAY_MAC);
    send(context, target, to, mac, message);
}

fn send(context: &mut Context, source: Ipv6Addr, to: Ipv6Addr, mac: [u8; 6], mut message: Vec<u8>) {
    let (source, to) = (IpAddr::V6(source), IpAddr::V6(to));
    let mac = if to == IpAddr::V6(ALL_NODES) { context.out.mac(to) } else { mac };
    let sum = sum(source, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    context.out.packet_to(mac, source, to, IpProtocol::Icmpv6, &message, HOPS);
}
