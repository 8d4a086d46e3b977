//! Saved type of the POST and delay ports.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved};

use crate::dma_page::DmaPageState;

/// The bytes at ports 0x80 to 0x8f.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedDmaPage {
    bytes: [u8; 16],
}

impl Saved for SavedDmaPage {
    const VERSION: u32 = 1;
}

impl From<&DmaPageState> for SavedDmaPage {
    fn from(state: &DmaPageState) -> Self {
        let DmaPageState { bytes } = state;
        Self { bytes: *bytes }
    }
}

impl TryFrom<SavedDmaPage> for DmaPageState {
    type Error = RestoreError;

    fn try_from(saved: SavedDmaPage) -> Result<Self, RestoreError> {
        let SavedDmaPage { bytes } = saved;

        Ok(Self { bytes })
    }
}
