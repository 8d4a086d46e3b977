//! The network's thread: one loop over the guest's frames, the host's sockets, and timers.

use crate::addresses::{BROADCAST_MAC, GATEWAY, GATEWAY_MAC, Target, may_send, target};
use crate::context::{Context, Kind, earlier};
use crate::dhcp::{self, Dhcp};
use crate::dns::Dns;
use crate::forwards::Forwards;
use crate::frames::{Frame, Offloads, Shared};
use crate::neighbours;
use crate::packet::{self, Packet};
use crate::ping::Ping;
use crate::reassembly::Reassembly;
use crate::tcp::Tcp;
use crate::udp::Udp;
use crate::{Counts, icmp};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use smoltcp::wire::IpProtocol;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};

const DNS_PORT: u16 = 53;
/// Events taken at once.
const EVENTS: usize = 128;
/// The longest datagram.
const SCRATCH: usize = 65536;

/// All parts.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) context: Context,
    pub(crate) tcp: Tcp,
    udp: Udp,
    dns: Dns,
    ping: Ping,
    dhcp: Dhcp,
    forwards: Forwards,
    reassembly: Reassembly,
    scratch: Vec<u8>,
}

impl Engine {
    pub(crate) fn new(context: Context, forwards: Forwards) -> Self {
        Self {
            context,
            tcp: Tcp::default(),
            udp: Udp::default(),
            dns: Dns::default(),
            ping: Ping::default(),
            dhcp: Dhcp::default(),
            forwards,
            reassembly: Reassembly::default(),
            scratch: vec![0; SCRATCH],
        }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self, shared: &Arc<Shared>, counts: &std::sync::Mutex<Counts>) {
        let started = std::time::Instant::now();
        let mut events = Vec::with_capacity(EVENTS);
        let mut frames = VecDeque::new();
        loop {
            let elapsed = started.elapsed().as_micros();
            self.context.now =
                smoltcp::time::Instant::from_micros(i64::try_from(elapsed).unwrap_or(i64::MAX));
            let news = shared.take(&mut frames);
            if news.stop {
                return;
            }
            if let Some(offloads) = news.reset {
                // These may be the new driver's first already: nothing of them is lost.
                self.reset(offloads);
            }
            for event in events.drain(..) {
                self.event(shared, event);
            }
            for frame in frames.drain(..) {
                self.input(&frame);
            }
            self.work();
            self.context.out.flush(shared);
            *counts.lock().unwrap_or_else(PoisonError::into_inner) = self.counts();
            let busy = self.tcp.has_turns() && self.context.out.has_room();
            let timeout =
                if busy || !shared.may_sleep() { Some(Timespec::default()) } else { self.timeout() };
            match epoll::wait(&self.context.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(
                        "user network: the host's events cannot be had ({error}); the network ends"
                    );
                    return;
                }
            }
        }
    }

    pub(crate) fn reset(&mut self, offloads: Offloads) {
        self.tcp.reset();
        self.udp.reset();
        self.dns.reset();
        self.ping.reset();
        self.reassembly.clear();
        self.dhcp = Dhcp::default();
        self.context.out.reset(offloads);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts { tcp: self.tcp.len(), udp: self.udp.len(), dns: self.dns.len() }
    }

    /// What is due, and everybody's turn.
    pub(crate) fn work(&mut self) {
        self.tcp.turns(&mut self.context);
        self.dns.expire(&mut self.context);
        self.udp.expire(self.context.now);
        self.ping.expire(self.context.now);
        self.forwards.expire(&self.context);
    }

    /// Looks at the host's sockets without waiting.
    pub(crate) fn look(&mut self, shared: &Shared) {
        let mut events = Vec::with_capacity(EVENTS);
        if epoll::wait(&self.context.epoll, spare_capacity(&mut events), Some(&Timespec::default())).is_ok() {
            for event in events {
                self.event(shared, event);
            }
        }
    }

    /// How long until something is due; none if only an event brings more to do.
    pub(crate) fn due(&self) -> Option<smoltcp::time::Duration> {
        let now = self.context.now;
        let deadline =
            [self.udp.deadline(), self.dns.deadline(), self.ping.deadline(), self.forwards.deadline()]
                .into_iter()
                .fold(self.tcp.deadline(), earlier)?;
        Some(if deadline > now { deadline - now } else { smoltcp::time::Duration::ZERO })
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = self.due()?.total_micros();
        Some(Timespec { tv_sec: (left / 1_000_000) as i64, tv_nsec: (left % 1_000_000 * 1000) as i64 })
    }

    fn event(&mut self, shared: &Shared, event: epoll::Event) {
        let (data, flags) = (event.data.u64(), event.flags);
        let Some((kind, id)) = Context::whose(data) else { return };
        let context = &mut self.context;
        match kind {
            Kind::Bell => {
                let _ = rustix::io::read(&shared.bell, &mut [0; 8]);
            }
            Kind::Tcp => self.tcp.event(context, id, flags),
            Kind::Udp => self.udp.event(context, id, &mut self.scratch),
            Kind::Dns => self.dns.event(context, id, &mut self.scratch),
            Kind::Ping => self.ping.event(context, id, &mut self.scratch),
            Kind::Forward => {
                self.forwards.event(context, &mut self.tcp, &mut self.udp, id, &mut self.scratch);
            }
        }
    }

    /// A frame of the guest's: any bytes.
    pub(crate) fn input(&mut self, frame: &Frame) {
        let Some((kind, payload)) = packet::ethernet(frame) else { return };
        let Some(mac) = packet::sender(frame) else { return };
        let to_us = frame.bytes.starts_with(&GATEWAY_MAC)
            || frame.bytes.starts_with(&BROADCAST_MAC)
            || frame.bytes.first().is_some_and(|first| first & 1 != 0);
        if !to_us {
            return;
        }
        let partial = frame.checksum.is_some();
        let now = self.context.now;
        match kind {
            0x0806 => neighbours::arp(&mut self.context, payload),
            0x0800 => {
                if let Some(packet) = packet::ipv4(payload, partial, now, &mut self.reassembly) {
                    self.ip(&packet, mac);
                }
            }
            0x86dd => {
                if let Some(packet) = packet::ipv6(payload, partial, now, &mut self.reassembly) {
                    self.ip(&packet, mac);
                }
            }
            _ => {}
        }
    }

    fn ip(&mut self, packet: &Packet<'_>, mac: [u8; 6]) {
        // Those who have no address yet.
        if packet.protocol == IpProtocol::Icmpv6 && neighbours::discovery(&mut self.context, packet, mac) {
            return;
        }
        if packet.protocol == IpProtocol::Udp
            && packet.source.is_ipv4()
            && (packet.destination == IpAddr::V4(GATEWAY) || target(packet.destination) == Target::Many)
            && let Some((_, dhcp::SERVER_PORT, message)) = packet.udp()
        {
            self.dhcp.input(&mut self.context, message);
            return;
        }
        if !may_send(packet.source) {
            return;
        }
        self.context.out.learn(packet.source, mac);
        match packet.protocol {
            IpProtocol::Tcp => self.tcp.input(&mut self.context, packet),
            IpProtocol::Udp if target(packet.destination) == Target::Resolver => match packet.udp() {
                Some((port, DNS_PORT, message)) => {
                    let guest = SocketAddr::new(packet.source, port);
                    self.dns.input(&mut self.context, guest, packet.destination, message);
                }
                Some(_) => icmp::unreachable(&mut self.context, packet, crate::route::Why::NoPort),
                None => {}
            },
            IpProtocol::Udp => self.udp.input(&mut self.context, packet),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => {
                icmp::input(&mut self.context, &mut self.ping, packet);
            }
            _ => {}
        }
    }
}
