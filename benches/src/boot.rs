//! Debian's cloud kernel from the start of the process to its first program.

use guests::debian;

use crate::error::Failure;
use crate::memory::Memory;
use crate::report::{Experiment, Report};
use crate::subject::GuestRun;
use crate::table::{Table, mebibytes, note};
use crate::{Setup, say};

/// The same for every subject.
pub(crate) const CMDLINE: &str = "console=ttyS0 quiet reboot=t panic=-1";
pub(crate) const MEBIBYTES: u32 = 512;

const REACHED: &str = "INIT-REACHED";
const ROW: &str = "boot";

/// The kernel with busybox, from the cache or the archive.
pub(crate) fn guest() -> Result<debian::DefaultGuest, Failure> {
    Ok(debian::fetch(debian::Flavour::Cloud, &mut |line| say(line))?)
}

pub(crate) fn run(setup: &Setup, report: &mut Report) -> Result<Vec<String>, Failure> {
    let rows = vec![ROW.to_owned()];
    if !setup.wants(ROW) {
        return Ok(rows);
    }
    let guest = guest()?;
    let columns = setup.subjects.iter().map(|subject| subject.name().to_owned()).collect();
    let mut experiment = Experiment::new("boot", "seconds", guest.version.clone(), columns, rows.clone());
    let files = GuestRun {
        kernel: &guest.kernel,
        initrd: Some(&guest.initrd),
        cmdline: CMDLINE,
        mebibytes: MEBIBYTES,
        until: REACHED,
    };
    for counts in setup.rounds.each() {
        for (subject, cell) in setup.subjects.iter().zip(&mut experiment.rows[0].cells) {
            if cell.failure.is_some() {
                continue;
            }
            match setup.pinned.guest(subject, &files, |console| console.contains(REACHED))? {
                Err(broken) => cell.fail(broken),
                Ok(outcome) => {
                    let seconds = outcome.wall.as_secs_f64();
                    say(&format!("boot: {} {seconds:.2} s", subject.name()));
                    if counts {
                        cell.samples.push(seconds);
                        cell.memory.extend(outcome.memory);
                        cell.counters = outcome.counters;
                    }
                }
            }
        }
    }
    print(setup, &experiment);
    report.add(experiment);
    Ok(rows)
}

fn print(setup: &Setup, experiment: &Experiment) {
    let peer = experiment.peer();
    let mut table = Table::new(["", "s to init", "x QEMU", "peak RSS", "RSS", "guest touched", "overhead"]);
    let row = &experiment.rows[0];
    for (n, (subject, cell)) in setup.subjects.iter().zip(&row.cells).enumerate() {
        let spread =
            |spread: Option<_>| spread.map_or("-".to_owned(), |s: crate::samples::Spread| s.to_string());
        let ratio = peer.filter(|peer| *peer != n).and_then(|peer| row.ratio(n, peer));
        table.row([
            subject.name().to_owned(),
            spread(cell.samples.spread()),
            spread(ratio),
            mebibytes(cell, |memory| Some(memory.peak)),
            mebibytes(cell, |memory| Some(memory.resident)),
            mebibytes(cell, |memory| memory.guest),
            mebibytes(cell, Memory::overhead),
        ]);
    }
    table.print("Boot of Debian's cloud kernel to its first program: median (min .. max); memory in MiB");
    for (subject, cell) in setup.subjects.iter().zip(&row.cells) {
        if let Some(counters) = &cell.counters {
            note(&format!("{}: {counters}", subject.name()));
        }
    }
}
