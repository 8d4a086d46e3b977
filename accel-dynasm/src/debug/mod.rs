//! Views of host code from outside.
//!
//! 1. [`lockstep`] compares blocks with their instructions, [`divergence`] reports a difference.
//! 2. [`listing`] shows blocks; [`perf_map`] and [`jitdump`] let perf(1) name and show them.
//! 3. [`injected_bug`] makes wrong code for tests.

pub(crate) mod divergence;
pub(crate) mod injected_bug;
pub(crate) mod jitdump;
pub(crate) mod listing;
pub(crate) mod lockstep;
pub(crate) mod perf_map;
