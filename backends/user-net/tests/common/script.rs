//! A guest and a host that do what bytes say: for the fuzzer, and for random bytes in the test suite.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "shared with fuzz/")]

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpPacket};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use user_net::frames::PartialChecksum;
use user_net::{Config, Forward, Frame, Limits, Offloads, Options, Protocol, Stepped, addresses};

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const LIMITS: Limits = Limits { tcp: 6, tcp_buffers: 1 << 20, udp: 4, dns: 3, ping: 2 };

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The host's side: a listener that the guest reaches through the gateway, and what it has accepted.
pub struct Host {
    listener: TcpListener,
    datagrams: UdpSocket,
    streams: Vec<TcpStream>,
    /// Bytes that the guest has sent to them.
    pub heard: usize,
}

impl Host {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
        datagrams.set_nonblocking(true).expect("a socket");
        Self { listener, datagrams, streams: Vec::new(), heard: 0 }
    }
}

/// What the guest has last seen of the other side.
#[derive(Default)]
struct Seen {
    seq: u32,
    ack: u32,
    port: u16,
}

/// Runs a network through what `bytes` say.
pub fn run(host: &mut Host, bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let forward = |protocol| Forward { protocol, host: ([127, 0, 0, 1], 0).into(), guest: 80 };
    let options = Options {
        forwards: vec![forward(Protocol::Tcp), forward(Protocol::Udp)],
        restrict: false,
        host: true,
    };
    let mut config = Config::new(options, MAC);
    config.limits = LIMITS;
    config.resolvers = Some(vec![host.datagrams.local_addr().expect("a socket")]);
    let mut network = Stepped::new(&config).expect("descriptors");
    let port = host.listener.local_addr().expect("a socket").port();
    let mut seen = Seen::default();
    while !bytes.0.is_empty() {
        match bytes.byte() % 16 {
            0 => {
                let length = usize::from(bytes.byte());
                network.input(&Frame { bytes: bytes.take(length).to_vec(), ..Frame::default() });
            }
            1..=6 => network.input(&tcp(&mut bytes, port, &seen)),
            7 | 8 => network.input(&udp(&mut bytes, host.datagrams.local_addr().expect("a socket").port())),
            9 => network.input(&ip(&mut bytes)),
            10 | 11 => host_acts(host, &mut bytes, &network),
            12 => {
                let time = Duration::from_millis(u64::from(bytes.word()));
                network.step(time * u32::from(bytes.byte()));
            }
            13 if bytes.byte() > 200 => {
                let flags = bytes.byte();
                network.guest_reset(Offloads { checksum: flags & 1 != 0, tcp4: flags & 2 != 0 });
            }
            _ => network.step(Duration::from_millis(1)),
        }
        while let Ok((stream, _)) = host.listener.accept() {
            stream.set_nonblocking(true).expect("a socket");
            host.streams.push(stream);
        }
        let counts = network.counts();
        assert!(counts.tcp <= LIMITS.tcp && counts.udp <= LIMITS.udp && counts.dns <= LIMITS.dns);
        for frame in network.output() {
            look(&frame, &mut seen);
        }
    }
    host.streams.clear();
}

/// What comes out has the form that it should have.
fn look(frame: &Frame, seen: &mut Seen) {
    assert!(frame.bytes.len() <= user_net::frames::MAX_FRAME && frame.bytes.len() >= 34);
    if frame.segment.is_none() {
        assert!(frame.bytes.len() <= 1514);
    }
    let (_, payload) = frame.bytes.split_at(14);
    if frame.bytes[12..14] != [8, 0] {
        if frame.bytes[12..14] == [0x86, 0xdd] {
            Ipv6Packet::new_checked(payload).expect("an IPv6 packet");
        }
        return;
    }
    let packet = Ipv4Packet::new_checked(payload).expect("an IPv4 packet");
    assert!(packet.verify_checksum());
    if packet.next_header() == IpProtocol::Tcp {
        let segment = TcpPacket::new_checked(packet.payload()).expect("a segment");
        let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
        assert!(frame.checksum.is_some() || segment.verify_checksum(&source, &destination));
        let end = segment.seq_number() + segment.segment_len();
        *seen = Seen { seq: end.0 as u32, ack: segment.ack_number().0 as u32, port: segment.src_port() };
    }
}

fn destination(choice: u8) -> IpAddr {
    match choice % 16 {
        0 => addresses::RESOLVER.into(),
        1 => addresses::RESOLVER6.into(),
        2 => Ipv4Addr::BROADCAST.into(),
        3 => Ipv4Addr::new(10, 0, 2, 99).into(),
        4 => Ipv4Addr::new(127, 0, 0, 1).into(),
        5 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        6..=8 => addresses::GATEWAY6.into(),
        _ => addresses::GATEWAY.into(),
    }
}

fn source(destination: IpAddr, choice: u8) -> IpAddr {
    match destination {
        IpAddr::V4(_) if choice >= 250 => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) if choice >= 250 => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V4(_) => Ipv4Addr::new(10, 0, 2, if choice & 0x38 == 0x38 { 16 } else { 15 }).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 15 + u16::from(choice % 2)).into(),
    }
}

