//! Echo requests to the outside, through the sockets that Linux gives to users in `net.ipv4.ping_group_range`.
//! Where it gives none, there is no answer.

use crate::context::{Context, Kind};
use crate::conversations::Conversations;
use crate::icmp;
use crate::packet::Packet;
use rustix::event::epoll::EventFlags;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, socket_with,
};
use smoltcp::time::{Duration, Instant};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

const IDLE: Duration = Duration::from_secs(30);
/// Answers read in a row.
const TURN: usize = 16;

/// The kernel gives each socket an identifier of its own, so there is one for each of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    guest: IpAddr,
    other: IpAddr,
    ident: [u8; 2],
}

/// The socket of each.
#[derive(Debug)]
pub(crate) struct Ping(Conversations<Name, OwnedFd>);

impl Default for Ping {
    fn default() -> Self {
        Self(Conversations::new(IDLE))
    }
}

impl Ping {
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// An echo request of the guest's, of at least eight bytes.
    pub(crate) fn request(&mut self, context: &mut Context, packet: &Packet<'_>) {
        let Some(ident) = packet.payload.get(4..6).and_then(|ident| ident.try_into().ok()) else { return };
        let name = Name { guest: packet.source, other: packet.destination, ident };
        let id = match self.0.named(&name) {
            Some(id) => id,
            None => match self.open(context, name) {
                Some(id) => id,
                None => return,
            },
        };
        let Some(echo) = self.0.get_mut(id) else { return };
        echo.used = context.now;
        // What cannot be sent is not answered.
        let _ = rustix::net::send(&echo.with, &packet.payload, SendFlags::NOSIGNAL);
    }

    fn open(&mut self, context: &mut Context, name: Name) -> Option<u64> {
        let (family, protocol) = match name.other {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let protocol: Option<Protocol> = Some(protocol);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::DGRAM, flags, protocol).ok()?;
        rustix::net::connect(&socket, &SocketAddr::new(name.other, 0)).ok()?;
        let id = context.id();
        context.watch(&socket, Kind::Ping, id, EventFlags::IN).ok()?;
        if self.0.len() >= context.limits.ping {
            self.0.remove(self.0.oldest()?);
        }
        self.0.insert(id, name, socket, context.now);
        Some(id)
    }

    /// Answers have come.
    pub(crate) fn event(&mut self, context: &mut Context, id: u64, scratch: &mut [u8]) {
        let Some(echo) = self.0.get_mut(id) else { return };
        for _ in 0..TURN {
            let length = match rustix::net::recv(&echo.with, &mut *scratch, RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return,
                // An unreachable host does not answer.
                Err(_) => continue,
            };
            let reply = if echo.name.other.is_ipv4() { 0 } else { 129 };
            let Some(message) = scratch.get(..length).filter(|message| message.len() >= 8) else { continue };
            if message[0] == reply && context.out.has_room() {
                let mut message = message.to_vec();
                message[4..6].copy_from_slice(&echo.name.ident);
                icmp::send(context, echo.name.other, echo.name.guest, message);
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }

    /// Takes away what was silent for long.
    pub(crate) fn expire(&mut self, now: Instant) {
        for id in self.0.silent(now) {
            self.0.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Limits;
    use crate::output::Output;
    use crate::resolvers::Resolvers;
    use smoltcp::wire::{IpProtocol, Ipv4Packet};
    use std::borrow::Cow;

    /// A request to the loopback, which guests are not let through to, so that the test needs no network.
    #[test]
    #[allow(clippy::print_stderr, reason = "a test that skips says so")]
    fn requests_go_through_the_hosts_sockets_and_answers_come_back() {
        let out = Output::new([2, 0, 0, 0, 0, 1], 1500);
        let mut context = Context::new(out, Resolvers::Fixed(Vec::new()), Limits::default()).unwrap();
        let mut ping = Ping::default();
        let guest = "10.0.2.15".parse().unwrap();
        let request = |ident: u16| {
            let mut message = vec![8, 0, 0, 0];
            message.extend_from_slice(&ident.to_be_bytes());
            message.extend_from_slice(&[0, 5, b'x', b'y']);
            let sum = icmp::sum(guest, guest, &message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            message
        };
        for ident in 0..200 {
            ping.request(
                &mut context,
                &Packet {
                    source: guest,
                    destination: "127.0.0.1".parse().unwrap(),
                    protocol: IpProtocol::Icmp,
                    hops: 64,
                    payload: Cow::Owned(request(ident)),
                    whole: &[],
                    partial: false,
                },
            );
            assert!(ping.0.len() <= context.limits.ping && ping.0.names() == ping.0.len());
        }
        let Some((id, echo)) = ping.0.first() else {
            eprintln!("this host gives users no ping sockets (net.ipv4.ping_group_range)");
            return;
        };
        let ident = echo.name.ident;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let frame = loop {
            ping.event(&mut context, id, &mut [0; 2048]);
            if let Some(frame) = context.out.take().pop_front() {
                break frame;
            }
            assert!(std::time::Instant::now() < end, "no reply");
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let packet = Ipv4Packet::new_checked(&frame.bytes[14..]).unwrap();
        let reply = packet.payload();
        assert_eq!(
            (packet.dst_addr().into(), reply[0], &reply[4..6], &reply[6..]),
            (guest, 0, &ident[..], &[0, 5, b'x', b'y'][..])
        );
        assert_eq!(icmp::sum(guest, guest, reply), 0);
        // Silent ones go.
        ping.expire(context.now + IDLE);
        assert!(ping.0.len() == 0 && ping.0.names() == 0 && ping.deadline().is_none());
    }
}
