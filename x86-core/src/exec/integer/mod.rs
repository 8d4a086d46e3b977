//! Integer instructions: data movement, arithmetic, shifts, bits, strings, atomics.

pub(super) fn register(_table: &mut super::Table) {}
