//! From the start of the process to the guest's first instruction, and what the process needs for itself.
//!
//! The guest's first instructions write a byte to the serial port. The time is measured from outside, from before the
//! process is made until that byte is read: the way of the byte through UART, console thread and pipe, and the switches
//! between threads pinned to one core, are in it.

use std::path::PathBuf;

use guests::bare::{BuildError, at_entry, ports};
use iced_x86::code_asm::*;

use super::{Job, Kitchen, Reading, Readings, RowSpec};
use crate::error::Error;
use crate::process::{Runner, Watch};
use crate::subject::{GuestRun, Subject};

const MEBIBYTES: u32 = 512;
/// What the guest writes.
const BYTE: &str = "!";

struct Start {
    rows: Vec<RowSpec>,
    kernel: PathBuf,
}

/// Writes the byte, and halts for good.
fn guest() -> Result<Vec<u8>, BuildError> {
    at_entry(1 << 16, |a| {
        let mut halt = a.create_label();
        a.mov(edx, u32::from(ports::COM1))?;
        a.mov(eax, u32::from(BYTE.as_bytes()[0]))?;
        a.out(dx, al)?;
        a.set_label(&mut halt)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(halt)
    })
}

pub(super) fn job(kitchen: &Kitchen<'_>) -> Result<Box<dyn Job>, Error> {
    let row = RowSpec {
        guest: "start".to_owned(),
        group: "start",
        about: "process start to the guest's first byte".to_owned(),
        unit: "ms",
        what: format!("a byte to the serial port, {MEBIBYTES} MiB"),
    };
    Ok(Box::new(Start { rows: vec![row], kernel: kitchen.scratch.file("start", &guest()?)? }))
}

impl Job for Start {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error> {
        let guest = GuestRun {
            kernel: &self.kernel,
            initrd: None,
            cmdline: "",
            mebibytes: MEBIBYTES,
            until: BYTE,
            linux: false,
        };
        let watch = Watch { milestones: &[], look_at: Some("first byte"), until: Some(BYTE) };
        Ok(runner.guest(subject, &guest, &watch)?.map(|outcome| {
            let said = outcome.console.contains(BYTE);
            vec![Reading {
                refusal: None,
                value: said.then_some(outcome.wall.as_secs_f64() * 1e3),
                failure: (!said).then(|| format!("ended without its byte ({})", outcome.end.0)),
                answer: (!said).then_some((outcome.console, outcome.end)),
                memory: outcome.memory,
                counters: None,
                milestones: Vec::new(),
            }]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_an_elf_file() {
        assert_eq!(&guest().unwrap()[..4], b"\x7fELF");
    }
}
