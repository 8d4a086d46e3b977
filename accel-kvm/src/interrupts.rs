//! Where interrupts enter: messages go to the local APICs in the kernel, everything else to a vCPU's bell.

use std::sync::{Arc, Mutex, PoisonError};

use accel_api::{AccelError, InterruptPort, IoapicRoute, MsiMessage, VcpuId};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;

use crate::bell::Bell;
use crate::sys::host;

/// Pins of the IOAPIC, and so routes that KVM reserves for it.
pub(crate) const IOAPIC_PINS: u8 = 24;

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
    bells: Arc<[Arc<Bell>]>,
    routes: Mutex<[Option<IoapicRoute>; IOAPIC_PINS as usize]>,
}

impl KvmPort {
    pub(crate) fn new(vm: Arc<VmFd>, bells: Arc<[Arc<Bell>]>) -> Self {
        Self { vm, bells, routes: Mutex::default() }
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
            self.bells.iter().take(1).for_each(|bell| bell.send_extint());
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

    /// KVM learns from the routes which vectors are level-triggered, so that it tells their EOIs.
    fn set_route(&self, pin: u8, route: Option<IoapicRoute>) -> Result<(), AccelError> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = routes.get_mut(usize::from(pin)) else { return Ok(()) };
        // Only level-triggered pins matter, and a change of any other needs no call.
        let level = |route: &Option<IoapicRoute>| route.is_some_and(|r| r.level);
        let matters = level(slot) || level(&route);
        *slot = route;
        if !matters {
            return Ok(());
        }
        let entries: Vec<_> =
            (0u32..).zip(&*routes).filter_map(|(gsi, route)| entry(gsi, route.as_ref()?)).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| AccelError::BadVcpu(0))?;
        self.vm.set_gsi_routing(&table).map_err(host("KVM_SET_GSI_ROUTING"))
    }

    fn set_extint(&self, asserted: bool) {
        if let Some(bell) = self.bells.first() {
            bell.set_intr(asserted);
        }
    }

    fn inject_nmi(&self, vcpu: VcpuId) {
        if let Some(bell) = self.bells.get(vcpu as usize) {
            bell.raise_nmi();
        }
    }
}

/// KVM's form of a level-triggered route. A masked pin keeps it: its last interrupt may still be in service.
fn entry(gsi: u32, route: &IoapicRoute) -> Option<kvm_irq_routing_entry> {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..kvm_irq_routing_entry::default() };
    let MsiMessage { address, data } = route.message;
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    route.level.then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_level_triggered_pins_are_routed() {
        let message = MsiMessage { address: 0xfee0_1000, data: 0xc044 };
        let route = |level| IoapicRoute { message, masked: true, level };
        assert!(entry(3, &route(false)).is_none());
        let entry = entry(3, &route(true)).unwrap();
        assert_eq!((entry.gsi, entry.type_), (3, KVM_IRQ_ROUTING_MSI));
    }
}
