//! Saved type of the I/O APIC.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::ioapic::{IoapicState, PINS, REMOTE_IRR, WRITABLE, is_level};

/// The fields are those of [`IoapicState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedIoapic {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    lines: u32,
}

impl Saved for SavedIoapic {
    const VERSION: u32 = 1;
}

impl From<&IoapicState> for SavedIoapic {
    fn from(state: &IoapicState) -> Self {
        let IoapicState { select, id, entries, lines } = state;
        Self { select: *select, id: *id, entries: *entries, lines: *lines }
    }
}

impl TryFrom<SavedIoapic> for IoapicState {
    type Error = RestoreError;

    fn try_from(saved: SavedIoapic) -> Result<Self, RestoreError> {
        let SavedIoapic { select, id, entries, lines } = saved;
        check(id < 16, "id", id, "0 to 15")?;
        check(lines >> PINS == 0, "lines", lines, format_args!("{PINS} bits"))?;
        for entry in entries {
            let allowed = WRITABLE | if is_level(entry) { REMOTE_IRR } else { 0 };
            check(entry & !allowed == 0, "entries", format_args!("{entry:#x}"), "a redirection entry")?;
        }
        Ok(Self { select, id, entries, lines })
    }
}
