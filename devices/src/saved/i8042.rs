//! Saved types of the keyboard controller and of port 0x92.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::i8042::{I8042State, Port92State, QUEUE};

/// The fields are those of [`I8042State`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedI8042 {
    ctr: u8,
    ram: [u8; 31],
    output_port: u8,
    last_was_command: bool,
    command: Option<u8>,
    keyboard_command: Option<u8>,
    scancode_set: u8,
    queue: VecDeque<u8>,
}

impl Saved for SavedI8042 {
    const VERSION: u32 = 1;
}

impl From<&I8042State> for SavedI8042 {
    fn from(state: &I8042State) -> Self {
        let I8042State {
            ctr,
            ram,
            output_port,
            last_was_command,
            command,
            keyboard_command,
            scancode_set,
            queue,
        } = state;
        Self {
            ctr: *ctr,
            ram: *ram,
            output_port: *output_port,
            last_was_command: *last_was_command,
            command: *command,
            keyboard_command: *keyboard_command,
            scancode_set: *scancode_set,
            queue: queue.clone(),
        }
    }
}

impl TryFrom<SavedI8042> for I8042State {
    type Error = RestoreError;

    fn try_from(saved: SavedI8042) -> Result<Self, RestoreError> {
        let SavedI8042 {
            ctr,
            ram,
            output_port,
            last_was_command,
            command,
            keyboard_command,
            scancode_set,
            queue,
        } = saved;
        check(ctr < 0x80, "ctr", ctr, "below 128")?;
        check((1..=3).contains(&scancode_set), "scancode_set", scancode_set, "1 to 3")?;
        check(queue.len() <= QUEUE, "queue", queue.len(), format_args!("at most {QUEUE} bytes"))?;
        Ok(Self { ctr, ram, output_port, last_was_command, command, keyboard_command, scancode_set, queue })
    }
}

/// Port 0x92.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPort92 {
    value: u8,
}

impl Saved for SavedPort92 {
    const VERSION: u32 = 1;
}

impl From<&Port92State> for SavedPort92 {
    fn from(state: &Port92State) -> Self {
        let Port92State { value } = state;
        Self { value: *value }
    }
}

impl TryFrom<SavedPort92> for Port92State {
    type Error = RestoreError;

    fn try_from(saved: SavedPort92) -> Result<Self, RestoreError> {
        let SavedPort92 { value } = saved;
        check(value < 4, "value", value, "0 to 3")?;
        Ok(Self { value })
    }
}
