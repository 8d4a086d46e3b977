//! Fragments of the guest's packets, put together within fixed bounds.

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpProtocol;
use std::net::IpAddr;

/// Packets that may be incomplete at once: more push the oldest out.
const MAX_PACKETS: usize = 8;
const MAX_PIECES: usize = 256;
const MAX_LENGTH: usize = 65535;
const LIFETIME: Duration = Duration::from_secs(10);

/// What the fragments of one packet share (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) ident: u32,
}

#[derive(Debug)]
struct Partial {
    key: Key,
    begun: Instant,
    /// Offset and bytes, in the order of offsets, without overlap.
    pieces: Vec<(usize, Vec<u8>)>,
    /// The payload's length, once the last fragment is there.
    total: Option<usize>,
}

/// Packets that are incomplete.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    packets: Vec<Partial>,
}

impl Reassembly {
    pub(crate) fn clear(&mut self) {
        self.packets.clear();
    }

    /// Adds a fragment, and returns the packet's payload when it is complete. Overlapping fragments, which only attacks
    /// have, take the whole packet away (RFC 5722).
    pub(crate) fn add(
        &mut self,
        now: Instant,
        key: Key,
        offset: usize,
        more: bool,
        data: &[u8],
    ) -> Option<Vec<u8>> {
        self.packets.retain(|packet| now < packet.begun + LIFETIME);
        let end = offset + data.len();
        if end > MAX_LENGTH || data.is_empty() || (more && !data.len().is_multiple_of(8)) {
            return None;
        }
        let index = match self.packets.iter().position(|packet| packet.key == key) {
            Some(index) => index,
            None => {
                if self.packets.len() >= MAX_PACKETS {
                    self.packets.remove(0);
                }
                self.packets.push(Partial { key, begun: now, pieces: Vec::new(), total: None });
                self.packets.len() - 1
            }
        };
        match self.packets.get_mut(index)?.add(offset, more, data) {
            Added::Incomplete => None,
            Added::Complete => Some(self.packets.remove(index).join()),
            Added::Bad => {
                self.packets.remove(index);
                None
            }
        }
    }
}

enum Added {
    Incomplete,
    Complete,
    Bad,
}

impl Partial {
    fn add(&mut self, offset: usize, more: bool, data: &[u8]) -> Added {
        let end = offset + data.len();
        let last = self.pieces.last().map_or(0, |(start, piece)| start + piece.len());
        let total = if more { self.total } else { Some(end) };
        if self.total.is_some() && total != self.total || total.is_some_and(|total| total < end.max(last)) {
            return Added::Bad;
        }
        let at = self.pieces.partition_point(|&(start, _)| start < offset);
        let before = at.checked_sub(1).and_then(|at| self.pieces.get(at));
        match (before, self.pieces.get(at)) {
            // The same again: a packet that was sent twice.
            (_, Some((start, piece))) if (*start, piece.as_slice()) == (offset, data) => {
                return Added::Incomplete;
            }
            (Some((start, piece)), _) if start + piece.len() > offset => return Added::Bad,
            (_, Some(&(start, _))) if start < end => return Added::Bad,
            _ => {}
        }
        if self.pieces.len() >= MAX_PIECES {
            return Added::Bad;
        }
        self.total = total;
        self.pieces.insert(at, (offset, data.to_vec()));
        let bytes: usize = self.pieces.iter().map(|(_, piece)| piece.len()).sum();
        // No overlap, so all bytes are there when their number is right.
        if self.total == Some(bytes) { Added::Complete } else { Added::Incomplete }
    }

    fn join(self) -> Vec<u8> {
        self.pieces.into_iter().flat_map(|(_, piece)| piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_micros_const(1_000_000);

    fn key(ident: u32) -> Key {
        Key {
            source: "10.0.2.15".parse().unwrap(),
            destination: "10.0.2.2".parse().unwrap(),
            protocol: IpProtocol::Udp,
            ident,
        }
    }

    #[test]
    fn any_order_gives_the_packet() {
        let data: Vec<u8> = (0..40).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut reassembly = Reassembly::default();
            let mut done = None;
            for (count, piece) in order.into_iter().enumerate() {
                let range = piece * 16..(piece * 16 + 16).min(40);
                done = reassembly.add(NOW, key(7), range.start, range.end < 40, &data[range]);
                assert_eq!(done.is_some(), count == 2, "{order:?}");
            }
            assert_eq!(done.as_deref(), Some(&data[..]));
            assert!(reassembly.packets.is_empty());
        }
    }

    #[test]
    fn an_overlap_takes_the_packet_away_and_a_repetition_does_not() {
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.add(NOW, key(1), 0, true, &[1; 16]), None);
        assert_eq!(reassembly.add(NOW, key(1), 0, true, &[1; 16]), None);
        assert_eq!(reassembly.packets.len(), 1);
        assert_eq!(reassembly.add(NOW, key(1), 8, true, &[2; 16]), None);
        assert!(reassembly.packets.is_empty());
        // A second end elsewhere.
        assert_eq!(reassembly.add(NOW, key(1), 32, false, &[1; 3]), None);
        assert_eq!(reassembly.add(NOW, key(1), 8, false, &[1; 3]), None);
        assert!(reassembly.packets.is_empty());
        // Bytes behind the end.
        assert_eq!(reassembly.add(NOW, key(1), 32, true, &[1; 8]), None);
        assert_eq!(reassembly.add(NOW, key(1), 8, false, &[1; 8]), None);
        assert!(reassembly.packets.is_empty());
    }

    #[test]
    fn a_flood_stays_within_the_bounds() {
        let mut reassembly = Reassembly::default();
        for ident in 0..1000 {
            assert_eq!(reassembly.add(NOW, key(ident), 8, true, &[0; 1480]), None);
        }
        assert_eq!(reassembly.packets.len(), MAX_PACKETS);
        assert_eq!(reassembly.packets[0].key.ident, 1000 - MAX_PACKETS as u32);
        for piece in 0..2 * MAX_PIECES {
            reassembly.add(NOW, key(5000), piece * 16, true, &[0; 8]);
            assert!(reassembly.packets.iter().all(|packet| packet.pieces.len() <= MAX_PIECES));
        }
        assert_eq!(reassembly.add(NOW, key(1), 65528, true, &[0; 8]), None);
        // What does not complete is gone after a time.
        reassembly.add(NOW + LIFETIME, key(2), 0, true, &[0; 8]);
        assert_eq!(reassembly.packets.len(), 1);
    }
}
