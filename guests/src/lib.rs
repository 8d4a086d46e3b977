//! Guest programs: what the machine runs when nobody brought a guest, and what tests and benchmarks run on it.
//!
//! 1. [`bare`] builds small bare-metal guests: 64-bit code, assembled from Rust, in a PVH ELF.
//! 2. [`embedded`] is such a guest that tells what machine it sees and how fast its own loops run.
//! 3. [`micro`] are such guests for benchmarks, one a class of work, with known results.
//! 4. [`modes`] are such guests for tests: they use the processor's modes as Linux does not, and check themselves.
//! 5. [`initramfs`] writes initial RAM file systems for Linux guests.
//! 6. [`debian`] obtains the default guest: Debian's own kernel with its busybox; and libraries of Debian's.
//! 7. [`kernel_module`] reads what Linux kernel modules say of themselves.
//! 8. [`suite`] are programs for Linux user space that measure and check classes of work.

mod assembled;
pub mod bare;
pub mod debian;
pub mod embedded;
pub mod initramfs;
pub mod kernel_module;
pub mod micro;
pub mod modes;
pub mod suite;

/// Why the guest or class `name` says on its console that it cannot run here, in the line
/// `RESULT <name> unavailable: <reason>`. That is no failure.
fn unavailable<'a>(name: &str, console: &'a str) -> Option<&'a str> {
    console.lines().find_map(|line| {
        let line = line.trim().strip_prefix("RESULT ")?.strip_prefix(name)?;
        line.strip_prefix(" unavailable: ")
    })
}
