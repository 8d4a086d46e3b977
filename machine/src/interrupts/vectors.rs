//! Interrupt inputs for messages, as vectors of MSI-X are: each has a number, a message, and an event if somebody wants one.

use std::io;
use std::sync::{Arc, PoisonError};

use accel_api::{AccelError, Gsi, IOAPIC_PINS, InterruptPort, IrqRoute, MAX_GSIS, MsiMessage};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::watcher::Watcher;
use super::{InterruptCell, State};

/// Who waits for an input's event.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Waits {
    /// Nobody: it is masked, there is no port, or there is no event. What is written stays in the event.
    #[default]
    Nobody,
    /// The accelerator itself.
    Accelerator,
    /// A thread of ours.
    Watcher,
}

/// An interrupt input.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// None while it is masked.
    message: Option<MsiMessage>,
    event: Option<Arc<EventFd>>,
    waits: Waits,
}

/// All numbers are given away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all {MAX_GSIS} interrupt inputs of the machine are in use; give its devices fewer queues")]
pub struct NoVector;

impl InterruptCell {
    /// An input for messages, masked at first. Dropped, its number is free again.
    ///
    /// # Errors
    /// There are no more.
    pub fn vector(self: &Arc<Self>) -> Result<MsiVector, NoVector> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let free = (IOAPIC_PINS..MAX_GSIS).find(|gsi| !state.inputs.contains_key(gsi)).ok_or(NoVector)?;
        state.inputs.insert(free, Input::default());
        Ok(MsiVector { cell: self.clone(), gsi: free })
    }

    /// Has events of all inputs arrive at the port there is.
    pub(super) fn connect_all(&self, state: &mut State) -> Result<(), AccelError> {
        let all: Vec<_> = state.inputs.keys().copied().collect();
        all.into_iter().try_for_each(|gsi| state.connect(gsi))
    }

    /// Delivers what input `gsi` leads to. False: it is masked, or has gone.
    pub(super) fn signal(&self, gsi: Gsi) -> bool {
        let message = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.inputs.get(&gsi).and_then(|input| input.message)
        };
        message.inspect(|message| self.signal_msi(*message)).is_some()
    }

    /// Changes input `gsi`.
    fn change(&self, gsi: Gsi, by: impl FnOnce(&mut Input)) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(input) = state.inputs.get_mut(&gsi) {
            by(input);
        }
        let connected = state.connect(gsi);
        drop(state);
        self.check(connected);
    }
}

impl State {
    /// Has the event of input `gsi` arrive at the port, if there are both and it is not masked.
    fn connect(&mut self, gsi: Gsi) -> Result<(), AccelError> {
        let Self { port, inputs, watcher, .. } = self;
        let (Some(port), Some(input)) = (port, inputs.get_mut(&gsi)) else { return Ok(()) };
        let (Some(event), Some(message)) = (&input.event, input.message) else {
            return input.let_go(gsi, port.as_ref(), watcher.as_ref());
        };
        port.set_route(gsi, Some(IrqRoute { message, masked: false, level: false }))?;
        if input.waits == Waits::Nobody {
            input.waits = if port.attach_irqfd(gsi, event)? {
                Waits::Accelerator
            } else {
                // Without one the event could not have been made.
                watcher.iter().for_each(|watcher| watcher.add(gsi, event));
                Waits::Watcher
            };
        }
        Ok(())
    }

    /// Takes the port away.
    pub(super) fn disconnect(&mut self) -> Option<Arc<dyn InterruptPort>> {
        let port = self.port.take()?;
        for (gsi, input) in &mut self.inputs {
            // The port goes, and with it what it waits for.
            let _ = input.let_go(*gsi, port.as_ref(), self.watcher.as_ref());
        }
        Some(port)
    }
}

impl Input {
    /// Nobody waits for the event any more.
    fn let_go(
        &mut self,
        gsi: Gsi,
        port: &dyn InterruptPort,
        watcher: Option<&Watcher>,
    ) -> Result<(), AccelError> {
        match (std::mem::take(&mut self.waits), &self.event) {
            (Waits::Accelerator, Some(event)) => {
                port.detach_irqfd(gsi, event)?;
                port.set_route(gsi, None)
            }
            (Waits::Watcher, Some(event)) => {
                watcher.iter().for_each(|watcher| watcher.remove(event));
                port.set_route(gsi, None)
            }
            _ => Ok(()),
        }
    }
}

/// An interrupt input for messages.
#[derive(Debug)]
pub struct MsiVector {
    cell: Arc<InterruptCell>,
    gsi: Gsi,
}

impl MsiVector {
    /// Its number.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// What it sends from now on; `None` masks it.
    pub fn set_message(&self, message: Option<MsiMessage>) {
        self.cell.change(self.gsi, |input| input.message = message);
    }

    /// Sends its message. False: it is masked, and the caller has something pending.
    pub fn signal(&self) -> bool {
        self.cell.signal(self.gsi)
    }

    /// An event whose writes send the message, for who is not of this process, or must not wait. What is written while the
    /// vector is masked stays in it, and is sent later.
    ///
    /// # Errors
    /// The host has no more descriptors, or no thread.
    pub fn event(&self) -> io::Result<Arc<EventFd>> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        {
            let mut state = self.cell.state.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(event) = state.inputs.get(&self.gsi).and_then(|input| input.event.clone()) {
                return Ok(event);
            }
            if state.watcher.is_none() {
                state.watcher = Some(Watcher::start(&self.cell)?);
            }
        }
        self.cell.change(self.gsi, |input| _ = input.event.get_or_insert(event.clone()));
        Ok(event)
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        self.set_message(None);
        self.cell.state.write().unwrap_or_else(PoisonError::into_inner).inputs.remove(&self.gsi);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use accel_api::VcpuId;

