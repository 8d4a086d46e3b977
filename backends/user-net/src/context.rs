//! What every part of the network works with.

use crate::output::Output;
use crate::resolvers::Resolvers;
use rustix::event::epoll::{self, EventData, EventFlags};
use smoltcp::time::Instant;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Bounds of the tables. Each connection and flow holds a file descriptor of the process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections, in and out, those being opened and closed included.
    pub tcp: usize,
    /// Bytes for the buffers of all TCP connections. When they run out, buffers get smaller; the smallest have 16 KiB.
    pub tcp_buffers: usize,
    /// UDP flows, in and out.
    pub udp: usize,
    /// DNS queries on their way.
    pub dns: usize,
    /// Echo requests' identifiers and destinations.
    pub ping: usize,
}

impl Limits {
    /// The same, made smaller so that the tables take at most three quarters of `descriptors`: others of the process's need
    /// some too, and a guest must not take them.
    #[must_use]
    pub fn within(self, descriptors: usize) -> Self {
        Self {
            tcp: self.tcp.min(descriptors / 2),
            udp: self.udp.min(descriptors / 8),
            dns: self.dns.min(descriptors / 16),
            ping: self.ping.min(descriptors / 16),
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { tcp: 1024, tcp_buffers: 64 << 20, udp: 512, dns: 128, ping: 32 }
    }
}

/// Whose event it is. The number is the top byte of epoll's data, and the rest the part's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Bell,
    Tcp,
    Udp,
    Dns,
    Ping,
    Forward,
}

const KINDS: [Kind; 6] = [Kind::Bell, Kind::Tcp, Kind::Udp, Kind::Dns, Kind::Ping, Kind::Forward];

/// What every part works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) out: Output,
    pub(crate) now: Instant,
    pub(crate) resolvers: Resolvers,
    pub(crate) limits: Limits,
    /// Nothing but forwards, DHCP and DNS.
    pub(crate) restrict: bool,
    /// The gateway's address leads to the host's loopback.
    pub(crate) host: bool,
    pub(crate) epoll: OwnedFd,
    next: u64,
}

impl Context {
    pub(crate) fn new(out: Output, resolvers: Resolvers, limits: Limits) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let now = Instant::ZERO;
        Ok(Self { out, now, resolvers, limits, restrict: false, host: false, epoll, next: 1 })
    }

    /// A number that no other has had: late events of what is gone find nothing.
    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Has epoll watch a descriptor, until it is closed.
    pub(crate) fn watch(&self, fd: impl AsFd, kind: Kind, id: u64, flags: EventFlags) -> io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64((kind as u64) << 56 | id), flags)?;
        Ok(())
    }

    /// The other way.
    pub(crate) fn whose(data: u64) -> Option<(Kind, u64)> {
        let kind = KINDS.get((data >> 56) as usize)?;
        Some((*kind, data & ((1 << 56) - 1)))
    }
}

/// The earlier of two times that may not come.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
