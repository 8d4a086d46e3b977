//! Between the interrupt controllers and the backend's [`InterruptPort`], which may be exchanged.
//!
//! 1. The IOAPIC sends messages and tells its routes here, the 8259 drives INTR. With a port attached all of it is
//!    passed on at once.
//! 2. Without a port, nothing is lost: messages queue (one of a kind, as an IRR bit would merge them), routes and the
//!    INTR level are remembered. [`InterruptCell::attach`] replays them into the new port.
//! 3. Interrupt inputs have numbers: the IOAPIC's pins, and behind them those that devices have for messages ([`MsiVector`]).
//!    Events of these go to whichever port there is; one that does not take them has a thread that waits for them ([`watcher`]).

mod vectors;
mod watcher;

use std::collections::BTreeMap;

use std::sync::{Arc, PoisonError, RwLock};

use accel_api::{AccelError, Gsi, InterruptPort, IrqRoute, MsiMessage, VcpuId};
use devices::{IoapicHost, IrqLine, MsiSender};
use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, Section, StateUnit, check};

use crate::control::{Control, GuestEnd};

use vectors::Input;
pub use vectors::{MsiVector, NoVector};
use watcher::Watcher;

/// Messages queued at most: more than there are vectors times vCPUs to tell apart in any sane guest.
const MAX_QUEUE: usize = 4096;

#[derive(Debug, Default)]
struct State {
    port: Option<Arc<dyn InterruptPort>>,
    queue: Vec<MsiMessage>,
    nmis: Vec<VcpuId>,
    /// Of the IOAPIC's pins.
    routes: BTreeMap<Gsi, IrqRoute>,
    /// Of messages.
    inputs: BTreeMap<Gsi, Input>,
    /// Waits for events that the port does not take.
    watcher: Option<Watcher>,
    extint: bool,
}

/// Where all interrupts of a machine pass on their way to the backend.
#[derive(Debug)]
pub struct InterruptCell {
    state: RwLock<State>,
    control: Arc<Control>,
}

impl InterruptCell {
    pub(crate) fn new(control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self { state: RwLock::default(), control })
    }

    /// Passes everything to `port` from now on, what was queued and remembered first.
    ///
    /// # Errors
    /// The port refuses; the cell then has none, and keeps queueing.
    pub fn attach(&self, port: Arc<dyn InterruptPort>) -> Result<(), AccelError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.disconnect();
        for (pin, route) in &state.routes {
            port.set_route(*pin, Some(*route))?;
        }
        port.set_extint(state.extint);
        for &message in &state.queue {
            port.signal_msi(message)?;
        }
        for &vcpu in &state.nmis {
            port.inject_nmi(vcpu);
        }
        state.queue.clear();
        state.nmis.clear();
        state.port = Some(port);
        self.connect_all(&mut state).inspect_err(|_| drop(state.disconnect()))
    }

    /// Takes the port away; interrupts queue, and events stay where they are.
    pub fn detach(&self) -> Option<Arc<dyn InterruptPort>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner).disconnect()
    }

    /// Delivers a message-signalled interrupt.
    pub fn signal_msi(&self, message: MsiMessage) {
        let queue = |state: &mut State| {
            if !state.queue.contains(&message) && state.queue.len() < MAX_QUEUE {
                state.queue.push(message);
            }
        };
        self.with(|port| port.signal_msi(message), queue);
    }

    /// Raises NMI on one vCPU.
    pub fn inject_nmi(&self, vcpu: VcpuId) {
        let deliver = |port: &dyn InterruptPort| {
            port.inject_nmi(vcpu);
            Ok(())
        };
        self.with(deliver, |state| {
            if !state.nmis.contains(&vcpu) {
                state.nmis.push(vcpu);
            }
        });
    }

    /// Calls `deliver` with the port, or `queue` where there is none.
    fn with(
        &self,
        deliver: impl Fn(&dyn InterruptPort) -> Result<(), AccelError>,
        queue: impl FnOnce(&mut State),
    ) {
        {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(port) = &state.port {
                return self.check(deliver(port.as_ref()));
            }
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // A port may have come between the locks.
        match &state.port {
            Some(port) => self.check(deliver(port.as_ref())),
            None => queue(&mut state),
        }
    }

    fn check(&self, result: Result<(), AccelError>) {
        if let Err(error) = result {
            let reason = format!("an interrupt could not be delivered: {error}");
            self.control.post(GuestEnd::HostError { reason, dump: None });
        }
    }
}

/// What waits for a port. Routes and the INTR level follow from the controllers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedInterrupts {
    /// Address and data of each message.
    messages: Vec<(u64, u32)>,
    /// vCPUs with an NMI.
    nmis: Vec<VcpuId>,
}

