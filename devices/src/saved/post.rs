//! Saved type of the POST and delay ports.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved};

use crate::post::PostState;

/// The bytes at ports 0x80 to 0x8f.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPost {
    bytes: [u8; 16],
}

impl Saved for SavedPost {
    const VERSION: u32 = 1;
}

impl From<&PostState> for SavedPost {
    fn from(state: &PostState) -> Self {
        let PostState { bytes } = state;
        Self { bytes: *bytes }
    }
}

impl TryFrom<SavedPost> for PostState {
    type Error = RestoreError;

    fn try_from(saved: SavedPost) -> Result<Self, RestoreError> {
        let SavedPost { bytes } = saved;

        Ok(Self { bytes })
    }
}
