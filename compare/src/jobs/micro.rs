//! Bare-metal guests, booted by PVH: no operating system, no devices but the console.
//!
//! Those that do nothing but leave the guest are a group of their own, `exits`, in nanoseconds.

use std::path::PathBuf;

use guests::micro::{self, Micro, Report};
use machine::TscFrequency;

use super::{Job, Kitchen, Reading, Readings, RowSpec, Selection};
use crate::error::Error;
use crate::process::{End, Outcome, Runner, Watch, last_lines};
use crate::subject::{GuestRun, Subject};

const MEBIBYTES: u32 = 64;
/// A quick comparison runs a guest so many times shorter.
const QUICK: u64 = 10;
/// Guests whose iteration is one event that leaves the guest, or an interrupt into it.
const EXITS: [&str; 5] = ["port", "mmio", "interrupt", "halt", "timer"];
/// Nanoseconds an instruction may take, beyond which a guest runs fewer iterations: ten times what they are made for.
const PATIENCE: f64 = 33.0;

fn group_of(micro: &Micro) -> &'static str {
    if EXITS.contains(&micro.name) { "exits" } else { "micro" }
}

fn of_group(group: &str) -> impl Iterator<Item = Micro> {
    micro::all().filter(move |micro| group_of(micro) == group)
}

pub(super) fn names(group: &str) -> impl Iterator<Item = &'static str> {
    of_group(group).map(|micro| micro.name)
}

/// Names for the command line, and what they are.
pub(super) fn described(group: &str) -> impl Iterator<Item = (String, String)> {
    of_group(group).map(move |micro| (format!("{}/{}", group_of(&micro), micro.name), micro.about.to_owned()))
}

struct Bare {
    rows: Vec<RowSpec>,
    micro: Micro,
    kernel: PathBuf,
    count: u64,
    /// Of the row's unit, in a TSC cycle.
    per_cycle: f64,
}

pub(super) fn jobs(
    group: &str,
    selection: &Selection,
    kitchen: &Kitchen<'_>,
) -> Result<Vec<Box<dyn Job>>, Error> {
    let mut jobs: Vec<Box<dyn Job>> = Vec::new();
    for micro in of_group(group).filter(|micro| selection.wants(group, micro.name)) {
        let group = group_of(&micro);
        let count = if kitchen.quick { (micro.iterations / QUICK).max(1) } else { micro.iterations };
        let (unit, per_cycle) = match group {
            "exits" => ("ns", 1e6 / f64::from(TscFrequency::of_host().khz)),
            _ => ("cycles", 1.0),
        };
        let row = RowSpec {
            guest: format!("{group}/{}", micro.name),
            group,
            about: micro.about.to_owned(),
            unit,
            what: format!(
                "bare-metal guest, {count} iterations; fewer where an instruction takes above {PATIENCE} ns"
            ),
        };
        let kernel = kitchen.scratch.file(micro.name, micro.elf)?;
        jobs.push(Box::new(Bare { rows: vec![row], micro, kernel, count, per_cycle }));
    }
    Ok(jobs)
}

impl Job for Bare {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }

    fn is_cheap(&self) -> bool {
        false
    }

    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error> {
        // All of such a guest is ring 0. The model of what it computes takes any count.
        let times = subject.ring0_ns.map_or(1.0, |ns| (ns / PATIENCE).max(1.0));
        let count = ((self.count as f64 / times) as u64).max(1);
        let guest = GuestRun {
            kernel: &self.kernel,
            initrd: None,
            cmdline: &format!("n={count}"),
            mebibytes: MEBIBYTES,
            until: "checksum=",
            linux: false,
        };
        let outcome = runner.guest(subject, &guest, &Watch::EMPTY)?;
        Ok(outcome.map(|outcome| vec![self.read(outcome)]))
    }
}

impl Bare {
    fn read(&self, outcome: Outcome) -> Reading {
        if let Some(reason) = self.micro.unavailable(&outcome.console) {
            return Reading { refusal: Some(format!("the guest says: {reason}")), ..Reading::default() };
        }
        // Where soft-off has another SLP_TYP than on our machine, the guest leaves by this.
        let end = if outcome.end.0 == "debug exit 0" { End("power-off".to_owned()) } else { outcome.end };
        let cycles = cycles(&self.micro, &outcome.console, &end);
        let said = match Report::find(&outcome.console) {
            Some(line) => {
                let right = self.micro.expected(line.iterations);
                match line.checksum == right {
                    // Not which: those who run fewer iterations have another one.
                    true => "the right checksum".to_owned(),
                    false => format!(
                        "checksum {:016x} after {} iterations, where {right:016x} is right",
                        line.checksum, line.iterations
                    ),
                }
            }
            None => last_lines(&outcome.console),
        };
        Reading {
            refusal: None,
            value: cycles.as_ref().ok().map(|cycles| cycles * self.per_cycle),
            failure: cycles.err(),
            answer: Some((said, end)),
            memory: None,
            counters: outcome.counters,
            milestones: Vec::new(),
        }
    }
}

/// Cycles an iteration took, if the guest computed the right thing.
fn cycles(guest: &Micro, console: &str, end: &End) -> Result<f64, String> {
    let line = Report::find(console)
        .ok_or_else(|| format!("no result; last on its console: {}; end: {}", last_lines(console), end.0))?;
    let expected = guest.expected(line.iterations);
    if line.name != guest.name || line.checksum != expected {
        return Err(format!("wrong result: checksum {:016x}, expected {expected:016x}", line.checksum));
    }
    if !end.is_power_off() {
        return Err(format!("did not power off: {}", end.0));
    }
    Ok(line.tsc as f64 / line.iterations as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_results_are_failures() {
        let guest = micro::find("smc").unwrap();
        let line = |checksum: u64| format!("RESULT smc iterations=4 tsc=400 checksum={checksum:016x}\r\n");
        let off = End("power-off".to_owned());
        assert_eq!(cycles(&guest, &line(guest.expected(4)), &off), Ok(100.0));
        assert!(cycles(&guest, &line(1), &off).unwrap_err().contains("wrong"));
        let fault = cycles(&guest, "FAULT vector=6\n", &End("debug exit 38".to_owned())).unwrap_err();
        assert!(fault.contains("FAULT vector=6") && fault.contains("debug exit 38"), "{fault}");
        let end = End("triple fault".to_owned());
        assert!(cycles(&guest, &line(guest.expected(4)), &end).unwrap_err().contains("triple fault"));
    }
}
