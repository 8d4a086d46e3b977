//! Saved type of the 8259 pair.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::pic::{ChipState, ELCR_WRITABLE, InitStep, PicState};

/// The 8259 pair.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPic {
    master: SavedChip,
    slave: SavedChip,
}

impl Saved for SavedPic {
    const VERSION: u32 = 1;
}

/// One 8259A; the fields are those of [`ChipState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedChip {
    lines: u8,
    edges: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    icw1: u8,
    base: u8,
    icw3: u8,
    icw4: u8,
    step: SavedStep,
    lowest: u8,
    rotate_aeoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

/// See [`InitStep`].
#[derive(Serialize, Deserialize)]
enum SavedStep {
    Reset,
    Icw2,
    Icw3,
    Icw4,
    Ready,
}

impl From<InitStep> for SavedStep {
    fn from(step: InitStep) -> Self {
        match step {
            InitStep::Reset => Self::Reset,
            InitStep::Icw2 => Self::Icw2,
            InitStep::Icw3 => Self::Icw3,
            InitStep::Icw4 => Self::Icw4,
            InitStep::Ready => Self::Ready,
        }
    }
}

impl From<SavedStep> for InitStep {
    fn from(step: SavedStep) -> Self {
        match step {
            SavedStep::Reset => Self::Reset,
            SavedStep::Icw2 => Self::Icw2,
            SavedStep::Icw3 => Self::Icw3,
            SavedStep::Icw4 => Self::Icw4,
            SavedStep::Ready => Self::Ready,
        }
    }
}

impl From<&ChipState> for SavedChip {
    fn from(state: &ChipState) -> Self {
        let ChipState {
            lines,
            edges,
            isr,
            imr,
            elcr,
            icw1,
            base,
            icw3,
            icw4,
            step,
            lowest,
            rotate_aeoi,
            special_mask,
            read_isr,
            poll,
        } = state;
        Self {
            lines: *lines,
            edges: *edges,
            isr: *isr,
            imr: *imr,
            elcr: *elcr,
            icw1: *icw1,
            base: *base,
            icw3: *icw3,
            icw4: *icw4,
            step: (*step).into(),
            lowest: *lowest,
            rotate_aeoi: *rotate_aeoi,
            special_mask: *special_mask,
            read_isr: *read_isr,
            poll: *poll,
        }
    }
}

impl TryFrom<SavedChip> for ChipState {
    type Error = RestoreError;

    fn try_from(saved: SavedChip) -> Result<Self, RestoreError> {
        let SavedChip {
            lines,
            edges,
            isr,
            imr,
            elcr,
            icw1,
            base,
            icw3,
            icw4,
            step,
            lowest,
            rotate_aeoi,
            special_mask,
            read_isr,
            poll,
        } = saved;
        check(lowest < 8, "lowest", lowest, "0 to 7")?;
        check(base & 7 == 0, "base", base, "a multiple of 8")?;
        check(icw4 < 0x20, "icw4", icw4, "below 32")?;
        Ok(Self {
            lines,
            edges,
            isr,
            imr,
            elcr,
            icw1,
            base,
            icw3,
            icw4,
            step: step.into(),
            lowest,
            rotate_aeoi,
            special_mask,
            read_isr,
            poll,
        })
    }
}

impl From<&PicState> for SavedPic {
    fn from(state: &PicState) -> Self {
        let PicState { master, slave } = state;
        Self { master: master.into(), slave: slave.into() }
    }
}

impl TryFrom<SavedPic> for PicState {
    type Error = RestoreError;

    fn try_from(saved: SavedPic) -> Result<Self, RestoreError> {
        let SavedPic { master, slave } = saved;
        let chip = |saved: SavedChip, writable: u8| {
            check(saved.elcr & !writable == 0, "elcr", saved.elcr, format_args!("within {writable:#x}"))?;
            ChipState::try_from(saved)
        };
        Ok(Self { master: chip(master, ELCR_WRITABLE[0])?, slave: chip(slave, ELCR_WRITABLE[1])? })
    }
}
