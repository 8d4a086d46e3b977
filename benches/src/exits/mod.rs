//! What leaving the guest costs on KVM: our backend beside the least that ioctl alone can do.
//!
//! 1. [`code`] makes a guest for each [`Event`], the same file for both sides.
//! 2. [`ours`] runs it through a backend of ours, `c/kvm_exits.c` (built here, by the host's `cc`) by ioctls. Each is a
//!    process that waits for a number on its standard input and answers with nanoseconds.
//! 3. Both processes live through the whole experiment and are asked in turn, A B A B, pinned to the same core.

mod code;
pub(crate) mod ours;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::ValueEnum;

use crate::error::Failure;
use crate::host::{self, Scratch};
use crate::report::{Experiment, Report};
use crate::run::{Broken, Runner};
use crate::subject::Subject;
use crate::table::Table;
use crate::{Setup, say};

/// Why a guest is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Event {
    /// OUT to a port
    Port,
    /// A store to a device
    Mmio,
    /// An interrupt from another thread wakes HLT, and its handler does an OUT
    Halt,
    /// Another thread wants the vCPU's attention
    Kick,
}

const EVENTS: [Event; 4] = [Event::Port, Event::Mmio, Event::Halt, Event::Kick];

/// Between events of another thread: the guest halts, or runs, by then.
const PAUSE: Duration = Duration::from_micros(200);
/// How long a batch should take.
const BATCH: Duration = Duration::from_millis(100);
/// How many events a batch has at least and at most.
const EVENTS_MIN: f64 = 50.0;
const EVENTS_MAX: f64 = 1e6;
/// Nanoseconds of an event before anything is known: the first batch is small on any host.
const FIRST_GUESS: f64 = 1e5;
/// The column of the C program.
const IOCTL: &str = "ioctl";
/// The goal: our cost, as a multiple of its.
const GOAL: f64 = 1.15;

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Mmio => "mmio",
            Self::Halt => "halt",
            Self::Kick => "kick",
        }
    }

    /// What passes between two events without being measured.
    fn pause(self) -> Duration {
        match self {
            Self::Port | Self::Mmio => Duration::ZERO,
            Self::Halt | Self::Kick => PAUSE,
        }
    }
}

pub(crate) fn run(setup: &Setup, report: &mut Report) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = EVENTS.map(|event| event.name().to_owned()).to_vec();
    let events: Vec<Event> = EVENTS.into_iter().filter(|event| setup.wants(event.name())).collect();
    if events.is_empty() {
        return Ok(names);
    }
    let scratch = Scratch::new("exits")?;
    let program = build(&scratch)?;
    let accels: Vec<&str> = setup.subjects.iter().filter_map(Subject::accel).collect();
    let columns = accels.iter().copied().chain([IOCTL]).map(str::to_owned).collect();
    let rows = events.iter().map(|event| event.name().to_owned());
    let guest = "bare-metal loops of benches::exits".to_owned();
    let mut experiment = Experiment::new("exits", "ns per event", guest, columns, rows);
    for (event, row) in events.iter().zip(&mut experiment.rows) {
        say(&format!("exits: {}", row.name));
        let guest = scratch.file(event.name(), &code::guest(*event)?)?;
        let mut sides = Vec::new();
        for accel in &accels {
            let mut command = Command::new("/proc/self/exe");
            command.args(["exits-guest", "--accel", accel, event.name()]).arg(&guest);
            sides.push(Side::start(&setup.pinned, command)?);
        }
        let mut command = Command::new(&program);
        command.arg(event.name()).arg(&guest);
        sides.push(Side::start(&setup.pinned, command)?);
        for counts in setup.rounds.each() {
            for (side, cell) in sides.iter_mut().zip(&mut row.cells) {
                let measured = match side {
                    Ok(side) => side.measure(*event),
                    Err(broken) => Err(broken.clone()),
                };
                match measured {
                    Err(broken) => cell.fail(broken),
                    Ok(ns) if counts && cell.failure.is_none() => cell.samples.push(ns),
                    Ok(_) => {}
                }
            }
        }
    }
    print(&experiment);
    report.add(experiment);
    Ok(names)
}

