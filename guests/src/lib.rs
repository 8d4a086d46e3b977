//! Guest programs: what the machine runs when nobody brought a guest, and what tests and benchmarks run on it.
//!
//! 1. [`bare`] builds small bare-metal guests: 64-bit code, assembled from Rust, in a PVH ELF.
//! 2. [`embedded`] is such a guest that tells what machine it sees and how fast its own loops run.
//! 3. [`micro`] are such guests for benchmarks, one a class of work, with known results.
//! 4. [`modes`] are such guests for tests: they use the processor's modes as Linux does not, and check themselves.
//! 5. [`initramfs`] writes initial RAM file systems for Linux guests.
//! 6. [`debian`] obtains the default guest: Debian's own kernel with its busybox; and libraries of Debian's.
//! 7. [`suite`] are programs for Linux user space that measure and check classes of work.

mod assembled;
pub mod bare;
pub mod debian;
pub mod embedded;
pub mod initramfs;
pub mod micro;
pub mod modes;
pub mod suite;

/// What stands in a `RESULT` line, behind the name and before a reason, if a guest's work cannot be done here.
const UNAVAILABLE: &str = "unavailable:";
