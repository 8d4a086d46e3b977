//! The guest's side of one connection: a smoltcp interface and socket of its own.
//!
//! Each connection has its own interface, so a segment finds its socket by one look into a hash table and not by asking
//! every socket (smoltcp's sets are lists), and what one connection does cannot disturb another. The interface has the
//! address that the guest talks to, whatever that is.

use crate::context::Context;
use crate::frames::{ETHERNET_HEADER, Frame, PartialChecksum, Segment};
use crate::output::{IPV4_HEADER, IPV6_HEADER, Output, ethernet_header};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::socket::tcp::{ConnectError, ListenError, Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpProtocol, checksum};
use std::net::IpAddr;
use std::num::NonZeroUsize;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// When a guest that is silent is asked whether it is there, and when it is given up: Linux's own two hours, so a guest
/// may be stopped for a while without losing its connections.
const KEEP_ALIVE: Duration = Duration::from_secs(150);
const GIVE_UP: Duration = Duration::from_secs(7200);
/// Frames that one connection sends before others have their turn.
const TURN: usize = 64;

/// Why sending stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// There is nothing to send.
    All,
    /// There may be more.
    Some,
    /// There was no room.
    Blocked,
}

pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: DeviceCapabilities,
    guest: IpAddr,
    established: bool,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("guest", &self.guest).finish_non_exhaustive()
    }
}

impl Stack {
    /// A closed socket of `local`, which must be unicast, for a guest at `guest`, with `buffer` bytes each way.
    pub(crate) fn new(context: &mut Context, local: IpAddr, guest: IpAddr, buffer: usize, seed: u64) -> Self {
        let capabilities = capabilities(&context.out);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut link = Link {
            packet: None,
            out: &mut context.out,
            mac: [0; 6],
            capabilities: &capabilities,
            answering: false,
            blocked: false,
        };
        let mut interface = Interface::new(config, &mut link, context.now);
        let local = IpAddress::from(local);
        let bits = if guest.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|list| {
            // The list is empty and has room for two.
            let _ = list.push(IpCidr::new(local, bits));
        });
        let new = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(new(), new());
        socket.set_nagle_enabled(false);
        // Acknowledgements wait for the end of a batch of frames, no longer.
        socket.set_ack_delay(None);
        socket.set_timeout(Some(HANDSHAKE));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, capabilities, guest, established: false }
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Waits for the guest's SYN.
    pub(crate) fn listen(&mut self, port: u16) -> Result<(), ListenError> {
        self.socket().listen(port)
    }

    /// Sends a SYN to the guest, with the next [`Self::send`].
    pub(crate) fn connect(&mut self, port: u16, local: (IpAddr, u16)) -> Result<(), ConnectError> {
        let guest = IpEndpoint::new(self.guest.into(), port);
        let local = IpEndpoint::new(local.0.into(), local.1);
        let context = self.interface.context();
        self.sockets.get_mut::<Socket<'_>>(self.handle).connect(context, guest, local)
    }

    /// Lets the socket see a packet of the guest's.
    pub(crate) fn feed(&mut self, context: &mut Context, packet: &[u8]) {
        let mut link = Link {
            packet: Some(packet),
            mac: context.out.mac(self.guest),
            out: &mut context.out,
            capabilities: &self.capabilities,
            answering: true,
            blocked: false,
        };
        self.interface.poll_ingress_single(context.now, &mut link, &mut self.sockets);
        if !self.established && self.socket().may_send() {
            self.established = true;
            let socket = self.socket();
            socket.set_timeout(Some(GIVE_UP));
            socket.set_keep_alive(Some(KEEP_ALIVE));
        }
    }

    /// Sends what the socket has to send.
    pub(crate) fn send(&mut self, context: &mut Context) -> Sent {
        let mut link = Link {
            packet: None,
            mac: context.out.mac(self.guest),
            out: &mut context.out,
            capabilities: &self.capabilities,
            answering: false,
            blocked: false,
        };
        for _ in 0..TURN {
            match self.interface.poll_egress(context.now, &mut link, &mut self.sockets) {
                PollResult::SocketStateChanged => {}
                PollResult::None if link.blocked => return Sent::Blocked,
                PollResult::None => return Sent::All,
            }
        }
        Sent::Some
    }

    /// When the socket wants to be asked again.
    pub(crate) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

