//! A network for one guest, in process and without privileges: what QEMU calls `-net user`.
//!
//! Ethernet frames of the guest's go in, frames for the guest come out, and between lies one thread that owns sockets of
//! the host's:
//!
//! 1. The link ([`frames`]): two bounded queues. A device moves batches through a [`FrameSender`] and a
//!    [`FrameReceiver`], with futures that need no particular executor, and says in [`UserNet::guest_reset`] what its
//!    driver takes when the driver starts.
//! 2. The network ([`addresses`]): the guest is 10.0.2.15, the gateway 10.0.2.2, a DNS relay 10.0.2.3; for IPv6
//!    `fec0::/64` with the gateway at `::2` and the relay at `::3`. ARP, DHCP, neighbour discovery and router
//!    advertisements are answered. Nobody can send as somebody else.
//! 3. TCP: each connection has a stack of smoltcp's of its own and a socket of the host's, which connects before the
//!    guest's SYN is answered. Half-closes, resets and windows go through.
//! 4. UDP: flows with a time-out, connected sockets, errors as ICMP. Fragments are put together and made.
//! 5. Echo requests to the gateway are answered here; others go through the host's ping sockets where it has them.
//! 6. Forwards ([`Options::forwards`]) lead from the host's ports to the guest.
//!
//! What the guest may reach: whatever the host's routes lead to, but not the host's loopback, except through the
//! gateway's address with [`Options::host`]; and nothing at all with [`Options::restrict`]. A guest's bytes cannot make
//! the process grow beyond [`Limits`], however many connections, datagrams or fragments it begins.

pub mod addresses;
mod context;
mod conversations;
mod dhcp;
mod dns;
mod engine;
mod forwards;
pub mod frames;
mod icmp;
mod neighbours;
mod options;
mod output;
mod packet;
mod ping;
mod reassembly;
mod resolvers;
mod route;
mod stepped;
mod tcp;
mod udp;

pub use context::Limits;
pub use forwards::ForwardError;
pub use frames::{Closed, Frame, FrameReceiver, FrameSender, Offloads};
pub use options::{Forward, Options, OptionsError, Protocol};
pub use stepped::Stepped;

use context::{Context, Kind};
use engine::Engine;
use forwards::Forwards;
use frames::Shared;
use output::Output;
use resolvers::Resolvers;
use rustix::event::epoll::EventFlags;
use rustix::process::{Resource, getrlimit};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The smallest MTU: IPv6 has no smaller links (RFC 8200, 5).
pub const MIN_MTU: u16 = 1280;

/// Everything a network is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the user said.
    pub options: Options,
    /// The card's MAC address, to which packets go before the guest has sent anything.
    pub guest_mac: [u8; 6],
    /// Bytes of an IP packet; less than [`MIN_MTU`] counts as that.
    pub mtu: u16,
    /// Where the DNS relay asks; none for what the host's /etc/resolv.conf says at the time.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// Bounds of the tables; [`Limits::within`] what the process may open.
    pub limits: Limits,
}

impl Config {
    /// The usual network for a card with this address.
    #[must_use]
    pub fn new(options: Options, guest_mac: [u8; 6]) -> Self {
        Self { options, guest_mac, mtu: 1500, resolvers: None, limits: Limits::default() }
    }
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port of the host's cannot be had.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The host has run out of something.
    #[error(
        "user network: the host gives no {thing} ({source}): end other programs, or raise the limit (ulimit -a)"
    )]
    Host {
        /// What it does not give
        thing: &'static str,
        /// The system's error
        source: std::io::Error,
    },
}

/// What is open at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// TCP connections
    pub tcp: usize,
    /// UDP flows
    pub udp: usize,
    /// DNS queries
    pub dns: usize,
}

/// A running network. Dropped, it ends, and so do all connections.
#[derive(Debug)]
pub struct UserNet {
    shared: Arc<Shared>,
    forwards: Vec<SocketAddr>,
    counts: Arc<Mutex<Counts>>,
    thread: Option<JoinHandle<()>>,
}

impl UserNet {
    /// Takes the forwarded ports and starts the thread.
    ///
    /// # Errors
    /// When a port cannot be had, or the host has no descriptors or threads left.
    pub fn start(config: Config) -> Result<(Self, FrameSender, FrameReceiver), StartError> {
        let host = |thing| move |source| StartError::Host { thing, source };
        let shared = Shared::new().map_err(host("descriptors"))?;
        let (engine, forwards) = engine(&config)?;
        engine.context.watch(&shared.bell, Kind::Bell, 0, EventFlags::IN).map_err(host("descriptors"))?;
        let counts = Arc::default();
        let thread = {
            let (shared, counts) = (Closer(Arc::clone(&shared)), Arc::clone(&counts));
            std::thread::Builder::new()
                .name("user-net".to_owned())
                .spawn(move || engine.run(&shared.0, &counts))
                .map_err(host("threads"))?
        };
        let (sender, receiver) = (FrameSender(Arc::clone(&shared)), FrameReceiver(Arc::clone(&shared)));
        Ok((Self { shared, forwards, counts, thread: Some(thread) }, sender, receiver))
    }

    /// Where each of [`Options::forwards`] listens, in their order.
    #[must_use]
    pub fn forwards(&self) -> &[SocketAddr] {
        &self.forwards
    }

    /// The guest's driver starts, or starts anew: connections, leases and frames of the one before are dropped, and from
    /// now on frames are as this one takes them. Frames that are sent after the call are the new driver's.
    pub fn guest_reset(&self, offloads: Offloads) {
        self.shared.reset(offloads);
    }

    /// What was open when the thread last looked.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Whoever waits for frames learns that the thread has ended, however it did.
struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn engine(config: &Config) -> Result<(Engine, Vec<SocketAddr>), StartError> {
    let resolvers = match &config.resolvers {
        Some(list) => Resolvers::Fixed(list.clone()),
        None => Resolvers::file("/etc/resolv.conf".into()),
    };
    let out = Output::new(config.guest_mac, config.mtu.max(MIN_MTU));
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| most as usize);
    let mut context = Context::new(out, resolvers, config.limits.within(descriptors))
        .map_err(|source| StartError::Host { thing: "descriptors", source })?;
    context.restrict = config.options.restrict;
    context.host = config.options.host;
    let (forwards, bound) = Forwards::open(&mut context, &config.options.forwards)?;
    Ok((Engine::new(context, forwards), bound))
}
