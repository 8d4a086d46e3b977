//! The machine model: a PC that runs on any accelerator.
//!
//! 1. [`MachineBuilder`] describes a machine: vCPUs, memory, CPU model, kernel or [`MemoryImage`], console, and the
//!    [`Accelerator`](accel_api::Accelerator) that executes it. [`Registry`] knows the accelerators there are.
//! 2. [`Machine`] runs it. Each vCPU has a thread ([`vcpu_thread`]), which calls into the devices through
//!    [`bus`]; the timers share one thread; the console's output has another.
//! 3. Interrupts go from the devices through an [`InterruptCell`] to the accelerator, which can be exchanged behind it.
//! 4. Time is the host's, for guest and devices alike ([`clock`]).
//! 5. However the guest ends, it is posted to one cell, and [`Machine::wait`] returns it as [`GuestEnd`]. A reset is posted there,
//!    too; whether the machine starts again or ends is [`OnReset`].
//! 6. All that has state is a [`state::StateUnit`] of [`Machine::units`].
//!
//! ```no_run
//! use machine::{AccelChoice, Machine, Registry};
//!
//! let chosen = Registry::builtin().choose(&AccelChoice::Auto)?;
//! let machine = Machine::builder()
//!     .accelerator(chosen.accelerator)
//!     .kernel("/boot/vmlinuz")
//!     .cmdline("console=ttyS0")
//!     .console(std::io::stdout())
//!     .start()?;
//! println!("{}", machine.wait());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

/// The examples of `docs/`, compiled and run as tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../docs/write-an-accelerator.md")]
    mod write_an_accelerator {}
    #[doc = include_str!("../../docs/write-a-device.md")]
    mod write_a_device {}
}

pub mod acpi;
mod acpi_pci;
mod board;
pub mod boot;
mod boot_source;
mod builder;
pub mod bus;
mod chipset;
mod choice;
pub mod clock;
mod control;
mod dirty;
mod dump;
#[cfg(test)]
mod fake;
mod host;
mod interrupts;
mod io_events;
mod lifecycle;
pub mod memory_map;
mod memory_slots;
mod operations;
mod pci;
#[cfg(test)]
mod pci_tests;
mod ram_unit;
mod registry;
#[cfg(test)]
mod reset_tests;
mod switch;
mod timers;
pub mod vcpu_thread;
mod vm;
#[cfg(test)]
mod vm_tests;
mod wiring;

pub use boot::{MemoryImage, Source};
pub use builder::{DEFAULT_MODEL, MachineBuilder};
pub use chipset::{ChipsetError, Sink};
pub use choice::{AccelChoice, ChooseError, Chosen, Needs, PassedOver, Survey};
pub use clock::TscFrequency;
pub use control::GuestEnd;
pub use devices::output::OutputQueue;
pub use devices::virtio::balloon::{BalloonStats, BalloonStatus};
pub use dirty::DirtyConsumer;
pub use dump::CpuDump;
pub use interrupts::{InterruptCell, MsiVector, NoVector};
pub use lifecycle::{Notice, NoticeListener, OnReset, OnWatchdog, Phase, PhaseListener};
pub use memory_slots::MemoryWindow;
pub use registry::{
    BackendOptions, CreateFn, Descriptor, INTERP, JIT, JitOptions, KVM, Listener, ProbeFn, Registry,
};
pub use switch::{SwitchError, SwitchReport};
pub use vm::{ConsoleInput, Machine, MachineError};
pub use wiring::Wiring;

/// Most vCPUs one machine can have.
pub const MAX_VCPUS: u32 = 64;
