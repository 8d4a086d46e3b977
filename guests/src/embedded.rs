//! The guest of our own that runs where no kernel is to be had.
//!
//! It needs nothing but the first serial port (16550 at 0x3f8), the machine's power-off port
//! ([`bare::ports`](crate::bare::ports)) and about 8 MiB of RAM. It prints what CPUID and the PVH memory map say,
//! measures a few loops against the time-stamp counter, and powers the machine off.
//! `tsc-khz=N` on its command line overrules the TSC frequency that CPUID tells.

/// The guest, an ELF64 with a PVH entry note.
pub const ELF: &[u8] = crate::assembled::EMBEDDED;

/// Names of the measured loops, as they begin the lines of its table.
pub const LOOPS: &[&str] = crate::assembled::EMBEDDED_LOOPS;
