//! The seam between the machine model and whatever executes the guest's instructions.
//!
//! 1. An [`Accelerator`] makes VMs; an [`AccelVm`] maps RAM, binds vCPUs and takes interrupts; a [`Vcpu`] runs on its
//!    own thread. The machine talks to these traits only and never learns which backend stands behind them.
//! 2. The guest's accesses to devices travel the other way, through [`VcpuBus`], in the middle of an instruction:
//!    [`Vcpu::run`] returns with no I/O owed.
//! 3. [`CpuState`](x86::CpuState) is the whole state of a vCPU in plain structs. What one backend saves, every other can
//!    load; this is what makes a live switch, a snapshot and lockstep the same operation.
//! 4. [`CpuModel`](x86::CpuModel) fixes what the guest sees of its processor (CPUID, MSRs) when the VM is made, so that a
//!    switch changes nothing the guest could notice.
//! 5. [`GuestRam`] is one shared mapping for all backends; its [`PageFlags`] are where everything that writes meets.
//! 6. [`host_time`] is the time that backends and machine share.
//! 7. [`x86`] holds the state and the model: what another guest architecture would have instead.
//!
//! Nothing here names a backend, KVM or an async runtime.

mod accel;
mod dirty;
mod error;
pub mod host_time;
mod irq;
mod page_flags;
mod probe;
mod ram;
pub mod signal;
pub mod x86;

pub use accel::*;
pub use dirty::DirtyPages;
pub use error::*;
pub use irq::*;
pub use page_flags::*;
pub use probe::*;
pub use ram::*;

/// Size of a guest page in bytes; the unit of RAM regions and of [`PageFlags`].
pub const PAGE_SIZE: u64 = 4096;
