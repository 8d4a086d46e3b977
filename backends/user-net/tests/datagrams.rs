//! UDP, DNS and ICMP.

mod common;

use common::{Guest, gateway};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{icmp, udp};
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpEndpoint, Ipv4Packet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use user_net::{Config, addresses};

fn udp(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 65536]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

fn send(guest: &mut Guest, handle: SocketHandle, to: SocketAddr, data: &[u8]) {
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(data, IpEndpoint::from(to)).unwrap();
    guest.poll();
}

fn receive(guest: &mut Guest, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
    guest.until("a datagram", |guest| {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(data, meta)| (data.to_vec(), meta.endpoint))
    })
}

fn host() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// What comes to a socket of the host's, while the guest goes on.
fn host_receive(guest: &mut Guest, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65536];
    let (length, peer) = guest.until("a datagram to the host", |_| socket.recv_from(&mut buffer).ok());
    buffer.truncate(length);
    (buffer, peer)
}

#[test]
fn an_echo_over_udp() {
    let mut guest = Guest::new("user,host=on");
    let (host, port) = host();
    let handle = udp(&mut guest, 5000);
    for data in [&b"hello"[..], &[], &[7; 1472]] {
        send(&mut guest, handle, gateway(port), data);
        let (heard, peer) = host_receive(&mut guest, &host);
        assert_eq!(heard, data);
        host.send_to(data, peer).unwrap();
        assert_eq!(receive(&mut guest, handle), (data.to_vec(), gateway(port).into()));
    }
    // All of one pair of ports are one flow.
    assert_eq!(guest.net.counts().udp, 1);
}

#[test]
fn datagrams_come_in_through_a_forward() {
    let mut guest = Guest::new("user,hostfwd=udp:0:53,restrict=on");
    let forward = guest.net.forwards()[0];
    let handle = udp(&mut guest, 53);
    let (host, _) = host();
    host.connect(forward).unwrap();
    for round in 0..3u8 {
        host.send(&[round; 100]).unwrap();
        let (data, from) = receive(&mut guest, handle);
        assert_eq!((data.as_slice(), from.addr), (&[round; 100][..], addresses::GATEWAY.into()));
        guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(&[round + 1; 50], from).unwrap();
        assert_eq!(host_receive(&mut guest, &host).0, [round + 1; 50]);
    }
}

/// The ICMP error that the guest gets for a datagram to that address: its type, code, and the ports it quotes.
fn error_for(text: &str, to: &str) -> (Icmpv4Message, u8, u16, u16) {
    let mut guest = Guest::new(text);
    let handle = udp(&mut guest, 5000);
    let to: SocketAddr = to.parse().unwrap();
    send(&mut guest, handle, to, b"anybody?");
    let end = std::time::Instant::now() + common::PATIENCE;
    loop {
        while let Some(frame) = guest.wire.incoming.pop_front() {
            if frame.bytes[12..14] == [8, 0] {
                let packet = Ipv4Packet::new_checked(&frame.bytes[14..]).unwrap();
                assert!(packet.verify_checksum());
                let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
                assert!(message.verify_checksum());
                let quoted = &message.data()[20..];
                let port = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
                return (message.msg_type(), message.msg_code(), port(0), port(2));
            }
            // ARP's answer is the stack's.
            guest.wire.incoming.push_front(frame);
            guest.poll();
        }
        assert!(std::time::Instant::now() < end, "{text}, {to}: no ICMP error");
        guest.wire.exchange(std::time::Duration::from_millis(1));
        if guest.wire.incoming.iter().all(|frame| frame.bytes[12..14] != [8, 0]) {
            guest.poll();
        }
    }
}

#[test]
fn closed_ports_and_unreachable_addresses_are_told_by_icmp() {
    let (socket, closed) = host();
    drop(socket);
    for (text, to, expected) in [
        ("user,host=on", format!("10.0.2.2:{closed}"), Icmpv4DstUnreachable::PortUnreachable),
        ("user", "10.0.2.2:7".to_owned(), Icmpv4DstUnreachable::PortUnreachable),
        ("user", "10.0.2.3:7".to_owned(), Icmpv4DstUnreachable::PortUnreachable),
        ("user", "127.0.0.1:7".to_owned(), Icmpv4DstUnreachable::NetUnreachable),
        ("user", "169.254.169.254:80".to_owned(), Icmpv4DstUnreachable::NetUnreachable),
        ("user,restrict=on", "192.0.2.1:7".to_owned(), Icmpv4DstUnreachable::CommProhibited),
    ] {
        let (kind, code, from, port) = error_for(text, &to);
        let to: SocketAddr = to.parse().unwrap();
        assert_eq!((kind, from, port), (Icmpv4Message::DstUnreachable, 5000, to.port()), "{to}");
        assert_eq!(Icmpv4DstUnreachable::from(code), expected, "{to}");
    }
}

