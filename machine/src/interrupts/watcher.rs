//! Waits for events of interrupt inputs where the accelerator does not.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use accel_api::Gsi;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::InterruptCell;
use crate::host;

/// Stands for the end in the place of an input's number.
const END: u64 = u64::MAX;
/// Events looked at in one turn.
const BATCH: usize = 32;

/// Events by number.
type Events = Mutex<Vec<(Gsi, Arc<EventFd>)>>;

/// A thread that reads events and signals their inputs.
#[derive(Debug)]
pub(super) struct Watcher {
    poll: Arc<Epoll>,
    events: Arc<Events>,
    end: EventFd,
}

impl Watcher {
    /// For the inputs of `cell`.
    ///
    /// # Errors
    /// The host has no more descriptors, or no thread.
    pub(super) fn start(cell: &Arc<InterruptCell>) -> io::Result<Self> {
        let (poll, end) = (Arc::new(Epoll::new()?), EventFd::new(EFD_NONBLOCK)?);
        poll.ctl(ControlOperation::Add, end.as_raw_fd(), EpollEvent::new(EventSet::IN, END))?;
        let events = Arc::<Events>::default();
        let (waits, known, cell) = (poll.clone(), events.clone(), Arc::downgrade(cell));
        thread::Builder::new().name("irq-events".into()).spawn(move || {
            host::block_signals();
            serve(&waits, &known, &cell);
        })?;
        Ok(Self { poll, events, end })
    }

    /// Waits for `event`, too.
    pub(super) fn add(&self, gsi: Gsi, event: &Arc<EventFd>) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push((gsi, event.clone()));
        let wanted = EpollEvent::new(EventSet::IN, gsi.into());
        if let Err(error) = self.poll.ctl(ControlOperation::Add, event.as_raw_fd(), wanted) {
            tracing::warn!("interrupt input {gsi}: its event cannot be waited for: {error}");
        }
    }

    /// Does not wait for `event` any more.
    pub(super) fn remove(&self, event: &Arc<EventFd>) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(_, other)| !Arc::ptr_eq(event, other));
        // It may not have been added.
        let _ = self.poll.ctl(ControlOperation::Delete, event.as_raw_fd(), EpollEvent::default());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The thread may drop the last reference to the cell itself, so that nobody waits for it here.
        let _ = self.end.write(1);
    }
}

fn serve(poll: &Epoll, events: &Events, cell: &Weak<InterruptCell>) {
    let mut found = [EpollEvent::default(); BATCH];
    loop {
        let count = match poll.wait(-1, &mut found) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for event in &found[..count.min(BATCH)] {
            let Some(cell) = cell.upgrade().filter(|_| event.data() != END) else { return };
            let gsi = event.data() as Gsi;
            let event = {
                let events = events.lock().unwrap_or_else(PoisonError::into_inner);
                events.iter().find(|(other, _)| *other == gsi).map(|(_, event)| event.clone())
            };
            // One that was masked meanwhile keeps what it has.
            if let Some(event) = event
                && event.read().is_ok()
                && !cell.signal(gsi)
            {
                let _ = event.write(1);
            }
        }
    }
}
