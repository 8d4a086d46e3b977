//! Echo requests to the outside, through the sockets that Linux gives to users in `net.ipv4.ping_group_range`.
//! Where it gives none, there is no answer.

use crate::context::{Context, Kind, earlier};
use crate::icmp;
use crate::packet::Packet;
use rustix::event::epoll::EventFlags;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, socket_with,
};
use smoltcp::time::{Duration, Instant};
use std::collections::HashMap;
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

#[derive(Debug)]
struct Echo {
    name: Name,
    socket: OwnedFd,
    used: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Ping {
    echoes: HashMap<u64, Echo>,
    names: HashMap<Name, u64>,
    /// When sockets are looked at for silent ones.
    sweep: Option<Instant>,
}

impl Ping {
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// An echo request of the guest's, of at least eight bytes.
    pub(crate) fn request(&mut self, context: &mut Context, packet: &Packet<'_>) {
        let Some(ident) = packet.payload.get(4..6).and_then(|ident| ident.try_into().ok()) else { return };
        let name = Name { guest: packet.source, other: packet.destination, ident };
        let id = match self.names.get(&name) {
            Some(&id) => id,
            None => match self.open(context, name) {
                Some(id) => id,
                None => return,
            },
        };
        let Some(echo) = self.echoes.get_mut(&id) else { return };
        echo.used = context.now;
        // What cannot be sent is not answered.
        let _ = rustix::net::send(&echo.socket, &packet.payload, SendFlags::NOSIGNAL);
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
        if self.echoes.len() >= context.limits.ping {
            let oldest = self.echoes.iter().min_by_key(|(_, echo)| echo.used).map(|(&id, _)| id);
            self.remove(oldest?);
        }
        self.echoes.insert(id, Echo { name, socket, used: context.now });
        self.names.insert(name, id);
        self.sweep = earlier(self.sweep, Some(context.now + IDLE));
        Some(id)
    }

    /// Answers have come.
    pub(crate) fn event(&mut self, context: &mut Context, id: u64, scratch: &mut [u8]) {
        let Some(echo) = self.echoes.get(&id) else { return };
        for _ in 0..TURN {
            let length = match rustix::net::recv(&echo.socket, &mut *scratch, RecvFlags::DONTWAIT) {
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
        self.sweep
    }

    /// Takes away what was silent for long. It is looked for when the first can be, not each time one was not.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.sweep.is_none_or(|sweep| now < sweep) {
            return;
        }
        let old: Vec<_> =
            self.echoes.iter().filter(|(_, echo)| echo.used + IDLE <= now).map(|(&id, _)| id).collect();
        for id in old {
            self.remove(id);
        }
        self.sweep = self.echoes.values().map(|echo| echo.used + IDLE).fold(None, |a, b| earlier(a, Some(b)));
    }

    fn remove(&mut self, id: u64) {
        if let Some(echo) = self.echoes.remove(&id) {
            self.names.remove(&echo.name);
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
            assert!(ping.echoes.len() <= context.limits.ping && ping.names.len() == ping.echoes.len());
        }
        let Some((&id, echo)) = ping.echoes.iter().next() else {
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
        assert!(ping.echoes.is_empty() && ping.names.is_empty() && ping.deadline().is_none());
    }
}
