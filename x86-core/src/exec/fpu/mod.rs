//! x87, MMX and the instructions that save and restore vector state.

pub(super) fn register(_table: &mut super::Table) {}
