//! Saved type of the real-time clock.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::rtc::{CMOS, RtcState};
use crate::util::NS;

/// The fields are those of [`RtcState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedRtc {
    index: u8,
    cmos: Vec<u8>,
    halted: bool,
    offset_seconds: i64,
    offset_nanos: u32,
    weekday_shift: u8,
    looked: u64,
}

impl Saved for SavedRtc {
    const VERSION: u32 = 1;
}

impl From<&RtcState> for SavedRtc {
    fn from(state: &RtcState) -> Self {
        let RtcState { index, cmos, halted, offset_seconds, offset_nanos, weekday_shift, looked } = state;
        Self {
            index: *index,
            cmos: cmos.clone(),
            halted: *halted,
            offset_seconds: *offset_seconds,
            offset_nanos: *offset_nanos,
            weekday_shift: *weekday_shift,
            looked: *looked,
        }
    }
}

impl TryFrom<SavedRtc> for RtcState {
    type Error = RestoreError;

    fn try_from(saved: SavedRtc) -> Result<Self, RestoreError> {
        let SavedRtc { index, cmos, halted, offset_seconds, offset_nanos, weekday_shift, looked } = saved;
        const FAR: i64 = 1 << 50;
        check(index < 0x80, "index", index, "0 to 127")?;
        check(cmos.len() == CMOS, "cmos", cmos.len(), format_args!("{CMOS} bytes"))?;
        check(
            (-FAR..=FAR).contains(&offset_seconds),
            "offset_seconds",
            offset_seconds,
            "a time of this universe",
        )?;
        check(u64::from(offset_nanos) < NS, "offset_nanos", offset_nanos, "less than a second")?;
        check(weekday_shift < 7, "weekday_shift", weekday_shift, "0 to 6")?;
        let state = Self { index, cmos, halted, offset_seconds, offset_nanos, weekday_shift, looked };
        state.consistent()?;
        Ok(state)
    }
}