#[test]
fn large_datagrams_go_in_fragments() {
    // smoltcp makes no fragments here, so the guest's are made by hand.
    let mut guest = Guest::new("user,host=on");
    let (host, port) = host();
    let data: Vec<u8> = (0..9000u32).map(|number| (number % 251) as u8).collect();
    let mut datagram = vec![0x13, 0x88];
    datagram.extend_from_slice(&port.to_be_bytes());
    datagram.extend_from_slice(&(data.len() as u16 + 8).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(&data);
    for (index, piece) in datagram.chunks(1480).enumerate() {
        let mut frame = addresses::GATEWAY_MAC.to_vec();
        frame.extend_from_slice(&common::MAC);
        frame.extend_from_slice(&[8, 0, 0x45, 0]);
        frame.extend_from_slice(&(20 + piece.len() as u16).to_be_bytes());
        let more = u16::from((index + 1) * 1480 < datagram.len()) << 13;
        frame.extend_from_slice(&[0x12, 0x34]);
        frame.extend_from_slice(&(more | (index * 1480 / 8) as u16).to_be_bytes());
        frame.extend_from_slice(&[64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        Ipv4Packet::new_unchecked(&mut frame[14..34]).fill_checksum();
        frame.extend_from_slice(piece);
        guest.wire.push(frame);
    }
    guest.wire.exchange(std::time::Duration::ZERO);
    let (heard, peer) = host_receive(&mut guest, &host);
    assert_eq!(heard, data);
    host.send_to(&data, peer).unwrap();
    let mut joined = vec![0; data.len() + 8];
    let mut have = 0;
    while have < joined.len() {
        guest.wire.exchange(common::PATIENCE);
        for frame in guest.wire.incoming.drain(..).filter(|frame| frame.bytes[12..14] == [8, 0]) {
            assert!(frame.bytes.len() <= 1514);
            let packet = Ipv4Packet::new_checked(&frame.bytes[14..]).unwrap();
            assert!(packet.verify_checksum());
            let offset = usize::from(packet.frag_offset());
            assert_eq!(packet.more_frags(), offset + packet.payload().len() < joined.len());
            joined[offset..offset + packet.payload().len()].copy_from_slice(packet.payload());
            have += packet.payload().len();
        }
    }
    assert_eq!(joined[8..], data);
    let checked = smoltcp::wire::UdpPacket::new_checked(&joined[..]).unwrap();
    assert!(checked.verify_checksum(&addresses::GATEWAY.into(), &addresses::GUEST.into()));
}

/// A query for example.org, and what a server makes of it.
fn query(id: u16) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query
        .extend_from_slice(b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01");
    query
}

fn with_resolvers(text: &str, resolvers: Vec<SocketAddr>) -> Guest {
    let mut config = Config::new(common::options(text), common::MAC);
    config.resolvers = Some(resolvers);
    Guest::with(config)
}

#[test]
fn dns_is_relayed_whatever_the_upstreams_family() {
    let relay = SocketAddr::from((addresses::RESOLVER, 53));
    let v6 = UdpSocket::bind("[::1]:0").ok();
    let (v4, _) = host();
    for server in [Some(v4), v6].into_iter().flatten() {
        server.set_nonblocking(true).unwrap();
        let mut guest = with_resolvers("user,restrict=on", vec![server.local_addr().unwrap()]);
        let handle = udp(&mut guest, 5353);
        for id in [1, 2, 3] {
            send(&mut guest, handle, relay, &query(id));
            let (mut message, peer) = host_receive(&mut guest, &server);
            assert_eq!(message, query(id));
            // An answer to another question is not taken.
            server.send_to(&query(id + 100), peer).unwrap();
            message[2] |= 0x80;
            server.send_to(&message, peer).unwrap();
            assert_eq!(receive(&mut guest, handle), (message, relay.into()));
        }
        guest.until("the queries' end", |guest| (guest.net.counts().dns == 0).then_some(()));
    }
}

#[test]
fn a_dead_name_server_is_followed_by_the_next() {
    let (dead, port) = host();
    drop(dead);
    let (silent, _) = host();
    let (server, _) = host();
    let list =
        vec![([127, 0, 0, 1], port).into(), silent.local_addr().unwrap(), server.local_addr().unwrap()];
    let mut guest = with_resolvers("user", list);
    let handle = udp(&mut guest, 5353);
    let relay = SocketAddr::from((addresses::RESOLVER, 53));
    send(&mut guest, handle, relay, &query(9));
    let (message, peer) = host_receive(&mut guest, &server);
    server.send_to(&message, peer).unwrap();
    assert_eq!(receive(&mut guest, handle).0, query(9));
    assert_eq!(host_receive(&mut guest, &silent).0, query(9));
}

#[test]
fn dns_over_tcp_goes_to_the_first_server_that_takes_it() {
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = refusing.local_addr().unwrap();
    drop(refusing);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = with_resolvers("user,restrict=on", vec![dead, server.local_addr().unwrap()]);
    let handle = guest.connected(SocketAddr::from((addresses::RESOLVER, 53)));
    let (mut stream, _) = server.accept().unwrap();
    guest.send(handle, &query(1));
    guest.poll();
    let mut data = vec![0; query(1).len()];
    stream.read_exact(&mut data).unwrap();
    stream.write_all(&data).unwrap();
    assert_eq!(guest.receive(handle, data.len()), query(1));
}

#[test]
fn the_gateway_and_the_relay_answer_echo_requests() {
    let mut guest = Guest::new("user");
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(77)).unwrap();
    let handle = guest.sockets.add(socket);
    for (seq_no, address) in [addresses::GATEWAY, addresses::RESOLVER].into_iter().enumerate() {
        let request = Icmpv4Repr::EchoRequest { ident: 77, seq_no: seq_no as u16, data: b"ping" };
        let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let payload = socket.send(request.buffer_len(), address.into()).unwrap();
        request
            .emit(&mut Icmpv4Packet::new_unchecked(payload), &smoltcp::phy::ChecksumCapabilities::default());
        let (data, from) = guest.until("a reply", |guest| {
            let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
            socket.recv().ok().map(|(data, from)| (data.to_vec(), from))
        });
        let packet = Icmpv4Packet::new_checked(&data).unwrap();
        let reply = Icmpv4Repr::parse(&packet, &smoltcp::phy::ChecksumCapabilities::default()).unwrap();
        assert_eq!(reply, Icmpv4Repr::EchoReply { ident: 77, seq_no: seq_no as u16, data: b"ping" });
        assert_eq!(from, address.into());
    }
}
