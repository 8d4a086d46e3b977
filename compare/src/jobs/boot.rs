//! Debian's cloud kernel from the start of the process through its first program to power-off.

use std::path::PathBuf;

use guests::debian::DefaultGuest;

use super::{Job, Reading, Readings, RowSpec, Unavailable};
use crate::error::Error;
use crate::process::{Outcome, Runner, Watch, last_lines};
use crate::subject::{GuestRun, Subject};

/// The same for every subject. The script is what the first program does before it powers off.
const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1 gearshift.script=true";
/// For those guests whose initial RAM disk brings a script of its own.
pub(super) const CMDLINE_OF_SCRIPTS: &str = "console=ttyS0 quiet reboot=t panic=-1";
/// Memory.
pub(super) const MEBIBYTES: u32 = 512;
/// What such a boot executes, nearly all of it in ring 0, counted by the interpreter.
pub(super) const INSTRUCTIONS: f64 = 1.4e9;
/// Said when the first program runs, when its script is done, and by the kernel at last.
pub(super) const INIT: &str = "INIT-REACHED";
pub(super) const DONE: &str = "GUEST-DONE status: ";
const POWER_DOWN: &str = "reboot: Power down";
/// The milestone that counts.
const REACHED: &str = "init";

struct Boot {
    rows: Vec<RowSpec>,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// What its console is watched for, by every job that boots this kernel for its first program's sake.
pub(super) const WATCH: Watch<'static> = Watch {
    milestones: &[(REACHED, INIT), ("script", DONE), ("power-off", POWER_DOWN)],
    look_at: Some(REACHED),
    until: None,
};

/// The row of the boot, whichever job makes it.
pub(super) fn row(what: String) -> RowSpec {
    RowSpec {
        guest: "boot".to_owned(),
        group: "boot",
        about: "process start to the first program".to_owned(),
        unit: "s",
        what,
    }
}

pub(super) fn job(guest: Result<&DefaultGuest, &String>) -> Box<dyn Job> {
    match guest {
        Ok(guest) => Box::new(Boot {
            rows: vec![row(format!("Debian's {}, busybox; {CMDLINE}", guest.version))],
            kernel: guest.kernel.clone(),
            initrd: guest.initrd.clone(),
        }),
        Err(reason) => Box::new(Unavailable { rows: vec![row(String::new())], reason: reason.clone() }),
    }
}

impl Job for Boot {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }

    fn is_linux(&self) -> bool {
        true
    }

    fn kernel_instructions(&self) -> f64 {
        INSTRUCTIONS
    }

    fn is_cheap(&self) -> bool {
        false
    }

    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error> {
        let guest = GuestRun {
            kernel: &self.kernel,
            initrd: Some(&self.initrd),
            cmdline: CMDLINE,
            mebibytes: MEBIBYTES,
            until: INIT,
            linux: true,
        };
        Ok(runner.guest(subject, &guest, &WATCH)?.map(|outcome| vec![reading(subject, &outcome)]))
    }
}

/// What a run that was watched so says of the boot.
pub(super) fn reading(subject: &Subject, outcome: &Outcome) -> Reading {
    let mut milestones = outcome.milestones.clone();
    let reached = milestones.iter().find(|(name, _)| name == REACHED).map(|(_, seconds)| *seconds);
    milestones.push(("end of process".to_owned(), outcome.wall.as_secs_f64()));
    let began = reached.zip(uptime(&outcome.console)).map(|(reached, uptime)| reached - uptime);
    milestones.extend(
        began
            .filter(|began| *began > 0.0 && subject.keeps_time())
            .map(|began| ("kernel's clock".to_owned(), began)),
    );
    milestones.sort_by(|a, b| a.1.total_cmp(&b.1));
    let status = status(&outcome.console);
    // Bochs's own words come first, and its serial line is as slow as a real one: the kernel powers off over what has not
    // been sent.
    let cut = !subject.keeps_time() && reached.is_some() && status.is_none();
    if !subject.keeps_time() {
        milestones.retain(|(name, _)| name != "first byte");
    }
    let said = status.unwrap_or_else(|| "the first program was not reached".to_owned());
    let failure = reached
        .is_none()
        .then(|| format!("ended before its first program: {}", last_lines(&outcome.console)));
    Reading {
        value: reached,
        refusal: None,
        failure,
        answer: (!cut).then(|| (said, outcome.end.clone())),
        memory: outcome.memory,
        counters: outcome.counters.clone(),
        milestones,
    }
}

/// Seconds that the kernel's clock has run when the first program does. It starts when the kernel knows its time-stamp
/// counter, behind loading and decompression.
fn uptime(console: &str) -> Option<f64> {
    console.lines().find_map(|line| line.strip_prefix(INIT)?.trim().strip_prefix("uptime: ")?.parse().ok())
}

/// What the guest says of its script.
fn status(console: &str) -> Option<String> {
    console.lines().find(|line| line.starts_with(DONE)).map(|line| line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_first_program_says() {
        let console = "[    0.14] x\r\nINIT-REACHED uptime: 1.56\r\nCPUS 1\r\nGUEST-DONE status: 0\r\n";
        assert_eq!((uptime(console), status(console).as_deref()), (Some(1.56), Some("GUEST-DONE status: 0")));
        assert_eq!((uptime("INIT-REACHED"), status("x")), (None, None));
    }
}
