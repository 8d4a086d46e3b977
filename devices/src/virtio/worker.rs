//! A thread that serves the queues of one device.

use std::fmt::{self, Debug};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::doorbell::{read_event, write_event};
use super::{Activation, Memory, QueueError, Service, Turn, VirtQueue, VirtioInterrupt};
use crate::util::lock;

/// Serves a queue for one bounded turn.
pub type Serve = Box<dyn FnMut(&VirtQueue, &Memory, &VirtioInterrupt) -> Result<Turn, QueueError> + Send>;

/// The thread. It sleeps while no doorbell rings; it is there from the first activation on, until this is dropped.
#[derive(Debug)]
pub struct Worker {
    name: String,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    /// Something of `state` has changed.
    changed: OwnedFd,
    /// Held for the length of a turn.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    active: Option<Active>,
    paused: bool,
    stop: bool,
}

struct Active {
    activation: Activation,
    /// Something of the host's that has to do with the first queue while it is readable.
    source: Option<Arc<OwnedFd>>,
    serve: Serve,
}

impl Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active").field("activation", &self.activation).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker called `name`, paused.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub fn new(name: impl Into<String>) -> io::Result<Self> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = Mutex::new(State { paused: true, ..State::default() });
        Ok(Self { name: name.into(), shared: Arc::new(Shared { changed, state }), thread: Mutex::default() })
    }

    /// Serves the queues of `activation` with `serve` from now on. Where the host has no thread the device needs a reset.
    pub fn activate(&self, activation: Activation, serve: Serve) {
        self.activate_with(activation, None, serve);
    }

    /// The same; the first queue is served, too, whenever `source` is readable, which it must not be any more when it has been
    /// served.
    pub fn activate_with(&self, activation: Activation, source: Option<Arc<OwnedFd>>, serve: Serve) {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = self.shared.clone();
            match thread::Builder::new().name(self.name.clone()).spawn(move || shared.run()) {
                Ok(started) => *thread = Some(started),
                Err(_) => return activation.interrupt.needs_reset(),
            }
        }
        self.shared.change(|state| state.active = Some(Active { activation, source, serve }));
    }
}

/// A turn that is under way is waited for.
impl Service for Worker {
    fn reset(&self) {
        self.shared.change(|state| state.active = None);
    }

    fn pause(&self) {
        self.shared.change(|state| state.paused = true);
    }

    fn resume(&self) {
        self.shared.change(|state| state.paused = false);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.change(|state| state.stop = true);
        if let Some(thread) = lock(&self.thread).take() {
            // It has nothing to panic about; if it did, there is no more to do.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        write_event(&self.changed);
    }

    fn run(&self) {
        loop {
            // Doorbells are looked at only while there is somebody to serve them: one that rings on must not keep this awake.
            let (queues, source) = {
                let state = lock(&self.state);
                if state.stop {
                    return;
                }
                let active = state.active.as_ref().filter(|_| !state.paused);
                // Who is no bus master serves nothing; the transport rings when it is one.
                let source = active.filter(|active| active.activation.memory.get().is_some());
                (
                    active.map_or(Vec::new(), |active| active.activation.queues.clone()),
                    source.and_then(|active| active.source.clone()),
                )
            };
            let mut fds = vec![PollFd::new(&self.changed, PollFlags::IN)];
            fds.extend(queues.iter().map(|queue| PollFd::new(queue.doorbell(), PollFlags::IN)));
            fds.extend(source.iter().map(|source| PollFd::new(source, PollFlags::IN)));
            // An interrupted wait is looked at again.
            let _ = poll(&mut fds, None);
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.first() == Some(&true) {
                read_event(&self.changed);
            }
            let served = queues.iter().chain(source.iter().filter_map(|_| queues.first()));
            for (queue, _) in served.zip(ready.iter().skip(1)).filter(|(_, ready)| **ready) {
                self.turn(queue);
            }
        }
    }

    fn turn(&self, queue: &Arc<VirtQueue>) {
        let mut state = lock(&self.state);
        if state.paused || state.stop {
            return;
        }
        let Some(Active { activation, serve, source: _ }) = &mut state.active else { return };
        queue.doorbell().take();
        // Not a bus master: the transport rings again when it is.
        let Some(memory) = activation.memory.get() else { return };
        match serve(queue, memory, &activation.interrupt) {
            Ok(Turn::Idle) => {}
            Ok(Turn::More) => queue.doorbell().ring(),
            Err(_) => {
                activation.interrupt.needs_reset();
                state.active = None;
            }
        }
    }
}
