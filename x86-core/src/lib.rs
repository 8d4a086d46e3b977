//! The software CPU that the interpreter and the JIT share.
//!
//! 1. [`Cpu`] is the working state of one vCPU, laid out for speed. [`accel_api::x86::CpuState`] is converted to and from
//!    it in `state.rs`.
//! 2. Memory: `memory_map.rs` knows where RAM is, `walk.rs` walks page tables, `tlb.rs` remembers, `mem.rs` loads and
//!    stores through all three and through the bus where there is no RAM.
//! 3. `exec` holds the semantics of every instruction, one function per family, found through [`exec::lookup`] by
//!    iced's `Code`. An executor calls it with RIP at the instruction and `next_rip` behind it; a function either
//!    finishes, or returns a [`Fault`] and has changed nothing that matters.
//! 4. `event` delivers faults, traps and interrupts through the IDT, `task.rs` switches tasks, `debug.rs` holds the guest's
//!    breakpoints and single steps. `lapic` is the local APIC.
//! 5. `trial.rs` executes on trial, with `journal.rs` to take stores back: JITs are checked against it (lockstep).
//! 6. [`shared`] is what other threads may touch: requests to the vCPU, its interrupt inbox. `exclusion.rs` keeps the other
//!    vCPUs out of guest code where the host has no instruction for what the guest's does.
//!
//! Arithmetic executes the host's own instructions (`alu.rs`), so flags, rounding and what the manual leaves undefined
//! are the silicon's.

pub mod alu;
mod bus;
mod code_map;
mod cpu;
mod debug;
mod decode;
mod event;
mod exclusion;
pub mod exec;
mod fault;
mod fpu_regs;
mod host_memory;
mod journal;
mod keyed;
pub mod lapic;
mod mem;
mod memory_map;
mod mode;
mod operand;
mod page_list;
mod presence;
mod request_word;
mod segment;
pub mod shared;
pub mod soft;
mod state;
mod strict;
mod trial;
/// Where the parts that `tests/interleavings.rs` tries have their atomics from; there it is another module.
mod sync {
    pub(crate) use std::sync::atomic;
}
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod testing_tables;

mod task;
mod tlb;
mod walk;

pub use code_map::*;
pub use cpu::*;
pub use debug::dr6;
pub use decode::*;
pub use event::*;

pub use fault::*;
pub use fpu_regs::*;
pub use host_memory::*;
pub use journal::*;
pub use keyed::*;
pub use mem::*;
pub use memory_map::*;
pub use mode::*;
pub(crate) use operand::within;
pub use operand::*;
pub use page_list::PageList;
pub use segment::*;
pub use trial::*;

pub use tlb::*;
pub use walk::*;