fn build(scratch: &Scratch) -> Result<PathBuf, Failure> {
    let source = host::source_root().join("benches/c/kvm_exits.c");
    let program = scratch.file("kvm_exits", &[])?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread", "-o"]).arg(&program).arg(source).stdin(Stdio::null());
    let output = match cc.output() {
        Ok(output) if output.status.success() => return Ok(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::Build { what: "the ioctl program", command: format!("{cc:?}"), output })
}

/// One of the two, waiting to be asked.
struct Side {
    child: Child,
    questions: ChildStdin,
    answers: mpsc::Receiver<String>,
    limit: Duration,
    /// Nanoseconds of an event, by the last batch.
    last: f64,
}

impl Side {
    fn start(pinned: &Runner, mut command: Command) -> Result<Result<Self, Broken>, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match host::pinned(pinned.core, || command.spawn())? {
            Ok(child) => child,
            Err(error) => return Ok(Err(format!("does not start: {error}"))),
        };
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Ok(Err("has no pipes".to_owned()));
        };
        let (sender, receiver) = mpsc::channel();
        // Ends with the process, or with who listens.
        std::thread::spawn(move || {
            BufReader::new(answers).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Ok(Self { child, questions, answers: receiver, limit: pinned.limit, last: FIRST_GUESS }))
    }

    /// Nanoseconds of one event: the mean of a batch.
    fn measure(&mut self, event: Event) -> Result<f64, Broken> {
        let events = (BATCH.as_nanos() as f64 / (self.last + event.pause().as_nanos() as f64))
            .clamp(EVENTS_MIN, EVENTS_MAX)
            .round();
        let ended = || "ended; what it said is above".to_owned();
        writeln!(self.questions, "{events}").map_err(|_| ended())?;
        let line = self.answers.recv_timeout(self.limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("gives no answer for {} s", self.limit.as_secs()),
            RecvTimeoutError::Disconnected => ended(),
        })?;
        let ns: f64 = line.trim().parse().map_err(|_| format!("answers {line:?}"))?;
        self.last = ns / events;
        Ok(self.last)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn print(experiment: &Experiment) {
    let ioctl = experiment.columns.len() - 1;
    let mut head = vec!["event".to_owned()];
    head.extend(experiment.columns.iter().map(|column| format!("{column} ns")));
    head.extend(experiment.columns[..ioctl].iter().map(|column| format!("{column} x {IOCTL}")));
    let mut table = Table::new(head);
    let text = |spread: Option<crate::samples::Spread>| spread.map_or("-".to_owned(), |s| s.to_string());
    for row in &experiment.rows {
        let mut line = vec![row.name.clone()];
        line.extend(row.cells.iter().map(|cell| text(cell.samples.spread())));
        line.extend((0..ioctl).map(|n| text(row.ratio(n, ioctl))));
        table.row(line);
    }
    table.print(&format!(
        "Leaving the guest: ns an event, median (min .. max); goal: at most {GOAL} x {IOCTL}"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_elf_files_that_differ() {
        let guests: Vec<_> = EVENTS.map(|event| code::guest(event).unwrap()).to_vec();
        for (n, guest) in guests.iter().enumerate() {
            assert_eq!(&guest[..4], b"\x7fELF");
            assert!(!guests[..n].contains(guest));
        }
    }

    #[test]
    fn a_side_that_ends_is_broken() {
        let pinned = Runner { core: host::choose_core(None).unwrap(), limit: Duration::from_secs(1) };
        let mut command = Command::new("sh");
        command.args(["-c", "read n; echo $((n * 7)); read n; sleep 60"]);
        let mut side = Side::start(&pinned, command).unwrap().unwrap();
        assert_eq!(side.measure(Event::Port), Ok(7.0));
        assert!(side.measure(Event::Port).unwrap_err().contains("no answer for 1 s"));
        let mut command = Command::new("sh");
        command.args(["-c", "read n"]);
        let mut side = Side::start(&pinned, command).unwrap().unwrap();
        assert!(side.measure(Event::Port).unwrap_err().contains("ended"));
        let command = Command::new("/nonexistent");
        assert!(Side::start(&pinned, command).unwrap().is_err());
    }

    /// The interpreter needs no device: the guests and our side work, whatever the host has.
    #[test]
    fn every_event_ends() {
        let scratch = Scratch::new("exits-test").unwrap();
        for event in EVENTS {
            let guest = scratch.file(event.name(), &code::guest(event).unwrap()).unwrap();
            assert!(ours::once("interp", event, &guest).unwrap() > Duration::ZERO, "{event:?}");
        }
    }
}
