//! Saved type of the watchdog.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use super::pci::SavedFunction;
use crate::watchdog::{PRELOAD, WatchdogState};

/// The fields are those of [`WatchdogState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedWatchdog {
    preload: [u32; 2],
    since: u64,
    keys: u8,
    timed_out: bool,
    told: bool,
    function: SavedFunction,
}

impl Saved for SavedWatchdog {
    const VERSION: u32 = 1;
}

impl SavedWatchdog {
    pub(crate) fn new(state: &WatchdogState, function: SavedFunction) -> Self {
        let WatchdogState { preload, since, keys, timed_out, told } = *state;
        Self { preload, since, keys, timed_out, told, function }
    }

    pub(crate) fn check(self) -> Result<(WatchdogState, SavedFunction), RestoreError> {
        let Self { preload, since, keys, timed_out, told, function } = self;
        let long = preload.into_iter().find(|&stage| stage > PRELOAD);
        check(long.is_none(), "preload", long.unwrap_or_default(), format_args!("up to {PRELOAD:#x}"))?;
        check(keys <= 2, "keys", keys, "0 to 2")?;
        Ok((WatchdogState { preload, since, keys, timed_out, told }, function))
    }
}
