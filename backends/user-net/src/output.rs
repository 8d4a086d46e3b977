//! Frames for the guest: headers, checksums, fragments, and the bound of what waits.

use crate::addresses::{BROADCAST_MAC, GATEWAY_MAC};
use crate::frames::{ETHERNET_HEADER, Frame, Offloads, Shared};
use smoltcp::wire::{IpAddress, IpProtocol, checksum};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Frames that wait in the thread before nothing more is sent, and before nothing more is answered.
const SEND_LIMIT: usize = 256;
const ANSWER_LIMIT: usize = 512;
const MAX_NEIGHBOURS: usize = 64;
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
const HOP_LIMIT: u8 = 64;

/// Everything that goes to the guest goes through here.
#[derive(Debug)]
pub(crate) struct Output {
    frames: VecDeque<Frame>,
    /// The queue towards the device was full when it was last tried.
    blocked: bool,
    neighbours: HashMap<IpAddr, [u8; 6]>,
    /// Where packets go whose neighbour is not known.
    guest_mac: [u8; 6],
    pub(crate) mtu: usize,
    pub(crate) offloads: Offloads,
    ident: u16,
}

impl Output {
    pub(crate) fn new(guest_mac: [u8; 6], mtu: u16) -> Self {
        Self {
            frames: VecDeque::new(),
            blocked: false,
            neighbours: HashMap::new(),
            guest_mac,
            mtu: usize::from(mtu),
            offloads: Offloads::default(),
            ident: 1,
        }
    }

    /// Whether more may be sent that can wait where it is.
    pub(crate) fn has_room(&self) -> bool {
        !self.blocked && self.frames.len() < SEND_LIMIT
    }

    /// Moves what there is to the device's queue.
    pub(crate) fn flush(&mut self, shared: &Shared) {
        if !self.frames.is_empty() || self.blocked {
            self.blocked = !shared.put(&mut self.frames);
        }
    }

    /// Takes what there is.
    pub(crate) fn take(&mut self) -> VecDeque<Frame> {
        std::mem::take(&mut self.frames)
    }

    /// Forgets the guest's driver: its frames and addresses.
    pub(crate) fn reset(&mut self, offloads: Offloads) {
        self.frames.clear();
        self.neighbours.clear();
        self.offloads = offloads;
    }

