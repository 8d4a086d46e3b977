//! The header in front of each frame (virtio 1.2, 5.1.6), as drivers and the kernel's taps write it, and what it means.

use super::{FrameHeader, Offloads, PartialChecksum, SegmentKind, Segmentation};
use virtio_bindings::virtio_net::*;

/// Bytes of a header.
pub const HEADER: usize = 12;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const UDP: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// What a header says of a frame of `len` bytes, which may leave undone what is `offered`. `None`: what cannot be, or was not agreed
/// on.
pub fn parse_header(bytes: &[u8; HEADER], len: usize, offered: Offloads) -> Option<FrameHeader> {
    let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, _, _] = *bytes;
    let word = |low, high| u16::from_le_bytes([low, high]);
    let mut header = FrameHeader::default();
    if flags & NEEDS_CSUM != 0 {
        let (start, offset) = (word(c0, c1), word(o0, o1));
        // The checksum's two bytes lie in the frame.
        if !offered.contains(Offloads::CHECKSUM) || usize::from(start) + usize::from(offset) + 2 > len {
            return None;
        }
        header.checksum = Some(PartialChecksum { start, offset });
    }
    if gso != GSO_NONE {
        let (kind, needs) = match gso & !ECN {
            TCP4 => (SegmentKind::Tcp4, Offloads::TSO4),
            TCP6 => (SegmentKind::Tcp6, Offloads::TSO6),
            UDP => (SegmentKind::Udp, Offloads::USO),
            _ => return None,
        };
        let ecn = gso & ECN != 0;
        let (header_len, size) = (word(h0, h1), word(s0, s1));
        let may = offered.contains(needs) && (!ecn || offered.contains(Offloads::ECN));
        if !may || header.checksum.is_none() || size == 0 || usize::from(header_len) > len {
            return None;
        }
        header.segmentation = Some(Segmentation { kind, size, header: header_len, ecn });
    }
    Some(header)
}

/// The bytes for a frame that lies in `buffers` buffers. `None`: it leaves undone what is not `accepted`.
pub fn emit_header(header: &FrameHeader, buffers: u16, accepted: Offloads) -> Option<[u8; HEADER]> {
    let (mut flags, mut gso) = (0, GSO_NONE);
    let (mut header_len, mut size, mut start, mut offset) = (0u16, 0u16, 0u16, 0u16);
    if let Some(sum) = header.checksum {
        if !accepted.contains(Offloads::CHECKSUM) {
            return None;
        }
        flags = NEEDS_CSUM;
        (start, offset) = (sum.start, sum.offset);
    } else if header.verified && accepted.contains(Offloads::CHECKSUM) {
        flags = DATA_VALID;
    }
    if let Some(cut) = header.segmentation {
        let (kind, needs) = match cut.kind {
            SegmentKind::Tcp4 => (TCP4, Offloads::TSO4),
            SegmentKind::Tcp6 => (TCP6, Offloads::TSO6),
            SegmentKind::Udp => (UDP, Offloads::USO),
        };
        if !accepted.contains(needs) || cut.ecn && !accepted.contains(Offloads::ECN) {
            return None;
        }
        gso = kind | if cut.ecn { ECN } else { 0 };
        (header_len, size) = (cut.header, cut.size);
    }
    let [h0, h1] = header_len.to_le_bytes();
    let [s0, s1] = size.to_le_bytes();
    let [c0, c1] = start.to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    let [b0, b1] = buffers.to_le_bytes();
    Some([flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, b0, b1])
}
