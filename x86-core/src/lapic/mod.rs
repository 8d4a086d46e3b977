//! The software local APIC of the interpreter and the JIT (Intel SDM vol. 3, chapter 11).
//!
//! # Model
//!
//! 1. A local APIC has two halves. [`Lapic`] holds the registers and belongs to its vCPU's thread: no locks, no
//!    atomics. [`LapicInbox`] is what other threads may touch: interrupts on their way, the two LINT lines, and a
//!    published copy of what is needed to address this local APIC.
//! 2. [`ApicBus`] knows all inboxes. Whatever sends an interrupt — another vCPU's ICR, the I/O APIC, a device's
//!    MSI — makes an [`ApicMessage`] of it and calls [`ApicBus::deliver`], which posts it to the inboxes that are
//!    addressed and kicks their vCPUs.
//! 3. The vCPU polls [`LapicInbox::has_work`] (one load) and, if there is any, calls [`Lapic::pull`]: vectors go to
//!    IRR; NMI, INIT, start-up and ExtINT go to latches in `Lapic` until the CPU takes them. After `pull` the
//!    inbox is empty, so that an interrupt the CPU cannot take yet does not keep it on its slow path.
//! 4. Time comes from outside ([`Now`]). [`Lapic::next_deadline`] tells the vCPU when to call [`Lapic::expire`];
//!    it may change at each register write.
//!
//! # What the CPU does with it
//!
//! Before it sleeps, at each kick, when a deadline has passed, when interrupts become enabled, and after every
//! write to the local APIC (a write may make an interrupt pending for the writer itself, which is not kicked):
//! `expire`, `pull`, then in this order `take_init` (reset the CPU, call [`Lapic::init`]), `take_sipi` (obeyed only
//! in wait-for-SIPI, dropped otherwise), `nmi_pending`/`take_nmi`, [`Lapic::extint_pending`] (run the INTA cycle at
//! the 8259, then [`Lapic::accept_extint`]), [`Lapic::pending_vector`] and [`Lapic::accept`].
//!
//! # Deliberately absent
//!
//! SMI (no SMM), the CMCI entry, remote read, bus arbitration, polarity of LINT pins (callers speak of asserted
//! lines), and events for the thermal and performance entries, which are only registers.

mod access;
mod bus;
mod inbox;
mod local;
mod message;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use accel_api::x86::LapicState;
pub use bus::{ApicBus, VcpuKick};
pub use inbox::LapicInbox;
pub use local::{ApicHost, GpFault, Lapic, LapicConfig};
pub use message::{ApicMessage, DeliveryMode, Destination};
pub use registers::{
    BASE_BSP, BASE_ENABLED, BASE_X2APIC, DEFAULT_BASE, MMIO_SIZE, MSR_APIC_BASE, MSR_TSC_DEADLINE,
    MSR_X2APIC_FIRST, MSR_X2APIC_LAST,
};
pub use state::LapicStateError;
pub use timer::{Now, TimerDeadline};
pub use vectors::VectorSet;
