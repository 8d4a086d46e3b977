//! SSE to SSE4.2.

pub(super) fn register(_table: &mut super::Table) {}
