//! Saved type of the balloon.

use serde::{Deserialize, Serialize};
use state::Saved;

/// Pages that are wanted, and that the driver says it has given. Any numbers can be.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedBalloon {
    pub(crate) target: u32,
    pub(crate) actual: u32,
}

impl Saved for SavedBalloon {
    const VERSION: u32 = 1;
}