    use super::*;

    /// A port that takes events itself, or not.
    #[derive(Debug, Default)]
    struct Port {
        takes: bool,
        sent: Mutex<Vec<u32>>,
        routes: Mutex<Vec<(Gsi, Option<u32>)>>,
        attached: Mutex<Vec<Gsi>>,
    }

    impl Port {
        fn new(takes: bool) -> Arc<Self> {
            Arc::new(Self { takes, ..Self::default() })
        }
        fn sent_within_patience(&self, wanted: &[u32]) {
            let start = Instant::now();
            while *self.sent.lock().unwrap() != wanted && start.elapsed() < Duration::from_secs(60) {
                std::thread::yield_now();
            }
            assert_eq!(*self.sent.lock().unwrap(), wanted);
        }
    }

    impl InterruptPort for Port {
        fn signal_msi(&self, m: MsiMessage) -> Result<(), AccelError> {
            self.sent.lock().unwrap().push(m.data);
            Ok(())
        }
        fn set_route(&self, gsi: Gsi, route: Option<IrqRoute>) -> Result<(), AccelError> {
            self.routes.lock().unwrap().push((gsi, route.map(|r| r.message.data)));
            Ok(())
        }
        fn set_extint(&self, _: bool) {}
        fn inject_nmi(&self, _: VcpuId) {}
        fn attach_irqfd(&self, gsi: Gsi, _: &EventFd) -> Result<bool, AccelError> {
            if self.takes {
                self.attached.lock().unwrap().push(gsi);
            }
            Ok(self.takes)
        }
        fn detach_irqfd(&self, gsi: Gsi, _: &EventFd) -> Result<(), AccelError> {
            self.attached.lock().unwrap().retain(|other| *other != gsi);
            Ok(())
        }
    }

    fn message(data: u32) -> Option<MsiMessage> {
        Some(MsiMessage { address: 0xfee0_0000, data })
    }

    #[test]
    fn numbers_begin_behind_the_pins_and_are_given_again() {
        let cell = InterruptCell::new(Arc::default());
        let [a, b] = [(); 2].map(|()| cell.vector().unwrap());
        assert_eq!((a.gsi(), b.gsi()), (24, 25));
        drop(a);
        let rest: Vec<_> = std::iter::from_fn(|| cell.vector().ok()).collect();
        assert_eq!((rest[0].gsi(), rest.len() as u32), (24, MAX_GSIS - IOAPIC_PINS - 1));
        assert_eq!(cell.vector().unwrap_err(), NoVector);
    }

    #[test]
    fn a_masked_vector_sends_nothing_and_says_so() {
        let cell = InterruptCell::new(Arc::default());
        let vector = cell.vector().unwrap();
        let port = Port::new(false);
        cell.attach(port.clone()).unwrap();
        assert!(!vector.signal());
        vector.set_message(message(0x41));
        assert!(vector.signal());
        vector.set_message(None);
        assert!(!vector.signal());
        assert_eq!(*port.sent.lock().unwrap(), [0x41]);
        assert!(port.routes.lock().unwrap().is_empty(), "without an event it is nobody's business");
    }

    #[test]
    fn events_reach_a_port_that_does_not_take_them() {
        let cell = InterruptCell::new(Arc::default());
        let vector = cell.vector().unwrap();
        let event = vector.event().unwrap();
        assert!(Arc::ptr_eq(&event, &vector.event().unwrap()));
        event.write(1).unwrap();
        let port = Port::new(false);
        cell.attach(port.clone()).unwrap();
        assert!(port.sent.lock().unwrap().is_empty(), "masked");
        vector.set_message(message(0x41));
        port.sent_within_patience(&[0x41]);
        event.write(1).unwrap();
        port.sent_within_patience(&[0x41, 0x41]);
        vector.set_message(None);
        event.write(1).unwrap();
        // Another accelerator takes over.
        cell.detach().unwrap();
        let next = Port::new(false);
        cell.attach(next.clone()).unwrap();
        vector.set_message(message(0x42));
        next.sent_within_patience(&[0x42]);
        assert_eq!(port.sent.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_port_that_takes_events_has_those_that_are_not_masked() {
        let cell = InterruptCell::new(Arc::default());
        let [a, b] = [(); 2].map(|()| cell.vector().unwrap());
        let _events = [&a, &b].map(|vector| vector.event().unwrap());
        a.set_message(message(0x41));
        let port = Port::new(true);
        cell.attach(port.clone()).unwrap();
        assert_eq!(*port.attached.lock().unwrap(), [24]);
        b.set_message(message(0x42));
        a.set_message(message(0x43));
        assert_eq!(*port.attached.lock().unwrap(), [24, 25]);
        a.set_message(None);
        assert_eq!(*port.attached.lock().unwrap(), [25]);
        let routes = [(24, Some(0x41)), (25, Some(0x42)), (24, Some(0x43)), (24, None)];
        assert_eq!(*port.routes.lock().unwrap(), routes);
        drop(b);
        assert!(port.attached.lock().unwrap().is_empty());
        let next = Port::new(true);
        a.set_message(message(0x44));
        cell.attach(next.clone()).unwrap();
        assert_eq!((port.attached.lock().unwrap().len(), next.attached.lock().unwrap().len()), (0, 1));
    }
}