impl Saved for SavedInterrupts {
    const VERSION: u32 = 1;
}

impl StateUnit for InterruptCell {
    fn name(&self) -> &str {
        "interrupts"
    }

    fn save(&self) -> Section {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let messages = state.queue.iter().map(|m| (m.address, m.data)).collect();
        Section::of(&SavedInterrupts { messages, nmis: state.nmis.clone() })
    }

    /// With a port, what waited is delivered now.
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedInterrupts { messages, nmis } = section.open()?;
        for (field, len) in [("messages", messages.len()), ("nmis", nmis.len())] {
            check(len <= MAX_QUEUE, field, len, format_args!("at most {MAX_QUEUE}"))?;
        }
        self.reset();
        messages.into_iter().for_each(|(address, data)| self.signal_msi(MsiMessage { address, data }));
        nmis.into_iter().for_each(|vcpu| self.inject_nmi(vcpu));
        Ok(())
    }

    fn reset(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.queue.clear();
        state.nmis.clear();
    }
}

impl MsiSender for InterruptCell {
    fn send(&self, message: MsiMessage) {
        self.signal_msi(message);
    }
}

impl IoapicHost for InterruptCell {
    fn route_changed(&self, pin: u8, route: IrqRoute) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.routes.insert(pin.into(), route);
        if let Some(port) = &state.port {
            self.check(port.set_route(pin.into(), Some(route)));
        }
    }
}

/// The 8259's INTR output.
#[derive(Debug)]
pub(crate) struct IntrWire(pub(crate) Arc<InterruptCell>);

impl IrqLine for IntrWire {
    fn set(&self, level: bool) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.extint != level {
            state.extint = level;
            if let Some(port) = &state.port {
                port.set_extint(level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use state::testing::UnitRig;

    use super::*;

    struct Queueing(Arc<InterruptCell>);

    impl UnitRig for Queueing {
        fn new() -> Self {
            Self(InterruptCell::new(Arc::default()))
        }
        fn another(&self) -> Self {
            Self::new()
        }
        fn unit(&self) -> &dyn StateUnit {
            &*self.0
        }
        fn disturb(&self, seed: u64) {
            (0..=seed as u32 % 64).for_each(|n| self.0.send(message(0x30 + n)));
            self.0.inject_nmi(seed as u32 & 3);
        }
    }

    state::unit_tests!(Queueing);

    #[derive(Debug, Default)]
    struct Log(Mutex<Vec<String>>, bool);
    impl Log {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
        fn add(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }
    impl InterruptPort for Log {
        fn signal_msi(&self, m: MsiMessage) -> Result<(), AccelError> {
            self.add(format!("msi {:x}", m.data));
            if self.1 { Err(AccelError::BadVcpu(9)) } else { Ok(()) }
        }
        fn set_route(&self, pin: Gsi, route: Option<IrqRoute>) -> Result<(), AccelError> {
            self.add(format!("route {pin} {:x}", route.map_or(0, |r| r.message.data)));
            Ok(())
        }
        fn set_extint(&self, asserted: bool) {
            self.add(format!("intr {asserted}"));
        }
        fn inject_nmi(&self, vcpu: VcpuId) {
            self.add(format!("nmi {vcpu}"));
        }
    }

    fn message(data: u32) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data }
    }

    fn route(data: u32) -> IrqRoute {
        IrqRoute { message: message(data), level: false, masked: false }
    }

    #[test]
    fn what_comes_without_a_port_is_replayed_in_the_right_order() {
        let cell = InterruptCell::new(Arc::default());
        let intr = IntrWire(cell.clone());
        cell.send(message(0x31));
        cell.send(message(0x31));
        cell.send(message(0x30));
        cell.inject_nmi(1);
        cell.route_changed(4, route(0x31));
        intr.set(true);
        let port = Arc::new(Log::default());
        cell.attach(port.clone()).unwrap();
        assert_eq!(port.take(), ["route 4 31", "intr true", "msi 31", "msi 30", "nmi 1"]);
        intr.set(true);
        cell.send(message(0x31));
        intr.set(false);
        assert_eq!(port.take(), ["msi 31", "intr false"]);

        cell.detach().unwrap();
        cell.send(message(0x40));
        let next = Arc::new(Log::default());
        cell.attach(next.clone()).unwrap();
        assert!(port.take().is_empty());
        assert_eq!(next.take(), ["route 4 31", "intr false", "msi 40"]);
    }

    #[test]
    fn a_port_that_fails_ends_the_machine() {
        let control = Arc::new(Control::default());
        let cell = InterruptCell::new(control.clone());
        cell.attach(Arc::new(Log(Mutex::default(), true))).unwrap();
        cell.send(message(0x31));
        assert!(matches!(control.end(), Some(GuestEnd::HostError { .. })));
    }
}
