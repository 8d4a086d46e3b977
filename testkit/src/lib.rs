//! What the tests of several crates share; no part of the program.
//!
//! 1. [`oracle`] runs single instructions on the host's processor and in the software CPU and compares everything the
//!    manual defines: the silicon is the reference.
//! 2. [`asm`] assembles snippets of guest code.

pub mod asm;
pub mod oracle;
