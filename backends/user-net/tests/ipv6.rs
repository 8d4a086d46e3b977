//! IPv6: how the guest gets an address, and connections with it.

mod common;

use common::{Guest, MAC, options};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv6Packet, checksum};
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;
use user_net::{Config, Frame, Stepped, addresses};

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn sum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let (from, to): (IpAddress, IpAddress) = (from.into(), to.into());
    let pseudo = checksum::pseudo_header(&from, &to, IpProtocol::Icmpv6, message.len() as u32);
    !checksum::combine(&[pseudo, checksum::data(message)])
}

fn message(from: Ipv6Addr, to: Ipv6Addr, hops: u8, message: &[u8]) -> Frame {
    let mut message = message.to_vec();
    let sum = sum(from, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut bytes = vec![0x33, 0x33, 0, 0, 0, 2];
    bytes.extend_from_slice(&MAC);
    bytes.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, hops]);
    bytes.extend_from_slice(&from.octets());
    bytes.extend_from_slice(&to.octets());
    bytes.extend_from_slice(&message);
    Frame { bytes, ..Frame::default() }
}

/// The ICMPv6 message in a frame: source, destination, hop limit, bytes.
fn parse(frame: &Frame) -> (Ipv6Addr, Ipv6Addr, u8, Vec<u8>) {
    let packet = Ipv6Packet::new_checked(&frame.bytes[14..]).unwrap();
    let (from, to, payload) = (packet.src_addr(), packet.dst_addr(), packet.payload());
    assert_eq!((packet.next_header(), sum(from, to, payload)), (IpProtocol::Icmpv6, 0));
    (from, to, packet.hop_limit(), payload.to_vec())
}

fn network(text: &str) -> Stepped {
    Stepped::new(&Config::new(options(text), MAC)).unwrap()
}

#[test]
fn a_router_solicitation_is_answered() {
    let mut network = network("user");
    for (from, to, mac) in
        [(LINK_LOCAL, LINK_LOCAL, MAC), (Ipv6Addr::UNSPECIFIED, ALL_NODES, [0x33, 0x33, 0, 0, 0, 1])]
    {
        network.input(&message(from, ALL_ROUTERS, 255, &[133, 0, 0, 0, 0, 0, 0, 0]));
        let frames = network.output();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].bytes[..6], mac);
        let (source, destination, hops, advert) = parse(&frames[0]);
        assert_eq!((source, destination, hops), (addresses::GATEWAY_LINK_LOCAL, to, 255));
        assert_eq!((advert[0], advert[1], u16::from_be_bytes([advert[6], advert[7]])), (134, 0, 1800));
        let mut options = &advert[16..];
        let mut kinds = Vec::new();
        while let [kind, length, ..] = *options {
            let (option, rest) = options.split_at(usize::from(length) * 8);
            match kind {
                1 => assert_eq!(option[2..8], addresses::GATEWAY_MAC),
                3 => {
                    assert_eq!((option[2], option[3]), (64, 0xc0));
                    assert_eq!(option[16..24], addresses::GATEWAY6.octets()[..8]);
                }
                5 => assert_eq!(option[4..8], 1500u32.to_be_bytes()),
                25 => assert_eq!(option[8..24], addresses::RESOLVER6.octets()),
                _ => panic!("option {kind}"),
            }
            kinds.push(kind);
            options = rest;
        }
        assert_eq!(kinds, [1, 5, 3, 25]);
    }
    // One that a router has forwarded is none (RFC 4861, 6.1.1).
    network.input(&message(LINK_LOCAL, ALL_ROUTERS, 64, &[133, 0, 0, 0, 0, 0, 0, 0]));
    assert!(network.output().is_empty());
}

#[test]
fn neighbour_solicitations_are_answered_for_our_addresses_only() {
    let mut network = network("user");
    for (target, from, expected) in [
        (addresses::GATEWAY6, LINK_LOCAL, Some((LINK_LOCAL, 0xe0))),
        (addresses::RESOLVER6, LINK_LOCAL, Some((LINK_LOCAL, 0xe0))),
        (addresses::GATEWAY_LINK_LOCAL, LINK_LOCAL, Some((LINK_LOCAL, 0xe0))),
        // Somebody tries to take our address.
        (addresses::GATEWAY6, Ipv6Addr::UNSPECIFIED, Some((ALL_NODES, 0xa0))),
        // Somebody looks whether an address is free: it is.
        (LINK_LOCAL, Ipv6Addr::UNSPECIFIED, None),
        ("fec0::99".parse().unwrap(), LINK_LOCAL, None),
    ] {
        let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
        solicitation.extend_from_slice(&target.octets());
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, target.segments()[7]);
        network.input(&message(from, group, 255, &solicitation));
        let frames = network.output();
        let answers: Vec<_> = frames.iter().map(parse).collect();
        let Some((to, flags)) = expected else {
            assert!(answers.is_empty(), "{target}");
            continue;
        };
        let [(source, destination, 255, advert)] = &answers[..] else { panic!("{target}: {answers:?}") };
        assert_eq!((*source, *destination), (target, to));
        assert_eq!((advert[0], advert[4], &advert[8..24]), (136, flags, &target.octets()[..]));
        assert_eq!(advert[24..32], [&[2, 1][..], &addresses::GATEWAY_MAC].concat());
    }
}

#[test]
fn the_gateway_answers_echo_requests() {
    let mut network = network("user");
    network.input(&message(LINK_LOCAL, addresses::GATEWAY6, 64, &[128, 0, 0, 0, 0, 7, 0, 1, b'x']));
    let (from, to, _, reply) = parse(&network.output()[0]);
    assert_eq!((from, to), (addresses::GATEWAY6, LINK_LOCAL));
    assert_eq!((reply[0], &reply[4..]), (129, &[0, 7, 0, 1, b'x'][..]));
}

#[test]
fn connections_reach_the_hosts_loopback() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        // A host without IPv6 refuses, which the next test sees.
        return;
    };
    let mut guest = Guest::new("user,host=on");
    let to = SocketAddr::from((addresses::GATEWAY6, listener.local_addr().unwrap().port()));
    let handle = guest.connected(to);
    let (mut stream, _) = listener.accept().unwrap();
    guest.send(handle, b"six");
    guest.poll();
    let mut data = [0; 3];
    stream.read_exact(&mut data).unwrap();
    stream.write_all(&[6; 100_000]).unwrap();
    assert_eq!(guest.receive(handle, 100_000), [6; 100_000]);
    drop(stream);
    guest.socket(handle).close();
    guest.until_empty();
}

#[test]
fn refused_and_unreachable_are_told() {
    let mut guest = Guest::new("user");
    let handle = guest.connect(SocketAddr::from((addresses::GATEWAY6, 9)));
    guest.until("refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    // A datagram to an address that the guest's network does not have.
    let mut network = network("user");
    let mut frame = message(LINK_LOCAL, "fec0::77".parse().unwrap(), 64, &[0; 12]);
    frame.bytes[20] = 17;
    frame.bytes[54..62].copy_from_slice(&[0x13, 0x88, 0, 7, 0, 12, 0, 0]);
    frame.checksum = Some(user_net::frames::PartialChecksum { start: 54, offset: 6 });
    network.input(&frame);
    network.step(Duration::from_millis(1));
    let (from, to, _, error) = parse(&network.output()[0]);
    assert_eq!((from, to, error[0], error[1]), (addresses::GATEWAY6, LINK_LOCAL, 1, 3));
    assert_eq!(error[8..], frame.bytes[14..]);
}
