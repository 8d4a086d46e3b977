//! Bare-metal guests, booted by PVH: no operating system, no devices but the console.

use std::path::PathBuf;

use guests::micro::{self, Micro, Report as Line};

use crate::error::Failure;
use crate::host::Scratch;
use crate::report::{Experiment, Report};
use crate::samples::{geometric_mean, significant};
use crate::subject::GuestRun;
use crate::table::{Table, note};
use crate::{Setup, say};

const MEBIBYTES: u32 = 64;

pub(crate) fn run(setup: &Setup, report: &mut Report) -> Result<Vec<String>, Failure> {
    let all: Vec<Micro> = micro::all().collect();
    let names = all.iter().map(|guest| guest.name.to_owned()).collect();
    let guests: Vec<&Micro> = all.iter().filter(|guest| setup.wants(guest.name)).collect();
    if guests.is_empty() {
        return Ok(names);
    }
    let scratch = Scratch::new("micro")?;
    let files: Vec<PathBuf> =
        guests.iter().map(|guest| scratch.file(guest.name, guest.elf)).collect::<Result<_, _>>()?;
    let columns = setup.subjects.iter().map(|subject| subject.name().to_owned()).collect();
    let mut experiment = Experiment::new(
        "micro",
        "TSC cycles per iteration",
        "bare-metal guests of guests::micro".to_owned(),
        columns,
        guests.iter().map(|guest| guest.name.to_owned()),
    );
    for counts in setup.rounds.each() {
        for ((guest, file), row) in guests.iter().zip(&files).zip(&mut experiment.rows) {
            say(&format!("micro: {}", guest.name));
            let run = GuestRun {
                kernel: file,
                initrd: None,
                cmdline: "",
                mebibytes: MEBIBYTES,
                until: "checksum=",
            };
            for (subject, cell) in setup.subjects.iter().zip(&mut row.cells) {
                if cell.failure.is_some() {
                    continue;
                }
                let outcome = setup.pinned.guest(subject, &run, said_all)?;
                match outcome.and_then(|outcome| Ok((cycles(guest, &outcome.console)?, outcome.counters))) {
                    Err(broken) => cell.fail(broken),
                    Ok((cycles, counters)) if counts => {
                        cell.samples.push(cycles);
                        cell.counters = counters;
                    }
                    Ok(_) => {}
                }
            }
        }
    }
    print(setup, &experiment);
    report.add(experiment);
    Ok(names)
}

/// A whole line of result, or of the guest's own complaint.
fn said_all(console: &str) -> bool {
    console
        .split_inclusive('\n')
        .any(|line| line.ends_with('\n') && (line.starts_with("RESULT") || line.starts_with("FAULT")))
}

/// Cycles an iteration took, if the guest computed the right thing.
fn cycles(guest: &Micro, console: &str) -> Result<f64, String> {
    let line = Line::find(console).ok_or_else(|| format!("says no result: {}", console.trim()))?;
    let expected = guest.expected(line.iterations);
    if line.name != guest.name || line.checksum != expected {
        return Err(format!("WRONG RESULT: {line:x?}, expected checksum {expected:x}"));
    }
    Ok(line.tsc as f64 / line.iterations as f64)
}

fn print(setup: &Setup, experiment: &Experiment) {
    let peer = experiment.peer();
    let ours: Vec<_> = (0..setup.subjects.len()).filter(|n| Some(*n) != peer).collect();
    let mut head = vec!["guest".to_owned()];
    head.extend(setup.subjects.iter().map(|subject| format!("{} cycles", subject.name())));
    if peer.is_some() {
        head.extend(ours.iter().map(|n| format!("{} x QEMU", experiment.columns[*n])));
    }
    let mut table = Table::new(head);
    for row in &experiment.rows {
        let mut line = vec![row.name.clone()];
        let text = |spread: Option<crate::samples::Spread>| spread.map_or("-".to_owned(), |s| s.to_string());
        line.extend(row.cells.iter().map(|cell| text(cell.samples.spread())));
        if let Some(peer) = peer {
            line.extend(ours.iter().map(|n| text(row.ratio(*n, peer))));
        }
        table.row(line);
    }
    table.print("Bare-metal guests: TSC cycles an iteration, median (min .. max)");
    if let Some(peer) = peer {
        for n in ours {
            let ratios = experiment.rows.iter().filter_map(|row| row.ratio(n, peer)).map(|s| s.median);
            if let Some(mean) = geometric_mean(ratios) {
                note(&format!("{} x QEMU, geometric mean: {}", experiment.columns[n], significant(mean)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_results_are_failures() {
        let guest = micro::find("smc").unwrap();
        let line = |checksum: u64| format!("RESULT smc iterations=4 tsc=400 checksum={checksum:016x}\r\n");
        assert_eq!(cycles(&guest, &line(guest.expected(4))), Ok(100.0));
        assert!(cycles(&guest, &line(1)).unwrap_err().contains("WRONG"));
        assert!(cycles(&guest, "FAULT vector=6\n").unwrap_err().contains("FAULT"));
    }

    #[test]
    fn only_whole_lines_end_a_run() {
        assert!(!said_all("noise\nRESULT smc iter"));
        assert!(said_all("noise\r\nRESULT smc iterations=1\r\n"));
        assert!(said_all("FAULT vector=6\n"));
    }
}
