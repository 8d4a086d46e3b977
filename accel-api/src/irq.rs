//! How interrupts enter a VM: messages for the local APICs, the legacy INTR line, NMIs, and events that stand for messages.

use std::fmt::Debug;

use vmm_sys_util::eventfd::EventFd;

use crate::{AccelError, VcpuId};

/// A message-signalled interrupt (Intel SDM vol. 3, 11.11).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MsiMessage {
    /// Address, `0xfeexxxxx`.
    pub address: u64,
    /// Data: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Number of an interrupt input, a *global system interrupt* (ACPI 6.5, 5.2.13): below [`IOAPIC_PINS`] the IOAPIC's pins, from
/// there on inputs of messages.
pub type Gsi = u32;

/// Pins of the IOAPIC.
pub const IOAPIC_PINS: Gsi = 24;
/// Interrupt inputs that a VM can have; as many as KVM routes.
pub const MAX_GSIS: Gsi = 4096;

/// Where an interrupt input leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqRoute {
    /// The message it sends.
    pub message: MsiMessage,
    /// It sends none at present. The route of a pin still stands: a level-triggered interrupt delivered before the mask was set
    /// owes its EOI, so that a local APIC in a kernel must keep watching the vector.
    pub masked: bool,
    /// Level-triggered: the vector's EOI must come back through [`VcpuBus::eoi`](crate::VcpuBus::eoi).
    pub level: bool,
}

/// The interrupt inputs of a VM; implemented by the backend, called from any thread.
pub trait InterruptPort: Debug + Send + Sync {
    /// Delivers a message to the local APICs it addresses. A message to nobody is dropped, as on the bus.
    ///
    /// # Errors
    /// Host failure.
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError>;
    /// Tells where an interrupt input leads. Backends with the local APIC in the kernel learn by it which vectors of the
    /// IOAPIC's pins are level-triggered, so that EOIs come back; and what an [irqfd](Self::attach_irqfd) delivers.
    ///
    /// # Errors
    /// Host failure.
    fn set_route(&self, gsi: Gsi, route: Option<IrqRoute>) -> Result<(), AccelError>;
    /// Level of the legacy controller's INTR output, wired to LINT0 of vCPU 0.
    fn set_extint(&self, asserted: bool);
    /// Raises NMI on one vCPU.
    fn inject_nmi(&self, vcpu: VcpuId);
    /// Has every write to `event`, an eventfd, deliver what `gsi` leads to, without a thread of this process; also a write that
    /// came before. False: the backend does not offer it, and somebody must wait for the event and call
    /// [`signal_msi`](Self::signal_msi).
    ///
    /// # Errors
    /// Host failure.
    fn attach_irqfd(&self, gsi: Gsi, event: &EventFd) -> Result<bool, AccelError> {
        let _ = (gsi, event);
        Ok(false)
    }
    /// Takes back [`attach_irqfd`](Self::attach_irqfd): what is written from now on stays in `event`.
    ///
    /// # Errors
    /// Host failure.
    fn detach_irqfd(&self, gsi: Gsi, event: &EventFd) -> Result<(), AccelError> {
        let _ = (gsi, event);
        Ok(())
    }
}
