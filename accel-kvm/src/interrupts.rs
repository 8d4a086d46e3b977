//! Where interrupts enter: messages go to the local APICs in the kernel, everything else is requested of a
//! vCPU.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel_api::{AccelError, Gsi, IOAPIC_PINS, InterruptPort, IrqRoute, MAX_GSIS, MsiMessage, VcpuId};
use kvm_bindings::{KVM_CAP_IRQFD, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::requests::VcpuRequests;
use crate::sys::host;

/// MSI data bits 10:8: delivery mode (Intel SDM vol. 3, 11.11.2); fixed and lowest priority carry a vector.
const fn delivery_mode(data: u32) -> u32 {
    data >> 8 & 7
}

/// Delivery mode of a system management interrupt.
const SMI: u32 = 2;
/// Delivery mode of what asks for an INTA cycle.
const EXTINT: u32 = 7;

/// A message with `data` for the local APIC of vCPU `id` alone.
pub(crate) fn local_message(id: VcpuId, data: u32) -> kvm_msi {
    kvm_msi { address_lo: 0xfee0_0000 | id << 12, data, ..kvm_msi::default() }
}

#[derive(Debug)]
pub(crate) struct KvmPort {
    vm: Arc<VmFd>,
    requests: Arc<[Arc<VcpuRequests>]>,
    routing: Mutex<Routing>,
}

/// What KVM is told of interrupt inputs. It takes the table as a whole, and waits for all vCPUs then, so that only what matters is
/// in it: pins whose EOIs are to be told, and inputs whose events it waits for itself.
#[derive(Debug, Default)]
struct Routing {
    routes: BTreeMap<Gsi, IrqRoute>,
    /// Inputs with an irqfd.
    events: BTreeSet<Gsi>,
    /// What KVM has.
    table: Vec<(Gsi, MsiMessage)>,
}

impl Routing {
    /// What KVM is to have.
    fn wanted(&self) -> Vec<(Gsi, MsiMessage)> {
        // A masked pin stays: its last interrupt may still be in service.
        let matters = |gsi: Gsi, route: &IrqRoute| {
            if gsi < IOAPIC_PINS { route.level } else { !route.masked && self.events.contains(&gsi) }
        };
        let list = self.routes.iter().filter(|(gsi, route)| matters(**gsi, route));
        list.map(|(gsi, route)| (*gsi, route.message)).collect()
    }
}

impl KvmPort {
    pub(crate) fn new(vm: Arc<VmFd>, requests: Arc<[Arc<VcpuRequests>]>) -> Self {
        Self { vm, requests, routing: Mutex::default() }
    }

    /// Changes what is known of the inputs, and tells KVM if it matters.
    fn change(&self, by: impl FnOnce(&mut Routing)) -> Result<MutexGuard<'_, Routing>, AccelError> {
        let mut routing = self.routing.lock().unwrap_or_else(PoisonError::into_inner);
        by(&mut routing);
        let wanted = routing.wanted();
        if wanted != routing.table {
            let entries: Vec<_> = wanted.iter().map(|(gsi, message)| entry(*gsi, *message)).collect();
            let full = |_| AccelError::Host {
                what: "KVM's table of interrupts",
                source: std::io::ErrorKind::OutOfMemory.into(),
            };
            let table = KvmIrqRouting::from_entries(&entries).map_err(full)?;
            self.vm.set_gsi_routing(&table).map_err(host("KVM_SET_GSI_ROUTING"))?;
            routing.table = wanted;
        }
        Ok(routing)
    }
}

impl InterruptPort for KvmPort {
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError> {
        let MsiMessage { address, data } = message;
        // KVM takes vectors below 16, which a local APIC refuses (Intel SDM vol. 3, 11.5.2).
        if delivery_mode(data) <= 1 && data & 0xff < 16 {
            return Ok(());
        }
        // There is no system management mode here, and KVM's would find no memory.
        if delivery_mode(data) == SMI {
            return Ok(());
        }
        if delivery_mode(data) == EXTINT {
            // KVM ignores it. It is the 8259's other way to vCPU 0 (through the IOAPIC), so it goes there.
            self.requests.iter().take(1).for_each(|vcpu| vcpu.send_extint());
            return Ok(());
        }
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        match self.vm.signal_msi(message) {
            Ok(_) => Ok(()),
            // Nobody has that address, or it is none: dropped, as on the bus.
            Err(error) if matches!(error.errno(), libc::EPERM | libc::EINVAL) => Ok(()),
            Err(error) => Err(host("KVM_SIGNAL_MSI")(error)),
        }
    }

    fn set_route(&self, gsi: Gsi, route: Option<IrqRoute>) -> Result<(), AccelError> {
        if gsi >= MAX_GSIS {
            return Ok(());
        }
        self.change(|routing| match route {
            Some(route) => _ = routing.routes.insert(gsi, route),
            None => _ = routing.routes.remove(&gsi),
        })
        .map(drop)
    }

    fn attach_irqfd(&self, gsi: Gsi, event: &EventFd) -> Result<bool, AccelError> {
        if !(IOAPIC_PINS..MAX_GSIS).contains(&gsi) || self.vm.check_extension_raw(KVM_CAP_IRQFD.into()) <= 0 {
            return Ok(false);
        }
        // The route first: KVM delivers what was written before.
        let _routing = self.change(|routing| _ = routing.events.insert(gsi))?;
        self.vm.register_irqfd(event, gsi).map_err(host("KVM_IRQFD"))?;
        Ok(true)
    }

    fn detach_irqfd(&self, gsi: Gsi, event: &EventFd) -> Result<(), AccelError> {
        self.vm.unregister_irqfd(event, gsi).map_err(host("KVM_IRQFD"))?;
        self.change(|routing| _ = routing.events.remove(&gsi)).map(drop)
    }

    fn set_extint(&self, asserted: bool) {
        if let Some(vcpu) = self.requests.first() {
            vcpu.set_intr(asserted);
        }
    }

    fn inject_nmi(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.requests.get(vcpu as usize) {
            vcpu.raise_nmi();
        }
    }
}

/// KVM's form of a route.
fn entry(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..kvm_irq_routing_entry::default() };
    let MsiMessage { address, data } = message;
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_routed() {
        let message = MsiMessage { address: 0xfee0_1000, data: 0xc044 };
        let route = |masked, level| IrqRoute { message, masked, level };
        let mut routing = Routing::default();
        routing.routes.extend([
            (3, route(true, true)),
            (4, route(false, false)),
            (24, route(false, false)),
            (25, route(false, false)),
            (26, route(true, false)),
        ]);
        routing.events.extend([25, 26, 27]);
        assert_eq!(routing.wanted(), [(3, message), (25, message)]);
        let entry = entry(3, message);
        assert_eq!((entry.gsi, entry.type_), (3, KVM_IRQ_ROUTING_MSI));
    }
}
