//! From a frame of the guest's to the transport payload in it.

use crate::addresses::may_send;
use crate::frames::{ETHERNET_HEADER, Frame};
use crate::output::IPV6_HEADER;
use crate::reassembly::{Key, Reassembly};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Instant;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6ExtHeader, Ipv6FragmentHeader, Ipv6Packet, TcpPacket,
    UdpPacket,
};
use std::borrow::Cow;
use std::net::IpAddr;

/// Headers between IPv6's and the payload. Nobody sends more.
const MAX_EXTENSIONS: usize = 8;

/// An IP packet whose header is sound.
#[derive(Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) hops: u8,
    pub(crate) payload: Cow<'a, [u8]>,
    /// Header and payload as they came, for ICMP errors; of a packet from fragments, the last one.
    pub(crate) whole: &'a [u8],
    /// The transport checksum is not there yet (and nothing can have damaged the packet).
    pub(crate) partial: bool,
}

/// EtherType and payload.
pub(crate) fn ethernet(frame: &Frame) -> Option<(u16, &[u8])> {
    let kind = frame.bytes.get(12..ETHERNET_HEADER)?;
    Some((u16::from_be_bytes([*kind.first()?, *kind.get(1)?]), frame.bytes.get(ETHERNET_HEADER..)?))
}

/// The sender's MAC address.
pub(crate) fn sender(frame: &Frame) -> Option<[u8; 6]> {
    frame.bytes.get(6..12)?.try_into().ok()
}

/// The IPv4 packet in `bytes`; none if it is damaged or not complete yet.
pub(crate) fn ipv4<'a>(
    bytes: &'a [u8],
    partial: bool,
    now: Instant,
    reassembly: &mut Reassembly,
) -> Option<Packet<'a>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
        return None;
    }
    let (source, destination) = (IpAddr::V4(packet.src_addr()), IpAddr::V4(packet.dst_addr()));
    let protocol = packet.next_header();
    let mut payload = Cow::Borrowed(packet.payload());
    if packet.more_frags() || packet.frag_offset() != 0 {
        if !may_send(source) {
            return None;
        }
        let key = Key { source, destination, protocol, ident: u32::from(packet.ident()) };
        let offset = usize::from(packet.frag_offset());
        payload = Cow::Owned(reassembly.add(now, key, offset, packet.more_frags(), &payload)?);
    }
    let whole = bytes.get(..usize::from(packet.total_len()))?;
    Some(Packet { source, destination, protocol, hops: packet.hop_limit(), payload, whole, partial })
}

/// The IPv6 packet in `bytes`; none if it is damaged or not complete yet, or has a routing header.
pub(crate) fn ipv6<'a>(
    bytes: &'a [u8],
    partial: bool,
    now: Instant,
    reassembly: &mut Reassembly,
) -> Option<Packet<'a>> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    if packet.version() != 6 {
        return None;
    }
    let (source, destination) = (IpAddr::V6(packet.src_addr()), IpAddr::V6(packet.dst_addr()));
    let mut protocol = packet.next_header();
    let mut payload = Cow::Borrowed(packet.payload());
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                let header = Ipv6ExtHeader::new_checked(&payload[..]).ok()?;
                let length = (usize::from(header.header_len()) + 1) * 8;
                protocol = header.next_header();
                payload = tail(payload, length)?;
            }
            IpProtocol::Ipv6Frag => {
                let next = (*payload.first()?).into();
                let header = Ipv6FragmentHeader::new_checked(payload.get(2..8)?).ok()?;
                let (offset, more) = (usize::from(header.frag_offset()) * 8, header.more_frags());
                let key = Key { source, destination, protocol: next, ident: header.ident() };
                payload = tail(payload, 8)?;
                if offset != 0 || more {
                    if !may_send(source) {
                        return None;
                    }
                    payload = Cow::Owned(reassembly.add(now, key, offset, more, &payload)?);
                }
                protocol = next;
            }
            _ => break,
        }
    }
    let whole = bytes.get(..packet.total_len())?;
    Some(Packet { source, destination, protocol, hops: packet.hop_limit(), payload, whole, partial })
}

fn tail(payload: Cow<'_, [u8]>, from: usize) -> Option<Cow<'_, [u8]>> {
    match payload {
        Cow::Borrowed(payload) => payload.get(from..).map(Cow::Borrowed),
        Cow::Owned(payload) => payload.get(from..).map(|rest| Cow::Owned(rest.to_vec())),
    }
}

impl Packet<'_> {
    /// The datagram in it: ports and data; none if it is damaged.
    pub(crate) fn udp(&self) -> Option<(u16, u16, &[u8])> {
        let datagram = UdpPacket::new_checked(&self.payload[..]).ok()?;
        let (source, destination) = (IpAddress::from(self.source), IpAddress::from(self.destination));
        let valid = self.partial || datagram.verify_checksum(&source, &destination);
        let ports = (datagram.src_port(), datagram.dst_port());
        (valid && ports.0 != 0 && ports.1 != 0).then(|| (ports.0, ports.1, datagram.payload()))
    }

    /// The segment in it; none if it is damaged, or has flags that no segment has.
    pub(crate) fn tcp(&self) -> Option<TcpPacket<&[u8]>> {
        let segment = TcpPacket::new_checked(&self.payload[..]).ok()?;
        let (source, destination) = (IpAddress::from(self.source), IpAddress::from(self.destination));
        let valid = self.partial || segment.verify_checksum(&source, &destination);
        let flags = [segment.syn(), segment.fin(), segment.rst()].into_iter().filter(|&flag| flag).count();
        let sound = segment.src_port() != 0 && segment.dst_port() != 0 && flags <= 1;
        (valid && sound).then_some(segment)
    }
}

impl Packet<'_> {
    /// The packet for a TCP stack: an IP header with the segment right behind.
    pub(crate) fn for_stack(&self) -> Cow<'_, [u8]> {
        if let Cow::Borrowed(payload) = &self.payload
            && (self.source.is_ipv4() || self.whole.len() == IPV6_HEADER + payload.len())
        {
            return Cow::Borrowed(self.whole);
        }
        let (source, destination) = (IpAddress::from(self.source), IpAddress::from(self.destination));
        let length = self.payload.len();
        let header = IpRepr::new(source, destination, self.protocol, length, self.hops.max(1));
        let mut bytes = vec![0; header.header_len() + length];
        header.emit(&mut bytes[..], &ChecksumCapabilities::default());
        bytes[header.header_len()..].copy_from_slice(&self.payload);
        Cow::Owned(bytes)
    }
}
