//! A guest of smoltcp's at the other end of the frames.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test program uses its part"
)]

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint, checksum};
use std::collections::VecDeque;
use std::future::Future as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;
use user_net::{Config, Frame, FrameReceiver, FrameSender, Options, UserNet};

pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// Far longer than anything takes: a test that hangs fails by it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Wire {
    pub sender: FrameSender,
    pub receiver: FrameReceiver,
    pub incoming: VecDeque<Frame>,
    outgoing: VecDeque<Frame>,
    mtu: usize,
}

/// Wakes the thread that waits.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Wire {
    /// Sends what there is, and waits for frames or until `wait` is over.
    pub fn exchange(&mut self, wait: Duration) {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            let sent = pin!(self.sender.send(&mut self.outgoing)).poll(&mut context);
            let received = pin!(self.receiver.receive(&mut self.incoming, 256)).poll(&mut context);
            if sent.is_ready() && (received.is_ready() || wait.is_zero()) {
                return;
            }
            if received.is_ready() {
                continue;
            }
            let before = std::time::Instant::now();
            std::thread::park_timeout(wait);
            if before.elapsed() >= wait {
                return;
            }
        }
    }

    pub fn push(&mut self, bytes: Vec<u8>) {
        self.outgoing.push_back(Frame { bytes, ..Frame::default() });
    }
}

pub struct Received(Vec<u8>);
pub struct Transmit<'a>(&'a mut VecDeque<Frame>);

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let mut frame = self.incoming.pop_front()?;
        complete(&mut frame);
        Some((Received(frame.bytes), Transmit(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        (self.outgoing.len() < 512).then_some(Transmit(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.push_back(Frame { bytes, ..Frame::default() });
        result
    }
}

/// What a driver does with a frame before its stack sees it: completes the checksum.
pub fn complete(frame: &mut Frame) {
    if let Some(partial) = frame.checksum {
        let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
        let sum = !checksum::data(&frame.bytes[start..]);
        frame.bytes[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

pub struct Guest {
    pub net: UserNet,
    pub wire: Wire,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    started: std::time::Instant,
    next_port: u16,
}

pub fn options(text: &str) -> Options {
    text.parse().unwrap()
}

impl Guest {
    /// A guest that has its address and route already.
    pub fn new(text: &str) -> Self {
        Self::with(Config::new(options(text), MAC))
    }

    pub fn with(config: Config) -> Self {
        let mut guest = Self::without_address(config);
        guest.interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(user_net::addresses::GUEST.into(), 24)).unwrap();
            list.push("fec0::15/64".parse().unwrap()).unwrap();
        });
        guest.interface.routes_mut().add_default_ipv4_route(user_net::addresses::GATEWAY).unwrap();
        guest.interface.routes_mut().add_default_ipv6_route(user_net::addresses::GATEWAY6).unwrap();
        guest
    }

    pub fn without_address(config: Config) -> Self {
        let mtu = usize::from(config.mtu);
        let (net, sender, receiver) = UserNet::start(config).unwrap();
        let mut wire = Wire { sender, receiver, incoming: VecDeque::new(), outgoing: VecDeque::new(), mtu };
        let mut interface_config = InterfaceConfig::new(EthernetAddress(MAC).into());
        interface_config.random_seed = 42;
        let interface = Interface::new(interface_config, &mut wire, Instant::ZERO);
        let sockets = SocketSet::new(Vec::new());
        Self { net, wire, interface, sockets, started: std::time::Instant::now(), next_port: 20000 }
    }

    /// Lets the stack work once, and waits a moment for frames if there is nothing to do.
    pub fn poll(&mut self) {
        let now = Instant::from_micros(i64::try_from(self.started.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let delay = self.interface.poll_delay(now, &self.sockets);
        let wait =
            delay.map_or(Duration::from_millis(5), |delay| Duration::from_micros(delay.total_micros()));
        self.wire.exchange(wait.min(Duration::from_millis(5)));
    }

    /// Polls until `done` says so.
    pub fn until<R>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(std::time::Instant::now() < end, "{what}: nothing for {PATIENCE:?}");
            self.poll();
        }
    }

    /// Gets an address by DHCP.
    pub fn configure(
        &mut self,
    ) -> (smoltcp::wire::Ipv4Cidr, Option<std::net::Ipv4Addr>, Vec<std::net::Ipv4Addr>) {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let result =
            self.until("DHCP", |guest| match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(config)) => {
                    Some((config.address, config.router, config.dns_servers.to_vec()))
                }
                _ => None,
            });
        self.interface.update_ip_addrs(|list| list.push(IpCidr::Ipv4(result.0)).unwrap());
        self.interface.routes_mut().add_default_ipv4_route(result.1.unwrap()).unwrap();
        self.sockets.remove(handle);
        result
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Begins to connect, from a port that no connection before had.
    pub fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        self.next_port = self.next_port.checked_add(1).unwrap_or(20000);
        let handle = self.tcp();
        let port = self.next_port;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), IpEndpoint::from(to), port).unwrap();
        handle
    }

    /// Connects.
    pub fn connected(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.connect(to);
        self.until("connecting", |guest| guest.socket(handle).may_send().then_some(()));
        handle
    }

    /// Sends all.
    pub fn send(&mut self, handle: SocketHandle, mut data: &[u8]) {
        self.until("sending", |guest| {
            let count = guest.socket(handle).send_slice(data).unwrap();
            data = &data[count..];
            data.is_empty().then_some(())
        });
    }

    /// Receives exactly so many bytes.
    pub fn receive(&mut self, handle: SocketHandle, count: usize) -> Vec<u8> {
        let mut data = vec![0; count];
        let mut at = 0;
        self.until("receiving", |guest| {
            match guest.socket(handle).recv_slice(&mut data[at..]) {
                Ok(count) => at += count,
                // Nobody has called yet.
                Err(error) => assert_eq!((at, error), (0, tcp::RecvError::InvalidState)),
            }
            (at == count).then_some(())
        });
        data
    }

    /// Waits until no connection is left in the network.
    pub fn until_empty(&mut self) {
        self.until("slots of connections", |guest| (guest.net.counts().tcp == 0).then_some(()));
    }
}

pub fn gateway(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(user_net::addresses::GATEWAY), port)
}

/// A cheap sum that sees every byte and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Numbers that are the same each time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
