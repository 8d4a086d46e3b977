//! Networks: the seam between a network device and the host's side of its cable, and what can be on that side.
//!
//! [`NetBackend`] is the seam. [`UserNetwork`] is a network in process, [`StreamNetwork`] a cable to another guest, [`TapNetwork`] one
//! to the host's kernel. [`RateLimit`] wraps any back end; [`NetOptions`] is what a user says of a card and its network.

mod header;
mod options;
mod pending;
mod rate_limit;
mod stream;
mod tap;
#[cfg(test)]
mod tests;
mod user;

pub use header::{HEADER, emit_header, parse_header};
pub use options::{ConnectError, Connected, MacAddress, NetKind, NetOptions};
pub use pending::{PendingFrames, PendingLink};
pub use rate_limit::RateLimit;
pub use stream::{StreamError, StreamNetwork};
pub use tap::{TapError, TapNetwork};
pub use user::UserNetwork;

use async_trait::async_trait;
use bitflags::bitflags;
use std::fmt;
use thiserror::Error;

bitflags! {
    /// What a side leaves undone because the other can do it (virtio 1.2, 5.1.3: the features of the same names).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// The checksum of TCP or UDP may be partial; `FrameHeader::checksum` says where it goes.
        const CHECKSUM = 1 << 0;
        /// A frame may be a TCP segment over IPv4 larger than the MTU.
        const TSO4 = 1 << 1;
        /// The same over IPv6.
        const TSO6 = 1 << 2;
        /// A frame may be a UDP payload to be cut into datagrams.
        const USO = 1 << 3;
        /// The segments may carry ECN.
        const ECN = 1 << 4;
    }
}

/// What a network back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetInfo {
    /// Largest payload of an Ethernet frame, in bytes, without the header of 14 bytes.
    pub mtu: u16,
    /// What [`NetBackend::send`] accepts.
    pub accepts: Offloads,
    /// What [`NetBackend::receive`] may deliver, once [`NetBackend::set_offloads`] allowed it.
    pub delivers: Offloads,
    /// Most frames that one call takes or returns.
    pub max_batch: usize,
}

/// A partial checksum: the sum of bytes from `start` to the end of the frame is to be stored at `start + offset`, where
/// the pseudo header's sum already is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte, from the start of the Ethernet header.
    pub start: u16,
    /// Place of the checksum, from `start`.
    pub offset: u16,
}

/// Which protocol a large frame is cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// A frame larger than the MTU, and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// The protocol.
    pub kind: SegmentKind,
    /// Bytes of payload in each piece.
    pub size: u16,
    /// Bytes of headers that each piece repeats.
    pub header: u16,
    /// The segment carries ECN's congestion mark.
    pub ecn: bool,
}

/// What virtio's header says of a frame, in fields of ours (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// The checksum that is still to be done.
    pub checksum: Option<PartialChecksum>,
    /// How the frame is cut.
    pub segmentation: Option<Segmentation>,
    /// The checksum was already verified (received frames only).
    pub verified: bool,
}

/// An Ethernet frame without its check sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// What is left undone.
    pub header: FrameHeader,
    /// From the destination address to the end of the payload.
    pub data: Vec<u8>,
}

/// Whether the cable is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Frames pass.
    Up,
    /// Frames are dropped, in both directions.
    Down,
}

/// The back end is gone for good: the peer closed, the tap vanished. A frame that cannot be delivered is not an error.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("network back end: {reason}")]
pub struct NetError {
    /// Thing, reason, remedy.
    pub reason: String,
}

/// The host's side of one network cable. Both directions may be called at once, each by one task.
///
/// Nothing here grows without bound. Towards the host, `send` waits until it has place for at least one frame, and the
/// device takes nothing more from its queue meanwhile. Towards the guest, `receive` is only called when the device has
/// buffers; what arrives before is kept up to a bound of the back end's, and dropped after, as on a real cable.
#[async_trait]
pub trait NetBackend: fmt::Debug + Send + Sync {
    /// What it is. Does not change.
    fn info(&self) -> NetInfo;

    /// The state of the link now. Up for good, unless a back end says otherwise here and in
    /// [`link_changed`](Self::link_changed).
    fn link(&self) -> LinkState {
        LinkState::Up
    }

    /// Returns when the link's state is no longer `seen`, with the new one.
    async fn link_changed(&self, seen: LinkState) -> LinkState {
        if seen == LinkState::Up {
            std::future::pending::<()>().await;
        }
        LinkState::Up
    }

    /// The guest accepts these offloads in what it receives; a subset of `info().delivers`.
    fn set_offloads(&self, accepted: Offloads);

    /// Takes frames from the front of `frames` until its buffers are full; waits for place if there is none. Returns
    /// having removed at least one frame unless `frames` was empty. A frame that is malformed, too long or not wanted is
    /// removed and dropped. Dropping the future loses no frame that is still in `frames`.
    ///
    /// # Errors
    /// The back end is gone.
    async fn send(&self, frames: &mut Vec<Frame>) -> Result<(), NetError>;

    /// Waits for a frame, then appends those that are there, at most `max` (above 0), to `into`. Dropping the future
    /// loses none.
    ///
    /// # Errors
    /// The back end is gone.
    async fn receive(&self, into: &mut Vec<Frame>, max: usize) -> Result<(), NetError>;
}
