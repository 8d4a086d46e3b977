//! What the tests of several crates share; no part of the program.
//!
//! 1. [`conformance`] is the suite that every backend must pass; [`conformance!`] instantiates it.
//! 2. [`rig`] builds a small VM for one guest snippet, [`fake_bus`] is its machine, [`snippet`] assembles the guest.
//! 3. [`travel`] wraps a backend so that the guest moves to a fresh VM again and again while it runs.

pub mod conformance;
pub mod fake_bus;
pub mod rig;
pub mod snippet;
pub mod travel;
