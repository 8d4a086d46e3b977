//! The DHCP server (RFC 2131): the guest gets 10.0.2.15, others behind its card (a bridge in the guest) the next.

use crate::addresses::{BROADCAST_MAC, GATEWAY, GUEST, NETMASK, RESOLVER};
use crate::context::Context;
use crate::output::datagram;
use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    IpProtocol,
};
use std::net::{IpAddr, Ipv4Addr};

pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const MAGIC: u32 = 0x6382_5363;
const CLIENT_IDENTIFIER: u8 = 61;
const LEASE_SECONDS: u32 = 86400;
const MAX_LEASES: usize = 16;
/// What old clients expect at least (RFC 1542, 2.1).
const SMALLEST: usize = 300;
const HOPS: u8 = 64;

/// Who has which address: who asked first has the guest's, each other the next one.
#[derive(Debug, Default)]
pub(crate) struct Dhcp {
    leases: Vec<[u8; 6]>,
}

/// What a client says. smoltcp's own form refuses client identifiers that are not Ethernet addresses; they may be anything
/// and are given back as they are (RFC 6842).
struct Request<'a> {
    kind: DhcpMessageType,
    mac: EthernetAddress,
    transaction: u32,
    broadcast: bool,
    client_ip: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    identifier: Option<&'a [u8]>,
}

fn parse<'a>(packet: &'a DhcpPacket<&'a [u8]>) -> Option<Request<'a>> {
    let sound = packet.opcode() == DhcpOpCode::Request
        && packet.hardware_type() == ArpHardware::Ethernet
        && packet.hardware_len() == 6
        && packet.magic_number() == MAGIC
        && packet.client_hardware_address().is_unicast();
    let mut request = Request {
        kind: DhcpMessageType::Unknown(0),
        mac: packet.client_hardware_address(),
        transaction: packet.transaction_id(),
        broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
        client_ip: packet.client_ip(),
        wanted: None,
        server: None,
        identifier: None,
    };
    for option in packet.options() {
        let address = || <[u8; 4]>::try_from(option.data).ok().map(Ipv4Addr::from);
        match (option.kind, option.data) {
            (50, _) => request.wanted = address(),
            (53, &[kind]) => request.kind = kind.into(),
            (54, _) => request.server = address(),
            (CLIENT_IDENTIFIER, data) => request.identifier = Some(data),
            _ => {}
        }
    }
    sound.then_some(request)
}

impl Dhcp {
    fn address(&mut self, mac: [u8; 6]) -> Option<Ipv4Addr> {
        let index = match self.leases.iter().position(|&lease| lease == mac) {
            Some(index) => index,
            None if self.leases.len() < MAX_LEASES => {
                self.leases.push(mac);
                self.leases.len() - 1
            }
            None => return None,
        };
        Some(Ipv4Addr::from(u32::from(GUEST) + index as u32))
    }

    /// A message to the server's port.
    pub(crate) fn input(&mut self, context: &mut Context, message: &[u8]) {
        let Ok(packet) = DhcpPacket::new_checked(message) else { return };
        let Some(request) = parse(&packet).filter(|r| r.server.is_none_or(|server| server == GATEWAY)) else {
            return;
        };
        let Some(address) = self.address(request.mac.0) else { return };
        let wanted = request.wanted.unwrap_or(request.client_ip);
        let (kind, address) = match request.kind {
            DhcpMessageType::Discover => (DhcpMessageType::Offer, address),
            DhcpMessageType::Request if wanted == address => (DhcpMessageType::Ack, address),
            DhcpMessageType::Request => (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED),
            // It has an address and asks for the rest (RFC 2131, 3.4).
            DhcpMessageType::Inform => (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
            _ => return,
        };
        answer(context, &request, kind, address);
    }
}

fn answer(context: &mut Context, request: &Request<'_>, kind: DhcpMessageType, address: Ipv4Addr) {
    let refusal = kind == DhcpMessageType::Nak;
    let leased = !refusal && address != Ipv4Addr::UNSPECIFIED;
    let mtu = (context.out.mtu as u16).to_be_bytes();
    let lease = LEASE_SECONDS.to_be_bytes();
    let (t1, t2) = ((LEASE_SECONDS / 2).to_be_bytes(), (LEASE_SECONDS / 8 * 7).to_be_bytes());
    // RFC 2132: 51 lease time, 58 and 59 renewal and rebinding, 26 interface MTU.
    let mut options = Vec::new();
    if let Some(data) = request.identifier {
        options.push(DhcpOption { kind: CLIENT_IDENTIFIER, data });
    }
    if !refusal {
        options.push(DhcpOption { kind: 26, data: &mtu });
    }
    if leased {
        for (kind, data) in [(51, &lease), (58, &t1), (59, &t2)] {
            options.push(DhcpOption { kind, data });
        }
    }
    let client_ip = if kind == DhcpMessageType::Ack { request.client_ip } else { Ipv4Addr::UNSPECIFIED };
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction,
        secs: 0,
        client_hardware_address: request.mac,
        client_ip,
        your_ip: address,
        server_ip: if refusal { Ipv4Addr::UNSPECIFIED } else { GATEWAY },
        router: (!refusal).then_some(GATEWAY),
        subnet_mask: (!refusal).then_some(NETMASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: (!refusal).then(|| [RESOLVER].into_iter().collect()),
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut message = vec![0; reply.buffer_len().max(SMALLEST)];
    if reply.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).is_err() {
        return;
    }
    // A client that cannot take packets for an address that it does not have yet says so (RFC 2131, 4.1).
    let EthernetAddress(mac) = request.mac;
    let (mac, to) = if refusal || request.broadcast {
        (BROADCAST_MAC, Ipv4Addr::BROADCAST)
    } else if client_ip != Ipv4Addr::UNSPECIFIED {
        (mac, client_ip)
    } else {
        (mac, address)
    };
    let (from, to) = (IpAddr::V4(GATEWAY), IpAddr::V4(to));
    if let Some(datagram) = datagram((from, SERVER_PORT), (to, CLIENT_PORT), &message) {
        context.out.packet_to(mac, from, to, IpProtocol::Udp, &datagram, HOPS);
    }
}
