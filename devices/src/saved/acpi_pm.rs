//! Saved types of the ACPI fixed hardware and of the reset control register.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::acpi_pm::{AcpiPmState, CONTROL_BITS, ENABLE_BITS, RESET_BITS, ResetControlState, STATUS_BITS};

/// The fields are those of [`AcpiPmState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedAcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    carries: u64,
}

impl Saved for SavedAcpiPm {
    const VERSION: u32 = 1;
}

impl From<&AcpiPmState> for SavedAcpiPm {
    fn from(state: &AcpiPmState) -> Self {
        let AcpiPmState { status, enable, control, carries } = state;
        Self { status: *status, enable: *enable, control: *control, carries: *carries }
    }
}

impl TryFrom<SavedAcpiPm> for AcpiPmState {
    type Error = RestoreError;

    fn try_from(saved: SavedAcpiPm) -> Result<Self, RestoreError> {
        let SavedAcpiPm { status, enable, control, carries } = saved;
        check(status & !STATUS_BITS == 0, "status", status, format_args!("within {STATUS_BITS:#x}"))?;
        check(enable & !ENABLE_BITS == 0, "enable", enable, format_args!("within {ENABLE_BITS:#x}"))?;
        check(control & !CONTROL_BITS == 0, "control", control, format_args!("within {CONTROL_BITS:#x}"))?;
        Ok(Self { status, enable, control, carries })
    }
}

/// Port 0xcf9.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedResetControl {
    value: u8,
}

impl Saved for SavedResetControl {
    const VERSION: u32 = 1;
}

impl From<&ResetControlState> for SavedResetControl {
    fn from(state: &ResetControlState) -> Self {
        let ResetControlState { value } = state;
        Self { value: *value }
    }
}

impl TryFrom<SavedResetControl> for ResetControlState {
    type Error = RestoreError;

    fn try_from(saved: SavedResetControl) -> Result<Self, RestoreError> {
        let SavedResetControl { value } = saved;
        check(value & !RESET_BITS == 0, "value", value, format_args!("within {RESET_BITS:#x}"))?;
        Ok(Self { value })
    }
}
