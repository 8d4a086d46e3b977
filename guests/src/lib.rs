//! Guest programs: what the machine runs when nobody brought a guest, and what tests and benchmarks run on it.
//!
//! 1. [`bare`] builds small bare-metal guests: 64-bit code, assembled from Rust, in a PVH ELF.
//! 2. [`embedded`] is such a guest that tells what machine it sees and how fast its own loops run.
//! 3. [`micro`] are such guests for benchmarks, one a class of work, with known results.

mod assembled;
pub mod bare;
pub mod embedded;
pub mod micro;
