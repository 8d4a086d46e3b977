//! The machine model.

pub mod acpi;
pub mod boot;
pub mod memory_map;

/// Most vCPUs one machine can have.
pub const MAX_VCPUS: u32 = 64;
