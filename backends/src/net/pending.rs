//! Calls of a back end that own what they work on: a device keeps one while it waits, and polls it by its own means.

use std::pin::Pin;
use std::sync::Arc;

use super::{Frame, LinkState, NetBackend, NetError};

/// A batch on its way. It ends with the frames that were not taken, or those that came, and how it went.
pub type PendingFrames = Pin<Box<dyn Future<Output = (Vec<Frame>, Result<(), NetError>)> + Send>>;

/// A change of the link that is waited for.
pub type PendingLink = Pin<Box<dyn Future<Output = LinkState> + Send>>;

impl dyn NetBackend {
    /// [`NetBackend::send`] of `frames`.
    pub fn sending(self: Arc<Self>, mut frames: Vec<Frame>) -> PendingFrames {
        Box::pin(async move {
            let sent = self.send(&mut frames).await;
            (frames, sent)
        })
    }

    /// [`NetBackend::receive`] of at most `max` frames.
    pub fn receiving(self: Arc<Self>, max: usize) -> PendingFrames {
        Box::pin(async move {
            let mut frames = Vec::new();
            let received = self.receive(&mut frames, max).await;
            (frames, received)
        })
    }

    /// [`NetBackend::link_changed`] from what the link is now.
    pub fn link_changing(self: Arc<Self>) -> PendingLink {
        let seen = self.link();
        Box::pin(async move { self.link_changed(seen).await })
    }
}
