//! Saved type of console output.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::output::CAPACITY;

/// Bytes that may be queued beyond [`CAPACITY`]: those that the writer thread has in hand, and one access of each vCPU.
const MORE: usize = CAPACITY + (4 << 10);

/// What the sink has not taken.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedOutput {
    /// Oldest first.
    pub(crate) bytes: Vec<u8>,
}

impl Saved for SavedOutput {
    const VERSION: u32 = 1;
}

impl SavedOutput {
    /// The bytes, if a queue can have so many.
    pub(crate) fn checked(self) -> Result<Vec<u8>, RestoreError> {
        let most = CAPACITY + MORE;
        check(self.bytes.len() <= most, "bytes", self.bytes.len(), format_args!("at most {most} bytes"))?;
        Ok(self.bytes)
    }
}
