//! How interrupts enter a VM: messages for the local APICs, the legacy INTR line, NMIs.

use std::fmt::Debug;

use crate::{AccelError, VcpuId};

/// A message-signalled interrupt (Intel SDM vol. 3, 11.11).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MsiMessage {
    /// Address, `0xfeexxxxx`.
    pub address: u64,
    /// Data: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Where an IOAPIC pin leads. Backends with the local APIC in the kernel need it to know which vectors are
/// level-triggered, so that EOIs come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoapicRoute {
    /// The message the pin sends.
    pub message: MsiMessage,
    /// The pin is masked.
    pub masked: bool,
    /// The pin is level-triggered.
    pub level: bool,
}

/// The interrupt inputs of a VM; implemented by the backend, called from any thread.
pub trait InterruptPort: Debug + Send + Sync {
    /// Delivers a message to the local APICs it addresses. A message to nobody is dropped, as on the bus.
    ///
    /// # Errors
    /// Host failure.
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError>;
    /// Tells where IOAPIC `pin` (0 to 23) leads.
    ///
    /// # Errors
    /// Host failure.
    fn set_route(&self, pin: u8, route: Option<IoapicRoute>) -> Result<(), AccelError>;
    /// Level of the legacy controller's INTR output, wired to LINT0 of vCPU 0.
    fn set_extint(&self, asserted: bool);
    /// Raises NMI on one vCPU.
    fn inject_nmi(&self, vcpu: VcpuId);
}
