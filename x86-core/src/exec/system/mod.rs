//! Control flow, flags, segments, privileged instructions, I/O.

pub(super) fn register(_table: &mut super::Table) {}
