//! The network in process: `user_net` behind the seam.

use std::collections::VecDeque;
use std::net::SocketAddr;

use async_trait::async_trait;
use user_net::{Config, FrameReceiver, FrameSender, StartError, UserNet};

use super::{
    Frame, FrameHeader, NetBackend, NetError, NetInfo, Offloads, PartialChecksum, SegmentKind, Segmentation,
};

/// Frames that one call moves.
const BATCH: usize = 64;

/// A network for one guest, without privileges.
#[derive(Debug)]
pub struct UserNetwork {
    net: UserNet,
    sender: FrameSender,
    receiver: FrameReceiver,
    mtu: u16,
}

impl UserNetwork {
    /// Takes the forwarded ports and starts.
    ///
    /// # Errors
    /// A port cannot be had, or the host has no descriptors or threads left.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let mtu = config.mtu.max(user_net::MIN_MTU);
        let (net, sender, receiver) = UserNet::start(config)?;
        Ok(Self { net, sender, receiver, mtu })
    }

    /// Where each forward listens, in the order of the options.
    pub fn forwards(&self) -> &[SocketAddr] {
        self.net.forwards()
    }
}

/// The network's thread has said why.
fn gone(error: user_net::Closed) -> NetError {
    NetError { reason: error.to_string() }
}

#[async_trait]
impl NetBackend for UserNetwork {
    fn info(&self) -> NetInfo {
        NetInfo {
            mtu: self.mtu,
            accepts: Offloads::CHECKSUM | Offloads::TSO4 | Offloads::TSO6,
            delivers: Offloads::CHECKSUM | Offloads::TSO4,
            max_batch: BATCH,
        }
    }

    /// Connections of the driver before end: who agrees on offloads starts anew.
    fn set_offloads(&self, accepted: Offloads) {
        self.net.guest_reset(user_net::Offloads {
            checksum: accepted.contains(Offloads::CHECKSUM),
            tcp4: accepted.contains(Offloads::TSO4),
        });
    }

    async fn send(&self, frames: &mut Vec<Frame>) -> Result<(), NetError> {
        if frames.is_empty() {
            return Ok(());
        }
        // Nothing is taken before there is room: who drops this future meanwhile still has all frames.
        self.sender.room().await.map_err(gone)?;
        let mut batch: VecDeque<_> = frames.drain(..).map(to_net).collect();
        let sent = self.sender.try_send(&mut batch).map_err(gone);
        frames.extend(batch.into_iter().map(from_net));
        sent.map(drop)
    }

    async fn receive(&self, into: &mut Vec<Frame>, max: usize) -> Result<(), NetError> {
        let mut batch = VecDeque::new();
        self.receiver.receive(&mut batch, max.min(BATCH)).await.map_err(gone)?;
        // What comes from this process was damaged by nobody.
        let verified =
            |frame: Frame| Frame { header: FrameHeader { verified: true, ..frame.header }, ..frame };
        into.extend(batch.into_iter().map(from_net).map(verified));
        Ok(())
    }
}

/// What the guest leaves undone of segmentation the network leaves, too: a segment of any length is one to it.
fn to_net(frame: Frame) -> user_net::Frame {
    let Frame { header, data } = frame;
    let checksum = header
        .checksum
        .map(|PartialChecksum { start, offset }| user_net::frames::PartialChecksum { start, offset });
    let segment = header.segmentation.filter(|cut| cut.kind == SegmentKind::Tcp4);
    let segment = segment.map(|Segmentation { size, header, .. }| user_net::frames::Segment { size, header });
    user_net::Frame { bytes: data, checksum, segment }
}

fn from_net(frame: user_net::Frame) -> Frame {
    let user_net::Frame { bytes, checksum, segment } = frame;
    let header = FrameHeader {
        checksum: checksum
            .map(|user_net::frames::PartialChecksum { start, offset }| PartialChecksum { start, offset }),
        segmentation: segment.map(|user_net::frames::Segment { size, header }| Segmentation {
            kind: SegmentKind::Tcp4,
            size,
            header,
            ecn: false,
        }),
        verified: false,
    };
    Frame { header, data: bytes }
}