    pub(crate) fn learn(&mut self, address: IpAddr, mac: [u8; 6]) {
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return;
        }
        self.guest_mac = mac;
        if self.neighbours.get(&address) != Some(&mac) {
            if self.neighbours.len() >= MAX_NEIGHBOURS {
                self.neighbours.clear();
            }
            self.neighbours.insert(address, mac);
        }
    }

    /// The MAC address of a neighbour, or that of a group.
    pub(crate) fn mac(&self, address: IpAddr) -> [u8; 6] {
        match address {
            IpAddr::V4(a) if a.is_broadcast() || a.octets()[3] == 255 => BROADCAST_MAC,
            IpAddr::V6(a) if a.is_multicast() => {
                let [.., a, b, c, d] = a.octets();
                [0x33, 0x33, a, b, c, d]
            }
            _ => self.neighbours.get(&address).copied().unwrap_or(self.guest_mac),
        }
    }

    /// A finished frame. What comes over the limit is lost, as in a network card without buffers.
    pub(crate) fn frame(&mut self, frame: Frame) {
        if self.frames.len() < ANSWER_LIMIT {
            self.frames.push_back(frame);
        }
    }

    /// `payload` of EtherType `kind` to a MAC address.
    pub(crate) fn ethernet(&mut self, to: [u8; 6], kind: u16, payload: &[u8]) {
        let mut bytes = ethernet_header(to, kind, payload.len());
        bytes.extend_from_slice(payload);
        self.frame(Frame { bytes, ..Frame::default() });
    }

    /// A packet from `source` to `destination` (of one family), in fragments if it is longer than the MTU.
    /// `payload` has its checksum.
    pub(crate) fn packet(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        let mac = self.mac(destination);
        self.packet_to(mac, source, destination, protocol, payload, HOP_LIMIT);
    }

    /// As [`Self::packet`], to a given neighbour and with a given hop limit.
    pub(crate) fn packet_to(
        &mut self,
        mac: [u8; 6],
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProtocol,
        payload: &[u8],
        hops: u8,
    ) {
        let header = if source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        if payload.len() > usize::from(u16::MAX) - header {
            return;
        }
        let whole = header + payload.len() <= self.mtu;
        // The IPv6 fragment header's eight bytes; offsets count in eights.
        let room = if source.is_ipv4() { self.mtu - header } else { self.mtu - header - 8 } & !7;
        let ident = self.ident;
        self.ident = self.ident.wrapping_add(1);
        let mut offset = 0;
        loop {
            let piece = if whole { payload } else { &payload[offset..payload.len().min(offset + room)] };
            let more = offset + piece.len() < payload.len();
            let fragment = (!whole).then_some((offset, more));
            let bytes = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let mut bytes = ethernet_header(mac, 0x0800, IPV4_HEADER + piece.len());
                    let (offset, more) = fragment.unwrap_or_default();
                    let flags = if more { 0x2000 } else { 0 } | (offset / 8) as u16;
                    let length = (IPV4_HEADER + piece.len()) as u16;
                    bytes.extend_from_slice(&[0x45, 0]);
                    bytes.extend_from_slice(&length.to_be_bytes());
                    bytes.extend_from_slice(&ident.to_be_bytes());
                    bytes.extend_from_slice(&flags.to_be_bytes());
                    bytes.extend_from_slice(&[hops, protocol.into(), 0, 0]);
                    bytes.extend_from_slice(&source.octets());
                    bytes.extend_from_slice(&destination.octets());
                    let sum = !checksum::data(&bytes[ETHERNET_HEADER..]);
                    bytes[ETHERNET_HEADER + 10..ETHERNET_HEADER + 12].copy_from_slice(&sum.to_be_bytes());
                    bytes
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let extra = if whole { 0 } else { 8 };
                    let mut bytes = ethernet_header(mac, 0x86dd, IPV6_HEADER + extra + piece.len());
                    let next = if whole { protocol } else { IpProtocol::Ipv6Frag };
                    bytes.extend_from_slice(&[0x60, 0, 0, 0]);
                    bytes.extend_from_slice(&((extra + piece.len()) as u16).to_be_bytes());
                    bytes.extend_from_slice(&[next.into(), hops]);
                    bytes.extend_from_slice(&source.octets());
                    bytes.extend_from_slice(&destination.octets());
                    if let Some((offset, more)) = fragment {
                        bytes.extend_from_slice(&[protocol.into(), 0]);
                        bytes.extend_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
                        bytes.extend_from_slice(&u32::from(ident).to_be_bytes());
                    }
                    bytes
                }
                _ => return,
            };
            let mut bytes = bytes;
            bytes.extend_from_slice(piece);
            self.frame(Frame { bytes, ..Frame::default() });
            if !more {
                break;
            }
            offset += piece.len();
        }
    }

    /// A datagram with its full checksum.
    pub(crate) fn udp(&mut self, source: (IpAddr, u16), destination: (IpAddr, u16), data: &[u8]) {
        if let Some(datagram) = datagram(source, destination, data) {
            self.packet(source.0, destination.0, IpProtocol::Udp, &datagram);
        }
    }
}

/// A UDP datagram; none if `data` is longer than one can be.
pub(crate) fn datagram(source: (IpAddr, u16), destination: (IpAddr, u16), data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(data.len() + 8).ok()?;
    let mut bytes = Vec::with_capacity(usize::from(length));
    bytes.extend_from_slice(&source.1.to_be_bytes());
    bytes.extend_from_slice(&destination.1.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(data);
    // Zero would say that there is no checksum (RFC 768).
    let sum = match transport_checksum(source.0, destination.0, IpProtocol::Udp, &bytes) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    Some(bytes)
}

/// The checksum over pseudo-header and payload.
pub(crate) fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    next: IpProtocol,
    payload: &[u8],
) -> u16 {
    let (source, destination) = (IpAddress::from(source), IpAddress::from(destination));
    let pseudo = checksum::pseudo_header(&source, &destination, next, payload.len() as u32);
    !checksum::combine(&[pseudo, checksum::data(payload)])
}

pub(crate) fn ethernet_header(to: [u8; 6], kind: u16, payload: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET_HEADER + payload);
    bytes.extend_from_slice(&to);
    bytes.extend_from_slice(&GATEWAY_MAC);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes
}
