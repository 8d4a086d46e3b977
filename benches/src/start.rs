//! From the start of the process to the guest's first instruction, and what the process needs for itself.
//!
//! The guest's first instructions write a byte to the serial port. The time is measured from outside, from before the
//! process is made until that byte is read: the way of the byte through UART, console thread and pipe, and the switches
//! between threads pinned to one core, are in it.

use guests::bare::{BuildError, at_entry, ports};
use iced_x86::code_asm::*;

use crate::error::Failure;
use crate::host::Scratch;
use crate::report::{Experiment, Report};
use crate::subject::GuestRun;
use crate::table::{Table, mebibytes, note};
use crate::{Setup, say};

const MEBIBYTES: u32 = 512;
const ROW: &str = "start";
/// What the guest writes.
const BYTE: &str = "!";
/// The goals, for KVM: milliseconds, and MiB.
const GOAL: (u32, u32) = (15, 10);

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

pub(crate) fn run(setup: &Setup, report: &mut Report) -> Result<Vec<String>, Failure> {
    let rows = vec![ROW.to_owned()];
    if !setup.wants(ROW) {
        return Ok(rows);
    }
    let scratch = Scratch::new("start")?;
    let kernel = scratch.file("guest", &guest()?)?;
    let columns = setup.subjects.iter().map(|subject| subject.name().to_owned()).collect();
    let what = format!("a byte to the serial port, {MEBIBYTES} MiB");
    let mut experiment = Experiment::new("start", "ms", what, columns, rows.clone());
    let files = GuestRun { kernel: &kernel, initrd: None, cmdline: "", mebibytes: MEBIBYTES, until: BYTE };
    say("start");
    for counts in setup.rounds.each() {
        for (subject, cell) in setup.subjects.iter().zip(&mut experiment.rows[0].cells) {
            if cell.failure.is_some() {
                continue;
            }
            match setup.pinned.guest(subject, &files, |console| console.contains(BYTE))? {
                Err(broken) => cell.fail(broken),
                Ok(outcome) if counts => {
                    cell.samples.push(outcome.wall.as_secs_f64() * 1e3);
                    cell.memory.extend(outcome.memory);
                }
                Ok(_) => {}
            }
        }
    }
    print(setup, &experiment);
    report.add(experiment);
    Ok(rows)
}

fn print(setup: &Setup, experiment: &Experiment) {
    let mut table = Table::new(["", "ms to the first byte", "RSS", "guest touched", "overhead"]);
    for (subject, cell) in setup.subjects.iter().zip(&experiment.rows[0].cells) {
        table.row([
            subject.name().to_owned(),
            cell.samples.spread().map_or("-".to_owned(), |spread| spread.to_string()),
            mebibytes(cell, |memory| Some(memory.resident)),
            mebibytes(cell, |memory| memory.guest),
            mebibytes(cell, crate::memory::Memory::overhead),
        ]);
    }
    table.print("Process start to the guest's first byte: median (min .. max); memory in MiB");
    note(&format!("goal for KVM: at most {} ms, overhead at most {} MiB", GOAL.0, GOAL.1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_an_elf_file() {
        assert_eq!(&guest().unwrap()[..4], b"\x7fELF");
    }
}
