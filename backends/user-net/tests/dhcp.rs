//! The DHCP server, message by message.

mod common;

use common::{MAC, options};
use smoltcp::wire::{Ipv4Packet, UdpPacket};
use std::net::Ipv4Addr;
use user_net::{Config, Frame, Stepped, addresses};

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// A client's message in a frame, from nobody to everybody, with correct checksums.
fn message(mac: [u8; 6], client: [u8; 4], broadcast: bool, options: &[&[u8]]) -> Frame {
    let mut message = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, u8::from(broadcast) << 7, 0];
    message.extend_from_slice(&client);
    message.resize(28, 0);
    message.extend_from_slice(&mac);
    message.resize(236, 0);
    message.extend_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend_from_slice(&options.concat());
    message.push(255);
    let mut bytes = vec![0xff; 6];
    bytes.extend_from_slice(&mac);
    bytes.extend_from_slice(&[8, 0, 0x45, 0]);
    bytes.extend_from_slice(&(28 + message.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    bytes.extend_from_slice(&[0, 68, 0, 67]);
    bytes.extend_from_slice(&(8 + message.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&message);
    Ipv4Packet::new_unchecked(&mut bytes[14..34]).fill_checksum();
    let (from, to) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    UdpPacket::new_unchecked(&mut bytes[34..]).fill_checksum(&from, &to);
    Frame { bytes, ..Frame::default() }
}

struct Reply {
    mac: [u8; 6],
    to: Ipv4Addr,
    yours: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    fn option(&self, kind: u8) -> Option<&[u8]> {
        self.options.iter().find(|option| option.0 == kind).map(|option| &*option.1)
    }
}

/// The answer to a message, whose checksums are right and complete.
fn ask(network: &mut Stepped, frame: &Frame) -> Option<Reply> {
    network.input(frame);
    let frames = network.output();
    let frame = frames.first()?;
    assert_eq!((frames.len(), frame.checksum), (1, None));
    let packet = Ipv4Packet::new_checked(&frame.bytes[14..]).unwrap();
    let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
    assert!(packet.verify_checksum() && datagram.checksum() != 0);
    assert!(datagram.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
    assert_eq!((packet.src_addr(), datagram.src_port(), datagram.dst_port()), (addresses::GATEWAY, 67, 68));
    let data = datagram.payload();
    assert!(data.len() >= 300, "old clients expect 300 bytes");
    assert_eq!((data[0], &data[4..8]), (2, &[0xde, 0xad, 0xbe, 0xef][..]));
    let (mut options, mut rest) = (Vec::new(), &data[240..]);
    while let [kind @ 1..=254, length, ..] = *rest {
        let (option, behind) = rest[2..].split_at(usize::from(length));
        options.push((kind, option.to_vec()));
        rest = behind;
    }
    let yours = Ipv4Addr::from(<[u8; 4]>::try_from(&data[16..20]).unwrap());
    Some(Reply { mac: frame.bytes[..6].try_into().unwrap(), to: packet.dst_addr(), yours, options })
}

fn network() -> Stepped {
    Stepped::new(&Config::new(options("user"), MAC)).unwrap()
}

#[test]
fn an_address_is_offered_and_leased() {
    let mut network = network();
    // An identifier that is no Ethernet address comes back as it is.
    let identifier = b"\x3d\x07\x00debian";
    let offer = ask(&mut network, &message(MAC, [0; 4], false, &[&[53, 1, DISCOVER], identifier])).unwrap();
    assert_eq!(
        (offer.option(53), offer.yours, offer.to),
        (Some(&[OFFER][..]), addresses::GUEST, addresses::GUEST)
    );
    assert_eq!((offer.mac, offer.option(61)), (MAC, Some(&b"\x00debian"[..])));
    assert_eq!(offer.option(1), Some(&addresses::NETMASK.octets()[..]));
    assert_eq!(offer.option(3), Some(&addresses::GATEWAY.octets()[..]));
    assert_eq!(offer.option(6), Some(&addresses::RESOLVER.octets()[..]));
    assert_eq!(offer.option(26), Some(&1500u16.to_be_bytes()[..]));
    assert_eq!(offer.option(51), Some(&86400u32.to_be_bytes()[..]));
    assert_eq!(offer.option(54), Some(&addresses::GATEWAY.octets()[..]));
    let wanted = [&[50, 4][..], &addresses::GUEST.octets()].concat();
    let server = [&[54, 4][..], &addresses::GATEWAY.octets()].concat();
    let request = message(MAC, [0; 4], true, &[&[53, 1, REQUEST], &wanted, &server]);
    let ack = ask(&mut network, &request).unwrap();
    assert_eq!((ack.option(53), ack.yours), (Some(&[ACK][..]), addresses::GUEST));
    // A client that asks for a broadcast gets one.
    assert_eq!((ack.mac, ack.to), ([0xff; 6], Ipv4Addr::BROADCAST));
    // And renews.
    let renewal = message(MAC, addresses::GUEST.octets(), false, &[&[53, 1, REQUEST]]);
    assert_eq!(ask(&mut network, &renewal).unwrap().option(53), Some(&[ACK][..]));
}

#[test]
fn another_address_is_refused_and_another_server_left_alone() {
    let mut network = network();
    let wanted = [50, 4, 192, 168, 1, 7];
    let refusal = ask(&mut network, &message(MAC, [0; 4], false, &[&[53, 1, REQUEST], &wanted])).unwrap();
    assert_eq!((refusal.option(53), refusal.option(51)), (Some(&[NAK][..]), None));
    assert_eq!((refusal.to, refusal.yours), (Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED));
    let elsewhere = message(MAC, [0; 4], false, &[&[53, 1, REQUEST], &[54, 4, 10, 0, 2, 9]]);
    assert!(ask(&mut network, &elsewhere).is_none());
}

#[test]
fn who_has_an_address_is_told_the_rest() {
    let mut network = network();
    let inform = message(MAC, addresses::GUEST.octets(), false, &[&[53, 1, INFORM]]);
    let ack = ask(&mut network, &inform).unwrap();
    assert_eq!(
        (ack.option(53), ack.yours, ack.to),
        (Some(&[ACK][..]), Ipv4Addr::UNSPECIFIED, addresses::GUEST)
    );
    assert_eq!((ack.option(51), ack.option(6)), (None, Some(&addresses::RESOLVER.octets()[..])));
}

#[test]
fn sixteen_cards_get_addresses_and_no_more() {
    let mut network = network();
    for round in 0..2 {
        for card in 0..20u8 {
            let offer =
                ask(&mut network, &message([2, 0, 0, 0, 0, card], [0; 4], false, &[&[53, 1, DISCOVER]]));
            let expected = (card < 16).then(|| Ipv4Addr::new(10, 0, 2, 15 + card));
            assert_eq!(offer.map(|offer| offer.yours), expected, "{round}");
        }
    }
}
