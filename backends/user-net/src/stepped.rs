//! The network without its thread, for fuzzing and for tests that choose the time.

use crate::frames::{Frame, Offloads, Shared};
use crate::{Config, Counts, StartError, engine::Engine};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A network that does something only when it is called. Its time is the caller's; the host's sockets keep theirs.
#[derive(Debug)]
pub struct Stepped {
    engine: Engine,
    shared: Arc<Shared>,
    forwards: Vec<SocketAddr>,
}

impl Stepped {
    /// As [`crate::UserNet::start`].
    ///
    /// # Errors
    /// When a port cannot be had, or the host has no descriptors left.
    pub fn new(config: &Config) -> Result<Self, StartError> {
        let shared = Shared::new().map_err(|source| StartError::Host { thing: "descriptors", source })?;
        let (engine, forwards) = crate::engine(config)?;
        Ok(Self { engine, shared, forwards })
    }

    /// Where each forward listens.
    #[must_use]
    pub fn forwards(&self) -> &[SocketAddr] {
        &self.forwards
    }

    /// A frame of the guest's.
    pub fn input(&mut self, frame: &Frame) {
        self.engine.input(frame);
    }

    /// Lets time pass, looks at the host's sockets, and gives everybody a turn.
    pub fn step(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.engine.context.now += smoltcp::time::Duration::from_micros(micros);
        self.engine.look(&self.shared);
        self.engine.work();
    }

    /// After how long something is due without an event; none if nothing is.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        if self.engine.tcp.has_turns() {
            return Some(Duration::ZERO);
        }
        self.engine.due().map(|time| Duration::from_micros(time.total_micros()))
    }

    /// The frames for the guest.
    pub fn output(&mut self) -> Vec<Frame> {
        self.engine.context.out.take().into()
    }

    /// As [`crate::UserNet::guest_reset`].
    pub fn guest_reset(&mut self, offloads: Offloads) {
        self.engine.reset(offloads);
    }

    /// What is open.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.engine.counts()
    }
}