fn capabilities(out: &Output) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = out.mtu;
    capabilities.checksum = ChecksumCapabilities::default();
    // Both were looked at before.
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = if out.offloads.checksum { Checksum::None } else { Checksum::Tx };
    if out.offloads.checksum && out.offloads.tcp4 {
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(usize::from(u16::MAX));
    }
    capabilities
}

/// The wire between one socket and the guest.
struct Link<'a> {
    packet: Option<&'a [u8]>,
    out: &'a mut Output,
    mac: [u8; 6],
    capabilities: &'a DeviceCapabilities,
    /// Answers go even if there is no room for more: they are as many as packets came, at most.
    answering: bool,
    blocked: bool,
}

struct Received<'a>(&'a [u8]);

struct Transmit<'a> {
    out: &'a mut Output,
    mac: [u8; 6],
    partial: bool,
    meta: PacketMeta,
}

impl Device for Link<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), self.token()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        self.blocked = !self.answering && !self.out.has_room();
        (!self.blocked).then(|| self.token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

impl Link<'_> {
    fn token(&mut self) -> Transmit<'_> {
        let partial = !self.capabilities.checksum.tcp.tx();
        Transmit { out: self.out, mac: self.mac, partial, meta: PacketMeta::default() }
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = ethernet_header(self.mac, 0, len);
        bytes.resize(ETHERNET_HEADER + len, 0);
        let result = f(&mut bytes[ETHERNET_HEADER..]);
        let v6 = bytes.get(ETHERNET_HEADER).is_some_and(|first| first >> 4 == 6);
        let kind: u16 = if v6 { 0x86dd } else { 0x0800 };
        bytes[12..ETHERNET_HEADER].copy_from_slice(&kind.to_be_bytes());
        let mut frame = Frame { bytes, ..Frame::default() };
        if self.partial {
            finish_partial(&mut frame, v6, self.meta);
        }
        self.out.frame(frame);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

/// Says where the checksum is to be completed, puts the pseudo-header's sum there, and says how to cut the frame.
fn finish_partial(frame: &mut Frame, v6: bool, meta: PacketMeta) {
    let header = if v6 { IPV6_HEADER } else { IPV4_HEADER };
    let start = ETHERNET_HEADER + header;
    let addresses = |at: usize, size: usize| -> Option<(IpAddress, IpAddress)> {
        let source = frame.bytes.get(at..at + size)?;
        let destination = frame.bytes.get(at + size..at + 2 * size)?;
        Some(if v6 {
            let address = |bytes: &[u8]| Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).into());
            (address(source)?, address(destination)?)
        } else {
            let address = |bytes: &[u8]| Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
            (address(source)?, address(destination)?)
        })
    };
    let addresses = if v6 { addresses(ETHERNET_HEADER + 8, 16) } else { addresses(ETHERNET_HEADER + 12, 4) };
    let (Some((source, destination)), Some(&offset)) = (addresses, frame.bytes.get(start + 12)) else {
        return;
    };
    let length = (frame.bytes.len() - start) as u32;
    let sum = checksum::pseudo_header(&source, &destination, IpProtocol::Tcp, length);
    if let Some(field) = frame.bytes.get_mut(start + 16..start + 18) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    frame.checksum = Some(PartialChecksum { start: start as u16, offset: 16 });
    frame.segment = meta
        .segmentation_offload_size
        .map(|size| Segment { size: size.get(), header: (start + usize::from(offset >> 4) * 4) as u16 });
}
