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

use clap::{Args, ValueEnum};
use compare::host::{self, Scratch};
use compare::stats::{Rounds, Samples};
use compare::{Error, Output, Table};
use machine::{AccelChoice, Registry};
use serde::Serialize;

use crate::say;

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

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Our backends, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "kvm")]
    accel: Vec<String>,
    /// Use this program instead of building benches/c/kvm_exits.c
    #[arg(long, value_name = "F")]
    ioctl: Option<PathBuf>,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Rounds before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u32,
    /// Core that everything measured is pinned to; else the last one this process may use
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Only these events, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    only: Vec<Event>,
    /// Seconds after which a batch of events has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// Write all samples here, as JSON
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
}

/// What keeps the experiment from running.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Compare(#[from] Error),
    #[error(transparent)]
    Accelerator(#[from] machine::ChooseError),
    #[error(transparent)]
    Assembler(#[from] guests::bare::BuildError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("the ioctl program cannot be built ({command}):\n{output}")]
    Build { command: String, output: String },
}

/// Why there is no number.
type Broken = String;

/// All samples, in nanoseconds an event.
#[derive(Debug, Serialize)]
struct Report {
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    event: &'static str,
    cells: Vec<Cell>,
}

#[derive(Debug, Default, Serialize)]
struct Cell {
    samples: Samples,
    failure: Option<Broken>,
}

/// Measures, prints, writes; whether all went well.
pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let registry = Registry::builtin();
    for name in &options.accel {
        // Names are checked before anything runs.
        registry.choose(&name.parse::<AccelChoice>()?)?;
    }
    let output = options.json.as_deref().map(Output::check).transpose()?;
    let core = host::choose_core(options.core)?;
    let scratch = Scratch::new("exits")?;
    let program = match &options.ioctl {
        Some(file) => file.clone(),
        None => build(&scratch)?,
    };
    let limit = Duration::from_secs(options.limit);
    let wanted = |event: &Event| options.only.is_empty() || options.only.contains(event);
    let columns = options.accel.iter().map(String::as_str).chain([IOCTL]).map(str::to_owned).collect();
    let mut report = Report { columns, rows: Vec::new() };
    for event in EVENTS.into_iter().filter(wanted) {
        say(&format!("exits: {}", event.name()));
        let guest = scratch.file(event.name(), &code::guest(event)?)?;
        let mut sides = Vec::new();
        for accel in &options.accel {
            let mut command = Command::new("/proc/self/exe");
            command.args(["exits-guest", "--accel", accel, event.name()]).arg(&guest);
            sides.push(Side::start(core, limit, command)?);
        }
        let mut command = Command::new(&program);
        command.arg(event.name()).arg(&guest);
        sides.push(Side::start(core, limit, command)?);
        let mut cells: Vec<Cell> = sides.iter().map(|_| Cell::default()).collect();
        for counts in (Rounds { warm_up: options.warm_up, repeat: options.repeat }).each() {
            for (side, cell) in sides.iter_mut().zip(&mut cells) {
                let measured = match side {
                    Ok(side) => side.measure(event),
                    Err(broken) => Err(broken.clone()),
                };
                match measured {
                    Err(broken) => {
                        cell.samples = Samples::default();
                        cell.failure.get_or_insert(broken);
                    }
                    Ok(ns) if counts && cell.failure.is_none() => cell.samples.push(ns),
                    Ok(_) => {}
                }
            }
        }
        report.rows.push(Row { event: event.name(), cells });
    }
    print(&report);
    if let Some(output) = output {
        output.write(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    Ok(report.rows.iter().flat_map(|row| &row.cells).all(|cell| cell.failure.is_none()))
}

fn build(scratch: &Scratch) -> Result<PathBuf, Failure> {
    let source = guests::suite::source().join("benches/c/kvm_exits.c");
    let program = scratch.file("kvm_exits", &[])?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread", "-o"]).arg(&program).arg(source).stdin(Stdio::null());
    let output = match cc.output() {
        Ok(output) if output.status.success() => return Ok(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::Build { command: format!("{cc:?}"), output })
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
    fn start(core: usize, limit: Duration, mut command: Command) -> Result<Result<Self, Broken>, Error> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        host::dies_with_us(&mut command);
        let mut child = match host::pinned(core, || command.spawn())? {
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
        Ok(Ok(Self { child, questions, answers: receiver, limit, last: FIRST_GUESS }))
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

#[expect(clippy::print_stdout, reason = "the report")]
fn print(report: &Report) {
    let ioctl = report.columns.len() - 1;
    let mut head = vec!["event".to_owned()];
    head.extend(report.columns.iter().map(|column| format!("{column} ns")));
    head.extend(report.columns[..ioctl].iter().map(|column| format!("{column} x {IOCTL} [95 % interval]")));
    let mut table = Table::new(1, head);
    for Row { event, cells } in &report.rows {
        let mut line = vec![(*event).to_owned()];
        line.extend(cells.iter().map(|cell| cell.samples.spread().map_or("-".to_owned(), |s| s.to_string())));
        line.extend(cells[..ioctl].iter().map(|cell| {
            let ratio = cell.samples.ratios(&cells[ioctl].samples).estimate();
            ratio.map_or("-".to_owned(), |ratio| ratio.to_string())
        }));
        table.row(line);
    }
    println!("\nLeaving the guest: ns an event, median (min .. max); goal: at most {GOAL} x {IOCTL}\n");
    println!("{}", table.text());
    for Row { event, cells } in &report.rows {
        for (cell, column) in cells.iter().zip(&report.columns) {
            if let Some(failure) = &cell.failure {
                println!("FAILED: {event} on {column}: {failure}");
            }
        }
    }
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
        let start =
            |command| Side::start(host::choose_core(None).unwrap(), Duration::from_secs(1), command).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "read n; echo $((n * 7)); read n; sleep 60"]);
        let mut side = start(command).unwrap();
        assert_eq!(side.measure(Event::Port), Ok(7.0));
        assert!(side.measure(Event::Port).unwrap_err().contains("no answer for 1 s"));
        let mut command = Command::new("sh");
        command.args(["-c", "read n"]);
        let mut side = start(command).unwrap();
        assert!(side.measure(Event::Port).unwrap_err().contains("ended"));
        let command = Command::new("/nonexistent");
        assert!(start(command).is_err());
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
