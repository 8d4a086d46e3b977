//! Saved type of the interval timer.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::pit::{Counter, FAR, MAX_OWED, NextCount, PitState};

/// The fields are those of [`PitState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPit {
    counters: [SavedCounter; 3],
    port_61: u8,
    line: bool,
    owed: u64,
    last_tick: Option<u64>,
}

impl Saved for SavedPit {
    const VERSION: u32 = 1;
}

/// The fields are those of [`Counter`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedCounter {
    mode: u8,
    bcd: bool,
    access: u8,
    gate: bool,
    initial: u32,
    loaded: Option<i64>,
    held: Option<u64>,
    next: Option<SavedNext>,
    low: Option<u8>,
    read_high: bool,
    count_latch: Option<u16>,
    status_latch: Option<u8>,
    edges_taken: u64,
    edges_left: u64,
}

/// See [`NextCount`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNext {
    count: u32,
    at: Option<i64>,
}

impl From<&Counter> for SavedCounter {
    fn from(state: &Counter) -> Self {
        let Counter {
            mode,
            bcd,
            access,
            gate,
            initial,
            loaded,
            held,
            next,
            low,
            read_high,
            count_latch,
            status_latch,
            edges_taken,
            edges_left,
        } = state;
        Self {
            mode: *mode,
            bcd: *bcd,
            access: *access,
            gate: *gate,
            initial: *initial,
            loaded: *loaded,
            held: *held,
            next: next.map(|NextCount { count, at }| SavedNext { count, at }),
            low: *low,
            read_high: *read_high,
            count_latch: *count_latch,
            status_latch: *status_latch,
            edges_taken: *edges_taken,
            edges_left: *edges_left,
        }
    }
}

impl TryFrom<SavedCounter> for Counter {
    type Error = RestoreError;

    fn try_from(saved: SavedCounter) -> Result<Self, RestoreError> {
        let SavedCounter {
            mode,
            bcd,
            access,
            gate,
            initial,
            loaded,
            held,
            next,
            low,
            read_high,
            count_latch,
            status_latch,
            edges_taken,
            edges_left,
        } = saved;
        let tick = |at: i64| check((-FAR..=FAR).contains(&at), "tick", at, "within a thousand years");
        check(mode < 6, "mode", mode, "0 to 5")?;
        check((1..=3).contains(&access), "access", access, "1 to 3")?;
        check((1..=0x1_0000).contains(&initial), "initial", initial, "1 to 65536")?;
        loaded.map_or(Ok(()), tick)?;
        held.map_or(Ok(()), |held| check(held <= FAR as u64, "held", held, "within a thousand years"))?;
        if let Some(SavedNext { count, at }) = &next {
            check((1..=0x1_0000).contains(count), "next.count", count, "1 to 65536")?;
            at.map_or(Ok(()), tick)?;
        }
        Ok(Self {
            mode,
            bcd,
            access,
            gate,
            initial,
            loaded,
            held,
            next: next.map(|SavedNext { count, at }| NextCount { count, at }),
            low,
            read_high,
            count_latch,
            status_latch,
            edges_taken,
            edges_left,
        })
    }
}

impl From<&PitState> for SavedPit {
    fn from(state: &PitState) -> Self {
        let PitState { counters, port_61, line, owed, last_tick } = state;
        Self {
            counters: [0, 1, 2].map(|n| (&counters[n]).into()),
            port_61: *port_61,
            line: *line,
            owed: *owed,
            last_tick: *last_tick,
        }
    }
}

impl TryFrom<SavedPit> for PitState {
    type Error = RestoreError;

    fn try_from(saved: SavedPit) -> Result<Self, RestoreError> {
        let SavedPit { counters, port_61, line, owed, last_tick } = saved;
        check(port_61 < 0x10, "port_61", port_61, "below 16")?;
        check(owed <= MAX_OWED, "owed", owed, format_args!("at most {MAX_OWED}"))?;
        let [one, two, three] = counters;
        Ok(Self {
            counters: [one.try_into()?, two.try_into()?, three.try_into()?],
            port_61,
            line,
            owed,
            last_tick,
        })
    }
}