/// A frame with a sound header around any payload; its transport checksum counts as right.
fn frame(source: IpAddr, destination: IpAddr, protocol: IpProtocol, hops: u8, payload: &[u8]) -> Frame {
    let mut bytes = addresses::GATEWAY_MAC.to_vec();
    bytes.extend_from_slice(&MAC);
    bytes.extend_from_slice(if source.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] });
    let (source, destination) = (IpAddress::from(source), IpAddress::from(destination));
    let header = IpRepr::new(source, destination, protocol, payload.len(), hops);
    let mut packet = vec![0; header.header_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    bytes.extend_from_slice(&packet);
    bytes.extend_from_slice(payload);
    Frame { bytes, checksum: Some(PartialChecksum { start: 34, offset: 16 }), segment: None }
}

fn tcp(bytes: &mut Bytes<'_>, port: u16, seen: &Seen) -> Frame {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let (choice, flags) = (bytes.byte(), bytes.byte());
    let destination = if choice & 0x80 == 0 { addresses::GATEWAY.into() } else { destination(choice) };
    let to = if choice & 0x60 == 0x60 { seen.port } else { port };
    let from = if choice & 0x70 == 0x70 { 80 } else { 4000 + u16::from(choice & 7 == 7) };
    // Mostly what the other side expects.
    let flags = match flags % 8 {
        0..=3 => ACK | (flags >> 4 & 8),
        4 => ACK | 1,
        5 => SYN,
        6 => ACK | 4,
        _ => flags,
    };
    let near = |base: u32, by: u8| match by % 8 {
        0..=5 => base,
        6 => base.wrapping_add(u32::from(by)),
        _ => base.wrapping_sub(u32::from(by) << (by >> 5)),
    };
    let (seq, ack) = (near(seen.ack, bytes.byte()), near(seen.seq, bytes.byte()));
    let options = bytes.byte();
    let options = if options % 4 == 3 { bytes.take(usize::from(options >> 2) % 11 * 4) } else { &[] };
    let header = 20 + options.len().div_ceil(4) * 4;
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&ack.to_be_bytes());
    segment.extend_from_slice(&[(header as u8 / 4) << 4, flags]);
    segment.extend_from_slice(&bytes.word().to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    segment.extend_from_slice(options);
    segment.resize(header, 0);
    let length = usize::from(bytes.byte());
    segment.resize(header + if length > 200 { (length - 200) * 1100 } else { length }, 0x55);
    segment.truncate(60_000);
    frame(source(destination, choice), destination, IpProtocol::Tcp, 64, &segment)
}

fn udp(bytes: &mut Bytes<'_>, port: u16) -> Frame {
    let choice = bytes.byte();
    let destination = destination(choice);
    let (from, to) = match choice >> 4 & 7 {
        0 | 1 => (68, 67),
        2 | 3 => (5353, 53),
        4 => (80, 32769),
        _ => (5000 + u16::from(choice), port),
    };
    let length = usize::from(bytes.byte());
    let data = bytes.take(length);
    let mut datagram = [from, to, data.len() as u16 + 8, 0].map(u16::to_be_bytes).concat();
    datagram.extend_from_slice(data);
    frame(source(destination, choice), destination, IpProtocol::Udp, 64, &datagram)
}

/// Any protocol and payload; for IPv4 also as a fragment.
fn ip(bytes: &mut Bytes<'_>) -> Frame {
    let (choice, protocol, hops) = (bytes.byte(), bytes.byte(), bytes.byte());
    let destination = destination(choice);
    let fragment = bytes.word();
    let length = usize::from(bytes.byte());
    let payload = bytes.take(length);
    let hops = if hops > 128 { 255 } else { hops.max(1) };
    let mut frame = frame(source(destination, choice), destination, protocol.into(), hops, payload);
    if destination.is_ipv4() && choice & 0x80 != 0 {
        frame.bytes[20..22].copy_from_slice(&fragment.to_be_bytes());
        Ipv4Packet::new_unchecked(&mut frame.bytes[14..]).fill_checksum();
    }
    frame
}

fn host_acts(host: &mut Host, bytes: &mut Bytes<'_>, network: &Stepped) {
    let choice = bytes.byte();
    let index = usize::from(choice >> 4);
    match choice % 8 {
        0 if host.streams.len() < 16 => {
            if let Some(stream) =
                network.forwards().first().and_then(|address| TcpStream::connect(address).ok())
            {
                stream.set_nonblocking(true).expect("a socket");
                host.streams.push(stream);
            }
        }
        1 => {
            if let Some(&address) = network.forwards().get(1) {
                let _ = host.datagrams.send_to(&[choice; 100], address);
            }
        }
        2 => {
            let mut buffer = [0; 512];
            if let Ok((length, peer)) = host.datagrams.recv_from(&mut buffer) {
                let _ = host.datagrams.send_to(&buffer[..length], peer);
            }
        }
        act => {
            let Some(index) = index.checked_rem(host.streams.len()) else { return };
            match act {
                3 => drop(host.streams[index].write(&vec![choice; usize::from(bytes.word())])),
                4 => host.heard += host.streams[index].read(&mut vec![0; 1 << 16]).unwrap_or(0),
                5 => drop(host.streams[index].shutdown(Shutdown::Write)),
                6 => drop(host.streams.swap_remove(index)),
                _ => {}
            }
        }
    }
}
