//! UDP: flows from the guest to addresses outside, and from peers of the host's forwarded ports to the guest.

use crate::addresses::{GATEWAY, GUEST};
use crate::context::{Context, Kind};
use crate::conversations::Conversations;
use crate::icmp;
use crate::packet::Packet;
use crate::route::{Decision, Why, decide};
use rustix::event::epoll::EventFlags;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpProtocol;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

/// How long a flow may be silent (RFC 4787, 4.3).
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams read in a row.
const TURN: usize = 64;
/// Ports of the gateway's from which forwarded datagrams come.
const FIRST_PORT: u16 = 32768;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    guest: SocketAddr,
    other: SocketAddr,
}

#[derive(Debug)]
enum Via {
    /// A socket of the flow's own.
    Socket(UdpSocket),
    /// The socket of a forward, and the peer that called.
    Forward { forward: u64, socket: Arc<UdpSocket>, peer: SocketAddr },
}

#[derive(Debug)]
pub(crate) struct Udp {
    flows: Conversations<Name, Via>,
    peers: HashMap<(u64, SocketAddr), u64>,
    next_port: u16,
}

impl Default for Udp {
    fn default() -> Self {
        Self { flows: Conversations::new(IDLE), peers: HashMap::new(), next_port: 0 }
    }
}

impl Udp {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// A datagram of the guest's.
    pub(crate) fn input(&mut self, context: &mut Context, packet: &Packet<'_>) {
        let Some((source, destination, data)) = packet.udp() else { return };
        let guest = SocketAddr::new(packet.source, source);
        let other = SocketAddr::new(packet.destination, destination);
        let name = Name { guest, other };
        let id = match self.flows.named(&name) {
            Some(id) => id,
            None => {
                let opened = match decide(context, other, IpProtocol::Udp) {
                    Decision::Connect(targets) => self.open(context, name, targets.first().copied()),
                    Decision::Refuse => Err(Some(Why::NoPort)),
                    Decision::Unreachable(why) => Err(Some(why)),
                    Decision::Ignore => Err(None),
                };
                match opened {
                    Ok(id) => id,
                    Err(why) => {
                        if let Some(why) = why {
                            icmp::unreachable(context, packet, why);
                        }
                        return;
                    }
                }
            }
        };
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.used = context.now;
        // An error is that of a datagram before, and takes this one's place: once more.
        if let Err(error) = flow.with.send(data)
            && let Some(why) = verdict(&error)
        {
            icmp::unreachable(context, packet, why);
            let _ = flow.with.send(data);
        }
    }

    fn open(
        &mut self,
        context: &mut Context,
        name: Name,
        target: Option<SocketAddr>,
    ) -> Result<u64, Option<Why>> {
        let target = target.ok_or(None)?;
        let any = match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let id = context.id();
        let socket = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            socket.connect(target)?;
            Ok(socket)
        };
        self.make_room(context);
        let socket = socket().map_err(|error| verdict(&error))?;
        context.watch(&socket, Kind::Udp, id, EventFlags::IN).map_err(|_| None)?;
        self.flows.insert(id, name, Via::Socket(socket), context.now);
        Ok(id)
    }

    /// A datagram that has come to a forwarded port.
    pub(crate) fn forwarded(
        &mut self,
        context: &mut Context,
        (forward, guest_port): (u64, u16),
        socket: &Arc<UdpSocket>,
        peer: SocketAddr,
        data: &[u8],
    ) {
        let id = match self.peers.get(&(forward, peer)) {
            Some(&id) => id,
            None => {
                let guest = SocketAddr::new(IpAddr::V4(GUEST), guest_port);
                self.make_room(context);
                let Some(other) = self.free_port(guest) else { return };
                let id = context.id();
                let via = Via::Forward { forward, socket: Arc::clone(socket), peer };
                self.peers.insert((forward, peer), id);
                self.flows.insert(id, Name { guest, other }, via, context.now);
                id
            }
        };
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.used = context.now;
        if context.out.has_room() {
            let Name { guest, other } = flow.name;
            context.out.udp((other.ip(), other.port()), (guest.ip(), guest.port()), data);
        }
    }

    /// Datagrams, or an error, have come to a flow's socket.
    pub(crate) fn event(&mut self, context: &mut Context, id: u64, scratch: &mut [u8]) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Via::Socket(socket) = &flow.with else { return };
        let Name { guest, other } = flow.name;
        for _ in 0..TURN {
            match socket.recv(scratch) {
                Ok(length) => {
                    flow.used = context.now;
                    // Without room it is lost, which is what UDP expects.
                    if let Some(data) = scratch.get(..length).filter(|_| context.out.has_room()) {
                        context.out.udp((other.ip(), other.port()), (guest.ip(), guest.port()), data);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some(why) = verdict(&error) {
                        icmp::unreachable_flow(context, guest, other, why);
                    }
                }
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.flows.deadline()
    }

    /// Takes away what was silent for long.
    pub(crate) fn expire(&mut self, now: Instant) {
        for id in self.flows.silent(now) {
            self.remove(id);
        }
    }

    /// The flow that was silent longest makes room.
    fn make_room(&mut self, context: &Context) {
        if self.flows.len() >= context.limits.udp
            && let Some(id) = self.flows.oldest()
        {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(Via::Forward { forward, peer, .. }) = self.flows.remove(id).map(|flow| flow.with) {
            self.peers.remove(&(forward, peer));
        }
    }

    fn free_port(&mut self, guest: SocketAddr) -> Option<SocketAddr> {
        for _ in 0..=u16::MAX - FIRST_PORT {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            let other = SocketAddr::new(IpAddr::V4(GATEWAY), self.next_port);
            if self.flows.named(&Name { guest, other }).is_none() {
                return Some(other);
            }
        }
        None
    }
}

impl Via {
    fn send(&self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.send(data)?,
            Self::Forward { socket, peer, .. } => socket.send_to(data, peer)?,
        };
        Ok(())
    }
}

/// What ICMP calls an error; none if the guest has nothing to hear.
fn verdict(error: &io::Error) -> Option<Why> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(Why::NoPort),
        ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Some(Why::NoNetwork),
        ErrorKind::HostUnreachable => Some(Why::NoHost),
        ErrorKind::PermissionDenied => Some(Why::Prohibited),
        _ => None,
    }
}
